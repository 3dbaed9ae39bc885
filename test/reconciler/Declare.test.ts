import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import * as Declare from "../../reconciler/Declare.ts"
import { type Declaration, GIB, type Spec } from "../../schema/Declaration.ts"
import type { ApplyRequest, Refused, SpecChange, Wish } from "../../schema/Document.ts"
import { Name, OfferingId, OperationId, Uid, VmId, VolumeId, ZoneId } from "../../schema/Ids.ts"

const offering = OfferingId.make("c813c642-d946-49e1-9289-c616dd70206a")
const otherOffering = OfferingId.make("11111111-d946-49e1-9289-c616dd70206a")
const zone = ZoneId.make("057e86db-c726-4d8c-ab1f-75c5f55d1881")
const appliance = VmId.make("8a4400e5-c92a-4bc4-8bff-4b6b0b6a018c")
const otherVm = VmId.make("d1e7a9f0-6f0e-4f5e-9a55-0b6f0b1f7a01")
const volume = VolumeId.make("c6ef61d1-300f-442a-86e5-000000000001")

let uids = 0
const context = (part: Partial<Declare.Context> = {}): Declare.Context => ({
  now: 1_000_000,
  actor: "alice",
  appliance_vm_id: appliance,
  defaults: { disk_offering_id: offering, zone_id: zone },
  delete_grace_ms: 600_000,
  newUid: () => Uid.make(`00000000-0000-0000-0000-${String(++uids).padStart(12, "0")}`),
  ...part
})

const wish = (name: string, spec: SpecChange = {}, uid: Uid | null = null): Wish => ({
  name: Name.make(name),
  uid,
  spec
})
const document = (volumes: ReadonlyArray<Wish>, part: Partial<ApplyRequest> = {}): ApplyRequest => ({
  set: "s",
  take_over: false,
  prune: false,
  ...part,
  volumes
})

/** As the store would hold it. */
const put = (existing: ReadonlyArray<Declaration>, one: Wish, part: Partial<Declare.Context> = {}) =>
  Declare.put(existing, one, Declare.unconditional, context(part))
const declared = (name: string, spec: SpecChange = { size: GIB }, part: Partial<Declare.Context> = {}) =>
  Effect.map(put([], wish(name, spec), part), ({ declaration }) => declaration)
const applied = (existing: ReadonlyArray<Declaration>, request: ApplyRequest, now = 2_000_000) =>
  Declare.apply(existing, request, context({ now }))

const codeOf = <A>(effect: Effect.Effect<A, Refused>) => Effect.map(Effect.flip(effect), ({ code }) => code)
const fieldsOf = <A>(effect: Effect.Effect<A, Refused>) =>
  Effect.map(Effect.flip(effect), ({ errors }) => errors.map(({ field }) => field))

