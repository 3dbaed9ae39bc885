import { assert, describe, it } from "@effect/vitest"
import { Clock, Effect } from "effect"
import * as SimulatedNbd from "../../src/Simulation/Nbd.ts"
import * as Cloud from "../support/Cloud.ts"
import * as Lab from "./V1Lab.ts"

const { attach, attachRoot, completed, created, detach, existing, failed, quiet, truth, whereIs } = Lab
const { appliance, otherVm, testVm } = Cloud

const byIdPath = (id: string) => `/dev/disk/by-id/virtio-${id.replaceAll("-", "").slice(0, 20)}`
const exportOf = ({ response }: Lab.Operation) => response?.["export"] as Lab.Json

/** A VM that is stopped and has no root volume, as somebody prepares it for a failover as root. */
const rootless = (lab: Cloud.Lab, vm_id: string) =>
  Effect.gen(function* () {
    yield* Lab.operate(lab, { act: "stop_vm", vm_id })
    const root = (yield* truth(lab)).volumes.find((volume) => volume.vm_id === vm_id && volume.type === "ROOT")
    assert.isDefined(root)
    yield* Lab.operate(lab, { act: "detach", volume_id: root?.id ?? "" })
  })

describe("Attaching to the appliance", () => {
  it.effect("ends with the disk's real path and its export, both there (S7)", () => {
    const lab = Cloud.make()
    return Lab.run(lab, (api) =>
      Effect.gen(function* () {
        const id = yield* created(api, "web disk 0")
        const end = yield* completed(api, attach(api, id, appliance))
        assert.strictEqual(yield* whereIs(lab, id), appliance)
        const { message, ...response } = end.response ?? {}
        assert.isString(message)
        assert.deepStrictEqual(response, {
          volume_id: id,
          device_path: byIdPath(id),
          kernel_path: "/dev/vdb",
          export: { name: `migration-vol-${id}`, host: "127.0.0.1", port: 10809, state: "active" }
        })
        assert.deepInclude(end, { type: "attach", volume_id: id, vm_id: appliance, request: { vm_id: appliance } })
        assert.isTrue(SimulatedNbd.serves(lab.nbd, byIdPath(id).slice(-20), yield* Clock.currentTimeMillis))
        const { body: mapping } = yield* api.send("GET", `/volumes/${id}/device`)
        assert.deepInclude(mapping, { volume_id: id, vm_id: appliance, device_path: byIdPath(id) })
        yield* quiet(lab)
      })
    )
  })

  it.effect("is done 15 s after the disk when the export does not come, and names what is wrong with it (N5)", () => {
    const lab = Cloud.make()
    return Lab.run(lab, (api) =>
      Effect.gen(function* () {
        const id = yield* created(api, "disk-0")
        SimulatedNbd.occupy(lab.nbd)
        const end = yield* completed(api, attach(api, id, appliance))
        assert.isAtLeast(end.took, 15_000)
        assert.isAtMost(end.took, 25_000)
        assert.deepInclude(end.response, { device_path: byIdPath(id), kernel_path: "/dev/vdb" })
        assert.deepInclude(exportOf(end), { state: "pending" })
        assert.isNotEmpty(exportOf(end)["problem"])
        const { body } = yield* api.send("GET", `/exports/${id}`)
        assert.deepInclude(body, { wanted: true, served: false })
        assert.isNotEmpty(body["problem"])
        // It is still wished: the export comes when it can.
        SimulatedNbd.kill(lab.nbd)
        yield* Cloud.pass(60_000, 1_000)
        assert.deepInclude((yield* api.send("GET", `/exports/${id}`)).body, { served: true, problem: null })
      })
    )
  })

  it.effect("leaves exporting alone where V1_ATTACH_EXPORTS is off", () => {
    const lab = Cloud.make()
    return Lab.run(
      lab,
      (api) =>
        Effect.gen(function* () {
          const id = yield* created(api, "disk-0")
          const end = yield* completed(api, attach(api, id, appliance))
          assert.strictEqual(end.response?.["device_path"], byIdPath(id))
          assert.notProperty(end.response, "export")
          assert.lengthOf(lab.nbd.file, 0)
        }),
      { v1_attach_exports: false }
    )
  })

  it.effect("of what is there already, unknown to us, adopts it: nothing is detached or attached", () => {
    const lab = Cloud.make()
    return Lab.run(lab, (api) =>
      Effect.gen(function* () {
        const id = yield* existing(lab, "by hand", appliance)
        const end = yield* completed(api, attach(api, id, appliance))
        assert.strictEqual(end.response?.["device_path"], byIdPath(id))
        assert.strictEqual(exportOf(end)["state"], "active")
        const { calls } = yield* truth(lab)
        assert.isUndefined(calls["detachVolume"])
        assert.isUndefined(calls["attachVolume"])
        assert.strictEqual(yield* whereIs(lab, id), appliance)
        yield* quiet(lab)
      })
    )
  })

  it.effect("asked for again when it is so completes at once and touches nothing", () => {
    const lab = Cloud.make()
    return Lab.run(lab, (api) =>
      Effect.gen(function* () {
        const id = yield* created(api, "disk-0")
        yield* completed(api, attach(api, id, appliance))
        const before = yield* truth(lab)
        const loads = lab.nbd.loads
        const again = yield* completed(api, attach(api, id, appliance))
        assert.strictEqual(again.response?.["device_path"], byIdPath(id))
        assert.isBelow(again.took, 3_000)
        assert.strictEqual((yield* truth(lab)).calls["attachVolume"], before.calls["attachVolume"])
        assert.strictEqual(lab.nbd.loads, loads)
      })
    )
  })

  it.effect("fetches it from another VM where we put it", () => {
    const lab = Cloud.make()
    return Lab.run(lab, (api) =>
      Effect.gen(function* () {
        const id = yield* created(api, "disk-0")
        yield* completed(api, attach(api, id, testVm))
        yield* completed(api, attach(api, id, appliance))
        assert.strictEqual(yield* whereIs(lab, id), appliance)
        yield* quiet(lab)
      })
    )
  })

  it.effect("fails at once where somebody else uses it, naming the VM, however often it is asked for (S23)", () => {
    const lab = Cloud.make()
    return Lab.run(lab, (api) =>
      Effect.gen(function* () {
        const id = yield* existing(lab, "theirs", otherVm)
        for (const _ of [1, 2, 3]) {
          const end = yield* failed(api, attach(api, id, appliance))
          assert.isBelow(end.took, 5_000)
          assert.include(end.error, otherVm)
          assert.strictEqual(Lab.classify(end.error ?? ""), "CLOUDSTACK_INVALID_PARAMETER")
          assert.deepInclude(end.response, { code: "CLOUDSTACK_INVALID_PARAMETER", reason: "ForeignAttachment" })
        }
        yield* Cloud.pass(120_000, 1_000)
        assert.strictEqual(yield* whereIs(lab, id), otherVm)
        const { calls } = yield* truth(lab)
        for (const call of ["detachVolume", "attachVolume", "createTags"]) assert.isUndefined(calls[call], call)
      })
    )
  })
})

