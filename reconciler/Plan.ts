import {
  type Action,
  type Blocked,
  type Held,
  type Plan,
  type PlanItem,
  type Withheld,
  isCloudAction
} from "../schema/Action.ts"
import type { Declaration } from "../schema/Declaration.ts"
import type { Uid, VmId, VolumeId } from "../schema/Ids.ts"
import type { Inventory } from "../schema/Inventory.ts"
import { isUnresolved, type Operation } from "../schema/Operation.ts"
import type { Limits } from "../schema/Settings.ts"
import * as Case from "./Case.ts"
import * as CustomId from "./CustomId.ts"
import * as Decision from "./Decision.ts"
import * as Guard from "./Guard.ts"
import * as Merge from "./Merge.ts"
import type { Maintenance } from "./Store.ts"
import * as Suspicion from "./Suspicion.ts"

/** Everything a plan depends on, as values. */
export interface Input {
  /** ms since the epoch. */
  readonly now: number
  /** All living declarations, whatever `only` says: claims, budgets and suspicion concern all of them. */
  readonly declarations: ReadonlyArray<Declaration>
  /** Plan for these alone; null plans for all. */
  readonly only: ReadonlySet<Uid> | null
  readonly inventory: Inventory
  /** Unresolved operations. */
  readonly operations: ReadonlyArray<Operation>
  readonly limits: Limits
  /** Destructive operations of the last hour. */
  readonly destructive_last_hour: number
  /** What a person has approved and is still valid, as keys of `heldKey`. */
  readonly approved: ReadonlySet<string>
  /** Volumes that back off: until when (ms), and after what. */
  readonly backoff: ReadonlyMap<Uid, { readonly retry_at: number; readonly message: string }>
  /** Since when somebody agrees to the NBD clients of a volume being ended, ms: a version 1 call, or `retry` with end_clients. */
  readonly consents: ReadonlyMap<Uid, number>
  /** Export names that were lately seen to lead to another disk than their volume's: a fence of theirs is not lifted yet. */
  readonly astray: ReadonlySet<string>
  /** Why nothing may be changed at all (the hold file), or null. */
  readonly hold: string | null
  /** The same, while there is a maintenance. */
  readonly maintenance: string | null
  /** What was pending when a maintenance ended and was not written since; it waits for approval. */
  readonly withheld: ReadonlyArray<Withheld>
  /** Hex digest of a text, SHA-256: handed in, for the core computes nothing that needs Node. */
  readonly digest: (text: string) => string
}

export const heldKey = Suspicion.heldKey

/** Why nothing is changed while there is a maintenance, as `Input.maintenance` says it. */
export const maintained = (maintenance: Maintenance | null): string | null => {
  if (maintenance === null) return null
  const { by, ending, reason, until } = maintenance
  const end = ending ? ", which ends once everything can be read" : until === null ? "" : ` until ${until}`
  return `maintenance by ${by}${end}: ${reason}`
}

/** A chain longer than this would mean that an action undoes another; the properties show that none is. */
const CHAIN = 8

/**
 * What is to be done now, and why not more: pure, total, deterministic. At most one action a volume, so that each pass
 * observes again before that volume's next step; a crash between two steps then needs no recovery code.
 */
export const make = (input: Input): Plan => {
  const declarations = inOrder(input.declarations)
  const merged = Merge.make(input.inventory, declarations)
  const suspicion = Suspicion.make(merged, declarations, input.limits, input.now, input.approved)
  const world: Case.World = {
    now: input.now,
    merged,
    limits: input.limits,
    suspect: suspicion.suspect,
    retrying: (uid) => input.backoff.has(uid as Uid),
    chosenId: (declaration) => CustomId.derive(input.digest, declaration),
    consents: input.consents,
    astray: input.astray
  }
  const busy = inFlight(input.operations)
  const waiting = waitingOf(input)
  const items: Array<PlanItem> = []
  for (const declaration of declarations) {
    if (input.only !== null && !input.only.has(declaration.uid)) continue
    items.push(itemOf(input, world, busy, waiting, declaration))
  }
  const withheld = afterMaintenance(waiting, items)
  const held = withhold(input, items)
  queue(input, world, items)
  oneByOne(input.operations, items)
  const all = suspicion.suspect ? [...held, ...suspicion.missing] : held
  const keys = all.map(heldKey).sort()
  return {
    at: input.now,
    items,
    held: all,
    digest: keys.length === 0 ? null : input.digest(keys.join("\n")),
    withheld,
    notices: noticesOf(input, suspicion)
  }
}

