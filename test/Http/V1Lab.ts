import { assert } from "@effect/vitest"
import { Clock, Context, Effect, Layer, Logger, LogLevel, Random, Schema, TestClock } from "effect"
import { OperationAnswer } from "../../schema/Api.ts"
import type { OfferingId, VolumeId } from "../../schema/Ids.ts"
import { limits } from "../../schema/Settings.ts"
import * as Server from "../../src/Http/Server.ts"
import * as World from "../../src/Simulation/World.ts"
import * as Cloud from "../support/Cloud.ts"

/**
 * The old daemon's clients, over real HTTP, on the whole controller and the in-memory cloud. The clock is virtual, so that
 * a deadline of minutes is a matter of milliseconds; the sockets are real.
 */
export type Json = Readonly<Record<string, unknown>>

export interface Answered {
  readonly status: number
  readonly headers: Headers
  readonly body: Json
}

export interface Operation {
  readonly id: string
  readonly vm_id?: string
  readonly request: Json
  readonly type: string
  readonly status: string
  readonly volume_id: string
  readonly error?: string
  readonly response?: Json
  readonly name: string
}

type Services = Layer.Layer.Success<ReturnType<typeof Cloud.layer>>

export { limits }

const options: Server.Options = {
  limits,
  v1_attach_exports: true,
  listen: [{ host: "127.0.0.1", port: 0 }],
  token_file: null,
  tls: null,
  rate_limit: 100_000,
  declarations_max: 100_000,
  resync_idle_ms: 60_000,
  nbd: { backend: "simulated", host: "127.0.0.1", port: 10809 },
  sandbox: true,
  insecure: [],
  appliance_vm_id: Cloud.appliance,
  default_disk_offering_id: World.OFFERING_ID as OfferingId,
  delete_grace_ms: 600_000,
  version: "0.0.0-test"
}

export interface Api {
  readonly url: string
  readonly send: (
    method: string,
    path: string,
    body?: unknown,
    headers?: Record<string, string>
  ) => Effect.Effect<Answered>
}

/** Answers `body`'s value. `change`: settings that differ. */
export const run = <A, E>(
  lab: Cloud.Lab,
  body: (api: Api) => Effect.Effect<A, E, Services>,
  change: Partial<Server.Options> = {}
) => {
  const effect = Effect.gen(function* () {
    const context = yield* Layer.build(
      Server.layer({ ...options, ...change }).pipe(Layer.provide(Logger.minimumLogLevel(LogLevel.None)))
    )
    const url = Context.get(context, Server.Server).addresses[0]?.url ?? ""
    // What a client sees first is an observation, not that there is none yet.
    yield* Cloud.pass(2_000)
    return yield* body(over(url))
  })
  return Effect.andThen(
    TestClock.setTime(Cloud.START),
    Effect.scoped(Effect.provide(effect, Layer.fresh(Cloud.layer(lab))))
  ).pipe((whole) => Effect.suspend(() => Effect.withRandom(whole, Random.make("version 1"))))
}

export const over = (url: string): Api => ({
  url,
  send: (method, path, body, headers = {}) =>
    Effect.promise(async (signal) => {
      const response = await fetch(`${url}/api/v1${path}`, {
        method,
        signal,
        headers: { ...headers, ...(body === undefined ? {} : { "content-type": "application/json" }) },
        ...(body === undefined ? {} : { body: typeof body === "string" ? body : JSON.stringify(body) })
      })
      const text = await response.text()
      return { status: response.status, headers: response.headers, body: (text === "" ? {} : JSON.parse(text)) as Json }
    })
})

