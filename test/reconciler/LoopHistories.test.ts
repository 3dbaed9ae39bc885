import * as SqlClient from "@effect/sql/SqlClient"
import { assert, describe, it } from "@effect/vitest"
import { Clock, Effect, Fiber, Stream, TestClock } from "effect"
import { Reconciler } from "../../reconciler/Reconciler.ts"
import { Store } from "../../reconciler/Store.ts"
import * as Wake from "../../reconciler/Wake.ts"
import { StoreUnavailable } from "../../schema/Errors.ts"
import type { Uid } from "../../schema/Ids.ts"
import { limits } from "../../schema/Settings.ts"
import * as SimulatedNbd from "../../src/Simulation/Nbd.ts"
import * as Cloud from "../support/Cloud.ts"
import { alike, altering, converged, run, truth } from "../support/Loops.ts"

const dataDisks = (lab: Cloud.Lab) =>
  Effect.map(truth(lab), ({ volumes }) => volumes.filter((v) => v.type === "DATADISK"))

const shelf = { attached_to: "none", export_wanted: false } as const
const names = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"] as const

/** The first nine creates hang one after another, so that the tenth waits for its turn for a minute and a half. */
const hangs = { kind: "hang", command: "createVolume", effect: false, times: 9 } as const

describe("a call that waited for its turn", () => {
  it.effect("is not judged by a reading that was under way when it was sent (S2, S9, S10)", () => {
    const lab = Cloud.make()
    return run(
      lab,
      Effect.gen(function* () {
        lab.world.setFaults([hangs, { kind: "slow_answer", command: "listVolumes", ms: 5_000 }], Cloud.START)
        for (const name of names) yield* Cloud.declare(name, shelf)
        yield* Cloud.pass(150_000)
        lab.world.setFaults([], yield* Clock.currentTimeMillis)
        yield* converged(200_000)
        assert.deepStrictEqual((yield* dataDisks(lab)).map((v) => v.name).toSorted(), [...names])
      })
    )
  })

  it.effect("is not sent once its declaration has changed (S15)", () => {
    const lab = Cloud.make()
    return run(
      lab,
      Effect.gen(function* () {
        lab.world.setFaults([hangs], Cloud.START)
        for (const name of names) yield* Cloud.declare(name, shelf)
        yield* Cloud.pass(5_000)
        const at = new Date(yield* Clock.currentTimeMillis).toISOString()
        yield* Cloud.declare("j", {}, { policy: "forget", requested_at: at, by: "test", execute_after: at })
        yield* Cloud.pass(120_000)
        assert.notInclude(
          (yield* dataDisks(lab)).map((v) => v.name),
          "j"
        )
        assert.isNull(yield* Cloud.declaration("j"))
      })
    )
  })

  it.effect("and whose answer could not be written down lives as long as its signature (B1, C2, C3, S10)", () => {
    const lab = Cloud.make()
    const database = { writable: true }
    const down = new StoreUnavailable({ detail: "the disk is full", outcome_unknown: false })
    return run(
      lab,
      Effect.gen(function* () {
        const late = { kind: "late_effect", command: "createVolume", delay_ms: 30_000, times: 1 } as const
        lab.world.setFaults([hangs, late], Cloud.START)
        for (const name of names) yield* Cloud.declare(name, shelf)
        yield* Cloud.pass(88_000)
        database.writable = false
        yield* Cloud.pass(7_000)
        database.writable = true
        yield* Cloud.pass(60_000)
        assert.deepStrictEqual(
          lab.world.faults().map(({ hits }) => hits),
          [9, 1]
        )
        lab.world.setFaults([], yield* Clock.currentTimeMillis)
        yield* converged(200_000)
        assert.deepStrictEqual((yield* dataDisks(lab)).map((v) => v.name).toSorted(), [...names])
      }),
      altering({
        store: (store) => ({
          ...store,
          advance: (id, advance) => (database.writable ? store.advance(id, advance) : Effect.fail(down))
        })
      })
    )
  })
})

