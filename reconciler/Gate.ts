import { Context, Effect, FiberRef } from "effect"
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

const fencing = FiberRef.unsafeMake(false)

/**
 * For a fence, which takes nothing from anybody but the chance to open a wrong disk: it may also be set while nobody is
 * known to lead, and waits for no database. The hold file forbids it like everything, and so does another leader, who
 * fences by itself.
 */
export const forFence = <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  Effect.locally(effect, fencing, true)

/** True where the running fiber asks for a fence alone. */
export const isForFence: Effect.Effect<boolean> = FiberRef.get(fencing)
