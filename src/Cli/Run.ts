import { Cause, Effect, Exit as EffectExit, Fiber, Layer } from "effect"
import { hostname, userInfo } from "node:os"
import * as Client from "../Client/Client.ts"
import * as Failure from "../Client/Failure.ts"
import * as Logging from "../Logging.ts"
import type { Invocation } from "./Arguments.ts"
import type { CommandName } from "./Commands.ts"
import { Asker } from "./Confirm.ts"
import { Daemon } from "./Daemon.ts"
import * as Exit from "./Exit.ts"
import * as Output from "./Output.ts"

type Command = (invocation: Invocation) => Effect.Effect<Exit.Outcome, unknown, Output.Output | Daemon | Asker>

/** Each command's code is loaded when it is asked for: a client command never waits for the server's. */
const commands: Readonly<Record<CommandName, () => Promise<Command>>> = {
  serve: async () => (await import("./Serve.ts")).serve,
  sandbox: async () => (await import("./Serve.ts")).sandbox,
  demo: async () => (await import("./Demo.ts")).demo,
  plan: async () => (await import("./DryRun.ts")).plan,
  import: async () => (await import("./Import.ts")).importOld,
  migrate: async () => (await import("./Migrate.ts")).migrate,
  preflight: async () => (await import("./Preflight.ts")).preflight,
  doctor: async () => (await import("./Doctor.ts")).doctor,
  apply: async () => (await import("./Act.ts")).apply,
  delete: async () => (await import("./Act.ts")).remove,
  undelete: async () => (await import("./Act.ts")).undelete,
  adopt: async () => (await import("./Act.ts")).adopt,
  approve: async () => (await import("./Act.ts")).approve,
  accept: async () => (await import("./Act.ts")).accept,
  retry: async () => (await import("./Act.ts")).retry,
  pause: async () => (await import("./Act.ts")).pause,
  resume: async () => (await import("./Act.ts")).resume,
  sync: async () => (await import("./Act.ts")).sync,
  maintenance: async () => (await import("./Maintenance.ts")).maintenance,
  get: async () => (await import("./Look.ts")).get,
  drift: async () => (await import("./Look.ts")).drift,
  exports: async () => (await import("./Look.ts")).exports,
  offerings: async () => (await import("./Look.ts")).offerings,
  devices: async () => (await import("./Devices.ts")).devices,
  explain: async () => (await import("./Explain.ts")).explain,
  ops: async () => (await import("./Operations.ts")).operations,
  cancel: async () => (await import("./Operations.ts")).cancel,
  log: async () => (await import("./History.ts")).log,
  watch: async () => (await import("./History.ts")).watch,
  wait: async () => (await import("./Wait.ts")).wait,
  completion: async () => (await import("./Completion.ts")).completion
}

/** From a command line to an exit code. */
export const run = (invocation: Invocation): void => {
  const layers = Layer.mergeAll(
    Output.layer(invocation.output, process, process.env),
    Layer.succeed(Asker, { yes: invocation.flags.has("yes"), stdin: process.stdin, stderr: process.stderr }),
    Layer.sync(Daemon, () => daemon(invocation.server)),
    logging(invocation.command)
  )
  const program = Effect.promise(commands[invocation.command]).pipe(
    Effect.flatMap((command) => command(invocation)),
    Effect.provide(layers)
  )
  const fiber = Effect.runFork(program)
  const ended = endOnSignals(fiber, invocation.command)
  fiber.addObserver((exit) => {
    const code = ended() ?? exitCode(exit, invocation)
    // Idle keep-alive connections would hold the process for seconds. A pipe that broke is only known now.
    process.stdout.write("", (broken) => process.exit(broken && code === 0 ? Exit.PIPE_CLOSED : code))
  })
}

/** Effect's own logger writes to stdout, into the result. A daemon brings the one that its settings ask for. */
const logging = (command: CommandName): Layer.Layer<never> =>
  command === "serve" || command === "sandbox" || command === "demo"
    ? Layer.empty
    : Logging.layer({ log_level: "warning", log_format: "pretty" })

const daemon = (server: string): Daemon["Type"] => {
  const token = process.env["VOLUMED_TOKEN"]
  const actor = whoAsks()
  return { server, actor, client: Client.make({ server, actor, ...(token ? { token } : {}) }) }
}

/** A system that knows no name for us is no reason to fail. */
const whoAsks = (): string => {
  const user = EffectExit.match(Effect.runSyncExit(Effect.try(() => userInfo().username)), {
    onSuccess: (name) => name,
    onFailure: () => "cli"
  })
  return `${user}@${hostname()}`.replace(/[^A-Za-z0-9._@:-]/gu, "-").slice(0, 64)
}

/** How long an interrupted command may take to clean up before the process ends anyway. */
const GRACE_MS = { client: 900, daemon: 5_000 }

/**
 * The first signal, or a reader that closed the pipe, interrupts the command, whose finalizers then run: cursor,
 * children, temporary files. Returns the exit code that this asks for, or null while nothing of it happened.
 */
const endOnSignals = (fiber: Fiber.RuntimeFiber<unknown, unknown>, command: CommandName): (() => number | null) => {
  const isDaemon = command === "serve" || command === "sandbox"
  let code: number | null = null
  const end = (wanted: number) => {
    // Asked twice a daemon ends at once; anything else is about to.
    if (code !== null) return isDaemon ? process.exit(code) : undefined
    code = wanted
    fiber.unsafeInterruptAsFork(fiber.id())
    setTimeout(() => process.exit(wanted), isDaemon ? GRACE_MS.daemon : GRACE_MS.client).unref()
  }
  // A daemon that is asked to stop and does so has done its work.
  process.on("SIGINT", () => end(isDaemon ? 0 : Exit.INTERRUPTED))
  process.on("SIGTERM", () => end(isDaemon ? 0 : 143))
  process.stdout.on("error", () => isDaemon || end(Exit.PIPE_CLOSED))
  // Whoever read the progress or the log may go; the work goes on.
  process.stderr.on("error", () => {})
  return () => code
}

const exitCode = (exit: EffectExit.Exit<Exit.Outcome, unknown>, invocation: Invocation): number => {
  if (EffectExit.isSuccess(exit)) return Exit.codes[exit.value]
  process.stderr.write(`${Logging.fatal(`volumed ${invocation.command}: ${failure(exit.cause)}`)}\n`)
  return Exit.codes.error
}

/** An expected failure in its own words; a defect with all that helps to find it. */
const failure = (cause: Cause.Cause<unknown>): string => {
  const expected = Cause.failureOption(cause)
  if (expected._tag === "None") return `a defect in volumed itself; please report it\n${Cause.pretty(cause)}`
  return describe(expected.value)
}

const describe = (error: unknown): string => {
  if (error instanceof Failure.ApiError) return apiError(error)
  if (error instanceof Failure.ServerUnreachable) {
    return `${error.message}\n  Is the daemon running? Start it with: volumed serve\n  Another address: --server URL, or VOLUMED_SERVER`
  }
  return error instanceof Error ? error.message : String(error)
}

const apiError = (error: Failure.ApiError): string => {
  const problems = error.problems.map(
    ({ name, field, problem }) =>
      `\n  ${[name, field, problem]
        .filter((part) => part !== null)
        .map(Output.clean)
        .join(": ")}`
  )
  const suggestion = error.suggestion === null ? "" : `\n  ${Output.clean(error.suggestion)}`
  return `${Output.clean(error.message)}${problems.join("")}${suggestion}`
}
