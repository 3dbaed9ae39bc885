import { assert, describe, it } from "@effect/vitest"
import { Clock, Effect, Layer, Random, TestClock } from "effect"
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { CloudStack } from "../../reconciler/CloudStack.ts"
import { Store } from "../../reconciler/Store.ts"
import { StoreUnavailable } from "../../schema/Errors.ts"
import type { Fault } from "../../src/Simulation/Fault.ts"
import type * as State from "../../src/Simulation/State.ts"
import * as Cloud from "../support/Cloud.ts"

/** A request that got no answer has expired, a loss is believed, and what failed is tried again, all within this (ms). */
const WITHIN = 240_000

const shelf = { attached_to: "none", export_wanted: false } as const

const roles = [
  { role: "root admin", root_admin: true },
  { role: "user", root_admin: false }
] as const

type Services = Layer.Layer.Success<ReturnType<typeof Cloud.layer>>

const run = <A, E>(lab: Cloud.Lab, body: Effect.Effect<A, E, Services>, seed: string) =>
  Effect.andThen(TestClock.setTime(Cloud.START), Effect.provide(body, Layer.fresh(Cloud.layer(lab)))).pipe((effect) =>
    Effect.suspend(() => Effect.withRandom(effect, Random.make(seed)))
  )

const dataDisks = (lab: Cloud.Lab) =>
  Effect.map(Clock.currentTimeMillis, (now) => lab.world.truth(now).volumes.filter(({ type }) => type === "DATADISK"))

const boundTo = (name: string) => Effect.map(Cloud.declaration(name), (found) => found?.binding.volume_id ?? null)

const creates = (lab: Cloud.Lab) => lab.world.state.mutations.filter(({ command }) => command === "createVolume").length

const operations = Effect.gen(function* () {
  const { items } = yield* (yield* Store).operations({ limit: 1000 })
  return items.filter(({ type }) => type === "create").toReversed()
})

const converged = Effect.gen(function* () {
  const store = yield* Store
  const isDone = Effect.gen(function* () {
    const all = yield* store.declarations
    return all.every(({ binding }) => binding.volume_id !== null) && (yield* store.unresolved).length === 0
  })
  const took = yield* Cloud.until(
    Effect.zipWith(Cloud.allSettled, isDone, (a, b) => a && b),
    WITHIN,
    1_000
  )
  assert.isAtLeast(took, 0, "it did not converge")
})

/** Each declaration has a volume of its own, and CloudStack has no other; nothing was done that none should do. */
const sound = (lab: Cloud.Lab, names: ReadonlyArray<string>, extras = 0) =>
  Effect.gen(function* () {
    const disks = yield* dataDisks(lab)
    const bound = yield* Effect.forEach(names, boundTo)
    assert.strictEqual(new Set(bound).size, names.length)
    for (const id of bound)
      assert.isTrue(
        disks.some((disk) => disk.id === id),
        `${id} is there`
      )
    assert.lengthOf(disks, names.length + extras, "volumes in the world (S9, S10)")
    assert.deepStrictEqual(lab.world.truth(yield* Clock.currentTimeMillis).violations, [])
  })

const faults = (list: ReadonlyArray<Fault>) => (lab: Cloud.Lab) =>
  Effect.map(Clock.currentTimeMillis, (now) => lab.world.setFaults(list, now))

