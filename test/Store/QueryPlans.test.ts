import * as SqlClient from "@effect/sql/SqlClient"
import { assert, describe, it } from "@effect/vitest"
import { Effect, Layer, Logger, LogLevel } from "effect"
import * as Driver from "mysql2/promise"
import { type OperationFilter, Store } from "../../reconciler/Store.ts"
import { Name } from "../../schema/Ids.ts"
import * as Mysql from "../../src/Store/Mysql.ts"
import * as Sql from "../../src/Store/Sql.ts"
import * as Listening from "../support/Listening.ts"
import * as ManyOperations from "../support/ManyOperations.ts"
import * as Site from "./MariaDbSite.ts"
import { uidOf, vm, write } from "./Samples.ts"
import { steps } from "./Scenario.ts"

const server = Site.shared("--innodb-flush-log-at-trx-commit=0", "--innodb-buffer-pool-size=128M")

const OPERATIONS = 30_000
const DAY_MS = 86_400_000
/** A page of the list, with some rows beside; a batch of pruning looks at 500, each with what may hold it. */
const ROWS_READ_MAX = 4_000
/** Counts by type and status, from an index alone. */
const COUNTING = /^SELECT type, status, COUNT\(\*\)/

const filters: ReadonlyArray<OperationFilter> = [
  {},
  { limit: 10 },
  { status: "failed" },
  { status: "pending" },
  { type: "attach" },
  { type: "attach", status: "failed" },
  { type: "attach", status: "executing" },
  { volume_id: ManyOperations.volumeId(7) },
  { volume_id: ManyOperations.volumeId(7), status: "failed" },
  { vm_id: vm },
  { name: "volume-7" },
  { uid: uidOf(0) },
  { parent_id: ManyOperations.operationId(3) },
  { since: new Date(Date.now() - DAY_MS).toISOString() },
  { since: new Date(Date.now() - DAY_MS).toISOString(), status: "failed" }
]

/** All that is asked in the life of a daemon, in the states that make it say all that it can say. */
const everything = Effect.fnUntraced(function* (store: Store["Type"]) {
  // What is asked for by time there is of a time when nothing was old.
  const timeless = steps.filter(({ name }) => name !== "ask for everything")
  assert.isBelow(timeless.length, steps.length)
  yield* Effect.forEach(timeless, ({ run }) => Effect.exit(run(store)))
  for (const filter of filters) {
    const { next } = yield* store.operations(filter)
    if (next !== null) yield* store.operations({ ...filter, cursor: next })
  }
  yield* store.operation(ManyOperations.operationId(5))
  yield* store.destructiveSince(Date.now() - 3_600_000)
  yield* store.events({ after: 0, limit: 100 })
  yield* store.events({ after: 0, limit: 100, kind: "declared" })
  yield* store.declaration(Name.make("disk-1"))
  yield* store.statistics
  // Of all that is there, an eighth is old.
  const operations_ms = (OPERATIONS * 30_000 * 7) / 8
  yield* store.prune({ now: Date.now(), operations_ms, events_ms: DAY_MS })
})

const rowsRead = async (connection: Driver.Connection): Promise<number> => {
  const [rows] = await connection.query<Array<Driver.RowDataPacket>>("SHOW SESSION STATUS LIKE 'Handler_read%'")
  return rows.reduce((sum, { Value }) => sum + Number(Value), 0)
}

describe("what the store asks of a MariaDB with a long journal", () => {
  it.scopedLive(
    "reads few rows, however many there are (B12)",
    () =>
      Effect.gen(function* () {
        const target = yield* (yield* server).database()
        const inner = yield* Effect.provide(SqlClient.SqlClient, yield* Layer.build(Mysql.layer(target)))
        const said: Array<Listening.Said> = []
        const sql = yield* Listening.make(inner, said)
        const built = yield* Layer.build(Sql.layer.pipe(Layer.provide(Layer.succeed(SqlClient.SqlClient, sql))))
        const store = yield* Effect.provide(Store, built)
        const plain = yield* Effect.acquireRelease(
          Effect.promise(() => Driver.createConnection(Mysql.options(target) as Driver.ConnectionOptions)),
          (connection) => Effect.sync(() => connection.destroy())
        )
        yield* store.write([write(0)])
        yield* ManyOperations.fill(sql, store, plain, OPERATIONS)
        said.length = 0
        yield* everything(store)

        const costs = new Map<string, number>()
        for (const { text, values } of said) {
          const statement = text.replaceAll(/\s+/g, " ").trim()
          if (!/^(?:SELECT|UPDATE|DELETE) /.test(statement)) continue
          const cost = yield* Effect.promise(async () => {
            const before = await rowsRead(plain)
            await plain.execute(text, values as Array<string>)
            return (await rowsRead(plain)) - before
          })
          costs.set(statement, Math.max(costs.get(statement) ?? 0, cost))
        }
        const dear = [...costs].filter(([statement, cost]) => cost > ROWS_READ_MAX && !COUNTING.test(statement))
        assert.deepStrictEqual(dear, [])
        assert.isAtLeast(costs.size, 50)
        const [counting] = [...costs].filter(([statement]) => COUNTING.test(statement))
        assert.isAtLeast(counting?.[1] ?? 0, OPERATIONS / 2, "what looks at each row is seen to")
      }).pipe(Logger.withMinimumLogLevel(LogLevel.None)),
    120_000
  )
})
