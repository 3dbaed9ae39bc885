import { Schema } from "effect"
import * as Command from "./Command.ts"
import * as Fault from "./Fault.ts"
import * as Hypervisor from "./Hypervisor.ts"
import * as Job from "./Job.ts"
import * as Monitor from "./Monitor.ts"
import * as Operator from "./Operator.ts"
import * as State from "./State.ts"

export const ZONE_ID = "057e86db-c726-4d8c-ab1f-75c5f55d1881"
export const OFFERING_ID = "c813c642-d946-49e1-9289-c616dd70206a"
/** 20 GiB, no custom size. */
export const FIXED_OFFERING_ID = "5f3d1a86-52c7-4d0b-8f0e-3b1e5a6c7d20"
export const APPLIANCE_VM_ID = "8a4400e5-c92a-4bc4-8bff-4b6b0b6a018c"
/** The n-th VM beside the appliance, from 1. */
export const vmId = (n: number): string => `d1e7a9f0-6f0e-4f5e-9a55-0b6f0b1f7a${n.toString(16).padStart(2, "0")}`

/** The account's keys unless others are asked for. They open nothing but a sandbox. */
export const API_KEY = "sandbox-api-key"
export const SECRET_KEY = "sandbox-secret-key"
/** A person's keys: what is done with them is not watched for what no controller should do. */
export const OPERATOR_API_KEY = "sandbox-operator-api-key"
export const OPERATOR_SECRET_KEY = "sandbox-operator-secret-key"

const ROOT_GIB = 20
const VMS_MAX = 255
const JOB_GC_MS = 60_000

export interface Options {
  readonly seed?: number
  /** ms since the epoch at which the world begins. */
  readonly now: number
  /** VMs beside the appliance, at least 0, at most 255. */
  readonly vms?: number
  readonly job_ms?: number
  readonly quick_job_ms?: number
  readonly device_delay_ms?: number
  readonly detach_wait_ms?: number
  /** The appliance's bus; other VMs follow `vm_bus`. */
  readonly bus?: State.Bus
  readonly vm_bus?: State.Bus
  readonly api_key?: string
  readonly secret_key?: string
  readonly root_admin?: boolean
  readonly projects?: ReadonlyArray<string>
  readonly enforce_post?: boolean
  readonly faults?: ReadonlyArray<Fault.Fault>
}

/** A volume put into the world by hand, as if it had always been there. */
export interface Seeded {
  readonly id?: string
  readonly name: string
  readonly size_gib?: number
  readonly vm_id?: string
  readonly account?: string
  readonly project_id?: string
  readonly state?: string
  readonly tags?: State.Volume["tags"]
}

/** The ground truth page. */
export interface Truth {
  readonly volumes: ReadonlyArray<{
    readonly id: string
    readonly name: string
    readonly state: string
    readonly type: string
    readonly vm_id: string | null
    /** Bytes. */
    readonly size: number
    readonly created: string
    readonly tags: State.Volume["tags"]
    /** VMs whose hypervisor has the disk, whatever the row says. */
    readonly held_by: ReadonlyArray<string>
  }>
  readonly jobs: ReadonlyArray<{
    readonly id: string
    readonly command: string
    readonly volume_id: string | null
    /** The VM in whose queue it stands or stood. */
    readonly vm_id: string | null
    readonly status: "pending" | "succeeded" | "failed"
    readonly by: "api" | "operator"
    readonly created: string
    readonly completed: string | null
  }>
  readonly vms: ReadonlyArray<{ readonly id: string; readonly name: string; readonly state: string }>
  readonly calls: Readonly<Record<string, number>>
  readonly violations: ReadonlyArray<State.Violation>
  /** Harm that no controller could have foreseen from what it was shown. */
  readonly incidents: ReadonlyArray<State.Violation>
}

/**
 * The simulated cloud and guest: deterministic, synchronous, without a clock of its own. Every entry takes the time and
 * first lets everything happen that is due by then, in order. Time never runs backwards; an earlier `now` counts as the
 * latest one seen.
 */