describe("making a declaration", () => {
  it.effect("fills defaults in once: nowhere and not exported when created, undecided when adopted", () =>
    Effect.gen(function* () {
      const created = yield* declared("a")
      const { attached_to, export_wanted, disk_offering_id, zone_id, cloudstack_name } = created.spec
      assert.deepStrictEqual<unknown>(
        [attached_to, export_wanted, disk_offering_id, zone_id, cloudstack_name],
        ["none", false, offering, zone, "a"]
      )
      const adopted = (yield* declared("b", { volume_id: volume })).spec
      assert.deepStrictEqual(
        [adopted.attached_to, adopted.export_wanted, adopted.disk_offering_id, adopted.zone_id, adopted.size],
        [null, null, null, null, null]
      )
    })
  )

  it.effect("obeys what is stated, null included", () =>
    Effect.gen(function* () {
      const { spec } = yield* declared("a", {
        size: GIB,
        attached_to: null,
        export_wanted: null,
        disk_offering_id: null,
        deletion_policy: null,
        zone_id: zone
      })
      assert.deepStrictEqual([spec.attached_to, spec.export_wanted, spec.deletion_policy], [null, null, "forget"])
      assert.strictEqual(spec.disk_offering_id, offering, "there is no volume without an offering")
    })
  )

  it.effect("asks for what a volume cannot be created without, all at once", () =>
    Effect.gen(function* () {
      const refused = put([], wish("a"), { defaults: { disk_offering_id: null, zone_id: null } })
      assert.deepStrictEqual(yield* fieldsOf(refused), ["size", "disk_offering_id", "zone_id"])
      assert.strictEqual(yield* codeOf(refused), "INVALID_REQUEST")
      const adopted = yield* put([], wish("a", { volume_id: volume }), {
        defaults: { disk_offering_id: null, zone_id: null }
      })
      assert.strictEqual(adopted.outcome, "created")
    })
  )

  it.effect("is a write that expects none living, by one manager for what was stated", () =>
    Effect.gen(function* () {
      const { write, declaration } = yield* put([], wish("a", { size: GIB, read_only: false }))
      assert.strictEqual(write?.expected_generation, null)
      assert.strictEqual(write?.generation, 1)
      assert.strictEqual(write?.kind, "declared")
      assert.deepStrictEqual(declaration.managers, {
        size: { by: "alice", at: "1970-01-01T00:16:40.000Z" },
        read_only: { by: "alice", at: "1970-01-01T00:16:40.000Z" }
      })
    })
  )

  it.effect("refuses root on the appliance, by name and by id, at any time", () =>
    Effect.gen(function* () {
      for (const attached_to of ["appliance", appliance] as const) {
        const refused = put([], wish("a", { size: GIB, attach_as: "root", attached_to }))
        assert.deepStrictEqual(yield* fieldsOf(refused), ["attach_as"])
      }
      const root = yield* declared("a", { size: GIB, attach_as: "root", attached_to: otherVm })
      assert.strictEqual(yield* codeOf(put([root], wish("a", { attached_to: "appliance" }))), "INVALID_REQUEST")
    })
  )
})

describe("writing it again", () => {
  const stated: SpecChange = {
    size: GIB,
    attached_to: otherVm,
    attach_as: "root",
    export_wanted: true,
    read_only: true,
    metadata: { b: "2", a: "1" }
  }

  it.effect("PUT keeps the placement, the export and what is immutable when omitted, and replaces the rest", () =>
    Effect.gen(function* () {
      const before = yield* declared("a", stated)
      const { spec } = (yield* put([before], wish("a"))).declaration
      const expected: Spec = { ...before.spec, read_only: false, metadata: {} }
      assert.deepStrictEqual(spec, expected)
    })
  )

  it.effect("PATCH keeps everything that is not named", () =>
    Effect.gen(function* () {
      const before = yield* declared("a", stated)
      const patch = Declare.patch([before], wish("a", { on_drift: "hold" }), Declare.unconditional, context())
      assert.deepStrictEqual((yield* patch).declaration.spec, { ...before.spec, on_drift: "hold" })
    })
  )

  it.effect("makes no generation when nothing changes, whatever the order of keys", () =>
    Effect.gen(function* () {
      const before = yield* declared("a", stated)
      const same = yield* put([before], wish("a", { ...stated, metadata: { a: "1", b: "2" } }))
      assert.deepStrictEqual([same.outcome, same.write], ["unchanged", null])
    })
  )

  it.effect("makes a generation of the same words after a late effect, for they decide what becomes of it", () =>
    Effect.gen(function* () {
      const before = yield* declared("a", stated)
      const late = { operation_id: OperationId.make(`op-${before.uid}`), type: "attach" }
      const same = yield* put([{ ...before, binding: { ...before.binding, late } }], wish("a", stated))
      assert.deepStrictEqual([same.outcome, same.write?.generation], ["changed", 2])
    })
  )

  it.effect("makes one generation for what changed, under the one who changed it", () =>
    Effect.gen(function* () {
      const before = yield* declared("a", stated)
      const { write, outcome } = yield* put(
        [before],
        wish("a", { ...stated, attached_to: "none", attach_as: "data" }),
        {
          actor: "bob",
          now: 2_000_000
        }
      )
      assert.deepStrictEqual([outcome, write?.expected_generation, write?.generation], ["changed", 1, 2])
      const by = Object.fromEntries(Object.entries(write?.managers ?? {}).map(([key, manager]) => [key, manager.by]))
      assert.deepStrictEqual(by, {
        size: "alice",
        attached_to: "bob",
        attach_as: "bob",
        export_wanted: "alice",
        read_only: "alice",
        metadata: "alice"
      })
    })
  )

  it.effect("never means another volume", () =>
    Effect.gen(function* () {
      const before = yield* declared("a")
      for (const [field, value] of [
        ["size", 2 * GIB],
        ["size", null],
        ["disk_offering_id", otherOffering],
        ["disk_offering_id", null],
        ["zone_id", ZoneId.make(otherOffering)],
        ["volume_id", volume]
      ] as const) {
        const refused = put([before], wish("a", { [field]: value }))
        assert.deepStrictEqual([yield* codeOf(refused), yield* fieldsOf(refused)], ["FIELD_IMMUTABLE", [field]])
      }
      const later = yield* put([before], wish("a", { size: GIB }), {
        defaults: { disk_offering_id: otherOffering, zone_id: null }
      })
      assert.strictEqual(later.outcome, "unchanged", "defaults that change later change no declaration")
    })
  )

  it.effect("belongs to the uid it names", () =>
    Effect.gen(function* () {
      const before = yield* declared("a")
      const other = Uid.make(otherOffering)
      assert.strictEqual((yield* put([before], wish("a", {}, before.uid))).outcome, "unchanged")
      assert.strictEqual(yield* codeOf(put([before], wish("a", {}, other))), "CONFLICT")
      assert.strictEqual(yield* codeOf(put([], wish("a", { size: GIB }, other))), "CONFLICT")
    })
  )

  it.effect("of a volume that another living declaration has is a conflict, whether declared or made (S4)", () =>
    Effect.gen(function* () {
      const owner = yield* declared("owner", { volume_id: volume })
      const made = yield* declared("made")
      const bound: Declaration = { ...made, binding: { ...made.binding, volume_id: volume } }
      for (const existing of [owner, bound]) {
        assert.strictEqual(yield* codeOf(put([existing], wish("b", { volume_id: volume }))), "CONFLICT")
      }
      const leaving = (yield* Declare.remove([owner], owner.name, null, Declare.unconditional, context())).declaration
      assert.strictEqual(yield* codeOf(put([leaving], wish("b", { volume_id: volume }))), "CONFLICT")
      const both = applied([], document([wish("a", { volume_id: volume }), wish("b", { volume_id: volume })]))
      assert.strictEqual(yield* codeOf(both), "CONFLICT")
    })
  )
})

