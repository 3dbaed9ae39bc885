import { Clock, Duration, Effect, Option } from "effect"
import type * as Api from "../../schema/Api.ts"
import type { ConditionType } from "../../schema/Condition.ts"
import { hasEnded, type OperationType } from "../../schema/Operation.ts"
import {
  ConditionTimedOut,
  type Failure,
  isRetryable,
  OperationCancelled,
  OperationFailed,
  OperationTimedOut
} from "./Failure.ts"

export interface Options {
  /** From the call on; for an operation by its type unless told, for a condition 10 minutes. */
  readonly timeoutMs?: number
}

export type Condition = `${ConditionType}:${"True" | "False" | "Unknown"}`

/** Longer than the daemon's own deadline of each, so that its reason arrives rather than our impatience; ms. */
export const timeoutsMs: Readonly<Record<OperationType, number>> = {
  create: 300_000,
  attach: 120_000,
  detach: 60_000,
  delete: 120_000,
  cleanup: 180_000,
  adopt: 300_000,
  export: 300_000,
  unexport: 300_000,
  migrate_path: 300_000,
  tag: 300_000
}
const UNKNOWN_TYPE_MS = 300_000
const CONDITION_MS = 600_000

/** How long the server is asked to hold one answer back. */
const HOLD_S = 30
/** Between two looks that the server did not hold back: it restarts, is about to stop, or was not there. */
const PAUSE_MS = 1_000

/** Until the operation has ended. `of` may be its id alone: then a first look tells its type. */
export const ofOperation = (
  read: (id: string, waitSeconds?: number) => Effect.Effect<Api.OperationAnswer, Failure>,
  of: Api.OperationAnswer | string,
  options: Options
): Effect.Effect<Api.OperationAnswer, Failure | OperationFailed | OperationCancelled | OperationTimedOut> => {
  const id = typeof of === "string" ? of : of.id
  return patiently<Api.OperationAnswer, OperationTimedOut>({
    known: typeof of === "string" ? null : of,
    look: (waitSeconds) => read(id, waitSeconds),
    done: hasEnded,
    timeoutMs: (seen) => options.timeoutMs ?? (seen === null ? UNKNOWN_TYPE_MS : timeoutsMs[seen.type]),
    late: (operation, timeout_ms, cause) =>
      new OperationTimedOut({ id, operation, timeout_ms, ...(cause === null ? {} : { cause }) })
  }).pipe(
    Effect.filterOrFail(
      (operation) => operation.status === "completed",
      (operation) =>
        operation.status === "failed" ? new OperationFailed({ operation }) : new OperationCancelled({ operation })
    )
  )
}

/** Until the condition holds. A declaration that is not there ends the waiting, unless its removal is waited for. */
export const ofCondition = (
  read: (
    name: string,
    wait?: { readonly condition: string; readonly timeoutSeconds: number },
    also?: { readonly removed?: boolean }
  ) => Effect.Effect<Api.Volume, Failure>,
  name: string,
  condition: Condition,
  options: Options
): Effect.Effect<Api.Volume, Failure | ConditionTimedOut> => {
  const [type, status] = condition.split(":")
  const also = type === "Removed" ? { removed: true } : {}
  return patiently<Api.Volume, ConditionTimedOut>({
    known: null,
    look: (waitSeconds) =>
      read(name, waitSeconds === undefined ? undefined : { condition, timeoutSeconds: waitSeconds }, also),
    done: (volume) => volume.status.conditions.some((found) => found.type === type && found.status === status),
    timeoutMs: () => options.timeoutMs ?? CONDITION_MS,
    late: (volume, timeout_ms, cause) =>
      new ConditionTimedOut({ name, condition, volume, timeout_ms, ...(cause === null ? {} : { cause }) })
  })
}

interface Patience<A, E> {
  /** As it is known already. */
  readonly known: A | null
  /** Held back by the server until done, at most for the time. */
  readonly look: (waitSeconds?: number) => Effect.Effect<A, Failure>
  readonly done: (seen: A) => boolean
  readonly timeoutMs: (seen: A | null) => number
  readonly late: (seen: A | null, timeoutMs: number, cause: Failure | null) => E
}

/** Looks again and again, each look held back by the server. A server that is away for a while ends nothing. */
const patiently = <A, E>({ known, look, done, timeoutMs, late }: Patience<A, E>): Effect.Effect<A, Failure | E> =>
  Effect.gen(function* () {
    const began = yield* Clock.currentTimeMillis
    let seen = known
    let trouble: Failure | null = null
    for (;;) {
      if (seen !== null && done(seen)) return seen
      const asked = yield* Clock.currentTimeMillis
      const leftMs = began + timeoutMs(seen) - asked
      if (leftMs <= 0) return yield* Effect.fail(late(seen, timeoutMs(seen), trouble))
      const waitSeconds = seen === null ? undefined : Math.min(HOLD_S, Math.ceil(leftMs / 1000))
      const looked: Look<A> = yield* glance(look(waitSeconds), leftMs)
      seen = looked.seen ?? seen
      trouble = looked.trouble
      const heldMs = (yield* Clock.currentTimeMillis) - asked
      const isFirst = waitSeconds === undefined && looked.seen !== null
      if (!isFirst && heldMs < PAUSE_MS && !(seen !== null && done(seen))) {
        yield* Effect.sleep(Math.min(PAUSE_MS, leftMs))
      }
    }
  })

interface Look<A> {
  readonly seen: A | null
  readonly trouble: Failure | null
}

/** One look. Its time is ours, a moment later than the server's, and what may pass is no failure yet. */
const glance = <A>(look: Effect.Effect<A, Failure>, leftMs: number): Effect.Effect<Look<A>, Failure> =>
  look.pipe(
    Effect.map((seen): Look<A> => ({ seen, trouble: null })),
    Effect.catchIf(isRetryable, (trouble) => Effect.succeed<Look<A>>({ seen: null, trouble })),
    Effect.timeoutOption(Duration.millis(leftMs + PAUSE_MS)),
    Effect.map(Option.getOrElse((): Look<A> => ({ seen: null, trouble: null })))
  )
