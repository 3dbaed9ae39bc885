import { SqlClient } from "@effect/sql/SqlClient"
import { assert, describe, it } from "@effect/vitest"
import { Effect, Layer, Option, Redacted } from "effect"
import * as Fs from "node:fs"
import * as Os from "node:os"
import * as Path from "node:path"
import { Store } from "../../reconciler/Store.ts"
import { Name } from "../../schema/Ids.ts"
import { SCHEMA_VERSION } from "../../src/Store/Migrate.ts"
import * as Sql from "../../src/Store/Sql.ts"
import * as Sqlite from "../../src/Store/Sqlite.ts"
import { attach, bindingOf, condition, spec, uidOf, uuid, write, refusal } from "./Samples.ts"
import { type Probe, storeSuite } from "./suite.ts"

const probe: Probe = {
  written: Effect.flatMap(SqlClient, (sql) =>
    Effect.map(sql<{ n: number }>`SELECT total_changes() AS n`, (rows) => Number(rows[0]?.n))
  ),
  corrupt: (table, column, key, id) =>
    Effect.flatMap(SqlClient, (sql) => sql`UPDATE ${sql(table)} SET ${sql(column)} = '[]' WHERE ${sql(key)} = ${id}`)
}

const memory = () => Layer.provideMerge(Sql.layer, Sqlite.layer(Sqlite.MEMORY))
const onFile = (file: string) => Layer.provideMerge(Sql.layer, Sqlite.layer(file))

const temporary = Effect.acquireRelease(
  Effect.sync(() => Fs.mkdtempSync(Path.join(Os.tmpdir(), "volumed-sqlite-"))),
  (directory) => Effect.sync(() => Fs.rmSync(directory, { recursive: true, force: true }))
)

storeSuite("the store on SQLite in memory", memory, probe)

