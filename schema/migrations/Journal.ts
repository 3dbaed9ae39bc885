import * as SqlClient from "@effect/sql/SqlClient"
import { Effect } from "effect"
import { addColumn, addIndex } from "./Alteration.ts"

/** AUTOINCREMENT, not a bare row id: a number that was given out is never given out again, so a reader can resume after it. */
export const events = Effect.flatMap(
  SqlClient.SqlClient,
  (sql) => sql`CREATE TABLE IF NOT EXISTS events (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    at TEXT NOT NULL,
    kind VARCHAR(64) NOT NULL,
    name VARCHAR(253) NULL,
    actor VARCHAR(255) NULL,
    message TEXT NOT NULL
  )`
)

/** Who acts, and in which term. One row. */
export const lease = Effect.flatMap(
  SqlClient.SqlClient,
  (sql) => sql`CREATE TABLE IF NOT EXISTS lease (
    id SMALLINT NOT NULL PRIMARY KEY CHECK (id = 1),
    term BIGINT NOT NULL,
    holder VARCHAR(255) NOT NULL,
    acquired_at TEXT NOT NULL
  )`
)

/** Answers already given to an Idempotency-Key; `digest` tells a repeat from another request under the same key. */
export const idempotencyKeys = Effect.flatMap(
  SqlClient.SqlClient,
  (sql) => sql`CREATE TABLE IF NOT EXISTS idempotency_keys (
    idempotency_key VARCHAR(255) NOT NULL PRIMARY KEY,
    digest VARCHAR(128) NOT NULL,
    status SMALLINT NOT NULL,
    response TEXT NOT NULL CHECK (json_valid(response)),
    created_at TEXT NOT NULL
  )`
)

export const eventUid = addColumn("events", "uid", "VARCHAR(36) NULL")

export const eventOperation = addColumn("events", "operation_id", "VARCHAR(64) NULL")

/** Each is followed by the row's id, which is the order that events are read in. */
export const eventsByName = addIndex("idx_events_name", "events", ["name"])
export const eventsByActor = addIndex("idx_events_actor", "events", ["actor"])
export const eventsByKind = addIndex("idx_events_kind", "events", ["kind"])

/** Keys lapse by age. */
export const keysByCreation = addIndex("idx_idempotency_keys_created_at", "idempotency_keys", ["created_at"])

/** While there is a row, nothing is acted on. */
export const maintenance = Effect.flatMap(
  SqlClient.SqlClient,
  (sql) => sql`CREATE TABLE IF NOT EXISTS maintenance (
    id SMALLINT NOT NULL PRIMARY KEY CHECK (id = 1),
    reason TEXT NOT NULL,
    begun_by VARCHAR(255) NOT NULL,
    begun_at TEXT NOT NULL,
    ends_at TEXT NULL,
    ending SMALLINT NOT NULL CHECK (ending IN (0, 1))
  )`
)

/** What was pending when a maintenance ended. */
export const withheld = Effect.flatMap(
  SqlClient.SqlClient,
  (sql) => sql`CREATE TABLE IF NOT EXISTS withheld (
    uid VARCHAR(36) NOT NULL,
    generation BIGINT NOT NULL,
    volume_id VARCHAR(64) NOT NULL,
    action VARCHAR(16) NOT NULL,
    name VARCHAR(253) NOT NULL,
    digest VARCHAR(128) NOT NULL,
    PRIMARY KEY (uid, generation, volume_id, action)
  )`
)
