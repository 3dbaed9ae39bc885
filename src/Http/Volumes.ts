import { Clock, Effect, Option, Schema } from "effect"
import * as Declare from "../../reconciler/Declare.ts"
import { Reconciler } from "../../reconciler/Reconciler.ts"
import { Store } from "../../reconciler/Store.ts"
import type * as Api from "../../schema/Api.ts"
import { type Declaration, DeletionPolicy } from "../../schema/Declaration.ts"
import * as Document from "../../schema/Document.ts"
import { Name } from "../../schema/Ids.ts"
import * as Answer from "./Answer.ts"
import type { Failure } from "./ErrorAnswer.ts"
import { BODY_BYTES_MAX, DOCUMENT_BYTES_MAX, flag, refuse, type Request } from "./Request.ts"
import * as Wait from "./Wait.ts"
import { type CommitOptions, type Draft, namesByOutcome, single, type Stored, Writes } from "./Writes.ts"

/** How long a removed declaration is shown. */
export const REMOVED_SHOWN_MS = 30 * 24 * 3_600_000

export const put = Effect.fnUntraced(function* (request: Request) {
  const name = yield* nameToWrite(request)
  const wish = yield* Effect.flatMap(request.json(BODY_BYTES_MAX), (body) => Document.decodePut(name, body))
  const precondition = yield* preconditionOf(request)
  const context = yield* Effect.flatMap(Writes, (writes) => writes.context(request))
  const draft = Effect.gen(function* () {
    const existing = yield* rivals(name, wish)
    return single(yield* Declare.put(existing, wish, precondition, context))
  })
  return yield* answerWrite(request, draft, precondition)
})

export const patch = Effect.fnUntraced(function* (request: Request) {
  const name = yield* nameOf(request)
  const body = yield* request.json(BODY_BYTES_MAX, ["application/json", "application/merge-patch+json"])
  const precondition = yield* preconditionOf(request)
  const context = yield* Effect.flatMap(Writes, (writes) => writes.context(request))
  const draft = Effect.gen(function* () {
    const current = yield* stored(name)
    const wish = yield* Document.decodePatch(name, body, current.spec)
    return single(yield* Declare.patch([current], wish, precondition, context))
  })
  return yield* answerWrite(request, draft, precondition)
})

export const remove = Effect.fnUntraced(function* (request: Request) {
  const name = yield* nameOf(request)
  const policy = yield* policyOf(request)
  const wait = yield* Wait.wanted(request)
  const precondition = yield* preconditionOf(request)
  const writes = yield* Writes
  const context = yield* writes.context(request)
  const draft = Effect.map(stored(name), (current) => [current]).pipe(
    Effect.flatMap((existing) => Declare.remove(existing, name, policy, precondition, context)),
    Effect.map(single)
  )
  if (yield* flag(request.query, "dry_run")) return Answer.ok(yield* writes.dryRun(request, draft, "changed"))
  const { declarations } = yield* commit(request, draft, precondition, () => 202)
  const volume = yield* waitFor(yield* onlyOne(declarations), wait)
  return { ...answerVolume(volume), status: 202 }
})

/** Whether its delete was sent is looked at here for a good answer, and by the store again as it is written. */
export const undelete = Effect.fnUntraced(function* (request: Request) {
  const name = yield* nameOf(request)
  const precondition = yield* preconditionOf(request)
  const context = yield* Effect.flatMap(Writes, (writes) => writes.context(request))
  const draft = Effect.gen(function* () {
    const current = yield* stored(name)
    return single(yield* Declare.undelete([current], name, yield* deletesOf(current), precondition, context))
  })
  return yield* answerWrite(request, draft, precondition)
})

export const get = Effect.fnUntraced(function* (request: Request) {
  const name = yield* nameOf(request)
  const wait = yield* Wait.wanted(request)
  const store = yield* Store
  const living = yield* store.declaration(name)
  if (Option.isSome(living)) {
    return answerVolume(yield* wait === null ? toAnswer(living.value) : waitFor(living.value, wait))
  }
  if (!(yield* flag(request.query, "removed"))) return yield* notDeclared(name)
  const removed = (yield* removedOnes).find((declaration) => declaration.name === name)
  return removed === undefined ? yield* notDeclared(name) : answerVolume(yield* toAnswer(removed))
})

