import * as Reactivity from "@effect/experimental/Reactivity"
import * as MysqlClient from "@effect/sql-mysql2/MysqlClient"
import * as SqlClient from "@effect/sql/SqlClient"
import type { Connection } from "@effect/sql/SqlConnection"
import { SqlError } from "@effect/sql/SqlError"
import { Effect, FiberRef, Layer, Redacted, type Scope, Stream } from "effect"
import * as Mysql from "mysql2"
import * as Net from "node:net"
import * as Dialect from "./Dialect.ts"

/** Where a database is, and as whom. `tls`: null for none; else what Node's TLS takes. */
export interface Target {
  readonly host: string
  readonly port: number
  /** A Unix socket, instead of host and port. */
  readonly socket: string | null
  readonly user: string
  readonly password: Redacted.Redacted<string>
  readonly database: string
  readonly tls: { readonly ca: string | null; readonly verify: boolean } | null
}

/** Connections of one daemon: writes take turns on one, the others are for reads. */
const CONNECTIONS = 8
const CONNECT_MS = 5_000

/**
 * The server ends a connection that was silent for so long, s, and with it the locks of a process that was stopped in a
 * transaction: a successor waits no longer for it.
 */
export const SILENCE_S = 6
/** A connection of ours is given back before that, ms. */
const IDLE_MS = 3_000
/** To say goodbye to the server in, ms. */
const FAREWELL_MS = 300
/** For another's row lock, s. */
const LOCK_WAIT_S = 5

/**
 * MySQL or MariaDB by a pool of our own on the driver, with the compiler of @effect/sql-mysql2: that package's client asks
 * the database while it is made, which an outage must not stop, sets up no session, and allows several statements in one.
 */
export const layer = (target: Target): Layer.Layer<SqlClient.SqlClient> =>
  Layer.scoped(SqlClient.SqlClient, make(target)).pipe(Layer.provide(Reactivity.layer))

/**
 * What every session begins with, whatever the server gives to others: UTC, refusing what does not fit, and no longer
 * waits than we do. Each statement is a transaction of its own, or every read after the first would be of its snapshot;
 * and the client's guard against a DELETE of all rows is off.
 */
export const SESSION = [
  `SET SESSION time_zone = '+00:00'`,
  `autocommit = 1`,
  `sql_safe_updates = 0`,
  `sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION,ERROR_FOR_DIVISION_BY_ZERO'`,
  `wait_timeout = ${SILENCE_S}`,
  `innodb_lock_wait_timeout = ${LOCK_WAIT_S}`
].join(", ")

/** How the driver is to connect, for the pool and for a connection of its own. */
export const options = (target: Target): Mysql.ConnectionOptions => ({
  ...(target.socket === null ? { host: target.host, port: target.port } : { socketPath: target.socket }),
  user: target.user,
  password: Redacted.value(target.password),
  database: target.database,
  connectTimeout: CONNECT_MS,
  charset: "UTF8MB4_BIN",
  timezone: "Z",
  // A JSON column is read as its text, and a time as written: both are decoded where they are used.
  jsonStrings: true,
  dateStrings: true,
  supportBigNumbers: true,
  maxPreparedStatements: 256,
  // Names of columns would become part of code otherwise, and they may be somebody else's.
  disableEval: true,
  ...(target.tls === null ? {} : encrypted(target, target.tls))
})

const encrypted = ({ host, port }: Target, { ca, verify }: NonNullable<Target["tls"]>): Mysql.ConnectionOptions => ({
  ssl: { rejectUnauthorized: verify, verifyIdentity: verify, ...(ca === null ? {} : { ca }) },
  // TLS compares the certificate with what the socket says it was connected to, and for an address, which is no server
  // name, the driver leaves that out: any certificate of `localhost` would do, and none of the address.
  ...(verify && Net.isIP(host) !== 0
    ? { stream: () => Object.assign(Net.connect({ host, port, noDelay: true }), { _host: host }) }
    : {})
})

