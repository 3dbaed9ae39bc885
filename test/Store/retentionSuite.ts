import { assert, describe } from "@effect/vitest"
import { SqlClient } from "@effect/sql/SqlClient"
import { Array as Arr, Clock, Effect } from "effect"
import * as TestClock from "effect/TestClock"
import { type Kept, Store } from "../../reconciler/Store.ts"
import { attach, call, callId, condition, removal, settled, spec, uidOf, uuid, write } from "./Samples.ts"
import type { Probe, Test } from "./suite.ts"

const DAY = 86_400_000

/** Until nothing is left to prune. How many rows went, and in how many batches. */
const pruneAll = (kept: Partial<Kept> = {}) =>
  Effect.gen(function* () {
    const store = yield* Store
    const now = yield* Clock.currentTimeMillis
    const batches: Array<number> = []
    for (;;) {
      const count = yield* store.prune({ now, operations_ms: 90 * DAY, events_ms: 90 * DAY, ...kept })
      if (count === 0) return batches
      batches.push(count)
    }
  })

const kept = Effect.gen(function* () {
  const { items } = yield* (yield* Store).operations({ limit: 1000 })
  return items.map(({ id }) => id).toSorted()
})

/** An action that has settled. */
const settle = (n: number, generation = 1) =>
  Effect.gen(function* () {
    const store = yield* Store
    const { operation_id: id } = yield* store.intend(attach(n, { generation }))
    yield* store.advance(id, { ...settled })
    yield* TestClock.adjust(1000)
    return id
  })

/** Counts by type and status, as metrics show them. */
const counts = Effect.map(
  Effect.flatMap(Store, (store) => store.statistics),
  ({ counts }) => counts.map(({ type, status, count }) => `${type} ${status} ${count}`)
)

