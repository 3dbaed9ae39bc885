import { type Code, type ErrorBody, statuses } from "../../schema/Api.ts"
import type { Refused } from "../../schema/Document.ts"
import type {
  CloudStackUnavailable,
  CursorExpired,
  GenerationConflict,
  PreconditionLost,
  StoreUnavailable
} from "../../schema/Errors.ts"
import { Data } from "effect"

/** A refusal that concerns the request itself rather than a declaration. */
export class RequestRefused extends Data.TaggedError("RequestRefused")<{
  readonly code: Code
  readonly error: string
  readonly suggestion?: string
  readonly details?: Readonly<Record<string, unknown>>
  readonly headers?: Readonly<Record<string, string>>
}> {
  override get message() {
    return this.error
  }
}

export type Failure =
  | Refused
  | RequestRefused
  | GenerationConflict
  | PreconditionLost
  | CursorExpired
  | StoreUnavailable
  | CloudStackUnavailable

export interface ErrorAnswer {
  readonly status: number
  readonly body: ErrorBody
  readonly headers: Readonly<Record<string, string>>
}

/** Seconds after which a client may ask again what could not be answered now. */
const RETRY_AFTER_S = "5"

/** What a failure looks like to a client. Causes stay in the log: they may hold addresses and values. */
export const make = (failure: Failure, request_id: string): ErrorAnswer => {
  switch (failure._tag) {
    case "Refused":
      return answer(failure.code, failure.error, request_id, {
        ...suggested(failure.suggestion),
        errors: failure.errors
      })
    case "RequestRefused":
      return answer(
        failure.code,
        failure.error,
        request_id,
        { ...failure.details, ...suggested(failure.suggestion ?? null) },
        failure.headers ?? {}
      )
    case "GenerationConflict":
      return answer("CONFLICT", `${failure.name} was written by others again and again`, request_id, {
        suggestion: "repeat the request"
      })
    case "PreconditionLost":
      return answer("CONFLICT", failure.detail, request_id, { suggestion: "read it again, and decide again" })
    case "CursorExpired":
      return answer("CURSOR_EXPIRED", failure.message, request_id)
    case "StoreUnavailable": {
      if (failure.problem === "standby") return standby(failure.leader, request_id)
      const suggestion = failure.outcome_unknown
        ? "whether this was stored is not known: read it, and repeat the request where it was not"
        : "repeat the request; what was stored before is not affected"
      const details = { suggestion, outcome_unknown: failure.outcome_unknown }
      return answer("DATABASE_UNAVAILABLE", "the database is unavailable", request_id, details)
    }
    case "CloudStackUnavailable": {
      const details = { suggestion: "repeat the request when CloudStack answers again", kind: failure.kind }
      const text = "CloudStack cannot be asked now"
      return answer("CLOUDSTACK_UNAVAILABLE", text, request_id, details)
    }
  }
}

/** `leader` is what it calls itself, host and process: where it is reached, the operator knows. */
const standby = (leader: string | null, request_id: string): ErrorAnswer =>
  answer("STANDBY", "another process leads, and only that one writes", request_id, {
    suggestion: "send the request to the leader, or repeat it: this one leads when that one is gone",
    leader
  })

export const overloaded = (error: string, request_id: string): ErrorAnswer =>
  answer("OVERLOADED", error, request_id, { suggestion: "repeat the request" })

export const defect = (request_id: string): ErrorAnswer =>
  answer("UNKNOWN_ERROR", "an internal error; the log has it under this request_id", request_id)

const suggested = (suggestion: string | null) => (suggestion === null ? {} : { suggestion })

/** Refusals of what the caller sent; the version 1 clients know them by these words and do not retry them. */
const inputCodes: ReadonlySet<Code> = new Set([
  "INVALID_REQUEST",
  "TOO_LARGE",
  "UNSUPPORTED_MEDIA_TYPE",
  "CLOUDSTACK_INVALID_PARAMETER",
  "FIELD_IMMUTABLE",
  "IDEMPOTENCY_KEY_REUSED"
])

export const answer = (
  code: Code,
  error: string,
  request_id: string,
  details: Readonly<Record<string, unknown>> = {},
  headers: Readonly<Record<string, string>> = {}
): ErrorAnswer => ({
  status: statuses[code],
  headers: statuses[code] === 503 ? { "retry-after": RETRY_AFTER_S, ...headers } : headers,
  body: {
    error: worded(error, code),
    code,
    details: {
      ...(inputCodes.has(code) ? { cloudstack_code: 431 } : {}),
      ...(isMisread(error, code) ? { problem: error } : {}),
      ...details
    },
    request_id
  }
})

/**
 * The words by which version 1 clients tell errors apart. They retry what contains `timeout` or `device` (unless it is a
 * refused input), so these must not slip in with a name or a value where a retry is wrong.
 */
const worded = (error: string, code: Code): string => {
  if (inputCodes.has(code)) return `CloudStack API error 431: ${error}`
  if (code === "CLOUDSTACK_RESOURCE_LIMIT") return `CloudStack API error 432: ${error}`
  return isMisread(error, code) ? `refused as ${code}; details has what and why` : error
}

/** Whether version 1 clients would repeat in vain what was refused in these words. */
const isMisread = (error: string, code: Code): boolean => {
  const passing = statuses[code] === 503 || statuses[code] === 408
  const isClass = inputCodes.has(code) || code === "CLOUDSTACK_RESOURCE_LIMIT"
  return !passing && !isClass && /timeout|device/u.test(error)
}