/** Living declarations in bytewise order of name, which is how the store hands them over already. */
const inOrder = (declarations: ReadonlyArray<Declaration>): ReadonlyArray<Declaration> => {
  const living = declarations.every((d) => d.removed_at === null)
    ? declarations
    : declarations.filter((d) => d.removed_at === null)
  const sorted = living.every((d, i) => i === 0 || (living[i - 1]?.name ?? "") <= d.name)
  return sorted ? living : [...living].sort((a, b) => (a.name < b.name ? -1 : 1))
}

// One volume

interface InFlight {
  readonly byUid: ReadonlyMap<Uid, Operation>
  readonly byVolume: ReadonlyMap<string, Operation>
}

const inFlight = (operations: ReadonlyArray<Operation>): InFlight => {
  const byUid = new Map<Uid, Operation>()
  const byVolume = new Map<string, Operation>()
  for (const operation of operations) {
    if (!isUnresolved(operation)) continue
    if (!byUid.has(operation.uid)) byUid.set(operation.uid, operation)
    if (operation.volume_id !== "" && !byVolume.has(operation.volume_id)) byVolume.set(operation.volume_id, operation)
  }
  return { byUid, byVolume }
}

const itemOf = (
  input: Input,
  world: Case.World,
  busy: InFlight,
  waiting: Waiting,
  declaration: Declaration
): PlanItem => {
  const view = world.merged.view(declaration)
  const decision = Decision.make(world, view)
  const { uid, name, generation } = declaration
  const { volume_id } = view
  const touched = decision.step?._tag === "Adopt" ? decision.step.volume_id : volume_id
  const operation = busy.byUid.get(uid) ?? (touched === null ? undefined : busy.byVolume.get(touched))
  const closed = closedFor(input, declaration)
  const around: Guard.Circumstances = {
    closed: input.hold !== null || input.maintenance !== null,
    paused: closed?.reason === "Paused",
    resting: (input.backoff.get(uid)?.retry_at ?? 0) > input.now,
    withheld: waiting.has(keyOf(decision.step)),
    operation
  }
  const guard = Guard.make(world, view, decision, around)
  const { drift, gap, removal_done, settled } = decision
  if (operation === undefined && settled && decision.step === null) {
    // Forgotten, nobody would let clients in again: what we shut is opened before the declaration is closed.
    const left = removal_done && view.own !== null && Guard.isOpening(world, view, decision, around)
    return {
      uid,
      name,
      generation,
      volume_id,
      next: null,
      chain: none,
      blocked: left ? Case.block("Fenced", `${view.own.name} denies new clients`, "nothing: it is left open") : null,
      guard,
      gap: left ? "deletion" : gap,
      drift,
      settled: settled && !left,
      removal_done: removal_done && !left
    }
  }
  const chain = decision.step === null ? none : chainOf(world, view, decision.step)
  const item = { uid, name, generation, volume_id, chain, guard, gap, drift }
  if (operation !== undefined) return { ...item, ...unfinished(input, declaration, decision, operation) }
  const free = decision.blocked === null && decision.step !== null
  const gate = free ? (closed ?? backingOff(input, declaration, decision.step?.reason ?? "")) : null
  if (settled && gate !== null) return { ...item, chain: none, next: null, blocked: null, settled, removal_done }
  const blocked = gate ?? (guard === null ? unguarded(input, declaration, view, decision, closed) : decision.blocked)
  return { ...item, next: blocked === null ? decision.step : null, blocked, settled, removal_done }
}

/** What waits for a guard that may not be given is held up by what forbids it. */
const unguarded = (
  input: Input,
  declaration: Declaration,
  view: Merge.View,
  { blocked }: Case.Decision,
  closed: Blocked | null
): Blocked | null => {
  if (blocked?.reason === "Fenced") return closed ?? backingOff(input, declaration, blocked.message) ?? blocked
  const due = (input.consents.get(declaration.uid) ?? Number.POSITIVE_INFINITY) <= input.now
  return blocked?.reason === "Draining" && (due || view.own?.fenced_at === null) ? (closed ?? blocked) : blocked
}

const none: ReadonlyArray<never> = []

/** All steps to the goal as if each worked, whatever may block one of them now. */
const chainOf = (world: Case.World, view: Merge.View, first: Action): ReadonlyArray<Action> => {
  const chain: Array<Action> = []
  let at = view
  for (let step: Action | null = first; step !== null && chain.length < CHAIN;) {
    chain.push(step)
    at = Merge.after(at, step)
    step = Decision.make(world, at).step
  }
  return chain
}

