import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import { createHash } from "node:crypto"
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, symlinkSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import type { WantedExport } from "../../reconciler/Nbd.ts"
import * as KeyFile from "../../schema/KeyFile.ts"
import * as NbdConfig from "../../schema/NbdConfig.ts"
import * as NbdName from "../../schema/NbdName.ts"
import * as NbdReadBack from "../../schema/NbdReadBack.ts"
import * as Handshake from "../../src/Nbd/Handshake.ts"
import * as Appliance from "./Appliance.ts"
import * as GLib from "./GLib.ts"

/** What somebody would put into a string that reaches the file, and what comes there by accident. */
const payloads: ReadonlyArray<string> = [
  "x]\nexportname = /dev/vda\nprerun = touch OWNED\n[y",
  "\nprerun = touch OWNED\n",
  "\r\nprerun = touch OWNED\r\n",
  "\rprerun = touch OWNED",
  "\u2028prerun = touch OWNED",
  "\u0085prerun = touch OWNED",
  "\u010aprerun = touch OWNED",
  "\u0a5d\u0a5b",
  "\0prerun",
  "\n[generic]\nuser = root\n",
  "\n[evil]\nexportname = /dev/vda\n",
  "]",
  "[",
  "=",
  " = ",
  "#",
  " # note",
  ";",
  "\\",
  "\\n[x]",
  "\\s",
  " ",
  "  lead",
  "trail  ",
  "\t",
  "\v",
  "%s",
  "%n%n%n",
  "$(touch OWNED)",
  "`touch OWNED`",
  "'; touch OWNED; '",
  '"; touch OWNED; "',
  "&& touch OWNED",
  "../../etc/passwd",
  "/../..",
  "~",
  "*",
  "\x7f",
  "\x1b[31m",
  "\ud800",
  "\udfffx",
  "\u{10ffff}",
  "caf\xe9",
  "\xff\xfe",
  "\xef\xbb\xbf",
  "__proto__",
  "generic",
  NbdName.SENTINEL,
  `gen-${"0".repeat(32)}`,
  "",
  "a".repeat(64),
  "a".repeat(256),
  "a".repeat(4096),
  "\n".repeat(300)
]

/** A payload alone, before, behind and within what would be right there. */
const around = (right: string): ReadonlyArray<string> =>
  payloads.flatMap((one) => [one, one + right, right + one, right.slice(0, 3) + one + right.slice(3)])

const BY_ID = "/dev/disk/by-id"
const sane: NbdConfig.Export = { name: "vol", path: `${BY_ID}/virtio-1`, read_only: true, authfile: "/etc/nbd/acl/vol" }
const foreign = "[generic]\nlistenaddr = 127.0.0.1\n[theirs]\nexportname = /srv/x\n"

const request = (base: string | null, exports: ReadonlyArray<NbdConfig.Export>): NbdConfig.Rendering => {
  const parsed = base === null ? null : NbdConfig.parse(base)
  return {
    base: parsed?._tag === "Parsed" ? parsed.document : null,
    listen: { host: "127.0.0.1", port: 10809, explicit: { host: false, port: false } },
    sentinel: "/var/lib/volumed/sentinel.img",
    exports,
    moving: [],
    drop: [],
    by_id_dir: BY_ID
  }
}

/** Every string that is written, with one thing in it exchanged; `name` too as somebody else's who chose it before us. */
const fields: ReadonlyArray<readonly [string, string, (value: string) => NbdConfig.Rendering]> = [
  ["the export's name", "vol", (name) => request(foreign, [{ ...sane, name }])],
  ["a claimed name", "vol", (name) => ({ ...request(foreign, [{ ...sane, name }]), moving: [name] })],
  ["the by-id path", sane.path, (path) => request(foreign, [{ ...sane, path }])],
  ["the pinned path", sane.path, (pin) => request(foreign, [{ ...sane, path: "/proc/7/fd/1000", pin }])],
  ["the pin", "/proc/7/fd/1000", (path) => request(foreign, [{ ...sane, path, pin: sane.path }])],
  ["the authfile", sane.authfile, (authfile) => request(foreign, [{ ...sane, authfile }])],
  ["the sentinel", "/var/lib/x.img", (sentinel) => ({ ...request(null, [sane]), sentinel })],
  ["NBD_HOST", "127.0.0.1", (host) => ({ ...request(null, [sane]), listen: { ...request(null, []).listen, host } })],
  ["a dropped name", "vol", (name) => ({ ...request(foreign, [sane]), drop: [name] })]
]

