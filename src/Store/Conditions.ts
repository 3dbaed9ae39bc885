import { Effect, Schema } from "effect"
import type { NewEvent } from "../../reconciler/Store.ts"
import { Condition, type ConditionType } from "../../schema/Condition.ts"
import type { Uid } from "../../schema/Ids.ts"
import type { Declarations } from "./Declarations.ts"
import { ConditionsRow, decodeRows, now, type Session, writing } from "./Rows.ts"
import { read } from "./Transact.ts"

type Conditions = ReadonlyArray<Condition>

interface Change {
  readonly uid: Uid
  readonly conditions: Conditions
}

/** Those whose changes are told. The others change with one of these, or say how far it has come. */
const told: ReadonlySet<ConditionType> = new Set<ConditionType>(["Ready", "Exported", "Attached", "Removed"])

const sameConditions = Schema.equivalence(Schema.Array(Condition))
const encodeConditions = Schema.encodeSync(Schema.parseJson(Schema.Array(Condition)))

/** Conditions as last shown. */
export const make = (session: Session, declarations: Declarations) => {
  const { sql } = session
  let conditionsCache: Map<Uid, Conditions> | null = null

  const loadConditions = Effect.gen(function* () {
    if (conditionsCache !== null) return conditionsCache
    const rows = yield* read(sql`SELECT uid, conditions FROM conditions`)
    const loaded = new Map<Uid, Conditions>()
    for (const row of yield* decodeRows(session, "conditions", ConditionsRow, rows)) loaded.set(row.uid, row.conditions)
    conditionsCache = loaded
    return loaded
  })
  const knownConditions = Effect.suspend(() =>
    conditionsCache === null ? session.alone(loadConditions) : Effect.succeed(conditionsCache)
  )

  const conditions = Effect.map(knownConditions, (known): ReadonlyMap<Uid, Conditions> => new Map(known))

  const saveConditions = Effect.fnUntraced(function* (changes: ReadonlyArray<Change>) {
    const known = yield* knownConditions
    const differing = changes.filter((change) => !sameConditions(known.get(change.uid) ?? [], change.conditions))
    if (differing.length === 0) return
    yield* writing(
      session,
      Effect.gen(function* () {
        yield* Effect.forEach(differing, storeConditions, { discard: true })
        const events = yield* Effect.forEach(differing, (change) => eventsOf(change, known.get(change.uid) ?? []))
        yield* session.tell(events.flat())
      }),
      () => {
        for (const change of differing) conditionsCache?.set(change.uid, change.conditions)
      },
      () => {
        conditionsCache = null
      }
    )
  })

  const storeConditions = Effect.fnUntraced(function* (change: Change) {
    const row = { uid: change.uid, conditions: encodeConditions(change.conditions), updated_at: yield* now }
    yield* sql`DELETE FROM conditions WHERE uid = ${change.uid}`
    yield* sql`INSERT INTO conditions ${sql.insert(row)}`
  })

  const eventsOf = Effect.fnUntraced(function* ({ uid, conditions }: Change, before: Conditions) {
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

  return { conditions, saveConditions }
}

const isSame = (a: Condition) => (b: Condition) => a.type === b.type && a.status === b.status && a.reason === b.reason