describe("a removal", () => {
  const remove = (existing: Declaration, policy: "forget" | "retain" | "delete" | null = null) =>
    Declare.remove([existing], existing.name, policy, Declare.unconditional, context({ now: 2_000_000 }))

  it.effect("waits for the grace only where the volume is to be deleted (S6)", () =>
    Effect.gen(function* () {
      const before = yield* declared("a", { size: GIB, deletion_policy: "retain" })
      const retained = (yield* remove(before)).declaration.deletion
      assert.deepStrictEqual(retained, {
        policy: "retain",
        requested_at: "1970-01-01T00:33:20.000Z",
        by: "alice",
        execute_after: "1970-01-01T00:33:20.000Z"
      })
      const { declaration, write } = yield* remove(before, "delete")
      assert.strictEqual(declaration.deletion?.execute_after, "1970-01-01T00:43:20.000Z")
      assert.strictEqual(declaration.spec.deletion_policy, "retain")
      assert.deepStrictEqual([write?.kind, write?.generation, write?.expected_generation], ["removed", 2, 1])
    })
  )

  it.effect("refuses every write meanwhile, and is itself repeated without effect (M8)", () =>
    Effect.gen(function* () {
      const before = (yield* remove(yield* declared("a"), "delete")).declaration
      assert.strictEqual(yield* codeOf(put([before], wish("a", { size: GIB }))), "DELETING")
      assert.strictEqual(
        yield* codeOf(Declare.patch([before], wish("a"), Declare.unconditional, context())),
        "DELETING"
      )
      assert.strictEqual(yield* codeOf(applied([before], document([wish("a")], { take_over: true }))), "DELETING")
      assert.strictEqual((yield* remove(before)).write, null)
      assert.strictEqual((yield* remove(before, "delete")).write, null)
      assert.strictEqual(yield* codeOf(remove(before, "forget")), "DELETING")
      const back = yield* Declare.undelete([before], before.name, [], Declare.unconditional, context())
      assert.deepStrictEqual(
        [back.declaration.deletion, back.write?.kind, back.write?.generation],
        [null, "undeleted", 3]
      )
    })
  )

  it.effect("of what is not declared is not found", () =>
    Effect.gen(function* () {
      const name = Name.make("a")
      assert.strictEqual(yield* codeOf(Declare.remove([], name, null, Declare.unconditional, context())), "NOT_FOUND")
      assert.strictEqual(yield* codeOf(Declare.undelete([], name, [], Declare.unconditional, context())), "NOT_FOUND")
      const living = yield* declared("a")
      assert.strictEqual(
        (yield* Declare.undelete([living], name, [], Declare.unconditional, context())).outcome,
        "unchanged"
      )
    })
  )
})

