import { Cause, Clock, Duration, Effect, Queue, Ref } from "effect"
import { serialOf, type Uid, type VolumeId } from "../schema/Ids.ts"
import type { BlockDevice, NbdSection } from "../schema/Inventory.ts"
import type { Devices } from "./Devices.ts"
import { forFence } from "./Gate.ts"
import * as Metrics from "./Metrics.ts"
import type { Nbd } from "./Nbd.ts"
import type { Standing } from "./Standing.ts"
import type { Wake } from "./Wake.ts"

/** A name that led astray counts as such for so long after, ms: the links of a guest that starts cross for moments (D11). */
const ASTRAY_MS = 30_000

/** Between two looks, at least. Throttled, not debounced: a link that flips for ever must not put them off. */
const BETWEEN_LOOKS = Duration.millis(100)

/** Unpoked it looks this often, for a kernel name may come to be another disk without any link being touched. */
const UNPOKED = Duration.seconds(5)

/** Reading links and sysfs takes milliseconds; a disk that hangs must not stop the look at the others for good. */
const LOOK_LIMIT = Duration.seconds(10)

/** After a look that broke. */
const AFTER_DEFECT = Duration.seconds(1)

/** An export of ours as it is known from the database: its name is bound to one volume, whatever its path leads to. */
export interface Guarded {
  readonly uid: Uid
  readonly volume: string
  readonly volume_id: VolumeId
  readonly name: string
  readonly serial: string
}

interface Stray extends Guarded {
  readonly section: NbdSection
  /** The serial of the disk that its path leads to; null where no disk of the guest is that. */
  readonly found: string | null
}

const guardedBy = ({ declarations }: Pick<Standing, "declarations">): ReadonlyArray<Guarded> =>
  declarations.flatMap(({ binding, name, uid }) =>
    binding.export === null || binding.volume_id === null
      ? []
      : [
          {
            uid,
            volume: name,
            volume_id: binding.volume_id,
            name: binding.export.name,
            serial: serialOf(binding.volume_id)
          }
        ]
  )

/**
 * Sections whose path leads to another disk than their volume's (D3, D4), or to one of two that bear its serial (D5). A
 * dangling path is none: nothing can be opened by it. Nor is a disk whose serial cannot be read: that proves nothing.
 */
export const strays = (
  exports: ReadonlyArray<Guarded>,
  sections: ReadonlyArray<NbdSection>,
  devices: ReadonlyArray<BlockDevice>
): ReadonlyArray<Stray> =>
  exports.flatMap((one) => {
    const section = sections.find(({ name }) => name === one.name)
    if (section === undefined || section.device === null) return []
    const device = devices.find(({ identity }) => identity === section.device)
    if (device !== undefined && device.serial === null) return []
    const bearers = devices.filter(({ serial }) => serial === one.serial)
    const right = device?.serial === one.serial && bearers.length === 1
    return right ? [] : [{ ...one, section, found: device?.serial ?? null }]
  })

const fieldsOf = ({ name, volume, volume_id }: Stray) => ({ volume, volume_id, export_name: name })

/**
 * Watches where the paths of our exports lead, and fences at once what leads to a wrong disk: before any pass, without
 * CloudStack, and with what the database said last while it is away. What else is to be done the next pass decides.
 */
export interface Sentry {
  /** Something may have changed. */
  readonly ring: Effect.Effect<void>
  /** Export names that led astray within the last half minute: a fence of theirs is not lifted yet. */
  readonly astray: Effect.Effect<ReadonlySet<string>>
  /** A GO showed another disk behind this name, which no look at the links may ever show. */
  readonly note: (name: string) => Effect.Effect<void>
  readonly watch: Effect.Effect<never>
}

