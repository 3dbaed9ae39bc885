import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import { Volume } from "../schema/Api.ts"
import { GIB, Spec } from "../schema/Declaration.ts"
import * as Document from "../schema/Document.ts"

const offering = "c813c642-d946-49e1-9289-c616dd70206a"

const refusedBy = <A>(decode: Effect.Effect<A, Document.Refused>) =>
  Effect.map(Effect.flip(decode), ({ errors }) => errors)
const put = (value: unknown) => Document.decodePut("a", value)

describe("sizes", () => {
  it.effect("are bytes, or whole numbers of a binary unit", () =>
    Effect.gen(function* () {
      const sizes: ReadonlyArray<readonly [unknown, number]> = [
        [GIB, GIB],
        ["1073741824", GIB],
        ["100GiB", 100 * GIB],
        ["100Gi", 100 * GIB],
        [" 100 gib ", 100 * GIB],
        ["2048MiB", 2 * GIB],
        ["1TiB", 1024 * GIB],
        [Number.MAX_SAFE_INTEGER, Number.MAX_SAFE_INTEGER],
        [GIB + 1, GIB + 1]
      ]
      for (const [written, bytes] of sizes) {
        assert.strictEqual((yield* put({ size: written })).spec.size, bytes, String(written))
      }
    })
  )

  it.effect("refuse decimal units with the binary one as a hint, and everything out of range", () =>
    Effect.gen(function* () {
      const sizes: ReadonlyArray<readonly [unknown, RegExp]> = [
        ["100GB", /write 100GiB/],
        ["1tb", /write 1TiB/],
        [GIB - 1, /at least 1 GiB/],
        ["1023MiB", /at least 1 GiB/],
        [0, /at least 1 GiB/],
        [-GIB, /at least 1 GiB/],
        [2 ** 53, /less than 2\^53/],
        ["9999999PiB", /less than 2\^53/],
        [GIB + 0.5, /whole bytes/],
        [Number.NaN, /whole bytes/],
        [Number.POSITIVE_INFINITY, /whole bytes/],
        ["1.5GiB", /a size in bytes or GiB/],
        ["ten", /a size in bytes or GiB/],
        ["-1GiB", /a size in bytes or GiB/],
        ["0x40000000", /a size in bytes or GiB/],
        [[GIB], /a size in bytes or GiB/],
        [true, /a size in bytes or GiB/]
      ]
      for (const [written, problem] of sizes) {
        const [first, ...rest] = yield* refusedBy(put({ size: written }))
        assert.strictEqual(rest.length, 0)
        assert.strictEqual(first?.field, "size")
        assert.match(first?.problem ?? "", problem, String(written))
        assert.match(first?.problem ?? "", /example: "100GiB"/)
      }
    })
  )
})

