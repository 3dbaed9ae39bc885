import { Clock, Data, Effect, Schedule, Schema } from "effect"
import { unlink, writeFile } from "node:fs/promises"
import { join, relative } from "node:path"
import type { Settings } from "../../schema/Settings.ts"
import * as Client from "../Client/Client.ts"
import * as Logging from "../Logging.ts"
import * as Processes from "../Nbd/Processes.ts"
import * as SettingsFrom from "../Settings.ts"
import * as Sandbox from "../Simulation/Sandbox.ts"
import * as Act from "./Act.ts"
import * as Arguments from "./Arguments.ts"
import { Asker } from "./Confirm.ts"
import { Daemon, volumes } from "./Daemon.ts"
import type * as Exit from "./Exit.ts"
import * as Follow from "./Follow.ts"
import * as Look from "./Look.ts"
import { Output, size, table } from "./Output.ts"
import * as Package from "./Package.ts"
import * as Serve from "./Serve.ts"
import * as VolumeText from "./VolumeText.ts"
import * as World from "./World.ts"

/** Where the story is played: a daemon of its own and a simulated CloudStack, both on free ports. */
export interface Stage {
  readonly server: string
  /** The simulated CloudStack, without a path. */
  readonly cloud: string
  readonly settings: Settings
  /** Where all of it lies. */
  readonly dir: string
}

/** A step did not end as it must: then the demo has shown a fault of ours, and says so. */
export class DemoFailed extends Data.TaggedError("DemoFailed")<{ readonly message: string }> {}

/** For any one step; on a quiet machine each takes a few seconds. */
const STEP_MS = 60_000
const STEP_TIMEOUT = `${STEP_MS / 1000}s`
/** Of the daemon's warnings and errors, when a step failed. */
const LOG_LINES = 20

/** Looked at more often than a daemon has to, for somebody is watching. */
const LIVELY = { POLL_INTERVAL: "500ms", LISTEN: "127.0.0.1:0" }

/** A daemon and a world of its own, and the story; all of it is gone at the end, however it ends. */
export const demo = (invocation: Arguments.Invocation) =>
  Effect.scoped(
    Effect.gen(function* () {
      const world = yield* Effect.flatMap(World.options(invocation), Sandbox.start)
      const settings = yield* SettingsFrom.fromEnvironment(Serve.sandboxEnvironment(world, LIVELY), null, {
        dry_run: false,
        sandbox: true,
        listen: null,
        terminal: false
      })
      yield* Serve.leaveNothing(world)
      const log: Array<string> = []
      // The daemon's log would run through the story; it is told when the story goes wrong.
      const logging = Logging.layer({ log_level: "warning", log_format: "pretty" }, (line) => {
        if (log.push(line) > LOG_LINES) log.shift()
      })
      const { urls } = yield* Serve.daemon(settings, true, logging)
      const [server] = urls
      if (server === undefined) return yield* new DemoFailed({ message: "the daemon listens nowhere" })
      const told = story({ server, cloud: world.url, settings, dir: world.dir })
      yield* told.pipe(
        Effect.tapError(() => remark(log.join(""))),
        Effect.onInterrupt(() => remark("The demo ends: its daemon stops, and all that it made is removed."))
      )
      return "done" as const
    })
  )

/** The story, told with the commands a user has: each is parsed, run and printed as if it had been typed. */
const story = (stage: Stage) =>
  Effect.gen(function* () {
    const began = yield* Clock.currentTimeMillis
    yield* opening(stage)

    yield* chapter("Declare volumes in a file, see the plan, let it converge")
    yield* type(["apply", "-f", file("volumes"), "--wait", "--timeout", STEP_TIMEOUT, "--yes"], ["done"])
    yield* exports

    yield* chapter("Somebody breaks something: is it seen, is it repaired?")
    yield* breakThings(stage)
    yield* type(["drift"], ["drift", "held"])
    yield* say("The hold file is removed, and the daemon may act again:")
    yield* Effect.promise(() => unlink(stage.settings.hold_file))
    yield* repaired
    yield* type(["drift"], ["done"])

    yield* chapter("A test failover: pg-data moves to the test VM, and back")
    yield* type(["apply", "-f", file("failover"), "--wait", "--timeout", STEP_TIMEOUT, "--yes"], ["done"])
    yield* type(["get"], ["done"])
    yield* type(["apply", "-f", file("volumes"), "--wait", "--timeout", STEP_TIMEOUT, "--yes"], ["done"])

    yield* chapter("Summary")
    yield* summary(stage, (yield* Clock.currentTimeMillis) - began)
  }).pipe(
    Effect.provideService(Daemon, {
      server: stage.server,
      actor: "demo",
      client: Client.make({ server: stage.server, actor: "demo" })
    }),
    Effect.provideService(Asker, { yes: true, stdin: process.stdin, stderr: process.stderr })
  )

