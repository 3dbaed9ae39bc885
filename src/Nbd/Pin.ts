import { Effect } from "effect"
import { spawn } from "node:child_process"
import { constants, readlinkSync, statSync } from "node:fs"
import { open } from "node:fs/promises"
import { basename, dirname } from "node:path"
import type { WantedExport } from "../../reconciler/Nbd.ts"
import { type GateClosed, NbdUnavailable } from "../../schema/Errors.ts"
import * as NbdConfig from "../../schema/NbdConfig.ts"
import type { NbdSettings } from "../../schema/Settings.ts"
import * as ByIdLinks from "../Devices/ByIdLinks.ts"
import * as Files from "../Devices/Files.ts"
import * as Identity from "../Devices/Identity.ts"
import * as Sysfs from "../Devices/Sysfs.ts"
import * as ConfigFile from "./ConfigFile.ts"
import * as Main from "./Main.ts"
import * as Node from "./Node.ts"
import * as Processes from "./Processes.ts"
import * as Rights from "./Rights.ts"
import { controlOf, type World } from "./World.ts"

/**
 * A process that does nothing but have one disk open, which gives that very disk a name: `/proc/<pid>/fd/<n>`. nbd-server
 * opens it at each connect, and no link can be flipped in between (D12). It outlives volumed, not the machine.
 */
export interface Holder {
  readonly process: Processes.Process
  /** The by-id link that the disk was opened by. */
  readonly path: string
  /** Identity (as in BlockDevice) of what it really has open. */
  readonly device: string
  /** What stands in the NBD server's file. */
  readonly descriptor: string
}

/** Whose holders: those of one file's exports. Another volumed on this machine has its own. */
export interface Scope {
  readonly by_id_dir: string
  readonly nbd: Pick<NbdSettings, "config">
}

/**
 * Only a process with a thousand open files has this number. After a reboot another one bears the pid that stands in the
 * file, and nbd-server may start before volumed: what it finds under a low number would be served, even written to.
 */
const DESCRIPTOR = 1000

/** Debian's own, with nothing to do for ever. */
const PROGRAM = "sleep"
const DURATION = "infinity"

const descriptorOf = (pid: number): string => `/proc/${pid}/fd/${DESCRIPTOR}`

/** Its argv[0]: who looks at the process list sees what it is there for. */
const title = ({ nbd }: Scope, path: string): string => `volumed-pin:${nbd.config}:${path}`

/**
 * The holder with this pid, proven by what the kernel says of the process: our user's, the program, the title, and what
 * the descriptor really is. A pid alone proves nothing, for it passes on.
 */
export const find = (scope: Scope, pid: number): Holder | null => {
  const process = Processes.find(pid)
  const path = process === null ? null : pathIn(scope, pid)
  if (process === null || path === null || !isOurs(pid)) return null
  const descriptor = descriptorOf(pid)
  const stats = Processes.attempt(() => statSync(descriptor, { bigint: true }))
  const device = stats === null ? null : Identity.ofStats(stats)
  return device === null || !Processes.isAlive(process) ? null : { process, path, device, descriptor }
}

const pathIn = (scope: Scope, pid: number): string | null => {
  const [name = "", duration] = Processes.argumentsOf(pid)
  const prefix = title(scope, "")
  const path = name.slice(prefix.length)
  return name.startsWith(prefix) && duration === DURATION && dirname(path) === scope.by_id_dir ? path : null
}

const isOurs = (pid: number): boolean => {
  const owner = Processes.attempt(() => statSync(`/proc/${pid}`).uid)
  const inside = namespaceOf(pid) === namespaceOf("self")
  return inside && owner === process.geteuid?.() && Processes.program(pid)?.name === PROGRAM
}

/** A container's processes are seen from outside of it too, where its paths mean other files. */
const namespaceOf = (pid: number | "self"): string | null =>
  Processes.attempt(() => readlinkSync(`/proc/${pid}/ns/pid`))

/** Somebody has something open there, whoever and whatever. */
export const isOpen = (descriptor: string): boolean => Processes.attempt(() => statSync(descriptor)) !== null

/** The proven holder behind a path of the file, or null. */
export const at = (scope: Scope, written: string): Holder | null => {
  const pin = NbdConfig.pinOf(written)
  return pin === null || pin.descriptor !== DESCRIPTOR ? null : find(scope, pin.pid)
}

