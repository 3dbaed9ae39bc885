import { Cause, Clock, Context, Effect, Layer, Ref } from "effect"
import { type CloudEvent, CloudStackRead } from "../../reconciler/CloudStack.ts"
import type { Planned } from "../../reconciler/Reconciler.ts"
import { Store } from "../../reconciler/Store.ts"
import type { PlanItem } from "../../schema/Action.ts"
import type { Drift } from "../../schema/Api.ts"
import type { Uid, VolumeId } from "../../schema/Ids.ts"
import type { Inventory } from "../../schema/Inventory.ts"
import { isCall, type Operation, type OperationType } from "../../schema/Operation.ts"
import * as Answer from "./Answer.ts"

/** How long a reading of the events serves later requests. */
const AGE_MS_MAX = 5_000
/** How long an account that may not read events is believed to stay so. */
const REFUSED_MS = 600_000
/** Drift that is older has no author any more. */
const HISTORY_MS_MAX = 30 * 86_400_000
/** Who did it is not worth a longer wait. */
const READ_MS_MAX = 3_000
/** How far CloudStack's clock may be from ours, for events that our own operations made. */
const SKEW_MS = 5_000
/** Our own operations that are looked at; the store gives no more at once. */
const OPERATIONS_MAX = 1_000

/** Who caused a drift, as far as CloudStack's events tell. A courtesy: it decides nothing and never fails an answer. */
export class Provenance extends Context.Tag("volumed/Http/Provenance")<
  Provenance,
  {
    /** The drift with `by` filled in: `alice (account acme), VOLUME.DETACH at 2026-03-01T12:00:00.000Z`. One read at most. */
    readonly explain: (drift: Drift, planned: Planned) => Effect.Effect<Drift>
  }
>() {}

/** A drifted volume, and what kinds of event would explain it. */
interface Question {
  readonly uid: Uid
  readonly volume_id: VolumeId
  readonly types: ReadonlyArray<string>
  /** ms since the epoch at which the declaration was written: what happened before is no drift of it. */
  readonly since: number
}

interface Reading {
  readonly until: number
  readonly since: number
  /** The only volume that was asked for; null: all. */
  readonly volume_id: VolumeId | null
  readonly events: ReadonlyArray<CloudEvent>
}

export const layer: Layer.Layer<Provenance, never, CloudStackRead | Store> = Layer.effect(
  Provenance,
  Effect.gen(function* () {
    const store = yield* Store
    const read = yield* makeReader
    const explain = Effect.fnUntraced(function* (drift: Drift, planned: Planned) {
      const questions = questionsOf(drift, planned)
      if (questions.length === 0) return drift
      const now = yield* Clock.currentTimeMillis
      const since = Math.max(now - HISTORY_MS_MAX, Math.min(...questions.map((question) => question.since)))
      const journal = yield* store.operations({ since: Answer.rfc3339(since), limit: OPERATIONS_MAX })
      // What we did ourselves before the oldest row of a cut journal is not known any more.
      const known = journal.next === null ? since : Date.parse(journal.items.at(-1)?.created_at ?? "")
      const events = yield* read(
        wholeSeconds(since),
        questions.map(({ volume_id }) => volume_id)
      )
      const by = new Map(questions.map((one) => [one.uid, answerTo(one, known, events, journal.items)]))
      return { ...drift, items: drift.items.map((item) => ({ ...item, by: by.get(item.uid) ?? null })) }
    })
    return {
      explain: (drift, planned) =>
        explain(drift, planned).pipe(
          Effect.catchAll((error) => Effect.as(Effect.logDebug("events are not told", Cause.fail(error)), drift))
        )
    }
  })
)

/** Readings are shared by requests that come together or soon after; a failure is one too. */
const makeReader = Effect.gen(function* () {
  const cloud = yield* CloudStackRead
  const cache = yield* Ref.make<Reading | null>(null)
  const one = yield* Effect.makeSemaphore(1)

  const readAnew = (since: number, volumes: ReadonlyArray<VolumeId>, now: number): Effect.Effect<Reading> => {
    const volume_id = volumes.length === 1 ? (volumes[0] ?? null) : null
    const nothing = (ms: number): Reading => ({ until: now + ms, since: 0, volume_id: null, events: [] })
    return cloud.events({ since, ...(volume_id === null ? {} : { volume_ids: [volume_id] }) }).pipe(
      Effect.timeout(READ_MS_MAX),
      Effect.map((events): Reading => ({ until: now + AGE_MS_MAX, since, volume_id, events })),
      Effect.tapError((error) => Effect.logDebug("CloudStack's events were not read", Cause.fail(error))),
      Effect.catchTag("CloudStackRefused", () => Effect.succeed(nothing(REFUSED_MS))),
      Effect.orElseSucceed(() => nothing(AGE_MS_MAX))
    )
  }

  return (since: number, volumes: ReadonlyArray<VolumeId>) =>
    Effect.gen(function* () {
      const now = yield* Clock.currentTimeMillis
      const cached = yield* Ref.get(cache)
      if (cached !== null && covers(cached, since, volumes, now)) return cached.events
      const fresh = yield* readAnew(since, volumes, now)
      yield* Ref.set(cache, fresh)
      return fresh.events
    }).pipe(one.withPermits(1))
})

