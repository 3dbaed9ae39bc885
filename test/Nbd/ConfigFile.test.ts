import { assert, describe, it } from "@effect/vitest"
import { Effect, type Scope } from "effect"
import {
  chmodSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync
} from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as ConfigFile from "../../src/Nbd/ConfigFile.ts"

const directory: Effect.Effect<string, never, Scope.Scope> = Effect.acquireRelease(
  Effect.sync(() => mkdtempSync(join(tmpdir(), "vn-"))),
  (path) => Effect.sync(() => rmSync(path, { recursive: true, force: true }))
)

const old = "[generic]\n# old\n"
const next = "[generic]\n# new, and \xe9 kept as it is\n"

const write = (disk: ConfigFile.Disk, path: string, expected: string | null | undefined = old) =>
  ConfigFile.write(disk, { path, text: next, mode: 0o640, expected, permit: Effect.void })

const code = (name: string): NodeJS.ErrnoException => Object.assign(new Error(name), { code: name })

/** Counts every file operation and asks `fails` before each; an operation that fails has no effect. */
const watched = (fails: (operation: string, count: number) => string | null) => {
  const log: Array<string> = []
  const guard = (operation: string): Promise<void> => {
    log.push(operation)
    const error = fails(operation, log.length)
    return error === null ? Promise.resolve() : Promise.reject(code(error))
  }
  const wrap = <A extends object>(target: A, prefix: string): A =>
    new Proxy(target, {
      get: (object, key) => {
        const member: unknown = Reflect.get(object, key)
        if (typeof member !== "function") return member
        return async (...args: ReadonlyArray<unknown>) => {
          // What cannot be closed would be closed some time later, when another file may bear its number.
          if (key === "close") await Reflect.apply(member, object, args)
          await guard(`${prefix}${String(key)}`)
          if (key === "close") return
          const result: unknown = await Reflect.apply(member, object, args)
          return prefix === "" && key === "open" ? wrap(result as object, "file.") : result
        }
      }
    })
  return { disk: wrap({ ...ConfigFile.disk }, ""), log }
}

const temporaries = (dir: string) => readdirSync(dir).filter((name) => name.endsWith(".tmp"))

