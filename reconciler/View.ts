import { DateTime, Option } from "effect"
import type { Plan } from "../schema/Action.ts"
import type { Condition, Status } from "../schema/Condition.ts"
import type { Declaration } from "../schema/Declaration.ts"
import type { Uid, VmId, VolumeId } from "../schema/Ids.ts"
import type { CloudVolume, Inventory, Verification } from "../schema/Inventory.ts"
import type { PassSummary, View } from "./Reconciler.ts"
import type { DeviceMapping } from "./Store.ts"

export const summarize = (
  plan: Plan,
  actions: number,
  ended: number,
  began: number,
  now: number,
  inventory: Inventory,
  violations: ReadonlyArray<{ readonly message: string }>
): PassSummary => {
  const sources = [inventory.cloud, inventory.guest, inventory.nbd]
  return {
    started_at: DateTime.formatIso(DateTime.unsafeMake(began)),
    duration_ms: now - began,
    declarations: plan.items.length,
    settled: plan.items.filter((i) => i.settled).length,
    actions,
    blocked: plan.items.filter((i) => i.blocked !== null).length,
    operations_settled: ended,
    problems: [
      ...sources.flatMap((s) => (s._tag === "Unread" ? [s.message] : s.note === null ? [] : [s.note])),
      ...violations.map((v) => v.message)
    ]
  }
}

/** The same to write down: words change with every second that something waits, and only times must survive a restart. */
export const sameConditions = (a: ReadonlyArray<Condition>, b: ReadonlyArray<Condition>): boolean =>
  a.length === b.length &&
  a.every((condition, i) => {
    const other = b[i]
    return (
      other !== undefined &&
      condition.type === other.type &&
      condition.status === other.status &&
      condition.reason === other.reason &&
      condition.observed_generation === other.observed_generation
    )
  })

export const mappings = (statuses: ReadonlyMap<Uid, Status>, appliance: VmId): ReadonlyArray<DeviceMapping> =>
  [...statuses.values()].flatMap((s) =>
    s.volume_id === null || s.attached_to !== appliance || s.by_id_path === null
      ? []
      : [{ volume_id: s.volume_id, vm_id: appliance, device_path: s.by_id_path, size: s.size ?? 0 }]
  )

/** Before the first pass. */
export const blank: View = { inventory: null, reread: new Map(), plan: null, statuses: new Map(), last_pass: null }

/** What a pass saw. One that looked at some volumes only is laid over what was known of the others. */
export const look = (
  { inventory: before, reread }: View,
  newer: Inventory,
  whole: boolean
): Pick<View, "inventory" | "reread"> => {
  if (before === null) return { inventory: newer, reread: new Map() }
  const nbd = overlayNbd(before.nbd, newer.nbd, whole)
  if (whole) return { inventory: { ...newer, nbd }, reread: new Map() }
  const { cloud } = newer
  const again = cloud._tag === "Unread" ? [] : cloud.value.volumes.map(({ id }) => [id, cloud.started_at] as const)
  return { inventory: { ...overlay(before, newer), nbd }, reread: new Map([...reread, ...again]) }
}

/** Between passes: a reading of the NBD side alone, and what it changes in the statuses that passes made. */
export const verified = (before: View, nbd: Inventory["nbd"]): View => {
  const { inventory, statuses } = before
  if (inventory === null) return before
  const answers = new Map(nbd._tag === "Unread" ? [] : nbd.value.verifications.map((one) => [one.name, one]))
  return {
    ...before,
    inventory: { ...inventory, nbd: overlayNbd(inventory.nbd, nbd, false) },
    statuses: new Map(
      [...statuses].map(([uid, status]) => {
        const answer = answers.get(status.export?.name ?? "")
        return [uid, answer === undefined ? status : asked(status, answer)] as const
      })
    )
  }
}

const asked = (status: Status, { outcome, verified_at }: Verification): Status => {
  if (status.export === null) return status
  const at = outcome === "served" ? DateTime.formatIso(DateTime.unsafeMake(verified_at)) : null
  return { ...status, export: { ...status.export, verified_at: at } }
}

/** For answers only: the last whole reading with the newer rows of a partial one laid over it. */
const overlay = (before: Inventory, newer: Inventory): Inventory => {
  const { cloud } = newer
  if (cloud._tag === "Unread" || before.cloud._tag === "Unread" || cloud.value.scope === "all") return newer
  const rows = new Map<VolumeId, CloudVolume>(before.cloud.value.volumes.map((v) => [v.id, v]))
  for (const id of cloud.value.absent) rows.delete(id)
  for (const volume of cloud.value.volumes) rows.set(volume.id, volume)
  return { ...newer, cloud: { ...before.cloud, value: { ...before.cloud.value, volumes: [...rows.values()] } } }
}

/**
 * Of each export the newest answer, of all else the newest reading: a pass may have waited long for CloudStack since it
 * read the NBD side. What a whole reading did not ask for any more is forgotten.
 */
const overlayNbd = (before: Inventory["nbd"], newer: Inventory["nbd"], whole: boolean): Inventory["nbd"] => {
  if (newer._tag === "Unread" || before._tag === "Unread") {
    return before._tag === "Known" && newer._tag === "Unread" && before.started_at > newer.at ? before : newer
  }
  const isOlder = before.started_at > newer.started_at
  const [last, other] = isOlder ? [before, newer] : [newer, before]
  const answers = new Map(newer.value.verifications.map((one) => [one.name, one]))
  for (const one of before.value.verifications) {
    const found = answers.get(one.name)
    if (found === undefined ? !whole : found.verified_at < one.verified_at) answers.set(one.name, one)
  }
  const order = [...other.value.verifications, ...last.value.verifications].map(({ name }) => name)
  const verifications = [...new Set(order)].flatMap((name) => answers.get(name) ?? [])
  return { ...last, value: { ...last.value, verifications } }
}

export const overlayPlan = (before: Plan, newer: Plan, declarations: ReadonlyArray<Declaration>): Plan => {
  const items = new Map(before.items.map((item) => [item.uid, item]))
  for (const item of newer.items) items.set(item.uid, item)
  return { ...newer, items: declarations.flatMap((d) => Option.toArray(Option.fromNullable(items.get(d.uid)))) }
}
