import { Clock, Duration, Effect, Either, Layer, Queue, Schema, type Scope } from "effect"
import * as Fs from "node:fs"
import { createServer } from "node:net"
import { tmpdir } from "node:os"
import { join, resolve } from "node:path"
import { Misconfigured } from "../../schema/Errors.ts"
import * as CloudStackServer from "./CloudStackServer.ts"
import type * as Fault from "./Fault.ts"
import * as Guest from "./Guest.ts"
import * as RequestLog from "./RequestLog.ts"
import * as SandboxRoutes from "./SandboxRoutes.ts"
import type * as State from "./State.ts"
import * as World from "./World.ts"

export interface Options {
  /** Kept, and taken up again at the next start. Null: a fresh temporary directory, removed at the end. */
  readonly state_dir: string | null
  /** Where the simulated CloudStack listens; null: on loopback, on the port it had last or a free one. */
  readonly cloudstack_listen: { readonly host: string; readonly port: number } | null
  /** How long every request takes to reach CloudStack. */
  readonly latency_ms: number
  /** Of a new world, as are `vms`, `job_ms` and `device_delay_ms`: one that was kept stays as it is. */
  readonly seed: number
  /** A file of faults (JSON), switched on from the start. */
  readonly faults_file: string | null
  /** VMs beside the appliance. */
  readonly vms: number
  /** What a VM's queue spends on one job. */
  readonly job_ms: number
  readonly device_delay_ms: number
}

export const defaults: Options = {
  state_dir: null,
  cloudstack_listen: null,
  latency_ms: 0,
  seed: 1,
  faults_file: null,
  vms: 2,
  job_ms: 1_500,
  device_delay_ms: 200
}

export interface Sandbox {
  readonly world: World.World
  readonly dir: string
  /** Origin of the simulated CloudStack; the ground truth is at `/sandbox` below it. */
  readonly url: string
  readonly port: number
  readonly tree: Guest.Tree
  /** What a daemon on this sandbox is configured with; also in `DIR/sandbox.env`. */
  readonly env: Readonly<Record<string, string>>
}

/** How long changes may gather before the world is written down. */
const SAVE_EVERY_MS = 100

/** A running sandbox: world, wire and device tree. It ends with its scope; a state directory of one's own stays. */
export const start = (options: Options): Effect.Effect<Sandbox, Misconfigured, Scope.Scope> =>
  Effect.gen(function* () {
    const dir = yield* stateDir(options.state_dir)
    const { world, applied } = yield* worldIn(dir, options)
    const before = envOf(dir)
    // Its coming into being says that the sandbox listens, so last time's must not be found meanwhile.
    yield* attempt("--state", () => Fs.rmSync(join(dir, "sandbox.env"), { force: true }))
    const log = options.state_dir === null ? null : yield* persist(world, dir, applied)
    const tree = yield* Guest.tree(world, dir)
    const listening = yield* listen(world, options, before, log?.record ?? (() => {}))
    const nbdPort = Number(before["NBD_PORT"] ?? 0) || (yield* freePort)
    const env = environment(world, dir, tree, listening.url, nbdPort)
    yield* attempt("--state", () => writeEnv(dir, env))
    return { world, dir, tree, env, url: listening.url, port: listening.port }
  })

const attempt = <A>(key: string, run: () => A): Effect.Effect<A, Misconfigured> =>
  Effect.try({ try: run, catch: (cause) => misconfigured(key, String(cause)) })

const misconfigured = (key: string, problem: string) =>
  new Misconfigured({ problems: [{ key, problem, example: `${key} ${EXAMPLES[key] ?? ""}`.trim() }] })

const EXAMPLES: Readonly<Record<string, string>> = { "--state": "/tmp/sandbox", "--faults": "faults.json" }

const stateDir = (given: string | null): Effect.Effect<string, Misconfigured, Scope.Scope> =>
  given === null
    ? Effect.acquireRelease(
        attempt("--state", () => Fs.mkdtempSync(join(tmpdir(), "volumed-sandbox-"))),
        (dir) => Effect.sync(() => Fs.rmSync(dir, { recursive: true, force: true }))
      )
    : attempt("--state", () => {
        Fs.mkdirSync(given, { recursive: true, mode: 0o700 })
        return resolve(given)
      })

