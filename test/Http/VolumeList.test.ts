import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import type * as Api from "../../schema/Api.ts"
import { VolumeId } from "../../schema/Ids.ts"
import { appliance, GIB, offering, otherVm, send, start, zone } from "./support.ts"

const volumeId = VolumeId.make("c6ef61d1-300f-442a-86e5-000000000001")

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
      const { client, world } = yield* start()
      const inventory = world.inventory
      assert.ok(inventory !== null && inventory.cloud._tag === "Known")
      const volume = (id: string, vm_id: string | null, type = "DATADISK") => ({
        id: VolumeId.make(id),
        name: "foreign",
        type,
        state: "Ready",
        size: GIB,
        vm_id: vm_id === null ? null : appliance,
        vm_name: "oma",
        vm_state: "Running",
        device_id: 1,
        zone_id: zone,
        disk_offering_id: offering,
        created_at: null,
        tags: [],
        job_id: null,
        delete_protection: false
      })
      const foreign = "c6ef61d1-300f-442a-86e5-000000000002"
      world.inventory = {
        ...inventory,
        cloud: {
          ...inventory.cloud,
          value: {
            ...inventory.cloud.value,
            volumes: [
              volume(volumeId, appliance),
              volume(foreign, appliance),
              volume("c6ef61d1-300f-442a-86e5-000000000003", null),
              volume("c6ef61d1-300f-442a-86e5-000000000004", appliance, "ROOT")
            ]
          }
        }
      }
      yield* client.put("a", { volume_id: volumeId })
      const { items } = yield* client.unmanaged()
      assert.deepStrictEqual(
        items.map(({ volume_id }) => volume_id),
        [VolumeId.make(foreign)]
      )
      assert.isTrue(items[0]?.on_appliance)
    })
  )
})
