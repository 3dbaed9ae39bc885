import { assert, describe, it } from "@effect/vitest"
import { Chunk, Context, Effect, Exit, Fiber, Layer, Option, PubSub, Schema, Scope, Stream, TestClock } from "effect"
import { Store } from "../../reconciler/Store.ts"
import * as Api from "../../schema/Api.ts"
import * as Watch from "../../src/Http/Watch.ts"
import * as Site from "./Site.ts"
import { follow, makeWorld, ports, send, start, tell } from "./support.ts"

const decodeEvent = Schema.decodeUnknown(Api.Event, { onExcessProperty: "error" })

/** Told apart from a time-out of the whole test: what should come at once has to come within this. */
const soon = Effect.timeout("5 seconds")

describe("GET /api/v2/watch", () => {
  it.scopedLive("tells what comes next, each event with its id, its kind and its whole JSON", () =>
    Effect.gen(function* () {
      const { url, client } = yield* start()
      yield* client.put("before", { size: "1Gi" })
      const stream = yield* follow(`${url}/api/v2/watch`)
      assert.strictEqual(stream.status, 200)
      assert.match(stream.headers.get("content-type") ?? "", /^text\/event-stream/)
      const opening = yield* soon(stream.next)
      assert.strictEqual(opening?.id, 1, "a client that is cut off now comes back to this place")
      assert.strictEqual(opening?.event, null)
      yield* client.put("a", { size: "1Gi" })
      const told = yield* soon(stream.event)
      assert.strictEqual(told.id, 2)
      assert.strictEqual(told.event, "declared")
      const event = yield* decodeEvent(told.data)
      assert.deepInclude(event, { id: 2, kind: "declared", name: "a", actor: "tester" })
    })
  )

  it.scopedLive("resumes after an event without a gap or a repeat, by query and by Last-Event-ID", () =>
    Effect.gen(function* () {
      const { url, client, world } = yield* start()
      for (const name of ["a", "b", "c", "d"]) tell(world, { kind: "declared", name })
      const take = (count: number, stream: { readonly event: Effect.Effect<{ readonly id: number | null }> }) =>
        Effect.all(Array.from({ length: count }, () => Effect.map(soon(stream.event), ({ id }) => id)))
      const byQuery = yield* follow(`${url}/api/v2/watch?after=1`)
      assert.deepStrictEqual(yield* take(3, byQuery), [2, 3, 4])
      const byHeader = yield* follow(`${url}/api/v2/watch`, { "last-event-id": "2" })
      assert.deepStrictEqual(yield* take(2, byHeader), [3, 4])
      // A browser that connects again sends the first query once more beside the id it has come to.
      const again = yield* follow(`${url}/api/v2/watch?after=0`, { "last-event-id": "3" })
      assert.deepStrictEqual(yield* take(1, again), [4])
      yield* client.put("e", { size: "1Gi" })
      for (const stream of [byQuery, byHeader, again]) assert.deepStrictEqual(yield* take(1, stream), [5])
    })
  )

  it.scopedLive("tells only of the name and the kind that are asked for", () =>
    Effect.gen(function* () {
      const { url, world, tick } = yield* start()
      const named = yield* follow(`${url}/api/v2/watch?after=0&name=b`)
      const kinds = yield* follow(`${url}/api/v2/watch?after=0&kind=removed`)
      yield* soon(named.next)
      yield* soon(kinds.next)
      for (const [kind, name] of [
        ["declared", "a"],
        ["declared", "b"],
        ["removed", "a"],
        ["changed", "b"]
      ] as const) {
        tell(world, { kind, name })
      }
      yield* tick
      assert.strictEqual((yield* soon(named.event)).id, 2)
      assert.strictEqual((yield* soon(named.event)).id, 4)
      assert.strictEqual((yield* soon(kinds.event)).id, 3)
    })
  )

  it.scopedLive("answers 410 before it streams where events are missing, and 400 for what is no id", () =>
    Effect.gen(function* () {
      const { url, world } = yield* start()
      for (let index = 0; index < 9; index++) tell(world, { kind: "declared", name: "a" })
      world.events = world.events.slice(5)
      for (const after of [0, 4, 10]) {
        const gone = yield* send(`${url}/api/v2/watch?after=${after}`)
        assert.strictEqual(gone.status, 410)
        assert.strictEqual(gone.body["code"], "CURSOR_EXPIRED")
      }
      assert.strictEqual((yield* send(`${url}/api/v2/watch`, { headers: { "last-event-id": "1" } })).status, 410)
      assert.strictEqual((yield* send(`${url}/api/v2/watch?after=x`)).status, 400)
      assert.strictEqual((yield* send(`${url}/api/v2/watch`, { headers: { "last-event-id": "x" } })).status, 400)
      const kept = yield* follow(`${url}/api/v2/watch?after=5`)
      assert.strictEqual((yield* soon(kept.event)).id, 6)
    })
  )

  it.scopedLive("reads the history once for all who watch", () =>
    Effect.gen(function* () {
      const { url, world, tick } = yield* start()
      const streams = yield* Effect.forEach(
        Array.from({ length: 60 }, (_, index) => index),
        () => follow(`${url}/api/v2/watch`),
        { concurrency: 20 }
      )
      for (const stream of streams) yield* soon(stream.next)
      // Everybody has caught up when a first event has come to everybody.
      tell(world, { kind: "declared", name: "first" })
      yield* tick
      for (const stream of streams) assert.strictEqual((yield* soon(stream.event)).id, 1)
      world.eventReads = 0
      for (let index = 2; index <= 11; index++) {
        tell(world, { kind: "declared", name: "more" })
        yield* tick
        for (const stream of streams) assert.strictEqual((yield* soon(stream.event)).id, index)
      }
      assert.isBelow(world.eventReads, 60, "600 deliveries")
    })
  )

  it.scopedLive("goes on after the database was away, without a gap", () =>
    Effect.gen(function* () {
      const { url, world, tick } = yield* start()
      const stream = yield* follow(`${url}/api/v2/watch`)
      yield* soon(stream.next)
      tell(world, { kind: "declared", name: "a" })
      yield* tick
      assert.strictEqual((yield* soon(stream.event)).id, 1)
      world.databaseDown = true
      tell(world, { kind: "declared", name: "b" })
      yield* tick
      assert.strictEqual((yield* send(`${url}/api/v2/watch`)).status, 503)
      tell(world, { kind: "declared", name: "c" })
      world.databaseDown = false
      assert.strictEqual((yield* soon(stream.event)).id, 2)
      assert.strictEqual((yield* soon(stream.event)).id, 3)
    })
  )

  it.live("ends every stream at once when the server stops, and says so (P3)", () =>
    Effect.gen(function* () {
      const scope = yield* Scope.make()
      const watching = yield* Scope.make()
      const { url } = yield* Scope.extend(start(), scope)
      const streams = yield* Effect.forEach([1, 2, 3], () => Scope.extend(follow(`${url}/api/v2/watch`), watching))
      for (const stream of streams) yield* soon(stream.next)
      yield* Scope.close(scope, Exit.void).pipe(soon)
      for (const stream of streams) {
        assert.strictEqual((yield* soon(stream.next))?.comment, "the server stops")
        assert.strictEqual(yield* soon(stream.next), null)
      }
      yield* Scope.close(watching, Exit.void)
    })
  )
})

