import * as SqlClient from "@effect/sql/SqlClient"
import { Effect, Layer } from "effect"
import { closeSync, fsyncSync, openSync, writeSync } from "node:fs"
import type { OutgoingHttpHeaders } from "node:http"
import { join } from "node:path"
import { setTimeout as sleep } from "node:timers/promises"
import { Store } from "../../reconciler/Store.ts"
import * as Sql from "../../src/Store/Sql.ts"
import * as Sqlite from "../../src/Store/Sqlite.ts"
import * as Bare from "./Bare.ts"
import * as Daemon from "./Daemon.ts"
import * as Fleet from "./Fleet.ts"
import * as Load from "./Load.ts"
import * as Measure from "./Measure.ts"
import * as Settled from "./Settled.ts"

const VOLUMES = 100
const OPERATIONS = 10_000
const PAGE = 100
const ROUNDS = 5
const ROUND_MS = 2_000
/** Until compilers are done with both servers. */
const WARM_MS = 4_000
const CONNECTIONS = 32
const CROWD = 64
const WRITERS = 16

/** What the answers of the daemon cost, beside those of a server that only answers. */
export const measure = async (): Promise<ReadonlyArray<Measure.Measure>> => {
  const fleet = Fleet.make(VOLUMES, Date.now() - 3_600_000)
  const prepare = (directory: string) => Effect.runPromise(fill(fleet, directory))
  return Daemon.withSite(fleet.world, prepare, async (site) => {
    const daemon = await site.daemon()
    await Settled.settled(daemon, VOLUMES)
    const pages = await listing(daemon)
    const paths = {
      operation: `/api/v1/operations/${operationId(OPERATIONS / 2)}`,
      declaration: "/api/v2/volumes/volume-7"
    }
    const answers = Object.fromEntries(
      await Promise.all(
        Object.values(paths).map(async (path) => [path, await answerOf(`${daemon.origin}${path}`)] as const)
      )
    )
    const reads = await Bare.withBare(answers, async (bare) => [
      await reading(daemon.origin, bare, "GET of an operation", paths.operation),
      await reading(daemon.origin, bare, "GET of a declaration", paths.declaration),
      await crowded(daemon.origin, bare, paths.operation)
    ])
    return [...reads, ...(await writing(daemon.origin, site.directory)), pages]
  })
}

/** A server of nothing but the same bytes must not differ in its headers either. */
const answerOf = async (url: string): Promise<Bare.Answers[string]> => {
  const answer = await fetch(url)
  const body = await answer.text()
  if (!answer.ok) throw new Error(`${url}: ${answer.status} ${body.slice(0, 500)}`)
  const own = ["connection", "date", "keep-alive", "transfer-encoding"]
  const headers: OutgoingHttpHeaders = Object.fromEntries([...answer.headers].filter(([name]) => !own.includes(name)))
  return { headers: { ...headers, "content-length": Buffer.byteLength(body) }, body }
}

type Rounds = Readonly<Record<"ours" | "bare", ReadonlyArray<Load.Load>>>

/** In turn, so that whatever else the machine does hits both alike. */
const rounds = async (ours: string, bare: string, path: string, connections: number): Promise<Rounds> => {
  const one = (origin: string, ms: number) =>
    Load.load(origin, { connections, ms, request: () => Load.get(path), statuses: [200] })
  await one(ours, WARM_MS)
  await one(bare, WARM_MS)
  const all = { ours: [] as Array<Load.Load>, bare: [] as Array<Load.Load> }
  for (let round = 0; round < ROUNDS; round++) {
    all.ours.push(await one(ours, ROUND_MS))
    all.bare.push(await one(bare, ROUND_MS))
  }
  return all
}

const rate = (loads: ReadonlyArray<Load.Load>) => Measure.median(loads.map(({ per_second }) => per_second))
const p99 = (loads: ReadonlyArray<Load.Load>) =>
  Measure.median(loads.map(({ latencies }) => Measure.quantile(latencies, 0.99)))

const reading = async (ours: string, bare: string, name: string, path: string): Promise<Measure.Measure> => {
  const all = await rounds(ours, bare, path, CONNECTIONS)
  return {
    name: `${name}, ${CONNECTIONS} connections`,
    measured: `${rate(all.ours).toFixed(0)} per second`,
    against: `node:http answering the same bytes: ${rate(all.bare).toFixed(0)} per second`,
    ratio: rate(all.ours) / rate(all.bare),
    bound: null,
    at_least: 0.1
  }
}

const crowded = async (ours: string, bare: string, path: string): Promise<Measure.Measure> => {
  const all = await rounds(ours, bare, path, CROWD)
  return {
    name: `… ${CROWD} connections, p99`,
    measured: `${p99(all.ours).toFixed(1)} ms`,
    against: `node:http: ${p99(all.bare).toFixed(1)} ms`,
    ratio: p99(all.ours) / p99(all.bare),
    bound: null
  }
}

/** A declaration that differs from the one before in what no action follows from. */
const declared = (n: number) =>
  JSON.stringify({ size: 10 * 2 ** 30, attached_to: "none", paused: { reason: `round ${n}`, by: "bench" } })

