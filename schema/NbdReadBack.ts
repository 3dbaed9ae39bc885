import * as KeyFile from "./KeyFile.ts"
import * as NbdConfig from "./NbdConfig.ts"
import * as NbdName from "./NbdName.ts"

/**
 * A text that was rendered is read back before anybody may write it, by another reader than the one it was rendered from,
 * and compared with what was meant: ours exactly, everybody else's byte for byte, nothing besides. What our sections must
 * say stands here a second time on purpose.
 */

/** Why this sealed text is not what was meant, or null. */
export const disagreement = (text: string, rendering: NbdConfig.Rendering): string | null => {
  const parsed = NbdConfig.parse(text)
  if (parsed._tag === "Malformed") return `line ${parsed.line}: ${parsed.problem}`
  const { document } = parsed
  return (
    bytesOfOthers(document, rendering) ??
    endOf(document, rendering) ??
    meaning(text, rendering) ??
    NbdConfig.refusal(document)
  )
}

const bytesOfOthers = (document: NbdConfig.Document, rendering: NbdConfig.Rendering): string | null => {
  const leaving = NbdConfig.leavingNames(rendering)
  const generic = NbdConfig.ownsGeneric(rendering.base)
  const { narrowed } = NbdConfig.judgeGeneric(rendering.base, rendering.listen)
  const foreign = (one: NbdConfig.Section) => !leaving(one.name) && !(one.name === "generic" && generic)
  const bodyOf = ({ body, name }: NbdConfig.Section) =>
    withoutEnd(name === "generic" && narrowed !== null ? NbdConfig.relistening(body, null) : body)
  const bodies = (sections: ReadonlyArray<NbdConfig.Section>) => sections.filter(foreign).map(bodyOf)
  return sameTexts(bodies(rendering.base?.sections ?? []), bodies(document.sections))
    ? null
    : "sections of others would change"
}

/** A last line that was not ended is ended once something follows. */
const withoutEnd = (body: string): string => body.replace(/\r?\n?$/, "")

const sameTexts = (some: ReadonlyArray<string>, others: ReadonlyArray<string>): boolean =>
  some.length === others.length && some.every((text, index) => text === others[index])

/** Each section of ours stands once, and the marker behind all others. */
const endOf = (document: NbdConfig.Document, rendering: NbdConfig.Rendering): string | null => {
  const marker = NbdConfig.generation(document)?.marker
  if (marker === undefined || document.tail !== "") return "the generation marker is not the last section"
  const leaving = NbdConfig.leavingNames(rendering)
  const twice = document.duplicates.find(leaving)
  return twice === undefined ? null : `[${NbdName.textOf(twice)}] would stand there twice`
}

type Meant = ReadonlyMap<string, ReadonlyMap<string, string>>

const meaning = (text: string, rendering: NbdConfig.Rendering): string | null => {
  const has = KeyFile.read(text)
  if (has._tag === "Refused") return `line ${has.line}: ${has.problem}`
  const names = [...has.groups.keys()]
  const marker = names.at(-1) ?? ""
  if (names[0] !== "generic" || !NbdName.MARKER.test(marker)) return "it does not begin and end as it must"
  const others = foreign(rendering)
  if (others === null) return "what others wrote cannot be read"
  const ours: Meant = new Map([...own(rendering), [marker, housekeeping(rendering.sentinel)]])
  return unlike(has.groups, new Map([...others, ...ours])) ?? rewritten(ours)
}

/** A value of ours that GLib would hand out as something else. */
const rewritten = (ours: Meant): string | null => {
  const values = [...ours.values()].flatMap((keys) => [...keys.values()])
  const other = values.find((value) => KeyFile.stringOf(value) !== value)
  return other === undefined ? null : `${JSON.stringify(other.slice(0, 120))} would be read as something else`
}

/** The first group that is not as it must be, said in a word; values as they stand. */
const unlike = (has: KeyFile.Groups, meant: Meant): string | null => {
  const more = [...has.keys()].find((name) => !meant.has(name))
  if (more !== undefined) return `[${NbdName.textOf(more)}] would stand there too`
  for (const [name, values] of meant) {
    const keys = has.get(name)
    const same = keys?.size === values.size && [...values].every(([key, value]) => keys.get(key) === value)
    if (!same) return `[${NbdName.textOf(name)}] would not say what was asked for`
  }
  return null
}

/** What stays of the file as it is. Null where GLib cannot read that. */
const foreign = (rendering: NbdConfig.Rendering): Meant | null => {
  if (rendering.base === null) return new Map()
  const had = KeyFile.read(`${withoutEnd(NbdConfig.print({ ...rendering.base, bom: false }))}\n`)
  if (had._tag === "Refused") return null
  const leaving = NbdConfig.leavingNames(rendering)
  const { narrowed } = NbdConfig.judgeGeneric(rendering.base, rendering.listen)
  const kept = new Map([...had.groups].filter(([name]) => !leaving(name)))
  const generic = kept.get("generic")
  if (generic !== undefined && narrowed !== null) kept.set("generic", new Map([...generic, ["listenaddr", narrowed]]))
  return kept
}

const own = (rendering: NbdConfig.Rendering): Meant => {
  const { base, exports, listen, sentinel } = rendering
  const generic = [
    ["listenaddr", listen.host],
    ["port", `${listen.port}`],
    ["allowlist", "false"],
    ["max_threads", "4"]
  ] as const
  return new Map([
    ...(NbdConfig.ownsGeneric(base) ? [["generic", new Map(generic)] as const] : []),
    [NbdName.SENTINEL, housekeeping(sentinel)],
    ...exports.map((one) => [one.name, volume(one)] as const)
  ])
}

const housekeeping = (path: string): ReadonlyMap<string, string> =>
  new Map([
    ["readonly", "true"],
    ["virtstyle", "none"],
    ["exportname", path]
  ])

const volume = (one: NbdConfig.Export): ReadonlyMap<string, string> =>
  new Map([
    ["readonly", one.read_only ? "true" : "false"],
    ["flush", "true"],
    ["fua", "true"],
    ["virtstyle", "none"],
    ["authfile", one.authfile],
    ...(one.pin === undefined ? [] : [["pin", one.pin] as const]),
    ["exportname", one.path]
  ])

/** The same for an included file that some sections have left: why this text is not the file without them, or null. */
export const leftover = (text: string, file: NbdConfig.Document, names: ReadonlySet<string>): string | null => {
  const parsed = NbdConfig.parse(text)
  const kept = file.sections.filter(({ name }) => !names.has(name)).map(({ body }) => body)
  const has = parsed._tag === "Parsed" ? parsed.document.sections.map(({ body }) => body) : []
  if (!sameTexts(kept, has)) return "sections of others would change"
  const before = KeyFile.read(NbdConfig.print(file))
  const after = KeyFile.read(text)
  if (before._tag === "Refused" || after._tag === "Refused") return "it cannot be read"
  return unlike(after.groups, new Map([...before.groups].filter(([name]) => !names.has(name))))
}
