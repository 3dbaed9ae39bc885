import { assert, describe, it } from "@effect/vitest"
import { Effect, Fiber, Layer, TestClock } from "effect"
import { createHash } from "node:crypto"
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { createServer } from "node:net"
import { join } from "node:path"
import { Gate } from "../../reconciler/Gate.ts"
import type { LoadRequest, Nbd, WantedExport } from "../../reconciler/Nbd.ts"
import { GateClosed } from "../../schema/Errors.ts"
import * as NbdName from "../../schema/NbdName.ts"
import * as Main from "../../src/Nbd/Main.ts"
import * as Processes from "../../src/Nbd/Processes.ts"
import * as Appliance from "./Appliance.ts"

const MiB = 1024 * 1024

const request = (set: ReadonlyArray<WantedExport>, ...drop: ReadonlyArray<string>): LoadRequest => ({ set, drop })

const sha256 = (path: string) => createHash("sha256").update(readFileSync(path)).digest("hex")

const outcomes = (nbd: Nbd["Type"], ...names: ReadonlyArray<string>) =>
  Effect.map(Effect.orDie(nbd.observe(names)), ({ verifications }) => verifications.map(({ outcome }) => outcome))

/** Two exports served, a copy of the first one running. */
const stage = Effect.gen(function* () {
  const appliance = yield* Appliance.make
  const nbd = yield* Appliance.adapter(appliance)
  const [a, b] = [appliance.disk("aaaa", 24 * MiB), appliance.disk("bbbb")]
  writeFileSync(join(appliance.dir, "dev/aaaa"), Buffer.alloc(24 * MiB, "not all zeros "))
  yield* nbd.load(request([a, b]))
  const copy = yield* Appliance.transfer(appliance, "aaaa")
  const intact = Effect.map(copy.finish, (end) =>
    assert.deepStrictEqual(end, { code: 0, sha256: sha256(join(appliance.dir, "dev/aaaa")) })
  )
  return { appliance, nbd, a, b, intact }
})

const killMain = (appliance: Appliance.Appliance) =>
  Effect.gen(function* () {
    const pid = (yield* Appliance.mainOf(appliance)) ?? 0
    process.kill(pid, "SIGKILL")
    yield* Appliance.eventually("the main is gone", () => Processes.find(pid) === null)
    return pid
  })

/** A server that a person starts. */
const startByHand = (appliance: Appliance.Appliance, config: string, name: string) =>
  Effect.gen(function* () {
    const { code, said } = yield* Appliance.run("nbd-server", "-C", config, "-p", join(appliance.dir, "by-hand.pid"))
    assert.strictEqual(code, 0, said)
    const size = Appliance.run("nbdinfo", "--size", appliance.uri(name))
    yield* Effect.repeat(size, { until: ({ code }) => code === 0, times: 200 })
  })

/** An nbd-server of this machine that runs `script` before it starts, in the given directory. */
const wrapped = (appliance: Appliance.Appliance, script: string): ReadonlyArray<string> => {
  const bin = join(appliance.dir, "bin")
  mkdirSync(bin, { recursive: true })
  const real = 'exec /usr/bin/env PATH=/bin:/usr/bin:/sbin:/usr/sbin nbd-server "$@"'
  writeFileSync(join(bin, "nbd-server"), `#!/bin/sh\n${script}\n${real}\n`, { mode: 0o755 })
  return [bin]
}

/** A TCP server of another program, until the scope ends. */
const squatter = ({ place: { host, port } }: Appliance.Appliance) =>
  Effect.acquireRelease(
    Effect.async<ReturnType<typeof createServer>>((resume) => {
      const server = createServer((socket) => socket.on("error", () => {}).end("hello\n"))
      server.listen(port, host, () => resume(Effect.succeed(server)))
    }),
    (server) => Effect.sync(() => server.close())
  )

