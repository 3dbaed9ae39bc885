/**
 * What an older daemon left, compared with what is: (tables, NBD sections, CloudStack, guest) → what may be declared, and
 * what may not, with the reason. No clock, no randomness, no I/O.
 *
 * A volume is proven when CloudStack lists it as a data disk of this account and nothing that was left says otherwise:
 * identity is the volume's id and the serial of its disk, never a letter. One doubt keeps a volume out.
 */
import { show } from "../schema/Document.ts"
import { serialOf, type VmId, type VolumeId } from "../schema/Ids.ts"
import type { BlockDevice, CloudVolume, NbdSection } from "../schema/Inventory.ts"
import * as Call from "./Call.ts"
import * as Merge from "./Merge.ts"
import * as OldTables from "./OldTables.ts"

export interface Left {
  readonly appliance_vm_id: VmId
  readonly volumes: ReadonlyArray<CloudVolume>
  /** Ids that the listing had twice with different content. */
  readonly ambiguous: ReadonlyArray<VolumeId>
  readonly devices: ReadonlyArray<BlockDevice>
  readonly sections: ReadonlyArray<NbdSection>
  readonly tables: ReadonlyArray<OldTables.Table>
  readonly unfinished: ReadonlyArray<OldTables.Unfinished>
  /** What is declared already: names that are taken, and volumes that are left as they are declared. */
  readonly declared: ReadonlyArray<{ readonly name: string; readonly volume_id: string | null }>
}

/** A declaration as `apply` takes it. */
export interface Wish {
  readonly name: string
  readonly volume_id: VolumeId
  readonly cloudstack_name?: string
  readonly attached_to: VmId | "appliance" | "none"
  readonly export_wanted?: true
  readonly read_only?: true
  readonly deletion_policy: "forget"
  readonly on_drift: "hold"
}

export interface Proven {
  readonly declaration: Wish
  /** The section that serves it, where there is one. */
  readonly export_name: string | null
  readonly export_path: string | null
  readonly by_id_path: string | null
  /** Where it was found: rows and sections. */
  readonly found_in: ReadonlyArray<string>
}

export interface Doubt {
  /** Null for what cannot be said of one volume. */
  readonly volume_id: string | null
  /** What is in doubt: the volume's name, or the row or section. */
  readonly subject: string
  readonly why: string
  /** What a person can do. */
  readonly advice: string
}

export interface Report {
  readonly proven: ReadonlyArray<Proven>
  readonly kept: ReadonlyArray<{ readonly volume_id: VolumeId; readonly name: string }>
  readonly unproven: ReadonlyArray<Doubt>
  /** How the tables were read, and what is left alone. */
  readonly notes: ReadonlyArray<string>
}

export const compare = (left: Left): Report => {
  const site = index(left)
  const understood = left.tables.map((table) => OldTables.understand(table, site.known))
  const claims = understood.flatMap((table) => table.claims)
  const mentions = gather(site, claims)
  const doubts = [
    ...claims.flatMap((claim) => strayClaim(site, claim)),
    ...left.sections.flatMap((section) => straySection(site, section)),
    ...left.unfinished.flatMap((operation) => strayOperation(site, operation))
  ]
  const proven: Array<{ row: CloudVolume; mention: Mention }> = []
  const said: Said = { crowded: crowdedPaths(claims), givenAway: givenAway(site, claims) }
  for (const [id, mention] of mentions) {
    if (site.declared.has(id)) continue
    const row = site.volumes.get(id)
    if (row === undefined) continue
    const found = judge(site, row, mention, said)
    doubts.push(...found.map((doubt) => ({ volume_id: id, subject: `volume ${row.name}`, ...doubt })))
    if (found.length === 0) proven.push({ row, mention })
  }
  return {
    proven: declare(site, proven),
    kept: [...mentions.keys()].flatMap((volume_id) => {
      const name = site.declared.get(volume_id)
      return name === undefined ? [] : [{ volume_id, name }]
    }),
    unproven: doubts,
    notes: [...understood.flatMap(tableNotes), ...leftAlone(site, mentions)]
  }
}

type Finding = Omit<Doubt, "volume_id" | "subject">

/** What all rows together say. */
interface Said {
  /** Paths that rows of more than one volume name. */
  readonly crowded: ReadonlySet<string>
  /** Why a section is another volume's than this one, or null. */
  readonly givenAway: (row: CloudVolume, section: NbdSection) => string | null
}

