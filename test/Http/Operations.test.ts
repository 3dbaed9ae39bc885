import { assert, describe, it } from "@effect/vitest"
import { Effect, Fiber } from "effect"
import { OperationId, VolumeId } from "../../schema/Ids.ts"
import type { Operation } from "../../schema/Operation.ts"
import * as Site from "./Site.ts"
import { appliance, otherVm, send, start, type World } from "./support.ts"

const volumeId = VolumeId.make("c6ef61d1-300f-442a-86e5-000000000001")
const idOf = (index: number) => OperationId.make(`op-12345678-1234-1234-1234-${String(index).padStart(12, "0")}`)

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
  wish: null,
  deadline_at: null,
  ...part
})

/** A version 1 attach of the declaration `a`, as it stands while its wish is declared. */
const attachCall = (world: World, part: Partial<Operation> = {}): Operation =>
  operation(7, {
    cause: "api",
    status: "pending",
    phase: "intended",
    uid: world.declarations.find(({ name }) => name === "a")?.uid ?? operation(0).uid,
    request: { vm_id: appliance },
    wish: {
      spec: { attached_to: "appliance", export_wanted: true },
      before: { attached_to: "none", attach_as: "data", export_wanted: false },
      remove: false
    },
    deadline_at: Date.now() + 110_000,
    ...part
  })

const at = (url: string, id: string, rest = "") => `${url}/api/v1/operations/${id}${rest}`

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
    })
  )

  it.scopedLive("filters by everything the contract names, and refuses what cannot be a filter", () =>
    Effect.gen(function* () {
      const { url, world } = yield* start()
      world.operations = [
        operation(0),
        operation(1, { type: "detach", status: "completed", phase: "settled" }),
        operation(2, { name: "b", vm_id: appliance, parent_id: idOf(7), created_at: "2026-03-02T12:00:00Z" }),
        operation(3, { volume_id: "c6ef61d1-300f-442a-86e5-000000000009" })
      ]
      const indexes = (query: string) =>
        Effect.map(send(`${url}/api/v1/operations?${query}`), ({ body }) =>
          (body as unknown as ReadonlyArray<{ id: string }>).map(({ id }) => Number(id.slice(-1))).join()
        )
      assert.strictEqual(yield* indexes("type=detach"), "1")
      assert.strictEqual(yield* indexes("status=completed"), "1")
      assert.strictEqual(yield* indexes("name=b"), "2")
      assert.strictEqual(yield* indexes(`vm_id=${appliance}`), "2")
      assert.strictEqual(yield* indexes(`parent_id=${idOf(7)}`), "2")
      assert.strictEqual(yield* indexes("since=2026-03-02T00:00:00Z"), "2")
      assert.strictEqual(yield* indexes(`volume_id=${volumeId}`), "0,1,2")
      for (const query of ["status=done", "type=attack", "limit=-1", "since=yesterday", "parent_id=7"]) {
        assert.strictEqual((yield* send(`${url}/api/v1/operations?${query}`)).status, 400, query)
      }
    })
  )

  it.scopedLive("holds one back until it has ended, and answers 404 for unknown and malformed ids", () =>
    Effect.gen(function* () {
      const { url, world } = yield* start()
      world.operations = [operation(0)]
      const waiting = yield* Effect.fork(send(at(url, idOf(0), "?wait=30s")))
      yield* Effect.sleep(50)
      assert.isTrue((yield* Fiber.poll(waiting))._tag === "None")
      world.operations = [operation(0, { status: "completed", phase: "settled", completed_at: "2026-03-01T12:00:05Z" })]
      assert.strictEqual((yield* Fiber.join(waiting)).body["status"], "completed")
      for (const id of [idOf(9), "x", "op-1'%20or%201=1"]) {
        for (const [method, rest] of [
          ["GET", ""],
          ["POST", "/cancel"]
        ] as const) {
          const missing = yield* send(at(url, id, rest), { method })
          assert.strictEqual(missing.status, 404)
          assert.strictEqual(missing.body["code"], "NOT_FOUND")
        }
      }
      assert.strictEqual((yield* send(at(url, idOf(0), "?wait=soon"))).status, 400)
    })
  )
})