describe("a server that a person replaced", () => {
  it.scopedLive("with our file is taken as it is, and no transfer notices (N5, N11)", () =>
    Effect.gen(function* () {
      const { appliance, nbd, a, b, intact } = yield* stage
      const first = yield* killMain(appliance)
      yield* startByHand(appliance, appliance.place.config, "bbbb")
      const main = yield* Appliance.mainOf(appliance)
      const reading = yield* nbd.observe(["aaaa", "bbbb"])
      assert.deepStrictEqual([reading.server.pid, reading.server.problem, reading.loaded], [main, null, true])
      yield* nbd.load(request([a, b]))
      assert.strictEqual(yield* Appliance.mainOf(appliance), main)
      assert.notStrictEqual(main, first)
      yield* intact
    })
  )

  it.scopedLive("with another file is named and left alone; once it is gone, the next load repairs (N5)", () =>
    Effect.gen(function* () {
      const { appliance, nbd, a, b, intact } = yield* stage
      yield* killMain(appliance)
      const theirs = join(appliance.dir, "etc/theirs")
      const { host, port } = appliance.place
      writeFileSync(theirs, `[generic]\nlistenaddr = ${host}\nport = ${port}\n[theirs]\nexportname = ${b.path}\n`)
      yield* startByHand(appliance, theirs, "theirs")
      const [pid = 0] = Processes.servers(theirs).map((one) => one.pid)
      yield* Effect.addFinalizer(() =>
        Effect.sync(() => Processes.servers(theirs).forEach((p) => Processes.kill(p, theirs)))
      )
      const reading = yield* nbd.observe(["bbbb"])
      assert.deepStrictEqual([reading.server.state, reading.loaded], ["foreign", false])
      assert.include(reading.server.problem ?? "", `pid ${pid}`)
      assert.strictEqual((yield* Effect.flip(nbd.load(request([a, b]))))._tag, "NbdUnavailable")
      assert.isNotNull(Processes.find(pid))
      for (const one of Processes.servers(theirs)) Processes.kill(one, theirs)
      yield* Appliance.eventually("theirs is gone", () => Processes.servers(theirs).length === 0)
      yield* nbd.load(request([a, b]))
      assert.deepStrictEqual(yield* outcomes(nbd, "aaaa", "bbbb"), ["served", "served"])
      yield* intact
    })
  )

  it.scopedLive("on the place that the settings named before is told of, and ended by the next load (N13)", () =>
    Effect.gen(function* () {
      const { appliance, a, b, intact } = yield* stage
      const old = yield* Appliance.mainOf(appliance)
      const other = yield* Appliance.make
      const moved: Appliance.Appliance = {
        ...appliance,
        place: { ...other.place, config: appliance.place.config },
        options: {
          ...appliance.options,
          nbd: { ...appliance.options.nbd, host: other.place.host, port: other.place.port }
        }
      }
      const nbd = yield* Appliance.adapter(moved)
      const reading = yield* nbd.observe([])
      assert.strictEqual(reading.server.state, "absent")
      assert.include(reading.server.problem ?? "", `pid ${old}`)
      assert.include(reading.server.problem ?? "", `${appliance.place.host}:${appliance.place.port}`)
      yield* nbd.load(request([a, b]))
      assert.deepStrictEqual(yield* outcomes(nbd, "aaaa", "bbbb"), ["served", "served"])
      assert.isNull(yield* Appliance.mainOf(appliance))
      assert.isNull((yield* nbd.observe([])).server.problem)
      yield* intact
    })
  )

  it.scopedLive("and that listens more widely than its file says is told of, and replaced by the next load (N13)", () =>
    Effect.gen(function* () {
      const { appliance, nbd, a, b, intact } = yield* stage
      const { config, host, port } = appliance.place
      yield* killMain(appliance)
      const text = Appliance.configText(appliance)
      writeFileSync(config, text.replace(`listenaddr = ${host}`, `listenaddr = ${host} 127.0.0.1`))
      yield* startByHand(appliance, config, "bbbb")
      writeFileSync(config, text)
      const reading = yield* nbd.observe([])
      assert.isTrue(reading.loaded)
      assert.include(reading.server.problem ?? "", `listens on 127.0.0.1:${port}`)
      yield* nbd.load(request([a, b]))
      assert.isNull((yield* nbd.observe([])).server.problem)
      const main = (yield* Appliance.mainOf(appliance)) ?? 0
      assert.deepStrictEqual(Processes.listens(main), [`${host}:${port}`])
      yield* intact
    })
  )
})

