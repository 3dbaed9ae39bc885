import { Effect } from "effect"
import { Reconciler } from "../../reconciler/Reconciler.ts"
import { Store } from "../../reconciler/Store.ts"
import type * as Api from "../../schema/Api.ts"
import type { Declaration } from "../../schema/Declaration.ts"
import { exportNameOf, serialOf } from "../../schema/Ids.ts"
import type { BlockDevice, Inventory, NbdReading, Source } from "../../schema/Inventory.ts"
import type { NbdSettings } from "../../schema/Settings.ts"
import * as Answer from "./Answer.ts"
import { refuse, type Request } from "./Request.ts"

/** What is written down and what is served, beside what is wanted, and who is connected. */
export const list = (settings: Pick<NbdSettings, "backend" | "host" | "port">) =>
  Effect.fnUntraced(function* () {
    const store = yield* Store
    return Answer.ok(make(settings, yield* store.declarations, yield* seenNow))
  })

/** A scan of the processes takes no longer, or what the last pass saw has to do. */
const SCAN_LIMIT = "2 seconds"

/** As observed last, but for the clients: they come and go between passes. */
const seenNow = Effect.gen(function* () {
  const { connections, view } = yield* Reconciler
  const { inventory } = yield* view
  if (inventory === null || inventory.nbd._tag === "Unread") return inventory
  const { nbd } = inventory
  const holders = yield* connections.pipe(
    Effect.timeout(SCAN_LIMIT),
    Effect.orElseSucceed(() => nbd.value.holders)
  )
  return { ...inventory, nbd: { ...nbd, value: { ...nbd.value, holders } } }
})

export const make = (
  settings: Pick<NbdSettings, "backend" | "host" | "port">,
  declarations: ReadonlyArray<Declaration>,
  inventory: Inventory | null
): Api.Exports => {
  const nbd = reading(inventory?.nbd ?? null)
  const owners = new Map<string, Declaration>()
  for (const declaration of declarations) {
    const name = exportName(declaration)
    if (name !== null) owners.set(name, declaration)
  }
  const wanted = [...owners].flatMap(([name, declaration]) => (isWanted(declaration) ? [name] : []))
  const names = [...new Set([...(nbd?.sections ?? []).map(({ name }) => name), ...wanted])]
  const devices = reading(inventory?.guest ?? null)?.devices ?? []
  const port = nbd?.port ?? settings.port
  const ports = { port, read_only_port: nbd?.read_only_port ?? port }
  const exports = names.map((name) => {
    const owner = owners.get(name) ?? null
    return one({ name, owner, elsewhere: isElsewhere(owner, inventory), nbd, devices, ...ports })
  })
  return {
    server: {
      engine: nbd?.engine ?? settings.backend,
      version: nbd?.version ?? null,
      host: nbd?.host ?? settings.host,
      port,
      state: nbd?.server.state ?? "unknown"
    },
    count: exports.length,
    exports
  }
}

const reading = <A>(source: Source<A> | null): A | null => (source?._tag === "Known" ? source.value : null)

const exportName = ({ binding, spec }: Declaration): string | null => {
  const volume = binding.volume_id ?? spec.volume_id
  return binding.export?.name ?? (volume === null ? null : exportNameOf(volume))
}

/** Seen on no VM, or on another one than the appliance. */
const isElsewhere = (owner: Declaration | null, inventory: Inventory | null): boolean => {
  const volume = owner?.binding.volume_id ?? null
  const row = reading(inventory?.cloud ?? null)?.volumes.find(({ id }) => id === volume)
  return row !== undefined && row.vm_id !== inventory?.appliance_vm_id
}

const isWanted = ({ spec, deletion }: Declaration) => spec.export_wanted === true && deletion === null

interface One {
  readonly name: string
  readonly owner: Declaration | null
  readonly elsewhere: boolean
  /** Null while the NBD side has not been read. */
  readonly nbd: NbdReading | null
  readonly devices: ReadonlyArray<BlockDevice>
  readonly port: number
  readonly read_only_port: number
}

const one = ({ name, owner, elsewhere, nbd, devices, port, read_only_port }: One): Api.ExportAnswer => {
  const section = nbd?.sections.find((candidate) => candidate.name === name) ?? null
  const verified = nbd?.verifications.findLast((candidate) => candidate.name === name) ?? null
  const volume_id = owner?.binding.volume_id ?? owner?.spec.volume_id ?? null
  const device = devices.find(
    ({ serial, by_id_paths }) =>
      (volume_id !== null && serial === serialOf(volume_id)) ||
      (section !== null && section.path !== null && by_id_paths.includes(section.path))
  )
  const path = device?.by_id_paths[0] ?? section?.path ?? ""
  // A foreign section may name a letter or a file, and a link may have come to mean another disk: clients may hold either.
  const identities = [section?.device, device?.identity, verified?.device]
  const served = verified?.outcome === "served"
  const holders = (nbd?.holders ?? []).filter(({ peer, device: held }) => peer !== null && identities.includes(held))
  const read_only = verified?.read_only ?? section?.read_only ?? owner?.spec.read_only ?? false
  const fenced_at = section?.fenced_at ?? null
  return {
    id: volume_id ?? name,
    name,
    export_name: name,
    volume_id: volume_id ?? "",
    device_path: section?.path ?? path,
    by_id_path: path,
    kernel_path: device?.kernel_path ?? "",
    port: (section?.read_only ?? read_only) ? read_only_port : port,
    status: fenced_at === null ? statusOf(owner, nbd, served, verified?.outcome ?? null) : "fenced",
    wanted: owner !== null && isWanted(owner),
    configured: section !== null,
    served,
    size: verified?.size ?? device?.size ?? 0,
    read_only,
    connections: holders.map(({ peer, pid, since }) => ({ peer, pid, since })),
    verified_at: verified === null ? null : Answer.rfc3339(verified.verified_at),
    problem:
      fenced_at === null
        ? problemOf(nbd, served, elsewhere && section === null ? NOT_HERE : (verified?.message ?? null))
        : fencedFor(fenced_at, holders.length)
  }
}

const statusOf = (
  owner: Declaration | null,
  nbd: NbdReading | null,
  served: boolean,
  outcome: string | null
): Api.ExportAnswer["status"] => {
  if (nbd === null) return "unknown"
  if (owner === null) return "foreign"
  if (served) return "active"
  return outcome === null || outcome === "unknown" ? "pending" : "failed"
}

const fencedFor = (since: number, clients: number): string =>
  `fenced since ${Answer.rfc3339(since)}: new clients are denied, ${clients === 1 ? "1 is" : `${clients} are`} connected`

/** Nothing is amiss then: its name is unknown to the server because it has to be. */
const NOT_HERE = "the volume is not on the appliance"

const problemOf = (nbd: NbdReading | null, served: boolean, message: string | null): string | null => {
  if (nbd === null) return "the NBD server has not been read"
  return served ? null : (message ?? nbd.server.problem ?? nbd.config_problem)
}

/** One export by its volume's id; a section that no declaration stands behind goes by its name. */
export const get = (settings: Pick<NbdSettings, "backend" | "host" | "port">) =>
  Effect.fnUntraced(function* (request: Request) {
    const store = yield* Store
    const { exports } = make(settings, yield* store.declarations, yield* seenNow)
    const found = exports.find(({ id }) => id === request.path["id"])
    return found === undefined
      ? yield* refuse("NOT_FOUND", "there is no export of this volume", "GET /api/v1/exports lists what there is")
      : Answer.ok(found)
  })
