import { afterAll, assert, beforeAll, describe, it } from "@effect/vitest"
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { vi } from "vitest"
import { parse } from "yaml"
import * as Child from "./Child.ts"
import * as Stage from "./Stage.ts"

/** What is asserted is what the commands print, how they end, and what is declared afterwards. */
let stage: Stage.Stage
let folder = ""
let server = ""

beforeAll(async () => {
  stage = await Stage.start()
  ;({ folder, server } = stage)
})
afterAll(() => stage.stop())

const volumed = (args: ReadonlyArray<string>, options?: Child.Options) => stage.volumed(args, options)
const result = (...args: ReadonlyArray<string>) => stage.result(...args)
const file = (name: string, text: string) => stage.file(name, text)
const { declaration } = Stage

const declaredNames = async (): Promise<ReadonlyArray<string>> => {
  const { items } = JSON.parse(await result("get", "-o", "json")) as { items: Array<{ name: string }> }
  return items.map((item) => item.name)
}

describe("the program by itself", () => {
  it("shows help and version and ends with 0", async () => {
    const help = await Child.run(["--help"])
    assert.strictEqual(help.code, 0)
    assert.include(help.stdout, "Usage: volumed COMMAND")
    assert.match((await Child.run(["--version"])).stdout, /^volumed \d+\.\d+\.\d+\n$/u)
    assert.include((await Child.run(["apply", "--help"])).stdout, "--take-over")
  })

  it("refuses an unknown flag, an unknown command and a surplus argument with 1 and a hint", async () => {
    for (const [args, hint] of [
      [["apply", "-f", "x", "--wiat"], "did you mean --wait?"],
      [["aply"], "did you mean apply?"],
      [["get", "a", "b"], 'unexpected argument "b"'],
      [[], "which command?"]
    ] as const) {
      const ended = await Child.run(args)
      assert.strictEqual(ended.code, 1, args.join(" "))
      assert.strictEqual(ended.stdout, "")
      assert.include(ended.stderr, hint)
    }
  })

  it("says that no daemon answers and what to do, without a stack trace", async () => {
    const ended = await Child.run(["get"], { env: { VOLUMED_SERVER: "http://127.0.0.1:1" } })
    assert.strictEqual(ended.code, 1)
    assert.include(ended.stderr, "volumed serve")
    assert.notInclude(ended.stderr, "    at ")
  })

  it("stops the start of a daemon without settings, with both keys and examples", async () => {
    const ended = await Child.run(["serve"])
    assert.strictEqual(ended.code, 1)
    assert.include(ended.stderr, "DATABASE_DSN")
    assert.include(ended.stderr, "sqlite:/var/lib/volumed/volumed.db")
    assert.include(ended.stderr, "CLOUDSTACK_API_URL")
    assert.include(ended.stderr, "https://cloudstack.example.com")
  })

  it("refuses wrong flags of a sandbox with the flag and an example", async () => {
    const ended = await Child.run(["serve", "--sandbox", "--vms", "many"])
    assert.strictEqual(ended.code, 1)
    assert.include(ended.stderr, "--vms")
    assert.include(ended.stderr, "--vms 4")
  })

  it("prints its settings with the secrets redacted", async () => {
    const ended = await Child.run(["serve", "--sandbox", "--print-config"])
    assert.strictEqual(ended.code, 0)
    assert.match(ended.stdout, /^CLOUDSTACK_SECRET_KEY=<redacted>$/mu)
    assert.match(ended.stdout, /^SANDBOX=true$/mu)
  })

  it("never lets a sandbox meet the CloudStack or the database of the environment", async () => {
    const ended = await Child.run(["serve", "--sandbox", "--print-config"], {
      env: {
        CLOUDSTACK_API_URL: "https://production.example.com/client/api",
        CLOUDSTACK_PROJECT_ID: "2b7d5b7e-3c1f-4f43-9a0e-4d4b1f0f2c11",
        DATABASE_DSN: "sqlite:/var/lib/volumed/production.db",
        NBD_CONFIG: "/etc/nbd-server/config-base",
        HOLD_FILE: "/run/volumed/hold",
        STATE_DIR: "/var/lib/volumed"
      }
    })
    assert.strictEqual(ended.code, 0, ended.stderr)
    assert.notMatch(ended.stdout, /production|\/var\/lib|\/etc\/nbd-server|\/run\/volumed|2b7d5b7e/u)
  })

  it("writes each line of a daemon's log once, as JSON where no person reads it", async () => {
    const child = Child.start(["serve", "--sandbox", "--listen", "127.0.0.1:0"])
    const [text] = await Child.said(child, "stderr", /^[^]*volumed ready on .*\n/u)
    await Child.stop(child)
    const lines = text.split("\n").filter((line) => line.startsWith("{"))
    assert.isNotEmpty(lines)
    assert.deepStrictEqual(lines, [...new Set(lines)])
    for (const line of lines) assert.containsAllKeys(JSON.parse(line), ["time", "level", "message"])
  })

  it("does not mind a reader that goes away", async () => {
    const child = Child.start(["--help"])
    child.stdout.destroy()
    const ended = await Child.collect(child)
    assert.strictEqual(ended.stderr, "")
  })
})

