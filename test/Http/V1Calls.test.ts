import { assert, describe, it } from "@effect/vitest"
import { Effect, Schema } from "effect"
import { Store } from "../../reconciler/Store.ts"
import { OperationAnswer } from "../../schema/Api.ts"
import * as SimulatedNbd from "../../src/Simulation/Nbd.ts"
import * as Cloud from "../support/Cloud.ts"
import * as Lab from "./V1Lab.ts"

const { attach, completed, created, detach, ended, existing, failed, GIB, quiet, remove, truth, whereIs } = Lab
const { appliance, otherVm, testVm } = Cloud

const dataDisks = (lab: Cloud.Lab) =>
  Effect.map(truth(lab), ({ volumes }) => volumes.filter(({ type }) => type === "DATADISK"))

const calls = (lab: Cloud.Lab, command: string) => Effect.map(truth(lab), (world) => world.calls[command] ?? 0)

const listed = Schema.decodeUnknownSync(Schema.Array(OperationAnswer))

describe("Creating a volume", () => {
  const body = { name: "pgtest2 disk 0", size: 5 * GIB, metadata: { job: "7", vm: "pgtest2" } }

  it.effect("answers with its id when CloudStack shows it, and keeps what was said of it", () => {
    const lab = Cloud.make()
    return Lab.run(lab, (api) =>
      Effect.gen(function* () {
        const call = yield* Lab.accepted(api.send("POST", "/volumes", { ...body, ignored: [1] }))
        assert.strictEqual(call.volume_id, "")
        assert.deepStrictEqual(call.request, { ...body, ignored: [1] })
        const end = yield* ended(api, call)
        assert.strictEqual(end.status, "completed")
        assert.strictEqual(end.response?.["volume_id"], end.volume_id)
        const [disk, ...others] = yield* dataDisks(lab)
        assert.lengthOf(others, 0)
        assert.deepInclude(disk, { id: end.volume_id, name: body.name, size: 5 * GIB, vm_id: null })
        const [declaration] = yield* (yield* Store).declarations
        assert.match(declaration?.name ?? "", /^pgtest2-disk-0-[0-9a-f]{8}$/u)
        assert.deepInclude(declaration?.spec, {
          deletion_policy: "forget",
          on_drift: "hold",
          attached_to: "none",
          metadata: body.metadata
        })
        yield* quiet(lab)
      })
    )
  })

  it.effect("rounds a size up to whole GiB, and says so", () => {
    const lab = Cloud.make()
    return Lab.run(lab, (api) =>
      Effect.gen(function* () {
        const end = yield* completed(api, api.send("POST", "/volumes", { name: "odd", size: 5 * GIB + 1 }))
        assert.strictEqual(end.response?.["size"], 6 * GIB)
        assert.include(String(end.response?.["message"]), "rounded up to 6 GiB")
      })
    )
  })

  it.effect("is one call however often it is asked for before it has ended (S10)", () => {
    const lab = Cloud.make()
    return Lab.run(lab, (api) =>
      Effect.gen(function* () {
        const { size, name } = body
        const metadata = { vm: "pgtest2", job: "7" }
        const defaults = { disk_offering_id: null, zone_id: "057e86db-c726-4d8c-ab1f-75c5f55d1881" }
        yield* Lab.faults(lab, { kind: "slow_job", command: "createVolume", ms: 20_000 })
        const first = yield* Lab.accepted(api.send("POST", "/volumes", body))
        // The same in other words: keys in another order, a default said aloud.
        const again = yield* Lab.accepted(api.send("POST", "/volumes", { metadata, size, name, ...defaults }))
        assert.strictEqual(again.id, first.id)
        yield* Cloud.pass(5_000)
        assert.strictEqual((yield* Lab.operation(api, first.id)).status, "executing")
        const executing = yield* Lab.accepted(api.send("POST", "/volumes", body))
        assert.strictEqual(executing.id, first.id)
        const other = yield* Lab.accepted(api.send("POST", "/volumes", { ...body, metadata: { job: "8" } }))
        assert.notStrictEqual(other.id, first.id)
        for (const call of [first, other]) assert.strictEqual((yield* ended(api, call)).status, "completed")
        assert.lengthOf(yield* dataDisks(lab), 2)
        // Once it has ended the same is wished once more.
        const later = yield* completed(api, api.send("POST", "/volumes", body))
        assert.notStrictEqual(later.id, first.id)
        assert.lengthOf(yield* dataDisks(lab), 3)
      })
    )
  })

  it.effect("is one call when eight ask at the same time (S10)", () => {
    const lab = Cloud.make()
    return Lab.run(lab, (api) =>
      Effect.gen(function* () {
        const all = yield* Effect.all(
          Array.from({ length: 8 }, () => Lab.accepted(api.send("POST", "/volumes", body))),
          { concurrency: "unbounded" }
        )
        assert.strictEqual(new Set(all.map(({ id }) => id)).size, 1)
        for (const call of all) yield* ended(api, call)
        assert.lengthOf(yield* dataDisks(lab), 1)
      })
    )
  })
})

