import { Option, Schema } from "effect"
import * as Api from "../../schema/Api.ts"
import { Problem } from "../../schema/Document.ts"

/** The server answered that it will not. `details.errors` lists every problem of a refused input. */
export class ApiError extends Schema.TaggedError<ApiError>()("ApiError", {
  status: Schema.Int,
  code: Schema.String,
  error: Schema.String,
  details: Schema.Record({ key: Schema.String, value: Schema.Unknown }),
  request_id: Schema.String
}) {
  override get message() {
    return this.error
  }

  /** Every problem of a refused input; empty for other refusals. */
  get problems(): ReadonlyArray<Problem> {
    return Option.getOrElse(Schema.decodeUnknownOption(Schema.Array(Problem))(this.details["errors"]), () => [])
  }

  get suggestion(): string | null {
    return text(this.details["suggestion"])
  }
}

/** No answer, or none that volumed gives. Whether a write was stored is not known. */
export class ServerUnreachable extends Schema.TaggedError<ServerUnreachable>()("ServerUnreachable", {
  server: Schema.String,
  detail: Schema.String,
  /** The same request may well be answered later: nothing, or something in between, answered this one. */
  transient: Schema.Boolean,
  cause: Schema.optional(Schema.Defect)
}) {
  override get message() {
    return `${this.server} did not answer as volumed does: ${this.detail}`
  }
}

/** What any call may end with. */
export type Failure = ApiError | ServerUnreachable

/** The operation ended without what it was for; `operation.error` says why, and its wish was taken back. */
export class OperationFailed extends Schema.TaggedError<OperationFailed>()("OperationFailed", {
  operation: Api.OperationAnswer
}) {
  override get message() {
    return `${this.operation.type} ${this.operation.id} failed: ${this.operation.error ?? "no reason was given"}`
  }
}

/** A newer write asked for something else, or somebody cancelled it. */
export class OperationCancelled extends Schema.TaggedError<OperationCancelled>()("OperationCancelled", {
  operation: Api.OperationAnswer
}) {
  override get message() {
    return `${this.operation.type} ${this.operation.id} was cancelled: ${this.operation.error ?? "no reason was given"}`
  }
}

/** It had not ended when the waiting did. The daemon goes on with it. */
export class OperationTimedOut extends Schema.TaggedError<OperationTimedOut>()("OperationTimedOut", {
  id: Schema.String,
  /** As it was seen last; null when it was never seen. */
  operation: Schema.NullOr(Api.OperationAnswer),
  timeout_ms: Schema.Number,
  /** Why it could not be looked at, where that was the trouble. */
  cause: Schema.optional(Schema.Defect)
}) {
  override get message() {
    const seen = this.operation === null ? "was never seen" : `is still ${this.operation.status}`
    return `timeout: ${this.id} ${seen} after ${this.timeout_ms / 1000} s; the daemon goes on with it`
  }
}

/** The condition did not hold when the waiting ended. The daemon goes on towards what is declared. */
export class ConditionTimedOut extends Schema.TaggedError<ConditionTimedOut>()("ConditionTimedOut", {
  name: Schema.String,
  /** For example `Ready:True`. */
  condition: Schema.String,
  /** As it was seen last; null when it was never seen. */
  volume: Schema.NullOr(Api.Volume),
  timeout_ms: Schema.Number,
  cause: Schema.optional(Schema.Defect)
}) {
  /** The condition that was waited for, as it was seen last. */
  get seen(): Api.Volume["status"]["conditions"][number] | null {
    return this.volume?.status.conditions.find(({ type }) => type === this.condition.split(":")[0]) ?? null
  }

  override get message() {
    const found = this.seen === null ? "it was never seen" : `${this.seen.reason}: ${this.seen.message}`
    return `timeout: ${this.name} is not ${this.condition} after ${this.timeout_ms / 1000} s (${found}); the daemon goes on`
  }
}

/** How callers of the old daemon tell errors apart. */
export type Class =
  | "CLOUDSTACK_INVALID_PARAMETER"
  | "CLOUDSTACK_RESOURCE_LIMIT"
  | "OPERATION_TIMEOUT"
  | "DEVICE_CORRELATION_FAILED"
  | "UNKNOWN_ERROR"

export interface Classified {
  readonly code: Class
  readonly message: string
  /** The same request, made again a little later, may succeed. */
  readonly retryable: boolean
  /** What a person can do. */
  readonly suggestion: string
}

/** Any error of this library, a failed operation, or whatever else was thrown: by its code, else by its words. */
export const classify = (error: unknown): Classified => {
  const { code, message, suggestion } = look(error)
  const [kind, retryable] = verdicts[code ?? ""] ?? byWords(message)
  return { code: kind, message, retryable, suggestion: suggestion ?? suggestions[kind] }
}

export const isRetryable = (error: unknown): boolean => classify(error).retryable

export const suggestion = (error: unknown): string => classify(error).suggestion

/** The server said, or would say, "not now" rather than "no". */
export const isTransient = (status: number, code: string | null): boolean =>
  [408, 502, 504].includes(status) || ([429, 503].includes(status) && !(code !== null && decided.has(code)))

/** What lasts until a person or an hour ends it: asking again soon is no use. */
const decided: ReadonlySet<string> = new Set(["DELETION_BUDGET", "MAINTENANCE"] satisfies ReadonlyArray<Api.Code>)

