import { assert, describe, it } from "@effect/vitest"
import { Clock, Effect } from "effect"
import { Store } from "../../reconciler/Store.ts"
import * as SimulatedNbd from "../../src/Simulation/Nbd.ts"
import * as Cloud from "../support/Cloud.ts"
import * as Lab from "./V1Lab.ts"

const { attach, classify, completed, created, detach, ended, existing, failed, GIB, quiet, remove, truth, whereIs } =
  Lab
const { appliance, testVm } = Cloud

const DAY_MS = 86_400_000

/** How long the old clients wait for an operation of each kind before they give up, ms. */
const patience = { create: 300_000, attach: 120_000, detach: 60_000, delete: 60_000 }

const specOf = (id: string) =>
  Effect.gen(function* () {
    const declarations = yield* (yield* Store).declarations
    return declarations.find(({ binding }) => binding.volume_id === id)?.spec
  })

const drift = (api: Lab.Api) =>
  Effect.promise(async (signal) => {
    const response = await fetch(`${api.url}/api/v2/drift`, { signal })
    return (await response.json()) as { readonly items: ReadonlyArray<Lab.Json> }
  })

describe("A call whose deadline has come", () => {
  it.effect("to create fails before its client gives up, in words that let it try again (J6)", () => {
    const lab = Cloud.make()
    return Lab.run(lab, (api) =>
      Effect.gen(function* () {
        yield* Lab.faults(lab, { kind: "slow_job", command: "createVolume", ms: DAY_MS })
        const end = yield* failed(api, api.send("POST", "/volumes", { name: "slow", size: GIB }))
        assert.isAtLeast(end.took, 275_000)
        assert.isBelow(end.took, patience.create)
        assert.strictEqual(classify(end.error ?? ""), "OPERATION_TIMEOUT")
        assert.deepInclude(end.response, { code: "OPERATION_TIMEOUT" })
      })
    )
  })

  it.effect("to attach fails before its client gives up, and returns to where the volume is (J6)", () => {
    const lab = Cloud.make()
    return Lab.run(lab, (api) =>
      Effect.gen(function* () {
        const id = yield* created(api, "disk-0")
        yield* Lab.faults(lab, { kind: "slow_job", command: "attachVolume", ms: DAY_MS })
        const end = yield* failed(api, attach(api, id, appliance))
        assert.isAtLeast(end.took, 105_000)
        assert.isBelow(end.took, patience.attach)
        assert.strictEqual(classify(end.error ?? ""), "OPERATION_TIMEOUT")
        assert.deepInclude(yield* specOf(id), { attached_to: "none", export_wanted: false })
      })
    )
  })

  it.effect("to detach fails before its client gives up, and the volume stays declared where it is (J6)", () => {
    const lab = Cloud.make()
    return Lab.run(lab, (api) =>
      Effect.gen(function* () {
        const id = yield* created(api, "disk-0")
        yield* completed(api, attach(api, id, testVm))
        yield* Lab.faults(lab, { kind: "slow_job", command: "detachVolume", ms: DAY_MS })
        const end = yield* failed(api, detach(api, id))
        assert.isAtLeast(end.took, 50_000)
        assert.isBelow(end.took, patience.detach)
        assert.strictEqual(classify(end.error ?? ""), "OPERATION_TIMEOUT")
        assert.deepInclude(yield* specOf(id), { attached_to: testVm })
      })
    )
  })

  it.effect(
    "to detach or delete what another program has open names InUse, and the export is there again (S11, N10)",
    () => {
      const lab = Cloud.make()
      return Lab.run(lab, (api) =>
        Effect.gen(function* () {
          const id = yield* created(api, "disk-0")
          yield* completed(api, attach(api, id, appliance))
          const pid = SimulatedNbd.connect(
            lab.nbd,
            `migration-vol-${id}`,
            "10.0.0.7:50000",
            yield* Clock.currentTimeMillis
          )
          const [holder] = lab.nbd.holders
          if (pid === null || holder === undefined) return yield* Effect.dieMessage("it was not let in")
          // No client of the NBD server: consent to ending connections says nothing about it.
          lab.nbd.holders.splice(0, 1, { ...holder, command: "dd", peer: null })
          for (const call of [detach, remove]) {
            const end = yield* failed(api, call(api, id))
            assert.isBelow(end.took, patience.detach)
            assert.match(end.error ?? "", /InUse/u)
            assert.include(end.error, "dd")
            assert.strictEqual(classify(end.error ?? ""), "OPERATION_TIMEOUT")
            assert.lengthOf(lab.nbd.holders, 1)
            yield* Cloud.pass(10_000)
            assert.deepInclude((yield* api.send("GET", `/exports/${id}`)).body, { served: true, status: "active" })
            assert.deepStrictEqual([...lab.nbd.fenced.keys()], [], "the wish is withdrawn, and the fence with it")
          }
          SimulatedNbd.leave(lab.nbd, pid)
          yield* Cloud.pass(60_000, 2_000)
          assert.strictEqual(yield* whereIs(lab, id), appliance)
          assert.deepInclude((yield* api.send("GET", `/exports/${id}`)).body, { served: true })
          yield* quiet(lab)
        })
      )
    }
  )

  it.effect("for a disk that never comes says so with the word by which old clients try again (D1, D8)", () => {
    const lab = Cloud.make({ device_delay_ms: DAY_MS })
    return Lab.run(lab, (api) =>
      Effect.gen(function* () {
        const id = yield* created(api, "disk-0")
        const end = yield* failed(api, attach(api, id, appliance))
        assert.strictEqual(classify(end.error ?? ""), "DEVICE_CORRELATION_FAILED")
        assert.deepInclude(end.response, { code: "DEVICE_CORRELATION_FAILED" })
        assert.lengthOf(lab.nbd.file, 0)
      })
    )
  })

  it.effect("while the hold file is there names it, in no word that asks for another try", () => {
    const lab = Cloud.make()
    return Lab.run(lab, (api) =>
      Effect.gen(function* () {
        const id = yield* created(api, "disk-0")
        lab.hold.reason = "the storage is being moved"
        const end = yield* failed(api, attach(api, id, appliance))
        assert.include(end.error, "the storage is being moved")
        assert.strictEqual(classify(end.error ?? ""), "UNKNOWN_ERROR")
        lab.hold.reason = null
        yield* Cloud.pass(100_000, 2_000)
        assert.isNull(yield* whereIs(lab, id))
      })
    )
  })
})

