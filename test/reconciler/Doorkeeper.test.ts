import { assert, describe, it } from "@effect/vitest"
import { Effect, Option, Ref } from "effect"
import * as Doorkeeper from "../../reconciler/Doorkeeper.ts"
import { isForFence } from "../../reconciler/Gate.ts"
import type { Maintenance, NewEvent } from "../../reconciler/Store.ts"
import type { Guard, PlanItem } from "../../schema/Action.ts"
import { NbdUnavailable, StoreUnavailable } from "../../schema/Errors.ts"
import { exportNameOf, type Uid } from "../../schema/Ids.ts"
import * as Worlds from "../support/Worlds.ts"

const [first, second] = [Worlds.uidOf(1), Worlds.uidOf(2)] as const
const name = exportNameOf(Worlds.volumeId(1))
const guardOf = (tag: Guard["_tag"], export_name = name): Guard => {
  const about = { export_name, reason: "the volume leaves" }
  return tag === "EndClients" ? { _tag: tag, ...about, device: "252:98" } : { _tag: tag, ...about }
}

const declarations = [first, second].map((uid, n) =>
  Worlds.declaration(`disk-${uid.slice(-1)}`, { uid, binding: Worlds.settledBinding(Worlds.volumeId(n + 1)) })
)
const item = (uid: Uid, guard: Guard | null, generation = 1) =>
  ({ uid, name: `disk-${uid.slice(-1)}`, guard, generation }) as PlanItem

const client = { pid: 42, command: "nbd-server", device: "252:98", peer: "10.0.0.7:4000", since: null }
const inventory = Worlds.inventory({ nbd: Worlds.nbd({ holders: [client] }) })

/** Guards over ports that note what is asked of them; `broken` names the export with which nothing works. */
const posted = (broken = "", database = true, maintenance: Maintenance | null = null) =>
  Effect.gen(function* () {
    const done = yield* Ref.make<ReadonlyArray<string>>([])
    const events: Array<NewEvent> = []
    const astray = new Set<string>()
    const failures: Array<readonly [Uid, string]> = []
    const note = (what: string, export_name: string) =>
      export_name === broken
        ? Effect.fail(new NbdUnavailable({ detail: "no space left" }))
        : Ref.update(done, (all) => [...all, what])
    const guards = yield* Doorkeeper.make(
      {
        fence: (one) => Effect.flatMap(isForFence, (only) => note(only ? "fence" : "fence, asking for the term", one)),
        release: (one) => Effect.flatMap(isForFence, (only) => note(only ? "release as a fence" : "release", one)),
        endClients: (device) => Effect.as(note(`end ${device}`, device), 2)
      },
      {
        declaration: (wanted) => Effect.succeed(Option.fromNullable(declarations.find((one) => one.name === wanted))),
        maintenance: Effect.succeed(maintenance),
        record: (event) =>
          database
            ? Effect.sync(() => void events.push(event))
            : new StoreUnavailable({ detail: "gone", outcome_unknown: false })
      },
      {
        astray: Effect.sync(() => astray),
        note: (one) => Effect.sync(() => void astray.add(one)),
        ring: Ref.update(done, (all) => [...all, "look"])
      },
      (uid, message) => Effect.sync(() => void failures.push([uid, message]))
    )
    const run = (
      items: ReadonlyArray<PlanItem>,
      stopped: ReadonlySet<Uid> = new Set(),
      consents = new Map([[first, { since: 0, by: "alice" }]]),
      seen = inventory
    ) => guards({ items, stopped, inventory: seen, declarations, consents })
    return { run, done: Ref.get(done), events, astray, failures }
  })

