import { assert, describe, it } from "@effect/vitest"
import { FastCheck as fc } from "effect"
import { createHash } from "node:crypto"
import { readdirSync, readFileSync } from "node:fs"
import * as NbdConfig from "../../schema/NbdConfig.ts"
import * as NbdName from "../../schema/NbdName.ts"
import * as NbdReadBack from "../../schema/NbdReadBack.ts"

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
): NbdConfig.Rendering => ({
  base: base === null ? null : parsed(base),
  listen,
  sentinel,
  exports,
  moving: [],
  drop,
  by_id_dir: "/dev/disk/by-id"
})

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
    assert.isNull(NbdReadBack.disagreement(text, request))
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
      assert.isNull(NbdReadBack.disagreement(once, port))
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
          assert.isNull(NbdReadBack.disagreement(second, request))
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

  it("leaves what others wrote byte for byte through any number of loads, and alone once ours are gone (N1, S13)", () => {
    const line = fc.constantFrom(
      "; k = v",
      "\tkey=  v \t",
      "k[de] = w",
      "# note",
      "#",
      "",
      " ",
      "caf\xe9 = \xff",
      "x = a\\sb"
    )
    const header = fc.constantFrom("[theirs]", "[ b c ]\t", "[d]", "[caf\xe9]", "[Vol-a]")
    const block = fc
      .tuple(header, fc.array(line, { maxLength: 4 }))
      .map(([head, lines]) => [head, "exportname = /srv/x", ...lines])
    const file = fc.tuple(fc.array(block, { maxLength: 4 }), fc.constantFrom("\n", "\r\n"), fc.boolean(), fc.boolean())
    const change = fc.dictionary(fc.constantFrom("a", "b", "c", "vol-a"), fc.tuple(fc.boolean(), fc.boolean()), {
      maxKeys: 4
    })
    const names = ["a", "b", "c", "vol-a"]
    let seen = 0
    fc.assert(
      fc.property(file, fc.array(change, { minLength: 1, maxLength: 5 }), ([blocks, end, ended, bom], changes) => {
        const lines = ["# by hand", "[generic]", "listenaddr = 127.0.0.1", ...blocks.flat(), "# the end"]
        const original = lines.join(end) + (ended ? end : "")
        let text = (bom ? "\xef\xbb\xbf" : "") + original
        const kept = original.replace(/\s*$/, "")
        for (const wanted of [...changes, {}]) {
          const exports = Object.entries(wanted).map(([name, [readOnly, moved]]) => {
            const one = exportOf(name, readOnly)
            return moved ? { ...one, path: one.path.replace("virtio-", "scsi-0QEMU_") } : one
          })
          const request = {
            ...rendering(
              text,
              exports,
              names.filter((name) => !(name in wanted))
            ),
            listen: defaults
          }
          text = sealed(request)
          assert.isNull(NbdReadBack.disagreement(text, request))
          // Ours come behind theirs, so that theirs are there as one piece, from the first byte on.
          assert.isTrue(text.startsWith(kept), JSON.stringify([original, text]))
          const rest = text.slice(kept.length).replace(/^\s*/, "")
          const headers = rest.match(/^\[.*\]$/gm) ?? []
          assert.deepStrictEqual(
            headers.slice(1, -1),
            Object.keys(wanted)
              .sort()
              .map((name) => `[${name}]`)
          )
          seen += headers.length
        }
      }),
      { numRuns: 300, seed: 7 }
    )
    assert.isAbove(seen, 1_000)
  })

  it("arrives at the same file from one that was cut off at any byte, and takes none for whole that is not (N2, S13)", () => {
    const exports = [exportOf("migration-vol-a", true), exportOf("migration-vol-b")]
    const text = sealed(rendering(null, exports))
    const seen = { broken: 0, sound: 0 }
    for (let cut = 0; cut < text.length; cut++) {
      const half = text.slice(0, cut)
      const result = NbdConfig.parse(half)
      const broken = result._tag === "Malformed" || NbdConfig.refusal(result.document) !== null
      // Broken, it is rendered from the last verified copy, which is the whole one.
      const base = broken ? text : half
      assert.strictEqual(sealed(rendering(base, exports)), text, String(cut))
      const marker = broken ? null : NbdConfig.generation(result.document)
      const hash = createHash("sha256")
        .update(marker?.body ?? "", "latin1")
        .digest("hex")
      assert.isTrue(marker === null || !hash.startsWith(marker.hash) || half.trim() === text.trim(), String(cut))
      seen[broken ? "broken" : "sound"]++
    }
    assert.isAbove(Math.min(seen.broken, seen.sound), 100, JSON.stringify(seen))
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

  it("does not take a marker for valid once a section stands behind it; what no server reads may", () => {
    const text = sealed(rendering(null, []))
    assert.isNull(NbdConfig.generation(parsed(`${text}[y]\nexportname = /y\n`)))
    for (const more of ["", "\n", "# x\n"]) {
      const generation = NbdConfig.generation(parsed(text + more))
      assert.strictEqual(generation?.body, NbdConfig.generation(parsed(text))?.body)
    }
  })

  it("knows what a server reads from what it does not", () => {
    const text = "[generic]\n port = 1\n[a]\nexportname = /a # b\n"
    const commented = "# one\n\n[generic]\r\n port = 1\n  # two\n[a]\n\t\nexportname = /a # b"
    assert.strictEqual(NbdConfig.meaning(commented), NbdConfig.meaning(text))
    const two = ["[a]\nexportname = /a\n", "[b]\nexportname = /b\n"]
    assert.strictEqual(NbdConfig.meaning(two.toReversed().join("")), NbdConfig.meaning(two.join("")))
    // Of one group's lines the last one of a key counts.
    const twice = ["[a]\nexportname = /a\n", "[a]\nexportname = /b\n"]
    assert.notStrictEqual(NbdConfig.meaning(twice.toReversed().join("")), NbdConfig.meaning(twice.join("")))
    for (const other of [`${text}readonly = true\n`, text.replace("# b", "#  b"), text.replace("[a]", "[b]")])
      assert.notStrictEqual(NbdConfig.meaning(other), NbdConfig.meaning(text))
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

  it.each([
    "/dev/vdb",
    "/dev/disk/by-id",
    "/dev/disk/by-id/",
    "/dev/disk/by-id/sub/virtio-1",
    "/dev/disk/by-id//virtio-1",
    "/dev/disk/by-idx/virtio-1",
    "/dev/disk/by-path/virtio-1",
    "/proc/1/fd/3",
    "/srv/image"
  ])("lets an export of ours lead nowhere but through the by-id directory: %j (S21)", (path) => {
    assert.include(refused(rendering(null, [{ ...exportOf("ok"), path }])), "is no link in /dev/disk/by-id")
    // What a process has open is that only where it was opened by such a link.
    const pinned = { ...exportOf("ok"), path: "/proc/7/fd/1000", pin: path }
    assert.include(refused(rendering(null, [pinned])), "is no link in /dev/disk/by-id")
    const claimed = {
      ...rendering(`[generic]\n[ok]\nexportname = ${path}\n`, [{ ...exportOf("ok"), path }]),
      moving: ["ok"]
    }
    assert.include(refused(claimed), "is no link in /dev/disk/by-id")
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
        { weight: 3, arbitrary: fc.constantFrom("/dev/disk/by-id/x", "/dev/disk/by-id/a b#c;d=[e]") },
        nasty.map((s) => `/dev/disk/by-id/${s}`)
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
        assert.isNull(NbdReadBack.disagreement(text, request))
        assert.strictEqual(parsed(text).sections.length, exports.length + 3)
        const keys = parsed(text).sections.flatMap((s) => s.pairs.map((p) => p.key))
        assert.isEmpty(keys.filter((key) => !allowed.includes(key)))
      }),
      { numRuns: 3000, seed: 3 }
    )
    assert.isAbove(tally.accepted, 200)
    assert.isAbove(tally.refused, 200)
  })

  it("refuses two names that differ only in case (N14)", () => {
    assert.include(refused(rendering(null, [exportOf("Vol"), exportOf("vol")])), "twice")
  })

  it("finds out when a text is not what was meant", () => {
    const request = rendering("[generic]\n[other]\nexportname = /x\n", [exportOf("mine")])
    const text = sealed(request)
    assert.isNotNull(NbdReadBack.disagreement(text.replace("readonly = false", "readonly = true"), request))
    assert.isNotNull(NbdReadBack.disagreement(text.replace("exportname = /x", "exportname = /y"), request))
    assert.isNotNull(NbdReadBack.disagreement(text.replace("[mine]\n", "[mine]\nprerun = id\n"), request))
    assert.isNotNull(NbdReadBack.disagreement(text.replace("\n[gen-", "\n[more]\nexportname = /z\n\n[gen-"), request))
    assert.isNotNull(NbdReadBack.disagreement(text.slice(0, -4), request))
  })
})
