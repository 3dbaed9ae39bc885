import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import type { Held } from "../../schema/Action.ts"
import { VolumeId } from "../../schema/Ids.ts"
import { type Inventory, known, sectionOf, unread } from "../../schema/Inventory.ts"
import { emptyInventory, GIB, offering, send, start, type Started, zone } from "./support.ts"

const volumeId = VolumeId.make("c6ef61d1-300f-442a-86e5-000000000001")

const heldOf = ({ world }: Started): ReadonlyArray<Held> =>
  world.declarations.map(({ uid, name, generation }) => ({
    uid,
    name,
    generation,
    volume_id: volumeId,
    action: "delete"
  }))

describe("plan, approve and drift", () => {
  it.scopedLive("shows the plan for what is declared, where it was made and how the sources were read", () =>
    Effect.gen(function* () {
      const { client, world, url } = yield* start()
      yield* client.put("a", { size: "1Gi" })
      world.inventory = { ...emptyInventory, guest: unread(2_000, "EACCES", "sysfs is not readable") }
      const { plan, place, text, sources } = yield* client.plan
      assert.deepStrictEqual(
        plan.items.map(({ name }) => `${name}`),
        ["a"]
      )
      assert.strictEqual(place.server, url)
      assert.strictEqual(place.cloud, "http://127.0.0.1:8096/client/api")
      assert.include(text, place.appliance_vm_id)
      assert.notInclude(text, "hunter2")
      assert.deepStrictEqual(sources.guest, {
        state: "unread",
        at: "1970-01-01T00:00:02.000Z",
        message: "sysfs is not readable"
      })
      assert.strictEqual(sources.cloudstack.state, "known")
    })
  )

  it.scopedLive("approves exactly what is held under the digest, for an hour (S17)", () =>
    Effect.gen(function* () {
      const started = yield* start()
      const { client, world } = started
      yield* client.put("a", { size: "1Gi" })
      const none = yield* Effect.flip(client.approve("digest-of-1"))
      assert.strictEqual(none._tag === "ApiError" ? none.code : none._tag, "CONFLICT")
      world.held = heldOf(started)
      const stale = yield* Effect.flip(client.approve("digest-of-2"))
      assert.ok(stale._tag === "ApiError")
      assert.strictEqual(stale.details["digest"], "digest-of-1")
      assert.strictEqual(world.approvals.length, 0)
      world.poked = []
      const before = Date.now()
      const approved = yield* client.approve("digest-of-1")
      assert.deepStrictEqual(approved.approved, world.held)
      const left = (world.approvals[0]?.expires_at ?? 0) - before
      assert.isTrue(left >= 3_600_000 && left < 3_660_000)
      assert.deepStrictEqual(
        world.poked,
        world.held.map(({ uid }) => uid)
      )
    })
  )

  it.scopedLive("refuses an approval of another shape", () =>
    Effect.gen(function* () {
      const { url } = yield* start()
      for (const json of [{}, { digest: 1 }, { digest: "x", all: true }, []]) {
        const refused = yield* send(`${url}/api/v2/plan/approve`, { method: "POST", json })
        assert.strictEqual(refused.status, 400)
      }
    })
  )

  it.scopedLive("shows on a dry run whom an approval would concern, and approves nothing", () =>
    Effect.gen(function* () {
      const started = yield* start()
      const { client, world } = started
      yield* client.put("a", { size: "1Gi" })
      world.held = heldOf(started)
      const plan = yield* client.approveDryRun("digest-of-1")
      assert.deepStrictEqual<ReadonlyArray<string>>(plan.changed, ["a"])
      assert.strictEqual(world.approvals.length, 0)
      const other = yield* Effect.flip(client.approveDryRun("digest-of-9"))
      assert.strictEqual(other._tag === "ApiError" ? other.code : other._tag, "CONFLICT")
    })
  )

  it.scopedLive("lists only gaps that no declaration caused, with when they were first seen", () =>
    Effect.gen(function* () {
      const { client, world } = yield* start()
      yield* client.put("a", { size: "1Gi" })
      yield* client.put("b", { size: "1Gi" })
      world.drifting = new Set(["b"])
      world.declarations = world.declarations.map((declaration) => ({
        ...declaration,
        binding: { ...declaration.binding, drift_since: 5_000 }
      }))
      const { items } = yield* client.drift
      assert.deepStrictEqual(
        items.map(({ name, aspect, first_seen }) => [`${name}`, aspect, first_seen]),
        [["b", "attachment", "1970-01-01T00:00:05.000Z"]]
      )
    })
  )
})

describe("GET /api/v2/offerings", () => {
  it.scopedLive("shows what there is and what is taken when nothing is named, read once a day", () =>
    Effect.gen(function* () {
      const { client, url, world } = yield* start()
      world.cloudDown = true
      const away = yield* send(`${url}/api/v2/offerings`)
      assert.strictEqual(away.status, 503)
      assert.strictEqual(away.body["code"], "CLOUDSTACK_UNAVAILABLE")
      world.cloudDown = false
      const { items, zones, default_disk_offering_id, default_zone_id } = yield* client.offerings
      assert.deepStrictEqual(
        items.map(({ name, customized, size_gib }) => [name, customized, size_gib]),
        [
          ["Custom OSSEA", true, 0],
          ["Fixed 20", false, 20]
        ]
      )
      assert.deepStrictEqual(zones, [{ id: zone, name: "zone-1" }])
      assert.deepStrictEqual([default_disk_offering_id, default_zone_id], [offering, zone])
      world.cloudDown = true
      assert.strictEqual((yield* send(`${url}/api/v2/offerings`)).status, 200)
    })
  )
})

