import type { Action, Blocked } from "../schema/Action.ts"
import { exportNameOf, type VmId } from "../schema/Ids.ts"
import type { Case, Decision, World } from "./Case.ts"
import { because, block, causeOf, incomplete, madeRoot, rootVolume, tooSmall, unmet, vmText } from "./Case.ts"
import { deviceAmbiguous, deviceForbidden, guestUnread } from "./Device.ts"
import * as Clients from "./Clients.ts"
import { nbdProblem, nbdUnread, unexport, unexportProblem } from "./Export.ts"
import { firstTag } from "./Tags.ts"
import * as Merge from "./Merge.ts"

/** Somebody moved it away from where we had it, or a generation that was met is so no more. */
const displaced = (c: Case) => {
  const { attachment } = c.declaration.binding
  return c.met || (attachment !== null && attachment.vm_id === c.wish && attachment.vm_id !== c.row.vm_id)
}

export const place = (c: Case): Decision | null => {
  if (c.wish === null) return c.here || c.view.own === null ? null : lingering(c)
  if (c.row.vm_id === null) return lingering(c) ?? (c.wish === "none" ? detachedUnwitnessed(c) : arrive(c, c.wish))
  const asWished = c.row.vm_id === c.wish && (c.row.type === "ROOT") === (c.spec.attach_as === "root")
  return lingering(c) ?? (asWished ? null : depart(c, c.row.vm_id))
}

/** CloudStack says it is not on the appliance, the guest shows it: uncertain, so nothing may be attached or served. */
export const lingering = (c: Case): Decision | null => {
  if (c.here || (c.view.guest !== "present" && c.view.guest !== "ambiguous")) return null
  const drift = displaced(c)
  const still = block(
    "StillInGuest",
    `CloudStack says that the volume is not on the appliance, but the guest still shows ${c.view.device?.kernel_path ?? "disks with its serial"}`,
    "wait for the detach to finish; if it does not, check the VM's disks on the hypervisor (virsh domblklist) and detach there"
  )
  const since = c.declaration.binding.drift_since
  const served = c.view.own !== null || c.view.verification?.outcome === "served"
  const waited = !drift || (since !== null && c.world.now - since >= c.world.limits.device_timeout_ms)
  if (!served || !waited) return unmet("attachment", drift, null, still)
  const why = "CloudStack says that the volume has left the appliance"
  return unmet("attachment", drift, unexport(c, Merge.exportName(c.view), causeOf(drift), why), unexportProblem(c))
}

/** Our attachment was on the appliance and nobody can see whether its device is gone. */
export const detachedUnwitnessed = (c: Case): Decision | null =>
  c.view.guest === "unread" && c.declaration.binding.attachment?.vm_id === c.appliance
    ? unmet("attachment", c.met, null, guestUnread(c.world))
    : null

/** What `on_drift` says to a displaced volume, or null when it may be repaired. */
const driftProblem = (c: Case): Blocked | null => {
  const { binding } = c.declaration
  const where = c.row.vm_id === null ? "attached to no VM" : `on ${vmText(c.world, c.row.vm_id)}`
  if (c.spec.on_drift === "hold") {
    return block(
      "DriftHeld",
      `somebody changed the attachment in CloudStack: the volume is ${where}`,
      `volumed accept ${c.declaration.name} makes this the wish; on_drift: repair puts it back`
    )
  }
  const { contention_repairs, contention_window_ms } = c.world.limits
  const recent = binding.repairs.filter((at) => c.world.now - at < contention_window_ms).length
  return recent < contention_repairs
    ? null
    : block(
        "Contended",
        `the attachment was repaired ${recent} times lately and changed again: the volume is ${where}`,
        "find out who else moves this volume; it is repaired again when an hour has passed"
      )
}

const arrive = (c: Case, vm_id: VmId): Decision => {
  const drift = displaced(c)
  const as = c.spec.attach_as
  const on_appliance = vm_id === c.appliance
  const why = `the volume is attached to no VM and should be on ${vmText(c.world, vm_id)}`
  const step: Action = {
    _tag: "Attach",
    ...because(c.view, causeOf(drift), why),
    volume_id: c.row.id,
    vm_id,
    as,
    on_appliance
  }
  const blocked = (drift ? driftProblem(c) : null) ?? attachProblem(c, vm_id)
  const tag = blocked === null && !drift ? firstTag(c) : null
  return unmet("attachment", drift, tag ?? step, blocked)
}

const attachProblem = (c: Case, vm_id: VmId): Blocked | null => {
  if (c.view.guest === "unread") return guestUnread(c.world)
  const small = tooSmall(c.spec, c.row)
  if (small !== null) return small
  if (c.spec.attach_as === "root" && vm_id === c.appliance) {
    return block(
      "RootOnAppliance",
      "a root volume cannot be attached to the appliance itself",
      "declare another VM in attached_to"
    )
  }
  const vm = vmProblem(c.world, vm_id, null)
  if (vm !== null) return vm
  return (
    zoneProblem(c, vm_id) ?? (c.spec.attach_as === "root" ? rootProblem(c.world, vm_id) : fullProblem(c.world, vm_id))
  )
}

