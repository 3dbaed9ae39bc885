import { Effect } from "effect"
import { readdirSync, readFileSync, readlinkSync, statSync } from "node:fs"
import { basename } from "node:path"
import type { Holder } from "../../schema/Inventory.ts"
import * as Identity from "../Devices/Identity.ts"

/** A process, told from a later one with the same pid by its start time. */
export interface Process {
  readonly pid: number
  readonly parent: number
  readonly session: number
  /** Ticks of 10 ms since boot, as the kernel writes them. */
  readonly start: string
  /** At most 15 characters, printable. */
  readonly command: string
}

/** A TCP socket of this machine, IPv4-mapped addresses written as IPv4. */
export interface Socket {
  readonly inode: string
  readonly local: string
  readonly local_port: number
  readonly remote: string
  readonly remote_port: number
  readonly listening: boolean
}

/** What `read` gives, or null where the thing has gone or is not ours to see: both are ordinary in /proc. */
export const attempt = <A>(read: () => A): A | null => {
  try {
    return read()
  } catch {
    return null
  }
}

/** Null for a process that is gone, or dead and only waits for its parent. */
export const find = (pid: number): Process | null => {
  const text = attempt(() => readFileSync(`/proc/${pid}/stat`, "latin1"))
  if (text === null) return null
  const end = text.lastIndexOf(")")
  const fields = text.slice(end + 2).split(" ")
  const [state, parent, , session] = fields
  const start = fields[19]
  if (state === undefined || state === "Z" || state === "X" || start === undefined) return null
  const command = text.slice(text.indexOf("(") + 1, end).replace(/[^\x20-\x7e]/g, "?")
  return { pid, parent: Number(parent), session: Number(session), start, command }
}

export const pids = (): ReadonlyArray<number> =>
  readdirSync("/proc").flatMap((name) => (/^\d+$/.test(name) ? [Number(name)] : []))

/** Is it an nbd-server that was started with `-C` and this very file? A copy that an upgrade replaced counts too. */
export const runs = (pid: number, config: string): boolean => isServer(pid) && configOf(argumentsOf(pid)) === config

const isServer = (pid: number): boolean => program(pid)?.name === "nbd-server"

/** What a process runs: the file's name, and whether that file has been replaced or removed since. */
export const program = (pid: number): { readonly name: string; readonly replaced: boolean } | null => {
  const exe = attempt(() => readlinkSync(`/proc/${pid}/exe`))
  if (exe === null) return null
  const name = exe.replace(/ \(deleted\)$/, "")
  return { name: basename(name), replaced: name !== exe }
}

/** What it was started with, its own name first; an empty last one follows the last. */
export const argumentsOf = (pid: number): ReadonlyArray<string> =>
  attempt(() => readFileSync(`/proc/${pid}/cmdline`, "utf8"))?.split("\0") ?? []

const configOf = (args: ReadonlyArray<string>): string | null => {
  for (const [index, arg] of args.entries()) {
    if (arg === "-C" || arg === "--config-file") return args[index + 1] ?? null
    if (arg.startsWith("--config-file=")) return arg.slice("--config-file=".length)
    if (/^-C./.test(arg)) return arg.slice(2)
  }
  return null
}

/** Every nbd-server with this file, the main and all that serve clients, of earlier mains too. */
export const servers = (config: string): ReadonlyArray<Process> =>
  pids().flatMap((pid) => (runs(pid, config) ? [find(pid)].filter((p) => p !== null) : []))

interface Descriptor {
  readonly number: number
  readonly path: string
  /** What it points at, as the kernel writes it. */
  readonly target: string
}

const descriptors = (pid: number, without: ReadonlySet<number> = new Set()): ReadonlyArray<Descriptor> =>
  (attempt(() => readdirSync(`/proc/${pid}/fd`)) ?? []).flatMap((number) => {
    if (without.has(Number(number))) return []
    const path = `/proc/${pid}/fd/${number}`
    const target = attempt(() => readlinkSync(path))
    return target === null ? [] : [{ number: Number(number), path, target }]
  })

/** Identities of the disks it has open, as in BlockDevice; the standard streams are none. */
export const devices = (pid: number): ReadonlyArray<string> => [
  ...new Set(
    descriptors(pid).flatMap((fd) => {
      const device = fd.number < 3 ? null : deviceOf(fd)
      return device === null ? [] : [device]
    })
  )
]

const deviceOf = (fd: Descriptor): string | null => {
  if (!fd.target.startsWith("/")) return null
  // Through the descriptor, not by name: an unplugged disk has no name any more and is still held.
  const stats = attempt(() => statSync(fd.path, { bigint: true }))
  return stats === null ? null : Identity.ofStats(stats)
}

