import { Schema } from "effect"
import { JobId, OfferingId, Timestamp, VmId, VolumeId, ZoneId } from "./Ids.ts"

/**
 * One source of the inventory: what it showed and since when that is known, or why it is unread. A missing reading is
 * never an absent thing, so the two cannot be confused in the type.
 */
export type Source<A> =
  | {
      readonly _tag: "Known"
      /** When the request behind this reading began, ms since the epoch: the earliest time the reading may speak of. */
      readonly started_at: number
      /** False when the source said itself, or we found, that something may be missing from `value`. */
      readonly complete: boolean
      readonly note: string | null
      readonly value: A
    }
  | { readonly _tag: "Unread"; readonly at: number; readonly code: string; readonly message: string }

export const known = <A>(started_at: number, value: A, complete = true, note: string | null = null): Source<A> => ({
  _tag: "Known",
  started_at,
  complete,
  note,
  value
})

export const unread = <A = never>(at: number, code: string, message: string): Source<A> => ({
  _tag: "Unread",
  at,
  code,
  message
})

/** A volume as CloudStack lists it (`listVolumes`, response type VolumeResponse), names made ours. */
export const CloudVolume = Schema.Struct({
  id: VolumeId,
  name: Schema.String,
  /** `ROOT`, `DATADISK`, or a word we do not know and therefore do not touch. */
  type: Schema.String,
  /** As CloudStack says it; see `reconciler/Merge.ts` for the states in which a volume may be acted on. */
  state: Schema.String,
  /** Bytes. May exceed what was asked for. */
  size: Schema.Number,
  vm_id: Schema.NullOr(VmId),
  vm_name: Schema.NullOr(Schema.String),
  vm_state: Schema.NullOr(Schema.String),
  device_id: Schema.NullOr(Schema.Int),
  zone_id: Schema.NullOr(ZoneId),
  disk_offering_id: Schema.NullOr(OfferingId),
  /** ms since the epoch, second precision; null where the answer had none. */
  created_at: Schema.NullOr(Schema.Int),
  tags: Schema.Array(Schema.Struct({ key: Schema.String, value: Schema.String })),
  /** Only while an async job of instance type Volume is pending on this row: somebody's work in flight. */
  job_id: Schema.NullOr(JobId),
  delete_protection: Schema.Boolean
})
export type CloudVolume = typeof CloudVolume.Type

export const VirtualMachine = Schema.Struct({
  id: VmId,
  name: Schema.String,
  state: Schema.String,
  zone_id: Schema.NullOr(ZoneId)
})
export type VirtualMachine = typeof VirtualMachine.Type

export interface CloudReading {
  /** `all`: a whole listing; `some`: only what was asked for by id, so nothing follows from what is not here. */
  readonly scope: "all" | "some"
  /** Merged by id. */
  readonly volumes: ReadonlyArray<CloudVolume>
  /** Ids that came twice in one listing with different content (CloudStack issue 5316): hands off. */
  readonly ambiguous: ReadonlyArray<VolumeId>
  /** Read by id, beside a visible appliance VM, and not there. The only proof of absence there is. */
  readonly absent: ReadonlyArray<VolumeId>
  /** Ids CloudStack refused to resolve at all (HTTP 431, "entity does not exist"): never existed, or not ours to see. */
  readonly unresolved: ReadonlyArray<VolumeId>
  /** The VMs that were looked at, not all there are. */
  readonly vms: ReadonlyArray<VirtualMachine>
  /** VMs looked up by id and not visible to us. */
  readonly vms_absent: ReadonlyArray<VmId>
  /** This account may choose the id of what it creates. Asked only where something is to be created, false elsewhere. */
  readonly custom_ids: boolean
}

/** A disk of this guest, from sysfs. */
export const BlockDevice = Schema.Struct({
  /** Kernel name, e.g. `vdb`; changes over reboots, never an identity. */
  kernel_name: Schema.String,
  kernel_path: Schema.String,
  /** As the kernel shows it, trimmed and lower-cased; null when it shows none. */
  serial: Schema.NullOr(Schema.String),
  /** Bytes. */
  size: Schema.Number,
  read_only: Schema.Boolean,
  /** `major:minor` of the node, or `file:dev:ino` for the sandbox's files: what a holder's open descriptor is compared with. */
  identity: Schema.String,
  /** Why this device must never be exported (partition, system disk, mounted, swap, not a block device …); null when it may. */
  forbidden: Schema.NullOr(Schema.String),
  /** Links in the by-id directory that resolve to this very device, best first. */
  by_id_paths: Schema.Array(Schema.String),
  /** The bus controller, e.g. `virtio4`; shown to people only. */
  controller: Schema.NullOr(Schema.String)
})
export type BlockDevice = typeof BlockDevice.Type

