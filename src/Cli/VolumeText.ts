import type { ExportAnswer, Volume } from "../../schema/Api.ts"
import type { Condition } from "../../schema/Condition.ts"
import { clean, size, table, type Paint } from "./Output.ts"
import type { Line } from "./Progress.ts"

export const readiness = (volume: Volume): Condition | null =>
  volume.status.conditions.find((condition) => condition.type === "Ready") ?? null

/** Ready, and said so of the declaration as it is now. */
export const isReady = (volume: Volume): boolean => {
  const ready = readiness(volume)
  return (
    ready !== null &&
    ready.status === "True" &&
    ready.observed_generation >= volume.generation &&
    volume.deletion === null &&
    volume.removed_at === null
  )
}

/** It waits for a person or another system, as last observed for the declaration as it is now. */
export const isBlocked = (volume: Volume): boolean => {
  const ready = readiness(volume)
  return (
    ready !== null &&
    ready.status !== "True" &&
    ready.observed_generation >= volume.generation &&
    ready.category !== null &&
    ready.category !== "progress"
  )
}

/** One word on where a volume stands. */
export const state = (volume: Volume): string => {
  if (volume.removed_at !== null) return "Removed"
  if (volume.deletion !== null) return "Removing"
  if (isReady(volume)) return "Ready"
  const ready = readiness(volume)
  return ready === null || ready.observed_generation < volume.generation ? "Accepted" : ready.reason
}

/** One line of live progress. Its key leaves out what changes without meaning anything, such as a time. */
export const progress = (volume: Volume): Line => {
  const next = volume.status.next_actions[0] ?? null
  const word = state(volume)
  if (isReady(volume))
    return { name: volume.name, state: "done", key: "done", text: ["Ready", ...where(volume)].join("  ") }
  if (volume.removed_at !== null) return { name: volume.name, state: "done", key: "removed", text: "Removed" }
  return {
    name: volume.name,
    state: isBlocked(volume) ? "blocked" : "moving",
    key: `${word} ${next}`,
    text: underWay(volume, next, word)
  }
}

/** What passes by itself needs no word to look up, and its operation's id is in `volumed ops`. */
const underWay = (volume: Volume, next: string | null, word: string): string => {
  const message = (readiness(volume)?.message ?? "").replace(/\bop-[0-9a-f-]{36}(?:, )?/u, "")
  const action = next === null || message.startsWith(next) ? "" : next
  return [action, isBlocked(volume) ? word : "", message].filter((part) => part !== "").join("  ") || word
}

const where = (volume: Volume): ReadonlyArray<string> => {
  const { attached_to, kernel_path, export: served } = volume.status
  const place = kernel_path ?? (attached_to === null ? "detached" : `on VM ${attached_to}`)
  return [place, ...(served === null ? [] : [uri(served)])]
}

/** What an NBD client opens. A simulated export must never look like one that can be opened. */
export const uri = (served: NonNullable<Volume["status"]["export"]>): string =>
  served.simulated ? `simulated:${served.name}` : `nbd://${served.host}:${served.port}/${served.name}`

const headers = ["NAME", "STATE", "SIZE", "ATTACHED TO", "DEVICE", "EXPORT", "NEXT"]

export const list = (volumes: ReadonlyArray<Volume>, paint: Paint): string =>
  table(
    headers,
    volumes.map((volume) => {
      const bytes = volume.status.size ?? volume.spec.size
      return [
        volume.name,
        state(volume),
        bytes === null ? "-" : size(bytes),
        placeOf(volume),
        volume.status.kernel_path ?? "-",
        volume.status.export === null ? "-" : uri(volume.status.export),
        volume.status.next_actions.join(", ") || "-"
      ]
    }),
    (cell, column, row) => {
      const volume = volumes[row]
      if (column !== 1 || volume === undefined) return cell
      if (isReady(volume)) return paint.good(cell)
      return isBlocked(volume) ? paint.bad(cell) : paint.warn(cell)
    }
  )

const placeOf = (volume: Volume): string => {
  const { attached_to, kernel_path } = volume.status
  if (attached_to === null) return "-"
  return kernel_path === null ? attached_to : "appliance"
}

interface Explained {
  readonly volume: Volume
  /** Its export as it is now; null where there is none or it is not known. */
  readonly found: ExportAnswer | null
  /** Who has its export open, one line each. */
  readonly holders: ReadonlyArray<string>
  readonly chain: string
  readonly command: string
}

