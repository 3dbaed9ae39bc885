import { createHash } from "node:crypto"
import { once } from "node:events"
import * as Fs from "node:fs"
import * as Os from "node:os"
import * as Path from "node:path"
import { assert, describe, it } from "@effect/vitest"
import { Effect, Fiber } from "effect"
import * as Child from "../Cli/Child.ts"
import { latch, type Raw, send, start } from "./support.ts"
import { assertErrorBody } from "./Wire.ts"

const put = (
  url: string,
  name: string,
  key: string,
  body: unknown = { size: "1Gi" },
  more: Record<string, string> = {}
) => send(`${url}/api/v2/volumes/${name}`, { method: "PUT", json: body, headers: { "idempotency-key": key, ...more } })

const replayed = ({ headers }: Raw) => headers.get("idempotency-replayed") === "true"

const directory = Effect.acquireRelease(
  Effect.sync(() => Fs.mkdtempSync(Path.join(Os.tmpdir(), "volumed-keys-"))),
  (path) => Effect.sync(() => Fs.rmSync(path, { recursive: true, force: true }))
)

const kill = async (daemon: ReturnType<typeof Child.start>) => {
  if (daemon.exitCode !== null || daemon.signalCode !== null) return
  const closed = once(daemon, "close")
  daemon.kill("SIGKILL")
  await closed
}

