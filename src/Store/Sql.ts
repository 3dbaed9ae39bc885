import * as SqlClient from "@effect/sql/SqlClient"
import { Effect, Layer, type Redacted } from "effect"
import { randomUUID } from "node:crypto"
import { Store } from "../../reconciler/Store.ts"
import type { Misconfigured, StoreUnavailable } from "../../schema/Errors.ts"
import * as Approvals from "./Approvals.ts"
import * as Conditions from "./Conditions.ts"
import * as Declarations from "./Declarations.ts"
import * as DeviceMappings from "./DeviceMappings.ts"
import * as Dialect from "./Dialect.ts"
import * as Dsn from "./Dsn.ts"
import * as Events from "./Events.ts"
import * as KeyedAnswers from "./KeyedAnswers.ts"
import * as Maintenance from "./Maintenance.ts"
import { migrate, SCHEMA_VERSION } from "./Migrate.ts"
import * as OperationList from "./OperationList.ts"
import * as Operations from "./Operations.ts"
import type { Session } from "./Rows.ts"
import * as Sqlite from "./Sqlite.ts"
import { read } from "./Transact.ts"
import * as Writes from "./Writes.ts"

export interface Options {
  /** Source of ids, a UUID each; random unless a test needs to know them. */
  readonly newId?: () => string
  /** How many events are kept, the newest; `Events.KEPT` unless told. */
  readonly events_kept?: number
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
    tell: Events.teller(sql, options.events_kept ?? Events.KEPT),
    alone: turn.withPermits(1),
    epoch: { value: 0 }
  }
  const declarations = Declarations.make(session)
  const operations = Operations.make(session, declarations)
  const keys = KeyedAnswers.make(session)
  return Store.of({
    declarations: declarations.declarations,
    declaration: declarations.declaration,
    removedSince: declarations.removedSince,
    bind: declarations.bind,
    finishRemoval: declarations.finishRemoval,
    intend: operations.intend,
    advance: operations.advance,
    settle: operations.settle,
    answered: keys.answered,
    remember: keys.remember,
    ...Writes.make(session, declarations, operations, keys),
    ...OperationList.make(session),
    ...Approvals.make(session, keys),
    ...Conditions.make(session, declarations),
    ...DeviceMappings.make(session),
    ...Maintenance.make(session, declarations, keys),
    ...Events.make(session),
    describe: Effect.map(read(Dialect.describe(sql)), (engine) => ({
      ...engine,
      schema_version: SCHEMA_VERSION,
      undecodable: [...session.undecodable.values()]
    }))
  })
})
