import { Data, Effect, Schema } from "effect"
import type { Volume } from "../../schema/Api.ts"
import { Name, OperationId, serialOf } from "../../schema/Ids.ts"
import { nearest } from "../../schema/Nearest.ts"
import * as Daemon from "./Daemon.ts"

export class HandleUnknown extends Data.TaggedError("HandleUnknown")<{ readonly message: string }> {}

/**
 * The declarations that a HANDLE means. A declared name wins over everything else; then the first kind of identity that
 * matches. Only a VM id can mean several volumes.
 */
export const match = (handle: string, volumes: ReadonlyArray<Volume>): ReadonlyArray<Volume> => {
  for (const means of kinds) {
    const found = volumes.filter((volume) => means(volume, handle))
    if (found.length > 0) return found
  }
  return []
}

const kinds: ReadonlyArray<(volume: Volume, handle: string) => boolean> = [
  (volume, handle) => volume.name === handle,
  (volume, handle) => volumeId(volume) === handle.toLowerCase(),
  // A sandbox's device directory is elsewhere; its disks are still called /dev/vdb here.
  (volume, handle) => handle.startsWith("/dev/") && named(volume.status.kernel_path, handle),
  (volume, handle) => named(volume.status.by_id_path, handle),
  (volume, handle) => volume.status.export?.name === handle,
  (volume, handle) => volume.status.volume_id !== null && serialOf(volume.status.volume_id) === handle.toLowerCase(),
  (volume, handle) => volume.status.attached_to === handle.toLowerCase()
]

/** The volume that is declared, where none was observed yet. */
const volumeId = (volume: Volume): string | null => volume.status.volume_id ?? volume.spec.volume_id

const named = (path: string | null, handle: string): boolean => path !== null && baseName(path) === baseName(handle)

const baseName = (path: string): string => path.slice(path.lastIndexOf("/") + 1)

/** All that the handle means; at least one. An operation's id means the declaration it belongs to. */
export const resolve = Effect.fn("Handle.resolve")(function* (handle: string) {
  // One look instead of a whole list, for that is what nearly every handle is.
  const declared = isName(handle) ? yield* Daemon.find(handle) : null
  if (declared !== null) return [declared]
  if (isOperation(handle)) return [yield* ofOperation(handle)]
  const volumes = yield* Daemon.volumes()
  const found = match(handle, volumes)
  if (found.length > 0) return found
  return yield* new HandleUnknown({ message: unknown(handle, volumes) })
})

export const isName = Schema.is(Name)
export const isOperation = Schema.is(OperationId)

const ofOperation = Effect.fn("Handle.ofOperation")(function* (id: string) {
  const { client } = yield* Daemon.Daemon
  const { name, uid } = yield* client.operation(id)
  const volume = yield* Daemon.find(name)
  // The name may be another declaration's by now.
  if (volume?.uid === uid) return volume
  return yield* new HandleUnknown({ message: `${id} belongs to ${name}, which is no longer declared` })
})

/** The one volume that the handle means. */
export const resolveOne = Effect.fn("Handle.resolveOne")(function* (handle: string) {
  const [first, second, ...more] = yield* resolve(handle)
  if (first !== undefined && second === undefined) return first
  const names = [first, second, ...more].flatMap((volume) => (volume === undefined ? [] : [volume.name]))
  return yield* new HandleUnknown({
    message: `${JSON.stringify(handle)} means ${names.length} volumes: ${names.slice(0, 10).join(", ")}. Name one of them.`
  })
})

const unknown = (handle: string, volumes: ReadonlyArray<Volume>): string => {
  const near = nearest(
    handle,
    volumes.map((volume) => volume.name)
  )
  const hint = near === null ? "List them with: volumed get" : `Did you mean ${near}?`
  return `nothing declared is called ${JSON.stringify(handle)}. ${hint}`
}
