import * as HttpApi from "@effect/platform/HttpApi"
import { assert, describe, it } from "@effect/vitest"
import { Effect, Fiber, Stream, TestClock } from "effect"
import { Api } from "../../schema/Routes.ts"
import * as Client from "../../src/Client/Client.ts"
import { ApiError, ServerUnreachable } from "../../src/Client/Failure.ts"
import * as FakeServer from "./FakeServer.ts"

const { json, operation, refusal } = FakeServer

/** Quick enough for a test, as often as by default. */
const retry = { baseMs: 1 }

const everyCall = (client: Client.Client): ReadonlyArray<Effect.Effect<unknown, unknown>> => {
  const document = { volumes: [] }
  const maintenance = { reason: "r", by: "b" }
  return [
    client.health,
    client.live,
    client.ready,
    client.description,
    client.metrics,
    client.volumes(),
    client.unmanaged(),
    client.volume("n"),
    client.put("n", {}),
    client.patch("n", {}),
    client.delete("n"),
    client.undelete("n"),
    client.accept("n"),
    client.retry("n"),
    client.apply(document),
    client.planFor(document),
    client.plan,
    client.approve("d"),
    client.drift,
    client.maintenance,
    client.beginMaintenance(maintenance),
    client.endMaintenance,
    client.offerings,
    client.events(),
    Stream.runDrain(client.watch({ after: 0 })),
    client.operations(),
    client.operation("i"),
    client.cancel("i"),
    client.exports,
    client.export("i"),
    client.forceSync,
    client.v1.volumes(),
    client.v1.volume("i"),
    client.v1.create({ name: "n", size: 1 }),
    client.v1.attach("i", "v"),
    client.v1.attachRoot("i", "v"),
    client.v1.detach("i"),
    client.v1.delete("i"),
    client.v1.device("i"),
    client.v1.devices,
    client.v1.deviceVolume("/dev/vdb"),
    client.v1.vmVolumes("i"),
    client.v1.createExport({ volume_id: "i" }),
    client.v1.deleteExport("i"),
    client.v1.cleanupTestFailover({ test_vm_id: "v", volume_id: "i" }),
    client.v1.health,
    client.v1.metrics
  ]
}

const dryRuns = (client: Client.Client): ReadonlyArray<Effect.Effect<unknown, unknown>> => [
  client.putDryRun("n", {}),
  client.patchDryRun("n", {}),
  client.deleteDryRun("n"),
  client.undeleteDryRun("n"),
  client.acceptDryRun("n"),
  client.retryDryRun("n"),
  client.applyDryRun({}),
  client.approveDryRun("d"),
  client.beginMaintenanceDryRun({ reason: "r", by: "b" }),
  client.endMaintenanceDryRun
]

