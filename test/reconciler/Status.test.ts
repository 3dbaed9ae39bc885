import { assert, describe, it } from "@effect/vitest"
import { FastCheck, Schema } from "effect"
import { Status as StatusSchema } from "../../schema/Condition.ts"
import type { Condition } from "../../schema/Condition.ts"
import type { Declaration } from "../../schema/Declaration.ts"
import { exportNameOf } from "../../schema/Ids.ts"
import type { Inventory, NbdSection } from "../../schema/Inventory.ts"
import * as Plan from "../../reconciler/Plan.ts"
import * as Status from "../../reconciler/Status.ts"
import { inputs } from "../support/arbitraries.ts"
import * as Worlds from "../support/Worlds.ts"

const id = Worlds.volumeId(1)
const other = Worlds.vmId(1)

const statusOf = (
  declaration: Declaration,
  inventory: Inventory,
  previous: ReadonlyArray<Condition> = [],
  now = Worlds.now
) => {
  const [item = null] = Plan.make(Worlds.input([declaration], inventory)).items
  return Status.make({ declaration, inventory, item, last_operation_id: null, previous, retry_at: null, now })
}

const said = (status: ReturnType<typeof statusOf>) =>
  Object.fromEntries(status.conditions.map((c) => [c.type, `${c.status} ${c.reason}`]))

const settled = Worlds.declaration("disk", { binding: Worlds.settledBinding(id) })

