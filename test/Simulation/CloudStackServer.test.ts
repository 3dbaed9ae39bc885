import * as HttpClient from "@effect/platform/HttpClient"
import * as HttpClientRequest from "@effect/platform/HttpClientRequest"
import { assert, describe, it } from "@effect/vitest"
import { Effect, Exit, Fiber, Scope, TestClock } from "effect"
import { createHmac } from "node:crypto"
import { connect } from "node:net"
import * as CloudStackServer from "../../src/Simulation/CloudStackServer.ts"
import * as World from "../../src/Simulation/World.ts"
import { ask, inside, post, rows, signed, START } from "./Wire.ts"

const world = (options: Partial<World.Options> = {}) => World.make({ now: START, ...options })
const answer = (w: World.World, body: string, now = START) => {
  const outcome = post(w, body, now)
  if (!("status" in outcome)) throw new Error("not answered")
  return outcome
}
const list = { command: "listVolumes" }
const REFUSED = "unable to verify user credentials and/or request signature"

describe("the signature, as CloudStack checks it", () => {
  it("accepts a signed POST, and the same by GET", () => {
    const w = world()
    assert.strictEqual(answer(w, signed(list, START)).status, 200)
    const url = `/client/api?${signed(list, START)}`
    const got = CloudStackServer.handle(w, { method: "GET", url, headers: {}, body: "" }, START)
    assert.deepInclude(got, { status: 200 })
  })

  it("accepts every mark as Java encodes it, and refuses what encodeURIComponent makes of them", () => {
    const w = world()
    const name = "a b*c~d'e(f)g!h/ü+&="
    assert.strictEqual(answer(w, signed({ ...list, name }, START)).status, 200)
    const params = { apikey: World.API_KEY, command: "listVolumes", name, response: "json" }
    const text = Object.entries(params).map(([key, value]) => `${key}=${encodeURIComponent(value)}`)
    const naive = createHmac("sha1", World.SECRET_KEY).update(text.join("&").toLowerCase()).digest("base64")
    assert.strictEqual(answer(w, new URLSearchParams({ ...params, signature: naive }).toString()).status, 401)
  })

  it("sorts by the name as sent, code unit by code unit", () => {
    const params = { Zoneid: World.ZONE_ID, ...list }
    assert.strictEqual(answer(world(), signed(params, START)).status, 200)
  })

  for (const [what, body] of [
    ["a wrong secret", signed(list, START, "wrong")],
    ["a changed parameter", signed(list, START).replace("listVolumes", "listZones")],
    ["an unknown key", signed({ ...list, apikey: "nobody" }, START)],
    ["version 3 without expires", signed({ ...list, expires: "" }, START)],
    ["a date that is none", signed({ ...list, expires: "tomorrow" }, START)],
    ["an expired request", signed(list, START - 60_000)],
    ["no signature", "command=listVolumes&response=json"]
  ] as const) {
    it(`refuses ${what}: 401 without cserrorcode`, () => {
      const refused = answer(world(), body)
      assert.strictEqual(refused.status, 401)
      assert.deepStrictEqual(inside(refused.body), { uuidList: [], errorcode: 401, errortext: REFUSED })
      assert.notProperty(refused.headers, "x-description")
    })
  }

  it("accepts until the very expiry, with an offset too, and ignores expires without version 3", () => {
    assert.strictEqual(answer(world(), signed(list, START), START + 59_999).status, 200)
    assert.strictEqual(answer(world(), signed(list, START), START + 60_000).status, 401)
    const offset = signed({ ...list, expires: "2026-03-01T14:00:01+0200" }, START)
    assert.strictEqual(answer(world(), offset).status, 200)
    const eternal = signed({ ...list, signatureversion: "1", expires: "2001-01-01T00:00:00Z" }, START)
    assert.strictEqual(answer(world(), eternal).status, 200)
  })

  it("names the envelope after what it knows: unknown command, none at all", () => {
    assert.match(answer(world(), signed({ command: "listvolumes" }, START)).body, /^\{"errorresponse":/)
    assert.match(answer(world(), "response=json").body, /^\{"null":/)
    assert.match(answer(world(), signed({ command: "constructor" }, START)).body, /^\{"errorresponse":/)
  })

  it("meets the rate limit before the signature", () => {
    const w = world({ faults: [{ kind: "throttled" }] })
    assert.strictEqual(answer(w, signed(list, START, "wrong")).status, 429)
  })

  it("can insist on POST, version 3 and a near expiry", () => {
    const w = world({ enforce_post: true })
    const url = `/client/api?${signed({ command: "deleteVolume", id: "x" }, START)}`
    const got = CloudStackServer.handle(w, { method: "GET", url, headers: {}, body: "" }, START)
    assert.match(JSON.stringify(got), /State changing command deleteVolume needs to be sent using POST request/)
    assert.strictEqual(answer(w, signed({ ...list, signatureversion: "1" }, START)).status, 401)
    assert.strictEqual(answer(w, signed(list, START + 15 * 60_000)).status, 401)
    assert.strictEqual(answer(w, signed(list, START)).status, 200)
  })
})

describe("envelopes", () => {
  it("say a refusal with status, X-Description and uuidList", () => {
    const refused = answer(world(), signed({ ...list, page: "1" }, START))
    assert.strictEqual(refused.status, 431)
    assert.strictEqual(refused.headers["x-description"], '"pagesize" parameter is required when "page" is specified')
    assert.strictEqual(refused.headers["content-type"], "application/json; charset=UTF-8")
  })

  it("have no keys for an empty list, and a count alone past the end", () => {
    const w = world({ vms: 0 })
    assert.strictEqual(ask(w, "listVolumes", { name: "none" }, START).text, '{"listvolumesresponse":{}}')
    const past = ask(w, "listVolumes", { page: "9", pagesize: "10" }, START)
    assert.strictEqual(past.text, '{"listvolumesresponse":{"count":1}}')
  })

  it("are XML without response=json", () => {
    const xml = answer(world(), signed({ ...list, response: "xml", page: "1" }, START))
    assert.match(xml.body, /^<\?xml .*<listvolumesresponse .*<errorcode>431<\/errorcode>/)
  })

  it("always come with a Date, and let the query string override the body", () => {
    const w = world()
    const url = "/client/api?command=listZones"
    const got = CloudStackServer.handle(w, { method: "POST", url, headers: {}, body: signed(list, START) }, START)
    assert.deepInclude(got, { status: 401 })
    assert.strictEqual(answer(w, signed(list, START)).headers["date"], "Sun, 01 Mar 2026 12:00:00 GMT")
  })

  it("carry zones, offerings and capabilities", () => {
    const w = world()
    assert.strictEqual(rows(ask(w, "listZones", {}, START), "zone")[0]?.["id"], World.ZONE_ID)
    const [custom] = rows(ask(w, "listDiskOfferings", { id: World.OFFERING_ID }, START), "diskoffering")
    assert.deepInclude(custom, { name: "Custom OSSEA", iscustomized: true, disksize: 0 })
    const { capability } = ask(w, "listCapabilities", {}, START).body
    assert.deepInclude(capability, { customdiskofferingminsize: 1, customdiskofferingmaxsize: 1024 })
  })
})

describe("the pages beside the API", () => {
  const page = (w: World.World, method: string, url: string, body = "") => {
    const outcome = CloudStackServer.handle(w, { method, url, headers: {}, body }, START)
    if (!("status" in outcome)) throw new Error("not answered")
    return { status: outcome.status, body: JSON.parse(outcome.body) as Record<string, unknown> }
  }

  it("show the ground truth", () => {
    const w = world({ vms: 1 })
    ask(w, "listZones", {}, START)
    const { status, body } = page(w, "GET", "/sandbox")
    assert.strictEqual(status, 200)
    assert.deepStrictEqual(body["calls"], { listZones: 1 })
    assert.deepStrictEqual([body["jobs"], body["violations"]], [[], []])
    assert.deepInclude((body["volumes"] as ReadonlyArray<object>)[0], {
      type: "ROOT",
      vm_id: World.APPLIANCE_VM_ID,
      created: "2026-03-01T12:00:00.000Z"
    })
  })

  it("set faults, and say what was expected of wrong ones", () => {
    const w = world()
    const set = page(w, "POST", "/sandbox/faults", '[{"kind":"http_5xx","times":1}]')
    assert.strictEqual(set.status, 200)
    assert.strictEqual(answer(w, signed(list, START)).status, 502)
    for (const body of ["", "{", '[{"kind":"nonsense"}]', '[{"kind":"html","tmies":1}]', '[{"kind":"late_effect"}]']) {
      const wrong = page(w, "POST", "/sandbox/faults", body)
      assert.strictEqual(wrong.status, 400, body)
      assert.isString(wrong.body["error"])
      assert.isDefined(wrong.body["expected"])
    }
    const now = page(w, "GET", "/sandbox/faults").body
    assert.deepStrictEqual(now, { faults: [{ fault: { kind: "http_5xx", times: 1 }, seen: 1, hits: 1 }] })
  })

  it("act as an operator would, and say why not", () => {
    const w = world()
    const made = page(w, "POST", "/sandbox/act", '{"act":"create","name":"x","size_gib":2}').body
    const act = (body: object) =>
      page(w, "POST", "/sandbox/act", JSON.stringify({ volume_id: made["volume_id"], ...body }))
    assert.strictEqual(act({ act: "attach", vm_id: World.vmId(1) }).status, 200)
    const no = act({ act: "delete" })
    assert.deepStrictEqual(
      [no.status, no.body["error"]],
      [409, "Please specify a volume that is not attached to any VM."]
    )
    assert.strictEqual(act({ act: "detach" }).status, 200)
    assert.strictEqual(act({ act: "explode" }).status, 400)
    assert.strictEqual(page(w, "GET", "/elsewhere").status, 404)
    assert.strictEqual(page(w, "GET", "//").status, 404)
  })
})

describe("the real server", () => {
  const fetched = (url: string, body: string) =>
    Effect.promise(() => fetch(`${url}/client/api`, { method: "POST", body, signal: AbortSignal.timeout(10_000) }))

  it.scopedLive("answers over HTTP on the machine's clock, and drops the connection where a fault says so", () =>
    Effect.gen(function* () {
      const w = World.make({ now: Date.now() })
      const { url } = yield* CloudStackServer.serve(w)
      const response = yield* fetched(url, signed(list, Date.now()))
      assert.strictEqual(response.status, 200)
      assert.isTrue(response.headers.has("date"))
      assert.strictEqual(inside(yield* Effect.promise(() => response.text()))["count"], 3)
      w.setFaults([{ kind: "answer_lost_after_effect" }], Date.now())
      const lost = yield* Effect.tryPromise(() =>
        fetch(`${url}/client/api`, { method: "POST", body: signed(list, Date.now()) })
      ).pipe(Effect.exit)
      assert.isTrue(Exit.isFailure(lost))
    })
  )

  it.live("closes every socket with its scope, idle and hanging ones too", () =>
    Effect.gen(function* () {
      const scope = yield* Scope.make()
      const w = World.make({ now: Date.now(), faults: [{ kind: "hang" }] })
      const { url, port } = yield* Scope.extend(CloudStackServer.serve(w), scope)
      const idle = connect(port, "127.0.0.1")
      const closed = new Promise((resolve) => idle.once("close", resolve))
      yield* Effect.promise(() => new Promise((resolve) => idle.once("connect", resolve)))
      const hanging = yield* Effect.fork(
        Effect.exit(
          Effect.tryPromise(() =>
            fetch(`${url}/client/api`, {
              method: "POST",
              body: signed(list, Date.now())
            })
          )
        )
      )
      while ((w.faults()[0]?.hits ?? 0) === 0) yield* Effect.sleep(5)
      yield* Scope.close(scope, Exit.void)
      yield* Effect.promise(() => closed)
      assert.isTrue(Exit.isFailure(yield* Fiber.join(hanging)))
    })
  )

  it.live("says which address it could not listen on", () =>
    Effect.gen(function* () {
      const { port } = yield* CloudStackServer.serve(world())
      const error = yield* Effect.flip(CloudStackServer.serve(world(), { port }))
      assert.match(error.message, /--cloudstack-listen: cannot listen on 127\.0\.0\.1:\d+: .*EADDRINUSE/)
    }).pipe(Effect.scoped)
  )
})

describe("the in-memory wire", () => {
  const send = (body: string) =>
    HttpClient.execute(
      HttpClientRequest.post("http://127.0.0.1/client/api").pipe(
        HttpClientRequest.bodyText(body, "application/x-www-form-urlencoded")
      )
    )

  it.effect("speaks under Effect's clock: an attach takes as long as the TestClock says", () => {
    const w = World.make({ now: 0, job_ms: 1_500 })
    const id = w.seedVolume({ name: "data", state: "Ready" }, 0).id
    const vm = () => w.truth(0).volumes.find((row) => row.id === id)?.vm_id
    return Effect.gen(function* () {
      const response = yield* send(signed({ command: "attachVolume", id, virtualmachineid: World.vmId(1) }, 0))
      assert.strictEqual(response.status, 200)
      assert.property(inside(yield* response.text), "jobid")
      yield* TestClock.adjust(1_500)
      yield* send(signed(list, 1_500))
      assert.strictEqual(vm(), World.vmId(1))
    }).pipe(Effect.provide(CloudStackServer.layerHttpClient(w)))
  })

  it.effect("hangs, drops and delays", () => {
    const w = World.make({ now: 0 })
    return Effect.gen(function* () {
      w.setFaults([{ kind: "answer_lost_before_effect" }], 0)
      const dropped = yield* Effect.flip(send(signed(list, 0)))
      assert.deepInclude(dropped, { _tag: "RequestError", reason: "Transport" })
      w.setFaults([{ kind: "slow_answer", ms: 5_000 }], 0)
      const slow = yield* Effect.fork(send(signed(list, 0)))
      yield* TestClock.adjust(4_999)
      assert.isNull(yield* Fiber.poll(slow).pipe(Effect.map((exit) => (exit._tag === "None" ? null : exit))))
      yield* TestClock.adjust(1)
      assert.strictEqual((yield* Fiber.join(slow)).status, 200)
      w.setFaults([{ kind: "hang" }], 5_000)
      const hung = yield* Effect.fork(Effect.timeoutOption(send(signed(list, 5_000)), 60_000))
      yield* TestClock.adjust(60_000)
      assert.strictEqual((yield* Fiber.join(hung))._tag, "None")
    }).pipe(Effect.provide(CloudStackServer.layerHttpClient(w)))
  })
})
