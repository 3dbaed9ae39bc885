import { Effect, Stream } from "effect"
import type { Event } from "../../schema/Api.ts"
import type { Failure } from "../Client/Failure.ts"
import type { Invocation } from "./Arguments.ts"
import { Daemon } from "./Daemon.ts"
import * as Handle from "./Handle.ts"
import * as Moment from "./Moment.ts"
import { clean, Output, show, showEach, table, type Paint } from "./Output.ts"

const DAY_MS = 86_400_000
/** What the server gives at most in one answer. */
const PAGE = 1000
/** A hundred thousand events: more tell nobody anything, and would fill our memory. */
const PAGES_MAX = 100
/** Before a watch begins anew that could not go on. */
const PAUSE_MS = 1_000

/** Which events are asked for. */
interface Subject {
  /** The one declared name; null where several are meant, or any. */
  readonly name: string | null
  readonly includes: (event: Event) => boolean
}

export const log = Effect.fn("History.log")(function* (invocation: Invocation) {
  const since = yield* Moment.since(invocation, DAY_MS)
  const { subject, unknown } = yield* subjectOf(invocation.positionals[0])
  const { items, more } = yield* eventsSince(since, subject)
  if (items.length === 0 && unknown !== null) return yield* unknown
  const output = yield* Output
  if (items.length === 0 && output.form === "table") {
    yield* output.note(`Nothing happened since ${since}.\n`)
    return "done" as const
  }
  yield* show({ items }, (paint) =>
    table(headers, items.map(row), (cell, column, index) => painted(items[index], cell, column, paint))
  )
  if (more) yield* output.note(`The first ${items.length} are shown: narrow it with --since or a HANDLE.\n`)
  return "done" as const
})

/** Until it is interrupted. The client goes on after a broken connection where the last event left off. */
export const watch = Effect.fn("History.watch")(function* (invocation: Invocation) {
  const { client } = yield* Daemon
  const { subject, unknown } = yield* subjectOf(invocation.positionals[0])
  if (unknown !== null) return yield* unknown
  const output = yield* Output
  if (output.form === "table") yield* output.note("Showing what happens from now on; Ctrl-C ends it.\n")
  const filter = subject.name === null ? {} : { name: subject.name }
  const following: Effect.Effect<void, Failure, Output> = Stream.suspend(() => client.watch(filter)).pipe(
    Stream.filter(subject.includes),
    Stream.runForEach((event) => showEach(event, (paint) => line(event, paint))),
    Effect.catchIf(isPruned, () =>
      output
        .note("! what happened meanwhile is no longer kept; going on from now\n")
        .pipe(Effect.zipRight(Effect.sleep(PAUSE_MS)), Effect.zipRight(following))
    )
  )
  yield* following
  return "done" as const
})

const isPruned = (failure: Failure): boolean => failure._tag === "ApiError" && failure.code === "CURSOR_EXPIRED"

const subjectOf = Effect.fn("History.subjectOf")(function* (handle: string | undefined) {
  const any = { name: null, includes: () => true } satisfies Subject
  if (handle === undefined) return { subject: any, unknown: null }
  if (Handle.isOperation(handle)) {
    const includes = (event: Event) => event.operation_id === handle
    return { subject: { ...any, includes } satisfies Subject, unknown: null }
  }
  const found = yield* Effect.either(Handle.resolve(handle))
  if (found._tag === "Left" && found.left._tag !== "HandleUnknown") return yield* found.left
  // What is declared no longer has a history all the same, under its name.
  const names = found._tag === "Left" ? [handle] : found.right.map((volume) => volume.name)
  const [only, ...others] = names
  const wanted = new Set<string | null>(names)
  const subject: Subject = {
    name: others.length === 0 ? (only ?? null) : null,
    includes: (event) => wanted.has(event.name)
  }
  return { subject, unknown: found._tag === "Left" ? found.left : null }
})

const eventsSince = Effect.fn("History.eventsSince")(function* (since: string, subject: Subject) {
  const { client } = yield* Daemon
  const items: Array<Event> = []
  let cursor: string | null = null
  for (let page = 0; page < PAGES_MAX; page++) {
    const answer: { readonly items: ReadonlyArray<Event>; readonly next_cursor: string | null } = yield* client.events({
      since,
      limit: PAGE,
      ...(subject.name === null ? {} : { name: subject.name }),
      ...(cursor === null ? {} : { cursor })
    })
    items.push(...answer.items.filter(subject.includes))
    cursor = answer.next_cursor
    if (cursor === null) break
  }
  return { items, more: cursor !== null }
})

const headers = ["AT", "KIND", "NAME", "BY", "MESSAGE"]

const row = (event: Event): ReadonlyArray<string> => [
  event.at,
  event.kind,
  event.name ?? "-",
  event.actor ?? "-",
  event.message
]

const painted = (event: Event | undefined, cell: string, column: number, paint: Paint): string => {
  if (column === 0) return paint.faint(cell)
  if (column === 4 && event !== undefined && isBad(event)) return paint.bad(cell)
  return cell
}

/** The end of an operation says what became of it. */
const isBad = ({ kind, message }: Event): boolean => kind.endsWith("_ended") && /\b(?:failed|refused)\b/u.test(message)

/** One event by itself: nobody knows yet how wide the next one will be. */
const line = (event: Event, paint: Paint): string => {
  const [at = "", kind = "", name = "", by = "", message = ""] = row(event).map(clean)
  const text = `${name}  ${message}${by === "-" ? "" : `  (${by})`}`
  return `${paint.faint(at)}  ${kind.padEnd(18)}  ${isBad(event) ? paint.bad(text) : text}\n`
}
