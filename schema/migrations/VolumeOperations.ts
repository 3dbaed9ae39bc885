import * as SqlClient from "@effect/sql/SqlClient"
import { Effect } from "effect"
import {
  addColumn,
  addIndex,
  addUnique,
  type Column,
  createOrComplete,
  createTable,
  dropIndex,
  either,
  type Migration,
  sqliteOnly
} from "./Alteration.ts"

/** The types of the daemon this one replaces, then ours. */
const types = ["create", "attach", "detach", "delete", "cleanup", "adopt", "export", "unexport", "migrate_path", "tag"]
const statuses = ["pending", "executing", "completed", "failed", "cancelled"]

const quoted = (values: ReadonlyArray<string>) => values.map((value) => `'${value}'`).join(", ")

/** The table of the daemon this one replaces, on MySQL as it stands there: its times know no fractions of a second. */
const documented = `
    id VARCHAR(64) PRIMARY KEY,
    type ENUM(${quoted(types)}) NOT NULL,
    status ENUM(${quoted(statuses)}) NOT NULL,
    volume_id VARCHAR(64) NOT NULL,
    vm_id VARCHAR(64) NULL,
    request JSON NOT NULL,
    response JSON NULL,
    error TEXT NULL,
    created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP,
    updated_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP ON UPDATE CURRENT_TIMESTAMP,
    completed_at TIMESTAMP NULL,
    INDEX idx_volume_operations_volume_id (volume_id),
    INDEX idx_volume_operations_status (status),
    INDEX idx_volume_operations_created_at (created_at)`

/**
 * All nullable: existing readers and writers of the first eleven columns need not know about the rest. `unresolved_uid`
 * repeats `uid` while the outcome of the action is unknown and is null otherwise, so that a plain unique index admits
 * one such row a declaration (S2) in every dialect.
 */
const ours = (exact: string): ReadonlyArray<string> => [
  `name VARCHAR(253)${exact} NULL`,
  `uid VARCHAR(36)${exact} NULL`,
  `unresolved_uid VARCHAR(36)${exact} NULL`,
  `cause VARCHAR(16)${exact} NULL`,
  `actor VARCHAR(255)${exact} NULL`,
  "generation BIGINT NULL",
  `phase VARCHAR(16)${exact} NULL`,
  `job_id VARCHAR(64)${exact} NULL`,
  "attempts BIGINT NULL",
  `parent_id VARCHAR(64)${exact} NULL`,
  "destructive SMALLINT NULL",
  "submitted_at BIGINT NULL",
  "expires_at BIGINT NULL"
]

const withOurTypes = (columns: ReadonlyArray<Column>): ReadonlyArray<string> => {
  const type = columns.find(({ name }) => name === "type")
  const missing = types.filter((value) => type?.type.includes(`'${value}'`) === false)
  return type === undefined || missing.length === 0
    ? []
    : [`MODIFY COLUMN type ${type.type.slice(0, -1)},${quoted(missing)}) COLLATE ${type.collation ?? ""} NOT NULL`]
}

/**
 * On MySQL the times stand a second time as we write them, for order to the millisecond, and the error in full, whatever
 * the character set of the documented column is.
 */
export const table = either({
  mysql: createOrComplete(
    "volume_operations",
    documented,
    ({ time, text, exact }) => [
      ...ours(exact),
      `created_iso ${time} NULL`,
      `updated_iso ${time} NULL`,
      `completed_iso ${time} NULL`,
      `error_text ${text}${exact} NULL`
    ],
    withOurTypes
  ),
  sqlite: createTable(
    "volume_operations",
    ({ time, json, text, exact }) => `
    id VARCHAR(64) NOT NULL PRIMARY KEY,
    type VARCHAR(16) NOT NULL CHECK (type IN (${quoted(types)})),
    status VARCHAR(16) NOT NULL CHECK (status IN (${quoted(statuses)})),
    volume_id VARCHAR(64) NOT NULL,
    vm_id VARCHAR(64) NULL,
    request ${json} NOT NULL CHECK (json_valid(request)),
    response ${json} NULL CHECK (json_valid(response)),
    error ${text} NULL,
    created_at ${time} NOT NULL,
    updated_at ${time} NOT NULL,
    completed_at ${time} NULL,
    ${ours(exact).join(", ")}`
  )
})

