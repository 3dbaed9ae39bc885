import type * as SqlClient from "@effect/sql/SqlClient"
import type { SqlError } from "@effect/sql/SqlError"
import { Cause, Clock, Effect, Either, Option, ParseResult, Schema } from "effect"
import { Condition } from "../../schema/Condition.ts"
import { Binding, Declaration, Deletion, Spec } from "../../schema/Declaration.ts"
import { StoreUnavailable } from "../../schema/Errors.ts"
import { CallWish, hasEnded, isCall, isUnresolved, Operation } from "../../schema/Operation.ts"
import { Uid } from "../../schema/Ids.ts"
import * as Failpoint from "../../reconciler/Failpoint.ts"
import type { NewEvent } from "../../reconciler/Store.ts"
import * as Predecessor from "./Predecessor.ts"
import { type Fence, transact } from "./Transact.ts"

export interface Undecodable {
  readonly table: string
  readonly id: string
  readonly problem: string
}

/** What the parts of the store share. */
export interface Session {
  readonly sql: SqlClient.SqlClient
  /** Rows that were skipped, by table and id; a row that decodes again leaves. */
  readonly undecodable: Map<string, Undecodable>
  /** A UUID. */
  readonly newId: () => string
  /** Adds to the history, inside the transaction of what it tells: nobody hears of what did not happen. */
  readonly tell: (events: ReadonlyArray<NewEvent>) => Effect.Effect<void, SqlError>
  /** Keeps writes, and the loading of caches, from overlapping: a cache filled by a read from before a commit would be stale. */
  readonly alone: <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>
  /** Grows with every write that may have changed something: what was read under another number may be stale. */
  readonly epoch: { value: number }
  /**
   * The term in which this process is the only one that writes; null while it is not. What was kept in memory holds in
   * the term it was read in alone.
   */
  readonly reign: () => number | null
  /** One for each transaction. */
  readonly fence: () => Fence
}

/** One value kept in memory, for as long as this process is the only one that writes. */
export interface Kept<A> {
  /** Null when it must be read. */
  readonly get: () => A | null
  /** Reads it, and keeps it, unless it is kept. Inside `alone`. */
  readonly load: Effect.Effect<A, StoreUnavailable>
  /** As `load`, in its turn. */
  readonly value: Effect.Effect<A, StoreUnavailable>
  /** Follows a commit of our own; nothing where it is not kept. */
  readonly follow: (next: (value: A) => A) => void
  readonly forget: () => void
}

export const keeping = <A>(session: Session, read: Effect.Effect<A, StoreUnavailable>): Kept<A> => {
  let held: { readonly reign: number; readonly value: A } | null = null
  const get = () => (held !== null && held.reign === session.reign() ? held.value : null)
  const load = Effect.suspend(() => {
    const known = get()
    if (known !== null) return Effect.succeed(known)
    const reign = session.reign()
    return Effect.tap(read, (value) =>
      Effect.sync(() => {
        held = reign === null ? null : { reign, value }
      })
    )
  })
  return {
    get,
    load,
    value: Effect.suspend(() => {
      const known = get()
      return known === null ? session.alone(load) : Effect.succeed(known)
    }),
    follow: (next) => {
      if (held !== null) held = { ...held, value: next(held.value) }
    },
    forget: () => {
      held = null
    }
  }
}

/**
 * One transaction, then `committed`, both or neither of them whatever interrupts the caller: a cache never misses a
 * commit. `lost` runs when it is not known what was written.
 */
export const writing = <A, E>(
  session: Session,
  body: Effect.Effect<A, E | SqlError>,
  committed: (result: A) => void,
  lost: () => void
): Effect.Effect<A, Exclude<E, SqlError> | StoreUnavailable> =>
  Effect.suspend(() => transact(session.sql, session.fence(), Effect.tap(body, Failpoint.pass("commit.wanted")))).pipe(
    Effect.tap(Failpoint.pass("commit.done")),
    Effect.ensuring(Effect.sync(() => (session.epoch.value += 1))),
    Effect.tap((result) => Effect.sync(() => committed(result))),
    Effect.tapErrorCause((cause) => Effect.sync(() => (isRefusal(cause) ? undefined : lost()))),
    session.alone,
    Effect.uninterruptible
  )