describe("Detaching", () => {
  it.effect("takes the export away first, and needs neither a body nor a type of one (S11)", () => {
    const lab = Cloud.make()
    return Lab.run(lab, (api) =>
      Effect.gen(function* () {
        const id = yield* created(api, "disk-0")
        yield* completed(api, attach(api, id, appliance))
        const end = yield* completed(api, detach(api, id))
        assert.strictEqual(end.type, "detach")
        assert.deepStrictEqual(end.request, {})
        assert.isNull(yield* whereIs(lab, id))
        assert.lengthOf(lab.nbd.file, 0)
        yield* quiet(lab)
      })
    )
  })

  it.effect("of what is attached nowhere completes at once", () => {
    const lab = Cloud.make()
    return Lab.run(lab, (api) =>
      Effect.gen(function* () {
        const id = yield* created(api, "disk-0")
        const end = yield* completed(api, detach(api, id))
        assert.isBelow(end.took, 3_000)
        assert.strictEqual(yield* calls(lab, "detachVolume"), 0)
      })
    )
  })

  it.effect("of a volume nobody declared names it, and so whatever attachment it has (S23)", () => {
    const lab = Cloud.make()
    return Lab.run(lab, (api) =>
      Effect.gen(function* () {
        const theirs = yield* existing(lab, "theirs", otherVm)
        const here = yield* existing(lab, "here", appliance)
        yield* completed(api, detach(api, theirs))
        yield* completed(api, detach(api, here))
        assert.isNull(yield* whereIs(lab, theirs))
        assert.isNull(yield* whereIs(lab, here))
        yield* quiet(lab)
      })
    )
  })

  it.effect("of a volume nobody declared takes the section that somebody else wrote for it, too (S11)", () => {
    const lab = Cloud.make()
    return Lab.run(lab, (api) =>
      Effect.gen(function* () {
        const id = yield* existing(lab, "by hand", appliance)
        const path = `/dev/disk/by-id/virtio-${id.replaceAll("-", "").slice(0, 20)}`
        SimulatedNbd.edit(lab.nbd, [{ name: "migration-vm-old", path, read_only: false }])
        SimulatedNbd.revive(lab.nbd)
        yield* completed(api, detach(api, id))
        assert.isNull(yield* whereIs(lab, id))
        assert.lengthOf(lab.nbd.file, 0)
        yield* quiet(lab)
      })
    )
  })
})

