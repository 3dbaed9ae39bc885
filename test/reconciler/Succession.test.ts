import * as SqlClient from "@effect/sql/SqlClient"
import { assert, describe, it } from "@effect/vitest"
import { Clock, Context, Deferred, Effect, Layer, Random, SubscriptionRef, TestClock } from "effect"
import { Gate } from "../../reconciler/Gate.ts"
import { Leadership, leading, notLeading, obstacle, type Role } from "../../reconciler/Leadership.ts"
import { Reconciler } from "../../reconciler/Reconciler.ts"
import { Store } from "../../reconciler/Store.ts"
import { GateClosed, StoreUnavailable } from "../../schema/Errors.ts"
import * as Guest from "../../src/Simulation/Guest.ts"
import * as SimulatedNbd from "../../src/Simulation/Nbd.ts"
import { migrate } from "../../src/Store/Migrate.ts"
import * as Sql from "../../src/Store/Sql.ts"
import * as Sqlite from "../../src/Store/Sqlite.ts"
import * as Cloud from "../support/Cloud.ts"

/**
 * Two whole controllers on one world and one database (T7). Who leads is the test's to say; that a process which does not
 * know it yet is refused by the database, and by the check before each call, is what a MySQL does (test/Store/Leader).
 */
interface Election {
  term: number
}

interface Controller {
  /** What it believes; the truth is the election's. */
  readonly believe: (role: Role) => Effect.Effect<void>
  readonly reconciler: Reconciler["Type"]
  readonly store: Store["Type"]
}

/** What is done right before and right after each effect of one controller; and when the database fails it. */
interface Surroundings {
  readonly boundary: Effect.Effect<void>
  readonly database: { away: boolean }
}

const writes: ReadonlySet<string> = new Set<keyof Store["Type"]>([
  "write",
  "bind",
  "finishRemoval",
  "intend",
  "advance",
  "settle",
  "approve",
  "saveConditions",
  "saveDeviceMappings",
  "setMaintenance",
  "record"
])

type Answer = Effect.Effect<unknown, StoreUnavailable>
type Method = (...all: ReadonlyArray<never>) => Answer

/** The store with a fence as MySQL's, asked when a write comes to be written. */
const fenced = (store: Store["Type"], role: Effect.Effect<Role>, election: Election, around: Surroundings) => {
  const { boundary, database } = around
  const reached = Effect.suspend(() => (database.away ? Effect.fail(outage) : Effect.void))
  const admitted = Effect.gen(function* () {
    const now = yield* role
    if (now._tag !== "Leading") return yield* notLeading(now)
    const term = yield* Effect.orElseFail(leading(role), () => deposed)
    if (term !== election.term) return yield* deposed
  })
  const wrapped = Object.entries(store).map(([name, member]) => {
    if (typeof member !== "function") return [name, Effect.andThen(reached, member as Answer)]
    const method = member as unknown as Method
    const reading: Method = (...all) => Effect.andThen(reached, method(...all))
    const writing: Method = (...all) =>
      boundary.pipe(Effect.andThen(admitted), Effect.andThen(reading(...all)), Effect.zipLeft(boundary))
    return [name, writes.has(name) ? writing : reading]
  })
  return Object.fromEntries(wrapped) as Store["Type"]
}

const outage = new StoreUnavailable({ detail: "connect ECONNREFUSED", outcome_unknown: false })
const deposed = new StoreUnavailable({ detail: "another process leads", outcome_unknown: false, problem: "standby" })

