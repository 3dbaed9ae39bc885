import type { Action } from "../schema/Action.ts"
import { UID_TAG } from "../schema/Action.ts"
import type { Binding, Declaration } from "../schema/Declaration.ts"
import { unbound } from "../schema/Declaration.ts"
import { exportNameOf, serialOf, uuidPattern } from "../schema/Ids.ts"
import type { Uid, VmId, VolumeId } from "../schema/Ids.ts"
import { sectionOf } from "../schema/Inventory.ts"
import type {
  BlockDevice,
  CloudReading,
  CloudVolume,
  Holder,
  Inventory,
  NbdReading,
  NbdSection,
  Source,
  Verification,
  VirtualMachine
} from "../schema/Inventory.ts"

/** What CloudStack's reading says about one volume id. Only `absent` is a proof that it is gone. */
export type CloudSight = "seen" | "absent" | "unresolved" | "unlisted" | "ambiguous" | "unread" | "none"

/** What the guest's reading says about one serial. A scan with holes in it proves no absence: such a one is `unread`. */
export type GuestSight = "present" | "absent" | "ambiguous" | "unread"

/** One declaration's volume through all three sources. */
export interface View {
  readonly declaration: Declaration
  /** The bound volume, else the declared one. */
  readonly volume_id: VolumeId | null
  readonly cloud: CloudSight
  /** The row, exactly when `cloud` is `seen`. */
  readonly row: CloudVolume | null
  /** The declaration that is bound to the row: the first, where there are several. */
  readonly owner: Uid | null
  readonly guest: GuestSight
  /** The disk, exactly when `guest` is `present`. */
  readonly device: BlockDevice | null
  /** `partial`: what it shows is so, what it does not show may be all the same. */
  readonly nbd: "known" | "partial" | "unread"
  /** The section that is ours, if the file has it. */
  readonly own: NbdSection | null
  /** Sections other than our own that bear the volume's name or lead to its disk; looked up when asked for. */
  readonly others: () => Others
  /** The newest GO on `exportName`. */
  readonly verification: Verification | null
  /**
   * Who has a disk with the volume's serial open: all of them where there are two. Of a disk that has left the guest
   * nobody holds anything: the kernel answers errors to whoever has it open still, and gives its number to no other disk
   * meanwhile (measured), so that such a process keeps nothing from leaving or coming back.
   */
  readonly holders: ReadonlyArray<Holder>
}

export interface Others {
  /** Foreign ones that nobody else owns. */
  readonly claimable: ReadonlyArray<NbdSection>
  /** Those that belong to another volume, or must not become ours. */
  readonly taken: ReadonlyArray<NbdSection>
}

/** The three sources, indexed once for all declarations. */
export interface Merged {
  readonly inventory: Inventory
  readonly cloud: CloudReading | null
  readonly nbd: NbdReading | null
  /** The declaration that may act on a volume: the one bound to it, else the eldest that asks to adopt it. */
  readonly claimOf: (volume: VolumeId) => Uid | null
  readonly isLiving: (uid: string) => boolean
  /** Declarations bound to a volume of which the reading of CloudStack has no row. */
  readonly rowless: ReadonlyArray<Declaration>
  readonly vms: ReadonlyMap<VmId, VirtualMachine>
  readonly vms_absent: ReadonlySet<VmId>
  readonly view: (declaration: Declaration) => View
  /** The newest GO on this name was granted. */
  readonly isServed: (name: string) => boolean
  /** The guest's disk of this identity. */
  readonly diskOf: (identity: string) => BlockDevice | null
  /** Data disks that are listed on a VM. */
  readonly disksOn: (vm: VmId) => number
  /** The ROOT volume that is listed on a VM. */
  readonly rootOf: (vm: VmId) => VolumeId | null
  /** Listed volumes that bear exactly this name. */
  readonly named: (name: string) => ReadonlyArray<VolumeId>
  /** Listed volumes that carry this declaration's uid as a tag. */
  readonly tagged: (uid: Uid) => ReadonlyArray<CloudVolume>
}

/** Stands for the id of a volume that a planned create has yet to make. */
export const unborn = "00000000-0000-0000-0000-000000000000" as VolumeId

