import { Effect, Ref } from "effect"
import { createHash } from "node:crypto"
import type { NbdSection } from "../../schema/Inventory.ts"
import * as NbdClaim from "../../schema/NbdClaim.ts"
import * as NbdConfig from "../../schema/NbdConfig.ts"
import * as NbdName from "../../schema/NbdName.ts"
import * as Acl from "./Acl.ts"
import * as ConfigFile from "./ConfigFile.ts"
import * as Includes from "./Includes.ts"
import * as Pin from "./Pin.ts"
import { aclAt, type World } from "./World.ts"

/** What is written down for the server at one moment: the one file, and what it includes. */
export interface Written {
  readonly file: ConfigFile.Reading
  /** What the next load starts from: the file, or the last verified one where it is broken. */
  readonly document: NbdConfig.Document | null
  readonly includes: Includes.Includes
  readonly judgement: NbdConfig.Judgement
  readonly acl: Acl.Acl
}

export const read = (world: World): Effect.Effect<Written> =>
  Effect.gen(function* () {
    const { nbd } = world.options
    const file = yield* ConfigFile.read(world.disk, nbd.config)
    const copy = file._tag === "Broken" ? yield* ConfigFile.read(world.disk, world.verified_copy) : file
    const document = copy._tag === "Sound" ? copy.document : null
    const judgement = NbdConfig.judgeGeneric(document, nbd)
    const includes = yield* Includes.read(world.disk, document)
    return { file, document, includes, judgement, acl: aclAt(world, judgement.listen.host) }
  })

export const textOf = ({ file }: Written): string | null =>
  file._tag === "Sound" || file._tag === "Broken" ? file.text : null

type Included = ReadonlyArray<Pick<Includes.Included, "path" | "text">>

/**
 * Covers the included files too: what is loaded of them is as much of what is served as the file itself. It does not cover
 * what no server reads.
 */
export const hashOf = (body: string, included: Included): string => sha256(meaningOf(body, included))

/** Of the file while sections leave those included files: whoever loads it now has loaded what will be over. */
export const movingHashOf = (body: string, included: Included): string =>
  sha256(`${meaningOf(body, included)}\n# moving`)

const meaningOf = (body: string, included: Included): string =>
  [
    NbdConfig.meaning(body),
    ...included.flatMap(({ path, text }) => {
      const meaning = NbdConfig.meaning(text)
      return meaning === "" ? [] : [`# ${path}`, meaning]
    })
  ].join("\n")

const sha256 = (text: string): string => createHash("sha256").update(text, "latin1").digest("hex")

/** The file's generation marker, if all is as we sealed it: a hand's change makes the marker prove nothing. */
export const markerOf = (written: Written): string | null => sealedBy(written, hashOf)

/** A load that moved sections was ended right before its last write. */
export const isMoving = (written: Written): boolean => sealedBy(written, movingHashOf) !== null

const sealedBy = ({ file, includes }: Written, hash: typeof hashOf): string | null => {
  const generation = file._tag === "Sound" ? NbdConfig.generation(file.document) : null
  const sealed = generation !== null && hash(generation.body, includes.files).startsWith(generation.hash)
  return sealed ? generation.marker : null
}

/** Where a name stands. Takes and gives names in bytes. */
export interface Standing {
  /** In the one file, as we write sections. */
  readonly ours: boolean
  readonly main: boolean
  readonly included: ReadonlyArray<Includes.Included>
  /** The document whose section a client gets: of one name in two places nbd-server serves the last (GO, measured on 3.24). */
  readonly effective: NbdConfig.Document
}

export const standing = ({ acl, document, includes }: Written, name: string): Standing | null => {
  const has = (one: NbdConfig.Document) => one.sections.some((section) => section.name === name)
  const main = document !== null && has(document) ? document : null
  const included = includes.files.filter((file) => has(file.document))
  const effective = included.at(-1)?.document ?? main
  if (effective === null) return null
  const authfile = main === null ? null : NbdConfig.valueOf(main, name, "authfile")
  return { ours: authfile === Acl.pathOf(acl, NbdName.textOf(name)), main: main !== null, included, effective }
}

/** Every export that is written down, each once, as text. */
export const names = ({ document, includes }: Written): ReadonlyArray<string> => {
  const documents = [...(document === null ? [] : [document]), ...includes.files.map(documentOf)]
  return [...new Set(documents.flatMap(NbdClaim.names))].map(NbdName.textOf)
}

export interface Found {
  readonly section: NbdSection
  /** The path that says which disk is the section's; null where that is known, or nothing can be opened by it. */
  readonly leads: string | null
}

/**
 * Every section of somebody's. One whose path is a holder's shows the link that was pinned, and the disk that it is pinned
 * to: wherever the link leads by now, clients get that. `stale`: the server runs an older version of all this.
 */
