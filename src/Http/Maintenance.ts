import { Clock, Effect, Schema } from "effect"
import * as Plan from "../../reconciler/Plan.ts"
import { Reconciler } from "../../reconciler/Reconciler.ts"
import { type Maintenance, Store } from "../../reconciler/Store.ts"
import { type MaintenanceAnswer, MaintenanceBody } from "../../schema/Api.ts"
import { isMoment } from "../../schema/Ids.ts"
import * as Answer from "./Answer.ts"
import * as Idempotency from "./Idempotency.ts"
import * as Plans from "./Plans.ts"
import { BODY_BYTES_MAX, flag, refuse, type Request } from "./Request.ts"

/** How long an answer waits for the pass that carries it out; what is stored holds all the same. */
const PASS_MS_MAX = 20_000

export const get = Effect.fnUntraced(function* () {
  return Answer.ok(yield* current)
})

/**
 * Nothing is begun from the answer on: a pass has run since it was stored, and there is one at a time. Beginning again
 * changes the reason and the end, and calls off an end that was asked for.
 */
export const begin = Effect.fnUntraced(function* (request: Request) {
  const { reason, by, until } = yield* bodyOf(request)
  const now = yield* Clock.currentTimeMillis
  if (until !== undefined && !(isMoment(until) && Date.parse(until) > now)) {
    return yield* refuse("INVALID_REQUEST", `until: expected a time to come, found ${until}`)
  }
  if (yield* flag(request.query, "dry_run")) return yield* Plans.dryRun(request, () => [])
  const store = yield* Store
  const { since } = (yield* store.maintenance) ?? { since: Answer.rfc3339(now) }
  yield* change(request, { reason, by, since, until: until ?? null, ending: false })
  return Answer.ok(yield* current)
})

/**
 * It is over when a whole observation has shown what is pending; until then it stays, and shows as ending. A dry run
 * names whose removals would wait for approval.
 */
export const end = Effect.fnUntraced(function* (request: Request) {
  const store = yield* Store
  const maintenance = yield* store.maintenance
  const pending = maintenance === null ? () => [] : Plan.pendingRemovals
  if (yield* flag(request.query, "dry_run")) return yield* Plans.dryRun(request, pending)
  // The one that was looked at: another that began meanwhile is not ended by this.
  if (maintenance !== null) yield* change(request, { ...maintenance, ending: true }, maintenance)
  return Answer.ok(yield* current)
})

/** Stored for sure, then carried out as soon as can be: a pass that cannot be waited for comes by itself. */
const change = (request: Request, maintenance: Maintenance, standing?: Maintenance) =>
  Effect.gen(function* () {
    const store = yield* Store
    const reconciler = yield* Reconciler
    const beside = standing === undefined ? {} : { standing }
    // With its answer, for a client that leaves while the pass runs may repeat it when another maintenance stands.
    const answer = Idempotency.alongside(request.key, 200, { kind: "maintenance" })
    yield* store.setMaintenance(maintenance, { ...beside, ...answer }).pipe(Effect.uninterruptible)
    yield* reconciler.sync.pipe(Effect.timeout(PASS_MS_MAX), Effect.ignoreLogged)
  })

export const current = Effect.gen(function* () {
  const store = yield* Store
  const approved = new Set((yield* store.approvals(yield* Clock.currentTimeMillis)).map(Plan.heldKey))
  const withheld = (yield* store.withheld).filter((held) => !approved.has(Plan.heldKey(held)))
  return { maintenance: yield* store.maintenance, withheld } satisfies MaintenanceAnswer
})

const bodyOf = (request: Request) =>
  Effect.flatMap(request.json(BODY_BYTES_MAX), (body) =>
    Schema.decodeUnknown(MaintenanceBody)(body, { onExcessProperty: "error" }).pipe(
      Effect.mapError(() =>
        refuse(
          "INVALID_REQUEST",
          'expected {"reason": "…", "by": "…"}, with "until" as a UTC time where it ends by itself, and nothing else'
        )
      )
    )
  )
