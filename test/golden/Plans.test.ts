import { assert, describe, it } from "@effect/vitest"
import { existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { reasons } from "../../schema/Action.ts"
import * as Check from "../../reconciler/Check.ts"
import * as Plan from "../../reconciler/Plan.ts"
import * as Render from "../../reconciler/Render.ts"
import * as Worlds from "../support/Worlds.ts"

const root = fileURLToPath(new URL("../../fixtures/plans", import.meta.url))
const cases = readdirSync(root).sort()

const context: Render.Context = {
  server: "http://127.0.0.1:8090",
  cloud: "http://127.0.0.1:8181/client/api",
  zone: Worlds.zone,
  appliance_vm_id: Worlds.appliance,
  sandbox: true
}

const read = <A>(name: string, file: string) => JSON.parse(readFileSync(join(root, name, file), "utf8")) as A

const planned = cases.map((name) => {
  const input = Worlds.fromFixture(
    read<Worlds.Desired>(name, "desired.json"),
    read<Worlds.Observed>(name, "observed.json")
  )
  return { name, input, plan: Plan.make(input) }
})

describe("Golden plans", () => {
  for (const { input, name, plan } of planned) {
    it(`${name} reads as written`, () => {
      const file = join(root, name, "plan.txt")
      const text = Render.text(context, plan)
      if (process.env["UPDATE_GOLDEN"] === "1") writeFileSync(file, text)
      assert.isTrue(existsSync(file), `${file} is missing: UPDATE_GOLDEN=1 writes it`)
      assert.strictEqual(text, readFileSync(file, "utf8"))
      assert.deepStrictEqual(Check.check(input, plan), [])
    })
  }

  it("show every action as the next one of some volume", () => {
    const reached = new Set(planned.flatMap(({ plan }) => plan.items.flatMap(({ next }) => next?._tag ?? [])))
    assert.deepStrictEqual([...reached].sort(), Object.keys(Worlds.everyAction).sort())
  })

  it("show every reason why a volume does not move", () => {
    const reached = new Set(planned.flatMap(({ plan }) => plan.items.flatMap(({ blocked }) => blocked?.reason ?? [])))
    assert.deepStrictEqual(
      Object.keys(reasons).filter((reason) => !reached.has(reason as keyof typeof reasons)),
      []
    )
  })
})
