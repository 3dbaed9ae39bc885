import { Cause, Clock, Effect, Layer, Ref, Schedule, Stream } from "effect"
import { createHash } from "node:crypto"
import { open, readdir, readFile, stat } from "node:fs/promises"
import { dirname, join } from "node:path"
import { Gate } from "../../reconciler/Gate.ts"
import { type LoadRequest, Nbd, type WantedExport } from "../../reconciler/Nbd.ts"
import { type GateClosed, Misconfigured, NbdUnavailable, PreconditionLost } from "../../schema/Errors.ts"
import type { Holder, NbdReading, NbdSection } from "../../schema/Inventory.ts"
import * as NbdConfig from "../../schema/NbdConfig.ts"
import type { NbdSettings } from "../../schema/Settings.ts"
import * as Files from "../Devices/Files.ts"
import * as Identity from "../Devices/Identity.ts"
import * as Watch from "../Devices/Watch.ts"
import * as Acl from "./Acl.ts"
import * as ConfigFile from "./ConfigFile.ts"
import * as Main from "./Main.ts"
import * as Probe from "./Probe.ts"
import * as Processes from "./Processes.ts"

export interface Options {
  readonly nbd: NbdSettings
  readonly state_dir: string
  readonly by_id_dir: string
  readonly device_kind: "block" | "file"
  /** End the server and its transfers when the layer's scope closes: for `demo` and the sandbox only. */
  readonly stop_on_exit: boolean
  readonly program_dirs?: ReadonlyArray<string>
  readonly disk?: ConfigFile.Disk
}

/**
 * Driving nbd-server without any SIGHUP: the file is replaced whole, then the main process, and only a GO handshake is
 * believed. What the server really does, and why: heap damage on every SIGHUP in 3.20–3.24, and a SIGHUP only ever adds.
 */
export const layer = (options: Options): Layer.Layer<Nbd, Misconfigured, Gate> =>
  Layer.scoped(
    Nbd,
    Effect.gen(function* () {
      yield* checked(options)
      const world = yield* worldOf(options)
      if (options.stop_on_exit) yield* Effect.addFinalizer(() => Main.stop(world.control))
      // One at a time: a look in the middle of a replacement would report what nobody wants to know.
      const lock = yield* Effect.makeSemaphore(1)
      const alone = lock.withPermits(1)
      return {
        observe: (names) => alone(observe(world, names)),
        load: (request) => alone(load(world, request)),
        fence: (name) => alone(fencing(name, Acl.deny(world.acl, name))),
        release: (name) => alone(fencing(name, Acl.admit(world.acl, name))),
        pokes: pokes(world)
      }
    })
  )

/** All that the operations need: where things are, and the little that is remembered between them. */
interface World {
  readonly options: Options
  readonly gate: Gate["Type"]
  readonly disk: ConfigFile.Disk
  readonly control: Main.Control
  readonly acl: Acl.Acl
  readonly sentinel: string
  /** The last text that a GO has proven to be served; what a broken file is rendered anew from. */
  readonly verified_copy: string
  readonly memory: Ref.Ref<Memory>
}

interface Memory {
  /** A write failed half-way: whether the file that is there survives a crash is not known, so it is written again. */
  readonly unsure: boolean
  readonly saved: string | null
  /** Exports that a main would not serve right after its start: replacing it once more for them changes nothing. */
  readonly hopeless: { readonly main: string; readonly names: ReadonlyArray<string> } | null
  readonly version: { readonly key: string; readonly value: string } | null
}

const worldOf = (options: Options): Effect.Effect<World, never, Gate> =>
  Effect.gen(function* () {
    const { nbd, state_dir } = options
    const disk = options.disk ?? ConfigFile.disk
    const control: Main.Control = {
      place: { host: nbd.host, port: nbd.port, config: nbd.config },
      start: nbd.start,
      pid_file: join(state_dir, "nbd-server.pid"),
      log_file: join(state_dir, "nbd-server.log"),
      program_dirs: options.program_dirs ?? Main.PROGRAM_DIRS
    }
    return {
      options,
      gate: yield* Gate,
      disk,
      control,
      acl: { disk, dir: nbd.acl_dir, allow: [...new Set([...nbd.allow, ...probesFrom(nbd.host)])] },
      sentinel: join(state_dir, SENTINEL_FILE),
      verified_copy: join(state_dir, "nbd-config.verified"),
      memory: yield* Ref.make<Memory>({ unsure: false, saved: null, hopeless: null, version: null })
    }
  })

