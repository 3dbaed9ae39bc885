/** Version 1 calls on a volume: whom one is about, what speaks against it, and how it is stored and answered. */
import { randomUUID } from "node:crypto"
import { Clock, Effect, Option, Schema } from "effect"
import * as Call from "../../../reconciler/Call.ts"
import { CloudStackRead } from "../../../reconciler/CloudStack.ts"
import { Reconciler } from "../../../reconciler/Reconciler.ts"
import { Store } from "../../../reconciler/Store.ts"
import type { Declaration } from "../../../schema/Declaration.ts"
import { Refused } from "../../../schema/Document.ts"
import { OperationId, type VmId, VolumeId } from "../../../schema/Ids.ts"
import type { CloudVolume } from "../../../schema/Inventory.ts"
import { hasEnded, type Operation } from "../../../schema/Operation.ts"
import type { Settings } from "../../../schema/Settings.ts"
import * as Answer from "../Answer.ts"
import type { Failure } from "../ErrorAnswer.ts"
import { refuse, type Request } from "../Request.ts"
import { type Drafted, single, Writes } from "../Writes.ts"

export type Rules = Pick<Settings, "appliance_vm_id" | "v1_attach_exports" | "limits">

/** What a call is about, as far as it is known when it is decided. */
interface Subject {
  readonly volume: VolumeId
  /** Null: nobody declared it. */
  readonly declared: Declaration | null
  /** CloudStack's row, read for this call when it is first asked for; null when CloudStack shows none. */
  readonly read: Effect.Effect<CloudVolume | null, Failure>
}

interface Asking<R> {
  readonly volume: VolumeId
  /** What the answer is when neither anybody's declaration nor CloudStack knows the volume. */
  readonly unknown: Failure
  readonly ask: (declared: Declaration | null) => Call.Ask
  /** What speaks against this call besides what speaks against all. */
  readonly check: (subject: Subject) => Effect.Effect<void, Failure, R>
}

/** Store the call, and answer it with `status` and the operation. */
export const store = <R>(request: Request, asking: Asking<R>, status: 200 | 201) =>
  Effect.gen(function* () {
    const cloudstack = yield* CloudStackRead
    const read = yield* Effect.cached(Effect.provideService(readById(asking.volume), CloudStackRead, cloudstack))
    return yield* commit(request, drafting(request, asking, read), status)
  })

const drafting = <R>(request: Request, { volume, ask, check, unknown }: Asking<R>, read: Subject["read"]) =>
  Effect.gen(function* () {
    yield* noMaintenance
    const context = yield* contextOf(request)
    const declared = yield* declarationOf(volume)
    yield* checkType({ volume, declared, read })
    yield* check({ volume, declared, read })
    if (declared !== null) return drafted(yield* Call.ask(declared, ask(declared), context))
    const row = yield* read
    return row === null ? yield* unknown : drafted(yield* Call.askUnknown(row, ask(null), context))
  })

/** A draft, and the operation that it is answered with. */
interface CallDraft extends Drafted {
  readonly operation_id: OperationId
}

export const drafted = ({ call, change }: Call.Asked): CallDraft => ({
  ...single(change),
  calls: [call],
  operation_id: call.id
})

export const commit = <R>(request: Request, draft: Effect.Effect<CallDraft, Failure, R>, status: 200 | 201) =>
  Effect.gen(function* () {
    const writes = yield* Writes
    const { draft: stored } = yield* writes.commit(request, draft, {
      retry: true,
      answer: ({ operation_id: id }) => ({ status, response: { kind: "operation", id } })
    })
    const operation = yield* Effect.flatMap(Store, (store) => store.operation(stored.operation_id))
    const found = yield* Effect.orDie(operation)
    return { status, body: Answer.accepted(found) } satisfies Answer.Answer
  })

export const contextOf = (request: Request) =>
  Effect.gen(function* () {
    const writes = yield* Writes
    const newOperationId = () => OperationId.make(`op-${randomUUID()}`)
    return { ...(yield* writes.context(request)), newOperationId } satisfies Call.Context as Call.Context
  })

