import type { Action } from "../schema/Action.ts"
import { UID_TAG } from "../schema/Action.ts"
import type { CloudVolume } from "../schema/Inventory.ts"
import type { Case, Decision } from "./Case.ts"
import { because, settled } from "./Case.ts"

const isOurs = (c: Case) => c.row.vm_id === null || c.ours

const tagsMissing = (c: Case): { readonly set: Record<string, string>; readonly replace: ReadonlyArray<string> } => {
  const set: Record<string, string> = {}
  const replace: Array<string> = []
  const wanted: ReadonlyArray<readonly [string, string]> = [
    ...Object.entries(c.spec.metadata).filter(([key]) => key.toLowerCase() !== UID_TAG),
    [UID_TAG, c.declaration.uid]
  ]
  for (const [key, value] of wanted) {
    const have = c.row.tags.find((tag) => tag.key.toLowerCase() === key.toLowerCase())
    if (have?.value === value) continue
    // Another living declaration's mark stays; it is for a person to say whose volume this is (S4).
    if (key === UID_TAG && have !== undefined && c.world.merged.isLiving(have.value)) continue
    set[key] = value
    if (have !== undefined) replace.push(have.key)
  }
  return { set, replace }
}

/** CloudStack's tag keys are one key ignoring case. */
const hasTag = ({ tags }: CloudVolume, key: string, value: string | undefined): boolean => {
  for (const tag of tags) {
    if (tag.value === value && (tag.key === key || tag.key.toLowerCase() === key.toLowerCase())) return true
  }
  return false
}

const isTagged = (c: Case): boolean => {
  const { metadata } = c.spec
  if (!hasTag(c.row, UID_TAG, c.declaration.uid)) return false
  for (const key in metadata) if (!hasTag(c.row, key, metadata[key])) return false
  return true
}

const tagAction = (c: Case): Action | null => {
  if (!isOurs(c) || c.row.type !== "DATADISK" || isTagged(c)) return null
  const { replace, set } = tagsMissing(c)
  const keys = Object.keys(set)
  if (keys.length === 0) return null
  const why = `its tags differ in ${keys.join(", ")}`
  return { _tag: "Tag", ...because(c.view, "declaration", why), volume_id: c.row.id, set, replace }
}

/** A volume that was just made is marked before it is used, so that a crash cannot leave it without an owner (S9). */
export const firstTag = (c: Case): Action | null => {
  const marked = c.row.tags.some((tag) => tag.key.toLowerCase() === UID_TAG)
  if (marked || c.declaration.binding.origin !== "created" || c.world.retrying(c.declaration.uid)) return null
  return tagAction(c)
}

export const tagging = (c: Case): Decision | null => {
  const step = tagAction(c)
  return step === null ? null : { ...settled, step }
}
