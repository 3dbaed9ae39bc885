import { Schema } from "effect"
import { Category } from "./Action.ts"
import { OperationId, Timestamp, VmId, VolumeId } from "./Ids.ts"

export const ConditionType = Schema.Literal(
  "Provisioned",
  "Attached",
  "DevicePresent",
  "Exported",
  "Ready",
  "Paused",
  "Removed"
)
export type ConditionType = typeof ConditionType.Type

export const Condition = Schema.Struct({
  type: ConditionType,
  status: Schema.Literal("True", "False", "Unknown"),
  /** A `Reason` of a blocked volume, or the fact in one word (`Attached`, `Served`, `NotOnAppliance`, `NotManaged` …). */
  reason: Schema.String,
  category: Schema.NullOr(Category),
  message: Schema.String,
  suggestion: Schema.NullOr(Schema.String),
  observed_generation: Schema.Int,
  last_transition_time: Timestamp
})
export type Condition = typeof Condition.Type

export const Status = Schema.Struct({
  observed_generation: Schema.Int,
  volume_id: Schema.NullOr(VolumeId),
  volume_name: Schema.NullOr(Schema.String),
  volume_state: Schema.NullOr(Schema.String),
  /** Bytes, as CloudStack says. */
  size: Schema.NullOr(Schema.Number),
  /** The VM the volume is on; null when on none or not known, which `Attached` tells apart. */
  attached_to: Schema.NullOr(VmId),
  by_id_path: Schema.NullOr(Schema.String),
  kernel_path: Schema.NullOr(Schema.String),
  export: Schema.NullOr(
    Schema.Struct({
      name: Schema.String,
      host: Schema.String,
      port: Schema.Int,
      verified_at: Schema.NullOr(Timestamp),
      connections: Schema.Int,
      simulated: Schema.Boolean
    })
  ),
  conditions: Schema.Array(Condition),
  /** Kinds of the actions to the goal, next first. */
  next_actions: Schema.Array(Schema.String),
  last_operation_id: Schema.NullOr(OperationId),
  /** When a volume that backs off is looked at again. */
  retry_at: Schema.NullOr(Timestamp)
})
export type Status = typeof Status.Type
