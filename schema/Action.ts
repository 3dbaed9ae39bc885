import { Schema } from "effect"
import { Name, OfferingId, Uid, VmId, VolumeId, ZoneId } from "./Ids.ts"

/** Why an action is planned: what a person reads after the arrow. */
const common = {
  uid: Uid,
  name: Name,
  generation: Schema.Int,
  /** `declaration`: a write opened this gap; `drift`: nobody's declaration did; `recovery`: an earlier action is finished. */
  cause: Schema.Literal("declaration", "drift", "recovery"),
  /** A sentence: what is, what should be. */
  reason: Schema.String,
  /** A delete, or a detach or unexport that no declaration's write asked for: counts against the budget (S6, S17). */
  destructive: Schema.Boolean
}

/** Everything execution needs is inside the action, so that nothing is chosen at execution time. */
export const Create = Schema.TaggedStruct("Create", {
  ...common,
  cloudstack_name: Schema.String,
  /** Whole GiB, rounded up from the declared bytes. */
  size_gib: Schema.Int,
  disk_offering_id: OfferingId,
  zone_id: ZoneId,
  /** Ids that bear `cloudstack_name` already: none of them can be what this create makes (safety: design consequence 3). */
  existing_ids: Schema.Array(VolumeId),
  /** The id that the volume is to have, sent as `customid`; null where the account may not choose one. */
  custom_id: Schema.optionalWith(Schema.NullOr(VolumeId), { default: () => null })
})
/** Bind an existing volume. Calls nothing in CloudStack. */
export const Adopt = Schema.TaggedStruct("Adopt", { ...common, volume_id: VolumeId })
export const Attach = Schema.TaggedStruct("Attach", {
  ...common,
  volume_id: VolumeId,
  vm_id: VmId,
  as: Schema.Literal("data", "root"),
  on_appliance: Schema.Boolean
})
export const Export = Schema.TaggedStruct("Export", {
  ...common,
  volume_id: VolumeId,
  export_name: Schema.String,
  /** By-id path written into the file. */
  path: Schema.String,
  /** Identity and bytes of the device behind the path, as observed. */
  device: Schema.String,
  size: Schema.Number,
  read_only: Schema.Boolean
})
export const Unexport = Schema.TaggedStruct("Unexport", {
  ...common,
  volume_id: VolumeId,
  export_name: Schema.String,
  /** Identity of the device that nobody may hold when this is confirmed; null when it is not here. */
  device: Schema.NullOr(Schema.String)
})
export const MigratePath = Schema.TaggedStruct("MigratePath", {
  ...common,
  volume_id: VolumeId,
  export_name: Schema.String,
  from: Schema.String,
  path: Schema.String,
  device: Schema.String,
  size: Schema.Number,
  read_only: Schema.Boolean
})
export const Detach = Schema.TaggedStruct("Detach", {
  ...common,
  volume_id: VolumeId,
  /** The VM the volume must still be on right before the call. */
  vm_id: VmId,
  on_appliance: Schema.Boolean,
  /** Identity of the guest device that must be free; null when the VM is not the appliance. */
  device: Schema.NullOr(Schema.String),
  /** Detaching the ROOT volume that our own settled root attach made (S5's one exception). */
  root: Schema.Boolean
})
export const Tag = Schema.TaggedStruct("Tag", {
  ...common,
  volume_id: VolumeId,
  /** Keys to write; one that exists with another value is deleted first (CloudStack has no upsert). */
  set: Schema.Record({ key: Schema.String, value: Schema.String }),
  replace: Schema.Array(Schema.String)
})
export const Delete = Schema.TaggedStruct("Delete", { ...common, volume_id: VolumeId })

export const Action = Schema.Union(Create, Adopt, Attach, Export, Unexport, MigratePath, Detach, Tag, Delete)
export type Action = typeof Action.Type
export type Create = typeof Create.Type
export type Adopt = typeof Adopt.Type
export type Attach = typeof Attach.Type
export type Export = typeof Export.Type
export type Unexport = typeof Unexport.Type
export type MigratePath = typeof MigratePath.Type
export type Detach = typeof Detach.Type
export type Tag = typeof Tag.Type
export type Delete = typeof Delete.Type

/** The actions that CloudStack is called for. */
export type CloudAction = Create | Attach | Detach | Tag | Delete

export const isCloudAction = (action: Action): action is CloudAction => {
  switch (action._tag) {
    case "Create":
    case "Attach":
    case "Detach":
    case "Tag":
    case "Delete":
      return true
    case "Adopt":
    case "Export":
    case "Unexport":
    case "MigratePath":
      return false
  }
}

/** The tag that carries a declaration's uid in CloudStack. */
export const UID_TAG = "volumed-uid"

/**
 * Why a volume does not move. `progress` passes by itself, `warning` is worth a look, `blocked` waits for a person or
 * another system, `error` contradicts what must hold.
 */