describe("Deleting", () => {
  it.effect("unexports, detaches and deletes what is on the appliance, without a grace (S6, S11)", () => {
    const lab = Cloud.make()
    return Lab.run(lab, (api) =>
      Effect.gen(function* () {
        const id = yield* created(api, "disk-0")
        yield* completed(api, attach(api, id, appliance))
        const end = yield* completed(api, remove(api, id))
        assert.isBelow(end.took, 55_000)
        assert.isUndefined(yield* whereIs(lab, id))
        const all = listed((yield* api.send("GET", `/operations?volume_id=${id}`)).body)
        assert.includeMembers(
          all.map(({ type }) => type),
          ["unexport", "detach", "delete"]
        )
        // What went well in the end bears no error, whatever was in its way.
        for (const { error, id, status } of all) assert.deepStrictEqual([status, error], ["completed", undefined], id)
        assert.lengthOf(lab.nbd.file, 0)
        assert.lengthOf(yield* (yield* Store).declarations, 0)
        assert.strictEqual((yield* api.send("GET", `/volumes/${id}`)).status, 404)
        yield* quiet(lab)
      })
    )
  })

  it.effect("works by the id alone, for what nobody declared", () => {
    const lab = Cloud.make()
    return Lab.run(lab, (api) =>
      Effect.gen(function* () {
        const loose = yield* existing(lab, "loose")
        const here = yield* existing(lab, "here", appliance)
        yield* completed(api, remove(api, loose))
        yield* completed(api, remove(api, here))
        assert.isUndefined(yield* whereIs(lab, loose))
        assert.isUndefined(yield* whereIs(lab, here))
        yield* quiet(lab)
      })
    )
  })

  it.effect("of many at once ends well for each, as far as the budget of the hour goes (S6)", () => {
    const lab = Cloud.make()
    return Lab.run(lab, (api) =>
      Effect.gen(function* () {
        const ids = yield* Effect.forEach(Array.from({ length: 20 }), (_, n) => existing(lab, `disk-${n}`))
        const all = yield* Effect.forEach(ids, (id) => Lab.accepted(remove(api, id)), { concurrency: "unbounded" })
        const one = yield* existing(lab, "one too many")
        const refused = yield* remove(api, one)
        assert.deepInclude(refused.body, { code: "DELETION_BUDGET" })
        const ends = yield* Effect.forEach(all, (call) => ended(api, call))
        assert.deepStrictEqual(
          ends.filter(({ status }) => status !== "completed"),
          []
        )
        assert.deepStrictEqual(
          (yield* dataDisks(lab)).map(({ id }) => id),
          [one]
        )
        assert.strictEqual((yield* remove(api, one)).status, 429)
        assert.lengthOf(yield* (yield* Store).declarations, 0)
        yield* quiet(lab)
      })
    )
  })
})

describe("Exports by volume", () => {
  it.effect("come with POST, as read-only where that is said, and go with DELETE; the disk stays", () => {
    const lab = Cloud.make()
    return Lab.run(
      lab,
      (api) =>
        Effect.gen(function* () {
          const id = yield* created(api, "disk-0")
          yield* completed(api, attach(api, id, appliance))
          assert.strictEqual((yield* api.send("GET", `/exports/${id}`)).status, 404)
          const made = yield* completed(api, api.send("POST", "/exports", { volume_id: id, read_only: true }))
          assert.strictEqual(made.type, "export")
          assert.deepInclude(made.response?.["export"], { name: `migration-vol-${id}`, state: "active" })
          const { body } = yield* api.send("GET", `/exports/${id}`)
          assert.deepInclude(body, { id, volume_id: id, served: true, wanted: true, read_only: true, status: "active" })
          const gone = yield* completed(api, api.send("DELETE", `/exports/${id}`), 200)
          assert.strictEqual(gone.type, "unexport")
          assert.lengthOf(lab.nbd.file, 0)
          assert.strictEqual((yield* api.send("GET", `/exports/${id}`)).status, 404)
          assert.strictEqual(yield* whereIs(lab, id), appliance)
          yield* quiet(lab)
        }),
      { v1_attach_exports: false }
    )
  })

  it.effect(
    "cannot be of a volume that is not on the appliance: the call fails at once, and nothing comes later",
    () => {
      const lab = Cloud.make()
      return Lab.run(
        lab,
        (api) =>
          Effect.gen(function* () {
            const id = yield* created(api, "disk-0")
            const end = yield* failed(api, api.send("POST", "/exports", { volume_id: id }))
            assert.isBelow(end.took, 3_000)
            assert.strictEqual(Lab.classify(end.error ?? ""), "CLOUDSTACK_INVALID_PARAMETER")
            yield* completed(api, attach(api, id, appliance))
            yield* Cloud.pass(30_000, 1_000)
            assert.lengthOf(lab.nbd.file, 0)
            const unexported = yield* completed(api, api.send("DELETE", `/exports/${id}`), 200)
            assert.isBelow(unexported.took, 3_000)
          }),
        { v1_attach_exports: false }
      )
    }
  )

  it.effect("can be asked for of a volume that nobody declared, and that is not moved by it", () => {
    const lab = Cloud.make()
    return Lab.run(lab, (api) =>
      Effect.gen(function* () {
        const id = yield* existing(lab, "by hand", appliance)
        yield* completed(api, api.send("POST", "/exports", { volume_id: id }))
        assert.deepInclude((yield* api.send("GET", `/exports/${id}`)).body, { served: true })
        yield* completed(api, api.send("DELETE", `/exports/${id}`), 200)
        assert.strictEqual(yield* whereIs(lab, id), appliance)
        assert.strictEqual(yield* calls(lab, "attachVolume"), 0)
        assert.strictEqual(yield* calls(lab, "detachVolume"), 0)
      })
    )
  })
})

