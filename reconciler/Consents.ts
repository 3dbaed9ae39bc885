import { Clock, Effect, Ref } from "effect"
import type { Declaration } from "../schema/Declaration.ts"
import type { Uid, VmId } from "../schema/Ids.ts"
import { hasEnded, type Operation } from "../schema/Operation.ts"

/** A person's consent is for what was looked at just then, ms. */
const KEPT_MS = 300_000

/** What somebody agreed to: that the NBD clients of a volume are ended, so that it can leave as it is declared now. */
export interface Consent {
  readonly generation: number
  /** Who, for the log. */
  readonly by: string
}

export interface Given {
  /** Since when it counts, ms; it may be a time to come. */
  readonly since: number
  readonly by: string
}

export interface Consents {
  readonly give: (uid: Uid, consent: Consent) => Effect.Effect<void>
  /** All that stand now: those given, and those that lie in open version 1 calls. */
  readonly standing: (
    calls: ReadonlyArray<Operation>,
    declarations: ReadonlyArray<Declaration>
  ) => Effect.Effect<ReadonlyMap<Uid, Given>>
  /** The volumes have gone, or stay: what was agreed to is over. */
  readonly forget: (uids: ReadonlyArray<Uid>) => Effect.Effect<void>
  readonly clear: Effect.Effect<void>
}

/** `drain_ms`: how long a version 1 call waits for clients before it ends them (contract §2). */
export const make = Effect.fn("Consents.make")(function* (appliance: VmId, drain_ms: number) {
  const given = yield* Ref.make<ReadonlyMap<Uid, Consent & { readonly at: number }>>(new Map())

  return {
    give: (uid, consent) =>
      Effect.flatMap(Clock.currentTimeMillis, (at) =>
        Ref.update(given, (map) => new Map(map).set(uid, { ...consent, at }))
      ),
    standing: Effect.fnUntraced(function* (calls, declarations) {
      const now = yield* Clock.currentTimeMillis
      const all = yield* Ref.get(given)
      const found = new Map<Uid, Given>()
      for (const call of calls) {
        if (hasEnded(call) || !leaves(call, appliance)) continue
        const since = Date.parse(call.created_at) + drain_ms
        const earlier = found.get(call.uid)
        if (earlier === undefined || since < earlier.since) {
          found.set(call.uid, { since, by: `the ${call.type} ${call.id} of ${call.actor}` })
        }
      }
      for (const { generation, uid } of declarations) {
        const one = all.get(uid)
        // Written since, it is not what the person looked at; a clock that was set back makes it no younger.
        if (one === undefined || one.generation !== generation || Math.abs(now - one.at) > KEPT_MS) continue
        found.set(uid, { since: one.at, by: one.by })
      }
      return found
    }),
    forget: (uids) => Ref.update(given, (map) => new Map([...map].filter(([uid]) => !uids.includes(uid)))),
    clear: Ref.set(given, new Map())
  } satisfies Consents as Consents
})

/** The call wishes that the volume, or its export, goes from the appliance. */
const leaves = ({ wish }: Operation, appliance: VmId): boolean => {
  if (wish === null) return false
  const { attached_to, export_wanted } = wish.spec
  const elsewhere = attached_to !== undefined && attached_to !== null && !isAppliance(attached_to, appliance)
  return wish.remove || elsewhere || export_wanted === false
}

const isAppliance = (place: string, appliance: VmId) => place === "appliance" || place === appliance
