import { Effect, Option } from "effect"
import { execFile, spawn } from "node:child_process"
import { constants, existsSync } from "node:fs"
import { access, open, readFile, stat, unlink } from "node:fs/promises"
import { join } from "node:path"
import * as Failpoint from "../../reconciler/Failpoint.ts"
import { NbdUnavailable } from "../../schema/Errors.ts"
import * as NbdName from "../../schema/NbdName.ts"
import * as Files from "../Devices/Files.ts"
import * as Handshake from "./Handshake.ts"
import * as Processes from "./Processes.ts"

/** The main process of nbd-server: it listens, and forks a child for every client. */
export interface Control {
  readonly place: Processes.Place
  /** `auto`, `off` or `unit:NAME`. */
  readonly start: string
  readonly pid_file: string
  /** What the last start said before it became a daemon. */
  readonly log_file: string
  /** Where programs are looked for, in this order; nothing is taken from PATH. */
  readonly program_dirs: ReadonlyArray<string>
}

export const PROGRAM_DIRS = ["/bin", "/usr/bin", "/sbin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin"]

/** An nbd-server is on this machine. A sandbox without one simulates its exports, and says so. */
export const isInstalled = (): boolean => PROGRAM_DIRS.some((dir) => existsSync(join(dir, "nbd-server")))

/** DH parameters are made at every start before a client is answered: 0.1–3.3 s measured under load. */
const READY_TIMEOUT = "10 seconds"
const READY_POLL = "30 millis"
/** Not counting what looking takes: ending a flood of waiting clients takes a second. */
const GONE_TIMEOUT_MS = 2_000
/** A port is bound within tens of milliseconds of a start, so that one which refuses this often has no server. */
const REFUSALS_MAX = 150
const GONE_POLL_MS = 10
const PROGRAM_TIMEOUT = "30 seconds"
const ANSWER_TIMEOUT_MS = 5_000

/** Absolute path of a program, or null where it is not installed. */
export const program = (control: Pick<Control, "program_dirs">, name: string): Effect.Effect<string | null> =>
  Effect.gen(function* () {
    for (const directory of control.program_dirs) {
      const path = join(directory, name)
      const found = yield* Effect.isSuccess(Files.attempt(() => access(path, constants.X_OK)))
      if (found) return path
    }
    return null
  })

/** `3.24` and the like; null where there is none or it does not say. The key changes when the package is replaced. */
export const version = (
  control: Control
): Effect.Effect<{ readonly key: string; readonly read: Effect.Effect<string | null> }> =>
  Effect.gen(function* () {
    const path = yield* program(control, "nbd-server")
    if (path === null) return { key: "", read: Effect.succeed(null) }
    const stats = yield* Effect.orElseSucceed(
      Files.attempt(() => stat(path)),
      () => null
    )
    const read = Effect.map(answer(path, ["-V"]), (said) => /version (\d+(?:\.\d+)*)/.exec(said)?.[1] ?? null)
    return { key: `${path}:${stats?.mtimeMs ?? 0}`, read }
  })

/**
 * Ends the main of our file alone, so that running transfers live on in their own processes, and starts a new one; starts
 * one where there was none. Not to be interrupted between the two. Ready is something else: see `untilServed`.
 */
export const replace = (control: Control): Effect.Effect<void, NbdUnavailable> =>
  Effect.gen(function* () {
    const unit = unitOf(control)
    const name = unit === null ? "nbd-server" : "systemctl"
    // Before anything is ended: a package may have been removed under a server that runs on.
    const path = yield* program(control, name)
    if (path === null) return yield* notInstalled(name)
    const restarted = yield* clear(control)
    if (restarted) return
    yield* Effect.ignore(Files.attempt(() => unlink(control.pid_file)))
    yield* Failpoint.pass("nbd.ended")
    yield* start(control, path, unit)
    yield* Failpoint.pass("nbd.started")
  }).pipe(Effect.uninterruptible)

