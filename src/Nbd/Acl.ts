import { Effect, Option, Ref } from "effect"
import { createHash } from "node:crypto"
import { stat } from "node:fs/promises"
import { dirname, join, resolve } from "node:path"
import { NbdUnavailable } from "../../schema/Errors.ts"
import * as NbdName from "../../schema/NbdName.ts"
import * as Files from "../Devices/Files.ts"
import * as ConfigFile from "./ConfigFile.ts"

/**
 * Who may open an export: a file for each, one address a line, read by nbd-server at every connection. Empty admits
 * nobody. A missing or unreadable one admits everybody, so that a file is made before its export and never removed.
 */
export interface Acl {
  readonly disk: ConfigFile.Disk
  readonly unsure: ConfigFile.Unsure
  readonly dir: string
  /** Single IPv4 addresses. */
  readonly allow: ReadonlyArray<string>
  /** Somebody set them: they count for claimed exports too, in place of what those admitted before. */
  readonly explicit: boolean
  /** Where our own handshakes come from: they must be admitted, else nothing can be proven. */
  readonly probes: ReadonlyArray<string>
}

/** A name that somebody else chose may hold anything, even a path: its file is named by a hash, which no name of ours can be. */
export const pathOf = (acl: Acl, name: string): string =>
  join(acl.dir, NbdName.newProblem(name) === null ? name : `_${hashed(name)}`)

const hashed = (name: string): string =>
  createHash("sha256").update(NbdName.bytesOf(name), "latin1").digest("hex").slice(0, 32)

/** In every version that we know, on IPv4 and on IPv6 listeners (measured on 3.24, where a mask alone can mean more than it says). */
const EVERYBODY = ["0.0.0.0/0", "::/0"]

/** The first line of a file whose other lines were taken over with a claimed section: a fence must not lose them. */
const INHERITED = "# Taken over from the section that was claimed; NBD_ALLOW, where it is set, replaces it."

/** Before every line of such a file while its export is fenced. nbd-server skips comments, and a file of them admits nobody. */
const FENCED = "#- "

/** Readable by all: a server that somebody runs as another user must be able to read it, or it would admit everybody. */
const MODE = 0o644

const put = (acl: Acl, name: string, lines: ReadonlyArray<string>): Effect.Effect<void, NbdUnavailable> =>
  Effect.gen(function* () {
    const path = pathOf(acl, name)
    const text = lines.map((line) => `${line}\n`).join("")
    const now = yield* ConfigFile.readText(acl.disk, path)
    const sure = !(yield* Ref.get(acl.unsure)).has(path)
    if (sure && now._tag === "Present" && now.text === text && (now.mode & MODE) === MODE) return
    yield* ConfigFile.makeDirectory(acl.disk, acl.dir)
    const write = { path, text, mode: MODE, expected: undefined, permit: Effect.void }
    yield* ConfigFile.writeAgain(acl.disk, acl.unsure, write)
  })

/** The rules that were taken over for this export, fenced or not; null where there are none. */
const inherited = (acl: Acl, name: string): Effect.Effect<ReadonlyArray<string> | null> =>
  Effect.map(ConfigFile.readText(acl.disk, pathOf(acl, name)), (content) => {
    const [first, ...lines] = content._tag === "Present" ? content.text.split("\n") : []
    if (first !== INHERITED) return null
    return rulesOf(lines.map((line) => (line.startsWith(FENCED) ? line.slice(FENCED.length) : line)))
  })

