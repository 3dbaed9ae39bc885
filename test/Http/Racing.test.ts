import { assert, describe, it } from "@effect/vitest"
import { Effect, Exit, Scope } from "effect"
import * as Site from "./Site.ts"
import { type Raw, send } from "./support.ts"

const at = (url: string, name: string) => `${url}/api/v2/volumes/${name}`
const put = (url: string, name: string, json: unknown, headers: Record<string, string> = {}) =>
  send(at(url, name), { method: "PUT", json, headers })
const apply = (url: string, json: unknown) => send(`${url}/api/v2/apply`, { method: "POST", json })

const together = <A>(count: number, one: (index: number) => Effect.Effect<A>) =>
  Effect.forEach(
    Array.from({ length: count }, (_, index) => index),
    one,
    { concurrency: "unbounded" }
  )
const statuses = (answers: ReadonlyArray<Raw>) => answers.map(({ status }) => status).toSorted()

/** The daemon of a site, on a database file. */
const started = Effect.flatMap(Site.start, ({ daemon }) => daemon)

describe("writers that race (S14, M4)", () => {
  it.scopedLive("lets one of two clients that saw the same generation write, and tells the other 412", () =>
    Effect.gen(function* () {
      const { url } = yield* started
      yield* put(url, "a", { size: "1Gi", attached_to: null })
      for (let generation = 1; generation <= 10; generation++) {
        const answers = yield* together(2, (client) =>
          put(
            url,
            "a",
            { metadata: { round: `${generation}`, client: `${client}` } },
            { "if-match": `"${generation}"` }
          )
        )
        assert.deepStrictEqual(statuses(answers), [200, 412])
        const [won] = answers.filter(({ status }) => status === 200)
        const { body } = yield* send(at(url, "a"))
        assert.strictEqual(body["generation"], generation + 1)
        assert.deepStrictEqual(body["spec"], won?.body["spec"], "what stands is what the winner was answered")
        const [lost] = answers.filter(({ status }) => status === 412)
        assert.strictEqual(lost?.body["code"], "PRECONDITION_FAILED")
      }
    })
  )

  it.scopedLive("gives every unconditional write a generation of its own", () =>
    Effect.gen(function* () {
      const { url } = yield* started
      yield* put(url, "a", { size: "1Gi", attached_to: null })
      const answers = yield* together(24, (client) => put(url, "a", { metadata: { client: `${client}` } }))
      assert.deepStrictEqual(new Set(statuses(answers)), new Set([200]))
      assert.deepStrictEqual(
        answers.map(({ body }) => Number(body["generation"])).toSorted((a, b) => a - b),
        Array.from({ length: 24 }, (_, index) => index + 2)
      )
    })
  )

  it.scopedLive("makes a new name once, whoever else asks for it to be new", () =>
    Effect.gen(function* () {
      const { url } = yield* started
      const answers = yield* together(8, () => put(url, "a", { size: "1Gi" }, { "if-none-match": "*" }))
      assert.deepStrictEqual(statuses(answers), [201, 412, 412, 412, 412, 412, 412, 412])
    })
  )

  it.scopedLive("applies a document whole or not at all beside another that wants the same names", () =>
    Effect.gen(function* () {
      const { url } = yield* started
      const names = ["a", "b", "c", "d"]
      const documents = ["one", "two"].map((set) => ({
        set,
        volumes: names.map((name) => ({ name, size: "1Gi", metadata: { set } }))
      }))
      const answers = yield* together(2, (index) => apply(url, documents[index]))
      assert.deepStrictEqual(statuses(answers), [200, 409])
      const [lost] = answers.filter(({ status }) => status === 409)
      assert.strictEqual(lost?.body["code"], "FIELD_CONFLICT")
      const { body } = yield* send(`${url}/api/v2/volumes`)
      const items = body["items"] as ReadonlyArray<{ set: string; spec: { metadata: { set: string } } }>
      assert.strictEqual(items.length, 4)
      assert.strictEqual(new Set(items.flatMap(({ set, spec }) => [set, spec.metadata.set])).size, 1)
    })
  )

  it.scopedLive("tells an apply who changed a field since its set was applied last, until it takes over", () =>
    Effect.gen(function* () {
      const { client, url } = yield* started
      const document = { set: "s", volumes: [{ name: "a", size: "1Gi", metadata: { team: "one" } }] }
      yield* client.apply(document)
      yield* client.patch("a", { metadata: { team: "two" } })
      const refused = yield* apply(url, document)
      assert.strictEqual(refused.status, 409)
      assert.strictEqual(refused.body["code"], "FIELD_CONFLICT")
      const { errors } = refused.body["details"] as { errors: ReadonlyArray<{ field: string; problem: string }> }
      assert.deepStrictEqual(
        errors.map(({ field }) => field),
        ["metadata"]
      )
      assert.match(errors[0]?.problem ?? "", /written by tester at \d{4}-\d\d-\d\dT/)
      const taken = yield* client.apply({ ...document, take_over: true })
      assert.deepStrictEqual<ReadonlyArray<string>>(taken.changed, ["a"])
      assert.strictEqual(taken.items[0]?.managers["metadata"]?.by, "set:s")
      assert.strictEqual((yield* apply(url, document)).status, 200)
    })
  )

  it.scopedLive("does what bears one Idempotency-Key once, also when the repeat comes after a restart (X13)", () =>
    Effect.gen(function* () {
      const { daemon } = yield* Site.start
      const first = yield* Scope.make()
      const { url } = yield* Scope.extend(daemon, first)
      const key = { "idempotency-key": "one-order" }
      const answers = yield* together(8, () => put(url, "a", { size: "1Gi" }, key))
      assert.isTrue(
        answers.every(({ status }) => status === 201 || status === 409),
        "409: the first is worked on"
      )
      const uids = new Set(answers.flatMap(({ status, body }) => (status === 201 ? [body["uid"]] : [])))
      assert.strictEqual(uids.size, 1)
      const document = { volumes: [{ name: "b", size: "1Gi" }] }
      const applied = yield* send(`${url}/api/v2/apply`, {
        method: "POST",
        json: document,
        headers: { "idempotency-key": "one-file" }
      })
      yield* put(url, "a", { read_only: true })
      yield* Scope.close(first, Exit.void)

      const { url: later } = yield* daemon
      const repeated = yield* put(later, "a", { size: "1Gi" }, key)
      assert.strictEqual(repeated.status, 201)
      assert.deepStrictEqual(new Set([repeated.body["uid"]]), uids)
      assert.strictEqual(
        (repeated.body["spec"] as { read_only: boolean }).read_only,
        true,
        "what was written since stays"
      )
      const again = yield* send(`${later}/api/v2/apply`, {
        method: "POST",
        json: document,
        headers: { "idempotency-key": "one-file" }
      })
      assert.deepStrictEqual(again.body["created"], applied.body["created"])
      const another = yield* put(later, "a", { size: "1Gi", read_only: false }, key)
      assert.strictEqual(another.status, 422)
      assert.strictEqual(another.body["code"], "IDEMPOTENCY_KEY_REUSED")
      assert.strictEqual((yield* send(at(later, "a"))).body["generation"], 2)
    })
  )
})
