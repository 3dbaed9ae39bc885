import { assert, describe, it } from "@effect/vitest"
import { Clock, Effect } from "effect"
import { Store } from "../../reconciler/Store.ts"
import type { Spec } from "../../schema/Declaration.ts"
import type { VolumeId } from "../../schema/Ids.ts"
import {
  ask,
  behind,
  cancel,
  completed,
  create,
  ended,
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

const internal = (command: string) => ({ kind: "refused", command, code: 530, text: "internal error" }) as const

const disks = (lab: Cloud.Lab) =>
  Effect.map(truth(lab), ({ volumes }) => volumes.filter(({ type }) => type === "DATADISK"))

/** As a version 2 write would declare a volume that exists. */
const adopt = (name: string, volume_id: VolumeId, over: Partial<Spec> = {}) =>
  Cloud.declare(name, {
    volume_id,
    size: null,
    disk_offering_id: null,
    zone_id: null,
    attached_to: null,
    export_wanted: null,
    ...over
  })

describe("What a call that came to nothing leaves", () => {
  it.effect("is no second create: a cancelled one whose request proves lost makes nothing later (S10)", () => {
    const lab = Cloud.make()
    return run(
      lab,
      Effect.gen(function* () {
        yield* faults(lab, { kind: "answer_lost_before_effect", command: "createVolume", times: 1 })
        const id = yield* create("never")
        yield* Cloud.pass(5_000)
        yield* cancel(id)
        assert.strictEqual((yield* read(id)).status, "cancelled")
        yield* Cloud.pass(300_000, 2_000)
        assert.lengthOf(yield* disks(lab), 0)
        assert.lengthOf(yield* (yield* Store).declarations, 0)
      })
    )
  })

  it.effect(
    "is never a removal of what somebody declared since: a failed create leaves that to its writer (S14)",
    () => {
      const lab = Cloud.make()
      return run(
        lab,
        Effect.gen(function* () {
          yield* faults(lab, { kind: "refused", command: "createVolume", code: 530, text: "internal error" })
          const id = yield* create("slow")
          yield* Cloud.pass(10_000, 1_000)
          const [declared] = yield* (yield* Store).declarations
          yield* Cloud.declare(declared?.name ?? "", { attached_to: Cloud.testVm, metadata: { owner: "ops" } })
          yield* failed(id)
          yield* faults(lab)
          yield* Cloud.pass(400_000, 2_000)
          const [disk] = yield* disks(lab)
          assert.strictEqual(disk?.vm_id, Cloud.testVm)
        })
      )
    }
  )

  it.effect("is no claim: an attach that takes a detach's place does not move a foreign attachment (S23)", () => {
    const lab = Cloud.make()
    return run(
      lab,
      Effect.gen(function* () {
        const id = yield* existing(lab, "theirs")
        yield* operate(lab, { act: "attach", volume_id: id, vm_id: Cloud.otherVm })
        yield* faults(lab, internal("detachVolume"))
        const detach = yield* ask(lab, id, "detach")
        yield* Cloud.pass(10_000, 500)
        const attach = yield* ask(lab, id, "attach")
        assert.strictEqual((yield* read(detach)).status, "cancelled")
        yield* faults(lab)
        yield* failed(attach)
        assert.strictEqual(yield* whereIs(lab, id), Cloud.otherVm)
        yield* Cloud.pass(300_000, 2_000)
        assert.strictEqual(yield* whereIs(lab, id), Cloud.otherVm)
      })
    )
  })

  it.effect("is no claim taken from the next one: a second detach still names the attachment (S23)", () => {
    const lab = Cloud.make()
    return run(
      lab,
      Effect.gen(function* () {
        const id = yield* existing(lab, "theirs")
        yield* operate(lab, { act: "attach", volume_id: id, vm_id: Cloud.otherVm })
        yield* faults(lab, internal("detachVolume"))
        const first = yield* ask(lab, id, "detach")
        yield* Cloud.pass(40_000, 1_000)
        const second = yield* ask(lab, id, "detach")
        yield* failed(first)
        yield* faults(lab)
        yield* completed(second)
        assert.isNull(yield* whereIs(lab, id))
      })
    )
  })

  it.effect("is not the wish of an earlier failed call: nothing fires when CloudStack is back", () => {
    const lab = Cloud.make()
    return run(
      lab,
      Effect.gen(function* () {
        const id = yield* made("disk-0")
        yield* Cloud.pass(20_000, 1_000)
        yield* faults(lab, { kind: "unauthorized" })
        const first = yield* ask(lab, id, "lend")
        yield* Cloud.pass(60_000, 1_000)
        const second = yield* ask(lab, id, "lend")
        yield* failed(first)
        yield* failed(second)
        yield* faults(lab)
        yield* Cloud.pass(300_000, 2_000)
        assert.isNull(yield* whereIs(lab, id))
        assert.strictEqual((yield* living(id)).spec.attached_to, "none")
      })
    )
  })

  it.effect("is not the wish of a call that it cancelled: nothing fires when CloudStack is back", () => {
    const lab = Cloud.make()
    return run(
      lab,
      Effect.gen(function* () {
        const id = yield* made("disk-0")
        yield* Cloud.pass(20_000, 1_000)
        yield* faults(lab, { kind: "unauthorized" })
        const first = yield* ask(lab, id, "lend")
        yield* Cloud.pass(5_000, 1_000)
        const second = yield* ask(lab, id, "attach")
        assert.strictEqual((yield* read(first)).status, "cancelled")
        yield* failed(second)
        yield* faults(lab)
        yield* Cloud.pass(300_000, 2_000)
        assert.isNull(yield* whereIs(lab, id))
      })
    )
  })

  it.effect("is no place that a cancelled call wished: an attach goes on, or is taken back, beside an unexport", () => {
    const lab = Cloud.make()
    return run(
      lab,
      Effect.gen(function* () {
        const id = yield* existing(lab, "shelf")
        yield* faults(lab, { kind: "unauthorized" })
        const attach = yield* ask(lab, id, "attach")
        yield* Cloud.pass(5_000, 500)
        const unexport = yield* ask(lab, id, "unexport")
        yield* failed(unexport)
        yield* failed(attach)
        yield* faults(lab)
        yield* Cloud.pass(300_000, 2_000)
        assert.isNull(yield* whereIs(lab, id))
      })
    )
  })

  it.effect("is drift where it was drift before: nothing attaches what a person took away", () => {
    const lab = Cloud.make()
    return run(
      lab,
      Effect.gen(function* () {
        const id = yield* made("disk-0")
        yield* completed(yield* ask(lab, id, "attach"))
        yield* operate(lab, { act: "detach", volume_id: id })
        yield* Cloud.pass(70_000, 1_000)
        yield* faults(lab, { kind: "unauthorized" })
        for (const kind of ["lend", "attach"] as const) yield* failed(yield* ask(lab, id, kind))
        yield* faults(lab)
        yield* Cloud.pass(300_000, 2_000)
        assert.isNull(yield* whereIs(lab, id))
        assert.strictEqual((yield* itemOf((yield* living(id)).uid))?.blocked?.reason, "DriftHeld")
      })
    )
  })

  it.effect("leaves open where the volume should be when nobody had said it: a person's attach stays", () => {
    const lab = Cloud.make()
    return run(
      lab,
      Effect.gen(function* () {
        const id = yield* existing(lab, "shown")
        yield* adopt("shown", id, { on_conflict: "move" })
        yield* Cloud.pass(10_000, 1_000)
        yield* faults(lab, internal("attachVolume"))
        yield* failed(yield* ask(lab, id, "lend"))
        yield* faults(lab)
        yield* operate(lab, { act: "attach", volume_id: id, vm_id: Cloud.otherVm })
        yield* Cloud.pass(300_000, 2_000)
        assert.strictEqual(yield* whereIs(lab, id), Cloud.otherVm)
        yield* quiet(lab)
      })
    )
  })
})

describe("The answer to a call", () => {
  it.effect("is never a deletion that was not: also of a volume whose adoption is still to come (S7)", () => {
    const lab = Cloud.make()
    return run(
      lab,
      Effect.gen(function* () {
        const id = yield* existing(lab, "theirs")
        yield* adopt("theirs", id)
        const call = yield* ended(yield* ask(lab, id, "delete"))
        assert.strictEqual(call.status, "completed", call.error ?? "")
        assert.isUndefined(yield* whereIs(lab, id))
        assert.isUndefined(yield* behind(id))
        yield* quiet(lab)
      })
    )
  })

  it.effect("does not hang on tags, which an account may be denied", () => {
    const lab = Cloud.make()
    return run(
      lab,
      Effect.gen(function* () {
        yield* faults(lab, { kind: "command_denied", command: "createTags" })
        const id = yield* made("disk-0")
        yield* completed(yield* ask(lab, id, "attach"))
        assert.strictEqual(yield* whereIs(lab, id), Cloud.appliance)
      })
    )
  })

  it.effect("costs nothing while a person is waited for: a failed create is not read for each second (S22)", () => {
    const lab = Cloud.make()
    return run(
      lab,
      Effect.gen(function* () {
        yield* faults(lab, { kind: "answer_lost_before_effect", command: "createVolume", times: 1 })
        const id = yield* create("twins")
        yield* Cloud.pass(5_000, 500)
        yield* existing(lab, "twins")
        yield* existing(lab, "twins")
        yield* failed(id)
        const before = (yield* truth(lab)).calls["listVolumes"] ?? 0
        yield* Cloud.pass(600_000, 2_000)
        assert.isAtMost(((yield* truth(lab)).calls["listVolumes"] ?? 0) - before, 60)
      })
    )
  })
})

describe("A maintenance that is ending", () => {
  it.effect("and is begun anew while its last pass reads goes on: nobody's maintenance is lost", () => {
    const lab = Cloud.make()
    return run(
      lab,
      Effect.gen(function* () {
        const store = yield* Store
        yield* Cloud.declare("a", { attached_to: "none", export_wanted: false })
        assert.isAtLeast(yield* Cloud.until(Cloud.allSettled, 60_000), 0)
        const since = new Date(yield* Clock.currentTimeMillis).toISOString()
        const first = { reason: "array", by: "storage", since, until: null, ending: false }
        yield* store.setMaintenance(first)
        yield* faults(lab, { kind: "slow_answer", command: "listVolumes", ms: 4_000 })
        yield* store.setMaintenance({ ...first, ending: true })
        yield* Cloud.pass(16_500, 500)
        const second = { reason: "network", by: "net", since, until: null, ending: false }
        // Whenever the reading of a pass is under way.
        for (let i = 0; i < 8 && (yield* store.maintenance) !== null; i += 1) yield* Cloud.pass(2_000, 500)
        yield* store.setMaintenance({ ...first, ending: true })
        const calls = (yield* truth(lab)).calls["listVolumes"] ?? 0
        const reading = Effect.map(truth(lab), (world) => (world.calls["listVolumes"] ?? 0) > calls)
        assert.isAtLeast(yield* Cloud.until(reading, 90_000), 0)
        yield* store.setMaintenance(second)
        yield* Cloud.pass(60_000, 1_000)
        assert.deepStrictEqual(yield* store.maintenance, second)
      })
    )
  })
})
