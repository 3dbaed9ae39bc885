import { Cause, Clock, Effect } from "effect"
import type { Declaration } from "../schema/Declaration.ts"
import type { CloudStackUnavailable } from "../schema/Errors.ts"
import { exportNameOf, type Uid, type VmId, type VolumeId } from "../schema/Ids.ts"
import {
  type CloudReading,
  type GuestReading,
  type Inventory,
  known,
  type NbdReading,
  type Source,
  type VirtualMachine,
  unread
} from "../schema/Inventory.ts"
import type { Operation } from "../schema/Operation.ts"
import { type ById, CloudStackRead, type Listing } from "./CloudStack.ts"
import { Devices } from "./Devices.ts"
import { Nbd } from "./Nbd.ts"

/** A local source that does not answer within this is unread; a hung NBD server must not stop the loop (N12, L5). */
const LOCAL_TIMEOUT = "20 seconds"
/** A whole listing of 10,000 volumes takes 20 pages; past this the cloud is unread for this pass. */
const CLOUD_TIMEOUT = "120 seconds"

export interface Scope {
  /** Null observes everything; else what concerns these declarations, read by id. */
  readonly only: ReadonlySet<Uid> | null
  readonly appliance_vm_id: VmId
  readonly declarations: ReadonlyArray<Declaration>
  readonly operations: ReadonlyArray<Operation>
  /** The VMs of an earlier observation: good enough for a few seconds of polling, for CloudStack checks them again. */
  readonly machines: Machines | null
}

export interface Machines {
  readonly started_at: number
  readonly found: ReadonlyArray<VirtualMachine>
}

/** How long VMs read before serve volumes in flight, ms. */
const MACHINES_MS = 10_000

/** Read the three sources side by side. Never fails: a source that cannot be read says so in its place. */
export const make = Effect.fn("Observe.make")(function* (scope: Scope) {
  const [cloud, guest, nbd] = yield* Effect.all([observeCloud(scope), observeGuest, observeNbd(scope)], {
    concurrency: "unbounded"
  })
  return { appliance_vm_id: scope.appliance_vm_id, cloud, guest, nbd } satisfies Inventory as Inventory
})

const selected = (scope: Scope, declaration: Declaration): boolean =>
  scope.only === null || scope.only.has(declaration.uid)

/** The volume a declaration is about: bound, or named to be adopted. */
export const subject = (declaration: Declaration): VolumeId | null =>
  declaration.binding.volume_id ?? declaration.spec.volume_id

/**
 * True when only a whole listing can tell what to do: something is to be created (or was, and its answer is missing),
 * something may be destroyed, which suspicion must be able to stop (S17), or a VM's root disk must be known.
 */
export const needsListing = (declarations: ReadonlyArray<Declaration>, operations: ReadonlyArray<Operation>): boolean =>
  declarations.some(
    ({ deletion, spec, binding }) =>
      (binding.volume_id === null && spec.volume_id === null && deletion === null && spec.paused === null) ||
      deletion?.policy === "delete" ||
      binding.drift_since !== null ||
      (spec.attach_as === "root" && binding.attachment === null)
  ) || operations.some((o) => o.type === "create" && o.volume_id === "" && chosenId(o) === null)

/** The id that an unanswered create gives its volume, if it was chosen: whether it was made is asked by that id (S9). */
const chosenId = ({ request, volume_id }: Operation): VolumeId | null => {
  const id = request["custom_id"]
  return volume_id === "" && typeof id === "string" ? (id as VolumeId) : null
}

/** Something is to be created, so that it matters whether its id may be chosen. */
const isWanting = ({ binding, deletion, spec }: Declaration): boolean => {
  if (deletion !== null) return false
  if (binding.volume_id === null) return spec.volume_id === null
  return spec.on_loss === "recreate" && binding.loss !== null && binding.loss.proven_at !== null
}

