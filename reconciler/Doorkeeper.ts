import { Cause, Duration, Effect, Option, Ref } from "effect"
import type { Guard, PlanItem } from "../schema/Action.ts"
import type { Declaration } from "../schema/Declaration.ts"
import { PreconditionLost } from "../schema/Errors.ts"
import type { Uid } from "../schema/Ids.ts"
import type { Inventory } from "../schema/Inventory.ts"
import type { Given } from "./Consents.ts"
import { forFence } from "./Gate.ts"
import * as LogFields from "./LogFields.ts"
import * as Merge from "./Merge.ts"
import * as Metrics from "./Metrics.ts"
import type { Nbd } from "./Nbd.ts"
import type { Sentry } from "./Sentry.ts"
import * as Served from "./Served.ts"
import type { EventKind, Store } from "./Store.ts"
import type { Wake } from "./Wake.ts"

/** Each is a small file or a few signals; past this the pass goes on, and asks for it again. */
const LIMIT = Duration.seconds(10)

interface Round {
  readonly items: ReadonlyArray<PlanItem>
  /** Invariants were violated about these: nobody is let in or put out for them any more, but they may be fenced (S24). */
  readonly stopped: ReadonlySet<Uid>
  readonly inventory: Inventory
  readonly declarations: ReadonlyArray<Declaration>
  readonly consents: ReadonlyMap<Uid, Given>
}

/** Carries the guards of a plan out: who is let in to an export, and who is put out. */
export const make = Effect.fn("Doorkeeper.make")(function* (
  nbd: Pick<Nbd["Type"], "endClients" | "fence" | "release">,
  store: Pick<Store["Type"], "declaration" | "maintenance" | "record">,
  sentry: Pick<Sentry, "astray" | "note" | "ring">,
  failed: Wake["failed"]
) {
  /** What was told of each volume last: what has to be asked for again in every pass is told once. */
  const told = yield* Ref.make<ReadonlyMap<Uid, string>>(new Map())

  const tell = Effect.fnUntraced(function* (item: PlanItem, guard: Guard, message: string) {
    const { name, uid } = item
    const key = `${guard._tag} ${guard.export_name}`
    if ((yield* Ref.get(told)).get(uid) === key && guard._tag !== "EndClients") return
    yield* Ref.update(told, (map) => new Map(map).set(uid, key))
    yield* Effect.logInfo(words[guard._tag]).pipe(Effect.annotateLogs({ because: message }))
    yield* store.record({ kind: kinds[guard._tag], name, uid, actor: "reconciler", message })
  })

  /** What was wished since the plan counts: a connection that was ended cannot be given back (S15). */
  const stillWished = Effect.fnUntraced(function* ({ generation, name, uid }: PlanItem) {
    const found = yield* store.declaration(name)
    const same = Option.exists(found, (one) => one.uid === uid && one.generation === generation)
    if (!same || (yield* store.maintenance) !== null) {
      return yield* new PreconditionLost({
        detail: `${name} was planned for generation ${generation}, and that is over`
      })
    }
  })

  /** A link that strayed since the plan keeps its fence; one that strays in this very moment is found right after. */
  const release = Effect.fnUntraced(function* (name: string) {
    if ((yield* sentry.astray).has(name)) return yield* new PreconditionLost({ detail: `${name} led astray just now` })
    yield* nbd.release(name)
    yield* sentry.ring
  })

  /** Shut, it shows a GO nothing wrong any more: remembered, or it would be open again in the next pass, and wrong. */
  const fence = (item: PlanItem, name: string, round: Round) =>
    Effect.andThen(isAstray(item, round) ? sentry.note(name) : Effect.void, forFence(nbd.fence(name)))

  /** How many connections it ended; null where it ends none. */
  const perform = (item: PlanItem, guard: Guard, round: Round) => {
    switch (guard._tag) {
      case "Fence":
        return Effect.as(fence(item, guard.export_name, round), null)
      case "Release":
        return Effect.as(release(guard.export_name), null)
      case "EndClients":
        return Effect.andThen(stillWished(item), nbd.endClients(guard.device))
    }
  }

  /** A fence is asked for again in every pass; that nobody can be let in backs off and says so, as other repairs do. */
  const missed = ({ uid }: PlanItem, { _tag, export_name }: Guard, error: { _tag: string; message: string }) =>
    _tag === "Release" && error._tag !== "GateClosed" && error._tag !== "PreconditionLost"
      ? failed(uid, `${export_name} could not be opened again: ${error.message}`)
      : Effect.void

  const carryOut = (item: PlanItem, guard: Guard, round: Round) =>
    perform(item, guard, round).pipe(
      Effect.timeout(LIMIT),
      Effect.tapBoth({
        onSuccess: () => Metrics.guarded(guard._tag, "done"),
        onFailure: (error) => Effect.andThen(Metrics.guarded(guard._tag, "failed"), missed(item, guard, error))
      }),
      Effect.flatMap((ended) => (ended === 0 ? Effect.void : tell(item, guard, messageOf(item, guard, ended, round)))),
      Effect.catchTag("GateClosed", "PreconditionLost", (error) =>
        Effect.logDebug("not done for an export's clients", error.message)
      ),
      // One volume's trouble must not hold up the pass (S19): the guard is asked for again in the next one.
      Effect.catchAllCause((cause) =>
        Cause.isInterruptedOnly(cause)
          ? Effect.interrupt
          : Effect.logWarning("an export's clients could not be dealt with", cause)
      ),
      Effect.annotateLogs(LogFields.ofGuard(item, guard))
    )

  /** Answers the volumes for which something was tried: they are to be looked at again soon. */
  return Effect.fn("Doorkeeper.run")(function* (round: Round) {
    const quiet = round.items.flatMap(({ guard, uid }) => (guard === null ? [uid] : []))
    yield* Ref.update(told, (map) => without(map, quiet))
    const due = round.items.flatMap((item) =>
      item.guard === null || (round.stopped.has(item.uid) && item.guard._tag !== "Fence")
        ? []
        : [{ item, guard: item.guard }]
    )
    yield* Effect.forEach(due, ({ guard, item }) => carryOut(item, guard, round), { discard: true })
    return due.map(({ item }) => item.uid)
  })
})

