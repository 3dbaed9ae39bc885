import { defineConfig } from "vitest/config"

export default defineConfig({
  test: {
    include: ["test/**/*.test.ts"],
    globalSetup: ["test/support/globalSetup.ts"],
    testTimeout: 60_000,
    hookTimeout: 60_000,
    // Real servers and child processes run beside the tests; more workers than cores only makes them wait for each other.
    maxWorkers: 4
  }
})
