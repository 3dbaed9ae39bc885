import { Context, type Effect, type Option } from "effect"
import type { Action, Held, Withheld } from "../schema/Action.ts"
import type { Binding, Declaration, Deletion, Manager, Spec } from "../schema/Declaration.ts"
import type { CursorExpired, GenerationConflict, PreconditionLost, StoreUnavailable } from "../schema/Errors.ts"
import type { JobId, Name, OperationId, Uid, VmId } from "../schema/Ids.ts"
import type { CallWish, Operation, OperationStatus, OperationType, Phase } from "../schema/Operation.ts"
import type { Condition } from "../schema/Condition.ts"
import type { Intent } from "./Intent.ts"

/** A compare-and-swap write of one declaration. `expected_generation: null` means: there must be none living. */
export interface Write {
  readonly name: Name
  readonly expected_generation: number | null
  readonly uid: Uid
  readonly generation: number
  readonly set: string | null
  readonly spec: Spec
  readonly managers: Readonly<Record<string, Manager>>
  readonly deletion: Deletion | null
  /** For the event history. */
  readonly actor: string
  readonly kind: "declared" | "changed" | "removed" | "undeleted"
  /** What this write teaches about the volume; all else that is known is kept, or unbound in a new declaration. */
  readonly binding?: Partial<Binding>
}

/** A version 1 call to record; it starts pending, and is never `unresolved`. */
export type NewCall = Pick<
  Operation,
  "id" | "type" | "volume_id" | "vm_id" | "request" | "name" | "uid" | "generation" | "actor"
> & { readonly wish: CallWish; readonly deadline_at: number }

/**
 * What observation taught about one declaration. `from`: what was known when the reading began; what was written since
 * is kept, where the reading itself taught nothing new. Without it the whole binding is taken.
 */
export interface Learned {
  readonly uid: Uid
  readonly binding: Binding
  readonly from?: Binding
}

/** The answer that was given to an Idempotency-Key. `digest` is of the request, so that another one is told apart. */
export interface KeyedAnswer {
  readonly key: string
  readonly digest: string
  readonly status: number
  readonly response: Readonly<Record<string, unknown>>
}

/** What is stored in the same transaction as a write. */
export interface Alongside {
  readonly calls?: ReadonlyArray<NewCall>
  /** How earlier calls end by this write, beside those that it cancels. */
  readonly ends?: ReadonlyArray<{ readonly id: OperationId; readonly advance: Advance }>
  readonly answer?: KeyedAnswer
}

/** Nothing is acted on while there is one. */
export interface Maintenance {
  readonly reason: string
  readonly by: string
  readonly since: string
  /** It ends by itself then; null: when it is ended. */
  readonly until: string | null
  /** Somebody ended it, or its time came: it is over as soon as a whole observation shows what is pending. */
  readonly ending: boolean
}

export interface OperationFilter {
  readonly limit?: number
  /** Opaque, from `next`. */
  readonly cursor?: string
  readonly status?: OperationStatus
  readonly type?: OperationType
  readonly volume_id?: string
  readonly vm_id?: string
  readonly name?: string
  readonly uid?: Uid
  readonly parent_id?: OperationId
  /** RFC 3339; created at or after. */
  readonly since?: string
}

/** What became of an operation; fields left out stay. Terminal operations never change again: such an advance is refused. */
export interface Advance {
  readonly phase: Phase
  readonly status: OperationStatus
  readonly job_id?: JobId | null
  readonly volume_id?: string
  readonly vm_id?: VmId
  readonly response?: Readonly<Record<string, unknown>>
  readonly error?: string
  readonly submitted_at?: number
  readonly expires_at?: number
}

export interface Approval extends Held {
  readonly digest: string
  readonly expires_at: number
}

/** What the history tells. */
export type EventKind =
  | Write["kind"]
  | "removal_finished"
  | "operation_intended"
  | "operation_ended"
  | "call_accepted"
  | "call_ended"
  | "approved"
  | "maintenance_begun"
  | "maintenance_changed"
  | "maintenance_ended"
  | "condition"
  // An export's clients: nobody new is let in, somebody is again, some were ended, and a person agreed to that.
  | "fenced"
  | "released"
  | "clients_ended"
  | "clients_consented"

