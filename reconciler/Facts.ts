import type { Binding, Declaration } from "../schema/Declaration.ts"
import type { Uid } from "../schema/Ids.ts"
import type { CloudVolume, Inventory } from "../schema/Inventory.ts"
import type { Limits } from "../schema/Settings.ts"
import type * as Case from "./Case.ts"
import * as Decision from "./Decision.ts"
import * as Device from "./Device.ts"
import * as Merge from "./Merge.ts"
import type { Learned } from "./Store.ts"
import * as Suspicion from "./Suspicion.ts"

export interface Options {
  /** Learn about these alone; `declarations` are all of them all the same, for claims and suspicion need them. */
  readonly only?: ReadonlySet<Uid> | null
  /** What a person has approved, as keys of `Plan.heldKey`: an accepted loss leaves the baseline for good. */
  readonly approved?: ReadonlySet<string>
}

/**
 * What an observation teaches about declarations: only bindings that change, none in a steady state (S18). Call it with
 * operations settled, before planning, so that the plan knows what was seen.
 */
export const learn = (
  declarations: ReadonlyArray<Declaration>,
  inventory: Inventory,
  now: number,
  limits: Limits,
  options: Options = {}
): ReadonlyArray<Learned> => {
  const living = declarations.filter((d) => d.removed_at === null)
  const merged = Merge.make(inventory, living)
  const approved = options.approved ?? new Set()
  const { suspect } = Suspicion.make(merged, living, limits, now, approved)
  const world: Case.World = {
    now,
    merged,
    limits,
    suspect,
    retrying: () => false,
    chosenId: () => Merge.unborn,
    consents: new Map(),
    astray: new Set()
  }
  const learned: Array<Learned> = []
  for (const declaration of living) {
    if (declaration.binding.volume_id === null) continue
    if (options.only != null && !options.only.has(declaration.uid)) continue
    const binding = about(world, approved, declaration)
    if (!same(binding, declaration.binding)) learned.push({ uid: declaration.uid, binding, from: declaration.binding })
  }
  return learned
}

const about = (world: Case.World, approved: ReadonlySet<string>, declaration: Declaration): Binding => {
  const view = world.merged.view(declaration)
  const { binding } = declaration
  const attachment = view.row === null ? binding.attachment : attachmentOf(world, declaration, view.row)
  const loss = lossOf(world, approved, declaration, view)
  const device_awaited_since = awaitedSince(world, view)
  // What was just seen decides about drift and about being met, so the decision is made with it.
  const unchanged =
    attachment === binding.attachment && loss === binding.loss && device_awaited_since === binding.device_awaited_since
  const seen = unchanged ? binding : { ...binding, attachment, loss, device_awaited_since }
  if (declaration.deletion !== null) return seen
  const now = unchanged ? view : { ...view, declaration: { ...declaration, binding: seen } }
  return { ...seen, ...judged(world, now, declaration.generation) }
}

/** Ours where a generation of the declaration wanted it; forgotten when it is elsewhere and no longer wanted there. */
const attachmentOf = (world: Case.World, declaration: Declaration, row: CloudVolume): Binding["attachment"] => {
  const { attachment } = declaration.binding
  const { attach_as, attached_to } = declaration.spec
  const wish = attached_to === "appliance" ? world.merged.inventory.appliance_vm_id : attached_to
  const as = row.type === "ROOT" ? "root" : "data"
  if (row.vm_id !== null && row.vm_id === wish && as === attach_as && declaration.deletion === null) {
    const known = attachment !== null && attachment.vm_id === row.vm_id && attachment.as === as
    return known ? attachment : { vm_id: row.vm_id, as, settled: false }
  }
  if (attachment === null || attachment.vm_id === row.vm_id) return attachment
  if (attachment.vm_id !== wish || declaration.deletion !== null) return null
  // It drifted away: that it was ours is kept, that our own attach made it what it may become there is not (S5).
  return attachment.settled ? { ...attachment, settled: false } : attachment
}

/** Gone is only what two readings by id, apart in time and beside a visible appliance, did not find (S17). */
const lossOf = (
  world: Case.World,
  approved: ReadonlySet<string>,
  declaration: Declaration,
  view: Merge.View
): Binding["loss"] => {
  const { loss, volume_id } = declaration.binding
  const { cloud, appliance_vm_id } = world.merged.inventory
  if (cloud._tag === "Unread" || volume_id === null) return loss
  if (view.row !== null) return null
  const { generation, uid } = declaration
  const accepted = approved.has(Suspicion.heldKey({ uid, generation, volume_id, action: "accept_loss" }))
  const beside = cloud.value.vms.some((vm) => vm.id === appliance_vm_id)
  if (view.cloud !== "absent" || !beside)
    return loss !== null && accepted && !loss.accepted ? { ...loss, accepted } : loss
  if (loss === null) return { first_absent_at: cloud.started_at, proven_at: null, accepted }
  const proven = loss.proven_at !== null || cloud.started_at - loss.first_absent_at >= world.limits.loss_confirmation_ms
  const next = {
    first_absent_at: loss.first_absent_at,
    proven_at: loss.proven_at ?? (proven ? cloud.started_at : null),
    accepted: loss.accepted || accepted || (proven && !world.suspect)
  }
  return next.proven_at === loss.proven_at && next.accepted === loss.accepted ? loss : next
}

const awaitedSince = (world: Case.World, view: Merge.View): number | null => {
  const since = view.declaration.binding.device_awaited_since
  if (view.row === null || view.guest === "unread") return since
  return Device.isAwaited(world, view) ? (since ?? world.now) : null
}

const judged = (world: Case.World, view: Merge.View, generation: number) => {
  const { drift_since, settled_generation } = view.declaration.binding
  const decision = Decision.make(world, view)
  if (decision.settled) return { settled_generation: Math.max(settled_generation, generation), drift_since: null }
  // What cannot be read neither starts nor ends a drift.
  if (Decision.isBlind(decision)) return { settled_generation, drift_since }
  return { settled_generation, drift_since: decision.drift ? (drift_since ?? world.now) : null }
}

const same = (a: Binding, b: Binding): boolean =>
  a === b ||
  (a.attachment === b.attachment &&
    a.loss === b.loss &&
    a.settled_generation === b.settled_generation &&
    a.drift_since === b.drift_since &&
    a.device_awaited_since === b.device_awaited_since)
