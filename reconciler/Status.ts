import { DateTime } from "effect"
import type { Action, Aspect, Blocked, PlanItem } from "../schema/Action.ts"
import type { Condition, ConditionType, Status } from "../schema/Condition.ts"
import type { Declaration } from "../schema/Declaration.ts"
import type { OperationId } from "../schema/Ids.ts"
import type { Inventory } from "../schema/Inventory.ts"
import * as Merge from "./Merge.ts"
import * as Served from "./Served.ts"

export interface Input {
  readonly declaration: Declaration
  /** Null before the first observation: then everything is unknown. */
  readonly inventory: Inventory | null
  /** What the newest plan says of it; null when it was not planned for yet. */
  readonly item: PlanItem | null
  readonly last_operation_id: OperationId | null
  readonly previous: ReadonlyArray<Condition>
  /** ms since the epoch; null when it does not back off. */
  readonly retry_at: number | null
  /** ms since the epoch. */
  readonly now: number
}

/** What people see of one declaration. */
export const make = (input: Input): Status => {
  const { declaration, item } = input
  const view = input.inventory === null ? null : mergedOf(input.inventory).view(declaration)
  const row = view?.row ?? null
  const here = row !== null && row.vm_id === input.inventory?.appliance_vm_id
  const device = here ? (view?.device ?? null) : null
  const facts = conditions(input, view)
  return {
    observed_generation: item?.generation ?? declaration.generation,
    volume_id: declaration.binding.volume_id,
    volume_name: row?.name ?? null,
    volume_state: row?.state ?? null,
    size: row?.size ?? null,
    attached_to: row?.vm_id ?? null,
    by_id_path: device?.by_id_paths[0] ?? null,
    kernel_path: device?.kernel_path ?? null,
    export: exportOf(input, view),
    conditions: facts.map((fact) => stamped(input, fact)),
    next_actions: (item?.chain ?? []).map((action) => snake(action._tag)),
    last_operation_id: input.last_operation_id,
    retry_at: input.retry_at === null ? null : iso(input.retry_at)
  }
}

const iso = (ms: number) => DateTime.formatIso(DateTime.unsafeMake(ms))

const snake = (tag: string) => tag.replace(/(?<=[a-z])[A-Z]/g, "_$&").toLowerCase()

// One inventory serves the statuses of all declarations of a pass; indexing it once for each would be quadratic.
const indexed = new WeakMap<Inventory, Merge.Merged>()
const mergedOf = (inventory: Inventory): Merge.Merged => {
  const known = indexed.get(inventory)
  if (known !== undefined) return known
  const merged = Merge.make(inventory, [])
  indexed.set(inventory, merged)
  return merged
}

const exportOf = ({ declaration, inventory }: Input, view: Merge.View | null): Status["export"] => {
  if (view === null || inventory === null || inventory.nbd._tag === "Unread") return null
  const name = declaration.binding.export?.name ?? null
  if (name === null || view.own === null) return null
  const { engine, host, port, read_only_port } = inventory.nbd.value
  const served = view.verification?.outcome === "served" ? view.verification : null
  return {
    name,
    host,
    port: view.own.read_only ? read_only_port : port,
    verified_at: served === null ? null : iso(served.verified_at),
    connections: view.holders.filter((holder) => holder.peer !== null).length,
    simulated: engine === "simulated"
  }
}

/** A condition before it has a time. */
type Fact = Omit<Condition, "observed_generation" | "last_transition_time">

const stamped = ({ declaration, item, now, previous }: Input, fact: Fact): Condition => {
  const was = previous.find((condition) => condition.type === fact.type)
  const same = was !== undefined && was.status === fact.status && was.reason === fact.reason
  return {
    ...fact,
    observed_generation: item?.generation ?? declaration.generation,
    last_transition_time: same ? was.last_transition_time : iso(now)
  }
}

const fact = (type: ConditionType, status: Fact["status"], reason: string, message: string): Fact => ({
  type,
  status,
  reason,
  category: null,
  message,
  suggestion: null
})

