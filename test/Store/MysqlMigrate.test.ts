import { SqlClient } from "@effect/sql/SqlClient"
import * as Statement from "@effect/sql/Statement"
import { afterAll, assert, beforeAll, describe, it } from "@effect/vitest"
import { Effect, Exit, Fiber, Layer, Option, Scope } from "effect"
import * as TestClock from "effect/TestClock"
import { EXPIRY_MS } from "../../reconciler/Settle.ts"
import { Store } from "../../reconciler/Store.ts"
import { OperationId } from "../../schema/Ids.ts"
import { inspect, migrate, SCHEMA_VERSION } from "../../src/Store/Migrate.ts"
import * as Mysql from "../../src/Store/Mysql.ts"
import * as Sql from "../../src/Store/Sql.ts"
import * as MariaDb from "../support/MariaDb.ts"
import * as Documented from "./Documented.ts"
import { attach, call, callId, refusal, removal, uidOf, vm, volumeId, write } from "./Samples.ts"

const scope = Effect.runSync(Scope.make())
let server: MariaDb.MariaDb

// A server as it stands at a customer's: another default character set, and a time zone.
beforeAll(async () => {
  const options = ["--character-set-server=latin1", "--default-time-zone=+05:30"]
  server = await Effect.runPromise(Scope.extend(MariaDb.start(...options), scope))
}, 60_000)

afterAll(() => Effect.runPromise(Scope.close(scope, Exit.void)))

/** A database of the server's default character set, with these statements carried out as root. */
const database = (...statements: ReadonlyArray<string>) =>
  Effect.gen(function* () {
    const target = yield* server.database()
    yield* server.query("", `ALTER DATABASE ${target.database} CHARACTER SET latin1 COLLATE latin1_swedish_ci`)
    yield* server.query(target.database, "SET time_zone = '+00:00'", ...statements)
    return target
  })

const documented = (...further: ReadonlyArray<string>) => database(...Documented.tables, ...Documented.rows, ...further)

const storeOn = (target: Mysql.Target) => Layer.provideMerge(Sql.layer, Mysql.layer(target))
const on = <A, E>(target: Mysql.Target, effect: Effect.Effect<A, E, SqlClient>) =>
  Effect.provide(effect, Mysql.layer(target))

/** Everything that tells one state of a database from another: definitions, and rows. */
const stateOf = (target: Mysql.Target) =>
  Effect.gen(function* () {
    const [tables] = yield* server.query(target.database, "SHOW TABLES")
    const names = rowsOf(tables).map((row) => String(Object.values(row)[0]))
    const asked = names.flatMap((name) => [`SHOW CREATE TABLE ${name}`, `SELECT * FROM ${name}`])
    return yield* server.query(target.database, ...asked)
  })

const rowsOf = (answer: unknown) => answer as ReadonlyArray<Record<string, unknown>>

