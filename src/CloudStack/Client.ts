import { Clock, type Context, Effect, Either, Option, Random } from "effect"
import * as Failpoint from "../../reconciler/Failpoint.ts"
import type { Gate } from "../../reconciler/Gate.ts"
import * as Metrics from "../../reconciler/Metrics.ts"
import * as Wire from "../../schema/CloudStack.ts"
import {
  CloudStackRefused,
  CloudStackUnavailable,
  type GateClosed,
  OutcomeUnknown,
  type PreconditionLost
} from "../../schema/Errors.ts"
import type { Settings } from "../../schema/Settings.ts"
import type { Parameters } from "./Signature.ts"
import type { Answer, Transport, Unanswered } from "./Transport.ts"

/** Commands that change nothing. */
export type ReadCommand =
  | "listVolumes"
  | "listVirtualMachines"
  | "listZones"
  | "listDiskOfferings"
  | "listCapabilities"
  | "queryAsyncJobResult"
  | "listEvents"
  | "listApis"
  | "listAccounts"

type Decode<A> = (body: unknown) => Either.Either<A, string>

/**
 * One read. `CloudStackRefused` is CloudStack's own word that it will not read this (431, 531 …); all else is
 * `CloudStackUnavailable`, after the tries that are worth making.
 */
export type Read = <A>(
  command: ReadCommand,
  parameters: Parameters,
  decode: Decode<A>
) => Effect.Effect<A, CloudStackUnavailable | CloudStackRefused>

/** Tries of one read in all, unless it is said otherwise. */
const READ_TRIES = 3
/** Pause before the second try, ms; doubled for the third. Up to half as much again is added by chance. */
const READ_PAUSE_MS = 250
/** A server that asks for a longer pause is left alone until the next pass. */
const READ_PAUSE_LIMIT_MS = 15_000

export const reader = (transport: Transport, tries = READ_TRIES): Read => {
  const timeout_ms = transport.config.read_timeout_ms
  const attempt = <A>(command: ReadCommand, parameters: Parameters, decode: Decode<A>) =>
    transport.send({ command, parameters, timeout_ms, beforeSend: Effect.void }).pipe(
      Effect.mapError((unanswered) => unreadBy(command, unanswered)),
      Effect.flatMap((answer) => readingOf(command, decode, answer)),
      Effect.tapError(({ error }) =>
        error._tag === "CloudStackUnavailable" && error.kind === "undecodable"
          ? Metrics.undecodable(command)
          : Effect.void
      )
    )
  const from =
    (tried: number): Read =>
    (command, parameters, decode) =>
      Effect.catchAll(attempt(command, parameters, decode), (failure) => {
        const pause = tried >= tries ? null : pauseBefore(failure.retry, tried)
        if (pause === null) return Effect.fail(failure.error)
        return Effect.andThen(sleepAbout(pause), from(tried + 1)(command, parameters, decode))
      })
  return from(1)
}

interface ReadFailure {
  readonly error: CloudStackUnavailable | CloudStackRefused
  /** `later`: it may pass by itself; a number: not before so many ms; `once`: a new signature may do; `never`. */
  readonly retry: "later" | number | "once" | "never"
}

const pauseBefore = (retry: ReadFailure["retry"], tried: number): number | null => {
  if (retry === "never") return null
  if (retry === "once") return tried === 1 ? 0 : null
  const pause = READ_PAUSE_MS * 2 ** (tried - 1)
  if (retry === "later") return pause
  return retry > READ_PAUSE_LIMIT_MS ? null : Math.max(retry, pause)
}

const sleepAbout = (ms: number) =>
  Effect.flatMap(Random.next, (chance) => Effect.sleep(Math.round(ms + (ms / 2) * chance)))

const unreadBy = (command: ReadCommand, { kind, detail, cause }: Unanswered): ReadFailure => ({
  error: new CloudStackUnavailable({ command, kind, detail, cause }),
  // What took a whole time-out once would take three.
  retry: kind === "transport" ? "later" : "never"
})

const readingOf = <A>(command: ReadCommand, decode: Decode<A>, answer: Answer): Either.Either<A, ReadFailure> => {
  if (answer.status !== 200) return Either.left(readRefusal(command, answer))
  return Either.mapLeft(Either.flatMap(Wire.parse(answer.text), decode), (problem) => ({
    error: new CloudStackUnavailable({ command, kind: "undecodable", detail: problem }),
    retry: "never"
  }))
}

const readRefusal = (command: ReadCommand, answer: Answer): ReadFailure => {
  const { status } = answer
  const words = wordsOf(command, answer)
  const unavailable = (kind: string, retry: ReadFailure["retry"]): ReadFailure => ({
    error: new CloudStackUnavailable({ command, kind, detail: saying(answer, words) }),
    retry
  })
  if (status === 401) return unavailable(skewed(answer) ? "clock_skew" : "unauthorized", "once")
  if (status === 429) return unavailable("throttled", askedPause(answer, words) ?? "later")
  if (status === 503) return unavailable("maintenance", askedPause(answer, words) ?? "later")
  if (words !== null && definite.has(status)) return { error: refusal(command, status, words), retry: "never" }
  return unavailable(words === null ? "transport" : "refused", status >= 500 ? "later" : "never")
}

