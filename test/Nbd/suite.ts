import { assert, describe, it } from "@effect/vitest"
import { Effect, Fiber, Scope, Stream } from "effect"
import { createHash } from "node:crypto"
import { mkdirSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs"
import { createServer } from "node:net"
import { join } from "node:path"
import type { LoadRequest, Nbd, WantedExport } from "../../reconciler/Nbd.ts"
import { sectionOf } from "../../schema/Inventory.ts"
import * as Processes from "../../src/Nbd/Processes.ts"
import * as Appliance from "./Appliance.ts"
import type { Engine } from "./Engine.ts"

const MiB = 1024 * 1024

const request = (set: ReadonlyArray<WantedExport>, ...drop: ReadonlyArray<string>): LoadRequest => ({ set, drop })

const sha256 = (path: string) => createHash("sha256").update(readFileSync(path)).digest("hex")

/** What every engine must do, on its real program; what only one does is in that one's own file. */
export const suite = (engine: Engine): void => {
  const sizeOf = (appliance: Appliance.Appliance, wanted: Pick<WantedExport, "name" | "read_only">) =>
    Effect.map(Appliance.run("nbdinfo", "--size", engine.uri(appliance, wanted)), ({ code, said }) =>
      code === 0 ? Number(said) : said
    )
  const outcomes = (nbd: Nbd["Type"], ...names: ReadonlyArray<string>) =>
    Effect.map(nbd.observe(names), (reading) => names.map((name) => Appliance.verified(reading, name).outcome))
  const holdersOf = (nbd: Nbd["Type"], { device }: WantedExport) =>
    Effect.map(nbd.observe([]), ({ holders }) => holders.filter((holder) => holder.device === device))
  /** A disk long enough for a transfer to stay in its middle, with bytes of its own. */
  const long = (appliance: Appliance.Appliance, name: string) => {
    const wanted = appliance.disk(name, 24 * MiB)
    writeFileSync(join(appliance.dir, "dev", name), Buffer.alloc(24 * MiB, `${name} is long `))
    return wanted
  }
  const file = (appliance: Appliance.Appliance, { name }: WantedExport) => join(appliance.dir, "dev", name)

  describe(`a load on the real ${engine.name}`, () => {
    it.scopedLive("serves what is wanted, proven by size, flag and device, and to independent clients", () =>
      Effect.gen(function* () {
        const appliance = yield* engine.make
        const nbd = yield* engine.adapter(appliance)
        const [a, b] = [appliance.disk("aaaa"), { ...appliance.disk("bbbb", 3 * MiB), read_only: true }]
        const before = yield* nbd.observe(["aaaa"])
        assert.deepStrictEqual(
          [before.server.state, before.loaded, Appliance.verified(before, "aaaa").outcome, before.config_problem],
          ["absent", false, "refused", null]
        )
        yield* nbd.load(request([a, b]))
        const reading = yield* nbd.observe(["aaaa", "bbbb", "cccc"])
        assert.deepInclude(reading, { loaded: true, config_problem: null, engine: engine.name })
        assert.isEmpty(reading.holders.filter((h) => [a.device, b.device].includes(h.device)))
        assert.match(reading.version ?? "", /^\d+\.\d+/)
        assert.deepInclude(reading.server, { state: "running", problem: null })
        const served = { outcome: "served" } as const
        assert.deepInclude(Appliance.verified(reading, "aaaa"), {
          ...served,
          size: MiB,
          read_only: false,
          device: a.device
        })
        assert.deepInclude(Appliance.verified(reading, "bbbb"), {
          ...served,
          size: 3 * MiB,
          read_only: true,
          device: b.device
        })
        assert.deepInclude(Appliance.verified(reading, "cccc"), { outcome: "unknown", size: null, device: null })
        assert.deepStrictEqual(reading.sections, [
          { ...sectionOf("aaaa", a.path, false), device: a.device },
          { ...sectionOf("bbbb", b.path, true), device: b.device }
        ])
        assert.strictEqual(yield* sizeOf(appliance, b), 3 * MiB)
        // Listing is off: names are not for everybody.
        const list = yield* Appliance.run("nbdinfo", "--list", engine.uri(appliance, { ...a, name: "" }))
        assert.notInclude(list.said, "aaaa")
      })
    )

    it.scopedLive("gives every client the bytes of its own volume, and takes none for a read-only one (S3)", () =>
      Effect.gen(function* () {
        const appliance = yield* engine.make
        const nbd = yield* engine.adapter(appliance)
        const disks = ["aaaa", "bbbb", "cccc"].map((name) => appliance.disk(name, 2 * MiB))
        const set = disks.map((disk) => ({ ...disk, read_only: disk.name === "cccc" }))
        yield* nbd.load(request(set))
        for (const wanted of set) {
          const [uri, disk] = [engine.uri(appliance, wanted), file(appliance, wanted)]
          const copy = join(appliance.dir, `copy-${wanted.name}`)
          assert.strictEqual((yield* Appliance.run("nbdcopy", uri, copy)).code, 0)
          assert.strictEqual(sha256(copy), sha256(disk))
          const image = join(appliance.dir, `image-${wanted.name}`)
          yield* Appliance.run("qemu-img", "convert", "-f", "raw", "-O", "raw", uri, image)
          const compared = yield* Appliance.run("qemu-img", "compare", "-f", "raw", "-F", "raw", image, uri)
          assert.deepInclude(compared, { code: 0, said: "Images are identical." })
        }
        const written = join(appliance.dir, "written")
        writeFileSync(written, Buffer.alloc(2 * MiB, "new bytes "))
        const [, b, c] = set
        assert.isDefined(b)
        assert.isDefined(c)
        assert.strictEqual((yield* Appliance.run("nbdcopy", "--flush", written, engine.uri(appliance, b))).code, 0)
        assert.strictEqual(sha256(file(appliance, b)), sha256(written))
        const before = sha256(file(appliance, c))
        assert.notStrictEqual((yield* Appliance.run("nbdcopy", written, engine.uri(appliance, c))).code, 0)
        assert.strictEqual(sha256(file(appliance, c)), before)
      })
    )

    it.scopedLive("changes nothing when all is so already, whatever the order, and is adopted (S12, S18)", () =>
      Effect.gen(function* () {
        const appliance = yield* engine.make
        const nbd = yield* engine.adapter(appliance)
        const [a, b] = [appliance.disk("aaaa"), { ...appliance.disk("bbbb"), read_only: true }]
        yield* nbd.load(request([a, b]))
        const listeners = yield* engine.listeners(appliance)
        assert.isNotEmpty(listeners)
        const written = engine.written(appliance)
        yield* nbd.load(request([b, a], "gone"))
        // A daemon that has just started knows nothing of the one before.
        const next = yield* engine.adapter(appliance)
        assert.deepInclude(yield* next.observe([]), { loaded: true, config_problem: null })
        yield* next.load(request([a, b]))
        assert.deepStrictEqual(yield* engine.listeners(appliance), listeners)
        assert.strictEqual(engine.written(appliance), written)
      })
    )

    it.scopedLive("adds, turns and removes exports beside a running copy of another one (N8, N11)", () =>
      Effect.gen(function* () {
        const appliance = yield* engine.make
        const nbd = yield* engine.adapter(appliance)
        const [a, b, c, d] = [
          long(appliance, "aaaa"),
          appliance.disk("bbbb"),
          appliance.disk("cccc", 2 * MiB),
          appliance.disk("dddd")
        ]
        yield* nbd.load(request([a, b, d]))
        const first = yield* engine.listeners(appliance)
        const copy = yield* Appliance.transfer(appliance, "aaaa")
        const [holder] = yield* holdersOf(nbd, a)
        assert.match(holder?.peer ?? "", /127\.\d+\.\d+\.\d+:\d+/)
        yield* nbd.load(request([a], "bbbb", "dddd"))
        // The same name, another disk; and one that was writable is not any more.
        yield* nbd.load(request([a, { ...c, name: "bbbb" }, { ...d, read_only: true }]))
        const reading = yield* nbd.observe(["aaaa", "bbbb", "cccc", "dddd"])
        assert.deepStrictEqual(
          reading.verifications.map(({ device, outcome, read_only }) => [outcome, device, read_only]),
          [
            ["served", a.device, false],
            ["served", c.device, false],
            ["unknown", null, null],
            ["served", d.device, true]
          ]
        )
        assert.strictEqual(yield* sizeOf(appliance, b), 2 * MiB)
        yield* nbd.load(request([a, { ...c, name: "bbbb" }], "dddd"))
        assert.notStrictEqual(yield* sizeOf(appliance, d), MiB)
        assert.notStrictEqual(yield* sizeOf(appliance, { ...d, read_only: true }), MiB)
        assert.isNull(copy.child.exitCode)
        const pids = (yield* holdersOf(nbd, a)).map(({ pid }) => pid)
        assert.isTrue(pids.length > 0 && pids.every((pid) => pid === holder?.pid))
        const listeners = yield* engine.listeners(appliance)
        assert.strictEqual(listeners.join() !== first.join(), engine.replaces)
        assert.deepStrictEqual(yield* copy.finish, { code: 0, sha256: sha256(file(appliance, a)) })
      })
    )

    it.scopedLive("serves thirty exports, each from its own disk", () =>
      Effect.gen(function* () {
        const appliance = yield* engine.make
        const nbd = yield* engine.adapter(appliance)
        const set = Array.from({ length: 30 }, (_, i) => {
          const disk = appliance.disk(`disk-${i}`, (1 + (i % 3)) * MiB)
          return { ...disk, read_only: i % 4 === 0 }
        })
        yield* nbd.load(request(set))
        const { verifications } = yield* nbd.observe(set.map(({ name }) => name))
        assert.deepStrictEqual(
          verifications.map(({ device, name, outcome, read_only, size }) => [name, outcome, device, size, read_only]),
          set.map(({ device, name, read_only, size }) => [name, "served", device, size, read_only])
        )
      })
    )

    it.scopedLive("runs when nothing is exported, and serves nothing (N16)", () =>
      Effect.gen(function* () {
        const appliance = yield* engine.make
        const nbd = yield* engine.adapter(appliance)
        yield* nbd.load(request([]))
        const reading = yield* nbd.observe(["aaaa"])
        assert.deepStrictEqual([reading.loaded, reading.sections], [true, []])
        assert.strictEqual(Appliance.verified(reading, "aaaa").outcome, "unknown")
      })
    )

    it.scopedLive("starts a killed server again, with the same exports (N5, L7)", () =>
      Effect.gen(function* () {
        const appliance = yield* engine.make
        const nbd = yield* engine.adapter(appliance)
        const [a, b] = [long(appliance, "aaaa"), { ...appliance.disk("bbbb"), read_only: true }]
        yield* nbd.load(request([a, b]))
        const copy = yield* Appliance.transfer(appliance, "aaaa")
        const pids = yield* engine.listeners(appliance)
        for (const pid of pids) process.kill(pid, "SIGKILL")
        yield* Appliance.eventually("they are gone", () => pids.every((pid) => Processes.find(pid) === null))
        const reading = yield* nbd.observe(["aaaa"])
        assert.deepStrictEqual([reading.server.state, reading.loaded, reading.sections.length], ["absent", false, 2])
        yield* nbd.load(request([a, b]))
        assert.deepStrictEqual(yield* outcomes(nbd, "aaaa", "bbbb"), ["served", "served"])
        const { code } = yield* copy.finish
        assert.strictEqual(code === 0, engine.transfers_survive)
      })
    )

    it.scopedLive("sees a server that hangs within its time-outs, and replaces it (N12)", () =>
      Effect.gen(function* () {
        const appliance = yield* engine.make
        const nbd = yield* engine.adapter(appliance)
        const a = appliance.disk("aaaa")
        yield* nbd.load(request([a]))
        const [pid = 0] = yield* engine.listeners(appliance)
        process.kill(pid, "SIGSTOP")
        const names = Array.from({ length: 50 }, (_, i) => `name${i}`)
        const reading = yield* nbd.observe([...names, "aaaa"]).pipe(Effect.timeout("20 seconds"))
        assert.strictEqual(reading.server.state, "hung")
        assert.isTrue(reading.verifications.every((v) => v.outcome === "no_answer"))
        yield* nbd.load(request([a]))
        assert.notInclude(yield* engine.listeners(appliance), pid)
        assert.strictEqual(yield* sizeOf(appliance, a), MiB)
      })
    )

    it.scopedLive("admits an export again that was dropped and is wanted once more", () =>
      Effect.gen(function* () {
        const appliance = yield* engine.make
        const nbd = yield* engine.adapter(appliance)
        const a = appliance.disk("aaaa")
        yield* nbd.load(request([a]))
        yield* nbd.load(request([], "aaaa"))
        yield* nbd.load(request([a]))
        assert.strictEqual(yield* sizeOf(appliance, a), MiB)
      })
    )
  })

  describe(`guards right before a load of ${engine.name}`, () => {
    it.scopedLive("refuse when a by-id path no longer means what was planned (S3, D3)", () =>
      Effect.gen(function* () {
        const appliance = yield* engine.make
        const nbd = yield* engine.adapter(appliance)
        const [a, b] = [appliance.disk("aaaa"), appliance.disk("bbbb")]
        const elsewhere = join(appliance.dir, "virtio-x")
        symlinkSync(join(appliance.dir, "dev/aaaa"), elsewhere)
        const wrong: ReadonlyArray<WantedExport> = [
          { ...a, device: b.device },
          { ...a, size: 2 * MiB },
          { ...a, path: join(appliance.dir, "by-id/virtio-none") },
          { ...a, path: elsewhere },
          { ...a, path: `${appliance.options.by_id_dir}/../virtio-x` }
        ]
        const before = readdirSync(appliance.dir, { recursive: true })
        for (const wanted of wrong) {
          assert.strictEqual((yield* Effect.flip(nbd.load(request([wanted]))))._tag, "PreconditionLost")
        }
        const blocks = yield* engine.adapter(appliance, { device_kind: "block" })
        assert.strictEqual((yield* Effect.flip(blocks.load(request([a]))))._tag, "PreconditionLost")
        assert.deepStrictEqual(readdirSync(appliance.dir, { recursive: true }), before)
        assert.isEmpty(yield* engine.listeners(appliance))
      })
    )

    it.scopedLive("hold up no other export of the same load, and name the one that is not what was planned (S19)", () =>
      Effect.gen(function* () {
        const appliance = yield* engine.make
        const nbd = yield* engine.adapter(appliance)
        const [a, b] = [appliance.disk("aaaa"), appliance.disk("bbbb")]
        const lost = yield* Effect.flip(nbd.load(request([{ ...a, device: b.device }, b])))
        assert.strictEqual(lost._tag, "PreconditionLost")
        assert.include(lost.message, a.path)
        assert.strictEqual(yield* sizeOf(appliance, b), MiB)
        assert.deepStrictEqual(
          (yield* nbd.sections).map(({ name }) => name),
          ["bbbb"]
        )
      })
    )

    it.scopedLive("ask the gate before anything is written, and again before each thing that counts", () =>
      Effect.gen(function* () {
        for (let passes = 0; passes <= engine.gate_checks; passes++) yield* Effect.scoped(heldAfter(passes))
      })
    )
  })

  /** A first load whose gate closes after so many questions. */
  const heldAfter = (passes: number) =>
    Effect.gen(function* () {
      const appliance = yield* engine.make
      const a = { ...appliance.disk("aaaa"), read_only: true }
      const nbd = yield* engine.adapter(appliance, {}, Appliance.closingGate(passes))
      const before = readdirSync(appliance.dir, { recursive: true })
      const ended = yield* nbd.load(request([a])).pipe(
        Effect.as("Done"),
        Effect.catchAll(({ _tag }) => Effect.succeed(_tag))
      )
      // What may have changed something is never told as not done (S7).
      const expected = passes === 0 ? "GateClosed" : passes < engine.gate_checks ? "NbdUnavailable" : "Done"
      assert.strictEqual(ended, expected, `after ${passes} checks`)
      if (passes === 0) assert.deepStrictEqual(readdirSync(appliance.dir, { recursive: true }), before)
      assert.strictEqual((yield* sizeOf(appliance, a)) === MiB, passes === engine.gate_checks)
    })

  describe(`a fence of ${engine.name}`, () => {
    it.scopedLive("denies new clients at once and spares the running one, until it is released (N8)", () =>
      Effect.gen(function* () {
        const appliance = yield* engine.make
        const nbd = yield* engine.adapter(appliance)
        const [a, b] = [long(appliance, "aaaa"), appliance.disk("bbbb")]
        yield* nbd.load(request([a]))
        const listeners = yield* engine.listeners(appliance)
        const copy = yield* Appliance.transfer(appliance, "aaaa")
        const asked = Date.now() - 1_000
        yield* nbd.fence("aaaa")
        assert.strictEqual(typeof (yield* sizeOf(appliance, a)), "string")
        assert.deepStrictEqual(yield* outcomes(nbd, "aaaa"), [engine.fenced])
        assert.isNull(copy.child.exitCode)
        const fenced_at = (yield* nbd.sections)[0]?.fenced_at ?? 0
        assert.isAbove(fenced_at, asked)
        yield* nbd.load(request([a]))
        assert.deepStrictEqual(yield* engine.listeners(appliance), listeners)
        // Neither a load for something else lifts it, nor a daemon that was started since; and it keeps its age.
        const next = yield* engine.adapter(appliance)
        yield* next.load(request([a, b]))
        yield* next.fence("aaaa")
        assert.deepStrictEqual(yield* outcomes(next, "aaaa", "bbbb"), [engine.fenced, "served"])
        assert.strictEqual((yield* next.sections).find(({ name }) => name === "aaaa")?.fenced_at, fenced_at)
        yield* next.release("aaaa")
        assert.isNull((yield* next.sections).find(({ name }) => name === "aaaa")?.fenced_at)
        assert.strictEqual(yield* sizeOf(appliance, a), 24 * MiB)
        assert.deepStrictEqual(yield* copy.finish, { code: 0, sha256: sha256(file(appliance, a)) })
      })
    )

    it.scopedLive("is asked of the gate, as its end is", () =>
      Effect.gen(function* () {
        const appliance = yield* engine.make
        const nbd = yield* engine.adapter(appliance)
        const a = appliance.disk("aaaa")
        yield* nbd.load(request([a]))
        const held = yield* engine.adapter(appliance, {}, Appliance.closingGate(0))
        assert.strictEqual((yield* Effect.flip(held.fence("aaaa")))._tag, "GateClosed")
        assert.deepStrictEqual(yield* outcomes(nbd, "aaaa"), ["served"])
        yield* nbd.fence("aaaa")
        assert.strictEqual((yield* Effect.flip(held.release("aaaa")))._tag, "GateClosed")
        assert.strictEqual((yield* Effect.flip(held.endClients(a.device)))._tag, "GateClosed")
        assert.deepStrictEqual(yield* outcomes(nbd, "aaaa"), [engine.fenced])
      })
    )
  })

  describe(`what ${engine.name} shows`, () => {
    it.scopedLive("is where a section's path leads now, whatever it led to when it was loaded (D3, D4)", () =>
      Effect.gen(function* () {
        const appliance = yield* engine.make
        const nbd = yield* engine.adapter(appliance)
        const [a, b] = [appliance.disk("aaaa"), appliance.disk("bbbb")]
        yield* nbd.load(request([a]))
        const leads = Effect.map(nbd.sections, ([section]) => [section?.path, section?.device])
        assert.deepStrictEqual(yield* leads, [a.path, a.device])
        rmSync(a.path)
        assert.deepStrictEqual(yield* leads, [a.path, null])
        assert.notInclude(yield* outcomes(nbd, "aaaa"), "served")
        symlinkSync(file(appliance, b), a.path)
        assert.deepStrictEqual(yield* leads, [a.path, b.device])
        // What is served is told as it is, not as it was meant.
        assert.strictEqual(Appliance.verified(yield* nbd.observe(["aaaa"]), "aaaa").device, b.device)
      })
    )

    it.scopedLive("is the disk that a client really got, while the link is turned all the time (D12)", () =>
      Effect.gen(function* () {
        const appliance = yield* engine.make
        const nbd = yield* engine.adapter(appliance)
        const [a, b] = [appliance.disk("aaaa"), appliance.disk("bbbb", 2 * MiB)]
        yield* nbd.load(request([a]))
        const turning = `
          const { renameSync, symlinkSync } = require("node:fs")
          const [, link, ...targets] = process.argv
          for (let i = 0; ; i++) { symlinkSync(targets[i % 2], link + ".new"); renameSync(link + ".new", link) }`
        const targets = [a, b].map((wanted) => file(appliance, wanted))
        yield* Appliance.running(process.execPath, ["-e", turning, "--", a.path, ...targets])
        const sizes = new Map([
          [a.device, MiB],
          [b.device, 2 * MiB]
        ])
        const proven = new Set<string>()
        for (let round = 0; round < 300 && (round < 30 || proven.size < 2); round++) {
          const { device, outcome, size } = Appliance.verified(yield* nbd.observe(["aaaa"]), "aaaa")
          if (outcome !== "served" || device === null) continue
          proven.add(device)
          assert.strictEqual(sizes.get(device), size)
        }
        assert.deepStrictEqual(proven, new Set(sizes.keys()))
      })
    )

    it.scopedLive("are all who hold a disk open, whoever they are, and never our own questions (S11)", () =>
      Effect.gen(function* () {
        const appliance = yield* engine.make
        const nbd = yield* engine.adapter(appliance)
        const [a, b] = [appliance.disk("aaaa"), appliance.disk("bbbb")]
        yield* nbd.load(request([a]))
        const tail = yield* Appliance.running("tail", ["-f", file(appliance, b)])
        yield* Appliance.eventually("tail has it open", () => Processes.devices(tail.pid ?? 0).includes(b.device))
        for (let round = 0; round < 10; round++) {
          const reading = yield* nbd.observe(["aaaa"])
          assert.strictEqual(Appliance.verified(reading, "aaaa").device, a.device)
          const held = reading.holders.filter((h) => [a.device, b.device].includes(h.device))
          assert.deepStrictEqual(held, [
            { pid: tail.pid ?? 0, command: "tail", device: b.device, peer: null, since: null }
          ])
        }
      })
    )

    it.scopedLive("is who is connected and since when, where one disk is held", () =>
      Effect.gen(function* () {
        const appliance = yield* engine.make
        const nbd = yield* engine.adapter(appliance)
        const a = long(appliance, "aaaa")
        yield* nbd.load(request([a]))
        const before = Date.now() - 1_500
        yield* Appliance.transfer(appliance, "aaaa")
        const held = yield* holdersOf(nbd, a)
        assert.isNotEmpty(held)
        for (const { peer, since } of held) {
          assert.match(peer ?? "", /^127\.\d+\.\d+\.\d+:\d+$/)
          assert.isTrue(since === null || (Date.parse(since) > before && Date.parse(since) < Date.now() + 1_500))
        }
        assert.isTrue(held.some(({ since }) => since !== null))
      })
    )

    it.scopedLive("comes with a poke when exports change, and when the server comes or goes", () =>
      Effect.gen(function* () {
        const appliance = yield* engine.make
        const nbd = yield* engine.adapter(appliance)
        const a = appliance.disk("aaaa")
        yield* nbd.load(request([a]))
        let count = 0
        const counting = yield* Effect.fork(Stream.runForEach(nbd.pokes, () => Effect.sync(() => count++)))
        yield* Effect.sleep("2500 millis")
        const before = count
        yield* nbd.load(request([], "aaaa"))
        yield* Appliance.eventually("the change pokes", () => count > before)
        yield* Effect.sleep("2500 millis")
        const settled = count
        for (const pid of yield* engine.listeners(appliance)) process.kill(pid, "SIGKILL")
        yield* Appliance.eventually("the death pokes", () => count > settled)
        yield* Fiber.interrupt(counting)
      })
    )
  })

  describe(`ending the clients of ${engine.name}`, () => {
    it.scopedLive("ends those of one disk, and says how many there were (N10, S11)", () =>
      Effect.gen(function* () {
        const appliance = yield* engine.make
        const nbd = yield* engine.adapter(appliance)
        // One of the two is served read-only: what is ended there must cost nothing here.
        const [a, b] = [long(appliance, "aaaa"), { ...long(appliance, "bbbb"), read_only: true }]
        yield* nbd.load(request([a, b]))
        const ending = yield* Appliance.transfer(appliance, "aaaa")
        const lasting = yield* Appliance.transfer({ ...appliance, uri: () => engine.uri(appliance, b) }, "bbbb")
        yield* nbd.fence("aaaa")
        const held = (yield* holdersOf(nbd, a)).length
        assert.isAbove(held, 0)
        assert.strictEqual(yield* nbd.endClients(a.device), held)
        assert.notStrictEqual((yield* ending.finish).code, 0)
        assert.isEmpty(yield* holdersOf(nbd, a))
        assert.isNull(lasting.child.exitCode)
        assert.strictEqual(yield* nbd.endClients(a.device), 0)
        assert.deepStrictEqual(yield* lasting.finish, { code: 0, sha256: sha256(file(appliance, b)) })
      })
    )
  })

  describe(`somebody else on the port of ${engine.name}`, () => {
    it.scopedLive("is reported as foreign and never touched, the exports neither (N5)", () =>
      Effect.gen(function* () {
        const appliance = yield* engine.make
        const nbd = yield* engine.adapter(appliance)
        const a = appliance.disk("aaaa")
        yield* Effect.acquireRelease(
          Effect.async<ReturnType<typeof createServer>>((resume) => {
            const server = createServer((socket) => socket.end("hello\n"))
            server.listen(appliance.place.port, appliance.place.host, () => resume(Effect.succeed(server)))
          }),
          (server) => Effect.sync(() => server.close())
        )
        const reading = yield* nbd.observe(["aaaa"])
        const before = readdirSync(appliance.dir, { recursive: true })
        assert.strictEqual(reading.server.state, "foreign")
        assert.include(reading.server.problem ?? "", String(process.pid))
        assert.strictEqual(Appliance.verified(reading, "aaaa").outcome, "no_answer")
        assert.include((yield* Effect.flip(nbd.load(request([a])))).message, String(appliance.place.port))
        assert.deepStrictEqual(readdirSync(appliance.dir, { recursive: true }), before)
      })
    )
  })

  describe(`the start setting of ${engine.name}`, () => {
    it.scopedLive("off changes the exports, leaves the server alone, and says so", () =>
      Effect.gen(function* () {
        const appliance = yield* engine.make
        const a = appliance.disk("aaaa")
        const off = yield* engine.adapter(appliance, { nbd: { ...appliance.options.nbd, start: "off" } })
        assert.include((yield* Effect.flip(off.load(request([a])))).message, "NBD_START")
        assert.isEmpty(yield* engine.listeners(appliance))
        assert.deepStrictEqual(
          (yield* off.sections).map(({ name }) => name),
          ["aaaa"]
        )
        yield* (yield* engine.adapter(appliance)).load(request([a]))
        const listeners = yield* engine.listeners(appliance)
        yield* off.load(request([a]))
        assert.deepStrictEqual(yield* engine.listeners(appliance), listeners)
      })
    )

    it.scopedLive("unit:NAME has systemctl start the server, by argument list", () =>
      Effect.gen(function* () {
        const appliance = yield* engine.make
        const bin = join(appliance.dir, "bin")
        mkdirSync(bin)
        const log = join(appliance.dir, "calls")
        const script = `#!/bin/sh\necho "$# $*" >> ${log}\n${engine.unitScript(appliance)}\n`
        writeFileSync(join(bin, "systemctl"), script, { mode: 0o755 })
        const nbd = yield* engine.adapter(appliance, {
          nbd: { ...appliance.options.nbd, start: engine.unit },
          program_dirs: [bin, "/usr/bin", "/bin"]
        })
        const [a, b] = [appliance.disk("aaaa"), long(appliance, "bbbb")]
        yield* nbd.load(request([a, b]))
        const copy = yield* Appliance.transfer(appliance, "bbbb")
        yield* nbd.load(request([b], "aaaa"))
        const calls = engine.restarts.map((call) => `2 ${call}\n`).join("")
        assert.strictEqual(readFileSync(log, "latin1"), calls.repeat(engine.replaces ? 2 : 1))
        assert.deepStrictEqual(yield* outcomes(nbd, "aaaa"), ["unknown"])
        assert.deepStrictEqual(yield* copy.finish, { code: 0, sha256: sha256(file(appliance, b)) })
      })
    )

    it.scopedLive("is of no use where the program is not installed, and that is a state of its own (N5)", () =>
      Effect.gen(function* () {
        const appliance = yield* engine.make
        const nbd = yield* engine.adapter(appliance, { program_dirs: [join(appliance.dir, "none")] })
        const reading = yield* nbd.observe(["aaaa"])
        assert.deepStrictEqual([reading.server.state, reading.version], ["not_installed", null])
        const a = appliance.disk("aaaa")
        const before = readdirSync(appliance.dir, { recursive: true })
        const error = yield* Effect.flip(nbd.load(request([a])))
        assert.include(error.message, `apt-get install ${engine.package}`)
        assert.deepStrictEqual(readdirSync(appliance.dir, { recursive: true }), before)
      })
    )

    it.scopedLive(
      "where the program is gone lets an export be taken out of what the next server would serve (N5)",
      () =>
        Effect.gen(function* () {
          const appliance = yield* engine.make
          const [a, b] = [appliance.disk("aaaa"), appliance.disk("bbbb")]
          yield* Effect.scoped(
            Effect.flatMap(engine.adapter(appliance, { stop_on_exit: true }), (nbd) => nbd.load(request([a, b])))
          )
          const nbd = yield* engine.adapter(appliance, { program_dirs: [join(appliance.dir, "none")] })
          yield* nbd.load(request([], "aaaa"))
          const reading = yield* nbd.observe(["aaaa"])
          assert.deepStrictEqual(
            [
              reading.server.state,
              reading.sections.map(({ name }) => name),
              Appliance.verified(reading, "aaaa").outcome
            ],
            ["not_installed", ["bbbb"], "refused"]
          )
        })
    )

    it.scopedLive("with stop_on_exit ends the server and its transfers with the scope", () =>
      Effect.gen(function* () {
        const appliance = yield* engine.make
        const a = long(appliance, "aaaa")
        const outer = yield* Effect.scope
        const copy = yield* Effect.scoped(
          Effect.gen(function* () {
            const nbd = yield* engine.adapter(appliance, { stop_on_exit: true })
            yield* nbd.load(request([a]))
            return yield* Scope.extend(Appliance.transfer(appliance, "aaaa"), outer)
          })
        )
        assert.notStrictEqual((yield* copy.finish).code, 0)
        assert.isEmpty(yield* engine.listeners(appliance))
      })
    )
  })
}