describe("A test failover, as the old services do it", () => {
  it.effect("and back: the export goes and comes once each, and the test VM's detach touches none (S11, S12)", () => {
    const lab = Cloud.make()
    return Lab.run(lab, (api) =>
      Effect.gen(function* () {
        const id = yield* created(api, "disk-0")
        const neighbour = yield* created(api, "disk-1")
        yield* completed(api, attach(api, id, appliance))
        yield* completed(api, attach(api, neighbour, appliance))
        const loads = lab.nbd.loads
        const served = (yield* api.send("GET", `/exports/${neighbour}`)).body["verified_at"]
        assert.isString(served)

        yield* completed(api, detach(api, id))
        assert.strictEqual(lab.nbd.loads, loads + 1)
        yield* completed(api, attach(api, id, testVm))
        yield* Cloud.pass(60_000, 1_000)
        const file = lab.nbd.file.map(({ name }) => name)
        yield* completed(api, detach(api, id))
        assert.strictEqual(lab.nbd.loads, loads + 1)
        assert.deepStrictEqual(
          lab.nbd.file.map(({ name }) => name),
          file
        )
        const back = yield* completed(api, attach(api, id, appliance))
        assert.strictEqual(lab.nbd.loads, loads + 2)
        assert.deepInclude(back.response?.["export"], { state: "active" })
        assert.deepInclude((yield* api.send("GET", `/exports/${neighbour}`)).body, { served: true })
        yield* quiet(lab)
      })
    )
  })

  it.effect("ends with cleanup, which detaches from the test VM and brings it back with its export", () => {
    const lab = Cloud.make()
    return Lab.run(lab, (api) =>
      Effect.gen(function* () {
        const id = yield* created(api, "disk-0")
        yield* completed(api, attach(api, id, testVm))
        const body = { test_vm_id: testVm, volume_id: id, oma_vm_id: appliance, delete_vm: false, test_vm_name: "t" }
        const end = yield* completed(api, api.send("POST", "/cleanup/test-failover", body))
        assert.deepInclude(end, { type: "cleanup", vm_id: testVm, volume_id: id, request: body })
        assert.deepInclude(end.response?.["export"], { state: "active" })
        assert.isString(end.response?.["device_path"])
        assert.strictEqual(yield* whereIs(lab, id), appliance)
        yield* quiet(lab)
      })
    )
  })

  it.effect("that somebody else began is cleaned up too, for the call names volume and VM (S23)", () => {
    const lab = Cloud.make()
    return Lab.run(lab, (api) =>
      Effect.gen(function* () {
        const id = yield* existing(lab, "theirs", testVm)
        const cleanup = (test_vm_id: string) =>
          api.send("POST", "/cleanup/test-failover", { test_vm_id, volume_id: id })
        const wrong = yield* cleanup(otherVm)
        assert.strictEqual(wrong.status, 409)
        assert.include(JSON.stringify(wrong.body), testVm)
        assert.strictEqual(yield* whereIs(lab, id), testVm)
        yield* completed(api, cleanup(testVm))
        assert.strictEqual(yield* whereIs(lab, id), appliance)
        yield* quiet(lab)
      })
    )
  })

  it.effect("is not ended by a cleanup that names the VM of an earlier one", () => {
    const lab = Cloud.make()
    return Lab.run(lab, (api) =>
      Effect.gen(function* () {
        const id = yield* created(api, "disk-0")
        yield* completed(api, attach(api, id, otherVm))
        const late = yield* api.send("POST", "/cleanup/test-failover", { test_vm_id: testVm, volume_id: id })
        assert.strictEqual(late.status, 409)
        assert.strictEqual(yield* whereIs(lab, id), otherVm)
      })
    )
  })
})