/** An operation without a known outcome keeps its volume to itself (S2); a tag's counts for nothing else. */
const unfinished = (input: Input, declaration: Declaration, decision: Case.Decision, operation: Operation) => {
  const quiet = decision.settled && operation.type === "tag"
  // Forgetting touches nothing, so that an operation only a person can close does not keep the name.
  const done =
    decision.removal_done && operation.phase === "needs_operator" && declaration.deletion?.policy === "forget"
  return {
    next: null,
    blocked: quiet || done ? null : unresolved(input, operation),
    gap: decision.gap ?? (quiet || done ? null : gapOf(operation)),
    settled: quiet || done,
    removal_done: done
  }
}

const gapOf = (operation: Operation): PlanItem["gap"] => {
  switch (operation.type) {
    case "create":
    case "adopt":
      return "volume"
    case "attach":
    case "detach":
    case "cleanup":
      return "attachment"
    case "export":
    case "unexport":
    case "migrate_path":
      return "export"
    case "delete":
      return "deletion"
    case "tag":
      return "tags"
  }
}

const unresolved = (input: Input, operation: Operation): Blocked => {
  const { error, id, phase, type } = operation
  const seconds = Math.max(0, Math.round((input.now - Date.parse(operation.created_at)) / 1000))
  const what = `${type} (${id}, begun ${seconds} s ago)`
  const why = error === null ? "" : `: ${error}`
  if (phase === "needs_operator") {
    return type === "create"
      ? Case.block(
          "CreateAmbiguous",
          `which volume ${what} made is not known${why}`,
          "find the volume in CloudStack and declare it anew with volume_id; volumed creates no second one"
        )
      : Case.block(
          "NeedsOperator",
          `no reading decides what became of ${what}${why}`,
          `compare the volume in CloudStack with volumed ops ${id}; it goes on by itself once a reading decides`
        )
  }
  return phase === "uncertain"
    ? Case.block(
        "OperationUncertain",
        `what became of ${what} is not known yet${why}`,
        "nothing: it is observed until it is known"
      )
    : Case.block("OperationInFlight", `${what} is under way`, "nothing: it is being observed")
}

/** Why people want nothing done, or null. */
const closedFor = (input: Input, { name, spec }: Declaration): Blocked | null => {
  const { paused } = spec
  if (paused !== null && (paused.until === undefined || Date.parse(paused.until) > input.now)) {
    const until = paused.until === undefined ? "" : ` until ${paused.until}`
    return Case.block("Paused", `paused by ${paused.by}${until}: ${paused.reason}`, `volumed resume ${name}`)
  }
  if (input.hold !== null) return holding(input.hold)
  return input.maintenance === null ? null : maintaining(input.maintenance)
}

/** An earlier attempt did not help: what it was, what came of it and what is seen now. */
const backingOff = (input: Input, { name, uid }: Declaration, now: string): Blocked | null => {
  const backoff = input.backoff.get(uid)
  if (backoff === undefined || backoff.retry_at <= input.now) return null
  const seconds = Math.ceil((backoff.retry_at - input.now) / 1000)
  return Case.block(
    "BackingOff",
    `tried again in ${seconds} s, after: ${backoff.message}; seen now: ${now}`,
    `volumed retry ${name} tries at once`
  )
}

const holding = (hold: string) =>
  Case.block("HoldFile", `nothing is changed: ${hold}`, "remove the hold file when you are done")

const maintaining = (maintenance: string) =>
  Case.block("Maintenance", `nothing is changed: ${maintenance}`, "volumed maintenance off ends it")

// All volumes together

const setBlocked = (items: Array<PlanItem>, index: number, blocked: Blocked): void => {
  const item = items[index]
  if (item === undefined) return
  // A tag that has to wait is no gap, so it waits without a word.
  items[index] = item.settled ? { ...item, next: null, chain: none } : { ...item, next: null, blocked }
}

/** What an approval can name: whatever takes an attachment, an export or a volume away. */
const takingAway = (action: Action): Held | null => {
  const { generation, name, uid } = action
  switch (action._tag) {
    case "Detach":
      return { uid, name, generation, volume_id: action.volume_id, action: "detach" }
    case "Unexport":
      return { uid, name, generation, volume_id: action.volume_id, action: "unexport" }
    case "Delete":
      return { uid, name, generation, volume_id: action.volume_id, action: "delete" }
    case "Create":
    case "Adopt":
    case "Attach":
    case "Export":
    case "MigratePath":
    case "Tag":
      return null
  }
}

