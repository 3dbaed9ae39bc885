import { Context, Data, Effect } from "effect"
import { createInterface } from "node:readline/promises"

/** Nothing was changed, because nobody could be asked or the answer was no. */
export class NotConfirmed extends Data.TaggedError("NotConfirmed")<{ readonly message: string }> {}

/** Who is asked: the person at the terminal, or a script that said yes beforehand. */
export class Asker extends Context.Tag("volumed/src/Cli/Asker")<
  Asker,
  { readonly yes: boolean; readonly stdin: NodeJS.ReadStream; readonly stderr: NodeJS.WriteStream }
>() {}

/**
 * Ask before something changes. Only a person who can see the question may answer it: without a terminal on both ends
 * `--yes` is the one way, so that a script states its consent and never gives it by accident.
 */
export const ask = Effect.fn("Confirm.ask")(function* (question: string) {
  const asker = yield* Asker
  if (asker.yes) return
  if (asker.stdin.isTTY !== true || asker.stderr.isTTY !== true) {
    return yield* new NotConfirmed({
      message: `${question} There is no terminal to ask on. Nothing was changed; add --yes to go ahead without asking.`
    })
  }
  const answer = yield* typed(`${question} Type yes to go ahead: `, asker)
  if (/^y(es)?$/iu.test(answer.trim())) return
  return yield* new NotConfirmed({ message: "Nothing was changed." })
})

/** End of input counts as no. Ctrl-C reaches the process as a signal and interrupts this. */
const typed = (prompt: string, asker: Asker["Type"]): Effect.Effect<string> =>
  Effect.scoped(
    Effect.acquireRelease(
      Effect.sync(() => createInterface({ input: asker.stdin, output: asker.stderr })),
      (lines) => Effect.sync(() => lines.close())
    ).pipe(
      Effect.flatMap((lines) =>
        Effect.async<string>((resume) => {
          lines.once("close", () => resume(Effect.succeed("")))
          lines.once("SIGINT", () => process.kill(process.pid, "SIGINT"))
          lines.question(prompt).then(
            (answer) => resume(Effect.succeed(answer)),
            () => resume(Effect.succeed(""))
          )
        })
      )
    )
  )
