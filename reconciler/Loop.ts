import { Clock, Duration, Effect, Fiber, Layer, Queue, Ref, Stream } from "effect"
import type { Action, Plan, PlanItem } from "../schema/Action.ts"
import type { Declaration } from "../schema/Declaration.ts"
import type { StoreUnavailable } from "../schema/Errors.ts"
import type { OperationId, Uid, VmId } from "../schema/Ids.ts"
import type { Inventory } from "../schema/Inventory.ts"
import { hasEnded, type Operation } from "../schema/Operation.ts"
import type { Limits } from "../schema/Settings.ts"
import * as Calls from "./Calls.ts"
import * as Check from "./Check.ts"
import { CloudStack, CloudStackRead, type Job } from "./CloudStack.ts"
import * as Consents from "./Consents.ts"
import { Devices } from "./Devices.ts"
import * as Doorkeeper from "./Doorkeeper.ts"
import * as Execute from "./Execute.ts"
import * as Facts from "./Facts.ts"
import { Gate } from "./Gate.ts"
import { Leadership, notLeading, obstacle, under } from "./Leadership.ts"
import * as LogFields from "./LogFields.ts"
import * as Metrics from "./Metrics.ts"
import { Nbd } from "./Nbd.ts"
import * as Observe from "./Observe.ts"
import * as Picture from "./Picture.ts"
import * as Plans from "./Plan.ts"
import { Reconciler } from "./Reconciler.ts"
import * as Rounds from "./Rounds.ts"
import * as Sentry from "./Sentry.ts"
import * as Settle from "./Settle.ts"
import * as Standing from "./Standing.ts"
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

/** A scan of the processes may be answered again for so long. */
const CONNECTIONS_AGE = Duration.millis(250)

/** Links come in bursts: so much later they are looked at together. A burst without end is looked at all the same (L5). */
const GATHER_POKES = Duration.millis(50)

/** Between two passes that local changes cause, at least. */
const BETWEEN_POKES = Duration.millis(500)

/** The database is asked for so long before a look goes on with what it said last. */
const LOOK_MS = Duration.seconds(5)

/** After a pass that broke, ms: doubling, so not hot (S22), up to so much that nobody waits for a minute (L5). */
const AFTER_DEFECT_MS = 1_000
const AFTER_DEFECTS_MS = 15_000

