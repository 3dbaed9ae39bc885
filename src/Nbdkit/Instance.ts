import { Effect, Ref, Schedule } from "effect"
import { execFile, spawn } from "node:child_process"
import { existsSync } from "node:fs"
import { open, stat } from "node:fs/promises"
import { join } from "node:path"
import { NbdUnavailable } from "../../schema/Errors.ts"
import * as NbdName from "../../schema/NbdName.ts"
import type { NbdSettings } from "../../schema/Settings.ts"
import * as Files from "../Devices/Files.ts"
import * as Handshake from "../Nbd/Handshake.ts"
import * as Main from "../Nbd/Main.ts"
import * as Processes from "../Nbd/Processes.ts"
import * as Links from "./Links.ts"

/**
 * One nbdkit process as it must be. There are two, because nbdkit is read-only or not as a whole. Each serves all its
 * clients by itself, so that its end is the end of all their connections: it is replaced only where it is dead or hung.
 */
export interface Instance {
  readonly role: "rw" | "ro"
  readonly host: string
  readonly port: number
  readonly directory: string
  /** What it said before it went into the background; from then on it speaks to syslog. */
  readonly log_file: string
  /** `auto`, `off` or `unit:NAME@.service`. */
  readonly start: string
  readonly program_dirs: ReadonlyArray<string>
  /** Which process it was last: to look at one process takes less time than to look at all. */
  readonly known: Ref.Ref<Processes.Process | null>
}

export const pair = (
  nbd: Pick<NbdSettings, "host" | "port" | "start">,
  places: Links.Places,
  program_dirs: ReadonlyArray<string>
): readonly [Instance, Instance] => {
  const { host, port, start } = nbd
  const common = { host, start, program_dirs }
  return [
    {
      ...common,
      role: "rw",
      port,
      directory: places.writable,
      log_file: join(places.base, "rw.log"),
      known: Ref.unsafeMake<Processes.Process | null>(null)
    },
    {
      ...common,
      role: "ro",
      port: port + 1,
      directory: places.read_only,
      log_file: join(places.base, "ro.log"),
      known: Ref.unsafeMake<Processes.Process | null>(null)
    }
  ]
}

export const describe = ({ port, role }: Instance): string =>
  `the ${role === "rw" ? "read-write" : "read-only"} nbdkit (port ${port})`

/**
 * In this order, and nothing else: it is what one of ours is known by. No `-f`: in the foreground nbdkit has the kernel
 * end it with its parent (PR_SET_PDEATHSIG, seen in 1.32.5), and a unit of it is of type `forking`. A list of the exports
 * is for nobody.
 */
export const argumentsOf = ({ directory, host, port, role }: Instance): ReadonlyArray<string> => [
  ...(role === "ro" ? ["-r"] : []),
  "--tls=off",
  "--filter=exportname",
  "-i",
  host,
  "-p",
  String(port),
  "file",
  `dir=${directory}`,
  "exportname-list=empty"
]

export const isInstalled = (): boolean => Main.PROGRAM_DIRS.some((dir) => existsSync(join(dir, "nbdkit")))

/** An nbdkit that was started as this instance is. A copy that an upgrade replaced counts too. */
const runs = (pid: number, instance: Instance): boolean => {
  if (Processes.program(pid)?.name !== "nbdkit") return false
  const [, ...args] = Processes.argumentsOf(pid)
  const mine = [...argumentsOf(instance), ""]
  return args.length === mine.length && args.every((arg, index) => arg === mine[index])
}

/** Who listens where the instance must be. */
export type Standing =
  | { readonly _tag: "Absent" }
  | { readonly _tag: "Ours"; readonly process: Processes.Process }
  | { readonly _tag: "Foreign"; readonly problem: string }

