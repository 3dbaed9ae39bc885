import { assert, describe, it } from "@effect/vitest"
import { Effect, Fiber, Stream } from "effect"
import { spawn } from "node:child_process"
import { readlinkSync, renameSync, symlinkSync } from "node:fs"
import { performance } from "node:perf_hooks"
import { join } from "node:path"
import type { Nbd, WantedExport } from "../../reconciler/Nbd.ts"
import * as NbdConfig from "../../schema/NbdConfig.ts"
import * as Watch from "../../src/Devices/Watch.ts"
import * as Pin from "../../src/Nbd/Pin.ts"
import * as World from "../../src/Nbd/World.ts"
import * as Appliance from "./Appliance.ts"
import * as Client from "./Client.ts"

/** Leads the link to one disk and the other in turn, as fast as it can, for at most two minutes. */
const FLIPPER = `
const { renameSync, symlinkSync } = require("node:fs")
const [link, ...disks] = process.argv.slice(1)
const end = Date.now() + 120_000
for (let turn = 0; Date.now() < end; turn++) {
  symlinkSync(disks[turn % disks.length], link + ".next")
  renameSync(link + ".next", link)
}`

const flipping = (link: string, ...disks: ReadonlyArray<string>) =>
  Effect.acquireRelease(
    Effect.sync(() => spawn(process.execPath, ["-e", FLIPPER, link, ...disks], { stdio: "ignore" })),
    (child) => Effect.sync(() => child.kill("SIGKILL"))
  )

const lead = (link: string, disk: string): void => {
  symlinkSync(disk, `${link}.next`)
  renameSync(`${link}.next`, link)
}

/** This many reads of an export's first bytes by four clients at once, counted by what they got. */
const readMany = (appliance: Appliance.Appliance, name: string, count: number) =>
  Effect.promise(async () => {
    const tally = new Map<string, number>()
    let left = count
    const client = async () => {
      while (left-- > 0) {
        const answer = await Client.read(appliance.place, name)
        const what = answer._tag === "Bytes" ? answer.text.trim() : "refused"
        tally.set(what, (tally.get(what) ?? 0) + 1)
      }
    }
    await Promise.all([client(), client(), client(), client()])
    return { right: tally.get("aaaa") ?? 0, wrong: tally.get("bbbb") ?? 0, refused: tally.get("refused") ?? 0 }
  })

const disks = (appliance: Appliance.Appliance) => {
  const [a, b] = [appliance.disk("aaaa"), appliance.disk("bbbb")]
  return { a, b, files: [a, b].map(({ name }) => join(appliance.dir, "dev", name)) as [string, string] }
}

/** Ends all holders, and waits for the one that is behind this descriptor. */
const unpinned = (scope: Pin.Scope, descriptor = "") =>
  Effect.suspend(() => {
    Pin.stop(scope)
    return Appliance.eventually("the holder has ended", () => Pin.at(scope, descriptor) === null)
  })

/** What the loop's sentry does: on every change of a link it looks where sections lead now, and fences what is wrong. */
const sentry = (appliance: Appliance.Appliance, nbd: Nbd["Type"], wanted: WantedExport, fenced: () => void) =>
  Watch.changes(appliance.options.by_id_dir).pipe(
    Stream.runForEach(() => look(nbd, wanted, fenced)),
    Effect.forkScoped
  )

const look = (nbd: Nbd["Type"], { device, name }: WantedExport, fenced: () => void) =>
  Effect.gen(function* () {
    const section = (yield* nbd.sections).find((one) => one.name === name)
    if (section === undefined || section.fenced_at !== null || section.device === device) return
    yield* nbd.fence(name)
    fenced()
  }).pipe(Effect.orDie)

const quantile = (sorted: ReadonlyArray<number>, share: number): number =>
  sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? Number.NaN

const say = (text: string): Effect.Effect<void> => Effect.sync(() => void process.stdout.write(`${text}\n`))

const CONNECTS = 2_000
const CHANGES = 50

