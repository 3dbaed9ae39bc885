import { assert, describe, it } from "@effect/vitest"
import * as Handle from "../../src/Cli/Handle.ts"
import { A, B, volume } from "./Sample.ts"

const volumes = [volume("b", A), volume("c", B, {}, { attached_to: null, kernel_path: null, by_id_path: null })]
const names = (handle: string) => Handle.match(handle, volumes).map((found) => found.name)

describe("a HANDLE", () => {
  it("means a volume by any of its identities", () => {
    for (const handle of [
      "b",
      A,
      A.toUpperCase(),
      "/dev/vdb",
      "/dev/disk/by-id/virtio-aaaaaaaa000040008000",
      "virtio-aaaaaaaa000040008000",
      "aaaaaaaa000040008000",
      `migration-vol-${A}`,
      "8a4400e5-c92a-4bc4-8bff-4b6b0b6a018c"
    ]) {
      assert.deepStrictEqual(names(handle), ["b"], handle)
    }
  })

  it("means nothing where nothing matches, and never a part of an identity", () => {
    for (const handle of ["", "x", "vd", "aaaaaaaa", "/dev/vda", "/dev/disk/by-id/", "null"]) {
      assert.deepStrictEqual(names(handle), [], handle)
    }
  })

  it("means the declared name first, whatever else looks like it", () => {
    const named = [...volumes, volume(A, "cccccccc-0000-4000-8000-00000000000c")]
    assert.deepStrictEqual(
      Handle.match(A, named).map((found) => found.name),
      [A]
    )
  })

  it("finds a volume that is declared by id before it was ever observed", () => {
    const declared = volume("d", B, {}, { volume_id: null })
    const spec = { ...declared.spec, volume_id: declared.status.volume_id }
    assert.deepStrictEqual(
      Handle.match(B, [
        volume("b", A),
        { ...declared, spec: { ...spec, volume_id: volumes[1]?.status.volume_id ?? null } }
      ]).length,
      1
    )
  })

  it("means every volume on a VM", () => {
    const two = [volume("b", A), volume("c", B)]
    assert.strictEqual(Handle.match("8a4400e5-c92a-4bc4-8bff-4b6b0b6a018c", two).length, 2)
  })
})
