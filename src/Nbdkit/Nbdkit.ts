import { Effect, Layer, Ref, Schedule, Stream } from "effect"
import { readdir } from "node:fs/promises"
import { join } from "node:path"
import * as Failpoint from "../../reconciler/Failpoint.ts"
import { Gate } from "../../reconciler/Gate.ts"
import { type LoadRequest, Nbd } from "../../reconciler/Nbd.ts"
import { type GateClosed, type Misconfigured, NbdUnavailable, PreconditionLost } from "../../schema/Errors.ts"
import type { Holder, NbdReading, NbdSection } from "../../schema/Inventory.ts"
import * as Files from "../Devices/Files.ts"
import * as Watch from "../Devices/Watch.ts"
import * as Node from "../Nbd/Node.ts"
import * as Processes from "../Nbd/Processes.ts"
import * as Clients from "./Clients.ts"
import * as Instance from "./Instance.ts"
import * as Links from "./Links.ts"
import * as Probe from "./Probe.ts"
import * as World from "./World.ts"

/**
 * Driving nbdkit: a link made, turned or removed is the whole change, and no process is ended for it. Read-only exports
 * are served by a second process on the next port.
 */
export const layer = (options: World.Options): Layer.Layer<Nbd, Misconfigured, Gate> =>
  Layer.scoped(
    Nbd,
    Effect.gen(function* () {
      const world = yield* World.make(options)
      if (options.stop_on_exit)
        yield* Effect.addFinalizer(() => Effect.forEach(world.pair, Instance.stop, { discard: true }))
      // One at a time: whoever looks at the clients must not see our own questions among them.
      const lock = yield* Effect.makeSemaphore(1)
      const alone = lock.withPermits(1)
      return {
        observe: (names) => alone(observe(world, names)),
        load: (request) => alone(load(world, request)),
        sections: sections(world),
        fence: (name) => fencing(world, name, true),
        release: (name) => fencing(world, name, false),
        endClients: (device) => alone(endClients(world, device)),
        pokes: pokes(world, alone)
      }
    })
  )

const observe = (world: World.World, names: ReadonlyArray<string>): Effect.Effect<NbdReading, NbdUnavailable> =>
  Effect.gen(function* () {
    const { nbd } = world.options
    const links = yield* Links.read(world.places)
    const sections = yield* sectionsOf(links)
    const holders = yield* holdersOf(world, sections)
    const [writable, read_only] = world.pair
    const asked = [yield* healthOf(writable), yield* healthOf(read_only)] as const
    const { installed, version } = yield* versionOf(world)
    return {
      engine: "nbdkit",
      version,
      server: serverOf(asked, installed),
      host: nbd.host,
      port: writable.port,
      read_only_port: read_only.port,
      sections,
      config_problem: yield* Links.problem(world.places),
      narrowings: [],
      loaded: asked.every(({ health }) => health._tag === "Running"),
      verifications: yield* Probe.verify(asked, links, names),
      holders
    } satisfies NbdReading
  })

const healthOf = (instance: Instance.Instance): Effect.Effect<Probe.Asked> =>
  Effect.map(Instance.health(instance), (health) => ({ instance, health }))

/** Both are one server. Where only one of them runs, it is not `absent`: that would say that nothing is served. */
const serverOf = (asked: readonly [Probe.Asked, Probe.Asked], installed: boolean): NbdReading["server"] => {
  const [{ health }] = asked
  const pid = "process" in health ? health.process.pid : null
  const problems = asked.flatMap((one) => problemOf(one) ?? [])
  const is = (tag: Instance.Health["_tag"]) => asked.filter((one) => one.health._tag === tag).length
  if (is("Running") === 2) return { state: "running", pid, problem: said(problems) }
  if (is("Foreign") > 0) return { state: "foreign", pid, problem: said(problems) }
  if (is("Absent") === 2) return { state: installed ? "absent" : "not_installed", pid, problem: null }
  return { state: "hung", pid, problem: said(problems) }
}

const said = (problems: ReadonlyArray<string>): string | null => (problems.length === 0 ? null : problems.join("; "))

