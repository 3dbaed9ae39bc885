import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import { type ChildProcess, spawn } from "node:child_process"
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

/** What is answered once it holds, within so long. */
const until = <A, E>(ask: Effect.Effect<A, E>, holds: (answer: A) => boolean, within = 30_000) =>
  Effect.gen(function* () {
    while (true) {
      const answer = yield* ask
      if (holds(answer)) return answer
      yield* Effect.sleep(100)
    }
  }).pipe(Effect.timeout(within))

/** Until a client is connected, as the daemon sees it. */
const connected = ({ client }: Site.Daemon, volume_id: string) =>
  Effect.map(
    until(client.export(volume_id), ({ connections }) => connections.length > 0),
    ({ connections: [open] }) => assert.isString(open?.peer)
  )

/** A program that is no client, and has a file open. */
const holding = (path: string) =>
  Effect.acquireRelease(
    Effect.async<ChildProcess>((resume) => {
      const child = spawn("sh", ["-c", 'exec 3<"$1"; echo open; exec sleep 600', "sh", path], {
        stdio: ["ignore", "pipe", "ignore"]
      })
      child.stdout.once("data", () => resume(Effect.succeed(child)))
    }),
    (child) => Effect.sync(() => void child.kill("SIGKILL"))
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

  it.scopedLive(
    "detaches under a client: waits, ends its connections alone, and other transfers go on (N10, S11, S19)",
    () =>
      Effect.gen(function* () {
        const site = yield* Site.startWith("nbd-server", null, { NBD_CALL_DRAIN: "3s" })
        const daemon = yield* site.daemon
        const { client } = daemon
        const [leaving, staying] = [yield* exported(daemon), yield* exported(daemon)]
        const [ended, kept] = [yield* reader(leaving.uri), yield* reader(staying.uri)]
        for (const { volume_id } of [leaving, staying]) yield* connected(daemon, volume_id)

        const { id } = yield* client.v1.detach(leaving.volume_id)
        const fenced = yield* until(client.export(leaving.volume_id), ({ status }) => status === "fenced")
        assert.match(fenced.problem ?? "", /new clients are denied/u)
        assert.isNull(yield* size(leaving.uri), "no new client is let in")
        assert.isNull(ended.exitCode, "a running transfer has time to end")
        assert.isNotNull(site.world.volume(leaving.volume_id, Date.now())?.vm_id ?? null)

        const end = yield* client.operation(id, 40_000)
        assert.strictEqual(end.status, "completed", JSON.stringify(end))
        assert.isAtLeast(Date.parse(end.completed_at ?? "") - Date.parse(end.created_at), 3_000)
        assert.isNull(site.world.volume(leaving.volume_id, Date.now())?.vm_id ?? null)
        assert.isNull(kept.exitCode)
        assert.lengthOf((yield* client.export(staying.volume_id)).connections, 1)
        const { items } = yield* client.events({ kind: "clients_ended" })
        const told = items[0] ?? assert.fail("nobody was told")
        assert.include(told.message, id)
        assert.deepStrictEqual(site.world.truth(Date.now()).violations, [])
      })
  )

  it.scopedLive("fails a detach under another program, naming InUse, and serves it as before (S11, N10)", () =>
    Effect.gen(function* () {
      const site = yield* Site.startWith("nbd-server", null, { NBD_CALL_DRAIN: "1s" })
      const daemon = yield* site.daemon
      const { client } = daemon
      const { uri, volume_id } = yield* exported(daemon)
      const { by_id_path } = yield* client.export(volume_id)
      const holder = yield* holding(by_id_path)

      const id = yield* detachLate(daemon, volume_id, 8_000)
      yield* client.forceSync
      const end = yield* client.operation(id, 40_000)
      assert.strictEqual(end.status, "failed")
      assert.match(end.error ?? "", /InUse/u)
      assert.strictEqual(site.world.volume(volume_id, Date.now())?.vm_id, World.APPLIANCE_VM_ID)
      assert.isNull(holder.exitCode)
      yield* until(size(uri), (bytes) => bytes !== null)

      holder.kill("SIGKILL")
      yield* completed(daemon, client.v1.detach(volume_id))
      assert.isNull(site.world.volume(volume_id, Date.now())?.vm_id ?? null)
      assert.deepStrictEqual(site.world.truth(Date.now()).violations, [])
    })
  )
})

describe("Version 2 with a real nbd-server", () => {
  it.scopedLive("holds a volume under its clients as InUse, until somebody agrees to their end (N10, S11)", () =>
    Effect.gen(function* () {
      const site = yield* Site.startWith("nbd-server", null, { NBD_DRAIN: "2s" })
      const daemon = yield* site.daemon
      const { client } = daemon
      const { uri, volume_id } = yield* exported(daemon)
      const copying = yield* reader(uri)
      yield* connected(daemon, volume_id)
      const { items } = yield* client.volumes()
      const name = items.find(({ status }) => status.volume_id === volume_id)?.name ?? assert.fail("not declared")

      yield* client.patch(name, { attached_to: "none", export_wanted: false })
      const ready = Effect.map(client.volume(name), ({ status }) =>
        status.conditions.find(({ type }) => type === "Ready")
      )
      const readyAs = (reason: string) => until(ready, (found) => found?.reason === reason)
      assert.match((yield* readyAs("Draining"))?.message ?? "", /127\./u)
      yield* readyAs("InUse")
      assert.isNull(copying.exitCode)
      assert.isNull(yield* size(uri))
      assert.deepInclude(yield* client.export(volume_id), { status: "fenced" })

      const planned = yield* client.retryDryRun(name, { end_clients: true })
      assert.strictEqual(planned.plan.items[0]?.guard?._tag, "EndClients")
      assert.isNull(copying.exitCode, "a dry run ends nobody")
      yield* client.retry(name, { end_clients: true })
      yield* readyAs("Settled")
      assert.isNull(site.world.volume(volume_id, Date.now())?.vm_id ?? null)
      assert.deepStrictEqual(site.world.truth(Date.now()).violations, [])
    })
  )
})