const file = (name: "volumes" | "failover"): string => {
  const path = join(Package.root(), "fixtures/demo", `${name}.yaml`)
  const near = relative(process.cwd(), path)
  return near.startsWith("..") ? path : near
}

const remark = (text: string) => Effect.flatMap(Output, (output) => output.note(`${text}\n`))
const say = (text: string) => Effect.flatMap(Output, (output) => output.result(`${text}\n`))
const chapter = (title: string) =>
  Effect.flatMap(Output, (output) => output.result(`\n${output.paint.strong(`== ${title}`)}\n\n`))

const opening = Effect.fn("Demo.opening")(function* (stage: Stage) {
  const { nbd } = stage.settings
  const exported =
    nbd.backend === "simulated"
      ? "simulated exports (nbd-server is not installed: apt-get install nbd-server)"
      : `a real ${nbd.backend} on port ${nbd.port}`
  yield* say(
    `A daemon on ${stage.server}, a simulated CloudStack on ${stage.cloud}, ${exported}.\n` +
      `Everything lies in ${stage.dir} and is removed at the end.`
  )
})

const runners = {
  apply: Act.apply,
  get: Look.get,
  drift: Look.drift
} as const

/** One command of the real command line; how it must end is part of the story. */
const type = Effect.fn("Demo.type")(function* (words: ReadonlyArray<string>, endings: ReadonlyArray<Exit.Outcome>) {
  const { server } = yield* Daemon
  const output = yield* Output
  yield* output.result(`${output.paint.strong(`$ volumed ${words.join(" ")}`)}\n`)
  const parsed = Arguments.parse([...words, "--server", server], {})
  if (parsed._tag !== "Run") return yield* new DemoFailed({ message: `volumed ${words.join(" ")} was not understood` })
  const { invocation } = parsed
  const run = runners[invocation.command as keyof typeof runners]
  const outcome = yield* run(invocation)
  yield* output.result("\n")
  if (endings.includes(outcome)) return
  return yield* new DemoFailed({
    message: `volumed ${words.join(" ")} ended as "${outcome}", expected ${endings.join(" or ")}`
  })
})

const exports = Effect.gen(function* () {
  const { client } = yield* Daemon
  const { server, exports: served } = yield* client.exports
  const rows = served.map((one) => [one.name, one.status, one.kernel_path, size(one.size), one.read_only ? "ro" : "rw"])
  yield* say(
    `Served by ${server.engine} ${server.version ?? ""} on ${server.host}:${server.port}, each proved by a handshake:`
  )
  yield* say(table(["EXPORT", "STATUS", "DEVICE", "SIZE", "MODE"], rows))
})

const BROKEN = "pg-data"

/**
 * Drift is repaired within moments of being seen. The hold file, which keeps the daemon from acting while it observes
 * on, gives us the time to look at it.
 */
const breakThings = Effect.fn("Demo.breakThings")(function* (stage: Stage) {
  const { hold_file, nbd } = stage.settings
  const id = (yield* volumes({ set: "demo" })).find((volume) => volume.name === BROKEN)?.status.volume_id
  yield* say(`The hold file ${hold_file} is written: the daemon looks on, but does not act.`)
  yield* Effect.promise(() => writeFile(hold_file, "demo: look before it is repaired\n"))
  yield* act(stage, { act: "detach", volume_id: id })
  yield* say(`An operator detaches ${BROKEN} (${id}) in CloudStack's UI.`)
  const mains = nbd.backend === "nbd-server" ? Processes.servers(nbd.config) : []
  for (const main of mains) {
    if (Processes.kill(main, nbd.config)) yield* say(`The NBD server (pid ${main.pid}) is killed.`)
  }
  yield* seen
  yield* say("")
})

