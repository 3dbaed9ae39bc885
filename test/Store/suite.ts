import { assert, describe, it } from "@effect/vitest"
import { SqlClient } from "@effect/sql/SqlClient"
import { Effect, type Layer, Option } from "effect"
import * as TestClock from "effect/TestClock"
import { Store } from "../../reconciler/Store.ts"
import { type Declaration, unbound } from "../../schema/Declaration.ts"
import type { Misconfigured, StoreUnavailable } from "../../schema/Errors.ts"
import { Name, OperationId } from "../../schema/Ids.ts"
import { callSuite } from "./callSuite.ts"
import { historySuite } from "./historySuite.ts"
import { retentionSuite } from "./retentionSuite.ts"
import {
  answer,
  attach,
  bindingOf,
  call,
  callId,
  condition,
  detach,
  hostile,
  removal,
  settled,
  spec,
  uidOf,
  uuid,
  vm,
  volumeId,
  write,
  refusal
} from "./Samples.ts"

/** Rows that the database has written over its life in this connection: what a quiet pass must leave as it is (S18). */
export interface Probe {
  readonly written: Effect.Effect<number, unknown, SqlClient>
  /** Makes a stored JSON column undecodable behind the store's back. */
  readonly corrupt: (
    table: string,
    column: string,
    key: string,
    id: string
  ) => Effect.Effect<unknown, unknown, SqlClient>
}

export type Test = (sentence: string, body: Effect.Effect<unknown, unknown, Store | SqlClient>) => void

