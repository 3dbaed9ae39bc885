import * as HttpClient from "@effect/platform/HttpClient"
import * as HttpClientError from "@effect/platform/HttpClientError"
import type * as HttpClientRequest from "@effect/platform/HttpClientRequest"
import { Clock, Effect, Layer, type Scope } from "effect"
import { createServer, type IncomingMessage, type ServerResponse } from "node:http"
import type { AddressInfo } from "node:net"
import { Misconfigured } from "../../schema/Errors.ts"
import * as Command from "./Command.ts"
import type * as Fault from "./Fault.ts"
import type { Refusal } from "./Precondition.ts"
import * as Listing from "./Listing.ts"
import * as MemoryResponse from "./MemoryResponse.ts"
import * as SandboxRoutes from "./SandboxRoutes.ts"
import * as Signature from "./Signature.ts"
import { type Late, schedule, strike } from "./State.ts"
import { OPERATOR_API_KEY, OPERATOR_SECRET_KEY, type World } from "./World.ts"

export interface WireRequest {
  readonly method: string
  /** Path and query; an origin before them is ignored. */
  readonly url: string
  readonly headers: Readonly<Record<string, string>>
  readonly body: string
}

export interface WireAnswer {
  readonly status: number
  readonly headers: Readonly<Record<string, string>>
  readonly body: string
  /** How much later than usual it goes out. */
  readonly delay_ms: number
}

/** `drop`: the connection ends without an answer. `hang`: it stays, and nothing ever comes. */
export type Outcome = WireAnswer | { readonly drop: true } | { readonly hang: true }

const BODY_BYTES_MAX = 1024 * 1024
const UNVERIFIED = "unable to verify user credentials and/or request signature"
const ORIGIN = "http://sandbox.invalid"

/** One request on the simulated CloudStack's port, as the real one answers it (`ApiServlet`, `ApiServer`). */
export const handle = (world: World, request: WireRequest, now: number): Outcome => {
  world.advance(now)
  const url = new URL(URL.canParse(request.url, ORIGIN) ? request.url : "/unreadable", ORIGIN)
  if (url.pathname === "/client/api") return new Call(world, request, url, now).outcome()
  const answer = SandboxRoutes.answer(world, request.method, url.pathname, request.body, now)
  return { ...answer, headers: { ...answer.headers, date: new Date(now).toUTCString() }, delay_ms: 0 }
}

/** Faults that replace or prevent the answer; of those that hit, the first in the list of faults counts. */
const WIRE_FAULTS = [
  "answer_lost_after_effect",
  "answer_lost_before_effect",
  "late_effect",
  "duplicate_delivery",
  "hang",
  "http_5xx",
  "unauthorized",
  "refused",
  "empty_body",
  "invalid_json",
  "html"
] as const satisfies ReadonlyArray<Fault.Kind>
type WireFault = Fault.Of<(typeof WIRE_FAULTS)[number] | "maintenance">

/** One API call on its way through the checks. */
class Call {
  readonly #world: World
  readonly #method: string
  readonly #sent: Map<string, string>
  readonly #params: Record<string, string>
  readonly #now: number
  readonly #skew: number
  readonly #name: string
  readonly #occasion: Fault.Occasion
  #expiresAt: number | null = null

  constructor(world: World, request: WireRequest, url: URL, now: number) {
    this.#world = world
    this.#method = request.method
    this.#now = now
    // What stands in the query string counts before the body's.
    this.#sent = new Map(new URLSearchParams(request.method === "POST" ? request.body : ""))
    for (const [name, value] of url.searchParams) this.#sent.set(name, value)
    this.#params = Object.fromEntries([...this.#sent].map(([name, value]) => [name.toLowerCase(), value]))
    this.#name = this.#sent.get("command") ?? ""
    this.#occasion = { command: this.#name, ...Command.aboutOf(world.state, this.#params) }
    this.#skew = strike(world.state, ["clock_skew"], this.#occasion)?.ms ?? 0
  }

