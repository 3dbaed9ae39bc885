import type { SqlClient } from "@effect/sql/SqlClient"
import { Effect, Exit, Layer, Scope } from "effect"
import { afterAll, beforeAll } from "vitest"
import { Leadership } from "../../reconciler/Leadership.ts"
import { Store } from "../../reconciler/Store.ts"
import * as Leader from "../../src/Store/Leader.ts"
import * as Mysql from "../../src/Store/Mysql.ts"
import * as Sql from "../../src/Store/Sql.ts"
import * as MariaDb from "../support/MariaDb.ts"
import * as Proxy from "../support/Proxy.ts"

/** One server for all tests of a file, with these further options. */
export const shared = (...options: ReadonlyArray<string>): Effect.Effect<MariaDb.MariaDb> => {
  const scope = Effect.runSync(Scope.make())
  const started: { server: MariaDb.MariaDb | null } = { server: null }
  beforeAll(async () => {
    started.server = await Effect.runPromise(Scope.extend(MariaDb.start(...options), scope))
  })
  afterAll(() => Effect.runPromise(Scope.close(scope, Exit.void)))
  return Effect.suspend(() =>
    started.server === null ? Effect.dieMessage("the server did not start") : Effect.succeed(started.server)
  )
}

/** A store that leads, with a pool of its own, and a proxy between it and the server. */
export const on = Effect.fnUntraced(function* (target: Mysql.Target) {
  const direct = Layer.succeedContext(yield* Layer.build(Mysql.layer(target)))
  const leadership = yield* Effect.provide(Leadership, Leader.layerSole.pipe(Layer.provide(direct)))
  const proxy = yield* Proxy.between(target.port)
  const storeOn = (client: Layer.Layer<SqlClient>) =>
    Effect.flatMap(
      Layer.build(Sql.layerUnder({}).pipe(Layer.provide([client, Layer.succeed(Leadership, leadership)]))),
      (context) => Effect.provide(Store, context)
    )
  return {
    target,
    proxy,
    store: yield* storeOn(Mysql.layer({ ...target, port: proxy.port })),
    /** One that has read nothing yet, and asks the server itself. */
    fresh: storeOn(direct)
  }
})
