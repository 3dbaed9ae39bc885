import { assert, describe, it } from "@effect/vitest"
import { Effect, Fiber, Stream, TestClock } from "effect"
import type { Event } from "../../schema/Api.ts"
import type { OperationId } from "../../schema/Ids.ts"
import { ApiError } from "../../src/Client/Failure.ts"
import * as History from "../../src/Cli/History.ts"
import * as Fake from "./Fake.ts"
import * as Recording from "./Recording.ts"
import { A, B, volume } from "./Sample.ts"

const operation = "op-12345678-1234-1234-1234-123456789012" as OperationId

const event = (id: number, name: string | null, over: Partial<Event> = {}): Event => ({
  id,
  at: "2026-03-01T12:00:00Z",
  kind: "changed",
  name,
  uid: null,
  actor: "alice",
  operation_id: null,
  message: `event ${id}`,
  ...over
})

const happened = [
  event(1, "b"),
  event(2, "c"),
  event(3, "gone"),
  event(4, "b", { operation_id: operation, kind: "operation_ended", message: "attach failed: \u001b[2Jfull" })
]

/** Two events a page, filtered by name as the server does. */
const known = {
  ...Fake.declared(() => [volume("b", A), volume("c", B)]),
  events: ({ name, cursor = "0" }: { readonly name?: string; readonly cursor?: string } = {}) =>
    Effect.sync(() => {
      const left = happened.filter((one) => one.id > Number(cursor) && (name === undefined || one.name === name))
      const items = left.slice(0, 2)
      return { items, next_cursor: left.length > 2 ? String(items.at(-1)?.id) : null, event_id: 4 }
    })
}

const log = (line: string, form: "table" | "json" = "table") => {
  const recording = Recording.make({ form })
  return Effect.map(Fake.run(History.log(Fake.invocation(line)), known, recording.layer), (outcome) => {
    assert.strictEqual(outcome, "done")
    return recording.results()
  })
}

describe("log", () => {
  it.effect("shows all pages, in order, and no control character of a message", () =>
    Effect.gen(function* () {
      const text = yield* log("log --since 1h")
      assert.deepStrictEqual(
        [...text.matchAll(/event (\d)/gu)].map((match) => match[1]),
        ["1", "2", "3"]
      )
      assert.include(text, "attach failed: \\u001b[2Jfull")
      const { items } = JSON.parse(yield* log("log", "json")) as { items: ReadonlyArray<Event> }
      assert.deepStrictEqual(items, happened)
    })
  )

  it.effect("is of one volume by any handle, of several on a VM, or of one operation", () =>
    Effect.gen(function* () {
      const ids = (line: string) =>
        Effect.map(log(line, "json"), (text) =>
          (JSON.parse(text) as { items: ReadonlyArray<Event> }).items.map((one) => one.id)
        )
      assert.deepStrictEqual(yield* ids("log b"), [1, 4])
      assert.deepStrictEqual(yield* ids(`log ${B}`), [2])
      assert.deepStrictEqual(yield* ids("log 8a4400e5-c92a-4bc4-8bff-4b6b0b6a018c"), [1, 2, 4])
      assert.deepStrictEqual(yield* ids(`log ${operation}`), [4])
    })
  )

  it.effect("remembers what is declared no longer, and refuses what never was", () =>
    Effect.gen(function* () {
      assert.include(yield* log("log gone"), "event 3")
      const error = yield* Effect.flip(log("log never"))
      assert.include(String(error), 'nothing declared is called "never"')
    })
  )
})

describe("watch", () => {
  const watch = (line: string, streams: ReadonlyArray<Stream.Stream<Event, ApiError>>) => {
    let connections = 0
    const recording = Recording.make({ form: line.includes("json") ? "json" : "table" })
    const client = { ...known, watch: () => streams[connections++] ?? Stream.empty }
    return Effect.as(Fake.run(History.watch(Fake.invocation(line)), client, recording.layer), recording)
  }

  it.effect("writes a line for each event of the volume, and one object a line for programs", () =>
    Effect.gen(function* () {
      const text = (yield* watch("watch b", [Stream.fromIterable(happened)])).results()
      assert.strictEqual(text.split("\n").length, 3)
      assert.match(text, /^\S+ {2}changed +b {2}event 1 {2}\(alice\)$/mu)
      const lines = (yield* watch("watch -o json", [Stream.fromIterable(happened)])).results().trim().split("\n")
      assert.deepStrictEqual(
        lines.map((one) => JSON.parse(one) as unknown),
        happened
      )
    })
  )

  it.effect("says so when what happened meanwhile was pruned, and goes on", () =>
    Effect.gen(function* () {
      const pruned = new ApiError({ ...Fake.notFound, status: 410, code: "CURSOR_EXPIRED" })
      const streams = [Stream.concat(Stream.make(event(1, "b")), Stream.fail(pruned)), Stream.make(event(9, "b"))]
      const fiber = yield* Effect.fork(watch("watch", streams))
      yield* TestClock.adjust("1 minute")
      const recording = yield* Fiber.join(fiber)
      assert.include(recording.notes(), "no longer kept; going on from now")
      assert.match(recording.results(), /event 1[^]*event 9/u)
    })
  )
})
