import { assert, describe, it } from "@effect/vitest"
import { Clock, Effect, Fiber, Stream, TestClock } from "effect"
import * as Sentry from "../../reconciler/Sentry.ts"
import { blank, type Standing } from "../../reconciler/Standing.ts"
import { Store } from "../../reconciler/Store.ts"
import { NbdUnavailable, StoreUnavailable } from "../../schema/Errors.ts"
import { exportNameOf, serialOf } from "../../schema/Ids.ts"
import type { BlockDevice, NbdSection } from "../../schema/Inventory.ts"
import * as SimulatedNbd from "../../src/Simulation/Nbd.ts"
import * as Cloud from "../support/Cloud.ts"
import { altering, converged, run, truth } from "../support/Loops.ts"
import * as Worlds from "../support/Worlds.ts"

const [a, b] = [Worlds.volumeId(1), Worlds.volumeId(2)] as const
const name = exportNameOf(a)
const [own, other] = [Worlds.device(a, "b"), Worlds.device(b, "c")] as const
const exports: ReadonlyArray<Sentry.Guarded> = [
  { uid: Worlds.uidOf(1), volume: "disk", volume_id: a, name, serial: serialOf(a) }
]
const leadingTo = (device: string | null, more: Partial<NbdSection> = {}) => [Worlds.section(a, { device, ...more })]

describe("an export leads astray", () => {
  const is = (what: string, device: string | null, devices: ReadonlyArray<BlockDevice>, astray: boolean) =>
    it(`${astray ? "when" : "not when"} ${what}`, () => {
      assert.strictEqual(Sentry.strays(exports, leadingTo(device), devices).length, astray ? 1 : 0)
    })

  is("its path leads to its volume's disk", own.identity, [own, other], false)
  is("its path dangles, for then nobody can open anything (D1)", null, [other], false)
  is("its path leads to another volume's disk (D3, D4)", other.identity, [own, other], true)
  is("its path leads to no disk of the guest (D6)", "file:1:99", [own, other], true)
  is("two disks bear its serial (D5)", own.identity, [own, { ...other, serial: own.serial }], true)
  is(
    "the serial of the disk cannot be read, which proves nothing (D7)",
    own.identity,
    [{ ...own, serial: null }],
    false
  )

  it("by its name alone: sections that are nobody's export are left alone (S23)", () => {
    const foreign = Worlds.section(b, { device: own.identity })
    assert.deepStrictEqual(Sentry.strays(exports, [foreign], [own, other]), [])
  })
})

/** A sentry over a machine that the test moves, and what it did. */
const posted = (standing: Partial<Standing> = {}) =>
  Effect.gen(function* () {
    const machine = { device: own.identity, fenced_at: null as number | null, broken: false }
    const seen = { looks: 0, fences: 0, nudges: 0 }
    const binding = Worlds.settledBinding(a)
    const known: Standing = { ...blank, declarations: [Worlds.declaration("disk", { binding })], ...standing }
    const sentry = yield* Sentry.make(
      {
        sections: Effect.suspend(() => {
          seen.looks += 1
          if (machine.broken) return new NbdUnavailable({ detail: "the file cannot be read" })
          return Effect.succeed(leadingTo(machine.device, { fenced_at: machine.fenced_at }))
        }),
        fence: () =>
          Effect.map(Clock.currentTimeMillis, (now) => {
            seen.fences += 1
            machine.fenced_at ??= now
          })
      },
      { observe: Effect.succeed({ devices: [own, other], broken_links: [] }) },
      Effect.succeed(known),
      () => Effect.sync(() => void (seen.nudges += 1))
    )
    yield* Effect.forkScoped(sentry.watch)
    return { machine, seen, sentry }
  })

