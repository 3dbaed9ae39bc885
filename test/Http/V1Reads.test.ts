import { assert, describe, it } from "@effect/vitest"
import { Clock, Effect, Schema } from "effect"
import * as Api from "../../schema/Api.ts"
import type { VolumeId } from "../../schema/Ids.ts"
import type { Inventory } from "../../schema/Inventory.ts"
import * as Cloud from "../support/Cloud.ts"
import * as Worlds from "../support/Worlds.ts"
import * as Support from "./support.ts"
import * as Lab from "./V1Lab.ts"

const { attach, completed, created, detach, existing, truth } = Lab
const { appliance, testVm } = Cloud

/** Exactly what the contract documents: no member more, none less. */
const decoded = <A, I>(schema: Schema.Schema<A, I>, body: unknown): A =>
  Schema.decodeUnknownSync(schema)(body, { onExcessProperty: "error" })

const get = <A, I>(api: Lab.Api, schema: Schema.Schema<A, I>, path: string) =>
  Effect.map(api.send("GET", path), ({ body, status }) => {
    assert.strictEqual(status, 200, JSON.stringify(body))
    return decoded(schema, body)
  })

const Volumes = Schema.Array(Api.V1Volume)
const Devices = Schema.Array(Api.V1Device)

describe("GET /api/v1/volumes", () => {
  it.effect("lists all that CloudStack shows, whoever they belong to, a page at a time and each once (O3)", () => {
    const lab = Cloud.make()
    return Lab.run(lab, (api) =>
      Effect.gen(function* () {
        const ids = yield* Effect.forEach(Array.from({ length: 7 }), (_, n) => existing(lab, `disk-${n}`))
        yield* api.send("POST", "/admin/force-sync")
        const all: Array<string> = []
        let cursor: string | null = ""
        while (cursor !== null) {
          const after: string = cursor === "" ? "" : `&cursor=${encodeURIComponent(cursor)}`
          const { body, headers, status } = yield* api.send("GET", `/volumes?limit=4${after}`)
          assert.strictEqual(status, 200)
          const page = decoded(Volumes, body)
          assert.isAtMost(page.length, 4)
          all.push(...page.map(({ volume_id }) => volume_id))
          cursor = headers.get("next-cursor")
        }
        const { volumes } = yield* truth(lab)
        assert.deepStrictEqual(all, volumes.map(({ id }) => id).toSorted())
        assert.includeMembers(all, ids)
        const [named, ...others] = yield* get(api, Volumes, "/volumes?name=disk-3")
        assert.strictEqual(named?.volume_id, ids[3])
        assert.lengthOf(others, 0)
        const there = yield* get(api, Volumes, `/volumes?vm_id=${testVm}`)
        assert.deepStrictEqual(
          there.map(({ type, vm_id }) => [type, vm_id]),
          [["ROOT", testVm]]
        )
        for (const query of ["limit=0", "limit=x", "cursor=%00"]) {
          assert.strictEqual((yield* api.send("GET", `/volumes?${query}`)).status, 400, query)
        }
      })
    )
  })

  it.effect("shows one as it is observed: where, as what since when, and what was done to it last", () => {
    const lab = Cloud.make()
    return Lab.run(lab, (api) =>
      Effect.gen(function* () {
        const id = yield* created(api, "disk-0")
        const loose = yield* get(api, Api.V1Volume, `/volumes/${id}`)
        for (const key of ["vm_id", "device_path", "attached_at"]) assert.notProperty(loose, key)
        assert.deepInclude(loose, { volume_id: id, name: "disk-0", type: "DATADISK", size: 5 * Lab.GIB })
        assert.strictEqual(loose.last_operation?.volume_id, id)
        yield* Cloud.pass(10_000)
        const began = yield* Clock.currentTimeMillis
        const call = yield* completed(api, attach(api, id, appliance))
        const here = yield* get(api, Api.V1Volume, `/volumes/${id}`)
        const device_path = String(call.response?.["device_path"])
        assert.deepInclude(here, { vm_id: appliance, device_path, state: "Ready" })
        const attached_at = Date.parse(here.attached_at ?? "")
        assert.isAtLeast(attached_at, began)
        // What ended the call is in what is answered next, and says when it was seen.
        assert.isAtLeast(Date.parse(String(here.cloudstack_data["observed_at"])), began)
        assert.match(String(here.cloudstack_data["created_at"]), /^2026-03-01T12:00:\d\d\.\d{3}Z$/u)
        assert.strictEqual(here.last_operation?.parent_id ?? here.last_operation?.id, call.id)
        const mapping = yield* get(api, Api.V1DeviceMapping, `/volumes/${id}/device`)
        assert.strictEqual(mapping.attached_at, here.attached_at)
        assert.isAtLeast(Date.parse(mapping.last_sync), began)
        assert.deepInclude(mapping, {
          device_path,
          kernel_path: "/dev/vdb",
          cloudstack_state: "attached",
          linux_state: "detected",
          size: 5 * Lab.GIB
        })
        const again = yield* get(api, Api.V1DeviceMapping, `/volumes/${id}/device`)
        assert.strictEqual(again.id, mapping.id)
        yield* completed(api, detach(api, id))
        assert.strictEqual((yield* api.send("GET", `/volumes/${id}/device`)).status, 404)
        assert.notProperty(yield* get(api, Api.V1Volume, `/volumes/${id}`), "device_path")
      })
    )
  })

  it.effect("reads one that came to be since it was looked at last", () => {
    const lab = Cloud.make()
    return Lab.run(lab, (api) =>
      Effect.gen(function* () {
        const id = yield* existing(lab, "new")
        const volume = yield* get(api, Api.V1Volume, `/volumes/${id}`)
        assert.deepInclude(volume, { volume_id: id, name: "new" })
        assert.notProperty(volume, "last_operation")
      })
    )
  })
})

