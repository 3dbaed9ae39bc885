import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import * as Volumed from "../../src/Client/Volumed.ts"
import * as FakeServer from "./FakeServer.ts"

describe("the client of promises", () => {
  it.scopedLive("is the client of effects, function by function", () =>
    Effect.gen(function* () {
      const names = (client: object) => Object.keys(client).toSorted()
      const [effects, promises] = [Volumed.make({ server: "http://s" }), Volumed.connect({ server: "http://s" })]
      assert.deepStrictEqual(names(promises), names(effects))
      assert.deepStrictEqual(names(promises.v1), names(effects.v1))
      for (const member of [...Object.values(promises), ...Object.values(promises.v1)]) {
        assert.isTrue(typeof member === "function" || member === promises.v1)
      }
    })
  )

  it.scopedLive("gives answers, and throws the very errors", () =>
    Effect.gen(function* () {
      const { url } = yield* FakeServer.start((response, _, { url }) =>
        url.endsWith("/detach")
          ? FakeServer.json(response, 201, FakeServer.operation({ type: "detach" }))
          : url.startsWith("/api/v1/operations")
            ? FakeServer.json(response, 200, FakeServer.operation({ status: "failed", error: "no device" }))
            : FakeServer.json(response, 404, FakeServer.refusal("NOT_FOUND", "there is none"))
      )
      yield* Effect.promise(async () => {
        const volumed = Volumed.connect({ server: url })
        const operation = await volumed.v1.detach("i")
        assert.strictEqual(operation.type, "detach")
        const failed = await volumed.waitForCompletion(operation).catch((error: unknown) => error)
        assert.instanceOf(failed, Volumed.OperationFailed)
        assert.isTrue(Volumed.isRetryable(failed))
        const refused = await volumed.plan().catch((error: unknown) => error)
        assert.instanceOf(refused, Volumed.ApiError)
        assert.strictEqual(refused.message, "there is none")
      })
    })
  )
})
