import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import * as Instruments from "../../reconciler/Metrics.ts"
import { known, unread } from "../../schema/Inventory.ts"
import { emptyInventory, GIB, offering, send, start, type Started, zone } from "./support.ts"

/** What a version 1 write would be answered now. */
const write = ({ url }: Started, name: string) =>
  send(`${url}/api/v1/volumes`, {
    method: "POST",
    json: { name, size: GIB, disk_offering_id: offering, zone_id: zone }
  })

const health = ({ url }: Started, path = "/health") => send(`${url}${path}`)

const maintenance = { reason: "array work", by: "ann", since: "2026-03-01T12:00:00Z", until: null, ending: false }

const nbd = (change: object) =>
  emptyInventory.nbd._tag === "Known"
    ? { ...emptyInventory, nbd: known(1_000, { ...emptyInventory.nbd.value, ...change }) }
    : emptyInventory

describe("GET /health", () => {
  it.scopedLive("is 200 exactly when a version 1 write would be accepted, and else 503 with Retry-After", () =>
    Effect.gen(function* () {
      const server = yield* start()
      const { world } = server
      let written = 0
      const agrees = Effect.gen(function* () {
        const { status, headers, body } = yield* health(server)
        const answered = yield* write(server, `probe-${(written += 1)}`)
        assert.strictEqual(status, answered.status === 201 ? 200 : 503, JSON.stringify(answered.body))
        assert.strictEqual(headers.get("retry-after") !== null, status === 503)
        assert.strictEqual((yield* health(server, "/api/v1/health")).status, status)
        return `${status} ${String(body["status"])}`
      })
      world.cloudDown = true
      assert.strictEqual(yield* agrees, "503 unhealthy")
      world.cloudDown = false
      assert.strictEqual(yield* agrees, "200 healthy")
      world.cloudDown = true
      assert.strictEqual(yield* agrees, "200 healthy", "offering and zone are known for a day")
      world.maintenance = maintenance
      assert.strictEqual(yield* agrees, "503 degraded")
      world.maintenance = null
      world.databaseDown = true
      assert.strictEqual(yield* agrees, "503 unhealthy")
    })
  )

  it.scopedLive("has the old daemon's fields, nbd_health, and details that are texts", () =>
    Effect.gen(function* () {
      const { body } = yield* health(yield* start())
      const { timestamp, details, ...rest } = body
      assert.deepStrictEqual(rest, {
        status: "healthy",
        cloudstack_health: "healthy",
        database_health: "healthy",
        device_monitor: "healthy",
        nbd_health: "healthy"
      })
      assert.match(String(timestamp), /^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(?:\.\d+)?Z$/)
      const texts = Object.entries(details as Record<string, unknown>)
      assert.isAbove(texts.length, 0)
      for (const [key, text] of texts) assert.strictEqual(typeof text, "string", key)
    })
  )

  it.scopedLive("shows what is weak, insecure or out of date about how it is set up (e4, B4)", () =>
    Effect.gen(function* () {
      const server = yield* start({ insecure: ["CloudStack may be asked by plain http", "nobody is verified"] })
      const details = Effect.map(health(server), ({ body }) => body["details"] as Record<string, string>)
      const { insecure, durability, cloudstack_settings } = yield* details
      assert.strictEqual(insecure, "CloudStack may be asked by plain http; nobody is verified")
      assert.deepStrictEqual([durability, cloudstack_settings], ["", ""])
      const { world } = server
      world.weak = ["sync_binlog is 0 while log_bin is on: set it to 1"]
      assert.strictEqual((yield* details)["durability"], world.weak[0])
      assert.strictEqual((yield* health(server)).body["database_health"], "degraded")
      if (world.place !== null) world.place = { ...world.place, problem: 'the active row "canary" cannot be used' }
      assert.match((yield* details)["cloudstack_settings"] ?? "", /what was known last is kept/)
      world.place = null
      assert.match((yield* details)["cloudstack_settings"] ?? "", /cannot be read yet/)
      assert.notInclude(JSON.stringify(yield* details), "canary")
    })
  )

  it.scopedLive("is not good while the database answers and takes no write (B3)", () =>
    Effect.gen(function* () {
      const server = yield* start()
      assert.strictEqual((yield* health(server)).status, 200)
      server.world.writable = false
      const { body, status } = yield* health(server)
      assert.strictEqual(status, 503)
      assert.include((body["details"] as Record<string, string>)["database"], "read-only: writes are refused")
    })
  )

  it.scopedLive("says what is wrong, but gives nobody addresses, paths, ids or secrets (S20, X7)", () =>
    Effect.gen(function* () {
      const server = yield* start()
      const { world } = server
      world.cloudDown = true
      world.databaseDown = true
      world.hold = "see https://wiki.internal/disk c6ef61d1-300f-442a-86e5-000000000001"
      world.maintenance = { ...maintenance, reason: "10.0.0.7 moves to /dev/vdb" }
      world.inventory = {
        ...emptyInventory,
        cloud: unread(1, "transport", "listVolumes: connect ECONNREFUSED 10.0.0.7:8080"),
        guest: unread(1, "GuestUnavailable", "EACCES /sys/block"),
        nbd: unread(1, "NbdUnavailable", "/etc/nbd-server/config-base cannot be read")
      }
      const { body } = yield* health(server)
      const text = JSON.stringify(body)
      assert.notMatch(text, /\/(?:dev|etc|sys|srv)\/|:\/\/|[0-9a-f]{8}-[0-9a-f]{4}|\b\d+\.\d+\.\d+\.\d+\b|sEcReT/)
      assert.strictEqual(body["cloudstack_health"], "unread (transport)")
      assert.strictEqual(body["device_monitor"], "unread (GuestUnavailable)")
      assert.strictEqual(body["nbd_health"], "unread (NbdUnavailable)")
      assert.strictEqual(body["database_health"], "unavailable")
      assert.include((body["details"] as Record<string, string>)["hold"] ?? "", "hold file")
      world.databaseDown = false
      const details = (yield* health(server)).body["details"] as Record<string, string>
      assert.include(details["maintenance"] ?? "", "version 1 writes are refused")
    })
  )

  it.scopedLive("calls a dry run one, and no hold file", () =>
    Effect.gen(function* () {
      const server = yield* start({ dry_run: true })
      server.world.hold = "this is a dry run"
      const { body, status } = yield* health(server)
      assert.strictEqual(`${status} ${String(body["status"])}`, "200 degraded")
      assert.strictEqual((body["details"] as Record<string, string>)["hold"], "a dry run: nothing is changed")
    })
  )

  it.scopedLive("is degraded by a hold, or a source that is not whole, and takes writes nevertheless", () =>
    Effect.gen(function* () {
      const server = yield* start()
      const { world } = server
      const shown = Effect.map(health(server), ({ status, body }) => `${status} ${String(body["status"])}`)
      world.hold = "wait"
      assert.strictEqual(yield* shown, "200 degraded")
      world.hold = null
      assert.strictEqual(yield* shown, "200 healthy")
      world.inventory = { ...emptyInventory, guest: unread(1, "GuestUnavailable", "no sysfs") }
      assert.strictEqual(yield* shown, "200 degraded")
      world.inventory = null
      assert.strictEqual(yield* shown, "200 degraded")
      assert.strictEqual((yield* health(server)).body["nbd_health"], "not read yet")
    })
  )

  it.scopedLive("does not miss an NBD server where there is nothing to serve (N16)", () =>
    Effect.gen(function* () {
      const server = yield* start()
      const { world } = server
      const shown = Effect.map(health(server), ({ body }) => body["nbd_health"])
      const server_ = { state: "absent", pid: null, problem: "nothing listens on 127.0.0.1:10809" }
      world.inventory = nbd({ server: server_ })
      assert.strictEqual(yield* shown, "healthy")
      world.inventory = nbd({ server: server_, sections: [{ name: "a", path: null, read_only: false }] })
      assert.strictEqual(yield* shown, "absent")
      world.inventory = nbd({ config_problem: "/etc/nbd-server/config-base is owned by somebody else" })
      assert.strictEqual(yield* shown, "the configuration cannot be used")
    })
  )
})

