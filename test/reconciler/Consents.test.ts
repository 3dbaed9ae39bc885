import { assert, describe, it } from "@effect/vitest"
import { Effect, TestClock } from "effect"
import * as Consents from "../../reconciler/Consents.ts"
import type { CallWish, Operation } from "../../schema/Operation.ts"
import * as Worlds from "../support/Worlds.ts"

const first = Worlds.uidOf(1)

const wishing = (spec: CallWish["spec"], remove = false): Partial<Operation> => ({
  cause: "api",
  status: "executing",
  created_at: new Date(0).toISOString(),
  wish: { spec, before: { attached_to: null, attach_as: "data", export_wanted: null }, remove }
})

describe("consent to ending NBD clients", () => {
  const declaration = Worlds.declaration("disk-1", { uid: first })

  it.effect("lies in a version 1 call that asks the volume to leave, from its twentieth second on (N10)", () =>
    Effect.gen(function* () {
      const consents = yield* Consents.make(Worlds.appliance, 20_000)
      const since = (changes: Partial<Operation>) =>
        Effect.map(
          consents.standing([Worlds.operation(first, changes)], [declaration]),
          (all) => all.get(first)?.since ?? null
        )
      assert.strictEqual(yield* since(wishing({ attached_to: "none" })), 20_000)
      assert.strictEqual(yield* since(wishing({ attached_to: Worlds.vmId(1) })), 20_000)
      assert.strictEqual(yield* since(wishing({ export_wanted: false })), 20_000)
      assert.strictEqual(yield* since(wishing({}, true)), 20_000)
      assert.isNull(yield* since(wishing({ attached_to: "appliance", export_wanted: true })))
      assert.isNull(yield* since(wishing({ attached_to: Worlds.appliance })))
      assert.isNull(yield* since({ ...wishing({ attached_to: "none" }), status: "failed" }))
      assert.isNull(yield* since({ wish: null }), "an action of ours is nobody's consent")
    })
  )

  it.effect("by a person counts at once, for five minutes, for what was looked at, until it is over", () =>
    Effect.gen(function* () {
      const consents = yield* Consents.make(Worlds.appliance, 20_000)
      const by = (generation = 1) =>
        Effect.map(consents.standing([], [{ ...declaration, generation }]), (all) => all.get(first)?.by ?? null)
      const give = consents.give(first, { generation: 1, by: "alice" })
      assert.isNull(yield* by())
      yield* give
      assert.strictEqual(yield* by(), "alice")
      assert.isNull(yield* by(2), "written since, it is another wish")
      yield* TestClock.adjust("5 minutes")
      assert.strictEqual(yield* by(), "alice")
      yield* TestClock.adjust("1 second")
      assert.isNull(yield* by())
      yield* give
      yield* consents.forget([first])
      assert.isNull(yield* by())
    })
  )
})
