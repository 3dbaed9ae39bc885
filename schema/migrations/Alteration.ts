import * as SqlClient from "@effect/sql/SqlClient"
import type * as SqlError from "@effect/sql/SqlError"
import { Effect } from "effect"

/** One step of the schema's history. */
export type Migration = Effect.Effect<unknown, SqlError.SqlError, SqlClient.SqlClient>

/** What changes a table that is there already. Where dialects write it differently, here is the one place to branch. */

/** Asks first: SQLite knows no `ADD COLUMN IF NOT EXISTS`. */
export const addColumn = (table: string, column: string, definition: string): Migration =>
  Effect.gen(function* () {
    const sql = yield* SqlClient.SqlClient
    const present = yield* sql.onDialectOrElse({
      orElse: () => sql`SELECT name FROM pragma_table_info(${table}) WHERE name = ${column}`
    })
    if (present.length > 0) return
    yield* sql`ALTER TABLE ${sql(table)} ADD COLUMN ${sql(column)} ${sql.literal(definition)}`
  })

export const addIndex = (name: string, table: string, columns: ReadonlyArray<string>): Migration =>
  Effect.flatMap(
    SqlClient.SqlClient,
    (sql) =>
      sql`CREATE INDEX IF NOT EXISTS ${sql(name)} ON ${sql(table)} (${sql.csv(columns.map((c) => sql`${sql(c)}`))})`
  )

export const dropIndex = (name: string): Migration =>
  Effect.flatMap(SqlClient.SqlClient, (sql) => sql`DROP INDEX IF EXISTS ${sql(name)}`)
