import { Clock, Effect, Option, Schema } from "effect"
import type { KeyedAnswer } from "../../reconciler/Store.ts"
import { PreconditionLost } from "../../schema/Errors.ts"
import { decodeRows, now, type Session, writing } from "./Rows.ts"
import { read } from "./Transact.ts"

/** How long an answer is kept under its key. */
const KEPT_MS = 24 * 3_600_000

const Response = Schema.parseJson(Schema.Record({ key: Schema.String, value: Schema.Unknown }))

const encodeResponse = Schema.encodeSync(Response)

const KeyedAnswerRow = Schema.Struct({
  idempotency_key: Schema.String,
  digest: Schema.String,
  status: Schema.Int,
  response: Response
})

/** The answers given to Idempotency-Keys. */
export const make = (session: Session) => {
  const { sql } = session

  const oldest = Effect.map(Clock.currentTimeMillis, (ms) => new Date(ms - KEPT_MS).toISOString())

  const answered = (key: string) =>
    Effect.gen(function* () {
      const rows = yield* read(
        sql`SELECT * FROM idempotency_keys WHERE idempotency_key = ${key} AND created_at >= ${yield* oldest}`
      )
      const [found] = yield* decodeRows(session, "idempotency_keys", KeyedAnswerRow, rows)
      return Option.map(Option.fromNullable(found), ({ digest, status, response }): KeyedAnswer => ({
        key,
        digest,
        status,
        response
      }))
    })

  /** Inside a transaction. `PreconditionLost`: the key has its answer. */
  const add = Effect.fnUntraced(function* ({ key, digest, status, response }: KeyedAnswer) {
    yield* sql`DELETE FROM idempotency_keys WHERE created_at < ${yield* oldest}`
    const taken = yield* sql`SELECT digest FROM idempotency_keys WHERE idempotency_key = ${key}`
    if (taken.length > 0)
      return yield* new PreconditionLost({ detail: "this Idempotency-Key was answered in the meantime" })
    const row = { idempotency_key: key, digest, status, response: encodeResponse(response) }
    yield* sql`INSERT INTO idempotency_keys ${sql.insert({ ...row, created_at: yield* now })}`
  })

  /** The first answer stays. */
  const remember = (answer: KeyedAnswer) =>
    writing(
      session,
      add(answer),
      () => {},
      () => {}
    ).pipe(answeredBefore)

  return { answered, remember, add }
}

/** A repeat that came first has done it all: the first answer stays, and nothing is done again. */
export const answeredBefore = <E>(written: Effect.Effect<void, E | PreconditionLost>) =>
  Effect.catchIf(
    written,
    (error): error is PreconditionLost & E => error instanceof PreconditionLost,
    () => Effect.void
  ) as Effect.Effect<void, Exclude<E, PreconditionLost>>

export type KeyedAnswers = ReturnType<typeof make>
