import type { Blocked } from "../schema/Action.ts"
import type { Case, World } from "./Case.ts"
import { block } from "./Case.ts"
import type * as Merge from "./Merge.ts"

export const guestUnread = (world: World) => {
  const { guest } = world.merged.inventory
  const why = guest._tag === "Unread" ? guest.message : (guest.note ?? "the scan had holes")
  return block(
    "GuestUnread",
    `the guest's disks could not be read: ${why}`,
    "check that SYS_BLOCK_DIR and BY_ID_DIR are readable (volumed doctor)"
  )
}

export const deviceAmbiguous = (c: Case) =>
  block(
    "DeviceAmbiguous",
    `more than one disk or volume bears the serial of volume ${c.row.id}`,
    "detach one of them; volumed uses neither while it cannot tell them apart"
  )

export const deviceForbidden = (why: string) =>
  block("DeviceForbidden", `the device must not be used: ${why}`, "free the device from that use, or do not declare it")

/** Is a device that CloudStack shows attached still fit to be waited for? Facts keeps since when. */
export const isAwaited = (world: World, view: Merge.View): boolean => {
  const { row } = view
  if (row === null || row.vm_id !== world.merged.inventory.appliance_vm_id) return false
  return view.guest === "absent" || (view.device !== null && view.device.by_id_paths.length === 0)
}

export const awaited = (c: Case, what: string): Blocked => {
  const since = c.declaration.binding.device_awaited_since
  const timeout = c.world.limits.device_timeout_ms
  if (since === null || c.world.now - since < timeout) {
    return block(
      "DeviceArriving",
      `CloudStack shows the volume attached; ${what} yet`,
      "nothing: the guest is scanned again"
    )
  }
  return block(
    "DeviceMissing",
    `CloudStack has shown the volume attached for over ${Math.floor(timeout / 1000)} s; ${what}`,
    "check hot-plug in the guest (dmesg, lspci), rescan its bus, or detach the volume and attach it again"
  )
}