/** The hub alone, on the test's clock. */
const hub = Effect.gen(function* () {
  const world = makeWorld()
  const changes = yield* PubSub.sliding<void>(16)
  const services = yield* Layer.build(Watch.layer.pipe(Layer.provide(ports(world, changes))))
  return { world, hub: Context.get(services, Watch.Hub) }
})

const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes)

/** What a watcher that takes one chunk when asked is sent; chunks of nothing are not sent. */
const pulled = (stream: Stream.Stream<Uint8Array>) =>
  Effect.map(Stream.toPull(stream), (pull) =>
    Effect.repeat(Effect.orDie(pull), { until: Chunk.isNonEmpty }).pipe(
      Effect.map((chunk) => Chunk.toArray(chunk).map(text))
    )
  )

const idsIn = (blocks: ReadonlyArray<string>) =>
  blocks.flatMap((block) => (block.includes("event: ") ? [Number(/^id: (\d+)$/mu.exec(block)?.[1])] : []))

describe("the hub", () => {
  it.scoped("breaks a silence of 15 s with the place, also where nothing that is told is asked for", () =>
    Effect.gen(function* () {
      const { hub: it, world } = yield* hub
      const pull = yield* pulled(it.after(0, ({ name }) => name === "wanted"))
      assert.deepStrictEqual(yield* pull, [": watching\nid: 0\n\n"])
      const silence = yield* Effect.fork(pull)
      for (let second = 1; second < 15; second++) {
        tell(world, { kind: "changed", name: "other" })
        yield* TestClock.adjust("1 second")
      }
      assert.isTrue(Option.isNone(yield* Fiber.poll(silence)))
      yield* TestClock.adjust("2 seconds")
      assert.deepStrictEqual(yield* Fiber.join(silence), [": still here\nid: 14\n\n"])
    })
  )

  it.scoped("gives a watcher that fell far behind every event once, and waits for nobody", () =>
    Effect.gen(function* () {
      const { hub: it, world } = yield* hub
      const slow = yield* pulled(it.after(0, () => true))
      yield* slow
      const quick = yield* Effect.fork(
        Stream.runCollect(
          Stream.take(
            it.after(0, () => true),
            1_201
          )
        ).pipe(Effect.map(Chunk.toArray))
      )
      for (let index = 1; index <= 1_200; index++) {
        tell(world, { kind: "changed", name: "a" })
        if (index % 20 === 0) yield* TestClock.adjust("1 second")
      }
      const told = idsIn((yield* Fiber.join(quick)).map(text))
      assert.deepStrictEqual(
        told,
        Array.from({ length: told.length }, (_, index) => index + 1)
      )
      const seen: Array<number> = []
      while (seen.length < 1_200) seen.push(...idsIn(yield* slow))
      assert.deepStrictEqual(
        seen,
        Array.from({ length: 1_200 }, (_, index) => index + 1)
      )
    })
  )

  it.scoped("ends a watcher whose events were pruned before it took them", () =>
    Effect.gen(function* () {
      const { hub: it, world } = yield* hub
      const pull = yield* pulled(it.after(0, () => true))
      yield* pull
      for (let index = 1; index <= 60; index++) {
        tell(world, { kind: "changed", name: "a" })
        yield* TestClock.adjust("1 second")
      }
      world.events = world.events.slice(50)
      assert.deepStrictEqual(yield* pull, [": events are missing, list again\n\n"])
    })
  )

  it.scoped("ends a watcher whose events were pruned while they were read, rather than leave a gap", () =>
    Effect.gen(function* () {
      const world = makeWorld()
      const around = yield* Layer.build(ports(world, yield* PubSub.sliding<void>(16)))
      let pruning = false
      const prune = Effect.sync(() => {
        if (pruning) world.events = world.events.slice(50)
        pruning = false
      })
      const store = Context.get(around, Store)
      const racing = Store.of({
        ...store,
        events: (filter) => Effect.zipLeft(store.events(filter), prune),
        eventRange: Effect.zipLeft(store.eventRange, prune)
      })
      const services = yield* Layer.build(
        Watch.layer.pipe(Layer.provide(Layer.succeedContext(Context.add(around, Store, racing))))
      )
      const pull = yield* pulled(Context.get(services, Watch.Hub).after(0, () => true))
      yield* pull
      for (let index = 1; index <= 60; index++) tell(world, { kind: "changed", name: "a" })
      yield* TestClock.adjust("1 second")
      pruning = true
      assert.deepStrictEqual(yield* pull, [": events are missing, list again\n\n"])
      assert.isFalse(pruning)
    })
  )

  it.scoped("reads nothing while nobody watches, and forgets who left", () =>
    Effect.gen(function* () {
      const { hub: it, world } = yield* hub
      for (let index = 0; index < 10; index++) {
        tell(world, { kind: "changed", name: "a" })
        yield* TestClock.adjust("1 second")
      }
      assert.strictEqual(world.eventReads, 0)
      const watching = yield* Effect.fork(Stream.runDrain(it.after(10, () => true)))
      yield* TestClock.adjust("1 second")
      assert.strictEqual(yield* it.watchers, 1)
      assert.isAbove(world.eventReads, 0)
      yield* Fiber.interrupt(watching)
      assert.strictEqual(yield* it.watchers, 0)
      yield* TestClock.adjust("1 second")
      const reads = world.eventReads
      yield* TestClock.adjust("10 seconds")
      assert.strictEqual(world.eventReads, reads)
    })
  )
})