describe("a pass that somebody asked for", () => {
  it.effect("goes on when the asker has gone, and what it began is settled (L4)", () => {
    const lab = Cloud.make()
    const load = { ms: 0 }
    const hour = { resync_idle_ms: 3_600_000, resync_busy_ms: 3_600_000, poll_ms: 3_600_000 }
    return run(
      lab,
      Effect.gen(function* () {
        const reconciler = yield* Reconciler
        const store = yield* Store
        yield* Cloud.declare("disk")
        for (let i = 0; i < 20; i++) yield* Effect.andThen(reconciler.sync, Cloud.pass(3_000))
        assert.isTrue(yield* Cloud.allSettled)
        SimulatedNbd.edit(lab.nbd, [])
        load.ms = 5_000
        const asker = yield* Effect.fork(reconciler.sync)
        yield* Cloud.pass(1_000)
        assert.strictEqual((yield* store.unresolved).length, 1)
        yield* Fiber.interrupt(asker)
        yield* Cloud.pass(10_000)
        for (let i = 0; i < 5; i++) {
          yield* Effect.fork(reconciler.sync)
          yield* Cloud.pass(10_000)
        }
        assert.deepStrictEqual(yield* store.unresolved, [])
        assert.isTrue(yield* Cloud.allSettled)
      }),
      altering({
        devices: (devices) => ({ ...devices, pokes: Stream.never }),
        nbd: (nbd) => ({
          ...nbd,
          pokes: Stream.never,
          load: (request) => Effect.suspend(() => Effect.delay(nbd.load(request), load.ms))
        })
      }),
      hour
    )
  })

  it.effect("wakes the loop, which sleeps by an older reckoning (L5)", () =>
    Effect.gen(function* () {
      const wake = yield* Wake.make({ resync_idle_ms: 60_000, resync_busy_ms: 15_000, poll_ms: 1_000 })
      yield* wake.next
      yield* wake.passed({ full: true, only: null, flight: new Set(), unwell: false, due_at: null })
      const next = yield* Effect.fork(wake.next)
      yield* TestClock.adjust("10 seconds")
      const uid = "00000000-0000-4000-8000-000000000001" as Uid
      yield* wake.passed({ full: true, only: null, flight: new Set([uid]), unwell: false, due_at: null })
      yield* TestClock.adjust("1 second")
      assert.deepStrictEqual(yield* Fiber.join(next), new Set([uid]))
    })
  )
})

it.effect("a back-off that ends while other volumes are looked at wakes its own volume (L5)", () =>
  Effect.gen(function* () {
    const uid = (n: number) => `00000000-0000-4000-8000-00000000000${n}` as Uid
    const wake = yield* Wake.make({ resync_idle_ms: 60_000, resync_busy_ms: 15_000, poll_ms: 1_000 })
    yield* wake.next
    yield* wake.passed({ full: true, only: null, flight: new Set(), unwell: false, due_at: null })
    yield* wake.failed(uid(1), "refused")
    yield* TestClock.adjust("3 seconds")
    yield* wake.passed({ full: false, only: new Set([uid(2)]), flight: new Set(), unwell: false, due_at: null })
    const next = yield* Effect.fork(wake.next)
    yield* TestClock.adjust("1 second")
    assert.deepStrictEqual(yield* Fiber.join(next), new Set([uid(1)]))
  })
)

describe("the loop outlives", () => {
  it.effect("a port that is interrupted from inside (P5, L5)", () => {
    const lab = Cloud.make()
    const broken = { times: 3 }
    return run(
      lab,
      Effect.gen(function* () {
        yield* Cloud.declare("disk")
        yield* converged(120_000)
        assert.strictEqual(broken.times, 0)
      }),
      altering({
        nbd: (nbd) => ({
          ...nbd,
          observe: (wanted) =>
            Effect.suspend(() => (broken.times-- > 0 ? Effect.interrupt : nbd.observe(wanted))).pipe(
              Effect.ensuring(Effect.sync(() => (broken.times = Math.max(0, broken.times))))
            )
        })
      })
    )
  })

  it.effect("a defect in one source, which leaves what needs the others going (P5, S19)", () => {
    const lab = Cloud.make()
    return run(
      lab,
      Effect.gen(function* () {
        yield* Cloud.declare("disk", shelf)
        yield* Cloud.pass(30_000)
        assert.strictEqual((yield* dataDisks(lab)).length, 1)
        const { inventory } = yield* (yield* Reconciler).view
        assert.strictEqual(inventory?.nbd._tag, "Unread")
      }),
      altering({ nbd: (nbd) => ({ ...nbd, observe: () => Effect.die(new Error("a bug")) }) })
    )
  })

  it.effect("a database that cannot be written, without reading CloudStack every second (B15, S22)", () => {
    const lab = Cloud.make()
    const down = new StoreUnavailable({ detail: "the disk is full", outcome_unknown: false })
    const writable = { yes: false }
    return run(
      lab,
      Effect.gen(function* () {
        yield* Cloud.declare("disk", shelf)
        yield* Cloud.pass(600_000, 1_000)
        assert.isBelow((yield* truth(lab)).calls["listVolumes"] ?? 0, 100)
        writable.yes = true
        yield* converged(60_000)
      }),
      altering({
        store: (store) => ({
          ...store,
          intend: (action) => (writable.yes ? store.intend(action) : Effect.fail(down))
        })
      })
    )
  })
})

