import { assert, describe, it } from "@effect/vitest"
import * as World from "../../src/Simulation/World.ts"
import { ask, attach, detach, rows, START } from "./Wire.ts"

const appliance = World.APPLIANCE_VM_ID
const testVm = World.vmId(1)

const world = () => World.make({ now: START })
const withVolume = (options: Partial<World.Options> = {}) => {
  const made = World.make({ now: START, job_ms: 1_000, ...options })
  return { world: made, id: made.seedVolume({ name: "data", state: "Ready" }, START).id }
}
const row = (w: World.World, id: string, now: number) => rows(ask(w, "listVolumes", { id }, now))[0]

describe("the monitor", () => {
  const kinds = (w: World.World) => w.truth(START + 100_000).violations.map((one) => one.kind)

  it("records a mutation on a ROOT volume (S5)", () => {
    const w = world()
    detach(w, w.truth(START).volumes[0]?.id ?? "", START)
    assert.deepStrictEqual(kinds(w), ["root_mutation"])
  })

  it("records a second mutation while one is unresolved (S2), tags beside tags excepted", () => {
    const { world: w, id } = withVolume()
    const tag = { resourceids: id, resourcetype: "Volume", "tags[0].key": "k", "tags[0].value": "v" }
    ask(w, "deleteTags", tag, START)
    ask(w, "createTags", tag, START)
    assert.deepStrictEqual(w.truth(START).violations, [])
    attach(w, id, testVm, START + 1_000)
    attach(w, id, World.vmId(2), START + 1_000)
    assert.deepStrictEqual(kinds(w), ["two_unresolved"])
  })

  it("counts a mutation beside a lost job, which nobody can see, as an incident", () => {
    const { world: w, id } = withVolume({ faults: [{ kind: "job_lost", command: "attachVolume", times: 1 }] })
    attach(w, id, testVm, START)
    attach(w, id, testVm, START)
    assert.deepStrictEqual(kinds(w), [])
    assert.strictEqual(w.truth(START).incidents[0]?.kind, "beside_lost_job")
  })

  it("records a mutation while an unanswered one may still arrive, and not after that has expired (C3)", () => {
    const late = [{ kind: "late_effect", command: "attachVolume", delay_ms: 3_600_000, times: 1 }] as const
    const { world: w, id } = withVolume({ faults: late })
    assert.throws(() => attach(w, id, testVm, START))
    const early = World.load(JSON.parse(JSON.stringify(w.save(START))))
    attach(early, id, testVm, START + 30_000)
    assert.deepStrictEqual(kinds(early), ["two_unresolved"])
    attach(w, id, testVm, START + 61_000)
    assert.deepStrictEqual(kinds(w), [])
  })

  it("records a detach of what is being served (S11)", () => {
    const { world: w, id } = withVolume()
    w.act({ act: "attach", volume_id: id, vm_id: appliance }, START)
    w.watchExports((volume) => volume === id)
    detach(w, id, START)
    assert.deepStrictEqual(kinds(w), ["detach_while_served"])
  })

  it("records a detach of what somebody has open, and not elsewhere (S11)", () => {
    const { world: w, id } = withVolume()
    w.watchExports(
      () => false,
      (volume) => volume === id
    )
    w.act({ act: "attach", volume_id: id, vm_id: testVm }, START)
    detach(w, id, START)
    assert.deepStrictEqual(kinds(w), [])
    w.act({ act: "attach", volume_id: id, vm_id: appliance }, START + 10_000)
    detach(w, id, START + 10_000)
    assert.deepStrictEqual(kinds(w), ["detach_while_open"])
  })

  it("records an attach elsewhere while the appliance's guest plainly has the disk (S1)", () => {
    const faults = [{ kind: "job_failed", command: "attachVolume", effect: "hypervisor", times: 1 }] as const
    const { world: w, id } = withVolume({ faults })
    attach(w, id, appliance, START)
    assert.isUndefined(row(w, id, START + 10_000)?.["virtualmachineid"])
    attach(w, id, testVm, START + 10_000)
    assert.deepStrictEqual(kinds(w), ["attach_while_held"])
    assert.deepInclude(w.truth(START + 20_000).incidents[0], { kind: "double_attach", volume_id: id, vm_id: testVm })
  })

  it("records the deletion of what is attached (S6), though CloudStack refuses it", () => {
    const { world: w, id } = withVolume()
    w.act({ act: "attach", volume_id: id, vm_id: testVm }, START)
    ask(w, "deleteVolume", { id }, START)
    assert.deepStrictEqual(kinds(w), ["delete_attached"])
  })

  it("blames nobody for what operators do", () => {
    const { world: w, id } = withVolume()
    for (const act of [
      { act: "attach", volume_id: id, vm_id: testVm },
      { act: "rename", volume_id: id, name: "other" },
      { act: "resize", volume_id: id, size_gib: 3 },
      { act: "protect", volume_id: id, protect: true },
      { act: "detach", volume_id: id, as_job: true }
    ] as const) {
      assert.isTrue(w.act(act, START).done, act.act)
    }
    assert.deepInclude(row(w, id, START), { name: "other", size: 3 * 1024 ** 3, jobstatus: 0 })
    assert.match(JSON.stringify(w.act({ act: "delete", volume_id: id }, START + 5_000)), /delete protection/)
    w.act({ act: "protect", volume_id: id, protect: false }, START + 5_000)
    assert.isTrue(w.act({ act: "delete", volume_id: id }, START + 5_000).done)
    assert.isTrue(w.act({ act: "create", name: "theirs", size_gib: 1 }, START + 5_000).done)
    assert.deepStrictEqual(kinds(w), [])
  })
})
