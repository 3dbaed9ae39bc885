import { assert, describe, it } from "@effect/vitest"
import { Effect, Fiber } from "effect"
import { type Declaration, unbound } from "../../schema/Declaration.ts"
import { OperationId, VolumeId } from "../../schema/Ids.ts"
import type { Operation } from "../../schema/Operation.ts"
import {
  appliance,
  fixedOffering,
  GIB,
  latch,
  offering,
  otherVm,
  type Raw,
  send,
  start,
  type World,
  zone
} from "./support.ts"

const volumeId = VolumeId.make("c6ef61d1-300f-442a-86e5-000000000001")

const at = (url: string, name: string, query = "") => `${url}/api/v2/volumes/${name}${query}`
const put = (url: string, name: string, json: unknown, headers: Record<string, string> = {}) =>
  send(at(url, name), { method: "PUT", json, headers })
const problems = (raw: Raw) =>
  (raw.body["details"] as { errors: ReadonlyArray<{ field: string; name: string; problem: string; index: number }> })
    .errors
const only = (world: World): Declaration => {
  const [declaration] = world.declarations
  assert.ok(declaration)
  return declaration
}

const operation = (declaration: Declaration, part: Partial<Operation>): Operation => ({
  id: OperationId.make("op-12345678-1234-1234-1234-123456789012"),
  type: "delete",
  status: "executing",
  volume_id: "",
  vm_id: null,
  request: {},
  response: null,
  error: null,
  created_at: "2026-03-01T12:00:00Z",
  updated_at: "2026-03-01T12:00:00Z",
  completed_at: null,
  name: declaration.name,
  uid: declaration.uid,
  cause: "declaration",
  actor: "v2",
  generation: declaration.generation,
  phase: "submitted",
  job_id: null,
  attempts: 1,
  parent_id: null,
  destructive: true,
  submitted_at: 1,
  expires_at: 2,
  ...part
})

