import { afterAll, assert, beforeAll, describe, it } from "@effect/vitest"
import { spawn } from "node:child_process"
import { randomBytes } from "node:crypto"
import { once } from "node:events"
import { mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import * as Volumed from "../../src/Client/Volumed.ts"
import * as Processes from "../../src/Nbd/Processes.ts"
import { APPLIANCE_VM_ID, OPERATOR_API_KEY, OPERATOR_SECRET_KEY, vmId } from "../../src/Simulation/World.ts"
import * as Child from "../Cli/Child.ts"

/**
 * The examples as users run them, one after the other on one world, against the built daemon and a real nbd-server. What
 * is asserted is the ground truth of the simulated CloudStack and the bytes that go through the export.
 */
const root = fileURLToPath(new URL("../../", import.meta.url))
const [testVm, rootVm] = [vmId(1), vmId(2)]
/** Each step starts programs of its own, and moves disks between machines. */
const STEP_MS = 180_000
/** A disk that is migrated: what it holds must come through unharmed. */
const disk = randomBytes(4 * 1024 * 1024)

let folder = ""
let daemon: ReturnType<typeof Child.start>
let server = ""
let cloud = ""
let volumed: Volumed.Connection
let migrated: Migrated

interface Migrated {
  readonly disk: string
  readonly volume_id: string
  readonly device_path: string
  readonly kernel_path: string
  readonly export: string
}

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), "volumed-examples-"))
  writeFileSync(join(folder, "disk.img"), disk)
  daemon = Child.start(["serve", "--sandbox", "--listen", "127.0.0.1:0", "--state", join(folder, "state")], {
    env: { POLL_INTERVAL: "300ms", LOG_LEVEL: "error" }
  })
  const ready = await Child.said(daemon, "stderr", /volumed ready on (\S+);.*CloudStack on (\S+), .*by nbd-server/u)
  server = ready[1] ?? ""
  cloud = ready[2] ?? ""
  volumed = Volumed.connect({ server, actor: "test" })
})

afterAll(async () => {
  await Child.stop(daemon)
  // A kept state keeps its NBD server, as in production; here nobody takes it up again.
  const config = join(folder, "state/nbd/config-base")
  for (const main of Processes.servers(config)) Processes.kill(main, config)
  rmSync(folder, { recursive: true, force: true })
})

const ended = async (program: string, args: ReadonlyArray<string>, env: Readonly<Record<string, string>> = {}) =>
  Child.collect(
    spawn(program, args, { cwd: root, env: { PATH: process.env["PATH"] ?? "", HOME: "/nonexistent", ...env } })
  )

const example = (name: string, args: ReadonlyArray<string>, env: Readonly<Record<string, string>> = {}) =>
  ended(process.execPath, ["--import", "tsx", `examples/${name}.ts`, ...args], { VOLUMED_SERVER: server, ...env })

/** It must end well; its lines of JSON. */
const result = async <A>(...of: Parameters<typeof example>): Promise<ReadonlyArray<A>> => {
  const { code, stdout, stderr } = await example(...of)
  assert.strictEqual(code, 0, stderr)
  return stdout
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line) as A)
}

interface Truth {
  readonly volumes: ReadonlyArray<{
    readonly id: string
    readonly name: string
    readonly type: string
    readonly vm_id: string | null
    readonly size: number
  }>
  readonly violations: ReadonlyArray<unknown>
}

const truth = async (): Promise<Truth> => (await fetch(`${cloud}/sandbox`)).json() as Promise<Truth>

const placeOf = async (id: string) => {
  const row = (await truth()).volumes.find((volume) => volume.id === id)
  return { vm_id: row?.vm_id ?? null, type: row?.type }
}

const act = async (body: unknown) => {
  const response = await fetch(`${cloud}/sandbox/act`, { method: "POST", body: JSON.stringify(body) })
  assert.strictEqual(response.status, 200)
}

const nbdcopy = async (from: string, to: string) => {
  const { code, stderr } = await ended("nbdcopy", [from, to])
  assert.strictEqual(code, 0, stderr)
}

/** The first bytes of the export, as many as the disk had. */
const served = async (uri: string): Promise<Buffer> => {
  const child = spawn("nbdcopy", [uri, "-"], { stdio: ["ignore", "pipe", "ignore"] })
  const closed = once(child, "close")
  const chunks: Array<Buffer> = []
  let bytes = 0
  for await (const chunk of child.stdout) {
    chunks.push(chunk as Buffer)
    bytes += (chunk as Buffer).length
    if (bytes >= disk.length) break
  }
  child.kill("SIGKILL")
  await closed
  return Buffer.concat(chunks).subarray(0, disk.length)
}

