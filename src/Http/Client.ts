import { Duration, Effect, Schema } from "effect"
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
    const errors = Schema.decodeUnknownOption(Schema.Array(Problem))(this.details["errors"])
    return errors._tag === "Some" ? errors.value : []
  }

  get suggestion(): string | null {
    const suggestion = this.details["suggestion"]
    return typeof suggestion === "string" ? suggestion : null
  }
}

/** No answer, or none that volumed gives. Whether a write was stored is not known. */
export class ServerUnreachable extends Schema.TaggedError<ServerUnreachable>()("ServerUnreachable", {
  server: Schema.String,
  detail: Schema.String,
  cause: Schema.optional(Schema.Defect)
}) {
  override get message() {
    return `${this.server} did not answer as volumed does: ${this.detail}`
  }
}

export type Failure = ApiError | ServerUnreachable

/** A document as the YAML or JSON file says it: plain values, checked by the server. */
export interface ApplyRequest {
  readonly set?: unknown
  readonly volumes?: unknown
  readonly take_over?: boolean
  readonly prune?: boolean
}

export interface ListFilter {
  readonly limit?: number
  readonly cursor?: string
  /** For example `Ready:False`. */
  readonly condition?: string
  readonly volume_id?: string
  readonly attached_to?: string
  readonly set?: string
  readonly paused?: boolean
  /** Those whose removal was finished within 30 days, instead of the living. */
  readonly removed?: boolean
  readonly metadata?: Readonly<Record<string, string>>
}

export interface OperationFilter {
  readonly limit?: number
  readonly cursor?: string
  readonly status?: string
  readonly type?: string
  readonly volume_id?: string
  readonly vm_id?: string
  readonly name?: string
  /** RFC 3339. */
  readonly since?: string
}

/** Answer when the condition holds, at the latest after the time: look at the answer's conditions to tell which. */
export interface Wait {
  /** For example `Ready:True`. */
  readonly condition: string
  /** The server holds an answer back for at most 240 s; ask again to wait longer. */
  readonly timeoutSeconds: number
}

export interface WriteOptions {
  /** Refused with 412 unless the declaration is at this generation. */
  readonly ifMatch?: number
  /** Refused with 412 when the name is declared already. */
  readonly ifNew?: boolean
}

export interface Options {
  /** For example `http://127.0.0.1:8090`. */
  readonly server: string
  /** Who asks, for the history; 1-64 of `[A-Za-z0-9._@-]`. */
  readonly actor?: string
  /** Sent as `Authorization: Bearer`. */
  readonly token?: string
  /** For one answer, waiting aside. */
  readonly timeoutMs?: number
}

interface Call {
  readonly method: "GET" | "PUT" | "PATCH" | "POST" | "DELETE"
  readonly path: string
  readonly query?: Readonly<Record<string, string | number | boolean | undefined>>
  readonly headers?: Readonly<Record<string, string>>
  readonly body?: unknown
  /** Time that the server may hold the answer back, on top of the time for one answer. */
  readonly waitSeconds?: number
}

interface Answer {
  readonly status: number
  readonly headers: Headers
  readonly body: unknown
}

const url = (server: string, call: Call): URL => {
  const target = new URL(server.replace(/\/+$/, "") + call.path)
  for (const [key, value] of Object.entries(call.query ?? {})) {
    if (value !== undefined) target.searchParams.append(key, String(value))
  }
  return target
}

const reason = (cause: unknown): string => {
  if (!(cause instanceof Error)) return String(cause)
  return cause.cause instanceof Error ? `${cause.message}: ${cause.cause.message}` : cause.message
}

const parse = (text: string): unknown => {
  try {
    return JSON.parse(text)
  } catch {
    return undefined
  }
}

const send = (options: Options, call: Call): Effect.Effect<Answer, ServerUnreachable> => {
  const unreachable = (detail: string, cause?: unknown) =>
    new ServerUnreachable({ server: options.server, detail, ...(cause === undefined ? {} : { cause }) })
  const limitMs = (options.timeoutMs ?? 30_000) + (call.waitSeconds ?? 0) * 1000
  return Effect.tryPromise({
    try: async (signal) => {
      const response = await fetch(url(options.server, call), {
        method: call.method,
        redirect: "error",
        signal,
        headers: {
          accept: "application/json",
          ...(options.actor === undefined ? {} : { "volumed-actor": options.actor }),
          ...(options.token === undefined ? {} : { authorization: `Bearer ${options.token}` }),
          ...(call.body === undefined ? {} : { "content-type": "application/json" }),
          ...call.headers
        },
        ...(call.body === undefined ? {} : { body: JSON.stringify(call.body) })
      })
      return { status: response.status, headers: response.headers, body: parse(await response.text()) }
    },
    catch: (cause) => unreachable(reason(cause), cause)
  }).pipe(
    Effect.timeoutFail({
      duration: Duration.millis(limitMs),
      onTimeout: () => unreachable(`no answer within ${limitMs / 1000} s`)
    })
  )
}

const refusal = (options: Options, answer: Answer): Effect.Effect<never, Failure> => {
  const decoded = Schema.decodeUnknownOption(Api.ErrorBody)(answer.body)
  return decoded._tag === "Some"
    ? Effect.fail(new ApiError({ status: answer.status, ...decoded.value }))
    : Effect.fail(
        new ServerUnreachable({ server: options.server, detail: `HTTP ${answer.status} with a body of another kind` })
      )
}