describe("The status of a volume", () => {
  it("shows one that is in place, with where its device and its export are", () => {
    const status = statusOf(settled, Worlds.inPlace([id]))
    assert.deepStrictEqual(said(status), {
      Provisioned: "True Bound",
      Attached: "True Attached",
      DevicePresent: "True Present",
      Exported: "True Served",
      Ready: "True Settled",
      Paused: "False NotPaused",
      Removed: "False NotRequested"
    })
    assert.strictEqual(status.by_id_path, Worlds.byIdPath(id))
    assert.strictEqual(status.kernel_path, "/dev/vdb")
    assert.deepStrictEqual(status.export, {
      name: exportNameOf(id),
      host: "127.0.0.1",
      port: 10809,
      verified_at: "2026-03-01T11:59:59.000Z",
      connections: 0,
      simulated: false
    })
  })

  it("names the port of its own kind, where read-only exports have another one", () => {
    const nbd = (read_only: boolean) =>
      Worlds.nbd({
        engine: "nbdkit",
        read_only_port: 10_810,
        sections: [Worlds.section(id, { read_only })],
        verifications: [Worlds.verification(id, "b", { read_only })]
      })
    const port = (read_only: boolean) =>
      statusOf({ ...settled, spec: { ...settled.spec, read_only } }, { ...Worlds.inPlace([id]), nbd: nbd(read_only) })
        .export?.port
    assert.deepStrictEqual([port(false), port(true)], [10_809, 10_810])
  })

  it("names the next blocker in exactly one condition, with what a person can do", () => {
    FastCheck.assert(
      FastCheck.property(inputs, (input) => {
        for (const item of Plan.make(input).items) {
          const declaration = input.declarations.find((d) => d.uid === item.uid)
          if (declaration === undefined || item.blocked === null || item.gap === null || item.gap === "tags") continue
          const { blocked } = item
          const status = Status.make({
            ...input,
            declaration,
            item,
            last_operation_id: null,
            previous: [],
            retry_at: null
          })
          const naming = status.conditions.filter((c) => c.suggestion !== null && c.type !== "Ready")
          assert.deepStrictEqual(
            naming.map((c) => [c.reason, c.message, c.suggestion]),
            [[blocked.reason, blocked.message, blocked.suggestion]]
          )
          const ready = status.conditions.find((c) => c.type === "Ready")
          assert.deepStrictEqual([ready?.reason, ready?.suggestion], [blocked.reason, blocked.suggestion])
        }
      }),
      { seed: 20260301, numRuns: 3000 }
    )
  })

  it("is Ready exactly when everything managed is seen so, and is written as its schema says", () => {
    const isStatus = Schema.is(StatusSchema)
    FastCheck.assert(
      FastCheck.property(inputs, (input) => {
        for (const item of Plan.make(input).items) {
          const declaration = input.declarations.find((d) => d.uid === item.uid)
          if (declaration === undefined) continue
          const status = Status.make({
            ...input,
            declaration,
            item,
            last_operation_id: null,
            previous: [],
            retry_at: Worlds.now
          })
          assert.isTrue(isStatus(status))
          const ready = status.conditions.find((c) => c.type === "Ready")?.status === "True"
          assert.strictEqual(ready, item.settled && !item.removal_done)
        }
      }),
      { seed: 20260301, numRuns: 2000 }
    )
  })

  it("says NotOnAppliance of device and export for a volume wanted elsewhere, which does not count", () => {
    const away = Worlds.declaration("disk", {
      spec: { attached_to: other },
      binding: { volume_id: id, attachment: { vm_id: other, as: "data", settled: true } }
    })
    const world = Worlds.inventory({ cloud: Worlds.cloud({ volumes: [Worlds.cloudVolume(id, { vm_id: other })] }) })
    const facts = said(statusOf(away, world))
    assert.strictEqual(facts["DevicePresent"], "False NotOnAppliance")
    assert.strictEqual(facts["Exported"], "False NotOnAppliance")
    assert.strictEqual(facts["Ready"], "True Settled")
  })

  it("is unknown where a source was not read, and before the first look", () => {
    const unread = statusOf(settled, { ...Worlds.inPlace([id]), cloud: Worlds.unseen("away") })
    assert.strictEqual(said(unread)["Ready"], "Unknown CloudStackUnread")
    const deaf = said(statusOf(settled, { ...Worlds.inPlace([id]), nbd: Worlds.unseen("away") }))
    assert.strictEqual(deaf["Exported"], "Unknown NbdUnread")
    const before = Status.make({
      declaration: settled,
      inventory: null,
      item: null,
      last_operation_id: null,
      previous: [],
      retry_at: null,
      now: Worlds.now
    })
    const unknown = before.conditions.filter((c) => c.status === "Unknown").map((c) => c.type)
    assert.deepStrictEqual(unknown, ["Provisioned", "Attached", "DevicePresent", "Exported", "Ready"])
  })

  it("keeps the time of a transition until status or reason changes", () => {
    const first = statusOf(settled, Worlds.inPlace([id]))
    const later = statusOf(settled, Worlds.inPlace([id]), first.conditions, Worlds.now + 60_000)
    assert.deepStrictEqual(later.conditions, first.conditions)
    const dead = { ...Worlds.inPlace([id]), nbd: Worlds.nbd({ sections: [Worlds.section(id)] }) }
    const broken = statusOf(settled, dead, later.conditions, Worlds.now + 60_000)
    const changed = broken.conditions.filter((c) => c.last_transition_time !== "2026-03-01T12:00:00.000Z")
    assert.deepStrictEqual(
      changed.map((c) => c.type),
      ["Exported", "Ready"]
    )
  })

  it("tells what comes next, in the words of the operations", () => {
    const out = Worlds.declaration("disk", {
      generation: 2,
      spec: { attached_to: other },
      binding: Worlds.settledBinding(id)
    })
    assert.deepStrictEqual(statusOf(out, Worlds.inPlace([id])).next_actions, ["unexport", "detach", "attach", "tag"])
  })

  it("shows a pause until it is over", () => {
    const paused = (until?: string) =>
      Worlds.declaration("disk", {
        spec: { paused: { reason: "moving", by: "anna", ...(until === undefined ? {} : { until }) } },
        binding: Worlds.settledBinding(id)
      })
    assert.strictEqual(said(statusOf(paused(), Worlds.inPlace([id])))["Paused"], "True Paused")
    assert.strictEqual(
      said(statusOf(paused("2026-03-01T11:00:00Z"), Worlds.inPlace([id])))["Paused"],
      "False PauseOver"
    )
  })
})