describe("a pid file", () => {
  it.scopedLive("that is gone, or names somebody else, changes nothing (N6)", () =>
    Effect.gen(function* () {
      const { appliance, nbd, a, intact } = yield* stage
      const file = join(appliance.dir, "state/nbd-server.pid")
      const bystander = yield* Appliance.running("sleep", ["600"])
      rmSync(file)
      assert.isTrue((yield* nbd.observe([])).loaded)
      yield* nbd.load(request([a], "bbbb"))
      writeFileSync(file, `${bystander.pid}\n`)
      yield* nbd.load(request([a, appliance.disk("cccc")]))
      assert.deepStrictEqual([bystander.exitCode, bystander.signalCode], [null, null])
      assert.deepStrictEqual(yield* outcomes(nbd, "aaaa", "bbbb", "cccc"), ["served", "unknown", "served"])
      assert.strictEqual(readFileSync(file, "latin1").trim(), String(yield* Appliance.mainOf(appliance)))
      yield* intact
    })
  )
})

describe("a main that does not start", () => {
  it.scopedLive("with the new file leaves the old one served, through a hold that begins meanwhile too (N11)", () =>
    Effect.gen(function* () {
      const { appliance, a, b, intact } = yield* stage
      const text = Appliance.configText(appliance)
      const c = appliance.disk("cccc")
      const dirs = wrapped(appliance, `grep -q '\\[cccc\\]' ${appliance.place.config} && echo "no room" && exit 3`)
      const pid = (yield* Appliance.mainOf(appliance)) ?? 0
      // Open as long as the first main lives: whoever ended that must not stop half-way.
      const gate = Layer.succeed(Gate, {
        check: Effect.suspend(() => (Processes.find(pid) === null ? new GateClosed({ detail: "held" }) : Effect.void)),
        reason: Effect.succeed(null)
      })
      const nbd = yield* Appliance.adapter(appliance, { program_dirs: dirs }, gate)
      const error = yield* Effect.flip(nbd.load(request([a, c], "bbbb")))
      assert.match(error.message, /did not start: no room; the file before is served again/)
      assert.strictEqual(Appliance.configText(appliance), text)
      assert.notStrictEqual(yield* Appliance.mainOf(appliance), pid)
      // What was to leave stands again and stays denied: its wish has not changed.
      assert.deepStrictEqual(yield* outcomes(nbd, "aaaa", "bbbb", "cccc"), ["served", "denied", "unknown"])
      yield* (yield* Appliance.adapter(appliance)).load(request([a, c], b.name))
      assert.deepStrictEqual(yield* outcomes(nbd, "aaaa", "bbbb", "cccc"), ["served", "unknown", "served"])
      yield* intact
    })
  )

  it.scopedLive(
    "with the first file of ours leaves the one before served, which has no sentinel to ask for (N11)",
    () =>
      Effect.gen(function* () {
        const appliance = yield* Appliance.make
        const { config, host, port } = appliance.place
        const theirs = appliance.disk("theirs")
        const text = `[generic]\nlistenaddr = ${host}\nport = ${port}\n[theirs]\nexportname = ${theirs.path}\n`
        writeFileSync(config, text)
        yield* startByHand(appliance, config, "theirs")
        const main = yield* Appliance.mainOf(appliance)
        const dirs = wrapped(appliance, `grep -q '\\[aaaa\\]' ${config} && echo "no room" && exit 3`)
        const nbd = yield* Appliance.adapter(appliance, { program_dirs: dirs })
        const loading = nbd.load(request([appliance.disk("aaaa")]))
        const error = yield* Effect.flip(loading).pipe(Effect.disconnect, Effect.timeout("20 seconds"))
        assert.match(error.message, /did not start: no room; the file before is served again/)
        assert.strictEqual(Appliance.configText(appliance), text)
        assert.notStrictEqual(yield* Appliance.mainOf(appliance), main)
        assert.deepStrictEqual(yield* outcomes(nbd, "theirs", "aaaa"), ["served", "unknown"])
      })
  )

  it.scopedLive("because its program was removed is no reason to end the one that serves (N5, N11)", () =>
    Effect.gen(function* () {
      const { appliance, a, b, intact } = yield* stage
      const main = yield* Appliance.mainOf(appliance)
      const gone = yield* Appliance.adapter(appliance, { program_dirs: [join(appliance.dir, "bin")] })
      const c = appliance.disk("cccc")
      const error = yield* Effect.flip(gone.load(request([a, b, c])))
      assert.include(error.message, "nbd-server is not installed")
      assert.strictEqual(yield* Appliance.mainOf(appliance), main)
      assert.deepStrictEqual(yield* outcomes(gone, "aaaa"), ["served"])
      yield* (yield* Appliance.adapter(appliance)).load(request([a, b, c]))
      assert.deepStrictEqual(yield* outcomes(gone, "aaaa", "bbbb", "cccc"), ["served", "served", "served"])
      yield* intact
    })
  )

  it.scopedLive("gives back whom it admitted too where the file before is put back (N4, N8)", () =>
    Effect.gen(function* () {
      const appliance = yield* Appliance.make
      const { config, host, port } = appliance.place
      const [a, b] = [appliance.disk("aaaa"), appliance.disk("bbbb")]
      writeFileSync(config, `[generic]\nlistenaddr = ${host}\nport = ${port}\n[aaaa]\nexportname = ${a.path}\n`)
      const options = { ...appliance.options.nbd, explicit: { host: true, port: true, allow: false } }
      yield* (yield* Appliance.adapter(appliance, { nbd: options })).load(request([a]))
      const rules = readFileSync(join(appliance.dir, "acl/aaaa"), "latin1")
      assert.include(rules, "0.0.0.0/0")
      const dirs = wrapped(appliance, `grep -q '\\[bbbb\\]' ${config} && echo "no room" && exit 3`)
      const nbd = yield* Appliance.adapter(appliance, { nbd: options, program_dirs: dirs })
      assert.match((yield* Effect.flip(nbd.load(request([b], "aaaa")))).message, /the file before is served again/)
      assert.deepStrictEqual(yield* outcomes(nbd, "aaaa"), ["denied"])
      yield* nbd.release("aaaa")
      assert.strictEqual(readFileSync(join(appliance.dir, "acl/aaaa"), "latin1"), rules)
    })
  )

  it.scopedLive("is not left out when the gate closes right after its predecessor was ended (N11, S7)", () =>
    Effect.gen(function* () {
      const { appliance, a, b, intact } = yield* stage
      const pid = (yield* Appliance.mainOf(appliance)) ?? 0
      const gate = Layer.succeed(Gate, {
        check: Effect.suspend(() => (Processes.find(pid) === null ? new GateClosed({ detail: "held" }) : Effect.void)),
        reason: Effect.succeed(null)
      })
      const nbd = yield* Appliance.adapter(appliance, {}, gate)
      yield* nbd.load(request([a, b, appliance.disk("cccc")]))
      assert.notStrictEqual(yield* Appliance.mainOf(appliance), pid)
      assert.deepStrictEqual(yield* outcomes(nbd, "aaaa", "bbbb", "cccc"), ["served", "served", "served"])
      yield* intact
    })
  )

  it.scopedLive(
    "because another program was quicker is named, and the load after that one's end repairs (N5, N11)",
    () =>
      Effect.gen(function* () {
        const { appliance, nbd, a, b, intact } = yield* stage
        const [go, ready] = [join(appliance.dir, "go"), join(appliance.dir, "ready")]
        const c = appliance.disk("cccc")
        // The start waits until this test has taken the port.
        const dirs = wrapped(appliance, `touch ${go}; while [ ! -e ${ready} ]; do sleep 0.01; done`)
        const slow = yield* Appliance.adapter(appliance, { program_dirs: dirs })
        yield* Effect.scoped(
          Effect.gen(function* () {
            const loading = yield* Effect.fork(Effect.flip(slow.load(request([a, b, c]))))
            yield* Appliance.eventually("the port is free", () => existsSync(go))
            yield* squatter(appliance)
            writeFileSync(ready, "")
            assert.match((yield* loading).message, /does not serve the new file/)
            const reading = yield* nbd.observe(["aaaa"])
            assert.strictEqual(reading.server.state, "foreign")
            assert.include(reading.server.problem ?? "", `pid ${process.pid}`)
          })
        )
        yield* nbd.load(request([a, b, c]))
        assert.deepStrictEqual(yield* outcomes(nbd, "aaaa", "bbbb", "cccc"), ["served", "served", "served"])
        yield* intact
      })
  )
})

