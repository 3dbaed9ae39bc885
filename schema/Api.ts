import { Schema } from "effect"
import { Aspect, Blocked, Held, Plan, Withheld } from "./Action.ts"
import { Status } from "./Condition.ts"
import { CloudStackName, Deletion, Manager, Metadata, Spec } from "./Declaration.ts"
import { Problem } from "./Document.ts"
import { JobId, Name, OfferingId, OperationId, Timestamp, Uid, VmId, VolumeId, ZoneId } from "./Ids.ts"
import { Cause, OperationStatus, OperationType, Phase } from "./Operation.ts"

/** Every `code` of an error body with the status it travels under. */
export const statuses = {
  INVALID_REQUEST: 400,
  UNAUTHORIZED: 401,
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
  CLOUDSTACK_RESOURCE_LIMIT: 422,
  FIELD_IMMUTABLE: 422,
  IDEMPOTENCY_KEY_REUSED: 422,
  RATE_LIMITED: 429,
  DELETION_BUDGET: 429,
  HEADERS_TOO_LARGE: 431,
  UNKNOWN_ERROR: 500,
  NOT_SUPPORTED: 501,
  MAINTENANCE: 503,
  CLOUDSTACK_UNAVAILABLE: 503,
  DATABASE_UNAVAILABLE: 503,
  STANDBY: 503,
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
      errors: Schema.optional(Schema.Array(Problem.annotations({ identifier: "Problem" })))
    },
    { key: Schema.String, value: Schema.Unknown }
  ),
  request_id: Schema.String
}).annotations({ identifier: "Error" })
export type ErrorBody = typeof ErrorBody.Type

/** A declaration as answered. */
export const Volume = Schema.Struct({
  name: Name,
  uid: Uid,
  generation: Schema.Int,
  created_at: Timestamp,
  updated_at: Timestamp,
  set: Schema.NullOr(Schema.String),
  managers: Schema.Record({ key: Schema.String, value: Manager.annotations({ identifier: "Manager" }) }),
  spec: Spec.annotations({ identifier: "Spec" }),
  status: Status.annotations({ identifier: "Status" }),
  /** `remaining`: kinds of the actions still to do, next first. */
  deletion: Schema.NullOr(Schema.Struct({ ...Deletion.fields, remaining: Schema.Array(Schema.String) })),
  removed_at: Schema.NullOr(Timestamp)
}).annotations({ identifier: "Volume" })
export type Volume = typeof Volume.Type

export const VolumeList = Schema.Struct({
  items: Schema.Array(Volume),
  next_cursor: Schema.NullOr(Schema.String),
  /** The newest event that is contained in `items`. */
  event_id: Schema.Int
}).annotations({ identifier: "VolumeList" })
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
}).annotations({ identifier: "Unmanaged" })
export type Unmanaged = typeof Unmanaged.Type

export const UnmanagedList = Schema.Struct({
  items: Schema.Array(Unmanaged),
  next_cursor: Schema.NullOr(Schema.String),
  event_id: Schema.Int
}).annotations({ identifier: "UnmanagedList" })
export type UnmanagedList = typeof UnmanagedList.Type

/** How one source of the inventory was read for this answer. */
export const SourceInfo = Schema.Struct({
  state: Schema.Literal("known", "incomplete", "unread"),
  /** When the reading began, or failed. */
  at: Timestamp,
  message: Schema.NullOr(Schema.String)
}).annotations({ identifier: "Source" })

export const Sources = Schema.Struct({ cloudstack: SourceInfo, guest: SourceInfo, nbd: SourceInfo }).annotations({
  identifier: "Sources"
})
export type Sources = typeof Sources.Type

/** Where a plan was made, so that nobody approves one for the wrong place. */
export const Place = Schema.Struct({
  server: Schema.String,
  cloud: Schema.String,
  zone: Schema.NullOr(Schema.String),
  appliance_vm_id: VmId,
  sandbox: Schema.Boolean
}).annotations({ identifier: "Place" })
export type Place = typeof Place.Type

export const PlanAnswer = Schema.Struct({
  place: Place,
  plan: Plan.annotations({ identifier: "Plan" }),
  /** The plan as people read it. */
  text: Schema.String,
  sources: Sources
}).annotations({ identifier: "PlanAnswer" })
export type PlanAnswer = typeof PlanAnswer.Type

/** What a write with `?dry_run=true` would store and cause; nothing was stored. */
export const DryRun = Schema.Struct({
  ...PlanAnswer.fields,
  /** The names that would be written, by what would become of them. */
  created: Schema.Array(Name),
  changed: Schema.Array(Name),
  unchanged: Schema.Array(Name),
  removed: Schema.Array(Name)
}).annotations({ identifier: "DryRun" })
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
}).annotations({ identifier: "Applied" })
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
  blocked: Schema.NullOr(Blocked.annotations({ identifier: "Blocked" }))
}).annotations({ identifier: "DriftItem" })
export type DriftItem = typeof DriftItem.Type

