import { assert, describe, it } from "@effect/vitest"
import { Clock, Effect, FastCheck as fc, Random } from "effect"
import { Reconciler } from "../../reconciler/Reconciler.ts"
import { Store } from "../../reconciler/Store.ts"
import { exportNameOf, type VolumeId } from "../../schema/Ids.ts"
import { limits } from "../../schema/Settings.ts"
import * as Guest from "../../src/Simulation/Guest.ts"
import * as SimulatedNbd from "../../src/Simulation/Nbd.ts"
import * as Calls from "../support/Calls.ts"
import * as Cloud from "../support/Cloud.ts"

/**
 * The whole loop and the clients of what it serves. The world's monitor blames every detach of a volume that is served or
 * that somebody has open, so that each of these tests asserts S11 by asking for no violation.
 */
const exported = (lab: Cloud.Lab) =>
  Effect.gen(function* () {
    const { uid } = yield* Cloud.declare("disk")
    assert.isAtLeast(yield* Cloud.until(Cloud.allSettled, 120_000, 500), 0)
    const id = (yield* Cloud.declaration("disk"))?.binding.volume_id as VolumeId
    return { id, uid, name: exportNameOf(id), path: lab.nbd.file[0]?.path ?? "" }
  })

const connect = (lab: Cloud.Lab, name: string) =>
  Effect.map(Clock.currentTimeMillis, (now) => SimulatedNbd.connect(lab.nbd, name, "10.0.0.9", now))

const item = Effect.gen(function* () {
  const { plan } = yield* (yield* Reconciler).view
  return plan?.items[0] ?? assert.fail("nothing was planned")
})

const reason = Effect.map(item, ({ blocked }) => blocked?.reason ?? null)

const isAway = (lab: Cloud.Lab, id: VolumeId) => Effect.map(Calls.whereIs(lab, id), (at) => at === Cloud.testVm)

const away = { attached_to: Cloud.testVm } as const

describe("A volume that leaves while an NBD client has it open", () => {
  it.effect("lets nobody new in, waits a minute, and then until the client leaves by itself (N10, S11)", () => {
    const lab = Cloud.make()
    return Calls.run(
      lab,
      Effect.gen(function* () {
        const { id, name } = yield* exported(lab)
        const pid = (yield* connect(lab, name)) ?? assert.fail("not let in")
        const { loads } = lab.nbd
        yield* Cloud.declare("disk", away)
        yield* Cloud.pass(3_000)
        assert.deepStrictEqual([yield* reason, yield* connect(lab, name)], ["Draining", null])
        yield* Cloud.pass(limits.drain_ms - 10_000, 1_000)
        assert.strictEqual(yield* reason, "Draining")
        yield* Cloud.pass(30_000, 1_000)
        assert.deepStrictEqual([yield* reason, yield* connect(lab, name)], ["InUse", null])
        assert.deepStrictEqual([lab.nbd.holders.length, lab.nbd.loads], [1, loads])
        SimulatedNbd.leave(lab.nbd, pid)
        assert.isAtLeast(yield* Cloud.until(isAway(lab, id), 60_000, 500), 0)
        assert.strictEqual(lab.nbd.loads, loads + 1)
        yield* Calls.quiet(lab)
      })
    )
  })

  it.effect("ends its clients where a person says so, and none of another volume's", () => {
    const lab = Cloud.make()
    return Calls.run(
      lab,
      Effect.gen(function* () {
        const { id, name, uid } = yield* exported(lab)
        yield* Cloud.declare("neighbour")
        yield* Cloud.pass(10_000, 500)
        assert.isAtLeast(yield* Cloud.until(Cloud.allSettled, 120_000, 500), 0)
        const beside = exportNameOf((yield* Cloud.declaration("neighbour"))?.binding.volume_id as VolumeId)
        const kept = (yield* connect(lab, beside)) ?? assert.fail("not let in")
        yield* connect(lab, name)
        yield* connect(lab, name)
        const { generation } = yield* Cloud.declare("disk", away)
        yield* Cloud.pass(3_000)
        yield* (yield* Reconciler).endClients(uid, { generation, by: "anna" })
        assert.isAtLeast(yield* Cloud.until(isAway(lab, id), 60_000, 500), 0)
        assert.deepStrictEqual(
          lab.nbd.holders.map(({ pid }) => pid),
          [kept]
        )
        yield* Calls.quiet(lab)
      })
    )
  })

  it.effect("ends them twenty seconds into a version 1 call, which then completes in time (N10)", () => {
    const lab = Cloud.make()
    return Calls.run(
      lab,
      Effect.gen(function* () {
        const { id, name } = yield* exported(lab)
        yield* connect(lab, name)
        const call = yield* Calls.ask(lab, id, "detach")
        yield* Cloud.pass(limits.call_drain_ms - 2_000, 500)
        assert.deepStrictEqual([lab.nbd.holders.length, yield* reason], [1, "Draining"])
        const { status, took } = yield* Calls.ended(call)
        assert.deepStrictEqual([status, took < 30_000, lab.nbd.holders.length], ["completed", true, 0])
        yield* Calls.quiet(lab)
      })
    )
  })

  it.effect(
    "is opened again within seconds when the wish is withdrawn, its client undisturbed, and not loaded (S12)",
    () => {
      const lab = Cloud.make()
      return Calls.run(
        lab,
        Effect.gen(function* () {
          const { name } = yield* exported(lab)
          yield* connect(lab, name)
          const { loads } = lab.nbd
          yield* Cloud.declare("disk", away)
          yield* Cloud.pass(limits.drain_ms + 5_000, 1_000)
          assert.isNull(yield* connect(lab, name))
          yield* Cloud.declare("disk", { attached_to: "appliance" })
          assert.isAtLeast(yield* Cloud.until(Cloud.allSettled, 5_000), 0)
          assert.isNotNull(yield* connect(lab, name))
          assert.deepStrictEqual([lab.nbd.holders.length, lab.nbd.loads], [2, loads])
        })
      )
    }
  )

  it.effect("is held for a mount, whoever consents to what (S11)", () => {
    const lab = Cloud.make()
    return Calls.run(
      lab,
      Effect.gen(function* () {
        const { id, uid } = yield* exported(lab)
        const device = Guest.diskOf(lab.world, id) ?? ""
        lab.nbd.holders.push({ pid: 50, command: "dd", device, peer: null, since: null })
        const { generation } = yield* Cloud.declare("disk", away)
        yield* (yield* Reconciler).endClients(uid, { generation, by: "anna" })
        yield* Cloud.pass(120_000, 1_000)
        assert.deepStrictEqual([yield* reason, yield* isAway(lab, id)], ["InUse", false])
        SimulatedNbd.leave(lab.nbd, 50)
        assert.isAtLeast(yield* Cloud.until(isAway(lab, id), 60_000, 500), 0)
      })
    )
  })
})