/** The body's own refusal: nothing was written, and nothing is in doubt. */
const isRefusal = (cause: Cause.Cause<unknown>) =>
  Option.match(Cause.failureOption(cause), {
    onNone: () => false,
    onSome: (error) => !(error instanceof StoreUnavailable)
  })

export const now: Effect.Effect<string> = Effect.map(Clock.currentTimeMillis, (ms) => new Date(ms).toISOString())

/** A row that does not decode concerns itself alone (B10, S19): it is left out, logged once, and shown by `describe`. */
export const decodeRows = Effect.fnUntraced(function* <A, I>(
  session: Session,
  table: string,
  schema: Schema.Schema<A, I>,
  rows: ReadonlyArray<Readonly<Record<string, unknown>>>
) {
  const decoded: Array<A> = []
  const decode = Schema.decodeUnknownEither(schema)
  for (const row of rows) {
    const id = String(row.id ?? row.uid ?? row.idempotency_key)
    const result = decode(row)
    if (Either.isRight(result)) {
      decoded.push(result.right)
      session.undecodable.delete(`${table} ${id}`)
    } else yield* isolate(session, { table, id, problem: describeProblem(result.left) })
  }
  return decoded
})

const describeProblem = (error: ParseResult.ParseError) => {
  const first = ParseResult.ArrayFormatter.formatErrorSync(error)[0]
  return first === undefined ? "does not decode" : `${first.path.join(".")}: ${first.message}`.slice(0, 500)
}

/** Rows that are shown as undecodable; of more the log is spared, too. */
const UNDECODABLE_MAX = 1000

const isolate = (session: Session, row: Undecodable) => {
  const key = `${row.table} ${row.id}`
  if (session.undecodable.has(key) || session.undecodable.size >= UNDECODABLE_MAX) return Effect.void
  session.undecodable.set(key, row)
  return Effect.logError("a stored row cannot be read and is left out").pipe(Effect.annotateLogs({ ...row }))
}

const { set: _, ...declarationFields } = Declaration.fields

export const DeclarationRow = Schema.Struct({
  ...declarationFields,
  set_name: Declaration.fields.set,
  spec: Schema.parseJson(Spec),
  managers: Schema.parseJson(Declaration.fields.managers),
  binding: Schema.parseJson(Binding),
  deletion: Schema.NullOr(Schema.parseJson(Deletion))
})

export const toDeclaration = ({ set_name, ...row }: typeof DeclarationRow.Type): Declaration => ({
  ...row,
  set: set_name
})

/** All columns but `written_by`. Throws on a value that could not be read back, before it is stored. */
export const fromDeclaration = ({ set, ...declaration }: Declaration) => ({
  ...Schema.encodeSync(DeclarationRow)({ ...declaration, set_name: set }),
  living_name: declaration.removed_at === null ? declaration.name : null,
  bound_volume_id: declaration.binding.volume_id
})

export const Flag = Schema.transform(Schema.Literal(0, 1), Schema.Boolean, {
  strict: true,
  decode: (n) => n === 1,
  encode: (flag) => (flag ? 1 : 0)
})

export const OperationRow = Schema.Struct({
  ...Operation.fields,
  request: Schema.parseJson(Operation.fields.request),
  response: Schema.NullOr(Schema.parseJson(Schema.Record({ key: Schema.String, value: Schema.Unknown }))),
  destructive: Flag,
  wish: Schema.NullOr(Schema.parseJson(CallWish)),
  deadline_at: Schema.NullOr(Schema.Int)
})

export const decodeOperations = (session: Session, rows: ReadonlyArray<Readonly<Record<string, unknown>>>) =>
  decodeRows(session, "volume_operations", OperationRow, rows.map(Predecessor.readOperation))

export const fromOperation = (operation: Operation) => ({
  ...Schema.encodeSync(OperationRow)(operation),
  unresolved_uid: isUnresolved(operation) ? operation.uid : null,
  open_call_uid: isCall(operation) && isOpen(operation) ? operation.uid : null
})

/** A failed or cancelled call stays open until its wish is wholly taken back. */
const isOpen = (call: Operation) => !hasEnded(call) || (call.status !== "completed" && call.phase === "uncertain")

export const ConditionsRow = Schema.Struct({ uid: Uid, conditions: Schema.parseJson(Schema.Array(Condition)) })

/** Times are compared as text, so they must all carry milliseconds. */
export const normalised = (time: string): string => {
  const ms = Date.parse(time)
  return Number.isNaN(ms) ? time : new Date(ms).toISOString()
}
