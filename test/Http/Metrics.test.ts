import type { Inventory } from "../../schema/Inventory.ts"
import { assert, describe, it } from "@effect/vitest"
import { Effect, Exit, Metric, Schedule } from "effect"
import * as Instruments from "../../reconciler/Metrics.ts"
import * as Views from "../../reconciler/View.ts"
import type { Status } from "../../schema/Condition.ts"
import { Timestamp, type Uid, VolumeId } from "../../schema/Ids.ts"
import { unread, type Verification } from "../../schema/Inventory.ts"
import type { Operation, OperationStatus, OperationType, Phase } from "../../schema/Operation.ts"
import * as Exposition from "../../src/Http/Exposition.ts"
import * as Metrics from "../../src/Http/Metrics.ts"
import { operationId, uidOf } from "../support/Worlds.ts"
import * as Site from "./Site.ts"
import { appliance, emptyInventory, send, start } from "./support.ts"

interface Sample {
  readonly name: string
  readonly labels: Readonly<Record<string, string>>
  readonly value: number
}

interface Family {
  readonly name: string
  readonly type: string
  readonly help: string
  readonly samples: Array<Sample>
}

const VALUE = String.raw`(?:[+-]?Inf|NaN|-?[0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?)`
const PAIR = String.raw`[a-z_][a-z0-9_]*="(?:[^"\\\n]|\\[\\"n])*"`
const SAMPLE = new RegExp(String.raw`^([a-z_][a-z0-9_]*)(?:\{(${PAIR}(?:,${PAIR})*)\})? (${VALUE})$`)

const numberOf = (text: string) => (text === "+Inf" ? Infinity : text === "-Inf" ? -Infinity : Number(text))
const escapes: Readonly<Record<string, string>> = { "\\\\": "\\", '\\"': '"', "\\n": "\n" }
const unescaped = (text: string) => text.replaceAll(/\\[\\"n]/g, (found) => escapes[found] ?? found)

/** The text format by its own grammar, strictly: every line is HELP, then TYPE, then samples of that very family. */
const parse = (text: string): ReadonlyMap<string, Family> => {
  assert.isTrue(text.endsWith("\n"), "the last line ends too")
  const families = new Map<string, Family>()
  let current: Family | null = null
  let help: readonly [string, string] | null = null
  for (const line of text.slice(0, -1).split("\n")) {
    const [, helped, words] = /^# HELP ([a-z_][a-z0-9_]*) (.*)$/.exec(line) ?? []
    const [, typed, type] = /^# TYPE ([a-z_][a-z0-9_]*) (counter|gauge|histogram)$/.exec(line) ?? []
    if (helped !== undefined && words !== undefined) {
      assert.isNull(help, line)
      help = [helped, words]
    } else if (typed !== undefined && type !== undefined) {
      assert.strictEqual(help?.[0], typed, "TYPE follows its own HELP")
      assert.isFalse(families.has(typed), `${typed} comes once`)
      current = { name: typed, type, help: help?.[1] ?? "", samples: [] }
      families.set(typed, current)
      help = null
    } else {
      const [, name = "", pairs = "", value = ""] = SAMPLE.exec(line) ?? assert.fail(`no sample: ${line}`)
      const suffixes = current?.type === "histogram" ? ["_bucket", "_sum", "_count"] : [""]
      assert.isTrue(
        suffixes.some((suffix) => name === `${current?.name}${suffix}`),
        line
      )
      const labels = [...pairs.matchAll(/([a-z_][a-z0-9_]*)="((?:[^"\\]|\\.)*)"/g)].map(
        ([, key = "", text = ""]): [string, string] => [key, unescaped(text)]
      )
      assert.strictEqual(new Set(labels.map(([key]) => key)).size, labels.length, line)
      current?.samples.push({ name, labels: Object.fromEntries(labels), value: numberOf(value) })
    }
  }
  return families
}

const keyOf = ({ name, labels }: Sample) => `${name}${JSON.stringify(Object.entries(labels).toSorted())}`

