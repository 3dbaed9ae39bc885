import * as Net from "node:net"
import * as HttpApi from "@effect/platform/HttpApi"
import { assert, describe, it } from "@effect/vitest"
import { Effect, Exit, Fiber, Scope } from "effect"
import { Api } from "../../schema/Routes.ts"
import { type Code, statuses } from "../../schema/Api.ts"
import { Refused } from "../../schema/Document.ts"
import {
  CloudStackUnavailable,
  CursorExpired,
  GenerationConflict,
  PreconditionLost,
  StoreUnavailable
} from "../../schema/Errors.ts"
import * as ErrorAnswer from "../../src/Http/ErrorAnswer.ts"
import { bodyReaders } from "../../src/Http/Request.ts"
import * as Logging from "../../src/Logging.ts"
import { send, start } from "./support.ts"
import { assertErrorBody } from "./Wire.ts"

const json = { "content-type": "application/json" }

/** The beginning of an answer: some go on for ever. */
const begun = (url: string, method: string) =>
  Effect.promise(async () => {
    const abort = new AbortController()
    const response = await fetch(url, { method, signal: abort.signal })
    const first = await response.body?.getReader().read()
    abort.abort()
    return { status: response.status, text: new TextDecoder().decode(first?.value) }
  })

/** Neighbours of routes: a path has one spelling, the one that access was judged by. */
const unknown: ReadonlyArray<string> = [
  "/",
  "//health",
  "/health/",
  "/Health",
  "/heal%74h",
  "/health;x",
  "/health%23",
  "/health%3Fx",
  "/api/v2",
  "/api/v2/",
  "/api/v3/volumes",
  "/api/v2/volumes/",
  "/api/v2/volumes/a/b",
  "/api/v2/volumes/a/",
  "/api/v2//volumes/a",
  "/api/v2/volumes/%",
  "/api/v2/volumes/%ff",
  "/api/v2/volumes/..%2f..%2fhealth",
  `/${"a/".repeat(2_000)}`
]