describe("An export that is not served as it should be", () => {
  it.effect(
    "for a link that lies is shut at once, without a load, and open half a minute after it is right (D3, S12)",
    () => {
      const lab = Cloud.make()
      return Calls.run(
        lab,
        Effect.gen(function* () {
          const { name, path } = yield* exported(lab)
          yield* Cloud.declare("neighbour")
          yield* Cloud.pass(10_000, 500)
          assert.isAtLeast(yield* Cloud.until(Cloud.allSettled, 120_000, 500), 0)
          const beside = (yield* Cloud.declaration("neighbour"))?.binding.volume_id as VolumeId
          const { loads } = lab.nbd
          const identity = Guest.diskOf(lab.world, beside) ?? assert.fail("the neighbour is not here")
          SimulatedNbd.mislead(lab.nbd, path, { identity, size: 1 })
          yield* Cloud.pass(1_000, 100)
          assert.isNull(yield* connect(lab, name))
          yield* Cloud.pass(20_000, 500)
          assert.strictEqual(yield* reason, "WrongDevice")
          SimulatedNbd.setRight(lab.nbd, path)
          yield* Cloud.pass(5_000, 500)
          assert.deepStrictEqual([yield* reason, yield* connect(lab, name)], ["Fenced", null])
          assert.isAtLeast(yield* Cloud.until(Cloud.allSettled, 60_000, 500), 0)
          assert.isNotNull(yield* connect(lab, name))
          assert.strictEqual(lab.nbd.loads, loads)
        })
      )
    }
  )

  it.effect(
    "for a server that opens another disk, which a GO alone shows, is tried no more than twice a minute (N8, S3, S22)",
    () => {
      const lab = Cloud.make()
      return Calls.run(
        lab,
        Effect.gen(function* () {
          const { id, name } = yield* exported(lab)
          yield* Cloud.declare("neighbour")
          yield* Cloud.pass(10_000, 500)
          assert.isAtLeast(yield* Cloud.until(Cloud.allSettled, 120_000, 500), 0)
          const beside = (yield* Cloud.declaration("neighbour"))?.binding.volume_id as VolumeId
          const wrong = Guest.diskOf(lab.world, beside) ?? assert.fail("the neighbour is not here")
          const { size } = lab.nbd.options.resolve(lab.nbd.file[0]?.path ?? "", Cloud.START + 60_000) ?? { size: 0 }
          // Left to others it is ours to shut all the same, and no load of ours backs off.
          yield* Cloud.declare("disk", { export_wanted: null })
          SimulatedNbd.misremember(lab.nbd, name, { identity: wrong, size })
          const released = Effect.flatMap(Store, (store) =>
            Effect.map(store.events({ after: 0, kind: "released", limit: 1_000 }), (events) => events.length)
          )
          yield* Cloud.pass(300_000, 500)
          assert.isAtLeast(yield* released, 1)
          assert.isAtMost(yield* released, 10)
          lab.nbd.memory.clear()
          yield* Cloud.pass(60_000, 500)
          assert.deepStrictEqual([...lab.nbd.fenced.keys()], [])
          assert.strictEqual(yield* Calls.whereIs(lab, id), Cloud.appliance)
        })
      )
    }
  )

  it.effect("for a damaged heap is loaded again, once, and served (N7, S12)", () => {
    const lab = Cloud.make()
    return Calls.run(
      lab,
      Effect.gen(function* () {
        const { name } = yield* exported(lab)
        const { loads } = lab.nbd
        SimulatedNbd.damage(lab.nbd, name)
        assert.isNull(yield* connect(lab, name))
        yield* Cloud.pass(90_000, 1_000)
        assert.isTrue(yield* Cloud.allSettled)
        assert.deepStrictEqual([lab.nbd.loads, (yield* connect(lab, name)) === null], [loads + 1, false])
      })
    )
  })

  it.effect("for a program that is gone lets its volume leave all the same (N5)", () => {
    const lab = Cloud.make()
    return Calls.run(
      lab,
      Effect.gen(function* () {
        const { id } = yield* exported(lab)
        SimulatedNbd.uninstall(lab.nbd)
        yield* Cloud.pass(40_000, 1_000)
        assert.strictEqual(yield* reason, "NbdNotInstalled")
        yield* Cloud.declare("disk", away)
        assert.isAtLeast(yield* Cloud.until(isAway(lab, id), 60_000, 500), 0)
        assert.deepStrictEqual(lab.nbd.file, [])
        yield* Calls.quiet(lab)
      })
    )
  })
})

