import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import * as Call from "../../reconciler/Call.ts"
import type { Declaration } from "../../schema/Declaration.ts"
import { GIB } from "../../schema/Declaration.ts"
import { Name } from "../../schema/Ids.ts"
import type { Operation, OperationType } from "../../schema/Operation.ts"
import * as Worlds from "../support/Worlds.ts"

const volume = Worlds.volumeId(1)
const testVm = Worlds.vmId(1)
const otherVm = Worlds.vmId(2)

let made = 0
const context = (part: Partial<Call.Context> = {}): Call.Context => ({
  now: Worlds.now,
  actor: "v1",
  appliance_vm_id: Worlds.appliance,
  defaults: { disk_offering_id: Worlds.offering, zone_id: Worlds.zone },
  delete_grace_ms: 600_000,
  newUid: () => Worlds.uidOf(++made),
  newOperationId: () => Worlds.operationId(++made),
  ...part
})

const asking = (type: Call.CallType, wish: Call.Ask["wish"] = {}, more: Partial<Call.Ask> = {}): Call.Ask => ({
  type,
  vm_id: null,
  request: { as: "sent" },
  wish,
  ...more
})

const attach = asking("attach", { attached_to: "appliance", attach_as: "data", export_wanted: true })
const detach = asking("detach", { attached_to: "none" })

const declared = (changes: Worlds.DeclarationChanges = {}) =>
  Worlds.declaration("disk-0", {
    generation: 4,
    ...changes,
    spec: { attached_to: "none", export_wanted: false, ...changes.spec },
    binding: { volume_id: volume, ...changes.binding }
  })

/** The row of a call as the store would have it. */
const row = (asked: Call.Asked, status: Operation["status"] = "pending"): Operation => ({
  ...Worlds.operation(asked.call.uid, { status, cause: "api", phase: "intended" }),
  ...asked.call
})

describe("The name of a declaration that nobody named", () => {
  it("is what the volume is called, as far as a name takes it, and eight digits", () => {
    const uuid = "c39b6512-84b6-477c-b277-96655e3288cd"
    const names: ReadonlyArray<readonly [string, string]> = [
      ["pgtest2-disk-0", "pgtest2-disk-0-c39b6512"],
      ["web disk / 0", "web-disk-0-c39b6512"],
      ["--flag", "flag-c39b6512"],
      ["../../etc/passwd\n", "etc-passwd--c39b6512"],
      ["日本", "volume-c39b6512"],
      ["", "volume-c39b6512"],
      ["x".repeat(255), `${"x".repeat(244)}-c39b6512`]
    ]
    for (const [called, expected] of names) {
      assert.strictEqual(Call.nameFor(called, uuid), expected)
      assert.strictEqual(Name.make(Call.nameFor(called, uuid)), expected)
    }
  })
})

describe("A call to create", () => {
  const volumeAsked = {
    cloudstack_name: "disk 0",
    size: GIB,
    disk_offering_id: null,
    zone_id: null,
    metadata: { job: "7" }
  }

  it.effect("makes a declaration of a volume on no VM, and a row beside it", () =>
    Effect.gen(function* () {
      const { call, change } = yield* Call.create(volumeAsked, { name: "disk 0" }, context())
      const { name, spec, uid } = change.declaration
      assert.deepInclude(spec, {
        cloudstack_name: "disk 0",
        disk_offering_id: Worlds.offering,
        zone_id: Worlds.zone,
        attached_to: "none",
        export_wanted: false,
        deletion_policy: "forget",
        on_drift: "hold",
        metadata: { job: "7" }
      })
      assert.deepInclude(change.write, { name, uid, expected_generation: null, generation: 1, kind: "declared" })
      assert.deepInclude(call, { type: "create", volume_id: "", name, uid, generation: 1, request: { name: "disk 0" } })
      assert.deepStrictEqual(call.wish, { spec: {}, before: {}, remove: false })
      assert.strictEqual(call.deadline_at, Worlds.now + 280_000)
    })
  )

  it.effect("is refused where neither the caller nor the configuration names an offering", () =>
    Effect.gen(function* () {
      const unconfigured = context({ defaults: { disk_offering_id: null, zone_id: null } })
      const refusal = yield* Effect.flip(Call.create(volumeAsked, {}, unconfigured))
      assert.strictEqual(refusal.code, "INVALID_REQUEST")
      assert.deepStrictEqual(
        refusal.errors.map(({ field }) => field),
        ["disk_offering_id", "zone_id"]
      )
    })
  )
})

