import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import * as Fs from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as CloudStackServer from "../../src/Simulation/CloudStackServer.ts"
import * as RequestLog from "../../src/Simulation/RequestLog.ts"
import * as World from "../../src/Simulation/World.ts"
import { signed } from "./Wire.ts"

const BEGIN = Date.parse("2026-01-01T00:00:00Z")

const temporary = Effect.acquireRelease(
  Effect.sync(() => Fs.mkdtempSync(join(tmpdir(), "volumed-log-"))),
  (dir) => Effect.sync(() => Fs.rmSync(dir, { recursive: true, force: true }))
)

/** The world on paper, as it is at this time. */
const written = (world: World.World, now: number): ReturnType<World.World["save"]> =>
  JSON.parse(JSON.stringify(world.save(now)))

const begin = () => World.make({ now: BEGIN, seed: 5 })

const request = (params: Readonly<Record<string, string>>, now: number) => ({
  method: "POST",
  url: "/client/api",
  headers: {},
  body: signed(params, now)
})

const create = (name: string) => ({
  command: "createVolume",
  name,
  size: "1",
  diskofferingid: World.OFFERING_ID,
  zoneid: World.ZONE_ID
})

/** As a sandbox serves a request: recorded, then carried out. */
const serve = (
  world: World.World,
  log: RequestLog.RequestLog,
  params: Readonly<Record<string, string>>,
  now: number
) => {
  log.record(request(params, now), now)
  CloudStackServer.handle(world, request(params, now), now)
}

const names = (world: World.World, now: number) =>
  world.truth(now).volumes.flatMap(({ type, name, state }) => (type === "DATADISK" ? [`${name} ${state}`] : []))

describe("the log of a sandbox that is killed", () => {
  it.scoped("gives back every world that was answered from, jobs, ids and faults that were used up included", () =>
    Effect.map(temporary, (dir) => {
      const file = join(dir, "world.log")
      const before = begin()
      const saved = written(before, BEGIN)
      const log = RequestLog.resume(before, file, 0)
      serve(before, log, create("a"), BEGIN + 1_000)
      log.record({ method: "POST", url: "/sandbox/faults", headers: {}, body: FAULT }, BEGIN + 2_000)
      CloudStackServer.handle(
        before,
        { method: "POST", url: "/sandbox/faults", headers: {}, body: FAULT },
        BEGIN + 2_000
      )
      serve(before, log, { command: "listVolumes" }, BEGIN + 3_000)
      const { id } = before.truth(BEGIN + 3_000).volumes.find(({ name }) => name === "a") ?? { id: "" }
      const attach = { command: "attachVolume", id, virtualmachineid: World.vmId(1) }
      serve(before, log, attach, BEGIN + 4_000)
      serve(before, log, create("b"), BEGIN + 5_000)
      const after = World.load(saved)
      RequestLog.resume(after, file, 0).close()
      assert.deepStrictEqual(written(after, BEGIN + 60_000), written(before, BEGIN + 60_000))
      assert.deepStrictEqual(names(after, BEGIN + 60_000), ["a Ready", "b Allocated"])
      log.close()
    })
  )

  it.scoped("carries nothing out a second time that was written down whole, though the lines are still there", () =>
    Effect.map(temporary, (dir) => {
      const file = join(dir, "world.log")
      const before = begin()
      const log = RequestLog.resume(before, file, 0)
      serve(before, log, create("a"), BEGIN + 1_000)
      const saved = written(before, BEGIN + 1_500)
      const applied = log.count()
      serve(before, log, create("b"), BEGIN + 2_000)
      const after = World.load(saved)
      const next = RequestLog.resume(after, file, applied)
      assert.deepStrictEqual(names(after, BEGIN + 3_000), names(before, BEGIN + 3_000))
      assert.strictEqual(next.count(), log.count())
      next.close()
      log.close()
    })
  )

  it.scoped("leaves out a line that was cut off, which nobody was answered", () =>
    Effect.map(temporary, (dir) => {
      const file = join(dir, "world.log")
      const before = begin()
      const saved = written(before, BEGIN)
      const log = RequestLog.resume(before, file, 0)
      serve(before, log, create("a"), BEGIN + 1_000)
      log.close()
      const text = Fs.readFileSync(file, "utf8")
      Fs.writeFileSync(file, text + text.slice(0, text.length / 2))
      const after = World.load(saved)
      RequestLog.resume(after, file, 0).close()
      assert.deepStrictEqual(names(after, BEGIN + 2_000), ["a Allocated"])
    })
  )
})

const FAULT = JSON.stringify([{ kind: "throttled", command: "listVolumes", times: 1 }])
