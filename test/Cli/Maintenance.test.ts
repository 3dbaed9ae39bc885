import { assert, describe, it } from "@effect/vitest"
import { Effect, TestClock } from "effect"
import type { MaintenanceAnswer } from "../../schema/Api.ts"
import type { VolumeId } from "../../schema/Ids.ts"
import * as Maintenance from "../../src/Cli/Maintenance.ts"
import type { Client } from "../../src/Client/Client.ts"
import * as Fake from "./Fake.ts"
import * as Recording from "./Recording.ts"
import { A, volume } from "./Sample.ts"

const over: MaintenanceAnswer = { maintenance: null, withheld: [] }
const on: MaintenanceAnswer = {
  maintenance: { reason: "new cables", by: "alice", since: "2026-03-01T12:00:00Z", until: null, ending: false },
  withheld: []
}
const withheld: MaintenanceAnswer = {
  maintenance: null,
  withheld: [
    {
      uid: volume("b", A).uid,
      name: volume("b", A).name,
      generation: 1,
      volume_id: A as VolumeId,
      action: "detach",
      digest: "d9"
    }
  ]
}

const run = (line: string, known: Partial<Client>) => {
  const recording = Recording.make()
  return Effect.map(Fake.run(Maintenance.maintenance(Fake.invocation(line)), known, recording.layer), (outcome) => ({
    outcome,
    text: recording.results()
  }))
}

describe("maintenance", () => {
  it.effect("shows how things stand", () =>
    Effect.gen(function* () {
      const none = yield* run("maintenance", { maintenance: Effect.succeed(over) })
      assert.deepStrictEqual(none, { outcome: "done", text: "No maintenance: volumed acts.\n" })
      const some = yield* run("maintenance", { maintenance: Effect.succeed(on) })
      assert.include(some.text, "Maintenance since 2026-03-01T12:00:00Z, by alice: new cables")
    })
  )

  it.effect("begins with a plan, a reason, who asks, and an end", () => {
    let asked: unknown = null
    const known: Partial<Client> = {
      beginMaintenanceDryRun: () => Effect.succeed(Fake.dryRun()),
      beginMaintenance: (body) =>
        Effect.as(
          Effect.sync(() => void (asked = body)),
          on
        )
    }
    return Effect.gen(function* () {
      yield* TestClock.setTime(Date.parse("2026-03-01T12:00:00Z"))
      const { outcome, text } = yield* run("maintenance on --reason cables --for 2h", known)
      assert.strictEqual(outcome, "done")
      assert.match(text, /^Plan: nothing to do[^]*Maintenance since/u)
      assert.deepStrictEqual(asked, { reason: "cables", by: "alice@test", until: "2026-03-01T14:00:00.000Z" })
    })
  })

  it.effect("needs a reason to begin, and takes none otherwise", () =>
    Effect.gen(function* () {
      assert.include(String(yield* Effect.flip(run("maintenance on", {}))), "--reason TEXT is missing")
      assert.include(String(yield* Effect.flip(run("maintenance off --reason x", {}))), "volumed maintenance on")
    })
  )

  it.effect("ends with what is withheld and the command that lets it run", () =>
    Effect.gen(function* () {
      const known = { maintenance: Effect.succeed(on), endMaintenanceDryRun: Effect.succeed(Fake.dryRun()) }
      const { outcome, text } = yield* run("maintenance off", { ...known, endMaintenance: Effect.succeed(withheld) })
      assert.strictEqual(outcome, "held")
      assert.include(text, `  detach b (volume ${A})\n`)
      assert.include(text, "volumed approve d9")
      const ending: MaintenanceAnswer =
        on.maintenance === null ? on : { ...on, maintenance: { ...on.maintenance, ending: true } }
      const late = yield* run("maintenance off", { ...known, endMaintenance: Effect.succeed(ending) })
      assert.strictEqual(late.outcome, "timeout")
      assert.include(late.text, "It is ending")
      const never = yield* run("maintenance off", { maintenance: Effect.succeed(over) })
      assert.strictEqual(never.outcome, "done")
    })
  )

  it.effect("changes nothing where nobody could be asked", () =>
    Effect.gen(function* () {
      const known = { maintenance: Effect.succeed(on), endMaintenanceDryRun: Effect.succeed(Fake.dryRun()) }
      const command = Maintenance.maintenance(Fake.invocation("maintenance off")).pipe(Effect.provide(Fake.unasked))
      assert.include(String(yield* Effect.flip(Fake.run(command, known, Recording.make().layer))), "add --yes")
    })
  )
})