const problemOf = ({ health, instance }: Probe.Asked): string | null => {
  switch (health._tag) {
    case "Absent":
      return `${Instance.describe(instance)} does not run`
    case "Foreign":
      return health.problem
    case "Hung": {
      const connections = Processes.connections(instance.port).length
      return `${health.problem}; the next load ends it with its ${connections} connections and starts it again`
    }
    case "Running":
      return Processes.program(health.process.pid)?.replaced === true
        ? `${Instance.describe(instance)} runs a program that was replaced since: restart it when nobody is connected`
        : null
  }
}

const versionOf = (world: World.World) =>
  Effect.gen(function* () {
    const { key, read } = yield* Instance.version(world.pair[0].program_dirs)
    const known = yield* Ref.get(world.version)
    if (known?.key === key) return { version: known.value, installed: key !== "" }
    const value = yield* read
    if (value !== null) yield* Ref.set(world.version, { key, value })
    return { version: value, installed: key !== "" }
  })

const sections = (world: World.World): Effect.Effect<ReadonlyArray<NbdSection>, NbdUnavailable> =>
  Effect.flatMap(Links.read(world.places), sectionsOf)

/** What the links lead to at this moment, each name once. */
const sectionsOf = (links: ReadonlyArray<Links.Link>): Effect.Effect<ReadonlyArray<NbdSection>> =>
  Effect.forEach(
    new Set(links.map(({ name }) => name)),
    (name) =>
      Effect.gen(function* () {
        const mine = links.filter((link) => link.name === name)
        // A crash between two steps may have left a name twice; what can be opened says more than what cannot.
        const link = mine.find(({ fenced }) => !fenced) ?? mine[0]
        const path = link?.path ?? null
        const node = path === null ? null : yield* Node.at(path)
        return {
          name,
          path,
          read_only: link?.read_only ?? false,
          file: null,
          device: node?.identity ?? null,
          obstacle: path === null ? "it is no link" : null,
          unfinished: mine.length === 1 ? null : "it stands in more than one directory of links",
          fenced_at: link?.fenced === true ? link.changed_at : null
        } satisfies NbdSection
      }),
    { concurrency: 16 }
  )

/** Who has a disk open that has a by-id link or an export, or that nbdkit itself has open. */
const holdersOf = (world: World.World, sections: ReadonlyArray<NbdSection>): Effect.Effect<ReadonlyArray<Holder>> =>
  Effect.gen(function* () {
    const { by_id_dir } = world.options
    const names = yield* Effect.orElseSucceed(
      Files.attempt(() => readdir(by_id_dir)),
      () => []
    )
    const nodes = yield* Effect.forEach(names, (name) => Node.at(join(by_id_dir, name)), { concurrency: 16 })
    const looks = yield* looksAt(world)
    const identities = new Set([
      ...nodes.flatMap((node) => node?.identity ?? []),
      ...sections.flatMap(({ device }) => device ?? []),
      ...looks.flatMap(({ seen }) => seen.disks.map(({ device }) => device))
    ])
    const ours = new Set(looks.map(({ process }) => process.pid))
    const others = (yield* Processes.holders(identities)).filter(({ process }) => !ours.has(process.pid))
    // The other engine's clients, after the backend was changed, are clients too.
    return [...looks.flatMap(Clients.holders), ...others.map(Processes.holderOf)]
  })

const looksAt = (world: World.World): Effect.Effect<ReadonlyArray<Clients.Look>> =>
  Effect.gen(function* () {
    const looks: Array<Clients.Look> = []
    for (const instance of world.pair) {
      const standing = yield* Instance.find(instance)
      if (standing._tag === "Ours") looks.push(yield* Clients.look(world.clients, instance, standing.process))
    }
    return looks
  })

/** Links first, then the processes, which are only started where they do not run or hang. */
const load = (
  world: World.World,
  asked: LoadRequest
): Effect.Effect<void, NbdUnavailable | GateClosed | PreconditionLost> =>
  Effect.gen(function* () {
    const { lost, there } = yield* Node.still(world.options, asked)
    const request = { ...asked, set: there }
    const servable = yield* approachable(world, request)
    yield* world.gate.check
    // From here on something may have changed, so that a gate that closes is no "not done" any more (S7).
    yield* change(world, request, servable).pipe(
      Effect.catchTag("GateClosed", (cause) => new NbdUnavailable({ detail: `half done: ${cause.message}`, cause }))
    )
    if (lost !== null) return yield* lost
  })

