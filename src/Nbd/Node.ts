import { Effect } from "effect"
import type { BigIntStats } from "node:fs"
import { type FileHandle, readFile, stat } from "node:fs/promises"
import * as Files from "../Devices/Files.ts"
import * as Identity from "../Devices/Identity.ts"

/** What a path means at a moment. */
export interface Node {
  /** As in BlockDevice. */
  readonly identity: string
  /** Bytes; null where the kernel does not say. */
  readonly size: number | null
  readonly kind: "block" | "file"
}

/** What a path leads to, links followed, as long as it can be a disk. */
export const at = (path: string): Effect.Effect<Node | null> => describe(() => stat(path, { bigint: true }))

/** What an open file is, whatever its path leads to by now. */
export const of = (file: FileHandle): Effect.Effect<Node | null> => describe(() => file.stat({ bigint: true }))

const describe = (look: () => Promise<BigIntStats>): Effect.Effect<Node | null> =>
  Effect.gen(function* () {
    const stats = yield* Files.attempt(look)
    const identity = Identity.ofStats(stats)
    if (identity === null) return null
    if (stats.isFile()) return { identity, size: Number(stats.size), kind: "file" } satisfies Node
    const sectors = yield* Files.attempt(() => readFile(`/sys/dev/block/${identity}/size`, "latin1"))
    const size = /^\d{1,13}$/.test(sectors.trim()) ? Number(sectors) * 512 : null
    return { identity, size, kind: "block" } satisfies Node
  }).pipe(Effect.orElseSucceed(() => null))