/** The pause the server asks for, ms: `Retry-After` in seconds, or CloudStack's own `please retry after [N] ms`. */
const askedPause = (answer: Answer, words: Wire.ErrorAnswer | null): number | null => {
  const seconds = /^\d{1,6}$/.exec(answer.retry_after?.trim() ?? "")?.[0]
  if (seconds !== undefined) return Number(seconds) * 1_000
  const ms = /retry after \[(\d{1,9})\] ms/.exec(words?.errortext ?? "")?.[1]
  return ms === undefined ? null : Number(ms)
}

export type MutatingCommand =
  | "createVolume"
  | "attachVolume"
  | "detachVolume"
  | "deleteVolume"
  | "createTags"
  | "deleteTags"

export interface Accepted<A> {
  readonly answer: A
  /** ms of our clock, as in the port. */
  readonly submitted_at: number
  readonly expires_at: number
}

export type MutationFailed = CloudStackRefused | OutcomeUnknown | GateClosed | PreconditionLost

/** One mutation. `guard` runs after the gate, when nothing but the wire comes next. */
export type Mutate = <A>(
  command: MutatingCommand,
  parameters: Parameters,
  guard: Effect.Effect<void, PreconditionLost>,
  decode: Decode<A>
) => Effect.Effect<Accepted<A>, MutationFailed>

/**
 * Errors of CloudStack's own that come before any effect of any mutation we send, whether from the checks of key, rate,
 * role and parameters, or from those of permission and limits, which precede the row (`VolumeApiServiceImpl`). Not
 * among them: 530, 533, 534, 536, 537, which also tell of work that failed half way.
 */
const definite: ReadonlySet<number> = new Set([
  Wire.ApiErrorCode.BAD_REQUEST,
  Wire.ApiErrorCode.UNAUTHORIZED,
  Wire.ApiErrorCode.METHOD_NOT_ALLOWED,
  Wire.ApiErrorCode.UNAUTHORIZED2FA_OLD,
  Wire.ApiErrorCode.API_LIMIT_EXCEED,
  Wire.ApiErrorCode.MALFORMED_PARAMETER_ERROR,
  Wire.ApiErrorCode.PARAM_ERROR,
  Wire.ApiErrorCode.UNSUPPORTED_ACTION_ERROR,
  Wire.ApiErrorCode.UNAUTHORIZED2FA,
  Wire.ApiErrorCode.ACCOUNT_ERROR,
  Wire.ApiErrorCode.ACCOUNT_RESOURCE_LIMIT_ERROR,
  Wire.ApiErrorCode.RESOURCE_ALLOCATION_ERROR
])

/** Commands whose only effect is a job, which a server in maintenance refuses to take (`AsyncJobManagerImpl`). */
const onlyQueues: ReadonlySet<MutatingCommand> = new Set(["attachVolume", "detachVolume", "createTags", "deleteTags"])

/**
 * Does this error, in CloudStack's own envelope, prove that the command changed nothing and will not? Maintenance is no
 * proof for createVolume: it is asked about twice there, and the second time the row exists.
 */
export const provesNoEffect = (command: MutatingCommand, code: number, text: string): boolean =>
  (definite.has(code) && !(command === "createVolume" && isIdTaken(text))) ||
  (code === Wire.ApiErrorCode.SERVICE_UNAVAILABLE && onlyQueues.has(command) && /can not accept new jobs/i.test(text))

/** `UUIDManagerImpl`: who took the chosen id may have been this very call, delivered before (C10). */
const isIdTaken = (text: string): boolean => /already exists so can't create\/update with custom id/i.test(text)

/** An account's or a resource's limit. */
const limits: ReadonlySet<number> = new Set([
  Wire.ApiErrorCode.ACCOUNT_RESOURCE_LIMIT_ERROR,
  Wire.ApiErrorCode.INSUFFICIENT_CAPACITY_ERROR,
  Wire.ApiErrorCode.RESOURCE_ALLOCATION_ERROR
])

/** Mutations on the wire at one time, at most: a connection is kept for reads. */
export const mutationSlots = ({ connections }: Pick<Settings["cloudstack"], "connections">): number =>
  Math.max(1, connections - 1)

/** Mutations through this transport. At least one connection stays free for reads where there are two. */
export const mutator = (transport: Transport, gate: Context.Tag.Service<Gate>): Effect.Effect<Mutate> =>
  Effect.map(Effect.makeSemaphore(mutationSlots(transport.config)), (slots): Mutate => {
    const attempt = (command: MutatingCommand, parameters: Parameters, guard: Effect.Effect<void, PreconditionLost>) =>
      transport
        .send({
          command,
          parameters,
          timeout_ms: transport.config.call_timeout_ms,
          beforeSend: gate.check.pipe(Effect.andThen(guard), Effect.andThen(Failpoint.pass("call.leaving")))
        })
        .pipe(Effect.catchTag("Unanswered", (unanswered) => Effect.fail(lostBy(command, unanswered))))

    return (command, parameters, guard, decode) =>
      Effect.gen(function* () {
        yield* learnClock(transport, command)
        const first = yield* attempt(command, parameters, guard)
        // A signature is refused before anything else happens, now and then without reason (CloudStack issue 11394).
        const answer = (yield* isFreshUnauthorized(command, first)) ? yield* attempt(command, parameters, guard) : first
        return yield* outcomeOf(command, decode, answer)
      }).pipe(slots.withPermits(1))
  })

