import { randomUUID } from "node:crypto"
import * as NodeHttp from "node:http"
import * as NodeHttps from "node:https"
import type { AddressInfo } from "node:net"
import type { Duplex } from "node:stream"
import { Deferred, Effect, Either } from "effect"
import type { Code } from "../../schema/Api.ts"
import { Misconfigured } from "../../schema/Errors.ts"
import type { Settings } from "../../schema/Settings.ts"
import * as File from "../Settings/File.ts"
import { isLoopback } from "../Settings/Value.ts"
import * as ErrorAnswer from "./ErrorAnswer.ts"
import { Closing } from "./Wait.ts"

export interface Address {
  readonly host: string
  /** As bound, where 0 was asked for. */
  readonly port: number
  readonly url: string
}

/** Limits of one connection, in ms and bytes. Whoever is slower or larger than this is not a client of ours. */
export interface Limits {
  readonly headers_ms: number
  /** Headers and body, from the first byte to the last. */
  readonly request_ms: number
  /** Between two requests of one connection. */
  readonly idle_ms: number
  /** Without a byte in either direction: longer than any answer is held back, for who never reads what is sent. */
  readonly silent_ms: number
  /** How often the first two are looked at. */
  readonly check_ms: number
  readonly header_bytes: number
  /** An address. */
  readonly connections: number
}

const limits: Limits = {
  headers_ms: 5_000,
  request_ms: 30_000,
  idle_ms: 60_000,
  silent_ms: 330_000,
  check_ms: 1_000,
  header_bytes: 16 * 1024,
  connections: 4_096
}

/** From the stop to the end of what is still connected. */
const GRACE_MS = 2_000

export type Options = Pick<Settings, "listen" | "token_file" | "tls"> & { readonly connection?: Partial<Limits> }

type OnRequest = (request: NodeHttp.IncomingMessage, response: NodeHttp.ServerResponse) => void

/** With a certificate, or null for plain HTTP. */
type Identity = { readonly cert: string; readonly key: string } | null

/**
 * Listen on every address there is. An address this machine lacks is skipped with a warning; none at all, one that is
 * taken, and one that others can reach without tokens and TLS are failures.
 */
export const listen = (options: Options, onRequest: OnRequest) =>
  Effect.gen(function* () {
    const { listen: addresses, token_file, tls } = options
    const wide = addresses.filter(({ host }) => !isLoopback(host)).map(({ host }) => host)
    if (wide.length > 0 && (token_file === null || tls === null)) {
      const problem = `${wide.join(", ")} can be reached from other machines, which needs VOLUMED_TOKEN_FILE, TLS_CERT_FILE and TLS_KEY_FILE`
      return yield* misconfigured("LISTEN", problem, LISTEN_EXAMPLE)
    }
    const identity = tls === null ? null : yield* identityOf(tls)
    const bound = yield* Effect.forEach(addresses, (address) =>
      bind(address, create(identity, { ...limits, ...options.connection }, onRequest))
    ).pipe(
      // Each may take the whole grace to stop.
      Effect.parallelFinalizers
    )
    const found = bound.filter((address) => address !== null)
    return found.length === 0
      ? yield* misconfigured("LISTEN", "this machine has none of the addresses", LISTEN_EXAMPLE)
      : found
  })

const LISTEN_EXAMPLE = "LISTEN=127.0.0.1:8090,[::1]:8090"

const misconfigured = (key: string, problem: string, example: string) =>
  Effect.fail(new Misconfigured({ problems: [{ key, problem, example }] }))

