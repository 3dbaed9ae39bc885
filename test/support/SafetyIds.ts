/**
 * The ids that test names speak of: invariants (S), liveness (L), and fault classes: process (P), CloudStack requests (C),
 * jobs (J), listing (O), devices (D), NBD (N), database (B), time (T), other actors (M), resources (R), hostile input (X).
 * Each family counts from 1 without a gap.
 */
const families = { S: 24, L: 8, P: 8, C: 16, J: 9, O: 9, D: 12, N: 17, B: 16, T: 5, M: 8, R: 7, X: 16 } as const

export const known: ReadonlySet<string> = new Set(
  Object.entries(families).flatMap(([family, count]) => Array.from({ length: count }, (_, at) => `${family}${at + 1}`))
)

/** Those of one family, such as `D`. */
export const ofFamily = (family: keyof typeof families): ReadonlyArray<string> =>
  [...known].filter((id) => id.startsWith(family))

/** Everything in a text that looks like such an id, known or not. */
export const inText = (text: string): ReadonlyArray<string> =>
  text.match(new RegExp(`\\b[${Object.keys(families).join("")}]\\d{1,2}\\b`, "g")) ?? []
