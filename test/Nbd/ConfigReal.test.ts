import { assert, describe, it } from "@effect/vitest"
import { Effect, type Scope } from "effect"
import {
  chmodSync,
  chownSync,
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync
} from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as NbdConfig from "../../schema/NbdConfig.ts"
import * as ConfigFile from "../../src/Nbd/ConfigFile.ts"
import * as Includes from "../../src/Nbd/Includes.ts"
import * as Processes from "../../src/Nbd/Processes.ts"
import * as Appliance from "./Appliance.ts"

const OLD = "[generic]\n# old\n"
const NEXT = `[generic]\n# new\n${"# filled up\n".repeat(400)}`

const isRoot = process.geteuid?.() === 0
/** Any user that is neither root nor the one who runs the tests; Debian's nobody. */
const NOBODY = 65_534

/** What this machine lets nobody try is said, and the rest of the test goes on. */
const cannot = (what: string, why: string) =>
  Effect.sync(() => void process.stdout.write(`Not tried on this machine: ${what} (${why}).\n`))

const directory: Effect.Effect<string, never, Scope.Scope> = Effect.acquireRelease(
  Effect.sync(() => {
    const path = mkdtempSync(join(tmpdir(), "vn-"))
    chmodSync(path, 0o755)
    return path
  }),
  (path) => Effect.sync(() => rmSync(path, { recursive: true, force: true }))
)

const write = (path: string) =>
  ConfigFile.write(ConfigFile.disk, { path, text: NEXT, mode: 0o640, expected: OLD, permit: Effect.void })

/** Refused with the kernel's word and what to do; the old file is whole, alone, and written once the hindrance is gone. */
const refused = (path: string, errno: RegExp) =>
  Effect.gen(function* () {
    const error = yield* Effect.flip(write(path))
    assert.strictEqual(error._tag, "NbdUnavailable")
    assert.match(error.message, errno)
    assert.strictEqual(readFileSync(path, "latin1"), OLD)
    assert.isEmpty(readdirSync(join(path, "..")).filter((name) => name.endsWith(".tmp")))
  })

const works = (path: string) =>
  Effect.gen(function* () {
    yield* write(path)
    assert.strictEqual(readFileSync(path, "latin1"), NEXT)
  })

/** Runs something and undoes it with the scope; false where it cannot be done here, which is said. */
const done = (what: string, [program, ...args]: ReadonlyArray<string>, undo: ReadonlyArray<string>) =>
  Effect.acquireRelease(
    Effect.gen(function* () {
      const { code, said } = yield* Appliance.run(program ?? "", ...args)
      if (code !== 0) yield* cannot(what, said === "" ? `${program} cannot be run` : said.slice(0, 200))
      return code === 0
    }),
    (is) => (is ? Effect.asVoid(Appliance.run(undo[0] ?? "", ...undo.slice(1))) : Effect.void)
  )

describe("a disk that refuses, for real (N4)", () => {
  it.scopedLive("because it is full: the old file is whole, and the new one is written once there is room", () =>
    Effect.gen(function* () {
      const dir = yield* directory
      if (
        !(yield* done("a full disk", ["mount", "-t", "tmpfs", "-o", "size=64k,mode=755", "vn", dir], ["umount", dir]))
      )
        return
      const path = join(dir, "config")
      writeFileSync(path, OLD)
      const fill = join(dir, "fill")
      assert.throws(() => writeFileSync(fill, Buffer.alloc(128 * 1024)), /ENOSPC/)
      yield* refused(path, /ENOSPC.*free some space/)
      rmSync(fill)
      yield* works(path)
    })
  )

  it.scopedLive("because it has become read-only", () =>
    Effect.gen(function* () {
      const dir = yield* directory
      const path = join(dir, "config")
      writeFileSync(path, OLD)
      if (!(yield* done("a read-only mount", ["mount", "--bind", dir, dir], ["umount", dir]))) return
      assert.strictEqual((yield* Appliance.run("mount", "-o", "remount,ro,bind", dir)).code, 0)
      yield* refused(path, /EROFS.*mount it writable/)
      assert.strictEqual((yield* Appliance.run("mount", "-o", "remount,rw,bind", dir)).code, 0)
      yield* works(path)
    })
  )

  it.scopedLive("because the file, or its directory, is immutable", () =>
    Effect.gen(function* () {
      const dir = yield* directory
      const path = join(dir, "config")
      writeFileSync(path, OLD)
      for (const one of [path, dir]) {
        const tried = Effect.gen(function* () {
          if (yield* done("an immutable file", ["chattr", "+i", one], ["chattr", "-i", one]))
            yield* refused(path, /EPERM.*lsattr/)
        })
        yield* Effect.scoped(tried)
      }
      yield* works(path)
    })
  )

  it.scopedLive("because volumed may not write into the directory", () =>
    Effect.gen(function* () {
      const dir = yield* directory
      const path = join(dir, "config")
      writeFileSync(path, OLD)
      // Root may write everywhere, so that it becomes somebody else; anybody else closes the directory.
      const become = Effect.sync(() => (isRoot ? process.seteuid?.(NOBODY) : chmodSync(dir, 0o555)))
      const back = Effect.sync(() => (isRoot ? process.seteuid?.(0) : chmodSync(dir, 0o755)))
      yield* Effect.acquireUseRelease(
        become,
        () => refused(path, /EACCES.*must own the directory or be root/),
        () => back
      )
      yield* works(path)
    })
  )
})

