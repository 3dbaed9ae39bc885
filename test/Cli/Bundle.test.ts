import { afterAll, assert, beforeAll, describe, it } from "@effect/vitest"
import { execFileSync } from "node:child_process"
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"

const build = join(import.meta.dirname, "../../src/build.mjs")

let folder = ""
const outdir = (name: string) => join(folder, name)

beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "volumed-bundle-"))
  for (const name of ["a", "b"]) execFileSync(process.execPath, [build, "--outdir", outdir(name)])
})
afterAll(() => rmSync(folder, { recursive: true, force: true }))

const contents = (name: string): Readonly<Record<string, string>> =>
  Object.fromEntries(
    readdirSync(outdir(name))
      .filter((file) => file.endsWith(".js"))
      .map((file) => [file, readFileSync(join(outdir(name), file), "utf8")])
  )

/** A file of the bundle and all that it loads before its first line runs. */
const loaded = (files: Readonly<Record<string, string>>, entry: string): ReadonlySet<string> => {
  const seen = new Set<string>()
  const visit = (file: string) => {
    if (seen.has(file)) return
    seen.add(file)
    for (const match of (files[file] ?? "").matchAll(/(?:\bfrom|\bimport) ?"(?:\.\/)?([^"]+)"/gu)) visit(match[1] ?? "")
  }
  visit(entry)
  return seen
}

const chunk = (files: Readonly<Record<string, string>>, name: string): string =>
  Object.keys(files).find((file) => file.startsWith(`${name}-`)) ?? `no ${name}`

describe("the bundle", () => {
  it("is the same, byte for byte, wherever it is built", () => {
    assert.deepStrictEqual(contents("a"), contents("b"))
  })

  it("can be executed, and mentions no path of the machine it was built on", () => {
    assert.notStrictEqual(statSync(join(outdir("a"), "volumed.js")).mode & 0o111, 0)
    assert.isTrue(contents("a")["volumed.js"]?.startsWith("#!/usr/bin/env node\n"))
    for (const [file, text] of Object.entries(contents("a"))) assert.notInclude(text, import.meta.dirname, file)
  })

  it("loads the database, the NBD driver and the simulation for the daemon alone", () => {
    const files = contents("a")
    assert.include(loaded(files, chunk(files, "Serve")), "libsql")
    const clients = [
      "Run",
      "Look",
      "Act",
      "DryRun",
      "Explain",
      "Operations",
      "History",
      "Devices",
      "Wait",
      "Maintenance"
    ]
    for (const client of clients) {
      const needed = loaded(files, chunk(files, client))
      assert.notInclude(needed, "libsql", client)
      assert.notInclude([...needed].map((file) => files[file] ?? "").join(""), "nbd-server", client)
    }
  })

  it("shows help without loading Effect", () => {
    const files = contents("a")
    const bytes = [...loaded(files, "volumed.js")].reduce((sum, file) => sum + (files[file]?.length ?? 0), 0)
    assert.isBelow(bytes, 100_000)
  })
})
