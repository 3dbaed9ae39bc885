import { assert, describe, it } from "@effect/vitest"
import type { Action, Guard, Plan as PlanValue, PlanItem } from "../../schema/Action.ts"
import type { Declaration } from "../../schema/Declaration.ts"
import { exportNameOf } from "../../schema/Ids.ts"
import type { Inventory } from "../../schema/Inventory.ts"
import { limits } from "../../schema/Settings.ts"
import * as Check from "../../reconciler/Check.ts"
import * as CustomId from "../../reconciler/CustomId.ts"
import type * as Plan from "../../reconciler/Plan.ts"
import * as Worlds from "../support/Worlds.ts"

/**
 * Each test plants one action that a broken planner could have planned and asserts that Check finds that very thing.
 * The world around it is one in which the action would be right but for what the test says.
 */
const id = Worlds.volumeId(1)
const uid = Worlds.uidOf(1)
const other = Worlds.vmId(1)
const ours = { vm_id: Worlds.appliance, as: "data", settled: true } as const

const declared = (changes: Worlds.DeclarationChanges = {}): Declaration =>
  Worlds.declaration("disk", { uid, binding: { volume_id: id, origin: "adopted" }, ...changes })

const common = {
  uid,
  name: declared().name,
  generation: 1,
  cause: "declaration",
  reason: "planted",
  destructive: false
} as const

const attach: Action = {
  _tag: "Attach",
  ...common,
  volume_id: id,
  vm_id: Worlds.appliance,
  as: "data",
  on_appliance: true
}
const detach: Action = {
  _tag: "Detach",
  ...common,
  volume_id: id,
  vm_id: Worlds.appliance,
  on_appliance: true,
  device: "252:98",
  root: false
}
const exporting: Action = {
  _tag: "Export",
  ...common,
  volume_id: id,
  export_name: exportNameOf(id),
  path: Worlds.byIdPath(id),
  device: "252:98",
  size: Worlds.device(id, "b").size,
  read_only: false
}
const unexport: Action = { _tag: "Unexport", ...common, volume_id: id, export_name: exportNameOf(id), device: "252:98" }
const deletion: Action = { _tag: "Delete", ...common, volume_id: id, destructive: true }
const tag: Action = { _tag: "Tag", ...common, volume_id: id, set: { team: "a" }, replace: [] }
const adopt: Action = { _tag: "Adopt", ...common, volume_id: id }
const creation: Action = {
  _tag: "Create",
  ...common,
  cloudstack_name: "disk",
  size_gib: 10,
  disk_offering_id: Worlds.offering,
  zone_id: Worlds.zone,
  existing_ids: [],
  custom_id: null
}

const item = (next: Action): PlanItem => ({
  uid: next.uid,
  name: next.name,
  generation: next.generation,
  volume_id: next._tag === "Create" ? null : next.volume_id,
  next,
  chain: [next],
  blocked: null,
  gap: "attachment",
  drift: false,
  settled: false,
  guard: null,
  removal_done: false
})

const planOf = (...actions: ReadonlyArray<Action>): PlanValue => ({
  at: Worlds.now,
  items: actions.map(item),
  held: [],
  digest: null,
  withheld: [],
  notices: []
})

const found = (
  action: Action | ReadonlyArray<Action>,
  declaration: Declaration | ReadonlyArray<Declaration>,
  observed: Inventory,
  changes: Partial<Plan.Input> = {}
) =>
  Check.check(
    Worlds.input([declaration].flat() as ReadonlyArray<Declaration>, observed, changes),
    planOf(...([action].flat() as ReadonlyArray<Action>))
  ).map(({ invariant, message }) => `${invariant} ${message}`)

const detachedWorld = (row: Parameters<typeof Worlds.cloudVolume>[1] = {}) =>
  Worlds.inventory({ cloud: Worlds.cloud({ volumes: [Worlds.cloudVolume(id, row)] }) })