describe("exports that a load did not mean", () => {
  it.scopedLive("are named where they are served no longer, foreign ones too, and no second main is tried (S12)", () =>
    Effect.gen(function* () {
      const appliance = yield* Appliance.make
      const { config, host, port } = appliance.place
      const [a, b, theirs] = [appliance.disk("aaaa"), appliance.disk("bbbb"), appliance.disk("theirs")]
      writeFileSync(config, `[generic]\nlistenaddr = ${host}\nport = ${port}\n[theirs]\nexportname = ${theirs.path}\n`)
      yield* (yield* Appliance.adapter(appliance)).load(request([a]))
      // Both go right when the next main starts, and the request names neither.
      const dirs = wrapped(appliance, `rm -f ${theirs.path} ${a.path}`)
      const nbd = yield* Appliance.adapter(appliance, { program_dirs: dirs })
      const error = yield* Effect.flip(nbd.load(request([b])))
      assert.match(error.message, /theirs, aaaa: served before this load/)
      assert.deepStrictEqual(yield* outcomes(nbd, "bbbb", "theirs"), ["served", "denied"])
      const main = yield* Appliance.mainOf(appliance)
      yield* nbd.load(request([b]))
      assert.strictEqual(yield* Appliance.mainOf(appliance), main)
    })
  )
})

