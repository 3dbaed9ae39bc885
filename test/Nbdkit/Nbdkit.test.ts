import { assert, describe, it } from "@effect/vitest"
import { Effect, Fiber, Stream } from "effect"
import { createHash } from "node:crypto"
import {
  chmodSync,
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync
} from "node:fs"
import { connect } from "node:net"
import { join } from "node:path"
import type { LoadRequest, Nbd, WantedExport } from "../../reconciler/Nbd.ts"
import * as NbdName from "../../schema/NbdName.ts"
import * as Processes from "../../src/Nbd/Processes.ts"
import * as Instance from "../../src/Nbdkit/Instance.ts"
import * as Appliance from "../Nbd/Appliance.ts"
import * as Engine from "../Nbd/Engine.ts"

const MiB = 1024 * 1024

const { adapter, listeners, make, uri } = Engine.nbdkit

const request = (set: ReadonlyArray<WantedExport>, ...drop: ReadonlyArray<string>): LoadRequest => ({ set, drop })

const sha256 = (path: string) => createHash("sha256").update(readFileSync(path)).digest("hex")

const links = (appliance: Appliance.Appliance, directory: "rw" | "ro" | "fenced-rw" | "fenced-ro" | "new") =>
  join(appliance.dir, "state/nbdkit", directory)

const outcome = (nbd: Nbd["Type"], name: string) =>
  Effect.map(nbd.observe([name]), (reading) => Appliance.verified(reading, name).outcome)

const long = (appliance: Appliance.Appliance, name: string) => {
  const wanted = appliance.disk(name, 24 * MiB)
  writeFileSync(join(appliance.dir, "dev", name), Buffer.alloc(24 * MiB, `${name} is long `))
  return wanted
}

const file = (appliance: Appliance.Appliance, { name }: WantedExport) => join(appliance.dir, "dev", name)

