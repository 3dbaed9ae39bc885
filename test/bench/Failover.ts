import { Effect, Exit, Redacted, Scope } from "effect"
import { setTimeout as sleep } from "node:timers/promises"
import { GIB } from "../../schema/Declaration.ts"
import * as World from "../../src/Simulation/World.ts"
import * as MariaDb from "../support/MariaDb.ts"
import * as Daemon from "./Daemon.ts"
import * as Measure from "./Measure.ts"

const GIVE_UP_MS = 60_000
/** Of each way to go. */
const ROUNDS = { SIGKILL: 5, SIGTERM: 3, SIGSTOP: 1 } as const
const BOUND_MS = 1_000

/** How long after the leader went the one beside it has written what it was asked, and has CloudStack act on it. */
export const measure = async (): Promise<ReadonlyArray<Measure.Measure>> => {
  const scope = Effect.runSync(Scope.make())
  try {
    const server = await Effect.runPromise(Scope.extend(MariaDb.start(), scope))
    const target = await Effect.runPromise(server.database())
    const password = encodeURIComponent(Redacted.value(target.password))
    const dsn = `mysql://${target.user}:${password}@127.0.0.1:${target.port}/${target.database}`
    const world = World.make({ now: Date.now(), vms: 2, job_ms: 100 })
    return await Daemon.withSite(
      world,
      async () => {},
      (site) => rounds(site, dsn)
    )
  } finally {
    await Effect.runPromise(Scope.close(scope, Exit.void))
  }
}

const rounds = async (site: Daemon.Site, DATABASE_DSN: string): Promise<ReadonlyArray<Measure.Measure>> => {
  const start = () => site.daemon({ DATABASE_DSN })
  let leader = await start()
  let standby = await start()
  let made = 0
  const measures: Array<Measure.Measure> = []
  for (const [signal, count] of Object.entries(ROUNDS) as ReadonlyArray<[keyof typeof ROUNDS, number]>) {
    const times: Array<Taken> = []
    for (let round = 0; round < count; round++) {
      await settledBy(leader)
      times.push(await taken(site, leader, standby, signal, `volume-${(made += 1)}`))
      // It leads no more; what a stopped one does when it wakes up is for tests to see.
      if (signal === "SIGSTOP") process.kill(leader.pid, "SIGCONT")
      if (signal !== "SIGKILL") await gone(leader, signal)
      leader = standby
      standby = await start()
    }
    measures.push(line(signal, times))
  }
  return measures
}

interface Taken {
  /** ms from the signal to the answer to a write, and to the CloudStack call that it asks for. */
  readonly accepted: number
  readonly acted: number
}

const taken = async (
  site: Daemon.Site,
  leader: Daemon.Daemon,
  standby: Daemon.Daemon,
  signal: NodeJS.Signals,
  name: string
): Promise<Taken> => {
  const before = (await site.truth()).calls["createVolume"] ?? 0
  process.kill(leader.pid, signal)
  const begun = performance.now()
  await until(() => declared(standby, name))
  const accepted = performance.now() - begun
  await until(async () => ((await site.truth()).calls["createVolume"] ?? 0) > before)
  return { accepted, acted: performance.now() - begun }
}

const declared = (daemon: Daemon.Daemon, name: string): Promise<boolean> =>
  daemon.request("PUT", `/api/v2/volumes/${name}`, { size: GIB, attached_to: "none" }).then(
    () => true,
    () => false
  )

/** Until it takes writes, as the leader does. */
const settledBy = (daemon: Daemon.Daemon) =>
  until(() =>
    daemon.request("GET", "/health").then(
      () => true,
      () => false
    )
  )

const gone = async (daemon: Daemon.Daemon, signal: NodeJS.Signals) => {
  if (signal === "SIGSTOP") process.kill(daemon.pid, "SIGTERM")
  await until(async () => {
    try {
      process.kill(daemon.pid, 0)
      return false
    } catch {
      return true
    }
  })
}

const until = async (look: () => Promise<boolean>): Promise<void> => {
  const end = performance.now() + GIVE_UP_MS
  while (!(await look())) {
    if (performance.now() > end) throw new Error(`nobody took over within ${GIVE_UP_MS / 1_000} s`)
    await sleep(2)
  }
}

const line = (signal: NodeJS.Signals, times: ReadonlyArray<Taken>): Measure.Measure => {
  const acted = Measure.median(times.map((one) => one.acted))
  const accepted = Measure.median(times.map((one) => one.accepted))
  const longest = Math.max(...times.map((one) => one.acted))
  return {
    name: `failover after ${signal} of the leader, ${times.length} times`,
    measured: `writes ${accepted.toFixed(0)} ms, acts ${acted.toFixed(0)} ms (longest ${longest.toFixed(0)} ms)`,
    against: `${BOUND_MS} ms`,
    ratio: acted / BOUND_MS,
    // A process that stands still keeps its lock until the server takes its silence for its end.
    bound: signal === "SIGSTOP" ? null : 1
  }
}