describe("a by-id link that is flipped while clients connect", { timeout: 180_000 }, () => {
  it.scopedLive("gives a pinned export no wrong byte and refuses nobody (D12, S3)", () =>
    Effect.gen(function* () {
      const appliance = yield* Appliance.make
      const { a, files } = disks(appliance)
      const nbd = yield* Appliance.adapter(appliance, { nbd: { ...appliance.options.nbd, pin: true } })
      yield* nbd.load({ set: [a], drop: [] })
      let fences = 0
      yield* sentry(appliance, nbd, a, () => fences++)
      const flipper = yield* flipping(a.path, ...files)
      yield* Appliance.eventually("the link leads to the other disk", () => readlinkSync(a.path) === files[1])
      const tally = yield* readMany(appliance, "aaaa", CONNECTS)
      assert.isNull(flipper.exitCode)
      yield* say(`pinned: ${JSON.stringify(tally)} of ${CONNECTS}, fenced ${fences} times`)
      assert.deepStrictEqual(tally, { right: CONNECTS, wrong: 0, refused: 0 })
      assert.strictEqual(fences, 0)
    })
  )

  it.scopedLive("never pins the other disk, however a load is hit by it (D11, D12, S3)", () =>
    Effect.gen(function* () {
      const appliance = yield* Appliance.make
      const { a, files } = disks(appliance)
      const options = { ...appliance.options, nbd: { ...appliance.options.nbd, pin: true } }
      const world = yield* Effect.provide(World.make(options), Appliance.openGate)
      const standing = { document: null, judgement: NbdConfig.judgeGeneric(null, options.nbd) }
      yield* flipping(a.path, ...files)
      const takes = { pinned: 0, refused: 0 }
      while (takes.pinned < 30 || takes.refused < 30) {
        const taken = yield* Effect.either(Pin.take(world, standing, [a]))
        takes[taken._tag === "Right" ? "pinned" : "refused"]++
        if (taken._tag === "Right") assert.strictEqual(taken.right.get("aaaa")?.device, a.device)
        else assert.match(taken.left.message, /is not pinned: it is file:\S+ now/)
        if (taken._tag === "Right") yield* unpinned(options, taken.right.get("aaaa")?.descriptor)
      }
      const nbd = yield* Appliance.adapter(appliance, options)
      const loads = { loaded: 0, refused: 0 }
      while (loads.loaded < 2) {
        const exit = yield* Effect.exit(nbd.load({ set: [a], drop: [] }))
        loads[exit._tag === "Success" ? "loaded" : "refused"]++
        if (exit._tag === "Failure") continue
        const [section] = yield* nbd.sections
        assert.deepStrictEqual([section?.path, section?.device], [a.path, a.device])
        if (section?.fenced_at !== null) yield* nbd.release("aaaa")
        assert.deepStrictEqual(yield* readMany(appliance, "aaaa", 20), { right: 20, wrong: 0, refused: 0 })
        yield* unpinned(options, /\/proc\/\S+/.exec(Appliance.configText(appliance))?.[0])
      }
      yield* say(`while it is flipped: ${JSON.stringify(takes)} by themselves, ${JSON.stringify(loads)} in loads`)
    })
  )

  it.scopedLive("is found in the default mode, and the export fenced until it is right again (D3, D12)", () =>
    Effect.gen(function* () {
      const appliance = yield* Appliance.make
      const { a, files } = disks(appliance)
      const nbd = yield* Appliance.adapter(appliance)
      yield* nbd.load({ set: [a], drop: [] })
      let since = 0
      const found: Array<number> = []
      yield* sentry(appliance, nbd, a, () => found.push(performance.now() - since))
      const wrong: Array<number> = []
      const client = Effect.promise(() => Client.read(appliance.place, "aaaa")).pipe(
        Effect.tap((answer) => {
          if (answer._tag === "Bytes" && answer.text.trim() !== "aaaa") wrong.push(performance.now() - since)
        })
      )
      const clients = yield* Effect.forkScoped(
        Effect.all(
          Array.from({ length: 4 }, () => Effect.forever(client)),
          { concurrency: "unbounded" }
        )
      )
      for (let change = 1; change <= CHANGES; change++) {
        since = performance.now()
        lead(a.path, files[1])
        yield* Appliance.eventually(`change ${change} is found`, () => found.length === change)
        // Whoever asks from now on is denied.
        assert.strictEqual((yield* Effect.promise(() => Client.read(appliance.place, "aaaa")))._tag, "Refused")
        lead(a.path, files[0])
        yield* nbd.release("aaaa")
      }
      yield* Fiber.interrupt(clients)
      const sorted = [...found].sort((x, y) => x - y)
      const last = Math.max(0, ...wrong)
      yield* say(
        [
          "| changes | found | detection and fence: median | p95 | max | wrong reads before it | latest of them |",
          `| ${CHANGES} | ${found.length} | ${[0.5, 0.95, 1].map((share) => `${quantile(sorted, share).toFixed(1)} ms`).join(" | ")} | ${wrong.length} | ${last.toFixed(1)} ms |`
        ].join("\n")
      )
      assert.strictEqual(found.length, CHANGES)
      assert.deepStrictEqual(yield* readMany(appliance, "aaaa", 20), { right: 20, wrong: 0, refused: 0 })
    })
  )

  it.scopedLive("cannot flip so fast that the export stays open (D2, D12)", () =>
    Effect.gen(function* () {
      const appliance = yield* Appliance.make
      const { a, files } = disks(appliance)
      const nbd = yield* Appliance.adapter(appliance)
      yield* nbd.load({ set: [a], drop: [] })
      yield* flipping(a.path, ...files)
      const alone = yield* readMany(appliance, "aaaa", CONNECTS)
      yield* say(`default, nobody looking: ${JSON.stringify(alone)} of ${CONNECTS}`)
      assert.isAbove(alone.wrong, 0)
      let fenced = false
      yield* sentry(appliance, nbd, a, () => (fenced = true))
      yield* Appliance.eventually("the export is fenced", () => fenced)
      assert.deepStrictEqual(yield* readMany(appliance, "aaaa", 100), { right: 0, wrong: 0, refused: 100 })
    })
  )
})