const inTime = <A, E, R>(what: string, effect: Effect.Effect<A, E, R>): Effect.Effect<A, E | DemoFailed, R> =>
  effect.pipe(
    Effect.timeoutFail({
      duration: STEP_MS,
      onTimeout: () => new DemoFailed({ message: `${what} took more than ${STEP_TIMEOUT}` })
    })
  )

/** Until the daemon itself has noticed: what it says of the volume, not what a fresh look would find. */
const seen = inTime(
  "noticing the drift",
  Effect.gen(function* () {
    const { client } = yield* Daemon
    const volume = yield* client.volume(BROKEN)
    return !VolumeText.isReady(volume)
  }).pipe(Effect.repeat({ until: (noticed) => noticed, schedule: Schedule.spaced(200) }))
)

const repaired = Effect.gen(function* () {
  const names = (yield* volumes({ set: "demo" })).map((volume) => volume.name)
  const { outcome } = yield* Follow.follow({ names, set: "demo", timeoutMs: STEP_MS })
  if (outcome !== "done") return yield* new DemoFailed({ message: `the repair ended as "${outcome}"` })
  yield* say("")
})

/** The ground truth, straight from the simulated CloudStack. */
const Truth = Schema.Struct({
  volumes: Schema.Array(Schema.Struct({ id: Schema.String, name: Schema.String })),
  calls: Schema.Record({ key: Schema.String, value: Schema.Number }),
  violations: Schema.Array(Schema.Unknown)
})

const summary = Effect.fn("Demo.summary")(function* (stage: Stage, tookMs: number) {
  const { client } = yield* Daemon
  const declared = yield* volumes({ set: "demo" })
  const { items } = yield* client.operations({ limit: 1000 })
  const truth = yield* Effect.flatMap(sandbox(stage, "/sandbox"), Schema.decodeUnknown(Truth))
  const ready = declared.filter(VolumeText.isReady).length
  const rows = [
    ["Volumes", `${ready} of ${declared.length} Ready`],
    ["Operations", `${items.length}: ${tally(items.map((operation) => operation.type))}`],
    ["Repairs of drift", tally(items.flatMap((o) => (o.cause === "drift" ? [o.type] : []))) || "none"],
    [
      "CloudStack calls",
      Object.entries(truth.calls)
        .map(([command, count]) => `${count} ${command}`)
        .join(", ")
    ],
    [
      "Violations",
      `${truth.violations.length} (what no controller should ever do, counted by the simulated CloudStack)`
    ],
    ["Time", `${(tookMs / 1000).toFixed(1)} s`]
  ]
  yield* say(rows.map(([label, text]) => `${label?.padEnd(18)}${text}`).join("\n"))
  if (truth.violations.length > 0) {
    return yield* new DemoFailed({ message: `violations: ${JSON.stringify(truth.violations)}` })
  }
  if (ready !== declared.length) return yield* new DemoFailed({ message: "not every volume is Ready at the end" })
})

const tally = (words: ReadonlyArray<string>): string => {
  const counts = new Map<string, number>()
  for (const word of words) counts.set(word, (counts.get(word) ?? 0) + 1)
  return [...counts].map(([word, count]) => `${count} ${word}`).join(", ")
}

const act = (stage: Stage, body: unknown) => sandbox(stage, "/sandbox/act", body)

/** The pages beside the simulated API. A refusal there ends the demo: the story would no longer be true. */
const sandbox = (stage: Stage, path: string, body?: unknown): Effect.Effect<unknown, DemoFailed> =>
  Effect.tryPromise({
    try: async (signal) => {
      const response = await fetch(new URL(path, stage.cloud), {
        signal,
        ...(body === undefined ? {} : { method: "POST", body: JSON.stringify(body) })
      })
      const text = await response.text()
      if (!response.ok) throw new Error(`HTTP ${response.status}: ${text.slice(0, 400)}`)
      return JSON.parse(text) as unknown
    },
    catch: (cause) => new DemoFailed({ message: `${path} of the simulated CloudStack: ${String(cause)}` })
  }).pipe(
    Effect.timeoutFail({
      duration: 10_000,
      onTimeout: () => new DemoFailed({ message: `${path} did not answer in 10 s` })
    })
  )
