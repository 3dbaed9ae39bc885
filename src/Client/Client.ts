import { Effect, Schema } from "effect"
import * as Api from "../../schema/Api.ts"
import * as Completion from "./Completion.ts"
import { type Answer, type Call, decodeAs, exchange, type Options } from "./Exchange.ts"
import type { Failure } from "./Failure.ts"
import * as Watch from "./Watch.ts"

/** A document as the YAML or JSON file says it: plain values, checked by the server. */
export interface ApplyRequest {
  readonly set?: unknown
  readonly volumes?: unknown
  readonly take_over?: boolean
  readonly prune?: boolean
}

/** Members of a declaration; those left out stay as they are, or get their defaults. */
export type SpecInput = typeof Api.SpecBody.Encoded

/** A JSON merge patch goes into nested members, too: `null` takes one away. */
export interface SpecPatch extends Omit<SpecInput, "paused" | "metadata"> {
  readonly paused?: { readonly reason?: string; readonly by?: string; readonly until?: string | null } | null
  readonly metadata?: Readonly<Record<string, string | null>> | null
}

export interface Page {
  /** At most 1000; 100 unless told. */
  readonly limit?: number
  /** `next_cursor` or `next` of the page before. */
  readonly cursor?: string
}

/** One page of a list whose answer is a bare array. */
export interface Paged<A> {
  readonly items: ReadonlyArray<A>
  /** Cursor of the next page, null on the last one. */
  readonly next: string | null
}

export interface ListFilter extends Page {
  /** For example `Ready:False`. */
  readonly condition?: string
  readonly volume_id?: string
  readonly attached_to?: string
  readonly set?: string
  readonly paused?: boolean
  /** Those whose removal was finished within 30 days, instead of the living. */
  readonly removed?: boolean
  readonly metadata?: Readonly<Record<string, string>>
}

export interface OperationFilter extends Page {
  readonly status?: string
  readonly type?: string
  readonly volume_id?: string
  readonly vm_id?: string
  readonly name?: string
  /** The operations that this version 1 call caused. */
  readonly parent_id?: string
  /** RFC 3339. */
  readonly since?: string
}

export interface EventFilter extends Page {
  /** Only events with a greater id. */
  readonly after?: number
  /** RFC 3339, as `until`. */
  readonly since?: string
  readonly until?: string
  readonly name?: string
  readonly actor?: string
  readonly kind?: string
}

/** Answer when the condition holds, at the latest after the time: look at the answer's conditions to tell which. */
export interface Wait {
  /** For example `Ready:True`. */
  readonly condition: string
  /** The server holds an answer back for at most 240 s; ask again to wait longer. */
  readonly timeoutSeconds: number
}

export interface WriteOptions {
  /** Made for each write unless given: give one to make a write that may have been stored again yourself. */
  readonly idempotencyKey?: string
}

export interface ConditionalWrite extends WriteOptions {
  /** Refused with 412 unless the declaration is at this generation. */
  readonly ifMatch?: number
  /** Refused with 412 when the name is declared already. */
  readonly ifNew?: boolean
}

export interface Removal extends WriteOptions {
  /** Instead of the declaration's own. */
  readonly policy?: string
  readonly wait?: Wait
  readonly ifMatch?: number
}

const waitQuery = (wait: Wait | undefined) =>
  wait === undefined ? {} : { wait: wait.condition, timeout: `${wait.timeoutSeconds}s` }

const waited = (wait: Wait | undefined) => (wait === undefined ? {} : { waitSeconds: wait.timeoutSeconds })

const headersOf = (write: ConditionalWrite = {}): Record<string, string> => ({
  ...(write.ifMatch === undefined ? {} : { "if-match": `"${write.ifMatch}"` }),
  ...(write.ifNew === true ? { "if-none-match": "*" } : {}),
  ...(write.idempotencyKey === undefined ? {} : { "idempotency-key": write.idempotencyKey })
})

const in_ = (room: string, id: string, act = "") => `${room}/${encodeURIComponent(id)}${act === "" ? "" : `/${act}`}`
const named = (name: string, act?: string) => in_("/api/v2/volumes", name, act)
const v1Volume = (id: string, act?: string) => in_("/api/v1/volumes", id, act)

const filterQuery = ({ metadata, ...rest }: ListFilter) => ({
  ...rest,
  ...Object.fromEntries(Object.entries(metadata ?? {}).map(([key, value]) => [`metadata.${key}`, value]))
})

const dryRun = { dry_run: true }