/** Everything by what it is looked up by. */
interface Site {
  readonly left: Left
  readonly volumes: ReadonlyMap<string, CloudVolume>
  /** Name by volume. */
  readonly declared: ReadonlyMap<string, string>
  readonly known: OldTables.Known
  readonly disks: (serial: string) => ReadonlyArray<BlockDevice>
  readonly ofSerial: (serial: string) => ReadonlyArray<CloudVolume>
  readonly section: (name: string) => NbdSection | undefined
  readonly unfinished: (volume: VolumeId) => ReadonlyArray<OldTables.Unfinished>
}

const index = (left: Left): Site => {
  const volumes = new Map<string, CloudVolume>(left.volumes.map((row) => [row.id, row]))
  const bySerial = grouped(left.volumes, (row) => serialOf(row.id))
  const disks = grouped(left.devices, (device) => device.serial ?? "")
  const sections = new Map(left.sections.map((section) => [section.name, section]))
  const unfinished = grouped(left.unfinished, ({ volume_id }) => volume_id.toLowerCase())
  const vms = new Set<string>([left.appliance_vm_id, ...left.volumes.flatMap((row) => row.vm_id ?? [])])
  return {
    left,
    volumes,
    declared: new Map(left.declared.flatMap(({ name, volume_id }) => (volume_id === null ? [] : [[volume_id, name]]))),
    known: {
      isVolume: (id) => volumes.has(id),
      isVm: (id) => vms.has(id),
      isSection: (name) => sections.has(name)
    },
    disks: (serial) => disks.get(serial) ?? [],
    ofSerial: (serial) => bySerial.get(serial) ?? [],
    section: (name) => sections.get(name),
    unfinished: (volume) => unfinished.get(volume) ?? []
  }
}

const grouped = <A>(all: ReadonlyArray<A>, by: (one: A) => string): ReadonlyMap<string, ReadonlyArray<A>> => {
  const groups = new Map<string, Array<A>>()
  for (const one of all) {
    const group = groups.get(by(one))
    if (group === undefined) groups.set(by(one), [one])
    else group.push(one)
  }
  return groups
}

/** The disk that a path of the file means now: by what it leads to, where that was looked at. */
const diskOf = (site: Site, { device, path }: NbdSection): BlockDevice | null =>
  site.left.devices.find(({ identity }) => identity === device) ?? (path === null ? null : diskAt(site, path))

const diskAt = (site: Site, path: string): BlockDevice | null =>
  site.left.devices.find((device) => device.kernel_path === path || device.by_id_paths.includes(path)) ?? null

/** The documented column has 32 characters, and a by-id path has 43: an older server may have cut it off there. */
const CUT_OFF = 32

/** The disk that a path of a table means now, wherever this machine's device directory is. */
const diskCalled = (site: Site, path: string): BlockDevice | null => {
  const called = (device: BlockDevice) => [
    `/dev/${device.kernel_name}`,
    ...device.by_id_paths.map((link) => `/dev/disk/by-id/${link.slice(link.lastIndexOf("/") + 1)}`)
  ]
  const exact = diskAt(site, path) ?? site.left.devices.find((device) => called(device).includes(path))
  if (exact !== undefined || path.length !== CUT_OFF) return exact ?? null
  const begun = site.left.devices.filter((device) => called(device).some((name) => name.startsWith(path)))
  return begun.length === 1 ? (begun[0] ?? null) : null
}

const volumeOf = (site: Site, device: BlockDevice | null): CloudVolume | null => {
  const found = device?.serial == null ? [] : site.ofSerial(device.serial)
  return found.length === 1 ? (found[0] ?? null) : null
}

/** A by-id path says whose disk it leads to even while that is not here. */
const serialIn = (path: string): string | null => /[-_]([0-9a-f]{20})$/.exec(path)?.[1] ?? null

/** The volumes that a section concerns: by its name, and by what it leads to. */
const volumesOf = (site: Site, section: NbdSection): ReadonlyArray<VolumeId> => {
  const named = Merge.volumeOfName(section.name)
  const device = diskOf(site, section)
  const serial = section.path === null || device !== null ? null : serialIn(section.path)
  const led = device === null ? (serial === null ? [] : site.ofSerial(serial)) : [volumeOf(site, device)]
  const ids = [named === null ? null : site.volumes.get(named), ...led].flatMap((row) => (row ? [row.id] : []))
  return [...new Set(ids)]
}

