import { assert, describe, it } from "@effect/vitest"
import { existsSync, readdirSync, readFileSync } from "node:fs"
import * as Child from "./Child.ts"

/** Every process of this machine whose command line names a folder. */
const processesIn = (folder: string): ReadonlyArray<string> =>
  readdirSync("/proc").flatMap((pid) => {
    if (!/^\d+$/u.test(pid)) return []
    try {
      const command = readFileSync(`/proc/${pid}/cmdline`, "utf8").replaceAll("\u0000", " ")
      return command.includes(folder) ? [command] : []
    } catch {
      return []
    }
  })

const folderIn = (text: string): string => /Everything lies in (\S+) /u.exec(text)?.[1] ?? "nowhere"

describe("volumed demo", () => {
  it("converges, repairs drift, fails over, and leaves nothing behind", async () => {
    const { code, stdout, stderr } = await Child.run(["demo"])
    assert.strictEqual(code, 0, stdout + stderr)
    assert.include(stdout, "$ volumed apply -f ")
    assert.include(stdout, "Plan: 4 to create, 3 to attach, 3 to export")
    assert.match(stdout, /^! pg-data {2}attachment: /mu)
    assert.match(stdout, /^! pg-wal {2}export: /mu)
    assert.match(stdout, /~ move +from the appliance to VM d1e7a9f0/u)
    assert.match(stdout, /~ move +from VM d1e7a9f0\S+ to the appliance/u)
    assert.match(stdout, /^Volumes +4 of 4 Ready$/mu)
    assert.match(stdout, /^CloudStack calls +.*\b6 attachVolume/mu)
    assert.match(stdout, /^Violations +0 /mu)
    assert.match(stderr, /pg-data {2}Ready/u)
    assert.match(folderIn(stdout), /^\//u)
    assert.isFalse(existsSync(folderIn(stdout)))
    assert.deepStrictEqual(processesIn(folderIn(stdout)), [])
  }, 180_000)

  it("ends at Ctrl-C with 130 and leaves nothing behind, its NBD server neither", async () => {
    const child = Child.start(["demo"])
    const ended = Child.collect(child)
    await Child.said(child, "stderr", /\S+ {2}Ready {2}\/.*nbd:/u)
    child.kill("SIGINT")
    const { code, stdout, stderr } = await ended
    assert.strictEqual(code, 130, stderr)
    assert.include(stderr, "The demo ends")
    assert.match(folderIn(stdout), /^\//u)
    assert.isFalse(existsSync(folderIn(stdout)))
    assert.deepStrictEqual(processesIn(folderIn(stdout)), [])
  })
})
