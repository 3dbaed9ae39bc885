import { assert, describe, it } from "@effect/vitest"
import * as Call from "../../reconciler/Call.ts"
import * as CallVerdict from "../../reconciler/CallVerdict.ts"
import * as Plan from "../../reconciler/Plan.ts"
import * as Status from "../../reconciler/Status.ts"
import type { Blocked, Reason } from "../../schema/Action.ts"
import { type Declaration, GIB } from "../../schema/Declaration.ts"
import { exportNameOf } from "../../schema/Ids.ts"
import type { Inventory } from "../../schema/Inventory.ts"
import type { Operation } from "../../schema/Operation.ts"
import * as Worlds from "../support/Worlds.ts"

const volume = Worlds.volumeId(1)
const testVm = Worlds.vmId(1)
const SECOND = 1_000

const declared = (changes: Worlds.DeclarationChanges = {}) =>
  Worlds.declaration("disk-0", { ...changes, binding: { volume_id: volume, origin: "created", ...changes.binding } })

/** As it is when everything asked for is so. */
const inPlace = declared({ binding: Worlds.settledBinding(volume) })

/** Asked for `ago_ms` before the evidence. */
const call = (type: Call.CallType, ago_ms = 5 * SECOND, changes: Partial<Operation> = {}): Operation =>
  Worlds.operation(inPlace.uid, {
    type,
    status: "pending",
    phase: "intended",
    cause: "api",
    volume_id: volume,
    created_at: new Date(Worlds.now - ago_ms).toISOString(),
    deadline_at: Worlds.now - ago_ms + Call.DEADLINE_MS[type],
    wish: { spec: {}, before: {}, remove: type === "delete" },
    ...changes
  })

interface Seen {
  readonly children?: ReadonlyArray<Operation>
  /** In place of what the planner says. */
  readonly blocked?: Blocked
}

/** What a pass knows: the plan and the status that are made from this very observation. */
const seeing = (
  declaration: Declaration | null,
  inventory: Inventory,
  { blocked, children = [] }: Seen = {}
): CallVerdict.Evidence => {
  if (declaration === null)
    return { now: Worlds.now, inventory, declaration, item: null, status: null, children: [...children] }
  const plan = Plan.make(Worlds.input([declaration], inventory))
  const planned = plan.items[0] ?? null
  const item = planned === null || blocked === undefined ? planned : { ...planned, blocked, next: null }
  const at = { last_operation_id: null, previous: [], retry_at: null, now: Worlds.now }
  const status = Status.make({ declaration, item, inventory, ...at })
  return { now: Worlds.now, inventory, declaration, item, status, children: [...children] }
}

const judge = (asked: Operation, ...seen: Parameters<typeof seeing>) => CallVerdict.judge(asked, seeing(...seen))

const blockedBy = (reason: Reason, message: string): Blocked => ({
  reason,
  message,
  suggestion: "look at it",
  category: "blocked"
})

const failure = (verdict: CallVerdict.Verdict) => {
  assert.strictEqual(verdict._tag, "Failed", JSON.stringify(verdict))
  return verdict._tag === "Failed" ? verdict : { error: "", response: {} }
}

const response = (verdict: CallVerdict.Verdict) => {
  assert.strictEqual(verdict._tag, "Completed", JSON.stringify(verdict))
  return verdict._tag === "Completed" ? verdict.response : {}
}

const waiting = (verdict: CallVerdict.Verdict, executing = false) =>
  assert.deepStrictEqual(verdict, { _tag: "Waiting", executing })

const child = (changes: Partial<Operation>) =>
  Worlds.operation(inPlace.uid, { parent_id: Worlds.operationId(1), id: Worlds.operationId(2), ...changes })

const away = (vm_id: typeof testVm | null) =>
  Worlds.inventory({ cloud: Worlds.cloud({ volumes: [Worlds.cloudVolume(volume, { vm_id })] }) })

