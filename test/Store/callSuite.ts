import { SqlClient } from "@effect/sql/SqlClient"
import { assert, describe } from "@effect/vitest"
import { Effect, Either, Option } from "effect"
import * as TestClock from "effect/TestClock"
import { type Advance, Store, type Write } from "../../reconciler/Store.ts"
import { unbound } from "../../schema/Declaration.ts"
import { OperationId } from "../../schema/Ids.ts"
import { isUnresolved } from "../../schema/Operation.ts"
import {
  answer,
  attach,
  bindingOf,
  call,
  callId,
  detach,
  refusal,
  removal,
  settled,
  spec,
  uidOf,
  uuid,
  vm,
  volumeId,
  write
} from "./Samples.ts"
import type { Test } from "./suite.ts"

const done = { phase: "settled", status: "completed" } as const satisfies Advance
const failed = { phase: "uncertain", status: "failed", error: "the volume is on vm-2" } as const satisfies Advance

const next = (generation: number, over: Partial<Write> = {}) =>
  write(1, { expected_generation: generation - 1, generation, kind: "changed", actor: "bob", ...over })

const kinds = Effect.gen(function* () {
  const store = yield* Store
  return (yield* store.events({ after: 0, limit: 1000 })).map((event) => event.kind)
})

const statuses = Effect.gen(function* () {
  const store = yield* Store
  const { items } = yield* store.operations({})
  return Object.fromEntries(items.map(({ id, status }) => [id, status]))
})

