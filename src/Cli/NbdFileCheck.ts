import { Effect, Option } from "effect"
import { stat, statfs } from "node:fs/promises"
import { join, resolve } from "node:path"
import * as NbdClaim from "../../schema/NbdClaim.ts"
import * as NbdConfig from "../../schema/NbdConfig.ts"
import * as NbdName from "../../schema/NbdName.ts"
import type { Settings } from "../../schema/Settings.ts"
import * as Files from "../Devices/Files.ts"
import * as Acl from "../Nbd/Acl.ts"
import * as ConfigFile from "../Nbd/ConfigFile.ts"
import * as Includes from "../Nbd/Includes.ts"
import * as Value from "../Settings/Value.ts"
import { type Finding, fail, limited, ok, warn } from "./Finding.ts"
import { clean } from "./Output.ts"

/** A section as nbd-server reads it, its name in bytes. */
interface Section {
  readonly name: string
  readonly document: NbdConfig.Document
}

/** What stands in nbd-server's file and beside it. `host`: where the server is reached. */
export const check = Effect.fn("NbdFileCheck.check")(function* (settings: Settings, host: string) {
  const { nbd } = settings
  const disk = ConfigFile.disk
  const file = yield* ConfigFile.read(disk, nbd.config)
  const document = file._tag === "Sound" ? file.document : null
  const includes = yield* Includes.read(disk, document)
  const documents = [...(document === null ? [] : [document]), ...includes.files.map((one) => one.document)]
  const sections = documents.flatMap((one): ReadonlyArray<Section> =>
    NbdClaim.names(one).map((name) => ({ name, document: one }))
  )
  const { user } = NbdConfig.judgeGeneric(document, nbd)
  return [
    ...(yield* aclDirectory(settings, user)),
    ...(yield* authfiles(sections, { user, local: Value.isLoopback(host) })),
    ...limited("NBD options", sections.flatMap(options), "none that is known to do harm", (one) => one)
  ]
})

const TMPFS: ReadonlyArray<number> = [0x01021994, 0x858458f6]

const aclDirectory = Effect.fn("NbdFileCheck.aclDirectory")(function* (
  { nbd, sandbox }: Settings,
  user: string | null
) {
  const name = "NBD authfiles in"
  const { acl_dir: dir } = nbd
  const there = yield* Effect.isSuccess(Files.attempt(() => stat(dir)))
  if (!there) return [ok(name, `${dir}, which will be made`)]
  const place = yield* ConfigFile.placeProblem(ConfigFile.disk, join(dir, "x"))
  if (place !== null) return [fail(name, clean(place), `chown root:root ${dir}; chmod 755 ${dir}`)]
  const hidden = yield* Acl.hiddenFrom({ dir }, user)
  if (hidden !== null) return [fail(name, clean(hidden), `chmod 755 ${dir}, and what it is in`)]
  const system = yield* Effect.option(Files.attempt(() => statfs(dir)))
  const passing = Option.isSome(system) && TMPFS.includes(system.value.type) && !sandbox
  const lost = `${dir} is in memory: a reboot empties it, and an export whose authfile is missing admits everybody`
  return [passing ? fail(name, lost, "NBD_ACL_DIR, on a disk") : ok(name, dir)]
})

interface Server {
  /** Whom it becomes; null: nobody else. */
  readonly user: string | null
  /** Only this machine reaches it. */
  readonly local: boolean
}

/** nbd-server takes an authfile that it cannot read for one that admits everybody. */
const authfiles = Effect.fn("NbdFileCheck.authfiles")(function* (sections: ReadonlyArray<Section>, server: Server) {
  const problems = yield* Effect.forEach(sections, (section) => authfile(section, server), { concurrency: 16 })
  const none = sections.length === 0 ? "there is no export yet" : `there for each of ${sections.length} exports`
  return limited("NBD authfiles", problems.flat(), none, (problem) => problem)
})

const authfile = ({ document, name }: Section, server: Server): Effect.Effect<ReadonlyArray<Finding>> => {
  const shown = clean(NbdName.textOf(name))
  const value = NbdConfig.valueOf(document, name, "authfile")
  const wrong = (problem: string, fix: string) => [fail("NBD authfiles", clean(`${shown}: ${problem}`), fix)]
  if (value === null) {
    const open = `${shown} has none: whoever reaches the port may open it`
    const fix = "authfile = a file of addresses, in its section; or volumed import, which makes the section volumed's"
    return Effect.succeed([(server.local ? warn : fail)("NBD authfiles", open, fix)])
  }
  const path = resolve("/", NbdName.textOf(value))
  return Files.attempt(() => stat(path)).pipe(
    Effect.map((found) => {
      if (!found.isFile()) return wrong(`${path} is no file: everybody is admitted`, `a file of addresses in its place`)
      if ((found.mode & 0o022) !== 0)
        return wrong(`others may write ${path}, and admit whom they like`, `chmod go-w ${path}`)
      if (found.uid !== 0 && found.uid !== process.geteuid?.())
        return wrong(`${path} belongs to user ${found.uid}, who may admit anybody`, `chown root ${path}`)
      return server.user !== null && (found.mode & 0o004) === 0
        ? wrong(`${server.user} may not read ${path}, and the server then admits everybody`, `chmod o+r ${path}`)
        : []
    }),
    Effect.catchAll(({ code }) =>
      Effect.succeed(
        wrong(`${path} cannot be read (${code}): everybody is admitted`, `: >${path} admits nobody; volumed sync`)
      )
    )
  )
}

/** What each of them does, other than its name says. */
const harmful = {
  maxconnections: "counts every connection there ever was, and refuses all after the last of them",
  filesize: "lets a client write over the beginning of the disk where it is larger than the disk",
  prerun: "runs a command in a shell at each connection",
  postrun: "runs a command in a shell after each connection"
} as const
const otherwise = ["copyonwrite", "multifile", "treefiles", "temporary", "waitfile"]

const options = ({ document, name }: Section): ReadonlyArray<Finding> => {
  const shown = clean(NbdName.textOf(name))
  const value = (key: string) => NbdConfig.valueOf(document, name, key)
  const set = Object.entries(harmful).filter(([key]) => value(key) !== null && !/^0\s*$/.test(value(key) ?? ""))
  const other = otherwise.filter((key) => NbdConfig.flagOf(document, name, key))
  return [
    ...set.map(([key, effect]) =>
      (key === "filesize" ? fail : warn)("NBD options", `${shown}: ${key} ${effect}`, `take ${key} out of its section`)
    ),
    ...other.map((key) =>
      warn(
        "NBD options",
        `${shown}: with ${key} it serves other bytes than its disk's`,
        `take ${key} out of its section`
      )
    )
  ]
}