export interface Opened {
  /** The descriptor's number, which stays with what was opened for as long as that is open. */
  readonly number: number
  /** Exactly one of the two is there. */
  readonly device: string | null
  readonly socket: string | null
}

/** Its open disks, one for each time it opened one, and its open sockets by their inodes; `since`: without these numbers. */
export const opened = (pid: number, since: ReadonlySet<number> = new Set()): ReadonlyArray<Opened> =>
  descriptors(pid, since).flatMap((fd) => {
    const socket = /^socket:\[(\d+)\]$/.exec(fd.target)?.[1] ?? null
    const device = socket === null && fd.number >= 3 ? deviceOf(fd) : null
    return socket === null && device === null ? [] : [{ number: fd.number, device, socket }]
  })

/** The numbers alone, which costs next to nothing. */
export const descriptorNumbers = (pid: number): ReadonlySet<number> =>
  new Set((attempt(() => readdirSync(`/proc/${pid}/fd`)) ?? []).map(Number))

const socketInodes = (pid: number): ReadonlyArray<string> =>
  descriptors(pid).flatMap((fd) => /^socket:\[(\d+)\]$/.exec(fd.target)?.[1] ?? [])

/**
 * TCP sockets in this network namespace whose line holds all of these texts. A busy server's table has thousands of
 * lines, and understanding one costs a hundred times as much as skipping it.
 */
const sockets = (...texts: ReadonlyArray<string>): ReadonlyArray<Socket> =>
  ["/proc/self/net/tcp", "/proc/self/net/tcp6"].flatMap((table) =>
    (attempt(() => readFileSync(table, "latin1")) ?? "")
      .split("\n")
      .slice(1)
      .filter((line) => texts.every((text) => line.includes(text)))
      .flatMap((line) => socketOf(line.trim().split(/\s+/)))
  )

/** A port as the table writes it. */
const ended = (port: number): string => `:${port.toString(16).toUpperCase().padStart(4, "0")} `

/** Connections to this port of this machine, whoever serves them. */
export const connections = (port: number): ReadonlyArray<Socket> =>
  sockets(ended(port)).filter((socket) => !socket.listening && socket.local_port === port)

/** The connection behind one of these sockets; null where they only listen. */
const connectionOf = (inodes: ReadonlyArray<string>): Socket | null => {
  for (const inode of inodes) {
    const found = sockets(` ${inode} `).find((socket) => socket.inode === inode && !socket.listening)
    if (found !== undefined) return found
  }
  return null
}

const LISTEN = "0A"

/** A line of /proc/net/tcp: number, local, remote, state, queues, timer, retransmits, uid, time-out, inode. */
const socketOf = (fields: ReadonlyArray<string>): ReadonlyArray<Socket> => {
  const [local, remote] = [endOf(fields[1]), endOf(fields[2])]
  const inode = fields[9]
  if (local === null || remote === null || inode === undefined) return []
  return [
    {
      inode,
      local: local.address,
      local_port: local.port,
      remote: remote.address,
      remote_port: remote.port,
      listening: fields[3] === LISTEN
    }
  ]
}

const endOf = (text: string | undefined) => {
  const [, address, port] = /^([0-9A-F]{8}|[0-9A-F]{32}):([0-9A-F]{4})$/.exec(text ?? "") ?? []
  return address === undefined || port === undefined
    ? null
    : { address: addressOf(address), port: Number.parseInt(port, 16) }
}

/** The kernel writes each 32-bit word in the machine's byte order, which is little-endian wherever CloudStack runs guests. */
const addressOf = (hex: string): string => {
  const words = hex.match(/.{8}/g) ?? []
  const bytes = words.flatMap((word) => (word.match(/../g) ?? []).reverse().map((byte) => Number.parseInt(byte, 16)))
  const mapped = bytes.length === 16 && bytes.slice(0, 10).every((b) => b === 0) && bytes[10] === 255
  if (bytes.length === 4 || mapped) return bytes.slice(-4).join(".")
  const groups = Array.from({ length: 8 }, (_, i) =>
    (((bytes[2 * i] ?? 0) << 8) | (bytes[2 * i + 1] ?? 0)).toString(16)
  )
  return bytes.every((b) => b === 0) ? "::" : groups.join(":")
}

/** Inodes of the sockets that take connections to this address and port. */
export const listening = (host: string, port: number): ReadonlySet<string> =>
  new Set(
    sockets(ended(port))
      .filter((s) => s.listening && s.local_port === port && [host, "0.0.0.0", "::"].includes(s.local))
      .map((s) => s.inode)
  )

/**
 * Who listens where the NBD server must be. `Main`: the main of our file, beside it children that wait for a client's
 * choice and still hold its socket. `Leftover`: only such children, whose main is dead; they block the port.
 * `Foreign`: anybody else, or somebody whom we may not look at.
 */
