import { assert, describe, it } from "@effect/vitest"
import type { Blocked, Plan, PlanItem } from "../../schema/Action.ts"
import type { Name, Uid } from "../../schema/Ids.ts"
import * as Exit from "../../src/Cli/Exit.ts"

const item = (over: Partial<PlanItem>): PlanItem => ({
  uid: "00000000-0000-4000-8000-000000000001" as Uid,
  name: "a" as Name,
  generation: 1,
  volume_id: null,
  next: null,
  chain: [],
  blocked: null,
  gap: null,
  drift: false,
  settled: false,
  guard: null,
  removal_done: false,
  ...over
})

const blocked = (category: Blocked["category"]): Blocked => ({
  reason: category === "progress" ? "JobPending" : "VmFull",
  category,
  message: "",
  suggestion: ""
})

const plan = (items: ReadonlyArray<PlanItem>, over: Partial<Plan> = {}): Plan => ({
  at: 0,
  items,
  held: [],
  digest: null,
  withheld: [],
  notices: [],
  ...over
})

describe("exit codes", () => {
  it("are the six of the contract", () => {
    assert.deepStrictEqual(Exit.codes, { done: 0, error: 1, pending: 2, drift: 3, held: 4, timeout: 5 })
  })

  it("name the most urgent of several: error, held, pending, drift", () => {
    assert.strictEqual(Exit.combine(["done", "drift", "pending", "held", "error"]), "error")
    assert.strictEqual(Exit.combine(["drift", "pending", "held"]), "held")
    assert.strictEqual(Exit.combine(["drift", "pending"]), "pending")
    assert.strictEqual(Exit.combine(["done", "drift"]), "drift")
    assert.strictEqual(Exit.combine([]), "done")
  })

  it("speak of a plan: nothing, pending, drift, held", () => {
    assert.strictEqual(Exit.ofPlan(plan([item({ settled: true })])), "done")
    assert.strictEqual(Exit.ofPlan(plan([item({ gap: "volume" })])), "pending")
    assert.strictEqual(Exit.ofPlan(plan([item({ gap: "attachment", drift: true })])), "drift")
    assert.strictEqual(Exit.ofPlan(plan([item({ gap: "attachment", blocked: blocked("blocked") })])), "held")
    assert.strictEqual(
      Exit.ofPlan(plan([item({ gap: "attachment", drift: true }), item({ gap: "volume" })])),
      "pending"
    )
  })

  it("take what passes by itself as pending, not as held", () => {
    assert.strictEqual(Exit.ofPlan(plan([item({ gap: "device", blocked: blocked("progress") })])), "pending")
  })

  it("count held actions and unread sources as held", () => {
    assert.strictEqual(Exit.ofPlan(plan([], { notices: [blocked("blocked")] })), "held")
    assert.strictEqual(Exit.ofPlan(plan([], { notices: [blocked("warning")] })), "done")
  })
})
