import { assert, describe, it } from "@effect/vitest"
import type { PlanItem } from "../../schema/Action.ts"
import { exportNameOf } from "../../schema/Ids.ts"
import type { Holder, Inventory, NbdReading, NbdSection, Verification } from "../../schema/Inventory.ts"
import { limits } from "../../schema/Settings.ts"
import * as Check from "../../reconciler/Check.ts"
import * as Merge from "../../reconciler/Merge.ts"
import * as Plan from "../../reconciler/Plan.ts"
import * as Worlds from "../support/Worlds.ts"

const id = Worlds.volumeId(1)
const neighbour = Worlds.volumeId(2)
const uid = Worlds.uidOf(1)
const name = exportNameOf(id)
const other = Worlds.vmId(1)
const own = "252:98"
const theirs = "252:99"

const served = (changes: Worlds.DeclarationChanges = {}) =>
  Worlds.declaration("disk", { uid, binding: Worlds.settledBinding(id), ...changes })
const leaving = served({ generation: 2, spec: { attached_to: other } })

const client: Holder = { pid: 7, command: "nbd-server", device: own, peer: "10.0.0.9", since: "2026-03-01T11:58:00Z" }
const mount: Holder = { pid: 8, command: "dd", device: own, peer: null, since: null }

const denied = { outcome: "denied", size: null, read_only: null, device: null } as const

interface Differences {
  readonly section?: Partial<NbdSection> | null
  readonly go?: Partial<Verification>
  readonly holders?: ReadonlyArray<Holder>
  readonly nbd?: Partial<NbdReading>
  readonly rest?: Partial<Inventory>
}

/** The volume is on the appliance as vdb and its neighbour as vdc; a fenced export is denied, as it is on a server. */
const world = ({ go, holders = [], nbd, rest, section = {} }: Differences = {}): Inventory => {
  const answer = section?.fenced_at == null ? {} : denied
  return Worlds.inventory({
    cloud: Worlds.cloud({
      volumes: [id, neighbour].map((one) => Worlds.cloudVolume(one, { vm_id: Worlds.appliance }))
    }),
    guest: Worlds.guest([Worlds.device(id, "b"), Worlds.device(neighbour, "c")]),
    nbd: Worlds.nbd({
      sections: section === null ? [] : [Worlds.section(id, { device: own, ...section })],
      verifications: [Worlds.verification(id, "b", { ...answer, ...go })],
      holders,
      ...nbd
    }),
    ...rest
  })
}

const itemFor = (
  declaration: typeof leaving,
  observed: Inventory,
  changes: Parameters<typeof Worlds.input>[2] = {}
): PlanItem => {
  const input = Worlds.input([declaration], observed, changes)
  const plan = Plan.make(input)
  assert.deepStrictEqual(Check.check(input, plan), [])
  return plan.items[0] ?? assert.fail("nothing was planned")
}

const said = ({ blocked, guard, next }: PlanItem) => [guard?._tag ?? null, next?._tag ?? blocked?.reason ?? "settled"]
const ago = (ms: number) => Worlds.now - ms
const agreeing = (since: number) => ({ consents: new Map([[uid, since]]) })

