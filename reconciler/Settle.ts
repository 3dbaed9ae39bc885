import { Option, Schema } from "effect"
import { Action, UID_TAG } from "../schema/Action.ts"
import type * as Actions from "../schema/Action.ts"
import type { Binding, Declaration } from "../schema/Declaration.ts"
import { GIB } from "../schema/Declaration.ts"
import { serialOf, type VolumeId } from "../schema/Ids.ts"
import type { CloudReading, CloudVolume, Inventory, NbdReading } from "../schema/Inventory.ts"
import type { Operation } from "../schema/Operation.ts"
import type { Limits } from "../schema/Settings.ts"
import type { Job } from "./CloudStack.ts"
import * as Merge from "./Merge.ts"

/**
 * What an observation says about an operation. Only this closes one (S7): an answer from CloudStack, a failed job
 * included, is a hint about when to look, never the outcome.
 */
export type Verdict =
  /** Nothing can be said yet. */
  | { readonly _tag: "Pending"; readonly note: string }
  /** The job ended or was lost and the effect does not show: the result of this job would help, then time. */
  | { readonly _tag: "Uncertain"; readonly note: string }
  | { readonly _tag: "Settled"; readonly response: Readonly<Record<string, unknown>>; readonly binding: Binding | null }
  /** A reading begun when no effect could come any more shows none. What was learned on the way is kept. */
  | {
      readonly _tag: "NotDone"
      readonly error: string
      /** CloudStack's number for why, where its job told one. */
      readonly code: number | null
      readonly binding: Binding | null
    }
  | { readonly _tag: "NeedsOperator"; readonly error: string }

export interface Evidence {
  readonly now: number
  readonly inventory: Inventory
  /** Null when the declaration is gone from the store. */
  readonly declaration: Declaration | null
  /** Volume ids that some living declaration is bound to. */
  readonly bound: ReadonlySet<VolumeId>
  /** The operation's job where CloudStack was asked for it after the reading began; null when it was not. */
  readonly job: Job | null
  /** When this process started, ms: a call whose sender died before has expired a minute later. */
  readonly process_started_at: number
  readonly limits: Limits
}

/** How long CloudStack accepts a signed mutation, ms (the client signs with this expiry). */
export const EXPIRY_MS = 60_000

/** A failure without a definite reason may still be undone by the hypervisor finishing late; wait this long, ms. */
const QUARANTINE_MS = 30_000

/** A load that shows nothing after this, ms, did not work. */
const LOAD_MS = 15_000

/** Tag jobs do not show on the volume's row; give one this long, ms, before asking for it. */
const TAG_JOB_MS = 10_000

const pending = (note: string): Verdict => ({ _tag: "Pending", note })
const uncertain = (note: string): Verdict => ({ _tag: "Uncertain", note })
const notDone = (error: string, binding: Binding | null = null, code: number | null = null): Verdict => ({
  _tag: "NotDone",
  error,
  code,
  binding
})
const settled = (response: Readonly<Record<string, unknown>>, binding: Binding | null): Verdict => ({
  _tag: "Settled",
  response,
  binding
})

const decodeAction = Schema.decodeUnknownOption(Action)

/** The action an operation carries, or none when the row was written by something newer or was damaged. */
export const actionOf = (operation: Operation): Option.Option<Actions.Action> => decodeAction(operation.request)

/** The time after which CloudStack accepts the operation's request no more, ms. */
export const expiryOf = (operation: Operation, processStartedAt: number): number =>
  operation.expires_at ?? Math.max(Date.parse(operation.created_at), processStartedAt) + EXPIRY_MS

export const judge = (operation: Operation, evidence: Evidence): Verdict =>
  Option.match(actionOf(operation), {
    onNone: () => ({
      _tag: "NeedsOperator" as const,
      error: `operation ${operation.id} was recorded in a form this version does not read; compare the volume by hand`
    }),
    onSome: (action) => overdue(operation, evidence, byKind(operation, action, evidence))
  })

/**
 * No limbo (L4): what no evidence has decided within the limit asks for a person, and stops asking when some does. The
 * words are the same in every pass, or each would be written down anew.
 */
