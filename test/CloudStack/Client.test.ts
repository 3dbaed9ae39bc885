import { inspect } from "node:util"
import { assert, describe, it } from "@effect/vitest"
import { Cause, Clock, type Duration, Effect, Fiber, Layer, Redacted, TestClock } from "effect"
import { Gate } from "../../reconciler/Gate.ts"
import * as Wire from "../../schema/CloudStack.ts"
import { GateClosed, PreconditionLost } from "../../schema/Errors.ts"
import type { Settings } from "../../schema/Settings.ts"
import * as Client from "../../src/CloudStack/Client.ts"
import * as Signature from "../../src/CloudStack/Signature.ts"
import * as Transport from "../../src/CloudStack/Transport.ts"
import * as Fake from "./FakeCloudStack.ts"

const readZones = (read: Client.Read) => read("listZones", {}, (body) => Wire.page("listZones", "zone", body))

/** Each mutation with its decoder, the way the port uses it. */
const mutations = {
  createVolume: (body: unknown) => Wire.createAnswer(body),
  attachVolume: (body: unknown) => Wire.jobAnswer("attachVolume", body),
  detachVolume: (body: unknown) => Wire.jobAnswer("detachVolume", body),
  deleteVolume: (body: unknown) => Wire.deleteAnswer(body),
  createTags: (body: unknown) => Wire.jobAnswer("createTags", body),
  deleteTags: (body: unknown) => Wire.jobAnswer("deleteTags", body)
} as const
const commands = Object.keys(mutations) as ReadonlyArray<Client.MutatingCommand>

const send = (mutate: Client.Mutate, command: Client.MutatingCommand) =>
  mutate<unknown>(command, { id: "c6ef61d1-300f-442a-86e5-1f2a3b4c5d6e" }, Effect.void, mutations[command])

const reading = (config = Fake.config()) => Effect.map(Transport.make(config), Client.reader)
const mutating = (config = Fake.config()) =>
  Effect.flatMap(Transport.make(config), (transport) => Effect.flatMap(Gate, (gate) => Client.mutator(transport, gate)))

const DATE = "Sun, 06 Nov 1994 08:49:37 GMT"
const dated = (reply: Fake.Reply): Fake.Reply =>
  typeof reply === "object" && "body" in reply ? { ...reply, headers: { date: DATE, ...reply.headers } } : reply

/** The mutation's answer is `reply`; the look at the clock before it succeeds. */
const whenAnswered = (
  reply: Fake.Reply | ReadonlyArray<Fake.Reply>,
  command: Client.MutatingCommand,
  change: Partial<Settings["cloudstack"]> = {}
) => {
  const replies = Array.isArray(reply) ? reply : [reply]
  let n = 0
  const fake = Fake.inMemory((call) =>
    call.command === "listCapabilities" ? dated(Fake.ok("listCapabilities")) : (replies[n++] ?? "hang")
  )
  const run = mutating(Fake.config(change)).pipe(
    Effect.flatMap((mutate) => send(mutate, command)),
    Effect.either,
    Effect.provide(Layer.merge(fake.layer, Fake.openGate))
  )
  const sent = () => fake.calls.filter((call) => call.command === command).length
  return { run, sent }
}

/** Lets time pass in such steps until the effect ends. */
const whilePassing = <A, E, R>(step: Duration.DurationInput, effect: Effect.Effect<A, E, R>) =>
  Effect.gen(function* () {
    const fiber = yield* Effect.fork(effect)
    const ended = yield* Effect.forkDaemon(Fiber.await(fiber))
    // In-memory answers end within a few turns of the event loop; only what waits needs the clock.
    for (let turn = 0; turn < 5; turn++) yield* Effect.promise(() => new Promise((resolve) => setImmediate(resolve)))
    while ((yield* Fiber.poll(ended))._tag === "None") yield* TestClock.adjust(step)
    return yield* Fiber.join(fiber)
  })

