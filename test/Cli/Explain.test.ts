import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import type { Blocked, PlanItem, Reason } from "../../schema/Action.ts"
import type { ExportAnswer, Volume } from "../../schema/Api.ts"
import type { OperationId } from "../../schema/Ids.ts"
import * as Explain from "../../src/Cli/Explain.ts"
import { plain } from "../../src/Cli/Output.ts"
import * as VolumeText from "../../src/Cli/VolumeText.ts"
import * as Fake from "./Fake.ts"
import * as Recording from "./Recording.ts"
import { A, ready, volume } from "./Sample.ts"

const operation = "op-12345678-1234-1234-1234-123456789012" as OperationId
const nothing = { digest: null, withheld: [] }

const text = (of: Volume) =>
  VolumeText.explanation(
    { volume: of, found: null, holders: [], chain: "", command: Explain.nextCommand(of, null, nothing) },
    plain
  )

const itemOf = (of: Volume, reason: Reason): PlanItem => ({
  uid: of.uid,
  name: of.name,
  generation: of.generation,
  volume_id: of.status.volume_id,
  next: null,
  chain: [],
  blocked: { reason, category: "blocked", message: "it waits", suggestion: "look" } satisfies Blocked,
  gap: "attachment",
  drift: false,
  settled: false,
  guard: null,
  removal_done: false
})

const served = (connections: ExportAnswer["connections"]): ExportAnswer => ({
  id: A,
  name: `migration-vol-${A}`,
  export_name: `migration-vol-${A}`,
  volume_id: A,
  device_path: "",
  by_id_path: "",
  kernel_path: "",
  port: 10809,
  status: "active",
  wanted: true,
  configured: true,
  served: true,
  size: 1,
  read_only: false,
  connections,
  verified_at: null,
  problem: null
})

describe("explain", () => {
  it.effect("says of an export that lets nobody in that it is fenced, and not that it was never verified", () => {
    const { status: ready } = volume("b", A)
    const leaving = volume(
      "b",
      A,
      {},
      { export: ready.export === null ? null : { ...ready.export, verified_at: null } }
    )
    const fenced = {
      ...served([]),
      status: "fenced" as const,
      served: false,
      problem: "fenced since 2026-03-01T12:00:00Z: new clients are denied, 0 are connected"
    }
    const known = {
      ...Fake.declared(() => [leaving]),
      plan: Effect.succeed(Fake.dryRun()),
      export: () => Effect.succeed(fenced)
    }
    const recording = Recording.make()
    return Effect.gen(function* () {
      yield* Fake.run(Explain.explain(Fake.invocation("explain b")), known, recording.layer)
      assert.match(recording.results(), /export .*, fenced since 2026-03-01T12:00:00Z: new clients are denied/u)
      assert.notInclude(recording.results(), "not verified yet")
    })
  })

  it("ends with the command to type", () => {
    const blocked = { status: "False", category: "blocked", reason: "VmFull", suggestion: "detach one" } as const
    const stuck = volume("b", A, {}, { conditions: [ready(blocked)], last_operation_id: operation })
    assert.isTrue(text(stuck).endsWith(`\nType: volumed ops ${operation}\n`))
    assert.include(text(stuck), "detach one")
    assert.isTrue(text(volume("b", A)).endsWith("\nType: volumed get b -o yaml\n"))
  })

  it("offers to resume what is paused, even while there is nothing to do", () => {
    const paused = ready({ type: "Paused", reason: "Paused", category: "warning", message: "by alice: look" })
    assert.isTrue(text(volume("b", A, {}, { conditions: [ready(), paused] })).endsWith("\nType: volumed resume b\n"))
  })

  it("offers to take a removal back", () => {
    const at = "2026-03-01T12:00:00Z"
    const deletion = {
      policy: "retain",
      requested_at: at,
      by: "alice",
      execute_after: at,
      remaining: ["detach"]
    } as const
    const leaving = volume("b", A, { deletion })
    assert.isTrue(text(leaving).endsWith("\nType: volumed undelete b\n"))
    assert.include(text(leaving), "retain, asked for by alice")
  })

  it("names for every reason a command that changes nothing unasked", () => {
    const of = volume("b", A)
    const held = { uid: of.uid, name: of.name, generation: 1, volume_id: A as never, action: "detach" as const }
    const plan = { digest: "d1", withheld: [] }
    const commands: ReadonlyArray<readonly [Reason, string]> = [
      ["CloudStackUnread", "volumed doctor"],
      ["OfferingRequired", "volumed apply -f FILE"],
      ["ForeignAttachment", "volumed apply -f FILE"],
      ["DriftHeld", "volumed accept b"],
      ["LateEffect", "volumed accept b"],
      ["Paused", "volumed resume b"],
      ["BackingOff", "volumed retry b"],
      ["Contended", "volumed log b --since 1h"],
      ["InUse", "volumed wait b"],
      ["Draining", "volumed wait b"],
      ["WrongDevice", "volumed devices"],
      ["Maintenance", "volumed maintenance"],
      ["HeldForApproval", "volumed approve d1"]
    ]
    for (const [reason, command] of commands) {
      assert.strictEqual(Explain.nextCommand(of, itemOf(of, reason), plan), command, reason)
      assert.strictEqual(Fake.invocation(command.replace("volumed ", "")).command, command.split(" ")[1])
    }
    // Whoever holds it without a connection is not for us to end.
    assert.strictEqual(Explain.nextCommand(of, itemOf(of, "InUse"), plan, 2), "volumed retry b --end-clients")
    const withheld = { digest: "d1", withheld: [{ ...held, digest: "d2" }] }
    assert.strictEqual(Explain.nextCommand(of, itemOf(of, "HeldForApproval"), withheld), "volumed approve d2")
  })

  it.effect("names who holds the volume, and says so where that is not known", () => {
    const of = volume("b", A)
    const recording = Recording.make()
    const unread = Recording.make()
    const connections = [{ peer: "10.0.0.5:50312", pid: 77, since: "2026-03-01T12:00:00Z" }]
    const command = Explain.explain(Fake.invocation("explain b"))
    const known = { ...Fake.declared(() => [of]), plan: Effect.succeed(Fake.dryRun()) }
    return Effect.gen(function* () {
      yield* Fake.run(command, { ...known, export: () => Effect.succeed(served(connections)) }, recording.layer)
      assert.match(recording.results(), /held by +10\.0\.0\.5:50312 \(process 77\) since 2026-03-01T12:00:00Z\n/u)
      // They came after the last pass, which counted none.
      assert.match(recording.results(), /export .*, 1 connection\n/u)
      const busy = { ...Fake.notFound, status: 503, code: "OVERLOADED", error: "busy" }
      yield* Fake.run(
        command,
        { ...known, export: () => Effect.fail(Object.assign(Object.create(Fake.notFound), busy)) },
        unread.layer
      )
      assert.match(unread.results(), /held by +not known: busy\n/u)
    })
  })
})
