import {
  type Bus,
  changed,
  type DomainDisk,
  listOf,
  schedule,
  serialFor,
  type State,
  strike,
  type Vm
} from "./State.ts"

/** The disk of a volume in a VM's libvirt domain, if it is there. */
export const diskOf = (state: State, vmId: string, volumeId: string): DomainDisk | null =>
  state.domains.get(vmId)?.find((disk) => disk.volume_id === volumeId) ?? null

/** Every VM whose libvirt domain has the volume. More than one is a double attach. */
export const holdersOf = (state: State, volumeId: string): ReadonlyArray<string> =>
  [...state.domains].flatMap(([vmId, disks]) => (disks.some((disk) => disk.volume_id === volumeId) ? [vmId] : []))

/** Plug a volume into a running VM; the guest shows it a while later. A disk that is there already stays. */
export const plug = (state: State, vm: Vm, volumeId: string, command: string): void => {
  if (diskOf(state, vm.id, volumeId) !== null) return
  const others = holdersOf(state, volumeId)
  if (others.length > 0) {
    state.incidents.push({
      at: state.now,
      kind: "double_attach",
      command,
      volume_id: volumeId,
      vm_id: vm.id,
      message: `plugged into ${vm.id} while ${others.join(", ")} still holds it`
    })
  }
  state.sequence += 1
  const disk = { volume_id: volumeId, bus: busOf(state, vm), epoch: state.sequence, unplugging: false }
  listOf(state.domains, vm.id).push(disk)
  const occasion = { command, volume_id: volumeId, vm_id: vm.id }
  if (strike(state, ["hotplug_failure"], occasion) !== null) return
  const delay = state.config.device_delay_ms + (strike(state, ["device_delay"], occasion)?.ms ?? 0)
  const what = { kind: "device_appears" as const, vm_id: vm.id, volume_id: volumeId, epoch: disk.epoch }
  if (delay === 0) appear(state, what)
  else schedule(state, state.now + delay, what)
}

/** A hot-plugged disk goes to the bus of the domain's first disk, whatever the VM is configured with (`KVMStorageProcessor`). */
const busOf = (state: State, vm: Vm): Bus => state.domains.get(vm.id)?.[0]?.bus ?? vm.bus

/** The guest notices a plugged disk, unless it was pulled again meanwhile. */
export const appear = (
  state: State,
  what: { readonly vm_id: string; readonly volume_id: string; readonly epoch: number }
): void => {
  const disk = diskOf(state, what.vm_id, what.volume_id)
  if (disk === null || disk.epoch !== what.epoch) return
  const guest = listOf(state.guests, what.vm_id)
  const occasion = { command: null, volume_id: what.volume_id, vm_id: what.vm_id }
  const twin = guest.findLast((other) => other.kernel_name !== "vda" && other.kernel_name !== "sda")
  const doubled = twin !== undefined && strike(state, ["duplicate_serial"], occasion) !== null
  guest.push({
    volume_id: what.volume_id,
    kernel_name: freeName(
      guest.map((one) => one.kernel_name),
      disk.bus
    ),
    serial: doubled ? twin.serial : serialFor(what.volume_id),
    bus: disk.bus,
    epoch: disk.epoch,
    appeared_at: state.now
  })
  changed(state)
}

/** Pull a volume out of a domain, and out of the guest with it. */
export const unplug = (state: State, vmId: string, volumeId: string): void => {
  remove(state.domains.get(vmId), volumeId)
  remove(state.guests.get(vmId), volumeId)
  changed(state)
}

const remove = (disks: Array<{ readonly volume_id: string }> | undefined, volumeId: string): void => {
  const at = disks?.findIndex((disk) => disk.volume_id === volumeId) ?? -1
  if (at >= 0) disks?.splice(at, 1)
}

/** A VM that boots gets a fresh domain from CloudStack's rows, ROOT first. */
export const boot = (state: State, vm: Vm, volumeIds: ReadonlyArray<string>): void => {
  state.domains.set(vm.id, [])
  state.guests.set(vm.id, [])
  for (const id of volumeIds) plug(state, vm, id, "startVirtualMachine")
}

export const halt = (state: State, vmId: string): void => {
  state.domains.set(vmId, [])
  state.guests.set(vmId, [])
  changed(state)
}

/** The kernel gives out the first free letter, so a name says nothing about which disk it is. */
const freeName = (taken: ReadonlyArray<string>, bus: Bus): string => {
  const prefix = bus === "virtio" ? "vd" : "sd"
  for (let n = 0; ; n++) {
    const name = `${prefix}${letters(n)}`
    if (!taken.includes(name)) return name
  }
}

const letters = (n: number): string => {
  const last = String.fromCharCode(97 + (n % 26))
  return n < 26 ? last : letters(Math.floor(n / 26) - 1) + last
}

/** What udev calls the link (rules.d/60-persistent-storage.rules with QEMU's names). */
export const linkName = (bus: Bus, serial: string): string => {
  switch (bus) {
    case "virtio":
      return `virtio-${serial}`
    case "scsi":
      return `scsi-0QEMU_QEMU_HARDDISK_${serial}`
    case "ata":
      return `ata-QEMU_HARDDISK_${serial}`
  }
}