describe("PUT /api/v2/volumes/{name}", () => {
  it.scopedLive("makes a declaration with its defaults filled in, and answers it with its generation as ETag", () =>
    Effect.gen(function* () {
      const { url, world } = yield* start()
      const made = yield* put(url, "pgtest2-disk-0", { size: "100GiB", metadata: { job: "pgtest2" } })
      assert.strictEqual(made.status, 201)
      assert.strictEqual(made.headers.get("etag"), '"1"')
      assert.deepStrictEqual(made.body["spec"], {
        cloudstack_name: "pgtest2-disk-0",
        volume_id: null,
        size: 100 * GIB,
        disk_offering_id: offering,
        zone_id: zone,
        attached_to: "none",
        attach_as: "data",
        export_wanted: false,
        read_only: false,
        deletion_policy: "forget",
        on_conflict: "hold",
        on_drift: "repair",
        on_loss: "hold",
        paused: null,
        metadata: { job: "pgtest2" }
      })
      assert.deepStrictEqual(world.poked, [only(world).uid])
      assert.strictEqual(made.body["uid"], only(world).uid)
    })
  )

  it.scopedLive("answers 200 and makes no new generation when nothing changes (X13: a replayed write)", () =>
    Effect.gen(function* () {
      const { url, world } = yield* start()
      yield* put(url, "a", { size: "1Gi", attached_to: "appliance" })
      const again = yield* put(url, "a", { size: GIB })
      assert.strictEqual(again.status, 200)
      assert.strictEqual(again.headers.get("etag"), '"1"')
      assert.strictEqual(only(world).spec.attached_to, "appliance")
      assert.strictEqual(world.events.length, 1)
    })
  )

  it.scopedLive("takes a whole GET answer back, and only for the declaration it came from", () =>
    Effect.gen(function* () {
      const { url, world } = yield* start()
      yield* put(url, "a", { size: "1Gi" })
      const { body } = yield* send(at(url, "a"))
      const same = yield* put(url, "a", body)
      assert.strictEqual(same.status, 200)
      assert.strictEqual(only(world).generation, 1)
      const changed = yield* put(url, "a", { ...body, spec: { ...(body["spec"] as object), read_only: true } })
      assert.strictEqual(changed.status, 200)
      assert.isTrue(only(world).spec.read_only)
      const other = yield* put(url, "a", { ...body, uid: volumeId })
      assert.strictEqual(other.status, 409)
      assert.strictEqual(other.body["code"], "CONFLICT")
    })
  )

  it.scopedLive("honours If-Match and If-None-Match with 412 (M4)", () =>
    Effect.gen(function* () {
      const { url, world } = yield* start()
      const early = yield* put(url, "a", { size: "1Gi" }, { "if-match": '"1"' })
      assert.strictEqual(early.status, 412)
      assert.strictEqual((yield* put(url, "a", { size: "1Gi" }, { "if-none-match": "*" })).status, 201)
      const twice = yield* put(url, "a", { size: "1Gi", read_only: true }, { "if-none-match": "*" })
      assert.strictEqual(twice.body["code"], "PRECONDITION_FAILED")
      const stale = yield* put(url, "a", { size: "1Gi", read_only: true }, { "if-match": '"7"' })
      assert.strictEqual(stale.status, 412)
      assert.isFalse(only(world).spec.read_only)
      assert.strictEqual((yield* put(url, "a", { read_only: true }, { "if-match": '"1"' })).status, 200)
      assert.strictEqual((yield* put(url, "a", { read_only: true }, { "if-match": "three" })).status, 400)
    })
  )

  it.scopedLive("decides again when another writer was first, but never under If-Match (S14)", () =>
    Effect.gen(function* () {
      const { url, world } = yield* start()
      yield* put(url, "a", { size: "1Gi" })
      world.losses = 3
      assert.strictEqual((yield* put(url, "a", { read_only: true })).status, 200)
      world.losses = 1
      const lost = yield* put(url, "a", { read_only: false }, { "if-match": '"2"' })
      assert.strictEqual(lost.status, 412)
      assert.isTrue(only(world).spec.read_only)
      world.losses = 1000
      const beaten = yield* put(url, "a", { read_only: false })
      assert.strictEqual(beaten.status, 409)
      assert.strictEqual(beaten.body["code"], "CONFLICT")
    })
  )

  it.scopedLive("refuses to change what would mean another volume, and says what to do", () =>
    Effect.gen(function* () {
      const { url, world } = yield* start()
      yield* put(url, "a", { size: "1Gi" })
      const refused = yield* put(url, "a", { size: "2Gi", zone_id: offering, volume_id: volumeId })
      assert.strictEqual(refused.status, 422)
      assert.strictEqual(refused.body["code"], "FIELD_IMMUTABLE")
      assert.match(String(refused.body["error"]), /^CloudStack API error 431: /)
      assert.sameMembers(
        problems(refused).map(({ field }) => field),
        ["size", "zone_id", "volume_id"]
      )
      assert.match(problems(refused)[0]?.problem ?? "", /resize it in CloudStack/)
      assert.strictEqual(only(world).spec.size, GIB)
    })
  )

  it.scopedLive("adopts a volume without deciding where it is, and refuses a second claim of it (S4)", () =>
    Effect.gen(function* () {
      const { url, world } = yield* start()
      assert.strictEqual((yield* put(url, "a", { volume_id: volumeId })).status, 201)
      assert.strictEqual(only(world).spec.attached_to, null)
      assert.strictEqual(only(world).spec.export_wanted, null)
      assert.strictEqual(only(world).spec.disk_offering_id, null)
      const rival = yield* put(url, "b", { volume_id: volumeId })
      assert.strictEqual(rival.status, 409)
      assert.strictEqual(rival.body["code"], "CONFLICT")
      assert.strictEqual(world.declarations.length, 1)
    })
  )

  it.scopedLive("lets one of many concurrent writers claim a volume", () =>
    Effect.gen(function* () {
      const { url, world } = yield* start()
      world.inWrite = Effect.yieldNow()
      const answers = yield* Effect.forEach(
        Array.from({ length: 8 }, (_, index) => `claim-${index}`),
        (name) => put(url, name, { volume_id: volumeId }),
        { concurrency: "unbounded" }
      )
      assert.deepStrictEqual(answers.map(({ status }) => status).toSorted(), [201, 409, 409, 409, 409, 409, 409, 409])
      assert.strictEqual(world.declarations.length, 1)
    })
  )

  it.scopedLive("names every problem of a body at once (e2)", () =>
    Effect.gen(function* () {
      const { url, world } = yield* start()
      const refused = yield* put(url, "a", {
        size: "100GB",
        attached_to: "the moon",
        sise: 1,
        generation: 9,
        metadata: { a: "", A: "x" }
      })
      assert.strictEqual(refused.status, 400)
      assert.strictEqual(refused.body["code"], "INVALID_REQUEST")
      assert.sameMembers(
        problems(refused).map(({ field }) => field),
        ["size", "attached_to", "sise", "generation", "metadata.a"]
      )
      assert.match(
        problems(refused)
          .map(({ problem }) => problem)
          .join("\n"),
        /100GiB[\s\S]*did you mean size/
      )
      assert.strictEqual(world.declarations.length, 0)
    })
  )

  it.scopedLive("refuses server-owned members as flat keys (X9, e1)", () =>
    Effect.gen(function* () {
      const { url, world } = yield* start()
      yield* put(url, "a", { size: "1Gi" })
      for (const key of ["uid", "generation", "status", "managers", "deletion", "created_at", "removed_at", "set"]) {
        const refused = yield* put(url, "a", { size: "1Gi", [key]: "x" })
        assert.strictEqual(refused.status, 400, key)
        assert.strictEqual(problems(refused)[0]?.field, key)
      }
      assert.strictEqual(only(world).generation, 1)
    })
  )

  it.scopedLive("checks offering, zone and fixed size with CloudStack before it stores anything", () =>
    Effect.gen(function* () {
      const { url, world } = yield* start()
      const refused = yield* put(url, "a", { size: "1Gi", disk_offering_id: zone, zone_id: offering })
      assert.strictEqual(refused.status, 422)
      assert.strictEqual(refused.body["code"], "CLOUDSTACK_INVALID_PARAMETER")
      assert.sameMembers(
        problems(refused).map(({ field }) => field),
        ["disk_offering_id", "zone_id"]
      )
      const size = yield* put(url, "a", { size: "30Gi", disk_offering_id: fixedOffering })
      assert.match(problems(size)[0]?.problem ?? "", /20 GiB only/)
      assert.strictEqual((yield* put(url, "a", { size: "20Gi", disk_offering_id: fixedOffering })).status, 201)
      assert.strictEqual(world.declarations.length, 1)
    })
  )

  it.scopedLive("answers 503 while CloudStack is away and was never asked, and accepts once it was", () =>
    Effect.gen(function* () {
      const { url, world } = yield* start()
      world.cloudDown = true
      const away = yield* put(url, "a", { size: "1Gi" })
      assert.strictEqual(away.status, 503)
      assert.strictEqual(away.body["code"], "CLOUDSTACK_UNAVAILABLE")
      assert.ok(away.headers.get("retry-after"))
      assert.notInclude(JSON.stringify(away.body), "sEcReT")
      world.cloudDown = false
      yield* put(url, "a", { size: "1Gi" })
      world.cloudDown = true
      assert.strictEqual((yield* put(url, "b", { size: "1Gi" })).status, 201)
      const unknown = yield* put(url, "c", { size: "1Gi", zone_id: offering })
      assert.strictEqual(unknown.status, 422, "CloudStack was read a moment ago, so this zone is known not to be")
      const bad = yield* put(url, "c", { size: "1" })
      assert.strictEqual(bad.status, 400, "a bad body is refused whatever CloudStack does")
    })
  )

  it.scopedLive("asks CloudStack once for many writers", () =>
    Effect.gen(function* () {
      const { url, world } = yield* start()
      yield* Effect.forEach(["a", "b", "c", "d"], (name) => put(url, name, { size: "1Gi" }), {
        concurrency: "unbounded"
      })
      assert.strictEqual(world.cloudReads, 2)
      assert.strictEqual(world.declarations.length, 4)
    })
  )

  it.scopedLive("stores nothing on a dry run and answers the plan it would cause", () =>
    Effect.gen(function* () {
      const { url, world, client } = yield* start()
      yield* put(url, "old", { size: "1Gi" })
      const plan = yield* client.putDryRun("new", { size: "1Gi" })
      assert.deepStrictEqual<ReadonlyArray<string>>(plan.created, ["new"])
      assert.deepStrictEqual(
        plan.plan.items.map(({ name }) => `${name}`),
        ["new"]
      )
      assert.strictEqual(world.declarations.length, 1)
      const refused = yield* send(at(url, "new", "?dry_run=true"), { method: "PUT", json: { size: "1GB" } })
      assert.strictEqual(refused.status, 400)
      const misspelt = yield* send(at(url, "new", "?dryrun=true"), { method: "PUT", json: { size: "1Gi" } })
      assert.strictEqual(misspelt.status, 400, "a misspelt dry_run is no write")
      assert.strictEqual(world.declarations.length, 1)
    })
  )

  it.scopedLive("keeps the history of who changed which field", () =>
    Effect.gen(function* () {
      const { client, world } = yield* start()
      yield* client.put("a", { size: "1Gi" })
      yield* client.patch("a", { read_only: true })
      const { managers } = only(world)
      assert.deepStrictEqual(Object.keys(managers), ["size", "read_only"])
      assert.strictEqual(managers["read_only"]?.by, "tester")
      assert.deepStrictEqual(
        world.events.map(({ kind, actor }) => `${kind} by ${actor}`),
        ["declared by tester", "changed by tester"]
      )
    })
  )
})

