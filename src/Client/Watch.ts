import { Duration, Effect, Option, Random, Ref, Schedule, Schema, Stream } from "effect"
import * as Api from "../../schema/Api.ts"
import * as Exchange from "./Exchange.ts"
import { type Failure, isRetryable, type ServerUnreachable } from "./Failure.ts"

export interface Filter {
  /** Begin after this event; with what happens from now on unless told. */
  readonly after?: number
  readonly name?: string
  readonly kind?: string
}

/** The server sends something every 15 s: silence for three times as long is a connection that is gone. */
const SILENCE_MS = 45_000
/** Vain tries in a row before a watch gives up; with pauses of 2.5 s on average, about five minutes. */
const TRIES_MAX = 120

/**
 * Events by ascending id, each once, over as many connections as it takes: each resumes after the last event that was
 * seen. Fails with `CURSOR_EXPIRED` when what comes next was pruned: then list again.
 */
export const events = (
  options: Exchange.Options,
  filter: Filter,
  list: (page: { readonly limit: number }) => Effect.Effect<Api.EventList, Failure>
): Stream.Stream<Api.Event, Failure> =>
  Stream.unwrap(
    Effect.gen(function* () {
      // Where to resume must be known even if the first connection ends before its first event.
      const from = filter.after ?? (yield* list({ limit: 1 })).event_id
      const last = yield* Ref.make(from)
      const session = Stream.suspend(() => connection(options, filter, last)).pipe(
        // A server that stops ends the answer well; a watch goes on all the same.
        Stream.concat(Stream.fail(Exchange.unreachable(options, "it ended the answer", true)))
      )
      return session.pipe(
        Stream.retry(again),
        Stream.filterMap((event) => event)
      )
    })
  )

/** Each event or heartbeat begins the count anew. Full jitter, so that many watchers do not come back in one moment. */
const again = Schedule.exponential(Duration.millis(200)).pipe(
  Schedule.union(Schedule.spaced(Exchange.PAUSE_MS_MAX)),
  Schedule.modifyDelayEffect((_, pause) => Effect.map(Random.next, (chance) => Duration.times(pause, chance))),
  Schedule.intersect(Schedule.recurs(TRIES_MAX)),
  Schedule.whileInput((failure: Failure) => isRetryable(failure))
)

/** One answer of the server; none for a heartbeat. */
const connection = (
  options: Exchange.Options,
  { name, kind }: Filter,
  last: Ref.Ref<number>
): Stream.Stream<Option.Option<Api.Event>, Failure> =>
  Stream.unwrapScoped(
    Effect.gen(function* () {
      const after = yield* Ref.get(last)
      const response = yield* Exchange.open(options, {
        method: "GET",
        path: "/api/v2/watch",
        query: { name, kind },
        headers: { accept: "text/event-stream", "last-event-id": String(after) }
      })
      return bytesOf(options, response).pipe(
        Stream.timeoutFail(
          () => Exchange.unreachable(options, `silent for ${SILENCE_MS / 1000} s`, true),
          Duration.millis(SILENCE_MS)
        ),
        Stream.decodeText(),
        Stream.splitLines,
        frames,
        Stream.tap(({ id }) => (id === null ? Effect.void : Ref.set(last, id))),
        // Being let in is no progress: a server that ends every answer at once would be asked without a pause.
        Stream.zipWithIndex,
        Stream.filter(([{ data }, index]) => index > 0 || data !== null),
        Stream.mapEffect(([{ data }]) => (data === null ? Effect.succeedNone : Effect.asSome(eventOf(options, data))))
      )
    })
  )

const bytesOf = (options: Exchange.Options, response: Response): Stream.Stream<Uint8Array, ServerUnreachable> =>
  response.body === null
    ? Stream.empty
    : Stream.fromReadableStream(
        () => response.body ?? new ReadableStream(),
        (cause) => Exchange.unreachable(options, `the connection broke: ${String(cause)}`, true, cause)
      )

interface Frame {
  /** After which event to resume. */
  readonly id: number | null
  /** Null for a heartbeat, which may bear an id too: events were passed over that the filter does not want. */
  readonly data: string | null
}

/**
 * Server-sent events (WHATWG HTML, 9.2.6): lines up to an empty one make an event, its `data` lines joined; other lines,
 * comments among them, say nothing here.
 */
const frames = <E>(lines: Stream.Stream<string, E>): Stream.Stream<Frame, E> =>
  lines.pipe(
    Stream.mapAccum(blank, (frame: Frame, line): readonly [Frame, ReadonlyArray<Frame>] => {
      if (line === "") return [blank, [frame]]
      const [, id, data] = /^(?:id: ?(\d{1,15})|data: ?(.*))$/u.exec(line) ?? []
      if (id !== undefined) return [{ ...frame, id: Number(id) }, []]
      if (data === undefined) return [frame, []]
      return [{ ...frame, data: frame.data === null ? data : `${frame.data}\n${data}` }, []]
    }),
    Stream.mapConcat((made) => made)
  )

const blank: Frame = { id: null, data: null }

const eventOf = (options: Exchange.Options, data: string): Effect.Effect<Api.Event, ServerUnreachable> =>
  Schema.decodeUnknown(Schema.parseJson(Api.Event))(data).pipe(
    Effect.mapError((cause) =>
      Exchange.unreachable(options, `an event of another shape: ${cause.message}`, false, cause)
    )
  )
