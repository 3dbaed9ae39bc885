import * as SqlClient from "@effect/sql/SqlClient"
import { Effect, Scope } from "effect"
import { Misconfigured, StoreUnavailable } from "../../schema/Errors.ts"
import * as Dialect from "./Dialect.ts"
import { EXAMPLE_MYSQL } from "./Dsn.ts"
import { lockName } from "./Leader.ts"
import type * as Mysql from "./Mysql.ts"
import * as Seat from "./Seat.ts"
import { read } from "./Transact.ts"

/** The server drops a connection that is silent for 6 s, and the lock with it. */
const PING_MS = 2_000
const ANSWER_MS = 2_500

/**
 * While no process leads, and none can begin to: under the lock by which the leader is found. Refused, with who it is,
 * while one does; interrupted when the lock is lost.
 */
export const exclusively = <A, E>(
  target: Mysql.Target,
  body: Effect.Effect<A, E, SqlClient.SqlClient>
): Effect.Effect<A, E | Misconfigured | StoreUnavailable, SqlClient.SqlClient> =>
  Effect.scoped(
    Effect.gen(function* () {
      const scope = yield* Effect.scope
      const seat = yield* read(Scope.extend(Seat.open(target), scope))
      const [row] = yield* read(seat.ask("SELECT DATABASE() AS name", [], ANSWER_MS))
      const lock = lockName(String(row?.["name"]))
      const [answer] = yield* read(seat.ask("SELECT GET_LOCK(?, 0) AS won", [lock], ANSWER_MS))
      if (Number(answer?.["won"]) !== 1) return yield* taken(yield* leader)
      const ping = Effect.gen(function* () {
        yield* Effect.sleep(PING_MS)
        const [held] = yield* read(seat.ask("SELECT IS_USED_LOCK(?) AS owner", [lock], ANSWER_MS))
        if (Number(held?.["owner"]) !== seat.id) return yield* lost
      })
      const lostFirst = Effect.raceFirst(Effect.forever(ping), read(seat.gone))
      return yield* Effect.raceFirst(body, lostFirst)
    })
  )

const lost = new StoreUnavailable({
  detail: "the leader's lock was lost meanwhile: look again",
  outcome_unknown: false
})

const leader = Effect.gen(function* () {
  const sql = yield* SqlClient.SqlClient
  const present = yield* read(Dialect.tables(sql))
  if (!present.has("lease")) return null
  const [lease] = yield* read(sql<{ holder: string }>`SELECT holder FROM lease WHERE id = 1`)
  return lease?.holder ?? null
})

const taken = (holder: string | null) =>
  new Misconfigured({
    problems: [
      {
        key: "DATABASE_DSN",
        problem: `a volumed leads on this database (${holder ?? "it has not said who"}): stop it first`,
        example: EXAMPLE_MYSQL
      }
    ]
  })
