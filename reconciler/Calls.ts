import { Clock, Effect } from "effect"
import type { Plan } from "../schema/Action.ts"
import type { Declaration } from "../schema/Declaration.ts"
import type { StoreUnavailable } from "../schema/Errors.ts"
import type { Uid } from "../schema/Ids.ts"
import type { Inventory } from "../schema/Inventory.ts"
import { hasEnded, type Operation } from "../schema/Operation.ts"
import * as Call from "./Call.ts"
import * as CallVerdict from "./CallVerdict.ts"
import * as LogFields from "./LogFields.ts"
import * as Statuses from "./Status.ts"
import type { Advance, Store } from "./Store.ts"
import * as Withdrawal from "./Withdrawal.ts"

/** Actions of one call that are looked at; more than these few are repeats of the same. */
const CHILDREN_MAX = 100

/** What a pass knows when it asks which calls have come to their end. */
export interface Seen {
  /** Read before the observation began, so that what it shows is no older than any of them. */
  readonly open: ReadonlyArray<Operation>
  readonly only: ReadonlySet<Uid> | null
  readonly plan: Plan
  readonly inventory: Inventory
  readonly declarations: ReadonlyArray<Declaration>
  readonly unresolved: ReadonlyArray<Operation>
}

/** The loop's side of version 1 calls: it ends them by what is observed, and takes back the wishes of those that failed. */
export const make = (store: Store["Type"]) => {
  /** True when something was learned. */
  const claim = Effect.fn("Calls.claim")(function* (
    open: ReadonlyArray<Operation>,
    declarations: ReadonlyArray<Declaration>,
    inventory: Inventory
  ) {
    if (open.length === 0) return false
    const byUid = new Map(declarations.map((declaration) => [declaration.uid, declaration]))
    const claims = open.flatMap((call) => {
      const declaration = byUid.get(call.uid)
      const found = declaration === undefined ? null : Call.claim(call, declaration, inventory, open)
      return declaration === undefined || found === null ? [] : [{ call, found, from: declaration.binding }]
    })
    yield* Effect.forEach(claims, ({ call, found, from }) => mark(call, found, from), { discard: true })
    return claims.length > 0
  })

  /** What is claimed, and by whom, is written down together: with the call the claim goes. */
  const mark = ({ id, phase, status, uid }: Operation, { binding, vm_id }: Call.Claim, from: Declaration["binding"]) =>
    store
      .settle(id, { phase, status, vm_id }, { uid, binding, from })
      .pipe(Effect.catchTag("PreconditionLost", (error) => Effect.logDebug("a call claims nothing", error.message)))

  const children = (call: Operation) =>
    store.operations({ parent_id: call.id, limit: CHILDREN_MAX }).pipe(
      Effect.map(({ items }) => items.toReversed()),
      Effect.catchTag("CursorExpired", (error) => Effect.die(error))
    )

  const judge = Effect.fn("Calls.judge")(function* (call: Operation, seen: Seen) {
    const now = yield* Clock.currentTimeMillis
    const declaration = seen.declarations.find(({ uid }) => uid === call.uid) ?? null
    const item = seen.plan.items.find(({ uid }) => uid === call.uid) ?? null
    const status =
      declaration === null
        ? null
        : Statuses.make({
            declaration,
            item,
            inventory: seen.inventory,
            last_operation_id: null,
            previous: [],
            retry_at: null,
            now
          })
    const evidence = { now, inventory: seen.inventory, declaration, item, status, children: yield* children(call) }
    return CallVerdict.judge(call, evidence)
  })

  const end = (call: Operation, verdict: CallVerdict.Verdict, seen: Seen) => {
    switch (verdict._tag) {
      case "Waiting":
        return verdict.executing && call.status === "pending"
          ? store.advance(call.id, { phase: "submitted", status: "executing" })
          : Effect.void
      case "Completed":
        return store
          .advance(call.id, {
            phase: "settled",
            status: "completed",
            response: verdict.response,
            ...(verdict.volume_id === null ? {} : { volume_id: verdict.volume_id })
          })
          .pipe(Effect.zipLeft(Effect.logInfo("call completed")))
      case "Failed":
        return fail(call, { status: "failed", error: verdict.error, response: verdict.response }, seen).pipe(
          Effect.zipLeft(Effect.logWarning("call failed", verdict.error))
        )
    }
  }

  /** The end of the call and what is taken back are one transaction: no client is told of one without the other. */
  const fail = (call: Operation, outcome: Omit<Advance, "phase">, { inventory, open, unresolved }: Seen) =>
    Effect.gen(function* () {
      const declarations = yield* store.declarations
      const declaration = declarations.find(({ uid }) => uid === call.uid) ?? null
      const now = yield* Clock.currentTimeMillis
      const { pending, write } = Withdrawal.make(call, declaration, open, unresolved, inventory, now)
      const advance: Advance = { ...outcome, phase: pending ? "uncertain" : "settled" }
      yield* store.write(write === null ? [] : [write], { ends: [{ id: call.id, advance }] })
    })

  const look = (call: Operation, seen: Seen) =>
    Effect.gen(function* () {
      // Failed already: only what it left unresolved is waited for.
      if (hasEnded(call)) {
        if (!seen.unresolved.some(({ uid }) => uid === call.uid)) yield* fail(call, { status: call.status }, seen)
        return
      }
      yield* end(call, yield* judge(call, seen), seen)
    }).pipe(
      // Written by somebody else since: the next pass sees that.
      Effect.catchTag("PreconditionLost", "GenerationConflict", (error) =>
        Effect.logDebug("a call is looked at again", error.message)
      ),
      Effect.annotateLogs(LogFields.ofOperation(call, "call"))
    )

  return {
    open: store.calls,
    claim,
    /** To be run after planning and before acting: what is taken back is then no longer acted on (S15). */
    end: Effect.fn("Calls.end")(function* (seen: Seen): Effect.fn.Return<void, StoreUnavailable> {
      const concerned = seen.open.filter(({ uid }) => seen.only === null || seen.only.has(uid))
      yield* Effect.forEach(concerned, (call) => look(call, seen), { discard: true })
    })
  }
}