describe("PATCH /api/v2/volumes/{name}", () => {
  it.scopedLive("is a JSON merge patch: null makes absent, what is not named stays", () =>
    Effect.gen(function* () {
      const { url, world } = yield* start()
      yield* put(url, "a", { size: "1Gi", export_wanted: true, metadata: { a: "1", b: "2" }, on_drift: "hold" })
      const patched = yield* send(at(url, "a"), {
        method: "PATCH",
        headers: { "content-type": "application/merge-patch+json" },
        body: '{"attached_to": null, "metadata": {"a": null, "c": "3"}, "paused": {"reason": "r", "by": "b"}}'
      })
      assert.strictEqual(patched.status, 200)
      const { spec, generation } = only(world)
      assert.strictEqual(generation, 2)
      assert.strictEqual(spec.attached_to, null)
      assert.strictEqual(spec.export_wanted, true)
      assert.strictEqual(spec.on_drift, "hold")
      assert.deepStrictEqual(spec.metadata, { b: "2", c: "3" })
      assert.deepStrictEqual(spec.paused, { reason: "r", by: "b" })
      const resumed = yield* send(at(url, "a"), { method: "PATCH", json: { paused: null } })
      assert.strictEqual((resumed.body["spec"] as { paused: unknown }).paused, null)
    })
  )

  it.scopedLive("answers 404 for what is not declared", () =>
    Effect.gen(function* () {
      const { url } = yield* start()
      const missing = yield* send(at(url, "a"), { method: "PATCH", json: { read_only: true } })
      assert.strictEqual(missing.status, 404)
      assert.strictEqual(missing.body["code"], "NOT_FOUND")
    })
  )
})

