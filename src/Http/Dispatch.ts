import { randomUUID } from "node:crypto"
import type { IncomingMessage, ServerResponse } from "node:http"
import * as HttpApi from "@effect/platform/HttpApi"
import { Cause, Effect, Fiber, FiberRef, LogLevel, Option, Runtime, SchemaAST } from "effect"
import { Leadership, notLeading, type Role as Standing } from "../../reconciler/Leadership.ts"
import { Api, type EndpointName } from "../../schema/Routes.ts"
import * as Access from "./Access.ts"
import type { Answer } from "./Answer.ts"
import * as ErrorAnswer from "./ErrorAnswer.ts"
import * as Metrics from "./Metrics.ts"
import * as Places from "./Places.ts"
import { isKey, Repeats } from "./Repeats.ts"
import {
  actor,
  BODY_BYTES_MAX,
  bodyReaders,
  bytesOf,
  DOCUMENT_BYTES_MAX,
  flag,
  type MediaTypes,
  refuse,
  type Request
} from "./Request.ts"
import * as Respond from "./Respond.ts"
import * as Router from "./Router.ts"
import type { Role } from "./Tokens.ts"

type Handler<R = never> = (request: Request) => Effect.Effect<Answer, ErrorAnswer.Failure, R>

export type Handlers<R = never> = Readonly<Record<EndpointName, Handler<R>>>

interface Endpoint {
  readonly name: EndpointName
  readonly method: string
  /** As the contract writes it: `/api/v2/volumes/:name`. */
  readonly path: string
  readonly needs: Role
  readonly handler: Handler
  /** Query keys the contract knows; null where unknown ones are ignored, as version 1 does. */
  readonly query: ReadonlySet<string> | null
}

/** From the head of a request to its answer, held-back answers included. */
const ANSWER_MS_MAX = 300_000

/** One request, and what is learned of it on its way; the log and the metrics are told at its end. */
interface Exchange {
  readonly id: string
  readonly message: IncomingMessage
  readonly response: ServerResponse
  /** ms since the epoch. */
  readonly began: number
  /** Gives its place to others; more than once is once. */
  readonly leave: () => void
  readonly path: string
  readonly query: URLSearchParams
  endpoint: Endpoint | null
  actor: string | null
  /** Whether an answer without an error means that something was written. */
  writes: boolean
  failure: ErrorAnswer.Failure | null
}

/** The contract's endpoints by path. */
const byPath = (all: Handlers): ReadonlyMap<string, ReadonlyArray<Endpoint>> => {
  const paths = new Map<string, Array<Endpoint>>()
  HttpApi.reflect(Api, {
    onGroup: () => {},
    onEndpoint: ({ endpoint }) => {
      const keys = Option.match(endpoint.urlParamsSchema, {
        onNone: () => [],
        onSome: ({ ast }) => SchemaAST.getPropertySignatures(ast).map(({ name }) => String(name))
      })
      const name = endpoint.name as EndpointName
      const found = paths.get(endpoint.path) ?? []
      paths.set(endpoint.path, found)
      found.push({
        name,
        method: endpoint.method,
        path: endpoint.path,
        needs: Access.roleNeeded(name, endpoint.method),
        handler: all[name],
        query: endpoint.path.startsWith("/api/v2/") ? new Set(keys) : null
      })
    }
  })
  return paths
}

/**
 * The whole of the server's answering: how many at once, who may, which handler, and what is told of it. It stands on
 * Node's server as it is, and decides without effects what needs none: a router of many features, a span and two dozen
 * effects for each request cost several times what reading a declaration does.
 */
