import { assert, describe, it } from "@effect/vitest"
import { Effect, Fiber } from "effect"
import type { Held } from "../../schema/Action.ts"
import { OperationId, VolumeId } from "../../schema/Ids.ts"
import { type Inventory, known, unread } from "../../schema/Inventory.ts"
import type { Operation } from "../../schema/Operation.ts"
import { emptyInventory, GIB, offering, send, start, type Started, zone } from "./support.ts"

const volumeId = VolumeId.make("c6ef61d1-300f-442a-86e5-000000000001")
const idOf = (index: number) => OperationId.make(`op-12345678-1234-1234-1234-${String(index).padStart(12, "0")}`)

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

const operation = (index: number, part: Partial<Operation> = {}): Operation => ({
  id: idOf(index),
  type: "attach",
  status: "executing",
  volume_id: volumeId,
  vm_id: null,
  request: { _tag: "Attach" },
  response: null,
  error: null,
  created_at: "2026-03-01T12:00:00Z",
  updated_at: "2026-03-01T12:00:00Z",
  completed_at: null,
  name: "a",
  uid: "c6ef61d1-300f-442a-86e5-00000000000a" as Operation["uid"],
  cause: "declaration",
  actor: "v2",
  generation: 1,
  phase: "submitted",
  job_id: null,
  attempts: 1,
  parent_id: null,
  destructive: false,
  submitted_at: 1,
  expires_at: 2,
  ...part
})

describe("GET /api/v1/operations", () => {
  it.scopedLive("answers a bare array, its next page in a header, and leaves empty fields out", () =>
    Effect.gen(function* () {
      const { url, client, world } = yield* start()
      world.operations = [0, 1, 2].map((index) => operation(index, index === 2 ? { type: "detach" } : {}))
      const page = yield* send(`${url}/api/v1/operations?limit=2&made_up=ignored`)
      assert.isTrue(Array.isArray(page.body))
      const [first] = page.body as unknown as ReadonlyArray<Record<string, unknown>>
      assert.sameMembers(Object.keys(first ?? {}), [
        "id",
        "type",
        "status",
        "volume_id",
        "request",
        "created_at",
        "updated_at",
        "name",
        "uid",
        "cause",
        "actor",
        "generation",
        "phase",
        "attempts"
      ])
      assert.strictEqual(page.headers.get("next-cursor"), "2")
      const rest = yield* client.operations({ limit: 2, cursor: "2" })
      assert.deepStrictEqual(
        rest.items.map(({ id }) => id),
        [idOf(2)]
      )
      assert.strictEqual(rest.next, null)
      assert.strictEqual((yield* client.operations({ type: "detach" })).items.length, 1)
      for (const query of ["status=done", "type=attack", "limit=-1", "since=yesterday"]) {
        assert.strictEqual((yield* send(`${url}/api/v1/operations?${query}`)).status, 400, query)
      }
    })
  )

  it.scopedLive("holds one back until it has ended, and answers 404 for unknown and malformed ids", () =>
    Effect.gen(function* () {
      const { url, client, world } = yield* start()
      world.operations = [operation(0)]
      const waiting = yield* Effect.fork(client.operation(idOf(0), 30))
      yield* Effect.sleep(50)
      world.operations = [operation(0, { status: "completed", phase: "settled", completed_at: "2026-03-01T12:00:05Z" })]
      assert.strictEqual((yield* Fiber.join(waiting)).status, "completed")
      for (const id of [idOf(9), "x", "op-1'%20or%201=1"]) {
        const missing = yield* send(`${url}/api/v1/operations/${id}`)
        assert.strictEqual(missing.status, 404)
        assert.strictEqual(missing.body["code"], "NOT_FOUND")
      }
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
    sections: [
      {
        name: `migration-vol-${volumeId}`,
        path: "/dev/disk/by-id/virtio-c6ef61d1300f442a86e5",
        read_only: false
      },
      { name: "somebody-elses", path: "/dev/sdz", read_only: true }
    ],
    config_problem: null,
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
        [foreign?.name, foreign?.status, foreign?.wanted, foreign?.volume_id],
        ["somebody-elses", "foreign", false, ""]
      )
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

describe("GET /health", () => {
  it.scopedLive("is 200 exactly when a write would be accepted", () =>
    Effect.gen(function* () {
      const { url, client, world } = yield* start()
      const statusOfWrite = Effect.map(
        send(`${url}/api/v2/volumes/probe?dry_run=true`, {
          method: "PUT",
          json: { size: "1Gi", disk_offering_id: offering, zone_id: zone }
        }),
        ({ status }) => status
      )
      const agrees = Effect.gen(function* () {
        const { status } = yield* send(`${url}/health`)
        assert.strictEqual(status, (yield* statusOfWrite) === 200 ? 200 : 503)
        return status
      })
      world.cloudDown = true
      assert.strictEqual(yield* agrees, 503)
      world.cloudDown = false
      assert.strictEqual(yield* agrees, 200)
      world.cloudDown = true
      assert.strictEqual(yield* agrees, 200, "offering and zone are known for a day")
      world.databaseDown = true
      assert.strictEqual(yield* agrees, 503)
      assert.strictEqual((yield* client.health).status, "unhealthy")
    })
  )

  it.scopedLive("names what is wrong, and the hold, in texts", () =>
    Effect.gen(function* () {
      const { client, world } = yield* start()
      assert.strictEqual((yield* client.health).status, "healthy")
      world.hold = "array maintenance"
      world.inventory = { ...emptyInventory, guest: unread(1, "EACCES", "sysfs is not readable") }
      const health = yield* client.health
      assert.strictEqual(health.status, "degraded")
      assert.strictEqual(health.details["hold"], "array maintenance")
      assert.strictEqual(health.device_monitor, "unread: sysfs is not readable")
      assert.sameMembers(Object.keys(health.details), [
        "database",
        "cloudstack",
        "devices",
        "nbd",
        "sandbox",
        "hold",
        "version"
      ])
      world.inventory = null
      assert.strictEqual((yield* client.health).nbd_health, "not read yet")
    })
  )
})
