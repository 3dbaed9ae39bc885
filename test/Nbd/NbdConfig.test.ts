import { assert, describe, it } from "@effect/vitest"
import { FastCheck as fc } from "effect"
import { createHash } from "node:crypto"
import { readdirSync, readFileSync } from "node:fs"
import * as NbdConfig from "../../schema/NbdConfig.ts"
import * as NbdName from "../../schema/NbdName.ts"

const parsed = (text: string): NbdConfig.Document => {
  const result = NbdConfig.parse(text)
  if (result._tag === "Malformed") throw new Error(`line ${result.line}: ${result.problem}`)
  return result.document
}

const listen = { host: "127.0.0.1", port: 10809, explicit: { host: true, port: true } }
/** Nobody set anything: what a file says counts. */
const defaults = { ...listen, explicit: { host: false, port: false } }
const sentinel = "/var/lib/volumed/sentinel.img"

const exportOf = (name: string, readOnly = false): NbdConfig.Export => ({
  name,
  path: `/dev/disk/by-id/virtio-${createHash("sha256").update(name).digest("hex").slice(0, 20)}`,
  read_only: readOnly,
  authfile: `/etc/nbd-server/acl/${name}`
})

const rendering = (
  base: string | null,
  exports: ReadonlyArray<NbdConfig.Export>,
  drop: ReadonlyArray<string> = []
): NbdConfig.Rendering => ({ base: base === null ? null : parsed(base), listen, sentinel, exports, moving: [], drop })

const sealed = (request: NbdConfig.Rendering): string => {
  const result = NbdConfig.render(request)
  if (result._tag === "Refused") throw new Error(result.problems.join("; "))
  return NbdConfig.seal(result.body, createHash("sha256").update(result.body, "latin1").digest("hex"), sentinel)
}

const refused = (request: NbdConfig.Rendering): string => {
  const result = NbdConfig.render(request)
  return result._tag === "Refused" ? result.problems.join("; ") : ""
}

const fixtures = readdirSync("fixtures/nbd").map(
  (name) => [name, readFileSync(`fixtures/nbd/${name}`, "latin1")] as const
)

describe("reading the file", () => {
  it.each(fixtures)("keeps every byte of %s (N1)", (_, text) => {
    assert.strictEqual(NbdConfig.print(parsed(text)), text)
  })

  it("keeps every byte of whatever parses", () => {
    const tally = { parsed: 0, malformed: 0 }
    const piece = fc.constantFrom(
      "[generic]",
      "[a]",
      "[ b ]\t",
      "a=b",
      " key = value ",
      "# comment",
      ";",
      "=",
      "\n",
      "\r\n",
      "\n\n",
      " ",
      "\0",
      "x",
      "[",
      "]",
      "\xef\xbb\xbf",
      "k[de]=v",
      "readonly = true",
      "\u00e9=1"
    )
    fc.assert(
      fc.property(fc.array(piece, { maxLength: 24 }), (pieces) => {
        const text = pieces.join("")
        const result = NbdConfig.parse(text)
        tally[result._tag === "Parsed" ? "parsed" : "malformed"]++
        if (result._tag === "Parsed") assert.strictEqual(NbdConfig.print(result.document), text)
      }),
      { numRuns: 3000, seed: 1 }
    )
    assert.isAbove(tally.parsed, 100)
    assert.isAbove(tally.malformed, 100)
  })

  it("reads CRLF, a byte order mark, blanks around headers and a key that begins with a semicolon as GLib does", () => {
    const document = parsed(readFileSync("fixtures/nbd/hand-edited-crlf.conf", "latin1"))
    assert.isTrue(document.bom)
    assert.deepStrictEqual(
      document.sections.map((s) => s.name),
      ["generic", " office backup "]
    )
    assert.strictEqual(NbdConfig.valueOf(document, "generic", "; note"), "GLib reads this as a key")
    assert.strictEqual(NbdConfig.valueOf(document, " office backup ", "exportname"), "/srv/office.img")
    assert.isTrue(NbdConfig.flagOf(document, " office backup ", "readonly"))
  })

  it("reports sections that stand twice and lets the last value count (N14)", () => {
    const document = parsed(readFileSync("fixtures/nbd/duplicates.conf", "latin1"))
    assert.deepStrictEqual(document.duplicates, ["a"])
    assert.strictEqual(NbdConfig.valueOf(document, "a", "exportname"), "/srv/second.img")
  })

  it.each([
    ["a=b\n[generic]\n", 1],
    ["[generic]\nnonsense\n", 2],
    ["[generic]\n\n[x]]\n", 3],
    ["[]\n", 1],
    ["[a\x01]\n", 1],
    ["[generic]\n=v\n", 2],
    ["[generic]\nk[x=v\n", 2],
    ["[generic]\na=\0\n", 2],
    ["\x7fELF\x02\x01", 1]
  ])("says which line GLib would refuse: %j", (text, line) => {
    const result = NbdConfig.parse(text)
    assert.strictEqual(result._tag === "Malformed" ? result.line : 0, line)
  })

  it.each([
    ["", "holds no section"],
    ["# only a comment\n", "holds no section"],
    ["[x]\nexportname=/a\n", "not [generic]"],
    ["[generic]\n[x]\n", "[x] has no exportname"],
    ["[generic]\n[x]\nexportname=/a\nreadonly=yes\n", "readonly in [x]"],
    ["[generic]\nallowlist=on\n", "allowlist in [generic]"],
    ["[generic]\n[x]\nexportname=/a\nmaxconnections=many\n", "maxconnections in [x]"]
  ])("knows what nbd-server would refuse as a whole: %j (N2)", (text, problem) => {
    assert.include(NbdConfig.refusal(parsed(text)) ?? "", problem)
  })
})

