import type { Action, Withheld } from "../../schema/Action.ts"
import type { Binding, Declaration, Deletion, Spec } from "../../schema/Declaration.ts"
import { GIB, unbound } from "../../schema/Declaration.ts"
import { exportNameOf, serialOf } from "../../schema/Ids.ts"
import type { JobId, Name, OfferingId, OperationId, Uid, VmId, VolumeId, ZoneId } from "../../schema/Ids.ts"
import { known, sectionOf, unread } from "../../schema/Inventory.ts"
import type {
  BlockDevice,
  CloudReading,
  CloudVolume,
  Inventory,
  NbdReading,
  NbdSection,
  Source,
  Verification,
  VirtualMachine
} from "../../schema/Inventory.ts"
import type { Operation } from "../../schema/Operation.ts"
import { limits } from "../../schema/Settings.ts"
import type { Limits } from "../../schema/Settings.ts"
import type * as Plan from "../../reconciler/Plan.ts"

/** Small worlds for tests of the pure core, written by what differs from a healthy one. */
export const now = Date.parse("2026-03-01T12:00:00Z")

const hex = (n: number, length: number) => n.toString(16).padStart(length, "0")
export const uidOf = (n: number) => `00000000-0000-4000-a000-${hex(n, 12)}` as Uid
export const volumeId = (n: number) => `${hex(0xae7d0000 + n, 8)}-1111-4000-8000-000000000000` as VolumeId
export const vmId = (n: number) => `d1e7a9f0-6f0e-4f5e-9a55-0b6f0b1f7a${hex(n, 2)}` as VmId
export const jobId = (n: number) => `0b000000-0000-4000-8000-${hex(n, 12)}` as JobId
export const operationId = (n: number) => `op-00000000-0000-4000-8000-${hex(n, 12)}` as OperationId
export const appliance = "8a4400e5-c92a-4bc4-8bff-4b6b0b6a018c" as VmId
export const zone = "057e86db-c726-4d8c-ab1f-75c5f55d1881" as ZoneId
export const otherZone = "057e86db-c726-4d8c-ab1f-75c5f55d1882" as ZoneId
export const offering = "c813c642-d946-49e1-9289-c616dd70206a" as OfferingId
export const byIdPath = (id: VolumeId) => `/dev/disk/by-id/virtio-${serialOf(id)}`

export const spec = (name: string, changes: Partial<Spec> = {}): Spec => ({
  cloudstack_name: name,
  volume_id: null,
  size: 10 * GIB,
  disk_offering_id: offering,
  zone_id: zone,
  attached_to: "appliance",
  attach_as: "data",
  export_wanted: true,
  read_only: false,
  deletion_policy: "forget",
  on_conflict: "hold",
  on_drift: "repair",
  on_loss: "hold",
  paused: null,
  metadata: {},
  ...changes
})

export interface DeclarationChanges {
  readonly uid?: Uid
  readonly generation?: number
  readonly created_at?: string
  readonly spec?: Partial<Spec>
  readonly binding?: Partial<Binding>
  readonly deletion?: Deletion | null
}

export const declaration = (name: string, changes: DeclarationChanges = {}): Declaration => ({
  name: name as Name,
  uid: changes.uid ?? uidOf([...name].reduce((sum, letter) => (sum * 31 + letter.charCodeAt(0)) % 2 ** 40, 7)),
  generation: changes.generation ?? 1,
  created_at: changes.created_at ?? "2026-03-01T10:00:00Z",
  updated_at: "2026-03-01T10:00:00Z",
  set: null,
  managers: {},
  spec: spec(name, changes.spec),
  deletion: changes.deletion ?? null,
  removed_at: null,
  binding: { ...unbound, ...changes.binding }
})

/** What is known of a volume that was once wholly in place on the appliance. */
export const settledBinding = (id: VolumeId, changes: Partial<Binding> = {}): Binding => ({
  ...unbound,
  volume_id: id,
  origin: "adopted",
  attachment: { vm_id: appliance, as: "data", settled: true },
  export: { name: exportNameOf(id), path: byIdPath(id), settled_at: now - 3_600_000 },
  settled_generation: 1,
  ...changes
})

export const deletion = (policy: Deletion["policy"], changes: Partial<Deletion> = {}): Deletion => ({
  policy,
  requested_at: "2026-03-01T11:00:00Z",
  by: "operator",
  execute_after: "2026-03-01T11:10:00Z",
  ...changes
})

