import * as SqlClient from "@effect/sql/SqlClient"
import { Effect } from "effect"

/**
 * The table of the daemon this one replaces, column for column, then ours, all of them nullable: existing readers and writers of the first eleven
 * columns need not know about the rest. `unresolved_uid` repeats `uid` while the outcome of the action is unknown and is
 * null otherwise, so that a plain unique index admits one such row a declaration (S2) in every dialect.
 */
export const table = Effect.flatMap(
  SqlClient.SqlClient,
  (sql) => sql`CREATE TABLE IF NOT EXISTS volume_operations (
    id VARCHAR(64) NOT NULL PRIMARY KEY,
    type VARCHAR(16) NOT NULL CHECK (type IN (
      'create', 'attach', 'detach', 'delete', 'cleanup', 'adopt', 'export', 'unexport', 'migrate_path', 'tag')),
    status VARCHAR(16) NOT NULL CHECK (status IN ('pending', 'executing', 'completed', 'failed', 'cancelled')),
    volume_id VARCHAR(64) NOT NULL,
    vm_id VARCHAR(64) NULL,
    request TEXT NOT NULL CHECK (json_valid(request)),
    response TEXT NULL CHECK (json_valid(response)),
    error TEXT NULL,
    created_at TEXT NOT NULL,
    updated_at TEXT NOT NULL,
    completed_at TEXT NULL,
    name VARCHAR(253) NULL,
    uid VARCHAR(36) NULL,
    unresolved_uid VARCHAR(36) NULL,
    cause VARCHAR(16) NULL,
    actor VARCHAR(255) NULL,
    generation BIGINT NULL,
    phase VARCHAR(16) NULL,
    job_id VARCHAR(64) NULL,
    attempts BIGINT NULL,
    parent_id VARCHAR(64) NULL,
    destructive SMALLINT NULL,
    submitted_at BIGINT NULL,
    expires_at BIGINT NULL
  )`
)

export const byVolume = Effect.flatMap(
  SqlClient.SqlClient,
  (sql) => sql`CREATE INDEX IF NOT EXISTS idx_volume_operations_volume_id ON volume_operations (volume_id)`
)

export const byStatus = Effect.flatMap(
  SqlClient.SqlClient,
  (sql) => sql`CREATE INDEX IF NOT EXISTS idx_volume_operations_status ON volume_operations (status)`
)

export const byCreation = Effect.flatMap(
  SqlClient.SqlClient,
  (sql) => sql`CREATE INDEX IF NOT EXISTS idx_volume_operations_created_at ON volume_operations (created_at)`
)

export const byUid = Effect.flatMap(
  SqlClient.SqlClient,
  (sql) => sql`CREATE INDEX IF NOT EXISTS idx_volume_operations_uid ON volume_operations (uid, created_at)`
)

export const oneUnresolved = Effect.flatMap(
  SqlClient.SqlClient,
  (sql) => sql`CREATE UNIQUE INDEX IF NOT EXISTS unique_unresolved_uid ON volume_operations (unresolved_uid)`
)