describe("a database in the documented shape, with rows (B9)", () => {
  it.effect("gets our tables and nullable columns, and nothing else of it is altered", () =>
    Effect.gen(function* () {
      const target = yield* documented()
      const catalogue = (table: string) => [
        `SELECT column_name, column_type, is_nullable, column_default, extra, collation_name
          FROM information_schema.columns WHERE table_schema = '${target.database}' AND table_name = '${table}'
          AND NOT (table_name = 'volume_operations' AND column_name = 'type' OR column_name = 'device_path')
          ORDER BY ordinal_position`,
        `SELECT index_name, column_name, seq_in_index, non_unique, index_type FROM information_schema.statistics
          WHERE table_schema = '${target.database}' AND table_name = '${table}' ORDER BY index_name, seq_in_index`
      ]
      const asked = [...catalogue("volume_operations"), ...catalogue("device_mappings")]
      const content = ["volume_operations", "device_mappings"].map((table) => `SELECT * FROM ${table} ORDER BY id`)
      const before = yield* server.query(target.database, ...asked, ...content)
      yield* on(target, migrate)
      const after = yield* server.query(target.database, ...asked, ...content)
      for (const [n, was] of before.entries())
        for (const [m, row] of rowsOf(was).entries()) {
          const now = n < asked.length ? rowsOf(after[n]).find((found) => isSame(found, row)) : rowsOf(after[n])[m]
          assert.deepInclude(now, row)
        }
      const [columns] = yield* server.query(
        target.database,
        `SELECT column_name AS name, column_type AS type, is_nullable AS nullable, collation_name AS collation
          FROM information_schema.columns WHERE table_schema = '${target.database}'
          AND table_name IN ('volume_operations', 'device_mappings')`
      )
      const shown = new Map(rowsOf(columns).map((row) => [row["name"], row]))
      assert.deepInclude(shown.get("device_path"), { type: "varchar(255)", collation: "latin1_swedish_ci" })
      assert.strictEqual(
        shown.get("type")?.["type"],
        "enum('create','attach','detach','delete','cleanup','adopt','export','unexport','migrate_path','tag')"
      )
      assert.deepInclude(shown.get("uid"), { nullable: "YES", collation: "utf8mb4_nopad_bin" })
    })
  )

  it.effect("shows its operations in the list as history that nothing acts on, in order and page by page", () =>
    Effect.gen(function* () {
      const store = yield* Store
      const newestFirst = Documented.operationIds.toReversed()
      const page = yield* store.operations({})
      assert.deepStrictEqual(
        page.items.map(({ id }) => id as string),
        newestFirst
      )
      const seen: Array<string> = []
      for (let cursor: string | null = ""; cursor !== null;) {
        const { items, next }: { items: ReadonlyArray<{ id: string }>; next: string | null } = yield* store.operations(
          cursor === "" ? { limit: 2 } : { limit: 2, cursor }
        )
        seen.push(...items.map(({ id }) => id))
        cursor = next
      }
      assert.deepStrictEqual(seen, newestFirst)
      const [, , failed, attached] = page.items
      assert.deepInclude(attached, {
        type: "attach",
        status: "completed",
        volume_id: Documented.volume,
        vm_id: Documented.vm as typeof vm,
        request: { vm_id: Documented.vm },
        response: { device_path: "/dev/vdb" },
        created_at: "2025-08-01T10:01:00.000Z",
        completed_at: "2025-08-01T10:01:05.000Z",
        cause: "api",
        name: ""
      })
      assert.deepInclude(failed, { vm_id: null, request: {}, response: null, error: "gr\u00f6\u00dfer" })
      const since = yield* store.operations({ since: "2025-08-01T10:03:00Z" })
      assert.strictEqual(since.items.length, 2)
      assert.deepStrictEqual(yield* store.unresolved, [])
      assert.deepStrictEqual(yield* store.calls, [])
      assert.strictEqual(yield* store.destructiveSince(0), 0)
      assert.deepStrictEqual((yield* store.describe).undecodable, [])
      assert.strictEqual((yield* store.statistics).mean_ms, 7000)
    }).pipe(Effect.provide(Layer.unwrapEffect(Effect.map(documented(), storeOn))))
  )

  it.effect("tells ids apart by every byte, whatever its collation folds (B10)", () =>
    Effect.gen(function* () {
      const store = yield* Store
      const [, , upper, blank] = Documented.operationIds
      const found = (volume_id: string) =>
        Effect.map(store.operations({ volume_id }), ({ items }) => items.map(({ id }) => id as string))
      assert.deepStrictEqual(yield* found(Documented.volume.toUpperCase()), [upper])
      assert.deepStrictEqual(yield* found(`${Documented.volume} `), [blank])
      assert.strictEqual((yield* found(Documented.volume)).length, 3)
      for (const none of [`${Documented.volume}  `, "\u{1f600}", "\u00e9", Documented.volume.replace("a", "\u00e1")])
        assert.deepStrictEqual(yield* found(none), [])
    }).pipe(Effect.provide(Layer.unwrapEffect(Effect.map(documented(), storeOn))))
  )

  it.effect("takes our operations beside its own, to the millisecond and in any script", () =>
    Effect.gen(function* () {
      const store = yield* Store
      const sql = yield* SqlClient
      const at = "2026-03-01T12:00:00.007Z"
      yield* TestClock.setTime(Date.parse(at))
      yield* store.write([write(1)], { calls: [call(1)] })
      const { operation_id } = yield* store.intend(attach(1))
      const error = "\u8a9e \u{1f600} gr\u00f6\u00dfer"
      const ended = yield* store.advance(operation_id, { phase: "refused", status: "failed", error })
      assert.deepInclude(ended, { error, created_at: at, completed_at: at })
      const { items } = yield* store.operations({ limit: 3 })
      assert.deepStrictEqual(
        items.map(({ id }) => id),
        [operation_id, callId(1)]
          .toSorted()
          .toReversed()
          .concat(OperationId.make(Documented.operationIds[4] ?? ""))
      )
      const [row] = yield* sql`SELECT created_at, completed_at, error FROM volume_operations WHERE id = ${operation_id}`
      assert.deepInclude(row, { created_at: "2026-03-01 12:00:00", error: "? ? gr??er" })
      const shown = Option.getOrThrow(yield* store.operation(operation_id))
      assert.deepStrictEqual(shown, ended)
    }).pipe(Effect.provide(Layer.unwrapEffect(Effect.map(documented(), storeOn))))
  )

  it.effect("keeps its device mappings until a volume or a path of theirs is mapped by us", () =>
    Effect.gen(function* () {
      const store = yield* Store
      const sql = yield* SqlClient
      const ids = Effect.map(sql<{ id: string }>`SELECT id FROM device_mappings ORDER BY id`, (rows) =>
        rows.map(({ id }) => (id.startsWith("dm-") ? "ours" : id))
      )
      const at = (volume_id: string, device_path: string) => ({ volume_id, vm_id: vm, device_path, size: 5 })
      assert.deepStrictEqual(yield* store.deviceMappings, [])
      yield* store.saveDeviceMappings([])
      assert.deepStrictEqual(yield* ids, ["mapping-1", "mapping-2"])
      const path = `/dev/disk/by-id/virtio-${volumeId(1).slice(0, 20)}`
      yield* store.saveDeviceMappings([at(volumeId(1), path)])
      assert.deepStrictEqual(yield* ids, ["ours", "mapping-1", "mapping-2"])
      yield* store.saveDeviceMappings([at(volumeId(1), path), at(Documented.volume, "/dev/x")])
      assert.deepStrictEqual(yield* ids, ["ours", "ours", "mapping-2"])
      yield* store.saveDeviceMappings([at(volumeId(1), path), at(volumeId(2), "/dev/vdc")])
      assert.deepStrictEqual(yield* ids, ["ours", "ours"])
      yield* store.saveDeviceMappings([])
      assert.deepStrictEqual(yield* ids, [])
    }).pipe(Effect.provide(Layer.unwrapEffect(Effect.map(documented(), storeOn))))
  )

  it.effect("answers the documented queries, before and after ours are there", () =>
    Effect.gen(function* () {
      const target = yield* documented()
      const ask = Effect.map(server.query(target.database, ...Object.values(Documented.queries)), (answers) =>
        answers.map((answer) => (Array.isArray(answer) ? rowsOf(answer).map((row) => ({ ...row })) : answer))
      )
      const before = yield* ask
      yield* on(target, migrate)
      const after = yield* ask
      assert.deepStrictEqual(after, before)
      yield* Effect.gen(function* () {
        const store = yield* Store
        yield* TestClock.setTime(Date.parse("2026-03-01T12:00:00Z"))
        yield* store.write([write(1)])
        yield* store.intend(attach(1))
        yield* store.saveDeviceMappings([{ volume_id: volumeId(1), vm_id: vm, device_path: "/dev/x", size: 5 }])
      }).pipe(Effect.provide(storeOn(target)))
      const [recent, mapped, conflicts] = yield* ask
      assert.deepInclude(rowsOf(recent)[0], { type: "attach", status: "pending", volume_id: volumeId(1) })
      assert.strictEqual(rowsOf(recent).length, 6)
      assert.deepInclude(
        rowsOf(mapped).find((row) => row["volume_id"] === volumeId(1)),
        {
          device_path: "/dev/x",
          cloudstack_state: "attached"
        }
      )
      assert.deepStrictEqual(conflicts, [])
    })
  )

  it.effect(
    "lists what the daemon before writes beside us once it is dated: no list shows anything twice until then",
    () =>
      Effect.gen(function* () {
        const target = yield* documented()
        const pages = Effect.gen(function* () {
          const store = yield* Store
          const first = yield* store.operations({ limit: 6 })
          const rest = first.next === null ? [] : (yield* store.operations({ limit: 6, cursor: first.next })).items
          return [...first.items, ...rest].map(({ id }) => id as string)
        })
        const newestFirst = Documented.operationIds.toReversed()
        yield* Effect.gen(function* () {
          yield* Store
          const late = ["7", "8", "9"].map(
            (n) => `('op-${n.repeat(8)}-1111-4111-8111-111111111111', 'attach', 'pending', 'v', '{}')`
          )
          yield* server.query(
            target.database,
            `INSERT INTO volume_operations (id, type, status, volume_id, request) VALUES ${late.join(", ")}`
          )
          assert.deepStrictEqual(yield* pages, newestFirst)
        }).pipe(Effect.provide(storeOn(target)))
        const all = yield* pages.pipe(Effect.provide(storeOn(target)))
        assert.deepStrictEqual(all.slice(3), newestFirst)
      })
  )

  it.effect("dates what the daemon before wrote in between, when we start again", () =>
    Effect.gen(function* () {
      const target = yield* documented()
      yield* on(target, migrate)
      const late = `op-${"9".repeat(8)}-1111-4111-8111-111111111111`
      const many = Array.from({ length: 1500 }, (_, n) => `('old-${n}', 'attach', 'completed', 'v', '{}')`)
      yield* server.query(
        target.database,
        `INSERT INTO volume_operations (id, type, status, volume_id, request) VALUES ${many.join(", ")}`,
        `INSERT INTO volume_operations (id, type, status, volume_id, request, created_at)
          VALUES ('${late}', 'attach', 'completed', 'v', '{}', '2037-01-01 00:00:00')`
      )
      const page = yield* Effect.flatMap(Store, (store) => store.operations({ limit: 1 })).pipe(
        Effect.provide(storeOn(target))
      )
      assert.strictEqual(page.items[0]?.id, late)
      const [undated] = yield* server.query(
        target.database,
        "SELECT COUNT(*) AS n FROM volume_operations WHERE created_iso IS NULL"
      )
      assert.deepStrictEqual(rowsOf(undated)[0]?.["n"], 0)
    })
  )
})

