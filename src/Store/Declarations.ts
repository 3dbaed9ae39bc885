import type { SqlError } from "@effect/sql/SqlError"
import { Effect, Option, Schema } from "effect"
import type { Write } from "../../reconciler/Store.ts"
import { Binding, type Declaration, Deletion, Spec, unbound } from "../../schema/Declaration.ts"
import { GenerationConflict, StoreUnavailable } from "../../schema/Errors.ts"
import type { Name, Uid } from "../../schema/Ids.ts"
import * as Dialect from "./Dialect.ts"
import { decodeRows, DeclarationRow, fromDeclaration, now, type Session, toDeclaration, writing } from "./Rows.ts"
import { read } from "./Transact.ts"

/** What observation taught about one declaration. */
export interface Learned {
  readonly uid: Uid
  readonly binding: Binding
}

interface Cache {
  readonly byUid: Map<Uid, Declaration>
  readonly byName: Map<Name, Declaration>
  /** In bytewise order of name; null after a change. */
  sorted: ReadonlyArray<Declaration> | null
}

export const sameBinding = Schema.equivalence(Binding)
const sameExport = Schema.equivalence(Binding.fields.export)
const encodeBinding = Schema.encodeSync(Schema.parseJson(Binding))
const sameSpec = Schema.equivalence(Spec)
const sameDeletion = Schema.equivalence(Schema.NullOr(Deletion))

/**
 * Declarations. One process owns them, so the living ones are kept in memory, read once and changed by our own commits
 * only: a pass over ten thousand of them asks the database nothing. After a failed write they are read again.
 */