describe("requests that are refused", () => {
  it.scopedLive("answers unknown paths with 404 and wrong methods with 405 and what is allowed", () =>
    Effect.gen(function* () {
      const { url } = yield* start()
      for (const path of unknown) {
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
      assert.isAbove(endpoints.length, 40)
      for (const { method, path } of endpoints) {
        const { status, text } = yield* begun(`${url}${path.replaceAll(/:[a-z]+/g, "x")}`, method)
        assert.notStrictEqual(status, 405, `${method} ${path}`)
        assert.notInclude(text, "no such path", `${method} ${path}`)
        assert.notInclude(text, "not written yet", `${method} ${path}`)
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
      assert.deepInclude(missing.body["details"], { problem: "my-device-timeout is not declared" })
    })
  )

  it.scopedLive("does not take a dry run, which version 1 does not have, for the write itself", () =>
    Effect.gen(function* () {
      const { url, world } = yield* start()
      const create = { name: "a", size: 2 ** 30 }
      for (const query of ["dry_run=true", "dry_run", "x=1&dry_run=1", "dry_run=false"]) {
        const { status, body } = yield* send(`${url}/api/v1/volumes?${query}`, { method: "POST", json: create })
        assert.strictEqual(status, 400, query)
        assertErrorBody(body, "INVALID_REQUEST")
      }
      assert.deepStrictEqual([world.declarations, world.operations], [[], []])
      assert.strictEqual((yield* send(`${url}/api/v1/volumes?x=1`, { method: "POST", json: create })).status, 201)
    })
  )
})

describe("what goes wrong (S20, X7, X11)", () => {
  const canary = "CANARY-sEcReT"
  const words = /CANARY|sEcReT/

  const failures: Readonly<Record<ErrorAnswer.Failure["_tag"], ErrorAnswer.Failure>> = {
    Refused: new Refused({ code: "INVALID_REQUEST", error: "no", suggestion: null, errors: [] }),
    RequestRefused: new ErrorAnswer.RequestRefused({ code: "NOT_FOUND", error: "no" }),
    GenerationConflict: new GenerationConflict({ name: "a", expected: 1, found: 2 }),
    PreconditionLost: new PreconditionLost({ detail: "no" }),
    CursorExpired: new CursorExpired({ cursor: canary }),
    StoreUnavailable: new StoreUnavailable({
      detail: `INSERT INTO declarations VALUES ('${canary}')`,
      outcome_unknown: true,
      cause: new Error(canary)
    }),
    CloudStackUnavailable: new CloudStackUnavailable({
      command: `https://cloud/client/api?apiKey=${canary}`,
      kind: "transport",
      detail: canary,
      cause: new Error(canary)
    })
  }

  it("is answered in the contract's form and tells nothing that is not for the caller", () => {
    for (const failure of Object.values(failures)) {
      const { status, body } = ErrorAnswer.make(failure, "req-12345678-1234-1234-1234-123456789012")
      assertErrorBody({ ...body }, body.code)
      assert.strictEqual(status, statuses[body.code])
      assert.notMatch(JSON.stringify(body), words, failure._tag)
      assert.notMatch(JSON.stringify(body), /    at |node_modules/, failure._tag)
    }
  })

  it("has the words that version 1 clients tell errors apart by, and only where they are right", () => {
    const text = "the device had a timeout"
    const passing: ReadonlyArray<string> = ["REQUEST_TIMEOUT", "OVERLOADED", "MAINTENANCE", "STANDBY"]
    const away = [...passing, "CLOUDSTACK_UNAVAILABLE", "DATABASE_UNAVAILABLE"]
    const input = [
      "INVALID_REQUEST",
      "TOO_LARGE",
      "UNSUPPORTED_MEDIA_TYPE",
      "CLOUDSTACK_INVALID_PARAMETER",
      "FIELD_IMMUTABLE",
      "IDEMPOTENCY_KEY_REUSED"
    ]
    for (const code of Object.keys(statuses) as ReadonlyArray<Code>) {
      const { body, headers } = ErrorAnswer.answer(code, text, "req-1", { cloudstack_code: 535 })
      assert.strictEqual(body.error.includes("CloudStack API error 431"), input.includes(code), code)
      assert.strictEqual(body.error.includes("CloudStack API error 432"), code === "CLOUDSTACK_RESOURCE_LIMIT", code)
      if (!body.error.startsWith("CloudStack API error"))
        assert.strictEqual(/timeout|device/.test(body.error), away.includes(code), code)
      assert.strictEqual(body.details["cloudstack_code"], 535)
      assert.strictEqual("retry-after" in headers, statuses[code] === 503, code)
    }
    assert.strictEqual(ErrorAnswer.answer("FIELD_IMMUTABLE", "", "req-1").body.details["cloudstack_code"], 431)
  })

  it.scopedLive("is in the log once a request, with who asked, and without a line of the caller's own (X11)", () =>
    Effect.gen(function* () {
      const log: Array<string> = []
      const { url, world } = yield* start(
        {},
        Logging.layer({ log_level: "debug", log_format: "json" }, (line) => log.push(line))
      )
      const headers = { "volumed-actor": "mary" }
      const written = yield* send(`${url}/api/v2/volumes/a`, { method: "PUT", json: { size: "1Gi" }, headers })
      yield* send(`${url}/api/v2/volumes/a?dry_run=true`, { method: "PUT", json: { size: "1Gi" }, headers })
      yield* send(`${url}/api/v2/volumes/b%0A%1B[31mforged`)
      yield* send(`${url}/nowhere`)
      world.databaseDown = true
      const failed = yield* send(`${url}/api/v2/volumes/a`)
      const told = log.map((line) => JSON.parse(line) as Record<string, unknown>).filter((line) => "route" in line)
      assert.deepStrictEqual(
        told.map(({ level, message, method, route, status, actor }) => [level, message, method, route, status, actor]),
        [
          ["info", "write accepted", "PUT", "/api/v2/volumes/:name", 201, "mary"],
          ["debug", "answered", "PUT", "/api/v2/volumes/:name", 200, "mary"],
          ["debug", "refused", "GET", "/api/v2/volumes/:name", 404, "v2"],
          ["debug", "refused", "GET", "none", 404, null],
          ["debug", "refused", "GET", "/api/v2/volumes/:name", 503, "v2"]
        ]
      )
      assert.strictEqual(told[0]?.["request_id"], written.headers.get("x-request-id"))
      assert.strictEqual(told[4]?.["request_id"], failed.body["request_id"])
      assert.isTrue(told.every(({ ms }) => typeof ms === "number" && ms >= 0))
      for (const line of log) assert.match(line, /^[^\u0000-\u001f\u007f]+\n$/)
    })
  )
})

describe("version 1 bodies", () => {
  it.effect("are read whatever the client calls them, and may be missing where none is needed", () =>
    Effect.gen(function* () {
      const of = (text: string) => () => Effect.succeed(Buffer.from(text))
      for (const headers of [
        {},
        { "content-type": "text/plain" },
        { "content-type": "application/x-www-form-urlencoded" }
      ]) {
        assert.deepStrictEqual(yield* bodyReaders(headers, of(""), "any").optionalJson(10), {})
        assert.deepStrictEqual(yield* bodyReaders(headers, of('{"a":1}'), "any").optionalJson(10), { a: 1 })
        assert.deepStrictEqual(yield* bodyReaders(headers, of('{"a":1}'), "any").json(10), { a: 1 })
        const refused = yield* Effect.flip(bodyReaders(headers, of("{}"), ["application/json"]).json(10))
        assert.match(refused.message, /expected a body of type application\/json/)
      }
      const zipped = bodyReaders({ "content-encoding": "gzip" }, of("{}"), "any")
      assert.match((yield* Effect.flip(zipped.optionalJson(10))).message, /not compressed/)
      assert.match((yield* Effect.flip(bodyReaders({}, of("{"), "any").optionalJson(10))).message, /end of the text/)
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

  it.live("stops on all of its addresses at once, so that their graces do not add up (P3)", () =>
    Effect.gen(function* () {
      const scope = yield* Scope.make()
      const listen = ["127.0.0.1", "127.0.0.2", "127.0.0.3"].map((host) => ({ host, port: 0 }))
      const { addresses } = yield* Scope.extend(start({ listen }), scope)
      const connect = ({ host, port }: (typeof addresses)[number]) =>
        Effect.async<Net.Socket | null>((resume) => {
          const socket = Net.connect(port, host, () => resume(Effect.succeed(socket)))
          socket.on("error", () => resume(Effect.succeed(null)))
        })
      // In the middle of a request, which is waited for as long as the grace is.
      const busy = yield* Effect.forEach(addresses, connect)
      for (const socket of busy) socket?.write("GET /livez HTTP/1.1\r\nHost: ")
      const cut = Promise.race(busy.map((socket) => new Promise((resolve) => socket?.on("close", resolve))))
      yield* Effect.sleep(50)
      const stopping = yield* Effect.fork(Scope.close(scope, Exit.void))
      yield* Effect.promise(() => cut)
      assert.deepStrictEqual(yield* Effect.forEach(addresses, connect), [null, null, null])
      yield* Fiber.join(stopping)
    })
  )
})
