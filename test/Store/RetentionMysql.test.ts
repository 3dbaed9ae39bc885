import { assert, describe, it } from "@effect/vitest"
import { Clock, Effect, Layer, TestClock } from "effect"
import { Store } from "../../reconciler/Store.ts"
import * as Mysql from "../../src/Store/Mysql.ts"
import * as Sql from "../../src/Store/Sql.ts"
import * as MariaDb from "../support/MariaDb.ts"
import * as Documented from "./Documented.ts"
import { attach, settled, write } from "./Samples.ts"

const DAY = 86_400_000

describe("retention in the predecessor's own table", () => {
  it.scoped("prunes what is ours and leaves what it wrote, whatever its character set, and counts both", () =>
    Effect.gen(function* () {
      const server = yield* MariaDb.start("--character-set-server=latin1")
      const target = yield* server.database()
      const latin = `ALTER DATABASE ${target.database} CHARACTER SET latin1 COLLATE latin1_swedish_ci`
      yield* server.query(target.database, latin, ...Documented.tables, ...Documented.rows)
      yield* TestClock.setTime(Date.parse("2026-03-01T12:00:00Z"))
      const seen = Effect.gen(function* () {
        const store = yield* Store
        const { items } = yield* store.operations({ limit: 100 })
        const { counts } = yield* store.statistics
        return { ids: items.map(({ id }) => String(id)), counts: counts.reduce((sum, { count }) => sum + count, 0) }
      })
      yield* Effect.gen(function* () {
        const store = yield* Store
        assert.deepStrictEqual((yield* seen).ids.toSorted(), Documented.operationIds)
        yield* store.write([write(1)])
        const ours: Array<string> = []
        for (const _ of [1, 2, 3]) {
          const { operation_id } = yield* store.intend(attach(1))
          yield* store.advance(operation_id, settled)
          yield* TestClock.adjust(1000)
          ours.push(operation_id)
        }
        yield* TestClock.adjust(91 * DAY)
        const kept = { now: yield* Clock.currentTimeMillis, operations_ms: 90 * DAY, events_ms: 1000 * DAY }
        assert.strictEqual(yield* store.prune(kept), 2)
        assert.strictEqual(yield* store.prune(kept), 0)
        const after = yield* seen
        assert.deepStrictEqual(after.ids.toSorted(), [...Documented.operationIds, ours[2]].toSorted())
        assert.strictEqual(after.counts, Documented.operationIds.length + 3)
      }).pipe(Effect.provide(Layer.provide(Sql.layer, Mysql.layer(target))))
    })
  )
})