export const make = (session: Session) => {
  const { sql } = session
  let cache: Cache | null = null
  const forget = () => {
    cache = null
  }

  const load = Effect.gen(function* () {
    if (cache !== null) return cache
    const rows = yield* read(sql`SELECT * FROM declarations WHERE removed_at IS NULL`)
    const living = (yield* decodeRows(session, "declarations", DeclarationRow, rows)).map(toDeclaration)
    const loaded: Cache = {
      byUid: new Map(living.map((declaration) => [declaration.uid, declaration])),
      byName: new Map(living.map((declaration) => [declaration.name, declaration])),
      sorted: null
    }
    cache = loaded
    return loaded
  })
  const cached = Effect.suspend(() => (cache === null ? session.alone(load) : Effect.succeed(cache)))

  const remember = (changed: ReadonlyArray<Declaration>) => {
    if (cache === null) return
    for (const declaration of changed) {
      if (declaration.removed_at === null) {
        cache.byUid.set(declaration.uid, declaration)
        cache.byName.set(declaration.name, declaration)
      } else {
        cache.byUid.delete(declaration.uid)
        cache.byName.delete(declaration.name)
      }
    }
    if (changed.length > 0) cache.sorted = null
  }

  const declarations = Effect.map(cached, (known) => {
    known.sorted ??= [...known.byUid.values()].sort((a, b) => (a.name < b.name ? -1 : 1))
    return known.sorted
  })

  const declaration = (name: Name) => Effect.map(cached, (known) => Option.fromNullable(known.byName.get(name)))

  const removedSince = (since: string) =>
    read(
      sql`SELECT * FROM declarations WHERE removed_at >= ${normalised(since)} ORDER BY removed_at DESC, uid LIMIT 10000`
    ).pipe(
      Effect.flatMap((rows) => decodeRows(session, "declarations", DeclarationRow, rows)),
      Effect.map((rows) => rows.map(toDeclaration))
    )

  /** The living declaration of this name as the row says, not the cache: this is what a compare-and-swap compares with. */
  const living = Effect.fnUntraced(function* (name: Name) {
    const rows = yield* sql`SELECT * FROM declarations WHERE living_name = ${name}`
    const [row] = rows
    if (row === undefined) return null
    const [decoded] = yield* decodeRows(session, "declarations", DeclarationRow, rows)
    if (decoded !== undefined) return toDeclaration(decoded)
    const problem = session.undecodable.get(`declarations ${String(row.uid)}`)?.problem ?? "it does not decode"
    return yield* new StoreUnavailable({
      detail: `the stored declaration ${name} cannot be read (${problem}): restore it from a backup`,
      outcome_unknown: false
    })
  })

  const writeOne = Effect.fnUntraced(function* (write: Write) {
    const found = yield* living(write.name)
    if (write.expected_generation === null) {
      if (found !== null) return yield* conflict(write, found)
      return yield* insert(write)
    }
    if (found === null || found.uid !== write.uid || found.generation !== write.expected_generation)
      return yield* conflict(write, found)
    return yield* update(write, found)
  })

  const insert = Effect.fnUntraced(function* (write: Write) {
    const at = yield* now
    const made: Declaration = {
      name: write.name,
      uid: write.uid,
      generation: write.generation,
      created_at: at,
      updated_at: at,
      set: write.set,
      managers: write.managers,
      spec: write.spec,
      deletion: write.deletion,
      removed_at: null,
      binding: unbound
    }
    yield* sql`INSERT INTO declarations ${sql.insert({ ...fromDeclaration(made), written_by: write.actor })}`
    yield* recordWrite(write, at)
    return made
  })

  const update = Effect.fnUntraced(function* (write: Write, found: Declaration) {
    const sameWish = sameSpec(write.spec, found.spec) && sameDeletion(write.deletion, found.deletion)
    if (write.generation < found.generation || (write.generation === found.generation && !sameWish))
      return yield* Effect.dieMessage(`a changed wish of ${write.name} needs a generation above ${found.generation}`)
    const sameAside = write.set === found.set && sameManagers(write.managers, found.managers)
    if (write.generation === found.generation && sameAside) return found
    const at = yield* now
    const made: Declaration = {
      ...found,
      generation: write.generation,
      updated_at: at,
      set: write.set,
      managers: write.managers,
      spec: write.spec,
      deletion: write.deletion
    }
    const row = { ...fromDeclaration(made), written_by: write.actor }
    yield* sql`UPDATE declarations SET ${sql.update(row, ["uid", "name", "living_name"])} WHERE uid = ${write.uid}`
    if (write.generation !== found.generation) yield* recordWrite(write, at)
    return made
  })

  const recordWrite = (write: Write, at: string) =>
    sql`INSERT INTO events ${sql.insert({
      at,
      kind: write.kind,
      name: write.name,
      actor: write.actor,
      message: `${write.kind} at generation ${write.generation}`
    })}`

  const write = (writes: ReadonlyArray<Write>) =>
    writes.length === 0 ? Effect.succeed([]) : writing(session, Effect.forEach(writes, writeOne), remember, forget)

  /** Inside a transaction: store what was learned, where it differs. Answers what changed, for `remember`. */
  const learn = Effect.fnUntraced(function* ({ uid, binding }: Learned) {
    const known = cache?.byUid.get(uid)
    if (known !== undefined && sameBinding(known.binding, binding)) return []
    const raw = yield* sql`UPDATE declarations
      SET ${sql.update({ binding: encodeBinding(binding), bound_volume_id: binding.volume_id })} WHERE uid = ${uid}`.raw
    if (Dialect.affected(sql, raw) === 0) {
      yield* Effect.logWarning("learned something about a declaration that is gone").pipe(Effect.annotateLogs({ uid }))
      return []
    }
    if (known === undefined || !sameExport(known.binding.export, binding.export)) yield* saveExport(uid, binding)
    return known === undefined ? [] : [{ ...known, binding }]
  })

  const saveExport = Effect.fnUntraced(function* (uid: Uid, binding: Binding) {
    yield* sql`DELETE FROM exports WHERE uid = ${uid}`
    if (binding.export === null) return
    yield* sql`INSERT INTO exports ${sql.insert({
      uid,
      volume_id: binding.volume_id ?? "",
      export_name: binding.export.name,
      device_path: binding.export.path,
      settled_at: binding.export.settled_at
    })}`
  })

  const bind = (changes: ReadonlyArray<Learned>) =>
    Effect.gen(function* () {
      const known = yield* cached
      const differing = changes.filter(({ uid, binding }) => {
        const stored = known.byUid.get(uid)
        return stored === undefined || !sameBinding(stored.binding, binding)
      })
      if (differing.length === 0) return
      const learned = Effect.map(Effect.forEach(differing, learn), (lists) => lists.flat())
      yield* writing(session, learned, remember, forget)
    })

  /** An undelete that came in between wins: only a declaration that is still declared removed is closed. */
  const finishRemoval = (uid: Uid) =>
    Effect.gen(function* () {
      const known = (yield* cached).byUid.get(uid)
      const close: Effect.Effect<ReadonlyArray<Declaration>, SqlError> = Effect.gen(function* () {
        const at = yield* now
        const raw = yield* sql`UPDATE declarations SET removed_at = ${at}, living_name = NULL
          WHERE uid = ${uid} AND removed_at IS NULL AND deletion IS NOT NULL`.raw
        if (Dialect.affected(sql, raw) === 0) return []
        yield* sql`DELETE FROM exports WHERE uid = ${uid}`
        yield* sql`INSERT INTO events ${sql.insert({
          at,
          kind: "removal_finished",
          name: known?.name ?? null,
          actor: null,
          message: "the removal is carried out, the name is free"
        })}`
        return known === undefined ? [] : [{ ...known, removed_at: at }]
      })
      yield* writing(session, close, remember, forget)
    })

  return { declarations, declaration, removedSince, write, bind, finishRemoval, cached, learn, remember, forget }
}

export type Declarations = ReturnType<typeof make>

const conflict = (write: Write, found: Declaration | null) =>
  new GenerationConflict({
    name: write.name,
    expected: write.expected_generation,
    found: found?.generation ?? null
  })

const sameManagers = (a: Write["managers"], b: Write["managers"]) => {
  const keys = Object.keys(a)
  return (
    keys.length === Object.keys(b).length && keys.every((key) => a[key]?.by === b[key]?.by && a[key]?.at === b[key]?.at)
  )
}

/** Times are compared as text, so they must all carry milliseconds. */
export const normalised = (time: string): string => {
  const ms = Date.parse(time)
  return Number.isNaN(ms) ? time : new Date(ms).toISOString()
}
