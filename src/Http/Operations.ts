import { Clock, Effect, Option, Schema } from "effect"
import type { Change } from "../../reconciler/Declare.ts"
import { Reconciler } from "../../reconciler/Reconciler.ts"
import { type OperationFilter, Store, type Write } from "../../reconciler/Store.ts"
import * as Withdrawal from "../../reconciler/Withdrawal.ts"
import type { Declaration } from "../../schema/Declaration.ts"
import { OperationId, Timestamp } from "../../schema/Ids.ts"
import { hasEnded, isCall, type Operation, OperationStatus, OperationType } from "../../schema/Operation.ts"
import * as Answer from "./Answer.ts"
import { duration, limit, refuse, type Request } from "./Request.ts"
import * as Wait from "./Wait.ts"
import { type Drafted, Writes } from "./Writes.ts"

export const list = Effect.fnUntraced(function* (request: Request) {
  const store = yield* Store
  const { items, next } = yield* store.operations(yield* filterOf(request))
  return Answer.ok(items.map(Answer.operation), next === null ? {} : { "next-cursor": next })
})

export const get = Effect.fnUntraced(function* (request: Request) {
  const id = yield* idOf(request)
  const wait = request.query.get("wait")
  const timeout_ms = wait === null ? 0 : yield* duration(wait, "wait")
  const read = found(id)
  // Operations move between passes too, hence the short period.
  const operation = timeout_ms === 0 ? yield* read : yield* Wait.until(read, hasEnded, { timeout_ms, period_ms: 250 })
  return Answer.ok(Answer.operation(operation))
})

/**
 * End a version 1 call that nobody waits for any more. Its wish is taken back in the same transaction; an action that it
 * caused and that was sent goes on to its own end.
 */
export const cancel = Effect.fnUntraced(function* (request: Request) {
  const id = yield* idOf(request)
  const writes = yield* Writes
  yield* writes.commit(request, cancelling(id), {
    retry: true,
    answer: () => ({ status: 200, response: { kind: "operation", id } })
  })
  return Answer.ok(Answer.operation(yield* found(id)))
})

const cancelling = (id: OperationId) =>
  Effect.gen(function* () {
    const store = yield* Store
    const { inventory } = yield* Effect.flatMap(Reconciler, ({ view }) => view)
    const call = yield* found(id)
    if (!isCall(call)) return yield* notACall(call)
    if (hasEnded(call)) return yield* refuse("CONFLICT", `the operation has ended already: ${call.status}`)
    const current = (yield* store.declarations).find(({ uid }) => uid === call.uid) ?? null
    const [open, unresolved, now] = yield* Effect.all([store.calls, store.unresolved, Clock.currentTimeMillis])
    const { pending, write } = Withdrawal.make(call, current, open, unresolved, inventory, now)
    const advance = {
      phase: pending ? "uncertain" : "settled",
      status: "cancelled",
      error: "cancelled before it was done"
    } as const
    return { ...drafted(current, write), ends: [{ id, advance }] } satisfies Drafted
  })

const drafted = (current: Declaration | null, write: Write | null) => {
  const none: ReadonlyArray<never> = []
  if (current === null || write === null) return { changes: none, pruned: none, prune_kept: none }
  const { spec, managers, deletion, generation } = write
  const declaration = { ...current, spec, managers, deletion, generation }
  const change: Change = { outcome: "changed", declaration, write }
  return { changes: [change], pruned: none, prune_kept: none }
}

const notACall = ({ name, parent_id }: Operation) =>
  refuse(
    "CONFLICT",
    "an action that was begun ends by what is observed; it cannot be cancelled",
    parent_id === null
      ? `pause ${name}, or change what is declared: nothing further is begun for it then`
      : `cancel ${parent_id}, which caused it: nothing further is begun for it then`
  )

const notFound = refuse("NOT_FOUND", "there is no operation of this id")

/** What cannot be an id is none. */
const idOf = (request: Request) => {
  const id = request.path["id"] ?? ""
  return Schema.is(OperationId)(id) ? Effect.succeed(id) : notFound
}

const found = (id: OperationId) =>
  Effect.flatMap(Store, (store) =>
    Effect.flatMap(
      store.operation(id),
      Option.match({ onNone: () => Effect.fail(notFound), onSome: (operation) => Effect.succeed(operation) })
    )
  )

const filterOf = (request: Request) =>
  Effect.gen(function* () {
    const { query } = request
    const filter: OperationFilter = {
      limit: yield* limit(query),
      ...(yield* choice(query, "status", OperationStatus)),
      ...(yield* choice(query, "type", OperationType)),
      ...(yield* choice(query, "parent_id", OperationId)),
      ...(yield* choice(query, "since", Timestamp)),
      ...text(query, "cursor"),
      ...text(query, "volume_id"),
      ...text(query, "vm_id"),
      ...text(query, "name")
    }
    return filter
  })

const text = <K extends string>(query: URLSearchParams, key: K): { readonly [P in K]?: string } => {
  const value = query.get(key)
  return value === null ? {} : ({ [key]: value } as { readonly [P in K]?: string })
}

const choice = <K extends string, A, I>(query: URLSearchParams, key: K, schema: Schema.Schema<A, I>) => {
  const value = query.get(key)
  if (value === null) return Effect.succeed({})
  return Schema.decodeUnknown(schema)(value).pipe(
    Effect.map((decoded) => ({ [key]: decoded }) as { readonly [P in K]?: A }),
    Effect.mapError((error) => refuse("INVALID_REQUEST", `${key}: ${error.message.split("\n")[0] ?? ""}`))
  )
}