const outcome = (command: Client.MutatingCommand, reply: Fake.Reply | ReadonlyArray<Fake.Reply>) =>
  Effect.gen(function* () {
    const { run, sent } = whenAnswered(reply, command)
    const result = yield* whilePassing("10 seconds", run)
    return { tag: result._tag === "Right" ? "Accepted" : result.left._tag, result, sent: sent() }
  })

describe("a mutation is accepted, definitely refused, or of unknown outcome (C7)", () => {
  const maintenance = "Maintenance or Shutdown has been initiated on this management server. Can not accept new jobs"
  const everywhere = {
    400: "CloudStackRefused",
    401: "CloudStackRefused",
    405: "CloudStackRefused",
    411: "CloudStackRefused",
    429: "CloudStackRefused",
    430: "CloudStackRefused",
    431: "CloudStackRefused",
    432: "CloudStackRefused",
    511: "CloudStackRefused",
    530: "OutcomeUnknown",
    531: "CloudStackRefused",
    532: "CloudStackRefused",
    533: "OutcomeUnknown",
    534: "OutcomeUnknown",
    535: "CloudStackRefused",
    536: "OutcomeUnknown",
    537: "OutcomeUnknown"
  } as const

  it.effect("for every error code and every command", () =>
    Effect.gen(function* () {
      for (const command of commands) {
        for (const [code, tag] of Object.entries(everywhere)) {
          const reply = Fake.error(command, Number(code), "no reason")
          const { tag: found, result, sent } = yield* outcome(command, [reply, reply])
          assert.strictEqual(found, tag, `${command} ${code}`)
          assert.strictEqual(sent, code === "401" ? 2 : 1, `${command} ${code} is sent once, a 401 twice`)
          if (result._tag === "Left" && result.left._tag === "CloudStackRefused") {
            assert.strictEqual(result.left.code, Number(code))
            assert.strictEqual(result.left.limit, code === "532" || code === "535")
            assert.isFalse(result.left.never_sent)
          }
        }
      }
    })
  )

  it.effect(
    "maintenance refuses a job before it exists, but createVolume's row may stand, and delete works at once (C6)",
    () =>
      Effect.gen(function* () {
        for (const command of commands) {
          const { tag } = yield* outcome(command, Fake.error(command, 503, maintenance))
          const leavesSomething = command === "createVolume" || command === "deleteVolume"
          assert.strictEqual(tag, leavesSomething ? "OutcomeUnknown" : "CloudStackRefused", command)
          const other = yield* outcome(command, Fake.error(command, 503, "Service Unavailable"))
          assert.strictEqual(other.tag, "OutcomeUnknown", command)
        }
      })
  )

  it.effect("every known code is in this table", () =>
    Effect.sync(() => {
      const known = Object.values(Wire.ApiErrorCode).filter((code) => code !== 503)
      assert.deepStrictEqual(known.map(String).sort(), Object.keys(everywhere).sort())
    })
  )

  it.effect("whatever is not CloudStack's own word leaves it unknown (C2, C5, C8)", () =>
    Effect.gen(function* () {
      for (const command of commands) {
        const key = `${command.toLowerCase()}response`
        const other = command === "attachVolume" ? "detachVolume" : "attachVolume"
        const strange: ReadonlyArray<Fake.Reply> = [
          { status: 200, body: "" },
          { status: 200, body: "<html>log in</html>" },
          { status: 200, body: `{"${key}":{"jobid":"7f0e6d5c` },
          { status: 200, body: `{"${key}":{"jobid":"7f0e6d5c-4b3a-4291-8807-f6e5d4c3b2a1","x":"\u0001"}}` },
          Fake.json({ [key]: {} }),
          Fake.json({ [key]: { success: false } }),
          Fake.json({ [key]: { errorcode: 431, errortext: "in a 200" } }),
          Fake.ok(other),
          Fake.json({ [key]: { jobid: "7f0e6d5c-4b3a-4291-8807-f6e5d4c3b2a1" } }, 202),
          Fake.json({}, 500),
          { status: 502, body: "<html>Bad Gateway</html>" },
          { status: 504, body: "" },
          { status: 431, body: "" },
          { status: 401, body: "<html>proxy wants you</html>" },
          { status: 403, body: "" },
          { status: 404, body: "" },
          { status: 429, body: "slow down" },
          Fake.error(other, 431, "another command's envelope"),
          Fake.json({ [key]: { errorcode: 530, errortext: "not the status" } }, 431),
          Fake.json({ [key]: { errorcode: "431" } }, 431),
          { status: 302, body: "", headers: { location: "http://127.0.0.1/" } },
          "hang",
          { fails: { code: "ECONNRESET", syscall: "read" } },
          { fails: { code: "EPIPE", syscall: "write" } },
          { fails: { code: "ETIMEDOUT" } },
          { fails: { code: "UND_ERR_SOCKET" } }
        ]
        for (const reply of strange) {
          const { tag, sent } = yield* outcome(command, [reply, reply, reply])
          assert.strictEqual(tag, "OutcomeUnknown", `${command} ${JSON.stringify(reply)}`)
          assert.strictEqual(sent, 1, `${command} ${JSON.stringify(reply)}`)
        }
      }
    })
  )

  it.effect("what never left is refused as never sent (C1)", () =>
    Effect.gen(function* () {
      for (const fails of [
        { code: "ECONNREFUSED", syscall: "connect" },
        { code: "ENOTFOUND", syscall: "getaddrinfo" },
        { code: "EHOSTUNREACH", syscall: "connect" },
        { code: "UND_ERR_CONNECT_TIMEOUT" },
        { code: "DEPTH_ZERO_SELF_SIGNED_CERT" }
      ]) {
        const { result, sent } = yield* outcome("attachVolume", { fails })
        assert.isTrue(
          result._tag === "Left" && result.left._tag === "CloudStackRefused" && result.left.never_sent,
          fails.code
        )
        assert.strictEqual(sent, 1)
      }
    })
  )

  it.effect("a 401 is tried once more with a new signature", () =>
    Effect.gen(function* () {
      const { tag, sent } = yield* outcome("attachVolume", [
        Fake.error("attachVolume", 401, "unable to verify user credentials and/or request signature"),
        Fake.ok("attachVolume")
      ])
      assert.strictEqual(tag, "Accepted")
      assert.strictEqual(sent, 2)
    })
  )

  it.effect("a 401 after the call's own life proves nothing: a proxy may have delivered it twice (C10)", () =>
    Effect.gen(function* () {
      const late: Fake.Reply = {
        status: 401,
        body: Fake.fixture("401").replace("listvolumes", "attachvolume"),
        delay_ms: Transport.LIFETIME_MS
      }
      const { run, sent } = whenAnswered(late, "attachVolume", { call_timeout_ms: 300_000 })
      const fiber = yield* Effect.fork(run)
      yield* TestClock.adjust("10 minutes")
      const result = yield* Fiber.join(fiber)
      assert.isTrue(result._tag === "Left" && result.left._tag === "OutcomeUnknown")
      assert.strictEqual(sent(), 1)
    })
  )

  it.effect("a time-out ends request and body together, and says until when the call may still act (C2, C3)", () =>
    Effect.gen(function* () {
      yield* TestClock.setTime(1_000_000)
      const { result } = yield* outcome("deleteVolume", "hang")
      assert.isTrue(result._tag === "Left" && result.left._tag === "OutcomeUnknown")
      if (result._tag === "Left" && result.left._tag === "OutcomeUnknown") {
        assert.strictEqual(result.left.expires_at, 1_000_000 + Transport.LIFETIME_MS)
      }
    })
  )
})

