import { assert, describe, it } from "@effect/vitest"
import { Clock, Effect, Ref, Stream, TestClock } from "effect"
import { Reconciler, type View } from "../../reconciler/Reconciler.ts"
import * as Rounds from "../../reconciler/Rounds.ts"
import { blank } from "../../reconciler/Standing.ts"
import { Store } from "../../reconciler/Store.ts"
import * as Views from "../../reconciler/View.ts"
import type { Uid } from "../../schema/Ids.ts"
import type { NbdReading } from "../../schema/Inventory.ts"
import * as Exports from "../../src/Http/Exports.ts"
import * as SimulatedNbd from "../../src/Simulation/Nbd.ts"
import * as Cloud from "../support/Cloud.ts"
import { altering, converged, run, truth } from "../support/Loops.ts"
import * as Worlds from "../support/Worlds.ts"

const NUMBERS = Array.from({ length: 30 }, (_, n) => n + 1)

/** Thirty served exports, and the rounds alone: what they asked, and whom they told. */
const walking = Effect.gen(function* () {
  const now = yield* Clock.currentTimeMillis
  const all = NUMBERS.map(Worlds.volumeId)
  const seen = Worlds.inPlace(all)
  const reading = seen.nbd._tag === "Known" ? seen.nbd.value : assert.fail("unread")
  const old = reading.verifications.map((one) => ({ ...one, verified_at: now }))
  const inventory = { ...seen, nbd: { ...seen.nbd, started_at: now, value: { ...reading, verifications: old } } }
  const view = yield* Ref.make<View>({ ...Views.blank, inventory })
  const world = { reading, asked: [] as Array<ReadonlyArray<string>>, nudged: [] as Array<Uid> }
  const nbd = {
    observe: (names: ReadonlyArray<string>) =>
      Effect.map(Clock.currentTimeMillis, (at): NbdReading => {
        world.asked.push(names)
        const verifications = world.reading.verifications.filter((one) => names.includes(one.name))
        return { ...world.reading, verifications: verifications.map((one) => ({ ...one, verified_at: at })) }
      })
  }
  const declarations = NUMBERS.map((n) =>
    Worlds.declaration(`disk-${n}`, { uid: Worlds.uidOf(n), binding: Worlds.settledBinding(Worlds.volumeId(n)) })
  )
  const rounds = yield* Rounds.make(
    nbd,
    { view: Ref.get(view), verified: (source) => Ref.update(view, (before) => Views.verified(before, source)) },
    Effect.succeed({ ...blank, declarations }),
    { nudge: (uids) => Effect.sync(() => void world.nudged.push(...uids)) }
  )
  yield* Effect.forkScoped(rounds.walk)
  return { world, rounds, view }
})

describe("the rounds", () => {
  it.scoped(
    "ask for each of thirty exports within two minutes, a few at a time, and tell nobody when all is well",
    () =>
      Effect.gen(function* () {
        const { world } = yield* walking
        yield* TestClock.adjust("2 minutes")
        assert.strictEqual(new Set(world.asked.flat()).size, 30)
        assert.isAtMost(Math.max(...world.asked.map(({ length }) => length)), 10)
        assert.isAtMost(world.asked.length, 4)
        assert.deepStrictEqual(world.nudged, [])
      })
  )

  it.scoped(
    "tell of an export that is served from another device, in another size, or not at all, once each (N7, L7)",
    () =>
      Effect.gen(function* () {
        const { world } = yield* walking
        const change = [{ device: "252:999" }, { size: 4096 }, { outcome: "denied" as const }]
        world.reading = {
          ...world.reading,
          verifications: world.reading.verifications.map((one, index) => ({ ...one, ...change[index] }))
        }
        yield* TestClock.adjust("4 minutes")
        assert.deepStrictEqual(world.nudged.toSorted(), [1, 2, 3].map(Worlds.uidOf))
      })
  )

  it.scoped("tell of all when the server itself is another, and ask for all after a load or a change", () =>
    Effect.gen(function* () {
      const { rounds, world } = yield* walking
      yield* rounds.ring
      yield* TestClock.adjust("1 second")
      assert.deepStrictEqual(
        world.asked.map(({ length }) => length),
        [30]
      )
      world.reading = { ...world.reading, server: { ...world.reading.server, pid: 777 } }
      for (let flap = 0; flap < 100; flap++) yield* Effect.andThen(rounds.ring, TestClock.adjust("100 millis"))
      assert.strictEqual(new Set(world.nudged).size, 30)
      assert.isAtMost(world.asked.length, 7, "flaps do not become a storm of handshakes (D2)")
    })
  )

  it.scoped(
    "look every two seconds who is connected while a volume waits for that, and tell of whoever leaves (N10)",
    () =>
      Effect.gen(function* () {
        const { view, world } = yield* walking
        const [holder] = [{ pid: 7, command: "nbd-server", device: "252:98", peer: "10.0.0.7:4000", since: null }]
        world.reading = { ...world.reading, holders: [holder] }
        const blocked = { reason: "InUse", category: "blocked", message: "", suggestion: "" } as const
        const item = { uid: Worlds.uidOf(1), blocked }
        const plan = {
          at: 0,
          items: [item],
          held: [],
          digest: null,
          withheld: [],
          notices: []
        } as unknown as View["plan"]
        yield* Ref.update(view, (before) => ({ ...before, plan }))
        yield* TestClock.adjust("35 seconds")
        world.nudged = []
        world.asked = []
        yield* TestClock.adjust("10 seconds")
        assert.deepStrictEqual([world.nudged, world.asked.flat()], [[], []])
        assert.isAtLeast(world.asked.length, 4)
        world.reading = { ...world.reading, holders: [] }
        yield* TestClock.adjust("2 seconds")
        assert.deepStrictEqual(world.nudged, [Worlds.uidOf(1)])
      })
  )
})