describe("writing the file", () => {
  it.scoped("replaces it whole, with its mode, and leaves nothing else behind", () =>
    Effect.gen(function* () {
      const dir = yield* directory
      const path = join(dir, "config")
      yield* write(ConfigFile.disk, path, null)
      assert.strictEqual(readFileSync(path, "latin1"), next)
      assert.strictEqual(statSync(path).mode & 0o777, 0o640)
      assert.deepStrictEqual(readdirSync(dir), ["config"])
    })
  )

  it.scoped("leaves the old or the new file whole wherever it is cut off, and the next write cleans up (N3, S13)", () =>
    Effect.gen(function* () {
      const dir = yield* directory
      const path = join(dir, "config")
      const seen = new Map<string, number>()
      let leftovers = 0
      for (let step = 1; ; step++) {
        writeFileSync(path, old)
        const { disk, log } = watched((_, count) => (count >= step ? "EIO" : null))
        const exit = yield* Effect.exit(write(disk, path))
        const text = readFileSync(path, "latin1")
        seen.set(text, (seen.get(text) ?? 0) + 1)
        leftovers += temporaries(dir).length
        assert.isTrue(text === old || text === next)
        if (exit._tag === "Success") assert.strictEqual(text, next)
        yield* write(ConfigFile.disk, path, text)
        assert.deepStrictEqual(readdirSync(dir), ["config"])
        if (log.length < step) break
      }
      assert.isAbove(seen.get(old) ?? 0, 8)
      assert.isAtLeast(seen.get(next) ?? 0, 2)
      assert.isAbove(leftovers, 3)
    })
  )

  it.scoped("is not written when the disk refuses any of it (N4)", () =>
    Effect.gen(function* () {
      const dir = yield* directory
      const path = join(dir, "config")
      for (const operation of ["open", "file.writeFile", "file.sync", "file.chmod", "file.read", "rename"]) {
        for (const errno of ["ENOSPC", "EDQUOT", "EROFS", "EACCES", "EIO"]) {
          writeFileSync(path, old)
          let times = 0
          // Once only: what fails once and works then must not count as done either.
          const { disk } = watched((name) => (name === operation && times++ === 0 ? errno : null))
          const error = yield* Effect.flip(write(disk, path))
          assert.include(error.message, errno)
          assert.strictEqual(readFileSync(path, "latin1"), old)
          assert.deepStrictEqual(readdirSync(dir), ["config"])
        }
      }
    })
  )

  it.scoped("fails when the directory cannot be synced after the rename, for the change may not survive (N4)", () =>
    Effect.gen(function* () {
      const path = join(yield* directory, "config")
      writeFileSync(path, old)
      let syncs = 0
      const { disk } = watched((name) => (name === "file.sync" && ++syncs === 2 ? "EIO" : null))
      const error = yield* Effect.flip(write(disk, path))
      assert.include(error.message, "EIO")
    })
  )

  it.scoped("notices when what it wrote reads back differently", () =>
    Effect.gen(function* () {
      const path = join(yield* directory, "config")
      writeFileSync(path, old)
      const disk: ConfigFile.Disk = {
        ...ConfigFile.disk,
        open: async (...args: Parameters<ConfigFile.Disk["open"]>) => {
          const file = await ConfigFile.disk.open(...args)
          const whole = file.writeFile.bind(file)
          file.writeFile = (data) => whole((data as Buffer).subarray(1))
          return file
        }
      }
      const error = yield* Effect.flip(write(disk, path))
      assert.include(error.message, "reads back differently")
      assert.strictEqual(readFileSync(path, "latin1"), old)
    })
  )

  it.scoped("does not overwrite what somebody else wrote meanwhile (N17)", () =>
    Effect.gen(function* () {
      const dir = yield* directory
      const path = join(dir, "config")
      for (const [expected, found] of [
        [old, "[generic]\n# theirs\n"],
        [null, old]
      ] as const) {
        writeFileSync(path, found)
        const error = yield* Effect.flip(write(ConfigFile.disk, path, expected))
        assert.include(error.message, "somebody else changed it")
        assert.strictEqual(readFileSync(path, "latin1"), found)
      }
      rmSync(path)
      assert.include((yield* Effect.flip(write(ConfigFile.disk, path, old))).message, "somebody else changed it")
      assert.deepStrictEqual(readdirSync(dir), [])
    })
  )

  it.scoped(
    "loses no work of another writer, whenever that replaces the file, save right before the rename (N17)",
    () =>
      Effect.gen(function* () {
        const dir = yield* directory
        const path = join(dir, "config")
        const theirs = "[generic]\n# theirs\n"
        const seen = { kept: 0, replaced: 0, behind: 0 }
        for (let step = 1; ; step++) {
          writeFileSync(path, old)
          const { disk, log } = watched((_, count) => {
            if (count === step) {
              writeFileSync(`${path}.theirs`, theirs)
              renameSync(`${path}.theirs`, path)
            }
            return null
          })
          const exit = yield* Effect.exit(write(disk, path))
          if (log.length < step) break
          const text = readFileSync(path, "latin1")
          const before = !log.slice(0, step).includes("rename") || log[step - 1] === "rename"
          if (exit._tag === "Failure") assert.include(String(exit.cause), "somebody else changed it")
          assert.strictEqual(text, exit._tag === "Success" && before ? next : theirs)
          seen[exit._tag === "Failure" ? "kept" : before ? "replaced" : "behind"]++
          assert.deepStrictEqual(temporaries(dir), [])
        }
        // Between opening the file for a last look and the rename there are but the look itself and its end.
        assert.isAtMost(seen.replaced, 4, JSON.stringify(seen))
        assert.isAbove(Math.min(seen.kept, seen.behind), 1, JSON.stringify(seen))
      })
  )

  it.scoped("refuses a text that would lose something when it is written byte by byte (X2)", () =>
    Effect.gen(function* () {
      const path = join(yield* directory, "config")
      writeFileSync(path, old)
      // Cut to a byte, this is the end of a line.
      const request = { path, text: `${old}a\u010aprerun = id\n`, mode: 0o640, expected: old, permit: Effect.void }
      assert.include((yield* Effect.flip(ConfigFile.write(ConfigFile.disk, request))).message, "no byte")
      assert.strictEqual(readFileSync(path, "latin1"), old)
    })
  )

  it.scoped("asks for permission last, and writes nothing without it", () =>
    Effect.gen(function* () {
      const dir = yield* directory
      const path = join(dir, "config")
      writeFileSync(path, old)
      const request = { path, text: next, mode: 0o640, expected: old, permit: Effect.fail("no") }
      assert.strictEqual(yield* Effect.flip(ConfigFile.write(ConfigFile.disk, request)), "no")
      assert.strictEqual(readFileSync(path, "latin1"), old)
      assert.deepStrictEqual(readdirSync(dir), ["config"])
    })
  )

  it.scoped("sweeps only files that it could have left itself", () =>
    Effect.gen(function* () {
      const dir = yield* directory
      const kept = [
        ".config.volumed-12.tmp",
        ".config.volumed-0123456789abcdef.tmp2",
        ".other.volumed-0123456789abcdef.tmp",
        "config.tmp"
      ]
      for (const name of [...kept, ".config.volumed-0123456789abcdef.tmp"]) writeFileSync(join(dir, name), "")
      yield* write(ConfigFile.disk, join(dir, "config"), null)
      assert.deepStrictEqual(readdirSync(dir).sort(), ["config", ...kept].sort())
    })
  )
})

