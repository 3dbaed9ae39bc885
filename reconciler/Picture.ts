import { Clock, Effect, PubSub, Ref, Stream } from "effect"
import type { Plan } from "../schema/Action.ts"
import type { Condition, Status } from "../schema/Condition.ts"
import type { Declaration } from "../schema/Declaration.ts"
import type { StoreUnavailable } from "../schema/Errors.ts"
import type { OperationId, Uid, VmId } from "../schema/Ids.ts"
import type { Inventory } from "../schema/Inventory.ts"
import type { Execute } from "./Execute.ts"
import type { PassSummary, View } from "./Reconciler.ts"
import * as Statuses from "./Status.ts"
import type { Store } from "./Store.ts"
import * as Views from "./View.ts"
import type { Wake } from "./Wake.ts"

type Conditions = ReadonlyMap<Uid, ReadonlyArray<Condition>>

/** What a pass hands over to be shown. */
export interface Pass {
  readonly declarations: ReadonlyArray<Declaration>
  readonly inventory: Inventory
  readonly plan: Plan
  readonly only: ReadonlySet<Uid> | null
  readonly summary: PassSummary
}

/** What the passes show, for answers: the view, and each declaration's status with its conditions' times. */
export interface Picture {
  readonly view: Effect.Effect<View>
  /** Ticks after every pass that was shown. */
  readonly changes: Stream.Stream<void>
  readonly status: (declaration: Declaration) => Effect.Effect<Status>
  /** Reads what survives a restart: conditions, and the newest operations, which another process may have begun. */
  readonly load: Effect.Effect<void, StoreUnavailable>
  /** What was seen, ahead of what is made of it. */
  readonly look: (inventory: Inventory, whole: boolean) => Effect.Effect<void>
  /** What the NBD side showed between passes: what was asked for then, the rest as it was seen before. */
  readonly verified: (nbd: Inventory["nbd"]) => Effect.Effect<void>
  /** Shows a pass, and writes nothing. */
  readonly show: (pass: Pass) => Effect.Effect<void>
  /** Writes down what changed by a pass, then shows it. */
  readonly publish: (pass: Pass) => Effect.Effect<void, StoreUnavailable>
}

