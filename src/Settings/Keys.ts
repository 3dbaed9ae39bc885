/** Every key there is, with an example of what it takes. */
export const keys = {
  DATABASE_DSN: { example: "sqlite:/var/lib/volumed/volumed.db", secret: true },
  STATE_DIR: { example: "/var/lib/volumed" },
  LISTEN: { example: "127.0.0.1:8090,[::1]:8090" },
  VOLUMED_TOKEN_FILE: { example: "/etc/volumed/tokens" },
  TLS_CERT_FILE: { example: "/etc/volumed/tls-cert.pem" },
  TLS_KEY_FILE: { example: "/etc/volumed/tls-key.pem" },
  RATE_LIMIT: { example: "200" },
  DECLARATIONS_MAX: { example: "20000" },
  V1_ATTACH_EXPORTS: { example: "true" },
  CLOUDSTACK_API_URL: { example: "https://cloudstack.example.com/client/api" },
  CLOUDSTACK_API_KEY: { example: "CLOUDSTACK_API_KEY_FILE=/etc/volumed/api-key", secret: true },
  CLOUDSTACK_SECRET_KEY: { example: "CLOUDSTACK_SECRET_KEY_FILE=/etc/volumed/secret-key", secret: true },
  CLOUDSTACK_PROJECT_ID: { example: "2b7d5b7e-3c1f-4f43-9a0e-4d4b1f0f2c11" },
  CLOUDSTACK_CA_FILE: { example: "/etc/volumed/cloudstack-ca.pem" },
  CLOUDSTACK_ALLOW_HTTP: { example: "true" },
  CLOUDSTACK_READ_TIMEOUT: { example: "30s" },
  CLOUDSTACK_CALL_TIMEOUT: { example: "120s" },
  CLOUDSTACK_CONNECTIONS: { example: "8" },
  APPLIANCE_VM_ID: { example: "8a4400e5-c92a-4bc4-8bff-4b6b0b6a018c" },
  DMI_UUID_FILE: { example: "/sys/class/dmi/id/product_uuid" },
  BY_ID_DIR: { example: "/dev/disk/by-id" },
  SYS_BLOCK_DIR: { example: "/sys/block" },
  DEVICE_KIND: { example: "block" },
  NBD_BACKEND: { example: "nbd-server" },
  NBD_CONFIG: { example: "/etc/nbd-server/config-base" },
  NBD_ACL_DIR: { example: "/etc/nbd-server/acl" },
  NBD_HOST: { example: "127.0.0.1" },
  NBD_PORT: { example: "10809" },
  NBD_ALLOW: { example: "127.0.0.1,10.0.0.7" },
  NBD_START: { example: "unit:nbd-server.service" },
  NBD_PIN: { example: "off" },
  HOLD_FILE: { example: "/run/volumed/hold" },
  RESYNC_INTERVAL: { example: "60s" },
  RESYNC_BUSY_INTERVAL: { example: "15s" },
  POLL_INTERVAL: { example: "2s" },
  DEFAULT_DISK_OFFERING_ID: { example: "c813c642-d946-49e1-9289-c616dd70206a" },
  DEFAULT_ZONE_ID: { example: "057e86db-c726-4d8c-ab1f-75c5f55d1881" },
  DELETE_GRACE: { example: "10m" },
  DESTRUCTIVE_PER_PASS: { example: "5" },
  DESTRUCTIVE_PER_HOUR: { example: "20" },
  ACTIONS_PER_VM: { example: "3" },
  ACTIONS_TOTAL: { example: "24" },
  DISKS_PER_VM: { example: "32" },
  SUSPICION_COUNT: { example: "3" },
  SUSPICION_SHARE: { example: "20%" },
  LOSS_CONFIRMATION: { example: "30s" },
  DEVICE_TIMEOUT: { example: "60s" },
  CONTENTION_REPAIRS: { example: "2" },
  CONTENTION_WINDOW: { example: "1h" },
  OPERATOR_TIMEOUT: { example: "30m" },
  LOG_LEVEL: { example: "info" },
  LOG_FORMAT: { example: "json" },
  SANDBOX: { example: "1" }
} as const satisfies Readonly<Record<string, { readonly example: string; readonly secret?: true }>>

export type Key = keyof typeof keys

export const isSecret = (key: Key): boolean => "secret" in keys[key]

/** Keys that others read, or that the daemon this one replaces read: accepted wherever they stand. */
export const foreign: ReadonlySet<string> = new Set([
  "GIN_MODE",
  "NO_COLOR",
  "OTEL_EXPORTER_OTLP_ENDPOINT",
  "VOLUMED_SERVER",
  "VOLUMED_TOKEN"
])