export const byVolume = addIndex("idx_volume_operations_volume_id", "volume_operations", ["volume_id"])
export const byStatus = addIndex("idx_volume_operations_status", "volume_operations", ["status"])
export const byCreation = addIndex("idx_volume_operations_created_at", "volume_operations", ["created_at"])

/** Rows that are dated at once. */
const CHUNK = 1000

/**
 * Gives the predecessor's rows the times that order ours, before an index has to follow; again whenever it may have
 * added some. `updated_at` is told to stay, or it would become now. Stopped anywhere, it goes on there.
 */
export const date: Migration = Effect.gen(function* () {
  const sql = yield* SqlClient.SqlClient
  const iso = (column: string) => sql`DATE_FORMAT(${sql(column)}, '%Y-%m-%dT%H:%i:%s.000Z')`
  const never = "1970-01-01T00:00:00.000Z"
  for (let after = ""; ;) {
    const rows = yield* sql<{ id: string }>`SELECT id FROM volume_operations
      WHERE created_iso IS NULL AND id > ${after} ORDER BY id LIMIT ${sql.literal(String(CHUNK))}`
    const last = rows.at(-1)
    if (last === undefined) return
    yield* sql`UPDATE volume_operations SET
        created_iso = COALESCE(${iso("created_at")}, ${iso("updated_at")}, ${never}),
        updated_iso = COALESCE(${iso("updated_at")}, ${iso("created_at")}, ${never}),
        completed_iso = ${iso("completed_at")},
        updated_at = updated_at
      WHERE id > ${after} AND id <= ${last.id} AND created_iso IS NULL`
    after = last.id
  }
})

export const byUid = either({
  mysql: date,
  sqlite: addIndex("idx_volume_operations_uid", "volume_operations", ["uid", "created_at"])
})

export const oneUnresolved = addUnique("unique_unresolved_uid", "volume_operations", ["unresolved_uid"])

export const wish = addColumn(
  "volume_operations",
  "wish",
  ({ json, exact }) => `${json}${exact} NULL CHECK (json_valid(wish))`
)

export const deadline = addColumn("volume_operations", "deadline_at", () => "BIGINT NULL")

/** Repeats `uid` while a version 1 call is open, or failed with its wish not wholly taken back; null otherwise. */
export const openCall = addColumn("volume_operations", "open_call_uid", ({ exact }) => `VARCHAR(36)${exact} NULL`)

export const byOpenCall = addIndex("idx_volume_operations_open_call_uid", "volume_operations", ["open_call_uid"])

const page = (name: string, columns: ReadonlyArray<string>) => {
  const along = (created: string) =>
    addIndex(`idx_volume_operations_${name}`, "volume_operations", [...columns, created, "id"])
  return either({ mysql: along("created_iso"), sqlite: along("created_at") })
}

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

/** Counts by type and status without reading a row; on MySQL it orders the list below both filters, too. */
export const byOutcome = either({
  mysql: page("outcome", ["type", "status"]),
  sqlite: addIndex("idx_volume_operations_outcome", "volume_operations", ["type", "status"])
})

/** Their columns begin an index of `pages`, which does what they did. On MySQL they are part of the documented table. */
export const superfluous = {
  volume: sqliteOnly(dropIndex("idx_volume_operations_volume_id")),
  status: sqliteOnly(dropIndex("idx_volume_operations_status")),
  creation: sqliteOnly(dropIndex("idx_volume_operations_created_at")),
  uid: sqliteOnly(dropIndex("idx_volume_operations_uid"))
}

/** The leader's term in which the row was made (S16). */
export const term = addColumn("volume_operations", "term", () => "BIGINT NULL")

/** How many operations were pruned, so that their counts only ever grow. */
export const pruned = createTable(
  "operations_pruned",
  () => `
    type VARCHAR(16) NOT NULL,
    status VARCHAR(16) NOT NULL,
    pruned BIGINT NOT NULL,
    PRIMARY KEY (type, status)`
)
