/**
 * Version 1 calls: what one asks for becomes an edit of a declaration beside a row of its own. No clock, no randomness, no
 * I/O. `CallVerdict` says when the row has come to an end, `Withdrawal` what becomes of the wish then.
 */
import { DateTime, Effect } from "effect"
import { type Binding, type Declaration, type Spec } from "../schema/Declaration.ts"
import { Refused, type SpecChange } from "../schema/Document.ts"
import type { Name, OperationId, VmId } from "../schema/Ids.ts"
import type { CloudVolume, Inventory } from "../schema/Inventory.ts"
import { type CallWish, hasEnded, type Operation, type OperationType } from "../schema/Operation.ts"
import * as Declare from "./Declare.ts"
import type { NewCall, Write } from "./Store.ts"

export type CallType = Extract<
  OperationType,
  "create" | "attach" | "detach" | "delete" | "cleanup" | "export" | "unexport"
>

/** From the call to its failure, ms: before the old daemon's clients give up (300, 120, 60 and 120 s). */
export const DEADLINE_MS: Readonly<Record<CallType, number>> = {
  create: 280_000,
  attach: 110_000,
  detach: 55_000,
  delete: 55_000,
  cleanup: 165_000,
  export: 110_000,
  unexport: 55_000
}

export interface Context extends Declare.Context {
  readonly newOperationId: () => OperationId
}

/** What a call asks for. `request` is the body as sent. */
export interface Ask {
  readonly type: CallType
  readonly vm_id: VmId | null
  readonly request: Readonly<Record<string, unknown>>
  readonly wish: CallWish["spec"]
  /** Declared with the wish, and not taken back with it. */
  readonly beside?: Pick<SpecChange, "read_only">
}

/** What is stored in one transaction. */
export interface Asked {
  readonly change: Declare.Change
  readonly call: NewCall
}

/** A name for a declaration that nobody named: `<what the volume is called>-<8 hex>`. */
export const nameFor = (called: string, uuid: string): Name =>
  `${plainName(called).slice(0, 244)}-${uuid.slice(0, 8)}` as Name

/** What a volume is called, as far as a declaration may be called so; of any length. */
export const plainName = (called: string): string => {
  const safe = called.replace(/[^A-Za-z0-9._-]+/gu, "-").replace(/^[^A-Za-z0-9]+/u, "")
  return safe === "" ? "volume" : safe
}

/** Version 1 declarations say what happened elsewhere instead of undoing it, and touch nothing when they go. */
const manner = { deletion_policy: "forget", on_drift: "hold" } as const satisfies SpecChange

/** A volume to be made. Offering and zone are checked by whoever commits this. */
export const create = (
  volume: Pick<Spec, "cloudstack_name" | "size" | "disk_offering_id" | "zone_id" | "metadata">,
  request: Readonly<Record<string, unknown>>,
  context: Context
): Effect.Effect<Asked, Refused> =>
  Effect.gen(function* () {
    const uid = context.newUid()
    const name = nameFor(volume.cloudstack_name, uid)
    const wish = { name, uid: null, spec: { ...volume, ...manner, attached_to: "none", export_wanted: false } as const }
    const change = yield* Declare.put([], wish, Declare.unconditional, { ...context, newUid: () => uid })
    const ask: Ask = { type: "create", vm_id: null, request, wish: {} }
    return { change, call: callOf(ask, change.declaration, "", {}, context) }
  })

/** Of a volume that some living declaration has. The call is a write of its own, also where the wish stood there already. */
export const ask = (current: Declaration, asked: Ask, context: Context): Effect.Effect<Asked, Refused> =>
  Effect.gen(function* () {
    const paused = pauseTrouble(current, context.now)
    if (paused !== null) return yield* paused
    const before = placeOf(current.spec)
    const change =
      asked.type === "delete"
        ? yield* Declare.remove([current], current.name, "delete", Declare.unconditional, {
            ...context,
            delete_grace_ms: 0
          })
        : yield* Declare.patch(
            [current],
            { name: current.name, uid: null, spec: { ...asked.wish, ...asked.beside } },
            Declare.unconditional,
            context
          )
    // A removal that was asked for before is not this call's: it would be told of an end that is another's.
    if (asked.type === "delete" && change.write === null) return yield* deleting(current)
    const learned = { ...forgotten(current, asked), ...named(current, asked) }
    const written = withBinding(rewritten(current, change, asked, context), learned)
    const volume = current.binding.volume_id ?? current.spec.volume_id ?? ""
    return { change: written, call: callOf(asked, written.declaration, volume, before, context) }
  })