describe("A call to create", () => {
  const loose = { attached_to: "none", export_wanted: false } as const

  it("is completed when CloudStack shows the volume, with its id", () => {
    const verdict = judge(call("create", 0, { volume_id: "" }), declared({ spec: loose }), away(null))
    assert.deepInclude(verdict, { _tag: "Completed", volume_id: volume })
    assert.deepInclude(response(verdict), { volume_id: volume, size: 10 * GIB, message: "the volume is made" })
  })

  it("says that a size was rounded up", () => {
    const verdict = judge(call("create"), declared({ spec: { ...loose, size: 10 * GIB - 1 } }), away(null))
    assert.include(String(response(verdict)["message"]), "rounded up to 10 GiB")
  })

  it("waits while there is no volume, while none is shown, and while CloudStack works on it (S7, J4)", () => {
    const unmade = Worlds.declaration("disk-0", { spec: loose })
    waiting(judge(call("create"), unmade, Worlds.inventory()))
    waiting(judge(call("create"), declared({ spec: loose }), Worlds.inventory()))
    waiting(judge(call("create"), declared({ spec: loose }), Worlds.inventory({ cloud: Worlds.unseen("away") })))
    const busy = Worlds.cloudVolume(volume, { job_id: Worlds.jobId(1) })
    waiting(
      judge(call("create"), declared({ spec: loose }), Worlds.inventory({ cloud: Worlds.cloud({ volumes: [busy] }) }))
    )
  })
})

describe("A call to attach to the appliance", () => {
  it("is completed when disk and export are proven, and says where they are (S7)", () => {
    const verdict = judge(call("attach"), inPlace, Worlds.inPlace([volume]))
    assert.deepStrictEqual(response(verdict), {
      volume_id: volume,
      device_path: Worlds.byIdPath(volume),
      kernel_path: "/dev/vdb",
      message: "attached to the appliance as /dev/vdb",
      export: { name: exportNameOf(volume), host: "127.0.0.1", port: 10809, state: "active" }
    })
  })

  it("says the port of a read-only export, where those have another one", () => {
    const spec = { read_only: true }
    const nbd = Worlds.nbd({
      engine: "nbdkit",
      read_only_port: 10_810,
      sections: [Worlds.section(volume, spec)],
      verifications: [Worlds.verification(volume, "b", spec)]
    })
    const verdict = judge(
      call("attach"),
      { ...inPlace, spec: { ...inPlace.spec, ...spec } },
      { ...Worlds.inPlace([volume]), nbd }
    )
    assert.propertyVal(response(verdict)["export"], "port", 10_810)
  })

  it("needs no export where none is wanted", () => {
    const unexported = declared({
      spec: { export_wanted: false },
      binding: { ...Worlds.settledBinding(volume), export: null }
    })
    const world = Worlds.inPlace([volume])
    const verdict = judge(call("attach"), unexported, { ...world, nbd: Worlds.nbd() })
    assert.notProperty(response(verdict), "export")
  })

  it("waits for the disk in the guest, however long CloudStack says attached (D1, D8)", () => {
    const world = { ...Worlds.inPlace([volume]), guest: Worlds.guest() }
    for (const ago of [1, 20, 100]) waiting(judge(call("attach", ago * SECOND), inPlace, world))
  })

  it("waits 15 s for the export from when the disk was there, and then goes without it, naming why (N5)", () => {
    const world = Worlds.inPlace([volume])
    const unserved = {
      ...world,
      nbd: Worlds.nbd({ server: { state: "foreign", pid: null, problem: "something else listens there" } })
    }
    const attached = (ago_ms: number) =>
      child({
        type: "attach",
        status: "completed",
        phase: "settled",
        completed_at: new Date(Worlds.now - ago_ms).toISOString()
      })
    waiting(judge(call("attach", 14 * SECOND), inPlace, unserved))
    waiting(judge(call("attach", 60 * SECOND), inPlace, unserved, { children: [attached(14 * SECOND)] }), true)
    const verdict = judge(call("attach", 60 * SECOND), inPlace, unserved, { children: [attached(15 * SECOND)] })
    const { export: served, ...rest } = response(verdict)
    assert.deepInclude(rest, { device_path: Worlds.byIdPath(volume), kernel_path: "/dev/vdb" })
    assert.deepInclude(served, { name: exportNameOf(volume), state: "pending" })
    assert.isNotEmpty((served as { readonly problem: string }).problem)
    assert.strictEqual(judge(call("attach", 15 * SECOND), inPlace, unserved)._tag, "Completed")
  })
})

