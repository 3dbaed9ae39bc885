import { Schema } from "effect"
import { OfferingId, VmId, ZoneId } from "./Ids.ts"

/** Limits that the planner obeys. All counts and milliseconds. */
export const Limits = Schema.Struct({
  /** Destructive actions a pass, and in any hour; more are held for approval (S17). */
  destructive_per_pass: Schema.Int,
  destructive_per_hour: Schema.Int,
  /** Unresolved CloudStack mutations a VM: CloudStack runs a VM's disk work one at a time, so more only queue there. */
  actions_per_vm: Schema.Int,
  /** Unresolved CloudStack mutations in all. */
  actions_total: Schema.Int,
  /** Data disks a VM may have (CloudStack's hypervisor capability; KVM: 32). */
  disks_per_vm: Schema.Int,
  /** Missing volumes at once from which destruction and creation stop: at least this many … */
  suspicion_count: Schema.Int,
  /** … and more than this share of all bound ones. */
  suspicion_share: Schema.Number,
  /** Two proofs of absence must be this far apart before a volume counts as lost. */
  loss_confirmation_ms: Schema.Int,
  /** How long a volume that is to leave waits for its NBD clients before it is held as `InUse`. */
  drain_ms: Schema.Int,
  /** The same for a version 1 call, after which those clients' connections are ended (contract §2). */
  call_drain_ms: Schema.Int,
  /** From an attach seen in CloudStack to the device being called missing. */
  device_timeout_ms: Schema.Int,
  /** Repairs of an attachment within `contention_window_ms` from which drift is `Contended`. */
  contention_repairs: Schema.Int,
  contention_window_ms: Schema.Int,
  /** An unresolved operation older than this asks for an operator (L4). */
  limbo_ms: Schema.Int,
  /** Margin added to a request's expiry before "no trace" is believed. */
  expiry_margin_ms: Schema.Int
})
export type Limits = typeof Limits.Type

export const limits: Limits = {
  destructive_per_pass: 5,
  destructive_per_hour: 20,
  actions_per_vm: 3,
  actions_total: 24,
  disks_per_vm: 32,
  suspicion_count: 3,
  suspicion_share: 0.2,
  loss_confirmation_ms: 30_000,
  drain_ms: 60_000,
  call_drain_ms: 20_000,
  device_timeout_ms: 60_000,
  contention_repairs: 2,
  contention_window_ms: 3_600_000,
  limbo_ms: 1_800_000,
  expiry_margin_ms: 5_000
}

export const NbdSettings = Schema.Struct({
  backend: Schema.Literal("nbd-server", "nbdkit", "simulated"),
  config: Schema.String,
  acl_dir: Schema.String,
  host: Schema.String,
  port: Schema.Int,
  allow: Schema.Array(Schema.String),
  /** Which of the three above somebody set: the others give way to what a file that exists says. */
  explicit: Schema.Struct({ host: Schema.Boolean, port: Schema.Boolean, allow: Schema.Boolean }),
  /** `auto`, `off` or `unit:NAME`. */
  start: Schema.String,
  /** Exports name the device as a holder process opened and verified it, not the by-id link. */
  pin: Schema.Boolean
})
export type NbdSettings = typeof NbdSettings.Type

/** The whole configuration, defaults filled in. Secrets are `Redacted` and print as `<redacted>`. */
export const Settings = Schema.Struct({
  database_dsn: Schema.Redacted(Schema.String),
  /** Certificates by which the database's is verified; null: those the system trusts. */
  database_ca_file: Schema.NullOr(Schema.String),
  /** A database that may lose what it acknowledged is refused, not only reported. */
  require_durable: Schema.Boolean,
  state_dir: Schema.String,
  listen: Schema.Array(Schema.Struct({ host: Schema.String, port: Schema.Int })),
  /** Whoever may call stands in it; null: whoever can connect, which then is this machine alone. */
  token_file: Schema.NullOr(Schema.String),
  tls: Schema.NullOr(Schema.Struct({ cert_file: Schema.String, key_file: Schema.String })),
  /** Requests a second for each token; 0: no limit. */
  rate_limit: Schema.Int,
  /** Living declarations beyond which none is added. */
  declarations_max: Schema.Int,
  /** A version 1 attach to the appliance also exports. */
  v1_attach_exports: Schema.Boolean,
  cloudstack: Schema.Struct({
    /** Null: from the active row of `ossea_configs`, as the keys, which come as a pair. */
    api_url: Schema.NullOr(Schema.String),
    api_key: Schema.NullOr(Schema.Redacted(Schema.String)),
    secret_key: Schema.NullOr(Schema.Redacted(Schema.String)),
    project_id: Schema.NullOr(Schema.String),
    ca_file: Schema.NullOr(Schema.String),
    allow_http: Schema.Boolean,
    /** A read, body included. */
    read_timeout_ms: Schema.Int,
    /** A mutation's HTTP answer (deleteVolume works synchronously). */
    call_timeout_ms: Schema.Int,
    connections: Schema.Int
  }),
  appliance_vm_id: VmId,
  by_id_dir: Schema.String,
  sys_block_dir: Schema.String,
  device_kind: Schema.Literal("block", "file"),
  nbd: NbdSettings,
  hold_file: Schema.String,
  resync_idle_ms: Schema.Int,
  resync_busy_ms: Schema.Int,
  /** How often volumes in flight are read together. */
  poll_ms: Schema.Int,
  default_disk_offering_id: Schema.NullOr(OfferingId),
  /** Null: the zone of that row, where it has one. */
  default_zone_id: Schema.NullOr(ZoneId),
  delete_grace_ms: Schema.Int,
  /** Age at which operations that have ended, and events, are pruned. */
  operations_kept_ms: Schema.Int,
  events_kept_ms: Schema.Int,
  limits: Limits,
  log_level: Schema.Literal("debug", "info", "warning", "error"),
  log_format: Schema.Literal("pretty", "json"),
  sandbox: Schema.Boolean,
  dry_run: Schema.Boolean
})
export type Settings = typeof Settings.Type
