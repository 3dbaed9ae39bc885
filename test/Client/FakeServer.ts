import { Effect, type Scope } from "effect"
import { createServer, type IncomingHttpHeaders, type ServerResponse } from "node:http"
import type { AddressInfo } from "node:net"
import type * as Api from "../../schema/Api.ts"
import { OperationId, Uid, VmId } from "../../schema/Ids.ts"

export interface Asked {
  readonly method: string
  /** Path and query. */
  readonly url: string
  readonly headers: IncomingHttpHeaders
  readonly body: string
}

export interface FakeServer {
  readonly url: string
  /** What was asked, in order. */
  readonly asked: ReadonlyArray<Asked>
}

/** A server that answers each request as told, the first one as number 1. Lives as long as the scope. */
export const start = (
  answer: (response: ServerResponse, number: number, asked: Asked) => void
): Effect.Effect<FakeServer, never, Scope.Scope> =>
  Effect.acquireRelease(
    Effect.async<{ readonly fake: FakeServer; readonly close: () => void }>((resume) => {
      const asked: Array<Asked> = []
      const server = createServer((request, response) => {
        let body = ""
        request.setEncoding("utf8").on("data", (text: string) => (body += text))
        request.on("end", () => {
          const one = { method: request.method ?? "", url: request.url ?? "", headers: request.headers, body }
          asked.push(one)
          answer(response, asked.length, one)
        })
      })
      server.listen(0, "127.0.0.1", () => {
        const { port } = server.address() as AddressInfo
        const close = () => {
          server.close()
          server.closeAllConnections()
        }
        resume(Effect.succeed({ fake: { url: `http://127.0.0.1:${port}`, asked }, close }))
      })
    }),
    ({ close }) => Effect.sync(close)
  ).pipe(Effect.map(({ fake }) => fake))

export const json = (
  response: ServerResponse,
  status: number,
  body: unknown,
  headers: Readonly<Record<string, string>> = {}
): void => {
  response.writeHead(status, { "content-type": "application/json", ...headers })
  response.end(JSON.stringify(body))
}

export const refusal = (code: Api.Code, error = "because"): Api.ErrorBody => ({
  error,
  code,
  details: {},
  request_id: "req-1"
})

export const operation = (change: Partial<Api.OperationAnswer> = {}): Api.OperationAnswer => ({
  id: OperationId.make("op-12345678-1234-4234-8234-123456789012"),
  type: "attach",
  status: "pending",
  volume_id: "c1d2e3f4-0000-4000-8000-000000000001",
  vm_id: VmId.make("8a4400e5-c92a-4bc4-8bff-4b6b0b6a018c"),
  request: {},
  created_at: "2026-03-01T12:00:00Z",
  updated_at: "2026-03-01T12:00:00Z",
  name: "disk-0",
  uid: Uid.make("11111111-2222-4333-8444-555555555555"),
  cause: "api",
  actor: "v1",
  generation: 1,
  phase: "intended",
  attempts: 0,
  ...change
})
