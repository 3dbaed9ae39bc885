import * as SqlClient from "@effect/sql/SqlClient"
import { Effect } from "effect"

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
