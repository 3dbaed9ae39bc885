import { Effect, Schema } from "effect"
import type { DeviceMapping, DeviceMappingRow } from "../../reconciler/Store.ts"
import * as Predecessor from "./Predecessor.ts"
import { decodeRows, keeping, now, type Session, writing } from "./Rows.ts"
import { read } from "./Transact.ts"

const MappingRow = Schema.Struct({
  id: Schema.String,
  volume_id: Schema.String,
  vm_id: Schema.String,
  device_path: Schema.String,
  size: Schema.Number,
  last_sync: Schema.String,
  created_at: Schema.String,
  updated_at: Schema.String
}) satisfies Schema.Schema<DeviceMappingRow>

/** Which volume is which device of the appliance, for existing readers of the table. */
export const make = (session: Session) => {
  const { sql } = session
  // Rows of the predecessor are evidence of what it did and are not ours to show.
  const stored = read(sql`SELECT * FROM device_mappings ORDER BY volume_id`).pipe(
    Effect.flatMap((rows) =>
      decodeRows(session, "device_mappings", MappingRow, rows.filter(Predecessor.isOurs).map(Predecessor.read))
    )
  )

  const cache = keeping(
    session,
    Effect.map(
      stored,
      (rows): ReadonlyMap<string, DeviceMappingRow> => new Map(rows.map((row) => [row.volume_id, row]))
    )
  )

  const saveDeviceMappings = Effect.fnUntraced(function* (mappings: ReadonlyArray<DeviceMapping>) {
    const known = yield* cache.value
    const wanted = yield* unambiguous(mappings)
    const kept = new Map<string, DeviceMappingRow>()
    const fresh: Array<DeviceMappingRow> = []
    const at = yield* now
    for (const mapping of wanted) {
      const have = known.get(mapping.volume_id)
      if (have !== undefined && sameMapping(have, mapping)) kept.set(mapping.volume_id, have)
      else
        fresh.push({
          ...mapping,
          id: have?.id ?? `dm-${session.newId()}`,
          created_at: have?.created_at ?? at,
          updated_at: at,
          last_sync: at
        })
    }
    const gone = [...known.keys()].filter((volume_id) => !kept.has(volume_id))
    if (gone.length === 0 && fresh.length === 0) return
    yield* writing(
      session,
      Effect.gen(function* () {
        // All old rows go before a new one comes: two volumes may have changed places on their unique paths.
        yield* Effect.forEach(gone, (volume_id) => sql`DELETE FROM device_mappings WHERE volume_id = ${volume_id}`)
        // Whoever else has a row for the volume or the path: there can be only one of each, and this one was just seen.
        yield* Effect.forEach(
          fresh,
          ({ volume_id, device_path }) =>
            sql`DELETE FROM device_mappings WHERE volume_id = ${volume_id} OR device_path = ${device_path}`
        )
        yield* Effect.forEach(fresh, storeMapping)
      }),
      () => cache.follow(() => new Map([...kept, ...fresh.map((row) => [row.volume_id, row] as const)])),
      cache.forget
    )
  })

  const storeMapping = (row: DeviceMappingRow) => {
    const states = { cloudstack_state: "attached", linux_state: "detected" }
    return sql`INSERT INTO device_mappings ${sql.insert(Predecessor.written(sql, { ...row, ...states }))}`
  }

  return { saveDeviceMappings, deviceMappings: stored }
}

const sameMapping = (a: DeviceMapping, b: DeviceMapping) =>
  a.vm_id === b.vm_id && a.device_path === b.device_path && a.size === b.size

/** Two volumes on one path, or one volume twice: none of them is mapped, and the others do not suffer for it (S19). */
const unambiguous = Effect.fnUntraced(function* (mappings: ReadonlyArray<DeviceMapping>) {
  const count = (of: (mapping: DeviceMapping) => string) => {
    const seen = new Map<string, number>()
    for (const mapping of mappings) seen.set(of(mapping), (seen.get(of(mapping)) ?? 0) + 1)
    return seen
  }
  const volumes = count((mapping) => mapping.volume_id)
  const paths = count((mapping) => mapping.device_path)
  const clear = mappings.filter(
    (mapping) => volumes.get(mapping.volume_id) === 1 && paths.get(mapping.device_path) === 1
  )
  if (clear.length < mappings.length)
    yield* Effect.logWarning("device mappings that contradict each other are left out").pipe(
      Effect.annotateLogs({ left_out: mappings.length - clear.length })
    )
  return clear.map(({ volume_id, vm_id, device_path, size }) => ({ volume_id, vm_id, device_path, size }))
})
