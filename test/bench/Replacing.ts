import { Deferred, Effect, Fiber } from "effect"
import { spawn } from "node:child_process"
import { once } from "node:events"
import { readFileSync, rmSync, writeFileSync } from "node:fs"
import { createHash } from "node:crypto"
import { join } from "node:path"
import type { Nbd, WantedExport } from "../../reconciler/Nbd.ts"
import * as Handshake from "../../src/Nbd/Handshake.ts"
import * as Processes from "../../src/Nbd/Processes.ts"
import * as Appliance from "../Nbd/Appliance.ts"
import * as Measure from "./Measure.ts"

const ROUNDS = 20
const EXPORTS = 10
const TRANSFER_BYTES = 24 * 2 ** 20
const GIVE_UP_MS = 60_000

/**
 * How long no new client is let in while the set of exports changes: the way volumed does it (file replaced, the main
 * alone killed and started) beside a plain stop and start of the same server with the same file, as `systemctl restart`
 * does. In turn, so that whatever else the machine does hits both alike; each time with a transfer under way.
 */
export const measure = (): Promise<ReadonlyArray<Measure.Measure>> =>
  Effect.runPromise(
    Effect.scoped(
      Effect.gen(function* () {
        const appliance = yield* Appliance.make
        const nbd = yield* Appliance.adapter(appliance)
        const long = appliance.disk("long", TRANSFER_BYTES)
        writeFileSync(join(appliance.dir, "dev/long"), Buffer.alloc(TRANSFER_BYTES, "not all zeros "))
        const others = Array.from({ length: EXPORTS }, (_, at) => appliance.disk(`disk${at}`))
        const set = [long, ...others]
        yield* nbd.load({ set, drop: [] })
        const ours: Array<Change> = []
        const plain: Array<Change> = []
        for (let round = 0; round < ROUNDS; round++) {
          ours.push(yield* change(appliance, replaced(nbd, set, round)))
          plain.push(yield* change(appliance, restarted(appliance)))
          // What the restart tore down is put right by nobody but us.
          yield* nbd.load({ set: wanted(set, round), drop: [] })
        }
        return lines(ours, plain)
      })
    )
  )

const wanted = (set: ReadonlyArray<WantedExport>, round: number) => (round % 2 === 0 ? set.slice(0, -1) : set)

/** One export less, or one more: the server has to serve another file. */
const replaced = (nbd: Nbd["Type"], set: ReadonlyArray<WantedExport>, round: number) => {
  const next = wanted(set, round)
  return Effect.orDie(
    nbd.load({ set: next, drop: set.flatMap(({ name }) => (next.some((one) => one.name === name) ? [] : [name])) })
  )
}

/** Stop: SIGTERM and wait for its end. Start: the very command line that is run otherwise. */
const restarted = (appliance: Appliance.Appliance) =>
  Effect.promise(async () => {
    const pid_file = join(appliance.options.state_dir, "nbd-server.pid")
    const pid = Number(readFileSync(pid_file, "latin1"))
    process.kill(pid, "SIGTERM")
    while (Processes.find(pid) !== null) await new Promise((done) => setTimeout(done, 1))
    rmSync(pid_file, { force: true })
    const child = spawn("nbd-server", ["-C", appliance.place.config, "-p", pid_file], { cwd: "/", stdio: "ignore" })
    await once(child, "exit")
  })

interface Change {
  /** ms between the last GO that was granted before the server went and the first one after. */
  readonly gap: number
  /** Of these the ms in which who came was turned away; who came later was let in, once the server was ready. */
  readonly refused: number
  /** The transfer that was under way ended well, its bytes right. */
  readonly survived: boolean
}

/** Probes before, while and after; the transfer begins before and ends after. */
const change = (appliance: Appliance.Appliance, work: Effect.Effect<void>): Effect.Effect<Change> =>
  Effect.scoped(
    Effect.gen(function* () {
      const transfer = yield* Appliance.transfer(appliance, "long")
      const over = yield* Deferred.make<void>()
      const probing = yield* Effect.fork(probes(appliance, over))
      yield* Effect.sleep("50 millis")
      yield* work
      yield* Deferred.succeed(over, undefined)
      const { gap, refused } = yield* Fiber.join(probing)
      const { code, sha256 } = yield* transfer.finish
      const right = createHash("sha256")
        .update(readFileSync(join(appliance.dir, "dev/long")))
        .digest("hex")
      return { gap, refused, survived: code === 0 && sha256 === right }
    })
  )

/** One connection and one GO after the other, until the change is over and a client was let in after it. */
const probes = (appliance: Appliance.Appliance, over: Deferred.Deferred<void>) =>
  Effect.gen(function* () {
    const end = performance.now() + GIVE_UP_MS
    let [gap, refused, granted] = [0, 0, performance.now()]
    for (;;) {
      const last = yield* Deferred.isDone(over)
      const came = performance.now()
      const { _tag } = yield* Handshake.ask({ ...appliance.place, name: "disk0" })
      const now = performance.now()
      if (_tag === "Served") {
        if (now - granted > gap) [gap, refused] = [now - granted, came - granted]
        granted = now
        if (last) return { gap, refused }
      } else if (now > end) return yield* Effect.dieMessage(`nobody is let in again within ${GIVE_UP_MS / 1_000} s`)
    }
  })

const lines = (ours: ReadonlyArray<Change>, plain: ReadonlyArray<Change>): ReadonlyArray<Measure.Measure> => {
  const window = (name: string, of: (change: Change) => number): Measure.Measure => {
    const text = (values: ReadonlyArray<number>) =>
      `${Measure.median(values).toFixed(0)} ms, worst ${Math.max(...values).toFixed(0)} ms`
    const [measured, against] = [ours.map(of), plain.map(of)]
    return {
      name,
      measured: text(measured),
      against: `stop and start: ${text(against)}`,
      ratio: Measure.median(measured) / Measure.median(against),
      bound: null
    }
  }
  const died = (changes: ReadonlyArray<Change>) => changes.filter(({ survived }) => !survived).length
  return [
    window(`exports changed ${ROUNDS} times: no new client let in for`, ({ gap }) => gap),
    window("… of this, new clients turned away for", ({ refused }) => refused),
    {
      name: "… transfers under way that died",
      measured: `${died(ours)} of ${ROUNDS}`,
      against: `stop and start: ${died(plain)} of ${ROUNDS}`,
      ratio: died(ours) / Math.max(1, died(plain)),
      bound: 0
    }
  ]
}
