import { assert, describe, it } from "@effect/vitest"
import { Effect, Fiber, Layer, Random, TestClock } from "effect"
import type * as Api from "../../schema/Api.ts"
import type { Spec } from "../../schema/Declaration.ts"
import * as Plans from "../../src/Http/Plans.ts"
import * as Provenance from "../../src/Http/Provenance.ts"
import * as Hypervisor from "../../src/Simulation/Hypervisor.ts"
import * as Job from "../../src/Simulation/Job.ts"
import type * as Operator from "../../src/Simulation/Operator.ts"
import * as Cloud from "../support/Cloud.ts"

/** The whole controller on the in-memory cloud, with the one service under test beside it. */
const run = <A, E>(
  lab: Cloud.Lab,
  body: Effect.Effect<A, E, Provenance.Provenance | Layer.Layer.Success<ReturnType<typeof Cloud.layer>>>
) => {
  const layer = Layer.fresh(Layer.provideMerge(Provenance.layer, Cloud.layer(lab)))
  const effect = Effect.andThen(TestClock.setTime(Cloud.START), Effect.provide(body, layer))
  return Effect.suspend(() => Effect.withRandom(effect, Random.make("provenance")))
}

const settled = (over: Partial<Spec> = {}, names: ReadonlyArray<string> = ["a"]) =>
  Effect.gen(function* () {
    for (const name of names) yield* Cloud.declare(name, { on_drift: "hold", ...over })
    assert.isAtLeast(yield* Cloud.until(Cloud.allSettled, 120_000), 0)
    // What follows is to have another time than what led here.
    yield* Cloud.pass(10_000)
  })

/** What GET /api/v2/drift answers: `by` for each name. */
const drift = Effect.map(Effect.suspend(Plans.drift), ({ body }) =>
  Object.fromEntries((body as Api.Drift).items.map(({ by, name }) => [name, by]))
)

const now = Effect.clockWith((clock) => clock.currentTimeMillis)
const idOf = (name: string) => Effect.map(Cloud.declaration(name), (found) => found?.binding.volume_id ?? "")
const act = (lab: Cloud.Lab, what: Operator.Act) =>
  Effect.map(now, (at) => assert.isTrue(lab.world.act(what, at).done, what.act))
const asked = (lab: Cloud.Lab) => lab.world.state.calls.get("listEvents") ?? 0
const seconds = (ms: number) => new Date(Math.trunc(ms / 1_000) * 1_000).toISOString()

