import { Either } from "effect"
import { createHash } from "node:crypto"
import { UID_TAG } from "../../schema/Action.ts"
import { exportNameOf, serialOf, type VmId, type VolumeId } from "../../schema/Ids.ts"
import * as Wire from "../../schema/CloudStack.ts"
import { type Declaration, GIB, type Spec, unbound } from "../../schema/Declaration.ts"
import type { CloudVolume, GuestReading, Inventory, NbdReading } from "../../schema/Inventory.ts"
import { known, sectionOf } from "../../schema/Inventory.ts"
import type { Name, OfferingId, Uid, ZoneId } from "../../schema/Ids.ts"
import * as World from "../../src/Simulation/World.ts"

/** Many declared volumes in their declared state: the wire text of their listing, and what a planner is given of them. */
export interface Fleet {
  readonly world: World.World
  /** Bodies of listVolumes, a page of 500 each. */
  readonly pages: ReadonlyArray<string>
  readonly declarations: ReadonlyArray<Declaration>
  readonly inventory: Inventory
  readonly now: number
}

const START = Date.parse("2026-03-01T12:00:00Z")
const WRITTEN = "2026-03-01T12:00:00Z"
/** One less than a VM may have, so that there is room for what changes. */
const DISKS_A_VM = 31
const VMS = 255

/** The appliance and every test VM are filled first; the other volumes are attached nowhere. */
export const make = (count: number, begin = START): Fleet => {
  const world = World.make({ now: begin, vms: VMS, job_ms: 0 })
  const vms = [World.APPLIANCE_VM_ID, ...Array.from({ length: VMS }, (_, n) => World.vmId(n + 1))]
  for (let n = 0; n < count; n++) {
    const vm = vms[Math.trunc(n / DISKS_A_VM)]
    // A settled volume bears its declaration's uid; here the volume's own id stands for that too.
    const id = createHash("sha256")
      .update(`volume-${n}`)
      .digest("hex")
      .replace(/^(.{8})(.{4})(.{4})(.{4})(.{12}).*/, "$1-$2-$3-$4-$5")
    const seeded = { id, name: `volume-${n}`, state: "Ready", size_gib: 10, tags: [{ key: UID_TAG, value: id }] }
    world.seedVolume(vm === undefined ? seeded : { ...seeded, vm_id: vm }, begin)
  }
  const now = begin + 60_000
  const pages = listing(world, now)
  const volumes = pages.flatMap(rowsIn)
  const dataDisks = volumes.filter((volume) => volume.type === "DATADISK")
  const onAppliance = dataDisks.filter((volume) => volume.vm_id === World.APPLIANCE_VM_ID)
  return {
    world,
    pages,
    declarations: dataDisks.map(declared).sort((a, b) => (a.name < b.name ? -1 : 1)),
    inventory: {
      appliance_vm_id: World.APPLIANCE_VM_ID as VmId,
      cloud: known(now, {
        scope: "all",
        volumes,
        ambiguous: [],
        absent: [],
        unresolved: [],
        vms: vms.map((id) => ({ id: id as VmId, name: id, state: "Running", zone_id: World.ZONE_ID as ZoneId })),
        vms_absent: [],
        custom_ids: false
      }),
      guest: known(now, guestOf(onAppliance)),
      nbd: known(now, nbdOf(onAppliance, now))
    },
    now
  }
}

/** The same fleet with one declaration in `every` written anew: attached, detached, or moved. */
export const changing = (fleet: Fleet, every: number): Fleet => ({
  ...fleet,
  declarations: fleet.declarations.map((declaration, index) =>
    index % every === 0
      ? { ...declaration, generation: 2, spec: { ...declaration.spec, attached_to: otherPlace(declaration, index) } }
      : declaration
  )
})

const otherPlace = ({ spec }: Declaration, index: number): Spec["attached_to"] =>
  spec.attached_to === "none" ? (World.vmId((index % VMS) + 1) as VmId) : "none"

const listing = (world: World.World, now: number): ReadonlyArray<string> => {
  const pages: Array<string> = []
  for (let page = 1; ; page++) {
    const answer = world.call("listVolumes", { page: String(page), pagesize: "500", listall: "true" }, now)
    const body = `{"listvolumesresponse":${typeof answer === "string" ? answer : "null"}}`
    if (rowsIn(body).length === 0) return pages
    pages.push(body)
  }
}

const rowsIn = (body: string): ReadonlyArray<CloudVolume> =>
  Wire.volumes(Either.getOrThrow(Wire.page("listVolumes", "volume", JSON.parse(body))).rows).good

const declared = (volume: CloudVolume): Declaration => {
  const place = volume.vm_id === World.APPLIANCE_VM_ID ? "appliance" : (volume.vm_id ?? "none")
  return {
    name: volume.name as Name,
    uid: volume.id as string as Uid,
    generation: 1,
    created_at: WRITTEN,
    updated_at: WRITTEN,
    set: null,
    managers: {},
    spec: {
      cloudstack_name: volume.name,
      volume_id: null,
      size: 10 * GIB,
      disk_offering_id: World.OFFERING_ID as OfferingId,
      zone_id: World.ZONE_ID as ZoneId,
      attached_to: place,
      attach_as: "data",
      export_wanted: place === "appliance",
      read_only: false,
      deletion_policy: "forget",
      on_conflict: "hold",
      on_drift: "repair",
      on_loss: "hold",
      paused: null,
      metadata: {}
    },
    deletion: null,
    removed_at: null,
    binding: {
      ...unbound,
      volume_id: volume.id,
      origin: "created",
      attachment: volume.vm_id === null ? null : { vm_id: volume.vm_id, as: "data", settled: true },
      export:
        place === "appliance" ? { name: exportNameOf(volume.id), path: linkTo(volume.id), settled_at: START } : null,
      settled_generation: 1
    }
  }
}

const linkTo = (volume: VolumeId) => `/dev/disk/by-id/virtio-${serialOf(volume)}`

const guestOf = (volumes: ReadonlyArray<CloudVolume>): GuestReading => ({
  devices: volumes.map((volume, index) => ({
    kernel_name: `vd${index}`,
    kernel_path: `/dev/vd${index}`,
    serial: serialOf(volume.id),
    size: volume.size,
    read_only: false,
    identity: `254:${index * 16}`,
    forbidden: null,
    by_id_paths: [linkTo(volume.id)],
    controller: null
  })),
  broken_links: []
})

const nbdOf = (volumes: ReadonlyArray<CloudVolume>, now: number): NbdReading => ({
  engine: "nbd-server",
  version: "3.24",
  server: { state: "running", pid: 1, problem: null },
  host: "127.0.0.1",
  port: 10_809,
  read_only_port: 10_809,
  sections: volumes.map(({ id }) => sectionOf(exportNameOf(id), linkTo(id), false)),
  config_problem: null,
  narrowings: [],
  loaded: true,
  verifications: volumes.map(({ id, size }, index) => ({
    name: exportNameOf(id),
    outcome: "served",
    size,
    read_only: false,
    device: `254:${index * 16}`,
    verified_at: now,
    message: null
  })),
  holders: []
})
