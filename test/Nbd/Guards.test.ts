import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import { createHash } from "node:crypto"
import { readFileSync, writeFileSync } from "node:fs"
import { connect, type Socket } from "node:net"
import { join } from "node:path"
import type { LoadRequest, WantedExport } from "../../reconciler/Nbd.ts"
import * as ConfigFile from "../../src/Nbd/ConfigFile.ts"
import * as Processes from "../../src/Nbd/Processes.ts"
import * as Appliance from "./Appliance.ts"

const MiB = 1024 * 1024

const request = (set: ReadonlyArray<WantedExport>, ...drop: ReadonlyArray<string>): LoadRequest => ({ set, drop })

const sha256 = (path: string) => createHash("sha256").update(readFileSync(path)).digest("hex")

const authfile = (appliance: Appliance.Appliance, name: string) =>
  readFileSync(join(appliance.dir, "acl", name), "latin1")

/** A disk that no two parts of are alike, so that a mixed-up copy has another checksum. */
const disk = (appliance: Appliance.Appliance, name: string, bytes: number): WantedExport => {
  const wanted = appliance.disk(name, bytes)
  const words = Uint32Array.from({ length: bytes / 4 }, (_, i) => i ^ name.charCodeAt(0))
  writeFileSync(join(appliance.dir, "dev", name), new Uint8Array(words.buffer))
  return wanted
}

/** A disk whose files say when they are renamed: what happens then happens in the middle of a load. */
const watched = (before: (to: string) => Promise<void>): ConfigFile.Disk => ({
  ...ConfigFile.disk,
  rename: async (from, to) => {
    await before(String(to))
    return ConfigFile.disk.rename(from, to)
  }
})

describe("ending a device's clients", () => {
  it.scopedLive("ends them all, of an earlier main too and one that hangs, and nobody else (N10, S11)", () =>
    Effect.gen(function* () {
      const appliance = yield* Appliance.make
      const nbd = yield* Appliance.adapter(appliance)
      const [a, b] = [disk(appliance, "aaaa", 24 * MiB), disk(appliance, "bbbb", 24 * MiB)]
      yield* nbd.load(request([a, b]))
      const early = yield* Appliance.transfer(appliance, "aaaa")
      const other = yield* Appliance.transfer(appliance, "bbbb")
      yield* nbd.load(request([a, b, appliance.disk("cccc")]))
      const late = yield* Appliance.transfer(appliance, "aaaa")
      const tail = yield* Appliance.running("tail", ["-f", join(appliance.dir, "dev/aaaa")])
      yield* Appliance.eventually("tail has it open", () => Processes.devices(tail.pid ?? 0).includes(a.device))
      const holders = (yield* nbd.observe([])).holders.filter(
        ({ device, peer }) => device === a.device && peer !== null
      )
      process.kill(holders[0]?.pid ?? 0, "SIGSTOP")
      const main = yield* Appliance.mainOf(appliance)
      yield* nbd.fence("aaaa")
      assert.isAbove(holders.length, 1)
      assert.strictEqual(yield* nbd.endClients(a.device), holders.length)
      assert.notStrictEqual((yield* early.finish).code, 0)
      assert.notStrictEqual((yield* late.finish).code, 0)
      const left = (yield* nbd.observe(["aaaa", "bbbb"])).holders.filter(({ device }) => device === a.device)
      assert.deepStrictEqual(left, [{ pid: tail.pid ?? 0, command: "tail", device: a.device, peer: null, since: null }])
      assert.strictEqual(yield* nbd.endClients(a.device), 0)
      assert.strictEqual(yield* Appliance.mainOf(appliance), main)
      assert.deepStrictEqual(yield* other.finish, { code: 0, sha256: sha256(join(appliance.dir, "dev/bbbb")) })
    })
  )

  it.scopedLive("is asked of the gate", () =>
    Effect.gen(function* () {
      const appliance = yield* Appliance.make
      const a = disk(appliance, "aaaa", 24 * MiB)
      yield* (yield* Appliance.adapter(appliance)).load(request([a]))
      const copy = yield* Appliance.transfer(appliance, "aaaa")
      const held = yield* Appliance.adapter(appliance, {}, Appliance.closingGate(0))
      assert.strictEqual((yield* Effect.flip(held.endClients(a.device)))._tag, "GateClosed")
      assert.strictEqual((yield* copy.finish).code, 0)
    })
  )
})

