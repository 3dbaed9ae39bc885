import type { Migration } from "./Alteration.ts"
import * as Declarations from "./Declarations.ts"
import * as DeviceMappings from "./DeviceMappings.ts"
import * as Journal from "./Journal.ts"
import * as VolumeOperations from "./VolumeOperations.ts"

/**
 * The schema's history: append only, numbered without gaps. Each entry is one DDL statement that does nothing when its
 * effect is there already, because MySQL commits around every DDL statement: a crash between the statement and the row
 * that records it is then mended by running it again.
 */
export const migrations: Readonly<Record<string, Migration>> = {
  "0001_volume_operations": VolumeOperations.table,
  "0002_volume_operations_by_volume": VolumeOperations.byVolume,
  "0003_volume_operations_by_status": VolumeOperations.byStatus,
  "0004_volume_operations_by_creation": VolumeOperations.byCreation,
  "0005_volume_operations_by_uid": VolumeOperations.byUid,
  "0006_volume_operations_one_unresolved": VolumeOperations.oneUnresolved,
  "0007_device_mappings": DeviceMappings.table,
  "0008_device_mappings_unique_volume": DeviceMappings.uniqueVolume,
  "0009_device_mappings_unique_path": DeviceMappings.uniquePath,
  "0010_device_mappings_by_vm": DeviceMappings.byVm,
  "0011_device_mappings_by_path": DeviceMappings.byPath,
  "0012_declarations": Declarations.table,
  "0013_declarations_unique_living_name": Declarations.uniqueLivingName,
  "0014_declarations_by_bound_volume": Declarations.byBoundVolume,
  "0015_declarations_by_removal": Declarations.byRemoval,
  "0016_conditions": Declarations.conditions,
  "0017_approvals": Declarations.approvals,
  "0018_exports": Declarations.exports,
  "0019_volumed_exports": Declarations.exportsView,
  "0020_events": Journal.events,
  "0021_lease": Journal.lease,
  "0022_idempotency_keys": Journal.idempotencyKeys,
  "0023_volume_operations_wish": VolumeOperations.wish,
  "0024_volume_operations_deadline": VolumeOperations.deadline,
  "0025_volume_operations_open_call": VolumeOperations.openCall,
  "0026_volume_operations_by_open_call": VolumeOperations.byOpenCall,
  "0027_volume_operations_page": VolumeOperations.pages.all,
  "0028_volume_operations_status_page": VolumeOperations.pages.status,
  "0029_volume_operations_type_page": VolumeOperations.pages.type,
  "0030_volume_operations_volume_page": VolumeOperations.pages.volume,
  "0031_volume_operations_vm_page": VolumeOperations.pages.vm,
  "0032_volume_operations_name_page": VolumeOperations.pages.name,
  "0033_volume_operations_uid_page": VolumeOperations.pages.uid,
  "0034_volume_operations_parent_page": VolumeOperations.pages.parent,
  "0035_volume_operations_by_uid_and_type": VolumeOperations.byUidAndType,
  "0036_volume_operations_by_outcome": VolumeOperations.byOutcome,
  "0037_volume_operations_without_by_volume": VolumeOperations.superfluous.volume,
  "0038_volume_operations_without_by_status": VolumeOperations.superfluous.status,
  "0039_volume_operations_without_by_creation": VolumeOperations.superfluous.creation,
  "0040_volume_operations_without_by_uid": VolumeOperations.superfluous.uid,
  "0041_events_uid": Journal.eventUid,
  "0042_events_operation": Journal.eventOperation,
  "0043_events_by_name": Journal.eventsByName,
  "0044_events_by_actor": Journal.eventsByActor,
  "0045_events_by_kind": Journal.eventsByKind,
  "0046_idempotency_keys_by_creation": Journal.keysByCreation,
  "0047_maintenance": Journal.maintenance,
  "0048_withheld": Journal.withheld,
  "0049_lease_last_write": Journal.leaseLastWrite,
  "0050_lease_appliance": Journal.leaseAppliance,
  "0051_volume_operations_term": VolumeOperations.term,
  "0052_operations_pruned": VolumeOperations.pruned
}
