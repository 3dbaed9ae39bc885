import { Cause, Effect, Exit, Stream } from "effect"

/** The same functions for callers without Effect: promises, and async iterables where there is a stream. */
export type Promised<T> = {
  readonly [K in keyof T]: T[K] extends Effect.Effect<infer A, unknown>
    ? () => Promise<A>
    : T[K] extends (...args: infer Args) => Effect.Effect<infer A, unknown>
      ? (...args: Args) => Promise<A>
      : T[K] extends (...args: infer Args) => Stream.Stream<infer A, unknown>
        ? (...args: Args) => AsyncIterable<A>
        : Promised<T[K]>
}

/**
 * A promise is rejected with the very error that the effect fails with, so that `instanceof` tells them apart. Leaving
 * the loop over an iterable ends its connection.
 */
export const promised = <T extends object>(client: T): Promised<T> =>
  // What each member becomes by its value is what `Promised` says of its type.
  Object.fromEntries(Object.entries(client).map(([name, value]) => [name, member(value)])) as Promised<T>

const member = (value: unknown): unknown => {
  if (Effect.isEffect(value)) return () => run(value)
  if (typeof value === "function") return (...args: ReadonlyArray<unknown>) => run(value(...args))
  return typeof value === "object" && value !== null ? promised(value) : value
}

const run = (started: unknown): unknown => {
  if (Effect.isEffect(started)) return settle(started as Effect.Effect<unknown, unknown>)
  return isStream(started) ? Stream.toAsyncIterable(started) : started
}

const isStream = (value: unknown): value is Stream.Stream<unknown, unknown> =>
  typeof value === "object" && value !== null && Stream.StreamTypeId in value

const settle = (effect: Effect.Effect<unknown, unknown>): Promise<unknown> =>
  Effect.runPromiseExit(effect).then(
    Exit.match({
      onSuccess: (value) => value,
      onFailure: (cause) => {
        throw Cause.squash(cause)
      }
    })
  )
