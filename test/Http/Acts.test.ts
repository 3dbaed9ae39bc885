import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import { type Declaration, unbound } from "../../schema/Declaration.ts"
import { exportNameOf } from "../../schema/Ids.ts"
import { type Inventory, known, unread } from "../../schema/Inventory.ts"
import * as Worlds from "../support/Worlds.ts"
import * as Site from "./Site.ts"
import { appliance, otherVm, send, start, type World } from "./support.ts"

const volumeId = Worlds.volumeId(1)

const act = (url: string, name: string, rest: string, init: Parameters<typeof send>[1] = {}) =>
  send(`${url}/api/v2/volumes/${name}/${rest}`, { method: "POST", ...init })

/** `a` declared on the appliance and exported, bound to a volume; what is observed of it is up to the test. */
const declared = (world: World, change: Partial<Declaration["spec"]> = {}) => {
  world.declarations = world.declarations.map((declaration) => ({
    ...declaration,
    spec: { ...declaration.spec, ...change },
    binding: {
      ...unbound,
      volume_id: volumeId,
      origin: "created",
      export: { name: exportNameOf(volumeId), path: Worlds.byIdPath(volumeId), settled_at: 1 }
    }
  }))
}

const wish = { size: "10Gi", attached_to: "appliance", export_wanted: true }

const seen = (change: Parameters<typeof Worlds.cloudVolume>[1], more: Partial<Inventory> = {}): Inventory => ({
  ...Worlds.inventory({ cloud: Worlds.cloud({ volumes: [Worlds.cloudVolume(volumeId, change)] }) }),
  ...more
})

const specOf = (world: World) => {
  const { attached_to, attach_as, export_wanted, read_only } = world.declarations[0]?.spec ?? assert.fail("none")
  return { attached_to, attach_as, export_wanted, read_only }
}