export const sections = (world: World, written: Written, stale: boolean): Effect.Effect<ReadonlyArray<Found>> =>
  Effect.gen(function* () {
    const found: Array<Found> = []
    const pins = new Map((yield* pinned(world, written)).map((one) => [one.name, one]))
    for (const text of names(written)) {
      const name = NbdName.bytesOf(text)
      const where = standing(written, name)
      if (where === null) continue
      const exportname = NbdConfig.valueOf(where.effective, name, "exportname")
      const path = exportname === null ? null : NbdName.textOf(exportname)
      const pin = pins.get(text)
      const section = {
        name: text,
        path: pin?.path ?? path,
        read_only: NbdConfig.flagOf(where.effective, name, "readonly"),
        file: where.included.at(-1)?.path ?? null,
        device: pin === undefined ? null : deviceOf(pin),
        obstacle: yield* obstacleOf(written, name, where),
        unfinished: unfinishedOf(where, stale) ?? unpinnedOf(world, where, pin),
        fenced_at: where.ours ? yield* Acl.fencedAt(written.acl, text) : null
      }
      found.push({ section, leads: pin === undefined ? path : null })
    }
    return found
  })

/** An export of ours whose path is a holder's. */
export interface Pinned {
  readonly name: string
  /** The link that was pinned; null where the section does not say. */
  readonly path: string | null
  readonly descriptor: string
  /** Null: nobody knows what the descriptor leads to, if anywhere. */
  readonly holder: Pin.Holder | null
}

/** What somebody else has open there is no disk that we know, and never the volume's; where nobody has, a client gets nothing. */
const deviceOf = ({ descriptor, holder }: Pinned): string | null =>
  holder?.device ?? (Pin.isOpen(descriptor) ? `unproven:${descriptor}` : null)

/** Each proven anew, and remembered: that a holder has ended is then seen without reading the file again. */
export const pinned = (world: World, written: Written): Effect.Effect<ReadonlyArray<Pinned>> =>
  Effect.gen(function* () {
    const found = (written.document?.sections ?? []).flatMap((section) => pinnedAs(world, written, section))
    const pins = new Map(found.map(({ descriptor, holder }) => [descriptor, holder?.process ?? null]))
    yield* Ref.update(world.memory, (memory) => ({ ...memory, pins }))
    return found
  })

const pinnedAs = (world: World, written: Written, { name, pairs }: NbdConfig.Section): ReadonlyArray<Pinned> => {
  const descriptor = pairs.findLast(({ key }) => key === "exportname")?.value ?? ""
  if (NbdConfig.pinOf(descriptor) === null) return []
  const where = standing(written, name)
  if (where === null || !where.ours) return []
  const path = NbdConfig.valueOf(where.effective, name, "pin")
  const holder = Pin.at(world.options, descriptor)
  return [{ name: NbdName.textOf(name), path, descriptor, holder: holder?.path === path ? holder : null }]
}

/** Why a section of ours is to be written anew though its path is right, or null. */
const unpinnedOf = (world: World, { ours }: Standing, pin: Pinned | undefined): string | null => {
  const { pin: wanted } = world.options.nbd
  if (pin !== undefined && pin.holder === null) return "the process that had its disk open for it is gone"
  if (!ours || wanted === (pin !== undefined)) return null
  return wanted ? "NBD_PIN is on, and it names the link" : "NBD_PIN is off, and it names what a process has open"
}

const documentOf = ({ document }: Includes.Included): NbdConfig.Document => document

/** Why a section must not become ours, or null. */
export const obstacleOf = (written: Written, name: string, where: Standing): Effect.Effect<string | null> =>
  Effect.gen(function* () {
    const { included } = where
    if (included.length > 0 && written.includes.fixed !== null) return written.includes.fixed
    if (included.length > (where.main && !where.ours ? 0 : 1)) {
      const files = [...(where.main ? ["the file itself"] : []), ...included.map(({ path }) => path)]
      return `it stands in ${files.join(" and ")}, and a client may get either`
    }
    if (where.ours) return null
    const authfile = NbdConfig.valueOf(where.effective, name, "authfile")
    const unreadable = authfile === null ? null : yield* Acl.unreadable(written.acl, authfile)
    return NbdClaim.obstacle(where.effective, name) ?? unreadable
  })

const unfinishedOf = ({ included, main }: Standing, stale: boolean): string | null => {
  const [file] = included
  if (file !== undefined) return `it stands in ${file.path}${main ? " too" : ""}`
  return stale && main ? "the server runs an older version of the file" : null
}

/** Worth a look, and no hindrance to anything that is served now. */
export const remarks = ({ file, includes, judgement }: Written): ReadonlyArray<string> => {
  if (file._tag === "Broken") return [`the file is broken (${file.problem}) and will be kept aside and rendered anew`]
  if (file._tag !== "Sound") return []
  const twice = file.document.duplicates.map((name) => `[${NbdName.textOf(name)}] stands in the file more than once`)
  const bom = file.document.bom ? ["the file begins with a byte order mark, with which nbd-server may not start"] : []
  const included = includes.problem === null ? [] : [`nbd-server may not start again: ${includes.problem}`]
  return [...bom, ...twice, ...included, ...judgement.remarks]
}