describe("DELETE and undelete", () => {
  it.scopedLive(
    "declares removed with the policy and its grace, answers 202, and refuses writes meanwhile (S6, M8)",
    () =>
      Effect.gen(function* () {
        const { url, world } = yield* start()
        yield* put(url, "a", { size: "1Gi" })
        const removed = yield* send(at(url, "a", "?policy=delete"), { method: "DELETE" })
        assert.strictEqual(removed.status, 202)
        const deletion = only(world).deletion
        assert.strictEqual(deletion?.policy, "delete")
        const grace = Date.parse(deletion?.execute_after ?? "") - Date.parse(deletion?.requested_at ?? "")
        assert.strictEqual(grace, 600_000)
        assert.deepStrictEqual((removed.body["deletion"] as { remaining: unknown }).remaining, ["create"])
        for (const [method, json] of [
          ["PUT", { size: "1Gi" }],
          ["PATCH", { read_only: true }]
        ] as const) {
          const refused = yield* send(at(url, "a"), { method, json })
          assert.strictEqual(refused.status, 409)
          assert.strictEqual(refused.body["code"], "DELETING")
        }
        assert.strictEqual((yield* send(at(url, "a"), { method: "DELETE" })).status, 202, "a repeat changes nothing")
        assert.strictEqual((yield* send(at(url, "a", "?policy=retain"), { method: "DELETE" })).status, 409)
        assert.strictEqual((yield* send(at(url, "a", "?policy=shred"), { method: "DELETE" })).status, 400)
        assert.strictEqual(only(world).generation, 2)
      })
  )

  it.scopedLive("takes a removal back until its delete may have been sent", () =>
    Effect.gen(function* () {
      const { url, world, client } = yield* start()
      yield* put(url, "a", { size: "1Gi", deletion_policy: "delete" })
      yield* client.delete("a")
      const back = yield* client.undelete("a")
      assert.strictEqual(back.deletion, null)
      assert.strictEqual(back.generation, 3)
      yield* client.delete("a")
      world.operations = [operation(only(world), { phase: "refused", status: "failed" })]
      yield* client.undelete("a")
      yield* client.delete("a")
      for (const phase of ["intended", "submitted", "accepted", "uncertain", "settled"] as const) {
        world.operations = [operation(only(world), { phase, status: phase === "settled" ? "completed" : "executing" })]
        const refused = yield* Effect.flip(client.undelete("a"))
        assert.strictEqual(refused._tag === "ApiError" ? refused.code : refused._tag, "DELETING", phase)
      }
      assert.ok(only(world).deletion)
    })
  )

  it.scopedLive("puts the removal back when a delete began while it was being taken back", () =>
    Effect.gen(function* () {
      const { url, world, client } = yield* start()
      yield* put(url, "a", { size: "1Gi", deletion_policy: "delete" })
      yield* client.delete("a")
      world.afterWrite = () => {
        world.operations = [operation(only(world), { phase: "intended", status: "pending" })]
      }
      const refused = yield* Effect.flip(client.undelete("a"))
      assert.strictEqual(refused._tag === "ApiError" ? refused.code : refused._tag, "DELETING")
      assert.strictEqual(only(world).deletion?.policy, "delete")
    })
  )
})

