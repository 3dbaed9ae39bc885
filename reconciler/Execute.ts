import { Cause, Clock, Effect, Either, Exit, Option, Ref, Schedule, type Scope } from "effect"
import * as Actions from "../schema/Action.ts"
import type { CloudStackRefused, OutcomeUnknown, StoreUnavailable } from "../schema/Errors.ts"
import { GateClosed, PreconditionLost } from "../schema/Errors.ts"
import type { OperationId, Uid, VolumeId } from "../schema/Ids.ts"
import type { Inventory } from "../schema/Inventory.ts"
import * as Clearance from "./Clearance.ts"
import { type Accepted, CloudStack, CloudStackRead } from "./CloudStack.ts"
import { Devices } from "./Devices.ts"
import * as Failpoint from "./Failpoint.ts"
import type { FreshRead, Intent } from "./Intent.ts"
import { under } from "./Leadership.ts"
import * as LogFields from "./LogFields.ts"
import * as Metrics from "./Metrics.ts"
import { Nbd, type WantedExport } from "./Nbd.ts"
import { EXPIRY_MS } from "./Settle.ts"
import { type Advance, Store } from "./Store.ts"
import type { Wake } from "./Wake.ts"

/** A read by id may be this old when the call leaves (S4 allows a second; the call itself needs some of it), ms. */
const FRESH_MS = 700

/** An answer that cannot be written down is tried again so often, ms. */
const RECORD_PAUSE_MS = 1_000

/**
 * And for so long, ms, while which the operation is not judged: its request has expired by then, so that a row which says
 * less than it should cannot make an effect that may still come look impossible.
 */
const RECORD_MS = EXPIRY_MS + 10_000

/** A load replaces a process and waits for it; past this the pass goes on and observes, ms. */
const LOAD_TIMEOUT = "25 seconds"

type NbdAction = Actions.Export | Actions.Unexport | Actions.MigratePath
type CloudAction = Actions.CloudAction

/** An action whose intent is durable. */
interface Begun {
  readonly operation_id: OperationId
  readonly action: Actions.Action
}

export interface Execute {
  /** Operations whose call is being made at this moment: their rows say less than this process knows. */
  readonly running: Effect.Effect<ReadonlySet<OperationId>>
  /** The newest operation of each declaration, as far as this process began them. */
  readonly newest: Effect.Effect<ReadonlyMap<Uid, OperationId>>
  /** Another process may have begun newer ones. */
  readonly forget: Effect.Effect<void>
  /**
   * Start one action for each volume: intent row first, then the call, then what was answered. Answers are not waited
   * for; NBD changes are, all in one load. Outcomes are left to observation.
   */
  readonly start: (
    actions: ReadonlyArray<Actions.Action>,
    inventory: Inventory
  ) => Effect.Effect<void, StoreUnavailable>
}

/**
 * `calls`: how many wait for CloudStack's answer at one time; no more than the client has connections for mutations, so
 * that a call waits for its turn here, before it is checked for the last time, and not after.
 */