const observeCloud = Effect.fn("Observe.cloud")(function* (scope: Scope) {
  const cloudstack = yield* CloudStackRead
  const startedAt = yield* Clock.currentTimeMillis
  const declarations = scope.declarations.filter((d) => selected(scope, d))
  const operations = scope.operations.filter((o) => scope.only === null || scope.only.has(o.uid))
  const wanted = new Set<VolumeId>()
  for (const declaration of declarations) {
    const id = subject(declaration)
    if (id !== null) wanted.add(id)
  }
  for (const operation of operations) {
    const id = operation.volume_id === "" ? chosenId(operation) : (operation.volume_id as VolumeId)
    if (id !== null) wanted.add(id)
  }
  const whole = scope.only === null || needsListing(declarations, operations)
  return yield* (whole ? readAll(wanted) : readSome(wanted)).pipe(
    Effect.flatMap((read) => withMachines(cloudstack, scope, declarations, wanted, read)),
    Effect.timeoutFail({ duration: CLOUD_TIMEOUT, onTimeout: () => "CloudStack did not answer in time" }),
    Effect.match({
      onFailure: (error): Source<CloudReading> =>
        typeof error === "string"
          ? unread(startedAt, "timeout", error)
          : unread(startedAt, error.kind, `${error.command}: ${error.detail}`),
      onSuccess: (source) => source
    }),
    orBroken(startedAt)
  )
})

/** A bug in one port must not stop what needs the others (P5, S19). */
const orBroken =
  (startedAt: number) =>
  <A, R>(observed: Effect.Effect<Source<A>, never, R>): Effect.Effect<Source<A>, never, R> =>
    Effect.catchAllCause(observed, (cause) =>
      Effect.as(Effect.logError("a source could not be read", cause), unread(startedAt, "defect", Cause.pretty(cause)))
    )

interface Read {
  readonly scope: "all" | "some"
  readonly started_at: number
  readonly complete: boolean
  readonly note: string | null
  readonly ambiguous: ReadonlyArray<VolumeId>
  readonly volumes: Listing["volumes"]
  /** Not listed and then read by id. */
  readonly by_id: ById | null
}

/** A listing proves presence, never absence: what it lacks is read by id. */
const readAll = Effect.fn(function* (wanted: ReadonlySet<VolumeId>) {
  const cloudstack = yield* CloudStackRead
  const listing = yield* cloudstack.volumes
  const listed = new Set(listing.volumes.map((v) => v.id))
  const missing = [...wanted].filter((id) => !listed.has(id))
  const byId = missing.length === 0 ? null : yield* cloudstack.volumesById(missing)
  const volumes = byId === null || byId.found.length === 0 ? listing.volumes : [...listing.volumes, ...byId.found]
  return { scope: "all", ...listing, volumes, by_id: byId } satisfies Read as Read
})

const readSome = Effect.fn(function* (wanted: ReadonlySet<VolumeId>) {
  const cloudstack = yield* CloudStackRead
  const startedAt = yield* Clock.currentTimeMillis
  const byId: ById =
    wanted.size === 0
      ? { started_at: startedAt, found: [], absent: [], unresolved: [] }
      : yield* cloudstack.volumesById([...wanted])
  return {
    scope: "some",
    started_at: byId.started_at,
    complete: true,
    note: null,
    ambiguous: [],
    volumes: byId.found,
    by_id: byId
  } satisfies Read as Read
})

/**
 * Look up just the VMs a decision may hang on: those a volume is wanted on and is not, and the appliance itself where
 * something is not there, for absence is believed only beside a visible appliance.
 */
const withMachines = (
  cloudstack: CloudStackRead["Type"],
  scope: Scope,
  declarations: ReadonlyArray<Declaration>,
  wanted: ReadonlySet<VolumeId>,
  read: Read
): Effect.Effect<Source<CloudReading>, CloudStackUnavailable> =>
  Effect.gen(function* () {
    const rows = new Map(read.volumes.filter((v) => wanted.has(v.id)).map((v) => [v.id, v]))
    const machines = new Set<VmId>()
    for (const { spec, binding, deletion } of declarations) {
      const to = spec.attached_to
      if (to === null || to === "none" || deletion !== null) continue
      const vm = to === "appliance" ? scope.appliance_vm_id : to
      const id = binding.volume_id ?? spec.volume_id
      if (id === null || rows.get(id)?.vm_id !== vm) machines.add(vm)
    }
    const absent = read.by_id?.absent ?? []
    const unresolved = read.by_id?.unresolved ?? []
    if (absent.length + unresolved.length > 0) machines.add(scope.appliance_vm_id)
    const vms = recent(scope, read, machines) ?? (yield* cloudstack.virtualMachines([...machines].toSorted()))
    const applianceVisible = vms.found.some((vm) => vm.id === scope.appliance_vm_id)
    return known(
      read.started_at,
      {
        scope: read.scope,
        volumes: read.volumes,
        ambiguous: read.ambiguous,
        absent: applianceVisible ? absent : [],
        unresolved: applianceVisible ? unresolved : [],
        vms: vms.found,
        vms_absent: vms.absent,
        custom_ids: declarations.some(isWanting) ? yield* cloudstack.customIds : false
      },
      read.complete && (applianceVisible || absent.length + unresolved.length === 0),
      applianceVisible || absent.length + unresolved.length === 0
        ? read.note
        : `volumes are missing and so is the appliance VM ${scope.appliance_vm_id}: this account or project does not show us our own machine`
    )
  })

