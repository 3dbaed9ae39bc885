import { assert, describe, it } from "@effect/vitest"
import { Clock, Effect, Fiber } from "effect"
import { createHash } from "node:crypto"
import { readFileSync, rmSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import type { Nbd, WantedExport } from "../../reconciler/Nbd.ts"
import * as Chance from "../kill/Chance.ts"
import * as Wire from "../kill/Wire.ts"
import * as Appliance from "./Appliance.ts"

/*
 * The way volumed does it, under load: exports come, go, change their flag, and their name's path leads to another disk
 * after they were gone, while four clients read from all of them without a pause and one copy runs through it all. Nobody
 * may ever get another disk's bytes, and whoever wants what is wanted gets it within the retry that clients are told of.
 */

const MiB = 1024 * 1024
const CHANGES = 200
const NAMES = 16
const CLIENTS = 4
/** What clients are told: ask again for so long. */
const RETRY_MS = 5_000
/** At most so many changes in a load, and as many seconds as they take. */
const BATCH_MAX = 12
const LONG_COPY_BYTES = 48 * MiB

/** What one name stands for at the moment. */
interface Entry {
  readonly name: string
  /** Counts the disks that its path has led to, and stands in each as its mark. */
  generation: number
  wanted: WantedExport | null
  /** As it was wanted last. */
  last: WantedExport | null
  /** Grows whenever what clients may expect changes, before and after the load that changes it. */
  epoch: number
  changing: boolean
}

interface Figures {
  reads: number
  retries: number
  worst_ms: number
  refused: number
  readonly wrong: Array<string>
}

const mark = ({ name }: Entry, generation: number): string => `${name}#${String(generation).padStart(3, "0")}`

/** A new disk at the path of this name, the old one gone. */
const plug = (appliance: Appliance.Appliance, entry: Entry): WantedExport => {
  entry.generation++
  rmSync(join(appliance.options.by_id_dir, `virtio-${entry.name}`), { force: true })
  rmSync(join(appliance.dir, "dev", entry.name), { force: true })
  const disk = appliance.disk(entry.name)
  writeFileSync(join(appliance.dir, "dev", entry.name), mark(entry, entry.generation), { flag: "r+" })
  return disk
}

const MARK_BYTES = "disk-00#000".length

/** The mark of the disk that answers; null where none does. */
const readMark = (appliance: Appliance.Appliance, name: string): Effect.Effect<string | null> =>
  Effect.promise(() => Wire.read(appliance.place, name, 512).catch(() => null)).pipe(
    Effect.map((bytes) => bytes?.subarray(0, MARK_BYTES).toString("latin1") ?? null)
  )

/** One client: reads whatever may be there, and judges what it gets by what was true while it asked. */
const client = (
  appliance: Appliance.Appliance,
  entries: ReadonlyArray<Entry>,
  chance: Chance.Chance,
  figures: Figures
) =>
  Effect.gen(function* () {
    const entry = entries[chance.whole(0, entries.length - 1)]
    if (entry === undefined) return
    const { epoch, generation, wanted, changing } = entry
    const begin = yield* Clock.currentTimeMillis
    let got = yield* readMark(appliance, entry.name)
    let waited = 0
    // A wanted export is asked for again, as long as nobody changes it.
    const isOwed = () => wanted !== null && !changing && entry.epoch === epoch && waited < RETRY_MS
    while (got === null && isOwed()) {
      figures.retries++
      yield* Effect.sleep("20 millis")
      got = yield* readMark(appliance, entry.name)
      waited = (yield* Clock.currentTimeMillis) - begin
    }
    figures.reads++
    const steady = entry.epoch === epoch && !changing
    if (steady) figures.worst_ms = Math.max(figures.worst_ms, waited)
    if (got === null) {
      if (steady && wanted !== null) figures.wrong.push(`${entry.name} was refused for ${waited} ms`)
      else figures.refused++
      return
    }
    // During a change both what was and what will be are right; another name's bytes never are.
    const right = steady
      ? wanted !== null && got === mark(entry, generation)
      : [generation, generation + 1].some((one) => got === mark(entry, one))
    if (!right) figures.wrong.push(`${entry.name} (${steady ? `generation ${generation}` : "changing"}) gave ${got}`)
  })

type Change = { readonly entry: Entry; readonly what: "add" | "remove" | "replug" | "flag" }

/** Changes of as many different names, each one that its export's state allows. */
const choose = (entries: ReadonlyArray<Entry>, chance: Chance.Chance, count: number): ReadonlyArray<Change> =>
  chance
    .shuffled(entries)
    .slice(0, count)
    .map((entry) => ({
      entry,
      what: entry.wanted === null ? chance.oneOf(["add", "replug"]) : chance.oneOf(["remove", "remove", "flag"])
    }))

const next = (appliance: Appliance.Appliance, entry: Entry, what: Change["what"]): WantedExport | null => {
  const { last } = entry
  if (what === "remove") return null
  if (what === "replug" || last === null) return plug(appliance, entry)
  return what === "flag" ? { ...last, read_only: !last.read_only } : last
}

/** Carries them out in one load, and asserts by GO that everything is then as it must be. */
const change = (
  appliance: Appliance.Appliance,
  nbd: Nbd["Type"],
  entries: ReadonlyArray<Entry>,
  changes: ReadonlyArray<Change>,
  long: WantedExport
) =>
  Effect.gen(function* () {
    for (const { entry, what } of changes) {
      entry.changing = true
      entry.epoch++
      entry.wanted = next(appliance, entry, what)
      entry.last = entry.wanted ?? entry.last
    }
    const set = [long, ...entries.flatMap(({ wanted }) => wanted ?? [])]
    const drop = entries.flatMap(({ name, wanted }) => (wanted === null ? [name] : []))
    yield* nbd.load({ set, drop })
    for (const { entry } of changes) {
      entry.epoch++
      entry.changing = false
    }
    const reading = yield* nbd.observe([...set.map(({ name }) => name), ...drop])
    assert.isTrue(reading.loaded)
    assert.deepStrictEqual(
      reading.verifications.map(({ name, outcome, device, read_only }) => [name, outcome, device, read_only]),
      [
        ...set.map(({ name, device, read_only }) => [name, "served", device, read_only]),
        ...drop.map((name) => [name, "unknown", null, null])
      ]
    )
  })

describe("200 changes under load", () => {
  it.scopedLive(
    "give nobody wrong bytes, refuse nobody what is wanted, and break no copy (N8, N11, S3)",
    () =>
      Effect.gen(function* () {
        const seed = Number(process.env["SEED"] ?? process.pid)
        const chance = Chance.make(seed)
        const appliance = yield* Appliance.make
        const nbd = yield* Appliance.adapter(appliance)
        const long = appliance.disk("long", LONG_COPY_BYTES)
        const words = Uint32Array.from({ length: LONG_COPY_BYTES / 4 }, (_, i) => i * 2_654_435_761)
        writeFileSync(join(appliance.dir, "dev/long"), new Uint8Array(words.buffer))
        const entries = Array.from({ length: NAMES }, (_, i): Entry => {
          const name = `disk-${String(i).padStart(2, "0")}`
          return { name, generation: 0, wanted: null, last: null, epoch: 0, changing: false }
        })
        yield* nbd.load({ set: [long], drop: [] })
        const copy = yield* Appliance.transfer(appliance, "long")
        const figures: Figures = { reads: 0, retries: 0, worst_ms: 0, refused: 0, wrong: [] }
        const clients = yield* Effect.forEach(Array.from({ length: CLIENTS }), (_, i) =>
          client(appliance, entries, Chance.make(seed + i), figures).pipe(Effect.forever, Effect.forkScoped)
        )
        let loads = 0
        for (let done = 0; done < CHANGES; loads++) {
          const changes = choose(entries, chance, Math.min(chance.whole(1, BATCH_MAX), CHANGES - done))
          yield* change(appliance, nbd, entries, changes, long)
          done += changes.length
        }
        yield* Effect.forEach(clients, Fiber.interrupt)
        const { reads, refused, retries, worst_ms, wrong } = figures
        process.stdout.write(
          `seed ${seed}: ${CHANGES} changes in ${loads} loads; ${reads} reads, ${wrong.length} wrong, ` +
            `${refused} of unwanted or changing exports refused, ${retries} retries, worst wait ${worst_ms} ms\n`
        )
        assert.deepStrictEqual(wrong, [])
        assert.isAbove(reads, CHANGES)
        assert.isAbove(refused, 0)
        const sha256 = createHash("sha256")
          .update(readFileSync(join(appliance.dir, "dev/long")))
          .digest("hex")
        assert.deepStrictEqual(yield* copy.finish, { code: 0, sha256 })
      }),
    300_000
  )
})