const controller = (lab: Cloud.Lab, sql: SqlClient.SqlClient, election: Election, around: Surroundings) =>
  Effect.gen(function* () {
    const believed = yield* SubscriptionRef.make<Role>(standby)
    const role = SubscriptionRef.get(believed)
    const check = Effect.gen(function* () {
      const term = yield* leading(role)
      if (term !== election.term) return yield* new GateClosed({ detail: "another process leads by now" })
    })
    const leadership = Layer.succeed(Leadership, { role, roles: believed.changes, check })
    const gate = Layer.succeed(Gate, {
      check: around.boundary.pipe(Effect.andThen(check), Effect.zipLeft(around.boundary)),
      reason: Effect.map(role, obstacle)
    })
    const inner = Layer.effect(
      Store,
      Effect.map(Store, (store) => fenced(store, role, election, around))
    ).pipe(Layer.provide(Sql.layerUnder({})))
    const ports = Layer.mergeAll(
      Cloud.cloudstack(lab),
      Guest.layerDevices(lab.world),
      SimulatedNbd.layer(lab.nbd),
      inner
    ).pipe(Layer.provideMerge(gate), Layer.provideMerge(leadership))
    const layers = Layer.provideMerge(Cloud.loop(), ports).pipe(Layer.provide(Layer.succeed(SqlClient.SqlClient, sql)))
    const services = yield* Layer.build(Layer.fresh(layers))
    const made: Controller = {
      believe: (role) => SubscriptionRef.set(believed, role),
      reconciler: Context.get(services, Reconciler),
      store: Context.get(services, Store)
    }
    return made
  })

const lead = (election: Election, one: Controller) =>
  Effect.gen(function* () {
    election.term += 1
    yield* one.believe({ _tag: "Leading", term: election.term, since: yield* Clock.currentTimeMillis })
  })

const standby: Role = { _tag: "Standby", leader: "the other one" }
const untroubled: Surroundings = { boundary: Effect.void, database: { away: false } }

/** When its time has come a process is stopped at its next effect: nothing of it goes on until it is woken. */
const stopping = (isTime: Effect.Effect<boolean>) =>
  Effect.gen(function* () {
    const stopped = yield* Deferred.make<void>()
    const woken = yield* Deferred.make<void>()
    const boundary = Effect.gen(function* () {
      if (!(yield* Deferred.isDone(stopped)) && !(yield* isTime)) return
      yield* Deferred.succeed(stopped, undefined)
      yield* Deferred.await(woken)
    })
    return { boundary, isStopped: Deferred.isDone(stopped), wake: Deferred.succeed(woken, undefined) }
  })

const database = Effect.gen(function* () {
  const sql = Context.get(yield* Layer.build(Sqlite.layer(Sqlite.MEMORY)), SqlClient.SqlClient)
  yield* Effect.provideService(migrate, SqlClient.SqlClient, sql)
  return sql
})

const settledIn = ({ reconciler, store }: Controller) =>
  Effect.gen(function* () {
    const { plan } = yield* reconciler.view
    const idle = (yield* store.unresolved).length === 0
    return idle && plan !== null && plan.items.length > 0 && plan.items.every((i) => i.settled && i.next === null)
  })

const declare = (one: Controller, name: string) =>
  Cloud.declare(name).pipe(Effect.provideService(Store, one.store), Effect.provideService(Reconciler, one.reconciler))

/** One history, and the world that it leaves: null once the process made all its effects without being stopped. */
const history = (n: number) =>
  Effect.gen(function* () {
    yield* TestClock.setTime(Cloud.START)
    const lab = Cloud.make({ seed: n })
    const sql = yield* database
    const election: Election = { term: 0 }
    let passed = 0
    const stop = yield* stopping(Effect.sync(() => (passed += 1) >= n))
    const a = yield* controller(lab, sql, election, { ...untroubled, boundary: stop.boundary })
    const b = yield* controller(lab, sql, election, untroubled)
    yield* lead(election, b)
    yield* declare(b, "disk")
    yield* b.believe(standby)
    yield* lead(election, a)
    const came = yield* Cloud.until(
      Effect.flatMap(stop.isStopped, (stopped) => (stopped ? Effect.succeed(true) : settledIn(a))),
      300_000,
      1_000
    )
    assert.isAtLeast(came, 0, "neither stopped nor done")
    if (!(yield* stop.isStopped)) return null
    yield* Cloud.pass(6_000, 1_000)
    yield* lead(election, b)
    // Every other one wakes up while what it signed is still valid, and all is under way.
    if (n % 2 === 0) yield* Effect.andThen(Cloud.pass(3_000, 500), stop.wake)
    const took = yield* Cloud.until(settledIn(b), 400_000, 1_000)
    assert.isAtLeast(took, 0, `stopped at ${n}: ${JSON.stringify((yield* b.reconciler.view).plan?.items)}`)
    yield* stop.wake
    yield* Cloud.pass(10_000, 1_000)
    yield* a.believe(standby)
    yield* Cloud.pass(10_000, 1_000)
    return lab
  }).pipe(Effect.scoped, Effect.withRandom(Random.make("succession")))

