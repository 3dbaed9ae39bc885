import { assert, describe, it } from "@effect/vitest"
import { Clock, Effect, type Either, Fiber, Layer, TestClock } from "effect"
import { CloudStack, CloudStackRead } from "../../reconciler/CloudStack.ts"
import { Gate } from "../../reconciler/Gate.ts"
import * as Intent from "../../reconciler/Intent.ts"
import type { Action } from "../../schema/Action.ts"
import { GateClosed } from "../../schema/Errors.ts"
import type { JobId, Name, OfferingId, OperationId, Uid, VmId, VolumeId, ZoneId } from "../../schema/Ids.ts"
import type { CloudVolume } from "../../schema/Inventory.ts"
import * as Live from "../../src/CloudStack/Live.ts"
import * as Fake from "./FakeCloudStack.ts"

const VM = "8a4400e5-c92a-4bc4-8bff-4b6b0b6a018c" as VmId
const OTHER_VM = "d1e7a9f0-6f0e-4f5e-9a55-0b6f0b1f7a01" as VmId
const JOB = "7f0e6d5c-4b3a-4291-8807-f6e5d4c3b2a1" as JobId
const volumeId = (n: number) => `00000000-0000-4000-8000-${String(n).padStart(12, "0")}` as VolumeId

interface Row {
  readonly id: string
  readonly name: string
  readonly [key: string]: unknown
}
const row = (n: number, change: Record<string, unknown> = {}): Row => ({
  id: volumeId(n),
  name: `volume-${n}`,
  type: "DATADISK",
  state: "Ready",
  size: 1024 ** 3,
  ...change
})
const rows = (count: number, from = 0) => Array.from({ length: count }, (_, n) => row(from + n))

/** listVolumes as the server answers it; `page.size` may be below what is asked for. */
const page = (all: ReadonlyArray<Row>, call: Fake.Received, pageSize = 500, count = all.length): Fake.Reply => {
  const size = Math.min(Number(call.parameters["pagesize"] ?? pageSize), pageSize)
  const from = (Number(call.parameters["page"] ?? 1) - 1) * size
  const volume = all.slice(from, from + size)
  return Fake.json({ listvolumesresponse: count === 0 ? {} : volume.length === 0 ? { count } : { count, volume } })
}

const reading = <A, E>(
  answers: Fake.Answers,
  use: (reads: CloudStackRead["Type"]) => Effect.Effect<A, E>,
  config = Fake.config()
) => {
  const fake = Fake.inMemory(answers)
  return Effect.flatMap(CloudStackRead, use).pipe(
    Effect.provide(Layer.provide(Live.layerRead(config), fake.layer)),
    Effect.map((result) => ({ result, calls: fake.calls }))
  )
}

const ids = (volumes: ReadonlyArray<{ readonly id: string }>) => volumes.map(({ id }) => id).sort()

