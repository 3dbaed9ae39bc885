import { assert, describe, it } from "@effect/vitest"
import { UID_TAG } from "../../schema/Action.ts"
import type { PlanItem } from "../../schema/Action.ts"
import type { Declaration } from "../../schema/Declaration.ts"
import { exportNameOf } from "../../schema/Ids.ts"
import type { Inventory } from "../../schema/Inventory.ts"
import { limits } from "../../schema/Settings.ts"
import { createHash } from "node:crypto"
import * as Check from "../../reconciler/Check.ts"
import * as CustomId from "../../reconciler/CustomId.ts"
import * as Plan from "../../reconciler/Plan.ts"
import * as Worlds from "../support/Worlds.ts"

const id = Worlds.volumeId(1)
const uid = Worlds.uidOf(1)
const other = Worlds.vmId(1)
const ours = { vm_id: Worlds.appliance, as: "data", settled: true } as const
const bound = { volume_id: id, origin: "adopted" } as const

const disk = (changes: Worlds.DeclarationChanges = {}) =>
  Worlds.declaration("disk", { uid, binding: bound, ...changes })

const listed = (row: Parameters<typeof Worlds.cloudVolume>[1] = {}, rest: Partial<Inventory> = {}) =>
  Worlds.inventory({ cloud: Worlds.cloud({ volumes: [Worlds.cloudVolume(id, row)] }), ...rest })

const itemFor = (declaration: Declaration, observed: Inventory, changes: Partial<Plan.Input> = {}): PlanItem => {
  const [item] = Plan.make(Worlds.input([declaration], observed, changes)).items
  assert.isDefined(item)
  return item as PlanItem
}

const chainOf = (declaration: Declaration, observed: Inventory, changes?: Partial<Plan.Input>) =>
  itemFor(declaration, observed, changes).chain.map((action) => action._tag)

const outcome = (item: PlanItem) => item.next?._tag ?? item.blocked?.reason ?? (item.settled ? "settled" : "nothing")

describe("Moving a volume", () => {
  it("goes down before up: unexport, detach, attach, and only then export (S11)", () => {
    const world = Worlds.inPlace([id])
    const away = disk({ generation: 2, spec: { attached_to: other }, binding: Worlds.settledBinding(id) })
    assert.deepStrictEqual(chainOf(away, world), ["Unexport", "Detach", "Attach", "Tag"])
    const attachment = { vm_id: other, as: "data", settled: true } as const
    const back = disk({ generation: 3, binding: { ...bound, attachment, settled_generation: 2 } })
    assert.deepStrictEqual(chainOf(back, listed({ vm_id: other })), ["Detach", "Attach", "Export", "Tag"])
  })

  it("removes our section of a leaving volume even when its device has gone", () => {
    const away = disk({
      generation: 2,
      spec: { attached_to: other },
      binding: Worlds.settledBinding(id, { attachment: null })
    })
    const nbd = Worlds.nbd({ sections: [Worlds.section(id)] })
    assert.deepStrictEqual(chainOf(away, listed({}, { nbd })), ["Unexport", "Attach", "Tag"])
  })

  it("leaves alone what is absent from the wish", () => {
    const open = disk({
      spec: { attached_to: null, export_wanted: null },
      binding: { ...bound, settled_generation: 1 }
    })
    for (const vm_id of [null, other, Worlds.appliance]) {
      const tags = [{ key: UID_TAG, value: uid }]
      assert.strictEqual(outcome(itemFor(open, listed({ vm_id, tags }))), "settled")
    }
  })

  it("is not asked of a VM that is neither Running nor Stopped, be it the one to leave (C16)", () => {
    const attachment = { vm_id: other, as: "data", settled: true } as const
    const back = disk({ generation: 2, binding: { ...bound, attachment } })
    const rebooting = Worlds.cloud({
      volumes: [Worlds.cloudVolume(id, { vm_id: other, vm_state: "Stopping" })],
      vms: [Worlds.vm(Worlds.appliance)]
    })
    assert.strictEqual(outcome(itemFor(back, Worlds.inventory({ cloud: rebooting }))), "VmNotReady")
  })
})