describe("a create whose account may choose the volume's id", () => {
  const command = "createVolume"
  const cases: ReadonlyArray<Fault> = [
    { kind: "answer_lost_after_effect", command, times: 1 },
    { kind: "answer_lost_before_effect", command, times: 1 },
    { kind: "late_effect", command, delay_ms: 20_000, times: 1 },
    { kind: "hang", command, effect: true, times: 1 },
    { kind: "http_5xx", command, effect: true, times: 1 },
    { kind: "http_5xx", command, effect: false, times: 1 },
    { kind: "refused", command, code: 530, times: 1 },
    { kind: "refused", command, code: 535, times: 1 },
    { kind: "maintenance", command, times: 2 },
    { kind: "empty_body", command, times: 1 },
    { kind: "invalid_json", command, times: 1 },
    { kind: "job_lost", command, times: 1 },
    { kind: "job_failed", command, effect: "none", times: 1 },
    { kind: "duplicate_delivery", command, times: 2 },
    { kind: "duplicate_delivery", command, delay_ms: 3_000, times: 2 },
    { kind: "duplicate_delivery", command, delay_ms: 3_000, lost: true, times: 2 },
    { kind: "duplicate_delivery", command, delay_ms: 59_000, lost: true, times: 2 },
    { kind: "stale_list", age_ms: 5_000, times: 20 },
    { kind: "size_rounded_up", times: 2 }
  ]

  it.effect.each(cases.map((fault) => ({ name: JSON.stringify(fault), fault })))(
    "makes one volume, under the id of its intent, after $name (C2, C3, C5, C8, C10, J1, J2, S8, S9, S10)",
    ({ fault, name }) => {
      const lab = Cloud.make({ root_admin: true })
      return run(
        lab,
        Effect.gen(function* () {
          yield* faults([fault])(lab)
          yield* Cloud.declare("a", shelf)
          yield* Cloud.declare("b", shelf)
          yield* converged
          if (fault.kind === "duplicate_delivery") yield* Cloud.pass(60_000, 2_000)
          yield* sound(lab, ["a", "b"])
          for (const { request, volume_id, status } of yield* operations) {
            if (status === "completed") assert.strictEqual(request["custom_id"], volume_id)
          }
          for (const { fault, hits } of lab.world.faults()) assert.isAbove(hits, 0, `${fault.kind} was never reached`)
        }),
        name
      )
    }
  )

  it.effect(
    "knows at once that it was made although the answer was lost, for nothing else has that id (C2, C4)",
    () => {
      const lab = Cloud.make({ root_admin: true })
      return run(
        lab,
        Effect.gen(function* () {
          yield* faults([{ kind: "answer_lost_after_effect", command, times: 1 }])(lab)
          yield* Cloud.declare("a", shelf)
          const took = yield* Cloud.until(
            Effect.map(boundTo("a"), (id) => id !== null),
            30_000
          )
          assert.isAtLeast(took, 0)
          assert.isAtMost(took, 10_000)
        }),
        "soon"
      )
    }
  )

  /** Refused in words that prove nothing was done, while a proxy held the same request back, which now arrives. */
  const overtaken = (lab: Cloud.Lab) =>
    Effect.gen(function* () {
      yield* faults([{ kind: "refused", command, code: 535, times: 1 }])(lab)
      yield* Cloud.declare("a", shelf)
      yield* Cloud.until(
        Effect.map(operations, ([first]) => first?.status === "failed"),
        10_000,
        50
      )
      const [first] = yield* operations
      assert.isString(first?.request["custom_id"])
      const now = yield* Clock.currentTimeMillis
      lab.world.callLate(heldBack(first?.request ?? {}), now, now)
      return first?.request["custom_id"]
    })

  it.effect("adopts what its own late first request made, for nothing else has that id (C3, C10, S9, S10)", () => {
    const lab = Cloud.make({ root_admin: true })
    return run(
      lab,
      Effect.gen(function* () {
        const id = yield* overtaken(lab)
        yield* converged
        yield* sound(lab, ["a"])
        assert.strictEqual(yield* boundTo("a"), id)
        assert.strictEqual(creates(lab), 1, "the late one alone")
      }),
      "late"
    )
  })

  it.effect(
    "asks for the same id when it tries again, so that a late first request leaves one volume (C3, O1, S10)",
    () => {
      const lab = Cloud.make({ root_admin: true })
      return run(
        lab,
        Effect.gen(function* () {
          const id = yield* overtaken(lab)
          yield* faults([{ kind: "stale_list", age_ms: 60_000, times: 3 }])(lab)
          yield* converged
          yield* sound(lab, ["a"])
          assert.strictEqual(yield* boundTo("a"), id)
          assert.strictEqual(creates(lab), 2, "the late one, and another for the same id")
          const done = (yield* operations).find(({ status }) => status === "completed")
          assert.deepInclude(done?.response, { message: "found by its id after the answer was lost" })
        }),
        "overtaken"
      )
    }
  )

  const heldBack = (request: Readonly<Record<string, unknown>>): State.Late => ({
    command,
    params: {
      name: String(request["cloudstack_name"]),
      size: String(request["size_gib"]),
      diskofferingid: String(request["disk_offering_id"]),
      zoneid: String(request["zone_id"]),
      customid: String(request["custom_id"])
    },
    volume_id: null,
    expires_at: null
  })

  it.effect("takes another id where the first was given away and its volume is gone (C4, S10, S17)", () => {
    const lab = Cloud.make({ root_admin: true })
    return run(
      lab,
      Effect.gen(function* () {
        yield* faults([{ kind: "hang", command, effect: true, times: 1 }])(lab)
        yield* Cloud.declare("a", shelf)
        yield* Cloud.until(
          Effect.map(dataDisks(lab), (disks) => disks.length > 0),
          10_000
        )
        const [made] = yield* dataDisks(lab)
        lab.world.act({ act: "delete", volume_id: made?.id ?? "" }, yield* Clock.currentTimeMillis)
        yield* converged
        yield* sound(lab, ["a"])
        assert.notStrictEqual(yield* boundTo("a"), made?.id)
        assert.isNull((yield* Cloud.declaration("a"))?.binding.former_id)
      }),
      "vanished"
    )
  })

  it.effect("gives the volume that replaces a lost one an id of its own (S10)", () => {
    const lab = Cloud.make({ root_admin: true })
    return run(
      lab,
      Effect.gen(function* () {
        yield* Cloud.declare("a", { ...shelf, on_loss: "recreate" })
        for (const name of ["b", "c", "d", "e", "f"]) yield* Cloud.declare(name, shelf)
        yield* converged
        const lost = yield* boundTo("a")
        lab.world.act({ act: "delete", volume_id: lost ?? "" }, yield* Clock.currentTimeMillis)
        yield* Cloud.pass(200_000, 1_000)
        yield* converged
        yield* sound(lab, ["a", "b", "c", "d", "e", "f"])
        assert.notStrictEqual(yield* boundTo("a"), lost)
      }),
      "lost"
    )
  })

  it.effect("leaves a volume alone that has its id and is not what was asked for, and says so (S4)", () => {
    const lab = Cloud.make({ root_admin: true })
    return run(
      lab,
      Effect.gen(function* () {
        yield* faults([{ kind: "hang", command, effect: true, times: 1 }])(lab)
        yield* Cloud.declare("a", shelf)
        yield* Cloud.until(
          Effect.map(dataDisks(lab), (disks) => disks.length > 0),
          10_000
        )
        const [made] = yield* dataDisks(lab)
        const volume_id = made?.id ?? ""
        lab.world.act({ act: "rename", volume_id, name: "other" }, yield* Clock.currentTimeMillis)
        yield* Cloud.pass(120_000, 1_000)
        const [open] = yield* (yield* Store).unresolved
        assert.strictEqual(open?.phase, "needs_operator")
        assert.include(
          open?.error ?? "",
          `volume ${volume_id} has the id that was chosen for this one, but its name is "other"`
        )
        lab.world.act({ act: "rename", volume_id, name: "a" }, yield* Clock.currentTimeMillis)
        yield* converged
        yield* sound(lab, ["a"])
      }),
      "unlike"
    )
  })

  it.effect(
    "goes on without a chosen id once the account may choose none, and says in its intents what was sent (C7, S8)",
    () => {
      const lab = Cloud.make({ root_admin: true })
      return run(
        lab,
        Effect.gen(function* () {
          yield* Cloud.declare("a", shelf)
          yield* converged
          lab.world.act({ act: "set_role", role: "user" }, yield* Clock.currentTimeMillis)
          yield* Cloud.declare("b", shelf)
          yield* converged
          yield* sound(lab, ["a", "b"])
          const told = (yield* operations).map(({ name, request, status }) => [
            name,
            status,
            request["custom_id"] === null
          ])
          assert.deepStrictEqual(told, [
            ["a", "completed", false],
            ["b", "cancelled", false],
            ["b", "completed", true]
          ])
          assert.strictEqual(creates(lab), 3)
        }),
        "role"
      )
    }
  )
})

