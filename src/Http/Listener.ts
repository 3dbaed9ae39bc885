import { randomUUID } from "node:crypto"
import * as NodeHttp from "node:http"
import type { AddressInfo, Socket } from "node:net"
import { Deferred, Effect } from "effect"
import { Misconfigured } from "../../schema/Errors.ts"
import * as ErrorAnswer from "./ErrorAnswer.ts"
import { Closing } from "./Wait.ts"

export interface Address {
  readonly host: string
  /** As bound, where 0 was asked for. */
  readonly port: number
  readonly url: string
}

/** Limits of one connection. Whoever is slower or larger than this is not a client of ours. */
const limits = {
  headersTimeout: 5_000,
  /** Headers and body, from the first byte to the last. */
  requestTimeout: 30_000,
  keepAliveTimeout: 60_000,
  connectionsCheckingInterval: 1_000,
  maxHeaderSize: 16 * 1024
} as const
const CONNECTIONS_MAX = 512
/** From the stop to the end of what is still connected. */
const GRACE_MS = 2_000

type OnRequest = (request: NodeHttp.IncomingMessage, response: NodeHttp.ServerResponse) => void

/**
 * Listen on every address there is. An address this machine lacks is skipped with a warning; none at all, one that is
 * taken, and one that others can reach are failures.
 */
export const listen = (
  addresses: ReadonlyArray<{ readonly host: string; readonly port: number }>,
  onRequest: OnRequest
) =>
  Effect.gen(function* () {
    const open = addresses.filter(({ host }) => !isLoopback(host))
    if (open.length > 0)
      return yield* misconfigured(`${open.map(({ host }) => host).join(", ")} can be reached by others`)
    const bound = yield* Effect.forEach(addresses, (address) => bind(address, onRequest))
    const found = bound.filter((address) => address !== null)
    return found.length === 0 ? yield* misconfigured("this machine has none of the addresses") : found
  })

const misconfigured = (problem: string) =>
  Effect.fail(
    new Misconfigured({ problems: [{ key: "LISTEN", problem, example: "LISTEN=127.0.0.1:8090,[::1]:8090" }] })
  )

/** Wider than this needs tokens and TLS, which are not there yet. */
const isLoopback = (host: string) => host === "localhost" || host === "::1" || /^127(?:\.[0-9]{1,3}){3}$/u.test(host)

const bind = (address: { readonly host: string; readonly port: number }, onRequest: OnRequest) =>
  Effect.acquireRelease(start(address, onRequest), (server) => (server === null ? Effect.void : stop(server))).pipe(
    Effect.map((server) => (server === null ? null : boundAddress(server)))
  )

const start = ({ host, port }: { readonly host: string; readonly port: number }, onRequest: OnRequest) =>
  Effect.async<NodeHttp.Server | null, NodeJS.ErrnoException>((resume) => {
    const server = NodeHttp.createServer(limits, onRequest)
    server.maxConnections = CONNECTIONS_MAX
    server.on("clientError", answerClientError)
    server.on("checkExpectation", (_, response) => answerRaw(response, "EXPECTATION_FAILED", "no expectation is met"))
    server.once("error", (error) => resume(Effect.fail(error)))
    server.listen({ host, port }, () => resume(Effect.succeed(server)))
  }).pipe(
    Effect.catchIf(
      ({ code }) => code === "EADDRNOTAVAIL" || code === "EAFNOSUPPORT",
      () => Effect.as(Effect.logWarning("this machine lacks the address, not listening there"), null)
    ),
    Effect.catchAll(({ message }) => misconfigured(message)),
    Effect.annotateLogs({ address: `${host}:${port}` })
  )

const boundAddress = (server: NodeHttp.Server): Address => {
  const { address, port, family } = server.address() as AddressInfo
  return { host: address, port, url: `http://${family === "IPv6" ? `[${address}]` : address}:${port}` }
}

/** Held-back answers are ended first; what is still open after the grace is cut. */
const stop = (server: NodeHttp.Server) =>
  Effect.gen(function* () {
    yield* Effect.flatMap(Closing, (closing) => Deferred.succeed(closing, undefined))
    yield* Effect.async<void>((resume) => {
      const cut = setTimeout(() => server.closeAllConnections(), GRACE_MS)
      server.close(() => {
        clearTimeout(cut)
        resume(Effect.void)
      })
      server.closeIdleConnections()
    })
  })

/** Node found no HTTP request, or one beyond the limits: these never reach a route. */
const answerClientError = (error: NodeJS.ErrnoException, socket: Socket) => {
  if (!socket.writable || error.code === "ECONNRESET") return void socket.destroy()
  const code =
    error.code === "HPE_HEADER_OVERFLOW"
      ? "HEADERS_TOO_LARGE"
      : error.code === "ERR_HTTP_REQUEST_TIMEOUT"
        ? "REQUEST_TIMEOUT"
        : "INVALID_REQUEST"
  const { status, body } = ErrorAnswer.answer(code, "no acceptable HTTP request", `req-${randomUUID()}`)
  const text = JSON.stringify(body)
  const head = `HTTP/1.1 ${status} ${NodeHttp.STATUS_CODES[status] ?? ""}\r\nContent-Type: application/json\r\n`
  socket.end(`${head}Content-Length: ${Buffer.byteLength(text)}\r\nConnection: close\r\n\r\n${text}`)
}

const answerRaw = (response: NodeHttp.ServerResponse, code: "EXPECTATION_FAILED", error: string) => {
  const { status, body } = ErrorAnswer.answer(code, error, `req-${randomUUID()}`)
  const text = JSON.stringify(body)
  response.writeHead(status, {
    "content-type": "application/json",
    "content-length": Buffer.byteLength(text),
    connection: "close"
  })
  response.end(text)
}
