import { assert, describe, it } from "@effect/vitest"
import * as SqlClient from "@effect/sql/SqlClient"
import { Effect, Layer, Redacted } from "effect"
import * as Fs from "node:fs"
import * as Os from "node:os"
import * as Path from "node:path"
import { Store } from "../../reconciler/Store.ts"
import { VmId } from "../../schema/Ids.ts"
import * as Durability from "../../src/Store/Durability.ts"
import * as Mysql from "../../src/Store/Mysql.ts"
import * as Sql from "../../src/Store/Sql.ts"
import * as Sqlite from "../../src/Store/Sqlite.ts"
import * as MariaDb from "../support/MariaDb.ts"

const weaknesses = Effect.flatMap(SqlClient.SqlClient, Durability.weaknesses)

/** A MySQL of any version, as far as it is asked for one row. */
const answering = (row: Readonly<Record<string, unknown>>): SqlClient.SqlClient =>
  Object.assign(() => Effect.succeed([row]), {
    onDialectOrElse: ({ mysql }: { readonly mysql: () => unknown }) => mysql()
  }) as unknown as SqlClient.SqlClient

const appliance_vm_id = VmId.make("8a4400e5-c92a-4bc4-8bff-4b6b0b6a018c")

/** The store of such a DSN, where only a durable database will do: what health would say of it, or every problem. */
const demanding = (dsn: string) =>
  Effect.flatMap(Store, (store) => store.describe).pipe(
    Effect.provide(
      Sql.layerDsn({ database_dsn: Redacted.make(dsn), database_ca_file: null, appliance_vm_id, require_durable: true })
    ),
    Effect.map(({ durable, weak }) => ({ durable, weak })),
    Effect.catchTag("Misconfigured", ({ problems }) => Effect.succeed(problems.map(({ problem }) => problem)))
  )

describe("durability (B4)", () => {
  it.scopedLive(
    "of a MariaDB with its own defaults is whole; each setting that weakens it is named with its cure",
    () =>
      Effect.gen(function* () {
        const server = yield* MariaDb.start()
        const target = yield* server.database()
        const ask = weaknesses.pipe(Effect.provide(Mysql.layer(target)))
        assert.deepStrictEqual(yield* ask, [])
        yield* server.query("", "SET GLOBAL innodb_flush_log_at_trx_commit = 2")
        assert.deepStrictEqual(yield* ask, ["innodb_flush_log_at_trx_commit is 2: set it to 1"])
        yield* server.query("", "SET GLOBAL innodb_flush_log_at_trx_commit = 1", "SET GLOBAL sync_binlog = 0")
        assert.deepStrictEqual(yield* ask, [], "without a binary log nobody reads sync_binlog")
      })
  )

  it.scopedLive("of a MariaDB with weak options is reported, and refused where it is required, all of it at once", () =>
    Effect.gen(function* () {
      const server = yield* MariaDb.start(
        "--innodb-flush-log-at-trx-commit=0",
        "--log-bin",
        "--sync-binlog=100",
        "--innodb-doublewrite=OFF"
      )
      const target = yield* server.database()
      const weak = [
        "innodb_flush_log_at_trx_commit is 0: set it to 1",
        "sync_binlog is 100 while log_bin is on: set it to 1",
        "innodb_doublewrite is 0: set it to ON"
      ]
      assert.deepStrictEqual(yield* Effect.provide(weaknesses, Mysql.layer(target)), weak)
      const refused = yield* demanding(
        `${target.user}:${Redacted.value(target.password)}@tcp(127.0.0.1:${server.port})/${target.database}`
      )
      assert.deepStrictEqual(
        refused,
        weak.map((text) => `is set, and the database may lose what it has acknowledged: ${text}`)
      )
      assert.deepStrictEqual(
        yield* server.query(target.database, "SHOW TABLES"),
        [[]],
        "before anything was made in it"
      )
    })
  )

  it.scopedLive("is asked of a database that comes up later, too: the store stays refused, and says why", () =>
    Effect.gen(function* () {
      const server = yield* MariaDb.start("--innodb-flush-log-at-trx-commit=2")
      const { user, password, database } = yield* server.database()
      yield* server.kill
      const text = `${user}:${Redacted.value(password)}@tcp(127.0.0.1:${server.port})/${database}`
      const store = yield* Effect.provide(
        Store,
        yield* Layer.build(
          Sql.layerDsn({
            database_dsn: Redacted.make(text),
            database_ca_file: null,
            appliance_vm_id,
            require_durable: true
          })
        )
      )
      const refusal = Effect.map(Effect.flip(store.declarations), ({ problem, detail }) => `${problem}: ${detail}`)
      assert.match(yield* refusal, /^unreachable/)
      yield* server.start
      const said = yield* refusal.pipe(
        Effect.delay(100),
        Effect.repeat({ until: (text) => text.startsWith("refused") }),
        Effect.timeout("20 seconds")
      )
      assert.match(said, /innodb_flush_log_at_trx_commit is 2: set it to 1/)
      assert.deepStrictEqual(yield* server.query(database, "SHOW TABLES"), [[]])
    })
  )

  it.effect("of a MySQL whose doublewrite only tells torn pages apart is weak, for it mends none", () =>
    Effect.gen(function* () {
      const of = (doublewrite: string | number) =>
        Durability.weaknesses(answering({ flush_log: 1, log_bin: 1, sync_binlog: 1, doublewrite }))
      for (const word of [1, "1", "ON", "DETECT_AND_RECOVER"]) assert.deepStrictEqual(yield* of(word), [], `${word}`)
      for (const word of [0, "OFF", "DETECT_ONLY"])
        assert.deepStrictEqual(yield* of(word), [`innodb_doublewrite is ${word}: set it to ON`])
    })
  )

  it.scopedLive("of a SQLite file is whole, of one in memory none", () =>
    Effect.gen(function* () {
      const directory = yield* Effect.acquireRelease(
        Effect.sync(() => Fs.mkdtempSync(Path.join(Os.tmpdir(), "volumed-durable-"))),
        (made) => Effect.sync(() => Fs.rmSync(made, { recursive: true, force: true }))
      )
      assert.deepStrictEqual(yield* demanding(`sqlite:${Path.join(directory, "a.db")}`), { durable: true, weak: [] })
      const refused = yield* demanding("sqlite::memory:")
      assert.isTrue(Array.isArray(refused) && /is in memory: name a file/.test(refused.join()))
      const described = yield* Effect.flatMap(Store, (store) => store.describe).pipe(
        Effect.provide(Layer.provide(Sql.layer, Sqlite.layer(Sqlite.MEMORY)))
      )
      assert.isFalse(described.durable)
      assert.match(described.weak.join(), /is in memory/)
    })
  )
})
