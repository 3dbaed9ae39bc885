import { assert, describe, it } from "@effect/vitest"
import { Clock, Effect, Fiber, Layer, Redacted, Ref, TestClock } from "effect"
import { CloudStack, CloudStackRead } from "../../reconciler/CloudStack.ts"
import * as Intent from "../../reconciler/Intent.ts"
import type { Create } from "../../schema/Action.ts"
import type { Name, OfferingId, OperationId, Uid, VolumeId, ZoneId } from "../../schema/Ids.ts"
import { Credentials } from "../../src/CloudStack/Credentials.ts"
import * as Live from "../../src/CloudStack/Live.ts"
import * as Fake from "./FakeCloudStack.ts"

/** What the fixture createVolume answers with. */
const CHOSEN = "d94f0c3a-7b6e-4a52-b1c8-0e9f8d7c6b5a" as VolumeId
const OTHER = "c6ef61d1-300f-442a-86e5-1f2a3b4c5d6e" as VolumeId
const HOUR = 3_600_000

const action: Create = {
  _tag: "Create",
  uid: "11111111-2222-4333-8444-555555555555" as Uid,
  name: "disk" as Name,
  generation: 1,
  cause: "declaration",
  reason: "",
  destructive: false,
  cloudstack_name: "disk",
  size_gib: 5,
  disk_offering_id: "c813c642-d946-49e1-9289-c616dd70206a" as OfferingId,
  zone_id: "057e86db-c726-4d8c-ab1f-75c5f55d1881" as ZoneId,
  existing_ids: [],
  custom_id: CHOSEN
}
const intent = (custom_id: VolumeId | null = CHOSEN) =>
  Intent.unsafeMake<"Create">("op-12345678-1234-1234-1234-123456789012" as OperationId, { ...action, custom_id })

const apis = (...names: ReadonlyArray<string>) =>
  Fake.json({
    listapisresponse: { count: 1, api: [{ name: "createVolume", params: names.map((name) => ({ name })) }] }
  })
const account = Fake.json({ listaccountsresponse: { count: 1, account: [{ id: "x", accounttype: 1 }] } })
const slow: Fake.Reply = {
  body: JSON.stringify({ listaccountsresponse: { count: 1, account: [{ id: "x" }] } }),
  delay_ms: 1_000
}
const nobody = Fake.json({ listaccountsresponse: {} })
const known = apis("name", "customid")

const answering =
  (replies: Readonly<Record<string, Fake.Reply>>): Fake.Answers =>
  ({ command }) =>
    replies[command] ?? Fake.ok(command)

const rootAdmin = { listApis: known, listAccounts: account }

/** Both ports on a CloudStack that answers so, by keys that may be changed. */
const on = <A, E>(
  answers: Fake.Answers,
  use: (lab: {
    readonly reads: CloudStackRead["Type"]
    readonly cloudstack: CloudStack["Type"]
    readonly calls: ReadonlyArray<Fake.Received>
    readonly rotate: (api_key: string) => Effect.Effect<void>
  }) => Effect.Effect<A, E>
) =>
  Effect.gen(function* () {
    const fake = Fake.inMemory(answers)
    const key = yield* Ref.make(Fake.API_KEY)
    const rotating = Layer.succeed(Credentials, {
      current: Effect.map(Ref.get(key), (api_key) => ({
        credential: {
          api_url: "http://127.0.0.1:1/client/api",
          api_key: Redacted.make(api_key),
          secret_key: Redacted.make(Fake.SECRET_KEY)
        },
        zone: null,
        domain: null,
        source: "the test"
      })),
      problem: Effect.succeed(null),
      refused: () => Effect.void
    })
    const layer = Live.layer(Fake.config()).pipe(
      Layer.provide(rotating),
      Layer.provide(fake.layer),
      Layer.provide(Fake.openGate)
    )
    return yield* Effect.gen(function* () {
      const reads = yield* CloudStackRead
      const cloudstack = yield* CloudStack
      return yield* use({ reads, cloudstack, calls: fake.calls, rotate: (next) => Ref.set(key, next) })
    }).pipe(Effect.provide(layer))
  })

const asked = (calls: ReadonlyArray<Fake.Received>) => calls.filter(({ command }) => command === "listApis").length

