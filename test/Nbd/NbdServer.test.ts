import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import {
  copyFileSync,
  existsSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  truncateSync,
  writeFileSync
} from "node:fs"
import { connect } from "node:net"
import { join } from "node:path"
import type { LoadRequest, WantedExport } from "../../reconciler/Nbd.ts"
import { sectionOf } from "../../schema/Inventory.ts"
import * as NbdName from "../../schema/NbdName.ts"
import * as ConfigFile from "../../src/Nbd/ConfigFile.ts"
import * as Processes from "../../src/Nbd/Processes.ts"
import * as Appliance from "./Appliance.ts"

const MiB = 1024 * 1024

const request = (set: ReadonlyArray<WantedExport>, ...drop: ReadonlyArray<string>): LoadRequest => ({ set, drop })

const mainOf = (appliance: Appliance.Appliance) =>
  Effect.map(Processes.listener(appliance.place), (listener) => (listener._tag === "Main" ? listener.main.pid : null))

/** What an independent client says about an export. */
const sizeOf = (appliance: Appliance.Appliance, name: string) =>
  Effect.map(Appliance.run("nbdinfo", "--size", appliance.uri(name)), ({ code, said }) =>
    code === 0 ? Number(said) : said
  )

describe("a load on the real nbd-server", () => {
  it.scopedLive("leaves a dropped export's authfile, and it admits nobody (N8)", () =>
    Effect.gen(function* () {
      const appliance = yield* Appliance.make
      const nbd = yield* Appliance.adapter(appliance)
      const [a, b] = [appliance.disk("aaaa"), appliance.disk("bbbb")]
      yield* nbd.load(request([a, b]))
      yield* nbd.load(request([a], "bbbb"))
      assert.strictEqual(readFileSync(join(appliance.dir, "acl/bbbb"), "latin1"), "")
    })
  )

  it.scopedLive("ends a client that has connected but not chosen: it would serve the old file and hold the port", () =>
    Effect.gen(function* () {
      const appliance = yield* Appliance.make
      const nbd = yield* Appliance.adapter(appliance)
      const [a, b] = [appliance.disk("aaaa"), appliance.disk("bbbb")]
      yield* nbd.load(request([a, b]))
      const idle = yield* Effect.acquireRelease(
        Effect.sync(() => connect(appliance.place.port, appliance.place.host)),
        (socket) => Effect.sync(() => socket.destroy())
      )
      let greeted = false
      let ended = false
      idle
        .on("data", () => (greeted = true))
        .on("error", () => (ended = true))
        .on("close", () => (ended = true))
      yield* Appliance.eventually("the idle client is greeted", () => greeted)
      yield* nbd.load(request([a], "bbbb"))
      yield* Appliance.eventually("the idle client is gone", () => ended)
      assert.strictEqual(yield* sizeOf(appliance, "aaaa"), MiB)
    })
  )

  it.scopedLive("replaces a main whose memory denies an export that the file grants, once and not for ever (N7)", () =>
    Effect.gen(function* () {
      const appliance = yield* Appliance.make
      const nbd = yield* Appliance.adapter(appliance)
      const a = appliance.disk("aaaa")
      yield* nbd.load(request([a]))
      // The main has parsed another path under this marker, as one with a damaged heap has.
      const text = Appliance.configText(appliance)
      const damaged = text.replace(`exportname = ${a.path}`, `exportname = ${a.path}x`)
      writeFileSync(appliance.place.config, damaged)
      process.kill((yield* mainOf(appliance)) ?? 0, "SIGKILL")
      yield* Appliance.eventually("it is gone", () => Processes.servers(appliance.place.config).length === 0)
      const run = Appliance.run("nbd-server", "-C", appliance.place.config, "-p", join(appliance.dir, "pid"))
      assert.strictEqual((yield* run).code, 0)
      writeFileSync(appliance.place.config, text)
      const up = Effect.repeat(sizeOf(appliance, NbdName.SENTINEL), { until: (size) => size === MiB, times: 300 })
      assert.strictEqual(yield* up, MiB)
      const reading = yield* nbd.observe(["aaaa"])
      assert.deepStrictEqual([reading.loaded, Appliance.verified(reading, "aaaa").outcome], [true, "denied"])
      yield* nbd.load(request([a]))
      assert.strictEqual(yield* sizeOf(appliance, "aaaa"), MiB)
      // An export that its own authfile denies to us is no damage that another main would mend.
      writeFileSync(join(appliance.dir, "acl/aaaa"), "192.0.2.1\n")
      const blocked = { ...appliance.disk("bbbb"), name: "bbbb" }
      writeFileSync(join(appliance.dir, "dev/bbbb"), "")
      truncateSync(join(appliance.dir, "dev/bbbb"), MiB)
      yield* nbd.load(request([a, blocked]))
      const main = yield* mainOf(appliance)
      yield* nbd.load(request([a, blocked]))
      assert.strictEqual(yield* mainOf(appliance), main)
    })
  )
})

