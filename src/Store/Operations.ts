import { Effect, Schema } from "effect"
import { without } from "../../reconciler/Call.ts"
import * as Intent from "../../reconciler/Intent.ts"
import type { Advance, Learned, NewCall } from "../../reconciler/Store.ts"
import { Action } from "../../schema/Action.ts"
import type { Declaration } from "../../schema/Declaration.ts"
import { GenerationConflict, PreconditionLost, StoreUnavailable } from "../../schema/Errors.ts"
import { OperationId, type Uid } from "../../schema/Ids.ts"
import { hasEnded, isCall, type Operation, type OperationType } from "../../schema/Operation.ts"
import type { Declarations } from "./Declarations.ts"
import * as Dialect from "./Dialect.ts"
import * as Predecessor from "./Predecessor.ts"
import { decodeOperations, fromOperation, now, type Session, writing } from "./Rows.ts"
import * as Transition from "./Transition.ts"

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

/** The journal: of actions the intent before and the outcome after, of version 1 calls what was asked and how it ended. */
export const make = (session: Session, declarations: Declarations) => {
  const { sql } = session
  const created = sql(Dialect.createdColumn(sql))

  const update = (operation: Operation) => {
    const row = Predecessor.written(sql, fromOperation(operation))
    return sql`UPDATE volume_operations SET ${sql.update(row, ["id"])} WHERE id = ${operation.id}`
  }

  const intend = <A extends Action>(action: A) =>
    writing(
      session,
      Effect.gen(function* () {
        const written_by = yield* current(action)
        yield* alone(action)
        const operation = yield* describeIntent(action, written_by)
        yield* insert(operation, "operation_intended", `${operation.type}: ${action.reason}`)
        return Intent.unsafeMake<A["_tag"]>(operation.id, action as Extract<Action, { _tag: A["_tag"] }>)
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
      WHERE unresolved_uid = ${action.uid} OR (unresolved_uid IS NOT NULL AND ${Dialect.same(sql, "volume_id", volume)} AND volume_id <> '')`
    if (open !== undefined) return yield* new PreconditionLost({ detail: `operation ${open.id} is not resolved yet` })
    yield* declarations.unclaimed(volume, action.uid)
  })

  const describeIntent = Effect.fnUntraced(function* (action: Action, written_by: string) {
    const type = types[action._tag]
    const earlier = yield* sql<{ count: number }>`SELECT COUNT(*) AS count FROM volume_operations
      WHERE uid = ${action.uid} AND type = ${type} AND generation = ${action.generation} AND cause <> 'api'`
    return {
      ...(yield* blank),
      id: OperationId.make(`op-${session.newId()}`),
      type,
      volume_id: volumeOf(action),
      vm_id: action._tag === "Attach" || action._tag === "Detach" ? action.vm_id : null,
      request: { ...encodeAction(action) },
      name: action.name,
      uid: action.uid,
      cause: action.cause,
      actor: action.cause === "declaration" ? written_by : "volumed",
      generation: action.generation,
      attempts: Number(earlier[0]?.count ?? 0) + 1,
      parent_id: yield* parentOf(action),
      destructive: action.destructive
    } satisfies Operation
  })

  /** Nobody's call asked for what repairs a drift. */
  const parentOf = Effect.fnUntraced(function* (action: Action) {
    if (action.cause === "drift") return null
    const [call] = yield* sql<{ id: string }>`SELECT id FROM volume_operations
      WHERE open_call_uid = ${action.uid} AND status IN ('pending', 'executing')
      ORDER BY ${created} DESC, id DESC LIMIT 1`
    return call === undefined ? null : OperationId.make(call.id)
  })

  /** Inside a transaction. */
  const insert = Effect.fnUntraced(function* (
    operation: Operation,
    kind: "operation_intended" | "call_accepted",
    message: string
  ) {
    const row = Predecessor.written(sql, { ...fromOperation(operation), term: session.reign() })
    yield* sql`INSERT INTO volume_operations ${sql.insert(row)}`
    yield* session.tell([{ ...aboutOf(operation), kind, message }])
  })

  /** Inside a transaction. `undone`: the calls that end as this one comes. */
  const accept = Effect.fnUntraced(function* (call: NewCall, undone: ReadonlyArray<Operation>) {
    const { id, type, volume_id, vm_id, request, name, uid, generation, actor, deadline_at } = call
    const before = undone.flatMap((other) => (other.uid === uid && other.wish !== null ? [other.wish] : []))
    const wish = before.reduceRight(without, call.wish)
    const asked = { id, type, volume_id, vm_id, request, name, uid, generation, actor, wish, deadline_at }
    const operation: Operation = { ...(yield* blank), ...asked, cause: "api" }
    yield* insert(operation, "call_accepted", volume_id === "" ? type : `${type} of volume ${volume_id}`)
  })

  /** Inside a transaction. A call that has ended meanwhile is refused, even if it ended the same way. */
  const end = Effect.fnUntraced(function* (id: OperationId, advance: Advance) {
    const found = yield* find(id)
    if (!isCall(found)) return yield* Effect.dieMessage(`${id} is no call: only observation ends an action`)
    if (hasEnded(found) && Transition.isSame(found, Transition.apply(found, advance)))
      return yield* new PreconditionLost({ detail: `call ${id} has ended as ${found.status}` })
    return yield* moveFrom(found, advance)
  })

  /** Inside a transaction. Those that came after it find what it found, not what it wished. */
  const disown = Effect.fnUntraced(function* (undone: Operation) {
    const rows = yield* sql`SELECT * FROM volume_operations
      WHERE open_call_uid = ${undone.uid} AND status IN ('pending', 'executing')`
    for (const call of yield* decodeOperations(session, rows)) {
      if (call.wish === null || undone.wish === null) continue
      const moved = { ...call, wish: without(call.wish, undone.wish) }
      if (Transition.isSame(call, moved)) continue
      yield* update(moved)
    }
  })

  /** Inside a transaction. Actions on this declaration whose outcome is not known. */
  const underWay = Effect.fnUntraced(function* (uid: Uid) {
    const rows = yield* sql`SELECT * FROM volume_operations WHERE unresolved_uid = ${uid}`
    return yield* decodeOperations(session, rows)
  })

  /** Inside a transaction. */
  const move = Effect.fnUntraced(function* (id: OperationId, advance: Advance) {
    return yield* moveFrom(yield* find(id), advance)
  })

  const moveFrom = Effect.fnUntraced(function* (found: Operation, advance: Advance) {
    const moved = Transition.apply(found, advance)
    const refusal = Transition.refusal(found, moved)
    if (refusal !== null) return yield* new PreconditionLost({ detail: refusal })
    if (Transition.isSame(found, moved)) return found
    const at = yield* now
    const completed_at = hasEnded(moved) ? (found.completed_at ?? at) : null
    const stored: Operation = { ...moved, updated_at: at, completed_at }
    yield* update(stored)
    if (Transition.ends(found, moved)) {
      const kind = isCall(stored) ? "call_ended" : "operation_ended"
      yield* session.tell([{ ...aboutOf(stored), kind, message: outcomeOf(stored) }])
    }
    return stored
  })

  const find = Effect.fnUntraced(function* (id: OperationId) {
    const rows = yield* sql`SELECT * FROM volume_operations WHERE id = ${id}`
    if (rows.length === 0) return yield* new PreconditionLost({ detail: `there is no operation ${id}` })
    const [found] = yield* decodeOperations(session, rows)
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

  return { intend, advance, settle, accept, end, move, disown, underWay }
}

export type Operations = ReturnType<typeof make>

/** What every row begins with. */
const blank = Effect.map(
  now,
  (at) =>
    ({
      status: "pending",
      response: null,
      error: null,
      created_at: at,
      updated_at: at,
      completed_at: null,
      phase: "intended",
      job_id: null,
      attempts: 1,
      parent_id: null,
      destructive: false,
      submitted_at: null,
      expires_at: null,
      wish: null,
      deadline_at: null
    }) satisfies Partial<Operation>
)

const volumeOf = (action: Action): string => (action._tag === "Create" ? "" : action.volume_id)

const aboutOf = ({ id, name, uid, actor }: Operation) => ({ operation_id: id, name, uid, actor })

const outcomeOf = ({ type, status, error }: Operation) =>
  error === null || status === "completed" ? `${type} ${status}` : `${type} ${status}: ${error}`
