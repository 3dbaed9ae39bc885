import { addIndex, addUnique, type Column, createOrComplete, createTable, either, sqliteOnly } from "./Alteration.ts"

/** A by-id path has 43 characters, and the daemon before this one had room for 32. */
const PATH_MAX = 255

/** The table of the daemon this one replaces, on MySQL as it stands there: its times know no fractions of a second. */
const documented = `
    id VARCHAR(64) PRIMARY KEY,
    volume_id VARCHAR(64) NOT NULL UNIQUE,
    vm_id VARCHAR(64) NOT NULL,
    device_path VARCHAR(${PATH_MAX}) NOT NULL,
    cloudstack_state VARCHAR(32) NOT NULL,
    linux_state VARCHAR(32) NOT NULL,
    size BIGINT NOT NULL,
    last_sync TIMESTAMP DEFAULT CURRENT_TIMESTAMP,
    created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP,
    updated_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP ON UPDATE CURRENT_TIMESTAMP,
    UNIQUE KEY unique_volume_id (volume_id),
    UNIQUE KEY unique_device_path (device_path)`

const widened = (columns: ReadonlyArray<Column>): ReadonlyArray<string> => {
  const path = columns.find(({ name }) => name === "device_path")
  const width = Number(/^varchar\((\d+)\)/i.exec(path?.type ?? "")?.[1] ?? PATH_MAX)
  return width >= PATH_MAX
    ? []
    : [`MODIFY COLUMN device_path VARCHAR(${PATH_MAX}) COLLATE ${path?.collation ?? ""} NOT NULL`]
}

/** On MySQL each time stands a second time as we write it; a row without that is not ours. */
export const table = either({
  mysql: createOrComplete(
    "device_mappings",
    documented,
    ({ time }) => [`last_sync_iso ${time} NULL`, `created_iso ${time} NULL`, `updated_iso ${time} NULL`],
    widened
  ),
  sqlite: createTable(
    "device_mappings",
    ({ time }) => `
    id VARCHAR(64) NOT NULL PRIMARY KEY,
    volume_id VARCHAR(64) NOT NULL,
    vm_id VARCHAR(64) NOT NULL,
    device_path VARCHAR(${PATH_MAX}) NOT NULL,
    cloudstack_state VARCHAR(32) NOT NULL,
    linux_state VARCHAR(32) NOT NULL,
    size BIGINT NOT NULL,
    last_sync ${time} NOT NULL,
    created_at ${time} NOT NULL,
    updated_at ${time} NOT NULL`
  )
})

export const uniqueVolume = sqliteOnly(addUnique("unique_volume_id", "device_mappings", ["volume_id"]))
export const uniquePath = sqliteOnly(addUnique("unique_device_path", "device_mappings", ["device_path"]))
export const byVm = addIndex("idx_device_mappings_vm_id", "device_mappings", ["vm_id"])
export const byPath = addIndex("idx_device_mappings_device_path", "device_mappings", ["device_path"])
