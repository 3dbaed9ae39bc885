import { serialOf, type VolumeId } from "../../schema/Ids.ts"
import * as Fault from "./Fault.ts"
import * as Random from "./Random.ts"

export const GIB = 1024 ** 3

/** Which bus a VM's disks hang on, and thereby what their by-id links are called. */
export type Bus = "virtio" | "scsi" | "ata"

/** Rows are never changed, only replaced: a row is its own cache key, and yesterday's rows can be listed again. */
export interface Volume {
  readonly id: string
  /** CloudStack's internal id, which its error texts show. */
  readonly numeric: number
  readonly name: string
  readonly type: "ROOT" | "DATADISK"
  readonly state: string
  readonly size: number
  readonly vm_id: string | null
  readonly device_id: number | null
  readonly attached_at: number | null
  readonly zone_id: string
  readonly offering_id: string | null
  readonly created_at: number
  readonly removed_at: number | null
  /** It has a place on primary storage. */
  readonly placed: boolean
  readonly tags: ReadonlyArray<{ readonly key: string; readonly value: string }>
  readonly delete_protection: boolean
  /** The pending job of instance type Volume that listings show. */
  readonly job_id: string | null
  readonly account: string
  readonly project_id: string | null
  /** The VM whose ROOT an attachVolume with device id 0 made this; the one ROOT a controller may detach (S5). */
  readonly root_of: string | null
}

export interface Vm {
  readonly id: string
  readonly numeric: number
  readonly name: string
  readonly state: string
  readonly zone_id: string
  readonly bus: Bus
  readonly account: string
  readonly created_at: number
}

export interface Offering {
  readonly id: string
  readonly name: string
  readonly customized: boolean
  /** GiB; 0 when customized. */
  readonly size_gib: number
}

export type Work =
  | { readonly kind: "create"; readonly volume_id: string }
  | { readonly kind: "attach"; readonly volume_id: string; readonly vm_id: string; readonly device_id: number | null }
  /** `alone`: the call named nothing beside the volume, which is the only form that works. */
  | { readonly kind: "detach"; readonly volume_id: string; readonly alone: boolean }
  | { readonly kind: "resize"; readonly volume_id: string; readonly size: number; readonly shrink_ok: boolean }
  | {
      readonly kind: "update"
      readonly volume_id: string
      readonly name: string | null
      readonly delete_protection: boolean | null
    }
  | { readonly kind: "destroy"; readonly volume_id: string; readonly expunge: boolean }
  | {
      readonly kind: "create_tags" | "delete_tags"
      readonly resources: ReadonlyArray<string>
      readonly tags: ReadonlyArray<{ readonly key: string; readonly value: string | null }>
    }

export interface Job {
  readonly id: string
  readonly command: string
  readonly work: Work
  /** The volume it works on, where it works on one. */
  readonly volume_id: string | null
  /** Volumes it keeps busy, tags included. */
  readonly touches: ReadonlyArray<string>
  readonly by: "api" | "operator"
  readonly created_at: number
  /** The queue it stands in, a VM's; null while it has none. */
  queue: string | null
  /** The event that its others point to; null where there is none. */
  readonly event: number | null
  /** The device id chosen when the attach began. */
  device_id: number | null
  status: 0 | 1 | 2
  code: number
  /** JSON of `jobresult`; null where there is none. */
  result: unknown
  completed_at: number | null
  /** What was switched on when it was made. */
  readonly faults: {
    readonly lost: Fault.Of<"job_lost"> | null
    readonly failed: Fault.Of<"job_failed"> | null
    readonly slow_ms: number
    readonly timeout: Fault.Of<"detach_timeout"> | null
    readonly straggler: Fault.Of<"straggler_detach"> | null
  }
}

/** A disk in a libvirt domain: neither CloudStack's row nor what the guest shows. */
export interface DomainDisk {
  readonly volume_id: string
  readonly bus: Bus
  /** Tells one attachment of a volume from the next. */
  readonly epoch: number
  unplugging: boolean
}

