import type { Action, Guard, Plan, PlanItem } from "../schema/Action.ts"
import { UID_TAG } from "../schema/Action.ts"
import type { Declaration } from "../schema/Declaration.ts"
import { serialOf } from "../schema/Ids.ts"
import type { Uid, VolumeId } from "../schema/Ids.ts"
import type { CloudReading, CloudVolume, GuestReading, NbdReading } from "../schema/Inventory.ts"
import type { Operation } from "../schema/Operation.ts"
import * as CustomId from "./CustomId.ts"
import type { Input } from "./Plan.ts"

/** An invariant of the safety catalogue that a finished plan would break. Its volume is left alone (S24). */
export interface Violation {
  readonly invariant: `S${number}`
  readonly uid: Uid
  readonly message: string
}

/** The inventory as the rules below read it: plain arrays, searched anew, so that no index of the planner's is trusted. */
interface Facts {
  readonly input: Input
  readonly cloud: CloudReading | null
  readonly cloudComplete: boolean
  readonly guest: GuestReading | null
  readonly guestComplete: boolean
  readonly nbd: NbdReading | null
  readonly nbdComplete: boolean
  readonly rows: ReadonlyMap<VolumeId, CloudVolume>
  readonly declarations: ReadonlyMap<Uid, Declaration>
  /** How many living declarations are bound to a volume. */
  readonly bound: ReadonlyMap<VolumeId, number>
  readonly unresolved: ReadonlyArray<Operation>
  readonly suspect: () => boolean
}

/** What one rule says about one action; null when it is content. */
type Rule = (facts: Facts, declaration: Declaration, action: Action, row: CloudVolume | null) => string | null

/** Look at a finished plan with other eyes than those that made it. Empty when every invariant holds. */
export const check = (input: Input, plan: Plan): ReadonlyArray<Violation> => {
  const touching = plan.items.filter((item) => item.next !== null || item.guard !== null)
  if (touching.length === 0) return []
  const facts = factsOf(input, touching)
  const acting = touching.filter((item) => item.next !== null)
  return [...touching.flatMap((item) => [...ofOne(facts, item), ...ofGuard(facts, item)]), ...ofMany(facts, acting)]
}

const factsOf = (input: Input, acting: ReadonlyArray<PlanItem>): Facts => {
  const { cloud, guest, nbd } = input.inventory
  const touched = new Set<VolumeId>()
  for (const { next, volume_id } of acting) {
    if (volume_id !== null) touched.add(volume_id)
    if (next !== null && next._tag !== "Create") touched.add(next.volume_id)
  }
  const rows = new Map<VolumeId, CloudVolume>()
  if (cloud._tag === "Known") for (const row of cloud.value.volumes) if (touched.has(row.id)) rows.set(row.id, row)
  const uids = new Set(acting.map((item) => item.uid))
  const declarations = new Map<Uid, Declaration>()
  const bound = new Map<VolumeId, number>()
  for (const d of input.declarations) {
    if (uids.has(d.uid)) declarations.set(d.uid, d)
    const id = d.removed_at === null ? d.binding.volume_id : null
    if (id !== null && touched.has(id)) bound.set(id, (bound.get(id) ?? 0) + 1)
  }
  let suspect: boolean | null = null
  return {
    input,
    cloud: cloud._tag === "Known" ? cloud.value : null,
    cloudComplete: cloud._tag === "Known" && cloud.complete,
    guest: guest._tag === "Known" ? guest.value : null,
    guestComplete: guest._tag === "Known" && guest.complete,
    nbd: nbd._tag === "Known" ? nbd.value : null,
    nbdComplete: nbd._tag === "Known" && nbd.complete,
    rows,
    declarations,
    bound,
    unresolved: input.operations.filter(
      (o) => o.phase !== "settled" && o.phase !== "refused" && o.status !== "cancelled"
    ),
    suspect: () => (suspect ??= tooManyMissing(input))
  }
}

