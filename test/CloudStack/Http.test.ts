import * as fs from "node:fs"
import * as os from "node:os"
import * as path from "node:path"
import { assert, describe, it } from "@effect/vitest"
import { Effect, Layer } from "effect"
import { Gate } from "../../reconciler/Gate.ts"
import * as Wire from "../../schema/CloudStack.ts"
import type { Settings } from "../../schema/Settings.ts"
import * as Client from "../../src/CloudStack/Client.ts"
import * as Http from "../../src/CloudStack/Http.ts"
import * as Transport from "../../src/CloudStack/Transport.ts"
import { loopback, otherName } from "../support/Certificates.ts"
import * as Fake from "./FakeCloudStack.ts"

const temporaryDirectory = Effect.acquireRelease(
  Effect.sync(() => fs.mkdtempSync(path.join(os.tmpdir(), "volumed-ca-"))),
  (made) => Effect.sync(() => fs.rmSync(made, { recursive: true }))
)

const file = (name: string, content: string) =>
  Effect.map(temporaryDirectory, (directory) => {
    const made = path.join(directory, name)
    fs.writeFileSync(made, content)
    return made
  })

/** Both kinds of call, against a real server at `api_url`. */
const client = (config: Settings["cloudstack"]) =>
  Effect.gen(function* () {
    const transport = yield* Transport.make(config)
    const read = Client.reader(transport)
    const mutate = yield* Client.mutator(transport, yield* Gate)
    return {
      zones: read("listZones", {}, (body) => Wire.page("listZones", "zone", body)),
      attach: mutate("attachVolume", { name: "Größe*~!'()" }, Effect.void, (body) =>
        Wire.jobAnswer("attachVolume", body)
      )
    }
  }).pipe(Effect.provide(Fake.openGate))

/** The client's connections and the server live as long as the test. */
const served = (
  answers: Fake.Answers,
  change: Partial<Settings["cloudstack"]> = {},
  tls: { readonly key: string; readonly cert: string } | null = null
) =>
  Effect.gen(function* () {
    const server = yield* Fake.onLoopback(answers, tls)
    const config = Fake.config({ api_url: server.url, read_timeout_ms: 500, call_timeout_ms: 500, ...change })
    const http = yield* Layer.build(Http.layer(config))
    const calling = Effect.provide(client(config), Fake.credentials(server.url))
    return { ...server, ...(yield* Effect.provide(calling, http)) }
  })

/** Reads of the clock and of zones succeed; the attach gets this. */
const attaching =
  (reply: Fake.Reply): Fake.Answers =>
  (call) =>
    call.command === "attachVolume" ? reply : Fake.ok(call.command)

