import { createHash } from "node:crypto"
import * as Fs from "node:fs"
import * as Https from "node:https"
import * as Os from "node:os"
import * as Path from "node:path"
import type { TLSSocket } from "node:tls"
import * as HttpApi from "@effect/platform/HttpApi"
import * as OpenApi from "@effect/platform/OpenApi"
import { assert, describe, it } from "@effect/vitest"
import { Effect, Either, Exit, Fiber, Scope } from "effect"
import { Api } from "../../schema/Routes.ts"
import * as Tokens from "../../src/Http/Tokens.ts"
import * as Child from "../Cli/Child.ts"
import * as Identity from "./Identity.ts"
import { send, start, type Started } from "./support.ts"
import { assertErrorBody, received, speak } from "./Wire.ts"

const reader = "reader-AAAAAAAAAAAAAAAAAAAAAA"
const writer = "writer-BBBBBBBBBBBBBBBBBBBBBB"
const stranger = "stranger-CCCCCCCCCCCCCCCCCCCC"

const hash = (token: string) => createHash("sha256").update(token).digest("hex")

const lines = (...tokens: ReadonlyArray<readonly [role: string, token: string, name?: string]>) =>
  tokens.map(([role, token, name = ""]) => `${role} sha256:${hash(token)} ${name}\n`).join("")

const usual = lines(["read-only", reader, "watcher"], ["read-write", writer, "operator"])

const directory = Effect.acquireRelease(
  Effect.sync(() => Fs.mkdtempSync(Path.join(Os.tmpdir(), "volumed-access-"))),
  (path) => Effect.sync(() => Fs.rmSync(path, { recursive: true, force: true }))
)

const file = (text: string, mode = 0o600) =>
  Effect.map(directory, (path) => {
    const name = Path.join(path, "file")
    Fs.writeFileSync(name, text, { mode })
    return name
  })

const startWith = (text: string) =>
  Effect.gen(function* () {
    const token_file = yield* file(text)
    return { ...(yield* start({ token_file })), token_file }
  })

/** The status and error code only: some answers go on for ever. */
const answered = (url: string, init: RequestInit = {}) =>
  Effect.promise(async () => {
    const abort = new AbortController()
    const response = await fetch(url, { ...init, signal: abort.signal })
    const isJson = response.headers.get("content-type") === "application/json"
    const body = isJson ? ((await response.json()) as Record<string, unknown>) : {}
    abort.abort()
    return { status: response.status, headers: response.headers, body }
  })

const bearer = (token: string) => ({ authorization: `Bearer ${token}` })

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

const probes: ReadonlySet<string> = new Set(["health", "v1Health", "livez", "readyz"])

/** What each caller is refused with; null: let in, whatever the handler then says. */
const expected = ({ name, method }: Route) => {
  if (probes.has(name)) return { none: null, wrong: null, "read-only": null, "read-write": null }
  const reads = method === "GET" || name === "planCandidate"
  return { none: 401, wrong: 401, "read-only": reads ? null : 403, "read-write": null }
}