describe("A call to attach to another VM", () => {
  it("is completed by CloudStack's word, and tells no path", () => {
    const there = declared({ spec: { attached_to: testVm } })
    const verdict = judge(call("attach"), there, away(testVm))
    assert.deepStrictEqual(Object.keys(response(verdict)).toSorted(), ["message", "volume_id"])
    waiting(judge(call("attach"), there, away(null)))
    waiting(judge(call("attach"), there, Worlds.inventory({ cloud: Worlds.unseen("away") })))
  })
})

describe("Calls to take away", () => {
  const gone = declared({ spec: { attached_to: "none" } })

  it("to detach are completed when both witnesses say so (S7, D9)", () => {
    assert.include(String(response(judge(call("detach"), gone, away(null)))["message"]), "attached to no VM")
    const there = { vm_id: testVm, as: "data", settled: true } as const
    waiting(
      judge(call("detach"), declared({ spec: { attached_to: "none" }, binding: { attachment: there } }), away(testVm))
    )
    const attachment = { vm_id: Worlds.appliance, as: "data", settled: true } as const
    const lingering = { ...away(null), guest: Worlds.guest([Worlds.device(volume, "b")]) }
    waiting(judge(call("detach"), declared({ spec: { attached_to: "none" }, binding: { attachment } }), lingering))
  })

  it("to unexport are completed when nothing is served any more, wherever the disk is (N8)", () => {
    const unwanted = declared({ spec: { export_wanted: false }, binding: Worlds.settledBinding(volume) })
    const world = Worlds.inPlace([volume])
    waiting(judge(call("unexport"), unwanted, world))
    const clean = declared({
      spec: { export_wanted: false },
      binding: { ...Worlds.settledBinding(volume), export: null }
    })
    assert.strictEqual(judge(call("unexport"), clean, { ...world, nbd: Worlds.nbd() })._tag, "Completed")
  })

  it("to delete are completed when the declaration is through or gone, and not before (S6)", () => {
    assert.include(String(response(judge(call("delete"), null, Worlds.inventory()))["message"]), "deleted")
    waiting(judge(call("delete"), declared({ deletion: Worlds.deletion("delete") }), away(null)))
  })
})

describe("A call to export", () => {
  it("is completed by a proof, with path and place", () => {
    const verdict = judge(call("export"), inPlace, Worlds.inPlace([volume]))
    assert.deepInclude(response(verdict)["export"], { name: exportNameOf(volume), state: "active" })
    waiting(judge(call("export"), inPlace, { ...Worlds.inPlace([volume]), nbd: Worlds.nbd() }))
  })
})