const input: Verdict = ["CLOUDSTACK_INVALID_PARAMETER", false]
const refused: Verdict = ["UNKNOWN_ERROR", false]
const notNow: Verdict = ["UNKNOWN_ERROR", true]
const slow: Verdict = ["OPERATION_TIMEOUT", true]

type Verdict = readonly [Class, boolean]

/** Codes that only operations and this library's own errors bear. */
type OperationCode = "OPERATION_TIMEOUT" | "DEVICE_CORRELATION_FAILED" | "CANCELLED" | "UNREACHABLE" | "NOT_VOLUMED"

const verdicts: Readonly<Record<string, Verdict>> = {
  INVALID_REQUEST: input,
  TOO_LARGE: input,
  UNSUPPORTED_MEDIA_TYPE: input,
  EXPECTATION_FAILED: input,
  HEADERS_TOO_LARGE: input,
  CLOUDSTACK_INVALID_PARAMETER: input,
  FIELD_IMMUTABLE: input,
  IDEMPOTENCY_KEY_REUSED: input,
  CLOUDSTACK_RESOURCE_LIMIT: ["CLOUDSTACK_RESOURCE_LIMIT", true],
  REQUEST_TIMEOUT: slow,
  OPERATION_TIMEOUT: slow,
  DEVICE_CORRELATION_FAILED: ["DEVICE_CORRELATION_FAILED", true],
  RATE_LIMITED: notNow,
  CLOUDSTACK_UNAVAILABLE: notNow,
  DATABASE_UNAVAILABLE: notNow,
  STANDBY: notNow,
  OVERLOADED: notNow,
  UNREACHABLE: notNow,
  UNAUTHORIZED: refused,
  FORBIDDEN: refused,
  NOT_FOUND: refused,
  METHOD_NOT_ALLOWED: refused,
  CONFLICT: refused,
  DELETING: refused,
  FIELD_CONFLICT: refused,
  CURSOR_EXPIRED: refused,
  PRECONDITION_FAILED: refused,
  DELETION_BUDGET: refused,
  MAINTENANCE: refused,
  UNKNOWN_ERROR: refused,
  NOT_SUPPORTED: refused,
  CANCELLED: refused,
  NOT_VOLUMED: refused
} satisfies Record<Api.Code | OperationCode, Verdict>

/** In this order: the first word that is there decides, as the old clients did. */
const words = [
  ["CloudStack API error 431", "CLOUDSTACK_INVALID_PARAMETER"],
  ["CloudStack API error 432", "CLOUDSTACK_RESOURCE_LIMIT"],
  ["timeout", "OPERATION_TIMEOUT"],
  ["device", "DEVICE_CORRELATION_FAILED"]
] as const satisfies ReadonlyArray<readonly [string, Class]>

const byWords = (message: string): Verdict => {
  const found = words.find(([word]) => message.includes(word))?.[1] ?? "UNKNOWN_ERROR"
  return verdicts[found] ?? refused
}

const suggestions: Readonly<Record<Class, string>> = {
  CLOUDSTACK_INVALID_PARAMETER:
    "correct the request: the error names what is wrong, and volumed offerings lists the offerings and zones there are",
  CLOUDSTACK_RESOURCE_LIMIT: "delete volumes nobody needs, or have the account's limit in CloudStack raised",
  OPERATION_TIMEOUT: "look at volumed explain for what it waits for; the daemon may still get there, then ask again",
  DEVICE_CORRELATION_FAILED:
    "see volumed devices for the disks the appliance's kernel shows, then ask again; a disk may need a moment to arrive",
  UNKNOWN_ERROR: "the daemon's log has the whole story under the request or operation id"
}

interface Seen {
  readonly code: string | null
  readonly message: string
  readonly suggestion: string | null
}

const look = (error: unknown): Seen => {
  if (error instanceof ApiError) return { code: error.code, message: error.error, suggestion: error.suggestion }
  if (error instanceof ServerUnreachable) {
    const suggestion = "see that the daemon runs and that its address is right: volumed doctor"
    return { code: error.transient ? "UNREACHABLE" : "NOT_VOLUMED", message: error.message, suggestion }
  }
  if (error instanceof OperationFailed) return ofOperation(error.operation)
  if (error instanceof OperationCancelled) {
    const suggestion = "see who asked for something else since: volumed log"
    return { code: "CANCELLED", message: error.message, suggestion }
  }
  if (error instanceof OperationTimedOut) return { code: "OPERATION_TIMEOUT", message: error.message, suggestion: null }
  if (error instanceof ConditionTimedOut) {
    return { code: "OPERATION_TIMEOUT", message: error.message, suggestion: error.seen?.suggestion ?? null }
  }
  if (Schema.is(Api.OperationAnswer)(error)) return ofOperation(error)
  return { code: null, message: error instanceof Error ? error.message : String(error), suggestion: null }
}

const ofOperation = ({ error, response }: Api.OperationAnswer): Seen => ({
  code: text(response?.["code"]),
  message: error ?? "",
  suggestion: text(response?.["suggestion"])
})

const text = (value: unknown): string | null => (typeof value === "string" && value !== "" ? value : null)
