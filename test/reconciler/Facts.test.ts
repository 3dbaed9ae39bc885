import { assert, describe, it } from "@effect/vitest"
import { FastCheck } from "effect"
import type { Declaration } from "../../schema/Declaration.ts"
import { known, type Inventory } from "../../schema/Inventory.ts"
import { limits } from "../../schema/Settings.ts"
import * as Facts from "../../reconciler/Facts.ts"
import * as Plan from "../../reconciler/Plan.ts"
import { inputs } from "../support/arbitraries.ts"
import * as Worlds from "../support/Worlds.ts"

const id = Worlds.volumeId(1)
const other = Worlds.vmId(1)
const bound = { volume_id: id, origin: "adopted" } as const
const ours = { vm_id: Worlds.appliance, as: "data", settled: true } as const

const learn = (declaration: Declaration, observed: Inventory, at = Worlds.now, options?: Facts.Options) =>
  Facts.learn([declaration], observed, at, limits, options)[0]?.binding ?? null

const listed = (row: Parameters<typeof Worlds.cloudVolume>[1] = {}) =>
  Worlds.inventory({ cloud: Worlds.cloud({ volumes: [Worlds.cloudVolume(id, row)] }) })

const applied = (declarations: ReadonlyArray<Declaration>, learned: ReturnType<typeof Facts.learn>) =>
  declarations.map((d) => ({ ...d, binding: learned.find((l) => l.uid === d.uid)?.binding ?? d.binding }))

describe("What an observation teaches", () => {
  it("is nothing in a steady state (S18)", () => {
    const settled = Worlds.declaration("disk", { binding: Worlds.settledBinding(id) })
    assert.deepStrictEqual(Facts.learn([settled], Worlds.inPlace([id]), Worlds.now, limits), [])
  })

  it("is learned once: the same reading teaches nothing more, whatever it shows (S18)", () => {
    FastCheck.assert(
      FastCheck.property(inputs, ({ approved, declarations, inventory, limits, now }) => {
        const learned = Facts.learn(declarations, inventory, now, limits, { approved })
        const again = Facts.learn(applied(declarations, learned), inventory, now, limits, { approved })
        assert.deepStrictEqual(again, [])
      }),
      { seed: 20260301, numRuns: 4000 }
    )
  })

  it("is that a generation was met, once everything managed is seen so", () => {
    const changed = Worlds.declaration("disk", { generation: 2, binding: Worlds.settledBinding(id) })
    assert.strictEqual(learn(changed, Worlds.inPlace([id]))?.settled_generation, 2)
    const unserved = { ...Worlds.inPlace([id]), nbd: Worlds.nbd() }
    assert.notStrictEqual(learn(changed, unserved)?.settled_generation ?? 1, 2)
  })

  it("concerns those alone that it is asked about, and nobody who has no volume", () => {
    const fresh = Worlds.declaration("fresh")
    const changed = Worlds.declaration("disk", { generation: 2, binding: Worlds.settledBinding(id) })
    const world = Worlds.inPlace([id])
    assert.deepStrictEqual(Facts.learn([fresh, changed], world, Worlds.now, limits, { only: new Set([fresh.uid]) }), [])
    assert.lengthOf(Facts.learn([fresh, changed], world, Worlds.now, limits), 1)
  })
})

describe("An attachment", () => {
  it("is ours where a generation of the declaration wanted it (S23)", () => {
    const wanted = Worlds.declaration("disk", { spec: { attached_to: other }, binding: bound })
    assert.deepStrictEqual(learn(wanted, listed({ vm_id: other }))?.attachment, {
      vm_id: other,
      as: "data",
      settled: false
    })
  })

  it("is not ours where nobody asked for it, or in another way than asked for (S23, S5)", () => {
    const open = Worlds.declaration("disk", { spec: { attached_to: null }, binding: bound })
    assert.isNull(learn(open, listed({ vm_id: other }))?.attachment ?? null)
    const data = Worlds.declaration("disk", { spec: { attached_to: other }, binding: bound })
    assert.isNull(learn(data, listed({ vm_id: other, type: "ROOT" }))?.attachment ?? null)
  })

  it("is remembered through a drift, so that the drift is known as one, but no longer as settled by us (S5)", () => {
    const drifted = Worlds.declaration("disk", {
      generation: 2,
      binding: { ...bound, attachment: ours, settled_generation: 1 }
    })
    const learned = learn(drifted, listed())
    assert.deepStrictEqual(learned?.attachment, { ...ours, settled: false })
    assert.strictEqual(learned?.drift_since, Worlds.now)
    assert.strictEqual(learn(drifted, Worlds.inventory({ cloud: Worlds.unseen("away") })), null)
  })

  it("is forgotten when it is seen elsewhere and the wish has moved away", () => {
    const moved = Worlds.declaration("disk", { spec: { attached_to: "none" }, binding: { ...bound, attachment: ours } })
    assert.isNull(learn(moved, listed())?.attachment ?? null)
    const still = listed({ vm_id: Worlds.appliance })
    assert.deepStrictEqual((learn(moved, still) ?? moved.binding).attachment, ours)
  })
})

