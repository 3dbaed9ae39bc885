import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import type { Guard, PlanItem } from "../../schema/Action.ts"
import type { ExportAnswer, Volume } from "../../schema/Api.ts"
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

describe("retry --end-clients", () => {
  const of = volume("a", A)
  const client = { peer: "10.0.0.7:4000", pid: 42, since: "2026-03-01T12:00:00Z" }
  const leaving = (guard: Guard | null): PlanItem => ({
    uid: of.uid,
    name: of.name,
    generation: of.generation,
    volume_id: of.status.volume_id,
    next: null,
    chain: [],
    blocked: null,
    guard,
    gap: null,
    drift: false,
    settled: guard === null,
    removal_done: false
  })
  const daemon = (guard: Guard | null, sent: Array<unknown>) => ({
    ...Fake.declared(() => [of]),
    retryDryRun: () => Effect.succeed(Fake.dryRun({ items: [leaving(guard)] })),
    export: () => Effect.succeed({ connections: [client] } as unknown as ExportAnswer),
    retry: (...asked: ReadonlyArray<unknown>) => Effect.sync(() => (sent.push(asked), of))
  })
  const ending = { _tag: "EndClients", export_name: "e", reason: "alice agrees", device: "252:16" } as const

  it.effect("shows whose connections it ends, and ends them for the declaration that was shown (M4, N10)", () =>
    Effect.gen(function* () {
      const sent: Array<unknown> = []
      const recording = Recording.make()
      yield* Fake.run(Act.retry(Fake.invocation("retry a --end-clients --yes")), daemon(ending, sent), recording.layer)
      for (const word of ["ends 1 NBD connection of a", "10.0.0.7:4000", "42"]) assert.include(recording.notes(), word)
      assert.deepStrictEqual(sent, [["a", { end_clients: true }, { ifMatch: of.generation }]])
    })
  )

  it.effect("names whose connections end once what else holds the volume up is over, such as a hold file (N10)", () =>
    Effect.gen(function* () {
      const sent: Array<unknown> = []
      const recording = Recording.make()
      const item: PlanItem = {
        ...leaving(null),
        chain: [
          { _tag: "Unexport", uid: of.uid, name: of.name, volume_id: A, export_name: "e", reason: "it leaves" } as never
        ],
        blocked: { reason: "HoldFile", category: "blocked", message: "it is there", suggestion: "remove it" }
      }
      const held = { ...daemon(null, sent), retryDryRun: () => Effect.succeed(Fake.dryRun({ items: [item] })) }
      yield* Fake.run(Act.retry(Fake.invocation("retry a --end-clients --yes")), held, recording.layer)
      assert.include(recording.notes(), "ends 1 NBD connection of a")
      assert.notInclude(recording.notes(), "no connection is ended")
      assert.deepStrictEqual(sent, [["a", { end_clients: true }, { ifMatch: of.generation }]])
    })
  )

  it.effect("ends those whose export is not listed any more, and says that it cannot name them (N10)", () =>
    Effect.gen(function* () {
      const sent: Array<unknown> = []
      const recording = Recording.make()
      const unlisted = { ...daemon(ending, sent), export: () => Effect.fail(Fake.notFound) }
      yield* Fake.run(Act.retry(Fake.invocation("retry a --end-clients --yes")), unlisted, recording.layer)
      assert.include(recording.notes(), "ends the NBD connections of a")
      assert.deepStrictEqual(sent, [["a", { end_clients: true }, { ifMatch: of.generation }]])
    })
  )

  it.effect("agrees to nothing where it said that nothing is ended", () =>
    Effect.gen(function* () {
      const sent: Array<unknown> = []
      const recording = Recording.make()
      yield* Fake.run(Act.retry(Fake.invocation("retry a --end-clients --yes")), daemon(null, sent), recording.layer)
      assert.include(recording.notes(), "no connection is ended")
      assert.deepStrictEqual(sent, [["a", { end_clients: false }, { ifMatch: of.generation }]])
    })
  )

  it.effect("says that nothing is ended of a volume that stays, and asks before it ends anything", () =>
    Effect.gen(function* () {
      const sent: Array<unknown> = []
      const recording = Recording.make()
      yield* Fake.run(Act.retry(Fake.invocation("retry a --end-clients --yes")), daemon(null, sent), recording.layer)
      assert.include(recording.notes(), "no connection is ended")
      const unasked = Effect.provide(Act.retry(Fake.invocation("retry a --end-clients")), Fake.unasked)
      const refused = yield* Effect.flip(Fake.run(unasked, daemon(ending, sent), Recording.make().layer))
      assert.include(refused.message, "End 1 NBD connection and try a at once?")
      assert.strictEqual(sent.length, 1)
    })
  )
})
