import { Clock, Effect } from "effect"
import { CloudStackRead } from "../../reconciler/CloudStack.ts"
import { Gate } from "../../reconciler/Gate.ts"
import { Leadership, type Role } from "../../reconciler/Leadership.ts"
import { Reconciler } from "../../reconciler/Reconciler.ts"
import { Store } from "../../reconciler/Store.ts"
import type * as Api from "../../schema/Api.ts"
import type { Inventory, Source } from "../../schema/Inventory.ts"
import type { Settings } from "../../schema/Settings.ts"
import * as Heartbeat from "../Heartbeat.ts"
import type { Answer } from "./Answer.ts"
import { rfc3339 } from "./Answer.ts"
import { Catalogue } from "./Catalogue.ts"
import { Tokens } from "./Tokens.ts"

/** A health answer that takes longer than this is itself the answer. */
const LIMIT_MS = 5_000

/**
 * 200 exactly when a write would be accepted: this process leads, there is no maintenance, the database takes it, and
 * offering and zone can be checked. Everybody may read this, so that it names states, and neither addresses, paths nor anybody's words.
 */
export const make = (
  settings: Pick<Settings, "sandbox"> &
    Partial<Pick<Settings, "dry_run">> & { readonly insecure: ReadonlyArray<string> },
  version: string
) =>
  Effect.fnUntraced(function* () {
    const [database, catalogue] = yield* Effect.all([databaseHealth, catalogueHealth], { concurrency: 2 })
    const { inventory } = yield* Effect.flatMap(Reconciler, ({ view }) => view)
    const hold = (yield* Effect.flatMap(Gate, ({ reason }) => reason)) !== null
    const cloudstack = inventory === null ? UNREAD_YET : sourceHealth(inventory.cloud)
    const devices = inventory === null ? UNREAD_YET : sourceHealth(inventory.guest)
    const nbd = inventory === null ? UNREAD_YET : nbdHealth(inventory.nbd)
    const role = yield* Effect.flatMap(Leadership, ({ role }) => role)
    const works = database.ok && catalogue.ok
    const accepted = works && database.writable && !database.maintenance && role._tag === "Leading"
    const all = [database.health, cloudstack, devices, nbd].every((health) => health === "healthy")
    const body: Api.Health = {
      status: !works ? "unhealthy" : all && accepted && !hold ? "healthy" : "degraded",
      timestamp: rfc3339(yield* Clock.currentTimeMillis),
      cloudstack_health: cloudstack,
      database_health: database.health,
      device_monitor: devices,
      nbd_health: nbd,
      details: {
        database: database.detail,
        cloudstack: catalogue.ok ? cloudstack : catalogue.detail,
        cloudstack_settings: yield* settingsHealth,
        devices,
        nbd,
        nbd_engine: inventory?.nbd._tag === "Known" ? inventory.nbd.value.engine : "",
        nbd_version: (inventory?.nbd._tag === "Known" ? inventory.nbd.value.version : null) ?? "",
        durability: database.weak,
        insecure: settings.insecure.join("; "),
        ...standing(role),
        sandbox: String(settings.sandbox),
        tokens: (yield* Effect.flatMap(Tokens, ({ problem }) => problem)) ?? "",
        hold: hold && role._tag === "Leading" ? `${held(settings)}: nothing is changed` : "",
        maintenance: database.maintenance ? "a maintenance is going on: version 1 writes are refused" : "",
        version
      }
    }
    return accepted ? { status: 200, body } : unavailable(body)
  })

const held = ({ dry_run }: Partial<Pick<Settings, "dry_run">>) =>
  dry_run === true ? "a dry run" : "the hold file is there"

/** A leader's name holds that of its host, so that it is not told here; `STANDBY` answers tell it. */
const standing = (role: Role) => {
  switch (role._tag) {
    case "Leading":
      return { role: "leader", term: String(role.term), leader: "this process" }
    case "Standby":
      return { role: "standby", term: "", leader: "another process" }
    case "Unreachable":
      return { role: "unknown", term: "", leader: "unknown" }
  }
}

const unavailable = (body: unknown): Answer => ({ status: 503, body, headers: { "retry-after": "5" } })

const UNREAD_YET = "not read yet"

const databaseHealth = Effect.flatMap(Store, (store) => Effect.all([store.describe, store.maintenance])).pipe(
  Effect.timeout(LIMIT_MS),
  Effect.map(([{ engine, durable, writable, weak, schema_version, undecodable }, maintenance]) => {
    const rows = undecodable.length === 0 ? "" : `, ${undecodable.length} rows do not decode`
    const taken = writable ? "" : ", read-only: writes are refused"
    const detail = `${engine}, ${durable ? "durable" : "not durable"}, schema ${schema_version}${rows}${taken}`
    const health = durable && writable && rows === "" ? "healthy" : "degraded"
    return { ok: true, writable, health, detail, weak: weak.join("; "), maintenance: maintenance !== null }
  }),
  Effect.tapError((error) => Effect.logDebug("the database is not healthy", error.message)),
  Effect.orElseSucceed(() => ({
    ok: false,
    writable: false,
    health: "unavailable",
    detail: "unavailable",
    weak: "",
    maintenance: false
  }))
)

const catalogueHealth = Effect.flatMap(Catalogue, ({ ready }) => ready).pipe(
  Effect.timeout(LIMIT_MS),
  Effect.as({ ok: true, detail: "" }),
  Effect.tapError((error) => Effect.logDebug("CloudStack's offerings and zones cannot be read", error.message)),
  Effect.catchAll((error) => {
    const why = error._tag === "CloudStackUnavailable" ? error.kind : "timeout"
    return Effect.succeed({ ok: false, detail: `offerings and zones cannot be read (${why})` })
  })
)

/** Which row it is, and what is wrong with it, is the log's to tell, and doctor's. */
const settingsHealth = Effect.flatMap(CloudStackRead, ({ place }) => place).pipe(
  Effect.map((place) => {
    if (place === null) return "the row of ossea_configs cannot be read yet, or not be used"
    return place.problem === null ? "" : "the row of ossea_configs cannot be read or used: what was known last is kept"
  })
)

const sourceHealth = (source: Source<unknown>): string => {
  switch (source._tag) {
    case "Known":
      return source.complete ? "healthy" : "incomplete: something may be missing"
    case "Unread":
      return `unread (${source.code})`
  }
}

/** No server is wrong only where there is something to serve: nbd-server refuses to start with no export (N16). */
const nbdHealth = (source: Inventory["nbd"]): string => {
  if (source._tag === "Unread") return `unread (${source.code})`
  const { server, sections, config_problem } = source.value
  if (config_problem !== null) return "the configuration cannot be used"
  return server.state === "running" || (server.state === "absent" && sections.length === 0) ? "healthy" : server.state
}

/** 200 while this process answers and a pass begins in time (L5); before the first one, since the process began. */
export const livez = (settings: Pick<Settings, "resync_idle_ms">) =>
  Effect.fnUntraced(function* () {
    return yield* probe(yield* Heartbeat.beats(settings))
  })

/** 200 when the database answers and the world was looked at once: what is answered then is true. */
export const readyz = Effect.fnUntraced(function* () {
  const { inventory } = yield* Effect.flatMap(Reconciler, ({ view }) => view)
  const { ok } = yield* databaseHealth
  return yield* probe(ok && inventory !== null)
})

const probe = (ok: boolean) =>
  Effect.map(Clock.currentTimeMillis, (now): Answer => {
    const body: Api.Probe = { status: ok ? "ok" : "unavailable", timestamp: rfc3339(now) }
    return ok ? { status: 200, body } : unavailable(body)
  })
