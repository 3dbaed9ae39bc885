import * as HttpClient from "@effect/platform/HttpClient"
import { Clock, type Context, Effect, Either } from "effect"
import { createServer } from "node:net"
import { type CloudPlace, CloudStackRead } from "../../reconciler/CloudStack.ts"
import { Devices } from "../../reconciler/Devices.ts"
import type { CloudStackUnavailable, Misconfigured } from "../../schema/Errors.ts"
import type { Settings } from "../../schema/Settings.ts"
import * as Gate from "../Gate.ts"
import * as Layers from "../Layers.ts"
import * as SettingsFrom from "../Settings.ts"
import * as DefaultZone from "../CloudStack/DefaultZone.ts"
import * as CloudStackHttp from "../CloudStack/Http.ts"
import type { Invocation } from "./Arguments.ts"
import { Daemon } from "./Daemon.ts"
import * as DatabaseCheck from "./DatabaseCheck.ts"
import { type Finding, fail, ok, outcome, text, warn } from "./Finding.ts"
import * as NbdCheck from "./NbdCheck.ts"
import * as Package from "./Package.ts"
import { clean, show } from "./Output.ts"

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
  yield* show({ checks: findings }, (paint) => text(findings, paint, "Not now: mend what failed first."))
  return outcome(findings)
})

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
  const stored = yield* DatabaseCheck.check(found, daemonUp)
  const ports = yield* Effect.forEach(found.listen, (address) => port(address, daemonUp))
  const seen = yield* witnesses(found).pipe(
    Effect.provide(Layers.looking(found, { version: Package.version(), stop_nbd: false })),
    Effect.catchTag("Misconfigured", (error) => Effect.succeed(misconfigured(error)))
  )
  return [ok("settings", "complete"), ...stored, holdFile(found.hold_file), ...ports, ...seen]
})

const misconfigured = (error: Misconfigured): ReadonlyArray<Finding> =>
  error.problems.map(({ key, problem, example }) => fail("settings", clean(`${key}: ${problem}`), example))

const holdFile = (path: string): Finding => {
  const reason = Gate.heldBy(path)
  return reason === null
    ? ok("hold file", `${path} is absent`)
    : fail("hold file", clean(`${reason}: volumed does not act`), `rm ${path}`)
}

/** More than this and signatures that are valid for a minute are refused. */
const SKEW_MS_MAX = 30_000

/** By the daemon's own way there: its certificates, and the addresses that it refuses (e4). */
const clock = Effect.fn("Doctor.clock")(function* (apiUrl: string, config: Settings["cloudstack"]) {
  const answer = yield* HttpClient.head(apiUrl).pipe(
    Effect.provide(CloudStackHttp.layer(config)),
    Effect.timeout("5 seconds"),
    Effect.option
  )
  const date = answer._tag === "None" ? Number.NaN : Date.parse(answer.value.headers["date"] ?? "")
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
    { cloud: cloudStack(settings), guest: devices(settings), nbd: NbdCheck.check(settings) },
    { concurrency: 3 }
  )
  return [...cloud, guest, ...nbd]
})

const cloudStack = Effect.fn("Doctor.cloudStack")(function* (settings: Settings) {
  const cloud = yield* CloudStackRead
  const place = yield* cloud.place
  const known = place === null ? [] : [located(place), yield* clock(place.api_url, settings.cloudstack)]
  const capabilities = yield* Effect.either(cloud.capabilities)
  if (Either.isLeft(capabilities)) {
    return [...known, fail("CloudStack", clean(capabilities.left.message), cloudFix(capabilities.left))]
  }
  const { version } = capabilities.right
  const machines = yield* Effect.either(cloud.virtualMachines([settings.appliance_vm_id]))
  const vm = Either.isRight(machines) ? machines.right.found[0] : undefined
  return [
    ...known,
    ok("CloudStack", clean(`version ${version} accepts our signature`)),
    yield* zone(cloud, place),
    vm === undefined
      ? fail(
          "appliance VM",
          `${settings.appliance_vm_id} is not visible to this account`,
          "APPLIANCE_VM_ID, or the account's rights"
        )
      : ok("appliance VM", clean(`${vm.name} (${vm.id}) is ${vm.state}`))
  ]
})

const located = ({ api_url, domain, problem, source }: CloudPlace): Finding => {
  const place = `${api_url}${domain === null ? "" : `, domain ${domain}`}, from ${source}`
  return problem === null
    ? ok("CloudStack is", clean(place))
    : warn("CloudStack is", clean(`${place}; ${problem}`), "the row of ossea_configs, or set what it is to bring")
}

/** A zone that is configured by name must be one that CloudStack shows, and only one. */
const zone = Effect.fn("Doctor.zone")(function* (cloud: Context.Tag.Service<CloudStackRead>, place: CloudPlace | null) {
  const zones = yield* Effect.either(cloud.zones)
  if (Either.isLeft(zones)) return fail("zone", clean(zones.left.message), cloudFix(zones.left))
  const named = zones.right.map(({ id, name }) => [id, name] as const)
  const id = yield* Effect.orElseSucceed(DefaultZone.of(cloud, Effect.succeed(named)), () => null)
  const text = place?.zone ?? null
  if (text === null) return ok("zone", "none is configured: each declaration names its own")
  const name = named.find(([known]) => known === id)?.[1]
  return name === undefined
    ? fail(
        "zone",
        clean(`${text} is not one zone that CloudStack shows`),
        "DEFAULT_ZONE_ID, or the zone in ossea_configs"
      )
    : ok("zone", clean(`${name} (${id})`))
})

const cloudFix = (error: CloudStackUnavailable): string => {
  switch (error.kind) {
    case "unconfigured":
      return "DATABASE_DSN, for ossea_configs is there; or CLOUDSTACK_API_URL, CLOUDSTACK_API_KEY, CLOUDSTACK_SECRET_KEY"
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