describe("From any history of wishes, clients and lying links", () => {
  const step = fc.record({
    to: fc.constantFrom("appliance" as const, "appliance" as const, "none" as const, Cloud.testVm),
    exported: fc.constantFrom(true, true, false),
    clients: fc.nat(2),
    event: fc.constantFrom("none", "lie", "kill", "damage", "consent", "leave"),
    wait: fc.constantFrom(500, 4_000, 30_000, 70_000)
  })
  type Step = typeof step extends fc.Arbitrary<infer A> ? A : never

  const live = (lab: Cloud.Lab, { clients, event, exported, to, wait }: Step) =>
    Effect.gen(function* () {
      const reconciler = yield* Reconciler
      const before = yield* Cloud.declaration("disk")
      const [section] = lab.nbd.file
      for (let n = 0; n < clients; n++) if (section !== undefined) yield* connect(lab, section.name)
      const { generation, uid } = yield* Cloud.declare("disk", { attached_to: to, export_wanted: exported })
      if (event === "lie") SimulatedNbd.mislead(lab.nbd, section?.path ?? "", { identity: "file:0:9999", size: 1 })
      if (event === "kill") SimulatedNbd.kill(lab.nbd)
      if (event === "damage") SimulatedNbd.damage(lab.nbd, section?.name ?? "")
      if (event === "consent") yield* reconciler.endClients(uid, { generation, by: "anna" })
      if (event === "leave") lab.nbd.holders.splice(0)
      assert.isNotNull(before)
      yield* Cloud.pass(wait, 500)
      SimulatedNbd.setRight(lab.nbd, section?.path ?? "")
    })

  it.effect.prop(
    "no disk goes under a client, and once they leave what is wished is so, with no fence left (N10, S3, S11, L1)",
    [fc.array(step, { minLength: 1, maxLength: 6 }), fc.nat(1_000_000)],
    ([steps, seed]) => {
      const lab = Cloud.make({ seed })
      return Calls.run(
        lab,
        Effect.gen(function* () {
          const { id, name } = yield* exported(lab)
          for (const one of steps) yield* live(lab, one)
          lab.nbd.holders.splice(0)
          const last = steps.at(-1)
          const settled = yield* Cloud.until(Cloud.allSettled, 400_000, 500)
          assert.isAtLeast(settled, 0, JSON.stringify(yield* item))
          const wanted = last?.to === "appliance" && last.exported
          assert.strictEqual((yield* connect(lab, name)) !== null, wanted)
          assert.strictEqual(
            yield* Calls.whereIs(lab, id),
            last?.to === "appliance" ? Cloud.appliance : last?.to === "none" ? null : last?.to
          )
          assert.deepStrictEqual(
            lab.nbd.file.filter((one) => lab.nbd.fenced.has(one.name)),
            []
          )
          assert.deepStrictEqual((yield* (yield* Store).unresolved).length, 0)
          yield* Calls.quiet(lab)
        }).pipe(Effect.withRandom(Random.make(seed)))
      )
    },
    { fastCheck: { numRuns: 12, seed: 20_260_301 }, timeout: 240_000 }
  )
})
