import type * as SqlClient from "@effect/sql/SqlClient"
import { SqlError } from "@effect/sql/SqlError"
import { Effect, Option } from "effect"
import { StoreUnavailable } from "../../schema/Errors.ts"

/** The driver's own error code (`SQLITE_FULL`, `ENOSPC` …), or "". */
export const codeOf = (cause: unknown): string => {
  if (cause instanceof SqlError) return codeOf(cause.cause)
  const code = typeof cause === "object" && cause !== null && "code" in cause ? cause.code : undefined
  return typeof code === "string" ? code : ""
}

const advice: ReadonlyArray<readonly [prefix: string, text: string]> = [
  ["SQLITE_FULL", "the disk is full: make room, nothing else is needed"],
  ["SQLITE_BUSY", "the file is locked by another process"],
  ["SQLITE_LOCKED", "the file is locked by another process"],
  ["SQLITE_READONLY", "the file or its file system is read-only"],
  ["SQLITE_IOERR", "the disk reports an I/O error"],
  ["SQLITE_CORRUPT", "the file is damaged: stop, and restore a backup"],
  ["SQLITE_NOTADB", "the file is no SQLite database"],
  ["SQLITE_CANTOPEN", "the file cannot be opened"],
  ["SQLITE_NOMEM", "out of memory"]
]

/** One sentence about a failed statement: what it means, then the driver's words. Values are never part of it. */
export const explain = (cause: unknown): string => {
  const code = codeOf(cause)
  const inner = cause instanceof SqlError ? cause.cause : cause
  const text = inner instanceof Error ? inner.message : String(inner)
  const known = advice.find(([prefix]) => code.startsWith(prefix))
  return known === undefined ? (code === "" ? text : `${text} (${code})`) : `${known[1]} (${code}: ${text})`
}

const unavailable = (error: SqlError, outcome_unknown: boolean) =>
  new StoreUnavailable({ detail: explain(error), outcome_unknown, cause: error })

/** A read outside any transaction. */
export const read = <A>(effect: Effect.Effect<A, SqlError>): Effect.Effect<A, StoreUnavailable> =>
  Effect.mapError(effect, (error) => unavailable(error, false))

/**
 * One transaction: all or none. `withTransaction` dies when COMMIT or ROLLBACK fails; here both are failures again. An
 * error after the body ended well came from COMMIT, so nobody knows whether it took effect: `outcome_unknown`.
 */
export const transact = <A, E>(
  sql: SqlClient.SqlClient,
  body: Effect.Effect<A, E | SqlError>
): Effect.Effect<A, Exclude<E, SqlError> | StoreUnavailable> =>
  Effect.suspend(() => {
    let committing = false
    const marked = Effect.tap(body, () =>
      Effect.sync(() => {
        committing = true
      })
    )
    return sql.withTransaction(marked).pipe(
      Effect.catchSomeDefect((defect) =>
        defect instanceof SqlError ? Option.some(Effect.fail(defect)) : Option.none()
      ),
      Effect.mapError((error) =>
        error instanceof SqlError ? unavailable(error, committing) : (error as Exclude<E, SqlError>)
      )
    )
  })
