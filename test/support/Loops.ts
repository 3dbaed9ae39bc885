import { assert } from "@effect/vitest"
import { Clock, Effect, Layer, Random, TestClock } from "effect"
import { Devices } from "../../reconciler/Devices.ts"
import * as Loop from "../../reconciler/Loop.ts"
import { Nbd } from "../../reconciler/Nbd.ts"
import { Reconciler } from "../../reconciler/Reconciler.ts"
import { Store } from "../../reconciler/Store.ts"
import { limits } from "../../schema/Settings.ts"
import * as Cloud from "./Cloud.ts"

type Ports = Layer.Layer.Success<ReturnType<typeof Cloud.ports>>

export const alike = Layer.effect(Nbd, Nbd)

/** The whole loop with some of its ports replaced by what `altered` makes of them. */
export const run = <A, E>(
  lab: Cloud.Lab,
  body: Effect.Effect<A, E, Reconciler | Ports>,
  altered: Layer.Layer<Devices | Nbd | Store, never, Ports> | Layer.Layer<Nbd, never, Nbd> = alike,
  settings: Partial<Loop.Options> = {}
) => {
  const loop = Loop.layer({
    appliance_vm_id: Cloud.appliance,
    limits,
    digest: (text) => text,
    resync_idle_ms: 60_000,
    resync_busy_ms: 15_000,
    poll_ms: 1_000,
    calls: 7,
    ...settings
  })
  const ports = Layer.provideMerge(altered as Layer.Layer<never, never, Ports>, Cloud.ports(lab))
  const layer = Layer.fresh(Layer.provideMerge(loop, ports))
  const effect = Effect.andThen(TestClock.setTime(Cloud.START), Effect.provide(body, layer))
  return Effect.suspend(() => Effect.withRandom(effect, Random.make("histories")))
}

export const altering = (change: {
  readonly devices?: (devices: Devices["Type"]) => Devices["Type"]
  readonly nbd?: (nbd: Nbd["Type"]) => Nbd["Type"]
  readonly store?: (store: Store["Type"]) => Store["Type"]
}) =>
  Layer.mergeAll(
    Layer.effect(Devices, Effect.map(Devices, change.devices ?? ((same) => same))),
    Layer.effect(Nbd, Effect.map(Nbd, change.nbd ?? ((same) => same))),
    Layer.effect(Store, Effect.map(Store, change.store ?? ((same) => same)))
  )

export const truth = (lab: Cloud.Lab) => Effect.map(Clock.currentTimeMillis, (now) => lab.world.truth(now))
export const converged = (within: number, step = 500) =>
  Effect.gen(function* () {
    const took = yield* Cloud.until(Cloud.allSettled, within, step)
    if (took >= 0) return
    const { plan } = yield* (yield* Reconciler).view
    assert.fail(plan?.items.map((i) => `${i.name}: ${i.next?._tag} ${i.blocked?.message}`).join("\n") ?? "no plan")
  })