describe("what others wrote", () => {
  it.scopedLive("stays byte for byte, is still served, and is shown (N1, S13)", () =>
    Effect.gen(function* () {
      const appliance = yield* Appliance.make
      const { host, port, config } = appliance.place
      const [a, other] = [appliance.disk("aaaa"), appliance.disk("other", 2 * MiB)]
      const generic = `# mine\r\n[generic]\r\n  listenaddr = ${host}\r\n\tport=${port}\r\n\r\n`
      const section = `# the office's disk\n[Office Disk]\nexportname = ${other.path}\nreadonly = true\n`
      writeFileSync(config, generic + section)
      const nbd = yield* Appliance.adapter(appliance)
      yield* nbd.load(request([a]))
      yield* nbd.load(request([], "aaaa"))
      yield* nbd.load(request([a]))
      const text = Appliance.configText(appliance)
      assert.isTrue(text.startsWith(generic + section))
      const reading = yield* nbd.observe(["aaaa", "Office Disk"])
      assert.deepStrictEqual(
        reading.sections.map((s) => s.name),
        ["Office Disk", "aaaa"]
      )
      assert.deepInclude(Appliance.verified(reading, "Office Disk"), {
        outcome: "served",
        size: 2 * MiB,
        device: other.device
      })
    })
  )

  it.scopedLive("is claimed under its old name when it is wanted, and leaves when it is dropped", () =>
    Effect.gen(function* () {
      const appliance = yield* Appliance.make
      const { host, port, config } = appliance.place
      const a = appliance.disk("aaaa")
      writeFileSync(
        config,
        `[generic]\nlistenaddr = ${host}\nport = ${port}\n[Legacy-1]\nexportname = /dev/null\n[../old]\nexportname = /dev/null\n`
      )
      const nbd = yield* Appliance.adapter(appliance)
      yield* nbd.load(request([{ ...a, name: "Legacy-1" }], "../old"))
      const reading = yield* nbd.observe(["Legacy-1", "../old"])
      assert.deepStrictEqual(reading.sections, [{ ...sectionOf("Legacy-1", a.path, false), device: a.device }])
      assert.deepStrictEqual(
        reading.verifications.map((v) => v.outcome),
        ["served", "unknown"]
      )
      assert.deepStrictEqual(readdirSync(appliance.dir).sort(), ["acl", "by-id", "dev", "etc", "state"])
    })
  )

  it.scopedLive("on another port or address is reported, and neither file nor server is touched (N1)", () =>
    Effect.gen(function* () {
      const appliance = yield* Appliance.make
      const nbd = yield* Appliance.adapter(appliance)
      for (const generic of [
        `listenaddr = ${appliance.place.host}`,
        `port = ${appliance.place.port}\nlistenaddr = 127.9.9.9`
      ]) {
        const text = `[generic]\n${generic}\n`
        writeFileSync(appliance.place.config, text)
        assert.match((yield* nbd.observe([])).config_problem ?? "", /the settings say/)
        const error = yield* Effect.flip(nbd.load(request([appliance.disk(`d${generic.length}`)])))
        assert.include(error.message, "the settings say")
        assert.strictEqual(Appliance.configText(appliance), text)
      }
      assert.isEmpty(Processes.servers(appliance.place.config))
    })
  )

  it.scopedLive("a hand's change makes the marker worth nothing until the next load", () =>
    Effect.gen(function* () {
      const appliance = yield* Appliance.make
      const nbd = yield* Appliance.adapter(appliance)
      const a = appliance.disk("aaaa")
      yield* nbd.load(request([a]))
      const text = Appliance.configText(appliance)
      writeFileSync(appliance.place.config, text.replace("readonly = false", "readonly = true"))
      assert.isFalse((yield* nbd.observe([])).loaded)
      yield* nbd.load(request([a]))
      assert.strictEqual(Appliance.configText(appliance), text)
      assert.isTrue((yield* nbd.observe([])).loaded)
    })
  )
})