/** CloudStack's volume states (Volume.State, and the upload words that listVolumes shows) by what may be done in them. */
const states: ReadonlyMap<string, "actionable" | "busy" | "destroyed"> = new Map([
  ["Allocated", "actionable"],
  ["Ready", "actionable"],
  ["Uploaded", "actionable"],
  ["Creating", "busy"],
  ["Attaching", "busy"],
  ["Detaching", "busy"],
  ["Migrating", "busy"],
  ["Snapshotting", "busy"],
  ["RevertSnapshotting", "busy"],
  ["Resizing", "busy"],
  ["Restoring", "busy"],
  ["Copying", "busy"],
  ["UploadOp", "busy"],
  ["Uploading", "busy"],
  ["UploadNotStarted", "busy"],
  ["NotUploaded", "busy"],
  ["UploadInProgress", "busy"],
  ["Destroy", "destroyed"],
  ["Destroying", "destroyed"],
  ["Expunging", "destroyed"],
  ["Expunged", "destroyed"]
])

/** May a volume in this state be acted on? A word we do not know means hands off. */
export const stateOf = (state: string): "actionable" | "busy" | "destroyed" | "unknown" =>
  states.get(state) ?? "unknown"

/** The name under which the volume's export is, or would be, served. */
export const exportName = (view: View): string =>
  view.declaration.binding.export?.name ??
  view.others().claimable[0]?.name ??
  (view.volume_id === null ? "" : exportNameOf(view.volume_id))

const none: ReadonlyArray<never> = []

/** The first 20 hex digits of a volume id are its serial; with the dashes left in they are a slice, which costs nothing. */
const prefixOf = (id: string) => id.slice(0, 23)
const prefixOfSerial = (s: string) => `${s.slice(0, 8)}-${s.slice(8, 12)}-${s.slice(12, 16)}-${s.slice(16, 20)}`

const pushTo = <K, V>(map: Map<K, Array<V>>, key: K, value: V) => {
  const list = map.get(key)
  if (list === undefined) map.set(key, [value])
  else if (!list.includes(value)) list.push(value)
}

const lazily = <A>(make: () => A): (() => A) => {
  let made: { readonly value: A } | null = null
  return () => (made ??= { value: make() }).value
}

const valueOf = <A>(source: Source<A>): A | null => (source._tag === "Known" ? source.value : null)

/** The listing by id, and who is bound to each row. Positions, not objects: this is built for every volume in every pass. */
interface Rows {
  readonly at: ReadonlyMap<VolumeId, number>
  readonly volumes: ReadonlyArray<CloudVolume>
  readonly owners: ReadonlyArray<Uid | undefined>
  readonly rowless: ReadonlyArray<Declaration>
}

const indexRows = (volumes: ReadonlyArray<CloudVolume>, declarations: ReadonlyArray<Declaration>): Rows => {
  const at = new Map<VolumeId, number>()
  volumes.forEach((row, index) => at.set(row.id, index))
  const owners = Array.from<Uid | undefined>({ length: volumes.length })
  const rowless: Array<Declaration> = []
  for (const declaration of declarations) {
    const { volume_id } = declaration.binding
    if (volume_id === null) continue
    const index = at.get(volume_id)
    if (index === undefined) rowless.push(declaration)
    else owners[index] ??= declaration.uid
  }
  return { at, volumes, owners, rowless }
}

const indexClaims = (declarations: ReadonlyArray<Declaration>) => {
  const claims = new Map<VolumeId, Uid>()
  for (const { binding, uid } of declarations) {
    if (binding.volume_id !== null && !claims.has(binding.volume_id)) claims.set(binding.volume_id, uid)
  }
  const asking = declarations.filter((d) => d.binding.volume_id === null && d.spec.volume_id !== null)
  asking.sort((a, b) =>
    a.created_at === b.created_at ? (a.uid < b.uid ? -1 : 1) : a.created_at < b.created_at ? -1 : 1
  )
  for (const { spec, uid } of asking) {
    if (spec.volume_id !== null && !claims.has(spec.volume_id)) claims.set(spec.volume_id, uid)
  }
  return claims
}

