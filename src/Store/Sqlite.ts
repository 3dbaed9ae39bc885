import * as Reactivity from "@effect/experimental/Reactivity"
import * as SqlClient from "@effect/sql/SqlClient"
import type { Connection } from "@effect/sql/SqlConnection"
import { SqlError } from "@effect/sql/SqlError"
import * as Statement from "@effect/sql/Statement"
import { Effect, Layer, Scope, Stream } from "effect"
import Database from "libsql"
import * as Fs from "node:fs"
import * as Path from "node:path"
import { setFlagsFromString } from "node:v8"
import { runInNewContext } from "node:vm"
import { Misconfigured, StoreUnavailable } from "../../schema/Errors.ts"
import { EXAMPLE } from "./Dsn.ts"
import { codeOf, explain } from "./Transact.ts"

/** A database that lives and dies with its layer. */
export const MEMORY = ":memory:"

type Db = ReturnType<typeof Database>

/** A lock may be a predecessor's that is just ending, or our own closed connection's (see `collect`): so often … */
const OPEN_ATTEMPTS = 10
/** … with this pause, ms, half a second in all. */
const OPEN_PAUSE_MS = 50

/**
 * SQLite on one connection that owns the file: WAL, synchronous=FULL (an acknowledged commit survives a power cut) and
 * locking_mode=EXCLUSIVE, taken while opening, so that a second process is refused at once. After any error that is no
 * constraint violation the connection is given up and a new one opened: one failed statement was seen to poison all
 * later commits of its connection.
 */
export const layer = (file: string): Layer.Layer<SqlClient.SqlClient, Misconfigured | StoreUnavailable> =>
  Layer.scoped(SqlClient.SqlClient, make(file)).pipe(Layer.provide(Reactivity.layer))

const make = Effect.fnUntraced(function* (file: string) {
  const turn = yield* Effect.makeSemaphore(1)
  const state: { db: Db; broken: boolean } = { db: yield* openPatiently(file), broken: false }
  yield* Effect.addFinalizer(() =>
    Effect.sync(() => state.db.close()).pipe(Effect.andThen(file === MEMORY ? Effect.void : collect))
  )

  const renew = Effect.gen(function* () {
    if (!state.broken || file === MEMORY) return
    state.db.close()
    state.db = yield* openPatiently(file).pipe(
      Effect.mapError((error) => new SqlError({ cause: new Error(reasonOf(error)), message: "open failed" }))
    )
    state.broken = false
  })

  const attempt = <A>(run: (db: Db) => A): Effect.Effect<A, SqlError> =>
    Effect.try({
      try: () => run(state.db),
      catch: (cause) => {
        if (!codeOf(cause).startsWith("SQLITE_CONSTRAINT")) state.broken = true
        return new SqlError({ cause: detached(cause), message: "statement failed" })
      }
    })

  const execute = (sql: string, params: ReadonlyArray<unknown>) =>
    attempt((db) => db.prepare(sql).all(...params.map(parameter)) as ReadonlyArray<Record<string, unknown>>)

  const connection: Connection = {
    execute,
    executeRaw: (sql, params) => attempt((db) => db.prepare(sql).run(...params.map(parameter))),
    executeValues: (sql, params) =>
      attempt(
        (db) =>
          db
            .prepare(sql)
            .raw()
            .all(...params.map(parameter)) as ReadonlyArray<ReadonlyArray<unknown>>
      ),
    // BEGIN, COMMIT and ROLLBACK come this way. SQLite rolls back by itself after a full disk or an I/O error, and a
    // ROLLBACK then fails, which would hide the error that mattered.
    executeUnprepared: (sql, params) =>
      params.length > 0
        ? execute(sql, params)
        : attempt((db) => {
            if (sql !== "ROLLBACK" || db.inTransaction) db.exec(sql)
            return []
          }),
    executeStream: () => Stream.dieMessage("streaming is not implemented: page with LIMIT instead")
  }

  // Every statement holds the turn while it runs, so that none slips into a transaction of another fiber and is lost
  // with its rollback.
  const acquirer = Effect.uninterruptibleMask((restore) =>
    Effect.gen(function* () {
      const scope = yield* Effect.scope
      yield* restore(turn.take(1))
      yield* Scope.addFinalizer(scope, turn.release(1))
      yield* renew
      return connection
    })
  )

  return yield* SqlClient.make({
    acquirer,
    compiler: Statement.makeCompilerSqlite(),
    spanAttributes: [["db.system.name", "sqlite"]],
    beginTransaction: "BEGIN IMMEDIATE"
  })
})

