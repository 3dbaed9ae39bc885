import type * as Import from "../../reconciler/Import.ts"
import { clean, type Paint } from "./Output.ts"

export interface Report extends Import.Report {
  /** What explicit settings will no longer admit, as sentences. */
  readonly narrowings: ReadonlyArray<string>
}

/** What was found, for people: what is declared, what is not and why, and how the tables were read. */
export const report = ({ kept, narrowings, notes, proven, unproven }: Report, paint: Paint): string => {
  const parts = [
    ...(narrowings.length === 0 ? [] : ["What settings that are set explicitly take away:\n"]),
    ...narrowings.map((sentence) => `${paint.warn(`  ${clean(sentence)}`)}\n`),
    heading(proven.length, "proven"),
    ...proven.map((one) => provenText(one, paint)),
    ...(kept.length === 0 ? [] : [heading(kept.length, "declared already, and kept as declared")]),
    ...kept.map(({ name, volume_id }) => `  = ${clean(name)}  ${volume_id}\n`),
    ...(unproven.length === 0 ? [] : [`Not proven, and left as they are:\n`]),
    ...doubts(unproven, paint),
    ...(notes.length === 0 ? [] : ["Notes:\n"]),
    ...notes.map((note) => paint.faint(`  ${clean(note)}`) + "\n")
  ]
  return `${parts.join("")}\n`
}

export const stored = (count: number): string =>
  `Declared: ${count} volumes. The daemon takes over from here; follow it with: volumed watch, or look with: volumed plan\n`

const heading = (count: number, what: string): string =>
  `${count} ${count === 1 ? "volume" : "volumes"} ${what}${count === 0 ? "." : ":"}\n`

const provenText = ({ by_id_path, declaration, export_name, export_path, found_in }: Import.Proven, paint: Paint) => {
  const where = declaration.attached_to === "none" ? "on no VM" : `on ${placeOf(declaration.attached_to)}`
  const access = declaration.read_only === true ? "read-only" : "writable"
  const moved = export_path !== null && by_id_path !== null && export_path !== by_id_path
  const path = moved ? `, ${export_path} becomes ${by_id_path}` : ""
  const served = export_name === null ? "" : `, exported as ${export_name} (${access})${path}`
  const line = paint.good(`  + ${clean(declaration.name)}`)
  return `${line}  ${declaration.volume_id}  ${clean(where + served)}\n${paint.faint(`      ${clean(found_in.join(", "))}`)}\n`
}

const placeOf = (vm: string): string => (vm === "appliance" ? "the appliance" : `VM ${vm}`)

/** Doubts of one thing stand together. */
const doubts = (unproven: ReadonlyArray<Import.Doubt>, paint: Paint): ReadonlyArray<string> => {
  let last = ""
  return unproven.map(({ advice, subject, volume_id, why }) => {
    const head = `${subject}${volume_id === null ? "" : ` (${volume_id})`}`
    const again = head === last
    last = head
    return `${again ? "" : `${paint.bad(`  ! ${clean(head)}`)}\n`}      ${clean(why)}\n        ${clean(advice)}\n`
  })
}
