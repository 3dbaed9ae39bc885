import { Context, Effect, Layer, Ref, Schedule, type Scope } from "effect"
import { execFile, spawn, type ChildProcess } from "node:child_process"
import {
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync
} from "node:fs"
import { createHash } from "node:crypto"
import { createServer } from "node:net"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { Gate } from "../../reconciler/Gate.ts"
import { Nbd, type WantedExport } from "../../reconciler/Nbd.ts"
import { GateClosed, type Misconfigured } from "../../schema/Errors.ts"
import type { NbdReading, Verification } from "../../schema/Inventory.ts"
import * as NbdServer from "../../src/Nbd/NbdServer.ts"
import * as Pin from "../../src/Nbd/Pin.ts"
import * as Processes from "../../src/Nbd/Processes.ts"
import type * as World from "../../src/Nbd/World.ts"

/** A machine of its own as far as NBD goes: an address that no other test uses, disks that are files, a by-id directory. */
export interface Appliance {
  readonly dir: string
  readonly options: World.Options
  readonly place: Processes.Place
  readonly uri: (name: string) => string
  /** A disk whose every 8 bytes say which disk they belong to. */
  readonly disk: (name: string, bytes?: number) => WantedExport
}

const MiB = 1024 * 1024

export const make: Effect.Effect<Appliance, never, Scope.Scope> = Effect.gen(function* () {
  const dir = yield* Effect.acquireRelease(
    Effect.sync(() => mkdtempSync(join(tmpdir(), "vn-"))),
    (path) => Effect.sync(() => rmSync(path, { recursive: true, force: true }))
  )
  const { host, port } = yield* freePlace
  for (const name of ["etc", "state", "by-id", "dev"]) mkdirSync(join(dir, name), { mode: 0o755 })
  const config = join(dir, "etc/config")
  const place = { host, port, config }
  const options: World.Options = {
    nbd: {
      backend: "nbd-server",
      config,
      acl_dir: join(dir, "acl"),
      host,
      port,
      allow: [host],
      explicit: { host: true, port: true, allow: true },
      start: "auto",
      pin: false
    },
    state_dir: join(dir, "state"),
    by_id_dir: join(dir, "by-id"),
    device_kind: "file",
    stop_on_exit: false
  }
  yield* Effect.addFinalizer(() => endAll(place))
  yield* Effect.addFinalizer(() => Effect.sync(() => Pin.stop(options)))
  return {
    dir,
    options,
    place,
    uri: (name) => `nbd://${host}:${port}/${name}`,
    disk: (name, bytes = MiB) => {
      const file = join(dir, "dev", name)
      writeFileSync(file, `${name}        `.slice(0, 8).repeat(Math.min(bytes, MiB) / 8))
      truncateSync(file, bytes)
      const path = join(dir, "by-id", `virtio-${name}`)
      symlinkSync(file, path)
      const stats = statSync(file, { bigint: true })
      return { name, path, read_only: false, device: `file:${stats.dev}:${stats.ino}`, size: bytes }
    }
  }
})

const freePlace = Effect.async<{ readonly host: string; readonly port: number }>((resume) => {
  const byte = () => 2 + Math.floor(Math.random() * 250)
  const host = `127.${byte()}.${byte()}.${byte()}`
  const server = createServer()
  server.listen(0, host, () => {
    const address = server.address()
    const port = typeof address === "object" && address !== null ? address.port : 0
    server.close(() => resume(Effect.succeed({ host, port })))
  })
})

const endAll = (place: Processes.Place) =>
  Effect.gen(function* () {
    for (let round = 0; round < 100; round++) {
      const left = Processes.servers(place.config)
      if (left.length === 0) return
      for (const one of left) Processes.kill(one, place.config)
      yield* Effect.promise(() => new Promise((done) => setTimeout(done, 10)))
    }
  })

/** The adapter on this machine; `closed` shuts its gate. */
export const adapter = (
  appliance: Appliance,
  changed: Partial<World.Options> = {},
  gate: Layer.Layer<Gate> = openGate
): Effect.Effect<Nbd["Type"], Misconfigured, Scope.Scope> =>
  Layer.build(NbdServer.layer({ ...appliance.options, ...changed }).pipe(Layer.provide(gate))).pipe(
    Effect.map((context) => Context.get(context, Nbd))
  )

