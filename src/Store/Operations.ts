import type { Fragment } from "@effect/sql/Statement"
import { Effect, Option, Schema } from "effect"
import * as Intent from "../../reconciler/Intent.ts"
import type { Advance, OperationFilter } from "../../reconciler/Store.ts"
import { Action } from "../../schema/Action.ts"
import type { Declaration } from "../../schema/Declaration.ts"
import { CursorExpired, GenerationConflict, PreconditionLost, StoreUnavailable } from "../../schema/Errors.ts"
import { OperationId } from "../../schema/Ids.ts"
import { isUnresolved, type Operation, type OperationStatus, type OperationType } from "../../schema/Operation.ts"
import { type Declarations, type Learned, normalised } from "./Declarations.ts"
import { decodeRows, fromOperation, now, OperationRow, type Session, writing } from "./Rows.ts"
import { read } from "./Transact.ts"

const PAGE_DEFAULT = 100
const PAGE_MAX = 1000

const types = {
  Create: "create",
  Adopt: "adopt",
  Attach: "attach",
  Export: "export",
  Unexport: "unexport",
  MigratePath: "migrate_path",
  Detach: "detach",
  Tag: "tag",
  Delete: "delete"
} as const satisfies Record<Action["_tag"], OperationType>

const encodeAction = Schema.encodeSync(Action)

