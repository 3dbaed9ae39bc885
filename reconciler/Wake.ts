import { Clock, Duration, Effect, Queue, Random, Ref } from "effect"
import type { Uid } from "../schema/Ids.ts"
import * as Metrics from "./Metrics.ts"

/** First back-off and the longest, ms; doubling with full jitter in between. */
const BACKOFF_FIRST_MS = 1_000
const BACKOFF_LONGEST_MS = 300_000

/** After news from our own calls, wait at least this long for more of them to be read together, ms. */
const GATHER_MS = 150

/** A timer cannot be set much further than this; waking for nothing is harmless, ms. */
const LONGEST_SLEEP_MS = 3_600_000

export interface Settings {
  /** Between full passes when nothing is going on, and when something is, ms. */
  readonly resync_idle_ms: number
  readonly resync_busy_ms: number
  /** Between readings of volumes in flight, ms. */
  readonly poll_ms: number
}

export interface Backoff {
  readonly retry_at: number
  readonly message: string
  readonly failures: number
  /** Stable observations in a row since the last failure; two end the back-off. */
  readonly stable: number
}

interface State {
  /** The clock when it was last asked what is due. */
  readonly seen_at: number
  readonly full_at: number
  readonly poll_at: number
  readonly last_pass_at: number
  readonly due: ReadonlySet<Uid>
  readonly flight: ReadonlySet<Uid>
  readonly backoff: ReadonlyMap<Uid, Backoff>
  /** When to wake for a back-off that ends (ms); taken out when it has woken, whatever else was looked at meanwhile. */
  readonly retry: ReadonlyMap<Uid, number>
}

const start: State = {
  seen_at: 0,
  full_at: 0,
  poll_at: 0,
  last_pass_at: 0,
  due: new Set(),
  flight: new Set(),
  backoff: new Map(),
  retry: new Map()
}

/**
 * What makes the next pass happen. Pokes carry no data and may be lost or doubled without harm: a full pass comes by
 * itself, and volumes in flight are polled.
 */
export interface Wake {
  /** A declaration was written: look at once, and forget that it backed off. */
  readonly poke: (uids: ReadonlyArray<Uid>) => Effect.Effect<void>
  /** Something outside may have changed (a link, the NBD file): look at these soon. */
  readonly nudge: (uids: ReadonlyArray<Uid>) => Effect.Effect<void>
  /** A full pass as soon as possible. */
  readonly pokeAll: Effect.Effect<void>
  /** Everything is looked at anew, and nothing is known to have failed: as at the start. */
  readonly forget: Effect.Effect<void>
  /** One of our own calls was answered; several answers are read together. */
  readonly answered: Effect.Effect<void>
  readonly failed: (uid: Uid, message: string) => Effect.Effect<void>
  /** The volume was observed as wanted. */
  readonly stable: (uid: Uid) => Effect.Effect<void>
  /** The removal of this declaration is finished: nothing is waited for any more. */
  readonly gone: (uid: Uid) => Effect.Effect<void>
  readonly backoff: Effect.Effect<ReadonlyMap<Uid, Backoff>>
  /** After a pass: who is in flight now, and whether a source was unread, which is worth an earlier look. */
  readonly passed: (pass: {
    readonly full: boolean
    readonly only: ReadonlySet<Uid> | null
    readonly flight: ReadonlySet<Uid>
    readonly unwell: boolean
    /** The earliest time to come at which something is due by itself (a pause or a grace that ends), ms; null: none. */
    readonly due_at: number | null
  }) => Effect.Effect<void>
  /** Waits until there is something to look at; null means everything. */
  readonly next: Effect.Effect<ReadonlySet<Uid> | null>
}

