import { Clock, Effect, Schema } from "effect"
import { type Planned, Reconciler } from "../../reconciler/Reconciler.ts"
import { Store } from "../../reconciler/Store.ts"
import { ApproveBody, type Approved, type Drift, type DriftItem } from "../../schema/Api.ts"
import type { PlanItem } from "../../schema/Action.ts"
import type { Declaration } from "../../schema/Declaration.ts"
import * as Answer from "./Answer.ts"
import { RequestRefused } from "./ErrorAnswer.ts"
import * as PlanAnswer from "./PlanAnswer.ts"
import { BODY_BYTES_MAX, refuse, type Request } from "./Request.ts"

/** How long an approval is valid. The preconditions of what it lets run are checked again all the same. */
const APPROVAL_MS = 3_600_000

const planNow = Effect.flatMap(Reconciler, (reconciler) => reconciler.plan(null))

export const plan = Effect.fn("Plans.plan")(function* (request: Request) {
  const place = PlanAnswer.placeOf(request, yield* PlanAnswer.Site)
  return Answer.ok(PlanAnswer.make(place, yield* planNow))
})

export const drift = Effect.fn("Plans.drift")(function* () {
  return Answer.ok(driftOf(yield* planNow))
})

export const driftOf = ({ plan, inventory, declarations }: Planned): Drift => {
  const byUid = new Map(declarations.map((declaration) => [declaration.uid, declaration]))
  const items = plan.items.flatMap((item) => (item.drift ? [driftItem(item, byUid.get(item.uid))] : []))
  return { items, at: Answer.rfc3339(plan.at), sources: Answer.sources(inventory) }
}

const driftItem = (item: PlanItem, declaration: Declaration | undefined): DriftItem => {
  const since = declaration?.binding.drift_since ?? null
  return {
    name: item.name,
    uid: item.uid,
    volume_id: item.volume_id,
    aspect: item.gap,
    message: item.chain[0]?.reason ?? item.blocked?.message ?? "is not as declared",
    first_seen: since === null ? null : Answer.rfc3339(since),
    by: null,
    next_actions: item.chain.map(({ _tag }) => _tag),
    blocked: item.blocked
  }
}

/** Let the actions that are held now, under exactly this digest, run. */
export const approve = Effect.fn("Plans.approve")(function* (request: Request) {
  const store = yield* Store
  const reconciler = yield* Reconciler
  const body = yield* Effect.flatMap(request.json(BODY_BYTES_MAX), decodeApprove)
  const { plan } = yield* planNow
  if (plan.digest === null || plan.digest !== body.digest) return yield* otherDigest(plan.digest)
  const expires_at = (yield* Clock.currentTimeMillis) + APPROVAL_MS
  yield* store
    .approve(plan.held.map((held) => ({ ...held, digest: body.digest, expires_at })))
    .pipe(Effect.andThen(reconciler.poke([...new Set(plan.held.map(({ uid }) => uid))])), Effect.uninterruptible)
  return Answer.ok({
    digest: body.digest,
    approved: plan.held,
    expires_at: Answer.rfc3339(expires_at)
  } satisfies Approved)
})

const decodeApprove = (body: unknown) =>
  Schema.decodeUnknown(ApproveBody)(body, { onExcessProperty: "error" }).pipe(
    Effect.mapError(() =>
      refuse("INVALID_REQUEST", 'expected {"digest": "…"} with the digest of the plan, and nothing else')
    )
  )

const otherDigest = (digest: string | null) =>
  new RequestRefused({
    code: "CONFLICT",
    error: digest === null ? "nothing is held for approval now" : "what is held now has another digest",
    suggestion: "look at the plan again, and approve the digest it shows",
    details: { digest }
  })