const decodeAs = <A, I>(options: Options, schema: Schema.Schema<A, I>, answer: Answer): Effect.Effect<A, Failure> =>
  Schema.decodeUnknown(schema)(answer.body).pipe(
    Effect.mapError(
      (cause) =>
        new ServerUnreachable({ server: options.server, detail: `an answer of another shape: ${cause.message}`, cause })
    )
  )

const waitQuery = (wait: Wait | undefined) =>
  wait === undefined ? {} : { wait: wait.condition, timeout: `${wait.timeoutSeconds}s` }

const conditional = (write: WriteOptions | undefined): Record<string, string> => ({
  ...(write?.ifMatch === undefined ? {} : { "if-match": `"${write.ifMatch}"` }),
  ...(write?.ifNew === true ? { "if-none-match": "*" } : {})
})

const named = (name: string) => `/api/v2/volumes/${encodeURIComponent(name)}`

const filterQuery = (filter: ListFilter) => {
  const { metadata, ...rest } = filter
  return {
    ...rest,
    ...Object.fromEntries(Object.entries(metadata ?? {}).map(([key, value]) => [`metadata.${key}`, value]))
  }
}

/** The API as functions, one a route. Answers are decoded by the contract's own schemas. */
export const make = (options: Options) => {
  const exchange = (call: Call) =>
    send(options, call).pipe(
      Effect.filterOrElse(
        (answer) => answer.status >= 200 && answer.status < 300,
        (answer) => refusal(options, answer)
      )
    )
  const call = <A, I>(schema: Schema.Schema<A, I>, request: Call): Effect.Effect<A, Failure> =>
    Effect.flatMap(exchange(request), (answer) => decodeAs(options, schema, answer))
  const waited = (wait: Wait | undefined) => (wait === undefined ? {} : { waitSeconds: wait.timeoutSeconds })

  return {
    /** An unhealthy server's answer is an answer, not a failure. */
    health: Effect.flatMap(send(options, { method: "GET", path: "/health" }), (answer) =>
      answer.status === 200 || answer.status === 503 ? decodeAs(options, Api.Health, answer) : refusal(options, answer)
    ),

    volumes: (filter: ListFilter = {}) =>
      call(Api.VolumeList, { method: "GET", path: "/api/v2/volumes", query: filterQuery(filter) }),
    /** Attached volumes that nobody declared. */
    unmanaged: (filter: { readonly limit?: number; readonly cursor?: string } = {}) =>
      call(Api.UnmanagedList, { method: "GET", path: "/api/v2/volumes", query: { ...filter, unmanaged: true } }),
    volume: (name: string, wait?: Wait) =>
      call(Api.Volume, { method: "GET", path: named(name), query: waitQuery(wait), ...waited(wait) }),
    put: (name: string, spec: unknown, write?: WriteOptions) =>
      call(Api.Volume, { method: "PUT", path: named(name), body: spec, headers: conditional(write) }),
    putDryRun: (name: string, spec: unknown, write?: WriteOptions) =>
      call(Api.DryRun, {
        method: "PUT",
        path: named(name),
        body: spec,
        query: { dry_run: true },
        headers: conditional(write)
      }),
    patch: (name: string, patch: unknown, write?: WriteOptions) =>
      call(Api.Volume, { method: "PATCH", path: named(name), body: patch, headers: conditional(write) }),
    delete: (name: string, request: { readonly policy?: string; readonly wait?: Wait } = {}) =>
      call(Api.Volume, {
        method: "DELETE",
        path: named(name),
        query: { policy: request.policy, ...waitQuery(request.wait) },
        ...waited(request.wait)
      }),
    deleteDryRun: (name: string, policy?: string) =>
      call(Api.DryRun, { method: "DELETE", path: named(name), query: { policy, dry_run: true } }),
    undelete: (name: string) => call(Api.Volume, { method: "POST", path: `${named(name)}/undelete` }),
    undeleteDryRun: (name: string) =>
      call(Api.DryRun, { method: "POST", path: `${named(name)}/undelete`, query: { dry_run: true } }),

    apply: (request: ApplyRequest) => call(Api.Applied, { method: "POST", path: "/api/v2/apply", body: request }),
    /** The plan for a candidate document; nothing is stored. */
    planFor: (request: ApplyRequest) => call(Api.DryRun, { method: "POST", path: "/api/v2/plan", body: request }),
    /** The plan for what is declared. */
    plan: call(Api.PlanAnswer, { method: "GET", path: "/api/v2/plan" }),
    approve: (digest: string) => call(Api.Approved, { method: "POST", path: "/api/v2/plan/approve", body: { digest } }),
    drift: call(Api.Drift, { method: "GET", path: "/api/v2/drift" }),

    /** `next` is the cursor of the next page, null on the last one. */
    operations: (filter: OperationFilter = {}) =>
      Effect.flatMap(exchange({ method: "GET", path: "/api/v1/operations", query: { ...filter } }), (answer) =>
        Effect.map(decodeAs(options, Schema.Array(Api.OperationAnswer), answer), (items) => ({
          items,
          next: answer.headers.get("next-cursor")
        }))
      ),
    operation: (id: string, waitSeconds?: number) =>
      call(Api.OperationAnswer, {
        method: "GET",
        path: `/api/v1/operations/${encodeURIComponent(id)}`,
        ...(waitSeconds === undefined ? {} : { query: { wait: `${waitSeconds}s` }, waitSeconds })
      }),
    exports: call(Api.Exports, { method: "GET", path: "/api/v1/exports" })
  }
}

export type Client = ReturnType<typeof make>
