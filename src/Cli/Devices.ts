import { Effect, Ref } from "effect"
import type { V1Device } from "../../schema/Api.ts"
import type { Invocation } from "./Arguments.ts"
import { Daemon } from "./Daemon.ts"
import * as Follow from "./Follow.ts"
import * as Look from "./Look.ts"
import { clean, Output, show, showEach, size, table, type Paint } from "./Output.ts"

/** Between two looks of --watch: a disk takes longer than this to arrive. */
const PERIOD_MS = 1_000

/** Disks of the appliance, with the names that their volumes are declared under. */
export const devices = Effect.fn("Devices.devices")(function* (invocation: Invocation) {
  const { client } = yield* Daemon
  const output = yield* Output
  const seen = yield* client.v1.devices
  const watching = invocation.flags.has("watch")
  if (seen.length > 0 || output.form !== "table") {
    const names = output.form === "table" ? yield* Look.declaredNames : new Map<string, string>()
    // A watch is a line a change for programs; the first lines are what is there.
    if (watching && output.form !== "table") yield* Effect.forEach(changes([], seen), shown)
    else yield* show(seen, (paint) => list(seen, names, paint))
  } else yield* output.note("The appliance has no disks.\n")
  if (!watching) return "done" as const
  if (output.form === "table") yield* output.note("Showing every change from now on; Ctrl-C ends it.\n")
  return yield* follow(seen)
})

const follow = Effect.fn("Devices.follow")(function* (seen: ReadonlyArray<V1Device>) {
  const { client } = yield* Daemon
  const before = yield* Ref.make(seen)
  const look = Effect.gen(function* () {
    // A daemon that restarts is no change of the disks.
    const now = yield* Follow.patient(client.v1.devices, Infinity)
    yield* Effect.forEach(changes(yield* Ref.getAndSet(before, now), now), shown)
  })
  return yield* Effect.forever(Effect.zipRight(Effect.sleep(PERIOD_MS), look))
})

interface Change {
  readonly change: "added" | "removed" | "changed"
  readonly device: V1Device
}

/** A disk is the same one while its path and its serial are. */
export const changes = (before: ReadonlyArray<V1Device>, after: ReadonlyArray<V1Device>): ReadonlyArray<Change> => {
  const key = (device: V1Device) => `${device.path} ${device.serial ?? ""}`
  const old = new Map(before.map((device) => [key(device), device]))
  const now = new Set(after.map(key))
  const removed = before.flatMap((device): ReadonlyArray<Change> =>
    now.has(key(device)) ? [] : [{ change: "removed", device }]
  )
  const rest = after.flatMap((device): ReadonlyArray<Change> => {
    const one = old.get(key(device))
    if (one === undefined) return [{ change: "added", device }]
    return same(one, device) ? [] : [{ change: "changed", device }]
  })
  return [...removed, ...rest]
}

/** Times of the last look aside. */
const same = (a: V1Device, b: V1Device): boolean =>
  a.size === b.size && a.by_id_path === b.by_id_path && a.mapped === b.mapped && a.volume_id === b.volume_id

const shown = (change: Change) =>
  showEach(change, (paint) => {
    const { device } = change
    const facts = [device.path, size(device.size), device.serial ?? "no serial", device.volume_id ?? "no volume"]
    const text = clean(facts.join("  "))
    switch (change.change) {
      case "added":
        return paint.good(`+ ${text}`) + "\n"
      case "removed":
        return paint.bad(`- ${text}`) + "\n"
      case "changed":
        return paint.warn(`~ ${text}`) + "\n"
    }
  })

const list = (devices: ReadonlyArray<V1Device>, names: ReadonlyMap<string, string>, paint: Paint): string =>
  table(
    ["DEVICE", "SIZE", "CONTROLLER", "SERIAL", "NAME", "VOLUME", "BY-ID"],
    devices.map((device) => [
      device.path,
      size(device.size),
      device.controller ?? "-",
      device.serial ?? "-",
      names.get(device.volume_id ?? "") ?? "-",
      device.volume_id ?? "-",
      device.by_id_path ?? "-"
    ]),
    (cell, column, row) => (column === 4 && devices[row]?.mapped === true ? paint.good(cell) : cell)
  )