describe("Drift", () => {
  const drifted = (changes: Worlds.DeclarationChanges = {}) => disk({ binding: Worlds.settledBinding(id), ...changes })

  it("of the attachment is repaired, and counts as destruction where it takes a volume away (S17)", () => {
    const stolen = drifted({ spec: { on_conflict: "move" } })
    const item = itemFor(stolen, listed({ vm_id: other }))
    assert.deepStrictEqual(
      [item.next?._tag, item.next?.cause, item.next?.destructive, item.drift],
      ["Detach", "drift", true, true]
    )
    assert.strictEqual(itemFor(drifted(), listed()).next?.destructive, false)
  })

  it("asked for by a declaration is none, and its detach needs no budget", () => {
    const leaving = drifted({ generation: 2, spec: { attached_to: "none" } })
    const item = itemFor(leaving, Worlds.inPlace([id]), { destructive_last_hour: limits.destructive_per_hour })
    assert.deepStrictEqual([item.next?._tag, item.next?.cause, item.drift], ["Unexport", "declaration", false])
  })

  it("is Contended from the third repair within the hour, and repaired again after it", () => {
    const at = (...seconds: ReadonlyArray<number>) =>
      drifted({ binding: Worlds.settledBinding(id, { repairs: seconds.map((s) => Worlds.now - s * 1000) }) })
    assert.strictEqual(outcome(itemFor(at(60), listed())), "Attach")
    assert.strictEqual(outcome(itemFor(at(1200, 60), listed())), "Contended")
    assert.strictEqual(outcome(itemFor(at(3601, 60), listed())), "Attach")
  })

  it("of the NBD side is repaired under on_drift: hold as well (N5)", () => {
    const held = drifted({ spec: { on_drift: "hold" } })
    const dead = {
      ...Worlds.inPlace([id]),
      nbd: Worlds.nbd({ sections: [Worlds.section(id)], server: { state: "absent", pid: null, problem: null } })
    }
    assert.strictEqual(outcome(itemFor(held, dead)), "Export")
  })
})

describe("An export", () => {
  const attached = disk({ binding: Worlds.settledBinding(id) })
  const world = (verification: Parameters<typeof Worlds.verification>[2], size = Worlds.device(id, "b").size) => ({
    ...Worlds.inPlace([id]),
    guest: Worlds.guest([Worlds.device(id, "b", { size })]),
    nbd: Worlds.nbd({ sections: [Worlds.section(id)], verifications: [Worlds.verification(id, "b", verification)] })
  })

  it("is right only with the device's size, the declared flag, and the very device behind it (S3, S7)", () => {
    assert.isTrue(itemFor(attached, world({})).settled)
    const wrong = [
      { size: 1 },
      { read_only: true },
      { device: "252:1" },
      { outcome: "unknown" },
      { outcome: "no_answer" }
    ] as const
    for (const verification of wrong) assert.strictEqual(outcome(itemFor(attached, world(verification))), "Export")
  })

  it("that cannot be looked into is neither loaded again nor called right (S12)", () => {
    assert.strictEqual(outcome(itemFor(attached, world({ device: null }))), "NbdUnread")
  })

  it("is never taken away for a size that does not fit (O9)", () => {
    const grown = {
      ...world({}),
      cloud: Worlds.cloud({ volumes: [Worlds.cloudVolume(id, { vm_id: Worlds.appliance, size: 2 ** 40 })] })
    }
    assert.strictEqual(outcome(itemFor(attached, grown)), "SizeMismatch")
    assert.deepStrictEqual(itemFor(attached, grown).chain, [])
  })

  it("of the wrong disk is shut at once when the right one is not here, and not loaded again (S3, S12)", () => {
    const item = itemFor(attached, { ...world({ device: "252:1" }), guest: Worlds.guest() })
    assert.deepStrictEqual([outcome(item), item.guard?._tag, item.chain], ["WrongDevice", "Fence", []])
  })

  it("follows its volume to another bus by the serial, and keeps a link that still leads there", () => {
    const moved = "/dev/disk/by-id/scsi-0QEMU_QEMU_HARDDISK_ae7d0001111140008000"
    const scsi = Worlds.guest([Worlds.device(id, "b", { by_id_paths: [moved] })])
    const next = itemFor(attached, { ...world({ outcome: "denied", size: null }), guest: scsi }).next
    assert.strictEqual(next?._tag === "Export" ? next.path : null, moved)
    const both = Worlds.guest([Worlds.device(id, "b", { by_id_paths: [moved, Worlds.byIdPath(id)] })])
    assert.isTrue(itemFor(attached, { ...world({}), guest: both }).settled)
  })

  it("proven before is served again while CloudStack is away, unchanged, and nothing new is (S8)", () => {
    const away = { ...world({ outcome: "refused", size: null, device: null }), cloud: Worlds.unseen("away") }
    const item = itemFor(attached, away)
    assert.deepStrictEqual([item.next?._tag, item.next?.cause], ["Export", "recovery"])
    const changed = disk({ generation: 2, spec: { read_only: true }, binding: Worlds.settledBinding(id) })
    assert.strictEqual(outcome(itemFor(changed, away)), "CloudStackUnread")
    assert.strictEqual(outcome(itemFor(attached, { ...away, guest: Worlds.guest() })), "CloudStackUnread")
    const elsewhere = {
      ...away,
      guest: Worlds.guest([Worlds.device(id, "b", { by_id_paths: ["/dev/disk/by-id/scsi-x"] })])
    }
    assert.strictEqual(outcome(itemFor(attached, elsewhere)), "CloudStackUnread")
  })
})