describe("a fence beside a load", () => {
  it.scopedLive("is not undone by the admission that was under way, and keeps its age (N8)", () =>
    Effect.gen(function* () {
      const appliance = yield* Appliance.make
      const a = appliance.disk("aaaa")
      yield* (yield* Appliance.adapter(appliance)).load(request([a]))
      const fences: Array<Promise<void>> = []
      const nbd = yield* Appliance.adapter(appliance, {
        // Another list of clients, so that the load writes the authfile again.
        nbd: { ...appliance.options.nbd, allow: ["192.0.2.7"] },
        disk: watched((to) => {
          if (to.endsWith("/aaaa") && fences.length === 0)
            fences.push(Effect.runPromise(Effect.orDie(nbd.fence("aaaa"))))
          return new Promise((done) => setTimeout(done, 50))
        })
      })
      yield* nbd.load(request([a]))
      yield* Effect.promise(() => Promise.all(fences))
      assert.lengthOf(fences, 1)
      assert.strictEqual(authfile(appliance, "aaaa"), "")
      const [section] = yield* nbd.sections
      yield* Effect.sleep("20 millis")
      yield* nbd.fence("aaaa")
      yield* nbd.load(request([a]))
      assert.isNumber(section?.fenced_at)
      assert.strictEqual((yield* nbd.sections)[0]?.fenced_at, section?.fenced_at)
      assert.strictEqual(Appliance.verified(yield* nbd.observe(["aaaa"]), "aaaa").outcome, "denied")
    })
  )

  it.scopedLive("does not wait for it", () =>
    Effect.gen(function* () {
      const appliance = yield* Appliance.make
      const [a, b] = [appliance.disk("aaaa"), appliance.disk("bbbb")]
      const during: Array<number | null> = []
      const nbd = yield* Appliance.adapter(appliance, {
        disk: watched(async (to) => {
          if (!to.endsWith("/config") || during.length > 0 || !(await loaded)) return
          await Effect.runPromise(Effect.orDie(nbd.fence("aaaa")))
          const sections = await Effect.runPromise(Effect.orDie(nbd.sections))
          during.push(sections.find(({ name }) => name === "aaaa")?.fenced_at ?? null)
        })
      })
      let loaded = Promise.resolve(false)
      yield* nbd.load(request([a]))
      loaded = Promise.resolve(true)
      yield* nbd.load(request([a, b]))
      assert.isNumber(during[0])
      const reading = yield* nbd.observe(["aaaa", "bbbb"])
      assert.deepStrictEqual(
        reading.verifications.map(({ outcome }) => outcome),
        ["denied", "served"]
      )
    })
  )

  it.scopedLive("is not lifted from what has left the file: an old main might serve it on (N8)", () =>
    Effect.gen(function* () {
      const appliance = yield* Appliance.make
      const nbd = yield* Appliance.adapter(appliance)
      yield* nbd.load(request([appliance.disk("aaaa")]))
      yield* nbd.load(request([], "aaaa"))
      yield* nbd.release("aaaa")
      assert.strictEqual(authfile(appliance, "aaaa"), "")
    })
  )
})

describe("an export that is to leave", () => {
  it.scopedLive("is denied before the file is touched, and comes back as it was where that fails (N4, N8)", () =>
    Effect.gen(function* () {
      const appliance = yield* Appliance.make
      const { config, host, port } = appliance.place
      const a = appliance.disk("aaaa")
      writeFileSync(config, `[generic]\nlistenaddr = ${host}\nport = ${port}\n[aaaa]\nexportname = ${a.path}\n`)
      const options = { ...appliance.options.nbd, explicit: { host: true, port: true, allow: false } }
      let full = false
      const nbd = yield* Appliance.adapter(appliance, {
        nbd: options,
        disk: watched(async (to) => {
          if (full && to.endsWith("/config")) throw Object.assign(new Error("full"), { code: "ENOSPC" })
        })
      })
      yield* nbd.load(request([a]))
      const [main, rules] = [yield* Appliance.mainOf(appliance), authfile(appliance, "aaaa")]
      full = true
      assert.include((yield* Effect.flip(nbd.load(request([], "aaaa")))).message, "ENOSPC")
      const reading = yield* nbd.observe(["aaaa"])
      assert.deepStrictEqual([reading.loaded, Appliance.verified(reading, "aaaa").outcome], [true, "denied"])
      assert.isNumber(reading.sections[0]?.fenced_at)
      assert.strictEqual(yield* Appliance.mainOf(appliance), main)
      // Somebody wants it again: who was admitted before is admitted.
      yield* nbd.release("aaaa")
      assert.strictEqual(authfile(appliance, "aaaa"), rules)
      assert.strictEqual(Appliance.verified(yield* nbd.observe(["aaaa"]), "aaaa").outcome, "served")
    })
  )
})