describe("whether an account may choose ids", () => {
  const cases = [
    ["a root admin's account may", rootAdmin, true],
    ["a user's account may not, though the parameter is shown to it", { ...rootAdmin, listAccounts: nobody }, false],
    ["nobody may where the server does not name the parameter", { ...rootAdmin, listApis: apis("name") }, false],
    [
      "nobody may where the server may not be asked for its parameters",
      { ...rootAdmin, listApis: Fake.error("listApis", 432, "not available for the account") },
      false
    ],
    [
      "where the role may not be asked for, the first create shows it",
      { ...rootAdmin, listAccounts: Fake.error("listAccounts", 432, "not available for the account") },
      true
    ],
    ["nobody may while the answer is no answer", { ...rootAdmin, listApis: { body: "<html></html>" } }, false],
    ["nobody may on another command's parameters", { ...rootAdmin, listApis: Fake.ok("listZones") }, false]
  ] as const

  it.effect.each(cases.map(([name, replies, allowed]) => ({ name, replies, allowed })))(
    "$name",
    ({ replies, allowed }) =>
      on(answering(replies), ({ reads }) => Effect.map(reads.customIds, (found) => assert.strictEqual(found, allowed)))
  )

  it.effect("asks which accounts of the caller are root admins, and for one command's parameters", () =>
    on(answering(rootAdmin), ({ reads, calls }) =>
      Effect.map(reads.customIds, () => {
        assert.deepInclude(calls[0]?.parameters, { command: "listApis", name: "createVolume" })
        assert.deepInclude(calls[1]?.parameters, { command: "listAccounts", accounttype: "1", details: "min" })
      })
    )
  )

  it.effect("is asked once in an hour, and within a minute again where there was no answer (S22)", () =>
    Effect.gen(function* () {
      let down = true
      const answers: Fake.Answers = (call) =>
        down ? { status: 502, body: "<html></html>" } : answering(rootAdmin)(call, 0)
      yield* on(answers, ({ reads, calls }) =>
        Effect.gen(function* () {
          assert.isFalse(yield* reads.customIds)
          down = false
          assert.isFalse(yield* reads.customIds)
          assert.strictEqual(asked(calls), 1)
          yield* TestClock.adjust(60_000)
          assert.isTrue(yield* reads.customIds)
          yield* TestClock.adjust(HOUR - 1)
          assert.isTrue(yield* reads.customIds)
          assert.strictEqual(asked(calls), 2)
          yield* TestClock.adjust(1)
          yield* reads.customIds
          assert.strictEqual(asked(calls), 3)
        })
      )
    })
  )

  it.effect("is asked anew of other keys", () =>
    Effect.gen(function* () {
      const answers: Fake.Answers = ({ command, parameters }) =>
        command === "listAccounts" ? (parameters["apikey"] === "a user's" ? nobody : account) : known
      yield* on(answers, ({ reads, rotate }) =>
        Effect.gen(function* () {
          assert.isTrue(yield* reads.customIds)
          yield* rotate("a user's")
          assert.isFalse(yield* reads.customIds)
          yield* rotate(Fake.API_KEY)
          assert.isTrue(yield* reads.customIds)
        })
      )
    })
  )

  it.effect("that was found with keys which changed meanwhile is no word on the new ones", () =>
    Effect.gen(function* () {
      const answers: Fake.Answers = ({ command, parameters }) => {
        if (command !== "listAccounts") return known
        return parameters["apikey"] === Fake.API_KEY ? slow : nobody
      }
      yield* on(answers, ({ reads, rotate, calls }) =>
        Effect.gen(function* () {
          const asking = yield* Effect.fork(reads.customIds)
          while (asked(calls) === 0 || calls.at(-1)?.command !== "listAccounts") yield* Effect.yieldNow()
          yield* rotate("a user's")
          yield* TestClock.adjust(1_000)
          yield* Fiber.join(asking)
          assert.isFalse(yield* reads.customIds)
        })
      )
    })
  )
})

describe("a create with a chosen id", () => {
  const sent = (calls: ReadonlyArray<Fake.Received>) =>
    calls.filter(({ command }) => command === "createVolume").map(({ parameters }) => parameters["customid"])

  it.effect("sends the id of its intent, and none where its intent has none (S8)", () =>
    on(answering(rootAdmin), ({ cloudstack, calls }) =>
      Effect.gen(function* () {
        assert.strictEqual((yield* cloudstack.create(intent())).volume_id, CHOSEN)
        yield* cloudstack.create(intent(null))
        assert.deepStrictEqual(sent(calls), [CHOSEN, undefined])
      })
    )
  )

  it.effect("that is denied for the id alone was not carried out: it is planned anew, without (C7)", () => {
    const text = "Please check your permissions, you are not allowed to create/update custom id"
    return on(
      answering({ ...rootAdmin, createVolume: Fake.error("createVolume", 531, text) }),
      ({ cloudstack, reads, calls }) =>
        Effect.gen(function* () {
          assert.isTrue(yield* reads.customIds)
          const failure = yield* Effect.flip(cloudstack.create(intent()))
          assert.strictEqual(failure._tag, "PreconditionLost")
          assert.lengthOf(sent(calls), 1)
          assert.isFalse(yield* reads.customIds)
        })
    )
  })

  it.effect("that is denied for anything else is refused, and the account may choose ids as before (C7)", () =>
    on(
      answering({ ...rootAdmin, createVolume: Fake.error("createVolume", 531, "no access to that project") }),
      ({ cloudstack, reads }) =>
        Effect.gen(function* () {
          assert.strictEqual((yield* Effect.flip(cloudstack.create(intent())))._tag, "CloudStackRefused")
          assert.isTrue(yield* reads.customIds)
        })
    )
  )

  it.effect("whose id is taken may have taken it itself: the outcome is unknown (C10)", () => {
    const text = `UUID: ${CHOSEN} already exists so can't create/update with custom id`
    return on(answering({ ...rootAdmin, createVolume: Fake.error("createVolume", 431, text) }), ({ cloudstack }) =>
      Effect.gen(function* () {
        const failure = yield* Effect.flip(cloudstack.create(intent()))
        assert.strictEqual(failure._tag, "OutcomeUnknown")
        if (failure._tag !== "OutcomeUnknown") return
        assert.strictEqual(failure.code, 431)
        assert.isAtLeast(failure.expires_at, yield* Clock.currentTimeMillis)
      })
    )
  })

  it.effect("that was not heeded is known by the id that was given, and no other is chosen (S9)", () =>
    on(answering(rootAdmin), ({ cloudstack, reads }) =>
      Effect.gen(function* () {
        assert.strictEqual((yield* cloudstack.create(intent(OTHER))).volume_id, CHOSEN)
        assert.isFalse(yield* reads.customIds)
      })
    )
  )
})
