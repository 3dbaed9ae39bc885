import { Clock, Effect, Layer, Stream } from "effect"
import { Gate } from "../../reconciler/Gate.ts"
import { type LoadRequest, Nbd, type WantedExport } from "../../reconciler/Nbd.ts"
import { NbdUnavailable, PreconditionLost } from "../../schema/Errors.ts"
import { type Holder, type NbdReading, type NbdSection, sectionOf, type Verification } from "../../schema/Inventory.ts"
import * as Guest from "./Guest.ts"
import { serialFor } from "./State.ts"
import type { World } from "./World.ts"

export interface Device {
  /** As in `BlockDevice.identity`. */
  readonly identity: string
  /** Bytes. */
  readonly size: number
}

export interface Options {
  /** What a by-id path means at a time; null: nothing. */
  readonly resolve: (path: string, now: number) => Device | null
  readonly host?: string
  readonly port?: number
  /** Sections that somebody else wrote. */
  readonly sections?: ReadonlyArray<Written>
}

type Written = Pick<NbdSection, "name" | "path" | "read_only">

/** A simulated NBD server as a test or a demo sees it: a file of sections, and what a server has loaded of it. */
export interface Control {
  readonly options: Options
  state: "running" | "absent" | "hung" | "foreign" | "not_installed"
  /** The file: what a load would serve. */
  file: Array<Written>
  /** What the server serves: the file as it was at the last load. */
  served: ReadonlyArray<Written>
  /** False when the server does not serve this very file: it was edited, or it was started with another one. */
  loaded: boolean
  config_problem: string | null
  /** Why the next observations and loads fail, or null. */
  broken: string | null
  /** Since when, ms. */
  readonly fenced: Map<string, number>
  /** Links that lie: what they lead to in place of what they should; null: nowhere. */
  readonly lies: Map<string, Device | null>
  /** What the server opens for a name, whatever its path means: a memory of its own that no load mends. */
  readonly memory: Map<string, Device>
  /** Names that a server with a damaged heap greets and then hangs up on, until it is replaced (reference: 2.4). */
  readonly damaged: Set<string>
  /** Clients and others that hold devices open. */
  readonly holders: Array<Holder>
  /** How often the server was made to load the file anew. */
  loads: number
  readonly listeners: Set<() => void>
}

export const make = (options: Options): Control => ({
  options,
  state: "running",
  file: [...(options.sections ?? [])],
  served: [...(options.sections ?? [])],
  loaded: true,
  config_problem: null,
  broken: null,
  fenced: new Map(),
  lies: new Map(),
  memory: new Map(),
  damaged: new Set(),
  holders: [],
  loads: 0,
  listeners: new Set()
})

/** A server whose paths lead into an in-memory world; detaching what it serves is noticed there. */
export const inWorld = (world: World, options: Omit<Options, "resolve"> = {}): Control => {
  const control = make({ ...options, resolve: Guest.resolve(world) })
  world.watchExports(
    (volumeId) => serves(control, serialFor(volumeId), world.state.now),
    (volumeId) => control.holders.some(({ device }) => device === Guest.diskOf(world, volumeId))
  )
  return control
}

/** A new client of the disk with this serial would be let in now. */
export const serves = (control: Control, serial: string, now: number): boolean =>
  control.state === "running" &&
  control.served.some(
    (section) => section.path?.endsWith(serial) === true && verify(control, section.name, now).outcome === "served"
  )

/** The server dies; clients' connections live on in processes of their own. */
export const kill = (control: Control): void => change(control, () => (control.state = "absent"))

/** The server accepts connections and never answers. */
export const hang = (control: Control): void => change(control, () => (control.state = "hung"))

/** The program is removed from the machine, and its server is gone. */
export const uninstall = (control: Control): void => change(control, () => (control.state = "not_installed"))

/** Its heap is damaged: clients of this export are greeted and hung up on until the server is replaced (N7). */
export const damage = (control: Control, name: string): void => change(control, () => control.damaged.add(name))

/** The link leads to another disk, or nowhere, for whoever opens it from now on (D3). */
export const mislead = (control: Control, path: string, to: Device | null): void =>
  change(control, () => control.lies.set(path, to))

