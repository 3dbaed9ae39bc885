import { assert, describe, it } from "@effect/vitest"
import { Effect, Fiber, Stream } from "effect"
import { spawn } from "node:child_process"
import {
  chmodSync,
  closeSync,
  mkdirSync,
  openSync,
  readFileSync,
  renameSync,
  symlinkSync,
  unlinkSync,
  writeFileSync
} from "node:fs"
import { join } from "node:path"
import type { LoadRequest, Nbd, WantedExport } from "../../reconciler/Nbd.ts"
import * as NbdConfig from "../../schema/NbdConfig.ts"
import * as Pin from "../../src/Nbd/Pin.ts"
import * as Processes from "../../src/Nbd/Processes.ts"
import * as Appliance from "./Appliance.ts"
import * as Client from "./Client.ts"

const request = (set: ReadonlyArray<WantedExport>, ...drop: ReadonlyArray<string>): LoadRequest => ({ set, drop })

/** An appliance whose exports are pinned. */
const pinning = Effect.map(Appliance.make, (appliance) => ({
  ...appliance,
  options: { ...appliance.options, nbd: { ...appliance.options.nbd, pin: true } }
}))

const unpinned = ({ options }: Appliance.Appliance) => ({ nbd: { ...options.nbd, pin: false } })

const mainOf = ({ place }: Appliance.Appliance) =>
  Effect.map(Processes.listener(place), (listener) => (listener._tag === "Main" ? listener.main.pid : null))

/** What stands in the file as an export's path. */
const writtenOf = (appliance: Appliance.Appliance, name: string): string => {
  const [, path = ""] = new RegExp(`\\[${name}\\][^[]*exportname = (.*)`).exec(Appliance.configText(appliance)) ?? []
  return path
}

const holderOf = (appliance: Appliance.Appliance, name: string): Pin.Holder => {
  const holder = Pin.at(appliance.options, writtenOf(appliance, name))
  if (holder === null) throw new Error(`${name} has no holder`)
  return holder
}

const end = (pid: number) =>
  Effect.gen(function* () {
    process.kill(pid, "SIGKILL")
    yield* Appliance.eventually(`process ${pid} is gone`, () => Processes.find(pid) === null)
  })

const sectionOf = (nbd: Nbd["Type"], name: string) =>
  Effect.map(nbd.sections, (sections) => sections.find((section) => section.name === name))

const read = (appliance: Appliance.Appliance, name: string, tries = 1) =>
  Effect.map(
    Effect.promise(() => Client.readPatiently(appliance.place, name, tries)),
    (answer) => (answer._tag === "Bytes" ? answer.text.trim() : answer.reason)
  )

const DENIED = "Access denied by server configuration"

/** A loop's pass: a load, and then what was fenced and is right again is opened. */
const settle = (nbd: Nbd["Type"], set: ReadonlyArray<WantedExport>) =>
  Effect.gen(function* () {
    yield* nbd.load(request(set))
    for (const section of yield* nbd.sections) {
      const wanted = set.find(({ name }) => name === section.name)
      if (section.fenced_at !== null && section.device === wanted?.device) yield* nbd.release(section.name)
    }
  })

/** A process with one disk open under a holder's number, and whatever else of a holder's looks. */
const decoy = (path: string, program: string, argv0: string, uid: number | null) =>
  Effect.acquireRelease(
    Effect.sync(() => {
      const descriptor = openSync(path, "r")
      const child = spawn(program, ["infinity", ...(program.endsWith("tail") ? ["-F"] : [])], {
        argv0,
        stdio: [...Array.from({ length: 1000 }, () => "ignore" as const), descriptor],
        ...(uid === null ? {} : { uid })
      })
      closeSync(descriptor)
      return child
    }),
    (child) => Effect.sync(() => child.kill("SIGKILL"))
  ).pipe(Effect.map((child) => child.pid ?? -1))

