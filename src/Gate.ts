import { Context, Effect, Layer, Ref } from "effect"
import * as Fs from "node:fs"
import { Gate, isForFence } from "../reconciler/Gate.ts"
import { Leadership, obstacle, type Role } from "../reconciler/Leadership.ts"
import { GateClosed } from "../schema/Errors.ts"
import type { Settings } from "../schema/Settings.ts"

/** Closes the gate for good: for a daemon that is shutting down. */
export class Shutter extends Context.Tag("volumed/src/Gate/Shutter")<
  Shutter,
  { readonly close: (reason: string) => Effect.Effect<void> }
>() {}

/** Of a hold file's text, bytes: enough for a reason. */
const REASON_BYTES = 1024

/**
 * The hold file is looked at in every check, so it works at once, and whatever else does not. The term is read again
 * last, so that nothing else comes between it and the wire.
 */
export const layer = (
  options: Pick<Settings, "hold_file" | "dry_run">
): Layer.Layer<Gate | Shutter, never, Leadership> =>
  Layer.effectContext(
    Effect.gen(function* () {
      const leadership = yield* Leadership
      const closed = yield* Ref.make(options.dry_run ? "this is a dry run" : null)
      const held = Effect.flatMap(Ref.get(closed), (reason) =>
        reason === null ? Effect.sync(() => heldBy(options.hold_file)) : Effect.succeed(reason)
      )
      const reason = Effect.gen(function* () {
        return (yield* held) ?? obstacle(yield* leadership.role)
      })
      const check = Effect.gen(function* () {
        const detail = yield* held
        if (detail !== null) return yield* new GateClosed({ detail })
        if (yield* isForFence) return yield* unlessElsewhere(yield* leadership.role)
        yield* leadership.check
      })
      const close = (reason: string) => Ref.update(closed, (earlier) => earlier ?? reason)
      return Context.make(Gate, { check, reason }).pipe(Context.add(Shutter, { close }))
    })
  )

const unlessElsewhere = (role: Role): Effect.Effect<void, GateClosed> =>
  role._tag === "Standby" ? Effect.fail(new GateClosed({ detail: obstacle(role) ?? "" })) : Effect.void

/** Only a file that is proven absent leaves the gate open; a dangling link or one that cannot be looked at closes it. */
export const heldBy = (file: string): string | null => {
  try {
    // Throws for every problem but absence, which a missing directory on the way is too.
    if (Fs.lstatSync(file, { throwIfNoEntry: false }) === undefined) return null
  } catch (cause) {
    return `the hold file ${file} cannot be looked at: ${cause instanceof Error ? cause.message : String(cause)}`
  }
  const text = firstBytes(file)
  return text === "" ? `the hold file ${file} is there` : `the hold file ${file} says: ${text}`
}

/** Not blocking, for it may be a pipe; "" when it cannot be read, for its being there is what counts. */
const firstBytes = (file: string): string => {
  try {
    const descriptor = Fs.openSync(file, Fs.constants.O_RDONLY | Fs.constants.O_NONBLOCK)
    try {
      if (!Fs.fstatSync(descriptor).isFile()) return ""
      const buffer = Buffer.alloc(REASON_BYTES)
      const length = Fs.readSync(descriptor, buffer, 0, REASON_BYTES, 0)
      return printable(buffer.toString("utf8", 0, length))
    } finally {
      Fs.closeSync(descriptor)
    }
  } catch {
    return ""
  }
}

const printable = (text: string) => text.replaceAll(/[\u0000-\u001f\u007f-\u009f\u2028\u2029]+/g, " ").trim()
