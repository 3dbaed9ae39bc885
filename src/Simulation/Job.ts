import * as Event from "./Event.ts"
import * as Hypervisor from "./Hypervisor.ts"
import * as Precondition from "./Precondition.ts"
import * as Random from "./Random.ts"
import * as Response from "./Response.ts"
import {
  changed,
  type Job,
  listOf,
  membersOf,
  patchVolume,
  schedule,
  type State,
  strike,
  type Vm,
  type Volume,
  type Work
} from "./State.ts"

type Refusal = Precondition.Refusal

const failure = (code: number, text: string | null): Refusal => ({ code, cserrorcode: null, text })

/** Make an asynchronous job; its checks run when it starts, which is at once but after the answer. */
export const submit = (
  state: State,
  command: string,
  work: Work,
  by: "api" | "operator",
  customId: string | null = null
): Job => {
  const touches = "volume_id" in work ? [work.volume_id] : work.resources
  const occasion = {
    command,
    volume_id: touches[0] ?? null,
    vm_id: work.kind === "attach" ? work.vm_id : (state.volumes.get(touches[0] ?? "")?.vm_id ?? null)
  }
  const detach = work.kind === "detach"
  const job: Job = {
    id: customId ?? Random.uuid(state.ids),
    command,
    work,
    // Tag commands name no instance, so no row shows their jobs.
    volume_id: "volume_id" in work ? work.volume_id : null,
    touches,
    by,
    created_at: state.now,
    event: Event.scheduled(state, work, by),
    queue: null,
    device_id: null,
    status: 0,
    code: 0,
    result: null,
    completed_at: null,
    faults: {
      lost: strike(state, ["job_lost"], occasion),
      failed: strike(state, ["job_failed"], occasion),
      slow_ms: strike(state, ["slow_job"], occasion)?.ms ?? 0,
      timeout: detach ? strike(state, ["detach_timeout"], occasion) : null,
      straggler: detach ? strike(state, ["straggler_detach"], occasion) : null
    }
  }
  state.jobs.set(job.id, job)
  for (const id of touches) membersOf(state.busy, id).add(job.id)
  showOnRow(state, job)
  schedule(state, state.now, { kind: "job_start", job_id: job.id })
  return job
}

/** A row shows one pending job of instance type Volume (joined in `cloud.volume_view.sql`). */
const showOnRow = (state: State, job: Job): void => {
  if (job.volume_id === null) return
  const row = state.volumes.get(job.volume_id)
  if (row === undefined) return
  const pending = [...(state.busy.get(row.id) ?? [])].find((id) => {
    const other = state.jobs.get(id)
    return other !== undefined && other.volume_id !== null && other.faults.lost === null
  })
  if (row.job_id !== (pending ?? null)) patchVolume(state, row.id, { job_id: pending ?? null })
}

/** The outer job's checks, then the queue of the VM that the disk work happens on; work on a free volume has no queue. */
export const start = (state: State, job: Job): void => {
  Event.started(state, job)
  const refusal = outerRefusal(state, job.work)
  if (refusal !== null) return fail(state, job, refusal)
  if (job.faults.lost?.effect === false) return finish(state, job, 2, 530, null)
  job.queue = queueOf(state, job.work)
  if (job.queue === null) {
    const slow = state.config.quick_job_ms + job.faults.slow_ms
    return schedule(state, state.now + slow, { kind: "work_end", job_id: job.id })
  }
  const queue = listOf(state.queues, job.queue)
  queue.push(job.id)
  if (queue.length === 1) begin(state, job)
}

const outerRefusal = (state: State, work: Work): Refusal | null => {
  switch (work.kind) {
    case "attach":
      return Precondition.attach(state, work)
    case "detach":
      return Precondition.detach(state, work)
    case "destroy":
      return Precondition.destroy(state, work)
    case "resize":
      return Precondition.resize(state, work)
    case "create":
    case "update":
    case "create_tags":
    case "delete_tags":
      return null
  }
}