const overdue = (operation: Operation, evidence: Evidence, verdict: Verdict): Verdict => {
  if (verdict._tag !== "Pending" && verdict._tag !== "Uncertain") return verdict
  const age = evidence.now - Date.parse(operation.created_at)
  if (age < evidence.limits.limbo_ms) return verdict
  return {
    _tag: "NeedsOperator",
    error: `${operation.type} is undecided since ${operation.created_at}: ${verdict.note}`
  }
}

/** Since when (ms) the operation's row says this, whether or not it asks for a person; null when it does not. */
const notedSince = (operation: Operation, note: string): number | null => {
  const doubted = operation.phase === "uncertain" || operation.phase === "needs_operator"
  return doubted && operation.error?.endsWith(note) === true ? Date.parse(operation.updated_at) : null
}

const byKind = (operation: Operation, action: Actions.Action, evidence: Evidence): Verdict => {
  switch (action._tag) {
    case "Create":
      return create(operation, action, evidence)
    case "Adopt":
      return adopt(operation, action, evidence)
    case "Attach":
      return attach(operation, action, evidence)
    case "Detach":
      return detach(operation, action, evidence)
    case "Delete":
      return remove(operation, action, evidence)
    case "Tag":
      return tag(operation, action, evidence)
    case "Export":
      return exported(operation, action, evidence)
    case "MigratePath":
      return exported(operation, action, evidence)
    case "Unexport":
      return unexported(operation, action, evidence)
  }
}

/** A cloud reading that may speak of this operation: begun after the call was handed to the wire. */
const causal = (operation: Operation, evidence: Evidence) => {
  const cloud = evidence.inventory.cloud
  if (cloud._tag === "Unread") return null
  return cloud.started_at > (operation.submitted_at ?? Date.parse(operation.created_at)) ? cloud : null
}

const rowOf = (reading: CloudReading, id: VolumeId): CloudVolume | null =>
  reading.ambiguous.includes(id) ? null : (reading.volumes.find((v) => v.id === id) ?? null)

/** True when a reading begun at `startedAt` comes after the last moment at which the request could still be accepted. */
const afterExpiry = (operation: Operation, startedAt: number, evidence: Evidence): boolean =>
  startedAt > expiryOf(operation, evidence.process_started_at) + evidence.limits.expiry_margin_ms

const create = (operation: Operation, action: Actions.Create, evidence: Evidence): Verdict => {
  const cloud = causal(operation, evidence)
  if (cloud === null) return pending("waiting for a reading of CloudStack that began after the call")
  if (operation.volume_id !== "") {
    const id = operation.volume_id as VolumeId
    const row = rowOf(cloud.value, id)
    if (row !== null)
      return row.job_id !== null ? pending("the volume is being created") : created(id, action, evidence, "created")
    if (!cloud.value.absent.includes(id) && !cloud.value.unresolved.includes(id)) {
      return pending("waiting for the volume to be listed")
    }
    return vanished(operation, action, id, evidence, cloud.started_at)
  }
  return action.custom_id === null
    ? lookUp(operation, action, evidence)
    : chosen(operation, action, action.custom_id, evidence, cloud)
}

/** Made and not shown: believed as late as any other loss (S17), for a wrong "gone" would make a second volume (S10). */
const vanished = (
  operation: Operation,
  action: Actions.Create,
  id: VolumeId,
  evidence: Evidence,
  startedAt: number
): Verdict => {
  const note = `CloudStack gave volume ${id} and does not show it; reading again`
  const since = notedSince(operation, note)
  if (since === null || startedAt < since + evidence.limits.loss_confirmation_ms) return uncertain(note)
  const { declaration } = evidence
  const spent = declaration !== null && id === action.custom_id ? { ...declaration.binding, former_id: id } : null
  return notDone(`CloudStack gave volume ${id} and no longer has it`, spent)
}

/**
 * A create without an answer whose volume bears an id that we chose: it is there under that id, or it was not made. An id
 * that CloudStack resolves and shows no volume for was given away, whenever that was. Names decide nothing here.
 */