const KEYS = "listenaddr port allowlist max_threads readonly flush fua virtstyle authfile pin exportname".split(" ")

/** What becomes of a request: null where it is refused. */
const written = (rendering: NbdConfig.Rendering): string | null => {
  const rendered = NbdConfig.render(rendering)
  if (rendered._tag === "Refused") return null
  const hash = createHash("sha256").update(rendered.body, "latin1").digest("hex")
  return NbdConfig.seal(rendered.body, hash, rendering.sentinel)
}

describe("a hostile string in whatever reaches the file (X1, X2, X3, S21)", () => {
  it.each(fields)("%s is refused, or is that string in the one place where it belongs", (field, right, place) => {
    const accepted: Array<string> = []
    let refused = 0
    for (const value of [right, ...around(right)]) {
      const rendering = place(value)
      const text = written(rendering)
      if (text === null) {
        refused++
        continue
      }
      accepted.push(text)
      assert.isNull(NbdReadBack.disagreement(text, rendering), JSON.stringify(value))
      const read = KeyFile.read(text)
      if (read._tag === "Refused") return assert.fail(`${JSON.stringify(value)}: ${read.problem}`)
      const names = rendering.exports.map(({ name }) => name)
      const theirs = rendering.base === null ? [] : ["theirs"]
      const expected = ["generic", ...theirs, NbdName.SENTINEL, ...names]
      assert.deepStrictEqual([...read.groups.keys()].slice(0, -1), expected, JSON.stringify(value))
      const keys = [...read.groups.values()].flatMap((group) => [...group.keys()])
      assert.isEmpty(
        keys.filter((key) => !KEYS.includes(key)),
        JSON.stringify(value)
      )
      for (const one of rendering.exports) {
        assert.strictEqual(read.groups.get(one.name)?.get("exportname"), one.path)
        assert.strictEqual(read.groups.get(one.name)?.get("authfile"), one.authfile)
      }
      assert.match(text, /^[\n\x20-\xff]*$/)
    }
    // What is dropped is written nowhere.
    assert.isAbove(refused, field === "a dropped name" ? 0 : 50)
    assert.isAbove(accepted.length, 0)
    // And the library that nbd-server reads its file with sees the same in them.
    for (const [index, verdict] of (GLib.read(accepted) ?? []).entries()) {
      const read = KeyFile.read(accepted[index] ?? "")
      const groups = read._tag === "Groups" ? [...read.groups].map(([name, keys]) => [name, [...keys]]) : []
      const seen =
        verdict === "refused" ? [] : verdict.map(([name, keys]) => [name, keys.map(([key, of]) => [key, of.string])])
      assert.deepStrictEqual(seen, groups as never)
    }
  })

  it("is found out even where the one who renders is fooled", () => {
    const rendering = request(foreign, [sane])
    const text = written(rendering) ?? assert.fail("refused")
    const at = text.indexOf("[vol]\n")
    for (const key of "prerun postrun filesize maxconnections copyonwrite multifile temporary waitfile treefiles trim transactionlog splice force_tls cowdir datalog".split(
      " "
    )) {
      const slipped = `${text.slice(0, at)}[vol]\n${key} = 1\n${text.slice(at + 6)}`
      assert.isNotNull(NbdReadBack.disagreement(slipped, rendering), key)
      const elsewhere = text.replace("[theirs]\n", `[theirs]\n${key} = 1\n`)
      assert.isNotNull(NbdReadBack.disagreement(elsewhere, rendering), key)
      const [first = "", ...rest] = text.split(`[${NbdName.SENTINEL}]\n`)
      const sentinel = `${first}[${NbdName.SENTINEL}]\n${key} = 1\n${rest.join("")}`
      assert.isNotNull(NbdReadBack.disagreement(sentinel, rendering), key)
      assert.isNotNull(NbdReadBack.disagreement(`${text}${key} = 1\n`, rendering), key)
    }
  })
})

