import { assert, describe, it } from "@effect/vitest"
import { FastCheck } from "effect"
import { exportNameOf } from "../../schema/Ids.ts"
import type { Inventory } from "../../schema/Inventory.ts"
import * as Merge from "../../reconciler/Merge.ts"
import * as Plan from "../../reconciler/Plan.ts"
import { inputs } from "../support/arbitraries.ts"
import * as Worlds from "../support/Worlds.ts"

const id = Worlds.volumeId(1)
const disk = Worlds.declaration("disk", { uid: Worlds.uidOf(1), binding: { volume_id: id, origin: "adopted" } })
const here = Worlds.cloud({ volumes: [Worlds.cloudVolume(id, { vm_id: Worlds.appliance })] })

const viewOf = (observed: Partial<Inventory>, declaration = disk, others: ReadonlyArray<typeof disk> = []) =>
  Merge.make(Worlds.inventory(observed), [declaration, ...others]).view(declaration)

describe("CloudStack's word on a volume", () => {
  const said = (cloud: Inventory["cloud"]) => viewOf({ cloud }).cloud

  it("is absence only when it was read by id and found gone", () => {
    assert.strictEqual(said(here), "seen")
    assert.strictEqual(said(Worlds.cloud()), "unlisted")
    assert.strictEqual(said(Worlds.cloud({ absent: [id] })), "absent")
    assert.strictEqual(said(Worlds.cloud({ unresolved: [id] })), "unresolved")
    assert.strictEqual(said(Worlds.unseen("away")), "unread")
  })

  it("is doubtful when it came twice in two ways, or both listed and absent (O7)", () => {
    const rows = [Worlds.cloudVolume(id)]
    assert.strictEqual(said(Worlds.cloud({ volumes: rows, ambiguous: [id] })), "ambiguous")
    assert.strictEqual(said(Worlds.cloud({ volumes: rows, absent: [id] })), "ambiguous")
    assert.isNull(viewOf({ cloud: Worlds.cloud({ volumes: rows, ambiguous: [id] }) }).row)
  })

  it("is about the bound volume, else the declared one, else about nothing", () => {
    const asking = Worlds.declaration("disk", { spec: { volume_id: id } })
    assert.strictEqual(viewOf({ cloud: here }, asking).row?.id, id)
    assert.strictEqual(viewOf({ cloud: here }, Worlds.declaration("fresh")).cloud, "none")
  })
})

describe("The guest's word on a volume", () => {
  it("goes by the serial, whatever the letter", () => {
    const guest = Worlds.guest([Worlds.device(Worlds.volumeId(2), "b"), Worlds.device(id, "q")])
    assert.strictEqual(viewOf({ guest }).device?.kernel_path, "/dev/vdq")
  })

  it("is doubtful when two disks bear its serial, or two volumes do (D5)", () => {
    assert.strictEqual(
      viewOf({ guest: Worlds.guest([Worlds.device(id, "b"), Worlds.device(id, "c")]) }).guest,
      "ambiguous"
    )
    const twin = Worlds.cloudVolume(`${id.slice(0, 24)}ffffffffffff` as typeof id)
    const cloud = Worlds.cloud({ volumes: [Worlds.cloudVolume(id), twin] })
    const view = viewOf({ cloud, guest: Worlds.guest([Worlds.device(id, "b")]) })
    assert.strictEqual(view.guest, "ambiguous")
    assert.isNull(view.device)
  })

  it("proves no absence by a scan with holes, and none by a disk that shows no serial (D7)", () => {
    assert.strictEqual(viewOf({ guest: Worlds.guest([], false) }).guest, "unread")
    assert.strictEqual(viewOf({ guest: Worlds.guest([Worlds.device(id, "b", { serial: null })]) }).guest, "absent")
  })
})

