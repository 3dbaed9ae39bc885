import { Chunk, Context, Deferred, Effect, Layer, Option, PubSub, Queue, Ref, Schedule, Stream } from "effect"
import { Reconciler } from "../../reconciler/Reconciler.ts"
import { type EventRow, Store } from "../../reconciler/Store.ts"
import type { StoreUnavailable } from "../../schema/Errors.ts"
import { Streamed } from "./Answer.ts"
import * as Events from "./Events.ts"
import { refuse, type Request } from "./Request.ts"
import { Closing } from "./Wait.ts"

/** Streams at once. A watcher costs memory for as long as it stays. */
const WATCHERS_MAX = 2_000
/** Events of one reading, and readings that wait for slow watchers. A watcher further behind reads for itself. */
const PAGE = 1_000
/** Events that such a watcher holds at once. */
const OWN_PAGE = 100
const PAGES_WAITING = 32
/** What nobody told of is found after this. */
const LOOK_EVERY_MS = 500
/** A sign of life, for a proxy that might take silence for a dead connection. */
const HEARTBEAT_MS = 15_000
/** After the database did not answer. */
const AGAIN_MS = 1_000

/** One reading of the history: every event after `previous` up to `last`. `beat`: a sign of life. */
interface Page {
  readonly previous: number
  readonly last: number
  readonly events: ReadonlyArray<Told>
  readonly beat: boolean
}

/** An event beside its words on the wire, which all watchers share. */
interface Told {
  readonly row: EventRow
  readonly bytes: Uint8Array
}

/**
 * Reads the history once for all watchers. It relies on events becoming visible in the order of their ids, whoever leads:
 * every write holds the one row of `lease` from before it is given an id until its commit (SQLite has one writer anyway).
 * So a standby's watchers miss nothing, and streams go on over a change of leader.
 */
export class Hub extends Context.Tag("volumed/Http/Hub")<
  Hub,
  {
    /** Something was written: look now. */
    readonly ring: Effect.Effect<void>
    readonly watchers: Effect.Effect<number>
    /** The history after an event, without a gap, as server-sent events; it never ends by itself. */
    readonly after: (id: number, wanted: (row: EventRow) => boolean) => Stream.Stream<Uint8Array>
  }
>() {}

const make = Effect.gen(function* () {
  const store = yield* Store
  const { changes } = yield* Reconciler
  const pages = yield* PubSub.sliding<Page>(PAGES_WAITING)
  const bell = yield* Queue.sliding<void>(1)
  const watchers = yield* Ref.make(0)
  /** Up to where was read; null while nobody watches, for what comes meanwhile nobody waits for. */
  const position = yield* Ref.make<number | null>(null)
  const ring = Effect.asVoid(Queue.offer(bell, undefined))

  const read = (after: number, limit: number) => Effect.map(store.events({ after, limit }), pageAfter(after))

  const look = Effect.gen(function* () {
    if ((yield* Ref.get(watchers)) === 0) return yield* Ref.set(position, null)
    const after = (yield* Ref.get(position)) ?? (yield* store.eventRange).newest
    const first = (yield* Ref.get(position)) === null
    const page = yield* read(after, PAGE)
    yield* Ref.set(position, page.last)
    // The first one says where this begins, also to those who have read up to an earlier place by themselves.
    if (first || page.last > after) yield* PubSub.publish(pages, page)
    if (page.events.length === PAGE) yield* ring
  }).pipe(Effect.catchTag("StoreUnavailable", () => Effect.sleep(AGAIN_MS)))

  /** One timer for all watchers: what each is told besides decides nothing. */
  const beat = Effect.flatMap(Ref.get(position), (id) =>
    id === null ? Effect.void : PubSub.publish(pages, { previous: id, last: id, events: [], beat: true })
  )

  yield* changes.pipe(
    Stream.runForEach(() => ring),
    Effect.forkScoped
  )
  yield* beat.pipe(Effect.delay(HEARTBEAT_MS), Effect.forever, Effect.forkScoped)
  yield* Queue.take(bell).pipe(
    Effect.timeoutOption(LOOK_EVERY_MS),
    Effect.andThen(look),
    Effect.catchAllCause((cause) => Effect.andThen(Effect.logError("looking for events broke", cause), pause)),
    Effect.forever,
    Effect.forkScoped
  )

  const after = (id: number, wanted: (row: EventRow) => boolean) =>
    Stream.unwrapScoped(
      Effect.gen(function* () {
        yield* Effect.acquireRelease(
          Ref.update(watchers, (count) => count + 1),
          () => Ref.update(watchers, (count) => count - 1)
        )
        const live = yield* PubSub.subscribe(pages)
        yield* ring
        return following(id, wanted, Queue.take(live), (from) => read(from, OWN_PAGE), store.eventRange)
      })
    )

  return { ring, watchers: Ref.get(watchers), after }
})

