import { GIB, type State, type Vm, type Volume, volumesOn, type Work } from "./State.ts"

/** CloudStack's answer that something was not and will not be done. */
export interface Refusal {
  readonly code: number
  /** Null where the answer has none: 401, and every job result. */
  readonly cserrorcode: number | null
  /** Null: `errortext` is missing, as after a null pointer. */
  readonly text: string | null
}

const invalid = (text: string): Refusal => ({ code: 431, cserrorcode: null, text })
const internal = (text: string | null): Refusal => ({ code: 530, cserrorcode: null, text })

const NOT_ATTACHED_ANYWHERE = "Please specify a volume that is not attached to any VM."
const RUNNING_OR_STOPPED = "Please specify a VM that is either running or stopped."
const ROOT_NEEDS_STOPPED = "Root volume detach can happen only when vm is in states: Stopped or Destroyed"

const living = (state: State, id: string): Volume | null => {
  const row = state.volumes.get(id)
  return row === undefined || row.removed_at !== null ? null : row
}

const dataDisks = (state: State, vmId: string): number =>
  volumesOn(state, vmId).filter((row) => row.type === "DATADISK").length

/** attachVolume's checks when the outer job starts, in CloudStack's order (`VolumeApiServiceImpl.attachVolumeToVM`). */
export const attach = (state: State, work: Extract<Work, { kind: "attach" }>): Refusal | null => {
  const row = living(state, work.volume_id)
  if (row === null) return invalid("Please specify a volume with the valid type: ROOT or DATADISK")
  if (row.vm_id !== null) return invalid(NOT_ATTACHED_ANYWHERE)
  if (row.state === "Destroy") return invalid("Please specify a volume that is not destroyed.")
  if (!["Allocated", "Ready", "Uploaded"].includes(row.state)) {
    return invalid("Volume state must be in Allocated, Ready or in Uploaded state")
  }
  const vm = state.vms.get(work.vm_id)
  if (vm === undefined) return invalid("Please specify a valid User VM.")
  if (vm.state !== "Running" && vm.state !== "Stopped") return invalid(RUNNING_OR_STOPPED)
  if (vm.zone_id !== row.zone_id) return invalid("Please specify a VM that is in the same zone as the volume.")
  if (work.device_id === 0) return attachRoot(state, vm)
  const limit = state.config.disks_per_vm
  if (dataDisks(state, vm.id) < limit) return null
  return invalid(
    `The specified VM already has the maximum number of data disks (${limit}) attached. Please specify another VM.`
  )
}

const attachRoot = (state: State, vm: Vm): Refusal | null => {
  if (vm.state !== "Stopped") return invalid(ROOT_NEEDS_STOPPED)
  const occupied = volumesOn(state, vm.id).some((row) => row.device_id === 0)
  return occupied ? invalid("Vm already has root volume attached to it") : null
}

/** What is checked again when it is the VM's turn, all 530; answers the device id that is chosen then. */
export const attachNow = (state: State, work: Extract<Work, { kind: "attach" }>): number | Refusal => {
  const row = living(state, work.volume_id)
  const vm = state.vms.get(work.vm_id)
  if (row === null || vm === undefined) {
    return internal(`Unable to find volume with ID: ${state.volumes.get(work.volume_id)?.numeric}`)
  }
  if (row.vm_id === vm.id) return internal("This volume is already attached to a VM.")
  if (row.vm_id !== null) {
    const other = state.vms.get(row.vm_id)?.name ?? row.vm_id
    return internal(`volume: ${row.name} is already attached to a VM: ${other}`)
  }
  if (row.state !== "Ready" && row.state !== "Allocated") {
    return internal(`Volume: ${row.name} is in ${row.state}. It should be in Ready or Allocated state`)
  }
  return deviceId(state, vm, work.device_id)
}