interface GuestIndex {
  readonly complete: boolean
  readonly bySerial: ReadonlyMap<string, ReadonlyArray<BlockDevice>>
  /** Serials that more than one listed volume has: whose disk it is cannot be told (D5). */
  readonly shared: ReadonlySet<string>
}

const indexGuest = ({ guest }: Inventory, cloud: CloudReading | null): GuestIndex => {
  const bySerial = new Map<string, Array<BlockDevice>>()
  const shared = new Set<string>()
  for (const device of valueOf(guest)?.devices ?? none) {
    if (device.serial !== null && device.serial.length === 20) pushTo(bySerial, prefixOfSerial(device.serial), device)
  }
  const seen = new Set<string>()
  for (const { id } of bySerial.size === 0 ? none : (cloud?.volumes ?? none)) {
    const prefix = prefixOf(id)
    if (!bySerial.has(prefix)) continue
    if (seen.has(prefix)) shared.add(prefix)
    seen.add(prefix)
  }
  return { complete: guest._tag === "Known" && guest.complete, bySerial, shared }
}

/** One name in the NBD server: its section in the file and the newest GO on it. */
interface Exported {
  section: NbdSection | null
  verification: Verification | null
}

const indexExports = (nbd: NbdReading | null): ReadonlyMap<string, Exported> => {
  const exports = new Map<string, Exported>()
  for (const section of nbd?.sections ?? none) {
    if (!exports.has(section.name)) exports.set(section.name, { section, verification: null })
  }
  for (const verification of nbd?.verifications ?? none) {
    const known = exports.get(verification.name)
    if (known === undefined) exports.set(verification.name, { section: null, verification })
    else known.verification = verification
  }
  return exports
}

interface SectionIndex {
  /** By the volume whose id a section's name carries. */
  readonly byVolume: ReadonlyMap<string, ReadonlyArray<NbdSection>>
  /** By the serial of the disk behind a section's path. */
  readonly bySerial: ReadonlyMap<string, ReadonlyArray<NbdSection>>
  /** Section names that are a living declaration's; null where several claim one. */
  readonly owners: ReadonlyMap<string, Uid | null>
}

const ownPrefix = "migration-vol-"
const trailingSerial = /[-_]([0-9a-f]{20})$/

/** The volume whose id an export name follows, or null for a name given by somebody else. */
export const volumeOfName = (name: string): string | null => {
  const id = name.slice(ownPrefix.length)
  return name.startsWith(ownPrefix) && uuidPattern.test(id) ? id : null
}

const indexSections = (
  inventory: Inventory,
  nbd: NbdReading | null,
  declarations: ReadonlyArray<Declaration>
): SectionIndex => {
  const byPath = new Map<string, BlockDevice>()
  const byIdentity = new Map<string, BlockDevice>()
  for (const device of valueOf(inventory.guest)?.devices ?? none) {
    byIdentity.set(device.identity, device)
    byPath.set(device.kernel_path, device)
    for (const path of device.by_id_paths) byPath.set(path, device)
  }
  const byVolume = new Map<string, Array<NbdSection>>()
  const bySerial = new Map<string, Array<NbdSection>>()
  for (const section of nbd?.sections ?? none) {
    const named = volumeOfName(section.name)
    if (named !== null) pushTo(byVolume, named, section)
    if (section.path === null) continue
    // What a path leads to now counts; only a dangling one is judged by what is written in it.
    const seen = section.device === null ? undefined : byIdentity.get(section.device)
    const device = seen ?? byPath.get(section.path)
    const serial = device === undefined ? (trailingSerial.exec(section.path)?.[1] ?? null) : device.serial
    if (serial !== null) pushTo(bySerial, prefixOfSerial(serial), section)
  }
  const owners = new Map<string, Uid | null>()
  for (const { binding, uid } of declarations) {
    const name = binding.export?.name
    if (name !== undefined) owners.set(name, owners.has(name) ? null : uid)
  }
  return { byVolume, bySerial, owners }
}

const noOthers: Others = { claimable: none, taken: none }
const noneBeside = () => noOthers