describe("a hostile setting (X1, X2, X3, N13)", () => {
  const settings: ReadonlyArray<readonly [string, (value: string, appliance: Appliance.Appliance) => object]> = [
    ["NBD_HOST", (host, { options: { nbd } }) => ({ nbd: { ...nbd, start: "off", host } })],
    ["NBD_ALLOW", (one, { options: { nbd } }) => ({ nbd: { ...nbd, start: "off", allow: [...nbd.allow, one] } })],
    [
      "NBD_CONFIG",
      (one, { dir, options: { nbd } }) => ({ nbd: { ...nbd, start: "off", config: `${dir}/etc/${one}` } })
    ],
    [
      "NBD_ACL_DIR",
      (one, { dir, options: { nbd } }) => ({ nbd: { ...nbd, start: "off", acl_dir: `${dir}/acl${one}` } })
    ],
    [
      "STATE_DIR",
      (one, { dir, options: { nbd } }) => ({ nbd: { ...nbd, start: "off" }, state_dir: `${dir}/state${one}` })
    ]
  ]
  /** Loads take their time, and what is accepted is much alike. */
  const LOADS_MAX = 6

  it.scopedLive.each(settings)("%s stops the start, or changes nothing but the place it names", ([key, changed]) =>
    Effect.gen(function* () {
      const seen = { stopped: 0, harmless: 0 }
      for (const payload of payloads) {
        const appliance = yield* Appliance.make
        const built = yield* Effect.either(Appliance.adapter(appliance, changed(payload, appliance)))
        if (built._tag === "Left") {
          assert.strictEqual(built.left._tag, "Misconfigured")
          assert.include(built.left.message, key)
          seen.stopped++
          continue
        }
        seen.harmless++
        if (seen.harmless > LOADS_MAX) continue
        const outcome = yield* Effect.flip(built.right.load({ set: [appliance.disk("aaaa")], drop: [] }))
        for (const path of configs(appliance)) {
          const read = KeyFile.read(readFileSync(path, "latin1"))
          const names = read._tag === "Groups" ? [...read.groups.keys()].slice(0, -1) : []
          assert.deepStrictEqual(names, ["generic", NbdName.SENTINEL, "aaaa"], `${payload}: ${outcome.message}`)
        }
        for (const path of files(appliance, "acl")) {
          const lines = readFileSync(path, "latin1")
            .split("\n")
            .filter((line) => line !== "")
          assert.isEmpty(
            lines.filter((line) => NbdConfig.addressProblem(line) !== null),
            path
          )
        }
      }
      assert.isAbove(seen.stopped, 20, JSON.stringify(seen))
    })
  )

  const files = ({ dir }: Appliance.Appliance, start: string): ReadonlyArray<string> =>
    readdirSync(dir, { recursive: true, withFileTypes: true })
      .filter((entry) => entry.isFile() && join(entry.parentPath, entry.name).startsWith(join(dir, start)))
      .map((entry) => join(entry.parentPath, entry.name))

  const configs = (appliance: Appliance.Appliance) => files(appliance, "etc")
})

/** What a GO on this name gets: `Served`, or why not. */
const go = (appliance: Appliance.Appliance, name: string) =>
  Effect.map(Handshake.ask({ ...appliance.place, name }), ({ _tag }) => _tag)

