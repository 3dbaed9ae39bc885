import { Effect, Layer, Ref, Schedule, Stream } from "effect"
import { readdir } from "node:fs/promises"
import { dirname, join } from "node:path"
import { Gate } from "../../reconciler/Gate.ts"
import { Nbd } from "../../reconciler/Nbd.ts"
import { type GateClosed, Misconfigured, NbdUnavailable } from "../../schema/Errors.ts"
import type { Holder, NbdReading, NbdSection } from "../../schema/Inventory.ts"
import * as NbdClaim from "../../schema/NbdClaim.ts"
import * as NbdConfig from "../../schema/NbdConfig.ts"
import * as NbdName from "../../schema/NbdName.ts"
import * as Files from "../Devices/Files.ts"
import * as Watch from "../Devices/Watch.ts"
import * as Acl from "./Acl.ts"
import { load } from "./Load.ts"
import * as Main from "./Main.ts"
import * as Node from "./Node.ts"
import * as Pin from "./Pin.ts"
import * as Pinning from "./Pinning.ts"
import * as Probe from "./Probe.ts"
import * as Processes from "./Processes.ts"
import * as World from "./World.ts"
import * as Written from "./Written.ts"

/**
 * Driving nbd-server without any SIGHUP: the file is replaced whole, then the main process, and only a GO handshake is
 * believed. What the server really does, and why: heap damage on every SIGHUP in 3.20–3.24, and a SIGHUP only ever adds.
 */
export const layer = (options: World.Options): Layer.Layer<Nbd, Misconfigured, Gate> =>
  Layer.scoped(
    Nbd,
    Effect.gen(function* () {
      yield* checked(options)
      const world = yield* World.make(options)
      if (options.stop_on_exit) {
        yield* Effect.addFinalizer(() => Effect.sync(() => Pin.stop(options)))
        yield* Effect.addFinalizer(() => Main.stop(World.controlOf(world, NbdConfig.judgeGeneric(null, options.nbd))))
      }
      // One at a time: a look in the middle of a replacement would report what nobody wants to know.
      const lock = yield* Effect.makeSemaphore(1)
      const alone = lock.withPermits(1)
      yield* Pinning.keep(world, alone)
      return {
        observe: (names) => alone(observe(world, names)),
        load: (request) => alone(load(world, request)),
        sections: sections(world),
        fence: (name) => fence(world, name),
        release: (name) => alone(release(world, name)),
        endClients: (device) => alone(endClients(world, device)),
        pokes: pokes(world)
      }
    })
  )

