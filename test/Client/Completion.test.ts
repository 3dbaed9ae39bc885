import { assert, describe, it } from "@effect/vitest"
import { Clock, Effect, Exit, Fiber, Ref, TestClock } from "effect"
import type * as Api from "../../schema/Api.ts"
import type { ConditionType } from "../../schema/Condition.ts"
import { GIB } from "../../schema/Declaration.ts"
import { Name } from "../../schema/Ids.ts"
import { OperationType } from "../../schema/Operation.ts"
import * as Completion from "../../src/Client/Completion.ts"
import {
  ApiError,
  ConditionTimedOut,
  type Failure,
  OperationCancelled,
  OperationFailed,
  OperationTimedOut,
  ServerUnreachable,
  suggestion
} from "../../src/Client/Failure.ts"
import { operation } from "./FakeServer.ts"

const away = new ServerUnreachable({ server: "s", detail: "refused", transient: true })
const gone = new ApiError({ status: 404, code: "NOT_FOUND", error: "none", details: {}, request_id: "r" })

/** A daemon that holds an answer back as asked, and ends the operation at a time. */
const daemon = (end: { readonly at: number; readonly as: Api.OperationAnswer }, awayUntil = 0) =>
  Effect.map(Ref.make(0), (looks) => ({
    looks: Ref.get(looks),
    read: (_: string, waitSeconds = 0): Effect.Effect<Api.OperationAnswer, Failure> =>
      Effect.gen(function* () {
        yield* Ref.update(looks, (count) => count + 1)
        const now = yield* Clock.currentTimeMillis
        if (now < awayUntil) return yield* away
        yield* Effect.sleep(Math.max(0, Math.min(waitSeconds * 1000, end.at - now)))
        return (yield* Clock.currentTimeMillis) >= end.at ? end.as : { ...end.as, status: "executing" as const }
      })
  }))

const after = <A, E>(waiting: Effect.Effect<A, E>, ms: number) =>
  Effect.gen(function* () {
    const fiber = yield* Effect.fork(waiting)
    yield* TestClock.adjust(ms)
    return yield* Fiber.poll(fiber)
  })

/** How it ended by now; it must have. */
const ended = <A, E>(waiting: Effect.Effect<A, E>, ms: number) =>
  Effect.flatMap(after(waiting, ms), (exit) =>
    exit._tag === "None" ? Effect.die(new Error("still waiting")) : Effect.succeed(exit.value)
  )

const failure = <A, E>(waiting: Effect.Effect<A, E>, ms: number) =>
  Effect.flatMap(ended(waiting, ms), (exit) =>
    Exit.match(exit, {
      onSuccess: () => Effect.die(new Error("it succeeded")),
      onFailure: (cause) => (cause._tag === "Fail" ? Effect.succeed(cause.error) : Effect.die(cause))
    })
  )