describe("a file or directory of somebody else's (N15)", () => {
  it.scopedLive("is told, neither extended nor kept aside, and nothing is written beside it", () =>
    Effect.gen(function* () {
      const dir = yield* directory
      const path = join(dir, "config")
      writeFileSync(path, "")
      chmodSync(path, 0o646)
      const open = yield* ConfigFile.read(ConfigFile.disk, path)
      assert.match(open._tag === "Unusable" ? open.problem : "", /everybody can write it/)
      chmodSync(path, 0o644)
      if (!isRoot) return yield* cannot("a file of another user", "only root can give one away")
      chownSync(path, NOBODY, NOBODY)
      const file = yield* ConfigFile.read(ConfigFile.disk, path)
      assert.match(file._tag === "Unusable" ? file.problem : "", /belongs to user 65534.*chown root/)
      chownSync(path, 0, 0)
      assert.strictEqual((yield* ConfigFile.read(ConfigFile.disk, path))._tag, "Broken")
      chownSync(dir, NOBODY, NOBODY)
      const there = yield* ConfigFile.read(ConfigFile.disk, path)
      assert.match(there._tag === "Unusable" ? there.problem : "", /directory belongs to user 65534/)
      assert.match((yield* Effect.flip(write(path))).message, /directory belongs to user 65534/)
      assert.deepStrictEqual(readdirSync(dir), ["config"])
    })
  )

  it.scopedLive("makes a load fail before anything of it is done", () =>
    Effect.gen(function* () {
      const appliance = yield* Appliance.make
      const { config, host, port } = appliance.place
      const text = `[generic]\nlistenaddr = ${host}\nport = ${port}\n`
      writeFileSync(config, text)
      chmodSync(config, 0o666)
      const nbd = yield* Appliance.adapter(appliance)
      assert.match((yield* nbd.observe([])).config_problem ?? "", /everybody can write it/)
      const error = yield* Effect.flip(nbd.load({ set: [appliance.disk("aaaa")], drop: [] }))
      assert.match(error.message, /everybody can write it/)
      assert.strictEqual(readFileSync(config, "latin1"), text)
      assert.isFalse(existsSync(join(appliance.dir, "acl")))
      assert.deepStrictEqual(readdirSync(join(appliance.dir, "etc")), ["config"])
      assert.isEmpty(Processes.servers(config))
    })
  )
})

/** The exit code with which nbd-server takes this file; whatever it started is ended. */
const starts = (appliance: Appliance.Appliance) =>
  Effect.gen(function* () {
    const { config } = appliance.place
    const { code } = yield* Appliance.run("nbd-server", "-C", config, "-p", join(appliance.dir, "pid"))
    for (const one of Processes.servers(config)) Processes.kill(one, config)
    yield* Appliance.eventually("the server is gone", () => Processes.servers(config).length === 0)
    return code === 0
  })