/** Our own handshakes must be admitted too, else nothing can be proven. The kernel sends them from the address they go to. */
const probesFrom = (host: string): ReadonlyArray<string> => (host.startsWith("127.") ? [host, "127.0.0.1"] : [host])

const SENTINEL_FILE = "sentinel.img"
const SENTINEL_BYTES = 1024 * 1024

/** Settings that could only lead to a file that is refused later, or to a wrong one, stop the start. */
const checked = ({ nbd, state_dir }: Options): Effect.Effect<void, Misconfigured> => {
  const problems = [
    { key: "NBD_HOST", value: nbd.host, problem: NbdConfig.addressProblem(nbd.host), example: "127.0.0.1" },
    ...nbd.allow.map((value) => {
      return { key: "NBD_ALLOW", value, problem: NbdConfig.addressProblem(value), example: "127.0.0.1,10.0.0.7" }
    }),
    ...[
      { key: "NBD_CONFIG", value: nbd.config, example: "/etc/nbd-server/config-base" },
      { key: "NBD_ACL_DIR", value: nbd.acl_dir, example: "/etc/nbd-server/acl" },
      { key: "STATE_DIR", value: join(state_dir, SENTINEL_FILE), example: "/var/lib/volumed" }
    ].map((one) => ({ ...one, problem: NbdConfig.pathProblem(one.value) })),
    { key: "NBD_START", value: nbd.start, problem: startProblem(nbd.start), example: "unit:nbd-server.service" }
  ].flatMap(({ key, value, problem, example }) =>
    problem === null ? [] : [{ key, problem: `${JSON.stringify(value.slice(0, 200))} ${problem}`, example }]
  )
  return problems.length === 0 ? Effect.void : new Misconfigured({ problems })
}

const startProblem = (start: string): string | null =>
  start === "auto" || start === "off" || /^unit:[A-Za-z0-9_][A-Za-z0-9:_.@-]{0,200}$/.test(start)
    ? null
    : "is neither auto, off nor unit:NAME"

/** The file, and the document that the next load will start from. */
interface Base {
  readonly file: ConfigFile.Reading
  readonly document: NbdConfig.Document | null
}

const readBase = (world: World): Effect.Effect<Base> =>
  Effect.gen(function* () {
    const file = yield* ConfigFile.read(world.disk, world.options.nbd.config)
    if (file._tag === "Sound") return { file, document: file.document }
    if (file._tag !== "Broken") return { file, document: null }
    const copy = yield* ConfigFile.read(world.disk, world.verified_copy)
    return { file, document: copy._tag === "Sound" ? copy.document : null }
  })

/** The file's generation marker, if the file is as we sealed it: a hand's change makes the marker prove nothing. */
const markerOf = (file: ConfigFile.Reading): string | null => {
  const generation = file._tag === "Sound" ? NbdConfig.generation(file.document) : null
  return generation !== null && hashOf(generation.body).startsWith(generation.hash) ? generation.marker : null
}

const hashOf = (text: string): string => createHash("sha256").update(text, "latin1").digest("hex")

const observe = (world: World, names: ReadonlyArray<string>): Effect.Effect<NbdReading, NbdUnavailable> =>
  Effect.gen(function* () {
    const { nbd } = world.options
    const base = yield* readBase(world)
    const marker = markerOf(base.file)
    const look = yield* Probe.look(world.control.place, marker, [...new Set(names)])
    const sections = sectionsOf(base.document)
    const holders = yield* holdersOf(world, sections, look)
    const { version, installed } = yield* versionOf(world)
    const judged = base.document === null ? null : NbdConfig.judgeGeneric(base.document, nbd)
    return {
      engine: "nbd-server",
      version,
      server: {
        state: look.server === "absent" && !installed ? "not_installed" : look.server,
        pid: look.pid,
        problem: sentence(look.problem, ...remarksOn(base, judged?.remarks ?? []), ...staleness(world, look))
      },
      host: nbd.host,
      port: nbd.port,
      sections,
      config_problem: base.file._tag === "Unusable" ? base.file.problem : about(world, judged?.conflict ?? null),
      loaded: look.loaded,
      verifications: look.verifications,
      holders
    } satisfies NbdReading
  })

const sentence = (...parts: ReadonlyArray<string | null>): string | null => {
  const said = parts.filter((part) => part !== null)
  return said.length === 0 ? null : said.join("; ")
}

const about = (world: World, problem: string | null): string | null =>
  problem === null ? null : `${world.options.nbd.config}: ${problem}`