const assertHistogram = ({ name, samples }: Family) => {
  const series = new Map<string, Array<Sample>>()
  for (const sample of samples) {
    const { le: _, ...labels } = sample.labels
    const key = JSON.stringify(labels)
    series.set(key, [...(series.get(key) ?? []), sample])
  }
  for (const [key, own] of series) {
    const buckets = own.filter((one) => one.name === `${name}_bucket`)
    const bounds = buckets.map(({ labels }) => numberOf(labels["le"] ?? ""))
    assert.deepStrictEqual(
      bounds,
      bounds.toSorted((a, b) => a - b),
      key
    )
    assert.strictEqual(bounds.at(-1), Infinity, key)
    const counts = buckets.map(({ value }) => value)
    assert.deepStrictEqual(
      counts,
      counts.toSorted((a, b) => a - b),
      `${name} ${key} is cumulative`
    )
    assert.strictEqual(own.find((one) => one.name === `${name}_count`)?.value, counts.at(-1))
    assert.strictEqual(own.filter((one) => one.name === `${name}_sum`).length, 1)
  }
}

/** https://prometheus.io/docs/practices/naming/, as far as it can be checked without knowing what is measured. */
const lint = ({ name, type, help, samples }: Family): ReadonlyArray<string> => [
  ...(/^(?:volumed|process|nodejs)_/.test(name) ? [] : ["has no prefix"]),
  ...((type === "counter") === name.endsWith("_total") ? [] : ["counters end in _total, and nothing else does"]),
  ...(/_(?:count|sum|bucket)$/.test(name) ? ["ends like a part of a histogram"] : []),
  ...(/_(?:ms|milliseconds?|minutes?|hours?|kilobytes?|kb|mb|gib|percent)(?:_|$)/.test(name) ? ["no base unit"] : []),
  ...(new RegExp(`_${type}(?:_|$)`).test(name) ? ["names its type"] : []),
  ...(type === "histogram" && !/_(?:seconds|bytes)$/.test(name) ? ["a histogram without a unit"] : []),
  ...(/^[A-Z0-9].*\.$/.test(help) ? [] : ["its help is no sentence"]),
  ...samples.flatMap(({ labels }) =>
    Object.values(labels).flatMap((value) =>
      /[0-9a-f]{8}-[0-9a-f]{4}|[/\n]/.test(value) ? [`a label with an id or a path: ${value}`] : []
    )
  )
]

const scrape = ({ url }: { readonly url: string }) =>
  Effect.promise(async () => {
    const response = await fetch(`${url}/metrics`)
    return { status: response.status, type: response.headers.get("content-type"), text: await response.text() }
  })

const valueOf = (families: ReadonlyMap<string, Family>, name: string, labels: Readonly<Record<string, string>> = {}) =>
  [...families.values()]
    .flatMap(({ samples }) => samples)
    .find((one) => one.name === name && Object.entries(labels).every(([key, value]) => one.labels[key] === value))
    ?.value ?? 0

const verification = (name: string, outcome: Verification["outcome"]): Verification => ({
  name,
  outcome,
  size: null,
  read_only: null,
  device: null,
  verified_at: 1_000,
  message: null
})

const read = emptyInventory.nbd._tag === "Known" ? emptyInventory.nbd : assert.fail("the fixture is read")

const serving = {
  ...emptyInventory,
  nbd: {
    ...read,
    value: {
      ...read.value,
      sections: ["a", "b", "c"].map((name) => ({
        name,
        path: null,
        read_only: false,
        file: null,
        device: null,
        obstacle: null,
        unfinished: null,
        fenced_at: null
      })),
      verifications: [verification("a", "served"), verification("b", "denied")]
    }
  }
} satisfies Inventory

const operation = (
  n: number,
  type: OperationType,
  status: OperationStatus,
  phase: Phase,
  seconds: number | null
): Operation => ({
  id: operationId(n),
  type,
  status,
  volume_id: "",
  vm_id: null,
  request: {},
  response: null,
  error: null,
  created_at: "2026-03-01T12:00:00.000Z",
  updated_at: "2026-03-01T12:00:00.000Z",
  completed_at: seconds === null ? null : new Date(Date.parse("2026-03-01T12:00:00Z") + seconds * 1000).toISOString(),
  name: "a",
  uid: uidOf(n),
  cause: "declaration",
  actor: "tester",
  generation: 1,
  phase,
  job_id: null,
  attempts: 1,
  parent_id: null,
  destructive: false,
  submitted_at: null,
  expires_at: null,
  wish: null,
  deadline_at: null
})

