import { Effect, Either, Redacted } from "effect"
import { Misconfigured } from "../schema/Errors.ts"
import type { OfferingId, VmId, ZoneId } from "../schema/Ids.ts"
import * as NbdConfig from "../schema/NbdConfig.ts"
import { limits, type Settings } from "../schema/Settings.ts"
import * as File from "./Settings/File.ts"
import { foreign, isSecret, type Key, keys } from "./Settings/Keys.ts"
import * as Value from "./Settings/Value.ts"
import * as Dsn from "./Store/Dsn.ts"

export interface Options {
  readonly dry_run: boolean
  /** As by `--sandbox`; `SANDBOX=1` says so too. */
  readonly sandbox: boolean
  /** As by `--require-durable`; `REQUIRE_DURABLE` says so too. */
  readonly require_durable?: boolean
  /** What `--listen` says; it wins over everything. */
  readonly listen: string | null
  /** Logs are read by a person right now. */
  readonly terminal: boolean
}

type Problem = Misconfigured["problems"][number]

/** What is set, by key, and everything that is wrong with it: collected, so that a person mends it in one go. */
interface Reading {
  readonly values: ReadonlyMap<string, string>
  readonly problems: Array<Problem>
}

const exampleOf = (key: string): string => (key in keys ? keys[key as Key].example : "see the README")

const complain = (reading: Reading, key: string, problem: string, example = exampleOf(key)) => {
  reading.problems.push({ key, problem, example })
}

/**
 * The whole configuration from the environment and, where one is named, a file with the same keys; the environment
 * wins, an empty value is none. Everything that is wrong is said at once.
 */
export const fromEnvironment = (
  environment: Readonly<Record<string, string | undefined>>,
  file: string | null,
  options: Options
): Effect.Effect<Settings, Misconfigured> =>
  Effect.suspend(() => {
    const problems: Array<Problem> = []
    const reading: Reading = { values: gather(environment, file, problems), problems }
    const settings = assemble(reading, options)
    if (problems.length > 0 || settings === null) return new Misconfigured({ problems })
    return Effect.succeed(settings)
  })

const gather = (
  environment: Readonly<Record<string, string | undefined>>,
  file: string | null,
  problems: Array<Problem>
): ReadonlyMap<string, string> => {
  const own = new Map(
    Object.entries(environment).flatMap(([key, value]): Array<[string, string]> =>
      value === undefined || value === "" || !isKnown(key) ? [] : [[key, value]]
    )
  )
  const layers = file === null ? [own] : [readFile(file, problems), own]
  const values = new Map<string, string>()
  for (const layer of layers)
    for (const [key, value] of layer) {
      const secret = secretOf(key)
      if (secret !== null && layer.has(secret))
        problems.push({ key, problem: `and ${secret} are both set`, example: `leave ${secret} out` })
      // A layer replaces the key of the one below in whichever form that came.
      values.delete(secret ?? `${key}_FILE`)
      values.set(key, value)
    }
  return new Map([...values].map(([key, value]) => readSecret(key, value, problems)))
}

/** The key whose value is in the file that `KEY_FILE` names; null for any other key. */
const secretOf = (key: string): Key | null => {
  const bare = key.endsWith("_FILE") ? key.slice(0, -"_FILE".length) : ""
  return bare in keys && isSecret(bare as Key) ? (bare as Key) : null
}

const isKnown = (key: string) => key in keys || secretOf(key) !== null

const readFile = (file: string, problems: Array<Problem>): Map<string, string> => {
  const complain = (problem: string, example: string, line?: number) =>
    problems.push({ key: line === undefined ? "--config" : `${file}:${line}`, problem, example })
  const text = File.read(file)
  if (Either.isLeft(text)) {
    complain(`${file} cannot be read: ${text.left}`, "--config /etc/volumed/volumed.conf")
    return new Map()
  }
  const parsed = File.parse(text.right)
  for (const { line, problem } of parsed.problems)
    complain(problem, "CLOUDSTACK_API_URL=https://cloudstack.example.com", line)
  const found = new Map<string, string>()
  for (const { key, value, line } of parsed.entries.filter(({ value }) => value !== ""))
    if (isKnown(key)) found.set(key, value)
    else if (!foreign.has(key)) complain(`${key} is not a setting${resembling(key)}`, "RESYNC_INTERVAL=60s", line)
  const exposure = [...found.keys()].some((key) => key in keys && isSecret(key as Key)) ? File.exposure(file) : null
  if (exposure !== null) complain(exposure, `chmod 600 ${file}`)
  return found
}

