import { once } from "node:events"
import { readFile } from "node:fs/promises"
import { connect, type Socket } from "node:net"
import { setTimeout as sleep } from "node:timers/promises"
import * as World from "../../src/Simulation/World.ts"
import * as Daemon from "./Daemon.ts"
import * as Measure from "./Measure.ts"

const WATCHERS = 1_000
const WRITES = 20
const GIVE_UP_MS = 30_000

/** What a thousand open watches cost, and how long after a write they have been told. */
export const measure = async (): Promise<ReadonlyArray<Measure.Measure>> => {
  const world = World.make({ now: Date.now(), vms: 0, job_ms: 100 })
  return Daemon.withSite(
    world,
    async () => {},
    async (site) => {
      const daemon = await site.daemon()
      // The first requests load what any request needs.
      for (let n = 0; n < 50; n++) await declare(daemon, n)
      await sleep(2_000)
      const before = await resident(daemon.pid)
      const heard = Array.from({ length: WATCHERS }, () => new Map<string, number>())
      const sockets = await Promise.all(heard.map((told) => watch(daemon.origin, told)))
      try {
        await sleep(2_000)
        const growth = (await resident(daemon.pid)) - before
        const delays = await delaysOf(daemon, heard)
        const p99 = Measure.quantile(delays, 0.99)
        return [
          {
            name: `${WATCHERS} open watches, growth of resident memory`,
            measured: `${(growth / 2 ** 20).toFixed(0)} MiB`,
            against: `before: ${(before / 2 ** 20).toFixed(0)} MiB`,
            ratio: growth / before,
            bound: null
          },
          {
            name: "… from a write that is sent to its event at a watcher, median",
            measured: `${Measure.median(delays).toFixed(0)} ms`,
            against: `p99: ${p99.toFixed(0)} ms`,
            ratio: Measure.median(delays) / p99,
            bound: null
          }
        ]
      } finally {
        for (const socket of sockets) socket.destroy()
      }
    }
  )
}

const declare = (daemon: Daemon.Daemon, n: number) =>
  daemon.request("PUT", "/api/v2/volumes/watched", {
    size: 2 ** 30,
    attached_to: "none",
    paused: { reason: `write-${n}.`, by: "bench" }
  })

/** Every watcher has heard of every write. */
const delaysOf = async (
  daemon: Daemon.Daemon,
  heard: ReadonlyArray<Map<string, number>>
): Promise<ReadonlyArray<number>> => {
  const delays: Array<number> = []
  for (let n = 0; n < WRITES; n++) {
    const seen = heard.map(({ size }) => size)
    const sent = performance.now()
    await declare(daemon, 1_000 + n)
    while (heard.some(({ size }, at) => size <= (seen[at] ?? 0))) {
      if (performance.now() > sent + GIVE_UP_MS) throw new Error("a watcher was not told")
      await sleep(1)
    }
    for (const told of heard) delays.push(Math.min(...[...told.values()].filter((at) => at >= sent)) - sent)
    await sleep(200)
  }
  return delays
}

/** Notes when each event that tells of a change was heard. */
const watch = async (origin: string, told: Map<string, number>): Promise<Socket> => {
  const { hostname, port } = new URL(origin)
  const socket = connect({ host: hostname, port: Number(port) })
  await once(socket, "connect")
  socket.write("GET /api/v2/watch HTTP/1.1\r\nhost: 127.0.0.1\r\naccept: text/event-stream\r\n\r\n")
  const [head] = (await once(socket, "data")) as [Buffer]
  if (!head.toString().startsWith("HTTP/1.1 200")) throw new Error(head.toString().slice(0, 500))
  let rest = ""
  socket.on("data", (chunk: Buffer) => {
    const text = rest + chunk.toString()
    const end = text.lastIndexOf("\n\n") + 2
    for (const event of text.slice(0, Math.max(end, 0)).split("\n\n")) {
      const id = /^id: (\d+)$/m.exec(event)?.[1]
      if (id !== undefined && event.includes('"changed"') && !told.has(id)) told.set(id, performance.now())
    }
    rest = end > 1 ? text.slice(end) : text
  })
  return socket
}

const resident = async (pid: number): Promise<number> =>
  Number(/VmRSS:\s+(\d+) kB/.exec(await readFile(`/proc/${pid}/status`, "utf8"))?.[1]) * 1_024