const isSame = (a: Record<string, unknown>, b: Record<string, unknown>) =>
  Object.keys(b).every((key) => a[key] === b[key])

describe("a migration that is interrupted", () => {
  /**
   * Carries out statements until one that changes something and was not seen before, which still takes effect; then
   * everything fails, as if the process were gone. True when nothing was left to change.
   */
  const untilTheNextChange = (target: Mysql.Target, seen: Set<string>) =>
    Effect.suspend(() => {
      let gone = false
      const crashing = Statement.withTransformer(migrate, (statement, sql) => {
        const [text, params] = statement.compile()
        if (gone) return Effect.succeed(sql.unsafe("NOTHING MORE"))
        const key = `${text} ${JSON.stringify(params)}`
        gone = /^\s*(CREATE|ALTER|INSERT|UPDATE|DROP)/.test(text) && !seen.has(key)
        if (gone) seen.add(key)
        return Effect.succeed(statement)
      })
      return Effect.match(on(target, crashing), { onFailure: () => false, onSuccess: () => !gone })
    })

  const upgraded = Effect.fnUntraced(function* (target: Mysql.Target) {
    const seen = new Set<string>()
    let crashes = 0
    while (!(yield* untilTheNextChange(target, seen))) assert.isBelow((crashes += 1), 4 * SCHEMA_VERSION)
    const [tables] = yield* server.query(target.database, "SELECT COUNT(*) AS n FROM schema_version")
    assert.strictEqual(rowsOf(tables)[0]?.["n"], SCHEMA_VERSION)
    assert.deepStrictEqual(yield* on(target, inspect), { _tag: "Current" })
    return { crashes, definitions: yield* definitions(target) }
  })

  /** How each table was made, but for whom: each database has a user of its own. */
  const definitions = (target: Mysql.Target) =>
    Effect.map(stateOf(target), (state) =>
      state
        .filter((_, n) => n % 2 === 0)
        .map((answer) => JSON.stringify(answer).replaceAll(target.database, "somebody"))
    )

  const definitionsOf = Effect.fnUntraced(function* (target: Mysql.Target) {
    yield* on(target, migrate)
    return yield* definitions(target)
  })

  it.effect("goes on where it stopped, after every statement, on an empty database (B9)", () =>
    Effect.gen(function* () {
      const { crashes, definitions } = yield* upgraded(yield* database())
      assert.isAbove(crashes, SCHEMA_VERSION)
      assert.deepStrictEqual(definitions, yield* definitionsOf(yield* database()))
    })
  )

  it.effect("and on one in the documented shape, whose rows stay as they were (B9)", () =>
    Effect.gen(function* () {
      const target = yield* documented()
      const { crashes, definitions } = yield* upgraded(target)
      assert.isAbove(crashes, SCHEMA_VERSION)
      assert.deepStrictEqual(definitions, yield* definitionsOf(yield* documented()))
      const { items } = yield* Effect.flatMap(Store, (store) => store.operations({})).pipe(
        Effect.provide(storeOn(target))
      )
      assert.deepStrictEqual(
        items.map(({ id }) => id as string),
        Documented.operationIds.toReversed()
      )
    })
  )
})