export const find = (instance: Instance): Effect.Effect<Standing> =>
  Effect.gen(function* () {
    const { host, port } = instance
    const inodes = Processes.listening(host, port)
    if (inodes.size === 0) return { _tag: "Absent" }
    const known = yield* Ref.get(instance.known)
    if (known !== null && isStill(instance, known, inodes)) return { _tag: "Ours", process: known }
    const owners = yield* Processes.owners(inodes)
    const stranger = owners.find(({ pid }) => !runs(pid, instance))
    if (stranger !== undefined && Processes.isAlive(stranger)) {
      return { _tag: "Foreign", problem: strangerProblem(instance, stranger) }
    }
    const [process] = owners.filter((owner) => owner !== stranger)
    yield* Ref.set(instance.known, process ?? null)
    if (process !== undefined) return { _tag: "Ours", process }
    const still = Processes.listening(host, port)
    if (![...inodes].some((inode) => still.has(inode))) return { _tag: "Absent" }
    return { _tag: "Foreign", problem: `port ${port} belongs to a process that volumed may not look at` }
  })

const isStill = (instance: Instance, known: Processes.Process, inodes: ReadonlySet<string>): boolean => {
  if (!Processes.isAlive(known) || !runs(known.pid, instance)) return false
  const sockets = new Set(Processes.opened(known.pid).map(({ socket }) => socket))
  return [...inodes].every((inode) => sockets.has(inode))
}

const strangerProblem = ({ directory, port }: Instance, { command, pid }: Processes.Process): string => {
  const who = `port ${port} belongs to ${command} (pid ${pid})`
  if (command !== "nbd-server") return `${who}, which is no nbdkit of volumed's with dir=${directory}`
  return `${who}, the other engine: end it when its clients are done, or set NBD_BACKEND=nbd-server again`
}

/** A name that no export can have: whoever says that it is unknown is alive, and opens no disk for it. */
const answers = (instance: Instance): Effect.Effect<Handshake.Outcome> =>
  Handshake.ask({ host: instance.host, port: instance.port, name: NbdName.SENTINEL })

export type Health =
  | Exclude<Standing, { readonly _tag: "Ours" }>
  | { readonly _tag: "Running"; readonly process: Processes.Process }
  | { readonly _tag: "Hung"; readonly process: Processes.Process; readonly problem: string }

/** Who listens, and whether it answers. */
export const health = (instance: Instance): Effect.Effect<Health> =>
  Effect.gen(function* () {
    const standing = yield* find(instance)
    if (standing._tag !== "Ours") return standing
    const { process } = standing
    const outcome = yield* answers(instance)
    if (outcome._tag === "Unknown") return { _tag: "Running", process }
    if (outcome._tag === "Refused" && !Processes.isAlive(process)) return { _tag: "Absent" }
    const said = "message" in outcome ? outcome.message : "it serves an export that it cannot have"
    return { _tag: "Hung", process, problem: `${describe(instance)} does not answer: ${said}` }
  })

const READY_TIMEOUT = "10 seconds"
const READY_POLL = "20 millis"
const GONE_TIMEOUT_MS = 2_000
const GONE_POLL_MS = 10

/** Brings it to run. A hung one is ended, and every connection that it has: the log says so before. */
export const ensure = <E>(
  instance: Instance,
  permit: Effect.Effect<void, E>
): Effect.Effect<void, NbdUnavailable | E> =>
  Effect.gen(function* () {
    const now = yield* patiently(instance)
    if (now._tag === "Running") return
    if (now._tag === "Foreign") return yield* new NbdUnavailable({ detail: now.problem })
    if (instance.start === "off") {
      const detail = `${describe(instance)} does not run, and NBD_START is off: start it`
      return yield* new NbdUnavailable({ detail })
    }
    yield* permit
    yield* begin(instance, now).pipe(Effect.uninterruptible)
  })

/** Who does not answer is asked once more: a machine under load must not cost all transfers. */
const patiently = (instance: Instance): Effect.Effect<Health> =>
  health(instance).pipe(Effect.repeat({ while: ({ _tag }) => _tag === "Hung", times: 1 }))