/** The API as functions, one a route. Answers are decoded by the contract's own schemas. */
export const make = (options: Options) => {
  const answer = (call: Call) => exchange(options, call)
  const call = <A, I>(schema: Schema.Schema<A, I>, request: Call): Effect.Effect<A, Failure> =>
    Effect.flatMap(answer(request), (found) => decodeAs(options, schema, found))
  const get = <A, I>(schema: Schema.Schema<A, I>, path: string, query: Call["query"] = {}) =>
    call(schema, { method: "GET", path, query })
  const list = <A, I>(schema: Schema.Schema<A, I>, path: string, query: Call["query"]) =>
    Effect.flatMap(answer({ method: "GET", path, ...(query === undefined ? {} : { query }) }), (found: Answer) =>
      Effect.map(decodeAs(options, Schema.Array(schema), found), (items): Paged<A> => ({
        items,
        next: found.headers.get("next-cursor")
      }))
    )
  const write = <A, I>(
    schema: Schema.Schema<A, I>,
    method: Exclude<Call["method"], "GET">,
    path: string,
    body?: unknown,
    how?: ConditionalWrite
  ) => call(schema, { method, path, body, headers: headersOf(how), writes: true })
  /** What the write would store and cause. */
  const dry = (
    method: Exclude<Call["method"], "GET">,
    path: string,
    body?: unknown,
    query: Call["query"] = {},
    how?: ConditionalWrite
  ) => call(Api.DryRun, { method, path, body, query: { ...query, ...dryRun }, headers: headersOf(how) })

  const text = (path: string) => Effect.map(answer({ method: "GET", path }), (found) => found.text)
  /** An answer that says "no" is an answer, not a failure. */
  const state = <A, I>(schema: Schema.Schema<A, I>, path: string) =>
    call(schema, { method: "GET", path, accept: [503] })

  const operation = (id: string, waitSeconds?: number) =>
    call(Api.OperationAnswer, {
      method: "GET",
      path: in_("/api/v1/operations", id),
      ...(waitSeconds === undefined ? {} : { query: { wait: `${waitSeconds}s` }, waitSeconds })
    })
  const volume = (name: string, wait?: Wait, also: { readonly removed?: boolean } = {}) =>
    call(Api.Volume, {
      method: "GET",
      path: named(name),
      query: { ...waitQuery(wait), ...also },
      ...waited(wait)
    })
  const events = ({ after, ...filter }: EventFilter = {}) => get(Api.EventList, "/api/v2/events", { ...filter, after })

  return {
    /** An unhealthy server's answer is an answer, not a failure. */
    health: state(Api.Health, "/health"),
    live: state(Api.Probe, "/livez"),
    ready: state(Api.Probe, "/readyz"),
    /** The server's own description of its API (OpenAPI). */
    description: get(Schema.Record({ key: Schema.String, value: Schema.Unknown }), "/openapi.json"),
    /** For Prometheus. */
    metrics: text("/metrics"),

    volumes: (filter: ListFilter = {}) => get(Api.VolumeList, "/api/v2/volumes", filterQuery(filter)),
    /** Attached volumes that nobody declared. */
    unmanaged: (filter: Page = {}) => get(Api.UnmanagedList, "/api/v2/volumes", { ...filter, unmanaged: true }),
    volume,
    put: (name: string, spec: SpecInput, how?: ConditionalWrite) => write(Api.Volume, "PUT", named(name), spec, how),
    putDryRun: (name: string, spec: SpecInput, how?: ConditionalWrite) => dry("PUT", named(name), spec, {}, how),
    /** A JSON merge patch: `null` makes a member absent. */
    patch: (name: string, patch: SpecPatch, how?: ConditionalWrite) =>
      write(Api.Volume, "PATCH", named(name), patch, how),
    patchDryRun: (name: string, patch: SpecPatch, how?: ConditionalWrite) => dry("PATCH", named(name), patch, {}, how),
    delete: (name: string, { policy, wait, ...how }: Removal = {}) =>
      call(Api.Volume, {
        method: "DELETE",
        path: named(name),
        query: { policy, ...waitQuery(wait) },
        headers: headersOf(how),
        writes: true,
        ...waited(wait)
      }),
    deleteDryRun: (name: string, policy?: string) => dry("DELETE", named(name), undefined, { policy }),
    undelete: (name: string, how?: WriteOptions) => write(Api.Volume, "POST", named(name, "undelete"), undefined, how),
    undeleteDryRun: (name: string) => dry("POST", named(name, "undelete")),
    /** What is observed becomes the wish. */
    accept: (name: string, how?: ConditionalWrite) => write(Api.Volume, "POST", named(name, "accept"), undefined, how),
    acceptDryRun: (name: string, how?: ConditionalWrite) => dry("POST", named(name, "accept"), undefined, {}, how),
    /** Ends the backoff, and with `end_clients` the NBD clients that hold the volume. */
    retry: (name: string, body: typeof Api.RetryBody.Encoded = {}, how?: ConditionalWrite) =>
      write(Api.Volume, "POST", named(name, "retry"), body, how),
    retryDryRun: (name: string, body: typeof Api.RetryBody.Encoded = {}) => dry("POST", named(name, "retry"), body),

    apply: (request: ApplyRequest, how?: WriteOptions) => write(Api.Applied, "POST", "/api/v2/apply", request, how),
    applyDryRun: (request: ApplyRequest) => dry("POST", "/api/v2/apply", request),
    /** The plan for a candidate document; nothing is stored. */
    planFor: (request: ApplyRequest) => call(Api.DryRun, { method: "POST", path: "/api/v2/plan", body: request }),
    /** The plan for what is declared. */
    plan: get(Api.PlanAnswer, "/api/v2/plan"),
    approve: (digest: string, how?: WriteOptions) =>
      write(Api.Approved, "POST", "/api/v2/plan/approve", { digest }, how),
    approveDryRun: (digest: string) => dry("POST", "/api/v2/plan/approve", { digest }),
    drift: get(Api.Drift, "/api/v2/drift"),
    maintenance: get(Api.MaintenanceAnswer, "/api/v2/maintenance"),
    beginMaintenance: (body: typeof Api.MaintenanceBody.Encoded, how?: WriteOptions) =>
      write(Api.MaintenanceAnswer, "PUT", "/api/v2/maintenance", body, how),
    beginMaintenanceDryRun: (body: typeof Api.MaintenanceBody.Encoded) => dry("PUT", "/api/v2/maintenance", body),
    endMaintenance: write(Api.MaintenanceAnswer, "DELETE", "/api/v2/maintenance"),
    endMaintenanceDryRun: dry("DELETE", "/api/v2/maintenance"),
    offerings: get(Api.OfferingList, "/api/v2/offerings"),

    events,
    /** What happens, as it happens and without a gap, for as long as it is read. */
    watch: (filter: Watch.Filter = {}) => Watch.events(options, filter, events),

    operations: (filter: OperationFilter = {}) => list(Api.OperationAnswer, "/api/v1/operations", { ...filter }),
    operation,
    cancel: (id: string, how?: WriteOptions) =>
      write(Api.OperationAnswer, "POST", in_("/api/v1/operations", id, "cancel"), undefined, how),
    /** The operation's end: its row when it completed, else `OperationFailed`, `OperationCancelled`, `OperationTimedOut`. */
    waitForCompletion: (of: Api.OperationAnswer | string, wait: Completion.Options = {}) =>
      Completion.ofOperation(operation, of, wait),
    /** The declaration when the condition holds, such as `Ready:True`; else `ConditionTimedOut`. */
    waitForCondition: (name: string, condition: Completion.Condition, wait: Completion.Options = {}) =>
      Completion.ofCondition(volume, name, condition, wait),

    exports: get(Api.Exports, "/api/v1/exports"),
    export: (volumeId: string) => get(Api.ExportAnswer, in_("/api/v1/exports", volumeId)),

    /** A full pass now; answers when it has run. */
    forceSync: write(Api.SyncAnswer, "POST", "/api/v1/admin/force-sync"),

    /** The old daemon's calls, by CloudStack's ids. Each write answers an operation to wait for. */
    v1: {
      volumes: (filter: Page & { readonly name?: string; readonly vm_id?: string } = {}) =>
        list(Api.V1Volume, "/api/v1/volumes", { ...filter }),
      volume: (id: string) => get(Api.V1Volume, v1Volume(id)),
      create: (body: typeof Api.V1CreateBody.Encoded, how?: WriteOptions) =>
        write(Api.OperationAnswer, "POST", "/api/v1/volumes", body, how),
      attach: (id: string, vm_id: string, how?: WriteOptions) =>
        write(Api.OperationAnswer, "POST", v1Volume(id, "attach"), { vm_id }, how),
      /** As device 0 of a stopped VM without a root volume. */
      attachRoot: (id: string, vm_id: string, how?: WriteOptions) =>
        write(Api.OperationAnswer, "POST", v1Volume(id, "attach-root"), { vm_id }, how),
      detach: (id: string, how?: WriteOptions) =>
        write(Api.OperationAnswer, "POST", v1Volume(id, "detach"), undefined, how),
      /** The volume goes at once: the call is the consent. */
      delete: (id: string, how?: WriteOptions) => write(Api.OperationAnswer, "DELETE", v1Volume(id), undefined, how),
      /** Where the volume is on the appliance; 404 when it is not there. */
      device: (id: string) => get(Api.V1DeviceMapping, v1Volume(id, "device")),
      devices: get(Schema.Array(Api.V1Device), "/api/v1/devices"),
      /** By `/dev/vdb`, by-id path or bare name. */
      deviceVolume: (path: string) => get(Api.V1Volume, in_("/api/v1/devices", path, "volume")),
      vmVolumes: (vmId: string) => get(Schema.Array(Api.V1Volume), in_("/api/v1/vms", vmId, "volumes")),
      createExport: (body: typeof Api.V1ExportBody.Encoded, how?: WriteOptions) =>
        write(Api.OperationAnswer, "POST", "/api/v1/exports", body, how),
      deleteExport: (volumeId: string, how?: WriteOptions) =>
        write(Api.OperationAnswer, "DELETE", in_("/api/v1/exports", volumeId), undefined, how),
      /** From the test VM back to the appliance. */
      cleanupTestFailover: (body: typeof Api.V1CleanupBody.Encoded, how?: WriteOptions) =>
        write(Api.OperationAnswer, "POST", "/api/v1/cleanup/test-failover", body, how),
      health: state(Api.Health, "/api/v1/health"),
      metrics: get(Api.V1Metrics, "/api/v1/metrics")
    }
  }
}

export type Client = ReturnType<typeof make>