export const make = Effect.fn("Sentry.make")(function* (
  nbd: Pick<Nbd["Type"], "fence" | "sections">,
  devices: Pick<Devices["Type"], "observe">,
  known: Effect.Effect<Standing>,
  nudge: Wake["nudge"]
) {
  const signal = yield* Queue.sliding<void>(1)
  /** When each was seen astray last, ms. */
  const seen = yield* Ref.make<ReadonlyMap<string, number>>(new Map())

  const read = Effect.fnUntraced(function* (exports: ReadonlyArray<Guarded>) {
    const sections = yield* nbd.sections
    return strays(exports, sections, (yield* devices.observe).devices)
  })

  /** A disk that comes or goes between the two readings looks like none of the guest's: only then it is read again. */
  const wrong = Effect.fnUntraced(function* (exports: ReadonlyArray<Guarded>) {
    const first = yield* read(exports)
    return first.every(({ found }) => found !== null) ? first : yield* read(exports)
  })

  const fence = (stray: Stray) =>
    forFence(nbd.fence(stray.name)).pipe(
      Effect.timeout(LOOK_LIMIT),
      Effect.tapBoth({
        onSuccess: () => Metrics.guarded("Fence", "done"),
        onFailure: () => Metrics.guarded("Fence", "failed")
      }),
      Effect.catchTag("GateClosed", (error) => Effect.logDebug("a wrong disk is not fenced", error.message)),
      Effect.catchAllCause((cause) =>
        Cause.isInterruptedOnly(cause)
          ? Effect.interrupt
          : Effect.logError("an export that leads to a wrong disk could not be fenced", cause)
      )
    )

  const meet = Effect.fnUntraced(function* (stray: Stray, held: boolean, now: number) {
    const isNew = !(yield* Ref.get(seen)).has(stray.name)
    yield* Ref.update(seen, (map) => new Map(map).set(stray.name, now))
    if (stray.section.fenced_at === null && !held) yield* fence(stray)
    if (!isNew) return
    const found = stray.found === null ? "no disk of this guest" : `the disk ${stray.found}`
    yield* Effect.logWarning("an export leads to a wrong disk").pipe(
      Effect.annotateLogs({ device_path: stray.section.path, found, expected: stray.serial })
    )
    yield* nudge([stray.uid])
  })

  const forget = Effect.fnUntraced(function* (exports: ReadonlyArray<Guarded>, now: number) {
    const over = [...(yield* Ref.get(seen))].flatMap(([name, at]) => (now - at >= ASTRAY_MS ? [name] : []))
    if (over.length === 0) return
    yield* Ref.update(seen, (map) => new Map([...map].filter(([name]) => !over.includes(name))))
    yield* nudge(exports.flatMap(({ name, uid }) => (over.includes(name) ? [uid] : [])))
  })

  const look = Effect.gen(function* () {
    const standing = yield* known
    const exports = guardedBy(standing)
    if (exports.length === 0) return
    const found = yield* wrong(exports).pipe(Effect.timeout(LOOK_LIMIT))
    const now = yield* Clock.currentTimeMillis
    const held = standing.maintenance !== null
    yield* Effect.forEach(found, (stray) => Effect.annotateLogs(meet(stray, held, now), fieldsOf(stray)), {
      discard: true
    })
    yield* forget(exports, now)
  })

  const watch = Queue.take(signal).pipe(
    Effect.timeoutOption(UNPOKED),
    Effect.andThen(look),
    Effect.catchTag("GuestUnavailable", "NbdUnavailable", "TimeoutException", (error) =>
      Effect.logDebug("where the exports lead could not be read", error.message)
    ),
    // An interruption of the fiber itself passes by here; one from inside a port is a defect like any other (P5).
    Effect.catchAllCause((cause) =>
      Effect.andThen(Effect.logError("a look at where the exports lead broke", cause), Effect.sleep(AFTER_DEFECT))
    ),
    Effect.andThen(Effect.sleep(BETWEEN_LOOKS)),
    Effect.forever
  )

  return {
    ring: Effect.asVoid(Queue.offer(signal, undefined)),
    astray: Effect.map(Ref.get(seen), (map) => new Set(map.keys())),
    note: (name) =>
      Effect.flatMap(Clock.currentTimeMillis, (now) => Ref.update(seen, (map) => new Map(map).set(name, now))),
    watch
  } satisfies Sentry as Sentry
})
