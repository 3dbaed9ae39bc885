import { Effect, Ref } from "effect"
import { NbdUnavailable } from "../../schema/Errors.ts"
import type { Holder } from "../../schema/Inventory.ts"
import * as Processes from "../Nbd/Processes.ts"
import * as Attribution from "./Attribution.ts"
import * as Instance from "./Instance.ts"

/** What is remembered of one instance's clients, and of which process that is. */
interface Known {
  readonly process: string
  readonly pairs: Attribution.Pairs
}

type Remembered = Readonly<Record<Instance.Instance["role"], Known | null>>

export type Memory = Ref.Ref<Remembered>

export const memory: Effect.Effect<Memory> = Ref.make<Remembered>({
  rw: null,
  ro: null
})

/** The clients of one instance at one moment. Nothing of our own may be connected then. */
export interface Look {
  readonly instance: Instance.Instance
  readonly process: Processes.Process
  readonly seen: Attribution.Seen
  readonly pairs: Attribution.Pairs
  /** Since when, ms since the epoch, by the socket's inode, as far as that can be read. */
  readonly since: ReadonlyMap<string, number>
}

/** nbdkit closes a client's disk right after its connection. */
const SETTLE_LOOKS = 20
const SETTLE_MS = 5
const CONFIRMING_LOOKS = 3

export const look = (memory: Memory, instance: Instance.Instance, process: Processes.Process): Effect.Effect<Look> =>
  Effect.gen(function* () {
    const key = `${process.pid}:${process.start}`
    const known = (yield* Ref.get(memory))[instance.role]
    let { seen, since } = yield* settled(instance, process)
    let pairs = Attribution.next(known?.process === key ? known.pairs : new Map(), seen)
    // At once: whoever comes before the next look would leave open what this one shows.
    for (let looks = 1; looks < CONFIRMING_LOOKS && Attribution.isPending(pairs); looks++) {
      yield* Effect.sleep(SETTLE_MS)
      ;({ seen, since } = yield* settled(instance, process))
      pairs = Attribution.next(pairs, seen)
    }
    yield* Ref.update(memory, (all) => ({ ...all, [instance.role]: { process: key, pairs } }))
    return { instance, process, seen, pairs, since }
  })

const settled = (instance: Instance.Instance, process: Processes.Process) =>
  Effect.gen(function* () {
    let now = see(instance, process)
    for (let looks = 1; looks < SETTLE_LOOKS && now.seen.disks.length > now.seen.connections.length; looks++) {
      yield* Effect.sleep(SETTLE_MS)
      now = see(instance, process)
    }
    return now
  })

const see = ({ port }: Instance.Instance, { pid }: Processes.Process) => {
  const opened = Processes.opened(pid)
  const numbers = new Map(opened.flatMap(({ number, socket }) => (socket === null ? [] : [[socket, number] as const])))
  const sockets = Processes.connections(port).filter(({ inode }) => numbers.has(inode))
  const threads = Processes.waiting(pid, new Set(sockets.flatMap(({ inode }) => numbers.get(inode) ?? [])))
  const since = sockets.flatMap(({ inode }) => {
    const thread = threads.get(numbers.get(inode) ?? -1)
    const started = thread === undefined ? null : Processes.startedAt(thread)
    return started === null ? [] : [[inode, started] as const]
  })
  const seen: Attribution.Seen = {
    connections: sockets.map(({ inode, remote, remote_port }) => ({ inode, peer: `${remote}:${remote_port}` })),
    disks: opened.flatMap(({ device, number }) => (device === null ? [] : [{ number, device }]))
  }
  return { seen, since: new Map(since) }
}

const CANDIDATES_SHOWN = 5

/** One for each time that a client has a disk open. */
export const holders = ({ pairs, process, seen, since }: Look): ReadonlyArray<Holder> =>
  Attribution.clients(pairs, seen).map(({ connections, device, proven }) => {
    const started = proven ? since.get(connections[0]?.inode ?? "") : undefined
    return {
      pid: process.pid,
      command: process.command,
      device,
      peer: peerOf(connections.map(({ peer }) => peer)),
      since: started === undefined ? null : new Date(started).toISOString()
    }
  })

const peerOf = (peers: ReadonlyArray<string>): string | null => {
  const [one] = peers
  if (peers.length < 2) return one ?? null
  const more = peers.length > CANDIDATES_SHOWN ? ` and ${peers.length - CANDIDATES_SHOWN} more` : ""
  return `one of ${peers.slice(0, CANDIDATES_SHOWN).join(", ")}${more}`
}

/** Why the clients of this disk alone cannot be ended, or null. */
export const obstacle = ({ instance, pairs, seen }: Look, device: string): string | null => {
  if (Attribution.holding(pairs, seen, device) !== null) return null
  const peers = peerOf(seen.connections.map(({ peer }) => peer)) ?? "nobody"
  return (
    `${Instance.describe(instance)} serves several disks to ${peers}, and which connection has ${device} is not known: ` +
    `end that client on its own machine, or its connection by ss -K`
  )
}

const GONE_TIMEOUT_MS = 2_000
const GONE_POLL_MS = 20

/**
 * Ends the connections by which this instance's clients hold the disk, and no others. nbdkit ends none by itself, so the
 * kernel is asked to abort them: `ss -K`, which needs CAP_NET_ADMIN and CONFIG_INET_DIAG_DESTROY (Debian 12 has it).
 */
export const end = ({ instance, pairs, process, seen }: Look, device: string): Effect.Effect<number, NbdUnavailable> =>
  Effect.gen(function* () {
    const connections = Attribution.holding(pairs, seen, device) ?? []
    const held = seen.disks.filter((disk) => disk.device === device).length
    if (held === 0) return 0
    yield* Effect.forEach(connections, ({ peer }) => abort(instance, peer), { discard: true })
    for (let waited = 0; waited < GONE_TIMEOUT_MS; waited += GONE_POLL_MS) {
      if (!Processes.devices(process.pid).includes(device)) return held
      yield* Effect.sleep(GONE_POLL_MS)
    }
    const detail = `the kernel did not end the connections to ${Instance.describe(instance)}: end the clients of ${device} themselves`
    return yield* new NbdUnavailable({ detail })
  })

const abort = ({ host, port, program_dirs }: Instance.Instance, peer: string) =>
  Instance.run(program_dirs, "ss", ["-K", "-t", "state", "connected", "src", `${host}:${port}`, "dst", peer])
