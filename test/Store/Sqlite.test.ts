import { SqlClient } from "@effect/sql/SqlClient"
import * as Statement from "@effect/sql/Statement"
import { assert, describe, it } from "@effect/vitest"
import { Effect, Layer, Option, TestClock } from "effect"
import * as Fs from "node:fs"
import * as Os from "node:os"
import * as Path from "node:path"
import { EXPIRY_MS } from "../../reconciler/Settle.ts"
import { type OperationFilter, Store } from "../../reconciler/Store.ts"
import { Name } from "../../schema/Ids.ts"
import type { Operation } from "../../schema/Operation.ts"
import { migrations } from "../../schema/migrations/Migrations.ts"
import { SCHEMA_VERSION } from "../../src/Store/Migrate.ts"
import * as Sql from "../../src/Store/Sql.ts"
import * as Sqlite from "../../src/Store/Sqlite.ts"
import {
  site,
  answer,
  attach,
  bindingOf,
  call,
  callId,
  condition,
  refusal,
  removal,
  spec,
  uidOf,
  uuid,
  vm,
  volumeId,
  write
} from "./Samples.ts"
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
  it.scoped(
    "lets a call that was perhaps sent expire a minute after the next start, however many follow (P2, L6)",
    () =>
      Effect.gen(function* () {
        const file = Path.join(yield* temporary, "volumed.db")
        yield* Effect.gen(function* () {
          const store = yield* Store
          yield* store.write([write(1)])
          yield* store.intend(attach(1))
        }).pipe(Effect.provide(onFile(file)))
        for (const later of [10, 20, 40]) {
          yield* TestClock.adjust(`${later} seconds`)
          const [open] = yield* Effect.flatMap(Store, ({ unresolved }) => unresolved).pipe(Effect.provide(onFile(file)))
          assert.strictEqual(open?.expires_at, 10_000 + EXPIRY_MS)
        }
      })
  )

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
        yield* store.write([], { calls: [call(1)], answer: answer("key") })
        yield* store.setMaintenance({
          reason: "r",
          by: "eve",
          since: "2026-03-01T12:00:00Z",
          until: null,
          ending: true
        })
        yield* store.saveDeviceMappings([{ volume_id: volumeId(2), vm_id: vm, device_path: "/dev/x", size: 5 }])
        return yield* everything
      }).pipe(Effect.provide(onFile(file)))
      const after = yield* everything.pipe(Effect.provide(onFile(file)))
      // What was begun before may have been sent, and then lives for a minute from now.
      const begun = (operation: Operation) =>
        operation.cause === "api" ? operation : { ...operation, expires_at: EXPIRY_MS }
      const { operations, unresolved } = before
      assert.deepStrictEqual(after, {
        ...before,
        operations: operations.map(begun),
        unresolved: unresolved.map(begun)
      })
      assert.strictEqual(after.declarations.length, 2)
      assert.strictEqual(after.unresolved.length, 1)
      assert.strictEqual(after.calls.length, 1)
      assert.strictEqual(after.maintenance?.by, "eve")
      assert.deepStrictEqual(after.answered, answer("key"))
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

  it.effect("goes on with a migration that a crash interrupted, at any of its steps (B9)", () =>
    Effect.gen(function* () {
      for (let last = 0; last < SCHEMA_VERSION; last++) {
        const resumed = Effect.gen(function* () {
          const sql = yield* SqlClient
          yield* upgrade(1, last, last + 1)
          const described = yield* Effect.provide(
            Effect.flatMap(Store, (store) => store.describe),
            Sql.layer
          )
          assert.strictEqual(described.schema_version, SCHEMA_VERSION)
          const recorded = yield* sql<{ n: number }>`SELECT COUNT(*) AS n FROM schema_version`
          assert.strictEqual(Number(recorded[0]?.n), SCHEMA_VERSION)
        })
        yield* Effect.provide(resumed, Sqlite.layer(Sqlite.MEMORY))
      }
    })
  )

  it.effect(
    "is brought up to date from an older schema with what it holds, whatever step a crash interrupts (B9)",
    () =>
      Effect.gen(function* () {
        const before = 22
        for (let crashed = before; crashed < SCHEMA_VERSION; crashed++) {
          const upgraded = Effect.gen(function* () {
            yield* upgrade(1, before, before)
            yield* fill
            yield* upgrade(before + 1, crashed, crashed + 1)
            return yield* Effect.provide(everything, Sql.layer)
          })
          const after = yield* Effect.provide(upgraded, Sqlite.layer(Sqlite.MEMORY))
          assert.strictEqual(after.described.schema_version, SCHEMA_VERSION)
          assert.deepStrictEqual(after.described.undecodable, [])
          assert.deepInclude(after.declarations[0], { uid: uidOf(1), binding: bindingOf(1) })
          assert.deepInclude(after.unresolved[0], { type: "attach", wish: null, deadline_at: null, parent_id: null })
          assert.deepInclude(after.events[0], { kind: "declared", uid: null, operation_id: null })
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

  it.effect("finds every page by its place: no list sorts, or reads what it does not show", () =>
    Effect.gen(function* () {
      const store = yield* Store
      yield* store.write([write(1), write(2)], { calls: [call(1), call(2)] })
      yield* store.intend(attach(1))
      const { next } = yield* store.operations({ limit: 1 })
      const filters: ReadonlyArray<OperationFilter> = [
        {},
        { since: "2026-03-01T12:00:00Z" },
        { status: "completed" },
        { type: "attach" },
        { volume_id: volumeId(1) },
        { vm_id: vm },
        { name: "disk-1" },
        { uid: uidOf(1) },
        { parent_id: callId(1) },
        { status: "completed", type: "attach", uid: uidOf(1), since: "2026-03-01T12:00:00Z" }
      ]
      const lists = filters.flatMap((filter) => [filter, { ...filter, cursor: next ?? "" }])
      for (const filter of lists) {
        const plan = yield* plansOf(store.operations(filter))
        assert.match(plan, /^(SEARCH|SCAN) volume_operations USING INDEX idx_volume_operations_\w*page\b/, plan)
        assert.strictEqual(plan.includes("\n"), false, `${JSON.stringify(filter)}: ${plan}`)
        if ("cursor" in filter) assert.include(plan, "created_at<?")
      }
      for (const filter of [{}, { name: "disk-1" }, { actor: "v1" }, { kind: "declared" }]) {
        const plan = yield* plansOf(store.events({ after: 1, limit: 10, ...filter }))
        assert.match(plan, /^SEARCH events USING (INDEX idx_events_\w+|INTEGER PRIMARY KEY) [^\n]*rowid>\?\)$/, plan)
      }
      const actions = "SEARCH volume_operations USING INDEX"
      assert.match(yield* plansOf(store.calls), new RegExp(`^${actions} idx_volume_operations_open_call_uid [^\\n]*$`))
      assert.match(yield* plansOf(store.unresolved), new RegExp(`^${actions} unique_unresolved_uid [^\\n]*$`))
      assert.match(yield* plansOf(store.destructiveSince(5)), new RegExp(`^${actions} idx_volume_operations_page `))
      assert.match(yield* plansOf(store.answered("k")), /^SEARCH idempotency_keys USING INDEX sqlite_autoindex/)
      yield* store.write([write(3, { deletion: removal })])
      const undelete = store.write([write(3, { expected_generation: 1, generation: 2, kind: "undeleted" })])
      const both: ReadonlyArray<Effect.Effect<unknown, unknown>> = [
        undelete,
        store.intend(attach(3, { generation: 2 }))
      ]
      for (const statements of both) {
        const plan = yield* plansOf(statements)
        assert.include(plan, `${actions} idx_volume_operations_uid_type (uid=? AND type=?)`)
        assert.include(plan, `${actions} idx_volume_operations_open_call_uid (open_call_uid=?)`)
        assert.notMatch(plan, /^SCAN (?!CONSTANT)/m)
      }
      const counted = (yield* plansOf(store.statistics)).split("\n")
      assert.deepStrictEqual(
        counted.map((line) => line.replace(/ \(.*/, "")),
        [
          "COMPOUND QUERY",
          "LEFT-MOST SUBQUERY",
          "SCAN volume_operations USING COVERING INDEX idx_volume_operations_outcome",
          "UNION ALL",
          "SCAN operations_pruned",
          "SEARCH volume_operations USING INDEX idx_volume_operations_status_page"
        ]
      )
    }).pipe(Effect.provide(memory()))
  )

  it.effect("keeps the newest events, and says from where on", () =>
    Effect.gen(function* () {
      const store = yield* Store
      for (let n = 0; n < 2500; n++)
        yield* store.record({ kind: "condition", name: null, actor: null, message: String(n) })
      const { oldest, newest } = yield* store.eventRange
      const kept = yield* store.events({ after: 0, limit: 1000 })
      assert.strictEqual(newest, 2500)
      assert.strictEqual(oldest, 2000 - 300 + 1)
      assert.strictEqual(kept[0]?.id, oldest)
      assert.strictEqual(kept.length, newest - oldest + 1)
    }).pipe(Effect.provide(Layer.provide(Sql.layerWith({ events_kept: 300 }), Sqlite.layer(Sqlite.MEMORY))))
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
        "oma:s3cret@udp(db:3306)/migratekit?parseTime=true",
        "mysql://oma:s3cret@",
        "postgres://s3cret",
        "sqlite:"
      ]) {
        const refused = yield* refusal(Effect.provide(Store, Sql.layerDsn(site(dsn))))
        assert.strictEqual(refused._tag, "Misconfigured")
        assert.notInclude(refused.message, "s3cret")
      }
      const store = yield* Effect.provide(Store, Sql.layerDsn(site("sqlite::memory:")))
      assert.isDefined(store)
    })
  )
})

