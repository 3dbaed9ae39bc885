import { assert, describe, it } from "@effect/vitest"
import type { V1Device } from "../../schema/Api.ts"
import type { VolumeId } from "../../schema/Ids.ts"
import * as Devices from "../../src/Cli/Devices.ts"
import { A } from "./Sample.ts"

const disk = (path: string, over: Partial<V1Device> = {}): V1Device => ({
  path,
  size: 2 * 1024 ** 3,
  serial: "aaaaaaaa000040008000",
  mapped: false,
  ...over
})

const changes = (before: ReadonlyArray<V1Device>, after: ReadonlyArray<V1Device>) =>
  Devices.changes(before, after).map(({ change, device }) => `${change} ${device.path} ${device.serial ?? ""}`.trim())

describe("disks that change", () => {
  it("are none while all is the same, in whatever order", () => {
    assert.deepStrictEqual(changes([disk("/dev/vdb"), disk("/dev/vdc")], [disk("/dev/vdc"), disk("/dev/vdb")]), [])
  })

  it("come, go, and are another disk under the same path", () => {
    assert.deepStrictEqual(changes([], [disk("/dev/vdb")]), ["added /dev/vdb aaaaaaaa000040008000"])
    assert.deepStrictEqual(changes([disk("/dev/vdb")], []), ["removed /dev/vdb aaaaaaaa000040008000"])
    assert.deepStrictEqual(changes([disk("/dev/vdb")], [disk("/dev/vdb", { serial: "bbbbbbbb000040008000" })]), [
      "removed /dev/vdb aaaaaaaa000040008000",
      "added /dev/vdb bbbbbbbb000040008000"
    ])
  })

  it("are changed when they grow or are known as another volume", () => {
    const mapped = disk("/dev/vdb", { mapped: true, volume_id: A as VolumeId })
    assert.deepStrictEqual(changes([disk("/dev/vdb")], [mapped]), ["changed /dev/vdb aaaaaaaa000040008000"])
    assert.deepStrictEqual(changes([disk("/dev/vdb")], [disk("/dev/vdb", { size: 3 })]), [
      "changed /dev/vdb aaaaaaaa000040008000"
    ])
  })
})