/**
 * How long a call lives is reckoned by CloudStack's clock, so that is read first where no recent answer has told it. A
 * server that sends no dates is taken to keep our time.
 */
const learnClock = (transport: Transport, command: MutatingCommand) =>
  Effect.gen(function* () {
    if (yield* transport.knowsClock) return
    yield* transport.send({
      command: "listCapabilities",
      parameters: {},
      timeout_ms: transport.config.read_timeout_ms,
      beforeSend: Effect.void
    })
  }).pipe(
    Effect.mapError(
      ({ detail }) =>
        new CloudStackRefused({
          command,
          code: NO_CODE,
          cserrorcode: null,
          text: `not sent, for CloudStack's clock could not be read first: ${detail}`,
          limit: false,
          never_sent: true
        })
    )
  )

/** `code` of a refusal that CloudStack did not speak itself. */
const NO_CODE = 0

const lostBy = (command: MutatingCommand, unanswered: Unanswered): CloudStackRefused | OutcomeUnknown =>
  unanswered.never_sent
    ? new CloudStackRefused({
        command,
        code: NO_CODE,
        cserrorcode: null,
        text: unanswered.detail,
        limit: false,
        never_sent: true
      })
    : new OutcomeUnknown({
        command,
        detail: unanswered.detail,
        expires_at: unanswered.expires_at,
        cause: unanswered.cause
      })

/**
 * A 401 that came while the call was alive. One that comes later may answer a second delivery by a proxy, and says
 * nothing of the first.
 */
const isFreshUnauthorized = (command: MutatingCommand, answer: Answer) =>
  Effect.map(
    Clock.currentTimeMillis,
    (now) => answer.status === 401 && wordsOf(command, answer) !== null && now < answer.expires_at
  )

const outcomeOf = <A>(
  command: MutatingCommand,
  decode: Decode<A>,
  answer: Answer
): Effect.Effect<Accepted<A>, CloudStackRefused | OutcomeUnknown> =>
  Effect.gen(function* () {
    const { submitted_at, expires_at } = answer
    const unknown = (detail: string, code?: number) =>
      new OutcomeUnknown({ command, detail, expires_at, ...(code === undefined ? {} : { code }) })
    if (answer.status === 200) {
      const decoded = Either.flatMap(Wire.parseStrictly(answer.text), decode)
      if (Either.isLeft(decoded)) yield* Metrics.undecodable(command)
      return { answer: yield* Either.mapLeft(decoded, (detail) => unknown(detail)), submitted_at, expires_at }
    }
    const words = wordsOf(command, answer)
    const late = (yield* Clock.currentTimeMillis) >= expires_at
    if (words === null || !provesNoEffect(command, answer.status, words.errortext ?? "")) {
      return yield* unknown(saying(answer, words), words?.errorcode)
    }
    if (answer.status === 401 && late) return yield* unknown(saying(answer, words))
    return yield* refusal(command, answer.status, words, saying(answer, words))
  })

/** CloudStack's error in this answer, only where it is CloudStack's: its envelope, and the code that is the status. */
const wordsOf = (command: string, answer: Answer): Wire.ErrorAnswer | null =>
  Either.getRight(Wire.parse(answer.text)).pipe(
    Option.flatMap((body) => Wire.errorIn(command, body)),
    Option.filter((error) => error.errorcode === answer.status),
    Option.getOrNull
  )

const refusal = (command: string, code: number, words: Wire.ErrorAnswer, text = Wire.harmless(words.errortext ?? "")) =>
  new CloudStackRefused({
    command,
    code,
    cserrorcode: words.cserrorcode ?? null,
    text,
    limit: limits.has(code),
    never_sent: false
  })

/** Beyond this a refused signature is put down to the clocks. */
const SKEW_MS = 30_000

const skewed = (answer: Answer) => answer.skew_ms !== null && Math.abs(answer.skew_ms) > SKEW_MS

/** What a person reads of an answer that is an error. */
const saying = (answer: Answer, words: Wire.ErrorAnswer | null): string => {
  const { status, skew_ms } = answer
  if (words === null) {
    return status >= 300 && status < 400
      ? `HTTP ${status}: redirects are not followed`
      : `HTTP ${status} without an error of CloudStack's own`
  }
  const text = Wire.harmless(words.errortext ?? "no reason given")
  if (status !== 401 || !skewed(answer) || skew_ms === null) return text
  const seconds = Math.round(Math.abs(skew_ms) / 1_000)
  return `${text}: CloudStack's clock is ${seconds} s ${skew_ms > 0 ? "ahead of" : "behind"} ours`
}