const blockedFact = (type: ConditionType, blocked: Blocked): Fact => ({
  type,
  status: unreadReasons.has(blocked.reason) ? "Unknown" : "False",
  reason: blocked.reason,
  category: blocked.category,
  message: blocked.message,
  suggestion: blocked.suggestion
})

/** Reasons that say nothing was seen, so that nothing can be said. */
const unreadReasons: ReadonlySet<string> = new Set([
  "CloudStackUnread",
  "GuestUnread",
  "NbdUnread",
  "ObservationIncomplete",
  "Ambiguous"
])

const conditionOf: Readonly<Record<Aspect, ConditionType | null>> = {
  volume: "Provisioned",
  attachment: "Attached",
  device: "DevicePresent",
  export: "Exported",
  deletion: "Removed",
  tags: null
}

const conditions = (input: Input, view: Merge.View | null): ReadonlyArray<Fact> => {
  const { item } = input
  const seen = [provisioned(view), attached(input, view), devicePresent(input, view), exported(input, view)]
  const facts = [...seen, ready(input), paused(input), removed(input)]
  const gap = item === null || item.gap === null ? null : conditionOf[item.gap]
  if (item === null || gap === null || item.settled) return facts
  // The gap that comes first names what holds it up; what comes after it only waits.
  return facts.map((f) => (f.type === gap ? obstacle(item, f) : f))
}

const obstacle = (item: PlanItem, seen: Fact): Fact => {
  if (item.blocked !== null) return blockedFact(seen.type, item.blocked)
  if (item.next === null) return seen
  if (seen.type === "Exported" && repairs(item.next) && !unbegun.has(seen.reason)) {
    return { ...seen, status: "False", category: "progress", message: item.next.reason }
  }
  return {
    ...seen,
    status: "False",
    reason: "Progressing",
    category: "progress",
    message: item.next.reason,
    suggestion: null
  }
}

const repairs = ({ _tag }: Action): boolean => _tag === "Export" || _tag === "MigratePath"

/** Nothing is wrong with what was never there. */
const unbegun: ReadonlySet<string> = new Set(["NotServed", "NotConfigured"])

const unknown = (type: ConditionType, what: string) => fact(type, "Unknown", "NotObserved", `${what} was not read`)

const provisioned = (view: Merge.View | null): Fact => {
  if (view === null || view.cloud === "unread") return unknown("Provisioned", "CloudStack")
  if (view.declaration.binding.volume_id === null) {
    return fact("Provisioned", "False", "NotBound", "no volume belongs to the declaration yet")
  }
  return view.row === null
    ? fact("Provisioned", "Unknown", "NotSeen", `volume ${view.volume_id} is not in the newest reading`)
    : fact("Provisioned", "True", "Bound", `volume ${view.row.id} is ${view.row.state}`)
}

const applianceOf = (input: Input) => input.inventory?.appliance_vm_id ?? null

const wishOf = (input: Input) => {
  const { attached_to } = input.declaration.spec
  return attached_to === "appliance" ? applianceOf(input) : attached_to
}

const attached = (input: Input, view: Merge.View | null): Fact => {
  if (view === null || view.cloud === "unread") return unknown("Attached", "CloudStack")
  const { row } = view
  if (row === null) return fact("Attached", "False", "NoVolume", "there is no volume to attach yet")
  const wish = wishOf(input)
  const where = row.vm_id === null ? "attached to no VM" : `on VM ${row.vm_name ?? row.vm_id}`
  const status = row.vm_id === null ? "False" : "True"
  if (wish === null) return fact("Attached", status, "NotManaged", `${where}; the declaration leaves that open`)
  if (row.vm_id === null) return fact("Attached", "False", wish === "none" ? "NotWanted" : "Detached", where)
  return row.vm_id === wish
    ? fact("Attached", "True", "Attached", where)
    : fact("Attached", "False", "Elsewhere", where)
}

