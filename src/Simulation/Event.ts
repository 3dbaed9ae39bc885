import type { Refusal } from "./Precondition.ts"
import { type Event, type Job, type State, type Volume, type Work } from "./State.ts"

/** The events that are remembered; older ones are forgotten first. */
const EVENTS_MAX = 4_000

/** `EventTypes`. Tags are not among what is recorded here. */
const ofWork = {
  create: { type: "VOLUME.CREATE", doing: "creating volume" },
  attach: { type: "VOLUME.ATTACH", doing: "attaching volume" },
  detach: { type: "VOLUME.DETACH", doing: "detaching volume" },
  resize: { type: "VOLUME.RESIZE", doing: "resizing volume" },
  update: { type: "VOLUME.UPDATE", doing: "updating volume" },
  destroy: { type: "VOLUME.DESTROY", doing: "destroying volume" },
  delete: { type: "VOLUME.DELETE", doing: "deleting volume" }
} as const
type Kind = keyof typeof ofWork

/** Something that is done to a volume, by whom. */
interface Deed {
  readonly kind: Kind
  readonly volume_id: string
  readonly vm_id: string | null
  readonly by: Event["by"]
}

type Stage = Pick<Event, "state" | "failed">
const CREATED: Stage = { state: "Created", failed: false }
const SCHEDULED: Stage = { state: "Scheduled", failed: false }
const STARTED: Stage = { state: "Started", failed: false }
const COMPLETED: Stage = { state: "Completed", failed: false }
const FAILED: Stage = { state: "Completed", failed: true }

const record = (state: State, deed: Deed, stage: Stage, parent: number | null): number => {
  state.event_count += 1
  const event: Event = {
    number: state.event_count,
    parent,
    at: state.now,
    type: ofWork[deed.kind].type,
    ...stage,
    by: deed.by,
    volume_id: deed.volume_id,
    description: describe(deed, stage)
  }
  state.events.push(event)
  if (state.events.length > EVENTS_MAX) state.events.splice(0, EVENTS_MAX / 2)
  return event.number
}

/** The command's own words while it is scheduled, `ActionEventInterceptor`'s from then on. */
const describe = ({ kind, vm_id, volume_id }: Deed, { failed, state }: Stage): string => {
  const { doing } = ofWork[kind]
  const vm = vm_id === null ? "" : ` VmId: ${vm_id}`
  switch (state) {
    case "Scheduled":
      return vm_id === null ? `${doing}: ${volume_id}` : `${doing}: ${volume_id} to vm: ${vm_id}`
    case "Created":
      return `Successfully created entity for ${doing}. Volume Id: ${volume_id}`
    case "Started":
      return `${doing}. Volume Id: ${volume_id}${vm}`
    case "Completed":
      return `${failed ? "Error while" : "Successfully completed"} ${doing}. Volume Id: ${volume_id}${vm}`
  }
}

const deedOf = (work: Work, by: Event["by"]): Deed | null => {
  if (!("volume_id" in work)) return null
  return { kind: work.kind, volume_id: work.volume_id, vm_id: work.kind === "attach" ? work.vm_id : null, by }
}

/** A job was accepted; answers the event that the later ones point to. */
export const scheduled = (state: State, work: Work, by: Event["by"]): number | null => {
  const deed = deedOf(work, by)
  if (deed === null) return null
  const created = deed.kind === "create" ? record(state, deed, CREATED, null) : null
  const first = record(state, deed, SCHEDULED, created)
  return created ?? first
}

export const started = (state: State, job: Job): void => ofJob(state, job, STARTED)

export const ended = (state: State, job: Job, done: boolean): void => ofJob(state, job, done ? COMPLETED : FAILED)

const ofJob = (state: State, job: Job, stage: Stage): void => {
  const deed = deedOf(job.work, job.by)
  if (deed !== null) record(state, deed, stage, job.event)
}

/** A whole action at once, as a person's click that takes no time here. */
export const whole = (state: State, deed: Deed): void => {
  const first = record(state, deed, SCHEDULED, null)
  record(state, deed, STARTED, first)
  record(state, deed, COMPLETED, first)
}

/** deleteVolume has no job, and so its end alone. */
export const deleted = (state: State, row: Volume, by: Event["by"], problem: Refusal | null): void => {
  const deed: Deed = { kind: "delete", volume_id: row.id, vm_id: null, by }
  record(state, deed, problem === null ? COMPLETED : FAILED, null)
}
