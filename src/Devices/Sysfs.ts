import { Effect } from "effect"
import { constants } from "node:fs"
import { open, readdir, realpath } from "node:fs/promises"
import { join } from "node:path"
import { GuestUnavailable } from "../../schema/Errors.ts"
import * as Files from "./Files.ts"

/** A disk as sysfs shows it, before anything is known about the links to it or its use. */
export interface Disk {
  readonly kernel_name: string
  /** `major:minor`; null where sysfs shows none (the sandbox's files have none). */
  readonly number: string | null
  readonly serial: string | null
  /** Bytes. */
  readonly size: number
  readonly read_only: boolean
  readonly controller: string | null
  readonly partitions: ReadonlyArray<{ readonly kernel_name: string; readonly number: string | null }>
  /** Kernel names of device-mapper or md devices stacked on this disk or on a partition of it. */
  readonly holders: ReadonlyArray<string>
  /** Why this can never be a volume's disk, whatever its use; null for a whole disk. */
  readonly unfit: string | null
}

export interface Options {
  readonly sys_block_dir: string
  /** Only a test that stands loop devices in for disks says so. */
  readonly allow_loop: boolean
}

/** Far beyond what a machine has; a directory that shows more is not sysfs. */
const ENTRIES_MAX = 4_096
const ATTRIBUTE_BYTES_MAX = 512
const SERIAL_LENGTH_MAX = 64

/** All disks of the kernel, in bytewise order of name. Empty slots (an unbound loop, ram or zram device) are no disks. */
export const disks = Effect.fn("Devices.disks")(function* (options: Options) {
  const names = yield* Files.attempt(() => readdir(options.sys_block_dir)).pipe(
    Effect.mapError(({ cause }) => new GuestUnavailable({ detail: `${options.sys_block_dir} cannot be listed`, cause }))
  )
  if (names.length > ENTRIES_MAX) {
    return yield* new GuestUnavailable({ detail: `${options.sys_block_dir} has more than ${ENTRIES_MAX} entries` })
  }
  const found = yield* Effect.forEach(names.filter(isKernelName).sort(), (name) => disk(options, name), {
    concurrency: 8
  })
  return found.filter((one) => one !== null)
})

/** One disk; null when it is not there (any more), for an unplugged disk vanishes file by file. */
export const disk = Effect.fnUntraced(function* (options: Options, kernelName: string) {
  const directory = join(options.sys_block_dir, kernelName)
  const size = yield* attribute(join(directory, "size"))
  if (size._tag === "Absent") return null
  const sectors = size._tag === "Read" ? plain(size.bytes) : null
  const bytes = sectors !== null && /^\d{1,13}$/.test(sectors) ? Number(sectors) * 512 : null
  const number = yield* numberOf(directory)
  const kind = (yield* isPartition(directory))
    ? `a partition, not a whole disk`
    : unfitKind(kernelName, number, options.allow_loop)
  if (kind !== null && bytes === 0) return null
  const readOnly = yield* attribute(join(directory, "ro"))
  const parts = yield* partitionsOf(directory, kernelName)
  const holders = yield* Effect.forEach([kernelName, ...parts.map((part) => part.kernel_name)], (name) =>
    entries(join(directory, name === kernelName ? "holders" : join(name, "holders")))
  )
  const unread = unreadPart({ bytes, parts, holders })
  return {
    kernel_name: kernelName,
    number,
    serial: yield* serialOf(directory),
    size: bytes ?? 0,
    read_only: readOnly._tag !== "Absent" && !(readOnly._tag === "Read" && plain(readOnly.bytes) === "0"),
    controller: yield* controllerOf(directory),
    partitions: parts,
    holders: holders.flatMap((names) => names ?? []).map(Files.printable),
    unfit: kind ?? unread
  } satisfies Disk
})

/** What cannot be read about a disk's size or use may hide that it must not be touched. */
const unreadPart = (seen: {
  readonly bytes: number | null
  readonly parts: Disk["partitions"]
  readonly holders: ReadonlyArray<ReadonlyArray<string> | null>
}): string | null => {
  if (seen.bytes === null) return "a disk whose size cannot be read"
  if (seen.holders.includes(null)) return "a disk whose holders cannot be read"
  const part = seen.parts.find((one) => one.number === null)
  return part === undefined ? null : `a disk whose partition ${part.kernel_name} cannot be read`
}

const isKernelName = (name: string): boolean => /^[A-Za-z0-9][A-Za-z0-9!._-]{0,63}$/.test(name)

/**
 * Kinds are told by what is allowed, so that a driver we never heard of is unfit too. The number is asked beside the
 * name because nodes can be made under any name (major numbers: the kernel's `admin-guide/devices.txt`).
 */
const unfitKind = (kernelName: string, number: string | null, allowLoop: boolean): string | null => {
  const kind = KINDS.find(([name, major]) => name.test(kernelName) || number?.split(":")[0] === major)?.[2]
  if (kind === "a loop device" && allowLoop) return null
  if (kind !== undefined) return `${kind}, not a disk of this machine`
  return WHOLE_DISK.test(kernelName) ? null : "not a kind of disk that volumes appear as"
}

