import { once } from "node:events"
import { connect, type Socket } from "node:net"

/** What a server did in one round. */
export interface Load {
  readonly per_second: number
  /** ms of every request that was begun after the first fifth of the round. */
  readonly latencies: ReadonlyArray<number>
}

export interface Options {
  readonly connections: number
  readonly ms: number
  /** The n-th request of a connection, head and body. */
  readonly request: (connection: number, n: number) => string
  /** Statuses that are as they should be. */
  readonly statuses: ReadonlyArray<number>
}

/**
 * Keeps connections busy, one request at a time each. On bare sockets, for any HTTP client would itself be what is
 * measured: it reads no more of an answer than its status and its length.
 */
export const load = async (origin: string, options: Options): Promise<Load> => {
  const { hostname, port } = new URL(origin)
  const sockets = await Promise.all(
    Array.from({ length: options.connections }, async () => {
      const socket = connect({ host: hostname, port: Number(port), noDelay: true })
      await once(socket, "connect")
      return socket
    })
  )
  const begin = performance.now()
  const latencies: Array<number> = []
  const end = begin + options.ms
  try {
    const counts = await Promise.all(sockets.map((socket, n) => converse(socket, n, options, begin, end, latencies)))
    const count = counts.reduce((sum, one) => sum + one, 0)
    return { per_second: (count * 1_000) / (performance.now() - begin), latencies }
  } finally {
    for (const socket of sockets) socket.destroy()
  }
}

const converse = (
  socket: Socket,
  connection: number,
  { ms, request, statuses }: Options,
  begin: number,
  end: number,
  latencies: Array<number>
): Promise<number> =>
  new Promise((resolve, reject) => {
    let count = 0
    let sent = 0
    let buffered: Buffer = Buffer.alloc(0)
    const send = () => {
      sent = performance.now()
      socket.write(request(connection, count))
    }
    socket.on("error", reject)
    socket.on("close", () => reject(new Error("the server closed the connection")))
    socket.on("data", (chunk: Buffer) => {
      buffered = buffered.length === 0 ? chunk : Buffer.concat([buffered, chunk])
      const answer = whole(buffered)
      if (answer === null) return
      if (!statuses.includes(answer.status)) return reject(new Error(buffered.toString().slice(0, 600)))
      buffered = buffered.subarray(answer.length)
      const now = performance.now()
      if (sent > begin + ms / 5) latencies.push(now - sent)
      count += 1
      if (now >= end) resolve(count)
      else send()
    })
    send()
  })

/** The first answer in the buffer, once all of it is there. */
const whole = (buffered: Buffer): { readonly status: number; readonly length: number } | null => {
  const headEnd = buffered.indexOf("\r\n\r\n")
  if (headEnd < 0) return null
  const head = buffered.toString("latin1", 0, headEnd)
  const size = /\r\ncontent-length: (\d+)/i.exec(head)?.[1]
  if (size === undefined) throw new Error(`an answer without a length:\n${head}`)
  const length = headEnd + 4 + Number(size)
  return buffered.length < length ? null : { status: Number(head.slice(9, 12)), length }
}

export const get = (path: string): string => `GET ${path} HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n`

export const put = (path: string, body: string): string =>
  `PUT ${path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: ${Buffer.byteLength(body)}\r\n\r\n${body}`
