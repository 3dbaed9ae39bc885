import { Clock, Effect } from "effect"
import { Reconciler } from "../../reconciler/Reconciler.ts"
import { Store } from "../../reconciler/Store.ts"
import type * as Api from "../../schema/Api.ts"
import type { Declaration } from "../../schema/Declaration.ts"
import type { CloudVolume } from "../../schema/Inventory.ts"
import * as Answer from "./Answer.ts"
import type { RequestRefused } from "./ErrorAnswer.ts"
import * as PlanAnswer from "./PlanAnswer.ts"
import { flag, limit, optionalFlag, refuse, type Request } from "./Request.ts"
import { removedOnes, toAnswer } from "./Volumes.ts"
import * as Wait from "./Wait.ts"

export const list = Effect.fnUntraced(function* (request: Request) {
  const store = yield* Store
  // Read first: an event that comes while we read the declarations is then told again rather than lost.
  const { newest: event_id } = yield* store.eventRange
  if (yield* flag(request.query, "unmanaged")) return Answer.ok({ ...(yield* unmanagedPage(request)), event_id })
  const removed = yield* flag(request.query, "removed")
  const declarations = removed ? yield* removedOnes : yield* store.declarations
  const matching = declarations.filter(yield* filterOf(request.query))
  const condition = request.query.get("condition")
  const wanted = condition === null ? null : yield* Wait.condition(condition, "condition")
  const holding = (volume: Api.Volume) => wanted === null || Wait.holds(volume.status, wanted)
  const page = yield* pageOf(request, matching, ({ name, uid }) => `${name} ${uid}`, toAnswer, holding)
  return Answer.ok({ ...page, event_id } satisfies Api.VolumeList)
})

const filterOf = (
  query: URLSearchParams
): Effect.Effect<(declaration: Declaration) => boolean, RequestRefused, PlanAnswer.Site | Reconciler> =>
  Effect.gen(function* () {
    const paused = yield* optionalFlag(query, "paused")
    const now = yield* Clock.currentTimeMillis
    const volume_id = query.get("volume_id")
    const attached_to = query.get("attached_to")
    const { appliance_vm_id } = yield* PlanAnswer.Site
    const { inventory } = yield* Effect.flatMap(Reconciler, ({ view }) => view)
    const seen = new Map(
      attached_to === null || inventory === null || inventory.cloud._tag === "Unread"
        ? []
        : inventory.cloud.value.volumes.map(({ id, vm_id }) => [id, vm_id])
    )
    /** The words by which somebody may ask for where a volume is wanted, is by our doing, or was seen last. */
    const places = (spec: Declaration["spec"], { attachment, volume_id }: Declaration["binding"]) => {
      const bound = volume_id ?? spec.volume_id
      const observed = bound === null ? null : seen.get(bound)
      const vms: ReadonlyArray<string> = [spec.attached_to ?? [], attachment?.vm_id ?? [], observed ?? []].flat()
      const here = vms.includes("appliance") || vms.includes(appliance_vm_id)
      return new Set(here ? [...vms, "appliance", appliance_vm_id] : vms)
    }
    const set = query.get("set")
    const metadata = [...query].flatMap(([key, value]) =>
      key.startsWith("metadata.") ? [[key.slice("metadata.".length), value] as const] : []
    )
    return ({ spec, binding, set: own }) =>
      (paused === null || paused === isPaused(spec, now)) &&
      (volume_id === null || volume_id === (binding.volume_id ?? spec.volume_id)) &&
      (attached_to === null || places(spec, binding).has(attached_to)) &&
      (set === null || set === own) &&
      metadata.every(([key, value]) => Object.hasOwn(spec.metadata, key) && spec.metadata[key] === value)
  })

/** A pause that is over is none, though it stays written. */
const isPaused = ({ paused }: Declaration["spec"], now: number): boolean =>
  paused !== null && (paused.until === undefined || Date.parse(paused.until) > now)

/** What only a declaration has: an answer that passed it over would show what was not asked for. */
const ofDeclarations = (key: string) =>
  ["condition", "set", "paused", "removed"].includes(key) || key.startsWith("metadata.")

/** Attached data volumes, as seen last, that no living declaration stands behind. */
const unmanagedPage = (request: Request) =>
  Effect.gen(function* () {
    const { query } = request
    const wrong = [...query.keys()].find(ofDeclarations)
    if (wrong !== undefined) {
      return yield* refuse("INVALID_REQUEST", `${wrong}: expected only for declared volumes, not beside unmanaged`)
    }
    const [volume_id, attached_to] = [query.get("volume_id"), query.get("attached_to")]
    const store = yield* Store
    const reconciler = yield* Reconciler
    const { inventory } = yield* reconciler.view
    if (inventory === null || inventory.cloud._tag === "Unread") {
      return yield* refuse("CLOUDSTACK_UNAVAILABLE", "CloudStack has not been read, so what is unmanaged is not known")
    }
    const declared = new Set(
      (yield* store.declarations).flatMap(({ spec, binding }) => [spec.volume_id, binding.volume_id])
    )
    const items = inventory.cloud.value.volumes
      .flatMap((volume) => (declared.has(volume.id) ? [] : unmanaged(volume, inventory.appliance_vm_id)))
      .filter((one) => volume_id === null || volume_id === one.volume_id)
      .filter((one) => [null, one.attached_to, one.on_appliance ? "appliance" : null].includes(attached_to))
    return yield* pageOf(
      request,
      items,
      ({ volume_id }) => volume_id,
      Effect.succeed,
      () => true
    )
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

/**
 * In bytewise order of `key`, after the cursor: a page stays right while rows come and go. Rows are made into answers one
 * by one until the page is full, so that a filter on an answer costs no more than the rows it passes over.
 */
export const pageOf = <A, B, E, R>(
  request: Request,
  items: ReadonlyArray<A>,
  key: (item: A) => string,
  make: (item: A) => Effect.Effect<B, E, R>,
  keep: (made: B) => boolean
) =>
  Effect.gen(function* () {
    const size = yield* limit(request.query)
    const cursor = request.query.get("cursor")
    const after = cursor === null ? "" : yield* fromCursor(cursor)
    const sorted = items.filter((item) => key(item) > after).sort((a, b) => (key(a) < key(b) ? -1 : 1))
    const page: Array<B> = []
    let last = after
    for (const item of sorted) {
      const made = yield* make(item)
      if (!keep(made)) continue
      if (page.length === size) return { items: page, next_cursor: toCursor(last) }
      page.push(made)
      last = key(item)
    }
    return { items: page, next_cursor: null }
  })

const toCursor = (key: string) => Buffer.from(key, "utf8").toString("base64url")

const fromCursor = (cursor: string): Effect.Effect<string, RequestRefused> => {
  const key = Buffer.from(cursor, "base64url").toString("utf8")
  return /^[\u0021-\u007e ]{1,300}$/u.test(key) && toCursor(key) === cursor
    ? Effect.succeed(key)
    : Effect.fail(refuse("INVALID_REQUEST", "cursor: expected next_cursor of the page before"))
}
