import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import { execFileSync } from "node:child_process"
import * as Fs from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as Sandbox from "../../src/Simulation/Sandbox.ts"
import * as World from "../../src/Simulation/World.ts"
import { inside, signed } from "./Wire.ts"

const temporary = Effect.acquireRelease(
  Effect.sync(() => Fs.mkdtempSync(join(tmpdir(), "volumed sandbox's test-"))),
  (dir) => Effect.sync(() => Fs.rmSync(dir, { recursive: true, force: true }))
)

const call = (sandbox: Sandbox.Sandbox, params: Readonly<Record<string, string>>) =>
  Effect.promise(async () => {
    const url = sandbox.env["CLOUDSTACK_API_URL"] ?? ""
    const answer = await fetch(url, { method: "POST", body: signed(params, Date.now()) })
    return inside(await answer.text())
  })

const create = {
  command: "createVolume",
  name: "kept",
  size: "2",
  diskofferingid: World.OFFERING_ID,
  zoneid: World.ZONE_ID
}

/** Runs a sandbox to its end. */
const once = <A, E>(options: Partial<Sandbox.Options>, body: (sandbox: Sandbox.Sandbox) => Effect.Effect<A, E>) =>
  Effect.scoped(Effect.flatMap(Sandbox.start({ ...Sandbox.defaults, ...options }), body))

describe("a sandbox", () => {
  it.live("needs nothing, answers calls, shows devices, and leaves no trace of a fresh directory", () =>
    Effect.gen(function* () {
      const dir = yield* once({ job_ms: 0, device_delay_ms: 0 }, (sandbox) =>
        Effect.gen(function* () {
          const id = String((yield* call(sandbox, create))["id"])
          yield* call(sandbox, { command: "attachVolume", id, virtualmachineid: World.APPLIANCE_VM_ID })
          const link = join(sandbox.env["BY_ID_DIR"] ?? "", `virtio-${id.replaceAll("-", "").slice(0, 20)}`)
          while (!Fs.existsSync(link)) yield* Effect.sleep(5)
          const page = yield* Effect.promise(async () => (await fetch(`${sandbox.url}/sandbox`)).json())
          assert.deepInclude(
            (page as { volumes: ReadonlyArray<object> }).volumes.find((row) => "id" in row && row.id === id),
            { vm_id: World.APPLIANCE_VM_ID, state: "Ready", name: "kept" }
          )
          return sandbox.dir
        })
      )
      assert.isFalse(Fs.existsSync(dir))
    })
  )

  it.scopedLive("writes lines that a shell can source, and only once it listens", () =>
    Effect.gen(function* () {
      const dir = yield* temporary
      yield* once({ state_dir: dir }, (sandbox) =>
        Effect.sync(() => {
          const script =
            '. "$1/sandbox.env"; printf "%s\\n" "$CLOUDSTACK_API_URL" "$APPLIANCE_VM_ID" "$SANDBOX" "$HOLD_FILE"'
          const lines = execFileSync("sh", ["-c", script, "sh", dir], { encoding: "utf8" }).split("\n")
          assert.deepStrictEqual(lines.slice(0, 4), [
            `${sandbox.url}/client/api`,
            World.APPLIANCE_VM_ID,
            "1",
            join(dir, "hold")
          ])
          const keys = Object.keys(sandbox.env)
          for (const key of [
            "CLOUDSTACK_API_KEY",
            "CLOUDSTACK_SECRET_KEY",
            "SYS_BLOCK_DIR",
            "DEVICE_KIND",
            "NBD_CONFIG"
          ]) {
            assert.include(keys, key)
          }
          for (const key of ["NBD_ACL_DIR", "STATE_DIR"]) assert.isTrue(Fs.existsSync(sandbox.env[key] ?? ""), key)
          assert.match(sandbox.env["NBD_PORT"] ?? "", /^[1-9]\d*$/)
        })
      )
    })
  )

  it.scopedLive("keeps its world, its address and its disks in a state directory", () =>
    Effect.gen(function* () {
      const dir = yield* temporary
      const first = yield* once({ state_dir: dir, vms: 3 }, (sandbox) =>
        Effect.gen(function* () {
          const { id } = yield* call(sandbox, create)
          return { id, env: sandbox.env, truth: sandbox.world.truth(Date.now()).volumes }
        })
      )
      yield* once({ state_dir: dir, seed: 99 }, (sandbox) =>
        Effect.gen(function* () {
          assert.deepStrictEqual(sandbox.env, first.env)
          const truth = sandbox.world.truth(Date.now()).volumes
          assert.deepStrictEqual(truth, first.truth)
          assert.strictEqual((yield* call(sandbox, { command: "listVolumes", id: String(first.id) }))["count"], 1)
        })
      )
    })
  )

  it.scopedLive("switches on faults from a file, and names file and place of a wrong one", () =>
    Effect.gen(function* () {
      const dir = yield* temporary
      const file = join(dir, "faults.json")
      Fs.writeFileSync(file, '[{"kind":"throttled"}]')
      yield* once({ faults_file: file }, (sandbox) =>
        Effect.map(call(sandbox, { command: "listVolumes" }), (answer) => assert.strictEqual(answer["errorcode"], 429))
      )
      Fs.writeFileSync(file, '[{"kind":"thrott"}]')
      const error = yield* Effect.flip(once({ faults_file: file }, () => Effect.void))
      assert.include(error.message, file)
      Fs.writeFileSync(join(dir, "world.json"), "{}")
      const broken = yield* Effect.flip(once({ state_dir: dir }, () => Effect.void))
      assert.match(broken.message, /world\.json holds no world; remove it to start anew/)
    })
  )
})
