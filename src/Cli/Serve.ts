import { Context, Effect, Layer, type Scope } from "effect"
import { rmSync } from "node:fs"
import * as Inspector from "node:inspector"
import { join } from "node:path"
import { Gate } from "../../reconciler/Gate.ts"
import { Leadership, obstacle, type Role } from "../../reconciler/Leadership.ts"
import { Reconciler } from "../../reconciler/Reconciler.ts"
import { Misconfigured, type StoreUnavailable } from "../../schema/Errors.ts"
import type { Settings } from "../../schema/Settings.ts"
import * as Failpoint from "../Failpoint.ts"
import * as Heartbeat from "../Heartbeat.ts"
import * as Server from "../Http/Server.ts"
import * as Layers from "../Layers.ts"
import * as Logging from "../Logging.ts"
import * as NbdMain from "../Nbd/Main.ts"
import * as Pin from "../Nbd/Pin.ts"
import * as Processes from "../Nbd/Processes.ts"
import * as Instance from "../Nbdkit/Instance.ts"
import * as Notify from "../Notify.ts"
import * as SettingsFrom from "../Settings.ts"
import * as Sandbox from "../Simulation/Sandbox.ts"
import * as Dsn from "../Store/Dsn.ts"
import type { Invocation } from "./Arguments.ts"

import { Output } from "./Output.ts"
import * as Package from "./Package.ts"
import * as World from "./World.ts"

/** Runs until it is interrupted, which is how SIGTERM and SIGINT arrive here. */
export const serve = (invocation: Invocation) => Effect.scoped(serving(invocation))

const serving = Effect.fn("Serve.serve")(function* (invocation: Invocation) {
  const { flags, values } = invocation
  const output = yield* Output
  const sandbox = flags.has("sandbox") ? yield* Effect.flatMap(World.options(invocation), Sandbox.start) : null
  const settings = yield* SettingsFrom.fromEnvironment(
    sandbox === null ? process.env : sandboxEnvironment(sandbox, process.env),
    values.config ?? null,
    {
      dry_run: flags.has("dry-run"),
      sandbox: sandbox !== null,
      listen: values.listen ?? null,
      require_durable: flags.has("require-durable"),
      terminal: process.stderr.isTTY === true
    }
  )
  if (flags.has("print-config")) {
    yield* output.result(SettingsFrom.render(settings))
    return "done" as const
  }
  if (!settings.sandbox && Inspector.url() !== undefined) return yield* inspected
  // An NBD server outlives its daemon, and with it the transfers; one whose files are about to be removed must not.
  const momentary = sandbox !== null && values.state === undefined
  if (momentary) yield* leaveNothing(sandbox)
  const failpoint = Failpoint.layer({ sandbox: settings.sandbox, asked: process.env["VOLUMED_FAILPOINT"] })
  const warnings = Dsn.warnings(settings.database_dsn).map((text) => `DATABASE_DSN: ${text}`)
  // One logger, provided once: a second one, even where it is over already, would write each line again.
  const around = Layer.effectDiscard(Effect.forEach(warnings, (text) => Effect.logWarning(text))).pipe(
    Layer.provideMerge(Layer.merge(Logging.layer(settings), failpoint))
  )
  const { urls, role, status } = yield* daemon(settings, momentary, around)
  // Ready is who takes requests: what it has not looked at yet it says so.
  yield* Notify.announce({ status, works: Heartbeat.beats(settings) })
  yield* output.note(ready(urls, settings, sandbox, obstacle(role)))
  return yield* Effect.never
})

/** Whoever connects to an inspector reads every key in memory, and runs what he likes (e3). */
const inspected = new Misconfigured({
  problems: [
    {
      key: "--inspect",
      problem: "opens a debugger to everybody on this machine, which only a sandbox may",
      example: "leave it out, of NODE_OPTIONS too"
    }
  ]
})

/** Settings that say nothing about where things are: a sandbox takes these, and these alone, from around it. */
const portable: ReadonlyArray<string> = [
  "LISTEN",
  "VOLUMED_TOKEN_FILE",
  "TLS_CERT_FILE",
  "TLS_KEY_FILE",
  "RATE_LIMIT",
  "DECLARATIONS_MAX",
  "V1_ATTACH_EXPORTS",
  "LOG_LEVEL",
  "LOG_FORMAT",
  "RESYNC_INTERVAL",
  "RESYNC_BUSY_INTERVAL",
  "POLL_INTERVAL",
  "DELETE_GRACE",
  "OPERATIONS_KEPT",
  "EVENTS_KEPT",
  "REQUIRE_DURABLE",
  "DEVICE_TIMEOUT",
  "NBD_BACKEND",
  "NBD_PIN",
  "NBD_DRAIN",
  "NBD_CALL_DRAIN",
  "DESTRUCTIVE_PER_PASS",
  "DESTRUCTIVE_PER_HOUR",
  "ACTIONS_PER_VM",
  "ACTIONS_TOTAL",
  "SUSPICION_COUNT",
  "SUSPICION_SHARE",
  "CONTENTION_REPAIRS",
  "CONTENTION_WINDOW"
]

