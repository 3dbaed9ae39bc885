import { once } from "node:events"
import { createServer, type IncomingMessage, type ServerResponse } from "node:http"
import type { AddressInfo } from "node:net"
import { setTimeout as sleep } from "node:timers/promises"
import { GIB } from "../../schema/Declaration.ts"
import * as World from "../../src/Simulation/World.ts"
import * as Daemon from "./Daemon.ts"
import * as Measure from "./Measure.ts"

// Fewer than may be in flight at once, beyond which one waits for another to be settled.
const DECLARATIONS = 20
const GIVE_UP_MS = 30_000
const BOUND_MS = 50

/** How long after a declaration was accepted the first CloudStack call that it asks for leaves the daemon. */
export const measure = async (): Promise<ReadonlyArray<Measure.Measure>> => {
  const world = World.make({ now: Date.now(), vms: 2, job_ms: 100 })
  return Daemon.withSite(
    world,
    async () => {},
    async (site) => {
      const seen = new Map<string, number>()
      const proxy = await watching(site.cloud, (call, at) => {
        const name = call.get("command") === "createVolume" ? call.get("name") : null
        if (name !== null && !seen.has(name)) seen.set(name, at)
      })
      try {
        const daemon = await site.daemon({ CLOUDSTACK_API_URL: `${proxy.origin}/client/api` })
        const delays: Array<number> = []
        for (let n = 0; n <= DECLARATIONS; n++) {
          const name = `volume-${n}`
          await daemon.request("PUT", `/api/v2/volumes/${name}`, { size: GIB, attached_to: "none" })
          const accepted = performance.now()
          const called = await until(() => seen.get(name))
          // The first one waits for the catalogue of offerings and for compilers.
          if (n > 0) delays.push(Math.max(0, called - accepted))
        }
        const delay = Measure.median(delays)
        return [
          {
            name: "declaration accepted → CloudStack call sent, median",
            measured: `${delay.toFixed(1)} ms (longest of ${DECLARATIONS}: ${Math.max(...delays).toFixed(0)} ms)`,
            against: `${BOUND_MS} ms`,
            ratio: delay / BOUND_MS,
            bound: 1
          }
        ]
      } finally {
        proxy.close()
      }
    }
  )
}

const until = async (look: () => number | undefined): Promise<number> => {
  const end = performance.now() + GIVE_UP_MS
  while (performance.now() < end) {
    const found = look()
    if (found !== undefined) return found
    await sleep(1)
  }
  throw new Error(`no call was sent within ${GIVE_UP_MS / 1_000} s`)
}

/** Passes every request on and shows its parameters and time to `see`: the only clock that both ends share is ours. */
const watching = async (origin: string, see: (call: URLSearchParams, at: number) => void) => {
  const server = createServer((request, response) => {
    void forward(origin, see, request, response).catch(() => response.destroy())
  })
  server.listen(0, "127.0.0.1")
  await once(server, "listening")
  const close = () => {
    server.close()
    server.closeAllConnections()
  }
  return { origin: `http://127.0.0.1:${(server.address() as AddressInfo).port}`, close }
}

const forward = async (
  origin: string,
  see: (call: URLSearchParams, at: number) => void,
  request: IncomingMessage,
  response: ServerResponse
): Promise<void> => {
  const at = performance.now()
  const chunks: Array<Buffer> = []
  for await (const chunk of request) chunks.push(chunk as Buffer)
  const body = Buffer.concat(chunks).toString()
  see(new URLSearchParams(body), at)
  const answer = await fetch(`${origin}${request.url ?? "/"}`, {
    method: request.method ?? "POST",
    headers: { "content-type": request.headers["content-type"] ?? "" },
    body
  })
  const headers = Object.fromEntries(
    [...answer.headers].filter(([name]) => !/^(?:transfer|content-(?:length|enc)|conn)/.test(name))
  )
  response.writeHead(answer.status, headers).end(await answer.text())
}
