import { assert, describe, it } from "@effect/vitest"
import { Chunk, Effect, Exit, Fiber, Scope, Stream, TestClock } from "effect"
import * as Fs from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { Devices } from "../../reconciler/Devices.ts"
import * as Guest from "../../src/Simulation/Guest.ts"
import * as World from "../../src/Simulation/World.ts"

const appliance = World.APPLIANCE_VM_ID
const GIB = 1024 ** 3

const temporary = Effect.acquireRelease(
  Effect.sync(() => Fs.mkdtempSync(join(tmpdir(), "volumed-guest-test-"))),
  (dir) => Effect.sync(() => Fs.rmSync(dir, { recursive: true, force: true }))
)

/** Until it is so; where it never is, the suite's own time-out ends the test. */
const until = (holds: () => boolean): Effect.Effect<void> =>
  Effect.suspend(() => (holds() ? Effect.void : Effect.andThen(Effect.sleep(5), until(holds))))

const settings = (bus: "virtio" | "scsi" | "ata") => ({ now: Date.now(), device_delay_ms: 0, job_ms: 0, bus })
const serialOf = (id: string) => id.replaceAll("-", "").slice(0, 20)
const attach = (w: World.World, id: string) => w.act({ act: "attach", volume_id: id, vm_id: appliance }, Date.now())
const detach = (w: World.World, id: string) => w.act({ act: "detach", volume_id: id }, Date.now())

describe("the device tree", () => {
  it.scopedLive("shows an attached volume as image, node, sysfs attributes and by-id link", () =>
    Effect.gen(function* () {
      const w = World.make(settings("virtio"))
      const dir = yield* temporary
      const tree = yield* Guest.tree(w, dir)
      assert.isFalse(Fs.existsSync(tree.by_id_dir))
      const id = w.seedVolume({ name: "data", size_gib: 3 }, Date.now()).id
      attach(w, id)
      const link = join(tree.by_id_dir, `virtio-${serialOf(id)}`)
      yield* until(() => Fs.existsSync(link))
      assert.strictEqual(Fs.readlinkSync(link), "../../vdb")
      const image = Fs.statSync(join(tree.volumes_dir, `${id}.img`))
      assert.strictEqual(Fs.statSync(link).ino, image.ino)
      assert.strictEqual(image.size, 3 * GIB)
      assert.isBelow(image.blocks, 100)
      const attribute = (name: string) => Fs.readFileSync(join(tree.sys_block_dir, "vdb", name), "utf8")
      assert.strictEqual(attribute("serial"), serialOf(id))
      assert.deepStrictEqual([attribute("size"), attribute("ro")], [`${(3 * GIB) / 512}\n`, "0\n"])
      assert.deepInclude(Guest.resolveFile(link), { size: 3 * GIB })
    })
  )

  it.scopedLive(
    "follows detach and attach: the directory goes with its last link, the data stays, the letter may change",
    () =>
      Effect.gen(function* () {
        const w = World.make(settings("virtio"))
        const tree = yield* Guest.tree(w, yield* temporary)
        const [a, b] = [w.seedVolume({ name: "a" }, Date.now()).id, w.seedVolume({ name: "b" }, Date.now()).id]
        const link = (id: string) => join(tree.by_id_dir, `virtio-${serialOf(id)}`)
        attach(w, a)
        yield* until(() => Fs.existsSync(link(a)))
        const file = Fs.openSync(link(a), "r+")
        Fs.writeSync(file, "kept", 4_096)
        Fs.closeSync(file)
        detach(w, a)
        yield* until(() => !Fs.existsSync(tree.by_id_dir))
        assert.deepStrictEqual(Fs.readdirSync(tree.sys_block_dir), [])
        assert.isFalse(Fs.existsSync(join(tree.dev_dir, "vdb")))
        attach(w, b)
        attach(w, a)
        yield* until(() => Fs.existsSync(link(a)) && Fs.existsSync(link(b)))
        assert.strictEqual(Fs.readlinkSync(link(a)), "../../vdc")
        const again = Fs.openSync(link(a), "r")
        const bytes = Buffer.alloc(4)
        Fs.readSync(again, bytes, 0, 4, 4_096)
        Fs.closeSync(again)
        assert.strictEqual(bytes.toString(), "kept")
      })
  )

  it.scopedLive("removes the image with the volume, and grows it when the volume grows", () =>
    Effect.gen(function* () {
      const w = World.make(settings("virtio"))
      const tree = yield* Guest.tree(w, yield* temporary)
      const id = w.seedVolume({ name: "a" }, Date.now()).id
      attach(w, id)
      const size = join(tree.sys_block_dir, "vdb", "size")
      yield* until(() => Fs.existsSync(size))
      w.act({ act: "resize", volume_id: id, size_gib: 2 }, Date.now())
      yield* until(() => Fs.readFileSync(size, "utf8") === `${(2 * GIB) / 512}\n`)
      assert.strictEqual(Fs.statSync(join(tree.dev_dir, "vdb")).size, 2 * GIB)
      detach(w, id)
      w.act({ act: "delete", volume_id: id }, Date.now())
      yield* until(() => !Fs.existsSync(join(tree.volumes_dir, `${id}.img`)))
    })
  )

  for (const [bus, kernel, name] of [
    ["scsi", "sdb", "scsi-0QEMU_QEMU_HARDDISK_"],
    ["ata", "sdb", "ata-QEMU_HARDDISK_"]
  ] as const) {
    it.scopedLive(`speaks ${bus}: other names, the serial in a vital product data page`, () =>
      Effect.gen(function* () {
        const w = World.make(settings(bus))
        const tree = yield* Guest.tree(w, yield* temporary)
        const id = w.seedVolume({ name: "a" }, Date.now()).id
        attach(w, id)
        yield* until(() => Fs.existsSync(join(tree.by_id_dir, `${name}${serialOf(id)}`)))
        const page = Fs.readFileSync(join(tree.sys_block_dir, kernel, "device", "vpd_pg80"))
        assert.deepStrictEqual([...page.subarray(0, 4)], [0, 0x80, 0, 20])
        assert.strictEqual(page.subarray(4).toString(), serialOf(id))
        assert.isFalse(Fs.existsSync(join(tree.sys_block_dir, kernel, "serial")))
      })
    )
  }

  it.scopedLive("moves the one link to the later disk where two have the same serial, and back (D5)", () =>
    Effect.gen(function* () {
      const w = World.make({ ...settings("virtio"), faults: [{ kind: "duplicate_serial", times: 1 }] })
      const tree = yield* Guest.tree(w, yield* temporary)
      const [a, b] = [w.seedVolume({ name: "a" }, Date.now()).id, w.seedVolume({ name: "b" }, Date.now()).id]
      const target = () => Fs.readlinkSync(join(tree.by_id_dir, `virtio-${serialOf(a)}`))
      attach(w, a)
      attach(w, b)
      yield* until(() => Fs.existsSync(join(tree.dev_dir, "vdc")) && target() === "../../vdc")
      assert.lengthOf(Fs.readdirSync(tree.by_id_dir), 1)
      detach(w, b)
      yield* until(() => target() === "../../vdb")
    })
  )

  it.live("takes up a tree it left, without disturbing what is still right", () =>
    Effect.gen(function* () {
      const dir = yield* temporary
      const w = World.make(settings("virtio"))
      const [a, b] = [w.seedVolume({ name: "a" }, Date.now()).id, w.seedVolume({ name: "b" }, Date.now()).id]
      attach(w, a)
      attach(w, b)
      const scope = yield* Scope.make()
      const tree = yield* Scope.extend(Guest.tree(w, dir), scope)
      yield* Scope.close(scope, Exit.void)
      const link = Fs.lstatSync(join(tree.by_id_dir, `virtio-${serialOf(a)}`), { bigint: true })
      detach(w, b)
      yield* Guest.tree(World.load(JSON.parse(JSON.stringify(w.save(Date.now())))), dir)
      assert.deepStrictEqual(Fs.readdirSync(tree.sys_block_dir), ["vdb"])
      const kept = Fs.lstatSync(join(tree.by_id_dir, `virtio-${serialOf(a)}`), { bigint: true })
      assert.strictEqual(kept.ctimeNs, link.ctimeNs)
    }).pipe(Effect.scoped)
  )
})

