import { Data, Effect, type Scope } from "effect"
import { connect, type Socket } from "node:net"
import type { Verification } from "../../schema/Inventory.ts"
import * as NbdName from "../../schema/NbdName.ts"

/**
 * What a server answered to NBD_OPT_GO, the only question whose answer proves that an export is served: INFO and LIST
 * open no device in nbd-server. Protocol: NetworkBlockDevice/nbd, doc/proto.md.
 */
export type Outcome =
  /** `size` in bytes; above 2⁵³ it is rounded, and no real device has it. */
  | { readonly _tag: "Served"; readonly size: number; readonly flags: number; readonly read_only: boolean }
  | { readonly _tag: "Unknown"; readonly message: string }
  | { readonly _tag: "Denied"; readonly message: string }
  /** Nothing listens there. */
  | { readonly _tag: "Refused"; readonly message: string }
  /** Greeted, then hung up unasked: nbd-server does that where its memory is damaged, and for no other question of ours. */
  | { readonly _tag: "Dropped"; readonly message: string }
  /** A time-out, no greeting, or an answer that proves neither that the export is served nor that it is not. */
  | { readonly _tag: "NoAnswer"; readonly message: string }

/** The answer as evidence. `device`: what the process that gave it has open for it; null where that is not known. */
export const verification = (
  asked: Pick<Verification, "device" | "name" | "verified_at">,
  outcome: Outcome
): Verification => {
  const granted = outcome._tag === "Served" ? outcome : null
  return {
    ...asked,
    outcome: OUTCOMES[outcome._tag],
    size: granted?.size ?? null,
    read_only: granted?.read_only ?? null,
    message: "message" in outcome ? outcome.message : null
  }
}

const OUTCOMES = {
  Served: "served",
  Unknown: "unknown",
  Denied: "denied",
  Dropped: "dropped",
  Refused: "refused",
  NoAnswer: "no_answer"
} as const satisfies Record<Outcome["_tag"], Verification["outcome"]>

export interface Target {
  readonly host: string
  readonly port: number
  /** Text, as `NbdName` writes bytes. */
  readonly name: string
  /** The peer has just been given its time to answer, and did not. */
  readonly briefly?: boolean
}

/** They hold where nothing else may interrupt, as in a finalizer: what they cut off is made interruptible for them alone. */
const CONNECT_TIMEOUT = "2 seconds"
const REPLY_TIMEOUT = "5 seconds"
const BRIEF_TIMEOUT = "1 second"
const GOODBYE_TIMEOUT = "1 second"
const NAME_BYTES_MAX = 4_096
const REPLY_BYTES_MAX = 65_536
const REPLIES_MAX = 16

/** `local_port` is our end's, where there was a connection: it tells which process serves us. */
export interface Held {
  readonly outcome: Outcome
  readonly local_port: number | null
}

/**
 * One GO on a connection of its own, kept until the scope closes; then, where it was granted, the server is told goodbye
 * and has a second to let go of the device.
 */
export const hold = (
  target: Target,
  /** Done when the server has greeted and right before it is asked. */
  asking: Effect.Effect<void> = Effect.void
): Effect.Effect<Held, never, Scope.Scope> =>
  Effect.gen(function* () {
    const { socket, granted } = yield* Effect.acquireRelease(
      Effect.sync(() => ({
        socket: connect({ host: target.host, port: target.port, noDelay: true }),
        granted: { yet: false }
      })),
      ({ socket, granted }) =>
        Effect.andThen(
          granted.yet ? disconnect(socket) : Effect.void,
          Effect.sync(() => socket.destroy())
        )
    )
    const take = reader(socket)
    const outcome = yield* connected(socket, target).pipe(Effect.andThen(negotiate(socket, take, target, asking)))
    granted.yet = outcome._tag === "Served"
    return { outcome, local_port: socket.localPort ?? null }
  }).pipe(Effect.catchTag("Lost", ({ outcome }) => Effect.succeed({ outcome, local_port: null })))