/** Attach, detach and resize of attached volumes are serialised per VM (`SyncQueueManagerImpl`). */
const queueOf = (state: State, work: Work): string | null => {
  if (work.kind === "attach") return work.vm_id
  if (work.kind === "detach" || work.kind === "resize") return state.volumes.get(work.volume_id)?.vm_id ?? null
  return null
}

/** It is this job's turn on its VM. */
const begin = (state: State, job: Job): void => {
  const refusal = job.work.kind === "attach" ? beginAttach(state, job) : beginDetach(state, job)
  if (refusal !== null) return fail(state, job, refusal)
  const timeout = job.faults.timeout !== null && heldByGuest(state, job) ? state.config.detach_wait_ms : null
  const lasts = (timeout ?? state.config.job_ms) + job.faults.slow_ms
  if (state.volumes.get(job.volume_id ?? "")?.state === "Creating") {
    schedule(state, state.now + Math.floor(lasts / 3), { kind: "work_step", job_id: job.id })
  }
  schedule(state, state.now + lasts, { kind: "work_end", job_id: job.id })
}

const heldByGuest = (state: State, job: Job): boolean =>
  Hypervisor.diskOf(state, job.queue ?? "", job.volume_id ?? "") !== null

/** The checks inside the VM work job; the device id is chosen now. An Allocated volume is first created on storage. */
const beginAttach = (state: State, job: Job): Refusal | null => {
  if (job.work.kind !== "attach") return null
  const chosen = Precondition.attachNow(state, job.work)
  if (typeof chosen !== "number") return chosen
  job.device_id = chosen
  const vm = state.vms.get(job.work.vm_id)
  const row = state.volumes.get(job.work.volume_id)
  if (vm?.state === "Running" && row !== undefined) {
    patchVolume(state, row.id, { state: row.state === "Allocated" ? "Creating" : "Attaching" })
  }
  return null
}

const beginDetach = (state: State, job: Job): Refusal | null => {
  if (job.work.kind === "resize") {
    patchVolume(state, job.work.volume_id, { state: "Resizing" })
    return null
  }
  const disk = Hypervisor.diskOf(state, job.queue ?? "", job.volume_id ?? "")
  if (disk === null || !disk.unplugging) return null
  const why = `internal error: unable to execute QEMU command 'device_del': Device virtio-disk${disk.epoch} is already in the process of unplug`
  return failure(530, detachFailed(state, job, `org.libvirt.LibvirtException: ${why}`))
}

const detachFailed = (state: State, job: Job, why: string): string => {
  const volume = state.volumes.get(job.volume_id ?? "")?.name ?? ""
  return `Failed to detach volume ${volume} from VM ${state.vms.get(job.queue ?? "")?.name ?? ""}; ${why}`
}

/** Created on storage: the attach proper begins. */
export const step = (state: State, job: Job): void => {
  const row = state.volumes.get(job.volume_id ?? "")
  if (job.status === 0 && row?.state === "Creating") patchVolume(state, row.id, { state: "Attaching", placed: true })
}

/** The work is over: its effect, then its end as the poller sees it. */
export const end = (state: State, job: Job): void => {
  if (job.status !== 0) return
  const { failed } = job.faults
  const effect = failed === null ? "full" : (failed.effect ?? "none")
  const problem = perform(state, job, effect)
  if (problem !== null) return fail(state, job, problem)
  if (failed === null) return succeed(state, job)
  if (failed.code === undefined && failed.text === undefined) return finish(state, job, 2, 530, null)
  fail(state, job, failure(failed.code ?? 530, failed.text ?? null))
}

type Effect = "none" | "hypervisor" | "full"

const perform = (state: State, job: Job, effect: Effect): Refusal | null => {
  const { work } = job
  switch (work.kind) {
    case "create":
      return null
    case "attach":
      return performAttach(state, job, work.vm_id, effect)
    case "detach":
      return performDetach(state, job, effect)
    case "resize":
      patchVolume(state, work.volume_id, {
        state: state.volumes.get(work.volume_id)?.placed === true ? "Ready" : "Allocated",
        ...(effect === "full" ? { size: work.size } : {})
      })
      return null
    case "update":
      if (effect === "full") updateRow(state, work)
      return null
    case "destroy":
      if (effect === "full") destroyRow(state, work.volume_id, work.expunge)
      return null
    case "create_tags":
    case "delete_tags":
      return effect === "full" ? performTags(state, work) : null
  }
}

