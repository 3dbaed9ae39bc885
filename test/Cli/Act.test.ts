import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import type { Volume } from "../../schema/Api.ts"
import * as Act from "../../src/Cli/Act.ts"
import { ApiError } from "../../src/Client/Failure.ts"
import type { Removal } from "../../src/Client/Client.ts"
import * as Fake from "./Fake.ts"
import * as Recording from "./Recording.ts"
import { A, volume } from "./Sample.ts"

const stale = new ApiError({
  status: 412,
  code: "PRECONDITION_FAILED",
  error: "a: is at generation 2, not 1",
  details: {},
  request_id: "r"
})

describe("delete", () => {
  it.effect("removes the declaration whose plan was shown, and no other that somebody writes meanwhile (M4)", () =>
    Effect.gen(function* () {
      let declared: Volume = volume("a", A)
      let removed = 0
      const known = {
        ...Fake.declared(() => [declared]),
        deleteDryRun: () => Effect.sync(() => Fake.dryRun()),
        delete: (_: string, { ifMatch }: Removal = {}) =>
          Effect.suspend(() => {
            if (ifMatch !== undefined && ifMatch !== declared.generation) return Effect.fail(stale)
            removed += 1
            return Effect.succeed(declared)
          })
      }
      const run = Fake.run(Act.remove(Fake.invocation("delete a --yes")), known, Recording.make().layer)
      assert.strictEqual(yield* run, "done")
      // Its policy becomes delete between the plan and the answer: another removal than the one agreed to.
      const meanwhile = Effect.sync(() => {
        const spec = { ...declared.spec, deletion_policy: "delete" } as const
        declared = { ...declared, generation: 2, spec }
        return Fake.dryRun()
      })
      const raced = yield* Effect.flip(
        Fake.run(
          Act.remove(Fake.invocation("delete a --yes")),
          { ...known, deleteDryRun: () => meanwhile },
          Recording.make().layer
        )
      )
      assert.strictEqual(raced.message, stale.message)
      assert.strictEqual(removed, 1)
    })
  )
})
