import * as SqlClient from "@effect/sql/SqlClient"
import { Clock, Effect } from "effect"
import { Misconfigured, type StoreUnavailable } from "../../schema/Errors.ts"
import type { Migration } from "../../schema/migrations/Alteration.ts"
import { migrations } from "../../schema/migrations/Migrations.ts"
import * as Dialect from "./Dialect.ts"
import { EXAMPLE } from "./Dsn.ts"
import { explain, read } from "./Transact.ts"

interface Step {
  readonly id: number
  readonly name: string
  readonly up: Migration
}

const steps: ReadonlyArray<Step> = Object.entries(migrations).map(([key, up]) => ({
  id: Number(key.slice(0, 4)),
  name: key.slice(5),
  up
}))

/** The schema this program writes. */
export const SCHEMA_VERSION: number = steps.at(-1)?.id ?? 0

/**
 * Bring the schema up to date, one recorded step after the other; run again after a crash it goes on where it stopped.
 * A database that a newer program has written, or whose tables are not the documented ones, is refused unchanged (B9).
 *
 * The migrator of @effect/sql records all steps before it runs the first: where DDL commits by itself (MySQL) a failing
 * step then counts as done. Hence this one.
 */
export const migrate: Effect.Effect<void, Misconfigured | StoreUnavailable, SqlClient.SqlClient> = Effect.gen(
  function* () {
    const sql = yield* SqlClient.SqlClient
    const present = yield* read(Dialect.tables(sql))
    const recorded = present.has("schema_version") ? yield* readApplied : []
    // Nothing recorded: whatever bears one of our names is a step that a crash kept from being recorded, or foreign.
    if (recorded.length === 0) yield* verify(founding, (table) => present.has(table))
    yield* refuseForeign(recorded)
    yield* read(sql`CREATE TABLE IF NOT EXISTS schema_version (
      id BIGINT NOT NULL PRIMARY KEY,
      name VARCHAR(255) NOT NULL,
      applied_at TEXT NOT NULL
    )`)
    const done = new Set(recorded.map((row) => row.id))
    for (const step of steps) if (!done.has(step.id)) yield* apply(step)
    yield* verify(founding, () => true)
    yield* verify(later, () => true)
  }
)

const readApplied = Effect.gen(function* () {
  const sql = yield* SqlClient.SqlClient
  yield* verifyTable("schema_version", ["id", "name", "applied_at"])
  const rows = yield* read(sql<{ id: number; name: string }>`SELECT id, name FROM schema_version ORDER BY id`)
  return rows.map((row) => ({ id: Number(row.id), name: String(row.name) }))
})

const apply = Effect.fnUntraced(function* (step: Step) {
  const sql = yield* SqlClient.SqlClient
  const at = new Date(yield* Clock.currentTimeMillis).toISOString()
  yield* read(Effect.provideService(step.up, SqlClient.SqlClient, sql))
  yield* read(sql`INSERT INTO schema_version ${sql.insert({ id: step.id, name: step.name, applied_at: at })}`)
  yield* Effect.logDebug("schema step applied").pipe(Effect.annotateLogs({ step: step.id, name: step.name }))
})

const refuse = (problem: string) =>
  new Misconfigured({
    problems: [{ key: "DATABASE_DSN", problem, example: EXAMPLE }]
  })

const refuseForeign = (applied: ReadonlyArray<Pick<Step, "id" | "name">>) => {
  const newest = applied.at(-1)?.id ?? 0
  if (newest > SCHEMA_VERSION)
    return Effect.fail(
      refuse(
        `the database has schema ${newest}, written by a newer volumed; this one knows ${SCHEMA_VERSION}. ` +
          "Start that version again, or restore a backup from before the upgrade"
      )
    )
  const other = applied.find((row) => steps.find((step) => step.id === row.id)?.name !== row.name)
  return other === undefined
    ? Effect.void
    : Effect.fail(
        refuse(
          `step ${other.id} of the database's schema is "${other.name}", which this program does not know: ` +
            "another program's database. Give volumed one of its own"
        )
      )
}

type Columns = Readonly<Record<string, ReadonlyArray<string>>>

/** What the queries rely on. A table of the same name and another shape is found here, before the first row is written. */
const founding: Columns = {
  volume_operations: [
    "id",
    "type",
    "status",
    "volume_id",
    "vm_id",
    "request",
    "response",
    "error",
    "created_at",
    "updated_at",
    "completed_at",
    "name",
    "uid",
    "unresolved_uid",
    "cause",
    "actor",
    "generation",
    "phase",
    "job_id",
    "attempts",
    "parent_id",
    "destructive",
    "submitted_at",
    "expires_at"
  ],
  device_mappings: [
    "id",
    "volume_id",
    "vm_id",
    "device_path",
    "cloudstack_state",
    "linux_state",
    "size",
    "last_sync",
    "created_at",
    "updated_at"
  ],
  declarations: [
    "uid",
    "name",
    "living_name",
    "generation",
    "set_name",
    "spec",
    "managers",
    "binding",
    "bound_volume_id",
    "deletion",
    "written_by",
    "created_at",
    "updated_at",
    "removed_at"
  ],
  conditions: ["uid", "conditions", "updated_at"],
  approvals: ["uid", "generation", "volume_id", "action", "name", "digest", "expires_at"],
  exports: ["uid", "volume_id", "export_name", "device_path", "settled_at"],
  volumed_exports: ["volume_id", "name", "export_name", "device_path", "settled_at"],
  events: ["id", "at", "kind", "name", "actor", "message"],
  lease: ["id", "term", "holder", "acquired_at"],
  idempotency_keys: ["idempotency_key", "digest", "status", "response", "created_at"],
  maintenance: ["id", "reason", "begun_by", "begun_at", "ends_at", "ending"],
  withheld: ["uid", "generation", "volume_id", "action", "name", "digest"]
}

/** Columns that came to a table after it was made, so that a crash between the two left it without them. */
const later: Columns = {
  volume_operations: ["wish", "deadline_at", "open_call_uid"],
  events: ["uid", "operation_id"]
}

const verify = (columns: Columns, concerns: (table: string) => boolean) =>
  Effect.forEach(
    Object.entries(columns),
    ([table, names]) => (concerns(table) ? verifyTable(table, names) : Effect.void),
    { discard: true }
  )

// The columns are qualified, because SQLite takes a quoted name it does not know for a text.
const verifyTable = Effect.fnUntraced(function* (table: string, names: ReadonlyArray<string>) {
  const sql = yield* SqlClient.SqlClient
  const list = sql.csv(names.map((name) => sql`${sql(table)}.${sql(name)}`))
  yield* sql`SELECT ${list} FROM ${sql(table)} WHERE 1 = 0`.pipe(
    Effect.mapError((error) =>
      refuse(
        `table ${table} is not as volumed made it (${explain(error)}). Give volumed a database of its own, ` +
          "or restore a backup"
      )
    )
  )
})