const begin = (instance: Instance, now: Exclude<Health, { readonly _tag: "Running" | "Foreign" }>) =>
  Effect.gen(function* () {
    if (now._tag === "Hung") {
      const connections = Processes.connections(instance.port).length
      yield* Effect.logWarning("an nbdkit hangs and is replaced: all its connections end").pipe(
        Effect.annotateLogs({ instance: describe(instance), pid: now.process.pid, connections, problem: now.problem })
      )
      yield* end(instance, now.process)
    }
    const unit = unitOf(instance)
    yield* unit === null ? launch(instance) : restart(instance, unit)
    yield* Effect.logInfo("nbdkit was started").pipe(Effect.annotateLogs({ instance: describe(instance) }))
  })

/** KILL, and only if it still is what it was: nbdkit keeps nothing that a client was told is written. */
const kill = (instance: Instance, target: Processes.Process): Effect.Effect<void> =>
  Effect.sync(() => {
    if (Processes.isAlive(target) && runs(target.pid, instance)) Processes.signalKill(target.pid)
  })

/** Ends whatever nbdkit serves the directories of this state, at once. For a process that is itself about to end. */
export const endAll = (state_dir: string): void => {
  const { read_only, writable } = Links.places(state_dir)
  const ours = [`dir=${writable}`, `dir=${read_only}`]
  const serving = Processes.pids().filter((pid) => Processes.argumentsOf(pid).some((arg) => ours.includes(arg)))
  for (const pid of serving) if (Processes.program(pid)?.name === "nbdkit") Processes.signalKill(pid)
}

const end = (instance: Instance, target: Processes.Process): Effect.Effect<void, NbdUnavailable> =>
  Effect.gen(function* () {
    yield* kill(instance, target)
    for (let waited = 0; waited < GONE_TIMEOUT_MS; waited += GONE_POLL_MS) {
      if (Processes.listening(instance.host, instance.port).size === 0) return
      yield* Effect.sleep(GONE_POLL_MS)
    }
    const detail = `port ${instance.port} is still held ${GONE_TIMEOUT_MS} ms after its server was ended`
    return yield* new NbdUnavailable({ detail })
  })

const unitOf = ({ role, start }: Instance): string | null =>
  start.startsWith("unit:") ? start.slice("unit:".length).replace("@.", `@${role}.`) : null

const restart = (instance: Instance, unit: string): Effect.Effect<void, NbdUnavailable> =>
  Effect.andThen(run(instance.program_dirs, "systemctl", ["restart", unit]), untilReady(instance))

/** It ends when its child in the background takes connections; that one lives on when volumed ends. */
const launch = (instance: Instance): Effect.Effect<void, NbdUnavailable> =>
  Effect.gen(function* () {
    const path = yield* installed(instance, "nbdkit")
    const code = yield* Effect.acquireUseRelease(
      Files.attempt(() => open(instance.log_file, "w", 0o600)),
      (log) => exited(path, argumentsOf(instance), log.fd),
      (log) => Effect.ignore(Files.attempt(() => log.close()))
    ).pipe(
      Effect.mapError(({ cause }) => new NbdUnavailable({ detail: `${path} could not be run`, cause })),
      // Whoever may not be interrupted is not kept for ever by a time-out that could interrupt nothing.
      Effect.interruptible,
      Effect.timeoutFail({
        duration: READY_TIMEOUT,
        onTimeout: () => new NbdUnavailable({ detail: `${path} did not end within ${READY_TIMEOUT} of its start` })
      })
    )
    if (code !== 0) {
      const said = yield* Main.lastWords(instance.log_file)
      return yield* new NbdUnavailable({ detail: `${describe(instance)} did not start (${code}): ${said}` })
    }
    yield* untilReady(instance)
  })