  /** The order of checks is CloudStack's: a badly signed request can meet the rate limit first. */
  outcome(): Outcome {
    const { state } = this.#world
    const command = Object.hasOwn(Command.commands, this.#name) ? Command.commands[this.#name] : undefined
    if (!this.#sent.has("command")) return this.#unauthorized("null")
    if (command === undefined) return this.#unauthorized("errorresponse")
    state.calls.set(this.#name, (state.calls.get(this.#name) ?? 0) + 1)
    if (state.config.enforce_post && command.mutates && this.#method !== "POST") {
      return this.#refuse({
        code: 400,
        cserrorcode: 9999,
        text: `State changing command ${this.#name} needs to be sent using POST request`
      })
    }
    const secret = this.#secretKey()
    if (secret === null) return this.#unauthorized()
    if (strike(state, ["command_denied"], this.#occasion) !== null) return this.#refuse(this.#denied(), "errorresponse")
    if (strike(state, ["throttled"], this.#occasion) !== null) return this.#refuse(throttled)
    const server = this.#now + this.#skew
    const verdict = Signature.verify(this.#sent, secret, server, state.config.enforce_post)
    if (verdict._tag === "Refused") return this.#unauthorized()
    this.#expiresAt = verdict.expires_at === null ? null : verdict.expires_at - this.#skew
    return this.#carryOut(command)
  }

  #isOperator(): boolean {
    return Signature.lookUp(this.#sent, "apikey") === OPERATOR_API_KEY
  }

  /** Of whoever the API key belongs to; null when nobody has it. */
  #secretKey(): string | null {
    const { api_key, secret_key } = this.#world.state.config
    if (this.#isOperator()) return OPERATOR_SECRET_KEY
    return Signature.lookUp(this.#sent, "apikey") === api_key ? secret_key : null
  }

  #carryOut(command: Command.Command): Outcome {
    const { state } = this.#world
    const kinds = command.async ? [...WIRE_FAULTS, "maintenance" as const] : WIRE_FAULTS
    const fault: WireFault | null = strike(state, kinds, this.#occasion)
    const delay_ms = strike(state, ["slow_answer"], this.#occasion)?.ms ?? 0
    const outcome = fault === null ? this.#answer() : this.#spoil(fault)
    return "status" in outcome ? { ...outcome, delay_ms } : outcome
  }

  #spoil(fault: WireFault): Outcome {
    switch (fault.kind) {
      case "answer_lost_after_effect":
        this.#answer()
        return { drop: true }
      case "answer_lost_before_effect":
        return { drop: true }
      case "late_effect":
        this.#sendLate(fault.delay_ms)
        return { drop: true }
      case "duplicate_delivery":
        return this.#answerTwice(fault)
      case "hang":
        if (fault.effect === true) this.#answer()
        return { hang: true }
      case "http_5xx": {
        if (fault.effect === true) this.#answer()
        const status = fault.status ?? 502
        return this.#page(status, `<html><body><h1>${status} Bad Gateway</h1></body></html>`)
      }
      case "unauthorized":
        return this.#unauthorized()
      case "refused":
        return this.#refuse({
          code: fault.code,
          cserrorcode: fault.cserrorcode ?? 9999,
          text: fault.text ?? "refused by a fault of the sandbox"
        })
      case "maintenance":
        return this.#refuse(maintenance)
      case "empty_body":
        if (fault.effect !== false) this.#answer()
        return this.#respond(200, "")
      case "invalid_json":
        return this.#respond(200, (fault.effect === false ? '{""}' : this.#answer().body).replace('"', '"\u0001'))
      case "html":
        return this.#page(200, '<!DOCTYPE html><html><body><form action="/login">Please sign in</form></body></html>')
    }
  }

  #sendLate(delayMs: number): void {
    this.#world.callLate(this.#late(), this.#now + delayMs, this.#now)
  }

  #late(): Late {
    return {
      command: this.#name,
      params: this.#params,
      volume_id: this.#occasion.volume_id,
      expires_at: this.#expiresAt
    }
  }

  /** The second delivery is a proxy's doing, so no controller is watched for it, nor for what is on its way. */
  #answerTwice({ delay_ms = 0, lost = false }: Fault.Of<"duplicate_delivery">): Outcome {
    const { state } = this.#world
    const first = this.#answer()
    if (delay_ms === 0) return this.#written(Command.run(state, this.#name, this.#params))
    schedule(state, this.#now + delay_ms, { kind: "arrives", call: { ...this.#late(), volume_id: null } })
    return lost ? { drop: true } : first
  }

  #answer(): WireAnswer {
    const by = this.#isOperator() ? "operator" : "api"
    return this.#written(this.#world.call(this.#name, this.#params, this.#now, by))
  }

  #written(answer: Command.Answer): WireAnswer {
    if (Listing.isRefusal(answer)) return this.#refuse(answer)
    const key = `${this.#name.toLowerCase()}response`
    return this.#isJson()
      ? this.#respond(200, `{"${key}":${answer}}`)
      : this.#respond(200, xml(key, JSON.parse(answer)))
  }

  #isJson(): boolean {
    return this.#sent.get("response")?.toLowerCase() === "json"
  }