const othersOf = (index: SectionIndex, declaration: Declaration, id: VolumeId): Others => {
  const named = index.byVolume.get(id)
  const leading = index.bySerial.get(prefixOf(id))
  const ownSection = declaration.binding.export?.name
  const disputed = ownSection !== undefined && index.owners.get(ownSection) === null
  if (named === undefined && leading === undefined && !disputed) return noOthers
  const claimable: Array<NbdSection> = []
  const taken: Array<NbdSection> = disputed ? [sectionOf(ownSection, null, false)] : []
  for (const section of new Set([...(named ?? none), ...(leading ?? none)])) {
    if (section.name === ownSection) continue
    const owner = index.owners.get(section.name)
    const nameOf = volumeOfName(section.name)
    const foreign = (owner !== undefined && owner !== declaration.uid) || (nameOf !== null && nameOf !== id)
    ;(foreign || section.obstacle !== null ? taken : claimable).push(section)
  }
  return { claimable, taken }
}

const indexHolders = (nbd: NbdReading | null) => {
  const holders = new Map<string, Array<Holder>>()
  for (const holder of nbd?.holders ?? none) pushTo(holders, holder.device, holder)
  return holders
}

const indexVms = (cloud: CloudReading | null) => {
  const disks = new Map<VmId, number>()
  const roots = new Map<VmId, VolumeId>()
  for (const { id, type, vm_id } of cloud?.volumes ?? none) {
    if (vm_id === null) continue
    if (type === "ROOT") roots.set(vm_id, id)
    else disks.set(vm_id, (disks.get(vm_id) ?? 0) + 1)
  }
  return { disks, roots }
}

const indexNames = (cloud: CloudReading | null) => {
  const names = new Map<string, Array<VolumeId>>()
  for (const { id, name } of cloud?.volumes ?? none) pushTo(names, name, id)
  return names
}

const indexTags = (cloud: CloudReading | null) => {
  const tags = new Map<string, Array<CloudVolume>>()
  for (const volume of cloud?.volumes ?? none) {
    for (const tag of volume.tags) if (tag.key.toLowerCase() === UID_TAG) pushTo(tags, tag.value, volume)
  }
  return tags
}

/** Index the sources once; a view of one volume is then a few look-ups. What few volumes need is indexed when it is asked for. */
export const make = (inventory: Inventory, declarations: ReadonlyArray<Declaration>): Merged => {
  const cloud = valueOf(inventory.cloud)
  const nbd = valueOf(inventory.nbd)
  const rows = indexRows(cloud?.volumes ?? none, declarations)
  const exports = indexExports(nbd)
  const claims = lazily(() => indexClaims(declarations))
  const uids = lazily(() => new Set<string>(declarations.map((d) => d.uid)))
  const disks = lazily(() => new Map((valueOf(inventory.guest)?.devices ?? none).map((one) => [one.identity, one])))
  const vms = lazily(() => indexVms(cloud))
  const names = lazily(() => indexNames(cloud))
  const tags = lazily(() => indexTags(cloud))
  return {
    inventory,
    cloud,
    nbd,
    rowless: rows.rowless,
    claimOf: (volume) => claims().get(volume) ?? null,
    isLiving: (uid) => uids().has(uid),
    vms: new Map((cloud?.vms ?? none).map((vm) => [vm.id, vm])),
    vms_absent: new Set(cloud?.vms_absent),
    view: viewer(inventory, cloud, nbd, rows, exports, declarations),
    isServed: (name) => exports.get(name)?.verification?.outcome === "served",
    diskOf: (identity) => disks().get(identity) ?? null,
    disksOn: (vm) => vms().disks.get(vm) ?? 0,
    rootOf: (vm) => vms().roots.get(vm) ?? null,
    named: (name) => names().get(name) ?? none,
    tagged: (uid) => tags().get(uid) ?? none
  }
}