describe("the client", () => {
  it.scopedLive("has a function for every endpoint of the contract but the page for people", () =>
    Effect.gen(function* () {
      const { url, asked } = yield* FakeServer.start((response) => json(response, 404, refusal("NOT_FOUND")))
      const client = Client.make({ server: url, retry })
      yield* Effect.forEach(everyCall(client), Effect.flip)
      const expected: Array<string> = []
      HttpApi.reflect(Api, {
        onGroup: () => {},
        onEndpoint: ({ endpoint }) => {
          if (endpoint.path === "/docs") return
          const pattern = new RegExp(`^${endpoint.path.replaceAll(/:[a-z]+/g, "[^/]+")}$`)
          const found = asked.some(
            ({ method, url }) => method === endpoint.method && pattern.test(url.replace(/\?.*/, ""))
          )
          if (!found) expected.push(`${endpoint.method} ${endpoint.path}`)
        }
      })
      assert.deepStrictEqual(expected, [])
    })
  )

  it.scopedLive("makes every write under a key of its own, and no read or dry run under one", () =>
    Effect.gen(function* () {
      const { url, asked } = yield* FakeServer.start((response) => json(response, 404, refusal("NOT_FOUND")))
      const client = Client.make({ server: url, retry })
      yield* Effect.forEach([...everyCall(client), ...dryRuns(client)], Effect.flip)
      const keys: Array<unknown> = []
      for (const { method, url, headers } of asked) {
        const reads = method === "GET" || url.includes("dry_run=true") || url === "/api/v2/plan"
        assert.strictEqual(headers["idempotency-key"] === undefined, reads, `${method} ${url}`)
        if (!reads) keys.push(headers["idempotency-key"])
      }
      assert.isAbove(keys.length, 15)
      assert.strictEqual(new Set(keys).size, keys.length)
    })
  )

  it.scopedLive("says who asks and with which token, and what is written on which condition", () =>
    Effect.gen(function* () {
      const { url, asked } = yield* FakeServer.start((response) => json(response, 412, refusal("PRECONDITION_FAILED")))
      const client = Client.make({ server: `${url}/`, actor: "ann", token: "secret", retry })
      yield* Effect.flip(client.put("a b", { size: "1GiB" }, { ifMatch: 3, idempotencyKey: "mine" }))
      const [one] = asked
      assert.strictEqual(one?.url, "/api/v2/volumes/a%20b")
      assert.strictEqual(one?.body, '{"size":"1GiB"}')
      const { authorization, "volumed-actor": actor, "if-match": match, "idempotency-key": key } = one?.headers ?? {}
      assert.deepStrictEqual(
        { authorization, actor, match, key },
        {
          authorization: "Bearer secret",
          actor: "ann",
          match: '"3"',
          key: "mine"
        }
      )
    })
  )

  it.scopedLive("never repeats a token in an error (X7)", () =>
    Effect.gen(function* () {
      const { url, asked } = yield* FakeServer.start((response) => json(response, 401, refusal("UNAUTHORIZED")))
      for (const token of ["canary", "canary\nof a file"]) {
        const error = yield* Effect.flip(Client.make({ server: url, token, retry }).plan)
        assert.notInclude(`${error.message} ${JSON.stringify(error)} ${String(error.stack)}`, "canary")
      }
      assert.strictEqual(asked.length, 1)
    })
  )

  it.scopedLive("asks again, under the same key, what was not answered or answered with not now", () =>
    Effect.gen(function* () {
      const { url, asked } = yield* FakeServer.start((response, number) => {
        if (number === 1) return void response.destroy()
        if (number === 2) return json(response, 503, refusal("DATABASE_UNAVAILABLE"), { "retry-after": "0" })
        if (number === 3) return void response.writeHead(502).end("<html>bad gateway</html>")
        json(response, 201, operation())
      })
      const found = yield* Client.make({ server: url, retry }).v1.detach("i")
      assert.strictEqual(found.status, "pending")
      assert.strictEqual(asked.length, 4)
      assert.strictEqual(new Set(asked.map(({ headers }) => headers["idempotency-key"])).size, 1)
    })
  )

  it.scopedLive("waits for the answer to an earlier try that the server still works on", () =>
    Effect.gen(function* () {
      const { url, asked } = yield* FakeServer.start((response, number) =>
        number === 1
          ? json(response, 409, refusal("CONFLICT"), { "retry-after": "0" })
          : json(response, 201, operation())
      )
      yield* Client.make({ server: url, retry }).v1.detach("i")
      assert.strictEqual(asked.length, 2)
    })
  )

  it.scopedLive("ends after its tries with the last answer", () =>
    Effect.gen(function* () {
      const { url, asked } = yield* FakeServer.start((response) => json(response, 503, refusal("STANDBY", "not me")))
      const error = yield* Effect.flip(Client.make({ server: url, retry }).plan)
      assert.instanceOf(error, ApiError)
      assert.strictEqual(error.message, "not me")
      assert.strictEqual(asked.length, 4)
      yield* Effect.flip(Client.make({ server: url, retry: { ...retry, tries: 2 } }).plan)
      assert.strictEqual(asked.length, 6)
    })
  )

  it.scopedLive("takes a no for a no", () =>
    Effect.gen(function* () {
      const answers = [
        [404, "NOT_FOUND"],
        [409, "CONFLICT"],
        [422, "CLOUDSTACK_INVALID_PARAMETER"],
        [429, "DELETION_BUDGET"],
        [500, "UNKNOWN_ERROR"],
        [501, "NOT_SUPPORTED"],
        [503, "MAINTENANCE"]
      ] as const
      for (const [status, code] of answers) {
        const { url, asked } = yield* FakeServer.start((response) => json(response, status, refusal(code)))
        const error = yield* Effect.flip(Client.make({ server: url, retry }).v1.delete("i"))
        assert.instanceOf(error, ApiError)
        assert.deepStrictEqual([error.status, error.code, asked.length], [status, code, 1])
      }
    })
  )

  it.scopedLive("gives up at once where it is told to come back later than it may wait", () =>
    Effect.gen(function* () {
      const late = { "retry-after": "31" }
      const { url, asked } = yield* FakeServer.start((response) => json(response, 429, refusal("RATE_LIMITED"), late))
      yield* Effect.flip(Client.make({ server: url, retry }).plan)
      assert.strictEqual(asked.length, 1)
    })
  )

  it.scoped("comes back no sooner than it is told", () =>
    Effect.gen(function* () {
      const { url, asked } = yield* FakeServer.start((response) =>
        json(response, 503, refusal("OVERLOADED"), { "retry-after": "5" })
      )
      const calling = yield* Effect.fork(Effect.flip(Client.make({ server: url, retry }).plan))
      /** What was asked until now has arrived: a request of our own comes after it. */
      const arrived = Effect.promise(() => fetch(url).then((response) => response.text()))
      const plans = () => asked.filter((one) => one.url === "/api/v2/plan").length
      const until = (count: number): Effect.Effect<void> =>
        Effect.suspend(() => (plans() >= count ? Effect.void : Effect.andThen(arrived, until(count))))
      yield* until(1)
      yield* Effect.andThen(arrived, arrived)
      yield* TestClock.adjust("4900 millis")
      yield* Effect.andThen(arrived, arrived)
      assert.strictEqual(plans(), 1)
      yield* TestClock.adjust("1 second")
      yield* until(2)
      yield* Fiber.interrupt(calling)
    })
  )

  it.scopedLive("tells an answer of another shape from a server that is away, and asks for it once", () =>
    Effect.gen(function* () {
      const { url, asked } = yield* FakeServer.start((response) => json(response, 200, { hello: "world" }))
      const error = yield* Effect.flip(Client.make({ server: url, retry }).plan)
      assert.instanceOf(error, ServerUnreachable)
      assert.isFalse(error.transient)
      assert.strictEqual(asked.length, 1)
      const away = yield* Effect.flip(Client.make({ server: "http://127.0.0.1:1", retry }).plan)
      assert.instanceOf(away, ServerUnreachable)
      assert.isTrue(away.transient)
      const nonsense = yield* Effect.flip(Client.make({ server: "no url", retry }).plan)
      assert.instanceOf(nonsense, ServerUnreachable)
      assert.isFalse(nonsense.transient)
    })
  )

  it.scopedLive("gives every problem of a refused input, and codes of a newer server too", () =>
    Effect.gen(function* () {
      const problem = { index: 0, name: "a", field: "size", problem: "expected a size" }
      const body = { ...refusal("INVALID_REQUEST"), code: "NEW_CODE", details: { errors: [problem], suggestion: "do" } }
      const { url } = yield* FakeServer.start((response) => json(response, 400, body))
      const error = yield* Effect.flip(Client.make({ server: url, retry }).apply({}))
      assert.instanceOf(error, ApiError)
      assert.deepStrictEqual([error.code, error.suggestion, error.problems], ["NEW_CODE", "do", [problem]])
    })
  )

  it.scopedLive("takes an unhealthy server's answer for an answer", () =>
    Effect.gen(function* () {
      const health = {
        status: "unhealthy",
        timestamp: "2026-03-01T12:00:00Z",
        cloudstack_health: "away",
        database_health: "healthy",
        device_monitor: "healthy",
        nbd_health: "healthy",
        details: {}
      }
      const { url, asked } = yield* FakeServer.start((response) => json(response, 503, health))
      assert.strictEqual((yield* Client.make({ server: url, retry }).health).status, "unhealthy")
      assert.strictEqual(asked.length, 1)
    })
  )

  it.scopedLive("gives a list and the cursor of its next page", () =>
    Effect.gen(function* () {
      const { url, asked } = yield* FakeServer.start((response, number) =>
        json(response, 200, [operation()], number === 1 ? { "next-cursor": "c2" } : {})
      )
      const client = Client.make({ server: url, retry })
      const first = yield* client.operations({ limit: 1, type: "attach" })
      assert.deepStrictEqual([first.items.length, first.next], [1, "c2"])
      assert.strictEqual((yield* client.operations({ limit: 1, cursor: "c2" })).next, null)
      assert.deepStrictEqual(
        asked.map((one) => one.url),
        ["/api/v1/operations?limit=1&type=attach", "/api/v1/operations?limit=1&cursor=c2"]
      )
    })
  )
})