/** A GO that is given up at once. */
export const ask = (target: Target): Effect.Effect<Outcome> =>
  Effect.scoped(Effect.map(hold(target), ({ outcome }) => outcome))

/** `hung_up`: how the peer ended the connection, where that is why there is no more to read. */
class Lost extends Data.TaggedError("Lost")<{ readonly outcome: Outcome; readonly hung_up: string | null }> {}

const noAnswer = (message: string, hung_up: string | null = null): Lost =>
  new Lost({ outcome: { _tag: "NoAnswer", message }, hung_up })

/** Exactly this many bytes, or Lost. One reader at a time. */
type Take = (bytes: number) => Effect.Effect<Buffer, Lost>

const connected = (socket: Socket, target: Target): Effect.Effect<void, Lost> =>
  Effect.async<void, Lost>((resume) => {
    const settle = (error?: NodeJS.ErrnoException) => {
      socket.off("error", settle).off("connect", settle)
      if (error === undefined) resume(Effect.void)
      else if (error.code !== "ECONNREFUSED") resume(noAnswer(`no connection: ${error.message}`))
      else
        resume(
          new Lost({
            outcome: { _tag: "Refused", message: `nothing listens on ${target.host}:${target.port}` },
            hung_up: null
          })
        )
    }
    socket.once("error", settle).once("connect", () => settle())
  }).pipe(
    Effect.interruptible,
    Effect.timeoutFail({ duration: CONNECT_TIMEOUT, onTimeout: () => noAnswer(`no connection in ${CONNECT_TIMEOUT}`) })
  )

/** Keeps what arrives until it is asked for: nbd-server sends its greeting in three pieces. */
const reader = (socket: Socket): Take => {
  let buffered = Buffer.alloc(0)
  let ended: string | null = null
  let wake = () => {}
  socket.on("data", (chunk: Buffer) => {
    buffered = Buffer.concat([buffered, chunk])
    // Nobody waits for more than a reply; a peer that floods us is held back by its own window.
    if (buffered.length > REPLY_BYTES_MAX) socket.pause()
    wake()
  })
  const end = (reason: string) => {
    ended ??= reason
    wake()
  }
  socket.on("end", () => end("the server closed the connection"))
  socket.on("error", (error) => end(error.message))
  socket.on("close", () => end("the connection is closed"))
  return (bytes) =>
    Effect.async<Buffer, Lost>((resume) => {
      wake = () => {
        if (buffered.length >= bytes) {
          const taken = buffered.subarray(0, bytes)
          buffered = buffered.subarray(bytes)
          wake = () => {}
          socket.resume()
          resume(Effect.succeed(taken))
        } else if (ended !== null) resume(Effect.fail(noAnswer(ended, ended)))
      }
      wake()
      return Effect.sync(() => {
        wake = () => {}
      })
    })
}

const GREETING = 0x4e42444d41474943n // "NBDMAGIC"
const OPTION = 0x49484156454f5054n // "IHAVEOPT"
const OPTION_REPLY = 0x0003e889045565a9n
const OPT_GO = 7
const REP_ACK = 1
const REP_INFO = 3
const REP_ERR_POLICY = 0x80000002
const REP_ERR_UNKNOWN = 0x80000006
const INFO_EXPORT = 0
const FLAG_READ_ONLY = 1 << 1

const negotiate = (
  socket: Socket,
  take: Take,
  { briefly = false, name }: Target,
  asking: Effect.Effect<void>
): Effect.Effect<Outcome, Lost> => {
  const duration = briefly ? BRIEF_TIMEOUT : REPLY_TIMEOUT
  return Effect.gen(function* () {
    const greeting = yield* take(18)
    const flags = greeting.readUInt16BE(16)
    if (greeting.readBigUInt64BE(0) !== GREETING || greeting.readBigUInt64BE(8) !== OPTION || (flags & 1) === 0) {
      return yield* noAnswer("what listens there is no fixed-newstyle NBD server")
    }
    const request = goRequest(name, flags & 3)
    if (request === null) return yield* noAnswer(`the name has more than ${NAME_BYTES_MAX} bytes`)
    yield* asking
    yield* Effect.sync(() => socket.write(request))
    return yield* readReplies(take).pipe(Effect.mapError(dropped))
  }).pipe(Effect.interruptible, Effect.timeoutFail({ duration, onTimeout: () => noAnswer(`no answer in ${duration}`) }))
}