export const Drift = Schema.Struct({ items: Schema.Array(DriftItem), at: Timestamp, sources: Sources }).annotations({
  identifier: "Drift"
})
export type Drift = typeof Drift.Type

export const Approved = Schema.Struct({
  digest: Schema.String,
  approved: Schema.Array(Held.annotations({ identifier: "Held" })),
  expires_at: Timestamp
}).annotations({ identifier: "Approved" })
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
}).annotations({ identifier: "Operation" })
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
  /** `fenced`: new clients are denied, because the volume is to leave or its path leads to a wrong disk. */
  status: Schema.Literal("active", "pending", "failed", "fenced", "foreign", "unknown"),
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
}).annotations({ identifier: "Export" })
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
}).annotations({ identifier: "Exports" })
export type Exports = typeof Exports.Type

/** 200 exactly when a version 1 write would be accepted, else 503 with the same body. */
export const Health = Schema.Struct({
  status: Schema.Literal("healthy", "degraded", "unhealthy"),
  timestamp: Timestamp,
  cloudstack_health: Schema.String,
  database_health: Schema.String,
  device_monitor: Schema.String,
  nbd_health: Schema.String,
  details: Schema.Record({ key: Schema.String, value: Schema.String })
}).annotations({ identifier: "Health" })
export type Health = typeof Health.Type

/** Whether the process runs, or is ready to answer. */
export const Probe = Schema.Struct({ status: Schema.Literal("ok", "unavailable"), timestamp: Timestamp }).annotations({
  identifier: "Probe"
})
export type Probe = typeof Probe.Type

const counts = Schema.Record({ key: Schema.String, value: Schema.Int })
export const V1Metrics = Schema.Struct({
  timestamp: Timestamp,
  total_operations: Schema.Int,
  pending_operations: Schema.Int,
  active_mappings: Schema.Int,
  operations_by_type: counts,
  operations_by_status: counts,
  /** ms from creation to completion, over the newest thousand completed operations. */
  average_response_time_ms: Schema.Number,
  /** Failed ones among all that ended, in percent. */
  error_rate_percent: Schema.Number
}).annotations({ identifier: "V1Metrics" })
export type V1Metrics = typeof V1Metrics.Type

/** A volume as version 1 shows it: what CloudStack and the guest show, not what is wished. */
export const V1Volume = Schema.Struct({
  volume_id: VolumeId,
  name: Schema.String,
  vm_id: present(Schema.String),
  /** By-id path on the appliance; absent elsewhere. */
  device_path: present(Schema.String),
  attached_at: present(Timestamp),
  state: Schema.String,
  size: Schema.Number,
  /** `ROOT` or `DATADISK`, as CloudStack says. */
  type: Schema.String,
  /** The row as CloudStack lists it, as we read it. */
  cloudstack_data: Schema.Record({ key: Schema.String, value: Schema.Unknown }),
  last_operation: present(OperationAnswer)
}).annotations({ identifier: "V1Volume" })
export type V1Volume = typeof V1Volume.Type

export const V1DeviceMapping = Schema.Struct({
  id: Schema.String,
  volume_id: VolumeId,
  vm_id: VmId,
  /** By-id path. */
  device_path: Schema.String,
  kernel_path: Schema.String,
  cloudstack_state: Schema.String,
  linux_state: Schema.String,
  size: Schema.Number,
  last_sync: Timestamp,
  attached_at: Timestamp,
  created_at: Timestamp,
  updated_at: Timestamp
}).annotations({ identifier: "V1DeviceMapping" })
export type V1DeviceMapping = typeof V1DeviceMapping.Type

/** A disk of the appliance; `volume_id` is absent where no volume is known for it. */
export const V1Device = Schema.Struct({
  path: Schema.String,
  by_id_path: present(Schema.String),
  size: Schema.Number,
  controller: present(Schema.String),
  serial: present(Schema.String),
  mapped: Schema.Boolean,
  volume_id: present(VolumeId),
  mapping: present(V1DeviceMapping)
}).annotations({ identifier: "V1Device" })
export type V1Device = typeof V1Device.Type

export const SyncAnswer = Schema.Struct({
  started_at: Timestamp,
  duration_ms: Schema.Number,
  declarations: Schema.Int,
  settled: Schema.Int,
  actions: Schema.Int,
  blocked: Schema.Int,
  operations_settled: Schema.Int,
  problems: Schema.Array(Schema.String)
}).annotations({ identifier: "Sync" })
export type SyncAnswer = typeof SyncAnswer.Type