describe("The condition of an export", () => {
  const world = (changes: Parameters<typeof Worlds.nbd>[0], rest: Partial<Inventory> = {}): Inventory => ({
    ...Worlds.inPlace([id]),
    ...rest,
    nbd: Worlds.nbd({
      sections: [Worlds.section(id, { device: "252:98" })],
      verifications: [Worlds.verification(id, "b")],
      ...changes
    })
  })
  const answered = (changes: Parameters<typeof Worlds.verification>[2], section: Partial<NbdSection> = {}) =>
    world({
      sections: [Worlds.section(id, { device: "252:98", ...section })],
      verifications: [Worlds.verification(id, "b", { size: null, read_only: null, device: null, ...changes })]
    })
  const server = (state: "absent" | "hung" | "foreign" | "not_installed") =>
    world({
      server: { state, pid: null, problem: null },
      verifications: [Worlds.verification(id, "b", { outcome: "refused", size: null, read_only: null, device: null })]
    })
  const size = Worlds.device(id, "b").size

  const seen: ReadonlyArray<readonly [string, Inventory, string, string]> = [
    ["an unknown name", answered({ outcome: "unknown", message: "Export unknown" }), "NotLoaded", "Export unknown"],
    ["a load that was not finished", answered({}, { unfinished: "it stands in a.conf too" }), "NotLoaded", "a.conf"],
    ["a denial with path and authfile in order", answered({ outcome: "denied" }), "DeniedByServer", "denied"],
    ["a denial by a fence", answered({ outcome: "denied" }, { fenced_at: Worlds.now - 1_000 }), "Fenced", "11:59:59"],
    ["a hang-up after the greeting (N7)", answered({ outcome: "dropped" }), "ServerDamaged", "hung up"],
    ["no answer (N12)", answered({ outcome: "no_answer" }), "ServerHung", "no_answer"],
    ["a server that hangs (N12)", server("hung"), "ServerHung", "hung"],
    ["a dead server (N5)", server("absent"), "ServerDown", "absent"],
    ["another program on the port (N5)", server("foreign"), "NbdServerForeign", "port 10809"],
    ["no server program (N5)", server("not_installed"), "NbdNotInstalled", "installed"],
    [
      "no program of the other engine (N5)",
      world({ engine: "nbdkit", server: { state: "not_installed", pid: null, problem: null }, verifications: [] }),
      "NbdNotInstalled",
      "nbdkit is not installed install the package nbdkit"
    ],
    ["a link to another disk (D3)", answered({ outcome: "served" }, { device: "252:1" }), "WrongDevice", "leads to"],
    ["a process that holds another disk (N8)", answered({ ...right(), device: "252:1" }), "WrongDevice", "252:1"],
    ["another size (D10)", answered({ ...right(), size: size + 512 }), "WrongSize", String(size + 512)],
    ["another mode", answered({ ...right(), read_only: true }), "WrongMode", "read-only"],
    ["a process whose files cannot be read", answered({ ...right(), device: null }), "NbdUnread", "CAP_SYS_PTRACE"]
  ]

  function right() {
    return { outcome: "served", size, read_only: false, device: "252:98" } as const
  }

  for (const [what, inventory, reason, words] of seen) {
    it(`after ${what} is ${reason}, and says what was seen`, () => {
      const found = statusOf(settled, inventory).conditions.find(({ type }) => type === "Exported")
      assert.strictEqual(found?.reason, reason)
      assert.notStrictEqual(found?.status, "True")
      assert.include(`${found?.message} ${found?.suggestion}`, words)
    })
  }

  it("is LinkBroken where the server denies it for a link that leads nowhere", () => {
    const guest = Worlds.guest([Worlds.device(id, "b", { by_id_paths: ["/dev/disk/by-id/scsi-x"] })])
    const denied = { ...answered({ outcome: "denied" }, { device: null }), guest }
    assert.strictEqual(said(statusOf(settled, denied))["Exported"], "False LinkBroken")
  })

  it("says of a repair that did not help that it backs off, what was tried and what is seen now (N11)", () => {
    const inventory = answered({ outcome: "dropped" })
    const retry_at = Worlds.now + 8_000
    const backoff = new Map([[settled.uid, { retry_at, message: "export: a client gets: denied" }]])
    const [item = null] = Plan.make(Worlds.input([settled], inventory, { backoff })).items
    const status = Status.make({
      declaration: settled,
      inventory,
      item,
      last_operation_id: null,
      previous: [],
      retry_at,
      now: Worlds.now
    })
    const found = status.conditions.find(({ type }) => type === "Exported")
    assert.strictEqual(found?.reason, "BackingOff")
    for (const words of ["a client gets: denied", "hung up", "in 8 s"]) assert.include(found?.message, words)
  })

  it("names who a leaving volume waits for", () => {
    const client = { pid: 7, command: "nbd-server", device: "252:98", peer: "10.0.0.9", since: null }
    const unwanted = Worlds.declaration("disk", {
      generation: 2,
      spec: { export_wanted: false },
      binding: Worlds.settledBinding(id)
    })
    const found = statusOf(unwanted, world({ holders: [client] }))
    const condition = found.conditions.find(({ type }) => type === "Exported")
    assert.deepInclude(condition, { status: "False", reason: "Draining", category: "progress" })
    assert.include(condition?.message, "10.0.0.9 (pid 7)")
    assert.strictEqual(found.export?.connections, 1)
  })

  it("is not True for other bytes than the volume's, whoever is to decide about it (S3, S7)", () => {
    const open = Worlds.declaration("disk", { spec: { export_wanted: null }, binding: Worlds.settledBinding(id) })
    assert.strictEqual(said(statusOf(open, world({})))["Exported"], "True NotManaged")
    const wrong = answered({ ...right(), device: "252:1" })
    assert.strictEqual(said(statusOf(open, wrong))["Exported"], "False NotManaged")
  })
})
