import type * as SqlClient from "@effect/sql/SqlClient"
import type { SqlError } from "@effect/sql/SqlError"
import type { Fragment } from "@effect/sql/Statement"
import { Array as Arr, Effect, Schema } from "effect"
import type { EventFilter, NewEvent } from "../../reconciler/Store.ts"
import { OperationId, Uid } from "../../schema/Ids.ts"
import * as Dialect from "./Dialect.ts"
import { decodeRows, normalised, now, type Session, writing } from "./Rows.ts"
import { read } from "./Transact.ts"

const PAGE_MAX = 1000
/** Rows of one statement: seven values each, far below what any dialect takes. */
const CHUNK = 100
/** Characters. */
const MESSAGE_MAX = 2000
/** So many events are added before the oldest are looked for. */
const PRUNE_EVERY = 1000

/** How many events are kept, the newest. */
export const KEPT = 500_000

const EventRow = Schema.Struct({
  id: Schema.Int,
  at: Schema.String,
  kind: Schema.String,
  name: Schema.NullOr(Schema.String),
  uid: Schema.NullOr(Uid),
  actor: Schema.NullOr(Schema.String),
  operation_id: Schema.NullOr(OperationId),
  message: Schema.String
})

/** What `Session.tell` does. The oldest go when more than `kept` are there, give or take `PRUNE_EVERY`. */
export const teller = (sql: SqlClient.SqlClient, kept: number): Session["tell"] => {
  let added = 0
  const prune = Effect.gen(function* () {
    added = 0
    const [newest] = yield* sql<{ id: number | null }>`SELECT MAX(id) AS id FROM events`
    yield* sql`DELETE FROM events WHERE id <= ${Number(newest?.id ?? 0) - kept}`
  })
  const append = (events: ReadonlyArray<NewEvent>, at: string): Effect.Effect<unknown, SqlError> =>
    sql`INSERT INTO events ${sql.insert(events.map((event) => ({ at, ...toRow(event) })))}`
  return Effect.fnUntraced(function* (events) {
    if (events.length === 0) return
    const at = yield* now
    yield* Effect.forEach(Arr.chunksOf(events, CHUNK), (chunk) => append(chunk, at), { discard: true })
    added += events.length
    if (added >= PRUNE_EVERY) yield* prune
  })
}

const toRow = ({ kind, name, uid = null, actor, operation_id = null, message }: NewEvent) => ({
  kind,
  name,
  uid,
  actor,
  operation_id,
  message: message.length > MESSAGE_MAX ? [...message].slice(0, MESSAGE_MAX).join("") : message
})

/** The history, for people and for watchers that resume. */
export const make = (session: Session) => {
  const { sql } = session

  const record = (event: NewEvent) =>
    writing(
      session,
      session.tell([event]),
      () => {},
      () => {}
    )

  const events = (filter: EventFilter) =>
    read(
      sql`SELECT * FROM events WHERE ${sql.and(clausesOf(filter))}
        ORDER BY id LIMIT ${Dialect.limit(sql, Math.min(PAGE_MAX, Math.max(1, filter.limit)))}`
    ).pipe(Effect.flatMap((rows) => decodeRows(session, "events", EventRow, rows)))

  const clausesOf = (filter: EventFilter): Array<Fragment> => {
    const clauses: Array<Fragment> = [sql`id > ${filter.after}`]
    for (const column of ["name", "actor", "kind"] as const)
      if (filter[column] !== undefined) clauses.push(sql`${sql(column)} = ${filter[column]}`)
    if (filter.since !== undefined) clauses.push(sql`at >= ${normalised(filter.since)}`)
    if (filter.until !== undefined) clauses.push(sql`at < ${normalised(filter.until)}`)
    return clauses
  }

  const eventRange = read(
    sql<{ oldest: number | null; newest: number | null }>`SELECT
      (SELECT MIN(id) FROM events) AS oldest, (SELECT MAX(id) FROM events) AS newest`
  ).pipe(Effect.map(([row]) => ({ oldest: Number(row?.oldest ?? 0), newest: Number(row?.newest ?? 0) })))

  return { record, events, eventRange }
}
