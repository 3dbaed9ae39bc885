import { Effect, Schema } from "effect"
import type { EventKind, Maintenance, Store } from "../../reconciler/Store.ts"
import { Withheld } from "../../schema/Action.ts"
import { Timestamp } from "../../schema/Ids.ts"
import type { Declarations } from "./Declarations.ts"
import { answeredBefore, type KeyedAnswers } from "./KeyedAnswers.ts"
import { decodeRows, Flag, keeping, type Session, writing } from "./Rows.ts"
import { read } from "./Transact.ts"

const MaintenanceRow = Schema.Struct({
  id: Schema.Literal(1),
  reason: Schema.String,
  begun_by: Schema.String,
  begun_at: Timestamp,
  ends_at: Schema.NullOr(Timestamp),
  ending: Flag
})

const encode = Schema.encodeSync(MaintenanceRow)

/** The maintenance that is on, if any, and what its predecessors withheld when they ended. */
export const make = (
  session: Session,
  { declarations }: Pick<Declarations, "declarations">,
  keys: Pick<KeyedAnswers, "add">
) => {
  const { sql } = session
  /** Asked before every call. */
  const cache = keeping(
    session,
    Effect.gen(function* () {
      const rows = yield* read(sql`SELECT * FROM maintenance`)
      const [found] = yield* decodeRows(session, "maintenance", MaintenanceRow, rows)
      return { standing: found === undefined ? (rows.length === 0 ? null : illegible) : toMaintenance(found) }
    })
  )
  const maintenance = Effect.map(cache.value, ({ standing }) => standing)

  const setMaintenance: Store["Type"]["setMaintenance"] = (next, { answer, standing, withheld = [] } = {}) =>
    writing(
      session,
      Effect.gen(function* () {
        const { standing: before } = yield* cache.load
        if (answer !== undefined) yield* keys.add(answer)
        if (standing !== undefined && !isSame(before, standing)) return before
        if (isSame(before, next)) return next
        yield* sql`DELETE FROM maintenance`
        if (next !== null) yield* sql`INSERT INTO maintenance ${sql.insert(toRow(next))}`
        yield* withhold(withheld)
        yield* session.tell([eventOf(before, next)])
        return next
      }),
      (standing) => cache.follow(() => ({ standing })),
      cache.forget
    ).pipe(Effect.asVoid, answeredBefore)

  /** Inside a transaction. What lapsed by a later write of its declaration goes on the way. */
  const withhold = Effect.fnUntraced(function* (withheld: ReadonlyArray<Withheld>) {
    yield* sql`DELETE FROM withheld WHERE NOT EXISTS (SELECT 1 FROM declarations
      WHERE declarations.uid = withheld.uid AND declarations.generation = withheld.generation
        AND declarations.removed_at IS NULL)`
    for (const { uid, generation, volume_id, action, name, digest } of withheld) {
      yield* sql`DELETE FROM withheld WHERE uid = ${uid} AND generation = ${generation}
        AND volume_id = ${volume_id} AND action = ${action}`
      yield* sql`INSERT INTO withheld ${sql.insert({ uid, generation, volume_id, action, name, digest })}`
    }
  })

  const withheld = Effect.gen(function* () {
    const rows = yield* read(sql`SELECT * FROM withheld ORDER BY name, action, volume_id`)
    if (rows.length === 0) return []
    const found = yield* decodeRows(session, "withheld", Withheld, rows)
    const generations = new Map((yield* declarations).map(({ uid, generation }) => [uid, generation]))
    return found.filter(({ uid, generation }) => generations.get(uid) === generation)
  })

  return { maintenance, setMaintenance, withheld }
}

const toMaintenance = ({ reason, begun_by, begun_at, ends_at, ending }: typeof MaintenanceRow.Type): Maintenance => ({
  reason,
  by: begun_by,
  since: begun_at,
  until: ends_at,
  ending
})

const toRow = ({ reason, by, since, until, ending }: Maintenance) =>
  encode({ id: 1, reason, begun_by: by, begun_at: since, ends_at: until, ending })

/** A row that cannot be read still says that nothing may be acted on. */
const illegible: Maintenance = {
  reason: "the stored maintenance cannot be read",
  by: "volumed",
  since: "1970-01-01T00:00:00.000Z",
  until: null,
  ending: false
}

const isSame = (a: Maintenance | null, b: Maintenance | null): boolean =>
  a === null || b === null ? a === b : JSON.stringify(toRow(a)) === JSON.stringify(toRow(b))

const eventOf = (before: Maintenance | null, next: Maintenance | null) => {
  const about = { name: null, actor: next?.by ?? before?.by ?? null }
  const event = (kind: EventKind, message: string) => ({ ...about, kind, message })
  if (next === null) return event("maintenance_ended", before?.reason ?? "")
  const until = next.until === null ? "" : ` until ${next.until}`
  const ending = next.ending ? ", ending" : ""
  return event(before === null ? "maintenance_begun" : "maintenance_changed", `${next.reason}${until}${ending}`)
}
