import { assert, describe, it } from "@effect/vitest"
import { Clock, Effect } from "effect"
import { Reconciler } from "../../reconciler/Reconciler.ts"
import { Store } from "../../reconciler/Store.ts"
import { exportNameOf, type VolumeId } from "../../schema/Ids.ts"
import * as SimulatedNbd from "../../src/Simulation/Nbd.ts"
import * as Cloud from "../support/Cloud.ts"
import * as Lab from "./V1Lab.ts"

/** Version 1 calls and declarations that take a volume from under its NBD clients, in virtual time. */
const { appliance } = Cloud
const { attach, completed, created, detach, quiet, remove, whereIs } = Lab

const connect = (lab: Cloud.Lab, id: VolumeId, peer: string) =>
  Effect.map(
    Clock.currentTimeMillis,
    (now) => SimulatedNbd.connect(lab.nbd, exportNameOf(id), peer, now) ?? assert.fail(`${peer} is not let in`)
  )

/** A volume on the appliance, exported, with clients. */
const held = (lab: Cloud.Lab, api: Lab.Api, name: string, ...peers: ReadonlyArray<string>) =>
  Effect.gen(function* () {
    const id = yield* created(api, name)
    yield* completed(api, attach(api, id, appliance))
    for (const peer of peers) yield* connect(lab, id, peer)
    return id
  })

const peers = (lab: Cloud.Lab) => lab.nbd.holders.map(({ peer }) => peer)

const blocked = (name: string) =>
  Effect.gen(function* () {
    const { plan } = yield* (yield* Reconciler).view
    return plan?.items.find((item) => item.name === name)?.blocked?.reason ?? null
  })

const declaredOf = (id: VolumeId) =>
  Effect.gen(function* () {
    const all = yield* Effect.orDie((yield* Store).declarations)
    return all.find(({ binding }) => binding.volume_id === id) ?? assert.fail("it is not declared")
  })

describe("A version 1 call under NBD clients", () => {
  for (const [what, call] of [
    ["detaches", detach],
    ["deletes", remove]
  ] as const) {
    it.effect(`${what} after it has waited twenty seconds and ended that volume's clients alone (N10, S11)`, () => {
      const lab = Cloud.make()
      return Lab.run(lab, (api) =>
        Effect.gen(function* () {
          const id = yield* held(lab, api, "disk-0", "10.0.0.7:1", "10.0.0.8:1")
          yield* held(lab, api, "disk-1", "10.0.0.9:1")
          const asked = yield* Lab.accepted(call(api, id))
          yield* Cloud.pass(3_000)
          assert.isTrue(lab.nbd.fenced.has(exportNameOf(id)), "nobody new is let in")
          yield* Cloud.pass(15_000)
          assert.lengthOf(peers(lab), 3, "who is there has twenty seconds")
          const end = yield* Lab.ended(api, asked)
          assert.strictEqual(end.status, "completed", JSON.stringify(end))
          assert.isBelow(end.took, 20_000, "far before a client of version 1 gives up")
          assert.deepStrictEqual(peers(lab), ["10.0.0.9:1"])
          assert.notStrictEqual(yield* whereIs(lab, id), appliance)
          yield* quiet(lab)
        })
      )
    })
  }

  it.effect("goes on at once when the last client leaves by itself", () => {
    const lab = Cloud.make()
    return Lab.run(lab, (api) =>
      Effect.gen(function* () {
        const id = yield* held(lab, api, "disk-0", "10.0.0.7:1")
        const asked = yield* Lab.accepted(detach(api, id))
        yield* Cloud.pass(5_000)
        SimulatedNbd.leave(lab.nbd, lab.nbd.holders[0]?.pid ?? 0)
        assert.isBelow((yield* Lab.ended(api, asked)).took, 12_000)
        yield* quiet(lab)
      })
    )
  })
})

describe("A declaration that takes a volume from under NBD clients", () => {
  it.effect(
    "drains for a minute, is held as InUse with the fence up, and goes on when the last client leaves (N10)",
    () => {
      const lab = Cloud.make()
      return Lab.run(lab, (api) =>
        Effect.gen(function* () {
          const id = yield* held(lab, api, "disk-0", "10.0.0.7:1")
          const { name } = yield* declaredOf(id)
          yield* Cloud.declare(name, { attached_to: "none", export_wanted: false })
          yield* Cloud.pass(50_000, 1_000)
          assert.strictEqual(yield* blocked(name), "Draining")
          yield* Cloud.pass(20_000, 1_000)
          assert.strictEqual(yield* blocked(name), "InUse")
          yield* Cloud.pass(600_000, 5_000)
          assert.deepStrictEqual(peers(lab), ["10.0.0.7:1"], "nobody agreed to its end")
          const { body } = yield* api.send("GET", `/exports/${id}`)
          assert.deepInclude(body, { status: "fenced", served: false })
          assert.deepInclude((body["connections"] as ReadonlyArray<Lab.Json>)[0], { peer: "10.0.0.7:1" })
          // Without a word: only a look at who is connected can tell.
          lab.nbd.holders.splice(0)
          yield* Cloud.pass(12_000, 500)
          assert.isNull(yield* whereIs(lab, id))
          yield* quiet(lab)
        })
      )
    }
  )

  it.effect(
    "that is withdrawn lifts the fence: clients come again, and those that were there never noticed (L7)",
    () => {
      const lab = Cloud.make()
      return Lab.run(lab, (api) =>
        Effect.gen(function* () {
          const id = yield* held(lab, api, "disk-0", "10.0.0.7:1")
          const { name } = yield* declaredOf(id)
          yield* Cloud.declare(name, { attached_to: "none", export_wanted: false })
          yield* Cloud.pass(5_000)
          assert.isTrue(lab.nbd.fenced.has(exportNameOf(id)))
          yield* Cloud.declare(name, { attached_to: "appliance", export_wanted: true })
          yield* Cloud.pass(10_000)
          assert.deepStrictEqual([...lab.nbd.fenced.keys()], [])
          yield* connect(lab, id, "10.0.0.8:1")
          assert.deepStrictEqual(peers(lab), ["10.0.0.7:1", "10.0.0.8:1"])
          assert.deepInclude((yield* api.send("GET", `/exports/${id}`)).body, { status: "active", served: true })
          yield* quiet(lab)
        })
      )
    }
  )

  it.effect("goes on once somebody agrees to their end, and no agreement outlives its wish (S15)", () => {
    const lab = Cloud.make()
    return Lab.run(lab, (api) =>
      Effect.gen(function* () {
        const id = yield* held(lab, api, "disk-0", "10.0.0.7:1")
        const { generation, name, uid } = yield* declaredOf(id)
        const reconciler = yield* Reconciler
        yield* reconciler.endClients(uid, { generation, by: "alice" })
        yield* Cloud.declare(name, { attached_to: "none", export_wanted: false })
        yield* Cloud.pass(30_000, 1_000)
        assert.lengthOf(peers(lab), 1, "what was agreed to for another generation is over")
        yield* reconciler.endClients(uid, { generation: generation + 1, by: "alice" })
        yield* Cloud.pass(12_000, 500)
        assert.deepStrictEqual(peers(lab), [])
        assert.isNull(yield* whereIs(lab, id))
        yield* quiet(lab)
      })
    )
  })
})