const updateRow = (state: State, work: Extract<Work, { kind: "update" }>): void => {
  patchVolume(state, work.volume_id, {
    ...(work.name === null ? {} : { name: work.name }),
    ...(work.delete_protection === null ? {} : { delete_protection: work.delete_protection })
  })
}

/** Instance, device id and date are written in one update at the very end (`VDI.attachVolume`). */
const performAttach = (state: State, job: Job, vmId: string, effect: Effect): Refusal | null => {
  const row = state.volumes.get(job.volume_id ?? "")
  const vm = state.vms.get(vmId)
  if (row === undefined || vm === undefined) return failure(530, null)
  if (vm.state === "Running" && effect !== "none") Hypervisor.plug(state, vm, row.id, job.command)
  const created = row.state !== "Creating"
  // What a management server's restart leaves: Attaching becomes Ready, Creating becomes Allocated.
  const settled = { state: created ? "Ready" : "Allocated", placed: created }
  if (effect === "full") land(state, row, vm, job.device_id ?? 1, job.by === "api")
  else if (row.state === "Attaching" || row.state === "Creating") patchVolume(state, row.id, settled)
  return null
}

/** The row of an attached volume. Device id 0 makes it the VM's ROOT. */
export const land = (state: State, row: Volume, vm: Vm, deviceId: number, byApi: boolean): void => {
  patchVolume(state, row.id, {
    state: "Ready",
    placed: true,
    vm_id: vm.id,
    device_id: deviceId,
    attached_at: state.now,
    type: deviceId === 0 ? "ROOT" : row.type,
    root_of: deviceId === 0 && byApi ? vm.id : null
  })
}

/** Clears whatever attachment the row has by now: the work does not look at the VM again (`orchestrateDetachVolumeFromVM`). */
export const clear = (state: State, volumeId: string): void => {
  patchVolume(state, volumeId, {
    vm_id: null,
    device_id: null,
    attached_at: null,
    type: "DATADISK",
    root_of: null
  })
}

const performDetach = (state: State, job: Job, effect: Effect): Refusal | null => {
  const vmId = job.queue ?? ""
  const volumeId = job.volume_id ?? ""
  const disk = Hypervisor.diskOf(state, vmId, volumeId)
  if (job.faults.timeout !== null && disk !== null) {
    disk.unplugging = true
    const after = job.faults.timeout.completes_after_ms
    const what = { kind: "unplug_completes" as const, vm_id: vmId, volume_id: volumeId, epoch: disk.epoch }
    if (after !== null) schedule(state, state.now + (after ?? 5_000), what)
    const wait = state.config.detach_wait_ms
    const why = `com.cloud.exception.InternalErrorException: Could not detach volume after sending the command and waiting for [${wait}] milliseconds. Probably the VM does not support the sent detach command or the device is busy at the moment. Try again in a couple of minutes.`
    return failure(530, detachFailed(state, job, why))
  }
  if (effect === "none") return null
  Hypervisor.unplug(state, vmId, volumeId)
  if (effect === "full") clear(state, volumeId)
  if (job.faults.straggler !== null) {
    const what = { kind: "straggler" as const, volume_id: volumeId, from_vm_id: vmId }
    schedule(state, state.now + job.faults.straggler.delay_ms, what)
  }
  return null
}