describe("the links of nbdkit", () => {
  it.scopedLive("are all there is: named as the export, in the directory of its flag, leading to the by-id path", () =>
    Effect.gen(function* () {
      const appliance = yield* make
      const nbd = yield* adapter(appliance)
      const [a, b] = [appliance.disk("aaaa"), { ...appliance.disk("bbbb"), read_only: true }]
      yield* nbd.load(request([a, b]))
      assert.strictEqual(readlinkSync(join(links(appliance, "rw"), "aaaa")), a.path)
      assert.strictEqual(readlinkSync(join(links(appliance, "ro"), "bbbb")), b.path)
      yield* nbd.fence("bbbb")
      assert.strictEqual(readlinkSync(join(links(appliance, "fenced-ro"), "bbbb")), b.path)
      // A fenced one is turned and changes its flag where it is, and comes back as it is wanted by then.
      yield* nbd.load(request([{ ...a, name: "bbbb" }], "aaaa"))
      assert.deepStrictEqual(
        (["rw", "ro", "fenced-rw", "fenced-ro", "new"] as const).map((directory) =>
          readdirSync(links(appliance, directory))
        ),
        [[], [], ["bbbb"], [], []]
      )
      yield* nbd.release("bbbb")
      assert.deepInclude(Appliance.verified(yield* nbd.observe(["bbbb"]), "bbbb"), {
        outcome: "served",
        device: a.device,
        read_only: false
      })
    })
  )

  it.scopedLive(
    "that a crash left half-way are put right by the next load, and a name in two places is shown (N3)",
    () =>
      Effect.gen(function* () {
        const appliance = yield* make
        const nbd = yield* adapter(appliance)
        const [a, b] = [appliance.disk("aaaa"), appliance.disk("bbbb")]
        yield* nbd.load(request([a, b]))
        symlinkSync(a.path, join(links(appliance, "new"), "0123456789abcdef"))
        symlinkSync(a.path, join(links(appliance, "ro"), "aaaa"))
        const [first] = yield* nbd.sections
        assert.include(first?.unfinished ?? "", "more than one")
        // Served by either is served: it is gone only where neither knows it.
        rmSync(join(links(appliance, "rw"), "aaaa"))
        symlinkSync(a.path, join(links(appliance, "fenced-rw"), "aaaa"))
        assert.strictEqual(yield* outcome(nbd, "aaaa"), "served")
        yield* nbd.load(request([a, b]))
        assert.deepStrictEqual(readdirSync(links(appliance, "ro")), [])
        assert.deepStrictEqual(readdirSync(links(appliance, "new")), [])
        assert.strictEqual(yield* outcome(nbd, "aaaa"), "unknown")
      })
  )

  it.scopedLive(
    "lead nowhere else, whatever an export is called, and no name reaches another directory (X1, S21)",
    () =>
      Effect.gen(function* () {
        const appliance = yield* make
        const nbd = yield* adapter(appliance)
        const a = appliance.disk("aaaa")
        const bad = [
          "",
          ".",
          "..",
          ".hidden",
          "a/b",
          "../rw/x",
          "/etc/passwd",
          "generic",
          "a\nb",
          "a\0b",
          "[a",
          NbdName.SENTINEL
        ]
        for (const name of [...bad, "x".repeat(256)]) {
          assert.strictEqual((yield* Effect.flip(nbd.load(request([{ ...a, name }]))))._tag, "NbdUnavailable")
          assert.strictEqual((yield* Effect.flip(nbd.fence(name)))._tag, "NbdUnavailable")
        }
        // What others once chose and is no path stays as it was, byte for byte.
        const good = ["Office Disk", "caf\uf7e9", "\u00e4\u{1f4be}", "-r", "x".repeat(255)]
        yield* nbd.load(request(good.map((name) => ({ ...a, name }))))
        for (const name of good) assert.strictEqual(yield* outcome(nbd, name), "served", name)
        assert.deepStrictEqual((yield* nbd.sections).map(({ name }) => name).toSorted(), good.toSorted())
        assert.deepStrictEqual(readdirSync(join(appliance.dir, "state")), ["nbdkit"])
      })
  )

  it.scopedLive("are the only things served: what else lies there is shown, cannot be opened, and stays (D6)", () =>
    Effect.gen(function* () {
      const appliance = yield* make
      const nbd = yield* adapter(appliance)
      yield* nbd.load(request([]))
      const rw = links(appliance, "rw")
      mkdirSync(join(rw, "directory"))
      for (const [name, target] of [
        ["null", "/dev/null"],
        ["dangling", join(appliance.dir, "nothing")],
        ["to-directory", appliance.dir],
        ["loop", join(rw, "loop")]
      ] as const) {
        symlinkSync(target, join(rw, name))
      }
      const names = ["directory", "null", "dangling", "to-directory", "loop"]
      const reading = yield* nbd.observe(names)
      assert.deepStrictEqual(
        reading.verifications.map((v) => v.outcome),
        names.map(() => "unknown")
      )
      assert.isTrue(reading.sections.every(({ device }) => device === null))
      assert.include(reading.sections.find(({ name }) => name === "directory")?.obstacle ?? "", "no link")
      const error = yield* Effect.flip(nbd.load(request([{ ...appliance.disk("aaaa"), name: "directory" }])))
      assert.include(error.message, "no link")
      assert.isTrue(lstatSync(join(rw, "directory")).isDirectory())
    })
  )

  it.scopedLive("alone are removed: what is not ours keeps its bytes, even under a name that is to go (S4)", () =>
    Effect.gen(function* () {
      const appliance = yield* make
      const nbd = yield* adapter(appliance)
      const a = appliance.disk("aaaa")
      yield* nbd.load(request([a]))
      const [image, note] = [join(links(appliance, "rw"), "aaaa"), join(links(appliance, "new"), "note")]
      rmSync(image)
      for (const path of [image, note]) writeFileSync(path, "somebody's data")
      assert.include((yield* Effect.flip(nbd.load(request([], "aaaa")))).message, "no link")
      yield* nbd.load(request([appliance.disk("bbbb")]))
      for (const path of [image, note]) assert.strictEqual(readFileSync(path, "latin1"), "somebody's data")
    })
  )

  it.scopedLive("are not touched in a directory that is a link, or that others may write to (N15, X12)", () =>
    Effect.gen(function* () {
      const appliance = yield* make
      const nbd = yield* adapter(appliance)
      const a = appliance.disk("aaaa")
      yield* nbd.load(request([a]))
      const rw = links(appliance, "rw")
      chmodSync(rw, 0o777)
      assert.include((yield* nbd.observe([])).config_problem ?? "", "by others")
      assert.include((yield* Effect.flip(nbd.load(request([], "aaaa")))).message, "by others")
      chmodSync(rw, 0o700)
      renameSync(rw, `${rw}-elsewhere`)
      symlinkSync(`${rw}-elsewhere`, rw)
      assert.include((yield* nbd.observe([])).config_problem ?? "", "symbolic link")
      assert.include((yield* Effect.flip(nbd.load(request([], "aaaa")))).message, "symbolic link")
      assert.deepStrictEqual(readdirSync(`${rw}-elsewhere`), ["aaaa"])
    })
  )
})