describe("A call on what is declared", () => {
  it.effect("edits the declaration, and remembers what stood there before", () =>
    Effect.gen(function* () {
      const { call, change } = yield* Call.ask(declared(), attach, context())
      assert.deepInclude(change.declaration.spec, attach.wish)
      assert.deepInclude(change.write, { expected_generation: 4, generation: 5, kind: "changed", actor: "v1" })
      assert.strictEqual(change.declaration.managers["attached_to"]?.by, "v1")
      assert.deepInclude(call, { volume_id: volume, generation: 5, deadline_at: Worlds.now + 110_000 })
      assert.deepStrictEqual(call.wish, {
        spec: attach.wish,
        before: { attached_to: "none", attach_as: "data", export_wanted: false },
        remove: false
      })
    })
  )

  it.effect("is a write of its own also where all that it wishes stands there already", () =>
    Effect.gen(function* () {
      const current = declared({ spec: attach.wish })
      const { call, change } = yield* Call.ask(current, attach, context())
      assert.deepStrictEqual(change.declaration.spec, current.spec)
      assert.deepInclude(change.write, { expected_generation: 4, generation: 5 })
      assert.strictEqual(call.generation, 5)
    })
  )

  it.effect("declares what it says beside its wish, which is no part of what is taken back", () =>
    Effect.gen(function* () {
      const readOnly = asking("export", { export_wanted: true }, { beside: { read_only: true } })
      const { call, change } = yield* Call.ask(declared(), readOnly, context())
      assert.deepInclude(change.declaration.spec, { export_wanted: true, read_only: true })
      assert.deepStrictEqual(call.wish.spec, { export_wanted: true })
      const unknown = yield* Call.askUnknown(Worlds.cloudVolume(volume), readOnly, context())
      assert.deepInclude(unknown.change.declaration.spec, { export_wanted: true, read_only: true })
    })
  )

  it.effect("has an attachment that went away made anew, not held as drift", () =>
    Effect.gen(function* () {
      const attachment = { vm_id: Worlds.appliance, as: "data", settled: true } as const
      const current = declared({ spec: attach.wish, binding: { attachment } })
      const again = yield* Call.ask(current, attach, context())
      assert.isNull(again.change.declaration.binding.attachment)
      const away = yield* Call.ask(current, detach, context())
      assert.deepStrictEqual(away.change.declaration.binding.attachment, attachment)
    })
  )

  it.effect("keeps known what our own attach made a root volume (S5)", () =>
    Effect.gen(function* () {
      const attachment = { vm_id: testVm, as: "root", settled: true } as const
      const spec = { attached_to: testVm, attach_as: "root" } as const
      const current = declared({ spec, binding: { attachment } })
      const { change } = yield* Call.ask(current, asking("attach", spec), context())
      assert.deepStrictEqual(change.declaration.binding.attachment, attachment)
    })
  )

  it.effect("to delete declares it removed at once, without the grace of a declaration", () =>
    Effect.gen(function* () {
      const { call, change } = yield* Call.ask(declared(), asking("delete"), context())
      assert.deepInclude(change.declaration.deletion, { policy: "delete", by: "v1" })
      assert.strictEqual(Date.parse(change.declaration.deletion?.execute_after ?? ""), Worlds.now)
      assert.strictEqual(change.write?.kind, "removed")
      assert.isTrue(call.wish.remove)
      assert.strictEqual(call.deadline_at, Worlds.now + 55_000)
    })
  )

  it.effect("is refused while it is paused, and taken when the pause is over", () =>
    Effect.gen(function* () {
      const paused = (until?: string) =>
        declared({ spec: { paused: { reason: "array swap", by: "alice", ...(until === undefined ? {} : { until }) } } })
      for (const asked of [attach, detach, asking("delete"), asking("export", { export_wanted: true })]) {
        const refusal = yield* Effect.flip(Call.ask(paused(), asked, context()))
        assert.strictEqual(refusal.code, "CONFLICT")
        assert.include(refusal.error, "paused by alice: array swap")
      }
      yield* Effect.flip(Call.ask(paused("2026-03-01T12:00:01Z"), attach, context()))
      yield* Call.ask(paused("2026-03-01T12:00:00Z"), attach, context())
    })
  )

  it.effect("is refused while it is being removed, a second delete as well (M8)", () =>
    Effect.gen(function* () {
      for (const policy of ["forget", "retain", "delete"] as const) {
        const current = declared({ deletion: Worlds.deletion(policy) })
        for (const asked of [attach, detach, asking("delete")]) {
          const refusal = yield* Effect.flip(Call.ask(current, asked, context()))
          assert.strictEqual(refusal.code, "DELETING", `${asked.type} while removed with ${policy}`)
        }
      }
    })
  )
})