describe("an export with NBD_PIN=on", () => {
  it.scopedLive("names what a process of its own has open, and shows the link and the disk (S3)", () =>
    Effect.gen(function* () {
      const appliance = yield* pinning
      const nbd = yield* Appliance.adapter(appliance)
      const [a, b] = [appliance.disk("aaaa"), { ...appliance.disk("bbbb"), read_only: true }]
      yield* nbd.load(request([a, b]))
      assert.match(writtenOf(appliance, "aaaa"), /^\/proc\/\d+\/fd\/1000$/)
      const reading = yield* nbd.observe(["aaaa", "bbbb"])
      assert.deepStrictEqual(
        reading.sections.map(({ device, name, path, unfinished }) => ({ device, name, path, unfinished })),
        [a, b].map(({ device, name, path }) => ({ device, name, path, unfinished: null }))
      )
      assert.deepStrictEqual(
        [a, b].map(({ name }) => Appliance.verified(reading, name).device),
        [a.device, b.device]
      )
      assert.strictEqual(Appliance.verified(reading, "bbbb").read_only, true)
      // Holders are no obstacle to anything: they go with the export.
      assert.isEmpty(reading.holders.filter(({ device }) => device === a.device || device === b.device))
      assert.deepStrictEqual([yield* read(appliance, "aaaa"), yield* read(appliance, "bbbb")], ["aaaa", "bbbb"])
      const holder = holderOf(appliance, "aaaa")
      assert.deepStrictEqual([holder.path, holder.device], [a.path, a.device])
      assert.isEmpty(yield* Pin.leftovers(appliance.options))
    })
  )

  it.scopedLive("keeps its holder and its server over loads and a restart of volumed (S12, S18)", () =>
    Effect.gen(function* () {
      const appliance = yield* pinning
      const [a, b] = [appliance.disk("aaaa"), appliance.disk("bbbb")]
      yield* Effect.scoped(Effect.flatMap(Appliance.adapter(appliance), (nbd) => nbd.load(request([a, b]))))
      const [main, text] = [yield* mainOf(appliance), Appliance.configText(appliance)]
      const nbd = yield* Appliance.adapter(appliance)
      yield* nbd.load(request([b, a]))
      assert.strictEqual(yield* mainOf(appliance), main)
      assert.strictEqual(Appliance.configText(appliance), text)
      assert.isEmpty(yield* Pin.leftovers(appliance.options))
    })
  )

  it.scopedLive("lets go of its disk in the very load that removes it (N8, S11)", () =>
    Effect.gen(function* () {
      const appliance = yield* pinning
      const nbd = yield* Appliance.adapter(appliance)
      const [a, b] = [appliance.disk("aaaa"), appliance.disk("bbbb")]
      yield* nbd.load(request([a, b]))
      const [gone, kept] = [holderOf(appliance, "bbbb"), holderOf(appliance, "aaaa")]
      yield* nbd.load(request([a], "bbbb"))
      assert.isFalse(Processes.isAlive(gone.process))
      assert.isTrue(Processes.isAlive(kept.process))
      assert.strictEqual(yield* read(appliance, "aaaa"), "aaaa")
    })
  )

  it.scopedLive("is pinned by the next load where it was not, and the other way round", () =>
    Effect.gen(function* () {
      const appliance = yield* pinning
      const a = appliance.disk("aaaa")
      const [on, off] = [yield* Appliance.adapter(appliance), yield* Appliance.adapter(appliance, unpinned(appliance))]
      yield* off.load(request([a]))
      assert.match((yield* sectionOf(on, "aaaa"))?.unfinished ?? "", /NBD_PIN is on/)
      assert.isNull((yield* sectionOf(off, "aaaa"))?.unfinished)
      yield* on.load(request([a]))
      const holder = holderOf(appliance, "aaaa")
      assert.isNull((yield* sectionOf(on, "aaaa"))?.unfinished)
      const seen = yield* sectionOf(off, "aaaa")
      assert.match(seen?.unfinished ?? "", /NBD_PIN is off/)
      assert.deepStrictEqual([seen?.path, seen?.device], [a.path, a.device])
      yield* off.load(request([a]))
      assert.strictEqual(writtenOf(appliance, "aaaa"), a.path)
      assert.isFalse(Processes.isAlive(holder.process))
      assert.strictEqual(yield* read(appliance, "aaaa"), "aaaa")
    })
  )

  it.scopedLive("serves the disk that it was pinned to, wherever the link leads by now (D3, D4, D12, S3)", () =>
    Effect.gen(function* () {
      const appliance = yield* pinning
      const nbd = yield* Appliance.adapter(appliance)
      const [a, b] = [appliance.disk("aaaa"), appliance.disk("bbbb")]
      yield* nbd.load(request([a]))
      const other = join(appliance.dir, "by-id/next")
      symlinkSync(join(appliance.dir, "dev/bbbb"), other)
      renameSync(other, a.path)
      assert.strictEqual(yield* read(appliance, "aaaa"), "aaaa")
      assert.strictEqual((yield* sectionOf(nbd, "aaaa"))?.device, a.device)
      unlinkSync(a.path)
      assert.strictEqual(yield* read(appliance, "aaaa"), "aaaa")
      // A disk that is planned and one that the link leads to are two: nothing is loaded, and nothing stays behind.
      symlinkSync(join(appliance.dir, "dev/bbbb"), a.path)
      const error = yield* Effect.flip(nbd.load(request([a, b])))
      assert.strictEqual(error._tag, "PreconditionLost")
      assert.strictEqual(yield* read(appliance, "aaaa"), "aaaa")
      // What the plan now wants under this link is another disk: the old holder is none for it.
      yield* nbd.load(request([{ ...b, name: "aaaa", path: a.path }]))
      assert.strictEqual(yield* read(appliance, "aaaa"), "bbbb")
      assert.strictEqual(holderOf(appliance, "aaaa").device, b.device)
      assert.isEmpty(yield* Pin.leftovers(appliance.options))
    })
  )
})