describe("the two processes of nbdkit", () => {
  it.scopedLive("stand for themselves: what ends one costs the other's clients nothing (N5, N11)", () =>
    Effect.gen(function* () {
      const appliance = yield* make
      const nbd = yield* adapter(appliance)
      const [a, b] = [long(appliance, "aaaa"), { ...appliance.disk("bbbb"), read_only: true }]
      yield* nbd.load(request([a, b]))
      const [rw, ro = 0] = yield* listeners(appliance)
      const copy = yield* Appliance.transfer(appliance, "aaaa")
      process.kill(ro, "SIGKILL")
      yield* Appliance.eventually("it is gone", () => Processes.find(ro) === null)
      const reading = yield* nbd.observe(["aaaa", "bbbb"])
      // Not absent: that would mean that nothing is served.
      assert.deepStrictEqual([reading.server.state, reading.loaded], ["hung", false])
      assert.include(reading.server.problem ?? "", "the read-only nbdkit")
      assert.deepStrictEqual(
        reading.verifications.map((v) => v.outcome),
        ["served", "refused"]
      )
      yield* nbd.load(request([a, b]))
      const [same, other] = yield* listeners(appliance)
      assert.strictEqual(same, rw)
      assert.notStrictEqual(other, ro)
      assert.strictEqual(yield* outcome(nbd, "bbbb"), "served")
      assert.deepStrictEqual(yield* copy.finish, { code: 0, sha256: sha256(file(appliance, a)) })
    })
  )

  it.scopedLive("are foreign with another directory or in the hands of the other engine, and live on (N5)", () =>
    Effect.gen(function* () {
      const appliance = yield* make
      const [a, b] = [appliance.disk("aaaa"), appliance.disk("bbbb")]
      const elsewhere = { ...appliance.options, state_dir: join(appliance.dir, "other") }
      const them = yield* adapter(appliance, { ...elsewhere, stop_on_exit: true })
      yield* them.load(request([a]))
      const nbd = yield* adapter(appliance)
      const reading = yield* nbd.observe(["aaaa"])
      assert.deepStrictEqual([reading.server.state, reading.loaded], ["foreign", false])
      assert.strictEqual((yield* Effect.flip(nbd.load(request([b]))))._tag, "NbdUnavailable")
      // The other engine's adapter sees the same, and neither ends the other's.
      const server = yield* Engine.nbdServer.adapter(appliance)
      assert.strictEqual((yield* server.observe([])).server.state, "foreign")
      assert.strictEqual((yield* Effect.flip(server.load(request([b]))))._tag, "NbdUnavailable")
      assert.strictEqual(yield* outcome(them, "aaaa"), "served")
    })
  )

  it.scopedLive("do not take the port from an nbd-server that runs there, and say what to do (N5)", () =>
    Effect.gen(function* () {
      const appliance = yield* make
      const [a, b] = [appliance.disk("aaaa"), appliance.disk("bbbb")]
      const server = yield* Engine.nbdServer.adapter(appliance)
      yield* server.load(request([a]))
      const nbd = yield* adapter(appliance)
      const reading = yield* nbd.observe(["aaaa"])
      assert.strictEqual(reading.server.state, "foreign")
      assert.include(reading.server.problem ?? "", "NBD_BACKEND=nbd-server")
      assert.include((yield* Effect.flip(nbd.load(request([b])))).message, "NBD_BACKEND=nbd-server")
      assert.isFalse(existsSync(links(appliance, "rw")))
      assert.strictEqual(yield* outcome(server, "aaaa"), "served")
    })
  )

  it.scopedLive("that could not start say why, and leave nobody behind", () =>
    Effect.gen(function* () {
      const appliance = yield* make
      const bin = join(appliance.dir, "bin")
      mkdirSync(bin)
      writeFileSync(join(bin, "nbdkit"), "#!/bin/sh\necho nbdkit: error: no such filter >&2; exit 1\n", { mode: 0o755 })
      const nbd = yield* adapter(appliance, { program_dirs: [bin] })
      const error = yield* Effect.flip(nbd.load(request([appliance.disk("aaaa")])))
      assert.include(error.message, "no such filter")
      assert.isEmpty(yield* listeners(appliance))
    })
  )

  it.scopedLive("that never come to answer, or never end their start, cost a load its time-out and no more (N12)", () =>
    Effect.gen(function* () {
      const appliance = yield* make
      const pid = join(appliance.dir, "pid")
      const starts = [
        ["silent", "exit 0", "does not answer"],
        ["stuck", `echo $$ >${pid}; exec sleep 300`, "did not end"]
      ] as const
      yield* Effect.forEach(
        starts,
        ([name, script, words]) =>
          Effect.gen(function* () {
            const bin = join(appliance.dir, name)
            mkdirSync(bin)
            writeFileSync(join(bin, "nbdkit"), `#!/bin/sh\n${script}\n`, { mode: 0o755 })
            const state_dir = join(appliance.dir, `${name}-state`)
            const nbd = yield* adapter(appliance, { program_dirs: [bin], state_dir })
            const error = yield* Effect.flip(nbd.load(request([appliance.disk(name)])))
            assert.include(error.message, words)
          }),
        { concurrency: "unbounded", discard: true }
      )
      // Who never came to serve must not begin to do so when nobody expects it any more.
      const stuck = Number(readFileSync(pid, "latin1"))
      yield* Appliance.eventually("it is gone", () => Processes.find(stuck) === null)
    })
  )

  it.scopedLive("say nothing into a file that a client could fill the disk with (R3)", () =>
    Effect.gen(function* () {
      const appliance = yield* make
      const nbd = yield* adapter(appliance)
      yield* nbd.load(request([]))
      yield* nbd.observe(Array.from({ length: 50 }, (_, i) => `nobody-${i}`))
      const sizes = Engine.instances(appliance.options).map(({ log_file }) => statSync(log_file).size)
      assert.deepStrictEqual(sizes, [0, 0])
    })
  )

  it.scopedLive("outlive whoever started them, and are adopted by who comes next (P1)", () =>
    Effect.gen(function* () {
      const appliance = yield* make
      const nbd = yield* adapter(appliance)
      const a = long(appliance, "aaaa")
      yield* nbd.load(request([a]))
      const started = yield* listeners(appliance)
      for (const pid of started) process.kill(pid, "SIGKILL")
      yield* Appliance.eventually("they are gone", () => started.every((pid) => Processes.find(pid) === null))
      // As this process starts them, by one that is ended right afterwards.
      const starting = `
        const { spawn } = require("node:child_process")
        let left = 2
        for (const args of JSON.parse(process.argv[1]))
          spawn("nbdkit", args, { cwd: "/", stdio: "ignore", detached: true })
            .on("exit", () => --left || process.kill(process.pid, "SIGKILL"))`
      const args = Engine.instances(appliance.options).map(Instance.argumentsOf)
      const starter = yield* Appliance.running(process.execPath, ["-e", starting, "--", JSON.stringify(args)])
      yield* Appliance.exitCode(starter)
      yield* Effect.sleep("500 millis")
      const pids = yield* listeners(appliance)
      assert.lengthOf(pids, 2)
      const copy = yield* Appliance.transfer(appliance, "aaaa")
      assert.isTrue((yield* nbd.observe([])).loaded)
      yield* nbd.load(request([a]))
      assert.deepStrictEqual(yield* listeners(appliance), pids)
      assert.deepStrictEqual(yield* copy.finish, { code: 0, sha256: sha256(file(appliance, a)) })
    })
  )
})

