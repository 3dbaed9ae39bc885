import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import { type ChildProcess, spawn } from "node:child_process"
import { once } from "node:events"
import { cpSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { dirname, join } from "node:path"
import { fileURLToPath } from "node:url"
import * as Instance from "../src/Nbdkit/Instance.ts"
import * as Links from "../src/Nbdkit/Links.ts"
import * as SettingsFrom from "../src/Settings.ts"
import { run, stop } from "./Cli/Child.ts"
import * as Appliance from "./Nbd/Appliance.ts"
import { program } from "./support/Build.ts"

/**
 * No systemd runs here as the first process, so that nothing is started by these units. What can be known without one is:
 * what systemd itself says of the files, that they say what they must, that they agree with the settings' defaults and with
 * what the adapters know their servers by, and that the daemon can do all its work with the rights that its unit leaves it.
 */

const room = fileURLToPath(new URL("../systemd", import.meta.url))
const units = readdirSync(room).filter((name) => name.endsWith(".service"))

/** The values of a key, in the order of the file; an empty one takes back those before it. */
type Unit = ReadonlyMap<string, ReadonlyArray<string>>

const unit = (name: string): Unit => {
  const values = new Map<string, ReadonlyArray<string>>()
  for (const line of readFileSync(join(room, name), "utf8").split("\n")) {
    const [, key, value = ""] = /^([A-Za-z]+)=(.*)$/.exec(line) ?? []
    if (key !== undefined) values.set(key, value === "" ? [""] : [...(values.get(key) ?? []), value])
  }
  return values
}

/** Null where it is not there, or more than once. */
const only = (from: Unit, key: string): string | null => {
  const values = from.get(key) ?? []
  return values.length === 1 ? (values[0] ?? null) : null
}

const words = (from: Unit, key: string): ReadonlyArray<string> => (from.get(key) ?? []).join(" ").split(" ").toSorted()

const environment = (from: Unit): Readonly<Record<string, string>> =>
  Object.fromEntries(
    words(from, "Environment").flatMap((assignment) => {
      const [, key, value] = /^([A-Z_]+)=(.*)$/.exec(assignment) ?? []
      return key === undefined || value === undefined ? [] : [[key, value]]
    })
  )

const temporary = Effect.acquireRelease(
  Effect.sync(() => mkdtempSync(join(tmpdir(), "volumed-systemd-"))),
  (dir) => Effect.sync(() => rmSync(dir, { recursive: true, force: true }))
)

/** What a user has who sets nothing. */
const defaults = SettingsFrom.fromEnvironment(
  {
    DATABASE_DSN: "sqlite:/var/lib/volumed/volumed.db",
    CLOUDSTACK_API_URL: "https://cloudstack.example.com",
    CLOUDSTACK_API_KEY: "key",
    CLOUDSTACK_SECRET_KEY: "secret",
    APPLIANCE_VM_ID: "8a4400e5-c92a-4bc4-8bff-4b6b0b6a018c"
  },
  null,
  { dry_run: false, sandbox: false, listen: null, terminal: false }
)

describe("the units", () => {
  it.scopedLive("are understood by systemd, every line, with all their drop-ins (e5)", () =>
    Effect.gen(function* () {
      const dir = yield* temporary
      cpSync(room, dir, { recursive: true })
      const text = readFileSync(join(dir, "volumed.service"), "utf8")
      writeFileSync(join(dir, "volumed.service"), text.replace("/usr/local/bin/volumed", process.execPath))
      const named = ["volumed-nbdkit@rw.service", "volumed-nbdkit@ro.service"]
      const files = [...units.filter((name) => !name.includes("@")), ...named].map((name) => join(dir, name))
      // Unknown keys and bad values are only said, and do not fail it.
      assert.deepStrictEqual(yield* Appliance.run("systemd-analyze", "verify", ...files), { code: 0, said: "" })
    })
  )

  it.scopedLive("leave little to whoever takes one of their processes over, as systemd counts (e5)", () =>
    Effect.gen(function* () {
      const files = units.map((name) => join(room, name))
      const { code, said } = yield* Appliance.run(
        "systemd-analyze",
        "security",
        "--offline=true",
        "--no-pager",
        "--threshold=40",
        ...files
      )
      assert.strictEqual(code, 0, said)
    })
  )

  it("keep the rights of root's that the daemon needs, and no others (e5, e3)", () => {
    const volumed = unit("volumed.service")
    assert.deepStrictEqual(words(volumed, "CapabilityBoundingSet"), [
      "CAP_DAC_OVERRIDE",
      "CAP_DAC_READ_SEARCH",
      "CAP_KILL",
      "CAP_SYS_PTRACE"
    ])
    const expected = {
      NoNewPrivileges: "yes",
      ProtectSystem: "strict",
      PrivateTmp: "yes",
      SystemCallFilter: "@system-service",
      LimitCORE: "0",
      Type: "notify",
      NotifyAccess: "all",
      KillMode: "process",
      Restart: "on-failure",
      Alias: "volume-daemon.service"
    }
    for (const [key, value] of Object.entries(expected)) assert.strictEqual(only(volumed, key), value, key)
    assert.include(words(volumed, "RestrictAddressFamilies"), "AF_UNIX")
    assert.notInclude(words(volumed, "RestrictAddressFamilies"), "AF_PACKET")
    // V8 could not run with it.
    assert.isFalse(volumed.has("MemoryDenyWriteExecute"))
    assert.include(environment(volumed)["NODE_OPTIONS"], "--disallow-code-generation-from-strings")
  })

  it.effect("let the daemon write where its settings say by default, and nowhere else (e5)", () =>
    Effect.gen(function* () {
      const { hold_file, nbd, state_dir } = yield* defaults
      const volumed = unit("volumed.service")
      assert.deepStrictEqual(words(volumed, "ReadWritePaths"), [`-${dirname(nbd.config)}`])
      assert.strictEqual(dirname(nbd.acl_dir), dirname(nbd.config))
      assert.strictEqual(join("/var/lib", only(volumed, "StateDirectory") ?? ""), state_dir)
      assert.strictEqual(join("/run", only(volumed, "RuntimeDirectory") ?? ""), dirname(hold_file))
      // A hold file that went with the daemon would hold nothing.
      assert.strictEqual(only(volumed, "RuntimeDirectoryPreserve"), "yes")
      // Whatever user a server becomes, it must be able to read whom its authfiles admit.
      assert.strictEqual(Number.parseInt(only(volumed, "UMask") ?? "", 8) & 0o005, 0)
    })
  )

  it("start NBD servers only where volumed does, and never send them a signal that ends a transfer (e5, N6, N11)", () => {
    for (const name of units.filter((one) => one !== "volumed.service")) {
      const server = unit(name)
      assert.isFalse(server.has("WantedBy"), name)
      assert.isFalse(server.has("ExecReload"), name)
      assert.isFalse(server.has("Conflicts"), name)
      assert.strictEqual(only(server, "Restart"), "no", name)
      assert.strictEqual(only(server, "NoNewPrivileges"), "yes", name)
      assert.strictEqual(only(server, "SystemCallFilter"), "@system-service", name)
      assert.strictEqual(only(server, "LimitCORE"), "0", name)
    }
    const nbd = unit("volumed-nbd-server.service")
    assert.strictEqual(only(nbd, "Type"), "forking")
    assert.strictEqual(only(nbd, "KillMode"), "process")
    assert.strictEqual(only(nbd, "KillSignal"), "SIGKILL")
    assert.strictEqual(environment(unit("volumed.service"))["NBD_START"], "unit:volumed-nbd-server.service")
  })

  it.effect("start the very servers that volumed takes for its own", () =>
    Effect.gen(function* () {
      const { nbd, state_dir } = yield* defaults
      const server = unit("volumed-nbd-server.service")
      const pid = only(server, "PIDFile") ?? ""
      assert.strictEqual(only(server, "ExecStart"), `/bin/nbd-server -C ${nbd.config} -p ${pid}`)
      assert.strictEqual(dirname(pid), join("/run", only(server, "RuntimeDirectory") ?? ""))

      const template = unit("volumed-nbdkit@.service")
      // In the foreground it would be another command line than volumed's own.
      assert.strictEqual(only(template, "Type"), "forking")
      for (const instance of Instance.pair(nbd, Links.places(state_dir), [])) {
        const added = instance.role === "ro" ? environment(unit("volumed-nbdkit@ro.service.d/instance.conf")) : {}
        const values: Readonly<Record<string, string>> = { ...environment(template), ...added, i: instance.role }
        // As systemd does: a variable that is a word of its own and empty or unset is no word at all.
        const line = (only(template, "ExecStart") ?? "")
          .replaceAll(
            /\$\{?([A-Z_]+)\}?|%(i)/g,
            (_, name: string, specifier: string) => values[name ?? specifier] ?? ""
          )
          .split(/ +/)
        assert.deepStrictEqual(line, ["/usr/bin/nbdkit", ...Instance.argumentsOf(instance)])
      }
    })
  )
})

describe("the daemon under its unit", () => {
  /** Each line what one datagram held, its lines joined by a blank; perl is of every Debian, and has such sockets. */
  const listener =
    'use Socket; $|=1; socket(S,AF_UNIX,SOCK_DGRAM,0) && bind(S,pack_sockaddr_un($ARGV[0])) or die; print "bound\\n";' +
    ' while (defined recv(S,$m,4096,0)) { $m =~ tr/\\n/ /; print "$m\\n" }'

  const collected = (child: ChildProcess, stream: "stdout" | "stderr") => {
    const lines: Array<string> = []
    let rest = ""
    child[stream]?.setEncoding("utf8").on("data", (text: string) => {
      const parts = `${rest}${text}`.split("\n")
      rest = parts.pop() ?? ""
      lines.push(...parts)
    })
    return lines
  }

  const spawned = (command: ReadonlyArray<string>, env: Readonly<Record<string, string>>) =>
    Effect.acquireRelease(
      Effect.sync(() => {
        const [file = "", ...args] = command
        return spawn(file, args, {
          env: { PATH: process.env["PATH"] ?? "", ...env },
          stdio: ["ignore", "pipe", "pipe"]
        })
      }),
      (child) => Effect.promise(() => stop(child))
    )

  /** util-linux' setpriv takes away what the unit takes away. Who is not root has none of it in the first place. */
  const confined = (volumed: Unit): ReadonlyArray<string> => {
    const kept = words(volumed, "CapabilityBoundingSet").map((name) => `+${name.slice("CAP_".length).toLowerCase()}`)
    const bounds = process.geteuid?.() === 0 ? [`--bounding-set=${["-all", ...kept].join(",")}`] : []
    return ["setpriv", ...bounds, "--no-new-privs", "--"]
  }

  it.scopedLive(
    "creates, attaches and exports with its unit's rights, and tells systemd of its beginning, work and end (e5, e9, L5)",
    () =>
      Effect.gen(function* () {
        const volumed = unit("volumed.service")
        const dir = yield* temporary
        const socket = join(dir, "notify")
        const told = collected(yield* spawned(["perl", "-e", listener, socket], {}), "stdout")
        yield* Appliance.eventually("the socket is there", () => told.includes("bound"))
        const daemon = yield* spawned(
          [...confined(volumed), process.execPath, program, "serve", "--sandbox", "--listen", "127.0.0.1:0"],
          { ...environment(volumed), NOTIFY_SOCKET: socket, WATCHDOG_USEC: "1000000", HOME: "/nonexistent" }
        )
        const said = collected(daemon, "stderr")
        const has = (pattern: RegExp) => told.some((line) => pattern.test(line))
        yield* Appliance.eventually("it is ready", () => has(/^READY=1 STATUS=\S/))
        const address = () => / ready on (http:\S+);/.exec(said.join("\n"))?.[1] ?? ""
        yield* Appliance.eventually("it says where", () => address() !== "")
        const url = address()
        const file = join(dir, "volumes.yaml")
        writeFileSync(
          file,
          "volumes:\n  - name: one\n    size: 1GiB\n    attached_to: appliance\n    export_wanted: true\n"
        )
        const apply = ["apply", "-f", file, "--yes", "--wait", "--timeout", "100s", "--server", url]
        const applied = yield* Effect.promise(() => run(apply))
        assert.strictEqual(applied.code, 0, `${applied.stdout}${applied.stderr}\n${said.join("\n")}`)
        const exports = yield* Effect.promise(() => run(["exports", "-o", "json", "--server", url]))
        assert.match(exports.stdout, /"engine": "nbd-server"/)
        assert.match(exports.stdout, /"served": true/)
        yield* Appliance.eventually("the watchdog was answered", () => has(/^WATCHDOG=1/))
        yield* Appliance.eventually("it said what it is at", () => has(/STATUS=acting; 1 of 1 volumes/))
        const closed = once(daemon, "close")
        daemon.kill("SIGTERM")
        assert.deepStrictEqual(yield* Effect.promise(() => closed), [0, null], said.join("\n"))
        yield* Appliance.eventually("it said that it stops", () => has(/^STOPPING=1/))
      }),
    // A machine under load needs longer than the usual minute.
    150_000
  )

  it.scopedLive("does not start with a debugger that could read its keys (e3)", () =>
    Effect.gen(function* () {
      const dir = yield* temporary
      const daemon = yield* spawned([process.execPath, "--inspect=127.0.0.1:0", program, "serve"], {
        DATABASE_DSN: `sqlite:${join(dir, "volumed.db")}`,
        STATE_DIR: dir,
        LISTEN: "127.0.0.1:0",
        CLOUDSTACK_API_URL: "http://127.0.0.1:9/client/api",
        CLOUDSTACK_API_KEY: "key",
        CLOUDSTACK_SECRET_KEY: "secret",
        APPLIANCE_VM_ID: "8a4400e5-c92a-4bc4-8bff-4b6b0b6a018c"
      })
      const said = collected(daemon, "stderr")
      const [code] = yield* Effect.promise(() => once(daemon, "close"))
      assert.strictEqual(code, 1)
      assert.include(said.join("\n"), "--inspect: opens a debugger")
      assert.deepStrictEqual(readdirSync(dir), [])
    })
  )
})
