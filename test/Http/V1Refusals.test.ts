import { assert, describe, it } from "@effect/vitest"
import { Effect, Fiber, Option } from "effect"
import { Store } from "../../reconciler/Store.ts"
import * as World from "../../src/Simulation/World.ts"
import * as Cloud from "../support/Cloud.ts"
import * as Lab from "./V1Lab.ts"

const { attach, attachRoot, classify, completed, created, detach, existing, GIB, remove, truth } = Lab
const { appliance, otherVm, testVm } = Cloud

const nobody = "00000000-0000-4000-8000-000000000000"

interface Refusal {
  readonly error: string
  readonly code: string
  readonly details: {
    readonly suggestion?: string
    readonly errors?: ReadonlyArray<{ readonly field: string | null; readonly problem: string }>
    readonly cloudstack_code?: number
  }
  readonly request_id: string
}

/** The answer must be this refusal, and in the one form that all have. */
const refused = (answer: Effect.Effect<Lab.Answered>, status: number, code: string) =>
  Effect.map(answer, ({ body, headers, status: found }) => {
    const refusal = body as unknown as Refusal
    assert.strictEqual(found, status, JSON.stringify(body))
    assert.strictEqual(refusal.code, code)
    assert.hasAllKeys(body, ["error", "code", "details", "request_id"])
    assert.match(refusal.request_id, /^req-/u)
    if (status === 503) assert.isNotNull(headers.get("retry-after"))
    return refusal
  })

const fields = ({ details }: Refusal) => details.errors?.map(({ field }) => field)

const nothingStored = Effect.gen(function* () {
  const store = yield* Store
  assert.lengthOf(yield* store.declarations, 0)
  assert.lengthOf((yield* store.operations({})).items, 0)
})

const v2 = (api: Lab.Api, method: string, path: string, body?: unknown) =>
  Effect.promise(async (signal) => {
    const response = await fetch(`${api.url}/api/v2${path}`, {
      method,
      signal,
      headers: { "content-type": "application/json" },
      ...(body === undefined ? {} : { body: JSON.stringify(body) })
    })
    assert.isBelow(response.status, 300, await response.clone().text())
  })

const nameOf = (id: string) =>
  Effect.gen(function* () {
    const declarations = yield* (yield* Store).declarations
    return declarations.find(({ binding }) => binding.volume_id === id)?.name ?? ""
  })

describe("A body", () => {
  const path = `/volumes/${nobody}/attach`
  const create = { name: "disk", size: 5 * GIB }
  const invalid = [400, "INVALID_REQUEST"] as const
  const wrong = [422, "CLOUDSTACK_INVALID_PARAMETER"] as const
  const cleanup = "/cleanup/test-failover"
  const bodies: ReadonlyArray<readonly [string, string, unknown, readonly [number, string], ReadonlyArray<unknown>]> = [
    ["that is no JSON", path, "{", invalid, [null]],
    ["that is no object", path, "[]", invalid, [null]],
    ["that is empty where one is needed", path, "", invalid, [null]],
    ["without a VM", path, {}, invalid, ["vm_id"]],
    ["with a null VM", path, { vm_id: null }, invalid, ["vm_id"]],
    ["with a malformed VM", path, { vm_id: "vm-12345678" }, wrong, ["vm_id"]],
    ["with a number for a VM", path, { vm_id: 7 }, wrong, ["vm_id"]],
    ["with a VM in upper case", path, { vm_id: appliance.toUpperCase() }, wrong, ["vm_id"]],
    ["without name and size", "/volumes", {}, invalid, ["name", "size"]],
    ["with a size that is none", "/volumes", { ...create, size: "big" }, invalid, ["size"]],
    ["with a size in decimal units", "/volumes", { ...create, size: "5GB" }, wrong, ["size"]],
    ["with a size below 1 GiB", "/volumes", { ...create, size: GIB - 1 }, wrong, ["size"]],
    ["with half a byte", "/volumes", { ...create, size: GIB + 0.5 }, wrong, ["size"]],
    ["with a malformed offering", "/volumes", { ...create, disk_offering_id: "x" }, wrong, ["disk_offering_id"]],
    ["with an empty zone", "/volumes", { ...create, zone_id: "" }, wrong, ["zone_id"]],
    ["with a name of two lines", "/volumes", { ...create, name: "a\nb" }, invalid, ["name"]],
    ["with metadata that is a list", "/volumes", { ...create, metadata: ["a"] }, invalid, ["metadata"]],
    ["with an empty value in metadata", "/volumes", { ...create, metadata: { a: "" } }, invalid, ["metadata.a"]],
    ["wrong in several ways", "/volumes", { size: 1, zone_id: "z" }, invalid, ["name", "size", "zone_id"]],
    ["without a volume to export", "/exports", {}, invalid, ["volume_id"]],
    ["with a flag that is none", "/exports", { volume_id: nobody, read_only: "yes" }, invalid, ["read_only"]],
    ["with a malformed volume to export", "/exports", { volume_id: "../etc" }, wrong, ["volume_id"]],
    ["of a cleanup without anything", cleanup, {}, invalid, ["test_vm_id", "volume_id"]],
    [
      "of a cleanup with malformed ids",
      cleanup,
      { test_vm_id: "t", volume_id: "v", oma_vm_id: "o" },
      wrong,
      ["test_vm_id", "volume_id", "oma_vm_id"]
    ]
  ]

  it.effect("is refused with every problem named, and nothing is stored (X4, S21)", () =>
    Lab.run(Cloud.make(), (api) =>
      Effect.gen(function* () {
        for (const [what, to, body, [status, code], expected] of bodies) {
          const refusal = yield* refused(api.send("POST", to, body), status, code)
          assert.deepStrictEqual(fields(refusal), expected, what)
          assert.strictEqual(classify(refusal.error), "CLOUDSTACK_INVALID_PARAMETER", what)
          assert.strictEqual(refusal.details.cloudstack_code, 431, what)
        }
        yield* nothingStored
      })
    )
  )

  it.effect("may be left out, empty or of no type where the old clients send none", () =>
    Lab.run(Cloud.make(), (api) =>
      Effect.gen(function* () {
        const id = yield* created(api, "disk-0")
        yield* Lab.accepted(api.send("POST", `/volumes/${id}/detach`))
        yield* Lab.accepted(api.send("POST", `/volumes/${id}/detach`, {}))
        yield* Lab.accepted(api.send("POST", `/volumes/${id}/detach`, "null"))
        yield* refused(api.send("POST", `/volumes/${id}/detach`, "[]"), 400, "INVALID_REQUEST")
        const typeless = yield* api.send("POST", "/volumes", JSON.stringify(create), { "content-type": "text/plain" })
        assert.strictEqual(typeless.status, 201)
      })
    )
  )

  it.effect("may name metadata as null, and unknown keys are let be", () =>
    Lab.run(Cloud.make(), (api) =>
      Effect.gen(function* () {
        const body = { ...create, metadata: null, zone_id: null, description: { of: ["the", "caller"] } }
        const call = yield* Lab.accepted(api.send("POST", "/volumes", body))
        assert.deepStrictEqual(call.request, body)
      })
    )
  )
})