/**
 * The world as it was written down, with the number of requests that it had carried out then, or a new one. Faults given
 * at the start replace those that were left.
 */
const worldIn = (
  dir: string,
  options: Options
): Effect.Effect<{ readonly world: World.World; readonly applied: number }, Misconfigured> =>
  Effect.gen(function* () {
    const now = yield* Clock.currentTimeMillis
    const faults = options.faults_file === null ? null : yield* faultsIn(options.faults_file)
    const saved = yield* attempt("--state", () => readIfThere(join(dir, "world.json")))
    const kept = saved === null ? null : yield* savedWorld(dir, saved)
    const world =
      kept === null
        ? World.make({
            now,
            seed: options.seed,
            vms: options.vms,
            job_ms: options.job_ms,
            device_delay_ms: options.device_delay_ms
          })
        : World.load(kept)
    if (faults !== null) world.setFaults(faults, now)
    return { world, applied: kept?.applied ?? 0 }
  })

/** `applied`: as `RequestLog.count` when it was written. */
type SavedWorld = State.Json & { readonly applied?: number }

const savedWorld = (dir: string, text: string): Effect.Effect<SavedWorld, Misconfigured> =>
  Schema.decodeUnknown(Schema.parseJson(Schema.Unknown))(text).pipe(
    Effect.filterOrFail(World.isSaved, () => null),
    // What `isSaved` accepts was written by `save`: the file is this program's own.
    Effect.map((json) => json as unknown as SavedWorld),
    Effect.mapError(() =>
      misconfigured("--state", `${join(dir, "world.json")} holds no world; remove it to start anew`)
    )
  )

const faultsIn = (file: string): Effect.Effect<ReadonlyArray<Fault.Fault>, Misconfigured> =>
  attempt("--faults", () => Fs.readFileSync(file, "utf8")).pipe(
    Effect.andThen((text) =>
      Either.mapLeft(SandboxRoutes.decodeFaults(text), (problem) => misconfigured("--faults", `${file}: ${problem}`))
    )
  )

const readIfThere = (file: string): string | null => (Fs.existsSync(file) ? Fs.readFileSync(file, "utf8") : null)

/** Write the world down soon after each change, and once more at the end; in between, its requests. */
const persist = (
  world: World.World,
  dir: string,
  applied: number
): Effect.Effect<RequestLog.RequestLog, Misconfigured, Scope.Scope> =>
  Effect.gen(function* () {
    const log = yield* Effect.acquireRelease(
      attempt("--state", () => RequestLog.resume(world, join(dir, "world.log"), applied)),
      ({ close }) => Effect.sync(close)
    )
    const write = (now: number) => {
      replace(join(dir, "world.json"), JSON.stringify({ ...world.save(now), applied: log.count() }))
      log.clear()
    }
    const save = Effect.flatMap(Clock.currentTimeMillis, (now) => attempt("--state", () => write(now)))
    const pokes = yield* Queue.sliding<void>(1)
    yield* save
    yield* Effect.acquireRelease(
      Effect.sync(() => world.subscribe(() => pokes.unsafeOffer(undefined))),
      (stop) => Effect.andThen(Effect.sync(stop), Effect.ignoreLogged(save))
    )
    // A large world is written down less often, so that the writing never takes more than a tenth of the time.
    yield* Queue.take(pokes).pipe(
      Effect.andThen(Effect.sleep(SAVE_EVERY_MS)),
      Effect.andThen(Effect.timed(Effect.ignoreLogged(save))),
      Effect.andThen(([took]) => Effect.sleep(Duration.times(took, 9))),
      Effect.forever,
      Effect.forkScoped
    )
    return log
  })

/** Whole or not at all. */
const replace = (file: string, text: string): void => {
  Fs.writeFileSync(`${file}.new`, text, { mode: 0o600 })
  Fs.renameSync(`${file}.new`, file)
}