describe("A drift", () => {
  const drifted = Worlds.declaration("disk", {
    binding: Worlds.settledBinding(id, { drift_since: Worlds.now - 90_000 })
  })

  it("keeps the time at which it was first seen, and ends when the wish is met again", () => {
    assert.strictEqual((learn(drifted, listed()) ?? drifted.binding).drift_since, Worlds.now - 90_000)
    assert.isNull(learn(drifted, Worlds.inPlace([id]))?.drift_since)
  })

  it("neither begins nor ends while a source is unread", () => {
    const blind = [
      { ...Worlds.inPlace([id]), cloud: Worlds.unseen("away") },
      { ...Worlds.inPlace([id]), guest: Worlds.unseen("away") },
      { ...Worlds.inPlace([id]), nbd: Worlds.unseen("away") }
    ]
    const calm = Worlds.declaration("disk", { binding: Worlds.settledBinding(id) })
    for (const observed of blind) {
      assert.isNull(learn(drifted, observed))
      assert.isNull(learn(calm, observed))
    }
  })
})

describe("A loss", () => {
  const binding = { ...bound, settled_generation: 1 }
  const disk = Worlds.declaration("disk", { spec: { attached_to: null, export_wanted: null }, binding })
  const gone = (startedAt: number, vms = [Worlds.vm(Worlds.appliance)]): Inventory => {
    const cloud = Worlds.cloud({ absent: [id], vms })
    return Worlds.inventory({ cloud: cloud._tag === "Known" ? known(startedAt, cloud.value) : cloud })
  }
  const after = (declaration: Declaration, learned: Declaration["binding"] | null): Declaration => ({
    ...declaration,
    binding: learned ?? declaration.binding
  })

  it("is proven by two readings by id that are far enough apart (S17)", () => {
    const first = after(disk, learn(disk, gone(1000)))
    assert.deepStrictEqual(first.binding.loss, { first_absent_at: 1000, proven_at: null, accepted: false })
    const early = after(first, learn(first, gone(1000 + limits.loss_confirmation_ms - 1)))
    assert.isNull(early.binding.loss?.proven_at)
    const late = 1000 + limits.loss_confirmation_ms
    assert.deepStrictEqual(after(early, learn(early, gone(late))).binding.loss, {
      first_absent_at: 1000,
      proven_at: late,
      accepted: true
    })
  })

  it("is not begun by a volume that is only not listed, nor without the appliance in sight (S17)", () => {
    assert.isNull((learn(disk, Worlds.inventory()) ?? disk.binding).loss)
    assert.isNull((learn(disk, gone(1000, [])) ?? disk.binding).loss)
  })

  it("is over as soon as the volume is listed again", () => {
    const lost = Worlds.declaration("disk", {
      spec: { attached_to: null, export_wanted: null },
      binding: { ...binding, loss: { first_absent_at: 1, proven_at: 2, accepted: true } }
    })
    assert.isNull(learn(lost, listed())?.loss)
  })

  it("of many at once leaves the baseline only when a person says so (S17)", () => {
    const many = [1, 2, 3, 4].map((n) =>
      Worlds.declaration(`disk-${n}`, {
        uid: Worlds.uidOf(n),
        binding: { volume_id: Worlds.volumeId(n), loss: { first_absent_at: 1000, proven_at: null, accepted: false } }
      })
    )
    const observed = Worlds.inventory({
      cloud: Worlds.cloud({ absent: many.flatMap((d) => d.binding.volume_id ?? []) })
    })
    const alone = Facts.learn(many, observed, Worlds.now, limits)
    assert.deepStrictEqual(
      alone.map((l) => [l.binding.loss?.proven_at !== null, l.binding.loss?.accepted]),
      [
        [true, false],
        [true, false],
        [true, false],
        [true, false]
      ]
    )
    const plan = Plan.make(Worlds.input(applied(many, alone), observed))
    const approved = new Set(plan.held.map(Plan.heldKey))
    const accepted = Facts.learn(applied(many, alone), observed, Worlds.now, limits, { approved })
    assert.isTrue(accepted.length === 4 && accepted.every((l) => l.binding.loss?.accepted === true))
    const later = Plan.make(Worlds.input(applied(many, accepted), observed))
    assert.deepStrictEqual(later.notices, [])
  })
})

describe("A device that is waited for", () => {
  const disk = Worlds.declaration("disk", { binding: { ...bound, attachment: ours } })
  const attached = Worlds.cloud({ volumes: [Worlds.cloudVolume(id, { vm_id: Worlds.appliance })] })

  it("is waited for since it was first seen missing, and no more when it has come (D1, D8)", () => {
    const missing = Worlds.inventory({ cloud: attached })
    const first = learn(disk, missing)
    assert.strictEqual(first?.device_awaited_since, Worlds.now)
    const waiting = { ...disk, binding: first ?? disk.binding }
    assert.isNull(learn(waiting, missing, Worlds.now + 5000))
    const late = { now: Worlds.now + limits.device_timeout_ms }
    assert.strictEqual(Plan.make(Worlds.input([waiting], missing)).items[0]?.blocked?.reason, "DeviceArriving")
    assert.strictEqual(Plan.make(Worlds.input([waiting], missing, late)).items[0]?.blocked?.reason, "DeviceMissing")
    assert.isNull(learn(waiting, Worlds.inPlace([id]))?.device_awaited_since)
  })

  it("is not missing for want of a look at the guest", () => {
    const unread = Worlds.inventory({ cloud: attached, guest: Worlds.unseen("no sysfs") })
    assert.isNull((learn(disk, unread) ?? disk.binding).device_awaited_since)
  })
})