const chosen = (
  operation: Operation,
  action: Actions.Create,
  id: VolumeId,
  evidence: Evidence,
  cloud: { readonly started_at: number; readonly value: CloudReading }
): Verdict => {
  const row = rowOf(cloud.value, id)
  if (row !== null) {
    if (row.job_id !== null) return pending("the volume is being created")
    const wrong = unlike(row, action, evidence)
    return wrong === null
      ? created(id, action, evidence, "found by its id after the answer was lost")
      : { _tag: "NeedsOperator", error: `volume ${id} has the id that was chosen for this one, but ${wrong}` }
  }
  if (!cloud.value.unresolved.includes(id) && !cloud.value.absent.includes(id)) {
    return pending(`waiting for volume ${id} to be read`)
  }
  if (!afterExpiry(operation, cloud.started_at, evidence)) {
    return uncertain("the answer was lost; waiting for the request to expire")
  }
  return cloud.value.unresolved.includes(id)
    ? notDone(`${answerTo(operation)}, and no volume was made`)
    : vanished(operation, action, id, evidence, cloud.started_at)
}

/** Why a volume cannot be what the create was to make (S4), or null. */
const unlike = (row: CloudVolume, action: Actions.Create, { bound, declaration }: Evidence): string | null => {
  if (bound.has(row.id) && declaration?.binding.volume_id !== row.id) return "another declaration has it"
  if (row.type !== "DATADISK") return `its type is ${row.type}`
  if (row.name !== action.cloudstack_name) return `its name is ${JSON.stringify(row.name)}`
  if (row.size < action.size_gib * GIB) return `it has only ${row.size} bytes`
  return row.zone_id === null || row.zone_id === action.zone_id ? null : `it is in zone ${row.zone_id}`
}

/**
 * A create without an answer (design consequence 3): look for what it may have made, by name, in a whole listing that
 * began when the request had expired. Before that a second volume could still come.
 */
const lookUp = (operation: Operation, action: Actions.Create, evidence: Evidence): Verdict => {
  const cloud = evidence.inventory.cloud
  if (cloud._tag === "Unread" || !cloud.complete || cloud.value.scope !== "all") {
    return uncertain("the answer was lost; waiting for a whole listing to look for the volume")
  }
  if (!afterExpiry(operation, cloud.started_at, evidence))
    return uncertain("the answer was lost; waiting for the request to expire")
  const existing = new Set(action.existing_ids)
  const candidates = cloud.value.volumes.filter(
    (v) =>
      v.name === action.cloudstack_name &&
      !existing.has(v.id) &&
      !evidence.bound.has(v.id) &&
      v.type === "DATADISK" &&
      v.size >= action.size_gib * GIB &&
      v.zone_id === action.zone_id &&
      v.disk_offering_id === action.disk_offering_id &&
      v.tags.every(({ key }) => key.toLowerCase() !== UID_TAG)
  )
  const [only, ...more] = candidates
  if (only === undefined) return notDone(`${answerTo(operation)}, and no volume was made`)
  if (more.length > 0) {
    const ids = candidates.map((v) => v.id).join(", ")
    return {
      _tag: "NeedsOperator",
      error: `the answer was lost and ${candidates.length} volumes could be the one that was made: ${ids}; delete the surplus or declare volume_id`
    }
  }
  // A create leaves neither: it is another's of the same name, or ours and somebody was quick. It is not used, and no
  // second one made.
  if (only.vm_id !== null || only.tags.length > 0) {
    const use = only.vm_id === null ? "has tags" : `is on VM ${only.vm_id}`
    return {
      _tag: "NeedsOperator",
      error: `the answer was lost and volume ${only.id} could be the one that was made, but it ${use}: rename it in CloudStack if it is not`
    }
  }
  return only.job_id !== null
    ? pending("the volume is being created")
    : created(only.id, action, evidence, "found by its name after the answer was lost")
}

const created = (id: VolumeId, action: Actions.Create, evidence: Evidence, message: string): Verdict =>
  settled({ volume_id: id, message }, learned(evidence, action, id))