describe("What there is not", () => {
  it.effect("is refused in the answer: a volume or a malformed id in the path is 404", () =>
    Lab.run(Cloud.make(), (api) =>
      Effect.gen(function* () {
        for (const id of [nobody, "disk-0", "..%2f..%2fetc", `${nobody}0`]) {
          for (const answer of [
            attach(api, id, appliance),
            attachRoot(api, id, testVm),
            detach(api, id),
            remove(api, id),
            api.send("DELETE", `/exports/${id}`),
            api.send("GET", `/volumes/${id}`),
            api.send("GET", `/vms/${id}/volumes`)
          ]) {
            const refusal = yield* refused(answer, 404, "NOT_FOUND")
            assert.strictEqual(classify(refusal.error), "CLOUDSTACK_INVALID_PARAMETER")
          }
          yield* refused(api.send("GET", `/volumes/${id}/device`), 404, "NOT_FOUND")
          yield* refused(api.send("GET", `/exports/${id}`), 404, "NOT_FOUND")
        }
        yield* nothingStored
      })
    )
  )

  it.effect("is refused in the answer: an unknown VM, volume, offering or zone in a body is 422", () => {
    const lab = Cloud.make()
    return Lab.run(lab, (api) =>
      Effect.gen(function* () {
        const id = yield* existing(lab, "disk-0")
        const create = { name: "disk", size: 5 * GIB }
        const asked: ReadonlyArray<readonly [Effect.Effect<Lab.Answered>, string]> = [
          [attach(api, id, nobody), "vm_id"],
          [attachRoot(api, id, nobody), "vm_id"],
          [api.send("POST", "/volumes", { ...create, disk_offering_id: nobody }), "disk_offering_id"],
          [api.send("POST", "/volumes", { ...create, zone_id: nobody }), "zone_id"],
          [api.send("POST", "/volumes", { ...create, disk_offering_id: World.FIXED_OFFERING_ID }), "size"],
          [api.send("POST", "/exports", { volume_id: nobody }), "volume_id"],
          [api.send("POST", "/cleanup/test-failover", { test_vm_id: nobody, volume_id: id }), "test_vm_id"],
          [api.send("POST", "/cleanup/test-failover", { test_vm_id: testVm, volume_id: nobody }), "volume_id"]
        ]
        for (const [answer, field] of asked) {
          const refusal = yield* refused(answer, 422, "CLOUDSTACK_INVALID_PARAMETER")
          assert.deepStrictEqual(fields(refusal), [field])
          assert.strictEqual(classify(refusal.error), "CLOUDSTACK_INVALID_PARAMETER")
        }
        yield* nothingStored
      })
    )
  })

  it.effect("cannot be told while CloudStack is away: 503, and no word of where it is (C1, S20)", () => {
    const lab = Cloud.make()
    return Lab.run(lab, (api) =>
      Effect.gen(function* () {
        const id = yield* existing(lab, "disk-0")
        yield* Lab.faults(lab, { kind: "answer_lost_before_effect" })
        for (const answer of [attach(api, id, testVm), attach(api, id, appliance), remove(api, id)]) {
          const asked = yield* Effect.fork(answer)
          const took = yield* Cloud.until(Effect.map(Fiber.poll(asked), Option.isSome), 60_000)
          // Well before the old clients' own 30 s.
          assert.isAtMost(took, 20_000)
          const refusal = yield* refused(Fiber.join(asked), 503, "CLOUDSTACK_UNAVAILABLE")
          assert.notMatch(JSON.stringify(refusal), /127\.0\.0\.1|apikey|signature/iu)
        }
        yield* nothingStored
      })
    )
  })
})

