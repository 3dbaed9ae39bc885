import * as HttpClient from "@effect/platform/HttpClient"
import type * as HttpClientError from "@effect/platform/HttpClientError"
import * as HttpClientRequest from "@effect/platform/HttpClientRequest"
import type * as HttpClientResponse from "@effect/platform/HttpClientResponse"
import { Clock, Data, Effect, Redacted, Ref, type Scope, Stream } from "effect"
import * as Metrics from "../../reconciler/Metrics.ts"
import type { Settings } from "../../schema/Settings.ts"
import { type Credential, Credentials } from "./Credentials.ts"
import * as Signature from "./Signature.ts"

/** How long CloudStack accepts a signed call, ms. */
export const LIFETIME_MS = 60_000

/** A page of 500 volumes has about 1 MB; what is far beyond is not CloudStack's. */
const BODY_LIMIT_BYTES = 64 * 1024 * 1024

/** A Date header older than this says nothing any more about a clock that may have been set. */
const CLOCK_SAMPLE_MS = 60_000

export interface Call<E> {
  readonly command: string
  readonly parameters: Signature.Parameters
  /** Request and body together. */
  readonly timeout_ms: number
  /** Runs when the call is signed and a connection is free: nothing but the wire comes after it. */
  readonly beforeSend: Effect.Effect<void, E>
}

/** Both in ms of our own clock. */
interface Times {
  readonly submitted_at: number
  /** CloudStack does not accept the call later than this. */
  readonly expires_at: number
}

/** An answer, its body read to the end. */
export interface Answer extends Times {
  readonly status: number
  readonly text: string
  readonly retry_after: string | null
  /** CloudStack's clock minus ours, ms, to about a second; null when the answer has no date. */
  readonly skew_ms: number | null
}

/** There is no answer that was read to its end. */
export class Unanswered extends Data.TaggedError("Unanswered")<
  Times & {
    /** `unconfigured`: where CloudStack is, or by what keys, is not known yet. */
    readonly kind: "transport" | "timeout" | "unconfigured"
    /** Proven: no byte of the call left this machine. */
    readonly never_sent: boolean
    /** Neither address nor parameters. */
    readonly detail: string
    readonly cause?: unknown
  }
> {}

export interface Transport {
  readonly config: Settings["cloudstack"]
  readonly send: <E = never>(call: Call<E>) => Effect.Effect<Answer, Unanswered | E>
  /** CloudStack's clock was read within the last minute. */
  readonly knowsClock: Effect.Effect<boolean>
}

/**
 * Signs and sends one call at a time a connection, each with the credentials that are known when its turn comes: a call
 * that is under way when they change ends with those it began with. `expires` is set by CloudStack's own clock, learned from the Date
 * headers of its answers and carried on by our monotonic one, so that neither clock's setting lengthens a call's life.
 */
export const make = (
  config: Settings["cloudstack"]
): Effect.Effect<Transport, never, HttpClient.HttpClient | Credentials> =>
  Effect.gen(function* () {
    const credentials = yield* Credentials
    const http = (yield* HttpClient.HttpClient).pipe(
      // Spans and trace headers would carry the call's address outside.
      HttpClient.withTracerPropagation(false),
      HttpClient.withTracerDisabledWhen(() => true),
      // An unread body pins its connection; the scope of each call aborts what is left of it.
      HttpClient.withScope
    )
    const slots = yield* Effect.makeSemaphore(config.connections)
    const clock = yield* Ref.make<ClockSample | null>(null)

    const sendWith = Effect.fn("CloudStack.send")(function* <E>(call: Call<E>) {
      const submitted_at = Math.floor(yield* Clock.currentTimeMillis)
      const times: Times = { submitted_at, expires_at: submitted_at + LIFETIME_MS }
      const known = yield* credentials.current
      if (known === null) return yield* unconfigured(times, yield* credentials.problem)
      const { credential } = known
      const body = sign(credential, call, (yield* serverTime(clock, credential)) + LIFETIME_MS)
      yield* call.beforeSend
      const request = HttpClientRequest.bodyText(HttpClientRequest.post(credential.api_url), body, FORM)
      const answer = yield* exchange(http, request, times, (sample) =>
        Ref.set(clock, { ...sample, api_url: credential.api_url })
      ).pipe(
        Effect.scoped,
        Effect.timeoutFail({ duration: call.timeout_ms, onTimeout: () => timedOut(call, times) }),
        Metrics.calling(call.command)
      )
      const clean = answer.status === 200 ? answer : { ...answer, text: withoutSecrets(answer.text, credential, body) }
      return { answer: clean, credential }
    }, slots.withPermits(1))

    /** Whoever repeats a call that was answered 401 finds the newest keys there are. */
    const send = <E>(call: Call<E>) =>
      sendWith(call).pipe(
        Effect.tap(({ answer, credential }) => (answer.status === 401 ? credentials.refused(credential) : Effect.void)),
        Effect.map(({ answer }) => answer)
      )

    const knowsClock = Effect.gen(function* () {
      const known = yield* credentials.current
      const age = known === null ? null : yield* sampleAge(clock, known.credential)
      return age !== null && age <= CLOCK_SAMPLE_MS
    })

    return { config, send, knowsClock }
  })