const remarksOn = (base: Base, generic: ReadonlyArray<string>): ReadonlyArray<string> => {
  const { file } = base
  if (file._tag === "Broken") return [`the file is broken (${file.problem}) and will be kept aside and rendered anew`]
  if (file._tag !== "Sound") return []
  const twice = file.document.duplicates.map((name) => `[${display(name)}] stands in the file more than once`)
  const bom = file.document.bom ? ["the file begins with a byte order mark, with which nbd-server may not start"] : []
  return [...bom, ...twice, ...generic]
}

const staleness = (world: World, look: Probe.Look): ReadonlyArray<string> =>
  look.server === "running" && !look.loaded && world.options.nbd.start === "off"
    ? ["NBD_START is off and the server runs another version of the file: restart it"]
    : []

const display = (text: string): string => Buffer.from(text, "latin1").toString("utf8")

/** A name as it is shown, in the file's bytes. */
const written = (text: string): string => Buffer.from(text, "utf8").toString("latin1")

const sectionsOf = (document: NbdConfig.Document | null): ReadonlyArray<NbdSection> => {
  const names = new Set(document?.sections.map((section) => section.name))
  return [...names].flatMap((name) => {
    if (document === null || name === "generic" || NbdConfig.isHousekeeping(name)) return []
    const path = NbdConfig.valueOf(document, name, "exportname")
    return [
      {
        name: display(name),
        path: path === null ? null : display(path),
        read_only: NbdConfig.flagOf(document, name, "readonly")
      }
    ]
  })
}

/** Of every disk that has a by-id link or stands in the file, and of what else may be one. */
const holdersOf = (
  world: World,
  sections: ReadonlyArray<NbdSection>,
  look: Probe.Look
): Effect.Effect<ReadonlyArray<Holder>> =>
  Effect.gen(function* () {
    const { by_id_dir } = world.options
    const links = yield* Effect.orElseSucceed(
      Files.attempt(() => readdir(by_id_dir)),
      () => []
    )
    const paths = [...links.map((name) => join(by_id_dir, name)), ...sections.flatMap((s) => s.path ?? [])]
    const nodes = yield* Effect.forEach(new Set(paths), nodeAt, { concurrency: 16 })
    const identities = new Set(nodes.flatMap((node) => node?.identity ?? []))
    const sentinel = (yield* nodeAt(world.sentinel))?.identity
    const holdings = yield* Processes.holders(identities)
    const foreign = holdings.filter(
      ({ process, device }) => process.pid !== look.pid && device !== sentinel && !look.own.has(Probe.keyOf(process))
    )
    return foreign.map(({ process, device, server, peer }) => {
      const since = server ? Processes.startedAt(process) : null
      return {
        pid: process.pid,
        command: process.command,
        device,
        peer,
        since: since === null ? null : new Date(since).toISOString()
      }
    })
  })

const versionOf = (world: World) =>
  Effect.gen(function* () {
    const { key, read } = yield* Main.version(world.control)
    const { version: known } = yield* Ref.get(world.memory)
    if (known?.key === key) return { version: known.value, installed: key !== "" }
    const value = yield* read
    if (value !== null) yield* Ref.update(world.memory, (memory) => ({ ...memory, version: { key, value } }))
    return { version: value, installed: key !== "" }
  })

interface Node {
  readonly identity: string
  /** Bytes; null where the kernel does not say. */
  readonly size: number | null
  readonly kind: "block" | "file"
}

/** What a path leads to, links followed, as long as it can be a disk. */
const nodeAt = (path: string): Effect.Effect<Node | null> =>
  Effect.gen(function* () {
    const stats = yield* Files.attempt(() => stat(path, { bigint: true }))
    const identity = Identity.ofStats(stats)
    if (identity === null) return null
    if (stats.isFile()) return { identity, size: Number(stats.size), kind: "file" } satisfies Node
    const sectors = yield* Files.attempt(() => readFile(`/sys/dev/block/${identity}/size`, "latin1"))
    const size = /^\d{1,13}$/.test(sectors.trim()) ? Number(sectors) * 512 : null
    return { identity, size, kind: "block" } satisfies Node
  }).pipe(Effect.orElseSucceed(() => null))

const load = (
  world: World,
  request: LoadRequest
): Effect.Effect<void, NbdUnavailable | GateClosed | PreconditionLost> =>
  Effect.gen(function* () {
    yield* Effect.forEach(request.set, (wanted) => stillThere(world, wanted), { concurrency: 8, discard: true })
    const base = yield* readBase(world)
    if (base.file._tag === "Unusable") return yield* new NbdUnavailable({ detail: base.file.problem })
    yield* approachable(world)
    const { text, marker } = yield* rendered(world, request, base)
    yield* world.gate.check
    yield* makeSentinel(world)
    yield* admitNew(world, request, base)
    yield* store(world, base, text)
    yield* Effect.forEach(leaving(request), (name) => Acl.deny(world.acl, name), { concurrency: 8, discard: true })
    yield* serve(world, request.set, marker)
    yield* saveCopy(world, text)
  })

