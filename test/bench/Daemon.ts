import { type ChildProcess, spawn } from "node:child_process"
import { once } from "node:events"
import { mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { createInterface } from "node:readline"
import type { Readable } from "node:stream"
import { setTimeout as sleep } from "node:timers/promises"
import * as Processes from "../../src/Nbd/Processes.ts"
import type { Truth, World } from "../../src/Simulation/World.ts"
import * as Build from "../support/Build.ts"

/** A sandbox and, beside it, a daemon: two processes of the built program, with all their files in one directory. */
export interface Site {
  readonly directory: string
  /** Origin of the simulated CloudStack. */
  readonly cloud: string
  readonly truth: () => Promise<Truth>
  readonly daemon: (environment?: Readonly<Record<string, string>>) => Promise<Daemon>
}

export interface Daemon {
  readonly pid: number
  readonly origin: string
  readonly request: (method: string, path: string, body?: unknown) => Promise<unknown>
}

/** Runs `use` on a sandbox that begins as `world`; ends its processes and removes its files whatever comes. */
export const withSite = async <A>(
  world: World,
  prepare: (directory: string) => Promise<void>,
  use: (site: Site) => Promise<A>
): Promise<A> => {
  const directory = await mkdtemp(join(tmpdir(), "volumed-bench-"))
  const children: Array<ChildProcess> = []
  try {
    await mkdir(join(directory, "state"), { recursive: true })
    await writeFile(join(directory, "world.json"), JSON.stringify(world.save(Date.now())))
    await prepare(directory)
    const start = (args: ReadonlyArray<string>, environment: Readonly<Record<string, string>>, until: RegExp) =>
      started(children, args, environment, until)
    const cloud = await start(["sandbox", "--state", directory], {}, /listens on (\S+);/)
    return await use({
      directory,
      cloud: cloud.found,
      truth: async () => (await (await fetch(`${cloud.found}/sandbox`)).json()) as Truth,
      daemon: async (environment = {}) => {
        const around = { ...(await sandboxEnvironment(directory)), ...environment }
        const { found, pid } = await start(["serve"], around, /ready on (http:\S+?)[;\s]/)
        return { pid, origin: found, request: (method, path, body) => request(`${found}${path}`, method, body) }
      }
    })
  } finally {
    for (const child of children.reverse()) await ended(child)
    await endedNbd(join(directory, "nbd", "config-base"))
    await rm(directory, { recursive: true, force: true })
  }
}

const started = async (
  children: Array<ChildProcess>,
  args: ReadonlyArray<string>,
  environment: Readonly<Record<string, string>>,
  until: RegExp
): Promise<{ readonly found: string; readonly pid: number }> => {
  const child = spawn(process.execPath, [Build.program, ...args], {
    env: { ...process.env, ...environment },
    stdio: ["ignore", "ignore", "pipe"]
  })
  children.push(child)
  const said: Array<string> = []
  for await (const line of createInterface({ input: child.stderr as Readable })) {
    said.push(line)
    const found = until.exec(line)?.[1]
    if (found === undefined) continue
    // What it says later is nobody's concern, but a full pipe would stop it.
    child.stderr?.resume()
    return { found, pid: child.pid ?? 0 }
  }
  throw new Error(`volumed ${args.join(" ")} ended before it was ready:\n${said.join("\n")}`)
}

const ended = async (child: ChildProcess): Promise<void> => {
  if (child.exitCode !== null || child.signalCode !== null) return
  child.kill("SIGTERM")
  await once(child, "exit")
}

/** A daemon leaves its nbd-server running, and with it the transfers; here both are over. */
const endedNbd = async (config: string): Promise<void> => {
  for (let round = 0; round < 200 && Processes.servers(config).length > 0; round++) {
    for (const one of Processes.servers(config)) Processes.kill(one, config)
    await sleep(10)
  }
}

const sandboxEnvironment = async (directory: string): Promise<Readonly<Record<string, string>>> => {
  const text = await readFile(join(directory, "sandbox.env"), "utf8")
  const pairs = [...text.matchAll(/^([A-Z_]+)='(.*)'$/gm)].map(([, key = "", value = ""]) => [key, value] as const)
  return {
    ...Object.fromEntries(pairs),
    DATABASE_DSN: databaseIn(directory),
    LISTEN: "127.0.0.1:0",
    NBD_BACKEND: "simulated",
    LOG_LEVEL: "warning"
  }
}

export const databaseIn = (directory: string): string => `sqlite:${join(directory, "state", "volumed.db")}`

const request = async (url: string, method: string, body: unknown): Promise<unknown> => {
  const answer = await fetch(url, {
    method,
    ...(body === undefined ? {} : { body: JSON.stringify(body), headers: { "content-type": "application/json" } })
  })
  const text = await answer.text()
  if (!answer.ok) throw new Error(`${method} ${url}: ${answer.status} ${text.slice(0, 500)}`)
  return JSON.parse(text) as unknown
}
