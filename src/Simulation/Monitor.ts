import { remember, type State, type Violation } from "./State.ts"

/** A disk must have been visible in the guest this long before a call is blamed for overlooking it (S23's window, doubled). */
const VISIBLE_MS = 2_000

const TAGGING = ["createTags", "deleteTags"]
const NEVER_ON_ROOT = ["attachVolume", "detachVolume", "deleteVolume", "destroyVolume", "resizeVolume", "updateVolume"]
const DELETING = ["deleteVolume", "destroyVolume"]

/**
 * Look at a mutating call before it is carried out, and record what no controller should ever have asked for, whether
 * CloudStack would refuse it or not. Operators (`act`) are not watched: what they do is theirs to answer for.
 */
export const watch = (state: State, command: string, volumeId: string | null, vmId: string | null): void => {
  remember(state, { at: state.now, command, volume_id: volumeId, vm_id: vmId })
  if (volumeId === null) return
  const blame = (kind: string, message: string) =>
    state.violations.push({ at: state.now, kind, command, volume_id: volumeId, vm_id: vmId, message })
  for (const [kind, message] of [
    ["root_mutation", onRoot(state, command, volumeId)],
    ["two_unresolved", besideAnother(state, command, volumeId)],
    ["detach_while_served", whileServed(state, command, volumeId)],
    ["detach_while_open", whileOpen(state, command, volumeId)],
    ["attach_while_held", whileHeld(state, command, volumeId)],
    ["delete_attached", ofAttached(state, command, volumeId)]
  ] as const satisfies ReadonlyArray<readonly [Violation["kind"], string | null]>) {
    if (message !== null) blame(kind, message)
  }
}

/** S5, with its exception: a ROOT that this API's own attach made may be detached from that same Stopped VM. */
const onRoot = (state: State, command: string, volumeId: string): string | null => {
  const row = state.volumes.get(volumeId)
  if (row?.type !== "ROOT" || !NEVER_ON_ROOT.includes(command)) return null
  const stopped = row.vm_id !== null && state.vms.get(row.vm_id)?.state === "Stopped"
  if (command === "detachVolume" && stopped && row.root_of === row.vm_id) return null
  return `${row.name} is the ROOT volume of ${row.vm_id}`
}

/** S2. Writing tags takes two calls by nature, which may overlap each other but nothing else. */
const besideAnother = (state: State, command: string, volumeId: string): string | null => {
  const tagging = TAGGING.includes(command)
  const clashes = (other: string) => !(tagging && TAGGING.includes(other))
  for (const id of state.busy.get(volumeId) ?? []) {
    const job = state.jobs.get(id)
    if (job?.by !== "api" || !clashes(job.command)) continue
    const message = `${job.command} job ${job.id} is still running`
    if (job.faults.lost === null) return message
    // A lost job that works on shows nowhere: nobody can be blamed for not waiting for it.
    state.incidents.push({ at: state.now, kind: "beside_lost_job", command, volume_id: volumeId, vm_id: null, message })
  }
  for (const { what } of state.due) {
    if (what.kind !== "arrives" || what.call.volume_id !== volumeId || !clashes(what.call.command)) continue
    if (what.call.expires_at !== null && what.call.expires_at <= state.now) continue
    return `an unanswered ${what.call.command} is still on its way`
  }
  return null
}

/** S11, where somebody wired the NBD server in. */
const whileServed = (state: State, command: string, volumeId: string): string | null => {
  if (command !== "detachVolume" && !DELETING.includes(command)) return null
  const row = state.volumes.get(volumeId)
  const here = row?.vm_id === state.config.appliance_vm_id
  return here && state.served(volumeId) ? "its export is being served" : null
}

/** S11: nothing of CloudStack's keeps a disk from being pulled under whoever has it open (reference: experiment 31). */
const whileOpen = (state: State, command: string, volumeId: string): string | null => {
  const here = state.volumes.get(volumeId)?.vm_id === state.config.appliance_vm_id
  return command === "detachVolume" && here && state.opened(volumeId) ? "somebody has its disk open" : null
}

/** S1 as far as a controller can see: CloudStack says detached, the appliance's guest plainly has the disk. */
const whileHeld = (state: State, command: string, volumeId: string): string | null => {
  if (command !== "attachVolume" || state.volumes.get(volumeId)?.vm_id !== null) return null
  return heldByAppliance(state, volumeId)
}

const heldByAppliance = (state: State, volumeId: string): string | null => {
  const disk = state.guests.get(state.config.appliance_vm_id)?.find((one) => one.volume_id === volumeId)
  if (disk === undefined || state.now - disk.appeared_at < VISIBLE_MS) return null
  return `the appliance's guest still has it as ${disk.kernel_name}`
}

/** S6. */
const ofAttached = (state: State, command: string, volumeId: string): string | null => {
  if (!DELETING.includes(command)) return null
  const row = state.volumes.get(volumeId)
  return row?.vm_id ? `it is attached to ${row.vm_id}` : heldByAppliance(state, volumeId)
}
