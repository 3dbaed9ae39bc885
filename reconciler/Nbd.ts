import { Context, type Effect, type Stream } from "effect"
import type { GateClosed, NbdUnavailable, PreconditionLost } from "../schema/Errors.ts"
import type { NbdReading, NbdSection } from "../schema/Inventory.ts"

/** One export as it should be served. */
export interface WantedExport {
  readonly name: string
  /** By-id path, written into the file as it is. */
  readonly path: string
  readonly read_only: boolean
  /** Identity and bytes that the by-id path meant when this was planned; checked again right before the load. */
  readonly device: string
  readonly size: number
}

export interface LoadRequest {
  /** All exports of ours, wanted after this load. */
  readonly set: ReadonlyArray<WantedExport>
  /**
   * Names of ours that must be gone after it. A section that is in neither list is foreign (or ours and out of reach
   * now, which is the same to a load): it stays byte for byte.
   */
  readonly drop: ReadonlyArray<string>
  /**
   * Names of `set` that the server was seen to serve from another disk, or with another size, before this load. They may be
   * fenced since, and then nothing but this tells that what the server has in memory is wrong.
   */
  readonly distrusted?: ReadonlyArray<string>
}

/**
 * The NBD server, whichever engine. A load is a request, never evidence: only what `observe` says afterwards counts.
 */
export class Nbd extends Context.Tag("volumed/reconciler/Nbd")<
  Nbd,
  {
    /**
     * The file as it is, a GO on the generation marker and on each of `names` (those in the file, and those that must
     * be gone), and who holds devices open. An unreachable or missing server is an answer, not a failure.
     */
    readonly observe: (names: ReadonlyArray<string>) => Effect.Effect<NbdReading, NbdUnavailable>
    /**
     * Make the file say exactly this, and the server serve exactly that file. Does nothing to the server when it
     * already does. Running transfers live on. At most one call a pass. A wanted export whose path no longer means what
     * was planned is left as it is, and named by the failure after the others are done.
     */
    readonly load: (request: LoadRequest) => Effect.Effect<void, NbdUnavailable | GateClosed | PreconditionLost>
    /**
     * The sections as they are written and what their paths lead to at this moment, the server and its processes not
     * asked: cheap, and never behind a load that is under way.
     */
    readonly sections: Effect.Effect<ReadonlyArray<NbdSection>, NbdUnavailable>
    /** Deny new clients of this export at once, without touching the server or running transfers. */
    readonly fence: (name: string) => Effect.Effect<void, NbdUnavailable | GateClosed>
    /** Lift a fence. */
    readonly release: (name: string) => Effect.Effect<void, NbdUnavailable | GateClosed>
    /**
     * Ends the connections that hold this device (identity as in BlockDevice), and no others; answers how many there were.
     * The export is to be fenced before. That they are gone is to be observed.
     */
    readonly endClients: (device: string) => Effect.Effect<number, NbdUnavailable | GateClosed>
    /** The config or the server may have changed. Never ends, never fails. */
    readonly pokes: Stream.Stream<void>
  }
>() {}
