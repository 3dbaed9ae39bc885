import * as Reactivity from "@effect/experimental/Reactivity"
import * as MysqlClient from "@effect/sql-mysql2/MysqlClient"
import * as SqlClient from "@effect/sql/SqlClient"
import type { Connection } from "@effect/sql/SqlConnection"
import { Effect } from "effect"

export interface Said {
  readonly text: string
  readonly values: ReadonlyArray<unknown>
}

/** A client on MySQL that passes everything on to `inner`, and writes it down. */
export const make = Effect.fnUntraced(function* (inner: SqlClient.SqlClient, said: Array<Said>) {
  const note = <A>(text: string, values: ReadonlyArray<unknown>, answer: A) => {
    said.push({ text, values })
    return answer
  }
  const wrap = (connection: Connection): Connection => ({
    ...connection,
    execute: (text, values, transform) => note(text, values, connection.execute(text, values, transform)),
    executeRaw: (text, values) => note(text, values, connection.executeRaw(text, values)),
    executeUnprepared: (text, values, transform) =>
      note(text, values, connection.executeUnprepared(text, values, transform))
  })
  const acquirer = Effect.map(inner.reserve, wrap)
  return yield* SqlClient.make({
    acquirer,
    transactionAcquirer: acquirer,
    compiler: MysqlClient.makeCompiler(),
    spanAttributes: []
  }).pipe(Effect.provide(Reactivity.layer))
})