/** The embedded defaults. A real CloudStack or database in the environment must never be met by a sandbox's daemon. */
export const sandboxEnvironment = (
  sandbox: Sandbox.Sandbox,
  around: Readonly<Record<string, string | undefined>>
): Readonly<Record<string, string | undefined>> => ({
  NBD_BACKEND: NbdMain.isInstalled() ? "nbd-server" : "simulated",
  ...Object.fromEntries(portable.flatMap((key) => (around[key] ? [[key, around[key]]] : []))),
  ...sandbox.env,
  DATABASE_DSN: `sqlite:${join(sandbox.dir, "state", "volumed.db")}`
})

/**
 * A sandbox of a moment must leave nothing behind, not even when it is ended before its finalizers have run: then this
 * ends its NBD server and removes its directory, as the very last thing the process does.
 */
export const leaveNothing = (sandbox: Sandbox.Sandbox): Effect.Effect<void, never, Scope.Scope> => {
  const lastResort = () => {
    const config = sandbox.env["NBD_CONFIG"] ?? ""
    for (const server of Processes.servers(config)) Processes.kill(server, config)
    Instance.endAll(sandbox.env["STATE_DIR"] ?? "")
    Pin.stop({ by_id_dir: sandbox.env["BY_ID_DIR"] ?? "", nbd: { config } })
    rmSync(sandbox.dir, { recursive: true, force: true })
  }
  return Effect.acquireRelease(
    Effect.sync(() => void process.once("exit", lastResort)),
    () => Effect.sync(() => void process.off("exit", lastResort))
  )
}

/** The running daemon, for as long as the scope lives; the URLs it can be reached at. `around`: its logging, say. */
export const daemon = (
  settings: Settings,
  stopNbd: boolean,
  around: Layer.Layer<never, Misconfigured>
): Effect.Effect<Running, Misconfigured | StoreUnavailable, Scope.Scope> =>
  Effect.gen(function* () {
    const options = { version: Package.version(), stop_nbd: stopNbd }
    const services = yield* Layer.build(Layers.daemon(settings, options).pipe(Layer.provide(around)))
    const role = yield* Context.get(services, Leadership).role
    const urls = Context.get(services, Server.Server).addresses.map((address) => address.url)
    return { urls, role, status: Effect.provide(status, services) }
  })

interface Running {
  readonly urls: ReadonlyArray<string>
  readonly role: Role
  /** What it is at, in a line. */
  readonly status: Effect.Effect<string>
}

const status = Effect.gen(function* () {
  const held = yield* Effect.flatMap(Gate, ({ reason }) => reason)
  const { statuses } = yield* Effect.flatMap(Reconciler, ({ view }) => view)
  const ready = [...statuses.values()].filter(({ conditions }) =>
    conditions.some(({ type, status }) => type === "Ready" && status === "True")
  )
  return `${held ?? "acting"}; ${ready.length} of ${statuses.size} volumes are as declared`
})

/** `idle`: why it only looks; null where it leads. */
const ready = (
  urls: ReadonlyArray<string>,
  settings: Settings,
  sandbox: Sandbox.Sandbox | null,
  idle: string | null
): string => {
  const cloud =
    sandbox === null
      ? `CloudStack ${settings.cloudstack.api_url ?? "as in ossea_configs"}`
      : `a simulated CloudStack on ${sandbox.url}, state in ${sandbox.dir}`
  const acts = settings.dry_run ? "; dry run: never acts" : ""
  const stands = idle === null ? "" : `; standing by: ${idle}`
  return `volumed ready on ${urls.join(" and ")}; ${cloud}; exports by ${settings.nbd.backend}${acts}${stands}\n`
}

/** Only the world: a daemon beside it can be killed and started again. */
export const sandbox = (invocation: Invocation) =>
  Effect.scoped(
    Effect.gen(function* () {
      const output = yield* Output
      const { dir, url } = yield* Effect.flatMap(World.options(invocation), Sandbox.start)
      yield* output.result(`${join(dir, "sandbox.env")}\n`)
      yield* output.note(`A simulated CloudStack listens on ${url}; its ground truth is at ${url}/sandbox\n`)
      return yield* Effect.never
    })
  )