const make = Effect.fnUntraced(function* (target: Target) {
  const open = new Set<Mysql.PoolConnection>()
  const pool = yield* Effect.acquireRelease(
    Effect.sync(() => {
      const pool = Mysql.createPool({
        ...options(target),
        connectionLimit: CONNECTIONS,
        maxIdle: CONNECTIONS - 1,
        idleTimeout: IDLE_MS
      })
      // Before anything else on this connection: the driver sends in order.
      pool.on("connection", (connection) => {
        open.add(connection)
        connection.once("end", () => open.delete(connection))
        connection.query(SESSION, (cause: unknown) => {
          if (cause) connection.destroy()
        })
      })
      return pool
    }),
    // A server that hangs is not waited for.
    (pool) =>
      Effect.async<void>((resume) => pool.end(() => resume(Effect.void))).pipe(
        // A finalizer is not interrupted, and so would wait to the end for what is only interrupted by its limit.
        Effect.interruptible,
        Effect.timeoutOption(FAREWELL_MS),
        Effect.andThen(() => open.forEach((connection) => connection.destroy()))
      )
  )

  /** When each was last given back, monotonic ms. */
  const rested = new WeakMap<Mysql.PoolConnection, number>()
  const take = Effect.async<Mysql.PoolConnection, SqlError>((resume) => {
    const again = () =>
      pool.getConnection((cause, connection) => {
        if (cause) return resume(Effect.fail(new SqlError({ cause, message: "no connection" })))
        const since = rested.get(connection)
        // The pool looks only now and then, and not while we are busy: by now the server may have closed this one.
        if (since === undefined || performance.now() - since < IDLE_MS) return resume(Effect.succeed(connection))
        connection.destroy()
        again()
      })
    again()
  })
  const giveBack = (connection: Mysql.PoolConnection) =>
    Effect.sync(() => {
      rested.set(connection, performance.now())
      connection.release()
    })
  const acquirer: Effect.Effect<Connection, SqlError, Scope.Scope> = Effect.map(
    Effect.acquireRelease(take, giveBack),
    connectionOf
  )

  return yield* SqlClient.make({
    acquirer,
    transactionAcquirer: acquirer,
    compiler: MysqlClient.makeCompiler(),
    spanAttributes: [["db.system.name", "mysql"]]
  })
})

/** A statement whose answer does not come takes its connection with it: what it still does is nobody's any more. */
const connectionOf = (connection: Mysql.PoolConnection): Connection => {
  const run = (method: "execute" | "query", sql: string, params: ReadonlyArray<unknown>, rowsAsArray: boolean) =>
    FiberRef.getWith(Dialect.statementLimit, (duration) =>
      Effect.async<unknown, SqlError>((resume) => {
        const fail = (cause: unknown) => resume(Effect.fail(new SqlError({ cause, message: "statement failed" })))
        // A limit of its own, for a write is not interrupted, and the driver tells nobody what became of a statement
        // whose connection was destroyed.
        const limit = setTimeout(() => {
          connection.destroy()
          fail(Object.assign(new Error(`no answer within ${duration / 1000} s`), { code: "ETIMEDOUT" }))
        }, duration)
        const values = params.map(parameter)
        connection[method]({ sql, values, rowsAsArray }, (cause: unknown, answer: unknown) => {
          clearTimeout(limit)
          if (cause) fail(cause)
          else resume(Effect.succeed(answer))
        })
        // Whoever asks next on this connection would wait for that answer, too.
        return Effect.sync(() => {
          clearTimeout(limit)
          connection.destroy()
        })
      })
    )
  const rows = <A>(answer: unknown) => (Array.isArray(answer) ? (answer as ReadonlyArray<A>) : [])
  return {
    execute: (sql, params) => Effect.map(run("execute", sql, params, false), rows<Record<string, unknown>>),
    executeRaw: (sql, params) => run("execute", sql, params, false),
    executeValues: (sql, params) => Effect.map(run("execute", sql, params, true), rows<ReadonlyArray<unknown>>),
    // BEGIN, COMMIT and ROLLBACK come this way. Where one fails the transaction may stand open yet: the next one on this
    // connection would commit it, and by its own mark it would look committed already.
    executeUnprepared: (sql, params) =>
      Effect.map(run("query", sql, params, false), rows<Record<string, unknown>>).pipe(
        Effect.tapError(() => Effect.sync(() => connection.destroy()))
      ),
    executeStream: () => Stream.dieMessage("streaming is not implemented: page with LIMIT instead")
  }
}

/** The driver refuses what is undefined, and would write an object as text of its own. NUL as on SQLite, which keeps none. */
const parameter = (value: unknown): string | number | bigint | null => {
  if (value === null || value === undefined) return null
  if (typeof value === "boolean") return value ? 1 : 0
  if (typeof value === "string") return value.replaceAll("\u0000", "\ufffd")
  if (typeof value === "bigint") return value
  if (typeof value === "number" && Number.isFinite(value)) return value
  throw new TypeError(`a ${typeof value} cannot be a parameter of an SQL statement`)
}
