import type { Action, Blocked, Guard, Plan, PlanItem } from "../schema/Action.ts"
import type { VmId } from "../schema/Ids.ts"
import { unborn } from "./Merge.ts"

/** Where a plan was made: the first lines of every plan, so that nobody approves one for the wrong place. */
export interface Context {
  readonly server: string
  readonly cloud: string
  readonly zone: string | null
  readonly appliance_vm_id: VmId
  readonly sandbox: boolean
}

export type Tone = "add" | "change" | "remove" | "keep" | "blocked" | "dim" | "name"
/** Colours a piece of text; leave it out for plain text. */
export type Paint = (tone: Tone, text: string) => string

const plain: Paint = (_, text) => text

export interface Counts {
  readonly create: number
  readonly adopt: number
  readonly attach: number
  readonly export: number
  readonly move: number
  readonly detach: number
  readonly unexport: number
  readonly migrate_path: number
  readonly tag: number
  readonly delete: number
  readonly kept: number
  readonly blocked: number
  readonly unchanged: number
}

/** The plan as a person reads it: what changes or is blocked and why, nothing of what is as it should be. */
export const text = (context: Context, plan: Plan, paint: Paint = plain): string => {
  const shown = plan.items.filter(isShown)
  const blocks = shown.map((item) => blockOf(context, item, paint))
  return sections([
    header(context),
    ...plan.notices.map((n) => notice(n, paint)),
    ...blocks,
    summary(plan),
    ...heldLine(plan)
  ])
}

/** The same as data. */
export const json = (context: Context, plan: Plan) => ({ ...context, ...plan, summary: count(plan) })

/** Every step of every chain counts, for that is what a person agrees to; a detach with its attach is one move. */
export const count = (plan: Plan): Counts => {
  const counts = {
    create: 0,
    adopt: 0,
    attach: 0,
    export: 0,
    move: 0,
    detach: 0,
    unexport: 0,
    migrate_path: 0,
    tag: 0,
    delete: 0,
    kept: 0,
    blocked: 0,
    unchanged: 0
  }
  for (const item of plan.items) {
    if (item.blocked !== null) counts.blocked += 1
    else if (item.removal_done) counts.kept += 1
    else if (item.chain.length === 0) counts.unchanged += 1
    for (const line of linesOf(item.chain)) counts[line.kind] += 1
  }
  return counts
}

const isShown = (item: PlanItem) =>
  item.chain.length > 0 || item.blocked !== null || item.guard !== null || item.removal_done

const sections = (parts: ReadonlyArray<string>) => `${parts.join("\n\n")}\n`

const header = ({ appliance_vm_id, cloud, sandbox, server, zone }: Context): string =>
  [
    `Server:    ${server}`,
    `Cloud:     ${cloud}${sandbox ? " (sandbox: simulated, nothing here is real)" : ""}`,
    `Zone:      ${zone ?? "as declared"}`,
    `Appliance: ${appliance_vm_id}`
  ].join("\n")

const notice = (blocked: Blocked, paint: Paint) =>
  `${paint("blocked", `! ${blocked.reason}`)}: ${blocked.message}\n    ${paint("dim", blocked.suggestion)}`

const blockOf = (context: Context, item: PlanItem, paint: Paint): string => {
  const id = item.volume_id === null ? "" : ` (volume ${item.volume_id})`
  const lines = [`${paint("name", item.name)}${id}${item.drift ? " drifted" : ""}`]
  if (item.removal_done)
    lines.push(paint("keep", "  = kept         nothing is left to change: the declaration is closed"))
  if (item.guard !== null) lines.push(guardText(item.guard, paint))
  for (const line of linesOf(item.chain)) lines.push(lineText(context, line, paint))
  if (item.blocked !== null) {
    lines.push(`  ${paint("blocked", `! ${item.blocked.reason}`)}: ${item.blocked.message}`)
    lines.push(`      ${paint("dim", item.blocked.suggestion)}`)
  }
  return lines.join("\n")
}

const guards: Readonly<Record<Guard["_tag"], readonly [string, Tone, string, string]>> = {
  Fence: ["*", "change", "fence", "new clients are denied"],
  Release: ["*", "change", "release", "new clients are let in again"],
  EndClients: ["-", "remove", "end clients", "the connections of its clients are ended"]
}

/** What is done to its clients is no step to the goal, and is not counted as one. */
const guardText = (guard: Guard, paint: Paint): string => {
  const [sign, tone, verb, effect] = guards[guard._tag]
  return `${paint(tone, `  ${sign} ${verb.padEnd(12)}`)} ${guard.export_name}: ${effect}\n      ${paint("dim", `because ${guard.reason}`)}`
}

type Kind = Exclude<keyof Counts, "kept" | "blocked" | "unchanged">

