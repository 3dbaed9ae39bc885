import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import type * as Api from "../../schema/Api.ts"
import { type VmId, VolumeId } from "../../schema/Ids.ts"
import type { CloudVolume } from "../../schema/Inventory.ts"
import { appliance, GIB, offering, otherVm, send, start, type World, zone } from "./support.ts"

const volumeId = VolumeId.make("c6ef61d1-300f-442a-86e5-000000000001")

const volume = (id: VolumeId, vm_id: VmId | null): CloudVolume => ({
  id,
  name: "foreign",
  type: "DATADISK",
  state: "Ready",
  size: GIB,
  vm_id,
  vm_name: vm_id,
  vm_state: vm_id === null ? null : "Running",
  device_id: vm_id === null ? null : 1,
  zone_id: zone,
  disk_offering_id: offering,
  created_at: null,
  tags: [],
  job_id: null,
  delete_protection: false
})

/** What CloudStack lists, from now on. */
const shows = (world: World, ...volumes: ReadonlyArray<CloudVolume>) => {
  const { inventory } = world
  assert.ok(inventory !== null && inventory.cloud._tag === "Known")
  world.inventory = { ...inventory, cloud: { ...inventory.cloud, value: { ...inventory.cloud.value, volumes } } }
}

describe("GET /api/v2/volumes", () => {
  it.scopedLive("pages in bytewise order and tells the newest event it contains", () =>
    Effect.gen(function* () {
      const { client } = yield* start()
      for (const name of ["b", "B", "a", "a-1", "c"]) yield* client.put(name, { size: "1Gi" })
      const first = yield* client.volumes({ limit: 2 })
      assert.deepStrictEqual(
        first.items.map(({ name }) => `${name}`),
        ["B", "a"]
      )
      assert.strictEqual(first.event_id, 5)
      const second = yield* client.volumes({ limit: 2, cursor: first.next_cursor ?? "" })
      assert.deepStrictEqual(
        second.items.map(({ name }) => `${name}`),
        ["a-1", "b"]
      )
      const third = yield* client.volumes({ limit: 2, cursor: second.next_cursor ?? "" })
      assert.deepStrictEqual(
        third.items.map(({ name }) => `${name}`),
        ["c"]
      )
      assert.strictEqual(third.next_cursor, null)
    })
  )

  it.scopedLive("filters by what is declared and by conditions", () =>
    Effect.gen(function* () {
      const { client, world, url } = yield* start()
      yield* client.apply({
        set: "s1",
        volumes: [
          { name: "a", size: "1Gi", attached_to: "appliance", metadata: { job: "x" } },
          { name: "b", size: "1Gi", attached_to: otherVm, paused: { reason: "r", by: "b" } }
        ]
      })
      yield* client.put("c", { volume_id: volumeId, metadata: { job: "x" } })
      world.ready = new Set(["b"])
      const names = (filter: Parameters<typeof client.volumes>[0]) =>
        Effect.map(client.volumes(filter), ({ items }) => items.map(({ name }) => `${name}`).join())
      assert.strictEqual(yield* names({ set: "s1" }), "a,b")
      assert.strictEqual(yield* names({ metadata: { job: "x" } }), "a,c")
      assert.strictEqual(yield* names({ metadata: { job: "x" }, set: "s1" }), "a")
      assert.strictEqual(yield* names({ attached_to: "appliance" }), "a")
      assert.strictEqual(yield* names({ attached_to: appliance }), "a", "the appliance has two names")
      assert.strictEqual(yield* names({ attached_to: otherVm }), "b")
      assert.strictEqual(yield* names({ volume_id: volumeId }), "c")
      assert.strictEqual(yield* names({ paused: true }), "b")
      assert.strictEqual(yield* names({ paused: false }), "a,c")
      assert.strictEqual(yield* names({ condition: "Ready:False" }), "a,c")
      assert.strictEqual(yield* names({ condition: "Ready:True" }), "b")
      assert.strictEqual(yield* names({ removed: true }), "")
      for (const query of [
        "limit=0",
        "limit=1001",
        "limit=ten",
        "cursor=%21",
        "paused=maybe",
        "nmae=a",
        "set=a&set=b"
      ]) {
        assert.strictEqual((yield* send(`${url}/api/v2/volumes?${query}`)).status, 400, query)
      }
    })
  )

  it.scopedLive("pages through those of which a condition holds, each once", () =>
    Effect.gen(function* () {
      const { client, world } = yield* start()
      const all = ["a", "b", "c", "d", "e", "f"]
      for (const name of all) yield* client.put(name, { size: "1Gi" })
      world.ready = new Set(["a", "c", "d", "f"])
      const seen: Array<string> = []
      let cursor: string | null = null
      do {
        const page: Api.VolumeList = yield* client.volumes({
          condition: "Ready:True",
          limit: 2,
          ...(cursor === null ? {} : { cursor })
        })
        seen.push(...page.items.map(({ name }) => `${name}`))
        cursor = page.next_cursor
      } while (cursor !== null)
      assert.deepStrictEqual(seen, ["a", "c", "d", "f"])
    })
  )

  it.scopedLive("shows attached volumes nobody declared", () =>
    Effect.gen(function* () {
      const { client, world, url } = yield* start()
      const foreign = VolumeId.make("c6ef61d1-300f-442a-86e5-000000000002")
      const elsewhere = VolumeId.make("c6ef61d1-300f-442a-86e5-000000000005")
      shows(
        world,
        volume(volumeId, appliance),
        volume(foreign, appliance),
        volume(VolumeId.make("c6ef61d1-300f-442a-86e5-000000000003"), null),
        { ...volume(VolumeId.make("c6ef61d1-300f-442a-86e5-000000000004"), appliance), type: "ROOT" },
        volume(elsewhere, otherVm)
      )
      yield* client.put("a", { volume_id: volumeId })
      const { items } = yield* client.unmanaged()
      assert.deepStrictEqual(
        items.map(({ volume_id, on_appliance }) => [volume_id, on_appliance]),
        [
          [foreign, true],
          [elsewhere, false]
        ]
      )
      const ids = (query: string) =>
        Effect.map(send(`${url}/api/v2/volumes?unmanaged=true&${query}`), ({ body }) =>
          (body["items"] as ReadonlyArray<{ readonly volume_id: string }>).map(({ volume_id }) => volume_id)
        )
      assert.deepStrictEqual(yield* ids(`attached_to=${otherVm}`), [elsewhere])
      assert.deepStrictEqual(yield* ids("attached_to=appliance"), [foreign])
      assert.deepStrictEqual(yield* ids(`volume_id=${elsewhere}`), [elsewhere])
      for (const query of ["set=s1", "paused=false", "removed=true", "condition=Ready:True", "metadata.job=x"]) {
        const refused = yield* send(`${url}/api/v2/volumes?unmanaged=true&${query}`)
        assert.strictEqual(refused.status, 400, `${query} is of what is declared`)
      }
    })
  )

  it.scopedLive("finds an adopted volume by the VM it is seen on, whoever put it there", () =>
    Effect.gen(function* () {
      const { client, world } = yield* start()
      yield* client.put("a", { volume_id: volumeId })
      shows(world, volume(volumeId, otherVm))
      const names = (attached_to: string) =>
        Effect.map(client.volumes({ attached_to }), ({ items }) => items.map(({ name }) => `${name}`))
      assert.deepStrictEqual(yield* names(otherVm), ["a"])
      assert.deepStrictEqual(yield* names("appliance"), [])
      shows(world, volume(volumeId, appliance))
      assert.deepStrictEqual(yield* names("appliance"), ["a"])
    })
  )

  it.scopedLive("counts a pause that is over as none", () =>
    Effect.gen(function* () {
      const { client } = yield* start()
      const paused = (until: string) => ({ size: "1Gi", paused: { reason: "r", by: "b", until } })
      yield* client.put("over", paused("2020-01-01T00:00:00Z"))
      yield* client.put("going-on", paused("2999-01-01T00:00:00Z"))
      const names = (paused: boolean) =>
        Effect.map(client.volumes({ paused }), ({ items }) => items.map(({ name }) => `${name}`))
      assert.deepStrictEqual(yield* names(true), ["going-on"])
      assert.deepStrictEqual(yield* names(false), ["over"])
    })
  )
})
