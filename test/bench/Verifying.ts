import { Effect } from "effect"
import { spawn } from "node:child_process"
import { once } from "node:events"
import { truncateSync } from "node:fs"
import { join } from "node:path"
import type { Nbd, WantedExport } from "../../reconciler/Nbd.ts"
import * as Handshake from "../../src/Nbd/Handshake.ts"
import * as Appliance from "../Nbd/Appliance.ts"
import * as Measure from "./Measure.ts"

const ROUNDS = 15
const TRANSFER_BYTES = 2 * 2 ** 30

/**
 * What it costs to ask for everything: a GO for each export, and for each process that grants one the device it holds.
 * Beside it the GO's alone, one after the other; and what a transfer under way loses by it.
 */
export const measure = (): Promise<ReadonlyArray<Measure.Measure>> => Effect.runPromise(Effect.scoped(measures))

const measures = Effect.gen(function* () {
  const thirty = yield* served(30)
  const hundred = yield* served(100)
  return [...(yield* verifying(thirty)), ...(yield* verifying(hundred)), yield* disturbing(thirty)]
})

interface Served {
  readonly appliance: Appliance.Appliance
  readonly nbd: Nbd["Type"]
  readonly set: ReadonlyArray<WantedExport>
}

const served = (exports: number) =>
  Effect.gen(function* () {
    const appliance = yield* Appliance.make
    const nbd = yield* Appliance.adapter(appliance)
    const set = Array.from({ length: exports }, (_, at) => appliance.disk(`disk${at}`))
    yield* nbd.load({ set, drop: [] })
    return { appliance, nbd, set } satisfies Served
  })

/** What a round between passes asks for, of so many. */
const SHARE = 3

const verifying = ({ appliance, nbd, set }: Served) =>
  Effect.gen(function* () {
    const names = set.map(({ name }) => name)
    const [whole, round, alone]: [Array<number>, Array<number>, Array<number>] = [[], [], []]
    for (let turn = 0; turn <= ROUNDS; turn++) {
      const observed = yield* timed(nbd.observe(names))
      const right = observed.value.verifications.filter(
        ({ device, outcome }) => outcome === "served" && device !== null
      )
      if (right.length !== set.length) return yield* Effect.dieMessage(`${right.length} of ${set.length} are verified`)
      const sampled = yield* timed(nbd.observe(names.slice(0, Math.ceil(names.length / SHARE))))
      const asked = yield* timed(Effect.forEach(names, (name) => Handshake.ask({ ...appliance.place, name })))
      // The first turn warms the compiler up and does not count.
      if (turn === 0) continue
      whole.push(observed.ms)
      round.push(sampled.ms)
      alone.push(asked.ms)
    }
    const line = (name: string, times: ReadonlyArray<number>): Measure.Measure => ({
      name,
      measured: `${Measure.median(times).toFixed(0)} ms (worst of ${ROUNDS}: ${Math.max(...times).toFixed(0)} ms)`,
      against: `a GO for each, one by one: ${Measure.median(alone).toFixed(0)} ms`,
      ratio: Measure.median(times) / Measure.median(alone),
      bound: null
    })
    return [
      line(`${set.length} exports verified whole, wire and devices`, whole),
      line("… a round, a third of them", round)
    ]
  })

/** A transfer of one export, by itself and with all of them verified in its midst again and again. */
const disturbing = ({ appliance, nbd, set }: Served) =>
  Effect.gen(function* () {
    const [first] = set
    if (first === undefined) return yield* Effect.dieMessage("nothing is served")
    // nbd-server asks for the size at every connect, and a hole costs it no disk.
    truncateSync(join(appliance.dir, "dev", first.name), TRANSFER_BYTES)
    const names = set.map(({ name }) => name)
    const [quiet, busy, looks]: [Array<number>, Array<number>, Array<number>] = [[], [], []]
    const again = Effect.forever(
      Effect.andThen(
        Effect.map(timed(nbd.observe(names)), ({ ms }) => looks.push(ms)),
        Effect.sleep("1 second")
      )
    )
    for (let round = 0; round < 5; round++) {
      quiet.push((yield* timed(copied(appliance.uri(first.name)))).ms)
      busy.push((yield* timed(Effect.raceFirst(copied(appliance.uri(first.name)), again))).ms)
    }
    return {
      name: "… 30 verified every second, a transfer of 2 GiB meanwhile",
      measured: `${Measure.median(busy).toFixed(0)} ms, ${Measure.median(looks).toFixed(0)} ms a verification`,
      against: `the transfer alone: ${Measure.median(quiet).toFixed(0)} ms`,
      ratio: Measure.median(busy) / Measure.median(quiet),
      bound: null
    } satisfies Measure.Measure
  })

const copied = (uri: string): Effect.Effect<void> =>
  Effect.promise(async () => {
    const child = spawn("nbdcopy", [uri, "null:"], { stdio: "ignore" })
    const [code] = (await once(child, "exit")) as [number | null]
    if (code !== 0) throw new Error(`nbdcopy ended with ${code}`)
  })

const timed = <A, E, R>(work: Effect.Effect<A, E, R>) =>
  Effect.gen(function* () {
    const begun = performance.now()
    const value = yield* work
    return { value, ms: performance.now() - begun }
  })
