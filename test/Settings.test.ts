import { assert, describe, it } from "@effect/vitest"
import { Effect, Redacted } from "effect"
import * as Fs from "node:fs"
import * as Os from "node:os"
import * as Path from "node:path"
import { VmId } from "../schema/Ids.ts"
import { limits } from "../schema/Settings.ts"
import * as Settings from "../src/Settings.ts"
import { keys } from "../src/Settings/Keys.ts"

const appliance = VmId.make("8a4400e5-c92a-4bc4-8bff-4b6b0b6a018c")

const enough = {
  DATABASE_DSN: "sqlite:/tmp/x.db",
  CLOUDSTACK_API_URL: "https://cloud.example.com",
  CLOUDSTACK_API_KEY: "canary-api-key",
  CLOUDSTACK_SECRET_KEY: "canary-secret-key",
  APPLIANCE_VM_ID: appliance
}

const options: Settings.Options = { dry_run: false, sandbox: false, listen: null, terminal: false }

const read = (
  environment: Readonly<Record<string, string | undefined>>,
  over: Partial<Settings.Options> = {},
  file: string | null = null
) => Settings.fromEnvironment(environment, file, { ...options, ...over })

const secretOf = (secret: Redacted.Redacted<string> | null) => (secret === null ? null : Redacted.value(secret))

const temporary = Effect.acquireRelease(
  Effect.sync(() => Fs.mkdtempSync(Path.join(Os.tmpdir(), "volumed-settings-"))),
  (directory) => Effect.sync(() => Fs.rmSync(directory, { recursive: true, force: true }))
)

const put = (directory: string, name: string, text: string, mode = 0o600) => {
  const file = Path.join(directory, name)
  Fs.writeFileSync(file, text)
  Fs.chmodSync(file, mode)
  return file
}

