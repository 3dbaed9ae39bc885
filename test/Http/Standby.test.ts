import * as HttpApi from "@effect/platform/HttpApi"
import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import type { Role } from "../../reconciler/Leadership.ts"
import { Api } from "../../schema/Routes.ts"
import { offering, send, start, type Started, zone } from "./support.ts"

const standby: Role = { _tag: "Standby", leader: "oma-2 pid 77" }
const away: Role = { _tag: "Unreachable", detail: "connect ECONNREFUSED db.internal:3306" }

interface Route {
  readonly name: string
  readonly method: string
  readonly path: string
}

const routes: ReadonlyArray<Route> = (() => {
  const found: Array<Route> = []
  HttpApi.reflect(Api, {
    onGroup: () => {},
    onEndpoint: ({ endpoint: { name, method, path } }) =>
      void found.push({ name, method, path: path.replaceAll(/:[a-z]+/g, "x") })
  })
  return found
})()

const isWrite = ({ name, method }: Route) => method !== "GET" && name !== "planCandidate"

const wish = { size: "5GiB", disk_offering_id: offering, zone_id: zone }

const declare = ({ url }: Started, name: string, query = "") =>
  send(`${url}/api/v2/volumes/${name}${query}`, { method: "PUT", json: wish })

describe("a standby", () => {
  it.scopedLive("answers every write of the contract with 503 STANDBY and who leads, before it looks at anything", () =>
    Effect.gen(function* () {
      const { url, world } = yield* start()
      world.role = standby
      assert.isAbove(routes.filter(isWrite).length, 15)
      for (const { method, path } of routes.filter(isWrite)) {
        const { status, body, headers } = yield* send(`${url}${path}`, { method, body: "{" })
        const label = `${method} ${path}: ${status} ${JSON.stringify(body)}`
        assert.strictEqual(status, 503, label)
        assert.strictEqual(body["code"], "STANDBY", label)
        assert.isNotNull(headers.get("retry-after"), label)
        assert.strictEqual((body["details"] as Record<string, unknown>)["leader"], "oma-2 pid 77", label)
      }
      assert.deepStrictEqual(world.events, [])
    })
  )

  it.scopedLive("serves what is declared, and what a write would do; and takes writes once it leads", () =>
    Effect.gen(function* () {
      const server = yield* start()
      const { url, world } = server
      assert.strictEqual((yield* declare(server, "disk")).status, 201)
      world.role = standby
      assert.strictEqual((yield* send(`${url}/api/v2/volumes/disk`)).body["name"], "disk")
      assert.strictEqual((yield* declare(server, "other")).status, 503)
      assert.strictEqual((yield* declare(server, "other", "?dry_run=true")).status, 200)
      assert.strictEqual(world.declarations.length, 1)
      world.role = { _tag: "Leading", term: 8, since: 0 }
      assert.strictEqual((yield* declare(server, "other")).status, 201)
    })
  )

  it.scopedLive("is ready for reads, not healthy for writes, and says in health and metrics what it is", () =>
    Effect.gen(function* () {
      const server = yield* start()
      const { url, world } = server
      const health = Effect.map(send(`${url}/health`), ({ body, status }) => {
        const { role, term, leader } = body["details"] as Record<string, unknown>
        return { status, role, term, leader }
      })
      assert.deepStrictEqual(yield* health, { status: 200, role: "leader", term: "7", leader: "this process" })
      world.role = standby
      assert.deepStrictEqual(yield* health, { status: 503, role: "standby", term: "", leader: "another process" })
      assert.strictEqual((yield* send(`${url}/readyz`)).status, 200)
      assert.strictEqual((yield* send(`${url}/livez`)).status, 200)
      const text = yield* Effect.promise(async () => (await fetch(`${url}/metrics`)).text())
      assert.match(text, /^volumed_leader 0$/mu)
      assert.notMatch(text, /^volumed_leader_term /mu)
      assert.notInclude(
        JSON.stringify((yield* send(`${url}/health`)).body),
        "oma-2",
        "a host's name is not for everybody"
      )
    })
  )
})

describe("a daemon that does not know who leads", () => {
  it.scopedLive("answers writes with 503 DATABASE_UNAVAILABLE, is alive and unhealthy, and tells no address (B1)", () =>
    Effect.gen(function* () {
      const server = yield* start()
      const { url, world } = server
      world.role = away
      world.databaseDown = true
      const refused = yield* declare(server, "disk")
      assert.strictEqual(refused.status, 503)
      assert.strictEqual(refused.body["code"], "DATABASE_UNAVAILABLE")
      assert.isNotNull(refused.headers.get("retry-after"))
      assert.notInclude(JSON.stringify(refused.body), "db.internal")
      const health = yield* send(`${url}/health`)
      assert.strictEqual(health.status, 503)
      assert.strictEqual((health.body["details"] as Record<string, unknown>)["role"], "unknown")
      assert.notInclude(JSON.stringify(health.body), "db.internal")
      assert.strictEqual((yield* send(`${url}/readyz`)).status, 503)
      assert.strictEqual((yield* send(`${url}/livez`)).status, 200)
      world.role = { _tag: "Leading", term: 8, since: 0 }
      world.databaseDown = false
      assert.strictEqual((yield* declare(server, "disk")).status, 201)
    })
  )
})
