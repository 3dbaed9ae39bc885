import { Schema } from "effect"
import * as Command from "./Command.ts"
import * as Event from "./Event.ts"
import * as Hypervisor from "./Hypervisor.ts"
import * as Job from "./Job.ts"
import * as Precondition from "./Precondition.ts"
import { GIB, patchVolume, putVm, type State, type Vm, type Volume, volumesOn } from "./State.ts"

const volume = { volume_id: Schema.String }
/** True: as a job that takes its time, like the button in CloudStack's UI. Else it is done at once. */
const asJob = { as_job: Schema.optional(Schema.Boolean) }
const vm = { vm_id: Schema.String }
const SizeGib = Schema.Int.pipe(Schema.between(1, 1024))

const act = <K extends string, F extends Schema.Struct.Fields>(name: K, fields: F) =>
  Schema.Struct({ act: Schema.Literal(name), ...fields })

/** What a person in CloudStack's UI could do behind the controller's back. */
export const Act = Schema.Union(
  act("detach", { ...volume, ...asJob }),
  act("attach", { ...volume, ...vm, ...asJob }),
  act("delete", volume),
  act("rename", { ...volume, name: Schema.String.pipe(Schema.minLength(1), Schema.maxLength(255)) }),
  /** Whole GiB; smaller is allowed here, for a damaged cloud is what this is for. */
  act("resize", { ...volume, size_gib: SizeGib }),
  act("create", { name: Schema.String.pipe(Schema.minLength(1), Schema.maxLength(255)), size_gib: SizeGib }),
  act("protect", { ...volume, protect: Schema.Boolean }),
  act("stop_vm", vm),
  /** `bus`: what the VM's disks hang on from now on, which may change with a restart (CloudStack issue 7490). */
  act("start_vm", { ...vm, bus: Schema.optional(Schema.Literal("virtio", "scsi", "ata")) }),
  act("destroy_vm", vm),
  /** What the API account is from now on: `admin` is root's. */
  act("set_role", { role: Schema.Literal("admin", "user") })
)
export type Act = typeof Act.Type

export type Outcome =
  | { readonly done: true; readonly volume_id: string | null; readonly job_id: string | null }
  | { readonly done: false; readonly error: string }

const done = (volume_id: string | null = null, job_id: string | null = null): Outcome => ({
  done: true,
  volume_id,
  job_id
})
const cannot = (error: string | null): Outcome => ({ done: false, error: error ?? "internal error" })

/** What a person does is recorded under a name that is not the API account's; what a job does, by the job. */
export const performRecorded = (state: State, what: Act): Outcome => {
  const disks = what.act === "destroy_vm" ? volumesOn(state, what.vm_id) : []
  const outcome = perform(state, what)
  if (!outcome.done || outcome.job_id !== null) return outcome
  for (const { id, type } of disks) {
    if (type === "DATADISK") Event.whole(state, { kind: "detach", volume_id: id, vm_id: null, by: "operator" })
  }
  if (outcome.volume_id !== null) record(state, what, outcome.volume_id)
  return outcome
}

const record = (state: State, what: Act, volume_id: string): void => {
  const by = "operator"
  switch (what.act) {
    case "create":
    case "attach":
    case "detach":
    case "resize":
      return Event.whole(state, { kind: what.act, volume_id, vm_id: what.act === "attach" ? what.vm_id : null, by })
    case "rename":
    case "protect":
      return Event.whole(state, { kind: "update", volume_id, vm_id: null, by })
    case "delete": {
      const row = state.volumes.get(volume_id)
      return row === undefined ? undefined : Event.deleted(state, row, by, null)
    }
    case "stop_vm":
    case "start_vm":
    case "destroy_vm":
    case "set_role":
      return
  }
}

