import type { IncomingHttpHeaders, IncomingMessage } from "node:http"
import { Effect, Either } from "effect"
import type { Code } from "../../schema/Api.ts"
import { invalid, type Refused } from "../../schema/Document.ts"
import { RequestRefused } from "./ErrorAnswer.ts"
import * as Json from "./Json.ts"

/** A request as handlers see it. */
export interface Request {
  readonly id: string
  readonly path: Readonly<Record<string, string | undefined>>
  readonly query: URLSearchParams
  readonly headers: IncomingHttpHeaders
  /** Read at most `limit` bytes of JSON sent as one of `types`. */
  readonly json: (limit: number, types?: ReadonlyArray<string>) => Effect.Effect<unknown, Refused | RequestRefused>
}

/** Bytes of a body that holds one declaration, and of one that holds a whole file. */
export const BODY_BYTES_MAX = 256 * 1024
export const DOCUMENT_BYTES_MAX = 4 * 1024 * 1024

export const refuse = (code: Code, error: string, suggestion?: string) =>
  new RequestRefused({ code, error, ...(suggestion === undefined ? {} : { suggestion }) })

export const readJson = (
  message: IncomingMessage,
  limit: number,
  types: ReadonlyArray<string> = ["application/json"]
): Effect.Effect<unknown, Refused | RequestRefused> =>
  checkMediaType(message.headers, types).pipe(
    Effect.andThen(readBytes(message, limit)),
    Effect.flatMap(decodeText),
    Effect.flatMap((text) =>
      Either.match(Json.parse(text), {
        onLeft: ({ problem, line, column }) => Effect.fail(invalid(`line ${line}, column ${column}: ${problem}`)),
        onRight: Effect.succeed
      })
    )
  )

const checkMediaType = (headers: IncomingHttpHeaders, types: ReadonlyArray<string>) => {
  const [type = "", ...parameters] = (headers["content-type"] ?? "").split(";").map((part) => part.trim().toLowerCase())
  const charset = parameters.every((parameter) => /^charset="?utf-8"?$/u.test(parameter))
  const encoding = headers["content-encoding"] ?? "identity"
  return types.includes(type) && charset && encoding === "identity"
    ? Effect.void
    : Effect.fail(
        refuse(
          "UNSUPPORTED_MEDIA_TYPE",
          `expected a body of type ${types.join(" or ")}, in UTF-8 and not compressed`,
          `send the header Content-Type: ${types[0] ?? ""}`
        )
      )
}

const tooLarge = (limit: number) => refuse("TOO_LARGE", `expected a body of at most ${limit} bytes`)

/**
 * Counts while reading, so that a body without end costs one limit and no more. What comes after the limit is thrown
 * away rather than the connection torn down, for a client that is still sending would never see the answer; the
 * server's request time limit ends that.
 */
const readBytes = (message: IncomingMessage, limit: number): Effect.Effect<Buffer, RequestRefused> =>
  Effect.async<Buffer, RequestRefused>((resume) => {
    if (Number(message.headers["content-length"] ?? 0) > limit) return resume(Effect.fail(tooLarge(limit)))
    const chunks: Array<Buffer> = []
    let length = 0
    const done = (result: Effect.Effect<Buffer, RequestRefused>) => {
      message.off("data", onData).off("end", onEnd).off("close", onClose)
      message.resume()
      resume(result)
    }
    const onData = (chunk: Buffer) => {
      length += chunk.length
      chunks.push(chunk)
      if (length > limit) done(Effect.fail(tooLarge(limit)))
    }
    const onEnd = () => done(Effect.succeed(Buffer.concat(chunks)))
    const onClose = () => done(Effect.fail(refuse("INVALID_REQUEST", "the body ended early")))
    message.on("data", onData).on("end", onEnd).on("close", onClose)
  })

const decodeText = (bytes: Buffer): Effect.Effect<string, Refused> =>
  Effect.try({
    try: () => new TextDecoder("utf-8", { fatal: true }).decode(bytes),
    catch: () => invalid("expected UTF-8 text")
  })

/** A flag of the query; absent is false. */
export const flag = (query: URLSearchParams, key: string): Effect.Effect<boolean, RequestRefused> =>
  Effect.map(optionalFlag(query, key), (value) => value === true)

export const optionalFlag = (query: URLSearchParams, key: string): Effect.Effect<boolean | null, RequestRefused> => {
  const text = query.get(key)
  if (text === null) return Effect.succeed(null)
  if (text === "true" || text === "1" || text === "") return Effect.succeed(true)
  if (text === "false" || text === "0") return Effect.succeed(false)
  return Effect.fail(refuse("INVALID_REQUEST", `${key}: expected true or false`))
}

/** Rows a page: 100 unless told, at most 1000. */
export const limit = (query: URLSearchParams): Effect.Effect<number, RequestRefused> => {
  const text = query.get("limit") ?? "100"
  return /^[1-9][0-9]{0,3}$/u.test(text) && Number(text) <= 1000
    ? Effect.succeed(Number(text))
    : Effect.fail(refuse("INVALID_REQUEST", "limit: expected a whole number from 1 to 1000"))
}

/** How long an answer may be held back. Longer wishes are cut to this: a client asks again. */
const WAIT_MS_MAX = 240_000

/** `60s`, `500ms`, `2m` or plain seconds, in ms. */
export const duration = (text: string, key: string): Effect.Effect<number, RequestRefused> => {
  const [, digits, unit = "s"] = /^([0-9]{1,9})(ms|s|m)?$/u.exec(text) ?? []
  if (digits === undefined) return Effect.fail(refuse("INVALID_REQUEST", `${key}: expected a time such as 60s`))
  const factor = unit === "ms" ? 1 : unit === "s" ? 1000 : 60_000
  return Effect.succeed(Math.min(Number(digits) * factor, WAIT_MS_MAX))
}

/** Who asks, for the history. `apply` is the manager of documents without a set and nobody's name. */
export const actor = (headers: IncomingHttpHeaders): Effect.Effect<string, RequestRefused> => {
  const name = headers["volumed-actor"] ?? "v2"
  return typeof name === "string" && /^[A-Za-z0-9._@-]{1,64}$/u.test(name) && name !== "apply"
    ? Effect.succeed(name)
    : Effect.fail(refuse("INVALID_REQUEST", "Volumed-Actor: expected 1-64 characters of A-Z a-z 0-9 . _ @ -"))
}