/** Everything that is known about one volume, what it waits for, and last of all the command to type. */
export const explanation = ({ volume, found, holders, chain, command }: Explained, paint: Paint): string => {
  const suggestion = clean(readiness(volume)?.suggestion ?? "")
  const head = `${volume.name}: ${state(volume)}`
  const shade = isReady(volume) ? paint.good : isBlocked(volume) ? paint.bad : paint.warn
  const facts: ReadonlyArray<readonly [string, string]> = [
    ["wanted", wanted(volume)],
    ["volume", volumeFact(volume)],
    [
      "attached",
      volume.status.attached_to === null
        ? "to no VM that we know of"
        : `to ${placeOf(volume)} (${volume.status.attached_to})`
    ],
    [
      "device",
      volume.status.by_id_path === null
        ? "none here"
        : `${volume.status.kernel_path ?? "?"} = ${volume.status.by_id_path}`
    ],
    ["export", exportFact(volume, found)],
    ...holders.map((holder) => ["held by", holder] as const),
    ...(volume.spec.paused === null ? [] : [["paused", paused(volume.spec.paused)] as const]),
    ...(volume.deletion === null ? [] : [["removal", removal(volume.deletion)] as const]),
    ...(volume.status.retry_at === null ? [] : [["looked at again", volume.status.retry_at] as const]),
    ...(volume.status.last_operation_id === null ? [] : [["last operation", volume.status.last_operation_id] as const])
  ]
  return [
    `${shade(clean(head))}\n`,
    ...facts.map(([label, fact]) => `  ${label.padEnd(16)}${clean(fact)}\n`),
    "\n",
    table(
      ["CONDITION", "STATUS", "REASON", "SINCE", "MESSAGE"],
      volume.status.conditions.map((c) => [c.type, c.status, c.reason, c.last_transition_time, c.message])
    ),
    chain === "" ? "" : `\n${chain}`,
    suggestion === "" || chain.includes(suggestion) ? "" : `\n${suggestion}\n`,
    `\nType: ${paint.strong(command)}\n`
  ].join("")
}

/** What its declaration asks for, in words. */
export const wanted = (volume: Volume): string => {
  const { spec } = volume
  const place =
    spec.attached_to === null
      ? "attached where it is (not ours to decide)"
      : `attached to ${spec.attached_to === "none" ? "no VM" : spec.attached_to}`
  const exported =
    spec.export_wanted === null
      ? "export not ours to decide"
      : spec.export_wanted
        ? `exported${spec.read_only ? " read-only" : ""}`
        : "not exported"
  return [spec.size === null ? "any size" : size(spec.size), place, exported, `generation ${volume.generation}`].join(
    ", "
  )
}

const volumeFact = (volume: Volume): string => {
  const { volume_id, volume_name, volume_state, size: bytes } = volume.status
  if (volume_id === null) return volume.spec.volume_id === null ? "none yet" : `${volume.spec.volume_id} (declared)`
  return [volume_id, volume_name ?? "", volume_state ?? "", bytes === null ? "" : size(bytes)]
    .filter(Boolean)
    .join(", ")
}

/** Clients come and go between passes, and are counted as they are now where that is known. */
const exportFact = (volume: Volume, found: ExportAnswer | null): string => {
  const served = volume.status.export
  if (served === null) return "none"
  if (found?.status === "fenced" && found.problem !== null) return `${uri(served)}, ${found.problem}`
  const verified = served.verified_at === null ? "not verified yet" : `verified ${served.verified_at}`
  const connections = found?.connections.length ?? served.connections
  return `${uri(served)}, ${verified}, ${connections} connection${connections === 1 ? "" : "s"}`
}

/** One client of an export; the peer is null where /proc does not tell. */
export const connection = ({ peer, pid, since }: ExportAnswer["connections"][number]): string =>
  `${peer ?? "a client whose address is not known"} (process ${pid})${since === null ? "" : ` since ${since}`}`

const paused = ({ reason, by, until }: NonNullable<Volume["spec"]["paused"]>): string =>
  `by ${by}${until === undefined ? "" : ` until ${until}`}: ${reason}`

const removal = (deletion: NonNullable<Volume["deletion"]>): string =>
  `${deletion.policy}, asked for by ${deletion.by} at ${deletion.requested_at}, not before ${deletion.execute_after}` +
  (deletion.remaining.length === 0 ? "" : `; to do: ${deletion.remaining.join(", ")}`)
