import * as SqlClient from "@effect/sql/SqlClient"
import { assert, describe, it } from "@effect/vitest"
import { Clock, Effect, FastCheck as fc, Layer, Random, TestClock } from "effect"
import { Reconciler } from "../../reconciler/Reconciler.ts"
import { Store } from "../../reconciler/Store.ts"
import { GIB, type Spec } from "../../schema/Declaration.ts"
import { type OfferingId, serialOf, type VolumeId } from "../../schema/Ids.ts"
import type { Limits } from "../../schema/Settings.ts"
import type { Fault } from "../../src/Simulation/Fault.ts"
import * as SimulatedNbd from "../../src/Simulation/Nbd.ts"
import { FIXED_OFFERING_ID } from "../../src/Simulation/World.ts"
import * as Cloud from "../support/Cloud.ts"

const JOB = 2_000
const POLL = 1_000
const DEVICE = 300
const PASS = 2_000
/** A call without an answer is undecided until its signature has expired, with the planner's margin. */
const EXPIRY = 65_000
const QUARANTINE = 30_000
/** Full jitter after up to four failures in a row. */
const BACKOFF = 16_000
/** A full pass finds what no poke told of. */
const RESYNC = 66_000

/** L2: three passes, a chain of four jobs one after another for each volume on the longest VM queue, and what faults leave behind. */
const bound = (volumesPerVm: number) =>
  3 * PASS + 4 * (JOB * volumesPerVm + POLL) + DEVICE + EXPIRY + QUARANTINE + BACKOFF + RESYNC

const mutations = ["createVolume", "attachVolume", "detachVolume", "deleteVolume", "createTags", "deleteTags"]

const mutationsOf = (lab: Cloud.Lab) =>
  Effect.map(Clock.currentTimeMillis, (now) => {
    const { calls } = lab.world.truth(now)
    return mutations.reduce((sum, command) => sum + (calls[command] ?? 0), 0)
  })

const writes = Effect.gen(function* () {
  const sql = yield* SqlClient.SqlClient
  const [row] = yield* sql<{ readonly n: number }>`SELECT total_changes() AS n`
  return row?.n ?? -1
})

/** The world, not the controller, says whether everything is as declared. */
const matches = (lab: Cloud.Lab) =>
  Effect.gen(function* () {
    const store = yield* Store
    const now = yield* Clock.currentTimeMillis
    const { volumes } = lab.world.truth(now)
    for (const { spec, binding, name } of yield* store.declarations) {
      const volume = volumes.find((v) => v.id === binding.volume_id)
      if (volume === undefined) return `${name} has no volume`
      const want =
        spec.attached_to === "appliance" ? Cloud.appliance : spec.attached_to === "none" ? null : spec.attached_to
      if (volume.vm_id !== want) return `${name} is on ${volume.vm_id}, not ${want}`
      const served = SimulatedNbd.serves(lab.nbd, serialOf(volume.id as VolumeId), now)
      if (served !== (want === Cloud.appliance && spec.export_wanted === true)) return `${name} served: ${served}`
    }
    return "matches"
  })

const quiet = (lab: Cloud.Lab) =>
  Effect.gen(function* () {
    const reconciler = yield* Reconciler
    yield* Cloud.pass(5_000)
    const before = { calls: yield* mutationsOf(lab), writes: yield* writes, loads: lab.nbd.loads }
    for (let i = 0; i < 50; i++) yield* reconciler.sync
    yield* Cloud.pass(10 * 60_000, 5_000)
    assert.deepStrictEqual({ calls: yield* mutationsOf(lab), writes: yield* writes, loads: lab.nbd.loads }, before)
  })

/** Nothing leaked, nothing doubled, nothing done that no controller should do. */
const sound = (lab: Cloud.Lab, created: number) =>
  Effect.gen(function* () {
    const truth = lab.world.truth(yield* Clock.currentTimeMillis)
    assert.deepStrictEqual(truth.violations, [])
    const data = truth.volumes.filter((v) => v.type === "DATADISK")
    assert.strictEqual(data.length, created, "volumes in the world (S9, S10)")
    const store = yield* Store
    assert.deepStrictEqual(yield* store.unresolved, [])
  })