/** Dropped exports that can have an authfile of ours: a name that somebody else chose may hold anything, even a path. */
const leaving = (request: LoadRequest): ReadonlyArray<string> =>
  request.drop.filter(
    (name) => NbdConfig.nameProblem(name) === null && !request.set.some((wanted) => wanted.name === name)
  )

/** The by-id path must still mean the very device that was planned: nothing else may get this export's name. */
const stillThere = (world: World, wanted: WantedExport): Effect.Effect<void, PreconditionLost> =>
  Effect.gen(function* () {
    const lost = (detail: string) => new PreconditionLost({ detail: `${wanted.path} ${detail}` })
    if (dirname(wanted.path) !== world.options.by_id_dir) {
      return yield* lost(`of ${wanted.name} is not in ${world.options.by_id_dir}`)
    }
    const node = yield* nodeAt(wanted.path)
    if (node === null || node.kind !== world.options.device_kind) return yield* lost("leads to no disk any more")
    if (node.identity !== wanted.device) return yield* lost(`is now ${node.identity}, not ${wanted.device}`)
    if (node.size !== wanted.size) return yield* lost(`now has ${node.size ?? "unknown"} bytes, not ${wanted.size}`)
  })

/** Before anything is written: is there a server that we can bring to serve the file? */
const approachable = (world: World): Effect.Effect<void, NbdUnavailable> =>
  Effect.gen(function* () {
    const listener = yield* Processes.listener(world.control.place)
    if (listener._tag === "Foreign") return yield* new NbdUnavailable({ detail: listener.problem })
    if (listener._tag === "Main" || world.options.nbd.start !== "auto") return
    const path = yield* Main.program(world.control, "nbd-server")
    if (path === null) return yield* Main.notInstalled("nbd-server")
  })

const rendered = (world: World, request: LoadRequest, base: Base) =>
  Effect.gen(function* () {
    const { acl, sentinel, options } = world
    const rendering: NbdConfig.Rendering = {
      base: base.document,
      listen: { host: options.nbd.host, port: options.nbd.port },
      sentinel,
      exports: request.set.map(({ name, path, read_only }) => {
        return { name, path, read_only, authfile: Acl.pathOf(acl, name) }
      }),
      drop: request.drop.map(written)
    }
    const result = NbdConfig.render(rendering)
    if (result._tag === "Refused") {
      return yield* new NbdUnavailable({ detail: `${options.nbd.config}: ${result.problems.slice(0, 5).join("; ")}` })
    }
    const hash = hashOf(result.body)
    const text = NbdConfig.seal(result.body, hash, sentinel)
    const wrong = NbdConfig.disagreement(text, rendering)
    if (wrong !== null)
      return yield* new NbdUnavailable({ detail: `the rendered file is not what was meant: ${wrong}` })
    return { text, marker: NbdConfig.markerName(hash) }
  })

/** A file of zeros that the sentinel and the marker export: made by us, never a volume. */
const makeSentinel = (world: World): Effect.Effect<void, NbdUnavailable> =>
  Effect.acquireUseRelease(
    Files.attempt(() => open(world.sentinel, "a", 0o644)),
    (file) => Files.attempt(() => file.truncate(SENTINEL_BYTES)),
    (file) => Effect.ignore(Files.attempt(() => file.close()))
  ).pipe(Effect.mapError(({ cause }) => new NbdUnavailable({ detail: `${world.sentinel} cannot be made`, cause })))

/**
 * An export admits its clients before its section is there. One that is in the file already and denies everybody has
 * been fenced: only `release` lifts that.
 */
const admitNew = (world: World, request: LoadRequest, base: Base): Effect.Effect<void, NbdUnavailable> =>
  Effect.forEach(
    request.set,
    ({ name }) =>
      Effect.gen(function* () {
        const path = base.document === null ? null : NbdConfig.valueOf(base.document, name, "authfile")
        const fenced = path === Acl.pathOf(world.acl, name) && (yield* Acl.denies(world.acl, name))
        if (!fenced) yield* Acl.admit(world.acl, name)
      }),
    { concurrency: 8, discard: true }
  )

