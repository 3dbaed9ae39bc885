import { Context, type Effect, type Option } from "effect"
import type { Action, Held } from "../schema/Action.ts"
import type { Binding, Declaration, Deletion, Manager, Spec } from "../schema/Declaration.ts"
import type { CursorExpired, GenerationConflict, PreconditionLost, StoreUnavailable } from "../schema/Errors.ts"
import type { JobId, Name, OperationId, Uid } from "../schema/Ids.ts"
import type { Operation, OperationStatus, OperationType, Phase } from "../schema/Operation.ts"
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
  /** RFC 3339; created at or after. */
  readonly since?: string
}

/** What became of an operation; fields left out stay. Terminal operations never change again: such an advance is refused. */
export interface Advance {
  readonly phase: Phase
  readonly status: OperationStatus
  readonly job_id?: JobId | null
  readonly volume_id?: string
  readonly response?: Readonly<Record<string, unknown>>
  readonly error?: string
  readonly submitted_at?: number
  readonly expires_at?: number
}

export interface Approval extends Held {
  readonly digest: string
  readonly expires_at: number
}

export interface EventRow {
  readonly id: number
  readonly at: string
  readonly kind: string
  readonly name: string | null
  readonly actor: string | null
  readonly message: string
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
    /** All or none, in one transaction; answers the stored declarations in the order asked. */
    readonly write: (
      writes: ReadonlyArray<Write>
    ) => Effect.Effect<ReadonlyArray<Declaration>, GenerationConflict | StoreUnavailable>
    /** What was learned; no new generation. Rows that are unchanged are not written. */
    readonly bind: (
      changes: ReadonlyArray<{ readonly uid: Uid; readonly binding: Binding }>
    ) => Effect.Effect<void, StoreUnavailable>
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
      learned: { readonly uid: Uid; readonly binding: Binding } | null
    ) => Effect.Effect<Operation, PreconditionLost | StoreUnavailable>
    /** Every operation whose outcome is not known yet, oldest first. */
    readonly unresolved: Effect.Effect<ReadonlyArray<Operation>, StoreUnavailable>
    readonly operation: (id: OperationId) => Effect.Effect<Option.Option<Operation>, StoreUnavailable>
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
    readonly approve: (approvals: ReadonlyArray<Approval>) => Effect.Effect<void, StoreUnavailable>

    /** Last transition times of conditions survive a restart: read once, written only when a condition changes. */
    readonly conditions: Effect.Effect<ReadonlyMap<Uid, ReadonlyArray<Condition>>, StoreUnavailable>
    readonly saveConditions: (
      changes: ReadonlyArray<{ readonly uid: Uid; readonly conditions: ReadonlyArray<Condition> }>
    ) => Effect.Effect<void, StoreUnavailable>

    /** Rows of `device_mappings`, which existing clients read, for volumes on the appliance; unchanged rows are not written. */
    readonly saveDeviceMappings: (mappings: ReadonlyArray<DeviceMapping>) => Effect.Effect<void, StoreUnavailable>

    readonly record: (event: Omit<EventRow, "id" | "at">) => Effect.Effect<void, StoreUnavailable>
    readonly events: (after: number, limit: number) => Effect.Effect<ReadonlyArray<EventRow>, StoreUnavailable>

    /** For health: engine, durability, schema version, and rows that were skipped because they do not decode (B10). */
    readonly describe: Effect.Effect<
      {
        readonly engine: string
        readonly durable: boolean
        readonly schema_version: number
        readonly undecodable: ReadonlyArray<{ readonly table: string; readonly id: string; readonly problem: string }>
      },
      StoreUnavailable
    >
  }
>() {}

export interface DeviceMapping {
  readonly volume_id: string
  readonly vm_id: string
  readonly device_path: string
  readonly size: number
}
