import { assert, describe, it } from "@effect/vitest"
import { createHash } from "node:crypto"
import * as CustomId from "../../reconciler/CustomId.ts"
import { uuidPattern } from "../../schema/Ids.ts"
import * as Worlds from "../support/Worlds.ts"

const digest = (text: string) => createHash("sha256").update(text).digest("hex")
const derive = (n: number, binding: Worlds.DeclarationChanges["binding"] = {}) =>
  CustomId.derive(digest, Worlds.declaration("disk", { uid: Worlds.uidOf(n), binding }))

describe("The id that is chosen for a volume", () => {
  it("is the same for every attempt, whatever else is declared meanwhile (S10)", () => {
    const renamed = Worlds.declaration("other", { uid: Worlds.uidOf(1), generation: 9, spec: { size: null } })
    assert.strictEqual(CustomId.derive(digest, renamed), derive(1))
    // Written down, for a later version must derive what an earlier one may have sent.
    assert.strictEqual(derive(1), "147d155f-4ed6-87fd-a746-a55f0c4767d2")
  })

  it("is another one for each declaration, and for each volume that takes the place of a lost one (S10)", () => {
    const ids = [
      derive(1),
      derive(2),
      derive(1, { volume_id: Worlds.volumeId(1) }),
      derive(1, { volume_id: Worlds.volumeId(2) }),
      derive(1, { volume_id: Worlds.volumeId(1), former_id: derive(1, { volume_id: Worlds.volumeId(1) }) }),
      derive(1, { former_id: derive(1) })
    ]
    assert.strictEqual(new Set(ids).size, ids.length)
  })

  it("is a UUID as CloudStack takes it, of version 8 and RFC 9562's variant", () => {
    for (let n = 0; n < 200; n++) {
      assert.match(derive(n), uuidPattern)
      assert.match(derive(n), /^.{14}8.{4}[89ab]/)
    }
  })
})
