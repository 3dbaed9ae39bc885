/** What an observation says about an open version 1 call. Pure. */
import type { PlanItem, Reason } from "../schema/Action.ts"
import type { Status } from "../schema/Condition.ts"
import { type Declaration, GIB } from "../schema/Declaration.ts"
import { exportNameOf } from "../schema/Ids.ts"
import type { Inventory } from "../schema/Inventory.ts"
import type { Operation } from "../schema/Operation.ts"
import { rowOf } from "./Call.ts"

/** How long an attach that has its device waits for the export, ms. */
const EXPORT_WAIT_MS = 15_000

export interface Evidence {
  /** ms since the epoch. */
  readonly now: number
  readonly inventory: Inventory
  /** Null when it is not among the living any more. */
  readonly declaration: Declaration | null
  /** Of the plan made from this inventory; null when the declaration was not planned for. */
  readonly item: PlanItem | null
  readonly status: Status | null
  /** The actions that the call caused. */
  readonly children: ReadonlyArray<Operation>
}

export type Verdict =
  | { readonly _tag: "Waiting"; readonly executing: boolean }
  | {
      readonly _tag: "Completed"
      readonly volume_id: string | null
      readonly response: Readonly<Record<string, unknown>>
    }
  | { readonly _tag: "Failed"; readonly error: string; readonly response: Readonly<Record<string, unknown>> }

/**
 * Has the call come to its end? The evidence must have been gathered after the call was stored, so that what it shows is
 * no older than the wish (S7).
 */
export const judge = (call: Operation, evidence: Evidence): Verdict => {
  const done = completion(call, evidence)
  if (done !== null) return done
  // A tag counts for nothing else: it may well be denied to an account that may do all that was asked for.
  const refused = evidence.children.findLast(
    ({ response, status, type }) => type !== "tag" && status === "failed" && isDefinite(response?.["cloudstack_code"])
  )
  if (refused !== undefined) return refusedByCloudStack(refused)
  if (call.type === "export" && isElsewhere(evidence)) return failed(...notHere)
  const blocked = evidence.item?.blocked ?? null
  if (blocked !== null && hopeless.has(blocked.reason)) {
    const number = blocked.reason === "VmFull" ? 432 : 431
    return failed(
      number === 432 ? "CLOUDSTACK_RESOURCE_LIMIT" : "CLOUDSTACK_INVALID_PARAMETER",
      `CloudStack API error ${number}: ${calm(blocked.message)}`,
      { reason: blocked.reason, suggestion: blocked.suggestion }
    )
  }
  if (call.deadline_at !== null && evidence.now >= call.deadline_at) return late(call, evidence)
  return { _tag: "Waiting", executing: evidence.children.length > 0 }
}

/** Wanted on no VM or another one, or seen there while nobody said where it should be. */
const isElsewhere = ({ declaration, inventory }: Evidence): boolean => {
  if (declaration === null) return false
  const { attached_to } = declaration.spec
  const row = rowOf(inventory, declaration)
  if (attached_to === null) return row !== null && row.vm_id !== inventory.appliance_vm_id
  return attached_to !== "appliance" && attached_to !== inventory.appliance_vm_id
}

const notHere = [
  "CLOUDSTACK_INVALID_PARAMETER",
  "CloudStack API error 431: the volume is not for the appliance, which alone can serve it",
  { reason: "NotOnAppliance", suggestion: "attach it to the appliance, which exports it as well" }
] as const

/** What no waiting mends: the caller asked for something that cannot be, or that is not volumed's to do. */
const hopeless: ReadonlySet<Reason> = new Set<Reason>([
  "ForeignAttachment",
  "NotDataDisk",
  "RootVolume",
  "RootOccupied",
  "RootOnAppliance",
  "OutOfScope",
  "SizeMismatch",
  "VmFull",
  "VmNotFound",
  "VolumeClaimed",
  "VolumeDestroyed",
  "VolumeNotFound",
  "Protected"
])

/** A retry of the call may well find these gone. */
const device: ReadonlySet<Reason> = new Set<Reason>(["DeviceMissing", "DeviceArriving", "DeviceAmbiguous"])

/** What a person decided or must decide: a client that tries again changes nothing. */
const decided: ReadonlySet<Reason> = new Set<Reason>([
  "Paused",
  "HoldFile",
  "Maintenance",
  "HeldForApproval",
  "LateEffect",
  "DriftHeld",
  "Contended",
  "RootNeedsStoppedVm",
  "NeedsOperator",
  "CreateAmbiguous",
  "ObservationSuspect",
  "VolumeLost",
  "DeviceForbidden"
])

/** The old clients retry what bears one of these two words. */
const calm = (text: string): string => text.replace(/timeout/giu, "time-out").replace(/device/giu, "disk")

const failed = (code: string, error: string, more: Readonly<Record<string, unknown>> = {}): Verdict => ({
  _tag: "Failed",
  error,
  response: { code, ...more }
})

/** Account, resource and capacity limits. */
const LIMITS: ReadonlySet<unknown> = new Set([532, 533, 535])

/** CloudStack's "no" to what was asked for (43x), or to how much; 401, 429 and 503 are about the moment. */
const isDefinite = (code: unknown): boolean =>
  LIMITS.has(code) || (typeof code === "number" && code >= 430 && code < 440)

const refusedByCloudStack = ({ error, response }: Operation): Verdict => {
  const cloudstack_code = response?.["cloudstack_code"]
  const limit = LIMITS.has(cloudstack_code)
  return failed(
    limit ? "CLOUDSTACK_RESOURCE_LIMIT" : "CLOUDSTACK_INVALID_PARAMETER",
    `CloudStack API error ${limit ? 432 : 431}: ${calm(error ?? "it refused the call")}`,
    { cloudstack_code }
  )
}