const store = (world: World, base: Base, text: string): Effect.Effect<void, NbdUnavailable | GateClosed> =>
  Effect.gen(function* () {
    const { file } = base
    const { config } = world.options.nbd
    const { unsure } = yield* Ref.get(world.memory)
    const now = file._tag === "Sound" || file._tag === "Broken" ? file.text : null
    if (now === text && !unsure) return
    if (file._tag === "Broken") {
      const time = new Date(yield* Clock.currentTimeMillis).toISOString().replace(/[:.]/g, "-")
      yield* ConfigFile.keepAside(world.disk, config, `broken-${time}`)
    }
    if (file._tag === "Absent") yield* ConfigFile.makeDirectory(world.disk, dirname(config))
    yield* Ref.update(world.memory, (memory) => ({ ...memory, unsure: true }))
    yield* ConfigFile.write(world.disk, { path: config, text, mode: 0o640, expected: now, permit: world.gate.check })
    yield* Ref.update(world.memory, (memory) => ({ ...memory, unsure: false }))
  })

/** Does nothing where the main already serves exactly this file, every export of it. */
const serve = (
  world: World,
  set: ReadonlyArray<WantedExport>,
  marker: string
): Effect.Effect<void, NbdUnavailable | GateClosed> =>
  Effect.gen(function* () {
    const { control, memory } = world
    const before = yield* unserved(world, set, marker)
    const { hopeless } = yield* Ref.get(memory)
    const known = hopeless !== null && hopeless.main === before.main ? hopeless.names : []
    if (before.loaded && before.names.every((name) => known.includes(name))) return
    if (control.start === "off") {
      return yield* new NbdUnavailable({ detail: "the file is written, but NBD_START is off: restart nbd-server" })
    }
    yield* world.gate.check
    yield* Main.replace(control)
    yield* Main.untilServed(control, marker)
    const after = yield* unserved(world, set, marker)
    yield* Ref.update(memory, (m) => ({
      ...m,
      hopeless: after.main === null ? null : { main: after.main, names: after.names }
    }))
  })

/** A main that serves the marker may still deny or drop single exports: damaged memory looks like that (N7). */
const unserved = (world: World, set: ReadonlyArray<WantedExport>, marker: string) =>
  Effect.gen(function* () {
    const { place } = world.control
    const first = yield* Probe.look(place, marker, [])
    const main = first.pid === null ? null : Processes.find(first.pid)
    if (!first.loaded || main === null) return { loaded: false, main: null, names: [] }
    const { verifications } = yield* Probe.look(place, marker, namesOf(set))
    const missing = set.filter(({ size }, index) => {
      const verification = verifications[index]
      return verification?.outcome !== "served" || verification.size !== size
    })
    const damaged = yield* Effect.filter(missing, ({ name }) => Effect.negate(Acl.denies(world.acl, name)))
    return { loaded: true, main: Probe.keyOf(main), names: namesOf(damaged) }
  })

const namesOf = (set: ReadonlyArray<WantedExport>): ReadonlyArray<string> => set.map(({ name }) => name)

/** Only a convenience for a later repair, so that its failure is logged and does not undo the load. */
const saveCopy = (world: World, text: string): Effect.Effect<void> =>
  Effect.gen(function* () {
    const { saved } = yield* Ref.get(world.memory)
    if (saved === text) return
    const now = yield* ConfigFile.readText(world.disk, world.verified_copy)
    if (now._tag !== "Present" || now.text !== text) {
      const write = { path: world.verified_copy, text, mode: 0o640, expected: undefined, permit: Effect.void }
      yield* ConfigFile.write(world.disk, write)
    }
    yield* Ref.update(world.memory, (memory) => ({ ...memory, saved: text }))
  }).pipe(
    Effect.catchAll((error) => Effect.logWarning("the verified NBD configuration was not kept", Cause.fail(error)))
  )

const fencing = (name: string, change: Effect.Effect<void, NbdUnavailable>): Effect.Effect<void, NbdUnavailable> => {
  const problem = NbdConfig.nameProblem(name)
  return problem === null
    ? change
    : new NbdUnavailable({ detail: `the export name ${JSON.stringify(name.slice(0, 120))} ${problem}` })
}

const LISTENER_POLL = "2 seconds"

/** The kernel tells of changes to the file; that a server came or went is only to be seen by looking. */
const pokes = (world: World): Stream.Stream<void> => {
  const { host, port, config } = world.control.place
  const listeners = Stream.repeatEffectWithSchedule(
    Effect.sync(() => [...Processes.listening(host, port)].join()),
    Schedule.spaced(LISTENER_POLL)
  ).pipe(Stream.changes, Stream.drop(1), Stream.as(undefined))
  return Stream.merge(Watch.changes(dirname(config)), listeners)
}