/** S17's threshold, counted from the readings again. */
const tooManyMissing = ({ approved, declarations, inventory, limits, now }: Input): boolean => {
  const { cloud } = inventory
  if (cloud._tag === "Unread") return true
  const { absent, ambiguous, scope, unresolved, volumes } = cloud.value
  const shown = new Set<VolumeId>([...volumes.map((v) => v.id), ...ambiguous])
  const denied = new Set<VolumeId>([...absent, ...unresolved])
  let bound = 0
  let missing = 0
  for (const { binding, deletion, generation, removed_at, uid } of declarations) {
    const { loss, volume_id } = binding
    const ourDelete = deletion?.policy === "delete" && Date.parse(deletion.execute_after) <= now
    if (removed_at !== null || volume_id === null || loss?.accepted === true || ourDelete) continue
    bound += 1
    if (shown.has(volume_id) || approved.has(`${uid} ${generation} ${volume_id} accept_loss`)) continue
    const unlisted = scope === "all" ? cloud.complete : loss !== null
    if (denied.has(volume_id) || unlisted) missing += 1
  }
  return missing >= limits.suspicion_count && missing > limits.suspicion_share * bound
}

const ofOne = (facts: Facts, item: PlanItem): ReadonlyArray<Violation> => {
  const action = item.next
  const declaration = facts.declarations.get(item.uid)
  if (action === null) return []
  if (declaration === undefined) return [{ invariant: "S4", uid: item.uid, message: "nobody declared this volume" }]
  const row = action._tag === "Create" ? null : (facts.rows.get(action.volume_id) ?? null)
  return rules.flatMap(([invariant, rule]) => {
    const message = rule(facts, declaration, action, row)
    return message === null ? [] : [{ invariant, uid: item.uid, message: `${action._tag}: ${message}` }]
  })
}

const callsCloud = ({ _tag }: Action) =>
  _tag === "Create" || _tag === "Attach" || _tag === "Detach" || _tag === "Tag" || _tag === "Delete"

const exports = (action: Action) => (action._tag === "Export" || action._tag === "MigratePath" ? action : null)

const held: Rule = ({ input }, { spec }) => {
  const hold = input.hold ?? input.maintenance
  if (hold !== null) return `nothing may be changed: ${hold}`
  const { paused } = spec
  const running = paused !== null && (paused.until === undefined || Date.parse(paused.until) > input.now)
  return running ? "the declaration is paused" : null
}

const current: Rule = (_, { generation, uid }, action) =>
  action.generation === generation && action.uid === uid
    ? null
    : `planned for generation ${action.generation}, not ${generation}`

const alone: Rule = ({ unresolved }, { uid }, action, row) => {
  if (row !== null && row.job_id !== null) return `job ${row.job_id} is pending on the volume`
  const id = action._tag === "Create" ? null : action.volume_id
  const other = unresolved.find((o) => o.uid === uid || (id !== null && o.volume_id === id))
  return other === undefined ? null : `operation ${other.id} has no known outcome yet`
}

const owned: Rule = (facts, declaration, action, row) => {
  const { binding, spec, uid } = declaration
  if (action._tag === "Create") return null
  const holders = facts.bound.get(action.volume_id) ?? 0
  if (action._tag === "Adopt") {
    if (binding.volume_id !== null || holders > 0) return "the volume or the declaration is bound already"
    const marked = row !== null && row.tags.some((t) => t.key.toLowerCase() === UID_TAG && t.value === uid)
    const chosen = CustomId.derive(facts.input.digest, declaration) === action.volume_id
    return spec.volume_id === action.volume_id || (spec.volume_id === null && (marked || chosen))
      ? null
      : "the volume was not declared"
  }
  if (binding.volume_id !== action.volume_id) return "the volume is not this declaration's"
  if (holders !== 1) return `${holders} declarations are bound to the volume`
  const wrongZone = row !== null && spec.zone_id !== null && row.zone_id !== null && row.zone_id !== spec.zone_id
  return wrongZone && declaration.deletion === null ? "the volume is in another zone than declared" : null
}

