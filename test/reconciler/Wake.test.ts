import { assert, describe, it } from "@effect/vitest"
import { Chunk, Effect, Fiber, Option, Random, TestClock } from "effect"
import * as Wake from "../../reconciler/Wake.ts"
import type { Uid } from "../../schema/Ids.ts"

const uid = (n: number) => `00000000-0000-4000-8000-${String(n).padStart(12, "0")}` as Uid
const settings = { resync_idle_ms: 60_000, resync_busy_ms: 15_000, poll_ms: 1_000 }
const none: ReadonlySet<Uid> = new Set()

/** What the next pass would look at, or none when nothing is due yet. */
const due = (wake: Wake.Wake) =>
  Effect.gen(function* () {
    const fiber = yield* Effect.fork(wake.next)
    yield* Effect.yieldNow()
    yield* TestClock.adjust(0)
    const result = yield* Fiber.poll(fiber)
    yield* Fiber.interrupt(fiber)
    return yield* Option.match(result, {
      onNone: () => Effect.succeed("nothing" as const),
      onSome: (exit) => Effect.map(exit, (only) => (only === null ? ("everything" as const) : [...only].toSorted()))
    })
  })

const afterFirstPass = Effect.gen(function* () {
  const wake = yield* Wake.make(settings)
  assert.strictEqual(yield* due(wake), "everything")
  yield* wake.passed({ full: true, only: null, flight: none, unwell: false, due_at: null })
  return wake
})

describe("what makes the next pass happen", () => {
  it.effect("a daemon begins with everything, then rests until the resync period is over", () =>
    Effect.gen(function* () {
      const wake = yield* afterFirstPass
      assert.strictEqual(yield* due(wake), "nothing")
      yield* TestClock.adjust("53 seconds")
      assert.strictEqual(yield* due(wake), "nothing")
      yield* TestClock.adjust("14 seconds")
      assert.strictEqual(yield* due(wake), "everything")
    })
  )

  it.effect("a written declaration is looked at in the same instant, alone", () =>
    Effect.gen(function* () {
      const wake = yield* afterFirstPass
      yield* wake.poke([uid(1)])
      assert.deepStrictEqual(yield* due(wake), [uid(1)])
      assert.strictEqual(yield* due(wake), "nothing")
    })
  )

  it.effect("a declaration that is gone is backed off from no more", () =>
    Effect.gen(function* () {
      const wake = yield* afterFirstPass
      yield* wake.failed(uid(1), "no")
      yield* wake.failed(uid(2), "no")
      yield* wake.gone(uid(1))
      assert.deepStrictEqual([...(yield* wake.backoff).keys()], [uid(2)])
      yield* TestClock.adjust("10 seconds")
      assert.deepStrictEqual(yield* due(wake), [uid(2)])
    })
  )

  it.effect("volumes in flight are polled together, not one by one", () =>
    Effect.gen(function* () {
      const wake = yield* afterFirstPass
      yield* wake.passed({ full: false, only: none, flight: new Set([uid(1), uid(2)]), unwell: false, due_at: null })
      assert.strictEqual(yield* due(wake), "nothing")
      yield* TestClock.adjust("1 second")
      assert.deepStrictEqual(yield* due(wake), [uid(1), uid(2)])
    })
  )

  it.effect("a partial pass forgets only the volumes it looked at", () =>
    Effect.gen(function* () {
      const wake = yield* afterFirstPass
      yield* wake.passed({ full: false, only: none, flight: new Set([uid(1), uid(2)]), unwell: false, due_at: null })
      yield* wake.passed({ full: false, only: new Set([uid(1)]), flight: none, unwell: false, due_at: null })
      yield* TestClock.adjust("1 second")
      assert.deepStrictEqual(yield* due(wake), [uid(2)])
    })
  )

  it.effect("answers to our own calls are gathered, but never polled for more often than the period", () =>
    Effect.gen(function* () {
      const wake = yield* afterFirstPass
      yield* TestClock.adjust("5 seconds")
      yield* wake.passed({ full: false, only: none, flight: new Set([uid(1)]), unwell: false, due_at: null })
      yield* wake.answered
      yield* TestClock.adjust("900 millis")
      assert.strictEqual(yield* due(wake), "nothing")
      yield* TestClock.adjust("100 millis")
      assert.deepStrictEqual(yield* due(wake), [uid(1)])
    })
  )

  it.effect("a clock that is set back puts off neither a pass nor a back-off by what it was set back (T1, L5)", () =>
    Effect.gen(function* () {
      yield* TestClock.setTime(7_200_000)
      const wake = yield* afterFirstPass
      yield* wake.failed(uid(1), "no")
      yield* TestClock.setTime(3_600_000)
      assert.strictEqual(yield* due(wake), "everything")
      assert.isAtMost((yield* wake.backoff).get(uid(1))?.retry_at ?? 0, 3_600_000 + 300_000)
      yield* wake.passed({ full: true, only: null, flight: none, unwell: false, due_at: null })
      assert.strictEqual(yield* due(wake), "nothing", "once, and not hot")
      yield* TestClock.adjust("67 seconds")
      assert.strictEqual(yield* due(wake), "everything")
    })
  )

  it.effect("a wish for everything during a full pass is not lost (L5)", () =>
    Effect.gen(function* () {
      const wake = yield* Wake.make(settings)
      assert.strictEqual(yield* due(wake), "everything")
      yield* wake.pokeAll
      yield* wake.passed({ full: true, only: null, flight: none, unwell: false, due_at: null })
      assert.strictEqual(yield* due(wake), "everything")
    })
  )
})

