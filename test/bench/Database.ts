import * as SqlClient from "@effect/sql/SqlClient"
import { Effect, Layer } from "effect"
import * as Driver from "mysql2/promise"
import { Store } from "../../reconciler/Store.ts"
import { type Binding, unbound } from "../../schema/Declaration.ts"
import type { OperationId, Uid } from "../../schema/Ids.ts"
import * as Mysql from "../../src/Store/Mysql.ts"
import * as Sql from "../../src/Store/Sql.ts"
import { attach, uidOf, uuid, vm, volumeId, write } from "../Store/Samples.ts"
import * as Listening from "../support/Listening.ts"
import * as ManyOperations from "../support/ManyOperations.ts"
import * as MariaDb from "../support/MariaDb.ts"
import * as Measure from "./Measure.ts"

const OPERATIONS = 1_000_000
/** As many as an appliance may have. */
const MAPPINGS = 24
const ROUNDS = 300
/** The first ones, in which statements are prepared and compilers warm up, do not count. */
const WARM = 50

/** What the documents of the daemon before promise, ms. */
const SEEDS = { insert: 10, mapping: 5, query: 50 }

interface Bench {
  readonly sql: SqlClient.SqlClient
  readonly store: Store["Type"]
  readonly said: Array<Listening.Said>
  /** Another connection, of nothing but the driver. */
  readonly plain: Driver.Connection
}

/** The seeds' table with a million rows on a MariaDB of its own, which flushes each commit to disk. */
export const measure = (): Promise<ReadonlyArray<Measure.Measure>> =>
  Effect.gen(function* () {
    const server = yield* MariaDb.start("--innodb-buffer-pool-size=1G", "--innodb-log-file-size=512M")
    const target = yield* server.database()
    const inner = yield* Effect.provide(SqlClient.SqlClient, yield* Layer.build(Mysql.layer(target)))
    const said: Array<Listening.Said> = []
    const sql = yield* Listening.make(inner, said)
    const layer = Sql.layer.pipe(Layer.provide(Layer.succeed(SqlClient.SqlClient, sql)))
    const store = yield* Effect.provide(Store, yield* Layer.build(layer))
    const plain = yield* Effect.acquireRelease(
      Effect.promise(() => Driver.createConnection(Mysql.options(target) as Driver.ConnectionOptions)),
      (connection) => Effect.sync(() => connection.destroy())
    )
    const bench = { sql, store, said, plain }
    yield* declare(bench)
    yield* server.query("", "SET GLOBAL innodb_flush_log_at_trx_commit = 0")
    yield* ManyOperations.fill(sql, store, plain, OPERATIONS)
    yield* server.query("", "SET GLOBAL innodb_flush_log_at_trx_commit = 1")
    return [...(yield* inserting(bench)), ...(yield* mapping(bench)), ...(yield* querying(bench))]
  }).pipe(Effect.scoped, Effect.runPromise)

/** Two alike for each round: what the store does to one, plain statements do to the other. */
const twin = (n: number) => n + 100_000

const declare = Effect.fnUntraced(function* ({ store }: Bench) {
  const numbers = Array.from({ length: ROUNDS }, (_, n) => [n, twin(n)]).flat()
  yield* store.write(numbers.map((n) => write(n)))
  const bound = (n: number): { uid: Uid; binding: Binding } => ({
    uid: uidOf(n),
    binding: { ...unbound, volume_id: volumeId(n) }
  })
  yield* store.bind(numbers.map(bound))
})

/** What the driver says to do the same, in the same order, each value that `differs` replaced. */
const replay = async (
  plain: Driver.Connection,
  said: ReadonlyArray<Listening.Said>,
  differs: (value: unknown) => unknown
) => {
  for (const { text, values } of said) {
    if (/^(?:BEGIN|COMMIT)$/.test(text)) await plain.query(text)
    else await plain.execute(text, values.map(differs) as Array<string | number | null>)
  }
}

interface Times {
  readonly ours: number
  readonly plain: number
}

