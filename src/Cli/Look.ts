import { Effect } from "effect"
import type * as Api from "../../schema/Api.ts"
import type { Invocation } from "./Arguments.ts"
import * as Daemon from "./Daemon.ts"
import type * as Exit from "./Exit.ts"
import * as Handle from "./Handle.ts"
import { clean, Output, show, size, table, type Paint } from "./Output.ts"
import * as VolumeText from "./VolumeText.ts"

export const get = Effect.fn("Look.get")(function* (invocation: Invocation) {
  const handle = invocation.positionals[0]
  const volumes = handle === undefined ? yield* Daemon.volumes() : yield* Handle.resolve(handle)
  const single = handle !== undefined && volumes.length === 1 ? volumes[0] : undefined
  if (volumes.length === 0 && invocation.output === "table") {
    const output = yield* Output
    yield* output.note("Nothing is declared. Declare volumes with: volumed apply -f FILE\n")
    return "done" as const
  }
  yield* show(single ?? { items: volumes }, (paint) => VolumeText.list(volumes, paint))
  return "done" as const
})

export const drift = Effect.fn("Look.drift")(function* () {
  const { client } = yield* Daemon.Daemon
  const answer = yield* client.drift
  yield* show(answer, (paint) => driftText(answer, paint))
  return driftOutcome(answer)
})

/** A source that could not be read hides drift: then "none" would be a lie. */
export const driftOutcome = (answer: Api.Drift): Exit.Outcome => {
  const sources = [answer.sources.cloudstack, answer.sources.guest, answer.sources.nbd]
  const held = answer.items.some(({ blocked }) => blocked !== null && blocked.category !== "progress")
  if (held || sources.some((source) => source.state !== "known")) return "held"
  return answer.items.length > 0 ? "drift" : "done"
}

export const driftText = (answer: Api.Drift, paint: Paint): string => {
  const { cloudstack, guest, nbd } = answer.sources
  const unread = Object.entries({ CloudStack: cloudstack, guest, NBD: nbd })
    .filter(([, source]) => source.state !== "known")
    .map(([name, source]) =>
      paint.bad(`${name} is ${source.state}${source.message === null ? "" : `: ${clean(source.message)}`}\n`)
    )
  if (answer.items.length === 0)
    return unread.join("") + (unread.length === 0 ? "No drift.\n" : "No drift in what could be read.\n")
  const items = answer.items.map((item) => driftItem(item, paint))
  const count = `${answer.items.length} volume${answer.items.length === 1 ? "" : "s"} drifted.\n`
  return `${unread.join("")}${items.join("")}\n${count}`
}

const driftItem = (item: Api.DriftItem, paint: Paint): string => {
  const facts = [
    item.first_seen === null ? "" : `since ${item.first_seen}`,
    item.by === null ? "" : `by ${item.by}`,
    item.next_actions.length === 0 ? "" : `repair: ${item.next_actions.join(", ").toLowerCase()}`
  ].filter((fact) => fact !== "")
  const blocked =
    item.blocked === null
      ? ""
      : `    ${paint.bad(`${item.blocked.reason}: ${clean(item.blocked.message)}`)}\n` +
        (item.blocked.suggestion === "" ? "" : `      ${paint.faint(clean(item.blocked.suggestion))}\n`)
  return (
    `${paint.warn("!")} ${paint.strong(clean(item.name))}  ${item.aspect ?? ""}: ${clean(item.message)}\n` +
    (facts.length === 0 ? "" : `    ${clean(facts.join("; "))}\n`) +
    blocked
  )
}

export const exports = Effect.fn("Look.exports")(function* () {
  const { client } = yield* Daemon.Daemon
  const output = yield* Output
  const answer = yield* client.exports
  const names = output.form === "table" && answer.count > 0 ? yield* declaredNames : new Map<string, string>()
  yield* show(answer, (paint) => exportsText(answer, names, paint))
  return "done" as const
})

const exportsText = (answer: Api.Exports, names: ReadonlyMap<string, string>, paint: Paint): string => {
  const { engine, version, host, port, state } = answer.server
  const server = [engine, version ?? "", `on ${host}:${port}`].filter((part) => part !== "").join(" ")
  const running = state === "running" ? paint.good(state) : paint.bad(state)
  const rows = answer.exports.map((one) => [
    one.name,
    names.get(one.volume_id) ?? (one.volume_id || "-"),
    one.status,
    one.served ? "yes" : "no",
    one.size === 0 ? "-" : size(one.size),
    `${one.read_only ? "ro" : "rw"}${one.port === port ? "" : ` on port ${one.port}`}`,
    one.kernel_path || "-",
    String(one.connections.length),
    one.verified_at ?? "-"
  ])
  const headers = ["EXPORT", "VOLUME", "STATUS", "SERVED", "SIZE", "MODE", "DEVICE", "CLIENTS", "VERIFIED"]
  const list = table(headers, rows, (cell, column, row) => {
    const status = answer.exports[row]?.status
    if (column !== 2) return cell
    if (status === "active") return paint.good(cell)
    return status === "failed" ? paint.bad(cell) : paint.warn(cell)
  })
  const notes = answer.exports.flatMap((one) => [
    ...one.connections.map((client) => `${clean(one.name)} is held by ${clean(VolumeText.connection(client))}\n`),
    ...(one.problem === null ? [] : [paint.bad(`! ${clean(one.name)}: ${clean(one.problem)}`) + "\n"])
  ])
  const body = answer.count === 0 ? "Nothing is exported.\n" : list
  return `${clean(server)} is ${running}\n\n${body}${notes.length === 0 ? "" : `\n${notes.join("")}`}`
}

/** Declared names by volume id, for people; programs read the ids. */
export const declaredNames = Effect.map(
  Daemon.volumes(),
  (volumes) =>
    new Map<string, string>(
      volumes.flatMap(({ name, status }) => (status.volume_id === null ? [] : [[status.volume_id, name]]))
    )
)

export const offerings = Effect.fn("Look.offerings")(function* () {
  const { client } = yield* Daemon.Daemon
  const answer = yield* client.offerings
  yield* show(answer, () => offeringsText(answer))
  return "done" as const
})

const offeringsText = (answer: Api.OfferingList): string => {
  const mark = (id: string, chosen: string | null) => (id === chosen ? "default" : "-")
  const offered = table(
    ["DISK OFFERING", "NAME", "SIZE", "DEFAULT"],
    answer.items.map((one) => [
      one.id,
      one.name,
      one.customized ? "as declared" : `${one.size_gib}GiB`,
      mark(one.id, answer.default_disk_offering_id)
    ])
  )
  const zones = table(
    ["ZONE", "NAME", "DEFAULT"],
    answer.zones.map((zone) => [zone.id, zone.name, mark(zone.id, answer.default_zone_id)])
  )
  return `${offered}\n${zones}`
}