describe("backing off", () => {
  const seeded = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
    Effect.suspend(() => Effect.withRandom(effect, Random.make("wake")))

  it.effect("doubles with jitter up to five minutes (S22)", () =>
    seeded(
      Effect.gen(function* () {
        const wake = yield* afterFirstPass
        const waits: Array<number> = []
        for (let i = 1; i <= 14; i++) {
          yield* wake.failed(uid(1), "refused")
          const entry = (yield* wake.backoff).get(uid(1))
          const wait = (entry?.retry_at ?? 0) - (yield* TestClock.currentTimeMillis)
          assert.isAtLeast(wait, 500)
          assert.isAtMost(wait, Math.min(300_000, 1_000 * 2 ** i))
          waits.push(wait)
        }
        assert.isAbove(Math.max(...waits), 60_000)
        assert.isAbove(new Set(waits).size, 10)
      })
    )
  )

  it.effect("ends with a new look at the volume, without touching others", () =>
    seeded(
      Effect.gen(function* () {
        const wake = yield* afterFirstPass
        yield* wake.failed(uid(1), "refused")
        assert.strictEqual(yield* due(wake), "nothing")
        yield* TestClock.adjust("3 seconds")
        assert.deepStrictEqual(yield* due(wake), [uid(1)])
      })
    )
  )

  it.effect("is forgotten after two stable observations, or when somebody writes the declaration", () =>
    seeded(
      Effect.gen(function* () {
        const wake = yield* afterFirstPass
        yield* wake.failed(uid(1), "refused")
        yield* wake.failed(uid(2), "refused")
        yield* wake.stable(uid(1))
        assert.isTrue((yield* wake.backoff).has(uid(1)))
        yield* wake.stable(uid(1))
        yield* wake.poke([uid(2)])
        assert.strictEqual((yield* wake.backoff).size, 0)
      })
    )
  )
})

describe("a crowd of pokes", () => {
  it.effect("ends in one pass over all of them", () =>
    Effect.gen(function* () {
      const wake = yield* afterFirstPass
      const uids = Chunk.toReadonlyArray(Chunk.makeBy(200, uid))
      yield* Effect.forEach(uids, (one) => wake.poke([one]), { concurrency: "unbounded", discard: true })
      assert.deepStrictEqual(yield* due(wake), uids.toSorted())
      assert.strictEqual(yield* due(wake), "nothing")
    })
  )
})
