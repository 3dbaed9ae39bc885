import { assert, describe, it } from "@effect/vitest"
import { Clock, Effect, Either, FastCheck as fc, Layer, Random, TestClock } from "effect"
import * as Fs from "node:fs"
import * as Os from "node:os"
import * as Path from "node:path"
import { Store } from "../../reconciler/Store.ts"
import type { OperationId, VolumeId } from "../../schema/Ids.ts"
import { hasEnded, type Operation } from "../../schema/Operation.ts"
import type { Fault } from "../../src/Simulation/Fault.ts"
import { ask, cancel, create, existing, type Kind, made, operate, read, truth, wishes } from "../support/Calls.ts"
import * as Cloud from "../support/Cloud.ts"

/**
 * Seeded histories of calls, of people in CloudStack's UI, of faults and of restarts, on the in-memory world. Whatever
 * the order: no call outlives its deadline, what is reported as done is so, nothing that no controller may do is done,
 * and once all calls have ended and what they sent has had its time, nothing changes any more.
 */
const SEEDS = [1, 2, 110, 127, 135, 304]

/** A reading may take this long, and a pass comes each second while calls are open. */
const LATE_MS = 15_000
/** The longest back-off, a request's expiry and a quarantine. */
const AFTERMATH_MS = 480_000

const kinds = Object.keys(wishes) as ReadonlyArray<Kind>
const disk = fc.nat(2)
const commands = ["createVolume", "attachVolume", "detachVolume", "deleteVolume"] as const
const mutation = fc.constantFrom(...commands)
const times = fc.integer({ min: 1, max: 3 })

const fault = fc.oneof(
  fc.record({ kind: fc.constant("answer_lost_after_effect" as const), command: mutation, times }),
  fc.record({ kind: fc.constant("answer_lost_before_effect" as const), command: mutation, times }),
  fc.record({ kind: fc.constant("refused" as const), command: mutation, code: fc.constantFrom(530, 431, 535), times }),
  fc.record({ kind: fc.constant("slow_job" as const), command: mutation, ms: fc.integer({ min: 1, max: 200_000 }) }),
  fc.record({ kind: fc.constant("job_failed" as const), command: mutation, times }),
  fc.record({ kind: fc.constant("late_effect" as const), command: mutation, delay_ms: fc.nat(50_000), times }),
  fc.record({ kind: fc.constant("unauthorized" as const) }),
  fc.record({ kind: fc.constant("unauthorized" as const) })
)

const step = fc.oneof(
  { weight: 8, arbitrary: fc.record({ do: fc.constant("ask" as const), kind: fc.constantFrom(...kinds), disk }) },
  { weight: 2, arbitrary: fc.record({ do: fc.constant("create" as const) }) },
  { weight: 3, arbitrary: fc.record({ do: fc.constant("cancel" as const), nth: fc.nat(1) }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constant("move" as const), disk, to: fc.nat(2) }) },
  { weight: 4, arbitrary: fc.record({ do: fc.constant("break" as const), fault }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constant("mend" as const) }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constant("restart" as const) }) },
  { weight: 8, arbitrary: fc.record({ do: fc.constant("wait" as const), ms: fc.integer({ min: 200, max: 20_000 }) }) }
)
type Step = typeof step extends fc.Arbitrary<infer A> ? A : never

interface History {
  readonly lab: Cloud.Lab
  readonly disks: Array<VolumeId>
  readonly calls: Array<OperationId>
  readonly judged: Set<OperationId>
  /** The disk that is on a VM by somebody else's doing was named by a call that may take it away, or moved by a person. */
  named: boolean
}

