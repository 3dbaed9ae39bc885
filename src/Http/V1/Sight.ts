/** What CloudStack and the guest show, as version 1 answers need it: observed, never wished. */
import { Effect } from "effect"
import { Reconciler } from "../../../reconciler/Reconciler.ts"
import { type DeviceMappingRow, Store } from "../../../reconciler/Store.ts"
import type * as Api from "../../../schema/Api.ts"
import type { Declaration } from "../../../schema/Declaration.ts"
import { serialOf, type VmId, type VolumeId } from "../../../schema/Ids.ts"
import type { BlockDevice, CloudReading, CloudVolume, GuestReading } from "../../../schema/Inventory.ts"
import { isCall } from "../../../schema/Operation.ts"
import * as Answer from "../Answer.ts"
import type { Failure } from "../ErrorAnswer.ts"
import { refuse } from "../Request.ts"

/** The newest observation, and what the store adds to it. */
export interface Sight {
  readonly appliance_vm_id: VmId
  readonly cloud: CloudReading
  /** RFC 3339: when the reading began that shows this volume's row. */
  readonly observed_at: (volume: VolumeId) => string
  /** Null while the guest is unread: no disk is known then. */
  readonly guest: GuestReading | null
  readonly declarations: ReadonlyMap<VolumeId, Declaration>
  readonly mappings: ReadonlyMap<string, DeviceMappingRow>
}

export const look: Effect.Effect<Sight, Failure, Reconciler | Store> = Effect.gen(function* () {
  const { inventory, reread } = yield* Effect.flatMap(Reconciler, ({ view }) => view)
  if (inventory === null) return yield* unread("it has not been read yet")
  const { appliance_vm_id, cloud, guest } = inventory
  if (cloud._tag === "Unread") return yield* unread(cloud.code)
  const store = yield* Store
  const declarations = yield* store.declarations
  const mappings = yield* store.deviceMappings
  return {
    appliance_vm_id,
    cloud: cloud.value,
    observed_at: (volume) => Answer.rfc3339(reread.get(volume) ?? cloud.started_at),
    guest: guest._tag === "Known" ? guest.value : null,
    declarations: new Map(
      declarations.flatMap((one) => (one.binding.volume_id === null ? [] : [[one.binding.volume_id, one] as const]))
    ),
    mappings: new Map(mappings.map((row) => [row.volume_id, row]))
  }
})

const unread = (why: string) =>
  refuse("CLOUDSTACK_UNAVAILABLE", `what CloudStack shows is not known now: ${why}`, "repeat the request")

/** The disk that the guest shows for a volume; none where it cannot be told which one it is (D5). */
const deviceOf = ({ cloud, guest }: Sight, volume: VolumeId): BlockDevice | null => {
  const serial = serialOf(volume)
  const [device, ...others] = (guest?.devices ?? []).filter((candidate) => candidate.serial === serial)
  return device === undefined || others.length > 0 || rowOfSerial(cloud, serial) === null ? null : device
}

/** The volume that a disk of the guest is. */
export const volumeOf = (sight: Sight, { serial }: BlockDevice): CloudVolume | null => {
  const row = serial === null ? null : rowOfSerial(sight.cloud, serial)
  return row === null || deviceOf(sight, row.id) === null ? null : row
}

/** So many rows at most lie between a call and the newest of its actions. */
const ACTIONS_OF_A_CALL = 12

const rowOfSerial = ({ volumes }: CloudReading, serial: string): CloudVolume | null => {
  const [row, ...others] = volumes.filter(({ id }) => serialOf(id) === serial)
  return row === undefined || others.length > 0 ? null : row
}

export const rowOf = ({ cloud }: Sight, volume: VolumeId): CloudVolume | null =>
  cloud.volumes.find(({ id }) => id === volume) ?? null

/** Its disk, where CloudStack and the guest agree that it is here. */
export const deviceHere = (sight: Sight, row: CloudVolume): BlockDevice | null =>
  row.vm_id === sight.appliance_vm_id ? deviceOf(sight, row.id) : null

const byIdPath = ({ by_id_paths, kernel_path }: BlockDevice): string => by_id_paths[0] ?? kernel_path

/** `observed_at`: of the row, where it is not of this sight. */
export const volume = (sight: Sight, row: CloudVolume, observed_at: string = sight.observed_at(row.id)) =>
  Effect.gen(function* () {
    const store = yield* Store
    const device = deviceHere(sight, row)
    const attached_at = yield* attachedAt(sight, row)
    const { items } = yield* store.operations({ volume_id: row.id, limit: ACTIONS_OF_A_CALL })
    // What a client asked for tells it more than the newest of the actions that came of it.
    const last = items.find(isCall) ?? items[0]
    return {
      volume_id: row.id,
      name: row.name,
      ...(row.vm_id === null ? {} : { vm_id: row.vm_id }),
      ...(device === null ? {} : { device_path: byIdPath(device) }),
      ...(attached_at === null ? {} : { attached_at }),
      state: row.state,
      size: row.size,
      type: row.type,
      cloudstack_data: {
        ...row,
        created_at: row.created_at === null ? null : Answer.rfc3339(row.created_at),
        observed_at
      },
      ...(last === undefined ? {} : { last_operation: Answer.operation(last) })
    } satisfies Api.V1Volume as Api.V1Volume
  })

/** When the attach that put it there had settled, if it was ours; else since when its disk is known here. */
const attachedAt = (sight: Sight, row: CloudVolume) =>
  Effect.gen(function* () {
    if (row.vm_id === null) return null
    const { attachment } = sight.declarations.get(row.id)?.binding ?? { attachment: null }
    const known = row.vm_id === sight.appliance_vm_id ? (sight.mappings.get(row.id)?.created_at ?? null) : null
    if (attachment === null || !attachment.settled || attachment.vm_id !== row.vm_id) return known
    const store = yield* Store
    // The rows of calls are among them: an action ends before the call that caused it.
    const { items } = yield* store.operations({ volume_id: row.id, type: "attach", status: "completed", limit: 10 })
    return items.find((operation) => !isCall(operation))?.completed_at ?? known
  })

export const mapping = (sight: Sight, row: CloudVolume, device: BlockDevice) =>
  Effect.map(attachedAt(sight, row), (since): Api.V1DeviceMapping => {
    const stored = sight.mappings.get(row.id)
    const last_sync = sight.observed_at(row.id)
    const attached_at = since ?? last_sync
    return {
      // Not written down yet: an id that is the same whenever it is asked for.
      id: stored?.id ?? `dm-${row.id}`,
      volume_id: row.id,
      vm_id: sight.appliance_vm_id,
      device_path: byIdPath(device),
      kernel_path: device.kernel_path,
      cloudstack_state: "attached",
      linux_state: "detected",
      size: device.size,
      last_sync,
      attached_at,
      created_at: stored?.created_at ?? attached_at,
      updated_at: stored?.updated_at ?? attached_at
    }
  })