describe("the sentry", () => {
  it.scoped("fences within one look, tells the loop once, and remembers the name for half a minute (D11, S3)", () =>
    Effect.gen(function* () {
      const { machine, seen, sentry } = yield* posted()
      machine.device = other.identity
      yield* sentry.ring
      yield* TestClock.adjust("50 millis")
      assert.isNotNull(machine.fenced_at)
      assert.strictEqual(seen.nudges, 1)
      yield* TestClock.adjust("1 minute")
      assert.deepStrictEqual(seen, { ...seen, fences: 1, nudges: 1 })
      machine.device = own.identity
      yield* TestClock.adjust("20 seconds")
      assert.deepStrictEqual([...(yield* sentry.astray)], [name])
      yield* TestClock.adjust("20 seconds")
      assert.deepStrictEqual([...(yield* sentry.astray)], [])
      assert.strictEqual(seen.nudges, 2, "the loop is told that the fence may be lifted")
    })
  )

  it.scoped("remembers for as long what others saw astray, and tells the loop when that is over (S3)", () =>
    Effect.gen(function* () {
      const { seen, sentry } = yield* posted()
      yield* sentry.note(name)
      yield* TestClock.adjust("25 seconds")
      assert.deepStrictEqual([[...(yield* sentry.astray)], seen.nudges], [[name], 0])
      yield* TestClock.adjust("10 seconds")
      assert.deepStrictEqual([[...(yield* sentry.astray)], seen.nudges, seen.fences], [[], 1, 0])
    })
  )

  it.scoped(
    "is not put off by a link that flips for ever, and looks no more than ten times a second (D2, D12, S22)",
    () =>
      Effect.gen(function* () {
        const { machine, seen, sentry } = yield* posted()
        for (let flip = 0; flip < 300; flip++) {
          machine.device = flip % 2 === 0 ? other.identity : own.identity
          yield* sentry.ring
          yield* TestClock.adjust("7 millis")
        }
        assert.isNotNull(machine.fenced_at)
        assert.isAtMost(seen.looks, 25)
        assert.isAtLeast(seen.looks, 15)
      })
  )

  it.scoped("finds without any poke that a kernel name has become another disk (D3)", () =>
    Effect.gen(function* () {
      const { machine } = yield* posted()
      machine.device = other.identity
      yield* TestClock.adjust("6 seconds")
      assert.isNotNull(machine.fenced_at)
    })
  )

  it.scoped("does nothing while there is a maintenance, but knows", () =>
    Effect.gen(function* () {
      const { machine, seen, sentry } = yield* posted({ maintenance: "maintenance by ann: array work" })
      machine.device = other.identity
      yield* TestClock.adjust("20 seconds")
      assert.strictEqual(seen.fences, 0)
      assert.deepStrictEqual([...(yield* sentry.astray)], [name])
    })
  )

  it.scoped("goes on when a look fails, and when one breaks (P5, L5)", () =>
    Effect.gen(function* () {
      const { machine, sentry } = yield* posted()
      machine.broken = true
      yield* TestClock.adjust("20 seconds")
      machine.broken = false
      machine.device = other.identity
      yield* sentry.ring
      yield* TestClock.adjust("1 second")
      assert.isNotNull(machine.fenced_at)

      const dying = yield* Sentry.make(
        { sections: Effect.die(new Error("a bug")), fence: () => Effect.void },
        { observe: Effect.succeed({ devices: [], broken_links: [] }) },
        Effect.succeed({ ...blank, declarations: [Worlds.declaration("disk", { binding: Worlds.settledBinding(a) })] }),
        () => Effect.void
      )
      const watching = yield* Effect.forkScoped(dying.watch)
      yield* TestClock.adjust("1 minute")
      assert.isTrue((yield* Fiber.poll(watching))._tag === "None")
    })
  )
})

/** The links of the simulated guest; set `to` to a path and every by-id path leads there. */
const crossing = (lab: Cloud.Lab) => {
  const { resolve } = lab.nbd.options
  const crossed: { to: string | null } = { to: null }
  Object.assign(lab.nbd.options, {
    resolve: (path: string, now: number) => resolve(crossed.to ?? path, now)
  } satisfies Partial<Cloud.Lab["nbd"]["options"]>)
  return crossed
}

