import * as Net from "node:net"
import { assert, describe, it } from "@effect/vitest"
import { Effect, Exit, Scope } from "effect"
import { latch, send, start } from "./support.ts"
import { assertErrorBody, received, speak } from "./Wire.ts"

const get = "GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n"
const put = "PUT /api/v2/volumes/a HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
const last = "Connection: close\r\n\r\n"

/** The real limits are minutes together; what they do is the same at a hundredth. */
const impatient = { headers_ms: 200, request_ms: 500, idle_ms: 300, check_ms: 50 }

/** A connection that is written to bit by bit, and what it is answered until the server ends it. */
const trickle = (port: number, head: string, bit: string, everyMs: number): Effect.Effect<string> =>
  Effect.async<string>((resume) => {
    const socket = Net.connect(port, "127.0.0.1")
    let answer = ""
    const timer = setInterval(() => socket.write(bit), everyMs)
    socket.setEncoding("utf8")
    socket.on("data", (text: string) => (answer += text))
    socket.on("error", () => {})
    socket.on("close", () => {
      clearInterval(timer)
      resume(Effect.succeed(answer))
    })
    socket.write(head)
    return Effect.sync(() => {
      clearInterval(timer)
      socket.destroy()
    })
  })

describe("a connection (X5, e2)", () => {
  it.scopedLive("that is no HTTP request, or beyond the limits, is answered in the contract's form and ended", () =>
    Effect.gen(function* () {
      const { addresses, world } = yield* start()
      const port = addresses[0]?.port ?? 0
      const corpus: ReadonlyArray<readonly [label: string, text: string, status: number, code: string]> = [
        ["garbage", "NONSENSE\r\n\r\n", 400, "INVALID_REQUEST"],
        ["a TLS hello", "\u0016\u0003\u0001\u0002\u0000\u0001\r\n\r\n", 400, "INVALID_REQUEST"],
        ["HTTP/2 by prior knowledge", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "INVALID_REQUEST"],
        ["HTTP/9.9", "GET /livez HTTP/9.9\r\nHost: a\r\n\r\n", 400, "INVALID_REQUEST"],
        ["HTTP/0.9", "GET /livez\r\n\r\n", 400, "INVALID_REQUEST"],
        ["an unknown method", "BREW /livez HTTP/1.1\r\nHost: a\r\n\r\n", 400, "INVALID_REQUEST"],
        ["a blank before the colon", `${get}X : y\r\n\r\n`, 400, "INVALID_REQUEST"],
        ["a folded header", `${get}X: y\r\n z: w\r\n\r\n`, 400, "INVALID_REQUEST"],
        ["NUL in a header", `${get}X: a\u0000b\r\n\r\n`, 400, "INVALID_REQUEST"],
        ["NUL in the path", "GET /livez\u0000 HTTP/1.1\r\nHost: a\r\n\r\n", 400, "INVALID_REQUEST"],
        ["a bare CR", `${get}X: a\rb\r\n\r\n`, 400, "INVALID_REQUEST"],
        ["a header of 32 KiB", `${get}X: ${"x".repeat(32 * 1024)}\r\n\r\n`, 431, "HEADERS_TOO_LARGE"],
        ["20,000 headers", `${get}${"a:b\r\n".repeat(20_000)}\r\n`, 431, "HEADERS_TOO_LARGE"],
        ["a path of 32 KiB", `GET /${"x".repeat(32 * 1024)} HTTP/1.1\r\nHost: a\r\n\r\n`, 431, "HEADERS_TOO_LARGE"],
        ["a proxy's request", "CONNECT db:3306 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", 405, "METHOD_NOT_ALLOWED"],
        ["an absolute form", `GET http://127.0.0.1/api/v2/x HTTP/1.1\r\nHost: 127.0.0.1\r\n${last}`, 404, "NOT_FOUND"],
        ["the server as a whole", `OPTIONS * HTTP/1.1\r\nHost: 127.0.0.1\r\n${last}`, 404, "NOT_FOUND"],
        [
          "a path that does not decode",
          `GET /api/v2/volumes/%zz HTTP/1.1\r\nHost: 127.0.0.1\r\n${last}`,
          404,
          "NOT_FOUND"
        ],
        ["NUL, encoded", `GET /api/v2/volumes/%00 HTTP/1.1\r\nHost: 127.0.0.1\r\n${last}`, 404, "NOT_FOUND"],
        [
          "another room, encoded",
          `GET /api/v2/volumes/..%2f..%2fx HTTP/1.1\r\nHost: 127.0.0.1\r\n${last}`,
          404,
          "NOT_FOUND"
        ],
        ["no host", "GET /livez HTTP/1.1\r\nConnection: close\r\n\r\n", 400, "INVALID_REQUEST"],
        ["a miracle expected", `${put}Content-Length: 2\r\nExpect: a-miracle\r\n${last}{}`, 417, "EXPECTATION_FAILED"]
      ]
      for (const [label, text, status, code] of corpus) {
        const [answer, ...more] = received(yield* speak(port, text))
        assert.strictEqual(answer?.status, status, label)
        assertErrorBody(answer?.body ?? {}, code)
        assert.deepStrictEqual(more, [], label)
      }
      assert.strictEqual(world.declarations.length, 0)
    })
  )

  it.scopedLive("that leaves open where a body ends is refused, for a proxy may see another end (X5)", () =>
    Effect.gen(function* () {
      const { addresses, world } = yield* start()
      const port = addresses[0]?.port ?? 0
      const body = '{"size":"1Gi"}'
      const chunk = `${body.length.toString(16)}\r\n${body}\r\n0\r\n\r\n`
      const variants: ReadonlyArray<readonly [string, string]> = [
        [`Content-Length: ${body.length}\r\nTransfer-Encoding: chunked\r\n`, chunk],
        [`Transfer-Encoding: chunked\r\nContent-Length: ${body.length}\r\n`, chunk],
        [`Content-Length: ${body.length}\r\nContent-Length: ${body.length + 1}\r\n`, body],
        [`Content-Length: ${body.length}, ${body.length}\r\n`, body],
        [`Content-Length: +${body.length}\r\n`, body],
        [`Content-Length: 0x0e\r\n`, body],
        [`Content-Length: -1\r\n`, body],
        [`Content-Length: 99999999999999999999\r\n`, body],
        ["Transfer-Encoding: chunked, identity\r\n", chunk],
        ["Transfer-Encoding: xchunked\r\n", chunk],
        ["Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", chunk],
        ["Transfer-Encoding : chunked\r\n", chunk],
        ["Transfer-Encoding: \u000bchunked\r\n", chunk],
        ["Transfer-Encoding: chunked\r\n", `zz\r\n${body}\r\n0\r\n\r\n`],
        ["Transfer-Encoding: chunked\r\n", `-1\r\n${body}\r\n0\r\n\r\n`],
        ["Transfer-Encoding: chunked\r\n", `fffffffffffffffff\r\n${body}\r\n0\r\n\r\n`],
        ["Transfer-Encoding: chunked\r\n", `${body.length.toString(16)}\r\n${body}xx0\r\n\r\n`],
        [
          "Transfer-Encoding: chunked\r\n",
          `${body.length.toString(16)};${"x".repeat(32 * 1024)}\r\n${body}\r\n0\r\n\r\n`
        ]
      ]
      for (const [headers, rest] of variants) {
        const answers = received(yield* speak(port, `${put}${headers}\r\n${rest}`))
        assert.strictEqual(answers.length, 1, headers + rest)
        assert.include([400, 413], answers[0]?.status, headers + rest)
      }
      assert.strictEqual(world.declarations.length, 0)
    })
  )

  it.scopedLive("may send several requests at once, which are answered in their order", () =>
    Effect.gen(function* () {
      const { addresses, world } = yield* start()
      const port = addresses[0]?.port ?? 0
      const declare = (name: string) =>
        `PUT /api/v2/volumes/${name} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 14\r\n\r\n{"size":"1Gi"}`
      const read = (name: string) => `GET /api/v2/volumes/${name} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n`
      const answers = received(
        yield* speak(port, `${declare("a")}${declare("b")}${read("nobody")}${declare("c")}${get}${last}`)
      )
      assert.deepStrictEqual(
        answers.map(({ status, body }) => [status, body["name"] ?? body["code"] ?? body["status"]]),
        [
          [201, "a"],
          [201, "b"],
          [404, "NOT_FOUND"],
          [201, "c"],
          [200, "ok"]
        ]
      )
      assert.strictEqual(world.declarations.length, 3)
    })
  )

  it.scopedLive("whose second request is garbage gets the first one's own answer, and no other for it", () =>
    Effect.gen(function* () {
      const { addresses, world } = yield* start()
      const gate = yield* latch
      world.inWrite = gate.wait
      const heard = yield* Effect.fork(
        speak(addresses[0]?.port ?? 0, `${put}Content-Length: 14\r\n\r\n{"size":"1Gi"}`, "NONSENSE\r\n\r\n")
      )
      yield* Effect.sleep(100)
      yield* gate.open
      const answers = received(yield* heard)
      assert.deepStrictEqual(
        answers.map(({ status, body }) => [status, body["name"]]),
        [[201, "a"]]
      )
    })
  )

  it.scopedLive("that is slow with its headers, its body or its next request is ended (X5)", () =>
    Effect.gen(function* () {
      const { addresses, url, world } = yield* start({ connection: impatient })
      const port = addresses[0]?.port ?? 0
      const nothing = yield* speak(port)
      assert.strictEqual(received(nothing)[0]?.status, 408)
      const headers = yield* trickle(port, get, "X: y\r\n", 20)
      assert.strictEqual(received(headers)[0]?.status, 408)
      assertErrorBody(received(headers)[0]?.body ?? {}, "REQUEST_TIMEOUT")
      const body = yield* trickle(port, `${put}Content-Length: 100000\r\n\r\n{`, " ", 20)
      assert.deepStrictEqual(
        received(body).map(({ status }) => status),
        [408]
      )
      const chunks = yield* trickle(port, `${put}Transfer-Encoding: chunked\r\n\r\n`, "1\r\n \r\n", 20)
      assert.deepStrictEqual(
        received(chunks).map(({ status }) => status),
        [408]
      )
      const idle = yield* speak(port, `${get}\r\n`)
      assert.deepStrictEqual(
        received(idle).map(({ status }) => status),
        [200]
      )
      assert.strictEqual(world.declarations.length, 0)
      assert.strictEqual((yield* send(`${url}/livez`)).status, 200)
    })
  )

  it.scopedLive("that goes on sending a body after its refusal hears nothing further, and is ended", () =>
    Effect.gen(function* () {
      const { addresses } = yield* start({ connection: impatient })
      const chunk = `10000\r\n${" ".repeat(0x10000)}\r\n`
      const text = yield* trickle(addresses[0]?.port ?? 0, `${put}Transfer-Encoding: chunked\r\n\r\n`, chunk, 5)
      assert.deepStrictEqual(
        received(text).map(({ status }) => status),
        [413]
      )
    })
  )

  it.scopedLive("that is half open, or never reads its answers, holds up nobody else and is ended (X5)", () =>
    Effect.gen(function* () {
      const { addresses, url, client } = yield* start({ connection: { silent_ms: 1_000 } })
      const port = addresses[0]?.port ?? 0
      const volumes = Array.from({ length: 1_000 }, (_, index) => ({ name: `v-${index}`, size: "1Gi" }))
      yield* client.apply({ volumes })
      const list = `GET /api/v2/volumes?limit=1000 HTTP/1.1\r\nHost: 127.0.0.1\r\n`
      const one = (yield* speak(port, `${list}${last}`)).length
      const asked = Math.ceil(16_000_000 / one)
      const deaf = yield* Effect.acquireRelease(
        Effect.sync(() => Net.connect(port, "127.0.0.1")),
        (socket) => Effect.sync(() => socket.destroy())
      )
      const closed = new Promise((resolve) => deaf.on("close", resolve))
      deaf.on("error", () => {})
      deaf.pause()
      for (let request = 0; request < asked; request++) {
        deaf.write(`${list}\r\n`)
        assert.strictEqual((yield* send(`${url}/livez`)).status, 200)
      }
      // More than the kernel keeps for it was answered; what it does not take is not kept for it either.
      yield* Effect.sleep(3_000)
      deaf.resume()
      yield* Effect.promise(() => closed)
      assert.isBelow(deaf.bytesRead, asked * one)
      // Whoever ends its side first still gets its answer.
      const half = yield* Effect.async<string>((resume) => {
        const socket = Net.connect(port, "127.0.0.1", () => socket.end(`${get}\r\n`))
        let text = ""
        socket.setEncoding("utf8").on("data", (more: string) => (text += more))
        socket.on("close", () => resume(Effect.succeed(text)))
      })
      assert.strictEqual(received(half)[0]?.status, 200)
    })
  )

  it.live(
    "that asks for a proxy is ended whatever its client does, and holds up neither the daemon nor its stop (X5)",
    () =>
      Effect.gen(function* () {
        const scope = yield* Scope.make()
        const { addresses, url, world } = yield* Scope.extend(start(), scope)
        const port = addresses[0]?.port ?? 0
        const connect = "CONNECT db:3306 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
        // Gone before its answer is: an error that nobody listens to ends the process.
        for (let index = 0; index < 20; index++)
          yield* Effect.async<void>((resume) => {
            const socket = Net.connect(port, "127.0.0.1", () => {
              socket.write(connect)
              setTimeout(() => socket.resetAndDestroy(), index % 3)
            })
            socket.on("error", () => {}).on("close", () => resume(Effect.void))
          })
        assert.strictEqual((yield* send(`${url}/livez`)).status, 200)
        // Never ends its own side, and reads on.
        const open = Net.connect({ port, host: "127.0.0.1", allowHalfOpen: true })
        const heard = new Promise((resolve) => open.on("end", resolve))
        open.on("error", () => {}).resume()
        open.write(connect)
        yield* Effect.promise(() => heard)
        // Nor is its refusal taken for the answer to what was sent before it.
        const gate = yield* latch
        world.inWrite = gate.wait
        const confused = yield* speak(port, `${put}Content-Length: 14\r\n\r\n{"size":"1Gi"}`, connect)
        assert.strictEqual(confused, "")
        yield* gate.open
        yield* Scope.close(scope, Exit.void).pipe(Effect.timeout("10 seconds"))
        open.destroy()
      })
  )

  it.scopedLive("beyond the highest number of them is not taken, and those before go on (S22)", () =>
    Effect.gen(function* () {
      const { addresses, url } = yield* start({ connection: { connections: 8 } })
      const port = addresses[0]?.port ?? 0
      const open = yield* Effect.forEach(Array.from({ length: 8 }), () =>
        Effect.acquireRelease(
          Effect.async<Net.Socket>((resume) => {
            const socket = Net.connect(port, "127.0.0.1", () => resume(Effect.succeed(socket)))
          }),
          (socket) => Effect.sync(() => socket.destroy())
        )
      )
      assert.strictEqual(yield* speak(port, `${get}${last}`), "")
      const [first] = open
      const answer = yield* Effect.async<string>((resume) => {
        first?.once("data", (bytes) => resume(Effect.succeed(bytes.toString())))
        first?.write(`${get}\r\n`)
      })
      assert.match(answer, /^HTTP\/1\.1 200/)
      for (const socket of open) socket.destroy()
      yield* Effect.repeat(Effect.delay(speak(port, `${get}${last}`), 20), { until: (text) => text !== "" })
      assert.strictEqual((yield* send(`${url}/livez`)).status, 200)
    })
  )
})