const seen: Rule = (facts, declaration, action, row) => {
  if (action._tag === "Create") return null
  const doubtful = facts.cloud?.ambiguous.includes(action.volume_id) === true
  if (doubtful) return "the readings of this volume contradict each other"
  if (row !== null) return null
  const proven = declaration.binding.export !== null && declaration.binding.settled_generation >= declaration.generation
  const again = exports(action)
  const same = again !== null && again._tag === "Export" && again.path === declaration.binding.export?.path
  return facts.cloud === null && proven && same ? null : "CloudStack does not show the volume"
}

const notRoot: Rule = (facts, declaration, action, row) => {
  if (row === null || row.type === "DATADISK" || action._tag === "Unexport") return null
  const { attachment } = declaration.binding
  const state = facts.cloud?.vms.find((vm) => vm.id === row.vm_id)?.state ?? row.vm_state
  const made = attachment !== null && attachment.as === "root" && attachment.settled && attachment.vm_id === row.vm_id
  const excepted = action._tag === "Detach" && action.root && made && row.type === "ROOT" && state === "Stopped"
  return excepted ? null : `the volume is of type ${row.type}`
}

const states: ReadonlyArray<string> = ["Allocated", "Ready", "Uploaded"]

const restful: Rule = (_, __, action, row) => {
  if (row === null || states.includes(row.state)) return null
  return action._tag === "Delete" && row.state === "Destroy" ? null : `the volume is in state ${row.state}`
}

const trusted: Rule = (facts, _, action) => {
  if (callsCloud(action) && !facts.cloudComplete) return "CloudStack's reading is not complete"
  if (!action.destructive && action._tag !== "Create") return null
  if (facts.cloud?.scope !== "all" || !facts.cloudComplete) return "it needs a whole listing"
  return facts.suspect() ? "too many volumes are missing at once" : null
}

const single: Rule = (facts, { spec }, action, row) => {
  if (action._tag !== "Attach") return null
  if (row === null || row.vm_id !== null) return "CloudStack does not say that the volume is on no VM"
  if (!facts.guestComplete) return "the guest was not read whole"
  const serial = serialOf(action.volume_id)
  if (facts.guest?.devices.some((d) => d.serial === serial) === true) return "the guest still has the disk"
  const to = spec.attached_to === "appliance" ? facts.input.inventory.appliance_vm_id : spec.attached_to
  if (to !== action.vm_id) return "the declaration does not want it there"
  return action.as === "root" && action.vm_id === facts.input.inventory.appliance_vm_id
    ? "the appliance takes no root volume"
    : null
}

/** Names of sections and granted handshakes that lead to a volume. */
const leading = ({ guest, nbd }: Facts, { binding }: Declaration, id: VolumeId): ReadonlyArray<string> => {
  const device = guest?.devices.find((d) => d.serial === serialOf(id))
  const paths = device === undefined ? [] : [device.kernel_path, ...device.by_id_paths]
  const names = [`migration-vol-${id}`, binding.export?.name]
  const leads = (name: string, path: string | null) => names.includes(name) || (path !== null && paths.includes(path))
  return [
    ...(nbd?.sections ?? []).filter((s) => leads(s.name, s.path)).map((s) => s.name),
    ...(nbd?.verifications ?? []).filter((v) => v.outcome === "served" && names.includes(v.name)).map((v) => v.name)
  ]
}

const holding = ({ guest, nbd }: Facts, id: VolumeId): boolean =>
  (guest?.devices ?? []).some(
    (d) => d.serial === serialOf(id) && (nbd?.holders ?? []).some((holder) => holder.device === d.identity)
  )

const ordered: Rule = (facts, declaration, action, row) => {
  if (action._tag !== "Detach" && action._tag !== "Unexport") return null
  const here = row !== null && row.vm_id === facts.input.inventory.appliance_vm_id
  if ((here || action._tag === "Unexport") && !facts.nbdComplete) return "the NBD server was not read whole"
  if (holding(facts, action.volume_id)) return "somebody has the device open"
  if (action._tag === "Unexport") return null
  if (row === null || row.vm_id !== action.vm_id) return "the volume is not on that VM"
  if (!here) return null
  if (facts.guest === null) return "the guest was not read"
  const [name] = leading(facts, declaration, action.volume_id)
  return name === undefined ? null : `the export ${name} still leads to it`
}

