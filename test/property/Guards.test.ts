import { assert, describe, it } from "@effect/vitest"
import { FastCheck as fc } from "effect"
import type { Action, Guard } from "../../schema/Action.ts"
import type { Declaration, Spec } from "../../schema/Declaration.ts"
import { exportNameOf, type Uid, type VmId, type VolumeId } from "../../schema/Ids.ts"
import type { Inventory, NbdSection, Verification } from "../../schema/Inventory.ts"
import { limits } from "../../schema/Settings.ts"
import * as Check from "../../reconciler/Check.ts"
import * as Facts from "../../reconciler/Facts.ts"
import * as Merge from "../../reconciler/Merge.ts"
import * as Plan from "../../reconciler/Plan.ts"
import * as Worlds from "../support/Worlds.ts"

/**
 * The planner alone against a world in which everything that it asks for happens at once: random histories of wishes,
 * clients, links that lie and servers that die, and after each pass what must hold of who can open what. A calm at the end
 * shows that nothing stays shut that should be open.
 */
const ids = [Worlds.volumeId(1), Worlds.volumeId(2)] as const
const letters = ["b", "c"] as const
const identityOf = (n: number) => `252:${(letters[n] ?? "z").charCodeAt(0)}`
const SIZE = Worlds.device(ids[0], "b").size
const ASTRAY_MS = 30_000

interface Section {
  readonly name: string
  readonly path: string
  readonly read_only: boolean
}

interface World {
  now: number
  declarations: Array<Declaration>
  /** Where each volume is. */
  readonly at: Array<VmId | "none">
  /** Which volume's disk each volume's link leads to; null: none. */
  readonly links: Array<number | null>
  file: Array<Section>
  served: ReadonlyArray<Section>
  state: "running" | "absent" | "hung"
  readonly fenced: Map<string, number>
  readonly damaged: Set<string>
  clients: Array<{ readonly pid: number; readonly device: string }>
  readonly consents: Map<Uid, number>
  readonly astray: Map<string, number>
  hold: string | null
  loads: number
  pids: number
}

const begin = (): World => ({
  now: Worlds.now,
  declarations: ids.map((id, n) =>
    Worlds.declaration(`disk-${n}`, { uid: Worlds.uidOf(n + 1), binding: Worlds.settledBinding(id) })
  ),
  at: [Worlds.appliance, Worlds.appliance],
  links: [0, 1],
  file: ids.map((id) => ({ name: exportNameOf(id), path: Worlds.byIdPath(id), read_only: false })),
  served: ids.map((id) => ({ name: exportNameOf(id), path: Worlds.byIdPath(id), read_only: false })),
  state: "running",
  fenced: new Map(),
  damaged: new Set(),
  clients: [],
  consents: new Map(),
  astray: new Map(),
  hold: null,
  loads: 0,
  pids: 100
})

const isHere = (w: World, n: number) => w.at[n] === Worlds.appliance

/** The volume whose disk a path leads to at this moment. */
const leadsTo = (w: World, path: string): number | null => {
  const link = ids.findIndex((id) => Worlds.byIdPath(id) === path)
  const to = w.links[link] ?? null
  return isHere(w, link) && to !== null && isHere(w, to) ? to : null
}

const verify = (w: World, name: string): Verification => {
  const answer = (outcome: Verification["outcome"]): Verification => ({
    name,
    outcome,
    size: null,
    read_only: null,
    device: null,
    verified_at: w.now,
    message: null
  })
  const section = w.served.find((one) => one.name === name)
  if (w.state !== "running") return answer(w.state === "absent" ? "refused" : "no_answer")
  if (w.damaged.has(name)) return answer("dropped")
  if (section === undefined) return answer("unknown")
  const to = leadsTo(w, section.path)
  if (w.fenced.has(name) || to === null) return answer("denied")
  return { ...answer("served"), size: SIZE, read_only: section.read_only, device: identityOf(to) }
}

const isLoaded = (w: World) => w.state === "running" && JSON.stringify(w.served) === JSON.stringify(w.file)

const observed = (w: World): Inventory => {
  const volumes = ids.map((id, n) => {
    const at = w.at[n] ?? "none"
    const tags = [{ key: "volumed-uid", value: Worlds.uidOf(n + 1) }]
    return Worlds.cloudVolume(id, { vm_id: at === "none" ? null : at, tags })
  })
  const devices = ids.flatMap((id, n) => {
    const by_id_paths = ids.map(Worlds.byIdPath).filter((path) => leadsTo(w, path) === n)
    return isHere(w, n) ? [Worlds.device(id, letters[n] ?? "z", { by_id_paths })] : []
  })
  const sections = w.file.map((one): NbdSection => {
    const to = leadsTo(w, one.path)
    return {
      ...Worlds.section(ids[0]),
      ...one,
      device: to === null ? null : identityOf(to),
      fenced_at: w.fenced.get(one.name) ?? null
    }
  })
  const nbd = Worlds.nbd({
    server: { state: w.state, pid: null, problem: null },
    loaded: isLoaded(w),
    sections,
    verifications: ids.map((id) => verify(w, exportNameOf(id))),
    holders: w.clients.map((one) => ({ ...one, command: "nbd-server", peer: "10.0.0.9", since: null }))
  })
  return Worlds.inventory({ cloud: Worlds.cloud({ volumes }), guest: Worlds.guest(devices), nbd })
}