describe("what nbd-server itself thinks of a file", () => {
  const of = (lines: string) => `[generic]\nHERE[x]\nexportname = /nowhere\n${lines}`
  const structures: ReadonlyArray<string> = [
    "",
    "# nothing\n",
    "[generic]\nHERE",
    "HERE[x]\nexportname = /x\n",
    "[x]\nexportname = /x\n[generic]\nHERE",
    "\xef\xbb\xbf[generic]\nHERE[x]\nexportname = /x\n",
    "[generic]\r\nHERE[x]\r\nexportname = /x\r\n",
    "[generic]\nHERE[x]\nreadonly = true\n",
    "[generic]\nHERE[x]\nexportname\n",
    "[generic]\nHERE[x\nexportname = /x\n",
    "[generic]\nHERE[x] # note\nexportname = /x\n",
    "[generic]\nHERE\v[x]\nexportname = /x\n",
    "[generic]\nHERE[x]\x80 \x80\nexportname = /x\n",
    "[generic]\nHERE[caf\xe9]\nexportname = /x\n",
    "[generic]\nHEREEncoding = latin1\n[x]\nexportname = /x\n",
    "[generic]\nHERE[x]\nEncoding = latin1\nexportname = /x\n",
    "[generic]\nHERE[x]\nexportname = /x\n[generic]\noldstyle = true\n"
  ]
  const values: ReadonlyArray<string> = [
    "readonly = yes",
    "readonly = true # c",
    "readonly = 1 ",
    "fua =",
    "multifile = on",
    "sdp = true",
    "sdp = 0",
    "copyonwrite = true\nsplice = true",
    "copyonwrite = true\nwaitfile = 1",
    "datalog = 1\nsplice = 1",
    "copyonwrite = true\nsplice = false",
    "maxconnections = many",
    "maxconnections = 3 4",
    "filesize = 12 ",
    "filesize = 99999999999999999999",
    "maxconnections = 2147483648",
    "maxconnections = -2147483648",

    "prerun = a\\db",
    "prerun = a\\sb\\\\",
    "postrun = \xff",
    "authfile = /x\xe9",
    "authfile = /x\xc3\xa9",
    "cowdir = \\",

    "virtstyle = foo",
    "virtstyle = nonesuch",
    "virtstyle = cidrhash",
    "virtstyle = cidrhash 8",
    "listenaddr = \\d",
    "transactionlog = \xe9",
    "unknown = \xe9\\d",
    "exportname =",
    "treefiles = x",
    "temporary = x",
    "trim = maybe"
  ]
  const generics: ReadonlyArray<string> = [
    "oldstyle = true",
    "oldstyle = false",
    "allowlist = x",
    "duallisten = x",
    "max_threads = x",
    "tlsprio = \xe9",
    "unixsock = \\d",
    "certfile = \xe9",
    "cacertfile = \xe9",
    "force_tls = maybe",
    "user = \xe9",
    "virtstyle = foo"
  ]
  const files = [
    ...structures,
    ...values.map((one) => of(`${one}\n`)),
    ...generics.map((one) => of("").replace("HERE", `HERE${one}\n`))
  ]

  it.scopedLive(
    "is what volumed thinks of it: what no server would start with, and nothing else, is broken (N1, N2)",
    () =>
      Effect.gen(function* () {
        const appliance = yield* Appliance.make
        const { config, host, port } = appliance.place
        const seen = { sound: 0, broken: 0 }
        for (const file of files) {
          const text = file.replace("HERE", `listenaddr = ${host}\nport = ${port}\n`)
          writeFileSync(config, text, "latin1")
          const reading = yield* ConfigFile.read(ConfigFile.disk, config)
          const parsed = NbdConfig.parse(text)
          // A [generic] alone is as good as any to add exports to, though nothing starts with it; a mark is left out.
          const bare = parsed._tag === "Parsed" && parsed.document.sections.every(({ name }) => name === "generic")
          const expected =
            (bare && text !== "" && !text.startsWith("#")) || (yield* starts(appliance)) || text.startsWith("\xef")
          assert.strictEqual(reading._tag, expected ? "Sound" : "Broken", JSON.stringify(text))
          seen[expected ? "sound" : "broken"]++
        }
        assert.isAbove(Math.min(seen.sound, seen.broken), 12, JSON.stringify(seen))
      })
  )

  it.scopedLive("is what volumed thinks of it in an includedir too, wherever that leads from (N9)", () =>
    Effect.gen(function* () {
      const appliance = yield* Appliance.make
      const { config, host, port } = appliance.place
      const included = join(appliance.dir, "etc", "b\xfcro.d")
      mkdirSync(included)
      // As a server reads it: from /, and in UTF-8.
      const relative = Buffer.from(included.slice(1), "utf8").toString("latin1")
      const text = `[generic]\nlistenaddr = ${host}\nport = ${port}\nincludedir = ${relative}\n[x]\nexportname = /nowhere\n`
      writeFileSync(config, text, "latin1")
      const cases = [
        "",
        "# nothing\n",
        "[y]\nexportname = /y\n",
        "[generic]\nexportname = /y\n",
        "[generic]\nport = 1\n",

        "[y]\nreadonly = true\n",
        "[y]\nexportname = /y\nprerun = \\d\n",
        "junk\n",
        "[y]\nexportname = /y\nfua = t\n",
        "\xef\xbb\xbf[y]\nexportname = /y\n",
        "[y]\r\nexportname = /y\r\n",
        "[y]\nexportname = /y\nuser = \xe9\n"
      ]
      const seen = { fine: 0, broken: 0 }
      for (const one of cases) {
        writeFileSync(join(included, "one.conf"), one, "latin1")
        const parsed = NbdConfig.parse(text)
        const document = parsed._tag === "Parsed" ? parsed.document : null
        const { problem } = yield* Includes.read(ConfigFile.disk, document)
        const { code } = yield* Appliance.run(
          "env",
          "-C",
          "/",
          "nbd-server",
          "-C",
          config,
          "-p",
          join(appliance.dir, "pid")
        )
        for (const server of Processes.servers(config)) Processes.kill(server, config)
        yield* Appliance.eventually("the server is gone", () => Processes.servers(config).length === 0)
        assert.strictEqual(problem === null, code === 0, `${JSON.stringify(one)}: ${problem}`)
        if (problem !== null) assert.include(problem, "one.conf")
        seen[code === 0 ? "fine" : "broken"]++
      }
      assert.isAbove(Math.min(seen.fine, seen.broken), 3, JSON.stringify(seen))
      const odd = Buffer.concat([Buffer.from(`${included}/`), Buffer.from([0xff]), Buffer.from(".conf")])
      writeFileSync(odd, "junk\n")
      const parsed = NbdConfig.parse(text)
      const last = yield* Includes.read(ConfigFile.disk, parsed._tag === "Parsed" ? parsed.document : null)
      assert.include(last.problem ?? "", "not UTF-8")
      assert.isTrue(lstatSync(odd).isFile())
    })
  )
})
