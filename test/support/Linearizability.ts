/**
 * What clients of one compare-and-swap register did, and what they were told. A write that got no answer may have taken
 * effect at any time after it was sent, or never (`unknown`); one that was refused did not.
 */
export type Entry =
  | {
      readonly _tag: "Write"
      readonly client: number
      readonly begun: number
      /** Null for one without an answer. */
      readonly ended: number | null
      readonly expected: number | null
      readonly made: number
      readonly outcome: "done" | "refused" | "unknown"
    }
  | {
      readonly _tag: "Read"
      readonly client: number
      readonly begun: number
      readonly ended: number
      readonly found: number | null
    }

export type History = ReadonlyArray<Entry>

/** The register after an entry, when it may come at this point; undefined when what was told then would be wrong. */
const after = (value: number | null, entry: Entry): number | null | undefined => {
  if (entry._tag === "Read") return entry.found === value ? value : undefined
  if (entry.outcome === "refused") return entry.expected === value ? undefined : value
  return entry.expected === value ? entry.made : undefined
}

const isIdle = (entry: Entry) => entry._tag === "Read" || entry.outcome === "refused"

/**
 * An order of all entries in which each is as it was told, and none comes before one that had ended when it was begun;
 * null when there is none. By Wing and Gong, with the states remembered that led nowhere, as Lowe does. `first`: the
 * value before the history, null for none.
 */
export const order = (history: History, first: number | null = null): ReadonlyArray<Entry> | null => {
  const entries = history.toSorted((a, b) => a.begun - b.begun)
  const dead = new Set<string>()
  const taken = new Set<number>()
  const path: Array<Entry> = []
  /** Those before it are all taken, so that a state is told by few numbers. */
  let low = 0

  const search = (value: number | null): boolean => {
    while (taken.has(low)) low += 1
    const began = low
    const open = entries.flatMap((entry, at) => (at < low || taken.has(at) ? [] : [[at, entry] as const]))
    // A write without an answer need not have happened.
    if (open.every(([, entry]) => entry._tag === "Write" && entry.outcome === "unknown")) return true
    const state = `${value}/${low}/${[...taken].filter((at) => at > low).toSorted((a, b) => a - b)}`
    if (dead.has(state)) return false
    const deadline = Math.min(...open.map(([, { ended }]) => ended ?? Number.POSITIVE_INFINITY))
    // Nothing that comes later may come before what ended first.
    const near = open.filter(([, { begun }]) => begun <= deadline)
    // What changes nothing, and may come now, never stands in the way of anything by coming now.
    const idle = near.find(([, entry]) => isIdle(entry) && after(value, entry) !== undefined)
    for (const [at, entry] of idle === undefined ? near : [idle]) {
      const next = after(value, entry)
      if (next === undefined) continue
      taken.add(at)
      path.push(entry)
      if (search(next)) return true
      path.pop()
      taken.delete(at)
      low = began
    }
    dead.add(state)
    return false
  }
  return search(first) ? path : null
}
