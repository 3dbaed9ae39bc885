import { assert, describe, it } from "@effect/vitest"
import { Effect, Layer } from "effect"
import { Gate } from "../../reconciler/Gate.ts"
import { Nbd } from "../../reconciler/Nbd.ts"
import { GateClosed } from "../../schema/Errors.ts"
import * as Guest from "../../src/Simulation/Guest.ts"
import { sectionOf } from "../../schema/Inventory.ts"
import * as SimulatedNbd from "../../src/Simulation/Nbd.ts"
import * as World from "../../src/Simulation/World.ts"
import { ask } from "./Wire.ts"

const appliance = World.APPLIANCE_VM_ID
const open = Layer.succeed(Gate, { check: Effect.void, reason: Effect.succeed(null) })
const closed = Layer.succeed(Gate, {
  check: Effect.fail(new GateClosed({ detail: "hold file" })),
  reason: Effect.succeed("hold file")
})

const foreign = { name: "theirs", path: "/srv/theirs.img", read_only: false }

/** A volume on the appliance, and an NBD server that has one section of somebody else's. */
const setUp = () => {
  const world = World.make({ now: 0, device_delay_ms: 0 })
  const id = world.seedVolume({ name: "data", vm_id: appliance }, 0).id
  const control = SimulatedNbd.inWorld(world, { sections: [foreign] })
  const path = `${Guest.BY_ID_DIR}/virtio-${id.replaceAll("-", "").slice(0, 20)}`
  const device = Guest.resolve(world)(path, 0)
  const wanted = {
    name: `migration-vol-${id}`,
    path,
    read_only: true,
    device: device?.identity ?? "",
    size: device?.size ?? 0
  }
  return { world, id, control, wanted }
}

const using = <A, E>(control: SimulatedNbd.Control, body: Effect.Effect<A, E, Nbd>, gate = open) =>
  body.pipe(Effect.provide(SimulatedNbd.layer(control).pipe(Layer.provide(gate))))

const outcome = (name: string) =>
  Effect.gen(function* () {
    const reading = yield* (yield* Nbd).observe([name])
    return reading.verifications[0]?.outcome
  })