/** As GET /api/v1/exports answers it. */
const shown = (lab: Cloud.Lab) =>
  Effect.gen(function* () {
    const { inventory, statuses } = yield* (yield* Reconciler).view
    const declarations = yield* (yield* Store).declarations
    const [one] = Exports.make({ backend: "simulated", host: "127.0.0.1", port: 1 }, declarations, inventory).exports
    const status = statuses.get(declarations[0]?.uid ?? ("" as Uid))
    return { ...(one ?? assert.fail("no export")), loads: lab.nbd.loads, status: status?.export?.verified_at ?? null }
  })

const silent = altering({
  devices: (devices) => ({ ...devices, pokes: Stream.never }),
  nbd: (nbd) => ({ ...nbd, pokes: Stream.never })
})
const hour = { resync_idle_ms: 3_600_000, resync_busy_ms: 3_600_000 }

describe("between passes", () => {
  it.effect("what is served is asked again and again, and CloudStack not once (S18)", () => {
    const lab = Cloud.make()
    return run(
      lab,
      Effect.gen(function* () {
        yield* Cloud.declare("disk")
        yield* converged(120_000)
        yield* Cloud.pass(30_000)
        const [before, calls] = [yield* shown(lab), (yield* truth(lab)).calls]
        yield* Cloud.pass(120_000)
        const after = yield* shown(lab)
        assert.deepStrictEqual((yield* truth(lab)).calls, calls)
        const age = Date.parse(after.verified_at ?? "") - Date.parse(before.verified_at ?? "")
        assert.isAtLeast(age, 90_000)
        assert.strictEqual(after.status, after.verified_at, "its status says so too")
        assert.strictEqual(after.loads, before.loads)
      }),
      silent,
      hour
    )
  })

  it.effect(
    "a server that died without a word is found within half a minute, and what it served is back (N5, L7)",
    () => {
      const lab = Cloud.make()
      return run(
        lab,
        Effect.gen(function* () {
          yield* Cloud.declare("disk")
          yield* converged(120_000)
          yield* Cloud.pass(30_000)
          lab.nbd.state = "absent"
          yield* Cloud.pass(40_000)
          assert.isTrue((yield* shown(lab)).served)
          assert.strictEqual(lab.nbd.state, "running")
        }),
        silent,
        hour
      )
    }
  )

  it.effect("what is shown as served is right within five seconds, also while CloudStack hangs (N11, N12)", () => {
    const lab = Cloud.make()
    return run(
      lab,
      Effect.gen(function* () {
        yield* Cloud.declare("disk")
        yield* converged(120_000)
        const hanging = { kind: "slow_answer", command: "listVolumes", ms: 60_000 } as const
        lab.world.setFaults([hanging], yield* Clock.currentTimeMillis)
        SimulatedNbd.hang(lab.nbd)
        yield* Cloud.pass(5_000)
        assert.isFalse((yield* shown(lab)).served)
        SimulatedNbd.revive(lab.nbd)
        yield* Cloud.pass(5_000)
        assert.isTrue((yield* shown(lab)).served)
      })
    )
  })
})