export type Listener =
  | { readonly _tag: "None" }
  | { readonly _tag: "Main"; readonly main: Process; readonly waiting: ReadonlyArray<Process> }
  | { readonly _tag: "Leftover"; readonly waiting: ReadonlyArray<Process> }
  | { readonly _tag: "Foreign"; readonly problem: string }

export interface Place {
  readonly host: string
  readonly port: number
  readonly config: string
}

export const listener = (place: Place): Effect.Effect<Listener> =>
  Effect.flatMap(listenerNow(place), (found) =>
    // A process that ends looks like nobody's for a moment.
    found._tag === "Foreign" ? Effect.andThen(Effect.sleep(ENDING), listenerNow(place)) : Effect.succeed(found)
  )

const ENDING = "50 millis"

/** The same, by one look: for whoever waits for a process to end, and knows what it looks like. */
export const listenerNow = (place: Place): Effect.Effect<Listener> =>
  Effect.suspend(() => {
    const inodes = listening(place.host, place.port)
    if (inodes.size === 0) return Effect.succeed<Listener>({ _tag: "None" })
    return Effect.map(owners(inodes), (holders) => judge(place, inodes, holders))
  })

/** Everybody who has one of these sockets open. */
export const owners = (inodes: ReadonlySet<string>): Effect.Effect<ReadonlyArray<Process>> =>
  scan((pid) => (socketInodes(pid).some((inode) => inodes.has(inode)) ? [find(pid)].filter((p) => p !== null) : []))

const judge = (place: Place, inodes: ReadonlySet<string>, holders: ReadonlyArray<Process>): Listener => {
  const where = `port ${place.port}`
  const stranger = holders.find((holder) => !runs(holder.pid, place.config) && isAlive(holder))
  if (stranger !== undefined) {
    const problem = `${where} belongs to ${stranger.command} (pid ${stranger.pid}), which is no nbd-server with -C ${place.config}`
    return { _tag: "Foreign", problem }
  }
  if (holders.length === 0) {
    const still = listening(place.host, place.port)
    return [...inodes].some((inode) => still.has(inode))
      ? { _tag: "Foreign", problem: `${where} belongs to a process that volumed may not look at` }
      : { _tag: "None" }
  }
  // The main made itself a session leader when it became a daemon; its children stay in that session. One that somebody
  // keeps in the foreground is told by having no client.
  const main = holders.find((holder) => holder.session === holder.pid) ?? holders.find((holder) => !hasClient(holder))
  const waiting = holders.filter((holder) => holder !== main)
  return main === undefined ? { _tag: "Leftover", waiting } : { _tag: "Main", main, waiting }
}

const hasClient = (holder: Process): boolean => connectionOf(socketInodes(holder.pid)) !== null

/** /proc for every process, the loop given a turn now and then: a machine may have thousands. */
const scan = <A>(look: (pid: number) => ReadonlyArray<A>): Effect.Effect<ReadonlyArray<A>> =>
  Effect.gen(function* () {
    const found: Array<A> = []
    for (const [index, pid] of pids().entries()) {
      found.push(...look(pid))
      if (index % 64 === 63) yield* Effect.yieldNow()
    }
    return found
  })

/** Where a process takes connections, as `address:port`. */
export const listens = (pid: number): ReadonlyArray<string> => {
  const inodes = new Set(socketInodes(pid))
  return sockets(` ${LISTEN} `)
    .filter(({ inode, listening }) => listening && inodes.has(inode))
    .map(({ local, local_port }) => `${local}:${local_port}`)
}

export interface Main {
  readonly process: Process
  readonly listens: ReadonlyArray<string>
}

/** Every main of this file that takes connections, wherever it does: a place that was changed leaves the old one behind. */
export const mains = (config: string): Effect.Effect<ReadonlyArray<Main>> =>
  Effect.map(
    scan((pid) => (runs(pid, config) ? [find(pid)].filter((p) => p !== null) : [])),
    (all) => {
      const known = new Set(all.map(({ pid }) => pid))
      const leads = (one: Process) => one.session === one.pid || (!known.has(one.parent) && !hasClient(one))
      return all
        .filter(leads)
        .map((process) => ({ process, listens: listens(process.pid) }))
        .filter((main) => main.listens.length > 0)
    }
  )

export interface Serving {
  readonly process: Process
  /** What it opened itself: not what it got from the main, which opens none for a client. */
  readonly devices: ReadonlyArray<string>
}

/**
 * The processes that serve the connections whose other ends are these ports of ours. For many at once, because reading
 * the table of sockets takes the kernel milliseconds however few there are.
 */