describe("the clients of one nbdkit process", () => {
  /** Two transfers of two writable disks, begun at once or one after the other, by one process. */
  const two = (apart: boolean) =>
    Effect.gen(function* () {
      const appliance = yield* make
      const nbd = yield* adapter(appliance)
      const [a, b] = [long(appliance, "aaaa"), long(appliance, "bbbb")]
      yield* nbd.load(request([a, b]))
      const first = yield* Appliance.transfer(appliance, "aaaa")
      if (apart) yield* nbd.observe([])
      const second = yield* Appliance.transfer(appliance, "bbbb")
      for (let looks = 0; looks < 3; looks++) yield* nbd.observe([])
      yield* nbd.fence("aaaa")
      return { appliance, nbd, a, b, first, second }
    })

  it.scopedLive("are ended one disk at a time where they came one after the other (N10, S11)", () =>
    Effect.gen(function* () {
      const { a, appliance, b, first, nbd, second } = yield* two(true)
      const held = (yield* nbd.observe([])).holders.filter(({ device }) => device === a.device)
      assert.isTrue(held.length > 0 && held.every(({ peer }) => /^[\d.]+:\d+$/.test(peer ?? "")))
      assert.strictEqual(yield* nbd.endClients(a.device), held.length)
      assert.notStrictEqual((yield* first.finish).code, 0)
      assert.deepStrictEqual(yield* second.finish, { code: 0, sha256: sha256(file(appliance, b)) })
    })
  )

  it.scopedLive(
    "are not ended where it cannot be told whose they are; then it is said, and what to do (N10, S11)",
    () =>
      Effect.gen(function* () {
        const { a, appliance, b, first, nbd, second } = yield* two(false)
        const held = (yield* nbd.observe([])).holders.filter(({ device }) => device === a.device)
        assert.isTrue(held.length > 0 && held.every(({ peer }) => (peer ?? "").startsWith("one of 127.")))
        const error = yield* Effect.flip(nbd.endClients(a.device))
        assert.include(error.message, "ss -K")
        assert.deepStrictEqual(yield* first.finish, { code: 0, sha256: sha256(file(appliance, a)) })
        assert.deepStrictEqual(yield* second.finish, { code: 0, sha256: sha256(file(appliance, b)) })
        // Once the others have left it is plain.
        assert.strictEqual(yield* nbd.endClients(a.device), 0)
      })
  )

  it.scopedLive("are watched as long as somebody listens for pokes, whatever else is asked", () =>
    Effect.gen(function* () {
      const appliance = yield* make
      const nbd = yield* adapter(appliance)
      const [a, b] = [long(appliance, "aaaa"), long(appliance, "bbbb")]
      yield* nbd.load(request([a, b]))
      const listening = yield* Effect.fork(Stream.runDrain(nbd.pokes))
      const first = yield* Appliance.transfer(appliance, "aaaa")
      yield* Effect.sleep("3 seconds")
      const second = yield* Appliance.transfer(appliance, "bbbb")
      yield* Effect.sleep("5 seconds")
      yield* Fiber.interrupt(listening)
      assert.isAbove(yield* nbd.endClients(b.device), 0)
      assert.notStrictEqual((yield* second.finish).code, 0)
      assert.deepStrictEqual(yield* first.finish, { code: 0, sha256: sha256(file(appliance, a)) })
    })
  )

  it.scopedLive("cost no other anything where the machine has no way to end one", () =>
    Effect.gen(function* () {
      const appliance = yield* make
      const bin = join(appliance.dir, "bin")
      mkdirSync(bin)
      symlinkSync("/usr/bin/nbdkit", join(bin, "nbdkit"))
      const nbd = yield* adapter(appliance, { program_dirs: [bin] })
      const a = long(appliance, "aaaa")
      yield* nbd.load(request([a]))
      const copy = yield* Appliance.transfer(appliance, "aaaa")
      assert.include((yield* Effect.flip(nbd.endClients(a.device))).message, "apt-get install iproute2")
      // Nor where the kernel refuses, which ss tells nobody.
      writeFileSync(join(bin, "ss"), "#!/bin/sh\nexit 0\n", { mode: 0o755 })
      assert.include((yield* Effect.flip(nbd.endClients(a.device))).message, "did not end")
      assert.deepStrictEqual(yield* copy.finish, { code: 0, sha256: sha256(file(appliance, a)) })
    })
  )

  it.scopedLive("that choose no export keep nobody out and hide no disk", () =>
    Effect.gen(function* () {
      const appliance = yield* make
      const nbd = yield* adapter(appliance)
      const a = appliance.disk("aaaa")
      yield* nbd.load(request([a]))
      const { host, port } = appliance.place
      let greeted = 0
      for (let count = 0; count < 50; count++) {
        yield* Effect.acquireRelease(
          Effect.sync(() =>
            connect(port, host)
              .once("data", () => greeted++)
              .on("error", () => {})
          ),
          (socket) => Effect.sync(() => socket.destroy())
        )
      }
      yield* Appliance.eventually("all are greeted", () => greeted === 50)
      const reading = yield* nbd.observe(["aaaa"])
      assert.deepInclude(Appliance.verified(reading, "aaaa"), { outcome: "served", device: a.device })
      assert.isEmpty(reading.holders.filter(({ device }) => device === a.device))
      assert.strictEqual((yield* Appliance.run("nbdinfo", "--size", uri(appliance, a))).said, String(MiB))
    })
  )
})