describe("an export whose holder has ended", () => {
  it.scopedLive("is denied at once, tells of it, is fenced, and is pinned anew by one load (S3, L7)", () =>
    Effect.gen(function* () {
      const appliance = yield* pinning
      const nbd = yield* Appliance.adapter(appliance)
      const [a, b] = [appliance.disk("aaaa"), appliance.disk("bbbb")]
      yield* nbd.load(request([a, b]))
      yield* nbd.observe([])
      let poked = false
      yield* Effect.forkScoped(Stream.runForEach(nbd.pokes, () => Effect.sync(() => (poked = true))))
      yield* Effect.sleep("1500 millis")
      poked = false
      yield* end(holderOf(appliance, "aaaa").process.pid)
      assert.strictEqual(yield* read(appliance, "aaaa"), DENIED)
      const section = yield* sectionOf(nbd, "aaaa")
      assert.deepStrictEqual([section?.path, section?.device], [a.path, null])
      assert.match(section?.unfinished ?? "", /is gone$/)
      yield* Appliance.eventually("the end of the holder is told", () => poked)
      while ((yield* sectionOf(nbd, "aaaa"))?.fenced_at === null) yield* Effect.sleep("50 millis")
      assert.isNull((yield* sectionOf(nbd, "bbbb"))?.fenced_at)
      yield* settle(nbd, [a, b])
      assert.deepStrictEqual([yield* read(appliance, "aaaa"), yield* read(appliance, "bbbb")], ["aaaa", "bbbb"])
      const main = yield* mainOf(appliance)
      yield* nbd.load(request([a, b]))
      assert.strictEqual(yield* mainOf(appliance), main)
    })
  )

  it.scopedLive(
    "stays shut after a reboot, on which a server starts before volumed, until it is pinned anew (D11, S3)",
    () =>
      Effect.gen(function* () {
        const appliance = yield* pinning
        const [a, b] = [appliance.disk("aaaa"), appliance.disk("bbbb")]
        yield* Effect.scoped(Effect.flatMap(Appliance.adapter(appliance), (nbd) => nbd.load(request([a, b]))))
        yield* end((yield* mainOf(appliance)) ?? -1)
        Pin.stop(appliance.options)
        yield* Appliance.run("nbd-server", "-C", appliance.place.config, "-p", join(appliance.dir, "state/boot.pid"))
        for (const { name } of [a, b]) {
          let said = yield* read(appliance, name)
          while (/ECONNREFUSED|closed|ECONNRESET/.test(said)) said = yield* read(appliance, name)
          assert.strictEqual(said, DENIED)
        }
        const nbd = yield* Appliance.adapter(appliance)
        assert.deepStrictEqual(
          (yield* nbd.observe([])).sections.map(({ device, path, unfinished }) => [path, device, unfinished === null]),
          [
            [a.path, null, false],
            [b.path, null, false]
          ]
        )
        yield* settle(nbd, [a, b])
        assert.deepStrictEqual([yield* read(appliance, "aaaa"), yield* read(appliance, "bbbb")], ["aaaa", "bbbb"])
      })
  )

  it.scopedLive("is fenced by the next start itself, before anybody could look at what is exported (D11, S3)", () =>
    Effect.gen(function* () {
      const appliance = yield* pinning
      const [a, b] = [appliance.disk("aaaa"), appliance.disk("bbbb")]
      yield* Effect.scoped(Effect.flatMap(Appliance.adapter(appliance), (nbd) => nbd.load(request([a, b]))))
      yield* end(holderOf(appliance, "aaaa").process.pid)
      yield* Appliance.adapter(appliance)
      const rules = (name: string) => readFileSync(join(appliance.dir, "acl", name), "latin1")
      yield* Appliance.eventually("it admits nobody", () => rules("aaaa") === "")
      assert.notStrictEqual(rules("bbbb"), "")
    })
  )

  it.scopedLive(
    "is not served from whoever bears the holder's pid next, not while the server is replaced either (D12, S3)",
    () =>
      Effect.gen(function* () {
        const appliance = yield* pinning
        const nbd = yield* Appliance.adapter(appliance)
        const [a, b, c] = [appliance.disk("aaaa"), appliance.disk("bbbb"), appliance.disk("cccc")]
        yield* nbd.load(request([a, b]))
        const holder = holderOf(appliance, "aaaa")
        const stranger = yield* decoy(join(appliance.dir, "dev/cccc"), "/bin/sleep", "sleep", null)
        yield* end(holder.process.pid)
        // A pid cannot be had on demand, so the file is given the stranger's: to a reader it is the same.
        const text = Appliance.configText(appliance).replace(holder.descriptor, `/proc/${stranger}/fd/1000`)
        writeFileSync(appliance.place.config, text, "latin1")
        assert.match((yield* sectionOf(nbd, "aaaa"))?.device ?? "", /^unproven:/)
        const answers = new Set<string>()
        const asking = Effect.map(read(appliance, "aaaa"), (answer) => answers.add(answer))
        const client = yield* Effect.forkScoped(Effect.forever(asking))
        // The volume of the first export is out of reach: its section is in neither list and stays as it is.
        yield* nbd.load(request([b, c]))
        yield* Fiber.interrupt(client)
        assert.include(Appliance.configText(appliance), `/proc/${stranger}/fd/1000`)
        assert.strictEqual(yield* read(appliance, "aaaa"), DENIED)
        assert.isFalse(answers.has("cccc"), [...answers].join())
        yield* settle(nbd, [a, b, c])
        assert.deepStrictEqual([yield* read(appliance, "aaaa"), yield* read(appliance, "cccc")], ["aaaa", "cccc"])
      })
  )
})

