import type * as SqlClient from "@effect/sql/SqlClient"
import { SqlError } from "@effect/sql/SqlError"
import { Effect, Option, Schedule } from "effect"
import { type StoreProblem, StoreUnavailable } from "../../schema/Errors.ts"

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

/** What each of MySQL's error numbers means; they are told apart by number, for MariaDB's symbols name other errors. */
const problems: ReadonlyArray<readonly [problem: StoreProblem, codes: ReadonlyArray<number | string>]> = [
  // Deadlock, lock wait, a row changed since the snapshot; too many connections, in all or of this user.
  ["busy", [1213, 1205, 1020, 1040, 1203, 1226, "SQLITE_BUSY", "SQLITE_LOCKED"]],
  ["read_only", [1290, 1792, 1836, "SQLITE_READONLY"]],
  ["full", [1021, 1114, "SQLITE_FULL"]],
  // Access denied: to the server, the database, a table, a command.
  ["refused", [1044, 1045, 1049, 1142, 1227, 1698]],
  ["damaged", [1034, 1194, "SQLITE_CORRUPT", "SQLITE_NOTADB"]]
]

/** The kind of a failure, which says what helps; whatever is not known is taken for an outage. */
export const problemOf = (cause: unknown): StoreProblem => {
  const inner = cause instanceof SqlError ? cause.cause : cause
  const number = typeof inner === "object" && inner !== null && "errno" in inner ? inner.errno : undefined
  const code = codeOf(cause)
  const known = problems.find(([, codes]) =>
    codes.some((one) => (typeof one === "number" ? one === number : code.startsWith(one)))
  )
  return known?.[0] ?? "unreachable"
}

const unavailable = (error: SqlError, outcome_unknown: boolean) =>
  // Refused before it reached the database, in words of our own.
  error.cause instanceof StoreUnavailable
    ? error.cause
    : new StoreUnavailable({ detail: explain(error), outcome_unknown, problem: problemOf(error), cause: error })

/** A read outside any transaction. */
export const read = <A>(effect: Effect.Effect<A, SqlError>): Effect.Effect<A, StoreUnavailable> =>
  Effect.mapError(effect, (error) => unavailable(error, false))

/** What keeps one transaction to the one process that leads. */
export interface Fence {
  /** First in the transaction: refuses it where another process leads, and leaves a mark with what is written. */
  readonly enter: Effect.Effect<void, SqlError | StoreUnavailable>
  /** Whether the mark was committed, asked when the answer to COMMIT is missing; null when that cannot be told. */
  readonly landed: Effect.Effect<boolean | null>
}

/** Tries of one transaction that met a lock, in all, and the pause before the second, ms, doubling. */
const BUSY_ATTEMPTS = 6
const BUSY_PAUSE_MS = 20

/**
 * One transaction: all or none. `withTransaction` dies when COMMIT or ROLLBACK fails; here both are failures again. An
 * error after the body ended well came from COMMIT, so nobody knows whether it took effect: then the fence is asked, and
 * only what even that cannot tell is `outcome_unknown`. The body may run again, after a deadlock or a lock.
 */
export const transact = <A, E>(
  sql: SqlClient.SqlClient,
  fence: Fence,
  body: Effect.Effect<A, E | SqlError>
): Effect.Effect<A, Exclude<E, SqlError> | StoreUnavailable> => Effect.retry(once(sql, fence, body), whileBusy)

const whileBusy = Schedule.exponential(BUSY_PAUSE_MS).pipe(
  Schedule.jittered,
  Schedule.intersect(Schedule.recurs(BUSY_ATTEMPTS - 1)),
  Schedule.whileInput(
    (error: unknown) => error instanceof StoreUnavailable && error.problem === "busy" && !error.outcome_unknown
  )
)

const once = <A, E>(
  sql: SqlClient.SqlClient,
  fence: Fence,
  body: Effect.Effect<A, E | SqlError>
): Effect.Effect<A, Exclude<E, SqlError> | StoreUnavailable> =>
  Effect.suspend(() => {
    let result: Option.Option<A> = Option.none()
    const marked = Effect.tap(Effect.andThen(fence.enter, body), (done) =>
      Effect.sync(() => {
        result = Option.some(done)
      })
    )
    return sql.withTransaction(marked).pipe(
      Effect.catchSomeDefect((defect) =>
        defect instanceof SqlError ? Option.some(Effect.fail(defect)) : Option.none()
      ),
      Effect.catchAll((error): Effect.Effect<A, Exclude<E, SqlError> | StoreUnavailable> => {
        if (!(error instanceof SqlError)) return Effect.fail(error as Exclude<E, SqlError> | StoreUnavailable)
        if (Option.isNone(result)) return Effect.fail(unavailable(error, false))
        const done = result.value
        return Effect.flatMap(fence.landed, (landed) =>
          landed === true ? Effect.succeed(done) : Effect.fail(unavailable(error, landed === null))
        )
      })
    )
  })
