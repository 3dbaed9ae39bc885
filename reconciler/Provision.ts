import type { Action, Blocked } from "../schema/Action.ts"
import { UID_TAG } from "../schema/Action.ts"
import type { Declaration, Spec } from "../schema/Declaration.ts"
import { GIB } from "../schema/Declaration.ts"
import type { CloudVolume } from "../schema/Inventory.ts"
import type { Case, Decision, World } from "./Case.ts"
import {
  because,
  block,
  claimed,
  frozen,
  missing,
  notDataDisk,
  outOfScope,
  tooSmall,
  unmet,
  unread,
  wrongType
} from "./Case.ts"
import * as Merge from "./Merge.ts"

export const provision = (world: World, view: Merge.View): Decision => {
  const found = view.declaration.spec.volume_id === null ? madeFor(world, view.declaration) : null
  if (found === null) return adopt(world, view, view.row)
  const [only] = found
  return found.length === 1 && only !== undefined
    ? adopt(world, { ...view, volume_id: only.id, cloud: "seen", row: only }, only)
    : unmet("volume", false, ...create(world, view, "declaration", "it does not exist yet"))
}

/** What bears the declaration's mark: its uid in a tag, or the id that only a create of ours gives. */
const madeFor = ({ chosenId, merged }: World, declaration: Declaration): ReadonlyArray<CloudVolume> => {
  const tagged = merged.tagged(declaration.uid)
  const named = merged.named(declaration.spec.cloudstack_name)
  if (tagged.length > 0 || named.length === 0) return tagged
  const id = chosenId(declaration)
  return named.includes(id) ? (merged.cloud?.volumes ?? []).filter((volume) => volume.id === id) : tagged
}

const severalMade = (ids: ReadonlyArray<string>): [string, string] => [
  `what was created for this declaration may exist already: ${ids.join(", ")}`,
  "find out which one holds the data, then declare it anew with volume_id; volumed deletes none of them"
]

const notFound = (view: Merge.View) =>
  view.cloud === "absent"
    ? block("VolumeNotFound", `volume ${view.volume_id} does not exist in CloudStack`, "check volume_id")
    : block(
        "ObservationIncomplete",
        `volume ${view.volume_id} is not in CloudStack's listing and was not read by id yet`,
        "nothing: the next pass reads it by id"
      )

const adopt = (world: World, view: Merge.View, row: CloudVolume | null): Decision => {
  if (row === null) return unmet("volume", false, null, unread(view, world) ?? notFound(view))
  const step: Action = {
    _tag: "Adopt",
    ...because(view, "declaration", `volume ${row.id} (${row.name}) exists and is to be this one`),
    volume_id: row.id
  }
  const wrong = unadoptable(world, view, row)
  return wrong === null ? unmet("volume", false, step, frozen(row, step)) : unmet("volume", false, null, wrong)
}

const unadoptable = (world: World, view: Merge.View, row: CloudVolume): Blocked | null => {
  const { declaration } = view
  const claim = world.merged.claimOf(row.id)
  if (claim !== null && claim !== declaration.uid) return claimed(row, claim)
  const tag = row.tags.find((t) => t.key.toLowerCase() === UID_TAG)
  if (tag !== undefined && tag.value !== declaration.uid && world.merged.isLiving(tag.value)) {
    return claimed(row, tag.value)
  }
  if (Merge.stateOf(row.state) === "destroyed") return frozen(row, null)
  if (row.type !== "DATADISK") return notDataDisk(row)
  return outOfScope(declaration.spec, row) ?? tooSmall(declaration.spec, row)
}

const required = (spec: Spec): Blocked | null => {
  if (spec.size === null) return block("SizeRequired", "size is not declared", "declare size, for example 100GiB")
  if (spec.disk_offering_id === null) {
    return block(
      "OfferingRequired",
      "disk_offering_id is neither declared nor configured",
      "declare disk_offering_id (volumed offerings lists them) or set DEFAULT_DISK_OFFERING_ID"
    )
  }
  return spec.zone_id === null
    ? block("ZoneRequired", "zone_id is neither declared nor configured", "declare zone_id or set DEFAULT_ZONE_ID")
    : null
}

const create = (
  world: World,
  view: Merge.View,
  cause: Action["cause"],
  why: string
): [Action | null, Blocked | null] => {
  const { spec, uid } = view.declaration
  const marked = world.merged.tagged(uid).map((volume) => volume.id)
  if (marked.length > 0) return [null, block("CreateAmbiguous", ...severalMade(marked.sort()))]
  const { disk_offering_id, size, zone_id } = spec
  if (size === null || disk_offering_id === null || zone_id === null) return [null, required(spec)]
  const size_gib = Math.ceil(size / GIB)
  const rounded = size_gib * GIB === size ? "" : `; ${size} bytes are rounded up to ${size_gib} GiB`
  const step: Action = {
    _tag: "Create",
    ...because(view, cause, why + rounded),
    cloudstack_name: spec.cloudstack_name,
    size_gib,
    disk_offering_id,
    zone_id,
    existing_ids: [...world.merged.named(spec.cloudstack_name)].sort(),
    custom_id: world.merged.cloud?.custom_ids === true ? world.chosenId(view.declaration) : null
  }
  return [step, null]
}

/** Bound to a volume that the reading does not show. */
export const unseen = (world: World, view: Merge.View): Decision => {
  const { binding, generation, spec } = view.declaration
  const drift = binding.settled_generation >= generation
  const doubt = unread(view, world)
  if (doubt !== null) return unmet("volume", drift, null, doubt)
  if (binding.loss?.proven_at == null) return unmet("volume", drift, null, missing(world, view))
  if (spec.on_loss === "recreate") {
    const why = `volume ${view.volume_id} is proven gone; an empty one replaces it`
    return unmet("volume", true, ...create(world, view, "recovery", why))
  }
  return unmet(
    "volume",
    true,
    null,
    block(
      "VolumeLost",
      `volume ${view.volume_id} is gone: two readings by its id, apart in time, did not find it`,
      "restore it in CloudStack, declare on_loss: recreate for an empty one, or remove the declaration"
    )
  )
}

/** A volume on which no action of ours is right, whatever is asked for. */
export const unfit = (c: Case): Decision | null => {
  const { row, view } = c
  if (view.owner !== null && view.owner !== c.declaration.uid) {
    return unmet("volume", c.met, null, claimed(row, view.owner))
  }
  const wrong = wrongType(c) ?? outOfScope(c.spec, row)
  if (wrong !== null) return unmet("volume", c.met, null, wrong)
  return Merge.stateOf(row.state) === "destroyed" ? unmet("volume", c.met, null, frozen(row, null)) : null
}
