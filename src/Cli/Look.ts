import { Effect } from "effect"
import type * as Api from "../../schema/Api.ts"
import type { PlanItem } from "../../schema/Action.ts"
import type { Invocation } from "./Arguments.ts"
import * as Daemon from "./Daemon.ts"
import type * as Exit from "./Exit.ts"
import * as Handle from "./Handle.ts"
import { clean, Output, show, table, type Paint } from "./Output.ts"
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

/** Looking finds nothing to do, whatever it sees: the exit code speaks of the looking. */
export const explain = Effect.fn("Look.explain")(function* (invocation: Invocation) {
  const { client } = yield* Daemon.Daemon
  const volume = yield* Handle.resolveOne(invocation.positionals[0] ?? "")
  const { plan } = yield* client.plan
  const item = plan.items.find((candidate) => candidate.uid === volume.uid) ?? null
  const command = nextCommand(volume, item, plan.digest)
  yield* show({ volume, plan: item, command }, (paint) =>
    VolumeText.explanation(volume, item === null ? "" : chain(item, paint), command, paint)
  )
  return "done" as const
})

const chain = (item: PlanItem, paint: Paint): string => {
  const steps = item.chain.map(
    (action, index) => `  ${index + 1}. ${action._tag.toLowerCase().padEnd(12)}${clean(action.reason)}\n`
  )
  const blocked =
    item.blocked === null
      ? ""
      : `\n${paint.bad(`${item.blocked.reason}: ${clean(item.blocked.message)}`)}\n  ${clean(item.blocked.suggestion)}\n`
  return `${steps.length === 0 ? "" : `The way to the goal:\n${steps.join("")}`}${blocked}`
}

/** What a person can type now: never a guess that would change something nobody asked for. */
export const nextCommand = (volume: Api.Volume, item: PlanItem | null, digest: string | null): string => {
  const reason = item?.blocked?.reason ?? null
  if (reason === "HeldForApproval" && digest !== null) return `volumed approve ${digest}`
  if (volume.deletion !== null) return `volumed undelete ${volume.name}`
  switch (reason) {
    case "CloudStackUnread":
    case "GuestUnread":
    case "NbdUnread":
    case "NbdNotInstalled":
    case "NbdConfigBroken":
    case "NbdServerForeign":
    case "HoldFile":
      return "volumed doctor"
    case "SizeRequired":
    case "OfferingRequired":
    case "ZoneRequired":
    case "VolumeNotFound":
    case "VolumeUnknown":
    case "VolumeClaimed":
    case "ForeignAttachment":
    case "DriftHeld":
      return "volumed apply -f FILE"
    default:
      break
  }
  const operation = volume.status.last_operation_id
  if (VolumeText.isReady(volume) || operation === null) return `volumed get ${volume.name} -o yaml`
  return `volumed ops ${operation}`
}

export const drift = Effect.fn("Look.drift")(function* (_invocation: Invocation) {
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
    item.blocked === null ? "" : `    ${paint.bad(`${item.blocked.reason}: ${clean(item.blocked.message)}`)}\n`
  return (
    `${paint.warn("!")} ${paint.strong(clean(item.name))}  ${item.aspect ?? ""}: ${clean(item.message)}\n` +
    (facts.length === 0 ? "" : `    ${clean(facts.join("; "))}\n`) +
    blocked
  )
}

export const operations = Effect.fn("Look.operations")(function* (invocation: Invocation) {
  const { client } = yield* Daemon.Daemon
  const id = invocation.positionals[0]
  if (id !== undefined) {
    const operation = yield* client.operation(id)
    yield* show(operation, (paint) => operationText(operation, paint))
    return "done" as const
  }
  const { items, next } = yield* client.operations({ limit: OPERATIONS_SHOWN })
  const output = yield* Output
  if (items.length === 0 && output.form === "table") {
    yield* output.note("No operations yet.\n")
    return "done" as const
  }
  yield* show(items, (paint) => operationList(items, paint))
  if (next !== null) yield* output.note(`The newest ${items.length} are shown.\n`)
  return "done" as const
})

const OPERATIONS_SHOWN = 100

const operationList = (items: ReadonlyArray<Api.OperationAnswer>, paint: Paint): string =>
  table(
    ["ID", "TYPE", "NAME", "STATUS", "PHASE", "CAUSE", "CREATED", "ERROR"],
    items.map((o) => [o.id, o.type, o.name, o.status, o.phase, o.cause, o.created_at, o.error ?? ""]),
    (cell, column, row) => {
      const status = items[row]?.status
      if (column !== 3) return cell
      if (status === "failed") return paint.bad(cell)
      return status === "completed" ? paint.good(cell) : cell
    }
  )

const operationText = (operation: Api.OperationAnswer, paint: Paint): string => {
  const facts: ReadonlyArray<readonly [string, string | undefined]> = [
    ["declaration", `${operation.name} (generation ${operation.generation})`],
    ["volume", operation.volume_id],
    ["VM", operation.vm_id],
    ["status", `${operation.status} (${operation.phase})`],
    ["cause", `${operation.cause}, by ${operation.actor}`],
    ["reason", typeof operation.request["reason"] === "string" ? operation.request["reason"] : undefined],
    ["CloudStack job", operation.job_id],
    ["attempts", String(operation.attempts)],
    ["created", operation.created_at],
    ["updated", operation.updated_at],
    ["completed", operation.completed_at],
    ["part of", operation.parent_id],
    ["error", operation.error]
  ]
  const rows = facts.flatMap(([label, fact]) => (fact ? [`  ${label.padEnd(16)}${clean(fact)}\n`] : []))
  return `${paint.strong(`${operation.type} ${operation.id}`)}\n${rows.join("")}`
}