export const retentionSuite = (test: Test, probe: Probe) => {
  describe("retention of operations", () => {
    test(
      "prunes what ended long enough ago, and counts it on",
      Effect.gen(function* () {
        const store = yield* Store
        yield* store.write([write(1), write(2)])
        const [first, second] = [yield* settle(1), yield* settle(1)]
        const failed = yield* store.intend(attach(1))
        yield* store.advance(failed.operation_id, { phase: "refused", status: "failed", error: "no" })
        const before = yield* counts
        assert.deepStrictEqual(before, ["attach completed 2", "attach failed 1"])
        yield* TestClock.adjust(90 * DAY - 4000)
        assert.deepStrictEqual(yield* pruneAll({ events_ms: 1000 * DAY }), [])
        yield* TestClock.adjust(4000)
        const newest = yield* settle(1)
        assert.deepStrictEqual(yield* pruneAll({ events_ms: 1000 * DAY }), [2])
        // The refused one is the newest that failed.
        assert.deepStrictEqual(yield* kept, [failed.operation_id, newest].toSorted())
        assert.deepStrictEqual(yield* counts, ["attach completed 3", "attach failed 1"])
        for (const id of [first, second]) assert.strictEqual((yield* store.operation(id))._tag, "None")
        yield* TestClock.adjust(91 * DAY)
        yield* settle(1)
        assert.deepStrictEqual(yield* pruneAll({ events_ms: 1000 * DAY }), [1])
        assert.deepStrictEqual(yield* counts, ["attach completed 4", "attach failed 1"])
      })
    )

    test(
      "never prunes what is unresolved or open, however old (S9)",
      Effect.gen(function* () {
        const store = yield* Store
        yield* store.write([write(1), write(2), write(3)], { calls: [call(2)] })
        const limbo = yield* store.intend(attach(1))
        yield* store.advance(limbo.operation_id, { phase: "uncertain", status: "executing" })
        // Its wish is not wholly taken back yet.
        yield* store.write([], { calls: [call(3, { call: 9 })] })
        yield* store.advance(callId(9), { phase: "uncertain", status: "failed", error: "time-out" })
        // Nothing but what they are keeps them, for none of the declarations lives any more.
        const sql = yield* SqlClient
        yield* sql`UPDATE declarations SET removed_at = '2020-01-01T00:00:00.000Z'`
        yield* TestClock.adjust(1000 * DAY)
        yield* pruneAll()
        assert.deepStrictEqual(yield* kept, [limbo.operation_id, callId(2), callId(9)].toSorted())
        assert.deepStrictEqual(
          (yield* store.unresolved).map(({ id }) => id),
          [limbo.operation_id]
        )
        assert.deepStrictEqual((yield* store.calls).map(({ id }) => id).toSorted(), [callId(2), callId(9)].toSorted())
      })
    )

    test(
      "keeps the newest of each kind of a declaration that lives, and none of one that is gone",
      Effect.gen(function* () {
        const store = yield* Store
        yield* store.write([write(1), write(2)])
        const old = [yield* settle(1), yield* settle(2)]
        const newest = [yield* settle(1), yield* settle(2)]
        yield* TestClock.adjust(91 * DAY)
        yield* pruneAll()
        assert.deepStrictEqual(yield* kept, newest.toSorted())
        assert.notDeepEqual(old, newest)
        yield* store.write([write(2, { expected_generation: 1, generation: 2, deletion: removal, kind: "removed" })])
        yield* pruneAll()
        assert.deepStrictEqual(yield* kept, newest.toSorted(), "its removal is not carried out")
        yield* store.finishRemoval(uidOf(2))
        yield* pruneAll()
        assert.deepStrictEqual(yield* kept, newest.slice(0, 1))
      })
    )

    test(
      "still refuses an undelete after the delete that was sent long ago (S6)",
      Effect.gen(function* () {
        const store = yield* Store
        const gone = { expected_generation: 1, generation: 2, deletion: removal, kind: "removed" } as const
        yield* store.write([write(1), write(2)])
        yield* store.write([write(1, gone)])
        const sent = yield* store.intend({
          _tag: "Delete",
          uid: uidOf(1),
          name: write(1).name,
          generation: 2,
          cause: "declaration",
          reason: "removed",
          destructive: true,
          volume_id: attach(1).volume_id
        })
        yield* store.advance(sent.operation_id, { ...settled })
        yield* TestClock.adjust(1000 * DAY)
        yield* pruneAll()
        const back = { expected_generation: 2, generation: 3, deletion: null, kind: "undeleted" } as const
        const refused = yield* Effect.flip(store.write([write(1, back)]))
        assert.strictEqual(refused._tag, "PreconditionLost")
      })
    )

    test(
      "keeps a call for as long as one of its actions",
      Effect.gen(function* () {
        const store = yield* Store
        yield* store.write([write(1)], { calls: [call(1)] })
        const limbo = yield* store.intend(attach(1))
        yield* store.advance(callId(1), { ...settled })
        yield* TestClock.adjust(10 * DAY)
        yield* store.write([write(1, { expected_generation: 1, generation: 2, spec: spec({ read_only: true }) })], {
          calls: [call(1, { call: 2, generation: 2 })]
        })
        yield* store.advance(callId(2), { ...settled })
        yield* TestClock.adjust(200 * DAY)
        yield* pruneAll()
        assert.deepStrictEqual(yield* kept, [limbo.operation_id, callId(1), callId(2)].toSorted())
        yield* store.advance(limbo.operation_id, { ...settled })
        const later = yield* settle(1, 2)
        yield* TestClock.adjust(100 * DAY)
        yield* pruneAll()
        assert.deepStrictEqual(yield* kept, [later, callId(2)].toSorted())
      })
    )

    test(
      "goes in batches that end, past old ones that stay",
      Effect.gen(function* () {
        const store = yield* Store
        const sql = yield* SqlClient
        yield* store.write([write(1)])
        yield* settle(1)
        const [row] = yield* sql`SELECT * FROM volume_operations`
        const copies = Arr.makeBy(1203, (n) => ({ ...row, id: `op-${uuid(0x900000 + n)}` }))
        for (const chunk of Arr.chunksOf(copies, 100)) yield* sql`INSERT INTO volume_operations ${sql.insert(chunk)}`
        yield* TestClock.adjust(91 * DAY)
        const batches = yield* pruneAll({ events_ms: 1000 * DAY })
        assert.deepStrictEqual(batches, [500, 500, 203])
        assert.strictEqual((yield* kept).length, 1)
        assert.deepStrictEqual(yield* counts, ["attach completed 1204"])
      })
    )
  })

  describe("retention of events and conditions", () => {
    test(
      "prunes events by age, and never gives a number twice",
      Effect.gen(function* () {
        const store = yield* Store
        const tell = (name: string) => store.record({ kind: "approved", name, actor: null, message: name })
        yield* Effect.forEach(["a", "b", "c"], tell)
        yield* TestClock.adjust(60 * DAY)
        yield* tell("d")
        yield* TestClock.adjust(31 * DAY)
        assert.deepStrictEqual(yield* pruneAll(), [3])
        const { oldest, newest } = yield* store.eventRange
        assert.strictEqual(oldest, newest)
        const names = (yield* store.events({ after: 0, limit: 10 })).map(({ name }) => name)
        assert.deepStrictEqual(names, ["d"])
        yield* TestClock.adjust(1000 * DAY)
        assert.deepStrictEqual(yield* pruneAll(), [], "the newest stays")
        yield* tell("e")
        assert.strictEqual((yield* store.eventRange).newest, newest + 1)
        assert.deepStrictEqual(yield* pruneAll(), [1])
      })
    )

    test(
      "drops the conditions of a declaration once its removal is a month past",
      Effect.gen(function* () {
        const store = yield* Store
        const sql = yield* SqlClient
        yield* store.write([write(1), write(2)])
        yield* store.saveConditions([
          { uid: uidOf(1), conditions: [condition()] },
          { uid: uidOf(2), conditions: [condition()] }
        ])
        yield* store.write([write(1, { expected_generation: 1, generation: 2, deletion: removal, kind: "removed" })])
        yield* store.finishRemoval(uidOf(1))
        const shown = Effect.map(store.conditions, (all) => [...all.keys()].toSorted())
        const stored = Effect.map(sql<{ uid: string }>`SELECT uid FROM conditions ORDER BY uid`, (rows) =>
          rows.map(({ uid }) => uid)
        )
        yield* TestClock.adjust(29 * DAY)
        yield* pruneAll()
        assert.deepStrictEqual(yield* shown, [uidOf(1), uidOf(2)])
        yield* TestClock.adjust(2 * DAY)
        yield* pruneAll()
        assert.deepStrictEqual(yield* shown, [uidOf(2)])
        assert.deepStrictEqual(yield* stored, [uidOf(2)])
      })
    )

    test(
      "writes nothing where there is nothing to prune (S18)",
      Effect.gen(function* () {
        const store = yield* Store
        yield* store.write([write(1)])
        yield* settle(1)
        const before = yield* probe.written
        assert.deepStrictEqual(yield* pruneAll(), [])
        assert.strictEqual(yield* probe.written, before)
      })
    )
  })
}