describe("GET /api/v2/volumes/{name}", () => {
  it.scopedLive("waits for a condition and answers as soon as a pass shows it", () =>
    Effect.gen(function* () {
      const { client, world, tick } = yield* start()
      yield* client.put("a", { size: "1Gi" })
      const waiting = yield* Effect.fork(client.volume("a", { condition: "Ready:True", timeoutSeconds: 60 }))
      yield* Effect.sleep(50)
      assert.isTrue((yield* Fiber.poll(waiting))._tag === "None")
      world.ready = new Set(["a"])
      yield* tick
      const volume = yield* Fiber.join(waiting)
      assert.strictEqual(volume.status.conditions[0]?.status, "True")
    })
  )

  it.scopedLive("answers what is when the time is over, and refuses conditions it does not know", () =>
    Effect.gen(function* () {
      const { url, client } = yield* start()
      yield* client.put("a", { size: "1Gi" })
      const over = yield* send(at(url, "a", "?wait=Ready:True&timeout=20ms"))
      assert.strictEqual(over.status, 200)
      for (const query of ["?wait=Ready", "?wait=Happy:True", "?wait=Ready:True&timeout=soon", "?wait=Ready:Maybe"]) {
        assert.strictEqual((yield* send(at(url, "a", query))).status, 400, query)
      }
    })
  )

  it.scopedLive("follows a removal by uid to its end, and shows it afterwards with ?removed=true", () =>
    Effect.gen(function* () {
      const { url, client, world, tick } = yield* start()
      yield* client.put("a", { size: "1Gi" })
      const waiting = yield* Effect.fork(
        client.delete("a", { wait: { condition: "Removed:True", timeoutSeconds: 60 } })
      )
      yield* Effect.repeat(Effect.sleep(5), { until: () => world.declarations[0]?.deletion !== null })
      world.removed = world.declarations.map((one) => ({ ...one, removed_at: "2026-03-01T12:00:00Z" }))
      world.declarations = []
      yield* client.put("a", { size: "1Gi" })
      yield* tick
      const gone = yield* Fiber.join(waiting)
      assert.strictEqual(gone.removed_at, "2026-03-01T12:00:00Z")
      assert.notStrictEqual(only(world).uid, gone.uid)
      world.declarations = []
      assert.strictEqual((yield* send(at(url, "a"))).status, 404)
      assert.strictEqual((yield* send(at(url, "a", "?removed=true"))).body["uid"], gone.uid)
    })
  )

  it.scopedLive("answers 404 for names nobody can have, without repeating them", () =>
    Effect.gen(function* () {
      const { url } = yield* start()
      for (const name of ["..%2f..%2fetc", "%0d%0aX", "a%00b", "x".repeat(300), ".hidden", "%zz"]) {
        const missing = yield* send(at(url, name))
        assert.strictEqual(missing.status, 404, name)
        assert.strictEqual(missing.body["code"], "NOT_FOUND")
      }
      const refused = yield* put(url, "..%2f..%2fetc", { size: "1Gi" })
      assert.strictEqual(refused.status, 400)
    })
  )

  it.scopedLive("takes names of every length the contract allows", () =>
    Effect.gen(function* () {
      const { url } = yield* start()
      const name = "n".repeat(253)
      assert.strictEqual((yield* put(url, name, { size: "1Gi" })).status, 201)
      assert.strictEqual((yield* send(at(url, name))).status, 200)
      assert.strictEqual((yield* put(url, `${name}n`, { size: "1Gi" })).status, 400)
    })
  )
})

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

