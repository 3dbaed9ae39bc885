import { Either } from "effect"
import { isIP } from "node:net"
import { uuidPattern } from "../../schema/Ids.ts"

/** From a setting's text to its value, or to what is wrong with it as the end of "it …". */
export type Parser<A> = (text: string) => Either.Either<A, string>

const wrong = (problem: string) => Either.left(problem)

export const text: Parser<string> = (text) =>
  /[\u0000-\u001f\u007f]/.test(text) ? wrong("holds a control character") : Either.right(text)

export const path: Parser<string> = (text) =>
  text.startsWith("/") && !/[\u0000-\u001f\u007f]/.test(text) ? Either.right(text) : wrong("is not an absolute path")

/** A key of CloudStack's, as it is put into a request. */
export const secret: Parser<string> = (text) =>
  /^[\x21-\x7e]{1,1024}$/.test(text)
    ? Either.right(text)
    : wrong("is empty, too long, or holds a blank, a control or a non-ASCII character")

export const uuid = <A extends string>(text: string): Either.Either<A, string> =>
  uuidPattern.test(text) ? Either.right(text as A) : wrong("is not a lower-case UUID")

export const flag: Parser<boolean> = (text) => {
  if (/^(true|1|yes|on)$/i.test(text)) return Either.right(true)
  return /^(false|0|no|off)$/i.test(text) ? Either.right(false) : wrong("is neither true nor false")
}

export const whole =
  (min: number, max: number): Parser<number> =>
  (text) => {
    const value = /^\d{1,15}$/.test(text) ? Number(text) : NaN
    return value >= min && value <= max ? Either.right(value) : wrong(`is not a whole number from ${min} to ${max}`)
  }

/** `0.2` or `20%`. */
export const share: Parser<number> = (text) => {
  const match = /^(\d{1,3}(?:\.\d{1,6})?)(%?)$/.exec(text)
  const value = match === null ? NaN : Number(match[1]) / (match[2] === "%" ? 100 : 1)
  return value >= 0 && value <= 1 ? Either.right(value) : wrong("is not a share from 0% to 100%")
}

export const oneOf =
  <A extends string>(...words: ReadonlyArray<A>): Parser<A> =>
  (text) => {
    const found = words.find((word) => word === text)
    return found === undefined ? wrong(`is none of ${words.join(", ")}`) : Either.right(found)
  }

const units: Readonly<Record<string, number>> = { ms: 1, s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 }

/** As Go writes it, days added: `500ms`, `15s`, `10m`, `1h30m`, `2d`. In ms. */
export const duration =
  (min: string, max: string): Parser<number> =>
  (text) => {
    if (/^\d+$/.test(text)) return wrong(`has no unit; write ${text}s for seconds`)
    const ms = milliseconds(text)
    if (ms === null) return wrong("is not a duration such as 500ms, 15s, 10m or 1h30m")
    const outside = ms < (milliseconds(min) ?? 0) || ms > (milliseconds(max) ?? Infinity)
    return outside ? wrong(`is not from ${min} to ${max}`) : Either.right(ms)
  }

const milliseconds = (text: string): number | null => {
  if (!/^(\d{1,9}(?:\.\d{1,3})?(?:ms|s|m|h|d)){1,5}$/.test(text)) return null
  const parts = text.matchAll(/(\d+(?:\.\d+)?)(ms|s|m|h|d)/g)
  const sum = [...parts].reduce((ms, [, amount, unit]) => ms + Number(amount) * (units[unit ?? ""] ?? NaN), 0)
  return Math.round(sum)
}

/** The shortest text that `duration` reads as this. */
export const renderDuration = (ms: number): string => {
  const unit = (["d", "h", "m", "s"] as const).find((unit) => ms > 0 && ms % (units[unit] ?? 1) === 0) ?? "ms"
  return `${ms / (units[unit] ?? 1)}${unit}`
}

export const list =
  <A>(parser: Parser<A>): Parser<ReadonlyArray<A>> =>
  (text) =>
    Either.all(
      text
        .split(",")
        .map((part) => part.trim())
        .filter((part) => part !== "")
        .map((part) =>
          Either.mapLeft(parser(part), (problem) => `holds ${JSON.stringify(part.slice(0, 80))}, which ${problem}`)
        )
    )

/** 127.0.0.0/8, ::1 and localhost. */
export const isLoopback = (host: string): boolean => {
  const bare = host.replace(/^\[|\]$/g, "")
  return bare === "localhost" || bare === "::1" || (isIP(bare) === 4 && bare.startsWith("127."))
}

/** HOST:PORT, an IPv6 host in brackets. */
export const listener: Parser<{ readonly host: string; readonly port: number }> = (text) => {
  const match = /^(?:\[([0-9a-fA-F:.]+)\]|([^:[\]]+)):(\d{1,5})$/.exec(text)
  const host = match?.[1] ?? match?.[2]
  const port = Number(match?.[3])
  if (host === undefined || port > 65_535) return wrong("is not HOST:PORT")
  return Either.right({ host, port })
}

const neverServer: ReadonlyArray<RegExp> = [
  /^169\.254\./,
  /^0\./,
  /^\[::\]$/,
  /^\[fe[89ab][0-9a-f]:/,
  /^\[fd00:ec2::254\]$/
]

/**
 * An https URL, its path `/client/api` where none is given. The URL parser has already normalised what other spellings an
 * address may have (decimal, octal, IPv4 in IPv6) before it is judged.
 */
export const apiUrl =
  (allowHttp: boolean): Parser<string> =>
  (text) => {
    const url = URL.canParse(text) ? new URL(text) : null
    if (url === null || (url.protocol !== "https:" && url.protocol !== "http:")) return wrong("is not an https URL")
    if (url.username !== "" || url.password !== "")
      return wrong("holds a user or password; keys are settings of their own")
    if (url.search !== "" || url.hash !== "") return wrong("holds a query or fragment")
    if (neverServer.some((pattern) => pattern.test(url.hostname)) || isMappedNever(url.hostname))
      return wrong("names a link-local, metadata or unspecified address, which is never CloudStack")
    if (url.protocol === "http:" && !allowHttp && !isLoopback(url.hostname))
      return wrong("is plain http to another machine; use https, or set CLOUDSTACK_ALLOW_HTTP=true")
    if (url.pathname === "/") url.pathname = "/client/api"
    return Either.right(url.href)
  }

/** `[::ffff:a9fe:…]` is 169.254.… in another coat. */
const isMappedNever = (host: string) => /^\[::ffff:(a9fe|0):/.test(host)
