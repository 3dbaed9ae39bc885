import { createHmac } from "node:crypto"
import * as CloudStackServer from "../../src/Simulation/CloudStackServer.ts"
import * as World from "../../src/Simulation/World.ts"

/** A tiny client of its own, so that server and real client cannot share one mistake about the wire. */
export const START = Date.parse("2026-03-01T12:00:00Z")

export type Params = Readonly<Record<string, string>>

const java = (text: string) => new URLSearchParams({ v: text }).toString().slice(2).replaceAll("+", "%20")

/** A signed form body; `over` replaces or adds parameters before signing. */
export const signed = (params: Params, now: number, secret: string = World.SECRET_KEY): string => {
  const all: Record<string, string> = {
    apikey: World.API_KEY,
    response: "json",
    signatureversion: "3",
    expires: new Date(now + 60_000).toISOString(),
    ...params
  }
  const canonical = Object.keys(all)
    .sort()
    .map((key) => `${key}=${java(all[key] ?? "")}`)
    .join("&")
  const signature = createHmac("sha1", secret).update(canonical.toLowerCase()).digest("base64")
  return new URLSearchParams({ ...all, signature }).toString()
}

export const post = (world: World.World, body: string, now: number): CloudStackServer.Outcome =>
  CloudStackServer.handle(world, { method: "POST", url: "/client/api", headers: {}, body }, now)

/** A signed call, answered at once. */
export const api = (world: World.World, command: string, params: Params, now: number): CloudStackServer.Outcome =>
  post(world, signed({ command, ...params }, now), now)

export interface Answered {
  readonly status: number
  // The answers of a foreign system: tests look at what they expect to be there.
  readonly body: Readonly<Record<string, unknown>>
  readonly text: string
  readonly headers: Readonly<Record<string, string>>
}

/** The inside of the envelope. */
export const ask = (world: World.World, command: string, params: Params, now: number): Answered => {
  const outcome = api(world, command, params, now)
  if (!("status" in outcome)) throw new Error(`${command} was not answered`)
  return { ...outcome, text: outcome.body, body: inside(outcome.body) }
}

export const inside = (text: string): Readonly<Record<string, unknown>> => {
  const parsed: unknown = JSON.parse(text)
  const [first] = Object.values(parsed as Record<string, Record<string, unknown>>)
  return first ?? {}
}

export const rows = (answer: Answered, key = "volume"): ReadonlyArray<Readonly<Record<string, unknown>>> =>
  (answer.body[key] ?? []) as ReadonlyArray<Readonly<Record<string, unknown>>>

export const job = (world: World.World, id: unknown, now: number): Readonly<Record<string, unknown>> =>
  ask(world, "queryAsyncJobResult", { jobid: String(id) }, now).body

/** Text of a failed job. */
export const jobText = (answer: Readonly<Record<string, unknown>>): unknown =>
  (answer["jobresult"] as Record<string, unknown> | undefined)?.["errortext"]

export const createVolume = (world: World.World, name: string, now: number, gib = 1): string =>
  String(
    ask(
      world,
      "createVolume",
      { name, diskofferingid: World.OFFERING_ID, zoneid: World.ZONE_ID, size: String(gib) },
      now
    ).body["id"]
  )

export const attach = (world: World.World, id: string, vm: string, now: number): unknown =>
  ask(world, "attachVolume", { id, virtualmachineid: vm }, now).body["jobid"]

export const detach = (world: World.World, id: string, now: number): unknown =>
  ask(world, "detachVolume", { id }, now).body["jobid"]
