import { Effect } from "effect"
import { spawn } from "node:child_process"
import { once } from "node:events"
import { readlinkSync, renameSync, symlinkSync } from "node:fs"
import { writeFile } from "node:fs/promises"
import { type AddressInfo, createServer } from "node:net"
import { join } from "node:path"
import { setTimeout as sleep } from "node:timers/promises"
import type { Volume } from "../../schema/Api.ts"
import { GIB } from "../../schema/Declaration.ts"
import * as Handshake from "../../src/Nbd/Handshake.ts"
import * as Processes from "../../src/Nbd/Processes.ts"
import * as World from "../../src/Simulation/World.ts"
import * as Daemon from "./Daemon.ts"
import * as Measure from "./Measure.ts"

const VOLUMES = 12
const GIVE_UP_MS = 60_000
/** An export becomes visible by one start of its server and what is asked before and after it. */
const STARTS_BOUND = 10
const FENCE_BOUND_MS = 1_000

/**
 * A whole daemon with a real nbd-server: how long after its wish was accepted a volume on the appliance can be opened, and
 * how long after its by-id link came to mean another disk nobody can open it any more.
 */
export const measure = (): Promise<ReadonlyArray<Measure.Measure>> =>
  Daemon.withSite(
    World.make({ now: Date.now(), vms: 2, job_ms: 100 }),
    async () => {},
    async (site) => {
      const daemon = await site.daemon({ NBD_BACKEND: "nbd-server" })
      const names = Array.from({ length: VOLUMES }, (_, at) => `volume-${at}`)
      const volumes = names.map((name) => ({ name, size: GIB, attached_to: "appliance", export_wanted: false }))
      await daemon.request("POST", "/api/v2/apply", { volumes })
      for (const name of names) await until(() => holds(daemon, name, "Ready"))
      const exporting: Array<number> = []
      const starting: Array<number> = []
      for (const name of names) {
        exporting.push(await exported(daemon, name))
        starting.push(await started(site.directory))
      }
      const targets = await Promise.all(names.map((name) => targetOf(daemon, name)))
      const fencing: Array<number> = []
      for (const [at, target] of targets.entries()) {
        const other = targets[(at + 1) % targets.length]
        if (other !== undefined) fencing.push(await fenced(target, other))
      }
      return [
        // The first one waits for the server's first start and for compilers.
        line("export wish stored → Exported and let in", exporting.slice(1), {
          what: "nbd-server started by hand: ",
          ms: Measure.median(starting),
          bound: STARTS_BOUND
        }),
        line("by-id link flipped → nobody let in", fencing, { what: "", ms: FENCE_BOUND_MS, bound: 1 })
      ]
    }
  )

const line = (
  name: string,
  times: ReadonlyArray<number>,
  against: { readonly what: string; readonly ms: number; readonly bound: number }
): Measure.Measure => ({
  name: `${name}, ${times.length} times, median`,
  measured: `${Measure.median(times).toFixed(0)} ms (worst ${Math.max(...times).toFixed(0)} ms)`,
  against: `${against.what}${against.ms.toFixed(0)} ms`,
  ratio: Measure.median(times) / against.ms,
  bound: against.bound
})

/** ms from the start of an nbd-server with one export and nothing around it until it lets a client in. */
const started = async (directory: string): Promise<number> => {
  const [config, file] = [join(directory, "by-hand"), join(directory, "by-hand.img")]
  const target = { host: "127.0.0.1", port: await freePort(), name: "by-hand" }
  await writeFile(file, Buffer.alloc(2 ** 20))
  await writeFile(
    config,
    `[generic]\nlistenaddr = ${target.host}\nport = ${target.port}\n[by-hand]\nexportname = ${file}\n`
  )
  const begun = performance.now()
  spawn("nbd-server", ["-C", config, "-p", join(directory, "by-hand.pid")], { cwd: "/", stdio: "ignore" })
  await until(() => admitted(target))
  const took = performance.now() - begun
  for (const one of Processes.servers(config)) Processes.kill(one, config)
  return took
}

const freePort = async (): Promise<number> => {
  const server = createServer().listen(0, "127.0.0.1")
  await once(server, "listening")
  const { port } = server.address() as AddressInfo
  server.close()
  await once(server, "close")
  return port
}

/** ms from the wish's answer until the condition is so and a client of nobody's was let in. */
const exported = async (daemon: Daemon.Daemon, name: string): Promise<number> => {
  await daemon.request("PATCH", `/api/v2/volumes/${name}`, { export_wanted: true })
  const begun = performance.now()
  await until(() => holds(daemon, name, "Exported"))
  const target = await targetOf(daemon, name)
  await until(() => admitted(target))
  return performance.now() - begun
}

interface Target extends Handshake.Target {
  /** The by-id link that the export is served by. */
  readonly link: string
}

const targetOf = async (daemon: Daemon.Daemon, volume: string): Promise<Target> => {
  const { volume_id } = ((await daemon.request("GET", `/api/v2/volumes/${volume}`)) as Volume).status
  const one = (await daemon.request("GET", `/api/v1/exports/${volume_id}`)) as Readonly<Record<string, string | number>>
  return { host: "127.0.0.1", port: Number(one["port"]), name: String(one["name"]), link: String(one["by_id_path"]) }
}

/** ms from the moment the link leads to the other's disk until no new client is let in; then it is as it was. */
const fenced = async (target: Target, other: Target): Promise<number> => {
  const [right, wrong] = [readlinkSync(target.link), readlinkSync(other.link)]
  await until(() => admitted(target))
  await lead(target.link, wrong)
  const begun = performance.now()
  await until(async () => !(await admitted(target)))
  const took = performance.now() - begun
  await lead(target.link, right)
  return took
}

/** As udev does it: the new link is made aside and takes the old one's place. */
const lead = async (link: string, to: string): Promise<void> => {
  symlinkSync(to, `${link}.new`)
  renameSync(`${link}.new`, link)
}

const admitted = (target: Handshake.Target): Promise<boolean> =>
  Effect.runPromise(Effect.map(Handshake.ask(target), ({ _tag }) => _tag === "Served"))

const holds = async (daemon: Daemon.Daemon, name: string, condition: string): Promise<boolean> => {
  const { status } = (await daemon.request("GET", `/api/v2/volumes/${name}`)) as Volume
  return status.conditions.some((one) => one.type === condition && one.status === "True")
}

const until = async (look: () => Promise<boolean>): Promise<void> => {
  const end = performance.now() + GIVE_UP_MS
  while (!(await look())) {
    if (performance.now() > end) throw new Error(`still not so after ${GIVE_UP_MS / 1_000} s`)
    await sleep(2)
  }
}
