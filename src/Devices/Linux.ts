import { Effect, Layer } from "effect"
import { join, resolve } from "node:path"
import { Devices } from "../../reconciler/Devices.ts"
import { GuestUnavailable } from "../../schema/Errors.ts"
import type { BlockDevice, GuestReading } from "../../schema/Inventory.ts"
import type { Settings } from "../../schema/Settings.ts"
import * as ByIdLinks from "./ByIdLinks.ts"
import { flush } from "./Flush.ts"
import * as Identity from "./Identity.ts"
import * as InUse from "./InUse.ts"
import * as Sysfs from "./Sysfs.ts"
import * as Watch from "./Watch.ts"

export interface Options extends Pick<Settings, "by_id_dir" | "sys_block_dir" | "device_kind"> {
  /** Where the nodes are. By default `/dev`; in the sandbox the directory two above the by-id links, as there. */
  readonly dev_dir?: string
  readonly proc_dir?: string
  /** Let loop devices stand in for disks: for tests alone, since nothing that is a volume is ever one. */
  readonly allow_loop?: boolean
}

/** Sysfs and udev's links answer at once; a scan that takes longer hangs in a driver. */
const SCAN_TIMEOUT = "10 seconds"

export const layer = (options: Options): Layer.Layer<Devices> =>
  Layer.succeed(Devices, { observe: observe(options), flush, pokes: Watch.changes(options.by_id_dir) })

/**
 * Sysfs says which disks are here; links are only paths to them. A link counts when it leads straight to a node in the
 * device directory whose disk shows the very serial in the link's name, and shows it still once the link was followed.
 */
export const observe = (options: Options): Effect.Effect<GuestReading, GuestUnavailable> =>
  scan(withDefaults(options)).pipe(
    Effect.timeoutFail({
      duration: SCAN_TIMEOUT,
      onTimeout: () => new GuestUnavailable({ detail: `the scan took longer than ${SCAN_TIMEOUT}` })
    })
  )

type Scan = ReturnType<typeof withDefaults>

const withDefaults = (options: Options) => ({
  by_id_dir: options.by_id_dir,
  sys_block_dir: options.sys_block_dir,
  device_kind: options.device_kind,
  dev_dir: options.dev_dir ?? (options.device_kind === "block" ? "/dev" : resolve(options.by_id_dir, "../..")),
  proc_dir: options.proc_dir ?? "/proc",
  allow_loop: options.allow_loop ?? false
})

const scan = Effect.fn("Devices.observe")(function* (options: Scan) {
  const disks = yield* Sysfs.disks(options)
  const inUse = options.device_kind === "block" ? yield* InUse.read(options.proc_dir) : new Map<string, string>()
  const devices = yield* Effect.forEach(disks, (disk) => deviceOf(options, disk, inUse), { concurrency: 8 })
  const { broken, links } = yield* ByIdLinks.read(options)
  const judged = links.map((link) => ({ link, problem: linkProblem(link, disks, devices) }))
  const good = judged.flatMap(({ link, problem }) => (problem === null ? [link] : []))
  const changed = yield* changedMeanwhile(options, disks, devices, good)
  const steady = good.filter((link) => !changed.has(link.identity))
  return {
    devices: devices.map((device) => ({ ...device, by_id_paths: pathsTo(device, steady) })),
    broken_links: [
      ...broken,
      ...judged.flatMap(({ link, problem }) => (problem === null ? [] : [{ path: link.path, problem }])),
      ...good
        .filter((link) => changed.has(link.identity))
        .map(({ path }) => ({ path, problem: "its disk changed while the link was followed" }))
    ].sort((a, b) => (a.path < b.path ? -1 : 1))
  } satisfies GuestReading
})

const deviceOf = Effect.fnUntraced(function* (options: Scan, disk: Sysfs.Disk, inUse: InUse.InUse) {
  const kernelPath = join(options.dev_dir, disk.kernel_name.replaceAll("!", "/"))
  const identity = options.device_kind === "block" ? disk.number : yield* Identity.ofFile(kernelPath)
  return {
    kernel_name: disk.kernel_name,
    kernel_path: kernelPath,
    serial: disk.serial,
    size: disk.size,
    read_only: disk.read_only,
    identity: identity ?? `unread:${disk.kernel_name}`,
    forbidden: disk.unfit ?? (identity === null ? "a disk whose node cannot be read" : useOf(disk, inUse)),
    by_id_paths: [],
    controller: disk.controller
  } satisfies BlockDevice
})

/** What this machine itself does with the disk or with a part of it; null when nothing. */
const useOf = (disk: Sysfs.Disk, inUse: InUse.InUse): string | null => {
  for (const part of [{ kernel_name: disk.kernel_name, number: disk.number }, ...disk.partitions]) {
    const use = part.number === null ? undefined : inUse.get(part.number)
    if (use !== undefined) return `a disk of this machine's own: ${part.kernel_name} is ${use}`
  }
  return disk.holders.length === 0 ? null : `a disk in use by ${disk.holders.slice(0, 4).join(", ")}`
}

/** Why a followed link must not be used; null when it leads to a whole disk that shows the serial in its name. */
const linkProblem = (
  link: ByIdLinks.Link,
  disks: ReadonlyArray<Sysfs.Disk>,
  devices: ReadonlyArray<BlockDevice>
): string | null => {
  const index = devices.findIndex((device) => device.identity === link.identity)
  const disk = disks[index]
  if (disk === undefined) {
    const whole = disks.find((one) => one.partitions.some((part) => part.number === link.identity))
    return whole === undefined
      ? `it leads to ${link.identity}, which is no disk in sysfs`
      : `it leads to a partition of ${whole.kernel_name}, not to a whole disk`
  }
  if (disk.unfit !== null) return `it leads to ${disk.kernel_name}: ${disk.unfit}`
  if (disk.serial === null) return `it leads to ${disk.kernel_name}, which shows no serial`
  return disk.serial === link.serial ? null : `it leads to ${disk.kernel_name}, whose serial is ${disk.serial}`
}

/** Identities of linked disks that are no longer what was read first: a name may have passed to another disk meanwhile. */
const changedMeanwhile = Effect.fnUntraced(function* (
  options: Scan,
  disks: ReadonlyArray<Sysfs.Disk>,
  devices: ReadonlyArray<BlockDevice>,
  links: ReadonlyArray<ByIdLinks.Link>
) {
  const linked = new Set(links.map((link) => link.identity))
  const changed = yield* Effect.forEach(
    disks,
    (before, index) => {
      const identity = devices[index]?.identity
      if (identity === undefined || !linked.has(identity)) return Effect.succeed([])
      return Effect.map(Sysfs.disk(options, before.kernel_name), (now) =>
        now !== null && now.number === before.number && now.serial === before.serial && now.size === before.size
          ? []
          : [identity]
      )
    },
    { concurrency: 8 }
  )
  return new Set(changed.flat())
})

const pathsTo = (device: BlockDevice, links: ReadonlyArray<ByIdLinks.Link>): ReadonlyArray<string> =>
  links
    .filter((link) => link.identity === device.identity)
    .sort((a, b) => a.rank - b.rank)
    .map((link) => link.path)