describe("The NBD server's word on a volume", () => {
  const guest = Worlds.guest([Worlds.device(id, "b"), Worlds.device(Worlds.volumeId(2), "c")])
  const others = (
    sections: ReadonlyArray<ReturnType<typeof Worlds.section>>,
    rivals: ReadonlyArray<typeof disk> = []
  ) => {
    const { claimable, taken } = viewOf({ cloud: here, guest, nbd: Worlds.nbd({ sections }) }, disk, rivals).others()
    return { claimable: claimable.map((s) => s.name), taken: taken.map((s) => s.name) }
  }

  it("counts foreign sections of its name, its path, or a kernel path that leads to its disk now", () => {
    const byName = Worlds.section(id, { path: "/srv/other.img" })
    const byPath = Worlds.section(id, { name: "by-path" })
    const byLetter = Worlds.section(id, { name: "by-letter", path: "/dev/vdb" })
    const stranger = Worlds.section(id, { name: "stranger", path: "/dev/vdc" })
    assert.deepStrictEqual(others([byName, byPath, byLetter, stranger]), {
      claimable: [exportNameOf(id), "by-path", "by-letter"],
      taken: []
    })
  })

  it("judges a path by the disk it leads to, and by its text only when it leads nowhere (D3)", () => {
    const crossed = Worlds.device(Worlds.volumeId(2), "c", { by_id_paths: [Worlds.byIdPath(id)] })
    const nbd = Worlds.nbd({ sections: [Worlds.section(id, { name: "crossed" })] })
    assert.deepStrictEqual(viewOf({ cloud: here, guest: Worlds.guest([crossed]), nbd }).others().claimable, [])
    assert.lengthOf(viewOf({ cloud: here, guest: Worlds.guest(), nbd }).others().claimable, 1)
  })

  it("never gives one volume the name of another, nor what another declaration owns (S3)", () => {
    const named = Worlds.section(Worlds.volumeId(2), { path: "/dev/vdb" })
    assert.deepStrictEqual(others([named]), { claimable: [], taken: [named.name] })
    const owned = Worlds.section(id, { name: "legacy" })
    const owner = Worlds.declaration("owner", {
      uid: Worlds.uidOf(2),
      binding: { export: { name: "legacy", path: "/dev/disk/by-id/x", settled_at: 1 } }
    })
    assert.deepStrictEqual(others([owned], [owner]), { claimable: [], taken: ["legacy"] })
  })

  it("tells our own section, its newest handshake, and who has the disk open", () => {
    const ours = Worlds.declaration("disk", { binding: Worlds.settledBinding(id) })
    const holders = [
      { pid: 1, command: "nbd-server", device: "252:98", peer: "10.0.0.9", since: null },
      { pid: 2, command: "nbd-server", device: "252:99", peer: "10.0.0.9", since: null }
    ]
    const nbd = Worlds.nbd({ sections: [Worlds.section(id)], verifications: [Worlds.verification(id, "b")], holders })
    const view = viewOf({ cloud: here, guest, nbd }, ours)
    assert.strictEqual(view.own?.name, exportNameOf(id))
    assert.strictEqual(view.verification?.device, "252:98")
    assert.deepStrictEqual(
      view.holders.map((h) => h.pid),
      [1]
    )
  })
})

describe("A claim on a volume", () => {
  it("is the bound declaration's, else the eldest's that asks, whatever its name (M8)", () => {
    const young = Worlds.declaration("a-young", {
      uid: Worlds.uidOf(2),
      spec: { volume_id: id },
      created_at: "2026-03-01T11:00:00Z"
    })
    const old = Worlds.declaration("b-old", {
      uid: Worlds.uidOf(3),
      spec: { volume_id: id },
      created_at: "2026-03-01T09:00:00Z"
    })
    assert.strictEqual(Merge.make(Worlds.inventory(), [young, old]).claimOf(id), old.uid)
    assert.strictEqual(Merge.make(Worlds.inventory(), [young, old, disk]).claimOf(id), disk.uid)
  })
})

describe("The view after an action", () => {
  it("shows the action's own effect: replaying a chain, no action is asked for twice (L2)", () => {
    FastCheck.assert(
      FastCheck.property(inputs, (input) => {
        const merged = Merge.make(input.inventory, input.declarations)
        for (const { chain, uid } of Plan.make(input).items) {
          const declaration = input.declarations.find((d) => d.uid === uid)
          if (declaration === undefined) continue
          let view = merged.view(declaration)
          for (const action of chain) {
            const next = Merge.after(view, action)
            assert.notDeepEqual({ ...next, others: next.others() }, { ...view, others: view.others() })
            view = next
          }
        }
      }),
      { seed: 20260301, numRuns: 2000 }
    )
  })

  it("binds what a settled action teaches, and counts a repair of drift once", () => {
    const common = {
      uid: disk.uid,
      name: disk.name,
      generation: 1,
      cause: "drift",
      reason: "",
      destructive: false
    } as const
    const attach = {
      _tag: "Attach",
      ...common,
      volume_id: id,
      vm_id: Worlds.appliance,
      as: "data",
      on_appliance: true
    } as const
    const detach = {
      _tag: "Detach",
      ...common,
      volume_id: id,
      vm_id: Worlds.vmId(1),
      on_appliance: false,
      device: null,
      root: false
    } as const
    assert.deepStrictEqual(Merge.bind(disk, attach, 5).repairs, [5])
    assert.deepStrictEqual(Merge.bind(disk, detach, 5).repairs, [])
    const unwanted = Worlds.declaration("disk", { spec: { attached_to: "none" }, binding: disk.binding })
    assert.deepStrictEqual(Merge.bind(unwanted, detach, 5).repairs, [5])
    assert.deepStrictEqual(Merge.bind(disk, { ...attach, cause: "declaration" }, 5).repairs, [])
    const anew = {
      _tag: "Create",
      ...common,
      cloudstack_name: "disk",
      size_gib: 1,
      disk_offering_id: Worlds.offering,
      zone_id: Worlds.zone,
      existing_ids: [],
      custom_id: null
    } as const
    const lost = Worlds.declaration("disk", { binding: Worlds.settledBinding(id) })
    const made = Merge.bind(lost, anew, 5, Worlds.volumeId(9))
    assert.deepStrictEqual(
      [made.volume_id, made.settled_generation, made.export, made.attachment],
      [Worlds.volumeId(9), 0, null, null]
    )
    assert.isNull(Merge.bind(lost, { _tag: "Delete", ...common, volume_id: id }, 5).volume_id)
  })
})