/** Nothing is asked for while a maintenance goes on: nothing would be done, and the call would fail at its deadline. */
export const noMaintenance = Effect.gen(function* () {
  const maintenance = yield* Effect.flatMap(Store, (store) => store.maintenance)
  if (maintenance === null) return
  const { by, reason, until } = maintenance
  const end = until === null ? "" : ` until ${until}`
  return yield* refuse(
    "MAINTENANCE",
    `a maintenance by ${by} goes on${end}: ${reason}`,
    "repeat the call when it is over"
  )
})

/** The one that is bound to the volume, else one that would adopt it. */
const declarationOf = (volume: VolumeId) =>
  Effect.gen(function* () {
    const declarations = yield* Effect.flatMap(Store, (store) => store.declarations)
    const bound = declarations.find(({ binding }) => binding.volume_id === volume)
    return bound ?? declarations.find(({ spec }) => spec.volume_id === volume) ?? null
  })

export const readById = (volume: VolumeId) =>
  Effect.gen(function* () {
    const cloudstack = yield* CloudStackRead
    const { absent, found, unresolved } = yield* cloudstack.volumesById([volume])
    const row = found.find(({ id }) => id === volume) ?? null
    if (row !== null || absent.includes(volume) || unresolved.includes(volume)) return row
    return yield* refuse("CLOUDSTACK_UNAVAILABLE", `CloudStack's row of volume ${volume} could not be read`)
  })

/** Only a data disk may be asked for, and what was attached as a root volume by us (S5). */
const checkType = ({ volume, declared, read }: Subject) =>
  Effect.gen(function* () {
    const seen = declared === null ? null : yield* seenRow(volume)
    if (declared !== null && (seen === null || isOurs(seen, declared))) return
    // What was seen last may be over: nobody is turned away for that.
    const row = yield* read
    if (row === null || isOurs(row, declared)) return
    const problem = `volume ${volume} is of type ${row.type}: expected a data disk`
    const suggestion = "volumed touches no other volume; work on it in CloudStack directly"
    return yield* wrong(null, problem, suggestion)
  })

const isOurs = (row: CloudVolume, declared: Declaration | null): boolean => {
  if (row.type === "DATADISK") return true
  const { attachment } = declared?.binding ?? { attachment: null }
  const attached = attachment?.as === "root" && attachment.settled && attachment.vm_id === row.vm_id
  return attached || (declared?.spec.attach_as === "root" && declared.spec.attached_to === row.vm_id)
}

/** As the newest observation shows it. */
const seenRow = (volume: VolumeId) =>
  Effect.map(
    Effect.flatMap(Reconciler, ({ view }) => view),
    ({ inventory }) =>
      inventory === null || inventory.cloud._tag === "Unread"
        ? null
        : (inventory.cloud.value.volumes.find(({ id }) => id === volume) ?? null)
  )

/** The VM exists and this account sees it. The appliance is not asked for: volumed is at home there. */
export const checkVm = (vm: VmId, field: string, { appliance_vm_id }: Rules) =>
  Effect.gen(function* () {
    if (vm === appliance_vm_id) return
    const cloudstack = yield* CloudStackRead
    const { found } = yield* cloudstack.virtualMachines([vm])
    if (found.some(({ id }) => id === vm)) return
    return yield* wrong(
      field,
      `CloudStack shows no VM ${vm}`,
      "list what there is with CloudStack's listVirtualMachines"
    )
  })

/** Not where somebody else's data may be in use; and no more than the budget of an hour (S6, S17). */
export const checkDelete =
  ({ appliance_vm_id, limits }: Rules) =>
  ({ volume, declared, read }: Subject) =>
    Effect.gen(function* () {
      const row = yield* read
      const coming = row !== null && row.vm_id === null ? yield* vmToCome(declared) : null
      const place = row?.vm_id ?? coming
      if (place !== null && place !== appliance_vm_id) {
        const detach = `POST /api/v1/volumes/${volume}/detach`
        const where = coming === null ? "on" : "on its way to"
        return yield* refuse("CONFLICT", `volume ${volume} is ${where} VM ${place}`, `detach it first: ${detach}`)
      }
      const spent = (yield* deletesOfTheHour) + (yield* deletesToCome)
      if (spent < limits.destructive_per_hour) return
      return yield* refuse(
        "DELETION_BUDGET",
        `CloudStack API error 432: ${spent} deletions within an hour, of at most ${limits.destructive_per_hour}`,
        "repeat the call later, or delete by declaration and approve what is held"
      )
    })