/** The key is a secret: of what is wrong with it nothing is told but that it is. */
const identityOf = (tls: NonNullable<Settings["tls"]>): Effect.Effect<Identity, Misconfigured> =>
  Effect.gen(function* () {
    const exposure = File.exposure(tls.key_file)
    if (exposure !== null) return yield* misconfigured("TLS_KEY_FILE", exposure, `chmod 600 ${tls.key_file}`)
    const cert = yield* pem("TLS_CERT_FILE", tls.cert_file)
    const key = yield* pem("TLS_KEY_FILE", tls.key_file)
    yield* Effect.try(() => NodeHttps.createServer({ cert, key })).pipe(
      Effect.catchAll(() =>
        misconfigured(
          "TLS_KEY_FILE",
          "certificate and key are not PEM, or do not belong together",
          `openssl x509 -in ${tls.cert_file} -noout -pubkey; openssl pkey -in ${tls.key_file} -pubout`
        )
      )
    )
    return { cert, key }
  })

const pem = (key: string, path: string) =>
  Either.match(File.read(path), {
    onLeft: (problem) => misconfigured(key, `${path} cannot be read: ${problem}`, `${key}=/etc/volumed/tls.pem`),
    onRight: Effect.succeed
  })

const create = (identity: Identity, limits: Limits, onRequest: OnRequest): NodeHttp.Server | NodeHttps.Server => {
  const options = {
    headersTimeout: limits.headers_ms,
    requestTimeout: limits.request_ms,
    keepAliveTimeout: limits.idle_ms,
    connectionsCheckingInterval: limits.check_ms,
    maxHeaderSize: limits.header_bytes,
    // Node's own answer to a lack of it has no body; ours has.
    requireHostHeader: false
  }
  const server =
    identity === null
      ? NodeHttp.createServer(options)
      : NodeHttps.createServer({
          ...options,
          ...identity,
          minVersion: "TLSv1.2",
          handshakeTimeout: limits.headers_ms
        })
  server.timeout = limits.silent_ms
  server.maxConnections = limits.connections
  // The bytes are bounded; a bound on the count would drop the rest in silence.
  server.maxHeadersCount = 0
  const answers = new WeakMap<Duplex, NodeHttp.ServerResponse>()
  server.on("request", (request, response) => {
    answers.set(request.socket, response)
    onRequest(request, response)
  })
  server.on("clientError", (error, socket) => answerClientError(error, socket, answers.get(socket)))
  // Without a handshake nobody could read an answer, and one that waits for it keeps the connection for ever.
  server.on("tlsClientError", (_: Error, socket: Duplex) => socket.destroy())
  server.on("checkExpectation", (_, response) => answerExpectation(response))
  server.on("connect", (_, socket) => answerConnect(socket, answers.get(socket)))
  return server
}

const bind = (address: Settings["listen"][number], server: NodeHttp.Server | NodeHttps.Server) => {
  const sockets = connected(server)
  return Effect.acquireRelease(start(address, server), (bound) => (bound ? stop(server, sockets) : Effect.void)).pipe(
    Effect.map((bound) => (bound ? boundAddress(server) : null))
  )
}

/** What is connected. Node's own list lacks what has not shaken hands yet, and what asked for a proxy. */
const connected = (server: NodeHttp.Server | NodeHttps.Server): ReadonlySet<Duplex> => {
  const sockets = new Set<Duplex>()
  server.on("connection", (socket: Duplex) => {
    sockets.add(socket)
    socket.once("close", () => sockets.delete(socket))
  })
  return sockets
}

const start = ({ host, port }: Settings["listen"][number], server: NodeHttp.Server | NodeHttps.Server) =>
  Effect.async<boolean, NodeJS.ErrnoException>((resume) => {
    // Stays: a later failure to accept a connection is not to end the process.
    server.on("error", (error) => resume(Effect.fail(error)))
    server.listen({ host, port }, () => resume(Effect.succeed(true)))
  }).pipe(
    Effect.catchIf(
      ({ code }) => code === "EADDRNOTAVAIL" || code === "EAFNOSUPPORT",
      () => Effect.as(Effect.logWarning("this machine lacks the address, not listening there"), false)
    ),
    Effect.catchAll(({ message }) => misconfigured("LISTEN", message, LISTEN_EXAMPLE)),
    Effect.annotateLogs({ address: `${host}:${port}` })
  )

