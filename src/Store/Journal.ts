import { Effect, Schema } from "effect"
import type { Approval, DeviceMapping, EventRow } from "../../reconciler/Store.ts"
import { Condition } from "../../schema/Condition.ts"
import type { Uid } from "../../schema/Ids.ts"
import { Held } from "../../schema/Action.ts"
import { ConditionsRow, decodeRows, now, type Session, writing } from "./Rows.ts"
import { read } from "./Transact.ts"

const EVENTS_MAX = 1000

type Conditions = ReadonlyArray<Condition>
const sameConditions = Schema.equivalence(Schema.Array(Condition))
const encodeConditions = Schema.encodeSync(Schema.parseJson(Schema.Array(Condition)))

const ApprovalRow = Schema.Struct({ ...Held.fields, digest: Schema.String, expires_at: Schema.Int })

const EventRowSchema = Schema.Struct({
  id: Schema.Int,
  at: Schema.String,
  kind: Schema.String,
  name: Schema.NullOr(Schema.String),
  actor: Schema.NullOr(Schema.String),
  message: Schema.String
})

const MappingRow = Schema.Struct({
  id: Schema.String,
  volume_id: Schema.String,
  vm_id: Schema.String,
  device_path: Schema.String,
  size: Schema.Number,
  created_at: Schema.String
})
type MappingRow = typeof MappingRow.Type

/** What is kept for people and across restarts: events, approvals, conditions, device mappings. */
export const make = (session: Session) => {
  const { sql } = session
  let conditionsCache: Map<Uid, Conditions> | null = null
  let mappingsCache: ReadonlyMap<string, MappingRow> | null = null

  const record = (event: Omit<EventRow, "id" | "at">) =>
    writing(
      session,
      Effect.gen(function* () {
        const { kind, name, actor, message } = event
        yield* sql`INSERT INTO events ${sql.insert({ at: yield* now, kind, name, actor, message })}`
      }),
      () => {},
      () => {}
    )

  const events = (after: number, limit: number) =>
    read(
      sql`SELECT * FROM events WHERE id > ${after} ORDER BY id LIMIT ${Math.min(EVENTS_MAX, Math.max(1, limit))}`
    ).pipe(Effect.flatMap((rows) => decodeRows(session, "events", EventRowSchema, rows)))

  const approvals = (at: number) =>
    read(sql`SELECT * FROM approvals WHERE expires_at > ${at} ORDER BY name, action`).pipe(
      Effect.flatMap((rows) => decodeRows(session, "approvals", ApprovalRow, rows))
    )

  const approve = (given: ReadonlyArray<Approval>) =>
    writing(
      session,
      Effect.forEach(
        given,
        Effect.fnUntraced(function* ({ uid, generation, volume_id, action, name, digest, expires_at }: Approval) {
          yield* sql`DELETE FROM approvals WHERE uid = ${uid} AND generation = ${generation}
            AND volume_id = ${volume_id} AND action = ${action}`
          const row = { uid, generation, volume_id, action, name, digest, expires_at }
          yield* sql`INSERT INTO approvals ${sql.insert(row)}`
        }),
        { discard: true }
      ),
      () => {},
      () => {}
    )

  const loadConditions = Effect.gen(function* () {
    if (conditionsCache !== null) return conditionsCache
    const rows = yield* read(sql`SELECT uid, conditions FROM conditions`)
    const loaded = new Map<Uid, Conditions>()
    for (const row of yield* decodeRows(session, "conditions", ConditionsRow, rows)) loaded.set(row.uid, row.conditions)
    conditionsCache = loaded
    return loaded
  })
  const knownConditions = Effect.suspend(() =>
    conditionsCache === null ? session.alone(loadConditions) : Effect.succeed(conditionsCache)
  )

  const conditions = Effect.map(knownConditions, (known): ReadonlyMap<Uid, Conditions> => new Map(known))

  const saveConditions = Effect.fnUntraced(function* (
    changes: ReadonlyArray<{ readonly uid: Uid; readonly conditions: Conditions }>
  ) {
    const known = yield* knownConditions
    const differing = changes.filter((change) => !sameConditions(known.get(change.uid) ?? [], change.conditions))
    if (differing.length === 0) return
    yield* writing(
      session,
      Effect.forEach(differing, storeConditions, { discard: true }),
      () => {
        for (const change of differing) conditionsCache?.set(change.uid, change.conditions)
      },
      () => {
        conditionsCache = null
      }
    )
  })

  const storeConditions = Effect.fnUntraced(function* (change: { readonly uid: Uid; readonly conditions: Conditions }) {
    const row = { uid: change.uid, conditions: encodeConditions(change.conditions), updated_at: yield* now }
    yield* sql`DELETE FROM conditions WHERE uid = ${change.uid}`
    yield* sql`INSERT INTO conditions ${sql.insert(row)}`
  })

  const loadMappings = Effect.gen(function* () {
    if (mappingsCache !== null) return mappingsCache
    const rows = yield* read(sql`SELECT * FROM device_mappings`)
    const decoded = yield* decodeRows(session, "device_mappings", MappingRow, rows)
    mappingsCache = new Map(decoded.map((row) => [row.volume_id, row]))
    return mappingsCache
  })
  const knownMappings = Effect.suspend(() =>
    mappingsCache === null ? session.alone(loadMappings) : Effect.succeed(mappingsCache)
  )

  const saveDeviceMappings = Effect.fnUntraced(function* (mappings: ReadonlyArray<DeviceMapping>) {
    const known = yield* knownMappings
    const wanted = yield* unambiguous(mappings)
    const kept = new Map<string, MappingRow>()
    const fresh: Array<MappingRow> = []
    const at = yield* now
    for (const mapping of wanted) {
      const have = known.get(mapping.volume_id)
      if (have !== undefined && sameMapping(have, mapping)) kept.set(mapping.volume_id, have)
      else
        fresh.push({
          ...mapping,
          id: have?.id ?? `dm-${session.newId()}`,
          created_at: have?.created_at ?? at
        })
    }
    const gone = [...known.keys()].filter((volume_id) => !kept.has(volume_id))
    if (gone.length === 0 && fresh.length === 0) return
    yield* writing(
      session,
      Effect.gen(function* () {
        // All old rows go before a new one comes: two volumes may have changed places on their unique paths.
        yield* Effect.forEach(gone, (volume_id) => sql`DELETE FROM device_mappings WHERE volume_id = ${volume_id}`)
        yield* Effect.forEach(fresh, (row) => storeMapping(row, at))
      }),
      () => {
        mappingsCache = new Map([...kept, ...fresh.map((row) => [row.volume_id, row] as const)])
      },
      () => {
        mappingsCache = null
      }
    )
  })

  const storeMapping = (row: MappingRow, at: string) =>
    sql`INSERT INTO device_mappings ${sql.insert({
      ...row,
      cloudstack_state: "attached",
      linux_state: "detected",
      last_sync: at,
      updated_at: at
    })}`

  return { record, events, approvals, approve, conditions, saveConditions, saveDeviceMappings }
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
