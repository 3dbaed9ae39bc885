/** One line of the table: what was measured, against what within the same run, and what the ratio may be. */
export interface Measure {
  readonly name: string
  readonly measured: string
  readonly against: string
  readonly ratio: number
  /** The ratio must not be larger; null where the number is only shown. */
  readonly bound: number | null
  /** The ratio must not be smaller, where that is what counts. */
  readonly at_least?: number
}

export const median = (values: ReadonlyArray<number>): number => {
  const sorted = [...values].sort((a, b) => a - b)
  const middle = Math.trunc(sorted.length / 2)
  const upper = sorted[middle] ?? Number.NaN
  return sorted.length % 2 === 1 ? upper : (upper + (sorted[middle - 1] ?? Number.NaN)) / 2
}

/** Medians of several works in ms, run in turn `rounds` times, so that whatever else the machine does hits them alike. */
export const alternately = <const Names extends string>(
  rounds: number,
  works: Readonly<Record<Names, () => unknown>>
): Readonly<Record<Names, number>> => {
  const names = Object.keys(works) as Array<Names>
  const times = new Map<Names, Array<number>>(names.map((name) => [name, []]))
  // The first round warms the compiler up and does not count.
  for (let round = 0; round <= rounds; round++) {
    for (const name of names) {
      const begin = performance.now()
      works[name]()
      if (round > 0) times.get(name)?.push(performance.now() - begin)
    }
  }
  return Object.fromEntries(names.map((name) => [name, median(times.get(name) ?? [])])) as Record<Names, number>
}

/** The value below which this share of all values lies. */
export const quantile = (values: ReadonlyArray<number>, share: number): number => {
  const sorted = [...values].sort((a, b) => a - b)
  return sorted[Math.min(sorted.length - 1, Math.trunc(sorted.length * share))] ?? Number.NaN
}

export const holds = ({ at_least, bound, ratio }: Measure): boolean =>
  (bound === null || ratio <= bound) && (at_least === undefined || ratio >= at_least)

export const table = (measures: ReadonlyArray<Measure>): string => {
  const rows = [
    ["measure", "measured", "against", "ratio", "bound", ""],
    ...measures.map((one) => [
      one.name,
      one.measured,
      one.against,
      one.ratio.toFixed(2),
      boundOf(one),
      boundOf(one) === "–" ? "" : holds(one) ? "holds" : "MISSED"
    ])
  ]
  const widths = rows[0]?.map((_, column) => Math.max(...rows.map((row) => row[column]?.length ?? 0))) ?? []
  const line = (row: ReadonlyArray<string>) => `| ${row.map((cell, at) => cell.padEnd(widths[at] ?? 0)).join(" | ")} |`
  const [head = [], ...body] = rows
  return [line(head), line(widths.map((width) => "-".repeat(width))), ...body.map(line)].join("\n")
}

const boundOf = ({ at_least, bound }: Measure): string =>
  at_least !== undefined ? `≥ ${at_least.toFixed(2)}` : bound === null ? "–" : `≤ ${bound}`