describe("A tag", () => {
  const tagOf = (declaration: Declaration, observed: Inventory, changes?: Partial<Plan.Input>) => {
    const { next } = itemFor(declaration, observed, changes)
    return next?._tag === "Tag" ? { set: next.set, replace: next.replace } : null
  }
  const open = { attached_to: null, export_wanted: null } as const

  it("replaces a key that differs, whatever its case, and touches no other", () => {
    const tags = [
      { key: "TEAM", value: "b" },
      { key: "cost", value: "9" },
      { key: UID_TAG, value: uid }
    ]
    assert.deepStrictEqual(tagOf(disk({ spec: { ...open, metadata: { team: "a" } } }), listed({ tags })), {
      set: { team: "a" },
      replace: ["TEAM"]
    })
  })

  it("overwrites a mark that is dead, never one of a living declaration (S4)", () => {
    const marked = (value: string) => listed({ tags: [{ key: UID_TAG, value }] })
    assert.deepStrictEqual(tagOf(disk({ spec: open }), marked(Worlds.uidOf(77))), {
      set: { [UID_TAG]: uid },
      replace: [UID_TAG]
    })
    const living = Worlds.declaration("living", { uid: Worlds.uidOf(77), spec: { volume_id: Worlds.volumeId(5) } })
    const plan = Plan.make(Worlds.input([disk({ spec: open }), living], marked(living.uid)))
    assert.strictEqual(plan.items[0]?.next, null)
    assert.isTrue(plan.items[0]?.settled)
  })

  it("marks a volume right after its creation, unless something failed lately", () => {
    const made = disk({ binding: { ...bound, origin: "created" } })
    assert.deepStrictEqual(chainOf(made, listed()), ["Tag", "Attach", "Export"])
    const backoff = new Map([[uid, { retry_at: Worlds.now - 1, message: "createTags is not allowed" }]])
    assert.deepStrictEqual(chainOf(made, listed(), { backoff }), ["Attach", "Export", "Tag"])
  })

  it("counts for nothing: what lacks only tags is settled, also while they wait or are under way", () => {
    const plain = disk({ spec: open, binding: { ...bound, settled_generation: 1 } })
    assert.isTrue(itemFor(plain, listed()).settled)
    const waits: ReadonlyArray<Partial<Plan.Input>> = [
      { hold: "wait" },
      { operations: [Worlds.operation(uid, { type: "tag" })] },
      { limits: { ...limits, actions_total: 0 } }
    ]
    for (const changes of waits) {
      const item = itemFor(plain, listed(), changes)
      assert.deepStrictEqual([item.settled, item.next, item.blocked], [true, null, null])
    }
  })
})