describe("bad input", () => {
  const corpus: ReadonlyArray<readonly [string, string, string, string]> = [
    ["an unknown key", declaration("a", "siez: 2GiB"), ":3:5: ", "did you mean size?"],
    ["a wrong type", declaration("a", "size: 2GiB", "export_wanted: 3"), ":4:5: ", "expected true or false"],
    ["a name with a newline", declaration('"a\\nb"', "size: 2GiB"), ":2:5: ", "1-253 characters"],
    ["a name with a path part", declaration("a/../b", "size: 2GiB"), ":2:5: ", "1-253 characters"],
    ["a size below 1 GiB", declaration("a", "size: 1000MiB"), ":3:5: ", "at least 1 GiB"],
    ["a size beyond 2^53", declaration("a", "size: 99999999999999999999"), ":3:5: ", "2^53"],
    ["malformed YAML", "volumes: [{name: a}\n", ":2:1: ", "not valid YAML"],
    [
      "what only the server can know",
      declaration("a", "size: 2GiB", `zone_id: ${"0".repeat(8)}-0000-4000-8000-${"0".repeat(12)}`),
      ":4:5: ",
      "no zone"
    ]
  ]
  for (const [what, text, place, expectation] of corpus) {
    it(`${what} is an error with place and expectation, and nothing is stored`, async () => {
      const path = file("bad.yaml", text)
      const before = await declaredNames()
      for (const args of [
        ["apply", "-f", path, "--yes"],
        ["plan", "-f", path]
      ]) {
        const ended = await volumed(args)
        assert.strictEqual(ended.code, 1, args.join(" "))
        assert.strictEqual(ended.stdout, "")
        assert.include(ended.stderr, `${path}${place}`)
        assert.include(ended.stderr, expectation)
        assert.notInclude(ended.stderr, "    at ")
      }
      assert.deepStrictEqual(await declaredNames(), before)
    })
  }

  it("is read from standard input just as well", async () => {
    const ended = await volumed(["plan", "-f", "-"], { input: declaration("a", "size: 3") })
    assert.strictEqual(ended.code, 1)
    assert.include(ended.stderr, "standard input:3:5: ")
  })

  it("a file that is not there is named", async () => {
    const ended = await volumed(["apply", "-f", join(folder, "none.yaml"), "--yes"])
    assert.strictEqual(ended.code, 1)
    assert.include(ended.stderr, "none.yaml: cannot be read")
  })
})