const all = (scope: Scope): ReadonlyArray<Holder> =>
  Processes.pids().flatMap((pid) => [find(scope, pid)].filter((holder) => holder !== null))

/** Holders that no section names: what a crash left. None where the file cannot be read, for then nobody knows. */
export const leftovers = (
  scope: Scope,
  disk: ConfigFile.Disk = ConfigFile.disk
): Effect.Effect<ReadonlyArray<Holder>> =>
  Effect.gen(function* () {
    const holders = all(scope)
    if (holders.length === 0) return []
    const names = named(yield* ConfigFile.read(disk, scope.nbd.config))
    return names === null ? [] : holders.filter(({ descriptor }) => !names.has(descriptor))
  })

/** The paths of a file's sections; null where it cannot be read, for then every holder may be named in it. */
export const named = (file: ConfigFile.Reading): ReadonlySet<string> | null => {
  if (file._tag === "Broken" || file._tag === "Unusable") return null
  return file._tag === "Sound" ? pathsOf(file.document) : new Set()
}

const pathsOf = (document: NbdConfig.Document): ReadonlySet<string> =>
  new Set(
    document.sections.flatMap(({ pairs }) =>
      pairs.filter(({ key }) => key === "exportname").map(({ value }) => value.trimEnd())
    )
  )

/**
 * Ends what no section names. Only while the server serves the file as it is, or not at all: one with an older file
 * would look for the descriptor in whatever bears the pid next.
 */
export const sweep = (world: World): Effect.Effect<void, GateClosed> =>
  Effect.gen(function* () {
    const left = yield* leftovers(world.options, world.disk)
    if (left.length === 0) return
    yield* world.gate.check
    yield* end(world.options, left)
  })

const GONE_TIMEOUT_MS = 2_000
const GONE_POLL_MS = 10

const end = (scope: Scope, holders: ReadonlyArray<Holder>): Effect.Effect<void> =>
  Effect.gen(function* () {
    for (const holder of holders) kill(scope, holder)
    for (let waited = 0; waited < GONE_TIMEOUT_MS; waited += GONE_POLL_MS) {
      if (!holders.some((holder) => Processes.isAlive(holder.process))) return
      yield* Effect.sleep(GONE_POLL_MS)
    }
    yield* Effect.logWarning("holders of disks do not end").pipe(
      Effect.annotateLogs({ pids: holders.map((holder) => holder.process.pid).join(" ") })
    )
  })

const kill = (scope: Scope, { process: { pid, start } }: Holder): void => {
  if (find(scope, pid)?.process.start === start) Processes.attempt(() => process.kill(pid, "SIGKILL"))
}

/** Ends every holder of these exports, served or not: for a sandbox that goes away. */
export const stop = (scope: Scope): void => {
  for (const holder of all(scope)) kill(scope, holder)
}

/** Why a server like this could not open what our holders have open, or would open something else; null when it can. */
export const refusal = ({ user }: NbdConfig.Judgement, main: number | null): string | null => {
  if (user !== null) {
    return `NBD_PIN is on, but its [generic] runs the server as ${user}, who may not open what volumed's holders have open`
  }
  const theirs = main === null ? null : namespaceOf(main)
  if (theirs !== null && theirs !== namespaceOf("self")) {
    return `NBD_PIN is on, but the server (pid ${main}) runs in a PID namespace of its own, where pids mean other processes`
  }
  const lacking = main === null ? null : Rights.problem(main)
  return lacking === null ? null : `NBD_PIN is on, but ${lacking}`
}

/** The file that is there when exports are to be pinned, as far as that matters. */
export interface Standing {
  readonly document: NbdConfig.Document | null
  readonly judgement: NbdConfig.Judgement
}

/** Processes started at once. */
const CONCURRENCY = 4

/**
 * A holder for each of these exports, by name: the one that the file names already, another that is there, or a new one.
 * Empty with NBD_PIN off. What is started and not written into the file after all is swept later.
 */