/** Two exported disks; the links are crossed so that both lead to the second one's. Then `then`. */
const crossed = <E>(
  then: (lab: Cloud.Lab, name: string) => Effect.Effect<void, E, Store>,
  before: (lab: Cloud.Lab) => Effect.Effect<void, unknown, Store> = () => Effect.void
) => {
  const lab = Cloud.make()
  const links = crossing(lab)
  const database = { up: true }
  const away = new StoreUnavailable({ detail: "gone", outcome_unknown: false })
  return run(
    lab,
    Effect.gen(function* () {
      for (const one of ["a", "b"]) yield* Cloud.declare(one)
      yield* converged(120_000)
      const [first, second] = [yield* Cloud.declaration("a"), yield* Cloud.declaration("b")]
      yield* before(lab)
      database.up = false
      links.to = second?.binding.export?.path ?? assert.fail("b is not exported")
      yield* Cloud.pass(6_000)
      database.up = true
      yield* then(lab, first?.binding.export?.name ?? assert.fail("a is not exported"))
    }),
    altering({
      devices: (devices) => ({ ...devices, pokes: Stream.never }),
      store: (store) => ({
        ...store,
        declarations: Effect.suspend(() => (database.up ? store.declarations : Effect.fail(away)))
      })
    })
  )
}

describe("with neither CloudStack nor the database", () => {
  const cloudless = (lab: Cloud.Lab) =>
    Effect.map(Clock.currentTimeMillis, (now) =>
      lab.world.setFaults([{ kind: "http_5xx", command: "listVolumes" }], now)
    )

  it.effect("an export that leads to another volume's disk is fenced all the same, and no other (S3, S19, D12)", () =>
    crossed(
      (lab, fenced) =>
        Effect.gen(function* () {
          assert.deepStrictEqual([...lab.nbd.fenced.keys()], [fenced])
          assert.deepStrictEqual((yield* truth(lab)).violations, [])
        }),
      cloudless
    )
  )

  it.effect("a hold file forbids even that", () =>
    crossed(
      (lab) => Effect.sync(() => assert.deepStrictEqual([...lab.nbd.fenced.keys()], [])),
      (lab) =>
        Effect.andThen(
          cloudless(lab),
          Effect.sync(() => (lab.hold.reason = "the storage is being moved"))
        )
    )
  )
})

it.effect(
  "a link that went wrong and is right again is served again half a minute later, by itself (D2, D11, S3, L7)",
  () => {
    const lab = Cloud.make()
    const links = crossing(lab)
    return run(
      lab,
      Effect.gen(function* () {
        for (const one of ["a", "b"]) yield* Cloud.declare(one)
        yield* converged(120_000)
        const [first, second] = [yield* Cloud.declaration("a"), yield* Cloud.declaration("b")]
        const name = first?.binding.export?.name ?? assert.fail("a is not exported")
        links.to = second?.binding.export?.path ?? assert.fail("b is not exported")
        yield* Cloud.pass(6_000)
        assert.deepStrictEqual([...lab.nbd.fenced.keys()], [name])
        const now = yield* Clock.currentTimeMillis
        assert.isNull(SimulatedNbd.connect(lab.nbd, name, "10.0.0.7:1", now), "nobody opens b's disk as a's")
        links.to = null
        yield* Cloud.pass(20_000)
        assert.isTrue(lab.nbd.fenced.has(name), "a link that crossed once may cross again")
        yield* Cloud.pass(40_000)
        assert.deepStrictEqual([...lab.nbd.fenced.keys()], [])
        assert.isNotNull(SimulatedNbd.connect(lab.nbd, name, "10.0.0.7:1", yield* Clock.currentTimeMillis))
        yield* converged(60_000)
      })
    )
  }
)
