import { Effect } from "effect"
import type * as Api from "../../schema/Api.ts"
import * as Confirm from "./Confirm.ts"
import { Output, planText, show, type Paint } from "./Output.ts"

/** A plan before a change: the result itself where people read it, beside it where a program reads the result. */
export const preview = Effect.fn("Change.preview")(function* (planned: Api.DryRun) {
  const output = yield* Output
  if (output.form === "table") yield* output.result(`${planText(planned.text, output.paint)}\n`)
  else yield* output.note(`${planText(planned.text, output.notePaint)}\n`)
})

/** Something that changes: its plan, the question, the write, what became of it. */
export const change = Effect.fn("Change.change")(function* <A, E, R>(
  planned: Api.DryRun,
  question: string,
  write: Effect.Effect<A, E, R>,
  said: (answer: A, paint: Paint) => string
) {
  yield* preview(planned)
  yield* Confirm.ask(question)
  const answer = yield* write
  yield* show(answer, (paint) => said(answer, paint))
  return "done" as const
})