const here = (changes: Partial<Inventory> = {}) =>
  Worlds.inventory({
    cloud: Worlds.cloud({ volumes: [Worlds.cloudVolume(id, { vm_id: Worlds.appliance })] }),
    guest: Worlds.guest([Worlds.device(id, "b")]),
    ...changes
  })

const leaving = (changes: Worlds.DeclarationChanges = {}) =>
  declared({ spec: { attached_to: "none" }, binding: { volume_id: id, attachment: ours }, ...changes })

const removing = (changes: Parameters<typeof Worlds.deletion>[1] = {}) =>
  declared({ deletion: Worlds.deletion("delete", changes) })

describe("Check", () => {
  it("is content with actions whose needs are met", () => {
    assert.deepStrictEqual(found(attach, declared(), detachedWorld()), [])
    assert.deepStrictEqual(found(detach, leaving(), here()), [])
    assert.deepStrictEqual(found(exporting, declared(), here()), [])
    assert.deepStrictEqual(found(unexport, leaving(), here()), [])
    assert.deepStrictEqual(found(deletion, removing(), detachedWorld()), [])
    assert.deepStrictEqual(found(tag, declared(), detachedWorld()), [])
    assert.deepStrictEqual(found(creation, Worlds.declaration("disk", { uid }), Worlds.inventory()), [])
    assert.deepStrictEqual(
      found(adopt, Worlds.declaration("disk", { uid, spec: { volume_id: id } }), detachedWorld()),
      []
    )
  })

  it("finds an attach of a volume that is on a VM already (S1)", () => {
    assert.deepStrictEqual(found(attach, declared(), detachedWorld({ vm_id: other })), [
      "S1 Attach: CloudStack does not say that the volume is on no VM"
    ])
  })

  it("finds an attach while the guest still has the disk, or was not read whole (S1)", () => {
    const still = { ...detachedWorld(), guest: Worlds.guest([Worlds.device(id, "b")]) }
    assert.deepStrictEqual(found(attach, declared(), still), ["S1 Attach: the guest still has the disk"])
    const torn = { ...detachedWorld(), guest: Worlds.guest([], false) }
    assert.deepStrictEqual(found(attach, declared(), torn), ["S1 Attach: the guest was not read whole"])
  })

  it("finds an attach to a VM that nobody declared (S1)", () => {
    assert.deepStrictEqual(found({ ...attach, vm_id: other }, declared(), detachedWorld()), [
      "S1 Attach: the declaration does not want it there"
    ])
  })

  it("finds an action beside an unresolved operation, on the declaration or on the volume (S2)", () => {
    const mine = [Worlds.operation(uid)]
    const foreign = [Worlds.operation(Worlds.uidOf(2), { volume_id: id })]
    for (const operations of [mine, foreign]) {
      assert.deepStrictEqual(found(attach, declared(), detachedWorld(), { operations }), [
        `S2 Attach: operation ${Worlds.operationId(1)} has no known outcome yet`
      ])
    }
    const settled = [Worlds.operation(uid, { phase: "settled" })]
    assert.deepStrictEqual(found(attach, declared(), detachedWorld(), { operations: settled }), [])
  })

  it("finds an action on a volume with a pending job (S2)", () => {
    assert.deepStrictEqual(found(tag, declared(), detachedWorld({ job_id: Worlds.jobId(4) })), [
      `S2 Tag: job ${Worlds.jobId(4)} is pending on the volume`
    ])
  })

  it("finds two actions on one volume (S2)", () => {
    assert.include(found([tag, attach], declared(), detachedWorld()), "S2 Attach: a second action for one volume")
  })

  it("finds an export of another disk, another path, a shared serial or a forbidden disk (S3)", () => {
    const guests = [
      [[Worlds.device(id, "c")], "the disk is another than planned for"],
      [[Worlds.device(id, "b", { by_id_paths: [] })], `${Worlds.byIdPath(id)} does not lead to the volume's disk`],
      [[Worlds.device(id, "b"), Worlds.device(id, "c")], "2 disks bear the volume's serial"],
      [[], "0 disks bear the volume's serial"],
      [[Worlds.device(id, "b", { forbidden: "swap" })], "the disk must not be exported: swap"]
    ] as const
    for (const [devices, message] of guests) {
      assert.deepStrictEqual(found(exporting, declared(), here({ guest: Worlds.guest(devices) })), [
        `S3 Export: ${message}`
      ])
    }
  })

  it("finds an export of a volume that CloudStack shows elsewhere (S3)", () => {
    const elsewhere = { ...detachedWorld({ vm_id: other }), guest: Worlds.guest([Worlds.device(id, "b")]) }
    assert.deepStrictEqual(found(exporting, declared(), elsewhere), [
      "S3 Export: CloudStack does not show it on the appliance"
    ])
  })

  it("finds an export that nobody wants (S3)", () => {
    assert.deepStrictEqual(found(exporting, declared({ spec: { export_wanted: false } }), here()), [
      "S3 Export: nobody wants it exported"
    ])
  })

  it("finds two exports with one name, or one path in two sections (S3)", () => {
    const rival = Worlds.declaration("rival", {
      uid: Worlds.uidOf(2),
      binding: { export: { name: exportNameOf(id), path: "/dev/disk/by-id/x", settled_at: 1 } }
    })
    assert.deepStrictEqual(found(exporting, [declared(), rival], here()), [
      `S3 Export: the name ${exportNameOf(id)} is rival's`
    ])
    const twice = here({ nbd: Worlds.nbd({ sections: [Worlds.section(id, { name: "hand-made" })] }) })
    assert.deepStrictEqual(found(exporting, declared(), twice), [
      `S3 Export: the section hand-made serves ${Worlds.byIdPath(id)} already`
    ])
    const second = { ...exporting, uid: Worlds.uidOf(2), volume_id: Worlds.volumeId(2) }
    assert.include(found([exporting, second], declared(), here()), "S3 Export: two exports with one name or one device")
  })

  it("finds an action on a volume that is not the declaration's, or is two declarations' (S4)", () => {
    const stranger = declared({ binding: { volume_id: Worlds.volumeId(2) } })
    assert.deepStrictEqual(found(tag, stranger, detachedWorld()), ["S4 Tag: the volume is not this declaration's"])
    const twin = Worlds.declaration("twin", { uid: Worlds.uidOf(2), binding: { volume_id: id } })
    assert.deepStrictEqual(found(tag, [declared(), twin], detachedWorld()), [
      "S4 Tag: 2 declarations are bound to the volume"
    ])
    assert.deepStrictEqual(found(tag, twin, detachedWorld()), ["S4 nobody declared this volume"])
  })

  it("finds an adoption of a volume that is bound, or that nobody named (S4)", () => {
    const asking = Worlds.declaration("disk", { uid, spec: { volume_id: id } })
    const holder = Worlds.declaration("holder", { uid: Worlds.uidOf(2), binding: { volume_id: id } })
    assert.deepStrictEqual(found(adopt, [asking, holder], detachedWorld()), [
      "S4 Adopt: the volume or the declaration is bound already"
    ])
    assert.deepStrictEqual(found(adopt, Worlds.declaration("disk", { uid }), detachedWorld()), [
      "S4 Adopt: the volume was not declared"
    ])
  })

  it("finds an action on a volume of another zone, one not seen, and one seen twice (S4)", () => {
    assert.deepStrictEqual(found(tag, declared(), detachedWorld({ zone_id: Worlds.otherZone })), [
      "S4 Tag: the volume is in another zone than declared"
    ])
    assert.deepStrictEqual(found(tag, declared(), Worlds.inventory()), ["S4 Tag: CloudStack does not show the volume"])
    const doubtful = Worlds.inventory({ cloud: Worlds.cloud({ ambiguous: [id] }) })
    assert.deepStrictEqual(found(tag, declared(), doubtful), [
      "S4 Tag: the readings of this volume contradict each other"
    ])
  })

  it("finds every call on a ROOT volume, save the detach of our own settled root attach on a Stopped VM (S5)", () => {
    const root = { vm_id: other, type: "ROOT", vm_state: "Stopped" } as const
    const stopped = (state = "Stopped") =>
      Worlds.cloud({ volumes: [Worlds.cloudVolume(id, root)], vms: [Worlds.vm(other, { state })] })
    const binding = (settled: boolean) => ({
      volume_id: id,
      attachment: { vm_id: other, as: "root" as const, settled }
    })
    const off: Action = { ...detach, vm_id: other, on_appliance: false, device: null, root: true }
    const check = (settled: boolean, state?: string) =>
      found(off, declared({ binding: binding(settled) }), Worlds.inventory({ cloud: stopped(state) }))
    assert.deepStrictEqual(check(true), [])
    assert.deepStrictEqual(check(false), ["S5 Detach: the volume is of type ROOT"])
    assert.deepStrictEqual(check(true, "Running"), ["S5 Detach: the volume is of type ROOT"])
    assert.include(found(tag, declared(), detachedWorld({ type: "ROOT" })), "S5 Tag: the volume is of type ROOT")
  })

  it("finds a delete that was not declared, is too early, or of a volume in use (S6)", () => {
    assert.deepStrictEqual(found(deletion, declared(), detachedWorld()), ["S6 Delete: no deletion was declared"])
    assert.deepStrictEqual(found(deletion, declared({ deletion: Worlds.deletion("retain") }), detachedWorld()), [
      "S6 Delete: no deletion was declared"
    ])
    assert.deepStrictEqual(found(deletion, removing({ execute_after: "2026-03-01T12:00:01Z" }), detachedWorld()), [
      "S6 Delete: the grace is not over"
    ])
    assert.deepStrictEqual(found(deletion, removing(), detachedWorld({ vm_id: other })), [
      "S6 Delete: the volume is not seen on no VM"
    ])
    assert.deepStrictEqual(found(deletion, removing(), detachedWorld({ delete_protection: true })), [
      "S6 Delete: the volume is protected"
    ])
    const still = { ...detachedWorld(), guest: Worlds.guest([Worlds.device(id, "b")]) }
    assert.deepStrictEqual(found(deletion, removing(), still), ["S6 Delete: the guest has the disk"])
    const exported = declared({
      deletion: Worlds.deletion("delete"),
      binding: Worlds.settledBinding(id, { attachment: null })
    })
    const lingering = { ...detachedWorld(), nbd: Worlds.nbd({ sections: [Worlds.section(id)] }) }
    assert.deepStrictEqual(found(deletion, exported, lingering), [
      `S6 Delete: the export ${exportNameOf(id)} still leads to it`
    ])
  })

  it("finds an action under a hold or a pause (S8)", () => {
    assert.deepStrictEqual(found(tag, declared(), detachedWorld(), { hold: "wait" }), [
      "S8 Tag: nothing may be changed: wait"
    ])
    const paused = declared({ spec: { paused: { reason: "why", by: "who" } } })
    assert.deepStrictEqual(found(tag, paused, detachedWorld()), ["S8 Tag: the declaration is paused"])
  })

  it("finds a create for a declaration that has a volume, by binding, by name of an id or by its mark (S10)", () => {
    assert.deepStrictEqual(found(creation, declared(), Worlds.inventory()), [
      "S10 Create: the declaration has a volume already"
    ])
    const asking = Worlds.declaration("disk", { uid, spec: { volume_id: id } })
    assert.deepStrictEqual(found(creation, asking, Worlds.inventory()), [
      "S10 Create: the declaration names a volume to adopt"
    ])
    const fresh = Worlds.declaration("disk", { uid })
    const marked = detachedWorld({ tags: [{ key: "volumed-uid", value: uid }] })
    assert.deepStrictEqual(found(creation, fresh, marked), ["S10 Create: a volume with this declaration's uid exists"])
    assert.deepStrictEqual(found(creation, fresh, detachedWorld({ name: "disk" })), [
      "S10 Create: a volume of that name is not among the known ones"
    ])
  })

  it("finds a create with an id that the account may not choose, or that is not its declaration's (S8, S10)", () => {
    const fresh = Worlds.declaration("disk", { uid })
    const digest = (text: string) => text.padEnd(32, "0")
    const own = CustomId.derive(digest, fresh)
    const may = Worlds.inventory({ cloud: Worlds.cloud({ custom_ids: true }) })
    assert.deepStrictEqual(found({ ...creation, custom_id: own }, fresh, may, { digest }), [])
    assert.deepStrictEqual(found({ ...creation, custom_id: own }, fresh, Worlds.inventory(), { digest }), [
      "S10 Create: the account may not choose an id"
    ])
    assert.deepStrictEqual(found({ ...creation, custom_id: id }, fresh, may, { digest }), [
      "S10 Create: the chosen id is not this declaration's"
    ])
  })

  it("finds a detach under a client, under an export, or from another VM than seen (S11)", () => {
    const holders = [{ pid: 7, command: "nbd-server", device: "252:98", peer: "10.0.0.9", since: null }]
    assert.deepStrictEqual(found(detach, leaving(), here({ nbd: Worlds.nbd({ holders }) })), [
      "S11 Detach: somebody has the device open"
    ])
    assert.deepStrictEqual(found(unexport, leaving(), here({ nbd: Worlds.nbd({ holders }) })), [
      "S11 Unexport: somebody has the device open"
    ])
    const leading = [
      Worlds.nbd({ sections: [Worlds.section(id)] }),
      Worlds.nbd({ sections: [Worlds.section(id, { name: "hand-made", path: "/dev/vdb" })] }),
      Worlds.nbd({ verifications: [Worlds.verification(id, "b")] })
    ]
    for (const nbd of leading) {
      assert.match(found(detach, leaving(), here({ nbd })).join(), /^S11 Detach: the export .* still leads to it$/)
    }
    assert.deepStrictEqual(found({ ...detach, vm_id: other }, leaving(), here()), [
      "S11 Detach: the volume is not on that VM"
    ])
    assert.deepStrictEqual(found(detach, leaving(), here({ nbd: Worlds.unseen("no") })), [
      "S11 Detach: the NBD server was not read whole"
    ])
    assert.deepStrictEqual(found(detach, leaving(), here({ guest: Worlds.unseen("no") })), [
      "S11 Detach: the guest was not read"
    ])
  })

  it("finds an action of another generation (S15)", () => {
    assert.deepStrictEqual(found(tag, declared({ generation: 2 }), detachedWorld()), [
      "S15 Tag: planned for generation 1, not 2"
    ])
  })

  it("finds cloud actions on a torn reading, destruction on a partial or suspect one (S17)", () => {
    const rows = { volumes: [Worlds.cloudVolume(id)] }
    assert.deepStrictEqual(found(tag, declared(), Worlds.inventory({ cloud: Worlds.cloud(rows, false) })), [
      "S17 Tag: CloudStack's reading is not complete"
    ])
    const some = Worlds.inventory({ cloud: Worlds.cloud({ ...rows, scope: "some" }) })
    assert.deepStrictEqual(found(deletion, removing(), some), ["S17 Delete: it needs a whole listing"])
    const lost = [2, 3, 4].map((n) =>
      Worlds.declaration(`lost-${n}`, { uid: Worlds.uidOf(n), binding: { volume_id: Worlds.volumeId(n) } })
    )
    assert.deepStrictEqual(found(deletion, [removing(), ...lost], detachedWorld()), [
      "S17 Delete: too many volumes are missing at once"
    ])
  })

  it("finds an action in a state that is not one to act in (S17)", () => {
    for (const state of ["Creating", "Snapshotting", "Expunging", "Destroy", "Teleporting"]) {
      assert.deepStrictEqual(found(tag, declared(), detachedWorld({ state })), [
        `S17 Tag: the volume is in state ${state}`
      ])
    }
    assert.deepStrictEqual(found(deletion, removing(), detachedWorld({ state: "Destroy" })), [])
  })

  it("finds destruction beyond the budget, whatever the action says of itself, and lets approved ones run (S17)", () => {
    const spent = { destructive_last_hour: limits.destructive_per_hour }
    const message = "S17 the budget of 0 destructive actions is spent"
    assert.deepStrictEqual(found(deletion, removing(), detachedWorld(), spent), [message])
    assert.deepStrictEqual(found({ ...detach, cause: "drift" }, leaving(), here(), spent), [message])
    assert.deepStrictEqual(
      found(deletion, removing(), detachedWorld(), { ...spent, approved: new Set([`${uid} 1 ${id} delete`]) }),
      []
    )
  })

  it("finds more changes at once than a VM or the cloud may have (S22)", () => {
    const busy = [
      Worlds.operation(Worlds.uidOf(8), { vm_id: Worlds.appliance }),
      Worlds.operation(Worlds.uidOf(9), { type: "create" })
    ]
    const narrow = (changes: Partial<typeof limits>) => ({ operations: busy, limits: { ...limits, ...changes } })
    assert.deepStrictEqual(found(attach, declared(), detachedWorld(), narrow({ actions_per_vm: 1 })), [
      "S22 Attach: too many changes at once"
    ])
    assert.deepStrictEqual(found(attach, declared(), detachedWorld(), narrow({ actions_total: 2 })), [
      "S22 Attach: too many changes at once"
    ])
    assert.deepStrictEqual(found(attach, declared(), detachedWorld(), narrow({ actions_total: 3 })), [])
  })

  it("finds a detach or a tag on an attachment that is not ours, unless the declaration says move (S23)", () => {
    const foreign = detachedWorld({ vm_id: other })
    const off: Action = { ...detach, vm_id: other, on_appliance: false, device: null }
    const message = `its attachment to VM ${other} is not ours`
    assert.deepStrictEqual(found(off, declared(), foreign), [`S23 Detach: ${message}`])
    assert.deepStrictEqual(found(tag, declared({ spec: { on_conflict: "move" } }), foreign), [`S23 Tag: ${message}`])
    assert.deepStrictEqual(found(off, declared({ spec: { on_conflict: "move" } }), foreign), [])
  })
})

