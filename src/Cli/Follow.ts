import { Clock, Effect, Ref } from "effect"
import type { Volume } from "../../schema/Api.ts"
import type { Failure } from "../Client/Failure.ts"
import * as Daemon from "./Daemon.ts"
import * as Exit from "./Exit.ts"
import { Output } from "./Output.ts"
import * as Progress from "./Progress.ts"
import * as VolumeText from "./VolumeText.ts"

export interface Request {
  readonly names: ReadonlyArray<string>
  readonly set: string | null
  readonly timeoutMs: number
  /** What is waited for; Ready when left out. */
  readonly until?: (volume: Volume) => boolean
  /** What it means that a declaration is no longer there; an error when left out. */
  readonly gone?: Exit.Outcome
  /** Wait to the end although everything left is blocked: somebody may be about to unblock it. */
  readonly patient?: boolean
}

/** Ten minutes: an attach behind a full queue takes some. */
export const WAIT_MS = 600_000
/** Between two looks. A look that took long is followed by a pause five times as long, so that looking stays cheap. */
const PERIOD_MS = 300
/** When all that is left has been blocked for so long, waiting any longer tells nothing new. */
const BLOCKED_MS = 15_000

/**
 * Follow volumes until each is Ready, with live progress. `held`: what is left waits for a person; `timeout`: it is
 * still converging. The daemon converges with or without us: interrupting this stops nothing there.
 */
export const follow = (
  request: Request
): Effect.Effect<
  { readonly outcome: Exit.Outcome; readonly volumes: ReadonlyArray<Volume> },
  Failure,
  Daemon.Daemon | Output
> =>
  Effect.gen(function* () {
    const seen = yield* Ref.make<ReadonlyArray<Volume>>([])
    return yield* Effect.scoped(watch(request, seen)).pipe(Effect.onInterrupt(() => farewell(request, seen)))
  })

const watch = Effect.fn("Follow.watch")(function* (request: Request, seen: Ref.Ref<ReadonlyArray<Volume>>) {
  const progress = yield* Progress.make
  const deadline = (yield* Clock.currentTimeMillis) + request.timeoutMs
  const until = request.until ?? VolumeText.isReady
  let blockedSince: number | null = null
  for (;;) {
    const before = yield* Clock.currentTimeMillis
    const volumes = yield* patient(Daemon.named(request.names, request.set), deadline)
    const now = yield* Clock.currentTimeMillis
    yield* Ref.set(seen, volumes)
    yield* progress.show(volumes.map((volume) => line(volume, until)))
    const left = volumes.filter((volume) => !until(volume))
    const missing = request.names.length - volumes.length
    // What somebody removed meanwhile will never be Ready: everything else being done, that is the result.
    if (left.length === 0) return { outcome: missing === 0 ? ("done" as const) : (request.gone ?? "error"), volumes }
    blockedSince = left.length > 0 && left.every(VolumeText.isBlocked) ? (blockedSince ?? now) : null
    if (request.patient !== true && blockedSince !== null && now - blockedSince >= BLOCKED_MS)
      return { outcome: "held" as const, volumes }
    if (now >= deadline) return { outcome: Exit.combine(left.map(unfinished)), volumes }
    yield* Effect.sleep(Math.max(PERIOD_MS, (now - before) * 5))
  }
})

/** A daemon that restarts while we wait is no reason to give up. */
export const patient = <A, R>(look: Effect.Effect<A, Failure, R>, deadline: number): Effect.Effect<A, Failure, R> =>
  look.pipe(
    Effect.catchTag("ServerUnreachable", (error) =>
      Effect.flatMap(Clock.currentTimeMillis, (now) =>
        now >= deadline || !error.transient
          ? Effect.fail(error)
          : Effect.zipRight(Effect.sleep(1000), patient(look, deadline))
      )
    )
  )

/** When something else than Ready is waited for, that alone counts as done. */
const line = (volume: Volume, until: (volume: Volume) => boolean): Progress.Line => {
  const shown = VolumeText.progress(volume)
  if (until(volume)) return { ...shown, state: "done" }
  return shown.state === "done" ? { ...shown, state: "moving" } : shown
}

const unfinished = (volume: Volume): Exit.Outcome => (VolumeText.isBlocked(volume) ? "held" : "timeout")

const farewell = Effect.fn("Follow.farewell")(function* (request: Request, seen: Ref.Ref<ReadonlyArray<Volume>>) {
  const output = yield* Output
  const done = (yield* Ref.get(seen)).filter(request.until ?? VolumeText.isReady).length
  yield* output.note(
    `\nStopped following with ${done} of ${request.names.length} done. ` +
      `What was declared stays declared; only the following has stopped.\nLook again with: volumed get\n`
  )
})
