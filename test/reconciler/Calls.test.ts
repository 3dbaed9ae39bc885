import { assert, describe, it } from "@effect/vitest"
import { Clock, Effect } from "effect"
import { Reconciler } from "../../reconciler/Reconciler.ts"
import { Store } from "../../reconciler/Store.ts"
import type { VolumeId } from "../../schema/Ids.ts"
import {
  ask,
  behind,
  completed,
  create,
  existing,
  failed,
  faults,
  itemOf,
  living,
  made,
  operate,
  quiet,
  read,
  run,
  truth,
  whereIs
} from "../support/Calls.ts"
import * as Cloud from "../support/Cloud.ts"

describe("A version 1 call", () => {
  it.effect("that creates completes with the volume's id, once CloudStack shows it (S7)", () => {
    const lab = Cloud.make()
    return run(
      lab,
      Effect.gen(function* () {
        const call = yield* completed(yield* create("disk 0"))
        const { volumes } = yield* truth(lab)
        const disks = volumes.filter(({ type }) => type === "DATADISK")
        assert.deepStrictEqual(
          disks.map(({ id, name }) => [id, name]),
          [[call.volume_id, "disk 0"]]
        )
        assert.strictEqual(call.response?.["volume_id"], call.volume_id)
        const { items } = yield* (yield* Store).operations({ parent_id: call.id })
        assert.includeMembers(
          items.map(({ type }) => type),
          ["create"]
        )
      })
    )
  })

  it.effect("that attaches to the appliance completes with the disk and the export, and detaching ends both", () => {
    const lab = Cloud.make()
    return run(
      lab,
      Effect.gen(function* () {
        const id = yield* made("disk-0")
        const attach = yield* completed(yield* ask(lab, id, "attach"))
        assert.match(String(attach.response?.["device_path"]), /by-id/u)
        assert.propertyVal(attach.response?.["export"], "state", "active")
        assert.strictEqual(yield* whereIs(lab, id), Cloud.appliance)
        yield* completed(yield* ask(lab, id, "detach"))
        assert.isNull(yield* whereIs(lab, id))
        assert.lengthOf(lab.nbd.file, 0)
        yield* quiet(lab)
      })
    )
  })

  it.effect("lends a volume to a test VM and takes it back: the export goes and comes once each (S11, S12)", () => {
    const lab = Cloud.make()
    return run(
      lab,
      Effect.gen(function* () {
        const id = yield* made("disk-0")
        yield* completed(yield* ask(lab, id, "attach"))
        const before = lab.nbd.loads
        yield* completed(yield* ask(lab, id, "detach"))
        assert.strictEqual(lab.nbd.loads, before + 1)
        const lent = yield* completed(yield* ask(lab, id, "lend"))
        assert.isUndefined(lent.response?.["device_path"])
        assert.strictEqual(yield* whereIs(lab, id), Cloud.testVm)
        yield* completed(yield* ask(lab, id, "detach"))
        assert.strictEqual(lab.nbd.loads, before + 1)
        yield* completed(yield* ask(lab, id, "attach"))
        assert.strictEqual(lab.nbd.loads, before + 2)
        yield* quiet(lab)
      })
    )
  })

  it.effect("that asks for what is so already completes at once, and touches nothing", () => {
    const lab = Cloud.make()
    return run(
      lab,
      Effect.gen(function* () {
        const id = yield* existing(lab, "theirs")
        yield* operate(lab, { act: "attach", volume_id: id, vm_id: Cloud.appliance })
        const calls = (yield* truth(lab)).calls["attachVolume"] ?? 0
        const call = yield* completed(yield* ask(lab, id, "attach"))
        assert.isBelow(call.took, 20_000)
        const after = yield* truth(lab)
        assert.strictEqual(after.calls["attachVolume"] ?? 0, calls)
        assert.isUndefined(after.calls["detachVolume"])
      })
    )
  })

  it.effect(
    "to attach what is on a foreign VM fails at once, and so does the next one: nothing is stolen (S23)",
    () => {
      const lab = Cloud.make()
      return run(
        lab,
        Effect.gen(function* () {
          const id = yield* existing(lab, "theirs")
          yield* operate(lab, { act: "attach", volume_id: id, vm_id: Cloud.otherVm })
          for (let round = 0; round < 3; round += 1) {
            const call = yield* failed(yield* ask(lab, id, "attach"))
            assert.include(call.error, Cloud.otherVm)
            assert.include(call.error, "CloudStack API error 431")
            assert.isBelow(call.took, 20_000)
            yield* Cloud.pass(30_000, 1_000)
          }
          assert.strictEqual(yield* whereIs(lab, id), Cloud.otherVm)
          assert.isUndefined((yield* truth(lab)).calls["detachVolume"])
          assert.isNull((yield* living(id)).spec.attached_to)
        })
      )
    }
  )

  it.effect("to detach names the volume, so that a foreign attachment goes as well (S23)", () => {
    const lab = Cloud.make()
    return run(
      lab,
      Effect.gen(function* () {
        const id = yield* existing(lab, "theirs")
        yield* operate(lab, { act: "attach", volume_id: id, vm_id: Cloud.otherVm })
        yield* completed(yield* ask(lab, id, "detach"))
        assert.isNull(yield* whereIs(lab, id))
      })
    )
  })

  it.effect("to detach that fails leaves a foreign attachment foreign: no later call moves it (S23)", () => {
    const lab = Cloud.make()
    return run(
      lab,
      Effect.gen(function* () {
        const id = yield* existing(lab, "theirs")
        yield* operate(lab, { act: "attach", volume_id: id, vm_id: Cloud.otherVm })
        yield* faults(lab, { kind: "refused", command: "detachVolume", code: 530, text: "internal error" })
        yield* failed(yield* ask(lab, id, "detach"))
        yield* faults(lab)
        yield* Cloud.pass(400_000, 2_000)
        assert.strictEqual(yield* whereIs(lab, id), Cloud.otherVm)
        assert.isNull((yield* living(id)).binding.attachment)
        yield* failed(yield* ask(lab, id, "attach"))
        assert.strictEqual(yield* whereIs(lab, id), Cloud.otherVm)
      })
    )
  })

  it.effect("to delete unexports, detaches and deletes within its deadline, without a grace", () => {
    const lab = Cloud.make()
    return run(
      lab,
      Effect.gen(function* () {
        const id = yield* made("disk-0")
        yield* completed(yield* ask(lab, id, "attach"))
        const call = yield* completed(yield* ask(lab, id, "delete"))
        assert.isAtMost(call.took, 55_000)
        assert.isUndefined(yield* whereIs(lab, id))
        assert.isUndefined(yield* behind(id))
        yield* quiet(lab)
      })
    )
  })

  it.effect("to delete what was never declared works by its id", () => {
    const lab = Cloud.make()
    return run(
      lab,
      Effect.gen(function* () {
        const id = yield* existing(lab, "theirs")
        yield* operate(lab, { act: "attach", volume_id: id, vm_id: Cloud.appliance })
        yield* completed(yield* ask(lab, id, "delete"))
        assert.isUndefined(yield* whereIs(lab, id))
      })
    )
  })

  it.effect(
    "to delete a volume that a process has open which is no NBD client fails at its deadline, and it stays (S6, S11)",
    () => {
      const lab = Cloud.make()
      return run(
        lab,
        Effect.gen(function* () {
          const id = yield* made("disk-0")
          yield* completed(yield* ask(lab, id, "attach"))
          const device = lab.nbd.options.resolve(lab.nbd.file[0]?.path ?? "", yield* Clock.currentTimeMillis)
          lab.nbd.holders.push({
            pid: 4711,
            command: "dd",
            device: device?.identity ?? "",
            peer: null,
            since: null
          })
          const call = yield* failed(yield* ask(lab, id, "delete"))
          assert.match(call.error ?? "", /timeout.*InUse/u)
          assert.isAtMost(call.took, 60_000)
          lab.nbd.holders.length = 0
          yield* Cloud.pass(120_000, 1_000)
          assert.strictEqual(yield* whereIs(lab, id), Cloud.appliance)
          assert.isNull((yield* living(id)).deletion)
          assert.isTrue((yield* itemOf((yield* living(id)).uid))?.settled)
        })
      )
    }
  )

  it.effect("that failed takes its wish back: nothing fires when the obstacle goes away", () => {
    const lab = Cloud.make()
    return run(
      lab,
      Effect.gen(function* () {
        const id = yield* made("disk-0")
        yield* faults(lab, { kind: "refused", command: "attachVolume", code: 530, text: "internal error" })
        const call = yield* failed(yield* ask(lab, id, "attach"))
        assert.include(call.error, "timeout")
        yield* faults(lab)
        yield* Cloud.pass(600_000, 2_000)
        assert.isNull(yield* whereIs(lab, id))
        assert.strictEqual((yield* living(id)).spec.attached_to, "none")
        assert.isTrue((yield* itemOf((yield* living(id)).uid))?.settled)
      })
    )
  })

  it.effect("that CloudStack refuses for a limit fails at once in the words of a limit (C7)", () => {
    const lab = Cloud.make()
    return run(
      lab,
      Effect.gen(function* () {
        yield* faults(lab, { kind: "refused", command: "createVolume", code: 535, text: "Maximum number of volumes" })
        const call = yield* failed(yield* create("one too many"))
        assert.include(call.error, "CloudStack API error 432")
        assert.strictEqual(call.response?.["cloudstack_code"], 535)
        assert.isBelow(call.took, 20_000)
        yield* faults(lab)
        yield* Cloud.pass(300_000, 2_000)
        assert.lengthOf(
          (yield* truth(lab)).volumes.filter(({ type }) => type === "DATADISK"),
          0
        )
        assert.lengthOf(yield* (yield* Store).declarations, 0)
      })
    )
  })

  it.effect("whose attach takes effect after its failure leaves it, as a late effect that waits for a person", () => {
    const lab = Cloud.make()
    return run(
      lab,
      Effect.gen(function* () {
        const id = yield* made("disk-0")
        yield* faults(lab, { kind: "slow_job", command: "attachVolume", ms: 150_000, times: 1 })
        const call = yield* failed(yield* ask(lab, id, "lend"))
        assert.isAtMost(call.took, 115_000)
        yield* Cloud.pass(300_000, 1_000)
        assert.strictEqual(yield* whereIs(lab, id), Cloud.testVm)
        const declaration = yield* living(id)
        assert.strictEqual(declaration.spec.attached_to, "none")
        const item = yield* itemOf(declaration.uid)
        assert.strictEqual(item?.blocked?.reason, "LateEffect")
        assert.isTrue(item?.drift)
        assert.isUndefined((yield* truth(lab)).calls["detachVolume"])
        yield* completed(yield* ask(lab, id, "detach"))
        assert.isNull(yield* whereIs(lab, id))
      })
    )
  })

  it.effect("whose create takes effect after its failure knows the volume, and makes no second one (S9, S10)", () => {
    const lab = Cloud.make()
    return run(
      lab,
      Effect.gen(function* () {
        yield* faults(lab, { kind: "slow_job", command: "createVolume", ms: 400_000, times: 1 })
        const call = yield* failed(yield* create("slow"))
        assert.isAtMost(call.took, 285_000)
        yield* Cloud.pass(400_000, 2_000)
        const disks = (yield* truth(lab)).volumes.filter(({ type }) => type === "DATADISK")
        assert.lengthOf(disks, 1)
        const declaration = yield* living(disks[0]?.id as VolumeId)
        assert.strictEqual((yield* itemOf(declaration.uid))?.blocked?.reason, "LateEffect")
        assert.lengthOf(yield* (yield* Store).calls, 0)
      })
    )
  })

  it.effect("whose create was never answered and made nothing leaves no declaration behind (C2, S10)", () => {
    const lab = Cloud.make()
    return run(
      lab,
      Effect.gen(function* () {
        yield* faults(lab, { kind: "answer_lost_before_effect", command: "createVolume" })
        yield* failed(yield* create("never"))
        yield* faults(lab)
        yield* Cloud.pass(200_000, 1_000)
        assert.lengthOf(yield* (yield* Store).declarations, 0)
        assert.lengthOf(
          (yield* truth(lab)).volumes.filter(({ type }) => type === "DATADISK"),
          0
        )
      })
    )
  })

  it.effect("is cancelled by a newer one that wishes otherwise", () => {
    const lab = Cloud.make()
    return run(
      lab,
      Effect.gen(function* () {
        const id = yield* made("disk-0")
        const attach = yield* ask(lab, id, "attach")
        yield* Cloud.pass(500)
        const detach = yield* ask(lab, id, "detach")
        assert.strictEqual((yield* read(attach)).status, "cancelled")
        yield* completed(detach)
        yield* Cloud.pass(60_000, 1_000)
        assert.isNull(yield* whereIs(lab, id))
      })
    )
  })

  it.effect("asks anew for what drifted away, though the wish stood there already", () => {
    const lab = Cloud.make()
    return run(
      lab,
      Effect.gen(function* () {
        const id = yield* made("disk-0")
        yield* completed(yield* ask(lab, id, "attach"))
        yield* operate(lab, { act: "detach", volume_id: id })
        yield* Cloud.pass(70_000, 1_000)
        assert.strictEqual((yield* itemOf((yield* living(id)).uid))?.blocked?.reason, "DriftHeld")
        yield* completed(yield* ask(lab, id, "attach"))
        assert.strictEqual(yield* whereIs(lab, id), Cloud.appliance)
      })
    )
  })
})