describe("rendering", () => {
  it("writes a new file that starts with our [generic] and ends in the marker", () => {
    const request = rendering(null, [exportOf("migration-vol-b", true), exportOf("migration-vol-a")])
    const text = sealed(request)
    assert.isNull(NbdConfig.disagreement(text, request))
    const document = parsed(text)
    assert.deepStrictEqual(document.sections.map((s) => s.name).slice(0, -1), [
      "generic",
      NbdName.SENTINEL,
      "migration-vol-a",
      "migration-vol-b"
    ])
    assert.strictEqual(NbdConfig.generation(document)?.marker, document.sections.at(-1)?.name)
    assert.deepStrictEqual(document.sections.find((s) => s.name === "migration-vol-b")?.pairs, [
      { key: "readonly", value: "true" },
      { key: "flush", value: "true" },
      { key: "fua", value: "true" },
      { key: "virtstyle", value: "none" },
      { key: "authfile", value: "/etc/nbd-server/acl/migration-vol-b" },
      { key: "exportname", value: exportOf("migration-vol-b").path }
    ])
    assert.strictEqual(NbdConfig.valueOf(document, "generic", "allowlist"), "false")
  })

  it("still holds the sentinel when nothing is exported (N16)", () => {
    const text = sealed(rendering(null, []))
    assert.isNull(NbdConfig.refusal(parsed(text)))
    assert.include(text, `[${NbdName.SENTINEL}]\nreadonly = true\n`)
  })

  it.each(fixtures)(
    "keeps the sections and comments of %s byte for byte, and gives the same bytes again (N1, S13)",
    (_, text) => {
      const port = { ...rendering(text, [exportOf("mine")]), listen: defaults }
      const once = sealed(port)
      assert.isNull(NbdConfig.disagreement(once, port))
      for (const section of parsed(text).sections) assert.include(once, section.body)
      for (const comment of text.match(/^#.*$/gm) ?? []) assert.include(once, comment)
      assert.strictEqual(sealed({ ...port, base: parsed(once) }), once)
      assert.isFalse(parsed(once).bom)
    }
  )

  it("keeps what others wrote before, between and after our sections while ours come and go", () => {
    const tally = new Map<string, number>()
    const foreign = fc.constantFrom(
      "[generic]\n",
      "[other]\nexportname=/x\n",
      "\n# note\n[third]\r\nexportname = /y\r\n",
      "\n\n",
      "# tail",
      "\t\n"
    )
    const names = fc.uniqueArray(fc.constantFrom("a", "b", "c"))
    fc.assert(
      fc.property(
        fc.array(foreign, { maxLength: 6 }),
        fc.array(foreign, { maxLength: 3 }),
        names,
        names,
        (head, tail, had, wanted) => {
          const start = `[generic]\n${head.join("\n")}\n`
          const first = sealed(
            rendering(
              start,
              had.map((n) => exportOf(n))
            )
          )
          // Somebody appends to the file behind our marker.
          const edited = `${first}\n${tail.join("\n").replaceAll("[generic]\n", "")}`
          const request = rendering(
            edited,
            wanted.map((n) => exportOf(n)),
            had.filter((n) => !wanted.includes(n))
          )
          const second = sealed(request)
          assert.isNull(NbdConfig.disagreement(second, request))
          assert.strictEqual(sealed({ ...request, base: parsed(second) }), second)
          for (const name of ["a", "b", "c"]) assert.strictEqual(second.includes(`[${name}]\n`), wanted.includes(name))
          for (const part of [...head, ...tail]) {
            const body = part.trim()
            if (body !== "") assert.include(second, body)
            tally.set(body, (tally.get(body) ?? 0) + 1)
          }
        }
      ),
      { numRuns: 500, seed: 2 }
    )
    assert.isAtLeast(tally.size, 5)
  })

  it("replaces a [generic] of ours when the settings change, and leaves alone one whose signature was removed", () => {
    const ours = sealed(rendering(null, []))
    const moved = sealed({ ...rendering(ours, []), listen: { ...listen, port: 10810 } })
    assert.strictEqual(NbdConfig.valueOf(parsed(moved), "generic", "port"), "10810")
    const claimed = ours.replace(/^# This \[generic\].*\n/, "").replace("max_threads = 4", "max_threads = 8")
    assert.include(
      sealed(rendering(claimed, [])),
      "[generic]\nlistenaddr = 127.0.0.1\nport = 10809\nallowlist = false\nmax_threads = 8\n"
    )
  })

  it.each([
    ["[generic]\nport = 10810\nlistenaddr = 127.0.0.1\n", "port 10810"],
    ["[generic]\nlistenaddr = 10.9.9.9\n", "10.9.9.9"]
  ])("refuses to extend a [generic] of somebody else that serves elsewhere: %j (N1)", (text, problem) => {
    assert.include(NbdConfig.judgeGeneric(parsed(text), listen).conflict ?? "", problem)
    assert.include(refused(rendering(text, [])), problem)
  })

  it("remarks that a [generic] of somebody else listens everywhere or runs as another user (N13)", () => {
    const { conflict, remarks } = NbdConfig.judgeGeneric(parsed("[generic]\nuser = nbd\n"), defaults)
    assert.isNull(conflict)
    assert.match(remarks.join(), /every address.*runs the server as nbd/)
  })

  it("does not take a marker for valid once anything stands behind it", () => {
    const text = sealed(rendering(null, []))
    assert.isNotNull(NbdConfig.generation(parsed(text)))
    for (const more of ["\n", "# x\n", "[y]\nexportname = /y\n"])
      assert.isNull(NbdConfig.generation(parsed(text + more)))
  })
})

describe("hostile strings", () => {
  const payloads = [
    "x]\nprerun = touch /tmp/owned\n[y",
    "a\nprerun=id",
    "a\rprerun=id",
    "a\r\n",
    "\n",
    "a\u2028prerun=id",
    "a\u0085b",
    "a\0b",
    "a]",
    "[a",
    "a=b",
    "#a",
    ";a",
    " a",
    "a ",
    "a\\nb",
    "%s",
    "../x",
    "a/b",
    "generic",
    "GENERIC",
    NbdName.SENTINEL,
    `gen-${"0".repeat(32)}`,
    "",
    "é",
    "x".repeat(64),
    "x".repeat(255),
    "x".repeat(4096),
    "__proto__ "
  ]

  it.each(payloads)("refuses the export name %j (X2, N14)", (name) => {
    assert.notStrictEqual(refused(rendering(null, [{ ...exportOf("ok"), name }])), "")
  })

  const paths = [
    "a\nprerun=id",
    "/a\nprerun = touch /tmp/owned",
    "/a\rb",
    "/a\0",
    "/a%s",
    "/a\\nprerun=id",
    "relative",
    "/a/../b",
    "/a ",
    "/é",
    "/a\u2028b",
    `/${"x".repeat(99)}`
  ]
  it.each(paths)("refuses the path %j wherever it would be written (X1, X2, X3)", (path) => {
    assert.notStrictEqual(refused(rendering(null, [{ ...exportOf("ok"), path }])), "")
    assert.notStrictEqual(refused(rendering(null, [{ ...exportOf("ok"), authfile: path }])), "")
    assert.notStrictEqual(refused({ ...rendering(null, []), sentinel: path }), "")
  })

  it("names the state directory when its path is too long for nbd-server", () => {
    const problem = refused({ ...rendering(null, []), sentinel: `/home/${"x".repeat(100)}/sentinel.img` })
    assert.match(problem, /STATE_DIR.*has 119 characters.*at most 99/)
  })

  it.each(["::", "0.0.0.0", "localhost", "127.0.0.1\nuser=x", "10.0.0.0/8", "256.1.1.1", "1.2.3"])(
    "refuses to listen on %j",
    (host) => {
      assert.notStrictEqual(refused({ ...rendering(null, []), listen: { ...listen, host } }), "")
    }
  )

  it("never lets a string become a key: what is accepted parses to exactly what was meant (S21)", () => {
    const nasty = fc.oneof(
      fc.string({ maxLength: 20 }),
      fc.string({
        unit: fc.constantFrom("\n", "\r", "[", "]", "=", "a", "/", " ", "#", "\\", "prerun", "\0"),
        maxLength: 8
      })
    )
    const tally = { accepted: 0, refused: 0 }
    const allowed = "listenaddr port allowlist max_threads readonly flush fua virtstyle authfile exportname".split(" ")
    const one = fc.record({
      name: fc.oneof({ weight: 3, arbitrary: fc.constantFrom("a", "b", "v1.x_-") }, nasty),
      path: fc.oneof(
        { weight: 3, arbitrary: fc.constantFrom("/dev/x", "/a b/#c;d=[e]") },
        nasty.map((s) => `/${s}`)
      ),
      read_only: fc.boolean(),
      authfile: fc.oneof(
        { weight: 3, arbitrary: fc.constant("/acl/x") },
        nasty.map((s) => `/${s}`)
      )
    })
    fc.assert(
      fc.property(fc.array(one, { maxLength: 3 }), (exports) => {
        const request = rendering(null, exports)
        if (NbdConfig.render(request)._tag === "Refused") return void tally.refused++
        tally.accepted++
        const text = sealed(request)
        assert.isNull(NbdConfig.disagreement(text, request))
        assert.strictEqual(parsed(text).sections.length, exports.length + 3)
        const keys = parsed(text).sections.flatMap((s) => s.pairs.map((p) => p.key))
        assert.isEmpty(keys.filter((key) => !allowed.includes(key)))
      }),
      { numRuns: 3000, seed: 3 }
    )
    assert.isAbove(tally.accepted, 200)
    assert.isAbove(tally.refused, 200)
  })

  it("refuses two names that differ only in case", () => {
    assert.include(refused(rendering(null, [exportOf("Vol"), exportOf("vol")])), "twice")
  })

  it("finds out when a text is not what was meant", () => {
    const request = rendering("[generic]\n[other]\nexportname = /x\n", [exportOf("mine")])
    const text = sealed(request)
    assert.isNotNull(NbdConfig.disagreement(text.replace("readonly = false", "readonly = true"), request))
    assert.isNotNull(NbdConfig.disagreement(text.replace("exportname = /x", "exportname = /y"), request))
    assert.isNotNull(NbdConfig.disagreement(text.replace("[mine]\n", "[mine]\nprerun = id\n"), request))
    assert.isNotNull(NbdConfig.disagreement(text.replace("\n[gen-", "\n[more]\nexportname = /z\n\n[gen-"), request))
    assert.isNotNull(NbdConfig.disagreement(text.slice(0, -4), request))
  })
})