describe("an operation past the limbo limit", () => {
  const slowly = { poll_ms: 10_000, resync_busy_ms: 60_000 }
  const outage = { kind: "http_5xx", command: "listVolumes" } as const

  it.effect("goes on by itself when the outage is over and its job had failed (L4)", () => {
    const lab = Cloud.make()
    return run(
      lab,
      Effect.gen(function* () {
        lab.world.setFaults([{ kind: "job_failed", command: "attachVolume", effect: "none", times: 1 }], Cloud.START)
        yield* Cloud.declare("disk")
        const store = yield* Store
        const attaching = Effect.map(store.unresolved, (all) =>
          all.some((o) => o.type === "attach" && o.job_id !== null)
        )
        assert.isAtLeast(yield* Cloud.until(attaching, 60_000), 0)
        const faults = lab.world.faults().map(({ fault }) => fault)
        lab.world.setFaults([...faults, outage], yield* Clock.currentTimeMillis)
        yield* Cloud.pass(limits.limbo_ms + 60_000, 10_000)
        assert.strictEqual((yield* store.unresolved)[0]?.phase, "needs_operator")
        lab.world.setFaults([], yield* Clock.currentTimeMillis)
        yield* converged(180_000)
      }),
      alike,
      slowly
    )
  })

  it.effect("that deleted its volume is settled by two later readings (L4, S7)", () => {
    const lab = Cloud.make()
    return run(
      lab,
      Effect.gen(function* () {
        const store = yield* Store
        yield* Cloud.declare("disk", { ...shelf, deletion_policy: "delete" })
        yield* converged(60_000)
        const at = new Date(yield* Clock.currentTimeMillis).toISOString()
        yield* Cloud.declare("disk", {}, { policy: "delete", requested_at: at, by: "test", execute_after: at })
        const deleting = Effect.map(store.unresolved, (all) =>
          all.some((o) => o.type === "delete" && o.submitted_at !== null)
        )
        assert.isAtLeast(yield* Cloud.until(deleting, 30_000, 20), 0)
        lab.world.setFaults([outage], yield* Clock.currentTimeMillis)
        yield* Cloud.pass(limits.limbo_ms + 60_000, 10_000)
        assert.strictEqual((yield* store.unresolved)[0]?.phase, "needs_operator")
        lab.world.setFaults([], yield* Clock.currentTimeMillis)
        yield* Cloud.pass(180_000, 1_000)
        assert.deepStrictEqual(yield* store.unresolved, [])
        assert.isNull(yield* Cloud.declaration("disk"))
      }),
      alike,
      slowly
    )
  })

  it.effect("is written down once, not anew with every minute it waits (S18)", () => {
    const lab = Cloud.make()
    return run(
      lab,
      Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        const writes = Effect.map(sql<{ readonly n: number }>`SELECT total_changes() AS n`, ([row]) => row?.n ?? -1)
        lab.world.setFaults([{ kind: "slow_job", command: "attachVolume", ms: 86_400_000 }], Cloud.START)
        yield* Cloud.declare("disk")
        yield* Cloud.pass(limits.limbo_ms + 120_000, 10_000)
        assert.strictEqual((yield* (yield* Store).unresolved)[0]?.phase, "needs_operator")
        const before = yield* writes
        yield* Cloud.pass(600_000, 10_000)
        assert.strictEqual(yield* writes, before)
      }),
      alike,
      slowly
    )
  })
})

it.effect(
  "the time a disk may take to come up begins when CloudStack shows it attached, not with the call (S7)",
  () => {
    const lab = Cloud.make({ device_delay_ms: 5_000 })
    return run(
      lab,
      Effect.gen(function* () {
        const slow = { kind: "slow_job", command: "attachVolume", ms: limits.device_timeout_ms + 10_000 } as const
        lab.world.setFaults([slow], Cloud.START)
        yield* Cloud.declare("disk")
        yield* converged(180_000)
        const { items } = yield* (yield* Store).operations({ type: "attach" })
        assert.deepStrictEqual(
          items.map((o) => o.status),
          ["completed"]
        )
      })
    )
  }
)
