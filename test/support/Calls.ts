import { assert } from "@effect/vitest"
import { Clock, Effect, Layer, Option, Random, TestClock } from "effect"
import { createHash } from "node:crypto"
import * as Call from "../../reconciler/Call.ts"
import { Reconciler } from "../../reconciler/Reconciler.ts"
import { Store } from "../../reconciler/Store.ts"
import * as Withdrawal from "../../reconciler/Withdrawal.ts"
import type { Declaration } from "../../schema/Declaration.ts"
import { GIB } from "../../schema/Declaration.ts"
import type { OfferingId, OperationId, Uid, VolumeId, ZoneId } from "../../schema/Ids.ts"
import { hasEnded } from "../../schema/Operation.ts"
import * as World from "../../src/Simulation/World.ts"
import * as Cloud from "./Cloud.ts"

/** Version 1 calls on the in-memory world: how one is made, and how it ended. */
export type Services = Layer.Layer.Success<ReturnType<typeof Cloud.layer>>

export const run = <A, E>(lab: Cloud.Lab, body: Effect.Effect<A, E, Services>) =>
  Effect.andThen(TestClock.setTime(Cloud.START), Effect.provide(body, Layer.fresh(Cloud.layer(lab)))).pipe((effect) =>
    Effect.suspend(() => Effect.withRandom(effect, Random.make("calls")))
  )

