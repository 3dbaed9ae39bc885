import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import { execFile } from "node:child_process"
import { readdir, readFile, rename, stat, truncate, writeFile } from "node:fs/promises"
import { join } from "node:path"
import { promisify } from "node:util"
import * as Identity from "../../src/Devices/Identity.ts"
import * as Linux from "../../src/Devices/Linux.ts"
import { GIB } from "../../schema/Declaration.ts"
import { serialOf, type VolumeId } from "../../schema/Ids.ts"
import * as Guest from "../../src/Simulation/Guest.ts"
import * as World from "../../src/Simulation/World.ts"
import type { GuestReading } from "../../schema/Inventory.ts"
import * as DeviceTree from "../support/DeviceTree.ts"

const A = "b3bb93101b594f6297e8"
const B = "c6ef61d1300f442a86e5"
const fixture = (name: string) =>
  Effect.promise(() => readFile(new URL(`../../fixtures/devices/${name}`, import.meta.url), "utf8"))

/** A reading without what differs from run to run: the temporary directory and inode numbers. */
const settled = (tree: DeviceTree.DeviceTree, reading: GuestReading): unknown =>
  JSON.parse(
    JSON.stringify(reading)
      .replaceAll(tree.root, "")
      .replaceAll(/file:\d+:\d+/g, "file")
  )

const serials = (reading: GuestReading) => reading.devices.map((device) => device.serial)
const onlyDevice = (reading: GuestReading) => {
  assert.strictEqual(reading.devices.length, 1)
  return reading.devices[0] ?? assert.fail("no device")
}

