import { Clock, Effect } from "effect"
import * as Instruments from "../reconciler/Metrics.ts"
import type { Settings } from "../schema/Settings.ts"

/** A pass is to begin at least once in so many of the longest periods between two (L5). */
const BEATS_MISSED_MAX = 3

/** A pass of the loop began in time; before the first one, the process did. */
export const beats = ({ resync_idle_ms }: Pick<Settings, "resync_idle_ms">): Effect.Effect<boolean> =>
  Effect.gen(function* () {
    const now = yield* Clock.currentTimeMillis
    const began = Math.max(yield* Instruments.heartbeat, now - process.uptime() * 1000)
    return now - began <= BEATS_MISSED_MAX * resync_idle_ms
  })