export interface EventRow {
  readonly id: number
  readonly at: string
  readonly kind: string
  readonly name: string | null
  readonly uid: Uid | null
  readonly actor: string | null
  readonly operation_id: OperationId | null
  readonly message: string
}

export interface EventFilter {
  /** Only ids greater than this one. */
  readonly after: number
  /** At most 1000. */
  readonly limit: number
  /** RFC 3339: at or after, and before. */
  readonly since?: string
  readonly until?: string
  readonly name?: string
  readonly actor?: string
  readonly kind?: string
}

/**
 * Desired state, what is known about it, and the journal. One owner process. Every write is durable when its effect
 * succeeds. Nothing here acts on the world.
 */
export class Store extends Context.Tag("volumed/reconciler/Store")<
  Store,
  {
    /** All living declarations (removed ones that are not done yet included), in bytewise order of name. */
    readonly declarations: Effect.Effect<ReadonlyArray<Declaration>, StoreUnavailable>
    readonly declaration: (name: Name) => Effect.Effect<Option.Option<Declaration>, StoreUnavailable>
    /** Declarations whose removal was finished at or after this RFC 3339 time, newest first. */
    readonly removedSince: (since: string) => Effect.Effect<ReadonlyArray<Declaration>, StoreUnavailable>
    /**
     * All or none, in one transaction; answers the stored declarations in the order asked. Open calls whose wish is no
     * longer what is declared then are cancelled. `PreconditionLost`: an undelete of what a delete call may have been
     * sent for, or a call that has ended meanwhile. `GenerationConflict`: also a withdrawal that does not know of an action begun
     * meanwhile.
     */
    readonly write: (
      writes: ReadonlyArray<Write>,
      alongside?: Alongside
    ) => Effect.Effect<ReadonlyArray<Declaration>, GenerationConflict | PreconditionLost | StoreUnavailable>
    /** What was learned; no new generation. Rows that are unchanged are not written. */
    readonly bind: (changes: ReadonlyArray<Learned>) => Effect.Effect<void, StoreUnavailable>
    /** Close a removed declaration: its name is free again. */
    readonly finishRemoval: (uid: Uid) => Effect.Effect<void, StoreUnavailable>

    /**
     * A durable intent row, before its side effect (S8). `GenerationConflict` when the declaration moved on or is gone
     * (S15); `PreconditionLost` when an unresolved operation of the same declaration or volume exists (S2), or another
     * living declaration is bound to the volume (S4).
     */
    readonly intend: <A extends Action>(
      action: A
    ) => Effect.Effect<Intent<A["_tag"]>, GenerationConflict | PreconditionLost | StoreUnavailable>
    /** `PreconditionLost` when the operation has ended (S7). Repeating the advance that ended it answers the row. */
    readonly advance: (
      id: OperationId,
      advance: Advance
    ) => Effect.Effect<Operation, PreconditionLost | StoreUnavailable>
    /** Advance an operation and write what it taught us, in one transaction. */
    readonly settle: (
      id: OperationId,
      advance: Advance,
      learned: Learned | null
    ) => Effect.Effect<Operation, PreconditionLost | StoreUnavailable>
    /** Every operation whose outcome is not known yet, oldest first. */
    readonly unresolved: Effect.Effect<ReadonlyArray<Operation>, StoreUnavailable>
    readonly operation: (id: OperationId) => Effect.Effect<Option.Option<Operation>, StoreUnavailable>
    /** Calls that have not ended, and failed or cancelled ones whose wish is not wholly taken back yet; oldest first. */
    readonly calls: Effect.Effect<ReadonlyArray<Operation>, StoreUnavailable>
    /** Newest first; 100 a page unless told, at most 1000. */
    readonly operations: (
      filter: OperationFilter
    ) => Effect.Effect<
      { readonly items: ReadonlyArray<Operation>; readonly next: string | null },
      CursorExpired | StoreUnavailable
    >
    /** Destructive operations created at or after this time (ms since the epoch); those refused, so not done, left out. */
    readonly destructiveSince: (since: number) => Effect.Effect<number, StoreUnavailable>

    readonly approvals: (now: number) => Effect.Effect<ReadonlyArray<Approval>, StoreUnavailable>
    /** `answer` as in `setMaintenance`. */
    readonly approve: (
      approvals: ReadonlyArray<Approval>,
      answer?: KeyedAnswer
    ) => Effect.Effect<void, StoreUnavailable>

    /** Last transition times of conditions survive a restart: read once, written only when a condition changes. */
    readonly conditions: Effect.Effect<ReadonlyMap<Uid, ReadonlyArray<Condition>>, StoreUnavailable>
    readonly saveConditions: (
      changes: ReadonlyArray<{ readonly uid: Uid; readonly conditions: ReadonlyArray<Condition> }>
    ) => Effect.Effect<void, StoreUnavailable>

    /** Rows of `device_mappings`, which existing clients read, for volumes on the appliance; unchanged rows are not written. */
    readonly saveDeviceMappings: (mappings: ReadonlyArray<DeviceMapping>) => Effect.Effect<void, StoreUnavailable>

    readonly maintenance: Effect.Effect<Maintenance | null, StoreUnavailable>
    /**
     * Begin or change one; null ends it, and what was pending then is withheld. `standing`: the one that is changed or
     * ended; where another stands meanwhile, nothing is done.
     */
    readonly setMaintenance: (
      maintenance: Maintenance | null,
      beside?: {
        readonly withheld?: ReadonlyArray<Withheld>
        readonly standing?: Maintenance
        /** Stored with it. Where the key was answered before, nothing is done. */
        readonly answer?: KeyedAnswer
      }
    ) => Effect.Effect<void, StoreUnavailable>
    /** Withheld actions of living declarations that were not written since. */
    readonly withheld: Effect.Effect<ReadonlyArray<Withheld>, StoreUnavailable>

    /** The answer that this key was given within the last day. */
    readonly answered: (key: string) => Effect.Effect<Option.Option<KeyedAnswer>, StoreUnavailable>
    /** For answers to what is stored elsewhere than by `write`. */
    readonly remember: (answer: KeyedAnswer) => Effect.Effect<void, StoreUnavailable>

    readonly record: (event: NewEvent) => Effect.Effect<void, StoreUnavailable>
    /** Oldest first. */
    readonly events: (filter: EventFilter) => Effect.Effect<ReadonlyArray<EventRow>, StoreUnavailable>
    /** The oldest and the newest event there is; 0 where there is none. */
    readonly eventRange: Effect.Effect<{ readonly oldest: number; readonly newest: number }, StoreUnavailable>

    /** Rows of `device_mappings`. */
    readonly deviceMappings: Effect.Effect<ReadonlyArray<DeviceMappingRow>, StoreUnavailable>
    /** Operations by type and status, the pruned ones too, and how long the newest thousand completed ones took. */
    readonly statistics: Effect.Effect<Statistics, StoreUnavailable>

    /**
     * One batch, in one transaction, of what is older than it is kept; how many rows went, 0 when none are left. Never
     * what anything may still follow from, however old, and never from the counts of `statistics`.
     */
    readonly prune: (kept: Kept) => Effect.Effect<number, StoreUnavailable>

    /** For health: engine, durability, schema version, and rows that were skipped because they do not decode (B10). */
    readonly describe: Effect.Effect<
      {
        readonly engine: string
        /** A write would be taken, as far as the server is concerned. */
        readonly writable: boolean
        /** An acknowledged commit survives a crash and a power cut. */
        readonly durable: boolean
        /** Why it may not, a sentence each with what to set. */
        readonly weak: ReadonlyArray<string>
        readonly schema_version: number
        readonly undecodable: ReadonlyArray<{ readonly table: string; readonly id: string; readonly problem: string }>
      },
      StoreUnavailable
    >
  }
>() {}

/** For how long, ms, operations that have ended and events are kept, counted back from `now` (ms since the epoch). */
export interface Kept {
  readonly now: number
  readonly operations_ms: number
  readonly events_ms: number
}

export type NewEvent = Pick<EventRow, "name" | "actor" | "message"> &
  Partial<Pick<EventRow, "uid" | "operation_id">> & { readonly kind: EventKind }

export interface Statistics {
  readonly counts: ReadonlyArray<{
    readonly type: OperationType
    readonly status: OperationStatus
    readonly count: number
  }>
  /** ms from creation to completion; null when none completed yet. */
  readonly mean_ms: number | null
}

export interface DeviceMappingRow extends DeviceMapping {
  readonly id: string
  readonly last_sync: string
  readonly created_at: string
  readonly updated_at: string
}

export interface DeviceMapping {
  readonly volume_id: string
  readonly vm_id: string
  readonly device_path: string
  readonly size: number
}
