import { Cause, Effect, Ref, Schedule, Stream } from "effect"
import * as Gate from "../../reconciler/Gate.ts"
import type { NbdUnavailable } from "../../schema/Errors.ts"
import * as Acl from "./Acl.ts"
import * as Pin from "./Pin.ts"
import * as Probe from "./Probe.ts"
import * as Processes from "./Processes.ts"
import { controlOf, type World } from "./World.ts"
import * as Written from "./Written.ts"

/**
 * An export whose holder is not proven would be whatever bears that pid by now, and nobody may open it (S3). Asked before
 * a server is started with the file, and whenever a holder has ended; the loop lifts the fence once all is right again.
 */
export const denyUnproven = (world: World): Effect.Effect<void, NbdUnavailable> =>
  Effect.gen(function* () {
    const written = yield* Written.read(world)
    const unproven = (yield* Written.pinned(world, written)).filter(({ holder }) => holder === null)
    const deny = ({ name }: Written.Pinned) => world.authfile(name).withPermits(1)(Acl.deny(written.acl, name))
    yield* Effect.forEach(unproven, deny, { discard: true })
  })

/** Descriptors of the file that no proven holder is behind any more, as one text. */
const lost = (world: World): Effect.Effect<string> =>
  Effect.map(Ref.get(world.memory), ({ pins }) =>
    [...pins]
      .filter(([, holder]) => holder === null || !Processes.isAlive(holder))
      .map(([descriptor]) => descriptor)
      .join(" ")
  )

/** How often it is looked whether holders live: well within the time in which a pid comes round again. */
const LOOK = "1 second"

/** A poke whenever a holder has ended. */
export const pokes = (world: World): Stream.Stream<void> =>
  Stream.repeatEffectWithSchedule(lost(world), Schedule.spaced(LOOK)).pipe(
    Stream.changes,
    Stream.drop(1),
    Stream.as(undefined)
  )

/** How often holders are looked for that no section names. */
const SWEEP = "30 seconds"

/**
 * For as long as the scope is open: fences exports whose holders have ended, those too that nobody declares any more, and
 * ends holders that a crash left. `alone`: never in the middle of a load.
 */
export const keep = (world: World, alone: <A, E>(work: Effect.Effect<A, E>) => Effect.Effect<A, E>) =>
  Effect.gen(function* () {
    const fenced = yield* Ref.make<string | null>(null)
    const fence = Effect.gen(function* () {
      // After a start nobody may come to look for long, as while the database is away.
      if ((yield* Ref.get(fenced)) === null) yield* Written.pinned(world, yield* Written.read(world))
      const now = yield* lost(world)
      if (now !== "" && now !== (yield* Ref.get(fenced))) {
        yield* Gate.forFence(world.gate.check)
        yield* denyUnproven(world)
      }
      yield* Ref.set(fenced, now)
    })
    yield* attending(fence, LOOK)
    yield* attending(alone(sweep(world)), SWEEP)
  })

const attending = <E>(work: Effect.Effect<void, E>, pause: typeof LOOK | typeof SWEEP) =>
  work.pipe(
    Effect.catchAllCause((cause) =>
      Cause.isInterruptedOnly(cause) ? Effect.interrupt : Effect.logDebug("holders of disks not attended to", cause)
    ),
    Effect.repeat(Schedule.spaced(pause)),
    Effect.forkScoped
  )

const sweep = (world: World) =>
  Effect.gen(function* () {
    if ((yield* Pin.leftovers(world.options, world.disk)).length === 0) return
    yield* world.gate.check
    const written = yield* Written.read(world)
    const look = yield* Probe.look(
      controlOf(world, written.judgement).place,
      Written.markerOf(written),
      [],
      world.silence
    )
    if (look.loaded || look.server === "absent") yield* Pin.sweep(world)
  })