describe("A call on what nobody declared", () => {
  const seen = Worlds.cloudVolume(volume, { name: "by hand", vm_id: otherVm })

  it.effect("begins a declaration that is bound to the volume, and leaves open what it does not say", () =>
    Effect.gen(function* () {
      const { call, change } = yield* Call.askUnknown(seen, detach, context())
      const { binding, name, spec } = change.declaration
      assert.strictEqual(name, `by-hand-${volume.slice(0, 8)}`)
      assert.deepInclude(spec, {
        volume_id: volume,
        cloudstack_name: "by hand",
        attached_to: "none",
        export_wanted: null,
        deletion_policy: "forget",
        on_drift: "hold",
        on_conflict: "hold"
      })
      assert.deepInclude(binding, { volume_id: volume, origin: "adopted", attachment: null })
      assert.deepInclude(change.write?.binding, { volume_id: volume, origin: "adopted" })
      assert.deepStrictEqual(call.wish.before, { attached_to: null, attach_as: "data", export_wanted: null })
      assert.strictEqual(call.volume_id, volume)
    })
  )

  it.effect("to delete begins one that is removed already", () =>
    Effect.gen(function* () {
      const { call, change } = yield* Call.askUnknown(seen, asking("delete"), context())
      assert.deepInclude(change.declaration.deletion, { policy: "delete" })
      assert.deepInclude(change.write?.deletion, { policy: "delete" })
      assert.isTrue(call.wish.remove)
      assert.isNull(change.declaration.spec.attached_to)
    })
  )
})

describe("A call is superseded", () => {
  const after = (changes: Worlds.DeclarationChanges) => declared({ generation: 6, ...changes })

  it.effect("when the place that it wished is declared otherwise, or all of it is removed", () =>
    Effect.gen(function* () {
      const call = row(yield* Call.ask(declared(), attach, context()))
      const wished = { spec: { attached_to: "appliance", export_wanted: true } } as const
      assert.isFalse(Call.isSuperseded(call, after(wished)))
      assert.isFalse(Call.isSuperseded(call, after({ spec: { ...wished.spec, metadata: { a: "b" } } })))
      assert.isTrue(Call.isSuperseded(call, after({ spec: { ...wished.spec, attached_to: otherVm } })))
      assert.isFalse(Call.isSuperseded(call, after({ spec: { ...wished.spec, export_wanted: false } })))
      assert.isTrue(Call.isSuperseded(call, after({ ...wished, deletion: Worlds.deletion("forget") })))
    })
  )

  it.effect("when the export that it alone wished is declared otherwise", () =>
    Effect.gen(function* () {
      const asked = { type: "export", vm_id: null, request: {}, wish: { export_wanted: true } } as const
      const call = row(yield* Call.ask(declared(), asked, context()))
      assert.isFalse(Call.isSuperseded(call, after({ spec: { attached_to: otherVm, export_wanted: true } })))
      assert.isTrue(Call.isSuperseded(call, after({ spec: { export_wanted: false } })))
    })
  )

  it.effect("when it was a delete and the removal was taken back", () =>
    Effect.gen(function* () {
      const call = row(yield* Call.ask(declared(), asking("delete"), context()))
      assert.isFalse(Call.isSuperseded(call, after({ deletion: Worlds.deletion("delete") })))
      assert.isTrue(Call.isSuperseded(call, after({})))
    })
  )

  it("never when it is an action", () => {
    assert.isFalse(Call.isSuperseded(Worlds.operation(declared().uid), after({})))
  })
})