describe("a file that is not to be used", () => {
  const broken: ReadonlyArray<readonly [string, string]> = [
    ["half of it", "half"],
    ["nothing", ""],
    ["something binary", "\x7fELF\0\0\x01"],
    ["a section without a path", "[generic]\n[x]\nreadonly = true\n"]
  ]
  it.scopedLive.each(broken)(
    "with %s in it is kept aside and rendered anew from the last verified one (N2)",
    ([, content]) =>
      Effect.gen(function* () {
        const appliance = yield* Appliance.make
        const { host, port, config } = appliance.place
        const [a, other] = [appliance.disk("aaaa"), appliance.disk("other")]
        writeFileSync(config, `[generic]\nlistenaddr = ${host}\nport = ${port}\n[theirs]\nexportname = ${other.path}\n`)
        const nbd = yield* Appliance.adapter(appliance)
        yield* nbd.load(request([a]))
        const text = Appliance.configText(appliance)
        const bad = content === "half" ? text.slice(0, text.indexOf("exportname = ", text.indexOf("[aaaa]"))) : content
        writeFileSync(config, bad, "latin1")
        const reading = yield* nbd.observe(["aaaa"])
        assert.deepStrictEqual([reading.loaded, reading.config_problem], [false, null])
        assert.include(reading.server.problem ?? "", "broken")
        assert.deepStrictEqual(
          reading.sections.map((s) => s.name),
          ["theirs", "aaaa"]
        )
        yield* (yield* Appliance.adapter(appliance)).load(request([a]))
        assert.strictEqual(Appliance.configText(appliance), text)
        const [aside, ...more] = readdirSync(join(appliance.dir, "etc")).filter((name) => name !== "config")
        assert.match(aside ?? "", /^config\.broken-\d{4}-\d\d-\d\dT/)
        assert.isEmpty(more)
        assert.strictEqual(readFileSync(join(appliance.dir, "etc", aside ?? ""), "latin1"), bad)
        assert.strictEqual(yield* sizeOf(appliance, "theirs"), MiB)
      })
  )

  it.scopedLive("in a directory that is a link is reported and not followed (N15)", () =>
    Effect.gen(function* () {
      const appliance = yield* Appliance.make
      renameSync(join(appliance.dir, "etc"), join(appliance.dir, "real"))
      symlinkSync(join(appliance.dir, "real"), join(appliance.dir, "etc"))
      const nbd = yield* Appliance.adapter(appliance)
      assert.include((yield* nbd.observe([])).config_problem ?? "", "symbolic link")
      const error = yield* Effect.flip(nbd.load(request([appliance.disk("aaaa")])))
      assert.strictEqual(error._tag, "NbdUnavailable")
      assert.isEmpty(readdirSync(join(appliance.dir, "real")))
    })
  )

  it.scopedLive("after a failed write the old one is whole and served, and the next load writes again (N4)", () =>
    Effect.gen(function* () {
      const appliance = yield* Appliance.make
      let failing: string | null = null
      const failAt = (path: unknown, operation: string) =>
        failing === operation && String(path).includes("config")
          ? Promise.reject(Object.assign(new Error("full"), { code: "ENOSPC" }))
          : null
      const disk: ConfigFile.Disk = {
        ...ConfigFile.disk,
        rename: (from, to) => failAt(to, "rename") ?? ConfigFile.disk.rename(from, to)
      }
      const nbd = yield* Appliance.adapter(appliance, { disk })
      const [a, b] = [appliance.disk("aaaa"), appliance.disk("bbbb")]
      yield* nbd.load(request([a]))
      const [main, text] = [yield* mainOf(appliance), Appliance.configText(appliance)]
      failing = "rename"
      const error = yield* Effect.flip(nbd.load(request([a, b])))
      assert.include(error.message, "ENOSPC")
      assert.strictEqual(Appliance.configText(appliance), text)
      assert.strictEqual(yield* mainOf(appliance), main)
      assert.isTrue((yield* nbd.observe([])).loaded)
      failing = null
      yield* nbd.load(request([a, b]))
      assert.strictEqual(yield* sizeOf(appliance, "bbbb"), MiB)
    })
  )
})

