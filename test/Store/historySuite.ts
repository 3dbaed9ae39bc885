import { SqlClient } from "@effect/sql/SqlClient"
import { assert, describe } from "@effect/vitest"
import { Effect, Option } from "effect"
import * as TestClock from "effect/TestClock"
import { type Maintenance, Store } from "../../reconciler/Store.ts"
import type { Withheld } from "../../schema/Action.ts"
import type { ConditionType } from "../../schema/Condition.ts"
import {
  attach,
  call,
  callId,
  condition,
  detach,
  hostile,
  refusal,
  removal,
  settled,
  spec,
  uidOf,
  vm,
  volumeId,
  write
} from "./Samples.ts"
import type { Probe, Test } from "./suite.ts"

const maintenance = (over: Partial<Maintenance> = {}): Maintenance => ({
  reason: "storage upgrade",
  by: "alice",
  since: "2026-03-01T12:00:00.000Z",
  until: null,
  ending: false,
  ...over
})

const withheldOf = (n: number, over: Partial<Withheld> = {}): Withheld => ({
  uid: uidOf(n),
  name: write(n).name,
  generation: 1,
  volume_id: volumeId(n),
  action: "detach",
  digest: "d1",
  ...over
})

const all = { after: 0, limit: 1000 }

const told = Effect.gen(function* () {
  const store = yield* Store
  return (yield* store.events(all)).map(({ kind, message }) => `${kind}: ${message}`)
})

