import { Effect, Option } from "effect"
import type { Approval, Maintenance, Store } from "../../reconciler/Store.ts"
import { Name, OperationId } from "../../schema/Ids.ts"
import {
  answer,
  attach,
  bindingOf,
  call,
  callId,
  condition,
  detach,
  removal,
  spec,
  uidOf,
  uuid,
  vm,
  volumeId,
  write
} from "./Samples.ts"

/** One use of the store. The same step leads from the same rows to the same rows, ids and times included. */
export interface Step {
  readonly name: string
  readonly run: (store: Store["Type"]) => Effect.Effect<unknown, { readonly _tag: string }>
  /** The Idempotency-Key that it answers. */
  readonly key?: string
}

export const AT = Date.parse("2026-03-01T12:00:00.000Z")

const DAY_MS = 86_400_000

/** The id that the store gives at a step, the n-th of one transaction. */
export const idAt = (step: number, n: number) => uuid(0x900000 + step * 100 + n)

const exported = { name: "vol-1", path: "/dev/disk/by-id/virtio-1", settled_at: AT }
const elsewhere = spec({ attached_to: "none", export_wanted: false })
const changed = (n: number, generation: number, over: Partial<Parameters<typeof write>[1]> = {}) =>
  write(n, { expected_generation: generation - 1, generation, kind: "changed", actor: "bob", ...over })

const maintenance: Maintenance = {
  reason: "new disks",
  by: "eve",
  since: "2026-03-01T12:00:00.000Z",
  until: null,
  ending: false
}
const held = {
  uid: uidOf(3),
  name: Name.make("disk-3"),
  generation: 1,
  volume_id: volumeId(3),
  action: "detach",
  digest: "d"
} as const
const approval: Approval = { ...held, expires_at: AT + 3_600_000 }

const mapping = (n: number, path: string) => ({ volume_id: volumeId(n), vm_id: vm, device_path: path, size: n })

/** More than may be added before the oldest are looked for, in one transaction. */
const many = Array.from({ length: 1000 }, (_, n) => condition({ reason: `Reason${n}` }))

const operationAt = (step: number) => OperationId.make(`op-${idAt(step, 0)}`)
const at = (name: string) => steps.findIndex((step) => step.name === name)

