import { assert, describe, it } from "@effect/vitest"
import type { NbdSection } from "../../schema/Inventory.ts"
import * as Plan from "../../reconciler/Plan.ts"
import * as Worlds from "../support/Worlds.ts"

const id = Worlds.volumeId(1)
const neighbour = Worlds.volumeId(2)
const ours = { vm_id: Worlds.appliance, as: "data", settled: true } as const
const included = "/etc/nbd-server/conf.d/jobs.conf"

const unclaimed = Worlds.declaration("disk", {
  uid: Worlds.uidOf(1),
  binding: { volume_id: id, origin: "adopted", attachment: ours }
})

const served = Worlds.declaration("disk", { uid: Worlds.uidOf(1), binding: Worlds.settledBinding(id) })

/** The volume is on the appliance as vdb, its neighbour as vdc; the file has one section. */
const planned = (declaration: typeof unclaimed, section: Partial<NbdSection>) => {
  const world = Worlds.inventory({
    cloud: Worlds.cloud({
      volumes: [id, neighbour].map((one) => Worlds.cloudVolume(one, { vm_id: Worlds.appliance }))
    }),
    guest: Worlds.guest([Worlds.device(id, "b"), Worlds.device(neighbour, "c")]),
    nbd: Worlds.nbd({
      sections: [Worlds.section(id, section)],
      verifications: [Worlds.verification(id, "b", section.name === undefined ? {} : { name: section.name })]
    })
  })
  const item = Plan.make(Worlds.input([declaration], world)).items[0]
  assert.isDefined(item)
  return item
}

const deviceOf = (letter: string) => `252:${letter.charCodeAt(0)}`

describe("A section that somebody else wrote", () => {
  it("is taken over by what its path leads to, wherever it stands, and keeps its name", () => {
    const path = "/dev/disk/by-path/pci-0000:00:07.0"
    const { next } = planned(unclaimed, { name: " my Büro ", path, device: deviceOf("b"), file: included })
    assert.deepInclude(next, { _tag: "Export", export_name: " my Büro ", path: Worlds.byIdPath(id), read_only: false })
    assert.include(next?.reason ?? "", `in ${included} is taken over`)
  })

  it("is migrated where it names a letter that leads to the volume's disk", () => {
    const { next } = planned(unclaimed, { name: "migration-vm-A", path: "/dev/vdb", device: deviceOf("b") })
    assert.deepInclude(next, { _tag: "MigratePath", export_name: "migration-vm-A", from: "/dev/vdb" })
  })

  it("is not taken by its letter, which leads to another disk by now (S3, D4)", () => {
    const { next } = planned(unclaimed, { name: "migration-vm-A", path: "/dev/vdb", device: deviceOf("c") })
    assert.deepInclude(next, { _tag: "Export", export_name: Worlds.section(id).name })
  })

  it("that cannot be taken over keeps the volume from being served under a second name, with the reason (S3)", () => {
    const obstacle = "it has prerun, a program that volumed never runs"
    const { blocked, next } = planned(unclaimed, { name: "old", path: "/dev/vdb", device: deviceOf("b"), obstacle })
    assert.isNull(next)
    assert.strictEqual(blocked?.reason, "ExportNameTaken")
    assert.include(blocked?.message ?? "", obstacle)
  })
})

describe("A section of ours", () => {
  it("is served for good only when no load was left unfinished (N3)", () => {
    assert.isTrue(planned(served, { device: deviceOf("b") }).settled)
    const unfinished = `it stands in ${included} too`
    const { next } = planned(served, { device: deviceOf("b"), file: included, unfinished })
    assert.deepInclude(next, { _tag: "Export", path: Worlds.byIdPath(id) })
    assert.include(next?.reason ?? "", unfinished)
  })
})
