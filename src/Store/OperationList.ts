import type { Fragment } from "@effect/sql/Statement"
import { Effect, Option, Schema } from "effect"
import type { OperationFilter, Statistics } from "../../reconciler/Store.ts"
import { CursorExpired } from "../../schema/Errors.ts"
import type { OperationId } from "../../schema/Ids.ts"
import { type Operation, OperationStatus, OperationType } from "../../schema/Operation.ts"
import * as Dialect from "./Dialect.ts"
import { decodeOperations, decodeRows, normalised, type Session } from "./Rows.ts"
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

  const created = sql(Dialect.createdColumn(sql))

  const decode = (rows: ReadonlyArray<Readonly<Record<string, unknown>>>) => decodeOperations(session, rows)

  // The column is compared, and sorting left to us: asked to sort, SQLite would rather walk the whole table in that order.
  const unresolved = read(sql`SELECT * FROM volume_operations WHERE unresolved_uid > ''`).pipe(
    Effect.flatMap(decode),
    Effect.map(oldestFirst)
  )

  const calls = read(sql`SELECT * FROM volume_operations WHERE open_call_uid > ''`).pipe(
    Effect.flatMap(decode),
    Effect.map(oldestFirst)
  )

  const recent = { epoch: 0, reign: session.reign(), byId: new Map<OperationId, Operation>() }

  /** Clients ask for one operation again and again: what was read since the last write is not read anew. */
  const operation = (id: OperationId) =>
    Effect.suspend(() => {
      const epoch = session.epoch.value
      const reign = session.reign()
      if (reign === null || reign !== recent.reign) recent.byId.clear()
      recent.reign = reign
      if (recent.epoch !== epoch || recent.byId.size >= RECENT_MAX) recent.byId.clear()
      recent.epoch = epoch
      const known = recent.byId.get(id)
      if (known !== undefined) return Effect.succeedSome(known)
      return read(sql`SELECT * FROM volume_operations WHERE id = ${id}`).pipe(
        Effect.flatMap(decode),
        Effect.map(([found]) => {
          const same = reign !== null && session.reign() === reign && session.epoch.value === epoch
          if (found !== undefined && same) recent.byId.set(id, found)
          return Option.fromNullable(found)
        })
      )
    })

  const operations = Effect.fnUntraced(function* (filter: OperationFilter) {
    const limit = Math.min(PAGE_MAX, Math.max(1, Math.trunc(filter.limit ?? PAGE_DEFAULT)))
    const place = filter.cursor === undefined ? null : decodeCursor(filter.cursor)
    if (place === undefined) return yield* new CursorExpired({ cursor: String(filter.cursor).slice(0, 100) })
    // What the predecessor wrote since we began has no place in the order until it is dated.
    const clauses = [...clausesOf(filter), sql`${created} > ''`]
    // Not an OR of both cases, which no index can begin at.
    if (place !== null) clauses.push(sql`${created} <= ${place.at} AND (${created} < ${place.at} OR id < ${place.id})`)
    const rows = yield* read(
      sql`SELECT * FROM volume_operations ${Dialect.by(sql, pagesOf(filter))} WHERE ${sql.and(clauses)}
        ORDER BY ${created} DESC, id DESC LIMIT ${Dialect.limit(sql, limit + 1)}`
    )
    const page = rows.slice(0, limit)
    const last = page.at(-1)
    return { items: yield* decode(page), next: rows.length > limit && last !== undefined ? cursorAt(last) : null }
  })

  const cursorAt = (row: Readonly<Record<string, unknown>>) =>
    encodeCursor(String(row[Dialect.createdColumn(sql)]), String(row.id))

  const clausesOf = (filter: OperationFilter): Array<Fragment> => {
    const clauses = filters.flatMap((column): Array<Fragment> => {
      const value = filter[column]
      if (value === undefined) return []
      const theirs = column === "volume_id" || column === "vm_id"
      return [theirs ? Dialect.same(sql, column, value) : sql`${sql(column)} = ${value}`]
    })
    if (filter.since !== undefined) clauses.push(sql`${created} >= ${normalised(filter.since)}`)
    return clauses
  }

  /** What was definitely not done does not count, or one volume that is refused again and again would spend the budget of all. */
  const destructiveSince = (since: number) =>
    read(sql<{ count: number }>`SELECT COUNT(*) AS count FROM volume_operations
      WHERE destructive = 1 AND phase <> 'refused' AND ${created} >= ${new Date(since).toISOString()}`).pipe(
      Effect.map((rows) => Number(rows[0]?.count ?? 0))
    )

  const statistics = Effect.gen(function* () {
    // In one statement: what is pruned meanwhile must be neither missing in both nor counted twice.
    const rows = yield* read(
      sql<{ type: string; status: string; count: unknown }>`SELECT type, status, COUNT(*) AS count
          FROM volume_operations GROUP BY type, status
        UNION ALL SELECT type, status, pruned AS count FROM operations_pruned`
    )
    const completed = yield* read(
      sql<{ begun: string | null; ended: string | null }>`SELECT ${created} AS begun,
          ${sql(Dialect.completedColumn(sql))} AS ended
        FROM volume_operations ${Dialect.by(sql, [pages.status])}
        WHERE status = 'completed' ORDER BY ${created} DESC, id DESC LIMIT ${Dialect.limit(sql, SAMPLE)}`
    )
    const counts = yield* decodeRows(session, "volume_operations", CountRow, summed(rows))
    // Sorted here: an ENUM would be by its place in the definition.
    counts.sort((a, b) => (`${a.type} ${a.status}` < `${b.type} ${b.status}` ? -1 : 1))
    return { counts, mean_ms: mean(completed.flatMap(duration)) } satisfies Statistics
  })

  return { unresolved, calls, operation, operations, destructiveSince, statistics }
}