describe("before a mutation leaves", () => {
  const closing = (afterChecks: number) => {
    let checks = 0
    return Layer.succeed(Gate, {
      check: Effect.suspend(() =>
        checks++ < afterChecks ? Effect.void : Effect.fail(new GateClosed({ detail: "hold" }))
      ),
      reason: Effect.succeed("hold")
    })
  }
  const answers: Fake.Answers = (call) =>
    dated(call.command === "listCapabilities" ? Fake.ok("listCapabilities") : Fake.error(call.command, 401, "who?"))

  it.effect("a closed gate holds it back, also between a 401 and the second try (S16)", () =>
    Effect.gen(function* () {
      for (const open of [0, 1]) {
        const fake = Fake.inMemory(answers)
        const failure = yield* mutating().pipe(
          Effect.flatMap((mutate) => Effect.flip(send(mutate, "detachVolume"))),
          Effect.provide(Layer.merge(fake.layer, closing(open)))
        )
        assert.strictEqual(failure._tag, "GateClosed")
        assert.strictEqual(fake.calls.filter((call) => call.command === "detachVolume").length, open)
      }
    })
  )

  it.effect("the guard is asked last, after a gate that took its time (S4)", () =>
    Effect.gen(function* () {
      const fake = Fake.inMemory(answers)
      const slowGate = Layer.succeed(Gate, { check: Effect.sleep("3 seconds"), reason: Effect.succeed(null) })
      const fiber = yield* mutating().pipe(
        Effect.flatMap((mutate) => {
          const guard = Effect.flatMap(Clock.currentTimeMillis, (now) =>
            now >= 3_000 ? Effect.fail(new PreconditionLost({ detail: "too old" })) : Effect.void
          )
          return Effect.flip(mutate("detachVolume", {}, guard, mutations.detachVolume))
        }),
        Effect.provide(Layer.merge(fake.layer, slowGate)),
        Effect.fork
      )
      yield* TestClock.adjust("10 seconds")
      assert.strictEqual((yield* Fiber.join(fiber))._tag, "PreconditionLost")
      assert.isFalse(fake.calls.some((call) => call.command === "detachVolume"))
    })
  )

  it.effect("CloudStack's clock is read, and the call lives a minute by that clock and by ours (C9)", () =>
    Effect.gen(function* () {
      yield* TestClock.setTime(Date.UTC(2026, 0, 1))
      const fake = Fake.inMemory((call) =>
        dated(Fake.ok(call.command === "listCapabilities" ? "listCapabilities" : "attachVolume"))
      )
      const accepted = yield* mutating().pipe(
        Effect.flatMap((mutate) => send(mutate, "attachVolume")),
        Effect.provide(Layer.merge(fake.layer, Fake.openGate))
      )
      assert.deepStrictEqual(
        fake.calls.map((call) => call.command),
        ["listCapabilities", "attachVolume"]
      )
      assert.strictEqual(fake.calls[1]?.parameters["expires"], new Date(Date.parse(DATE) + 60_000).toISOString())
      assert.strictEqual(accepted.submitted_at, Date.UTC(2026, 0, 1))
      assert.strictEqual(accepted.expires_at, Date.UTC(2026, 0, 1) + 60_000)
    })
  )

  it.effect("an unreachable CloudStack is found out by that read: never sent", () =>
    Effect.gen(function* () {
      const fake = Fake.inMemory(() => "hang")
      const fiber = yield* mutating().pipe(
        Effect.flatMap((mutate) => Effect.flip(send(mutate, "createVolume"))),
        Effect.provide(Layer.merge(fake.layer, Fake.openGate)),
        Effect.fork
      )
      yield* TestClock.adjust("10 seconds")
      const failure = yield* Fiber.join(fiber)
      assert.isTrue(failure._tag === "CloudStackRefused" && failure.never_sent)
      assert.deepStrictEqual(
        fake.calls.map((call) => call.command),
        ["listCapabilities"]
      )
    })
  )

  it.effect("a wall clock that was set back or forth does not lengthen its life (T1)", () =>
    Effect.gen(function* () {
      const fake = Fake.inMemory((call) =>
        call.command === "listZones" ? dated(Fake.ok("listZones")) : Fake.ok("attachVolume")
      )
      const jumped: Clock.Clock = Object.assign(Object.create(yield* Effect.clock), {
        currentTimeMillis: Effect.succeed(1e12),
        unsafeCurrentTimeMillis: () => 1e12
      })
      yield* Effect.gen(function* () {
        const transport = yield* Transport.make(Fake.config())
        yield* readZones(Client.reader(transport))
        const mutate = yield* Client.mutator(transport, yield* Gate)
        yield* Effect.withClock(send(mutate, "attachVolume"), jumped)
      }).pipe(Effect.provide(Layer.merge(fake.layer, Fake.openGate)))
      assert.strictEqual(fake.calls[1]?.parameters["expires"], new Date(Date.parse(DATE) + 60_000).toISOString())
    })
  )
})

