import { Schema } from "effect"
import { JobId, OperationId, Timestamp, Uid, VmId } from "./Ids.ts"

export const OperationType = Schema.Literal(
  "create",
  "attach",
  "detach",
  "delete",
  "cleanup",
  "adopt",
  "export",
  "unexport",
  "migrate_path",
  "tag"
)
export type OperationType = typeof OperationType.Type

export const OperationStatus = Schema.Literal("pending", "executing", "completed", "failed", "cancelled")
export type OperationStatus = typeof OperationStatus.Type

/**
 * Where an operation stands. Only observation closes one: `settled`, `refused` (CloudStack answered that it did not and
 * will not act) and `needs_operator` (no evidence will decide it; leaves that state by itself when some does).
 */
export const Phase = Schema.Literal(
  "intended",
  "submitted",
  "accepted",
  "uncertain",
  "settled",
  "refused",
  "needs_operator"
)
export type Phase = typeof Phase.Type

export const Cause = Schema.Literal("api", "declaration", "drift", "recovery")
export type Cause = typeof Cause.Type

/** The durable record of one action: the intent before, the outcome after. JSON of `/api/v1/operations`. */
export const Operation = Schema.Struct({
  id: OperationId,
  type: OperationType,
  status: OperationStatus,
  /** `""` until known. */
  volume_id: Schema.String,
  vm_id: Schema.NullOr(VmId),
  /** The action as planned, whole: what execution and settling need. */
  request: Schema.Record({ key: Schema.String, value: Schema.Unknown }),
  response: Schema.NullOr(Schema.Record({ key: Schema.String, value: Schema.Unknown })),
  error: Schema.NullOr(Schema.String),
  created_at: Timestamp,
  updated_at: Timestamp,
  completed_at: Schema.NullOr(Timestamp),
  name: Schema.String,
  uid: Uid,
  cause: Cause,
  actor: Schema.String,
  generation: Schema.Int,
  phase: Phase,
  job_id: Schema.NullOr(JobId),
  attempts: Schema.Int,
  parent_id: Schema.NullOr(OperationId),
  /** Counts against the deletion budget (S6, S17). */
  destructive: Schema.Boolean,
  /** ms since the epoch at which the call was handed to the wire; null before. */
  submitted_at: Schema.NullOr(Schema.Int),
  /** ms since the epoch after which CloudStack no longer accepts the signed request; null before it was sent. */
  expires_at: Schema.NullOr(Schema.Int)
})
export type Operation = typeof Operation.Type

export const isUnresolved = (operation: Operation): boolean =>
  operation.phase !== "settled" && operation.phase !== "refused" && operation.status !== "cancelled"
