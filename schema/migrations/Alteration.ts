import * as SqlClient from "@effect/sql/SqlClient"
import type * as SqlError from "@effect/sql/SqlError"
import { Effect } from "effect"

/** One step of the schema's history. */
export type Migration = Effect.Effect<unknown, SqlError.SqlError, SqlClient.SqlClient>

/** What definitions say differently in the two dialects. */
interface Words {
  /** A time as RFC 3339 with ms, compared and indexed as text. */
  readonly time: string
  readonly text: string
  /** Without its CHECK (json_valid(…)), which each column brings. */
  readonly json: string
  /** A key that is given out once and never again, so that a reader can resume after it. */
  readonly counter: string
  /** How a text column compares that is added to a table with another default: byte by byte, with its trailing blanks. */
  readonly exact: string
  /** After the columns of a table. */
  readonly end: string
}

const sqlite: Words = {
  time: "TEXT",
  text: "TEXT",
  json: "TEXT",
  counter: "INTEGER PRIMARY KEY AUTOINCREMENT",
  exact: "",
  end: ""
}

const mysql = (collation: string): Words => ({
  time: `VARCHAR(40) CHARACTER SET utf8mb4 COLLATE ${collation}`,
  text: "LONGTEXT",
  json: "LONGTEXT",
  counter: "BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY",
  exact: ` CHARACTER SET utf8mb4 COLLATE ${collation}`,
  end: ` ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE ${collation}`
})

/** The collation that compares bytes and pads nothing is named differently in the two servers. */
const words: Effect.Effect<Words, SqlError.SqlError, SqlClient.SqlClient> = Effect.flatMap(SqlClient.SqlClient, (sql) =>
  sql.onDialectOrElse({
    mysql: () =>
      Effect.map(sql<{ version: string }>`SELECT VERSION() AS version`, ([row]) =>
        mysql(row?.version.includes("MariaDB") === true ? "utf8mb4_nopad_bin" : "utf8mb4_0900_bin")
      ),
    orElse: () => Effect.succeed(sqlite)
  })
)

/** One for each dialect, where they share nothing. */
export const either = (steps: { readonly mysql: Migration; readonly sqlite: Migration }): Migration =>
  Effect.flatMap(SqlClient.SqlClient, (sql) =>
    sql.onDialectOrElse({ mysql: () => steps.mysql, orElse: () => steps.sqlite })
  )

/** What only SQLite needs, because MySQL's table was made with it, or must keep what this takes away. */
export const sqliteOnly = (step: Migration): Migration => either({ mysql: Effect.void, sqlite: step })

const run = (definition: (words: Words) => string): Migration =>
  Effect.gen(function* () {
    const sql = yield* SqlClient.SqlClient
    const text = definition(yield* words)
    yield* sql`${sql.literal(text)}`
  })

export const createTable = (name: string, columns: (words: Words) => string): Migration =>
  run((words) => `CREATE TABLE IF NOT EXISTS ${name} (${columns(words)})${words.end}`)

/** MySQL knows no `CREATE VIEW IF NOT EXISTS`, and a view of a user who was removed since would answer nobody. */
export const createView = (name: string, query: string): Migration =>
  either({
    mysql: run(() => `CREATE OR REPLACE SQL SECURITY INVOKER VIEW ${name} AS ${query}`),
    sqlite: run(() => `CREATE VIEW IF NOT EXISTS ${name} AS ${query}`)
  })

/** Neither SQLite nor MySQL knows `ADD COLUMN IF NOT EXISTS`. */
export const addColumn = (table: string, column: string, definition: (words: Words) => string): Migration =>
  Effect.gen(function* () {
    if ((yield* columnsOf(table)).some(({ name }) => name === column)) return
    yield* run((words) => `ALTER TABLE ${table} ADD COLUMN ${column} ${definition(words)}`)
  })

export interface Column {
  readonly name: string
  /** As it is defined, `enum('a','b')`; on SQLite only the name is told. */
  readonly type: string
  /** Of MySQL, where the column holds text. */
  readonly collation: string | null
}

/** The columns of a table as it is; none where there is no such table. */
export const columnsOf = (
  table: string
): Effect.Effect<ReadonlyArray<Column>, SqlError.SqlError, SqlClient.SqlClient> =>
  Effect.flatMap(SqlClient.SqlClient, (sql) =>
    sql.onDialectOrElse({
      mysql: () => sql<Column>`SELECT column_name AS name, column_type AS type, collation_name AS collation
        FROM information_schema.columns WHERE table_schema = DATABASE() AND table_name = ${table}`,
      orElse: () => sql<Column>`SELECT name, type, NULL AS collation FROM pragma_table_info(${table})`
    })
  )

/**
 * Makes the table, or where there is one already all that it lacks in a single statement, so that a crash leaves either
 * none of it or all. `changes`: what else that statement is to do, given the columns as they are.
 */
export const createOrComplete = (
  name: string,
  theirs: string,
  ours: (words: Words) => ReadonlyArray<string>,
  changes: (columns: ReadonlyArray<Column>) => ReadonlyArray<string>
): Migration =>
  Effect.gen(function* () {
    const columns = yield* columnsOf(name)
    if (columns.length === 0) {
      yield* createTable(name, (words) => [theirs, ...ours(words)].join(", "))
      return
    }
    const present = new Set(columns.map((column) => column.name))
    const missing = ours(yield* words).filter((definition) => !present.has(definition.split(" ")[0] ?? ""))
    const all = [...changes(columns), ...missing.map((definition) => `ADD COLUMN ${definition}`)]
    if (all.length > 0) yield* run(() => `ALTER TABLE ${name} ${all.join(", ")}`)
  })

export const addIndex = (name: string, table: string, columns: ReadonlyArray<string>): Migration =>
  index("INDEX", name, table, columns)

export const addUnique = (name: string, table: string, columns: ReadonlyArray<string>): Migration =>
  index("UNIQUE INDEX", name, table, columns)

const index = (kind: string, name: string, table: string, columns: ReadonlyArray<string>): Migration => {
  const rest = `${name} ON ${table} (${columns.join(", ")})`
  return either({
    mysql: Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      const present = yield* sql`SELECT 1 FROM information_schema.statistics
        WHERE table_schema = DATABASE() AND table_name = ${table} AND index_name = ${name} LIMIT 1`
      if (present.length === 0) yield* run(() => `CREATE ${kind} ${rest}`)
    }),
    sqlite: run(() => `CREATE ${kind} IF NOT EXISTS ${rest}`)
  })
}

export const dropIndex = (name: string): Migration => run(() => `DROP INDEX IF EXISTS ${name}`)
