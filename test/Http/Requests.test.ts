import * as Net from "node:net"
import * as HttpApi from "@effect/platform/HttpApi"
import { assert, describe, it } from "@effect/vitest"
import { Effect, Exit, Fiber, Scope } from "effect"
import { Api } from "../../schema/Api.ts"
import { latch, send, start } from "./support.ts"

/** Whatever was refused, the body has the contract's form, and nothing else. */
const assertErrorBody = (body: Record<string, unknown>, code: string) => {
  assert.sameMembers(Object.keys(body), ["error", "code", "details", "request_id"])
  assert.strictEqual(body["code"], code)
  assert.match(String(body["request_id"]), /^req-[0-9a-f-]{36}$/)
  assert.strictEqual(typeof body["details"], "object")
  assert.ok(String(body["error"]).length > 0)
}

const json = { "content-type": "application/json" }

/** What a raw socket is answered, until the server ends the connection. */
const speak = (port: number, ...parts: ReadonlyArray<string>): Effect.Effect<string> =>
  Effect.async<string>((resume) => {
    const socket = Net.connect(port, "127.0.0.1")
    let answer = ""
    socket.setEncoding("utf8")
    socket.on("data", (text: string) => (answer += text))
    socket.on("error", () => {})
    socket.on("close", () => resume(Effect.succeed(answer)))
    for (const part of parts) socket.write(part)
    return Effect.sync(() => socket.destroy())
  })

const bodyOf = (answer: string) => JSON.parse(answer.slice(answer.indexOf("\r\n\r\n"))) as Record<string, unknown>