const settledAndMatching = (lab: Cloud.Lab) =>
  Effect.gen(function* () {
    return (yield* Cloud.allSettled) && (yield* matches(lab)) === "matches"
  })

const run = <A, E>(
  lab: Cloud.Lab,
  body: Effect.Effect<A, E, Reconciler | Store | SqlClient.SqlClient>,
  seed = "convergence"
) =>
  Effect.gen(function* () {
    yield* TestClock.setTime(Cloud.START)
    yield* body.pipe(Effect.provide(Layer.fresh(Cloud.layer(lab))))
  }).pipe((effect) => Effect.suspend(() => Effect.withRandom(effect, Random.make(seed))))

/** As `run`, with other limits than the defaults. */
const runWithin = <A, E>(
  lab: Cloud.Lab,
  limits: Partial<Limits>,
  body: Effect.Effect<A, E, Reconciler | Store | SqlClient.SqlClient>
) =>
  TestClock.setTime(Cloud.START).pipe(
    Effect.andThen(body.pipe(Effect.provide(Layer.fresh(Cloud.layer(lab, ":memory:", limits))))),
    Effect.withRandom(Random.make("limits"))
  )

const dataDisks = (lab: Cloud.Lab) =>
  Effect.map(Clock.currentTimeMillis, (now) => lab.world.truth(now).volumes.filter((v) => v.type === "DATADISK").length)

const converge = (lab: Cloud.Lab, volumesPerVm: number) =>
  Effect.gen(function* () {
    const took = yield* Cloud.until(settledAndMatching(lab), bound(volumesPerVm), 500)
    if (took >= 0) return took
    const { plan } = yield* (yield* Reconciler).view
    const open = plan?.items
      .filter((i) => !i.settled)
      .map((i) => `${i.name}: ${i.next?._tag ?? "-"} ${i.blocked?.reason}: ${i.blocked?.message}`)
    return assert.fail(`did not converge within ${bound(volumesPerVm)} ms: ${yield* matches(lab)}\n${open?.join("\n")}`)
  })

