import type * as SqlClient from "@effect/sql/SqlClient"
import type { SqlError } from "@effect/sql/SqlError"
import { Effect } from "effect"

/** What a database has, as its own catalogue tells; of SQLite, whose types bind nothing, the names. */
export interface Shape {
  readonly dialect: "mysql" | "sqlite"
  /** Why this server cannot be used at all; null when it can. */
  readonly unsuitable: string | null
  readonly tables: ReadonlyMap<string, Table>
}

export interface Table {
  readonly view: boolean
  /** "InnoDB"; null of a view, and on SQLite. */
  readonly engine: string | null
  readonly columns: ReadonlyMap<string, Column>
  /** Unique ones, and all others, each as its columns in order: "uid,type". */
  readonly unique: ReadonlySet<string>
  readonly indexes: ReadonlyMap<string, string>
  /** Names of the constraints that tie it to other tables. */
  readonly foreignKeys: ReadonlyArray<string>
}

export interface Column {
  /** "varchar", "bigint", "enum"; "" on SQLite. */
  readonly kind: string
  /** As defined: "varchar(64)". */
  readonly type: string
  readonly length: number | null
  readonly nullable: boolean
  /** A row can be inserted that does not name it. */
  readonly optional: boolean
  readonly collation: string | null
}

export const read = (sql: SqlClient.SqlClient): Effect.Effect<Shape, SqlError> =>
  sql.onDialectOrElse({ mysql: () => readMysql(sql), orElse: () => readSqlite(sql) })

const readSqlite = Effect.fnUntraced(function* (sql: SqlClient.SqlClient) {
  const rows = yield* sql<{ table: string; kind: string; column: string }>`SELECT m.name AS "table", m.type AS kind,
    c.name AS "column" FROM sqlite_master AS m JOIN pragma_table_info(m.name) AS c WHERE m.type IN ('table', 'view')`
  const column: Column = { kind: "", type: "", length: null, nullable: true, optional: true, collation: null }
  const none = { engine: null, unique: new Set<string>(), indexes: new Map<string, string>(), foreignKeys: [] }
  const tables = new Map(
    [...grouped(rows)].map(([name, rows]): [string, Table] => [
      name,
      { ...none, view: rows[0]?.kind === "view", columns: new Map(rows.map((row) => [row.column, column])) }
    ])
  )
  return { dialect: "sqlite", unsuitable: null, tables } satisfies Shape
})

const readMysql = Effect.fnUntraced(function* (sql: SqlClient.SqlClient) {
  const [server] = yield* sql<{ version: string }>`SELECT VERSION() AS version`
  const tables = yield* sql<{
    table: string
    kind: string
    engine: string | null
  }>`SELECT table_name AS ${sql("table")},
    table_type AS kind, engine AS engine FROM information_schema.tables WHERE table_schema = DATABASE()`
  const columns = yield* sql<ColumnRow>`SELECT table_name AS ${sql("table")}, column_name AS ${sql("column")},
    data_type AS kind, column_type AS type, character_maximum_length AS length, is_nullable AS nullable,
    column_default AS preset, extra AS extra, collation_name AS collation
    FROM information_schema.columns WHERE table_schema = DATABASE() ORDER BY ordinal_position`
  const indexes = yield* sql<{ table: string; name: string; column: string | null; plain: number }>`SELECT
    table_name AS ${sql("table")}, index_name AS name, column_name AS ${sql("column")}, non_unique AS plain
    FROM information_schema.statistics WHERE table_schema = DATABASE() ORDER BY seq_in_index`
  const foreign = yield* sql<{ table: string; name: string }>`SELECT table_name AS ${sql("table")},
    constraint_name AS name FROM information_schema.table_constraints
    WHERE table_schema = DATABASE() AND constraint_type = 'FOREIGN KEY'`
  const [columnsBy, indexesBy, foreignBy] = [grouped(columns), grouped(indexes), grouped(foreign)]
  return {
    dialect: "mysql",
    unsuitable: unsuitable(server?.version ?? ""),
    tables: new Map(
      tables.map(({ table, kind, engine }): [string, Table] => [
        table,
        {
          view: kind.includes("VIEW"),
          engine,
          columns: new Map((columnsBy.get(table) ?? []).map((row) => [row.column, columnOf(row)])),
          ...indexesOf(indexesBy.get(table) ?? []),
          foreignKeys: (foreignBy.get(table) ?? []).map(({ name }) => name)
        }
      ])
    )
  } satisfies Shape
})

interface ColumnRow {
  readonly table: string
  readonly column: string
  readonly kind: string
  readonly type: string
  readonly length: number | null
  readonly nullable: string
  readonly preset: string | null
  readonly extra: string
  readonly collation: string | null
}

const columnOf = ({ kind, type, length, nullable, preset, extra, collation }: ColumnRow): Column => ({
  kind: kind.toLowerCase(),
  type,
  length: length === null ? null : Number(length),
  nullable: nullable === "YES",
  optional: nullable === "YES" || preset !== null || /auto_increment|generated/i.test(extra),
  collation
})

const indexesOf = (rows: ReadonlyArray<{ name: string; column: string | null; plain: number }>) => {
  const columns = new Map<string, string>()
  const unique = new Set<string>()
  for (const { name, column } of rows)
    columns.set(name, columns.has(name) ? `${columns.get(name)},${column}` : String(column))
  for (const { name, plain } of rows) if (Number(plain) === 0) unique.add(columns.get(name) ?? "")
  return { indexes: columns, unique }
}

const grouped = <A extends { readonly table: string }>(rows: ReadonlyArray<A>) => {
  const found = new Map<string, Array<A>>()
  for (const row of rows) {
    const those = found.get(row.table)
    if (those === undefined) found.set(row.table, [row])
    else those.push(row)
  }
  return found
}

/** Below these there is no collation that compares bytes alone, or no CHECK. */
const unsuitable = (version: string): string | null => {
  const [major = 0, minor = 0, patch = 0] = (/^\d+(\.\d+)*/.exec(version)?.[0] ?? "").split(".").map(Number)
  const number = major * 1_000_000 + minor * 1000 + patch
  const [name, least] = version.includes("MariaDB") ? ["MariaDB", 10_003_000] : ["MySQL", 8_000_019]
  if (number >= least) return null
  return `the server is ${name} ${version}, and volumed needs MariaDB 10.3 or MySQL 8.0.19`
}