describe("POST /api/v2/volumes/{name}/accept", () => {
  it.scopedLive("makes what is observed the wish: nowhere, on another VM, as its root, on the appliance", () =>
    Effect.gen(function* () {
      const { url, client, world } = yield* start()
      yield* client.put("a", wish)
      declared(world)
      world.inventory = seen({ vm_id: null })
      const nowhere = yield* act(url, "a", "accept")
      assert.strictEqual(nowhere.status, 200)
      assert.strictEqual(nowhere.headers.get("etag"), '"2"')
      assert.strictEqual(specOf(world).attached_to, "none")
      assert.strictEqual(specOf(world).export_wanted, true, "nothing is known of an export where the volume is not")
      world.inventory = seen({ vm_id: otherVm, device_id: 2 })
      yield* act(url, "a", "accept")
      assert.deepInclude(specOf(world), { attached_to: otherVm, attach_as: "data" })
      world.inventory = seen({ vm_id: otherVm, device_id: 0, type: "ROOT" })
      yield* act(url, "a", "accept")
      assert.deepInclude(specOf(world), { attached_to: otherVm, attach_as: "root" })
      world.inventory = seen({ vm_id: appliance })
      yield* act(url, "a", "accept")
      assert.deepStrictEqual(specOf(world), {
        attached_to: "appliance",
        attach_as: "data",
        export_wanted: false,
        read_only: false
      })
      assert.strictEqual(world.declarations[0]?.managers["attached_to"]?.by, "v2")
    })
  )

  it.scopedLive("takes a served export over as it is served, and leaves one that is being repaired as it was", () =>
    Effect.gen(function* () {
      const { url, client, world } = yield* start()
      yield* client.put("a", wish)
      declared(world, { export_wanted: false, read_only: false })
      const served = Worlds.nbd({
        sections: [Worlds.section(volumeId, { read_only: true })],
        verifications: [Worlds.verification(volumeId, "b", { read_only: true })]
      })
      world.inventory = seen({ vm_id: appliance }, { nbd: served, guest: Worlds.guest([Worlds.device(volumeId, "b")]) })
      yield* act(url, "a", "accept")
      assert.deepInclude(specOf(world), { export_wanted: true, read_only: true })
      declared(world, { export_wanted: false })
      world.inventory = seen(
        { vm_id: appliance },
        {
          nbd: Worlds.nbd({
            sections: [Worlds.section(volumeId)],
            verifications: [Worlds.verification(volumeId, "b", { outcome: "no_answer" })]
          })
        }
      )
      yield* act(url, "a", "accept")
      assert.deepInclude(specOf(world), { export_wanted: false })
    })
  )

  it.scopedLive("leaves open what the declaration leaves open, and writes nothing where nothing differs", () =>
    Effect.gen(function* () {
      const { url, client, world } = yield* start()
      yield* client.put("a", wish)
      declared(world, { attached_to: null, export_wanted: null })
      world.inventory = seen({ vm_id: otherVm })
      const same = yield* act(url, "a", "accept")
      assert.strictEqual(same.status, 200)
      assert.strictEqual(world.declarations[0]?.generation, 1)
      declared(world, { attached_to: appliance, export_wanted: null })
      world.inventory = seen({ vm_id: appliance })
      yield* act(url, "a", "accept")
      assert.strictEqual(world.declarations[0]?.generation, 1, "the appliance by its id is the appliance")
    })
  )

  it.scopedLive("keeps what took effect late by a write of its own, where the wish is no other", () =>
    Effect.gen(function* () {
      const { url, client, world } = yield* start()
      yield* client.put("a", { size: "10Gi" })
      declared(world)
      const late = { operation_id: Worlds.operationId(1), type: "create" }
      world.declarations = world.declarations.map((one) => ({ ...one, binding: { ...one.binding, late } }))
      world.inventory = seen({ vm_id: null })
      assert.strictEqual((yield* act(url, "a", "accept")).body["generation"], 2)
    })
  )

  it.scopedLive("answers 503 while what it would have to know is not known, or not whole", () =>
    Effect.gen(function* () {
      const { url, client, world } = yield* start()
      yield* client.put("a", wish)
      declared(world)
      const here = seen({ vm_id: appliance })
      for (const inventory of [
        { ...here, cloud: unread(1, "transport", "refused") },
        { ...here, cloud: Worlds.cloud({ volumes: [Worlds.cloudVolume(volumeId)] }, false) },
        { ...here, cloud: Worlds.cloud() },
        { ...here, cloud: Worlds.cloud({ ambiguous: [volumeId], volumes: [Worlds.cloudVolume(volumeId)] }) },
        { ...here, nbd: unread(1, "EIO", "the file cannot be read") },
        { ...here, nbd: Worlds.nbd({}, false) }
      ] satisfies ReadonlyArray<Inventory>) {
        world.inventory = inventory
        const unknown = yield* act(url, "a", "accept")
        assert.strictEqual(unknown.status, 503)
        assert.ok(unknown.headers.get("retry-after"))
        assert.strictEqual(specOf(world).attached_to, "appliance")
      }
      world.inventory = { ...here, nbd: known(1, here.nbd._tag === "Known" ? here.nbd.value : assert.fail("unread")) }
      assert.strictEqual((yield* act(url, "a", "accept")).status, 200)
    })
  )

  it.scopedLive("refuses a lost volume, one in motion, one not made yet, and one that is being removed", () =>
    Effect.gen(function* () {
      const { url, client, world } = yield* start()
      yield* client.put("a", wish)
      world.inventory = seen({ vm_id: null })
      const refusal = Effect.gen(function* () {
        const refused = yield* act(url, "a", "accept")
        assert.strictEqual(refused.status, 409)
        const { suggestion } = refused.body["details"] as { suggestion: string }
        return `${String(refused.body["code"])}: ${suggestion}`
      })
      assert.match(yield* refusal, /wait until it is created/)
      declared(world)
      world.inventory = Worlds.inventory({ cloud: Worlds.cloud({ absent: [volumeId] }) })
      assert.match(yield* refusal, /on_loss: recreate.*--policy forget/)
      world.inventory = seen({ state: "Destroy" })
      assert.match(yield* refusal, /recover it there/)
      world.inventory = seen({ job_id: Worlds.jobId(1) })
      assert.match(yield* refusal, /wait until it has ended/)
      world.inventory = seen({ vm_id: otherVm })
      const uid = world.declarations[0]?.uid ?? assert.fail("none")
      world.operations = [Worlds.operation(uid, { phase: "uncertain" })]
      assert.match(yield* refusal, /wait until it has ended/)
      world.operations = []
      yield* client.delete("a")
      assert.match(yield* refusal, /^DELETING/)
      assert.strictEqual(specOf(world).attached_to, "appliance")
      assert.strictEqual((yield* act(url, "nobody", "accept")).status, 404)
    })
  )

  it.scopedLive("honours If-Match, and shows on a dry run what it would write", () =>
    Effect.gen(function* () {
      const { url, client, world } = yield* start()
      yield* client.put("a", wish)
      declared(world)
      world.inventory = seen({ vm_id: null })
      const plan = yield* act(url, "a", "accept?dry_run=true")
      assert.deepStrictEqual(plan.body["changed"], ["a"])
      const stale = yield* act(url, "a", "accept", { headers: { "if-match": '"7"' } })
      assert.strictEqual(stale.status, 412)
      assert.strictEqual(specOf(world).attached_to, "appliance")
      assert.strictEqual((yield* act(url, "a", "accept", { headers: { "if-match": '"1"' } })).status, 200)
    })
  )
})

