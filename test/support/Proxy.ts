import { Effect } from "effect"
import { type AddressInfo, connect, createServer, type Socket } from "node:net"

/** What MySQL's protocol calls a command that comes as text, prepared, or to be prepared. */
const COM_QUERY = 0x03
const COM_STMT_PREPARE = 0x16
const COM_STMT_EXECUTE = 0x17

export interface Command {
  /** Of a prepared statement that is executed: the text that it was prepared from. */
  readonly text: string
  readonly kind: "prepare" | "execute" | "query"
  /** The n-th connection, from 0. */
  readonly connection: number
}

/**
 * What becomes of one command: passed on; passed on, and both ends cut when its answer comes; cut before it is passed on;
 * answered with an error of the server's in its place; held for so many ms; cut after so many bytes of its answer.
 */
export type Verdict =
  | "pass"
  | "drop_answer"
  | "cut"
  | { readonly error: number; readonly state: string; readonly message: string }
  | { readonly hold_ms: number }
  | { readonly answer_bytes: number }

export interface Proxy {
  readonly port: number
  /** Asked of every command; `pass` until it is set. */
  readonly judge: (verdict: (command: Command) => Verdict) => void
}

/** Between a driver and a MySQL that speak without TLS on loopback: reads the driver's commands, and judges each. */
export const between = (port: number) =>
  Effect.acquireRelease(
    Effect.promise(() => begin(port)),
    ({ end }) => Effect.promise(end)
  ).pipe(Effect.map(({ proxy }) => proxy))

const begin = async (upstream: number) => {
  let judge: (command: Command) => Verdict = () => "pass"
  let made = 0
  const sockets = new Set<Socket>()
  const server = createServer((client) => {
    const target = connect({ host: "127.0.0.1", port: upstream, noDelay: true })
    client.setNoDelay(true)
    for (const socket of [client, target]) {
      sockets.add(socket)
      socket.on("error", () => {})
      socket.on("close", () => sockets.delete(socket))
    }
    relay(client, target, made++, (command) => judge(command))
  })
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve))
  const cut = () => {
    for (const socket of sockets) socket.destroy()
  }
  const proxy: Proxy = {
    port: (server.address() as AddressInfo).port,
    judge: (verdict) => {
      judge = verdict
    }
  }
  const end = () => {
    cut()
    return new Promise<void>((resolve) => server.close(() => resolve()))
  }
  return { proxy, end }
}

/** One connection. Until the driver has logged in, its packets are no commands: they begin at sequence 1. */
const relay = (client: Socket, target: Socket, connection: number, judge: (command: Command) => Verdict) => {
  const prepared = new Map<number, string>()
  const awaited: Array<string> = []
  let buffered: Buffer = Buffer.alloc(0)
  const flow = { paused: false }
  /** Bytes of the answer that still go through; null for all of them. */
  let allowance: number | null = null

  const cut = () => {
    client.destroy()
    target.destroy()
  }
  target.on("close", cut)
  client.on("close", cut)
  target.on("data", (chunk: Buffer) => {
    if (allowance !== null) {
      if (allowance > 0) client.write(chunk.subarray(0, allowance))
      // The last bytes are to arrive before the end does.
      client.end(() => cut())
      target.destroy()
      return
    }
    const text = awaited[0]
    // The answer to a statement to be prepared: a zero, then the number that it is executed by.
    if (text !== undefined && chunk.length >= 9 && chunk[4] === 0) prepared.set(chunk.readUInt32LE(5), text)
    if (text !== undefined) awaited.shift()
    client.write(chunk)
  })

  const act = (packet: Buffer, verdict: Verdict, command: Command) => {
    if (verdict === "cut") return cut()
    if (typeof verdict === "object" && "error" in verdict) return void client.write(errorPacket(verdict))
    if (command.kind === "prepare") awaited.push(command.text)
    if (verdict === "drop_answer") allowance = 0
    else if (typeof verdict === "object" && "answer_bytes" in verdict) allowance = verdict.answer_bytes
    if (typeof verdict === "object" && "hold_ms" in verdict) {
      flow.paused = true
      setTimeout(() => {
        flow.paused = false
        target.write(packet)
        next()
      }, verdict.hold_ms)
    } else target.write(packet)
  }

  const next = () => {
    while (!flow.paused && buffered.length >= 4) {
      const length = buffered.readUIntLE(0, 3) + 4
      if (buffered.length < length) return
      const packet = buffered.subarray(0, length)
      buffered = buffered.subarray(length)
      const command = packet[3] === 0 ? commandOf(packet, prepared, connection) : null
      if (command === null) target.write(packet)
      else act(packet, judge(command), command)
    }
  }
  client.on("data", (chunk: Buffer) => {
    buffered = buffered.length === 0 ? chunk : Buffer.concat([buffered, chunk])
    next()
  })
}

const commandOf = (packet: Buffer, prepared: ReadonlyMap<number, string>, connection: number): Command | null => {
  const text = () => packet.toString("utf8", 5)
  switch (packet[4]) {
    case COM_QUERY:
      return { kind: "query", text: text(), connection }
    case COM_STMT_PREPARE:
      return { kind: "prepare", text: text(), connection }
    case COM_STMT_EXECUTE:
      return { kind: "execute", text: prepared.get(packet.readUInt32LE(5)) ?? "", connection }
    default:
      return null
  }
}

/** ERR_Packet of the protocol: 0xff, the number, `#` and the SQL state, the message. */
const errorPacket = ({ error, message, state }: { error: number; state: string; message: string }) => {
  const body = Buffer.concat([Buffer.from([0xff, error & 0xff, error >> 8]), Buffer.from(`#${state}${message}`)])
  const head = Buffer.alloc(4)
  head.writeUIntLE(body.length, 0, 3)
  head[3] = 1
  return Buffer.concat([head, body])
}
