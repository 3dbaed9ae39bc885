import { Effect } from "effect"
import type * as Api from "../../../schema/Api.ts"
import type { BlockDevice } from "../../../schema/Inventory.ts"
import * as Answer from "../Answer.ts"
import { refuse, type Request } from "../Request.ts"
import * as Asking from "./Asking.ts"
import * as Sight from "./Sight.ts"

/** The disk that a volume is on the appliance, as long as CloudStack and the guest both say so. */
export const mapping = Effect.fnUntraced(function* (request: Request) {
  const id = yield* Asking.volumeOf(request)
  const sight = yield* withGuest
  const row = Sight.rowOf(sight, id)
  const device = row === null ? null : Sight.deviceHere(sight, row)
  if (row === null || device === null) return yield* notHere
  return Answer.ok(yield* Sight.mapping(sight, row, device))
})

const notHere = refuse("NOT_FOUND", "the volume is no disk of the appliance now", "attach it to the appliance first")

/** Every disk of the appliance, whether a volume is known for it or not. */
export const list = Effect.fnUntraced(function* () {
  const sight = yield* withGuest
  const devices = yield* Effect.forEach(sight.guest?.devices ?? [], (device) => answer(sight, device))
  return Answer.ok(devices)
})

const answer = (sight: Sight.Sight, device: BlockDevice) =>
  Effect.gen(function* () {
    const row = Sight.volumeOf(sight, device)
    const here = row !== null && Sight.deviceHere(sight, row) !== null
    const [by_id_path] = device.by_id_paths
    return {
      path: device.kernel_path,
      ...(by_id_path === undefined ? {} : { by_id_path }),
      size: device.size,
      ...(device.controller === null ? {} : { controller: device.controller }),
      ...(device.serial === null ? {} : { serial: device.serial }),
      mapped: here,
      ...(row === null ? {} : { volume_id: row.id }),
      ...(here ? { mapping: yield* Sight.mapping(sight, row, device) } : {})
    } satisfies Api.V1Device as Api.V1Device
  })

/** By kernel path, by-id path, or the last part of either. */
export const volume = Effect.fnUntraced(function* (request: Request) {
  const path = request.path["path"] ?? ""
  const sight = yield* withGuest
  const device = (sight.guest?.devices ?? []).find((one) => namesOf(one).includes(path))
  const row = device === undefined ? null : Sight.volumeOf(sight, device)
  if (row === null) return yield* refuse("NOT_FOUND", "no volume is known for a disk of this path")
  return Answer.ok(yield* Sight.volume(sight, row))
})

const namesOf = ({ by_id_paths, kernel_name, kernel_path }: BlockDevice): ReadonlyArray<string> => [
  kernel_name,
  kernel_path,
  ...by_id_paths.flatMap((path) => [path, path.slice(path.lastIndexOf("/") + 1)])
]

/** What is not read is not absent. */
const withGuest = Effect.filterOrFail(
  Sight.look,
  ({ guest }) => guest !== null,
  () => refuse("OVERLOADED", "the disks of the appliance have not been read", "repeat the request")
)
