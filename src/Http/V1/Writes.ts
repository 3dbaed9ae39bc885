import { Effect } from "effect"
import * as Call from "../../../reconciler/Call.ts"
import { Reconciler } from "../../../reconciler/Reconciler.ts"
import type * as Api from "../../../schema/Api.ts"
import type { Declaration } from "../../../schema/Declaration.ts"
import type { VmId } from "../../../schema/Ids.ts"
import type { CallWish } from "../../../schema/Operation.ts"
import * as Answer from "../Answer.ts"
import { BODY_BYTES_MAX, refuse, type Request } from "../Request.ts"
import * as Asking from "./Asking.ts"
import * as Bodies from "./Bodies.ts"

/**
 * A volume that is on no VM. Asked for again with equal content while the first call is unfinished, it is the first one's:
 * a client that lost the answer asks again, and must not get two volumes (S10).
 */
export const createVolume = Effect.fnUntraced(function* (request: Request) {
  const { asked, sent } = yield* Effect.flatMap(request.json(BODY_BYTES_MAX), Bodies.create)
  const draft = Effect.gen(function* () {
    yield* Asking.noMaintenance
    const context = yield* Asking.contextOf(request)
    const content = contentOf(asked, context)
    const first = yield* Asking.unfinished("create", (call) =>
      Effect.match(Bodies.create(call.request), {
        onFailure: () => false,
        onSuccess: (earlier) => contentOf(earlier.asked, context) === content
      })
    )
    if (first !== null) return { changes: [], pruned: [], prune_kept: [], operation_id: first.id }
    const { name: cloudstack_name, ...volume } = asked
    return Asking.drafted(yield* Call.create({ ...volume, cloudstack_name }, sent, context))
  })
  return yield* Asking.commit(request, draft, 201)
})

/** What makes two creates ask for the same volume, after defaults and whatever the order of the keys. */
const contentOf = (
  { name, size, disk_offering_id, zone_id, metadata }: Bodies.Create,
  { defaults }: Call.Context
): string =>
  JSON.stringify([
    name,
    size,
    disk_offering_id ?? defaults.disk_offering_id,
    zone_id ?? defaults.zone_id,
    Object.entries(metadata).toSorted(([a], [b]) => (a < b ? -1 : 1))
  ])

const nothingMore = () => Effect.void

export const attachVolume = (rules: Asking.Rules) =>
  Effect.fnUntraced(function* (request: Request) {
    const volume = yield* Asking.volumeOf(request)
    const { asked, sent } = yield* Effect.flatMap(request.json(BODY_BYTES_MAX), Bodies.attach)
    yield* Asking.checkVm(asked.vm_id, "vm_id", rules)
    const wish = asked.vm_id === rules.appliance_vm_id ? onAppliance(rules) : onVm(asked.vm_id)
    const ask = (): Call.Ask => ({ type: "attach", vm_id: asked.vm_id, request: sent, wish })
    const unknown = Asking.unknownInPath(volume)
    return yield* Asking.store(request, { volume, unknown, ask, check: nothingMore }, 201)
  })

const onAppliance = ({ v1_attach_exports }: Asking.Rules): CallWish["spec"] => ({
  attached_to: "appliance",
  attach_as: "data",
  ...(v1_attach_exports ? { export_wanted: true } : {})
})

const onVm = (vm: VmId): CallWish["spec"] => ({ attached_to: vm, attach_as: "data" })

export const attachRoot = (rules: Asking.Rules) =>
  Effect.fnUntraced(function* (request: Request) {
    const volume = yield* Asking.volumeOf(request)
    const { asked, sent } = yield* Effect.flatMap(request.json(BODY_BYTES_MAX), Bodies.attach)
    const { vm_id } = asked
    if (vm_id === rules.appliance_vm_id) {
      const attach = `POST /api/v1/volumes/${volume}/attach`
      return yield* Asking.wrong(
        "vm_id",
        "expected another VM than the appliance",
        `attach it as a data disk: ${attach}`
      )
    }
    yield* Asking.checkVm(vm_id, "vm_id", rules)
    const wish = { attached_to: vm_id, attach_as: "root" } as const
    const ask = (): Call.Ask => ({ type: "attach", vm_id, request: sent, wish })
    const unknown = Asking.unknownInPath(volume)
    return yield* Asking.store(request, { volume, unknown, ask, check: nothingMore }, 201)
  })