describe("a call", () => {
  it.effect("is a form that is signed as the server will check it", () =>
    Effect.gen(function* () {
      const fake = Fake.inMemory(() => Fake.ok("listZones"))
      yield* Effect.flatMap(reading(), readZones).pipe(Effect.provide(fake.layer))
      const call = fake.calls[0]
      assert.match(call?.contentType ?? "", /^application\/x-www-form-urlencoded/)
      const { signature, ...parameters } = call?.parameters ?? {}
      assert.strictEqual(signature, Signature.signature(parameters, Redacted.make(Fake.SECRET_KEY)))
      assert.deepInclude(parameters, {
        command: "listZones",
        response: "json",
        signatureversion: "3",
        apikey: Fake.API_KEY
      })
      assert.deepStrictEqual(
        Object.keys(parameters),
        Object.keys(parameters).map((name) => name.toLowerCase())
      )
    })
  )
})

describe("a read", () => {
  /** All that is sent until the read ends, and when (ms). */
  const tries = (answers: ReadonlyArray<Fake.Reply>) =>
    Effect.gen(function* () {
      const at: Array<number> = []
      const clock = yield* Effect.clock
      const fake = Fake.inMemory((_, n) => {
        at.push(clock.unsafeCurrentTimeMillis())
        return answers[n - 1] ?? "hang"
      })
      const run = Effect.flatMap(reading(), readZones).pipe(
        Effect.either,
        Effect.provide(fake.layer),
        Effect.withRandomFixed([0])
      )
      const result = yield* whilePassing(50, run)
      return {
        at,
        end:
          result._tag === "Right" ? "read" : result.left._tag === "CloudStackUnavailable" ? result.left.kind : "refused"
      }
    })
  const good = Fake.ok("listZones")

  it.effect(
    "is tried three times while CloudStack is throttling, in maintenance, broken or away, each time later (C6)",
    () =>
      Effect.gen(function* () {
        const cases: ReadonlyArray<readonly [Fake.Reply, string]> = [
          [Fake.error("listZones", 429, "The given user has reached his/her account api limit."), "throttled"],
          [{ status: 429, body: "proxy" }, "throttled"],
          [Fake.error("listZones", 503, "Maintenance"), "maintenance"],
          [Fake.error("listZones", 530, "Internal error"), "refused"],
          [{ status: 502, body: "<html>" }, "transport"],
          [{ fails: { code: "ECONNREFUSED", syscall: "connect" } }, "transport"],
          [{ fails: { code: "ECONNRESET" } }, "transport"]
        ]
        for (const [reply, kind] of cases) {
          const failing = yield* tries([reply, reply, reply, good])
          assert.strictEqual(failing.end, kind)
          assert.deepStrictEqual(
            failing.at.map((at) => at - (failing.at[0] ?? 0)),
            [0, 250, 750],
            kind
          )
          const recovering = yield* tries([reply, reply, good])
          assert.strictEqual(recovering.end, "read")
        }
      })
  )

  it.effect("waits as long as the server asks, and gives up when that is too long (C6)", () =>
    Effect.gen(function* () {
      const asking = (reply: Fake.Reply) =>
        Effect.map(tries([reply, good]), ({ at, end }) => [(at[1] ?? 0) - (at[0] ?? 0), end])
      const limited = { status: 429, body: Fake.fixture("listVolumes-429").replace("listvolumes", "listzones") }
      assert.deepStrictEqual(yield* asking(limited), [700, "read"])
      assert.deepStrictEqual(yield* asking({ status: 503, body: "", headers: { "retry-after": "2" } }), [2_000, "read"])
      const patient = yield* tries([{ status: 429, body: "", headers: { "retry-after": "3600" } }, good])
      assert.deepStrictEqual([patient.at.length, patient.end], [1, "throttled"])
    })
  )

  it.effect("is tried twice when its signature was refused, and once when trying again would not help", () =>
    Effect.gen(function* () {
      const unauthorized = Fake.error("listZones", 401, "unable to verify user credentials and/or request signature")
      assert.deepStrictEqual((yield* tries([unauthorized, good])).end, "read")
      const refused = yield* tries([unauthorized, unauthorized, good])
      assert.deepStrictEqual([refused.at.length, refused.end], [2, "unauthorized"])
      const hopeless: ReadonlyArray<readonly [Fake.Reply, string]> = [
        [Fake.error("listZones", 431, "no"), "refused"],
        [Fake.error("listZones", 432, "no"), "refused"],
        [{ status: 200, body: "" }, "undecodable"],
        [{ status: 200, body: "<html>log in</html>" }, "undecodable"],
        [Fake.ok("listVolumes"), "undecodable"],
        [{ status: 301, body: "", headers: { location: "/" } }, "transport"],
        [{ status: 404, body: "" }, "transport"],
        ["hang", "timeout"]
      ]
      for (const [reply, kind] of hopeless) {
        const once = yield* tries([reply, good])
        assert.deepStrictEqual([once.at.length, once.end], [1, kind])
      }
    })
  )

  it.effect("whose signature is refused while the clocks differ says by how much (C9)", () =>
    Effect.gen(function* () {
      yield* TestClock.setTime(Date.parse(DATE) + 3_600_000)
      const fake = Fake.inMemory(() => dated(Fake.error("listZones", 401, "unable to verify")))
      const failure = yield* Effect.flatMap(reading(), readZones).pipe(Effect.flip, Effect.provide(fake.layer))
      assert.deepInclude(failure, {
        kind: "clock_skew",
        detail: "unable to verify: CloudStack's clock is 3600 s behind ours"
      })
      assert.strictEqual(fake.calls.length, 2)
      assert.strictEqual(fake.calls[1]?.parameters["expires"], new Date(Date.parse(DATE) + 60_000).toISOString())
    })
  )
})