export const Event = Schema.Struct({
  id: Schema.Int,
  at: Timestamp,
  kind: Schema.String,
  name: Schema.NullOr(Schema.String),
  uid: Schema.NullOr(Uid),
  actor: Schema.NullOr(Schema.String),
  operation_id: Schema.NullOr(OperationId),
  message: Schema.String
}).annotations({ identifier: "Event" })
export type Event = typeof Event.Type

export const EventList = Schema.Struct({
  items: Schema.Array(Event),
  /** What `after` takes for the next page; null on the last one. */
  next_cursor: Schema.NullOr(Schema.String),
  /** The newest event there is. */
  event_id: Schema.Int
}).annotations({ identifier: "EventList" })
export type EventList = typeof EventList.Type

export const MaintenanceAnswer = Schema.Struct({
  maintenance: Schema.NullOr(
    Schema.Struct({
      reason: Schema.String,
      by: Schema.String,
      since: Timestamp,
      until: Schema.NullOr(Timestamp),
      ending: Schema.Boolean
    })
  ),
  /** What was pending at the end of a maintenance and waits for approval. */
  withheld: Schema.Array(Withheld.annotations({ identifier: "Withheld" }))
}).annotations({ identifier: "Maintenance" })
export type MaintenanceAnswer = typeof MaintenanceAnswer.Type

export const Offering = Schema.Struct({
  id: Schema.String,
  name: Schema.String,
  customized: Schema.Boolean,
  /** GiB; 0 when customized. */
  size_gib: Schema.Number
}).annotations({ identifier: "Offering" })
export const OfferingList = Schema.Struct({
  items: Schema.Array(Offering),
  zones: Schema.Array(Schema.Struct({ id: Schema.String, name: Schema.String })),
  default_disk_offering_id: Schema.NullOr(Schema.String),
  default_zone_id: Schema.NullOr(Schema.String)
}).annotations({ identifier: "OfferingList" })
export type OfferingList = typeof OfferingList.Type

/**
 * Bodies of writes. Their members are decoded by `schema/Document.ts` and `src/Http/V1/Bodies.ts`, which name every problem
 * at once; here they are described for readers of the contract.
 */
export const SpecBody = Schema.partial(
  Schema.Struct({
    ...Spec.fields,
    size: Schema.NullOr(Schema.Union(Schema.Number, Schema.String)).annotations({
      description: 'Bytes, or a text such as "100GiB".'
    })
  })
).annotations({ identifier: "SpecBody" })
export const ApplyBody = Schema.Struct({
  set: Schema.optional(Schema.NullOr(Schema.String)),
  volumes: Schema.Array(Schema.extend(SpecBody, Schema.Struct({ name: Name }))),
  take_over: Schema.optional(Schema.Boolean),
  prune: Schema.optional(Schema.Boolean)
}).annotations({ identifier: "ApplyBody" })
export const ApproveBody = Schema.Struct({ digest: Schema.String }).annotations({ identifier: "ApproveBody" })
export const RetryBody = Schema.Struct({ end_clients: Schema.optional(Schema.Boolean) }).annotations({
  identifier: "RetryBody"
})
export const MaintenanceBody = Schema.Struct({
  reason: Schema.String.pipe(Schema.minLength(1), Schema.maxLength(1000)),
  by: Schema.String.pipe(Schema.minLength(1), Schema.maxLength(255)),
  until: Schema.optional(Timestamp)
}).annotations({ identifier: "MaintenanceBody" })

/** Version 1 ignores keys that it does not know. */
export const V1CreateBody = Schema.Struct({
  name: CloudStackName,
  /** Bytes; CloudStack makes whole GiB. */
  size: Schema.Int,
  disk_offering_id: Schema.optional(OfferingId),
  zone_id: Schema.optional(ZoneId),
  metadata: Schema.optional(Schema.NullOr(Metadata))
}).annotations({ identifier: "V1CreateBody" })
export const V1AttachBody = Schema.Struct({ vm_id: VmId }).annotations({ identifier: "V1AttachBody" })
export const V1ExportBody = Schema.Struct({
  volume_id: VolumeId,
  read_only: Schema.optional(Schema.Boolean)
}).annotations({ identifier: "V1ExportBody" })
export const V1CleanupBody = Schema.Struct({
  test_vm_id: VmId,
  volume_id: VolumeId,
  oma_vm_id: Schema.optional(VmId),
  delete_vm: Schema.optional(Schema.Boolean)
}).annotations({ identifier: "V1CleanupBody" })