describe("declaring volumes", () => {
  const text = (name: string) => declaration(name, "size: 2GiB", "attached_to: appliance", "export_wanted: true")

  it("stores nothing without a terminal and without --yes", async () => {
    const ended = await volumed(["apply", "-f", file("a.yaml", text("unasked"))], { input: "yes\n" })
    assert.strictEqual(ended.code, 1)
    assert.include(ended.stdout, "+ create")
    assert.include(ended.stderr, "--yes")
    assert.notInclude(await declaredNames(), "unasked")
  })

  it("plans, applies, follows until Ready, and then finds nothing to do", async () => {
    const path = file("b.yaml", text("first"))
    const planned = await volumed(["plan", "-f", path])
    assert.strictEqual(planned.code, 2)
    assert.match(planned.stdout, /^Server: +http:[^]*^Cloud: .*sandbox[^]*^Zone: [^]*^Appliance: /mu)
    assert.notInclude(await declaredNames(), "first")

    const applied = await volumed(["apply", "-f", path, "--wait", "--yes"])
    assert.strictEqual(applied.code, 0, applied.stderr)
    assert.match(applied.stdout, /^first +Ready /mu)
    assert.match(applied.stderr, /^ +\d+\.\ds {2}first {2}create {2}/mu)
    assert.match(applied.stderr, /^ +\d+\.\ds {2}first {2}Ready /mu)
    assert.notInclude(applied.stdout + applied.stderr, "\u001b")

    assert.strictEqual((await volumed(["plan"])).code, 0)
    assert.strictEqual((await volumed(["plan", "-f", path])).code, 0)
    const again = await volumed(["apply", "-f", path])
    assert.strictEqual(again.code, 0, again.stderr)
    assert.include(again.stdout, "Nothing to store")
  })

  it("answers in JSON and YAML that parse to the same", async () => {
    // The export may be verified anew between the two.
    const steady = (volume: { status: { export: object } }) => ({
      ...volume,
      status: { ...volume.status, export: { ...volume.status.export, verified_at: null } }
    })
    const json = steady(JSON.parse(await result("get", "first", "-o", "json")))
    const yaml = steady(parse(await result("get", "first", "-o", "yaml")))
    assert.deepStrictEqual(yaml, json)
    assert.propertyVal(json, "name", "first")
    for (const command of ["plan", "drift", "ops", "explain first"]) {
      assert.typeOf(
        JSON.parse(await result(...command.split(" "), "-o", "json")),
        command === "ops" ? "array" : "object"
      )
    }
  })

  it("is found by every handle, and explain ends with a command to type", async () => {
    const volume = JSON.parse(await result("get", "first", "-o", "json")) as {
      status: { volume_id: string; kernel_path: string; by_id_path: string; export: { name: string } }
    }
    const { volume_id, by_id_path, kernel_path, export: served } = volume.status
    const serial = volume_id.replaceAll("-", "").slice(0, 20)
    const disk = `/dev/${kernel_path.slice(kernel_path.lastIndexOf("/") + 1)}`
    for (const handle of ["first", volume_id, disk, by_id_path, serial, served.name]) {
      const explained = await result("explain", handle)
      assert.match(explained, /^first: Ready\n/u, handle)
      assert.match(explained, /\nType: volumed [a-z]+ .+\n$/u)
    }
    const unknown = await volumed(["explain", "frist"])
    assert.strictEqual(unknown.code, 1)
    assert.include(unknown.stderr, "Did you mean first?")
  })

  it("shows the operations it took, and each of them in full", async () => {
    const list = JSON.parse(await result("ops", "-o", "json")) as Array<{ id: string; type: string; name: string }>
    assert.includeMembers(
      list.filter((operation) => operation.name === "first").map((operation) => operation.type),
      ["create", "attach", "export"]
    )
    assert.include(await result("ops", list[0]?.id ?? ""), "completed (settled)")
    assert.strictEqual((await volumed(["ops", "op-00000000-0000-4000-8000-000000000000"])).code, 1)
  })

  it("reports a volume that cannot be Ready as held, and one that needs longer as a time-out", async () => {
    const path = file("c.yaml", text("slow"))
    const late = await volumed(["apply", "-f", path, "--wait", "--timeout", "1ms", "--yes"])
    assert.strictEqual(late.code, 5, late.stderr)
    assert.include(late.stderr, "volumed explain slow")
    const ready = await volumed(["apply", "-f", path, "--wait"])
    assert.strictEqual(ready.code, 0, ready.stderr)

    const stuck = file("d.yaml", declaration("stuck", `volume_id: ${"0".repeat(8)}-0000-4000-8000-${"0".repeat(12)}`))
    const held = await volumed(["plan", "-f", stuck])
    assert.strictEqual(held.code, 4, held.stdout)
  })

  it("removes a declaration and takes the removal back", async () => {
    await result("apply", "-f", file("e.yaml", text("leaving")), "--wait", "--yes")
    assert.strictEqual((await volumed(["delete", "leaving"])).code, 1)
    assert.include(await result("delete", "leaving", "--policy", "delete", "--yes"), "volumed undelete leaving")
    assert.match(await result("get", "leaving"), /^leaving +Removing /mu)
    assert.include(await result("explain", "leaving"), "Type: volumed undelete leaving")
    assert.include(await result("undelete", "leaving", "--yes"), "leaving is declared again")
    assert.notMatch(await result("get", "leaving"), /Removing/u)
  })

  it("adopts a volume that somebody made, or prints the declaration for it", async () => {
    const made = await stage.act({ act: "create", name: "by-hand", size_gib: 3 })
    const { volume_id } = made as { volume_id: string }
    const printed = await result("adopt", volume_id, "--name", "adopted", "--print")
    assert.deepStrictEqual(parse(printed), { volumes: [{ name: "adopted", volume_id }] })
    assert.notInclude(await declaredNames(), "adopted")
    await result("adopt", volume_id, "--name", "adopted", "--yes")
    assert.include(await declaredNames(), "adopted")
    assert.strictEqual((await volumed(["adopt", volume_id, "--name", "adopted", "--yes"])).code, 1)
  })

  it("overwrites what somebody else wrote only with --take-over", async () => {
    const path = file("i.yaml", `set: s\n${declaration("shared", "size: 1GiB", "paused: {reason: a, by: b}")}`)
    await result("apply", "-f", path, "--yes")
    const headers = { "content-type": "application/json" }
    const body = JSON.stringify({ paused: { reason: "mine", by: "carol" } })
    await fetch(`${server}/api/v2/volumes/shared`, { method: "PATCH", headers, body })
    const refused = await volumed(["apply", "-f", path, "--yes"])
    assert.strictEqual(refused.code, 1)
    assert.include(refused.stderr, `${path}:5:5: shared: paused: `)
    assert.include(refused.stderr, "--take-over")
    assert.include(await result("apply", "-f", path, "--yes", "--take-over"), "1 changed")
  })

  it("prunes declarations of its own set, and never by an empty file", async () => {
    const entries = Array.from(
      { length: 6 },
      (_, index) => `  - {name: set-${index}, size: 1GiB, paused: {reason: a, by: b}}`
    )
    const setFile = (count: number) =>
      file("j.yaml", ["set: pruned", "volumes:", ...entries.slice(0, count), ""].join("\n"))
    await result("apply", "-f", setFile(6), "--yes")
    assert.include(await result("apply", "-f", setFile(5), "--yes", "--prune"), "1 removed")
    // Its removal is carried out by the next pass.
    await vi.waitFor(async () => assert.notInclude(await declaredNames(), "set-5"), { timeout: 20_000, interval: 100 })
    assert.includeMembers([...(await declaredNames())], ["set-0", "set-4", "first"])
    const empty = await volumed(["apply", "-f", file("k.yaml", "set: pruned\nvolumes: []\n"), "--yes", "--prune"])
    assert.strictEqual(empty.code, 1)
    assert.includeMembers([...(await declaredNames())], ["set-0", "set-4"])
  })

  it("refuses to approve what is not held", async () => {
    const ended = await volumed(["approve", "0123", "--yes"])
    assert.strictEqual(ended.code, 1)
    assert.include(ended.stderr, "held")
  })

  it("shows drift with 3 or 4 and none with 0", async () => {
    assert.include(await result("drift"), "No drift.")
    const { status } = JSON.parse(await result("get", "first", "-o", "json")) as { status: { volume_id: string } }
    const hold = join(folder, "state", "hold")
    writeFileSync(hold, "the test looks first\n")
    await stage.act({ act: "detach", volume_id: status.volume_id })
    const drifted = await volumed(["drift"])
    assert.strictEqual(drifted.code, 4, drifted.stdout)
    assert.match(drifted.stdout, /^! first {2}attachment: /mu)
    assert.include(drifted.stdout, "the test looks first")
    rmSync(hold)
    const repaired = await volumed(["apply", "-f", join(folder, "b.yaml"), "--wait"])
    assert.strictEqual(repaired.code, 0, repaired.stderr)
  })

  it("stops following at Ctrl-C, says what goes on, and leaves the declaration stored", async () => {
    const child = Child.start(["apply", "-f", file("f.yaml", text("interrupted")), "--wait", "--yes"], {
      env: { VOLUMED_SERVER: server }
    })
    const ended = Child.collect(child)
    await Child.said(child, "stderr", /interrupted {2}create/u)
    child.kill("SIGINT")
    const { code, stderr } = await ended
    assert.strictEqual(code, 130)
    assert.include(stderr, "What was declared stays declared")
    assert.include(await declaredNames(), "interrupted")
  })

  it("ends quietly when the reader of a long result goes away", async () => {
    const many = Array.from(
      { length: 200 },
      (_, index) => `  - name: many-${index}\n    size: 1GiB\n    paused: {reason: test, by: test}`
    )
    await result("apply", "-f", file("g.yaml", ["volumes:", ...many, ""].join("\n")), "--yes")
    const child = Child.start(["get", "-o", "json"], { env: { VOLUMED_SERVER: server } })
    child.stdout.once("data", () => child.stdout.destroy())
    const { code, stderr } = await Child.collect(child)
    assert.strictEqual(code, 141)
    assert.strictEqual(stderr, "")
  })
})