describe("a main with damaged memory", () => {
  /** Serves any name but one, on which it hangs up after the greeting. */
  const damaged = (bad: string) => `
    const { writeFileSync } = require("node:fs")
    const greeting = Buffer.concat([Buffer.from("NBDMAGICIHAVEOPT"), Buffer.from([0, 3])])
    const reply = (type, data) => {
      const head = Buffer.alloc(20)
      head.writeBigUInt64BE(0x3e889045565a9n); head.writeUInt32BE(7, 8)
      head.writeUInt32BE(type, 12); head.writeUInt32BE(data.length, 16)
      return Buffer.concat([head, data])
    }
    const info = Buffer.alloc(12)
    info.writeBigUInt64BE(${BigInt(MiB)}n, 2); info.writeUInt16BE(1, 10)
    require("node:net").createServer((socket) => {
      socket.on("error", () => {})
      socket.write(greeting)
      socket.on("data", (data) => {
        if (data.includes("${bad}")) return socket.destroy()
        if (data.includes("IHAVEOPT")) return socket.write(Buffer.concat([reply(3, info), reply(1, Buffer.alloc(0))]))
        socket.end()
      })
    }).listen(Number(process.argv[2]), process.argv[3], () => writeFileSync(process.argv[1], "up"))`

  const victims: ReadonlyArray<readonly [string, string]> = [
    ["one export", "bbbb"],
    ["its marker", "gen-"]
  ]
  it.scopedLive.each(victims)(
    "that hangs up on %s after the greeting is told from one that is silent, and replaced (N7)",
    ([, bad]) =>
      Effect.gen(function* () {
        const appliance = yield* Appliance.make
        const [a, b] = [appliance.disk("aaaa"), appliance.disk("bbbb")]
        const first = yield* Appliance.adapter(appliance)
        yield* first.load(request([a, b]))
        yield* killMain(appliance)
        const program = join(appliance.dir, "nbd-server")
        yield* Appliance.run("cp", process.execPath, program)
        const up = join(appliance.dir, "up")
        const { host, port, config } = appliance.place
        yield* Appliance.running(program, ["-e", damaged(bad), "--", up, String(port), host, "-C", config])
        yield* Appliance.eventually("it listens", () => existsSync(up))
        const reading = yield* first.observe(["aaaa", "bbbb"])
        assert.strictEqual(reading.server.state, "running")
        assert.strictEqual(reading.loaded, bad === "bbbb")
        if (bad === "bbbb") assert.strictEqual(Appliance.verified(reading, "bbbb").outcome, "dropped")
        else assert.include(reading.server.problem ?? "", "memory is damaged")
        yield* first.load(request([a, b]))
        assert.deepStrictEqual(yield* outcomes(first, "aaaa", "bbbb"), ["served", "served"])
      })
  )

  it.scopedLive(
    "serves another disk under a name, which was fenced since: it is replaced for that all the same (N7, S3)",
    () =>
      Effect.gen(function* () {
        const appliance = yield* Appliance.make
        const [a, b] = [appliance.disk("aaaa"), appliance.disk("bbbb")]
        const nbd = yield* Appliance.adapter(appliance)
        yield* nbd.load(request([a]))
        const { config } = appliance.place
        yield* killMain(appliance)
        const text = Appliance.configText(appliance)
        writeFileSync(config, text.replace(`exportname = ${a.path}`, `exportname = ${b.path}`))
        yield* startByHand(appliance, config, "aaaa")
        writeFileSync(config, text)
        const seen = yield* nbd.observe(["aaaa"])
        assert.isTrue(seen.loaded)
        assert.strictEqual(Appliance.verified(seen, "aaaa").device, b.device)
        yield* nbd.fence("aaaa")
        yield* nbd.load({ ...request([a]), distrusted: ["aaaa"] })
        yield* nbd.release("aaaa")
        assert.strictEqual(Appliance.verified(yield* nbd.observe(["aaaa"]), "aaaa").device, a.device)
      })
  )

  it.scopedLive("serves what its file does not name: it is replaced for that alone (N8)", () =>
    Effect.gen(function* () {
      const appliance = yield* Appliance.make
      const [a, b] = [appliance.disk("aaaa"), appliance.disk("bbbb")]
      const nbd = yield* Appliance.adapter(appliance)
      yield* nbd.load(request([a]))
      const { config } = appliance.place
      yield* killMain(appliance)
      const text = Appliance.configText(appliance)
      writeFileSync(config, text.replace("[aaaa]", `[bbbb]\nexportname = ${b.path}\n[aaaa]`))
      yield* startByHand(appliance, config, "bbbb")
      writeFileSync(config, text)
      assert.isTrue((yield* nbd.observe([])).loaded)
      yield* nbd.load(request([a], "bbbb"))
      assert.deepStrictEqual(yield* outcomes(nbd, "aaaa", "bbbb"), ["served", "unknown"])
    })
  )
})