export interface GuestReading {
  readonly devices: ReadonlyArray<BlockDevice>
  /** By-id links whose target is not a disk we may use, with the reason: shown, never followed. */
  readonly broken_links: ReadonlyArray<{ readonly path: string; readonly problem: string }>
}

/** A section of the NBD server's file or of its includedir, whoever wrote it. */
export const NbdSection = Schema.Struct({
  /** Text; bytes that are no UTF-8 stand in it as `NbdName` writes them. */
  name: Schema.String,
  path: Schema.NullOr(Schema.String),
  read_only: Schema.Boolean,
  /** The file of the includedir that it stands in, beside our own section of that name or alone; null: in the one file. */
  file: Schema.NullOr(Schema.String),
  /** Identity (as in BlockDevice) of what its path leads to; null where that is no disk, or was not looked at. */
  device: Schema.NullOr(Schema.String),
  /** Why it must not become ours; null when it may, or is. */
  obstacle: Schema.NullOr(Schema.String),
  /** Why it is not served for good, however right it looks: a load was not finished. Null when it is. */
  unfinished: Schema.NullOr(Schema.String),
  /** Since when it admits no new client, ms since the epoch: it was fenced. Null where it is open. */
  fenced_at: Schema.NullOr(Schema.Int)
})
export type NbdSection = typeof NbdSection.Type

/** A section in the one file, with nothing to be said about it. */
export const sectionOf = (name: string, path: string | null, read_only: boolean): NbdSection => ({
  name,
  path,
  read_only,
  file: null,
  device: null,
  obstacle: null,
  unfinished: null,
  fenced_at: null
})

/** What a GO handshake said about one export, the only evidence that counts. */
export const Verification = Schema.Struct({
  name: Schema.String,
  /**
   * `unknown`: no such export is loaded. `denied`: by policy, or its device cannot be opened. `dropped`: the server greeted
   * and hung up. `no_answer`: no answer in time, or none that says anything. `refused`: nothing listens.
   */
  outcome: Schema.Literal("served", "unknown", "denied", "dropped", "no_answer", "refused"),
  /** Bytes, when served. */
  size: Schema.NullOr(Schema.Number),
  read_only: Schema.NullOr(Schema.Boolean),
  /** Identity (as in BlockDevice) of the device that the serving process holds; null where it could not be read. */
  device: Schema.NullOr(Schema.String),
  verified_at: Schema.Int,
  message: Schema.NullOr(Schema.String)
})
export type Verification = typeof Verification.Type

/** Somebody who has an exported device open: a client's serving process, or any other holder. */
export const Holder = Schema.Struct({
  pid: Schema.Int,
  command: Schema.String,
  /** Identity of the device it holds. */
  device: Schema.String,
  /** The client's address where the holder is a serving process of the NBD server. */
  peer: Schema.NullOr(Schema.String),
  since: Schema.NullOr(Timestamp)
})
export type Holder = typeof Holder.Type

export interface NbdReading {
  readonly engine: "nbd-server" | "nbdkit" | "simulated"
  readonly version: string | null
  readonly server: {
    /** `foreign`: something listens on our port that is not a main we may replace. */
    readonly state: "running" | "absent" | "hung" | "foreign" | "not_installed"
    readonly pid: number | null
    readonly problem: string | null
  }
  readonly host: string
  readonly port: number
  /** Where read-only exports are: another port only where an engine serves them by a process of their own (nbdkit). */
  readonly read_only_port: number
  /** Every section in the file, ours and foreign, in file order, the generic and our own housekeeping ones left out. */
  readonly sections: ReadonlyArray<NbdSection>
  /**
   * Why the file cannot be used until a person mends it (wrong owner, a foreign [generic] on another port …); null when it
   * is fine, does not exist yet, or is broken and will be rendered anew by the next load (`server.problem` says so then).
   */
  readonly config_problem: string | null
  /** What explicit settings will take away from what somebody else's file admits now, as sentences. */
  readonly narrowings: ReadonlyArray<string>
  /** A GO on the file's generation marker was granted: this very file is loaded whole. */
  readonly loaded: boolean
  readonly verifications: ReadonlyArray<Verification>
  /** Who holds devices open; our own probes left out. */
  readonly holders: ReadonlyArray<Holder>
}

export interface Inventory {
  readonly appliance_vm_id: VmId
  readonly cloud: Source<CloudReading>
  readonly guest: Source<GuestReading>
  readonly nbd: Source<NbdReading>
}
