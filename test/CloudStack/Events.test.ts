import { assert, describe, it } from "@effect/vitest"
import { Effect, Layer } from "effect"
import { type CloudEventFilter, CloudStackRead } from "../../reconciler/CloudStack.ts"
import type { VolumeId } from "../../schema/Ids.ts"
import * as Live from "../../src/CloudStack/Live.ts"
import * as Fake from "./FakeCloudStack.ts"

const VOLUME = "c6ef61d1-300f-442a-86e5-1f2a3b4c5d6e" as VolumeId
const DELETED = "0a1b2c3d-4e5f-4a6b-8c7d-9e0f1a2b3c4d" as VolumeId
const NOON = Date.UTC(2026, 2, 1, 12)

const reading = (answers: Fake.Answers, filter: CloudEventFilter, config = Fake.config()) => {
  const fake = Fake.inMemory(answers)
  return Effect.flatMap(CloudStackRead, (reads) => Effect.either(reads.events(filter))).pipe(
    Effect.provide(Layer.provide(Live.layerRead(config), fake.layer)),
    Effect.map((result) => ({ result, calls: fake.calls }))
  )
}

const recorded: Fake.Answers = () => Fake.ok("listEvents")
const found = (answers: Fake.Answers, filter: CloudEventFilter) =>
  Effect.map(reading(answers, filter), ({ result }) => (result._tag === "Right" ? result.right : []))

/** Rows as a server that means no good might write them, each beside one that is right. */
const rows = (...event: ReadonlyArray<unknown>) => Fake.json({ listeventsresponse: { count: event.length, event } })
const row = {
  id: "3f9f0f0e-53d6-4d3c-9d0b-8b0b5d9b1c01",
  type: "VOLUME.DETACH",
  created: "2026-03-01T12:00:05+0000",
  username: "alice",
  resourceid: VOLUME,
  resourcetype: "Volume"
}

