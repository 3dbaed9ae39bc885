import * as Reactivity from "@effect/experimental/Reactivity"
import * as MysqlClient from "@effect/sql-mysql2/MysqlClient"
import * as SqlClient from "@effect/sql/SqlClient"
import type { Connection } from "@effect/sql/SqlConnection"
import { SqlError } from "@effect/sql/SqlError"
import * as Statement from "@effect/sql/Statement"
import { Effect, Layer, Stream } from "effect"
import type { StoreProblem } from "../../schema/Errors.ts"

/** What a driver says, and what its server did to the transaction or the connection when it said so. */
export interface DriverError {
  readonly code: string
  readonly errno?: number
  readonly message: string
  readonly ends: "statement" | "transaction" | "connection"
  readonly problem: StoreProblem
}

const server = (
  errno: number | undefined,
  code: string,
  problem: StoreProblem,
  ends: DriverError["ends"],
  message: string
): DriverError => ({ ...(errno === undefined ? {} : { errno }), code, problem, ends, message })

/**
 * As mysql2 gives them: the last two are what it makes of 2006 and 2013. A deadlock's victim is rolled back whole, of a
 * lock wait that is given up only the statement.
 */
export const mysqlErrors: ReadonlyArray<DriverError> = [
  server(1213, "ER_LOCK_DEADLOCK", "busy", "transaction", "Deadlock found when trying to get lock"),
  server(1205, "ER_LOCK_WAIT_TIMEOUT", "busy", "statement", "Lock wait timeout exceeded"),
  server(1290, "ER_OPTION_PREVENTS_STATEMENT", "read_only", "statement", "running with the --read-only option"),
  server(1114, "ER_RECORD_FILE_FULL", "full", "statement", "The table 'events' is full"),
  server(1021, "ER_DISK_FULL", "full", "statement", "Disk full; waiting for someone to free some space"),
  server(1040, "ER_CON_COUNT_ERROR", "busy", "connection", "Too many connections"),
  server(undefined, "PROTOCOL_CONNECTION_LOST", "unreachable", "connection", "The server closed the connection."),
  server(-104, "ECONNRESET", "unreachable", "connection", "read ECONNRESET")
]

const sqlite = (code: string, problem: StoreProblem, ends: DriverError["ends"], message: string): DriverError => ({
  code,
  problem,
  ends,
  message
})

/** As libsql gives them. After a full disk or an I/O error SQLite rolls back by itself. */
export const sqliteErrors: ReadonlyArray<DriverError> = [
  sqlite("SQLITE_BUSY", "busy", "statement", "database is locked"),
  sqlite("SQLITE_FULL", "full", "transaction", "database or disk is full"),
  sqlite("SQLITE_IOERR_FSYNC", "unreachable", "transaction", "disk I/O error"),
  sqlite("SQLITE_READONLY", "read_only", "statement", "attempt to write a readonly database"),
  sqlite("SQLITE_CORRUPT", "damaged", "statement", "database disk image is malformed")
]

export interface Fault {
  /** Which statement, counted from 0 since it was armed; getting a connection, BEGIN, COMMIT and ROLLBACK count. */
  readonly at: number
  readonly error: DriverError
  /** The statement takes effect, and its answer is lost. */
  readonly executed: boolean
  /** Every later statement fails as well, not executed. */
  readonly lasting: boolean
}

/** What is to fail, and what was said to the database meanwhile. */
export interface Control {
  readonly arm: (fault: Fault | null) => void
  /** Since it was armed. */
  readonly statements: () => ReadonlyArray<string>
  /** The statement that failed first; null when none did. */
  readonly failed: () => string | null
}

export const CONNECT = "connect"

/** One statement is text in whatever layout its source has. */
const flat = (text: string) => text.replaceAll(/\s+/g, " ").trim()

const compilers = {
  mysql: { compiler: MysqlClient.makeCompiler, begin: "BEGIN" },
  sqlite: { compiler: Statement.makeCompilerSqlite, begin: "BEGIN IMMEDIATE" }
}

/** A client that passes everything on to `inner`, save what `arm` says. `began` runs at every BEGIN. */
export const make = Effect.fnUntraced(function* (
  inner: SqlClient.SqlClient,
  dialect: keyof typeof compilers,
  began: () => void
) {
  let fault: Fault | null = null
  let failed: string | null = null
  let statements: Array<string> = []
  const control: Control = {
    arm: (next) => {
      fault = next
      failed = null
      statements = []
    },
    statements: () => statements,
    failed: () => failed
  }

  /** The error of this statement, null when it may go on. Counts it. */
  const next = (text: string): Fault | null => {
    const at = statements.length
    statements.push(flat(text))
    if (fault === null || (fault.lasting ? at < fault.at : at !== fault.at)) return null
    const first = failed === null
    failed ??= flat(text)
    return first ? fault : { ...fault, executed: false }
  }

  const wrap = (connection: Connection): Connection => {
    let dead: DriverError | null = null
    const fail = (error: DriverError) => {
      const cause = Object.assign(new Error(error.message), { code: error.code, ...errnoOf(error) })
      return Effect.fail(new SqlError({ cause, message: "statement failed" }))
    }
    // What the server does with the transaction of a connection that is gone, whoever gave it up.
    const rollback = Effect.ignore(connection.executeUnprepared("ROLLBACK", [], undefined))
    const step = <A>(text: string, run: Effect.Effect<A, SqlError>): Effect.Effect<A, SqlError> =>
      Effect.suspend(() => {
        const hit = next(text)
        if (hit === null) return dead === null ? run : fail(dead)
        if (text.startsWith("BEGIN")) began()
        // A connection on which COMMIT or ROLLBACK failed is of no use, whatever the reason.
        const ends = /^(?:COMMIT|ROLLBACK)$/.test(text) ? "connection" : hit.error.ends
        if (ends === "connection") dead = hit.error
        const effect = hit.executed ? Effect.ignore(run) : Effect.void
        return effect.pipe(
          Effect.andThen(ends === "statement" ? Effect.void : rollback),
          Effect.andThen(fail(hit.error))
        )
      })
    return {
      execute: (text, params, transform) => step(text, connection.execute(text, params, transform)),
      executeRaw: (text, params) => step(text, connection.executeRaw(text, params)),
      executeValues: (text, params) => step(text, connection.executeValues(text, params)),
      executeUnprepared: (text, params, transform) =>
        step(
          text,
          Effect.suspend(() => {
            if (text.startsWith("BEGIN")) began()
            return connection.executeUnprepared(text, params, transform)
          })
        ),
      executeStream: () => Stream.dieMessage("the store does not stream")
    }
  }

  const acquirer = Effect.suspend(() => {
    const hit = next(CONNECT)
    if (hit === null) return Effect.map(inner.reserve, wrap)
    const cause = Object.assign(new Error(hit.error.message), { code: hit.error.code, ...errnoOf(hit.error) })
    return Effect.fail(new SqlError({ cause, message: "no connection" }))
  })
  const { begin, compiler } = compilers[dialect]
  const client = yield* SqlClient.make({
    acquirer,
    transactionAcquirer: acquirer,
    compiler: compiler(),
    spanAttributes: [],
    beginTransaction: begin
  }).pipe(Effect.provide(Reactivity.layer))
  return { client, control, layer: Layer.succeed(SqlClient.SqlClient, client) }
})

const errnoOf = ({ errno }: DriverError) => (errno === undefined ? {} : { errno })