const heldOf = (action: Action): Held | null => (action.destructive ? takingAway(action) : null)

/** All that a plan would take away sooner or later: what the end of a maintenance withholds. */
export const pendingRemovals = (plan: Plan): ReadonlyArray<Held> =>
  plan.items.flatMap((item) => item.chain.flatMap((action) => takingAway(action) ?? []))

/** What was pending when a maintenance ended and nobody approved since, by `heldKey`. */
type Waiting = ReadonlyMap<string, Withheld>

const waitingOf = ({ approved, withheld }: Input): Waiting =>
  new Map(withheld.flatMap((one) => (approved.has(heldKey(one)) ? [] : [[heldKey(one), one] as const])))

const keyOf = (action: Action | null): string => {
  const held = action === null ? null : takingAway(action)
  return held === null ? "" : heldKey(held)
}

/** What was pending at the end of a maintenance runs when a person approved it, or its declaration was written again. */
const afterMaintenance = (waiting: Waiting, items: Array<PlanItem>): ReadonlyArray<Withheld> => {
  if (waiting.size === 0) return none
  const found: Array<Withheld> = []
  items.forEach((item, index) => {
    for (const action of item.chain) {
      const one = waiting.get(keyOf(action))
      if (one === undefined) continue
      found.push(one)
      if (action !== item.chain[0]) continue
      setBlocked(
        items,
        index,
        Case.block(
          "HeldForApproval",
          `${one.action} was pending when the maintenance ended and waits for approval`,
          `look at the plan, then type volumed approve ${one.digest}`
        )
      )
    }
  })
  return found
}

/** Past the budget destruction waits for a person (S6, S17). What was approved by digest runs, and is counted. */
const withhold = (input: Input, items: Array<PlanItem>): ReadonlyArray<Held> => {
  const { destructive_per_hour, destructive_per_pass } = input.limits
  const wanted: Array<{ readonly index: number; readonly held: Held }> = []
  let budget = Math.min(destructive_per_pass, destructive_per_hour - input.destructive_last_hour)
  items.forEach((item, index) => {
    const held = item.next === null ? null : heldOf(item.next)
    if (held === null) return
    if (input.approved.has(heldKey(held))) budget -= 1
    else wanted.push({ index, held })
  })
  const over = wanted.slice(Math.max(0, budget))
  for (const { held, index } of over) {
    setBlocked(
      items,
      index,
      Case.block(
        "HeldForApproval",
        `${held.action} waits: at most ${destructive_per_pass} destructive actions a pass and ${destructive_per_hour} an hour run unasked`,
        "look at the plan, then type volumed approve with its digest"
      )
    )
  }
  return over.map(({ held }) => held)
}

/** Unresolved mutations on each VM, and in all. One that waits for a person takes no place: it may wait for long (S19). */
const inUse = (operations: ReadonlyArray<Operation>) => {
  const perVm = new Map<VmId, number>()
  const arriving = new Map<VmId, Set<string>>()
  const rooting = new Set<VmId>()
  let total = 0
  for (const operation of operations) {
    if (!isUnresolved(operation) || operation.phase === "needs_operator") continue
    const { request, type, vm_id, volume_id } = operation
    if (type === "attach" || type === "detach" || type === "create" || type === "delete" || type === "tag") total += 1
    if (vm_id === null || (type !== "attach" && type !== "detach")) continue
    perVm.set(vm_id, (perVm.get(vm_id) ?? 0) + 1)
    if (type !== "attach") continue
    arriving.set(vm_id, (arriving.get(vm_id) ?? new Set()).add(volume_id))
    if (request["as"] === "root") rooting.add(vm_id)
  }
  return { perVm, arriving, rooting, total }
}

const vmOf = (action: Action): VmId | null =>
  action._tag === "Attach" || action._tag === "Detach" ? action.vm_id : null

/** What a user waits for goes before what drifted; tags go last. Then by name, which starves nobody: who is served leaves. */
const rank = (action: Action) =>
  action._tag === "Tag" ? 3 : action.cause === "drift" ? 2 : action.cause === "recovery" ? 1 : 0