describe("what is taken for a holder", () => {
  it.scopedLive("is neither another user's process nor another program by its title (S3, S11)", () =>
    Effect.gen(function* () {
      const appliance = yield* pinning
      const nbd = yield* Appliance.adapter(appliance)
      const a = appliance.disk("aaaa")
      yield* nbd.load(request([a]))
      const title = `volumed-pin:${appliance.place.config}:${a.path}`
      const file = join(appliance.dir, "dev/aaaa")
      const root = process.geteuid?.() === 0
      const fakes = [
        yield* decoy(file, "/usr/bin/tail", title, null),
        yield* root ? decoy(file, "/bin/sleep", title, 65_534) : decoy(file, "/bin/sleep", `${title}x`, null)
      ]
      yield* Appliance.eventually("both run", () => fakes.every((pid) => Processes.devices(pid).includes(a.device)))
      assert.deepStrictEqual(
        fakes.map((pid) => Pin.find(appliance.options, pid)),
        [null, null]
      )
      const holders = (yield* nbd.observe([])).holders.filter(({ device }) => device === a.device)
      assert.sameMembers(
        holders.map(({ pid }) => pid),
        fakes
      )
      // None of them is ended by what ends holders.
      yield* nbd.load(request([], "aaaa"))
      assert.isTrue(fakes.every((pid) => Processes.find(pid) !== null))
    })
  )

  it.scopedLive("is none of another file's: two volumed on one machine leave each other alone", () =>
    Effect.gen(function* () {
      const [one, other] = [yield* pinning, yield* pinning]
      const shared = { ...other, options: { ...other.options, by_id_dir: one.options.by_id_dir } }
      const a = one.disk("aaaa")
      const [first, second] = [yield* Appliance.adapter(one), yield* Appliance.adapter(shared)]
      yield* first.load(request([a]))
      yield* second.load(request([a]))
      const holders = [holderOf(one, "aaaa"), Pin.at(shared.options, writtenOf(shared, "aaaa"))]
      assert.notStrictEqual(holders[0]?.process.pid, holders[1]?.process.pid)
      yield* second.load(request([], "aaaa"))
      Pin.stop(shared.options)
      assert.isTrue(Processes.isAlive(holderOf(one, "aaaa").process))
      assert.strictEqual(yield* read(one, "aaaa"), "aaaa")
    })
  )

  it.scopedLive("is ended by the next start where a crash left it, and only where no section names it", () =>
    Effect.gen(function* () {
      const appliance = yield* pinning
      const [a, b] = [appliance.disk("aaaa"), appliance.disk("bbbb")]
      yield* Effect.scoped(Effect.flatMap(Appliance.adapter(appliance), (nbd) => nbd.load(request([a, b]))))
      const [kept, lost] = [holderOf(appliance, "aaaa"), holderOf(appliance, "bbbb")]
      const text = Appliance.configText(appliance)
      writeFileSync(appliance.place.config, text.replace(/\[bbbb\][^[]*/, ""), "latin1")
      // A server with the older file still looks for both.
      yield* Effect.scoped(Effect.andThen(Appliance.adapter(appliance), Effect.sleep("500 millis")))
      assert.strictEqual(yield* read(appliance, "bbbb"), "bbbb")
      yield* end((yield* mainOf(appliance)) ?? -1)
      yield* Appliance.adapter(appliance, {}, Appliance.closingGate(0))
      yield* Effect.sleep("500 millis")
      assert.isTrue(Processes.isAlive(lost.process))
      yield* Appliance.adapter(appliance)
      yield* Appliance.eventually("what is left over is ended", () => !Processes.isAlive(lost.process))
      assert.isTrue(Processes.isAlive(kept.process))
    })
  )

  it.scopedLive("is in the way of its disk's departure where no section names it any more (S11)", () =>
    Effect.gen(function* () {
      const appliance = yield* pinning
      const nbd = yield* Appliance.adapter(appliance)
      const [a, b] = [appliance.disk("aaaa"), appliance.disk("bbbb")]
      yield* nbd.load(request([a, b]))
      const lost = holderOf(appliance, "bbbb")
      const text = Appliance.configText(appliance)
      writeFileSync(appliance.place.config, text.replace(/\[bbbb\][^[]*/, ""), "latin1")
      const held = (yield* nbd.observe([])).holders.filter(({ device }) => device === a.device || device === b.device)
      assert.deepStrictEqual(
        held.map(({ device, pid }) => [pid, device]),
        [[lost.process.pid, b.device]]
      )
    })
  )

  it.scopedLive("is told from what a crash left, which the next load ends", () =>
    Effect.gen(function* () {
      const appliance = yield* pinning
      const nbd = yield* Appliance.adapter(appliance)
      const [a, b] = [appliance.disk("aaaa"), appliance.disk("bbbb")]
      yield* nbd.load(request([a, b]))
      const [kept, lost] = [holderOf(appliance, "aaaa"), holderOf(appliance, "bbbb")]
      const text = Appliance.configText(appliance)
      writeFileSync(appliance.place.config, text.replace(/\[bbbb\][^[]*/, ""), "latin1")
      assert.deepStrictEqual(
        (yield* Pin.leftovers(appliance.options)).map(({ path, process }) => [path, process.pid]),
        [[b.path, lost.process.pid]]
      )
      // Whoever cannot read the file knows of none: all of them may be named in it.
      writeFileSync(appliance.place.config, "[generic\n", "latin1")
      assert.isEmpty(yield* Pin.leftovers(appliance.options))
      yield* nbd.load(request([a], "bbbb"))
      assert.isFalse(Processes.isAlive(lost.process))
      assert.isTrue(Processes.isAlive(kept.process))
    })
  )
})

describe("the file", () => {
  const rendered = (path: string, pin?: string) =>
    NbdConfig.render({
      base: null,
      listen: { host: "127.0.0.1", port: 10_809, explicit: { host: true, port: true } },
      sentinel: "/state/sentinel.img",
      exports: [{ name: "aaaa", path, read_only: false, authfile: "/acl/aaaa", ...(pin === undefined ? {} : { pin }) }],
      moving: [],
      drop: [],
      by_id_dir: "/dev/disk/by-id"
    })

  it("names a process's open file only beside the link that it was opened by (e5, S21)", () => {
    const link = "/dev/disk/by-id/virtio-aaaa"
    const fine = rendered("/proc/4242/fd/1000", link)
    assert.strictEqual(fine._tag, "Rendered")
    if (fine._tag === "Rendered") assert.include(fine.body, `pin = ${link}\nexportname = /proc/4242/fd/1000\n`)
    const wrong: ReadonlyArray<readonly [string, string?]> = [
      ["/proc/4242/fd/1000"],
      ["/proc/4242/fd/1000", "/etc/shadow"],
      ["/proc/4242/fd/1000", "/dev/disk/by-id/../sda"],
      ...["/proc/self/fd/3", "/proc/0/fd/3", "/proc/4242/mem", "/proc/4242/fd/3/x", "/proc/4242/fd/", link].map(
        (path) => [path, link] as const
      )
    ]
    for (const [path, pin] of wrong) assert.strictEqual(rendered(path, pin)._tag, "Refused", `${path} ${pin}`)
  })
})

describe("a server that cannot open what holders hold", () => {
  it.scopedLive("is refused with the reason, and nothing is written or started", () =>
    Effect.gen(function* () {
      const appliance = yield* pinning
      const { host, port, config } = appliance.place
      chmodSync(appliance.dir, 0o755)
      mkdirSync(join(appliance.dir, "acl"), { mode: 0o755 })
      const text = `[generic]\nlistenaddr = ${host}\nport = ${port}\nuser = nbd\n`
      writeFileSync(config, text)
      const nbd = yield* Appliance.adapter(appliance)
      const a = appliance.disk("aaaa")
      assert.match((yield* nbd.observe([])).config_problem ?? "", /NBD_PIN is on, .* as nbd/)
      const error = yield* Effect.flip(nbd.load(request([a])))
      assert.match(error.message, /NBD_PIN is on/)
      assert.strictEqual(Appliance.configText(appliance), text)
      assert.isNull((yield* (yield* Appliance.adapter(appliance, unpinned(appliance))).observe([])).config_problem)
    })
  )

  it.scopedLive("starts no holder while the gate is closed", () =>
    Effect.gen(function* () {
      const appliance = yield* pinning
      const a = appliance.disk("aaaa")
      const held = yield* Appliance.adapter(appliance, {}, Appliance.closingGate(0))
      assert.strictEqual((yield* Effect.flip(held.load(request([a]))))._tag, "GateClosed")
      assert.isEmpty(yield* Pin.leftovers(appliance.options))
    })
  )
})
