import { assert, describe, it } from "@effect/vitest"
import { Effect, type Scope } from "effect"
import { createServer, type Socket } from "node:net"
import * as Handshake from "../../src/Nbd/Handshake.ts"
import * as Appliance from "./Appliance.ts"

/** A server that says what it is told to, in the pieces it is told to. */
const scripted = (onConnection: (socket: Socket) => void): Effect.Effect<number, never, Scope.Scope> =>
  Effect.acquireRelease(
    Effect.async<{ readonly port: number; readonly close: () => void }>((resume) => {
      const open = new Set<Socket>()
      const server = createServer((socket) => {
        open.add(socket)
        socket.on("error", () => {})
        onConnection(socket)
      })
      server.listen(0, "127.0.0.1", () => {
        const address = server.address()
        const close = () => {
          for (const socket of open) socket.destroy()
          server.close()
        }
        resume(Effect.succeed({ port: typeof address === "object" && address !== null ? address.port : 0, close }))
      })
    }),
    ({ close }) => Effect.sync(close)
  ).pipe(Effect.map(({ port }) => port))

const greeting = Buffer.concat([Buffer.from("NBDMAGICIHAVEOPT"), Buffer.from([0, 3])])

const reply = (type: number, data: Buffer, option = 7): Buffer => {
  const head = Buffer.alloc(20)
  head.writeBigUInt64BE(0x3e889045565a9n, 0)
  head.writeUInt32BE(option, 8)
  head.writeUInt32BE(type, 12)
  head.writeUInt32BE(data.length, 16)
  return Buffer.concat([head, data])
}

const info = (size: bigint, flags: number): Buffer => {
  const data = Buffer.alloc(12)
  data.writeBigUInt64BE(size, 2)
  data.writeUInt16BE(flags, 10)
  return reply(3, data)
}

const ask = (port: number, name = "x") => Handshake.ask({ host: "127.0.0.1", port, name })

/** Greets, then answers the first bytes it gets. */
const answering = (...bytes: ReadonlyArray<Buffer>) =>
  scripted((socket) => {
    socket.write(greeting)
    socket.once("data", () => socket.write(Buffer.concat([...bytes])))
  })

