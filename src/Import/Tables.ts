import { SqlError } from "@effect/sql/SqlError"
import Database from "libsql"
import { Data, Effect, type Scope } from "effect"
import { constants } from "node:fs"
import { access } from "node:fs/promises"
import { resolve } from "node:path"
import { pathToFileURL } from "node:url"
import * as Mysql from "mysql2/promise"
import type { Table, Unfinished } from "../../reconciler/OldTables.ts"
import * as Dsn from "../Store/Dsn.ts"
import * as MysqlTarget from "../Store/Mysql.ts"
import { explain } from "../Store/Transact.ts"

/** The tables of the older daemon could not be read. */
export class TablesUnread extends Data.TaggedError("TablesUnread")<{
  readonly message: string
  readonly cause?: unknown
}> {}

export interface Old {
  readonly tables: ReadonlyArray<Table>
  readonly unfinished: ReadonlyArray<Unfinished>
  /** What could not be understood as a whole. */
  readonly notes: ReadonlyArray<string>
}

/** Tables whose rows say something about volumes. */
const NAMES = ["device_mappings", "vm_export_mappings", "ossea_volumes"]
const JOURNAL = "volume_operations"

const ROWS_MAX = 50_000
const UNFINISHED_MAX = 50_000
const COLUMNS_MAX = 64
/** Characters of a value; an id, a path and a name are all shorter. */
const VALUE_MAX = 300
const TIME_MAX = "60 seconds"

/** A statement in, rows of texts out. Nothing that it is given can write. */
interface Reader {
  readonly rows: (statement: string) => Promise<ReadonlyArray<ReadonlyArray<unknown>>>
  /** Table and column of all that is there, in their order. */
  readonly catalogue: string
  readonly quote: (name: string) => string
  /** The beginning of a value as text. */
  readonly text: (column: string) => string
}

/** All of them that are there, read only and from one moment. */
export const read = (dsn: Dsn.Dsn): Effect.Effect<Old, TablesUnread> => {
  const unread = (why: string, cause?: unknown) => new TablesUnread({ message: `${Dsn.place(dsn)}: ${why}`, cause })
  return Effect.scoped(
    Effect.flatMap(dsn._tag === "Mysql" ? mysql(dsn.target) : sqlite(dsn.file), (reader) =>
      attempt(() => readAll(reader))
    )
  ).pipe(
    Effect.mapError((cause) => unread(explain(cause), cause)),
    Effect.timeoutFail({ duration: TIME_MAX, onTimeout: () => unread(`not read within ${TIME_MAX}`) })
  )
}

const attempt = <A>(run: () => Promise<A>): Effect.Effect<A, SqlError> =>
  Effect.tryPromise({ try: run, catch: (cause) => new SqlError({ cause, message: "read failed" }) })