describe("guards right before a load", () => {
  it.scopedLive("ask the gate before anything is written, again before the file, and again before the server", () =>
    Effect.gen(function* () {
      const appliance = yield* Appliance.make
      const a = appliance.disk("aaaa")
      const files: Array<number> = []
      for (const passes of [0, 1, 2, 3]) {
        const nbd = yield* Appliance.adapter(appliance, {}, Appliance.closingGate(passes))
        const ended = yield* nbd.load(request([a])).pipe(
          Effect.as("Done"),
          Effect.catchAll(({ _tag }) => Effect.succeed(_tag))
        )
        // What may have changed something is never told as not done (S7).
        assert.strictEqual(ended, ["GateClosed", "NbdUnavailable", "NbdUnavailable", "Done"][passes])
        files.push(Number(existsSync(join(appliance.dir, "acl"))) + Number(existsSync(appliance.place.config)))
        assert.strictEqual((yield* mainOf(appliance)) !== null, passes === 3)
        if (passes < 3) rmSync(appliance.place.config, { force: true })
      }
      assert.deepStrictEqual(files, [0, 1, 2, 2])
    })
  )
})

describe("somebody else's processes", () => {
  it.scopedLive("an nbd-server with another file is foreign and lives on", () =>
    Effect.gen(function* () {
      const appliance = yield* Appliance.make
      const theirs = {
        ...appliance.options,
        nbd: { ...appliance.options.nbd, config: join(appliance.dir, "etc/theirs") }
      }
      const [a, b] = [appliance.disk("aaaa"), appliance.disk("bbbb")]
      const them = yield* Appliance.adapter(appliance, { ...theirs, stop_on_exit: true })
      yield* them.load(request([a]))
      const nbd = yield* Appliance.adapter(appliance)
      const reading = yield* nbd.observe(["aaaa"])
      assert.deepStrictEqual([reading.server.state, reading.loaded], ["foreign", false])
      assert.strictEqual((yield* Effect.flip(nbd.load(request([b]))))._tag, "NbdUnavailable")
      assert.strictEqual(yield* sizeOf(appliance, "aaaa"), MiB)
    })
  )

  it.scopedLive("are never signalled, whatever a pid file says; a main gets nothing but KILL, no HUP (N6)", () =>
    Effect.gen(function* () {
      const appliance = yield* Appliance.make
      const nbd = yield* Appliance.adapter(appliance)
      const a = appliance.disk("aaaa")
      // A program named nbd-server with our file, on our port, that never answers and writes down every signal it gets.
      const program = join(appliance.dir, "nbd-server")
      copyFileSync(process.execPath, program)
      const log = join(appliance.dir, "signals")
      const script = `
        const { appendFileSync, writeFileSync } = require("node:fs")
        for (const s of ["SIGHUP", "SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2", "SIGQUIT"])
          process.on(s, () => appendFileSync(process.argv[1], s))
        require("node:net").createServer(() => {}).listen(Number(process.argv[2]), process.argv[3],
          () => writeFileSync(process.argv[1], "up "))`
      const { host, port, config } = appliance.place
      const decoy = yield* Appliance.running(program, ["-e", script, "--", log, String(port), host, "-C", config])
      const bystander = yield* Appliance.running("sleep", ["600"])
      writeFileSync(join(appliance.dir, "state/nbd-server.pid"), `${bystander.pid}\n`)
      yield* Appliance.eventually("the decoy listens", () => existsSync(log))
      assert.strictEqual((yield* nbd.observe(["aaaa"])).server.state, "hung")
      yield* nbd.load(request([a]))
      yield* nbd.load(request([], "aaaa"))
      yield* nbd.load(request([a]))
      yield* Appliance.exitCode(decoy)
      assert.strictEqual(decoy.signalCode, "SIGKILL")
      assert.strictEqual(readFileSync(log, "latin1"), "up ")
      assert.deepStrictEqual([bystander.exitCode, bystander.signalCode], [null, null])
      assert.strictEqual(yield* sizeOf(appliance, "aaaa"), MiB)
    })
  )
})