const call = (history: History, { disk, kind }: Extract<Step, { do: "ask" }>) =>
  Effect.gen(function* () {
    const id = history.disks[disk] ?? ("" as VolumeId)
    const { volumes } = yield* truth(history.lab)
    const found = volumes.find((volume) => volume.id === id)
    // What HTTP refuses before it is stored.
    if (found === undefined || found.type !== "DATADISK") return
    if (kind === "delete" && found.vm_id !== null && found.vm_id !== Cloud.appliance) return
    const asked = yield* Effect.either(ask(history.lab, id, kind))
    if (Either.isLeft(asked)) return
    history.calls.push(asked.right)
    if (disk === 2 && kind === "detach") history.named = true
  })

const move = ({ disks, lab }: History, { disk, to }: Extract<Step, { do: "move" }>) =>
  Effect.gen(function* () {
    const now = yield* Clock.currentTimeMillis
    const volume_id = disks[disk] ?? ("" as VolumeId)
    const vm_id = [null, Cloud.testVm, Cloud.otherVm][to] ?? null
    lab.world.act(vm_id === null ? { act: "detach", volume_id } : { act: "attach", volume_id, vm_id }, now)
  })

const perform = (history: History, step: Step) =>
  Effect.gen(function* () {
    const now = yield* Clock.currentTimeMillis
    switch (step.do) {
      case "ask":
        return yield* call(history, step)
      case "create":
        return void history.calls.push(yield* create(`disk ${history.calls.length}`))
      case "cancel": {
        const open = (yield* (yield* Store).calls).filter((one) => !hasEnded(one))
        const one = open[step.nth]
        return one === undefined ? undefined : yield* Effect.either(cancel(one.id))
      }
      case "move":
        if (step.disk === 2) history.named = true
        return yield* move(history, step)
      case "break":
        return history.lab.world.setFaults([step.fault satisfies Fault], now)
      case "mend":
        return history.lab.world.setFaults([], now)
      case "wait":
        return yield* watch(history, step.ms)
      case "restart":
        return undefined
    }
  })

/** Let time pass, and look at each call as soon as it has ended: nobody else has moved anything since. */
const watch = (history: History, ms: number) =>
  Effect.gen(function* () {
    for (let at = 0; at < ms; at += 1_000) {
      yield* Cloud.pass(Math.min(1_000, ms - at), 1_000)
      yield* judge(history)
    }
  })

const judge = (history: History) =>
  Effect.gen(function* () {
    const now = yield* Clock.currentTimeMillis
    const { volumes, violations } = history.lab.world.truth(now)
    assert.deepStrictEqual(violations, [])
    for (const id of history.calls) {
      if (history.judged.has(id)) continue
      const one = yield* read(id)
      if (!hasEnded(one)) {
        assert.isAtMost(now, (one.deadline_at ?? 0) + LATE_MS, `${one.type} outlives its deadline`)
        continue
      }
      history.judged.add(id)
      if (one.status === "completed") shows(one, volumes)
    }
    const foreign = volumes.find(({ id }) => id === history.disks[2])
    if (!history.named) assert.strictEqual(foreign?.vm_id, Cloud.otherVm, "nobody named it (S23)")
  })

const shows = (
  { id, type, volume_id, wish }: Operation,
  volumes: ReturnType<typeof Cloud.make>["world"] extends {
    truth: (now: number) => { readonly volumes: infer V }
  }
    ? V
    : never
) => {
  const found = volumes.find((volume) => volume.id === volume_id)
  if (type === "delete") return assert.isUndefined(found, `${id} is completed, and its volume is there (S7)`)
  assert.isDefined(found, `${id} is completed, and its volume is not there (S7)`)
  const to = wish?.spec.attached_to ?? undefined
  if (to === undefined) return
  const vm = to === "appliance" ? Cloud.appliance : to === "none" ? null : to
  assert.strictEqual(found?.vm_id, vm, `${type} ${id} is completed, and the volume is elsewhere (S7)`)
}

const places = (lab: Cloud.Lab) =>
  Effect.map(
    truth(lab),
    ({ volumes }) => new Map(volumes.flatMap(({ id, type, vm_id }) => (type === "DATADISK" ? [[id, vm_id]] : [])))
  )

