import { assert, describe, it } from "@effect/vitest"
import type { Write } from "../../reconciler/Store.ts"
import * as Withdrawal from "../../reconciler/Withdrawal.ts"
import type { CallWish, Operation } from "../../schema/Operation.ts"
import type { Inventory } from "../../schema/Inventory.ts"
import type { Declaration } from "../../schema/Declaration.ts"
import * as Worlds from "../support/Worlds.ts"

const volume = Worlds.volumeId(1)
const testVm = Worlds.vmId(1)
const otherVm = Worlds.vmId(2)

const toAppliance = { attached_to: "appliance", attach_as: "data", export_wanted: true } as const
const nowhere = { attached_to: "none", attach_as: "data", export_wanted: false } as const

const declared = (changes: Worlds.DeclarationChanges = {}) =>
  Worlds.declaration("disk-0", {
    generation: 5,
    ...changes,
    spec: { ...toAppliance, ...changes.spec },
    binding: { volume_id: volume, ...changes.binding }
  })

const uid = declared().uid

const call = (type: Operation["type"], wish: Partial<CallWish>, changes: Partial<Operation> = {}): Operation =>
  Worlds.operation(uid, {
    id: Worlds.operationId(10),
    type,
    status: "executing",
    cause: "api",
    wish: { spec: {}, before: {}, remove: false, ...wish },
    ...changes
  })

const attach = call("attach", { spec: toAppliance, before: nowhere })

const on = (vm_id: typeof testVm | null, type = "DATADISK") =>
  Worlds.inventory({ cloud: Worlds.cloud({ volumes: [Worlds.cloudVolume(volume, { vm_id, type })] }) })

interface Beside {
  readonly open?: ReadonlyArray<Operation>
  readonly unresolved?: ReadonlyArray<Operation>
}

const withdraw = (
  ended: Operation,
  declaration: Declaration | null,
  inventory: Inventory | null,
  { open = [], unresolved = [] }: Beside = {}
) => Withdrawal.make(ended, declaration, open, unresolved, inventory, Worlds.now)

const placed = ({ write }: { readonly write: Write | null }) => {
  assert.isNotNull(write)
  const { attach_as, attached_to, export_wanted } = write?.spec ?? Worlds.spec("none")
  return { attached_to, attach_as, export_wanted }
}

const sent = (type: Operation["type"], changes: Partial<Operation> = {}) =>
  Worlds.operation(uid, { id: Worlds.operationId(20), type, phase: "accepted", ...changes })

