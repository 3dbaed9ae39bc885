import { Clock, Duration, Effect, Option, Queue, Ref } from "effect"
import { exportNameOf, type Uid } from "../schema/Ids.ts"
import type { Holder, NbdReading, NbdSection, Source, Verification } from "../schema/Inventory.ts"
import * as Metrics from "./Metrics.ts"
import * as Observe from "./Observe.ts"
import type { Nbd } from "./Nbd.ts"
import type { Picture } from "./Picture.ts"
import type { View } from "./Reconciler.ts"
import type { Standing } from "./Standing.ts"
import type { Wake } from "./Wake.ts"

/** Between two rounds of questions. */
const ROUND_MS = 30_000

/** Each round asks a third of the exports, so that all are asked within two minutes … */
const SHARE = 3
/** … but no fewer and no more than these: a GO makes the server fork, and takes about a millisecond. */
const LEAST = 8
const MOST = 64

/** While somebody waits for clients to leave, who is connected is looked at this often, ms: no GO but on the marker. */
const HELD_MS = 2_000

/** A change is looked at at once, and then no more often, ms: handshakes for every flap of a link would be a storm (D2). */
const BETWEEN_MS = 2_000
/** Where asking for all takes long, this many times as long is left between two such rounds (S22). */
const REST = 4

/** After a round that broke. */
const AFTER_DEFECT = Duration.seconds(5)

/**
 * Asks the NBD server between passes, and never CloudStack: a sample in turn, all exports after a load or a change. What
 * it finds is shown, and what is not as it was seen last is nudged into a pass, which decides.
 */
export interface Rounds {
  /** All exports are asked soon. */
  readonly ring: Effect.Effect<void>
  readonly walk: Effect.Effect<never>
}

export const make = Effect.fn("Rounds.make")(function* (
  nbd: Pick<Nbd["Type"], "observe">,
  picture: Pick<Picture, "verified" | "view">,
  known: Effect.Effect<Standing>,
  wake: Pick<Wake, "nudge">
) {
  const signal = yield* Queue.sliding<void>(1)
  const round_at = yield* Ref.make((yield* Clock.currentTimeMillis) + ROUND_MS)

  const ask = Effect.fn("Rounds.ask")(function* (names: ReadonlyArray<string>, view: View) {
    const before = view.inventory?.nbd ?? null
    if (before === null) return
    const source = yield* Observe.readNbd(nbd, names)
    if (source._tag === "Known") yield* Metrics.verified(source.value)
    yield* picture.verified(source)
    const owners = ownersOf(yield* known)
    const uids = changed(before, source).flatMap((name) => owners.get(name) ?? [])
    const freed = leavers(view, before, source)
    if (uids.length + freed.length > 0) yield* wake.nudge([...uids, ...freed])
  })

  const step = Effect.gen(function* () {
    const now = yield* Clock.currentTimeMillis
    const due = (yield* Ref.get(round_at)) - now
    const wait = waiting(yield* picture.view).length > 0 ? Math.min(HELD_MS, due) : due
    // A clock that was set back makes no round later than the next one would have been (T1).
    const rung = yield* Queue.take(signal).pipe(Effect.timeoutOption(Math.min(ROUND_MS, Math.max(1, wait))))
    const view = yield* picture.view
    const then = yield* Clock.currentTimeMillis
    if (Option.isSome(rung)) {
      yield* ask(exportsIn(view), view)
      const took = (yield* Clock.currentTimeMillis) - then
      return yield* Effect.sleep(Math.max(BETWEEN_MS, REST * took))
    }
    const isDue = then >= (yield* Ref.get(round_at)) || then < now
    if (isDue) yield* Ref.set(round_at, then + ROUND_MS)
    yield* ask(isDue ? sample(exportsIn(view), view) : [], view)
  })

  return {
    ring: Effect.asVoid(Queue.offer(signal, undefined)),
    walk: step.pipe(
      // An interruption of the fiber itself passes by here; one from inside a port is a defect like any other (P5).
      Effect.catchAllCause((cause) =>
        Effect.andThen(Effect.logError("a round of the exports broke", cause), Effect.sleep(AFTER_DEFECT))
      ),
      Effect.forever
    )
  } satisfies Rounds as Rounds
})