const indexOf = (id: VolumeId) => ids.findIndex((one) => one === id)

const rebind = (w: World, uid: Uid, change: (d: Declaration) => Declaration) => {
  w.declarations = w.declarations.map((d) => (d.uid === uid ? change(d) : d))
}

const guard = (w: World, it: Guard) => {
  switch (it._tag) {
    case "Fence":
      return void (w.fenced.has(it.export_name) || w.fenced.set(it.export_name, w.now))
    case "Release":
      return void w.fenced.delete(it.export_name)
    case "EndClients":
      w.clients = w.clients.filter(({ device }) => device !== it.device)
  }
}

type Loading = Extract<Action, { _tag: "Export" | "MigratePath" | "Unexport" }>
const isLoading = (action: Action): action is Loading =>
  action._tag === "Export" || action._tag === "MigratePath" || action._tag === "Unexport"

/** One load for all, checked against the links as they are. What it brought is bound where a client would find it. */
const load = (w: World, actions: ReadonlyArray<Loading>) => {
  if (actions.length === 0) return
  const before = JSON.stringify(w.file)
  for (const action of actions) {
    const wrong = action._tag !== "Unexport" && leadsTo(w, action.path) !== indexOf(action.volume_id)
    if (wrong) continue
    w.file = w.file.filter(({ name }) => name !== action.export_name)
    if (action._tag === "Unexport") continue
    w.file = [...w.file, { name: action.export_name, path: action.path, read_only: action.read_only }]
  }
  const changed = before !== JSON.stringify(w.file)
  if (changed || !isLoaded(w) || w.damaged.size > 0) {
    w.loads += 1
    w.state = "running"
    w.damaged.clear()
    w.served = [...w.file]
  }
  // A section that is gone takes its authfile's meaning along.
  for (const name of w.fenced.keys()) if (!w.file.some((one) => one.name === name)) w.fenced.delete(name)
  for (const action of actions) {
    const served = verify(w, action.export_name).outcome === "served"
    if (served === (action._tag !== "Unexport")) settle(w, action)
  }
}

const settle = (w: World, action: Action) =>
  rebind(w, action.uid, (d) => ({ ...d, binding: Merge.bind(d, action, w.now) }))

const act = (w: World, action: Action) => {
  if (action._tag === "Attach") w.at[indexOf(action.volume_id)] = action.vm_id
  else if (action._tag === "Detach") w.at[indexOf(action.volume_id)] = "none"
  settle(w, action)
}

const inputOf = (w: World): Plan.Input => ({
  ...Worlds.input(w.declarations, observed(w)),
  now: w.now,
  consents: w.consents,
  astray: new Set(w.astray.keys()),
  hold: w.hold
})

/** As the loop does: learn, plan, check, guard, act. Asserts what must hold of what is asked for and of what it leaves. */
const pass = (w: World) => {
  for (const { uid, binding } of Facts.learn(w.declarations, observed(w), w.now, limits)) {
    rebind(w, uid, (d) => ({ ...d, binding }))
  }
  for (const [name, at] of w.astray) if (w.now - at >= ASTRAY_MS) w.astray.delete(name)
  const input = inputOf(w)
  const plan = Plan.make(input)
  assert.deepStrictEqual(Check.check(input, plan), [])
  for (const item of plan.items) {
    if (item.guard?._tag === "EndClients") {
      assert.isAtMost(w.consents.get(item.uid) ?? Number.POSITIVE_INFINITY, w.now, "ended without consent")
    }
    if (item.guard !== null) guard(w, item.guard)
  }
  const actions = plan.items.flatMap(({ next }) => next ?? [])
  for (const action of actions) {
    if (action._tag !== "Detach" || !action.on_appliance) continue
    const device = identityOf(indexOf(action.volume_id))
    assert.isFalse(
      w.clients.some((one) => one.device === device),
      "a detach under a client (N10, S11)"
    )
  }
  const before = w.loads
  load(w, actions.filter(isLoading))
  assert.isAtMost(w.loads - before, 1)
  for (const action of actions) if (!isLoading(action)) act(w, action)
  return plan
}

/** The loop's sentry, which waits for no pass. */
const remember = (w: World) => {
  for (const { name, path } of w.file) {
    const to = leadsTo(w, path)
    if (to !== null && exportNameOf(ids[to] ?? ids[0]) !== name) w.astray.set(name, w.now)
  }
}

const rightly = (w: World) => {
  if (w.hold !== null) return
  for (const { name } of w.served) {
    const { device } = verify(w, name)
    if (device === null) continue
    assert.strictEqual(device, identityOf(ids.findIndex((id) => exportNameOf(id) === name)), `${name} is open (S3)`)
  }
}