describe("all volumes", () => {
  it.effect("are as many calls as pages, and none too many", () =>
    Effect.gen(function* () {
      for (const [count, pages] of [
        [0, 1],
        [1, 1],
        [500, 1],
        [501, 2],
        [1_700, 4]
      ] as const) {
        const all = rows(count)
        const { result, calls } = yield* reading(
          (call) => page(all, call),
          (reads) => reads.volumes
        )
        assert.isTrue(result.complete)
        assert.isNull(result.note)
        assert.deepStrictEqual(ids(result.volumes), ids(all))
        assert.strictEqual(calls.length, pages)
      }
    })
  )

  it.effect("are asked for with the scope that shows them all", () =>
    Effect.gen(function* () {
      const project_id = "5b9c9e6f-8e8e-4c55-8b3d-0a6a4f3e2d1c"
      const { calls } = yield* reading(
        (call) => page([], call),
        (reads) => reads.volumes,
        Fake.config({ project_id })
      )
      assert.deepInclude(calls[0]?.parameters, { listall: "true", projectid: project_id, page: "1", pagesize: "500" })
    })
  )

  it.effect("are paged by what came where the server gives fewer than asked for (O4)", () =>
    Effect.gen(function* () {
      const all = rows(230)
      const { result } = yield* reading(
        (call) => page(all, call, 100),
        (reads) => reads.volumes
      )
      assert.isTrue(result.complete)
      assert.deepStrictEqual(ids(result.volumes), ids(all))
    })
  )

  it.effect("are asked for in the pages that a server allows, once it has said so (O4)", () =>
    Effect.gen(function* () {
      const all = rows(230)
      const strict: Fake.Answers = (call) =>
        Number(call.parameters["pagesize"]) > 100
          ? { status: 431, body: Fake.fixture("listVolumes-431-page-size") }
          : page(all, call, 100)
      const { result, calls } = yield* reading(strict, (reads) => Effect.andThen(reads.volumes, reads.volumes))
      assert.isTrue(result.complete)
      assert.strictEqual(result.volumes.length, 230)
      assert.strictEqual(calls.length, 1 + 3 + 3)
    })
  )

  it.effect("are read again when a row moved between pages and another was skipped (O3)", () =>
    Effect.gen(function* () {
      const all = rows(600)
      const first = all[0]
      const moved = first === undefined ? all : [...all.slice(1, 500), first, ...all.slice(500)]
      // Between the first two pages the order changes: row 500 goes to page 1 unseen, row 0 comes twice.
      const shaken = [...moved.slice(0, 500), ...moved.slice(499, 500), ...moved.slice(501)]
      const { result, calls } = yield* reading(
        (call, n) => page(n === 2 ? shaken : all, call),
        (reads) => reads.volumes
      )
      assert.isTrue(result.complete)
      assert.deepStrictEqual(ids(result.volumes), ids(all))
      assert.isAbove(calls.length, 2)
    })
  )

  it.effect("that came and went between pages are read again (O3)", () =>
    Effect.gen(function* () {
      const before = rows(600)
      const after = before.slice(1)
      const { result } = yield* reading(
        (call, n) => page(n < 2 ? before : after, call),
        (reads) => reads.volumes
      )
      assert.isTrue(result.complete)
      assert.deepStrictEqual(ids(result.volumes), ids(after))
    })
  )

  it.effect("are complete with a wrong count when three readings agree, and say so (O2)", () =>
    Effect.gen(function* () {
      const all = rows(3)
      const { result, calls } = yield* reading(
        (call) => page(all, call, 500, 4),
        (reads) => reads.volumes
      )
      assert.isTrue(result.complete)
      assert.deepStrictEqual(ids(result.volumes), ids(all))
      assert.match(result.note ?? "", /counts 4 and lists 3/)
      assert.isAtMost(calls.length, 6)
    })
  )

  it.effect("are incomplete while no two readings agree, and when there is only a count (O2, S17)", () =>
    Effect.gen(function* () {
      const restless = yield* reading(
        (call, n) => page(rows(3, n), call, 500, 5),
        (reads) => reads.volumes
      )
      assert.isFalse(restless.result.complete)
      const counted = yield* reading(
        (call) => page([], call, 500, 5),
        (reads) => reads.volumes
      )
      assert.isFalse(counted.result.complete)
      assert.deepStrictEqual(counted.result.volumes, [])
    })
  )

  it.effect("with an endless listing end", () =>
    Effect.gen(function* () {
      const { result, calls } = yield* reading(
        (_, n) => Fake.json({ listvolumesresponse: { count: 1e9, volume: [row(n)] } }),
        (reads) => reads.volumes
      )
      assert.isFalse(result.complete)
      assert.isAtMost(calls.length, 600)
    })
  )

  it.effect("that come twice with different content are ambiguous, with the same they are not (O7)", () =>
    Effect.gen(function* () {
      const twice = [row(1), row(2), row(1, { state: "Migrating" }), row(2)]
      const { result } = yield* reading(
        (call) => page(twice, call, 500, 2),
        (reads) => reads.volumes
      )
      assert.deepStrictEqual(result.ambiguous, [volumeId(1)])
      assert.strictEqual(result.volumes.length, 2)
      assert.isTrue(result.complete)
    })
  )

  it.effect("of which one cannot be read are incomplete and name it, in one reading (S17, S19)", () =>
    Effect.gen(function* () {
      const { result, calls } = yield* reading(
        (call) => page([row(1), row(2, { state: 7 })], call),
        (reads) => reads.volumes
      )
      assert.isFalse(result.complete)
      assert.deepStrictEqual(ids(result.volumes), [volumeId(1)])
      assert.include(result.note ?? "", volumeId(2))
      assert.strictEqual(calls.length, 1)
    })
  )

  it.effect("fail, rather than be few, when a page fails", () =>
    Effect.gen(function* () {
      const all = rows(900)
      const { result } = yield* reading(
        (call) => (call.parameters["page"] === "2" ? Fake.error("listVolumes", 431, "no") : page(all, call)),
        (reads) => Effect.flip(reads.volumes)
      )
      assert.strictEqual(result.kind, "refused")
    })
  )

  it.effect("by name are those of exactly this name", () =>
    Effect.gen(function* () {
      const found = [row(1, { name: "disk" }), row(2, { name: "Disk" }), row(3, { name: "disk" })]
      const { result, calls } = yield* reading(
        (call) => page(found, call),
        (reads) => reads.volumesByName("disk")
      )
      assert.deepStrictEqual(ids(result.volumes), [volumeId(1), volumeId(3)])
      assert.strictEqual(calls[0]?.parameters["name"], "disk")
    })
  )
})