export const make = Effect.fn("Execute.make")(function* (wake: Wake, scope: Scope.Scope, calls: number) {
  const cloudstack = yield* CloudStack
  const read = yield* CloudStackRead
  const nbd = yield* Nbd
  const store = yield* Store
  const running = yield* Ref.make<ReadonlySet<OperationId>>(new Set())
  const newest = yield* Ref.make<ReadonlyMap<Uid, OperationId>>(new Map())
  const turns = yield* Effect.makeSemaphore(calls)
  const clear = Clearance.make(nbd, yield* Devices)

  const begin = (id: OperationId) => Ref.update(running, (set) => new Set([...set, id]))
  const end = (id: OperationId) => Ref.update(running, (set) => new Set([...set].filter((other) => other !== id)))

  /** Null when the declaration moved on, or is busy, since it was planned for: the next pass plans what is so now (S15, S2). */
  const intend = <A extends Actions.Action>(action: A) =>
    Failpoint.pass("intent.wanted").pipe(
      Effect.andThen(store.intend(action)),
      Effect.tap(() => Failpoint.pass("intent.durable")),
      Effect.tap((intent) => Ref.update(newest, (map) => new Map(map).set(action.uid, intent.operation_id))),
      Effect.map((intent): Intent<A["_tag"]> | null => intent),
      Effect.catchTag("GenerationConflict", "PreconditionLost", (error) =>
        Effect.as(Effect.logDebug("planned for a state that is over", error.message), null)
      )
    )

  /** An operation that an observation has ended meanwhile stays ended (S7). What became of it is true in every term. */
  const advance = (id: OperationId, change: Advance) =>
    store.advance(id, change).pipe(
      under(null),
      Effect.flatMap(Metrics.recorded),
      Effect.catchTag("PreconditionLost", (error) => Effect.logDebug("the operation has ended already", error.message))
    )

  /** A call's own outcome, kept until the database takes it, for nothing else tells when the call was sent. */
  const answered = (id: OperationId, change: Advance) =>
    advance(id, change).pipe(
      Effect.retry({ schedule: Schedule.spaced(RECORD_PAUSE_MS).pipe(Schedule.upTo(RECORD_MS)) })
    )

  /** The wait for a turn may have been long: what was wished since then counts (S15), and a maintenance that began. */
  const stillWished = ({ generation, name, uid }: CloudAction) =>
    store.maintenance.pipe(
      Effect.filterOrFail(
        (maintenance) => maintenance === null,
        () => new PreconditionLost({ detail: "a maintenance has begun" })
      ),
      Effect.andThen(store.declaration(name)),
      Effect.flatMap(
        Option.match({
          onNone: () => Effect.fail(new PreconditionLost({ detail: `the declaration ${name} is gone` })),
          onSome: (found) =>
            found.uid === uid && found.generation === generation
              ? Effect.succeed(found)
              : Effect.fail(
                  new PreconditionLost({ detail: `planned for generation ${generation}, not ${found.generation}` })
                )
        })
      )
    )

  const send = (intent: Intent<CloudAction["_tag"]>, fresh: FreshRead | null) => {
    const action = intent.action
    switch (action._tag) {
      case "Create":
        return cloudstack.create(intent as Intent<"Create">)
      case "Attach":
        return withRead(fresh, (volume) => cloudstack.attach(intent as Intent<"Attach">, volume))
      case "Detach":
        return withRead(fresh, (volume) => cloudstack.detach(intent as Intent<"Detach">, volume))
      case "Tag":
        return withRead(fresh, (volume) => cloudstack.tag(intent as Intent<"Tag">, volume))
      case "Delete":
        return withRead(fresh, (volume) => cloudstack.delete(intent as Intent<"Delete">, volume))
    }
  }

  const accepted = (intent: Intent<CloudAction["_tag"]>, answer: Accepted) =>
    answered(intent.operation_id, {
      phase: "accepted",
      status: "executing",
      job_id: answer.job_id,
      submitted_at: answer.submitted_at,
      expires_at: answer.expires_at,
      ...(answer.volume_id === null ? {} : { volume_id: answer.volume_id })
    })

  /** Not sent, or answered with a definite no: the operation ends here, and only here without an observation. */
  const refused = (intent: Begun, error: CloudStackRefused | GateClosed | PreconditionLost) =>
    Effect.gen(function* () {
      const cancelled = error._tag !== "CloudStackRefused"
      yield* advance(intent.operation_id, {
        phase: "refused",
        status: cancelled ? "cancelled" : "failed",
        error: error.message,
        // A call that waits for this action is told CloudStack's own number; one that never arrived has none.
        ...(error._tag !== "CloudStackRefused" || error.never_sent ? {} : { response: { cloudstack_code: error.code } })
      })
      if (error._tag === "GateClosed") return
      yield* wake.failed(intent.action.uid, error.message)
      yield* Effect.logInfo(cancelled ? "action not sent" : "action refused", error.message)
    })

  const unknown = (intent: Intent<CloudAction["_tag"]>, submittedAt: number, error: OutcomeUnknown) =>
    Effect.logWarning("outcome unknown; observing", error.message).pipe(
      Effect.andThen(
        answered(intent.operation_id, {
          phase: "submitted",
          status: "executing",
          submitted_at: submittedAt,
          expires_at: error.expires_at,
          error: error.message,
          ...(error.code === undefined ? {} : { response: { cloudstack_code: error.code } })
        })
      )
    )

  /** One call, from durable intent to recorded answer. Interrupted while it waits, it is recorded as sent. */
  const call = (intent: Intent<CloudAction["_tag"]>, fresh: FreshRead | null) =>
    Effect.gen(function* () {
      const submittedAt = yield* Clock.currentTimeMillis
      const outcome = yield* send(intent, fresh).pipe(
        Effect.either,
        // It may have waited for a connection first, so it was signed at this moment at the latest.
        Effect.onInterrupt(() =>
          Effect.flatMap(Clock.currentTimeMillis, (now) =>
            advance(intent.operation_id, {
              phase: "submitted",
              status: "executing",
              submitted_at: submittedAt,
              expires_at: now + EXPIRY_MS
            })
          ).pipe(Effect.ignoreLogged)
        )
      )
      yield* Failpoint.pass("answer.received")
      if (Either.isRight(outcome)) yield* accepted(intent, outcome.right)
      else if (outcome.left._tag === "OutcomeUnknown") yield* unknown(intent, submittedAt, outcome.left)
      else yield* refused(intent, outcome.left)
      yield* Failpoint.pass("answer.recorded")
    }).pipe(
      Effect.annotateLogs(LogFields.ofAction(intent.action, intent.operation_id)),
      Effect.catchAllCause((cause) =>
        Cause.isInterruptedOnly(cause)
          ? Effect.failCause(cause)
          : Effect.logError("an answer could not be recorded; observation will settle it", cause)
      ),
      Effect.ensuring(Effect.andThen(end(intent.operation_id), wake.answered))
    )

  /** Reads by id for the actions about to be sent, as few calls as possible; young enough ones of the pass serve. */
  const freshReads = Effect.fn(function* (actions: ReadonlyArray<CloudAction>, inventory: Inventory) {
    const now = yield* Clock.currentTimeMillis
    const fresh = new Map<VolumeId, FreshRead>()
    const ids = actions.flatMap((a) => (a._tag === "Create" ? [] : [a.volume_id]))
    const { cloud } = inventory
    if (cloud._tag === "Known" && cloud.value.scope === "some" && now - cloud.started_at < FRESH_MS / 2) {
      const wanted = new Set(ids)
      for (const volume of cloud.value.volumes)
        if (wanted.has(volume.id)) fresh.set(volume.id, { started_at: cloud.started_at, volume })
    }
    const missing = ids.filter((id) => !fresh.has(id))
    if (missing.length > 0) {
      const reading = yield* read.volumesById(missing)
      for (const volume of reading.found) fresh.set(volume.id, { started_at: reading.started_at, volume })
    }
    return fresh
  })

  /** The shared read grew old while rows were written or calls were made: this volume is read once more, alone. */
  const younger = (action: CloudAction, fresh: ReadonlyMap<VolumeId, FreshRead>) =>
    Effect.gen(function* () {
      if (action._tag === "Create") return null
      const now = yield* Clock.currentTimeMillis
      const shared = fresh.get(action.volume_id)
      if (shared !== undefined && now - shared.started_at < FRESH_MS) return shared
      const reading = yield* read.volumesById([action.volume_id])
      const volume = reading.found.find((v) => v.id === action.volume_id)
      return volume === undefined ? null : { started_at: reading.started_at, volume }
    })

  /** All that must hold when the call leaves; the volume's row, read last. */
  const checked = Effect.fnUntraced(function* (action: CloudAction, fresh: ReadonlyMap<VolumeId, FreshRead>) {
    if (action._tag === "Detach" && action.on_appliance) yield* clear(action, yield* stillWished(action))
    const volume = yield* younger(action, fresh)
    yield* stillWished(action)
    return volume
  })

  const startCloud = (action: CloudAction, fresh: ReadonlyMap<VolumeId, FreshRead>) =>
    Effect.gen(function* () {
      const intent = yield* intend(action)
      if (intent === null) return
      yield* begin(intent.operation_id)
      const run = checked(action, fresh).pipe(
        Effect.matchCauseEffect({
          onFailure: (cause) =>
            refused(
              intent,
              new PreconditionLost({ detail: `not fit to be sent right before the call: ${wordsOf(cause)}` })
            ).pipe(
              Effect.andThen(Effect.logDebug("not sent", cause)),
              Effect.ignoreLogged,
              Effect.ensuring(end(intent.operation_id))
            ),
          onSuccess: (volume) => call(intent, volume)
        })
      )
      yield* turns.withPermits(1)(run).pipe(Effect.forkIn(scope))
    })

  const startNbd = Effect.fn(function* (actions: ReadonlyArray<NbdAction>, inventory: Inventory) {
    const intents = (yield* Effect.forEach(actions, intend)).filter((intent) => intent !== null)
    if (intents.length === 0) return
    yield* Effect.forEach(intents, (intent) => begin(intent.operation_id))
    yield* loadAll(intents, inventory).pipe(
      Effect.ensuring(Effect.forEach(intents, (intent) => end(intent.operation_id)))
    )
    yield* wake.answered
  })

  const loadAll = Effect.fn(function* (intents: ReadonlyArray<Intent<NbdAction["_tag"]>>, inventory: Inventory) {
    const submittedAt = yield* Clock.currentTimeMillis
    const exit = yield* nbd
      .load({
        set: intents.flatMap((i) => wanted(i.action)),
        drop: intents.flatMap((i) => dropped(i.action)),
        distrusted: intents.flatMap((i) => distrusted(i.action, inventory))
      })
      .pipe(
        Effect.onExit(Metrics.loaded),
        Effect.timeoutFail({
          duration: LOAD_TIMEOUT,
          onTimeout: () => new PreconditionLost({ detail: "the load did not end in time" })
        }),
        Effect.exit
      )
    yield* Effect.forEach(
      intents,
      (intent) => {
        const error = Exit.isSuccess(exit) ? null : Cause.squash(exit.cause)
        if (error instanceof GateClosed) return refused(intent, error)
        // A load that failed may have been half done; what is served is observed either way.
        const message = error instanceof Error ? error.message : error === null ? null : String(error)
        return advance(intent.operation_id, {
          phase: message === null ? "accepted" : "uncertain",
          status: "executing",
          submitted_at: submittedAt,
          ...(message === null ? {} : { error: message })
        })
      },
      { discard: true }
    )
    if (Exit.isFailure(exit)) yield* Effect.logWarning("the NBD load failed", exit.cause)
  })

  const start: Execute["start"] = Effect.fn("Execute.start")(function* (actions, inventory) {
    const cloud = actions.filter(Actions.isCloudAction)
    const local = actions.filter(
      (a): a is NbdAction => a._tag === "Export" || a._tag === "Unexport" || a._tag === "MigratePath"
    )
    for (const action of actions) if (action._tag === "Adopt") yield* intend(action)
    const fresh = yield* freshReads(cloud, inventory).pipe(
      Effect.catchTag("CloudStackUnavailable", (error) =>
        Effect.as(Effect.logWarning("volumes could not be read before the calls", error.message), null)
      )
    )
    if (fresh !== null) yield* Effect.forEach(cloud, (action) => startCloud(action, fresh), { discard: true })
    if (local.length > 0) yield* startNbd(local, inventory)
    if (actions.length > 0) yield* wake.answered
  })

  return {
    running: Ref.get(running),
    newest: Ref.get(newest),
    forget: Ref.set(newest, new Map()),
    start
  } satisfies Execute as Execute
})

