import { Effect, Schema } from "effect"
import type { NewEvent } from "../../reconciler/Store.ts"
import { Condition, type ConditionType } from "../../schema/Condition.ts"
import type { Uid } from "../../schema/Ids.ts"
import type { Declarations } from "./Declarations.ts"
import { ConditionsRow, decodeRows, keeping, now, type Session, writing } from "./Rows.ts"
import { read } from "./Transact.ts"

type Shown = ReadonlyArray<Condition>

interface Change {
  readonly uid: Uid
  readonly conditions: Shown
}

/** Those whose changes are told. The others change with one of these, or say how far it has come. */
const told: ReadonlySet<ConditionType> = new Set<ConditionType>(["Ready", "Exported", "Attached", "Removed"])

const sameConditions = Schema.equivalence(Schema.Array(Condition))
const encodeConditions = Schema.encodeSync(Schema.parseJson(Schema.Array(Condition)))

/** Conditions as last shown. */
export const make = (session: Session, declarations: Declarations) => {
  const { sql } = session
  const cache = keeping(
    session,
    read(sql`SELECT uid, conditions FROM conditions`).pipe(
      Effect.flatMap((rows) => decodeRows(session, "conditions", ConditionsRow, rows)),
      Effect.map((rows) => new Map(rows.map((row): [Uid, Shown] => [row.uid, row.conditions])))
    )
  )

  const conditions = Effect.map(cache.value, (known): ReadonlyMap<Uid, Shown> => new Map(known))

  const saveConditions = Effect.fnUntraced(function* (changes: ReadonlyArray<Change>) {
    const known = yield* cache.value
    const differing = changes.filter((change) => !sameConditions(known.get(change.uid) ?? [], change.conditions))
    if (differing.length === 0) return
    yield* writing(
      session,
      Effect.gen(function* () {
        yield* Effect.forEach(differing, storeConditions, { discard: true })
        const events = yield* Effect.forEach(differing, (change) => eventsOf(change, known.get(change.uid) ?? []))
        yield* session.tell(events.flat())
      }),
      () =>
        cache.follow((known) => {
          for (const change of differing) known.set(change.uid, change.conditions)
          return known
        }),
      cache.forget
    )
  })

  const storeConditions = Effect.fnUntraced(function* (change: Change) {
    const row = { uid: change.uid, conditions: encodeConditions(change.conditions), updated_at: yield* now }
    yield* sql`DELETE FROM conditions WHERE uid = ${change.uid}`
    yield* sql`INSERT INTO conditions ${sql.insert(row)}`
  })

  const eventsOf = Effect.fnUntraced(function* ({ uid, conditions }: Change, before: Shown) {
    const changed = conditions.filter((condition) => told.has(condition.type) && !before.some(isSame(condition)))
    if (changed.length === 0) return []
    const name = yield* declarations.nameOf(uid)
    return changed.map(({ type, status, reason, message }): NewEvent => ({
      kind: "condition",
      name,
      uid,
      actor: null,
      message: `${type} ${status} ${reason}${message === "" ? "" : `: ${message}`}`
    }))
  })

  /** Follows the end of these rows. */
  const dropped = (uids: ReadonlyArray<Uid>) =>
    cache.follow((known) => {
      for (const uid of uids) known.delete(uid)
      return known
    })

  return { conditions, saveConditions, dropped, forget: cache.forget }
}

export type Conditions = ReturnType<typeof make>

const isSame = (a: Condition) => (b: Condition) => a.type === b.type && a.status === b.status && a.reason === b.reason