describe("a create whose account may choose no id", () => {
  const command = "createVolume"

  it.effect("never asks for one, and is looked for by name", () => {
    const lab = Cloud.make()
    return run(
      lab,
      Effect.gen(function* () {
        yield* Cloud.declare("a", shelf)
        yield* converged
        assert.deepStrictEqual(
          (yield* operations).map(({ request, status }) => [status, request["custom_id"]]),
          [["completed", null]]
        )
        assert.strictEqual(creates(lab), 1)
      }),
      "plain"
    )
  })

  it.effect(
    "keeps one volume of a request that was delivered twice, and neither uses nor deletes the other (C10, S10)",
    () => {
      const lab = Cloud.make()
      return run(
        lab,
        Effect.gen(function* () {
          yield* faults([{ kind: "duplicate_delivery", command, times: 1 }])(lab)
          yield* Cloud.declare("a", { attached_to: "appliance", export_wanted: true })
          yield* converged
          yield* Cloud.pass(120_000, 1_000)
          yield* sound(lab, ["a"], 1)
          const [id] = [yield* boundTo("a")]
          const other = (yield* dataDisks(lab)).find((disk) => disk.id !== id)
          assert.deepInclude(other, { vm_id: null, tags: [], state: "Allocated" })
        }),
        "twice"
      )
    }
  )

  it.effect("is held for a person when both of two deliveries could be it (C10, S10)", () => {
    const lab = Cloud.make()
    return run(
      lab,
      Effect.gen(function* () {
        yield* faults([{ kind: "duplicate_delivery", command, delay_ms: 3_000, lost: true, times: 1 }])(lab)
        yield* Cloud.declare("a", shelf)
        yield* Cloud.pass(120_000, 1_000)
        assert.strictEqual((yield* (yield* Store).unresolved)[0]?.phase, "needs_operator")
        const [surplus] = yield* dataDisks(lab)
        lab.world.act({ act: "delete", volume_id: surplus?.id ?? "" }, yield* Clock.currentTimeMillis)
        yield* converged
        yield* sound(lab, ["a"])
      }),
      "held"
    )
  })
})

