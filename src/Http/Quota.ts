import { Clock, Effect } from "effect"
import { Store } from "../../reconciler/Store.ts"
import type { StoreUnavailable } from "../../schema/Errors.ts"
import { RequestRefused } from "./ErrorAnswer.ts"

/** What others added meanwhile is seen after this. */
const COUNT_AGAIN_MS = 10_000
/** A refusal is never older than this. */
const FRESH_MS = 1_000

/**
 * Room for so many more declarations, or a refusal. Counting reads all of them, so it is done now and then, and what
 * was let through since is added; callers take turns.
 */
export const make = (max: number) =>
  Effect.map(Store, (store) => {
    const counted = { count: 0, at: -COUNT_AGAIN_MS }
    return (added: number): Effect.Effect<void, RequestRefused | StoreUnavailable> =>
      Effect.gen(function* () {
        if (added === 0) return
        const age = (yield* Clock.currentTimeMillis) - counted.at
        if (age >= COUNT_AGAIN_MS || (counted.count + added > max && age >= FRESH_MS)) {
          counted.count = (yield* store.declarations).length
          counted.at = yield* Clock.currentTimeMillis
        }
        if (counted.count + added > max) return yield* tooMany(counted.count, max)
        counted.count += added
      })
  })

const tooMany = (count: number, max: number) =>
  new RequestRefused({
    code: "RATE_LIMITED",
    error: `there are ${count} declarations, and with these more than the ${max} that may be`,
    suggestion: "remove declarations that nobody needs, or raise DECLARATIONS_MAX",
    headers: { "retry-after": "60" }
  })