describe("applying a document", () => {
  const stored = (changes: ReadonlyArray<Declare.Change>) => changes.map(({ declaration }) => declaration)
  const first = Effect.map(
    applied([], document([wish("a", { size: GIB, attached_to: "none", read_only: true })]), 1_000_000),
    ({ changes }) => stored(changes)
  )
  const patched = (existing: ReadonlyArray<Declaration>, spec: SpecChange, now: number) =>
    Effect.map(
      Declare.patch(existing, wish("a", spec), Declare.unconditional, context({ now, actor: "v1" })),
      ({ declaration }) => [declaration]
    )

  it.effect("refuses fields that another manager wrote since, and overwrites them only when told to", () =>
    Effect.gen(function* () {
      const theirs = yield* patched(yield* first, { attached_to: "appliance" }, 1_500_000)
      const again = document([wish("a", { size: GIB, attached_to: "none", read_only: true })])
      const refused = yield* Effect.flip(applied(theirs, again))
      assert.strictEqual(refused.code, "FIELD_CONFLICT")
      assert.match(refused.errors[0]?.problem ?? "", /written by v1 at 1970-01-01T00:25:00.000Z/)
      assert.strictEqual(refused.errors[0]?.index, 0)
      const { changes } = yield* applied(theirs, { ...again, take_over: true })
      assert.strictEqual(changes[0]?.declaration.spec.attached_to, "none")
      assert.strictEqual(changes[0]?.declaration.managers["attached_to"]?.by, "set:s")
    })
  )

  it.effect("counts a write of the same instant as later", () =>
    Effect.gen(function* () {
      const theirs = yield* patched(yield* first, { attached_to: "appliance" }, 1_000_000)
      assert.strictEqual(
        yield* codeOf(applied(theirs, document([wish("a", { attached_to: "none" })]))),
        "FIELD_CONFLICT"
      )
    })
  )

  it.effect("does not dispute a field it states as the other one wrote it, nor one written before its last apply", () =>
    Effect.gen(function* () {
      const theirs = yield* patched(yield* first, { attached_to: "appliance" }, 1_500_000)
      const agreeing = document([wish("a", { size: GIB, attached_to: "appliance", read_only: false })])
      const { changes } = yield* applied(theirs, agreeing, 1_600_000)
      assert.deepStrictEqual(
        changes.map(({ outcome }) => outcome),
        ["changed"]
      )
      const later = yield* applied(stored(changes), document([wish("a", { attached_to: otherVm })]), 1_700_000)
      assert.strictEqual(later.changes[0]?.declaration.spec.attached_to, otherVm)
    })
  )

  it.effect("leaves what it omits to the manager who wrote it, and takes its own back to the default", () =>
    Effect.gen(function* () {
      const theirs = yield* patched(yield* first, { paused: { reason: "array", by: "bob" } }, 1_500_000)
      const { changes } = yield* applied(theirs, document([wish("a")]))
      const spec = changes[0]?.declaration.spec
      assert.deepStrictEqual(spec?.paused, { reason: "array", by: "bob" })
      assert.strictEqual(spec?.read_only, false)
      assert.strictEqual(spec?.attached_to, "none")
    })
  )

  it.effect("takes declarations of no set in, and those of another only when told to", () =>
    Effect.gen(function* () {
      const alone = yield* declared("a")
      const joined = yield* applied([alone], document([wish("a")]))
      assert.deepStrictEqual([joined.changes[0]?.outcome, joined.changes[0]?.declaration.set], ["changed", "s"])
      const foreign = document([wish("a")], { set: "t" })
      assert.deepStrictEqual(yield* fieldsOf(applied(stored(joined.changes), foreign)), ["set"])
      const taken = yield* applied(stored(joined.changes), { ...foreign, take_over: true })
      assert.strictEqual(taken.changes[0]?.declaration.set, "t")
      const anonymous = yield* applied(stored(joined.changes), { ...foreign, set: null })
      assert.strictEqual(anonymous.changes[0]?.outcome, "unchanged")
    })
  )

  it.effect("is all or none, with every problem in its place and the gravest as its code", () =>
    Effect.gen(function* () {
      const theirs = yield* patched(yield* first, { attached_to: "appliance" }, 1_500_000)
      const refused = yield* Effect.flip(
        applied(
          theirs,
          document([wish("a", { attached_to: "none", size: 2 * GIB }), wish("ok", { size: GIB }), wish("c")])
        )
      )
      assert.strictEqual(refused.code, "INVALID_REQUEST")
      assert.deepStrictEqual(
        refused.errors.map(({ index, name, field }) => `${index} ${name} ${field}`),
        ["0 a size", "0 a attached_to", "2 c size"]
      )
      assert.match(refused.error, /^c: size: required/)
    })
  )

  it.effect("prunes at most a fifth of its own set, by policy forget, and never all of it", () =>
    Effect.gen(function* () {
      const names = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"]
      const all = names.map((name) => wish(name, { size: GIB, ...(name === "j" ? { deletion_policy: "delete" } : {}) }))
      const mine = stored((yield* applied([], document(all))).changes)
      const existing = [...mine, yield* declared("foreign")]
      const keep = (count: number) => all.slice(0, count)
      const prune = (volumes: ReadonlyArray<Wish>, set: string | null = "s") =>
        applied(existing, document(volumes, { prune: true, set }))
      const pruned = yield* prune(keep(7))
      assert.deepStrictEqual<unknown>(
        pruned.pruned.map(({ declaration }) => declaration.name),
        ["h", "i"]
      )
      assert.deepStrictEqual<unknown>(pruned.prune_kept, ["j"])
      assert.isTrue(pruned.pruned.every(({ write }) => write?.deletion?.policy === "forget"))
      for (const refused of [prune(keep(6)), prune([]), prune(keep(9), null)]) {
        assert.deepStrictEqual(yield* fieldsOf(refused), ["prune"])
      }
      assert.deepStrictEqual((yield* applied(existing, document(keep(1)))).pruned, [])
    })
  )
})