describe("the whole loop on the in-memory world", () => {
  it.effect("creates, tags, attaches and exports what is declared, then is quiet for 50 passes (L1, L2, S18)", () => {
    const lab = Cloud.make()
    return run(
      lab,
      Effect.gen(function* () {
        for (let i = 0; i < 5; i++) yield* Cloud.declare(`disk-${i}`)
        yield* Cloud.declare("elsewhere", { attached_to: Cloud.testVm })
        yield* Cloud.declare("shelf", { attached_to: "none", export_wanted: false })
        yield* converge(lab, 5)
        yield* sound(lab, 7)
        yield* quiet(lab)
      })
    )
  })

  it.effect("moves a volume to the test VM and back: the export goes and comes once each (S11, S12)", () => {
    const lab = Cloud.make()
    return run(
      lab,
      Effect.gen(function* () {
        yield* Cloud.declare("disk")
        yield* Cloud.declare("bystander")
        yield* converge(lab, 2)
        const before = lab.nbd.loads
        yield* Cloud.declare("disk", { attached_to: Cloud.testVm })
        yield* converge(lab, 2)
        assert.strictEqual(lab.nbd.loads, before + 1)
        yield* Cloud.declare("disk", { attached_to: "appliance" })
        yield* converge(lab, 2)
        assert.strictEqual(lab.nbd.loads, before + 2)
        yield* sound(lab, 2)
        yield* quiet(lab)
      })
    )
  })

  it.effect("holds a leaving volume while a client is connected, and lets it go when the client leaves (N10)", () => {
    const lab = Cloud.make()
    return run(
      lab,
      Effect.gen(function* () {
        const declared = yield* Cloud.declare("disk")
        yield* converge(lab, 1)
        const bound = yield* Cloud.declaration("disk")
        const pid = SimulatedNbd.connect(
          lab.nbd,
          bound?.binding.export?.name ?? "",
          "127.0.0.1:5000",
          yield* Clock.currentTimeMillis
        )
        assert.isNotNull(pid)
        yield* Cloud.declare("disk", { attached_to: "none", export_wanted: false })
        yield* Cloud.pass(120_000, 1_000)
        const { plan } = yield* (yield* Reconciler).view
        assert.strictEqual(plan?.items.find((i) => i.uid === declared.uid)?.blocked?.reason, "InUse")
        assert.strictEqual(yield* matches(lab), `disk is on ${Cloud.appliance}, not null`)
        SimulatedNbd.leave(lab.nbd, pid ?? 0)
        yield* converge(lab, 1)
        yield* sound(lab, 1)
      })
    )
  })

  it.effect("repairs what somebody undid in CloudStack and on the NBD server (L7, M6)", () => {
    const lab = Cloud.make()
    return run(
      lab,
      Effect.gen(function* () {
        yield* Cloud.declare("disk")
        yield* Cloud.declare("other")
        yield* converge(lab, 2)
        const volume = (yield* Cloud.declaration("disk"))?.binding.volume_id ?? ""
        lab.world.watchExports(() => false)
        lab.world.act({ act: "detach", volume_id: volume }, yield* Clock.currentTimeMillis)
        SimulatedNbd.kill(lab.nbd)
        yield* converge(lab, 2)
        yield* sound(lab, 2)
        yield* quiet(lab)
      })
    )
  })

  it.effect("deletes only when asked, after the grace, and frees the name (S6)", () => {
    const lab = Cloud.make()
    return run(
      lab,
      Effect.gen(function* () {
        yield* Cloud.declare("kept")
        yield* Cloud.declare("gone", { deletion_policy: "delete" })
        yield* converge(lab, 2)
        const now = yield* Clock.currentTimeMillis
        const at = (ms: number) => new Date(ms).toISOString()
        yield* Cloud.declare(
          "gone",
          {},
          { policy: "delete", requested_at: at(now), by: "test", execute_after: at(now + 600_000) }
        )
        yield* Cloud.pass(300_000, 2_000)
        assert.strictEqual(
          lab.world.truth(yield* Clock.currentTimeMillis).volumes.filter((v) => v.type === "DATADISK").length,
          2
        )
        yield* Cloud.pass(480_000, 2_000)
        assert.isNull(yield* Cloud.declaration("gone"))
        yield* sound(lab, 1)
        yield* quiet(lab)
      })
    )
  })

  it.effect("creates on an offering of one fixed size, which refuses to be told a size", () => {
    const lab = Cloud.make()
    return run(
      lab,
      Effect.gen(function* () {
        yield* Cloud.declare("disk", { disk_offering_id: FIXED_OFFERING_ID as OfferingId, size: 20 * GIB })
        yield* converge(lab, 1)
        yield* sound(lab, 1)
      })
    )
  })

  it.effect("acts on nothing while the gate is closed, and on everything once it opens", () => {
    const lab = Cloud.make()
    lab.hold.reason = "somebody is looking"
    return run(
      lab,
      Effect.gen(function* () {
        yield* Cloud.declare("disk")
        yield* Cloud.pass(120_000, 1_000)
        assert.strictEqual(yield* mutationsOf(lab), 0)
        lab.hold.reason = null
        yield* converge(lab, 1)
      })
    )
  })
})