describe("a declaration", () => {
  it.effect("tells what was omitted from what was made absent", () =>
    Effect.gen(function* () {
      const { spec } = yield* put({ attached_to: null, size: "1Gi" })
      assert.deepStrictEqual(spec, { attached_to: null, size: GIB })
      assert.isFalse(Object.hasOwn(spec, "export_wanted"))
    })
  )

  it.effect("takes every member of a spec", () =>
    Effect.gen(function* () {
      const spec = {
        cloudstack_name: "any ☂ name",
        volume_id: offering,
        size: GIB,
        disk_offering_id: offering,
        zone_id: offering,
        attached_to: "appliance",
        attach_as: "data",
        export_wanted: true,
        read_only: true,
        deletion_policy: "retain",
        on_conflict: "move",
        on_drift: "hold",
        on_loss: "recreate",
        paused: { reason: "r", by: "b", until: "2026-03-01T12:00:00Z" },
        metadata: { constructor: "a key like any other", toString: "so is this" }
      }
      assert.sameMembers(Object.keys(spec), Object.keys(Spec.fields))
      assert.deepStrictEqual<unknown>((yield* put(spec)).spec, spec)
    })
  )

  it.effect("refuses wrong values with what was expected and an example, each in its field", () =>
    Effect.gen(function* () {
      const values: Readonly<Record<string, ReadonlyArray<unknown>>> = {
        cloudstack_name: ["", "a\nb", "x".repeat(256), 7, "a\u2028b", "tab\t"],
        volume_id: ["C813C642-D946-49E1-9289-C616DD70206A", "../../etc/passwd", "1", `${offering}\n`, {}],
        attached_to: ["Appliance", "none ", "", 1, true],
        attach_as: ["disk", 0],
        export_wanted: ["true", 1, []],
        read_only: ["no"],
        deletion_policy: ["Delete", "destroy", ["delete"]],
        on_conflict: ["steal"],
        on_drift: ["ignore"],
        on_loss: [""],
        paused: [
          true,
          "yes",
          { reason: "r" },
          { reason: "", by: "b" },
          { reason: "r", by: "b", until: "soon" },
          { reason: "r", by: "b", untill: "x" }
        ],
        metadata: [[], "a=b", 1]
      }
      for (const [field, wrong] of Object.entries(values)) {
        for (const value of wrong) {
          const errors = yield* refusedBy(put({ [field]: value }))
          assert.strictEqual(errors.length, 1, `${field}: ${JSON.stringify(value)}`)
          assert.strictEqual(errors[0]?.field, field)
          assert.match(errors[0]?.problem ?? "", /^expected .*; example: .+$/u)
        }
      }
      for (const never of ["2026-13-01T12:00:00Z", "2030-02-30T00:00:00Z", "2030-01-01T24:00:00Z"]) {
        const [until] = yield* refusedBy(put({ paused: { reason: "r", by: "b", until: never } }))
        assert.strictEqual(until?.field, "paused.until", never)
      }
    })
  )

  it.effect("bounds metadata, whose keys are unique ignoring case", () =>
    Effect.gen(function* () {
      const many = Object.fromEntries(Array.from({ length: 33 }, (_, index) => [`k${index}`, "v"]))
      const wrong: ReadonlyArray<readonly [object, RegExp]> = [
        [many, /at most 32 entries, found 33/],
        [{ a: "1", A: "2" }, /more than upper and lower case, found a and A/],
        [{ a: "" }, /1-255 characters/],
        [{ a: null }, /found null/],
        [{ a: 1 }, /found 1/],
        [{ "": "x" }, /1-255 characters/],
        [{ a: "x".repeat(256) }, /1-255 characters/],
        [{ a: "\u0000" }, /without control characters/]
      ]
      for (const [metadata, problem] of wrong) {
        const [first] = yield* refusedBy(put({ metadata }))
        assert.match(first?.field ?? "", /^metadata/)
        assert.match(first?.problem ?? "", problem)
      }
    })
  )

  it.effect("suggests the key that was probably meant", () =>
    Effect.gen(function* () {
      const near: Readonly<Record<string, string>> = {
        siz: "size",
        Size: "size",
        attach_to: "attached_to",
        offering_id: "disk_offering_id",
        export: "export_wanted",
        readonly: "read_only",
        deletion: "is set by the server",
        on_los: "on_loss"
      }
      for (const [key, meant] of Object.entries(near)) {
        const [first] = yield* refusedBy(put({ [key]: "x" }))
        assert.strictEqual(first?.field, key)
        assert.include(first?.problem, meant)
      }
      const [far] = yield* refusedBy(put({ colour: "red" }))
      assert.match(far?.problem ?? "", /expected one of cloudstack_name, volume_id/)
    })
  )

  it.effect("names itself once, as in the path", () =>
    Effect.gen(function* () {
      assert.strictEqual((yield* put({ name: "a" })).name, "a")
      const [renamed] = yield* refusedBy(put({ name: "b" }))
      assert.match(renamed?.problem ?? "", /cannot be renamed/)
      for (const name of ["", ".a", "-a", "a b", "a/b", "../a", "a\n", "ä", "x".repeat(254)]) {
        const [first] = yield* refusedBy(Document.decodePut(name, {}))
        assert.strictEqual(first?.field, "name", name)
      }
    })
  )
})

describe("a whole answer", () => {
  it.effect("is taken for its spec and uid; what the server owns is ignored there and refused as flat keys (e1)", () =>
    Effect.gen(function* () {
      assert.sameMembers(["name", "spec", ...Document.serverOwned], Object.keys(Volume.fields))
      const owned = Object.fromEntries(Document.serverOwned.map((key) => [key, "whatever"]))
      const wish = yield* put({ ...owned, uid: offering, name: "a", spec: { read_only: true } })
      assert.deepStrictEqual<unknown>(wish, { name: "a", uid: offering, spec: { read_only: true } })
      for (const key of Document.serverOwned) {
        const [first] = yield* refusedBy(put({ [key]: owned[key] }))
        assert.strictEqual(first?.field, key)
      }
      const [beside] = yield* refusedBy(put({ spec: {}, size: "1Gi" }))
      assert.match(beside?.problem ?? "", /inside spec/)
      const [strange] = yield* refusedBy(put({ spec: {}, owner: "me" }))
      assert.match(strange?.problem ?? "", /unknown key/)
      assert.strictEqual((yield* refusedBy(put({ spec: { uid: offering } }))).length, 1)
      assert.strictEqual((yield* refusedBy(put({ spec: [] })))[0]?.field, "spec")
      assert.strictEqual((yield* refusedBy(put({ spec: {}, uid: "me" })))[0]?.field, "uid")
    })
  )
})