describe("An attachment that a call names", () => {
  const on = (vm_id: typeof testVm | null, type = "DATADISK") =>
    Worlds.inventory({ cloud: Worlds.cloud({ volumes: [Worlds.cloudVolume(volume, { vm_id, type })] }) })
  const call = (type: OperationType, request: Operation["request"] = {}, status: Operation["status"] = "pending") =>
    Worlds.operation(declared().uid, { type, request, status, cause: "api" })
  const claimed = (operation: Operation, declaration: Declaration, inventory = on(otherVm)) =>
    Call.claim(operation, declaration, inventory, [operation])?.binding.attachment ?? null

  it("becomes ours, whoever made it: by a detach anywhere (S23)", () => {
    const ours = { vm_id: otherVm, as: "data", settled: false }
    assert.deepStrictEqual(claimed(call("detach"), declared()), ours)
  })

  it("becomes ours by a delete on the appliance alone, and by a cleanup on its test VM alone (S23)", () => {
    assert.isNull(claimed(call("delete"), declared()))
    assert.strictEqual(claimed(call("delete"), declared(), on(Worlds.appliance))?.vm_id, Worlds.appliance)
    assert.isNull(claimed(call("cleanup", { test_vm_id: testVm }), declared()))
    assert.strictEqual(claimed(call("cleanup", { test_vm_id: otherVm }), declared())?.vm_id, otherVm)
  })

  it("stays whose it is for calls that do not name it (S23)", () => {
    for (const type of ["create", "attach", "export", "unexport"] as const) {
      assert.isNull(claimed(call(type), declared()), type)
    }
  })

  it("is none while the volume is on no VM, is a root volume or was not read, or the call has begun (S5)", () => {
    assert.isNull(claimed(call("detach"), declared(), on(null)))
    assert.isNull(claimed(call("detach"), declared(), on(otherVm, "ROOT")))
    assert.isNull(claimed(call("detach"), declared(), Worlds.inventory({ cloud: Worlds.unseen("away") })))
    assert.isNull(claimed(call("detach"), declared(), Worlds.inventory()))
    assert.isNull(claimed(call("detach", {}, "executing"), declared()))
  })

  it("that an earlier open call has claimed is the next one's as well", () => {
    const attachment = { vm_id: otherVm, as: "data", settled: false } as const
    const wish = { spec: { attached_to: "none" }, before: { attached_to: null }, remove: false } as const
    const first = { ...call("detach", {}, "executing"), vm_id: otherVm, wish }
    const second = { ...call("detach"), id: Worlds.operationId(11), wish }
    const ours = declared({ binding: { attachment } })
    const claim = (open: ReadonlyArray<Operation>) => Call.claim(second, ours, on(otherVm), open)
    assert.deepInclude(claim([first, second]), { vm_id: otherVm })
    assert.isNull(claim([second]))
    assert.isNull(claim([{ ...first, status: "failed" }, second]))
    assert.isTrue(Call.hasClaimed(first, attachment))
    assert.isFalse(Call.hasClaimed(first, { ...attachment, settled: true }))
  })

  it("is not claimed again where it is ours", () => {
    const attachment = { vm_id: otherVm, as: "data", settled: true } as const
    assert.isNull(claimed(call("detach"), declared({ binding: { attachment } })))
  })
})
