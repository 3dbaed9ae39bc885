import { Clock, Effect } from "effect"
import { type Declaration, isLiving } from "../schema/Declaration.ts"
import type { StoreUnavailable } from "../schema/Errors.ts"
import type { Operation } from "../schema/Operation.ts"
import * as Plans from "./Plan.ts"
import type { Store } from "./Store.ts"

const HOUR_MS = 3_600_000

/** What the database says and a plan is made from, beside what is observed. */
export type Standing = Aside & {
  readonly declarations: ReadonlyArray<Declaration>
  /** The unresolved ones. */
  readonly operations: ReadonlyArray<Operation>
}

type Aside = Pick<Plans.Input, "approved" | "destructive_last_hour" | "maintenance" | "withheld">

/** Before the database has answered for the first time. */
export const blank: Standing = {
  declarations: [],
  operations: [],
  approved: new Set(),
  destructive_last_hour: 0,
  maintenance: null,
  withheld: []
}

export const living = (store: Store["Type"]) => Effect.map(store.declarations, (all) => all.filter(isLiving))

/** All but declarations and operations, as of now. */
export const aside = (store: Store["Type"]): Effect.Effect<Aside, StoreUnavailable> =>
  Effect.gen(function* () {
    const now = yield* Clock.currentTimeMillis
    return {
      approved: new Set((yield* store.approvals(now)).map(Plans.heldKey)),
      destructive_last_hour: yield* store.destructiveSince(now - HOUR_MS),
      maintenance: Plans.maintained(yield* store.maintenance),
      withheld: yield* store.withheld
    }
  })

export const read = (store: Store["Type"]): Effect.Effect<Standing, StoreUnavailable> =>
  Effect.gen(function* () {
    const operations = yield* store.unresolved
    return { declarations: yield* living(store), operations, ...(yield* aside(store)) }
  })
