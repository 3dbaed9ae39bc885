import { Context, Effect, Layer, Ref } from "effect"
import { Reconciler } from "../../reconciler/Reconciler.ts"
import { Store } from "../../reconciler/Store.ts"
import type * as Api from "../../schema/Api.ts"
import type { Declaration } from "../../schema/Declaration.ts"
import type { CloudVolume } from "../../schema/Inventory.ts"
import * as Answer from "./Answer.ts"
import type { RequestRefused } from "./ErrorAnswer.ts"
import { flag, limit, optionalFlag, refuse, type Request } from "./Request.ts"
import { removedOnes, toAnswer } from "./Volumes.ts"
import * as Wait from "./Wait.ts"

/** Events a reading of the history takes at once. */
const EVENTS_PAGE = 1000

/** The newest event, found by reading on from where the last look ended. */
export class EventCursor extends Context.Tag("volumed/Http/EventCursor")<EventCursor, Ref.Ref<number>>() {}

export const layerEventCursor: Layer.Layer<EventCursor> = Layer.effect(EventCursor, Ref.make(0))

export const list = Effect.fn("VolumeList.list")(function* (request: Request) {
  // Read first: an event that comes while we read the declarations is then told again rather than lost.
  const event_id = yield* newestEvent
  if (yield* flag(request.query, "unmanaged")) return Answer.ok({ ...(yield* unmanagedPage(request)), event_id })
  const store = yield* Store
  const removed = yield* flag(request.query, "removed")
  const declarations = removed ? yield* removedOnes : yield* store.declarations
  const matches = yield* filterOf(request.query)
  const page = yield* pageOf(request, declarations.filter(matches), ({ name, uid }) => `${name} ${uid}`)
  const condition = request.query.get("condition")
  const wanted = condition === null ? null : yield* Wait.condition(condition, "condition")
  if (wanted === null) {
    const items = yield* Effect.forEach(page.items, toAnswer)
    return Answer.ok({ items, next_cursor: page.next_cursor, event_id } satisfies Api.VolumeList)
  }
  const all = yield* Effect.forEach(declarations.filter(matches), toAnswer)
  const holding = all.filter(({ status }) => Wait.holds(status, wanted))
  const found = yield* pageOf(request, holding, ({ name, uid }) => `${name} ${uid}`)
  return Answer.ok({ ...found, event_id } satisfies Api.VolumeList)
})

const newestEvent = Effect.gen(function* () {
  const store = yield* Store
  const cursor = yield* EventCursor
  for (;;) {
    const after = yield* Ref.get(cursor)
    const events = yield* store.events(after, EVENTS_PAGE)
    const newest = events.reduce((id, event) => Math.max(id, event.id), after)
    yield* Ref.update(cursor, (id) => Math.max(id, newest))
    if (events.length === 0) return newest
  }
})

const filterOf = (query: URLSearchParams): Effect.Effect<(declaration: Declaration) => boolean, RequestRefused> =>
  Effect.gen(function* () {
    const paused = yield* optionalFlag(query, "paused")
    const volume_id = query.get("volume_id")
    const attached_to = query.get("attached_to")
    const set = query.get("set")
    const metadata = [...query].flatMap(([key, value]) =>
      key.startsWith("metadata.") ? [[key.slice("metadata.".length), value] as const] : []
    )
    return ({ spec, binding, set: own }) =>
      (paused === null || paused === (spec.paused !== null)) &&
      (volume_id === null || volume_id === (binding.volume_id ?? spec.volume_id)) &&
      (attached_to === null || attached_to === spec.attached_to || attached_to === binding.attachment?.vm_id) &&
      (set === null || set === own) &&
      metadata.every(([key, value]) => Object.hasOwn(spec.metadata, key) && spec.metadata[key] === value)
  })

/** Attached data volumes, as seen last, that no living declaration stands behind. */
const unmanagedPage = (request: Request) =>
  Effect.gen(function* () {
    const store = yield* Store
    const reconciler = yield* Reconciler
    const { inventory } = yield* reconciler.view
    if (inventory === null || inventory.cloud._tag === "Unread") {
      return yield* refuse("CLOUDSTACK_UNAVAILABLE", "CloudStack has not been read, so what is unmanaged is not known")
    }
    const declared = new Set(
      (yield* store.declarations).flatMap(({ spec, binding }) => [spec.volume_id, binding.volume_id])
    )
    const items = inventory.cloud.value.volumes.flatMap((volume) =>
      declared.has(volume.id) ? [] : unmanaged(volume, inventory.appliance_vm_id)
    )
    return yield* pageOf(request, items, ({ volume_id }) => volume_id)
  })

const unmanaged = (volume: CloudVolume, appliance: string): ReadonlyArray<Api.Unmanaged> =>
  volume.vm_id === null || volume.type !== "DATADISK"
    ? []
    : [
        {
          volume_id: volume.id,
          name: volume.name,
          type: volume.type,
          state: volume.state,
          size: volume.size,
          attached_to: volume.vm_id,
          vm_name: volume.vm_name,
          on_appliance: volume.vm_id === appliance
        }
      ]

/** In bytewise order of `key`, after the cursor: a page stays right while rows come and go. */
const pageOf = <A>(request: Request, items: ReadonlyArray<A>, key: (item: A) => string) =>
  Effect.gen(function* () {
    const size = yield* limit(request.query)
    const cursor = request.query.get("cursor")
    const after = cursor === null ? "" : yield* fromCursor(cursor)
    const sorted = items.toSorted((a, b) => (key(a) < key(b) ? -1 : 1)).filter((item) => key(item) > after)
    const page = sorted.slice(0, size)
    const last = page.at(-1)
    const next_cursor = sorted.length > size && last !== undefined ? toCursor(key(last)) : null
    return { items: page, next_cursor }
  })

const toCursor = (key: string) => Buffer.from(key, "utf8").toString("base64url")

const fromCursor = (cursor: string): Effect.Effect<string, RequestRefused> => {
  const key = Buffer.from(cursor, "base64url").toString("utf8")
  return /^[\u0021-\u007e ]{1,300}$/u.test(key) && toCursor(key) === cursor
    ? Effect.succeed(key)
    : Effect.fail(refuse("INVALID_REQUEST", "cursor: expected next_cursor of the page before"))
}