describe("the start setting", () => {
  it.scopedLive("off writes the file and leaves the server alone, and says so", () =>
    Effect.gen(function* () {
      const appliance = yield* Appliance.make
      const [a, b] = [appliance.disk("aaaa"), appliance.disk("bbbb")]
      const off = yield* Appliance.adapter(appliance, { nbd: { ...appliance.options.nbd, start: "off" } })
      assert.include((yield* Effect.flip(off.load(request([a])))).message, "NBD_START")
      assert.isNull(yield* mainOf(appliance))
      yield* (yield* Appliance.adapter(appliance)).load(request([a]))
      const main = yield* mainOf(appliance)
      yield* off.load(request([a]))
      assert.include((yield* Effect.flip(off.load(request([a, b])))).message, "NBD_START")
      const reading = yield* off.observe(["bbbb"])
      assert.include(reading.server.problem ?? "", "NBD_START")
      assert.deepStrictEqual(
        reading.sections.map((s) => s.name),
        ["aaaa", "bbbb"]
      )
      assert.strictEqual(yield* mainOf(appliance), main)
      // A file that was written and never loaded, as after a crash in between, is what the next load finishes (N3).
      yield* (yield* Appliance.adapter(appliance)).load(request([a, b]))
      assert.strictEqual(yield* sizeOf(appliance, "bbbb"), MiB)
    })
  )

  it.scopedLive("and every other setting that could only fail later stops the start, all of them named at once", () =>
    Effect.gen(function* () {
      const appliance = yield* Appliance.make
      const { nbd } = appliance.options
      const error = yield* Effect.flip(
        Appliance.adapter(appliance, {
          state_dir: `/${"x".repeat(120)}`,
          nbd: { ...nbd, host: "::1", allow: ["10.0.0.0/8"], start: "unit:-x; reboot", acl_dir: "acl" }
        })
      )
      assert.deepStrictEqual(
        error.problems.map((p) => p.key),
        ["NBD_HOST", "NBD_ALLOW", "NBD_ACL_DIR", "STATE_DIR", "NBD_START"]
      )
    })
  )
})

describe("a fence", () => {
  it.scopedLive("is no way to write a file elsewhere (X1)", () =>
    Effect.gen(function* () {
      const appliance = yield* Appliance.make
      const nbd = yield* Appliance.adapter(appliance)
      for (const name of ["", "generic", "a\nb", "[a", NbdName.SENTINEL, "x".repeat(256)]) {
        assert.strictEqual((yield* Effect.flip(nbd.fence(name)))._tag, "NbdUnavailable")
      }
      assert.isFalse(existsSync(join(appliance.dir, "acl")))
      // Names that somebody else may have chosen: each has a file of its own, in the directory.
      const names = ["../etc/config", "a/b", "..", "/etc/passwd", "caf\uf7e9", "B"]
      for (const name of names) yield* nbd.fence(name)
      const files = readdirSync(join(appliance.dir, "acl"))
      assert.strictEqual(files.length, names.length)
      assert.isTrue(files.every((file) => file === "B" || /^_[0-9a-f]{32}$/.test(file)))
      assert.isEmpty(readdirSync(join(appliance.dir, "etc")))
    })
  )
})