/** A cleanup that comes late must not take the disk of a newer failover away. */
export const checkTestVm =
  (test_vm_id: string, { appliance_vm_id }: Rules) =>
  ({ volume, read }: Subject) =>
    Effect.gen(function* () {
      const vm = (yield* read)?.vm_id ?? null
      if (vm === null || vm === test_vm_id || vm === appliance_vm_id) return
      const detach = `POST /api/v1/volumes/${volume}/detach`
      return yield* refuse(
        "CONFLICT",
        `volume ${volume} is on VM ${vm}, not on the test VM ${test_vm_id}`,
        `name that VM, or detach it from wherever it is: ${detach}`
      )
    })

/** An attach that is on its way would be overtaken. */
const vmToCome = (declared: Declaration | null) =>
  Effect.gen(function* () {
    const { attached_to } = declared?.spec ?? { attached_to: null }
    if (declared === null || attached_to === null || attached_to === "appliance" || attached_to === "none") return null
    return (yield* isHeldAway(declared)) ? null : attached_to
  })

/** It was on the VM where it is declared, went away from there, and nobody is to bring it back. */
const isHeldAway = ({ binding: { attachment }, spec, uid }: Declaration) =>
  Effect.gen(function* () {
    if (spec.on_drift !== "hold" || attachment?.as !== "data" || attachment.vm_id !== spec.attached_to) return false
    const store = yield* Store
    const open = [...(yield* store.calls).filter((call) => !hasEnded(call)), ...(yield* store.unresolved)]
    return !open.some((one) => one.uid === uid && (one.type === "attach" || one.type === "cleanup"))
  })

const HOUR_MS = 3_600_000

const deletesOfTheHour = Effect.gen(function* () {
  const store = yield* Store
  return yield* store.destructiveSince((yield* Clock.currentTimeMillis) - HOUR_MS)
})

/** Calls that were accepted and whose delete, which is what counts, has not begun. */
const deletesToCome = Effect.gen(function* () {
  const store = yield* Store
  const open = (yield* store.calls).filter((call) => call.type === "delete" && !hasEnded(call))
  const begun = yield* Effect.filter(open, ({ id }) =>
    Effect.map(store.operations({ parent_id: id, type: "delete", limit: 1 }), ({ items }) => items.length > 0)
  )
  return open.length - begun.length
})

/** The call of this type that has not ended and that `same` recognises. */
export const unfinished = <E>(type: Call.CallType, same: (call: Operation) => Effect.Effect<boolean, E>) =>
  Effect.gen(function* () {
    const { calls } = yield* Store
    const open = (yield* calls).filter((call) => call.type === type && !hasEnded(call))
    return Option.getOrNull(yield* Effect.findFirst(open, same))
  })

/** A value that CloudStack would not take. */
export const wrong = (field: string | null, problem: string, suggestion: string | null) =>
  new Refused({
    code: "CLOUDSTACK_INVALID_PARAMETER",
    error: field === null ? problem : `${field}: ${problem}`,
    suggestion,
    errors: [{ index: null, name: null, field, problem }]
  })

const noVolume = (shown: string) =>
  refuse(
    "NOT_FOUND",
    `CloudStack API error 431: there is no volume ${shown}`,
    "GET /api/v1/volumes lists what there is"
  )

/** Of the path. A malformed id is nobody's. */
export const volumeOf = (request: Request) => {
  const id = request.path["id"] ?? ""
  return Schema.is(VolumeId)(id) ? Effect.succeed(id) : noVolume("of this id")
}

export const unknownInPath = (volume: VolumeId) => noVolume(volume)

export const unknownInBody = (volume: VolumeId) => wrong("volume_id", `there is no volume ${volume}`, null)
