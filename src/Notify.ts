import { Cause, Data, Duration, Effect, Ref, Schedule, type Scope } from "effect"
import { spawn } from "node:child_process"
import { constants } from "node:fs"
import { access } from "node:fs/promises"
import { join } from "node:path"

/**
 * Tells systemd what it asks a service for (sd_notify(3)): that it is ready, that it still works, what it is at, that it
 * stops. By systemd-notify(1), for Node has no datagram sockets; the unit says `NotifyAccess=all` for that.
 */
export interface Options {
  readonly environment: Readonly<Record<string, string | undefined>>
  readonly pid: number
  /** Lines `KEY=value` to whoever listens on the socket. */
  readonly send: (socket: string, assignments: ReadonlyArray<string>) => Effect.Effect<void, NotTold>
}

export interface Service {
  /** A line for `systemctl status`. */
  readonly status: Effect.Effect<string>
  /** It does its work: only then is the watchdog answered. */
  readonly works: Effect.Effect<boolean>
}

const PROGRAM = "systemd-notify"
/** systemd-notify waits up to five seconds for systemd to have read it. */
const PROGRAM_TIMEOUT = "6 seconds"
/** Stopping is not held up by saying so. */
const FAREWELL_TIMEOUT = "500 millis"
/** Where no watchdog asks sooner. */
const STATUS_MS = 30_000
/** A service that did not work a moment ago is asked again so soon, for half of the watchdog's time has passed by then. */
const WORKS_POLL = "1 second"
const STATUS_CHARACTERS = 200

/** `program_dirs`: where the program is looked for, in this order; nothing is taken from PATH. */
export const byProgram =
  (program_dirs: ReadonlyArray<string>): Options["send"] =>
  (socket, assignments) =>
    Effect.flatMap(programIn(program_dirs), (path) => run(path, socket, assignments))

const thisProcess: Options = {
  environment: process.env,
  pid: process.pid,
  send: byProgram(["/usr/bin", "/bin"])
}

/**
 * From here on the service is ready. Until the scope closes the watchdog is answered at half of its time, as long as the
 * service works; then systemd is told that it stops. Nothing at all where no systemd asks. Never fails: what could not be
 * told is logged, the first time.
 */
export const announce = (service: Service, options: Options = thisProcess): Effect.Effect<void, never, Scope.Scope> =>
  Effect.gen(function* () {
    const socket = options.environment["NOTIFY_SOCKET"]
    if (socket === undefined || socket === "") return
    const complained = yield* Ref.make(false)
    const tell = (...assignments: ReadonlyArray<string>) =>
      options.send(socket, assignments).pipe(
        Effect.timeoutFail({ duration: PROGRAM_TIMEOUT, onTimeout: () => new NotTold({ why: "it did not end" }) }),
        Effect.catchAll((error) =>
          Effect.flatMap(Ref.getAndSet(complained, true), (before) =>
            before ? Effect.void : Effect.logWarning("systemd could not be told", Cause.fail(error))
          )
        )
      )
    yield* Effect.addFinalizer(() =>
      tell("STOPPING=1").pipe(Effect.interruptible, Effect.timeoutOption(FAREWELL_TIMEOUT))
    )
    const first = yield* service.status
    yield* tell("READY=1", statusLine(first))
    const shown = yield* Ref.make(first)
    const watchdog_ms = watchdogOf(options)
    const beat = Effect.gen(function* () {
      if (watchdog_ms !== null) yield* untilItWorks(service)
      const status = yield* service.status
      const isNew = (yield* Ref.getAndSet(shown, status)) !== status
      const assignments = [...(watchdog_ms === null ? [] : ["WATCHDOG=1"]), ...(isNew ? [statusLine(status)] : [])]
      if (assignments.length > 0) yield* tell(...assignments)
    })
    const pause = Duration.millis(watchdog_ms === null ? STATUS_MS : watchdog_ms / 2)
    yield* beat.pipe(Effect.delay(pause), Effect.forever, Effect.forkScoped)
  })

const untilItWorks = ({ works }: Service): Effect.Effect<void> =>
  Effect.asVoid(Effect.repeat(works, { until: (works) => works, schedule: Schedule.spaced(WORKS_POLL) }))

/** Of one line, and what a terminal obeys taken out. */
const statusLine = (status: string): string =>
  `STATUS=${status.replaceAll(/[\u0000-\u001f\u007f-\u009f\u2028\u2029]+/g, " ").slice(0, STATUS_CHARACTERS)}`

/** After how long without a sign of life systemd ends this very process, ms; null where it does not. */
const watchdogOf = ({ environment, pid }: Options): number | null => {
  const microseconds = environment["WATCHDOG_USEC"] ?? ""
  const concerned = environment["WATCHDOG_PID"] ?? String(pid)
  if (concerned !== String(pid) || !/^[1-9]\d{0,15}$/.test(microseconds)) return null
  return Number(microseconds) / 1000
}

export class NotTold extends Data.TaggedError("NotTold")<{ readonly why: string; readonly cause?: unknown }> {
  override get message() {
    return `${PROGRAM}: ${this.why}`
  }
}

/** No shell, and of the environment the socket alone. */
const run = (path: string, socket: string, assignments: ReadonlyArray<string>): Effect.Effect<void, NotTold> =>
  Effect.async((resume) => {
    const child = spawn(path, [...assignments], { cwd: "/", env: { NOTIFY_SOCKET: socket }, stdio: "ignore" })
    child.once("error", (cause) => resume(new NotTold({ why: "it cannot be run", cause })))
    child.once("exit", (code) =>
      resume(code === 0 ? Effect.void : new NotTold({ why: code === null ? "it was ended" : `it failed with ${code}` }))
    )
    return Effect.sync(() => child.kill("SIGKILL"))
  })

const programIn = (directories: ReadonlyArray<string>): Effect.Effect<string, NotTold> =>
  Effect.gen(function* () {
    for (const directory of directories) {
      const path = join(directory, PROGRAM)
      const found = yield* Effect.isSuccess(Effect.tryPromise(() => access(path, constants.X_OK)))
      if (found) return path
    }
    return yield* new NotTold({ why: `it is not in ${directories.join(", ")}` })
  })
