/**
 * Which client of an nbdkit process holds which disk. The kernel shows the process's connections and its open disks, and
 * nothing that links them; so what links them is concluded from what appears and disappears together, remembered, and
 * never guessed.
 */
export interface Seen {
  readonly connections: ReadonlyArray<Connection>
  /** Its open disks, once for each time it has opened one: every client that was granted an export is one of them. */
  readonly disks: ReadonlyArray<Disk>
}

interface Connection {
  /** The socket's, which no other socket has while it lives. */
  readonly inode: string
  readonly peer: string
}

interface Disk {
  /** The descriptor's number: it stays with the disk for as long as the client has it. */
  readonly number: number
  readonly device: string
}

/** By the socket's inode. One look may fall between a client's end and the closing of its disk; two do not. */
export type Pairs = ReadonlyMap<string, Disk & { readonly looks: number }>

const LOOKS_THAT_PROVE = 2

/**
 * What is known after one more look. A connection keeps its disk until it ends; what is left over on both sides belongs
 * together where there is only one way in which it can.
 */
export const next = (pairs: Pairs, { connections, disks }: Seen): Pairs => {
  const open = new Map(disks.map((disk) => [disk.number, disk]))
  const kept = connections.flatMap(({ inode }) => {
    const pair = pairs.get(inode)
    if (pair === undefined || open.get(pair.number)?.device !== pair.device) return []
    return [[inode, { ...pair, looks: Math.min(pair.looks + 1, LOOKS_THAT_PROVE) }] as const]
  })
  const known = new Map(kept)
  if (rest(known, { connections, disks }).connections.length > 0) {
    // The disk may have been one that was just being closed, and the newcomer's that has its number now.
    for (const [inode] of kept) if (!isProof(pairs.get(inode))) known.delete(inode)
  }
  const { connections: idle, disks: free } = rest(known, { connections, disks })
  if (idle.length === free.length && devicesOf(free).size === 1) {
    for (const [index, { inode }] of idle.entries()) {
      const disk = free[index]
      if (disk !== undefined) known.set(inode, { ...disk, looks: 1 })
    }
  }
  return known
}

const isProof = (pair: { readonly looks: number } | undefined): boolean => (pair?.looks ?? 0) >= LOOKS_THAT_PROVE

/** Another look may prove more, if nobody comes meanwhile. */
export const isPending = (pairs: Pairs): boolean => [...pairs.values()].some((pair) => !isProof(pair))

/** What no pair explains. */
const rest = (pairs: Pairs, { connections, disks }: Seen): Seen => {
  const taken = new Set([...pairs.values()].map(({ number }) => number))
  return {
    connections: connections.filter(({ inode }) => !pairs.has(inode)),
    disks: disks.filter(({ number }) => !taken.has(number))
  }
}

const devicesOf = (disks: ReadonlyArray<Disk>): ReadonlySet<string> => new Set(disks.map(({ device }) => device))

export interface Client {
  readonly device: string
  /** Whose it is where `proven`, which is one then; else whose it may be, none where nobody is connected any more. */
  readonly connections: ReadonlyArray<Connection>
  readonly proven: boolean
}

/** Who has each open disk, or may have it. */
export const clients = (pairs: Pairs, seen: Seen): ReadonlyArray<Client> => {
  const proven = provenOf(pairs, seen)
  const { connections, disks } = rest(proven, seen)
  const sure = seen.connections.flatMap((connection): ReadonlyArray<Client> => {
    const pair = proven.get(connection.inode)
    return pair === undefined ? [] : [{ device: pair.device, connections: [connection], proven: true }]
  })
  return [...sure, ...disks.map(({ device }) => ({ device, connections, proven: false }))]
}

/** Where there is but one disk, it does not matter which of its descriptors is whose. */
const provenOf = (pairs: Pairs, { disks }: Seen): Pairs =>
  devicesOf(disks).size === 1 ? pairs : new Map([...pairs].filter(([, pair]) => isProof(pair)))

/**
 * The connections to end so that this disk is let go of, and no client of another one loses anything; null where that
 * cannot be told. Connections that have no disk at all may be among them: they have nothing to lose.
 */
export const holding = (pairs: Pairs, seen: Seen, device: string): ReadonlyArray<Connection> | null => {
  const mine = clients(pairs, seen).filter((client) => client.device === device)
  if (mine.every(({ proven }) => proven)) return mine.flatMap(({ connections }) => connections)
  return devicesOf(seen.disks).size === 1 ? seen.connections : null
}
