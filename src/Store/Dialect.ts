import type * as SqlClient from "@effect/sql/SqlClient"
import type { SqlError } from "@effect/sql/SqlError"
import type { Fragment } from "@effect/sql/Statement"
import { Effect, FiberRef, Schedule } from "effect"
import { randomUUID } from "node:crypto"
import { isStale, notLeading, type Role } from "../../reconciler/Leadership.ts"
import { type Fence, problemOf } from "./Transact.ts"

/**
 * Where the databases differ, all of it. SQLite is the one that is built in; another dialect adds its branch beside it.
 */

/** Names of the tables and views that are there. */
export const tables = (sql: SqlClient.SqlClient): Effect.Effect<ReadonlySet<string>, SqlError> =>
  sql.onDialectOrElse({
    mysql: () =>
      sql<{ name: string }>`SELECT table_name AS name FROM information_schema.tables
        WHERE table_schema = DATABASE()`.pipe(Effect.map((rows) => new Set(rows.map((row) => row.name)))),
    orElse: () =>
      sql<{ name: string }>`SELECT name FROM sqlite_master WHERE type IN ('table', 'view')`.pipe(
        Effect.map((rows) => new Set(rows.map((row) => row.name)))
      )
  })

/**
 * SQLite's lock on its file admits one process, whose COMMIT does not lose its answer. On MySQL the one row of `lease` is
 * locked and marked first: one statement shows that the term still stands, makes all writes wait for each other whatever
 * the isolation, and leaves behind by what the outcome of a COMMIT can be told.
 */
export const fence = (sql: SqlClient.SqlClient, role: Effect.Effect<Role>): Fence =>
  sql.onDialectOrElse({
    mysql: () => {
      const mark = randomUUID()
      let entered = 0
      const enter = Effect.gen(function* () {
        const now = yield* role
        if (now._tag !== "Leading") return yield* notLeading(now)
        if (yield* isStale(now.term)) return yield* notLeading({ _tag: "Standby", leader: null })
        entered = now.term
        const raw = yield* sql`UPDATE lease SET last_write = ${mark} WHERE id = 1 AND term = ${now.term}`.raw
        if (affected(sql, raw) === 0) return yield* notLeading({ _tag: "Standby", leader: null })
      })
      // The lock makes this wait for a COMMIT that is still on its way. A shared one, for a server that has become
      // read-only refuses that COMMIT, and would refuse FOR UPDATE as well.
      const look = sql<{
        term: number
        last_write: string | null
      }>`SELECT term, last_write FROM lease WHERE id = 1 LOCK IN SHARE MODE`
      const landed = Effect.map(look, ([row]) =>
        row?.last_write === mark ? true : Number(row?.term) === entered ? false : null
      ).pipe(
        Effect.retry(Schedule.spaced(LOOK_PAUSE_MS).pipe(Schedule.intersect(Schedule.recurs(LOOKS - 1)))),
        Effect.orElseSucceed(() => null)
      )
      return { enter, landed }
    },
    orElse: () => ({ enter: Effect.void, landed: Effect.succeed(null) })
  })

/** How often, and how far apart (ms), the outcome of a COMMIT is looked for before it counts as unknown. */
const LOOKS = 5
const LOOK_PAUSE_MS = 200

/** How many rows a write concerned, from a statement's `raw` answer. */
export const affected = (sql: SqlClient.SqlClient, raw: unknown): number =>
  sql.onDialectOrElse({
    mysql: () => numberIn(raw, "affectedRows"),
    orElse: () => numberIn(raw, "changes")
  })

const numberIn = (raw: unknown, key: string): number => {
  const value = typeof raw === "object" && raw !== null && key in raw ? (raw as Record<string, unknown>)[key] : 0
  return typeof value === "number" ? value : 0
}

/** The column by which operations are ordered, to the millisecond. */
export const createdColumn = (sql: SqlClient.SqlClient): "created_at" | "created_iso" =>
  sql.onDialectOrElse({ mysql: () => "created_iso" as const, orElse: () => "created_at" as const })

/** The same, of the end of an operation. */
export const completedColumn = (sql: SqlClient.SqlClient): "completed_at" | "completed_iso" =>
  sql.onDialectOrElse({ mysql: () => "completed_iso" as const, orElse: () => "completed_at" as const })

/**
 * Equal byte for byte, in the predecessor's columns too, whose collation may be blind to case and trailing blanks: an
 * index finds what is alike, then the bytes are compared. What is not ASCII may be beyond their character set, where
 * MySQL refuses to look for it.
 */
export const same = (sql: SqlClient.SqlClient, column: string, value: string): Fragment =>
  sql.onDialectOrElse({
    mysql: () => {
      const bytes = sql`CAST(CONVERT(${sql(column)} USING utf8mb4) AS BINARY) = CAST(${value} AS BINARY)`
      return /^[\0-\x7f]*$/.test(value) ? sql`(${sql(column)} = ${value} AND ${bytes})` : bytes
    },
    orElse: () => sql`${sql(column)} = ${value}`
  })

/**
 * The indexes of which a query is to go by one: left to itself MySQL sorts a million rows by another rather than read in
 * order the hundred that it needs. SQLite finds it.
 */
export const by = (sql: SqlClient.SqlClient, indexes: ReadonlyArray<string>): Fragment =>
  sql.onDialectOrElse({
    mysql: () => sql`FORCE INDEX (${sql.csv(indexes.map((index) => sql`${sql(index)}`))})`,
    orElse: () => sql.literal("")
  })

/** A bound written into the statement: MySQL takes no number as a parameter there. */
export const limit = (sql: SqlClient.SqlClient, rows: number): Fragment => sql.literal(String(Math.trunc(rows)))

/** A statement that takes longer is given up with its connection (B11), ms; what changes a large table takes longer. */
export const statementLimit: FiberRef.FiberRef<number> = FiberRef.unsafeMake(20_000)

/**
 * Whether a write would be taken: a server that became read-only goes on to answer everything else. Some users may write
 * there all the same, so that is tried, on no row.
 */
export const isWritable = (sql: SqlClient.SqlClient): Effect.Effect<boolean, SqlError> =>
  sql.onDialectOrElse({
    mysql: () =>
      Effect.gen(function* () {
        const [row] = yield* sql<{ read_only: number | string }>`SELECT @@GLOBAL.read_only AS read_only`
        if (/^(0|OFF)$/i.test(String(row?.read_only))) return true
        return yield* sql`UPDATE lease SET term = term WHERE id = 0`.pipe(
          Effect.as(true),
          Effect.catchIf(
            (error) => problemOf(error) === "read_only",
            () => Effect.succeed(false)
          )
        )
      }),
    orElse: () => Effect.succeed(true)
  })

/** The engine with its version, as people write it. */
export const engine = (sql: SqlClient.SqlClient): Effect.Effect<string, SqlError> =>
  sql.onDialectOrElse({
    mysql: () =>
      Effect.map(sql<{ version: string }>`SELECT VERSION() AS version`, ([row]) => {
        const version = row?.version ?? "unknown"
        return version.includes("MariaDB") ? `mariadb ${version.split("-")[0] ?? ""}` : `mysql ${version}`
      }),
    orElse: () =>
      Effect.map(
        sql<{ version: string }>`SELECT sqlite_version() AS version`,
        ([row]) => `sqlite ${row?.version ?? "unknown"}`
      )
  })
