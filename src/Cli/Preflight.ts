import { Effect } from "effect"
import type { Blocked } from "../../schema/Action.ts"
import type * as Api from "../../schema/Api.ts"
import type { Invocation } from "./Arguments.ts"
import * as Daemon from "./Daemon.ts"
import * as Finding from "./Finding.ts"
import { clean, show } from "./Output.ts"

type What = "restart" | "upgrade" | "reboot"

/** What a page of operations has at most. */
const PAGE = 1000

const { fail, limited, ok, SHOWN, warn } = Finding

/**
 * May it be done now? Nothing of this would be lost: every line is something that is better waited for, with what to
 * type for it. Asks the daemon and changes nothing.
 */
export const preflight = Effect.fn("Preflight.preflight")(function* (invocation: Invocation) {
  const { client } = yield* Daemon.Daemon
  const what = invocation.positionals[0] as What
  const health = yield* client.health
  const checks = [
    ...leadership(health),
    ...database(health, what),
    ...(what === "upgrade" ? [yield* schema(health)] : []),
    // What is under way stands in the database; and a standby may come and go, for it is the leader's.
    ...(health.database_health === "unavailable" || isBystander(health, what) ? [] : yield* underWay(what))
  ]
  const outcome = Finding.outcome(checks)
  yield* show({ what, go: outcome === "done", checks }, (paint) =>
    Finding.text(
      checks,
      paint,
      `Not now: wait for what failed, or type what stands beside it, before you ${verb[what]}.`
    )
  )
  return outcome
})

const underWay = Effect.fnUntraced(function* (what: What) {
  const { actor, client } = yield* Daemon.Daemon
  const seen = yield* Effect.all(
    {
      pending: client.operations({ status: "pending", limit: PAGE }),
      executing: client.operations({ status: "executing", limit: PAGE }),
      volumes: Daemon.volumes(),
      maintenance: client.maintenance,
      plan: client.plan,
      exports: client.exports
    },
    { concurrency: 4 }
  )
  return [
    ...operations([...seen.executing.items, ...seen.pending.items]),
    ...deletions(seen.volumes),
    ...maintenance(seen.maintenance, actor),
    ...notices(seen.plan.plan.notices),
    ...(what === "reboot" ? unseen(seen.exports, seen.plan.sources) : []),
    ...clients(seen.exports.exports, seen.volumes, what),
    ...(what === "reboot" ? letters(seen.exports.exports) : [])
  ]
})

const isBystander = ({ details }: Api.Health, what: What): boolean => details["role"] === "standby" && what !== "reboot"

const leadership = ({ details }: Api.Health): ReadonlyArray<Finding.Finding> => {
  switch (details["role"]) {
    case "leader":
      return [ok("role", `it leads, in term ${clean(details["term"] ?? "?")}`)]
    case "standby":
      return [ok("role", "a standby: another process leads, and goes on doing so")]
    default:
      return [fail("role", "whether it leads is not known: its database does not say", "volumed doctor")]
  }
}

const verb: Readonly<Record<What, string>> = {
  restart: "restart the daemon",
  upgrade: "upgrade the daemon",
  reboot: "reboot the appliance"
}

const database = ({ database_health, details }: Api.Health, what: What): ReadonlyArray<Finding.Finding> => {
  const detail = clean(details["database"] ?? database_health)
  if (database_health === "healthy") return [ok("database", detail)]
  if (database_health === "unavailable") return [fail("database", "it does not answer the daemon", "volumed doctor")]
  // A daemon that ends takes nothing with it; a machine that does takes what was not written down.
  const weak = what === "reboot" && (details["durability"] ?? "") !== ""
  const found = clean(details["durability"] || detail)
  return [(weak ? fail : warn)("database", found, "volumed doctor names the settings to change")]
}

/** This program is the new one: what it would do to the schema. */
const schema = Effect.fnUntraced(function* ({ details }: Api.Health) {
  const { SCHEMA_VERSION } = yield* Effect.promise(() => import("../Store/Migrate.ts"))
  const running = Number(/\bschema (\d+)/u.exec(details["database"] ?? "")?.[1] ?? Number.NaN)
  if (Number.isNaN(running))
    return warn("schema", "the daemon does not say which one it has", "volumed migrate --check")
  if (running > SCHEMA_VERSION) {
    const found = `the database has schema ${running}, this program knows ${SCHEMA_VERSION}: it is the older one`
    return fail("schema", found, "volumed --version, and install the version that you mean to upgrade to")
  }
  const steps = SCHEMA_VERSION - running
  const more = steps === 0 ? "nothing to bring up to date" : `${steps} steps are done when it starts`
  return ok("schema", `${running}, this program knows ${SCHEMA_VERSION}: ${more}`)
})

