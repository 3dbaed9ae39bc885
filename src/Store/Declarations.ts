import type { SqlError } from "@effect/sql/SqlError"
import { Effect, Option, Schema } from "effect"
import { hasClaimed } from "../../reconciler/Call.ts"
import type { Learned, NewEvent, Write } from "../../reconciler/Store.ts"
import { Binding, type Declaration, Deletion, Spec, unbound } from "../../schema/Declaration.ts"
import { GenerationConflict, PreconditionLost, StoreUnavailable } from "../../schema/Errors.ts"
import type { Name, Uid } from "../../schema/Ids.ts"
import type { Operation } from "../../schema/Operation.ts"
import * as Dialect from "./Dialect.ts"
import {
  decodeRows,
  DeclarationRow,
  fromDeclaration,
  keeping,
  normalised,
  now,
  type Session,
  toDeclaration,
  writing
} from "./Rows.ts"
import { read } from "./Transact.ts"

interface Cache {
  readonly byUid: Map<Uid, Declaration>
  readonly byName: Map<Name, Declaration>
  /** In bytewise order of name; null after a change. */
  sorted: ReadonlyArray<Declaration> | null
}

const sameBinding = Schema.equivalence(Binding)
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
  const living = read(sql`SELECT * FROM declarations WHERE removed_at IS NULL`).pipe(
    Effect.flatMap((rows) => decodeRows(session, "declarations", DeclarationRow, rows)),
    Effect.map((rows): Cache => {
      const found = rows.map(toDeclaration)
      return {
        byUid: new Map(found.map((declaration) => [declaration.uid, declaration])),
        byName: new Map(found.map((declaration) => [declaration.name, declaration])),
        sorted: null
      }
    })
  )
  const cache = keeping(session, living)
  const { forget, value: cached } = cache

  const remember = (changed: ReadonlyArray<Declaration>) =>
    cache.follow((known) => {
      for (const declaration of changed) {
        if (declaration.removed_at === null) {
          known.byUid.set(declaration.uid, declaration)
          known.byName.set(declaration.name, declaration)
        } else {
          known.byUid.delete(declaration.uid)
          known.byName.delete(declaration.name)
        }
      }
      if (changed.length > 0) known.sorted = null
      return known
    })

  const declarations = Effect.map(cached, (known) => {
    known.sorted ??= [...known.byUid.values()].sort((a, b) => (a.name < b.name ? -1 : 1))
    return known.sorted
  })

  const declaration = (name: Name) => Effect.map(cached, (known) => Option.fromNullable(known.byName.get(name)))

  /** Inside a transaction. A declaration that is removed already has its name still. */
  const nameOf = Effect.fnUntraced(function* (uid: Uid) {
    const known = cache.get()?.byUid.get(uid)
    if (known !== undefined) return known.name
    const [row] = yield* sql<{ name: string }>`SELECT name FROM declarations WHERE uid = ${uid}`
    return row === undefined ? null : row.name
  })

  const removedSince = (since: string) =>
    read(
      sql`SELECT * FROM declarations WHERE removed_at >= ${normalised(since)} ORDER BY removed_at DESC, uid LIMIT 10000`
    ).pipe(
      Effect.flatMap((rows) => decodeRows(session, "declarations", DeclarationRow, rows)),
      Effect.map((rows) => rows.map(toDeclaration))
    )

  /** The living declaration of this name as the row says, not the cache: this is what a compare-and-swap compares with. */
  const stored = Effect.fnUntraced(function* (name: Name) {
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

  /** Inside a transaction. The events are told by the caller, all of its writes at once. `undone`: calls that it cancels. */
  const writeOne = Effect.fnUntraced(function* (write: Write, undone: ReadonlyArray<Operation>) {
    const found = yield* stored(write.name)
    if (write.binding?.volume_id !== undefined && write.binding.volume_id !== null)
      yield* unclaimed(write.binding.volume_id, write.uid)
    if (write.expected_generation === null) {
      if (found !== null) return yield* conflict(write, found)
      return yield* insert(write)
    }
    if (found === null || found.uid !== write.uid || found.generation !== write.expected_generation)
      return yield* conflict(write, found)
    if (write.kind === "undeleted") yield* notBeingDeleted(write.uid)
    return yield* update(write, found, undone)
  })

  /** Inside a transaction. S4, asked of a bare column: no other living declaration has this volume. */
  const unclaimed = Effect.fnUntraced(function* (volume: string, uid: Uid) {
    const [claim] = yield* sql<{ name: string }>`SELECT name FROM declarations
      WHERE bound_volume_id = ${volume} AND removed_at IS NULL AND uid <> ${uid}`
    if (claim !== undefined)
      return yield* new PreconditionLost({ detail: `volume ${volume} belongs to the declaration ${claim.name}` })
  })

  /** Asked in the transaction, so that no delete is intended between the question and the undelete. */
  const notBeingDeleted = Effect.fnUntraced(function* (uid: Uid) {
    const [sent] = yield* sql<{ id: string }>`SELECT id FROM volume_operations
      WHERE uid = ${uid} AND type = 'delete' AND cause <> 'api' AND (unresolved_uid IS NOT NULL OR phase = 'settled')`
    if (sent !== undefined)
      return yield* new PreconditionLost({ detail: `the deletion of its volume has begun (operation ${sent.id})` })
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
      binding: { ...unbound, ...write.binding }
    }
    yield* sql`INSERT INTO declarations ${sql.insert({ ...fromDeclaration(made), written_by: write.actor })}`
    if (made.binding.export !== null) yield* saveExport(write.uid, made.binding)
    return { declaration: made, events: eventsOf(write) }
  })

  const update = Effect.fnUntraced(function* (write: Write, found: Declaration, undone: ReadonlyArray<Operation>) {
    const sameWish = sameSpec(write.spec, found.spec) && sameDeletion(write.deletion, found.deletion)
    if (write.generation < found.generation || (write.generation === found.generation && !sameWish))
      return yield* Effect.dieMessage(`a changed wish of ${write.name} needs a generation above ${found.generation}`)
    const binding = disclaimed(yield* bindingAfter(write, found), undone)
    const sameAside =
      write.set === found.set && sameManagers(write.managers, found.managers) && sameBinding(binding, found.binding)
    if (write.generation === found.generation && sameAside) return { declaration: found, events: [] }
    const made: Declaration = {
      ...found,
      generation: write.generation,
      updated_at: yield* now,
      set: write.set,
      managers: write.managers,
      spec: write.spec,
      deletion: write.deletion,
      binding
    }
    const row = { ...fromDeclaration(made), written_by: write.actor }
    yield* sql`UPDATE declarations SET ${sql.update(row, ["uid", "name", "living_name"])} WHERE uid = ${write.uid}`
    if (!sameExport(binding.export, found.binding.export)) yield* saveExport(write.uid, binding)
    return { declaration: made, events: write.generation === found.generation ? [] : eventsOf(write) }
  })

  /** What the loop learned since the write was decided is kept, and a volume never forgotten (S9). */
  const bindingAfter = (write: Write, { binding, generation, name }: Declaration) => {
    const volume_id = write.binding?.volume_id
    if (volume_id !== undefined && binding.volume_id !== null && binding.volume_id !== volume_id)
      return new PreconditionLost({ detail: `${name} has become bound to the volume ${binding.volume_id} meanwhile` })
    const kept = write.generation === generation ? binding : { ...binding, late: null }
    return Effect.succeed({ ...kept, ...write.binding })
  }

  /** Inside a transaction: store what was learned, where it differs. Answers what changed, for `remember`. */
  const learn = Effect.fnUntraced(function* ({ uid, from, ...learned }: Learned) {
    const known = (from === undefined ? cache.get() : yield* cache.load)?.byUid.get(uid)
    const binding =
      from === undefined || known === undefined ? learned.binding : onto(known.binding, from, learned.binding)
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
        const message = "the removal is carried out, the name is free"
        yield* session.tell([{ kind: "removal_finished", name: known?.name ?? null, uid, actor: null, message }])
        return known === undefined ? [] : [{ ...known, removed_at: at }]
      })
      yield* writing(session, close, remember, forget)
    })

  return {
    declarations,
    declaration,
    removedSince,
    bind,
    finishRemoval,
    nameOf,
    writeOne,
    unclaimed,
    learn,
    remember,
    forget
  }
}