describe("Attaching to another VM", () => {
  it.effect("tells no path, for nobody here can know one, and exports nothing", () => {
    const lab = Cloud.make()
    return Lab.run(lab, (api) =>
      Effect.gen(function* () {
        const id = yield* created(api, "disk-0")
        const end = yield* completed(api, attach(api, id, testVm))
        assert.strictEqual(yield* whereIs(lab, id), testVm)
        assert.deepStrictEqual(Object.keys(end.response ?? {}).toSorted(), ["message", "volume_id"])
        assert.strictEqual(end.vm_id, testVm)
        assert.lengthOf(lab.nbd.file, 0)
        const { body } = yield* api.send("GET", `/volumes/${id}`)
        assert.strictEqual(body["vm_id"], testVm)
        assert.notProperty(body, "device_path")
        assert.strictEqual((yield* api.send("GET", `/volumes/${id}/device`)).status, 404)
      })
    )
  })

  it.effect("as its root volume makes it device 0, and the way back makes it a data disk again (S5)", () => {
    const lab = Cloud.make()
    return Lab.run(lab, (api) =>
      Effect.gen(function* () {
        const id = yield* created(api, "disk-0")
        yield* rootless(lab, testVm)
        const end = yield* completed(api, attachRoot(api, id, testVm))
        assert.strictEqual(end.type, "attach")
        const row = (yield* truth(lab)).volumes.find((volume) => volume.id === id)
        assert.deepInclude(row, { vm_id: testVm, type: "ROOT" })
        const { body } = yield* api.send("GET", `/volumes/${id}`)
        assert.deepInclude(body, { vm_id: testVm, type: "ROOT" })
        yield* completed(api, attach(api, id, appliance))
        const back = (yield* truth(lab)).volumes.find((volume) => volume.id === id)
        assert.deepInclude(back, { vm_id: appliance, type: "DATADISK" })
        yield* quiet(lab)
      })
    )
  })

  it.effect("as its root volume waits for it to be stopped, and says so when it was not in time", () => {
    const lab = Cloud.make()
    return Lab.run(lab, (api) =>
      Effect.gen(function* () {
        const id = yield* created(api, "disk-0")
        const end = yield* failed(api, attachRoot(api, id, testVm))
        assert.match(end.error ?? "", /RootNeedsStoppedVm|RootOccupied/u)
        assert.isNull(yield* whereIs(lab, id))
        yield* quiet(lab)
      })
    )
  })

  it.effect("as its root volume is detached again from the VM that stays stopped", () => {
    const lab = Cloud.make()
    return Lab.run(lab, (api) =>
      Effect.gen(function* () {
        const id = yield* created(api, "disk-0")
        yield* rootless(lab, testVm)
        yield* completed(api, attachRoot(api, id, testVm))
        yield* completed(api, detach(api, id))
        const row = (yield* truth(lab)).volumes.find((volume) => volume.id === id)
        assert.deepInclude(row, { vm_id: null, type: "DATADISK" })
        yield* quiet(lab)
      })
    )
  })
})

describe("64 attaches at once, over three VMs", () => {
  it.effect("all end completed, each volume where it was asked to be", () => {
    const lab = Cloud.make()
    return Lab.run(lab, (api) =>
      Effect.gen(function* () {
        const ids = yield* Effect.forEach(Array.from({ length: 64 }), (_, n) => existing(lab, `disk-${n}`))
        const vms = [appliance, testVm, otherVm]
        const wanted = new Map<string, string>(ids.map((id, n) => [id, vms[n % 3] ?? appliance]))
        const calls = yield* Effect.forEach(wanted, ([id, vm]) => Lab.accepted(attach(api, id, vm)), {
          concurrency: "unbounded"
        })
        const ends = yield* Effect.forEach(calls, (call) => Lab.ended(api, call))
        assert.deepStrictEqual(
          ends.filter(({ status }) => status !== "completed"),
          []
        )
        const { volumes } = yield* truth(lab)
        const places = volumes.filter(({ id }) => wanted.has(id)).map(({ id, vm_id }) => [id, vm_id] as const)
        assert.deepStrictEqual(new Map(places), wanted)
        for (const end of ends) {
          const path = wanted.get(end.volume_id) === appliance ? byIdPath(end.volume_id) : undefined
          assert.strictEqual(end.response?.["device_path"], path)
        }
        yield* quiet(lab)
      })
    )
  })
})
