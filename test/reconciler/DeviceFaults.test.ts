import { assert, describe, it } from "@effect/vitest"
import { Clock, Effect, Layer, Random, Schedule, Stream, TestClock } from "effect"
import { Devices } from "../../reconciler/Devices.ts"
import { Reconciler } from "../../reconciler/Reconciler.ts"
import { Store } from "../../reconciler/Store.ts"
import { GIB } from "../../schema/Declaration.ts"
import type { BlockDevice } from "../../schema/Inventory.ts"
import { limits, type Limits } from "../../schema/Settings.ts"
import * as Guest from "../../src/Simulation/Guest.ts"
import * as SimulatedNbd from "../../src/Simulation/Nbd.ts"
import * as Cloud from "../support/Cloud.ts"

/**
 * The whole loop on a guest that shows its disks otherwise than they are. The NBD server opens by path what the guest
 * shows there, so that both tell one story.
 */
interface Lab extends Cloud.Lab {
  readonly shown: {
    /** What the guest shows in place of a disk; null: nothing at all. */
    as: (disk: BlockDevice, now: number) => BlockDevice | null
    /** The by-id path whose disk a by-id path leads to. */
    leads: (path: string, now: number) => string
    /** What it shows that is not there. */
    also: ReadonlyArray<BlockDevice>
  }
  /** How often udev tells of something, whether it is so or not. */
  readonly poked: Schedule.Schedule<unknown>
}

const lab = (options: Parameters<typeof Cloud.make>[0] = {}): Lab => {
  const { hold, world } = Cloud.make(options)
  const shown: Lab["shown"] = { as: (disk) => disk, leads: (path) => path, also: [] }
  const meaning = Guest.resolve(world)
  const resolve = (path: string, now: number) => {
    const found = meaning(shown.leads(path, now), now)
    if (found === null) return null
    const seen = shown.as({ ...blank, ...found, by_id_paths: [path] }, now)
    return seen?.by_id_paths.includes(path) === true ? { identity: seen.identity, size: seen.size } : null
  }
  return { world, hold, shown, nbd: SimulatedNbd.make({ resolve }), poked: Schedule.spaced("1 hour") }
}

const blank: Omit<BlockDevice, "identity" | "size"> = {
  kernel_name: "vdb",
  kernel_path: "/dev/vdb",
  serial: null,
  read_only: false,
  forbidden: null,
  by_id_paths: [],
  controller: null
}

/** The daemon on it. */
const run = <A, E>(on: Lab, body: Effect.Effect<A, E, Reconciler | Store>, limit: Partial<Limits> = {}) => {
  const disturbed = Layer.effect(
    Devices,
    Effect.map(Devices, (devices) => ({
      ...devices,
      observe: Effect.gen(function* () {
        const reading = yield* devices.observe
        const now = yield* Clock.currentTimeMillis
        const straight = reading.devices.map((disk) => {
          return { ...disk, by_id_paths: disk.by_id_paths.filter((path) => on.shown.leads(path, now) === path) }
        })
        const seen = straight.flatMap((disk) => on.shown.as(disk, now) ?? [])
        const also = on.shown.also.filter(({ identity }) => seen.every((disk) => disk.identity !== identity))
        return { ...reading, devices: [...seen, ...also] }
      }),
      pokes: Stream.merge(devices.pokes, Stream.as(Stream.fromSchedule(on.poked), undefined))
    }))
  )
  const layer = Layer.provideMerge(Cloud.loop(limit), Layer.provideMerge(disturbed, Cloud.ports(on)))
  const effect = Effect.andThen(TestClock.setTime(Cloud.START), Effect.provide(body, Layer.fresh(layer)))
  return Effect.suspend(() => Effect.withRandom(effect, Random.make("devices")))
}

const inventory = Effect.gen(function* () {
  const view = yield* (yield* Reconciler).view
  return view.inventory ?? assert.fail("nothing was observed")
})

/** How a volume is exported, as it is remembered. */
const exportOf = (name: string) =>
  Effect.map(Cloud.declaration(name), (declaration) => declaration?.binding.export ?? assert.fail(`${name}: no export`))

const item = Effect.gen(function* () {
  const { plan } = yield* (yield* Reconciler).view
  return plan?.items[0] ?? assert.fail("nothing was planned")
})

const settled = Effect.gen(function* () {
  if ((yield* Cloud.until(Cloud.allSettled, 120_000)) < 0) assert.fail(JSON.stringify(yield* item))
})

/** Operations of this type that are shown as done. */
const completed = (type: "attach" | "detach" | "export") =>
  Effect.map(
    Effect.flatMap(Store, (store) => store.operations({ type })),
    ({ items }) => items.filter(({ status }) => status === "completed").length
  )