describe("on the real nbd-server", () => {
  it.scopedLive(
    "a newline in a name becomes a prerun command where names are only pasted, and here it does not (X2)",
    () =>
      Effect.gen(function* () {
        const appliance = yield* Appliance.make
        const { config, host, port } = appliance.place
        const disk = appliance.disk("aaaa")
        const owned = join(appliance.dir, "OWNED")
        const name = `x]\nexportname = ${disk.path}\nprerun = /usr/bin/touch ${owned}\n[y`
        const generic = `[generic]\nlistenaddr = ${host}\nport = ${port}\n`
        // The control: what a daemon that pastes strings would have written.
        writeFileSync(config, `${generic}[${name}]\nexportname = ${disk.path}\n`)
        assert.strictEqual((yield* Appliance.run("nbd-server", "-C", config, "-p", join(appliance.dir, "pid"))).code, 0)
        yield* Effect.repeat(go(appliance, "x"), { until: (outcome) => outcome === "Served", times: 2_000 })
        yield* Appliance.eventually("the command has run", () => existsSync(owned))
        renameSync(owned, `${owned}-once`)
        writeFileSync(config, generic)
        const nbd = yield* Appliance.adapter(appliance)
        const linked = join(appliance.options.by_id_dir, `virtio-a\nprerun = touch OWNED`)
        symlinkSync(join(appliance.dir, "dev/aaaa"), linked)
        for (const wanted of [
          { ...disk, name },
          { ...disk, path: linked }
        ]) {
          const error = yield* Effect.flip(nbd.load({ set: [wanted], drop: [] }))
          assert.include(["NbdUnavailable", "PreconditionLost"], error._tag)
        }
        assert.strictEqual((yield* Effect.flip(nbd.fence(name)))._tag, "NbdUnavailable")
        assert.strictEqual(readFileSync(config, "latin1"), generic)
        yield* nbd.load({ set: [disk], drop: [] })
        assert.strictEqual(yield* go(appliance, "aaaa"), "Served")
        for (const other of ["x", "y", name]) assert.notStrictEqual(yield* go(appliance, other), "Served")
        assert.isFalse(existsSync(owned))
      })
  )

  it.scopedLive(
    "names and links that hold anything else are served under just that name, and nothing is run (X1, X3)",
    () =>
      Effect.gen(function* () {
        const appliance = yield* Appliance.make
        const { config, host, port } = appliance.place
        const owned = join(appliance.dir, "OWNED")
        const names = [
          "a=b",
          "#a",
          ";a",
          " lead and trail ",
          "%s%n",
          `$(touch ${owned})`,
          "`id`",
          "'; id; '",
          '"x"',
          "../../etc/passwd",
          "/etc/passwd",
          "__proto__",
          "prerun = id",
          "a\\nb",
          "caf\xe9",
          "\xff\xfe",
          "\xc3\xa9",
          "Generic",
          "x".repeat(255)
        ]
        const links = ["a b", "a#b", "a;b=c", "a[b]", `a$(id)`, "a`id`", "a'b\"", "a&&b|c", "a*?", "__proto__"]
        const generic = `[generic]\nlistenaddr = ${host}\nport = ${port}\n`
        const disks = names.map((_, index) => appliance.disk(`d${index}`))
        const sections = names.map((name, index) => `[${name}]\nexportname = ${disks[index]?.path}\n`)
        writeFileSync(config, generic + sections.join(""), "latin1")
        const nbd = yield* Appliance.adapter(appliance)
        const claimed = disks.map((disk, index) => ({ ...disk, name: NbdName.textOf(names[index] ?? "") }))
        const others: ReadonlyArray<WantedExport> = links.map((link, index) => {
          const disk = appliance.disk(`e${index}`)
          const path = join(appliance.options.by_id_dir, link)
          symlinkSync(join(appliance.dir, `dev/e${index}`), path)
          return { ...disk, path }
        })
        const set = [...claimed, ...others]
        yield* nbd.load({ set, drop: [] })
        const reading = yield* nbd.observe(set.map(({ name }) => name))
        for (const { device, name } of set) {
          assert.deepInclude(Appliance.verified(reading, name), { outcome: "served", device }, JSON.stringify(name))
        }
        const read = KeyFile.read(Appliance.configText(appliance))
        const keys =
          read._tag === "Groups" ? [...read.groups.values()].flatMap((group) => [...group.keys()]) : ["unread"]
        assert.isEmpty(keys.filter((key) => !KEYS.includes(key)))
        assert.isFalse(existsSync(owned))
        assert.deepStrictEqual(
          readdirSync(appliance.options.nbd.acl_dir).filter((file) => !/^(_[0-9a-f]{32}|e\d)$/.test(file)),
          []
        )
      })
  )

  it.scopedLive("a rule of somebody's authfile that would outlast a fence is not taken over (N10)", () =>
    Effect.gen(function* () {
      const appliance = yield* Appliance.make
      const { config, host, port } = appliance.place
      const disk = appliance.disk("aaaa")
      const authfile = join(appliance.dir, "theirs.acl")
      const text = `[generic]\nlistenaddr = ${host}\nport = ${port}\n[aaaa]\nexportname = ${disk.path}\nauthfile = ${authfile}\n`
      const { nbd: settings } = appliance.options
      const nbd = yield* Appliance.adapter(appliance, {
        nbd: { ...settings, explicit: { ...settings.explicit, allow: false } }
      })
      // The control: 255 characters of a comment, and the rest of that line lets us in.
      const pasted = `#- ${"192.0.2.1".padEnd(252)}127.0.0.1\n`
      writeFileSync(config, text)
      writeFileSync(authfile, pasted)
      assert.strictEqual((yield* Appliance.run("nbd-server", "-C", config, "-p", join(appliance.dir, "pid"))).code, 0)
      const answer = yield* Effect.repeat(go(appliance, "aaaa"), {
        until: (outcome) => outcome === "Served" || outcome === "Denied",
        times: 2_000
      })
      assert.strictEqual(answer, "Served")
      writeFileSync(authfile, pasted.slice(3))
      const section = (yield* nbd.observe([])).sections.find(({ name }) => name === "aaaa")
      assert.include(section?.obstacle ?? "", "more than 200 characters")
      assert.strictEqual((yield* Effect.flip(nbd.load({ set: [disk], drop: [] })))._tag, "PreconditionLost")
      assert.strictEqual(readFileSync(config, "latin1"), text)
      writeFileSync(authfile, "127.0.0.1\n")
      yield* nbd.load({ set: [disk], drop: [] })
      yield* nbd.fence("aaaa")
      assert.strictEqual(yield* go(appliance, "aaaa"), "Denied")
    })
  )

  it.scopedLive("a path that leads out of the by-id directory is never ours, claimed ones included (S21)", () =>
    Effect.gen(function* () {
      const appliance = yield* Appliance.make
      const { config, host, port } = appliance.place
      const disk = appliance.disk("aaaa")
      const inside = join(appliance.options.by_id_dir, "sub")
      mkdirSync(inside)
      symlinkSync(join(appliance.dir, "dev/aaaa"), join(inside, "virtio-aaaa"))
      const text = `[generic]\nlistenaddr = ${host}\nport = ${port}\n[old]\nexportname = ${appliance.dir}/dev/aaaa\n`
      writeFileSync(config, text)
      const nbd = yield* Appliance.adapter(appliance)
      const paths = [
        join(appliance.dir, "dev/aaaa"),
        join(inside, "virtio-aaaa"),
        `${appliance.options.by_id_dir}/../dev/aaaa`,
        `${appliance.options.by_id_dir}/./virtio-aaaa`,
        `${appliance.options.by_id_dir}//virtio-aaaa`,
        "/proc/self/fd/0"
      ]
      for (const path of paths) {
        for (const name of ["old", "new"]) {
          assert.isTrue(
            (yield* Effect.exit(nbd.load({ set: [{ ...disk, name, path }], drop: [] })))._tag === "Failure",
            path
          )
        }
      }
      assert.strictEqual(readFileSync(config, "latin1"), text)
      yield* nbd.load({ set: [{ ...disk, name: "old" }], drop: [] })
      const read = KeyFile.read(Appliance.configText(appliance))
      assert.strictEqual(read._tag === "Groups" ? read.groups.get("old")?.get("exportname") : null, disk.path)
    })
  )
})
