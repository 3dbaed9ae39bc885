import { type Cause, Clock, Duration, Effect, Fiber, Layer, PubSub, Ref, Stream } from "effect"
import type { Plan, PlanItem } from "../schema/Action.ts"
import type { Condition, Status } from "../schema/Condition.ts"
import { type Declaration, isLiving } from "../schema/Declaration.ts"
import type { StoreUnavailable } from "../schema/Errors.ts"
import type { OperationId, Uid, VmId } from "../schema/Ids.ts"
import type { Inventory } from "../schema/Inventory.ts"
import { hasEnded, type Operation } from "../schema/Operation.ts"
import type { Limits } from "../schema/Settings.ts"
import * as Calls from "./Calls.ts"
import * as Check from "./Check.ts"
import { CloudStack, CloudStackRead, type Job } from "./CloudStack.ts"
import { Devices } from "./Devices.ts"
import * as Execute from "./Execute.ts"
import * as Facts from "./Facts.ts"
import { Gate } from "./Gate.ts"
import * as Metrics from "./Metrics.ts"
import { Nbd } from "./Nbd.ts"
import * as Observe from "./Observe.ts"
import * as Plans from "./Plan.ts"
import { type PassSummary, Reconciler, type View } from "./Reconciler.ts"
import * as Settle from "./Settle.ts"
import * as Statuses from "./Status.ts"
import { type Maintenance, Store } from "./Store.ts"
import * as Views from "./View.ts"
import * as Wake from "./Wake.ts"

export interface Options extends Wake.Settings {
  readonly appliance_vm_id: VmId
  readonly limits: Limits
  /** CloudStack mutations that wait for an answer at one time, at most. */
  readonly calls: number
  /** Hex SHA-256 of a text. */
  readonly digest: (text: string) => string
}

/** Results of jobs asked for in one pass, at most: the rest is asked for in the next. */
const JOBS_A_PASS = 16

const HOUR_MS = 3_600_000

/** A scan of the processes may be answered again for so long. */
const CONNECTIONS_AGE = Duration.millis(250)

/** Between two passes that local changes cause, at least; the first one is looked at at once. */
const BETWEEN_POKES = Duration.millis(500)

/** After a pass that broke, ms: doubling, so not hot (S22), up to so much that nobody waits for a minute (L5). */
const AFTER_DEFECT_MS = 1_000
const AFTER_DEFECTS_MS = 15_000

export const layer = (
  options: Options
): Layer.Layer<Reconciler, StoreUnavailable, CloudStack | CloudStackRead | Devices | Gate | Nbd | Store> =>
  Layer.scoped(Reconciler, make(options))

