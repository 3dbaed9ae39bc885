import { Clock, Effect, Either } from "effect"
import { access, constants, readFile, stat } from "node:fs/promises"
import { createServer } from "node:net"
import { dirname } from "node:path"
import { CloudStackRead } from "../../reconciler/CloudStack.ts"
import { Devices } from "../../reconciler/Devices.ts"
import { Nbd } from "../../reconciler/Nbd.ts"
import type { CloudStackUnavailable, Misconfigured } from "../../schema/Errors.ts"
import type { NbdReading } from "../../schema/Inventory.ts"
import type { Settings } from "../../schema/Settings.ts"
import * as Layers from "../Layers.ts"
import * as SettingsFrom from "../Settings.ts"
import { sqliteFile } from "../Store/Dsn.ts"
import type { Invocation } from "./Arguments.ts"
import { Daemon } from "./Daemon.ts"
import type * as Exit from "./Exit.ts"
import * as Package from "./Package.ts"
import { clean, show, type Paint } from "./Output.ts"

/** One thing that must be so before volumed can work, and what to do where it is not. */
export interface Finding {
  readonly check: string
  /** `warn`: works, but is worth a look. */
  readonly state: "ok" | "warn" | "fail"
  readonly found: string
  /** The line to type, or the change to make; null where all is well. */
  readonly fix: string | null
}

const ok = (check: string, found: string): Finding => ({ check, state: "ok", found, fix: null })
const fail = (check: string, found: string, fix: string): Finding => ({ check, state: "fail", found, fix })
const warn = (check: string, found: string, fix: string): Finding => ({ check, state: "warn", found, fix })

/** Nothing is changed by looking: no file is written, no server is touched, CloudStack is only read. */
export const doctor = Effect.fn("Doctor.doctor")(function* (invocation: Invocation) {
  const settings = yield* Effect.either(
    SettingsFrom.fromEnvironment(process.env, invocation.values.config ?? null, {
      dry_run: true,
      sandbox: false,
      listen: null,
      terminal: false
    })
  )
  const reached = yield* daemon
  const findings = [nodeVersion(process.versions.node), reached.finding, ...(yield* ofSettings(settings, reached.up))]
  yield* show({ checks: findings }, (paint) => text(findings, paint))
  return outcome(findings)
})

export const outcome = (findings: ReadonlyArray<Finding>): Exit.Outcome =>
  findings.some((finding) => finding.state === "fail") ? "held" : "done"

const nodeVersion = (version: string): Finding => {
  const [major = 0, minor = 0] = version.split(".").map(Number)
  const enough = major > 20 || (major === 20 && minor >= 19)
  return enough ? ok("node", version) : fail("node", version, "install Node.js 20.19 or newer")
}

/** A daemon that is not running is no fault of the machine: doctor is asked before the first start, too. */
const daemon = Effect.gen(function* () {
  const { client, server } = yield* Daemon
  const health = yield* Effect.either(client.health)
  if (Either.isLeft(health)) {
    return { up: false, finding: warn("daemon", clean(health.left.message), "volumed serve, or set VOLUMED_SERVER") }
  }
  const { status, cloudstack_health, database_health, device_monitor, nbd_health } = health.right
  const parts = `CloudStack ${cloudstack_health}, database ${database_health}, devices ${device_monitor}, NBD ${nbd_health}`
  const text = clean(`${server} is ${status}: ${parts}`)
  const finding = {
    healthy: ok("daemon", `${server} is healthy`),
    degraded: warn("daemon", text, "see the checks below; the daemon retries by itself"),
    unhealthy: fail("daemon", text, "see the checks below; the daemon retries by itself")
  }[status]
  return { up: true, finding }
})

const ofSettings = Effect.fn("Doctor.ofSettings")(function* (
  settings: Either.Either<Settings, Misconfigured>,
  daemonUp: boolean
) {
  if (Either.isLeft(settings)) return misconfigured(settings.left)
  const found = settings.right
  const local = yield* Effect.all([
    database(found, daemonUp),
    holdFile(found.hold_file),
    clock(found.cloudstack.api_url),
    ...found.listen.map((address) => port(address, daemonUp))
  ])
  const seen = yield* witnesses(found).pipe(
    Effect.provide(Layers.looking(found, { version: Package.version(), stop_nbd: false })),
    Effect.catchTag("Misconfigured", (error) => Effect.succeed(misconfigured(error)))
  )
  return [ok("settings", "complete"), ...local, ...seen]
})

const misconfigured = (error: Misconfigured): ReadonlyArray<Finding> =>
  error.problems.map(({ key, problem, example }) => fail("settings", clean(`${key}: ${problem}`), example))

