import { assert, describe, it } from "@effect/vitest"
import { Effect, Fiber } from "effect"
import { type Declaration, unbound } from "../../schema/Declaration.ts"
import { latch, send, start, type World } from "./support.ts"

const put = (url: string, name: string, json: unknown) => send(`${url}/api/v2/volumes/${name}`, { method: "PUT", json })
const only = (world: World): Declaration => {
  const [declaration] = world.declarations
  assert.ok(declaration)
  return declaration
}

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