export interface GuestDisk {
  readonly volume_id: string
  readonly kernel_name: string
  readonly serial: string
  readonly bus: Bus
  readonly epoch: number
  readonly appeared_at: number
}

/** A call on its way that reaches CloudStack late. */
export interface Late {
  readonly command: string
  readonly params: Readonly<Record<string, string>>
  readonly volume_id: string | null
  /** When CloudStack stops accepting the signature; null: never. */
  readonly expires_at: number | null
}

export type Happening =
  | { readonly kind: "job_start" | "work_step" | "work_end"; readonly job_id: string }
  | {
      readonly kind: "device_appears" | "unplug_completes"
      readonly vm_id: string
      readonly volume_id: string
      readonly epoch: number
    }
  | { readonly kind: "straggler"; readonly volume_id: string; readonly from_vm_id: string }
  | { readonly kind: "arrives"; readonly call: Late }

export interface Due {
  readonly at: number
  readonly sequence: number
  readonly what: Happening
}

/** Something that no controller should ever have done, or (as an incident) harm that none could have foreseen. */
export interface Violation {
  readonly at: number
  readonly kind: string
  readonly command: string
  readonly volume_id: string | null
  readonly vm_id: string | null
  readonly message: string
}

/** One mutating call that CloudStack was asked for, for a journal to be compared with. */
export interface Mutation {
  readonly at: number
  readonly command: string
  readonly volume_id: string | null
  readonly vm_id: string | null
}

/** One line of what CloudStack recorded of the things done to volumes. */
export interface Event {
  readonly number: number
  /** The first event of the same action; null: this one. */
  readonly parent: number | null
  readonly at: number
  readonly type: string
  readonly state: "Created" | "Scheduled" | "Started" | "Completed"
  readonly failed: boolean
  readonly by: "api" | "operator"
  readonly volume_id: string
  readonly description: string
}

export interface Config {
  readonly api_key: string
  readonly secret_key: string
  readonly account: string
  /** A root admin may set `customid` and sees raw error texts. An operator may change it (`set_role`). */
  root_admin: boolean
  readonly projects: ReadonlyArray<string>
  readonly zone_id: string
  readonly offerings: ReadonlyArray<Offering>
  readonly appliance_vm_id: string
  readonly disks_per_vm: number
  readonly page_size_max: number
  /** What a VM's queue spends on one job. */
  readonly job_ms: number
  /** What a job without a queue takes; CloudStack's create and tag jobs do next to nothing. */
  readonly quick_job_ms: number
  /** From the plug at the hypervisor to the guest showing the disk. */
  readonly device_delay_ms: number
  /** `wait.detach.device`. */
  readonly detach_wait_ms: number
  /** `job.expire.minutes`. */
  readonly job_expire_ms: number
  /** `enforce.post.requests.and.timestamps`. */
  readonly enforce_post: boolean
}

/** How far back listings can be made stale, in row changes. */
const HISTORY_MAX = 20_000
/** The mutations that are remembered; older ones are forgotten first. */
const MUTATIONS_MAX = 100_000

export interface State {
  readonly config: Config
  readonly ids: Random.Random
  readonly chance: Random.Random
  now: number
  numeric: number
  sequence: number
  /** Grows with every change that somebody outside could see. */
  version: number
  readonly vms: Map<string, Vm>
  readonly volumes: Map<string, Volume>
  readonly on_vm: Map<string, Set<string>>
  readonly numerics: Map<number, string>
  /** Ids of all volumes that are not removed, oldest first. */
  order: Array<string>
  readonly jobs: Map<string, Job>
  /** Unfinished jobs by the volumes they keep busy. */
  readonly busy: Map<string, Set<string>>
  readonly queues: Map<string, Array<string>>
  readonly domains: Map<string, Array<DomainDisk>>
  readonly guests: Map<string, Array<GuestDisk>>
  readonly due: Array<Due>
  faults: Array<Fault.Switch>
  readonly calls: Map<string, number>
  readonly violations: Array<Violation>
  readonly incidents: Array<Violation>
  readonly mutations: Array<Mutation>
  readonly events: Array<Event>
  event_count: number
  readonly history: Array<{ readonly at: number; readonly id: string; readonly before: Volume | null }>
  readonly listeners: Set<() => void>
  /** Is an export of this volume being served right now? Wired by whoever has an NBD server to ask. */
  served: (volumeId: string) => boolean
  /** Has anybody its disk open on the appliance? Wired likewise. */
  opened: (volumeId: string) => boolean
  /** By whose keys the call that is carried out right now was signed. */
  caller: Job["by"]
}

