import { randomUUID } from "node:crypto"
import { Clock, Context, Effect, Layer } from "effect"
import * as Declare from "../../reconciler/Declare.ts"
import { Reconciler } from "../../reconciler/Reconciler.ts"
import { type Alongside, Store } from "../../reconciler/Store.ts"
import type * as Api from "../../schema/Api.ts"
import type { Declaration } from "../../schema/Declaration.ts"
import type { CloudStackUnavailable } from "../../schema/Errors.ts"
import { type Name, Uid } from "../../schema/Ids.ts"
import type { Settings } from "../../schema/Settings.ts"
import * as Catalogue from "./Catalogue.ts"
import type { Failure } from "./ErrorAnswer.ts"
import * as Idempotency from "./Idempotency.ts"
import * as PlanAnswer from "./PlanAnswer.ts"
import * as Quota from "./Quota.ts"
import type { Request } from "./Request.ts"
import { Hub } from "./Watch.ts"

/** Changes of declarations, and the version 1 calls that come or go with them. */
export interface Drafted extends Declare.Applied, Pick<Alongside, "calls" | "ends"> {}

/** What is decided but not stored yet. Made anew from what is stored whenever somebody else wrote in between. */
export type Draft<R = never, D extends Drafted = Drafted> = Effect.Effect<D, Failure, R>

export interface Stored<D extends Drafted = Drafted> {
  readonly draft: D
  /** As stored, or as they are where nothing was to be written; one for each change of the draft. */
  readonly declarations: ReadonlyArray<Declaration>
}

export interface CommitOptions<D extends Drafted = Drafted> {
  /** Decide again when somebody else wrote in between. */
  readonly retry: boolean
  /** What a repeat under the same Idempotency-Key is answered from, stored beside the write; null: nothing of its own. */
  readonly answer: (draft: D) => { readonly status: number; readonly response: Idempotency.Response } | null
}

/** Retries after a compare-and-swap that lost. Writers in this process take turns, so it takes another process to lose. */
const RETRIES = 5

export class Writes extends Context.Tag("volumed/Http/Writes")<
  Writes,
  {
    /**
     * Store a draft, all or none, and wake the reconciler. Writers take turns, and the draft that is stored was decided
     * within its turn: what it found nobody has changed since.
     */
    readonly commit: <R, D extends Drafted>(
      request: Request,
      draft: Draft<R, D>,
      options: CommitOptions<D>
    ) => Effect.Effect<Stored<D>, Failure, R>
    /**
     * The plan a draft would cause; nothing is stored. `scope`: show the plan of the changed declarations, or of all.
     * `agreeing`: as if somebody had agreed to the end of their NBD clients.
     */
    readonly dryRun: <R>(
      request: Request,
      draft: Draft<R>,
      scope: "all" | "changed",
      agreeing?: ReadonlySet<Uid>
    ) => Effect.Effect<Api.DryRun, Failure, R>
    /** What accepting a declaration depends on besides what is declared. */
    readonly context: (request: Request) => Effect.Effect<Declare.Context, CloudStackUnavailable>
  }
>() {}

export type Rules = Pick<
  Settings,
  "appliance_vm_id" | "default_disk_offering_id" | "delete_grace_ms" | "declarations_max"
>