describe("the simulated NBD server", () => {
  it.effect("serves what was loaded, says size and device, and leaves foreign sections alone", () => {
    const { control, wanted } = setUp()
    return using(
      control,
      Effect.gen(function* () {
        const nbd = yield* Nbd
        assert.strictEqual(yield* outcome(wanted.name), "unknown")
        yield* nbd.load({ set: [wanted], drop: [] })
        const reading = yield* nbd.observe([wanted.name, "nothing"])
        assert.deepInclude(reading, { engine: "simulated", loaded: true, config_problem: null })
        assert.deepStrictEqual(
          reading.sections.map((one) => one.name),
          ["theirs", wanted.name]
        )
        assert.deepInclude(reading.verifications[0], {
          outcome: "served",
          size: wanted.size,
          read_only: true,
          device: wanted.device
        })
        assert.strictEqual(reading.verifications[1]?.outcome, "unknown")
        yield* nbd.load({ set: [], drop: [wanted.name] })
        assert.deepStrictEqual(control.file, [foreign])
        assert.strictEqual(yield* outcome(wanted.name), "unknown")
      })
    )
  })

  it.effect("is not loaded again when it already serves that very file", () => {
    const { control, wanted } = setUp()
    return using(
      control,
      Effect.gen(function* () {
        const nbd = yield* Nbd
        yield* nbd.load({ set: [wanted], drop: [] })
        yield* nbd.load({ set: [wanted], drop: ["gone"] })
        assert.strictEqual(control.loads, 1)
        SimulatedNbd.kill(control)
        yield* nbd.load({ set: [wanted], drop: [] })
        assert.strictEqual(control.loads, 2)
        assert.strictEqual(yield* outcome(wanted.name), "served")
      })
    )
  })

  it.effect("refuses a load when the path no longer means the planned disk", () => {
    const { world, id, control, wanted } = setUp()
    return using(
      control,
      Effect.gen(function* () {
        const nbd = yield* Nbd
        for (const wrong of [
          { ...wanted, device: "file:0:1" },
          { ...wanted, size: 1 }
        ]) {
          assert.strictEqual((yield* Effect.flip(nbd.load({ set: [wrong], drop: [] })))._tag, "PreconditionLost")
        }
        world.act({ act: "detach", volume_id: id }, 0)
        assert.strictEqual((yield* Effect.flip(nbd.load({ set: [wanted], drop: [] })))._tag, "PreconditionLost")
        assert.deepStrictEqual([control.loads, control.file], [0, [foreign]])
      })
    )
  })

  it.effect("asks the gate before it loads", () => {
    const { control, wanted } = setUp()
    const load = Effect.flatMap(Nbd, (nbd) => nbd.load({ set: [wanted], drop: [] }))
    return Effect.gen(function* () {
      assert.strictEqual((yield* Effect.flip(using(control, load, closed)))._tag, "GateClosed")
      assert.strictEqual(control.loads, 0)
    })
  })

  it.effect(
    "opens the path for every client anew: a lost link or a fence denies, a dead or hung server is told apart",
    () => {
      const { world, id, control, wanted } = setUp()
      return using(
        control,
        Effect.gen(function* () {
          const nbd = yield* Nbd
          yield* nbd.load({ set: [wanted], drop: [] })
          yield* nbd.fence(wanted.name)
          assert.strictEqual(yield* outcome(wanted.name), "denied")
          yield* nbd.release(wanted.name)
          world.act({ act: "detach", volume_id: id }, 0)
          assert.strictEqual(yield* outcome(wanted.name), "denied")
          world.act({ act: "attach", volume_id: id, vm_id: appliance }, 0)
          assert.strictEqual(yield* outcome(wanted.name), "served")
          SimulatedNbd.hang(control)
          assert.strictEqual(yield* outcome(wanted.name), "no_answer")
          SimulatedNbd.kill(control)
          assert.strictEqual(yield* outcome(wanted.name), "refused")
          assert.strictEqual((yield* nbd.observe([])).server.state, "absent")
          SimulatedNbd.revive(control)
          assert.strictEqual(yield* outcome(wanted.name), "served")
          SimulatedNbd.occupy(control)
          assert.strictEqual((yield* Effect.flip(nbd.load({ set: [], drop: [] })))._tag, "NbdUnavailable")
        })
      )
    }
  )

  it.effect("goes on serving what it has loaded when the file is edited behind it (N8)", () => {
    const { control, wanted } = setUp()
    return using(
      control,
      Effect.gen(function* () {
        const nbd = yield* Nbd
        yield* nbd.load({ set: [wanted], drop: [] })
        SimulatedNbd.edit(control, [foreign])
        const reading = yield* nbd.observe([wanted.name])
        assert.deepInclude(reading, { loaded: false, sections: [sectionOf(foreign.name, foreign.path, false)] })
        assert.strictEqual(reading.verifications[0]?.outcome, "served")
      })
    )
  })

  it.effect("shows clients as holders until they leave, over loads too", () => {
    const { control, wanted } = setUp()
    return using(
      control,
      Effect.gen(function* () {
        const nbd = yield* Nbd
        assert.isNull(SimulatedNbd.connect(control, wanted.name, "10.0.0.9", 0))
        yield* nbd.load({ set: [wanted], drop: [] })
        const pid = SimulatedNbd.connect(control, wanted.name, "10.0.0.9", 0) ?? 0
        yield* nbd.load({ set: [], drop: [wanted.name] })
        const { holders } = yield* nbd.observe([])
        assert.deepStrictEqual(
          holders.map((one) => [one.pid, one.peer, one.device]),
          [[pid, "10.0.0.9", wanted.device]]
        )
        SimulatedNbd.leave(control, pid)
        assert.deepStrictEqual((yield* nbd.observe([])).holders, [])
      })
    )
  })

  it.effect("tells the world what it serves, so that a detach under an export is noticed (S11)", () => {
    const { world, id, control, wanted } = setUp()
    return using(
      control,
      Effect.gen(function* () {
        yield* (yield* Nbd).load({ set: [wanted], drop: [] })
        ask(world, "detachVolume", { id }, 0)
        assert.deepStrictEqual(
          world.truth(0).violations.map((one) => one.kind),
          ["detach_while_served"]
        )
      })
    )
  })

  it.effect("fences since when it was told to, and ends the clients of one device alone, leaving other holders", () => {
    const { control, wanted } = setUp()
    return using(
      control,
      Effect.gen(function* () {
        const nbd = yield* Nbd
        yield* nbd.load({ set: [wanted], drop: [] })
        SimulatedNbd.connect(control, wanted.name, "10.0.0.9", 0)
        const mount = { pid: 50, command: "dd", device: wanted.device, peer: null, since: null }
        const elsewhere = { ...mount, pid: 51, device: "file:0:7", peer: "10.0.0.8" }
        control.holders.push(mount, elsewhere)
        yield* nbd.fence(wanted.name)
        const fenced_at = (yield* nbd.sections).map((one) => one.fenced_at)
        assert.deepStrictEqual(fenced_at, [null, 0])
        assert.isNull(SimulatedNbd.connect(control, wanted.name, "10.0.0.9", 0))
        assert.strictEqual(yield* nbd.endClients(wanted.device), 1)
        assert.deepStrictEqual(control.holders, [mount, elsewhere])
        yield* nbd.release(wanted.name)
        assert.isNotNull(SimulatedNbd.connect(control, wanted.name, "10.0.0.9", 0))
      })
    )
  })

  it.effect("opens what a lying link leads to, and says so of the section (D3)", () => {
    const { control, wanted } = setUp()
    return using(
      control,
      Effect.gen(function* () {
        const nbd = yield* Nbd
        yield* nbd.load({ set: [wanted], drop: [] })
        SimulatedNbd.mislead(control, wanted.path, { identity: "file:0:7", size: 9 })
        const lied = yield* nbd.observe([wanted.name])
        assert.deepInclude(lied.verifications[0], { outcome: "served", device: "file:0:7", size: 9 })
        assert.strictEqual(lied.sections[1]?.device, "file:0:7")
        assert.strictEqual((yield* Effect.flip(nbd.load({ set: [wanted], drop: [] })))._tag, "PreconditionLost")
        SimulatedNbd.mislead(control, wanted.path, null)
        assert.strictEqual(yield* outcome(wanted.name), "denied")
        SimulatedNbd.setRight(control, wanted.path)
        assert.strictEqual(yield* outcome(wanted.name), "served")
      })
    )
  })

  it.effect("with a damaged heap hangs up after the greeting until it is replaced (N7)", () => {
    const { control, wanted } = setUp()
    return using(
      control,
      Effect.gen(function* () {
        const nbd = yield* Nbd
        yield* nbd.load({ set: [wanted], drop: [] })
        SimulatedNbd.damage(control, wanted.name)
        assert.strictEqual(yield* outcome(wanted.name), "dropped")
        yield* nbd.load({ set: [wanted], drop: [] })
        assert.deepStrictEqual([yield* outcome(wanted.name), control.loads], ["served", 2])
      })
    )
  })

  it.effect("that is not installed serves nothing, and lets sections be taken out of its file (N5)", () => {
    const { control, wanted } = setUp()
    return using(
      control,
      Effect.gen(function* () {
        const nbd = yield* Nbd
        yield* nbd.load({ set: [wanted], drop: [] })
        SimulatedNbd.uninstall(control)
        assert.strictEqual(yield* outcome(wanted.name), "refused")
        assert.strictEqual((yield* Effect.flip(nbd.load({ set: [wanted], drop: [] })))._tag, "NbdUnavailable")
        yield* nbd.load({ set: [], drop: [wanted.name] })
        assert.deepStrictEqual([control.file, control.loads], [[foreign], 1])
      })
    )
  })
})
