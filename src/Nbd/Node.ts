import { Effect } from "effect"
import type { BigIntStats } from "node:fs"
import { type FileHandle, readFile, stat } from "node:fs/promises"
import { dirname } from "node:path"
import type { LoadRequest, WantedExport } from "../../reconciler/Nbd.ts"
import { PreconditionLost } from "../../schema/Errors.ts"
import type { Settings } from "../../schema/Settings.ts"
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

/**
 * The exports of a request whose paths still mean what was planned, and the first failure of the others, which must hold up
 * nobody else's (S19). Fails with that where nothing would be left to do.
 */
export const still = (
  options: Pick<Settings, "by_id_dir" | "device_kind">,
  { drop, set }: Pick<LoadRequest, "drop" | "set">
): Effect.Effect<Still, PreconditionLost> =>
  Effect.gen(function* () {
    const [failures, there] = yield* Effect.partition(set, (wanted) => Effect.as(stillThere(options, wanted), wanted), {
      concurrency: 8
    })
    const lost = failures[0] ?? null
    if (lost !== null && there.length + drop.length === 0) return yield* lost
    return { there, lost }
  })

interface Still {
  readonly there: ReadonlyArray<WantedExport>
  readonly lost: PreconditionLost | null
}

/** The by-id path must still mean the very device that was planned: nothing else may get this export's name. */
const stillThere = (
  { by_id_dir, device_kind }: Pick<Settings, "by_id_dir" | "device_kind">,
  wanted: WantedExport
): Effect.Effect<void, PreconditionLost> =>
  Effect.gen(function* () {
    const lost = (detail: string) => new PreconditionLost({ detail: `${wanted.path} ${detail}` })
    if (dirname(wanted.path) !== by_id_dir) {
      return yield* lost(`of ${wanted.name} is not in ${by_id_dir}`)
    }
    const node = yield* at(wanted.path)
    if (node === null || node.kind !== device_kind) return yield* lost("leads to no disk any more")
    if (node.identity !== wanted.device) return yield* lost(`is now ${node.identity}, not ${wanted.device}`)
    if (node.size !== wanted.size) return yield* lost(`now has ${node.size ?? "unknown"} bytes, not ${wanted.size}`)
  })
