/** The tables as the daemon before this one documents them, and as its own statements make them. */
export const operations = `CREATE TABLE volume_operations (
    id VARCHAR(64) PRIMARY KEY,
    type ENUM('create', 'attach', 'detach', 'delete') NOT NULL,
    status ENUM('pending', 'executing', 'completed', 'failed', 'cancelled') NOT NULL,
    volume_id VARCHAR(64) NOT NULL,
    vm_id VARCHAR(64) NULL,
    request JSON NOT NULL,
    response JSON NULL,
    error TEXT NULL,
    created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP,
    updated_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP ON UPDATE CURRENT_TIMESTAMP,
    completed_at TIMESTAMP NULL
)`

export const mappings = `CREATE TABLE device_mappings (
    id VARCHAR(64) PRIMARY KEY,
    volume_id VARCHAR(64) NOT NULL UNIQUE,
    vm_id VARCHAR(64) NOT NULL,
    device_path VARCHAR(32) NOT NULL,
    cloudstack_state VARCHAR(32) NOT NULL,
    linux_state VARCHAR(32) NOT NULL,
    size BIGINT NOT NULL,
    last_sync TIMESTAMP DEFAULT CURRENT_TIMESTAMP,
    created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP,
    updated_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP ON UPDATE CURRENT_TIMESTAMP,

    UNIQUE KEY unique_volume_id (volume_id),
    UNIQUE KEY unique_device_path (device_path)
)`

export const indexes: ReadonlyArray<string> = [
  "CREATE INDEX idx_volume_operations_volume_id ON volume_operations (volume_id)",
  "CREATE INDEX idx_volume_operations_status ON volume_operations (status)",
  "CREATE INDEX idx_volume_operations_created_at ON volume_operations (created_at)",
  "CREATE INDEX idx_device_mappings_vm_id ON device_mappings (vm_id)",
  "CREATE INDEX idx_device_mappings_device_path ON device_mappings (device_path)"
]

export const tables: ReadonlyArray<string> = [operations, mappings, ...indexes]

/** Ids of the rows below, oldest first. */
export const operationIds = ["1", "2", "3", "4", "5"].map((n) => `op-${n.repeat(8)}-1111-4111-8111-111111111111`)
const [created, attached, failed, pending, again] = operationIds
export const volume = "8106ba56-71b2-4d36-b01a-8a4f1c1b2c3d"
export const vm = "8a4400e5-c92a-4bc4-8bff-4b6b0b6a018c"

/** As its daemon leaves them: an operation that it died over, one that failed, a mapping by the kernel's letter. */
export const rows: ReadonlyArray<string> = [
  `INSERT INTO volume_operations VALUES ('${created}', 'create', 'completed', '${volume}', NULL,
    '{"name":"vol-1","size":107374182400}', '{"volume_id":"${volume}"}', NULL,
    '2025-08-01 10:00:00', '2025-08-01 10:00:09', '2025-08-01 10:00:09')`,
  `INSERT INTO volume_operations VALUES ('${attached}', 'attach', 'completed', '${volume}', '${vm}',
    '{"vm_id":"${vm}"}', '{"device_path":"/dev/vdb"}', NULL,
    '2025-08-01 10:01:00', '2025-08-01 10:01:05', '2025-08-01 10:01:05')`,
  `INSERT INTO volume_operations VALUES ('${failed}', 'detach', 'failed', '${volume.toUpperCase()}', '',
    '[]', 'null', 'gr\u00f6\u00dfer', '2025-08-01 10:02:00', '2025-08-01 10:02:05', NULL)`,
  `INSERT INTO volume_operations (id, type, status, volume_id, request, created_at, updated_at)
    VALUES ('${pending}', 'delete', 'executing', '${volume} ', '{}', '2025-08-01 10:03:00', '2025-08-01 10:03:05')`,
  `INSERT INTO volume_operations (id, type, status, volume_id, request, created_at, updated_at)
    VALUES ('${again}', 'delete', 'pending', '${volume}', '{}', '2025-08-01 10:03:01', '2025-08-01 10:03:05')`,
  `INSERT INTO device_mappings VALUES ('mapping-1', '${volume}', '${vm}', '/dev/vdb', 'attached', 'detected',
    107374182400, '2025-08-01 10:01:05', '2025-08-01 10:01:05', '2025-08-01 10:01:05')`,
  `INSERT INTO device_mappings VALUES ('mapping-2', 'f0d5b2b0-0d6c-4f0f-9a57-aaaaaaaaaaaa', '${vm}', '/dev/vdc',
    'attached', 'detected', 5368709120, '2025-08-01 10:01:05', '2025-08-01 10:01:05', '2025-08-01 10:01:05')`
]

/** What its documents tell people to ask the database. */
export const queries = {
  recent: `SELECT id, type, status, volume_id, created_at
    FROM volume_operations
    ORDER BY created_at DESC
    LIMIT 10`,
  mapped: `SELECT volume_id, device_path, cloudstack_state, last_sync
    FROM device_mappings
    WHERE cloudstack_state = 'attached'`,
  conflicts: `SELECT device_path, COUNT(*)
    FROM device_mappings
    GROUP BY device_path
    HAVING COUNT(*) > 1`,
  cleaning: `DELETE FROM device_mappings
    WHERE id NOT IN (
      SELECT MIN(id)
      FROM device_mappings
      GROUP BY device_path
    )`
}