describe("Devices, from a guest's sysfs", () => {
  it.scoped("tells data disks on all three buses from the system's own and from what is no disk (D6, S5)", () =>
    Effect.gen(function* () {
      const tree = yield* DeviceTree.make
      yield* tree.write(DeviceTree.parse(yield* fixture("kvm-guest.txt")))
      const reading = yield* Linux.observe({ ...tree.options, device_kind: "block" })
      assert.deepStrictEqual(settled(tree, reading), JSON.parse(yield* fixture("kvm-guest.json")))
    })
  )

  it.scoped("follows only links that lead straight to the disk whose serial they bear (D3, D4, D6)", () =>
    Effect.gen(function* () {
      const tree = yield* DeviceTree.make
      yield* tree.write(DeviceTree.parse(yield* fixture("links.txt")))
      const reading = yield* Linux.observe(tree.options)
      assert.deepStrictEqual(settled(tree, reading), JSON.parse(yield* fixture("links.json")))
    })
  )

  it.scoped("sees a disk whose link is late, and the link once it is there (D1)", () =>
    Effect.gen(function* () {
      const tree = yield* DeviceTree.make
      yield* tree.disk("vdb", { serial: A })
      assert.deepStrictEqual(onlyDevice(yield* Linux.observe(tree.options)).by_id_paths, [])
      yield* tree.link(`virtio-${A}`, "vdb")
      const device = onlyDevice(yield* Linux.observe(tree.options))
      assert.deepStrictEqual(device.by_id_paths, [join(tree.options.by_id_dir, `virtio-${A}`)])
    })
  )

  it.scoped("withdraws the stale link of a detached volume whose name another disk took (D4)", () =>
    Effect.gen(function* () {
      const tree = yield* DeviceTree.make
      yield* tree.disk("vdb", { serial: A })
      yield* tree.link(`virtio-${A}`, "vdb")
      yield* tree.write({ "sys/block/vdb/serial": B })
      const reading = yield* Linux.observe(tree.options)
      assert.deepStrictEqual(onlyDevice(reading).by_id_paths, [])
      assert.match(reading.broken_links[0]?.problem ?? "", new RegExp(`vdb, whose serial is ${B}`))
    })
  )

  it.scoped("gives no disk another's path while links are crossed at boot, in any order (D3, D11)", () =>
    Effect.gen(function* () {
      const tree = yield* DeviceTree.make
      const all = ["vdb", "vdc", "vdd"].map((name, index) => ({ name, serial: `${A.slice(0, 19)}${index}` }))
      for (const { name, serial } of all) yield* tree.disk(name, { serial })
      for (let turn = 0; turn < 27; turn++) {
        const targets = [turn % 3, Math.trunc(turn / 3) % 3, Math.trunc(turn / 9)]
        for (const [index, { serial }] of all.entries()) {
          const target = all[targets[index] ?? 0]?.name ?? ""
          yield* tree.write({ [`dev/disk/by-id/new-${serial}`]: `-> ../../${target}` })
          const directory = tree.options.by_id_dir
          yield* Effect.promise(() => rename(join(directory, `new-${serial}`), join(directory, `virtio-${serial}`)))
        }
        const reading = yield* Linux.observe(tree.options)
        for (const [index, device] of reading.devices.entries()) {
          const own = targets[index] === index ? [join(tree.options.by_id_dir, `virtio-${device.serial}`)] : []
          assert.deepStrictEqual(device.by_id_paths, own)
        }
      }
    })
  )

  it.scoped("shows both of two disks with one serial, so that the planner can refuse both (D5)", () =>
    Effect.gen(function* () {
      const tree = yield* DeviceTree.make
      yield* tree.disk("vdb", { serial: A })
      yield* tree.disk("vdc", { serial: A })
      yield* tree.link(`virtio-${A}`, "vdc")
      assert.deepStrictEqual(serials(yield* Linux.observe(tree.options)), [A, A])
    })
  )

  it.scoped("reads a serial trimmed and in lower case, and none where it is empty, odd or unreadable (D7)", () =>
    Effect.gen(function* () {
      const tree = yield* DeviceTree.make
      const page = (length: number, text: string) =>
        Buffer.concat([Buffer.from([0, 0x80, length >> 8, length & 0xff]), Buffer.from(text, "latin1")])
      const cases: ReadonlyArray<readonly [Record<string, string | Buffer>, string | null]> = [
        [{ serial: `${A}\n` }, A],
        [{ serial: `  ${A}\0\0\0` }, A],
        [{ serial: A.toUpperCase() }, A],
        [{ serial: "" }, null],
        [{ serial: "   \n" }, null],
        [{ serial: `${A}\u0007` }, null],
        [{ serial: "b3bb93101b594f6297e\u00e9" }, null],
        [{ serial: "7".repeat(65) }, null],
        [{ serial: "", "device/vpd_pg80": page(20, A) }, A],
        [{ serial: B, "device/vpd_pg80": page(20, A) }, B],
        [{ "device/vpd_pg80": page(28, `${A}        `) }, A],
        [{ "device/vpd_pg80": page(40, A) }, null],
        [{ "device/vpd_pg80": Buffer.from([0, 0x83, 0, 4, 1, 2, 3, 4]) }, null],
        [{ "device/vpd_pg80": Buffer.from([0, 0x80]) }, null],
        [{ "device/serial": `${A}\n` }, A],
        // A directory where the attribute should be opens but cannot be read; nothing below it is believed instead.
        [{ "serial/x": "", "device/serial": A }, null]
      ]
      for (const [files, expected] of cases) {
        yield* tree.disk("vdb", {})
        yield* tree.write(Object.fromEntries(Object.entries(files).map(([name, to]) => [`sys/block/vdb/${name}`, to])))
        assert.deepStrictEqual(serials(yield* Linux.observe(tree.options)), [expected], JSON.stringify(files))
        yield* tree.remove("sys/block/vdb")
      }
    })
  )

  it.scoped("forbids a disk whose size cannot be read, rather than call it empty (D10)", () =>
    Effect.gen(function* () {
      const tree = yield* DeviceTree.make
      for (const size of ["", "-8", "0x10", "99999999999999", "8 8"]) {
        yield* tree.disk("vdb", { serial: A })
        yield* tree.write({ "sys/block/vdb/size": size })
        assert.strictEqual(onlyDevice(yield* Linux.observe(tree.options)).forbidden, "a disk whose size cannot be read")
      }
    })
  )

  it.scoped("does not hang on a FIFO in the place of an attribute, and believes nothing it reads there", () =>
    Effect.gen(function* () {
      const tree = yield* DeviceTree.make
      yield* tree.disk("vdb", {})
      yield* Effect.promise(() => promisify(execFile)("mkfifo", [join(tree.options.sys_block_dir, "vdb/serial")]))
      assert.deepStrictEqual(serials(yield* Linux.observe(tree.options)), [null])
    })
  )

  it.scoped("takes a by-id directory that does not exist for an empty one, and says when one cannot be read", () =>
    Effect.gen(function* () {
      const tree = yield* DeviceTree.make
      yield* tree.disk("vdb", { serial: A })
      assert.deepStrictEqual((yield* Linux.observe(tree.options)).broken_links, [])
      yield* tree.write({ "dev/disk/by-id": "a file" })
      const failure = yield* Effect.flip(Linux.observe(tree.options))
      assert.strictEqual(failure._tag, "GuestUnavailable")
      assert.include(failure.message, "by-id cannot be listed")
    })
  )

  it.scoped("fails where sysfs is not there, for no disks must never be read into that", () =>
    Effect.gen(function* () {
      const tree = yield* DeviceTree.make
      yield* tree.remove("sys/block")
      const failure = yield* Effect.flip(Linux.observe(tree.options))
      assert.include(failure.message, "cannot be listed")
    })
  )

  it.scoped("fails where the mount table cannot be read, for no disk could be called free", () =>
    Effect.gen(function* () {
      const tree = yield* DeviceTree.make
      yield* tree.remove("proc/self/mountinfo")
      const failure = yield* Effect.flip(Linux.observe({ ...tree.options, device_kind: "block" }))
      assert.include(failure.message, "mountinfo cannot be read")
    })
  )
})