/** The journal of actions: intent before, outcome after. */
export const make = (session: Session, declarations: Declarations) => {
  const { sql } = session

  const decode = (rows: ReadonlyArray<Readonly<Record<string, unknown>>>) =>
    decodeRows(session, "volume_operations", OperationRow, rows)

  const intend = <A extends Action>(action: A) =>
    writing(
      session,
      Effect.gen(function* () {
        const written_by = yield* current(action)
        yield* alone(action)
        const id = OperationId.make(`op-${session.newId()}`)
        const operation = yield* describeIntent(action, id, written_by)
        yield* sql`INSERT INTO volume_operations ${sql.insert(fromOperation(operation))}`
        return Intent.unsafeMake<A["_tag"]>(id, action as Extract<Action, { _tag: A["_tag"] }>)
      }),
      () => {},
      declarations.forget
    )

  /** S15: the declaration lives and is at the generation that was planned for. Answers its last writer. */
  const current = Effect.fnUntraced(function* (action: Action) {
    const [found] = yield* sql<{ generation: number; written_by: string }>`SELECT generation, written_by
      FROM declarations WHERE uid = ${action.uid} AND removed_at IS NULL`
    if (found === undefined || Number(found.generation) !== action.generation)
      return yield* new GenerationConflict({
        name: action.name,
        expected: action.generation,
        found: found === undefined ? null : Number(found.generation)
      })
    return found.written_by
  })

  /** S2 and S4, asked of bare columns, so that they hold even beside rows that do not decode. */
  const alone = Effect.fnUntraced(function* (action: Action) {
    const volume = volumeOf(action)
    const [open] = yield* sql<{ id: string }>`SELECT id FROM volume_operations
      WHERE unresolved_uid = ${action.uid} OR (unresolved_uid IS NOT NULL AND volume_id = ${volume} AND volume_id <> '')`
    if (open !== undefined) return yield* new PreconditionLost({ detail: `operation ${open.id} is not resolved yet` })
    const [claim] = yield* sql<{ name: string }>`SELECT name FROM declarations
      WHERE bound_volume_id = ${volume} AND removed_at IS NULL AND uid <> ${action.uid}`
    if (claim !== undefined)
      return yield* new PreconditionLost({ detail: `volume ${volume} belongs to the declaration ${claim.name}` })
  })

  const describeIntent = Effect.fnUntraced(function* (action: Action, id: OperationId, written_by: string) {
    const type = types[action._tag]
    const at = yield* now
    const earlier = yield* sql<{ count: number }>`SELECT COUNT(*) AS count FROM volume_operations
      WHERE uid = ${action.uid} AND type = ${type} AND generation = ${action.generation}`
    return {
      id,
      type,
      status: "pending",
      volume_id: volumeOf(action),
      vm_id: action._tag === "Attach" || action._tag === "Detach" ? action.vm_id : null,
      request: { ...encodeAction(action) },
      response: null,
      error: null,
      created_at: at,
      updated_at: at,
      completed_at: null,
      name: action.name,
      uid: action.uid,
      cause: action.cause,
      actor: action.cause === "declaration" ? written_by : "volumed",
      generation: action.generation,
      phase: "intended",
      job_id: null,
      attempts: Number(earlier[0]?.count ?? 0) + 1,
      parent_id: null,
      destructive: action.destructive,
      submitted_at: null,
      expires_at: null
    } satisfies Operation
  })

  /** Inside a transaction. */
  const move = Effect.fnUntraced(function* (id: OperationId, advance: Advance) {
    const found = yield* find(id)
    if (found === null) return yield* new PreconditionLost({ detail: `there is no operation ${id}` })
    const refusal = refuseMove(found, advance)
    if (refusal !== null) return yield* new PreconditionLost({ detail: refusal })
    const moved = apply(found, advance)
    if (sameOperation(found, moved)) return found
    const at = yield* now
    const completed_at = isOver(moved.status) ? (found.completed_at ?? at) : null
    const stored: Operation = { ...moved, updated_at: at, completed_at }
    yield* sql`UPDATE volume_operations SET ${sql.update(fromOperation(stored), ["id"])} WHERE id = ${id}`
    return stored
  })

  const find = Effect.fnUntraced(function* (id: OperationId) {
    const rows = yield* sql`SELECT * FROM volume_operations WHERE id = ${id}`
    if (rows.length === 0) return null
    const [found] = yield* decode(rows)
    if (found !== undefined) return found
    const problem = session.undecodable.get(`volume_operations ${id}`)?.problem ?? "it does not decode"
    return yield* new StoreUnavailable({ detail: `operation ${id} cannot be read: ${problem}`, outcome_unknown: false })
  })

  const advance = (id: OperationId, change: Advance) =>
    writing(session, move(id, change), () => {}, declarations.forget)

  const settle = (id: OperationId, change: Advance, learned: Learned | null) =>
    writing(
      session,
      Effect.gen(function* () {
        const operation = yield* move(id, change)
        const changed: ReadonlyArray<Declaration> = learned === null ? [] : yield* declarations.learn(learned)
        return { operation, changed }
      }),
      ({ changed }) => declarations.remember(changed),
      declarations.forget
    ).pipe(Effect.map(({ operation }) => operation))

  const unresolved = read(
    sql`SELECT * FROM volume_operations WHERE unresolved_uid IS NOT NULL ORDER BY created_at, id`
  ).pipe(Effect.flatMap(decode))

  const operation = (id: OperationId) =>
    read(sql`SELECT * FROM volume_operations WHERE id = ${id}`).pipe(
      Effect.flatMap(decode),
      Effect.map((found) => Option.fromNullable(found[0]))
    )

  const operations = Effect.fnUntraced(function* (filter: OperationFilter) {
    const limit = Math.min(PAGE_MAX, Math.max(1, Math.trunc(filter.limit ?? PAGE_DEFAULT)))
    const place = filter.cursor === undefined ? null : decodeCursor(filter.cursor)
    if (place === undefined) return yield* new CursorExpired({ cursor: String(filter.cursor).slice(0, 100) })
    const clauses: Array<Fragment> = conditionsOf(filter)
    if (place !== null) clauses.push(sql`(created_at < ${place.at} OR (created_at = ${place.at} AND id < ${place.id}))`)
    const rows = yield* read(
      sql`SELECT * FROM volume_operations WHERE ${sql.and(clauses)} ORDER BY created_at DESC, id DESC LIMIT ${limit + 1}`
    )
    const page = rows.slice(0, limit)
    const last = page.at(-1)
    return { items: yield* decode(page), next: rows.length > limit && last !== undefined ? encodeCursor(last) : null }
  })

  const conditionsOf = (filter: OperationFilter): Array<Fragment> => {
    const equal = ["status", "type", "volume_id", "vm_id", "name", "uid"] as const
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

  return { intend, advance, settle, unresolved, operation, operations, destructiveSince }
}

const volumeOf = (action: Action): string => (action._tag === "Create" ? "" : action.volume_id)

const isOver = (status: OperationStatus) => status === "completed" || status === "failed" || status === "cancelled"

/** Why this advance must not be; null when it may. */
const refuseMove = (found: Operation, advance: Advance): string | null => {
  const next = apply(found, advance)
  if (!isUnresolved(found))
    return sameOperation(found, next) ? null : `operation ${found.id} has ended as ${found.status} and never changes`
  if (isOver(found.status) && next.status !== found.status)
    return `operation ${found.id} was shown as ${found.status} and cannot become ${next.status}`
  const decided = next.phase === "settled" || next.phase === "refused"
  if (next.status === "cancelled" && found.phase !== "intended" && !decided)
    return `the call of operation ${found.id} was sent: only observation ends it`
  if (!isUnresolved(next) && !isOver(next.status))
    return `operation ${found.id} cannot be ${next.phase} and still ${next.status}`
  return null
}

const apply = (found: Operation, advance: Advance): Operation => ({
  ...found,
  phase: advance.phase,
  status: advance.status,
  job_id: advance.job_id === undefined ? found.job_id : advance.job_id,
  volume_id: advance.volume_id ?? found.volume_id,
  response: advance.response ?? found.response,
  error: advance.error ?? found.error,
  submitted_at: advance.submitted_at ?? found.submitted_at,
  expires_at: advance.expires_at ?? found.expires_at
})

const sameOperation = (a: Operation, b: Operation) =>
  JSON.stringify(fromOperation(a)) === JSON.stringify(fromOperation(b))

/** The place of a row in the list: opaque to callers, and bounded by its grammar before it reaches a query. */
const encodeCursor = (row: Readonly<Record<string, unknown>>) =>
  Buffer.from(`${String(row.created_at)} ${String(row.id)}`).toString("base64url")

const decodeCursor = (cursor: string): { readonly at: string; readonly id: string } | undefined => {
  if (cursor.length > 200) return undefined
  const match = /^(\S{1,40}) (\S{1,64})$/.exec(Buffer.from(cursor, "base64url").toString("utf8"))
  return match?.[1] === undefined || match[2] === undefined ? undefined : { at: match[1], id: match[2] }
}