const deliberate: Rule = (facts, declaration, action, row) => {
  if (action._tag !== "Delete") return null
  const { deletion } = declaration
  if (deletion === null || deletion.policy !== "delete") return "no deletion was declared"
  if (!(Date.parse(deletion.execute_after) <= facts.input.now)) return "the grace is not over"
  if (row === null || row.vm_id !== null) return "the volume is not seen on no VM"
  if (row.delete_protection) return "the volume is protected"
  if (!facts.guestComplete) return "the guest was not read whole"
  if (facts.guest?.devices.some((d) => d.serial === serialOf(action.volume_id)) === true)
    return "the guest has the disk"
  const name = declaration.binding.export?.name
  const left = name !== undefined && leading(facts, declaration, action.volume_id).includes(name)
  return left ? `the export ${name} still leads to it` : null
}

const notStolen: Rule = (_, { binding, spec }, action, row) => {
  if (action._tag !== "Detach" && action._tag !== "Tag") return null
  if (row === null || row.vm_id === null || binding.attachment?.vm_id === row.vm_id) return null
  return action._tag === "Detach" && spec.on_conflict === "move"
    ? null
    : `its attachment to VM ${row.vm_id} is not ours`
}

const rightDevice: Rule = (facts, declaration, action, row) => {
  const wanted = exports(action)
  if (wanted === null) return null
  const devices = (facts.guest?.devices ?? []).filter((d) => d.serial === serialOf(wanted.volume_id))
  const [device] = devices
  if (device === undefined || devices.length > 1) return `${devices.length} disks bear the volume's serial`
  if (device.identity !== wanted.device || device.size !== wanted.size) return "the disk is another than planned for"
  if (!device.by_id_paths.includes(wanted.path)) return `${wanted.path} does not lead to the volume's disk`
  if (device.forbidden !== null) return `the disk must not be exported: ${device.forbidden}`
  if (row !== null && row.vm_id !== facts.input.inventory.appliance_vm_id)
    return "CloudStack does not show it on the appliance"
  return declaration.spec.export_wanted === true ? null : "nobody wants it exported"
}

const singleName: Rule = (facts, declaration, action) => {
  const wanted = exports(action)
  if (wanted === null) return null
  const { uid } = declaration
  const rival = facts.input.declarations.find(
    (d) => d.uid !== uid && d.removed_at === null && d.binding.export?.name === wanted.export_name
  )
  if (rival !== undefined) return `the name ${wanted.export_name} is ${rival.name}'s`
  const other = (facts.nbd?.sections ?? []).find((s) => s.path === wanted.path && s.name !== wanted.export_name)
  return other === undefined ? null : `the section ${other.name} serves ${wanted.path} already`
}

const newborn: Rule = (facts, declaration, action) => {
  if (action._tag !== "Create") return null
  const { binding, spec, uid } = declaration
  if (action.custom_id !== null && facts.cloud?.custom_ids !== true) return "the account may not choose an id"
  if (action.custom_id !== null && action.custom_id !== CustomId.derive(facts.input.digest, declaration)) {
    return "the chosen id is not this declaration's"
  }
  const lost = binding.loss !== null && binding.loss.proven_at !== null && spec.on_loss === "recreate"
  if (binding.volume_id !== null && !lost) return "the declaration has a volume already"
  if (binding.volume_id === null && spec.volume_id !== null) return "the declaration names a volume to adopt"
  const volumes = facts.cloud?.volumes ?? []
  if (volumes.some((v) => v.tags.some((t) => t.key.toLowerCase() === UID_TAG && t.value === uid))) {
    return "a volume with this declaration's uid exists"
  }
  const named = volumes
    .filter((v) => v.name === action.cloudstack_name)
    .every((v) => action.existing_ids.includes(v.id))
  return named ? null : "a volume of that name is not among the known ones"
}

