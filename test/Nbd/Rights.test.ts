import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import * as Rights from "../../src/Nbd/Rights.ts"
import * as Appliance from "./Appliance.ts"

const CAP_KILL = 1n << 5n
const CAP_SETUID = 1n << 7n
const CAP_SYS_PTRACE = 1n << 19n

describe("The rights of a server that opens what our holders have open", () => {
  it("must be all of ours, or the one to look into any process (D12)", () => {
    assert.isTrue(Rights.mayLookInto(CAP_KILL | CAP_SETUID, CAP_KILL))
    assert.isFalse(Rights.mayLookInto(CAP_SETUID, CAP_KILL))
    assert.isFalse(Rights.mayLookInto(CAP_SETUID, CAP_SYS_PTRACE))
    assert.isTrue(Rights.mayLookInto(CAP_SYS_PTRACE, CAP_KILL | CAP_SETUID))
    assert.isTrue(Rights.mayLookInto(0n, 0n))
  })

  it.scopedLive("are read from the kernel", () =>
    Effect.gen(function* () {
      assert.isNull(Rights.problem(process.pid))
      // Only root has rights to take away.
      const bounds = process.geteuid?.() === 0 ? ["--bounding-set=-all"] : []
      const child = yield* Appliance.running("setpriv", [...bounds, "--no-new-privs", "sleep", "60"])
      const pid = child.pid ?? -1
      if (bounds.length === 0) return assert.isNull(Rights.problem(pid))
      yield* Appliance.eventually("it has no rights", () => Rights.problem(pid) !== null)
      assert.include(Rights.problem(pid), "CAP_SYS_PTRACE")
    })
  )
})
