import type { IncomingMessage } from "node:http"
import { isIP } from "node:net"
import { Effect } from "effect"
import type { Settings } from "../../schema/Settings.ts"
import { RequestRefused } from "./ErrorAnswer.ts"
import { refuse } from "./Request.ts"
import { find, type Role, type Token, Tokens } from "./Tokens.ts"

/** Who is let in. `token` is null where none is asked for, which without a token file means: anybody on this machine. */
export interface Caller {
  readonly role: Role
  readonly token: Token | null
}

/** Routes that probes call, which have no token. They tell states, and neither topology nor secrets. */
const open: ReadonlySet<string> = new Set(["/health", "/api/v1/health", "/livez", "/readyz"])

export const isOpen = (url: string): boolean => open.has(url.split("?", 1)[0] ?? "")

/** What an endpoint asks for. A candidate plan is sent by POST because it has a body, and changes nothing. */
export const roleNeeded = (endpoint: string, method: string): Role =>
  method === "GET" || endpoint === "planCandidate" ? "read-only" : "read-write"

export const allows = (role: Role, needed: Role): boolean => role === "read-write" || needed === "read-only"

/** Decides about a request before anything else of it is looked at. */
export const make = (options: Pick<Settings, "rate_limit">) =>
  Effect.gen(function* () {
    const { current } = yield* Tokens
    const clock = yield* Effect.clock
    const overRate = rateLimit(options.rate_limit)
    const known = (message: IncomingMessage, tokens: ReadonlyArray<Token>): Effect.Effect<Caller, RequestRefused> => {
      if (isOpen(message.url ?? "")) return Effect.succeed(nobody)
      const token = find(tokens, bearer(message.headers.authorization ?? ""))
      if (token === null) return unauthorized
      const wait_s = overRate(token, clock.unsafeCurrentTimeMillis())
      return wait_s === null ? Effect.succeed({ role: token.role, token }) : tooFast(wait_s)
    }
    return (message: IncomingMessage): Effect.Effect<Caller, RequestRefused> => {
      const repeated = repeatedHeader(message.rawHeaders)
      if (repeated !== null) return refuse("INVALID_REQUEST", `expected the header ${repeated} once`)
      if (message.headers.host === undefined && message.httpVersion !== "1.0") return noHost
      return Effect.flatMap(current, (tokens) => (tokens === null ? local(message) : known(message, tokens)))
    }
  })

const noHost = refuse("INVALID_REQUEST", "expected the header Host")

const nobody: Caller = { role: "read-only", token: null }
const anybody: Caller = { role: "read-write", token: null }

/** Node keeps the first of these and drops the others, where a proxy before us may have judged by the last. */
const repeatedHeader = (raw: ReadonlyArray<string>): string | null => {
  const seen = new Set<string>()
  for (let index = 0; index < raw.length; index += 2) {
    const name = (raw[index] ?? "").toLowerCase()
    if (!single.has(name)) continue
    if (seen.has(name)) return name
    seen.add(name)
  }
  return null
}

const single: ReadonlySet<string> = new Set(["host", "authorization", "content-type", "content-length", "origin"])

const bearer = (authorization: string): string => /^Bearer +(\S+) *$/iu.exec(authorization)?.[1] ?? ""

const unauthorized = new RequestRefused({
  code: "UNAUTHORIZED",
  error: "a valid token is needed",
  suggestion: "send the header Authorization: Bearer TOKEN; for the command line: set VOLUMED_TOKEN",
  headers: { "www-authenticate": "Bearer" }
})

/**
 * Without tokens whoever can connect may do everything, and a browser on this machine can connect for any page it shows.
 * A page of another origin shows itself by Origin or Sec-Fetch-Site; one whose name was made to lead here by its DNS
 * (rebinding) is of our origin to the browser, but the name still stands in Host.
 */
const local = (message: IncomingMessage): Effect.Effect<Caller, RequestRefused> => {
  const { host, origin } = message.headers
  const site = message.headers["sec-fetch-site"]
  if (host !== undefined && !isLocalName(host))
    return refuse(
      "FORBIDDEN",
      "without tokens Host must be an IP address or localhost",
      "call this server by its address"
    )
  const scheme = "encrypted" in message.socket ? "https" : "http"
  if (origin !== undefined && origin !== `${scheme}://${host ?? ""}`) return foreignPage
  return site === "cross-site" || site === "same-site" ? foreignPage : Effect.succeed(anybody)
}

const isLocalName = (host: string): boolean => {
  const name = /^(?:\[([0-9a-fA-F:.]+)\]|([^:[\]]+))(?::[0-9]{1,5})?$/u.exec(host)
  const bare = name?.[1] ?? name?.[2] ?? ""
  return bare.toLowerCase() === "localhost" || (name?.[1] === undefined ? isIP(bare) === 4 : isIP(bare) === 6)
}

const foreignPage = refuse("FORBIDDEN", "this was sent by a page of another origin", "use tokens for such clients")

/** What a token may do at once after a while of silence, in seconds of its rate. */
const BURST_S = 2

/**
 * A token bucket for each token: the seconds after which there is room again, or null when there is. Buckets live as
 * long as their token stands in the file, so there are never more than lines.
 */
const rateLimit = (per_second: number) => {
  const buckets = new WeakMap<Token, { left: number; at: number }>()
  return (token: Token, now: number): number | null => {
    if (per_second === 0) return null
    const bucket = buckets.get(token) ?? { left: per_second * BURST_S, at: now }
    buckets.set(token, bucket)
    const gained = (Math.max(0, now - bucket.at) / 1000) * per_second
    bucket.left = Math.min(per_second * BURST_S, bucket.left + gained)
    bucket.at = now
    if (bucket.left < 1) return Math.ceil((1 - bucket.left) / per_second)
    bucket.left -= 1
    return null
  }
}

const tooFast = (wait_s: number) =>
  new RequestRefused({
    code: "RATE_LIMITED",
    error: "more requests with this token than RATE_LIMIT allows",
    suggestion: "send fewer, or wait for changes with wait= or /api/v2/watch instead of asking again and again",
    headers: { "retry-after": String(wait_s) }
  })
