import { Effect } from "effect"
import type * as Api from "../../schema/Api.ts"
import type { Invocation } from "./Arguments.ts"
import * as Confirm from "./Confirm.ts"
import { Daemon } from "./Daemon.ts"
import * as Handle from "./Handle.ts"
import { clean, Output, show, table, type Paint } from "./Output.ts"

export const operations = Effect.fn("Operations.operations")(function* (invocation: Invocation) {
  const { client } = yield* Daemon
  const output = yield* Output
  const id = invocation.positionals[0]
  if (id !== undefined && Handle.isOperation(id)) {
    const operation = yield* client.operation(id)
    yield* show(operation, (paint) => operationText(operation, paint))
    return "done" as const
  }
  const of = id === undefined ? {} : { name: (yield* Handle.resolveOne(id)).name }
  const { items, next } = yield* client.operations({ limit: OPERATIONS_SHOWN, ...of })
  if (items.length === 0 && output.form === "table") {
    yield* output.note("No operations yet.\n")
    return "done" as const
  }
  yield* show(items, (paint) => operationList(items, paint))
  if (next !== null) yield* output.note(`The newest ${items.length} are shown.\n`)
  return "done" as const
})

/** There is no plan to show: the wish goes back to what stood there before, and the next plan follows from that. */
export const cancel = Effect.fn("Operations.cancel")(function* (invocation: Invocation) {
  const { client } = yield* Daemon
  const output = yield* Output
  const operation = yield* client.operation(invocation.positionals[0] ?? "")
  yield* output.note(operationText(operation, output.notePaint))
  yield* Confirm.ask(`Cancel this ${operation.type} and take its wish back?`)
  const cancelled = yield* client.cancel(operation.id)
  yield* show(cancelled, () => `${cancelled.id} is ${cancelled.status}.\n`)
  return "done" as const
})

const OPERATIONS_SHOWN = 100

const operationList = (items: ReadonlyArray<Api.OperationAnswer>, paint: Paint): string =>
  table(
    ["ID", "TYPE", "NAME", "STATUS", "PHASE", "CAUSE", "CREATED", "ERROR"],
    items.map((o) => [o.id, o.type, o.name, o.status, o.phase, o.cause, o.created_at, o.error ?? ""]),
    (cell, column, row) => {
      const status = items[row]?.status
      if (column !== 3) return cell
      if (status === "failed") return paint.bad(cell)
      return status === "completed" ? paint.good(cell) : cell
    }
  )

const operationText = (operation: Api.OperationAnswer, paint: Paint): string => {
  const facts: ReadonlyArray<readonly [string, string | undefined]> = [
    ["declaration", `${operation.name} (generation ${operation.generation})`],
    ["volume", operation.volume_id],
    ["VM", operation.vm_id],
    ["status", `${operation.status} (${operation.phase})`],
    ["cause", `${operation.cause}, by ${operation.actor}`],
    ["reason", typeof operation.request["reason"] === "string" ? operation.request["reason"] : undefined],
    ["CloudStack job", operation.job_id],
    ["attempts", String(operation.attempts)],
    ["created", operation.created_at],
    ["updated", operation.updated_at],
    ["completed", operation.completed_at],
    ["part of", operation.parent_id],
    ["error", operation.error]
  ]
  const rows = facts.flatMap(([label, fact]) => (fact ? [`  ${label.padEnd(16)}${clean(fact)}\n`] : []))
  return `${paint.strong(`${operation.type} ${operation.id}`)}\n${rows.join("")}`
}
