import { Effect } from "effect"
import { readFile, stat } from "node:fs/promises"
import { setTimeout as sleep } from "node:timers/promises"
import { Store, type Write } from "../../reconciler/Store.ts"
import * as Sql from "../../src/Store/Sql.ts"
import { site } from "../Store/Samples.ts"
import * as Daemon from "./Daemon.ts"
import * as Fleet from "./Fleet.ts"
import * as Measure from "./Measure.ts"

const VOLUMES = 10_000
const PASSES = 10
const GIVE_UP_MS = 120_000
/** Linux counts a process's time in these (`proc(5)`, USER_HZ). */
const TICK_MS = 10

/** What a whole pass costs when there is nothing to do: time and memory of the daemon, calls to CloudStack, writes. */
export const measure = async (): Promise<ReadonlyArray<Measure.Measure>> => {
  const fleet = Fleet.make(VOLUMES, Date.now() - 3_600_000)
  const prepare = (directory: string) =>
    declare(fleet).pipe(Effect.provide(Sql.layerDsn(site(Daemon.databaseIn(directory)))), Effect.runPromise)
  return Daemon.withSite(fleet.world, prepare, async (site) => {
    const daemon = await site.daemon({ RESYNC_INTERVAL: "2s", RESYNC_BUSY_INTERVAL: "2s" })
    await settled(daemon, VOLUMES)
    const before = await snapshot(site, daemon)
    const after = await laterBy(PASSES * fleet.pages.length, before, () => snapshot(site, daemon))
    const passes = (after.pages - before.pages) / fleet.pages.length
    const cpu = (after.cpu_ms - before.cpu_ms) / passes
    const parse = Measure.alternately(7, { parse: () => fleet.pages.map((page) => JSON.parse(page) as unknown) }).parse
    const calls = (after.calls - before.calls) / passes
    return [
      {
        name: `pass over ${VOLUMES} settled volumes, CPU time`,
        measured: `${cpu.toFixed(0)} ms, ${(after.rss / 2 ** 20).toFixed(0)} MiB resident`,
        against: `JSON.parse of their listing: ${parse.toFixed(0)} ms`,
        ratio: cpu / parse,
        bound: null
      },
      {
        name: "… CloudStack calls",
        measured: `${calls.toFixed(1)}`,
        against: `pages of the listing: ${fleet.pages.length}`,
        ratio: calls / fleet.pages.length,
        bound: 1
      },
      {
        name: `… changes of the database in ${passes.toFixed(0)} passes`,
        measured: `${after.written === before.written ? 0 : 1}`,
        against: "none",
        ratio: after.written === before.written ? 0 : 1,
        bound: 0
      }
    ]
  })
}

/** As if the daemon had made and settled all of them itself. */
export const declare = (fleet: Fleet.Fleet) =>
  Effect.gen(function* () {
    const store = yield* Store
    const writes = fleet.declarations.map((one): Write => ({
      name: one.name,
      expected_generation: null,
      uid: one.uid,
      generation: 1,
      set: null,
      spec: one.spec,
      managers: {},
      deletion: null,
      actor: "bench",
      kind: "declared"
    }))
    yield* store.write(writes)
    yield* store.bind(fleet.declarations.map(({ binding, uid }) => ({ uid, binding })))
  })

interface Snapshot {
  readonly calls: number
  readonly pages: number
  readonly cpu_ms: number
  /** Bytes. */
  readonly rss: number
  /** Changes whenever the database does. */
  readonly written: string
}

const snapshot = async (site: Daemon.Site, daemon: Daemon.Daemon): Promise<Snapshot> => {
  const { calls } = await site.truth()
  const times = (await readFile(`/proc/${daemon.pid}/stat`, "utf8")).split(") ")[1]?.split(" ") ?? []
  const status = await readFile(`/proc/${daemon.pid}/status`, "utf8")
  const database = Daemon.databaseIn(site.directory).replace("sqlite:", "")
  const files = await Promise.all([database, `${database}-wal`].map((file) => stat(file).catch(() => null)))
  return {
    calls: Object.values(calls).reduce((sum, count) => sum + count, 0),
    pages: calls["listVolumes"] ?? 0,
    cpu_ms: (Number(times[11]) + Number(times[12])) * TICK_MS,
    rss: Number(/VmRSS:\s+(\d+) kB/.exec(status)?.[1]) * 1_024,
    written: files.map((file) => `${file?.size} ${file?.mtimeMs}`).join()
  }
}

export const settled = async (daemon: Daemon.Daemon, volumes: number): Promise<void> => {
  const end = Date.now() + GIVE_UP_MS
  while (Date.now() < end) {
    await sleep(1_000)
    const { plan } = (await daemon.request("GET", "/api/v2/plan").catch(() => ({ plan: null }))) as {
      readonly plan: { readonly items: ReadonlyArray<{ readonly settled: boolean }> } | null
    }
    if (plan?.items.length === volumes && plan.items.every((item) => item.settled)) return
  }
  throw new Error(`the volumes were not settled within ${GIVE_UP_MS / 1_000} s`)
}

const laterBy = async (pages: number, before: Snapshot, look: () => Promise<Snapshot>): Promise<Snapshot> => {
  for (;;) {
    await sleep(500)
    const now = await look()
    if (now.pages >= before.pages + pages) return now
  }
}