describe("routes with a token file (e1)", () => {
  it.scopedLive("let in only whom each is for: no token, a wrong one, a read-only one, a read-write one", () =>
    Effect.gen(function* () {
      const { url } = yield* startWith(usual)
      assert.isAbove(routes.length, 40)
      const callers = { none: {}, wrong: bearer(stranger), "read-only": bearer(reader), "read-write": bearer(writer) }
      for (const route of routes)
        for (const caller of ["none", "wrong", "read-only", "read-write"] as const) {
          const { method, path } = route
          const { status, body, headers } = yield* answered(`${url}${path}`, { method, headers: callers[caller] })
          const wanted = expected(route)[caller]
          const label = `${method} ${path} with ${caller}: ${status}`
          if (wanted === null) assert.notInclude([401, 403], status, label)
          else assert.strictEqual(status, wanted, label)
          if (wanted !== null) assertErrorBody(body, wanted === 401 ? "UNAUTHORIZED" : "FORBIDDEN")
          if (wanted === 401) assert.strictEqual(headers.get("www-authenticate"), "Bearer", label)
        }
    })
  )

  it.scopedLive("do not tell a stranger which paths and methods there are", () =>
    Effect.gen(function* () {
      const { url } = yield* startWith(usual)
      for (const path of ["/", "/api/v9", "/api/v2/volumes/%zz", "/health/x", "/health;x", "/health%3Fx"]) {
        assert.strictEqual((yield* answered(`${url}${path}`)).status, 401, path)
        assert.strictEqual((yield* answered(`${url}${path}`, { headers: bearer(writer) })).status, 404, path)
      }
      assert.strictEqual((yield* answered(`${url}/api/v2/plan`, { method: "DELETE" })).status, 401)
    })
  )

  it.scopedLive("take no token that is not exactly one of the file's", () =>
    Effect.gen(function* () {
      const { url } = yield* startWith(usual)
      const refused = [
        writer,
        `bearer${writer}`,
        `Basic ${writer}`,
        "Bearer",
        `Bearer ${writer}x`,
        `Bearer ${writer.slice(0, -1)}`,
        `Bearer ${writer.toLowerCase()}`,
        `Bearer ${writer} ${reader}`,
        `Bearer sha256:${hash(writer)}`,
        `Bearer ${hash(writer)}`,
        `Bearer ${"x".repeat(8_000)}`
      ]
      for (const authorization of refused) {
        const { status } = yield* answered(`${url}/api/v2/volumes`, { headers: { authorization } })
        assert.strictEqual(status, 401, authorization)
      }
      for (const authorization of [`Bearer ${writer}`, `bearer ${writer}`, `BEARER  ${writer}`]) {
        const { status } = yield* answered(`${url}/api/v2/volumes`, { headers: { authorization } })
        assert.strictEqual(status, 200, authorization)
      }
    })
  )

  it.scopedLive("refuse headers that come twice, whichever a proxy may have judged by", () =>
    Effect.gen(function* () {
      const { addresses } = yield* startWith(usual)
      const port = addresses[0]?.port ?? 0
      for (const name of ["Host", "Authorization", "Content-Type", "Origin"]) {
        const head = `GET /api/v2/volumes HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nAuthorization: Bearer ${writer}\r\n`
        const [answer] = received(yield* speak(port, `${head}${name}: a\r\n${name}: b\r\n\r\n`))
        assert.strictEqual(answer?.status, 400, name)
      }
    })
  )

  it.scopedLive("name the token in the history, and after it whom the caller names", () =>
    Effect.gen(function* () {
      const nameless = "nameless-DDDDDDDDDDDDDDDDDDDD"
      const { url, world } = yield* startWith(usual + lines(["read-write", nameless]))
      const put = (name: string, headers: Record<string, string>) =>
        send(`${url}/api/v2/volumes/${name}`, { method: "PUT", json: { size: "1Gi" }, headers })
      yield* put("a", bearer(writer))
      yield* put("b", { ...bearer(writer), "volumed-actor": "mary" })
      yield* put("c", bearer(nameless))
      assert.deepStrictEqual(
        world.events.map(({ name, actor }) => [name, actor]),
        [
          ["a", "operator"],
          ["b", "operator/mary"],
          ["c", `token-${hash(nameless).slice(0, 8)}`]
        ]
      )
    })
  )
})