describe("a process that is stopped at any effect, and wakes up when another one leads", () => {
  it.effect(
    "has changed nothing since: each volume is there once, attached once, and no two calls met (M1, M2, P4, S2, S16)",
    () =>
      Effect.gen(function* () {
        let n = 1
        // Every third of them is as many as there is time for, and is now before an effect and now after it.
        for (; ; n += 3) {
          const end = yield* history(n)
          if (end === null) break
          const { volumes, violations } = end.world.truth(yield* Clock.currentTimeMillis)
          assert.deepStrictEqual(violations, [], `stopped at ${n}`)
          const disks = volumes.filter(({ type }) => type === "DATADISK")
          assert.deepStrictEqual(
            disks.map(({ name, vm_id }) => [name, vm_id]),
            [["disk", Cloud.appliance]],
            `stopped at ${n}`
          )
        }
        assert.isAbove(n, 30, "effects of one convergence")
      }),
    240_000
  )
})

const mutations = (lab: Cloud.Lab) =>
  Effect.map(Clock.currentTimeMillis, (now) => {
    const { calls } = lab.world.truth(now)
    const names = ["createVolume", "attachVolume", "detachVolume", "deleteVolume", "createTags", "deleteTags"]
    return names.map((name) => calls[name] ?? 0).join()
  })

const disksOf = (lab: Cloud.Lab) =>
  Effect.map(Clock.currentTimeMillis, (now) =>
    lab.world
      .truth(now)
      .volumes.filter(({ type }) => type === "DATADISK")
      .map(({ name }) => name)
      .toSorted()
  )

it.effect("a successor acts at once, save on a volume whose operation its predecessor left unresolved (M2, S16)", () =>
  Effect.gen(function* () {
    yield* TestClock.setTime(Cloud.START)
    const lab = Cloud.make()
    const sql = yield* database
    const election: Election = { term: 0 }
    const begun = sql`SELECT id FROM volume_operations WHERE unresolved_uid IS NOT NULL`
    const stop = yield* stopping(Effect.orDie(Effect.map(begun, (rows) => rows.length > 0)))
    const a = yield* controller(lab, sql, election, { ...untroubled, boundary: stop.boundary })
    const b = yield* controller(lab, sql, election, untroubled)
    yield* lead(election, a)
    yield* Effect.fork(declare(a, "left"))
    assert.isAtLeast(yield* Cloud.until(stop.isStopped, 30_000), 0)
    yield* Cloud.pass(6_000, 1_000)
    yield* lead(election, b)
    const since = yield* Clock.currentTimeMillis
    yield* declare(b, "right")
    const first = yield* Cloud.until(
      Effect.map(disksOf(lab), (names) => names.length > 0),
      20_000
    )
    assert.isAtLeast(first, 0, "the successor waits although nothing of its predecessor's is in the way")
    yield* Cloud.pass(since + 55_000 - (yield* Clock.currentTimeMillis), 1_000)
    assert.deepStrictEqual(yield* disksOf(lab), ["right"], "the other call may still arrive")
    assert.isAtLeast(yield* Cloud.until(settledIn(b), 300_000, 1_000), 0)
    assert.deepStrictEqual(yield* disksOf(lab), ["left", "right"])
    assert.deepStrictEqual(lab.world.truth(yield* Clock.currentTimeMillis).violations, [])
  }).pipe(Effect.scoped, Effect.withRandom(Random.make("successor")))
)