describe("waiting for an operation", () => {
  it.effect("answers the moment it has completed, having looked seldom", () =>
    Effect.gen(function* () {
      const { read, looks } = yield* daemon({ at: 65_000, as: operation({ status: "completed" }) })
      const exit = yield* ended(Completion.ofOperation(read, operation(), {}), 65_000)
      assert.deepStrictEqual(exit, Exit.succeed(operation({ status: "completed" })))
      assert.strictEqual(yield* looks, 3)
    })
  )

  it.effect("needs but the id", () =>
    Effect.gen(function* () {
      const { read, looks } = yield* daemon({ at: 5_000, as: operation({ status: "completed" }) })
      const exit = yield* ended(Completion.ofOperation(read, operation().id, {}), 5_000)
      assert.isTrue(Exit.isSuccess(exit))
      assert.strictEqual(yield* looks, 2)
    })
  )

  it.effect("fails with the operation when that failed or was cancelled", () =>
    Effect.gen(function* () {
      const failing = yield* daemon({ at: 1_000, as: operation({ status: "failed", error: "no" }) })
      const error = yield* failure(Completion.ofOperation(failing.read, operation(), {}), 1_000)
      assert.instanceOf(error, OperationFailed)
      assert.strictEqual(error.operation.error, "no")
      const cancelled = yield* daemon({ at: 0, as: operation({ status: "cancelled" }) })
      assert.instanceOf(yield* failure(Completion.ofOperation(cancelled.read, operation(), {}), 0), OperationCancelled)
    })
  )

  it.effect("ends by the time-out of its type, and says that the daemon goes on", () =>
    Effect.gen(function* () {
      const expected = { create: 300, attach: 120, detach: 60, delete: 120, cleanup: 180 } as Record<string, number>
      for (const type of OperationType.literals) {
        const began = yield* Clock.currentTimeMillis
        const { read } = yield* daemon({ at: Number.MAX_SAFE_INTEGER, as: operation({ type }) })
        const waiting = yield* Effect.fork(Effect.flip(Completion.ofOperation(read, operation({ type }), {})))
        const limitMs = (expected[type] ?? 300) * 1000
        yield* TestClock.adjust(limitMs - 1)
        assert.isTrue((yield* Fiber.poll(waiting))._tag === "None", type)
        yield* TestClock.adjust(1)
        const error = yield* Fiber.join(waiting)
        assert.instanceOf(error, OperationTimedOut)
        assert.strictEqual(error.operation?.status, "executing")
        assert.include(error.message, "the daemon goes on")
        assert.strictEqual((yield* Clock.currentTimeMillis) - began, limitMs)
      }
    })
  )

  it.effect("waits over an outage of the server", () =>
    Effect.gen(function* () {
      const { read } = yield* daemon({ at: 30_000, as: operation({ status: "completed" }) }, 50_000)
      assert.isTrue(Exit.isSuccess(yield* ended(Completion.ofOperation(read, operation(), {}), 51_000)))
    })
  )

  it.effect("says why it never saw the operation", () =>
    Effect.gen(function* () {
      const { read } = yield* daemon({ at: 0, as: operation() }, Number.MAX_SAFE_INTEGER)
      const error = yield* failure(Completion.ofOperation(read, "op-x", { timeoutMs: 10_000 }), 10_000)
      assert.instanceOf(error, OperationTimedOut)
      assert.strictEqual(error.operation, null)
      assert.instanceOf(error.cause, ServerUnreachable)
    })
  )

  it.effect("ends at once when there is no such operation", () =>
    Effect.gen(function* () {
      assert.strictEqual(
        yield* failure(
          Completion.ofOperation(() => gone, "op-x", {}),
          0
        ),
        gone
      )
    })
  )

  it.effect("ends in time before a server that never answers", () =>
    Effect.gen(function* () {
      const error = yield* failure(
        Completion.ofOperation(() => Effect.never, operation(), { timeoutMs: 10_000 }),
        11_000
      )
      assert.instanceOf(error, OperationTimedOut)
    })
  )

  it.effect("does not press a server that holds no answer back", () =>
    Effect.gen(function* () {
      const looks = yield* Ref.make(0)
      const read = () =>
        Effect.as(
          Ref.update(looks, (count) => count + 1),
          operation({ status: "executing" })
        )
      yield* after(Completion.ofOperation(read, operation(), {}), 30_000)
      assert.isAtMost(yield* Ref.get(looks), 31)
    })
  )
})

describe("waiting for a condition", () => {
  const volume = (type: ConditionType, status: "True" | "False"): Api.Volume => {
    const at = "2026-03-01T12:00:00Z"
    return {
      name: Name.make("a"),
      uid: operation().uid,
      generation: 1,
      created_at: at,
      updated_at: at,
      set: null,
      managers: {},
      spec: {
        cloudstack_name: "a",
        volume_id: null,
        size: GIB,
        disk_offering_id: null,
        zone_id: null,
        attached_to: "appliance",
        attach_as: "data",
        export_wanted: true,
        read_only: false,
        deletion_policy: "forget",
        on_conflict: "hold",
        on_drift: "repair",
        on_loss: "hold",
        paused: null,
        metadata: {}
      },
      status: {
        observed_generation: 1,
        volume_id: null,
        volume_name: null,
        volume_state: null,
        size: null,
        attached_to: null,
        by_id_path: null,
        kernel_path: null,
        export: null,
        conditions: [
          {
            type,
            status,
            reason: "DeviceMissing",
            category: "blocked",
            message: "no disk yet",
            suggestion: "look at the guest",
            observed_generation: 1,
            last_transition_time: at
          }
        ],
        next_actions: [],
        last_operation_id: null,
        retry_at: null
      },
      deletion: null,
      removed_at: null
    }
  }

  it.effect("answers the declaration once it holds", () =>
    Effect.gen(function* () {
      const read = () => Effect.map(Clock.currentTimeMillis, (now) => volume("Ready", now >= 10_000 ? "True" : "False"))
      const exit = yield* ended(Completion.ofCondition(read, "a", "Ready:True", {}), 10_000)
      assert.deepStrictEqual(exit, Exit.succeed(volume("Ready", "True")))
    })
  )

  it.effect("says what it waited for in vain", () =>
    Effect.gen(function* () {
      const read = () => Effect.succeed(volume("Ready", "False"))
      const waiting = Completion.ofCondition(read, "a", "Ready:True", { timeoutMs: 5_000 })
      const error = yield* failure(waiting, 5_000)
      assert.instanceOf(error, ConditionTimedOut)
      assert.include(error.message, "no disk yet")
      assert.strictEqual(suggestion(error), "look at the guest")
    })
  )

  it.effect("looks among the removed ones only where the removal is waited for", () =>
    Effect.gen(function* () {
      const read = (_: string, __?: unknown, also: { readonly removed?: boolean } = {}) =>
        also.removed === true ? Effect.succeed(volume("Removed", "True")) : gone
      assert.isTrue(Exit.isSuccess(yield* ended(Completion.ofCondition(read, "a", "Removed:True", {}), 0)))
      assert.strictEqual(yield* failure(Completion.ofCondition(read, "a", "Ready:True", {}), 0), gone)
    })
  )
})