const mysql = (target: MysqlTarget.Target): Effect.Effect<Reader, SqlError, Scope.Scope> =>
  Effect.acquireRelease(
    attempt(() => Mysql.createConnection(MysqlTarget.options(target))),
    (connection) => Effect.sync(() => connection.destroy())
  ).pipe(
    Effect.tap((connection) =>
      attempt(async () => {
        await connection.query("SET SESSION TRANSACTION READ ONLY")
        await connection.query("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        await connection.query("START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY")
      })
    ),
    Effect.map((connection) => ({
      rows: async (statement) => {
        const [rows] = await connection.query<Mysql.RowDataPacket[][]>({ sql: statement, rowsAsArray: true })
        return rows
      },
      catalogue: `SELECT table_name, column_name FROM information_schema.columns
        WHERE table_schema = DATABASE() ORDER BY table_name, ordinal_position`,
      quote: (name) => `\`${name.replaceAll("`", "``")}\``,
      text: (column) => `LEFT(CAST(${column} AS CHAR), ${VALUE_MAX})`
    }))
  )

/** The driver's own `readonly` keeps nobody from writing; SQLite's `mode=ro` does. A file that is not there is not made. */
const sqlite = (file: string): Effect.Effect<Reader, SqlError, Scope.Scope> =>
  Effect.acquireRelease(
    attempt(async () => {
      await access(file, constants.R_OK)
      const database = new Database(`file:${pathToFileURL(resolve(file)).pathname}?mode=ro`)
      database.exec("BEGIN")
      return database
    }),
    (database) => Effect.sync(() => database.close())
  ).pipe(
    Effect.map((database) => ({
      rows: async (statement) => database.prepare(statement).raw().all() as ReadonlyArray<ReadonlyArray<unknown>>,
      catalogue: `SELECT t.name, c.name FROM sqlite_master t JOIN pragma_table_info(t.name) c
        WHERE t.type IN ('table', 'view') ORDER BY t.name, c.cid`,
      quote: (name) => `"${name.replaceAll('"', '""')}"`,
      text: (column) => `substr(CAST(${column} AS TEXT), 1, ${VALUE_MAX})`
    }))
  )

const readAll = async (reader: Reader): Promise<Old> => {
  const present = new Map<string, Array<string>>()
  for (const [table, column] of await reader.rows(reader.catalogue)) {
    const columns = present.get(String(table)) ?? []
    if (columns.length < COLUMNS_MAX) columns.push(String(column))
    present.set(String(table), columns)
  }
  const tables: Array<Table> = []
  for (const [name, columns] of present) {
    if (NAMES.includes(name.toLowerCase())) tables.push(await readTable(reader, name, columns))
  }
  const journal = present.get(JOURNAL) ?? JOURNAL_COLUMNS
  const lacking = JOURNAL_COLUMNS.filter((column) => !journal.includes(column))
  if (lacking.length > 0) {
    const note = `${JOURNAL} has no ${lacking.join(", ")}: what the older daemon has not finished is not known`
    return { tables, unfinished: [], notes: [note] }
  }
  return { tables, unfinished: present.has(JOURNAL) ? await readUnfinished(reader, journal) : [], notes: [] }
}

const readTable = async (reader: Reader, name: string, columns: ReadonlyArray<string>): Promise<Table> => {
  const list = columns.map((column) => reader.text(reader.quote(column))).join(", ")
  const rows = await reader.rows(`SELECT ${list} FROM ${reader.quote(name)} LIMIT ${ROWS_MAX + 1}`)
  return {
    name: name.toLowerCase(),
    columns,
    rows: rows.slice(0, ROWS_MAX).map((row) => row.map(textOf)),
    cut: rows.length > ROWS_MAX
  }
}

const JOURNAL_COLUMNS = ["id", "type", "status", "volume_id", "created_at"] as const

/** Rows of this program's own, where it uses the same table, bear a uid. */
const readUnfinished = async (reader: Reader, columns: ReadonlyArray<string>): Promise<ReadonlyArray<Unfinished>> => {
  const list = JOURNAL_COLUMNS.map((column) => reader.text(reader.quote(column))).join(", ")
  const old = columns.includes("uid") ? " AND uid IS NULL" : ""
  const rows = await reader.rows(
    `SELECT ${list} FROM ${JOURNAL} WHERE status IN ('pending', 'executing')${old} ORDER BY created_at LIMIT ${UNFINISHED_MAX + 1}`
  )
  // One that is left out could be about a volume that would be declared.
  if (rows.length > UNFINISHED_MAX) throw new Error(`${JOURNAL} has more than ${UNFINISHED_MAX} unfinished operations`)
  return rows.map((row) => {
    const [id, type, status, volume_id, created_at] = row.map((value) => textOf(value) ?? "")
    return {
      id: id ?? "",
      type: type ?? "",
      status: status ?? "",
      volume_id: volume_id ?? "",
      created_at: created_at ?? ""
    }
  })
}

const textOf = (value: unknown): string | null => (typeof value === "string" ? value : null)