describe("a write with an Idempotency-Key (X13, S14)", () => {
  it.scopedLive("is done once, and answered as the first time however often it is sent", () =>
    Effect.gen(function* () {
      const { url, world } = yield* start()
      const first = yield* put(url, "a", "key-1")
      assert.strictEqual(first.status, 201)
      assert.isFalse(replayed(first))
      const again = yield* put(url, "a", "key-1")
      assert.strictEqual(again.status, 201)
      assert.isTrue(replayed(again))
      assert.deepStrictEqual(again.body, first.body)
      assert.strictEqual(again.headers.get("etag"), first.headers.get("etag"))
      assert.strictEqual(world.events.length, 1)
    })
  )

  it.scopedLive("is not done again after others wrote, which an equal write without a key would undo", () =>
    Effect.gen(function* () {
      const { url, world } = yield* start()
      yield* put(url, "a", "k", { size: "1Gi", read_only: true })
      const other = yield* send(`${url}/api/v2/volumes/a`, { method: "PATCH", json: { read_only: false } })
      assert.strictEqual(other.status, 200)
      const again = yield* put(url, "a", "k", { size: "1Gi", read_only: true })
      assert.isTrue(replayed(again))
      assert.strictEqual(world.declarations[0]?.spec.read_only, false)
      // A declaration is shown as it is, so that nobody takes the past for the present.
      assert.deepStrictEqual([again.status, again.body["generation"]], [201, 2])
    })
  )

  it.scopedLive("is refused when the key was another request's: other body, path, method, query or precondition", () =>
    Effect.gen(function* () {
      const { url, world } = yield* start()
      yield* put(url, "a", "k")
      const others: ReadonlyArray<Effect.Effect<Raw>> = [
        put(url, "a", "k", { size: "2Gi" }),
        put(url, "b", "k"),
        put(url, "a", "k", { size: "1Gi" }, { "if-match": "1" }),
        put(url, "a", "k", { size: "1Gi" }, { "if-none-match": "*" }),
        send(`${url}/api/v2/volumes/a`, {
          method: "PATCH",
          json: { size: "1Gi" },
          headers: { "idempotency-key": "k" }
        }),
        send(`${url}/api/v2/volumes/a`, { method: "DELETE", headers: { "idempotency-key": "k" } }),
        send(`${url}/api/v2/apply`, { method: "POST", json: { volumes: [] }, headers: { "idempotency-key": "k" } }),
        send(`${url}/api/v2/volumes/a?dry_run=false`, {
          method: "PUT",
          json: { size: "1Gi" },
          headers: { "idempotency-key": "k" }
        })
      ]
      for (const other of others) {
        const refused = yield* other
        assert.strictEqual(refused.status, 422)
        assertErrorBody(refused.body, "IDEMPOTENCY_KEY_REUSED")
        assert.match(String(refused.body["error"]), /CloudStack API error 431/)
      }
      assert.deepStrictEqual(
        world.declarations.map(({ name, generation }) => [name, generation]),
        [["a", 1]]
      )
    })
  )

  it.scopedLive("that is sent again while the first is worked on is told to wait", () =>
    Effect.gen(function* () {
      const { url, world } = yield* start()
      const gate = yield* latch
      const begun = yield* latch
      world.inWrite = Effect.andThen(begun.open, gate.wait)
      const first = yield* Effect.fork(put(url, "a", "k"))
      yield* begun.wait
      const meanwhile = yield* put(url, "a", "k")
      assert.strictEqual(meanwhile.status, 409)
      assertErrorBody(meanwhile.body, "CONFLICT")
      assert.strictEqual(meanwhile.headers.get("retry-after"), "1")
      yield* gate.open
      assert.strictEqual((yield* Fiber.join(first)).status, 201)
      assert.isTrue(replayed(yield* put(url, "a", "k")))
      assert.strictEqual(world.events.length, 1)
    })
  )

  it.scopedLive("that failed may be repeated under its key, corrected or not", () =>
    Effect.gen(function* () {
      const { url, world } = yield* start()
      assert.strictEqual((yield* put(url, "a", "k", { size: 1 })).status, 400)
      world.databaseDown = true
      assert.strictEqual((yield* put(url, "a", "k")).status, 503)
      world.databaseDown = false
      assert.strictEqual((yield* put(url, "a", "k")).status, 201)
      assert.strictEqual((yield* put(url, "a", "k", { size: 1 })).status, 422)
    })
  )

  it.scopedLive("whose client hung up before it was done gives its key back", () =>
    Effect.gen(function* () {
      const { url, world } = yield* start()
      const gate = yield* latch
      const begun = yield* latch
      world.inWrite = Effect.andThen(begun.open, gate.wait)
      const first = yield* Effect.fork(put(url, "a", "k"))
      yield* begun.wait
      yield* Fiber.interrupt(first)
      yield* gate.open
      const again = yield* Effect.repeat(Effect.delay(put(url, "a", "k"), 20), {
        until: ({ status }) => status !== 409
      })
      assert.strictEqual(again.status, 201)
      assert.strictEqual(world.declarations.length, 1)
    })
  )

  it.scopedLive("needs a key that can be written down, and is not asked for one", () =>
    Effect.gen(function* () {
      const { url, world } = yield* start()
      for (const key of ["", "a b", "x".repeat(256), "ü"]) {
        const refused = yield* put(url, "a", key)
        assert.strictEqual(refused.status, 400, JSON.stringify(key))
        assertErrorBody(refused.body, "INVALID_REQUEST")
      }
      assert.strictEqual(world.declarations.length, 0)
      assert.strictEqual((yield* put(url, "a", "~".repeat(255))).status, 201)
    })
  )

  it.scopedLive("keeps no answer of a dry run, a read or a candidate plan", () =>
    Effect.gen(function* () {
      const { url, world } = yield* start()
      const headers = { "idempotency-key": "k" }
      const dry = () => send(`${url}/api/v2/volumes/a?dry_run=true`, { method: "PUT", json: { size: "1Gi" }, headers })
      const candidate = () => send(`${url}/api/v2/plan`, { method: "POST", json: { volumes: [] }, headers })
      for (const look of [dry, candidate, () => send(`${url}/api/v2/volumes`, { headers })])
        for (let times = 0; times < 2; times++) {
          const answer = yield* look()
          assert.strictEqual(answer.status, 200)
          assert.isFalse(replayed(answer))
        }
      assert.deepStrictEqual(world.answers, [])
      assert.strictEqual((yield* put(url, "a", "k")).status, 201)
    })
  )

  it.scopedLive("is remembered whatever it wrote: an apply, a removal, an approval, a change of nothing", () =>
    Effect.gen(function* () {
      const { url, world } = yield* start()
      const twice = (path: string, method: string, json?: unknown) =>
        Effect.gen(function* () {
          const request = send(`${url}${path}`, {
            method,
            ...(json === undefined ? {} : { json }),
            headers: { "idempotency-key": `${method} ${path}`.replaceAll(" ", "_") }
          })
          const first = yield* request
          const events = world.events.length
          const again = yield* request
          assert.isBelow(first.status, 300, `${path}: ${JSON.stringify(first.body)}`)
          assert.deepStrictEqual([again.status, again.body], [first.status, first.body])
          assert.deepStrictEqual([replayed(first), replayed(again)], [false, true])
          assert.strictEqual(world.events.length, events)
        })
      const volumes = ["a", "b"].map((name) => ({ name, size: "1Gi" }))
      yield* twice("/api/v2/apply", "POST", { set: "s", volumes })
      yield* twice("/api/v2/volumes/a", "PUT", { size: "1Gi" })
      yield* twice("/api/v2/volumes/a", "DELETE")
      yield* twice("/api/v2/volumes/a/undelete", "POST")
      yield* twice("/api/v2/maintenance", "PUT", { reason: "upgrade", by: "mary" })
    })
  )

  it.scopedLive("has its key for itself: another caller's equal key is another key", () =>
    Effect.gen(function* () {
      const [ann, bob] = ["ann-AAAAAAAAAAAAAAAAAAAAAAAAA", "bob-BBBBBBBBBBBBBBBBBBBBBBBBB"] as const
      const line = (token: string, name: string) =>
        `read-write sha256:${createHash("sha256").update(token).digest("hex")} ${name}\n`
      const token_file = Path.join(yield* directory, "tokens")
      Fs.writeFileSync(token_file, line(ann, "ann") + line(bob, "bob"), { mode: 0o600 })
      const { url, world } = yield* start({ token_file })
      const by = (token: string, name: string) =>
        put(url, name, "k", { size: "1Gi" }, { authorization: `Bearer ${token}` })
      assert.strictEqual((yield* by(ann, "a")).status, 201)
      assert.strictEqual((yield* by(bob, "b")).status, 201)
      assert.isTrue(replayed(yield* by(ann, "a")))
      assert.strictEqual(world.declarations.length, 2)
      assert.isFalse(world.answers.some(({ key }) => key.includes("ann") || key === "k"))
    })
  )

  it.scopedLive("is done once across deaths of the daemon: the key is written with what it wrote (P1, S14)", () =>
    Effect.gen(function* () {
      const folder = yield* directory
      const serve = Effect.promise(async () => {
        const args = ["serve", "--sandbox", "--listen", "127.0.0.1:0", "--state", folder]
        const daemon = Child.start(args, { env: { NBD_BACKEND: "simulated", LOG_LEVEL: "error" } })
        const ready = await Child.said(daemon, "stderr", /volumed ready on (\S+);/u)
        return { daemon, url: ready[1] ?? "" }
      })
      const life = Effect.acquireRelease(serve, ({ daemon }) => Effect.promise(() => kill(daemon)))
      const names = Array.from({ length: 60 }, (_, index) => `v-${index}`)
      const sendAll = (url: string, answered: Effect.Effect<void>) =>
        Effect.forEach(names, (name) => Effect.tap(put(url, name, `key-of-${name}`), answered), { concurrency: 4 })
      for (const answers of [20, 40])
        yield* Effect.scoped(
          Effect.gen(function* () {
            const { daemon, url } = yield* life
            const enough = yield* latch
            let count = 0
            const sending = yield* Effect.fork(
              sendAll(
                url,
                Effect.suspend(() => (++count === answers ? enough.open : Effect.void))
              )
            )
            yield* enough.wait
            yield* Effect.promise(() => kill(daemon))
            yield* Fiber.interrupt(sending)
          })
        )
      const { url } = yield* life
      for (const known of [40, names.length]) {
        const answers = yield* sendAll(url, Effect.void)
        for (const { status, body } of answers) assert.strictEqual(status, 201, String(body["error"]))
        assert.isAtLeast(answers.filter(replayed).length, known)
      }
      const { body } = yield* send(`${url}/api/v2/events?kind=declared&limit=1000`)
      const declared = (body["items"] as ReadonlyArray<{ name: string }>).map(({ name }) => name)
      assert.sameMembers(declared, names)
      assert.strictEqual(declared.length, names.length)
    })
  )
})