describe("POST /api/v1/operations/{id}/cancel", () => {
  it.scopedLive("ends a call, takes its wish back in the same write, and wakes the reconciler", () =>
    Effect.gen(function* () {
      const { url, client, world } = yield* start()
      yield* client.put("a", { size: "1Gi", attached_to: "appliance", export_wanted: true })
      world.operations = [attachCall(world)]
      world.poked = []
      const cancelled = yield* send(at(url, idOf(7), "/cancel"), { method: "POST" })
      assert.strictEqual(cancelled.status, 200)
      assert.strictEqual(cancelled.body["status"], "cancelled")
      const [declaration] = world.declarations
      assert.strictEqual(declaration?.spec.attached_to, "none")
      assert.strictEqual(declaration?.spec.export_wanted, false)
      assert.strictEqual(declaration?.generation, 2)
      assert.deepStrictEqual(
        world.poked,
        world.declarations.map(({ uid }) => uid)
      )
    })
  )

  it.scopedLive("leaves what a newer write wished", () =>
    Effect.gen(function* () {
      const { url, client, world } = yield* start()
      yield* client.put("a", { size: "1Gi", attached_to: "appliance", export_wanted: true })
      world.operations = [attachCall(world)]
      yield* client.patch("a", { export_wanted: false })
      assert.strictEqual((yield* send(at(url, idOf(7), "/cancel"), { method: "POST" })).status, 200)
      assert.strictEqual(world.declarations[0]?.spec.attached_to, "none")
      assert.strictEqual(world.declarations[0]?.spec.export_wanted, false)
    })
  )

  it.scopedLive("refuses what has ended, and an action, which only observation ends, with what to do instead", () =>
    Effect.gen(function* () {
      const { url, client, world } = yield* start()
      yield* client.put("a", { size: "1Gi" })
      world.operations = [
        attachCall(world, { id: idOf(1), status: "completed", phase: "settled" }),
        operation(2, { parent_id: idOf(7) }),
        operation(3)
      ]
      const before = world.declarations
      for (const [index, words] of [
        [1, null],
        [2, /cancel op-12345678/],
        [3, /pause a/]
      ] as const) {
        const refused = yield* send(at(url, idOf(index), "/cancel"), { method: "POST" })
        assert.strictEqual(refused.status, 409)
        assert.strictEqual(refused.body["code"], "CONFLICT")
        const { suggestion = "" } = refused.body["details"] as { suggestion?: string }
        if (words !== null) assert.match(suggestion, words)
      }
      assert.strictEqual(world.declarations, before)
    })
  )

  it.scopedLive("refuses one that ended while it was being cancelled, and takes nothing back then (S7)", () =>
    Effect.gen(function* () {
      const { url, client, world } = yield* start()
      yield* client.put("a", { size: "1Gi", attached_to: "appliance", export_wanted: true })
      world.operations = [attachCall(world)]
      world.inWrite = Effect.sync(() => {
        world.operations = [attachCall(world, { status: "completed", phase: "settled" })]
      })
      const refused = yield* send(at(url, idOf(7), "/cancel"), { method: "POST" })
      assert.strictEqual(refused.status, 409)
      assert.strictEqual(world.declarations[0]?.spec.attached_to, "appliance")
    })
  )

  it.scopedLive("gives a volume that a call cannot move back to what it was, on a whole daemon", () =>
    Effect.gen(function* () {
      const { daemon, world } = yield* Site.start
      const { client, url } = yield* daemon
      const { id } = world.seedVolume({ name: "seeded" }, Date.now())
      // A root volume waits for its VM to be stopped, which nobody does here.
      const asked = yield* send(`${url}/api/v1/volumes/${id}/attach-root`, { method: "POST", json: { vm_id: otherVm } })
      assert.strictEqual(asked.status, 201)
      const wanted = yield* client.volumes({ volume_id: id })
      assert.deepInclude(wanted.items[0]?.spec, { attached_to: otherVm, attach_as: "root" })
      const cancelled = yield* client.cancel(String(asked.body["id"]))
      assert.strictEqual(cancelled.status, "cancelled")
      assert.ok(cancelled.completed_at)
      const [declaration] = (yield* client.volumes({ volume_id: id })).items
      assert.notStrictEqual(declaration?.spec.attached_to, otherVm)
      world.act({ act: "stop_vm", vm_id: otherVm }, Date.now())
      yield* client.forceSync
      assert.strictEqual(
        world.volume(id, Date.now())?.vm_id,
        null,
        "nothing fires after its client was told of the end"
      )
      const again = yield* Effect.flip(client.cancel(String(asked.body["id"])))
      assert.strictEqual(again._tag === "ApiError" ? again.code : again._tag, "CONFLICT")
    })
  )
})
