import { Cause, Clock, Effect, Exit, Metric, MetricBoundaries, Option } from "effect"
import type { Guard } from "../schema/Action.ts"
import type { Inventory, NbdReading } from "../schema/Inventory.ts"
import type { Operation } from "../schema/Operation.ts"
import type { Nbd } from "./Nbd.ts"

/**
 * What the daemon counts and times as it works. Units are Prometheus' base units; every label has few values, none of
 * them a name or an id. What follows from the newest view (declarations by condition, exports) is not counted here but
 * read when somebody asks.
 */

/** Series one instrument may have. A peer that invents status codes must not grow the registry (S22). */
const SERIES_MAX = 512

/** The instrument with its labels set: tagged once for each combination, for tagging anew costs four times a count. */
const labelled = <Type, In, Out>(metric: Metric.Metric<Type, In, Out>, keys: ReadonlyArray<string>) => {
  const tag = (values: ReadonlyArray<string>) =>
    keys.reduce<Metric.Metric<Type, In, Out>>(
      (tagged, key, index) => Metric.tagged(tagged, key, values[index] ?? ""),
      metric
    )
  const others = tag(keys.map(() => "other"))
  const known = new Map<string, Metric.Metric<Type, In, Out>>()
  return (...values: ReadonlyArray<string>): Metric.Metric<Type, In, Out> => {
    const key = values.join("\n")
    const found = known.get(key)
    if (found !== undefined) return found
    if (known.size >= SERIES_MAX) return others
    const tagged = tag(values)
    known.set(key, tagged)
    return tagged
  }
}

const counter = (name: string, keys: ReadonlyArray<string>, description: string) =>
  labelled(Metric.counter(name, { description, incremental: true }), keys)

const seconds = (name: string, keys: ReadonlyArray<string>, bounds: ReadonlyArray<number>, description: string) =>
  labelled(Metric.histogram(name, MetricBoundaries.fromIterable(bounds), description), keys)

const gauge = (name: string, keys: ReadonlyArray<string>, description: string) =>
  labelled(Metric.gauge(name, { description }), keys)

const passesTotal = counter("volumed_passes_total", ["kind", "outcome"], "Passes of the loop that ended.")
const passSeconds = seconds(
  "volumed_pass_duration_seconds",
  ["kind"],
  [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60],
  "How long a pass took, from its first reading to what it published."
)
const passBegan = gauge("volumed_pass_start_timestamp_seconds", [], "When the newest pass began, Unix time.")()

const actionsTotal = counter("volumed_actions_total", ["type", "outcome"], "Actions that ended, or became unknown.")
const operationSeconds = seconds(
  "volumed_operation_duration_seconds",
  ["type"],
  [0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900, 1800],
  "From an operation's intent to its end."
)
const queueLength = gauge("volumed_queue_length", [], "Volumes that are due to be looked at.")()
const backoffVolumes = gauge("volumed_backoff_volumes", [], "Volumes that back off after a failure.")()

const cloudstackTotal = counter(
  "volumed_cloudstack_requests_total",
  ["command", "code"],
  "Requests to CloudStack by the HTTP status of the answer, or why there is none: transport, timeout."
)
const cloudstackSeconds = seconds(
  "volumed_cloudstack_request_duration_seconds",
  ["command"],
  [0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120],
  "From a request to CloudStack to the end of its answer."
)
const undecodableTotal = counter(
  "volumed_cloudstack_undecodable_total",
  ["command"],
  "Answers of CloudStack with status 200 that could not be decoded."
)

const observedAt = gauge(
  "volumed_observation_timestamp_seconds",
  ["source"],
  "When the newest whole reading of a source began, Unix time."
)
const verificationsTotal = counter(
  "volumed_nbd_verifications_total",
  ["outcome"],
  "GO handshakes on exports by what the NBD server answered."
)
const loadsTotal = counter(
  "volumed_nbd_loads_total",
  ["outcome"],
  "Requests to the NBD server to serve a new configuration."
)

const guardsTotal = counter(
  "volumed_nbd_guards_total",
  ["guard", "outcome"],
  "Fences set and lifted, and connections of clients ended, by whether that was done."
)

const httpTotal = counter(
  "volumed_http_requests_total",
  ["route", "status"],
  "HTTP requests answered, by the operation id of the contract."
)
const httpSeconds = seconds(
  "volumed_http_request_duration_seconds",
  ["route"],
  [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 30, 300],
  "From the head of a request to the end of its answer."
)

