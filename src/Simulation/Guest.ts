import { Cause, Clock, Effect, Layer, Queue, type Scope, Stream } from "effect"
import * as Fs from "node:fs"
import { join } from "node:path"
import { Devices } from "../../reconciler/Devices.ts"
import { GuestUnavailable, Misconfigured } from "../../schema/Errors.ts"
import type { BlockDevice } from "../../schema/Inventory.ts"
import * as Identity from "../Devices/Identity.ts"
import * as Hypervisor from "./Hypervisor.ts"
import { type GuestDisk, strike } from "./State.ts"
import type { World } from "./World.ts"

/** Where the in-memory guest's links are said to be. */
export const BY_ID_DIR = "/dev/disk/by-id"

interface Disk extends GuestDisk {
  /** Bytes. */
  readonly size: number
  readonly numeric: number
}

/**
 * The appliance's data disks. Its system disk is left out: it shows no serial, so there is no link to it and nothing
 * to be said about it.
 */
const disksOf = (world: World, now: number): ReadonlyArray<Disk> =>
  world.guest(world.state.config.appliance_vm_id, now).flatMap((disk) => {
    const row = world.state.volumes.get(disk.volume_id)
    return row === undefined || row.type === "ROOT" ? [] : [{ ...disk, size: row.size, numeric: row.numeric }]
  })

/** Link names and the kernel name each means. Of two disks with one serial the later one has the link, as with udev. */
const linksOf = (disks: ReadonlyArray<Disk>): ReadonlyMap<string, Disk> =>
  new Map(disks.map((disk) => [Hypervisor.linkName(disk.bus, disk.serial), disk]))

/** What a by-id path means in the in-memory guest. */
export const resolve =
  (world: World) =>
  (path: string, now: number): { readonly identity: string; readonly size: number } | null => {
    const disk = linksOf(disksOf(world, now)).get(path.replace(`${BY_ID_DIR}/`, ""))
    return disk === undefined ? null : { identity: identityOf(disk), size: disk.size }
  }

/** What a path means in a directory tree of `tree`, or on this machine. */
export const resolveFile = (path: string): { readonly identity: string; readonly size: number } | null => {
  const stats = Fs.statSync(path, { bigint: true, throwIfNoEntry: false })
  const identity = stats === undefined ? null : Identity.ofStats(stats)
  return stats === undefined || identity === null ? null : { identity, size: Number(stats.size) }
}

/** The identity of a volume's disk, the same whatever it is called at the moment. */
const identityOf = ({ numeric }: Pick<Disk, "numeric">): string => `file:0:${numeric}`

/** The same by the volume, wherever it is attached; null where there is no such volume. */
export const diskOf = (world: World, volumeId: string): string | null => {
  const row = world.state.volumes.get(volumeId)
  return row === undefined ? null : identityOf(row)
}

/** The guest without a kernel: the appliance's disks as the world has them at Effect's time. */
export const layerDevices = (world: World): Layer.Layer<Devices> =>
  Layer.succeed(Devices, {
    observe: Effect.gen(function* () {
      const now = yield* Clock.currentTimeMillis
      const disks = disksOf(world, now)
      const occasion = { command: null, volume_id: null, vm_id: world.state.config.appliance_vm_id }
      if (strike(world.state, ["guest_unread"], occasion) !== null) {
        return yield* new GuestUnavailable({ detail: "the simulated guest does not answer" })
      }
      const links = linksOf(disks)
      return { devices: disks.map((disk) => blockDevice(disk, links)), broken_links: [] }
    }),
    flush: () => Effect.void,
    pokes: changes(world)
  })

const blockDevice = (disk: Disk, links: ReadonlyMap<string, Disk>): BlockDevice => {
  const name = Hypervisor.linkName(disk.bus, disk.serial)
  return {
    kernel_name: disk.kernel_name,
    kernel_path: `/dev/${disk.kernel_name}`,
    serial: disk.serial,
    size: disk.size,
    read_only: false,
    identity: identityOf(disk),
    forbidden: null,
    by_id_paths: links.get(name) === disk ? [`${BY_ID_DIR}/${name}`] : [],
    controller: disk.bus === "virtio" ? `virtio${disk.epoch}` : null
  }
}