/** What the declaration is known to have once the action is done; nothing where there is no declaration any more. */
const learned = (
  { declaration, now }: Evidence,
  action: Actions.Action,
  made: VolumeId | null = null
): Binding | null => (declaration === null ? null : Merge.bind(declaration, action, now, made))

const adopt = (operation: Operation, action: Actions.Adopt, evidence: Evidence): Verdict => {
  const cloud = causal(operation, evidence)
  if (cloud === null) return pending("waiting for a reading of CloudStack")
  const { declaration, bound } = evidence
  if (bound.has(action.volume_id) && declaration?.binding.volume_id !== action.volume_id) {
    return notDone(`volume ${action.volume_id} was claimed by another declaration meanwhile`)
  }
  const row = rowOf(cloud.value, action.volume_id)
  if (row === null) {
    const gone = cloud.value.absent.includes(action.volume_id) || cloud.value.unresolved.includes(action.volume_id)
    return gone ? notDone(`volume ${action.volume_id} is not there`) : pending("waiting for the volume to be read")
  }
  if (declaration === null) return notDone("the declaration is gone")
  return settled({ volume_id: row.id, message: `adopted ${row.name}` }, learned(evidence, action))
}

const deviceOf = (inventory: Inventory, id: VolumeId) =>
  inventory.guest._tag === "Known" ? inventory.guest.value.devices.filter((d) => d.serial === serialOf(id)) : []

const attach = (operation: Operation, action: Actions.Attach, evidence: Evidence): Verdict => {
  const cloud = causal(operation, evidence)
  if (cloud === null) return pending("waiting for a reading of CloudStack that began after the call")
  const row = rowOf(cloud.value, action.volume_id)
  if (row === null) return absentTarget(operation, action.volume_id, cloud.value, cloud.started_at, evidence)
  if (row.job_id !== null) return pending("CloudStack is attaching")
  if (row.vm_id === action.vm_id) return attached(operation, action, evidence)
  // Even so our request may still be on its way, to be accepted when the volume is free again (S2).
  if (row.vm_id !== null) {
    const instead = `attached, but to VM ${row.vm_id} instead`
    return missingEffect(operation, cloud.started_at, evidence, instead)
  }
  if (action.on_appliance && deviceOf(evidence.inventory, row.id).length > 0) {
    return uncertain("CloudStack says detached while the guest has the disk")
  }
  return missingEffect(operation, cloud.started_at, evidence, "attached")
}

const attached = (operation: Operation, action: Actions.Attach, evidence: Evidence): Verdict => {
  const { inventory } = evidence
  const binding = learned(evidence, action)
  if (!action.on_appliance)
    return settled({ volume_id: action.volume_id, message: `attached to VM ${action.vm_id}` }, binding)
  if (inventory.guest._tag === "Unread")
    return pending(`CloudStack attached it; the guest is unread: ${inventory.guest.message}`)
  const [device] = deviceOf(inventory, action.volume_id)
  if (device !== undefined) {
    return settled(
      {
        volume_id: action.volume_id,
        device_path: device.by_id_paths[0] ?? device.kernel_path,
        kernel_path: device.kernel_path,
        message: `attached as ${device.kernel_path}`
      },
      binding
    )
  }
  // Counted from when CloudStack was first seen to say attached: the job itself may have waited for long.
  const { declaration, now } = evidence
  const since =
    declaration === null
      ? (operation.submitted_at ?? Date.parse(operation.created_at))
      : (declaration.binding.device_awaited_since ?? now)
  const waited = now - since
  return waited > evidence.limits.device_timeout_ms
    ? notDone(
        `CloudStack attached it, but no disk with serial ${serialOf(action.volume_id)} came up within ${Math.round(waited / 1000)} s`,
        binding
      )
    : pending("attached in CloudStack; waiting for the disk to come up")
}