describe("a token file", () => {
  const problems = (text: string) => Either.getOrNull(Either.flip(Tokens.parse(text))) ?? []

  it("is read line by line: roles, hashes, names, comments", () => {
    const text = `# rotated on Monday\n\n${usual}\r\n  read-write   sha256:${hash(stranger).toUpperCase()}  # \n`
    assert.deepStrictEqual(problems(text), ["line 6 has a name that is not 1-64 characters of A-Z a-z 0-9 . _ @ -"])
    const tokens = Either.getOrThrow(
      Tokens.parse(`${usual}read-write sha256:${hash(stranger).toUpperCase()}\r\n # bye`)
    )
    assert.deepStrictEqual(
      tokens.map(({ role, name }) => [role, name]),
      [
        ["read-only", "watcher"],
        ["read-write", "operator"],
        ["read-write", `token-${hash(stranger).slice(0, 8)}`]
      ]
    )
    assert.strictEqual(Tokens.find(tokens, writer)?.name, "operator")
    assert.isNull(Tokens.find(tokens, `${writer}x`))
  })

  it("that holds a token in clear is refused with the line to put instead, and without the token", () => {
    for (const [text, line] of [
      [`read-write ${writer} operator`, `read-write sha256:${hash(writer)} operator`],
      [`read-only ${writer}`, `read-only sha256:${hash(writer)}`],
      [writer, `read-only sha256:${hash(writer)}`],
      [`${writer} operator`, `read-only sha256:${hash(writer)} operator`]
    ] as const) {
      const found = problems(text)
      assert.deepStrictEqual(found, [`line 1 holds a token in clear; put instead: ${line}`])
      assert.notInclude(found.join(), writer)
      assert.isTrue(Either.isRight(Tokens.parse(line)))
    }
  })

  it("is refused for whatever else is wrong, with every line, and without repeating it", () => {
    const digest = `sha256:${hash(writer)}`
    for (const [text, problem] of [
      ["", /no token/],
      ["# nothing\n", /no token/],
      ["hunter2", /line 1 does not begin with read-only or read-write/],
      [`admin ${digest}`, /line 1 does not begin/],
      [`\nread-write hunter2`, /line 2 has no sha256/],
      [`read-write`, /no sha256/],
      [`read-write ${digest.slice(0, -1)}`, /64 hexadecimal digits/],
      [`read-write ${digest}0`, /64 hexadecimal digits/],
      [`read-write ${digest} a b`, /name/],
      [`read-write ${digest} ${"n".repeat(65)}`, /name/],
      [`read-write ${digest} apply`, /name/],
      [`read-write ${digest} a\nread-only ${digest} b`, /line 2 holds a token a second time/],
      [
        lines(...Array.from({ length: 17 }, (_, n) => ["read-only", `${n}-${writer}`] as const)),
        /17 tokens, and at most 16/
      ]
    ] as const) {
      assert.match(problems(text).join("\n"), problem, text)
      assert.notInclude(problems(text).join(), "hunter2")
    }
    assert.strictEqual(problems("x\ny\n").length, 2)
    assert.isTrue(Either.isRight(Tokens.parse(lines(["read-only", reader, "same"], ["read-only", writer, "same"]))))
  })

  it("lets in no token shorter than 128 bits, though its hash stands there", () => {
    const short = "A".repeat(21)
    const tokens = Either.getOrThrow(Tokens.parse(lines(["read-write", short], ["read-write", `${short}A`])))
    assert.isNull(Tokens.find(tokens, short))
    assert.isNotNull(Tokens.find(tokens, `${short}A`))
  })

  it.scopedLive("is looked at again: tokens come and go without a restart, two valid at once", () =>
    Effect.gen(function* () {
      const { url, token_file } = yield* startWith(lines(["read-write", writer, "operator"]))
      const status = (token: string) =>
        Effect.map(answered(`${url}/api/v2/volumes`, { headers: bearer(token) }), (answer) => answer.status)
      const until = (token: string, wanted: number) =>
        Effect.repeat(Effect.delay(status(token), 50), { until: (found) => found === wanted })
      assert.deepStrictEqual([yield* status(writer), yield* status(stranger)], [200, 401])
      Fs.writeFileSync(token_file, lines(["read-write", writer, "operator"], ["read-write", stranger, "operator"]))
      yield* until(stranger, 200)
      assert.strictEqual(yield* status(writer), 200)
      // As an editor does it: another file in the place of this one.
      Fs.writeFileSync(`${token_file}.new`, lines(["read-write", stranger, "operator"]), { mode: 0o600 })
      Fs.renameSync(`${token_file}.new`, token_file)
      yield* until(writer, 401)
      assert.strictEqual(yield* status(stranger), 200)
    })
  )

  it.scopedLive("that became wrong changes nothing, and health says so without telling what is in it", () =>
    Effect.gen(function* () {
      const { url, token_file } = yield* startWith(usual)
      const tokens = Effect.map(send(`${url}/health`), ({ body }) => (body["details"] as { tokens: string }).tokens)
      const until = (wanted: RegExp) =>
        Effect.repeat(Effect.delay(tokens, 50), { until: (found) => wanted.test(found) })
      const isIn = Effect.map(
        answered(`${url}/api/v2/volumes`, { headers: bearer(writer) }),
        ({ status }) => status === 200
      )
      assert.strictEqual(yield* tokens, "")
      const breakages: ReadonlyArray<() => void> = [
        () => Fs.writeFileSync(token_file, `read-write ${stranger}\n`),
        () => Fs.writeFileSync(token_file, ""),
        () => Fs.rmSync(token_file),
        () => {
          Fs.writeFileSync(token_file, lines(["read-write", stranger]))
          Fs.chmodSync(token_file, 0o644)
        }
      ]
      for (const wreck of breakages) {
        wreck()
        assert.notInclude(yield* until(/wrong/), token_file)
        assert.isTrue(yield* isIn)
        assert.strictEqual((yield* answered(`${url}/api/v2/volumes`, { headers: bearer(stranger) })).status, 401)
        Fs.rmSync(token_file, { force: true })
        Fs.writeFileSync(token_file, usual, { mode: 0o600 })
        yield* until(/^$/)
      }
    })
  )
})