describe("the budget for destruction", () => {
  const removed = (now: number) => {
    const at = new Date(now).toISOString()
    return { policy: "delete", requested_at: at, by: "test", execute_after: at } as const
  }

  it.effect("holds what exceeds it until a person approves exactly that, and then carries it out (S6, S17)", () => {
    const lab = Cloud.make()
    return runWithin(
      lab,
      { destructive_per_hour: 2 },
      Effect.gen(function* () {
        const names = ["a", "b", "c", "d"]
        for (const name of names) yield* Cloud.declare(name, { attached_to: "none", export_wanted: false })
        yield* converge(lab, 4)
        for (const name of names) yield* Cloud.declare(name, {}, removed(yield* Clock.currentTimeMillis))
        yield* Cloud.pass(180_000, 1_000)
        assert.strictEqual(yield* dataDisks(lab), 2)

        const reconciler = yield* Reconciler
        const { plan } = yield* reconciler.plan(null)
        assert.deepStrictEqual(
          plan.held.map((one) => one.action),
          ["delete", "delete"]
        )
        const now = yield* Clock.currentTimeMillis
        const store = yield* Store
        yield* store.approve(
          plan.held.map((one) => ({ ...one, digest: plan.digest ?? "", expires_at: now + 3_600_000 }))
        )
        yield* reconciler.poke(plan.held.map((one) => one.uid))
        yield* Cloud.pass(180_000, 1_000)
        assert.strictEqual(yield* dataDisks(lab), 0)
        assert.deepStrictEqual(yield* store.declarations, [])
        yield* sound(lab, 0)
      })
    )
  })

  it.effect(
    "stops creating and destroying when too much is missing at once, and goes on when it is back (S17, O5)",
    () => {
      const lab = Cloud.make()
      return run(
        lab,
        Effect.gen(function* () {
          for (const name of ["a", "b", "c", "d"])
            yield* Cloud.declare(name, { attached_to: "none", export_wanted: false })
          yield* converge(lab, 4)
          // Another account's keys, or a lost permission: the account sees its own appliance and none of its volumes.
          lab.world.setFaults([{ kind: "empty_list", command: "listVolumes" }], yield* Clock.currentTimeMillis)
          const before = yield* mutationsOf(lab)
          yield* Cloud.declare("a", {}, removed(yield* Clock.currentTimeMillis))
          yield* Cloud.declare("e", { attached_to: "none", export_wanted: false })
          yield* Cloud.pass(300_000, 1_000)
          assert.strictEqual(yield* mutationsOf(lab), before)
          lab.world.setFaults([], yield* Clock.currentTimeMillis)
          yield* Cloud.pass(300_000, 1_000)
          assert.isNull(yield* Cloud.declaration("a"))
          yield* converge(lab, 4)
          yield* sound(lab, 4)
        })
      )
    }
  )
})

describe("one fault at a time", () => {
  const onMutation = (command: string): ReadonlyArray<Fault> => [
    { kind: "answer_lost_after_effect", command, times: 1 },
    { kind: "answer_lost_before_effect", command, times: 1 },
    { kind: "late_effect", command, delay_ms: 20_000, times: 1 },
    { kind: "hang", command, effect: true, times: 1 },
    { kind: "http_5xx", command, effect: true, times: 1 },
    { kind: "http_5xx", command, effect: false, times: 1 },
    { kind: "throttled", command, times: 2 },
    { kind: "maintenance", command, times: 2 },
    { kind: "unauthorized", command, times: 1 },
    { kind: "refused", command, code: 535, times: 1 },
    { kind: "empty_body", command, times: 1 },
    { kind: "invalid_json", command, times: 1 },
    { kind: "html", command, times: 1 }
  ]
  const onJob = (command: string): ReadonlyArray<Fault> => [
    { kind: "job_lost", command, times: 1 },
    { kind: "job_failed", command, effect: "none", times: 1 },
    { kind: "job_failed", command, effect: "full", times: 1 },
    {
      kind: "job_failed",
      command,
      effect: "none",
      code: 431,
      text: "Volume state must be in Allocated, Ready or in Uploaded state",
      times: 1
    },
    { kind: "slow_job", command, ms: 30_000, times: 1 }
  ]
  const onRead: ReadonlyArray<Fault> = [
    { kind: "unstable_pages", how: "skip", times: 5 },
    { kind: "unstable_pages", how: "duplicate", times: 5 },
    { kind: "partial_list", times: 5 },
    { kind: "wrong_count", by: 3, times: 5 },
    { kind: "empty_list", times: 5 },
    { kind: "http_5xx", command: "listVolumes", times: 8 },
    { kind: "html", command: "listVolumes", times: 8 },
    { kind: "throttled", command: "listVolumes", times: 5 },
    { kind: "stale_list", age_ms: 5_000, times: 5 },
    { kind: "slow_answer", command: "listVolumes", ms: 600, times: 40 },
    { kind: "clock_skew", ms: 120_000 },
    { kind: "clock_skew", ms: -120_000 },
    { kind: "size_rounded_up", times: 2 },
    { kind: "straggler_detach", delay_ms: 1_000, times: 1 },
    { kind: "device_delay", ms: 20_000, times: 1 },
    { kind: "guest_unread", times: 10 },
    { kind: "detach_timeout", completes_after_ms: 8_000, times: 1 }
  ]
  const cases: ReadonlyArray<Fault> = [
    ...["createVolume", "attachVolume", "detachVolume", "createTags"].flatMap(onMutation),
    ...["attachVolume", "detachVolume"].flatMap(onJob),
    ...onRead
  ]

  it.effect.each(cases.map((fault) => ({ name: JSON.stringify(fault), fault })))(
    "converges after $name, without a leak, a double or a violation (C2, C3, C5, C6, C8, J1, J2, J3, O2, O3, O5, D1, S9, S10)",
    ({ fault, name }) => {
      const lab = Cloud.make()
      return run(
        lab,
        Effect.gen(function* () {
          const before =
            fault.command === "detachVolume" || fault.kind === "detach_timeout" || fault.kind === "straggler_detach"
          if (!before) lab.world.setFaults([fault], Cloud.START)
          yield* Cloud.declare("disk")
          yield* Cloud.declare("other")
          yield* converge(lab, 2)
          if (before) lab.world.setFaults([fault], yield* Clock.currentTimeMillis)
          yield* Cloud.declare("disk", { attached_to: Cloud.testVm })
          yield* Cloud.pass(5_000)
          yield* converge(lab, 2)
          yield* sound(lab, 2)
          for (const { fault, hits } of lab.world.faults()) assert.isAbove(hits, 0, `${fault.kind} was never reached`)
        }),
        name
      )
    }
  )
})

