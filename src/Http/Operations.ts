import { Effect, Option, Schema } from "effect"
import { type OperationFilter, Store } from "../../reconciler/Store.ts"
import { OperationId, Timestamp } from "../../schema/Ids.ts"
import { type Operation, OperationStatus, OperationType } from "../../schema/Operation.ts"
import * as Answer from "./Answer.ts"
import { duration, limit, refuse, type Request } from "./Request.ts"
import * as Wait from "./Wait.ts"

export const list = Effect.fn("Operations.list")(function* (request: Request) {
  const store = yield* Store
  const { items, next } = yield* store.operations(yield* filterOf(request))
  return Answer.ok(items.map(Answer.operation), next === null ? {} : { "next-cursor": next })
})

export const get = Effect.fn("Operations.get")(function* (request: Request) {
  const store = yield* Store
  const id = request.path["id"] ?? ""
  const notFound = refuse("NOT_FOUND", "there is no operation of this id")
  if (!Schema.is(OperationId)(id)) return yield* notFound
  const wait = request.query.get("wait")
  const timeout_ms = wait === null ? 0 : yield* duration(wait, "wait")
  const read = Effect.flatMap(
    store.operation(id),
    Option.match({ onNone: () => Effect.fail(notFound), onSome: Effect.succeed })
  )
  // Operations move between passes too, hence the short period.
  const operation = timeout_ms === 0 ? yield* read : yield* Wait.until(read, hasEnded, { timeout_ms, period_ms: 250 })
  return Answer.ok(Answer.operation(operation))
})

const hasEnded = ({ status }: Operation) => status === "completed" || status === "failed" || status === "cancelled"

const filterOf = (request: Request) =>
  Effect.gen(function* () {
    const { query } = request
    const filter: OperationFilter = {
      limit: yield* limit(query),
      ...(yield* choice(query, "status", OperationStatus)),
      ...(yield* choice(query, "type", OperationType)),
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

const choice = <K extends string, A extends string>(query: URLSearchParams, key: K, schema: Schema.Schema<A, A>) => {
  const value = query.get(key)
  if (value === null) return Effect.succeed({})
  return Schema.decodeUnknown(schema)(value).pipe(
    Effect.map((decoded) => ({ [key]: decoded }) as { readonly [P in K]?: A }),
    Effect.mapError((error) => refuse("INVALID_REQUEST", `${key}: ${error.message.split("\n")[0] ?? ""}`))
  )
}
