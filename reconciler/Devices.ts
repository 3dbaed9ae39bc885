import { Context, type Effect, type Stream } from "effect"
import type { GuestUnavailable } from "../schema/Errors.ts"
import type { BlockDevice, GuestReading } from "../schema/Inventory.ts"

/** The guest kernel's disks: who is here, by serial. */
export class Devices extends Context.Tag("volumed/reconciler/Devices")<
  Devices,
  {
    /** A rescan: the fact. A by-id directory that does not exist is an empty one; sysfs that cannot be read is a failure. */
    readonly observe: Effect.Effect<GuestReading, GuestUnavailable>
    /**
     * Writes what the kernel still buffers for this disk to it, and has the disk write it through. Failure means that
     * acknowledged bytes may not be there, or that the path leads to another disk by now.
     */
    readonly flush: (disk: Pick<BlockDevice, "kernel_path" | "identity">) => Effect.Effect<void, GuestUnavailable>
    /** Something may have changed; carries nothing and may lie in both directions. Never ends, never fails. */
    readonly pokes: Stream.Stream<void>
  }
>() {}