/** What every database must show. `layer` builds an empty store each time. */
export const storeSuite = (
  name: string,
  layer: () => Layer.Layer<Store | SqlClient, Misconfigured | StoreUnavailable>,
  probe: Probe
) =>
  describe(name, () => {
    const test: Test = (sentence, body) => it.effect(sentence, () => body.pipe(Effect.provide(layer())))

    callSuite(test)
    historySuite(test, probe)
    retentionSuite(test, probe)

    describe("declarations", () => {
      test(
        "are stored, listed by name in bytewise order, and read back one by one",
        Effect.gen(function* () {
          const store = yield* Store
          const names = ["b", "B", "a", "a.1", "a-1", "A_1"].map((text) => Name.make(text))
          const writes = names.map((name, n) => write(n, { name, uid: uidOf(n) }))
          const stored = yield* store.write(writes)
          assert.deepStrictEqual(
            stored.map((d) => d.name),
            names
          )
          const listed = yield* store.declarations
          assert.deepStrictEqual(
            listed.map((d) => d.name),
            [...names].sort()
          )
          const one = Option.getOrThrow(yield* store.declaration(Name.make("B")))
          assert.deepStrictEqual(one, stored[1])
          assert.deepStrictEqual(one.spec, spec())
          assert.isTrue(Option.isNone(yield* store.declaration(Name.make("c"))))
        })
      )

      test(
        "change by compare-and-swap on the generation, which only grows (S14)",
        Effect.gen(function* () {
          const store = yield* Store
          yield* TestClock.setTime(Date.parse("2026-03-01T12:00:00Z"))
          const [first] = yield* store.write([write(1)])
          yield* TestClock.adjust("1 second")
          const smaller = write(1, { expected_generation: 1, generation: 2, spec: spec({ read_only: true }) })
          const [second] = yield* store.write([{ ...smaller, kind: "changed", actor: "bob" }])
          assert.strictEqual(second?.generation, 2)
          assert.strictEqual(second?.created_at, "2026-03-01T12:00:00.000Z")
          assert.strictEqual(second?.updated_at, "2026-03-01T12:00:01.000Z")
          assert.strictEqual(first?.spec.read_only, false)
          const stale = yield* refusal(store.write([smaller]))
          assert.strictEqual(stale._tag, "GenerationConflict")
          assert.deepInclude(stale, { name: "disk-1", expected: 1, found: 2 })
          const taken = yield* refusal(store.write([write(2, { name: Name.make("disk-1") })]))
          assert.deepInclude(taken, { _tag: "GenerationConflict", expected: null, found: 2 })
          const absent = yield* refusal(store.write([write(9, { expected_generation: 4, generation: 5 })]))
          assert.deepInclude(absent, { _tag: "GenerationConflict", expected: 4, found: null })
        })
      )

      test(
        "have one winner where many write at once",
        Effect.gen(function* () {
          const store = yield* Store
          yield* store.write([write(1)])
          const race = Array.from({ length: 16 }, (_, n) =>
            Effect.either(
              store.write([
                write(1, { expected_generation: 1, generation: 2, spec: spec({ cloudstack_name: `writer-${n}` }) })
              ])
            )
          )
          const outcomes = yield* Effect.all(race, { concurrency: "unbounded" })
          const winners = outcomes.flatMap((outcome) => (outcome._tag === "Right" ? outcome.right : []))
          assert.strictEqual(winners.length, 1)
          const now = Option.getOrThrow(yield* store.declaration(Name.make("disk-1")))
          assert.deepStrictEqual(now, winners[0])
        })
      )

      test(
        "are written all or none",
        Effect.gen(function* () {
          const store = yield* Store
          yield* store.write([write(2)])
          const failed = yield* refusal(store.write([write(1), write(2), write(3)]))
          assert.strictEqual(failed._tag, "GenerationConflict")
          assert.deepStrictEqual(
            (yield* store.declarations).map((d) => d.name),
            [Name.make("disk-2")]
          )
          assert.strictEqual((yield* store.events({ after: 0, limit: 100 })).length, 1)
        })
      )

      test(
        "free their name when the removal is finished, and are shown as removed under their old uid",
        Effect.gen(function* () {
          const store = yield* Store
          yield* TestClock.setTime(Date.parse("2026-03-01T12:00:00Z"))
          yield* store.write([write(1)])
          yield* store.write([write(1, { expected_generation: 1, generation: 2, deletion: removal, kind: "removed" })])
          assert.deepStrictEqual(
            (yield* store.declarations).map((d) => d.deletion),
            [removal]
          )
          const early = yield* refusal(store.write([write(7, { name: Name.make("disk-1") })]))
          assert.strictEqual(early._tag, "GenerationConflict")
          yield* store.finishRemoval(uidOf(1))
          assert.deepStrictEqual(yield* store.declarations, [])
          yield* store.write([write(7, { name: Name.make("disk-1") })])
          assert.deepStrictEqual(
            (yield* store.declarations).map((d) => d.uid),
            [uidOf(7)]
          )
          const removed = yield* store.removedSince("2026-03-01T12:00:00Z")
          assert.deepStrictEqual(
            removed.map((d) => [d.uid, d.removed_at]),
            [[uidOf(1), "2026-03-01T12:00:00.000Z"]]
          )
          assert.deepStrictEqual(yield* store.removedSince("2026-03-01T12:00:01Z"), [])
        })
      )

      test(
        "stay when an undelete came before the removal was finished",
        Effect.gen(function* () {
          const store = yield* Store
          yield* store.write([write(1)])
          yield* store.finishRemoval(uidOf(1))
          assert.strictEqual((yield* store.declarations).length, 1)
        })
      )

      test(
        "keep what was learned about them through later writes, and their claim shows in the exports view",
        Effect.gen(function* () {
          const store = yield* Store
          const sql = yield* SqlClient
          yield* store.write([write(1)])
          const binding = bindingOf(1, {
            export: { name: "migration-vol-x", path: "/dev/disk/by-id/x", settled_at: 5 }
          })
          yield* store.bind([{ uid: uidOf(1), binding }])
          const [changed] = yield* store.write([
            write(1, { expected_generation: 1, generation: 2, spec: spec({ read_only: true }), kind: "changed" })
          ])
          assert.deepStrictEqual(changed?.binding, binding)
          const shown = yield* sql`SELECT name, export_name, device_path FROM volumed_exports`
          assert.deepStrictEqual(
            shown.map((row) => ({ ...row })),
            [{ name: "disk-1", export_name: "migration-vol-x", device_path: "/dev/disk/by-id/x" }]
          )
          yield* store.bind([{ uid: uidOf(1), binding: bindingOf(1) }])
          assert.deepStrictEqual(yield* sql`SELECT * FROM volumed_exports`, [])
        })
      )
    })

    describe("operations", () => {
      test(
        "begin as a durable intent that carries the whole action (S8)",
        Effect.gen(function* () {
          const store = yield* Store
          yield* store.write([write(1)])
          const intent = yield* store.intend(attach(1))
          assert.match(intent.operation_id, /^op-[0-9a-f-]{36}$/)
          const stored = Option.getOrThrow(yield* store.operation(intent.operation_id))
          assert.deepInclude(stored, {
            type: "attach",
            status: "pending",
            phase: "intended",
            volume_id: volumeId(1),
            vm_id: vm,
            uid: uidOf(1),
            actor: "alice",
            generation: 1,
            attempts: 1,
            destructive: false
          })
          assert.deepStrictEqual(stored.request, { ...attach(1) })
          assert.deepStrictEqual(yield* store.unresolved, [stored])
        })
      )

      test(
        "are refused when the declaration moved on or is gone (S15)",
        Effect.gen(function* () {
          const store = yield* Store
          yield* store.write([write(1)])
          const early = yield* refusal(store.intend(attach(1, { generation: 2 })))
          assert.deepInclude(early, { _tag: "GenerationConflict", expected: 2, found: 1 })
          const gone = yield* refusal(store.intend(attach(5)))
          assert.deepInclude(gone, { _tag: "GenerationConflict", expected: 1, found: null })
          assert.deepStrictEqual(yield* store.unresolved, [])
        })
      )

      test(
        "are one at a time for a declaration and for a volume (S2)",
        Effect.gen(function* () {
          const store = yield* Store
          yield* store.write([write(1), write(2)])
          const race = yield* Effect.all(
            Array.from({ length: 12 }, () => Effect.either(store.intend(attach(1)))),
            { concurrency: "unbounded" }
          )
          const won = race.flatMap((outcome) => (outcome._tag === "Right" ? [outcome.right] : []))
          assert.strictEqual(won.length, 1)
          assert.strictEqual((yield* store.unresolved).length, 1)
          const lost = race.flatMap((outcome) => (outcome._tag === "Left" ? [outcome.left._tag] : []))
          assert.deepStrictEqual([...new Set(lost)], ["PreconditionLost"])
          const other = yield* refusal(store.intend(attach(2, { volume_id: volumeId(1) })))
          assert.strictEqual(other._tag, "PreconditionLost")
          for (const operation of won) yield* store.advance(operation.operation_id, settled)
          const next = yield* store.intend(attach(1))
          assert.strictEqual(Option.getOrThrow(yield* store.operation(next.operation_id)).attempts, 2)
        })
      )

      test(
        "are refused for a volume that another living declaration is bound to (S4)",
        Effect.gen(function* () {
          const store = yield* Store
          yield* store.write([write(1), write(2)])
          yield* store.bind([{ uid: uidOf(1), binding: bindingOf(1) }])
          const refused = yield* refusal(store.intend(attach(2, { volume_id: volumeId(1) })))
          assert.deepInclude(refused, { _tag: "PreconditionLost" })
          assert.include(refused.message, "disk-1")
        })
      )

      test(
        "never change once they have ended; the same end said twice is no error (S7)",
        Effect.gen(function* () {
          const store = yield* Store
          yield* store.write([write(1)])
          const { operation_id } = yield* store.intend(attach(1))
          yield* store.advance(operation_id, { phase: "accepted", status: "executing", submitted_at: 5, expires_at: 6 })
          yield* store.advance(operation_id, { phase: "uncertain", status: "executing", error: "not to be seen yet" })
          const premature = yield* refusal(store.advance(operation_id, { phase: "uncertain", status: "cancelled" }))
          assert.strictEqual(premature._tag, "PreconditionLost")
          const ended = yield* store.settle(
            operation_id,
            { ...settled, response: { message: "attached", device_path: "/dev/disk/by-id/x" } },
            { uid: uidOf(1), binding: bindingOf(1) }
          )
          assert.isNotNull(ended.completed_at)
          assert.deepInclude(ended, { submitted_at: 5, expires_at: 6, error: null })
          assert.deepStrictEqual((yield* store.declarations)[0]?.binding, bindingOf(1))
          const again = yield* store.advance(operation_id, settled)
          assert.deepStrictEqual(again, ended)
          // As MySQL, whose JSON has an order of its own, gives it back.
          const ordered = JSON.stringify({ device_path: "/dev/disk/by-id/x", message: "attached" })
          yield* Effect.flatMap(SqlClient, (sql) => sql`UPDATE volume_operations SET response = ${ordered}`)
          const { response } = ended
          assert.deepStrictEqual(yield* store.advance(operation_id, { ...settled, response: response ?? {} }), ended)
          for (const change of [
            { phase: "settled", status: "failed" },
            { phase: "uncertain", status: "executing" },
            { phase: "settled", status: "completed", error: "late" }
          ] as const) {
            const refused = yield* refusal(store.advance(operation_id, change))
            assert.strictEqual(refused._tag, "PreconditionLost")
            assert.deepStrictEqual(Option.getOrThrow(yield* store.operation(operation_id)), ended)
          }
          const unknown = yield* refusal(store.advance(OperationId.make(`op-${uuid(1)}`), settled))
          assert.strictEqual(unknown._tag, "PreconditionLost")
        })
      )

      test(
        "and what they taught are written together or not at all",
        Effect.gen(function* () {
          const store = yield* Store
          yield* store.write([write(1)])
          const { operation_id } = yield* store.intend(attach(1))
          yield* store.advance(operation_id, { phase: "refused", status: "failed", error: "no" })
          const learned = { uid: uidOf(1), binding: bindingOf(1) }
          yield* refusal(store.settle(operation_id, settled, learned))
          assert.deepStrictEqual((yield* store.declarations)[0]?.binding, unbound)
        })
      )

      test(
        "are listed newest first, filtered, page by page without a gap or a repeat",
        Effect.gen(function* () {
          const store = yield* Store
          yield* TestClock.setTime(Date.parse("2026-03-01T12:00:00Z"))
          yield* store.write(Array.from({ length: 25 }, (_, n) => write(n)))
          const ids: Array<string> = []
          for (let n = 0; n < 25; n++) {
            // Three to a millisecond, so that the page's end falls between equal times.
            if (n % 3 === 0) yield* TestClock.adjust("1 millis")
            ids.push((yield* store.intend(attach(n))).operation_id)
          }
          const seen: Array<string> = []
          let cursor: string | null = null
          do {
            const page: { items: ReadonlyArray<{ id: string }>; next: string | null } = yield* store.operations(
              cursor === null ? { limit: 4 } : { limit: 4, cursor }
            )
            seen.push(...page.items.map((operation) => operation.id))
            cursor = page.next
          } while (cursor !== null)
          assert.strictEqual(seen.length, 25)
          assert.deepStrictEqual([...seen].sort(), [...ids].sort())
          const one = yield* store.operations({ volume_id: volumeId(3), type: "attach", status: "pending" })
          assert.deepStrictEqual(
            one.items.map((operation) => operation.name),
            ["disk-3"]
          )
          const none = yield* store.operations({ since: "2026-03-01T12:00:01Z" })
          assert.deepStrictEqual(none.items, [])
          const late = yield* store.operations({ since: "2026-03-01T12:00:00.009Z" })
          assert.strictEqual(late.items.length, 1)
          for (const wrong of ["", "x", "Zm9v", "a".repeat(5000), ...hostile]) {
            const refused = yield* refusal(store.operations({ cursor: wrong }))
            assert.strictEqual(refused._tag, "CursorExpired")
          }
        })
      )

      test(
        "that destroy are counted for the budget, those that were refused left out (S17)",
        Effect.gen(function* () {
          const store = yield* Store
          yield* TestClock.setTime(Date.parse("2026-03-01T12:00:00Z"))
          yield* store.write([write(1), write(2), write(3)])
          yield* store.intend(attach(1))
          yield* store.intend(detach(2))
          const refused = yield* store.intend(detach(3))
          assert.strictEqual(yield* store.destructiveSince(Date.parse("2026-03-01T11:00:00Z")), 2)
          yield* store.advance(refused.operation_id, { phase: "refused", status: "failed", error: "535" })
          assert.strictEqual(yield* store.destructiveSince(Date.parse("2026-03-01T12:00:00Z")), 1)
          assert.strictEqual(yield* store.destructiveSince(Date.parse("2026-03-01T12:00:01Z")), 0)
        })
      )
    })

    describe("a quiet pass", () => {
      test(
        "writes nothing: what is equal to what is stored is not stored again (S18)",
        Effect.gen(function* () {
          const store = yield* Store
          const mapping = { volume_id: volumeId(1), vm_id: vm, device_path: "/dev/disk/by-id/x", size: 5 }
          const pass = Effect.gen(function* () {
            yield* store.bind([{ uid: uidOf(1), binding: bindingOf(1, { repairs: [1, 2] }) }])
            yield* store.saveConditions([{ uid: uidOf(1), conditions: [condition()] }])
            yield* store.saveDeviceMappings([{ ...mapping }])
            yield* store.declarations
            yield* store.unresolved
            yield* store.calls
            yield* store.maintenance
            yield* store.withheld
            yield* store.conditions
            yield* store.setMaintenance(null)
          })
          yield* store.write([write(1)], { calls: [call(1)], answer: answer("k") })
          yield* store.advance(callId(1), settled)
          yield* pass
          const before = yield* probe.written
          for (let n = 0; n < 50; n++) yield* pass
          const same = write(1, { expected_generation: 1, generation: 1, kind: "changed" })
          yield* store.write([same])
          assert.strictEqual(yield* probe.written, before)
          yield* store.saveConditions([{ uid: uidOf(1), conditions: [condition({ status: "True" })] }])
          assert.isAbove(yield* probe.written, before)
        })
      )

      test(
        "keeps the transition times of conditions and the device mappings of exactly what is mapped",
        Effect.gen(function* () {
          const store = yield* Store
          const sql = yield* SqlClient
          yield* store.saveConditions([{ uid: uidOf(1), conditions: [condition()] }])
          assert.deepStrictEqual((yield* store.conditions).get(uidOf(1)), [condition()])
          const at = (n: number, path: string) => ({ volume_id: volumeId(n), vm_id: vm, device_path: path, size: n })
          const rows = sql`SELECT volume_id, device_path FROM device_mappings ORDER BY volume_id`.pipe(
            Effect.map((found) => found.map((row) => [row.volume_id, row.device_path]))
          )
          yield* store.saveDeviceMappings([at(1, "/a"), at(2, "/b"), at(3, "/c")])
          yield* store.saveDeviceMappings([at(1, "/b"), at(2, "/a")])
          assert.deepStrictEqual(yield* rows, [
            [volumeId(1), "/b"],
            [volumeId(2), "/a"]
          ])
          yield* store.saveDeviceMappings([at(1, "/b"), at(2, "/x"), at(3, "/x")])
          assert.deepStrictEqual(yield* rows, [[volumeId(1), "/b"]])
          yield* store.saveDeviceMappings([])
          assert.deepStrictEqual(yield* rows, [])
        })
      )
    })

    describe("people's records", () => {
      test(
        "events resume after an id without a gap; approvals lapse",
        Effect.gen(function* () {
          const store = yield* Store
          for (let n = 0; n < 5; n++)
            yield* store.record({ kind: "condition", name: null, actor: "eve", message: `${n}` })
          const first = yield* store.events({ after: 0, limit: 2 })
          const rest = yield* store.events({ after: first[1]?.id ?? 0, limit: 100 })
          assert.deepStrictEqual(
            [...first, ...rest].map((event) => event.message),
            ["0", "1", "2", "3", "4"]
          )
          const approval = {
            uid: uidOf(1),
            name: Name.make("disk-1"),
            generation: 1,
            volume_id: volumeId(1),
            action: "delete",
            digest: "abc",
            expires_at: 1000
          } as const
          yield* store.approve([approval])
          yield* store.approve([{ ...approval, expires_at: 2000 }])
          assert.deepStrictEqual(yield* store.approvals(1500), [{ ...approval, expires_at: 2000 }])
          assert.deepStrictEqual(yield* store.approvals(2000), [])
          yield* TestClock.setTime(2000)
          yield* store.approve([{ ...approval, generation: 2, expires_at: 3000 }])
          const rows = yield* Effect.flatMap(SqlClient, (sql) => sql`SELECT generation FROM approvals`)
          assert.deepStrictEqual(rows, [{ generation: 2 }], "what has lapsed goes")
        })
      )
    })

    describe("hostile input", () => {
      test(
        "reaches the database as values only and comes back as it was (X10)",
        Effect.gen(function* () {
          const store = yield* Store
          const sql = yield* SqlClient
          const metadata = (text: string) => ({ key: text.replaceAll(/[\u0000-\u001f\u2028\u2029]/g, ".") })
          for (const [n, text] of hostile.entries()) {
            yield* store.write([write(n, { spec: spec({ metadata: metadata(text) }), actor: text, set: text })])
            yield* store.record({ kind: "condition", name: text, actor: text, message: text })
            const { operation_id } = yield* store.intend(attach(n, { reason: text }))
            const ended = yield* store.advance(operation_id, {
              phase: "refused",
              status: "failed",
              error: text,
              response: { text }
            })
            assert.deepStrictEqual(ended.response, { text })
            const keyed = answer(text, { digest: text, response: { [text]: text } })
            const asked = call(n, { call: n, request: { [text]: text }, actor: text })
            yield* store.write([], { calls: [asked], answer: keyed })
            assert.deepStrictEqual(Option.getOrThrow(yield* store.operation(asked.id)).request, { [text]: text })
            assert.deepStrictEqual(Option.getOrThrow(yield* store.answered(text)).response, { [text]: text })
            for (const filter of [{ name: text }, { volume_id: text }, { vm_id: text }, { since: text }])
              yield* store.operations(filter)
          }
          const all = yield* store.declarations
          assert.strictEqual(all.length, hostile.length)
          for (const [n, text] of hostile.entries()) {
            const found = all.find((declaration: Declaration) => declaration.uid === uidOf(n))
            assert.deepStrictEqual(found?.spec.metadata, metadata(text))
          }
          const stored = yield* sql<{ actor: string }>`SELECT actor FROM events WHERE kind = 'declared' ORDER BY id`
          assert.deepStrictEqual(
            stored.map((row) => row.actor),
            // Bare text columns hold no NUL; everything else is kept byte for byte.
            hostile.map((text) => text.replaceAll("\u0000", "\ufffd"))
          )
        })
      )

      test(
        "that is equal but for case, accent or a trailing blank stays apart (B10)",
        Effect.gen(function* () {
          const store = yield* Store
          const sets = ["a", "A", "\u00e1", "a\u0301", "a "]
          yield* store.write(sets.map((set, n) => write(n, { set })))
          assert.deepStrictEqual(
            (yield* store.declarations).map((declaration) => declaration.set),
            sets
          )
          for (const [n, text] of ["x", "X", "x "].entries())
            yield* store
              .operations({ name: text })
              .pipe(Effect.map((page) => assert.strictEqual(page.items.length, 0, `${n}`)))
        })
      )
    })

    describe("a row that does not decode", () => {
      test(
        "is left out alone, shown by describe, and still guards its volume (B10, S19)",
        Effect.gen(function* () {
          const store = yield* Store
          yield* store.write([write(1), write(2), write(3)])
          yield* store.bind([{ uid: uidOf(1), binding: bindingOf(1) }])
          const { operation_id } = yield* store.intend(attach(3))
          yield* probe.corrupt("declarations", "spec", "uid", uidOf(1))
          yield* probe.corrupt("volume_operations", "request", "id", operation_id)
          yield* store.write([write(4)])
          assert.deepStrictEqual(yield* store.unresolved, [])
          const double = yield* refusal(store.intend(attach(3)))
          assert.strictEqual(double._tag, "PreconditionLost")
          const stolen = yield* refusal(store.intend(attach(2, { volume_id: volumeId(1) })))
          assert.strictEqual(stolen._tag, "PreconditionLost")
          const blind = yield* refusal(
            store.write([write(1, { expected_generation: 1, generation: 2, spec: spec({ read_only: true }) })])
          )
          assert.strictEqual(blind._tag, "StoreUnavailable")
          // That failure made the store read again what is there.
          const { undecodable } = yield* store.describe
          assert.deepStrictEqual(undecodable.map((row) => `${row.table} ${row.id}`).sort(), [
            `declarations ${uidOf(1)}`,
            `volume_operations ${operation_id}`
          ])
          const living = yield* store.declarations
          assert.deepStrictEqual(
            living.map((declaration) => declaration.name),
            ["disk-2", "disk-3", "disk-4"]
          )
        })
      )
    })
  })
