import type * as SqlClient from "@effect/sql/SqlClient"
import type { SqlError } from "@effect/sql/SqlError"
import { Effect } from "effect"

/**
 * Where the databases differ, all of it. SQLite is the one that is built in; another dialect adds its branch beside it.
 */

/** Names of the tables and views that are there. */
export const tables = (sql: SqlClient.SqlClient): Effect.Effect<ReadonlySet<string>, SqlError> =>
  sql.onDialectOrElse({
    orElse: () =>
      sql<{ name: string }>`SELECT name FROM sqlite_master WHERE type IN ('table', 'view')`.pipe(
        Effect.map((rows) => new Set(rows.map((row) => row.name)))
      )
  })

/** How many rows a write concerned, from a statement's `raw` answer. */
export const affected = (sql: SqlClient.SqlClient, raw: unknown): number =>
  sql.onDialectOrElse({
    orElse: () =>
      typeof raw === "object" && raw !== null && "changes" in raw && typeof raw.changes === "number" ? raw.changes : 0
  })

/** The engine with its version, and whether an acknowledged commit survives a power cut. */
export const describe = (
  sql: SqlClient.SqlClient
): Effect.Effect<{ readonly engine: string; readonly durable: boolean }, SqlError> =>
  sql.onDialectOrElse({
    orElse: () =>
      Effect.gen(function* () {
        const version = yield* sql<{ version: string }>`SELECT sqlite_version() AS version`
        const synchronous = yield* sql<{ synchronous: number }>`PRAGMA synchronous`
        const journal = yield* sql<{ journal_mode: string }>`PRAGMA journal_mode`
        // 2 is FULL. A database in memory says so here too, and is not durable whatever it says.
        const durable = (synchronous[0]?.synchronous ?? 0) >= 2 && journal[0]?.journal_mode === "wal"
        return { engine: `sqlite ${version[0]?.version ?? "unknown"}`, durable }
      })
  })
