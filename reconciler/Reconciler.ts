import { Context, type Effect, type Stream } from "effect"
import type { Plan } from "../schema/Action.ts"
import type { Status } from "../schema/Condition.ts"
import type { Declaration } from "../schema/Declaration.ts"
import type { NbdUnavailable, StoreUnavailable } from "../schema/Errors.ts"
import type { Uid, VolumeId } from "../schema/Ids.ts"
import type { Holder, Inventory } from "../schema/Inventory.ts"
import type { Consent } from "./Consents.ts"

/** A plan and everything it was made from. */
export interface Planned {
  readonly plan: Plan
  readonly inventory: Inventory
  readonly declarations: ReadonlyArray<Declaration>
}

export interface PassSummary {
  readonly started_at: string
  readonly duration_ms: number
  readonly declarations: number
  readonly settled: number
  readonly actions: number
  readonly blocked: number
  readonly operations_settled: number
  readonly problems: ReadonlyArray<string>
}

/** What the last passes showed: for answers, never for decisions. */
export interface View {
  readonly inventory: Inventory | null
  /** Volumes that were read again since the last whole reading of CloudStack began: when, ms since the epoch. */
  readonly reread: ReadonlyMap<VolumeId, number>
  readonly plan: Plan | null
  readonly statuses: ReadonlyMap<Uid, Status>
  readonly last_pass: PassSummary | null
}

/** The controller: one loop that nobody commands, only pokes. */
export class Reconciler extends Context.Tag("volumed/reconciler/Reconciler")<
  Reconciler,
  {
    /**
     * A dry run: observe everything now and plan, changing nothing. `candidates` replaces the stored declarations by
     * what they would be; null plans what is stored. `agreeing`: as if somebody had agreed to the end of their clients.
     */
    readonly plan: (
      candidates: ReadonlyArray<Declaration> | null,
      agreeing?: ReadonlySet<Uid>
    ) => Effect.Effect<Planned, StoreUnavailable>
    readonly view: Effect.Effect<View>
    /** The status of one declaration as far as it is known; computed from the newest observation. */
    readonly status: (declaration: Declaration) => Effect.Effect<Status>
    /** A full pass now; answers when it has run. */
    readonly sync: Effect.Effect<PassSummary, StoreUnavailable>
    /** Who has exported devices open right now; asked for again a quarter of a second later at the earliest. */
    readonly connections: Effect.Effect<ReadonlyArray<Holder>, NbdUnavailable>
    /**
     * The NBD clients that keep this volume from leaving may be ended: for five minutes at most, and no longer than it is
     * declared as it was when somebody agreed to that. Forgotten with the process.
     */
    readonly endClients: (uid: Uid, consent: Consent) => Effect.Effect<void>
    /** Something about these declarations changed. Carries no data. */
    readonly poke: (uids: ReadonlyArray<Uid>) => Effect.Effect<void>
    /** Ticks after every pass that changed what `view` shows. Never fails. */
    readonly changes: Stream.Stream<void>
  }
>() {}
