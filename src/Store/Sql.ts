import * as SqlClient from "@effect/sql/SqlClient"
import { Effect, Layer } from "effect"
import { randomUUID } from "node:crypto"
import { join } from "node:path"
import { Leadership, type Role } from "../../reconciler/Leadership.ts"
import { Store } from "../../reconciler/Store.ts"
import type { Misconfigured, StoreUnavailable } from "../../schema/Errors.ts"
import type { Settings } from "../../schema/Settings.ts"
import * as Approvals from "./Approvals.ts"
import * as Conditions from "./Conditions.ts"
import * as Declarations from "./Declarations.ts"
import * as DeviceMappings from "./DeviceMappings.ts"
import * as Dialect from "./Dialect.ts"
import * as Dsn from "./Dsn.ts"
import * as Durability from "./Durability.ts"
import * as Events from "./Events.ts"
import * as HighTerm from "./HighTerm.ts"
import * as KeyedAnswers from "./KeyedAnswers.ts"
import * as Leader from "./Leader.ts"
import * as Maintenance from "./Maintenance.ts"
import { SCHEMA_VERSION } from "./Migrate.ts"
import * as Mysql from "./Mysql.ts"
import * as OperationList from "./OperationList.ts"
import * as Operations from "./Operations.ts"
import * as Prune from "./Prune.ts"
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

/** The store on whatever database the client speaks to, under this leadership. */
export const layerUnder = (options: Options): Layer.Layer<Store, never, SqlClient.SqlClient | Leadership> =>
  Layer.effect(
    Store,
    Effect.suspend(() => make(options))
  )

/** The store of a process that is the only one; brings the schema up to date first. */
export const layerWith = (
  options: Options
): Layer.Layer<Store | Leadership, Misconfigured | StoreUnavailable, SqlClient.SqlClient> =>
  Layer.provideMerge(layerUnder(options), Leader.layerSole)

export const layer = layerWith({})

/**
 * The store that the settings name. SQLite's file is one process's, and a second one is refused; of those that share a
 * MySQL one leads, and an outage stops none of them.
 */
export const layerDsn = (
  settings: Site
): Layer.Layer<Store | Leadership | SqlClient.SqlClient, Misconfigured | StoreUnavailable> =>
  Layer.unwrapEffect(
    Effect.map(Dsn.resolve(settings.database_dsn, settings.database_ca_file), (dsn) => {
      switch (dsn._tag) {
        case "Sqlite":
          return layer.pipe(
            Layer.provideMerge(Layer.effectDiscard(acceptable(settings))),
            Layer.provideMerge(Sqlite.layer(dsn.file))
          )
        case "Mysql": {
          const { appliance_vm_id, state_dir } = settings
          const elected = Leader.layerElected({
            target: dsn.target,
            appliance_vm_id,
            acceptable: acceptable(settings),
            dry_run: settings.dry_run === true,
            ...(state_dir === undefined ? {} : { high_term: HighTerm.make(join(state_dir, "term"), Dsn.place(dsn)) })
          })
          return layerUnder({}).pipe(Layer.provideMerge(elected))
        }
      }
    })
  )

/** What `layerDsn` would read, for a process that leaves the leading to others and changes nothing. */
export const layerLooking = (settings: Site): Layer.Layer<Store, Misconfigured | StoreUnavailable> =>
  Layer.unwrapEffect(
    Effect.map(Dsn.resolve(settings.database_dsn, settings.database_ca_file), (dsn) => {
      switch (dsn._tag) {
        case "Sqlite":
          return Layer.provide(layer, Sqlite.layer(dsn.file))
        case "Mysql":
          return layerUnder({}).pipe(Layer.provide(Leader.layerLooking), Layer.provide(Mysql.layer(dsn.target)))
      }
    })
  )

export type Site = Pick<Settings, "database_dsn" | "database_ca_file" | "appliance_vm_id"> &
  Partial<Pick<Settings, "dry_run" | "require_durable" | "state_dir">>

const acceptable = ({ require_durable }: Site) => (require_durable === true ? Durability.demand : Effect.void)

const make = Effect.fnUntraced(function* (options: Options) {
  const sql = yield* SqlClient.SqlClient
  const leadership = yield* Leadership
  const turn = yield* Effect.makeSemaphore(1)
  const session: Session = {
    sql,
    undecodable: new Map(),
    newId: options.newId ?? randomUUID,
    tell: Events.teller(sql, options.events_kept ?? Events.KEPT),
    alone: turn.withPermits(1),
    epoch: { value: 0 },
    // A role is a value in memory, so that this never waits.
    reign: () => termOf(Effect.runSync(leadership.role)),
    fence: () => Dialect.fence(sql, leadership.role)
  }
  const declarations = Declarations.make(session)
  const operations = Operations.make(session, declarations)
  const keys = KeyedAnswers.make(session)
  const conditions = Conditions.make(session, declarations)
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
    conditions: conditions.conditions,
    saveConditions: conditions.saveConditions,
    ...Prune.make(session, conditions),
    ...DeviceMappings.make(session),
    ...Maintenance.make(session, declarations, keys),
    ...Events.make(session),
    describe: Effect.map(
      read(Effect.all([Dialect.engine(sql), Dialect.isWritable(sql), Durability.weaknesses(sql)])),
      ([engine, writable, weak]) => ({
        engine,
        writable,
        durable: weak.length === 0,
        weak,
        schema_version: SCHEMA_VERSION,
        undecodable: [...session.undecodable.values()]
      })
    )
  })
})

const termOf = (role: Role): number | null => (role._tag === "Leading" ? role.term : null)