const unconfigured = (times: Times, problem: string | null) =>
  new Unanswered({
    ...times,
    kind: "unconfigured",
    never_sent: true,
    detail: problem ?? "CloudStack's URL and keys are not known yet"
  })

const FORM = "application/x-www-form-urlencoded; charset=UTF-8"

const sign = (credential: Credential, call: Call<unknown>, expires: number): string =>
  Signature.signedBody(
    {
      ...call.parameters,
      command: call.command,
      response: "json",
      apikey: Redacted.value(credential.api_key),
      signatureversion: "3",
      expires: new Date(expires).toISOString()
    },
    credential.secret_key
  )

/** A server (or a proxy) that repeats our request in its error page would otherwise put the keys into our errors. */
const withoutSecrets = (text: string, { api_key, secret_key }: Credential, body: string): string =>
  [Redacted.value(secret_key), Redacted.value(api_key), ...new URLSearchParams(body).getAll("signature")]
    .flatMap((secret) => [secret, Signature.encode(secret)])
    .filter((secret) => secret.length > 0)
    .reduce((rest, secret) => rest.replaceAll(secret, "<redacted>"), text)

const exchange = Effect.fnUntraced(function* (
  http: HttpClient.HttpClient.With<HttpClientError.HttpClientError, Scope.Scope>,
  request: HttpClientRequest.HttpClientRequest,
  times: Times,
  learned: (sample: Pick<ClockSample, "date" | "at">) => Effect.Effect<void>
) {
  const failed = (error: HttpClientError.HttpClientError) => unanswered(error, times)
  const response = yield* Effect.mapError(http.execute(request), failed)
  const skew_ms = yield* learnClock(learned, response)
  const text = yield* readBody(response, times)
  return { ...times, status: response.status, text, retry_after: response.headers["retry-after"] ?? null, skew_ms }
})

const readBody = (response: HttpClientResponse.HttpClientResponse, times: Times) => {
  const chunks: Array<Uint8Array> = []
  let bytes = 0
  return response.stream.pipe(
    Stream.mapError((error) => unanswered(error, times)),
    Stream.runForEach((chunk) => {
      bytes += chunk.byteLength
      chunks.push(chunk)
      return bytes > BODY_LIMIT_BYTES ? Effect.fail(tooLarge(times)) : Effect.void
    }),
    Effect.map(() => Buffer.concat(chunks).toString("utf8"))
  )
}

const timedOut = (call: Call<unknown>, times: Times) =>
  new Unanswered({ ...times, kind: "timeout", never_sent: false, detail: `no whole answer in ${call.timeout_ms} ms` })

const tooLarge = (times: Times) =>
  new Unanswered({
    ...times,
    kind: "transport",
    never_sent: false,
    detail: `the answer is larger than ${BODY_LIMIT_BYTES} bytes`
  })

