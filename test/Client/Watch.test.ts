import { assert, describe, it } from "@effect/vitest"
import { Chunk, Effect, Stream } from "effect"
import type { ServerResponse } from "node:http"
import * as Client from "../../src/Client/Client.ts"
import { ApiError } from "../../src/Client/Failure.ts"
import * as Volumed from "../../src/Client/Volumed.ts"
import * as FakeServer from "./FakeServer.ts"

const event = (id: number) => ({
  id,
  at: "2026-03-01T12:00:00Z",
  kind: "changed",
  name: "a",
  uid: null,
  actor: null,
  operation_id: null,
  message: `number ${id}`
})

const begin = (response: ServerResponse) => response.writeHead(200, { "content-type": "text/event-stream" })
const frame = (id: number) => `id: ${id}\nevent: changed\ndata: ${JSON.stringify(event(id))}\n\n`

/** The newest event is number 5. */
const answering = (watch: (response: ServerResponse, after: number, connection: number) => void) => {
  let connections = 0
  return FakeServer.start((response, _, { url, headers }) => {
    if (url.startsWith("/api/v2/events")) {
      return FakeServer.json(response, 200, { items: [event(1)], next_cursor: "1", event_id: 5 })
    }
    watch(response, Number(headers["last-event-id"]), ++connections)
  })
}

const ids = (events: Chunk.Chunk<{ readonly id: number }>) => Chunk.toReadonlyArray(events).map(({ id }) => id)

describe("a watch", () => {
  it.scopedLive("begins with what happens from now on and resumes after the last event seen, without a gap", () =>
    Effect.gen(function* () {
      const resumed: Array<number> = []
      const { url } = yield* answering((response, after, connection) => {
        resumed.push(after)
        if (connection === 1) return void response.destroy()
        begin(response)
        // Cut inside an event, which therefore was not seen.
        if (connection === 2)
          return void response.write(`: hello\n\n${frame(6)}${frame(7)}id: 8\nda`, () => response.destroy())
        if (connection === 3) return void response.end(frame(8))
        response.write(frame(9))
      })
      const events = yield* Stream.runCollect(Stream.take(Client.make({ server: url }).watch(), 4))
      assert.deepStrictEqual(ids(events), [6, 7, 8, 9])
      assert.deepStrictEqual(resumed, [5, 5, 7, 8])
    })
  )

  it.scopedLive("begins where it is told, with what it is told to look at", () =>
    Effect.gen(function* () {
      const { url, asked } = yield* answering((response, after) => void begin(response).end(frame(after + 1)))
      const events = yield* Stream.runCollect(
        Stream.take(Client.make({ server: url }).watch({ after: 2, name: "a", kind: "changed" }), 1)
      )
      assert.deepStrictEqual(ids(events), [3])
      assert.deepStrictEqual(
        asked.map((one) => one.url),
        ["/api/v2/watch?name=a&kind=changed"]
      )
    })
  )

  it.scopedLive("resumes after events that its filter passed over, where a heartbeat told of them", () =>
    Effect.gen(function* () {
      const resumed: Array<number> = []
      const { url } = yield* answering((response, after, connection) => {
        resumed.push(after)
        begin(response)
        if (connection === 1) return void response.end(": watching\nid: 5\n\n: still here\nid: 40\n\n")
        response.write(frame(41))
      })
      const watching = Client.make({ server: url }).watch({ name: "a" })
      assert.deepStrictEqual(ids(yield* Stream.runCollect(Stream.take(watching, 1))), [41])
      assert.deepStrictEqual(resumed, [5, 40])
    })
  )

  it.scopedLive("fails when what comes next was pruned", () =>
    Effect.gen(function* () {
      const { url } = yield* answering((response) =>
        FakeServer.json(response, 410, FakeServer.refusal("CURSOR_EXPIRED"))
      )
      const error = yield* Effect.flip(Stream.runDrain(Client.make({ server: url }).watch({ after: 1 })))
      assert.instanceOf(error, ApiError)
      assert.strictEqual(error.code, "CURSOR_EXPIRED")
    })
  )

  it.scopedLive("ends its connection when nobody reads on", () =>
    Effect.gen(function* () {
      let left: () => void = () => {}
      const closed = new Promise<void>((resolve) => (left = resolve))
      const { url } = yield* answering((response) => {
        response.on("close", left)
        begin(response).write(frame(6) + frame(7))
      })
      yield* Effect.promise(async () => {
        const seen: Array<number> = []
        for await (const one of Volumed.connect({ server: url }).watch()) {
          seen.push(one.id)
          if (seen.length === 2) break
        }
        assert.deepStrictEqual(seen, [6, 7])
        await closed
      })
    })
  )
})
