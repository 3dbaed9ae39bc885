import { assert, describe, it } from "@effect/vitest"
import { Effect, Layer, Logger, LogLevel, Ref, Stream, TestClock } from "effect"
import { Leadership, type Role } from "../../reconciler/Leadership.ts"
import * as Retention from "../../reconciler/Retention.ts"
import { type Kept, Store } from "../../reconciler/Store.ts"
import { StoreUnavailable } from "../../schema/Errors.ts"

const DAY = 86_400_000
const leading: Role = { _tag: "Leading", term: 1, since: 0 }

/** A store that has so many rows to prune, fifty a batch, in a process of this role; what it was asked. */
const site = (rows: number, first: Role) =>
  Effect.gen(function* () {
    const role = yield* Ref.make(first)
    const world = { left: rows, broken: false, asked: [] as Array<Kept> }
    const prune = (kept: Kept) =>
      Effect.suspend(() => {
        world.asked.push(kept)
        if (world.broken)
          return new StoreUnavailable({ detail: "gone", outcome_unknown: false, problem: "unreachable" })
        const count = Math.min(50, world.left)
        world.left -= count
        return Effect.succeed(count)
      })
    const layer = Retention.layer({ operations_kept_ms: 90 * DAY, events_kept_ms: 30 * DAY }).pipe(
      // Nothing else of the store is reached for: a test would die on it.
      Layer.provide(Layer.succeed(Store, { prune } as unknown as Store["Type"])),
      Layer.provide(
        Layer.succeed(Leadership, {
          role: Ref.get(role),
          roles: Stream.never,
          check: Effect.void
        } as Leadership["Type"])
      ),
      Layer.provide(Logger.minimumLogLevel(LogLevel.None))
    )
    yield* Layer.build(layer)
    yield* TestClock.adjust(0)
    return { world, role }
  })

describe("retention", () => {
  it.scoped("prunes a batch at a time with pauses, in rounds, as old as the settings say", () =>
    Effect.gen(function* () {
      const { world } = yield* site(120, leading)
      assert.strictEqual(world.left, 70, "one batch, then others may write")
      yield* TestClock.adjust("2 seconds")
      assert.strictEqual(world.left, 0)
      assert.deepStrictEqual(world.asked[0], { now: 0, operations_ms: 90 * DAY, events_ms: 30 * DAY })
      const asked = world.asked.length
      yield* TestClock.adjust("5 minutes")
      assert.strictEqual(world.asked.length, asked, "nothing is asked until the next round")
      world.left = 10
      yield* TestClock.adjust("10 minutes")
      assert.strictEqual(world.left, 0)
      assert.isAbove(world.asked.at(-1)?.now ?? 0, 0)
    })
  )

  it.scoped("leaves it to the leader (S16)", () =>
    Effect.gen(function* () {
      const { world, role } = yield* site(120, { _tag: "Standby", leader: null })
      yield* TestClock.adjust("1 hour")
      assert.deepStrictEqual(world.asked, [])
      yield* Ref.set(role, leading)
      yield* TestClock.adjust("20 minutes")
      assert.strictEqual(world.left, 0)
    })
  )

  it.scoped("goes on after a round that failed (L5)", () =>
    Effect.gen(function* () {
      const { world } = yield* site(120, leading)
      world.broken = true
      yield* TestClock.adjust("1 hour")
      assert.strictEqual(world.left, 70)
      world.broken = false
      yield* TestClock.adjust("20 minutes")
      assert.strictEqual(world.left, 0)
    })
  )
})
