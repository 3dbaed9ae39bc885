import * as Random from "../../src/Simulation/Random.ts"

/** Chance that is the same for the same seed. */
export interface Chance {
  /** At least `low`, less than `high`. */
  readonly between: (low: number, high: number) => number
  /** A whole number, both ends included. */
  readonly whole: (low: number, high: number) => number
  readonly oneOf: <A>(all: readonly [A, ...ReadonlyArray<A>]) => A
  readonly happens: (probability: number) => boolean
  readonly uuid: () => string
  readonly shuffled: <A>(all: ReadonlyArray<A>) => ReadonlyArray<A>
  /** An address of 127.0.0.0/8 that hardly any other process uses. */
  readonly loopback: () => string
}

export const make = (seed: number): Chance => {
  const random = Random.make(seed)
  const between = (low: number, high: number) => low + Random.next(random) * (high - low)
  const whole = (low: number, high: number) => Math.floor(between(low, high + 1))
  return {
    between,
    whole,
    oneOf: (all) => all[whole(0, all.length - 1)] ?? all[0],
    happens: (probability) => Random.next(random) < probability,
    uuid: () => Random.uuid(random),
    shuffled: (all) => Random.shuffled(random, all),
    loopback: () => `127.${whole(2, 250)}.${whole(2, 250)}.${whole(2, 250)}`
  }
}
