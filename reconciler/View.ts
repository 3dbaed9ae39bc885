import { DateTime, Option } from "effect"
import type { Plan } from "../schema/Action.ts"
import type { Condition, Status } from "../schema/Condition.ts"
import type { Declaration } from "../schema/Declaration.ts"
import type { Uid, VmId, VolumeId } from "../schema/Ids.ts"
import type { CloudVolume, Inventory } from "../schema/Inventory.ts"
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
  if (whole || before === null) return { inventory: newer, reread: new Map() }
  const { cloud } = newer
  const again = cloud._tag === "Unread" ? [] : cloud.value.volumes.map(({ id }) => [id, cloud.started_at] as const)
  return { inventory: overlay(before, newer), reread: new Map([...reread, ...again]) }
}

/** For answers only: the last whole reading with the newer rows of a partial one laid over it. */
const overlay = (before: Inventory, newer: Inventory): Inventory => {
  const { cloud } = newer
  if (cloud._tag === "Unread" || before.cloud._tag === "Unread" || cloud.value.scope === "all") return newer
  const rows = new Map<VolumeId, CloudVolume>(before.cloud.value.volumes.map((v) => [v.id, v]))
  for (const id of cloud.value.absent) rows.delete(id)
  for (const volume of cloud.value.volumes) rows.set(volume.id, volume)
  return {
    ...newer,
    cloud: { ...before.cloud, value: { ...before.cloud.value, volumes: [...rows.values()] } },
    nbd: overlayNbd(before, newer)
  }
}

const overlayNbd = (before: Inventory, newer: Inventory): Inventory["nbd"] => {
  if (newer.nbd._tag === "Unread" || before.nbd._tag === "Unread") return newer.nbd
  const asked = new Set(newer.nbd.value.verifications.map((v) => v.name))
  const kept = before.nbd.value.verifications.filter((v) => !asked.has(v.name))
  return { ...newer.nbd, value: { ...newer.nbd.value, verifications: [...kept, ...newer.nbd.value.verifications] } }
}

export const overlayPlan = (before: Plan, newer: Plan, declarations: ReadonlyArray<Declaration>): Plan => {
  const items = new Map(before.items.map((item) => [item.uid, item]))
  for (const item of newer.items) items.set(item.uid, item)
  return { ...newer, items: declarations.flatMap((d) => Option.toArray(Option.fromNullable(items.get(d.uid)))) }
}