describe("A newer call", () => {
  it.effect("cancels the older pending one that it contradicts, and the last one wins", () => {
    const lab = Cloud.make()
    return Lab.run(lab, (api) =>
      Effect.gen(function* () {
        const id = yield* created(api, "disk-0")
        const older = yield* Lab.accepted(attach(api, id, testVm))
        const newer = yield* Lab.accepted(attach(api, id, otherVm))
        const end = yield* ended(api, older)
        assert.strictEqual(end.status, "cancelled")
        assert.include(end.error, "superseded")
        assert.strictEqual((yield* ended(api, newer)).status, "completed")
        assert.strictEqual(yield* whereIs(lab, id), otherVm)
        yield* quiet(lab)
      })
    )
  })

  it.effect("under the Idempotency-Key of an earlier one is that one: nothing is done again (X13)", () => {
    const lab = Cloud.make()
    return Lab.run(lab, (api) =>
      Effect.gen(function* () {
        const id = yield* created(api, "disk-0")
        const keyed = () =>
          api.send("POST", `/volumes/${id}/attach`, { vm_id: appliance }, { "idempotency-key": "k-1" })
        const first = yield* completed(api, keyed())
        yield* completed(api, detach(api, id))
        const again = yield* Lab.accepted(keyed())
        assert.strictEqual(again.id, first.id)
        yield* Cloud.pass(30_000, 1_000)
        assert.isNull(yield* whereIs(lab, id))
        const other = yield* api.send("POST", `/volumes/${id}/attach`, { vm_id: testVm }, { "idempotency-key": "k-1" })
        assert.deepInclude(other.body, { code: "IDEMPOTENCY_KEY_REUSED" })
        const create = () => api.send("POST", "/volumes", { name: "x", size: GIB }, { "idempotency-key": "k-2" })
        const one = yield* Lab.accepted(create())
        yield* ended(api, one)
        assert.strictEqual((yield* Lab.accepted(create())).id, one.id)
      })
    )
  })
})

describe("A forced synchronisation", () => {
  it.effect("answers when a full pass has run, with its summary", () => {
    const lab = Cloud.make()
    return Lab.run(lab, (api) =>
      Effect.gen(function* () {
        const id = yield* existing(lab, "new in CloudStack")
        const { body, status } = yield* api.send("POST", "/admin/force-sync")
        assert.strictEqual(status, 200)
        assert.deepInclude(body, { declarations: 0, actions: 0, problems: [] })
        const { body: volumes } = yield* api.send("GET", "/volumes?name=new+in+CloudStack")
        assert.deepInclude((volumes as unknown as ReadonlyArray<Lab.Json>)[0], { volume_id: id })
      })
    )
  })
})