const calls = ({ world }: Lab, command: string) =>
  Effect.map(Clock.currentTimeMillis, (now) => world.truth(now).calls[command] ?? 0)

const MINUTE = 60_000
const FLAPPING_MS = 10_000

describe("A disk on its way into the guest", () => {
  for (const late of [0, 1_000, limits.device_timeout_ms - 1_000, 2 * MINUTE, 10 * MINUTE]) {
    const overdue = late > limits.device_timeout_ms
    it.effect(`is waited for, ${late / 1_000} s long, and nothing is said to be done before (D1, S7, L4)`, () => {
      const on = lab({ device_delay_ms: late })
      return run(
        on,
        Effect.gen(function* () {
          yield* Cloud.declare("disk")
          const attached = Effect.map(Clock.currentTimeMillis, (now) =>
            on.world.truth(now).volumes.some((v) => v.type === "DATADISK" && v.vm_id === Cloud.appliance)
          )
          assert.isAtLeast(yield* Cloud.until(attached, MINUTE), 0)
          yield* Cloud.pass(Math.max(0, late - 2_000), 500)
          if (late > 2_000) {
            assert.deepStrictEqual([on.nbd.file, yield* completed("attach")], [[], 0])
            const reasons = overdue ? ["DeviceMissing"] : ["OperationInFlight", "DeviceArriving"]
            assert.include(reasons, (yield* item).blocked?.reason)
          }
          yield* settled
          // An attach that was given up stays so, for an end never changes; the volume goes on without it.
          assert.deepStrictEqual([yield* completed("attach"), yield* completed("export")], [overdue ? 0 : 1, 1])
          assert.strictEqual(yield* calls(on, "attachVolume"), 1)
        })
      )
    })
  }

  it.effect("whose link never comes is not exported, and is named for as long as that lasts (D1, L4)", () => {
    const on = lab()
    on.shown.as = (disk) => ({ ...disk, by_id_paths: [] })
    return run(
      on,
      Effect.gen(function* () {
        yield* Cloud.declare("disk")
        yield* Cloud.pass(3 * MINUTE, 1_000)
        const { blocked } = yield* item
        assert.strictEqual(blocked?.reason, "DeviceMissing")
        assert.include(blocked?.message, "no by-id link leads to its disk")
        assert.deepStrictEqual([on.nbd.file, on.nbd.loads, yield* completed("export")], [[], 0, 0])
        assert.strictEqual(yield* calls(on, "detachVolume"), 0)
        on.shown.as = (disk) => disk
        yield* settled
      })
    )
  })

  it.effect(
    "that hot-plug loses is attached in CloudStack alone, which is not attached, and never exported (D8, S7)",
    () => {
      const on = lab()
      return run(
        on,
        Effect.gen(function* () {
          on.world.setFaults([{ kind: "hotplug_failure" }], Cloud.START)
          yield* Cloud.declare("disk")
          yield* Cloud.pass(3 * MINUTE, 1_000)
          assert.strictEqual((yield* item).blocked?.reason, "DeviceMissing")
          assert.deepStrictEqual([on.nbd.file, yield* completed("attach"), yield* completed("export")], [[], 0, 0])
          assert.deepStrictEqual([yield* calls(on, "attachVolume"), yield* calls(on, "detachVolume")], [1, 0])
        })
      )
    }
  )
})

