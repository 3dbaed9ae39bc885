import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import { send, start, tell, type World } from "./support.ts"

const ids = (body: Record<string, unknown>) => (body["items"] as ReadonlyArray<{ id: number }>).map(({ id }) => id)

/** Six events: two of each kind, of three names. */
const history = (world: World) => {
  for (const [index, kind] of ["declared", "changed", "removed", "declared", "changed", "removed"].entries()) {
    tell(world, {
      kind,
      name: ["a", "b", "c"][index % 3] ?? null,
      actor: index < 3 ? "alice" : "bob",
      at: `2026-03-01T12:0${index}:00.000Z`
    })
  }
}

describe("GET /api/v2/events", () => {
  it.scopedLive("tells the history oldest first, page by page, with where it ends", () =>
    Effect.gen(function* () {
      const { url, world } = yield* start()
      history(world)
      const first = yield* send(`${url}/api/v2/events?limit=4`)
      assert.strictEqual(first.status, 200)
      assert.deepStrictEqual(ids(first.body), [1, 2, 3, 4])
      assert.strictEqual(first.body["next_cursor"], "4")
      assert.strictEqual(first.body["event_id"], 6)
      const second = yield* send(`${url}/api/v2/events?limit=4&cursor=4`)
      assert.deepStrictEqual(ids(second.body), [5, 6])
      assert.strictEqual(second.body["next_cursor"], null)
      const exact = yield* send(`${url}/api/v2/events?limit=6`)
      assert.strictEqual(exact.body["next_cursor"], null, "a page that ends with the history has none after it")
      assert.deepStrictEqual(ids((yield* send(`${url}/api/v2/events?after=6`)).body), [])
    })
  )

  it.scopedLive("filters by time, name, actor and kind", () =>
    Effect.gen(function* () {
      const { url, world } = yield* start()
      history(world)
      const found = (query: string) => Effect.map(send(`${url}/api/v2/events?${query}`), ({ body }) => ids(body).join())
      assert.strictEqual(yield* found("name=b"), "2,5")
      assert.strictEqual(yield* found("actor=bob"), "4,5,6")
      assert.strictEqual(yield* found("kind=removed"), "3,6")
      assert.strictEqual(yield* found("since=2026-03-01T12:02:00Z&until=2026-03-01T12:04:00Z"), "3,4")
      assert.strictEqual(yield* found("name=b&actor=alice"), "2")
      assert.strictEqual(yield* found("name=b&limit=1"), "2")
      const page = yield* send(`${url}/api/v2/events?name=b&limit=1`)
      assert.strictEqual(page.body["next_cursor"], "2")
      assert.strictEqual(yield* found("name=b&limit=1&cursor=2"), "5")
    })
  )

  it.scopedLive("shows a written event with who wrote it and which declaration it concerns", () =>
    Effect.gen(function* () {
      const { url, client } = yield* start()
      const { uid } = yield* client.put("a", { size: "1Gi" })
      const { body } = yield* send(`${url}/api/v2/events`)
      const [event] = body["items"] as ReadonlyArray<Record<string, unknown>>
      assert.sameMembers(Object.keys(event ?? {}), [
        "id",
        "at",
        "kind",
        "name",
        "uid",
        "actor",
        "operation_id",
        "message"
      ])
      assert.deepInclude(event, { kind: "declared", name: "a", uid, actor: "tester", operation_id: null })
    })
  )

  it.scopedLive("answers 410 for a place that is pruned or was never there", () =>
    Effect.gen(function* () {
      const { url, world } = yield* start()
      for (const at of ["after", "cursor"]) {
        assert.strictEqual((yield* send(`${url}/api/v2/events?${at}=1`)).status, 410, "nothing has happened yet")
      }
      history(world)
      world.events = world.events.slice(3)
      assert.deepStrictEqual(ids((yield* send(`${url}/api/v2/events?after=3`)).body), [4, 5, 6])
      for (const query of ["after=2", "after=0", "cursor=1", "after=7"]) {
        const gone = yield* send(`${url}/api/v2/events?${query}`)
        assert.strictEqual(gone.status, 410, query)
        assert.strictEqual(gone.body["code"], "CURSOR_EXPIRED")
      }
      assert.deepStrictEqual(ids((yield* send(`${url}/api/v2/events`)).body), [4, 5, 6], "what there is can be listed")
    })
  )

  it.scopedLive("refuses filters that cannot be", () =>
    Effect.gen(function* () {
      const { url } = yield* start()
      for (const query of [
        "after=x",
        "after=-1",
        "cursor=1.5",
        "after=0&cursor=0",
        "since=yesterday",
        "until=2026-13-01T00:00:00Z",
        "limit=1001",
        "nmae=a"
      ]) {
        assert.strictEqual((yield* send(`${url}/api/v2/events?${query}`)).status, 400, query)
      }
    })
  )
})