/** A server that knows `known`, has removed `removed`, and refuses any other id. */
const byIds =
  (known: ReadonlyArray<Row>, removed: ReadonlyArray<string> = [], pageSize = 500): Fake.Answers =>
  (call) => {
    const asked = (call.parameters["ids"] ?? call.parameters["id"] ?? "").split(",")
    const unknown = asked.find((id) => !removed.includes(id) && !known.some((volume) => volume.id === id))
    if (unknown !== undefined) {
      return {
        status: 431,
        body: Fake.fixture("listVolumes-431-unknown-id").replace("0f8e2b3a-1111-4222-8333-444455556666", unknown)
      }
    }
    return page(
      known.filter((volume) => asked.includes(volume.id)),
      { ...call, parameters: {} },
      pageSize
    )
  }

describe("volumes by id", () => {
  it.effect("are read together, two hundred a call", () =>
    Effect.gen(function* () {
      const all = rows(450)
      const wanted = all.map(({ id }) => id as VolumeId)
      const { result, calls } = yield* reading(byIds(all), (reads) => reads.volumesById([...wanted, ...wanted]))
      assert.deepStrictEqual(ids(result.found), ids(all))
      assert.strictEqual(calls.length, 3)
      const none = yield* reading(byIds(all), (reads) => reads.volumesById([]))
      assert.deepStrictEqual([none.result.found, none.calls], [[], []])
    })
  )

  it.effect("tell what was removed from what never was: the two shapes of gone", () =>
    Effect.gen(function* () {
      const all = rows(100)
      const [removed, unknown, another] = [volumeId(500), volumeId(501), volumeId(502)]
      const wanted = [...all.map(({ id }) => id as VolumeId), removed, unknown, another]
      const { result, calls } = yield* reading(byIds(all, [removed]), (reads) => reads.volumesById(wanted))
      assert.strictEqual(result.found.length, 100)
      assert.deepStrictEqual(result.absent, [removed])
      assert.deepStrictEqual([...result.unresolved].sort(), [unknown, another])
      assert.isAtMost(calls.length, 5)
      const single = calls.filter((call) => call.parameters["id"] !== undefined).map((call) => call.parameters["id"])
      assert.deepStrictEqual(single.sort(), [unknown, another])
    })
  )

  it.effect("are unread, not gone, when a 431 is about something else (O5)", () =>
    Effect.gen(function* () {
      const { result } = yield* reading(
        () => Fake.error("listVolumes", 431, "Invalid parameter projectid value=x"),
        (reads) => Effect.flip(reads.volumesById([volumeId(1), volumeId(2)]))
      )
      assert.strictEqual(result.kind, "refused")
    })
  )

  it.effect("are not gone because a page was full (O4)", () =>
    Effect.gen(function* () {
      const all = rows(150)
      const small: Fake.Answers = (call) => {
        const asked = (call.parameters["ids"] ?? call.parameters["id"] ?? "").split(",")
        const found = all.filter(({ id }) => asked.includes(id))
        return Fake.json({ listvolumesresponse: { count: found.length, volume: found.slice(0, 40) } })
      }
      const { result } = yield* reading(small, (reads) => reads.volumesById(all.map(({ id }) => id as VolumeId)))
      assert.deepStrictEqual(ids(result.found), ids(all))
      assert.deepStrictEqual(result.absent, [])
    })
  )

  it.effect("that cannot be read are not gone; those of whom nothing can be read spoil the reading", () =>
    Effect.gen(function* () {
      const wanted = [volumeId(1), volumeId(2), volumeId(3)]
      const spoilt = yield* reading(
        (call) => page([row(1), row(2, { size: "7" })], { ...call, parameters: {} }),
        (reads) => reads.volumesById(wanted)
      )
      assert.deepStrictEqual(ids(spoilt.result.found), [volumeId(1)])
      assert.deepStrictEqual(spoilt.result.absent, [volumeId(3)])
      const nameless = yield* reading(
        (call) => page([row(1), { id: "two", name: "x" }], { ...call, parameters: {} }),
        (reads) => Effect.flip(reads.volumesById(wanted))
      )
      assert.strictEqual(nameless.result.kind, "undecodable")
    })
  )

  it.effect("are only those that were asked for, where a server ignores the ids", () =>
    Effect.gen(function* () {
      const { result } = yield* reading(
        (call) => page(rows(20), { ...call, parameters: {} }),
        (reads) => reads.volumesById([volumeId(3), volumeId(77)])
      )
      assert.deepStrictEqual(ids(result.found), [volumeId(3)])
      assert.deepStrictEqual(result.absent, [volumeId(77)])
    })
  )
})

