import { Schema } from "effect"
import { Name, OfferingId, OperationId, Timestamp, Uid, VmId, VolumeId, ZoneId } from "./Ids.ts"

export const GIB = 1024 ** 3

const noControlCharacters = (text: string) => !/[\u0000-\u001f\u007f-\u009f\u2028\u2029]/u.test(text)

/** Bytes of a volume: whole, at least 1 GiB and small enough that a double holds it exactly. */
export const SizeBytes = Schema.Int.pipe(
  Schema.filter((n) =>
    n >= GIB && n <= Number.MAX_SAFE_INTEGER
      ? true
      : "expected at least 1 GiB (1073741824 bytes) and less than 2^53 bytes"
  )
)

/** The volume's name in CloudStack, where names are not unique. */
export const CloudStackName = Schema.String.pipe(
  Schema.filter((s) =>
    s.length >= 1 && s.length <= 255 && noControlCharacters(s)
      ? true
      : "expected 1-255 characters without control characters"
  )
)

/** Where a volume should be. `"none"`: attached nowhere; `null`: not ours to decide. */
export const Placement = Schema.Union(VmId, Schema.Literal("appliance", "none"))
export type Placement = typeof Placement.Type

export const AttachAs = Schema.Literal("data", "root")
export const DeletionPolicy = Schema.Literal("forget", "retain", "delete")
export type DeletionPolicy = typeof DeletionPolicy.Type

export const Paused = Schema.Struct({
  reason: Schema.String.pipe(Schema.minLength(1), Schema.maxLength(1000)),
  by: Schema.String.pipe(Schema.minLength(1), Schema.maxLength(255)),
  until: Schema.optional(Timestamp)
})
export type Paused = typeof Paused.Type

const metadataText = Schema.String.pipe(
  Schema.minLength(1),
  Schema.maxLength(255),
  Schema.filter((s) => noControlCharacters(s) || "expected no control characters")
)

/** Written to CloudStack as tags, whose keys are unique ignoring case. */
export const Metadata = Schema.Record({ key: metadataText, value: metadataText }).pipe(
  Schema.filter((m) => {
    const keys = Object.keys(m)
    if (keys.length > 32) return `expected at most 32 entries, found ${keys.length}`
    const folded = new Set(keys.map((k) => k.toLowerCase()))
    return folded.size === keys.length ? true : "expected keys that differ by more than upper and lower case"
  })
)

/** One wish, defaults filled in. `null` means absent: for a placement or export, that it is not ours to decide. */
export const Spec = Schema.Struct({
  cloudstack_name: CloudStackName,
  volume_id: Schema.NullOr(VolumeId),
  size: Schema.NullOr(SizeBytes),
  disk_offering_id: Schema.NullOr(OfferingId),
  zone_id: Schema.NullOr(ZoneId),
  attached_to: Schema.NullOr(Placement),
  attach_as: AttachAs,
  export_wanted: Schema.NullOr(Schema.Boolean),
  read_only: Schema.Boolean,
  deletion_policy: DeletionPolicy,
  on_conflict: Schema.Literal("hold", "move"),
  on_drift: Schema.Literal("repair", "hold"),
  on_loss: Schema.Literal("hold", "recreate"),
  paused: Schema.NullOr(Paused),
  metadata: Metadata
})
export type Spec = typeof Spec.Type

/** Who wrote a spec field last, and when: what `FIELD_CONFLICT` is decided by. */
export const Manager = Schema.Struct({ by: Schema.String, at: Timestamp })
export type Manager = typeof Manager.Type

/** A declaration that was declared removed, until the policy is carried out. */
export const Deletion = Schema.Struct({
  policy: DeletionPolicy,
  requested_at: Timestamp,
  by: Schema.String,
  /** Not before this time does a volume go; equal to `requested_at` for `forget` and `retain`. */
  execute_after: Timestamp
})
export type Deletion = typeof Deletion.Type

/**
 * What observation and settled operations have taught us about a declaration. Kept with it in the store; written only
 * when it changes, so that a quiet pass writes nothing. Times are milliseconds since the epoch.
 */
export const Binding = Schema.Struct({
  volume_id: Schema.NullOr(VolumeId),
  origin: Schema.NullOr(Schema.Literal("created", "adopted")),
  /** The attachment that is ours: settled by us, or seen where a generation of the declaration wanted it. */
  attachment: Schema.NullOr(
    Schema.Struct({
      vm_id: VmId,
      as: AttachAs,
      /** Our own settled attach; S5's exception asks for it. */ settled: Schema.Boolean
    })
  ),
  /** The NBD section that is ours: its name, the path it was written with, and when a GO last proved it after a change. */
  export: Schema.NullOr(Schema.Struct({ name: Schema.String, path: Schema.String, settled_at: Schema.Int })),
  /** The newest generation that was once observed wholly met. A gap in it later is drift. */
  settled_generation: Schema.Int,
  /** Proof of loss: two reads by id at least 30 s apart that found the volume gone beside a visible appliance. */
  loss: Schema.NullOr(
    Schema.Struct({ first_absent_at: Schema.Int, proven_at: Schema.NullOr(Schema.Int), accepted: Schema.Boolean })
  ),
  /** When the attachment was repaired after drift, newest last; three within an hour is `Contended`. */
  repairs: Schema.Array(Schema.Int),
  /** When the present drift was first seen. */
  drift_since: Schema.NullOr(Schema.Int),
  /** Since when CloudStack shows it on the appliance and the guest does not show it fit for use; null when nothing is awaited. */
  device_awaited_since: Schema.optionalWith(Schema.NullOr(Schema.Int), { default: () => null }),
  /**
   * A wish was taken back while the operation that it caused was unresolved: what that still does is a late effect, which
   * a person looks at. Gone with the next write of the declaration, or when the operation proves not done.
   */
  late: Schema.optionalWith(Schema.NullOr(Schema.Struct({ operation_id: OperationId, type: Schema.String })), {
    default: () => null
  }),
  /** An id that was chosen for its volume and went with it: CloudStack gives it to no other, so the next one is derived anew. */
  former_id: Schema.optionalWith(Schema.NullOr(VolumeId), { default: () => null })
})
export type Binding = typeof Binding.Type

export const unbound: Binding = {
  volume_id: null,
  origin: null,
  attachment: null,
  export: null,
  settled_generation: 0,
  loss: null,
  repairs: [],
  drift_since: null,
  device_awaited_since: null,
  late: null,
  former_id: null
}

/** One named wish with its identity, its history and what we know of its volume. */
export const Declaration = Schema.Struct({
  name: Name,
  uid: Uid,
  generation: Schema.Int,
  created_at: Timestamp,
  updated_at: Timestamp,
  set: Schema.NullOr(Schema.String),
  managers: Schema.Record({ key: Schema.String, value: Manager }),
  spec: Spec,
  deletion: Schema.NullOr(Deletion),
  /** When the removal was finished; such a declaration is history and never planned for. */
  removed_at: Schema.NullOr(Timestamp),
  binding: Binding
})
export type Declaration = typeof Declaration.Type

export const isLiving = (declaration: Declaration): boolean => declaration.removed_at === null