export type Declarations = ReturnType<typeof make>

/** What differs from what was known is news; all else stays as it is stored. What was once met is never unmet again. */
const onto = (stored: Binding, from: Binding, learned: Binding): Binding => {
  const news = Object.entries(learned).filter(([key, value]) => !sameBinding({ ...from, [key]: value }, from))
  const binding: Binding = { ...stored, ...Object.fromEntries(news) }
  return { ...binding, settled_generation: Math.max(binding.settled_generation, stored.settled_generation) }
}

const conflict = (write: Write, found: Declaration | null) =>
  new GenerationConflict({
    name: write.name,
    expected: write.expected_generation,
    found: found?.generation ?? null
  })

const eventsOf = ({ kind, name, uid, actor, generation }: Write): ReadonlyArray<NewEvent> => [
  { kind, name, uid, actor, message: `${kind} at generation ${generation}` }
]

/** An attachment that was ours for a cancelled call's sake alone is somebody else's again (S23). */
const disclaimed = (binding: Binding, undone: ReadonlyArray<Operation>): Binding =>
  undone.some((call) => hasClaimed(call, binding.attachment)) ? { ...binding, attachment: null } : binding

const sameManagers = (a: Write["managers"], b: Write["managers"]) => {
  const keys = Object.keys(a)
  return (
    keys.length === Object.keys(b).length && keys.every((key) => a[key]?.by === b[key]?.by && a[key]?.at === b[key]?.at)
  )
}