/** Whether its export is ours to end nobody has said of a volume that is new to us: whoever takes it away says it. */
export const detachVolume = Effect.fnUntraced(function* (request: Request) {
  const volume = yield* Asking.volumeOf(request)
  const { sent } = yield* Effect.flatMap(request.optionalJson(BODY_BYTES_MAX), Bodies.none)
  const ask = (declared: Declaration | null): Call.Ask => {
    const undecided = (declared?.spec.export_wanted ?? null) === null
    const wish = { attached_to: "none", ...(undecided ? { export_wanted: false } : {}) } as const
    return { type: "detach", vm_id: null, request: sent, wish }
  }
  const unknown = Asking.unknownInPath(volume)
  return yield* Asking.store(request, { volume, unknown, ask, check: nothingMore }, 201)
})

/** The call is the consent: there is no grace. */
export const deleteVolume = (rules: Asking.Rules) =>
  Effect.fnUntraced(function* (request: Request) {
    const volume = yield* Asking.volumeOf(request)
    const { sent } = yield* Effect.flatMap(request.optionalJson(BODY_BYTES_MAX), Bodies.none)
    const ask = (): Call.Ask => ({ type: "delete", vm_id: null, request: sent, wish: {} })
    const unknown = Asking.unknownInPath(volume)
    return yield* Asking.store(request, { volume, unknown, ask, check: Asking.checkDelete(rules) }, 201)
  })

/** From the test VM back to the appliance. */
export const cleanupTestFailover = (rules: Asking.Rules) =>
  Effect.fnUntraced(function* (request: Request) {
    const { asked, sent } = yield* Effect.flatMap(request.json(BODY_BYTES_MAX), Bodies.cleanup)
    const { delete_vm, oma_vm_id, test_vm_id, volume_id: volume } = asked
    if (delete_vm) return yield* vmsStay
    if (oma_vm_id !== null && oma_vm_id !== rules.appliance_vm_id) {
      const problem = `expected this appliance, ${rules.appliance_vm_id}, found ${oma_vm_id}`
      return yield* Asking.wrong("oma_vm_id", problem, "ask the daemon on that appliance, or leave oma_vm_id out")
    }
    if (test_vm_id === rules.appliance_vm_id) {
      return yield* Asking.wrong("test_vm_id", "expected another VM than the appliance", null)
    }
    yield* Asking.checkVm(test_vm_id, "test_vm_id", rules)
    const ask = (): Call.Ask => ({ type: "cleanup", vm_id: test_vm_id, request: sent, wish: onAppliance(rules) })
    const unknown = Asking.unknownInBody(volume)
    const check = Asking.checkTestVm(test_vm_id, rules)
    return yield* Asking.store(request, { volume, unknown, ask, check }, 201)
  })

const vmsStay = refuse(
  "NOT_SUPPORTED",
  "delete_vm: volumed never deletes a VM",
  "leave delete_vm out, wait until the cleanup is completed, then destroy the VM in CloudStack"
)

export const createExport = Effect.fnUntraced(function* (request: Request) {
  const { asked, sent } = yield* Effect.flatMap(request.json(BODY_BYTES_MAX), Bodies.exportOf)
  const { read_only, volume_id: volume } = asked
  const beside = read_only === null ? {} : { read_only }
  const ask = (): Call.Ask => ({ type: "export", vm_id: null, request: sent, wish: { export_wanted: true }, beside })
  const unknown = Asking.unknownInBody(volume)
  return yield* Asking.store(request, { volume, unknown, ask, check: nothingMore }, 201)
})

export const deleteExport = Effect.fnUntraced(function* (request: Request) {
  const volume = yield* Asking.volumeOf(request)
  const { sent } = yield* Effect.flatMap(request.optionalJson(BODY_BYTES_MAX), Bodies.none)
  const ask = (): Call.Ask => ({ type: "unexport", vm_id: null, request: sent, wish: { export_wanted: false } })
  const unknown = Asking.unknownInPath(volume)
  return yield* Asking.store(request, { volume, unknown, ask, check: nothingMore }, 200)
})

/** A full pass now; answered when it has run. */
export const forceSync = Effect.fnUntraced(function* () {
  const { sync } = yield* Reconciler
  return Answer.ok((yield* sync) satisfies Api.SyncAnswer)
})