describe("from any state", () => {
  const placements: ReadonlyArray<Spec["attached_to"]> = ["appliance", "none", Cloud.testVm, Cloud.otherVm]
  const history = fc.array(
    fc.record({
      name: fc.constantFrom("a", "b", "c"),
      to: fc.constantFrom(...placements),
      exported: fc.boolean(),
      wait: fc.integer({ min: 0, max: 40_000 }),
      monkey: fc.constantFrom("none", "none", "detach", "kill", "edit"),
      fault: fc.constantFrom<ReadonlyArray<Fault["kind"]>>(
        [],
        [],
        ["answer_lost_after_effect"],
        ["job_lost"],
        ["http_5xx"],
        ["partial_list"],
        ["unauthorized"]
      )
    }),
    { minLength: 1, maxLength: 6 }
  )
  type Step = typeof history extends fc.Arbitrary<infer A> ? (A extends ReadonlyArray<infer S> ? S : never) : never

  const live = (lab: Cloud.Lab, step: Step) =>
    Effect.gen(function* () {
      const now = yield* Clock.currentTimeMillis
      lab.world.setFaults(
        step.fault.map((kind) => ({ kind, probability: 0.3, times: 3 }) as Fault),
        now
      )
      yield* Cloud.declare(step.name, { attached_to: step.to, export_wanted: step.exported })
      const volume = (yield* Cloud.declaration(step.name))?.binding.volume_id ?? null
      if (step.monkey === "kill") SimulatedNbd.kill(lab.nbd)
      if (step.monkey === "edit") SimulatedNbd.edit(lab.nbd, [])
      if (step.monkey === "detach" && volume !== null) lab.world.act({ act: "detach", volume_id: volume }, now)
      yield* Cloud.pass(step.wait, 500)
    })

  it.effect.prop(
    "whatever was wished, undone and lost before, calm ends in a match (L1, L2, L6, S1, S2)",
    [history, fc.nat(1_000_000)],
    ([steps, seed]) => {
      const lab = Cloud.make({ seed, root_admin: seed % 2 === 0 })
      // The monitor cannot tell a person's detach of a served volume from ours; what is served is judged at the end.
      lab.world.watchExports(() => false)
      return run(
        lab,
        Effect.gen(function* () {
          for (const step of steps) yield* live(lab, step)
          lab.world.setFaults([], yield* Clock.currentTimeMillis)
          // Backing off may have grown while faults were on; somebody's next write ends it, as it would in life.
          yield* converge(lab, 6)
          const names = new Set(steps.map((step) => step.name))
          yield* sound(lab, names.size)
        }),
        String(seed)
      )
    },
    { fastCheck: { numRuns: 10, seed: 20_260_301 }, timeout: 240_000 }
  )
})