describe("a place that others may change (N15, X12)", () => {
  it.scoped("is neither read nor written", () =>
    Effect.gen(function* () {
      const dir = yield* directory
      const good = join(dir, "good")
      mkdirSync(good, { mode: 0o755 })
      writeFileSync(join(good, "config"), old)
      symlinkSync(good, join(dir, "link"))
      symlinkSync(join(good, "config"), join(good, "linked"))
      mkdirSync(join(good, "folder"))
      for (const mode of [0o775, 0o757]) {
        const open = join(dir, mode.toString(8))
        mkdirSync(open)
        chmodSync(open, mode)
        writeFileSync(join(open, "config"), old)
        const reading = yield* ConfigFile.read(ConfigFile.disk, join(open, "config"))
        assert.include(reading._tag === "Unusable" ? reading.problem : "", "written by its group or by others")
      }
      for (const path of ["link/config", "good/linked", "good/folder", "757/config", "775/config"]) {
        const reading = yield* ConfigFile.read(ConfigFile.disk, join(dir, path))
        assert.strictEqual(reading._tag, "Unusable", path)
        assert.isTrue((yield* Effect.exit(write(ConfigFile.disk, join(dir, path), old)))._tag === "Failure", path)
      }
      for (const path of ["good/config", "775/config", "757/config"]) {
        assert.strictEqual(readFileSync(join(dir, path), "latin1"), old)
      }
    })
  )

  it.scoped("stays the directory that was judged, even if its name is turned elsewhere in the middle", () =>
    Effect.gen(function* () {
      const dir = yield* directory
      const [victim, real] = [join(dir, "victim"), join(dir, "etc")]
      for (const path of [victim, real]) mkdirSync(path, { mode: 0o755 })
      writeFileSync(join(victim, "config"), old)
      writeFileSync(join(real, "config"), old)
      const permit = Effect.sync(() => {
        renameSync(real, join(dir, "moved"))
        symlinkSync(victim, real)
      })
      const path = join(real, "config")
      yield* ConfigFile.write(ConfigFile.disk, { path, text: next, mode: 0o640, expected: old, permit })
      assert.strictEqual(readFileSync(join(victim, "config"), "latin1"), old)
      assert.strictEqual(readFileSync(join(dir, "moved/config"), "latin1"), next)
    })
  )
})

describe("a broken file that is kept aside (N2)", () => {
  it.scoped("has one more name and no more, however often its replacement fails", () =>
    Effect.gen(function* () {
      const dir = yield* directory
      const path = join(dir, "config")
      writeFileSync(path, "broken")
      for (const time of [1, 2, 3]) yield* ConfigFile.keepAside(ConfigFile.disk, path, `broken-${time}`)
      assert.deepStrictEqual(readdirSync(dir).sort(), ["config", "config.broken-1"])
      yield* write(ConfigFile.disk, path, "broken")
      writeFileSync(path, "broken again")
      yield* ConfigFile.keepAside(ConfigFile.disk, path, "broken-4")
      assert.deepStrictEqual(readdirSync(dir).sort(), ["config", "config.broken-1", "config.broken-4"])
      assert.strictEqual(readFileSync(join(dir, "config.broken-1"), "latin1"), "broken")
    })
  )
})

describe("reading the file", () => {
  it.scoped("tells absent, sound and broken apart (N2)", () =>
    Effect.gen(function* () {
      const dir = yield* directory
      const path = join(dir, "config")
      const tagOf = Effect.map(ConfigFile.read(ConfigFile.disk, path), (reading) => reading._tag)
      assert.strictEqual(yield* tagOf, "Absent")
      assert.strictEqual((yield* ConfigFile.read(ConfigFile.disk, join(dir, "none/config")))._tag, "Absent")
      const cases: ReadonlyArray<readonly [string, string]> = [
        [next, "Sound"],
        ["", "Broken"],
        ["[generic]\nport = 10809\n[x]\n", "Broken"],
        ["[generic]\nport = 10809\n[x", "Broken"],
        ["\x7fELF\x02\x01\0\0", "Broken"]
      ]
      for (const [text, expected] of cases) {
        writeFileSync(path, text, "latin1")
        assert.strictEqual(yield* tagOf, expected, JSON.stringify(text))
      }
    })
  )
})