/** The call must be accepted: 201, pending, nothing known of its end. */
export const accepted = (answer: Effect.Effect<Answered>, status = 201) =>
  Effect.map(answer, ({ body, status: found }) => {
    assert.strictEqual(found, status, JSON.stringify(body))
    const operation = decoded(body)
    assert.strictEqual(operation.status, "pending")
    assert.match(operation.id, /^op-[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/u)
    for (const key of ["response", "error", "completed_at"]) assert.notProperty(operation, key)
    return operation
  })

export const operation = (api: Api, id: string) =>
  Effect.map(api.send("GET", `/operations/${id}`), ({ body }) => decoded(body))

/** Exactly the documented members, times and ids in their forms. */
const decoded = (body: unknown): Operation =>
  Schema.decodeUnknownSync(OperationAnswer)(body, { onExcessProperty: "error" })

/** Asks as time passes, less often as it grows long, until the operation has ended; answers it and how long it took, ms. */
export const ended = (api: Api, { id }: Operation) =>
  Effect.gen(function* () {
    const isOver = Effect.map(operation(api, id), ({ status }) => !["pending", "executing"].includes(status))
    const soon = yield* Cloud.until(isOver, 20_000, 500)
    const took = soon >= 0 ? soon : 20_500 + (yield* Cloud.until(isOver, 300_000, 2_500))
    const end = yield* operation(api, id)
    assert.isTrue(["completed", "failed", "cancelled"].includes(end.status), JSON.stringify(end))
    return { ...end, took }
  })

export const completed = (api: Api, answer: Effect.Effect<Answered>, status?: number) =>
  Effect.flatMap(accepted(answer, status), (call) => ended(api, call)).pipe(
    Effect.tap((end) => assert.strictEqual(end.status, "completed", JSON.stringify(end)))
  )

export const failed = (api: Api, answer: Effect.Effect<Answered>) =>
  Effect.flatMap(accepted(answer), (call) => ended(api, call)).pipe(
    Effect.tap((end) => assert.strictEqual(end.status, "failed", JSON.stringify(end)))
  )

export const GIB = 1024 ** 3

/** A new volume's id. */
export const created = (api: Api, name: string) =>
  Effect.map(
    completed(api, api.send("POST", "/volumes", { name, size: 5 * GIB })),
    ({ volume_id }) => volume_id as VolumeId
  )

export const attach = (api: Api, id: string, vm_id: string) => api.send("POST", `/volumes/${id}/attach`, { vm_id })
export const attachRoot = (api: Api, id: string, vm_id: string) =>
  api.send("POST", `/volumes/${id}/attach-root`, { vm_id })
export const detach = (api: Api, id: string) => api.send("POST", `/volumes/${id}/detach`)
export const remove = (api: Api, id: string) => api.send("DELETE", `/volumes/${id}`)

export const truth = (lab: Cloud.Lab) => Effect.map(Clock.currentTimeMillis, (now) => lab.world.truth(now))

/** Where CloudStack's ground truth has a volume: a VM, nowhere (null), or not at all (undefined). */
export const whereIs = (lab: Cloud.Lab, id: string) =>
  Effect.map(truth(lab), ({ volumes }) => volumes.find((volume) => volume.id === id)?.vm_id)

export const operate = (lab: Cloud.Lab, act: Parameters<World.World["act"]>[0]) =>
  Effect.map(Clock.currentTimeMillis, (now) => {
    const outcome = lab.world.act(act, now)
    assert.isTrue(outcome.done, JSON.stringify(outcome))
    return outcome.done ? (outcome.volume_id ?? "") : ""
  })

export const faults = (lab: Cloud.Lab, ...list: Parameters<World.World["setFaults"]>[0]) =>
  Effect.map(Clock.currentTimeMillis, (now) => lab.world.setFaults(list, now))

/** A volume that CloudStack had all along and nobody declared; on a VM where one is named. */
export const existing = (lab: Cloud.Lab, name: string, vm_id?: string) =>
  Effect.map(Clock.currentTimeMillis, (now) => {
    const seeded = { name, size_gib: 5, ...(vm_id === undefined ? {} : { vm_id }) }
    return lab.world.seedVolume(seeded, now).id as VolumeId
  })

/** Nothing was done that no controller should do. */
export const quiet = (lab: Cloud.Lab) =>
  Effect.map(truth(lab), ({ violations }) => assert.deepStrictEqual(violations, []))

/** What an old client makes of an error's words: which of its five classes, and whether it tries again. */
export const classify = (text: string): string => {
  const words: ReadonlyArray<readonly [string, string]> = [
    ["CloudStack API error 431", "CLOUDSTACK_INVALID_PARAMETER"],
    ["CloudStack API error 432", "CLOUDSTACK_RESOURCE_LIMIT"],
    ["timeout", "OPERATION_TIMEOUT"],
    ["device", "DEVICE_CORRELATION_FAILED"]
  ]
  return words.find(([word]) => text.includes(word))?.[1] ?? "UNKNOWN_ERROR"
}