/** Wanted elsewhere, or seen elsewhere while nobody said where it should be. */
const isElsewhere = (input: Input, view: Merge.View): boolean => {
  const wish = wishOf(input)
  return wish === null ? view.row?.vm_id !== applianceOf(input) : wish !== applianceOf(input)
}

const devicePresent = (input: Input, view: Merge.View | null): Fact => {
  if (view === null) return unknown("DevicePresent", "the guest")
  if (isElsewhere(input, view))
    return fact("DevicePresent", "False", "NotOnAppliance", "the volume is not for the appliance")
  if (view.volume_id === null) return fact("DevicePresent", "False", "NoVolume", "there is no volume yet")
  switch (view.guest) {
    case "unread":
      return unknown("DevicePresent", "the guest")
    case "absent":
      return fact("DevicePresent", "False", "Absent", "the guest shows no disk with the volume's serial")
    case "ambiguous":
      return fact("DevicePresent", "False", "DeviceAmbiguous", "more than one disk or volume bears the serial")
    case "present":
      return fact("DevicePresent", "True", "Present", `the guest shows it as ${view.device?.kernel_path ?? "a disk"}`)
  }
}

const exported = (input: Input, view: Merge.View | null): Fact => {
  if (view === null || input.inventory === null) return unknown("Exported", "the NBD server")
  const { export_wanted, read_only } = input.declaration.spec
  if (isElsewhere(input, view))
    return fact("Exported", "False", "NotOnAppliance", "the volume is not for the appliance")
  if (view.nbd === "unread") return unknown("Exported", "the NBD server")
  const served = view.verification?.outcome === "served"
  const what = served ? `${view.verification?.name} is served` : "it is not served"
  const begun = input.declaration.binding.export !== null
  const fault = begun ? Served.fault(mergedOf(input.inventory), view, read_only) : null
  const seen = fault === null ? what : `${what}: ${fault.message}`
  if (export_wanted === null) {
    const right = served && Served.astray(mergedOf(input.inventory), view) === null
    return fact("Exported", right ? "True" : "False", "NotManaged", `${seen}; the declaration leaves that open`)
  }
  if (!export_wanted) return fact("Exported", served ? "True" : "False", served ? "StillServed" : "NotWanted", what)
  if (served && input.item?.settled === true) return fact("Exported", "True", "Served", what)
  return fact("Exported", "False", fault?.reason ?? (served ? "Unverified" : "NotServed"), seen)
}

const ready = ({ inventory, item }: Input): Fact => {
  if (item === null || inventory === null) return fact("Ready", "Unknown", "NotObserved", "it was not looked at yet")
  if (item.removal_done) return fact("Ready", "False", "Removed", "the declaration is removed")
  if (item.settled) return fact("Ready", "True", "Settled", "everything declared is so")
  if (item.blocked !== null) return blockedFact("Ready", item.blocked)
  const message = item.next?.reason ?? "something declared is not so yet"
  return { ...fact("Ready", "False", "Progressing", message), category: "progress" }
}

const paused = ({ declaration, now }: Input): Fact => {
  const { paused: pause } = declaration.spec
  if (pause === null) return fact("Paused", "False", "NotPaused", "")
  const over = pause.until !== undefined && Date.parse(pause.until) <= now
  if (over) return fact("Paused", "False", "PauseOver", `the pause ended at ${pause.until}`)
  return { ...fact("Paused", "True", "Paused", `by ${pause.by}: ${pause.reason}`), category: "warning" }
}

const removed = ({ declaration, item }: Input): Fact => {
  const { deletion, removed_at } = declaration
  if (removed_at !== null || item?.removal_done === true)
    return fact("Removed", "True", "Removed", "nothing is left to do")
  if (deletion === null) return fact("Removed", "False", "NotRequested", "")
  return { ...fact("Removed", "False", "Removing", `removal with policy ${deletion.policy}`), category: "progress" }
}
