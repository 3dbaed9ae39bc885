import type { Held, Plan } from "../schema/Action.ts"
import type { Declaration } from "../schema/Declaration.ts"
import type { Uid } from "../schema/Ids.ts"
import type { Inventory } from "../schema/Inventory.ts"
import type { Operation } from "../schema/Operation.ts"
import type { Limits } from "../schema/Settings.ts"

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
  /** Why nothing may be changed at all (hold file, maintenance), or null. */
  readonly hold: string | null
  /** Hex digest of a text, SHA-256: handed in, for the core computes nothing that needs Node. */
  readonly digest: (text: string) => string
}

export const heldKey = (held: Pick<Held, "uid" | "generation" | "volume_id" | "action">): string =>
  `${held.uid} ${held.generation} ${held.volume_id} ${held.action}`

export const make = (_input: Input): Plan => {
  throw new Error("not written yet")
}
