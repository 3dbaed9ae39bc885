import { Effect, Schema } from "effect"
import { type EventFilter, type EventRow, Store } from "../../reconciler/Store.ts"
import type * as Api from "../../schema/Api.ts"
import { Timestamp } from "../../schema/Ids.ts"
import * as Answer from "./Answer.ts"
import { RequestRefused } from "./ErrorAnswer.ts"
import { limit, refuse, type Request } from "./Request.ts"

/** The oldest and the newest event that is kept. */
export interface Range {
  readonly oldest: number
  readonly newest: number
}

/** The history, oldest first. */
export const list = Effect.fnUntraced(function* (request: Request) {
  const store = yield* Store
  const range = yield* store.eventRange
  const after = yield* afterOf(request.query)
  if (after !== null && isPruned(after, range)) return yield* expired(range)
  const filter: EventFilter = {
    after: after ?? 0,
    limit: yield* limit(request.query),
    ...(yield* time(request.query, "since")),
    ...(yield* time(request.query, "until")),
    ...text(request.query, "name"),
    ...text(request.query, "actor"),
    ...text(request.query, "kind")
  }
  const rows = yield* store.events(filter)
  // Asked again: what was pruned while the rows were read would be a gap that nobody is told of.
  if (after !== null && isPruned(after, yield* store.eventRange)) return yield* expired(range)
  const last = rows.at(-1)
  const more = last === undefined ? [] : yield* store.events({ ...filter, after: last.id, limit: 1 })
  const next_cursor = last === undefined || more.length === 0 ? null : String(last.id)
  return Answer.ok({ items: rows.map(answer), next_cursor, event_id: range.newest } satisfies Api.EventList)
})

export const answer = ({ id, at, kind, name, uid, actor, operation_id, message }: EventRow): Api.Event => ({
  id,
  at,
  kind,
  name,
  uid,
  actor,
  operation_id,
  message
})

/** True when events after this one are gone, or when it never was: another database's, or one from before a restore. */
export const isPruned = (after: number, { oldest, newest }: Range): boolean => after < oldest - 1 || after > newest

export const expired = ({ oldest, newest }: Range) =>
  new RequestRefused({
    code: "CURSOR_EXPIRED",
    error: "the events after this one are not kept any more",
    suggestion: "list the volumes again, and go on from the event_id of that answer",
    details: { oldest, newest }
  })

const afterOf = (query: URLSearchParams) =>
  Effect.gen(function* () {
    const after = yield* place(query, "after")
    const cursor = yield* place(query, "cursor")
    if (after !== null && cursor !== null) return yield* refuse("INVALID_REQUEST", "expected after or cursor, not both")
    return after ?? cursor
  })

/** The id of an event, or null where none is given. */
export const place = (query: URLSearchParams, key: string): Effect.Effect<number | null, RequestRefused> => {
  const text = query.get(key)
  return text === null ? Effect.succeed(null) : eventId(text, key)
}

export const eventId = (text: string, key: string): Effect.Effect<number, RequestRefused> =>
  /^[0-9]{1,15}$/u.test(text)
    ? Effect.succeed(Number(text))
    : Effect.fail(refuse("INVALID_REQUEST", `${key}: expected the id of an event, such as 17`))

const text = (query: URLSearchParams, key: "name" | "actor" | "kind") => {
  const value = query.get(key)
  return value === null ? {} : { [key]: value }
}

const time = (query: URLSearchParams, key: "since" | "until") => {
  const value = query.get(key)
  if (value === null) return Effect.succeed({})
  return Schema.is(Timestamp)(value) && !Number.isNaN(Date.parse(value))
    ? Effect.succeed({ [key]: value })
    : Effect.fail(refuse("INVALID_REQUEST", `${key}: expected a UTC time in RFC 3339, such as 2026-03-01T12:00:00Z`))
}