/** Settings that could only lead to a file that is refused later, or to a wrong one, stop the start. */
const checked = ({ nbd, state_dir }: World.Options): Effect.Effect<void, Misconfigured> => {
  const problems = [
    { key: "NBD_HOST", value: nbd.host, problem: NbdConfig.addressProblem(nbd.host), example: "127.0.0.1" },
    ...nbd.allow.map((value) => {
      return { key: "NBD_ALLOW", value, problem: NbdConfig.addressProblem(value), example: "127.0.0.1,10.0.0.7" }
    }),
    ...[
      { key: "NBD_CONFIG", value: nbd.config, example: "/etc/nbd-server/config-base" },
      { key: "NBD_ACL_DIR", value: nbd.acl_dir, example: "/etc/nbd-server/acl" },
      { key: "STATE_DIR", value: join(state_dir, World.SENTINEL_FILE), example: "/var/lib/volumed" }
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

const observe = (world: World.World, names: ReadonlyArray<string>): Effect.Effect<NbdReading> =>
  Effect.gen(function* () {
    const { nbd } = world.options
    const written = yield* Written.read(world)
    const { conflict, listen } = written.judgement
    const control = World.controlOf(world, written.judgement)
    yield* Ref.update(world.memory, (memory) => ({ ...memory, place: control.place }))
    const marker = Written.markerOf(written)
    const look = yield* Probe.look(control.place, marker, [...new Set(names)], world.silence)
    const older = look.server === "running" && marker !== null && !look.loaded
    const standing = yield* Written.sections(
      world,
      written,
      Written.isMoving(written) || (older && nbd.start !== "off")
    )
    const sentinel = World.sentinelAt(world, written.judgement)
    const { holders, sections } = yield* onDisks(world, standing, sentinel, look, Pin.named(written.file))
    const { version, installed } = yield* versionOf(world, control)
    return {
      engine: "nbd-server",
      version,
      server: {
        state: look.server === "absent" && !installed ? "not_installed" : look.server,
        pid: look.pid,
        problem: sentence(
          look.problem,
          ...Written.remarks(written),
          ...staleness(nbd.start, look),
          ...(yield* exposure(world, written, control, look))
        )
      },
      host: listen.host,
      port: listen.port,
      read_only_port: listen.port,
      sections,
      config_problem: problemOf(written.file, nbd.config, conflict ?? unpinnable(world, written, look)),
      narrowings: narrowingsOf(written, nbd),
      loaded: look.loaded,
      verifications: look.verifications,
      holders
    } satisfies NbdReading
  })

const sentence = (...parts: ReadonlyArray<string | null>): string | null => {
  const said = parts.filter((part) => part !== null)
  return said.length === 0 ? null : said.join("; ")
}

const problemOf = (file: Written.Written["file"], config: string, conflict: string | null): string | null => {
  if (file._tag === "Unusable") return file.problem
  return conflict === null ? null : `${config}: ${conflict}`
}

const unpinnable = ({ options }: World.World, { judgement }: Written.Written, { pid }: Probe.Look): string | null =>
  options.nbd.pin ? Pin.refusal(judgement, pid) : null

const narrowingsOf = ({ document, includes }: Written.Written, nbd: World.Options["nbd"]): ReadonlyArray<string> =>
  document === null
    ? []
    : NbdClaim.narrowings(
        document,
        includes.files.map((file) => file.document),
        nbd
      )

const staleness = (start: string, look: Probe.Look): ReadonlyArray<string> =>
  look.server === "running" && !look.loaded && start === "off"
    ? ["NBD_START is off and the server runs another version of the file: restart it"]
    : []

/** So many connections without a chosen export are somebody's mistake or attack: at about 1,000 nbd-server dies. */
const WAITING_MAX = 64

/** Where the server is reached and should not be, and who may reach what they should not (N13). */
const exposure = (world: World.World, written: Written.Written, { place }: Main.Control, look: Probe.Look) =>
  Effect.gen(function* () {
    const hidden = yield* Acl.hiddenFrom(written.acl, written.judgement.user)
    const strays = yield* Main.strays(place)
    const declared = NbdConfig.endpoints(written.document, world.options.nbd)
    const listens = look.pid === null || declared === null ? [] : Processes.listens(look.pid)
    const wide = listens.filter((at) => declared !== null && !declared.includes(at))
    return [
      ...(hidden === null ? [] : [hidden]),
      ...(wide.length === 0 ? [] : [`the server listens on ${wide.join(", ")}, which its file does not say`]),
      ...strays.map(
        ({ process, listens }) =>
          `another nbd-server (pid ${process.pid}) serves this file on ${listens.join(", ")}, and the next load ends it`
      ),
      ...(look.waiting < WAITING_MAX
        ? []
        : [`${look.waiting} connections have chosen no export: close the port to them`])
    ]
  })

/** What the sections lead to, and who has that open: every disk with a by-id link or a section, and what else may be one. */
const onDisks = (
  world: World.World,
  standing: ReadonlyArray<Written.Found>,
  sentinel: string,
  look: Probe.Look,
  pinned: ReadonlySet<string> | null
) =>
  Effect.gen(function* () {
    const { by_id_dir } = world.options
    const links = yield* Effect.orElseSucceed(
      Files.attempt(() => readdir(by_id_dir)),
      () => []
    )
    const paths = [...links.map((name) => join(by_id_dir, name)), ...standing.flatMap(({ leads }) => leads ?? [])]
    const nodes = new Map(
      yield* Effect.forEach(new Set(paths), (path) => Effect.map(Node.at(path), (node) => [path, node] as const), {
        concurrency: 16
      })
    )
    const sections = standing.map(({ leads, section }) =>
      leads === null ? section : { ...section, device: nodes.get(leads)?.identity ?? null }
    )
    const linked = [...nodes.values()].flatMap((node) => node?.identity ?? [])
    const identities = new Set([...linked, ...sections.flatMap(({ device }) => device ?? [])])
    return { sections, holders: yield* holdersOf(world, sentinel, identities, look, pinned) }
  })

const holdersOf = (
  world: World.World,
  housekeeping: string,
  identities: ReadonlySet<string>,
  look: Probe.Look,
  pinned: ReadonlySet<string> | null
): Effect.Effect<ReadonlyArray<Holder>> =>
  Effect.gen(function* () {
    const sentinel = (yield* Node.at(housekeeping))?.identity
    const holdings = yield* Processes.holders(identities)
    // A process that holds an export's disk open for it goes with the export; one that is left over is in its disk's way.
    const isPin = (pid: number) => {
      const pin = Pin.find(world.options, pid)
      return pin !== null && (pinned === null || pinned.has(pin.descriptor))
    }
    const foreign = holdings.filter(
      ({ process, device }) =>
        process.pid !== look.pid && device !== sentinel && !look.own.has(Probe.keyOf(process)) && !isPin(process.pid)
    )
    return foreign.map(Processes.holderOf)
  })

const versionOf = (world: World.World, control: Main.Control) =>
  Effect.gen(function* () {
    const { key, read } = yield* Main.version(control)
    const { version: known } = yield* Ref.get(world.memory)
    if (known?.key === key) return { version: known.value, installed: key !== "" }
    const value = yield* read
    if (value !== null) yield* Ref.update(world.memory, (memory) => ({ ...memory, version: { key, value } }))
    return { version: value, installed: key !== "" }
  })

const fence = (world: World.World, name: string): Effect.Effect<void, NbdUnavailable | GateClosed> =>
  Effect.gen(function* () {
    yield* named(name)
    yield* world.gate.check
    const { place } = yield* Ref.get(world.memory)
    yield* world.authfile(name).withPermits(1)(Acl.deny(World.aclAt(world, place.host), name))
  })

/** What has left the file meanwhile stays shut: a main that is not replaced yet would serve it on. */
const release = (world: World.World, name: string): Effect.Effect<void, NbdUnavailable | GateClosed> =>
  Effect.gen(function* () {
    yield* named(name)
    yield* world.gate.check
    const written = yield* Written.read(world)
    if (Written.standing(written, NbdName.bytesOf(name))?.ours !== true) return
    yield* world.authfile(name).withPermits(1)(Acl.admit(written.acl, name))
  })

const named = (name: string): Effect.Effect<void, NbdUnavailable> => {
  const problem = NbdName.claimProblem(name)
  return problem === null
    ? Effect.void
    : new NbdUnavailable({ detail: `the export name ${JSON.stringify(name.slice(0, 120))} ${problem}` })
}

/** The processes that serve clients of this device, of earlier mains too; the main holds no device. */
const endClients = (world: World.World, device: string): Effect.Effect<number, GateClosed> =>
  Effect.gen(function* () {
    const { config } = world.options.nbd
    const holdings = yield* Processes.holders(new Set([device]))
    const clients = holdings.filter((one) => one.server && one.peer !== null && one.device === device)
    yield* world.gate.check
    return clients.filter((client) => Processes.endClient(client, config)).length
  })

const sections = (world: World.World): Effect.Effect<ReadonlyArray<NbdSection>> =>
  Effect.gen(function* () {
    const written = yield* Written.read(world)
    const standing = yield* Written.sections(world, written, false)
    return yield* Effect.forEach(standing, ({ leads, section }) =>
      leads === null
        ? Effect.succeed(section)
        : Effect.map(Node.at(leads), (node) => ({ ...section, device: node?.identity ?? null }))
    )
  })

const LISTENER_POLL = "2 seconds"

/** The kernel tells of changes to the file; that a server came or went is only to be seen by looking. */
const pokes = (world: World.World): Stream.Stream<void> => {
  const listeners = Stream.repeatEffectWithSchedule(
    Effect.map(Ref.get(world.memory), ({ place }) => [...Processes.listening(place.host, place.port)].join()),
    Schedule.spaced(LISTENER_POLL)
  ).pipe(Stream.changes, Stream.drop(1), Stream.as(undefined))
  const holders = Pinning.pokes(world)
  return Stream.mergeAll([Watch.changes(dirname(world.options.nbd.config)), listeners, holders], {
    concurrency: "unbounded"
  })
}