describe("hostile values (X4)", () => {
  const nested = (levels: number): unknown => (levels === 0 ? 1 : [nested(levels - 1)])

  it.effect("are refused before anything is interpreted, and change no prototype", () =>
    Effect.gen(function* () {
      const values: ReadonlyArray<readonly [unknown, RegExp]> = [
        [JSON.parse('{"__proto__": {"size": 1}}'), /no key __proto__/],
        [JSON.parse('{"metadata": {"a": {"__proto__": 1}}}'), /no key __proto__/],
        [{ metadata: { a: "\ud800" } }, /surrogate/],
        [{ metadata: { "\udc00": "a" } }, /surrogate/],
        [nested(33), /32 levels/],
        [nested(5_000), /32 levels/]
      ]
      for (const [value, problem] of values) {
        const [first] = yield* refusedBy(put(value))
        assert.match(first?.problem ?? "", problem)
      }
      assert.notProperty({}, "size")
      assert.deepStrictEqual((yield* put({ metadata: { a: "\u{1f600}" } })).spec.metadata, { a: "\u{1f600}" })
    })
  )

  it.effect("are shown short and on one line", () =>
    Effect.gen(function* () {
      const long = "\u001b[31m\n".repeat(100_000)
      for (const errors of [
        yield* refusedBy(put({ [long]: 1 })),
        yield* refusedBy(put({ attached_to: long })),
        yield* refusedBy(Document.decodeApply({ volumes: [{ name: long }] })),
        yield* refusedBy(Document.decodeApply({ set: long, volumes: [] }))
      ]) {
        const text = JSON.stringify(errors)
        assert.isBelow(text.length, 1000)
        assert.notMatch(
          errors.map(({ field, name, problem }) => `${field}${name}${problem}`).join(""),
          /[\u0000-\u001f]/u
        )
      }
    })
  )

  it.effect("do not make an answer without end", () =>
    Effect.gen(function* () {
      const volumes = Array.from({ length: 10_000 }, () => ({ name: "-" }))
      const refused = yield* Effect.flip(Document.decodeApply({ volumes }))
      assert.isAtMost(refused.errors.length, 200)
      assert.match(refused.error, /more, see details.errors/)
    })
  )
})

describe("a document", () => {
  it.effect("is volumes with an optional set", () =>
    Effect.gen(function* () {
      const file = yield* Document.decodeFile({
        set: "s",
        volumes: [
          { name: "a", size: "1Gi" },
          { name: "b", spec: {} }
        ]
      })
      assert.deepStrictEqual<unknown>(file, {
        set: "s",
        volumes: [
          { name: "a", uid: null, spec: { size: GIB } },
          { name: "b", uid: null, spec: {} }
        ]
      })
      assert.strictEqual((yield* Document.decodeFile({ volumes: [] })).set, null)
      const request = yield* Document.decodeApply({ volumes: [], take_over: true })
      assert.deepStrictEqual([request.take_over, request.prune], [true, false])
    })
  )

  it.effect("is refused with every problem and its place", () =>
    Effect.gen(function* () {
      const errors = yield* refusedBy(
        Document.decodeApply({
          set: "a b",
          prune: "yes",
          volume: [],
          volumes: [{ name: "a", size: "1GB", sice: 1 }, { size: "1Gi" }, 7, { name: "a" }, null]
        })
      )
      assert.sameMembers(
        errors.map(({ index, name, field }) => `${index} ${name} ${field}`),
        [
          "null null volume",
          "null null set",
          "null null prune",
          "0 a size",
          "0 a sice",
          "1 null name",
          "2 null null",
          "3 a name",
          "4 null null"
        ]
      )
      assert.match(errors.find(({ index }) => index === 3)?.problem ?? "", /volumes\[0\] has it already/)
    })
  )

  it.effect("of another shape is refused", () =>
    Effect.gen(function* () {
      for (const value of [
        null,
        undefined,
        [],
        "volumes",
        1,
        {},
        { volumes: {} },
        { volumes: null },
        { volumes: "a" }
      ]) {
        assert.isAtLeast((yield* refusedBy(Document.decodeFile(value))).length, 1)
      }
      const [flag] = yield* refusedBy(Document.decodeFile({ volumes: [], prune: true }))
      assert.strictEqual(flag?.field, "prune", "a file does not say how it is applied")
    })
  )
})

describe("a merge patch", () => {
  it.effect("merges nested members, and null removes", () =>
    Effect.gen(function* () {
      const { spec: made } = yield* put({ metadata: { a: "1", b: "2" }, paused: { reason: "r", by: "b" } })
      const current = { ...made, metadata: made.metadata ?? {}, paused: made.paused ?? null } as Spec
      const patched = yield* Document.decodePatch(
        "a",
        { metadata: { a: null, c: "3" }, paused: { until: "2026-03-01T12:00:00Z" } },
        current
      )
      assert.deepStrictEqual<unknown>(patched.spec, {
        metadata: { b: "2", c: "3" },
        paused: { reason: "r", by: "b", until: "2026-03-01T12:00:00Z" }
      })
      assert.deepStrictEqual((yield* Document.decodePatch("a", { metadata: null }, current)).spec, { metadata: null })
      const whole = yield* Document.decodePatch("a", { spec: { metadata: { b: null } } }, current)
      assert.deepStrictEqual(whole.spec.metadata, { a: "1" })
      const [first] = yield* refusedBy(Document.decodePatch("a", { metadata: { d: 1 } }, current))
      assert.strictEqual(first?.field, "metadata.d")
    })
  )
})