describe("the guards of a plan", () => {
  it.effect("are carried out, answer whom to look at again, and are told once however often they are asked for", () =>
    Effect.gen(function* () {
      const { done, events, run } = yield* posted()
      for (let pass = 0; pass < 3; pass++)
        assert.deepStrictEqual(yield* run([item(first, guardOf("Fence")), item(second, null)]), [first])
      assert.deepStrictEqual(yield* done, ["fence", "fence", "fence"])
      yield* run([item(first, guardOf("Release"))])
      yield* run([item(first, null)])
      yield* run([item(first, guardOf("Fence"))])
      assert.deepStrictEqual(
        events.map(({ kind, uid }) => [kind, uid]),
        [
          ["fenced", first],
          ["released", first],
          ["fenced", first]
        ]
      )
    })
  )

  it.effect("that end clients say who they were, and who agreed to that", () =>
    Effect.gen(function* () {
      const { events, run } = yield* posted()
      yield* run([item(first, guardOf("EndClients"))])
      const [event] = events
      assert.strictEqual(event?.kind, "clients_ended")
      for (const word of ["2 ended", "10.0.0.7:4000", "42", "alice"]) assert.include(event?.message, word)
    })
  )

  it.effect("that cannot be carried out, or not be written down, hold up neither the others nor the pass (S19)", () =>
    Effect.gen(function* () {
      const { done, run } = yield* posted("full")
      yield* run([item(first, guardOf("Fence", "full")), item(second, guardOf("Fence"))])
      assert.deepStrictEqual(yield* done, ["fence"])
      const away = yield* posted("", false)
      yield* away.run([item(first, guardOf("Fence"))])
      assert.deepStrictEqual(yield* away.done, ["fence"])
    })
  )

  it.effect("of a volume whose invariants are violated fence it, and do nothing else (S24)", () =>
    Effect.gen(function* () {
      const { done, run } = yield* posted()
      const stopped = new Set([first])
      for (const tag of ["Release", "EndClients", "Fence"] as const) yield* run([item(first, guardOf(tag))], stopped)
      assert.deepStrictEqual(yield* done, ["fence"])
    })
  )

  it.effect("end nobody for a wish that is over, nor in a maintenance that has begun (S15)", () =>
    Effect.gen(function* () {
      const { done, run } = yield* posted()
      yield* run([item(first, guardOf("EndClients"), 7)])
      assert.deepStrictEqual(yield* done, [])
      yield* run([item(first, guardOf("EndClients"), 1)])
      assert.deepStrictEqual(yield* done, ["end 252:98"])
      const begun = { reason: "array work", by: "ann", since: "2026-03-01T12:00:00Z", until: null, ending: false }
      const held = yield* posted("", true, begun)
      yield* held.run([item(first, guardOf("EndClients"), 1)])
      assert.deepStrictEqual(yield* held.done, [])
    })
  )

  it.effect(
    "lift no fence of a name that strayed since the plan, and have the sentry look after any they lift (S3)",
    () =>
      Effect.gen(function* () {
        const { astray, done, run } = yield* posted()
        astray.add(name)
        yield* run([item(first, guardOf("Release"))])
        assert.deepStrictEqual(yield* done, [])
        astray.clear()
        yield* run([item(first, guardOf("Release"))])
        assert.deepStrictEqual(yield* done, ["release", "look"])
      })
  )

  it.effect("remember a name behind which a GO alone showed another disk, and none that is only to go (S3, D4)", () =>
    Effect.gen(function* () {
      const { astray, run } = yield* posted()
      const [id, other] = [Worlds.volumeId(1), Worlds.volumeId(2)] as const
      const served = (letter: string) =>
        Worlds.inventory({
          guest: Worlds.guest([Worlds.device(id, "b"), Worlds.device(other, "c")]),
          nbd: Worlds.nbd({
            sections: [Worlds.section(id, { device: Worlds.device(id, "b").identity })],
            verifications: [Worlds.verification(id, letter)]
          })
        })
      yield* run([item(first, guardOf("Fence"))], new Set(), new Map(), served("b"))
      assert.deepStrictEqual([...astray], [])
      yield* run([item(first, guardOf("Fence"))], new Set(), new Map(), served("c"))
      assert.deepStrictEqual([...astray], [name])
    })
  )

  it.effect("that cannot open an export again make it back off, and say why; a closed gate does not (N4, L4)", () =>
    Effect.gen(function* () {
      const { astray, failures, run } = yield* posted("full")
      yield* run([item(second, guardOf("Fence", "full"))])
      astray.add(name)
      yield* run([item(first, guardOf("Release"))])
      assert.deepStrictEqual(failures, [])
      yield* run([item(first, guardOf("Release", "full"))])
      assert.deepStrictEqual(
        failures.map(([uid]) => uid),
        [first]
      )
      assert.include(failures[0]?.[1], "no space left")
      const away = yield* posted("", false)
      yield* away.run([item(first, guardOf("Release"))])
      assert.deepStrictEqual(away.failures, [])
    })
  )
})