/** The file is looked at, never opened as a database: a lock of ours would keep the daemon out. */
const database = Effect.fn("Doctor.database")(function* (settings: Settings, daemonUp: boolean) {
  const file = yield* Effect.either(sqliteFile(settings.database_dsn))
  if (Either.isLeft(file))
    return fail("database", clean(file.left.message), "DATABASE_DSN=sqlite:/var/lib/volumed/volumed.db")
  const path = file.right
  const target = (yield* allowed(path, constants.F_OK)) ? path : dirname(path)
  if (!(yield* allowed(target, constants.R_OK | constants.W_OK))) {
    return fail(
      "database",
      `${target} cannot be written by this user`,
      `mkdir -p ${dirname(path)}, and give it to the daemon's user`
    )
  }
  const holder = yield* lockHolder(path)
  if (holder === null) return ok("database", target === path ? path : `${path} will be made`)
  const who = `${path} is locked by pid ${holder.pid} (${holder.command})`
  return daemonUp ? ok("database", who) : fail("database", who, `end that process, or use another DATABASE_DSN`)
})

const allowed = (path: string, mode: number): Effect.Effect<boolean> =>
  Effect.isSuccess(Effect.tryPromise(() => access(path, mode)))

const readText = (path: string): Effect.Effect<string | null> =>
  Effect.orElseSucceed(
    Effect.tryPromise(() => readFile(path, "utf8")),
    () => null
  )

/** Linux lists every file lock as `… POSIX ADVISORY WRITE <pid> <major>:<minor>:<inode> …`. */
const lockHolder = Effect.fn("Doctor.lockHolder")(function* (path: string) {
  const stats = yield* Effect.option(Effect.tryPromise(() => stat(path)))
  const locks = yield* readText("/proc/locks")
  if (stats._tag === "None" || locks === null) return null
  const { ino } = stats.value
  const pid = locks.match(new RegExp(`\\sWRITE\\s+(\\d+)\\s+[0-9a-f]+:[0-9a-f]+:${ino}\\s`, "u"))?.[1]
  if (pid === undefined) return null
  const command = yield* readText(`/proc/${pid}/cmdline`)
  return { pid: Number(pid), command: clean((command ?? "?").replaceAll("\u0000", " ").trim()).slice(0, 120) }
})

const holdFile = Effect.fn("Doctor.holdFile")(function* (path: string) {
  const reason = yield* readText(path)
  return reason === null
    ? ok("hold file", `${path} is absent`)
    : fail("hold file", clean(`${path} keeps volumed from acting: ${reason.trim().slice(0, 200)}`), `rm ${path}`)
})

/** More than this and signatures that are valid for a minute are refused. */
const SKEW_MS_MAX = 30_000

const clock = Effect.fn("Doctor.clock")(function* (apiUrl: string) {
  const answer = yield* Effect.tryPromise((signal) =>
    fetch(apiUrl, { method: "HEAD", redirect: "manual", signal })
  ).pipe(Effect.timeout("5 seconds"), Effect.option)
  const date = answer._tag === "None" ? Number.NaN : Date.parse(answer.value.headers.get("date") ?? "")
  if (Number.isNaN(date)) return warn("clock", "CloudStack's clock could not be read", "see the CloudStack check")
  const skew = date - (yield* Clock.currentTimeMillis)
  const seconds = Math.round(skew / 1000)
  return Math.abs(skew) <= SKEW_MS_MAX
    ? ok("clock", `CloudStack's clock differs by ${Math.abs(seconds)} s`)
    : fail(
        "clock",
        `CloudStack's clock is ${Math.abs(seconds)} s ${seconds > 0 ? "ahead" : "behind"}`,
        "timedatectl set-ntp true"
      )
})

const port = (address: Settings["listen"][number], daemonUp: boolean): Effect.Effect<Finding> => {
  const name = `port ${address.host}:${address.port}`
  return Effect.async<Finding>((resume) => {
    const probe = createServer()
    probe.once("error", (error: NodeJS.ErrnoException) => resume(Effect.succeed(portTaken(name, error, daemonUp))))
    probe.listen(address.port, address.host, () => probe.close(() => resume(Effect.succeed(ok(name, "free")))))
  })
}

const portTaken = (name: string, error: NodeJS.ErrnoException, daemonUp: boolean): Finding => {
  if (error.code === "EADDRNOTAVAIL") return ok(name, "skipped: this machine has no such address")
  if (error.code === "EADDRINUSE" && daemonUp) return ok(name, "taken, by the daemon that answers")
  return fail(name, error.code === "EADDRINUSE" ? "taken by another process" : error.message, "ss -ltnp, or set LISTEN")
}

/** CloudStack, the guest and the NBD server, as the daemon itself would read them. */
const witnesses = Effect.fn("Doctor.witnesses")(function* (settings: Settings) {
  const { cloud, guest, nbd } = yield* Effect.all(
    { cloud: cloudStack(settings), guest: devices(settings), nbd: nbdServer(settings) },
    { concurrency: 3 }
  )
  return [...cloud, guest, ...nbd]
})

