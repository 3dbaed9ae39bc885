/** A seeded source whose whole state is one number, so that a saved world goes on drawing where it stopped. */
export interface Random {
  state: number
}

export const make = (seed: number): Random => ({ state: seed >>> 0 })

/** Mulberry32: the next number in [0, 1). Good enough to spread ids and faults, and no secret depends on it. */
export const next = (random: Random): number => {
  random.state = (random.state + 0x6d2b79f5) >>> 0
  let t = random.state
  t = Math.imul(t ^ (t >>> 15), t | 1)
  t ^= t + Math.imul(t ^ (t >>> 7), t | 61)
  return ((t ^ (t >>> 14)) >>> 0) / 4_294_967_296
}

/** A random version 4 UUID, lower case, as CloudStack gives out. */
export const uuid = (random: Random): string => {
  const word = () => Math.floor(next(random) * 4_294_967_296)
  const hex = [word(), word(), word(), word()].map((n) => n.toString(16).padStart(8, "0")).join("")
  const variant = "89ab".charAt(Number.parseInt(hex.charAt(16), 16) & 3)
  return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-4${hex.slice(13, 16)}-${variant}${hex.slice(17, 20)}-${hex.slice(20)}`
}

/** A copy in random order. */
export const shuffled = <A>(random: Random, items: ReadonlyArray<A>): Array<A> => {
  const copy = [...items]
  for (let i = copy.length - 1; i > 0; i--) {
    const j = Math.floor(next(random) * (i + 1))
    const [a, b] = [copy[i] as A, copy[j] as A]
    copy[i] = b
    copy[j] = a
  }
  return copy
}
