import * as fs from "node:fs"
import * as http from "node:http"
import * as https from "node:https"
import type { AddressInfo, Socket } from "node:net"
import * as HttpClient from "@effect/platform/HttpClient"
import { RequestError } from "@effect/platform/HttpClientError"
import * as HttpClientResponse from "@effect/platform/HttpClientResponse"
import { Effect, Layer, Redacted } from "effect"
import * as Gate from "../../reconciler/Gate.ts"
import type { Settings } from "../../schema/Settings.ts"
import * as Credentials from "../../src/CloudStack/Credentials.ts"

export interface Received {
  readonly command: string
  readonly parameters: Readonly<Record<string, string>>
  readonly body: string
  readonly contentType: string
}

/** An answer, or a way of giving none. */
export type Reply =
  | {
      readonly status?: number
      readonly body: string
      readonly headers?: Record<string, string>
      /** Kept back so long, in memory only. */
      readonly delay_ms?: number
    }
  | "hang"
  | "hang in the body"
  | "reset"
  | "reset in the body"
  | { readonly endlessBytes: number }
  | { readonly fails: { readonly code: string; readonly syscall?: string } }

export type Answers = (call: Received, n: number) => Reply

export const API_KEY = "CANARY-api-key-0123456789"
export const SECRET_KEY = "CANARY-secret-key-0123456789"

export const config = (change: Partial<Settings["cloudstack"]> = {}): Settings["cloudstack"] => ({
  api_url: "http://127.0.0.1:1/client/api",
  api_key: Redacted.make(API_KEY),
  secret_key: Redacted.make(SECRET_KEY),
  project_id: null,
  ca_file: null,
  allow_http: false,
  read_timeout_ms: 5_000,
  call_timeout_ms: 5_000,
  connections: 4,
  ...change
})

/** What calls are signed with in the tests, for the server at this URL. */
export const credentials = (api_url = "http://127.0.0.1:1/client/api") =>
  Layer.succeed(
    Credentials.Credentials,
    Credentials.fixed({
      credential: { api_url, api_key: Redacted.make(API_KEY), secret_key: Redacted.make(SECRET_KEY) },
      zone: null,
      domain: null,
      source: "the test"
    })
  )

export const fixture = (name: string): string =>
  fs.readFileSync(new URL(`../../fixtures/cloudstack/${name}.json`, import.meta.url), "utf8")

export const ok = (name: string): Reply => ({ body: fixture(name) })

export const json = (value: unknown, status = 200, headers: Record<string, string> = {}): Reply => ({
  status,
  body: JSON.stringify(value),
  headers
})

/** An error as `ServerApiException` is written. */
export const error = (command: string, code: number, errortext: string): Reply =>
  json({ [`${command.toLowerCase()}response`]: { uuidList: [], errorcode: code, cserrorcode: 9999, errortext } }, code)

const received = (body: string, contentType: string): Received => {
  const parameters = Object.fromEntries(new URLSearchParams(body))
  return { command: parameters["command"] ?? "", parameters, body, contentType }
}

/** Answers from memory, under whatever clock the test has. What was called is in `calls`. */
export const inMemory = (answers: Answers) => {
  const calls: Array<Received> = []
  const client = HttpClient.make((request) => {
    if (request.body._tag !== "Uint8Array") return Effect.dieMessage("expected a form")
    const call = received(new TextDecoder().decode(request.body.body), request.body.contentType)
    calls.push(call)
    const reply = answers(call, calls.length)
    if (typeof reply === "string" || "endlessBytes" in reply) return Effect.never
    if ("fails" in reply) {
      const cause = Object.assign(new Error(`driver said ${reply.fails.code}`), reply.fails)
      return Effect.fail(new RequestError({ request, reason: "Transport", cause }))
    }
    const { status = 200, body, headers = {}, delay_ms = 0 } = reply
    const response = HttpClientResponse.fromWeb(request, new Response(body, { status, headers }))
    return Effect.delay(Effect.succeed(response), delay_ms)
  })
  return { calls, layer: Layer.merge(Layer.succeed(HttpClient.HttpClient, client), credentials()) }
}

/** The same over a real socket on a free loopback port. */
export const onLoopback = (answers: Answers, tls: { readonly key: string; readonly cert: string } | null = null) =>
  Effect.acquireRelease(
    Effect.async<{ url: string; calls: Array<Received>; sockets: Set<Socket>; server: http.Server | https.Server }>(
      (resume) => {
        const calls: Array<Received> = []
        const sockets = new Set<Socket>()
        const listener: http.RequestListener = (request, response) => {
          const chunks: Array<Buffer> = []
          request.on("data", (chunk: Buffer) => chunks.push(chunk))
          request.on("end", () => {
            calls.push(received(Buffer.concat(chunks).toString(), request.headers["content-type"] ?? ""))
            const call = calls[calls.length - 1]
            if (call !== undefined) give(answers(call, calls.length), response)
          })
        }
        const server = tls === null ? http.createServer(listener) : https.createServer(tls, listener)
        server.on("connection", (socket) => {
          sockets.add(socket)
          socket.on("close", () => sockets.delete(socket))
        })
        server.listen(0, "127.0.0.1", () => {
          const { port } = server.address() as AddressInfo
          const scheme = tls === null ? "http" : "https"
          resume(Effect.succeed({ url: `${scheme}://127.0.0.1:${port}/client/api`, calls, sockets, server }))
        })
      }
    ),
    ({ server }) =>
      Effect.async<void>((resume) => {
        server.close(() => resume(Effect.void))
        server.closeAllConnections()
      })
  )

const give = (reply: Reply, response: http.ServerResponse) => {
  if (reply === "hang") return
  if (reply === "reset") return void response.socket?.resetAndDestroy()
  if (reply === "hang in the body" || reply === "reset in the body") {
    response.writeHead(200, { "content-type": "application/json", "content-length": "1000" })
    response.write('{"listvolumes', () => {
      if (reply === "reset in the body") response.socket?.resetAndDestroy()
    })
    return
  }
  if ("endlessBytes" in reply) return pour(response, reply.endlessBytes)
  if ("fails" in reply) return void response.destroy()
  response.writeHead(reply.status ?? 200, { "content-type": "application/json;charset=UTF-8", ...reply.headers })
  response.end(reply.body)
}

const pour = (response: http.ServerResponse, bytes: number) => {
  const chunk = Buffer.alloc(1024 * 1024, " ")
  let left = bytes
  const more = () => {
    while (left > 0 && !response.destroyed) {
      left -= chunk.length
      if (!response.write(chunk)) return void response.once("drain", more)
    }
    response.end()
  }
  response.writeHead(200)
  more()
}

export const openGate = Layer.succeed(Gate.Gate, { check: Effect.void, reason: Effect.succeed(null) })