export const layer = (
  options: Options
): Layer.Layer<Reconciler, never, CloudStack | CloudStackRead | Devices | Gate | Leadership | Nbd | Store> =>
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
  const leadership = yield* Leadership
  const picture = yield* Picture.make(store, options.appliance_vm_id, wake, execute.newest)
  /** The term that has begun here: what was learned in another one was read again since. */
  const reign = yield* Ref.make<number | null>(null)
  const known = yield* Ref.make(Standing.blank)
  const machines = yield* Ref.make<Observe.Machines | null>(null)
  const onePass = yield* Effect.makeSemaphore(1)
  const consents = yield* Consents.make(options.appliance_vm_id, options.limits.call_drain_ms)
  const rounds = yield* Rounds.make(nbd, picture, Ref.get(known), wake)
  const astray = (uids: ReadonlyArray<Uid>) => Effect.andThen(wake.nudge(uids), rounds.ring)
  const sentry = yield* Sentry.make(nbd, devices, Ref.get(known), astray)
  const doorkeeper = yield* Doorkeeper.make(nbd, store, sentry, wake.failed)

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
    standing: Standing.Standing,
    inventory: Inventory,
    only: ReadonlySet<Uid> | null,
    agreed: ReadonlyMap<Uid, Consents.Given> = new Map()
  ) {
    return {
      ...standing,
      now: yield* Clock.currentTimeMillis,
      only,
      inventory,
      limits: options.limits,
      backoff: yield* wake.backoff,
      consents: new Map([...agreed].map(([uid, { since }]) => [uid, since])),
      astray: yield* sentry.astray,
      hold: yield* gate.reason,
      digest: options.digest
    } satisfies Plans.Input as Plans.Input
  })

  /** What the database says besides, as of now, to be planned with: and to look on with while it does not answer. */
  const standing = Effect.fn(function* (
    declarations: ReadonlyArray<Declaration>,
    operations: ReadonlyArray<Operation>
  ) {
    const read: Standing.Standing = { declarations, operations, ...(yield* Standing.aside(store)) }
    yield* Ref.set(known, read)
    return read
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
    inventory: Inventory,
    process_started_at: number
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
      process_started_at,
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
      Effect.annotateLogs(
        LogFields.ofOperation(operation, "action", verdict._tag === "Settled" ? verdict.response : null)
      )
    )

  const write = Effect.fn(function* (
    { id, uid, ...operation }: Operation,
    verdict: Settle.Verdict,
    binding: Declaration["binding"] | null
  ) {
    const learned = (news: Declaration["binding"] | null) =>
      news === null ? null : { uid, binding: news, ...(binding === null ? {} : { from: binding }) }
    switch (verdict._tag) {
      case "Pending":
        return false
      case "Uncertain":
        // The clock of a quarantine starts at the first doubt, not at each new wording of it; others count their readings.
        if (operation.phase === "uncertain" && (!isRecounted(operation.type) || operation.error === verdict.note))
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

  const living = Standing.living(store)

  /** Learn, plan, check and act on one observation. `since`: no predecessor sends anything that it signed later. */
  const pass = Effect.fn("Loop.pass")(function* (asked: ReadonlySet<Uid> | null, since: number) {
    const began = yield* Clock.currentTimeMillis
    const over = yield* maintenanceOver(began)
    const only = over === null ? asked : null
    // Asked for first: a call that ends while rows and world are read was not sent yet when they were, or may not have been.
    const running = yield* execute.running
    const open = yield* calls.open
    const declarations = yield* living
    const operations = yield* store.unresolved
    // What a create under way is to make is there or not a moment later: nothing is asked of it, as it is not judged.
    const judgeable = operations.filter((o) => o.type !== "create" || !running.has(o.id))
    const inventory = yield* observe(only, declarations, judgeable)
    yield* Metrics.observed(inventory)
    const judged = operations.filter((o) => !running.has(o.id) && (only === null || only.has(o.uid)))
    const ended = yield* settle(judged, declarations, inventory, since)

    const now = yield* Clock.currentTimeMillis
    const claimed = yield* calls.claim(open, ended > 0 ? yield* living : declarations, inventory)
    const told = ended > 0 || claimed ? yield* living : declarations
    const approved = new Set((yield* store.approvals(now)).map(Plans.heldKey))
    const learned = Facts.learn(told, inventory, now, options.limits, { only, approved })
    yield* store.bind(learned)
    const current = learned.length > 0 ? yield* living : told
    const unresolved = ended > 0 ? yield* store.unresolved : operations

    if (over !== null) yield* endMaintenance(over, yield* input(yield* standing(current, unresolved), inventory, null))
    const agreed = yield* consents.standing(open, current)
    const planInput = yield* input(yield* standing(current, unresolved), inventory, only, agreed)
    const plan = Plans.make(planInput)
    const violations = Check.check(planInput, plan)
    for (const violation of violations)
      yield* Effect.logError("invariant violated; this volume is not touched", violation)
    const stopped = new Set(violations.map((v) => v.uid))
    const actions = plan.items.flatMap((item) => (item.next === null || stopped.has(item.uid) ? [] : [item.next]))
    for (const { uid, removal_done } of plan.items)
      if (removal_done && !stopped.has(uid)) yield* Effect.andThen(store.finishRemoval(uid), wake.gone(uid))
    // Whoever is told of an end looks at the world next, and is to find there what ended it.
    yield* picture.look(inventory, only === null)
    const guarded = yield* doorkeeper({
      items: plan.items,
      stopped,
      inventory,
      declarations: current,
      consents: agreed
    })
    yield* calls.end({ open, only, plan, inventory, declarations: current, unresolved })
    yield* execute.start(actions, inventory)
    // Every load may harm what it was not about, so that all exports are asked after it.
    if (actions.some(isLoad)) yield* rounds.ring

    yield* consents.forget(plan.items.flatMap((item) => (item.settled ? [item.uid] : [])))
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
        ...guarded,
        ...open.flatMap((call) => (hasEnded(call) ? [] : [call.uid])),
        ...leaving(current, unresolved)
      ]),
      unwell: summary.problems.length > 0,
      due_at: dueAt(current, yield* store.maintenance, yield* Clock.currentTimeMillis)
    })
    yield* picture.publish({ declarations: current, inventory, plan, only, summary })
    return summary
  })

  const broken = yield* Ref.make(0)

  const hesitate = Effect.gen(function* () {
    const times = yield* Ref.getAndUpdate(broken, (n) => n + 1)
    yield* Effect.sleep(Math.min(AFTER_DEFECTS_MS, AFTER_DEFECT_MS * 2 ** Math.min(times, 10)))
    yield* wake.pokeAll
  })

  /**
   * Observes and plans with what the database says, or said last, and shows it: nothing is written, intended or called.
   * `why`: what keeps this process from acting.
   */
  const look = Effect.fn("Loop.look")(function* (only: ReadonlySet<Uid> | null, why: string) {
    const began = yield* Clock.currentTimeMillis
    // Conditions as the leader wrote them, so that both show the same times; its operations rather than our own.
    const read = picture.load.pipe(
      Effect.andThen(execute.forget),
      Effect.andThen(Standing.read(store)),
      Effect.timeout(LOOK_MS)
    )
    const said = yield* Effect.orElse(read, () => Ref.get(known))
    yield* Ref.set(known, said)
    const inventory = yield* observe(only, said.declarations, said.operations)
    yield* Metrics.observed(inventory)
    const plan = Plans.make({ ...(yield* input(said, inventory, only)), hold: why })
    const ended = yield* Clock.currentTimeMillis
    const summary = Views.summarize(plan, 0, 0, began, ended, inventory, [{ message: why }])
    yield* wake.passed({ full: only === null, only, flight: new Set(), unwell: true, due_at: null })
    yield* picture.show({ declarations: said.declarations, inventory, plan, only, summary })
    return summary
  })

  /** A new term: somebody else may have led since the last one, so that nothing counts that was known then. */
  const begin = Effect.fn("Loop.begin")(function* (term: number) {
    yield* picture.load
    yield* execute.forget
    yield* wake.forget
    yield* consents.clear
    // Before anything is observed, which may take long: the sentry knows whose exports it watches from here on (D11).
    yield* Ref.set(known, yield* Standing.read(store))
    yield* Ref.set(reign, term)
    yield* Effect.logInfo("leading: acting from here on").pipe(Effect.annotateLogs({ term }))
  })

  /** A pass, where this process leads. */
  const act = (asked: ReadonlySet<Uid> | null) =>
    Effect.gen(function* () {
      const role = yield* leadership.role
      if (role._tag !== "Leading") return yield* notLeading(role)
      const isNew = (yield* Ref.get(reign)) !== role.term
      const steps = Effect.andThen(isNew ? begin(role.term) : Effect.void, pass(isNew ? null : asked, role.since))
      const summary = yield* under(role.term)(steps)
      yield* Ref.set(broken, 0)
      yield* Effect.logDebug("pass", summary)
      return summary
    })

  const counted = <A, E>(only: ReadonlySet<Uid> | null, effect: Effect.Effect<A, E>) =>
    Metrics.passing(only === null ? "full" : "partial")(effect)

  const isLeading = Effect.map(leadership.role, (role) => role._tag === "Leading")
  const untilLeading = Stream.runHead(Stream.filterEffect(leadership.roles, () => isLeading))

  const standBy = Effect.fn(function* (only: ReadonlySet<Uid> | null) {
    const why = obstacle(yield* leadership.role)
    if (why !== null) yield* counted(only, look(only, why))
  })

  /** Whatever keeps from acting, the world is looked at. Whoever becomes leader meanwhile begins at once. */
  const turn = Effect.fn("Loop.turn")(function* (only: ReadonlySet<Uid> | null) {
    if (!(yield* isLeading)) return yield* Effect.raceFirst(standBy(only), Effect.andThen(untilLeading, wake.pokeAll))
    yield* counted(only, act(only)).pipe(
      Effect.catchAll((error) =>
        Effect.logWarning("the database failed a pass; looking on", error.message).pipe(
          Effect.andThen(counted(only, look(only, error.message))),
          Effect.andThen(hesitate)
        )
      )
    )
  })

  /** Whoever asks may go away: then the wait for a turn ends, and a pass that has begun goes on in the loop's scope. */
  const sync = Effect.uninterruptibleMask((restore) =>
    restore(onePass.take(1)).pipe(
      Effect.andThen(
        Effect.interruptible(counted(null, act(null))).pipe(Effect.ensuring(onePass.release(1)), Effect.forkIn(scope))
      ),
      Effect.flatMap((running) => restore(Fiber.join(running)))
    )
  )

  const loop = wake.next.pipe(
    Effect.flatMap((only) =>
      onePass
        .withPermits(1)(counted(only, turn(only)))
        .pipe(
          // An interruption of the loop itself passes by here; one from inside a pass is a defect like any other.
          Effect.catchAllCause((cause) =>
            Effect.andThen(Effect.logError("a pass broke; trying again", cause), hesitate)
          )
        )
    ),
    Effect.forever
  )

  /** The guest or the NBD side may have changed: only volumes on the appliance can be concerned. */
  const local = Effect.gen(function* () {
    const { statuses } = yield* picture.view
    const here = [...statuses].filter(([, s]) => s.attached_to === options.appliance_vm_id || s.next_actions.length > 0)
    yield* wake.nudge(here.map(([uid]) => uid))
  })

  const poked = yield* Queue.sliding<void>(1)
  const nudging = Queue.take(poked).pipe(
    Effect.andThen(Effect.sleep(GATHER_POKES)),
    Effect.andThen(Queue.takeAll(poked)),
    Effect.andThen(local),
    // A link that flaps must not become a pass at every flap (D2, S22).
    Effect.andThen(Effect.sleep(BETWEEN_POKES)),
    Effect.forever
  )
  const watching = Stream.runForEach(Stream.merge(devices.pokes, nbd.pokes), () =>
    Effect.all([sentry.ring, rounds.ring, Queue.offer(poked, undefined)], { discard: true })
  ).pipe(
    Effect.catchAllCause((cause) => Effect.logError("the watch for local changes broke; beginning it anew", cause)),
    Effect.andThen(Effect.sleep(AFTER_DEFECT_MS)),
    Effect.forever
  )

  const leading = Stream.runForEach(leadership.roles, () => wake.pokeAll)
  for (const fiber of [loop, leading, sentry.watch, rounds.walk, nudging, watching]) {
    yield* Effect.forkIn(fiber, scope)
  }

  return {
    plan: Effect.fn("Loop.plan")(function* (candidates, agreeing = new Set()) {
      const said = yield* Standing.read(store)
      const open = yield* calls.open
      const declarations = candidates ?? said.declarations
      const inventory = yield* observe(null, declarations, said.operations)
      const candidate = { ...said, ...(yield* Standing.aside(store)), declarations }
      const agreed = new Map(yield* consents.standing(open, declarations))
      for (const uid of agreeing) agreed.set(uid, { since: yield* Clock.currentTimeMillis, by: "this dry run" })
      const plan = Plans.make({ ...(yield* input(candidate, inventory, null, agreed)), backoff: new Map() })
      return { plan, inventory, declarations }
    }),
    view: picture.view,
    connections: yield* Effect.cachedWithTTL(
      Effect.map(nbd.observe([]), ({ holders }) => holders),
      CONNECTIONS_AGE
    ),
    status: picture.status,
    sync,
    endClients: (uid, consent) => Effect.andThen(consents.give(uid, consent), wake.poke([uid])),
    poke: wake.poke,
    changes: picture.changes
  } satisfies Reconciler["Type"] as Reconciler["Type"]
})

/** An operation whose volume must be read as gone twice: its row says since when it is. */
const isRecounted = (type: Operation["type"]): boolean => type === "create" || type === "delete"

const isLoad = ({ _tag }: Action): boolean => _tag === "Export" || _tag === "Unexport" || _tag === "MigratePath"

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
    binding.late !== null && settled.has(uid) ? [{ uid, binding: { ...binding, late: null }, from: binding }] : []
  )
}

/** The operation that was still to have its late effect proved not done. */
const withoutLate = (id: OperationId, binding: Declaration["binding"] | null): Declaration["binding"] | null =>
  binding !== null && binding.late?.operation_id === id ? { ...binding, late: null } : binding