describe("GET /metrics", () => {
  it.scopedLive("is Prometheus text that a strict parser takes, with names by the rules and no ids in labels", () =>
    Effect.gen(function* () {
      const server = yield* start()
      server.world.inventory = serving
      yield* Instruments.passing("full")(Effect.void)
      yield* Instruments.observed(serving)
      yield* Instruments.queued(3, 1)
      yield* Instruments.recorded(operation(1, "attach", "completed", "settled", 4))
      yield* Instruments.loaded(Exit.void)
      yield* Instruments.calling("listVolumes")(Effect.succeed({ status: 200 }))
      yield* Instruments.undecodable("listVolumes")
      yield* Metrics.observeRequest("getVolume", 200, 12)
      yield* Metrics.observeRequest(null, 404, 1)
      const { status, type, text } = yield* scrape(server)
      assert.strictEqual(status, 200)
      assert.strictEqual(type, "text/plain; version=0.0.4; charset=utf-8")
      const families = parse(text)
      for (const family of families.values()) {
        assert.deepStrictEqual(lint(family), [], family.name)
        const keys = family.samples.map(keyOf)
        assert.strictEqual(new Set(keys).size, keys.length, `${family.name} has no series twice`)
        if (family.type === "histogram") assertHistogram(family)
        if (family.type === "counter") for (const { value } of family.samples) assert.isAtLeast(value, 0)
      }
      assert.includeMembers(
        [...families.keys()],
        [
          "volumed_build_info",
          "volumed_passes_total",
          "volumed_pass_duration_seconds",
          "volumed_actions_total",
          "volumed_operation_duration_seconds",
          "volumed_queue_length",
          "volumed_backoff_volumes",
          "volumed_cloudstack_requests_total",
          "volumed_cloudstack_request_duration_seconds",
          "volumed_observation_age_seconds",
          "volumed_observation_complete",
          "volumed_nbd_loads_total",
          "volumed_nbd_verifications_total",
          "volumed_exports",
          "volumed_http_requests_total",
          "volumed_http_request_duration_seconds",
          "volumed_held_actions",
          "volumed_hold",
          "volumed_maintenance",
          "volumed_leader",
          "process_cpu_seconds_total",
          "process_resident_memory_bytes",
          "process_start_time_seconds",
          "nodejs_eventloop_lag_seconds"
        ]
      )
      assert.strictEqual(valueOf(families, "volumed_build_info", { version: "0.0.0-test" }), 1)
    })
  )

  it.scopedLive("counts what happened, under the outcome that it had", () =>
    Effect.gen(function* () {
      const server = yield* start()
      const families = Effect.map(scrape(server), ({ text }) => parse(text))
      const before = yield* families
      yield* Instruments.recorded(operation(1, "attach", "completed", "settled", 4))
      yield* Instruments.recorded(operation(2, "attach", "failed", "settled", 2))
      yield* Instruments.recorded(operation(3, "attach", "failed", "refused", 0))
      yield* Instruments.recorded(operation(4, "attach", "cancelled", "refused", 0))
      yield* Instruments.recorded(operation(5, "attach", "executing", "submitted", null))
      yield* Instruments.recorded(operation(6, "attach", "executing", "accepted", null))
      yield* Effect.exit(Instruments.passing("partial")(Effect.fail("the database is away")))
      yield* Effect.exit(Instruments.calling("attachVolume")(Effect.fail({ kind: "timeout" } as const)))
      yield* Instruments.observed(serving)
      const after = yield* families
      const grown = (name: string, labels: Readonly<Record<string, string>>) =>
        valueOf(after, name, labels) - valueOf(before, name, labels)
      for (const outcome of ["settled", "not_done", "refused", "cancelled", "unknown"]) {
        assert.strictEqual(grown("volumed_actions_total", { type: "attach", outcome }), 1, outcome)
      }
      assert.strictEqual(grown("volumed_operation_duration_seconds_count", { type: "attach" }), 4)
      assert.strictEqual(grown("volumed_operation_duration_seconds_sum", { type: "attach" }), 6)
      assert.strictEqual(grown("volumed_passes_total", { kind: "partial", outcome: "failed" }), 1)
      assert.strictEqual(grown("volumed_cloudstack_requests_total", { command: "attachVolume", code: "timeout" }), 1)
      assert.strictEqual(grown("volumed_nbd_verifications_total", { outcome: "served" }), 1)
      assert.strictEqual(grown("volumed_nbd_verifications_total", { outcome: "denied" }), 1)
    })
  )

  it.scopedLive("tells how old the newest whole reading of a source is, also while the source cannot be read", () =>
    Effect.gen(function* () {
      const server = yield* start()
      const { cloud } = emptyInventory
      assert.strictEqual(cloud._tag, "Known")
      yield* Instruments.observed({ ...emptyInventory, cloud: { ...cloud, started_at: Date.now() - 90_000 } as never })
      server.world.inventory = { ...emptyInventory, cloud: unread(Date.now(), "timeout", "no answer") }
      const families = parse((yield* scrape(server)).text)
      const age = valueOf(families, "volumed_observation_age_seconds", { source: "cloudstack" })
      assert.isAtLeast(age, 90)
      assert.isBelow(age, 90 + 60)
      assert.strictEqual(valueOf(families, "volumed_observation_complete", { source: "cloudstack" }), 0)
      assert.strictEqual(valueOf(families, "volumed_observation_complete", { source: "guest" }), 1)
    })
  )

  it.scopedLive("shows exports, the hold and a maintenance as they are, and leaves out what the database hides", () =>
    Effect.gen(function* () {
      const server = yield* start()
      server.world.inventory = serving
      server.world.hold = "array work"
      server.world.maintenance = { reason: "x", by: "me", since: "2026-03-01T12:00:00Z", until: null, ending: false }
      const held = parse((yield* scrape(server)).text)
      for (const state of ["served", "denied", "unverified"]) {
        assert.strictEqual(valueOf(held, "volumed_exports", { state }), 1, state)
      }
      assert.strictEqual(valueOf(held, "volumed_hold"), 1)
      assert.strictEqual(valueOf(held, "volumed_maintenance"), 1)
      server.world.databaseDown = true
      const down = yield* scrape(server)
      assert.strictEqual(down.status, 200)
      assert.isFalse(parse(down.text).has("volumed_maintenance"))
    })
  )

  it("counts 10,000 declarations by condition, in a few lines (S22)", () => {
    const status = (n: number): Status => ({
      observed_generation: 1,
      volume_id: null,
      volume_name: null,
      volume_state: null,
      size: null,
      attached_to: null,
      by_id_path: null,
      kernel_path: null,
      export: null,
      conditions: (["Provisioned", "Attached", "DevicePresent", "Exported", "Ready"] as const).map((type) => ({
        type,
        status: type === "Ready" && n % 4 === 0 ? "False" : "True",
        reason: "Observed",
        category: null,
        message: "",
        suggestion: null,
        observed_generation: 1,
        last_transition_time: Timestamp.make("2026-03-01T12:00:00Z")
      })),
      next_actions: [],
      last_operation_id: null,
      retry_at: null
    })
    const statuses = new Map(Array.from({ length: 10_000 }, (_, n): [Uid, Status] => [uidOf(n), status(n)]))
    const families = Metrics.ofView({ ...Views.blank, statuses })
    const text = Exposition.render(families)
    const parsed = parse(text)
    assert.strictEqual(valueOf(parsed, "volumed_declarations", { condition: "Ready", status: "False" }), 2_500)
    assert.strictEqual(valueOf(parsed, "volumed_declarations", { condition: "Ready", status: "True" }), 7_500)
    assert.strictEqual(valueOf(parsed, "volumed_declarations", { condition: "Exported", status: "True" }), 10_000)
    assert.strictEqual(valueOf(parsed, "volumed_declared_volumes"), 10_000)
    assert.isBelow(text.length, 2_000)
  })
})

