import { assert, describe, it } from "@effect/vitest"
import { Effect, type Scope } from "effect"
import { existsSync, mkdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs"
import { dirname, join } from "node:path"
import type { LoadRequest, WantedExport } from "../../reconciler/Nbd.ts"
import * as KeyFile from "../../schema/KeyFile.ts"
import * as NbdConfig from "../../schema/NbdConfig.ts"
import * as NbdName from "../../schema/NbdName.ts"
import type * as ConfigFile from "../../src/Nbd/ConfigFile.ts"
import type * as World from "../../src/Nbd/World.ts"
import * as Appliance from "./Appliance.ts"
import * as CrashStates from "./CrashStates.ts"

/*
 * The goal: whenever the power fails during a load, what is left on the disk is the old set of exports or the new one, each
 * export whole and with its authfile, and the next load ends what was begun. The method: a load on the real disk is
 * recorded change by change, and every state that its fsyncs do not rule out is looked at; no server runs (NBD_START=off).
 */

const request = (set: ReadonlyArray<WantedExport>, ...drop: ReadonlyArray<string>): LoadRequest => ({ set, drop })

const unserved = (appliance: Appliance.Appliance): World.Options["nbd"] => ({ ...appliance.options.nbd, start: "off" })

/** The file is written, and that it is not served is all that fails. */
const load = (
  appliance: Appliance.Appliance,
  wanted: LoadRequest,
  disk?: ConfigFile.Disk
): Effect.Effect<void, never, Scope.Scope> =>
  Effect.gen(function* () {
    const nbd = yield* Appliance.adapter(appliance, { nbd: unserved(appliance), ...(disk && { disk }) })
    const error = yield* Effect.flip(nbd.load(wanted))
    assert.include(error.message, "the file is written")
  }).pipe(Effect.orDie)

/** Records what a load changes. */
const recorded = (appliance: Appliance.Appliance, wanted: LoadRequest, forgets?: CrashStates.Forgets) =>
  Effect.gen(function* () {
    const before = CrashStates.snapshot(appliance.dir)
    const recording = CrashStates.record(appliance.dir, forgets)
    yield* load(appliance, wanted, recording.disk)
    const after = CrashStates.snapshot(appliance.dir)
    const few = recording.states(CrashStates.inTheMiddle)
    return { before, after, few, states: forgets === undefined ? recording.states() : few }
  })

type Exports = ReadonlyMap<string, ReadonlyMap<string, string>>

/** What a server that starts with this state would serve: of one name in two files the last; null where none would start. */
const exportsIn = (appliance: Appliance.Appliance, state: CrashStates.State): Exports | null => {
  const { config } = appliance.place
  const main = state.get(config)
  if (main === undefined || main === null) return null
  const included = [...state].filter(
    ([path]) => dirname(path) === join(dirname(config), "conf.d") && path.endsWith(".conf")
  )
  const found = new Map<string, ReadonlyMap<string, string>>()
  for (const text of [main, ...included.map(([, text]) => text ?? "")]) {
    const read = KeyFile.read(text)
    const parsed = NbdConfig.parse(text)
    const refused = parsed._tag === "Malformed" || (text === main && NbdConfig.refusal(parsed.document) !== null)
    if (read._tag === "Refused" || refused) return null
    for (const [name, keys] of read.groups) if (!NbdName.isHousekeeping(name)) found.set(name, keys)
  }
  return found
}

const shown = (exports: Exports | null): string =>
  exports === null ? "none would start" : JSON.stringify([...exports].map(([name, keys]) => [name, [...keys]]).sort())

interface Outcome {
  readonly before: CrashStates.State
  readonly after: CrashStates.State
  readonly states: ReadonlyArray<CrashStates.State>
}

/** All that is wrong with any state: a third set of exports, or one that is served to others than it was or shall be. */
const violations = (appliance: Appliance.Appliance, { after, before, states }: Outcome): ReadonlyArray<string> => {
  const sets = [before, after].map((state) => shown(exportsIn(appliance, state)))
  return states.flatMap((state) => {
    const exports = exportsIn(appliance, state)
    const third = sets.includes(shown(exports)) ? [] : [`neither the old nor the new set: ${shown(exports)}`]
    return [...third, ...openOnes(appliance, exports, state, [before, after])]
  })
}

/** An authfile that is missing admits everybody, one that is cut short may admit a stranger. */
const openOnes = (
  { options }: Appliance.Appliance,
  exports: Exports | null,
  state: CrashStates.State,
  known: ReadonlyArray<CrashStates.State>
): ReadonlyArray<string> =>
  [...(exports ?? [])].flatMap(([name, keys]) => {
    const authfile = keys.get("authfile")
    if (authfile === undefined || dirname(authfile) !== options.nbd.acl_dir) return []
    const text = state.get(authfile)
    if (text === undefined) return [`${name} is open to everybody`]
    return known.some((one) => one.get(authfile) === text) ? [] : [`${name} admits ${JSON.stringify(text)}`]
  })

/** Puts the disk into a state, and lets the next load find it. */
const restore = (appliance: Appliance.Appliance, state: CrashStates.State) => {
  for (const part of ["etc", "acl"]) rmSync(join(appliance.dir, part), { recursive: true, force: true })
  for (const [path, text] of state) {
    const isPart = ["etc", "acl"].some((part) => `${path}/`.startsWith(`${join(appliance.dir, part)}/`))
    if (isPart && text === null) mkdirSync(path, { recursive: true, mode: 0o755 })
  }
  for (const [path, text] of state) if (text !== null && existsSync(dirname(path))) writeFileSync(path, text, "latin1")
}

const finals = (appliance: Appliance.Appliance, state: CrashStates.State): ReadonlyArray<unknown> =>
  [...state]
    .filter(([path]) => path.startsWith(join(appliance.dir, "etc")) || path.startsWith(join(appliance.dir, "acl")))
    .filter(([path]) => !path.includes(".broken-"))
    .sort()

/** From every state, bytes cut in the middle only, the same load arrives where it would have, and leaves nothing behind. */
const converges = (
  appliance: Appliance.Appliance,
  wanted: LoadRequest,
  { after, few }: Effect.Effect.Success<ReturnType<typeof recorded>>
) =>
  Effect.gen(function* () {
    assert.isAbove(few.length, 10)
    for (const state of few) {
      restore(appliance, state)
      yield* load(appliance, wanted)
      assert.deepStrictEqual(finals(appliance, CrashStates.snapshot(appliance.dir)), finals(appliance, after))
    }
  }).pipe(Effect.scoped)

const foreign = ({ host, port }: Appliance.Appliance["place"], path: string) =>
  `# by hand\r\n[generic]\r\nlistenaddr = ${host}\r\nport = ${port}\r\n\r\n# caf\xe9\n[theirs]\nexportname = ${path}\n; k = v\n`

/** Exports of ours and one of somebody else's are there; one comes, one goes, one changes its link and one its flag. */
const running = Effect.gen(function* () {
  const appliance = yield* Appliance.make
  const [a, b, c, d, theirs] = ["aaaa", "bbbb", "cccc", "dddd", "theirs"].map((name) =>
    appliance.disk(name)
  ) as never as [WantedExport, WantedExport, WantedExport, WantedExport, WantedExport]
  writeFileSync(appliance.place.config, foreign(appliance.place, theirs.path), "latin1")
  yield* load(appliance, request([a, b, c]))
  const other = join(appliance.options.by_id_dir, "scsi-0QEMU_bbbb")
  symlinkSync(join(appliance.dir, "dev/bbbb"), other)
  const wanted = request([{ ...a, read_only: true }, { ...b, path: other }, d], c.name)
  return { appliance, wanted, a }
})

describe("a power failure during a load (N3, S13)", () => {
  it.scopedLive("leaves nothing or everything of the first one, where not even the directories were there", () =>
    Effect.gen(function* () {
      const appliance = yield* Appliance.make
      rmSync(join(appliance.dir, "etc"), { recursive: true })
      const wanted = request([appliance.disk("aaaa"), appliance.disk("bbbb")])
      const outcome = yield* recorded(appliance, wanted)
      assert.deepStrictEqual(violations(appliance, outcome), [])
      assert.isAbove(outcome.states.length, 1_000)
      yield* converges(appliance, wanted, outcome)
    })
  )

  it.scopedLive("leaves the old or the new set whole, somebody else's section in both, no authfile missing (S3)", () =>
    Effect.gen(function* () {
      const { appliance, wanted } = yield* running
      const outcome = yield* recorded(appliance, wanted)
      assert.deepStrictEqual(violations(appliance, outcome), [])
      assert.isAbove(outcome.states.length, 1_000)
      const sets = new Set(outcome.states.map((state) => shown(exportsIn(appliance, state))))
      assert.strictEqual(sets.size, 2)
      yield* converges(appliance, wanted, outcome)
    })
  )

  it.scopedLive("leaves a fence up or down, and its export never open to everybody", () =>
    Effect.gen(function* () {
      const { appliance, a } = yield* running
      for (const change of ["fence", "release"] as const) {
        const before = CrashStates.snapshot(appliance.dir)
        const { disk, states } = CrashStates.record(appliance.dir)
        const nbd = yield* Appliance.adapter(appliance, { nbd: unserved(appliance), disk })
        yield* nbd[change](a.name)
        const outcome = { before, after: CrashStates.snapshot(appliance.dir), states: states() }
        assert.notDeepEqual(before, outcome.after)
        assert.deepStrictEqual(violations(appliance, outcome), [])
        assert.isAtLeast(outcome.states.length, 3)
      }
    })
  )

  it.scopedLive(
    "leaves each section that moves out of an included file where it was or where it goes, never nowhere",
    () =>
      Effect.gen(function* () {
        const appliance = yield* Appliance.make
        const { config, host, port } = appliance.place
        const directory = join(dirname(config), "conf.d")
        mkdirSync(directory)
        const [a, b, keep] = ["aaaa", "bbbb", "keep"].map((name) => appliance.disk(name)) as never as [
          WantedExport,
          WantedExport,
          WantedExport
        ]
        const letter = (one: WantedExport) => join(appliance.dir, "dev", one.name)
        const section = (one: WantedExport) => `[${one.name}]\nexportname = ${letter(one)}\n`
        writeFileSync(config, `[generic]\nlistenaddr = ${host}\nport = ${port}\nincludedir = ${directory}\n`)
        writeFileSync(join(directory, "one.conf"), `# jobs\n${section(a)}${section(keep)}`)
        writeFileSync(join(directory, "two.conf"), section(b))
        const wanted = request([a, b])
        const outcome = yield* recorded(appliance, wanted)
        const [before, after] = [outcome.before, outcome.after].map((state) => exportsIn(appliance, state))
        for (const state of outcome.states) {
          const exports = exportsIn(appliance, state)
          assert.deepStrictEqual([...(exports?.keys() ?? [])].sort(), ["aaaa", "bbbb", "generic", "keep"])
          for (const [name, keys] of exports ?? []) {
            const known = [before, after].some(
              (set) => shown(new Map([[name, set?.get(name) ?? new Map()]])) === shown(new Map([[name, keys]]))
            )
            assert.isTrue(known, `${name}: ${shown(exports)}`)
          }
          assert.deepStrictEqual(openOnes(appliance, exports, state, [outcome.before, outcome.after]), [])
        }
        assert.isAbove(outcome.states.length, 1_000)
        yield* converges(appliance, wanted, outcome)
      })
  )

  it.scopedLive(
    "leaves a broken file, or the one rendered from the verified copy beside it, and never loses it (N2)",
    () =>
      Effect.gen(function* () {
        const { appliance, wanted } = yield* running
        const { config } = appliance.place
        const text = readFileSync(config, "latin1")
        writeFileSync(join(appliance.options.state_dir, "nbd-config.verified"), text, "latin1")
        const half = text.slice(0, text.lastIndexOf("exportname"))
        writeFileSync(config, half, "latin1")
        const outcome = yield* recorded(appliance, wanted)
        assert.deepStrictEqual(violations(appliance, outcome), [])
        const isKept = (state: CrashStates.State) =>
          [...state].some(
            ([path, kept]) => path.startsWith(dirname(config)) && CrashStates.isFinal(path) && kept === half
          )
        assert.isTrue(outcome.states.every(isKept))
        assert.include([...(exportsIn(appliance, outcome.after)?.keys() ?? [])], "theirs")
        yield* converges(appliance, wanted, outcome)
      })
  )
})

describe("an fsync that failed once (N4)", () => {
  /** The directory's next fsync fails, those after it work. */
  const failing = (disk: ConfigFile.Disk, directory: string) => {
    let times = 0
    const open: ConfigFile.Disk["open"] = async (at, flags, mode) => {
      const file = await disk.open(at, flags, mode)
      if (at !== directory) return file
      const sync = file.sync.bind(file)
      file.sync = () => (times++ === 0 ? Promise.reject(Object.assign(new Error("lost"), { code: "EIO" })) : sync())
      return file
    }
    return { ...disk, open }
  }

  it.scopedLive("is no success the next time: a fence is written again, until it is sure to survive", () =>
    Effect.gen(function* () {
      const { appliance, a } = yield* running
      const authfile = join(appliance.options.nbd.acl_dir, a.name)
      const { disk, left } = CrashStates.record(appliance.dir)
      const nbd = yield* Appliance.adapter(appliance, {
        nbd: unserved(appliance),
        disk: failing(disk, appliance.options.nbd.acl_dir)
      })
      assert.include((yield* Effect.flip(nbd.fence(a.name))).message, "EIO")
      assert.strictEqual(readFileSync(authfile, "latin1"), "")
      assert.isTrue(left().some((state) => state.get(authfile) !== ""))
      yield* nbd.fence(a.name)
      assert.isTrue(left().every((state) => state.get(authfile) === ""))
    })
  )

  it.scopedLive("is no success the next time: the file is written again", () =>
    Effect.gen(function* () {
      const { appliance, wanted } = yield* running
      const { config } = appliance.place
      const { disk, left } = CrashStates.record(appliance.dir)
      const nbd = yield* Appliance.adapter(appliance, {
        nbd: unserved(appliance),
        disk: failing(disk, dirname(config))
      })
      assert.include((yield* Effect.flip(nbd.load(wanted))).message, "EIO")
      const text = readFileSync(config, "latin1")
      assert.isTrue(left().some((state) => state.get(config) !== text))
      assert.include((yield* Effect.flip(nbd.load(wanted))).message, "the file is written")
      assert.isTrue(left().every((state) => state.get(config) === text))
    })
  )
})

describe("two writers at once (N17)", () => {
  it.scopedLive("leave the set of one of them whole, and nothing half-done beside it", () =>
    Effect.gen(function* () {
      const { appliance, wanted } = yield* running
      const settings = { nbd: unserved(appliance) }
      const [one, other] = [
        yield* Appliance.adapter(appliance, settings),
        yield* Appliance.adapter(appliance, settings)
      ]
      const rival = request(wanted.set.slice(1), wanted.set[0]?.name ?? "", ...wanted.drop)
      const sets: Array<string> = []
      for (const mine of [wanted, rival]) {
        yield* load(appliance, mine)
        sets.push(shown(exportsIn(appliance, CrashStates.snapshot(appliance.dir))))
      }
      for (let round = 0; round < 20; round++) {
        const errors = yield* Effect.all([Effect.flip(one.load(wanted)), Effect.flip(other.load(rival))], {
          concurrency: 2
        })
        const state = CrashStates.snapshot(appliance.dir)
        assert.include(sets, shown(exportsIn(appliance, state)))
        assert.isEmpty([...state.keys()].filter((path) => !CrashStates.isFinal(path)))
        for (const { message } of errors) {
          assert.match(message, /the file is written|somebody else changed it meanwhile|ENOENT/)
        }
        assert.isTrue(errors.some(({ message }) => message.includes("the file is written")))
      }
    })
  )
})

describe("the states that are looked at (N3)", () => {
  const forgetful: ReadonlyArray<readonly [string, CrashStates.Forgets, string]> = [
    ["syncs no file", ({ _tag }) => _tag === "SyncFile", "neither the old nor the new set"],
    ["syncs no authfile", ({ _tag, path }) => _tag === "SyncFile" && path.includes("/acl/"), "admits"],
    [
      "does not sync the authfiles' directory",
      ({ _tag, path }) => _tag === "SyncDirectory" && path.endsWith("/acl"),
      "open to everybody"
    ]
  ]
  it.scopedLive.each(forgetful)("show what is wrong with a writer that %s", ([, forgets, wrong]) =>
    Effect.gen(function* () {
      const { appliance, wanted } = yield* running
      const outcome = yield* recorded(appliance, wanted, forgets)
      assert.include(violations(appliance, outcome).join("\n"), wrong)
    })
  )

  it.scopedLive("show what is wrong with a writer that does not make a new directory's name sure", () =>
    Effect.gen(function* () {
      const appliance = yield* Appliance.make
      const forgets: CrashStates.Forgets = ({ _tag, path }) => _tag === "SyncDirectory" && path === appliance.dir
      const outcome = yield* recorded(appliance, request([appliance.disk("aaaa")]), forgets)
      assert.include(violations(appliance, outcome).join("\n"), "open to everybody")
    })
  )
})
