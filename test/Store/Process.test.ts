import { assert, describe, it } from "@effect/vitest"
import { buildSync } from "esbuild"
import { type ChildProcess, spawn } from "node:child_process"
import * as Fs from "node:fs"
import { createRequire } from "node:module"
import * as Os from "node:os"
import * as Path from "node:path"
import { afterAll, beforeAll } from "vitest"
import { answer, callId } from "./Samples.ts"

const directory = Fs.mkdtempSync(Path.join(Os.tmpdir(), "volumed-store-"))
const bundle = Path.join(directory, "child.mjs")
const children = new Set<ChildProcess>()

beforeAll(() => {
  const libsql = createRequire(import.meta.url).resolve("libsql")
  const built = buildSync({
    entryPoints: [Path.join(import.meta.dirname, "child.ts")],
    bundle: true,
    platform: "node",
    format: "esm",
    write: false,
    external: ["libsql"],
    banner: { js: 'import { createRequire } from "node:module"; const require = createRequire(import.meta.url);' }
  })
  const text = built.outputFiles[0]?.text ?? ""
  Fs.writeFileSync(bundle, text.replaceAll('from "libsql"', `from ${JSON.stringify(libsql)}`))
})

afterAll(() => {
  for (const child of children) child.kill("SIGKILL")
  Fs.rmSync(directory, { recursive: true, force: true })
})

/** A process of the real store on a file; its lines as they come. */
const start = (args: ReadonlyArray<string>, descriptors = 1024) => {
  const command = `ulimit -n ${descriptors}; exec "$0" "$@"`
  const child = spawn("bash", ["-c", command, process.execPath, bundle, ...args], { stdio: ["ignore", "pipe", "pipe"] })
  children.add(child)
  let text = ""
  let errors = ""
  const waiting = new Set<() => void>()
  const wake = () => waiting.forEach((resolve) => resolve())
  child.stdout.on("data", (chunk) => ((text += chunk), wake()))
  child.stderr.on("data", (chunk) => (errors += chunk))
  const ended = new Promise<void>((resolve) => child.on("close", () => (children.delete(child), wake(), resolve())))
  const lines = () => text.split("\n").slice(0, -1)
  const reach = async (count: number) => {
    while (lines().length < count && child.exitCode === null && child.signalCode === null)
      await new Promise<void>((resolve) => waiting.add(resolve))
    assert.isAtLeast(lines().length, count, errors)
  }
  return { child, lines, reach, ended, errors: () => errors }
}

describe("the store's file", () => {
  it("holds every acknowledged write after kill -9, twenty times over (S14)", { timeout: 180_000 }, async () => {
    const file = Path.join(directory, "killed.db")
    const acknowledged = new Set<string>()
    for (let round = 0; round <= 20; round++) {
      const writer = start(["write", file])
      // A different number each round, so that the kill falls into different places.
      await writer.reach(2 + ((round * 7) % 23))
      writer.child.kill("SIGKILL")
      await writer.ended
      const [first, ...said] = writer.lines()
      const there = new Set<string>(JSON.parse(first ?? "[]"))
      assert.deepStrictEqual(
        [...acknowledged].filter((line) => !there.has(line)),
        []
      )
      // What was under way when it was killed may be there as well: one write, no more.
      assert.isAtMost(there.size, acknowledged.size + 1)
      for (const line of [...there, ...said]) acknowledged.add(line)
    }
    assert.isAbove(acknowledged.size, 100)
  })

  it(
    "answers a repeat under the same key as the first would have been, after kill -9 between commit and answer (S14, X13)",
    { timeout: 60_000 },
    async () => {
      const file = Path.join(directory, "keyed.db")
      const first = start(["keyed", file, "dies"])
      await first.ended
      assert.strictEqual(first.child.signalCode, "SIGKILL", first.errors())
      assert.deepStrictEqual(first.lines(), [])
      for (let repeat = 0; repeat < 2; repeat++) {
        const again = start(["keyed", file])
        await again.ended
        assert.deepStrictEqual(JSON.parse(again.lines()[0] ?? "null"), {
          earlier: answer("key", { response: { id: callId(1) } }),
          repeat: "PreconditionLost",
          declarations: 1,
          calls: [[callId(1), "pending"]],
          events: ["declared", "call_accepted"]
        })
      }
    }
  )

  it("takes 2,000 transactions under ulimit -n 256, and descriptors stay as few", { timeout: 180_000 }, async () => {
    const run = start(["transactions", Path.join(directory, "many.db"), "2000"], 256)
    await run.reach(1)
    await run.ended
    const answer: { generation: number; open: number } = JSON.parse(run.lines()[0] ?? "{}")
    assert.strictEqual(answer.generation, 2000, run.errors())
    assert.isBelow(answer.open, 64)
  })

  it("is refused to a second process at once, with the file and what to do", { timeout: 60_000 }, async () => {
    const file = Path.join(directory, "one.db")
    const first = start(["hold", file])
    await first.reach(1)
    const second = start(["hold", file])
    await second.ended
    assert.deepStrictEqual(second.lines(), [])
    assert.match(second.errors(), /^Misconfigured: DATABASE_DSN: database is locked/)
    assert.include(second.errors(), file)
    assert.include(second.errors(), "Stop the other volumed")
    first.child.kill("SIGKILL")
    await first.ended
    const third = start(["hold", file])
    await third.reach(1)
    third.child.kill("SIGKILL")
    await third.ended
  })
})