describe("The check of what is done to an export's clients", () => {
  const name = exportNameOf(id)
  const guarding = { export_name: name, reason: "planted" }
  const fence: Guard = { _tag: "Fence", ...guarding }
  const release: Guard = { _tag: "Release", ...guarding }
  const ending: Guard = { _tag: "EndClients", ...guarding, device: "252:98" }
  const exported = (changes: Worlds.DeclarationChanges = {}) =>
    declared({ binding: Worlds.settledBinding(id), ...changes })
  const going = (changes: Worlds.DeclarationChanges = {}) => exported({ spec: { attached_to: other }, ...changes })
  const shut = (section: Parameters<typeof Worlds.section>[1] = {}, rest: Partial<Inventory> = {}) =>
    here({
      nbd: Worlds.nbd({ sections: [Worlds.section(id, { device: "252:98", fenced_at: Worlds.now - 1, ...section })] }),
      ...rest
    })
  const consents = new Map([[uid, Worlds.now]])

  const guarded = (
    guard: Guard,
    declarations: Declaration | ReadonlyArray<Declaration>,
    observed: Inventory,
    changes: Partial<Plan.Input> = {}
  ) => {
    const { items, ...plan } = planOf(tag)
    const only = items.map((one) => ({ ...one, next: null, chain: [], guard }))
    const input = Worlds.input([declarations].flat() as ReadonlyArray<Declaration>, observed, changes)
    return Check.check(input, { ...plan, items: only }).map(({ invariant, message }) => `${invariant} ${message}`)
  }

  it("is content with what is right", () => {
    assert.deepStrictEqual(guarded(fence, exported(), shut()), [])
    assert.deepStrictEqual(guarded(release, exported(), shut()), [])
    assert.deepStrictEqual(guarded(ending, going(), shut(), { consents }), [])
    assert.deepStrictEqual(guarded(ending, exported({ deletion: Worlds.deletion("retain") }), shut(), { consents }), [])
  })

  it("finds clients ended without consent, before it counts, or while new ones are let in (N10, S11)", () => {
    assert.deepStrictEqual(guarded(ending, going(), shut()), ["S11 EndClients: nobody agreed to that"])
    const later = new Map([[uid, Worlds.now + 1]])
    assert.deepStrictEqual(guarded(ending, going(), shut(), { consents: later }), [
      "S11 EndClients: nobody agreed to that"
    ])
    assert.deepStrictEqual(guarded(ending, going(), shut({ fenced_at: null }), { consents }), [
      "S11 EndClients: new clients are let in still"
    ])
  })

  it("finds clients ended of another disk, of one of two, or of a volume that stays (S11)", () => {
    assert.deepStrictEqual(guarded({ ...ending, device: "252:99" }, going(), shut(), { consents }), [
      "S11 EndClients: 252:99 is not this volume's disk"
    ])
    const two = shut({}, { guest: Worlds.guest([Worlds.device(id, "b"), Worlds.device(id, "c")]) })
    assert.deepStrictEqual(guarded(ending, going(), two, { consents }), [
      "S11 EndClients: 252:98 is not this volume's disk"
    ])
    assert.deepStrictEqual(guarded(ending, exported(), shut(), { consents }), ["S11 EndClients: nothing is to leave"])
  })

  it("finds an export opened that leads elsewhere, led elsewhere lately, or is to go (S3)", () => {
    const wrong = [
      [shut({ device: "252:99" }), "its path leads to 252:99"],
      [shut({ device: null }), "its path leads to no disk"],
      [shut({}, { guest: Worlds.guest() }), "0 disks bear the volume's serial"],
      [
        shut({}, { guest: Worlds.guest([Worlds.device(id, "b", { forbidden: "swap" })]) }),
        "the disk must not be exported: swap"
      ],
      [here(), "the file has no section for it"]
    ] as const
    for (const [observed, message] of wrong) {
      assert.deepStrictEqual(guarded(release, exported(), observed), [`S3 Release: ${message}`])
    }
    assert.deepStrictEqual(guarded(release, exported(), shut(), { astray: new Set([name]) }), [
      "S3 Release: it led to another disk lately"
    ])
    assert.deepStrictEqual(guarded(release, going(), shut()), ["S3 Release: it is to go"])
  })

  it("finds a guard of an export that is another's, nobody's, or forgotten (S4)", () => {
    assert.deepStrictEqual(guarded({ ...fence, export_name: "theirs" }, exported(), shut()), [
      "S4 Fence: theirs is not this declaration's export"
    ])
    const rival = Worlds.declaration("rival", {
      uid: Worlds.uidOf(2),
      binding: Worlds.settledBinding(Worlds.volumeId(2), { export: { name, path: "/dev/x", settled_at: 1 } })
    })
    assert.deepStrictEqual(guarded(fence, [exported(), rival], shut()), [`S4 Fence: ${name} is rival's as well`])
    assert.deepStrictEqual(guarded(fence, rival, shut()), ["S4 nobody declared this export"])
    const forgotten = exported({ deletion: Worlds.deletion("forget") })
    assert.deepStrictEqual(guarded(fence, forgotten, shut()), ["S4 Fence: its declaration is forgotten"])
  })

  it("finds one under a hold, and anything but a fence under a pause (S8)", () => {
    assert.deepStrictEqual(guarded(fence, exported(), shut(), { hold: "wait" }), [
      "S8 Fence: nothing may be changed: wait"
    ])
    const paused = exported({ spec: { paused: { reason: "why", by: "who" } } })
    assert.deepStrictEqual(guarded(fence, paused, shut()), [])
    assert.deepStrictEqual(guarded(release, paused, shut()), ["S8 Release: the declaration is paused"])
  })
})