/** The server opens another disk for this name, and no link shows it: a GO alone does (N8). */
export const misremember = (control: Control, name: string, disk: Device): void =>
  change(control, () => control.memory.set(name, disk))

/** The link is right again. */
export const setRight = (control: Control, path: string): void => change(control, () => control.lies.delete(path))

/** Something that is no server of ours listens on the port. */
export const occupy = (control: Control): void => change(control, () => (control.state = "foreign"))

/** Somebody starts the server by hand: it serves the file as it is. */
export const revive = (control: Control): void =>
  change(control, () => {
    control.state = "running"
    control.served = [...control.file]
    control.damaged.clear()
    control.loaded = true
  })

/** Somebody edits the file; the server does not know. */
export const edit = (control: Control, sections: ReadonlyArray<Written>): void =>
  change(control, () => {
    control.file = [...sections]
    control.loaded = false
  })

/** A client connects to an export and holds its device until `leave`. Answers its process id; null when it is refused. */
export const connect = (control: Control, name: string, peer: string, now: number): number | null => {
  const granted = verify(control, name, now)
  if (granted.outcome !== "served" || granted.device === null) return null
  const pid = 1_000 + control.holders.reduce((most, one) => Math.max(most, one.pid - 999), 0)
  control.holders.push({ pid, command: "nbd-server", device: granted.device, peer, since: null })
  return pid
}

export const leave = (control: Control, pid: number): void => {
  const at = control.holders.findIndex((holder) => holder.pid === pid)
  if (at >= 0) change(control, () => control.holders.splice(at, 1))
}

const change = (control: Control, apply: () => unknown): void => {
  apply()
  for (const listener of control.listeners) listener()
}

const leadsTo = (control: Control, path: string, now: number): Device | null =>
  control.lies.has(path) ? (control.lies.get(path) ?? null) : control.options.resolve(path, now)

/** What a GO handshake would say. Like nbd-server, it opens the path anew for every client. */
const verify = (control: Control, name: string, now: number): Verification => {
  const answer = (outcome: Verification["outcome"], message: string | null, device: Device | null = null) => ({
    name,
    outcome,
    size: device?.size ?? null,
    read_only: device === null ? null : (section?.read_only ?? false),
    device: device?.identity ?? null,
    verified_at: now,
    message
  })
  const section = control.served.find((one) => one.name === name)
  const silent = control.state === "absent" || control.state === "not_installed"
  if (silent) return answer("refused", "nothing listens on the port")
  if (control.state === "hung" || control.state === "foreign") return answer("no_answer", "no NBD greeting")
  if (control.damaged.has(name)) return answer("dropped", "the connection ended after the greeting")
  if (section === undefined) return answer("unknown", "Export unknown")
  const device = control.memory.get(name) ?? (section.path === null ? null : leadsTo(control, section.path, now))
  if (control.fenced.has(name) || device === null) return answer("denied", "Access denied by server configuration")
  return answer("served", null, device)
}

const reading = (control: Control, names: ReadonlyArray<string>, now: number): NbdReading => ({
  engine: "simulated",
  version: null,
  server: {
    state: control.state,
    pid: control.state === "running" || control.state === "hung" ? 999 : null,
    problem: control.state === "foreign" ? "another program listens on the port" : null
  },
  host: control.options.host ?? "127.0.0.1",
  port: control.options.port ?? 10_809,
  read_only_port: control.options.port ?? 10_809,
  sections: sections(control, now),
  config_problem: control.config_problem,
  narrowings: [],
  loaded: control.state === "running" && control.loaded,
  verifications: [...new Set(names)].map((name) => verify(control, name, now)),
  holders: [...control.holders]
})

/** With what its path leads to, where that is another disk than its name says: a simulated link is believed otherwise. */
const sections = (control: Control, now: number): ReadonlyArray<NbdSection> =>
  control.file.map(({ name, path, read_only }) => ({
    ...sectionOf(name, path, read_only),
    device: path === null ? null : (leadsTo(control, path, now)?.identity ?? null),
    fenced_at: control.fenced.get(name) ?? null
  }))