interface Mention {
  readonly claims: Array<OldTables.Claim>
  readonly sections: Set<NbdSection>
}

/** Which volume each row and section is about, in the order of their ids. */
const gather = (site: Site, claims: ReadonlyArray<OldTables.Claim>): ReadonlyMap<VolumeId, Mention> => {
  const mentions = new Map<VolumeId, Mention>()
  const of = (id: VolumeId): Mention => {
    const mention = mentions.get(id) ?? { claims: [], sections: new Set() }
    mentions.set(id, mention)
    return mention
  }
  for (const claim of claims) for (const id of subjects(site, claim)) of(id).claims.push(claim)
  for (const section of site.left.sections) for (const id of volumesOf(site, section)) of(id).sections.add(section)
  return new Map([...mentions].sort(([a], [b]) => (a < b ? -1 : 1)))
}

/** A row without a volume's id is about the volume whose disk or section it names. */
const subjects = (site: Site, claim: OldTables.Claim): ReadonlyArray<VolumeId> => {
  if (claim.volume !== null) {
    const row = site.volumes.get(claim.volume)
    return row === undefined ? [] : [row.id]
  }
  const section = claim.export_name === null ? undefined : site.section(claim.export_name)
  const led = claim.paths.flatMap((path) => volumeOf(site, diskCalled(site, path))?.id ?? [])
  return [...new Set([...led, ...(section === undefined ? [] : volumesOf(site, section))])]
}

/**
 * A section whose letter has become another disk leads to the wrong volume, and only the rows know whose it was: by its
 * name, or by its letter. A by-id path is beyond that doubt.
 */
const givenAway = (site: Site, claims: ReadonlyArray<OldTables.Claim>): Said["givenAway"] => {
  const owned = claims.filter(({ volume }) => volume !== null)
  const byName = grouped(owned, ({ export_name }) => export_name ?? "")
  const named = owned
    .filter((claim) => !isElsewhere(site, claim))
    .flatMap((claim) => claim.paths.map((path) => ({ claim, path, disk: diskCalled(site, path) })))
  const byDisk = grouped(named, ({ disk }) => disk?.identity ?? "")
  return (row, section) => {
    const rival = (byName.get(section.name) ?? []).find(({ volume }) => volume !== row.id)
    if (rival !== undefined) {
      return `${oneLine(rival.where)} gives the export ${show(section.name)} to the volume ${show(rival.volume ?? "")}`
    }
    const disk = diskOf(site, section)
    if (disk === null || section.path === null || serialIn(section.path) === serialOf(row.id)) return null
    const other = (byDisk.get(disk.identity) ?? []).find(({ claim }) => claim.volume !== row.id)
    if (other === undefined) return null
    return `${oneLine(other.claim.where)} gives ${show(other.path)} to the volume ${show(other.claim.volume ?? "")}`
  }
}

/** About a volume that is on another VM, as CloudStack says too: what that calls its disks is nothing that is seen here. */
const isElsewhere = (site: Site, { vm, volume }: OldTables.Claim): boolean =>
  vm !== null && vm !== site.left.appliance_vm_id && site.volumes.get(volume ?? "")?.vm_id === vm

/** Paths that rows of more than one volume name. */
const crowdedPaths = (claims: ReadonlyArray<OldTables.Claim>): ReadonlySet<string> => {
  const owners = new Map<string, Set<string>>()
  for (const claim of claims) {
    for (const path of claim.volume === null ? [] : claim.paths) {
      owners.set(path, (owners.get(path) ?? new Set()).add(claim.volume ?? ""))
    }
  }
  return new Set([...owners].flatMap(([path, volumes]) => (volumes.size > 1 ? [path] : [])))
}

/** Why this volume is not proven; empty when it is. */
const judge = (site: Site, row: CloudVolume, mention: Mention, said: Said): ReadonlyArray<Finding> =>
  // Of what is no data disk at rest nothing more is to be said.
  atRest(site, row) ?? [
    ...onDisk(site, row),
    ...mention.claims.flatMap((claim) => againstRow(site, row, claim, said.crowded)),
    ...againstSections(site, row, [...mention.sections], said),
    ...site.unfinished(row.id).map(unfinishedFinding),
    ...site.left.tables.flatMap(unreadRows)
  ]

const isHere = (site: Site, row: CloudVolume): boolean => row.vm_id === site.left.appliance_vm_id

const WAIT = "wait until that is over, then import again"

