import { randomUUID } from "node:crypto"
import * as HttpApi from "@effect/platform/HttpApi"
import * as HttpLayerRouter from "@effect/platform/HttpLayerRouter"
import * as HttpServerRequest from "@effect/platform/HttpServerRequest"
import * as HttpServerResponse from "@effect/platform/HttpServerResponse"
import * as NodeHttpServer from "@effect/platform-node/NodeHttpServer"
import * as NodeHttpServerRequest from "@effect/platform-node/NodeHttpServerRequest"
import { Cause, Context, Effect, Layer, Option, Ref, SchemaAST } from "effect"
import type { CloudStackRead } from "../../reconciler/CloudStack.ts"
import type { Gate } from "../../reconciler/Gate.ts"
import type { Reconciler } from "../../reconciler/Reconciler.ts"
import type { Store } from "../../reconciler/Store.ts"
import { Api, type EndpointName } from "../../schema/Api.ts"
import type { Misconfigured } from "../../schema/Errors.ts"
import type { Settings } from "../../schema/Settings.ts"
import type { Answer } from "./Answer.ts"
import * as Catalogue from "./Catalogue.ts"
import * as ErrorAnswer from "./ErrorAnswer.ts"
import * as Exports from "./Exports.ts"
import * as Health from "./Health.ts"
import * as Listener from "./Listener.ts"
import * as Operations from "./Operations.ts"
import * as PlanAnswer from "./PlanAnswer.ts"
import * as Plans from "./Plans.ts"
import { readJson, refuse, type Request } from "./Request.ts"
import * as VolumeList from "./VolumeList.ts"
import * as Volumes from "./Volumes.ts"
import * as Wait from "./Wait.ts"
import * as Writes from "./Writes.ts"

/** Where the server listens. */
export class Server extends Context.Tag("volumed/Http/Server")<
  Server,
  { readonly addresses: ReadonlyArray<Listener.Address> }
>() {}

export type Options = Pick<Settings, "listen" | "sandbox"> &
  Writes.Rules & {
    readonly nbd: Pick<Settings["nbd"], "backend" | "host" | "port">
    readonly cloudstack: Pick<Settings["cloudstack"], "api_url">
    readonly version: string
  }

type Ports = Store | Reconciler | CloudStackRead | Gate
type Services =
  | Exclude<Ports, CloudStackRead>
  | Catalogue.Catalogue
  | Writes.Writes
  | PlanAnswer.Site
  | VolumeList.EventCursor
  | Wait.Closing

type Handler = (request: Request) => Effect.Effect<Answer, ErrorAnswer.Failure, Services>

/** Requests that are worked on, or held back, at once. More are turned away rather than queued. */
const REQUESTS_MAX = 256
/** From the whole request to its answer, held-back answers included. */
const ANSWER_MS_MAX = 300_000

/** One handler for every endpoint of the contract. */
const handlers = (options: Options): Readonly<Record<EndpointName, Handler>> => ({
  health: Health.make(options, options.version),
  listVolumes: VolumeList.list,
  getVolume: Volumes.get,
  putVolume: Volumes.put,
  patchVolume: Volumes.patch,
  deleteVolume: Volumes.remove,
  undeleteVolume: Volumes.undelete,
  apply: Volumes.apply,
  plan: Plans.plan,
  planCandidate: Volumes.planCandidate,
  approve: Plans.approve,
  drift: Plans.drift,
  listOperations: Operations.list,
  getOperation: Operations.get,
  listExports: Exports.list(options.nbd)
})

/** Listens as long as the layer lives. */
export const layer = (options: Options): Layer.Layer<Server, Misconfigured, Ports> =>
  Layer.scoped(
    Server,
    Effect.gen(function* () {
      const services = yield* Effect.context<Services>()
      const app = yield* HttpLayerRouter.toHttpEffect(routes(handlers(options), services)).pipe(
        Effect.provideService(HttpLayerRouter.RouterConfig, { maxParamLength: 1024 })
      )
      const onRequest = yield* NodeHttpServer.makeHandler(answering(yield* bounded, app))
      const addresses = yield* Listener.listen(options.listen, onRequest)
      yield* Effect.logInfo("listening").pipe(
        Effect.annotateLogs({ addresses: addresses.map(({ url }) => url).join(" ") })
      )
      return { addresses }
    })
  ).pipe(
    Layer.provide(Layer.mergeAll(Writes.layer(options), VolumeList.layerEventCursor)),
    Layer.provide(
      Layer.mergeAll(Catalogue.layer, Wait.layerClosing, Layer.succeed(PlanAnswer.Site, PlanAnswer.site(options)))
    )
  )

interface Endpoint {
  readonly method: string
  readonly handler: Handler
  /** Query keys the contract knows; null where unknown ones are ignored, as version 1 does. */
  readonly query: ReadonlySet<string> | null
}

/** The contract's endpoints by path. */
const byPath = (all: Readonly<Record<EndpointName, Handler>>) => {
  const paths = new Map<`/${string}`, Array<Endpoint>>()
  HttpApi.reflect(Api, {
    onGroup: () => {},
    onEndpoint: ({ endpoint }) => {
      const keys = Option.match(endpoint.urlParamsSchema, {
        onNone: () => [],
        onSome: ({ ast }) => SchemaAST.getPropertySignatures(ast).map(({ name }) => String(name))
      })
      const found = paths.get(endpoint.path) ?? []
      paths.set(endpoint.path, found)
      found.push({
        method: endpoint.method,
        handler: all[endpoint.name as EndpointName],
        query: endpoint.path.startsWith("/api/v2/") ? new Set(keys) : null
      })
    }
  })
  return paths
}