describe("the settings of nbdkit", () => {
  it.scopedLive("that it cannot follow stop the start, all of them named at once", () =>
    Effect.gen(function* () {
      const appliance = yield* make
      const { nbd } = appliance.options
      const error = yield* Effect.flip(
        adapter(appliance, {
          state_dir: `/${"x".repeat(200)}`,
          nbd: {
            ...nbd,
            host: "::1",
            port: 65_535,
            explicit: { ...nbd.explicit, allow: true },
            start: "unit:volumed-nbdkit.service",
            pin: true
          }
        })
      )
      assert.deepStrictEqual(
        error.problems.map((p) => p.key),
        ["NBD_HOST", "NBD_PORT", "NBD_ALLOW", "STATE_DIR", "NBD_START", "NBD_PIN"]
      )
    })
  )

  it.scopedLive("of a sandbox that ends leave no process behind, and no other's is ended", () =>
    Effect.gen(function* () {
      const [one, other] = [yield* make, yield* make]
      yield* (yield* adapter(one)).load(request([]))
      yield* (yield* adapter(other)).load(request([]))
      Instance.endAll(one.options.state_dir)
      const pids = yield* listeners(one)
      yield* Appliance.eventually("they are gone", () => pids.every((pid) => Processes.find(pid) === null))
      assert.isEmpty(yield* listeners(one))
      assert.lengthOf(yield* listeners(other), 2)
    })
  )
})
