import { Clock, Duration, Effect, Either, Option, Random, Schema, type Scope } from "effect"
import * as Api from "../../schema/Api.ts"
import { ApiError, type Failure, isTransient, ServerUnreachable } from "./Failure.ts"

export interface Options {
  /** For example `http://127.0.0.1:8090`. */
  readonly server: string
  /** Who asks, for the history; 1-64 of `[A-Za-z0-9._@-]`. */
  readonly actor?: string
  /** Sent as `Authorization: Bearer`. */
  readonly token?: string
  /** For one answer, waiting aside; 30 s unless told. */
  readonly timeoutMs?: number
  readonly retry?: Partial<Retry>
}

/** How often, and for how long, a request is made again that was not answered or answered with "not now". */
export interface Retry {
  /** The first one counted; 4 unless told. */
  readonly tries: number
  /** From the first try on, ms; none begins later. 30 s unless told. */
  readonly withinMs: number
  /** The longest pause after the first try, ms; doubled after each. 200 ms unless told. */
  readonly baseMs: number
}

const retryDefaults: Retry = { tries: 4, withinMs: 30_000, baseMs: 200 }

/** The longest pause of our own choosing, ms. */
export const PAUSE_MS_MAX = 5_000
const ANSWER_MS = 30_000
/** A page of a thousand declarations has some MB; what is far beyond is not volumed's. */
const BODY_BYTES_MAX = 64 * 1024 * 1024

export interface Call {
  readonly method: "GET" | "PUT" | "PATCH" | "POST" | "DELETE"
  readonly path: string
  readonly query?: Readonly<Record<string, string | number | boolean | undefined>>
  readonly headers?: Readonly<Record<string, string>>
  readonly body?: unknown
  /** It changes something, and bears an Idempotency-Key. */
  readonly writes?: true
  /** Time that the server may hold the answer back, on top of the time for one answer. */
  readonly waitSeconds?: number
  /** Statuses beside 2xx whose body is the answer all the same. */
  readonly accept?: ReadonlyArray<number>
}

export interface Answer {
  readonly status: number
  readonly headers: Headers
  readonly text: string
}

/** The answer, if it is a good one. Tried again while that is safe and may help. */
export const exchange = (options: Options, call: Call): Effect.Effect<Answer, Failure> =>
  Effect.gen(function* () {
    const url = yield* urlOf(options, call)
    // One key for all tries: whichever arrives first counts, and the others are given its answer.
    const headers = { ...(yield* headersOf(options, call)), ...(call.writes === true ? withKey(call.headers) : {}) }
    const answer = yield* patiently(options, call, once(options, call, url, headers))
    return yield* isGood(call, answer.status) ? Effect.succeed(answer) : refusal(options, answer)
  })

export const decodeAs = <A, I>(
  options: Options,
  schema: Schema.Schema<A, I>,
  answer: Answer
): Effect.Effect<A, ServerUnreachable> =>
  Schema.decodeUnknown(Schema.parseJson(schema))(answer.text).pipe(
    Effect.mapError((cause) => unreachable(options, `an answer of another shape: ${cause.message}`, false, cause))
  )

/** An answer whose body goes on and is read by the caller, as long as the scope lives. */
export const open = (options: Options, call: Call): Effect.Effect<Response, Failure, Scope.Scope> =>
  Effect.gen(function* () {
    const url = yield* urlOf(options, call)
    const { signal } = yield* Effect.acquireRelease(
      Effect.sync(() => new AbortController()),
      (controller) => Effect.sync(() => controller.abort())
    )
    const headers = yield* headersOf(options, call)
    const response = yield* fetched(options, () => fetch(url, { signal, redirect: "error", headers })).pipe(
      inTime(options, call)
    )
    if (response.ok) return response
    const text = yield* fetched(options, () => readText(response)).pipe(inTime(options, call))
    return yield* refusal(options, { status: response.status, headers: response.headers, text })
  })

export const unreachable = (options: Options, detail: string, transient: boolean, cause?: unknown) =>
  new ServerUnreachable({ server: options.server, detail, transient, ...(cause === undefined ? {} : { cause }) })

const urlOf = (options: Options, call: Call): Effect.Effect<URL, ServerUnreachable> =>
  Effect.try({
    try: () => {
      const url = new URL(options.server.replace(/\/+$/, "") + call.path)
      for (const [key, value] of Object.entries(call.query ?? {})) {
        if (value !== undefined) url.searchParams.append(key, String(value))
      }
      return url
    },
    catch: (cause) => unreachable(options, "its address is no URL, such as http://127.0.0.1:8090", false, cause)
  })