describe("the metrics of a whole daemon", () => {
  it.scopedLive("tell of its passes, actions, readings and calls, and that its heart beats (L5)", () =>
    Effect.gen(function* () {
      const site = yield* Site.start
      const daemon = yield* site.daemon
      const families = Effect.map(scrape(daemon), ({ text }) => parse(text))
      const before = yield* families
      const since = yield* Instruments.heartbeat
      yield* daemon.client.put("a", { size: "1GiB", attached_to: "appliance", export_wanted: true })
      const exported = Effect.map(families, (after) => {
        const grown = (name: string, labels: Readonly<Record<string, string>> = {}) =>
          valueOf(after, name, labels) - valueOf(before, name, labels)
        return {
          done: (["create", "attach", "export"] as const).map((type) =>
            grown("volumed_actions_total", { type, outcome: "settled" })
          ),
          timed: grown("volumed_operation_duration_seconds_count", { type: "create" }),
          passes: grown("volumed_passes_total", { outcome: "completed" }) > 0,
          loads: grown("volumed_nbd_loads_total", { outcome: "loaded" }),
          served: grown("volumed_nbd_verifications_total", { outcome: "served" }) > 0,
          called: grown("volumed_cloudstack_requests_total", { command: "attachVolume", code: "200" }),
          ready: valueOf(after, "volumed_declarations", { condition: "Ready", status: "True" }),
          exports: valueOf(after, "volumed_exports", { state: "served" })
        }
      })
      const seen = yield* exported.pipe(
        Effect.filterOrFail(({ ready }) => ready === 1),
        Effect.retry({ schedule: Schedule.spaced("50 millis"), times: 400 })
      )
      assert.deepStrictEqual(seen, {
        done: [1, 1, 1],
        timed: 1,
        passes: true,
        loads: 1,
        served: true,
        called: 1,
        ready: 1,
        exports: 1
      })
      assert.isAbove(yield* Instruments.heartbeat, since)
      const after = yield* families
      for (const source of ["cloudstack", "guest", "nbd"]) {
        assert.isBelow(valueOf(after, "volumed_observation_age_seconds", { source }), 60, source)
        assert.strictEqual(valueOf(after, "volumed_observation_complete", { source }), 1, source)
      }
    })
  )
})

