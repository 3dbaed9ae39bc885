import { assert, describe, it } from "@effect/vitest"
import { spawnSync } from "node:child_process"
import { readdirSync, readFileSync, statSync } from "node:fs"
import { basename, dirname, extname, join } from "node:path"
import { fileURLToPath } from "node:url"
import * as SafetyIds from "./support/SafetyIds.ts"

const root = fileURLToPath(new URL("..", import.meta.url))

/** Everything that belongs to the repository, as paths from its top: what git tracks or would. */
const tracked: ReadonlyArray<string> = (() => {
  const git = spawnSync("git", ["ls-files", "-z", "--cached", "--others", "--exclude-standard"], { cwd: root })
  const ours = git.status === 0 ? git.stdout.toString().split("\0") : walk("")
  return ours.filter((path) => path !== "" && statSync(join(root, path), { throwIfNoEntry: false })?.isFile())
})()

/** For an unpacked archive, which has no git: everything but what is made here. */
function walk(directory: string): ReadonlyArray<string> {
  return readdirSync(join(root, directory), { withFileTypes: true }).flatMap((entry) => {
    const path = join(directory, entry.name)
    if (["node_modules", "dist", ".git", ".volumed"].includes(entry.name) || entry.name.endsWith(".log")) return []
    return entry.isDirectory() ? walk(path) : [path]
  })
}

const text = (path: string): string => readFileSync(join(root, path), "utf8")
const filesIn = (room: string): ReadonlyArray<string> =>
  tracked.filter((path) => path.startsWith(`${room}/`) && path.endsWith(".ts"))