describe("what was done to volumes", () => {
  it.effect("comes newest first, with who did it and to which volume", () =>
    Effect.gen(function* () {
      const events = yield* found(recorded, { since: NOON })
      assert.deepStrictEqual(
        events.map(({ account, at, failed, type, user, volume_id }) => [
          at - NOON,
          type,
          failed,
          user,
          account,
          volume_id
        ]),
        [
          [11_000, "VOLUME.CREATE", false, null, null, null],
          // Of a VM's removal, which names no volume in old versions.
          [10_000, "VOLUME.DETACH", false, "system", "system", null],
          // Before 4.17 the volume stands in the words alone.
          [9_000, "VOLUME.DELETE", true, "bob", "migration", DELETED],
          [8_000, "VOLUME.DETACH", false, "alice", "acme", VOLUME],
          [5_000, "VOLUME.DETACH", false, "alice", "acme", VOLUME]
        ]
      )
      assert.strictEqual(events[3]?.action_id, events[4]?.id)
    })
  )

  it.effect("is asked for in one call, from half a day earlier, for the server reads dates in its own zone", () =>
    Effect.gen(function* () {
      const project_id = "5b9c9e6f-8e8e-4c55-8b3d-0a6a4f3e2d1c"
      const { calls } = yield* reading(recorded, { since: NOON }, Fake.config({ project_id }))
      assert.strictEqual(calls.length, 1)
      const { parameters } = calls[0] ?? { parameters: {} }
      const asked = { listall: "true", projectid: project_id, keyword: "VOLUME.", page: "1", pagesize: "500" }
      assert.deepInclude(parameters, { ...asked, startdate: "2026-03-01 00:00:00" })
      assert.notProperty(parameters, "resourceid")
    })
  )

  it.effect("leaves out what is older, of another type, or of other volumes, whatever the server sends", () =>
    Effect.gen(function* () {
      const at = (events: ReadonlyArray<{ readonly at: number }>) => events.map((event) => event.at - NOON)
      assert.deepStrictEqual(at(yield* found(recorded, { since: NOON + 10_000 })), [11_000, 10_000])
      assert.deepStrictEqual(at(yield* found(recorded, { since: NOON, types: ["VOLUME.CREATE"] })), [11_000])
      const { calls, result } = yield* reading(recorded, { since: NOON, volume_ids: [VOLUME] })
      assert.deepStrictEqual(result._tag === "Right" ? at(result.right) : null, [8_000, 5_000])
      assert.deepInclude(calls[0]?.parameters, { resourceid: VOLUME, resourcetype: "Volume" })
    })
  )

  it.effect("is asked for again only with a smaller page where the server allows no larger one (O4)", () =>
    Effect.gen(function* () {
      const answers: Fake.Answers = ({ parameters }) =>
        Number(parameters["pagesize"]) > 100
          ? Fake.error("listEvents", 431, "Page size can't exceed max allowed page size value: 100")
          : Fake.ok("listEvents")
      const { calls, result } = yield* reading(answers, { since: NOON })
      assert.strictEqual(result._tag, "Right")
      assert.deepStrictEqual(
        calls.map(({ parameters }) => parameters["pagesize"]),
        ["500", "100"]
      )
    })
  )

  it.effect("fails as refused where the account may not ask, and is not asked for again (C7)", () =>
    Effect.gen(function* () {
      const denied: Fake.Answers = () => ({ status: 432, body: Fake.fixture("432-errorresponse") })
      const { calls, result } = yield* reading(denied, { since: NOON })
      assert.strictEqual(calls.length, 1)
      assert.deepInclude(result._tag === "Left" ? { ...result.left } : {}, { _tag: "CloudStackRefused", code: 432 })
    })
  )

  it.effect("fails as unread, at the first try, when CloudStack is away or answers nonsense (C1, C8)", () =>
    Effect.gen(function* () {
      const cases: ReadonlyArray<Fake.Reply> = [
        { fails: { code: "ECONNREFUSED", syscall: "connect" } },
        { status: 502, body: "<html></html>" },
        { status: 503, body: "" },
        { body: "" },
        { body: '{"listvolumesresponse":{}}' },
        Fake.json({ listeventsresponse: { count: -1 } }),
        Fake.json({ listeventsresponse: { event: [row] } })
      ]
      for (const reply of cases) {
        const { calls, result } = yield* reading(() => reply, { since: NOON })
        assert.strictEqual(calls.length, 1, JSON.stringify(reply))
        assert.strictEqual(result._tag === "Left" ? result.left._tag : "Right", "CloudStackUnavailable")
      }
    })
  )

  it.effect("leaves out the rows that cannot be read, and makes the words of the others harmless (X8, X11)", () =>
    Effect.gen(function* () {
      const hostile: ReadonlyArray<unknown> = [
        null,
        "event",
        [],
        { ...row, id: "../../etc/passwd" },
        { ...row, id: 7 },
        { ...row, parentid: "x".repeat(100) },
        { ...row, type: "VOLUME.DETACH\n" },
        { ...row, type: "V".repeat(65) },
        { ...row, type: undefined },
        { ...row, created: "yesterday" },
        { ...row, created: "2026-13-45T12:00:05+0000" },
        { ...row, created: "2026-03-01T12:00:05" },
        { ...row, created: 1_772_366_405_000 },
        { ...row, username: { name: "alice" } },
        { ...row, description: ["a"] }
      ]
      for (const bad of hostile) {
        const events = yield* found(() => rows(bad, row), { since: NOON })
        assert.strictEqual(events.length, 1, JSON.stringify(bad))
      }
      const loud = {
        ...row,
        username: `mal\u001b[31m\nlory${"y".repeat(1_000)}`,
        description: "a\u2028b".repeat(9_000)
      }
      const [event] = yield* found(() => rows(loud), { since: NOON })
      assert.isTrue((event?.user ?? "").startsWith("mal\ufffd[31m\ufffdlory"))
      assert.isAtMost((event?.user ?? "").length, 101)
      assert.isAtMost((event?.description ?? "").length, 2_001)
    })
  )

  it.effect("is of no volume where the id is none", () =>
    Effect.gen(function* () {
      for (const resourceid of ["42", "../x", VOLUME.toUpperCase(), "", null]) {
        const [event] = yield* found(() => rows({ ...row, resourceid }), { since: NOON })
        assert.isNull(event?.volume_id, String(resourceid))
      }
    })
  )
})
