import { once } from "node:events"
import { connect } from "node:net"

const OPTION = 0x49484156454f5054n
const OPT_EXPORT_NAME = 1
const REQUEST = 0x25609513
const TIMEOUT_MS = 10_000

/** The first bytes of an export, as a client of NBD reads them; null where the server will not serve that name. */
export const read = async (
  place: { readonly host: string; readonly port: number },
  name: string,
  bytes: number
): Promise<Buffer | null> => {
  const socket = connect({ ...place, timeout: TIMEOUT_MS })
  socket.on("timeout", () => socket.destroy(new Error(`no answer about ${name}`)))
  await once(socket, "connect")
  const chunks: Array<Buffer> = []
  const greeting = 18
  const granted = greeting + 10
  const all = granted + 16 + bytes
  let asked = 0
  socket.on("data", (chunk: Buffer) => {
    chunks.push(chunk)
    const length = Buffer.concat(chunks).length
    if (asked === 0 && length >= greeting) socket.write(exportName(name))
    if (asked === 1 && length >= granted) socket.write(readRequest(bytes))
    asked = length >= granted ? 2 : length >= greeting ? 1 : 0
    if (length >= all) socket.end(disconnect)
  })
  await new Promise<void>((resolve, reject) => socket.once("close", () => resolve()).once("error", reject))
  const answer = Buffer.concat(chunks)
  return answer.length < all ? null : answer.subarray(granted + 16, all)
}

/** With the client's flags before it: fixed newstyle, no zeroes. */
const exportName = (name: string): Buffer => {
  const head = Buffer.alloc(20)
  head.writeUInt32BE(3, 0)
  head.writeBigUInt64BE(OPTION, 4)
  head.writeUInt32BE(OPT_EXPORT_NAME, 12)
  head.writeUInt32BE(Buffer.byteLength(name), 16)
  return Buffer.concat([head, Buffer.from(name)])
}

const readRequest = (bytes: number): Buffer => {
  const request = Buffer.alloc(28)
  request.writeUInt32BE(REQUEST, 0)
  request.writeUInt32BE(bytes, 24)
  return request
}

const disconnect = (() => {
  const request = Buffer.alloc(28)
  request.writeUInt32BE(REQUEST, 0)
  request.writeUInt16BE(2, 6)
  return request
})()