describe("A volume that is to leave while an NBD client has it open (N10, S11)", () => {
  it("lets nobody new in at once, and names who is waited for", () => {
    const item = itemFor(leaving, world({ holders: [client] }))
    assert.deepStrictEqual(said(item), ["Fence", "Draining"])
    assert.strictEqual(item.guard?.export_name, name)
    const message = item.blocked?.message ?? ""
    for (const part of ["10.0.0.9", "pid 7", "2026-03-01T11:58:00Z", "/dev/vdb"]) assert.include(message, part)
    assert.deepStrictEqual(item.chain.map((action) => action._tag).slice(0, 2), ["Unexport", "Detach"])
  })

  it("waits for as long as the setting says from the fence on, then asks a person, with the command to type", () => {
    const fenced = (ms: number) => itemFor(leaving, world({ holders: [client], section: { fenced_at: ago(ms) } }))
    assert.deepStrictEqual(said(fenced(limits.drain_ms - 1)), [null, "Draining"])
    const item = fenced(limits.drain_ms)
    assert.deepStrictEqual(said(item), [null, "InUse"])
    assert.include(item.blocked?.suggestion, "volumed retry disk --end-clients")
  })

  it("counts nothing from a fence of a time to come: a clock was set back (T1)", () => {
    const item = itemFor(leaving, world({ holders: [client], section: { fenced_at: Worlds.now + 3_600_000 } }))
    assert.deepStrictEqual(said(item), [null, "InUse"])
  })

  it("goes on by itself when the last client has left", () => {
    const item = itemFor(leaving, world({ section: { fenced_at: ago(5_000) } }))
    assert.deepStrictEqual(said(item), [null, "Unexport"])
  })

  it("ends its clients with consent alone, and only after nobody new is let in", () => {
    const held = (changes: Partial<NbdSection>, since: number) =>
      said(itemFor(leaving, world({ holders: [client], section: changes }), agreeing(since)))
    assert.deepStrictEqual(held({}, ago(5)), ["Fence", "Draining"])
    assert.deepStrictEqual(held({ fenced_at: ago(5) }, ago(5)), ["EndClients", "Draining"])
    assert.deepStrictEqual(held({ fenced_at: ago(5) }, Worlds.now + 1), [null, "Draining"])
    assert.deepStrictEqual(held({ fenced_at: ago(90_000) }, ago(limits.drain_ms)), ["EndClients", "InUse"])
    const granted = world({ holders: [client], section: { fenced_at: ago(5) }, go: Worlds.verification(id, "b") })
    assert.deepStrictEqual(said(itemFor(leaving, granted, agreeing(ago(5)))), [null, "Draining"])
  })

  it("ends those of its own disk, and no others", () => {
    const strangers = world({ holders: [{ ...client, device: theirs }, client], section: { fenced_at: ago(5) } })
    const { guard } = itemFor(leaving, strangers, agreeing(ago(5)))
    assert.deepInclude(guard, { _tag: "EndClients", device: own })
    const elsewhere = world({ holders: [{ ...client, device: theirs }], section: { fenced_at: ago(5) } })
    assert.deepStrictEqual(said(itemFor(leaving, elsewhere, agreeing(ago(5)))), [null, "Unexport"])
  })

  it("never ends who is no NBD client: a mount or another process is a person's matter at once", () => {
    const item = itemFor(leaving, world({ holders: [mount] }), agreeing(ago(5)))
    assert.deepStrictEqual(said(item), ["Fence", "InUse"])
    assert.include(item.blocked?.suggestion, "stop dd (pid 8)")
    const fenced = world({ holders: [mount], section: { fenced_at: ago(5) } })
    assert.deepStrictEqual(said(itemFor(leaving, fenced, agreeing(ago(5)))), [null, "InUse"])
  })

  it("whose section has gone already cannot be fenced, and needs none", () => {
    const gone = world({ holders: [client], section: null, go: { ...denied, outcome: "unknown" } })
    assert.deepStrictEqual(said(itemFor(leaving, gone)), [null, "InUse"])
    assert.deepStrictEqual(said(itemFor(leaving, gone, agreeing(ago(5)))), ["EndClients", "Draining"])
  })

  it("is treated so for an export that alone is to go, and for a removed declaration", () => {
    const unwanted = served({ generation: 2, spec: { export_wanted: false } })
    const removed = served({ deletion: Worlds.deletion("retain") })
    for (const declaration of [unwanted, removed]) {
      assert.deepStrictEqual(said(itemFor(declaration, world({ holders: [client] }))), ["Fence", "Draining"])
      const fenced = world({ holders: [client], section: { fenced_at: ago(5) } })
      assert.deepStrictEqual(said(itemFor(declaration, fenced, agreeing(ago(5)))), ["EndClients", "Draining"])
    }
  })

  it("is not fenced later for backing off, nor while an operation of its is undecided", () => {
    const backoff = new Map([[uid, { retry_at: Worlds.now + 60_000, message: "it failed" }]])
    assert.deepStrictEqual(said(itemFor(leaving, world({ holders: [client] }), { backoff })), ["Fence", "Draining"])
    const operations = [Worlds.operation(uid, { type: "unexport", volume_id: id })]
    const item = itemFor(leaving, world({ holders: [client] }), { operations })
    assert.deepStrictEqual(said(item), ["Fence", "OperationInFlight"])
  })

  it("is fenced by nothing and nobody while a hold file, a maintenance or a pause forbids it, which is then told", () => {
    const at = world({ holders: [client] })
    assert.deepStrictEqual(said(itemFor(leaving, at, { hold: "wait" })), [null, "HoldFile"])
    assert.deepStrictEqual(said(itemFor(leaving, at, { maintenance: "wait" })), [null, "Maintenance"])
    const paused = served({ generation: 2, spec: { attached_to: other, paused: { reason: "why", by: "who" } } })
    assert.deepStrictEqual(said(itemFor(paused, at)), [null, "Paused"])
    const fenced = world({ holders: [client], section: { fenced_at: ago(5) } })
    assert.deepStrictEqual(said(itemFor(paused, fenced, agreeing(ago(5)))), [null, "Paused"])
  })

  it("is left alone where its leaving waits for approval since a maintenance ended", () => {
    const held = { uid, name: leaving.name, generation: 2, volume_id: id, action: "unexport", digest: "d" } as const
    const waiting = { withheld: [held] }
    assert.strictEqual(itemFor(leaving, world({ holders: [client] }), waiting).guard, null)
    const approved = { ...waiting, approved: new Set([Plan.heldKey(held)]) }
    assert.strictEqual(itemFor(leaving, world({ holders: [client] }), approved).guard?._tag, "Fence")
  })
})

