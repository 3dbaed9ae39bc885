import type { NbdSettings } from "./Settings.ts"
import * as NbdConfig from "./NbdConfig.ts"
import * as NbdName from "./NbdName.ts"

/**
 * Sections that others wrote and that become ours. What a section of ours cannot say stands in the way: left out, it
 * would let more clients in or serve other bytes than before.
 */

/** Served bytes that are not the disk's own, or not all of them. */
const OTHER_BYTES = ["copyonwrite", "multifile", "treefiles", "temporary", "waitfile"]

/** Why this section must not become ours, or null. The name in bytes. */
export const obstacle = (document: NbdConfig.Document, name: string): string | null => {
  const problem = NbdName.claimProblem(NbdName.textOf(name))
  if (problem !== null) return `its name ${problem}`
  const gate = ["prerun", "postrun"].find((key) => NbdConfig.valueOf(document, name, key) !== null)
  if (gate !== undefined) return `it has ${gate}, a program that volumed never runs`
  if (NbdConfig.flagOf(document, name, "force_tls")) return "it has force_tls, and volumed cannot speak TLS"
  const other = OTHER_BYTES.find((key) => NbdConfig.flagOf(document, name, key))
  if (other !== undefined) return `it has ${other}, so that it does not serve the disk as it is`
  return NbdConfig.valueOf(document, name, "filesize") === null
    ? null
    : "it has filesize, so that it does not serve all of its disk"
}

/** The names of a document's sections that are exports, each once, in file order; in bytes. */
export const names = (document: NbdConfig.Document): ReadonlyArray<string> =>
  [...new Set(document.sections.map((section) => section.name))].filter(
    (name) => name !== "generic" && !NbdName.isHousekeeping(name)
  )

type Narrowing = Pick<NbdSettings, "acl_dir" | "allow" | "explicit" | "host" | "port">

/** Sentences hold at most so many names. */
const NAMES_MAX = 5

/**
 * What the settings that somebody made take away from the clients of a file that exists, as sentences; nothing where
 * defaults give way. `included`: the files of its includedir. A section of ours is as narrow as it shall be.
 */
export const narrowings = (
  main: NbdConfig.Document,
  included: ReadonlyArray<NbdConfig.Document>,
  settings: Narrowing
): ReadonlyArray<string> => {
  if (!settings.explicit.allow) return NbdConfig.narrowedListening(main, settings)
  const authfiles = [main, ...included].flatMap((document) =>
    names(document).map((name) => ({ name, authfile: NbdConfig.valueOf(document, name, "authfile") }))
  )
  const open = authfiles.filter(({ authfile }) => authfile === null)
  const ruled = authfiles.filter(({ authfile, name }) => authfile !== null && !isOurs(settings.acl_dir, name, authfile))
  const admits = `NBD_ALLOW=${settings.allow.join(",")}: once claimed, clients at other addresses are denied`
  return [
    ...NbdConfig.narrowedListening(main, settings),
    ...(open.length === 0 ? [] : [`${admits} in ${listed(open)}, where now everybody is admitted`]),
    ...(ruled.length === 0
      ? []
      : [`${admits} in ${listed(ruled)}, where now an authfile of its own says who is admitted`])
  ]
}

/** Its own name's file, or the one that stands for a name which no file can bear. */
const isOurs = (acl_dir: string, name: string, authfile: string): boolean => {
  const file = authfile.startsWith(`${acl_dir}/`) ? authfile.slice(acl_dir.length + 1) : ""
  return file === NbdName.textOf(name) || /^_[0-9a-f]{32}$/.test(file)
}

const listed = (sections: ReadonlyArray<{ readonly name: string }>): string => {
  const shown = sections.slice(0, NAMES_MAX).map(({ name }) => `[${NbdName.textOf(name)}]`)
  const more = sections.length - shown.length
  return `${shown.join(", ")}${more > 0 ? ` and ${more} more` : ""}`
}