/** Of a volume that nobody declared, as read by id just now: its declaration begins bound to it. */
export const askUnknown = (row: CloudVolume, asked: Ask, context: Context): Effect.Effect<Asked, Refused> =>
  Effect.gen(function* () {
    const uid = context.newUid()
    const wish = {
      name: nameFor(row.name, row.id),
      uid: null,
      spec: { cloudstack_name: row.name, volume_id: row.id, ...manner, ...asked.wish, ...asked.beside }
    }
    const made = yield* Declare.put([], wish, Declare.unconditional, { ...context, newUid: () => uid })
    const bound = withBinding(made, { volume_id: row.id, origin: "adopted" })
    if (asked.type !== "delete")
      return { change: bound, call: callOf(asked, bound.declaration, row.id, placeless, context) }
    const at = iso(context.now)
    const deletion = { policy: "delete", requested_at: at, by: context.actor, execute_after: at } as const
    const change: Declare.Change = {
      outcome: "created",
      declaration: { ...bound.declaration, deletion },
      write: bound.write === null ? null : { ...bound.write, deletion }
    }
    return { change, call: callOf(asked, change.declaration, row.id, placeless, context) }
  })

export type Place = CallWish["before"]

export const placeless: Place = { attached_to: null, attach_as: "data", export_wanted: null }

export const placeOf = ({ attached_to, attach_as, export_wanted }: Spec): Place => ({
  attached_to,
  attach_as,
  export_wanted
})

const withBinding = (change: Declare.Change, binding: Partial<Binding>): Declare.Change => ({
  ...change,
  declaration: { ...change.declaration, binding: { ...change.declaration.binding, ...binding } },
  write: change.write === null ? null : { ...change.write, binding }
})

/**
 * An attachment that is asked for again and was taken away meanwhile is made anew, not held as drift. What our own attach
 * made a root volume stays known as such, or it could never be detached again (S5).
 */
const forgotten = ({ binding, spec }: Declaration, { wish }: Ask): Partial<Binding> => {
  const { attachment } = binding
  if (wish.attached_to === undefined || wish.attached_to !== spec.attached_to) return {}
  return attachment?.as === "data" || attachment?.settled === false ? { attachment: null } : {}
}

/** What is to be adopted is what a delete names: unbound, the declaration would go and the volume stay (S7). */
const named = ({ binding, spec }: Declaration, { type }: Ask): Partial<Binding> =>
  type === "delete" && binding.volume_id === null && spec.volume_id !== null
    ? { volume_id: spec.volume_id, origin: "adopted" }
    : {}

/** A call is a write of its own, also where all that it wishes is declared already. */
const rewritten = (current: Declaration, change: Declare.Change, { wish }: Ask, context: Context): Declare.Change => {
  if (change.write !== null) return change
  const generation = current.generation + 1
  const at = iso(context.now)
  const managers = {
    ...current.managers,
    ...Object.fromEntries(Object.keys(wish).map((key) => [key, { by: context.actor, at }]))
  }
  const declaration: Declaration = { ...current, generation, updated_at: at, managers }
  return { outcome: "changed", declaration, write: writeOf(current, declaration, "changed", context.actor) }
}

export const writeOf = (current: Declaration, next: Declaration, kind: Write["kind"], actor: string): Write => ({
  name: next.name,
  expected_generation: current.generation,
  uid: next.uid,
  generation: next.generation,
  set: next.set,
  spec: next.spec,
  managers: next.managers,
  deletion: next.deletion,
  actor,
  kind
})

const callOf = (
  { request, type, vm_id, wish }: Ask,
  { generation, name, uid }: Declaration,
  volume_id: string,
  before: Place,
  { actor, newOperationId, now }: Context
): NewCall => ({
  id: newOperationId(),
  type,
  volume_id,
  vm_id,
  request,
  name,
  uid,
  generation,
  actor,
  wish: { spec: wish, before, remove: type === "delete" },
  deadline_at: now + DEADLINE_MS[type]
})

const conflict = (code: "CONFLICT" | "DELETING", { name }: Declaration, problem: string, suggestion: string) =>
  new Refused({
    code,
    error: `${name}: ${problem}`,
    suggestion,
    errors: [{ index: null, name, field: null, problem }]
  })