/** Its end by exit code or signal. */
const exited = (path: string, args: ReadonlyArray<string>, output: number) =>
  Effect.async<string | number | null, Files.FileFailed>((resume) => {
    const env = { PATH: Main.PROGRAM_DIRS.join(":") }
    const child = spawn(path, [...args], { cwd: "/", env, stdio: ["ignore", output, output], detached: true })
    child.once("error", (cause) => resume(new Files.FileFailed({ code: null, cause })))
    child.once("exit", (code, signal) => resume(Effect.succeed(code ?? signal)))
    return Effect.sync(() => child.kill("SIGKILL"))
  })

const neverReady = (instance: Instance): NbdUnavailable =>
  new NbdUnavailable({
    detail: `${describe(instance)} does not answer ${READY_TIMEOUT} after its start; the system's log may say why`
  })

const untilReady = (instance: Instance): Effect.Effect<void, NbdUnavailable> =>
  find(instance).pipe(
    Effect.flatMap((standing) => {
      if (standing._tag === "Foreign") return new NbdUnavailable({ detail: standing.problem })
      return Effect.map(answers(instance), ({ _tag }) => standing._tag === "Ours" && _tag === "Unknown")
    }),
    Effect.repeat({ until: (ready) => ready, schedule: Schedule.spaced(READY_POLL) }),
    Effect.interruptible,
    Effect.timeoutFail({ duration: READY_TIMEOUT, onTimeout: () => neverReady(instance) }),
    Effect.asVoid
  )

/** Ends every process of this instance, whoever listens. For a sandbox that goes away. */
export const stop = (instance: Instance): Effect.Effect<void> =>
  Effect.flatMap(find(instance), (standing) =>
    standing._tag === "Ours" ? Effect.ignore(end(instance, standing.process)) : Effect.void
  )

const PACKAGES: Readonly<Record<string, string>> = { ss: "iproute2", systemctl: "systemd" }

/** The program's absolute path, or which package brings it. */
export const installed = (
  { program_dirs }: Pick<Instance, "program_dirs">,
  name: string
): Effect.Effect<string, NbdUnavailable> =>
  Main.program({ program_dirs }, name).pipe(
    Effect.filterOrFail(
      (path) => path !== null,
      () => new NbdUnavailable({ detail: `${name} is not installed: apt-get install ${PACKAGES[name] ?? name}` })
    )
  )

/** `1.32.5` and the like; null where there is none or it does not say. The key changes when the package is replaced. */
export const version = (program_dirs: ReadonlyArray<string>) =>
  Effect.gen(function* () {
    const path = yield* Main.program({ program_dirs }, "nbdkit")
    if (path === null) return { key: "", read: Effect.succeed(null) }
    const key = yield* Files.attempt(() => stat(path)).pipe(
      Effect.map(({ mtimeMs }) => `${path}:${mtimeMs}`),
      Effect.orElseSucceed(() => path)
    )
    const read = run(program_dirs, "nbdkit", ["--version"]).pipe(
      Effect.map((said) => /^nbdkit (\d+(?:\.\d+)*)/.exec(said)?.[1] ?? null),
      Effect.orElseSucceed(() => null)
    )
    return { key, read }
  })

const PROGRAM_TIMEOUT_MS = 30_000
const OUTPUT_BYTES_MAX = 65_536

/** Runs a program to its end, without a shell; what it said. */
export const run = (
  program_dirs: ReadonlyArray<string>,
  name: string,
  args: ReadonlyArray<string>
): Effect.Effect<string, NbdUnavailable> =>
  Effect.flatMap(installed({ program_dirs }, name), (path) =>
    Effect.async<string, NbdUnavailable>((resume) => {
      const env = { PATH: Main.PROGRAM_DIRS.join(":"), LC_ALL: "C" }
      const options = { cwd: "/", env, timeout: PROGRAM_TIMEOUT_MS, maxBuffer: OUTPUT_BYTES_MAX }
      execFile(path, [...args], options, (cause, stdout, stderr) => {
        const said = Files.printable(`${stdout}${stderr}`.trim())
        if (cause === null) resume(Effect.succeed(stdout))
        else resume(new NbdUnavailable({ detail: `${name} ${args.join(" ")} failed: ${said}`, cause }))
      })
    })
  )