describe("What is not volumed's to do", () => {
  it.effect("is anything with a ROOT volume that it did not attach itself (S5)", () => {
    const lab = Cloud.make()
    return Lab.run(lab, (api) =>
      Effect.gen(function* () {
        const root =
          (yield* truth(lab)).volumes.find(({ type, vm_id }) => type === "ROOT" && vm_id === testVm)?.id ?? ""
        for (const answer of [
          attach(api, root, appliance),
          attachRoot(api, root, otherVm),
          detach(api, root),
          remove(api, root),
          api.send("POST", "/exports", { volume_id: root }),
          api.send("POST", "/cleanup/test-failover", { test_vm_id: testVm, volume_id: root })
        ]) {
          const refusal = yield* refused(answer, 422, "CLOUDSTACK_INVALID_PARAMETER")
          assert.include(refusal.error, "ROOT")
          assert.isString(refusal.details.suggestion)
        }
        yield* nothingStored
        yield* Lab.quiet(lab)
      })
    )
  })

  it.effect("is a root volume for the appliance, another appliance's cleanup, and the end of a VM", () => {
    const lab = Cloud.make()
    return Lab.run(lab, (api) =>
      Effect.gen(function* () {
        const id = yield* existing(lab, "disk-0", testVm)
        const cleanup = (more: object) =>
          api.send("POST", "/cleanup/test-failover", { test_vm_id: testVm, volume_id: id, ...more })
        yield* refused(attachRoot(api, id, appliance), 422, "CLOUDSTACK_INVALID_PARAMETER")
        yield* refused(cleanup({ oma_vm_id: otherVm }), 422, "CLOUDSTACK_INVALID_PARAMETER")
        yield* refused(cleanup({ test_vm_id: appliance }), 422, "CLOUDSTACK_INVALID_PARAMETER")
        const refusal = yield* refused(cleanup({ delete_vm: true }), 501, "NOT_SUPPORTED")
        assert.include(refusal.error, "never deletes a VM")
        assert.include(refusal.details.suggestion, "destroy the VM in CloudStack")
        yield* nothingStored
      })
    )
  })

  it.effect("is to delete what another VM has, ours there or not, or on its way there (S6)", () => {
    const lab = Cloud.make()
    return Lab.run(lab, (api) =>
      Effect.gen(function* () {
        const theirs = yield* existing(lab, "theirs", otherVm)
        const ours = yield* created(api, "ours")
        yield* completed(api, attach(api, ours, testVm))
        const going = yield* created(api, "going")
        yield* Lab.accepted(attach(api, going, testVm))
        for (const [id, vm] of [
          [theirs, otherVm],
          [ours, testVm],
          [going, testVm]
        ] as const) {
          const refusal = yield* refused(remove(api, id), 409, "CONFLICT")
          assert.include(refusal.error, vm)
          assert.include(refusal.details.suggestion, `/volumes/${id}/detach`)
        }
        assert.strictEqual(yield* Lab.whereIs(lab, ours), testVm)
        // As the refusal says: detached first, it may go.
        yield* completed(api, detach(api, ours))
        yield* completed(api, remove(api, ours))
        assert.isUndefined(yield* Lab.whereIs(lab, ours))
      })
    )
  })

  it.effect("is no delete of what its VM lost since: it is nowhere, and nobody is sent to a VM for it (S6)", () => {
    const lab = Cloud.make()
    return Lab.run(lab, (api) =>
      Effect.gen(function* () {
        const [seen, unseen, repaired, again] = yield* Effect.forEach(["seen", "unseen", "repaired", "again"], (name) =>
          created(api, name)
        )
        const all = [seen, unseen, repaired, again].map(String)
        yield* Effect.forEach(all, (id) => completed(api, attach(api, id, testVm)))
        yield* v2(api, "PATCH", `/volumes/${yield* nameOf(String(repaired))}`, { on_drift: "repair" })
        const lose = (id: unknown) => Lab.operate(lab, { act: "detach", volume_id: String(id) })
        yield* lose(seen)
        yield* Cloud.pass(70_000)
        yield* completed(api, remove(api, String(seen)))
        assert.isUndefined(yield* Lab.whereIs(lab, String(seen)))
        yield* Effect.forEach([unseen, repaired, again], lose)
        yield* completed(api, remove(api, String(unseen)))
        // Where an attach may be on its way, of the declaration or of a call, that is what the refusal says.
        yield* Lab.accepted(attach(api, String(again), testVm))
        for (const id of [repaired, again]) {
          const refusal = yield* refused(remove(api, String(id)), 409, "CONFLICT")
          assert.include(refusal.error, `on its way to VM ${testVm}`)
        }
        yield* Lab.quiet(lab)
      })
    )
  })

  it.effect("is a delete beyond the budget of the hour: nothing of it is stored (S6, S17)", () => {
    const lab = Cloud.make()
    return Lab.run(
      lab,
      (api) =>
        Effect.gen(function* () {
          const [one, two, three] = [
            yield* existing(lab, "one"),
            yield* existing(lab, "two"),
            yield* existing(lab, "three")
          ]
          yield* completed(api, remove(api, one))
          yield* Lab.accepted(remove(api, two))
          const before = (yield* (yield* Store).operations({})).items.length
          const refusal = yield* refused(remove(api, three), 429, "DELETION_BUDGET")
          assert.strictEqual(classify(refusal.error), "CLOUDSTACK_RESOURCE_LIMIT")
          assert.lengthOf((yield* (yield* Store).operations({})).items, before)
          yield* Cloud.pass(30_000, 1_000)
          assert.isNull(yield* Lab.whereIs(lab, three))
        }),
      { limits: { ...Lab.limits, destructive_per_hour: 2 } }
    )
  })
})

