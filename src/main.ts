#!/usr/bin/env node
import * as Arguments from "./Cli/Arguments.ts"
import * as Package from "./Cli/Package.ts"

const parsed = Arguments.parse(process.argv.slice(2), process.env)
switch (parsed._tag) {
  case "Run": {
    // Effect and everything built on it load only when there is something to run.
    const { run } = await import("./Cli/Run.ts")
    run(parsed.invocation)
    break
  }
  case "Help":
    print(parsed.text)
    break
  case "Version":
    print(`volumed ${Package.version()}\n`)
    break
  case "Wrong":
    process.exitCode = 1
    process.stderr.write(`volumed: ${parsed.message}\n`)
}

/** A reader that went away, as in `volumed --help | head -1`, is no error worth a stack trace. */
function print(text: string) {
  process.stdout.on("error", () => {})
  process.stdout.write(text)
}
