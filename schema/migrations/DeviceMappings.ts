import * as SqlClient from "@effect/sql/SqlClient"
import { Effect } from "effect"

/** The table of the daemon this one replaces; `device_path` is wider, because a by-id path has 43 characters and theirs held 32. */
export const table = Effect.flatMap(
  SqlClient.SqlClient,
  (sql) => sql`CREATE TABLE IF NOT EXISTS device_mappings (
    id VARCHAR(64) NOT NULL PRIMARY KEY,
    volume_id VARCHAR(64) NOT NULL,
    vm_id VARCHAR(64) NOT NULL,
    device_path VARCHAR(255) NOT NULL,
    cloudstack_state VARCHAR(32) NOT NULL,
    linux_state VARCHAR(32) NOT NULL,
    size BIGINT NOT NULL,
    last_sync TEXT NOT NULL,
    created_at TEXT NOT NULL,
    updated_at TEXT NOT NULL
  )`
)

export const uniqueVolume = Effect.flatMap(
  SqlClient.SqlClient,
  (sql) => sql`CREATE UNIQUE INDEX IF NOT EXISTS unique_volume_id ON device_mappings (volume_id)`
)

export const uniquePath = Effect.flatMap(
  SqlClient.SqlClient,
  (sql) => sql`CREATE UNIQUE INDEX IF NOT EXISTS unique_device_path ON device_mappings (device_path)`
)

export const byVm = Effect.flatMap(
  SqlClient.SqlClient,
  (sql) => sql`CREATE INDEX IF NOT EXISTS idx_device_mappings_vm_id ON device_mappings (vm_id)`
)

export const byPath = Effect.flatMap(
  SqlClient.SqlClient,
  (sql) => sql`CREATE INDEX IF NOT EXISTS idx_device_mappings_device_path ON device_mappings (device_path)`
)
