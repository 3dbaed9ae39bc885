import type { Volume } from "../../schema/Api.ts"
import type { Condition } from "../../schema/Condition.ts"
import type { Name, Uid, VmId, VolumeId } from "../../schema/Ids.ts"

const at = "2026-03-01T12:00:00Z"

export const ready = (over: Partial<Condition> = {}): Condition => ({
  type: "Ready",
  status: "True",
  reason: "Settled",
  category: null,
  message: "everything is as declared",
  suggestion: null,
  observed_generation: 1,
  last_transition_time: at,
  ...over
})

/** A declaration on the appliance, exported and Ready. */
export const volume = (
  name: string,
  id: string,
  over: Partial<Volume> = {},
  status: Partial<Volume["status"]> = {}
): Volume => ({
  name: name as Name,
  uid: `00000000-0000-4000-8000-${id.slice(-12)}` as Uid,
  generation: 1,
  created_at: at,
  updated_at: at,
  set: null,
  managers: {},
  spec: {
    cloudstack_name: name,
    volume_id: null,
    size: 2 * 1024 ** 3,
    disk_offering_id: null,
    zone_id: null,
    attached_to: "appliance",
    attach_as: "data",
    export_wanted: true,
    read_only: false,
    deletion_policy: "forget",
    on_conflict: "hold",
    on_drift: "repair",
    on_loss: "hold",
    paused: null,
    metadata: {}
  },
  status: {
    observed_generation: 1,
    volume_id: id as VolumeId,
    volume_name: name,
    volume_state: "Ready",
    size: 2 * 1024 ** 3,
    attached_to: "8a4400e5-c92a-4bc4-8bff-4b6b0b6a018c" as VmId,
    by_id_path: `/dev/disk/by-id/virtio-${id.replaceAll("-", "").slice(0, 20)}`,
    kernel_path: `/dev/vd${name}`,
    export: {
      name: `migration-vol-${id}`,
      host: "127.0.0.1",
      port: 10809,
      verified_at: at,
      connections: 0,
      simulated: false
    },
    conditions: [ready()],
    next_actions: [],
    last_operation_id: null,
    retry_at: null,
    ...status
  },
  deletion: null,
  removed_at: null,
  ...over
})

export const A = "aaaaaaaa-0000-4000-8000-00000000000a"
export const B = "bbbbbbbb-0000-4000-8000-00000000000b"