describe("GET /api/v1/vms/{id}/volumes", () => {
  it.effect("lists what CloudStack has there, ROOT included, also on a VM that is new", () => {
    const lab = Cloud.make({ vms: 3 })
    return Lab.run(lab, (api) =>
      Effect.gen(function* () {
        const id = yield* created(api, "disk-0")
        yield* completed(api, attach(api, id, testVm))
        const there = yield* get(api, Volumes, `/vms/${testVm}/volumes`)
        assert.sameDeepMembers(
          there.map(({ type, volume_id }) => [type, volume_id === id]),
          [
            ["ROOT", false],
            ["DATADISK", true]
          ]
        )
      })
    )
  })

  it.effect("asks CloudStack anew where nothing was seen yet", () => {
    const lab = Cloud.make()
    return Lab.run(lab, (api) =>
      Effect.gen(function* () {
        const root = (yield* truth(lab)).volumes.find(({ type, vm_id }) => type === "ROOT" && vm_id === testVm)
        yield* Lab.operate(lab, { act: "stop_vm", vm_id: testVm })
        yield* Lab.operate(lab, { act: "detach", volume_id: root?.id ?? "" })
        yield* api.send("POST", "/admin/force-sync")
        assert.deepStrictEqual(yield* get(api, Volumes, `/vms/${testVm}/volumes`), [])
        const id = yield* existing(lab, "just now")
        yield* Lab.operate(lab, { act: "attach", volume_id: id, vm_id: testVm })
        const there = yield* get(api, Volumes, `/vms/${testVm}/volumes`)
        assert.deepStrictEqual(
          there.map(({ volume_id, vm_id }) => [volume_id, vm_id]),
          [[id, testVm]]
        )
      })
    )
  })
})