describe("The wish of a failed attach", () => {
  it("returns to what is observed: on no VM, its export as it was declared before", () => {
    const withdrawal = withdraw(attach, declared(), on(null))
    assert.deepStrictEqual(placed(withdrawal), nowhere)
    assert.deepInclude(withdrawal.write, { expected_generation: 5, generation: 6, kind: "changed", actor: "volumed" })
    assert.strictEqual(withdrawal.write?.managers["attached_to"]?.by, "volumed")
    assert.isFalse(withdrawal.pending)
    assert.deepStrictEqual(withdrawal.write?.binding, { settled_generation: 6 })
  })

  it("returns to where it is by our doing, be that as data or as root", () => {
    const there = (as: "data" | "root") => declared({ binding: { attachment: { vm_id: testVm, as, settled: true } } })
    assert.deepInclude(placed(withdraw(attach, there("data"), on(testVm))), { attached_to: testVm, attach_as: "data" })
    assert.deepInclude(placed(withdraw(attach, there("root"), on(testVm, "ROOT"))), {
      attached_to: testVm,
      attach_as: "root"
    })
    const attachment = { vm_id: Worlds.appliance, as: "data", settled: true } as const
    const elsewhere = call("attach", { spec: { attached_to: testVm, attach_as: "data" }, before: nowhere })
    const here = declared({ spec: { attached_to: testVm }, binding: { attachment } })
    assert.deepInclude(placed(withdraw(elsewhere, here, on(Worlds.appliance))), { attached_to: "appliance" })
  })

  it("never becomes somebody else's attachment, which would make that ours (S23)", () => {
    assert.deepStrictEqual(placed(withdraw(attach, declared(), on(otherVm))), nowhere)
    const placeless = { attached_to: null, attach_as: "data", export_wanted: null } as const
    const unknown = call("attach", { spec: toAppliance, before: placeless })
    assert.deepStrictEqual(placed(withdraw(unknown, declared(), on(otherVm))), placeless)
  })

  it("returns to what stood there before while CloudStack is unread", () => {
    for (const inventory of [null, Worlds.inventory({ cloud: Worlds.unseen("away") })]) {
      assert.deepStrictEqual(placed(withdraw(attach, declared(), inventory)), nowhere)
    }
  })

  it("that stood there before is asked for no more: a gap in it is drift, as it was before the call", () => {
    const again = call("attach", { spec: toAppliance, before: toAppliance })
    const { write } = withdraw(again, declared(), Worlds.inventory({ cloud: Worlds.unseen("away") }))
    assert.deepInclude(write, { spec: declared().spec, generation: 6 })
    assert.deepStrictEqual(write?.binding, { settled_generation: 6 })
  })

  it("stays where newer writes changed it, field by field", () => {
    const moved = declared({ spec: { attached_to: otherVm } })
    assert.deepStrictEqual(placed(withdraw(attach, moved, on(null))), {
      attached_to: otherVm,
      attach_as: "data",
      export_wanted: false
    })
    const all = declared({ spec: { attached_to: otherVm, attach_as: "root", export_wanted: false } })
    assert.deepStrictEqual(withdraw(attach, all, on(null)), { write: null, pending: false })
  })

  it("stays where another open call wishes it, and not for one that has ended or is of another declaration", () => {
    const rival = { ...attach, id: Worlds.operationId(11) }
    const other = { ...rival, uid: Worlds.uidOf(7) }
    assert.isNull(withdraw(attach, declared(), on(null), { open: [attach, rival] }).write)
    for (const open of [{ ...rival, status: "failed" as const }, other]) {
      assert.deepStrictEqual(placed(withdraw(attach, declared(), on(null), { open: [open] })), nowhere)
    }
  })

  it("that was sent marks what may still come of it as late (C3)", () => {
    const action = sent("attach")
    const { write } = withdraw(attach, declared(), on(null), { unresolved: [action] })
    assert.deepStrictEqual(placed({ write }), nowhere)
    assert.deepStrictEqual(write?.binding?.late, { operation_id: action.id, type: "attach" })
    for (const unresolved of [
      sent("attach", { uid: Worlds.uidOf(7) }),
      sent("attach", { phase: "settled", status: "failed" })
    ]) {
      const { write: unsent } = withdraw(attach, declared(), on(null), { unresolved: [unresolved] })
      assert.isUndefined(unsent?.binding?.late)
    }
  })

  it("leaves nothing to write where all is as it was, or nobody declares it any more", () => {
    const same = call("attach", { spec: toAppliance, before: toAppliance })
    const attachment = { vm_id: Worlds.appliance, as: "data", settled: true } as const
    const there = declared({ binding: { attachment, settled_generation: 5 } })
    assert.deepStrictEqual(withdraw(same, there, on(Worlds.appliance)), { write: null, pending: false })
    assert.deepStrictEqual(withdraw(attach, null, on(null)), { write: null, pending: false })
    assert.deepStrictEqual(withdraw(call("attach", {}, { wish: null }), declared(), on(null)), {
      write: null,
      pending: false
    })
  })
})

describe("The wish of a failed detach", () => {
  const detach = call("detach", { spec: { attached_to: "none" }, before: { ...toAppliance } })

  it("returns to the VM that it is on, so that the export comes again", () => {
    const attachment = { vm_id: Worlds.appliance, as: "data", settled: true } as const
    const leaving = declared({ spec: { attached_to: "none" }, binding: { attachment } })
    assert.deepStrictEqual(placed(withdraw(detach, leaving, on(Worlds.appliance))), toAppliance)
  })

  it("gives back the attachment of somebody else that it had named (S23)", () => {
    const attachment = { vm_id: otherVm, as: "data", settled: false } as const
    const before = { attached_to: null, attach_as: "data", export_wanted: null } as const
    const wish = { spec: { attached_to: "none", export_wanted: false }, before } as const
    const named = call("detach", wish, { vm_id: otherVm })
    const leaving = declared({ spec: { attached_to: "none", export_wanted: false }, binding: { attachment } })
    const { write } = withdraw(named, leaving, on(otherVm))
    assert.deepStrictEqual(placed({ write }), before)
    assert.isNull(write?.binding?.attachment)
    const next = { ...named, id: Worlds.operationId(11) }
    assert.isNull(withdraw(named, leaving, on(otherVm), { open: [named, next] }).write, "the next one names it as well")
  })

  it("leaves an attachment ours that was so before it was named", () => {
    const attachment = { vm_id: otherVm, as: "data", settled: false } as const
    const leaving = declared({ spec: { attached_to: "none" }, binding: { attachment } })
    const own = call("detach", { spec: { attached_to: "none" }, before: { attached_to: otherVm } })
    assert.strictEqual(placed(withdraw(own, leaving, on(otherVm))).attached_to, otherVm)
    assert.isUndefined(withdraw(own, leaving, on(otherVm)).write?.binding?.attachment)
  })
})