/** What CloudStack says against it, null when nothing. */
const atRest = (site: Site, row: CloudVolume): ReadonlyArray<Finding> | null => {
  if (row.type !== "DATADISK") {
    const why = `it is a ${show(row.type)} volume, not a data disk`
    return [{ why, advice: "nothing: root volumes are never managed; import again when it is a data disk" }]
  }
  if (site.left.ambiguous.includes(row.id)) {
    return [{ why: "CloudStack listed its id twice with different content", advice: "import again" }]
  }
  if (row.job_id !== null) return [{ why: "CloudStack has a job running on it", advice: WAIT }]
  switch (Merge.stateOf(row.state)) {
    case "actionable":
      return null
    case "busy":
      return [{ why: `CloudStack shows it in state ${row.state}`, advice: WAIT }]
    case "destroyed":
    case "unknown":
      return [{ why: `CloudStack shows it in state ${show(row.state)}`, advice: "remove what still names it" }]
  }
}

/** CloudStack and the guest must agree on whether its disk is here. */
const onDisk = (site: Site, row: CloudVolume): ReadonlyArray<Finding> => {
  const disks = site.disks(serialOf(row.id))
  const [disk, second] = disks
  if (second !== undefined || site.ofSerial(serialOf(row.id)).length > 1) {
    const why = `more than one disk or volume bears its serial ${serialOf(row.id)}`
    return [{ why, advice: "detach one of them" }]
  }
  if (isHere(site, row) && disk === undefined) {
    const why = "CloudStack shows it on this appliance, and no disk with its serial is here"
    return [{ why, advice: "rescan the guest's bus, or detach the volume and attach it again" }]
  }
  if (!isHere(site, row) && disk !== undefined) {
    const why = `CloudStack does not show it on this appliance, and its disk is here as ${disk.kernel_path}`
    return [{ why, advice: "find out which is so on the hypervisor (virsh domblklist)" }]
  }
  if (disk?.forbidden == null) return []
  return [{ why: `its disk is ${disk.forbidden}`, advice: "free the disk from that use" }]
}

const againstRow = (
  site: Site,
  row: CloudVolume,
  claim: OldTables.Claim,
  crowded: ReadonlySet<string>
): ReadonlyArray<Finding> => {
  const where = oneLine(claim.where)
  const advice = `correct or remove that row, or declare the volume by hand: volumed adopt ${row.id} --name NAME`
  const findings: Array<Finding> = []
  const is = row.vm_id === null ? "no VM" : `VM ${row.vm_id}`
  if (claim.attached === false && row.vm_id !== null)
    findings.push({ why: `${where} says detached, CloudStack shows it on ${is}`, advice })
  if (claim.attached !== false && claim.vm !== null && claim.vm !== row.vm_id)
    findings.push({ why: `${where} says VM ${show(claim.vm)}, CloudStack shows it on ${is}`, advice })
  for (const path of claim.paths) {
    const why = crowded.has(path) ? `rows of several volumes name ${show(path)}` : pathProblem(site, row, claim, path)
    if (why !== null) findings.push({ why: `${where}: ${why}`, advice })
  }
  if (claim.export_name === null) return findings
  const section = site.section(claim.export_name)
  if (section === undefined)
    findings.push({ why: `${where} names the export ${show(claim.export_name)}, and no section is called so`, advice })
  else if (!volumesOf(site, section).includes(row.id))
    findings.push({ why: `${where} names the export ${show(section.name)}, which is not this volume's`, advice })
  return findings
}

/** Where a row's path and the volume's disk do not agree, or null. */
const pathProblem = (site: Site, row: CloudVolume, claim: OldTables.Claim, path: string): string | null => {
  // What another VM calls its disk is nothing that can be seen here.
  if (!isHere(site, row) && claim.vm !== null && claim.vm === row.vm_id) return null
  if (!OldTables.isDevicePath(path)) return `${show(path)} is no device path`
  const device = diskCalled(site, path)
  if (device === null) return serialIn(path) === serialOf(row.id) ? null : `${show(path)} leads to no disk here`
  if (device.serial === serialOf(row.id)) return null
  return `${show(path)} is now the disk with serial ${show(device.serial ?? "none")}, this volume's is ${serialOf(row.id)}`
}

