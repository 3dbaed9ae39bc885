import * as HttpApi from "@effect/platform/HttpApi"
import * as HttpApiEndpoint from "@effect/platform/HttpApiEndpoint"
import * as HttpApiGroup from "@effect/platform/HttpApiGroup"
import { Schema } from "effect"
import { Aspect, Blocked, Held, Plan } from "./Action.ts"
import { Status } from "./Condition.ts"
import { Deletion, Manager, Spec } from "./Declaration.ts"
import { Problem } from "./Document.ts"
import { JobId, Name, OperationId, Timestamp, Uid, VmId, VolumeId } from "./Ids.ts"
import { Cause, OperationStatus, OperationType, Phase } from "./Operation.ts"

/** Every `code` of an error body with the status it travels under. */
export const statuses = {
  INVALID_REQUEST: 400,
  FORBIDDEN: 403,
  NOT_FOUND: 404,
  METHOD_NOT_ALLOWED: 405,
  REQUEST_TIMEOUT: 408,
  CONFLICT: 409,
  DELETING: 409,
  FIELD_CONFLICT: 409,
  CURSOR_EXPIRED: 410,
  PRECONDITION_FAILED: 412,
  TOO_LARGE: 413,
  UNSUPPORTED_MEDIA_TYPE: 415,
  EXPECTATION_FAILED: 417,
  CLOUDSTACK_INVALID_PARAMETER: 422,
  FIELD_IMMUTABLE: 422,
  HEADERS_TOO_LARGE: 431,
  UNKNOWN_ERROR: 500,
  CLOUDSTACK_UNAVAILABLE: 503,
  DATABASE_UNAVAILABLE: 503,
  OVERLOADED: 503
} as const
export type Code = keyof typeof statuses
export const Code = Schema.Literal(...(Object.keys(statuses) as [Code, ...Array<Code>]))

/** The body of every answer that is not a success. */
export const ErrorBody = Schema.Struct({
  error: Schema.String,
  code: Code,
  details: Schema.Struct(
    {
      suggestion: Schema.optional(Schema.String),
      errors: Schema.optional(Schema.Array(Problem))
    },
    { key: Schema.String, value: Schema.Unknown }
  ),
  request_id: Schema.String
})
export type ErrorBody = typeof ErrorBody.Type

/** A declaration as answered. */
export const Volume = Schema.Struct({
  name: Name,
  uid: Uid,
  generation: Schema.Int,
  created_at: Timestamp,
  updated_at: Timestamp,
  set: Schema.NullOr(Schema.String),
  managers: Schema.Record({ key: Schema.String, value: Manager }),
  spec: Spec,
  status: Status,
  /** `remaining`: kinds of the actions still to do, next first. */
  deletion: Schema.NullOr(Schema.Struct({ ...Deletion.fields, remaining: Schema.Array(Schema.String) })),
  removed_at: Schema.NullOr(Timestamp)
})
export type Volume = typeof Volume.Type

export const VolumeList = Schema.Struct({
  items: Schema.Array(Volume),
  next_cursor: Schema.NullOr(Schema.String),
  /** The newest event that is contained in `items`. */
  event_id: Schema.Int
})
export type VolumeList = typeof VolumeList.Type

/** An attached volume that nobody declared: shown, never touched. */
export const Unmanaged = Schema.Struct({
  volume_id: VolumeId,
  name: Schema.String,
  type: Schema.String,
  state: Schema.String,
  size: Schema.Number,
  attached_to: VmId,
  vm_name: Schema.NullOr(Schema.String),
  on_appliance: Schema.Boolean
})
export type Unmanaged = typeof Unmanaged.Type

export const UnmanagedList = Schema.Struct({
  items: Schema.Array(Unmanaged),
  next_cursor: Schema.NullOr(Schema.String),
  event_id: Schema.Int
})
export type UnmanagedList = typeof UnmanagedList.Type

/** How one source of the inventory was read for this answer. */
export const SourceInfo = Schema.Struct({
  state: Schema.Literal("known", "incomplete", "unread"),
  /** When the reading began, or failed. */
  at: Timestamp,
  message: Schema.NullOr(Schema.String)
})