/** Every method of the store, each in the states that make it say all that it can say to the database. */
export const steps: ReadonlyArray<Step> = [
  { name: "declare three", run: (store) => store.write([write(1), write(2), write(3)]) },
  {
    name: "declare one by a call under a key",
    key: "k-call",
    run: (store) => store.write([write(4)], { calls: [call(4)], answer: answer("k-call") })
  },
  {
    name: "bind four volumes, one of them exported, and learn of one that is gone",
    run: (store) =>
      store.bind([
        { uid: uidOf(1), binding: bindingOf(1, { export: exported }) },
        ...[2, 3, 4].map((n) => ({ uid: uidOf(n), binding: bindingOf(n) })),
        { uid: uidOf(99), binding: bindingOf(99) }
      ])
  },
  { name: "change a wish", run: (store) => store.write([changed(1, 2, { spec: spec({ read_only: true }) })]) },
  { name: "refuse a stale wish", run: (store) => store.write([changed(2, 9)]) },
  {
    name: "declare one that is exported already",
    run: (store) => store.write([write(5, { binding: bindingOf(5, { export: { ...exported, name: "vol-5" } }) })])
  },
  {
    name: "cancel a call by a newer one",
    key: "k-newer",
    run: (store) =>
      store.write([changed(4, 2, { spec: elsewhere })], {
        calls: [
          call(4, {
            call: 40,
            type: "detach",
            generation: 2,
            wish: {
              spec: { attached_to: "none", export_wanted: false },
              before: { attached_to: "appliance", export_wanted: true },
              remove: false
            }
          })
        ],
        answer: answer("k-newer")
      })
  },
  {
    name: "add a call beside an open one",
    run: (store) =>
      store.write([], {
        calls: [
          call(4, {
            call: 41,
            generation: 2,
            wish: { spec: { export_wanted: false }, before: { export_wanted: true }, remove: false }
          })
        ]
      })
  },
  {
    name: "end a call and take its wish back",
    run: (store) =>
      store.write([changed(4, 3, { spec: spec() })], {
        ends: [{ id: callId(40), advance: { phase: "uncertain", status: "failed", error: "the VM is gone" } }]
      })
  },
  { name: "intend an attach", run: (store) => store.intend(attach(2)) },
  {
    name: "advance it",
    run: (store) =>
      store.advance(operationAt(at("intend an attach")), {
        phase: "submitted",
        status: "executing",
        submitted_at: AT,
        expires_at: AT + 60_000
      })
  },
  {
    name: "settle it",
    run: (store) =>
      store.settle(
        operationAt(at("intend an attach")),
        { phase: "settled", status: "completed", response: { device: "vdb" } },
        { uid: uidOf(2), binding: bindingOf(2, { attachment: { vm_id: vm, as: "data", settled: true } }) }
      )
  },
  { name: "intend a detach", run: (store) => store.intend(detach(3)) },
  {
    name: "approve what is held",
    key: "k-approve",
    run: (store) => store.approve([approval], answer("k-approve"))
  },
  {
    name: "begin a maintenance",
    key: "k-maintenance",
    run: (store) => store.setMaintenance(maintenance, { answer: answer("k-maintenance") })
  },
  {
    name: "end it and withhold what is pending",
    run: (store) => store.setMaintenance(null, { standing: maintenance, withheld: [held] })
  },
  {
    name: "save conditions",
    run: (store) =>
      store.saveConditions([
        { uid: uidOf(1), conditions: [condition()] },
        { uid: uidOf(2), conditions: [condition({ reason: "Queued" })] }
      ])
  },
  {
    name: "map devices",
    run: (store) => store.saveDeviceMappings([mapping(1, "/dev/vdb"), mapping(2, "/dev/vdc")])
  },
  {
    name: "map devices that changed places",
    run: (store) => store.saveDeviceMappings([mapping(1, "/dev/vdc"), mapping(3, "/dev/vdb")])
  },
  { name: "remember an answer", key: "k-answer", run: (store) => store.remember(answer("k-answer")) },
  {
    name: "record an event",
    run: (store) => store.record({ kind: "condition", name: "disk-1", actor: null, message: "seen" })
  },
  { name: "intend an attach of another", run: (store) => store.intend(attach(1, { generation: 2 })) },
  {
    name: "settle that one as refused",
    run: (store) =>
      store.settle(
        operationAt(at("intend an attach of another")),
        { phase: "refused", status: "failed", error: "no" },
        null
      )
  },
  {
    name: "declare one removed",
    run: (store) =>
      store.write([changed(1, 3, { kind: "removed", deletion: removal, spec: spec({ read_only: true }) })])
  },
  {
    name: "undelete it",
    run: (store) => store.write([changed(1, 4, { kind: "undeleted", spec: spec({ read_only: true }) })])
  },
  {
    name: "declare it removed again",
    run: (store) =>
      store.write([changed(1, 5, { kind: "removed", deletion: removal, spec: spec({ read_only: true }) })])
  },
  { name: "finish its removal", run: (store) => store.finishRemoval(uidOf(1)) },
  {
    name: "save a condition of the one that is gone",
    run: (store) => store.saveConditions([{ uid: uidOf(1), conditions: [condition({ reason: "Gone" })] }])
  },
  {
    name: "save so many conditions that old events go",
    run: (store) => store.saveConditions([{ uid: uidOf(2), conditions: many }])
  },
  {
    name: "prune what is old",
    run: (store) => store.prune({ now: AT + 40 * DAY_MS, operations_ms: DAY_MS, events_ms: DAY_MS })
  },
  { name: "ask for everything", run: (store) => answers(store) },
  { name: "describe the database", run: (store) => store.describe }
]

/** Everything that can be asked of it. A store whose caches are right answers as one that has just begun. */
export const answers = Effect.fnUntraced(function* (store: Store["Type"]) {
  const { newest, oldest } = yield* store.eventRange
  const events = yield* store.events({
    after: 0,
    limit: 1000,
    since: "2026-01-01T00:00:00Z",
    until: "2027-01-01T00:00:00Z"
  })
  const page = yield* store.operations({ limit: 2, since: "2026-01-01T00:00:00Z" })
  return {
    declarations: yield* store.declarations,
    declaration: yield* store.declaration(Name.make("disk-1")),
    removed: yield* store.removedSince("2026-01-01T00:00:00Z"),
    unresolved: yield* store.unresolved,
    calls: yield* store.calls,
    one: yield* store.operation(callId(4)),
    page: page.items,
    next: page.next === null ? [] : (yield* store.operations({ limit: 100, cursor: page.next })).items,
    destructive: yield* store.destructiveSince(AT - 1),
    approvals: yield* store.approvals(AT),
    conditions: [...(yield* store.conditions)].toSorted(([a], [b]) => (a < b ? -1 : 1)),
    mappings: yield* store.deviceMappings,
    maintenance: yield* store.maintenance,
    withheld: yield* store.withheld,
    answered: yield* Effect.forEach(
      steps.flatMap(({ key }) => (key === undefined ? [] : [key])),
      (key) => Effect.map(store.answered(key), Option.getOrNull)
    ),
    // Their numbers are not the same after a rollback; their order is.
    events: events.map((event) => ({ ...event, id: 0 })),
    range: newest - oldest >= events.length - 1,
    statistics: yield* store.statistics
  }
})