describe("Choosing the id of a new volume", () => {
  const digest = (text: string) => createHash("sha256").update(text).digest("hex")
  const fresh = disk({ binding: { volume_id: null } })
  const may = Worlds.inventory({ cloud: Worlds.cloud({ custom_ids: true }) })
  const own = CustomId.derive(digest, fresh)
  const idIn = (item: PlanItem) => (item.next?._tag === "Create" ? item.next.custom_id : item.next?._tag)

  it("is done where the account may, and said to be so in the action", () => {
    assert.strictEqual(idIn(itemFor(fresh, may, { digest })), own)
    assert.isNull(idIn(itemFor(fresh, Worlds.inventory(), { digest })))
  })

  it("gives the volume that replaces a lost one another id (S10)", () => {
    const loss = { first_absent_at: Worlds.now - 60_000, proven_at: Worlds.now - 20_000, accepted: true }
    const lost = disk({ spec: { on_loss: "recreate" }, binding: { ...bound, volume_id: own, loss } })
    const gone = Worlds.inventory({ cloud: Worlds.cloud({ custom_ids: true, absent: [own] }) })
    assert.strictEqual(idIn(itemFor(lost, gone, { digest })), CustomId.derive(digest, lost))
    assert.notStrictEqual(CustomId.derive(digest, lost), own)
  })

  it("makes a volume known that a database restored from a backup does not know: it is adopted, untagged as it is (B6, S9)", () => {
    for (const custom_ids of [true, false]) {
      const there = Worlds.cloudVolume(own, { name: fresh.spec.cloudstack_name })
      const again = Worlds.inventory({ cloud: Worlds.cloud({ custom_ids, volumes: [there] }) })
      const input = Worlds.input([fresh], again, { digest })
      const plan = Plan.make(input)
      assert.deepInclude(plan.items[0]?.next, { _tag: "Adopt", volume_id: own })
      assert.deepStrictEqual(Check.check(input, plan), [])
    }
  })
})

describe("Losing a volume", () => {
  const gone = Worlds.inventory({ cloud: Worlds.cloud({ absent: [id] }) })
  const loss = { first_absent_at: Worlds.now - 60_000, proven_at: Worlds.now - 20_000, accepted: true }
  const lost = (on_loss: "hold" | "recreate", binding = {}) =>
    disk({ spec: { on_loss }, binding: { ...bound, loss, ...binding } })

  it("blocks its own declaration, or makes an empty one where that was declared", () => {
    assert.strictEqual(outcome(itemFor(lost("hold"), gone)), "VolumeLost")
    assert.strictEqual(outcome(itemFor(lost("recreate"), gone)), "Create")
  })

  it("is not believed before it is proven, nor from a listing alone (S17)", () => {
    const unproven = { loss: { ...loss, proven_at: null, accepted: false } }
    assert.strictEqual(outcome(itemFor(lost("recreate", unproven), gone)), "VolumeMissing")
    assert.strictEqual(outcome(itemFor(lost("recreate", { loss: null }), Worlds.inventory())), "VolumeMissing")
  })

  it("of many at once stops creation and destruction until a person approves the loss (S17)", () => {
    const many = [1, 2, 3, 4].map((n) =>
      Worlds.declaration(`disk-${n}`, { uid: Worlds.uidOf(n), binding: { ...bound, volume_id: Worlds.volumeId(n) } })
    )
    const fresh = Worlds.declaration("fresh", { uid: Worlds.uidOf(9) })
    const input = Worlds.input([...many, fresh], Worlds.inventory())
    const plan = Plan.make(input)
    assert.strictEqual(plan.items[4]?.blocked?.reason, "ObservationSuspect")
    assert.deepStrictEqual(
      plan.held.map((held) => held.action),
      many.map(() => "accept_loss")
    )
    const approved = Plan.make({ ...input, approved: new Set(plan.held.map(Plan.heldKey)) })
    assert.strictEqual(approved.items[4]?.next?._tag, "Create")
  })

  it("seen before is not forgotten by a reading of a few others (S17)", () => {
    const missing = [2, 3, 4].map((n) =>
      Worlds.declaration(`missing-${n}`, {
        uid: Worlds.uidOf(n),
        binding: { ...bound, volume_id: Worlds.volumeId(n), loss: { ...loss, accepted: false } }
      })
    )
    const some = Worlds.inventory({ cloud: Worlds.cloud({ scope: "some", volumes: [Worlds.cloudVolume(id)] }) })
    const plan = Plan.make(Worlds.input([disk(), ...missing], some, { only: new Set([uid]) }))
    assert.include(
      plan.notices.map((notice) => notice.reason),
      "ObservationSuspect"
    )
  })
})