/**
 * Frees the port, and ends the mains that our file once made listen elsewhere. True when somebody else, such as systemd,
 * has put a new main there meanwhile. Children that hold the listening socket are clients which have not chosen an export
 * yet: they would block the port, and serve the old file.
 */
const clear = (control: Control): Effect.Effect<boolean, NbdUnavailable> =>
  Effect.gen(function* () {
    const { place } = control
    yield* endStrays(place)
    let ended: Processes.Process | null = null
    let look: typeof Processes.listener = Processes.listener
    let inherited: ReadonlyArray<string> = []
    for (let waited = 0; waited < GONE_TIMEOUT_MS; waited += GONE_POLL_MS) {
      const listener: Processes.Listener = yield* look(place)
      if (listener._tag === "None") return false
      if (listener._tag === "Foreign") {
        if (ended === null) return yield* new NbdUnavailable({ detail: listener.problem })
        // What was just ended lets go of its files before its sockets, and has no arguments any more.
        yield* Effect.sleep(GONE_POLL_MS)
        continue
      }
      if (listener._tag === "Main") {
        const { main } = listener
        // A child of the ended main that lost its client stays in that main's session: it is no new main.
        if (ended !== null && ended.session !== main.session) return true
        inherited = Processes.devices(main.pid)
        ended = main
        look = Processes.listenerNow
        Processes.kill(main, place.config)
      }
      for (const child of listener.waiting) {
        const idle = Processes.devices(child.pid).every((device) => inherited.includes(device))
        if (idle) Processes.kill(child, place.config)
      }
      yield* Effect.sleep(GONE_POLL_MS)
    }
    return yield* new NbdUnavailable({
      detail: `port ${place.port} is still held ${GONE_TIMEOUT_MS} ms after its server was ended`
    })
  })

/** Mains of our file at another place than where it says now; what they serve to clients goes on. */
export const strays = (place: Processes.Place): Effect.Effect<ReadonlyArray<Processes.Main>> =>
  Effect.map(Processes.mains(place.config), (mains) =>
    mains.filter(({ listens }) => !listens.some((at) => isAt(at, place)))
  )

/** `at` as `Processes.listens` writes it; a server that listens everywhere listens there too. */
const isAt = (at: string, { host, port }: Processes.Place): boolean =>
  [host, "0.0.0.0", "::"].some((address) => at === `${address}:${port}`)

const endStrays = (place: Processes.Place): Effect.Effect<void> =>
  Effect.map(strays(place), (found) => {
    for (const { process } of found) Processes.kill(process, place.config)
  })

const start = (control: Control, path: string, unit: string | null): Effect.Effect<void, NbdUnavailable> =>
  Effect.gen(function* () {
    if (unit === null) {
      // A file that it cannot use ends it at once. 0 says little: it does even where the port is taken. Only a GO tells.
      const { code, said } = yield* run(control, path, ["-C", control.place.config, "-p", control.pid_file])
      if (code !== 0) return yield* new NbdUnavailable({ detail: `nbd-server did not start: ${said}` })
      return
    }
    const { code, said } = yield* run(control, path, ["restart", unit])
    if (code !== 0) return yield* new NbdUnavailable({ detail: `systemctl restart ${unit} failed: ${said}` })
  })

export const notInstalled = (name: string): NbdUnavailable =>
  new NbdUnavailable({
    detail: `${name} is not installed: apt-get install ${name === "nbd-server" ? name : "systemd"}`
  })

const unitOf = (control: Control): string | null =>
  control.start.startsWith("unit:") ? control.start.slice("unit:".length) : null

/**
 * Runs a program to its end: no shell, no environment, output into a file (nbd-server 3.27 leaves its output open when
 * it becomes a daemon, so that a pipe would never end).
 */
