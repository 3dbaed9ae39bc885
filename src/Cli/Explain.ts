import { Effect, Either } from "effect"
import type * as Api from "../../schema/Api.ts"
import type { Plan, PlanItem, Reason } from "../../schema/Action.ts"
import type { Invocation } from "./Arguments.ts"
import * as Daemon from "./Daemon.ts"
import * as Handle from "./Handle.ts"
import { clean, show, type Paint } from "./Output.ts"
import * as VolumeText from "./VolumeText.ts"

/** Looking finds nothing to do, whatever it sees: the exit code speaks of the looking. */
export const explain = Effect.fn("Explain.explain")(function* (invocation: Invocation) {
  const { client } = yield* Daemon.Daemon
  const volume = yield* Handle.resolveOne(invocation.positionals[0] ?? "")
  const [{ plan }, held] = yield* Effect.all([client.plan, holders(volume)], { concurrency: 2 })
  const item = plan.items.find((candidate) => candidate.uid === volume.uid) ?? null
  const { found, problem } = held
  const connections = found?.connections ?? []
  const command = nextCommand(volume, item, plan, connections.length)
  yield* show({ volume, connections, plan: item, command }, (paint) => {
    const facts = [...connections.map(VolumeText.connection), ...(problem === null ? [] : [problem])]
    return VolumeText.explanation(
      { volume, found, holders: facts, chain: item === null ? "" : chain(item, paint), command },
      paint
    )
  })
  return "done" as const
})

/** Who has the volume's export open. What cannot be told is said: nobody is not the same as not known. */
const holders = Effect.fn("Explain.holders")(function* (volume: Api.Volume) {
  const { client } = yield* Daemon.Daemon
  if (volume.status.volume_id === null) return { found: null, problem: null }
  const answer = yield* Effect.either(client.export(volume.status.volume_id))
  if (Either.isRight(answer)) return { found: answer.right, problem: null }
  const error = answer.left
  const none = error._tag === "ApiError" && error.status === 404
  return { found: null, problem: none ? null : `not known: ${error.message}` }
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
export const nextCommand = (
  volume: Api.Volume,
  item: PlanItem | null,
  plan: Pick<Plan, "digest" | "withheld">,
  clients = 0
): string => {
  const { name } = volume
  const reason = item?.blocked?.reason ?? null
  if (reason === "HeldForApproval") {
    const digest = plan.withheld.find((one) => one.uid === volume.uid)?.digest ?? plan.digest
    if (digest !== null) return `volumed approve ${digest}`
  }
  // What stops everything stops this too, whatever it waits for by itself.
  if (reason === "Maintenance") return "volumed maintenance"
  // Who holds it without a connection is no client of ours to end.
  if (reason === "InUse" && clients > 0) return `volumed retry ${name} --end-clients`
  if (volume.deletion !== null) return `volumed undelete ${name}`
  if (reason === "Paused" || isPaused(volume)) return `volumed resume ${name}`
  const operation = volume.status.last_operation_id
  const settled = VolumeText.isReady(volume) || operation === null
  return (
    (reason === null ? null : remedy(reason, name)) ??
    (settled ? `volumed get ${name} -o yaml` : `volumed ops ${operation}`)
  )
}

/** Also while there is nothing to do, so that nobody forgets it; a pause that is over is none. */
const isPaused = ({ status }: Api.Volume): boolean =>
  status.conditions.some((condition) => condition.type === "Paused" && condition.status === "True")

/** The command that ends this reason or shows what does; null where the operation itself says most. */
const remedy = (reason: Reason, name: string): string | null => {
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
      return "volumed apply -f FILE"
    case "DriftHeld":
    case "LateEffect":
      return `volumed accept ${name}`
    case "BackingOff":
      return `volumed retry ${name}`
    case "Contended":
      return `volumed log ${name} --since 1h`
    case "InUse":
    case "Draining":
      return `volumed wait ${name}`
    case "WrongDevice":
      return "volumed devices"
    default:
      return null
  }
}