const boundAddress = (server: NodeHttp.Server | NodeHttps.Server): Address => {
  const { address, port, family } = server.address() as AddressInfo
  const scheme = server instanceof NodeHttps.Server ? "https" : "http"
  return { host: address, port, url: `${scheme}://${family === "IPv6" ? `[${address}]` : address}:${port}` }
}

/** Held-back answers are ended first; what is still open after the grace is cut. */
const stop = (server: NodeHttp.Server | NodeHttps.Server, sockets: ReadonlySet<Duplex>) =>
  Effect.gen(function* () {
    yield* Effect.flatMap(Closing, (closing) => Deferred.succeed(closing, undefined))
    yield* Effect.async<void>((resume) => {
      const cut = setTimeout(() => {
        for (const socket of sockets) socket.destroy()
      }, GRACE_MS)
      server.close(() => {
        clearTimeout(cut)
        resume(Effect.void)
      })
      server.closeIdleConnections()
    })
  })

/**
 * Node found no HTTP request, or one beyond the limits: these never reach a route. When it follows a request that is
 * being worked on, an answer from here would be taken for that one's: so that one gets its own, and the connection ends.
 */
const answerClientError = (
  error: NodeJS.ErrnoException,
  socket: Duplex,
  answer: NodeHttp.ServerResponse | undefined
): void => {
  if (!socket.writable || error.code === "ECONNRESET") return void socket.destroy()
  const before = answer ?? null
  if (before !== null && before.req.complete && !before.writableFinished) return endAfter(before)
  // Of a request that is not whole the rest is waited for in vain; one that was answered already gets no second answer.
  if (before !== null && !before.req.complete && before.headersSent) return void socket.destroy()
  socket.end(rawAnswer(codeOf(error), "no acceptable HTTP request"))
}

/**
 * Node lets go of a connection that asks for a proxy: its errors and its time limits are nobody's from here on, so it
 * is not left open. One whose earlier request is still worked on gets no answer, which would be taken for that one's.
 */
const answerConnect = (socket: Duplex, answer: NodeHttp.ServerResponse | undefined): void => {
  const late = setTimeout(() => socket.destroy(), GRACE_MS)
  socket.on("error", () => {})
  socket.on("close", () => clearTimeout(late))
  if (answer !== undefined && !answer.writableFinished) return void socket.destroy()
  socket.end(rawAnswer("METHOD_NOT_ALLOWED", "this is no proxy"), () => socket.destroy())
}

const endAfter = (answer: NodeHttp.ServerResponse): void => {
  const { socket } = answer.req
  socket.pause()
  answer.once("finish", () => socket.destroySoon())
}

const codeOf = ({ code }: NodeJS.ErrnoException): Code => {
  if (code === "HPE_HEADER_OVERFLOW") return "HEADERS_TOO_LARGE"
  return code === "ERR_HTTP_REQUEST_TIMEOUT" ? "REQUEST_TIMEOUT" : "INVALID_REQUEST"
}

/** A whole answer as it goes over the wire, after which the connection ends. */
const rawAnswer = (code: Code, error: string): string => {
  const { status, body } = ErrorAnswer.answer(code, error, `req-${randomUUID()}`)
  const text = JSON.stringify(body)
  const head = `HTTP/1.1 ${status} ${NodeHttp.STATUS_CODES[status] ?? ""}\r\nContent-Type: application/json\r\n`
  return `${head}Content-Length: ${Buffer.byteLength(text)}\r\nConnection: close\r\n\r\n${text}`
}

const answerExpectation = (response: NodeHttp.ServerResponse): void => {
  const { status, body } = ErrorAnswer.answer("EXPECTATION_FAILED", "no expectation is met", `req-${randomUUID()}`)
  const text = JSON.stringify(body)
  response.writeHead(status, {
    "content-type": "application/json",
    "content-length": Buffer.byteLength(text),
    connection: "close"
  })
  response.end(text)
}
