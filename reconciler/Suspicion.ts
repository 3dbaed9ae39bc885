import type { Held } from "../schema/Action.ts"
import type { Declaration, Deletion } from "../schema/Declaration.ts"
import type { VolumeId } from "../schema/Ids.ts"
import type { Limits } from "../schema/Settings.ts"
import type * as Merge from "./Merge.ts"

/** Volumes that should be listed and are not, and whether they are too many at once to be believed (S17). */
export interface Suspicion {
  readonly suspect: boolean
  readonly missing: ReadonlyArray<Held>
  readonly bound: number
}

/** What an approval names, as one line: the text behind digests. */
export const heldKey = (held: Pick<Held, "uid" | "generation" | "volume_id" | "action">): string =>
  `${held.uid} ${held.generation} ${held.volume_id} ${held.action}`

const loss = (declaration: Declaration, volume_id: VolumeId): Held => ({
  uid: declaration.uid,
  name: declaration.name,
  generation: declaration.generation,
  volume_id,
  action: "accept_loss"
})

/** A delete that may have been sent explains why its volume is gone. */
const explained = (deletion: Deletion, now: number) =>
  deletion.policy === "delete" && Date.parse(deletion.execute_after) <= now

/** Does the reading say that a bound volume, of which it has no row, is not there? */
const denial = (merged: Merge.Merged): ((declaration: Declaration, id: VolumeId) => boolean) => {
  const { cloud } = merged.inventory
  if (cloud._tag === "Unread") return () => false
  const { absent, ambiguous, scope, unresolved } = cloud.value
  const doubtful = new Set(ambiguous)
  const asked = new Set([...absent, ...unresolved])
  // A reading of a few volumes says nothing of the others, but those that were missing before are not forgotten by it.
  return ({ binding }, id) =>
    !doubtful.has(id) && (asked.has(id) || (scope === "all" ? cloud.complete : binding.loss !== null))
}

/**
 * Volumes whose loss was proven alone, or that a person accepted as lost, have left the baseline. All others that are
 * bound count, so that a wrong account, a lost permission or an empty page never looks like a hundred deletions.
 */
export const make = (
  merged: Merge.Merged,
  declarations: ReadonlyArray<Declaration>,
  limits: Limits,
  now: number,
  approved: ReadonlySet<string>
): Suspicion => {
  const counts = ({ binding, deletion }: Declaration) =>
    binding.volume_id !== null && binding.loss?.accepted !== true && (deletion === null || !explained(deletion, now))
  let bound = 0
  for (const declaration of declarations) if (counts(declaration)) bound += 1
  const isDenied = denial(merged)
  const missing: Array<Held> = []
  for (const declaration of merged.rowless) {
    const { volume_id } = declaration.binding
    if (volume_id === null || !counts(declaration) || !isDenied(declaration, volume_id)) continue
    const held = loss(declaration, volume_id)
    if (!approved.has(heldKey(held))) missing.push(held)
  }
  const suspect = missing.length >= limits.suspicion_count && missing.length > limits.suspicion_share * bound
  return { suspect, missing, bound }
}
