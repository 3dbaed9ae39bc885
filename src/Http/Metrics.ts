import { readdir } from "node:fs/promises"
import { Clock, Effect, Metric, Option } from "effect"
import { Gate } from "../../reconciler/Gate.ts"
import { Leadership, type Role } from "../../reconciler/Leadership.ts"
import * as Instruments from "../../reconciler/Metrics.ts"
import { Reconciler, type View } from "../../reconciler/Reconciler.ts"
import { type Statistics, Store } from "../../reconciler/Store.ts"
import type * as Api from "../../schema/Api.ts"
import type { Inventory } from "../../schema/Inventory.ts"
import { OperationStatus } from "../../schema/Operation.ts"
import type { EndpointName } from "../../schema/Routes.ts"
import { type Answer, ok, rfc3339, Text } from "./Answer.ts"
import * as Exposition from "./Exposition.ts"

/** Counts and times one answered request; `endpoint` is null where no route matched. */
export const observeRequest = (endpoint: EndpointName | null, status: number, ms: number): Effect.Effect<void> =>
  Instruments.requested(endpoint ?? "none", status, ms)

/** A database that hangs must not take the metrics with it that would tell of it. */
const STORE_LIMIT_MS = 1_000

/** Everything that is counted, and what the newest view says; nothing is observed, and one row is read, for it. */
export const metrics = (version: string) =>
  Effect.fnUntraced(function* () {
    const now = yield* Clock.currentTimeMillis
    const { view } = yield* Reconciler
    const families = [
      ...Exposition.fromRegistry(yield* Metric.snapshot, "volumed_"),
      Exposition.gauge("volumed_build_info", "1, with the version that runs.", [{ labels: { version }, value: 1 }]),
      ...ofRole(yield* Effect.flatMap(Leadership, ({ role }) => role)),
      ...ofView(yield* view),
      ...(yield* observations(yield* view, now)),
      ...(yield* stops),
      ...(yield* process_(now))
    ]
    return ok(new Text({ text: Exposition.render(families), content_type: Exposition.CONTENT_TYPE }))
  })

const ofRole = (role: Role): ReadonlyArray<Exposition.Family> => [
  Exposition.gauge("volumed_leader", "1: this daemon is the one that acts.", role._tag === "Leading" ? 1 : 0),
  Exposition.gauge(
    "volumed_leader_term",
    "The term in which this daemon leads.",
    role._tag === "Leading" ? [{ value: role.term }] : []
  )
]

/** What the newest view says: as many lines for ten thousand declarations as for one. */
export const ofView = ({ statuses, plan, inventory }: View): ReadonlyArray<Exposition.Family> => [
  Exposition.gauge("volumed_declared_volumes", "Declarations whose status is known.", statuses.size),
  Exposition.gauge(
    "volumed_declarations",
    "Declarations by condition and its status.",
    counted(conditionsOf(statuses.values()), ["condition", "status"])
  ),
  Exposition.gauge(
    "volumed_held_actions",
    "Actions that wait for approval.",
    (plan?.held.length ?? 0) + (plan?.withheld.length ?? 0)
  ),
  Exposition.gauge("volumed_exports", "Exports in the NBD configuration by what the newest GO handshake said.", [
    ...counted(exportStates(inventory), ["state"])
  ])
]

function* conditionsOf(statuses: Iterable<Api.Volume["status"]>) {
  for (const { conditions } of statuses) for (const { type, status } of conditions) yield [type, status]
}

const exportStates = (inventory: Inventory | null): ReadonlyArray<ReadonlyArray<string>> => {
  if (inventory?.nbd._tag !== "Known") return []
  const { sections, verifications } = inventory.nbd.value
  const outcomes = new Map(verifications.map(({ name, outcome }) => [name, outcome]))
  return sections.map(({ name }) => [outcomes.get(name) ?? "unverified"])
}

/** How often each combination of values occurs. */
const counted = (
  rows: Iterable<ReadonlyArray<string>>,
  keys: ReadonlyArray<string>
): ReadonlyArray<Exposition.Sample> => {
  const counts = new Map<string, number>()
  for (const row of rows) {
    const key = row.join("\n")
    counts.set(key, (counts.get(key) ?? 0) + 1)
  }
  return [...counts].toSorted().map(([key, value]) => {
    const values = key.split("\n")
    return { labels: Object.fromEntries(keys.map((label, index) => [label, values[index] ?? ""])), value }
  })
}