describe("other reads", () => {
  it.effect("VMs are read without their costly details; one nobody knows is absent", () =>
    Effect.gen(function* () {
      const { result, calls } = yield* reading(
        (call) =>
          (call.parameters["ids"] ?? call.parameters["id"])?.includes(OTHER_VM)
            ? Fake.error("listVirtualMachines", 431, `Invalid parameter id value=${OTHER_VM} ... does not exist`)
            : Fake.ok("listVirtualMachines"),
        (reads) => reads.virtualMachines([VM, OTHER_VM])
      )
      assert.deepStrictEqual(
        result.found.map(({ id, state }) => [id, state]),
        [[VM, "Running"]]
      )
      assert.deepStrictEqual(result.absent, [OTHER_VM])
      assert.strictEqual(calls[0]?.parameters["details"], "min")
    })
  )

  it.effect("a job is pending, ended, or no longer known (J1, J2, J7)", () =>
    Effect.gen(function* () {
      const job = (reply: Fake.Reply) =>
        Effect.map(
          reading(
            () => reply,
            (reads) => reads.job(JOB)
          ),
          ({ result }) => result
        )
      assert.strictEqual((yield* job(Fake.ok("job-pending"))).status, "pending")
      assert.strictEqual((yield* job(Fake.ok("job-succeeded"))).status, "succeeded")
      assert.deepInclude(yield* job(Fake.ok("job-cancelled-by-restart")), { status: "failed", code: 530, text: null })
      assert.strictEqual((yield* job({ status: 431, body: Fake.fixture("job-431-unknown") })).status, "unknown")
      const another = { body: Fake.fixture("job-succeeded").replaceAll(JOB, volumeId(1)) }
      assert.strictEqual((yield* Effect.flip(job(another))).kind, "undecodable")
      const elsewhere = Fake.error("queryAsyncJobResult", 431, "Invalid parameter")
      assert.strictEqual((yield* Effect.flip(job(elsewhere))).kind, "refused")
    })
  )

  it.effect("offerings, zones and capabilities", () =>
    Effect.gen(function* () {
      const { result } = yield* reading(
        (call) => Fake.ok(call.command),
        (reads) => Effect.all([reads.offerings, reads.zones, reads.capabilities])
      )
      const [offerings, zones, capabilities] = result
      assert.deepStrictEqual(
        offerings.map(({ name, size_gib }) => [name, size_gib]),
        [
          ["Custom OSSEA", 0],
          ["Small", 5]
        ]
      )
      assert.strictEqual(zones[0]?.id, "057e86db-c726-4d8c-ab1f-75c5f55d1881")
      assert.strictEqual(capabilities.version, "4.19.1.0")
    })
  )
})

const common = {
  uid: "11111111-2222-4333-8444-555566667777" as Uid,
  name: "pgtest2-disk-0" as Name,
  generation: 1,
  cause: "declaration",
  reason: "",
  destructive: false
} as const
const ID = volumeId(1)
const intent = <K extends Action["_tag"]>(action: Extract<Action, { _tag: K }>) =>
  Intent.unsafeMake<K>("op-12345678-1234-1234-1234-123456789012" as OperationId, action)