describe("the store on an SQLite file", () => {
  it.scoped("reads back everything after a restart, and applies no migration twice", () =>
    Effect.gen(function* () {
      const file = Path.join(yield* temporary, "deep", "er", "volumed.db")
      const before = yield* Effect.gen(function* () {
        const store = yield* Store
        yield* store.write([write(1), write(2, { set: "blue" })])
        yield* store.write([write(1, { expected_generation: 1, generation: 2, spec: spec({ read_only: true }) })])
        yield* store.bind([{ uid: uidOf(2), binding: bindingOf(2, { repairs: [1], drift_since: 9 }) }])
        yield* store.intend(attach(2))
        yield* store.saveConditions([{ uid: uidOf(1), conditions: [condition()] }])
        return yield* everything
      }).pipe(Effect.provide(onFile(file)))
      const after = yield* everything.pipe(Effect.provide(onFile(file)))
      assert.deepStrictEqual(after, before)
      assert.strictEqual(after.declarations.length, 2)
      assert.strictEqual(after.unresolved.length, 1)
      assert.strictEqual(after.described.schema_version, SCHEMA_VERSION)
      assert.isTrue(after.described.durable)
      assert.match(after.described.engine, /^sqlite 3\./)
      assert.strictEqual(Fs.statSync(file).mode & 0o077, 0)
    })
  )

  it.scoped("is refused when a newer volumed wrote it, and stays as it is (B9)", () =>
    Effect.gen(function* () {
      const file = Path.join(yield* temporary, "newer.db")
      yield* Effect.gen(function* () {
        const sql = yield* SqlClient
        yield* Store
        yield* sql`INSERT INTO schema_version VALUES (${SCHEMA_VERSION + 1}, 'tomorrow', '2030-01-01T00:00:00.000Z')`
      }).pipe(Effect.provide(onFile(file)))
      const refused = yield* refusal(Effect.provide(Store, onFile(file)))
      assert.strictEqual(refused._tag, "Misconfigured")
      assert.include(refused.message, `schema ${SCHEMA_VERSION + 1}`)
      assert.include(refused.message, `this one knows ${SCHEMA_VERSION}`)
    })
  )

  it.scoped("goes on with a migration that a crash interrupted, at any of its steps (B9)", () =>
    Effect.gen(function* () {
      const directory = yield* temporary
      for (let last = 0; last < SCHEMA_VERSION; last += 3) {
        const file = Path.join(directory, `half-${last}.db`)
        yield* Effect.gen(function* () {
          const sql = yield* SqlClient
          yield* Store
          // As if the step after `last` had run and the crash came before its record: later tables are there, unrecorded.
          yield* sql`DELETE FROM schema_version WHERE id > ${last}`
        }).pipe(Effect.provide(onFile(file)))
        const described = yield* Effect.flatMap(Store, (store) => store.describe).pipe(Effect.provide(onFile(file)))
        assert.strictEqual(described.schema_version, SCHEMA_VERSION)
      }
    })
  )

  it.scoped("is refused when its tables are somebody else's, before anything is written (B9)", () =>
    Effect.gen(function* () {
      const file = Path.join(yield* temporary, "foreign.db")
      const sqlite = Sqlite.layer(file)
      yield* Effect.flatMap(SqlClient, (sql) => sql`CREATE TABLE events (what TEXT)`).pipe(Effect.provide(sqlite))
      const refused = yield* refusal(Effect.provide(Store, onFile(file)))
      assert.strictEqual(refused._tag, "Misconfigured")
      assert.include(refused.message, "table events")
      const tables = yield* Effect.flatMap(
        SqlClient,
        (sql) => sql<{ name: string }>`SELECT name FROM sqlite_master`
      ).pipe(Effect.provide(sqlite))
      assert.deepStrictEqual(
        tables.map((row) => row.name),
        ["events"]
      )
    })
  )

  it.scoped("is refused when it is no database, is a directory, or cannot be made, naming it", () =>
    Effect.gen(function* () {
      const directory = yield* temporary
      const garbage = Path.join(directory, "garbage.db")
      Fs.writeFileSync(garbage, "this is not a database ".repeat(1000))
      for (const file of [garbage, directory, Path.join(garbage, "below.db"), "/proc/volumed.db"]) {
        const refused = yield* refusal(Effect.provide(Store, onFile(file)))
        assert.strictEqual(refused._tag, "Misconfigured", file)
        assert.include(refused.message, file)
        assert.include(refused.message, "example: sqlite:")
      }
      assert.include(Fs.readFileSync(garbage, "utf8"), "this is not a database")
    })
  )

  it.scoped(
    "fills up: the write fails as unavailable, nothing is half there, and it works again with room (B3, B15)",
    () =>
      Effect.gen(function* () {
        const file = Path.join(yield* temporary, "full.db")
        yield* Effect.gen(function* () {
          const store = yield* Store
          const sql = yield* SqlClient
          yield* store.write([write(0)])
          yield* sql`PRAGMA max_page_count = 1`
          const wide = (n: number) =>
            write(n, {
              spec: spec({
                metadata: Object.fromEntries(Array.from({ length: 32 }, (_, k) => [`k${k}`, "v".repeat(250)]))
              })
            })
          const full = yield* refusal(store.write(Array.from({ length: 20 }, (_, n) => wide(n + 1))))
          assert.strictEqual(full._tag, "StoreUnavailable")
          assert.include(full.message, "SQLITE_FULL")
          assert.include(full.message, "make room")
          // The limit was the old connection's: the store gave it up and opened another.
          yield* store.write([wide(1)])
          assert.deepStrictEqual(
            (yield* store.declarations).map((declaration) => declaration.name),
            [Name.make("disk-0"), Name.make("disk-1")]
          )
        }).pipe(Effect.provide(onFile(file)))
      })
  )

  it.effect("gives out the ids it is told to, for tests that need to know them", () =>
    Effect.gen(function* () {
      const store = yield* Store
      yield* store.write([write(1)])
      const { operation_id } = yield* store.intend(attach(1))
      assert.strictEqual(operation_id, `op-${uuid(7)}`)
    }).pipe(Effect.provide(Layer.provide(Sql.layerWith({ newId: () => uuid(7) }), Sqlite.layer(Sqlite.MEMORY))))
  )

  it.effect("is named by a DSN; another database is recognised and refused without repeating its password", () =>
    Effect.gen(function* () {
      for (const dsn of [
        "oma:s3cret@tcp(db:3306)/migratekit?parseTime=true",
        "mysql://oma:s3cret@db/x",
        "postgres://s3cret",
        "sqlite:"
      ]) {
        const refused = yield* refusal(Effect.provide(Store, Sql.layerDsn(Redacted.make(dsn))))
        assert.strictEqual(refused._tag, "Misconfigured")
        assert.notInclude(refused.message, "s3cret")
      }
      const store = yield* Effect.provide(Store, Sql.layerDsn(Redacted.make("sqlite::memory:")))
      assert.isDefined(store)
    })
  )
})

/** The whole content, as the port shows it. */
const everything = Effect.gen(function* () {
  const store = yield* Store
  return {
    declarations: yield* store.declarations,
    one: Option.getOrNull(yield* store.declaration(Name.make("disk-2"))),
    unresolved: yield* store.unresolved,
    operations: (yield* store.operations({})).items,
    conditions: [...(yield* store.conditions)],
    events: yield* store.events(0, 100),
    described: yield* store.describe
  }
})
