/** What becomes of a version 1 call's wish when the call fails or is cancelled. Pure. */
import { DateTime } from "effect"
import type { Declaration, Spec } from "../schema/Declaration.ts"
import type { Inventory } from "../schema/Inventory.ts"
import { hasEnded, isUnresolved, type Operation } from "../schema/Operation.ts"
import { hasClaimed, isRival, type Place, placeless, placeOf, rowOf, wishedKeys, writeOf } from "./Call.ts"
import type { Write } from "./Store.ts"

const iso = (ms: number) => DateTime.formatIso(DateTime.unsafeMake(ms))

export interface Withdrawal {
  /** Null where there is nothing to take back, or nothing may be. */
  readonly write: Write | null
  /** The outcome of what was sent decides what is taken back: asked again when it is known. */
  readonly pending: boolean
}

const nothing: Withdrawal = { write: null, pending: false }

/**
 * A call failed, or was cancelled: what it wished returns to what is observed, save what newer writes or other open calls
 * wish, so that nothing fires after its client was told of the end. `operations`: unresolved ones of this declaration.
 */
export const make = (
  call: Operation,
  declaration: Declaration | null,
  open: ReadonlyArray<Operation>,
  operations: ReadonlyArray<Operation>,
  inventory: Inventory | null,
  now: number
): Withdrawal => {
  if (declaration === null || call.wish === null) return nothing
  const sent = operations.find((operation) => operation.uid === declaration.uid && isUnresolved(operation)) ?? null
  if (call.type === "create") return unmake(call, declaration, sent, now)
  if (call.wish.remove) return unremove(call, declaration, sent, inventory, now)
  const rivals = open.filter((other) => isRival(call, other))
  const wish = call.wish
  const keys = wishedKeys(wish).filter(
    (key) =>
      declaration.spec[key] === wish.spec[key] && !rivals.some((rival) => rival.wish !== null && key in rival.wish.spec)
  )
  return restored(call, declaration, keys, rivals, sent, inventory, now)
}

/** A create that was sent may still make its volume, which must then be ours to know (S9). */
const unmake = (call: Operation, declaration: Declaration, sent: Operation | null, now: number): Withdrawal => {
  if (declaration.deletion !== null) return nothing
  // What somebody wrote since is theirs. One that has ended wrote once itself, when it did.
  if (declaration.generation > call.generation + (hasEnded(call) ? 1 : 0)) return nothing
  if (sent === null && declaration.binding.volume_id !== null) return nothing
  if (sent !== null) {
    if (declaration.binding.late !== null) return { write: null, pending: true }
    return { write: change(declaration, {}, sent, now), pending: true }
  }
  const at = iso(now)
  const deletion = { policy: "forget", requested_at: at, by: ACTOR, execute_after: at } as const
  return { write: change(declaration, { deletion }, null, now, "removed"), pending: false }
}

/** A delete whose call may have been sent is not taken back: its declaration stays removed and runs on. */
const unremove = (
  call: Operation,
  declaration: Declaration,
  sent: Operation | null,
  inventory: Inventory | null,
  now: number
): Withdrawal => {
  if (declaration.deletion === null || sent?.type === "delete") return nothing
  const spec = specBack(call, declaration, ["attached_to", "attach_as", "export_wanted"], inventory)
  const write = change(declaration, { deletion: null, spec }, sent, now, "undeleted")
  return { write: disclaimed(isTheirs(call, declaration, inventory), write), pending: false }
}

const restored = (
  call: Operation,
  declaration: Declaration,
  keys: ReadonlyArray<keyof Place>,
  rivals: ReadonlyArray<Operation>,
  sent: Operation | null,
  inventory: Inventory | null,
  now: number
): Withdrawal => {
  const spec = specBack(call, declaration, keys, inventory)
  const placed = keys.includes("attached_to")
  const unmet = placed && declaration.binding.settled_generation < declaration.generation
  const same = !unmet && keys.every((key) => spec[key] === declaration.spec[key])
  const shared = rivals.some((rival) => hasClaimed(rival, declaration.binding.attachment))
  const theirs = !shared && isTheirs(call, declaration, inventory)
  if (same && !theirs) return nothing
  const write = change(declaration, { spec }, sent, now)
  return { write: disclaimed(theirs, placed ? asMet(write) : write), pending: false }
}

/** Nobody asks for a place any more, not even where it stands as before: a gap in it is drift, or it would be closed now. */
const asMet = (write: Write): Write => ({
  ...write,
  binding: { ...write.binding, settled_generation: write.generation }
})

/** The call named the attachment of somebody else, to take it away, and did not: it is theirs again. */
const isTheirs = (call: Operation, { binding }: Declaration, inventory: Inventory | null): boolean =>
  hasClaimed(call, binding.attachment) &&
  !(call.wish?.before.attached_to === "appliance" && call.vm_id === inventory?.appliance_vm_id)

const disclaimed = (theirs: boolean, write: Write): Write =>
  theirs ? { ...write, binding: { ...write.binding, attachment: null } } : write

const specBack = (
  call: Operation,
  declaration: Declaration,
  keys: ReadonlyArray<keyof Place>,
  inventory: Inventory | null
): Spec => {
  const seen = { ...placeOf(declaration.spec), ...call.wish?.before, ...observed(call, declaration, inventory) }
  return { ...declaration.spec, ...Object.fromEntries(keys.map((key) => [key, seen[key]])) }
}

/**
 * Where the volume is, as far as that is ours to say. An attachment of somebody else's is never declared here, or it
 * would become ours by being what is declared; nor that there is none where nobody had said where it should be.
 */
const observed = (call: Operation, declaration: Declaration, inventory: Inventory | null): Place => {
  const row = inventory === null ? null : rowOf(inventory, declaration)
  if (row === null || inventory === null) return {}
  const attach_as = row.type === "ROOT" ? "root" : "data"
  if (row.vm_id === null)
    return call.wish?.before.attached_to === null ? {} : { attached_to: "none", attach_as: "data" }
  if (declaration.binding.attachment?.vm_id !== row.vm_id) return {}
  if (isTheirs(call, declaration, inventory)) return {}
  return { attached_to: row.vm_id === inventory.appliance_vm_id ? "appliance" : row.vm_id, attach_as }
}

/** Who takes wishes back, for the history. */
const ACTOR = "volumed"

const change = (
  current: Declaration,
  part: Partial<Pick<Declaration, "spec" | "deletion">>,
  sent: Operation | null,
  now: number,
  kind: Write["kind"] = "changed"
): Write => {
  const at = iso(now)
  const next: Declaration = { ...current, ...part, generation: current.generation + 1, updated_at: at }
  const touched = Object.keys(placeless).filter(
    (key) => next.spec[key as keyof Place] !== current.spec[key as keyof Place]
  )
  const managers = { ...current.managers, ...Object.fromEntries(touched.map((key) => [key, { by: ACTOR, at }])) }
  const write = writeOf(current, { ...next, managers }, kind, ACTOR)
  return sent === null ? write : { ...write, binding: { late: { operation_id: sent.id, type: sent.type } } }
}