export const empty = (config: Config, seed: number, now: number): State => ({
  config,
  ids: Random.make(seed),
  chance: Random.make(seed ^ 0x5bd1e995),
  now,
  numeric: 100,
  sequence: 0,
  version: 0,
  vms: new Map(),
  volumes: new Map(),
  on_vm: new Map(),
  numerics: new Map(),
  order: [],
  jobs: new Map(),
  busy: new Map(),
  queues: new Map(),
  domains: new Map(),
  guests: new Map(),
  due: [],
  faults: [],
  calls: new Map(),
  violations: [],
  incidents: [],
  mutations: [],
  events: [],
  event_count: 0,
  history: [],
  listeners: new Set(),
  served: () => false,
  opened: () => false,
  caller: "api"
})

/** Tell whoever watches. */
export const changed = (state: State): void => {
  state.version += 1
  for (const listener of state.listeners) listener()
}

export const nextNumeric = (state: State): number => {
  state.numeric += 1
  return state.numeric
}

/** Replace or add a row; every index follows. */
export const putVolume = (state: State, row: Volume): Volume => {
  const before = state.volumes.get(row.id) ?? null
  state.volumes.set(row.id, row)
  state.numerics.set(row.numeric, row.id)
  if (before === null) addToOrder(state, row)
  else if (before.removed_at === null && row.removed_at !== null) state.order.splice(state.order.indexOf(row.id), 1)
  if (before?.vm_id !== row.vm_id) {
    if (before?.vm_id) state.on_vm.get(before.vm_id)?.delete(row.id)
    if (row.vm_id !== null) membersOf(state.on_vm, row.vm_id).add(row.id)
  }
  state.history.push({ at: state.now, id: row.id, before })
  if (state.history.length > HISTORY_MAX) state.history.splice(0, HISTORY_MAX / 2)
  changed(state)
  return row
}

/** Ids stay sorted by creation; rows nearly always come in that order already. */
const addToOrder = (state: State, row: Volume): void => {
  const last = state.order.at(-1)
  state.order.push(row.id)
  const newest = last === undefined ? undefined : state.volumes.get(last)
  if (newest === undefined || newest.created_at <= row.created_at) return
  const created = (id: string) => state.volumes.get(id)?.created_at ?? 0
  state.order.sort((a, b) => created(a) - created(b))
}

/** Change some columns of a row that exists. */
export const patchVolume = (state: State, id: string, patch: Partial<Omit<Volume, "id" | "numeric">>): Volume => {
  const row = state.volumes.get(id)
  if (row === undefined) throw new Error(`simulation: no volume ${id}`)
  return putVolume(state, { ...row, ...patch })
}

export const putVm = (state: State, row: Vm): Vm => {
  state.vms.set(row.id, row)
  changed(state)
  return row
}

export const membersOf = <K, V>(map: Map<K, Set<V>>, key: K): Set<V> => {
  const found = map.get(key)
  if (found !== undefined) return found
  const made = new Set<V>()
  map.set(key, made)
  return made
}

export const listOf = <K, V>(map: Map<K, Array<V>>, key: K): Array<V> => {
  const found = map.get(key)
  if (found !== undefined) return found
  const made: Array<V> = []
  map.set(key, made)
  return made
}

export const volumesOn = (state: State, vmId: string): ReadonlyArray<Volume> =>
  [...(state.on_vm.get(vmId) ?? [])].flatMap((id) => {
    const row = state.volumes.get(id)
    return row === undefined || row.removed_at !== null ? [] : [row]
  })

