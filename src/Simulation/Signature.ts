import { createHmac } from "node:crypto"

/** Parameters by their names as sent; of one given twice the last counts. */
export type Sent = ReadonlyMap<string, string>

export type Verdict =
  /** `expires_at`: ms since the epoch after which the same request would be refused; null without version 3. */
  { readonly _tag: "Genuine"; readonly expires_at: number | null } | { readonly _tag: "Refused"; readonly why: string }

/** The dates that CloudStack takes for `expires` (`DateUtil`). */
const DATE = /^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d{1,9})?(Z|[+-]\d{2}:?\d{2})$/
const EXPIRES_AHEAD_MAX_MS = 15 * 60_000

/** A value of a parameter whose name may be written in any case. */
export const lookUp = (sent: Sent, name: string): string | null => {
  for (const [key, value] of sent) if (key.toLowerCase() === name) return value
  return null
}

/** `ApiServer.verifyRequest`: expiry first, then the signature over everything else that was sent. */
export const verify = (sent: Sent, secretKey: string, now: number, strict: boolean): Verdict => {
  const signature = lookUp(sent, "signature")
  if (signature === null) return { _tag: "Refused", why: "no signature" }
  const versioned = lookUp(sent, "signatureversion") === "3"
  if (strict && !versioned) return { _tag: "Refused", why: "signature version 3 is required" }
  const expires = versioned ? parseDate(lookUp(sent, "expires")) : null
  if (versioned && expires === null) return { _tag: "Refused", why: "expires is missing or no date" }
  if (expires !== null && expires <= now) return { _tag: "Refused", why: "the request has expired" }
  if (strict && expires !== null && expires > now + EXPIRES_AHEAD_MAX_MS) {
    return { _tag: "Refused", why: "expires is too far ahead" }
  }
  if (signature !== sign(sent, secretKey)) return { _tag: "Refused", why: "the signature does not match" }
  return { _tag: "Genuine", expires_at: expires }
}

const parseDate = (text: string | null): number | null => {
  if (text === null || !DATE.test(text)) return null
  const ms = Date.parse(text)
  return Number.isNaN(ms) ? null : ms
}

/** Sorted by the raw name in code units, values as Java encodes them, all of it in lower case, HMAC-SHA1. */
export const sign = (sent: Sent, secretKey: string): string => {
  const names = [...sent.keys()].filter((name) => name.toLowerCase() !== "signature").sort()
  const text = names.map((name) => `${name}=${encode(sent.get(name) ?? "")}`).join("&")
  return createHmac("sha1", secretKey).update(text.toLowerCase()).digest("base64")
}

/** Java's URLEncoder with `%20` for blanks: of the marks only `. - * _` stay bare. */
const encode = (value: string): string =>
  encodeURIComponent(value).replace(/[!'()~]/g, (mark) => `%${mark.charCodeAt(0).toString(16).toUpperCase()}`)