/** Times and counts a pass, and lets the heart beat as it begins. */
export const passing =
  (kind: "full" | "partial") =>
  <A, E, R>(pass: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
    Effect.gen(function* () {
      const began = yield* Clock.currentTimeMillis
      yield* Metric.set(passBegan, began / 1000)
      const exit = yield* Effect.exit(pass)
      const took = (yield* Clock.currentTimeMillis) - began
      yield* Metric.increment(passesTotal(kind, Exit.isSuccess(exit) ? "completed" : "failed"))
      yield* Metric.update(passSeconds(kind), took / 1000)
      return yield* exit
    })

/** When the newest pass began, ms since the epoch; 0 before the first. */
export const heartbeat: Effect.Effect<number> = Effect.map(Metric.value(passBegan), ({ value }) => value * 1000)

/**
 * An action's row as it was written last: counted when it ended, or when what became of it is not known. `settled` and
 * `not_done` are told by observation, `refused` by CloudStack, `cancelled` was never sent; `unknown` is no end, so that
 * the same action is counted again when it ends.
 */
export const recorded = (operation: Operation): Effect.Effect<void> => {
  const outcome = outcomeOf(operation)
  if (outcome === null) return Effect.void
  const { type, created_at, completed_at } = operation
  const count = Metric.increment(actionsTotal(type, outcome))
  if (completed_at === null) return count
  const took = Date.parse(completed_at) - Date.parse(created_at)
  return Effect.andThen(count, Metric.update(operationSeconds(type), Math.max(0, took) / 1000))
}

const outcomeOf = ({ phase, status }: Operation) => {
  switch (phase) {
    case "settled":
      return status === "completed" ? "settled" : "not_done"
    case "refused":
      return status === "cancelled" ? "cancelled" : "refused"
    case "submitted":
    case "uncertain":
      return status === "cancelled" ? "cancelled" : "unknown"
    case "intended":
    case "accepted":
    case "needs_operator":
      return status === "cancelled" ? "cancelled" : null
  }
}

/** Volumes that are due, and those that back off. */
export const queued = (due: number, backoff: number): Effect.Effect<void> =>
  Effect.andThen(Metric.set(queueLength, due), Metric.set(backoffVolumes, backoff))

/** One exchange with CloudStack, timed and counted by the status of its answer, or by why there is none. */
export const calling =
  (command: string) =>
  <A extends { readonly status: number }, E extends { readonly kind: "transport" | "timeout" | "unconfigured" }>(
    exchange: Effect.Effect<A, E>
  ): Effect.Effect<A, E> =>
    Effect.gen(function* () {
      const began = yield* Clock.currentTimeMillis
      const called = (code: string) =>
        Effect.flatMap(Clock.currentTimeMillis, (now) =>
          Effect.andThen(
            Metric.increment(cloudstackTotal(command, code)),
            Metric.update(cloudstackSeconds(command), Math.max(0, now - began) / 1000)
          )
        )
      return yield* Effect.tapBoth(exchange, {
        onSuccess: ({ status }) => called(String(status)),
        onFailure: ({ kind }) => called(kind)
      })
    })

/** An answer with status 200 that says nothing that is known. */
export const undecodable = (command: string): Effect.Effect<void> => Metric.increment(undecodableTotal(command))

/** One pass's own observation. A reading of some volumes only does not make the whole listing any younger. */
export const observed = ({ cloud, guest, nbd }: Inventory): Effect.Effect<void> =>
  Effect.gen(function* () {
    if (cloud._tag === "Known" && cloud.value.scope === "all") yield* seen("cloudstack", cloud.started_at)
    if (guest._tag === "Known") yield* seen("guest", guest.started_at)
    if (nbd._tag === "Unread") return
    yield* seen("nbd", nbd.started_at)
    yield* verified(nbd.value)
  })

/** Exports that were asked for. */
export const verified = ({ verifications }: Pick<NbdReading, "verifications">): Effect.Effect<void> =>
  Effect.forEach(verifications, ({ outcome }) => Metric.increment(verificationsTotal(outcome)), { discard: true })

/** What was done about an export's clients, or failed to be. */
export const guarded = (guard: Guard["_tag"], outcome: "done" | "failed"): Effect.Effect<void> =>
  Metric.increment(guardsTotal(guard, outcome))

const seen = (source: Source, at: number) => Metric.set(observedAt(source), at / 1000)

export type Source = "cloudstack" | "guest" | "nbd"

/** When the newest whole reading of this source began, ms since the epoch; 0 where there is none yet. */
export const lastObserved = (source: Source): Effect.Effect<number> =>
  Effect.map(Metric.value(observedAt(source)), ({ value }) => value * 1000)

/** `refused`: by the gate or because the world was another than planned, so that nothing was loaded. */
export const loaded = (exit: Exit.Exit<void, LoadError>): Effect.Effect<void> =>
  Metric.increment(loadsTotal(Exit.match(exit, { onSuccess: () => "loaded", onFailure: (cause) => failureOf(cause) })))

type LoadError = Effect.Effect.Error<ReturnType<Nbd["Type"]["load"]>>

const failureOf = (cause: Cause.Cause<LoadError>) =>
  Option.match(Cause.failureOption(cause), {
    onNone: () => "failed",
    onSome: ({ _tag }) => (_tag === "NbdUnavailable" ? "failed" : "refused")
  })

/** `route`: an endpoint's name, or `none` where no route matched. */
export const requested = (route: string, status: number, ms: number): Effect.Effect<void> =>
  // The fiber bears no tags that would have to be merged in, which is what makes an update dear.
  Effect.sync(() => {
    httpTotal(route, String(status)).unsafeUpdate(1, [])
    httpSeconds(route).unsafeUpdate(Math.max(0, ms) / 1000, [])
  })