describe("Devices, in the sandbox", () => {
  it.scopedLive("finds the simulated appliance's disks, on whichever bus they hang", () =>
    Effect.gen(function* () {
      for (const bus of ["virtio", "scsi", "ata"] as const) {
        const { root } = yield* DeviceTree.make
        // Long enough ago for the guest to have noticed its disk.
        const begin = Date.now() - 60_000
        const world = World.make({ now: begin, bus })
        const volume = world.seedVolume({ name: "data", size_gib: 2, vm_id: World.APPLIANCE_VM_ID }, begin)
        const tree = yield* Guest.tree(world, join(root, "sandbox"))
        const reading = yield* Linux.observe({ ...tree, device_kind: "file" })
        const device = onlyDevice(reading)
        assert.strictEqual(device.serial, serialOf(volume.id as VolumeId))
        assert.strictEqual(device.size, 2 * GIB)
        assert.isNull(device.forbidden)
        assert.lengthOf(device.by_id_paths, 1)
        assert.deepStrictEqual(reading.broken_links, [])
      }
    })
  )
})

describe("Devices, with this machine's own block devices", () => {
  it.scoped("identifies a link's node by its device number, as the kernel does", () =>
    Effect.gen(function* () {
      const tree = yield* DeviceTree.make
      const node = yield* anyBlockNode
      const options = { ...tree.options, device_kind: "block", dev_dir: "/dev", allow_loop: true } as const
      const [major = "", minor = ""] = node.number.split(":")
      // The disk in sysfs bears the node's number; one with a neighbour's number must not be taken for it.
      yield* tree.disk("vdb", { serial: A, number: node.number })
      yield* tree.disk("vdc", { serial: B, number: `${major}:${Number(minor) + 1000}` })
      yield* tree.write({
        [`dev/disk/by-id/virtio-${A}`]: `-> ${node.path}`,
        [`dev/disk/by-id/virtio-${B}`]: `-> ${node.path}`,
        "dev/disk/by-id/virtio-00000000000000000001": "-> /dev/null",
        [`dev/disk/by-id/ata-QEMU_HARDDISK_${A}`]: `-> ${join(tree.root, "dev/vdb")}`
      })
      const reading = yield* Linux.observe(options)
      assert.deepStrictEqual(
        reading.devices.map((device) => [device.identity, device.by_id_paths.length]),
        node.exists
          ? [
              [node.number, 1],
              [`${major}:${Number(minor) + 1000}`, 0]
            ]
          : [
              [node.number, 0],
              [`${major}:${Number(minor) + 1000}`, 0]
            ]
      )
      assert.deepStrictEqual(
        reading.broken_links.map(({ path, problem }) => [path.slice(tree.options.by_id_dir.length + 1), problem]),
        [
          [`ata-QEMU_HARDDISK_${A}`, `it leads out of /dev to ${join(tree.root, "dev/vdb")}`],
          ["virtio-00000000000000000001", "/dev/null is a character device, not a block device"],
          ...(node.exists ? [] : [[`virtio-${A}`, "it dangles: its target does not exist"]]),
          [
            `virtio-${B}`,
            node.exists ? `it leads to vdb, whose serial is ${A}` : "it dangles: its target does not exist"
          ]
        ]
      )
    })
  )

  it.effect("calls no disk free that is mounted, swapped to or stacked upon here (S5)", () =>
    Effect.gen(function* () {
      const reading = yield* Linux.observe({
        by_id_dir: "/dev/disk/by-id",
        sys_block_dir: "/sys/block",
        device_kind: "block"
      })
      const mountinfo = yield* Effect.promise(() => readFile("/proc/self/mountinfo", "utf8"))
      const mounted = new Set(mountinfo.split("\n").map((line) => line.split(" ")[2]))
      for (const device of reading.devices) {
        const names = yield* Effect.promise(() => readdir(`/sys/block/${device.kernel_name}`))
        const parts = names.filter((name) => name.startsWith(device.kernel_name))
        const numbers = yield* Effect.promise(() =>
          Promise.all(parts.map((part) => readFile(`/sys/block/${device.kernel_name}/${part}/dev`, "utf8")))
        )
        const used = [device.identity, ...numbers.map((number) => number.trim())].some((number) => mounted.has(number))
        if (used) assert.isNotNull(device.forbidden, device.kernel_name)
      }
    })
  )

  it.scoped("shows a loop device whole, with its size and read-only flag, and forbids it (D6)", () =>
    Effect.gen(function* () {
      const tree = yield* DeviceTree.make
      const image = join(tree.root, "image")
      yield* Effect.promise(() => writeFile(image, ""))
      yield* Effect.promise(() => truncate(image, 8 * 1024 * 1024))
      const loop = yield* loopDevice(image)
      const options = { ...tree.options, sys_block_dir: "/sys/block", dev_dir: "/dev", device_kind: "block" } as const
      if (loop._tag === "Unavailable") {
        // What is left to show without one: nothing that is a loop device is ever offered.
        process.stdout.write(`no loop device can be set up here: ${loop.reason}\n`)
        yield* tree.disk("loop7", { serial: A, number: "7:7" })
        const refused = onlyDevice(yield* Linux.observe({ ...tree.options, device_kind: "block" }))
        assert.strictEqual(refused.forbidden, "a loop device, not a disk of this machine")
        return
      }
      yield* tree.write({ [`dev/disk/by-id/virtio-${A}`]: `-> ${loop.path}` })
      const find = (reading: GuestReading) =>
        reading.devices.find((device) => device.kernel_path === loop.path) ?? assert.fail("the loop device is not seen")
      const refused = yield* Linux.observe({ ...options, proc_dir: "/proc" })
      assert.strictEqual(find(refused).forbidden, "a loop device, not a disk of this machine")
      assert.strictEqual(
        refused.broken_links[0]?.problem,
        `it leads to ${find(refused).kernel_name}: ${find(refused).forbidden}`
      )
      const allowed = yield* Linux.observe({ ...options, allow_loop: true })
      assert.strictEqual(find(allowed).forbidden, null)
      assert.strictEqual(find(allowed).size, 8 * 1024 * 1024)
      assert.isTrue(find(allowed).read_only)
      assert.strictEqual(find(allowed).identity, loop.number)
      assert.strictEqual(
        allowed.broken_links[0]?.problem,
        `it leads to ${find(allowed).kernel_name}, which shows no serial`
      )

      yield* tree.write({ "proc/swaps": `Filename Type Size Used Priority\n${loop.path} partition 8 0 -2\n` })
      assert.include(find(yield* Linux.observe({ ...options, allow_loop: true })).forbidden ?? "", "used as swap")
      yield* tree.write({
        "proc/swaps": "Filename\n",
        "proc/self/mountinfo": `30 1 0:40 /sub /srv\\040x rw - btrfs ${loop.path} rw\n`
      })
      assert.include(find(yield* Linux.observe({ ...options, allow_loop: true })).forbidden ?? "", "mounted at /srv x")
    })
  )
})

