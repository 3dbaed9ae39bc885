import { assert, describe, it } from "@effect/vitest"
import { Chunk, Effect, Exit, Fiber, Scope, Stream } from "effect"
import { request } from "node:http"
import * as Client from "../../src/Client/Client.ts"
import * as Site from "../Http/Site.ts"
import * as FakeServer from "./FakeServer.ts"

/**
 * A real daemon behind something that loses answers, as a network does: what must hold is that each write happened once
 * and that nothing of what happened is missing from a watch.
 */
interface Between {
  readonly url: string
  readonly asked: FakeServer.FakeServer["asked"]
  /** Where the daemon is; null while it is away. */
  target: string | null
  /** Of so many requests, from now on, the answers are lost. */
  losing: number
}

const between = Effect.gen(function* () {
  const road: { target: string | null; losing: number } = { target: null, losing: 0 }
  const fake = yield* FakeServer.start((response, _, { method, url, headers, body }) => {
    if (road.target === null) return void response.destroy()
    const lost = road.losing > 0
    if (lost) road.losing -= 1
    const onward = request(new URL(url, road.target), { method, headers }, (answer) => {
      if (lost) return void answer.resume().on("end", () => response.destroy())
      response.writeHead(answer.statusCode ?? 500, answer.headers)
      answer.on("error", () => response.destroy()).pipe(response)
    })
    onward.on("error", () => response.destroy())
    response.on("close", () => onward.destroy())
    onward.end(body)
  })
  return Object.assign(road, fake) satisfies Between
})

describe("the client before a real daemon", () => {
  it.scopedLive("makes one volume by a create whose answers were lost, and follows it to its end (X13)", () =>
    Effect.gen(function* () {
      const site = yield* Site.start
      const road = yield* between
      road.target = (yield* site.daemon).url
      const client = Client.make({ server: road.url, retry: { baseMs: 1 } })
      road.losing = 2
      const asked = yield* client.v1.create({ name: "once", size: 1024 ** 3 })
      assert.strictEqual(asked.status, "pending")
      assert.strictEqual(road.asked.length, 3)
      road.losing = 1
      const done = yield* client.waitForCompletion(asked)
      assert.strictEqual(done.id, asked.id)
      const made = site.world.truth(Date.now()).volumes.filter(({ name }) => name === "once")
      assert.deepStrictEqual(
        made.map(({ id }) => id),
        [done.volume_id]
      )
      assert.deepStrictEqual(site.world.truth(Date.now()).violations, [])
    })
  )

  it.scopedLive("watches on without a gap when the daemon is started anew", () =>
    Effect.gen(function* () {
      const site = yield* Site.start
      const road = yield* between
      const life = yield* Scope.make()
      road.target = (yield* Scope.extend(site.daemon, life)).url
      const client = Client.make({ server: road.url, actor: "tester" })
      const watching = yield* client
        .watch({ after: 0, kind: "declared" })
        .pipe(Stream.take(2), Stream.runCollect, Effect.fork)
      yield* client.put("before", { size: "1GiB" })
      road.target = null
      yield* Scope.close(life, Exit.void)
      const { url } = yield* site.daemon
      // Nobody watches while this happens.
      yield* Client.make({ server: url }).put("after", { size: "1GiB" })
      road.target = url
      const events = yield* Fiber.join(watching)
      assert.deepStrictEqual(
        Chunk.toReadonlyArray(events).map(({ name }) => name),
        ["before", "after"]
      )
    })
  )
})