const wordsOf = (cause: Cause.Cause<Error>): string =>
  Option.match(Cause.failureOption(cause), { onNone: () => Cause.pretty(cause), onSome: ({ message }) => message })

const withRead = <A>(
  fresh: FreshRead | null,
  use: (read: FreshRead) => Effect.Effect<A, CloudStackRefused | OutcomeUnknown | GateClosed | PreconditionLost>
) =>
  fresh === null
    ? Effect.fail(new PreconditionLost({ detail: "the volume was not there when read right before the call" }))
    : use(fresh)

const wanted = (action: NbdAction): ReadonlyArray<WantedExport> =>
  action._tag === "Unexport"
    ? []
    : [
        {
          name: action.export_name,
          path: action.path,
          read_only: action.read_only,
          device: action.device,
          size: action.size
        }
      ]

/** The name, where the newest GO on it showed other bytes than those that are planned for. */
const distrusted = (action: NbdAction, { nbd }: Inventory): ReadonlyArray<string> => {
  if (action._tag === "Unexport" || nbd._tag === "Unread") return []
  const seen = nbd.value.verifications.find(({ name }) => name === action.export_name)
  if (seen?.outcome !== "served") return []
  const same = (seen.device === null || seen.device === action.device) && seen.size === action.size
  return same ? [] : [action.export_name]
}

const dropped = (action: NbdAction): ReadonlyArray<string> => (action._tag === "Unexport" ? [action.export_name] : [])