const make = (rules: Rules) =>
  Effect.gen(function* () {
    const store = yield* Store
    const reconciler = yield* Reconciler
    const catalogue = yield* Catalogue.Catalogue
    const site = yield* PlanAnswer.Site
    const room = yield* Quota.make(rules.declarations_max)
    const hub = yield* Hub
    // Two declarations must not claim one volume, which no compare-and-swap of a single one can see: writers take turns.
    const turn = yield* Effect.makeSemaphore(1)

    const checked = <R, D extends Drafted>(draft: Draft<R, D>) =>
      Effect.tap(draft, (applied) => catalogue.check(toCreate(applied)))

    const storeOnce = <R, D extends Drafted>(request: Request, draft: Draft<R, D>, options: CommitOptions<D>) =>
      Effect.gen(function* () {
        const applied = yield* checked(draft)
        yield* room(applied.changes.filter(({ outcome }) => outcome === "created").length)
        const writes = all(applied).flatMap(({ write }) => (write === null ? [] : [write]))
        const { calls = [], ends = [] } = applied
        const answer = options.answer(applied)
        const keyed = answer === null ? {} : Idempotency.alongside(request.key, answer.status, answer.response)
        const idle = writes.length === 0 && calls.length === 0 && ends.length === 0
        const woken = new Set([...writes, ...calls].map(({ uid }) => uid))
        // Where nothing is stored, whoever looks after the keys remembers the whole answer.
        const stored = idle
          ? []
          : yield* store.write(writes, { calls, ends, ...keyed }).pipe(
              // Something came in between that no generation tells of: decided again, the draft has the words for it.
              Effect.catchTag("PreconditionLost", (lost) => Effect.andThen(draft, Effect.fail(lost))),
              Effect.tap(() => Effect.andThen(reconciler.poke([...woken]), hub.ring)),
              // A client that hangs up must not take back half of it, nor keep the reconciler asleep.
              Effect.uninterruptible
            )
        const byUid = new Map(stored.map((declaration) => [declaration.uid, declaration]))
        return {
          draft: applied,
          declarations: applied.changes.map(({ declaration }) => byUid.get(declaration.uid) ?? declaration)
        }
      })

    return Writes.of({
      commit: (request, draft, options) =>
        // The first round reads what CloudStack offers, if it must, while other writers go on.
        checked(draft).pipe(
          Effect.andThen(
            turn.withPermits(1)(
              storeOnce(request, draft, options).pipe(
                Effect.retry({
                  while: (failure) => options.retry && failure._tag === "GenerationConflict",
                  times: RETRIES
                })
              )
            )
          )
        ),
      dryRun: (request, draft, scope, agreeing) =>
        Effect.gen(function* () {
          const applied = yield* checked(draft)
          const candidates = withChanges(yield* store.declarations, all(applied))
          const planned = yield* reconciler.plan(candidates, agreeing)
          const only = scope === "all" ? null : new Set(all(applied).map(({ declaration }) => declaration.uid))
          const place = yield* PlanAnswer.placeOf(request, site)
          return { ...PlanAnswer.make(place, planned, only), ...namesByOutcome(applied) }
        }),
      context: (request) =>
        Effect.gen(function* () {
          return {
            now: yield* Clock.currentTimeMillis,
            actor: request.actor_name,
            appliance_vm_id: rules.appliance_vm_id,
            defaults: { disk_offering_id: rules.default_disk_offering_id, zone_id: yield* catalogue.zone },
            delete_grace_ms: rules.delete_grace_ms,
            newUid: () => Uid.make(randomUUID())
          }
        })
    })
  })

export const layer = (rules: Rules) => Layer.effect(Writes, make(rules))

export const single = (change: Declare.Change): Declare.Applied => ({ changes: [change], pruned: [], prune_kept: [] })

const all = (applied: Declare.Applied) => [...applied.changes, ...applied.pruned]

const toCreate = (applied: Declare.Applied): ReadonlyArray<Catalogue.Wanted> =>
  applied.changes.flatMap(({ outcome, declaration: { name, spec } }, index) =>
    outcome === "created" && spec.volume_id === null
      ? [{ index: applied.changes.length > 1 ? index : null, name, spec }]
      : []
  )

/** What would be declared: changed ones replaced, new ones in their bytewise place. */
const withChanges = (existing: ReadonlyArray<Declaration>, changes: ReadonlyArray<Declare.Change>) => {
  const byUid = new Map(existing.map((declaration) => [declaration.uid, declaration]))
  for (const { declaration } of changes) byUid.set(declaration.uid, declaration)
  return [...byUid.values()].toSorted((a, b) => (a.name < b.name ? -1 : 1))
}

export const namesByOutcome = (applied: Declare.Applied) => {
  const names = (outcome: Declare.Change["outcome"]): ReadonlyArray<Name> =>
    all(applied).flatMap((change) => (change.outcome === outcome ? [change.declaration.name] : []))
  return {
    created: names("created"),
    changed: names("changed"),
    unchanged: names("unchanged"),
    removed: names("removed")
  }
}