interface Line {
  readonly kind: Kind
  readonly action: Action
  /** Where a move goes. */
  readonly attach: Extract<Action, { _tag: "Attach" }> | null
}

const kinds: Readonly<Record<Action["_tag"], Kind>> = {
  Create: "create",
  Adopt: "adopt",
  Attach: "attach",
  Export: "export",
  Unexport: "unexport",
  MigratePath: "migrate_path",
  Detach: "detach",
  Tag: "tag",
  Delete: "delete"
}

const linesOf = (chain: ReadonlyArray<Action>): ReadonlyArray<Line> => {
  const lines: Array<Line> = []
  for (const action of chain) {
    const last = lines.at(-1)
    if (action._tag === "Attach" && last?.kind === "detach")
      lines[lines.length - 1] = { ...last, kind: "move", attach: action }
    else lines.push({ kind: kinds[action._tag], action, attach: null })
  }
  return lines
}

const signs: Readonly<Record<Kind, readonly [string, Tone]>> = {
  create: ["+", "add"],
  adopt: ["+", "add"],
  attach: ["+", "add"],
  export: ["+", "add"],
  move: ["~", "change"],
  migrate_path: ["~", "change"],
  tag: ["~", "change"],
  detach: ["-", "remove"],
  unexport: ["-", "remove"],
  delete: ["-", "remove"]
}

const lineText = (context: Context, line: Line, paint: Paint): string => {
  const [sign, tone] = signs[line.kind]
  const verb = line.kind.replace("_", " ").padEnd(12)
  const { action } = line
  const mark = action.cause === "declaration" ? "" : ` [${action.cause}]`
  return `${paint(tone, `  ${sign} ${verb}`)} ${whatText(context, line)}\n      ${paint("dim", `because ${action.reason}${mark}`)}`
}

const vmText = (context: Context, id: VmId) => (id === context.appliance_vm_id ? "the appliance" : `VM ${id}`)

const volumeText = (id: string) => (id === unborn ? "known after create" : id)

const whatText = (context: Context, { action, attach }: Line): string => {
  switch (action._tag) {
    case "Create":
      return `${action.cloudstack_name}, ${action.size_gib} GiB of offering ${action.disk_offering_id} in zone ${action.zone_id}`
    case "Adopt":
      return `volume ${action.volume_id}`
    case "Attach":
      return `to ${vmText(context, action.vm_id)}${action.as === "root" ? " as root volume" : ""}`
    case "Detach":
      return attach === null
        ? `from ${vmText(context, action.vm_id)}`
        : `from ${vmText(context, action.vm_id)} to ${vmText(context, attach.vm_id)}${attach.as === "root" ? " as root volume" : ""}`
    case "Export":
      return exportText(action)
    case "MigratePath":
      return `${action.export_name}: ${action.from} becomes ${action.path}`
    case "Unexport":
      return action.export_name
    case "Tag":
      return Object.entries(action.set)
        .map(([key, value]) => `${key}=${value}`)
        .join(", ")
    case "Delete":
      return `volume ${volumeText(action.volume_id)} and its data`
  }
}

const exportText = (action: Extract<Action, { _tag: "Export" }>): string => {
  const how = action.read_only ? " read-only" : ""
  return action.volume_id === unborn
    ? `over NBD${how}, under a name known after create`
    : `as ${action.export_name}${how}, from ${action.path}`
}

const summary = (plan: Plan): string => {
  const counts = count(plan)
  const order: ReadonlyArray<Kind> = [
    "create",
    "adopt",
    "attach",
    "export",
    "move",
    "migrate_path",
    "detach",
    "unexport",
    "delete",
    "tag"
  ]
  const todo = order.filter((kind) => counts[kind] > 0).map((kind) => `${counts[kind]} to ${kind.replace("_", " ")}`)
  const rest = [
    ...(counts.kept > 0 ? [`${counts.kept} kept`] : []),
    ...(counts.blocked > 0 ? [`${counts.blocked} blocked`] : []),
    `${counts.unchanged} unchanged`
  ]
  return `Plan: ${todo.length === 0 ? "nothing to do" : todo.join(", ")}; ${rest.join("; ")}.`
}

const heldLine = (plan: Plan): ReadonlyArray<string> => {
  const digests = new Set([...(plan.held.length === 0 ? [] : [plan.digest]), ...plan.withheld.map((one) => one.digest)])
  return [...digests].flatMap((digest) => {
    const withheld = plan.withheld.filter((one) => one.digest === digest)
    const held = digest === plan.digest ? plan.held : []
    const what = [...held, ...withheld].map(
      ({ action, name, volume_id }) => `  ${action.replace("_", " ")} ${name} (volume ${volume_id})`
    )
    const why = withheld.length === 0 ? "Held for approval" : "Pending when the maintenance ended"
    return digest === null ? [] : [[`${why}; look at them, then type: volumed approve ${digest}`, ...what].join("\n")]
  })
}
