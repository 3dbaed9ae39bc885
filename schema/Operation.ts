import { Schema } from "effect"
import { Spec } from "./Declaration.ts"
import { JobId, OperationId, Timestamp, Uid, VmId } from "./Ids.ts"

const Wished = {
  attached_to: Spec.fields.attached_to,
  attach_as: Spec.fields.attach_as,
  export_wanted: Spec.fields.export_wanted
}

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

/**
 * What a version 1 call asks of its declaration, and what stood there before. Taken back when the call fails, and what
 * a newer write must leave as it is, or the call is cancelled.
 */
export const CallWish = Schema.Struct({
  spec: Schema.partialWith(Schema.Struct(Wished), { exact: true }),
  before: Schema.partialWith(Schema.Struct(Wished), { exact: true }),
  /** The declaration was declared removed, its volume to be deleted. */
  remove: Schema.Boolean
})
export type CallWish = typeof CallWish.Type

/** `api`: the row of a version 1 call, which acts on nothing itself; the actions it causes bear its id as `parent_id`. */
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
  expires_at: Schema.NullOr(Schema.Int),
  /** Of a call; null for an action. */
  wish: Schema.optionalWith(Schema.NullOr(CallWish), { default: () => null }),
  /** ms since the epoch at which a call that is not done has failed; null for an action. */
  deadline_at: Schema.optionalWith(Schema.NullOr(Schema.Int), { default: () => null })
})
export type Operation = typeof Operation.Type

/** The row of a version 1 call. */
export const isCall = (operation: Operation): boolean => operation.cause === "api"

export const hasEnded = ({ status }: Pick<Operation, "status">): boolean =>
  status === "completed" || status === "failed" || status === "cancelled"

/** An action whose outcome is not known yet. A call is none: what it caused may be. */
export const isUnresolved = (operation: Operation): boolean =>
  !isCall(operation) &&
  operation.phase !== "settled" &&
  operation.phase !== "refused" &&
  operation.status !== "cancelled"
