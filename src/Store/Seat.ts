import { SqlError } from "@effect/sql/SqlError"
import { Deferred, Effect, type Scope } from "effect"
import * as Driver from "mysql2"
import * as Mysql from "./Mysql.ts"

/**
 * A connection of its own. A lock of the server's lives and dies with the connection that took it, so that this one is
 * in no pool, and is never opened again by itself.
 */
export interface Seat {
  /** The server's number of this connection. */
  readonly id: number
  /** The rows of one statement; without an answer within `limit_ms` the connection is given up. */
  readonly ask: (
    sql: string,
    values: ReadonlyArray<string | number>,
    limit_ms: number
  ) => Effect.Effect<ReadonlyArray<Readonly<Record<string, unknown>>>, SqlError>
  /** Fails once the connection is gone, however that is learned. */
  readonly gone: Effect.Effect<never, SqlError>
}

/** From the first packet to the session's settings, ms. */
const OPEN_MS = 6_000

export const open = (target: Mysql.Target): Effect.Effect<Seat, SqlError, Scope.Scope> =>
  Effect.gen(function* () {
    const gone = yield* Deferred.make<never, SqlError>()
    const connection = yield* Effect.acquireRelease(
      Effect.sync(() => {
        const connection = Driver.createConnection(Mysql.options(target))
        const end = (cause: unknown) => void Deferred.unsafeDone(gone, Effect.fail(failed(cause)))
        connection.on("error", end)
        connection.on("end", () => end(new Error("the connection was closed")))
        return connection
      }),
      (connection) => Effect.sync(() => connection.destroy())
    )
    const ask: Seat["ask"] = (sql, values, limit_ms) =>
      Effect.async<ReadonlyArray<Readonly<Record<string, unknown>>>, SqlError>((resume) => {
        connection.query({ sql, values: [...values] }, (cause: unknown, rows: unknown) =>
          resume(cause ? Effect.fail(failed(cause)) : Effect.succeed(Array.isArray(rows) ? rows : []))
        )
      }).pipe(
        Effect.raceFirst(Deferred.await(gone)),
        Effect.timeoutFail({
          duration: limit_ms,
          onTimeout: () => {
            connection.destroy()
            const cause = Object.assign(new Error(`no answer within ${limit_ms} ms`), { code: "ETIMEDOUT" })
            return failed(cause)
          }
        })
      )
    // The server lets go of a process that was stopped, and of its lock with it.
    yield* ask(Mysql.SESSION, [], OPEN_MS)
    const [row] = yield* ask("SELECT CONNECTION_ID() AS id", [], OPEN_MS)
    return { id: Number(row?.["id"]), ask, gone: Deferred.await(gone) }
  })

const failed = (cause: unknown) => new SqlError({ cause, message: "the leader's connection failed" })
