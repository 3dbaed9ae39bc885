import { assert, describe, it } from "@effect/vitest"
import { Effect, Schedule } from "effect"
import { spawn } from "node:child_process"
import { randomUUID } from "node:crypto"
import { once } from "node:events"
import * as Call from "../../reconciler/Call.ts"
import type { OperationAnswer } from "../../schema/Api.ts"
import { OperationId, Uid } from "../../schema/Ids.ts"
import * as World from "../../src/Simulation/World.ts"
import * as Cloud from "../support/Cloud.ts"
import * as Appliance from "../Nbd/Appliance.ts"
import * as Site from "./Site.ts"

/** The calls on a whole daemon with a real nbd-server, real time and real clients. */
const { appliance, testVm } = Cloud

const completed = ({ client }: Site.Daemon, call: Effect.Effect<OperationAnswer, unknown>) =>
  Effect.gen(function* () {
    const { id } = yield* call
    const end = yield* client.operation(id, 40_000)
    assert.strictEqual(end.status, "completed", JSON.stringify(end))
    return end
  })

const exported = (daemon: Site.Daemon) =>
  Effect.gen(function* () {
    const { v1 } = daemon.client
    const { volume_id } = yield* completed(daemon, v1.create({ name: "disk-0", size: 1024 ** 3 }))
    const { response } = yield* completed(daemon, v1.attach(volume_id, appliance))
    const { host, name, port, state } = (response ?? {})["export"] as Readonly<Record<string, string>>
    assert.strictEqual(state, "active")
    return { volume_id, uri: `nbd://${host}:${port}/${name}` }
  })

const size = (uri: string) =>
  Effect.map(Appliance.run("nbdinfo", "--size", uri), ({ code, said }) => (code === 0 ? Number(said) : null))

const loads = ({ client }: Site.Daemon) =>
  Effect.map(client.metrics, (text) => {
    const lines = text.split("\n").filter((line) => line.startsWith("volumed_nbd_loads_total{"))
    return lines.reduce((sum, line) => sum + Number(line.slice(line.lastIndexOf(" "))), 0)
  })

/** A client that has an export open, and reads no further than its pipe takes. */
const reader = (uri: string) =>
  Effect.acquireRelease(
    Effect.sync(() => spawn("nbdcopy", [uri, "-"], { stdio: ["ignore", "pipe", "ignore"] })),
    (child) =>
      Effect.promise(async () => {
        if (child.exitCode !== null || child.signalCode !== null) return
        const closed = once(child, "close")
        child.kill("SIGKILL")
        child.stdout.destroy()
        await closed
      })
  )

/** A detach that was asked for so long ago that its deadline is near: nobody here waits a minute. */
const detachLate = ({ store }: Site.Daemon, volume_id: string, left_ms: number) =>
  Effect.gen(function* () {
    const declared = (yield* store.declarations).find(({ binding }) => binding.volume_id === volume_id)
    if (declared === undefined) return yield* Effect.dieMessage("nothing is declared of it")
    const now = Date.now() - Call.DEADLINE_MS.detach + left_ms
    const { call, change } = yield* Call.ask(
      declared,
      { type: "detach", vm_id: null, request: {}, wish: { attached_to: "none" } },
      {
        now,
        actor: "v1",
        appliance_vm_id: appliance,
        defaults: { disk_offering_id: null, zone_id: null },
        delete_grace_ms: 0,
        newUid: () => Uid.make(randomUUID()),
        newOperationId: () => OperationId.make(`op-${randomUUID()}`)
      }
    )
    yield* store.write(change.write === null ? [] : [change.write], { calls: [call] })
    return call.id
  })

describe("Version 1 with a real nbd-server", () => {
  it.scopedLive("takes a volume to a test VM and back with one load each way (S11, S12)", () =>
    Effect.gen(function* () {
      const site = yield* Site.startWith("nbd-server")
      const daemon = yield* site.daemon
      const { v1 } = daemon.client
      const { uri, volume_id } = yield* exported(daemon)
      assert.strictEqual(yield* size(uri), 1024 ** 3)
      const before = yield* loads(daemon)

      yield* completed(daemon, v1.detach(volume_id))
      assert.strictEqual(yield* loads(daemon), before + 1)
      assert.isNull(yield* size(uri))
      yield* completed(daemon, v1.attach(volume_id, testVm))
      yield* completed(daemon, v1.detach(volume_id))
      assert.strictEqual(yield* loads(daemon), before + 1)
      const back = yield* completed(daemon, v1.attach(volume_id, appliance))
      assert.strictEqual(yield* loads(daemon), before + 2)
      assert.deepInclude(back.response?.["export"], { state: "active" })
      assert.strictEqual(yield* size(uri), 1024 ** 3)
      assert.deepStrictEqual(site.world.truth(Date.now()).violations, [])
    })
  )

  it.scopedLive("fails a detach under a connected client, naming InUse, and leaves the disk to it (S11, N10)", () =>
    Effect.gen(function* () {
      const site = yield* Site.startWith("nbd-server")
      const daemon = yield* site.daemon
      const { client } = daemon
      const { uri, volume_id } = yield* exported(daemon)
      const copying = yield* reader(uri)
      const connections = Effect.map(
        Effect.andThen(client.forceSync, client.export(volume_id)),
        (found) => found.connections
      )
      const [open] = yield* Effect.repeat(connections, {
        until: (found) => found.length > 0,
        schedule: Schedule.spaced(200)
      }).pipe(Effect.timeout(20_000), Effect.andThen(connections))
      assert.isString(open?.peer)

      const id = yield* detachLate(daemon, volume_id, 4_000)
      yield* client.forceSync
      const end = yield* client.operation(id, 40_000)
      assert.strictEqual(end.status, "failed")
      assert.match(end.error ?? "", /InUse/u)
      assert.strictEqual(site.world.volume(volume_id, Date.now())?.vm_id, World.APPLIANCE_VM_ID)
      assert.isNull(copying.exitCode)

      copying.kill("SIGKILL")
      copying.stdout.destroy()
      yield* completed(daemon, client.v1.detach(volume_id))
      assert.isNull(site.world.volume(volume_id, Date.now())?.vm_id ?? null)
      assert.deepStrictEqual(site.world.truth(Date.now()).violations, [])
    })
  )
})