const event = fc.oneof(
  fc.record({ _tag: fc.constant("Wish" as const), n: fc.nat(1), spec: wishes() }),
  fc.record({ _tag: fc.constant("Link" as const), n: fc.nat(1), to: fc.constantFrom(0, 1, null) }),
  fc.record({ _tag: fc.constant("Connect" as const), n: fc.nat(1) }),
  fc.record({ _tag: fc.constant("Leave" as const) }),
  fc.record({ _tag: fc.constant("Consent" as const), n: fc.nat(1), after: fc.constantFrom(0, 20_000) }),
  fc.record({ _tag: fc.constant("Server" as const), state: fc.constantFrom("running", "absent", "hung") }),
  fc.record({ _tag: fc.constant("Damage" as const), n: fc.nat(1) }),
  fc.record({ _tag: fc.constant("Hold" as const), on: fc.boolean() })
)
type Event = typeof event extends fc.Arbitrary<infer A> ? A : never

function wishes(): fc.Arbitrary<Partial<Spec>> {
  return fc.record({
    attached_to: fc.constantFrom<Spec["attached_to"]>("appliance", "appliance", "none", Worlds.vmId(1)),
    export_wanted: fc.constantFrom(true, true, false),
    read_only: fc.constantFrom(false, false, true),
    paused: fc.constantFrom<Spec["paused"]>(null, null, null, { reason: "why", by: "who" })
  })
}

const wish = (w: World, n: number, spec: Partial<Spec>) => {
  const uid = Worlds.uidOf(n + 1)
  rebind(w, uid, (d) => ({ ...d, generation: d.generation + 1, spec: { ...d.spec, ...spec } }))
  w.consents.delete(uid)
}

const live = (w: World, it: Event) => {
  switch (it._tag) {
    case "Wish":
      return wish(w, it.n, it.spec)
    case "Link":
      w.links[it.n] = it.to
      return
    case "Connect": {
      const { device } = verify(w, exportNameOf(ids[it.n] ?? ids[0]))
      if (device !== null) w.clients.push({ pid: (w.pids += 1), device })
      return
    }
    case "Leave":
      return void w.clients.shift()
    case "Consent":
      return void w.consents.set(Worlds.uidOf(it.n + 1), w.now + it.after)
    case "Server":
      w.state = it.state as World["state"]
      if (it.state === "running") w.served = [...w.file]
      return
    case "Damage":
      return void w.damaged.add(exportNameOf(ids[it.n] ?? ids[0]))
    case "Hold":
      w.hold = it.on ? "somebody looks" : null
  }
}

const step = (w: World, it: Event, wait: number) => {
  live(w, it)
  remember(w)
  pass(w)
  rightly(w)
  w.now += wait
}

const calm = (w: World) => {
  w.hold = null
  w.clients = []
  w.links.splice(0, 2, 0, 1)
  ids.forEach((_, n) => wish(w, n, { paused: null }))
  for (let i = 0; i < 12; i++) {
    pass(w)
    w.now += 10_000
  }
}

const told = (w: World) => JSON.stringify(Plan.make(inputOf(w)).items.map(({ blocked, next }) => [next?._tag, blocked]))

const history = fc.array(fc.tuple(event, fc.constantFrom(500, 5_000, 61_000)), { minLength: 1, maxLength: 30 })
const runs = { seed: 20_260_301, numRuns: 1_500 }

describe("Fences over any history", () => {
  it("shut what leads astray, spare every client that nobody gave up, and end with the wish (S3, S11, S12, D2, D3, D4, N10)", () => {
    fc.assert(
      fc.property(history, (steps) => {
        const w = begin()
        for (const [it, wait] of steps) step(w, it, wait)
        calm(w)
        for (const [n, { spec }] of w.declarations.entries()) {
          const { outcome } = verify(w, exportNameOf(ids[n] ?? ids[0]))
          const wanted = spec.attached_to === "appliance" && spec.export_wanted === true
          assert.strictEqual(outcome === "served", wanted, told(w))
          assert.strictEqual(isHere(w, n), spec.attached_to === "appliance", told(w))
        }
        const { loads } = w
        const plan = pass(w)
        assert.isTrue(
          plan.items.every((item) => item.settled && item.guard === null && item.next === null),
          told(w)
        )
        assert.deepStrictEqual([[...w.fenced.keys()], w.loads], [[], loads])
      }),
      runs
    )
  })

  it("reach every guard, with a fence while clients are there and one for a link that lies", () => {
    const seen = new Set<string>()
    fc.assert(
      fc.property(history, (steps) => {
        const w = begin()
        for (const [it, wait] of steps) {
          live(w, it)
          remember(w)
          for (const { blocked, guard } of pass(w).items)
            if (guard !== null) seen.add(`${guard._tag} ${blocked?.reason}`)
          w.now += wait
        }
      }),
      runs
    )
    const wanted = ["Fence Draining", "Fence WrongDevice", "Release Fenced", "EndClients Draining"]
    assert.deepStrictEqual(
      wanted.filter((one) => !seen.has(one)),
      []
    )
  })
})