describe("A failed delete", () => {
  const remove = call("delete", { remove: true, before: toAppliance })
  const attachment = { vm_id: Worlds.appliance, as: "data", settled: true } as const
  const removed = declared({ deletion: Worlds.deletion("delete"), binding: { attachment } })

  it("is declared removed no more, and stays where it is", () => {
    const { pending, write } = withdraw(remove, removed, on(Worlds.appliance))
    assert.deepInclude(write, { deletion: null, kind: "undeleted", generation: 6 })
    assert.deepStrictEqual(placed({ write }), toAppliance)
    assert.isFalse(pending)
  })

  it("stays removed where its own delete was sent: what may be gone is not taken back (S6)", () => {
    assert.deepStrictEqual(withdraw(remove, removed, on(null), { unresolved: [sent("delete")] }), {
      write: null,
      pending: false
    })
  })

  it("is taken back while only its detach was sent, whose late effect is a person's", () => {
    const { write } = withdraw(remove, removed, on(Worlds.appliance), { unresolved: [sent("detach")] })
    assert.isNull(write?.deletion)
    assert.deepInclude(write?.binding?.late, { type: "detach" })
  })

  it("is nobody's any more when the removal was taken back already", () => {
    assert.isNull(withdraw(remove, declared(), on(Worlds.appliance)).write)
  })
})

describe("A failed create", () => {
  const create = call("create", {}, { volume_id: "", generation: 5 })
  const unmade = declared({ spec: nowhere, binding: { volume_id: null } })

  it("forgets its declaration where nothing was sent, so that nothing is made later", () => {
    const { pending, write } = withdraw(create, unmade, on(null))
    assert.deepInclude(write?.deletion, { policy: "forget", by: "volumed" })
    assert.strictEqual(write?.kind, "removed")
    assert.isFalse(pending)
  })

  it("waits for what was sent, whose volume must be known when it comes (S9)", () => {
    const action = sent("create")
    const first = withdraw(create, unmade, on(null), { unresolved: [action] })
    assert.isTrue(first.pending)
    assert.isNull(first.write?.deletion)
    assert.deepInclude(first.write?.binding?.late, { operation_id: action.id })
    const marked = {
      ...unmade,
      generation: 6,
      binding: { ...unmade.binding, late: { operation_id: action.id, type: "create" } }
    }
    const failed = { ...create, status: "failed", phase: "uncertain" } as const
    assert.deepStrictEqual(withdraw(failed, marked, on(null), { unresolved: [action] }), { write: null, pending: true })
    const proven = { ...marked, binding: { ...marked.binding, late: null } }
    assert.strictEqual(withdraw(failed, proven, on(null)).write?.kind, "removed")
  })

  it("leaves what somebody declared since, before its end or after (S14)", () => {
    assert.deepStrictEqual(withdraw(create, { ...unmade, generation: 6 }, on(null)), { write: null, pending: false })
    const failed = { ...create, status: "failed", phase: "uncertain" } as const
    assert.deepStrictEqual(withdraw(failed, { ...unmade, generation: 7 }, on(null)), { write: null, pending: false })
  })

  it("keeps a volume that was made after all, and a removal that somebody asked for", () => {
    assert.deepStrictEqual(withdraw(create, declared({ spec: nowhere }), on(null)), { write: null, pending: false })
    const removed = declared({ deletion: Worlds.deletion("retain"), binding: { volume_id: null } })
    assert.deepStrictEqual(withdraw(create, removed, on(null)), { write: null, pending: false })
  })
})