const run = (control: Control, path: string, args: ReadonlyArray<string>) =>
  Effect.gen(function* () {
    const code = yield* Effect.acquireUseRelease(
      Files.attempt(() => open(control.log_file, "w", 0o600)),
      (log) => exited(path, args, log.fd),
      (log) => Effect.ignore(Files.attempt(() => log.close()))
    )
    return { code, said: yield* lastWords(control.log_file) }
  }).pipe(
    Effect.mapError(({ cause }) => new NbdUnavailable({ detail: `${path} could not be run`, cause })),
    // Whoever may not be interrupted is not kept for ever by a time-out that could interrupt nothing.
    Effect.interruptible,
    Effect.timeoutFail({
      duration: PROGRAM_TIMEOUT,
      onTimeout: () => new NbdUnavailable({ detail: `${path} did not end within ${PROGRAM_TIMEOUT}` })
    })
  )

const exited = (path: string, args: ReadonlyArray<string>, output: number) =>
  Effect.async<number | null, Files.FileFailed>((resume) => {
    const child = spawn(path, [...args], {
      cwd: "/",
      env: { PATH: PROGRAM_DIRS.join(":") },
      stdio: ["ignore", output, output],
      detached: true
    })
    child.once("error", (cause) => resume(new Files.FileFailed({ code: null, cause })))
    child.once("exit", (code) => resume(Effect.succeed(code)))
    return Effect.sync(() => child.kill("SIGKILL"))
  })

/** What a program that changes nothing says; the words of the last start stay where they are. "" where it says nothing. */
const answer = (path: string, args: ReadonlyArray<string>): Effect.Effect<string> =>
  Effect.async((resume) => {
    const options = { cwd: "/", env: { PATH: PROGRAM_DIRS.join(":") }, timeout: ANSWER_TIMEOUT_MS, maxBuffer: 65_536 }
    execFile(path, [...args], options, (_, stdout, stderr) => resume(Effect.succeed(`${stdout}${stderr}`)))
  })

/** The last words of what ran, fit for a message. */
export const lastWords = (log_file: string): Effect.Effect<string> =>
  Files.attempt(() => readFile(log_file, "latin1")).pipe(
    Effect.map((text) =>
      text
        .trim()
        .slice(-400)
        .replace(/\s+/g, " ")
        .replace(/[^\x20-\x7e]/g, "?")
    ),
    Effect.orElseSucceed(() => "")
  )

/**
 * Until a GO on the marker is granted: then this very file is served. Null, for a file that has none: until it is answered
 * at all. Sooner a failure where nothing listens for long.
 */
export const untilServed = (control: Control, marker: string | null): Effect.Effect<void, NbdUnavailable> =>
  Effect.gen(function* () {
    for (let refusals = 0; refusals < REFUSALS_MAX; yield* Effect.sleep(READY_POLL)) {
      const { _tag } = yield* Handshake.ask({ ...control.place, name: marker ?? NbdName.SENTINEL })
      if (_tag === "Served" || (marker === null && (_tag === "Unknown" || _tag === "Denied"))) return
      refusals = _tag === "Refused" ? refusals + 1 : 0
    }
    return yield* notServed(control, "it takes no connections")
  }).pipe(
    Effect.interruptible,
    Effect.timeoutOption(READY_TIMEOUT),
    Effect.flatMap(
      Option.match({
        onNone: () => notServed(control, `it has not in ${READY_TIMEOUT}`),
        onSome: () => Effect.void
      })
    )
  )

const notServed = (control: Control, what: string): Effect.Effect<never, NbdUnavailable> =>
  Effect.flatMap(lastWords(control.log_file), (text) => {
    const hint = text === "" ? "its reason is in the system's log" : `it said: ${text}`
    return new NbdUnavailable({ detail: `nbd-server does not serve the new file: ${what}; ${hint}` })
  })

/** Ends every process that runs with our file, transfers included. For a sandbox that goes away. */
export const stop = (control: Control): Effect.Effect<void> =>
  Effect.gen(function* () {
    for (let waited = 0; waited < GONE_TIMEOUT_MS; waited += GONE_POLL_MS) {
      const left = Processes.servers(control.place.config)
      if (left.length === 0) return
      for (const one of left) Processes.kill(one, control.place.config)
      yield* Effect.sleep(GONE_POLL_MS)
    }
  }).pipe(Effect.andThen(Effect.ignore(Files.attempt(() => unlink(control.pid_file)))))