/** The forgotten detach of an earlier call runs: the database forgets an attachment that the hypervisor keeps. */
export const straggle = (state: State, volumeId: string, fromVmId: string): void => {
  Hypervisor.unplug(state, fromVmId, volumeId)
  const row = state.volumes.get(volumeId)
  if (row === undefined || row.vm_id === null || row.removed_at !== null) return
  state.incidents.push({
    at: state.now,
    kind: "straggler_detach",
    command: "detachVolume",
    volume_id: volumeId,
    vm_id: row.vm_id,
    message: `a late detach meant for ${fromVmId} cleared the attachment to ${row.vm_id}`
  })
  clear(state, volumeId)
}

/** Destroy, and with `expunge` (or on a volume that has no place on storage) gone for good. */
export const destroyRow = (state: State, volumeId: string, expunge: boolean): void => {
  const gone = { state: "Expunged", removed_at: state.now, vm_id: null, device_id: null, attached_at: null, tags: [] }
  patchVolume(state, volumeId, expunge ? gone : { state: "Destroy" })
}

const performTags = (state: State, work: Extract<Work, { kind: "create_tags" | "delete_tags" }>): Refusal | null => {
  const rows = work.resources.map((id) => ({ id, row: state.volumes.get(id) }))
  for (const { id, row } of rows) {
    if (row === undefined || row.removed_at !== null) {
      return failure(431, `Unable to find resource by id ${id} and type Volume`)
    }
    const problem = work.kind === "create_tags" ? addTags(state, row, work.tags) : dropTags(state, row, work.tags)
    if (problem !== null) return problem
  }
  return null
}

const same = (a: string, b: string) => a.toLowerCase() === b.toLowerCase()

/** There is no upsert: a key that exists fails the job. */
const addTags = (
  state: State,
  row: Volume,
  tags: ReadonlyArray<{ readonly key: string; readonly value: string | null }>
): Refusal | null => {
  const twice = tags.find((tag) => row.tags.some((have) => same(have.key, tag.key)))
  if (twice !== undefined) return failure(530, `tag ${twice.key} already on Volume with id ${row.id}`)
  patchVolume(state, row.id, { tags: [...row.tags, ...tags.map((tag) => ({ key: tag.key, value: tag.value ?? "" }))] })
  return null
}

/** Without tags all go; a value narrows a key. */
const dropTags = (
  state: State,
  row: Volume,
  tags: ReadonlyArray<{ readonly key: string; readonly value: string | null }>
): Refusal | null => {
  const goes = (have: { readonly key: string; readonly value: string }) =>
    tags.length === 0 || tags.some((tag) => same(tag.key, have.key) && (tag.value === null || tag.value === have.value))
  const kept = row.tags.filter((have) => !goes(have))
  if (kept.length === row.tags.length) return failure(530, "Failed to delete tags")
  patchVolume(state, row.id, { tags: kept })
  return null
}

/** The embedded volume was rendered before completion, so it carries the job as pending. */
const succeed = (state: State, job: Job): void => {
  const row = job.volume_id === null ? undefined : state.volumes.get(job.volume_id)
  const result = row === undefined ? { success: true } : { volume: Response.volume(state, row) }
  finish(state, job, 1, 0, result)
}

const fail = (state: State, job: Job, refusal: Refusal): void => {
  const text = refusal.text === null ? {} : { errortext: refusal.text }
  finish(state, job, 2, refusal.code, { errorcode: refusal.code, ...text })
}

const finish = (state: State, job: Job, status: 1 | 2, code: number, result: unknown): void => {
  Object.assign(job, { status, code, result, completed_at: state.now })
  Event.ended(state, job, status === 1)
  for (const id of job.touches) state.busy.get(id)?.delete(job.id)
  showOnRow(state, job)
  changed(state)
  if (job.queue === null) return
  const queue = listOf(state.queues, job.queue)
  if (queue[0] !== job.id) return
  queue.shift()
  const next = state.jobs.get(queue[0] ?? "")
  if (next !== undefined) begin(state, next)
}

/** Finished jobs are forgotten `job.expire.minutes` after their completion. */
export const forgetOld = (state: State): void => {
  for (const [id, job] of state.jobs) {
    if (job.completed_at !== null && job.completed_at + state.config.job_expire_ms < state.now) state.jobs.delete(id)
  }
}
