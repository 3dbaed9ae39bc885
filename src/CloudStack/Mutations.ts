import { Clock, type Context, Effect } from "effect"
import type { Accepted, CloudStack, CloudStackRead } from "../../reconciler/CloudStack.ts"
import type { FreshRead, Intent } from "../../reconciler/Intent.ts"
import type { Tag } from "../../schema/Action.ts"
import * as Wire from "../../schema/CloudStack.ts"
import { OutcomeUnknown, PreconditionLost } from "../../schema/Errors.ts"
import type { OfferingId, VolumeId } from "../../schema/Ids.ts"
import type { CloudVolume } from "../../schema/Inventory.ts"
import type { Mutate, MutatingCommand, MutationFailed } from "./Client.ts"
import type { CustomIds } from "./CustomIds.ts"
import type { Parameters } from "./Signature.ts"

/** How old a reading may be when the call it allows leaves, ms (S4). */
const READ_AGE_MS = 1_000
/** deleteTags is a job of its own; its end is looked for so often, this far apart (ms), before it counts as unknown. */
const TAG_JOB_POLLS = 20
const TAG_JOB_PAUSE_MS = 500
/** An offering's kind never changes; new offerings come now and then. */
const OFFERINGS_TTL = "1 hour"

/**
 * The mutations of the port, each guarded a second time against what was read of the volume, whatever a planner thought
 * (S4, S5). `reads` is for tags, which take two calls, and for what an offering allows.
 */
export const make = Effect.fn("CloudStack.mutations")(function* (
  mutate: Mutate,
  reads: Context.Tag.Service<CloudStackRead>,
  customIds: CustomIds,
  projectId: string | null
) {
  const [cached, forget] = yield* Effect.cachedInvalidateWithTTL(reads.offerings, OFFERINGS_TTL)
  const offerings = Effect.tapError(cached, () => forget)
  /** CloudStack refuses a size beside an offering that has one of its own. An offering we cannot read is sent as asked. */
  const sizeOn = (offering: OfferingId, gib: number) =>
    offerings.pipe(
      Effect.map((all) => (all.find(({ id }) => id === offering)?.customized === false ? {} : { size: String(gib) })),
      Effect.orElseSucceed(() => ({ size: String(gib) }))
    )
  const queue = (command: MutatingCommand, id: VolumeId, parameters: Parameters, guard: Guard) =>
    Effect.map(
      mutate(command, parameters, guard, (body) => Wire.jobAnswer(command, body)),
      ({ answer, submitted_at, expires_at }): Accepted => ({
        job_id: answer.jobid,
        volume_id: id,
        submitted_at,
        expires_at
      })
    )

  return {
    create: Effect.fn("CloudStack.create")(function* ({ action }) {
      const parameters = {
        name: action.cloudstack_name,
        diskofferingid: action.disk_offering_id,
        zoneid: action.zone_id,
        ...(yield* sizeOn(action.disk_offering_id, action.size_gib)),
        ...(projectId === null ? {} : { projectid: projectId }),
        ...(action.custom_id === null ? {} : { customid: action.custom_id })
      }
      const { answer, submitted_at, expires_at } = yield* mutate(
        "createVolume",
        parameters,
        Effect.void,
        Wire.createAnswer
      ).pipe(Effect.catchIf(deniesCustomId, () => Effect.andThen(customIds.refused, toBePlain)))
      if (action.custom_id !== null && answer.id !== action.custom_id) {
        yield* Effect.logWarning("CloudStack chose an id of its own", { asked: action.custom_id, got: answer.id })
        yield* customIds.refused
      }
      return { job_id: answer.jobid, volume_id: answer.id, submitted_at, expires_at }
    }),

    attach: Effect.fn("CloudStack.attach")(function* ({ action }, read) {
      const guard = guarded(
        action.volume_id,
        read,
        (volume) => notDataDisk(volume) ?? (volume.vm_id === null ? null : `it is on VM ${volume.vm_id}`)
      )
      const device = action.as === "root" ? { deviceid: "0" } : {}
      const parameters = { id: action.volume_id, virtualmachineid: action.vm_id, ...device }
      return yield* queue("attachVolume", action.volume_id, parameters, guard)
    }),

    // The id alone: together with a VM or device CloudStack refuses it, and no form of the call names the VM it must be on.
    detach: Effect.fn("CloudStack.detach")(function* (intent, read) {
      const { volume_id } = intent.action
      const guard = guarded(volume_id, read, (volume) => notDetachable(intent, volume))
      return yield* queue("detachVolume", volume_id, { id: volume_id }, guard)
    }),

    delete: Effect.fn("CloudStack.delete")(function* ({ action }, read) {
      const guard = guarded(
        action.volume_id,
        read,
        (volume) => notDataDisk(volume) ?? (volume.vm_id === null ? null : `it is on VM ${volume.vm_id}`)
      )
      const { submitted_at, expires_at } = yield* mutate(
        "deleteVolume",
        { id: action.volume_id },
        guard,
        Wire.deleteAnswer
      )
      return { job_id: null, volume_id: action.volume_id, submitted_at, expires_at }
    }),

    tag: Effect.fn("CloudStack.tag")(function* ({ action }, read) {
      const standing = standingTags(action, read.volume)
      if (standing.length === 0) return yield* createTags(queue, action, read)
      const parameters = { ...resource(action.volume_id), ...numbered(standing) }
      const deleted = yield* queue("deleteTags", action.volume_id, parameters, dataDisk(action.volume_id, read))
      if (Object.keys(action.set).length === 0) return deleted
      yield* ended(reads, deleted)
      const again = yield* readAgain(reads, deleted, action.volume_id)
      // Refused or not, tags are gone by now: not even a refusal may be taken for "nothing happened".
      return yield* Effect.mapError(createTags(queue, action, again), (cause) =>
        cause._tag === "OutcomeUnknown" ? cause : halfDone(deleted, cause.message, cause)
      )
    })
  } satisfies Context.Tag.Service<CloudStack> as Context.Tag.Service<CloudStack>
})