export interface World {
  readonly state: State.State
  readonly advance: (now: number) => void
  /** An authenticated call, parameter names in lower case. Watched by the monitor; faults of the wire are not its part. */
  readonly call: (
    command: string,
    params: Readonly<Record<string, string>>,
    now: number,
    by?: State.Job["by"]
  ) => Command.Answer
  /** The call will reach CloudStack at `at`. Watched now, judged then. */
  readonly callLate: (call: State.Late, at: number, now: number) => void
  readonly act: (what: Operator.Act, now: number) => Operator.Outcome
  /** Replaces all faults. */
  readonly setFaults: (faults: ReadonlyArray<Fault.Fault>, now: number) => void
  readonly faults: () => ReadonlyArray<Fault.Switch>
  readonly seedVolume: (volume: Seeded, now: number) => State.Volume
  readonly volume: (id: string, now: number) => State.Volume | null
  /** What a VM's guest kernel shows, ROOT included. */
  readonly guest: (vmId: string, now: number) => ReadonlyArray<State.GuestDisk>
  readonly truth: (now: number) => Truth
  /** Everything there is, as JSON that `load` takes. */
  readonly save: (now: number) => State.Json
  /** When the next thing happens by itself; null when nothing is due. */
  readonly nextDue: () => number | null
  /** Called after every visible change; answers how to stop that. */
  readonly subscribe: (listener: () => void) => () => void
  /** Wire the NBD side in, so that detaching a volume that is served, or that somebody has open, is noticed. */
  readonly watchExports: (served: (volumeId: string) => boolean, opened?: (volumeId: string) => boolean) => void
}

export const make = (options: Options): World => {
  const seed = options.seed ?? 1
  const state = State.empty(
    {
      api_key: options.api_key ?? API_KEY,
      secret_key: options.secret_key ?? SECRET_KEY,
      account: "volumed",
      root_admin: options.root_admin ?? false,
      projects: options.projects ?? [],
      zone_id: ZONE_ID,
      offerings: [
        { id: OFFERING_ID, name: "Custom OSSEA", customized: true, size_gib: 0 },
        { id: FIXED_OFFERING_ID, name: "Fixed 20 GB", customized: false, size_gib: 20 }
      ],
      appliance_vm_id: APPLIANCE_VM_ID,
      disks_per_vm: 32,
      page_size_max: 500,
      job_ms: options.job_ms ?? 1_500,
      quick_job_ms: options.quick_job_ms ?? Math.min(options.job_ms ?? 1_500, 100),
      device_delay_ms: options.device_delay_ms ?? 200,
      detach_wait_ms: options.detach_wait_ms ?? 10_000,
      job_expire_ms: 1_440 * 60_000,
      enforce_post: options.enforce_post ?? false
    },
    seed,
    options.now
  )
  addVm(state, APPLIANCE_VM_ID, "appliance", options.bus ?? "virtio")
  for (let n = 1; n <= Math.min(options.vms ?? 2, VMS_MAX); n++) {
    addVm(state, vmId(n), `test-vm-${n}`, options.vm_bus ?? "virtio")
  }
  state.faults = Fault.switches(options.faults ?? [])
  return over(state)
}

export const load = (saved: State.Json): World => over(State.fromJson(saved))

/** Of a saved world, as far as a file on disk has to be trusted: that it is one. */
export const isSaved = Schema.is(Schema.Struct({ version: Schema.Literal(1), now: Schema.Number }))

const addVm = (state: State.State, id: string, name: string, bus: State.Bus): void => {
  const numeric = State.nextNumeric(state)
  const vm: State.Vm = {
    id,
    numeric,
    name,
    state: "Running",
    zone_id: ZONE_ID,
    bus,
    account: state.config.account,
    created_at: state.now
  }
  State.putVm(state, vm)
  const root = Command.newVolume(state, { id: null, name: `ROOT-${numeric}`, size_gib: ROOT_GIB, offering_id: null })
  Job.land(state, root, vm, 0, false)
  Hypervisor.boot(state, vm, [root.id])
  // It booted long ago: its ROOT is there from the start.
  for (const { what } of state.due.splice(0)) if (what.kind === "device_appears") Hypervisor.appear(state, what)
}

const over = (state: State.State): World => {
  const to = (now: number) => advance(state, now)
  return {
    state,
    advance: to,
    call: (command, params, now, by = "api") => {
      to(now)
      if (by === "api") watch(state, command, params)
      state.caller = by
      const answer = Command.run(state, command, params)
      state.caller = "api"
      return answer
    },
    callLate: (call, at, now) => {
      to(now)
      watch(state, call.command, call.params)
      State.schedule(state, at, { kind: "arrives", call })
    },
    act: (what, now) => {
      to(now)
      return Operator.performRecorded(state, what)
    },
    setFaults: (faults, now) => {
      to(now)
      state.faults = Fault.switches(faults)
    },
    faults: () => state.faults,
    seedVolume: (volume, now) => {
      to(now)
      return seedVolume(state, volume)
    },
    volume: (id, now) => {
      to(now)
      return state.volumes.get(id) ?? null
    },
    guest: (vm, now) => {
      to(now)
      return state.guests.get(vm) ?? []
    },
    truth: (now) => {
      to(now)
      return truth(state)
    },
    save: (now) => {
      to(now)
      return State.toJson(state)
    },
    nextDue: () => state.due[0]?.at ?? null,
    subscribe: (listener) => {
      state.listeners.add(listener)
      return () => state.listeners.delete(listener)
    },
    watchExports: (served, opened = () => false) => {
      state.served = served
      state.opened = opened
    }
  }
}