describe("A call that CloudStack refuses", () => {
  it.effect("for a limit ends at once in the words of a limit, with the real number (C7)", () => {
    const lab = Cloud.make()
    return Lab.run(lab, (api) =>
      Effect.gen(function* () {
        for (const code of [535, 532, 533]) {
          yield* Lab.faults(lab, { kind: "refused", command: "createVolume", code, text: "Maximum number exceeded" })
          const end = yield* failed(api, api.send("POST", "/volumes", { name: `n${code}`, size: GIB }))
          // 533 alone is no proof: it is observed first that nothing was made.
          assert.isBelow(end.took, code === 533 ? 90_000 : 20_000)
          assert.strictEqual(classify(end.error ?? ""), "CLOUDSTACK_RESOURCE_LIMIT")
          assert.deepInclude(end.response, { code: "CLOUDSTACK_RESOURCE_LIMIT", cloudstack_code: code })
        }
        yield* Lab.faults(lab)
        yield* Cloud.pass(100_000, 2_000)
        assert.lengthOf(
          (yield* truth(lab)).volumes.filter(({ type }) => type === "DATADISK"),
          0
        )
      })
    )
  })

  it.effect("in its job, for a limit, ends as soon as nothing is seen of it (C15)", () => {
    const lab = Cloud.make()
    return Lab.run(lab, (api) =>
      Effect.gen(function* () {
        const id = yield* created(api, "disk-0")
        for (const code of [535, 533]) {
          yield* Lab.faults(lab, { kind: "job_failed", command: "attachVolume", code, text: "no room on the device" })
          const end = yield* failed(api, attach(api, id, testVm))
          assert.isBelow(end.took, 60_000)
          assert.strictEqual(classify(end.error ?? ""), "CLOUDSTACK_RESOURCE_LIMIT")
          assert.deepInclude(end.response, { cloudstack_code: code })
          assert.notMatch(end.error ?? "", /timeout|device/u)
        }
        assert.isNull(yield* whereIs(lab, id))
      })
    )
  })

  it.effect("for what was asked ends at once as a wrong parameter, whatever words CloudStack uses (C7)", () => {
    const lab = Cloud.make()
    return Lab.run(lab, (api) =>
      Effect.gen(function* () {
        const id = yield* created(api, "disk-0")
        const text = "timeout of the device is not a valid parameter"
        yield* Lab.faults(lab, { kind: "refused", command: "attachVolume", code: 431, text })
        const end = yield* failed(api, attach(api, id, testVm))
        assert.isBelow(end.took, 20_000)
        assert.strictEqual(classify(end.error ?? ""), "CLOUDSTACK_INVALID_PARAMETER")
        assert.notMatch(end.error ?? "", /timeout|device/u)
      })
    )
  })
})