/** The living rows as they were at a time, oldest first. */
export const volumesAt = (state: State, at: number): ReadonlyArray<Volume> => {
  const then = new Map<string, Volume | null>()
  for (let i = state.history.length - 1; i >= 0; i--) {
    const change = state.history[i]
    if (change === undefined || change.at <= at) break
    then.set(change.id, change.before)
  }
  const rows: Array<Volume> = []
  for (const [id, row] of state.volumes) {
    const old = then.has(id) ? then.get(id) : row
    if (old && old.removed_at === null) rows.push(old)
  }
  return rows.sort((a, b) => a.created_at - b.created_at)
}

/** Let something happen at a time; things of one time happen in the order they were asked for. */
export const schedule = (state: State, at: number, what: Happening): void => {
  state.sequence += 1
  const entry: Due = { at, sequence: state.sequence, what }
  let low = 0
  let high = state.due.length
  while (low < high) {
    const middle = (low + high) >> 1
    if ((state.due[middle]?.at ?? 0) <= at) low = middle + 1
    else high = middle
  }
  state.due.splice(low, 0, entry)
}

export const strike = <K extends Fault.Kind>(state: State, kinds: ReadonlyArray<K>, occasion: Fault.Occasion) =>
  Fault.strike(state.faults, state.chance, kinds, occasion)

export const remember = (state: State, mutation: Mutation): void => {
  state.mutations.push(mutation)
  if (state.mutations.length > MUTATIONS_MAX) state.mutations.splice(0, MUTATIONS_MAX / 2)
}

/** What libvirt is told as a disk's serial (`LibvirtComputingResource.diskUuidToSerial`). */
export const serialFor = (volumeId: string): string => serialOf(volumeId as VolumeId)

/** The size of the world on paper: everything but indexes, history and watchers. */
export const toJson = (state: State) => ({
  version: 1 as const,
  config: state.config,
  ids: state.ids.state,
  chance: state.chance.state,
  now: state.now,
  numeric: state.numeric,
  sequence: state.sequence,
  vms: [...state.vms.values()],
  volumes: [...state.volumes.values()],
  jobs: [...state.jobs.values()],
  queues: [...state.queues],
  domains: [...state.domains],
  guests: [...state.guests],
  due: state.due,
  faults: state.faults,
  calls: [...state.calls],
  violations: state.violations,
  incidents: state.incidents,
  mutations: state.mutations,
  events: state.events,
  event_count: state.event_count
})
type Saved = ReturnType<typeof toJson>
/** A world that an earlier version saved had no events. */
export type Json = Omit<Saved, "events" | "event_count"> & Partial<Pick<Saved, "events" | "event_count">>

export const fromJson = (json: Json): State => {
  const state = empty(json.config, 0, json.now)
  for (const vm of json.vms) putVm(state, vm)
  for (const row of [...json.volumes].sort((a, b) => a.created_at - b.created_at)) putVolume(state, row)
  state.order = state.order.filter((id) => state.volumes.get(id)?.removed_at === null)
  for (const job of json.jobs) {
    state.jobs.set(job.id, job)
    if (job.status === 0) for (const id of job.touches) membersOf(state.busy, id).add(job.id)
  }
  for (const [id, queue] of json.queues) state.queues.set(id, queue)
  for (const [id, disks] of json.domains) state.domains.set(id, disks)
  for (const [id, disks] of json.guests) state.guests.set(id, disks)
  for (const [command, count] of json.calls) state.calls.set(command, count)
  state.due.push(...json.due)
  state.faults = json.faults
  state.violations.push(...json.violations)
  state.incidents.push(...json.incidents)
  state.mutations.push(...json.mutations)
  state.events.push(...(json.events ?? []))
  state.history.length = 0
  return Object.assign(state, {
    ids: { state: json.ids },
    chance: { state: json.chance },
    numeric: json.numeric,
    sequence: json.sequence,
    event_count: json.event_count ?? 0
  })
}