describe("GET /api/v1/devices", () => {
  it.effect("lists the disks of the appliance, and finds the volume by each of a disk's names", () => {
    const lab = Cloud.make()
    return Lab.run(lab, (api) =>
      Effect.gen(function* () {
        const id = yield* created(api, "disk-0")
        yield* completed(api, attach(api, id, appliance))
        const [device, ...others] = yield* get(api, Devices, "/devices")
        assert.lengthOf(others, 0)
        assert.deepInclude(device, { path: "/dev/vdb", mapped: true, volume_id: id, size: 5 * Lab.GIB })
        assert.deepStrictEqual(device?.mapping, yield* get(api, Api.V1DeviceMapping, `/volumes/${id}/device`))
        const path = device?.by_id_path ?? ""
        for (const name of ["/dev/vdb", "vdb", path, path.split("/").at(-1) ?? ""]) {
          const volume = yield* get(api, Api.V1Volume, `/devices/${encodeURIComponent(name)}/volume`)
          assert.strictEqual(volume.volume_id, id, name)
        }
        for (const name of ["vdz", "/dev/sda", "../vdb", "%2e%2e", "virtio-"]) {
          const { status } = yield* api.send("GET", `/devices/${encodeURIComponent(name)}/volume`)
          assert.strictEqual(status, 404, name)
        }
      })
    )
  })
})

describe("GET /api/v1/exports", () => {
  it.effect("shows one by its volume, as the list does", () => {
    const lab = Cloud.make()
    return Lab.run(lab, (api) =>
      Effect.gen(function* () {
        const id = yield* created(api, "disk-0")
        yield* completed(api, attach(api, id, appliance))
        const one = yield* get(api, Api.ExportAnswer, `/exports/${id}`)
        const { count, exports, server } = yield* get(api, Api.Exports, "/exports")
        assert.strictEqual(count, 1)
        assert.deepStrictEqual(exports, [one])
        assert.deepInclude(server, { host: "127.0.0.1", port: 10809, state: "running" })
        assert.strictEqual(one.name, one.export_name)
      })
    )
  })

  it.effect("says of one whose volume is elsewhere that it is, not that its name is unknown", () => {
    const lab = Cloud.make()
    return Lab.run(lab, (api) =>
      Effect.gen(function* () {
        const id = yield* created(api, "disk-0")
        yield* completed(api, attach(api, id, appliance))
        yield* completed(api, detach(api, id))
        const loose = yield* get(api, Api.ExportAnswer, `/exports/${id}`)
        assert.deepInclude(loose, { wanted: true, configured: false, served: false, status: "pending" })
        assert.strictEqual(loose.problem, "the volume is not on the appliance")
        yield* completed(api, attach(api, id, testVm))
        assert.strictEqual((yield* get(api, Api.ExportAnswer, `/exports/${id}`)).problem, loose.problem)
        yield* completed(api, attach(api, id, appliance))
        assert.deepInclude(yield* get(api, Api.ExportAnswer, `/exports/${id}`), { served: true, problem: null })
      })
    )
  })
})

/** What the observation shows, as a value: for what a healthy world never shows. */
const seeing = <A, E>(inventory: Inventory | null, body: (api: Lab.Api) => Effect.Effect<A, E>) =>
  Effect.scoped(
    Effect.gen(function* () {
      const { url, world } = yield* Support.start()
      world.inventory = inventory
      return yield* body(Lab.over(url))
    })
  )

const [one, two] = [Worlds.volumeId(1), Worlds.volumeId(2)]
const row = (id: VolumeId, vm_id = Worlds.appliance) => Worlds.cloudVolume(id, { vm_id })

describe("What is not known", () => {
  const reads = [`/volumes`, `/volumes/${one}`, `/volumes/${one}/device`, `/devices`, `/devices/vdb/volume`]

  it.live("is never answered as if it were: 503 while CloudStack is unread or nothing was looked at", () =>
    Effect.forEach([null, Worlds.inventory({ cloud: Worlds.unseen("no answer") })], (inventory) =>
      seeing(inventory, (api) =>
        Effect.gen(function* () {
          for (const path of [...reads, `/vms/${Worlds.vmId(1)}/volumes`]) {
            const { body, headers, status } = yield* api.send("GET", path)
            assert.strictEqual(status, 503, path)
            assert.deepInclude(body, { code: "CLOUDSTACK_UNAVAILABLE" })
            assert.isNotNull(headers.get("retry-after"))
          }
        })
      )
    )
  )

  it.live("of the guest makes no disk absent: 503 for disks, and volumes without a path (S17)", () =>
    seeing(
      Worlds.inventory({ cloud: Worlds.cloud({ volumes: [row(one)] }), guest: Worlds.unseen("sysfs is away") }),
      (api) =>
        Effect.gen(function* () {
          for (const path of [`/volumes/${one}/device`, "/devices", "/devices/vdb/volume"]) {
            assert.strictEqual((yield* api.send("GET", path)).status, 503, path)
          }
          const volume = yield* get(api, Api.V1Volume, `/volumes/${one}`)
          assert.strictEqual(volume.vm_id, Worlds.appliance)
          assert.notProperty(volume, "device_path")
        })
    )
  )
})