const change = (
  world: World.World,
  request: LoadRequest,
  servable: boolean
): Effect.Effect<void, NbdUnavailable | GateClosed> =>
  Effect.gen(function* () {
    yield* Links.makeDirectories(world.places)
    const unusable = yield* Links.problem(world.places)
    if (unusable !== null) return yield* new NbdUnavailable({ detail: unusable })
    yield* world.linking.withPermits(1)(link(world, request))
    yield* Failpoint.pass("nbd.stored")
    if (!servable) return
    yield* Effect.forEach(world.pair, (instance) => Instance.ensure(instance, world.gate.check), { discard: true })
    yield* Failpoint.pass("nbd.served")
  })

/** What is there is read under the same lock: a fence that was set meanwhile is seen and kept. */
const link = (world: World.World, request: LoadRequest): Effect.Effect<void, NbdUnavailable | GateClosed> =>
  Effect.gen(function* () {
    const links = yield* Links.read(world.places)
    const obstacle = Links.obstacle(links, request)
    if (obstacle !== null) return yield* new NbdUnavailable({ detail: obstacle })
    const steps = Links.steps(links, request)
    if (steps.length === 0) return
    yield* world.gate.check
    yield* Links.take(world.places, steps)
  })

/**
 * Before anything is changed: are there servers that we may use, or can start? False where the program is not installed
 * and neither instance runs, so that what is to leave only has to leave its directory.
 */
const approachable = (world: World.World, { set }: LoadRequest): Effect.Effect<boolean, NbdUnavailable> =>
  Effect.gen(function* () {
    const absent: Array<Instance.Instance> = []
    for (const instance of world.pair) {
      const standing = yield* Instance.find(instance)
      if (standing._tag === "Foreign") return yield* new NbdUnavailable({ detail: standing.problem })
      if (standing._tag === "Absent" && instance.start === "auto") absent.push(instance)
    }
    const [one] = absent
    if (one === undefined) return true
    const idle = set.length === 0 && absent.length === world.pair.length
    const installed = Effect.as(Instance.installed(one, "nbdkit"), true)
    return yield* idle ? Effect.orElseSucceed(installed, () => false) : installed
  })

const fencing = (world: World.World, name: string, fenced: boolean): Effect.Effect<void, NbdUnavailable | GateClosed> =>
  Effect.gen(function* () {
    const problem = Links.nameProblem(name)
    if (problem !== null) {
      return yield* new NbdUnavailable({ detail: `the export name ${JSON.stringify(name.slice(0, 120))} ${problem}` })
    }
    yield* world.gate.check
    yield* Links.makeDirectories(world.places)
    yield* world.linking.withPermits(1)(Links.fence(world.places, name, fenced))
  })

/** All of them or none: one instance's clients are not ended where the other's cannot be told apart. */
const endClients = (world: World.World, device: string): Effect.Effect<number, NbdUnavailable | GateClosed> =>
  Effect.gen(function* () {
    const looks = yield* looksAt(world)
    const obstacle = looks.map((look) => Clients.obstacle(look, device)).find((one) => one !== null) ?? null
    if (obstacle !== null) return yield* new NbdUnavailable({ detail: obstacle })
    yield* world.gate.check
    const ended = yield* Effect.forEach(looks, (look) => Clients.end(look, device))
    return ended.reduce((sum, count) => sum + count, 0)
  })

const POLL = "2 seconds"

/**
 * The kernel tells of changes to the links; that a server came or went is only to be seen by looking, and so is who came
 * to which disk, which is remembered as long as they stay.
 */
const pokes = (
  world: World.World,
  alone: <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>
): Stream.Stream<void> => {
  const listeners = Stream.repeatEffectWithSchedule(
    Effect.map(alone(looksAt(world)), () =>
      world.pair.map(({ host, port }) => [...Processes.listening(host, port)].join()).join(" ")
    ),
    Schedule.spaced(POLL)
  ).pipe(Stream.changes, Stream.drop(1), Stream.as(undefined))
  const { fenced_read_only, fenced_writable, read_only, writable } = world.places
  const links = [writable, read_only, fenced_writable, fenced_read_only].map(Watch.changes)
  return Stream.mergeAll([listeners, ...links], { concurrency: "unbounded" })
}