describe("A disk that was served", () => {
  /** Exported and at rest; then shown as `as` says. */
  const disturbed = (on: Lab, as: Lab["shown"]["as"]) =>
    Effect.gen(function* () {
      yield* Cloud.declare("disk")
      yield* settled
      yield* Cloud.pass(MINUTE)
      on.shown.as = as
    })

  it.effect(
    "whose link comes and goes each 100 ms causes no storm of loads, and comes to rest after it (D2, S12, S22)",
    () => {
      const on = { ...lab(), poked: Schedule.spaced("100 millis") }
      const flapping = (disk: BlockDevice, now: number) =>
        Math.trunc(now / 100) % 2 === 0 ? disk : { ...disk, by_id_paths: [] }
      return run(
        on,
        Effect.gen(function* () {
          yield* disturbed(on, flapping)
          const { loads } = on.nbd
          const listed = yield* calls(on, "listVolumes")
          yield* Cloud.pass(FLAPPING_MS, 50)
          assert.isAtMost(on.nbd.loads - loads, 2)
          // Two looks a second are what any storm of pokes may cause; of these CloudStack is asked once each.
          assert.isAtMost((yield* calls(on, "listVolumes")) - listed, FLAPPING_MS / 400)
          on.shown.as = (disk) => disk
          yield* settled
          assert.isAtMost(on.nbd.loads - loads, 3)
          assert.deepStrictEqual([yield* calls(on, "attachVolume"), yield* calls(on, "detachVolume")], [1, 0])
        })
      )
    }
  )

  it.effect(
    "whose link leads to another's disk every other 100 ms admits nobody, without a load, until it is steady (D2, D11, S3, S12)",
    () => {
      const on = { ...lab(), poked: Schedule.spaced("100 millis") }
      return run(
        on,
        Effect.gen(function* () {
          yield* Cloud.declare("other")
          yield* disturbed(on, (disk) => disk)
          const { loads } = on.nbd
          const [other, disk] = yield* Effect.forEach(["other", "disk"], exportOf)
          if (other === undefined || disk === undefined) return assert.fail("not exported")
          on.shown.leads = (path, now) => (path === disk.path && Math.trunc(now / 100) % 2 === 1 ? other.path : path)
          yield* Cloud.pass(FLAPPING_MS, 50)
          assert.deepStrictEqual([...on.nbd.fenced.keys()], [disk.name])
          assert.strictEqual(on.nbd.loads, loads)
          on.shown.leads = (path) => path
          // For as long as a name counts as astray it stays shut, however right it looks.
          yield* Cloud.pass(FLAPPING_MS, 500)
          assert.deepStrictEqual([...on.nbd.fenced.keys()], [disk.name])
          yield* settled
          assert.deepStrictEqual([[...on.nbd.fenced.keys()], on.nbd.loads], [[], loads])
          assert.strictEqual(yield* calls(on, "detachVolume"), 0)
        })
      )
    }
  )

  const changes: ReadonlyArray<readonly [string, (disk: BlockDevice) => BlockDevice | null]> = [
    ["shows no serial any more (D7)", (disk) => ({ ...disk, serial: null, by_id_paths: [] })],
    ["shows another serial (D4, D7)", (disk) => ({ ...disk, serial: "00000000000000000001", by_id_paths: [] })],
    ["has a size that cannot be read (D10)", (disk) => ({ ...disk, size: 0, forbidden: "its size cannot be read" })],
    ["has no size (D10)", (disk) => ({ ...disk, size: 0 })],
    ["is smaller than its volume (D10)", (disk) => ({ ...disk, size: GIB })],
    ["has gone read-only (D10)", (disk) => ({ ...disk, read_only: true })]
  ]
  for (const [what, as] of changes) {
    it.effect(`and ${what} is not shown as exported, its volume left as it is`, () => {
      const on = lab()
      return run(
        on,
        Effect.gen(function* () {
          yield* disturbed(on, as)
          const { loads } = on.nbd
          yield* Cloud.pass(2 * MINUTE, 1_000)
          const { blocked, settled: done } = yield* item
          assert.isFalse(done, what)
          assert.isNotNull(blocked, what)
          assert.isAtMost(on.nbd.loads - loads, 2, what)
          for (const command of ["createVolume", "attachVolume"]) assert.strictEqual(yield* calls(on, command), 1)
          for (const command of ["detachVolume", "deleteVolume"]) assert.strictEqual(yield* calls(on, command), 0)
          on.shown.as = (disk) => disk
          yield* settled
        })
      )
    })
  }

  it.effect("and stays in the guest after CloudStack has detached it goes nowhere until it has left (D9, S11)", () => {
    const on = lab()
    return run(
      on,
      Effect.gen(function* () {
        yield* disturbed(on, (disk) => disk)
        const { guest } = yield* inventory
        on.shown.also = guest._tag === "Known" ? guest.value.devices : []
        assert.strictEqual(on.shown.also.length, 1)
        yield* Cloud.declare("disk", { attached_to: Cloud.testVm, export_wanted: false })
        yield* Cloud.pass(MINUTE, 1_000)
        assert.include((yield* item).blocked?.message, "the guest still has the disk")
        assert.deepStrictEqual([yield* calls(on, "attachVolume"), yield* completed("detach")], [1, 0])
        // Its disk is here and by a path of its own; CloudStack says it is not, so nobody may open it.
        yield* Cloud.declare("disk", { attached_to: "none", export_wanted: true })
        yield* Cloud.pass(2 * MINUTE, 1_000)
        assert.strictEqual((yield* item).blocked?.reason, "NeedsOperator")
        assert.deepStrictEqual([on.nbd.file, yield* calls(on, "attachVolume")], [[], 1])
        yield* Cloud.declare("disk", { attached_to: Cloud.testVm, export_wanted: false })
        on.shown.also = []
        yield* settled
        assert.strictEqual(yield* calls(on, "attachVolume"), 2)
      }),
      { limbo_ms: 2 * MINUTE }
    )
  })
})
