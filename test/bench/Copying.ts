import { Effect } from "effect"
import { spawn } from "node:child_process"
import { once } from "node:events"
import { closeSync, openSync, writeSync } from "node:fs"
import { randomFillSync } from "node:crypto"
import { join } from "node:path"
import type * as Appliance from "../Nbd/Appliance.ts"
import * as Engine from "../Nbd/Engine.ts"
import * as Measure from "./Measure.ts"

const BYTES = 2 ** 30
const CHUNK = 16 * 2 ** 20
const ROUNDS = 7
const CONNECTIONS = [4, 1] as const

/**
 * Reading one disk to the end through each engine as volumed sets it up, in turn: nbd-server, by its by-id path and with
 * its device pinned, and nbdkit. The bytes lie in the page cache, so that the engine is what is measured.
 */
export const measure = (): Promise<ReadonlyArray<Measure.Measure>> =>
  Effect.runPromise(
    Effect.scoped(
      Effect.gen(function* () {
        const uris = {
          byId: yield* served(Engine.nbdServer, false),
          pinned: yield* served(Engine.nbdServer, true),
          nbdkit: yield* served(Engine.nbdkit, false)
        }
        const engines = Object.keys(uris) as ReadonlyArray<keyof typeof uris>
        const times = new Map<string, Array<number>>()
        for (let round = 0; round <= ROUNDS; round++) {
          for (const connections of CONNECTIONS) {
            for (const engine of engines) {
              const ms = yield* copied(uris[engine], connections)
              // The first round fills the page cache and does not count.
              if (round > 0) times.set(`${engine}${connections}`, [...(times.get(`${engine}${connections}`) ?? []), ms])
            }
          }
        }
        const rate = (engine: keyof typeof uris, connections: number) =>
          (BYTES / 2 ** 20 / Measure.median(times.get(`${engine}${connections}`) ?? [])) * 1_000
        return CONNECTIONS.flatMap((connections) => [
          line("nbdkit", connections, rate("nbdkit", connections), rate("byId", connections)),
          line("nbd-server, device pinned", connections, rate("pinned", connections), rate("byId", connections))
        ])
      })
    )
  )

const line = (engine: string, connections: number, measured: number, against: number): Measure.Measure => ({
  name: `read 1 GiB, ${connections} ${connections === 1 ? "connection" : "connections"}: ${engine}`,
  measured: `${measured.toFixed(0)} MiB/s`,
  against: `nbd-server: ${against.toFixed(0)} MiB/s`,
  ratio: measured / against,
  bound: null
})

/** A disk of bytes that no engine can leave out as a hole. */
const filled = (appliance: Appliance.Appliance) =>
  Effect.sync(() => {
    const disk = appliance.disk("disk", BYTES)
    const file = openSync(join(appliance.dir, "dev/disk"), "r+")
    const chunk = randomFillSync(Buffer.alloc(CHUNK))
    for (let at = 0; at < BYTES; at += CHUNK) writeSync(file, chunk, 0, CHUNK, at)
    closeSync(file)
    return disk
  })

/** By volumed's own adapter on the real program. */
const served = (engine: Engine.Engine, pin: boolean) =>
  Effect.gen(function* () {
    const appliance = yield* engine.make
    const nbd = yield* engine.adapter(appliance, { nbd: { ...appliance.options.nbd, pin } })
    const disk = yield* filled(appliance)
    yield* nbd.load({ set: [disk], drop: [] })
    return engine.uri(appliance, disk)
  })

const copied = (uri: string, connections: number): Effect.Effect<number> =>
  Effect.promise(async () => {
    const begun = performance.now()
    const child = spawn("nbdcopy", [`--connections=${connections}`, uri, "null:"], { stdio: "ignore" })
    const [code] = (await once(child, "exit")) as [number | null]
    if (code !== 0) throw new Error(`nbdcopy ended with ${code}`)
    return performance.now() - begun
  })