export const take = (
  world: World,
  { document, judgement }: Standing,
  set: ReadonlyArray<WantedExport>
): Effect.Effect<ReadonlyMap<string, Holder>, NbdUnavailable | GateClosed> =>
  Effect.gen(function* () {
    if (!world.options.nbd.pin || set.length === 0) return new Map()
    const control = controlOf(world, judgement)
    const listener = yield* Processes.listener(control.place)
    const refused = refusal(judgement, listener._tag === "Main" ? listener.main.pid : null)
    if (refused !== null) return yield* new NbdUnavailable({ detail: refused })
    const written: ReadonlySet<string> = document === null ? new Set() : pathsOf(document)
    const holders = [...all(world.options)].sort(
      (a, b) => Number(written.has(b.descriptor)) - Number(written.has(a.descriptor))
    )
    const one = (wanted: WantedExport) =>
      Effect.gen(function* () {
        const found = holders.find(({ device, path }) => path === wanted.path && device === wanted.device)
        const holder = found ?? (yield* hold(world, control, wanted))
        const problem = yield* serialProblem(holder)
        return problem === null ? ([wanted.name, holder] as const) : yield* unpinned(wanted, problem)
      })
    return new Map(yield* Effect.forEach(set, one, { concurrency: CONCURRENCY }))
  })

const unpinned = ({ path }: WantedExport, detail: string, cause?: unknown): NbdUnavailable =>
  new NbdUnavailable({ detail: `${path} is not pinned: ${detail}`, cause })

/** Everything is asked of the descriptor, none of the path: what is checked is what will be served. */
const hold = (
  world: World,
  control: Main.Control,
  wanted: WantedExport
): Effect.Effect<Holder, NbdUnavailable | GateClosed> =>
  Effect.acquireUseRelease(
    Files.attempt(() => open(wanted.path, constants.O_RDONLY | constants.O_NONBLOCK)),
    (file) =>
      Effect.gen(function* () {
        const node = yield* Node.of(file)
        if (node === null || node.kind !== world.options.device_kind) return yield* unpinned(wanted, "it is no disk")
        if (node.identity !== wanted.device)
          return yield* unpinned(wanted, `it is ${node.identity} now, not ${wanted.device}`)
        if (node.size !== wanted.size) {
          return yield* unpinned(wanted, `it has ${node.size ?? "unknown"} bytes now, not ${wanted.size}`)
        }
        const program = yield* Main.program(control, PROGRAM)
        if (program === null) return yield* unpinned(wanted, `${PROGRAM} is not installed`)
        yield* world.gate.check
        const pid = yield* started(program, title(world.options, wanted.path), file.fd)
        const holder = find(world.options, pid)
        return holder?.device === wanted.device ? holder : yield* unpinned(wanted, "its holder did not come up")
      }),
    (file) => Effect.ignore(Files.attempt(() => file.close()))
  ).pipe(
    Effect.catchTag("FileFailed", ({ cause, code }) =>
      Effect.fail(unpinned(wanted, `its holder cannot be started (${code ?? "unknown"})`, cause))
    )
  )

/** Detached, so that neither volumed's end nor a signal to its group ends it. */
const started = (program: string, argv0: string, descriptor: number): Effect.Effect<number, Files.FileFailed> =>
  Effect.async((resume) => {
    const child = spawn(program, [DURATION], {
      argv0,
      stdio: [...Array.from({ length: DESCRIPTOR }, () => "ignore" as const), descriptor],
      detached: true,
      cwd: "/",
      env: {}
    })
    child.once("error", (cause: NodeJS.ErrnoException) =>
      resume(Effect.fail(new Files.FileFailed({ code: cause.code ?? null, cause })))
    )
    child.once("spawn", () => {
      child.unref()
      resume(Effect.succeed(child.pid ?? -1))
    })
  })

/** Sysfs is asked by the number of the disk that is held open, which passes to no other disk as long as it is. */
const serialProblem = ({ device, path }: Holder): Effect.Effect<string | null> => {
  const serial = ByIdLinks.serialIn(basename(path))
  if (serial === null || device.startsWith("file:")) return Effect.succeed(null)
  return Effect.map(Sysfs.disk({ sys_block_dir: "/sys/dev/block", allow_loop: true }, device), (disk) =>
    disk?.serial === serial ? null : `the serial of ${device} is ${disk?.serial ?? "unknown"} now`
  )
}
