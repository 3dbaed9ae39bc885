import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import { createHash } from "node:crypto"
import { chmodSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync, symlinkSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import type { LoadRequest, Nbd, WantedExport } from "../../reconciler/Nbd.ts"
import type { NbdSection } from "../../schema/Inventory.ts"
import * as NbdName from "../../schema/NbdName.ts"
import * as ConfigFile from "../../src/Nbd/ConfigFile.ts"
import * as Handshake from "../../src/Nbd/Handshake.ts"
import * as Processes from "../../src/Nbd/Processes.ts"
import type * as World from "../../src/Nbd/World.ts"
import * as Appliance from "./Appliance.ts"

const MiB = 1024 * 1024
const volumeName = "migration-vol-ade7d516-8d18-4590-841e-0b6f0b1f7a01"
const cafe = NbdName.textOf("caf\xe9 1")

const request = (set: ReadonlyArray<WantedExport>, ...drop: ReadonlyArray<string>): LoadRequest => ({ set, drop })

/** An appliance as an older daemon left it: sections that name letters, in the file and in its includedir. */
const legacy = (write: (letter: (letter: string) => string) => { readonly main: string; readonly jobs: string }) =>
  Effect.gen(function* () {
    const appliance = yield* Appliance.make
    const { config, host, port } = appliance.place
    const directory = join(appliance.dir, "etc/conf.d")
    mkdirSync(directory)
    const letter = (name: string) => join(appliance.dir, "dev", name)
    const { jobs, main } = write(letter)
    const generic = `# the old daemon's\n[generic]\nlistenaddr = ${host}\nport = ${port}\nallowlist = true\nincludedir = ${directory}\n`
    writeFileSync(config, generic + main, "latin1")
    const included = join(directory, "jobs.conf")
    if (jobs !== "") writeFileSync(included, jobs, "latin1")
    const nbd: World.Options["nbd"] = {
      ...appliance.options.nbd,
      host: "127.0.0.1",
      port: 10809,
      allow: ["127.0.0.1"],
      explicit: { host: false, port: false, allow: false }
    }
    /** A disk under a letter, and what is wanted of it once it is claimed under this name. */
    const disk = (name: string, kernelName: string, bytes = MiB): WantedExport => {
      const wanted = appliance.disk(`${kernelName}-disk`, bytes)
      symlinkSync(join(appliance.dir, "dev", `${kernelName}-disk`), letter(kernelName))
      return { ...wanted, name }
    }
    return { appliance, config, directory, included, generic, letter, disk, nbd }
  })

type Legacy = Effect.Effect.Success<ReturnType<typeof legacy>>

const startByHand = ({ appliance, config }: Legacy, name: string) =>
  Effect.gen(function* () {
    const { code, said } = yield* Appliance.run("nbd-server", "-C", config, "-p", join(appliance.dir, "old.pid"))
    assert.strictEqual(code, 0, said)
    const ask = Handshake.ask({ ...appliance.place, name })
    const answer = yield* Effect.repeat(ask, { until: ({ _tag }) => _tag === "Served", times: 2_000 })
    assert.strictEqual(answer._tag, "Served")
  })

/** As after a reboot: whatever served is gone, and the file that is there is served. */
const restart = (old: Legacy, name: string) =>
  Effect.gen(function* () {
    for (const one of Processes.servers(old.config)) Processes.kill(one, old.config)
    yield* Appliance.eventually("all servers are gone", () => Processes.servers(old.config).length === 0)
    yield* startByHand(old, name)
  })

const sectionOf = (nbd: Nbd["Type"], name: string): Effect.Effect<NbdSection | undefined> =>
  Effect.map(Effect.orDie(nbd.observe([])), ({ sections }) => sections.find((section) => section.name === name))

const deviceOf = (nbd: Nbd["Type"], name: string) =>
  Effect.map(Effect.orDie(nbd.observe([name])), (reading) => Appliance.verified(reading, name).device)

const sha256 = (path: string) => createHash("sha256").update(readFileSync(path)).digest("hex")

const section = (name: string, path: string, more = "") => `[${name}]\nexportname = ${path}\n${more}`

describe("the sections of an older daemon", () => {
  const jobs = (letter: (name: string) => string) =>
    `# jobs of the old daemon\n\n${section("migration-vm-PGTEST2", letter("vdd"), "readonly = true\n")}` +
    `# the office's own, stays\n[keep]\nexportname = ${letter("vdf")}\n; odd = kept\n\n# before the last\n` +
    `${section("caf\xe9 1", letter("vde"), "# inside\nflush = true\n")}# the end`

  it.scopedLive(
    "keep their names, move to by-id paths into the one file, and serve on, while a copy of one of them runs",
    () =>
      Effect.gen(function* () {
        const old = yield* legacy((letter) => ({
          main:
            `[dummy]\nexportname = /dev/null\n# note\n${section(volumeName, letter("vdb"), "multifile = false\n")}` +
            section("migration-vm-PGTEST1", letter("vdc")),
          jobs: jobs(letter)
        }))
        const long = old.disk(volumeName, "vdb", 64 * MiB)
        writeFileSync(join(old.appliance.dir, "dev/vdb-disk"), Buffer.alloc(64 * MiB, "not all zeros "))
        const others = [
          old.disk("migration-vm-PGTEST1", "vdc", 2 * MiB),
          { ...old.disk("migration-vm-PGTEST2", "vdd", 3 * MiB), read_only: true },
          old.disk(cafe, "vde", 4 * MiB)
        ]
        old.disk("keep", "vdf", 5 * MiB)
        chmodSync(old.included, 0o604)
        yield* startByHand(old, volumeName)
        const nbd = yield* Appliance.adapter(old.appliance, { nbd: old.nbd })
        const before = yield* nbd.observe([volumeName, cafe])
        assert.deepInclude(before, {
          host: old.appliance.place.host,
          port: old.appliance.place.port,
          config_problem: null
        })
        assert.deepStrictEqual(
          before.sections.map(({ device, file, name, obstacle, path }) => [name, path, file, device, obstacle]),
          [
            ["dummy", "/dev/null", null, null, null],
            [volumeName, old.letter("vdb"), null, long.device, null],
            ["migration-vm-PGTEST1", old.letter("vdc"), null, others[0]?.device, null],
            ["migration-vm-PGTEST2", old.letter("vdd"), old.included, others[1]?.device, null],
            ["keep", old.letter("vdf"), old.included, before.sections[4]?.device, null],
            [cafe, old.letter("vde"), old.included, others[2]?.device, null]
          ]
        )
        const copy = yield* Appliance.transfer(old.appliance, volumeName)
        yield* nbd.load(request([long]))
        assert.strictEqual(readFileSync(old.included, "latin1"), jobs(old.letter))
        yield* nbd.load(request(others))
        assert.isNull(copy.child.exitCode)
        assert.deepStrictEqual(yield* copy.finish, {
          code: 0,
          sha256: sha256(join(old.appliance.dir, "dev/vdb-disk"))
        })
        const all = [long, ...others]
        const after = yield* nbd.observe([...all.map(({ name }) => name), "keep", "dummy"])
        for (const one of all) {
          assert.deepInclude(
            after.sections.find(({ name }) => name === one.name),
            {
              path: one.path,
              read_only: one.read_only,
              file: null,
              unfinished: null
            }
          )
          const { device, outcome, read_only, size } = Appliance.verified(after, one.name)
          assert.deepStrictEqual([outcome, size, read_only, device], ["served", one.size, one.read_only, one.device])
        }
        assert.strictEqual(Appliance.verified(after, "keep").outcome, "served")
        assert.isTrue(after.loaded)
        const text = Appliance.configText(old.appliance)
        assert.isTrue(text.startsWith(`${old.generic}[dummy]\nexportname = /dev/null\n# note\n`))
        assert.include(text, `\n[caf\xe9 1]\nreadonly = false\n`)
        assert.notMatch(text, /dev\/vd[a-z]\n/)
        assert.strictEqual(
          readFileSync(old.included, "latin1"),
          `# jobs of the old daemon\n\n# the office's own, stays\n[keep]\nexportname = ${old.letter("vdf")}\n; odd = kept\n\n# before the last\n# the end`
        )
        assert.strictEqual(statSync(old.included).mode & 0o777, 0o604)
        assert.deepStrictEqual(readdirSync(old.directory), ["jobs.conf"])
        // And nothing is left to do.
        yield* nbd.load(request(others))
        assert.strictEqual(Appliance.configText(old.appliance), text)
      })
  )

  it.scopedLive("leave when they are to go, from an included file too (N8)", () =>
    Effect.gen(function* () {
      const old = yield* legacy((letter) => ({
        main: section("dummy", "/dev/null"),
        jobs: section("Old Name", letter("vdb"))
      }))
      old.disk("Old Name", "vdb")
      yield* startByHand(old, "Old Name")
      const nbd = yield* Appliance.adapter(old.appliance, { nbd: old.nbd })
      yield* nbd.load(request([], "Old Name"))
      const reading = yield* nbd.observe(["Old Name"])
      assert.deepStrictEqual(
        [reading.sections.map(({ name }) => name), Appliance.verified(reading, "Old Name").outcome],
        [["dummy"], "unknown"]
      )
      assert.strictEqual(readFileSync(old.included, "latin1"), "")
    })
  )

  it.scopedLive("are served as they were until taken over, and are put back where that fails, alone", () =>
    Effect.gen(function* () {
      const old = yield* legacy((letter) => ({
        main: section("good", letter("vdb")) + section("bad", letter("vdc")),
        jobs: section("bad too", letter("vdd")) + section("good too", letter("vde"))
      }))
      const good = [old.disk("good", "vdb"), old.disk("good too", "vde")]
      const bad = [old.disk("bad", "vdc"), old.disk("bad too", "vdd")]
      const text = readFileSync(old.config, "latin1")
      yield* startByHand(old, "good")
      // Links that go right when the next main starts: what was checked before is not what the server finds.
      const bin = join(old.appliance.dir, "bin")
      mkdirSync(bin)
      const broken = bad.map(({ path }) => path).join(" ")
      const script = `#!/bin/sh\nrm -f ${broken}\nexec /usr/bin/env PATH=/bin:/usr/bin:/sbin:/usr/sbin nbd-server "$@"\n`
      writeFileSync(join(bin, "nbd-server"), script, { mode: 0o755 })
      const nbd = yield* Appliance.adapter(old.appliance, { nbd: old.nbd, program_dirs: [bin] })
      const error = yield* Effect.flip(nbd.load(request([...good, ...bad])))
      assert.match(error.message, /bad, bad too: .*put back/)
      const names = ["good", "good too", "bad", "bad too"]
      const reading = yield* nbd.observe(names)
      assert.deepStrictEqual(
        reading.verifications.map(({ device, outcome }) => [outcome, device]),
        [...good, ...bad].map(({ device }) => ["served", device])
      )
      assert.deepStrictEqual(
        names.map((name) => reading.sections.find((one) => one.name === name)?.path),
        [good[0]?.path, good[1]?.path, old.letter("vdc"), old.letter("vdd")]
      )
      assert.strictEqual(readFileSync(old.included, "latin1"), section("bad too", old.letter("vdd")))
      assert.isTrue(
        Appliance.configText(old.appliance).startsWith(text.replace(section("good", old.letter("vdb")), ""))
      )
    })
  )
})

describe("a takeover that is ended half-way (N3, S13)", () => {
  const stops: ReadonlyArray<readonly [string, (to: string, count: number) => boolean]> = [
    ["before anything is moved", (to, count) => to.endsWith("config") && count === 1],
    ["when both files have the section", (to) => to.endsWith("jobs.conf")],
    ["when the included file has lost it, before the last write", (to, count) => to.endsWith("config") && count === 2]
  ]
  it.scopedLive.each(stops)(
    "%s: the right disk is served even after a restart, and the next load ends it",
    ([, stops]) =>
      Effect.gen(function* () {
        const old = yield* legacy((letter) => ({
          main: section("dummy", "/dev/null"),
          jobs: section("migration-vm-A", letter("vdb")) + section("keep", letter("vdb"))
        }))
        const wanted = old.disk("migration-vm-A", "vdb")
        const other = old.appliance.disk("other-disk")
        yield* startByHand(old, "migration-vm-A")
        let writes = 0
        const disk: ConfigFile.Disk = {
          ...ConfigFile.disk,
          rename: (from, to) => {
            if (String(to).endsWith("config")) writes++
            const over = stops(String(to), writes)
            return over ? Promise.reject(new Error("killed")) : ConfigFile.disk.rename(from, to)
          }
        }
        const dying = yield* Appliance.adapter(old.appliance, { nbd: old.nbd, disk })
        assert.include((yield* Effect.flip(dying.load(request([wanted])))).message, "killed")
        yield* restart(old, "migration-vm-A")
        const nbd = yield* Appliance.adapter(old.appliance, { nbd: old.nbd })
        assert.strictEqual(yield* deviceOf(nbd, wanted.name), wanted.device)
        const half = yield* sectionOf(nbd, wanted.name)
        assert.isTrue(half?.path !== wanted.path || half.unfinished !== null, JSON.stringify(half))
        assert.isNull(half?.obstacle)
        yield* nbd.load(request([wanted]))
        assert.deepInclude(yield* sectionOf(nbd, wanted.name), { path: wanted.path, file: null, unfinished: null })
        assert.strictEqual(readFileSync(old.included, "latin1"), section("keep", old.letter("vdb")))
        // The letter goes to another disk: what is served is not what it names, in the server's memory neither.
        rmSync(old.letter("vdb"))
        symlinkSync(join(old.appliance.dir, "dev/other-disk"), old.letter("vdb"))
        assert.strictEqual(yield* deviceOf(nbd, wanted.name), wanted.device)
        assert.strictEqual(yield* deviceOf(nbd, "keep"), other.device)
      })
  )

  it.scopedLive("by a server that was never replaced, is seen and ended too", () =>
    Effect.gen(function* () {
      const old = yield* legacy((letter) => ({ main: section("Disk", letter("vdb")), jobs: "" }))
      const wanted = old.disk("Disk", "vdb")
      yield* startByHand(old, "Disk")
      // Whoever wrote the file ended before it could replace the main, which still serves the letter.
      const off = yield* Appliance.adapter(old.appliance, { nbd: { ...old.nbd, start: "off" } })
      assert.include((yield* Effect.flip(off.load(request([wanted])))).message, "NBD_START")
      assert.isNull((yield* sectionOf(off, "Disk"))?.unfinished)
      const nbd = yield* Appliance.adapter(old.appliance, { nbd: old.nbd })
      assert.include((yield* sectionOf(nbd, "Disk"))?.unfinished ?? "", "older version")
      yield* nbd.load(request([wanted]))
      assert.deepInclude(yield* sectionOf(nbd, "Disk"), { path: wanted.path, unfinished: null })
    })
  )
})

describe("who may open a claimed export", () => {
  const rules = (old: Legacy, name: string) => {
    const text = readFileSync(join(old.appliance.dir, "acl", name), "latin1")
    return text.split("\n").filter((line) => line !== "" && !line.startsWith("# "))
  }
  const stage = Effect.gen(function* () {
    const old = yield* legacy((letter) => ({
      main:
        section("open", letter("vdb")) +
        section("ruled", letter("vdc"), `authfile = ${letter("allow")}\n`) +
        section("unruled", letter("vdd"), `authfile = ${letter("missing")}\n`),
      jobs: ""
    }))
    writeFileSync(old.letter("allow"), "# the office\n192.0.2.7\n198.51.100.0/24\n")
    const set = [old.disk("open", "vdb"), old.disk("ruled", "vdc"), old.disk("unruled", "vdd")]
    yield* startByHand(old, "open")
    return { old, set }
  })

  it.scopedLive("is whoever might before, through a fence and its release, as long as NBD_ALLOW is not set", () =>
    Effect.gen(function* () {
      const { old, set } = yield* stage
      const { host } = old.appliance.place
      const nbd = yield* Appliance.adapter(old.appliance, { nbd: old.nbd })
      assert.deepStrictEqual((yield* nbd.observe([])).narrowings, [])
      yield* nbd.load(request(set))
      const all = ["0.0.0.0/0", "::/0"]
      for (let round = 0; round < 2; round++) {
        assert.deepStrictEqual(rules(old, "open"), all)
        assert.deepStrictEqual(rules(old, "ruled"), ["192.0.2.7", "198.51.100.0/24", host, "127.0.0.1"])
        assert.deepStrictEqual(rules(old, "unruled"), all)
        yield* nbd.fence("open")
        yield* nbd.fence("open")
        assert.strictEqual(Appliance.verified(yield* nbd.observe(["open"]), "open").outcome, "denied")
        yield* nbd.load(request(set))
        assert.strictEqual(Appliance.verified(yield* nbd.observe(["open"]), "open").outcome, "denied")
        yield* nbd.release("open")
        assert.strictEqual(Appliance.verified(yield* nbd.observe(["open"]), "open").outcome, "served")
      }
      // What bears the name next is another export, and has the settings' clients.
      yield* nbd.load(request([], "open"))
      assert.deepStrictEqual(rules(old, "open"), [])
      yield* nbd.load(request(set.slice(0, 1)))
      assert.deepStrictEqual(rules(old, "open"), ["127.0.0.1", host])
    })
  )

  it.scopedLive("is whom NBD_ALLOW admits where it is set, and that is said before", () =>
    Effect.gen(function* () {
      const { old, set } = yield* stage
      const { host } = old.appliance.place
      const nbd = yield* Appliance.adapter(old.appliance, {
        nbd: { ...old.nbd, allow: ["192.0.2.1"], explicit: { host: false, port: false, allow: true } }
      })
      const said = (yield* nbd.observe([])).narrowings.join()
      assert.match(said, /NBD_ALLOW=192\.0\.2\.1.*\[open\].*everybody.*\[ruled\], \[unruled\]/)
      yield* nbd.load(request(set))
      for (const { name } of set) assert.deepStrictEqual(rules(old, name), ["192.0.2.1", host, "127.0.0.1"])
      assert.deepStrictEqual((yield* nbd.observe([])).narrowings, [])
    })
  )
})

describe("an includedir", () => {
  it.scopedLive("is read as nbd-server reads it: real files named .conf, hidden ones too, no links", () =>
    Effect.gen(function* () {
      const old = yield* legacy((letter) => ({
        main: section("dummy", "/dev/null"),
        jobs: section("a", letter("vdb"))
      }))
      old.disk("a", "vdb")
      writeFileSync(join(old.directory, ".hidden.conf"), section("hidden", old.letter("vdb")))
      writeFileSync(join(old.directory, "b.conf.tmp"), section("temporary", old.letter("vdb")))
      writeFileSync(join(old.directory, "empty.conf"), "# nothing\n")
      mkdirSync(join(old.directory, "dir.conf"))
      symlinkSync(old.included, join(old.directory, "link.conf"))
      yield* startByHand(old, "a")
      const nbd = yield* Appliance.adapter(old.appliance, { nbd: old.nbd })
      const reading = yield* nbd.observe(["a", "hidden", "temporary"])
      assert.deepStrictEqual(
        reading.sections.map(({ name }) => name),
        ["dummy", "hidden", "a"]
      )
      assert.deepStrictEqual(
        reading.verifications.map(({ outcome }) => outcome),
        ["served", "served", "unknown"]
      )
    })
  )

  it.scopedLive(
    "with a broken file in it is a remark, and no main is ended for a file with which none would start (N9)",
    () =>
      Effect.gen(function* () {
        const old = yield* legacy((letter) => ({
          main: section("a", letter("vdb")),
          jobs: section("b", letter("vdb"))
        }))
        const wanted = old.disk("a", "vdb")
        yield* startByHand(old, "a")
        const [main] = Processes.servers(old.config)
        const text = readFileSync(old.config, "latin1")
        const nbd = yield* Appliance.adapter(old.appliance, { nbd: old.nbd })
        for (const bad of [
          "nonsense\n",
          "[x]\nreadonly = true\n",
          "[generic]\nport = 1\n",
          "[x]\nexportname=/x\nreadonly=yes\n"
        ]) {
          writeFileSync(join(old.directory, "bad.conf"), bad)
          const reading = yield* nbd.observe(["a"])
          assert.include(reading.server.problem ?? "", "bad.conf", bad)
          assert.isNull(reading.config_problem)
          assert.deepStrictEqual(
            reading.sections.map(({ name }) => name),
            ["a", "b"]
          )
          assert.include((yield* Effect.flip(nbd.load(request([wanted])))).message, "bad.conf")
        }
        assert.strictEqual(readFileSync(old.config, "latin1"), text)
        assert.deepStrictEqual(
          Processes.servers(old.config).map(({ pid }) => pid),
          [main?.pid]
        )
        rmSync(join(old.directory, "bad.conf"))
        yield* nbd.load(request([wanted]))
        assert.strictEqual(Appliance.verified(yield* nbd.observe(["b"]), "b").outcome, "served")
      })
  )

  it.scopedLive("whose sections cannot be told apart, or not be moved, keeps them, and they are not ours to take", () =>
    Effect.gen(function* () {
      const old = yield* legacy((letter) => ({
        main: section("twice", letter("vdb")) + section("gated", letter("vdb"), "prerun = /bin/true\n"),
        jobs: section("twice", letter("vdc")) + section("once", letter("vdc"))
      }))
      const wanted = old.disk("twice", "vdb")
      const once = old.disk("once", "vdc")
      yield* startByHand(old, "twice")
      const nbd = yield* Appliance.adapter(old.appliance, { nbd: old.nbd })
      // Of one name in both places the last is served, which is the included one.
      assert.strictEqual(yield* deviceOf(nbd, "twice"), once.device)
      assert.deepInclude(yield* sectionOf(nbd, "twice"), { file: old.included, device: once.device })
      assert.include((yield* sectionOf(nbd, "twice"))?.obstacle ?? "", "a client may get either")
      assert.include((yield* sectionOf(nbd, "gated"))?.obstacle ?? "", "prerun")
      for (const name of ["twice", "gated"]) {
        assert.strictEqual((yield* Effect.flip(nbd.load(request([{ ...wanted, name }]))))._tag, "PreconditionLost")
      }
      chmodSync(old.directory, 0o777)
      assert.include((yield* sectionOf(nbd, "once"))?.obstacle ?? "", "written by its group or by others")
      assert.strictEqual((yield* Effect.flip(nbd.load(request([once]))))._tag, "PreconditionLost")
      chmodSync(old.directory, 0o755)
      yield* nbd.load(request([once]))
      assert.deepInclude(yield* sectionOf(nbd, "once"), { path: once.path, file: null, obstacle: null })
    })
  )
})

describe("a server that becomes somebody else", () => {
  it.scopedLive("finds what proves the file where it finds its authfiles: it may not be let into STATE_DIR", () =>
    Effect.gen(function* () {
      const appliance = yield* Appliance.make
      const { config, host, port } = appliance.place
      chmodSync(appliance.dir, 0o755)
      writeFileSync(config, `[generic]\nlistenaddr = ${host}\nport = ${port}\nuser = nbd\ngroup = disk\n`)
      const nbd = yield* Appliance.adapter(appliance, { nbd: { ...appliance.options.nbd, start: "off" } })
      assert.include((yield* Effect.flip(nbd.load(request([appliance.disk("aaaa")])))).message, "NBD_START")
      const sentinel = join(appliance.dir, "acl/.sentinel.img")
      assert.include(
        Appliance.configText(appliance),
        `[${NbdName.SENTINEL}]\nreadonly = true\nvirtstyle = none\nexportname = ${sentinel}\n`
      )
      assert.deepStrictEqual([statSync(sentinel).size, statSync(sentinel).mode & 0o777], [MiB, 0o644])
      assert.isEmpty(readdirSync(join(appliance.dir, "state")))
    })
  )
})

describe("an address that NBD_HOST narrows", () => {
  it.scopedLive(
    "is listened on alone after the next load, and said before; everything else of [generic] stays (N13)",
    () =>
      Effect.gen(function* () {
        const appliance = yield* Appliance.make
        const { config, host, port } = appliance.place
        const more = `127.${host.split(".").slice(1, 3).join(".")}.${(Number(host.split(".")[3]) % 250) + 1}`
        const wanted = { ...appliance.disk("aaaa"), name: "Disk" }
        writeFileSync(
          config,
          `[generic]\nlistenaddr = ${more}, ${host}\nport = ${port}\n# kept\nmax_threads = 3\n${section("Disk", join(appliance.dir, "dev/aaaa"))}`
        )
        yield* Appliance.run("nbd-server", "-C", config, "-p", join(appliance.dir, "old.pid"))
        const served = (at: string) => Effect.map(Handshake.ask({ host: at, port, name: "Disk" }), ({ _tag }) => _tag)
        yield* Effect.repeat(served(more), { until: (tag) => tag === "Served", times: 2_000 })
        const follows = yield* Appliance.adapter(appliance, {
          nbd: { ...appliance.options.nbd, host: "127.0.0.1", explicit: { host: false, port: false, allow: false } }
        })
        assert.deepInclude(yield* follows.observe([]), { host: more, narrowings: [] })
        const nbd = yield* Appliance.adapter(appliance)
        assert.match((yield* nbd.observe([])).narrowings.join(), new RegExp(`NBD_HOST=${host}.*${more}, ${host}`))
        assert.strictEqual(yield* served(more), "Served")
        yield* nbd.load(request([wanted]))
        assert.deepStrictEqual([yield* served(host), yield* served(more)], ["Served", "Refused"])
        assert.isTrue(
          Appliance.configText(appliance).startsWith(
            `[generic]\nlistenaddr = ${host}\nport = ${port}\n# kept\nmax_threads = 3\n`
          )
        )
        assert.deepStrictEqual((yield* nbd.observe([])).narrowings, [])
      })
  )
})