describe("the GO handshake", () => {
  it.scopedLive("reads size and flags, however the server cuts its bytes", () =>
    Effect.gen(function* () {
      const received: Array<Buffer> = []
      const port = yield* scripted((socket) => {
        const bytes = Buffer.concat([greeting, info(1n << 40n, 0b1011), reply(1, Buffer.alloc(0))])
        for (const byte of bytes.subarray(0, 18)) socket.write(Buffer.from([byte]))
        socket.once("data", () => [...bytes.subarray(18)].forEach((byte) => socket.write(Buffer.from([byte]))))
        socket.on("data", (chunk: Buffer) => received.push(chunk))
      })
      const outcome = yield* ask(port, "migration-vol-ü")
      assert.deepStrictEqual(outcome, { _tag: "Served", size: 2 ** 40, flags: 0b1011, read_only: true })
      // Client flags, GO with the name and no information requests, then the disconnect command.
      yield* Appliance.eventually("the disconnect arrives", () => Buffer.concat(received).length === 24 + 16 + 2 + 28)
      const said = Buffer.concat(received)
      assert.strictEqual(said.subarray(24, 40).toString("utf8"), "migration-vol-ü")
      assert.strictEqual(said.subarray(42, 50).toString("hex"), "2560951300000002")
    })
  )

  const text = Buffer.from("no\x1b[31m way\n")
  const cases: ReadonlyArray<readonly [string, ReadonlyArray<Buffer>, Handshake.Outcome["_tag"]]> = [
    ["unknown", [reply(0x80000006, text)], "Unknown"],
    ["denied by policy", [reply(0x80000002, text)], "Denied"],
    ["TLS required, which proves nothing", [reply(0x80000005, text)], "NoAnswer"],
    ["shutting down, which proves nothing", [reply(0x80000007, text)], "NoAnswer"],
    ["an ACK without a size", [reply(1, Buffer.alloc(0))], "NoAnswer"],
    ["a reply to another option", [reply(0x80000006, text, 3)], "NoAnswer"],
    ["a reply that is none", [Buffer.alloc(64, 7)], "NoAnswer"],
    ["a reply longer than any", [reply(3, Buffer.alloc(0)).fill(0xff, 16)], "NoAnswer"],
    ["replies without end", Array.from({ length: 40 }, () => info(1n, 0)), "NoAnswer"]
  ]
  it.scopedLive.each(cases)("takes %s for what it is", ([, bytes, expected]) =>
    Effect.gen(function* () {
      const outcome = yield* ask(yield* answering(...bytes))
      assert.strictEqual(outcome._tag, expected)
      assert.match("message" in outcome ? outcome.message : "", /^[\x20-\x7e]+$/)
    })
  )

  it.scopedLive("tells nothing listening from something that does not speak NBD (N5)", () =>
    Effect.gen(function* () {
      const { place } = yield* Appliance.make
      assert.strictEqual((yield* Handshake.ask({ ...place, name: "x" }))._tag, "Refused")
      const port = yield* scripted((socket) => socket.end("HTTP/1.1 400 Bad Request\r\n\r\n"))
      assert.strictEqual((yield* ask(port))._tag, "NoAnswer")
    })
  )

  it.scopedLive("ends by itself when the server never answers, or hangs up (N12)", () =>
    Effect.gen(function* () {
      const [silent, greeted, closed] = yield* Effect.all([
        scripted(() => {}),
        answering(),
        scripted((socket) => socket.end(greeting))
      ])
      const outcomes = yield* Effect.all([ask(silent), ask(greeted), ask(closed)], { concurrency: "unbounded" })
      assert.deepStrictEqual(outcomes, [
        { _tag: "NoAnswer", message: "no answer in 5 seconds" },
        { _tag: "NoAnswer", message: "no answer in 5 seconds" },
        { _tag: "Dropped", message: "greeted, then the server closed the connection" }
      ])
    })
  )

  it.scopedLive("ends by itself when a process that serves it never lets go (N12, L5)", () =>
    Effect.gen(function* () {
      // As one that waits for a disk which does not answer: it neither reads the goodbye nor closes its end.
      const port = yield* scripted((socket) => {
        socket.write(greeting)
        socket.once("data", () => {
          socket.pause()
          socket.write(Buffer.concat([info(4096n, 1), reply(1, Buffer.alloc(0))]))
        })
      })
      const outcome = yield* ask(port).pipe(Effect.disconnect, Effect.timeout("10 seconds"))
      assert.strictEqual(outcome._tag, "Served")
      const cut = Effect.uninterruptible(ask(yield* scripted(() => {})))
      assert.strictEqual((yield* cut.pipe(Effect.disconnect, Effect.timeout("15 seconds")))._tag, "NoAnswer")
    })
  )

  it.scopedLive("keeps the connection while it is looked at, and closes it whatever the look does", () =>
    Effect.gen(function* () {
      const sockets: Array<Socket> = []
      const port = yield* scripted((socket) => {
        sockets.push(socket)
        socket.write(greeting)
        socket.once("data", () => socket.write(Buffer.concat([info(4096n, 1), reply(1, Buffer.alloc(0))])))
      })
      const target = { host: "127.0.0.1", port, name: "x" }
      const held = yield* Effect.scoped(
        Effect.tap(Handshake.hold(target), ({ local_port }) =>
          Effect.sync(() =>
            assert.deepStrictEqual([local_port, false], [sockets[0]?.remotePort, sockets[0]?.destroyed])
          )
        )
      )
      assert.strictEqual(held.outcome._tag, "Served")
      yield* Effect.exit(Effect.scoped(Effect.andThen(Handshake.hold(target), Effect.fail("stop"))))
      yield* Appliance.eventually(
        "both connections are closed",
        () => sockets.length === 2 && sockets.every((s) => s.destroyed)
      )
    })
  )
})
