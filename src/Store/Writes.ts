import { Array as Arr, Effect } from "effect"
import * as Call from "../../reconciler/Call.ts"
import type { Alongside, Write } from "../../reconciler/Store.ts"
import { GenerationConflict } from "../../schema/Errors.ts"
import type { OperationId, Uid } from "../../schema/Ids.ts"
import type { Operation } from "../../schema/Operation.ts"
import type { Declarations } from "./Declarations.ts"
import type { KeyedAnswers } from "./KeyedAnswers.ts"
import type { Operations } from "./Operations.ts"
import * as Dialect from "./Dialect.ts"
import { decodeOperations, type Session, writing } from "./Rows.ts"

/** Declarations whose open calls are looked for at once. */
const CHUNK = 500

/** Writes of declarations with all that belongs to them, one transaction each. */
export const make = (session: Session, declarations: Declarations, operations: Operations, keys: KeyedAnswers) => {
  const { sql } = session
  const created = sql(Dialect.createdColumn(sql))

  const write = (writes: ReadonlyArray<Write>, alongside: Alongside = {}) => {
    const { calls = [], ends = [], answer } = alongside
    if (writes.length + calls.length + ends.length === 0 && answer === undefined) return Effect.succeed([])
    const body = Effect.gen(function* () {
      // The key comes first: a repeat is told to look its answer up, not that somebody else was quicker.
      if (answer !== undefined) yield* keys.add(answer)
      const cancelled = yield* superseded(writes, new Set(ends.map(({ id }) => id)))
      const results = yield* Effect.forEach(writes, (one) => declarations.writeOne(one, cancelled.get(one.uid) ?? []))
      yield* session.tell(results.flatMap(({ events }) => events))
      const ended = yield* Effect.forEach(ends, ({ id, advance }) => operations.end(id, advance))
      yield* Effect.forEach(ended, (call) => informed(call, writes), { discard: true })
      const undone = [...ended.filter(({ status }) => status !== "completed"), ...[...cancelled.values()].flat()]
      yield* Effect.forEach(writes, (one) => cancel(one, cancelled.get(one.uid) ?? []), { discard: true })
      yield* Effect.forEach(undone, operations.disown, { discard: true })
      yield* Effect.forEach(calls, (call) => operations.accept(call, undone), { discard: true })
      return results.map(({ declaration }) => declaration)
    })
    return writing(session, body, declarations.remember, declarations.forget)
  }

  /** The earlier calls on these declarations, oldest first, that still wish what is declared no more. */
  const superseded = Effect.fnUntraced(function* (writes: ReadonlyArray<Write>, ended: ReadonlySet<OperationId>) {
    const byUid = new Map(writes.map((write) => [write.uid, write]))
    const found = new Map<Uid, Array<Operation>>()
    for (const uids of Arr.chunksOf([...byUid.keys()], CHUNK)) {
      const rows = yield* sql`SELECT * FROM volume_operations
        WHERE ${sql.in("open_call_uid", uids)} AND status IN ('pending', 'executing') ORDER BY ${created}, id`
      for (const call of yield* decodeOperations(session, rows)) {
        const newest = byUid.get(call.uid)
        if (newest === undefined || ended.has(call.id) || !Call.isSuperseded(call, newest)) continue
        found.set(call.uid, [...(found.get(call.uid) ?? []), call])
      }
    }
    return found
  })

  const cancel = ({ actor, generation }: Write, cancelled: ReadonlyArray<Operation>) =>
    Effect.forEach(
      cancelled,
      ({ id, phase }) => {
        const error = `superseded by generation ${generation}, written by ${actor}`
        return operations.move(id, { phase, status: "cancelled", error })
      },
      { discard: true }
    )

  /**
   * A wish was taken back in the belief that nothing was sent for it, and an action was begun meanwhile: what it still
   * does would not show as late. Decided anew, as after any other write in between.
   */
  const informed = Effect.fnUntraced(function* ({ uid }: Operation, writes: ReadonlyArray<Write>) {
    const taken = writes.find((write) => write.uid === uid)
    if (taken === undefined || (taken.binding?.late ?? null) !== null) return
    if ((yield* operations.underWay(uid)).length === 0) return
    const { expected_generation: expected, generation, name } = taken
    return yield* new GenerationConflict({ name, expected, found: generation })
  })

  return { write }
}