export const cloudVolume = (id: VolumeId, changes: Partial<CloudVolume> = {}): CloudVolume => ({
  id,
  name: `disk-${id.slice(0, 8)}`,
  type: "DATADISK",
  state: "Ready",
  size: 10 * GIB,
  vm_id: null,
  vm_name: null,
  vm_state: changes.vm_id == null ? null : "Running",
  device_id: changes.vm_id == null ? null : 1,
  zone_id: zone,
  disk_offering_id: offering,
  created_at: null,
  tags: [],
  job_id: null,
  delete_protection: false,
  ...changes
})

export const vm = (id: VmId, changes: Partial<VirtualMachine> = {}): VirtualMachine => ({
  id,
  name: id === appliance ? "appliance" : `vm-${id.slice(-2)}`,
  state: "Running",
  zone_id: zone,
  ...changes
})

export const device = (id: VolumeId, letter: string, changes: Partial<BlockDevice> = {}): BlockDevice => ({
  kernel_name: `vd${letter}`,
  kernel_path: `/dev/vd${letter}`,
  serial: serialOf(id),
  size: 10 * GIB,
  read_only: false,
  identity: `252:${letter.charCodeAt(0)}`,
  forbidden: null,
  by_id_paths: [byIdPath(id)],
  controller: null,
  ...changes
})

export const section = (id: VolumeId, changes: Partial<NbdSection> = {}): NbdSection => ({
  ...sectionOf(exportNameOf(id), byIdPath(id), false),
  ...changes
})

export const verification = (id: VolumeId, letter: string, changes: Partial<Verification> = {}): Verification => ({
  name: exportNameOf(id),
  outcome: "served",
  size: 10 * GIB,
  read_only: false,
  device: `252:${letter.charCodeAt(0)}`,
  verified_at: now - 1000,
  message: null,
  ...changes
})

const reading: CloudReading = {
  scope: "all",
  volumes: [],
  ambiguous: [],
  absent: [],
  unresolved: [],
  vms: [vm(appliance), vm(vmId(1)), vm(vmId(2))],
  vms_absent: [],
  custom_ids: false
}

const serving: NbdReading = {
  engine: "nbd-server",
  version: "3.26.1",
  server: { state: "running", pid: 100, problem: null },
  host: "127.0.0.1",
  port: 10809,
  read_only_port: 10_809,
  sections: [],
  config_problem: null,
  narrowings: [],
  loaded: true,
  verifications: [],
  holders: []
}

export const cloud = (changes: Partial<CloudReading> = {}, complete = true, note: string | null = null) =>
  known<CloudReading>(now - 500, { ...reading, ...changes }, complete, note)

export const guest = (devices: ReadonlyArray<BlockDevice> = [], complete = true) =>
  known(now - 500, { devices, broken_links: [] }, complete)

export const nbd = (changes: Partial<NbdReading> = {}, complete = true) =>
  known<NbdReading>(now - 500, { ...serving, ...changes }, complete)

export const unseen = (message: string): Source<never> => unread(now - 500, "timeout", message)

export const inventory = (changes: Partial<Inventory> = {}): Inventory => ({
  appliance_vm_id: appliance,
  cloud: cloud(),
  guest: guest(),
  nbd: nbd(),
  ...changes
})

/** A world in which these volumes are attached to the appliance, with devices, sections and verified exports. */
export const inPlace = (ids: ReadonlyArray<VolumeId>): Inventory => {
  const letter = (i: number) => String.fromCharCode("b".charCodeAt(0) + i)
  return inventory({
    cloud: cloud({ volumes: ids.map((id) => cloudVolume(id, { vm_id: appliance })) }),
    guest: guest(ids.map((id, i) => device(id, letter(i)))),
    nbd: nbd({
      sections: ids.map((id) => section(id)),
      verifications: ids.map((id, i) => verification(id, letter(i)))
    })
  })
}

export const operation = (uid: Uid, changes: Partial<Operation> = {}): Operation => ({
  id: operationId(1),
  type: "attach",
  status: "executing",
  volume_id: "",
  vm_id: null,
  request: {},
  response: null,
  error: null,
  created_at: "2026-03-01T11:59:30Z",
  updated_at: "2026-03-01T11:59:30Z",
  completed_at: null,
  name: "",
  uid,
  cause: "declaration",
  actor: "reconciler",
  generation: 1,
  phase: "accepted",
  job_id: null,
  attempts: 1,
  parent_id: null,
  destructive: false,
  submitted_at: now - 30_000,
  expires_at: now + 30_000,
  wish: null,
  deadline_at: null,
  ...changes
})

