import { writeSync } from "node:fs"
import { Effect } from "effect"
import { start } from "./support.ts"

/** A server in a process of its own, so that its memory is its own; it ends with its standard input. */
const program = Effect.gen(function* () {
  const { url } = yield* start()
  writeSync(1, `${url}\n`)
  yield* Effect.async<void>((resume) => {
    process.stdin.on("close", () => resume(Effect.void)).resume()
  })
})

void Effect.runPromise(Effect.scoped(program)).then(() => process.exit(0))