describe("Removing a declaration", () => {
  it("with policy forget touches nothing, not even under a hold, but waits for what is under way", () => {
    const forgotten = disk({ binding: Worlds.settledBinding(id), deletion: Worlds.deletion("forget") })
    assert.isTrue(itemFor(forgotten, Worlds.inPlace([id]), { hold: "wait" }).removal_done)
    const running = itemFor(forgotten, Worlds.inPlace([id]), { operations: [Worlds.operation(uid)] })
    assert.deepStrictEqual([running.removal_done, running.blocked?.reason], [false, "OperationInFlight"])
    const stuck = [Worlds.operation(uid, { phase: "needs_operator" })]
    assert.isTrue(itemFor(forgotten, Worlds.inPlace([id]), { operations: stuck }).removal_done)
  })

  it("with policy retain takes away what is ours and stops there", () => {
    const retained = disk({ binding: Worlds.settledBinding(id), deletion: Worlds.deletion("retain") })
    assert.deepStrictEqual(chainOf(retained, Worlds.inPlace([id])), ["Unexport", "Detach"])
    const foreign = disk({ deletion: Worlds.deletion("retain") })
    assert.isTrue(itemFor(foreign, listed({ vm_id: other })).removal_done)
  })

  it("with policy delete detaches at once and deletes after the grace, when both witnesses say detached (S6)", () => {
    const early = disk({
      binding: Worlds.settledBinding(id),
      deletion: Worlds.deletion("delete", { execute_after: "2026-03-01T12:05:00Z" })
    })
    assert.strictEqual(outcome(itemFor(early, Worlds.inPlace([id]))), "Unexport")
    assert.strictEqual(
      outcome(itemFor({ ...early, binding: { ...early.binding, ...bound, export: null, attachment: null } }, listed())),
      "DeletionGrace"
    )
    const due = disk({ deletion: Worlds.deletion("delete") })
    assert.strictEqual(outcome(itemFor(due, listed())), "Delete")
    assert.strictEqual(
      outcome(itemFor(due, listed({}, { guest: Worlds.guest([Worlds.device(id, "b")]) }))),
      "StillInGuest"
    )
    assert.strictEqual(outcome(itemFor(due, listed({}, { guest: Worlds.unseen("away") }))), "GuestUnread")
    assert.strictEqual(outcome(itemFor(due, listed({ state: "Expunging" }))), "VolumeDestroyed")
  })

  it("is done when the volume is gone for good", () => {
    const deleting = (binding: Partial<Declaration["binding"]>) =>
      disk({ binding: { ...bound, ...binding }, deletion: Worlds.deletion("delete") })
    const gone = Worlds.inventory({ cloud: Worlds.cloud({ absent: [id] }) })
    assert.strictEqual(outcome(itemFor(deleting({}), gone)), "VolumeMissing")
    const loss = { first_absent_at: 1, proven_at: 2, accepted: true }
    assert.isTrue(itemFor(deleting({ loss }), gone).removal_done)
    // Proven while too much was missing: a lost permission looks the same, and would leave the volume behind (S17).
    assert.strictEqual(outcome(itemFor(deleting({ loss: { ...loss, accepted: false } }), gone)), "ObservationSuspect")
    assert.isTrue(itemFor(deleting({ volume_id: null }), gone).removal_done)
  })
})