/** On the address asked for; else on the one a daemon beside it may still know from the last time; else on a free one. */
const listen = (
  world: World.World,
  options: Options,
  before: Readonly<Record<string, string>>,
  record: RequestLog.RequestLog["record"]
): Effect.Effect<CloudStackServer.Listening, Misconfigured, Scope.Scope> => {
  const at = (address: { readonly host: string; readonly port: number }) =>
    CloudStackServer.serve(world, { ...address, latency_ms: options.latency_ms, record })
  if (options.cloudstack_listen !== null) return at(options.cloudstack_listen)
  const anywhere = at({ host: "127.0.0.1", port: 0 })
  const last = /^http:\/\/127\.0\.0\.1:(\d{1,5})\//.exec(before["CLOUDSTACK_API_URL"] ?? "")?.[1]
  if (last === undefined) return anywhere
  return Effect.catchTag(at({ host: "127.0.0.1", port: Number(last) }), "Misconfigured", () => anywhere)
}

/** A free port whose successor is free too: nbdkit serves read-only exports there. */
const freePort: Effect.Effect<number> = Effect.gen(function* () {
  for (;;) {
    const first = yield* released(0)
    if (first !== null && (yield* released(first + 1)) !== null) return first
  }
})

/** The port, taken and free again; null where it was somebody's. */
const released = (port: number): Effect.Effect<number | null> =>
  Effect.async((resume) => {
    const probe = createServer()
    probe.once("error", () => resume(Effect.succeed(null)))
    probe.listen(port, "127.0.0.1", () => {
      const address = probe.address()
      const found = typeof address === "object" && address !== null ? address.port : 0
      probe.close(() => resume(Effect.succeed(found)))
    })
  })

const environment = (
  world: World.World,
  dir: string,
  tree: Guest.Tree,
  url: string,
  nbdPort: number
): Readonly<Record<string, string>> => ({
  CLOUDSTACK_API_URL: `${url}/client/api`,
  CLOUDSTACK_API_KEY: world.state.config.api_key,
  CLOUDSTACK_SECRET_KEY: world.state.config.secret_key,
  APPLIANCE_VM_ID: world.state.config.appliance_vm_id,
  BY_ID_DIR: tree.by_id_dir,
  SYS_BLOCK_DIR: tree.sys_block_dir,
  DEVICE_KIND: "file",
  DEFAULT_DISK_OFFERING_ID: World.OFFERING_ID,
  DEFAULT_ZONE_ID: World.ZONE_ID,
  NBD_CONFIG: join(dir, "nbd", "config-base"),
  NBD_ACL_DIR: join(dir, "nbd", "acl"),
  NBD_HOST: "127.0.0.1",
  NBD_PORT: String(nbdPort),
  STATE_DIR: join(dir, "state"),
  HOLD_FILE: join(dir, "hold"),
  SANDBOX: "1"
})

/** The directories that a daemon on this sandbox writes to, and the lines that lead it there, last. */
const writeEnv = (dir: string, env: Readonly<Record<string, string>>): void => {
  for (const place of ["nbd", join("nbd", "acl"), "state"]) {
    Fs.mkdirSync(join(dir, place), { recursive: true, mode: 0o700 })
  }
  const lines = Object.entries(env).map(([key, value]) => `${key}='${value.replaceAll("'", "'\\''")}'\n`)
  replace(join(dir, "sandbox.env"), lines.join(""))
}

/** What the last start in this directory wrote. */
const envOf = (dir: string): Readonly<Record<string, string>> => {
  const text = readIfThere(join(dir, "sandbox.env")) ?? ""
  return Object.fromEntries([...text.matchAll(/^([A-Z_]+)='(.*)'$/gm)].map((match) => [match[1] ?? "", match[2] ?? ""]))
}

/** Only the world, until the process is told to end: `volumed sandbox`. */
export const layer = (options: Options): Layer.Layer<never, Misconfigured> => Layer.scopedDiscard(start(options))
