import { Schema } from "effect"

/** CloudStack was not read: nothing is known, and nothing follows about what exists. */
export class CloudStackUnavailable extends Schema.TaggedError<CloudStackUnavailable>()("CloudStackUnavailable", {
  command: Schema.String,
  /** `transport`, `timeout`, `unauthorized`, `throttled`, `maintenance`, `undecodable`, `refused`, `clock_skew`. */
  kind: Schema.String,
  detail: Schema.String,
  cause: Schema.optional(Schema.Defect)
}) {
  override get message() {
    return `CloudStack could not be read: ${this.command}: ${this.detail}`
  }
}

/** CloudStack answered that it did not act and will not: nothing has changed by this call. */
export class CloudStackRefused extends Schema.TaggedError<CloudStackRefused>()("CloudStackRefused", {
  command: Schema.String,
  /** ApiErrorCode, which is also the HTTP status. */
  code: Schema.Int,
  cserrorcode: Schema.NullOr(Schema.Int),
  /** CloudStack's own words, control characters replaced. */
  text: Schema.String,
  /** An account or resource limit (535, 532, 533). */
  limit: Schema.Boolean,
  /** The request never left: connection refused, name not found. Retried as such. */
  never_sent: Schema.Boolean
}) {
  override get message() {
    return `CloudStack refused ${this.command} (${this.code}): ${this.text}`
  }
}

/** The call may have taken effect, may do so later, or never will. Only an observation after `expires_at` tells. */
export class OutcomeUnknown extends Schema.TaggedError<OutcomeUnknown>()("OutcomeUnknown", {
  command: Schema.String,
  detail: Schema.String,
  /** ms since the epoch: a reading begun later shows the effect if there ever is one (jobs aside). */
  expires_at: Schema.Int,
  /** CloudStack's error that leaves it open, where it answered with one of its own. */
  code: Schema.optional(Schema.Int),
  cause: Schema.optional(Schema.Defect)
}) {
  override get message() {
    return `The outcome of ${this.command} is unknown: ${this.detail}`
  }
}

/** Nothing may be changed now; the call was not sent. */
export class GateClosed extends Schema.TaggedError<GateClosed>()("GateClosed", { detail: Schema.String }) {
  override get message() {
    return `Not acting: ${this.detail}`
  }
}

/** A guard right before a call found the world other than planned; the call was not sent. The next pass plans anew. */
export class PreconditionLost extends Schema.TaggedError<PreconditionLost>()("PreconditionLost", {
  detail: Schema.String
}) {
  override get message() {
    return `Not acting: ${this.detail}`
  }
}

export class GuestUnavailable extends Schema.TaggedError<GuestUnavailable>()("GuestUnavailable", {
  detail: Schema.String,
  cause: Schema.optional(Schema.Defect)
}) {
  override get message() {
    return `The guest's disks could not be read: ${this.detail}`
  }
}

export class NbdUnavailable extends Schema.TaggedError<NbdUnavailable>()("NbdUnavailable", {
  detail: Schema.String,
  cause: Schema.optional(Schema.Defect)
}) {
  override get message() {
    return `The NBD server could not be used: ${this.detail}`
  }
}

/**
 * Why the database did not do it. `busy`: a deadlock or a lock, worth repeating at once. `standby`: another process leads,
 * and only the leader writes. `refused`: the database is not one we may use, or not with these rights.
 */
export const StoreProblem = Schema.Literal("unreachable", "busy", "read_only", "full", "standby", "refused", "damaged")
export type StoreProblem = typeof StoreProblem.Type

/** The database did not take or give data. `outcome_unknown`: a COMMIT was sent and its answer is missing. */
export class StoreUnavailable extends Schema.TaggedError<StoreUnavailable>()("StoreUnavailable", {
  detail: Schema.String,
  outcome_unknown: Schema.Boolean,
  problem: Schema.optionalWith(StoreProblem, { default: () => "unreachable" as const }),
  /** Who writes instead, where that is known. */
  leader: Schema.optionalWith(Schema.NullOr(Schema.String), { default: () => null }),
  cause: Schema.optional(Schema.Defect)
}) {
  override get message() {
    return `The database is unavailable: ${this.detail}`
  }
}

/** A compare-and-swap lost: somebody wrote the declaration in between. */
export class GenerationConflict extends Schema.TaggedError<GenerationConflict>()("GenerationConflict", {
  name: Schema.String,
  expected: Schema.NullOr(Schema.Int),
  found: Schema.NullOr(Schema.Int)
}) {
  override get message() {
    return `${this.name} is at generation ${this.found ?? "none"}, not ${this.expected ?? "none"}: read it again and repeat`
  }
}

/** A list cursor that this store did not give out, or whose place is gone: list again from the start. */
export class CursorExpired extends Schema.TaggedError<CursorExpired>()("CursorExpired", { cursor: Schema.String }) {
  override get message() {
    return "The cursor is not one of this list's: list again without it"
  }
}

/** Settings, a file or a command line is wrong in a way only a person can mend. */
export class Misconfigured extends Schema.TaggedError<Misconfigured>()("Misconfigured", {
  problems: Schema.Array(Schema.Struct({ key: Schema.String, problem: Schema.String, example: Schema.String }))
}) {
  override get message() {
    return this.problems.map((p) => `${p.key}: ${p.problem}\n  example: ${p.example}`).join("\n")
  }
}