const isServed = async (uri: string) => (await ended("nbdinfo", ["--size", uri])).code === 0

describe("migration volumes", { timeout: STEP_MS }, () => {
  it("makes a volume with room to spare, attaches it to the appliance and tells device and export", async () => {
    const [made, ...others] = await result<Migrated>("migration-volumes", ["web", String(disk.length)])
    assert.strictEqual(others.length, 0)
    assert.isDefined(made)
    migrated = made
    const row = (await truth()).volumes.find((volume) => volume.id === made.volume_id)
    assert.deepInclude(row, { name: "web-disk-0", vm_id: APPLIANCE_VM_ID })
    assert.isAtLeast(row?.size ?? 0, disk.length + 5 * 1024 ** 3)
    assert.include(made.device_path, made.volume_id.replaceAll("-", "").slice(0, 20))
    await nbdcopy(join(folder, "disk.img"), made.export)
    assert.isTrue(disk.equals(await served(made.export)))
    assert.isTrue(await isServed(made.export))
  })

  it("takes up what it made, when it is run again", async () => {
    const again = await result<Migrated>("migration-volumes", ["web", String(disk.length)])
    assert.deepStrictEqual(again, [migrated])
    assert.strictEqual((await truth()).volumes.filter(({ name }) => name === "web-disk-0").length, 1)
  })

  it("says what is wrong and what to do", async () => {
    const { code, stderr } = await example("migration-volumes", ["web", "1"], {
      VOLUMED_SERVER: "http://127.0.0.1:1"
    })
    assert.strictEqual(code, 1)
    assert.match(stderr, /^UNKNOWN_ERROR: http:\/\/127\.0\.0\.1:1 did not answer.*\n {2}see that the daemon runs/u)
  })
})

describe("test failover", { timeout: STEP_MS }, () => {
  it("takes the volume to the test VM, its export gone meanwhile, and back with the same bytes", async () => {
    const { volume_id, export: uri } = migrated
    await result("test-failover", [volume_id, testVm])
    assert.deepStrictEqual(await placeOf(volume_id), { vm_id: testVm, type: "DATADISK" })
    assert.isFalse(await isServed(uri))

    const [back] = await result<{ device_path: string }>("test-failover", [volume_id, testVm, "--back"])
    assert.deepStrictEqual(await placeOf(volume_id), { vm_id: APPLIANCE_VM_ID, type: "DATADISK" })
    assert.strictEqual(back?.device_path, migrated.device_path)
    await volumed.waitForCondition((await volumed.v1.volume(volume_id)).last_operation?.name ?? "", "Exported:True")
    assert.isTrue(disk.equals(await served(uri)))
    assert.deepStrictEqual((await truth()).violations, [])
  })
})

describe("test VM root volume", { timeout: STEP_MS }, () => {
  const keys = () => ({
    CLOUDSTACK_API_URL: `${cloud}/client/api`,
    CLOUDSTACK_API_KEY: OPERATOR_API_KEY,
    CLOUDSTACK_SECRET_KEY: OPERATOR_SECRET_KEY
  })

  it("leaves a running VM's root volume, and the appliance, alone", async () => {
    const running = await example("test-vm-root-volume", [rootVm], keys())
    assert.strictEqual(running.code, 1)
    assert.include(running.stderr, "Root volume detach can happen only when")
    const appliance = await example("test-vm-root-volume", [APPLIANCE_VM_ID], keys())
    assert.strictEqual(appliance.code, 1)
    assert.include(appliance.stderr, "is the appliance itself")
  })

  it("makes room for a failover as root, which comes back with the same bytes", async () => {
    const { volume_id, export: uri } = migrated
    await act({ act: "stop_vm", vm_id: rootVm })
    const [{ deleted } = { deleted: "" }] = await result<{ deleted: string }>("test-vm-root-volume", [rootVm], keys())
    assert.isFalse((await truth()).volumes.some((volume) => volume.id === deleted || volume.vm_id === rootVm))

    await result("test-failover", [volume_id, rootVm, "--root"])
    assert.deepStrictEqual(await placeOf(volume_id), { vm_id: rootVm, type: "ROOT" })
    await result("test-failover", [volume_id, rootVm, "--back"])
    assert.deepStrictEqual(await placeOf(volume_id), { vm_id: APPLIANCE_VM_ID, type: "DATADISK" })
    await volumed.waitForCondition((await volumed.v1.volume(volume_id)).last_operation?.name ?? "", "Exported:True")
    assert.isTrue(disk.equals(await served(uri)))
    assert.deepStrictEqual((await truth()).violations, [])
  })
})
