import { assert, describe, it } from "@effect/vitest"
import { Effect, Exit } from "effect"
import { PassThrough } from "node:stream"
import * as Confirm from "../../src/Cli/Confirm.ts"

/** A terminal, or a pipe, that somebody types into. */
const asker = (options: { readonly yes: boolean; readonly terminal: boolean; readonly typed: string | null }) => {
  const stdin = Object.assign(new PassThrough(), { isTTY: options.terminal })
  const stderr = Object.assign(new PassThrough(), { isTTY: options.terminal })
  if (options.typed === null) stdin.end()
  else stdin.write(options.typed)
  return {
    yes: options.yes,
    stdin: stdin as unknown as NodeJS.ReadStream,
    stderr: stderr as unknown as NodeJS.WriteStream
  }
}

const ask = (options: Parameters<typeof asker>[0]) =>
  Effect.exit(Confirm.ask("Remove it?").pipe(Effect.provideService(Confirm.Asker, asker(options))))

describe("before something changes", () => {
  it.effect("a script says --yes and is not asked", () =>
    Effect.map(ask({ yes: true, terminal: false, typed: null }), (exit) => assert.isTrue(Exit.isSuccess(exit)))
  )

  it.effect("without a terminal and without --yes nothing happens, whatever stands in the input", () =>
    Effect.map(ask({ yes: false, terminal: false, typed: "yes\n" }), (exit) => {
      assert.isTrue(Exit.isFailure(exit))
      assert.include(String(exit), "add --yes")
    })
  )

  for (const [typed, goes] of [
    ["yes\n", true],
    ["Y\n", true],
    ["no\n", false],
    ["\n", false],
    ["yesterday\n", false],
    [null, false]
  ] as const) {
    it.live(`${JSON.stringify(typed)} at the terminal means ${goes ? "go ahead" : "leave it"}`, () =>
      Effect.map(ask({ yes: false, terminal: true, typed }), (exit) => assert.strictEqual(Exit.isSuccess(exit), goes))
    )
  }
})
