import { Array as Arr, Effect, Option } from "effect"
import type { OperationStatus, OperationType } from "../../schema/Operation.ts"
import type { Kept } from "../../reconciler/Store.ts"
import { Uid } from "../../schema/Ids.ts"
import type { Conditions } from "./Conditions.ts"
import * as Dialect from "./Dialect.ts"
import { type Session, writing } from "./Rows.ts"
import { read } from "./Transact.ts"

/** Rows of one kind that go in one transaction: other writes wait no longer for it than for one another. */
const BATCH = 500
/** How long a removed declaration is shown with its conditions, ms. */
const REMOVED_SHOWN_MS = 30 * 86_400_000

interface Old {
  readonly id: string
  readonly type: OperationType
  readonly status: OperationStatus
  readonly at: string
}

/** What is old goes, a batch at a time. What anything may still follow from stays, however old. */
export const make = (session: Session, conditions: Conditions) => {
  const { sql } = session
  const created = Dialect.createdColumn(sql)
  const completed = Dialect.completedColumn(sql)
  /** Rows before it were looked at in this round, and stay. */
  const place: { after: Pick<Old, "at" | "id"> | null } = { after: null }

  /**
   * Ended long ago, and none of these: the predecessor's, which has no phase; one that is unresolved, or a call whose wish
   * is not taken back; one that another row names as its parent; the newest of its kind of a declaration that lives,
   * from which its last operation, the time of its attachment and a deletion that was sent are told.
   */
  const oldOperations = Effect.fnUntraced(function* (before: string) {
    const column = (table: "c" | "n" | "o", name: string) => sql.literal(`${table}.${name}`)
    const at = column("o", created)
    const newer = sql`(${column("n", created)} > ${at} OR (${column("n", created)} = ${at} AND n.id > o.id))`
    const { after } = place
    const from = after === null ? sql`1 = 1` : sql`${at} >= ${after.at} AND (${at} > ${after.at} OR o.id > ${after.id})`
    return yield* read(
      sql<Old>`SELECT o.id AS id, o.type AS type, o.status AS status, ${at} AS at FROM volume_operations o
        WHERE ${at} < ${before} AND ${from} AND ${column("o", completed)} < ${before}
          AND o.status IN ('completed', 'failed', 'cancelled') AND o.phase IS NOT NULL
          AND o.unresolved_uid IS NULL AND o.open_call_uid IS NULL
          AND NOT EXISTS (SELECT 1 FROM volume_operations c WHERE c.parent_id = o.id)
          AND NOT EXISTS (SELECT 1 FROM declarations d WHERE d.uid = o.uid AND d.removed_at IS NULL AND NOT EXISTS (
            SELECT 1 FROM volume_operations n WHERE n.uid = o.uid AND n.type = o.type AND n.status = o.status
              AND (n.cause = 'api') = (o.cause = 'api') AND ${newer}))
        ORDER BY ${at}, o.id LIMIT ${Dialect.limit(sql, BATCH)}`
    )
  })

  /** What was counted goes on being counted, by type and status. */
  const dropOperations = Effect.fnUntraced(function* (rows: ReadonlyArray<Old>) {
    let dropped = 0
    for (const group of Object.values(Arr.groupBy(rows, ({ type, status }) => `${type} ${status}`))) {
      const [{ type, status }] = group
      const ids = group.map(({ id }) => id)
      const raw = yield* sql`DELETE FROM volume_operations
        WHERE ${sql.in("id", ids)} AND unresolved_uid IS NULL AND open_call_uid IS NULL`.raw
      const count = Dialect.affected(sql, raw)
      const counted = yield* sql`UPDATE operations_pruned SET pruned = pruned + ${count}
        WHERE type = ${type} AND status = ${status}`.raw
      if (Dialect.affected(sql, counted) === 0 && count > 0)
        yield* sql`INSERT INTO operations_pruned ${sql.insert({ type, status, pruned: count })}`
      dropped += count
    }
    return dropped
  })

  /** The oldest that are too old, up to the first that is not; the newest stays, so that its number is never given again. */
  const oldEvents = Effect.fnUntraced(function* (before: string) {
    const rows = yield* read(
      sql<{ id: number; at: string }>`SELECT id, at FROM events ORDER BY id LIMIT ${Dialect.limit(sql, BATCH + 1)}`
    )
    const young = rows.findIndex(({ at }) => at >= before)
    const old = rows.slice(0, Math.min(young < 0 ? rows.length : young, rows.length - 1, BATCH))
    return Option.map(Option.fromNullable(old.at(-1)), ({ id }) => ({ upTo: Number(id), count: old.length }))
  })

  const oldConditions = Effect.fnUntraced(function* (now: number) {
    const before = new Date(now - REMOVED_SHOWN_MS).toISOString()
    const rows = yield* read(
      sql<{ uid: string }>`SELECT c.uid AS uid FROM conditions c JOIN declarations d ON d.uid = c.uid
        WHERE d.removed_at < ${before} LIMIT ${Dialect.limit(sql, BATCH)}`
    )
    return rows.map(({ uid }) => Uid.make(uid))
  })

  const prune = Effect.fnUntraced(function* ({ now, operations_ms, events_ms }: Kept) {
    const time = (age: number) => new Date(now - age).toISOString()
    const operations = yield* oldOperations(time(operations_ms))
    const events = yield* oldEvents(time(events_ms))
    const uids = yield* oldConditions(now)
    const last = operations.length < BATCH ? undefined : operations.at(-1)
    place.after = last === undefined ? null : { at: last.at, id: last.id }
    if (operations.length + uids.length === 0 && Option.isNone(events)) return 0
    const body = Effect.gen(function* () {
      const dropped = yield* dropOperations(operations)
      if (Option.isSome(events)) yield* sql`DELETE FROM events WHERE id <= ${events.value.upTo}`
      if (uids.length > 0) yield* sql`DELETE FROM conditions WHERE ${sql.in("uid", uids)}`
      return dropped
    })
    const dropped = yield* writing(session, body, () => conditions.dropped(uids), conditions.forget)
    return dropped + uids.length + Option.match(events, { onNone: () => 0, onSome: ({ count }) => count })
  })

  return { prune }
}