describe("An export that was fenced and is wished to be open", () => {
  const fenced = (changes: Differences = {}) =>
    world({ ...changes, section: { fenced_at: ago(5_000), ...changes.section } })

  it("is released once its path leads to its disk and a server that runs has loaded it, and is loaded no more (S12)", () => {
    assert.deepStrictEqual(said(itemFor(served(), fenced())), ["Release", "Fenced"])
  })

  it("is not while its path leads elsewhere, nowhere, or led elsewhere lately (D2, D11)", () => {
    assert.deepStrictEqual(said(itemFor(served(), fenced({ section: { device: theirs, fenced_at: ago(1) } }))), [
      null,
      "WrongDevice"
    ])
    assert.deepStrictEqual(said(itemFor(served(), fenced({ section: { device: null } }))), [null, "Fenced"])
    assert.deepStrictEqual(said(itemFor(served(), fenced(), { astray: new Set([name]) })), [null, "Fenced"])
  })

  it("is loaded first where the server runs something else, and released when it has loaded that (N7)", () => {
    const stale = fenced({ nbd: { loaded: false } })
    assert.deepStrictEqual(said(itemFor(served(), stale)), [null, "Export"])
    const unfinished = fenced({ section: { unfinished: "the server runs an older version of the file" } })
    assert.deepStrictEqual(said(itemFor(served(), unfinished)), [null, "Export"])
  })

  it("is released beside the load that starts a dead server (N5)", () => {
    const dead = fenced({ nbd: { server: { state: "absent", pid: null, problem: null }, loaded: false } })
    assert.deepStrictEqual(said(itemFor(served(), dead)), ["Release", "Export"])
  })

  it("is released while a load of its own waits for the proof, if that came after the fence, and no sooner", () => {
    const exporting = (submitted_at: number | null) => ({
      operations: [Worlds.operation(uid, { type: "export", volume_id: id, submitted_at })]
    })
    assert.strictEqual(itemFor(served(), fenced(), exporting(ago(1_000))).guard?._tag, "Release")
    assert.strictEqual(itemFor(served(), fenced(), exporting(ago(9_000))).guard, null)
    assert.strictEqual(itemFor(served(), fenced(), exporting(null)).guard, null)
    const backoff = new Map([[uid, { retry_at: Worlds.now + 1, message: "it was served from another disk" }]])
    const item = itemFor(served(), fenced(), { backoff })
    assert.deepStrictEqual(said(item), [null, "BackingOff"])
    assert.include(item.blocked?.message, "it was served from another disk")
  })

  it("is released without CloudStack only where it was proven before, as it is served again (S8)", () => {
    const away = { rest: { cloud: Worlds.unseen("away") } }
    assert.deepStrictEqual(said(itemFor(served(), fenced(away))), ["Release", "Fenced"])
    const changed = served({ generation: 2 })
    assert.deepStrictEqual(said(itemFor(changed, fenced(away))), [null, "CloudStackUnread"])
  })

  it("is left to the person who paused it, or who holds everything", () => {
    const paused = served({ spec: { paused: { reason: "why", by: "who" } } })
    assert.deepStrictEqual(said(itemFor(paused, fenced())), [null, "Paused"])
    assert.deepStrictEqual(said(itemFor(served(), fenced(), { hold: "wait" })), [null, "HoldFile"])
  })

  it("is left open by whoever forgets it, and by nothing where it leads astray", () => {
    const forgotten = served({ deletion: Worlds.deletion("forget") })
    const item = itemFor(forgotten, fenced())
    assert.deepStrictEqual([...said(item), item.removal_done], ["Release", "Fenced", false])
    for (const as of [fenced({ section: { device: theirs } }), world()]) {
      assert.deepStrictEqual([itemFor(forgotten, as).guard, itemFor(forgotten, as).removal_done], [null, true])
    }
    assert.isTrue(itemFor(forgotten, fenced(), { hold: "wait" }).removal_done)
  })

  it("is not left shut for ever by whoever forgets it: what led astray lately, or backs off, is waited for (D2, L4)", () => {
    const forgotten = served({ deletion: Worlds.deletion("forget") })
    const lately = itemFor(forgotten, fenced(), { astray: new Set([name]) })
    assert.deepStrictEqual([...said(lately), lately.removal_done], [null, "Fenced", false])
    const backoff = new Map([[uid, { retry_at: Worlds.now + 60_000, message: "no space left" }]])
    const resting = itemFor(forgotten, fenced(), { backoff })
    assert.deepStrictEqual([...said(resting), resting.removal_done], ["Release", "Fenced", false])
    const elsewhere = fenced({ section: { device: theirs } })
    assert.isTrue(itemFor(forgotten, elsewhere, { astray: new Set([name]) }).removal_done)
  })

  it("is opened again where the declaration leaves exports to others by now", () => {
    const open = served({ spec: { export_wanted: null } })
    assert.deepStrictEqual(itemFor(open, fenced()).guard?._tag, "Release")
    assert.strictEqual(itemFor(open, world()).guard, null)
  })
})