const make = Effect.fn("Loop.make")(function* (options: Options) {
  const scope = yield* Effect.scope
  const store = yield* Store
  const gate = yield* Gate
  const cloudstack = yield* CloudStackRead
  const devices = yield* Devices
  const nbd = yield* Nbd
  const wake = yield* Wake.make(options)
  const execute = yield* Execute.make(wake, scope, options.calls)
  const startedAt = yield* Clock.currentTimeMillis
  const changed = yield* PubSub.sliding<void>(1)
  const view = yield* Ref.make<View>(Views.blank)
  const conditions = yield* Ref.make(yield* store.conditions)
  const earlier = yield* newestOperations(store)
  const machines = yield* Ref.make<Observe.Machines | null>(null)
  const onePass = yield* Effect.makeSemaphore(1)

  const ports = <A, E>(effect: Effect.Effect<A, E, CloudStackRead | Devices | Nbd>) =>
    effect.pipe(
      Effect.provideService(CloudStackRead, cloudstack),
      Effect.provideService(Devices, devices),
      Effect.provideService(Nbd, nbd)
    )

  const observe = Effect.fn(function* (
    only: ReadonlySet<Uid> | null,
    declarations: ReadonlyArray<Declaration>,
    operations: ReadonlyArray<Operation>
  ) {
    const before = yield* Ref.get(machines)
    const inventory = yield* ports(
      Observe.make({ only, appliance_vm_id: options.appliance_vm_id, declarations, operations, machines: before })
    )
    const { cloud } = inventory
    if (cloud._tag === "Known" && cloud.value.vms.length > 0 && cloud.value.vms !== before?.found) {
      yield* Ref.set(machines, { started_at: cloud.started_at, found: cloud.value.vms })
    }
    return inventory
  })

  const input = Effect.fn(function* (
    declarations: ReadonlyArray<Declaration>,
    operations: ReadonlyArray<Operation>,
    inventory: Inventory,
    only: ReadonlySet<Uid> | null
  ) {
    const now = yield* Clock.currentTimeMillis
    const approvals = yield* store.approvals(now)
    return {
      now,
      declarations,
      only,
      inventory,
      operations,
      limits: options.limits,
      destructive_last_hour: yield* store.destructiveSince(now - HOUR_MS),
      approved: new Set(approvals.map(Plans.heldKey)),
      backoff: yield* wake.backoff,
      hold: yield* gate.reason,
      maintenance: Plans.maintained(yield* store.maintenance),
      withheld: yield* store.withheld,
      digest: options.digest
    } satisfies Plans.Input as Plans.Input
  })

  /** A job's own words are asked for only where the row shows neither job nor effect: never job by job while they run. */
  const jobsOf = Effect.fn(function* (undecided: ReadonlyArray<Operation>) {
    const found = new Map<OperationId, Job>()
    yield* Effect.forEach(
      undecided.slice(0, JOBS_A_PASS),
      (operation) =>
        operation.job_id === null
          ? Effect.void
          : cloudstack.job(operation.job_id).pipe(
              Effect.map((job) => found.set(operation.id, job)),
              Effect.catchTag("CloudStackUnavailable", () => Effect.void)
            ),
      { concurrency: 4, discard: true }
    )
    return found
  })

  /** Close what this observation decides. Answers how many operations came to an end. */
  const settle = Effect.fn("Loop.settle")(function* (
    operations: ReadonlyArray<Operation>,
    declarations: ReadonlyArray<Declaration>,
    inventory: Inventory
  ) {
    const now = yield* Clock.currentTimeMillis
    const byUid = new Map(declarations.map((d) => [d.uid, d]))
    const bound = new Set(declarations.flatMap((d) => (d.binding.volume_id === null ? [] : [d.binding.volume_id])))
    const evidence = (operation: Operation, job: Job | null): Settle.Evidence => ({
      now,
      inventory,
      declaration: byUid.get(operation.uid) ?? null,
      bound,
      job,
      process_started_at: startedAt,
      limits: options.limits
    })
    const first = operations.map(
      (operation) => [operation, Settle.judge(operation, evidence(operation, null))] as const
    )
    const asking = (tag: Settle.Verdict["_tag"]) =>
      first.flatMap(([operation, verdict]) => (verdict._tag === tag && operation.job_id !== null ? [operation] : []))
    // One that asks for a person may owe that to an outage alone: its job is asked for as well, after the others (L4).
    const jobs = yield* jobsOf([...asking("Uncertain"), ...asking("NeedsOperator")])
    let ended = 0
    for (const [operation] of first) {
      // Judged again one by one: two creates that lost their answers must not find the same volume in one pass (S10).
      const final = Settle.judge(operation, evidence(operation, jobs.get(operation.id) ?? null))
      if (yield* record(operation, final, byUid.get(operation.uid)?.binding ?? null)) {
        ended += 1
        if (final._tag === "Settled" && final.binding?.volume_id) bound.add(final.binding.volume_id)
      }
    }
    return ended
  })

  /** Write a verdict down where it says something new; true when the operation ended by it. */
  const record = (
    operation: Operation,
    verdict: Settle.Verdict,
    binding: Declaration["binding"] | null
  ): Effect.Effect<boolean, StoreUnavailable> =>
    write(operation, verdict, binding).pipe(
      Effect.catchTag("PreconditionLost", () => Effect.succeed(false)),
      Effect.annotateLogs({ volume: operation.name, action: operation.type, operation: operation.id })
    )

  const write = Effect.fn(function* (
    { id, uid, ...operation }: Operation,
    verdict: Settle.Verdict,
    binding: Declaration["binding"] | null
  ) {
    const learned = (binding: Declaration["binding"] | null) => (binding === null ? null : { uid, binding })
    switch (verdict._tag) {
      case "Pending":
        return false
      case "Uncertain":
        // The clock of a quarantine starts at the first doubt, not at each new wording of it; a delete counts its readings.
        if (operation.phase === "uncertain" && (operation.type !== "delete" || operation.error === verdict.note))
          return false
        yield* store.advance(id, { phase: "uncertain", status: "executing", error: verdict.note })
        yield* Effect.logInfo("observing").pipe(Effect.annotateLogs({ because: verdict.note }))
        return false
      case "NeedsOperator":
        if (operation.phase === "needs_operator" && operation.error === verdict.error) return false
        yield* store.advance(id, { phase: "needs_operator", status: "executing", error: verdict.error })
        yield* Effect.logWarning("a person is needed").pipe(Effect.annotateLogs({ because: verdict.error }))
        return false
      case "Settled": {
        const volume = verdict.response["volume_id"]
        const advance = { phase: "settled", status: "completed", response: verdict.response } as const
        const settled = yield* store.settle(
          id,
          typeof volume === "string" ? { ...advance, volume_id: volume } : advance,
          learned(verdict.binding)
        )
        yield* Metrics.recorded(settled)
        yield* Effect.logInfo("done").pipe(Effect.annotateLogs({ outcome: verdict.response["message"] }))
        return true
      }
      case "NotDone":
        const undone = yield* store.settle(
          id,
          {
            phase: "settled",
            status: "failed",
            error: verdict.error,
            ...(verdict.code === null ? {} : { response: { cloudstack_code: verdict.code } })
          },
          learned(withoutLate(id, verdict.binding ?? binding))
        )
        yield* Metrics.recorded(undone)
        yield* wake.failed(uid, verdict.error)
        yield* Effect.logWarning("not done").pipe(Effect.annotateLogs({ because: verdict.error }))
        return true
    }
  })

  const calls = Calls.make(store)

  /** The maintenance that somebody ended, or whose time came. What is pending is known from a full pass alone. */
  const maintenanceOver = (now: number) =>
    Effect.map(store.maintenance, (maintenance) =>
      maintenance !== null &&
      (maintenance.ending || (maintenance.until !== null && Date.parse(maintenance.until) <= now))
        ? maintenance
        : null
    )

  /** What would be taken away now waits for approval from here on; until that can be seen whole, the maintenance goes on. */
  const endMaintenance = Effect.fn("Loop.endMaintenance")(function* (over: Maintenance, planInput: Plans.Input) {
    const { cloud, guest, nbd } = planInput.inventory
    if (![cloud, guest, nbd].every((source) => source._tag === "Known" && source.complete)) return
    const held = Plans.pendingRemovals(Plans.make({ ...planInput, maintenance: null }))
    const digest = options.digest(held.map(Plans.heldKey).sort().join("\n"))
    const withheld = held.map((one) => ({ ...one, digest }))
    yield* store.setMaintenance(null, { withheld, standing: over })
    // Begun anew while this pass observed, it goes on.
    if ((yield* store.maintenance) !== null) return
    yield* Effect.logInfo("the maintenance has ended").pipe(Effect.annotateLogs({ withheld: held.length, digest }))
  })

  const living = Effect.map(store.declarations, (all) => all.filter(isLiving))

  /** Learn, plan, check and act on one observation. */
  const pass = Effect.fn("Loop.pass")(function* (asked: ReadonlySet<Uid> | null) {
    const began = yield* Clock.currentTimeMillis
    const over = yield* maintenanceOver(began)
    const only = over === null ? asked : null
    // Asked for first: a call that ends while rows and world are read was not sent yet when they were, or may not have been.
    const running = yield* execute.running
    const open = yield* calls.open
    const declarations = yield* living
    const operations = yield* store.unresolved
    const inventory = yield* observe(only, declarations, operations)
    yield* Metrics.observed(inventory)
    const judged = operations.filter((o) => !running.has(o.id) && (only === null || only.has(o.uid)))
    const ended = yield* settle(judged, declarations, inventory)

    const now = yield* Clock.currentTimeMillis
    const claimed = yield* calls.claim(open, ended > 0 ? yield* living : declarations, inventory)
    const known = ended > 0 || claimed ? yield* living : declarations
    const approved = new Set((yield* store.approvals(now)).map(Plans.heldKey))
    const learned = Facts.learn(known, inventory, now, options.limits, { only, approved })
    yield* store.bind(learned)
    const current = learned.length > 0 ? yield* living : known
    const unresolved = ended > 0 ? yield* store.unresolved : operations

    if (over !== null) yield* endMaintenance(over, yield* input(current, unresolved, inventory, null))
    const planInput = yield* input(current, unresolved, inventory, only)
    const plan = Plans.make(planInput)
    const violations = Check.check(planInput, plan)
    for (const violation of violations)
      yield* Effect.logError("invariant violated; this volume is not touched", violation)
    const stopped = new Set(violations.map((v) => v.uid))
    const actions = plan.items.flatMap((item) => (item.next === null || stopped.has(item.uid) ? [] : [item.next]))
    for (const item of plan.items) if (item.removal_done && !stopped.has(item.uid)) yield* store.finishRemoval(item.uid)
    // Whoever is told of an end looks at the world next, and is to find there what ended it.
    yield* Ref.update(view, (before) => ({ ...before, ...Views.look(before, inventory, only === null) }))
    yield* calls.end({ open, only, plan, inventory, declarations: current, unresolved })
    yield* execute.start(actions, inventory)

    const busy = new Set(unresolved.map((operation) => operation.uid))
    yield* Effect.forEach(
      plan.items.filter((i) => i.settled && i.next === null && !busy.has(i.uid)),
      (item) => wake.stable(item.uid),
      { discard: true }
    )
    yield* store.bind(belied(current, plan, busy))
    const summary = Views.summarize(
      plan,
      actions.length,
      ended,
      began,
      yield* Clock.currentTimeMillis,
      inventory,
      violations
    )
    yield* wake.passed({
      full: only === null,
      only,
      // What an ended call left undecided is looked at as such: a person may be waited for, and that for long (S22).
      flight: new Set([
        ...inFlight(plan, actions),
        ...open.flatMap((call) => (hasEnded(call) ? [] : [call.uid])),
        ...leaving(current, unresolved)
      ]),
      unwell: summary.problems.length > 0,
      due_at: dueAt(current, yield* store.maintenance, yield* Clock.currentTimeMillis)
    })
    yield* publish(current, inventory, plan, only, summary)
    return summary
  })

  const publish = Effect.fn(function* (
    declarations: ReadonlyArray<Declaration>,
    inventory: Inventory,
    plan: Plan,
    only: ReadonlySet<Uid> | null,
    summary: PassSummary
  ) {
    const now = yield* Clock.currentTimeMillis
    const before = yield* Ref.get(view)
    const items = new Map(plan.items.map((item) => [item.uid, item]))
    const previous = yield* Ref.get(conditions)
    const operations = yield* execute.newest
    const backoff = yield* wake.backoff
    const statuses = new Map<Uid, Status>()
    const transitions: Array<{ uid: Uid; conditions: ReadonlyArray<Condition> }> = []
    for (const declaration of declarations) {
      const old = before.statuses.get(declaration.uid)
      if (only !== null && !only.has(declaration.uid)) {
        if (old !== undefined) statuses.set(declaration.uid, old)
        continue
      }
      const was = previous.get(declaration.uid) ?? []
      const status = Statuses.make({
        declaration,
        inventory,
        item: items.get(declaration.uid) ?? null,
        last_operation_id: operations.get(declaration.uid) ?? earlier.get(declaration.uid) ?? null,
        previous: was,
        retry_at: backoff.get(declaration.uid)?.retry_at ?? null,
        now
      })
      statuses.set(declaration.uid, status)
      if (!Views.sameConditions(was, status.conditions))
        transitions.push({ uid: declaration.uid, conditions: status.conditions })
    }
    yield* store.saveConditions(transitions)
    if (transitions.length > 0) {
      yield* Ref.update(conditions, (map) => {
        const next = new Map(map)
        for (const { uid, conditions } of transitions) next.set(uid, conditions)
        return next
      })
    }
    // What could not be read is not gone: its rows stay until somebody sees (S17).
    const isWhole = inventory.cloud._tag === "Known" && inventory.cloud.complete && inventory.guest._tag === "Known"
    if (isWhole) yield* store.saveDeviceMappings(Views.mappings(statuses, options.appliance_vm_id))
    yield* Ref.set(view, {
      ...before,
      plan: only === null || before.plan === null ? plan : Views.overlayPlan(before.plan, plan, declarations),
      statuses,
      last_pass: summary
    })
    yield* PubSub.publish(changed, undefined)
  })

  const counted = (only: ReadonlySet<Uid> | null) => Metrics.passing(only === null ? "full" : "partial")(pass(only))

  const guarded = (only: ReadonlySet<Uid> | null) => onePass.withPermits(1)(counted(only))

  /** Whoever asks may go away: then the wait for a turn ends, and a pass that has begun goes on in the loop's scope. */
  const sync = Effect.uninterruptibleMask((restore) =>
    restore(onePass.take(1)).pipe(
      Effect.andThen(
        Effect.interruptible(counted(null)).pipe(Effect.ensuring(onePass.release(1)), Effect.forkIn(scope))
      ),
      Effect.flatMap((running) => restore(Fiber.join(running)))
    )
  )

  const broken = yield* Ref.make(0)

  const again = Effect.fn(function* (cause: Cause.Cause<unknown>) {
    yield* Effect.logError("a pass broke; trying again", cause)
    const times = yield* Ref.getAndUpdate(broken, (n) => n + 1)
    yield* Effect.sleep(Math.min(AFTER_DEFECTS_MS, AFTER_DEFECT_MS * 2 ** Math.min(times, 10)))
    yield* wake.pokeAll
  })

  const loop = wake.next.pipe(
    Effect.flatMap((only) =>
      guarded(only).pipe(
        Effect.tap((summary) => Effect.logDebug("pass", summary)),
        Effect.tap(Ref.set(broken, 0)),
        // An interruption of the loop itself passes by here; one from inside a pass is a defect like any other.
        Effect.catchAllCause(again)
      )
    ),
    Effect.forever
  )

  /** The guest or the NBD side may have changed: only volumes on the appliance can be concerned. */
  const local = Effect.gen(function* () {
    const { statuses } = yield* Ref.get(view)
    const here = [...statuses].filter(([, s]) => s.attached_to === options.appliance_vm_id || s.next_actions.length > 0)
    yield* wake.nudge(here.map(([uid]) => uid))
  })

  yield* loop.pipe(Effect.forkIn(scope))
  yield* Stream.merge(devices.pokes, nbd.pokes).pipe(
    Stream.debounce(Duration.millis(50)),
    // A link that flaps must not become a pass at every flap (D2, S22).
    Stream.runForEach(() => Effect.andThen(local, Effect.sleep(BETWEEN_POKES))),
    Effect.forkIn(scope)
  )

  const statusOf = Effect.fnUntraced(function* (declaration: Declaration) {
    const current = yield* Ref.get(view)
    const known = current.statuses.get(declaration.uid)
    if (known !== undefined && known.observed_generation === declaration.generation) return known
    const now = yield* Clock.currentTimeMillis
    return Statuses.make({
      declaration,
      inventory: current.inventory,
      item: null,
      last_operation_id: (yield* execute.newest).get(declaration.uid) ?? earlier.get(declaration.uid) ?? null,
      previous: (yield* Ref.get(conditions)).get(declaration.uid) ?? [],
      retry_at: null,
      now
    })
  })

  return {
    plan: Effect.fn("Loop.plan")(function* (candidates) {
      const declarations = candidates ?? (yield* living)
      const operations = yield* store.unresolved
      const inventory = yield* observe(null, declarations, operations)
      const planned = Plans.make({ ...(yield* input(declarations, operations, inventory, null)), backoff: new Map() })
      return { plan: planned, inventory, declarations }
    }),
    view: Ref.get(view),
    connections: yield* Effect.cachedWithTTL(
      Effect.map(nbd.observe([]), ({ holders }) => holders),
      CONNECTIONS_AGE
    ),
    status: statusOf,
    sync,
    poke: wake.poke,
    changes: Stream.fromPubSub(changed)
  } satisfies Reconciler["Type"] as Reconciler["Type"]
})