describe("over a real connection", () => {
  it.scopedLive("calls arrive as they were signed, and answers come back", () =>
    Effect.gen(function* () {
      const { attach, zones, calls } = yield* served(attaching(Fake.ok("attachVolume")))
      assert.strictEqual((yield* zones).rows.length, 1)
      const accepted = yield* attach
      assert.strictEqual(accepted.answer.jobid, "7f0e6d5c-4b3a-4291-8807-f6e5d4c3b2a1")
      assert.deepInclude(calls[1]?.parameters, { command: "attachVolume", name: "Größe*~!'()" })
    })
  )

  it.scopedLive("a server that says nothing, stops in mid-body or drops the line leaves a mutation unknown (C2)", () =>
    Effect.gen(function* () {
      for (const reply of ["hang", "hang in the body", "reset", "reset in the body"] as const) {
        const { attach, calls, sockets } = yield* served(attaching(reply), { connections: 1 })
        const failure = yield* Effect.flip(attach)
        assert.strictEqual(failure._tag, "OutcomeUnknown", reply)
        assert.strictEqual(calls.filter((call) => call.command === "attachVolume").length, 1, reply)
        yield* Effect.iterate(0, { while: () => sockets.size > 0, body: (n) => Effect.as(Effect.sleep(10), n + 1) })
      }
    })
  )

  it.scopedLive("the same is unread for a read", () =>
    Effect.gen(function* () {
      for (const [reply, kind] of [
        ["hang", "timeout"],
        ["hang in the body", "timeout"],
        ["reset", "transport"],
        ["reset in the body", "transport"]
      ] as const) {
        const { zones } = yield* served(() => reply)
        const failure = yield* Effect.flip(zones)
        assert.isTrue(failure._tag === "CloudStackUnavailable" && failure.kind === kind, reply)
      }
    })
  )

  it.scopedLive("nobody listening any more is a call that never left (C1)", () =>
    Effect.gen(function* () {
      const { attach, zones, server, calls } = yield* served((call) => ({
        body: Fake.fixture(call.command),
        headers: { connection: "close" }
      }))
      yield* zones
      yield* Effect.async<void>((resume) => void server.close(() => resume(Effect.void)))
      const failure = yield* Effect.flip(attach)
      assert.isTrue(failure._tag === "CloudStackRefused" && failure.never_sent)
      assert.strictEqual(calls.length, 1)
    })
  )

  it.scopedLive("an answer without end is cut off (C8, S22)", () =>
    Effect.gen(function* () {
      const change = { read_timeout_ms: 30_000, call_timeout_ms: 30_000 }
      const { attach } = yield* served(attaching({ endlessBytes: 1024 ** 3 }), change)
      const failure = yield* Effect.flip(attach)
      assert.isTrue(failure._tag === "OutcomeUnknown" && failure.detail.includes("larger than"))
    })
  )

  it.scopedLive("a redirect is not followed, not even to the same host (C14)", () =>
    Effect.gen(function* () {
      const elsewhere = yield* Fake.onLoopback((call) => Fake.ok(call.command))
      const { attach, zones } = yield* served((call) =>
        call.command === "listCapabilities"
          ? Fake.ok("listCapabilities")
          : { status: 307, body: "", headers: { location: elsewhere.url } }
      )
      assert.strictEqual((yield* Effect.flip(zones))._tag, "CloudStackUnavailable")
      assert.strictEqual((yield* Effect.flip(attach))._tag, "OutcomeUnknown")
      assert.deepStrictEqual(elsewhere.calls, [])
    })
  )

  it.scopedLive("large error pages do not use up the connections", () =>
    Effect.gen(function* () {
      const page = "x".repeat(300_000)
      let failing = true
      const { zones, attach, sockets } = yield* served(
        (call) =>
          failing && call.command !== "listCapabilities" ? { status: 500, body: page } : Fake.ok(call.command),
        { connections: 2, read_timeout_ms: 20_000, call_timeout_ms: 20_000 }
      )
      const failures = yield* Effect.all(
        Array.from({ length: 20 }, (_, n) => Effect.flip<unknown, unknown, never>(n % 2 === 0 ? zones : attach)),
        { concurrency: "unbounded" }
      )
      assert.strictEqual(failures.length, 20)
      assert.isAtMost(sockets.size, 2)
      failing = false
      assert.strictEqual((yield* zones).rows.length, 1)
      assert.strictEqual((yield* attach).answer.jobid, "7f0e6d5c-4b3a-4291-8807-f6e5d4c3b2a1")
    })
  )

  it.scopedLive("slow mutations leave a connection to reads", () =>
    Effect.gen(function* () {
      const { zones, attach } = yield* served(attaching("hang"), { connections: 2, call_timeout_ms: 3_000 })
      yield* Effect.forkScoped(Effect.all([attach, attach, attach], { concurrency: "unbounded", mode: "either" }))
      yield* Effect.sleep(100)
      assert.strictEqual((yield* zones).rows.length, 1)
    })
  )
})

