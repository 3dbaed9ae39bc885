import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import { chmodSync, mkdirSync, mkdtempSync, readdirSync, rmSync, symlinkSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as NbdCheck from "../../src/Cli/NbdCheck.ts"
import * as Processes from "../../src/Nbd/Processes.ts"
import * as Fake from "../CloudStack/FakeCloudStack.ts"
import * as Appliance from "../Nbd/Appliance.ts"
import * as Engine from "../Nbd/Engine.ts"
import { loopback } from "../support/Certificates.ts"
import * as Child from "./Child.ts"

describe("doctor", () => {
  it.scopedLive("reads CloudStack's clock as the daemon would: by its certificates, not by the system's (e4)", () =>
    Effect.gen(function* () {
      const dir = yield* Effect.acquireRelease(
        Effect.sync(() => mkdtempSync(join(tmpdir(), "volumed-doctor-"))),
        (made) => Effect.sync(() => rmSync(made, { recursive: true, force: true }))
      )
      const ca = join(dir, "ca.pem")
      writeFileSync(ca, loopback.cert)
      const cloud = yield* Fake.onLoopback(
        ({ command }) => (command === "listCapabilities" ? Fake.ok(command) : { body: "{}" }),
        loopback
      )
      const settings = {
        DATABASE_DSN: `sqlite:${join(dir, "volumed.db")}`,
        STATE_DIR: dir,
        CLOUDSTACK_API_URL: cloud.url,
        CLOUDSTACK_API_KEY: "key",
        CLOUDSTACK_SECRET_KEY: "secret",
        APPLIANCE_VM_ID: "8a4400e5-c92a-4bc4-8bff-4b6b0b6a018c"
      }
      const doctor = (env: Record<string, string>) =>
        Effect.map(
          Effect.promise(() => Child.run(["doctor"], { env })),
          ({ stdout }) => stdout
        )
      const trusting = yield* doctor({ ...settings, CLOUDSTACK_CA_FILE: ca })
      assert.match(trusting, /^ok +CloudStack +version/mu)
      assert.match(trusting, /^ok +clock +CloudStack's clock differs by \d s/mu)
      const called = cloud.calls.length
      const careless = yield* doctor({ ...settings, NODE_TLS_REJECT_UNAUTHORIZED: "0" })
      assert.match(careless, /^warn +clock +CloudStack's clock could not be read/mu)
      assert.match(careless, /^fail +CloudStack +/mu)
      assert.strictEqual(cloud.calls.length, called, "nothing reaches a server that nobody vouches for")
    })
  )

  it.scopedLive("finds the daemon held by whatever bears the hold file's name, as the daemon does", () =>
    Effect.gen(function* () {
      const dir = yield* Effect.acquireRelease(
        Effect.sync(() => mkdtempSync(join(tmpdir(), "volumed-doctor-"))),
        (made) => Effect.sync(() => rmSync(made, { recursive: true, force: true }))
      )
      const hold = join(dir, "hold")
      symlinkSync(join(dir, "nowhere"), hold)
      const env = {
        DATABASE_DSN: `sqlite:${join(dir, "volumed.db")}`,
        STATE_DIR: dir,
        HOLD_FILE: hold,
        CLOUDSTACK_API_URL: "http://127.0.0.1:9/client/api",
        CLOUDSTACK_API_KEY: "key",
        CLOUDSTACK_SECRET_KEY: "secret",
        APPLIANCE_VM_ID: "8a4400e5-c92a-4bc4-8bff-4b6b0b6a018c"
      }
      const { stdout } = yield* Effect.promise(() => Child.run(["doctor"], { env }))
      assert.match(stdout, /^fail +hold file +the hold file \S+ is there/mu)
    })
  )

  it.scopedLive("finds on a running nbd-server what neither its unit nor a handshake shows (N13, e6)", () =>
    Effect.gen(function* () {
      const appliance = yield* Appliance.make
      const { dir, options, place } = appliance
      const { path } = appliance.disk("one")
      const missing = join(dir, "missing")
      const writable = join(dir, "writable")
      writeFileSync(writable, "")
      chmodSync(writable, 0o666)
      const section = (name: string, ...lines: ReadonlyArray<string>) =>
        `[${name}]\nreadonly = true\nvirtstyle = none\nexportname = ${path}\n${lines.map((line) => `${line}\n`).join("")}`
      writeFileSync(
        place.config,
        [
          `[generic]\nlistenaddr = 0.0.0.0\nport = ${place.port}\n`,
          section("open"),
          section("lost", `authfile = ${missing}`),
          section("loose", `authfile = ${writable}`, "maxconnections = 9", "copyonwrite = true"),
          section("letter", "filesize = 4096").replace(path, "/dev/vdq")
        ].join("")
      )
      yield* Appliance.run("nbd-server", "-C", place.config, "-p", join(dir, "pid"))
      yield* Appliance.eventually("it listens", () => Processes.listening(place.host, place.port).size > 0)
      const env = {
        DATABASE_DSN: `sqlite:${join(dir, "volumed.db")}`,
        STATE_DIR: options.state_dir,
        BY_ID_DIR: options.by_id_dir,
        NBD_CONFIG: place.config,
        NBD_ACL_DIR: options.nbd.acl_dir,
        NBD_HOST: place.host,
        NBD_PORT: String(place.port),
        CLOUDSTACK_API_URL: "http://127.0.0.1:9/client/api",
        CLOUDSTACK_API_KEY: "key",
        CLOUDSTACK_SECRET_KEY: "secret",
        APPLIANCE_VM_ID: "8a4400e5-c92a-4bc4-8bff-4b6b0b6a018c"
      }
      const before = Appliance.configText(appliance)
      const { code, stdout } = yield* Effect.promise(() => Child.run(["doctor"], { env }))
      assert.strictEqual(code, 4)
      assert.include(stdout, `the server takes connections on 0.0.0.0:${place.port}`)
      assert.match(stdout, /^warn +NBD zeroes +/mu)
      assert.match(stdout, /^(?:ok|warn) +NBD reload +nbd-server 3\.\d+ /mu)
      assert.match(stdout, /^warn +NBD authfiles +open has none/mu)
      assert.include(stdout, `lost: ${missing} cannot be read (ENOENT): everybody is admitted`)
      assert.include(stdout, `loose: others may write ${writable}`)
      assert.match(stdout, /^warn +NBD options +loose: maxconnections counts every connection/mu)
      assert.match(stdout, /^warn +NBD options +loose: with copyonwrite /mu)
      assert.match(stdout, /^fail +NBD options +letter: filesize /mu)
      assert.match(stdout, /^warn +NBD paths +letter names \/dev\/vdq/mu)
      assert.match(stdout, /^ok +NBD clients +none of an earlier server/mu)
      assert.match(stdout, /^(?:ok|warn) +NBD keepalive +/mu)
      // Each finding says what to do.
      const lines = stdout.split("\n")
      const bare = lines.filter((line, at) => /^(?:warn|fail) /u.test(line) && !/^ +fix: \S/u.test(lines[at + 1] ?? ""))
      assert.deepStrictEqual(bare, [])
      assert.strictEqual(Appliance.configText(appliance), before)
      assert.deepStrictEqual(readdirSync(options.state_dir), [])
    })
  )

  it.scopedLive("advises by the places and ports of the engine that is set (N5, N15)", () =>
    Effect.gen(function* () {
      const appliance = yield* Engine.nbdkit.make
      const { options, place } = appliance
      const elsewhere = { ...options, state_dir: join(appliance.dir, "other"), stop_on_exit: true }
      yield* (yield* Engine.nbdkit.adapter(appliance, elsewhere)).load({ set: [], drop: [] })
      const rw = join(options.state_dir, "nbdkit/rw")
      mkdirSync(rw, { recursive: true })
      chmodSync(rw, 0o777)
      const env = {
        DATABASE_DSN: `sqlite:${join(appliance.dir, "volumed.db")}`,
        STATE_DIR: options.state_dir,
        BY_ID_DIR: options.by_id_dir,
        NBD_BACKEND: "nbdkit",
        NBD_CONFIG: place.config,
        NBD_HOST: place.host,
        NBD_PORT: String(place.port),
        CLOUDSTACK_API_URL: "http://127.0.0.1:9/client/api",
        CLOUDSTACK_API_KEY: "key",
        CLOUDSTACK_SECRET_KEY: "secret",
        APPLIANCE_VM_ID: "8a4400e5-c92a-4bc4-8bff-4b6b0b6a018c"
      }
      const { stdout } = yield* Effect.promise(() => Child.run(["doctor"], { env }))
      assert.match(stdout, /^fail +NBD config +.* can be written by its group or by others\n +fix: .*state\/nbdkit/mu)
      const advice = /^fail +NBD server +.*\n +fix: (.*)$/mu.exec(stdout)?.[1] ?? ""
      assert.notInclude(advice, "NBD_CONFIG")
      assert.include(advice, String(place.port + 1))
    })
  )

  it("knows which versions of nbd-server are damaged by a HUP signal (N7)", () => {
    const stateOf = (text: string) => NbdCheck.version(text).find(({ check }) => check === "NBD reload")?.state
    assert.deepStrictEqual(["3.19", "3.20", "3.24", "3.25", "3.26.1", "3.27.1"].map(stateOf), [
      "ok",
      "warn",
      "warn",
      "ok",
      "warn",
      "ok"
    ])
  })

  it("wants a client that is gone noticed soon", () => {
    const finding = NbdCheck.keepalive({ time: 7200, intvl: 10, probes: 9 })
    assert.strictEqual(finding.state, "warn")
    assert.match(finding.fix ?? "", /tcp_keepalive_time=60 net.ipv4.tcp_keepalive_probes=6,/)
    assert.strictEqual(NbdCheck.keepalive({ time: 60, intvl: 10, probes: 6 }).state, "ok")
  })

  it.scopedLive(
    "finds Debian's own nbd-server where it would be started at boot, unless that is the one to drive",
    () =>
      Effect.gen(function* () {
        const root = yield* Effect.acquireRelease(
          Effect.sync(() => mkdtempSync(join(tmpdir(), "volumed-doctor-"))),
          (made) => Effect.sync(() => rmSync(made, { recursive: true, force: true }))
        )
        const states = (start: string) =>
          Effect.map(NbdCheck.service({ port: 10_809, start }, root), (found) => found.map(({ state }) => state))
        assert.deepStrictEqual(yield* states("auto"), ["ok"])
        for (const [directory, name] of [
          ["etc/rc3.d", "S01nbd-server"],
          ["etc/systemd/system/multi-user.target.wants", "nbd-server.service"]
        ] as const) {
          mkdirSync(join(root, directory), { recursive: true })
          symlinkSync("/nonexistent", join(root, directory, name))
          assert.deepStrictEqual(yield* states("unit:volumed-nbd-server.service"), ["warn"])
          rmSync(join(root, directory, name))
        }
        assert.deepStrictEqual(yield* states("unit:nbd-server.service"), [])
      })
  )
})