describe("preconditions (S14)", () => {
  it.effect("are the generation it is at, or that there is none", () =>
    Effect.gen(function* () {
      const before = yield* declared("a")
      const write = (existing: ReadonlyArray<Declaration>, precondition: Declare.Precondition) =>
        Declare.put(existing, wish("a", { size: GIB, read_only: true }), precondition, context())
      const lost = { if_match: [2], if_none_match: false }
      assert.strictEqual(yield* codeOf(write([before], lost)), "PRECONDITION_FAILED")
      assert.strictEqual(yield* codeOf(write([], { if_match: [1], if_none_match: false })), "PRECONDITION_FAILED")
      assert.strictEqual(yield* codeOf(write([], { if_match: "any", if_none_match: false })), "PRECONDITION_FAILED")
      assert.strictEqual(yield* codeOf(write([before], { if_match: null, if_none_match: true })), "PRECONDITION_FAILED")
      assert.strictEqual((yield* write([before], { if_match: [7, 1], if_none_match: false })).outcome, "changed")
      assert.strictEqual((yield* write([before], { if_match: "any", if_none_match: false })).outcome, "changed")
      assert.strictEqual((yield* write([], { if_match: null, if_none_match: true })).outcome, "created")
      const removal = Declare.remove([before], before.name, null, lost, context())
      assert.strictEqual(yield* codeOf(removal), "PRECONDITION_FAILED")
    })
  )
})
