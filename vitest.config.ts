import { defineConfig } from "vitest/config"
import { BaseSequencer, type TestSpecification } from "vitest/node"

/** These take minutes, most of them waiting. Where no earlier run has told so they would come last, for they are short. */
const LONG: ReadonlyArray<string> = [
  "test/kill/Kill.test.ts",
  "test/property/Convergence.test.ts",
  "test/Store/MariaDbFaults.test.ts",
  "test/property/Creates.test.ts",
  "test/Http/V1Ends.test.ts",
  "test/Nbd/Endurance.test.ts",
  "test/Nbd/Suite.test.ts",
  "test/Nbdkit/Suite.test.ts",
  "test/reconciler/DeviceFaults.test.ts",
  "test/Nbd/Daemon.test.ts"
]

class LongestFirst extends BaseSequencer {
  override async sort(files: Array<TestSpecification>) {
    const place = ({ moduleId }: TestSpecification) => {
      const found = LONG.findIndex((path) => moduleId.endsWith(path))
      return found < 0 ? LONG.length : found
    }
    return (await super.sort(files)).toSorted((a, b) => place(a) - place(b))
  }
}

export default defineConfig({
  test: {
    include: ["test/**/*.test.ts"],
    globalSetup: ["test/support/globalSetup.ts"],
    testTimeout: 60_000,
    hookTimeout: 60_000,
    // Real servers and child processes run beside the tests; more workers than cores only makes them wait for each other.
    maxWorkers: 4,
    sequence: { sequencer: LongestFirst }
  }
})
