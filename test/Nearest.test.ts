import { assert, describe, it } from "@effect/vitest"
import { nearest } from "../schema/Nearest.ts"

describe("what was probably meant", () => {
  const words = ["apply", "approve", "plan", "export_wanted", "attached_to"]

  it("is the word with the fewest letters wrong, whatever its case", () => {
    assert.strictEqual(nearest("aply", words), "apply")
    assert.strictEqual(nearest("PLAN", words), "plan")
    assert.strictEqual(nearest("atached_too", words), "attached_to")
  })

  it("is a word that contains it, where nothing is nearer", () => {
    assert.strictEqual(nearest("export", words), "export_wanted")
    assert.strictEqual(nearest("plan-of-today", words), "plan")
  })

  it("is nothing where nothing is near, and never a wholly different word as short", () => {
    assert.isNull(nearest("xyz", words))
    assert.isNull(nearest("", words))
    assert.isNull(nearest("a", ["b"]))
    assert.isNull(nearest("plan".repeat(100), words))
  })
})