const readingOf = (source: Source<NbdReading> | null | undefined): NbdReading | null =>
  source?._tag === "Known" ? source.value : null

/** Whose export each name is. */
const ownersOf = ({ declarations }: Standing): ReadonlyMap<string, Uid> =>
  new Map(
    declarations.flatMap(({ binding, uid }) => {
      const name = binding.export?.name ?? (binding.volume_id === null ? null : exportNameOf(binding.volume_id))
      return name === null ? [] : [[name, uid] as const]
    })
  )

/** The exports of ours that are written down or were served when asked last: those that a pass asked for before. */
const exportsIn = (view: View): ReadonlyArray<string> => {
  const reading = readingOf(view.inventory?.nbd)
  if (reading === null) return []
  const written = new Set(reading.sections.map(({ name }) => name))
  return reading.verifications
    .filter(({ name, outcome }) => written.has(name) || outcome === "served")
    .map(({ name }) => name)
}

/** Those that were asked longest ago. */
const sample = (names: ReadonlyArray<string>, view: View): ReadonlyArray<string> => {
  const reading = readingOf(view.inventory?.nbd)
  const asked = new Map(reading?.verifications.map(({ name, verified_at }) => [name, verified_at]))
  const size = Math.min(MOST, Math.max(LEAST, Math.ceil(names.length / SHARE)))
  return names.toSorted((a, b) => (asked.get(a) ?? 0) - (asked.get(b) ?? 0)).slice(0, size)
}

/** Names of which something is not as it was seen last; of all of them where the server itself changed. */
const changed = (before: Source<NbdReading>, after: Source<NbdReading>): ReadonlyArray<string> => {
  const [was, is] = [readingOf(before), readingOf(after)]
  if (was === null || is === null) return was === is ? [] : namesIn(was ?? is)
  if (serverOf(was) !== serverOf(is)) return [...namesIn(was), ...namesIn(is)]
  const sections = new Map(was.sections.map((section) => [section.name, sectionKey(section)]))
  const answers = new Map(was.verifications.map((answer) => [answer.name, answerKey(answer)]))
  const now = new Set(is.sections.map(({ name }) => name))
  return [
    ...is.sections.flatMap((section) => (sections.get(section.name) === sectionKey(section) ? [] : [section.name])),
    ...was.sections.flatMap(({ name }) => (now.has(name) ? [] : [name])),
    ...is.verifications.flatMap((answer) => (answers.get(answer.name) === answerKey(answer) ? [] : [answer.name]))
  ]
}

const namesIn = (reading: NbdReading | null): ReadonlyArray<string> => [
  ...(reading?.sections ?? []).map(({ name }) => name),
  ...(reading?.verifications ?? []).map(({ name }) => name)
]

const serverOf = ({ config_problem, host, loaded, port, server }: NbdReading) =>
  JSON.stringify([server.state, server.pid, config_problem, loaded, host, port])

const sectionKey = ({ device, fenced_at, file, path, read_only, unfinished }: NbdSection) =>
  JSON.stringify([path, device, read_only, file, unfinished, fenced_at])

const answerKey = ({ device, outcome, read_only, size }: Verification) =>
  JSON.stringify([outcome, size, read_only, device])

/** Volumes that wait for somebody to leave. */
const waiting = ({ plan }: View): ReadonlyArray<Uid> =>
  (plan?.items ?? []).flatMap(({ blocked, uid }) =>
    blocked?.reason === "InUse" || blocked?.reason === "Draining" ? [uid] : []
  )

/** Of those, all where any holder came or went: whose disk it has is the next pass's to tell. */
const leavers = (view: View, before: Source<NbdReading>, after: Source<NbdReading>): ReadonlyArray<Uid> => {
  const [was, is] = [readingOf(before), readingOf(after)]
  return was === null || is === null || holdersKey(was.holders) === holdersKey(is.holders) ? [] : waiting(view)
}

const holdersKey = (holders: ReadonlyArray<Holder>) =>
  holders
    .map(({ device, pid }) => `${pid} ${device}`)
    .toSorted()
    .join("\n")