const viewer = (
  inventory: Inventory,
  cloud: CloudReading | null,
  nbd: NbdReading | null,
  rows: Rows,
  exports: ReadonlyMap<string, Exported>,
  declarations: ReadonlyArray<Declaration>
): Merged["view"] => {
  const appliance = inventory.appliance_vm_id
  const cloudSight = sightings(cloud)
  const guest = indexGuest(inventory, cloud)
  const holders = indexHolders(nbd)
  const sections = lazily(() => indexSections(inventory, nbd, declarations))
  const nbdSight = inventory.nbd._tag === "Unread" ? "unread" : inventory.nbd.complete ? "known" : "partial"

  const guestSight = (prefix: string, devices: ReadonlyArray<BlockDevice> | undefined): GuestSight => {
    if (devices === undefined) return guest.complete ? "absent" : "unread"
    return devices.length > 1 || guest.shared.has(prefix) ? "ambiguous" : "present"
  }

  const holding = (devices: ReadonlyArray<BlockDevice>): ReadonlyArray<Holder> =>
    devices.flatMap<Holder>(({ identity }) => holders.get(identity) ?? [])

  return (declaration) => {
    const { binding } = declaration
    const id = binding.volume_id ?? declaration.spec.volume_id
    if (id === null) return { ...nothing, declaration, cloud: cloud === null ? "unread" : "none", nbd: nbdSight }
    const index = rows.at.get(id)
    const seen = cloudSight(id, index !== undefined)
    const row = seen === "seen" && index !== undefined ? (rows.volumes[index] ?? null) : null
    const prefix = prefixOf(id)
    const devices = guest.bySerial.get(prefix)
    const inGuest = guestSight(prefix, devices)
    const device = inGuest === "present" ? (devices?.[0] ?? null) : null
    // A volume that is neither here nor was ever exported by us has no export to be asked about.
    const near = binding.export !== null || device !== null || row?.vm_id === appliance
    const others = near && nbd !== null ? () => othersOf(sections(), declaration, id) : noneBeside
    const name = near ? (binding.export?.name ?? others().claimable[0]?.name ?? exportNameOf(id)) : null
    const exported = name === null ? undefined : exports.get(name)
    return {
      declaration,
      volume_id: id,
      cloud: seen,
      row,
      owner: (index === undefined ? null : rows.owners[index]) ?? null,
      guest: inGuest,
      device,
      nbd: nbdSight,
      own: binding.export === null ? null : (exported?.section ?? null),
      others,
      verification: exported?.verification ?? null,
      holders: holders.size === 0 ? none : holding(devices ?? none)
    }
  }
}

const sightings = (cloud: CloudReading | null) => {
  const ambiguous = new Set(cloud?.ambiguous)
  const absent = new Set(cloud?.absent)
  const unresolved = new Set(cloud?.unresolved)
  return (id: VolumeId, listed: boolean): CloudSight => {
    if (cloud === null) return "unread"
    if (ambiguous.size > 0 && ambiguous.has(id)) return "ambiguous"
    // Listed and read by id as absent at once: two readings that contradict each other.
    if (absent.size > 0 && absent.has(id)) return listed ? "ambiguous" : "absent"
    if (listed) return "seen"
    return unresolved.has(id) ? "unresolved" : "unlisted"
  }
}

/** A declaration that has no volume yet. */
const nothing = {
  volume_id: null,
  row: null,
  owner: null,
  guest: "absent",
  device: null,
  own: null,
  others: noneBeside,
  verification: null,
  holders: none
} as const

/**
 * What is known of a declaration once an action is settled. `at` in ms since the epoch; `made` is the id of the volume
 * that a create made. A repair counts once: when it put the volume back to where it should be.
 */
export const bind = (declaration: Declaration, action: Action, at: number, made: VolumeId | null = null): Binding => {
  const { binding, spec } = declaration
  const repairs = action.cause === "drift" ? [...binding.repairs.slice(-7), at] : binding.repairs
  switch (action._tag) {
    case "Create":
      return { ...unbound, volume_id: made, origin: "created", late: binding.late }
    case "Adopt":
      return { ...unbound, volume_id: action.volume_id, origin: spec.volume_id === null ? "created" : "adopted" }
    case "Attach": {
      const attachment = { vm_id: action.vm_id, as: action.as, settled: true }
      return { ...binding, attachment, repairs }
    }
    case "Detach":
      return { ...binding, attachment: null, repairs: spec.attached_to === "none" ? repairs : binding.repairs }
    case "Export":
    case "MigratePath":
      return { ...binding, export: { name: action.export_name, path: action.path, settled_at: at } }
    case "Unexport":
      return binding.export?.name === action.export_name ? { ...binding, export: null } : binding
    case "Tag":
      return binding
    case "Delete":
      return {
        ...binding,
        volume_id: null,
        attachment: null,
        export: null,
        loss: null,
        device_awaited_since: null,
        former_id: binding.volume_id
      }
  }
}