/** Where a process dies: before the intent is durable, before the call, before the answer is read, before it is recorded. */
type Point = "create.0" | "create.1" | "create.2" | "create.3"
const points: ReadonlyArray<Point> = ["create.0", "create.1", "create.2", "create.3"]

/** From that point on nothing that this process does reaches the database or CloudStack. */
interface Life {
  readonly dies_at: Point | null
  dead: boolean
}

const down = new StoreUnavailable({ detail: "this process is dead", outcome_unknown: false })

type Method = (...given: ReadonlyArray<unknown>) => Effect.Effect<unknown, unknown>

/** Every method of the store, and every value that is an effect, fails once the process is dead. */
const mortal = (life: Life, store: Store["Type"]): Store["Type"] => {
  const alive = <A, E, R>(effect: () => Effect.Effect<A, E, R>) =>
    Effect.suspend((): Effect.Effect<A, E | StoreUnavailable, R> => (life.dead ? Effect.fail(down) : effect()))
  const members = Object.entries<unknown>({ ...store }).map(([name, member]) => [
    name,
    Effect.isEffect(member)
      ? alive(() => member)
      : (...given: ReadonlyArray<unknown>) => alive(() => (member as Method)(...given))
  ])
  return {
    ...(Object.fromEntries(members) as Store["Type"]),
    intend: (action) =>
      Effect.suspend(() => {
        const creating = action._tag === "Create"
        if (creating && life.dies_at === "create.0") life.dead = true
        return Effect.tap(
          alive(() => store.intend(action)),
          () => {
            if (creating && life.dies_at === "create.1") life.dead = true
          }
        )
      })
  }
}

