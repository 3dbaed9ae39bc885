import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import { execFile } from "node:child_process"
import { readFile, stat, writeFile } from "node:fs/promises"
import { createServer } from "node:net"
import { join } from "node:path"
import { promisify } from "node:util"
import { flush } from "../../src/Devices/Flush.ts"
import * as Linux from "../../src/Devices/Linux.ts"
import * as DeviceTree from "../support/DeviceTree.ts"

const run = promisify(execFile)

/** Everything a link could lead to. Each disk shows the very serial of its link, so that only its kind speaks against it. */
const kinds: ReadonlyArray<{
  readonly node: string
  /** As `mknod` takes it: kind and numbers. */
  readonly make: ReadonlyArray<string>
  readonly disk: boolean
  readonly problem: string | null
}> = [
  { node: "vdb", make: ["b", "254", "16"], disk: true, problem: null },
  { node: "sdb", make: ["b", "8", "16"], disk: true, problem: null },
  {
    node: "loop0",
    make: ["b", "7", "0"],
    disk: true,
    problem: "it leads to loop0: a loop device, not a disk of this machine"
  },
  {
    node: "ram0",
    make: ["b", "1", "0"],
    disk: true,
    problem: "it leads to ram0: a RAM disk, not a disk of this machine"
  },
  {
    node: "dm-0",
    make: ["b", "253", "0"],
    disk: true,
    problem: "it leads to dm-0: a device-mapper device, not a disk of this machine"
  },
  {
    node: "md127",
    make: ["b", "9", "127"],
    disk: true,
    problem: "it leads to md127: a software RAID, not a disk of this machine"
  },
  {
    node: "sr0",
    make: ["b", "11", "0"],
    disk: true,
    problem: "it leads to sr0: an optical drive, not a disk of this machine"
  },
  {
    node: "nbd0",
    make: ["b", "43", "0"],
    disk: true,
    problem: "it leads to nbd0: an NBD client device, not a disk of this machine"
  },
  {
    node: "mmcblk0",
    make: ["b", "179", "0"],
    disk: true,
    problem: "it leads to mmcblk0: not a kind of disk that volumes appear as"
  },
  // A loop device under a disk's name.
  {
    node: "vdl",
    make: ["b", "7", "9"],
    disk: true,
    problem: "it leads to vdl: a loop device, not a disk of this machine"
  },
  { node: "vdz", make: ["b", "254", "400"], disk: false, problem: "it leads to 254:400, which is no disk in sysfs" },
  {
    node: "vdb1",
    make: ["b", "254", "17"],
    disk: false,
    problem: "it leads to a partition of vdb, not to a whole disk"
  },
  { node: "null", make: ["c", "1", "3"], disk: false, problem: "/dev/null is a character device, not a block device" },
  { node: "fifo", make: ["p"], disk: false, problem: "/dev/fifo is neither a block device nor a file" }
]

/** The tree with a real node of each kind, as far as this user may make them; null where he may not. */
const nodes = Effect.gen(function* () {
  const tree = yield* DeviceTree.make
  const made = yield* Effect.promise(() =>
    Promise.all(
      kinds.map(async ({ make, node }) => {
        const path = join(tree.options.dev_dir, node)
        await run("mkdir", ["-p", tree.options.by_id_dir])
        await run("mknod", [path, ...make])
      })
    ).then(
      () => true,
      (cause: unknown) => {
        process.stdout.write(`no device node can be made here: ${String(cause)}\n`)
        return false
      }
    )
  )
  return { tree, made }
})

const serialOf = (at: number) => `d6${String(at).padStart(18, "0")}`