const available = (control: Control): Effect.Effect<void, NbdUnavailable> =>
  control.broken === null ? Effect.void : Effect.fail(new NbdUnavailable({ detail: control.broken }))

/** Every device is checked right before the load, as it must be on a real server. */
const checkDevice = (control: Control, wanted: WantedExport, now: number): string | null => {
  const device = leadsTo(control, wanted.path, now)
  if (device === null) return `${wanted.path} leads nowhere`
  if (device.identity !== wanted.device) return `${wanted.path} is ${device.identity}, planned was ${wanted.device}`
  return device.size === wanted.size ? null : `${wanted.path} has ${device.size} bytes, planned were ${wanted.size}`
}

/** Foreign sections stay where they are, ours follow in the order asked. */
const rendered = (file: ReadonlyArray<Written>, request: LoadRequest): Array<Written> => {
  const ours = new Set([...request.set.map((one) => one.name), ...request.drop])
  const kept = file.filter((section) => !ours.has(section.name))
  return [...kept, ...request.set.map(({ name, path, read_only }) => ({ name, path, read_only }))]
}

const load = (
  control: Control,
  request: LoadRequest,
  now: number
): Effect.Effect<void, NbdUnavailable | PreconditionLost> =>
  Effect.gen(function* () {
    yield* available(control)
    const problem = request.set.map((wanted) => checkDevice(control, wanted, now)).find((one) => one !== null)
    if (problem !== undefined) return yield* new PreconditionLost({ detail: problem })
    if (control.state === "foreign") {
      return yield* new NbdUnavailable({ detail: "another program listens on the port" })
    }
    const next = rendered(control.file, request)
    const same = JSON.stringify(next) === JSON.stringify(control.file)
    const whole = control.loaded && control.damaged.size === 0
    if (same && whole && control.state === "running") return
    if (control.state === "not_installed" && request.set.length > 0) {
      return yield* new NbdUnavailable({ detail: "no NBD server is installed" })
    }
    control.file = next
    if (control.state === "not_installed") return
    control.loads += 1
    revive(control)
  })

/** The port on a simulated server. Like a real adapter it asks the gate between preparing a load and carrying it out. */
export const layer = (control: Control): Layer.Layer<Nbd, never, Gate> =>
  Layer.effect(
    Nbd,
    Effect.gen(function* () {
      const gate = yield* Gate
      return {
        observe: (names) =>
          available(control).pipe(
            Effect.andThen(Clock.currentTimeMillis),
            Effect.map((now) => reading(control, names, now))
          ),
        load: (request) =>
          gate.check.pipe(
            Effect.andThen(Clock.currentTimeMillis),
            Effect.andThen((now) => load(control, request, now))
          ),
        sections: available(control).pipe(
          Effect.andThen(Clock.currentTimeMillis),
          Effect.map((now) => sections(control, now))
        ),
        fence: (name) =>
          Effect.gen(function* () {
            yield* available(control)
            yield* gate.check
            const now = yield* Clock.currentTimeMillis
            if (!control.fenced.has(name)) change(control, () => control.fenced.set(name, now))
          }),
        release: (name) =>
          Effect.gen(function* () {
            yield* available(control)
            yield* gate.check
            if (control.fenced.has(name)) change(control, () => control.fenced.delete(name))
          }),
        endClients: (device) =>
          Effect.gen(function* () {
            yield* available(control)
            yield* gate.check
            const clients = control.holders.filter((holder) => holder.device === device && holder.peer !== null)
            for (const { pid } of clients) leave(control, pid)
            return clients.length
          }),
        pokes: Stream.asyncPush<void>(
          (emit) =>
            Effect.acquireRelease(
              Effect.sync(() => {
                const listener = () => emit.single(undefined)
                control.listeners.add(listener)
                return listener
              }),
              (listener) => Effect.sync(() => control.listeners.delete(listener))
            ),
          { bufferSize: 1, strategy: "sliding" }
        )
      }
    })
  )

/** For a sandbox without an NBD server installed: paths lead into its directory tree. */
export const layerFiles = (options: Omit<Options, "resolve">): Layer.Layer<Nbd, never, Gate> =>
  Layer.unwrapEffect(Effect.sync(() => layer(make({ ...options, resolve: Guest.resolveFile }))))