describe("What a failed call wished", () => {
  it.effect("is taken back: nothing fires when the obstacle goes away", () => {
    const lab = Cloud.make()
    return Lab.run(lab, (api) =>
      Effect.gen(function* () {
        const id = yield* created(api, "disk-0")
        yield* Lab.faults(lab, { kind: "throttled", command: "attachVolume" })
        yield* failed(api, attach(api, id, appliance))
        yield* Lab.faults(lab)
        const before = (yield* truth(lab)).calls
        yield* Cloud.pass(150_000, 2_000)
        assert.isNull(yield* whereIs(lab, id))
        assert.strictEqual((yield* truth(lab)).calls["attachVolume"], before["attachVolume"])
        assert.lengthOf(lab.nbd.file, 0)
        // And the next call finds nothing in its way.
        yield* completed(api, attach(api, id, appliance))
        yield* quiet(lab)
      })
    )
  })

  it.effect("and takes effect all the same is shown as LateEffect, and left for a person (C3, J2)", () => {
    const lab = Cloud.make()
    return Lab.run(lab, (api) =>
      Effect.gen(function* () {
        const id = yield* created(api, "disk-0")
        yield* Lab.faults(lab, { kind: "slow_job", command: "attachVolume", ms: 150_000, times: 1 })
        yield* failed(api, attach(api, id, testVm))
        yield* Cloud.pass(100_000, 2_000)
        assert.strictEqual(yield* whereIs(lab, id), testVm)
        const { items } = yield* drift(api)
        assert.deepInclude(items[0]?.["blocked"], { reason: "LateEffect" })
        assert.isUndefined((yield* truth(lab)).calls["detachVolume"])
        yield* completed(api, detach(api, id))
        assert.isNull(yield* whereIs(lab, id))
        assert.lengthOf((yield* drift(api)).items, 0)
        yield* quiet(lab)
      })
    )
  })

  it.effect("leaves a foreign attachment that it did not get to detach a foreign one (S23)", () => {
    const lab = Cloud.make()
    return Lab.run(lab, (api) =>
      Effect.gen(function* () {
        const id = yield* existing(lab, "theirs", testVm)
        yield* Lab.faults(lab, { kind: "throttled", command: "detachVolume" })
        yield* failed(api, detach(api, id))
        yield* Lab.faults(lab)
        yield* Cloud.pass(100_000, 2_000)
        assert.strictEqual(yield* whereIs(lab, id), testVm)
        const end = yield* failed(api, attach(api, id, appliance))
        assert.include(end.error, testVm)
        assert.strictEqual(yield* whereIs(lab, id), testVm)
        yield* quiet(lab)
      })
    )
  })

  it.effect("stays wished by a newer call that wishes the same", () => {
    const lab = Cloud.make()
    return Lab.run(lab, (api) =>
      Effect.gen(function* () {
        const id = yield* created(api, "disk-0")
        yield* Lab.faults(lab, { kind: "throttled", command: "attachVolume" })
        const first = yield* Lab.accepted(attach(api, id, appliance))
        yield* Cloud.pass(60_000, 1_000)
        const second = yield* Lab.accepted(attach(api, id, appliance))
        assert.strictEqual((yield* ended(api, first)).status, "failed")
        yield* Lab.faults(lab)
        assert.strictEqual((yield* ended(api, second)).status, "completed")
        assert.strictEqual(yield* whereIs(lab, id), appliance)
      })
    )
  })
})