const detach = (operation: Operation, action: Actions.Detach, evidence: Evidence): Verdict => {
  const cloud = causal(operation, evidence)
  if (cloud === null) return pending("waiting for a reading of CloudStack that began after the call")
  const row = rowOf(cloud.value, action.volume_id)
  if (row === null) return absentTarget(operation, action.volume_id, cloud.value, cloud.started_at, evidence)
  if (row.job_id !== null) return pending("CloudStack is detaching")
  if (row.vm_id === action.vm_id) return missingEffect(operation, cloud.started_at, evidence, "detached")
  const { inventory } = evidence
  if (action.on_appliance) {
    if (inventory.guest._tag === "Unread")
      return pending(`detached in CloudStack; the guest is unread: ${inventory.guest.message}`)
    if (deviceOf(inventory, row.id).length > 0)
      return uncertain("detached in CloudStack, but the guest still has the disk")
    if (!inventory.guest.complete)
      return pending(`detached in CloudStack; ${inventory.guest.note ?? "a disk is unread"}`)
  }
  return settled({ volume_id: row.id, message: `detached from VM ${action.vm_id}` }, learned(evidence, action))
}

/**
 * The reading shows no job and no effect. A definite refusal by the job settles it; a failure without one (restart,
 * time-out, lost job) is believed only after a quarantine, for the hypervisor may still finish.
 */
const missingEffect = (operation: Operation, startedAt: number, evidence: Evidence, wanted: string): Verdict => {
  const { job } = evidence
  if (operation.job_id === null) {
    return afterExpiry(operation, startedAt, evidence)
      ? notDone(`${answerTo(operation)}, and the volume was not ${wanted}`)
      : uncertain("the answer was lost; waiting for the request to expire")
  }
  if (job === null) return uncertain(`the job ended without the volume being ${wanted}`)
  if (job.status === "pending") return pending("CloudStack's job is still running")
  const said =
    job.text ?? (job.status === "unknown" ? "CloudStack no longer knows the job" : "CloudStack gave no reason")
  if (job.status === "failed" && job.code !== null && definite(job.code))
    return notDone(`CloudStack: ${said}`, null, job.code)
  const note = `the job ${job.status} (${said}); watching whether it takes effect all the same`
  const since = operation.phase === "uncertain" ? Date.parse(operation.updated_at) : notedSince(operation, note)
  return startedAt >= (since ?? evidence.now) + QUARANTINE_MS
    ? notDone(`CloudStack's job ${job.status}: ${said}`, null, job.code)
    : uncertain(note)
}

/** An error of CloudStack's that proves nothing is kept as a number alone: what was said of it is said when it comes. */
const answerTo = ({ response }: Operation): string => {
  const code = response?.["cloudstack_code"]
  return typeof code === "number" ? `CloudStack answered with error ${code}` : "no answer came"
}

/** Job results that come from checks made before any work (reference: everything else becomes 530). */
const definite = (code: number): boolean =>
  code >= 400 && code < 500 ? code !== 408 && code !== 429 : code === 531 || code === 532 || code === 535

const absentTarget = (
  operation: Operation,
  id: VolumeId,
  reading: CloudReading,
  startedAt: number,
  evidence: Evidence
): Verdict => {
  const gone = reading.absent.includes(id) || reading.unresolved.includes(id)
  if (gone && afterExpiry(operation, startedAt, evidence)) return notDone(`volume ${id} is gone`)
  return pending(gone ? "the volume is gone; waiting for the request to expire" : "waiting for the volume to be read")
}

/** Gone must be read twice (S7): the first reading marks the operation uncertain, a later one settles it. */
const remove = (operation: Operation, action: Actions.Delete, evidence: Evidence): Verdict => {
  const cloud = causal(operation, evidence)
  if (cloud === null) return pending("waiting for a reading of CloudStack that began after the call")
  const { absent, unresolved } = cloud.value
  if (absent.includes(action.volume_id) || unresolved.includes(action.volume_id)) {
    const since = notedSince(operation, GONE_ONCE)
    return since !== null && cloud.started_at > since
      ? settled({ volume_id: action.volume_id, message: "deleted" }, learned(evidence, action))
      : uncertain(GONE_ONCE)
  }
  const row = rowOf(cloud.value, action.volume_id)
  if (row === null) return pending("waiting for the volume to be read")
  if (row.state !== "Ready" && row.state !== "Allocated") return pending(`the volume is ${row.state}`)
  return afterExpiry(operation, cloud.started_at, evidence)
    ? notDone(`volume ${row.id} is still ${row.state}`)
    : pending("waiting for the volume to go")
}