const filters = ["parent_id", "uid", "name", "volume_id", "vm_id", "type", "status"] as const

/** The index that begins with the filter and goes on in the list's order. */
const pages = {
  parent_id: "idx_volume_operations_parent_page",
  uid: "idx_volume_operations_uid_page",
  name: "idx_volume_operations_name_page",
  volume_id: "idx_volume_operations_volume_page",
  vm_id: "idx_volume_operations_vm_page",
  type: "idx_volume_operations_type_page",
  status: "idx_volume_operations_status_page"
} as const satisfies Record<(typeof filters)[number], string>

/** All in the list's order: which of them leaves the fewest rows is the database's to know. */
const pagesOf = (filter: OperationFilter): ReadonlyArray<string> => {
  const found = filters.filter((column) => filter[column] !== undefined).map((column) => pages[column])
  if (found.length === 0) return ["idx_volume_operations_page"]
  const both = filter.type !== undefined && filter.status !== undefined
  return both ? [...found, "idx_volume_operations_outcome"] : found
}

const summed = (rows: ReadonlyArray<{ readonly type: string; readonly status: string; readonly count: unknown }>) => {
  const sums = new Map<string, { readonly type: string; readonly status: string; readonly count: number }>()
  for (const { type, status, count } of rows) {
    const key = `${type} ${status}`
    sums.set(key, { type, status, count: Number(count) + (sums.get(key)?.count ?? 0) })
  }
  return [...sums.values()]
}

const oldestFirst = (operations: ReadonlyArray<Operation>): ReadonlyArray<Operation> =>
  operations.toSorted((a, b) => (`${a.created_at} ${a.id}` < `${b.created_at} ${b.id}` ? -1 : 1))

const duration = (row: { readonly begun: string | null; readonly ended: string | null }) => {
  const ms = Date.parse(row.ended ?? "") - Date.parse(row.begun ?? "")
  return Number.isFinite(ms) && ms >= 0 ? [ms] : []
}

const mean = (values: ReadonlyArray<number>): number | null =>
  values.length === 0 ? null : values.reduce((sum, value) => sum + value, 0) / values.length

/** The place of a row in the list: opaque to callers, and bounded by its grammar before it reaches a query. */
const encodeCursor = (at: string, id: string) => Buffer.from(`${at} ${id}`).toString("base64url")

const decodeCursor = (cursor: string): { readonly at: string; readonly id: string } | undefined => {
  if (cursor.length > 200) return undefined
  const match = /^([\x21-\x7e]{1,40}) ([\x21-\x7e]{1,64})$/.exec(Buffer.from(cursor, "base64url").toString("utf8"))
  return match?.[1] === undefined || match[2] === undefined ? undefined : { at: match[1], id: match[2] }
}
