import * as SqlClient from "@effect/sql/SqlClient"
import { Effect, Layer, type Redacted } from "effect"
import { randomUUID } from "node:crypto"
import { Store } from "../../reconciler/Store.ts"
import type { Misconfigured, StoreUnavailable } from "../../schema/Errors.ts"
import * as Declarations from "./Declarations.ts"
import * as Dialect from "./Dialect.ts"
import * as Dsn from "./Dsn.ts"
import * as Journal from "./Journal.ts"
import { migrate, SCHEMA_VERSION } from "./Migrate.ts"
import * as Operations from "./Operations.ts"
import type { Session } from "./Rows.ts"
import * as Sqlite from "./Sqlite.ts"
import { read } from "./Transact.ts"

export interface Options {
  /** Source of ids, a UUID each; random unless a test needs to know them. */
  readonly newId?: () => string
}

/** The store on whatever database the client speaks to; brings its schema up to date first. */
export const layerWith = (
  options: Options
): Layer.Layer<Store, Misconfigured | StoreUnavailable, SqlClient.SqlClient> =>
  Layer.effect(
    Store,
    Effect.suspend(() => Effect.andThen(migrate, make(options)))
  )

export const layer = layerWith({})

/** The store that a `DATABASE_DSN` names. */
export const layerDsn = (dsn: Redacted.Redacted<string>): Layer.Layer<Store, Misconfigured | StoreUnavailable> =>
  Layer.unwrapEffect(Effect.map(Dsn.sqliteFile(dsn), (file) => Layer.provide(layer, Sqlite.layer(file))))

const make = Effect.fnUntraced(function* (options: Options) {
  const sql = yield* SqlClient.SqlClient
  const turn = yield* Effect.makeSemaphore(1)
  const session: Session = {
    sql,
    undecodable: new Map(),
    newId: options.newId ?? randomUUID,
    alone: turn.withPermits(1)
  }
  const declarations = Declarations.make(session)
  const operations = Operations.make(session, declarations)
  const journal = Journal.make(session)
  return Store.of({
    declarations: declarations.declarations,
    declaration: declarations.declaration,
    removedSince: declarations.removedSince,
    write: declarations.write,
    bind: declarations.bind,
    finishRemoval: declarations.finishRemoval,
    ...operations,
    ...journal,
    describe: Effect.map(read(Dialect.describe(sql)), (engine) => ({
      ...engine,
      schema_version: SCHEMA_VERSION,
      undecodable: [...session.undecodable.values()]
    }))
  })
})