const attach = intent<"Attach">({ _tag: "Attach", ...common, volume_id: ID, vm_id: VM, as: "data", on_appliance: true })
const attachRoot = intent<"Attach">({ ...attach.action, as: "root", vm_id: OTHER_VM, on_appliance: false })
const detach = intent<"Detach">({
  _tag: "Detach",
  ...common,
  volume_id: ID,
  vm_id: VM,
  on_appliance: true,
  device: null,
  root: false
})
const detachRoot = intent<"Detach">({ ...detach.action, vm_id: OTHER_VM, on_appliance: false, root: true })
const remove = intent<"Delete">({ _tag: "Delete", ...common, volume_id: ID })
const create = intent<"Create">({
  _tag: "Create",
  ...common,
  cloudstack_name: "pgtest2 disk*~0",
  size_gib: 100,
  disk_offering_id: "c813c642-d946-49e1-9289-c616dd70206a" as OfferingId,
  zone_id: "057e86db-c726-4d8c-ab1f-75c5f55d1881" as ZoneId,
  existing_ids: [],
  custom_id: null
})
const tag = (replace: ReadonlyArray<string>) =>
  intent<"Tag">({ _tag: "Tag", ...common, volume_id: ID, set: { "volumed-uid": common.uid, team: "b" }, replace })

const read = (change: Partial<CloudVolume> = {}, started_at = 0): Intent.FreshRead => ({
  started_at,
  volume: {
    id: ID,
    name: "pgtest2-disk-0",
    type: "DATADISK",
    state: "Ready",
    size: 1024 ** 3,
    vm_id: null,
    vm_name: null,
    vm_state: null,
    device_id: null,
    zone_id: null,
    disk_offering_id: null,
    created_at: null,
    tags: [],
    job_id: null,
    delete_protection: false,
    ...change
  }
})
const onVm = { vm_id: VM, vm_state: "Running", device_id: 1 }
const asRoot = { type: "ROOT", vm_id: OTHER_VM, vm_state: "Stopped", device_id: 0 }

const isMutation = ({ command }: Fake.Received) => !/^(list|query)/.test(command)

const acting = <A, E>(
  use: (cloudstack: CloudStack["Type"]) => Effect.Effect<A, E>,
  answers: Fake.Answers = (call) => Fake.ok(call.command),
  config = Fake.config(),
  gate: Layer.Layer<Gate> = Fake.openGate
) => {
  const fake = Fake.inMemory(answers)
  return Effect.flatMap(CloudStack, use).pipe(
    Effect.either,
    Effect.provide(Layer.provide(Live.layer(config), Layer.merge(fake.layer, gate))),
    Effect.map((result: Either.Either<A, E>) => ({ result, sent: fake.calls.filter(isMutation) }))
  )
}

/** The parameters that are the call's own. */
const own = (call: Fake.Received | undefined) => {
  const { apikey: _1, signature: _2, signatureversion: _3, expires: _4, response: _5, ...rest } = call?.parameters ?? {}
  return rest
}