const rules: ReadonlyArray<readonly [Violation["invariant"], Rule]> = [
  ["S1", single],
  ["S2", alone],
  ["S3", rightDevice],
  ["S3", singleName],
  ["S4", owned],
  ["S4", seen],
  ["S5", notRoot],
  ["S6", deliberate],
  ["S8", held],
  ["S10", newborn],
  ["S11", ordered],
  ["S15", current],
  ["S17", trusted],
  ["S17", restful],
  ["S23", notStolen]
]

/** What one rule says about a guard; null when it is content. */
type GuardRule = (facts: Facts, declaration: Declaration, guard: Guard) => string | null

const ofGuard = (facts: Facts, { guard, uid }: PlanItem): ReadonlyArray<Violation> => {
  const declaration = facts.declarations.get(uid)
  if (guard === null) return []
  if (declaration === undefined) return [{ invariant: "S4", uid, message: "nobody declared this export" }]
  return guardRules.flatMap(([invariant, rule]) => {
    const message = rule(facts, declaration, guard)
    return message === null ? [] : [{ invariant, uid, message: `${guard._tag}: ${message}` }]
  })
}

const unheld: GuardRule = ({ input }, { spec }, { _tag }) => {
  const hold = input.hold ?? input.maintenance
  if (hold !== null) return `nothing may be changed: ${hold}`
  const running = spec.paused !== null && (spec.paused.until === undefined || Date.parse(spec.paused.until) > input.now)
  return running && _tag !== "Fence" ? "the declaration is paused" : null
}

const ownExport: GuardRule = (facts, { binding, deletion, uid }, { _tag, export_name }) => {
  if (binding.export?.name !== export_name) return `${export_name} is not this declaration's export`
  const rival = facts.input.declarations.find(
    (d) => d.uid !== uid && d.removed_at === null && d.binding.export?.name === export_name
  )
  if (rival !== undefined) return `${export_name} is ${rival.name}'s as well`
  const holders = binding.volume_id === null ? 0 : (facts.bound.get(binding.volume_id) ?? 0)
  if (holders !== 1) return `${holders} declarations are bound to the volume`
  return deletion?.policy === "forget" && _tag !== "Release" ? "its declaration is forgotten" : null
}

/** The disks that bear the volume's serial, whatever the planner made of them. */
const disksOf = ({ guest }: Facts, { binding }: Declaration) => {
  const serial = binding.volume_id === null ? null : serialOf(binding.volume_id)
  return (guest?.devices ?? []).filter((device) => device.serial === serial)
}

const goes = ({ input }: Facts, { deletion, spec }: Declaration): boolean => {
  if (deletion !== null) return deletion.policy !== "forget"
  const to = spec.attached_to === "appliance" ? input.inventory.appliance_vm_id : spec.attached_to
  return spec.export_wanted === false || (to !== null && to !== input.inventory.appliance_vm_id)
}

const openedRightly: GuardRule = (facts, declaration, guard) => {
  if (guard._tag !== "Release") return null
  const section = facts.nbd?.sections.find(({ name }) => name === guard.export_name)
  const disks = disksOf(facts, declaration)
  if (section === undefined) return "the file has no section for it"
  if (disks.length !== 1) return `${disks.length} disks bear the volume's serial`
  if (disks[0]?.identity !== section.device) return `its path leads to ${section.device ?? "no disk"}`
  if (disks[0]?.forbidden != null) return `the disk must not be exported: ${disks[0].forbidden}`
  if (facts.input.astray.has(guard.export_name)) return "it led to another disk lately"
  return goes(facts, declaration) ? "it is to go" : null
}

const agreed: GuardRule = (facts, declaration, guard) => {
  if (guard._tag !== "EndClients") return null
  const consent = facts.input.consents.get(declaration.uid)
  if (consent === undefined || consent > facts.input.now) return "nobody agreed to that"
  const disks = disksOf(facts, declaration)
  if (disks.length !== 1 || disks[0]?.identity !== guard.device) return `${guard.device} is not this volume's disk`
  const section = facts.nbd?.sections.find(({ name }) => name === guard.export_name)
  return section !== undefined && section.fenced_at === null ? "new clients are let in still" : null
}

