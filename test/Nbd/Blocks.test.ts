import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import { createHash } from "node:crypto"
import { readFileSync, rmSync, statSync, symlinkSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import type { WantedExport } from "../../reconciler/Nbd.ts"
import * as Identity from "../../src/Devices/Identity.ts"
import * as Appliance from "./Appliance.ts"

/*
 * Volumes that are block devices, as on a real appliance: loop devices over files, where this machine and user have them.
 * Elsewhere each test says why it did nothing; the same ways are walked with files by the other tests.
 */

const MiB = 1024 * 1024
const SIZE = 24 * MiB

interface Disk extends WantedExport {
  /** The loop device's node. */
  readonly node: string
  readonly image: string
}

const sha256 = (path: string) => createHash("sha256").update(readFileSync(path)).digest("hex")

/** Not by the number alone: by then it may be somebody else's. */
const detach = (node: string, image: string) =>
  Effect.flatMap(Appliance.run("losetup", "--associated", image), ({ said }) =>
    said.startsWith(`${node}:`) ? Appliance.run("losetup", "--detach", node) : Effect.succeed(null)
  )

/** A loop device over a file of which no two parts are alike, and its link; null and said why where there can be none. */
const loop = (appliance: Appliance.Appliance, name: string) =>
  Effect.gen(function* () {
    const image = join(appliance.dir, "dev", `${name}.img`)
    const words = Uint32Array.from({ length: SIZE / 4 }, (_, i) => i ^ (name.charCodeAt(0) << 24))
    writeFileSync(image, new Uint8Array(words.buffer))
    const { code, said } = yield* Effect.acquireRelease(
      Appliance.run("losetup", "--find", "--show", image),
      ({ said }) => Effect.andThen(detach(said, image), Effect.void)
    )
    if (code !== 0) {
      process.stdout.write(`no loop devices here: ${said}\n`)
      return null
    }
    const path = join(appliance.options.by_id_dir, `virtio-${name}`)
    symlinkSync(said, path)
    const device = Identity.ofStats(statSync(said, { bigint: true })) ?? ""
    return { name, path, device, size: SIZE, read_only: false, node: said, image } satisfies Disk
  })

/** Two of them served; null where this machine has none. */
const stage = Effect.gen(function* () {
  const appliance = yield* Appliance.make
  const [a, b] = [yield* loop(appliance, "aaaa"), yield* loop(appliance, "bbbb")]
  if (a === null || b === null) return null
  const nbd = yield* Appliance.adapter(appliance, { device_kind: "block" })
  yield* nbd.load({ set: [a, b], drop: [] })
  return { appliance, nbd, a, b }
})

type Stage = NonNullable<Effect.Effect.Success<typeof stage>>

const holdersOf = ({ nbd }: Stage, { device }: Disk) =>
  Effect.map(Effect.orDie(nbd.observe([])), ({ holders }) => holders.filter((holder) => holder.device === device))

const hasEnded = (here: Stage, disk: Disk) =>
  Effect.repeat(holdersOf(here, disk), { until: (holders) => holders.length === 0, times: 100 })

describe("block devices as volumes", () => {
  it.scopedLive("are served as what they are, to three independent clients and from them (S3)", () =>
    Effect.gen(function* () {
      const here = yield* stage
      if (here === null) return
      const { appliance, nbd, a, b } = here
      const reading = yield* nbd.observe(["aaaa", "bbbb"])
      assert.match(a.device, /^7:\d+$/)
      assert.deepStrictEqual(
        reading.verifications.map(({ device, outcome, size }) => [outcome, device, size]),
        [
          ["served", a.device, SIZE],
          ["served", b.device, SIZE]
        ]
      )
      assert.deepStrictEqual(
        reading.sections.map(({ device }) => device),
        [a.device, b.device]
      )
      const [copied, converted] = [join(appliance.dir, "copied"), join(appliance.dir, "converted")]
      assert.strictEqual((yield* Appliance.run("nbdinfo", "--size", appliance.uri("aaaa"))).said, String(SIZE))
      yield* Appliance.run("nbdcopy", appliance.uri("aaaa"), copied)
      yield* Appliance.run("qemu-img", "convert", "-f", "raw", "-O", "raw", appliance.uri("bbbb"), converted)
      assert.deepStrictEqual([copied, converted].map(sha256), [a.image, b.image].map(sha256))
      // And back: what a client wrote and flushed is on the disk below.
      const { code, said } = yield* Appliance.run("nbdcopy", "--flush", converted, appliance.uri("aaaa"))
      assert.strictEqual(code, 0, said)
      yield* hasEnded(here, a)
      yield* Appliance.run("blockdev", "--flushbufs", a.node)
      assert.strictEqual(sha256(a.image), sha256(b.image))
    })
  )

  it.scopedLive(
    "that are pulled while a client reads show who holds them, serve nobody else, and end with it (D9)",
    () =>
      Effect.gen(function* () {
        const here = yield* stage
        if (here === null) return
        const { appliance, nbd, a } = here
        const copy = yield* Appliance.transfer(appliance, "aaaa")
        const [holder] = yield* holdersOf(here, a)
        assert.isNotNull(holder?.peer)
        // As when the hypervisor takes the disk and udev its link; the kernel keeps what is held.
        yield* Appliance.run("losetup", "--detach", a.node)
        rmSync(a.path)
        const reading = yield* nbd.observe(["aaaa", "bbbb"])
        assert.deepStrictEqual(
          reading.verifications.map(({ outcome }) => outcome),
          ["denied", "served"]
        )
        assert.isNull(reading.sections[0]?.device)
        assert.deepStrictEqual(
          reading.holders.filter(({ device }) => device === a.device),
          [holder]
        )
        assert.deepStrictEqual(yield* copy.finish, { code: 0, sha256: sha256(a.image) })
        assert.isEmpty(yield* hasEnded(here, a))
        assert.strictEqual((yield* Appliance.run("losetup", "--associated", a.image)).said, "")
      })
  )

  it.scopedLive("are told apart when a link leads to another one, and no load takes it (S3, D3)", () =>
    Effect.gen(function* () {
      const here = yield* stage
      if (here === null) return
      const { nbd, a, b } = here
      rmSync(a.path)
      symlinkSync(b.node, a.path)
      const sections = yield* nbd.sections
      assert.deepStrictEqual(
        sections.map(({ device }) => device),
        [b.device, b.device]
      )
      assert.strictEqual((yield* Effect.flip(nbd.load({ set: [a], drop: [] })))._tag, "PreconditionLost")
      assert.strictEqual(Appliance.verified(yield* nbd.observe(["aaaa"]), "aaaa").device, b.device)
    })
  )

  it.scopedLive("lose exactly their clients when those are ended", () =>
    Effect.gen(function* () {
      const here = yield* stage
      if (here === null) return
      const { appliance, nbd, a, b } = here
      const [ended, spared] = [
        yield* Appliance.transfer(appliance, "aaaa"),
        yield* Appliance.transfer(appliance, "bbbb")
      ]
      const count = (yield* holdersOf(here, a)).length
      assert.strictEqual(yield* nbd.endClients(a.device), count)
      assert.isEmpty(yield* hasEnded(here, a))
      assert.notStrictEqual((yield* ended.finish).code, 0)
      assert.deepStrictEqual(yield* spared.finish, { code: 0, sha256: sha256(b.image) })
    })
  )
})
