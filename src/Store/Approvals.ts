import { Clock, Effect, Schema } from "effect"
import type { Approval, KeyedAnswer } from "../../reconciler/Store.ts"
import { Held } from "../../schema/Action.ts"
import { answeredBefore, type KeyedAnswers } from "./KeyedAnswers.ts"
import { decodeRows, type Session, writing } from "./Rows.ts"
import { read } from "./Transact.ts"

const ApprovalRow = Schema.Struct({ ...Held.fields, digest: Schema.String, expires_at: Schema.Int })

/** What people let run. */
export const make = (session: Session, keys: Pick<KeyedAnswers, "add">) => {
  const { sql } = session

  const approvals = (at: number) =>
    read(sql`SELECT * FROM approvals WHERE expires_at > ${at} ORDER BY name, action`).pipe(
      Effect.flatMap((rows) => decodeRows(session, "approvals", ApprovalRow, rows))
    )

  /** They are read before every plan, so that those that allow nothing any more do not pile up. */
  const lapse = Effect.flatMap(Clock.currentTimeMillis, (at) => sql`DELETE FROM approvals WHERE expires_at <= ${at}`)

  const approve = (given: ReadonlyArray<Approval>, answer?: KeyedAnswer) =>
    writing(
      session,
      Effect.andThen(
        answer === undefined ? lapse : Effect.andThen(keys.add(answer), lapse),
        Effect.forEach(
          given,
          Effect.fnUntraced(function* ({ uid, generation, volume_id, action, name, digest, expires_at }: Approval) {
            yield* sql`DELETE FROM approvals WHERE uid = ${uid} AND generation = ${generation}
            AND volume_id = ${volume_id} AND action = ${action}`
            const row = { uid, generation, volume_id, action, name, digest, expires_at }
            yield* sql`INSERT INTO approvals ${sql.insert(row)}`
            const message = `${action} of volume ${volume_id}, digest ${digest}`
            yield* session.tell([{ kind: "approved", name, uid, actor: null, message }])
          }),
          { discard: true }
        )
      ),
      () => {},
      () => {}
    ).pipe(answeredBefore)

  return { approvals, approve }
}