/**
 * libsql 0.4.7 ends the whole process when it is handed a boolean or an object, stores a buffer as null and gives text
 * back only up to a NUL, which would make two texts equal: none of them reaches it. JSON columns are not concerned,
 * there a NUL is written as an escape.
 */
const parameter = (value: unknown): string | number | bigint | null => {
  if (value === null || value === undefined) return null
  if (typeof value === "boolean") return value ? 1 : 0
  if (typeof value === "string") return value.replaceAll("\u0000", "\ufffd")
  if (typeof value === "bigint" || (typeof value === "number" && Number.isFinite(value))) return value
  throw new TypeError(`a ${typeof value} cannot be a parameter of an SQL statement`)
}

/**
 * An error keeps the receivers of its stack frames alive until its stack is first read, here the failed statement and
 * with it the connection and its locks: no new one could be opened while anybody holds on to the error.
 */
const detached = (cause: unknown): unknown => {
  if (cause instanceof Error) void cause.stack
  return cause
}

const openPatiently = (file: string): Effect.Effect<Db, Misconfigured | StoreUnavailable> => {
  const attempt = (left: number): Effect.Effect<Db, SqlError> =>
    Effect.try({
      try: () => open(file),
      catch: (cause) => new SqlError({ cause: detached(cause), message: "open failed" })
    }).pipe(
      Effect.catchIf(
        (error) => left > 1 && codeOf(error).startsWith("SQLITE_BUSY"),
        () => Effect.andThen(collect, attempt(left - 1))
      )
    )
  return attempt(OPEN_ATTEMPTS).pipe(Effect.mapError((error) => refusal(file, error.cause)))
}

/**
 * A closed connection keeps its locks until its statements are collected, and libsql has no way to finalise one by hand:
 * so collect, then give the runtime a moment to drop them. The pause is real time, not the Effect clock's, because the
 * locks are the kernel's.
 */
const collect = Effect.async<void>((resume) => {
  setFlagsFromString("--expose-gc")
  runInNewContext("gc")()
  setTimeout(() => resume(Effect.void), OPEN_PAUSE_MS)
})

const open = (file: string): Db => {
  if (file !== MEMORY) prepareFile(file)
  const db = new Database(file)
  try {
    db.exec("PRAGMA busy_timeout = 0")
    if (file !== MEMORY) db.exec("PRAGMA locking_mode = EXCLUSIVE")
    if (file !== MEMORY) db.exec("PRAGMA journal_mode = WAL")
    db.exec("PRAGMA synchronous = FULL")
    // Takes the lock now, rather than at the first write.
    db.exec("BEGIN IMMEDIATE")
    db.exec("COMMIT")
    return db
  } catch (cause) {
    db.close()
    throw cause
  }
}

/** SQLite would create the file with the umask's rights; what is declared here is nobody else's business. */
const prepareFile = (file: string) => {
  Fs.mkdirSync(Path.dirname(file), { recursive: true, mode: 0o700 })
  try {
    Fs.closeSync(Fs.openSync(file, "wx", 0o600))
  } catch (cause) {
    if (codeOf(cause) !== "EEXIST") throw cause
  }
}

const reasonOf = (error: Misconfigured | StoreUnavailable): string =>
  error._tag === "Misconfigured" ? error.problems.map(({ problem }) => problem).join("; ") : error.detail

const refusal = (file: string, cause: unknown): Misconfigured | StoreUnavailable => {
  const misconfigured = (problem: string) =>
    new Misconfigured({ problems: [{ key: "DATABASE_DSN", problem, example: EXAMPLE }] })
  const code = codeOf(cause)
  const text = cause instanceof Error ? cause.message : String(cause)
  if (code.startsWith("SQLITE_BUSY") || code.startsWith("SQLITE_LOCKED"))
    return misconfigured(
      `database is locked: another process has ${file} open, and only one may. Stop the other volumed ` +
        `(\`fuser ${file}\` shows who it is), or give this one a file of its own`
    )
  if (code === "SQLITE_NOTADB" || code.startsWith("SQLITE_CORRUPT"))
    return misconfigured(
      `${file} is damaged or no SQLite database (${text}). Move it away or restore a backup; nothing was changed`
    )
  if (
    /^(EACCES|EPERM|ENOENT|ENOTDIR|EEXIST|EROFS|EISDIR|SQLITE_READONLY|SQLITE_CANTOPEN)/.test(code) ||
    text.includes("Unable to open")
  )
    return misconfigured(
      `${file} cannot be opened for writing (${text}). Name a file in a directory that this user may write to`
    )
  return new StoreUnavailable({ detail: `${file}: ${explain(cause)}`, outcome_unknown: false, cause })
}
