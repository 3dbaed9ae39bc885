import type { Action, Aspect, Blocked, Reason } from "../schema/Action.ts"
import { reasons } from "../schema/Action.ts"
import type { Declaration, Spec } from "../schema/Declaration.ts"
import type { Uid, VmId, VolumeId } from "../schema/Ids.ts"
import type { CloudVolume } from "../schema/Inventory.ts"
import type { Limits } from "../schema/Settings.ts"
import * as Merge from "./Merge.ts"

/** What one declaration's decision depends on beside its own view. */
export interface World {
  readonly now: number
  readonly merged: Merge.Merged
  readonly limits: Limits
  /** Too many volumes are missing at once (S17). */
  readonly suspect: boolean
  /** Did an action for this declaration fail lately? Then nothing optional goes before what was asked for. */
  readonly retrying: (uid: string) => boolean
  /** The id that a volume created for this declaration has, where the account may choose one. */
  readonly chosenId: (declaration: Declaration) => VolumeId
  /** As in the planner's input. */
  readonly consents: ReadonlyMap<Uid, number>
  readonly astray: ReadonlySet<string>
}

/** What is to be done about one volume, seen alone: queues, budgets and holds come later. */
export interface Decision {
  /** The next action to the goal, also when it is blocked. */
  readonly step: Action | null
  readonly blocked: Blocked | null
  readonly gap: Aspect | null
  readonly drift: boolean
  readonly settled: boolean
  readonly removal_done: boolean
}

export const block = (reason: Reason, message: string, suggestion: string): Blocked => ({
  reason,
  category: reasons[reason],
  message,
  suggestion
})

export const settled: Decision = {
  step: null,
  blocked: null,
  gap: null,
  drift: false,
  settled: true,
  removal_done: false
}

export const removed: Decision = { ...settled, removal_done: true }

export const unmet = (gap: Aspect, drift: boolean, step: Action | null, blocked: Blocked | null): Decision => ({
  step,
  blocked,
  gap,
  drift,
  settled: false,
  removal_done: false
})

/** A volume that CloudStack lists, with what is asked of it. */
export interface Case {
  readonly world: World
  readonly view: Merge.View
  readonly declaration: Declaration
  readonly spec: Spec
  readonly row: CloudVolume
  readonly appliance: VmId
  /** Where it should be; null when that is not ours to decide. */
  readonly wish: VmId | "none" | null
  /** CloudStack says that it is on the appliance. */
  readonly here: boolean
  /** Its present attachment is ours (contract §1). */
  readonly ours: boolean
  /** This generation was met once, so that a gap now is nobody's wish. */
  readonly met: boolean
}

export const wishOf = (spec: Spec, appliance: VmId): VmId | "none" | null =>
  spec.attached_to === "appliance" ? appliance : spec.attached_to

/** Its export, or the volume itself, is to go from the appliance. One that is forgotten is left as it is. */
export const isLeaving = ({ deletion, spec }: Declaration, appliance: VmId): boolean => {
  if (deletion !== null) return deletion.policy !== "forget"
  const wish = wishOf(spec, appliance)
  return spec.export_wanted === false || (wish !== null && wish !== appliance)
}

export const caseOf = (world: World, view: Merge.View, row: CloudVolume): Case => {
  const { declaration } = view
  const { binding, spec } = declaration
  const appliance = world.merged.inventory.appliance_vm_id
  return {
    world,
    view,
    declaration,
    spec,
    row,
    appliance,
    wish: wishOf(spec, appliance),
    here: row.vm_id === appliance,
    ours: row.vm_id !== null && binding.attachment?.vm_id === row.vm_id,
    met: binding.settled_generation >= declaration.generation
  }
}

export const because = (view: Merge.View, cause: Action["cause"], reason: string, destructive = false) => ({
  uid: view.declaration.uid,
  name: view.declaration.name,
  generation: view.declaration.generation,
  cause,
  reason,
  destructive
})

export const causeOf = (drift: boolean): Action["cause"] => (drift ? "drift" : "declaration")

export const vmText = (world: World, vm: VmId) => {
  if (vm === world.merged.inventory.appliance_vm_id) return "the appliance"
  const name = world.merged.vms.get(vm)?.name
  return name === undefined ? `VM ${vm}` : `VM ${vm} (${name})`
}