describe("without tokens (e1)", () => {
  it.scopedLive("answers only by an address or localhost, which a page of a rebound name cannot say", () =>
    Effect.gen(function* () {
      const { addresses } = yield* start()
      const port = addresses[0]?.port ?? 0
      const status = (host: string | null, version = "1.1") =>
        Effect.map(
          speak(
            port,
            `GET /health HTTP/${version}\r\n${host === null ? "" : `Host: ${host}\r\n`}Connection: close\r\n\r\n`
          ),
          (text) => received(text)[0]?.status
        )
      for (const host of ["127.0.0.1", `127.0.0.1:${port}`, `localhost:${port}`, "LOCALHOST", "[::1]:80", "10.1.2.3"])
        assert.strictEqual(yield* status(host), 200, host)
      for (const host of ["evil.example.com", `evil.example.com:${port}`, "localhost.evil.example", "127.0.0.1.nip.io"])
        assert.strictEqual(yield* status(host), 403, host)
      for (const host of ["[evil]", "a b", "127.0.0.1:x", "user@127.0.0.1", ""])
        assert.strictEqual(yield* status(host), 403, host)
      assert.strictEqual(yield* status(null), 400)
      assert.strictEqual(yield* status(null, "1.0"), 200)
      const { paths } = OpenApi.fromApi(Api)
      for (const path of ["/health", "/api/v1/health", "/livez", "/readyz"])
        assert.property(paths[path]?.get?.responses, "403", path)
    })
  )

  it.scopedLive("refuses what a page of another origin sends, reads as well as writes", () =>
    Effect.gen(function* () {
      const { url, world } = yield* start()
      const put = (headers: Record<string, string>) =>
        send(`${url}/api/v2/volumes/a`, { method: "PUT", json: { size: "1Gi" }, headers })
      const foreign: ReadonlyArray<Record<string, string>> = [
        { origin: "https://evil.example.com" },
        { origin: "null" },
        { origin: url.replace("http:", "https:") },
        { origin: url.replace(/:[0-9]+$/, ":1") },
        { "sec-fetch-site": "cross-site" },
        { "sec-fetch-site": "same-site" }
      ]
      for (const headers of foreign) {
        const { status, body } = yield* put(headers)
        assert.strictEqual(status, 403, JSON.stringify(headers))
        assertErrorBody(body, "FORBIDDEN")
        assert.strictEqual((yield* send(`${url}/health`, { headers })).status, 403)
      }
      assert.strictEqual(world.declarations.length, 0)
      assert.strictEqual((yield* put({ origin: url, "sec-fetch-site": "same-origin" })).status, 201)
      assert.strictEqual((yield* put({ "sec-fetch-site": "none" })).status, 200)
    })
  )

  it.scopedLive("does not look at Host and Origin where tokens decide", () =>
    Effect.gen(function* () {
      const { addresses } = yield* startWith(usual)
      const head = `GET /api/v2/volumes HTTP/1.1\r\nHost: volumed.example.com\r\nOrigin: https://ui.example.com\r\n`
      const text = yield* speak(
        addresses[0]?.port ?? 0,
        `${head}Authorization: Bearer ${reader}\r\nConnection: close\r\n\r\n`
      )
      assert.strictEqual(received(text)[0]?.status, 200)
    })
  )
})