/** Volumes on which something is sent or declared still; `""`: one that is being made. */
const busy = Effect.gen(function* () {
  const store = yield* Store
  const removed = (yield* store.declarations).filter(({ deletion }) => deletion !== null)
  const operations = yield* store.unresolved
  return new Set<string>([
    ...operations.map(({ volume_id }) => volume_id),
    ...removed.map(({ binding }) => binding.volume_id ?? "")
  ])
})

const ends = (history: History, mended: boolean) =>
  Effect.gen(function* () {
    const { calls, lab } = history
    const mend = Effect.map(Clock.currentTimeMillis, (now) => lab.world.setFaults([], now))
    if (mended) yield* mend
    const open = Effect.map(
      Effect.flatMap(Store, ({ calls }) => calls),
      (all) => all.some((one) => !hasEnded(one))
    )
    for (let at = 0; at < 300_000 && (yield* open); at += 1_000) yield* watch(history, 1_000)
    for (const id of calls) assert.isTrue(hasEnded(yield* read(id)), id)
    const sent = yield* busy
    const told = yield* places(lab)
    yield* mend
    yield* Cloud.pass(AFTERMATH_MS, 4_000)
    const after = yield* places(lab)
    const idle = ([id]: readonly [string, unknown]) => !sent.has(id) && (told.has(id) || !sent.has(""))
    assert.deepStrictEqual([...after].filter(idle), [...told].filter(idle), "nothing fires after the last call's end")
    assert.deepStrictEqual(yield* (yield* Store).calls, [])
    yield* Cloud.pass(600_000, 10_000)
    assert.deepStrictEqual(yield* places(lab), after)
    yield* judge(history)
  })

const begin = (history: History) =>
  Effect.gen(function* () {
    const { disks, lab } = history
    disks.push(yield* made("disk-0"))
    disks.push(yield* existing(lab, "shelf"))
    disks.push(yield* existing(lab, "theirs"))
    yield* operate(lab, { act: "attach", volume_id: disks[2] ?? "", vm_id: Cloud.otherVm })
  })

/** What comes between two restarts runs under one loop. */
const lives = (steps: ReadonlyArray<Step>): ReadonlyArray<ReadonlyArray<Step>> => {
  const all: Array<Array<Step>> = [[]]
  for (const one of steps)
    if (one.do === "restart") all.push([])
    else all.at(-1)?.push(one)
  return all
}

const play = (steps: ReadonlyArray<Step>) =>
  Effect.acquireUseRelease(
    Effect.sync(() => Fs.mkdtempSync(Path.join(Os.tmpdir(), "volumed-calls-"))),
    (directory) =>
      Effect.gen(function* () {
        const lab = Cloud.make()
        const history: History = { lab, disks: [], calls: [], judged: new Set(), named: false }
        yield* TestClock.setTime(Cloud.START)
        const segments = lives(steps)
        for (const [index, segment] of segments.entries()) {
          const body = Effect.gen(function* () {
            if (index === 0) yield* begin(history)
            for (const one of segment) yield* perform(history, one)
            if (index === segments.length - 1) yield* ends(history, steps.length % 2 === 0)
          })
          yield* Effect.provide(body, Layer.fresh(Cloud.layer(lab, Path.join(directory, "volumed.db"))))
        }
      }),
    (directory) => Effect.sync(() => Fs.rmSync(directory, { recursive: true, force: true }))
  )

describe("Whatever is called, moved, broken and restarted", () => {
  for (const seed of SEEDS) {
    const [steps = []] = fc.sample(fc.array(step, { minLength: 12, maxLength: 24, size: "max" }), { numRuns: 1, seed })
    it.effect(`calls end in time and truly, and then nothing changes (seed ${seed})`, () =>
      Effect.suspend(() => Effect.withRandom(play(steps), Random.make(`calls ${seed}`)))
    )
  }
})
