import { Clock, Effect, Schema } from "effect"
import { type Planned, Reconciler } from "../../reconciler/Reconciler.ts"
import { Store } from "../../reconciler/Store.ts"
import { ApproveBody, type Approved, type Drift, type DriftItem, type DryRun } from "../../schema/Api.ts"
import type { Held, Plan, PlanItem } from "../../schema/Action.ts"
import type { Declaration } from "../../schema/Declaration.ts"
import * as Answer from "./Answer.ts"
import { RequestRefused } from "./ErrorAnswer.ts"
import * as Idempotency from "./Idempotency.ts"
import * as PlanAnswer from "./PlanAnswer.ts"
import { Provenance } from "./Provenance.ts"
import { BODY_BYTES_MAX, flag, refuse, type Request } from "./Request.ts"

/** How long an approval is valid. The preconditions of what it lets run are checked again all the same. */
const APPROVAL_MS = 3_600_000

const planNow = Effect.flatMap(Reconciler, (reconciler) => reconciler.plan(null))

export const plan = Effect.fnUntraced(function* (request: Request) {
  const place = yield* PlanAnswer.placeOf(request, yield* PlanAnswer.Site)
  return Answer.ok(PlanAnswer.make(place, yield* planNow))
})

export const drift = Effect.fnUntraced(function* () {
  const provenance = yield* Provenance
  const planned = yield* planNow
  return Answer.ok(yield* provenance.explain(driftOf(planned), planned))
})

export const driftOf = ({ plan, inventory, declarations }: Planned): Drift => {
  const byUid = new Map(declarations.map((declaration) => [declaration.uid, declaration]))
  const items = plan.items.flatMap((item) =>
    item.drift || item.blocked?.reason === "LateEffect" ? [driftItem(item, byUid.get(item.uid))] : []
  )
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

/** The dry run of what writes no declaration: the plan as it is. `touched`: whom it would concern. */
export const dryRun = (request: Request, touched: (plan: Plan) => ReadonlyArray<Held>) =>
  Effect.gen(function* () {
    const planned = yield* planNow
    const place = yield* PlanAnswer.placeOf(request, yield* PlanAnswer.Site)
    const concerned = touched(planned.plan)
    const changed = [...new Set(concerned.map(({ name }) => name))]
    const answer = PlanAnswer.make(place, planned)
    return Answer.ok({ ...answer, created: [], changed, unchanged: [], removed: [] } satisfies DryRun)
  })

/**
 * Let the actions that are held now, or were withheld when a maintenance ended, under exactly this digest, run. Of the
 * withheld ones those that are left: what was written since, or is done, needs nobody's word any more.
 */
export const approve = Effect.fnUntraced(function* (request: Request) {
  const store = yield* Store
  const reconciler = yield* Reconciler
  const { digest } = yield* Effect.flatMap(request.json(BODY_BYTES_MAX), decodeApprove)
  const { plan } = yield* planNow
  const approved = heldUnder(digest, plan)
  if (approved.length === 0) return yield* otherDigest(plan)
  if (yield* flag(request.query, "dry_run")) return yield* dryRun(request, (now) => heldUnder(digest, now))
  const expires_at = (yield* Clock.currentTimeMillis) + APPROVAL_MS
  const body = { digest, approved, expires_at: Answer.rfc3339(expires_at) } satisfies Approved
  const { answer } = Idempotency.alongside(request.key, 200, { kind: "answer", body, headers: {} })
  yield* store
    .approve(
      approved.map((held) => ({ ...held, digest, expires_at })),
      answer
    )
    .pipe(Effect.andThen(reconciler.poke([...new Set(approved.map(({ uid }) => uid))])), Effect.uninterruptible)
  return Answer.ok(body)
})

const heldUnder = (digest: string, plan: Plan): ReadonlyArray<Held> =>
  plan.digest === digest
    ? plan.held
    : plan.withheld.flatMap(({ digest: own, ...held }) => (own === digest ? [held] : []))

const decodeApprove = (body: unknown) =>
  Schema.decodeUnknown(ApproveBody)(body, { onExcessProperty: "error" }).pipe(
    Effect.mapError(() =>
      refuse("INVALID_REQUEST", 'expected {"digest": "…"} with the digest of the plan, and nothing else')
    )
  )

const otherDigest = ({ digest, withheld }: Plan) => {
  const digests = [...new Set([digest ?? [], withheld.map((held) => held.digest)].flat())]
  return new RequestRefused({
    code: "CONFLICT",
    error: digests.length === 0 ? "nothing is held for approval now" : "what is held now has another digest",
    suggestion: "look at the plan again, and approve the digest it shows",
    details: { digest, digests }
  })
}