const advance = (state: State.State, now: number): void => {
  const before = state.now
  while (state.due[0] !== undefined && state.due[0].at <= now) {
    const entry = state.due.shift()
    if (entry === undefined) break
    state.now = Math.max(state.now, entry.at)
    happen(state, entry.what)
  }
  state.now = Math.max(state.now, now)
  if (Math.floor(state.now / JOB_GC_MS) !== Math.floor(before / JOB_GC_MS)) Job.forgetOld(state)
}

const happen = (state: State.State, what: State.Happening): void => {
  switch (what.kind) {
    case "job_start":
    case "work_step":
    case "work_end": {
      const job = state.jobs.get(what.job_id)
      if (job === undefined) return
      if (what.kind === "job_start") return Job.start(state, job)
      return what.kind === "work_step" ? Job.step(state, job) : Job.end(state, job)
    }
    case "device_appears":
      return Hypervisor.appear(state, what)
    case "unplug_completes":
      if (Hypervisor.diskOf(state, what.vm_id, what.volume_id)?.epoch === what.epoch) {
        Hypervisor.unplug(state, what.vm_id, what.volume_id)
      }
      return
    case "straggler":
      return Job.straggle(state, what.volume_id, what.from_vm_id)
    case "arrives":
      // The signature is judged when the request arrives: an expired one has no effect.
      if (what.call.expires_at !== null && what.call.expires_at <= state.now) return
      Command.run(state, what.call.command, what.call.params)
  }
}

const watch = (state: State.State, command: string, params: Readonly<Record<string, string>>): void => {
  if (Command.commands[command]?.mutates !== true) return
  const { volume_id } = Command.aboutOf(state, params)
  const resources = params["resourceids"]?.split(",").map((id) => id.trim()) ?? [volume_id]
  for (const id of resources) Monitor.watch(state, command, id, params["virtualmachineid"] ?? null)
}

const seedVolume = (state: State.State, from: Seeded): State.Volume => {
  const row = Command.newVolume(state, {
    id: from.id ?? null,
    name: from.name,
    size_gib: from.size_gib ?? 1,
    offering_id: OFFERING_ID
  })
  State.patchVolume(state, row.id, {
    account: from.account ?? row.account,
    project_id: from.project_id ?? null,
    tags: from.tags ?? [],
    state: from.state ?? row.state,
    placed: from.state === "Ready"
  })
  if (from.vm_id !== undefined) {
    const outcome = Operator.perform(state, { act: "attach", volume_id: row.id, vm_id: from.vm_id })
    if (!outcome.done) throw new Error(`simulation: ${outcome.error}`)
  }
  return State.patchVolume(state, row.id, {})
}

const truth = (state: State.State): Truth => ({
  volumes: state.order.flatMap((id) => {
    const row = state.volumes.get(id)
    return row === undefined ? [] : [truthOf(state, row)]
  }),
  jobs: [...state.jobs.values()].map(jobOf),
  vms: [...state.vms.values()].map((vm) => ({ id: vm.id, name: vm.name, state: vm.state })),
  calls: Object.fromEntries([...state.calls].sort(([a], [b]) => (a < b ? -1 : 1))),
  violations: [...state.violations],
  incidents: [...state.incidents]
})

const jobOf = (job: State.Job): Truth["jobs"][number] => ({
  id: job.id,
  command: job.command,
  volume_id: job.touches[0] ?? null,
  vm_id: job.queue,
  status: (["pending", "succeeded", "failed"] as const)[job.status],
  by: job.by,
  created: new Date(job.created_at).toISOString(),
  completed: job.completed_at === null ? null : new Date(job.completed_at).toISOString()
})

const truthOf = (state: State.State, row: State.Volume): Truth["volumes"][number] => ({
  id: row.id,
  name: row.name,
  state: row.state,
  type: row.type,
  vm_id: row.vm_id,
  size: row.size,
  created: new Date(row.created_at).toISOString(),
  tags: row.tags,
  held_by: Hypervisor.holdersOf(state, row.id)
})