describe("mutations", () => {
  it.effect("send what they need and nothing more", () =>
    Effect.gen(function* () {
      const project_id = "5b9c9e6f-8e8e-4c55-8b3d-0a6a4f3e2d1c"
      const offering = { diskofferingid: create.action.disk_offering_id, zoneid: create.action.zone_id }
      const cases = [
        [
          acting((cloudstack) => cloudstack.create(create)),
          { command: "createVolume", name: "pgtest2 disk*~0", size: "100", ...offering }
        ],
        [
          acting((cloudstack) => cloudstack.create(create), undefined, Fake.config({ project_id })),
          { command: "createVolume", name: "pgtest2 disk*~0", size: "100", ...offering, projectid: project_id }
        ],
        [
          acting((cloudstack) => cloudstack.attach(attach, read())),
          { command: "attachVolume", id: ID, virtualmachineid: VM }
        ],
        [
          acting((cloudstack) => cloudstack.attach(attachRoot, read())),
          { command: "attachVolume", id: ID, virtualmachineid: OTHER_VM, deviceid: "0" }
        ],
        [acting((cloudstack) => cloudstack.detach(detach, read(onVm))), { command: "detachVolume", id: ID }],
        [acting((cloudstack) => cloudstack.detach(detachRoot, read(asRoot))), { command: "detachVolume", id: ID }],
        [acting((cloudstack) => cloudstack.delete(remove, read())), { command: "deleteVolume", id: ID }]
      ] as const
      for (const [act, parameters] of cases) {
        const { result, sent } = yield* act
        assert.strictEqual(result._tag, "Right", parameters.command)
        assert.deepStrictEqual<unknown>(sent.map(own), [parameters])
      }
    })
  )

  it.effect("answer job and volume", () =>
    Effect.gen(function* () {
      const created = yield* acting((cloudstack) => cloudstack.create(create))
      assert.deepStrictEqual<unknown>(created.result._tag === "Right" && created.result.right, {
        job_id: JOB,
        volume_id: "d94f0c3a-7b6e-4a52-b1c8-0e9f8d7c6b5a",
        submitted_at: 0,
        expires_at: 60_000
      })
      const removed = yield* acting((cloudstack) => cloudstack.delete(remove, read()))
      assert.deepStrictEqual<unknown>(removed.result._tag === "Right" && removed.result.right, {
        job_id: null,
        volume_id: ID,
        submitted_at: 0,
        expires_at: 60_000
      })
    })
  )

  it.effect("send nothing when the volume was read otherwise than planned, or too long ago (S4, S5, S23)", () =>
    Effect.gen(function* () {
      yield* TestClock.setTime(10_000)
      const now = 10_000
      const stray = [
        ["another volume", { id: volumeId(2) }],
        ["a ROOT volume (O8)", { type: "ROOT" }],
        ["a type nobody knows", { type: "ISO" }],
        ["a job pending on it (S2)", { job_id: JOB }]
      ] as const
      const cases: Array<
        readonly [string, (cloudstack: CloudStack["Type"]) => Effect.Effect<unknown, { readonly _tag: string }>]
      > = []
      const everyKind = (why: string, change: Partial<CloudVolume>, started_at = now) =>
        cases.push(
          [`attach: ${why}`, (cloudstack) => cloudstack.attach(attach, read(change, started_at))],
          [`detach: ${why}`, (cloudstack) => cloudstack.detach(detach, read({ ...onVm, ...change }, started_at))],
          [`delete: ${why}`, (cloudstack) => cloudstack.delete(remove, read(change, started_at))],
          [`tag: ${why}`, (cloudstack) => cloudstack.tag(tag([]), read(change, started_at))]
        )
      for (const [why, change] of stray) everyKind(why, change)
      everyKind("read 1001 ms ago", {}, now - 1_001)
      everyKind("read in the future, as a clock that was set back says", {}, now + 1)
      cases.push(
        ["attach: on a VM (S1)", (cloudstack) => cloudstack.attach(attach, read(onVm, now))],
        ["attach: already there", (cloudstack) => cloudstack.attach(attachRoot, read(asRoot, now))],
        ["detach: on another VM (M6)", (cloudstack) => cloudstack.detach(detach, read({ vm_id: OTHER_VM }, now))],
        ["detach: on no VM", (cloudstack) => cloudstack.detach(detach, read({}, now))],
        ["delete: on a VM (S6)", (cloudstack) => cloudstack.delete(remove, read(onVm, now))],
        ["root: VM runs", (cloudstack) => cloudstack.detach(detachRoot, read({ ...asRoot, vm_state: "Running" }, now))],
        ["root: VM unknown", (cloudstack) => cloudstack.detach(detachRoot, read({ ...asRoot, vm_state: null }, now))],
        ["root: another VM", (cloudstack) => cloudstack.detach(detachRoot, read({ ...asRoot, vm_id: VM }, now))],
        ["root: no ROOT", (cloudstack) => cloudstack.detach(detachRoot, read({ ...asRoot, type: "DATADISK" }, now))],
        ["root: job pending", (cloudstack) => cloudstack.detach(detachRoot, read({ ...asRoot, job_id: JOB }, now))]
      )
      for (const [why, act] of cases) {
        const { result, sent } = yield* acting(act)
        assert.strictEqual(result._tag === "Left" ? result.left._tag : "Right", "PreconditionLost", why)
        assert.deepStrictEqual(sent, [], why)
      }
      const justInTime = yield* acting((cloudstack) => cloudstack.attach(attach, read({}, now - 1_000)))
      assert.strictEqual(justInTime.sent.length, 1)
    })
  )

  it.effect("send nothing while the gate is closed", () =>
    Effect.gen(function* () {
      const closed = Layer.succeed(Gate, {
        check: Effect.fail(new GateClosed({ detail: "hold file" })),
        reason: Effect.succeed("hold file")
      })
      const acts: ReadonlyArray<(cloudstack: CloudStack["Type"]) => Effect.Effect<unknown, { readonly _tag: string }>> =
        [
          (cloudstack) => cloudstack.create(create),
          (cloudstack) => cloudstack.attach(attach, read()),
          (cloudstack) => cloudstack.detach(detach, read(onVm)),
          (cloudstack) => cloudstack.delete(remove, read()),
          (cloudstack) => cloudstack.tag(tag([]), read())
        ]
      for (const act of acts) {
        const { result, sent } = yield* acting(act, undefined, undefined, closed)
        assert.strictEqual(result._tag === "Left" ? result.left._tag : "Right", "GateClosed")
        assert.deepStrictEqual(sent, [])
      }
    })
  )
})