describe("A maintenance", () => {
  const begin = Effect.gen(function* () {
    const since = new Date(yield* Clock.currentTimeMillis).toISOString()
    const maintenance = { reason: "array", by: "storage", since, until: null, ending: false }
    yield* (yield* Store).setMaintenance(maintenance)
    return maintenance
  })

  const end = (maintenance: Effect.Effect.Success<typeof begin>) =>
    Effect.gen(function* () {
      yield* (yield* Store).setMaintenance({ ...maintenance, ending: true })
      yield* (yield* Reconciler).sync
    })

  it.effect("acts on nothing, and holds what takes away and was pending at its end until it is approved", () => {
    const lab = Cloud.make()
    return run(
      lab,
      Effect.gen(function* () {
        const store = yield* Store
        yield* Cloud.declare("a")
        yield* Cloud.declare("b")
        assert.isAtLeast(yield* Cloud.until(Cloud.allSettled, 60_000), 0)
        const maintenance = yield* begin
        yield* Cloud.declare("a", { attached_to: "none" })
        yield* Cloud.declare("c")
        yield* Cloud.pass(130_000, 1_000)
        const [a] = (yield* truth(lab)).volumes.filter(({ name }) => name === "a")
        assert.strictEqual(a?.vm_id, Cloud.appliance)
        assert.isFalse((yield* truth(lab)).volumes.some(({ name }) => name === "c"))

        yield* end(maintenance)
        assert.isNull(yield* store.maintenance)
        yield* Cloud.declare("b", { attached_to: "none" })
        yield* Cloud.pass(60_000, 1_000)
        const where = new Map((yield* truth(lab)).volumes.map(({ name, vm_id }) => [name, vm_id]))
        assert.strictEqual(where.get("a"), Cloud.appliance, "pending then, so it waits")
        assert.isNull(where.get("b"), "written later, so it runs")
        assert.strictEqual(where.get("c"), Cloud.appliance, "takes nothing away, so it runs")

        const { plan } = yield* (yield* Reconciler).plan(null)
        assert.deepStrictEqual(
          plan.withheld.map(({ action, name }) => [name, action]),
          [
            ["a", "unexport"],
            ["a", "detach"]
          ]
        )
        const expires_at = (yield* Clock.currentTimeMillis) + 3_600_000
        yield* store.approve((yield* store.withheld).map((held) => ({ ...held, expires_at })))
        yield* Cloud.pass(90_000, 1_000)
        assert.isNull((yield* truth(lab)).volumes.find(({ name }) => name === "a")?.vm_id)
      })
    )
  })

  it.effect("withholds no longer what is declared anew", () => {
    const lab = Cloud.make()
    return run(
      lab,
      Effect.gen(function* () {
        yield* Cloud.declare("a")
        assert.isAtLeast(yield* Cloud.until(Cloud.allSettled, 60_000), 0)
        const maintenance = yield* begin
        yield* Cloud.declare("a", { attached_to: "none" })
        yield* end(maintenance)
        yield* Cloud.declare("a", { attached_to: "none", on_conflict: "move" })
        yield* Cloud.pass(60_000, 1_000)
        assert.isNull((yield* truth(lab)).volumes.find(({ name }) => name === "a")?.vm_id)
      })
    )
  })

  it.effect("does not end while CloudStack cannot be read: what is pending is not known (S17)", () => {
    const lab = Cloud.make()
    return run(
      lab,
      Effect.gen(function* () {
        yield* Cloud.declare("a")
        assert.isAtLeast(yield* Cloud.until(Cloud.allSettled, 60_000), 0)
        const maintenance = yield* begin
        yield* Cloud.declare("a", { attached_to: "none" })
        yield* faults(lab, { kind: "unauthorized" })
        yield* end(maintenance)
        yield* Cloud.pass(60_000, 1_000)
        assert.isTrue((yield* (yield* Store).maintenance)?.ending)
        yield* faults(lab)
        yield* Cloud.pass(120_000, 1_000)
        assert.isNull(yield* (yield* Store).maintenance)
        assert.strictEqual((yield* truth(lab)).volumes.find(({ name }) => name === "a")?.vm_id, Cloud.appliance)
      })
    )
  })

  it.effect("ends by itself at its time", () => {
    const lab = Cloud.make()
    return run(
      lab,
      Effect.gen(function* () {
        const now = yield* Clock.currentTimeMillis
        const until = new Date(now + 300_000).toISOString()
        const since = new Date(now).toISOString()
        yield* (yield* Store).setMaintenance({ reason: "array", by: "storage", since, until, ending: false })
        yield* Cloud.declare("a")
        yield* Cloud.pass(299_000, 1_000)
        assert.lengthOf(
          (yield* truth(lab)).volumes.filter(({ name }) => name === "a"),
          0
        )
        yield* Cloud.pass(20_000, 1_000)
        assert.strictEqual((yield* truth(lab)).volumes.find(({ name }) => name === "a")?.vm_id, Cloud.appliance)
      })
    )
  })
})

