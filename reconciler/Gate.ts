import { Context, type Effect } from "effect"
import type { GateClosed } from "../schema/Errors.ts"

/**
 * May anything be changed right now? Asked by every adapter between preparing a call and sending it: the hold file, a
 * daemon that is shutting down, and (with MySQL) the leader's term all close it.
 */
export class Gate extends Context.Tag("volumed/reconciler/Gate")<
  Gate,
  {
    readonly check: Effect.Effect<void, GateClosed>
    /** The reason it is closed, or null: for plans and for people. */
    readonly reason: Effect.Effect<string | null>
  }
>() {}
