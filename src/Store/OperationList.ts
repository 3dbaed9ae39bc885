import type { Fragment } from "@effect/sql/Statement"
import { Effect, Option, Schema } from "effect"
import type { OperationFilter, Statistics } from "../../reconciler/Store.ts"
import { CursorExpired } from "../../schema/Errors.ts"
import type { OperationId } from "../../schema/Ids.ts"
import { type Operation, OperationStatus, OperationType } from "../../schema/Operation.ts"
import { decodeRows, normalised, OperationRow, type Session } from "./Rows.ts"
import { read } from "./Transact.ts"

const PAGE_DEFAULT = 100
const PAGE_MAX = 1000
/** Operations that are kept in memory between two writes. */
const RECENT_MAX = 1024
/** Completed operations whose duration counts. */
const SAMPLE = 1000

const CountRow = Schema.Struct({ type: OperationType, status: OperationStatus, count: Schema.Int })

/** What is read of the journal. */
export const make = (session: Session) => {
  const { sql } = session

  const decode = (rows: ReadonlyArray<Readonly<Record<string, unknown>>>) =>
    decodeRows(session, "volume_operations", OperationRow, rows)

  // The column is compared, and sorting left to us: asked to sort, SQLite would rather walk the whole table in that order.
  const unresolved = read(sql`SELECT * FROM volume_operations WHERE unresolved_uid > ''`).pipe(
    Effect.flatMap(decode),
    Effect.map(oldestFirst)
  )

  const calls = read(sql`SELECT * FROM volume_operations WHERE open_call_uid > ''`).pipe(
    Effect.flatMap(decode),
    Effect.map(oldestFirst)
  )

  const recent = { epoch: 0, byId: new Map<OperationId, Operation>() }

  /** Clients ask for one operation again and again: what was read since the last write is not read anew. */
  const operation = (id: OperationId) =>
    Effect.suspend(() => {
      const epoch = session.epoch.value
      if (recent.epoch !== epoch || recent.byId.size >= RECENT_MAX) recent.byId.clear()
      recent.epoch = epoch
      const known = recent.byId.get(id)
      if (known !== undefined) return Effect.succeedSome(known)
      return read(sql`SELECT * FROM volume_operations WHERE id = ${id}`).pipe(
        Effect.flatMap(decode),
        Effect.map(([found]) => {
          if (found !== undefined && session.epoch.value === epoch) recent.byId.set(id, found)
          return Option.fromNullable(found)
        })
      )
    })

  const operations = Effect.fnUntraced(function* (filter: OperationFilter) {
    const limit = Math.min(PAGE_MAX, Math.max(1, Math.trunc(filter.limit ?? PAGE_DEFAULT)))
    const place = filter.cursor === undefined ? null : decodeCursor(filter.cursor)
    if (place === undefined) return yield* new CursorExpired({ cursor: String(filter.cursor).slice(0, 100) })
    const clauses = clausesOf(filter)
    // Not an OR of both cases, which no index can begin at.
    if (place !== null) clauses.push(sql`created_at <= ${place.at} AND (created_at < ${place.at} OR id < ${place.id})`)
    const rows = yield* read(
      sql`SELECT * FROM volume_operations WHERE ${sql.and(clauses)} ORDER BY created_at DESC, id DESC LIMIT ${limit + 1}`
    )
    const page = rows.slice(0, limit)
    const last = page.at(-1)
    return { items: yield* decode(page), next: rows.length > limit && last !== undefined ? encodeCursor(last) : null }
  })

  const clausesOf = (filter: OperationFilter): Array<Fragment> => {
    const equal = ["status", "type", "volume_id", "vm_id", "name", "uid", "parent_id"] as const
    const clauses = equal.flatMap((column): Array<Fragment> => {
      const value = filter[column]
      return value === undefined ? [] : [sql`${sql(column)} = ${value}`]
    })
    if (filter.since !== undefined) clauses.push(sql`created_at >= ${normalised(filter.since)}`)
    return clauses
  }

  /** What was definitely not done does not count, or one volume that is refused again and again would spend the budget of all. */
  const destructiveSince = (since: number) =>
    read(sql<{ count: number }>`SELECT COUNT(*) AS count FROM volume_operations
      WHERE destructive = 1 AND phase <> 'refused' AND created_at >= ${new Date(since).toISOString()}`).pipe(
      Effect.map((rows) => Number(rows[0]?.count ?? 0))
    )

  const statistics = Effect.gen(function* () {
    const rows = yield* read(
      sql`SELECT type, status, COUNT(*) AS count FROM volume_operations GROUP BY type, status ORDER BY type, status`
    )
    const completed = yield* read(
      sql<{ created_at: string; completed_at: string | null }>`SELECT created_at, completed_at FROM volume_operations
        WHERE status = 'completed' ORDER BY created_at DESC, id DESC LIMIT ${SAMPLE}`
    )
    const counts = yield* decodeRows(session, "volume_operations", CountRow, rows)
    return { counts, mean_ms: mean(completed.flatMap(duration)) } satisfies Statistics
  })

  return { unresolved, calls, operation, operations, destructiveSince, statistics }
}

const oldestFirst = (operations: ReadonlyArray<Operation>): ReadonlyArray<Operation> =>
  operations.toSorted((a, b) => (`${a.created_at} ${a.id}` < `${b.created_at} ${b.id}` ? -1 : 1))

const duration = (row: { readonly created_at: string; readonly completed_at: string | null }) => {
  const ms = Date.parse(row.completed_at ?? "") - Date.parse(row.created_at)
  return Number.isFinite(ms) && ms >= 0 ? [ms] : []
}

const mean = (values: ReadonlyArray<number>): number | null =>
  values.length === 0 ? null : values.reduce((sum, value) => sum + value, 0) / values.length

/** The place of a row in the list: opaque to callers, and bounded by its grammar before it reaches a query. */
const encodeCursor = (row: Readonly<Record<string, unknown>>) =>
  Buffer.from(`${String(row.created_at)} ${String(row.id)}`).toString("base64url")

const decodeCursor = (cursor: string): { readonly at: string; readonly id: string } | undefined => {
  if (cursor.length > 200) return undefined
  const match = /^(\S{1,40}) (\S{1,64})$/.exec(Buffer.from(cursor, "base64url").toString("utf8"))
  return match?.[1] === undefined || match[2] === undefined ? undefined : { at: match[1], id: match[2] }
}