export const make = (all: Handlers, options: Parameters<typeof Access.make>[0]) =>
  Effect.gen(function* () {
    const route = Router.make(byPath(all))
    const admit = yield* Access.make(options)
    const places = Places.make()
    const repeats = yield* Repeats
    const { role } = yield* Leadership
    const clock = yield* Effect.clock
    const level = yield* FiberRef.get(FiberRef.currentMinimumLogLevel)
    const run = Runtime.runFork(yield* Effect.withTracerEnabled(Effect.runtime<never>(), false))

    const handled = (exchange: Exchange, caller: Access.Caller): Effect.Effect<Answer, ErrorAnswer.Failure> => {
      const { message, path } = exchange
      const found = route(path)
      if (found === null) return noSuchPath
      const method = message.method === "HEAD" ? "GET" : message.method
      const endpoint = found.value.find((candidate) => candidate.method === method)
      if (endpoint === undefined) return methodNotAllowed(found.value)
      exchange.endpoint = endpoint
      return handle({ exchange, endpoint, caller, params: found.params, repeats, role })
    }

    const answering = (exchange: Exchange) =>
      Effect.flatMap(admit(exchange.message), (caller) => handled(exchange, caller)).pipe(
        Effect.catchAllCause((cause) => broken(cause, exchange)),
        Effect.flatMap((answer) => {
          exchange.leave()
          const telling = told(exchange, answer.status, clock.unsafeCurrentTimeMillis() - exchange.began, level)
          return Effect.andThen(telling, Respond.send(exchange.response, answer, exchange.id))
        })
      )

    return (message: IncomingMessage, response: ServerResponse): void => {
      const leave = places.enter(message.url ?? "")
      const exchange = begin(message, response, clock.unsafeCurrentTimeMillis(), leave ?? (() => {}))
      const fiber = run(
        leave === null ? Respond.send(response, tooMany(exchange.id), exchange.id) : answering(exchange)
      )
      const late = setTimeout(() => void run(endLate(exchange, fiber)), ANSWER_MS_MAX)
      // A client that left between two writes is no error of ours; `close` follows.
      response.on("error", () => {})
      response.on("close", () => {
        clearTimeout(late)
        exchange.leave()
        if (!response.writableFinished) fiber.unsafeInterruptAsFork(fiber.id())
      })
    }
  })

const begin = (message: IncomingMessage, response: ServerResponse, began: number, leave: () => void): Exchange => {
  const url = message.url ?? ""
  const at = url.indexOf("?")
  return {
    id: `req-${randomUUID()}`,
    message,
    response,
    began,
    leave,
    path: at < 0 ? url : url.slice(0, at),
    query: new URLSearchParams(at < 0 ? "" : url.slice(at + 1)),
    endpoint: null,
    actor: null,
    writes: false,
    failure: null
  }
}

/** A stream may go on; everything else has had its time. */
const endLate = (exchange: Exchange, fiber: Fiber.RuntimeFiber<unknown, unknown>) =>
  exchange.response.headersSent
    ? Effect.void
    : Effect.andThen(
        Fiber.interrupt(fiber),
        Respond.send(exchange.response, ErrorAnswer.overloaded("no answer in time", exchange.id), exchange.id)
      )

const tooMany = (request_id: string) => ErrorAnswer.overloaded("too many requests at once", request_id)

const noSuchPath = refuse("NOT_FOUND", "there is no such path")

interface Call {
  readonly exchange: Exchange
  readonly endpoint: Endpoint
  readonly caller: Access.Caller
  readonly params: Request["path"]
  readonly repeats: Repeats["Type"]
  readonly role: Leadership["Type"]["role"]
}

const handle = (call: Call): Effect.Effect<Answer, ErrorAnswer.Failure> => {
  const { exchange, endpoint, caller, params, repeats, role } = call
  const { message, path, query } = exchange
  const token = caller.token?.name ?? null
  if (!Access.allows(caller.role, endpoint.needs)) return readOnly
  const stray = strayKey(endpoint, query)
  if (stray !== null) return badQuery(endpoint, stray)
  const actor_name = actor(message.headers, path, token)
  if (actor_name === null) return badActor
  exchange.actor = actor_name
  const types: MediaTypes = endpoint.query === null ? "any" : ["application/json"]
  const bytes = bytesOf(message)
  const request: Request = {
    id: exchange.id,
    path: params,
    query,
    headers: message.headers,
    method: endpoint.method,
    role: caller.role,
    actor_name,
    key: null,
    ...bodyReaders(message.headers, bytes, types)
  }
  if (endpoint.needs === "read-only") return endpoint.handler(request)
  const bytes_max = endpoint.name === "apply" ? DOCUMENT_BYTES_MAX : BODY_BYTES_MAX
  const original = { path, bytes, bytes_max, types, scope: token ?? "" }
  const written = Effect.suspend(() => {
    exchange.writes = true
    const key = message.headers["idempotency-key"]
    if (key === undefined) return endpoint.handler(request)
    return typeof key === "string" && isKey(key) ? repeats.once(key, request, original, endpoint.handler) : badKey
  })
  return Effect.flatMap(isDryRun(endpoint, query), (dry) =>
    dry ? endpoint.handler(request) : Effect.andThen(Effect.flatMap(role, leads), written)
  ).pipe(Effect.annotateLogs("request_id", exchange.id))
}