describe("A removal that touches nothing", () => {
  it.effect("is over as soon as the tag that was being written is, without waiting for a whole look (M8)", () => {
    const lab = Cloud.make()
    return run(
      lab,
      Effect.gen(function* () {
        yield* faults(lab, { kind: "slow_job", command: "createTags", ms: 3_000, times: 1 })
        yield* Cloud.declare("a", { attached_to: "none", export_wanted: false })
        const tagging = Effect.map(
          Effect.flatMap(Store, ({ unresolved }) => unresolved),
          (open) => open.some(({ type }) => type === "tag")
        )
        assert.isAtLeast(yield* Cloud.until(tagging, 60_000, 250), 0)
        const at = new Date(yield* Clock.currentTimeMillis).toISOString()
        yield* Cloud.declare("a", {}, { policy: "forget", requested_at: at, by: "test", execute_after: at })
        const gone = Effect.map(Cloud.declaration("a"), (found) => found === null)
        assert.isBelow(yield* Cloud.until(gone, 60_000, 250), 6_000)
      })
    )
  })
})

describe("A pause", () => {
  it.effect("acts on nothing until it expires, and again from then on", () => {
    const lab = Cloud.make()
    return run(
      lab,
      Effect.gen(function* () {
        const until = new Date((yield* Clock.currentTimeMillis) + 90_000).toISOString()
        yield* Cloud.declare("a", { paused: { reason: "array", by: "storage", until } })
        yield* Cloud.pass(89_000, 1_000)
        assert.isUndefined((yield* truth(lab)).volumes.find(({ name }) => name === "a"))
        yield* Cloud.pass(15_000, 500)
        assert.strictEqual((yield* truth(lab)).volumes.find(({ name }) => name === "a")?.vm_id, Cloud.appliance)
      })
    )
  })
})
