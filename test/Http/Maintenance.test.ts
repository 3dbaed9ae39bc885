import { assert, describe, it } from "@effect/vitest"
import { Effect, Schedule } from "effect"
import type { Withheld } from "../../schema/Action.ts"
import { VolumeId } from "../../schema/Ids.ts"
import * as Site from "./Site.ts"
import { send, start, type World } from "./support.ts"

const volumeId = VolumeId.make("c6ef61d1-300f-442a-86e5-000000000001")

const at = (url: string, query = "") => `${url}/api/v2/maintenance${query}`
const put = (url: string, json: unknown, query = "") => send(at(url, query), { method: "PUT", json })
const end = (url: string, query = "") => send(at(url, query), { method: "DELETE" })

const withheld = ({ declarations: [declaration] }: World): Withheld => {
  assert.ok(declaration)
  const { uid, name, generation } = declaration
  return { uid, name, generation, volume_id: volumeId, action: "detach", digest: "digest-of-the-end" }
}

const over = (world: World, pending: ReadonlyArray<Withheld>) =>
  Effect.sync(() => {
    if (world.maintenance?.ending !== true) return
    world.maintenance = null
    world.withheld = pending
  })

describe("/api/v2/maintenance", () => {
  it.scopedLive("begins, shows itself, takes another reason and end, and keeps when it began", () =>
    Effect.gen(function* () {
      const { url } = yield* start()
      assert.deepStrictEqual((yield* send(at(url))).body, { maintenance: null, withheld: [] })
      const begun = yield* put(url, { reason: "array firmware", by: "alice" })
      assert.strictEqual(begun.status, 200)
      const { maintenance } = begun.body as { maintenance: Record<string, unknown> }
      assert.deepInclude(maintenance, { reason: "array firmware", by: "alice", until: null, ending: false })
      assert.deepStrictEqual((yield* send(at(url))).body, begun.body)
      const until = new Date(Date.now() + 3_600_000).toISOString()
      const changed = yield* put(url, { reason: "still the array", by: "bob", until })
      assert.deepStrictEqual(changed.body["maintenance"], {
        ...maintenance,
        reason: "still the array",
        by: "bob",
        until
      })
    })
  )

  it.scopedLive("stays as ending while what is pending cannot be seen whole, and can be begun again", () =>
    Effect.gen(function* () {
      const { url } = yield* start()
      yield* put(url, { reason: "r", by: "b" })
      const ending = yield* end(url)
      assert.strictEqual(ending.status, 200)
      assert.deepInclude(ending.body["maintenance"] as object, { reason: "r", ending: true })
      const again = yield* put(url, { reason: "r", by: "b" })
      assert.deepInclude(again.body["maintenance"] as object, { ending: false })
    })
  )

  it.scopedLive("answers at its end what waits for approval, until that is approved under its digest", () =>
    Effect.gen(function* () {
      const { url, client, world } = yield* start()
      yield* client.put("a", { size: "1Gi" })
      yield* put(url, { reason: "r", by: "b" })
      const pending = withheld(world)
      world.onSync = over(world, [pending])
      const ended = yield* end(url)
      assert.deepStrictEqual(ended.body, { maintenance: null, withheld: [pending] })
      const other = yield* Effect.flip(client.approve("another"))
      assert.deepStrictEqual(other._tag === "ApiError" ? other.details["digests"] : other._tag, ["digest-of-the-end"])
      const plan = yield* client.approveDryRun("digest-of-the-end")
      assert.deepStrictEqual<ReadonlyArray<string>>(plan.changed, ["a"])
      assert.strictEqual(world.approvals.length, 0)
      world.poked = []
      const { digest, ...held } = pending
      const approved = yield* client.approve("digest-of-the-end")
      assert.deepStrictEqual(approved.approved, [held])
      const [approval] = world.approvals
      assert.deepInclude(approval, { ...held, digest })
      assert.deepStrictEqual(world.poked, [held.uid])
      assert.deepStrictEqual((yield* send(at(url))).body, { maintenance: null, withheld: [] })
      const again = yield* end(url)
      assert.strictEqual(again.status, 200, "there is none to end")
    })
  )

  it.scopedLive("is stored although the pass that should follow cannot run", () =>
    Effect.gen(function* () {
      const { url, world } = yield* start()
      world.onSync = Effect.die(new Error("the pass broke"))
      const begun = yield* put(url, { reason: "r", by: "b" })
      assert.strictEqual(begun.status, 200)
      assert.ok(world.maintenance)
      world.databaseDown = true
      assert.strictEqual((yield* end(url)).status, 503)
      world.databaseDown = false
      assert.isFalse(world.maintenance?.ending)
    })
  )

  it.scopedLive("is ended once under one key, also where its client left before the answer (X13)", () =>
    Effect.gen(function* () {
      const { url, world } = yield* start()
      yield* put(url, { reason: "first", by: "alice" })
      world.onSync = Effect.never
      const headers = { "idempotency-key": "end-1" }
      const left = yield* Effect.timeoutOption(send(at(url), { method: "DELETE", headers }), "1 second")
      assert.strictEqual(left._tag, "None")
      assert.isTrue(world.maintenance?.ending)
      world.onSync = Effect.void
      world.maintenance = null
      yield* put(url, { reason: "second", by: "bob" })
      // While the first one is still being worked on the repeat is a conflict.
      yield* send(at(url), { method: "DELETE", headers }).pipe(
        Effect.filterOrFail(({ status }) => status === 200),
        Effect.retry({ schedule: Schedule.spaced("100 millis"), times: 50 })
      )
      const { maintenance } = (yield* send(at(url))).body as { maintenance: Record<string, unknown> }
      assert.deepInclude(maintenance, { reason: "second", ending: false })
    })
  )

  it.scopedLive("shows the plan on a dry run and changes nothing", () =>
    Effect.gen(function* () {
      const { url, client, world } = yield* start()
      yield* client.put("a", { size: "1Gi" })
      const plan = yield* put(url, { reason: "r", by: "b" }, "?dry_run=true")
      assert.strictEqual(plan.status, 200)
      assert.property(plan.body, "plan")
      assert.strictEqual(world.maintenance, null)
      yield* put(url, { reason: "r", by: "b" })
      assert.property((yield* end(url, "?dry_run=true")).body, "plan")
      assert.isFalse(world.maintenance?.ending)
    })
  )

  it.scopedLive("refuses a maintenance without a reason or a person, and one that is over already", () =>
    Effect.gen(function* () {
      const { url, world } = yield* start()
      for (const json of [
        {},
        { reason: "r" },
        { reason: "", by: "b" },
        { reason: "r", by: "b", until: "tomorrow" },
        { reason: "r", by: "b", until: "2026-13-40T00:00:00Z" },
        { reason: "r", by: "b", until: "2001-01-01T00:00:00Z" },
        { reason: "r", by: "b", untill: "2026-01-01T00:00:00Z" }
      ]) {
        assert.strictEqual((yield* put(url, json)).status, 400, JSON.stringify(json))
      }
      assert.strictEqual(world.maintenance, null)
    })
  )
})