describe("GET /api/v1/metrics", () => {
  it.scopedLive("has every type and status that the old daemon had, with true numbers", () =>
    Effect.gen(function* () {
      const { url, world } = yield* start()
      const read = Effect.map(send(`${url}/api/v1/metrics`), ({ body }) => body)
      const nothing = yield* read
      assert.deepInclude(nothing, {
        total_operations: 0,
        pending_operations: 0,
        active_mappings: 0,
        operations_by_type: { create: 0, attach: 0, detach: 0, delete: 0 },
        operations_by_status: { pending: 0, executing: 0, completed: 0, failed: 0, cancelled: 0 },
        average_response_time_ms: 0,
        error_rate_percent: 0
      })
      assert.match(String(nothing["timestamp"]), /^\d{4}-\d{2}-\d{2}T[\d:.]+Z$/)
      world.operations = [
        operation(1, "create", "completed", "settled", 2),
        operation(2, "attach", "completed", "settled", 5),
        operation(3, "attach", "failed", "refused", 1),
        operation(4, "export", "pending", "intended", null)
      ]
      world.mappings = [
        {
          id: "1",
          volume_id: VolumeId.make("c6ef61d1-300f-442a-86e5-000000000001"),
          vm_id: appliance,
          device_path: "/dev/disk/by-id/virtio-c6ef61d1-300f-442a-8",
          size: 1,
          last_sync: "2026-03-01T12:00:00Z",
          created_at: "2026-03-01T12:00:00Z",
          updated_at: "2026-03-01T12:00:00Z"
        }
      ]
      assert.deepInclude(yield* read, {
        total_operations: 4,
        pending_operations: 1,
        active_mappings: 1,
        operations_by_type: { create: 1, attach: 2, detach: 0, delete: 0, export: 1 },
        operations_by_status: { pending: 1, executing: 0, completed: 2, failed: 1, cancelled: 0 },
        average_response_time_ms: 3500,
        error_rate_percent: 33.33
      })
    })
  )
})

describe("the text format", () => {
  it("escapes what would end a line or a label, and writes the numbers that JSON has none for", () => {
    const text = Exposition.render([
      Exposition.gauge("volumed_b", 'back\\slash, "quotes"\nand lines.', [
        { labels: { text: 'a"b\\c\nd' }, value: Infinity },
        { labels: { text: "e" }, value: NaN },
        { labels: { text: "f" }, value: -1e21 }
      ]),
      Exposition.gauge("volumed_a", "First.", 1),
      Exposition.gauge("volumed_c", "Nothing to say.", [])
    ])
    assert.strictEqual(
      text,
      [
        "# HELP volumed_a First.",
        "# TYPE volumed_a gauge",
        "volumed_a 1",
        String.raw`# HELP volumed_b back\\slash, "quotes"\nand lines.`,
        "# TYPE volumed_b gauge",
        String.raw`volumed_b{text="a\"b\\c\nd"} +Inf`,
        'volumed_b{text="e"} NaN',
        'volumed_b{text="f"} -1e+21',
        ""
      ].join("\n")
    )
    assert.strictEqual(parse(text).get("volumed_b")?.samples[0]?.labels["text"], 'a"b\\c\nd')
  })
})

describe("instruments", () => {
  it.effect("have a bounded number of series, whatever a peer invents (S22)", () =>
    Effect.gen(function* () {
      for (let code = 1_000; code < 3_000; code += 1) {
        yield* Instruments.calling("listVolumes")(Effect.succeed({ status: code }))
      }
      const [family] = Exposition.fromRegistry(yield* Metric.snapshot, "volumed_cloudstack_requests_total")
      assert.isBelow(family?.samples.length ?? Infinity, 600)
      const others = family?.samples.find(({ labels }) => labels?.["code"] === "other")
      assert.isAbove(others?.value ?? 0, 1_000)
    })
  )
})
