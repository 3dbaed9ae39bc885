import { Effect } from "effect"
import { createHash } from "node:crypto"
import type { NbdSection } from "../../schema/Inventory.ts"
import * as NbdClaim from "../../schema/NbdClaim.ts"
import * as NbdConfig from "../../schema/NbdConfig.ts"
import * as NbdName from "../../schema/NbdName.ts"
import * as Acl from "./Acl.ts"
import * as ConfigFile from "./ConfigFile.ts"
import * as Includes from "./Includes.ts"
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

/** Covers the included files too: what is loaded of them is as much of what is served as the file itself. */
export const hashOf = (body: string, included: Included): string => sha256(body + Includes.print(included))

/** Of the file while sections leave those included files: whoever loads it now has loaded what will be over. */
export const movingHashOf = (body: string, included: Included): string =>
  sha256(`${body}${Includes.print(included)}\n# moving`)

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

/** Every section of somebody's, what its path leads to left open. `stale`: the server runs an older version of all this. */
export const sections = (written: Written, stale: boolean): Effect.Effect<ReadonlyArray<NbdSection>> =>
  Effect.gen(function* () {
    const documents = [
      ...(written.document === null ? [] : [written.document]),
      ...written.includes.files.map(documentOf)
    ]
    const found: Array<NbdSection> = []
    for (const name of new Set(documents.flatMap(NbdClaim.names))) {
      const where = standing(written, name)
      if (where === null) continue
      const path = NbdConfig.valueOf(where.effective, name, "exportname")
      found.push({
        name: NbdName.textOf(name),
        path: path === null ? null : NbdName.textOf(path),
        read_only: NbdConfig.flagOf(where.effective, name, "readonly"),
        file: where.included.at(-1)?.path ?? null,
        device: null,
        obstacle: yield* obstacleOf(written, name, where),
        unfinished: unfinishedOf(where, stale),
        fenced_at: where.ours ? yield* Acl.fencedAt(written.acl, NbdName.textOf(name)) : null
      })
    }
    return found
  })

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