describe("An export that leads to other bytes than its volume's", () => {
  const cases: ReadonlyArray<readonly [string, Differences, string]> = [
    ["whose link leads to another volume's disk (D3)", { section: { device: theirs } }, "WrongDevice"],
    ["whose link leads to what is no disk of this guest (D6)", { section: { device: "7:0" } }, "WrongDevice"],
    ["that is served from another disk (D4)", { go: { device: theirs } }, "Export"],
    ["that is served without end, as a disk of size 0 is (D10)", { go: { size: 2 ** 64 } }, "Export"],
    ["that is served with 4096 bytes, as a directory is (D10)", { go: { size: 4096 } }, "Export"],
    [
      "whose disk has size 0 (D10)",
      { rest: { guest: Worlds.guest([Worlds.device(id, "b", { size: 0 })]) }, go: { size: 0 } },
      "SizeMismatch"
    ],
    [
      "whose serial two disks bear (D5)",
      { rest: { guest: Worlds.guest([Worlds.device(id, "b"), Worlds.device(id, "c")]) } },
      "DeviceAmbiguous"
    ],
    [
      "whose disk has been put to another use, as a mount of the system (S5)",
      { rest: { guest: Worlds.guest([Worlds.device(id, "b", { forbidden: "mounted on /" })]) } },
      "DeviceForbidden"
    ],
    ["whose disk is not here while the link leads to another's (D4)", crossed(), "WrongDevice"]
  ]
  for (const [what, how, outcome] of cases) {
    it(`${what} is fenced at once (S3)`, () => {
      assert.deepStrictEqual(said(itemFor(served(), world(how))), ["Fence", outcome])
      // A fence that is there is not set again; and what a section or a disk shows is not released.
      const again = world({ ...how, section: { ...how.section, fenced_at: ago(5) } })
      assert.include(how.go === undefined ? [undefined] : [undefined, "Release"], itemFor(served(), again).guard?._tag)
    })
  }

  function crossed(): Differences {
    return { section: { device: theirs }, rest: { guest: Worlds.guest([Worlds.device(neighbour, "c")]) } }
  }

  it("is fenced on a paused declaration too, while CloudStack is away, and beside an undecided operation", () => {
    const wrong: Differences = { section: { device: theirs } }
    const paused = served({ spec: { paused: { reason: "why", by: "who" } } })
    assert.strictEqual(itemFor(paused, world(wrong)).guard?._tag, "Fence")
    const away = world({ ...wrong, rest: { cloud: Worlds.unseen("away") } })
    assert.strictEqual(itemFor(served(), away).guard?._tag, "Fence")
    const operations = [Worlds.operation(uid, { type: "tag", volume_id: id })]
    assert.strictEqual(itemFor(served(), world(wrong), { operations }).guard?._tag, "Fence")
    assert.isNull(itemFor(served(), world(wrong), { hold: "wait" }).guard)
  })

  it("is not judged by a disk whose serial cannot be read, nor by a torn reading of the guest (D7)", () => {
    const nameless = Worlds.device(neighbour, "c", { serial: null })
    const unread = { section: { device: theirs }, rest: { guest: Worlds.guest([nameless], false) } }
    assert.isNull(itemFor(served(), world(unread)).guard)
    const torn = { section: { device: "7:0" }, rest: { guest: Worlds.guest([], false) } }
    assert.isNull(itemFor(served(), world(torn)).guard)
  })

  it("goes, where no section stands for it, or where the server does not heed the fence (N8)", () => {
    const { rest = {} } = crossed()
    const stray = world({ section: null, go: { device: theirs }, rest })
    assert.deepStrictEqual(said(itemFor(served(), stray)), [null, "Unexport"])
    const heedless = (ms: number) =>
      world({ section: { device: theirs, fenced_at: ago(ms) }, go: Worlds.verification(id, "c"), rest })
    assert.deepStrictEqual(said(itemFor(served(), heedless(1_000))), [null, "WrongDevice"])
    assert.deepStrictEqual(said(itemFor(served(), heedless(limits.device_timeout_ms))), [null, "Unexport"])
  })

  it("is loaded again where guest and server disagree for longer: a holder has a disk that is gone (NBD_PIN)", () => {
    const disagreed = (ms: number) => world({ section: { device: "252:7", fenced_at: ago(ms) } })
    assert.deepStrictEqual(said(itemFor(served(), disagreed(1_000))), [null, "WrongDevice"])
    assert.deepStrictEqual(said(itemFor(served(), disagreed(5_000))), [null, "Export"])
  })

  it("is not loaded again for a link that flaps to the disk of another volume, however long (D2, D3, S12, S19)", () => {
    const flapping = world({ section: { device: theirs, fenced_at: ago(20_000) } })
    assert.deepStrictEqual(said(itemFor(served(), flapping)), [null, "WrongDevice"])
  })

  it("is loaded again where the server goes on serving another disk although it is fenced (N8, S3)", () => {
    const heedless = (ms: number) => world({ section: { fenced_at: ago(ms) }, go: Worlds.verification(id, "c") })
    assert.deepStrictEqual(said(itemFor(served(), heedless(1_000))), [null, "Fenced"])
    assert.deepStrictEqual(said(itemFor(served(), heedless(5_000))), [null, "Export"])
  })

  it("leaves the neighbour to which it leads as it is (S19)", () => {
    const [, second] = Plan.make(
      Worlds.input(
        [
          served(),
          Worlds.declaration("neighbour", { uid: Worlds.uidOf(2), binding: Worlds.settledBinding(neighbour) })
        ],
        world({
          section: { device: theirs },
          nbd: {
            sections: [Worlds.section(id, { device: theirs }), Worlds.section(neighbour, { device: theirs })],
            verifications: [Worlds.verification(id, "c"), Worlds.verification(neighbour, "c")]
          }
        })
      )
    ).items
    assert.deepStrictEqual([second?.guard, second?.settled], [null, true])
  })
})