export const make = Effect.fn("Picture.make")(function* (
  store: Store["Type"],
  appliance: VmId,
  wake: Pick<Wake, "backoff">,
  newest: Execute["newest"]
) {
  const changed = yield* PubSub.sliding<void>(1)
  const view = yield* Ref.make<View>(Views.blank)
  const earlier = yield* Ref.make<ReadonlyMap<Uid, OperationId>>(new Map())
  /** As they stand in the database, and as they were shown last: these differ while nothing can be written. */
  const stored = yield* Ref.make<Conditions>(new Map())
  const shown = yield* Ref.make<Conditions>(new Map())

  const load = Effect.gen(function* () {
    const conditions = yield* store.conditions
    const operations = yield* newestOperations(store)
    yield* Ref.set(stored, conditions)
    yield* Ref.set(shown, conditions)
    yield* Ref.set(earlier, operations)
  })

  const lastOperations = Effect.gen(function* () {
    const [here, before] = [yield* newest, yield* Ref.get(earlier)]
    return (uid: Uid) => here.get(uid) ?? before.get(uid) ?? null
  })

  /** Of the declarations that the pass looked at, anew; of the others as shown before. */
  const statusesOf = Effect.fn(function* ({ declarations, inventory, only, plan }: Pass) {
    const now = yield* Clock.currentTimeMillis
    const { statuses: before } = yield* Ref.get(view)
    const items = new Map(plan.items.map((item) => [item.uid, item]))
    const previous = yield* Ref.get(shown)
    const last_operation = yield* lastOperations
    const backoff = yield* wake.backoff
    const statuses = new Map<Uid, Status>()
    for (const declaration of declarations) {
      const { uid } = declaration
      const old = before.get(uid)
      if (only !== null && !only.has(uid)) {
        if (old !== undefined) statuses.set(uid, old)
        continue
      }
      const status = Statuses.make({
        declaration,
        inventory,
        item: items.get(uid) ?? null,
        last_operation_id: last_operation(uid),
        previous: previous.get(uid) ?? [],
        retry_at: backoff.get(uid)?.retry_at ?? null,
        now
      })
      statuses.set(uid, status)
    }
    return statuses
  })

  const look = (inventory: Inventory, whole: boolean) =>
    Ref.update(view, (before) => ({ ...before, ...Views.look(before, inventory, whole) }))

  const verified = (nbd: Inventory["nbd"]) => Ref.update(view, (before) => Views.verified(before, nbd))

  const showing = Effect.fn(function* (pass: Pass, statuses: ReadonlyMap<Uid, Status>) {
    const { declarations, only, plan, summary } = pass
    yield* Ref.update(shown, (map) => withConditions(map, changesOf(map, statuses, only)))
    yield* Ref.update(view, (before) => ({
      ...before,
      plan: only === null || before.plan === null ? plan : Views.overlayPlan(before.plan, plan, declarations),
      statuses,
      last_pass: summary
    }))
    yield* PubSub.publish(changed, undefined)
  })

  const show = Effect.fn("Picture.show")(function* (pass: Pass) {
    yield* look(pass.inventory, pass.only === null)
    yield* showing(pass, yield* statusesOf(pass))
  })

  const publish = Effect.fn("Picture.publish")(function* (pass: Pass) {
    const statuses = yield* statusesOf(pass)
    const changes = changesOf(yield* Ref.get(stored), statuses, pass.only)
    yield* store.saveConditions(changes)
    yield* Ref.update(stored, (map) => withConditions(map, changes))
    // What could not be read is not gone: its rows stay until somebody sees (S17).
    const { cloud, guest } = pass.inventory
    const isWhole = cloud._tag === "Known" && cloud.complete && guest._tag === "Known"
    if (isWhole) yield* store.saveDeviceMappings(Views.mappings(statuses, appliance))
    yield* showing(pass, statuses)
  })

  const status = Effect.fnUntraced(function* (declaration: Declaration) {
    const current = yield* Ref.get(view)
    const known = current.statuses.get(declaration.uid)
    if (known !== undefined && known.observed_generation === declaration.generation) return known
    return Statuses.make({
      declaration,
      inventory: current.inventory,
      item: null,
      last_operation_id: (yield* lastOperations)(declaration.uid),
      previous: (yield* Ref.get(shown)).get(declaration.uid) ?? [],
      retry_at: null,
      now: yield* Clock.currentTimeMillis
    })
  })

  const picture: Picture = {
    view: Ref.get(view),
    changes: Stream.fromPubSub(changed),
    status,
    load,
    look,
    verified,
    show,
    publish
  }
  return picture
})

interface Change {
  readonly uid: Uid
  readonly conditions: ReadonlyArray<Condition>
}

/** Of those that the pass looked at: the others are as they were. */
const changesOf = (
  before: Conditions,
  statuses: ReadonlyMap<Uid, Status>,
  only: ReadonlySet<Uid> | null
): ReadonlyArray<Change> =>
  [...statuses].flatMap(([uid, { conditions }]) =>
    (only !== null && !only.has(uid)) || Views.sameConditions(before.get(uid) ?? [], conditions)
      ? []
      : [{ uid, conditions }]
  )

const withConditions = (map: Conditions, changes: ReadonlyArray<Change>): Conditions =>
  changes.length === 0 ? map : new Map([...map, ...changes.map(({ uid, conditions }) => [uid, conditions] as const)])

/** The newest operation of each declaration among the last thousand that there are. */
const newestOperations = Effect.fn(function* (store: Store["Type"]) {
  const { items } = yield* store
    .operations({ limit: 1000 })
    .pipe(Effect.catchTag("CursorExpired", (error) => Effect.die(error)))
  return new Map(items.toReversed().map((operation): [Uid, OperationId] => [operation.uid, operation.id]))
})