export const serving = (
  main: Process,
  port: number,
  clientPorts: ReadonlyArray<number>
): ReadonlyMap<number, Serving> => {
  const clients = new Map(
    sockets(ended(port))
      .filter((s) => !s.listening && s.local_port === port && clientPorts.includes(s.remote_port))
      .map((s) => [s.inode, s.remote_port])
  )
  const inherited = devices(main.pid)
  const found = new Map<number, Serving>()
  for (const child of children(main.pid)) {
    const client = socketInodes(child).flatMap((inode) => clients.get(inode) ?? [])[0]
    const process = client === undefined ? null : find(child)
    if (client === undefined || process === null) continue
    found.set(client, { process, devices: devices(child).filter((device) => !inherited.includes(device)) })
  }
  return found
}

/** The kernel lists them where it was built to (CONFIG_PROC_CHILDREN), else every process is asked for its parent. */
const children = (pid: number): ReadonlyArray<number> =>
  attempt(() => readFileSync(`/proc/${pid}/task/${pid}/children`, "latin1"))
    ?.trim()
    .split(" ")
    .filter((child) => child !== "")
    .map(Number) ?? pids().filter((other) => find(other)?.parent === pid)

export interface Holding {
  readonly process: Process
  readonly device: string
  /** It is an nbd-server. */
  readonly server: boolean
  readonly peer: string | null
}

/**
 * Who has one of these disks open; and, whether it is one of these or not, any block device or anything that an
 * nbd-server serves, because a disk may have lost its link while it is held. This process is left out.
 */
export const holders = (identities: ReadonlySet<string>): Effect.Effect<ReadonlyArray<Holding>> =>
  scan((pid) => {
    if (pid === process.pid) return []
    const held = devices(pid)
    if (held.length === 0) return []
    const server = isServer(pid)
    const shown = held.filter((device) => server || !device.startsWith("file:") || identities.has(device))
    const found = shown.length === 0 ? null : find(pid)
    if (found === null) return []
    const connection = server ? connectionOf(socketInodes(pid)) : null
    const peer = connection === null ? null : `${connection.remote}:${connection.remote_port}`
    return shown.map((device) => ({ process: found, device, server, peer }))
  })

/**
 * Ends the connection of one client, by KILL as below: TERM would spare it no more, and a main that were mistaken for its
 * child would end every transfer on TERM, but none on KILL. False where it is not any more what it was found to be.
 */
export const endClient = ({ device, process: client }: Holding, config: string): boolean => {
  const { pid, session } = client
  const serves = session !== pid && devices(pid).includes(device) && connectionOf(socketInodes(pid)) !== null
  return serves && kill(client, config)
}

/**
 * Threads that wait for something to come from one of these descriptors, by its number. Empty where this process may not
 * look at the threads of that one.
 */
export const waiting = (pid: number, numbers: ReadonlySet<number>): ReadonlyMap<number, Process> => {
  const found = new Map<number, Process>()
  for (const thread of (attempt(() => readdirSync(`/proc/${pid}/task`)) ?? []).slice(0, THREADS_MAX)) {
    const call = attempt(() => readFileSync(`/proc/${pid}/task/${thread}/syscall`, "latin1")) ?? ""
    // The call's number, then its arguments: of all calls on a descriptor that is the first, and no address is so low.
    const number = Number.parseInt(/^\d+ 0x([0-9a-f]{1,6}) /.exec(call)?.[1] ?? "", 16)
    const waiter = numbers.has(number) ? find(Number(thread)) : null
    if (waiter !== null) found.set(number, waiter)
  }
  return found
}

const THREADS_MAX = 4_096

/** When it started, ms since the epoch; null where the kernel does not say. */
export const startedAt = (process: Process): number | null => {
  const boot = /^btime (\d+)$/m.exec(attempt(() => readFileSync("/proc/stat", "latin1")) ?? "")?.[1]
  return boot === undefined ? null : Number(boot) * 1_000 + Number(process.start) * 10
}

/** As it is shown to people. */
export const holderOf = ({ device, peer, process, server }: Holding): Holder => {
  const since = server ? startedAt(process) : null
  return {
    pid: process.pid,
    command: process.command,
    device,
    peer,
    since: since === null ? null : new Date(since).toISOString()
  }
}

export const isAlive = (process: Process): boolean => find(process.pid)?.start === process.start

/**
 * Kills this very process if it still is an nbd-server with this file; false when it is not, and nothing was signalled.
 * SIGKILL is the only signal there is here: nbd-server answers TERM by ending every transfer, and HUP damages its heap.
 */
export const kill = (target: Process, config: string): boolean => {
  if (!isAlive(target) || !runs(target.pid, config)) return false
  return signalKill(target.pid)
}

/** Without a question: whoever calls it has asked. False where there is no such process, or it is not ours to end. */
export const signalKill = (pid: number): boolean => attempt(() => process.kill(pid, "SIGKILL")) ?? false