export const reasons = {
  // what cannot be seen
  CloudStackUnread: "blocked",
  GuestUnread: "blocked",
  NbdUnread: "blocked",
  ObservationIncomplete: "progress",
  ObservationSuspect: "error",
  VolumeUnknown: "blocked",
  Ambiguous: "error",
  // what must be waited for
  OperationInFlight: "progress",
  OperationUncertain: "progress",
  NeedsOperator: "blocked",
  JobPending: "progress",
  VolumeBusy: "progress",
  Queued: "progress",
  BackingOff: "progress",
  DeviceArriving: "progress",
  DeletionGrace: "progress",
  // the volume itself
  VolumeMissing: "progress",
  VolumeLost: "error",
  VolumeNotFound: "blocked",
  VolumeClaimed: "blocked",
  VolumeDestroyed: "blocked",
  UnknownState: "blocked",
  NotDataDisk: "blocked",
  OutOfScope: "blocked",
  SizeMismatch: "blocked",
  SizeRequired: "blocked",
  OfferingRequired: "blocked",
  ZoneRequired: "blocked",
  CreateAmbiguous: "blocked",
  Protected: "blocked",
  // attaching and detaching
  VmNotFound: "blocked",
  VmNotReady: "blocked",
  VmFull: "blocked",
  ForeignAttachment: "blocked",
  DriftHeld: "blocked",
  LateEffect: "blocked",
  Contended: "blocked",
  StillInGuest: "blocked",
  RootNeedsStoppedVm: "blocked",
  RootOccupied: "blocked",
  RootOnAppliance: "blocked",
  RootVolume: "error",
  // the device
  DeviceMissing: "blocked",
  DeviceAmbiguous: "error",
  DeviceForbidden: "error",
  DeviceReadOnly: "blocked",
  // exporting
  ExportNameTaken: "blocked",
  Draining: "progress",
  InUse: "blocked",
  WrongDevice: "error",
  Fenced: "progress",
  NbdServerForeign: "blocked",
  NbdNotInstalled: "blocked",
  NbdConfigBroken: "blocked",
  // what people decided
  Paused: "warning",
  HoldFile: "blocked",
  Maintenance: "blocked",
  HeldForApproval: "blocked"
} as const satisfies Record<string, "progress" | "warning" | "blocked" | "error">

export type Reason = keyof typeof reasons
export const Reason = Schema.Literal(...(Object.keys(reasons) as [Reason, ...Array<Reason>]))
export const Category = Schema.Literal("progress", "warning", "blocked", "error")

export const Blocked = Schema.Struct({
  reason: Reason,
  category: Category,
  /** What is wrong, with the ids and values at hand. */
  message: Schema.String,
  /** What a person can do; for `progress` what is being waited for. */
  suggestion: Schema.String
})
export type Blocked = typeof Blocked.Type

/**
 * What is done to the clients of an export beside the volume's action: no operation of its own, asked for again in every
 * pass in which it is not seen yet. `Fence` denies new clients, running ones go on; `Release` lifts that; `EndClients`
 * ends the connections that hold this very device, with somebody's consent alone.
 */
const guarding = { export_name: Schema.String, reason: Schema.String }
export const Guard = Schema.Union(
  Schema.TaggedStruct("Fence", guarding),
  Schema.TaggedStruct("Release", guarding),
  Schema.TaggedStruct("EndClients", { ...guarding, device: Schema.String })
)
export type Guard = typeof Guard.Type

/** Which wish is unmet, for conditions and for drift. */
export const Aspect = Schema.Literal("volume", "attachment", "device", "export", "tags", "deletion")
export type Aspect = typeof Aspect.Type

export const PlanItem = Schema.Struct({
  uid: Uid,
  name: Name,
  generation: Schema.Int,
  volume_id: Schema.NullOr(VolumeId),
  /** The one action this pass takes for the volume; null when there is none to take or it may not be taken now. */
  next: Schema.NullOr(Action),
  /** All actions to the goal, `next` (or the action that is blocked) first; what a dry run shows. */
  chain: Schema.Array(Action),
  /** Why it does not move, or does not move further; null when it moves or is done. */
  blocked: Schema.NullOr(Blocked),
  /** What is done to the clients of its export in this pass; null when nothing is to be done, or may be done. */
  guard: Schema.NullOr(Guard),
  /** The aspect whose gap comes first; null when nothing is missing (tags do not count). */
  gap: Schema.NullOr(Aspect),
  /** That gap was opened by nobody's declaration. */
  drift: Schema.Boolean,
  /** Every managed wish is met by evidence in this inventory. Tags do not count. */
  settled: Schema.Boolean,
  /** The declared removal is carried out in full: nothing is left to do but to close the declaration. */
  removal_done: Schema.Boolean
})
export type PlanItem = typeof PlanItem.Type

/** An action (or the acceptance of a loss) that waits for approval by digest. */
export const Held = Schema.Struct({
  uid: Uid,
  name: Name,
  generation: Schema.Int,
  volume_id: VolumeId,
  action: Schema.Literal("detach", "unexport", "delete", "accept_loss")
})
export type Held = typeof Held.Type

/** What was pending when a maintenance ended: it waits for approval under one digest that does not change (contract §3). */
export const Withheld = Schema.Struct({ ...Held.fields, digest: Schema.String })
export type Withheld = typeof Withheld.Type

export const Plan = Schema.Struct({
  /** ms since the epoch of the plan's `now`. */
  at: Schema.Int,
  /** One item for every declaration that was planned, in bytewise order of name. Settled ones included. */
  items: Schema.Array(PlanItem),
  held: Schema.Array(Held),
  /** Of `held`, sorted; null when nothing is held. What `approve` takes. */
  digest: Schema.NullOr(Schema.String),
  /** Withheld since the end of a maintenance and not approved, each with its own fixed digest. */
  withheld: Schema.Array(Withheld),
  /** What concerns the whole plan: an unread source, suspicion, a hold file. */
  notices: Schema.Array(Blocked)
})
export type Plan = typeof Plan.Type