const againstSections = (
  site: Site,
  row: CloudVolume,
  sections: ReadonlyArray<NbdSection>,
  said: Said
): ReadonlyArray<Finding> => {
  const names = sections.map(({ name }) => show(name)).join(" and ")
  if (sections.length > 1) {
    const why = `the NBD sections ${names} concern it: one disk is served under one name`
    return [{ why, advice: "remove all but the one that clients use, then import again" }]
  }
  return sections.flatMap((section) => {
    const why = sectionProblem(site, row, section)
    if (why !== null) return [{ why: `the NBD section ${names} ${why}`, advice: "correct or remove that section" }]
    const other = said.givenAway(row, section)
    if (other === null) return []
    return [{ why: `the NBD section ${names} leads to its disk, and ${other}`, advice: "correct that row or section" }]
  })
}

/** Where a section is not what it seems for this volume, or null. */
const sectionProblem = (site: Site, row: CloudVolume, section: NbdSection): string | null => {
  const { name, obstacle, path } = section
  const named = Merge.volumeOfName(name)
  if (named !== null && named !== row.id) return `bears the id of another volume and leads to this volume's disk`
  if (path === null) return "names no path"
  if (obstacle !== null) return `cannot become volumed's: ${obstacle}`
  const device = diskOf(site, section)
  if (device !== null) {
    return device.serial === serialOf(row.id) ? null : `leads to the disk with serial ${show(device.serial ?? "none")}`
  }
  if (serialIn(path) !== serialOf(row.id)) return `names ${show(path)}, which leads to no disk now`
  return isHere(site, row) ? `names ${show(path)}, which does not lead to its disk` : null
}

/** Any of the rows that were not read could be about any volume. */
const unreadRows = ({ cut, name }: OldTables.Table): ReadonlyArray<Finding> =>
  cut
    ? [
        {
          why: `${name} has more rows than were read, and what the others say is not known`,
          advice: "remove rows of volumes that are gone, or import from a copy that has only what still counts"
        }
      ]
    : []

const operationPattern = /^op-[0-9a-f-]{36}$/

const unfinishedFinding = ({ created_at, id, status, type }: OldTables.Unfinished): Finding => ({
  why: `the older daemon's operation ${show(id)} (${show(type)}, since ${show(created_at)}) is ${show(status)}`,
  advice: operationPattern.test(id)
    ? `see in CloudStack what became of it, then: UPDATE volume_operations SET status = 'failed' WHERE id = '${id}'`
    : "see in CloudStack what became of it, then set its status to failed"
})

/** A row that is about no volume that can be named. */
const strayClaim = (site: Site, claim: OldTables.Claim): ReadonlyArray<Doubt> => {
  const where = oneLine(claim.where)
  if (claim.volume !== null) {
    if (site.volumes.has(claim.volume)) return []
    const why = OldTables.isUuid(claim.volume)
      ? `names the volume ${claim.volume}, which CloudStack does not show to this account`
      : `names the volume ${show(claim.volume)}, which is no volume id`
    return [{ volume_id: null, subject: where, why, advice: "remove the row if the volume is gone" }]
  }
  const about = subjects(site, claim)
  if (about.length === 1) return []
  const said = [...claim.paths, claim.export_name].filter((value) => value !== null).map(show)
  const what = said.length === 0 ? "names neither a volume, nor a path, nor an export" : `names ${said.join(" and ")}`
  const why = about.length === 0 ? `${what}: no volume can be told from it` : `${what}: these are different volumes`
  return [{ volume_id: null, subject: where, why, advice: "remove the row, or correct it" }]
}

/** A section that looks like the older daemon's, and concerns no volume that CloudStack shows. */
const straySection = (site: Site, section: NbdSection): ReadonlyArray<Doubt> => {
  if (volumesOf(site, section).length > 0 || !isExport(section)) return []
  const device = diskOf(site, section)
  const why =
    device === null
      ? `names ${show(section.path ?? "no path")}, which leads to no disk now`
      : `leads to ${device.kernel_path}, which is no volume that CloudStack shows to this account`
  const advice = "remove the section if nobody uses it; volumed leaves it as it is"
  return [{ volume_id: null, subject: `NBD section ${show(section.name)}`, why, advice }]
}

const isExport = ({ name, path }: NbdSection): boolean =>
  /^migration-v(?:ol|m)-/.test(name) ||
  (path !== null && (serialIn(path) !== null || /^\/dev\/(?:[shv]d|xvd)[a-z]+$/.test(path)))