const exporting = (served: boolean): Inventory => ({
  ...emptyInventory,
  guest: known(1_000, {
    devices: [
      {
        kernel_name: "vdb",
        kernel_path: "/dev/vdb",
        serial: "c6ef61d1300f442a86e5",
        size: GIB,
        read_only: false,
        identity: "252:16",
        forbidden: null,
        by_id_paths: ["/dev/disk/by-id/virtio-c6ef61d1300f442a86e5"],
        controller: "virtio1"
      }
    ],
    broken_links: []
  }),
  nbd: known(1_000, {
    engine: "nbd-server",
    version: "3.24",
    server: { state: "running", pid: 7, problem: null },
    host: "127.0.0.1",
    port: 10809,
    read_only_port: 10_809,
    sections: [
      sectionOf(`migration-vol-${volumeId}`, "/dev/disk/by-id/virtio-c6ef61d1300f442a86e5", false),
      { ...sectionOf("somebody-elses", "/dev/sdz", true), device: "65:144" }
    ],
    config_problem: null,
    narrowings: [],
    loaded: true,
    verifications: [
      {
        name: `migration-vol-${volumeId}`,
        outcome: served ? "served" : "denied",
        size: served ? GIB : null,
        read_only: served ? false : null,
        device: served ? "252:16" : null,
        verified_at: 1_500,
        message: served ? null : "access denied by server configuration"
      }
    ],
    holders: [
      { pid: 42, command: "nbd-server", device: "252:16", peer: "10.0.0.5:4242", since: "2026-03-01T12:00:00Z" },
      { pid: 44, command: "nbd-server", device: "65:144", peer: "10.0.0.6:4243", since: null },
      { pid: 43, command: "dd", device: "252:16", peer: null, since: null }
    ]
  })
})

describe("GET /api/v1/exports", () => {
  it.scopedLive("shows what is wanted, written down and served, and who is connected", () =>
    Effect.gen(function* () {
      const { url, client, world } = yield* start()
      yield* client.put("a", { volume_id: volumeId, attached_to: "appliance", export_wanted: true })
      world.inventory = exporting(true)
      const { body } = yield* send(`${url}/api/v1/exports`)
      assert.deepStrictEqual(body["server"], {
        engine: "nbd-server",
        version: "3.24",
        host: "127.0.0.1",
        port: 10809,
        state: "running"
      })
      assert.strictEqual(body["count"], 2)
      const [ours, foreign] = (yield* client.exports).exports
      assert.deepStrictEqual(ours, {
        id: volumeId,
        name: `migration-vol-${volumeId}`,
        export_name: `migration-vol-${volumeId}`,
        volume_id: volumeId,
        device_path: "/dev/disk/by-id/virtio-c6ef61d1300f442a86e5",
        by_id_path: "/dev/disk/by-id/virtio-c6ef61d1300f442a86e5",
        kernel_path: "/dev/vdb",
        port: 10809,
        status: "active",
        wanted: true,
        configured: true,
        served: true,
        size: GIB,
        read_only: false,
        connections: [{ peer: "10.0.0.5:4242", pid: 42, since: "2026-03-01T12:00:00Z" }],
        verified_at: "1970-01-01T00:00:01.500Z",
        problem: null
      })
      assert.deepStrictEqual(
        [foreign?.name, foreign?.status, foreign?.wanted, foreign?.volume_id, foreign?.device_path],
        ["somebody-elses", "foreign", false, "", "/dev/sdz"]
      )
      // Its clients are there although no disk of ours is behind it: who reboots asks for them.
      assert.deepStrictEqual(foreign?.connections, [{ peer: "10.0.0.6:4243", pid: 44, since: null }])
      world.inventory = exporting(false)
      const [denied] = (yield* client.exports).exports
      assert.deepStrictEqual(
        [denied?.status, denied?.served, denied?.problem],
        ["failed", false, "access denied by server configuration"]
      )
    })
  )

  it.scopedLive("says that it does not know while nothing was read, and shows wanted ones all the same", () =>
    Effect.gen(function* () {
      const { client, world } = yield* start()
      world.inventory = null
      yield* client.put("a", { volume_id: volumeId, export_wanted: true })
      yield* client.put("b", { size: "1Gi", export_wanted: true })
      const { server, exports } = yield* client.exports
      assert.strictEqual(server.state, "unknown")
      assert.deepStrictEqual(
        exports.map(({ volume_id, status, wanted, configured, served }) => [
          volume_id,
          status,
          wanted,
          configured,
          served
        ]),
        [[volumeId, "unknown", true, false, false]]
      )
    })
  )
})