const observations = ({ inventory }: View, now: number) =>
  Effect.gen(function* () {
    const sources = [
      ["cloudstack", inventory?.cloud ?? null],
      ["guest", inventory?.guest ?? null],
      ["nbd", inventory?.nbd ?? null]
    ] as const
    const ages = yield* Effect.forEach(sources, ([source]) =>
      Effect.map(Instruments.lastObserved(source), (at) =>
        at === 0 ? [] : [{ labels: { source }, value: Math.max(0, now - at) / 1000 }]
      )
    )
    return [
      Exposition.gauge(
        "volumed_observation_age_seconds",
        "Time since the newest whole reading of a source began.",
        ages.flat()
      ),
      Exposition.gauge(
        "volumed_observation_complete",
        "1 where the newest reading of a source is there and whole.",
        sources.map(([source, read]) => ({
          labels: { source },
          value: read?._tag === "Known" && read.complete ? 1 : 0
        }))
      )
    ]
  })

/** Why nothing would be changed now. Left out where the database does not say. */
const stops = Effect.gen(function* () {
  const hold = yield* Effect.flatMap(Gate, ({ reason }) => reason)
  const maintenance = yield* Effect.flatMap(Store, (store) => store.maintenance).pipe(
    Effect.timeout(STORE_LIMIT_MS),
    Effect.map((found) => [{ value: found === null ? 0 : 1 }]),
    Effect.tapError((error) => Effect.logDebug("maintenance is not known", error.message)),
    Effect.orElseSucceed(() => [])
  )
  return [
    Exposition.gauge(
      "volumed_hold",
      "1 while the hold file, or another gate, stops every change.",
      hold === null ? 0 : 1
    ),
    Exposition.gauge("volumed_maintenance", "1 during a maintenance.", maintenance)
  ]
})

/** Under the names that Prometheus' own client libraries use. */
const process_ = (now: number) =>
  Effect.gen(function* () {
    const { user, system } = process.cpuUsage()
    const descriptors = yield* Effect.option(Effect.tryPromise(() => readdir("/proc/self/fd")))
    const lag = yield* eventLoopLag
    return [
      Exposition.counter("process_cpu_seconds_total", "User and system CPU time spent.", (user + system) / 1e6),
      Exposition.gauge("process_resident_memory_bytes", "Resident memory.", process.memoryUsage.rss()),
      Exposition.gauge("process_start_time_seconds", "Start of the process, Unix time.", now / 1000 - process.uptime()),
      // One of them is the directory that is being read.
      Exposition.gauge(
        "process_open_fds",
        "Open file descriptors.",
        Option.toArray(Option.map(descriptors, ({ length }) => ({ value: length - 1 })))
      ),
      Exposition.gauge("nodejs_eventloop_lag_seconds", "How long the event loop took to come round once.", lag),
      Exposition.gauge("nodejs_heap_size_used_bytes", "Used heap.", process.memoryUsage().heapUsed)
    ]
  })

const eventLoopLag = Effect.async<number>((resume) => {
  const began = process.hrtime.bigint()
  const immediate = setImmediate(() => resume(Effect.succeed(Number(process.hrtime.bigint() - began) / 1e9)))
  return Effect.sync(() => clearImmediate(immediate))
})

/** The types of the seeds' daemon, which its clients look up without asking whether they are there. */
const V1_TYPES = ["create", "attach", "detach", "delete"] as const

/** The old daemon's numbers, from the journal. */
export const v1Metrics = Effect.fnUntraced(function* () {
  const store = yield* Store
  const [{ counts, mean_ms }, mappings] = yield* Effect.all([store.statistics, store.deviceMappings])
  const by_status = sums(OperationStatus.literals, counts, ({ status }) => status)
  const ended = by_status["completed"] + by_status["failed"] + by_status["cancelled"]
  const body: Api.V1Metrics = {
    timestamp: rfc3339(yield* Clock.currentTimeMillis),
    total_operations: counts.reduce((sum, { count }) => sum + count, 0),
    pending_operations: by_status["pending"],
    active_mappings: mappings.length,
    operations_by_type: sums(V1_TYPES, counts, ({ type }) => type),
    operations_by_status: by_status,
    average_response_time_ms: mean_ms ?? 0,
    error_rate_percent: ended === 0 ? 0 : Math.round((10_000 * by_status["failed"]) / ended) / 100
  }
  return ok(body) satisfies Answer
})

/** One sum for each key that is there, and for each of `always`. */
const sums = <K extends string>(
  always: ReadonlyArray<K>,
  counts: Statistics["counts"],
  keyOf: (row: Statistics["counts"][number]) => string
): Record<K, number> & Record<string, number> => {
  const result = Object.fromEntries(always.map((key) => [key, 0])) as Record<K, number> & Record<string, number>
  for (const row of counts) Object.assign(result, { [keyOf(row)]: (result[keyOf(row)] ?? 0) + row.count })
  return result
}