export const apply = Effect.fnUntraced(function* (request: Request) {
  const draft = yield* applyDraft(request)
  const writes = yield* Writes
  if (yield* flag(request.query, "dry_run")) return Answer.ok(yield* writes.dryRun(request, draft, "all"))
  const { declarations, draft: applied } = yield* writes.commit(request, draft, { retry: true, answer: appliedAnswer })
  const items = yield* Effect.forEach(declarations, toAnswer)
  const { removed: pruned, ...names } = namesByOutcome(applied)
  return Answer.ok({ items, ...names, pruned, prune_kept: applied.prune_kept } satisfies Api.Applied)
})

/** Of an apply, as it is kept for a repeat. */
const appliedAnswer: CommitOptions["answer"] = (draft) => {
  const { removed: pruned, ...names } = namesByOutcome(draft)
  const uids = draft.changes.map(({ declaration }) => declaration.uid)
  const outcomes = { ...names, pruned, prune_kept: draft.prune_kept }
  return { status: 200, response: { kind: "volumes", uids, outcomes } }
}

export const planCandidate = Effect.fnUntraced(function* (request: Request) {
  const draft = yield* applyDraft(request)
  const writes = yield* Writes
  return Answer.ok(yield* writes.dryRun(request, draft, "all"))
})

const applyDraft = (request: Request) =>
  Effect.gen(function* () {
    const document = yield* Effect.flatMap(request.json(DOCUMENT_BYTES_MAX), Document.decodeApply)
    const context = yield* Effect.flatMap(Writes, (writes) => writes.context(request))
    const store = yield* Store
    return { document, context, store }
  }).pipe(
    Effect.map(({ document, context, store }) =>
      Effect.flatMap(store.declarations, (existing) => Declare.apply(existing, document, context))
    )
  )

/** What a write of this name must be compared with: all others only where it claims a volume. */
const rivals = (name: Name, wish: Document.Wish) =>
  Effect.flatMap(Store, (store) =>
    wish.spec.volume_id === undefined || wish.spec.volume_id === null
      ? Effect.map(store.declaration(name), Option.toArray)
      : store.declarations
  )

export const stored = (name: Name) =>
  Effect.gen(function* () {
    const store = yield* Store
    const living = yield* store.declaration(name)
    return Option.isSome(living) ? living.value : yield* notDeclared(name)
  })

const notDeclared = (name: Name) => refuse("NOT_FOUND", `${name} is not declared`, "GET /api/v2/volumes lists what is")

const deletesOf = (declaration: Declaration) =>
  Effect.gen(function* () {
    const store = yield* Store
    const { items } = yield* store.operations({ uid: declaration.uid, type: "delete", limit: 1000 })
    return items
  })

export const removedOnes = Effect.gen(function* () {
  const store = yield* Store
  const now = yield* Clock.currentTimeMillis
  return yield* store.removedSince(Answer.rfc3339(now - REMOVED_SHOWN_MS))
})

/** One declaration written, or one refusal. */
const commit = <R>(
  request: Request,
  draft: Draft<R>,
  precondition: Declare.Precondition,
  status: (change: Declare.Change) => number
): Effect.Effect<Stored, Failure, R | Writes> =>
  Effect.flatMap(Writes, (writes) =>
    writes.commit(request, draft, {
      retry: isUnconditional(precondition),
      answer: ({ changes: [change] }) =>
        change === undefined
          ? null
          : { status: status(change), response: { kind: "volume", uid: change.declaration.uid } }
    })
  ).pipe(
    Effect.catchIf(
      (failure) => failure._tag === "GenerationConflict" && !isUnconditional(precondition),
      (conflict) => Effect.fail(refuse("PRECONDITION_FAILED", conflict.message))
    )
  )

