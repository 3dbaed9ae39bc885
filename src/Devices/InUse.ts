import { Effect } from "effect"
import { readFile, stat } from "node:fs/promises"
import { join } from "node:path"
import { GuestUnavailable } from "../../schema/Errors.ts"
import * as Files from "./Files.ts"
import * as Identity from "./Identity.ts"

/** Why a device, by `major:minor`, is the system's own: mounted somewhere or swapped to. */
export type InUse = ReadonlyMap<string, string>

/**
 * What this machine itself lives on: mounts (so `/`, `/boot` and the file system of volumed's own state are always
 * among them) and swap. Fails when the mount table cannot be read, because nothing could then be called free.
 */
export const read = Effect.fn("Devices.inUse")(function* (procDir: string) {
  const own = yield* table(join(procDir, "self/mountinfo"))
  // A service may run in a mount namespace of its own, in which the machine's mounts are only in part visible.
  const machine = yield* Effect.orElseSucceed(table(join(procDir, "1/mountinfo")), () => "")
  // A kernel without swap has no table of swaps.
  const swaps = yield* table(join(procDir, "swaps"), "")
  const uses = new Map<string, string>()
  const note = (number: string | null, use: string) => {
    if (number !== null && !uses.has(number)) uses.set(number, use)
  }
  for (const mount of mounts(`${own}\n${machine}`)) {
    note(mount.number, `mounted at ${Files.printable(mount.point)}`)
    // btrfs and its like mount under a number of their own; their source then names the disk.
    if (mount.number.startsWith("0:") && mount.source.startsWith("/")) {
      note(yield* deviceBehind(mount.source), `mounted at ${Files.printable(mount.point)}`)
    }
  }
  for (const line of swaps.split("\n").slice(1)) {
    const path = unescaped(line.split(/\s/, 1)[0] ?? "")
    if (path !== "") note(yield* deviceBehind(path), "used as swap")
  }
  return uses as InUse
})

/** `whenMissing`: what a table that does not exist says; without it, that is a failure too. */
const table = (path: string, whenMissing?: string) =>
  Files.attempt(() => readFile(path, "utf8")).pipe(
    Effect.catchAll((error) =>
      whenMissing !== undefined && Files.isMissing(error)
        ? Effect.succeed(whenMissing)
        : Effect.fail(new GuestUnavailable({ detail: `${path} cannot be read`, cause: error.cause }))
    )
  )

/** `proc(5)`: id, parent, major:minor, root, mount point, options, optional fields, a dash, type, source, options. */
const mounts = (text: string) =>
  text.split("\n").flatMap((line) => {
    const fields = line.split(" ")
    const dash = fields.indexOf("-", 6)
    const [number, point, source] = [fields[2], fields[4], fields[dash + 2]]
    return number === undefined || point === undefined || dash === -1
      ? []
      : [{ number, point: unescaped(point), source: unescaped(source ?? "") }]
  })

/** Blanks, tabs, newlines and backslashes are written as three octal digits. */
const unescaped = (field: string): string =>
  field.replace(/\\([0-7]{3})/g, (_, octal: string) => String.fromCharCode(Number.parseInt(octal, 8)))

/** The device that a node is, or that a swap file lies on. */
const deviceBehind = (path: string): Effect.Effect<string | null> =>
  Files.attempt(() => stat(path, { bigint: true })).pipe(
    Effect.map((stats) =>
      stats.isBlockDevice() ? Identity.ofNumber(stats.rdev) : stats.isFile() ? Identity.ofNumber(stats.dev) : null
    ),
    Effect.orElseSucceed(() => null)
  )
