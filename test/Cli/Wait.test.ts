import { assert, describe, it } from "@effect/vitest"
import { Effect, Fiber, TestClock } from "effect"
import type { OperationAnswer, Volume } from "../../schema/Api.ts"
import type { Name, OperationId } from "../../schema/Ids.ts"
import * as Wait from "../../src/Cli/Wait.ts"
import { ServerUnreachable } from "../../src/Client/Failure.ts"
import * as Fake from "./Fake.ts"
import * as Recording from "./Recording.ts"
import { A, ready, volume } from "./Sample.ts"

const unready = (category: "progress" | "blocked") =>
  volume("b", A, {}, { conditions: [ready({ status: "False", category, reason: "Queued", message: "later" })] })

const wait = (line: string) => Wait.wait(Fake.invocation(`wait ${line}`))

/** The command on a clock of our own, with the world changed at given seconds. */
const story = (line: string, at: ReadonlyArray<readonly [seconds: number, Volume | null]>) =>
  Effect.gen(function* () {
    let present: Volume | null = at[0]?.[1] ?? null
    const recording = Recording.make()
    const known = Fake.declared(() => (present === null ? [] : [present]))
    const fiber = yield* Effect.fork(Fake.run(wait(line), known, recording.layer))
    let passed = 0
    for (const [seconds, next] of at) {
      yield* TestClock.adjust((seconds - passed) * 1000)
      passed = seconds
      present = next
    }
    yield* TestClock.adjust("3 minutes")
    return { outcome: yield* Fiber.join(fiber), results: recording.results() }
  })

describe("wait", () => {
  it.effect("ends when the volume is as wanted", () =>
    Effect.gen(function* () {
      const { outcome, results } = yield* story("b", [
        [0, unready("progress")],
        [5, volume("b", A)]
      ])
      assert.strictEqual(outcome, "done")
      assert.match(results, /^b +Ready /mu)
    })
  )

  it.effect("waits the whole time, and tells converging from blocked", () =>
    Effect.gen(function* () {
      assert.strictEqual((yield* story("b --timeout 2m", [[0, unready("progress")]])).outcome, "timeout")
      assert.strictEqual((yield* story("b --timeout 2m", [[0, unready("blocked")]])).outcome, "held")
      const unblocked = yield* story("b --timeout 2m", [
        [0, unready("blocked")],
        [60, volume("b", A)]
      ])
      assert.strictEqual(unblocked.outcome, "done")
    })
  )

  it.effect("takes another condition than Ready, also that it is not so", () =>
    Effect.gen(function* () {
      assert.strictEqual((yield* story("b --for Ready:False", [[0, unready("blocked")]])).outcome, "done")
      assert.strictEqual((yield* story("b --for Ready:False --timeout 1m", [[0, volume("b", A)]])).outcome, "timeout")
      const older = volume("b", A, { generation: 2 })
      assert.strictEqual((yield* story("b --timeout 1m", [[0, older]])).outcome, "timeout")
    })
  )

  it.effect("takes a declaration that is gone as removed, and as an error for every other wish", () =>
    Effect.gen(function* () {
      const leaving = [
        [0, unready("progress")],
        [5, null]
      ] as const
      assert.strictEqual((yield* story("b --for Removed:True", leaving)).outcome, "done")
      assert.strictEqual((yield* story("b", leaving)).outcome, "error")
    })
  )

  it.effect("refuses what is no condition, with a hint", () =>
    Effect.gen(function* () {
      const wrong = (text: string) => Effect.map(Effect.flip(Wait.goal(text)), ({ message }) => message)
      assert.include(yield* wrong("Raedy:True"), "did you mean Ready?")
      assert.include(yield* wrong("Ready:true"), "did you mean True?")
      assert.include(yield* wrong("Ready"), "one of True, False, Unknown")
      assert.include(yield* wrong("Ready:True:now"), "expected a condition such as Ready:True")
    })
  )
})

describe("waiting for an operation", () => {
  const id = "op-12345678-1234-1234-1234-123456789012" as OperationId
  const at = "2026-03-01T12:00:00Z"
  const operation = (status: OperationAnswer["status"]): OperationAnswer => ({
    id,
    type: "attach",
    status,
    volume_id: A,
    request: {},
    created_at: at,
    updated_at: at,
    name: "b" as Name,
    uid: volume("b", A).uid,
    cause: "api",
    actor: "v1",
    generation: 1,
    phase: status === "executing" ? "intended" : "settled",
    attempts: 1,
    ...(status === "failed" ? { error: "the VM is full" } : {})
  })
  const known = (status: () => OperationAnswer["status"]) => ({
    ...Fake.declared(() => []),
    operation: (_: string, seconds = 0) =>
      Effect.delay(
        Effect.sync(() => operation(status())),
        seconds * 1000
      )
  })

  it.effect("ends as the operation does, or in time", () =>
    Effect.gen(function* () {
      for (const [status, outcome] of [
        ["completed", "done"],
        ["failed", "error"],
        ["cancelled", "error"],
        ["executing", "timeout"]
      ] as const) {
        const recording = Recording.make()
        const fiber = yield* Effect.fork(
          Fake.run(
            wait(`${id} --timeout 1m`),
            known(() => status),
            recording.layer
          )
        )
        yield* TestClock.adjust("2 minutes")
        assert.strictEqual(yield* Fiber.join(fiber), outcome)
        assert.include(
          recording.results(),
          `attach ${id} of b: ${status}${status === "failed" ? ": the VM is full" : ""}`
        )
      }
    })
  )

  it.effect("goes on over a daemon that restarts", () =>
    Effect.gen(function* () {
      let calls = 0
      const down = new ServerUnreachable({ server: "http://127.0.0.1:1", detail: "gone", transient: true })
      const restarting = {
        ...known(() => "completed"),
        operation: () =>
          Effect.suspend(() => (calls++ < 3 ? Effect.fail(down) : Effect.succeed(operation("completed"))))
      }
      const fiber = yield* Effect.fork(Fake.run(wait(id), restarting, Recording.make().layer))
      yield* TestClock.adjust("1 minute")
      assert.strictEqual(yield* Fiber.join(fiber), "done")
    })
  )

  it.effect("has no other condition", () =>
    Effect.gen(function* () {
      const error = yield* Effect.flip(Fake.run(wait(`${id} --for Ready:True`), {}, Recording.make().layer))
      assert.include(String(error), "--for is for volumes")
    })
  )
})