/** CloudStack attaches and detaches on Running and Stopped VMs alone. `listed` is the state that the volume's row gave. */
const vmProblem = (world: World, id: VmId, listed: string | null): Blocked | null => {
  const { vms, vms_absent } = world.merged
  if (vms_absent.has(id)) {
    return block(
      "VmNotFound",
      `CloudStack shows no VM ${id}`,
      "check attached_to; a destroyed VM is not shown to users"
    )
  }
  const state = vms.get(id)?.state ?? listed
  if (state === null)
    return block("ObservationIncomplete", `VM ${id} was not read yet`, "nothing: the next pass reads it")
  return state === "Running" || state === "Stopped"
    ? null
    : block(
        "VmNotReady",
        `${vmText(world, id)} is in state ${state}`,
        "start or stop the VM; CloudStack changes disks of Running and Stopped VMs only"
      )
}

const zoneProblem = (c: Case, id: VmId): Blocked | null => {
  const zone = c.world.merged.vms.get(id)?.zone_id ?? null
  return zone === null || c.row.zone_id === null || zone === c.row.zone_id
    ? null
    : block(
        "OutOfScope",
        `${vmText(c.world, id)} is in zone ${zone}, the volume in zone ${c.row.zone_id}`,
        "declare a VM of the volume's zone in attached_to"
      )
}

const stopped = (world: World, id: VmId, listed: string | null): Blocked | null =>
  (world.merged.vms.get(id)?.state ?? listed) === "Stopped"
    ? null
    : block(
        "RootNeedsStoppedVm",
        `${vmText(world, id)} is not Stopped, and root volumes change on a Stopped VM only`,
        "stop the VM; volumed never does that by itself"
      )

const rootProblem = (world: World, id: VmId): Blocked | null => {
  const problem = stopped(world, id, null)
  if (problem !== null) return problem
  const { cloud } = world.merged
  const root = world.merged.rootOf(id)
  if (root !== null) {
    return block(
      "RootOccupied",
      `${vmText(world, id)} has the root volume ${root} already`,
      "detach that root volume in CloudStack first"
    )
  }
  // That a VM has no root volume is shown by a whole listing alone.
  return cloud?.scope === "all" ? null : incomplete(world)
}

const fullProblem = (world: World, id: VmId): Blocked | null => {
  const disks = world.merged.disksOn(id)
  return disks < world.limits.disks_per_vm
    ? null
    : block(
        "VmFull",
        `${vmText(world, id)} has ${disks} data disks, and at most ${world.limits.disks_per_vm} fit`,
        "move a volume away from that VM first"
      )
}

/** Attached where it should not be, or in another way than it should. */
export const depart = (c: Case, vm_id: VmId): Decision => {
  const drift = displaced(c)
  const to = c.wish === null || c.wish === "none" ? "attached to no VM" : `on ${vmText(c.world, c.wish)}`
  const how = c.wish === vm_id ? ` as ${c.spec.attach_as}` : ""
  const why = `the volume is on ${vmText(c.world, vm_id)} and should be ${to}${how}`
  const step = detach(c, vm_id, causeOf(drift), why)
  const blocked = (drift ? driftProblem(c) : null) ?? (c.ours ? null : stealing(c, vm_id)) ?? detachProblem(c, vm_id)
  return unmet("attachment", drift, step, blocked)
}

const detach = (c: Case, vm_id: VmId, cause: Action["cause"], why: string): Action => ({
  _tag: "Detach",
  ...because(c.view, cause, why, cause === "drift"),
  volume_id: c.row.id,
  vm_id,
  on_appliance: c.here,
  device: c.here ? (c.view.device?.identity ?? null) : null,
  root: c.row.type === "ROOT"
})

const stealing = (c: Case, vm_id: VmId): Blocked | null =>
  c.spec.on_conflict === "move"
    ? null
    : block(
        "ForeignAttachment",
        `the volume is on ${vmText(c.world, vm_id)}, where volumed did not attach it`,
        "detach it there, declare on_conflict: move, or declare attached_to as it is"
      )

const detachProblem = (c: Case, vm_id: VmId): Blocked | null => {
  const vm = vmProblem(c.world, vm_id, c.row.vm_state)
  if (vm !== null) return vm
  if (c.row.type === "ROOT") return madeRoot(c) ? stopped(c.world, vm_id, c.row.vm_state) : rootVolume(c.row)
  return c.here ? heldProblem(c) : null
}

/** A name of this volume that is served though no section of the file says so (N8). */
const servedName = (c: Case): string | null => {
  if (c.view.verification?.outcome === "served") return c.view.verification.name
  const name = exportNameOf(c.row.id)
  return c.world.merged.isServed(name) ? name : null
}

/** Nobody may have the device open, and nothing may lead a new client to it, when it is pulled (S11). */
const heldProblem = (c: Case): Blocked | null => {
  if (c.view.guest === "unread") return guestUnread(c.world)
  if (c.view.guest === "ambiguous") return deviceAmbiguous(c)
  if (c.view.nbd !== "known") return nbdUnread(c.world)
  if (c.world.merged.nbd?.config_problem != null) return nbdProblem(c.world)
  const others = c.view.others()
  const section = c.view.own ?? others.claimable[0] ?? others.taken[0]
  const name = section?.name ?? servedName(c)
  if (name !== null) {
    return block(
      "InUse",
      `the NBD export ${name}, which volumed did not write, leads to this volume`,
      "declare export_wanted: false to let volumed remove it, or remove the section by hand"
    )
  }
  const forbidden = c.view.device?.forbidden ?? null
  return Clients.hold(c) ?? (forbidden === null ? null : deviceForbidden(forbidden))
}