/** Ticks when the appliance's disks change, as far as somebody has let the world's time go on. */
const changes = (world: World): Stream.Stream<void> =>
  Stream.asyncPush<void>(
    (emit) =>
      Effect.acquireRelease(
        Effect.sync(() => {
          const key = () =>
            (world.state.guests.get(world.state.config.appliance_vm_id) ?? []).map((disk) => disk.epoch).join()
          let last = key()
          return world.subscribe(() => {
            const next = key()
            if (next === last) return
            last = next
            emit.single(undefined)
          })
        }),
        (stop) => Effect.sync(stop)
      ),
    { bufferSize: 1, strategy: "sliding" }
  )

export interface Tree {
  readonly dev_dir: string
  readonly by_id_dir: string
  readonly sys_block_dir: string
  readonly volumes_dir: string
}

export const treeIn = (directory: string): Tree => ({
  dev_dir: join(directory, "dev"),
  by_id_dir: join(directory, "dev", "disk", "by-id"),
  sys_block_dir: join(directory, "sys", "block"),
  volumes_dir: join(directory, "volumes")
})

const TICK_MS = 25
const SECTOR = 512

/**
 * A real directory tree that follows the appliance's disks: an image file for each volume, kept as long as the volume
 * lives; `dev/vdb` as a hard link to it, so that device and inode say which volume it is; by-id links; and the few
 * sysfs attributes that identify a disk. Like udev it removes the by-id directory with its last link.
 */
export const tree = (world: World, directory: string): Effect.Effect<Tree, Misconfigured, Scope.Scope> =>
  Effect.gen(function* () {
    const places = treeIn(directory)
    const follow = new Follower(world, places)
    yield* Effect.try({
      try: () => follow.begin(),
      catch: (cause) =>
        new Misconfigured({
          problems: [{ key: "--state", problem: `cannot be used: ${String(cause)}`, example: "--state /tmp/sandbox" }]
        })
    })
    const pokes = yield* Queue.sliding<void>(1)
    yield* Effect.acquireRelease(
      Effect.sync(() => world.subscribe(() => pokes.unsafeOffer(undefined))),
      (stop) => Effect.sync(stop)
    )
    const step = Clock.currentTimeMillis.pipe(
      Effect.andThen((now) =>
        Effect.try({
          try: () => follow.catchUp(now),
          catch: (cause) => new GuestUnavailable({ detail: "the device tree could not follow", cause })
        })
      ),
      Effect.catchTag("GuestUnavailable", (error) => Effect.logError("device tree behind", Cause.fail(error)))
    )
    yield* step
    yield* Queue.take(pokes).pipe(
      Effect.timeoutOption(TICK_MS),
      Effect.andThen(step),
      Effect.forever,
      Effect.forkScoped
    )
    return places
  })

class Follower {
  readonly #world: World
  readonly #places: Tree
  readonly #shown = new Map<string, Disk>()
  #version = -1

  constructor(world: World, places: Tree) {
    this.#world = world
    this.#places = places
  }