describe("A disk's volume", () => {
  it.live("is none where two disks bear one serial (D5)", () =>
    seeing(
      Worlds.inventory({
        cloud: Worlds.cloud({ volumes: [row(one)] }),
        guest: Worlds.guest([Worlds.device(one, "b"), Worlds.device(one, "c")])
      }),
      (api) =>
        Effect.gen(function* () {
          assert.strictEqual((yield* api.send("GET", `/volumes/${one}/device`)).status, 404)
          assert.strictEqual((yield* api.send("GET", "/devices/vdb/volume")).status, 404)
          for (const device of yield* get(api, Devices, "/devices")) {
            assert.isFalse(device.mapped)
            assert.notProperty(device, "volume_id")
          }
        })
    )
  )

  it.live("is known, but no mapping, while CloudStack has it elsewhere or the guest does not show it (D8, D9)", () =>
    seeing(
      Worlds.inventory({
        cloud: Worlds.cloud({ volumes: [row(one, Worlds.vmId(1)), row(two)] }),
        guest: Worlds.guest([Worlds.device(one, "b")])
      }),
      (api) =>
        Effect.gen(function* () {
          assert.strictEqual((yield* api.send("GET", `/volumes/${one}/device`)).status, 404)
          assert.strictEqual((yield* api.send("GET", `/volumes/${two}/device`)).status, 404)
          const [device] = yield* get(api, Devices, "/devices")
          assert.deepInclude(device, { mapped: false, volume_id: one })
          const volume = yield* get(api, Api.V1Volume, "/devices/vdb/volume")
          assert.deepInclude(volume, { volume_id: one, vm_id: Worlds.vmId(1) })
          assert.notProperty(volume, "device_path")
        })
    )
  )

  it.live("is none of a disk that no volume stands behind: listed, with what is known of it", () =>
    seeing(
      Worlds.inventory({
        guest: Worlds.guest([
          Worlds.device(one, "a", { serial: null, by_id_paths: [], controller: "virtio0", forbidden: "mounted" })
        ])
      }),
      (api) =>
        Effect.gen(function* () {
          const devices = yield* get(api, Devices, "/devices")
          assert.deepStrictEqual(devices, [
            { path: "/dev/vda", size: 10 * Lab.GIB, controller: "virtio0", mapped: false }
          ])
        })
    )
  )

  it.live("has its stored mapping's id and times where there is one, and else an id that stays", () =>
    Effect.scoped(
      Effect.gen(function* () {
        const { url, world } = yield* Support.start()
        const api = Lab.over(url)
        world.inventory = Worlds.inPlace([one, two])
        const times = { created_at: "2026-03-01T10:00:00.000Z", updated_at: "2026-03-01T11:00:00.000Z" }
        const stored = { device_path: Worlds.byIdPath(one), size: 1, vm_id: Worlds.appliance, last_sync: "x" }
        world.mappings = [{ id: "mapping-7", volume_id: one, ...stored, ...times }]
        const first = yield* get(api, Api.V1DeviceMapping, `/volumes/${one}/device`)
        assert.deepInclude(first, { id: "mapping-7", attached_at: times.created_at, ...times })
        assert.strictEqual(first.size, 10 * Lab.GIB)
        const second = yield* get(api, Api.V1DeviceMapping, `/volumes/${two}/device`)
        assert.include(second.id, two)
      })
    )
  )
})