describe("POST /api/v2/apply", () => {
  const file = (...names: ReadonlyArray<string>) => names.map((name) => ({ name, size: "1Gi" }))

  it.scopedLive("stores many at once, or none and every problem with its place", () =>
    Effect.gen(function* () {
      const { client, world } = yield* start()
      const refused = yield* Effect.flip(
        client.apply({ set: "s", volumes: [...file("a", "b", "a"), { name: "d" }, { name: "../e", size: "1Gi" }] })
      )
      assert.ok(refused._tag === "ApiError")
      assert.deepStrictEqual(
        refused.problems.map(({ index, field }) => `${index} ${field}`),
        ["2 name", "4 name"]
      )
      assert.strictEqual(world.declarations.length, 0)
      const missing = yield* Effect.flip(client.apply({ set: "s", volumes: [...file("a"), { name: "d" }] }))
      assert.ok(missing._tag === "ApiError")
      assert.deepStrictEqual(
        missing.problems.map(({ index, name, field }) => `${index} ${name} ${field}`),
        ["1 d size"]
      )
      const applied = yield* client.apply({ set: "s", volumes: file("a", "b") })
      assert.deepStrictEqual<ReadonlyArray<string>>(applied.created, ["a", "b"])
      assert.deepStrictEqual(
        applied.items.map(({ set }) => set),
        ["s", "s"]
      )
      const again = yield* client.apply({ set: "s", volumes: file("a", "b", "c") })
      assert.deepStrictEqual<ReadonlyArray<ReadonlyArray<string>>>(
        [again.created, again.unchanged, again.changed],
        [["c"], ["a", "b"], []]
      )
      assert.strictEqual(world.poked.length, 3)
    })
  )

  it.scopedLive("refuses what another writer changed since, with who and when, unless it is taken over", () =>
    Effect.gen(function* () {
      const { client, world } = yield* start()
      const document = { set: "s", volumes: [{ name: "a", size: "1Gi", attached_to: "none" }] }
      yield* client.apply(document)
      yield* client.patch("a", { attached_to: "appliance" })
      const refused = yield* Effect.flip(client.apply(document))
      assert.ok(refused._tag === "ApiError")
      assert.strictEqual(refused.status, 409)
      assert.strictEqual(refused.code, "FIELD_CONFLICT")
      assert.match(refused.problems[0]?.problem ?? "", /written by tester at \d{4}-/)
      assert.strictEqual(only(world).spec.attached_to, "appliance")
      yield* client.apply({ ...document, take_over: true })
      assert.strictEqual(only(world).spec.attached_to, "none")
    })
  )

  it.scopedLive("prunes only its own set, only with policy forget, never much and never all", () =>
    Effect.gen(function* () {
      const { client, world } = yield* start()
      const names = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"]
      yield* client.apply({ set: "s", volumes: file(...names) })
      yield* client.put("foreign", { size: "1Gi" })
      yield* client.patch("i", { deletion_policy: "retain" })
      const without = (...left: ReadonlyArray<string>) => file(...names.filter((name) => !left.includes(name)))
      for (const request of [
        { set: "s", volumes: [], prune: true },
        { set: "s", volumes: without("a", "b", "c"), prune: true },
        { volumes: without("a"), prune: true }
      ]) {
        const refused = yield* Effect.flip(client.apply(request))
        assert.strictEqual(refused._tag === "ApiError" ? refused.code : refused._tag, "INVALID_REQUEST")
      }
      assert.isTrue(world.declarations.every(({ deletion }) => deletion === null))
      const pruned = yield* client.apply({ set: "s", volumes: without("a", "b", "i"), prune: true })
      assert.deepStrictEqual<ReadonlyArray<ReadonlyArray<string>>>(
        [pruned.pruned, pruned.prune_kept],
        [["a", "b"], ["i"]]
      )
      const removed = world.declarations.filter(({ deletion }) => deletion !== null).map(({ name }) => `${name}`)
      assert.deepStrictEqual(removed, ["a", "b"])
    })
  )

  it.scopedLive("plans for a candidate document without storing it", () =>
    Effect.gen(function* () {
      const { client, world } = yield* start()
      yield* client.put("old", { size: "1Gi" })
      const plan = yield* client.planFor({ volumes: file("new") })
      assert.deepStrictEqual(
        plan.plan.items.map(({ name }) => `${name}`),
        ["new", "old"]
      )
      assert.deepStrictEqual<ReadonlyArray<string>>(plan.created, ["new"])
      assert.strictEqual(world.declarations.length, 1)
    })
  )

  it.scopedLive("finishes a write whose client hung up, and wakes the reconciler (S14)", () =>
    Effect.gen(function* () {
      const { url, world } = yield* start()
      const gate = yield* latch
      const reached = yield* latch
      world.inWrite = Effect.andThen(reached.open, gate.wait)
      const request = yield* Effect.fork(put(url, "a", { size: "1Gi" }))
      yield* reached.wait
      yield* Fiber.interrupt(request)
      yield* gate.open
      yield* Effect.repeat(Effect.sleep(5), { until: () => world.poked.length > 0 })
      assert.strictEqual(only(world).binding, unbound)
    })
  )
})
