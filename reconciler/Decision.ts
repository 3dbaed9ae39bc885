import { type Action, type Blocked, type Reason, isCloudAction } from "../schema/Action.ts"
import { depart, detachedUnwitnessed, lingering, place } from "./Attachment.ts"
import type { Case, Decision, World } from "./Case.ts"
import {
  because,
  block,
  caseOf,
  claimed,
  frozen,
  incomplete,
  missing,
  removed,
  settled,
  unmet,
  unread,
  wrongType
} from "./Case.ts"
import { guestUnread } from "./Device.ts"
import { blindly, detect, serve, shrunk, withdraw } from "./Export.ts"
import { provision, unfit, unseen } from "./Provision.ts"
import { tagging } from "./Tags.ts"
import type * as Merge from "./Merge.ts"

/** Decide about one declaration. Total and pure; the first thing that is missing decides. */
export const make = (world: World, view: Merge.View): Decision => {
  const decision = view.declaration.deletion === null ? upkeep(world, view) : removal(world, view)
  return guarded(world, view, decision)
}

const suspicious = block(
  "ObservationSuspect",
  "too many volumes are missing from CloudStack's listing at once to be believed",
  "check CloudStack's URL, keys and project; if the volumes are really gone, approve their loss: volumed plan shows the digest"
)

/** What an action needs from the observation as a whole (S17, architecture's table of witnesses). */
const unproven = (world: World, step: Action): Blocked | null => {
  const { cloud } = world.merged.inventory
  const whole = cloud._tag === "Known" && cloud.complete
  if (isCloudAction(step) && !whole) return incomplete(world)
  if (!step.destructive && step._tag !== "Create") return null
  if (world.suspect) return suspicious
  return whole && cloud.value.scope === "all" ? null : incomplete(world)
}

/** What nobody could read drifted no more than it did not. */
const blind: ReadonlySet<Reason> = new Set([
  "CloudStackUnread",
  "GuestUnread",
  "NbdUnread",
  "ObservationIncomplete",
  "Ambiguous",
  "VolumeUnknown"
])

export const isBlind = ({ blocked, step }: Decision): boolean =>
  step === null && blocked !== null && blind.has(blocked.reason)

const guarded = (world: World, view: Merge.View, decision: Decision): Decision => {
  const { step } = decision
  if (decision.settled) {
    // Only a tag is left to write, and a tag waits without a word.
    const free = step !== null && view.row !== null && frozen(view.row, step) === null && unproven(world, step) === null
    return step === null || free ? decision : settled
  }
  // A volume that is not the right one stays so, whatever CloudStack does to it just now.
  const wrong = step === null && decision.gap === "volume"
  const freeze = view.row === null || wrong ? null : frozen(view.row, step)
  if (freeze !== null) return { ...decision, blocked: freeze }
  if (step === null) return isBlind(decision) ? { ...decision, drift: false } : decision
  if (decision.blocked !== null) return decision
  const doubt = unproven(world, step)
  return doubt === null ? decision : { ...decision, blocked: doubt }
}

const upkeep = (world: World, view: Merge.View): Decision => {
  const { late } = view.declaration.binding
  const decision = wished(world, view)
  return late === null ? decision : belated(view, late, decision)
}

/** What was taken back took effect all the same: nobody wished it any more, and nobody undoes it unasked. */
const belated = (view: Merge.View, late: NonNullable<Late>, decision: Decision): Decision => {
  const { name } = view.declaration
  const shows = decision.settled ? stays(view, late) : decision.step !== null && moves(decision.step)
  if (!shows) return decision
  const blocked = block(
    "LateEffect",
    `the ${late.type} of operation ${late.operation_id} took effect after it was reported as not done`,
    `volumed accept ${name} keeps it as it is; writing the declaration anew puts it as declared`
  )
  return { ...decision, gap: decision.gap ?? "volume", settled: false, drift: true, blocked }
}