describe("What somebody else decided", () => {
  it.effect("holds: a paused declaration takes no call, and says who paused it and why", () => {
    const lab = Cloud.make()
    return Lab.run(lab, (api) =>
      Effect.gen(function* () {
        const id = yield* created(api, "disk-0")
        const name = yield* nameOf(id)
        yield* v2(api, "PATCH", `/volumes/${name}`, { paused: { reason: "array swap", by: "alice" } })
        const exported = api.send("POST", "/exports", { volume_id: id })
        for (const answer of [attach(api, id, appliance), detach(api, id), remove(api, id), exported]) {
          const refusal = yield* refused(answer, 409, "CONFLICT")
          assert.include(refusal.error, "paused by alice: array swap")
        }
        yield* v2(api, "PATCH", `/volumes/${name}`, { paused: null })
        yield* completed(api, attach(api, id, appliance))
      })
    )
  })

  it.effect("holds: what is being removed takes no call but is let go (M8)", () => {
    const lab = Cloud.make()
    return Lab.run(lab, (api) =>
      Effect.gen(function* () {
        const id = yield* created(api, "disk-0")
        yield* v2(api, "DELETE", `/volumes/${yield* nameOf(id)}?policy=delete`)
        for (const answer of [attach(api, id, appliance), detach(api, id), remove(api, id)]) {
          yield* refused(answer, 409, "DELETING")
        }
      })
    )
  })

  it.effect("holds: while a maintenance goes on every call is refused, and reading is not", () => {
    const lab = Cloud.make()
    return Lab.run(lab, (api) =>
      Effect.gen(function* () {
        const id = yield* created(api, "disk-0")
        yield* v2(api, "PUT", "/maintenance", { reason: "storage upgrade", by: "bob" })
        for (const answer of [
          api.send("POST", "/volumes", { name: "a", size: GIB }),
          attach(api, id, appliance),
          attachRoot(api, id, testVm),
          detach(api, id),
          remove(api, id),
          api.send("POST", "/exports", { volume_id: id }),
          api.send("DELETE", `/exports/${id}`),
          api.send("POST", "/cleanup/test-failover", { test_vm_id: testVm, volume_id: id })
        ]) {
          const refusal = yield* refused(answer, 503, "MAINTENANCE")
          assert.include(refusal.error, "storage upgrade")
        }
        assert.strictEqual((yield* api.send("GET", `/volumes/${id}`)).status, 200)
        yield* v2(api, "DELETE", "/maintenance")
        yield* Cloud.pass(5_000)
        yield* completed(api, attach(api, id, appliance))
      })
    )
  })
})