/** Maintenance, the event history and the counts: what people and watchers read. */
export const historySuite = (test: Test, probe: Probe) => {
  describe("a maintenance", () => {
    test(
      "is begun, changed and ended, and said so; the same said again writes nothing (S18)",
      Effect.gen(function* () {
        const store = yield* Store
        assert.isNull(yield* store.maintenance)
        yield* store.setMaintenance(maintenance())
        assert.deepStrictEqual(yield* store.maintenance, maintenance())
        const before = yield* probe.written
        yield* store.setMaintenance(maintenance())
        assert.strictEqual(yield* probe.written, before)
        const changed = maintenance({ until: "2026-03-01T13:00:00Z", by: "bob", ending: true })
        yield* store.setMaintenance(changed)
        assert.deepStrictEqual(yield* store.maintenance, changed)
        yield* store.setMaintenance(null)
        assert.isNull(yield* store.maintenance)
        yield* store.setMaintenance(null)
        const events = yield* store.events(all)
        assert.deepStrictEqual(
          events.map(({ kind, actor, message }) => [kind, actor, message]),
          [
            ["maintenance_begun", "alice", "storage upgrade"],
            ["maintenance_changed", "bob", "storage upgrade until 2026-03-01T13:00:00Z, ending"],
            ["maintenance_ended", "bob", "storage upgrade"]
          ]
        )
      })
    )

    test(
      "keeps the answer to a key beside it, and does nothing when the key was answered before (X13)",
      Effect.gen(function* () {
        const store = yield* Store
        const answer = { key: "k", digest: "d", status: 200, response: { kind: "maintenance" } }
        yield* store.setMaintenance(maintenance({ ending: true }), { answer })
        assert.deepStrictEqual(Option.getOrNull(yield* store.answered("k")), answer)
        yield* store.setMaintenance(null)
        yield* store.setMaintenance(maintenance({ reason: "network" }))
        const before = yield* probe.written
        yield* store.setMaintenance(maintenance({ reason: "network", ending: true }), { answer })
        assert.isFalse((yield* store.maintenance)?.ending)
        assert.strictEqual(yield* probe.written, before)
      })
    )

    test(
      "is not ended for another that stood before it: nothing is done then",
      Effect.gen(function* () {
        const store = yield* Store
        yield* store.write([write(1)])
        const ending = maintenance({ ending: true })
        yield* store.setMaintenance(ending)
        yield* store.setMaintenance(maintenance({ reason: "network" }))
        yield* store.setMaintenance(null, { withheld: [withheldOf(1)], standing: ending })
        assert.strictEqual((yield* store.maintenance)?.reason, "network")
        assert.deepStrictEqual(yield* store.withheld, [])
        yield* store.setMaintenance(ending)
        yield* store.setMaintenance(null, { withheld: [withheldOf(1)], standing: ending })
        assert.isNull(yield* store.maintenance)
        assert.deepStrictEqual(yield* store.withheld, [withheldOf(1)])
      })
    )

    test(
      "withholds at its end what was pending, until the declaration is written again or gone",
      Effect.gen(function* () {
        const store = yield* Store
        const sql = yield* SqlClient
        yield* store.write([write(1), write(2), write(3)])
        yield* store.setMaintenance(maintenance())
        const [first, second, third] = [withheldOf(1), withheldOf(2), withheldOf(3)]
        const unexport = withheldOf(1, { action: "unexport" })
        yield* store.setMaintenance(null, { withheld: [second, unexport, first, third] })
        assert.deepStrictEqual(yield* store.withheld, [first, unexport, second, third])
        yield* store.write([write(1, { expected_generation: 1, generation: 2, spec: spec({ read_only: true }) })])
        assert.deepStrictEqual(yield* store.withheld, [second, third])
        yield* store.write([write(3, { expected_generation: 1, generation: 2, deletion: removal, kind: "removed" })])
        yield* store.finishRemoval(uidOf(3))
        assert.deepStrictEqual(yield* store.withheld, [second])
        // An end is one transaction: one that was stored is not stored again with another list.
        yield* store.setMaintenance(null, { withheld: [withheldOf(1, { generation: 2 })] })
        assert.deepStrictEqual(yield* store.withheld, [second])
        yield* store.setMaintenance(maintenance())
        yield* store.setMaintenance(null, { withheld: [withheldOf(2, { digest: "d2" })] })
        assert.deepStrictEqual(yield* store.withheld, [withheldOf(2, { digest: "d2" })])
        const rows = yield* sql<{ n: number }>`SELECT COUNT(*) AS n FROM withheld`
        assert.strictEqual(Number(rows[0]?.n), 1)
      })
    )

    test(
      "whose row cannot be read is still one (B10)",
      Effect.gen(function* () {
        const store = yield* Store
        const sql = yield* SqlClient
        yield* sql`INSERT INTO maintenance ${sql.insert({
          id: 1,
          reason: "x",
          begun_by: "y",
          begun_at: "yesterday",
          ends_at: null,
          ending: 0
        })}`
        const found = yield* store.maintenance
        assert.isFalse(found?.ending)
        assert.include(found?.reason, "cannot be read")
        yield* store.setMaintenance(null)
        assert.isNull(yield* store.maintenance)
      })
    )
  })

  describe("the history", () => {
    test(
      "tells a declaration's life in order, each event with its uid and operation",
      Effect.gen(function* () {
        const store = yield* Store
        yield* store.write([write(1)], { calls: [call(1)] })
        const { operation_id } = yield* store.intend(attach(1))
        yield* store.advance(operation_id, { phase: "submitted", status: "executing" })
        yield* store.settle(operation_id, settled, null)
        yield* store.advance(callId(1), { phase: "settled", status: "completed" })
        const failing = yield* store.intend(detach(1))
        yield* store.advance(failing.operation_id, { phase: "refused", status: "failed", error: "no such VM" })
        yield* store.advance(failing.operation_id, { phase: "refused", status: "failed", error: "no such VM" })
        yield* store.write([write(1, { expected_generation: 1, generation: 2, deletion: removal, kind: "removed" })])
        yield* store.finishRemoval(uidOf(1))
        const events = yield* store.events(all)
        assert.deepStrictEqual(
          events.map(({ kind, operation_id, actor, message }) => [kind, operation_id, actor, message]),
          [
            ["declared", null, "alice", "declared at generation 1"],
            ["call_accepted", callId(1), "v1", `attach of volume ${volumeId(1)}`],
            ["operation_intended", operation_id, "alice", "attach: wanted on the appliance, attached nowhere"],
            ["operation_ended", operation_id, "alice", "attach completed"],
            ["call_ended", callId(1), "v1", "attach completed"],
            ["operation_intended", failing.operation_id, "volumed", "detach: not wanted there"],
            ["operation_ended", failing.operation_id, "volumed", "detach failed: no such VM"],
            ["removed", null, "alice", "removed at generation 2"],
            ["removal_finished", null, null, "the removal is carried out, the name is free"]
          ]
        )
        assert.deepStrictEqual(
          new Set(events.map(({ uid, name }) => `${uid} ${name}`)),
          new Set([`${uidOf(1)} disk-1`])
        )
      })
    )

    test(
      "tells nothing of what was refused",
      Effect.gen(function* () {
        const store = yield* Store
        yield* store.write([write(1)])
        const before = yield* told
        yield* refusal(store.write([write(2), write(1)], { calls: [call(2)] }))
        yield* refusal(store.intend(attach(1, { generation: 5 })))
        yield* refusal(store.write([], { ends: [{ id: callId(1), advance: settled }] }))
        assert.deepStrictEqual(yield* told, before)
      })
    )

    test(
      "tells of the conditions that watchers act on, when status or reason changed (S18)",
      Effect.gen(function* () {
        const store = yield* Store
        yield* store.write([write(1)])
        const types: ReadonlyArray<ConditionType> = [
          "Provisioned",
          "Attached",
          "DevicePresent",
          "Exported",
          "Ready",
          "Paused",
          "Removed"
        ]
        const show = (over: Parameters<typeof condition>[0]) =>
          store.saveConditions([{ uid: uidOf(1), conditions: types.map((type) => condition({ ...over, type })) }])
        const since = Effect.fnUntraced(function* (after: number) {
          return (yield* store.events({ ...all, after })).map(({ message, name }) => `${name}: ${message}`)
        })
        const { newest } = yield* store.eventRange
        yield* show({})
        assert.deepStrictEqual(yield* since(newest), [
          "disk-1: Attached False DeviceMissing: no device",
          "disk-1: Exported False DeviceMissing: no device",
          "disk-1: Ready False DeviceMissing: no device",
          "disk-1: Removed False DeviceMissing: no device"
        ])
        const first = (yield* store.eventRange).newest
        yield* show({ message: "still no device", observed_generation: 2 })
        yield* show({ message: "still no device", observed_generation: 2 })
        assert.deepStrictEqual(yield* since(first), [])
        const one = types.map((type) => condition(type === "Ready" ? { reason: "InUse", message: "" } : { type }))
        yield* store.saveConditions([{ uid: uidOf(1), conditions: one }])
        assert.deepStrictEqual(yield* since(first), ["disk-1: Ready False InUse"])
        yield* store.write([write(1, { expected_generation: 1, generation: 2, deletion: removal, kind: "removed" })])
        yield* store.finishRemoval(uidOf(1))
        const last = (yield* store.eventRange).newest
        yield* store.saveConditions([{ uid: uidOf(1), conditions: [condition({ type: "Removed", status: "True" })] }])
        assert.deepStrictEqual(yield* since(last), ["disk-1: Removed True DeviceMissing: no device"])
      })
    )

    test(
      "is read by time, name, actor and kind, a bounded page at a time, and knows its ends",
      Effect.gen(function* () {
        const store = yield* Store
        assert.deepStrictEqual(yield* store.eventRange, { oldest: 0, newest: 0 })
        yield* TestClock.setTime(Date.parse("2026-03-01T12:00:00Z"))
        yield* store.write([write(1), write(2, { actor: "bob" })])
        yield* TestClock.adjust("1 minute")
        yield* store.write([write(1, { expected_generation: 1, generation: 2, kind: "changed", actor: "bob" })])
        const found = (filter: Partial<Parameters<typeof store.events>[0]>) =>
          Effect.map(store.events({ ...all, ...filter }), (events) => events.map(({ id }) => id))
        const [first = 0, second = 0, third = 0] = yield* found({})
        assert.deepStrictEqual(yield* store.eventRange, { oldest: first, newest: third })
        assert.deepStrictEqual(yield* found({ name: "disk-1" }), [first, third])
        assert.deepStrictEqual(yield* found({ actor: "bob" }), [second, third])
        assert.deepStrictEqual(yield* found({ kind: "changed" }), [third])
        assert.deepStrictEqual(yield* found({ actor: "bob", kind: "declared" }), [second])
        assert.deepStrictEqual(yield* found({ since: "2026-03-01T12:01:00Z" }), [third])
        assert.deepStrictEqual(yield* found({ until: "2026-03-01T12:01:00Z" }), [first, second])
        assert.deepStrictEqual(yield* found({ after: first, limit: 1 }), [second])
        for (const text of hostile)
          assert.deepStrictEqual(yield* found({ name: text, actor: text, kind: text, since: text, until: text }), [])
        for (let n = 0; n < 1005; n++)
          yield* store.record({ kind: "condition", name: null, actor: null, message: "\u{1f600}".repeat(3000) })
        const page = yield* store.events({ after: third, limit: 5000 })
        assert.strictEqual(page.length, 1000)
        assert.strictEqual(page[0]?.message, "\u{1f600}".repeat(2000))
      })
    )

    test(
      "tells of approvals, one by one",
      Effect.gen(function* () {
        const store = yield* Store
        yield* store.approve([{ ...withheldOf(1), action: "delete", digest: "abc", expires_at: 5 }])
        assert.deepStrictEqual(yield* told, [`approved: delete of volume ${volumeId(1)}, digest abc`])
      })
    )
  })

  describe("the counts", () => {
    test(
      "are of every type and status, and the mean of how long completed ones took",
      Effect.gen(function* () {
        const store = yield* Store
        assert.deepStrictEqual(yield* store.statistics, { counts: [], mean_ms: null })
        yield* store.write([write(1), write(2), write(3)], { calls: [call(1)] })
        const slow = yield* store.intend(attach(1))
        yield* TestClock.adjust("2 seconds")
        const quick = yield* store.intend(detach(2))
        yield* TestClock.adjust("1 second")
        yield* store.advance(slow.operation_id, settled)
        yield* store.advance(quick.operation_id, settled)
        const refused = yield* store.intend(attach(3))
        yield* TestClock.adjust("1 minute")
        yield* store.advance(refused.operation_id, { phase: "refused", status: "failed", error: "no" })
        assert.deepStrictEqual(yield* store.statistics, {
          counts: [
            { type: "attach", status: "completed", count: 1 },
            { type: "attach", status: "failed", count: 1 },
            { type: "attach", status: "pending", count: 1 },
            { type: "detach", status: "completed", count: 1 }
          ],
          mean_ms: 2000
        })
      })
    )
  })

  describe("the device mappings", () => {
    test(
      "are read as stored, with the time since when they are so",
      Effect.gen(function* () {
        const store = yield* Store
        yield* TestClock.setTime(Date.parse("2026-03-01T12:00:00Z"))
        const mapping = (size: number) => ({
          volume_id: volumeId(1),
          vm_id: vm,
          device_path: "/dev/disk/by-id/x",
          size
        })
        yield* store.saveDeviceMappings([mapping(5)])
        const [first] = yield* store.deviceMappings
        const at = "2026-03-01T12:00:00.000Z"
        assert.deepInclude(first, { ...mapping(5), created_at: at, updated_at: at, last_sync: at })
        assert.match(first?.id ?? "", /^dm-/)
        yield* TestClock.adjust("1 minute")
        yield* store.saveDeviceMappings([mapping(5)])
        assert.deepStrictEqual((yield* store.deviceMappings)[0], first)
        yield* store.saveDeviceMappings([mapping(6)])
        const later = "2026-03-01T12:01:00.000Z"
        assert.deepStrictEqual(yield* store.deviceMappings, [
          { ...mapping(6), id: first?.id ?? "", created_at: at, updated_at: later, last_sync: later }
        ])
      })
    )
  })
}