const routes = (all: Readonly<Record<EndpointName, Handler>>, services: Context.Context<Services>) =>
  HttpLayerRouter.use((router) =>
    Effect.forEach(byPath(all), ([path, endpoints]) =>
      router.add("*", path, (request) => Effect.provide(dispatch(endpoints, request), services))
    )
  )

const dispatch = (endpoints: ReadonlyArray<Endpoint>, raw: HttpServerRequest.HttpServerRequest) =>
  Effect.gen(function* () {
    const request = yield* requestOf(raw)
    const method = raw.method === "HEAD" ? "GET" : raw.method
    const endpoint = endpoints.find((candidate) => candidate.method === method)
    const answer = hasOtherQuery(raw.url)
      ? Effect.fail(refuse("NOT_FOUND", "there is no such path"))
      : endpoint === undefined
        ? methodNotAllowed(endpoints)
        : handle(endpoint, request)
    return yield* answer.pipe(
      Effect.timeoutFail({
        duration: ANSWER_MS_MAX,
        onTimeout: () => refuse("OVERLOADED", "no answer in time")
      }),
      Effect.tapError((failure) => Effect.logDebug("refused", Cause.fail(failure))),
      Effect.catchAll((failure) => Effect.succeed(ErrorAnswer.make(failure, request.id))),
      Effect.annotateLogs({ request_id: request.id })
    )
  }).pipe(Effect.map(respond))

/** The router ends a path at `;` and `#` too; what follows there would be a query that no handler sees. */
const hasOtherQuery = (url: string) => /^[^?]*[;#]/u.test(url)

const queryOf = (url: string) => new URLSearchParams(url.includes("?") ? url.slice(url.indexOf("?")) : "")

const handle = (endpoint: Endpoint, request: Request): Effect.Effect<Answer, ErrorAnswer.Failure, Services> =>
  Effect.andThen(checkQuery(endpoint, request.query), endpoint.handler(request))

/** A misspelt `dry_run` must not become a write. */
const checkQuery = ({ query: known }: Endpoint, query: URLSearchParams) => {
  if (known === null) return Effect.void
  const keys = [...query.keys()]
  const wrong = keys.find(
    (key, index) =>
      keys.indexOf(key) !== index || !(known.has(key) || (known.has("attached_to") && key.startsWith("metadata.")))
  )
  return wrong === undefined
    ? Effect.void
    : Effect.fail(
        refuse(
          "INVALID_REQUEST",
          `query: expected each once of: ${[...known].join(", ") || "nothing"}; found ${wrong.slice(0, 60)}`
        )
      )
}

const methodNotAllowed = (endpoints: ReadonlyArray<Endpoint>) => {
  const allow = endpoints.map(({ method }) => method).join(", ")
  return Effect.fail(
    new ErrorAnswer.RequestRefused({ code: "METHOD_NOT_ALLOWED", error: `expected ${allow}`, headers: { allow } })
  )
}

const requestOf = (raw: HttpServerRequest.HttpServerRequest) =>
  Effect.map(HttpLayerRouter.RouteContext, ({ params }): Request => {
    const message = NodeHttpServerRequest.toIncomingMessage(raw)
    return {
      id: requestId(),
      path: params,
      query: queryOf(raw.url),
      headers: message.headers,
      json: (limit, types) => readJson(message, limit, types)
    }
  })

const requestId = () => `req-${randomUUID()}`

const respond = ({ status, body, headers }: Answer) =>
  HttpServerResponse.text(JSON.stringify(body), {
    status,
    contentType: "application/json",
    headers: { ...headers, ...requestIdOf(body), "cache-control": "no-store", "x-content-type-options": "nosniff" }
  })

const requestIdOf = (body: unknown): Readonly<Record<string, string>> =>
  typeof body === "object" && body !== null && "request_id" in body ? { "x-request-id": String(body.request_id) } : {}

/** Turns requests away above the limit. */
const bounded = Effect.map(
  Ref.make(0),
  (working) =>
    <A, E, R>(work: Effect.Effect<A, E, R>, over: Effect.Effect<A>) =>
      Effect.acquireUseRelease(
        Ref.updateAndGet(working, (count) => count + 1),
        (count): Effect.Effect<A, E, R> => (count > REQUESTS_MAX ? over : work),
        () => Ref.update(working, (count) => count - 1)
      )
)

/** Whatever goes wrong outside or inside a handler is answered in the contract's form, and tells nothing it should not. */
const answering = <E, R>(
  limit: Effect.Effect.Success<typeof bounded>,
  app: Effect.Effect<HttpServerResponse.HttpServerResponse, E, R>
) =>
  limit(
    app,
    Effect.sync(() => respond(ErrorAnswer.overloaded("too many requests at once", requestId())))
  ).pipe(
    Effect.catchAllCause((cause) => {
      if (Cause.isInterruptedOnly(cause)) return Effect.interrupt
      const request_id = requestId()
      const failure = Option.getOrNull(Cause.failureOption(cause))
      if (isRouteNotFound(failure)) {
        return Effect.succeed(respond(ErrorAnswer.answer("NOT_FOUND", "there is no such path", request_id)))
      }
      return Effect.logError("a request ended in a defect", cause).pipe(
        Effect.annotateLogs({ request_id }),
        Effect.as(respond(ErrorAnswer.defect(request_id)))
      )
    })
  )

const isRouteNotFound = (failure: unknown) =>
  typeof failure === "object" && failure !== null && "_tag" in failure && failure._tag === "RouteNotFound"
