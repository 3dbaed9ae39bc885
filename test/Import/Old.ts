/** One layout of the tables that no document shows … */
export const LAYOUT_1 = [
  `CREATE TABLE vm_export_mappings (
    id INT AUTO_INCREMENT PRIMARY KEY,
    vm_id VARCHAR(64) NOT NULL,
    vm_name VARCHAR(191) NOT NULL,
    volume_id VARCHAR(64) NULL,
    disk_unit_number INT NOT NULL DEFAULT 0,
    export_name VARCHAR(191) NOT NULL,
    device_path VARCHAR(191) NOT NULL,
    status VARCHAR(32) NOT NULL DEFAULT 'active'
  )`,
  `CREATE TABLE ossea_volumes (
    id INT AUTO_INCREMENT PRIMARY KEY,
    volume_id VARCHAR(64) NOT NULL,
    volume_name VARCHAR(255) NOT NULL,
    size_gb INT NOT NULL,
    ossea_config_id INT NOT NULL DEFAULT 1,
    status VARCHAR(32) NOT NULL DEFAULT 'creating'
  )`
]

/** … and another: the disk's row knows no volume, and a volume's row is found by a column of any name. */
export const LAYOUT_2 = [
  `CREATE TABLE vm_export_mappings (
    export VARCHAR(255) PRIMARY KEY,
    source_vm CHAR(36) NOT NULL,
    dev VARCHAR(255) NULL,
    port INT NOT NULL DEFAULT 10809
  )`,
  `CREATE TABLE ossea_volumes (
    job_id CHAR(36) NOT NULL,
    cloudstack_uuid CHAR(36) NOT NULL,
    payload LONGTEXT NULL
  )`
]
