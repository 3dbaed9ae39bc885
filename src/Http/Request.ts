import type { IncomingHttpHeaders, IncomingMessage } from "node:http"
import { Effect, Either } from "effect"
import type { Role } from "./Tokens.ts"
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
  /** `GET`, `PUT` …; `HEAD` is `GET`. */
  readonly method: string
  /** What the caller may do; everything where no tokens are asked for. */
  readonly role: Role
  /** Who asks, for the history: Volumed-Actor, else the token's name, else the version of the API. */
  readonly actor_name: string
  /** Set where the request bears an Idempotency-Key that has no answer yet: whoever stores something stores it beside. */
  readonly key: { readonly key: string; readonly digest: string } | null
  /** Read at most `limit` bytes of JSON sent as one of `types`; version 1 does not ask for a type. */
  readonly json: (limit: number, types?: MediaTypes) => Effect.Effect<unknown, Refused | RequestRefused>
  /** As `json`, of any type, and `{}` where there is no body. */
  readonly optionalJson: (limit: number) => Effect.Effect<unknown, Refused | RequestRefused>
}

/** Media types without parameters; `any` does not look at what the client calls its body. */
export type MediaTypes = ReadonlyArray<string> | "any"

/** Reads the body, which must have at most so many bytes. */
export type ReadBytes = (limit: number) => Effect.Effect<Buffer, RequestRefused>

/** Bytes of a body that holds one declaration, and of one that holds a whole file. */
export const BODY_BYTES_MAX = 256 * 1024
export const DOCUMENT_BYTES_MAX = 4 * 1024 * 1024

export const refuse = (code: Code, error: string, suggestion?: string) =>
  new RequestRefused({ code, error, ...(suggestion === undefined ? {} : { suggestion }) })

/** The two ways to read a body as JSON, over the way to get its bytes. */
export const bodyReaders = (
  headers: IncomingHttpHeaders,
  bytes: ReadBytes,
  usual: MediaTypes
): Pick<Request, "json" | "optionalJson"> => ({
  json: (limit, types = usual) =>
    Effect.andThen(checkMediaType(headers, types), bytes(limit)).pipe(Effect.flatMap(decodeJson)),
  optionalJson: (limit) =>
    Effect.andThen(checkMediaType(headers, "any"), bytes(limit)).pipe(
      Effect.flatMap((body) => (body.length === 0 ? Effect.succeed({}) : decodeJson(body)))
    )
})

const decodeJson = (bytes: Buffer): Effect.Effect<unknown, Refused> =>
  Effect.flatMap(decodeText(bytes), (text) =>
    Either.match(Json.parse(text), {
      onLeft: ({ problem, line, column }) => Effect.fail(invalid(`line ${line}, column ${column}: ${problem}`)),
      onRight: Effect.succeed
    })
  )

const checkMediaType = (headers: IncomingHttpHeaders, types: MediaTypes) => {
  const plain = (headers["content-encoding"] ?? "identity") === "identity"
  if (plain && (types === "any" || isOneOf(types, headers["content-type"] ?? ""))) return Effect.void
  const [usual = "application/json"] = types === "any" ? [] : types
  const wanted = types === "any" ? usual : types.join(" or ")
  return refuse(
    "UNSUPPORTED_MEDIA_TYPE",
    `expected a body of type ${wanted}, in UTF-8 and not compressed`,
    `send the header Content-Type: ${usual}`
  )
}

const isOneOf = (types: ReadonlyArray<string>, contentType: string): boolean => {
  const [type = "", ...parameters] = contentType.split(";").map((part) => part.trim().toLowerCase())
  return types.includes(type) && parameters.every((parameter) => /^charset="?utf-8"?$/u.test(parameter))
}

const endedEarly = refuse("INVALID_REQUEST", "the body ended early")

const tooLarge = (limit: number) => refuse("TOO_LARGE", `expected a body of at most ${limit} bytes`)

/**
 * Counts while reading, so that a body without end costs one limit and no more. What comes after the limit is thrown
 * away rather than the connection torn down, for a client that is still sending would never see the answer; the
 * server's request time limit ends that.
 */
export const bytesOf =
  (message: IncomingMessage): ReadBytes =>
  (limit) =>
    Effect.async<Buffer, RequestRefused>((resume) => {
      if (Number(message.headers["content-length"] ?? 0) > limit) return resume(Effect.fail(tooLarge(limit)))
      if (message.destroyed) return resume(Effect.fail(endedEarly))
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
      const onClose = () => done(Effect.fail(endedEarly))
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

/** What stands in the history where nobody is named: the version of the API that was used. */
const versionOf = (path: string) => (path.startsWith("/api/v1/") ? "v1" : "v2")

/**
 * Who asks, for the history; null where that cannot be a name. `apply` is the manager of documents without a set and
 * nobody's name.
 */
export const actor = (headers: IncomingHttpHeaders, path: string, token: string | null): string | null => {
  const name = headers["volumed-actor"]
  if (name === undefined) return token ?? versionOf(path)
  if (typeof name !== "string" || !/^[A-Za-z0-9._@-]{1,64}$/u.test(name) || name === "apply") return null
  // A name is what its bearer says; whose token it came with is known.
  return token === null ? name : `${token}/${name}`
}
