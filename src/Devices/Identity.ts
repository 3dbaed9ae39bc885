import { Effect } from "effect"
import type { BigIntStats } from "node:fs"
import { lstat } from "node:fs/promises"
import * as Files from "./Files.ts"

/**
 * Who a node is, as compared with an open descriptor of another process: `major:minor` for a block device,
 * `file:dev:ino` for a regular file (the sandbox's disks); null for everything else, which is no disk.
 */
export const ofStats = (stats: BigIntStats): string | null => {
  if (stats.isBlockDevice()) return ofNumber(stats.rdev)
  if (stats.isFile()) return `file:${stats.dev}:${stats.ino}`
  return null
}

/** A `dev_t` as sysfs and mountinfo write it. Linux packs 12 + 20 bits and keeps the old 8 + 8 in place (`sys/sysmacros.h`). */
export const ofNumber = (number: bigint): string => {
  const major = ((number >> 8n) & 0xfffn) | ((number >> 32n) & 0xfffff000n)
  const minor = (number & 0xffn) | ((number >> 12n) & 0xffffff00n)
  return `${major}:${minor}`
}

/** Who the regular file at `path` is, links not followed; null where there is none. */
export const ofFile = (path: string): Effect.Effect<string | null> =>
  Files.attempt(() => lstat(path, { bigint: true })).pipe(
    Effect.map((stats) => (stats.isFile() ? ofStats(stats) : null)),
    Effect.orElseSucceed(() => null)
  )
