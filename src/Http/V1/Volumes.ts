import { Clock, Effect, Schema } from "effect"
import { CloudStackRead } from "../../../reconciler/CloudStack.ts"
import { VmId } from "../../../schema/Ids.ts"
import * as Answer from "../Answer.ts"
import { refuse, type Request } from "../Request.ts"
import { pageOf } from "../VolumeList.ts"
import * as Asking from "./Asking.ts"
import * as Sight from "./Sight.ts"

/** All volumes that CloudStack shows this account, by id. */
export const list = Effect.fnUntraced(function* (request: Request) {
  const sight = yield* Sight.look
  const name = request.query.get("name")
  const vm_id = request.query.get("vm_id")
  const matching = sight.cloud.volumes.filter(
    (row) => (name === null || row.name === name) && (vm_id === null || row.vm_id === vm_id)
  )
  const { items, next_cursor } = yield* pageOf(
    request,
    matching,
    ({ id }) => id,
    (row) => Sight.volume(sight, row),
    () => true
  )
  return Answer.ok(items, next_cursor === null ? {} : { "next-cursor": next_cursor })
})

/** A volume that came to be since the last observation is read now. */
export const get = Effect.fnUntraced(function* (request: Request) {
  const id = yield* Asking.volumeOf(request)
  const sight = yield* Sight.look
  const seen = Sight.rowOf(sight, id)
  if (seen !== null) return Answer.ok(yield* Sight.volume(sight, seen))
  const observed_at = Answer.rfc3339(yield* Clock.currentTimeMillis)
  const row = yield* Asking.readById(id)
  return row === null ? yield* Asking.unknownInPath(id) : Answer.ok(yield* Sight.volume(sight, row, observed_at))
})

/** ROOT volumes included. A VM of which nothing was listed yet may be new: CloudStack is asked anew for it. */
export const ofVm = Effect.fnUntraced(function* (request: Request) {
  const id = request.path["id"] ?? ""
  if (!Schema.is(VmId)(id)) return yield* noVm
  const sight = yield* Sight.look
  const on = <A extends { readonly vm_id: VmId | null }>(rows: ReadonlyArray<A>) => rows.filter((r) => r.vm_id === id)
  const seen = on(sight.cloud.volumes)
  const answer = (rows: typeof seen, observed_at?: string) =>
    Effect.map(
      Effect.forEach(rows, (row) => Sight.volume(sight, row, observed_at)),
      (volumes) => Answer.ok(volumes)
    )
  if (seen.length > 0) return yield* answer(seen)
  const cloudstack = yield* CloudStackRead
  const { found } = yield* cloudstack.virtualMachines([id])
  if (!found.some((vm) => vm.id === id)) return yield* noVm
  const listing = yield* cloudstack.volumes
  return yield* answer(on(listing.volumes), Answer.rfc3339(listing.started_at))
})

const noVm = refuse("NOT_FOUND", "CloudStack API error 431: there is no VM of this id")