/** How SQLite carries out the queries that this effect runs, a line a step. */
const plansOf = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.gen(function* () {
    const sql = yield* SqlClient
    const run: Array<readonly [string, ReadonlyArray<unknown>]> = []
    yield* Statement.withTransformer(effect, (statement) => {
      run.push(statement.compile())
      return Effect.succeed(statement)
    })
    const queries = run.filter(([text]) => text.startsWith("SELECT"))
    const steps = yield* Effect.forEach(queries, ([text, params]) =>
      sql.unsafe<{ detail: string }>(`EXPLAIN QUERY PLAN ${text}`, params)
    )
    return steps.flatMap((rows) => rows.map((row) => row.detail)).join("\n")
  })

const steps = Object.entries(migrations)

/** Runs the steps from `first` to `last`, and records those up to `recorded`: a crash came before the rest were. */
const upgrade = (first: number, recorded: number, last: number) =>
  Effect.gen(function* () {
    const sql = yield* SqlClient
    const at = "2026-03-01T12:00:00.000Z"
    yield* sql`CREATE TABLE IF NOT EXISTS schema_version (
      id BIGINT NOT NULL PRIMARY KEY, name VARCHAR(255) NOT NULL, applied_at TEXT NOT NULL)`
    for (const [key, up] of steps.slice(first - 1, last)) {
      const id = Number(key.slice(0, 4))
      yield* up
      if (id > recorded) continue
      yield* sql`INSERT INTO schema_version ${sql.insert({ id, name: key.slice(5), applied_at: at })}`
    }
  })