export const Sources = Schema.Struct({ cloudstack: SourceInfo, guest: SourceInfo, nbd: SourceInfo })
export type Sources = typeof Sources.Type

/** Where a plan was made, so that nobody approves one for the wrong place. */
export const Place = Schema.Struct({
  server: Schema.String,
  cloud: Schema.String,
  zone: Schema.NullOr(Schema.String),
  appliance_vm_id: VmId,
  sandbox: Schema.Boolean
})
export type Place = typeof Place.Type

export const PlanAnswer = Schema.Struct({
  place: Place,
  plan: Plan,
  /** The plan as people read it. */
  text: Schema.String,
  sources: Sources
})
export type PlanAnswer = typeof PlanAnswer.Type

/** What a write with `?dry_run=true` would store and cause; nothing was stored. */
export const DryRun = Schema.Struct({
  ...PlanAnswer.fields,
  /** The names that would be written, by what would become of them. */
  created: Schema.Array(Name),
  changed: Schema.Array(Name),
  unchanged: Schema.Array(Name),
  removed: Schema.Array(Name)
})
export type DryRun = typeof DryRun.Type

export const Applied = Schema.Struct({
  /** The declarations of the document, in its order. */
  items: Schema.Array(Volume),
  created: Schema.Array(Name),
  changed: Schema.Array(Name),
  unchanged: Schema.Array(Name),
  /** Of the same set and no longer in the document: declared removed (`prune`). */
  pruned: Schema.Array(Name),
  /** As `pruned`, but left as they are, because their deletion policy is not forget. */
  prune_kept: Schema.Array(Name)
})
export type Applied = typeof Applied.Type

export const DriftItem = Schema.Struct({
  name: Name,
  uid: Uid,
  volume_id: Schema.NullOr(VolumeId),
  aspect: Schema.NullOr(Aspect),
  /** What is and what should be. */
  message: Schema.String,
  first_seen: Schema.NullOr(Timestamp),
  /** Who did it, where CloudStack's events tell. */
  by: Schema.NullOr(Schema.String),
  next_actions: Schema.Array(Schema.String),
  /** Why it is not repaired now, or what the repair waits for. */
  blocked: Schema.NullOr(Blocked)
})
export type DriftItem = typeof DriftItem.Type

export const Drift = Schema.Struct({ items: Schema.Array(DriftItem), at: Timestamp, sources: Sources })
export type Drift = typeof Drift.Type

export const Approved = Schema.Struct({ digest: Schema.String, approved: Schema.Array(Held), expires_at: Timestamp })
export type Approved = typeof Approved.Type

const present = <A, I>(schema: Schema.Schema<A, I>) => Schema.optionalWith(schema, { exact: true })

/** An operation as answered: empty fields are absent, as the seed's clients expect. */
export const OperationAnswer = Schema.Struct({
  id: OperationId,
  type: OperationType,
  status: OperationStatus,
  /** `""` until known. */
  volume_id: Schema.String,
  vm_id: present(VmId),
  request: Schema.Record({ key: Schema.String, value: Schema.Unknown }),
  response: present(Schema.Record({ key: Schema.String, value: Schema.Unknown })),
  error: present(Schema.String),
  created_at: Timestamp,
  updated_at: Timestamp,
  completed_at: present(Timestamp),
  name: Schema.String,
  uid: Uid,
  cause: Cause,
  actor: Schema.String,
  generation: Schema.Int,
  phase: Phase,
  job_id: present(JobId),
  attempts: Schema.Int,
  parent_id: present(OperationId)
})
export type OperationAnswer = typeof OperationAnswer.Type

