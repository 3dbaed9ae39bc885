import { spawn } from "node:child_process"
import { createHash } from "node:crypto"
import { once } from "node:events"
import * as Fs from "node:fs"
import * as Net from "node:net"
import * as Os from "node:os"
import * as Path from "node:path"
import { fileURLToPath } from "node:url"
import { assert, describe, it } from "@effect/vitest"
import { Effect, Fiber } from "effect"
import { latch, type Raw, send, start } from "./support.ts"
import { assertErrorBody, received } from "./Wire.ts"

const MIB = 1024 * 1024

/** A server in a process of its own, and its resident memory in bytes. */
const child = Effect.acquireRelease(
  Effect.promise(async () => {
    const path = fileURLToPath(new URL("child.ts", import.meta.url))
    const started = spawn(process.execPath, ["--import", "tsx", path], { stdio: ["pipe", "pipe", "inherit"] })
    const [line] = (await once(started.stdout, "data")) as [Buffer]
    const resident = () =>
      1024 * Number(/^VmRSS:\s+([0-9]+) kB$/m.exec(Fs.readFileSync(`/proc/${started.pid}/status`, "utf8"))?.[1])
    return { started, url: line.toString().trim(), resident }
  }),
  ({ started }) =>
    Effect.promise(async () => {
      const closed = once(started, "close")
      started.stdin.end()
      await closed
    })
)