  /** Disks that an earlier process left in the tree stay as they are when they are still right: nothing may flicker. */
  begin(): void {
    const { volumes_dir, sys_block_dir, dev_dir } = this.#places
    for (const place of [volumes_dir, sys_block_dir, dev_dir]) Fs.mkdirSync(place, { recursive: true })
    const disks = new Map(disksOf(this.#world, this.#world.state.now).map((disk) => [disk.kernel_name, disk]))
    for (const name of Fs.readdirSync(sys_block_dir)) {
      const disk = disks.get(name)
      if (disk !== undefined && this.#isRight(disk)) this.#shown.set(name, disk)
      else this.#hide(name)
    }
  }

  #isRight(disk: Disk): boolean {
    const image = Fs.statSync(this.#image(disk.volume_id), { throwIfNoEntry: false })
    const node = Fs.statSync(join(this.#places.dev_dir, disk.kernel_name), { throwIfNoEntry: false })
    return image !== undefined && image.ino === node?.ino && image.size === disk.size
  }

  catchUp(now: number): void {
    this.#world.advance(now)
    if (this.#version === this.#world.state.version) return
    this.#version = this.#world.state.version
    const disks = disksOf(this.#world, now)
    const wanted = new Map(disks.map((disk) => [disk.kernel_name, disk]))
    for (const [name, have] of this.#shown) {
      const want = wanted.get(name)
      if (want?.epoch === have.epoch && want.serial === have.serial) continue
      this.#hide(name)
      this.#shown.delete(name)
    }
    for (const disk of disks) {
      const have = this.#shown.get(disk.kernel_name)
      if (have === undefined) this.#show(disk)
      else if (have.size !== disk.size) this.#resize(disk)
      this.#shown.set(disk.kernel_name, disk)
    }
    this.#link(linksOf(disks))
    this.#forgetImages()
  }

  #image(volumeId: string): string {
    return join(this.#places.volumes_dir, `${volumeId}.img`)
  }

  /** The attributes appear all at once: they are written aside and moved into place. */
  #show(disk: Disk): void {
    const image = this.#image(disk.volume_id)
    Fs.closeSync(Fs.openSync(image, "a", 0o600))
    if (Fs.statSync(image).size !== disk.size) Fs.truncateSync(image, disk.size)
    const node = join(this.#places.dev_dir, disk.kernel_name)
    Fs.rmSync(node, { force: true })
    Fs.linkSync(image, node)
    const aside = join(this.#places.volumes_dir, `.${disk.kernel_name}`)
    Fs.rmSync(aside, { recursive: true, force: true })
    Fs.mkdirSync(join(aside, "device"), { recursive: true })
    Fs.writeFileSync(join(aside, "size"), `${disk.size / SECTOR}\n`)
    Fs.writeFileSync(join(aside, "ro"), "0\n")
    if (disk.bus === "virtio") Fs.writeFileSync(join(aside, "serial"), disk.serial)
    else Fs.writeFileSync(join(aside, "device", "vpd_pg80"), unitSerialNumber(disk.serial))
    Fs.renameSync(aside, join(this.#places.sys_block_dir, disk.kernel_name))
  }

  #resize(disk: Disk): void {
    Fs.truncateSync(this.#image(disk.volume_id), disk.size)
    Fs.writeFileSync(join(this.#places.sys_block_dir, disk.kernel_name, "size"), `${disk.size / SECTOR}\n`)
  }

  #hide(name: string): void {
    const aside = join(this.#places.volumes_dir, `.${name}`)
    Fs.rmSync(aside, { recursive: true, force: true })
    Fs.renameSync(join(this.#places.sys_block_dir, name), aside)
    Fs.rmSync(aside, { recursive: true })
    Fs.rmSync(join(this.#places.dev_dir, name), { force: true })
  }

  #link(links: ReadonlyMap<string, Disk>): void {
    const { by_id_dir } = this.#places
    if (links.size === 0) return Fs.rmSync(by_id_dir, { recursive: true, force: true })
    Fs.mkdirSync(by_id_dir, { recursive: true })
    const have = new Map(Fs.readdirSync(by_id_dir).map((name) => [name, Fs.readlinkSync(join(by_id_dir, name))]))
    for (const name of have.keys()) if (!links.has(name)) Fs.unlinkSync(join(by_id_dir, name))
    for (const [name, disk] of links) {
      const target = `../../${disk.kernel_name}`
      if (have.get(name) === target) continue
      if (have.has(name)) Fs.unlinkSync(join(by_id_dir, name))
      Fs.symlinkSync(target, join(by_id_dir, name))
    }
  }

  /** The data of a deleted volume is gone with it. */
  #forgetImages(): void {
    for (const name of Fs.readdirSync(this.#places.volumes_dir)) {
      const row = this.#world.state.volumes.get(name.replace(/\.img$/, ""))
      const gone = row === undefined || row.removed_at !== null
      if (gone && name.endsWith(".img")) Fs.unlinkSync(join(this.#places.volumes_dir, name))
    }
  }
}

/** SCSI vital product data page 80h: four bytes of header, then the serial (SPC-4, 7.8.18). */
const unitSerialNumber = (serial: string): Buffer => {
  const text = Buffer.from(serial, "latin1")
  return Buffer.concat([Buffer.from([0x00, 0x80, 0x00, text.length]), text])
}