describe("a MariaDB that dies during a migration", () => {
  it.scoped("holds what was there, and the next migration goes on (B9)", () =>
    Effect.gen(function* () {
      const mortal = yield* MariaDb.start("--character-set-server=latin1")
      const target = yield* mortal.database()
      const many = 20_000
      yield* mortal.query("", `ALTER DATABASE ${target.database} CHARACTER SET latin1 COLLATE latin1_swedish_ci`)
      yield* mortal.query(
        target.database,
        ...Documented.tables,
        `INSERT INTO volume_operations (id, type, status, volume_id, request)
          SELECT CONCAT('op-', UUID()), 'attach', 'completed', UUID(), '{"a": 1}' FROM seq_1_to_${many}`
      )
      let interrupted = 0
      for (let done = false, pause = 40; !done && interrupted < 5; pause += 60) {
        const migration = yield* Effect.fork(Effect.exit(on(target, migrate)))
        yield* Effect.promise(() => new Promise((resolve) => setTimeout(resolve, pause)))
        yield* mortal.kill
        done = Exit.isSuccess(yield* Fiber.join(migration))
        if (!done) interrupted++
        yield* mortal.start
      }
      assert.isAbove(interrupted, 0)
      yield* on(target, migrate)
      assert.deepStrictEqual(yield* on(target, inspect), { _tag: "Current" })
      const [counted] = yield* mortal.query(
        target.database,
        `SELECT COUNT(*) AS n, SUM(created_iso IS NULL) AS undated, SUM(JSON_VALUE(request, '$.a')) AS kept
          FROM volume_operations`
      )
      assert.deepInclude(rowsOf(counted)[0], { n: many, undated: "0", kept: many })
    })
  )
})