/** Other bytes than the volume's were seen behind it. One that is only to go may be opened again at once. */
const isAstray = ({ uid }: PlanItem, { declarations, inventory }: Round): boolean => {
  const declaration = declarations.find((one) => one.uid === uid)
  if (declaration === undefined) return false
  const merged = Merge.make(inventory, [declaration])
  return Served.astray(merged, merged.view(declaration)) !== null
}

const words = {
  Fence: "new NBD clients are denied",
  Release: "NBD clients are let in again",
  EndClients: "NBD clients' connections were ended"
} as const satisfies Record<Guard["_tag"], string>

const kinds = { Fence: "fenced", Release: "released", EndClients: "clients_ended" } as const satisfies Record<
  Guard["_tag"],
  EventKind
>

const messageOf = ({ uid }: PlanItem, guard: Guard, ended: number | null, { consents, inventory }: Round): string => {
  if (guard._tag !== "EndClients") return guard.reason
  const holders = inventory.nbd._tag === "Known" ? inventory.nbd.value.holders : []
  const clients = holders.flatMap(({ device, peer, pid }) =>
    device === guard.device && peer !== null ? [`${peer} (process ${pid})`] : []
  )
  const by = consents.get(uid)?.by ?? "nobody known"
  return `${ended} ended, seen were ${clients.join(", ")}; agreed to by ${by}; ${guard.reason}`
}

const without = (map: ReadonlyMap<Uid, string>, uids: ReadonlyArray<Uid>): ReadonlyMap<Uid, string> =>
  uids.some((uid) => map.has(uid)) ? new Map([...map].filter(([uid]) => !uids.includes(uid))) : map