/** Some block node below `/dev`; where a container has none, the number and name of one that is not there. */
const anyBlockNode = Effect.promise(async () => {
  for (const name of await readdir("/dev")) {
    const stats = await stat(`/dev/${name}`, { bigint: true }).catch(() => null)
    if (stats?.isBlockDevice()) return { path: `/dev/${name}`, number: Identity.ofNumber(stats.rdev), exists: true }
  }
  process.stdout.write("no block device below /dev: links to one are seen to dangle instead\n")
  return { path: "/dev/volumed-none", number: "254:16", exists: false }
})

/** A read-only loop device over a file, detached with the scope. */
const loopDevice = (image: string) =>
  Effect.acquireRelease(
    Effect.promise(() =>
      promisify(execFile)("losetup", ["--find", "--show", "--read-only", image]).then(
        async ({ stdout }) => {
          const path = stdout.trim()
          const { rdev } = await stat(path, { bigint: true })
          return { _tag: "Ready" as const, path, number: Identity.ofNumber(rdev) }
        },
        (cause: unknown) => ({ _tag: "Unavailable" as const, reason: String(cause) })
      )
    ),
    (loop) =>
      loop._tag === "Ready"
        ? Effect.promise(() => promisify(execFile)("losetup", ["--detach", loop.path]))
        : Effect.void
  )
