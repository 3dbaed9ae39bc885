import { assert, describe, it } from "@effect/vitest"
import * as Scenario from "./Scenario.ts"
import * as Table from "./Table.ts"

/** A call whose answer was lost is observed for the minute that CloudStack accepts it, so these worlds take that long. */
const LIMIT_MS = 420_000

const plans: ReadonlyArray<Scenario.Plan> = [
  { victim: "daemon", kills: 10, mariadb: false, seed: 11 },
  { victim: "daemon", kills: 10, mariadb: true, seed: 12 }
]

describe("kill -9 of the daemon, at marked points and at any time (P1, P2)", { concurrent: true }, () => {
  for (const plan of plans)
    it(
      `loses no acknowledged write, leaks and doubles no volume, and leaves a journal equal to the world's: ${Table.encode(plan)} (S1, S7, S8, S9, S10, S14, L6)`,
      {
        timeout: LIMIT_MS
      },
      async () => {
        const report = await Scenario.run(plan)
        assert.deepStrictEqual(report.broken, [])
        assert.strictEqual(report.kills.length, plan.kills)
        assert.isAbove(report.acknowledged, 20)
        assert.isNotEmpty(report.kills.filter(({ hit, point }) => hit && point.includes(".")))
      }
    )
})