describe("GET /livez", () => {
  it.scopedLive("is 200 while passes begin, whatever else is down, and 503 when the heart has stopped (L5)", () =>
    Effect.gen(function* () {
      const beating = yield* start({ resync_idle_ms: 60_000 })
      beating.world.databaseDown = true
      beating.world.cloudDown = true
      beating.world.inventory = null
      yield* Effect.exit(Instruments.passing("full")(Effect.fail("the database is away")))
      const alive = yield* health(beating, "/livez")
      assert.strictEqual(alive.status, 200)
      assert.strictEqual(alive.body["status"], "ok")
      // The same last beat, for a daemon whose passes should have come much closer together.
      const stopped = yield* start({ resync_idle_ms: 1 })
      yield* Effect.sleep("20 millis")
      const dead = yield* health(stopped, "/livez")
      assert.strictEqual(dead.status, 503)
      assert.strictEqual(dead.body["status"], "unavailable")
      assert.isNotNull(dead.headers.get("retry-after"))
    })
  )
})

describe("GET /readyz", () => {
  it.scopedLive("is 200 when the database answers and the world was looked at once", () =>
    Effect.gen(function* () {
      const server = yield* start()
      const { world } = server
      const status = Effect.map(health(server, "/readyz"), (answer) => answer.status)
      assert.strictEqual(yield* status, 200)
      world.inventory = null
      assert.strictEqual(yield* status, 503)
      world.inventory = emptyInventory
      world.databaseDown = true
      assert.strictEqual(yield* status, 503)
      world.databaseDown = false
      assert.strictEqual(yield* status, 200)
    })
  )
})