/** Version 1 calls, and what is stored beside the writes that carry them. */
export const callSuite = (test: Test) => {
  describe("a call", () => {
    test(
      "is stored with the write that carries it, pending, and is no action whose outcome is unknown",
      Effect.gen(function* () {
        const store = yield* Store
        yield* TestClock.setTime(Date.parse("2026-03-01T12:00:00Z"))
        yield* store.write([write(1)], { calls: [call(1)] })
        const [stored] = yield* store.calls
        assert.deepStrictEqual(stored, {
          ...call(1),
          status: "pending",
          phase: "intended",
          cause: "api",
          response: null,
          error: null,
          created_at: "2026-03-01T12:00:00.000Z",
          updated_at: "2026-03-01T12:00:00.000Z",
          completed_at: null,
          job_id: null,
          attempts: 1,
          parent_id: null,
          destructive: false,
          submitted_at: null,
          expires_at: null
        })
        assert.isFalse(stored === undefined || isUnresolved(stored))
        assert.deepStrictEqual(yield* store.unresolved, [])
        assert.deepStrictEqual(Option.getOrNull(yield* store.operation(callId(1))), stored)
        assert.deepStrictEqual(yield* kinds, ["declared", "call_accepted"])
        const intent = yield* store.intend(attach(1))
        assert.deepStrictEqual(
          (yield* store.unresolved).map((operation) => operation.id),
          [intent.operation_id]
        )
      })
    )

    test(
      "is not stored when its write is refused, nor a write when its call's end is (S14)",
      Effect.gen(function* () {
        const store = yield* Store
        yield* store.write([write(1)], { calls: [call(1)] })
        const stale = yield* refusal(store.write([write(1)], { calls: [call(1, { call: 2 })] }))
        assert.strictEqual(stale._tag, "GenerationConflict")
        yield* store.write([], { ends: [{ id: callId(1), advance: done }] })
        for (const advance of [failed, done]) {
          const late = yield* refusal(
            store.write([next(2, { spec: spec({ read_only: true }) })], {
              calls: [call(1, { call: 3 })],
              ends: [{ id: callId(1), advance }],
              answer: answer("k")
            })
          )
          assert.strictEqual(late._tag, "PreconditionLost")
        }
        assert.deepStrictEqual(yield* statuses, { [callId(1)]: "completed" })
        assert.strictEqual((yield* store.declarations)[0]?.generation, 1)
        assert.isTrue(Option.isNone(yield* store.answered("k")))
        assert.deepStrictEqual(yield* kinds, ["declared", "call_accepted", "call_ended"])
      })
    )

    test(
      "is the parent of the actions that it causes, the newest open one; of a drift's repair none is",
      Effect.gen(function* () {
        const store = yield* Store
        yield* store.write([write(1), write(2)], { calls: [call(1, { call: 1 }), call(2)] })
        yield* TestClock.adjust("1 millis")
        yield* store.write([], { calls: [call(1, { call: 3 }), call(1, { call: 4 })], ends: [] })
        yield* store.write([], { ends: [{ id: callId(4), advance: done }] })
        const caused = yield* store.intend(attach(1))
        yield* store.advance(caused.operation_id, settled)
        const repair = yield* store.intend(detach(1))
        const children = (yield* store.operations({ parent_id: callId(3) })).items
        assert.deepStrictEqual(
          children.map(({ id, attempts }) => [id, attempts]),
          [[caused.operation_id, 1]]
        )
        assert.isNull(Option.getOrThrow(yield* store.operation(repair.operation_id)).parent_id)
        yield* store.write([write(9)])
        const alone = yield* store.intend(attach(9))
        assert.isNull(Option.getOrThrow(yield* store.operation(alone.operation_id)).parent_id)
      })
    )

    test(
      "is cancelled by a write that declares otherwise, and by no other",
      Effect.gen(function* () {
        const store = yield* Store
        yield* store.write([write(1), write(2)], { calls: [call(1), call(2)] })
        yield* store.write([next(2, { spec: spec({ metadata: { a: "b" } }) })])
        assert.deepStrictEqual(yield* statuses, { [callId(1)]: "pending", [callId(2)]: "pending" })
        yield* store.advance(callId(1), { phase: "intended", status: "executing" })
        const detaching = call(1, {
          call: 3,
          type: "detach",
          wish: { spec: { attached_to: "none" }, before: { attached_to: "appliance" }, remove: false }
        })
        yield* store.write([next(3, { spec: spec({ attached_to: "none" }) })], { calls: [detaching] })
        const cancelled = Option.getOrThrow(yield* store.operation(callId(1)))
        assert.deepInclude(cancelled, { status: "cancelled", error: "superseded by generation 3, written by bob" })
        assert.isNotNull(cancelled.completed_at)
        assert.deepStrictEqual(
          (yield* store.calls).map(({ id }) => id),
          [callId(2), callId(3)]
        )
        yield* store.write([next(4, { spec: spec({ attached_to: "none" }), deletion: removal, kind: "removed" })])
        assert.strictEqual((yield* statuses)[callId(3)], "cancelled")
        assert.strictEqual((yield* statuses)[callId(2)], "pending")
      })
    )

    test(
      "that the write itself ends is ended that way, not cancelled",
      Effect.gen(function* () {
        const store = yield* Store
        yield* store.write([write(1)], { calls: [call(1)] })
        yield* store.write([next(2, { spec: spec({ attached_to: null }), actor: "volumed" })], {
          ends: [{ id: callId(1), advance: failed }]
        })
        const ended = Option.getOrThrow(yield* store.operation(callId(1)))
        assert.deepInclude(ended, { status: "failed", phase: "uncertain", error: "the volume is on vm-2" })
      })
    )

    test(
      "that came to nothing leaves no trace in what later ones find: neither its wish nor its claim (S23)",
      Effect.gen(function* () {
        const store = yield* Store
        const away = (before: "appliance" | null) =>
          ({ spec: { attached_to: "none" }, before: { attached_to: before }, remove: false }) as const
        const detaching = (n: number, before: "appliance" | null) =>
          call(1, { call: n, type: "detach", vm_id: null, wish: away(before) })
        const foreign = { vm_id: vm, as: "data", settled: false } as const
        const befores = Effect.map(store.calls, (open) => open.map(({ id, wish }) => [id, wish?.before.attached_to]))
        yield* store.write([write(1, { spec: spec({ attached_to: "none" }), binding: bindingOf(1) })], {
          calls: [detaching(1, null)]
        })
        const binding = bindingOf(1, { attachment: foreign })
        yield* store.settle(callId(1), { phase: "intended", status: "pending", vm_id: vm }, { uid: uidOf(1), binding })
        const back = { spec: { attached_to: "appliance" }, before: { attached_to: "none" }, remove: false } as const
        yield* store.write([next(2)], { calls: [call(1, { call: 2, wish: back })] })
        assert.deepStrictEqual(yield* befores, [[callId(2), null]])
        assert.isNull((yield* store.declarations)[0]?.binding.attachment)
        yield* store.write([], {
          calls: [call(1, { call: 3, wish: { ...back, before: { attached_to: "appliance" } } })]
        })
        yield* store.write([], { ends: [{ id: callId(2), advance: { ...done, status: "failed" } }] })
        assert.deepStrictEqual(yield* befores, [[callId(3), null]])
      })
    )

    test(
      "is not taken back in the belief that nothing was sent for it, when an action was begun meanwhile (S9)",
      Effect.gen(function* () {
        const store = yield* Store
        yield* store.write([write(1)], { calls: [call(1)] })
        const { operation_id } = yield* store.intend(attach(1))
        const ends = [{ id: callId(1), advance: failed }]
        const unaware = next(2, { spec: spec({ attached_to: null }), actor: "volumed" })
        assert.strictEqual((yield* refusal(store.write([unaware], { ends })))._tag, "GenerationConflict")
        assert.deepStrictEqual((yield* statuses)[callId(1)], "pending")
        yield* store.write([{ ...unaware, binding: { late: { operation_id, type: "attach" } } }], { ends })
        assert.deepStrictEqual((yield* statuses)[callId(1)], "failed")
      })
    )

    test(
      "that was cancelled stays open until its wish is wholly taken back, as a failed one does",
      Effect.gen(function* () {
        const store = yield* Store
        yield* store.write([write(1)], { calls: [call(1)] })
        yield* store.write([], { ends: [{ id: callId(1), advance: { ...failed, status: "cancelled" } }] })
        assert.lengthOf(yield* store.calls, 1)
        yield* store.write([], { ends: [{ id: callId(1), advance: { phase: "settled", status: "cancelled" } }] })
        assert.lengthOf(yield* store.calls, 0)
        assert.strictEqual((yield* statuses)[callId(1)], "cancelled")
      })
    )

    test(
      "moves on only, and what its client was told of its end never changes (S7)",
      Effect.gen(function* () {
        const store = yield* Store
        yield* store.write([write(1)], { calls: [call(1)] })
        yield* store.advance(callId(1), { phase: "intended", status: "executing" })
        const back = yield* refusal(store.advance(callId(1), { phase: "intended", status: "pending" }))
        assert.strictEqual(back._tag, "PreconditionLost")
        const told = yield* store.advance(callId(1), failed)
        assert.deepStrictEqual(yield* store.advance(callId(1), failed), told)
        // Its wish is not wholly taken back: it stays open for that, and for nothing else.
        assert.deepStrictEqual(
          (yield* store.calls).map(({ id }) => id),
          [callId(1)]
        )
        for (const change of [
          { phase: "settled", status: "completed" },
          { phase: "uncertain", status: "executing" },
          { phase: "settled", status: "failed", error: "another word" },
          { phase: "settled", status: "failed", response: { late: true } }
        ] as const) {
          assert.strictEqual((yield* refusal(store.advance(callId(1), change)))._tag, "PreconditionLost")
          const end = { ends: [{ id: callId(1), advance: change }] }
          assert.strictEqual((yield* refusal(store.write([], end)))._tag, "PreconditionLost")
        }
        yield* store.write([], { ends: [{ id: callId(1), advance: { phase: "settled", status: "failed" } }] })
        const now = Option.getOrThrow(yield* store.operation(callId(1)))
        assert.deepStrictEqual({ ...now, updated_at: "" }, { ...told, phase: "settled", updated_at: "" })
        assert.deepStrictEqual(yield* store.calls, [])
        const again = yield* refusal(store.advance(callId(1), { phase: "uncertain", status: "failed" }))
        assert.strictEqual(again._tag, "PreconditionLost")
        assert.deepStrictEqual(yield* kinds, ["declared", "call_accepted", "call_ended"])
      })
    )
  })

  describe("an undelete", () => {
    test(
      "is refused from the moment a delete is intended, and after one that took effect (S6)",
      Effect.gen(function* () {
        const store = yield* Store
        const deletion = { ...removal, policy: "delete" } as const
        const undelete = (generation: number) => store.write([next(generation, { kind: "undeleted" })])
        const remove = { ...attach(1), _tag: "Delete", destructive: true } as const
        const removing = call(1, { type: "delete", wish: { spec: {}, before: {}, remove: true } })
        yield* store.write([write(1, { deletion })], { calls: [removing] })
        // The row of a call that asks for the delete is no delete.
        yield* store.write([], { ends: [{ id: callId(1), advance: { phase: "settled", status: "failed" } }] })
        yield* undelete(2)
        yield* store.write([next(3, { deletion, kind: "removed" })])
        const refused = yield* store.intend({ ...remove, generation: 3 })
        assert.strictEqual((yield* refusal(undelete(4)))._tag, "PreconditionLost")
        assert.isNotNull((yield* store.declarations)[0]?.deletion)
        yield* store.advance(refused.operation_id, { phase: "refused", status: "failed", error: "431" })
        yield* undelete(4)
        yield* store.write([next(5, { deletion, kind: "removed" })])
        const carried = yield* store.intend({ ...remove, generation: 5 })
        yield* store.advance(carried.operation_id, settled)
        assert.strictEqual((yield* refusal(undelete(6)))._tag, "PreconditionLost")
      })
    )

    test(
      "and a delete that race have one winner",
      Effect.gen(function* () {
        const store = yield* Store
        const deletion = { ...removal, policy: "delete" } as const
        for (let n = 0; n < 20; n++) {
          yield* store.write([write(n, { deletion })])
          const undelete = store.write([write(n, { expected_generation: 1, generation: 2, kind: "undeleted" })])
          const remove = store.intend({ ...attach(n), _tag: "Delete", destructive: true })
          const race: ReadonlyArray<Effect.Effect<Either.Either<unknown, unknown>>> = [
            Effect.either(undelete),
            Effect.either(remove)
          ]
          const outcomes = yield* Effect.all(n % 2 === 0 ? race : race.toReversed(), { concurrency: "unbounded" })
          assert.strictEqual(outcomes.filter(Either.isRight).length, 1)
        }
      })
    )
  })

  describe("a write's own binding", () => {
    test(
      "begins a declaration bound, with its export in the view, and guards the volume at once (S4)",
      Effect.gen(function* () {
        const store = yield* Store
        const sql = yield* SqlClient
        const binding = bindingOf(1, {
          origin: "adopted",
          export: { name: "e", path: "/dev/disk/by-id/x", settled_at: 5 }
        })
        const [made] = yield* store.write([write(1, { binding })])
        assert.deepStrictEqual(made?.binding, binding)
        assert.deepStrictEqual((yield* store.declarations)[0]?.binding, binding)
        const twice = yield* refusal(store.write([write(2), write(3, { binding: bindingOf(1) })]))
        assert.deepInclude(twice, { _tag: "PreconditionLost" })
        assert.include(twice.message, "disk-1")
        assert.strictEqual((yield* store.declarations).length, 1)
        const shown = Effect.map(sql`SELECT name, export_name FROM volumed_exports`, (rows) =>
          rows.map((row) => `${row.name} ${row.export_name}`)
        )
        assert.deepStrictEqual(yield* shown, ["disk-1 e"])
        yield* store.write([next(2, { binding: { export: null } })])
        assert.deepStrictEqual(yield* shown, [])
        yield* store.write([next(3, { binding })])
        assert.deepStrictEqual(yield* shown, ["disk-1 e"])
        yield* store.write([write(2)])
        const stolen = yield* refusal(store.intend(attach(2, { volume_id: volumeId(1) })))
        assert.strictEqual(stolen._tag, "PreconditionLost")
      })
    )

    test(
      "never makes a volume forgotten that became known meanwhile (S9)",
      Effect.gen(function* () {
        const store = yield* Store
        yield* store.write([write(1)])
        yield* store.bind([{ uid: uidOf(1), binding: bindingOf(1) }])
        const blind = yield* refusal(store.write([next(2, { binding: { ...unbound, repairs: [1] } })]))
        assert.strictEqual(blind._tag, "PreconditionLost")
        assert.deepInclude((yield* store.declarations)[0], { generation: 1, binding: bindingOf(1) })
      })
    )

    test(
      "changes what it names and keeps the rest; a late effect goes with any newer generation that names none",
      Effect.gen(function* () {
        const store = yield* Store
        const late = { operation_id: callId(5), type: "attach" }
        yield* store.write([write(1, { binding: { volume_id: volumeId(1), origin: "created" } })])
        const [marked] = yield* store.write([next(2, { binding: { late } })])
        assert.deepStrictEqual(marked?.binding, bindingOf(1, { late }))
        yield* store.write([next(2, { expected_generation: 2, set: "blue" })])
        assert.deepStrictEqual((yield* store.declarations)[0]?.binding.late, late)
        yield* store.write([next(3)])
        assert.deepStrictEqual((yield* store.declarations)[0]?.binding, bindingOf(1))
      })
    )
  })

  describe("what was learned on a reading", () => {
    const sent = { operation_id: OperationId.make(`op-${uuid(0x77)}`), type: "attach" } as const
    const claimed = bindingOf(1, { attachment: { vm_id: vm, as: "data", settled: false } })

    /** The claim is given up, and the call of the wish taken back may have its effect yet. */
    const givenUp = next(2, { binding: { attachment: null, late: sent, settled_generation: 2 } })
    const kept = { ...claimed, attachment: null, late: sent, settled_generation: 2 }

    const stored = Effect.gen(function* () {
      const sql = yield* SqlClient
      const [row] = yield* sql<{ binding: string }>`SELECT binding FROM declarations`
      const [shown] = yield* (yield* Store).declarations
      assert.deepStrictEqual(shown?.binding, JSON.parse(row?.binding ?? ""))
      return shown?.binding
    })

    test(
      "takes back nothing that was written since the reading began (S14, S23)",
      Effect.gen(function* () {
        const store = yield* Store
        yield* store.write([write(1)])
        yield* store.bind([{ uid: uidOf(1), binding: claimed }])
        yield* store.write([givenUp])
        const seen = { ...claimed, device_awaited_since: 5, settled_generation: 1 }
        yield* store.bind([{ uid: uidOf(1), binding: seen, from: claimed }])
        assert.deepStrictEqual(yield* stored, { ...kept, device_awaited_since: 5 })
        yield* store.bind([{ uid: uidOf(1), binding: { ...claimed, loss: null }, from: claimed }])
        assert.deepStrictEqual(yield* stored, { ...kept, device_awaited_since: 5 })
      })
    )

    test(
      "nor does the end of an action, of which all that it taught is kept (S9, S14)",
      Effect.gen(function* () {
        const store = yield* Store
        yield* store.write([write(1)])
        yield* store.bind([{ uid: uidOf(1), binding: claimed }])
        const { operation_id } = yield* store.intend(attach(1))
        yield* store.write([givenUp])
        const attachment = { vm_id: vm, as: "data", settled: true } as const
        yield* store.settle(operation_id, done, { uid: uidOf(1), binding: { ...claimed, attachment }, from: claimed })
        assert.deepStrictEqual(yield* stored, { ...kept, attachment })
      })
    )
  })

  describe("an answer to an Idempotency-Key", () => {
    test(
      "is stored with the write, and a repeat under the key is refused and writes nothing (S14, X13)",
      Effect.gen(function* () {
        const store = yield* Store
        const request = store.write([write(1)], { calls: [call(1)], answer: answer("key-1") })
        yield* request
        assert.deepStrictEqual(Option.getOrNull(yield* store.answered("key-1")), answer("key-1"))
        assert.isTrue(Option.isNone(yield* store.answered("KEY-1")))
        const before = yield* kinds
        // A repeat is told so even where its write would have lost anyhow.
        assert.strictEqual((yield* refusal(request))._tag, "PreconditionLost")
        const other = store.write([write(2)], { answer: answer("key-1", { digest: "d2", response: {} }) })
        assert.strictEqual((yield* refusal(other))._tag, "PreconditionLost")
        assert.deepStrictEqual(yield* kinds, before)
        assert.strictEqual((yield* store.declarations).length, 1)
        assert.deepStrictEqual(Option.getOrNull(yield* store.answered("key-1")), answer("key-1"))
      })
    )

    test(
      "is given once where repeats race (X13)",
      Effect.gen(function* () {
        const store = yield* Store
        const race = Array.from({ length: 16 }, (_, n) =>
          Effect.either(store.write([write(n)], { calls: [call(n)], answer: answer("one", { response: { n } }) }))
        )
        const outcomes = yield* Effect.all(race, { concurrency: "unbounded" })
        const won = outcomes.flatMap((outcome, n) => (outcome._tag === "Right" ? [n] : []))
        assert.strictEqual(won.length, 1)
        const given = Option.getOrThrow(yield* store.answered("one"))
        assert.deepStrictEqual(given.response, { n: won[0] })
        assert.strictEqual((yield* store.declarations).length, 1)
        assert.strictEqual((yield* store.calls).length, 1)
      })
    )

    test(
      "lapses after a day, and what others stored may be remembered under one too; the first stays",
      Effect.gen(function* () {
        const store = yield* Store
        yield* TestClock.setTime(Date.parse("2026-03-01T12:00:00Z"))
        yield* store.remember(answer("k", { status: 200, response: { vm: vm, of: volumeId(1), deep: [{ a: null }] } }))
        yield* store.remember(answer("k", { status: 500 }))
        yield* TestClock.adjust("24 hours")
        assert.deepInclude(Option.getOrNull(yield* store.answered("k")), { status: 200 })
        yield* TestClock.adjust("1 millis")
        assert.isTrue(Option.isNone(yield* store.answered("k")))
        yield* store.write([write(1)], { answer: answer("k", { status: 202 }) })
        assert.deepInclude(Option.getOrNull(yield* store.answered("k")), { status: 202 })
        yield* store.write([], { answer: answer("alone") })
        assert.isTrue(Option.isSome(yield* store.answered("alone")))
      })
    )
  })
}