/** A hint for a key that is nearly one. */
const resembling = (key: string): string => {
  const plain = (text: string) => text.toUpperCase().replaceAll("_", "")
  const near = Object.keys(keys).find((known) => plain(known).includes(plain(key)) || plain(key).includes(plain(known)))
  return near === undefined ? "" : `; is ${near} meant?`
}

const readSecret = (key: string, value: string, problems: Array<Problem>): [string, string] => {
  const secret = secretOf(key)
  if (secret === null) return [key, value]
  const example = `${key}=/etc/volumed/${secret.toLowerCase().replaceAll("_", "-")}`
  const exposure = File.exposure(value)
  const text = Either.map(File.read(value), (text) => text.replace(/\r?\n$/, ""))
  if (Either.isLeft(text)) problems.push({ key, problem: `${value} cannot be read: ${text.left}`, example })
  else if (exposure !== null) problems.push({ key, problem: exposure, example: `chmod 600 ${value}` })
  else if (text.right === "") problems.push({ key, problem: `${value} is empty`, example })
  // In any case something was set, so that "is required" does not follow.
  return [secret, Either.getOrElse(text, () => "")]
}

/** A value, or what stands for it where none is set. Of a secret nothing is repeated. */
const optional = <A, B>(reading: Reading, key: Key, parser: Value.Parser<A>, absent: B): A | B => {
  const value = reading.values.get(key)
  if (value === undefined) return absent
  const parsed = parser(value)
  if (Either.isRight(parsed)) return parsed.right
  const silent = isSecret(key) || mayHoldSecret(value)
  complain(reading, key, silent ? parsed.left : `${JSON.stringify(value.slice(0, 200))} ${parsed.left}`)
  return absent
}