describe("accepting while somebody else writes", () => {
  it.scopedLive("leaves to them what they wrote after the volume was looked at", () =>
    Effect.gen(function* () {
      const { url, client, world } = yield* start()
      yield* client.put("a", wish)
      declared(world)
      const inventory = seen({ vm_id: otherVm })
      let meanwhile = () => {
        world.declarations = world.declarations.map((one) => ({
          ...one,
          generation: one.generation + 1,
          spec: { ...one.spec, attached_to: null }
        }))
        meanwhile = () => {}
      }
      Object.defineProperty(world, "inventory", {
        get: () => {
          meanwhile()
          return inventory
        }
      })
      const late = yield* act(url, "a", "accept")
      assert.deepStrictEqual([late.status, late.body["code"]], [409, "CONFLICT"])
      assert.isNull(specOf(world).attached_to, "what is not ours to decide stays so")
      assert.strictEqual((yield* act(url, "a", "accept", { headers: { "if-match": '"1"' } })).status, 412)
      assert.strictEqual((yield* act(url, "a", "accept")).status, 200)
      assert.isNull(specOf(world).attached_to)
    })
  )
})

describe("accepting drift on a whole daemon", () => {
  it.scopedLive("ends the drift where it is, and nothing moves", () =>
    Effect.gen(function* () {
      const { daemon, world } = yield* Site.start
      const { client } = yield* daemon
      const until = (condition: string) =>
        Effect.repeat(client.volume("a", { condition, timeoutSeconds: 5 }), {
          until: ({ status }) => status.conditions.some((one) => `${one.type}:${one.status}` === condition)
        })
      yield* client.put("a", { size: "1Gi", attached_to: "appliance", on_drift: "hold" })
      const { status } = yield* until("Ready:True")
      const volume_id = status.volume_id ?? assert.fail("no volume")
      world.act({ act: "detach", volume_id }, Date.now())
      const { items } = yield* Effect.repeat(Effect.delay(client.drift, "50 millis"), {
        until: (drift) => drift.items.length > 0
      })
      assert.deepStrictEqual(
        items.map(({ name, aspect }) => `${name} ${aspect}`),
        ["a attachment"]
      )
      const accepted = yield* client.accept("a")
      assert.strictEqual(accepted.spec.attached_to, "none")
      yield* until("Ready:True")
      assert.deepStrictEqual((yield* client.drift).items, [])
      assert.strictEqual(world.volume(volume_id, Date.now())?.vm_id, null)
      assert.strictEqual(world.truth(Date.now()).calls["attachVolume"], 1)
    })
  )
})