export const ExportAnswer = Schema.Struct({
  id: Schema.String,
  /** What a client opens on the wire; `export_name` is the same. */
  name: Schema.String,
  export_name: Schema.String,
  /** `""` for a section that no declaration stands behind. */
  volume_id: Schema.String,
  /** The by-id path, which `by_id_path` repeats; `""` while there is no device. */
  device_path: Schema.String,
  by_id_path: Schema.String,
  kernel_path: Schema.String,
  port: Schema.Int,
  status: Schema.Literal("active", "pending", "failed", "foreign", "unknown"),
  wanted: Schema.Boolean,
  configured: Schema.Boolean,
  /** Our newest GO handshake was granted. */
  served: Schema.Boolean,
  /** Bytes as served, else of the device, else 0. */
  size: Schema.Number,
  read_only: Schema.Boolean,
  connections: Schema.Array(
    Schema.Struct({ peer: Schema.NullOr(Schema.String), pid: Schema.Int, since: Schema.NullOr(Timestamp) })
  ),
  verified_at: Schema.NullOr(Timestamp),
  problem: Schema.NullOr(Schema.String)
})
export type ExportAnswer = typeof ExportAnswer.Type

export const Exports = Schema.Struct({
  server: Schema.Struct({
    engine: Schema.String,
    version: Schema.NullOr(Schema.String),
    host: Schema.String,
    port: Schema.Int,
    state: Schema.Literal("running", "absent", "hung", "foreign", "not_installed", "unknown")
  }),
  count: Schema.Int,
  exports: Schema.Array(ExportAnswer)
})
export type Exports = typeof Exports.Type

/** 200 exactly when a write would be accepted, else 503 with the same body. */
export const Health = Schema.Struct({
  status: Schema.Literal("healthy", "degraded", "unhealthy"),
  timestamp: Timestamp,
  cloudstack_health: Schema.String,
  database_health: Schema.String,
  device_monitor: Schema.String,
  nbd_health: Schema.String,
  details: Schema.Record({ key: Schema.String, value: Schema.String })
})
export type Health = typeof Health.Type

/**
 * Bodies of writes. Their members are decoded by `schema/Document.ts`, which names every problem at once; here they
 * are described for readers of the contract.
 */
const SpecBody = Schema.partial(
  Schema.Struct({
    ...Spec.fields,
    size: Schema.NullOr(Schema.Union(Schema.Number, Schema.String)).annotations({
      description: 'Bytes, or a text such as "100GiB".'
    })
  })
)
export const ApplyBody = Schema.Struct({
  set: Schema.optional(Schema.NullOr(Schema.String)),
  volumes: Schema.Array(Schema.extend(SpecBody, Schema.Struct({ name: Name }))),
  take_over: Schema.optional(Schema.Boolean),
  prune: Schema.optional(Schema.Boolean)
})
export const ApproveBody = Schema.Struct({ digest: Schema.String })

const ByName = Schema.Struct({ name: Name })
const optionalText = Schema.optional(Schema.String)
const DryRunParams = Schema.Struct({ dry_run: optionalText })
const Conditional = Schema.Struct({
  "if-match": optionalText,
  "if-none-match": optionalText,
  /** Who asks, for the history; 1-64 of `[A-Za-z0-9._@-]`. */
  "volumed-actor": optionalText
})
/** `wait=Ready:True` and `timeout=60s`: answer when the condition holds, at the latest after the time. */
const WaitParams = { wait: optionalText, timeout: optionalText }

const health = HttpApiGroup.make("health").add(
  HttpApiEndpoint.get("health", "/health").addSuccess(Health).addError(Health, { status: 503 })
)