describe("a database that is not ours to use", () => {
  const alterations: ReadonlyArray<readonly [alteration: string, said: string]> = [
    ["ALTER TABLE volume_operations DROP COLUMN error", "volume_operations: column error is missing"],
    ["ALTER TABLE volume_operations MODIFY volume_id BIGINT NOT NULL", "volume_id is bigint(20), expected varchar(64)"],
    ["ALTER TABLE volume_operations MODIFY created_at DATETIME", "created_at is datetime, expected timestamp"],
    ["ALTER TABLE volume_operations MODIFY id VARCHAR(36) NOT NULL", "id is varchar(36), expected varchar(64)"],
    [
      "ALTER TABLE volume_operations MODIFY type ENUM('create','attach','detach','delete','resize') NOT NULL",
      "type is enum('create','attach','detach','delete','resize'), expected enum('create','attach','detach','delete')"
    ],
    [
      "ALTER TABLE volume_operations MODIFY status VARCHAR(16) NOT NULL",
      "status is varchar(16), expected enum('pending',"
    ],
    ["ALTER TABLE volume_operations ADD COLUMN tenant INT NOT NULL", "column tenant, which volumed does not know"],
    ["ALTER TABLE volume_operations DROP PRIMARY KEY", "volume_operations: no unique key over id"],
    ["ALTER TABLE volume_operations ADD COLUMN uid INT NULL", "column uid is int(11), expected text"],
    ["ALTER TABLE volume_operations ADD COLUMN uid VARCHAR(36) NULL", "latin1_swedish_ci, expected a collation"],
    [
      "ALTER TABLE volume_operations DROP INDEX idx_volume_operations_status, ADD INDEX idx_volume_operations_status (id)",
      "index idx_volume_operations_status is over id, expected status"
    ],
    ["ALTER TABLE device_mappings DROP INDEX unique_device_path", "device_mappings: no unique key over device_path"],
    ["ALTER TABLE device_mappings ENGINE = MyISAM", "its engine is MyISAM, expected InnoDB"],
    ["CREATE TABLE events (id BIGINT PRIMARY KEY, what TEXT)", "table events: column at is missing"],
    ["CREATE VIEW declarations AS SELECT 1 AS uid", "table declarations is a view"],
    [
      "CREATE TABLE schema_version (id BIGINT PRIMARY KEY, version INT)",
      "table schema_version: column name is missing"
    ],
    [
      "ALTER TABLE volume_operations ADD CONSTRAINT of_mapping FOREIGN KEY (volume_id) REFERENCES device_mappings (volume_id)",
      "volume_operations: foreign key of_mapping"
    ]
  ]

  it.effect("is refused unchanged when it has another shape, naming the difference and the way out (B9)", () =>
    Effect.gen(function* () {
      for (const [alteration, said] of alterations) {
        const target = yield* database(...Documented.tables, alteration)
        const before = yield* stateOf(target)
        const refused = yield* refusal(Effect.provide(Store, storeOn(target)))
        assert.strictEqual(refused._tag, "Misconfigured", alteration)
        assert.include(refused.message, said)
        assert.include(refused.message, "volumed import --from")
        assert.deepStrictEqual(yield* stateOf(target), before, alteration)
        yield* server.query("", `DROP DATABASE ${target.database}`)
      }
    })
  )

  it.effect("is refused when a table of ours was changed behind us, or ties others to it", () =>
    Effect.gen(function* () {
      const changes: ReadonlyArray<readonly [string, string]> = [
        ["ALTER TABLE declarations CONVERT TO CHARACTER SET utf8mb4 COLLATE utf8mb4_general_ci", "compares bytes"],
        ["ALTER TABLE declarations DROP INDEX unique_living_name", "no unique key over living_name"],
        ["ALTER TABLE volume_operations DROP INDEX unique_unresolved_uid", "no unique key over unresolved_uid"],
        ["ALTER TABLE lease DROP COLUMN last_write", "table lease: column last_write is missing"],
        ["ALTER TABLE events MODIFY id VARCHAR(64)", "column id is varchar(64), expected an integer"],
        ["DROP TABLE approvals", "table approvals is missing"],
        [
          "ALTER TABLE volume_operations DROP INDEX idx_volume_operations_page",
          "index idx_volume_operations_page over created_iso,id is missing"
        ],
        ["DROP VIEW volumed_exports", "table volumed_exports is missing"],
        [
          `ALTER TABLE conditions ADD CONSTRAINT of_declaration FOREIGN KEY (uid) REFERENCES declarations (uid)`,
          "foreign key of_declaration"
        ],
        [`UPDATE schema_version SET name = 'other' WHERE id = 3`, `step 3 of its schema is "other"`],
        [
          `INSERT INTO schema_version VALUES (${SCHEMA_VERSION + 1}, 'tomorrow', '2030-01-01T00:00:00.000Z')`,
          `has schema ${SCHEMA_VERSION + 1}, written by a newer volumed; this one knows ${SCHEMA_VERSION}`
        ]
      ]
      for (const [change, said] of changes) {
        const target = yield* database()
        yield* on(target, migrate)
        yield* server.query(target.database, change)
        const before = yield* stateOf(target)
        const refused = yield* refusal(Effect.provide(Store, storeOn(target)))
        assert.strictEqual(refused._tag, "Misconfigured", change)
        assert.include(refused.message, said)
        assert.deepStrictEqual(yield* stateOf(target), before, change)
        yield* server.query("", `DROP DATABASE ${target.database}`)
      }
    })
  )

  it.effect("is told from one that is only behind, without changing either", () =>
    Effect.gen(function* () {
      const target = yield* documented()
      const before = yield* stateOf(target)
      const found = yield* on(target, inspect)
      assert.deepInclude(found, { _tag: "Behind", version: 0 })
      assert.deepStrictEqual(yield* stateOf(target), before)
      yield* on(target, migrate)
      assert.deepStrictEqual(yield* on(target, inspect), { _tag: "Current" })
      yield* server.query(target.database, `DELETE FROM schema_version WHERE id >= ${SCHEMA_VERSION - 1}`)
      const older = yield* on(target, inspect)
      assert.deepInclude(older, { _tag: "Behind", version: SCHEMA_VERSION - 2 })
      assert.strictEqual(older._tag === "Behind" ? older.pending.length : 0, 2)
      yield* server.query(target.database, "INSERT INTO schema_version VALUES (9999, 'x', '')")
      assert.deepStrictEqual(yield* on(target, inspect), { _tag: "Newer", version: 9999 })
      yield* server.query(target.database, "DELETE FROM schema_version", "ALTER TABLE events DROP COLUMN at")
      const foreign = yield* on(target, inspect)
      assert.deepStrictEqual(foreign, { _tag: "Foreign", differences: ["table events: column at is missing"] })
    })
  )

  it.effect("is not taken for one when it only does not answer", () =>
    Effect.gen(function* () {
      const target = yield* server.database()
      const nowhere = yield* refusal(on({ ...target, port: 1 }, migrate))
      assert.deepInclude(nowhere, { _tag: "StoreUnavailable", problem: "unreachable" })
      const nobody = yield* refusal(on({ ...target, user: "nobody" }, migrate))
      assert.deepInclude(nobody, { _tag: "StoreUnavailable", problem: "refused" })
    })
  )
})