/** Why CloudStack's row forbids any action now, or null. */
export const frozen = (row: CloudVolume, step: Action | null): Blocked | null => {
  if (row.job_id !== null) {
    return block(
      "JobPending",
      `CloudStack works on the volume: job ${row.job_id} is pending`,
      "nothing: it goes on when the job has ended"
    )
  }
  switch (Merge.stateOf(row.state)) {
    case "actionable":
      return null
    case "busy":
      return block("VolumeBusy", `the volume is in state ${row.state}`, "nothing: it goes on when the state has passed")
    case "destroyed":
      return step?._tag === "Delete" && row.state === "Destroy"
        ? null
        : block(
            "VolumeDestroyed",
            `CloudStack shows the volume in state ${row.state}`,
            "recover the volume in CloudStack, or remove the declaration with policy forget"
          )
    case "unknown":
      return block(
        "UnknownState",
        `the volume is in state ${JSON.stringify(row.state)}, in which volumed does not act`,
        "bring the volume into state Ready in CloudStack"
      )
  }
}

export const incomplete = (world: World) => {
  const { cloud } = world.merged.inventory
  const note = cloud._tag === "Known" && cloud.note !== null ? `: ${cloud.note}` : ""
  return block(
    "ObservationIncomplete",
    `CloudStack's listing is not known to be whole${note}`,
    "nothing: the next full pass reads it again"
  )
}

export const cloudUnread = (world: World) => {
  const { cloud } = world.merged.inventory
  const why = cloud._tag === "Unread" ? `: ${cloud.message}` : ""
  return block("CloudStackUnread", `CloudStack could not be read${why}`, "nothing: it is read again within a minute")
}

export const unread = (view: Merge.View, world: World): Blocked | null => {
  switch (view.cloud) {
    case "ambiguous":
      return block(
        "Ambiguous",
        `CloudStack's answers about volume ${view.volume_id} contradict each other`,
        "nothing is done until they agree; if it stays so, look the volume up in CloudStack"
      )
    case "unresolved":
      return block(
        "VolumeUnknown",
        `CloudStack knows no volume ${view.volume_id}, or this account may not see it`,
        "check volume_id, and CLOUDSTACK_PROJECT_ID if the volume belongs to a project"
      )
    case "unread":
      return cloudUnread(world)
    case "unlisted":
    case "absent":
    case "seen":
    case "none":
      return null
  }
}

export const missing = (world: World, view: Merge.View): Blocked => {
  const { cloud } = world.merged.inventory
  const whole = cloud._tag === "Known" && cloud.complete && cloud.value.scope === "all"
  if (view.cloud === "unlisted" && !whole) return incomplete(world)
  return block(
    "VolumeMissing",
    `volume ${view.volume_id} is not found in CloudStack`,
    "nothing: it is read again by id before it counts as lost"
  )
}

export const claimed = (row: CloudVolume, by: string) =>
  block(
    "VolumeClaimed",
    `volume ${row.id} belongs to the declaration with uid ${by}`,
    "remove that declaration with policy forget first, or correct volume_id"
  )

export const notDataDisk = (row: CloudVolume) =>
  block(
    "NotDataDisk",
    `volume ${row.id} is of type ${row.type}, not a data disk`,
    "volumed never touches it: correct volume_id"
  )

export const outOfScope = (spec: Spec, row: CloudVolume): Blocked | null =>
  spec.zone_id === null || row.zone_id === null || spec.zone_id === row.zone_id
    ? null
    : block(
        "OutOfScope",
        `volume ${row.id} is in zone ${row.zone_id}, the declaration says ${spec.zone_id}`,
        "declare the volume anew with the right zone_id"
      )

export const tooSmall = (spec: Spec, row: CloudVolume): Blocked | null =>
  spec.size === null || row.size >= spec.size
    ? null
    : block(
        "SizeMismatch",
        `volume ${row.id} has ${row.size} bytes, the declaration asks for at least ${spec.size}`,
        "resize the volume in CloudStack, or declare it anew with its real size"
      )

export const rootVolume = (row: CloudVolume) =>
  block(
    "RootVolume",
    `volume ${row.id} is the ROOT volume of VM ${row.vm_id ?? "(none)"}, and volumed did not make it so`,
    "volumed never touches it: detach it in CloudStack, or remove the declaration with policy forget"
  )

export const madeRoot = ({ declaration, here, row }: Case) => {
  const { attachment } = declaration.binding
  return (
    !here && attachment !== null && attachment.as === "root" && attachment.settled && attachment.vm_id === row.vm_id
  )
}

/** ROOT is untouchable (S5), save where our own settled root attach made the volume one, or it is where it should be. */
export const wrongType = (c: Case): Blocked | null => {
  const { row } = c
  if (row.type === "DATADISK") return null
  if (row.type !== "ROOT") return notDataDisk(row)
  const asWished = c.declaration.deletion === null && c.spec.attach_as === "root" && !c.here && row.vm_id === c.wish
  return asWished || madeRoot(c) ? null : rootVolume(row)
}
