import { assert } from "@effect/vitest"
import { Effect, type Scope } from "effect"
import { execFile, spawn } from "node:child_process"
import { once } from "node:events"
import * as Fs from "node:fs"
import { createServer } from "node:http"
import type { AddressInfo } from "node:net"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { promisify } from "node:util"
import { serialOf, type VolumeId } from "../../schema/Ids.ts"
import * as Processes from "../../src/Nbd/Processes.ts"
import * as Child from "../Cli/Child.ts"

/** An appliance on which an older daemon ran: a simulated cloud in a process of its own, its disks, a real nbd-server. */
export interface Appliance {
  readonly dir: string
  readonly env: Readonly<Record<string, string>>
  readonly vms: ReadonlyArray<string>
  /** Made and attached by hand, not through anything that is tested; on no VM where none is named. */
  readonly volume: (name: string, vm: string | null) => Effect.Effect<VolumeId>
  /** By hand, too. */
  readonly detach: (id: VolumeId) => Effect.Effect<void>
  /** The kernel's name of the volume's disk, once it is here. */
  readonly diskOf: (id: VolumeId) => Effect.Effect<string>
  /** Starts a real nbd-server with this file, as the older daemon left it. */
  readonly serve: (config: string) => Effect.Effect<void>
  /** What the NBD server gives for an export's size, as any client would ask. */
  readonly sizeOf: (name: string) => Effect.Effect<string>
  /** A client in the middle of a copy, which goes on when it is asked for its end: exit code and bytes. */
  readonly copying: (name: string) => Effect.Effect<{ readonly finish: Effect.Effect<Copied> }, never, Scope.Scope>
  /** Calls that changed something in CloudStack, tags aside, and what no controller should have done. */
  readonly ledger: Effect.Effect<Ledger>
  readonly volumed: (args: ReadonlyArray<string>, env?: Readonly<Record<string, string>>) => Effect.Effect<Child.Ended>
  /** The daemon, until the scope ends; its URL. */
  readonly daemon: (env: Readonly<Record<string, string>>) => Effect.Effect<string, never, Scope.Scope>
}

export interface Copied {
  readonly code: number | null
  readonly bytes: number
}

export interface Ledger {
  readonly changes: Readonly<Record<string, number>>
  readonly violations: ReadonlyArray<unknown>
}

const changing = ["createVolume", "attachVolume", "detachVolume", "deleteVolume", "destroyVolume", "updateVolume"]

