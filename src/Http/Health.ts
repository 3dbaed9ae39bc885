import { Clock, Effect } from "effect"
import { Gate } from "../../reconciler/Gate.ts"
import { Reconciler } from "../../reconciler/Reconciler.ts"
import { Store } from "../../reconciler/Store.ts"
import type * as Api from "../../schema/Api.ts"
import type { Inventory, Source } from "../../schema/Inventory.ts"
import type { Settings } from "../../schema/Settings.ts"
import type { Answer } from "./Answer.ts"
import { rfc3339 } from "./Answer.ts"
import { Catalogue } from "./Catalogue.ts"

/** A health answer that takes longer than this is itself the answer. */
const LIMIT_MS = 5_000

/** 200 exactly when a write would be accepted: the database takes it, and offering and zone can be checked. */
export const make = (settings: Pick<Settings, "sandbox">, version: string) =>
  Effect.fn("Health.get")(function* () {
    const [database, catalogue] = yield* Effect.all([databaseHealth, catalogueHealth], { concurrency: 2 })
    const { inventory } = yield* Effect.flatMap(Reconciler, ({ view }) => view)
    const hold = yield* Effect.flatMap(Gate, ({ reason }) => reason)
    const cloudstack = inventory === null ? "not read yet" : sourceHealth(inventory.cloud)
    const devices = inventory === null ? "not read yet" : sourceHealth(inventory.guest)
    const nbd = inventory === null ? "not read yet" : nbdHealth(inventory.nbd)
    const accepted = database.ok && catalogue.ok
    const all = [database.health, cloudstack, devices, nbd].every((health) => health === "healthy")
    const body: Api.Health = {
      status: !accepted ? "unhealthy" : all && hold === null ? "healthy" : "degraded",
      timestamp: rfc3339(yield* Clock.currentTimeMillis),
      cloudstack_health: cloudstack,
      database_health: database.health,
      device_monitor: devices,
      nbd_health: nbd,
      details: {
        database: database.detail,
        cloudstack: catalogue.ok ? cloudstack : catalogue.detail,
        devices,
        nbd,
        sandbox: String(settings.sandbox),
        hold: hold ?? "",
        version
      }
    }
    return {
      status: accepted ? 200 : 503,
      body,
      ...(accepted ? {} : { headers: { "retry-after": "5" } })
    } satisfies Answer
  })

const databaseHealth = Effect.flatMap(Store, ({ describe }) => describe).pipe(
  Effect.timeout(LIMIT_MS),
  Effect.map(({ engine, durable, schema_version, undecodable }) => {
    const rows = undecodable.length === 0 ? "" : `, ${undecodable.length} rows do not decode`
    const detail = `${engine}, ${durable ? "durable" : "not durable"}, schema ${schema_version}${rows}`
    return { ok: true, health: durable && rows === "" ? "healthy" : "degraded", detail }
  }),
  Effect.catchAll((error) => Effect.succeed({ ok: false, health: "unavailable", detail: error.message }))
)

const catalogueHealth = Effect.flatMap(Catalogue, ({ ready }) => ready).pipe(
  Effect.timeout(LIMIT_MS),
  Effect.as({ ok: true, detail: "" }),
  Effect.catchAll((error) => Effect.succeed({ ok: false, detail: error.message }))
)

const sourceHealth = (source: Source<unknown>): string => {
  switch (source._tag) {
    case "Known":
      return source.complete ? "healthy" : `incomplete: ${source.note ?? "something may be missing"}`
    case "Unread":
      return `unread: ${source.message}`
  }
}

/** No server is wrong only where there is something to serve: nbd-server refuses to start with no export (N16). */
const nbdHealth = (source: Inventory["nbd"]): string => {
  if (source._tag === "Unread") return `unread: ${source.message}`
  const { server, sections } = source.value
  if (server.state === "running" || (server.state === "absent" && sections.length === 0)) return "healthy"
  return `${server.state}${server.problem === null ? "" : `: ${server.problem}`}`
}