/** 0 is root, 3 the CD-ROM; else the lowest free of 1, 2, 4, 5 … (`getDeviceId`). */
export const deviceId = (state: State, vm: Vm, wanted: number | null): number | Refusal => {
  const last = state.config.disks_per_vm + 1
  const taken = new Map(volumesOn(state, vm.id).map((row) => [row.device_id, row]))
  if (wanted === null) {
    for (let id = 1; id <= last; id++) if (id !== 3 && !taken.has(id)) return id
    return internal(`All device Ids are used by vm ${vm.numeric}`)
  }
  if (wanted < 0 || wanted === 3 || wanted > last) return internal(`deviceId should be 0,1,2,4-${last}`)
  const holder = taken.get(wanted)
  if (holder === undefined) return wanted
  return internal(`deviceId ${wanted} is used by vol ${holder.name} on vm ${vm.name}`)
}

/** detachVolume's checks when the outer job starts; the volume's state is not among them. */
export const detach = (state: State, work: Extract<Work, { kind: "detach" }>): Refusal | null => {
  if (!work.alone) return invalid("Please provide either a volume id, or a tuple(device id, instance id)")
  const row = living(state, work.volume_id)
  if (row === null) return invalid(`Unable to find volume with ID: ${state.volumes.get(work.volume_id)?.numeric}`)
  if (row.vm_id === null) return invalid("The specified volume is not attached to a VM.")
  const vm = state.vms.get(row.vm_id)
  if (vm === undefined) return internal(null)
  if (!["Running", "Stopped", "Destroyed"].includes(vm.state)) return invalid(RUNNING_OR_STOPPED)
  return row.type === "ROOT" && vm.state !== "Stopped" ? invalid(ROOT_NEEDS_STOPPED) : null
}

export const destroy = (state: State, work: Extract<Work, { kind: "destroy" }>): Refusal | null => {
  const row = living(state, work.volume_id)
  const numeric = state.volumes.get(work.volume_id)?.numeric
  if (row === null) return invalid(`Unable to find volume with ID: ${numeric}`)
  if (!work.expunge && (row.state === "Allocated" || row.state === "Uploaded")) {
    return invalid("The volume in Allocated/Uploaded state can only be expunged not destroyed/recovered")
  }
  return remove(row)
}

/** What keeps a volume from being deleted (deleteVolume answers it directly), in CloudStack's order. */
export const remove = (row: Volume): Refusal | null => {
  if (row.vm_id !== null) return invalid(NOT_ATTACHED_ANYWHERE)
  if (row.delete_protection) {
    return invalid(`Volume [id = ${row.id}, name = ${row.name}] has delete protection enabled and cannot be deleted.`)
  }
  if (["Allocated", "Creating", "Ready", "Uploaded", "UploadError", "Destroy", "Expunging"].includes(row.state)) {
    return null
  }
  return internal(
    `Failed to transit volume: ${row.numeric} to [DestroyRequested] due to: Unable to transition to a new state from ${row.state} via DestroyRequested`
  )
}

/** resizeVolume remaps invalid parameters to 432. */
export const resize = (state: State, work: Extract<Work, { kind: "resize" }>): Refusal | null => {
  const unsupported = (text: string): Refusal => ({ code: 432, cserrorcode: null, text })
  const row = living(state, work.volume_id)
  if (row === null) return unsupported(`Unable to find volume by id=${work.volume_id}`)
  if (row.state !== "Ready" && row.state !== "Allocated") {
    return unsupported(
      `Volume should be in ready or allocated state before attempting a resize. Volume ${row.id} is in state ${row.state}.`
    )
  }
  if (work.size < row.size && !work.shrink_ok) {
    return unsupported(
      `Going from existing size of ${row.size} to size of ${work.size} would shrink the volume.Need to sign off by supplying the shrinkok parameter with value of true.`
    )
  }
  if (work.size < row.size && row.placed) return unsupported("Unable to shrink volumes of type QCOW2")
  const gib = work.size / GIB
  return gib >= 1 && gib <= 1024 ? null : unsupported(outOfRange(gib))
}

export const outOfRange = (gib: number): string => `Volume size: ${gib} GB is out of allowed range. Min: 1. Max: 1024`
