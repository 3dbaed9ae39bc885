import { connect, type Socket } from "node:net"
import type { Place } from "../../src/Nbd/Processes.ts"

/**
 * A client of its own, which shares nothing with the handshake that is tested: one connection, a GO and one read. Fast
 * enough for thousands.
 */
export type Answer =
  | { readonly _tag: "Bytes"; readonly text: string }
  | { readonly _tag: "Refused"; readonly reason: string }

const ANSWER_MS = 20_000

/** The first `length` bytes of an export, as latin1, over a connection that is ended afterwards. */
export const read = async (place: Place, name: string, length = 8): Promise<Answer> => {
  const socket = connect({ host: place.host, port: place.port, noDelay: true })
  socket.setTimeout(ANSWER_MS, () => socket.destroy(new Error("no answer")))
  try {
    return await converse(socket, Buffer.from(name, "latin1"), length)
  } catch (error) {
    return { _tag: "Refused", reason: error instanceof Error ? error.message : String(error) }
  } finally {
    socket.end(DISCONNECT)
    socket.destroySoon()
  }
}

/** The same, tried again for as long as it is refused. */
export const readPatiently = async (place: Place, name: string, tries: number): Promise<Answer> => {
  for (let left = tries; ; left--) {
    const answer = await read(place, name)
    if (answer._tag === "Bytes" || left <= 1) return answer
    await new Promise((done) => setTimeout(done, 20))
  }
}

const OPTION_MAGIC = "IHAVEOPT"
const REQUEST = 0x25609513
const GO = 7
const ACK = 1
const INFO = 3

const command = (type: number, length: number): Buffer => {
  const request = Buffer.alloc(28)
  request.writeUInt32BE(REQUEST, 0)
  request.writeUInt16BE(type, 6)
  request.writeUInt32BE(length, 24)
  return request
}

const DISCONNECT = command(2, 0)

const converse = async (socket: Socket, name: Buffer, length: number): Promise<Answer> => {
  const take = taker(socket)
  await take(18)
  const head = Buffer.alloc(24)
  head.writeUInt32BE(3, 0)
  head.write(OPTION_MAGIC, 4, "latin1")
  head.writeUInt32BE(GO, 12)
  head.writeUInt32BE(name.length + 6, 16)
  head.writeUInt32BE(name.length, 20)
  socket.write(Buffer.concat([head, name, Buffer.alloc(2)]))
  for (;;) {
    const reply = await take(20)
    const data = await take(reply.readUInt32BE(16))
    const type = reply.readUInt32BE(12)
    if (type === ACK) break
    if (type !== INFO) return { _tag: "Refused", reason: data.toString("latin1") }
  }
  socket.write(command(0, length))
  const error = (await take(16)).readUInt32BE(4)
  if (error !== 0) return { _tag: "Refused", reason: `read error ${error}` }
  return { _tag: "Bytes", text: (await take(length)).toString("latin1") }
}

const taker = (socket: Socket) => {
  let buffered = Buffer.alloc(0)
  let failure: Error | null = null
  let wake = () => {}
  socket.on("data", (chunk: Buffer) => {
    buffered = Buffer.concat([buffered, chunk])
    wake()
  })
  const end = (reason: Error) => {
    failure ??= reason
    wake()
  }
  socket.on("error", end)
  socket.on("close", () => end(new Error("closed")))
  return (bytes: number): Promise<Buffer> =>
    new Promise((resolve, reject) => {
      wake = () => {
        if (buffered.length >= bytes) {
          const taken = buffered.subarray(0, bytes)
          buffered = buffered.subarray(bytes)
          wake = () => {}
          resolve(taken)
        } else if (failure !== null) reject(failure)
      }
      wake()
    })
}
