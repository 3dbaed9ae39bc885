import { addIndex, addUnique, createTable, createView } from "./Alteration.ts"

/**
 * `living_name` repeats `name` until the removal is finished and is null from then on: a plain unique index then keeps
 * living names unique and frees the name of a removed declaration. `bound_volume_id` repeats `binding.volume_id`, so
 * that a claim is seen even where the JSON beside it no longer decodes.
 */
export const table = createTable(
  "declarations",
  ({ time, json }) => `
    uid VARCHAR(36) NOT NULL PRIMARY KEY,
    name VARCHAR(253) NOT NULL,
    living_name VARCHAR(253) NULL,
    generation BIGINT NOT NULL,
    set_name VARCHAR(255) NULL,
    spec ${json} NOT NULL CHECK (json_valid(spec)),
    managers ${json} NOT NULL CHECK (json_valid(managers)),
    binding ${json} NOT NULL CHECK (json_valid(binding)),
    bound_volume_id VARCHAR(36) NULL,
    deletion ${json} NULL CHECK (json_valid(deletion)),
    written_by VARCHAR(255) NOT NULL,
    created_at ${time} NOT NULL,
    updated_at ${time} NOT NULL,
    removed_at ${time} NULL`
)

export const uniqueLivingName = addUnique("unique_living_name", "declarations", ["living_name"])
export const byBoundVolume = addIndex("idx_declarations_bound_volume_id", "declarations", ["bound_volume_id"])
export const byRemoval = addIndex("idx_declarations_removed_at", "declarations", ["removed_at"])

/** Conditions of a declaration as last shown, so that their transition times survive a restart. */
export const conditions = createTable(
  "conditions",
  ({ time, json }) => `
    uid VARCHAR(36) NOT NULL PRIMARY KEY,
    conditions ${json} NOT NULL CHECK (json_valid(conditions)),
    updated_at ${time} NOT NULL`
)

/** What a person let run. Times are ms since the epoch. */
export const approvals = createTable(
  "approvals",
  () => `
    uid VARCHAR(36) NOT NULL,
    generation BIGINT NOT NULL,
    volume_id VARCHAR(64) NOT NULL,
    action VARCHAR(16) NOT NULL,
    name VARCHAR(253) NOT NULL,
    digest VARCHAR(128) NOT NULL,
    expires_at BIGINT NOT NULL,
    PRIMARY KEY (uid, generation, volume_id, action)`
)

/** The NBD sections that are ours, kept in step with `declarations.binding`. A claimed one's path has any length. */
export const exports = createTable(
  "exports",
  ({ text }) => `
    uid VARCHAR(36) NOT NULL PRIMARY KEY,
    volume_id VARCHAR(64) NOT NULL,
    export_name VARCHAR(255) NOT NULL,
    device_path ${text} NOT NULL,
    settled_at BIGINT NOT NULL`
)

/** For dashboards: one row an export of ours, by the names its readers know. */
export const exportsView = createView(
  "volumed_exports",
  `SELECT exports.volume_id, declarations.name, exports.export_name, exports.device_path, exports.settled_at
    FROM exports JOIN declarations ON declarations.uid = exports.uid
    WHERE declarations.removed_at IS NULL`
)