describe("a maintenance of a whole daemon", () => {
  it.scopedLive(
    "stores what is written meanwhile, acts on nothing, and holds what it would take away at its end",
    () =>
      Effect.gen(function* () {
        const { daemon, world } = yield* Site.start
        const { client } = yield* daemon
        for (const name of ["kept", "leaving"]) {
          yield* client.put(name, { size: "1Gi", attached_to: "appliance", export_wanted: true })
        }
        const isReady = (name: string) =>
          Effect.repeat(client.volume(name, { condition: "Ready:True", timeoutSeconds: 5 }), {
            until: ({ status }) => status.conditions.some(({ type, status }) => type === "Ready" && status === "True")
          })
        yield* isReady("kept")
        const { status } = yield* isReady("leaving")
        const vmOf = Effect.sync(() => world.volume(status.volume_id ?? "", Date.now())?.vm_id)
        assert.ok(yield* vmOf)

        yield* client.beginMaintenance({ reason: "firmware", by: "alice" })
        const before = world.truth(Date.now()).calls
        yield* client.patch("leaving", { attached_to: "none" })
        yield* client.put("fresh", { size: "1Gi" })
        const waiting = yield* client.volume("leaving", { condition: "Ready:False", timeoutSeconds: 10 })
        const ready = waiting.status.conditions.find(({ type }) => type === "Ready")
        assert.strictEqual(ready?.reason, "Maintenance")
        const during = world.truth(Date.now()).calls
        for (const command of ["detachVolume", "createVolume", "attachVolume"]) {
          assert.strictEqual(during[command], before[command], command)
        }

        assert.deepStrictEqual((yield* client.endMaintenanceDryRun).changed.map(String), ["leaving"])
        const { withheld, maintenance } = yield* client.endMaintenance
        assert.strictEqual(maintenance, null)
        assert.sameMembers(
          withheld.map(({ name, action }) => `${name} ${action}`),
          ["leaving unexport", "leaving detach"]
        )
        assert.strictEqual(new Set(withheld.map(({ digest }) => digest)).size, 1)
        yield* isReady("fresh")
        assert.ok(yield* vmOf, "it waits, while what takes nothing away runs")
        assert.deepStrictEqual((yield* client.endMaintenanceDryRun).changed, [], "there is none to end any more")

        yield* client.approve(withheld[0]?.digest ?? "")
        yield* Effect.repeat(vmOf, { until: (vm) => vm === null, schedule: Schedule.spaced("50 millis") })
        yield* isReady("leaving")
        assert.deepStrictEqual(yield* client.maintenance, { maintenance: null, withheld: [] })
        assert.deepStrictEqual(world.truth(Date.now()).violations, [])
      }),
    60_000
  )
})