describe("secrets (S20, X7)", () => {
  const leaks = (text: string) => /CANARY|127\.0\.0\.1/.exec(text)?.[0] ?? null
  const written = (failure: unknown) =>
    [
      inspect(failure, { depth: 20, showHidden: true }),
      JSON.stringify(failure),
      Cause.pretty(Cause.fail(failure)),
      String(failure)
    ].join("\n")

  it.effect("are in no error, however the call failed, even where the server repeats the request", () =>
    Effect.gen(function* () {
      const echo = (call: Fake.Received, status: number): Fake.Reply =>
        Fake.json(
          { [`${call.command.toLowerCase()}response`]: { errorcode: status, errortext: `you sent ${call.body}` } },
          status
        )
      const failing: ReadonlyArray<(call: Fake.Received) => Fake.Reply> = [
        (call) => echo(call, 401),
        (call) => echo(call, 431),
        (call) => echo(call, 530),
        (call) => ({ status: 200, body: call.body }),
        (call) => ({ status: 200, body: `{"${call.body}` }),
        (call) => ({ status: 500, body: call.body }),
        () => ({ fails: { code: "ECONNRESET" } }),
        () => ({ fails: { code: "ECONNREFUSED", syscall: "connect" } }),
        () => "hang"
      ]
      for (const answer of failing) {
        const fake = Fake.inMemory(answer)
        const both = Effect.gen(function* () {
          const transport = yield* Transport.make(Fake.config())
          const mutate = yield* Client.mutator(transport, yield* Gate)
          return [
            yield* Effect.flip(readZones(Client.reader(transport))),
            yield* Effect.flip(send(mutate, "attachVolume"))
          ]
        }).pipe(Effect.provide(Layer.merge(fake.layer, Fake.openGate)))
        for (const failure of yield* whilePassing("1 seconds", both)) {
          const text = written(failure)
          assert.isNull(leaks(text), text)
          for (const { parameters } of fake.calls) {
            const signature = parameters["signature"] ?? "none"
            assert.notInclude(text, signature)
            assert.notInclude(text, encodeURIComponent(signature))
          }
        }
      }
    })
  )
})