describe("requests that are refused", () => {
  it.scopedLive("answers unknown paths with 404 and wrong methods with 405 and what is allowed", () =>
    Effect.gen(function* () {
      const { url } = yield* start()
      for (const path of ["/", "/api/v2", "/api/v3/volumes", "/api/v2/volumes/a/b", "/health;x", "/health%23"]) {
        const missing = yield* send(`${url}${path}`)
        assert.strictEqual(missing.status, 404, path)
        assertErrorBody(missing.body, "NOT_FOUND")
      }
      const wrong = yield* send(`${url}/api/v2/volumes/a`, { method: "POST", json: {} })
      assert.strictEqual(wrong.status, 405)
      assertErrorBody(wrong.body, "METHOD_NOT_ALLOWED")
      assert.strictEqual(wrong.headers.get("allow"), "GET, PUT, PATCH, DELETE")
      assert.strictEqual((yield* send(`${url}/health`, { method: "HEAD" })).status, 200)
      assert.strictEqual((yield* send(`${url}/health`, { method: "OPTIONS" })).status, 405)
    })
  )

  it.scopedLive("routes every endpoint of the contract", () =>
    Effect.gen(function* () {
      const { url } = yield* start()
      const endpoints: Array<{ method: string; path: string }> = []
      HttpApi.reflect(Api, {
        onGroup: () => {},
        onEndpoint: ({ endpoint: { method, path } }) => void endpoints.push({ method, path })
      })
      assert.strictEqual(endpoints.length, 15)
      for (const { method, path } of endpoints) {
        const filled = path.replace(":name", "a").replace(":id", "op-x")
        const answer = yield* send(`${url}${filled}`, { method })
        assert.notStrictEqual(answer.status, 405, `${method} ${path}`)
        assert.notInclude(String(answer.body["error"]), "no such path", `${method} ${path}`)
      }
    })
  )

  it.scopedLive("refuses media types and encodings that no client of ours sends", () =>
    Effect.gen(function* () {
      const { url } = yield* start()
      const types: ReadonlyArray<Record<string, string>> = [
        { "content-type": "text/plain" },
        { "content-type": "application/x-www-form-urlencoded" },
        { "content-type": "application/json; charset=utf-16" },
        { "content-type": "application/merge-patch+json" },
        { ...json, "content-encoding": "gzip" }
      ]
      for (const headers of types) {
        const refused = yield* send(`${url}/api/v2/volumes/a`, { method: "PUT", body: "{}", headers })
        assert.strictEqual(refused.status, 415)
        assertErrorBody(refused.body, "UNSUPPORTED_MEDIA_TYPE")
      }
      const withCharset = { "content-type": 'Application/JSON; charset="UTF-8"' }
      const accepted = yield* send(`${url}/api/v2/volumes/a`, {
        method: "PUT",
        body: '{"size":"1Gi"}',
        headers: withCharset
      })
      assert.strictEqual(accepted.status, 201)
    })
  )

  it.scopedLive("refuses bodies that are no honest JSON, with the place (X4)", () =>
    Effect.gen(function* () {
      const { url, world } = yield* start()
      const bodies: ReadonlyArray<readonly [body: string | Uint8Array, problem: RegExp]> = [
        ["", /line 1, column 1: expected a value/],
        ['{"size": "1Gi"', /, or }/],
        ['{"size": 1e400}', /64 bits/],
        ['{"size": "1Gi", "size": "2Gi"}', /every key once, found "size" again/],
        ['{"__proto__": {"size": "1Gi"}}', /__proto__/],
        ['{"metadata": {"__proto__": "x"}}', /__proto__/],
        ['{"constructor": {"prototype": {}}}', /unknown key "constructor"/],
        ['{"cloudstack_name": "\\ud800"}', /surrogate/],
        ["[".repeat(100_000), /32 levels/],
        [`{"size":${"[".repeat(31)}${"]".repeat(31)}}`, /expected a size/],
        ["[]", /expected an object, found \[\]/],
        ["null", /expected an object, found null/],
        [new Uint8Array([0x7b, 0xff, 0x7d]), /UTF-8/],
        ["{'size': 1}", /key in quotes/]
      ]
      for (const [body, problem] of bodies) {
        const refused = yield* send(`${url}/api/v2/volumes/a`, { method: "PUT", body, headers: json })
        assert.strictEqual(refused.status, 400, String(problem))
        assertErrorBody(refused.body, "INVALID_REQUEST")
        assert.match(String(refused.body["error"]), problem)
        assert.match(String(refused.body["error"]), /CloudStack API error 431/)
      }
      assert.strictEqual(world.declarations.length, 0)
      assert.notProperty({}, "size")
    })
  )

  it.scopedLive("ends a body at its limit, announced or not, and holds no more of it (X4)", () =>
    Effect.gen(function* () {
      const { url, world } = yield* start()
      const announced = yield* send(`${url}/api/v2/volumes/a`, {
        method: "PUT",
        body: `{"size":"1Gi"}${" ".repeat(256 * 1024)}`,
        headers: json
      })
      assert.strictEqual(announced.status, 413)
      assertErrorBody(announced.body, "TOO_LARGE")
      const before = process.memoryUsage().rss
      const block = new TextEncoder().encode(" ".repeat(64 * 1024))
      let blocks = 0
      const endless = new ReadableStream({
        pull: (controller) => (++blocks > 2048 ? controller.close() : controller.enqueue(block))
      })
      const streamed = yield* send(`${url}/api/v2/apply`, {
        method: "POST",
        body: endless,
        headers: json,
        duplex: "half"
      } as RequestInit)
      assert.strictEqual(streamed.status, 413)
      assertErrorBody(streamed.body, "TOO_LARGE")
      assert.isBelow(process.memoryUsage().rss - before, 96 * 1024 * 1024, "of 128 MiB sent")
      assert.strictEqual(world.declarations.length, 0)
    })
  )

  it.scopedLive("takes a document of thousands of declarations in one piece", () =>
    Effect.gen(function* () {
      const { client } = yield* start()
      const volumes = Array.from({ length: 5000 }, (_, index) => ({ name: `v-${index}`, size: "1Gi" }))
      const applied = yield* client.apply({ set: "s", volumes })
      assert.strictEqual(applied.created.length, 5000)
    })
  )

  it.scopedLive("tells nothing of what broke inside, and goes on (P5, X7)", () =>
    Effect.gen(function* () {
      const { url, world } = yield* start()
      world.inWrite = Effect.die(new Error("the password is hunter2"))
      const broken = yield* send(`${url}/api/v2/volumes/a`, { method: "PUT", json: { size: "1Gi" } })
      assert.strictEqual(broken.status, 500)
      assertErrorBody(broken.body, "UNKNOWN_ERROR")
      assert.notInclude(JSON.stringify(broken.body), "hunter2")
      world.inWrite = Effect.void
      assert.strictEqual((yield* send(`${url}/api/v2/volumes/a`, { method: "PUT", json: { size: "1Gi" } })).status, 201)
    })
  )

  it.scopedLive("answers 503 with Retry-After on every route that needs the database while it is down (B1)", () =>
    Effect.gen(function* () {
      const { url, world } = yield* start()
      world.databaseDown = true
      const requests: ReadonlyArray<readonly [string, string, unknown?]> = [
        ["GET", "/api/v2/volumes"],
        ["GET", "/api/v2/volumes/a"],
        ["PUT", "/api/v2/volumes/a", { size: "1Gi" }],
        ["PATCH", "/api/v2/volumes/a", {}],
        ["DELETE", "/api/v2/volumes/a"],
        ["POST", "/api/v2/volumes/a/undelete"],
        ["POST", "/api/v2/apply", { volumes: [] }],
        ["GET", "/api/v2/plan"],
        ["POST", "/api/v2/plan", { volumes: [] }],
        ["POST", "/api/v2/plan/approve", { digest: "x" }],
        ["GET", "/api/v2/drift"],
        ["GET", "/api/v1/operations"],
        ["GET", "/api/v1/operations/op-12345678-1234-1234-1234-123456789012"],
        ["GET", "/api/v1/exports"]
      ]
      for (const [method, path, body] of requests) {
        const away = yield* send(`${url}${path}`, { method, ...(body === undefined ? {} : { json: body }) })
        assert.strictEqual(away.status, 503, `${method} ${path}`)
        assertErrorBody(away.body, "DATABASE_UNAVAILABLE")
        assert.ok(away.headers.get("retry-after"))
        assert.notInclude(JSON.stringify(away.body), "/srv/db")
      }
    })
  )

  it.scopedLive("keeps the words that version 1 clients retry out of final refusals", () =>
    Effect.gen(function* () {
      const { url } = yield* start()
      const missing = yield* send(`${url}/api/v2/volumes/my-device-timeout`)
      assert.strictEqual(missing.status, 404)
      assert.notMatch(String(missing.body["error"]), /timeout|device/)
    })
  )

  it.scopedLive("answers in the same form what is no HTTP request or beyond the limits (X5)", () =>
    Effect.gen(function* () {
      const { addresses } = yield* start()
      const port = addresses[0]?.port ?? 0
      const garbage = yield* speak(port, "NONSENSE\r\n\r\n")
      assert.match(garbage, /^HTTP\/1\.1 400 /)
      assertErrorBody(bodyOf(garbage), "INVALID_REQUEST")
      const bomb = yield* speak(port, `GET / HTTP/1.1\r\nHost: a\r\nX: ${"x".repeat(32 * 1024)}\r\n\r\n`)
      assert.match(bomb, /^HTTP\/1\.1 431 /)
      assertErrorBody(bodyOf(bomb), "HEADERS_TOO_LARGE")
      const smuggled = yield* speak(
        port,
        "PUT /api/v2/volumes/a HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
      )
      assert.match(smuggled, /^HTTP\/1\.1 400 /)
      const expecting = yield* speak(port, "GET /health HTTP/1.1\r\nHost: a\r\nExpect: a-miracle\r\n\r\n")
      assert.match(expecting, /^HTTP\/1\.1 417 /)
      assertErrorBody(bodyOf(expecting), "EXPECTATION_FAILED")
    })
  )

  it.scopedLive("turns away more requests than it works on at once (S22)", () =>
    Effect.gen(function* () {
      const { url, world } = yield* start()
      const gate = yield* latch
      world.inWrite = gate.wait
      const requests = yield* Effect.forEach(
        Array.from({ length: 300 }, (_, index) => index),
        (index) => Effect.fork(send(`${url}/api/v2/volumes/v-${index}`, { method: "PUT", json: { size: "1Gi" } })),
        { concurrency: "unbounded" }
      )
      yield* Effect.repeat(Effect.sleep(20), {
        until: () =>
          Effect.map(Effect.forEach(requests, Fiber.poll), (polled) => polled.some(({ _tag }) => _tag === "Some"))
      })
      yield* gate.open
      const answers = yield* Fiber.join(Fiber.all(requests))
      const turnedAway = answers.filter(({ status }) => status === 503)
      assert.isAtLeast(turnedAway.length, 1)
      for (const { body, headers } of turnedAway) {
        assertErrorBody(body, "OVERLOADED")
        assert.ok(headers.get("retry-after"))
      }
      assert.isTrue(answers.every(({ status }) => status === 503 || status === 201))
      assert.strictEqual(world.declarations.length, answers.length - turnedAway.length)
    })
  )
})