describe("who caused a drift", () => {
  it.effect("is the user whose detach CloudStack recorded, with account and time", () => {
    const lab = Cloud.make()
    return run(
      lab,
      Effect.gen(function* () {
        yield* settled()
        yield* act(lab, { act: "detach", volume_id: yield* idOf("a") })
        const at = yield* now
        yield* Cloud.pass(20_000)
        assert.deepStrictEqual(yield* drift, { a: `operator (account volumed), VOLUME.DETACH at ${seconds(at)}` })
      })
    )
  })

  it.effect("is told by the attach where the volume is on another VM now, for each volume its own", () => {
    const lab = Cloud.make()
    return run(
      lab,
      Effect.gen(function* () {
        yield* settled({ export_wanted: false }, ["a", "b", "c"])
        for (const name of ["a", "b"]) yield* act(lab, { act: "detach", volume_id: yield* idOf(name) })
        const detached = seconds(yield* now)
        yield* Cloud.pass(3_000)
        yield* act(lab, { act: "attach", volume_id: yield* idOf("a"), vm_id: Cloud.testVm })
        const attached = seconds(yield* now)
        yield* Cloud.pass(20_000)
        assert.deepStrictEqual(yield* drift, {
          a: `operator (account volumed), VOLUME.ATTACH at ${attached}`,
          b: `operator (account volumed), VOLUME.DETACH at ${detached}`
        })
        assert.strictEqual(asked(lab), 1)
      })
    )
  })

  it.effect("is told of a volume that is gone", () => {
    const lab = Cloud.make()
    return run(
      lab,
      Effect.gen(function* () {
        yield* settled({ attached_to: "none", export_wanted: false })
        yield* act(lab, { act: "delete", volume_id: yield* idOf("a") })
        const at = seconds(yield* now)
        yield* Cloud.pass(120_000)
        assert.deepStrictEqual(yield* drift, { a: `operator (account volumed), VOLUME.DELETE at ${at}` })
      })
    )
  })

  it.effect("is told of a volume that became too small", () => {
    const lab = Cloud.make()
    return run(
      lab,
      Effect.gen(function* () {
        yield* settled()
        yield* act(lab, { act: "resize", volume_id: yield* idOf("a"), size_gib: 2 })
        const at = seconds(yield* now)
        yield* Cloud.pass(120_000)
        assert.deepStrictEqual(yield* drift, { a: `operator (account volumed), VOLUME.RESIZE at ${at}` })
      })
    )
  })

  it.effect("is nobody where others acted only before our last repair", () => {
    const lab = Cloud.make()
    return run(
      lab,
      Effect.gen(function* () {
        yield* settled({ export_wanted: false, on_drift: "repair" })
        const id = yield* idOf("a")
        yield* act(lab, { act: "detach", volume_id: id })
        yield* Cloud.pass(60_000)
        assert.strictEqual(lab.world.volume(id, yield* now)?.vm_id, Cloud.appliance)
        lab.world.setFaults([{ kind: "refused", command: "attachVolume", code: 531 }], yield* now)
        // As a late detach that nobody asked for: CloudStack records nothing of it.
        Hypervisor.unplug(lab.world.state, Cloud.appliance, id)
        Job.clear(lab.world.state, id)
        yield* Cloud.pass(60_000)
        assert.deepStrictEqual(yield* drift, { a: null })
        assert.strictEqual(asked(lab), 1)
      })
    )
  })

  it.effect("is nobody where only our own calls are recorded, though by a clock ahead of ours (C9)", () => {
    const lab = Cloud.make()
    return run(
      lab,
      Effect.gen(function* () {
        yield* settled({ export_wanted: false })
        const { events } = lab.world.state
        events.splice(0, events.length, ...events.map((event) => ({ ...event, at: event.at + 4_000 })))
        const id = yield* idOf("a")
        const row = lab.world.volume(id, yield* now)
        const vm = lab.world.state.vms.get(Cloud.testVm)
        if (row === null || vm === undefined) return assert.fail("the world lacks the volume or the VM")
        // As if CloudStack had mixed up two VMs.
        Hypervisor.unplug(lab.world.state, Cloud.appliance, id)
        Job.land(lab.world.state, row, vm, 1, false)
        yield* Cloud.pass(60_000)
        assert.deepStrictEqual(yield* drift, { a: null })
        assert.strictEqual(asked(lab), 1)
      })
    )
  })

  it.effect("is nobody where the recorded act failed", () => {
    const lab = Cloud.make()
    return run(
      lab,
      Effect.gen(function* () {
        yield* settled({ export_wanted: false })
        const volume_id = yield* idOf("a")
        lab.world.setFaults([{ kind: "job_failed", effect: "full", code: 530 }], yield* now)
        yield* act(lab, { act: "detach", volume_id, as_job: true })
        yield* Cloud.pass(20_000)
        assert.deepStrictEqual(yield* drift, { a: null })
      })
    )
  })

  it.effect("is told as soon as CloudStack has recorded it, readings being shared for some seconds", () => {
    const lab = Cloud.make()
    return run(
      lab,
      Effect.gen(function* () {
        yield* settled()
        lab.world.setFaults([{ kind: "delayed_events", ms: 30_000 }], yield* now)
        yield* act(lab, { act: "detach", volume_id: yield* idOf("a") })
        yield* Cloud.pass(28_000)
        assert.deepStrictEqual(yield* drift, { a: null })
        yield* Cloud.pass(3_000)
        assert.deepStrictEqual(yield* drift, { a: null })
        assert.strictEqual(asked(lab), 1)
        yield* Cloud.pass(3_000)
        assert.match((yield* drift)["a"] ?? "", /^operator /)
        assert.strictEqual(asked(lab), 2)
      })
    )
  })

  it.effect("is left open where the account may not ask, which is not tried again for a while (C7)", () => {
    const lab = Cloud.make()
    return run(
      lab,
      Effect.gen(function* () {
        yield* settled()
        lab.world.setFaults([{ kind: "command_denied", command: "listEvents" }], yield* now)
        yield* act(lab, { act: "detach", volume_id: yield* idOf("a") })
        for (let n = 0; n < 5; n++) {
          yield* Cloud.pass(30_000)
          assert.deepStrictEqual(yield* drift, { a: null })
        }
        assert.strictEqual(asked(lab), 1)
        lab.world.setFaults([], yield* now)
        yield* Cloud.pass(600_000, 5_000)
        assert.match((yield* drift)["a"] ?? "", /^operator /)
      })
    )
  })

  it.effect("holds the answer up for three seconds at most, where CloudStack says nothing (C2)", () => {
    const lab = Cloud.make()
    return run(
      lab,
      Effect.gen(function* () {
        yield* settled()
        lab.world.setFaults([{ kind: "hang", command: "listEvents" }], yield* now)
        yield* act(lab, { act: "detach", volume_id: yield* idOf("a") })
        yield* Cloud.pass(20_000)
        const answer = yield* Effect.fork(drift)
        yield* Cloud.pass(3_500)
        assert.deepStrictEqual(yield* Fiber.join(answer), { a: null })
      })
    )
  })

  it.effect("is never asked for by the loop, nor where nothing drifted", () => {
    const lab = Cloud.make()
    return run(
      lab,
      Effect.gen(function* () {
        yield* settled({ on_drift: "repair" })
        assert.deepStrictEqual(yield* drift, {})
        yield* act(lab, { act: "detach", volume_id: yield* idOf("a") })
        yield* Cloud.pass(120_000)
        assert.strictEqual(lab.world.volume(yield* idOf("a"), yield* now)?.vm_id, Cloud.appliance)
        assert.strictEqual(asked(lab), 0)
      })
    )
  })
})