describe("the watch of a whole daemon", () => {
  it.scopedLive("goes on over a restart without a gap or a repeat, and never holds the daemon up (P3)", () =>
    Effect.gen(function* () {
      const { daemon } = yield* Site.start
      const told: Array<number> = []
      const names: Array<unknown> = []
      let last: string | null = null
      for (const life of [1, 2, 3]) {
        const scope = yield* Scope.make()
        const { client, url } = yield* Scope.extend(daemon, scope)
        const resume: Record<string, string> = last === null ? {} : { "last-event-id": last }
        const stream = yield* follow(`${url}/api/v2/watch?after=0`, resume)
        yield* client.put(`while-${life}`, { size: "1Gi", attached_to: null })
        const read = Effect.map(soon(stream.event), ({ id, data }) => {
          told.push(id ?? 0)
          names.push(data["kind"] === "declared" ? data["name"] : null)
          last = String(id)
        })
        yield* Effect.repeat(read, { until: () => names.includes(`while-${life}`) })
        // Written after this client read its last, so that only resuming brings it.
        yield* client.put(`after-${life}`, { size: "1Gi", attached_to: null })
        yield* Scope.close(scope, Exit.void).pipe(soon)
      }
      const { url } = yield* daemon
      const stream = yield* follow(`${url}/api/v2/watch`, { "last-event-id": last ?? "" })
      while (!names.includes("after-3")) {
        const { id, data } = yield* soon(stream.event)
        told.push(id ?? 0)
        names.push(data["kind"] === "declared" ? data["name"] : null)
      }
      assert.deepStrictEqual(
        told,
        Array.from({ length: told.length }, (_, index) => index + 1)
      )
      assert.deepStrictEqual(
        names.filter((name) => name !== null),
        [1, 2, 3].flatMap((life) => [`while-${life}`, `after-${life}`])
      )
    })
  )
})