/** The deed itself, of which nothing is recorded. */
export const perform = (state: State, what: Act): Outcome => {
  switch (what.act) {
    case "set_role":
      state.config.root_admin = what.role === "admin"
      return done()
    case "create": {
      const offering = state.config.offerings.find((row) => row.customized)?.id ?? null
      const from = { id: null, name: what.name, size_gib: what.size_gib, offering_id: offering }
      return done(Command.newVolume(state, from).id)
    }
    case "stop_vm":
    case "start_vm":
    case "destroy_vm": {
      const row = state.vms.get(what.vm_id)
      return row === undefined ? cannot(`there is no VM ${what.vm_id}`) : onVm(state, row, what)
    }
    case "detach":
    case "attach":
    case "delete":
    case "rename":
    case "resize":
    case "protect": {
      const row = state.volumes.get(what.volume_id)
      if (row === undefined || row.removed_at !== null) return cannot(`there is no volume ${what.volume_id}`)
      return onVolume(state, row, what)
    }
  }
}

const onVolume = (state: State, row: Volume, what: Extract<Act, { readonly volume_id: string }>): Outcome => {
  switch (what.act) {
    case "detach":
      return detach(state, row, what.as_job === true)
    case "attach":
      return attach(state, row, what.vm_id, what.as_job === true)
    case "delete": {
      const problem = Precondition.remove(row)
      if (problem !== null) return cannot(problem.text)
      Job.destroyRow(state, row.id, true)
      return done(row.id)
    }
    case "rename":
      return done(patchVolume(state, row.id, { name: what.name }).id)
    case "resize":
      return done(patchVolume(state, row.id, { size: what.size_gib * GIB }).id)
    case "protect":
      return done(patchVolume(state, row.id, { delete_protection: what.protect }).id)
  }
}

const detach = (state: State, row: Volume, asJob: boolean): Outcome => {
  const work = { kind: "detach", volume_id: row.id, alone: true } as const
  const problem = Precondition.detach(state, work)
  if (problem !== null) return cannot(problem.text)
  if (asJob) return done(row.id, Job.submit(state, "detachVolume", work, "operator").id)
  if (row.vm_id !== null) Hypervisor.unplug(state, row.vm_id, row.id)
  Job.clear(state, row.id)
  return done(row.id)
}

const attach = (state: State, row: Volume, vmId: string, asJob: boolean): Outcome => {
  const work = { kind: "attach", volume_id: row.id, vm_id: vmId, device_id: null } as const
  const problem = Precondition.attach(state, work)
  if (problem !== null) return cannot(problem.text)
  if (asJob) return done(row.id, Job.submit(state, "attachVolume", work, "operator").id)
  const chosen = Precondition.attachNow(state, work)
  const target = state.vms.get(vmId)
  if (typeof chosen !== "number") return cannot(chosen.text)
  if (target === undefined) return cannot(`there is no VM ${vmId}`)
  if (target.state === "Running") Hypervisor.plug(state, target, row.id, "act")
  Job.land(state, row, target, chosen, false)
  return done(row.id)
}

const onVm = (state: State, row: Vm, what: Extract<Act, { readonly act: `${string}_vm` }>): Outcome => {
  switch (what.act) {
    case "stop_vm":
      if (row.state !== "Running") return cannot(`${row.name} is ${row.state}, not Running`)
      putVm(state, { ...row, state: "Stopped" })
      Hypervisor.halt(state, row.id)
      return done()
    case "start_vm": {
      if (row.state !== "Stopped") return cannot(`${row.name} is ${row.state}, not Stopped`)
      const disks = volumesOn(state, row.id).toSorted((a, b) => (a.device_id ?? 0) - (b.device_id ?? 0))
      if (disks[0]?.device_id !== 0) return cannot(`${row.name} has no ROOT volume to start from`)
      const started = putVm(state, { ...row, state: "Running", bus: what.bus ?? row.bus })
      Hypervisor.boot(
        state,
        started,
        disks.map((disk) => disk.id)
      )
      return done()
    }
    case "destroy_vm":
      putVm(state, { ...row, state: "Destroyed" })
      Hypervisor.halt(state, row.id)
      for (const disk of volumesOn(state, row.id)) if (disk.type === "DATADISK") Job.clear(state, disk.id)
      return done()
  }
}
