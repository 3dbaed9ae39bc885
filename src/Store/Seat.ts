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
    /** Who waits for an answer, which the driver does not give when the connection ends. */
    const asked = new Set<(effect: Effect.Effect<never, SqlError>) => void>()
    const connection = yield* Effect.acquireRelease(
      Effect.sync(() => {
        const connection = Driver.createConnection(Mysql.options(target))
        const end = (cause: unknown) => {
          Deferred.unsafeDone(gone, Effect.fail(failed(cause)))
          for (const answer of asked) answer(Effect.fail(failed(cause)))
        }
        connection.on("error", end)
        connection.on("end", () => end(new Error("the connection was closed")))
        return connection
      }),
      (connection) => Effect.sync(() => connection.destroy())
    )
    const ask: Seat["ask"] = (sql, values, limit_ms) =>
      Effect.async<ReadonlyArray<Readonly<Record<string, unknown>>>, SqlError>((resume) => {
        const answer = (effect: Effect.Effect<ReadonlyArray<Readonly<Record<string, unknown>>>, SqlError>) => {
          clearTimeout(limit)
          asked.delete(answer)
          resume(effect)
        }
        // A limit of its own, for the lock is also given back where nothing is interrupted.
        const limit = setTimeout(() => {
          connection.destroy()
          answer(late(limit_ms))
        }, limit_ms)
        asked.add(answer)
        connection.query({ sql, values: [...values] }, (cause: unknown, rows: unknown) =>
          answer(cause ? Effect.fail(failed(cause)) : Effect.succeed(Array.isArray(rows) ? rows : []))
        )
        return Effect.sync(() => {
          clearTimeout(limit)
          asked.delete(answer)
        })
      })
    // The server lets go of a process that was stopped, and of its lock with it.
    yield* ask(Mysql.SESSION, [], OPEN_MS)
    const [row] = yield* ask("SELECT CONNECTION_ID() AS id", [], OPEN_MS)
    return { id: Number(row?.["id"]), ask, gone: Deferred.await(gone) }
  })

const late = (limit_ms: number) =>
  Effect.fail(failed(Object.assign(new Error(`no answer within ${limit_ms} ms`), { code: "ETIMEDOUT" })))

const failed = (cause: unknown) => new SqlError({ cause, message: "the leader's connection failed" })
