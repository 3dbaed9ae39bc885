import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import Database from "libsql"
import * as Fs from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as Tables from "../../src/Import/Tables.ts"
import type * as Dsn from "../../src/Store/Dsn.ts"
import * as Documented from "../Store/Documented.ts"
import * as MariaDb from "../support/MariaDb.ts"

const A = "ae7d5168-d184-5908-8f1e-aaaaaaaaaaaa"

/** Somebody who may look, and nothing else: an import needs no more. */
const reader = (db: MariaDb.MariaDb, database: string) =>
  Effect.gen(function* () {
    const target = yield* db.database(database)
    yield* db.query("", `REVOKE ALL ON ${database}.* FROM '${database}'@'%'`)
    yield* db.query("", `GRANT SELECT ON ${database}.* TO '${database}'@'%'`)
    return { _tag: "Mysql", target, warnings: [] } satisfies Dsn.Dsn
  })

describe("The older daemon's tables", () => {
  it.scoped("are read from MariaDB by somebody who may only look, as text, whatever is in them (B10, X8)", () =>
    Effect.gen(function* () {
      const db = yield* MariaDb.start("--sql-mode=")
      const dsn = yield* reader(db, "old")
      const hostile = "''; DROP TABLE device_mappings; -- \\0 \\n 😀 ] [generic]"
      yield* db.query(
        "old",
        Documented.mappings,
        Documented.operations,
        'CREATE TABLE OSSEA_VOLUMES (`vol``ume"` VARBINARY(400), size DOUBLE, at DATETIME, b BLOB) CHARSET utf8mb4',
        `INSERT INTO device_mappings (id, volume_id, vm_id, device_path, cloudstack_state, linux_state, size)
         VALUES ('m-1', '${A}', 'vm', '/dev/disk/by-id/virtio-ae7d5168d184590881ea', 'attached', 'detected', 1)`,
        `INSERT INTO OSSEA_VOLUMES VALUES ('${hostile}', 1.5, '2025-09-30 10:00:00', x'fffe00'), (REPEAT('x', 400), NULL, NULL, NULL)`,
        `INSERT INTO volume_operations (id, type, status, volume_id, request)
         VALUES ('op-1', 'attach', 'executing', '${A}', '{}'), ('op-2', 'create', 'completed', '${A}', '{}')`
      )
      const checksums = () => db.query("old", "CHECKSUM TABLE device_mappings, OSSEA_VOLUMES, volume_operations")
      const before = yield* checksums()
      const old = yield* Tables.read(dsn)
      assert.deepStrictEqual(yield* checksums(), before)
      assert.deepStrictEqual(
        old.unfinished.map(({ id, status, type, volume_id }) => [id, type, status, volume_id]),
        [["op-1", "attach", "executing", A]]
      )
      const [mappings, volumes] = ["device_mappings", "ossea_volumes"].map((name) =>
        old.tables.find((table) => table.name === name)
      )
      // As a lax server stored it: the documented column cuts a by-id path off.
      assert.strictEqual(
        mappings?.rows[0]?.[mappings.columns.indexOf("device_path")],
        "/dev/disk/by-id/virtio-ae7d5168d"
      )
      assert.deepStrictEqual(volumes?.columns, ['vol`ume"', "size", "at", "b"])
      assert.deepStrictEqual(volumes?.rows[0]?.slice(0, 3), [
        "'; DROP TABLE device_mappings; -- \u0000 \n 😀 ] [generic]",
        "1.5",
        "2025-09-30 10:00:00"
      ])
      assert.deepStrictEqual(volumes?.rows[1], ["x".repeat(300), null, null, null])
    })
  )

  it.scoped("are told from this program's own rows in the same table", () =>
    Effect.gen(function* () {
      const db = yield* MariaDb.start()
      const dsn = yield* reader(db, "shared")
      yield* db.query(
        "shared",
        Documented.operations,
        "ALTER TABLE volume_operations ADD COLUMN uid VARCHAR(36) NULL",
        `INSERT INTO volume_operations (id, type, status, volume_id, request, uid)
         VALUES ('op-1', 'attach', 'pending', '${A}', '{}', NULL), ('op-2', 'attach', 'pending', '${A}', '{}', 'ours')`
      )
      const { unfinished } = yield* Tables.read(dsn)
      assert.deepStrictEqual(
        unfinished.map(({ id }) => id),
        ["op-1"]
      )
    })
  )

  it.scoped("are read no further than a limit, and that is said (S22)", () =>
    Effect.gen(function* () {
      const db = yield* MariaDb.start()
      const dsn = yield* reader(db, "large")
      yield* db.query(
        "large",
        "CREATE TABLE ossea_volumes (volume_id VARCHAR(64))",
        "INSERT INTO ossea_volumes SELECT seq FROM seq_1_to_60000"
      )
      const [table] = (yield* Tables.read(dsn)).tables
      assert.deepStrictEqual([table?.rows.length, table?.cut], [50_000, true])
    })
  )

  it.scoped("name every unfinished operation, or none is believed (P7, S22)", () =>
    Effect.gen(function* () {
      const db = yield* MariaDb.start()
      const dsn = yield* reader(db, "busy")
      yield* db.query(
        "busy",
        Documented.operations,
        `INSERT INTO volume_operations (id, type, status, volume_id, request)
         SELECT CONCAT('op-', seq), 'attach', 'executing', '${A}', '{}' FROM seq_1_to_1500`
      )
      assert.lengthOf((yield* Tables.read(dsn)).unfinished, 1_500)
      yield* db.query(
        "busy",
        `INSERT INTO volume_operations (id, type, status, volume_id, request)
         SELECT CONCAT('op-', seq), 'attach', 'pending', '${A}', '{}' FROM seq_1501_to_50001`
      )
      assert.match((yield* Effect.flip(Tables.read(dsn))).message, /more than 50000 unfinished operations/)
    })
  )

  it.scoped("whose journal has another shape, are read, and that is said", () =>
    Effect.gen(function* () {
      const db = yield* MariaDb.start()
      const dsn = yield* reader(db, "other")
      yield* db.query("other", "CREATE TABLE volume_operations (id INT, state VARCHAR(20), volume_id VARCHAR(64))")
      const { notes, unfinished } = yield* Tables.read(dsn)
      assert.deepStrictEqual(unfinished, [])
      assert.match(notes.join(), /volume_operations has no type, status, created_at: /)
    })
  )

  it.scoped("that cannot be reached are a sentence without the password (X7)", () =>
    Effect.gen(function* () {
      const db = yield* MariaDb.start()
      const dsn = yield* reader(db, "away")
      yield* db.kill
      const error = yield* Effect.flip(Tables.read(dsn))
      assert.match(error.message, /^away on 127\.0\.0\.1:\d+: .*ECONNREFUSED/)
      assert.notInclude(error.message, "secret of")
    })
  )

  it.scoped("are read from an SQLite file, which stays as it is, and is not made where there is none", () =>
    Effect.gen(function* () {
      const folder = yield* Effect.acquireRelease(
        Effect.sync(() => Fs.mkdtempSync(join(tmpdir(), "volumed import ?#%"))),
        (path) => Effect.sync(() => Fs.rmSync(path, { recursive: true }))
      )
      const file = join(folder, "old.db")
      const absent = yield* Effect.flip(Tables.read({ _tag: "Sqlite", file }))
      assert.include(absent.message, "ENOENT")
      assert.deepStrictEqual(Fs.readdirSync(folder), [])
      const database = new Database(file)
      database.exec(`CREATE TABLE ossea_volumes ("volume ""id" TEXT, n INTEGER)`)
      database.exec(`INSERT INTO ossea_volumes VALUES ('${A}', 7), (NULL, NULL)`)
      database.close()
      const before = Fs.readFileSync(file)
      const { tables, unfinished } = yield* Tables.read({ _tag: "Sqlite", file })
      assert.deepStrictEqual(tables, [
        {
          name: "ossea_volumes",
          columns: ['volume "id', "n"],
          rows: [
            [A, "7"],
            [null, null]
          ],
          cut: false
        }
      ])
      assert.deepStrictEqual(unfinished, [])
      assert.isTrue(before.equals(Fs.readFileSync(file)))
    })
  )
})
