import { assert, describe, it } from "@effect/vitest"
import * as Exports from "../../src/Http/Exports.ts"
import * as Worlds from "../support/Worlds.ts"

const id = Worlds.volumeId(1)

describe("an export's port", () => {
  it("is that of the process that serves it, also where the kernel made a writable disk read-only", () => {
    const port = (read_only: boolean) => {
      const nbd = Worlds.nbd({
        engine: "nbdkit",
        read_only_port: 10_810,
        sections: [Worlds.section(id, { read_only })],
        // nbdkit opens a disk that cannot be written for reading, and serves it where it is.
        verifications: [Worlds.verification(id, "b", { read_only: true })]
      })
      const settings = { backend: "nbdkit", host: "127.0.0.1", port: 10_809 } as const
      return Exports.make(settings, [], Worlds.inventory({ nbd })).exports.map((one) => one.port)
    }
    assert.deepStrictEqual([port(false), port(true)], [[10_809], [10_810]])
  })
})
