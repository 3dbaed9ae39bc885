import { Effect, Schema } from "effect"
import * as Accept from "../../reconciler/Accept.ts"
import * as Declare from "../../reconciler/Declare.ts"
import { Reconciler } from "../../reconciler/Reconciler.ts"
import { Store } from "../../reconciler/Store.ts"
import { RetryBody } from "../../schema/Api.ts"
import type { Declaration } from "../../schema/Declaration.ts"
import type { Name } from "../../schema/Ids.ts"
import * as Answer from "./Answer.ts"
import { BODY_BYTES_MAX, flag, refuse, type Request } from "./Request.ts"
import { answerVolume, answerWrite, nameOf, preconditionOf, stored, toAnswer } from "./Volumes.ts"
import { single, Writes } from "./Writes.ts"

/** What is observed becomes the wish. Observed anew for this: a wish for what was once so would move the volume. */
export const accept = Effect.fnUntraced(function* (request: Request) {
  const name = yield* nameOf(request)
  const precondition = yield* preconditionOf(request)
  const context = yield* Effect.flatMap(Writes, (writes) => writes.context(request))
  const before = yield* stored(name)
  // What is being removed is refused below, whatever is observed of it.
  const wish = before.deletion === null ? yield* observedWish(before) : {}
  const draft = Effect.gen(function* () {
    const current = yield* stored(name)
    const change = yield* Declare.patch([current], { name, uid: null, spec: wish }, precondition, context)
    return isSame(before, current) ? single(change) : yield* another(name)
  })
  return yield* answerWrite(request, draft, precondition)
})

const observedWish = (declaration: Declaration) =>
  Effect.gen(function* () {
    const store = yield* Store
    const reconciler = yield* Reconciler
    const operations = yield* store.unresolved
    const { inventory, declarations } = yield* reconciler.plan(null)
    const sight = Accept.look(declaration, inventory, declarations, operations)
    switch (sight._tag) {
      case "Seen":
        return sight.wish
      case "Unseen":
        return yield* refuse("CLOUDSTACK_UNAVAILABLE", `${declaration.name}: ${sight.problem}`, "repeat the request")
      case "Unacceptable":
        return yield* refuse("CONFLICT", `${declaration.name}: ${sight.problem}`, sight.suggestion)
    }
  })

/** What is observed was compared with the one; written over a later wish it would take back what nobody looked at. */
const isSame = (before: Declaration, now: Declaration): boolean =>
  now.uid === before.uid && now.generation === before.generation && now.binding.volume_id === before.binding.volume_id

const another = (name: Name) =>
  refuse("CONFLICT", `${name} was written while it was looked at`, "look at it again, and decide again")

/**
 * The back-off ends. With `end_clients` the NBD clients that keep the volume from leaving are ended as well: consent to
 * that for the declaration as it is now, written to the history before it counts.
 */
export const retry = Effect.fnUntraced(function* (request: Request) {
  const name = yield* nameOf(request)
  const { end_clients = false } = yield* retryBody(request)
  const { if_match, if_none_match } = yield* preconditionOf(request)
  const current = yield* stored(name)
  const { generation, uid } = current
  if (if_none_match || (if_match !== null && if_match !== "any" && !if_match.includes(generation))) {
    return yield* refuse(
      "PRECONDITION_FAILED",
      `${name} is at generation ${generation}`,
      "look at it, and decide again"
    )
  }
  if (yield* flag(request.query, "dry_run")) {
    const writes = yield* Writes
    const kept = single({ outcome: "unchanged", declaration: current, write: null })
    const agreeing = new Set(end_clients ? [uid] : [])
    return Answer.ok(yield* writes.dryRun(request, Effect.succeed(kept), "changed", agreeing))
  }
  const reconciler = yield* Reconciler
  if (end_clients) {
    const store = yield* Store
    const by = request.actor_name
    const message = `NBD clients that keep generation ${generation} from leaving may be ended`
    yield* store.record({ kind: "clients_consented", name, uid, actor: by, message })
    yield* reconciler.endClients(uid, { generation, by })
  } else yield* reconciler.poke([uid])
  return answerVolume(yield* toAnswer(current))
})

const retryBody = (request: Request) =>
  Effect.flatMap(request.optionalJson(BODY_BYTES_MAX), (body) =>
    Schema.decodeUnknown(RetryBody)(body, { onExcessProperty: "error" }).pipe(
      Effect.mapError(() => refuse("INVALID_REQUEST", 'expected nothing, or {"end_clients": true} and nothing else'))
    )
  )
