import { SqlClient } from "@effect/sql/SqlClient"
import * as Statement from "@effect/sql/Statement"
import { afterAll, assert, beforeAll, describe, it } from "@effect/vitest"
import { Effect, Exit, Layer, Scope } from "effect"
import { type OperationFilter, Store } from "../../reconciler/Store.ts"
import * as Mysql from "../../src/Store/Mysql.ts"
import * as Sql from "../../src/Store/Sql.ts"
import * as MariaDb from "../support/MariaDb.ts"
import { attach, call, callId, uidOf, vm, volumeId, write } from "./Samples.ts"
import { type Probe, storeSuite } from "./suite.ts"

const scope = Effect.runSync(Scope.make())
let target: Mysql.Target

beforeAll(async () => {
  const server = await Effect.runPromise(
    Scope.extend(MariaDb.start("--character-set-server=latin1", "--userstat=1"), scope)
  )
  target = await Effect.runPromise(server.database())
}, 60_000)

afterAll(() => Effect.runPromise(Scope.close(scope, Exit.void)))

/** One database for all tests, emptied before each, for making the tables takes longer than most tests. */
const emptied = Layer.effectDiscard(
  Effect.gen(function* () {
    const sql = yield* SqlClient
    const tables = yield* sql<{ name: string }>`SELECT table_name AS name FROM information_schema.tables
      WHERE table_schema = DATABASE() AND table_type = 'BASE TABLE' AND table_name <> 'schema_version'`
    for (const { name } of tables) yield* sql`TRUNCATE TABLE ${sql(name)}`
  })
)

const empty = () =>
  Sql.layer.pipe(Layer.provideMerge(Layer.orDie(emptied)), Layer.provideMerge(Layer.suspend(() => Mysql.layer(target))))

/** The mark that every transaction leaves in `lease` is a sign of life, and counts as none. */
const probe: Probe = {
  written: Effect.flatMap(SqlClient, (sql) =>
    Effect.map(
      sql<{ n: string | null }>`SELECT SUM(ROWS_CHANGED) AS n FROM information_schema.table_statistics
        WHERE table_schema = DATABASE() AND table_name <> 'lease'`,
      (rows) => Number(rows[0]?.n)
    )
  ),
  corrupt: (table, column, key, id) =>
    Effect.flatMap(SqlClient, (sql) => sql`UPDATE ${sql(table)} SET ${sql(column)} = '[]' WHERE ${sql(key)} = ${id}`)
}

storeSuite("the store on MariaDB", empty, probe)

describe("the lists on MariaDB", () => {
  it.effect("find every page by its place: none sorts", () =>
    Effect.gen(function* () {
      const store = yield* Store
      const sql = yield* SqlClient
      yield* store.write(
        Array.from({ length: 60 }, (_, n) => write(n)),
        { calls: Array.from({ length: 60 }, (_, n) => call(n)) }
      )
      for (let n = 0; n < 60; n++) yield* store.intend(attach(n))
      yield* sql`ANALYZE TABLE volume_operations`
      const { next } = yield* store.operations({ limit: 1 })
      const filters: ReadonlyArray<OperationFilter> = [
        {},
        { since: "1969-03-01T12:00:00Z" },
        { status: "completed" },
        { type: "attach" },
        { volume_id: volumeId(1) },
        { vm_id: vm },
        { name: "disk-1" },
        { uid: uidOf(1) },
        { parent_id: callId(1) },
        { vm_id: vm, status: "pending" },
        { status: "pending", type: "attach" },
        { status: "completed", type: "attach", uid: uidOf(1), since: "1969-03-01T12:00:00Z" }
      ]
      for (const filter of filters.flatMap((filter) => [filter, { ...filter, cursor: next ?? "" }])) {
        const [step, ...more] = yield* plansOf(store.operations(filter))
        const shown = `${JSON.stringify(filter)}: ${JSON.stringify(step)}`
        assert.match(String(step?.["key"]), /^idx_volume_operations_(\w*page|outcome)$/, shown)
        assert.notInclude(String(step?.["Extra"]), "filesort", shown)
        assert.deepStrictEqual(more, [])
      }
    }).pipe(Effect.provide(empty()))
  )
})

/** How MariaDB carries out the queries that this effect runs. */
const plansOf = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.gen(function* () {
    const sql = yield* SqlClient
    const run: Array<readonly [string, ReadonlyArray<unknown>]> = []
    yield* Statement.withTransformer(effect, (statement) => {
      run.push(statement.compile())
      return Effect.succeed(statement)
    })
    const steps = yield* Effect.forEach(run, ([text, params]) =>
      sql.unsafe<Record<string, unknown>>(`EXPLAIN ${text}`, params)
    )
    return steps.flat()
  })
