import { Clock, Context, Effect, Layer, Ref } from "effect"
import { CloudStackRead, type Offering } from "../../reconciler/CloudStack.ts"
import { GIB, type Spec } from "../../schema/Declaration.ts"
import { type Problem, Refused } from "../../schema/Document.ts"
import type { CloudStackUnavailable } from "../../schema/Errors.ts"
import type { Name, ZoneId } from "../../schema/Ids.ts"
import * as DefaultZone from "../CloudStack/DefaultZone.ts"

/** How long offerings and zones may be believed without asking again. */
const AGE_MS_MAX = 24 * 3_600_000
/** An id that is not in the catalogue may be new; but the catalogue is not read again for every wrong id. */
const REFRESH_MS_MIN = 5_000

export interface Listing {
  readonly read_at: number
  readonly offerings: ReadonlyMap<string, Offering>
  /** Names by id. */
  readonly zones: ReadonlyMap<ZoneId, string>
}

/** A declaration whose volume is to be created. */
export interface Wanted {
  readonly index: number | null
  readonly name: Name
  readonly spec: Spec
}

/** Offerings and zones as CloudStack has them, read when first needed. */
export class Catalogue extends Context.Tag("volumed/Http/Catalogue")<
  Catalogue,
  {
    /** Offering and zone exist and take this size: known from CloudStack before a declaration is accepted. */
    readonly check: (wanted: ReadonlyArray<Wanted>) => Effect.Effect<void, Refused | CloudStackUnavailable>
    /** What there is to choose from, at most a day old. */
    readonly listing: Effect.Effect<Listing, CloudStackUnavailable>
    /** The zone that a declaration gets which names none; null where none is configured. */
    readonly zone: Effect.Effect<ZoneId | null, CloudStackUnavailable>
    /** A check would be decided now. */
    readonly ready: Effect.Effect<void, CloudStackUnavailable>
  }
>() {}

const make = Effect.gen(function* () {
  const cloud = yield* CloudStackRead
  const cache = yield* Ref.make<Listing | null>(null)
  const reading = yield* Effect.makeSemaphore(1)

  const read = Effect.gen(function* () {
    const read_at = yield* Clock.currentTimeMillis
    const [offerings, zones] = yield* Effect.all([cloud.offerings, cloud.zones], { concurrency: 2 })
    const listing: Listing = {
      read_at,
      offerings: new Map(offerings.map((offering) => [offering.id, offering])),
      zones: new Map(zones.map((zone) => [zone.id, zone.name]))
    }
    yield* Ref.set(cache, listing)
    return listing
  })

  /** Not older than `age_ms`. Callers that come together share one reading. */
  const within = (age_ms: number) =>
    Effect.gen(function* () {
      const listing = yield* Ref.get(cache)
      const now = yield* Clock.currentTimeMillis
      return listing !== null && Math.abs(now - listing.read_at) <= age_ms ? listing : yield* read
    }).pipe(reading.withPermits(1))

  return Catalogue.of({
    listing: within(AGE_MS_MAX),
    zone: DefaultZone.of(
      cloud,
      Effect.map(within(AGE_MS_MAX), ({ zones }) => zones)
    ),
    ready: Effect.asVoid(within(AGE_MS_MAX)),
    check: (wanted) =>
      Effect.gen(function* () {
        if (wanted.length === 0) return
        const listing = yield* within(AGE_MS_MAX)
        const doubts = wanted.flatMap((one) => problems(one, listing))
        if (doubts.length === 0) return
        const fresh = yield* within(REFRESH_MS_MIN)
        const errors = wanted.flatMap((one) => problems(one, fresh))
        if (errors.length > 0) return yield* refused(errors)
      })
  })
})

export const layer: Layer.Layer<Catalogue, never, CloudStackRead> = Layer.effect(Catalogue, make)

const problems = ({ index, name, spec }: Wanted, listing: Listing): ReadonlyArray<Problem> => {
  const offering = spec.disk_offering_id === null ? undefined : listing.offerings.get(spec.disk_offering_id)
  const found: Array<Problem> = []
  const report = (field: keyof Spec, problem: string) => void found.push({ index, name, field, problem })
  if (spec.disk_offering_id !== null && offering === undefined) {
    report("disk_offering_id", `CloudStack shows no disk offering ${spec.disk_offering_id}`)
  }
  if (spec.zone_id !== null && !listing.zones.has(spec.zone_id)) {
    report("zone_id", `CloudStack shows no zone ${spec.zone_id}`)
  }
  const gib = Math.ceil((spec.size ?? 0) / GIB)
  if (offering !== undefined && !offering.customized && offering.size_gib !== gib) {
    report("size", `the offering ${offering.name} makes volumes of ${offering.size_gib} GiB only, not of ${gib} GiB`)
  }
  return found
}

const refused = (errors: ReadonlyArray<Problem>): Effect.Effect<never, Refused> => {
  const [first] = errors
  const more = errors.length > 1 ? ` (and ${errors.length - 1} more, see details.errors)` : ""
  return Effect.fail(
    new Refused({
      code: "CLOUDSTACK_INVALID_PARAMETER",
      error: `${first?.name ?? ""}: ${first?.problem ?? ""}${more}`,
      suggestion: "list what there is with: volumed offerings",
      errors
    })
  )
}