describe("whom a server admits that becomes somebody else", () => {
  const stage = Effect.gen(function* () {
    const appliance = yield* Appliance.make
    const { config, host, port } = appliance.place
    writeFileSync(config, `[generic]\nlistenaddr = ${host}\nport = ${port}\nuser = nbd\ngroup = nbd\n`)
    return appliance
  })

  it.scopedLive("is what the authfiles say, made under whatever umask (S21)", () =>
    Effect.gen(function* () {
      const appliance = yield* stage
      yield* Appliance.run("chmod", "755", appliance.dir)
      const nbd = yield* Appliance.adapter(appliance)
      const a = { ...appliance.disk("aaaa"), read_only: true }
      yield* Effect.acquireUseRelease(
        Effect.sync(() => process.umask(0o077)),
        () => nbd.load(request([a])),
        (umask) => Effect.sync(() => process.umask(umask))
      )
      assert.deepInclude(Appliance.verified(yield* nbd.observe(["aaaa"]), "aaaa"), { outcome: "served", size: MiB })
      yield* nbd.fence("aaaa")
      assert.strictEqual(Appliance.verified(yield* nbd.observe(["aaaa"]), "aaaa").outcome, "denied")
    })
  )

  it.scopedLive("would be everybody where it cannot read them: then nothing is loaded, and that is said (S21)", () =>
    Effect.gen(function* () {
      const appliance = yield* stage
      const nbd = yield* Appliance.adapter(appliance)
      assert.match((yield* nbd.observe([])).server.problem ?? "", /cannot be entered by nbd/)
      const error = yield* Effect.flip(nbd.load(request([appliance.disk("aaaa")])))
      assert.match(error.message, /cannot be entered by nbd.*admit everybody/)
      assert.isEmpty(Processes.servers(appliance.place.config))
    })
  )
})

describe("a hand's comment in the file", () => {
  it.scopedLive("is no reason to end a server, and stays; neither is the order of sections (N1, S12)", () =>
    Effect.gen(function* () {
      const appliance = yield* Appliance.make
      const nbd = yield* Appliance.adapter(appliance)
      const a = appliance.disk("aaaa")
      yield* nbd.load(request([a]))
      const main = yield* Appliance.mainOf(appliance)
      const { config } = appliance.place
      writeFileSync(
        config,
        `# on the top\n${Appliance.configText(appliance).replace("[aaaa]", "\n# a word\n[aaaa]")}# end\n`
      )
      assert.isTrue((yield* nbd.observe([])).loaded)
      yield* nbd.load(request([a]))
      assert.strictEqual(yield* Appliance.mainOf(appliance), main)
      assert.include(Appliance.configText(appliance), "# a word\n")
      // Nor is a load that writes the same sections in another order.
      const other = appliance.disk("zzzz")
      yield* nbd.load(request([a, other]))
      const both = yield* Appliance.mainOf(appliance)
      yield* nbd.load(request([a]))
      assert.strictEqual(yield* Appliance.mainOf(appliance), both)
      assert.isBelow(
        Appliance.configText(appliance).indexOf("[zzzz]"),
        Appliance.configText(appliance).indexOf("[aaaa]")
      )
      writeFileSync(config, `${Appliance.configText(appliance)}[theirs]\nexportname = ${a.path}\n`)
      assert.isFalse((yield* nbd.observe([])).loaded)
      yield* nbd.load(request([a]))
      assert.notStrictEqual(yield* Appliance.mainOf(appliance), both)
    })
  )
})

/** So many clients that are greeted and then say nothing; a few at a time, for nbd-server lets no more wait. */
const idle = ({ place: { host, port } }: Appliance.Appliance, count: number) =>
  Effect.gen(function* () {
    const one = Effect.acquireRelease(
      Effect.async<Socket>((resume) => {
        const socket = connect(port, host).on("error", () => {})
        socket.once("data", () => resume(Effect.succeed(socket)))
      }),
      (socket) => Effect.sync(() => socket.destroy())
    )
    yield* Effect.forEach(Array.from({ length: count }), () => one, { concurrency: 8, discard: true })
  })

describe("connections without a chosen export", () => {
  it.scopedLive("are named when they are many, keep nobody out, and do not hold up a load (N11, N12)", () =>
    Effect.gen(function* () {
      const appliance = yield* Appliance.make
      const nbd = yield* Appliance.adapter(appliance)
      const [a, b] = [disk(appliance, "aaaa", 24 * MiB), appliance.disk("bbbb")]
      yield* nbd.load(request([a, b]))
      const copy = yield* Appliance.transfer(appliance, "aaaa")
      yield* idle(appliance, 300)
      const reading = yield* nbd.observe(["aaaa", "bbbb"])
      assert.match(reading.server.problem ?? "", /\d{3} connections have chosen no export/)
      assert.deepStrictEqual(
        reading.verifications.map(({ outcome }) => outcome),
        ["served", "served"]
      )
      yield* nbd.load(request([a], "bbbb"))
      const after = yield* nbd.observe(["aaaa", "bbbb"])
      assert.deepStrictEqual(
        [after.loaded, after.server.problem, ...after.verifications.map(({ outcome }) => outcome)],
        [true, null, "served", "unknown"]
      )
      assert.deepStrictEqual(yield* copy.finish, { code: 0, sha256: sha256(join(appliance.dir, "dev/aaaa")) })
    })
  )
})