const strayOperation = (site: Site, operation: OldTables.Unfinished): ReadonlyArray<Doubt> => {
  const id = operation.volume_id.toLowerCase()
  // A volume that nothing else names is not imported, and one that is declared already is in no doubt.
  if (site.volumes.has(id)) return []
  return [{ volume_id: null, subject: "volume_operations", ...unfinishedFinding(operation) }]
}

const tableNotes = ({ cut, roles, rows, table, unclear, unused }: OldTables.Understood): ReadonlyArray<string> => {
  const meant = [
    ["the volume", roles.volume],
    ["its VM", roles.vm],
    ["the export's name", roles.export_name],
    ["the device", roles.paths.join(", ") || null],
    ["its state", roles.state]
  ].flatMap(([what, column]) => (column == null ? [] : [`${column} as ${what}`]))
  const used = meant.length === 0 ? "no column was understood" : `read ${meant.join(", ")}`
  const rest = unused.length === 0 ? "" : `; not used: ${unused.join(", ")}`
  return [
    `${table}: ${rows} ${rows === 1 ? "row" : "rows"}; ${used}${rest}`,
    ...unclear,
    ...(cut ? [`${table} has more rows than were read: nothing is proven without them`] : [])
  ].map((note) => oneLine(note))
}

/** Column names are somebody else's text, too; a list of them may be long. */
const oneLine = (text: string): string => text.replace(/[\p{Cc}\u2028\u2029\p{Cs}]/gu, " ").slice(0, 1000)

/** Data disks of this appliance that nothing which was left speaks of, and sections that are no volume's. */
const leftAlone = (site: Site, mentions: ReadonlyMap<VolumeId, Mention>): ReadonlyArray<string> => [
  ...site.left.volumes
    .filter(
      (row) => isHere(site, row) && row.type === "DATADISK" && !mentions.has(row.id) && !site.declared.has(row.id)
    )
    .map((row) => `${show(row.name)} (${row.id}) is on this appliance, and nothing names it: volumed adopt ${row.id}`),
  ...site.left.sections
    .filter((section) => volumesOf(site, section).length === 0 && !isExport(section))
    .map((section) => `the NBD section ${show(section.name)} is no volume's: it stays as it is`)
]

const declare = (
  site: Site,
  proven: ReadonlyArray<{ readonly row: CloudVolume; readonly mention: Mention }>
): ReadonlyArray<Proven> => {
  const taken = new Set(site.left.declared.map(({ name }) => name))
  const counts = new Map<string, number>()
  for (const { row } of proven) counts.set(plainName(row), (counts.get(plainName(row)) ?? 0) + 1)
  return proven.map(({ mention, row }) => {
    const plain = plainName(row)
    const alone = counts.get(plain) === 1 && !taken.has(plain)
    const [section] = mention.sections
    const name = alone ? plain : distinctName(row, taken)
    taken.add(name)
    return {
      declaration: wish(site, row, name, section ?? null),
      export_name: section?.name ?? null,
      export_path: section?.path ?? null,
      by_id_path: site.disks(serialOf(row.id))[0]?.by_id_paths[0] ?? null,
      found_in: [
        ...mention.claims.map((claim) => oneLine(claim.where)),
        ...(section === undefined ? [] : [`NBD section ${show(section.name)}`])
      ]
    }
  })
}

/** As CloudStack shows it: this observed where it is declared makes the attachment ours (contract of `attached_to`). */
const wish = (site: Site, row: CloudVolume, name: string, section: NbdSection | null): Wish => ({
  name,
  volume_id: row.id,
  ...(row.name === name || !/^[^\p{Cc}\p{Cs}\u2028\u2029\ufffd]{1,255}$/u.test(row.name)
    ? {}
    : { cloudstack_name: row.name }),
  attached_to: row.vm_id === null ? "none" : isHere(site, row) ? "appliance" : row.vm_id,
  ...(section === null ? {} : { export_wanted: true }),
  ...(section?.read_only === true ? { read_only: true } : {}),
  deletion_policy: "forget",
  on_drift: "hold"
})

/** With room for an id behind it. */
const plainName = (row: CloudVolume): string => Call.plainName(row.name).slice(0, 216)

/** With as much of the id as makes it nobody else's. */
const distinctName = (row: CloudVolume, taken: ReadonlySet<string>): string => {
  const short = `${plainName(row)}-${row.id.slice(0, 8)}`
  return taken.has(short) ? `${plainName(row)}-${row.id}` : short
}