let ids = 0
export const uuid = () => {
  const hex = createHash("sha256").update(`call ${ids++}`).digest("hex")
  return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-4${hex.slice(13, 16)}-8${hex.slice(17, 20)}-${hex.slice(20, 32)}`
}

export const context = Effect.map(Clock.currentTimeMillis, (now): Call.Context => ({
  now,
  actor: "v1",
  appliance_vm_id: Cloud.appliance,
  defaults: { disk_offering_id: World.OFFERING_ID as OfferingId, zone_id: World.ZONE_ID as ZoneId },
  delete_grace_ms: 600_000,
  newUid: () => uuid() as Uid,
  newOperationId: () => `op-${uuid()}` as OperationId
}))

export const commit = ({ call, change }: Call.Asked) =>
  Effect.gen(function* () {
    const store = yield* Store
    yield* store.write(change.write === null ? [] : [change.write], { calls: [call] })
    yield* (yield* Reconciler).poke([call.uid])
    return call.id
  })

export const create = (name: string) =>
  Effect.gen(function* () {
    const volume = {
      cloudstack_name: name,
      size: 5 * GIB,
      disk_offering_id: World.OFFERING_ID as OfferingId,
      zone_id: World.ZONE_ID as ZoneId,
      metadata: {}
    }
    return yield* commit(yield* Call.create(volume, { name }, yield* context))
  })

export const behind = (id: VolumeId) =>
  Effect.map(
    Effect.flatMap(Store, ({ declarations }) => declarations),
    (all) => all.find(({ binding, spec }) => binding.volume_id === id || spec.volume_id === id)
  )

export const wishes = {
  attach: { type: "attach", wish: { attached_to: "appliance", attach_as: "data", export_wanted: true } },
  lend: { type: "attach", wish: { attached_to: Cloud.testVm, attach_as: "data" } },
  root: { type: "attach", wish: { attached_to: Cloud.testVm, attach_as: "root" } },
  detach: { type: "detach", wish: { attached_to: "none" } },
  cleanup: { type: "cleanup", wish: { attached_to: "appliance", attach_as: "data", export_wanted: true } },
  export: { type: "export", wish: { export_wanted: true } },
  unexport: { type: "unexport", wish: { export_wanted: false } },
  delete: { type: "delete", wish: {} }
} as const satisfies Record<string, Pick<Call.Ask, "type" | "wish">>

export type Kind = keyof typeof wishes

export const ask = (lab: Cloud.Lab, id: VolumeId, kind: Kind) =>
  Effect.gen(function* () {
    const current = yield* behind(id)
    const undecided = kind === "detach" && (current?.spec.export_wanted ?? null) === null
    const { type, wish } = wishes[kind]
    const wanted: Call.Ask = {
      type,
      vm_id: kind === "cleanup" ? Cloud.testVm : null,
      request: kind === "cleanup" ? { test_vm_id: Cloud.testVm } : {},
      wish: undecided ? { ...wish, export_wanted: false } : wish
    }
    if (current !== undefined) return yield* commit(yield* Call.ask(current, wanted, yield* context))
    const row = (yield* truth(lab)).volumes.find((volume) => volume.id === id)
    assert.isDefined(row)
    const read = { ...rowOf(id, row?.name ?? ""), vm_id: (row?.vm_id ?? null) as never }
    return yield* commit(yield* Call.askUnknown(read, wanted, yield* context))
  })

/** As a client ends a call that it waits for no more. */
export const cancel = (id: OperationId) =>
  Effect.gen(function* () {
    const store = yield* Store
    const { inventory } = yield* (yield* Reconciler).view
    const call = yield* read(id)
    const current = (yield* store.declarations).find(({ uid }) => uid === call.uid) ?? null
    const now = yield* Clock.currentTimeMillis
    const made = Withdrawal.make(call, current, yield* store.calls, yield* store.unresolved, inventory, now)
    const advance = { phase: made.pending ? "uncertain" : "settled", status: "cancelled" } as const
    yield* store.write(made.write === null ? [] : [made.write], { ends: [{ id, advance }] })
    yield* (yield* Reconciler).poke([call.uid])
  })

export const rowOf = (id: VolumeId, name: string) => ({
  id,
  name,
  type: "DATADISK",
  state: "Ready",
  size: 5 * GIB,
  vm_id: null,
  vm_name: null,
  vm_state: null,
  device_id: null,
  zone_id: World.ZONE_ID as ZoneId,
  disk_offering_id: World.OFFERING_ID as OfferingId,
  created_at: null,
  tags: [],
  job_id: null,
  delete_protection: false
})

export const read = (id: OperationId) =>
  Effect.gen(function* () {
    const found = Option.getOrNull(yield* (yield* Store).operation(id))
    return found ?? (yield* Effect.dieMessage(`no operation ${id}`))
  })

/** Until the call has ended; answers it and how long that took. */
export const ended = (id: OperationId, within = 300_000) =>
  Effect.gen(function* () {
    const took = yield* Cloud.until(Effect.map(read(id), hasEnded), within, 500)
    const call = yield* read(id)
    assert.isAtLeast(took, 0, `${call.type} has not ended: ${JSON.stringify(call)}`)
    return { ...call, took }
  })

export const completed = (id: OperationId) =>
  Effect.tap(ended(id), (call) => assert.strictEqual(call.status, "completed", call.error ?? ""))
export const failed = (id: OperationId) => Effect.tap(ended(id), (call) => assert.strictEqual(call.status, "failed"))

export const made = (name: string) =>
  Effect.map(Effect.flatMap(create(name), completed), (call) => call.volume_id as VolumeId)

export const truth = (lab: Cloud.Lab) => Effect.map(Clock.currentTimeMillis, (now) => lab.world.truth(now))
export const whereIs = (lab: Cloud.Lab, id: VolumeId) =>
  Effect.map(truth(lab), ({ volumes }) => volumes.find((volume) => volume.id === id)?.vm_id)

export const faults = (lab: Cloud.Lab, ...list: Parameters<World.World["setFaults"]>[0]) =>
  Effect.map(Clock.currentTimeMillis, (now) => lab.world.setFaults(list, now))

export const operate = (lab: Cloud.Lab, act: Parameters<World.World["act"]>[0]) =>
  Effect.map(Clock.currentTimeMillis, (now) => {
    const outcome = lab.world.act(act, now)
    assert.isTrue(outcome.done, JSON.stringify(outcome))
    return outcome.done ? (outcome.volume_id as VolumeId) : ("" as VolumeId)
  })

export const existing = (lab: Cloud.Lab, name: string) => operate(lab, { act: "create", name, size_gib: 5 })

export const itemOf = (uid: Uid) =>
  Effect.flatMap(Reconciler, ({ plan }) =>
    Effect.map(plan(null), ({ plan: made }) => made.items.find((item) => item.uid === uid) ?? null)
  )

export const living = (id: VolumeId): Effect.Effect<Declaration, unknown, Store> =>
  Effect.flatMap(behind(id), Effect.fromNullable)

export const quiet = (lab: Cloud.Lab, violations = 0) =>
  Effect.map(truth(lab), (world) => assert.lengthOf(world.violations, violations, JSON.stringify(world.violations)))
