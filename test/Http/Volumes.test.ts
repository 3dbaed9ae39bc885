import { assert, describe, it } from "@effect/vitest"
import { Effect, Fiber } from "effect"
import type { Declaration } from "../../schema/Declaration.ts"
import { OperationId, VolumeId } from "../../schema/Ids.ts"
import type { Operation } from "../../schema/Operation.ts"
import { fixedOffering, GIB, offering, type Raw, send, start, type World, zone } from "./support.ts"

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
  wish: null,
  deadline_at: null,
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

  it.scopedLive("stores nothing on a dry run of any other write either", () =>
    Effect.gen(function* () {
      const { url, world, client } = yield* start()
      yield* client.apply({ set: "s", volumes: [{ name: "a", size: "1Gi" }] })
      const before = world.declarations
      const outcome = (method: string, path: string, json?: unknown) =>
        Effect.map(
          send(`${url}/api/v2/${path}`, { method, ...(json === undefined ? {} : { json }) }),
          ({ status, body }) => {
            assert.strictEqual(status, 200, `${method} ${path}`)
            assert.property(body, "text")
            return ["created", "changed", "unchanged", "removed"].filter(
              (key) => (body[key] as ReadonlyArray<string>).length > 0
            )
          }
        )
      assert.deepStrictEqual(yield* outcome("PATCH", "volumes/a?dry_run=true", { read_only: true }), ["changed"])
      assert.deepStrictEqual(yield* outcome("DELETE", "volumes/a?dry_run=true"), ["removed"])
      const document = { set: "s", volumes: [{ name: "b", size: "1Gi" }] }
      assert.deepStrictEqual(yield* outcome("POST", "apply?dry_run=true", document), ["created"])
      assert.strictEqual(world.declarations, before)
      yield* client.delete("a")
      const removed = world.declarations
      assert.deepStrictEqual(yield* outcome("POST", "volumes/a/undelete?dry_run=true"), ["changed"])
      assert.strictEqual(world.declarations, removed)
      const wrong = yield* send(at(url, "a", "?dry_run=maybe"), { method: "DELETE" })
      assert.strictEqual(wrong.status, 400)
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
      // The row of a version 1 call deletes nothing itself.
      world.operations = [operation(only(world), { phase: "settled", status: "failed", cause: "api" })]
      yield* client.undelete("a")
      yield* client.delete("a")
      const stale = { method: "POST", headers: { "if-match": '"1"' } }
      assert.strictEqual((yield* send(`${url}/api/v2/volumes/a/undelete`, stale)).status, 412)
      for (const phase of ["intended", "submitted", "accepted", "uncertain", "settled"] as const) {
        world.operations = [operation(only(world), { phase, status: phase === "settled" ? "completed" : "executing" })]
        const refused = yield* Effect.flip(client.undelete("a"))
        assert.strictEqual(refused._tag === "ApiError" ? refused.code : refused._tag, "DELETING", phase)
      }
      assert.ok(only(world).deletion)
    })
  )

  it.scopedLive("leaves a removal whose delete began while it was being taken back (S6)", () =>
    Effect.gen(function* () {
      const { url, world, client } = yield* start()
      yield* put(url, "a", { size: "1Gi", deletion_policy: "delete" })
      yield* client.delete("a")
      world.inWrite = Effect.sync(() => {
        world.operations = [operation(only(world), { phase: "intended", status: "pending" })]
      })
      const refused = yield* Effect.flip(client.undelete("a"))
      assert.strictEqual(refused._tag === "ApiError" ? refused.code : refused._tag, "DELETING")
      assert.strictEqual(only(world).deletion?.policy, "delete")
      assert.strictEqual(only(world).generation, 2)
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