export const layer: Layer.Layer<Hub, never, Store | Reconciler> = Layer.scoped(Hub, make)

const pause = Effect.sleep(AGAIN_MS)

const pageAfter =
  (previous: number) =>
  (rows: ReadonlyArray<EventRow>): Page => ({
    previous,
    last: rows.at(-1)?.id ?? previous,
    events: rows.map((row) => ({ row, bytes: told(row) })),
    beat: false
  })

interface Place {
  readonly id: number
  /** The history may hold more that was not read yet: it is read from the store before what is live is listened to. */
  readonly behind: boolean
}

/**
 * What a watcher is sent. It reads from the store until it has caught up, then takes the pages that all watchers share;
 * one that was too slow for these finds that the next page begins beyond its place, and reads again. A place is left only
 * when what was there has been taken by the connection, so that a slow client costs no more than one page.
 */
const following = (
  id: number,
  wanted: (row: EventRow) => boolean,
  live: Effect.Effect<Page>,
  read: (after: number) => Effect.Effect<Page, StoreUnavailable>,
  range: Effect.Effect<Events.Range, StoreUnavailable>
): Stream.Stream<Uint8Array> => {
  const catchUp = Effect.fnUntraced(function* (place: Place) {
    // Asked after the reading: what is kept by then was there for it.
    const page = yield* read(place.id)
    const kept = yield* range
    if (Events.isPruned(place.id, kept)) return [Chunk.of(text(": events are missing, list again\n\n")), null] as const
    const behind = page.last > place.id && page.last < kept.newest
    return [chosen(page, place.id, wanted), { id: page.last, behind }] as const
  })
  const listen = Effect.map(live, (page) => (place: Place): readonly [Chunk.Chunk<Uint8Array>, Place] => {
    if (page.previous > place.id) return [Chunk.empty(), { id: place.id, behind: true }]
    const next = { id: Math.max(place.id, page.last), behind: false }
    // The id goes along, so that a client which is told little does not ask for a long history when it comes back.
    return [page.beat ? Chunk.of(text(`: still here\nid: ${next.id}\n\n`)) : chosen(page, place.id, wanted), next]
  })
  const step = (place: Place) =>
    (place.behind
      ? Effect.retry(catchUp(place), Schedule.spaced(AGAIN_MS))
      : Effect.map(listen, (tell) => tell(place))
    ).pipe(
      Effect.map(([sent, next]) => [sent, Option.fromNullable(next)] as const),
      Effect.orDie
    )
  const first = Stream.make(text(`: watching\nid: ${id}\n\n`))
  return Stream.concat(first, Stream.paginateChunkEffect({ id, behind: true }, step))
}

const chosen = (page: Page, after: number, wanted: (row: EventRow) => boolean): Chunk.Chunk<Uint8Array> =>
  Chunk.fromIterable(page.events.flatMap(({ row, bytes }) => (row.id > after && wanted(row) ? [bytes] : [])))

const encoder = new TextEncoder()
const text = (words: string) => encoder.encode(words)

/** JSON has no line breaks, and a kind is one of our own words. */
const told = (row: EventRow) =>
  text(`id: ${row.id}\nevent: ${row.kind}\ndata: ${JSON.stringify(Events.answer(row))}\n\n`)

/** Events as they come. Nothing is lost between `?after=` or Last-Event-ID and now; without both it starts now. */
export const watch = Effect.fnUntraced(function* (request: Request) {
  const hub = yield* Hub
  const closing = yield* Closing
  const store = yield* Store
  const range = yield* store.eventRange
  const asked = yield* placeOf(request)
  if (asked !== null && Events.isPruned(asked, range)) return yield* Events.expired(range)
  if ((yield* hub.watchers) >= WATCHERS_MAX) return yield* refuse("OVERLOADED", "too many watch already")
  const name = request.query.get("name")
  const kind = request.query.get("kind")
  const wanted = (row: EventRow) => (name === null || row.name === name) && (kind === null || row.kind === kind)
  const stream = hub
    .after(asked ?? range.newest, wanted)
    .pipe(Stream.interruptWhen(Deferred.await(closing)), Stream.concat(Stream.make(text(": the server stops\n\n"))))
  // Nothing follows a stream on its connection, which would otherwise stay open after the last word.
  return {
    status: 200,
    body: new Streamed({ stream, content_type: "text/event-stream" }),
    headers: { connection: "close" }
  }
})

/** A client that connects again repeats the query of its first time, so that the header is the newer word. */
const placeOf = (request: Request) => {
  const header = request.headers["last-event-id"]
  const last = typeof header === "string" && header !== "" ? header : null
  return last === null ? Events.place(request.query, "after") : Events.eventId(last, "Last-Event-ID")
}