/** Medians in ms of so many rounds, each done by the store and then, the same statements, by the driver alone. */
const compare = Effect.fnUntraced(function* (
  { plain, said }: Bench,
  round: (n: number) => Effect.Effect<unknown, unknown>,
  differs: (n: number) => (value: unknown) => unknown,
  after: (n: number) => Effect.Effect<unknown, unknown> = () => Effect.void
) {
  const ours: Array<number> = []
  const theirs: Array<number> = []
  for (let n = 0; n < ROUNDS; n++) {
    said.length = 0
    const begun = performance.now()
    yield* Effect.orDie(round(n))
    const done = performance.now()
    const statements = [...said]
    const begunPlain = performance.now()
    yield* Effect.promise(() => replay(plain, statements, differs(n)))
    const donePlain = performance.now()
    yield* Effect.orDie(after(n))
    if (n < WARM) continue
    ours.push(done - begun)
    theirs.push(donePlain - begunPlain)
  }
  return { ours: Measure.median(ours), plain: Measure.median(theirs) } satisfies Times
})

const lines = (name: string, { ours, plain }: Times, seeds: number): ReadonlyArray<Measure.Measure> => [
  {
    name,
    measured: `${ours.toFixed(2)} ms`,
    against: `mysql2, the same statements: ${plain.toFixed(2)} ms`,
    ratio: ours / plain,
    bound: null
  },
  {
    name: "… beside the daemon before",
    measured: `${ours.toFixed(2)} ms`,
    against: `its documents: ${seeds} ms`,
    ratio: ours / seeds,
    bound: 1
  }
]

const inserting = Effect.fnUntraced(function* (bench: Bench) {
  const ids = new Map<number, OperationId>()
  const intend = (n: number) =>
    Effect.tap(bench.store.intend(attach(n)), ({ operation_id }) => Effect.sync(() => ids.set(n, operation_id)))
  const differs = (n: number) => {
    const values = new Map<unknown, unknown>([
      [uidOf(n), uidOf(twin(n))],
      [volumeId(n), volumeId(twin(n))],
      [ids.get(n), `op-${uuid(0xf00000000 + n)}`]
    ])
    return (value: unknown) => values.get(value) ?? value
  }
  const times = yield* compare(bench, intend, differs)
  return lines(`operation insert beside ${OPERATIONS} others, declared and unique`, times, SEEDS.insert)
})

const mapping = Effect.fnUntraced(function* (bench: Bench) {
  const all = (n: number) =>
    Array.from({ length: MAPPINGS }, (_, at) => ({
      volume_id: volumeId(at),
      vm_id: vm,
      device_path: `/dev/disk/by-id/virtio-${at}-${at === n % MAPPINGS ? n : 0}`,
      size: 2 ** 30
    }))
  yield* bench.store.saveDeviceMappings(all(0))
  // The same rows again, each deleted and written once more.
  const times = yield* compare(
    bench,
    (n) => bench.store.saveDeviceMappings(all(n + 1)),
    () => (value) => value
  )
  return lines(`device mapping update, one of ${MAPPINGS}`, times, SEEDS.mapping)
})

const querying = Effect.fnUntraced(function* (bench: Bench) {
  const { store } = bench
  const same = () => (value: unknown) => value
  const queries = {
    "newest 10 operations": () => store.operations({ limit: 10 }),
    "operations of a volume": (n: number) => store.operations({ volume_id: ManyOperations.volumeId(n * 37) }),
    "newest 10 failed operations": () => store.operations({ status: "failed", limit: 10 }),
    "newest 10 that are under way": () => store.operations({ status: "pending", limit: 10 }),
    "one operation by its id": (n: number) => store.operation(ManyOperations.operationId(n * 3_001 + 1))
  }
  const measures: Array<Measure.Measure> = []
  for (const [name, query] of Object.entries(queries))
    measures.push(...lines(`${name}, of ${OPERATIONS}`, yield* compare(bench, query, same), SEEDS.query))
  return measures
})