describe("settings", () => {
  it.effect("have the contract's defaults where only the needed is set", () =>
    Effect.gen(function* () {
      const settings = yield* read(enough)
      assert.deepInclude(settings, {
        state_dir: "/var/lib/volumed",
        listen: [
          { host: "127.0.0.1", port: 8090 },
          { host: "::1", port: 8090 }
        ],
        token_file: null,
        tls: null,
        rate_limit: 200,
        declarations_max: 20_000,
        v1_attach_exports: true,
        appliance_vm_id: appliance,
        by_id_dir: "/dev/disk/by-id",
        sys_block_dir: "/sys/block",
        device_kind: "block",
        hold_file: "/run/volumed/hold",
        resync_idle_ms: 60_000,
        resync_busy_ms: 15_000,
        delete_grace_ms: 600_000,
        default_zone_id: null,
        log_level: "info",
        log_format: "json",
        sandbox: false,
        dry_run: false
      })
      assert.deepStrictEqual(settings.limits, limits)
      assert.deepStrictEqual(settings.nbd, {
        backend: "nbd-server",
        config: "/etc/nbd-server/config-base",
        acl_dir: "/etc/nbd-server/acl",
        host: "127.0.0.1",
        port: 10809,
        allow: ["127.0.0.1"],
        explicit: { host: false, port: false, allow: false },
        start: "auto",
        pin: false
      })
      assert.strictEqual(settings.cloudstack.api_url, "https://cloud.example.com/client/api")
      assert.strictEqual(secretOf(settings.cloudstack.secret_key), "canary-secret-key")
    })
  )

  it.effect("say everything that is missing at once, with an example of each", () =>
    Effect.gen(function* () {
      const wrong = yield* Effect.flip(read({ DMI_UUID_FILE: "/nonexistent/uuid" }))
      assert.deepStrictEqual(
        wrong.problems.map((problem) => problem.key),
        ["DATABASE_DSN", "CLOUDSTACK_API_URL", "CLOUDSTACK_API_KEY", "CLOUDSTACK_SECRET_KEY", "APPLIANCE_VM_ID"]
      )
      assert.include(wrong.message, "example: sqlite:/var/lib/volumed/volumed.db")
      assert.include(wrong.message, "example: https://cloudstack.example.com/client/api")
    })
  )

  const table: ReadonlyArray<readonly [key: keyof typeof keys | string, values: ReadonlyArray<string>]> = [
    [
      "DATABASE_DSN",
      ["sqlite:", "postgres://x/y", "/var/lib/x.db", "u:p@tcp(db:3306)", "mysql://u:p@db", "mysql://u:p@db:x/y"]
    ],
    ["DATABASE_CA_FILE", ["ca.pem"]],
    ["REQUIRE_DURABLE", ["perhaps"]],
    ["STATE_DIR", ["var/lib", "/a\nb"]],
    [
      "LISTEN",
      ["8090", "0.0.0.0:8090", "[::]:8090", "10.0.0.5:8090", "127.0.0.1:70000", "127.0.0.1:x", ",", "::1:8090"]
    ],
    ["VOLUMED_TOKEN_FILE", ["tokens", "/etc/a\nb"]],
    ["TLS_CERT_FILE", ["cert.pem"]],
    ["TLS_KEY_FILE", ["key.pem"]],
    ["RATE_LIMIT", ["-1", "fast", "0.5", "100001"]],
    ["DECLARATIONS_MAX", ["0", "many"]],
    ["V1_ATTACH_EXPORTS", ["perhaps"]],
    [
      "CLOUDSTACK_API_URL",
      [
        "cloud.example.com",
        "ftp://cloud.example.com",
        "file:///etc/passwd",
        "http://cloud.example.com/client/api",
        "https://user:pass@cloud.example.com",
        "https://cloud.example.com/client/api?x=1",
        "https://cloud.example.com/#x",
        "https://169.254.169.254/latest",
        "https://2852039166/",
        "https://0xa9fea9fe/",
        "https://0.0.0.0/",
        "https://[::]/",
        "https://[fe80::1]/",
        "https://[::ffff:169.254.169.254]/",
        "https://[fd00:ec2::254]/"
      ]
    ],
    ["CLOUDSTACK_API_KEY", ["a b", "a\nb", "kö"]],
    ["CLOUDSTACK_SECRET_KEY", ["a b"]],
    ["CLOUDSTACK_PROJECT_ID", ["default"]],
    ["CLOUDSTACK_CA_FILE", ["ca.pem"]],
    ["CLOUDSTACK_ALLOW_HTTP", ["maybe"]],
    ["CLOUDSTACK_READ_TIMEOUT", ["30", "0s", "1y", "-1s", "1h"]],
    ["CLOUDSTACK_CALL_TIMEOUT", ["soon"]],
    ["CLOUDSTACK_CONNECTIONS", ["0", "65", "1.5", "eight"]],
    ["APPLIANCE_VM_ID", ["oma", appliance.toUpperCase()]],
    ["DMI_UUID_FILE", ["product_uuid"]],
    ["BY_ID_DIR", ["by-id"]],
    ["SYS_BLOCK_DIR", ["sys/block"]],
    ["DEVICE_KIND", ["file", "disk"]],
    ["NBD_BACKEND", ["simulated", "qemu-nbd"]],
    ["NBD_CONFIG", ["config-base", "/etc/nbd/%s"]],
    ["NBD_ACL_DIR", ["acl", "/etc/../acl"]],
    ["NBD_HOST", ["0.0.0.0", "nbd.example.com", "::1"]],
    ["NBD_PORT", ["0", "65536", "nbd"]],
    ["NBD_ALLOW", ["127.0.0.1,everyone", "10.0.0.300"]],
    ["NBD_START", ["yes", "unit:", "unit:a b", "unit:-x"]],
    ["NBD_PIN", ["perhaps"]],
    ["NBD_DRAIN", ["2d", "60"]],
    ["NBD_CALL_DRAIN", ["51s", "-1s"]],
    ["HOLD_FILE", ["hold"]],
    ["RESYNC_INTERVAL", ["60", "10ms", "2h"]],
    ["RESYNC_BUSY_INTERVAL", ["x"]],
    ["POLL_INTERVAL", ["1ms"]],
    ["DEFAULT_DISK_OFFERING_ID", ["Custom OSSEA"]],
    ["DEFAULT_ZONE_ID", ["zone1"]],
    ["DELETE_GRACE", ["10 min", "31d"]],
    ["OPERATIONS_KEPT", ["90", "1h", "4000d"]],
    ["EVENTS_KEPT", ["0s", "for ever"]],
    ["DESTRUCTIVE_PER_PASS", ["-1", "101"]],
    ["DESTRUCTIVE_PER_HOUR", ["many"]],
    ["ACTIONS_PER_VM", ["0"]],
    ["ACTIONS_TOTAL", ["0"]],
    ["DISKS_PER_VM", ["0"]],
    ["SUSPICION_COUNT", ["0"]],
    ["SUSPICION_SHARE", ["120%", "2", "a fifth"]],
    ["LOSS_CONFIRMATION", ["29s"]],
    ["DEVICE_TIMEOUT", ["0s"]],
    ["CONTENTION_REPAIRS", ["-1"]],
    ["CONTENTION_WINDOW", ["1s"]],
    ["OPERATOR_TIMEOUT", ["1s"]],
    ["LOG_LEVEL", ["loud"]],
    ["LOG_FORMAT", ["xml"]],
    ["SANDBOX", ["perhaps"]]
  ]

  it.effect.each(table.flatMap(([key, values]) => values.map((value) => ({ key, value }))))(
    "refuse $key=$value with the key, the problem and an example",
    ({ key, value }) =>
      Effect.gen(function* () {
        const { APPLIANCE_VM_ID: _, ...rest } = enough
        const wrong = yield* Effect.flip(
          read(key === "DMI_UUID_FILE" ? { ...rest, [key]: value } : { ...enough, [key]: value })
        )
        const about = wrong.problems.filter((problem) => problem.key === key)
        assert.isAtLeast(about.length, 1, JSON.stringify(wrong.problems))
        for (const problem of wrong.problems) {
          assert.isNotEmpty(problem.problem)
          assert.isNotEmpty(problem.example)
        }
      })
  )

  it.effect("repeat nothing of a URL that may be a secret in the wrong place (S20)", () =>
    Effect.gen(function* () {
      for (const url of [
        "https://user:canary@cloud.example.com",
        "https://canary@cloud.example.com/client/api",
        "https://cloud.example.com/client/api?apiKey=canary&signature=x",
        "https://cloud.example.com/client/api#canary",
        "http://user:canary@cloud.example.com",
        "ftp://user:canary@cloud.example.com",
        "user:canary@cloud.example.com",
        "https://user:canary@cloud example.com"
      ]) {
        const wrong = yield* Effect.flip(read({ ...enough, CLOUDSTACK_API_URL: url }))
        assert.notInclude(wrong.message, "canary", url)
        assert.include(wrong.message, "CLOUDSTACK_API_URL", url)
      }
    })
  )

  it("have a wrong value of every key in the table above", () => {
    const tried = new Set(table.map(([key]) => key))
    assert.deepStrictEqual(
      Object.keys(keys).filter((key) => !tried.has(key)),
      []
    )
  })

  it.effect("give examples that are themselves right", () =>
    Effect.gen(function* () {
      for (const [key, { example }] of Object.entries(keys)) {
        if (key.endsWith("_KEY") || key === "CLOUDSTACK_CA_FILE") continue
        const both = { TLS_CERT_FILE: keys.TLS_CERT_FILE.example, TLS_KEY_FILE: keys.TLS_KEY_FILE.example }
        yield* read({ ...enough, ...(key.startsWith("TLS_") ? both : {}), [key]: example })
      }
    })
  )

  it.effect("let others reach us only with tokens and TLS, and TLS only with both of its files (e1)", () =>
    Effect.gen(function* () {
      const VOLUMED_TOKEN_FILE = "/etc/volumed/tokens"
      const tls = { TLS_CERT_FILE: "/etc/volumed/cert.pem", TLS_KEY_FILE: "/etc/volumed/key.pem" }
      const LISTEN = "127.0.0.1:8090,10.0.0.5:8090"
      for (const environment of [{ LISTEN }, { LISTEN, VOLUMED_TOKEN_FILE }, { LISTEN, ...tls }]) {
        const wrong = yield* Effect.flip(read({ ...enough, ...environment }))
        assert.deepStrictEqual(
          wrong.problems.map(({ key }) => key),
          ["LISTEN"]
        )
        assert.match(wrong.message, /10\.0\.0\.5, which other machines can reach/)
        assert.notMatch(wrong.message, /127\.0\.0\.1, which/)
      }
      const settings = yield* read({ ...enough, LISTEN, VOLUMED_TOKEN_FILE, ...tls, RATE_LIMIT: "0" })
      assert.deepInclude(settings, {
        token_file: VOLUMED_TOKEN_FILE,
        tls: { cert_file: tls.TLS_CERT_FILE, key_file: tls.TLS_KEY_FILE },
        rate_limit: 0
      })
      assert.include(Settings.render(settings), `VOLUMED_TOKEN_FILE=${VOLUMED_TOKEN_FILE}\n`)
      const local = yield* read({ ...enough, ...tls, V1_ATTACH_EXPORTS: "false" })
      assert.strictEqual(local.v1_attach_exports, false)
      for (const key of ["TLS_CERT_FILE", "TLS_KEY_FILE"] as const) {
        const wrong = yield* Effect.flip(read({ ...enough, ...tls, [key]: "" }))
        assert.deepStrictEqual(
          wrong.problems.map((problem) => problem.key),
          [key]
        )
      }
      const byFlag = yield* Effect.flip(read(enough, { listen: "0.0.0.0:8090" }))
      assert.match(byFlag.message, /0\.0\.0\.0, which other machines can reach/)
    })
  )

  it.effect("understand the words that operators write", () =>
    Effect.gen(function* () {
      const settings = yield* read(
        {
          ...enough,
          LISTEN: " 127.0.0.1:0 , [::1]:9 ",
          LOG_LEVEL: "WARN",
          DELETE_GRACE: "1h30m",
          RESYNC_INTERVAL: "10s",
          SUSPICION_SHARE: "25%",
          CLOUDSTACK_API_URL: "http://cloud:8080",
          CLOUDSTACK_ALLOW_HTTP: "yes",
          NBD_HOST: "10.0.0.2",
          GIN_MODE: "release",
          SANDBOX: "1",
          DEVICE_KIND: "file",
          NBD_BACKEND: "simulated"
        },
        { terminal: true, dry_run: true }
      )
      assert.deepInclude(settings, {
        listen: [
          { host: "127.0.0.1", port: 0 },
          { host: "::1", port: 9 }
        ],
        log_level: "warning",
        delete_grace_ms: 5_400_000,
        resync_idle_ms: 10_000,
        resync_busy_ms: 10_000,
        log_format: "pretty",
        sandbox: true,
        dry_run: true
      })
      assert.strictEqual(settings.limits.suspicion_share, 0.25)
      assert.strictEqual(settings.cloudstack.api_url, "http://cloud:8080/client/api")
      assert.deepStrictEqual(settings.nbd.allow, ["127.0.0.1", "10.0.0.2"])
      const loopback = yield* read({ ...enough, CLOUDSTACK_API_URL: "http://127.0.0.1:8080/client/api" })
      assert.strictEqual(loopback.cloudstack.api_url, "http://127.0.0.1:8080/client/api")
      const other = yield* read({ ...enough, LISTEN: "0.0.0.0:1" }, { listen: "127.0.0.1:7" })
      assert.deepStrictEqual(other.listen, [{ host: "127.0.0.1", port: 7 }])
    })
  )

  it.scoped("come from a file with the same keys; the environment wins", () =>
    Effect.gen(function* () {
      const directory = yield* temporary
      const file = put(
        directory,
        "volumed.conf",
        [
          "# volumed",
          "",
          "DATABASE_DSN='sqlite:/var/lib/it'\\''s here.db'",
          'CLOUDSTACK_API_URL="https://cloud.example.com/x"',
          "export CLOUDSTACK_API_KEY=from-file",
          "CLOUDSTACK_SECRET_KEY=from-file",
          "  LOG_LEVEL=debug  ",
          "GIN_MODE=release",
          "DEFAULT_ZONE_ID=",
          `APPLIANCE_VM_ID=${appliance}\r`
        ].join("\n")
      )
      const settings = yield* read({ LOG_LEVEL: "error", CLOUDSTACK_API_KEY: "", HOME: "/root" }, {}, file)
      assert.strictEqual(Redacted.value(settings.database_dsn), "sqlite:/var/lib/it's here.db")
      assert.strictEqual(settings.cloudstack.api_url, "https://cloud.example.com/x")
      assert.strictEqual(secretOf(settings.cloudstack.api_key), "from-file")
      assert.strictEqual(settings.log_level, "error")
      const key = put(directory, "key", "from-key-file\n")
      const mixed = yield* read({ CLOUDSTACK_API_KEY_FILE: key }, {}, file)
      assert.strictEqual(secretOf(mixed.cloudstack.api_key), "from-key-file")
    })
  )

  it.scoped("refuse a file's unknown keys, repeats and lines that are none, each with its place", () =>
    Effect.gen(function* () {
      const file = put(
        yield* temporary,
        "volumed.conf",
        "RESYNC_INTERVALL=5s\nwhat is this\nLOG_LEVEL=info\nLOG_LEVEL=info\nNBD_PORT='5\n"
      )
      const wrong = yield* Effect.flip(read(enough, {}, file))
      assert.deepStrictEqual(
        wrong.problems.map((problem) => problem.key),
        [`${file}:2`, `${file}:4`, `${file}:5`, `${file}:1`]
      )
      assert.include(wrong.message, "RESYNC_INTERVALL is not a setting; is RESYNC_INTERVAL meant?")
      for (const absent of ["/nonexistent/volumed.conf", "/"]) {
        const gone = yield* Effect.flip(read(enough, {}, absent))
        assert.deepStrictEqual(
          gone.problems.map((problem) => problem.key),
          ["--config"]
        )
      }
    })
  )

  it.scoped("take secrets from private files only", () =>
    Effect.gen(function* () {
      const directory = yield* temporary
      const { CLOUDSTACK_SECRET_KEY: _, ...rest } = enough
      const good = put(directory, "good", "canary-file-key\n")
      const settings = yield* read({ ...rest, CLOUDSTACK_SECRET_KEY_FILE: good })
      assert.strictEqual(secretOf(settings.cloudstack.secret_key), "canary-file-key")
      const shared = put(directory, "shared", "canary-file-key\n", 0o640)
      const refused = [
        [{ ...rest, CLOUDSTACK_SECRET_KEY_FILE: shared }, `chmod 600 ${shared}`],
        [{ ...rest, CLOUDSTACK_SECRET_KEY_FILE: Path.join(directory, "none") }, "cannot be read"],
        [{ ...rest, CLOUDSTACK_SECRET_KEY_FILE: directory }, "cannot be read"],
        [{ ...rest, CLOUDSTACK_SECRET_KEY_FILE: put(directory, "empty", "\n") }, "is empty"],
        [{ ...enough, CLOUDSTACK_SECRET_KEY_FILE: good }, "are both set"]
      ] as const
      for (const [environment, words] of refused) {
        const wrong = yield* Effect.flip(read(environment))
        assert.include(wrong.message, words)
        assert.notInclude(wrong.message, "canary")
      }
      const config = put(directory, "config", "CLOUDSTACK_API_KEY=canary\n", 0o644)
      const exposed = yield* Effect.flip(read(enough, {}, config))
      assert.include(exposed.message, `chmod 600 ${config}`)
      yield* read(enough, {}, put(directory, "open", "LOG_LEVEL=info\n", 0o644))
    })
  )

  it.scoped("know the appliance by its DMI product UUID, whatever its case", () =>
    Effect.gen(function* () {
      const { APPLIANCE_VM_ID: _, ...rest } = enough
      const file = put(yield* temporary, "product_uuid", `${appliance.toUpperCase()}\n`, 0o400)
      assert.strictEqual((yield* read({ ...rest, DMI_UUID_FILE: file })).appliance_vm_id, appliance)
      const other = put(yield* temporary, "product_uuid", "Not Settable\n")
      const wrong = yield* Effect.flip(read({ ...rest, DMI_UUID_FILE: other }))
      assert.deepStrictEqual(
        wrong.problems.map((problem) => problem.key),
        ["APPLIANCE_VM_ID"]
      )
      assert.include(wrong.message, other)
    })
  )

  it.effect("are printed without secrets, and read back as they were (S20)", () =>
    Effect.gen(function* () {
      const settings = yield* read({
        ...enough,
        STATE_DIR: "/var/lib/it's ours",
        DELETE_GRACE: "90s",
        SUSPICION_SHARE: "12.5%",
        NBD_PIN: "on",
        NBD_DRAIN: "45s",
        NBD_CALL_DRAIN: "5s",
        LISTEN: "[::1]:1,127.0.0.1:2"
      })
      const printed = Settings.render(settings)
      for (const text of [printed, String(settings), JSON.stringify(settings)]) assert.notInclude(text, "canary")
      assert.include(printed, "CLOUDSTACK_SECRET_KEY=<redacted>\n")
      assert.include(printed, "DATABASE_DSN=sqlite:/tmp/x.db\n")
      const directory = Fs.mkdtempSync(Path.join(Os.tmpdir(), "volumed-settings-"))
      const file = put(directory, "printed", printed)
      const again = yield* read(
        { CLOUDSTACK_API_KEY: "canary-api-key", CLOUDSTACK_SECRET_KEY: "canary-secret-key" },
        {},
        file
      ).pipe(Effect.ensuring(Effect.sync(() => Fs.rmSync(directory, { recursive: true }))))
      assert.strictEqual(Settings.render(again), printed)
      assert.deepStrictEqual([again.nbd, again.limits], [settings.nbd, settings.limits])
      assert.strictEqual(secretOf(again.cloudstack.secret_key), "canary-secret-key")
    })
  )
})