export const openGate = Layer.succeed(Gate, { check: Effect.void, reason: Effect.succeed(null) })

/** Lets the first `checks` questions pass and is closed from then on. */
export const closingGate = (checks: number): Layer.Layer<Gate> =>
  Layer.effect(
    Gate,
    Effect.map(Ref.make(checks), (left) => ({
      check: Effect.flatMap(
        Ref.getAndUpdate(left, (n) => n - 1),
        (n) => (n > 0 ? Effect.void : new GateClosed({ detail: "held by the test" }))
      ),
      reason: Effect.succeed(null)
    }))
  )

export const verified = (reading: NbdReading, name: string): Verification => {
  const found = reading.verifications.find((v) => v.name === name)
  if (found === undefined) throw new Error(`${name} was not asked for`)
  return found
}

/** The main that listens at the appliance's place; null where none does. */
export const mainOf = ({ place }: Appliance): Effect.Effect<number | null> =>
  Effect.map(Processes.listener(place), (listener) => (listener._tag === "Main" ? listener.main.pid : null))

/** Until an independent client is granted this export, for at most 15 seconds. */
export const served = (appliance: Appliance, name: string): Effect.Effect<void> =>
  run("nbdinfo", "--size", appliance.uri(name)).pipe(
    Effect.repeat({ until: ({ code }) => code === 0, schedule: Schedule.spaced("20 millis") }),
    Effect.timeout("15 seconds"),
    Effect.orDie
  )

/** Runs a program to its end; what it said in either stream. */
export const run = (program: string, ...args: ReadonlyArray<string>): Effect.Effect<{ code: number; said: string }> =>
  Effect.async((resume) => {
    execFile(program, [...args], { timeout: 30_000 }, (error, stdout, stderr) => {
      const code = error === null ? 0 : typeof error.code === "number" ? error.code : -1
      resume(Effect.succeed({ code, said: `${stdout}${stderr}`.trim() }))
    })
  })

/** A child that is killed by its pid with the scope. */
export const running = (
  program: string,
  args: ReadonlyArray<string>
): Effect.Effect<ChildProcess, never, Scope.Scope> =>
  Effect.acquireRelease(
    Effect.sync(() => spawn(program, [...args], { stdio: "ignore" })),
    (child) => Effect.sync(() => child.kill("SIGKILL"))
  )

export const exitCode = (child: ChildProcess): Effect.Effect<number | null> =>
  Effect.async((resume) => {
    if (child.exitCode !== null || child.signalCode !== null) return resume(Effect.succeed(child.exitCode))
    child.once("exit", (code) => resume(Effect.succeed(code)))
  })

/**
 * A running transfer, stopped in its middle because nobody takes its output: it goes on when `finish` does, which answers
 * with the copier's exit code and the SHA-256 of what it copied.
 */
export const transfer = (appliance: Appliance, name: string) =>
  Effect.gen(function* () {
    const child = yield* Effect.acquireRelease(
      Effect.sync(() => spawn("nbdcopy", [appliance.uri(name), "-"], { stdio: ["ignore", "pipe", "ignore"] })),
      (child) => Effect.sync(() => child.kill("SIGKILL"))
    )
    yield* Effect.async<void>((resume) => void child.stdout.once("readable", () => resume(Effect.void)))
    const hash = createHash("sha256")
    const drained = Effect.async<string>((resume) => {
      child.stdout
        .on("data", (chunk: Buffer) => hash.update(chunk))
        .on("end", () => resume(Effect.succeed(hash.digest("hex"))))
    })
    const finish = Effect.flatMap(drained, (sha256) => Effect.map(exitCode(child), (code) => ({ code, sha256 })))
    return { child, finish }
  })

/** Until it holds, for at most 15 seconds. */
export const eventually = (what: string, holds: () => boolean): Effect.Effect<void> =>
  Effect.promise(async () => {
    for (let round = 0; round < 1500; round++) {
      if (holds()) return
      await new Promise((done) => setTimeout(done, 10))
    }
    throw new Error(`still not so after 15 s: ${what}`)
  })

export const configText = (appliance: Appliance): string => readFileSync(appliance.place.config, "latin1")
