/**
 * What is done to the clients of an export beside the volume's action. Decided anew in every pass from what is seen: a
 * fence is found in the section (`fenced_at`), so that it needs no memory and outlives a restart. Pure.
 */
import type { Action, Guard } from "../schema/Action.ts"
import type { NbdSection } from "../schema/Inventory.ts"
import { isUnresolved, type Operation } from "../schema/Operation.ts"
import { type Decision, frozen, isLeaving, type World } from "./Case.ts"
import { clientsOf } from "./Clients.ts"
import type * as Merge from "./Merge.ts"
import * as Served from "./Served.ts"

export interface Circumstances {
  /** Nothing at all may be changed: a hold file, a maintenance. */
  readonly closed: boolean
  /** A person asked for hands off. Denying what would be other bytes goes on; nobody is let in or put out. */
  readonly paused: boolean
  /** The last repair did not help, and the next one is not due yet. */
  readonly resting: boolean
  /** What is to be taken away waits for approval since a maintenance ended. */
  readonly withheld: boolean
  /** An unresolved operation on the volume. */
  readonly operation: Operation | undefined
}

/** Null where nothing is to be done to them, or may be. */
export const make = (world: World, view: Merge.View, decision: Decision, around: Circumstances): Guard | null => {
  const { binding, uid } = view.declaration
  if (around.closed || binding.export === null || view.nbd === "unread") return null
  if (view.owner !== null && view.owner !== uid) return null
  const guard = wanted(world, view, decision, around, binding.export.name)
  const name = guard?.export_name
  return name !== undefined && view.others().taken.some((section) => section.name === name) ? null : guard
}

/** What we shut is about to be opened and then left as it was: a declaration that is closed before leaves it shut for good. */
export const isOpening = (world: World, view: Merge.View, decision: Decision, around: Circumstances): boolean => {
  const quiet = world.astray.size === 0 ? world : { ...world, astray: new Set<string>() }
  return make(quiet, view, decision, around)?._tag === "Release"
}

const wanted = (
  world: World,
  view: Merge.View,
  decision: Decision,
  around: Circumstances,
  name: string
): Guard | null => {
  const { declaration, own } = view
  const forgotten = declaration.deletion?.policy === "forget"
  const wrong = forgotten || own === null ? null : misgiving(world, view, decision)
  if (wrong !== null && own?.fenced_at === null) return fence(name, wrong)
  if (around.paused) return null
  if (isHeldUp(view, decision)) return around.withheld ? null : drain(world, view, decision, around, name)
  return wrong === null && own !== null && mayRelease(world, view, own, decision, around)
    ? { _tag: "Release", export_name: name, reason: releaseReason(forgotten) }
    : null
}

const fence = (export_name: string, reason: string): Guard => ({ _tag: "Fence", export_name, reason })

const releaseReason = (forgotten: boolean) =>
  forgotten ? "its declaration is forgotten, and leaves it as it was" : "it is to be served, and leads to its disk"

/** Why nobody new may open the export, whatever is wished: what they would get is not, or not certainly, the volume. */
const misgiving = (world: World, view: Merge.View, decision: Decision): string | null => {
  const wrong = Served.astray(world.merged, view)
  if (wrong !== null) return wrong
  if (view.guest === "ambiguous") return `more than one disk or volume bears the serial of volume ${view.volume_id}`
  const forbidden = view.device?.forbidden ?? null
  if (forbidden !== null) return `its disk must not be used: ${forbidden}`
  return lingers(world, view, decision) ? "CloudStack says that the volume is not on the appliance any more" : null
}

/**
 * CloudStack says that it has left and the guest shows it. Where nobody asked for that, one listing is not enough, which
 * may be a stale one (O1): a reading that began after the drift was first seen must say the same.
 */
const lingers = ({ merged }: World, view: Merge.View, { drift }: Decision): boolean => {
  const { cloud } = merged.inventory
  if (view.row === null || view.row.vm_id === merged.inventory.appliance_vm_id || view.guest !== "present") return false
  const since = view.declaration.binding.drift_since
  return !drift || (since !== null && cloud._tag === "Known" && cloud.started_at > since)
}

const takesAway = (step: Action | null): boolean => step?._tag === "Unexport" || step?._tag === "Detach"

/** To leave, and kept by nothing but those who have its disk open. */
const isHeldUp = (view: Merge.View, { blocked, step }: Decision): boolean =>
  view.holders.length > 0 && takesAway(step) && (blocked?.reason === "Draining" || blocked?.reason === "InUse")

/** First nobody new, whoever holds it now; then, with somebody's consent alone, an end to the NBD clients of this very disk. */
const drain = (
  world: World,
  view: Merge.View,
  { step }: Decision,
  { operation }: Circumstances,
  export_name: string
): Guard | null => {
  const { device, declaration, holders, own, verification } = view
  if (own !== null && own.fenced_at === null) return fence(export_name, step?.reason ?? "it is to go")
  const consent = world.consents.get(declaration.uid)
  const agreed = consent !== undefined && consent <= world.now
  const others = view.others()
  const open = verification?.outcome === "served" || others.claimable.length + others.taken.length > 0
  const free = operation === undefined || operation.type === "unexport"
  if (!agreed || !free || open || device === null || clientsOf(holders).length === 0) return null
  return { _tag: "EndClients", export_name, device: device.identity, reason: step?.reason ?? "it is to go" }
}

/**
 * The section leads to the volume's disk again, a server that runs has loaded it so, and nobody wishes it gone. What was
 * seen astray lately stays shut for a while, for a link that went wrong once may do so again (D2, D11).
 */
const mayRelease = (
  world: World,
  view: Merge.View,
  own: NbdSection,
  decision: Decision,
  { operation, resting }: Circumstances
): boolean => {
  const { declaration, device, row } = view
  const { export_wanted, read_only } = declaration.spec
  const nbd = world.merged.nbd
  const { appliance_vm_id } = world.merged.inventory
  if (own.fenced_at === null || own.unfinished !== null || world.astray.has(own.name) || nbd === null) return false
  if (device === null || device.size === 0 || device.forbidden !== null || own.device !== device.identity) return false
  if (nbd.server.state === "foreign" || (nbd.server.state === "running" && !nbd.loaded)) return false
  if (export_wanted === true && own.read_only !== read_only) return false
  // One that is forgotten is looked at no more after a rest.
  if (resting && declaration.deletion === null) return false
  if (isLeaving(declaration, appliance_vm_id) || busy(own.fenced_at, operation)) return false
  if (row === null) return decision.gap === "export"
  const here = row.vm_id === appliance_vm_id && frozen(row, null) === null
  return here && (decision.settled || decision.gap === "export")
}

/**
 * While something is done about the volume it stays shut. A load that came after the fence has done what it could, and
 * only an open export can show that it helped.
 */
const busy = (fenced_at: number, operation: Operation | undefined): boolean => {
  if (operation === undefined || !isUnresolved(operation) || operation.type === "tag") return false
  const loads = operation.type === "export" || operation.type === "migrate_path"
  return !(loads && operation.submitted_at !== null && operation.submitted_at > fenced_at)
}