describe("a pause with an end", () => {
  it.scopedLive("says why and until when nothing is done, and then goes on by itself", () =>
    Effect.gen(function* () {
      const { daemon, world } = yield* Site.start
      const { client } = yield* daemon
      const until = new Date(Date.now() + 1_500).toISOString()
      yield* client.put("a", { size: "1Gi", paused: { reason: "not yet", by: "alice", until } })
      const paused = yield* client.volume("a", { condition: "Ready:False", timeoutSeconds: 10 })
      const ready = paused.status.conditions.find(({ type }) => type === "Ready")
      assert.strictEqual(ready?.reason, "Paused")
      assert.match(ready?.message ?? "", /alice until .*: not yet/)
      assert.strictEqual(world.truth(Date.now()).calls["createVolume"] ?? 0, 0)
      yield* Effect.repeat(client.volume("a", { condition: "Ready:True", timeoutSeconds: 5 }), {
        until: ({ status }) => status.conditions.some(({ type, status }) => type === "Ready" && status === "True")
      })
      assert.strictEqual(world.truth(Date.now()).calls["createVolume"], 1)
    })
  )
})

describe("POST /api/v2/volumes/{name}/retry", () => {
  it.scopedLive("ends the back-off without writing, and with or without a body", () =>
    Effect.gen(function* () {
      const { url, client, world } = yield* start()
      yield* client.put("a", wish)
      for (const init of [{}, { json: {} }, { json: { end_clients: false } }]) {
        world.poked = []
        const retried = yield* act(url, "a", "retry", init)
        assert.strictEqual(retried.status, 200)
        assert.strictEqual(retried.body["name"], "a")
        assert.deepStrictEqual(
          world.poked,
          world.declarations.map(({ uid }) => uid)
        )
      }
      assert.strictEqual(world.declarations[0]?.generation, 1)
    })
  )

  it.scopedLive(
    "takes consent to ending clients for the declaration as it is, and writes down whose it was (N10)",
    () =>
      Effect.gen(function* () {
        const { url, client, world } = yield* start()
        yield* client.put("a", wish)
        const [{ uid }] = world.declarations as [Declaration]
        const consent = (init: object = {}, query = "") =>
          act(url, "a", `retry${query}`, { json: { end_clients: true }, ...init })

        const shown = yield* consent({}, "?dry_run=true")
        const [item] = (shown.body["plan"] as { items: ReadonlyArray<{ guard: { _tag: string } | null }> }).items
        assert.strictEqual(item?.guard?._tag, "EndClients", "the dry run shows what the consent would cause")
        assert.deepStrictEqual(world.consented, [])

        const stale = yield* consent({ headers: { "if-match": '"7"' } })
        assert.strictEqual(stale.status, 412)
        const unlessThere = yield* consent({ headers: { "if-none-match": "*" } })
        assert.strictEqual(unlessThere.status, 412)
        assert.deepStrictEqual(world.consented, [])
        world.databaseDown = true
        assert.strictEqual((yield* consent()).status, 503)
        assert.deepStrictEqual(world.consented, [], "nothing is agreed to that could not be written down")
        world.databaseDown = false

        const before = world.events.length
        assert.strictEqual((yield* consent({ headers: { "if-match": '"1"' } })).status, 200)
        assert.deepStrictEqual(
          world.consented.map(({ uid, generation }) => ({ uid, generation })),
          [{ uid, generation: 1 }]
        )
        const [event] = world.events.slice(before)
        assert.deepInclude(event, {
          kind: "clients_consented",
          name: "a",
          uid,
          actor: world.consented[0]?.by ?? "nobody"
        })
        assert.strictEqual(world.declarations[0]?.generation, 1)
      })
  )

  it.scopedLive("shows the plan on a dry run, and refuses other bodies and other names", () =>
    Effect.gen(function* () {
      const { url, client, world } = yield* start()
      yield* client.put("a", wish)
      yield* client.put("b", wish)
      world.poked = []
      const plan = yield* act(url, "a", "retry?dry_run=true")
      assert.deepStrictEqual(plan.body["unchanged"], ["a"])
      assert.strictEqual((plan.body["plan"] as { items: ReadonlyArray<unknown> }).items.length, 1)
      for (const json of [{ end_clients: "yes" }, { end_client: true }, []]) {
        assert.strictEqual((yield* act(url, "a", "retry", { json })).status, 400)
      }
      assert.strictEqual((yield* act(url, "nobody", "retry")).status, 404)
      assert.strictEqual(world.poked.length, 0)
    })
  )
})
