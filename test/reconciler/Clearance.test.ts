import { assert, describe, it } from "@effect/vitest"
import { Effect, Fiber, TestClock } from "effect"
import * as Clearance from "../../reconciler/Clearance.ts"
import { Store } from "../../reconciler/Store.ts"
import type { Detach } from "../../schema/Action.ts"
import { GuestUnavailable, NbdUnavailable } from "../../schema/Errors.ts"
import type { BlockDevice, Holder, NbdReading } from "../../schema/Inventory.ts"
import * as Cloud from "../support/Cloud.ts"
import { altering, converged, run, truth } from "../support/Loops.ts"
import * as Worlds from "../support/Worlds.ts"

const id = Worlds.volumeId(1)
const disk = Worlds.device(id, "b")
const declaration = Worlds.declaration("disk", { binding: Worlds.settledBinding(id) })
const detach: Detach = {
  _tag: "Detach",
  uid: declaration.uid,
  name: declaration.name,
  generation: 1,
  cause: "declaration",
  reason: "it is to leave",
  destructive: false,
  volume_id: id,
  vm_id: Worlds.appliance,
  on_appliance: true,
  device: disk.identity,
  root: false
}

const held = (peer: string | null): Holder => ({ pid: 42, command: "dd", device: disk.identity, peer, since: null })
const unserved = Worlds.verification(id, "b", { outcome: "unknown", device: null })

interface Found {
  readonly devices?: ReadonlyArray<BlockDevice>
  readonly nbd?: Partial<NbdReading> | "unread"
  readonly flush?: Effect.Effect<void, GuestUnavailable>
}

/** What is said of a detach in this world, and whether the disk was flushed. */
const asked = ({ devices = [disk], flush = Effect.void, nbd = {} }: Found, action: Partial<Detach> = {}) =>
  Effect.gen(function* () {
    const flushed: Array<string> = []
    const found = Worlds.nbd({ verifications: [unserved], ...(nbd === "unread" ? {} : nbd) })
    const clear = Clearance.make(
      {
        observe: () =>
          nbd === "unread" || found._tag === "Unread"
            ? new NbdUnavailable({ detail: "EIO" })
            : Effect.succeed(found.value)
      },
      {
        observe: Effect.succeed({ devices, broken_links: [] }),
        flush: (one) =>
          Effect.andThen(
            flush,
            Effect.sync(() => void flushed.push(one.identity))
          )
      }
    )
    const exit = yield* Effect.either(clear({ ...detach, ...action }, declaration))
    return { said: exit._tag === "Left" ? exit.left.message : null, flushed }
  })

describe("right before a detach (S11)", () => {
  it.effect("a disk that nobody holds, and to which nothing leads, is flushed and may go", () =>
    Effect.gen(function* () {
      assert.deepStrictEqual(yield* asked({}), { said: null, flushed: [disk.identity] })
      const gone = yield* asked({ devices: [] }, { device: null })
      assert.deepStrictEqual(gone, { said: null, flushed: [] }, "there is nothing to flush of a disk that is not here")
    })
  )

  const refuses = (what: string, found: Found, why: RegExp) =>
    it.effect(`it may not where ${what}`, () =>
      Effect.gen(function* () {
        const { flushed, said } = yield* asked(found)
        assert.match(said ?? "nothing", why)
        assert.deepStrictEqual(flushed, [])
      })
    )

  refuses(
    "a client has connected since (N10)",
    { nbd: { holders: [held("10.0.0.7:4000")] } },
    /held open .*10\.0\.0\.7/u
  )
  refuses("somebody else has it open (N10)", { nbd: { holders: [held(null)] } }, /held open by dd \(process 42\)/u)
  refuses(
    "its name is served still (N8)",
    { nbd: { verifications: [Worlds.verification(id, "b")] } },
    /is served still/u
  )
  refuses("its section is back (N1)", { nbd: { sections: [Worlds.section(id)] } }, /leads to the volume/u)
  refuses(
    "another section leads to it (D4)",
    { nbd: { sections: [Worlds.section(Worlds.volumeId(2), { name: "by-hand", device: disk.identity })] } },
    /by-hand/u
  )
  refuses("the NBD side cannot be read", { nbd: "unread" }, /EIO/u)
  refuses("its device is another one now (D4)", { devices: [{ ...disk, identity: "252:7" }] }, /252:7.*planned/u)
  refuses("its disk is not here any more", { devices: [] }, /not here/u)
  refuses("two disks bear its serial (D5)", { devices: [disk, { ...disk, identity: "252:7" }] }, /252:7/u)
  refuses("it has been mounted", { devices: [{ ...disk, forbidden: "it is mounted on /mnt" }] }, /mounted/u)
  refuses("its flush fails", { flush: new GuestUnavailable({ detail: "/dev/vdb could not be flushed: EIO" }) }, /EIO/u)

  it.effect("a flush that hangs does not hold it up for ever, and it may not go (D10, L5)", () =>
    Effect.gen(function* () {
      const waiting = yield* Effect.fork(asked({ flush: Effect.uninterruptible(Effect.never) }))
      yield* TestClock.adjust("11 seconds")
      assert.match((yield* Fiber.join(waiting)).said ?? "", /could not be flushed in time/u)
    })
  )
})

it.effect(
  "a flush that fails keeps the detach from being sent, and its row says why; then it is sent (S11, D10)",
  () => {
    const lab = Cloud.make()
    const failing = { times: 1 }
    return run(
      lab,
      Effect.gen(function* () {
        const store = yield* Store
        yield* Cloud.declare("disk")
        yield* converged(120_000)
        yield* Cloud.declare("disk", { attached_to: "none", export_wanted: false })
        const refused = Effect.map(store.operations({ type: "detach" }), ({ items }) =>
          items.some(({ status }) => status === "cancelled")
        )
        assert.isAtLeast(yield* Cloud.until(refused, 30_000), 0)
        assert.strictEqual((yield* truth(lab)).calls["detachVolume"] ?? 0, 0)
        const [row] = (yield* store.operations({ type: "detach" })).items
        assert.match(row?.error ?? "", /flushed: EIO/u)
        yield* converged(60_000)
        assert.strictEqual((yield* truth(lab)).calls["detachVolume"], 1)
        assert.deepStrictEqual((yield* truth(lab)).violations, [])
      }),
      altering({
        devices: (devices) => ({
          ...devices,
          flush: (one) =>
            Effect.suspend(() =>
              failing.times-- > 0
                ? new GuestUnavailable({ detail: `${one.kernel_path} could not be flushed: EIO` })
                : Effect.void
            )
        })
      })
    )
  }
)
