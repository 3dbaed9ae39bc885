import { Effect } from "effect"
import { join } from "node:path"
import type { NbdUnavailable } from "../../schema/Errors.ts"
import * as ConfigFile from "./ConfigFile.ts"

/**
 * Who may open an export: a file for each, one address a line, read by nbd-server at every connection. Empty admits
 * nobody. A missing or unreadable one admits everybody, so that a file is made before its export and never removed.
 */
export interface Acl {
  readonly disk: ConfigFile.Disk
  readonly dir: string
  /** Single IPv4 addresses. */
  readonly allow: ReadonlyArray<string>
}

/** Names are checked by the grammar of exports before they come here, so a path cannot leave the directory. */
export const pathOf = (acl: Acl, name: string): string => join(acl.dir, name)

const NOBODY = ""

/** Readable by all: a server that somebody runs as another user must be able to read it, or it would admit everybody. */
const MODE = 0o644

const put = (acl: Acl, name: string, text: string): Effect.Effect<void, NbdUnavailable> =>
  Effect.gen(function* () {
    const path = pathOf(acl, name)
    const now = yield* ConfigFile.readText(acl.disk, path)
    if (now._tag === "Present" && now.text === text) return
    yield* ConfigFile.makeDirectory(acl.disk, acl.dir)
    yield* ConfigFile.write(acl.disk, { path, text, mode: MODE, expected: undefined, permit: Effect.void })
  })

export const admit = (acl: Acl, name: string): Effect.Effect<void, NbdUnavailable> =>
  put(acl, name, acl.allow.map((address) => `${address}\n`).join(""))

export const deny = (acl: Acl, name: string): Effect.Effect<void, NbdUnavailable> => put(acl, name, NOBODY)

/** True when it is there and admits nobody: nbd-server skips comments. */
export const denies = (acl: Acl, name: string): Effect.Effect<boolean> =>
  Effect.map(
    ConfigFile.readText(acl.disk, pathOf(acl, name)),
    (content) => content._tag === "Present" && content.text.split("\n").every((line) => /^\s*(#|$)/.test(line))
  )