/** CloudStack serialises a VM's disk work, so that more than a few calls a VM would only wait there, out of our sight. */
const queue = (input: Input, world: Case.World, items: Array<PlanItem>): void => {
  const movers: Array<{ readonly index: number; readonly action: Action }> = []
  items.forEach((item, index) => {
    if (item.next !== null && isCloudAction(item.next)) movers.push({ index, action: item.next })
  })
  if (movers.length === 0) return
  movers.sort((a, b) => rank(a.action) - rank(b.action) || a.index - b.index)
  const used = inUse(input.operations)
  const rows = new Map<VolumeId, VmId | null>()
  if (used.arriving.size > 0) for (const row of world.merged.cloud?.volumes ?? none) rows.set(row.id, row.vm_id)
  for (const { action, index } of movers) {
    const full = fullness(input.limits, world, used, rows, action)
    if (full !== null) {
      setBlocked(items, index, full)
      continue
    }
    used.total += 1
    const vm = vmOf(action)
    if (vm === null) continue
    used.perVm.set(vm, (used.perVm.get(vm) ?? 0) + 1)
    if (action._tag !== "Attach") continue
    used.arriving.set(vm, (used.arriving.get(vm) ?? new Set()).add(action.volume_id))
    if (action.as === "root") used.rooting.add(vm)
  }
}

/** Exports that move to another path do so one a pass, each verified before the next: a mistake shows at the first. */
const oneByOne = (operations: ReadonlyArray<Operation>, items: Array<PlanItem>): void => {
  const moving = (operation: Operation) => operation.type === "migrate_path" && isUnresolved(operation)
  let taken = operations.some((operation) => moving(operation) && operation.phase !== "needs_operator")
  items.forEach(({ next }, index) => {
    if (next?._tag !== "MigratePath") return
    if (taken) setBlocked(items, index, queued("another export is being moved to its by-id path"))
    taken = true
  })
}

const queued = (message: string) => Case.block("Queued", message, "nothing: it goes on when earlier ones are done")

const fullness = (
  limits: Limits,
  world: Case.World,
  used: ReturnType<typeof inUse>,
  rows: ReadonlyMap<VolumeId, VmId | null>,
  action: Action
): Blocked | null => {
  if (used.total >= limits.actions_total) return queued(`${used.total} changes are under way in CloudStack already`)
  const vm = vmOf(action)
  if (vm === null) return null
  const running = used.perVm.get(vm) ?? 0
  if (running >= limits.actions_per_vm) return queued(`${running} changes are under way on VM ${vm} already`)
  if (action._tag !== "Attach") return null
  if (action.as === "root" && used.rooting.has(vm)) return queued(`another root volume is being attached to VM ${vm}`)
  // Disks that are on their way and not listed on the VM yet take a place as well.
  const coming = [...(used.arriving.get(vm) ?? none)].filter((id) => rows.get(id as VolumeId) !== vm).length
  return action.as === "data" && world.merged.disksOn(vm) + coming >= limits.disks_per_vm
    ? queued(`VM ${vm} has no place left once the volumes on their way have arrived`)
    : null
}

const noticesOf = (input: Input, suspicion: Suspicion.Suspicion): ReadonlyArray<Blocked> => {
  const { cloud, guest, nbd } = input.inventory
  const notices: Array<Blocked> = []
  if (input.hold !== null) notices.push(holding(input.hold))
  if (input.maintenance !== null) notices.push(maintaining(input.maintenance))
  if (cloud._tag === "Unread") {
    notices.push(
      Case.block(
        "CloudStackUnread",
        `CloudStack could not be read: ${cloud.message}`,
        "nothing: it is read again within a minute"
      )
    )
  } else if (!cloud.complete) {
    notices.push(
      Case.block(
        "ObservationIncomplete",
        `CloudStack's listing is not known to be whole: ${cloud.note ?? "it changed while it was read"}`,
        "nothing: the next full pass reads it again"
      )
    )
  }
  if (guest._tag === "Unread") {
    notices.push(Case.block("GuestUnread", `the guest's disks could not be read: ${guest.message}`, "volumed doctor"))
  }
  if (nbd._tag === "Unread") {
    notices.push(Case.block("NbdUnread", `the NBD server could not be observed: ${nbd.message}`, "volumed doctor"))
  }
  if (suspicion.suspect) {
    const { bound, missing } = suspicion
    notices.push(
      Case.block(
        "ObservationSuspect",
        `${missing.length} of ${bound} volumes are missing from CloudStack at once; nothing is created, deleted or taken away`,
        "check CloudStack's URL, keys and project; if they are really gone, approve their loss with the digest below"
      )
    )
  }
  return notices
}