const cloudStack = Effect.fn("Doctor.cloudStack")(function* (settings: Settings) {
  const cloud = yield* CloudStackRead
  const capabilities = yield* Effect.either(cloud.capabilities)
  if (Either.isLeft(capabilities)) {
    return [fail("CloudStack", clean(capabilities.left.message), cloudFix(capabilities.left))]
  }
  const { version } = capabilities.right
  const machines = yield* Effect.either(cloud.virtualMachines([settings.appliance_vm_id]))
  const vm = Either.isRight(machines) ? machines.right.found[0] : undefined
  return [
    ok("CloudStack", clean(`version ${version} accepts our signature`)),
    vm === undefined
      ? fail(
          "appliance VM",
          `${settings.appliance_vm_id} is not visible to this account`,
          "APPLIANCE_VM_ID, or the account's rights"
        )
      : ok("appliance VM", clean(`${vm.name} (${vm.id}) is ${vm.state}`))
  ]
})

const cloudFix = (error: CloudStackUnavailable): string => {
  switch (error.kind) {
    case "unauthorized":
      return "CLOUDSTACK_API_KEY and CLOUDSTACK_SECRET_KEY: a key pair of an enabled user"
    case "clock_skew":
      return "timedatectl set-ntp true"
    case "transport":
    case "timeout":
      return "CLOUDSTACK_API_URL, and the way there: curl -v the URL"
    default:
      return "what CloudStack says; its management server's log has the details"
  }
}

const devices = Effect.fn("Doctor.devices")(function* (settings: Settings) {
  const guest = yield* Devices
  const reading = yield* Effect.either(guest.observe)
  if (Either.isLeft(reading)) {
    return fail(
      "devices",
      clean(reading.left.message),
      "SYS_BLOCK_DIR and BY_ID_DIR must be readable by the daemon's user"
    )
  }
  const { devices: disks, broken_links } = reading.right
  const found = `${disks.filter((disk) => disk.serial !== null).length} disks with a serial, links in ${settings.by_id_dir}`
  return broken_links.length === 0
    ? ok("devices", found)
    : warn(
        "devices",
        `${found}; ${broken_links.length} links lead nowhere: ${broken_links[0]?.path ?? ""}`,
        "udevadm trigger"
      )
})

const nbdServer = Effect.fn("Doctor.nbdServer")(function* (settings: Settings) {
  const nbd = yield* Nbd
  const reading = yield* Effect.either(nbd.observe([]))
  if (Either.isLeft(reading)) return [fail("NBD server", clean(reading.left.message), "systemctl status nbd-server")]
  return [nbdState(reading.right, settings), nbdConfig(reading.right, settings)]
})

const nbdState = (reading: NbdReading, settings: Settings): Finding => {
  const name = `${reading.engine} ${reading.version ?? ""}`.trim()
  const problem = clean(reading.server.problem ?? reading.server.state)
  switch (reading.server.state) {
    case "running":
      return ok("NBD server", `${name} runs as pid ${reading.server.pid ?? "?"} with ${settings.nbd.config}`)
    case "absent":
      return settings.nbd.start === "off"
        ? warn("NBD server", `${name}: none listens on port ${reading.port}`, `nbd-server -C ${settings.nbd.config}`)
        : ok(
            "NBD server",
            `${name}: none listens on port ${reading.port}; volumed starts it when there is something to serve`
          )
    case "not_installed":
      return fail("NBD server", problem, "apt-get install nbd-server")
    case "foreign":
      return fail(
        "NBD server",
        problem,
        `give NBD_CONFIG the file of its -C, or NBD_PORT another port (ss -ltnp 'sport = ${reading.port}')`
      )
    case "hung":
      return fail("NBD server", problem, "nothing: volumed replaces it; without volumed end that process")
  }
}

const nbdConfig = (reading: NbdReading, settings: Settings): Finding =>
  reading.config_problem === null
    ? ok("NBD config", `${settings.nbd.config}: ${reading.sections.length} exports`)
    : fail("NBD config", clean(reading.config_problem), `mend ${settings.nbd.config}, or move it away`)

const text = (findings: ReadonlyArray<Finding>, paint: Paint): string => {
  const shade = { ok: paint.good, warn: paint.warn, fail: paint.bad }
  const width = findings.reduce((most, finding) => Math.max(most, finding.check.length), 0)
  const lines = findings.map(({ check, state, found, fix }) => {
    const line = `${shade[state](state.padEnd(4))}  ${check.padEnd(width)}  ${found}\n`
    return fix === null ? line : `${line}${" ".repeat(width + 8)}fix: ${fix}\n`
  })
  const verdict = outcome(findings) === "done" ? "Go." : "Not now: mend what failed first."
  return `${lines.join("")}\n${verdict}\n`
}