describe("the start (e1)", () => {
  const wide = [{ host: "192.0.2.1", port: 0 }]

  it.scopedLive("listens wider than this machine only with tokens and TLS", () =>
    Effect.gen(function* () {
      const token_file = yield* file(usual)
      const tls = { cert_file: yield* file(Identity.cert), key_file: yield* file(Identity.key) }
      for (const [options, problem] of [
        [{ token_file: null, tls: null }, /can be reached from other machines/],
        [{ token_file, tls: null }, /can be reached from other machines/],
        [{ token_file: null, tls }, /can be reached from other machines/],
        // Past that check: this address, kept for examples, is no machine's.
        [{ token_file, tls }, /this machine has none of the addresses/]
      ] as const) {
        const refused = yield* Effect.flip(start({ listen: wide, ...options }))
        assert.match(refused.message, problem)
        assert.match(refused.message, /LISTEN[\s\S]*example/)
      }
    })
  )

  it.scopedLive("needs a token file, a certificate and a key that are right, and says which is not", () =>
    Effect.gen(function* () {
      const cert_file = yield* file(Identity.cert)
      const key_file = yield* file(Identity.key)
      const exposed = yield* file(Identity.key, 0o644)
      const nothing = "/nonexistent/file"
      for (const [options, problem] of [
        [{ token_file: nothing }, /VOLUMED_TOKEN_FILE: .*cannot be read/],
        [{ token_file: yield* file(usual, 0o640) }, /VOLUMED_TOKEN_FILE: .*chmod 600/],
        [{ token_file: yield* file(`read-write ${writer}`) }, /VOLUMED_TOKEN_FILE: .*put instead: read-write sha256:/],
        [{ tls: { cert_file: nothing, key_file } }, /TLS_CERT_FILE: .*cannot be read/],
        [{ tls: { cert_file, key_file: nothing } }, /TLS_KEY_FILE: .*cannot be read/],
        [{ tls: { cert_file, key_file: exposed } }, /TLS_KEY_FILE: .*chmod 600/],
        [{ tls: { cert_file, key_file: yield* file("hunter2") } }, /TLS_KEY_FILE: .*not PEM/],
        [{ tls: { cert_file: key_file, key_file } }, /TLS_KEY_FILE: .*not PEM/]
      ] as const) {
        const refused = yield* Effect.flip(start(options))
        assert.match(refused.message, problem)
        assert.notMatch(refused.message, /hunter2|BEGIN/)
        assert.notInclude(refused.message, writer)
      }
    })
  )

  it.scopedLive("speaks TLS 1.2 and newer with a certificate, and no plain HTTP then", () =>
    Effect.gen(function* () {
      const tls = { cert_file: yield* file(Identity.cert), key_file: yield* file(Identity.key) }
      const { url, addresses } = yield* start({ tls })
      assert.match(url, /^https:/)
      const get = (options: Https.RequestOptions) =>
        Effect.async<{ status: number; protocol: string | null }, Error>((resume) => {
          const request = Https.get(
            `${url}/livez`,
            { rejectUnauthorized: false, agent: false, ...options },
            (response) => {
              const socket = response.socket as TLSSocket
              resume(Effect.succeed({ status: response.statusCode ?? 0, protocol: socket.getProtocol() }))
              response.destroy()
            }
          )
          request.on("error", (error) => resume(Effect.fail(error)))
        })
      assert.deepStrictEqual(yield* get({}), { status: 200, protocol: "TLSv1.3" })
      assert.deepStrictEqual(yield* get({ maxVersion: "TLSv1.2" }), { status: 200, protocol: "TLSv1.2" })
      yield* Effect.flip(get({ minVersion: "TLSv1.1", maxVersion: "TLSv1.1", ciphers: "DEFAULT@SECLEVEL=0" }))
      // A page served over TLS is of another origin than one that is not.
      const foreign = yield* get({ headers: { origin: url.replace("https:", "http:") } })
      assert.strictEqual(foreign.status, 403)
      assert.strictEqual(yield* speak(addresses[0]?.port ?? 0, "GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"), "")
    })
  )

  it.scopedLive("ends a connection that shakes no hands, and stops beside one (X5, P3)", () =>
    Effect.gen(function* () {
      const tls = { cert_file: yield* file(Identity.cert), key_file: yield* file(Identity.key) }
      const portOf = ({ addresses }: Started) => addresses[0]?.port ?? 0
      const impatient = portOf(yield* start({ tls, connection: { headers_ms: 300 } }))
      // Nothing, the beginning of a hello, and a client that speaks no TLS.
      for (const hello of ["", "\u0016\u0003\u0001", "GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"])
        yield* speak(impatient, hello).pipe(Effect.timeout("10 seconds"))
      const scope = yield* Scope.make()
      const patient = portOf(yield* Scope.extend(start({ tls, connection: { headers_ms: 30_000 } }), scope))
      const silent = yield* Effect.fork(speak(patient, "\u0016"))
      yield* Effect.sleep(50)
      yield* Scope.close(scope, Exit.void).pipe(Effect.timeout("10 seconds"))
      assert.strictEqual(yield* Fiber.join(silent), "")
    })
  )

  it.scopedLive("of the built program ends with 1 and the reason where it is refused, and else goes on over TLS", () =>
    Effect.gen(function* () {
      const token_file = yield* file(usual)
      const TLS_CERT_FILE = yield* file(Identity.cert)
      const TLS_KEY_FILE = yield* file(Identity.key)
      const serve = ["serve", "--sandbox"]
      for (const [env, problem] of [
        [{ LISTEN: "0.0.0.0:0" }, /LISTEN: names 0\.0\.0\.0, which other machines can reach/],
        [{ LISTEN: "0.0.0.0:0", VOLUMED_TOKEN_FILE: token_file }, /TLS_CERT_FILE and TLS_KEY_FILE/],
        [{ LISTEN: "127.0.0.1:0", VOLUMED_TOKEN_FILE: yield* file(writer) }, /put instead: read-only sha256:/],
        [{ LISTEN: "127.0.0.1:0", TLS_CERT_FILE }, /TLS_KEY_FILE: is not set/]
      ] as const) {
        const ended = yield* Effect.promise(() => Child.run(serve, { env }))
        assert.strictEqual(ended.code, 1, JSON.stringify(env))
        assert.match(ended.stderr, problem)
        assert.notInclude(ended.stderr, writer)
      }
      const env = { LISTEN: "127.0.0.1:0", VOLUMED_TOKEN_FILE: token_file, TLS_CERT_FILE, TLS_KEY_FILE }
      const child = yield* Effect.acquireRelease(
        Effect.sync(() => Child.start(serve, { env })),
        (started) => Effect.promise(() => Child.stop(started))
      )
      const ready = yield* Effect.promise(() => Child.said(child, "stderr", /volumed ready on (\S+);/u))
      assert.match(ready[1] ?? "", /^https:\/\/127\.0\.0\.1:[0-9]+$/)
    })
  )
})