/** A row of each kind that schema 22 knew, as it wrote them. */
const fill = Effect.gen(function* () {
  const sql = yield* SqlClient
  const declared = write(1)
  const at = "2026-03-01T12:00:00.000Z"
  const { late: _, ...binding } = bindingOf(1)
  yield* sql`INSERT INTO declarations ${sql.insert({
    uid: declared.uid,
    name: declared.name,
    living_name: declared.name,
    generation: 1,
    set_name: null,
    spec: JSON.stringify(declared.spec),
    managers: JSON.stringify(declared.managers),
    binding: JSON.stringify(binding),
    bound_volume_id: binding.volume_id,
    deletion: null,
    written_by: "alice",
    created_at: at,
    updated_at: at,
    removed_at: null
  })}`
  yield* sql`INSERT INTO volume_operations ${sql.insert({
    id: callId(1),
    type: "attach",
    status: "executing",
    volume_id: binding.volume_id,
    vm_id: vm,
    request: JSON.stringify(attach(1)),
    created_at: at,
    updated_at: at,
    name: declared.name,
    uid: declared.uid,
    unresolved_uid: declared.uid,
    cause: "declaration",
    actor: "alice",
    generation: 1,
    phase: "submitted",
    attempts: 1,
    destructive: 0
  })}`
  yield* sql`INSERT INTO events ${sql.insert({ at, kind: "declared", name: "disk-1", actor: "alice", message: "x" })}`
})

/** The whole content, as the port shows it. */
const everything = Effect.gen(function* () {
  const store = yield* Store
  return {
    declarations: yield* store.declarations,
    one: Option.getOrNull(yield* store.declaration(Name.make("disk-2"))),
    unresolved: yield* store.unresolved,
    operations: (yield* store.operations({})).items,
    calls: yield* store.calls,
    maintenance: yield* store.maintenance,
    withheld: yield* store.withheld,
    answered: Option.getOrNull(yield* store.answered("key")),
    deviceMappings: yield* store.deviceMappings,
    statistics: yield* store.statistics,
    conditions: [...(yield* store.conditions)],
    events: yield* store.events({ after: 0, limit: 100 }),
    described: yield* store.describe
  }
})
