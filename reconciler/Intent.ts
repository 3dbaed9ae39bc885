import type { Action } from "../schema/Action.ts"
import type { OperationId } from "../schema/Ids.ts"
import type { CloudVolume } from "../schema/Inventory.ts"

declare const durable: unique symbol

/**
 * The capability to change something: proof that a durable row names this very action (S8). Only `Store.intend` gives
 * one out, and every mutating method of a port asks for the one of its kind.
 */
export interface Intent<K extends Action["_tag"]> {
  readonly [durable]: K
  readonly operation_id: OperationId
  readonly action: Extract<Action, { _tag: K }>
}

/**
 * The volume as read by id right before the call, so that the client can guard a second time, independent of the
 * planner (S4, S5): it refuses when `started_at` is over a second old, or the type is not a data disk.
 */
export interface FreshRead {
  readonly started_at: number
  readonly volume: CloudVolume
}

/** For the store alone: the row is durable now. */
export const unsafeMake = <K extends Action["_tag"]>(operation_id: OperationId, action: Extract<Action, { _tag: K }>) =>
  ({ operation_id, action }) as Intent<K>