/** The newest operation of each declaration among the last thousand that earlier processes left. */
const newestOperations = Effect.fn(function* (store: Store["Type"]) {
  const { items } = yield* store
    .operations({ limit: 1000 })
    .pipe(Effect.catchTag("CursorExpired", (error) => Effect.die(error)))
  return new Map(items.toReversed().map((operation): [Uid, OperationId] => [operation.uid, operation.id]))
})

/** Who must be looked at again soon: acting now, or waiting for something that passes by itself. */
const inFlight = (plan: Plan, actions: ReadonlyArray<{ readonly uid: Uid }>): ReadonlySet<Uid> => {
  const uids = new Set(actions.map((a) => a.uid))
  for (const item of plan.items) if (item.blocked !== null && passes(item)) uids.add(item.uid)
  return uids
}

/** Back-offs and graces end at known times and are not polled for. */
const passes = (item: PlanItem): boolean =>
  item.blocked?.category === "progress" &&
  item.blocked.reason !== "BackingOff" &&
  item.blocked.reason !== "DeletionGrace"

/** Nothing is left to do for them but to see the end of what is under way: then the name is free. */
const leaving = (
  declarations: ReadonlyArray<Declaration>,
  unresolved: ReadonlyArray<Operation>
): ReadonlyArray<Uid> => {
  const removed = new Set(declarations.flatMap(({ deletion, uid }) => (deletion === null ? [] : [uid])))
  return unresolved.flatMap(({ phase, uid }) => (phase !== "needs_operator" && removed.has(uid) ? [uid] : []))
}

