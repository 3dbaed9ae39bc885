import * as SqlClient from "@effect/sql/SqlClient"
import { Effect } from "effect"
import { addColumn, addIndex, dropIndex } from "./Alteration.ts"

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

export const wish = addColumn("volume_operations", "wish", "TEXT NULL CHECK (json_valid(wish))")

export const deadline = addColumn("volume_operations", "deadline_at", "BIGINT NULL")

/** Repeats `uid` while a version 1 call is open, or failed with its wish not wholly taken back; null otherwise. */
export const openCall = addColumn("volume_operations", "open_call_uid", "VARCHAR(36) NULL")

export const byOpenCall = addIndex("idx_volume_operations_open_call_uid", "volume_operations", ["open_call_uid"])

const page = (name: string, columns: ReadonlyArray<string>) =>
  addIndex(`idx_volume_operations_${name}`, "volume_operations", [...columns, "created_at", "id"])

/** The list's order, alone and below each of its filters: a page is found by its place, however deep it is. */
export const pages = {
  all: page("page", []),
  status: page("status_page", ["status"]),
  type: page("type_page", ["type"]),
  volume: page("volume_page", ["volume_id"]),
  vm: page("vm_page", ["vm_id"]),
  name: page("name_page", ["name"]),
  uid: page("uid_page", ["uid"]),
  parent: page("parent_page", ["parent_id"])
}

/** One declaration's actions of one type: attempts, and whether it is being deleted. */
export const byUidAndType = addIndex("idx_volume_operations_uid_type", "volume_operations", ["uid", "type"])

/** Counts by type and status without reading a row. */
export const byOutcome = addIndex("idx_volume_operations_outcome", "volume_operations", ["type", "status"])

/** Their columns begin an index of `pages`, which does what they did. */
export const superfluous = {
  volume: dropIndex("idx_volume_operations_volume_id"),
  status: dropIndex("idx_volume_operations_status"),
  creation: dropIndex("idx_volume_operations_created_at"),
  uid: dropIndex("idx_volume_operations_uid")
}