const covers = (reading: Reading, since: number, volumes: ReadonlyArray<VolumeId>, now: number): boolean =>
  now < reading.until &&
  since >= reading.since &&
  (reading.volume_id === null || volumes.every((volume) => volume === reading.volume_id))

const questionsOf = (drift: Drift, { declarations, inventory, plan }: Planned): ReadonlyArray<Question> => {
  const drifted = new Set(drift.items.map(({ uid }) => uid))
  const written = new Map(declarations.map(({ uid, updated_at }) => [uid, Date.parse(updated_at)]))
  return plan.items.flatMap((item) => {
    const since = written.get(item.uid)
    if (item.volume_id === null || since === undefined || !drifted.has(item.uid)) return []
    const types = typesFor(item, item.volume_id, inventory)
    return types.length === 0 ? [] : [{ uid: item.uid, volume_id: item.volume_id, types, since }]
  })
}

/** What would have brought the volume to where it is now. */
const typesFor = ({ gap }: PlanItem, id: VolumeId, { cloud }: Inventory): ReadonlyArray<string> => {
  if (cloud._tag === "Unread") return []
  const row = cloud.value.volumes.find((volume) => volume.id === id)
  if (gap === "attachment" && row !== undefined) return row.vm_id === null ? ["VOLUME.DETACH"] : ["VOLUME.ATTACH"]
  if (gap !== "volume") return []
  return row === undefined || row.state === "Destroy" ? ["VOLUME.DELETE", "VOLUME.DESTROY"] : ["VOLUME.RESIZE"]
}

/** The newest action of these types that was neither ours nor before the declaration was as it should be. */
const answerTo = (
  question: Question,
  known: number,
  events: ReadonlyArray<CloudEvent>,
  operations: ReadonlyArray<Operation>
): string | null => {
  const ours = operations.filter((one) => one.volume_id === question.volume_id && !isCall(one))
  const met = Math.max(question.since, known, ...ours.map(metAt))
  const after = wholeSeconds(met)
  const about = events.filter(
    ({ type, volume_id }) => volume_id === question.volume_id && question.types.includes(type)
  )
  const other = new Set(about.filter((event) => event.failed || isOurs(event, ours)).map(({ action_id }) => action_id))
  const newest = about.find(({ action_id, at }) => at >= after && !other.has(action_id))
  return newest === undefined ? null : inWords(newest)
}

/** Times of events are cut off there. */
const wholeSeconds = (ms: number) => Math.trunc(ms / 1_000) * 1_000

/** When this operation showed that the volume was where we wanted it. */
const metAt = ({ completed_at, status, type }: Operation): number =>
  status === "completed" && completed_at !== null && eventsOf[type] !== null ? Date.parse(completed_at) : 0

/** What CloudStack records of our own operations. */
const eventsOf: Readonly<Record<OperationType, string | null>> = {
  create: "VOLUME.CREATE",
  attach: "VOLUME.ATTACH",
  detach: "VOLUME.DETACH",
  delete: "VOLUME.DELETE",
  cleanup: null,
  adopt: null,
  export: null,
  unexport: null,
  migrate_path: null,
  tag: null
}

/** Recorded while our own operation of that kind was under way, by either clock. */
const isOurs = (event: CloudEvent, operations: ReadonlyArray<Operation>): boolean =>
  operations.some(
    ({ completed_at, submitted_at, type }) =>
      eventsOf[type] === event.type &&
      submitted_at !== null &&
      event.at >= submitted_at - SKEW_MS &&
      (completed_at === null || event.at <= Date.parse(completed_at) + SKEW_MS)
  )

const inWords = ({ account, at, type, user }: CloudEvent): string | null => {
  if (user === null) return null
  return `${user}${account === null ? "" : ` (account ${account})`}, ${type} at ${Answer.rfc3339(at)}`
}