/** What an older daemon left unfinished in the same table nobody finishes any more. */
const operations = (unresolved: ReadonlyArray<Api.OperationAnswer>): ReadonlyArray<Finding.Finding> => {
  const ours = unresolved.filter(({ uid }) => uid !== NOBODY)
  const left = unresolved.length - ours.length
  const found = `${left} of an older daemon were never finished`
  return [
    ...limited("operations", ours, "none is under way", ({ created_at, id, name, phase, type, volume_id }) =>
      fail("operations", `${type} of ${clean(name || volume_id)} is ${phase} since ${created_at}`, `volumed wait ${id}`)
    ),
    ...(left === 0 ? [] : [warn("operations", found, "volumed import --dry-run names them")])
  ]
}

/** Whose operations are nobody's declaration's. */
const NOBODY = "00000000-0000-0000-0000-000000000000"

const deletions = (volumes: ReadonlyArray<Api.Volume>): ReadonlyArray<Finding.Finding> =>
  limited(
    "deletions",
    volumes.filter(({ deletion }) => deletion !== null),
    "none is declared",
    (volume) => {
      const name = clean(volume.name)
      const policy = volume.deletion?.policy ?? "forget"
      const found = `${name} is being removed (${policy}, not before ${volume.deletion?.execute_after ?? "now"})`
      return fail("deletions", found, `volumed wait ${name} --for Removed:True, or: volumed undelete ${name}`)
    }
  )

/** Whoever asks may have begun it for this very purpose. */
const maintenance = (answer: Api.MaintenanceAnswer, actor: string): ReadonlyArray<Finding.Finding> => {
  const now = answer.maintenance
  const withheld = answer.withheld.map((one) =>
    fail("withheld", `${one.action} ${clean(one.name)} waits for approval`, `volumed approve ${clean(one.digest)}`)
  )
  if (now === null) return [ok("maintenance", "none"), ...withheld.slice(0, SHOWN)]
  const found = `since ${now.since}, by ${clean(now.by)}: ${clean(now.reason)}`
  const finding =
    now.by === actor
      ? ok("maintenance", `${found}; it goes on afterwards`)
      : fail("maintenance", found, `ask ${clean(now.by)}; it ends with: volumed maintenance off`)
  return [finding, ...withheld.slice(0, SHOWN)]
}

/** The hold file, suspicion, sources that are unread. A maintenance has its own line. */
const notices = (all: ReadonlyArray<Blocked>): ReadonlyArray<Finding.Finding> =>
  limited("daemon", all.filter(isGrave), "it observes everything and may act", ({ message, reason, suggestion }) =>
    fail("daemon", `${reason}: ${clean(message)}`, clean(suggestion))
  )

const isGrave = ({ category, reason }: Blocked): boolean =>
  reason !== "Maintenance" && (category === "blocked" || category === "error")

/** Right after its start the daemon has not looked yet, and what it could not look at is not empty. */
const unseen = ({ server }: Api.Exports, { nbd }: Api.Sources): ReadonlyArray<Finding.Finding> => {
  if (server.state !== "unknown" && nbd.state === "known") return []
  const why = clean(nbd.message ?? "the NBD server has not been read yet")
  return [fail("NBD clients", `who is connected is not known: ${why}`, "volumed doctor, then ask again")]
}

/** A client outlives the daemon, for the NBD server is a process of its own; it does not outlive the appliance. */
const clients = (
  exports: ReadonlyArray<Api.ExportAnswer>,
  volumes: ReadonlyArray<Api.Volume>,
  what: What
): ReadonlyArray<Finding.Finding> => {
  const read = exports.filter(({ connections }) => connections.length > 0)
  const count = read.reduce((sum, { connections }) => sum + connections.length, 0)
  if (what !== "reboot" && count > 0) return [ok("NBD clients", `${count} stay connected`)]
  return limited("NBD clients", read, "none is connected", ({ connections, name, volume_id }) => {
    const [first] = connections
    const who = `${first?.peer ?? "a process"} since ${first?.since ?? "some time"}`
    const more = connections.length > 1 ? ` and ${connections.length - 1} more` : ""
    const owner = volumes.find(({ status }) => status.volume_id === volume_id)?.name
    const end =
      owner === undefined ? "end the transfer" : `wait for the transfer, or: volumed retry ${owner} --end-clients`
    return fail("NBD clients", `${clean(name)} is open to ${clean(who)}${more}`, end)
  })
}

const letters = (exports: ReadonlyArray<Api.ExportAnswer>): ReadonlyArray<Finding.Finding> =>
  limited(
    "NBD paths",
    exports.filter(({ device_path }) => /\/(?:[shv]d|xvd)[a-z]+$/u.test(device_path)),
    "none is a letter that may be another disk's afterwards",
    ({ device_path, name }) =>
      fail(
        "NBD paths",
        `${clean(name)} names ${clean(device_path)}, which may be another disk afterwards`,
        "volumed import --dry-run"
      )
  )