const GONE_ONCE = "read as gone once; reading again"

const tag = (operation: Operation, action: Actions.Tag, evidence: Evidence): Verdict => {
  const cloud = causal(operation, evidence)
  if (cloud === null) return pending("waiting for a reading of CloudStack that began after the call")
  const row = rowOf(cloud.value, action.volume_id)
  if (row === null) return absentTarget(operation, action.volume_id, cloud.value, cloud.started_at, evidence)
  const has = new Map(row.tags.map((t) => [t.key.toLowerCase(), t.value]))
  const shown = Object.entries(action.set).every(([key, value]) => has.get(key.toLowerCase()) === value)
  if (shown) return settled({ volume_id: row.id, message: "tagged" }, learned(evidence, action))
  const waited = evidence.now - (operation.submitted_at ?? Date.parse(operation.created_at))
  if (operation.job_id !== null && waited < TAG_JOB_MS) return pending("CloudStack is tagging")
  return missingEffect(operation, cloud.started_at, evidence, "tagged")
}

/** An NBD reading that began after the load was asked for. */
const causalNbd = (
  operation: Operation,
  evidence: Evidence
): { readonly value: NbdReading; readonly started_at: number } | null => {
  const nbd = evidence.inventory.nbd
  if (nbd._tag === "Unread" || nbd.started_at <= (operation.submitted_at ?? Date.parse(operation.created_at)))
    return null
  return nbd
}

const exported = (operation: Operation, action: Actions.Export | Actions.MigratePath, evidence: Evidence): Verdict => {
  const nbd = causalNbd(operation, evidence)
  if (nbd === null) return loadPending(operation, evidence, "the NBD server is unread")
  const go = nbd.value.verifications.find((v) => v.name === action.export_name)
  const section = nbd.value.sections.find((s) => s.name === action.export_name)
  const served =
    go?.outcome === "served" &&
    go.size === action.size &&
    go.read_only === action.read_only &&
    go.device === action.device &&
    section?.path === action.path &&
    section.unfinished === null
  if (served) {
    return settled(
      {
        volume_id: action.volume_id,
        device_path: action.path,
        message: `served as ${action.export_name}`,
        size: action.size
      },
      learned(evidence, action)
    )
  }
  const seen =
    go === undefined ? "it was not asked for" : `${go.outcome}${go.message === null ? "" : ` (${go.message})`}`
  return loadPending(operation, evidence, `a client that opens ${action.export_name} gets: ${seen}`)
}

const unexported = (operation: Operation, action: Actions.Unexport, evidence: Evidence): Verdict => {
  const nbd = causalNbd(operation, evidence)
  if (nbd === null) return loadPending(operation, evidence, "the NBD server is unread")
  const go = nbd.value.verifications.find((v) => v.name === action.export_name)
  const configured = nbd.value.sections.some((s) => s.name === action.export_name)
  const refused = go !== undefined && (go.outcome === "unknown" || go.outcome === "denied" || go.outcome === "refused")
  const held = action.device !== null && nbd.value.holders.some((h) => h.device === action.device)
  if (!configured && refused && !held) {
    return settled({ volume_id: action.volume_id, message: `${action.export_name} is gone` }, learned(evidence, action))
  }
  const left = configured
    ? "the section is still in the file"
    : held
      ? "somebody holds the device open"
      : `a client gets: ${go?.outcome ?? "not asked"}`
  return loadPending(operation, evidence, left)
}

/** A load is local and may be repeated: when it shows no effect in time it failed, and the next plan asks again. */
const loadPending = (operation: Operation, evidence: Evidence, note: string): Verdict => {
  const waited = evidence.now - (operation.submitted_at ?? Date.parse(operation.created_at))
  return waited > LOAD_MS ? notDone(note) : pending(note)
}