const late = (call: Operation, { item, now }: Evidence): Verdict => {
  const seconds = Math.round((now - Date.parse(call.created_at)) / 1000)
  const blocked = item?.blocked ?? null
  const where =
    blocked === null ? (item?.next?.reason ?? "it was not looked at") : `${blocked.reason}: ${blocked.message}`
  const more = blocked === null ? {} : { reason: blocked.reason, suggestion: blocked.suggestion }
  if (blocked !== null && device.has(blocked.reason)) {
    return failed(
      "DEVICE_CORRELATION_FAILED",
      `no device for the volume within ${seconds} s: ${blocked.reason}: ${blocked.message.replace(/timeout/giu, "time-out")}`,
      more
    )
  }
  if (blocked !== null && decided.has(blocked.reason)) {
    return failed("UNKNOWN_ERROR", `not done within ${seconds} s: ${calm(where)}`, more)
  }
  return failed("OPERATION_TIMEOUT", `timeout: ${call.type} was not done within ${seconds} s: ${where}`, more)
}

const completion = (call: Operation, evidence: Evidence): Verdict | null => {
  const { declaration, item, status } = evidence
  if (call.type === "delete") return declaration === null || item?.removal_done === true ? deleted(call) : null
  if (declaration === null || item === null || status === null || item.gap === "volume") return null
  switch (call.type) {
    case "create":
      return created(evidence, declaration)
    case "attach":
    case "cleanup":
      return attached(call, evidence, declaration, status)
    case "detach":
      return is(status, "Attached", "False") && item.gap !== "attachment" && item.gap !== "export"
        ? completed(call, { message: "the volume is attached to no VM" })
        : null
    case "export":
      return is(status, "Exported", "True")
        ? completed(call, { ...deviceOf(status), message: "the export is served", export: exportOf(evidence, status) })
        : null
    case "unexport":
      return is(status, "Exported", "False") && item.gap !== "export"
        ? completed(call, { message: "the volume is not exported" })
        : null
    case "adopt":
    case "migrate_path":
    case "tag":
      return null
  }
}

const is = (status: Status, type: Status["conditions"][number]["type"], wanted: "True" | "False"): boolean =>
  status.conditions.some((condition) => condition.type === type && condition.status === wanted)

const completed = (call: Operation, more: Readonly<Record<string, unknown>>): Verdict => ({
  _tag: "Completed",
  volume_id: null,
  response: { ...(call.volume_id === "" ? {} : { volume_id: call.volume_id }), ...more }
})

const deleted = (call: Operation): Verdict => completed(call, { message: "the volume is deleted" })

const created = ({ inventory }: Evidence, declaration: Declaration): Verdict | null => {
  const { volume_id } = declaration.binding
  const row = rowOf(inventory, declaration)
  if (volume_id === null || row === null || row.id !== volume_id || row.job_id !== null) return null
  const asked = declaration.spec.size ?? row.size
  const rounded = row.size > asked ? `; ${asked} bytes were rounded up to ${row.size / GIB} GiB` : ""
  return {
    _tag: "Completed",
    volume_id,
    response: { volume_id, size: row.size, message: `the volume is made${rounded}` }
  }
}

const attached = (call: Operation, evidence: Evidence, declaration: Declaration, status: Status): Verdict | null => {
  const { inventory, item } = evidence
  if (!is(status, "Attached", "True") || item?.gap === "attachment") return null
  const { attached_to, export_wanted } = declaration.spec
  if (attached_to !== "appliance" && attached_to !== inventory.appliance_vm_id) {
    return completed(call, { message: `attached to VM ${status.attached_to ?? ""}` })
  }
  if (!is(status, "DevicePresent", "True") || item?.gap === "device") return null
  const message = `attached to the appliance as ${status.kernel_path ?? "a disk"}`
  if (export_wanted !== true) return completed(call, { ...deviceOf(status), message })
  const served = is(status, "Exported", "True")
  if (!served && evidence.now < deviceSince(call, evidence) + EXPORT_WAIT_MS) return null
  return completed(call, { ...deviceOf(status), message, export: exportOf(evidence, status) })
}

/** When the device was here at the latest: when the attach that this call caused was settled, or at the call itself. */
const deviceSince = (call: Operation, { children }: Evidence): number => {
  const attaches = children.filter(({ type, completed_at }) => type === "attach" && completed_at !== null)
  return Math.max(Date.parse(call.created_at), ...attaches.map(({ completed_at }) => Date.parse(completed_at ?? "")))
}

const deviceOf = ({ by_id_path, kernel_path }: Status) => ({
  ...(by_id_path === null && kernel_path === null ? {} : { device_path: by_id_path ?? kernel_path }),
  ...(kernel_path === null ? {} : { kernel_path })
})

const exportOf = ({ declaration, inventory, item }: Evidence, status: Status) => {
  const { nbd } = inventory
  const served = is(status, "Exported", "True")
  const volume = declaration?.binding.volume_id ?? null
  const condition = status.conditions.find(({ type }) => type === "Exported")
  return {
    name: status.export?.name ?? declaration?.binding.export?.name ?? (volume === null ? "" : exportNameOf(volume)),
    host: nbd._tag === "Known" ? nbd.value.host : "",
    port: nbd._tag === "Known" ? nbd.value[declaration?.spec.read_only === true ? "read_only_port" : "port"] : 0,
    state: served ? "active" : "pending",
    ...(served ? {} : { problem: item?.blocked?.message ?? condition?.message ?? "it is not served yet" })
  }
}
