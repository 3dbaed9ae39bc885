import { Context, Deferred, Effect, Layer, Option, Schedule, Stream } from "effect"
import { Reconciler } from "../../reconciler/Reconciler.ts"
import { ConditionType, type Status } from "../../schema/Condition.ts"
import { type Request, duration, refuse } from "./Request.ts"
import { RequestRefused } from "./ErrorAnswer.ts"

/** Ends every held-back answer when the server is about to stop, so that waiting clients do not hold it up. */
export class Closing extends Context.Tag("volumed/Http/Closing")<Closing, Deferred.Deferred<void>>() {}

export const layerClosing: Layer.Layer<Closing> = Layer.effect(Closing, Deferred.make<void>())

export interface Wanted {
  readonly type: ConditionType
  readonly status: "True" | "False" | "Unknown"
  readonly timeout_ms: number
}

/** `wait=Ready:True&timeout=60s`; null when nothing is waited for. */
export const wanted = ({ query }: Request): Effect.Effect<Wanted | null, RequestRefused> => {
  const text = query.get("wait")
  if (text === null) return Effect.succeed(null)
  return Effect.zipWith(
    condition(text, "wait"),
    duration(query.get("timeout") ?? "60s", "timeout"),
    (wished, timeout_ms) => ({ ...wished, timeout_ms })
  )
}

/** `Ready:False`. */
export const condition = (text: string, key: string) => {
  const [type, status = "", ...rest] = text.split(":")
  const known = ConditionType.literals.find((literal) => literal === type)
  const isStatus = status === "True" || status === "False" || status === "Unknown"
  return known === undefined || !isStatus || rest.length > 0
    ? Effect.fail(
        refuse(
          "INVALID_REQUEST",
          `${key}: expected one of ${ConditionType.literals.join(", ")} and a status, such as Ready:True`
        )
      )
    : Effect.succeed({ type: known, status } as const)
}

export const holds = (status: Status, wanted: Pick<Wanted, "type" | "status">): boolean =>
  status.conditions.some(({ type, status }) => type === wanted.type && status === wanted.status)

/**
 * Read until `done` says so, or the time is over, and answer what was read last. Looked at after every pass, and each
 * `period_ms` for what happens between passes.
 */
export const until = <A, E, R>(
  read: Effect.Effect<A, E, R>,
  done: (value: A) => boolean,
  options: { readonly timeout_ms: number; readonly period_ms: number }
): Effect.Effect<A, E, R | Reconciler | Closing> =>
  Effect.gen(function* () {
    const closing = yield* Closing
    const { changes } = yield* Reconciler
    const reached = Stream.merge(changes, Stream.fromSchedule(Schedule.spaced(options.period_ms))).pipe(
      Stream.buffer({ capacity: 1, strategy: "sliding" }),
      Stream.mapEffect(() => read),
      Stream.filter(done),
      Stream.runHead
    )
    const first = yield* read
    if (done(first)) return first
    const found = yield* reached.pipe(
      Effect.timeoutOption(options.timeout_ms),
      Effect.map(Option.flatten),
      Effect.raceFirst(Effect.as(Deferred.await(closing), Option.none<A>()))
    )
    return Option.isSome(found) ? found.value : yield* read
  })
