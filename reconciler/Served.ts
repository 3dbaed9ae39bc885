/** What a GO handshake, and where its section leads, say about an export. Pure. */
import { DateTime, Option } from "effect"
import { serialOf } from "../schema/Ids.ts"
import type { BlockDevice } from "../schema/Inventory.ts"
import type * as Merge from "./Merge.ts"

/** Why an export is not served as it should be: what was seen, under the name that the condition `Exported` bears. */
export interface Fault {
  readonly reason:
    | "NotConfigured"
    | "NotLoaded"
    | "ServerDown"
    | "ServerHung"
    | "ServerForeign"
    | "ServerNotInstalled"
    | "ServerDamaged"
    | "DeniedByServer"
    | "Fenced"
    | "LinkBroken"
    | "WrongDevice"
    | "WrongSize"
    | "WrongMode"
    | "Unverified"
  readonly message: string
}

const faultOf = (reason: Fault["reason"], message: string): Fault => ({ reason, message })

/** Section and handshake are as they should be, as far as they can be seen. */
export const looksRight = (
  { own, verification: v }: Merge.View,
  device: Pick<BlockDevice, "identity" | "size">,
  read_only: boolean
): boolean =>
  own !== null &&
  own.unfinished === null &&
  own.fenced_at === null &&
  own.read_only === read_only &&
  (own.device === null || own.device === device.identity) &&
  v !== null &&
  v.outcome === "served" &&
  v.size === device.size &&
  v.read_only === read_only &&
  (v.device === device.identity || v.device === null)

/** What can be seen includes the serving process's own device: the proof that these are the volume's bytes (S3). */
export const servedRight = (view: Merge.View, device: BlockDevice, read_only: boolean): boolean =>
  looksRight(view, device, read_only) && view.verification?.device === device.identity

/** The section is what a load would write, and the server has loaded it: nothing is mended by loading it again. */
export const isLoaded = (
  { nbd }: Merge.Merged,
  { declaration, device, own }: Merge.View,
  read_only: boolean
): boolean =>
  nbd !== null &&
  nbd.server.state === "running" &&
  nbd.loaded &&
  own !== null &&
  own.unfinished === null &&
  own.read_only === read_only &&
  own.name === declaration.binding.export?.name &&
  own.path !== null &&
  device?.by_id_paths.includes(own.path) === true

/** Proven to be another disk than the volume's. A disk whose serial cannot be read proves nothing (D7). */
const isOther = (merged: Merge.Merged, { device, guest, volume_id }: Merge.View, identity: string): boolean => {
  if (device !== null) return device.identity !== identity
  const disk = merged.diskOf(identity)
  if (disk !== null) return disk.serial !== null && volume_id !== null && disk.serial !== serialOf(volume_id)
  return guest === "absent"
}

/** Where a new client would be led to instead of the volume's disk, by the section's path (D3, D4); null: nowhere. */
export const misledBy = (merged: Merge.Merged, view: Merge.View): string | null => {
  const { own } = view
  if (own === null || own.device === null || !isOther(merged, view, own.device)) return null
  return `${own.path} leads to ${diskText(merged, own.device)}, which is not this volume's disk`
}

/** The same by what the serving process has opened, whatever its path means at this moment. */
const misserved = (merged: Merge.Merged, view: Merge.View): string | null => {
  const { verification: v } = view
  if (v === null || v.outcome !== "served" || v.device === null || !isOther(merged, view, v.device)) return null
  return `${v.name} is served from ${diskText(merged, v.device)}, which is not this volume's disk`
}

const diskText = (merged: Merge.Merged, identity: string): string => {
  const disk = merged.diskOf(identity)
  return disk === null ? identity : `${disk.kernel_path} (serial ${disk.serial ?? "unknown"})`
}

/** nbd-server says so of a device of size 0 (measured). */
const ENDLESS = 2 ** 63