const isUnconditional = ({ if_match, if_none_match }: Declare.Precondition) => if_match === null && !if_none_match

/** What a write of one declaration answers: the plan it would cause, or what is stored. */
export const answerWrite = <R>(request: Request, draft: Draft<R>, precondition: Declare.Precondition) =>
  Effect.gen(function* () {
    const writes = yield* Writes
    if (yield* flag(request.query, "dry_run")) return Answer.ok(yield* writes.dryRun(request, draft, "changed"))
    const { declarations, draft: written } = yield* commit(request, draft, precondition, statusOf)
    const volume = yield* toAnswer(yield* onlyOne(declarations))
    return { ...answerVolume(volume), status: statusOf(yield* onlyOne(written.changes)) }
  })

const statusOf = ({ outcome }: Declare.Change) => (outcome === "created" ? 201 : 200)

const onlyOne = <A>([one]: ReadonlyArray<A>) =>
  Effect.fromNullable(one).pipe(Effect.orDieWith(() => new Error("a single write stored nothing")))

export const toAnswer = (declaration: Declaration) =>
  Effect.flatMap(Reconciler, (reconciler) =>
    Effect.map(reconciler.status(declaration), (status) => Answer.volume(declaration, status))
  )

export const answerVolume = (volume: Api.Volume): Answer.Answer => Answer.ok(volume, { etag: `"${volume.generation}"` })

/** The declaration as it is now; by uid, so that a name that was used again is not taken for it. */
const waitFor = (declaration: Declaration, wait: Wait.Wanted | null) => {
  const read = Effect.flatMap(newest(declaration), toAnswer)
  return wait === null
    ? read
    : Wait.until(read, (volume) => Wait.holds(volume.status, wait) || volume.removed_at !== null, {
        timeout_ms: wait.timeout_ms,
        period_ms: 1000
      })
}

const newest = (declaration: Declaration) =>
  Effect.gen(function* () {
    const store = yield* Store
    const living = yield* store.declaration(declaration.name)
    if (Option.isSome(living) && living.value.uid === declaration.uid) return living.value
    return (yield* removedOnes).find(({ uid }) => uid === declaration.uid) ?? declaration
  })

/** A name that cannot be a name is not declared. */
const isName = Schema.is(Name)

export const nameOf = (request: Request) => {
  const name = request.path["name"] ?? ""
  return isName(name) ? Effect.succeed(name) : refuse("NOT_FOUND", "no such name is declared")
}

const nameToWrite = (request: Request) => {
  const name = request.path["name"] ?? ""
  return isName(name)
    ? Effect.succeed(name)
    : Effect.fail(
        Document.invalid(
          "name: expected 1-253 characters of A-Z a-z 0-9 . _ - starting with a letter or digit, for example pgtest2-disk-0"
        )
      )
}

const policyOf = (request: Request) => {
  const policy = request.query.get("policy")
  if (policy === null || Schema.is(DeletionPolicy)(policy)) return Effect.succeed(policy)
  return refuse("INVALID_REQUEST", `policy: expected ${DeletionPolicy.literals.join(" or ")}`)
}

export const preconditionOf = (request: Request) =>
  Effect.gen(function* () {
    const match = request.headers["if-match"]
    const none = request.headers["if-none-match"]
    if (none !== undefined && none.trim() !== "*") {
      return yield* refuse("INVALID_REQUEST", "If-None-Match: expected *, which asks that the name is new")
    }
    return { if_match: match === undefined ? null : yield* etags(match), if_none_match: none !== undefined }
  })

const etags = (text: string) => {
  if (text.trim() === "*") return Effect.succeed("any" as const)
  const tags = text.split(",").map((tag) => /^(?:W\/)?"?([0-9]{1,15})"?$/u.exec(tag.trim())?.[1])
  return tags.every((tag) => tag !== undefined)
    ? Effect.succeed(tags.map(Number))
    : refuse("INVALID_REQUEST", 'If-Match: expected the ETag of an answer, such as "3"')
}
