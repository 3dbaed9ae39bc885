import { createHmac } from "node:crypto"
import { Redacted } from "effect"

/** Parameters of a call. Names in lower case: the server sorts them as sent, its documentation lower-cased first. */
export type Parameters = Readonly<Record<string, string>>

/**
 * `URLEncoder.encode(value, "UTF-8")` of Java with a space as `%20`. The form serializer of the URL standard escapes
 * the very same characters (`! ' ( ) ~` escaped, `* - . _` bare), and makes a lone surrogate U+FFFD, so that what is
 * signed is what is sent.
 */
export const encode = (value: string): string =>
  new URLSearchParams([["", value]]).toString().slice("=".length).replaceAll("+", "%20")

/** What is signed: values encoded, names not; sorted by code units of the raw name; all in lower case. */
export const canonical = (parameters: Parameters): string =>
  inOrder(parameters)
    .map(([name, value]) => `${name}=${encode(value)}`)
    .join("&")
    .toLowerCase()

/** `ApiServer.verifyRequest`: Base64 of the HMAC-SHA1 of the canonical string. */
export const signature = (parameters: Parameters, secret: Redacted.Redacted): string =>
  createHmac("sha1", Redacted.value(secret)).update(canonical(parameters), "utf8").digest("base64")

/** The form body of a signed call: its parameters, names encoded too, and their signature last. */
export const signedBody = (parameters: Parameters, secret: Redacted.Redacted): string =>
  [...inOrder(parameters), ["signature", signature(parameters, secret)] as const]
    .map(([name, value]) => `${encode(name)}=${encode(value)}`)
    .join("&")

const inOrder = (parameters: Parameters): ReadonlyArray<readonly [string, string]> =>
  Object.entries(parameters).sort(([a], [b]) => (a < b ? -1 : 1))
