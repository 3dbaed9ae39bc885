import { Effect, Layer, Redacted, TestClock } from "effect"
import { createHash } from "node:crypto"
import { Gate } from "../../reconciler/Gate.ts"
import * as Loop from "../../reconciler/Loop.ts"
import { Reconciler } from "../../reconciler/Reconciler.ts"
import { Store } from "../../reconciler/Store.ts"
import type { Declaration, Deletion, Spec } from "../../schema/Declaration.ts"
import { GIB } from "../../schema/Declaration.ts"
import { GateClosed } from "../../schema/Errors.ts"
import type { Name, OfferingId, Uid, VmId, ZoneId } from "../../schema/Ids.ts"
import { limits, type Limits } from "../../schema/Settings.ts"
import * as Credentials from "../../src/CloudStack/Credentials.ts"
import * as CloudStackLive from "../../src/CloudStack/Live.ts"
import * as CloudStackServer from "../../src/Simulation/CloudStackServer.ts"
import * as Guest from "../../src/Simulation/Guest.ts"
import * as SimulatedNbd from "../../src/Simulation/Nbd.ts"
import * as World from "../../src/Simulation/World.ts"
import * as Sql from "../../src/Store/Sql.ts"
import * as Sqlite from "../../src/Store/Sqlite.ts"

/**
 * The whole controller on the in-memory world under TestClock: the real store, the real CloudStack client speaking the
 * real wire protocol, the real planner and loop; only sockets and disks are left out.
 */
export const START = Date.parse("2026-03-01T12:00:00Z")

export const appliance = World.APPLIANCE_VM_ID as VmId
export const testVm = World.vmId(1) as VmId
export const otherVm = World.vmId(2) as VmId

export interface Lab {
  readonly world: World.World
  readonly nbd: SimulatedNbd.Control
  /** Set to a reason to close the gate, to null to open it. */
  readonly hold: { reason: string | null }
}

export const make = (options: Partial<World.Options> = {}): Lab => {
  const world = World.make({ now: START, seed: 7, vms: 2, job_ms: 2_000, device_delay_ms: 300, ...options })
  return { world, nbd: SimulatedNbd.inWorld(world), hold: { reason: null } }
}

const gate = (lab: Lab) =>
  Layer.succeed(Gate, {
    check: Effect.suspend(() =>
      lab.hold.reason === null ? Effect.void : Effect.fail(new GateClosed({ detail: lab.hold.reason }))
    ),
    reason: Effect.sync(() => lab.hold.reason)
  })

/** The real client on the lab's CloudStack, its mutations behind the gate. */
export const cloudstack = (lab: Lab) => {
  const { api_key, secret_key } = lab.world.state.config
  const credential = {
    api_url: "http://127.0.0.1:8080/client/api",
    api_key: Redacted.make(api_key),
    secret_key: Redacted.make(secret_key)
  }
  const known = { credential, zone: World.ZONE_ID, domain: null, source: "the lab" }
  return CloudStackLive.layer({
    ...credential,
    project_id: null,
    ca_file: null,
    allow_http: true,
    read_timeout_ms: 10_000,
    call_timeout_ms: 30_000,
    connections: 4
  }).pipe(
    Layer.provide(CloudStackServer.layerHttpClient(lab.world)),
    Layer.provide(Layer.succeed(Credentials.Credentials, Credentials.fixed(known)))
  )
}

/** Everything but the loop: for a test that wants to write rows first. */
export const ports = (lab: Lab, database: string = Sqlite.MEMORY) =>
  Layer.mergeAll(
    cloudstack(lab),
    Guest.layerDevices(lab.world),
    SimulatedNbd.layer(lab.nbd),
    Sql.layer.pipe(Layer.provideMerge(Sqlite.layer(database)))
  ).pipe(Layer.provideMerge(gate(lab)))

export const loop = (limit: Partial<Limits> = {}) =>
  Loop.layer({
    appliance_vm_id: appliance,
    limits: { ...limits, ...limit },
    digest: (text) => createHash("sha256").update(text).digest("hex"),
    resync_idle_ms: 60_000,
    resync_busy_ms: 15_000,
    poll_ms: 1_000,
    calls: 3
  })

export const layer = (lab: Lab, database: string = Sqlite.MEMORY, limit: Partial<Limits> = {}) =>
  Layer.provideMerge(loop(limit), ports(lab, database))

const uidOf = (name: string): Uid => {
  const hex = createHash("sha256").update(name).digest("hex")
  return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-4${hex.slice(13, 16)}-8${hex.slice(17, 20)}-${hex.slice(20, 32)}` as Uid
}

export const spec = (name: string, over: Partial<Spec> = {}): Spec => ({
  cloudstack_name: name,
  volume_id: null,
  size: 5 * GIB,
  disk_offering_id: World.OFFERING_ID as OfferingId,
  zone_id: World.ZONE_ID as ZoneId,
  attached_to: "appliance",
  attach_as: "data",
  export_wanted: true,
  read_only: false,
  deletion_policy: "forget",
  on_conflict: "hold",
  on_drift: "repair",
  on_loss: "hold",
  paused: null,
  metadata: {},
  ...over
})

/** Declare or change one volume, as a write through HTTP would. */
export const declare = Effect.fn("Cloud.declare")(function* (
  name: string,
  over: Partial<Spec> = {},
  deletion: Deletion | null = null
) {
  const store = yield* Store
  const reconciler = yield* Reconciler
  const found = (yield* store.declarations).find((d) => d.name === name)
  const [stored] = yield* store.write([
    {
      name: name as Name,
      expected_generation: found?.generation ?? null,
      uid: found?.uid ?? uidOf(name),
      generation: (found?.generation ?? 0) + 1,
      set: null,
      spec: { ...(found?.spec ?? spec(name)), ...over },
      managers: {},
      deletion,
      actor: "test",
      kind: deletion !== null ? "removed" : found === undefined ? "declared" : "changed"
    }
  ])
  if (stored === undefined) return yield* Effect.dieMessage("the store answered nothing")
  yield* reconciler.poke([stored.uid])
  return stored
})

/** Let virtual time pass in small steps, so that every fiber gets its turn between two events. */
export const pass = (ms: number, step = 250) =>
  Effect.gen(function* () {
    for (let at = 0; at < ms; at += step) {
      yield* TestClock.adjust(Math.min(step, ms - at))
      yield* settleFibers
    }
  })

/** The signature and the digest are synchronous; what is left to wait for are fibers of this very turn. */
const settleFibers = Effect.yieldNow().pipe(Effect.repeatN(40))

/** Pass time until the condition holds; answers how long it took (ms), or -1 when it did not within `within`. */
export const until = <E, R>(condition: Effect.Effect<boolean, E, R>, within: number, step = 250) =>
  Effect.gen(function* () {
    for (let at = 0; at <= within; at += step) {
      if (yield* condition) return at
      yield* pass(step, step)
    }
    return -1
  })

export const declaration = (name: string): Effect.Effect<Declaration | null, never, Store> =>
  Effect.gen(function* () {
    const store = yield* Store
    const all = yield* Effect.orDie(store.declarations)
    return all.find((d) => d.name === name) ?? null
  })

/** Every living declaration is met by the evidence of the newest plan. */
export const allSettled = Effect.gen(function* () {
  const reconciler = yield* Reconciler
  const { plan } = yield* reconciler.view
  return plan !== null && plan.items.length > 0 && plan.items.every((item) => item.settled && item.next === null)
})
