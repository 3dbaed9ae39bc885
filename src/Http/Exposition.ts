import { type MetricPair, MetricState } from "effect"

/**
 * Prometheus' text format, version 0.0.4: families in bytewise order of their names, each with HELP and TYPE, and every
 * sample once. https://prometheus.io/docs/instrumenting/exposition_formats/
 */
export const CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

export interface Sample {
  /** Appended to the family's name: `_bucket`, `_sum`, `_count` of a histogram; else nothing. */
  readonly suffix?: string
  readonly labels?: Readonly<Record<string, string>>
  readonly value: number
}

export interface Family {
  readonly name: string
  readonly type: "counter" | "gauge" | "histogram"
  readonly help: string
  readonly samples: ReadonlyArray<Sample>
}

export const gauge = (name: string, help: string, samples: number | ReadonlyArray<Sample>): Family => ({
  name,
  type: "gauge",
  help,
  samples: typeof samples === "number" ? [{ value: samples }] : samples
})

export const counter = (name: string, help: string, value: number): Family => ({
  name,
  type: "counter",
  help,
  samples: [{ value }]
})

/** Families without a sample are left out: a name that says nothing only makes the text longer. */
export const render = (families: ReadonlyArray<Family>): string =>
  families
    .filter(({ samples }) => samples.length > 0)
    .toSorted((a, b) => (a.name < b.name ? -1 : 1))
    .map(
      ({ name, type, help, samples }) =>
        `# HELP ${name} ${escapeHelp(help)}\n# TYPE ${name} ${type}\n${samples.map((one) => line(name, one)).join("")}`
    )
    .join("")

const line = (name: string, { suffix = "", labels = {}, value }: Sample): string => {
  const pairs = Object.entries(labels).map(([key, text]) => `${key}="${escapeLabel(text)}"`)
  return `${name}${suffix}${pairs.length === 0 ? "" : `{${pairs.join(",")}}`} ${number(value)}\n`
}

const escapeHelp = (text: string): string => text.replaceAll("\\", "\\\\").replaceAll("\n", "\\n")
const escapeLabel = (text: string): string => escapeHelp(text).replaceAll('"', '\\"')

const number = (value: number): string => {
  if (Number.isNaN(value)) return "NaN"
  if (Number.isFinite(value)) return String(value)
  return value > 0 ? "+Inf" : "-Inf"
}

/** The registry's instruments whose name begins with `prefix`. */
export const fromRegistry = (
  pairs: ReadonlyArray<MetricPair.MetricPair.Untyped>,
  prefix: string
): ReadonlyArray<Family> => {
  const families = new Map<string, Family & { readonly samples: Array<Sample> }>()
  for (const { metricKey, metricState } of pairs) {
    if (!metricKey.name.startsWith(prefix)) continue
    const read = reading(metricState)
    if (read === null) continue
    const { name } = metricKey
    const help = metricKey.description._tag === "Some" ? metricKey.description.value : ""
    const family = families.get(name) ?? { name, type: read.type, help, samples: [] }
    families.set(name, family)
    const labels = Object.fromEntries(metricKey.tags.map(({ key, value }) => [key, value]))
    for (const sample of read.samples) family.samples.push({ ...sample, labels: { ...labels, ...sample.labels } })
  }
  return [...families.values()]
}

const reading = (
  state: MetricState.MetricState.Untyped
): { readonly type: Family["type"]; readonly samples: ReadonlyArray<Sample> } | null => {
  if (MetricState.isCounterState(state)) return { type: "counter", samples: [{ value: Number(state.count) }] }
  if (MetricState.isGaugeState(state)) return { type: "gauge", samples: [{ value: Number(state.value) }] }
  if (!MetricState.isHistogramState(state)) return null
  const buckets = [...state.buckets].map(([bound, count]) => ({
    suffix: "_bucket",
    labels: { le: number(bound) },
    value: count
  }))
  const sums = [
    { suffix: "_sum", value: state.sum },
    { suffix: "_count", value: state.count }
  ]
  return { type: "histogram", samples: [...buckets, ...sums] }
}