describe("tags", () => {
  const written = {
    "tags[0].key": "volumed-uid",
    "tags[0].value": common.uid,
    "tags[1].key": "team",
    "tags[1].value": "b"
  }
  const resource = { resourceids: ID, resourcetype: "Volume" }

  /** The tag's first call, its job, the volume read again, and its second call. */
  const world =
    (jobs: ReadonlyArray<string>, again: Row, second: Fake.Reply = Fake.ok("createTags")): Fake.Answers =>
    (call, n) => {
      if (call.command === "queryAsyncJobResult")
        return Fake.ok(jobs[Math.min(n - 3, jobs.length - 1)] ?? "job-pending")
      if (call.command === "listVolumes") return page([again], { ...call, parameters: {} })
      return call.command === "createTags" ? second : Fake.ok(call.command)
    }
  const tagging = (answers: Fake.Answers, change: Partial<CloudVolume> = { tags: [{ key: "Team", value: "a" }] }) =>
    Effect.gen(function* () {
      const fresh = read(change, yield* Clock.currentTimeMillis)
      const fiber = yield* Effect.fork(acting((cloudstack) => cloudstack.tag(tag(["team"]), fresh), answers))
      yield* TestClock.adjust("1 minutes")
      return yield* Fiber.join(fiber)
    })

  it.effect("are written in one call when none stands in the way", () =>
    Effect.gen(function* () {
      const { result, sent } = yield* acting((cloudstack) => cloudstack.tag(tag(["team"]), read()))
      assert.strictEqual(result._tag, "Right")
      assert.deepStrictEqual(sent.map(own), [{ command: "createTags", ...resource, ...written }])
    })
  )

  it.effect("that stand with another value are deleted as they stand, waited for, and written then", () =>
    Effect.gen(function* () {
      const { result, sent } = yield* tagging(world(["job-pending", "job-pending", "job-succeeded"], row(1)))
      assert.strictEqual(result._tag, "Right")
      assert.deepStrictEqual<unknown>(sent.map(own), [
        { command: "deleteTags", ...resource, "tags[0].key": "Team", "tags[0].value": "a" },
        { command: "createTags", ...resource, ...written }
      ])
    })
  )

  it.effect("are of unknown outcome from the first effect on, whatever then fails (S7)", () =>
    Effect.gen(function* () {
      const cases: ReadonlyArray<readonly [string, Fake.Answers, number]> = [
        ["the job failed", world(["job-failed"], row(1)), 1],
        ["the job never ends", world(["job-pending"], row(1)), 1],
        ["the volume became a ROOT volume", world(["job-succeeded"], row(1, { type: "ROOT" })), 1],
        ["the volume went", world(["job-succeeded"], row(2)), 1],
        ["the second call is refused", world(["job-succeeded"], row(1), Fake.error("createTags", 431, "no")), 2],
        ["the second call is lost", world(["job-succeeded"], row(1), { status: 200, body: "" }), 2]
      ]
      for (const [why, answers, calls] of cases) {
        const { result, sent } = yield* tagging(answers)
        assert.strictEqual(result._tag === "Left" ? result.left._tag : "Right", "OutcomeUnknown", why)
        assert.strictEqual(sent.length, calls, why)
      }
    })
  )

  it.effect("that could not be deleted at all are refused", () =>
    Effect.gen(function* () {
      const { result } = yield* tagging((call) =>
        call.command === "deleteTags" ? Fake.error("deleteTags", 531, "not yours") : Fake.ok(call.command)
      )
      assert.strictEqual(result._tag === "Left" ? result.left._tag : "Right", "CloudStackRefused")
    })
  )
})