describe("A volume that CloudStack says has left while the guest shows it (D9)", () => {
  const gone = (started_at = Worlds.now) => ({
    ...world(),
    cloud: { ...Worlds.cloud({ volumes: [Worlds.cloudVolume(id)] }), started_at }
  })
  const drifted = (drift_since: number | null) => served({ binding: Worlds.settledBinding(id, { drift_since }) })

  it("is fenced as soon as a second reading says so, and is attached nowhere (S1, O1)", () => {
    assert.deepStrictEqual(said(itemFor(drifted(null), gone())), [null, "StillInGuest"])
    assert.deepStrictEqual(said(itemFor(drifted(Worlds.now), gone())), [null, "StillInGuest"])
    assert.deepStrictEqual(said(itemFor(drifted(ago(1_000)), gone())), ["Fence", "StillInGuest"])
  })

  it("is fenced before its unexport is let through, where that needs a person (S17)", () => {
    const item = itemFor(drifted(ago(limits.device_timeout_ms)), gone(), { destructive_last_hour: 100 })
    assert.deepStrictEqual(said(item), ["Fence", "HeldForApproval"])
  })

  it("is not fenced where it was only attached in CloudStack and never here (D8)", () => {
    const absent = { ...world({ section: null }), guest: Worlds.guest() }
    assert.isNull(itemFor(served({ binding: { volume_id: id } }), absent).guard)
  })
})