export const make: Effect.Effect<Appliance, never, Scope.Scope> = Effect.gen(function* () {
  const dir = yield* Effect.acquireRelease(
    Effect.sync(() => Fs.mkdtempSync(join(tmpdir(), "volumed-import-"))),
    (path) => Effect.sync(() => Fs.rmSync(path, { recursive: true, force: true }))
  )
  const world = yield* Effect.acquireRelease(
    Effect.sync(() => Child.start(["sandbox", "--state", dir])),
    (child) => Effect.promise(() => Child.stop(child))
  )
  yield* Effect.promise(() => Child.said(world, "stdout", /sandbox\.env\n/u))
  const text = Fs.readFileSync(join(dir, "sandbox.env"), "utf8")
  const env = Object.fromEntries(
    [...text.matchAll(/^([A-Z_]+)='(.*)'$/gmu)].map(([, key = "", value = ""]) => [key, value])
  )
  const cloud = new URL(env["CLOUDSTACK_API_URL"] ?? "").origin
  const config = env["NBD_CONFIG"] ?? ""
  yield* Effect.addFinalizer(() =>
    Effect.sync(() => {
      for (const server of Processes.servers(config)) Processes.kill(server, config)
    })
  )
  const act = (body: unknown) =>
    Effect.promise(async () => {
      const answer = await fetch(`${cloud}/sandbox/act`, { method: "POST", body: JSON.stringify(body) })
      const said = (await answer.json()) as { readonly volume_id: string }
      assert.isTrue(answer.ok, JSON.stringify(said))
      return said.volume_id as VolumeId
    })
  const truth = Effect.promise(async () => (await (await fetch(`${cloud}/sandbox`)).json()) as Truth)
  return {
    dir,
    env,
    vms: (yield* truth).volumes.flatMap(({ vm_id }) => vm_id ?? []),
    volume: Effect.fnUntraced(function* (name, vm) {
      const volume_id = yield* act({ act: "create", name, size_gib: 1 })
      if (vm !== null) yield* act({ act: "attach", volume_id, vm_id: vm })
      return volume_id
    }),
    detach: (volume_id) =>
      Effect.gen(function* () {
        yield* act({ act: "detach", volume_id })
        yield* eventually("its disk is gone", () => disk(env["SYS_BLOCK_DIR"] ?? "", volume_id) === null || null)
      }),
    diskOf: (id) => eventually(`the disk of ${id}`, () => disk(env["SYS_BLOCK_DIR"] ?? "", id)),
    serve: (text) =>
      Effect.gen(function* () {
        Fs.writeFileSync(config, text)
        spawn("nbd-server", ["-C", config, "-p", join(dir, "nbd.pid")], { stdio: "ignore" })
        yield* eventually("nbd-server", () => (Processes.servers(config).length > 0 ? "runs" : null))
      }),
    sizeOf: (name) =>
      Effect.promise(async () => {
        const uri = `nbd://127.0.0.1:${env["NBD_PORT"]}/${name}`
        return (await promisify(execFile)("nbdinfo", ["--size", uri])).stdout.trim()
      }),
    copying: (name) =>
      Effect.gen(function* () {
        const uri = `nbd://127.0.0.1:${env["NBD_PORT"]}/${name}`
        const child = yield* Effect.acquireRelease(
          Effect.sync(() => spawn("nbdcopy", [uri, "-"], { stdio: ["ignore", "pipe", "ignore"] })),
          (running) => Effect.sync(() => running.kill("SIGKILL"))
        )
        // Nobody takes what it has read, so that it stands still.
        yield* Effect.promise(() => once(child.stdout, "readable"))
        const finish = Effect.promise(async () => {
          let bytes = 0
          child.stdout.on("data", (chunk: Buffer) => (bytes += chunk.length))
          const [code] = (await once(child, "close")) as [number | null]
          return { code, bytes }
        })
        return { finish }
      }),
    ledger: Effect.map(truth, ({ calls, violations }) => ({
      changes: Object.fromEntries(Object.entries(calls).filter(([command]) => changing.includes(command))),
      violations
    })),
    volumed: (args, more = {}) => Effect.promise(() => Child.run(args, { env: { ...env, ...more } })),
    daemon: (more) =>
      Effect.gen(function* () {
        const child = yield* Effect.acquireRelease(
          Effect.sync(() =>
            Child.start(["serve", "--listen", "127.0.0.1:0"], { env: { ...env, LOG_LEVEL: "error", ...more } })
          ),
          (running) => Effect.promise(() => Child.stop(running))
        )
        const [, url = ""] = yield* Effect.promise(() => Child.said(child, "stderr", /volumed ready on (\S+);/u))
        return url
      })
  }
})

/** A way to the daemon on which something happens once, right after the first answer to such a request; its URL. */
export const between = (daemon: string, asked: RegExp, happens: Effect.Effect<void>) =>
  Effect.acquireRelease(
    Effect.promise(async () => {
      let happened = false
      const proxy = createServer(async (request, response) => {
        const { headers, method = "GET", url = "" } = request
        const parts: Array<Buffer> = []
        for await (const part of request) parts.push(part as Buffer)
        const body = Buffer.concat(parts)
        const { host: _, ...sent } = headers as Record<string, string>
        const answer = await fetch(new URL(url, daemon), { method, headers: sent, ...(body.length > 0 && { body }) })
        const said = Buffer.from(await answer.arrayBuffer())
        if (asked.test(url) && !happened) {
          happened = true
          await Effect.runPromise(happens)
        }
        response.writeHead(answer.status, { "content-type": answer.headers.get("content-type") ?? "" }).end(said)
      })
      proxy.listen(0, "127.0.0.1")
      await once(proxy, "listening")
      return proxy
    }),
    (proxy) => Effect.sync(() => proxy.close())
  ).pipe(Effect.map((proxy) => `http://127.0.0.1:${(proxy.address() as AddressInfo).port}`))

interface Truth {
  readonly volumes: ReadonlyArray<{ readonly vm_id: string | null }>
  readonly calls: Readonly<Record<string, number>>
  readonly violations: ReadonlyArray<unknown>
}

const disk = (directory: string, id: VolumeId): string | null =>
  Fs.readdirSync(directory).find((name) => {
    const serial = join(directory, name, "serial")
    return Fs.existsSync(serial) && Fs.readFileSync(serial, "utf8").trim() === serialOf(id)
  }) ?? null

/** What it finds, looked for again and again for at most 20 s. */
export const eventually = <A>(what: string, find: () => A | null): Effect.Effect<A> =>
  Effect.promise(async () => {
    for (let round = 0; round < 400; round++) {
      const found = find()
      if (found !== null) return found
      await new Promise((done) => setTimeout(done, 50))
    }
    throw new Error(`still not there after 20 s: ${what}`)
  })