describe("Many volumes", () => {
  const fleet = (count: number, changes: (n: number) => Worlds.DeclarationChanges) =>
    Array.from({ length: count }, (_, n) =>
      Worlds.declaration(`disk-${String(n).padStart(3, "0")}`, { uid: Worlds.uidOf(n), ...changes(n) })
    )
  const rows = (count: number, row: Parameters<typeof Worlds.cloudVolume>[1] = {}) =>
    Worlds.inventory({
      cloud: Worlds.cloud({
        volumes: Array.from({ length: count }, (_, n) => Worlds.cloudVolume(Worlds.volumeId(n), row))
      })
    })
  const bindTo = (n: number, settled_generation = 0) => ({
    volume_id: Worlds.volumeId(n),
    origin: "adopted" as const,
    settled_generation
  })
  const moving = (items: ReadonlyArray<PlanItem>) =>
    items.filter((item) => item.next !== null).map((item) => item.name as string)

  it("share a VM: what was declared goes before what drifted (S22)", () => {
    const spec = { attached_to: other, export_wanted: false }
    const declarations = fleet(5, (n) => ({ spec, binding: bindTo(n, n < 2 ? 1 : 0) }))
    const plan = Plan.make(Worlds.input(declarations, rows(5), { limits: { ...limits, actions_per_vm: 4 } }))
    assert.deepStrictEqual(moving(plan.items), ["disk-000", "disk-002", "disk-003", "disk-004"])
    assert.strictEqual(plan.items[1]?.blocked?.reason, "Queued")
  })

  it("are not held up by an operation that waits for a person (S19)", () => {
    const declarations = fleet(1, (n) => ({ spec: { attached_to: other, export_wanted: false }, binding: bindTo(n) }))
    const stuck = (phase: "accepted" | "needs_operator") => [
      Worlds.operation(Worlds.uidOf(50), { phase, vm_id: other })
    ]
    const plan = (phase: "accepted" | "needs_operator") =>
      Plan.make(
        Worlds.input(declarations, rows(1), { operations: stuck(phase), limits: { ...limits, actions_per_vm: 1 } })
      )
    assert.deepStrictEqual(moving(plan("accepted").items), [])
    assert.deepStrictEqual(moving(plan("needs_operator").items), ["disk-000"])
  })

  it("fill a VM to its last place and no further, those under way included", () => {
    const declarations = fleet(3, (n) => ({ spec: { attached_to: other, export_wanted: false }, binding: bindTo(n) }))
    const operations = [Worlds.operation(Worlds.uidOf(50), { vm_id: other, volume_id: Worlds.volumeId(50) })]
    const plan = Plan.make(Worlds.input(declarations, rows(3), { operations, limits: { ...limits, disks_per_vm: 2 } }))
    assert.deepStrictEqual(moving(plan.items), ["disk-000"])
  })

  it("are deleted within the budget of a pass and of an hour; the rest is held under one digest (S6, S17)", () => {
    const declarations = fleet(8, (n) => ({ binding: bindTo(n), deletion: Worlds.deletion("delete") }))
    const plan = (changes: Partial<Plan.Input>) => Plan.make(Worlds.input(declarations, rows(8), changes))
    assert.lengthOf(moving(plan({}).items), limits.destructive_per_pass)
    assert.strictEqual(plan({}).held.length, 8 - limits.destructive_per_pass)
    assert.strictEqual(plan({}).digest, "digest-of-3")
    assert.lengthOf(moving(plan({ destructive_last_hour: limits.destructive_per_hour - 1 }).items), 1)
    const approved = new Set(plan({ destructive_last_hour: 100 }).held.map(Plan.heldKey))
    assert.lengthOf(approved, 8)
    const run = plan({ destructive_last_hour: 100, approved })
    assert.lengthOf(moving(run.items), 8)
    assert.strictEqual(run.digest, null)
  })

  it("want one volume: one declaration gets it, the others are told whose it is (S4)", () => {
    const declarations = fleet(2, () => ({ spec: { volume_id: id, attached_to: null, export_wanted: null } }))
    const plan = Plan.make(Worlds.input(declarations, listed()))
    assert.deepStrictEqual(plan.items.map(outcome), ["Adopt", "VolumeClaimed"])
  })

  it("keep their own names: a claimed legacy section keeps the one it had", () => {
    const legacy = Worlds.nbd({ sections: [Worlds.section(id, { name: "old-name" })] })
    const world = { ...Worlds.inPlace([id]), nbd: legacy }
    const next = itemFor(disk({ binding: { ...bound, attachment: ours } }), world).next
    assert.strictEqual(next?._tag === "Export" ? next.export_name : null, "old-name")
    const fresh = itemFor(disk({ binding: { ...bound, attachment: ours } }), { ...world, nbd: Worlds.nbd() }).next
    assert.strictEqual(fresh?._tag === "Export" ? fresh.export_name : null, exportNameOf(id))
  })
})
