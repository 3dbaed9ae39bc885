import { Context, type Effect } from "effect"
import type {
  CloudStackRefused,
  CloudStackUnavailable,
  GateClosed,
  OutcomeUnknown,
  PreconditionLost
} from "../schema/Errors.ts"
import type { JobId, OfferingId, VmId, VolumeId, ZoneId } from "../schema/Ids.ts"
import type { CloudVolume, VirtualMachine } from "../schema/Inventory.ts"
import type { FreshRead, Intent } from "./Intent.ts"

export interface Listing {
  /** ms since the epoch when the first page was asked for. */
  readonly started_at: number
  readonly volumes: ReadonlyArray<CloudVolume>
  /** Ids that came twice with different content. */
  readonly ambiguous: ReadonlyArray<VolumeId>
  /** The pages agree with `count`, or three reads in a row gave the same ids. */
  readonly complete: boolean
  readonly note: string | null
}

export interface ById {
  readonly started_at: number
  readonly found: ReadonlyArray<CloudVolume>
  /** Asked for, answered, and not among the rows. No proof of absence unless the appliance VM was visible beside it. */
  readonly absent: ReadonlyArray<VolumeId>
  /** Ids CloudStack could not resolve (431). */
  readonly unresolved: ReadonlyArray<VolumeId>
}

export interface Job {
  readonly id: JobId
  /** `unknown`: CloudStack does not know the id (any more). */
  readonly status: "pending" | "succeeded" | "failed" | "unknown"
  readonly code: number | null
  /** CloudStack's words where it gave any (a job cancelled by a restart has none). */
  readonly text: string | null
}

export interface Offering {
  readonly id: OfferingId
  readonly name: string
  readonly customized: boolean
  /** GiB; 0 when customized. */
  readonly size_gib: number
}

/** Where CloudStack is, as far as the configuration tells. */
export interface CloudPlace {
  readonly api_url: string
  /** The zone to create volumes in that is configured, an id or a name; null where there is none. */
  readonly zone: string | null
  readonly domain: string | null
  /** What all this comes from, for people. */
  readonly source: string
  /** Why it may be out of date; null where it is not. */
  readonly problem: string | null
}

export interface Capabilities {
  readonly version: string
  readonly size_min_gib: number
  readonly size_max_gib: number
}

/** What CloudStack recorded of something that was done to a volume (`EventResponse`). */
export interface CloudEvent {
  readonly id: string
  /** The events of one action, from scheduled to completed, bear the id of the first. */
  readonly action_id: string
  /** ms since the epoch by CloudStack's clock, whole seconds. */
  readonly at: number
  /** `VOLUME.DETACH` and its like (`EventTypes`). */
  readonly type: string
  /** The action ended in an error. */
  readonly failed: boolean
  readonly user: string | null
  /** The account, or the project, that owns what was acted on. */
  readonly account: string | null
  readonly description: string
  readonly volume_id: VolumeId | null
}

export interface CloudEventFilter {
  /** ms since the epoch; recorded then or later. */
  readonly since: number
  readonly types?: ReadonlyArray<string>
  readonly volume_ids?: ReadonlyArray<VolumeId>
}

/**
 * CloudStack, read only. There is no method here that changes anything, which is what `plan`, `drift` and `--dry-run`
 * are built on.
 */
export class CloudStackRead extends Context.Tag("volumed/reconciler/CloudStackRead")<
  CloudStackRead,
  {
    /** Null while the configuration cannot be read. */
    readonly place: Effect.Effect<CloudPlace | null>
    /** All volumes this account may see. Fails rather than return a part silently. */
    readonly volumes: Effect.Effect<Listing, CloudStackUnavailable>
    /** Some volumes, in as few calls as possible; an id that spoils the call is read singly. */
    readonly volumesById: (ids: ReadonlyArray<VolumeId>) => Effect.Effect<ById, CloudStackUnavailable>
    /** Volumes that bear exactly this name. */
    readonly volumesByName: (name: string) => Effect.Effect<Listing, CloudStackUnavailable>
    readonly virtualMachines: (
      ids: ReadonlyArray<VmId>
    ) => Effect.Effect<
      { readonly found: ReadonlyArray<VirtualMachine>; readonly absent: ReadonlyArray<VmId> },
      CloudStackUnavailable
    >
    readonly job: (id: JobId) => Effect.Effect<Job, CloudStackUnavailable>
    readonly offerings: Effect.Effect<ReadonlyArray<Offering>, CloudStackUnavailable>
    readonly zones: Effect.Effect<ReadonlyArray<{ readonly id: ZoneId; readonly name: string }>, CloudStackUnavailable>
    readonly capabilities: Effect.Effect<Capabilities, CloudStackUnavailable>
    /**
     * May this account choose the id of a volume that it creates? Kept for an hour, or until CloudStack says no to one;
     * false as well while it cannot be found out. True is no promise: the create that is refused for it is planned anew.
     */
    readonly customIds: Effect.Effect<boolean>
    /**
     * What was done to volumes, newest first, from one call that is not repeated; of very many events only the newest.
     * For answers to people, never for decisions: events come late, and may be missing. `CloudStackRefused`: this account
     * may not ask.
     */
    readonly events: (
      filter: CloudEventFilter
    ) => Effect.Effect<ReadonlyArray<CloudEvent>, CloudStackUnavailable | CloudStackRefused>
  }
>() {}

export type CallFailed = CloudStackRefused | OutcomeUnknown | GateClosed | PreconditionLost

/** What a mutating call was answered. `expires_at` as in `OutcomeUnknown`. */
export interface Accepted {
  readonly job_id: JobId | null
  readonly volume_id: VolumeId | null
  readonly submitted_at: number
  readonly expires_at: number
}

/**
 * CloudStack's mutations, one call each, never repeated by the client. The gate is asked again between signing and
 * sending. A failure is either a definite refusal or an unknown outcome, never in between.
 */
export class CloudStack extends Context.Tag("volumed/reconciler/CloudStack")<
  CloudStack,
  {
    readonly create: (intent: Intent<"Create">) => Effect.Effect<Accepted, CallFailed>
    readonly attach: (intent: Intent<"Attach">, read: FreshRead) => Effect.Effect<Accepted, CallFailed>
    readonly detach: (intent: Intent<"Detach">, read: FreshRead) => Effect.Effect<Accepted, CallFailed>
    readonly delete: (intent: Intent<"Delete">, read: FreshRead) => Effect.Effect<Accepted, CallFailed>
    /** Keys of `replace` are deleted before `set` is written; both are jobs of their own, the second is answered. */
    readonly tag: (intent: Intent<"Tag">, read: FreshRead) => Effect.Effect<Accepted, CallFailed>
  }
>() {}
