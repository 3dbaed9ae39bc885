import { Effect } from "effect"
import type { BigIntStats } from "node:fs"
import { lstat, readdir, readlink, realpath, stat } from "node:fs/promises"
import { dirname, join, resolve } from "node:path"
import { GuestUnavailable } from "../../schema/Errors.ts"
import * as Files from "./Files.ts"
import * as Identity from "./Identity.ts"

/** A by-id link that udev makes for a CloudStack volume, followed. */
export interface Link {
  readonly path: string
  /** The serial in its name. */
  readonly serial: string
  /** Lower is better. */
  readonly rank: number
  /** Identity of the node it resolves to. */
  readonly identity: string
}

export interface Broken {
  readonly path: string
  readonly problem: string
}

export interface Options {
  readonly by_id_dir: string
  /** The directory that must hold every link's target. */
  readonly dev_dir: string
  readonly device_kind: "block" | "file"
}

/** A machine has a few links a disk; a directory beyond this is not udev's. */
const ENTRIES_MAX = 16_384

/**
 * The names udev gives QEMU's disks with a 20-digit serial, on the three buses CloudStack uses (systemd's
 * `60-persistent-storage.rules`), best first. Links with other names (partitions, WWNs, the system's disks) are not ours.
 */
const NAMES = [
  /^virtio-([0-9a-f]{20})$/i,
  /^scsi-0QEMU_QEMU_HARDDISK_([0-9a-f]{20})$/i,
  /^scsi-SQEMU_QEMU_HARDDISK_([0-9a-f]{20})$/i,
  /^ata-QEMU_HARDDISK_([0-9a-f]{20})$/i
]

/** The serial in the name of such a link, or null. */
export const serialIn = (name: string): string | null =>
  NAMES.flatMap((pattern) => pattern.exec(name)?.[1] ?? [])[0] ?? null

/** Every link that bears a volume's serial, resolved or broken; none where the directory does not exist. */
export const read = Effect.fn("Devices.links")(function* (options: Options) {
  const names = yield* Files.attempt(() => readdir(options.by_id_dir)).pipe(
    Effect.catchIf(Files.isMissing, () => Effect.succeed([])),
    Effect.mapError(({ cause }) => new GuestUnavailable({ detail: `${options.by_id_dir} cannot be listed`, cause }))
  )
  if (names.length > ENTRIES_MAX) {
    return yield* new GuestUnavailable({ detail: `${options.by_id_dir} has more than ${ENTRIES_MAX} entries` })
  }
  const found = names.sort().flatMap((name) => {
    const rank = NAMES.findIndex((pattern) => pattern.test(name))
    const serial = NAMES[rank]?.exec(name)?.[1]
    return serial === undefined ? [] : [{ path: join(options.by_id_dir, name), serial, rank }]
  })
  const followed = yield* Effect.forEach(found, (link) => follow(options, link), { concurrency: 8 })
  return {
    links: followed.filter((one) => one !== null && "identity" in one),
    broken: followed.filter((one) => one !== null && "problem" in one)
  }
})

/** What a link is and where it leads; null for one that went away since the directory was listed. */
const follow = (options: Options, link: Omit<Link, "identity">): Effect.Effect<Link | Broken | null> =>
  Effect.gen(function* () {
    if (link.serial !== link.serial.toLowerCase()) return "its name is not in lower case"
    const entry = yield* Files.attempt(() => lstat(link.path)).pipe(
      Effect.catchIf(Files.isMissing, () => Effect.succeed(null))
    )
    if (entry === null) return null
    return entry.isSymbolicLink() ? yield* nodeOf(options, link.path) : "it is not a symbolic link"
  }).pipe(
    Effect.catchAll((error) =>
      Effect.succeed(
        Files.isMissing(error)
          ? "it dangles: its target does not exist"
          : `it cannot be followed: ${error.code ?? Files.printable(String(error.cause))}`
      )
    ),
    Effect.map((found) => {
      if (found === null) return null
      return typeof found === "string" ? { path: link.path, problem: found } : { ...link, identity: found.identity }
    })
  )

/** Exactly one hop, into the device directory, onto a node of the right kind: what udev makes. Else what is wrong. */
const nodeOf = Effect.fnUntraced(function* (options: Options, path: string) {
  const hop = yield* Files.attempt(async () => resolve(await realpath(dirname(path)), await readlink(path)))
  const node = yield* Files.attempt(() => realpath(path))
  const shown = Files.printable(node)
  if (node !== hop) return `it goes through another link to ${shown}`
  if (dirname(node) !== (yield* Files.attempt(() => realpath(options.dev_dir)))) {
    return `it leads out of ${options.dev_dir} to ${shown}`
  }
  const stats = yield* Files.attempt(() => stat(node, { bigint: true }))
  const right = options.device_kind === "block" ? stats.isBlockDevice() : stats.isFile()
  const identity = right ? Identity.ofStats(stats) : null
  return identity === null ? `${shown} is ${kindOf(stats)}` : { identity }
})

const kindOf = (stats: BigIntStats): string => {
  if (stats.isFile()) return "a regular file, not a block device"
  if (stats.isBlockDevice()) return "a block device, where the sandbox has files"
  if (stats.isCharacterDevice()) return "a character device, not a block device"
  if (stats.isDirectory()) return "a directory, not a block device"
  return "neither a block device nor a file"
}