describe("Whoever has a disk open", () => {
  const viewOf = (holders: ReadonlyArray<Holder>, guest = Worlds.guest([Worlds.device(id, "b")])) =>
    Merge.make(world({ holders, rest: { guest } }), [served()]).view(served())

  it("is seen on every disk that bears the serial (D5, N10)", () => {
    const two = Worlds.guest([Worlds.device(id, "b"), Worlds.device(id, "c")])
    assert.lengthOf(viewOf([client, { ...client, pid: 9, device: theirs }], two).holders, 2)
  })

  it("keeps nothing once the disk has left the guest: nobody reads or writes it any more (N10, S11)", () => {
    assert.deepStrictEqual(viewOf([client], Worlds.guest()).holders, [])
    const off = { ...world({ holders: [client], section: null, go: { ...denied, outcome: "unknown" } }) }
    const detached = { ...off, cloud: Worlds.cloud({ volumes: [Worlds.cloudVolume(id)] }), guest: Worlds.guest() }
    assert.deepStrictEqual(said(itemFor(leaving, detached)), [null, "Attach"])
  })
})

describe("Without an NBD server installed", () => {
  const none = { nbd: { server: { state: "not_installed", pid: null, problem: null }, loaded: false } } as const
  const refused = { ...denied, outcome: "refused" } as const

  it("a section is taken out of the file all the same, for nobody serves it (N5)", () => {
    assert.deepStrictEqual(said(itemFor(leaving, world({ ...none, go: refused }))), [null, "Unexport"])
    const broken = world({ nbd: { ...none.nbd, config_problem: "line 3 is no key" }, go: refused })
    assert.deepStrictEqual(said(itemFor(leaving, broken)), [null, "NbdConfigBroken"])
    assert.deepStrictEqual(said(itemFor(leaving, world({ ...none, go: refused, holders: [client] }))), [
      "Fence",
      "Draining"
    ])
  })

  it("nothing can be served, which is told (N5)", () => {
    assert.deepStrictEqual(said(itemFor(served(), world({ ...none, go: refused }))), [null, "NbdNotInstalled"])
  })
})