describe("What no waiting mends fails at once", () => {
  it("as a wrong parameter where a volume is to be exported that is not for the appliance", () => {
    const elsewhere = [
      [declared({ spec: { attached_to: "none" } }), away(null)],
      [declared({ spec: { attached_to: testVm } }), away(testVm)],
      [declared({ spec: { attached_to: null } }), away(testVm)]
    ] as const
    for (const [declaration, inventory] of elsewhere) {
      const { error, response } = failure(judge(call("export", 0), declaration, inventory))
      assert.match(error, /^CloudStack API error 431: .*appliance/u)
      assert.deepInclude(response, { reason: "NotOnAppliance" })
    }
    // On its way there, or not known to be elsewhere.
    waiting(judge(call("export", 0), declared(), away(null)))
    const undecided = declared({ spec: { attached_to: null } })
    waiting(judge(call("export", 0), undecided, Worlds.inventory({ cloud: Worlds.unseen("away") })))
  })

  it("as a wrong parameter where the volume is not for volumed (S4, S5, S23)", () => {
    const hopeless: ReadonlyArray<Reason> = [
      "ForeignAttachment",
      "NotDataDisk",
      "RootVolume",
      "RootOccupied",
      "VmNotFound",
      "VolumeDestroyed",
      "VolumeNotFound",
      "Protected"
    ]
    for (const reason of hopeless) {
      const blocked = blockedBy(reason, "timeout of the device of VM other-vm")
      const { error, response } = failure(judge(call("attach", 0), inPlace, away(testVm), { blocked }))
      assert.match(error, /^CloudStack API error 431: .*other-vm/u, reason)
      // Neither of the words by which old clients try again.
      assert.notMatch(error, /timeout|device/u, reason)
      assert.deepInclude(response, { code: "CLOUDSTACK_INVALID_PARAMETER", reason, suggestion: "look at it" })
    }
  })

  it("as a limit where the VM is full", () => {
    const blocked = blockedBy("VmFull", "32 disks")
    const { error, response } = failure(judge(call("attach", 0), inPlace, away(null), { blocked }))
    assert.match(error, /^CloudStack API error 432: /u)
    assert.deepInclude(response, { code: "CLOUDSTACK_RESOURCE_LIMIT" })
  })

  it("by the planner's own reason for a volume on somebody else's VM", () => {
    const { error } = failure(judge(call("attach", 0), declared(), away(testVm)))
    assert.include(error, testVm)
  })

  it("in CloudStack's own number, by what it said no to (C7, C15)", () => {
    const refused = (code: number, status: Operation["status"] = "failed") =>
      child({
        status,
        phase: status === "failed" ? "refused" : "submitted",
        response: { cloudstack_code: code },
        error: "no"
      })
    for (const code of [532, 533, 535]) {
      const { error, response } = failure(judge(call("attach"), inPlace, away(null), { children: [refused(code)] }))
      assert.match(error, /^CloudStack API error 432: /u)
      assert.deepInclude(response, { code: "CLOUDSTACK_RESOURCE_LIMIT", cloudstack_code: code })
    }
    for (const code of [430, 431, 432]) {
      const { error, response } = failure(judge(call("attach"), inPlace, away(null), { children: [refused(code)] }))
      assert.match(error, /^CloudStack API error 431: /u)
      assert.deepInclude(response, { code: "CLOUDSTACK_INVALID_PARAMETER", cloudstack_code: code })
    }
    // About the moment, not about what was asked; and an outcome that is not known yet is none.
    for (const code of [401, 429, 503, 530]) {
      waiting(judge(call("attach"), inPlace, away(null), { children: [refused(code)] }), true)
    }
    waiting(judge(call("attach"), inPlace, away(null), { children: [refused(533, "executing")] }), true)
  })

  it("unless what was asked for is so all the same (S7)", () => {
    const refused = child({ status: "failed", phase: "refused", response: { cloudstack_code: 431 }, error: "no" })
    const verdict = judge(call("attach"), inPlace, Worlds.inPlace([volume]), { children: [refused] })
    assert.strictEqual(verdict._tag, "Completed")
  })
})

describe("At its deadline a call fails", () => {
  const late = (type: Call.CallType, seen: Seen = {}) =>
    failure(judge(call(type, Call.DEADLINE_MS[type]), inPlace, away(null), seen))

  it("and not a moment before", () => {
    for (const type of ["attach", "cleanup", "export"] as const) {
      waiting(judge(call(type, Call.DEADLINE_MS[type] - 1), inPlace, away(null)))
      late(type)
    }
  })

  it("before the old clients give up", () => {
    assert.deepInclude(Call.DEADLINE_MS, { create: 280_000, attach: 110_000, detach: 55_000, delete: 55_000 })
  })

  it("as a time-out that names what it waited for, where another try may help", () => {
    const { error, response } = late("attach", { blocked: blockedBy("InUse", "10.0.0.7 reads it") })
    assert.match(error, /^timeout: attach was not done within 110 s: InUse: 10\.0\.0\.7 reads it$/u)
    assert.deepInclude(response, { code: "OPERATION_TIMEOUT", reason: "InUse", suggestion: "look at it" })
  })

  it("as a missing disk where it is the guest that does not show it (D8)", () => {
    const { error, response } = late("attach", { blocked: blockedBy("DeviceMissing", "timeout of hot-plug") })
    assert.match(error, /device/u)
    assert.notMatch(error, /timeout/u)
    assert.deepInclude(response, { code: "DEVICE_CORRELATION_FAILED", reason: "DeviceMissing" })
  })

  it("in no word that asks for another try where a person decided or must decide", () => {
    const decided: ReadonlyArray<Reason> = [
      "Paused",
      "HoldFile",
      "Maintenance",
      "HeldForApproval",
      "LateEffect",
      "Contended",
      "RootNeedsStoppedVm",
      "NeedsOperator",
      "VolumeLost"
    ]
    for (const reason of decided) {
      const { error, response } = late("attach", { blocked: blockedBy(reason, "the device had a timeout") })
      assert.include(error, reason)
      assert.notMatch(error, /timeout|device|CloudStack API error/u, reason)
      assert.deepInclude(response, { code: "UNKNOWN_ERROR", reason })
    }
  })
})
