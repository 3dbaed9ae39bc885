import { Effect } from "effect"
import { open } from "node:fs/promises"
import { GuestUnavailable } from "../../schema/Errors.ts"
import type { BlockDevice } from "../../schema/Inventory.ts"
import * as Files from "./Files.ts"
import * as Identity from "./Identity.ts"

/**
 * What NBD clients wrote lies in the block device's own page cache, which every descriptor of it shares: one fsync writes
 * all of it and has the disk flush (`blkdev_fsync`). Opened to read, so that a read-only disk is flushed too.
 */
export const flush = ({
  identity,
  kernel_path
}: Pick<BlockDevice, "kernel_path" | "identity">): Effect.Effect<void, GuestUnavailable> =>
  Effect.acquireUseRelease(
    Files.attempt(() => open(kernel_path, "r")),
    (file) =>
      Effect.gen(function* () {
        const stats = yield* Files.attempt(() => file.stat({ bigint: true }))
        const found = Identity.ofStats(stats)
        if (found !== identity) {
          return yield* new GuestUnavailable({ detail: `${kernel_path} is ${found ?? "no disk"} now, not ${identity}` })
        }
        yield* Files.attempt(() => file.sync())
      }),
    (file) => Effect.ignore(Files.attempt(() => file.close()))
  ).pipe(
    Effect.catchTag(
      "FileFailed",
      ({ cause, code }) =>
        new GuestUnavailable({ detail: `${kernel_path} could not be flushed: ${code ?? "unknown"}`, cause })
    )
  )