const volumes = HttpApiGroup.make("volumes")
  .add(
    HttpApiEndpoint.get("listVolumes", "/api/v2/volumes")
      .setUrlParams(
        // `metadata.<key>=<value>` filters too, which a schema of fixed keys cannot say.
        Schema.Struct({
          limit: optionalText,
          cursor: optionalText,
          condition: optionalText,
          volume_id: optionalText,
          attached_to: optionalText,
          set: optionalText,
          paused: optionalText,
          removed: optionalText,
          unmanaged: optionalText
        })
      )
      .addSuccess(Schema.Union(VolumeList, UnmanagedList))
      .addError(ErrorBody)
  )
  .add(
    HttpApiEndpoint.get("getVolume", "/api/v2/volumes/:name")
      .setPath(ByName)
      .setUrlParams(Schema.Struct({ ...WaitParams, removed: optionalText }))
      .addSuccess(Volume)
      .addError(ErrorBody, { status: 404 })
  )
  .add(
    HttpApiEndpoint.put("putVolume", "/api/v2/volumes/:name")
      .setPath(ByName)
      .setUrlParams(DryRunParams)
      .setHeaders(Conditional)
      .setPayload(SpecBody)
      .addSuccess(Volume)
      .addSuccess(Volume, { status: 201 })
      .addError(ErrorBody)
  )
  .add(
    HttpApiEndpoint.patch("patchVolume", "/api/v2/volumes/:name")
      .setPath(ByName)
      .setUrlParams(DryRunParams)
      .setHeaders(Conditional)
      .setPayload(SpecBody)
      .addSuccess(Volume)
      .addError(ErrorBody)
  )
  .add(
    HttpApiEndpoint.del("deleteVolume", "/api/v2/volumes/:name")
      .setPath(ByName)
      .setUrlParams(Schema.Struct({ ...WaitParams, policy: optionalText, dry_run: optionalText }))
      .addSuccess(Volume, { status: 202 })
      .addError(ErrorBody)
  )
  .add(
    HttpApiEndpoint.post("undeleteVolume", "/api/v2/volumes/:name/undelete")
      .setPath(ByName)
      .setUrlParams(DryRunParams)
      .addSuccess(Volume)
      .addError(ErrorBody)
  )
  .add(
    HttpApiEndpoint.post("apply", "/api/v2/apply")
      .setUrlParams(DryRunParams)
      .setPayload(ApplyBody)
      .addSuccess(Applied)
      .addError(ErrorBody)
  )

const plan = HttpApiGroup.make("plan")
  .add(HttpApiEndpoint.get("plan", "/api/v2/plan").addSuccess(PlanAnswer).addError(ErrorBody, { status: 503 }))
  .add(
    HttpApiEndpoint.post("planCandidate", "/api/v2/plan").setPayload(ApplyBody).addSuccess(DryRun).addError(ErrorBody)
  )
  .add(
    HttpApiEndpoint.post("approve", "/api/v2/plan/approve")
      .setPayload(ApproveBody)
      .addSuccess(Approved)
      .addError(ErrorBody, { status: 409 })
  )
  .add(HttpApiEndpoint.get("drift", "/api/v2/drift").addSuccess(Drift).addError(ErrorBody, { status: 503 }))

const operations = HttpApiGroup.make("operations")
  .add(
    HttpApiEndpoint.get("listOperations", "/api/v1/operations")
      .setUrlParams(
        Schema.Struct({
          limit: optionalText,
          cursor: optionalText,
          status: optionalText,
          type: optionalText,
          volume_id: optionalText,
          vm_id: optionalText,
          name: optionalText,
          since: optionalText
        })
      )
      .addSuccess(Schema.Array(OperationAnswer))
      .addError(ErrorBody)
  )
  .add(
    HttpApiEndpoint.get("getOperation", "/api/v1/operations/:id")
      .setPath(Schema.Struct({ id: OperationId }))
      .setUrlParams(Schema.Struct({ wait: optionalText }))
      .addSuccess(OperationAnswer)
      .addError(ErrorBody, { status: 404 })
  )

const exports_ = HttpApiGroup.make("exports").add(
  HttpApiEndpoint.get("listExports", "/api/v1/exports").addSuccess(Exports).addError(ErrorBody, { status: 503 })
)

/** The contract. The server registers its routes from it, so that what is documented is what is there. */
export const Api = HttpApi.make("volumed").add(health).add(volumes).add(plan).add(operations).add(exports_)

export type EndpointName =
  | "health"
  | "listVolumes"
  | "getVolume"
  | "putVolume"
  | "patchVolume"
  | "deleteVolume"
  | "undeleteVolume"
  | "apply"
  | "plan"
  | "planCandidate"
  | "approve"
  | "drift"
  | "listOperations"
  | "getOperation"
  | "listExports"