/** `UUIDManagerImpl.checkUuid`, asked before the row is made: nothing was, so that the same may be asked for without. */
const deniesCustomId = (failure: MutationFailed): boolean =>
  failure._tag === "CloudStackRefused" &&
  failure.code === Wire.ApiErrorCode.ACCOUNT_ERROR &&
  /create\/update custom id/i.test(failure.text)

const toBePlain = Effect.suspend(
  () => new PreconditionLost({ detail: "CloudStack lets this account choose no ids; planned anew without one" })
)

type Queue = (
  command: MutatingCommand,
  id: VolumeId,
  parameters: Parameters,
  guard: Guard
) => ReturnType<Context.Tag.Service<CloudStack>["attach"]>

type Guard = Effect.Effect<void, PreconditionLost>

/** Right before the call leaves: the reading is of this volume, a second old at most, idle, and without `objection`. */
const guarded = (id: VolumeId, read: FreshRead, objection: (volume: CloudVolume) => string | null): Guard =>
  Effect.gen(function* () {
    const age = (yield* Clock.currentTimeMillis) - read.started_at
    const { volume } = read
    const problem =
      age < 0 || age > READ_AGE_MS
        ? `it was read ${age} ms before the call, which is not within ${READ_AGE_MS} ms`
        : volume.id !== id
          ? `what was read is volume ${volume.id}`
          : volume.job_id !== null
            ? `job ${volume.job_id} is pending on it`
            : objection(volume)
    if (problem !== null) return yield* new PreconditionLost({ detail: `volume ${id}: ${problem}` })
  })

const dataDisk = (id: VolumeId, read: FreshRead) => guarded(id, read, notDataDisk)

const notDataDisk = (volume: CloudVolume): string | null =>
  volume.type === "DATADISK" ? null : `its type is ${volume.type}, not DATADISK`

/** S5's one exception: a ROOT volume that our own settled root attach made one, while its VM is Stopped. */
const notDetachable = ({ action }: Intent<"Detach">, volume: CloudVolume): string | null => {
  if (volume.vm_id !== action.vm_id) return `it is on ${volume.vm_id ?? "no VM"}, not on VM ${action.vm_id}`
  if (!action.root) return notDataDisk(volume)
  if (volume.type !== "ROOT") return `its type is ${volume.type}, not ROOT`
  return volume.vm_state === "Stopped" ? null : `VM ${action.vm_id} is ${volume.vm_state ?? "in an unknown state"}`
}

const resource = (id: VolumeId) => ({ resourceids: id, resourcetype: "Volume" })

interface TagRow {
  readonly key: string
  readonly value: string
}

const numbered = (tags: ReadonlyArray<TagRow>): Record<string, string> =>
  Object.fromEntries(
    tags.flatMap(({ key, value }, n) => [
      [`tags[${n}].key`, key],
      ...(value === "" ? [] : [[`tags[${n}].value`, value]])
    ])
  )

/** Of the keys to replace, those that are there, as they are there: deleteTags fails where it finds nothing. */
const standingTags = (action: Tag, volume: CloudVolume): ReadonlyArray<TagRow> => {
  const replaced = new Set(action.replace.map((key) => key.toLowerCase()))
  return volume.tags.filter(({ key }) => replaced.has(key.toLowerCase()))
}

const createTags = (queue: Queue, action: Tag, read: FreshRead) =>
  queue(
    "createTags",
    action.volume_id,
    {
      ...resource(action.volume_id),
      ...numbered(Object.entries(action.set).map(([key, value]) => ({ key, value })))
    },
    dataDisk(action.volume_id, read)
  )

/** Waits for the job of a call that had its effect: what fails from here on leaves the outcome of the whole unknown. */
const ended = (reads: Context.Tag.Service<CloudStackRead>, deleted: Accepted) =>
  Effect.gen(function* () {
    for (let poll = 0; poll < TAG_JOB_POLLS; poll++) {
      const job = yield* lookAt(reads, deleted)
      if (job.status === "succeeded") return
      if (job.status !== "pending") return yield* halfDone(deleted, `deleteTags ended as ${job.status}: ${job.text}`)
      yield* Effect.sleep(TAG_JOB_PAUSE_MS)
    }
    return yield* halfDone(deleted, `deleteTags has not ended after ${TAG_JOB_POLLS} looks`)
  })

const lookAt = (reads: Context.Tag.Service<CloudStackRead>, { job_id, ...deleted }: Accepted) =>
  job_id === null
    ? Effect.fail(halfDone({ job_id, ...deleted }, "deleteTags gave no job"))
    : Effect.mapError(reads.job(job_id), (cause) => halfDone({ job_id, ...deleted }, cause.message, cause))

/** The first call and its wait took longer than a reading may be old. */
const readAgain = (reads: Context.Tag.Service<CloudStackRead>, deleted: Accepted, id: VolumeId) =>
  reads.volumesById([id]).pipe(
    Effect.mapError((cause) => halfDone(deleted, cause.message, cause)),
    Effect.flatMap(({ started_at, found: [volume] }) =>
      volume === undefined
        ? Effect.fail(halfDone(deleted, "the volume is not listed"))
        : Effect.succeed({ started_at, volume })
    )
  )

const halfDone = ({ expires_at }: Accepted, detail: string, cause?: unknown) =>
  new OutcomeUnknown({ command: "createTags", detail: `after deleteTags: ${detail}`, expires_at, cause })
