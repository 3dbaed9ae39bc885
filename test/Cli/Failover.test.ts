import { afterAll, assert, beforeAll, describe, it } from "@effect/vitest"
import { Effect, Exit, Redacted, Scope } from "effect"
import { type ChildProcess } from "node:child_process"
import { once } from "node:events"
import { mkdtempSync, readFileSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { setTimeout as sleep } from "node:timers/promises"
import * as World from "../../src/Simulation/World.ts"
import * as MariaDb from "../support/MariaDb.ts"
import * as Child from "./Child.ts"

/**
 * Daemons as users run them, on one MariaDB and one simulated CloudStack, ended and stopped as machines do it. What is
 * asserted is what they answer, and in the end what CloudStack has seen. Each wait has a limit that says only that
 * something happens at all.
 */
const directory = mkdtempSync(join(tmpdir(), "volumed-failover-"))
const scope = Effect.runSync(Scope.make())
const children: Array<ChildProcess> = []
let database: MariaDb.MariaDb
let cloud = ""
let environment: Readonly<Record<string, string>> = {}

const launch = (args: ReadonlyArray<string>, env: Readonly<Record<string, string>>) => {
  const child = Child.start(args, { env })
  children.push(child)
  return child
}

interface Daemon {
  readonly url: string
  readonly child: ReturnType<typeof Child.start>
  /** What it said when it was ready. */
  readonly ready: string
}

const start = async (): Promise<Daemon> => {
  const child = launch(["serve"], environment)
  const ready = await Child.said(child, "stderr", /volumed ready on (http:\S+);.*\n/u)
  return { child, url: ready[1] ?? "", ready: ready[0] }
}

beforeAll(async () => {
  database = await Effect.runPromise(Scope.extend(MariaDb.start(), scope))
  const { user, password, port, database: name } = await Effect.runPromise(database.database())
  const sandbox = launch(["sandbox", "--state", directory, "--cloudstack-listen", "127.0.0.1:0"], {})
  cloud = (await Child.said(sandbox, "stderr", /listens on (http:\S+);/u))[1] ?? ""
  const settings = readFileSync(join(directory, "sandbox.env"), "utf8").matchAll(/^([A-Z_]+)='(.*)'$/gmu)
  environment = {
    ...Object.fromEntries([...settings].map(([, key = "", value = ""]) => [key, value])),
    NBD_BACKEND: "simulated",
    LISTEN: "127.0.0.1:0",
    RESYNC_INTERVAL: "1s",
    RESYNC_BUSY_INTERVAL: "1s",
    DATABASE_DSN: `mysql://${user}:${encodeURIComponent(Redacted.value(password))}@127.0.0.1:${port}/${name}`
  }
}, 120_000)

afterAll(async () => {
  for (const child of children.toReversed()) {
    if (child.exitCode !== null || child.signalCode !== null) continue
    const closed = once(child, "close")
    child.kill("SIGKILL")
    await closed
  }
  await Effect.runPromise(Scope.close(scope, Exit.void))
  rmSync(directory, { recursive: true, force: true })
})

const kill = async ({ child }: Daemon, signal: "SIGKILL" | "SIGTERM") => {
  const closed = once(child, "close")
  child.kill(signal)
  return (await closed) as [number | null]
}

const send = async (url: string, init: RequestInit = {}) => {
  const response = await fetch(url, init)
  return { status: response.status, body: (await response.json()) as Record<string, unknown> }
}

const declare = ({ url }: Daemon, name: string) =>
  send(`${url}/api/v2/volumes/${name}`, {
    method: "PUT",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({
      size: "2GiB",
      disk_offering_id: World.OFFERING_ID,
      zone_id: World.ZONE_ID,
      attached_to: "appliance"
    })
  })

const roleOf = async ({ url }: Daemon) =>
  ((await send(`${url}/health`)).body["details"] as Record<string, string>)["role"]

const until = async (what: string, holds: () => Promise<boolean>) => {
  const end = Date.now() + 60_000
  while (!(await holds())) {
    if (Date.now() > end) assert.fail(`never ${what}`)
    await sleep(20)
  }
}

const becomes = (daemon: Daemon, role: "leader" | "standby" | "unknown") =>
  until(role, async () => (await roleOf(daemon)) === role)

const ready = async ({ url }: Daemon, name: string) => {
  const { body } = await send(`${url}/api/v2/volumes/${name}?wait=Ready:True&timeout=60s`)
  const { conditions } = body["status"] as { conditions: ReadonlyArray<{ type: string; status: string }> }
  assert.strictEqual(conditions.find(({ type }) => type === "Ready")?.status, "True", JSON.stringify(body))
}

const truth = async () => (await (await fetch(`${cloud}/sandbox`)).json()) as World.Truth

const attachedDisks = async () =>
  (await truth()).volumes
    .filter(({ type, vm_id }) => type === "DATADISK" && vm_id === World.APPLIANCE_VM_ID)
    .map(({ name }) => name)
    .toSorted()

const refusedAs = async (daemon: Daemon, code: string) => {
  const { status, body } = await declare(daemon, "refused")
  assert.deepStrictEqual([status, body["code"]], [503, code])
}

describe("two daemons on one MariaDB", () => {
  it("lead one after the other, however the leader ends, and no call is made twice (M1, P1, P3, P4, S16)", async () => {
    const a = await start()
    assert.strictEqual(await roleOf(a), "leader")
    const b = await start()
    assert.match(b.ready, /standing by: another process leads \(.* pid \d+\)/u)
    assert.strictEqual((await declare(a, "one")).status, 201)
    await refusedAs(b, "STANDBY")
    await ready(a, "one")
    await ready(b, "one")

    const planned = await Child.run(["plan", "--standalone"], { env: environment })
    assert.deepStrictEqual([planned.code, await roleOf(a)], [0, "leader"], `${planned.stdout}${planned.stderr}`)
    assert.include(planned.stdout, "one")

    await kill(a, "SIGKILL")
    await becomes(b, "leader")
    assert.strictEqual((await declare(b, "two")).status, 201)

    const c = await start()
    assert.strictEqual(await roleOf(c), "standby")
    b.child.kill("SIGSTOP")
    await becomes(c, "leader")
    assert.strictEqual((await declare(c, "three")).status, 201)
    b.child.kill("SIGCONT")
    await becomes(b, "standby")
    await refusedAs(b, "STANDBY")

    assert.deepStrictEqual(await kill(c, "SIGTERM").then(([code]) => code), 0)
    await becomes(b, "leader")
    assert.strictEqual((await declare(b, "four")).status, 201)
    for (const name of ["one", "two", "three", "four"]) await ready(b, name)
    assert.deepStrictEqual(await attachedDisks(), ["four", "one", "three", "two"])
    assert.deepStrictEqual((await truth()).violations, [])
    await kill(b, "SIGTERM")
  })

  it("change nothing while it is down, look on, and go on by themselves when it is back (B1, B4, L8)", async () => {
    const a = await start()
    await becomes(a, "leader")
    assert.strictEqual((await declare(a, "kept")).status, 201)
    await ready(a, "kept")
    await Effect.runPromise(database.kill)
    await becomes(a, "unknown")
    await refusedAs(a, "DATABASE_UNAVAILABLE")
    const { volumes, calls } = await truth()
    const volume_id = volumes.find(({ name }) => name === "kept")?.id
    await send(`${cloud}/sandbox/act`, { method: "POST", body: JSON.stringify({ act: "detach", volume_id }) })
    const looked = calls["listVolumes"] ?? 0
    await until("looked at", async () => ((await truth()).calls["listVolumes"] ?? 0) > looked + 2)
    const now = (await truth()).calls
    for (const name of ["attachVolume", "detachVolume", "createVolume"])
      assert.strictEqual(now[name], calls[name], name)
    assert.strictEqual((await fetch(`${a.url}/livez`)).status, 200)
    assert.strictEqual((await fetch(`${a.url}/readyz`)).status, 503)

    await Effect.runPromise(database.start)
    await becomes(a, "leader")
    await until("attached again", async () => (await attachedDisks()).includes("kept"))
    await ready(a, "kept")
    assert.deepStrictEqual((await truth()).violations, [])
  })
})
