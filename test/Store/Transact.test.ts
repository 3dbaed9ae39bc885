import * as Reactivity from "@effect/experimental/Reactivity"
import * as SqlClient from "@effect/sql/SqlClient"
import { SqlError } from "@effect/sql/SqlError"
import * as Statement from "@effect/sql/Statement"
import { assert, describe, it } from "@effect/vitest"
import { Effect, Stream } from "effect"
import { GenerationConflict } from "../../schema/Errors.ts"
import { transact } from "../../src/Store/Transact.ts"

/** A client whose statements succeed, save those that begin so. */
const failing = (...prefixes: ReadonlyArray<string>) => {
  const run = (text: string) =>
    prefixes.some((prefix) => text.startsWith(prefix))
      ? Effect.fail(new SqlError({ cause: Object.assign(new Error("disk I/O error"), { code: "SQLITE_IOERR" }) }))
      : Effect.succeed([])
  return SqlClient.make({
    acquirer: Effect.succeed({
      execute: run,
      executeRaw: run,
      executeValues: run,
      executeUnprepared: run,
      executeStream: () => Stream.empty
    }),
    compiler: Statement.makeCompilerSqlite(),
    spanAttributes: []
  }).pipe(Effect.provide(Reactivity.layer))
}

const unfenced = { enter: Effect.void, landed: Effect.succeed(null) }

describe("a transaction", () => {
  it.effect("whose COMMIT gets no good answer has an unknown outcome, and says so (B2)", () =>
    Effect.gen(function* () {
      const sql = yield* failing("COMMIT")
      const error = yield* Effect.flip(transact(sql, unfenced, sql`INSERT INTO t VALUES (1)`))
      assert.deepInclude(error, { _tag: "StoreUnavailable", outcome_unknown: true })
      assert.include(error.message, "SQLITE_IOERR")
    })
  )

  it.effect("that fails earlier did not happen, whether or not it can be rolled back (B1)", () =>
    Effect.gen(function* () {
      for (const prefixes of [["BEGIN"], ["INSERT"], ["INSERT", "ROLLBACK"]]) {
        const sql = yield* failing(...prefixes)
        const error = yield* Effect.flip(transact(sql, unfenced, sql`INSERT INTO t VALUES (1)`))
        assert.deepInclude(error, { _tag: "StoreUnavailable", outcome_unknown: false }, prefixes.join())
      }
    })
  )

  it.effect("lets the body's own refusal through", () =>
    Effect.gen(function* () {
      const sql = yield* failing()
      const refusal = new GenerationConflict({ name: "a", expected: 1, found: 2 })
      const refused = yield* Effect.flip(transact(sql, unfenced, Effect.fail(refusal)))
      assert.strictEqual(refused._tag, "GenerationConflict")
      assert.strictEqual(refused.message, refusal.message)
    })
  )
})