export const make = Effect.fn("Wake.make")(function* (settings: Settings) {
  const signal = yield* Queue.sliding<void>(1)
  const state = yield* Ref.make(start)
  const ring = Effect.asVoid(Queue.offer(signal, undefined))
  const told = ({ due, backoff }: State) => Metrics.queued(due.size, backoff.size)
  const change = (f: (s: State) => State) => Ref.updateAndGet(state, f).pipe(Effect.flatMap(told), Effect.andThen(ring))

  const next: Effect.Effect<ReadonlySet<Uid> | null> = Effect.gen(function* () {
    while (true) {
      const now = yield* Clock.currentTimeMillis
      // In one step, so that a poke which comes meanwhile is not forgotten with those that are taken.
      const [ready, current] = yield* Ref.modify(state, (s) => taken(s, now))
      yield* told(current)
      if (ready !== undefined) return ready
      const wait = Math.min(LONGEST_SLEEP_MS, Math.max(1, nextAt(current) - now))
      yield* Queue.take(signal).pipe(Effect.timeoutOption(Duration.millis(wait)))
    }
  })

  return {
    poke: (uids) =>
      change((s) => ({
        ...s,
        due: union(s.due, uids),
        backoff: without(s.backoff, uids),
        retry: without(s.retry, uids)
      })),
    nudge: (uids) => change((s) => ({ ...s, due: union(s.due, uids) })),
    pokeAll: change((s) => ({ ...s, full_at: 0 })),
    forget: change(() => start),
    answered: Effect.flatMap(Clock.currentTimeMillis, (now) =>
      change((s) => ({
        ...s,
        poll_at: Math.min(s.poll_at, Math.max(now + GATHER_MS, s.last_pass_at + settings.poll_ms))
      }))
    ),
    failed: Effect.fn(function* (uid, message) {
      const now = yield* Clock.currentTimeMillis
      const before = (yield* Ref.get(state)).backoff.get(uid)
      const failures = (before?.failures ?? 0) + 1
      const longest = Math.min(BACKOFF_LONGEST_MS, BACKOFF_FIRST_MS * 2 ** Math.min(failures, 20))
      const wait = yield* Random.nextIntBetween(Math.min(BACKOFF_FIRST_MS, longest) / 2, longest + 1)
      yield* change((s) => ({
        ...s,
        backoff: new Map(s.backoff).set(uid, { retry_at: now + wait, message, failures, stable: 0 }),
        retry: new Map(s.retry).set(uid, now + wait)
      }))
    }),
    stable: (uid) =>
      Ref.update(state, (s) => {
        const entry = s.backoff.get(uid)
        if (entry === undefined) return s
        if (entry.stable >= 1) return { ...s, backoff: without(s.backoff, [uid]) }
        return { ...s, backoff: new Map(s.backoff).set(uid, { ...entry, stable: entry.stable + 1 }) }
      }),
    gone: (uid) => change((s) => ({ ...s, backoff: without(s.backoff, [uid]), retry: without(s.retry, [uid]) })),
    backoff: Effect.map(Ref.get(state), (s) => s.backoff),
    passed: Effect.fn(function* ({ due_at, full, only, flight, unwell }) {
      const now = yield* Clock.currentTimeMillis
      const share = yield* Random.nextRange(0.9, 1.1)
      // Rings, for a pass that somebody asked for ends while the loop sleeps by an older reckoning.
      yield* change((s) => {
        const inFlight = only === null ? flight : new Set([...[...s.flight].filter((uid) => !only.has(uid)), ...flight])
        const period = inFlight.size > 0 || unwell ? settings.resync_busy_ms : settings.resync_idle_ms
        const full_at = Math.min(now + Math.round(period * share), due_at ?? Number.POSITIVE_INFINITY)
        return {
          ...s,
          flight: inFlight,
          last_pass_at: now,
          poll_at: now + settings.poll_ms,
          // A poke for everything that came during the pass (it sets 0) stands.
          full_at: full && s.full_at !== 0 ? full_at : Math.min(s.full_at, full_at)
        }
      })
    }),
    next
  } satisfies Wake as Wake
})

/** What may be looked at now: null for everything, undefined for nothing yet. Woken volumes take those in flight along. */
const readyAt = (s: State, now: number): ReadonlySet<Uid> | null | undefined => {
  if (now >= s.full_at) return null
  const retry = [...s.retry].filter(([, at]) => at <= now).map(([uid]) => uid)
  const poll = s.flight.size > 0 && now >= s.poll_at
  if (s.due.size === 0 && retry.length === 0 && !poll) return undefined
  return union(union(s.due, retry), poll ? [...s.flight] : [])
}

/** A clock that was set back: what is to come was reckoned by what it showed then, so that all is looked at now (T1). */
const reckoned = (s: State, now: number): State => {
  if (now >= s.seen_at) return { ...s, seen_at: now }
  const latest = now + BACKOFF_LONGEST_MS
  const sooner = (entry: Backoff): Backoff => ({ ...entry, retry_at: Math.min(entry.retry_at, latest) })
  return {
    ...s,
    seen_at: now,
    full_at: 0,
    poll_at: 0,
    last_pass_at: Math.min(s.last_pass_at, now),
    backoff: new Map([...s.backoff].map(([uid, entry]) => [uid, sooner(entry)])),
    retry: new Map([...s.retry].map(([uid, at]) => [uid, Math.min(at, latest)]))
  }
}

/** What is ready, and the state in which it is no longer waited for. */
const taken = (before: State, now: number): [readonly [ReadonlySet<Uid> | null | undefined, State], State] => {
  const s = reckoned(before, now)
  const ready = readyAt(s, now)
  if (ready === undefined) return [[ready, s], s]
  const retry = new Map([...s.retry].filter(([, at]) => at > now))
  const left = { ...s, due: new Set<Uid>(), retry, full_at: ready === null ? Number.POSITIVE_INFINITY : s.full_at }
  return [[ready, left], left]
}

const nextAt = (s: State): number =>
  Math.min(s.full_at, s.flight.size > 0 ? s.poll_at : Number.POSITIVE_INFINITY, ...s.retry.values())

const union = (set: ReadonlySet<Uid>, more: ReadonlyArray<Uid>): ReadonlySet<Uid> => new Set([...set, ...more])

const without = <V>(map: ReadonlyMap<Uid, V>, uids: ReadonlyArray<Uid>): ReadonlyMap<Uid, V> => {
  if (!uids.some((uid) => map.has(uid))) return map
  const next = new Map(map)
  for (const uid of uids) next.delete(uid)
  return next
}