  /** 401 carries neither `cserrorcode` nor X-Description. */
  #unauthorized(key = `${this.#name.toLowerCase()}response`): WireAnswer {
    const inside = { uuidList: [], errorcode: 401, errortext: UNVERIFIED }
    return this.#respond(401, this.#isJson() ? JSON.stringify({ [key]: inside }) : xml(key, inside))
  }

  #denied(): Refusal {
    return {
      code: 432,
      cserrorcode: 4555,
      text: `The API [${this.#name}] does not exist or is not available for the account for user id [2].`
    }
  }

  #refuse(refusal: Refusal, key = `${this.#name.toLowerCase()}response`): WireAnswer {
    const inside = {
      uuidList: [],
      errorcode: refusal.code,
      ...(refusal.cserrorcode === null ? {} : { cserrorcode: refusal.cserrorcode }),
      ...(refusal.text === null ? {} : { errortext: refusal.text })
    }
    const body = this.#isJson() ? JSON.stringify({ [key]: inside }) : xml(key, inside)
    const description = (refusal.text ?? "").replace(/[^\x20-\x7e]/g, "?")
    return this.#respond(refusal.code, body, { "x-description": description })
  }

  #respond(status: number, body: string, headers: Readonly<Record<string, string>> = {}): WireAnswer {
    const type = this.#isJson() ? "application/json; charset=UTF-8" : "text/xml; charset=UTF-8"
    return { status, headers: { "content-type": type, date: this.#date(), ...headers }, body, delay_ms: 0 }
  }

  #page(status: number, body: string): WireAnswer {
    return { status, headers: { "content-type": "text/html", date: this.#date() }, body, delay_ms: 0 }
  }

  #date(): string {
    return new Date(this.#now + this.#skew).toUTCString()
  }
}

const throttled: Refusal = {
  code: 429,
  cserrorcode: 4545,
  text: "The given user has reached his/her account api limit, please retry after [1000] ms."
}

const maintenance: Refusal = {
  code: 503,
  cserrorcode: 9999,
  text: "Maintenance or Shutdown has been initiated on this management server. Can not accept new jobs"
}

/** Enough XML to show a client that it forgot `response=json`. */
const xml = (key: string, inside: unknown): string =>
  `<?xml version="1.0" encoding="UTF-8"?><${key} cloud-stack-version="4.22.0.0">${elements(inside)}</${key}>`

const elements = (value: unknown): string => {
  if (typeof value !== "object" || value === null) return escape(String(value))
  return Object.entries(value)
    .flatMap(([key, inside]) =>
      (Array.isArray(inside) ? inside : [inside]).map((one) => `<${key}>${elements(one)}</${key}>`)
    )
    .join("")
}

const escape = (text: string) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;")

/**
 * The in-memory wire: the real client speaks to the world without a socket and under Effect's clock, so a TestClock
 * drives cloud and client together. Bodies are there at once; no promise is involved.
 */
export const layerHttpClient = (world: World): Layer.Layer<HttpClient.HttpClient> =>
  Layer.succeed(
    HttpClient.HttpClient,
    HttpClient.make((request, url) =>
      Effect.gen(function* () {
        const body = yield* bodyOf(request)
        const wire = { method: request.method, url: url.toString(), headers: request.headers, body }
        const outcome = handle(world, wire, yield* Clock.currentTimeMillis)
        if ("hang" in outcome) return yield* Effect.never
        if ("drop" in outcome) return yield* transport(request, "socket hang up")
        if (outcome.delay_ms > 0) yield* Effect.sleep(outcome.delay_ms)
        return MemoryResponse.make(request, outcome)
      })
    )
  )

const transport = (request: HttpClientRequest.HttpClientRequest, description: string) =>
  new HttpClientError.RequestError({ request, reason: "Transport", description })

const bodyOf = (request: HttpClientRequest.HttpClientRequest): Effect.Effect<string, HttpClientError.RequestError> => {
  const { body } = request
  if (body._tag === "Empty") return Effect.succeed("")
  if (body._tag === "Uint8Array") return Effect.succeed(new TextDecoder().decode(body.body))
  if (body._tag === "Raw" && typeof body.body === "string") return Effect.succeed(body.body)
  return Effect.fail(transport(request, `the sandbox takes no ${body._tag} body`))
}

export interface Listening {
  /** Origin, without `/client/api`. */
  readonly url: string
  readonly port: number
}

export interface ServeOptions {
  readonly host?: string
  /** 0: a free one. */
  readonly port?: number
  /** How long every request takes to get here. */
  readonly latency_ms?: number
  /** Told of every request before it is carried out. */
  readonly record?: (request: WireRequest, now: number) => void
}

/** A real HTTP server on the machine's clock. When its scope ends every socket is closed, answered or not. */
export const serve = (world: World, options: ServeOptions = {}): Effect.Effect<Listening, Misconfigured, Scope.Scope> =>
  Effect.acquireRelease(
    Effect.async<{ readonly server: ReturnType<typeof createServer>; readonly port: number }, Misconfigured>(
      (resume) => {
        const server = createServer((request, response) => receive(world, request, response, options))
        const host = options.host ?? "127.0.0.1"
        const port = options.port ?? 0
        server.once("error", (cause) => resume(cannotListen(host, port, cause)))
        server.listen(port, host, () =>
          resume(Effect.succeed({ server, port: (server.address() as AddressInfo).port }))
        )
      }
    ),
    ({ server }) =>
      Effect.async<void>((resume) => {
        server.close(() => resume(Effect.void))
        server.closeAllConnections()
      })
  ).pipe(Effect.map(({ port }) => ({ port, url: `http://${origin(options.host ?? "127.0.0.1")}:${port}` })))

const origin = (host: string) => (host.includes(":") ? `[${host}]` : host)

const cannotListen = (host: string, port: number, cause: Error) =>
  new Misconfigured({
    problems: [
      {
        key: "--cloudstack-listen",
        problem: `cannot listen on ${host}:${port}: ${cause.message}`,
        example: "--cloudstack-listen 127.0.0.1:0"
      }
    ]
  })

const receive = (
  world: World,
  request: IncomingMessage,
  response: ServerResponse,
  { latency_ms = 0, record }: ServeOptions
): void => {
  const answer = (wire: WireRequest) => {
    const now = Date.now()
    record?.(wire, now)
    reply(response, handle(world, wire, now))
  }
  const chunks: Array<Buffer> = []
  let bytes = 0
  request.on("data", (chunk: Buffer) => {
    bytes += chunk.length
    if (bytes > BODY_BYTES_MAX) request.destroy()
    else chunks.push(chunk)
  })
  request.on("end", () => {
    const wire = {
      method: request.method ?? "GET",
      url: request.url ?? "/",
      headers: {},
      body: Buffer.concat(chunks).toString("utf8")
    }
    // Without latency an answer leaves in the same turn; a timer would add a millisecond to every call.
    if (latency_ms === 0) return answer(wire)
    setTimeout(() => answer(wire), latency_ms)
  })
}

const reply = (response: ServerResponse, outcome: Outcome): void => {
  if ("hang" in outcome) return
  if ("drop" in outcome) {
    response.socket?.destroy()
    return
  }
  const send = () => {
    if (!response.destroyed) response.writeHead(outcome.status, outcome.headers).end(outcome.body)
  }
  if (outcome.delay_ms === 0) send()
  else setTimeout(send, outcome.delay_ms).unref()
}