/** A URL with a user, a query or a fragment, where people put keys. */
const mayHoldSecret = (value: string): boolean => /@|:\/\/.*[?#]/.test(value)

const required = <A>(reading: Reading, key: Key, parser: Value.Parser<A>, why: string): A | null => {
  if (!reading.values.has(key)) complain(reading, key, why)
  return optional(reading, key, parser, null)
}

const judged =
  (problemOf: (text: string) => string | null): Value.Parser<string> =>
  (text) => {
    const problem = problemOf(text)
    return problem === null ? Either.right(text) : Either.left(problem)
  }

const assemble = (reading: Reading, options: Options): Settings | null => {
  const sandbox = optional(reading, "SANDBOX", Value.flag, false) || options.sandbox
  const state_dir = optional(reading, "STATE_DIR", Value.path, "/var/lib/volumed")
  // A sandbox process names everything else; its daemon's database lies with the rest of its state.
  const dsn = sandbox
    ? optional(reading, "DATABASE_DSN", judged(Dsn.problemOf), `sqlite:${state_dir}/volumed.db`)
    : required(reading, "DATABASE_DSN", judged(Dsn.problemOf), "is required")
  const cloudstack = assembleCloudStack(reading, dsn)
  const appliance_vm_id = appliance(reading)
  const nbd = assembleNbd(reading, sandbox)
  const device_kind = optional(reading, "DEVICE_KIND", Value.oneOf("block", "file"), "block")
  if (device_kind === "file" && !sandbox)
    complain(reading, "DEVICE_KIND", "is file, which only the sandbox has", "block")
  const idle = optional(reading, "RESYNC_INTERVAL", Value.duration("1s", "1h"), 60_000)
  const rest = {
    database_ca_file: optional(reading, "DATABASE_CA_FILE", Value.path, null),
    require_durable: optional(reading, "REQUIRE_DURABLE", Value.flag, false) || options.require_durable === true,
    state_dir,
    ...assembleAccess(reading, options),
    by_id_dir: optional(reading, "BY_ID_DIR", Value.path, "/dev/disk/by-id"),
    sys_block_dir: optional(reading, "SYS_BLOCK_DIR", Value.path, "/sys/block"),
    device_kind,
    nbd,
    hold_file: optional(reading, "HOLD_FILE", Value.path, "/run/volumed/hold"),
    resync_idle_ms: idle,
    resync_busy_ms: optional(reading, "RESYNC_BUSY_INTERVAL", Value.duration("1s", "1h"), Math.min(idle, 15_000)),
    poll_ms: optional(reading, "POLL_INTERVAL", Value.duration("200ms", "1m"), 2_000),
    default_disk_offering_id: optional(reading, "DEFAULT_DISK_OFFERING_ID", Value.uuid<OfferingId>, null),
    default_zone_id: optional(reading, "DEFAULT_ZONE_ID", Value.uuid<ZoneId>, null),
    delete_grace_ms: optional(reading, "DELETE_GRACE", Value.duration("0s", "30d"), 600_000),
    operations_kept_ms: optional(reading, "OPERATIONS_KEPT", Value.duration("1d", "3650d"), 90 * 86_400_000),
    events_kept_ms: optional(reading, "EVENTS_KEPT", Value.duration("1d", "3650d"), 90 * 86_400_000),
    limits: assembleLimits(reading),
    log_level: optional(reading, "LOG_LEVEL", logLevel, "info" as const),
    log_format: optional(reading, "LOG_FORMAT", Value.oneOf("pretty", "json"), options.terminal ? "pretty" : "json"),
    sandbox,
    dry_run: options.dry_run
  } as const
  if (dsn === null || cloudstack === null || appliance_vm_id === null) return null
  return { database_dsn: Redacted.make(dsn), cloudstack, appliance_vm_id, ...rest }
}

/**
 * URL and keys each come from one place: the URL from here or from the row of `ossea_configs`, both keys from here or
 * both from there. A database of the embedded kind has no such row.
 */
const assembleCloudStack = (reading: Reading, dsn: string | null): Settings["cloudstack"] | null => {
  const stored = dsn !== null && !dsn.startsWith("sqlite:")
  const of = <A>(key: Key, parser: Value.Parser<A>, why: string): A | null =>
    stored ? optional(reading, key, parser, null) : required(reading, key, parser, why)
  const allow_http = optional(reading, "CLOUDSTACK_ALLOW_HTTP", Value.flag, false)
  const api_url = of("CLOUDSTACK_API_URL", Value.apiUrl(allow_http), "is required")
  const api_key = of("CLOUDSTACK_API_KEY", Value.secret, "is required, here or by CLOUDSTACK_API_KEY_FILE")
  const secret_key = of("CLOUDSTACK_SECRET_KEY", Value.secret, "is required, here or by CLOUDSTACK_SECRET_KEY_FILE")
  const pair = ["CLOUDSTACK_API_KEY", "CLOUDSTACK_SECRET_KEY"] as const
  const lacking = pair.find((key) => !reading.values.has(key))
  if (stored && lacking !== undefined && pair.some((key) => reading.values.has(key)))
    complain(reading, lacking, "is not set, and its other half is: both come from here, or both from ossea_configs")
  const rest = {
    project_id: optional(reading, "CLOUDSTACK_PROJECT_ID", Value.uuid, null),
    ca_file: optional(reading, "CLOUDSTACK_CA_FILE", Value.path, null),
    allow_http,
    read_timeout_ms: optional(reading, "CLOUDSTACK_READ_TIMEOUT", Value.duration("1s", "10m"), 30_000),
    call_timeout_ms: optional(reading, "CLOUDSTACK_CALL_TIMEOUT", Value.duration("1s", "10m"), 120_000),
    connections: optional(reading, "CLOUDSTACK_CONNECTIONS", Value.whole(1, 64), 8)
  }
  if (!stored && (api_url === null || api_key === null || secret_key === null)) return null
  const redacted = (value: string | null) => (value === null ? null : Redacted.make(value))
  return { api_url, api_key: redacted(api_key), secret_key: redacted(secret_key), ...rest }
}

/** The DMI's product UUID is what CloudStack gave the VM as its id. Some firmware shows it in upper case. */
const appliance = (reading: Reading): VmId | null => {
  if (reading.values.has("APPLIANCE_VM_ID")) return optional(reading, "APPLIANCE_VM_ID", Value.uuid<VmId>, null)
  const file = optional(reading, "DMI_UUID_FILE", Value.path, "/sys/class/dmi/id/product_uuid")
  const found = Either.flatMap(File.read(file), (text) => Value.uuid<VmId>(text.trim().toLowerCase()))
  if (Either.isRight(found)) return found.right
  complain(reading, "APPLIANCE_VM_ID", `is not set, and ${file} does not tell it (${found.left})`)
  return null
}

const assembleNbd = (reading: Reading, sandbox: boolean): Settings["nbd"] => {
  const backend = optional(reading, "NBD_BACKEND", Value.oneOf("nbd-server", "nbdkit", "simulated"), "nbd-server")
  if (backend === "simulated" && !sandbox) complain(reading, "NBD_BACKEND", "is simulated, which only the sandbox has")
  const address = judged(NbdConfig.addressProblem)
  const path = judged(NbdConfig.pathProblem)
  const host = optional(reading, "NBD_HOST", address, "127.0.0.1")
  return {
    backend,
    config: optional(reading, "NBD_CONFIG", path, "/etc/nbd-server/config-base"),
    acl_dir: optional(reading, "NBD_ACL_DIR", path, "/etc/nbd-server/acl"),
    host,
    port: optional(reading, "NBD_PORT", Value.whole(1, 65_535), 10_809),
    allow: optional(reading, "NBD_ALLOW", Value.list(address), [...new Set(["127.0.0.1", host])]),
    explicit: {
      host: reading.values.has("NBD_HOST"),
      port: reading.values.has("NBD_PORT"),
      allow: reading.values.has("NBD_ALLOW")
    },
    start: optional(reading, "NBD_START", nbdStart, "auto"),
    pin: optional(reading, "NBD_PIN", Value.flag, false)
  }
}

const nbdStart = judged((text) =>
  text === "auto" || text === "off" || /^unit:[A-Za-z0-9_][A-Za-z0-9:_.@-]{0,200}$/.test(text)
    ? null
    : "is neither auto, off nor unit:NAME"
)

/** Who can reach us, and who of them may call. */
const assembleAccess = (reading: Reading, options: Options) => {
  const listen = assembleListen(reading, options)
  const token_file = optional(reading, "VOLUMED_TOKEN_FILE", Value.path, null)
  const tls = assembleTls(reading)
  const wide = listen.filter(({ host }) => !Value.isLoopback(host)).map(({ host }) => host)
  if (wide.length > 0 && (token_file === null || tls === null))
    complain(
      reading,
      "LISTEN",
      `names ${wide.join(", ")}, which other machines can reach: that needs VOLUMED_TOKEN_FILE, TLS_CERT_FILE and TLS_KEY_FILE`
    )
  return {
    listen,
    token_file,
    tls,
    rate_limit: optional(reading, "RATE_LIMIT", Value.whole(0, 100_000), 200),
    declarations_max: optional(reading, "DECLARATIONS_MAX", Value.whole(1, 1_000_000), 20_000),
    v1_attach_exports: optional(reading, "V1_ATTACH_EXPORTS", Value.flag, true)
  }
}

const assembleListen = (reading: Reading, options: Options): Settings["listen"] => {
  const own = { ...reading, values: options.listen === null ? reading.values : new Map([["LISTEN", options.listen]]) }
  const listeners = optional(own, "LISTEN", Value.list(Value.listener), [
    { host: "127.0.0.1", port: 8090 },
    { host: "::1", port: 8090 }
  ])
  if (listeners.length === 0) complain(reading, "LISTEN", "names no address")
  return listeners
}

const assembleTls = (reading: Reading): Settings["tls"] => {
  const cert_file = optional(reading, "TLS_CERT_FILE", Value.path, null)
  const key_file = optional(reading, "TLS_KEY_FILE", Value.path, null)
  const both = ["TLS_CERT_FILE", "TLS_KEY_FILE"] as const
  const lacking = both.find((key) => !reading.values.has(key))
  if (lacking !== undefined && both.some((key) => reading.values.has(key)))
    complain(reading, lacking, "is not set, and a certificate is nothing without its key")
  return cert_file === null || key_file === null ? null : { cert_file, key_file }
}

const assembleLimits = (reading: Reading): Settings["limits"] => ({
  destructive_per_pass: optional(reading, "DESTRUCTIVE_PER_PASS", Value.whole(0, 100), limits.destructive_per_pass),
  destructive_per_hour: optional(reading, "DESTRUCTIVE_PER_HOUR", Value.whole(0, 1000), limits.destructive_per_hour),
  actions_per_vm: optional(reading, "ACTIONS_PER_VM", Value.whole(1, 32), limits.actions_per_vm),
  actions_total: optional(reading, "ACTIONS_TOTAL", Value.whole(1, 256), limits.actions_total),
  disks_per_vm: optional(reading, "DISKS_PER_VM", Value.whole(1, 256), limits.disks_per_vm),
  suspicion_count: optional(reading, "SUSPICION_COUNT", Value.whole(1, 1000), limits.suspicion_count),
  suspicion_share: optional(reading, "SUSPICION_SHARE", Value.share, limits.suspicion_share),
  loss_confirmation_ms: optional(
    reading,
    "LOSS_CONFIRMATION",
    Value.duration("30s", "1d"),
    limits.loss_confirmation_ms
  ),
  drain_ms: optional(reading, "NBD_DRAIN", Value.duration("0s", "1d"), limits.drain_ms),
  call_drain_ms: optional(reading, "NBD_CALL_DRAIN", Value.duration("0s", "50s"), limits.call_drain_ms),
  device_timeout_ms: optional(reading, "DEVICE_TIMEOUT", Value.duration("1s", "1h"), limits.device_timeout_ms),
  contention_repairs: optional(reading, "CONTENTION_REPAIRS", Value.whole(0, 100), limits.contention_repairs),
  contention_window_ms: optional(reading, "CONTENTION_WINDOW", Value.duration("1m", "7d"), limits.contention_window_ms),
  limbo_ms: optional(reading, "OPERATOR_TIMEOUT", Value.duration("1m", "1d"), limits.limbo_ms),
  expiry_margin_ms: limits.expiry_margin_ms
})

/** The daemon this one replaces logged with logrus; its words mean here what they meant there, as far as there is a difference. */
const logLevel: Value.Parser<Settings["log_level"]> = (text) => {
  const levels: Readonly<Record<string, Settings["log_level"]>> = {
    trace: "debug",
    debug: "debug",
    info: "info",
    warn: "warning",
    warning: "warning",
    error: "error",
    fatal: "error",
    panic: "error"
  }
  const found = levels[text.toLowerCase()]
  return found === undefined ? Either.left("is none of debug, info, warning, error") : Either.right(found)
}

/** What is set that makes it less safe against others, a sentence each: shown in health. */
export const insecurities = ({ cloudstack, database_dsn, nbd }: Settings): ReadonlyArray<string> => [
  ...(nbd.backend === "nbdkit" && !Value.isLoopback(nbd.host)
    ? ["nbdkit admits everybody who can reach it, and knows no list of addresses (NBD_BACKEND, NBD_HOST)"]
    : []),
  ...(cloudstack.allow_http ? ["CloudStack may be asked by plain http (CLOUDSTACK_ALLOW_HTTP)"] : []),
  ...(Dsn.isUnverified(database_dsn) ? ["the certificate of the database is not verified (DATABASE_DSN)"] : [])
]

/**
 * As lines of a config file, what is not followed as comments before it; secrets as `<redacted>`. What this prints, the
 * secrets put back, is read as the same settings.
 */
export const render = (settings: Settings): string =>
  [
    ...Dsn.warnings(settings.database_dsn).map((warning) => `# DATABASE_DSN: ${warning}\n`),
    ...Object.entries(lines(settings)).map(
      ([key, value]) => `${key}=${value === REDACTED ? value : File.quote(value)}\n`
    )
  ].join("")

const REDACTED = String(Redacted.make(""))

const lines = (settings: Settings): Readonly<Partial<Record<Key, string>>> => {
  const { cloudstack, limits, nbd } = settings
  const dsn = Redacted.value(settings.database_dsn)
  const given = (key: Key, value: string | null) => (value === null ? {} : { [key]: value })
  return {
    DATABASE_DSN: dsn.startsWith("sqlite:") ? dsn : REDACTED,
    ...given("DATABASE_CA_FILE", settings.database_ca_file),
    REQUIRE_DURABLE: String(settings.require_durable),
    STATE_DIR: settings.state_dir,
    LISTEN: settings.listen.map(({ host, port }) => `${host.includes(":") ? `[${host}]` : host}:${port}`).join(","),
    ...given("VOLUMED_TOKEN_FILE", settings.token_file),
    ...given("TLS_CERT_FILE", settings.tls?.cert_file ?? null),
    ...given("TLS_KEY_FILE", settings.tls?.key_file ?? null),
    RATE_LIMIT: String(settings.rate_limit),
    DECLARATIONS_MAX: String(settings.declarations_max),
    V1_ATTACH_EXPORTS: String(settings.v1_attach_exports),
    ...given("CLOUDSTACK_API_URL", cloudstack.api_url),
    ...given("CLOUDSTACK_API_KEY", cloudstack.api_key === null ? null : REDACTED),
    ...given("CLOUDSTACK_SECRET_KEY", cloudstack.secret_key === null ? null : REDACTED),
    ...given("CLOUDSTACK_PROJECT_ID", cloudstack.project_id),
    ...given("CLOUDSTACK_CA_FILE", cloudstack.ca_file),
    CLOUDSTACK_ALLOW_HTTP: String(cloudstack.allow_http),
    CLOUDSTACK_READ_TIMEOUT: Value.renderDuration(cloudstack.read_timeout_ms),
    CLOUDSTACK_CALL_TIMEOUT: Value.renderDuration(cloudstack.call_timeout_ms),
    CLOUDSTACK_CONNECTIONS: String(cloudstack.connections),
    APPLIANCE_VM_ID: settings.appliance_vm_id,
    BY_ID_DIR: settings.by_id_dir,
    SYS_BLOCK_DIR: settings.sys_block_dir,
    DEVICE_KIND: settings.device_kind,
    NBD_BACKEND: nbd.backend,
    NBD_CONFIG: nbd.config,
    NBD_ACL_DIR: nbd.acl_dir,
    ...given("NBD_HOST", nbd.explicit.host ? nbd.host : null),
    ...given("NBD_PORT", nbd.explicit.port ? String(nbd.port) : null),
    ...given("NBD_ALLOW", nbd.explicit.allow ? nbd.allow.join(",") : null),
    NBD_START: nbd.start,
    NBD_PIN: String(nbd.pin),
    HOLD_FILE: settings.hold_file,
    RESYNC_INTERVAL: Value.renderDuration(settings.resync_idle_ms),
    RESYNC_BUSY_INTERVAL: Value.renderDuration(settings.resync_busy_ms),
    POLL_INTERVAL: Value.renderDuration(settings.poll_ms),
    ...given("DEFAULT_DISK_OFFERING_ID", settings.default_disk_offering_id),
    ...given("DEFAULT_ZONE_ID", settings.default_zone_id),
    DELETE_GRACE: Value.renderDuration(settings.delete_grace_ms),
    OPERATIONS_KEPT: Value.renderDuration(settings.operations_kept_ms),
    EVENTS_KEPT: Value.renderDuration(settings.events_kept_ms),
    ...limitLines(limits),
    LOG_LEVEL: settings.log_level,
    LOG_FORMAT: settings.log_format,
    SANDBOX: String(settings.sandbox)
  }
}

const limitLines = (limits: Settings["limits"]): Readonly<Partial<Record<Key, string>>> => ({
  DESTRUCTIVE_PER_PASS: String(limits.destructive_per_pass),
  DESTRUCTIVE_PER_HOUR: String(limits.destructive_per_hour),
  ACTIONS_PER_VM: String(limits.actions_per_vm),
  ACTIONS_TOTAL: String(limits.actions_total),
  DISKS_PER_VM: String(limits.disks_per_vm),
  SUSPICION_COUNT: String(limits.suspicion_count),
  SUSPICION_SHARE: String(limits.suspicion_share),
  LOSS_CONFIRMATION: Value.renderDuration(limits.loss_confirmation_ms),
  NBD_DRAIN: Value.renderDuration(limits.drain_ms),
  NBD_CALL_DRAIN: Value.renderDuration(limits.call_drain_ms),
  DEVICE_TIMEOUT: Value.renderDuration(limits.device_timeout_ms),
  CONTENTION_REPAIRS: String(limits.contention_repairs),
  CONTENTION_WINDOW: Value.renderDuration(limits.contention_window_ms),
  OPERATOR_TIMEOUT: Value.renderDuration(limits.limbo_ms)
})