/** virtio-blk, SCSI and SATA, Xen, IDE, NVMe. */
const WHOLE_DISK = /^(?:(?:vd|sd|xvd|hd)[a-z]{1,4}|nvme\d{1,4}n\d{1,4})$|^loop\d{1,4}$/

/** Device-mapper, zram and nvme majors are given out at run time: null. */
const KINDS: ReadonlyArray<readonly [RegExp, string | null, string]> = [
  [/^loop\d/, "7", "a loop device"],
  [/^ram\d/, "1", "a RAM disk"],
  [/^zram\d/, null, "a compressed RAM disk"],
  [/^dm-\d/, null, "a device-mapper device"],
  [/^md[\d_]/, "9", "a software RAID"],
  [/^sr\d/, "11", "an optical drive"],
  [/^fd\d/, "2", "a floppy drive"],
  [/^nbd\d/, "43", "an NBD client device"]
]

const numberOf = (directory: string) =>
  Effect.map(attribute(join(directory, "dev")), (read) => {
    const text = read._tag === "Read" ? plain(read.bytes) : null
    return text !== null && /^\d{1,4}:\d{1,7}$/.test(text) ? text : null
  })

const isPartition = (directory: string) =>
  Effect.map(attribute(join(directory, "partition")), (read) => read._tag !== "Absent")

const partitionsOf = Effect.fnUntraced(function* (directory: string, kernelName: string) {
  const names = (yield* entries(directory)) ?? []
  const candidates = names.filter((name) => name.startsWith(kernelName) && isKernelName(name))
  const parts = yield* Effect.filter(candidates, (name) => isPartition(join(directory, name)))
  return yield* Effect.forEach(parts, (name) =>
    Effect.map(numberOf(join(directory, name)), (number) => ({ kernel_name: name, number }))
  )
})

/**
 * virtio-blk shows its serial in `serial`, SCSI and SATA in page 0x80 of the vital product data, NVMe in
 * `device/serial`. A place that cannot be read ends the search: guessing on would name the wrong disk.
 */
const serialOf = Effect.fnUntraced(function* (directory: string) {
  for (const place of ["serial", "device/vpd_pg80", "device/serial"]) {
    const read = yield* attribute(join(directory, place))
    if (read._tag === "Unreadable") return null
    if (read._tag === "Absent") continue
    const bytes = place === "device/vpd_pg80" ? unitSerialNumber(read.bytes) : read.bytes
    if (bytes === null) return null
    const text = plain(bytes)
    if (text !== "") return text === null || text.length > SERIAL_LENGTH_MAX ? null : text.toLowerCase()
  }
  return null
})

/** SPC-4 §7.8.15: byte 1 is the page code, bytes 2–3 the length (big-endian) of what follows the 4-byte header. */
const unitSerialNumber = (page: Buffer): Buffer | null => {
  if (page.length < 4 || page[1] !== 0x80) return null
  const end = 4 + page.readUInt16BE(2)
  return end <= page.length ? page.subarray(4, end) : null
}

/** The virtio or ATA port in the path behind `device`, e.g. `virtio4`. */
const controllerOf = (directory: string) =>
  Files.attempt(() => realpath(join(directory, "device"))).pipe(
    Effect.map((path) => /\/(virtio\d{1,6}|ata\d{1,6}|nvme\d{1,6})(?:\/|$)/.exec(path)?.[1] ?? null),
    Effect.orElseSucceed(() => null)
  )

type Attribute =
  | { readonly _tag: "Read"; readonly bytes: Buffer }
  | { readonly _tag: "Absent" }
  | { readonly _tag: "Unreadable" }

/** Non-blocking, so that a FIFO where a file should be cannot hang the scan. */
const attribute = (path: string): Effect.Effect<Attribute> =>
  Effect.acquireUseRelease(
    Files.attempt(() => open(path, constants.O_RDONLY | constants.O_NONBLOCK)),
    (file) => Files.attempt(() => file.read(Buffer.alloc(ATTRIBUTE_BYTES_MAX), 0, ATTRIBUTE_BYTES_MAX, 0)),
    (file) => Effect.promise(() => file.close())
  ).pipe(
    Effect.map(({ buffer, bytesRead }): Attribute => ({ _tag: "Read", bytes: buffer.subarray(0, bytesRead) })),
    Effect.catchAll((error) => Effect.succeed<Attribute>({ _tag: isGone(error) ? "Absent" : "Unreadable" }))
  )

/** Names in a directory; none where it does not exist, null where it cannot be read. */
const entries = (path: string): Effect.Effect<ReadonlyArray<string> | null> =>
  Files.attempt(() => readdir(path)).pipe(
    Effect.map((names) => (names.length > ENTRIES_MAX ? null : names)),
    Effect.catchAll((error) => Effect.succeed(isGone(error) ? [] : null))
  )

/** The kernel answers ENODEV or ENXIO for an attribute whose device is just leaving. */
const isGone = (error: Files.FileFailed): boolean => ["ENOENT", "ENOTDIR", "ENODEV", "ENXIO"].includes(error.code ?? "")

/** Text without its padding (blanks and NULs at either end); null when what is left is not printable ASCII. */
const plain = (bytes: Buffer): string | null => {
  const text = bytes.toString("latin1").replace(/^[\0\s]+|[\0\s]+$/g, "")
  return /^[\x20-\x7e]*$/.test(text) ? text : null
}