const rulesOf = (lines: ReadonlyArray<string>): ReadonlyArray<string> => lines.filter((line) => !/^\s*(#|$)/.test(line))

/** A new export: the settings alone say who is admitted. */
export const open = (acl: Acl, name: string): Effect.Effect<void, NbdUnavailable> => put(acl, name, acl.allow)

/** An export that is there: who was admitted to it, which the settings replace where somebody made them. */
export const admit = (acl: Acl, name: string): Effect.Effect<void, NbdUnavailable> =>
  Effect.flatMap(inherited(acl, name), (rules) =>
    rules === null || acl.explicit ? open(acl, name) : put(acl, name, [INHERITED, ...rules])
  )

/**
 * A section that is being claimed: whoever it admits is admitted on. `authfile`: its own, which nbd-server ignores where
 * it is missing; null admits everybody.
 */
export const inherit = (acl: Acl, name: string, authfile: string | null): Effect.Effect<void, NbdUnavailable> =>
  Effect.gen(function* () {
    if (acl.explicit) return yield* open(acl, name)
    const content = authfile === null ? null : yield* rulesAt(acl, authfile)
    if (content?._tag === "Unusable") return yield* new NbdUnavailable({ detail: content.problem })
    const rules = content?._tag === "Present" ? rulesOf(content.text.split("\n")) : EVERYBODY
    yield* put(acl, name, [INHERITED, ...new Set([...rules, ...(rules === EVERYBODY ? [] : acl.probes)])])
  })

/** A server has / as its working directory once it is a daemon. */
const rulesAt = (acl: Acl, authfile: string): Effect.Effect<ConfigFile.Content> =>
  Effect.map(ConfigFile.readAnywhere(acl.disk, resolve("/", NbdName.textOf(authfile))), (content) => {
    const long = content._tag === "Present" && content.text.split("\n").some((line) => line.length > LINE_MAX)
    if (!long) return content
    const problem = `${NbdName.textOf(authfile)}: it has a line of more than ${LINE_MAX} characters`
    return { _tag: "Unusable", problem } satisfies ConfigFile.Content
  })

/** nbd-server reads 255 at a time: what is left of a longer line is a rule of its own, also behind the mark of a fence. */
const LINE_MAX = 200

/** Why it cannot be told whom somebody else's authfile admits, or null. */
export const unreadable = (acl: Acl, authfile: string): Effect.Effect<string | null> =>
  acl.explicit
    ? Effect.succeed(null)
    : Effect.map(rulesAt(acl, authfile), (content) => (content._tag === "Unusable" ? content.problem : null))

export const deny = (acl: Acl, name: string): Effect.Effect<void, NbdUnavailable> =>
  Effect.flatMap(inherited(acl, name), (rules) =>
    put(acl, name, rules === null ? [] : [INHERITED, ...rules.map((rule) => FENCED + rule)])
  )

/** The export has left the file. Who was admitted to it is forgotten: what bears its name next is another one. */
export const close = (acl: Acl, name: string): Effect.Effect<void, NbdUnavailable> => put(acl, name, [])

/** When it came to admit nobody, ms since the epoch: its file was written then; null while it admits somebody. */
export const fencedAt = (acl: Acl, name: string): Effect.Effect<number | null> =>
  Effect.flatMap(denies(acl, name), (denied) =>
    denied
      ? Files.attempt(() => stat(pathOf(acl, name))).pipe(
          Effect.map(({ mtimeMs }) => Math.floor(mtimeMs)),
          Effect.orElseSucceed(() => null)
        )
      : Effect.succeed(null)
  )

/**
 * Why a server that becomes this user cannot read who is admitted, and admits everybody, or null. Whatever is not open to
 * all is taken as closed: whose groups count there is the server's affair.
 */
export const hiddenFrom = (acl: Pick<Acl, "dir">, user: string | null): Effect.Effect<string | null> =>
  Effect.gen(function* () {
    if (user === null) return null
    for (let path = acl.dir; ; path = dirname(path)) {
      const stats = yield* Effect.option(Files.attempt(() => stat(path)))
      const closed = Option.isSome(stats) && (stats.value.mode & 0o001) === 0
      if (closed) return `${path} cannot be entered by ${user}, as whom nbd-server runs and would then admit everybody`
      if (path === dirname(path)) return null
    }
  })

/** True when it is there and admits nobody: nbd-server skips comments. */
export const denies = (acl: Acl, name: string): Effect.Effect<boolean> =>
  Effect.map(
    ConfigFile.readText(acl.disk, pathOf(acl, name)),
    (content) => content._tag === "Present" && rulesOf(content.text.split("\n")).length === 0
  )
