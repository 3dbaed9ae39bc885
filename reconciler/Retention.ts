import { Clock, Effect, Layer, Schedule } from "effect"
import type { Settings } from "../schema/Settings.ts"
import { Leadership } from "./Leadership.ts"
import { Store } from "./Store.ts"

/** Between two rounds, and between two batches of one, ms: others write in between. */
const ROUND_MS = 600_000
const PAUSE_MS = 200
/** Batches of one round, at most; the next round goes on. */
const BATCHES_MAX = 1_000

/** Prunes what is older than it is to be kept, in the process that leads. A round that fails is left to the next one. */
export const layer = (
  settings: Pick<Settings, "operations_kept_ms" | "events_kept_ms">
): Layer.Layer<never, never, Store | Leadership> =>
  Layer.scopedDiscard(
    Effect.gen(function* () {
      const store = yield* Store
      const leadership = yield* Leadership
      const batch = Effect.gen(function* () {
        const role = yield* leadership.role
        if (role._tag !== "Leading") return 0
        return yield* store.prune({
          now: yield* Clock.currentTimeMillis,
          operations_ms: settings.operations_kept_ms,
          events_ms: settings.events_kept_ms
        })
      })
      const round = Effect.gen(function* () {
        let pruned = 0
        for (let batches = 0; batches < BATCHES_MAX; batches += 1) {
          const count = yield* batch
          if (count === 0) break
          pruned += count
          yield* Effect.sleep(PAUSE_MS)
        }
        if (pruned > 0) yield* Effect.logInfo("pruned").pipe(Effect.annotateLogs({ rows: pruned }))
      })
      yield* round.pipe(
        Effect.catchAllCause((cause) => Effect.logWarning("pruning failed", cause)),
        Effect.repeat(Schedule.spaced(ROUND_MS)),
        Effect.forkScoped
      )
    })
  )