/** Sends a chunked body of so many bytes as fast as it is taken, to its end or to the answer; the highest memory seen. */
const flood = (url: string, bytes: number, resident: () => number, untilAnswered: boolean) =>
  Effect.async<{ readonly text: string; readonly sent: number; readonly peak: number }>((resume) => {
    const socket = Net.connect(Number(new URL(url).port), "127.0.0.1")
    const chunk = Buffer.from(`10000\r\n${" ".repeat(0x10000)}\r\n`)
    let [text, sent, peak] = ["", 0, 0]
    const isOver = () => sent >= bytes || (untilAnswered && text !== "")
    const send = () => {
      while (!isOver()) {
        sent += 0x10000
        if (sent % MIB === 0) peak = Math.max(peak, resident())
        if (!socket.write(chunk)) return
      }
      socket.end()
    }
    socket.on("data", (more) => (text += more.toString())).on("drain", send)
    socket.on("error", () => {})
    socket.on("close", () => resume(Effect.succeed({ text, sent, peak })))
    socket.write(
      "POST /api/v2/apply HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    send()
    return Effect.sync(() => socket.destroy())
  })

const put = (url: string, name: string, headers: Record<string, string> = {}) =>
  send(`${url}/api/v2/volumes/${name}`, { method: "PUT", json: { size: "1Gi" }, headers })

/** Requests that are on their way until `gate` opens, at least one of them turned away already. */
const crowd = (send: (index: number) => Effect.Effect<Raw>, count: number) =>
  Effect.gen(function* () {
    const requests = yield* Effect.forEach(
      Array.from({ length: count }, (_, index) => index),
      (index) => Effect.fork(send(index)),
      { concurrency: "unbounded" }
    )
    yield* Effect.repeat(Effect.sleep(20), {
      until: () =>
        Effect.map(Effect.forEach(requests, Fiber.poll), (polled) => polled.some((one) => one._tag === "Some"))
    })
    return Fiber.join(Fiber.all(requests))
  })

const assertTurnedAway = (answers: ReadonlyArray<Raw>) => {
  const away = answers.filter(({ status }) => status === 503)
  assert.isAtLeast(away.length, 1)
  for (const { body, headers } of away) {
    assertErrorBody(body, "OVERLOADED")
    assert.ok(Number(headers.get("retry-after")) > 0)
  }
  return away.length
}

describe("a body without end (X4, S22)", () => {
  it.scopedLive("is answered at the limit and costs at most 20 MiB of memory, of a gigabyte", () =>
    Effect.gen(function* () {
      const { url, resident } = yield* child
      // What the first requests compile and allocate once is no cost of the flood.
      for (let index = 0; index < 300; index++) yield* put(url, `v-${index % 10}`)
      yield* flood(url, 1024 * MIB, resident, false)
      const before = resident()
      const polite = yield* flood(url, 1024 * MIB, resident, true)
      const between = resident()
      const deaf = yield* flood(url, 1024 * MIB, resident, false)
      for (const { text } of [polite, deaf]) {
        assert.deepStrictEqual(
          received(text).map(({ status }) => status),
          [413]
        )
        assertErrorBody(received(text)[0]?.body ?? {}, "TOO_LARGE")
      }
      assert.isBelow(polite.sent, 64 * MIB)
      assert.strictEqual(deaf.sent, 1024 * MIB)
      assert.isAtMost(polite.peak - before, 20 * MIB)
      // Of one that does not listen nothing is kept either; what was thrown away waits for the garbage collector.
      assert.isAtMost(deaf.peak - between, 64 * MIB)
      assert.strictEqual((yield* send(`${url}/livez`)).status, 200)
    })
  )
})

describe("requests at once (S22, e7)", () => {
  it.scopedLive("are turned away above the limit, while probes and those that wait are answered", () =>
    Effect.gen(function* () {
      const { url, world } = yield* start()
      assert.strictEqual((yield* put(url, "first")).status, 201)
      const gate = yield* latch
      world.inWrite = gate.wait
      const answers = yield* crowd((index) => put(url, `v-${index}`), 300)
      for (const path of ["/livez", "/readyz", "/health", "/api/v2/volumes/first?wait=Ready:True&timeout=10ms"])
        assert.strictEqual((yield* send(`${url}${path}`)).status, 200, path)
      assert.strictEqual((yield* send(`${url}/api/v2/volumes`)).status, 503)
      yield* gate.open
      const all = yield* answers
      const away = assertTurnedAway(all)
      assert.isTrue(all.every(({ status }) => status === 503 || status === 201))
      assert.strictEqual(world.declarations.length, 1 + all.length - away)
    })
  )

  it.scopedLive("that are held back have a limit of their own, and leave the others their places", () =>
    Effect.gen(function* () {
      const { url, world, tick } = yield* start()
      yield* put(url, "a")
      const answers = yield* crowd(() => send(`${url}/api/v2/volumes/a?wait=Ready:True&timeout=50s`), 1_020)
      assert.strictEqual((yield* put(url, "b")).status, 201)
      world.ready = new Set(["a"])
      yield* tick
      const all = yield* answers
      assert.isAtMost(assertTurnedAway(all), 20)
      assert.isTrue(all.every(({ status }) => status === 503 || status === 200))
    })
  )

  it.scopedLive("do not get the places of those that wait by a word in their query", () =>
    Effect.gen(function* () {
      const { url, world } = yield* start()
      const gate = yield* latch
      world.inWrite = gate.wait
      const create = (index: number) =>
        send(`${url}/api/v1/volumes?wait=1s`, { method: "POST", json: { name: `v-${index}`, size: 2 ** 30 } })
      const answers = yield* crowd(create, 300)
      yield* gate.open
      const away = assertTurnedAway(yield* answers)
      assert.strictEqual(world.declarations.length, 300 - away)
    })
  )

  it.scopedLive("are refused at once while the database is away, and all is well when it is back (B1)", () =>
    Effect.gen(function* () {
      const { url, world } = yield* start()
      world.databaseDown = true
      const refused = yield* Effect.forEach(
        Array.from({ length: 200 }, (_, index) => index),
        (index) => put(url, `v-${index}`),
        { concurrency: "unbounded" }
      )
      for (const { status, body, headers } of refused) {
        assert.strictEqual(status, 503)
        assert.include(["DATABASE_UNAVAILABLE", "OVERLOADED"], body["code"])
        assert.ok(headers.get("retry-after"))
      }
      world.databaseDown = false
      assert.strictEqual((yield* put(url, "a")).status, 201)
    })
  )
})

describe("requests in a row (X14)", () => {
  const tokens = ["first-AAAAAAAAAAAAAAAAAAAAAAA", "second-BBBBBBBBBBBBBBBBBBBBBB"] as const

  const startWithTokens = (rate_limit: number) =>
    Effect.gen(function* () {
      const directory = yield* Effect.acquireRelease(
        Effect.sync(() => Fs.mkdtempSync(Path.join(Os.tmpdir(), "volumed-limits-"))),
        (path) => Effect.sync(() => Fs.rmSync(path, { recursive: true, force: true }))
      )
      const token_file = Path.join(directory, "tokens")
      const line = (token: string) => `read-write sha256:${createHash("sha256").update(token).digest("hex")}\n`
      Fs.writeFileSync(token_file, tokens.map(line).join(""), { mode: 0o600 })
      return yield* start({ token_file, rate_limit })
    })

  const read = (url: string, token: string) =>
    send(`${url}/api/v2/volumes`, { headers: { authorization: `Bearer ${token}` } })

  it.scopedLive("are limited for each token: a burst of twice the rate, then 429 with Retry-After", () =>
    Effect.gen(function* () {
      const { url } = yield* startWithTokens(2)
      const answers = yield* Effect.forEach(Array.from({ length: 20 }), () => read(url, tokens[0]))
      const passed = answers.filter(({ status }) => status === 200)
      assert.isAtLeast(passed.length, 4)
      assert.isBelow(passed.length, 20)
      for (const { status, body, headers } of answers) {
        if (status === 200) continue
        assert.strictEqual(status, 429)
        assertErrorBody(body, "RATE_LIMITED")
        assert.strictEqual(headers.get("retry-after"), "1")
        assert.notMatch(String(body["error"]), /timeout|device/)
      }
      assert.strictEqual((yield* read(url, tokens[1])).status, 200)
      for (let index = 0; index < 20; index++) assert.strictEqual((yield* send(`${url}/livez`)).status, 200)
      yield* Effect.repeat(Effect.delay(read(url, tokens[0]), 100), { until: ({ status }) => status === 200 })
    })
  )

  it.scopedLive("are not limited where RATE_LIMIT is 0, or no token is asked for", () =>
    Effect.gen(function* () {
      const unlimited = yield* startWithTokens(0)
      const open = yield* start({ rate_limit: 1 })
      for (const { url } of [unlimited, open]) {
        const answers = yield* Effect.forEach(Array.from({ length: 20 }), () => read(url, tokens[0]))
        assert.isTrue(answers.every(({ status }) => status === 200))
      }
    })
  )

  it.scopedLive(
    "declare no more than DECLARATIONS_MAX, whoever they are of, and change what there is all the same",
    () =>
      Effect.gen(function* () {
        const { url, world } = yield* start({ declarations_max: 3 })
        for (const name of ["a", "b"]) assert.strictEqual((yield* put(url, name)).status, 201)
        const volumes = ["c", "d"].map((name) => ({ name, size: "1Gi" }))
        const tooMany = yield* send(`${url}/api/v2/apply`, { method: "POST", json: { volumes } })
        assert.strictEqual(tooMany.status, 429)
        assertErrorBody(tooMany.body, "RATE_LIMITED")
        assert.ok(tooMany.headers.get("retry-after"))
        assert.match(JSON.stringify(tooMany.body), /DECLARATIONS_MAX/)
        assert.strictEqual(world.declarations.length, 2)
        assert.strictEqual((yield* put(url, "c")).status, 201)
        assert.strictEqual((yield* put(url, "d")).status, 429)
        assert.strictEqual((yield* put(url, "a")).status, 200)
        // Somebody's volume went away: there is room again as soon as it is seen.
        world.declarations = world.declarations.slice(1)
        yield* Effect.repeat(Effect.delay(put(url, "d"), 100), { until: ({ status }) => status === 201 })
      })
  )
})
