import { Array as Arr, Effect } from "effect"
import * as Call from "../../reconciler/Call.ts"
import type { Alongside, Write } from "../../reconciler/Store.ts"
import type { Declaration } from "../../schema/Declaration.ts"
import type { OperationId } from "../../schema/Ids.ts"
import type { Declarations } from "./Declarations.ts"
import type { KeyedAnswers } from "./KeyedAnswers.ts"
import type { Operations } from "./Operations.ts"
import { decodeRows, OperationRow, type Session, writing } from "./Rows.ts"

/** Declarations whose open calls are looked for at once. */
const CHUNK = 500

interface Written {
  readonly after: Declaration
  readonly actor: string
}

/** Writes of declarations with all that belongs to them, one transaction each. */
export const make = (session: Session, declarations: Declarations, operations: Operations, keys: KeyedAnswers) => {
  const { sql } = session

  const write = (writes: ReadonlyArray<Write>, alongside: Alongside = {}) => {
    const { calls = [], ends = [], answer } = alongside
    if (writes.length + calls.length + ends.length === 0 && answer === undefined) return Effect.succeed([])
    const body = Effect.gen(function* () {
      // The key comes first: a repeat is told to look its answer up, not that somebody else was quicker.
      if (answer !== undefined) yield* keys.add(answer)
      const results = yield* Effect.forEach(writes, (one) =>
        Effect.map(declarations.writeOne(one), (result) => ({ ...result, actor: one.actor }))
      )
      yield* session.tell(results.flatMap(({ events }) => events))
      yield* Effect.forEach(ends, ({ id, advance }) => operations.end(id, advance), { discard: true })
      const ended = new Set(ends.map(({ id }) => id))
      const written = results.map(({ declaration, actor }) => ({ after: declaration, actor }))
      yield* Effect.forEach(Arr.chunksOf(written, CHUNK), (chunk) => supersede(chunk, ended), { discard: true })
      yield* Effect.forEach(calls, operations.accept, { discard: true })
      return written.map(({ after }) => after)
    })
    return writing(session, body, declarations.remember, declarations.forget)
  }

  /** Cancels what earlier calls still wished of these declarations and they declare no more. */
  const supersede = Effect.fnUntraced(function* (written: ReadonlyArray<Written>, ended: ReadonlySet<OperationId>) {
    const byUid = new Map(written.map((one) => [one.after.uid, one]))
    const rows = yield* sql`SELECT * FROM volume_operations
      WHERE ${sql.in("open_call_uid", [...byUid.keys()])} AND status IN ('pending', 'executing')`
    for (const call of yield* decodeRows(session, "volume_operations", OperationRow, rows)) {
      const newest = byUid.get(call.uid)
      if (newest === undefined || ended.has(call.id) || !Call.isSuperseded(call, newest.after)) continue
      const error = `superseded by generation ${newest.after.generation}, written by ${newest.actor}`
      yield* operations.move(call.id, { phase: call.phase, status: "cancelled", error })
    }
  })

  return { write }
}