describe("a main that is stopped", () => {
  it.scopedLive(
    "is given its time once, is asked briefly after that, and has its time again once it answers (N12)",
    () =>
      Effect.gen(function* () {
        const appliance = yield* Appliance.make
        const nbd = yield* Appliance.adapter(appliance)
        const a = appliance.disk("aaaa")
        yield* nbd.load(request([a]))
        const main = (yield* Appliance.mainOf(appliance)) ?? 0
        const server = Effect.map(nbd.observe(["aaaa"]), ({ server }) => [
          server.state,
          server.problem?.slice(-21) ?? ""
        ])
        process.kill(main, "SIGSTOP")
        const stopped = [yield* server, yield* server]
        process.kill(main, "SIGCONT")
        const going = yield* server
        process.kill(main, "SIGSTOP")
        const again = yield* server
        const long = ["hung", "no answer in 5 seconds".slice(-21)]
        assert.deepStrictEqual(stopped, [long, ["hung", " no answer in 1 second"].map((text) => text.slice(-21))])
        assert.deepStrictEqual(going, ["running", ""])
        assert.deepStrictEqual(again, long)
        yield* nbd.load(request([a]))
        assert.notStrictEqual(yield* Appliance.mainOf(appliance), main)
        assert.deepStrictEqual(yield* outcomes(nbd, "aaaa"), ["served"])
      })
  )
})

describe("a start that does not come to serving", () => {
  it.scoped("is given up, and what was run is ended, where that never comes to its end (N11, S22)", () =>
    Effect.gen(function* () {
      const appliance = yield* Appliance.make
      const { state_dir } = appliance.options
      const up = join(appliance.dir, "up")
      const control: Main.Control = {
        place: appliance.place,
        start: "auto",
        pid_file: join(state_dir, "pid"),
        log_file: join(state_dir, "log"),
        program_dirs: wrapped(appliance, `echo $$ > ${up}.new; mv ${up}.new ${up}; exec sleep 600`)
      }
      const starting = yield* Effect.forkScoped(Effect.disconnect(Effect.flip(Main.replace(control))))
      yield* Appliance.eventually("it runs", () => existsSync(up))
      const pid = Number(readFileSync(up, "latin1"))
      yield* Effect.addFinalizer(() => Effect.sync(() => Processes.find(pid) !== null && process.kill(pid, "SIGKILL")))
      yield* TestClock.adjust("30 seconds")
      yield* Appliance.eventually("it is ended", () => Processes.find(pid) === null)
      assert.include((yield* Fiber.join(starting)).message, "did not end within 30 seconds")
    })
  )

  it.scopedLive("is given up long before its time is over where nothing takes connections (N11)", () =>
    Effect.gen(function* () {
      const appliance = yield* Appliance.make
      const { options } = appliance
      const control: Main.Control = {
        place: appliance.place,
        start: "auto",
        pid_file: join(options.state_dir, "pid"),
        log_file: join(options.state_dir, "log"),
        program_dirs: []
      }
      const error = yield* Effect.flip(Main.untilServed(control, NbdName.SENTINEL))
      assert.include(error.message, "takes no connections")
    })
  )
})