describe("A by-id link", () => {
  it.scoped(
    "leads to a disk only where its node is a whole disk's: each other kind is named, and none followed (D6)",
    () =>
      Effect.gen(function* () {
        const { made, tree } = yield* nodes
        const shown = made ? kinds : kinds.filter(({ disk }) => disk)
        for (const [at, { disk, make, node }] of shown.entries()) {
          const entry = { [`sys/block/${node}/size`]: "2048", [`sys/block/${node}/serial`]: serialOf(at) }
          if (disk) yield* tree.write({ ...entry, [`sys/block/${node}/dev`]: make.slice(1).join(":") })
          if (!made) yield* tree.write({ [`dev/${node}`]: "" })
          yield* tree.link(`virtio-${serialOf(at)}`, node)
        }
        yield* tree.write({ "sys/block/vdb/vdb1/partition": "1", "sys/block/vdb/vdb1/dev": "254:17" })
        // Without nodes of devices, files stand in for them, and sysfs alone tells the kinds.
        const reading = yield* Linux.observe({ ...tree.options, device_kind: made ? "block" : "file" })
        const usable = reading.devices.filter((device) => device.by_id_paths.length > 0)
        const expected = shown.filter(({ problem }) => problem === null)
        assert.deepStrictEqual(
          usable.map((device) => device.kernel_name).toSorted(),
          expected.map(({ node }) => node).toSorted()
        )
        for (const [at, { node, problem }] of shown.entries()) {
          const path = join(tree.options.by_id_dir, `virtio-${serialOf(at)}`)
          const said = reading.broken_links.find((link) => link.path === path)?.problem.replaceAll(tree.root, "")
          assert.strictEqual(said, problem ?? undefined, node)
        }
      })
  )

  it.scoped("is followed one straight hop, written in whatever way, and no further (D6)", () =>
    Effect.gen(function* () {
      const tree = yield* DeviceTree.make
      const socket = createServer()
      const ways: ReadonlyArray<readonly [string, string | null]> = [
        ["../../vdb", null],
        [join(tree.options.dev_dir, "vdb"), null],
        ["../../disk/../vdb", null],
        ["../..//./vdb", null],
        ["../../../dev/vdb", null],
        ["../../alias", "it goes through another link to /dev/vdb"],
        ["../../disk", "/dev/disk is a directory, not a block device"],
        ["../../..", "it leads out of /dev to "],
        ["../../../../../../../../../../etc/passwd", "it leads out of /dev to /etc/passwd"],
        ["../../vdq", "it dangles: its target does not exist"],
        ["../../disk/vdb", "it dangles: its target does not exist"],
        ["../../vdb/", "it cannot be followed: ENOTDIR"],
        ["../../socket", "/dev/socket is neither a block device nor a file"],
        ["../../x".padEnd(300, "x"), "it cannot be followed: ENAMETOOLONG"]
      ]
      const serial = serialOf(1)
      yield* tree.disk("vdb", { serial })
      yield* tree.write({ "dev/disk/by-path/x": "", "dev/alias": "-> vdb" })
      yield* Effect.acquireRelease(
        Effect.async<void>((resume) => {
          socket.listen(join(tree.options.dev_dir, "socket"), () => resume(Effect.void))
        }),
        () => Effect.async<void>((resume) => void socket.close(() => resume(Effect.void)))
      )
      for (const [target, problem] of ways) {
        yield* tree.write({ [`dev/disk/by-id/virtio-${serial}`]: `-> ${target}` })
        const { broken_links, devices } = yield* Linux.observe(tree.options)
        const said = broken_links[0]?.problem.replaceAll(tree.root, "") ?? null
        assert.strictEqual(said, problem, target)
        assert.strictEqual(devices[0]?.by_id_paths.length, problem === null ? 1 : 0, target)
        yield* tree.remove(`dev/disk/by-id/virtio-${serial}`)
      }
    })
  )
})

it.scoped("Looking at a disk and flushing it leave every byte of it as it was, a read-only one's too (D10)", () =>
  Effect.gen(function* () {
    const tree = yield* DeviceTree.make
    const serial = serialOf(2)
    yield* tree.disk("vdb", { serial, sectors: 8 })
    yield* tree.link(`virtio-${serial}`, "vdb")
    const path = join(tree.options.dev_dir, "vdb")
    yield* Effect.promise(() => writeFile(path, Buffer.alloc(4096, "a customer's data "), { mode: 0o444 }))
    const before = yield* Effect.promise(() => stat(path))
    for (const ro of ["0", "1"]) {
      yield* tree.write({ "sys/block/vdb/ro": `${ro}\n` })
      const { devices } = yield* Linux.observe(tree.options)
      const disk = devices[0] ?? assert.fail("no disk")
      assert.strictEqual(disk.read_only, ro === "1")
      yield* flush(disk)
    }
    const after = yield* Effect.promise(() => stat(path))
    assert.deepStrictEqual([after.mtimeMs, after.ctimeMs], [before.mtimeMs, before.ctimeMs])
    assert.deepStrictEqual(yield* Effect.promise(() => readFile(path)), Buffer.alloc(4096, "a customer's data "))
  })
)

it.scoped("A disk whose path has passed to another one is not flushed for it (D4)", () =>
  Effect.gen(function* () {
    const tree = yield* DeviceTree.make
    yield* tree.disk("vdb", { serial: serialOf(3) })
    const { devices } = yield* Linux.observe(tree.options)
    const disk = devices[0] ?? assert.fail("no disk")
    // Both there at once, so that the new one cannot have the old one's inode.
    yield* tree.write({ "dev/other": "" })
    yield* Effect.promise(() => run("mv", [join(tree.options.dev_dir, "other"), disk.kernel_path]))
    const failure = yield* Effect.flip(flush(disk))
    assert.include(failure.message, `now, not ${disk.identity}`)
  })
)
