import * as SqlClient from "@effect/sql/SqlClient"
import { Clock, Effect } from "effect"
import { Misconfigured, type StoreUnavailable } from "../../schema/Errors.ts"
import { createTable, type Migration } from "../../schema/migrations/Alteration.ts"
import { date } from "../../schema/migrations/VolumeOperations.ts"
import { migrations } from "../../schema/migrations/Migrations.ts"
import * as Dialect from "./Dialect.ts"
import { EXAMPLE } from "./Dsn.ts"
import * as Shape from "./Shape.ts"
import * as Tables from "./Tables.ts"
import { read } from "./Transact.ts"

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

/** How the database stands to this program. Nothing is changed to find out. */
export type Inspection =
  | { readonly _tag: "Current" }
  /** `version`: of the newest recorded step, 0 where there is none. `pending`: the names of the steps to come. */
  | { readonly _tag: "Behind"; readonly version: number; readonly pending: ReadonlyArray<string> }
  | { readonly _tag: "Newer"; readonly version: number }
  /** Another program's, or changed by one: a sentence for each difference. */
  | { readonly _tag: "Foreign"; readonly differences: ReadonlyArray<string> }

export const inspect: Effect.Effect<Inspection, StoreUnavailable, SqlClient.SqlClient> = Effect.gen(function* () {
  const sql = yield* SqlClient.SqlClient
  const shape = yield* read(Shape.read(sql))
  const history = shape.tables.get("schema_version")
  const legible = history === undefined || ["id", "name"].every((column) => history.columns.has(column))
  const recorded = history === undefined || !legible ? [] : yield* readRecorded(sql)
  const version = recorded.at(-1)?.id ?? 0
  if (version > SCHEMA_VERSION) return { _tag: "Newer", version }
  const other = recorded.find((row) => steps.find((step) => step.id === row.id)?.name !== row.name)
  const foreign =
    other === undefined ? [] : [`step ${other.id} of its schema is "${other.name}", which this program does not know`]
  const done = new Set(recorded.map((row) => row.id))
  const differences = [...foreign, ...Tables.differences(shape, done)]
  if (differences.length > 0) return { _tag: "Foreign", differences }
  const pending = steps.filter((step) => !done.has(step.id)).map((step) => step.name)
  return pending.length === 0 ? { _tag: "Current" } : { _tag: "Behind", version, pending }
})

const readRecorded = (sql: SqlClient.SqlClient) =>
  read(sql<{ id: number; name: string }>`SELECT id, name FROM schema_version ORDER BY id`).pipe(
    Effect.map((rows) => rows.map((row) => ({ id: Number(row.id), name: String(row.name) })))
  )

/** Why the daemon must not use this database, and the way out; null when it may, once the schema is up to date. */
export const refusalOf = (inspection: Inspection): Misconfigured | null => {
  switch (inspection._tag) {
    case "Current":
    case "Behind":
      return null
    case "Newer":
      return refuse(
        `the database has schema ${inspection.version}, written by a newer volumed; this one knows ` +
          `${SCHEMA_VERSION}. Start that version again, or restore a backup from before the upgrade`
      )
    case "Foreign":
      return refuse(
        `the database is not as volumed makes or knows it, and nothing was changed: ${listed(inspection.differences)}. ` +
          "Give volumed a database of its own and bring the other's volumes over with `volumed import --from DSN`, " +
          "or restore a backup"
      )
  }
}

/** Differences that are named one by one. */
const NAMED = 10

const listed = (differences: ReadonlyArray<string>) =>
  differences.length <= NAMED
    ? differences.join("; ")
    : `${differences.slice(0, NAMED).join("; ")}; and ${differences.length - NAMED} more`

const refuse = (problem: string) =>
  new Misconfigured({ problems: [{ key: "DATABASE_DSN", problem, example: EXAMPLE }] })

/** One statement of a step may change a table of millions of rows, ms. */
const STEP_MS = 3_600_000

/**
 * Bring the schema up to date, one recorded step after the other; run again after a crash it goes on where it stopped.
 * A database that a newer program has written, or whose tables are not the documented ones, is refused unchanged (B9).
 * Two must not run at once: whoever calls it is the only one to write.
 *
 * The migrator of @effect/sql records all steps before it runs the first: where DDL commits by itself (MySQL) a failing
 * step then counts as done. Hence this one.
 */
export const migrate: Effect.Effect<void, Misconfigured | StoreUnavailable, SqlClient.SqlClient> = Effect.gen(
  function* () {
    const sql = yield* SqlClient.SqlClient
    const before = yield* inspect
    yield* accept(before)
    if (before._tag === "Behind") {
      yield* read(Effect.provideService(history, SqlClient.SqlClient, sql))
      const done = new Set((yield* readRecorded(sql)).map((row) => row.id))
      for (const step of steps) if (!done.has(step.id)) yield* apply(step)
      yield* accept(yield* inspect)
    }
    // The predecessor may have run again in between.
    else
      yield* read(
        sql.onDialectOrElse({
          mysql: () => Effect.provideService(date, SqlClient.SqlClient, sql),
          orElse: () => Effect.void
        })
      )
  }
).pipe(Effect.locally(Dialect.statementLimit, STEP_MS))

const accept = (inspection: Inspection): Effect.Effect<void, Misconfigured> => {
  const refused = refusalOf(inspection)
  return refused === null ? Effect.void : Effect.fail(refused)
}

const history = createTable(
  "schema_version",
  ({ time }) => `
    id BIGINT NOT NULL PRIMARY KEY,
    name VARCHAR(255) NOT NULL,
    applied_at ${time} NOT NULL`
)

const apply = Effect.fnUntraced(function* (step: Step) {
  const sql = yield* SqlClient.SqlClient
  const at = new Date(yield* Clock.currentTimeMillis).toISOString()
  yield* read(Effect.provideService(step.up, SqlClient.SqlClient, sql))
  yield* read(sql`INSERT INTO schema_version ${sql.insert({ id: step.id, name: step.name, applied_at: at })}`)
  yield* Effect.logDebug("schema step applied").pipe(Effect.annotateLogs({ step: step.id, name: step.name }))
})