describe("beside a sandbox of its own process", () => {
  let home = ""
  let world: ReturnType<typeof Child.start>
  let env: Record<string, string> = {}

  beforeAll(async () => {
    home = mkdtempSync(join(tmpdir(), "volumed-world-"))
    world = Child.start(["sandbox", "--state", home])
    const [, path = ""] = await Child.said(world, "stdout", /^(\/.*sandbox\.env)\n/u)
    const lines = [...readFileSync(path, "utf8").matchAll(/^([A-Z_]+)='(.*)'$/gmu)]
    env = Object.fromEntries(lines.map((line) => [line[1] ?? "", line[2] ?? ""]))
    env = {
      DATABASE_DSN: `sqlite:${home}/volumed.db`,
      LISTEN: "127.0.0.1:0",
      VOLUMED_SERVER: "http://127.0.0.1:1",
      ...env
    }
  })
  afterAll(async () => {
    await Child.stop(world)
    rmSync(home, { recursive: true, force: true })
  })

  it("plans without a daemon, and leaves no database behind", async () => {
    const path = file("h.yaml", declaration("alone", "size: 2GiB", "attached_to: appliance"))
    const planned = await Child.run(["plan", "--standalone", "-f", path], { env })
    assert.strictEqual(planned.code, 2, planned.stderr)
    assert.include(planned.stdout, "+ create")
    const nothing = await Child.run(["plan", "--standalone"], { env })
    assert.strictEqual(nothing.code, 0, nothing.stderr)
    assert.throws(() => readFileSync(join(home, "volumed.db")))
  })

  it("doctor says go, and with a wrong key names the fix", async () => {
    const good = await Child.run(["doctor", "-o", "json"], { env })
    assert.strictEqual(good.code, 0, good.stdout + good.stderr)
    const { checks } = JSON.parse(good.stdout) as { checks: Array<{ check: string; state: string }> }
    assert.includeMembers(
      checks.map((check) => check.check),
      ["node", "daemon", "database", "CloudStack", "appliance VM", "clock", "devices", "NBD server", "NBD config"]
    )
    const bad = await Child.run(["doctor"], { env: { ...env, CLOUDSTACK_SECRET_KEY: "wrong" } })
    assert.strictEqual(bad.code, 4, bad.stdout)
    assert.match(bad.stdout, /^fail {2}CloudStack .*\n +fix: .*CLOUDSTACK_SECRET_KEY/mu)
    const none = await Child.run(["doctor"], {})
    assert.strictEqual(none.code, 4)
    assert.include(none.stdout, "DATABASE_DSN")
  })
})