export const input = (
  declarations: ReadonlyArray<Declaration>,
  observed: Inventory,
  changes: Partial<Plan.Input> & { readonly limits?: Limits } = {}
): Plan.Input => ({
  now,
  declarations,
  only: null,
  inventory: observed,
  operations: [],
  limits,
  destructive_last_hour: 0,
  approved: new Set(),
  backoff: new Map(),
  consents: new Map(),
  astray: new Set(),
  hold: null,
  maintenance: null,
  withheld: [],
  // Not a hash: a digest that can be read shows in golden files what it covers.
  digest: (text) => `digest-of-${text.split("\n").length}`,
  ...changes
})

/** All actions there are: the compiler misses one that is added. */
export const everyAction: Readonly<Record<Action["_tag"], true>> = {
  Create: true,
  Adopt: true,
  Attach: true,
  Export: true,
  Unexport: true,
  MigratePath: true,
  Detach: true,
  Tag: true,
  Delete: true
}

/** What a golden fixture's `desired.json` says; everything left out is as in a healthy world. */
export interface Desired {
  readonly declarations: ReadonlyArray<{ readonly name: string } & DeclarationChanges>
  readonly operations?: ReadonlyArray<{ readonly uid: Uid } & Partial<Operation>>
  readonly limits?: Partial<Limits>
  readonly destructive_last_hour?: number
  readonly approved?: ReadonlyArray<string>
  readonly backoff?: Readonly<Record<Uid, { readonly retry_at: number; readonly message: string }>>
  readonly consents?: Readonly<Record<Uid, number>>
  readonly astray?: ReadonlyArray<string>
  readonly hold?: string
  readonly maintenance?: string
  readonly withheld?: ReadonlyArray<Withheld>
}

type Reading<A> = { readonly unread: string } | ({ readonly incomplete?: string } & Partial<A>)

/** What `observed.json` says. A device is written as the volume it shows and a letter. */
export interface Observed {
  readonly cloud?: Reading<
    Omit<CloudReading, "volumes"> & { readonly volumes: ReadonlyArray<{ id: VolumeId } & Partial<CloudVolume>> }
  >
  readonly guest?: Reading<{
    readonly devices: ReadonlyArray<{ volume: VolumeId; letter: string } & Partial<BlockDevice>>
  }>
  readonly nbd?: Reading<
    Omit<NbdReading, "sections" | "verifications"> & {
      readonly sections: ReadonlyArray<{ volume: VolumeId } & Partial<NbdSection>>
      readonly verifications: ReadonlyArray<{ volume: VolumeId; letter: string } & Partial<Verification>>
    }
  >
}

const observedCloud = (written: Observed["cloud"]): Inventory["cloud"] => {
  if (written === undefined) return cloud()
  if ("unread" in written) return unseen(written.unread)
  const { incomplete, volumes, ...rest } = written
  const rows = (volumes ?? []).map(({ id, ...changes }) => cloudVolume(id, changes))
  return cloud({ ...rest, volumes: rows }, incomplete === undefined, incomplete ?? null)
}

const observedGuest = (written: Observed["guest"]): Inventory["guest"] => {
  if (written === undefined) return guest()
  if ("unread" in written) return unseen(written.unread)
  const devices = (written.devices ?? []).map(({ letter, volume, ...changes }) => device(volume, letter, changes))
  return guest(devices, written.incomplete === undefined)
}

const observedNbd = (written: Observed["nbd"]): Inventory["nbd"] => {
  if (written === undefined) return nbd()
  if ("unread" in written) return unseen(written.unread)
  const { incomplete, sections, verifications, ...rest } = written
  return nbd(
    {
      ...rest,
      sections: (sections ?? []).map(({ volume, ...changes }) => section(volume, changes)),
      verifications: (verifications ?? []).map(({ letter, volume, ...changes }) =>
        verification(volume, letter, changes)
      )
    },
    incomplete === undefined
  )
}

/** The planner's input that a fixture describes. */
export const fromFixture = (desired: Desired, observed: Observed): Plan.Input =>
  input(
    desired.declarations.map(({ name, ...changes }) => declaration(name, changes)),
    inventory({
      cloud: observedCloud(observed.cloud),
      guest: observedGuest(observed.guest),
      nbd: observedNbd(observed.nbd)
    }),
    {
      operations: (desired.operations ?? []).map(({ uid, ...changes }) => operation(uid, changes)),
      limits: { ...limits, ...desired.limits },
      destructive_last_hour: desired.destructive_last_hour ?? 0,
      approved: new Set(desired.approved),
      backoff: new Map(Object.entries(desired.backoff ?? {}) as Array<[Uid, { retry_at: number; message: string }]>),
      consents: new Map(Object.entries(desired.consents ?? {}) as Array<[Uid, number]>),
      astray: new Set(desired.astray),
      hold: desired.hold ?? null,
      maintenance: desired.maintenance ?? null,
      withheld: desired.withheld ?? []
    }
  )