describe("what MariaDB stores", () => {
  it.effect("outlives the connection, whatever the times: before 1970's first second and after 2038", () =>
    Effect.gen(function* () {
      const target = yield* database()
      for (const [n, at] of [
        "1970-01-01T00:00:00.000Z",
        "2026-03-01T12:00:00.999Z",
        "2040-01-01T00:00:00.001Z"
      ].entries()) {
        const before = yield* Effect.gen(function* () {
          const store = yield* Store
          yield* TestClock.setTime(Date.parse(at))
          yield* store.write([write(n, { deletion: n === 2 ? removal : null })])
          const { operation_id } = yield* store.intend(attach(n))
          yield* store.saveDeviceMappings([{ volume_id: volumeId(n), vm_id: vm, device_path: `/dev/${n}`, size: n }])
          const operation = Option.getOrThrow(yield* store.operation(operation_id))
          assert.strictEqual(operation.created_at, at)
          return { operation, mappings: yield* store.deviceMappings, declared: yield* store.declarations }
        }).pipe(Effect.provide(storeOn(target)))
        const after = yield* Effect.gen(function* () {
          const store = yield* Store
          const operation = Option.getOrThrow(yield* store.operation(before.operation.id))
          return { operation, mappings: yield* store.deviceMappings, declared: yield* store.declarations }
        }).pipe(Effect.provide(storeOn(target)))
        // A predecessor's call lives for a minute from the next start.
        const expires_at = Date.parse(at) + EXPIRY_MS
        assert.deepStrictEqual(after, { ...before, operation: { ...before.operation, expires_at } })
        assert.strictEqual(after.declared.find(({ uid }) => uid === uidOf(n))?.created_at, at)
      }
    })
  )

  it.effect("is described by its engine, and whether a commit survives a power cut", () =>
    Effect.gen(function* () {
      const target = yield* database()
      const described = Effect.flatMap(Store, (store) => store.describe).pipe(Effect.provide(storeOn(target)))
      assert.deepInclude(yield* described, { durable: true, schema_version: SCHEMA_VERSION })
      assert.match((yield* described).engine, /^mariadb \d+\.\d+\.\d+$/)
      yield* server.query("", "SET GLOBAL innodb_flush_log_at_trx_commit = 2")
      assert.isFalse((yield* described).durable)
      yield* server.query("", "SET GLOBAL innodb_flush_log_at_trx_commit = 1")
    })
  )
})
