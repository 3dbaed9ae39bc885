import { createHash } from "node:crypto"
import { Context, Effect, Layer, Option, Schema } from "effect"
import type { Reconciler } from "../../reconciler/Reconciler.ts"
import { type KeyedAnswer, Store } from "../../reconciler/Store.ts"
import type { Declaration } from "../../schema/Declaration.ts"
import type { StoreUnavailable } from "../../schema/Errors.ts"
import type { Uid } from "../../schema/Ids.ts"
import * as Answer from "./Answer.ts"
import { type Failure, RequestRefused } from "./ErrorAnswer.ts"
import { alongside, Response } from "./Idempotency.ts"
import * as Maintenance from "./Maintenance.ts"
import { bodyReaders, type MediaTypes, type ReadBytes, refuse, type Request } from "./Request.ts"
import { answerVolume, removedOnes, toAnswer } from "./Volumes.ts"

/** What a repeat must have in common with the first request, besides its key. */
interface Original {
  /** As sent, its query apart. */
  readonly path: string
  readonly bytes: ReadBytes
  readonly bytes_max: number
  readonly types: MediaTypes
  /** Keys are each caller's own. */
  readonly scope: string
}

/** Writes that bear an Idempotency-Key: done once, however often they are sent (X13). */
export class Repeats extends Context.Tag("volumed/Http/Repeats")<
  Repeats,
  {
    /**
     * The answer that this key was given before, or what `handler` answers now, remembered if it is a success. The
     * handler may have stored its answer beside its write; then this does not.
     */
    readonly once: (
      presented: string,
      request: Request,
      original: Original,
      handler: (request: Request) => Effect.Effect<Answer.Answer, Failure>
    ) => Effect.Effect<Answer.Answer, Failure>
  }
>() {}

const make = Effect.gen(function* () {
  const store = yield* Store
  const ports = yield* Effect.context<Store | Reconciler>()
  const inProgress = new Set<string>()

  const remember = (key: NonNullable<Request["key"]>, { status, body, headers = {} }: Answer.Answer) =>
    Effect.gen(function* () {
      if (Option.isSome(yield* store.answered(key.key))) return
      const { answer } = alongside(key, status, { kind: "answer", body, headers })
      if (answer !== undefined) yield* store.remember(answer)
    }).pipe(
      // What was asked for is done: an error now would say the opposite.
      Effect.catchAll((error) => Effect.logWarning("an answer could not be remembered for its key", error.message)),
      Effect.uninterruptible
    )

  return Repeats.of({
    once: (presented, request, original, handler) =>
      Effect.gen(function* () {
        const body = yield* original.bytes(original.bytes_max)
        const key = { key: scoped(original.scope, presented), digest: digestOf(request, original.path, body) }
        const readers = bodyReaders(request.headers, within(body), original.types)
        const answer = Effect.gen(function* () {
          const before = yield* store.answered(key.key)
          if (Option.isSome(before)) return yield* Effect.provide(again(before.value, key.digest), ports)
          const answer = yield* handler({ ...request, ...readers, key })
          if (answer.status < 300) yield* remember(key, answer)
          return answer
        })
        return yield* Effect.acquireUseRelease(
          Effect.sync(() => !inProgress.has(key.key) && inProgress.add(key.key).has(key.key)),
          (first) => (first ? answer : beingAnswered),
          (first) => Effect.sync(() => first && inProgress.delete(key.key))
        )
      })
  })
})

export const layer: Layer.Layer<Repeats, never, Store | Reconciler> = Layer.effect(Repeats, make)

export const isKey = (text: string): boolean => /^[\x21-\x7e]{1,255}$/u.test(text)

/** One column's worth, whatever names and keys are made of. */
const scoped = (scope: string, key: string): string => createHash("sha256").update(`${scope}\n${key}`).digest("hex")

const digestOf = ({ method, query: asked, headers }: Request, path: string, body: Buffer): string => {
  const query = [...asked].map(([key, value]) => `${key}=${value}`).toSorted()
  const head = [method, path, query, headers["if-match"] ?? null, headers["if-none-match"] ?? null]
  return createHash("sha256")
    .update(`${JSON.stringify(head)}\n`)
    .update(body)
    .digest("hex")
}

/** A body that was read already, for a handler that may want less of it. */
const within =
  (body: Buffer): ReadBytes =>
  (limit) =>
    body.length > limit ? refuse("TOO_LARGE", `expected a body of at most ${limit} bytes`) : Effect.succeed(body)

const beingAnswered = new RequestRefused({
  code: "CONFLICT",
  error: "a request with this Idempotency-Key is being worked on",
  suggestion: "repeat the request a little later: it is answered with what the first one was",
  headers: { "retry-after": "1" }
})

const reused = refuse(
  "IDEMPOTENCY_KEY_REUSED",
  "Idempotency-Key: expected one that was not used for another request within a day",
  "make a new key for each new request, and repeat a request unchanged"
)

const again = (before: KeyedAnswer, digest: string) =>
  before.digest === digest
    ? Effect.map(replay(before), (answer) => ({
        ...answer,
        headers: { ...answer.headers, "idempotency-replayed": "true" }
      }))
    : Effect.fail(reused)

/** What was answered, made again from what the store holds. */
const replay = ({ status, response }: KeyedAnswer): Effect.Effect<Answer.Answer, Failure, Store | Reconciler> =>
  Effect.gen(function* () {
    const stored = yield* Effect.orDie(Schema.decodeUnknown(Response)(response))
    switch (stored.kind) {
      case "answer":
        return { status, body: stored.body, headers: stored.headers }
      case "operation": {
        const { operation } = yield* Store
        const found = yield* Effect.flatMap(operation(stored.id), orGone)
        return { status, body: status === 201 ? Answer.accepted(found) : Answer.operation(found) }
      }
      case "maintenance":
        return Answer.ok(yield* Maintenance.current)
      case "volume": {
        const [declaration] = yield* declarationsOf([stored.uid])
        const volume = yield* Effect.flatMap(orGone(Option.fromNullable(declaration)), toAnswer)
        return { ...answerVolume(volume), status }
      }
      case "volumes": {
        const items = yield* Effect.forEach(yield* declarationsOf(stored.uids), toAnswer)
        return { status, body: { items, ...stored.outcomes } }
      }
    }
  })

const orGone = <A>(found: Option.Option<A>): Effect.Effect<A, RequestRefused> =>
  Option.match(found, {
    onNone: () => refuse("NOT_FOUND", "what this Idempotency-Key was answered with is gone"),
    onSome: Effect.succeed
  })

/** As they are now; those that were removed meanwhile are shown as such. */
const declarationsOf = (uids: ReadonlyArray<Uid>): Effect.Effect<ReadonlyArray<Declaration>, StoreUnavailable, Store> =>
  Effect.gen(function* () {
    const { declarations } = yield* Store
    const all = new Map([...(yield* declarations), ...(yield* removedOnes)].map((one) => [one.uid, one]))
    return uids.flatMap((uid) => all.get(uid) ?? [])
  })