/** What a file does, its comments taken out (a `//` inside a string stays, for it follows no blank). */
const code = (path: string): string =>
  text(path)
    .replaceAll(/\/\*[\s\S]*?\*\//g, "")
    .replaceAll(/(^|\s)\/\/.*$/gm, "$1")

const importsOf = (path: string): ReadonlyArray<string> =>
  [...code(path).matchAll(/(?:\bfrom\s+|\bimport\s*\(?\s*)"([^"]+)"/g)].map(([, target = ""]) => target)

/** Lines of `files` that match, as `path:line: text`. */
const linesThat = (pattern: RegExp, files: ReadonlyArray<string>, read = code): ReadonlyArray<string> =>
  files.flatMap((path) =>
    read(path)
      .split("\n")
      .flatMap((line, index) => (pattern.test(line) ? [`${path}:${index + 1}: ${line.trim()}`] : []))
  )

/** Imports of `room` that `allowed` refuses; a relative one is judged by the room it leads to. */
const strayImports = (room: string, allowed: (target: string, path: string) => boolean): ReadonlyArray<string> =>
  filesIn(room).flatMap((path) =>
    importsOf(path)
      .map((target) => (target.startsWith(".") ? join(dirname(path), target) : target))
      .filter((target) => !allowed(target, path))
      .map((target) => `${path} imports ${target}`)
  )

const manifest = JSON.parse(text("package.json")) as {
  readonly dependencies: Readonly<Record<string, string>>
  readonly devDependencies: Readonly<Record<string, string>>
}

describe("The house", () => {
  it("imports in one direction: schema, reconciler, src", () => {
    assert.deepStrictEqual(
      [
        ...strayImports(
          "schema",
          (target, path) =>
            target === "effect" ||
            target.startsWith("schema/") ||
            (path === "schema/Routes.ts" && target.startsWith("@effect/platform/")) ||
            (path.startsWith("schema/migrations/") && target.startsWith("@effect/sql"))
        ),
        ...strayImports("reconciler", (target) => target === "effect" || /^(?:schema|reconciler)\//.test(target)),
        ...strayImports("src", (target) => !/^(?:test|fixtures|dist)\//.test(target) && !target.startsWith(".."))
      ],
      []
    )
  })

  it("runs on nothing but its declared dependencies", () => {
    const declared = (target: string) => {
      const [scope = "", name = ""] = target.split("/")
      return (target.startsWith("@") ? `${scope}/${name}` : scope) in manifest.dependencies
    }
    const inside = (target: string) => target.startsWith("node:") || /^(?:schema|reconciler|src)\//.test(target)
    assert.deepStrictEqual(
      strayImports("src", (target) => inside(target) || declared(target)),
      []
    )
  })

  it("keeps its core free of clocks, chance, processes and the outside world", () => {
    const impure =
      /\bDate\.now\b|\bnew Date\(\)|\bMath\.random\b|\bprocess\.|\bfetch\(|\bconsole\.|\bset(?:Timeout|Interval|Immediate)\b|\bperformance\.|\bcrypto\.|"node:/
    assert.deepStrictEqual(linesThat(impure, [...filesIn("schema"), ...filesIn("reconciler")]), [])
  })

  it("names files after nouns, with no barrels and no drawers for leftovers", () => {
    const drawers = /^(?:index|utils?|helpers?|common|types?|misc|shared|lib)\.ts$/i
    const rooms = ["schema", "reconciler", "src"].flatMap(filesIn)
    assert.deepStrictEqual(
      rooms.filter((path) => drawers.test(basename(path))),
      []
    )
    const nouns = /^(?:[A-Z][A-Za-z0-9]*|main|cli|\d{4}_[a-z0-9_]+)\.ts$/
    assert.deepStrictEqual(
      rooms.filter((path) => !nouns.test(basename(path))),
      []
    )
  })

  it("has no file that nobody can read in one sitting", () => {
    const long = ["schema", "reconciler", "src"]
      .flatMap(filesIn)
      .map((path) => ({ path, lines: text(path).split("\n").length }))
      .filter(({ lines }) => lines > 600)
    assert.deepStrictEqual(long, [])
  })

  it("holds at its top only what it may", () => {
    const rooms = ["schema", "reconciler", "src", "test", "fixtures", "examples", "systemd", ".ci"]
    const settings = ["package.json", "package-lock.json", "tsconfig.json", "vitest.config.ts", ".gitignore"]
    const others = ["README.md", "LICENSE", ".oxfmtrc.json", ".oxlintrc.json"]
    const allowed = new Set([...rooms, ...settings, ...others])
    const top = new Set(tracked.map((path) => path.split("/")[0] ?? ""))
    assert.deepStrictEqual(
      [...top].filter((name) => !allowed.has(name)),
      []
    )
  })

  it("names no machine's paths and no registry's host", () => {
    // Taken apart, so that this file is not its own finding.
    const folders = ["work", "root", "farm", "home/[a-z]"].join("|")
    const foreign = new RegExp(`(?:^|[\\s"'\`(=:])/(?:${folders})[/\\w]|registry[.]npm|"resolved"[:] "http`)
    const texts = tracked.filter((path) => ![".png", ".ico", ".bin"].includes(extname(path)))
    assert.deepStrictEqual(linesThat(foreign, texts, text), [])
  })
})

describe("What the program may do", () => {
  it("sends no SIGHUP, which damages nbd-server's memory (N6, N7)", () => {
    const listens = /\.(?:on|once|off)\("SIGHUP"/
    assert.deepStrictEqual(
      linesThat(/SIGHUP|["'-]HUP\b/, filesIn("src")).filter((line) => !listens.test(line)),
      []
    )
  })

  it("starts programs with an argument list, never through a shell", () => {
    const shell = /\bexec(?:Sync)?\s*[,}].*from "node:child_process"|\bshell: true\b|\brunInShell\(true\)/
    assert.deepStrictEqual(linesThat(shell, filesIn("src")), [])
  })
})

describe("The dependencies", () => {
  it("are pinned exactly, and are few (X15)", () => {
    const all = Object.entries({ ...manifest.dependencies, ...manifest.devDependencies })
    assert.deepStrictEqual(
      all.filter(([, version]) => !/^\d+\.\d+\.\d+$/.test(version)),
      []
    )
    assert.isAtMost(Object.keys(manifest.dependencies).length, 15)
  })

  it("are all in the lock file, those of other platforms too, for npm ci refuses a lock that lacks them", () => {
    const lock = JSON.parse(text("package-lock.json")) as {
      readonly packages: Readonly<
        Record<string, { readonly version?: string; readonly optionalDependencies?: Readonly<Record<string, string>> }>
      >
    }
    const has = (from: string, name: string) =>
      `node_modules/${name}` in lock.packages || `${from}/node_modules/${name}` in lock.packages
    const lacking = Object.entries(lock.packages).flatMap(([from, entry]) =>
      Object.keys(entry.optionalDependencies ?? {}).filter((name) => !has(from, name))
    )
    assert.deepStrictEqual(lacking, [])
  })
})

describe("The tests", () => {
  const tests = filesIn("test")

  it("all run: none is skipped, left for later, or runs alone", () => {
    const left =
      /\b(?:it|test|describe|layer)\b[\w.]*\.(?:skip|only|todo|skipIf|runIf|fails)\b|\b(?:ctx|context|t)\.skip\(/
    assert.deepStrictEqual(linesThat(left, tests), [])
  })

  /** What the tests of a file are called, and what they are grouped under. */
  const namesIn = (path: string): ReadonlyArray<string> => {
    const called = /\b(?:it|test|describe)\b[\w.]*\(\s*(["'`])((?:(?!\1)[^\\]|\\.)*)\1/g
    return [...text(path).matchAll(called)].map(([, , name = ""]) => name)
  }

  it("name only faults and invariants that exist", () => {
    const unknown = tests.flatMap((path) =>
      namesIn(path).flatMap((name) =>
        SafetyIds.inText(name)
          .filter((id) => !SafetyIds.known.has(id))
          .map((id) => `${path}: ${id} in "${name}"`)
      )
    )
    assert.deepStrictEqual(unknown, [])
  })

  it("inject every fault of disks and of the NBD server, real or simulated, under its id", () => {
    // What is read off the sources here injects nothing.
    const injecting = tests.filter((path) => path !== "test/tidy.test.ts")
    const covered = new Set(injecting.flatMap(namesIn).flatMap(SafetyIds.inText))
    assert.deepStrictEqual(
      [...SafetyIds.ofFamily("D"), ...SafetyIds.ofFamily("N")].filter((id) => !covered.has(id)),
      []
    )
  })

  it("use every fixture: by name, or by reading its whole directory", () => {
    const sources = [...tests, ...tracked.filter((path) => /^src\/.*\.(?:ts|mjs)$/.test(path))].map(text)
    const used = (fixture: string) => {
      const [, room = ""] = fixture.split("/")
      const stem = basename(fixture, extname(fixture))
      const named = [basename(fixture), `"${stem}"`, `\`${stem}\``]
      const readers = sources.filter((source) => source.includes(`fixtures/${room}`))
      const whole = readers.some((source) => /\breaddir(?:Sync)?\(/.test(source))
      return whole || (readers.length > 0 && sources.some((source) => named.some((name) => source.includes(name))))
    }
    assert.deepStrictEqual(
      tracked.filter((path) => path.startsWith("fixtures/") && !used(path)),
      []
    )
  })
})