const pauseTrouble = (declaration: Declaration, now: number): Refused | null => {
  const { paused } = declaration.spec
  if (paused === null || (paused.until !== undefined && Date.parse(paused.until) <= now)) return null
  const until = paused.until === undefined ? "" : ` until ${paused.until}`
  return conflict(
    "CONFLICT",
    declaration,
    `paused by ${paused.by}${until}: ${paused.reason}`,
    `ask ${paused.by}, or type: volumed resume ${declaration.name}`
  )
}

const deleting = (declaration: Declaration) =>
  conflict("DELETING", declaration, "is being removed", "wait until the removal is done, or undelete it")

const iso = (ms: number) => DateTime.formatIso(DateTime.unsafeMake(ms))

// What newer writes mean to open calls

/**
 * True when what the call wished is declared no more: somebody wrote it otherwise since. One that is about a place goes on
 * where only its export was: cancelled, it would leave its place declared, with nobody to take that back.
 */
export const isSuperseded = ({ wish }: Operation, after: Pick<Declaration, "deletion" | "spec">): boolean => {
  if (wish === null) return false
  if (wish.remove) return after.deletion === null
  const keys = wishedKeys(wish).filter((key) => key !== "export_wanted" || wish.spec.attached_to === undefined)
  return after.deletion !== null || keys.some((key) => after.spec[key] !== wish.spec[key])
}

export const wishedKeys = (wish: CallWish) => Object.keys(wish.spec) as ReadonlyArray<keyof CallWish["spec"]>

/**
 * What a call finds is not what an earlier one wished that came to nothing, but what that one found: or its wish would
 * come back with the next failure.
 */
export const without = (wish: CallWish, undone: CallWish): CallWish => {
  const stale = wishedKeys(undone).filter((key) => key in undone.before && wish.before[key] === undone.spec[key])
  const found = Object.fromEntries(stale.map((key) => [key, undone.before[key]]))
  return { ...wish, before: { ...wish.before, ...found } }
}

/** What a claim teaches; the call bears the VM from then on. */
export interface Claim {
  readonly binding: Binding
  readonly vm_id: VmId
}

/**
 * A detach, an on-appliance delete and a cleanup name the volume, and so the attachment that they find, whoever made it
 * (S23): until the first action of the call it becomes ours. One that another open call has claimed is this one's too.
 */
export const claim = (
  call: Operation,
  declaration: Declaration,
  inventory: Inventory,
  open: ReadonlyArray<Operation>
): Claim | null => {
  const { binding } = declaration
  const row = rowOf(inventory, declaration)
  if (call.status !== "pending" || row === null || row.vm_id === null || row.type !== "DATADISK") return null
  if (!names(call, row.vm_id, inventory.appliance_vm_id)) return null
  const { vm_id } = row
  if (binding.attachment?.vm_id !== vm_id) {
    return { binding: { ...binding, attachment: { vm_id, as: "data", settled: false } }, vm_id }
  }
  const shared = open.some((other) => isRival(call, other) && hasClaimed(other, binding.attachment))
  return shared && call.vm_id !== vm_id ? { binding, vm_id } : null
}

/** The attachment is ours for this call's sake alone. */
export const hasClaimed = ({ type, vm_id, wish }: Operation, attachment: Binding["attachment"]): boolean => {
  if (type !== "detach" && type !== "delete" && type !== "cleanup") return false
  if (attachment === null || attachment.settled || attachment.vm_id !== vm_id) return false
  return (wish?.before.attached_to ?? null) !== attachment.vm_id
}

/** Another call on the same declaration that is open still. */
export const isRival = (call: Operation, other: Operation): boolean =>
  other.id !== call.id && other.uid === call.uid && !hasEnded(other)

const names = (call: Operation, vm: VmId, appliance: VmId): boolean => {
  switch (call.type) {
    case "detach":
      return true
    case "delete":
      return vm === appliance
    case "cleanup":
      return vm === call.request["test_vm_id"]
    case "create":
    case "attach":
    case "adopt":
    case "export":
    case "unexport":
    case "migrate_path":
    case "tag":
      return false
  }
}

/** The volume of a declaration as the inventory shows it. */
export const rowOf = ({ cloud }: Inventory, { binding, spec }: Declaration): CloudVolume | null => {
  const id = binding.volume_id ?? spec.volume_id
  return cloud._tag === "Unread" || id === null ? null : (cloud.value.volumes.find((v) => v.id === id) ?? null)
}
