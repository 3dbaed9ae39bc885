import { Effect } from "effect"
import { join, resolve } from "node:path"
import * as NbdConfig from "../../schema/NbdConfig.ts"
import * as NbdName from "../../schema/NbdName.ts"
import * as Files from "../Devices/Files.ts"
import * as ConfigFile from "./ConfigFile.ts"

/** A file of the includedir that a `[generic]` names, which nbd-server reads as if it were part of its own. */
export interface Included {
  readonly path: string
  readonly text: string
  readonly document: NbdConfig.Document
  readonly mode: number
  readonly owner: ConfigFile.Owner
}

export interface Includes {
  /** By name. nbd-server reads them as the directory gives them, after its own file. */
  readonly files: ReadonlyArray<Included>
  /** Why a server could not start with them (one bad file is enough), or why they were not read whole; null when all is well. */
  readonly problem: string | null
  /** Why none of them can be rewritten, or null. */
  readonly fixed: string | null
}

const none: Includes = { files: [], problem: null, fixed: null }

/** Far beyond what anybody keeps there. */
const FILES_MAX = 1_000
const BYTES_MAX = 16 * 1024 * 1024

/** Never fails: what cannot be read is a problem. */
export const read = (disk: ConfigFile.Disk, main: NbdConfig.Document | null): Effect.Effect<Includes> => {
  const directory = main === null ? null : NbdConfig.valueOf(main, "generic", "includedir")
  // A server has / as its working directory when it reads that.
  return directory === null ? Effect.succeed(none) : readAll(disk, resolve("/", NbdName.textOf(directory)))
}

const readAll = (disk: ConfigFile.Disk, directory: string): Effect.Effect<Includes> =>
  Effect.gen(function* () {
    const paths = yield* list(disk, directory)
    if (typeof paths === "string") return { ...none, problem: paths }
    // Such a name is not the one that the file has, so that it cannot be looked into as nbd-server does.
    if (paths.some((path) => path.includes("\ufffd"))) {
      return { ...none, problem: `${directory} holds a file whose name is not UTF-8` }
    }
    if (paths.length > FILES_MAX) return { ...none, problem: `${directory} holds more than ${FILES_MAX} files` }
    const files: Array<Included> = []
    const problems: Array<string> = []
    let bytes = 0
    for (const path of paths) {
      const content = yield* ConfigFile.readAnywhere(disk, path)
      if (content._tag === "Absent") continue
      bytes += content._tag === "Present" ? content.text.length : 0
      if (bytes > BYTES_MAX) return { ...none, problem: `${directory} holds more than ${BYTES_MAX} bytes` }
      const read = content._tag === "Present" ? examine(path, content) : content.problem
      if (typeof read === "string") problems.push(read)
      else files.push(read)
    }
    const fixed = files.length === 0 ? null : yield* ConfigFile.placeProblem(disk, join(directory, "x"))
    return { files, problem: problems.length === 0 ? null : problems.slice(0, 3).join("; "), fixed }
  })

/** As nbd-server chooses them (`do_cfile_dir`): regular files, no links, whose names end in .conf, hidden ones too. */
const list = (disk: ConfigFile.Disk, directory: string): Effect.Effect<ReadonlyArray<string> | string> =>
  Files.attempt(() => disk.readdir(directory, { withFileTypes: true })).pipe(
    Effect.map((entries) =>
      entries
        .filter((entry) => entry.isFile() && entry.name.endsWith(".conf"))
        .map((entry) => join(directory, entry.name))
        .sort()
    ),
    Effect.catchAll(({ code }) => Effect.succeed(`its includedir ${directory} cannot be read: ${code ?? "unknown"}`))
  )

const examine = (
  path: string,
  { mode, owner, text }: Extract<ConfigFile.Content, { readonly _tag: "Present" }>
): Included | string => {
  const parsed = NbdConfig.parse(text)
  if (parsed._tag === "Malformed") return `${path}, line ${parsed.line}: ${parsed.problem}`
  const refusal = NbdConfig.includeRefusal(parsed.document)
  return refusal === null ? { path, text, document: parsed.document, mode, owner } : `${path}: ${refusal}`
}