/** The error's request holds the signed body, so that only what the driver said underneath may go on. */
const unanswered = (error: HttpClientError.HttpClientError, times: Times): Unanswered => {
  const code = codeOf(error.cause)
  const never_sent = error._tag === "RequestError" && (error.reason === "InvalidUrl" || failedToConnect(error.cause))
  const what = never_sent ? "no connection" : "the connection broke"
  return new Unanswered({
    ...times,
    kind: "transport",
    never_sent,
    detail: code === null ? what : `${what} (${code})`,
    cause: error.cause
  })
}

const property = (value: unknown, name: string): unknown =>
  typeof value === "object" && value !== null ? (value as Record<string, unknown>)[name] : undefined

const codeOf = (cause: unknown): string | null => {
  const code = property(cause, "code")
  return typeof code === "string" && /^[A-Z0-9_]{1,64}$/.test(code) ? code : null
}

/**
 * Codes that can only come from before the first byte of a call: names, connecting, and certificates. ECONNRESET, EPIPE
 * and the time-outs of the system are not among them; they happen to a connection that has carried the call, too.
 */
const beforeConnected = new Set([
  "ECONNREFUSED",
  "ENOTFOUND",
  "EAI_AGAIN",
  "UND_ERR_CONNECT_TIMEOUT",
  "CERT_HAS_EXPIRED",
  "CERT_NOT_YET_VALID",
  "DEPTH_ZERO_SELF_SIGNED_CERT",
  "SELF_SIGNED_CERT_IN_CHAIN",
  "UNABLE_TO_GET_ISSUER_CERT",
  "UNABLE_TO_GET_ISSUER_CERT_LOCALLY",
  "UNABLE_TO_VERIFY_LEAF_SIGNATURE",
  "ERR_TLS_CERT_ALTNAME_INVALID"
])

const failedToConnect = (cause: unknown): boolean => {
  const attempts = property(cause, "errors")
  // Several addresses tried in turn: each must have failed before it was connected.
  if (Array.isArray(attempts) && attempts.length > 0) return attempts.every(failedToConnect)
  const syscall = property(cause, "syscall")
  return syscall === "connect" || syscall === "getaddrinfo" || beforeConnected.has(codeOf(cause) ?? "")
}

/** What CloudStack's clock said, and our monotonic clock when it had been said. Another URL is another clock. */
interface ClockSample {
  readonly api_url: string
  readonly date: number
  readonly at: bigint
}

const sampleOf = (clock: Ref.Ref<ClockSample | null>, { api_url }: Credential) =>
  Effect.map(Ref.get(clock), (sample) => (sample?.api_url === api_url ? sample : null))

const sampleAge = (clock: Ref.Ref<ClockSample | null>, credential: Credential) =>
  Effect.zipWith(sampleOf(clock, credential), Clock.currentTimeNanos, (sample, now) =>
    sample === null ? null : Number((now - sample.at) / 1_000_000n)
  )

/**
 * The earliest that CloudStack's clock may show now, ms: a Date header has whole seconds, cut off. An expiry reckoned
 * from it never comes later than reckoned by our own clock from now. Our clock where CloudStack's was never told.
 */
const serverTime = (clock: Ref.Ref<ClockSample | null>, credential: Credential) =>
  Effect.gen(function* () {
    const sample = yield* sampleOf(clock, credential)
    const age = yield* sampleAge(clock, credential)
    return sample === null || age === null ? yield* Clock.currentTimeMillis : sample.date + age
  })

/** RFC 9110's one form that may still be sent. */
const datePattern = /^[A-Z][a-z]{2}, \d{2} [A-Z][a-z]{2} \d{4} \d{2}:\d{2}:\d{2} GMT$/

const learnClock = (
  learned: (sample: Pick<ClockSample, "date" | "at">) => Effect.Effect<void>,
  response: HttpClientResponse.HttpClientResponse
) =>
  Effect.gen(function* () {
    const header = response.headers["date"] ?? ""
    const date = datePattern.test(header) ? Date.parse(header) : Number.NaN
    if (Number.isNaN(date)) return null
    yield* learned({ date, at: yield* Clock.currentTimeNanos })
    return date - (yield* Clock.currentTimeMillis)
  })