it.effect(
  "while the database is away the world is looked at and shown, nothing is called, and all resumes (B1, L8)",
  () =>
    Effect.gen(function* () {
      yield* TestClock.setTime(Cloud.START)
      const lab = Cloud.make()
      const election: Election = { term: 0 }
      const around = { ...untroubled, database: { away: false } }
      const a = yield* controller(lab, yield* database, election, around)
      yield* lead(election, a)
      const { uid } = yield* declare(a, "disk")
      assert.isAtLeast(yield* Cloud.until(settledIn(a), 120_000, 1_000), 0)
      const attached = Effect.map(a.reconciler.view, ({ statuses }) => statuses.get(uid)?.attached_to)
      assert.strictEqual(yield* attached, Cloud.appliance)

      around.database.away = true
      yield* a.believe({ _tag: "Unreachable", detail: "connect ECONNREFUSED" })
      const now = yield* Clock.currentTimeMillis
      const disk = lab.world.truth(now).volumes.find(({ name }) => name === "disk")
      lab.world.act({ act: "detach", volume_id: disk?.id ?? "" }, now)
      const before = yield* mutations(lab)
      yield* Cloud.pass(120_000, 1_000)
      assert.isNull(yield* attached, "what is shown is what is so")
      const { last_pass, plan } = yield* a.reconciler.view
      assert.include(last_pass?.problems.join() ?? "", "ECONNREFUSED")
      assert.deepStrictEqual(
        plan?.items.map(({ next }) => next),
        [null]
      )
      assert.strictEqual(yield* mutations(lab), before)
      assert.strictEqual((yield* Effect.flip(a.reconciler.sync))._tag, "StoreUnavailable")

      around.database.away = false
      yield* lead(election, a)
      assert.isAtLeast(yield* Cloud.until(settledIn(a), 120_000, 1_000), 0)
      assert.strictEqual(yield* attached, Cloud.appliance)
    }).pipe(Effect.scoped, Effect.withRandom(Random.make("outage")))
)

it.effect("a standby that has led names the newest operation of the leader, not its own (S7)", () =>
  Effect.gen(function* () {
    yield* TestClock.setTime(Cloud.START)
    const lab = Cloud.make()
    const sql = yield* database
    const election: Election = { term: 0 }
    const a = yield* controller(lab, sql, election, untroubled)
    const b = yield* controller(lab, sql, election, untroubled)
    yield* lead(election, a)
    const { uid } = yield* declare(a, "disk")
    assert.isAtLeast(yield* Cloud.until(settledIn(a), 120_000, 1_000), 0)
    const newest = Effect.map(a.store.operations({ limit: 1 }), ({ items }) => items[0]?.id)
    const own = yield* newest
    const shown = Effect.map(a.reconciler.view, ({ statuses }) => statuses.get(uid)?.last_operation_id)
    assert.strictEqual(yield* shown, own)

    yield* a.believe(standby)
    yield* lead(election, b)
    const now = yield* Clock.currentTimeMillis
    const disk = lab.world.truth(now).volumes.find(({ name }) => name === "disk")
    lab.world.act({ act: "detach", volume_id: disk?.id ?? "" }, now)
    const again = Effect.map(newest, (id) => id !== own)
    assert.isAtLeast(yield* Cloud.until(Effect.orDie(again), 300_000, 1_000), 0)
    assert.isAtLeast(yield* Cloud.until(settledIn(b), 300_000, 1_000), 0)
    yield* Cloud.pass(120_000, 1_000)
    assert.strictEqual(yield* shown, yield* newest)
  }).pipe(Effect.scoped, Effect.withRandom(Random.make("newest")))
)