/** Whoever was greeted and asked is owed an answer. */
const dropped = (lost: Lost): Lost =>
  lost.hung_up === null
    ? lost
    : new Lost({ outcome: { _tag: "Dropped", message: `greeted, then ${lost.hung_up}` }, hung_up: lost.hung_up })

/** No information requests: nbd-server before 3.26 loses its place in the stream when it refuses a GO that carries some. */
const goRequest = (name: string, clientFlags: number): Buffer | null => {
  const text = Buffer.from(NbdName.bytesOf(name), "latin1")
  if (text.length > NAME_BYTES_MAX) return null
  const head = Buffer.alloc(24)
  head.writeUInt32BE(clientFlags, 0)
  head.writeBigUInt64BE(OPTION, 4)
  head.writeUInt32BE(OPT_GO, 12)
  head.writeUInt32BE(4 + text.length + 2, 16)
  head.writeUInt32BE(text.length, 20)
  return Buffer.concat([head, text, Buffer.alloc(2)])
}

const readReplies = (take: Take): Effect.Effect<Outcome, Lost> =>
  Effect.gen(function* () {
    let served: Outcome | null = null
    for (let replies = 0; replies < REPLIES_MAX; replies++) {
      const head = yield* take(20)
      const type = head.readUInt32BE(12)
      const length = head.readUInt32BE(16)
      if (head.readBigUInt64BE(0) !== OPTION_REPLY || head.readUInt32BE(8) !== OPT_GO || length > REPLY_BYTES_MAX) {
        return yield* noAnswer("the server's reply is not one to our question")
      }
      const data = yield* take(length)
      if (type === REP_ACK) return served ?? (yield* noAnswer("the server granted the export without its size"))
      if (type === REP_INFO) served = exportInfo(data) ?? served
      else return yield* refusalOf(type, data)
    }
    return yield* noAnswer("the server's reply does not end")
  })

const exportInfo = (data: Buffer): Outcome | null => {
  if (data.length !== 12 || data.readUInt16BE(0) !== INFO_EXPORT) return null
  const flags = data.readUInt16BE(10)
  return { _tag: "Served", size: Number(data.readBigUInt64BE(2)), flags, read_only: (flags & FLAG_READ_ONLY) !== 0 }
}

/** Only two refusals say something about the export. Others (TLS required, shutting down) leave open whether it is served. */
const refusalOf = (type: number, data: Buffer): Effect.Effect<Outcome, Lost> => {
  const text = data
    .toString("latin1")
    .slice(0, 200)
    .replace(/[^\x20-\x7e]/g, "?")
  if (type === REP_ERR_UNKNOWN) return Effect.succeed({ _tag: "Unknown", message: text || "export unknown" })
  if (type === REP_ERR_POLICY) return Effect.succeed({ _tag: "Denied", message: text || "denied by policy" })
  return Effect.fail(noAnswer(`the server answered 0x${type.toString(16)} ${text}`.trim()))
}

/** Says goodbye and waits until the serving process has closed its end, so that our probe holds the device no longer. */
const disconnect = (socket: Socket): Effect.Effect<void> =>
  Effect.async<void>((resume) => {
    const request = Buffer.alloc(28)
    request.writeUInt32BE(0x25609513, 0)
    request.writeUInt16BE(2, 6)
    socket.once("close", () => resume(Effect.void))
    socket.end(request)
  }).pipe(Effect.interruptible, Effect.timeout(GOODBYE_TIMEOUT), Effect.ignore)