/** `fetch` would repeat a token that it cannot send in the words of its error, and so into logs. */
const headersOf = (options: Options, call: Call): Effect.Effect<Readonly<Record<string, string>>, ServerUnreachable> =>
  /^[\x21-\x7e]*$/u.test(options.token ?? "")
    ? Effect.succeed({
        accept: "application/json",
        ...(options.actor === undefined ? {} : { "volumed-actor": options.actor }),
        ...(options.token === undefined ? {} : { authorization: `Bearer ${options.token}` }),
        ...(call.body === undefined ? {} : { "content-type": "application/json" }),
        ...call.headers
      })
    : Effect.fail(unreachable(options, "the token holds a character that no token has, such as a line break", false))

const withKey = (headers: Call["headers"]) => ({
  "idempotency-key": headers?.["idempotency-key"] ?? crypto.randomUUID()
})

const isGood = (call: Call, status: number) => (status >= 200 && status < 300) || (call.accept ?? []).includes(status)

const once = (
  options: Options,
  call: Call,
  url: URL,
  headers: Readonly<Record<string, string>>
): Effect.Effect<Answer, ServerUnreachable> =>
  fetched(options, async (signal) => {
    const response = await fetch(url, {
      method: call.method,
      redirect: "error",
      signal,
      headers,
      ...(call.body === undefined ? {} : { body: JSON.stringify(call.body) })
    })
    return { status: response.status, headers: response.headers, text: await readText(response) }
  }).pipe(inTime(options, call))

const fetched = <A>(options: Options, run: (signal: AbortSignal) => Promise<A>) =>
  Effect.tryPromise({ try: run, catch: (cause) => unreachable(options, reason(cause), true, cause) })

const inTime = (options: Options, call: Call) => {
  const limitMs = (options.timeoutMs ?? ANSWER_MS) + (call.waitSeconds ?? 0) * 1000
  return Effect.timeoutFail({
    duration: Duration.millis(limitMs),
    onTimeout: () => unreachable(options, `no answer within ${limitMs / 1000} s`, true)
  })
}

const reason = (cause: unknown): string => {
  if (!(cause instanceof Error)) return String(cause)
  return cause.cause instanceof Error ? `${cause.message}: ${cause.cause.message}` : cause.message
}

const readText = async (response: Response): Promise<string> => {
  const decoder = new TextDecoder()
  let bytes = 0
  let text = ""
  for await (const chunk of response.body ?? []) {
    bytes += chunk.byteLength
    if (bytes > BODY_BYTES_MAX) throw new Error(`the answer is larger than ${BODY_BYTES_MAX} bytes`)
    text += decoder.decode(chunk, { stream: true })
  }
  return text + decoder.decode()
}

/** The last try's outcome, however it ended. */
const patiently = (
  options: Options,
  call: Call,
  attempt: Effect.Effect<Answer, ServerUnreachable>
): Effect.Effect<Answer, ServerUnreachable> =>
  Effect.gen(function* () {
    const { tries, withinMs, baseMs } = { ...retryDefaults, ...options.retry }
    const began = yield* Clock.currentTimeMillis
    for (let tried = 1; ; tried++) {
      const tryout = yield* Effect.either(attempt)
      const leastMs = Either.match(tryout, { onLeft: () => 0, onRight: (answer) => leastPause(call, answer) })
      if (leastMs === null || tried >= tries) return yield* tryout
      const chance = yield* Random.next
      const pauseMs = leastMs + chance * Math.min(baseMs * 2 ** (tried - 1), PAUSE_MS_MAX)
      const now = yield* Clock.currentTimeMillis
      if (now + pauseMs >= began + withinMs) return yield* tryout
      yield* Effect.sleep(pauseMs)
    }
  })

/** How long to wait at least before asking again, ms; null where the answer is the last word. */
const leastPause = (call: Call, { status, headers, text }: Answer): number | null => {
  if (isGood(call, status)) return null
  const body = Schema.decodeUnknownOption(Schema.parseJson(Refusal))(text)
  const after = headers.get("retry-after") ?? ""
  // A conflict that passes: an earlier try of this very request is still being worked on.
  const passes = status === 409 && after !== ""
  if (!passes && !isTransient(status, Option.getOrNull(body)?.code ?? null)) return null
  return /^\d{1,9}$/u.test(after) ? Number(after) * 1000 : 0
}

/** As the contract says, but for codes that a newer server may have. */
const Refusal = Schema.Struct({ ...Api.ErrorBody.fields, code: Schema.String })

const refusal = (options: Options, { status, text }: Answer): Effect.Effect<never, Failure> =>
  Option.match(Schema.decodeUnknownOption(Schema.parseJson(Refusal))(text), {
    onSome: (body) => Effect.fail(new ApiError({ status, ...body })),
    onNone: () =>
      Effect.fail(unreachable(options, `HTTP ${status} with a body of another kind`, isTransient(status, null)))
  })