const hatched = (action: Extract<Action, { _tag: "Create" }>): CloudVolume => ({
  id: unborn,
  name: action.cloudstack_name,
  type: "DATADISK",
  state: "Allocated",
  size: action.size_gib * 1024 ** 3,
  vm_id: null,
  vm_name: null,
  vm_state: null,
  device_id: null,
  zone_id: action.zone_id,
  disk_offering_id: action.disk_offering_id,
  created_at: null,
  tags: [],
  job_id: null,
  delete_protection: false
})

/** The disk that the guest will show once an attach has arrived, on the bus that KVM uses by default. */
const arriving = (row: CloudVolume): BlockDevice => ({
  kernel_name: "vd?",
  kernel_path: "/dev/vd?",
  serial: serialOf(row.id),
  size: row.size,
  read_only: false,
  identity: `arriving:${row.id}`,
  forbidden: null,
  by_id_paths: [`/dev/disk/by-id/virtio-${serialOf(row.id)}`],
  controller: null
})

const without = (view: View, name: string): View["others"] => {
  const { claimable, taken } = view.others()
  const others = { claimable: claimable.filter((section) => section.name !== name), taken }
  return () => others
}

const serving = (view: View, action: Extract<Action, { _tag: "Export" | "MigratePath" }>): Partial<View> => ({
  own: sectionOf(action.export_name, action.path, action.read_only),
  others: without(view, action.export_name),
  verification: {
    name: action.export_name,
    outcome: "served",
    size: action.size,
    read_only: action.read_only,
    device: action.device,
    verified_at: 0,
    message: null
  }
})

const retagged = (row: CloudVolume, action: Extract<Action, { _tag: "Tag" }>): CloudVolume => {
  const written = new Set([...action.replace, ...Object.keys(action.set)].map((key) => key.toLowerCase()))
  const kept = row.tags.filter((tag) => !written.has(tag.key.toLowerCase()))
  return { ...row, tags: [...kept, ...Object.entries(action.set).map(([key, value]) => ({ key, value }))] }
}

/** The view as if the action had worked: what a dry run shows the rest of a chain from. */
export const after = (view: View, action: Action): View => {
  const declaration = { ...view.declaration, binding: bind(view.declaration, action, 0, unborn) }
  const next: View = { ...view, declaration, volume_id: declaration.binding.volume_id ?? declaration.spec.volume_id }
  const { row } = view
  switch (action._tag) {
    case "Create":
      return {
        ...next,
        cloud: "seen",
        row: hatched(action),
        guest: "absent",
        device: null,
        own: null,
        others: noneBeside
      }
    case "Adopt":
      return next
    case "Attach": {
      if (row === null) return next
      const attached = { ...row, state: "Ready", vm_id: action.vm_id, type: action.as === "root" ? "ROOT" : "DATADISK" }
      return action.on_appliance
        ? { ...next, row: attached, guest: "present", device: arriving(attached) }
        : { ...next, row: attached }
    }
    case "Detach": {
      if (row === null) return next
      const detached = { ...row, vm_id: null, vm_name: null, vm_state: null, device_id: null, type: "DATADISK" }
      const gone = { guest: "absent", device: null, holders: none } as const
      return action.on_appliance ? { ...next, row: detached, ...gone } : { ...next, row: detached }
    }
    case "Export":
    case "MigratePath":
      return { ...next, ...serving(view, action) }
    case "Unexport":
      return {
        ...next,
        own: view.own?.name === action.export_name ? null : view.own,
        others: without(view, action.export_name),
        verification: null
      }
    case "Tag":
      return row === null ? next : { ...next, row: retagged(row, action) }
    case "Delete":
      return { ...next, cloud: "absent", row: null, own: null }
  }
}