describe("A server with no export left", () => {
  it("is a state like others, whether it runs or not: nothing is loaded for it (N16, S12)", () => {
    const unwanted = Worlds.declaration("disk", {
      uid,
      spec: { export_wanted: false, attached_to: null },
      binding: { volume_id: id, origin: "adopted", settled_generation: 1 }
    })
    const tagged = Worlds.cloudVolume(id, { tags: [{ key: "volumed-uid", value: uid }] })
    for (const state of ["running", "absent", "not_installed"] as const) {
      const nbd = Worlds.nbd({ server: { state, pid: null, problem: null }, loaded: state === "running" })
      const plan = Plan.make(
        Worlds.input([unwanted], Worlds.inventory({ cloud: Worlds.cloud({ volumes: [tagged] }), nbd }))
      )
      assert.deepStrictEqual([plan.items.map(said), plan.notices], [[[null, "settled"]], []], state)
    }
  })
})

describe("Exports that name a letter", () => {
  const ids = [1, 2, 3].map(Worlds.volumeId)
  const letters = ["b", "c", "d"]
  const legacy = ids.map((volume, n) =>
    Worlds.declaration(`disk-${n}`, {
      uid: Worlds.uidOf(n + 1),
      binding: Worlds.settledBinding(volume, {
        export: { name: exportNameOf(volume), path: `/dev/vd${letters[n]}`, settled_at: 1 }
      })
    })
  )
  const observed = (moved: number): Inventory => ({
    ...Worlds.inPlace(ids),
    nbd: Worlds.nbd({
      sections: ids.map((volume, n) =>
        Worlds.section(volume, {
          device: `252:${98 + n}`,
          ...(n < moved ? {} : { path: `/dev/vd${letters[n]}` })
        })
      ),
      verifications: ids.map((volume, n) => Worlds.verification(volume, letters[n] ?? "z"))
    })
  })
  const nexts = (moved: number, operations: ReadonlyArray<ReturnType<typeof Worlds.operation>> = []) =>
    Plan.make(Worlds.input(legacy, observed(moved), { operations })).items.map(
      ({ blocked, next }) => next?._tag ?? blocked?.reason
    )

  it("move to by-id paths one a pass, each verified before the next", () => {
    assert.deepStrictEqual(nexts(0), ["MigratePath", "Queued", "Queued"])
    const moving = Worlds.operation(Worlds.uidOf(1), { type: "migrate_path", volume_id: ids[0] ?? "" })
    assert.deepStrictEqual(nexts(1, [moving]), ["OperationInFlight", "Queued", "Queued"])
    assert.deepStrictEqual(nexts(1).slice(1), ["MigratePath", "Queued"])
    const stuck = { ...moving, phase: "needs_operator" as const }
    assert.deepStrictEqual(nexts(1, [stuck]).slice(1), ["MigratePath", "Queued"])
  })

  it("are fenced like others once the letter is another disk's (D4, S3)", () => {
    const swapped = observed(0)
    assert.isTrue(swapped.nbd._tag === "Known")
    const nbd = Worlds.nbd({
      sections: [Worlds.section(ids[0] ?? id, { path: "/dev/vdb", device: "252:99" })],
      verifications: [Worlds.verification(ids[0] ?? id, "c")]
    })
    const [item] = Plan.make(Worlds.input(legacy.slice(0, 1), { ...swapped, nbd })).items
    assert.deepStrictEqual([item?.guard?._tag, item?.next?._tag], ["Fence", "MigratePath"])
  })
})
