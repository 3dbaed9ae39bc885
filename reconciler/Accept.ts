/** Accepting what is: (a declaration, what is observed) → the wish that asks for nothing else. Pure. */
import type { Declaration, Spec } from "../schema/Declaration.ts"
import type { SpecChange } from "../schema/Document.ts"
import type { CloudVolume, Inventory } from "../schema/Inventory.ts"
import { isUnresolved, type Operation } from "../schema/Operation.ts"
import * as Merge from "./Merge.ts"

export type Sight =
  | { readonly _tag: "Seen"; readonly wish: SpecChange }
  /** A source that had to be read was not, or not wholly: nothing follows from what it shows. */
  | { readonly _tag: "Unseen"; readonly problem: string }
  /** What is seen cannot be wished for. */
  | { readonly _tag: "Unacceptable"; readonly problem: string; readonly suggestion: string }

/**
 * What the volume shows for those of its members that are managed: where it is, as what, and whether it is served. What
 * the declaration leaves open stays open. `operations`: unresolved ones.
 */
export const look = (
  declaration: Declaration,
  inventory: Inventory,
  declarations: ReadonlyArray<Declaration>,
  operations: ReadonlyArray<Operation>
): Sight => {
  const { cloud } = inventory
  const under = operations.find((operation) => operation.uid === declaration.uid && isUnresolved(operation))
  if (under !== undefined) {
    return unacceptable(`${under.type} (${under.id}) is under way`, "wait until it has ended, then accept what it left")
  }
  if (cloud._tag === "Unread") return unseen(`CloudStack could not be read: ${cloud.message}`)
  if (!cloud.complete) return unseen("CloudStack's listing is not known to be whole")
  const view = Merge.make(inventory, declarations).view(declaration)
  if (view.volume_id === null) return unacceptable("there is no volume yet", "wait until it is created")
  return view.row === null ? rowless(declaration, view) : seen(view, view.row, inventory)
}

const unseen = (problem: string): Sight => ({ _tag: "Unseen", problem })

const unacceptable = (problem: string, suggestion: string): Sight => ({ _tag: "Unacceptable", problem, suggestion })

const rowless = ({ name }: Declaration, { cloud, volume_id }: Merge.View): Sight =>
  cloud === "absent" || cloud === "unresolved"
    ? unacceptable(
        `its volume ${volume_id} is lost: CloudStack shows it no more`,
        `write on_loss: recreate for an empty one in its place, or type: volumed delete ${name} --policy forget`
      )
    : unseen(`CloudStack's reading does not decide about volume ${volume_id}`)

const seen = (view: Merge.View, row: CloudVolume, inventory: Inventory): Sight => {
  const state = Merge.stateOf(row.state)
  if (state === "destroyed") {
    return unacceptable(`its volume is ${row.state} in CloudStack`, "recover it there, or delete the declaration")
  }
  if (state !== "actionable" || row.job_id !== null) {
    return unacceptable(`its volume is ${row.state}, work on it is under way`, "wait until it has ended, then accept")
  }
  const { spec } = view.declaration
  const placed = spec.attached_to === null ? {} : place(spec, row, inventory)
  if (spec.export_wanted === null || row.vm_id !== inventory.appliance_vm_id) return { _tag: "Seen", wish: placed }
  const { nbd } = inventory
  if (nbd._tag === "Unread") return unseen(`the NBD server could not be observed: ${nbd.message}`)
  if (!nbd.complete || view.nbd !== "known") return unseen("not everything that the NBD server serves was observed")
  return { _tag: "Seen", wish: { ...placed, ...served(view) } }
}

const place = (spec: Spec, row: CloudVolume, { appliance_vm_id }: Inventory): SpecChange => {
  if (row.vm_id === null) return { attached_to: "none" }
  // Two words for the appliance: the one that stands there is as good.
  const named = spec.attached_to === row.vm_id ? row.vm_id : row.vm_id === appliance_vm_id ? "appliance" : row.vm_id
  return { attached_to: named, attach_as: row.type === "ROOT" ? "root" : "data" }
}

/** An export that is written down and not served, or the other way round, is being repaired: that is nobody's wish. */
const served = ({ own, verification }: Merge.View): SpecChange => {
  const answers = verification?.outcome === "served"
  if (own === null) return answers ? {} : { export_wanted: false }
  return answers ? { export_wanted: true, read_only: verification.read_only ?? own.read_only } : {}
}