/** When a pause, a grace or the maintenance ends next, ms; null when none does. */
const dueAt = (
  declarations: ReadonlyArray<Declaration>,
  maintenance: Maintenance | null,
  now: number
): number | null => {
  const times = declarations.flatMap(({ deletion, spec }) => [spec.paused?.until, deletion?.execute_after])
  const coming = [...times, maintenance?.until].map((time) => Date.parse(time ?? "")).filter((time) => time > now)
  return coming.length === 0 ? null : coming.reduce((first, time) => Math.min(first, time))
}

/** As declared, and nothing is on its way: what comes now is no late effect any more. */
const belied = (declarations: ReadonlyArray<Declaration>, plan: Plan, busy: ReadonlySet<Uid>) => {
  const settled = new Set(plan.items.flatMap((item) => (item.settled && !busy.has(item.uid) ? [item.uid] : [])))
  return declarations.flatMap(({ binding, uid }) =>
    binding.late !== null && settled.has(uid) ? [{ uid, binding: { ...binding, late: null } }] : []
  )
}

/** The operation that was still to have its late effect proved not done. */
const withoutLate = (id: OperationId, binding: Declaration["binding"] | null): Declaration["binding"] | null =>
  binding !== null && binding.late?.operation_id === id ? { ...binding, late: null } : binding
