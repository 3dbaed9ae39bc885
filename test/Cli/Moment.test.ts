import { assert, describe, it } from "@effect/vitest"
import { Effect, TestClock } from "effect"
import * as Moment from "../../src/Cli/Moment.ts"
import * as Fake from "./Fake.ts"

const noon = Date.parse("2026-03-01T12:00:00Z")

describe("times on the command line", () => {
  it.effect("are a moment with any offset, or an age", () =>
    Effect.gen(function* () {
      yield* TestClock.setTime(noon)
      const since = (text: string) => Moment.since(Fake.invocation(`log --since=${text}`), 0)
      assert.strictEqual(yield* since("1h"), "2026-03-01T11:00:00.000Z")
      assert.strictEqual(yield* since("7d"), "2026-02-22T12:00:00.000Z")
      assert.strictEqual(yield* since("2026-03-01T10:00:00+02:00"), "2026-03-01T08:00:00.000Z")
      assert.strictEqual(yield* Moment.since(Fake.invocation("log"), 60_000), "2026-03-01T11:59:00.000Z")
      for (const text of ["yesterday", "10", "2026-03-01", "2026-13-01T00:00:00Z", "-1h"]) {
        const { message } = yield* Effect.flip(since(text))
        assert.include(message, "--since: expected an age such as 1h")
        assert.include(message, JSON.stringify(text))
      }
    })
  )

  it.effect("that end something lie ahead, and are said once", () =>
    Effect.gen(function* () {
      yield* TestClock.setTime(noon)
      const end = (flags: string) => Moment.end(Fake.invocation(`pause b --reason r${flags}`))
      assert.isNull(yield* end(""))
      assert.strictEqual(yield* end(" --for 2h"), "2026-03-01T14:00:00.000Z")
      assert.strictEqual(yield* end(" --until 2026-03-01T13:00:00Z"), "2026-03-01T13:00:00.000Z")
      assert.include((yield* Effect.flip(end(" --until 2026-03-01T11:00:00Z"))).message, "is over")
      assert.include((yield* Effect.flip(end(" --until 2h --for 2h"))).message, "leave one of them out")
      assert.include((yield* Effect.flip(end(" --for ever"))).message, "--for: expected a time such as 2h")
    })
  )
})
