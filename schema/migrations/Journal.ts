import { addColumn, addIndex, createTable } from "./Alteration.ts"

export const events = createTable(
  "events",
  ({ counter, time, text }) => `
    id ${counter},
    at ${time} NOT NULL,
    kind VARCHAR(64) NOT NULL,
    name VARCHAR(253) NULL,
    actor VARCHAR(255) NULL,
    message ${text} NOT NULL`
)

/** Who acts, and in which term. One row. */
export const lease = createTable(
  "lease",
  ({ time }) => `
    id SMALLINT NOT NULL PRIMARY KEY CHECK (id = 1),
    term BIGINT NOT NULL,
    holder VARCHAR(255) NOT NULL,
    acquired_at ${time} NOT NULL`
)

/** Answers already given to an Idempotency-Key; `digest` tells a repeat from another request under the same key. */
export const idempotencyKeys = createTable(
  "idempotency_keys",
  ({ time, json }) => `
    idempotency_key VARCHAR(255) NOT NULL PRIMARY KEY,
    digest VARCHAR(128) NOT NULL,
    status SMALLINT NOT NULL,
    response ${json} NOT NULL CHECK (json_valid(response)),
    created_at ${time} NOT NULL`
)

export const eventUid = addColumn("events", "uid", () => "VARCHAR(36) NULL")

export const eventOperation = addColumn("events", "operation_id", () => "VARCHAR(64) NULL")

/** Each is followed by the row's id, which is the order that events are read in. */
export const eventsByName = addIndex("idx_events_name", "events", ["name"])
export const eventsByActor = addIndex("idx_events_actor", "events", ["actor"])
export const eventsByKind = addIndex("idx_events_kind", "events", ["kind"])

/** Keys lapse by age. */
export const keysByCreation = addIndex("idx_idempotency_keys_created_at", "idempotency_keys", ["created_at"])

/** While there is a row, nothing is acted on. */
export const maintenance = createTable(
  "maintenance",
  ({ time, text }) => `
    id SMALLINT NOT NULL PRIMARY KEY CHECK (id = 1),
    reason ${text} NOT NULL,
    begun_by VARCHAR(255) NOT NULL,
    begun_at ${time} NOT NULL,
    ends_at ${time} NULL,
    ending SMALLINT NOT NULL CHECK (ending IN (0, 1))`
)

/** What was pending when a maintenance ended. */
export const withheld = createTable(
  "withheld",
  () => `
    uid VARCHAR(36) NOT NULL,
    generation BIGINT NOT NULL,
    volume_id VARCHAR(64) NOT NULL,
    action VARCHAR(16) NOT NULL,
    name VARCHAR(253) NOT NULL,
    digest VARCHAR(128) NOT NULL,
    PRIMARY KEY (uid, generation, volume_id, action)`
)

/** The mark of the newest transaction, by which the outcome of a COMMIT without an answer is told. */
export const leaseLastWrite = addColumn("lease", "last_write", () => "VARCHAR(36) NULL")

/** Whose volumes these are: a database is one appliance's. */
export const leaseAppliance = addColumn("lease", "appliance_vm_id", () => "VARCHAR(64) NULL")