const mortalCloud = (life: Life, cloud: CloudStack["Type"]): CloudStack["Type"] => ({
  ...cloud,
  create: (intent) =>
    Effect.suspend(() => {
      if (life.dead) return Effect.never
      return Effect.zipLeft(
        cloud.create(intent),
        Effect.suspend(() => {
          if (life.dies_at !== "create.2" && life.dies_at !== "create.3") return Effect.void
          life.dead = true
          return life.dies_at === "create.2" ? Effect.never : Effect.void
        })
      )
    })
})

/** One process from its start until it dies, or until `body` is over. */
const live = <A, E>(lab: Cloud.Lab, file: string, life: Life, body: Effect.Effect<A, E, Services>) => {
  const altered = Layer.mergeAll(
    Layer.effect(
      Store,
      Effect.map(Store, (store) => mortal(life, store))
    ),
    Layer.effect(
      CloudStack,
      Effect.map(CloudStack, (cloud) => mortalCloud(life, cloud))
    )
  )
  const ports = Layer.provideMerge(altered, Cloud.ports(lab, file))
  return Effect.provide(body, Layer.fresh(Layer.provideMerge(Cloud.loop(), ports)))
}

const untilDeath = (life: Life) =>
  Effect.map(
    Cloud.until(
      Effect.sync(() => life.dead),
      WITHIN,
      250
    ),
    (took) => assert.isAtLeast(took, 0, `${life.dies_at} was never reached`)
  )

const crashes = (root_admin: boolean, at: ReadonlyArray<Point>) =>
  Effect.acquireUseRelease(
    Effect.sync(() => mkdtempSync(join(tmpdir(), "volumed-creates-"))),
    (directory) =>
      Effect.gen(function* () {
        yield* TestClock.setTime(Cloud.START)
        const lab = Cloud.make({ root_admin })
        const file = join(directory, "state.db")
        for (const [n, dies_at] of at.entries()) {
          const life: Life = { dies_at, dead: false }
          const declared = n > 0 ? Effect.void : Effect.asVoid(Cloud.declare("a", shelf))
          yield* live(lab, file, life, Effect.andThen(declared, untilDeath(life)))
        }
        yield* live(
          lab,
          file,
          { dies_at: null, dead: false },
          Effect.gen(function* () {
            yield* converged
            yield* sound(lab, ["a"])
            assert.isAtMost(creates(lab), (yield* operations).length, "every create has an intent (S8)")
          })
        )
      }),
    (directory) => Effect.sync(() => rmSync(directory, { recursive: true, force: true }))
  )

describe.each(roles)("a process that dies in a create, as $role", ({ role, root_admin }) => {
  it.effect.each(points.map((point) => ({ point })))(
    "at $point leaves one volume, known to its declaration (P1, C4, S8, S9, S10, L6)",
    ({ point }) =>
      Effect.suspend(() => Effect.withRandom(crashes(root_admin, [point]), Random.make(`${role} ${point}`)))
  )

  // A second death needs a create to die in: after the last two points there is none.
  const pairs = points.slice(0, 2).flatMap((first) => points.map((second) => ({ first, second })))
  it.effect.each(pairs)(
    "at $first and then at $second leaves one volume, known to its declaration (P2, C4, S8, S9, S10, L6)",
    ({ first, second }) =>
      Effect.suspend(() =>
        Effect.withRandom(crashes(root_admin, [first, second]), Random.make(`${role} ${first} ${second}`))
      )
  )
})
