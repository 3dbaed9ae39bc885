import { assert, describe, it } from "@effect/vitest"
import { FastCheck } from "effect"
import * as Plan from "../../reconciler/Plan.ts"
import * as Render from "../../reconciler/Render.ts"
import { inputs } from "../support/arbitraries.ts"
import * as Worlds from "../support/Worlds.ts"

const context: Render.Context = {
  server: "http://127.0.0.1:8090",
  cloud: "https://cloud.example/client/api",
  zone: null,
  appliance_vm_id: Worlds.appliance,
  sandbox: false
}

const id = Worlds.volumeId(1)
const settled = Worlds.declaration("calm", { uid: Worlds.uidOf(1), binding: Worlds.settledBinding(id) })
const stolen = Worlds.declaration("stolen", {
  uid: Worlds.uidOf(2),
  binding: Worlds.settledBinding(Worlds.volumeId(2))
})
const fresh = Worlds.declaration("fresh", { uid: Worlds.uidOf(3) })

const planOf = () => {
  const { cloud, ...rest } = Worlds.inPlace([id])
  const volumes = cloud._tag === "Known" ? cloud.value.volumes : []
  const tagged = volumes.map((v) => ({ ...v, tags: [{ key: "volumed-uid", value: settled.uid }] }))
  const elsewhere = Worlds.cloudVolume(Worlds.volumeId(2), { vm_id: Worlds.vmId(1) })
  return Plan.make(
    Worlds.input([settled, fresh, stolen], { ...rest, cloud: Worlds.cloud({ volumes: [...tagged, elsewhere] }) })
  )
}

describe("A rendered plan", () => {
  it("begins with where it would act, and says of a sandbox that it is one", () => {
    const plan = planOf()
    assert.match(
      Render.text(context, plan),
      /^Server: {4}http:\/\/127\.0\.0\.1:8090\nCloud: {5}https:\/\/cloud\.example\/client\/api\nZone: {6}as declared\nAppliance: 8a4400e5/
    )
    assert.notInclude(Render.text(context, plan), "sandbox")
    assert.include(Render.text({ ...context, sandbox: true }, plan), "sandbox")
  })

  it("shows what changes or is blocked, each with its reason, and only counts the rest", () => {
    const text = Render.text(context, planOf())
    assert.notInclude(text, "calm")
    assert.match(text, /\nfresh\n {2}\+ create .*\n {6}because it does not exist yet\n/)
    assert.match(text, /! ForeignAttachment: .*\n {6}detach it there/)
    assert.match(text, /\nPlan: 1 to create, .*; 1 blocked; 1 unchanged\.\n$/)
  })

  it("colours nothing unless it is given colours, and changes no other letter by them", () => {
    const plan = planOf()
    const painted = Render.text(context, plan, (tone, piece) => `<${tone}>${piece}</${tone}>`)
    assert.match(painted, /<add>.*create/)
    assert.strictEqual(painted.replaceAll(/<\/?[a-z]+>/g, ""), Render.text(context, plan))
  })

  it("counts in its data what its text says", () => {
    const { summary } = Render.json(context, planOf())
    assert.deepStrictEqual([summary.create, summary.blocked, summary.unchanged], [1, 1, 1])
  })

  it("accounts for every volume and every step, whatever the plan", () => {
    FastCheck.assert(
      FastCheck.property(inputs, (input) => {
        const plan = Plan.make(input)
        const text = Render.text(context, plan)
        for (const item of plan.items) {
          const shown = text.includes(`\n\n${item.name}`)
          const told = item.chain.length > 0 || item.blocked !== null || item.guard !== null || item.removal_done
          assert.strictEqual(shown, told)
          if (item.guard !== null) assert.include(text, item.guard.reason)
          if (item.blocked !== null) assert.include(text, item.blocked.message)
        }
        if (plan.digest !== null) assert.include(text, `volumed approve ${plan.digest}`)
      }),
      { seed: 20260301, numRuns: 1000 }
    )
  })
})