describe("the in-memory guest", () => {
  it.effect("shows the same disks as values, at the TestClock's time, and pokes when they change", () => {
    const w = World.make({ now: 0, device_delay_ms: 300 })
    const id = w.seedVolume({ name: "a", size_gib: 2 }, 0).id
    return Effect.gen(function* () {
      const devices = yield* Devices
      const poke = yield* Effect.fork(Stream.runCollect(Stream.take(devices.pokes, 1)))
      yield* Effect.yieldNow()
      w.act({ act: "attach", volume_id: id, vm_id: appliance }, 0)
      assert.deepStrictEqual((yield* devices.observe).devices, [])
      yield* TestClock.adjust(300)
      const [disk] = (yield* devices.observe).devices
      const path = `/dev/disk/by-id/virtio-${serialOf(id)}`
      assert.deepInclude(disk, { kernel_path: "/dev/vdb", serial: serialOf(id), size: 2 * GIB, by_id_paths: [path] })
      assert.deepStrictEqual(Guest.resolve(w)(path, 300), { identity: disk?.identity ?? "", size: 2 * GIB })
      assert.isNull(Guest.resolve(w)("/dev/disk/by-id/virtio-x", 300))
      assert.strictEqual(Chunk.size(yield* Fiber.join(poke)), 1)
      detachNow(w, id)
      assert.deepStrictEqual((yield* devices.observe).devices, [])
    }).pipe(Effect.provide(Guest.layerDevices(w)))
  })

  it.effect("cannot be read where a fault says so", () => {
    const w = World.make({ now: 0, faults: [{ kind: "guest_unread", times: 1 }] })
    return Effect.gen(function* () {
      const devices = yield* Devices
      assert.strictEqual((yield* Effect.flip(devices.observe))._tag, "GuestUnavailable")
      assert.deepStrictEqual((yield* devices.observe).devices, [])
    }).pipe(Effect.provide(Guest.layerDevices(w)))
  })
})

const detachNow = (w: World.World, id: string) => w.act({ act: "detach", volume_id: id }, 300)