const writing = async (origin: string, directory: string): Promise<ReadonlyArray<Measure.Measure>> => {
  const request = (connection: number, n: number) => Load.put(`/api/v2/volumes/written-${connection}`, declared(n))
  const write = (connections: number) => Load.load(origin, { connections, ms: ROUND_MS, request, statuses: [200, 201] })
  const alone: Array<number> = []
  const syncs: Array<number> = []
  const together: Array<Load.Load> = []
  await write(WRITERS)
  for (let round = 0; round < ROUNDS; round++) {
    alone.push(Measure.median((await write(1)).latencies))
    syncs.push(bareSync(join(directory, "synced"), declared(round)))
    together.push(await write(WRITERS))
  }
  const [put, sync] = [Measure.median(alone), Measure.median(syncs)]
  return [
    {
      name: "PUT of a declaration, committed durably",
      measured: `${put.toFixed(2)} ms`,
      against: `write and fsync of the same bytes: ${sync.toFixed(2)} ms`,
      ratio: put / sync,
      bound: null
    },
    {
      name: `… ${WRITERS} writers at once`,
      measured: `${rate(together).toFixed(0)} per second, p99 ${p99(together).toFixed(0)} ms`,
      against: `one after another: ${(1_000 / put).toFixed(0)} per second`,
      ratio: (rate(together) * put) / 1_000,
      bound: null
    }
  ]
}

/** Median ms of a write that is on the disk when it returns. */
const bareSync = (file: string, bytes: string): number => {
  const descriptor = openSync(file, "a", 0o600)
  const times = Array.from({ length: 200 }, () => {
    const begin = performance.now()
    writeSync(descriptor, bytes)
    fsyncSync(descriptor)
    return performance.now() - begin
  })
  closeSync(descriptor)
  return Measure.median(times)
}

/** A page far back in the history must not cost more than the first. */
const listing = async (daemon: Daemon.Daemon): Promise<Measure.Measure> => {
  const runs = [await pagesOf(daemon), await pagesOf(daemon), await pagesOf(daemon)].slice(1)
  const tenth = OPERATIONS / PAGE / 10
  const first = Measure.median(runs.flatMap((times) => times.slice(0, tenth)))
  const last = Measure.median(runs.flatMap((times) => times.slice(-tenth)))
  return {
    name: `${OPERATIONS} operations by cursor, a page of ${PAGE}: the last ${tenth} pages`,
    measured: `${last.toFixed(2)} ms`,
    against: `the first ${tenth} pages: ${first.toFixed(2)} ms`,
    ratio: last / first,
    bound: 1.5
  }
}

/** ms of every page, in order. */
const pagesOf = async ({ origin }: Daemon.Daemon): Promise<ReadonlyArray<number>> => {
  const times: Array<number> = []
  let rows = 0
  let cursor: string | null = ""
  while (cursor !== null) {
    const begin = performance.now()
    const query: string = cursor === "" ? "" : `&cursor=${encodeURIComponent(cursor)}`
    const answer: Response = await fetch(`${origin}/api/v1/operations?limit=${PAGE}${query}`)
    const page = (await answer.json()) as ReadonlyArray<unknown>
    times.push(performance.now() - begin)
    if (!answer.ok) throw new Error(`the list of operations: ${JSON.stringify(page).slice(0, 500)}`)
    rows += page.length
    cursor = answer.headers.get("next-cursor")
    // Let the daemon's own work in between.
    if (times.length % 20 === 0) await sleep(1)
  }
  if (rows < OPERATIONS) throw new Error(`${rows} of ${OPERATIONS} operations were listed`)
  return times
}

const operationId = (n: number) => `op-00000000-0000-4000-8000-${String(n).padStart(12, "0")}`

/** The fleet as declared and settled, and a long history of operations: one real row, many times. */
const fill = (fleet: Fleet.Fleet, directory: string) => {
  const file = Daemon.databaseIn(directory).replace("sqlite:", "")
  return Effect.gen(function* () {
    yield* Settled.declare(fleet)
    const store = yield* Store
    const sql = yield* SqlClient.SqlClient
    const [declaration] = fleet.declarations
    if (declaration === undefined) return
    const { generation, name, uid } = declaration
    const why = { uid, name, generation, cause: "drift", reason: "the volume is on no VM", destructive: false } as const
    const volume_id = declaration.binding.volume_id
    const vm_id = fleet.inventory.appliance_vm_id
    if (volume_id === null) return
    const intent = yield* store.intend({ _tag: "Attach", ...why, volume_id, vm_id, as: "data", on_appliance: true })
    yield* store.advance(intent.operation_id, { phase: "settled", status: "completed" })
    const columns = (yield* sql<{ readonly name: string }>`SELECT name FROM pragma_table_info('volume_operations')`)
      .map((column) => column.name)
      .filter((column) => column !== "id" && column !== "created_at")
      .join(", ")
    // An hour apart from each other by thousandths, the newest before the daemon begins.
    yield* sql.unsafe(`
      WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < ${OPERATIONS})
      INSERT INTO volume_operations (id, created_at, ${columns})
      SELECT printf('op-00000000-0000-4000-8000-%012d', n),
        strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '-1 hour', printf('+%f seconds', n / 1000.0)), ${columns}
      FROM volume_operations, numbers WHERE volume_operations.id = '${intent.operation_id}'`)
  }).pipe(Effect.provide(Sql.layer.pipe(Layer.provideMerge(Sqlite.layer(file)))))
}