/** Nothing asks for another place, and yet it is only there, or only is, by what came late. */
const stays = ({ declaration, row }: Merge.View, late: NonNullable<Late>): boolean => {
  const { attachment } = declaration.binding
  const ours = attachment !== null && attachment.settled && attachment.vm_id === row?.vm_id
  return late.type === "create" || (late.type === "attach" && declaration.spec.attached_to === null && ours)
}

/** Would change where the volume is, or whether it is. */
const moves = ({ _tag }: Action): boolean =>
  _tag === "Attach" || _tag === "Detach" || _tag === "Unexport" || _tag === "Delete"

type Late = Merge.View["declaration"]["binding"]["late"]

const wished = (world: World, view: Merge.View): Decision => {
  const { binding } = view.declaration
  if (view.cloud === "unread") return blindly(world, view)
  if (binding.volume_id === null) return provision(world, view)
  if (view.row === null) return unseen(world, view)
  const c = caseOf(world, view, view.row)
  return unfit(c) ?? withdraw(c) ?? place(c) ?? detect(c) ?? serve(c) ?? shrunk(c) ?? tagging(c) ?? settled
}

/** Carry out a declared removal: unexport, detach what is ours, and only then and only if asked for, delete. */
const removal = (world: World, view: Merge.View): Decision => {
  const { binding, deletion } = view.declaration
  if (deletion === null || deletion.policy === "forget" || binding.volume_id === null) return removed
  if (view.row === null) return vanished(world, view)
  const c: Case = { ...caseOf(world, view, view.row), wish: "none", met: false }
  if (c.row.state === "Expunged") return removed
  if (view.owner !== null && view.owner !== c.declaration.uid) {
    return unmet("deletion", false, null, claimed(c.row, view.owner))
  }
  const foreign = c.row.vm_id !== null && !c.ours
  if (foreign && deletion.policy === "retain") return withdraw(c) ?? removed
  const wrong = wrongType(c)
  if (wrong !== null) return unmet("deletion", false, null, wrong)
  return withdraw(c) ?? (c.row.vm_id === null ? detached(c) : (lingering(c) ?? depart(c, c.row.vm_id)))
}

/** Only a loss that is believed closes a removal: else a lost permission would leave the volume behind for ever (S9, S17). */
const vanished = (world: World, view: Merge.View): Decision => {
  const doubt = unread(view, world)
  if (doubt !== null) return unmet("deletion", false, null, doubt)
  const { loss } = view.declaration.binding
  if (view.cloud !== "absent" || loss === null || loss.proven_at === null) {
    return unmet("deletion", false, null, missing(world, view))
  }
  return loss.accepted && !world.suspect ? removed : unmet("deletion", false, null, suspicious)
}

/** On no VM: both witnesses must say so before the declaration is closed or the volume deleted (S6, S11). */
const detached = (c: Case): Decision => {
  const { binding, deletion } = c.declaration
  const shown = lingering(c) ?? detachedUnwitnessed(c)
  if (shown !== null) return { ...shown, gap: "deletion" }
  if (deletion?.policy !== "delete") return removed
  const step: Action = {
    _tag: "Delete",
    ...because(c.view, "declaration", `its deletion was declared by ${deletion.by} at ${deletion.requested_at}`, true),
    volume_id: c.row.id
  }
  const blocked = c.view.guest === "unread" ? guestUnread(c.world) : undeletable(c, deletion.execute_after)
  return unmet("deletion", binding.settled_generation < 0, step, blocked)
}

const undeletable = (c: Case, execute_after: string): Blocked | null => {
  if (c.world.now < Date.parse(execute_after)) {
    return block(
      "DeletionGrace",
      `the volume is deleted at ${execute_after}`,
      `volumed undelete ${c.declaration.name} keeps it until then`
    )
  }
  return c.row.delete_protection
    ? block(
        "Protected",
        `CloudStack protects volume ${c.row.id} from deletion`,
        "lift the delete protection in CloudStack, or undelete"
      )
    : null
}