/** Without a wish for it the only reason is that CloudStack shows the volume elsewhere, where it cannot be served. */
const leaving: GuardRule = (facts, declaration, guard) => {
  if (guard._tag !== "EndClients" || goes(facts, declaration)) return null
  const { volume_id } = declaration.binding
  const row = volume_id === null ? undefined : facts.rows.get(volume_id)
  return row !== undefined && row.vm_id !== facts.input.inventory.appliance_vm_id ? null : "nothing is to leave"
}

const guardRules: ReadonlyArray<readonly [Violation["invariant"], GuardRule]> = [
  ["S3", openedRightly],
  ["S4", ownExport],
  ["S8", unheld],
  ["S11", agreed],
  ["S11", leaving]
]

const ofMany = (facts: Facts, acting: ReadonlyArray<PlanItem>): ReadonlyArray<Violation> => {
  const volumes = new Set<string>()
  const uids = new Set<Uid>()
  const names = new Set<string>()
  const devices = new Set<string>()
  const twice = (set: Set<string>, key: string) => set.size === set.add(key).size
  const violations: Array<Violation> = []
  for (const { next, uid } of acting) {
    if (next === null) continue
    const volume = next._tag === "Create" ? uid : next.volume_id
    if (twice(volumes, volume) || twice(uids, uid)) {
      violations.push({ invariant: "S2", uid, message: `${next._tag}: a second action for one volume` })
    }
    const wanted = exports(next)
    if (wanted === null) continue
    const clash = twice(names, wanted.export_name)
    if (twice(devices, wanted.device) || clash) {
      violations.push({ invariant: "S3", uid, message: `${next._tag}: two exports with one name or one device` })
    }
  }
  return [...violations, ...overBudget(facts, acting), ...overCapacity(facts, acting)]
}

const overBudget = ({ input }: Facts, acting: ReadonlyArray<PlanItem>): ReadonlyArray<Violation> => {
  const { destructive_per_hour, destructive_per_pass } = input.limits
  const budget = Math.min(destructive_per_pass, destructive_per_hour - input.destructive_last_hour)
  const unasked = acting.filter(({ next }) => {
    if (next === null || !mustCount(next) || next._tag === "Create") return false
    return !input.approved.has(`${next.uid} ${next.generation} ${next.volume_id} ${next._tag.toLowerCase()}`)
  })
  return unasked.slice(Math.max(0, budget)).map(({ uid }) => ({
    invariant: "S17",
    uid,
    message: `the budget of ${Math.max(0, budget)} destructive actions is spent`
  }))
}

/** Counted by what an action is, not by what it says of itself. */
const mustCount = (action: Action) =>
  action.destructive ||
  action._tag === "Delete" ||
  ((action._tag === "Detach" || action._tag === "Unexport") && action.cause === "drift")

const overCapacity = ({ input, unresolved }: Facts, acting: ReadonlyArray<PlanItem>): ReadonlyArray<Violation> => {
  const running = unresolved.filter((o) => o.phase !== "needs_operator")
  const cloud = running.filter((o) => ["create", "attach", "detach", "delete", "tag"].includes(o.type))
  const perVm = new Map<string, number>()
  for (const o of running) {
    if (o.vm_id !== null && (o.type === "attach" || o.type === "detach"))
      perVm.set(o.vm_id, (perVm.get(o.vm_id) ?? 0) + 1)
  }
  let total = cloud.length
  return acting.flatMap(({ next, uid }): ReadonlyArray<Violation> => {
    if (next === null || !callsCloud(next)) return []
    total += 1
    const vm = next._tag === "Attach" || next._tag === "Detach" ? next.vm_id : null
    const onVm = vm === null ? 0 : (perVm.get(vm) ?? 0) + 1
    if (vm !== null) perVm.set(vm, onVm)
    const over = total > input.limits.actions_total || onVm > input.limits.actions_per_vm
    return over ? [{ invariant: "S22", uid, message: `${next._tag}: too many changes at once` }] : []
  })
}