/** Absence needs a VM reading of its own moment; anything else may lean on a young one that has every VM asked for. */
const recent = (scope: Scope, read: Read, wanted: ReadonlySet<VmId>) => {
  if (wanted.size === 0) return { found: [], absent: [] }
  const { machines, only } = scope
  const missing = read.by_id !== null && read.by_id.absent.length + read.by_id.unresolved.length > 0
  if (machines === null || only === null || missing || read.started_at - machines.started_at > MACHINES_MS) return null
  const found = new Set(machines.found.map((vm) => vm.id))
  return [...wanted].every((id) => found.has(id)) ? { found: machines.found, absent: [] } : null
}

/**
 * A disk that may be used and shows no serial could be any volume's: while there is one, no serial is proven absent, and
 * nothing may be called detached (D7, D9).
 */
export const seenGuest = (startedAt: number, reading: GuestReading): Source<GuestReading> => {
  const nameless = reading.devices.filter(({ forbidden, serial }) => serial === null && forbidden === null)
  if (nameless.length === 0) return known(startedAt, reading)
  const paths = nameless.map((device) => device.kernel_path).join(", ")
  return known(startedAt, reading, false, `the serial of ${paths} cannot be read, so no disk is proven to be gone`)
}

const observeGuest = Effect.gen(function* () {
  const devices = yield* Devices
  const startedAt = yield* Clock.currentTimeMillis
  return yield* devices.observe.pipe(
    Effect.map((reading) => seenGuest(startedAt, reading)),
    Effect.timeoutFail({ duration: LOCAL_TIMEOUT, onTimeout: () => "the scan of the disks did not end" }),
    Effect.catchAll((error) =>
      Effect.succeed<Source<GuestReading>>(
        typeof error === "string" ? unread(startedAt, "timeout", error) : unread(startedAt, error._tag, error.detail)
      )
    ),
    orBroken(startedAt)
  )
})

const observeNbd = (scope: Scope) => Effect.flatMap(Nbd, (nbd) => readNbd(nbd, exportNames(scope)))

/** The NBD side alone, and these names asked for. Never fails. */
export const readNbd = Effect.fn("Observe.nbd")(function* (
  nbd: Pick<Nbd["Type"], "observe">,
  names: ReadonlyArray<string>
) {
  const startedAt = yield* Clock.currentTimeMillis
  return yield* nbd.observe(names).pipe(
    Effect.map((reading): Source<NbdReading> => known(startedAt, reading)),
    Effect.timeoutFail({
      duration: LOCAL_TIMEOUT,
      onTimeout: () => "the NBD server's state could not be read in time"
    }),
    Effect.catchAll((error) =>
      Effect.succeed<Source<NbdReading>>(
        typeof error === "string" ? unread(startedAt, "timeout", error) : unread(startedAt, error._tag, error.detail)
      )
    ),
    orBroken(startedAt)
  )
})

/** The names to ask the wire for: exports of ours, wanted ones, and those that an unexport must have ended. */
const exportNames = (scope: Scope): ReadonlyArray<string> => {
  const names = new Set<string>()
  for (const declaration of scope.declarations) {
    if (!selected(scope, declaration)) continue
    const { binding, spec } = declaration
    if (binding.export !== null) names.add(binding.export.name)
    else if (binding.volume_id !== null && spec.export_wanted === true) names.add(exportNameOf(binding.volume_id))
  }
  for (const operation of scope.operations) {
    const name = operation.request["export_name"]
    if (typeof name === "string" && (scope.only === null || scope.only.has(operation.uid))) names.add(name)
  }
  return [...names].toSorted()
}