/** Only the leader writes; nothing of a write is looked at elsewhere. */
const leads = (role: Standing): Effect.Effect<void, ErrorAnswer.Failure> =>
  role._tag === "Leading" ? Effect.void : Effect.fail(notLeading(role))

const readOnly = refuse("FORBIDDEN", "this token may only read", "use a read-write token")

const badActor = refuse("INVALID_REQUEST", "Volumed-Actor: expected 1-64 characters of A-Z a-z 0-9 . _ @ -")

const badKey = refuse("INVALID_REQUEST", "Idempotency-Key: expected 1-255 visible ASCII characters")

const isDryRun = ({ query }: Endpoint, asked: URLSearchParams) => {
  if (!asked.has("dry_run")) return Effect.succeed(false)
  return query === null ? noDryRun : flag(asked, "dry_run")
}

/** Version 1 ignores what it does not know; whoever writes this must not get the write instead. */
const noDryRun = refuse("INVALID_REQUEST", "version 1 has no dry_run; nothing was done", "use version 2 for a dry run")

/** A key that the contract does not know, or that comes twice: a misspelt `dry_run` must not become a write. */
const strayKey = ({ query: known }: Endpoint, query: URLSearchParams): string | null => {
  if (known === null || query.size === 0) return null
  const keys = [...query.keys()]
  const isKnown = (key: string) => known.has(key) || (known.has("attached_to") && key.startsWith("metadata."))
  return keys.find((key, index) => keys.indexOf(key) !== index || !isKnown(key)) ?? null
}

const badQuery = ({ query }: Endpoint, stray: string) => {
  const known = [...(query ?? [])].join(", ") || "nothing"
  return refuse("INVALID_REQUEST", `query: expected each once of: ${known}; found ${stray.slice(0, 60)}`)
}

const methodNotAllowed = (endpoints: ReadonlyArray<Endpoint>) => {
  const allow = endpoints.map(({ method }) => method).join(", ")
  return new ErrorAnswer.RequestRefused({ code: "METHOD_NOT_ALLOWED", error: `expected ${allow}`, headers: { allow } })
}

/** Whatever goes wrong outside or inside a handler is answered in the contract's form, and tells nothing it should not. */
const broken = (cause: Cause.Cause<ErrorAnswer.Failure>, exchange: Exchange): Effect.Effect<Answer> => {
  if (Cause.isInterruptedOnly(cause)) return Effect.interrupt
  const failure = Option.getOrNull(Cause.failureOption(cause))
  if (failure === null)
    return Effect.logError("a request ended in a defect", cause).pipe(
      Effect.annotateLogs({ request_id: exchange.id }),
      Effect.as(ErrorAnswer.defect(exchange.id))
    )
  exchange.failure = failure
  return Effect.succeed(ErrorAnswer.make(failure, exchange.id))
}

/** One line a request, and a number. What was written tells an operator something; all else is for who looks closer. */
const told = (exchange: Exchange, status: number, ms: number, level: LogLevel.LogLevel) => {
  const { id, message, endpoint, actor, failure, writes } = exchange
  const counting = Metrics.observeRequest(endpoint?.name ?? null, status, ms)
  const wrote = writes && status < 300
  if (LogLevel.greaterThan(level, wrote ? LogLevel.Info : LogLevel.Debug)) return counting
  const line = wrote ? Effect.logInfo("write accepted") : answered(failure)
  const route = endpoint?.path ?? "none"
  return Effect.andThen(
    counting,
    Effect.annotateLogs(line, { request_id: id, method: message.method, route, status, ms, actor })
  )
}

const answered = (failure: ErrorAnswer.Failure | null) =>
  failure === null ? Effect.logDebug("answered") : Effect.logDebug("refused", Cause.fail(failure))