describe("TLS", () => {
  const answers = attaching(Fake.ok("attachVolume"))

  it.scopedLive("a certificate nobody vouches for, or of another name, stops a call before it is sent", () =>
    Effect.gen(function* () {
      const vouched = yield* file("ca.pem", otherName.cert)
      for (const [tls, ca_file] of [
        [loopback, null],
        [loopback, vouched],
        [otherName, vouched]
      ] as const) {
        const { attach, zones, calls } = yield* served(answers, { ca_file }, tls)
        const unread = yield* Effect.flip(zones)
        assert.strictEqual(unread._tag, "CloudStackUnavailable")
        const failure = yield* Effect.flip(attach)
        assert.isTrue(failure._tag === "CloudStackRefused" && failure.never_sent)
        assert.deepStrictEqual(calls, [])
      }
    })
  )

  it.scopedLive("is held to whatever the environment says of certificates (e4)", () =>
    Effect.gen(function* () {
      const key = "NODE_TLS_REJECT_UNAUTHORIZED"
      yield* Effect.acquireRelease(
        Effect.sync(() => {
          const before = process.env[key]
          process.env[key] = "0"
          return before
        }),
        (before) =>
          Effect.sync(() => {
            if (before === undefined) delete process.env[key]
            else process.env[key] = before
          })
      )
      const { zones, calls } = yield* served(answers, {}, loopback)
      assert.strictEqual((yield* Effect.flip(zones))._tag, "CloudStackUnavailable")
      assert.deepStrictEqual(calls, [])
    })
  )

  it.scopedLive("the CA file vouches for its own", () =>
    Effect.gen(function* () {
      const { attach } = yield* served(answers, { ca_file: yield* file("ca.pem", loopback.cert) }, loopback)
      assert.strictEqual((yield* attach).answer.jobid, "7f0e6d5c-4b3a-4291-8807-f6e5d4c3b2a1")
    })
  )
})

describe("where CloudStack may be (X6)", () => {
  const build = (change: Partial<Settings["cloudstack"]>) =>
    Effect.either(Effect.scoped(Layer.build(Http.layer(Fake.config(change)))))

  it.effect("refuses addresses that are no server's, and plain http beyond this machine", () =>
    Effect.gen(function* () {
      for (const api_url of [
        "https://169.254.169.254/client/api",
        "https://[fe80::1]/client/api",
        "https://[::ffff:169.254.169.254]/client/api",
        "https://0.0.0.0/client/api",
        "https://[::]/client/api",
        "http://192.0.2.1/client/api",
        "http://[2001:db8::1]/client/api",
        "file:///etc/passwd",
        "gopher://127.0.0.1/",
        "not a url"
      ]) {
        const built = yield* build({ api_url })
        assert.isTrue(built._tag === "Left" && built.left._tag === "Misconfigured", api_url)
      }
      for (const change of [
        { api_url: "https://192.0.2.1/client/api" },
        { api_url: "http://127.0.0.1:8080/client/api" },
        { api_url: "http://[::1]:8080/client/api" },
        { api_url: "http://192.0.2.1/client/api", allow_http: true },
        { api_url: "https://cloudstack.example.com/client/api" }
      ]) {
        assert.strictEqual((yield* build(change))._tag, "Right", change.api_url)
      }
    })
  )

  it.scopedLive("resolves a name anew and judges what comes: localhost is this machine", () =>
    Effect.gen(function* () {
      const server = yield* Fake.onLoopback((call) => Fake.ok(call.command))
      const config = Fake.config({ api_url: server.url.replace("127.0.0.1", "localhost") })
      const rows = yield* Effect.flatMap(Transport.make(config), (transport) =>
        Client.reader(transport)("listZones", {}, (body) => Wire.page("listZones", "zone", body))
      ).pipe(Effect.provide(Layer.merge(Http.layer(config), Fake.credentials(config.api_url ?? ""))))
      assert.strictEqual(rows.count, 1)
    })
  )

  it.effect("stops the start when the CA file cannot be read, naming its key", () =>
    Effect.gen(function* () {
      const directory = yield* temporaryDirectory
      const built = yield* build({ ca_file: path.join(directory, "missing.pem") })
      assert.isTrue(built._tag === "Left" && built.left.problems[0]?.key === "CLOUDSTACK_CA_FILE")
    }).pipe(Effect.scoped)
  )
})
