import { Context, Effect, FiberRef, type Stream } from "effect"
import { GateClosed, StoreUnavailable } from "../schema/Errors.ts"

/**
 * What this process is to the database. Only the leader writes and acts; its term, a number that grows with every
 * election, fences each of its writes (S16).
 */
export type Role =
  /** `since`: ms since the epoch, by our clock: no predecessor has read its own term as valid after this. */
  | { readonly _tag: "Leading"; readonly term: number; readonly since: number }
  /** The database answers, and another process leads. `leader`: what it called itself, where it can be read. */
  | { readonly _tag: "Standby"; readonly leader: string | null }
  /** Whether anybody leads is not known: the database does not answer, or is not one we may use. */
  | { readonly _tag: "Unreachable"; readonly detail: string }

/** May this process act? Asked again and again, for it may end at any moment. */
export class Leadership extends Context.Tag("volumed/reconciler/Leadership")<
  Leadership,
  {
    /** As last known; never asks the database. */
    readonly role: Effect.Effect<Role>
    /** The role now, then every other one. */
    readonly roles: Stream.Stream<Role>
    /**
     * Reads the term again: for the moment between signing a call and sending it. A process that was stopped in the
     * meantime finds itself without the lock here.
     */
    readonly check: Effect.Effect<void, GateClosed>
  }
>() {}

/** Why this process does not act; null while it leads. */
export const obstacle = (role: Role): string | null => {
  switch (role._tag) {
    case "Leading":
      return null
    case "Standby":
      return `another process leads${role.leader === null ? "" : ` (${role.leader})`}`
    case "Unreachable":
      return `whether this process leads is not known: ${role.detail}`
  }
}

/** What a write is answered with where this process does not lead. */
export const notLeading = (role: Exclude<Role, { readonly _tag: "Leading" }>): StoreUnavailable =>
  new StoreUnavailable({
    detail: obstacle(role) ?? "",
    outcome_unknown: false,
    problem: role._tag === "Standby" ? "standby" : "unreachable",
    leader: role._tag === "Standby" ? role.leader : null
  })

const acting = FiberRef.unsafeMake<number | null>(null)

/**
 * What was decided in one term must not be done in another, not even by the same process: somebody else may have led in
 * between. Forked fibers inherit it; null lifts it, for what holds whoever leads.
 */
export const under =
  (term: number | null) =>
  <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
    Effect.locally(effect, acting, term)

/** True where the running fiber acts for another term than this one. */
export const isStale = (term: number): Effect.Effect<boolean> =>
  Effect.map(FiberRef.get(acting), (bound) => bound !== null && bound !== term)

/** The term in which the running fiber may act now. */
export const leading = Effect.fnUntraced(function* (role: Effect.Effect<Role>) {
  const now = yield* role
  if (now._tag !== "Leading") return yield* new GateClosed({ detail: obstacle(now) ?? "" })
  if (yield* isStale(now.term)) return yield* new GateClosed({ detail: "decided in a term that is over" })
  return now.term
})