/** Served with fewer bytes than the disk has, or without end: what was opened is no such disk (a directory: 4096 bytes). */
const missized = ({ device, verification: v }: Merge.View): string | null => {
  if (v === null || v.outcome !== "served" || v.size === null || device === null) return null
  const wrong = device.size === 0 || v.size < device.size || v.size >= ENDLESS
  return wrong ? `${v.name} is served with ${v.size} bytes, its disk has ${device.size}` : null
}

/** A client gets, or would get, other bytes than the volume's: what it is that was seen; null where nothing shows that (S3). */
export const astray = (merged: Merge.Merged, view: Merge.View): string | null =>
  misledBy(merged, view) ?? misserved(merged, view) ?? missized(view)

/** Why it is not served as declared; null when it is, and proven to be. */
export const fault = (merged: Merge.Merged, view: Merge.View, read_only: boolean): Fault | null => {
  const { device, own } = view
  if (own === null) return faultOf("NotConfigured", "the file has no section for it")
  if (own.unfinished !== null) return faultOf("NotLoaded", own.unfinished)
  const misled = misledBy(merged, view)
  if (misled !== null) return faultOf("WrongDevice", misled)
  const down = serverFault(merged)
  if (down !== null) return down
  if (own.fenced_at !== null) {
    return faultOf("Fenced", `new clients are denied since ${timeText(own.fenced_at)}`)
  }
  if (device !== null && servedRight(view, device, read_only)) return null
  return answerFault(merged, view, read_only)
}

/** A file's time may be any number; one that no calendar has must not break the planner. */
export const timeText = (ms: number): string =>
  Option.match(DateTime.make(ms), { onNone: () => `${ms} ms`, onSome: DateTime.formatIso })

const serverFault = ({ nbd }: Merge.Merged): Fault | null => {
  const state = nbd?.server.state ?? "unread"
  const message = `the server is ${state.replace("_", " ")}`
  switch (state) {
    case "running":
      return null
    case "absent":
      return faultOf("ServerDown", message)
    case "hung":
      return faultOf("ServerHung", message)
    case "foreign":
      return faultOf("ServerForeign", message)
    case "not_installed":
      return faultOf("ServerNotInstalled", message)
    case "unread":
      return faultOf("Unverified", message)
  }
}

const answerFault = (merged: Merge.Merged, view: Merge.View, read_only: boolean): Fault => {
  const { device, own, verification: v } = view
  if (v === null) return faultOf("Unverified", "it was not asked for yet")
  const answer = `the server answered ${v.outcome}${v.message === null ? "" : ` (${v.message})`}`
  switch (v.outcome) {
    case "served":
      return servedFault(merged, view, read_only)
    case "unknown":
      return faultOf("NotLoaded", answer)
    case "denied":
      return own !== null && own.device === null && device?.by_id_paths.includes(own.path ?? "") !== true
        ? faultOf("LinkBroken", `${answer}; ${own.path} leads to no disk`)
        : faultOf("DeniedByServer", answer)
    case "dropped":
      return faultOf("ServerDamaged", `${answer}: it greeted and hung up`)
    case "no_answer":
      return faultOf("ServerHung", answer)
    case "refused":
      return faultOf("ServerDown", answer)
  }
}

const servedFault = (merged: Merge.Merged, view: Merge.View, read_only: boolean): Fault => {
  const { device, own, verification: v } = view
  const wrong = misserved(merged, view)
  if (wrong !== null) return faultOf("WrongDevice", wrong)
  const mode = v?.read_only === true ? "read-only" : "writable"
  const seen = `it is served with ${v?.size} bytes, ${mode}, from ${v?.device ?? "an unknown device"}`
  if (device !== null && v?.size !== device.size) return faultOf("WrongSize", seen)
  return v?.read_only !== read_only || own?.read_only !== read_only
    ? faultOf("WrongMode", seen)
    : faultOf("Unverified", seen)
}

/** What was seen, as part of a sentence. */
export const how = (merged: Merge.Merged, view: Merge.View): string =>
  fault(merged, view, view.declaration.spec.read_only)?.message ?? "it is served"