describe("listening", () => {
  it.scopedLive("listens on several addresses and skips those the machine lacks", () =>
    Effect.gen(function* () {
      const { addresses } = yield* start({
        listen: [
          { host: "127.0.0.1", port: 0 },
          { host: "127.0.0.2", port: 0 },
          { host: "127.0.0.1", port: 0 }
        ]
      })
      assert.strictEqual(addresses.length, 3)
      for (const { url } of addresses) assert.strictEqual((yield* send(`${url}/health`)).status, 200)
    })
  )

  it.scopedLive("refuses to be reached by others, and a port that is taken", () =>
    Effect.gen(function* () {
      for (const host of ["0.0.0.0", "::", "192.0.2.1"]) {
        const refused = yield* Effect.flip(start({ listen: [{ host, port: 0 }] }))
        assert.match(refused.message, /LISTEN[\s\S]*example/)
      }
      const { addresses } = yield* start()
      const taken = yield* Effect.flip(start({ listen: [{ host: "127.0.0.1", port: addresses[0]?.port ?? 0 }] }))
      assert.match(taken.message, /EADDRINUSE/)
    })
  )

  it.live("ends held-back answers and idle connections when it stops (P3)", () =>
    Effect.gen(function* () {
      const scope = yield* Scope.make()
      const { client, url } = yield* Scope.extend(start(), scope)
      yield* client.put("a", { size: "1Gi" })
      const waiting = yield* Effect.fork(client.volume("a", { condition: "Ready:True", timeoutSeconds: 200 }))
      const idle = Net.connect(Number(new URL(url).port), "127.0.0.1")
      yield* Effect.sleep(50)
      yield* Scope.close(scope, Exit.void)
      assert.strictEqual((yield* Fiber.join(waiting)).name, "a")
      idle.destroy()
      assert.strictEqual((yield* Effect.flip(client.volume("a")))._tag, "ServerUnreachable")
    })
  )
})
