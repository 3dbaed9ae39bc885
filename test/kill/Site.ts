import { Effect, Exit, Redacted, Scope } from "effect"
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { setTimeout as sleep } from "node:timers/promises"
import * as Processes from "../../src/Nbd/Processes.ts"
import type { Json } from "../../src/Simulation/State.ts"
import * as World from "../../src/Simulation/World.ts"
import * as MariaDb from "../support/MariaDb.ts"
import * as Child from "./Child.ts"
import * as Chance from "./Chance.ts"

/** The machines of one scenario: a CloudStack with its guest, a daemon, an NBD server and, where wanted, a MariaDB. */
export interface Site {
  /** Where the daemon's HTTP is at the moment; null while none is ready. */
  readonly origin: () => string | null
  readonly nbd: Processes.Place
  readonly truth: () => Promise<World.Truth | null>
  readonly setFaults: (faults: ReadonlyArray<unknown>) => Promise<void>
  readonly image: (volumeId: string) => string
  /** A new daemon; not waited for. */
  readonly launch: (failpoint: string | null) => Daemon
  readonly killCloud: () => Promise<void>
  readonly startCloud: () => Promise<void>
  /** Null on SQLite. */
  readonly database: MariaDb.MariaDb | null
  /** Ends the daemon and CloudStack in peace; the world as CloudStack wrote it down. */
  readonly ledger: () => Promise<Json>
  /** What the daemons said, for a person. */
  readonly log: () => string
}

export interface Daemon extends Child.Child {
  /** False when it ended before it was. */
  readonly ready: () => Promise<boolean>
}

export interface Options {
  readonly seed: number
  readonly mariadb: boolean
  /** May the API account choose a volume's id? */
  readonly root_admin: boolean
}

/** What CloudStack and the guest take for one job: short, and long enough to be met in the middle of it. */
const JOB_MS = 250
const DEVICE_MS = 60
const LATENCY = "3ms"

const READY_MS = 30_000

const quick: Readonly<Record<string, string>> = {
  LISTEN: "127.0.0.1:0",
  LOG_LEVEL: "info",
  LOG_FORMAT: "json",
  RESYNC_INTERVAL: "1s",
  RESYNC_BUSY_INTERVAL: "1s",
  POLL_INTERVAL: "200ms",
  DELETE_GRACE: "1s",
  DESTRUCTIVE_PER_PASS: "100",
  DESTRUCTIVE_PER_HOUR: "1000",
  RATE_LIMIT: "0"
}

/** Runs `use` on a site of its own, and leaves nothing of it. */
export const within = async <A>(options: Options, use: (site: Site) => Promise<A>): Promise<A> => {
  const directory = mkdtempSync(join(tmpdir(), "volumed-kill-"))
  const scope = await Effect.runPromise(Scope.make())
  const children: Array<Child.Child> = []
  const address = Chance.make(options.seed ^ process.pid).loopback()
  const nbd = { host: address, port: 10_809, config: join(directory, "nbd", "config-base") }
  try {
    const world = World.make({
      now: Date.now(),
      seed: options.seed,
      job_ms: JOB_MS,
      quick_job_ms: 40,
      device_delay_ms: DEVICE_MS,
      root_admin: options.root_admin
    })
    writeFileSync(join(directory, "world.json"), JSON.stringify(world.save(Date.now())))
    const database = options.mariadb ? await Effect.runPromise(Scope.extend(MariaDb.start(), scope)) : null
    const dsn =
      database === null
        ? `sqlite:${join(directory, "state", "volumed.db")}`
        : mysqlUrl(await Effect.runPromise(database.database()))
    mkdirSync(join(directory, "state"), { mode: 0o700 })
    const site = siteIn({ directory, nbd, dsn, database, children })
    await site.startCloud()
    return await use(site)
  } finally {
    for (const child of children.toReversed()) await child.kill()
    await endNbd(nbd)
    await Effect.runPromise(Scope.close(scope, Exit.void))
    if (process.env["KEEP"] === undefined) rmSync(directory, { recursive: true, force: true })
  }
}

const mysqlUrl = (
  target: { readonly user: string; readonly password: Redacted.Redacted; readonly port: number } & {
    readonly database: string
  }
) =>
  `mysql://${target.user}:${encodeURIComponent(Redacted.value(target.password))}@127.0.0.1:${target.port}/${target.database}`

interface Parts {
  readonly directory: string
  readonly nbd: Processes.Place
  readonly dsn: string
  readonly database: MariaDb.MariaDb | null
  readonly children: Array<Child.Child>
}

const siteIn = ({ directory, nbd, dsn, database, children }: Parts): Site => {
  const listen = `${nbd.host}:8096`
  const cloud = `http://${listen}`
  const logFile = join(directory, "daemon.log")
  let sandbox: Child.Child | null = null
  let daemon: { readonly child: Child.Child; origin: string | null } | null = null
  return {
    nbd,
    database,
    origin: () => (daemon?.child.running() === true ? daemon.origin : null),
    truth: async () => {
      const answer = await fetch(`${cloud}/sandbox`).catch(() => null)
      return answer === null ? null : ((await answer.json()) as World.Truth)
    },
    setFaults: async (faults) => {
      await fetch(`${cloud}/sandbox/faults`, { method: "POST", body: JSON.stringify(faults) }).catch(() => null)
    },
    image: (volumeId) => join(directory, "volumes", `${volumeId}.img`),
    launch: (failpoint) => {
      const environment = {
        ...environmentIn(directory),
        ...quick,
        NBD_HOST: nbd.host,
        NBD_PORT: String(nbd.port),
        DATABASE_DSN: dsn,
        ...(failpoint === null ? {} : { VOLUMED_FAILPOINT: failpoint })
      }
      const child = Child.start(["serve"], environment, logFile)
      const current: { readonly child: Child.Child; origin: string | null } = { child, origin: null }
      const found = child.said(/ready on (http:\S+?)[;\s]/, READY_MS)
      daemon = current
      children.push(child)
      return {
        ...child,
        ready: async () => {
          current.origin = (await found)?.[1] ?? null
          return current.origin !== null
        }
      }
    },
    startCloud: async () => {
      const args = ["sandbox", "--state", directory, "--cloudstack-listen", listen, "--latency", LATENCY]
      sandbox = Child.start(args, {}, join(directory, "sandbox.log"))
      children.push(sandbox)
      if ((await sandbox.said(/listens on/, READY_MS)) === null)
        throw new Error(`the sandbox does not start: ${readFileSync(join(directory, "sandbox.log"), "utf8")}`)
    },
    killCloud: async () => sandbox?.kill(),
    ledger: async () => {
      await daemon?.child.stop()
      await sandbox?.stop()
      return JSON.parse(readFileSync(join(directory, "world.json"), "utf8")) as Json
    },
    log: () => readFileSync(logFile, "utf8")
  }
}

const environmentIn = (directory: string): Readonly<Record<string, string>> =>
  Object.fromEntries(
    [...readFileSync(join(directory, "sandbox.env"), "utf8").matchAll(/^([A-Z_]+)='(.*)'$/gm)].map(
      ([, key = "", value = ""]) => [key, value]
    )
  )

/** The NBD server outlives its daemon by design. */
const endNbd = async (place: Processes.Place): Promise<void> => {
  for (let round = 0; round < 200; round++) {
    const left = Processes.servers(place.config)
    if (left.length === 0) return
    for (const one of left) Processes.kill(one, place.config)
    await sleep(10)
  }
}
