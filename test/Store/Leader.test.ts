import { assert, describe, it } from "@effect/vitest"
import { Context, Effect, Exit, Fiber, Layer, Logger, LogLevel, Schedule, Scope, Stream } from "effect"
import { buildSync } from "esbuild"
import { spawn } from "node:child_process"
import { once } from "node:events"
import * as Fs from "node:fs"
import * as Os from "node:os"
import * as Path from "node:path"
import { afterAll, beforeAll } from "vitest"
import { Leadership, type Role, under } from "../../reconciler/Leadership.ts"
import { Store } from "../../reconciler/Store.ts"
import type { Misconfigured, StoreUnavailable } from "../../schema/Errors.ts"
import { VmId } from "../../schema/Ids.ts"
import * as HighTerm from "../../src/Store/HighTerm.ts"
import * as Leader from "../../src/Store/Leader.ts"
import type * as Mysql from "../../src/Store/Mysql.ts"
import * as Sql from "../../src/Store/Sql.ts"
import * as MariaDb from "../support/MariaDb.ts"
import { vm, write } from "./Samples.ts"

/**
 * Who leads, told by what reaches the database. Time is real here, for the locks are the server's; each wait has a limit
 * that says only that something happens at all.
 */
const held = Effect.runSync(Scope.make())
let server: MariaDb.MariaDb

beforeAll(async () => {
  server = await Effect.runPromise(Scope.extend(MariaDb.start(), held))
}, 60_000)
afterAll(() => Effect.runPromise(Scope.close(held, Exit.void)))

interface Process {
  readonly role: Effect.Effect<Role>
  readonly check: Leadership["Type"]["check"]
  readonly roles: Leadership["Type"]["roles"]
  readonly store: Store["Type"]
  /** As SIGTERM. */
  readonly leave: Effect.Effect<void>
}

const GIVE_UP = "40 seconds"

/** As a daemon starts and lives: until the scope ends, or it leaves. */
const join = (
  target: Mysql.Target,
  appliance_vm_id: VmId = vm,
  more: Partial<Leader.Options> = {}
): Effect.Effect<Process, Misconfigured | StoreUnavailable, Scope.Scope> =>
  Effect.gen(function* () {
    const scope = yield* Effect.acquireRelease(Scope.make(), (scope) => Scope.close(scope, Exit.void))
    const elected = Leader.layerElected({ target, appliance_vm_id, acceptable: Effect.void, ...more })
    const layers = Layer.provideMerge(Sql.layerUnder({}), elected).pipe(
      Layer.provide(Logger.minimumLogLevel(LogLevel.None))
    )
    const services = yield* Layer.buildWithScope(Layer.fresh(layers), scope)
    return {
      ...Context.get(services, Leadership),
      store: Context.get(services, Store),
      leave: Scope.close(scope, Exit.void)
    }
  })

const until = (one: Process, tag: Role["_tag"]) =>
  one.role.pipe(
    Effect.repeat({ schedule: Schedule.spaced(10), until: (role) => role._tag === tag }),
    Effect.timeoutFail({ duration: GIVE_UP, onTimeout: () => new Error(`never ${tag}`) }),
    Effect.andThen(one.role),
    Effect.orDie
  )

const termOf = (role: Role) => (role._tag === "Leading" ? role.term : assert.fail(`not leading: ${role._tag}`))

const names = (one: Process) => Effect.map(one.store.declarations, (all) => all.map(({ name }) => String(name)))

const problemOf = (effect: Effect.Effect<unknown, { readonly _tag: string }>) =>
  Effect.map(Effect.flip(effect), (error) => ("problem" in error ? error.problem : error._tag))

/** The number of the connection that holds the lock. */
const holderOf = ({ database }: Mysql.Target) =>
  Effect.map(server.query(database, `SELECT IS_USED_LOCK('${Leader.lockName(database)}') AS id`), ([rows]) =>
    Number((rows as ReadonlyArray<{ id: number }>)[0]?.id)
  )

describe("leadership on MariaDB", () => {
  it.scopedLive(
    "is one process's; the others read what it writes, keep nothing of it, and write nothing (S16, M1)",
    () =>
      Effect.gen(function* () {
        const target = yield* server.database()
        const a = yield* join(target)
        const b = yield* join(target)
        assert.strictEqual(termOf(yield* a.role), 1)
        assert.deepStrictEqual(yield* b.role, { _tag: "Standby", leader: Leader.holder })
        yield* a.check
        assert.include((yield* Effect.flip(b.check)).detail, "another process leads")
        yield* a.store.write([write(1)])
        assert.deepStrictEqual(yield* names(b), ["disk-1"])
        assert.strictEqual(yield* problemOf(b.store.write([write(2)])), "standby")
        yield* a.store.write([write(3)])
        assert.deepStrictEqual(yield* names(b), ["disk-1", "disk-3"])
      })
  )

  it.scopedLive("is never taken by a dry run, which looks on, so that a real daemon is not kept from it", () =>
    Effect.gen(function* () {
      const target = yield* server.database()
      const dry = yield* join(target, vm, { dry_run: true })
      assert.strictEqual((yield* until(dry, "Standby"))._tag, "Standby")
      const real = yield* join(target)
      assert.strictEqual(termOf(yield* until(real, "Leading")), 1)
      yield* real.store.write([write(1)])
      yield* names(dry).pipe(
        Effect.retry(Schedule.spaced(50)),
        Effect.repeat({ schedule: Schedule.spaced(50), until: (found) => found.length === 1 }),
        Effect.timeout(GIVE_UP)
      )
      assert.strictEqual(yield* problemOf(dry.store.write([write(2)])), "standby")
    })
  )

  it.scopedLive("goes to a standby when the leader leaves, in a term of its own", () =>
    Effect.gen(function* () {
      const target = yield* server.database()
      const a = yield* join(target)
      const b = yield* join(target)
      yield* a.store.write([write(1)])
      yield* a.leave
      assert.strictEqual(termOf(yield* until(b, "Leading")), 2)
      assert.strictEqual((yield* a.role)._tag, "Unreachable", "who left believes in nothing")
      yield* b.store.write([write(2)])
      assert.deepStrictEqual(yield* names(b), ["disk-1", "disk-2"])
    })
  )

  it.scopedLive(
    "ends with its connection: what was decided before is neither written nor sent afterwards (M2, S15)",
    () =>
      Effect.gen(function* () {
        const target = yield* server.database()
        const a = yield* join(target)
        const old = under(termOf(yield* a.role))
        yield* old(a.store.write([write(1)]))
        yield* server.query("", `KILL ${yield* holderOf(target)}`)
        yield* until(a, "Unreachable")
        assert.strictEqual((yield* Effect.flip(a.check))._tag, "GateClosed")
        assert.strictEqual(termOf(yield* until(a, "Leading")), 2, "nobody else wanted it")
        yield* a.check
        assert.include((yield* Effect.flip(old(a.check))).detail, "a term that is over")
        assert.strictEqual(yield* problemOf(old(a.store.write([write(2)]))), "standby")
        yield* a.store.write([write(3)])
        assert.deepStrictEqual(yield* names(a), ["disk-1", "disk-3"])
      })
  )

  it.scopedLive("is nobody's word: where the database names another term, who believes to lead is refused (S16)", () =>
    Effect.gen(function* () {
      const target = yield* server.database()
      const a = yield* join(target)
      yield* server.query(target.database, "UPDATE lease SET term = 9")
      assert.strictEqual(yield* problemOf(a.store.write([write(1)])), "standby")
      assert.strictEqual((yield* Effect.flip(a.check))._tag, "GateClosed")
      assert.strictEqual(termOf(yield* until(a, "Leading")), 10)
      assert.deepStrictEqual(yield* names(a), [])
    })
  )

  it.scopedLive("is believed no longer than the lock, when the server hangs, and comes back with it (B11, T2)", () =>
    Effect.gen(function* () {
      const target = yield* server.database()
      const a = yield* join(target)
      const b = yield* join(target)
      const pid = server.pid()
      yield* Effect.acquireUseRelease(
        Effect.sync(() => process.kill(pid, "SIGSTOP")),
        () =>
          Effect.gen(function* () {
            yield* Effect.all([until(a, "Unreachable"), until(b, "Unreachable")], { concurrency: 2 })
            assert.strictEqual((yield* Effect.flip(a.check))._tag, "GateClosed")
            assert.strictEqual(yield* problemOf(a.store.declarations), "unreachable", "told at once, not after a wait")
          }),
        () => Effect.sync(() => process.kill(pid, "SIGCONT"))
      )
      const first = yield* Effect.raceFirst(until(a, "Leading"), until(b, "Leading"))
      assert.isAbove(termOf(first), 1)
      const roles = [yield* a.role, yield* b.role]
      assert.strictEqual(roles.filter(({ _tag }) => _tag === "Leading").length, 1, JSON.stringify(roles))
    })
  )
})

describe("a database that", () => {
  it.scopedLive("is away neither stops the start nor is guessed about, and is led when it comes (P8, L8)", () =>
    Effect.gen(function* () {
      const target = yield* server.database()
      yield* server.kill
      const a = yield* Effect.ensuring(join(target), Effect.void)
      const role = yield* a.role
      assert.strictEqual(role._tag, "Unreachable")
      assert.strictEqual(yield* problemOf(a.store.declarations), "unreachable")
      assert.strictEqual(yield* problemOf(a.store.write([write(1)])), "unreachable")
      yield* server.start
      assert.strictEqual(termOf(yield* until(a, "Leading")), 1)
      yield* a.store.write([write(1)])
      yield* server.kill
      yield* until(a, "Unreachable")
      yield* server.start
      assert.strictEqual(termOf(yield* until(a, "Leading")), 2)
      assert.deepStrictEqual(yield* names(a), ["disk-1"])
    })
  )

  it.scopedLive("takes no writes is one and the same outage, however often it is tried (B3, S22)", () =>
    Effect.gen(function* () {
      const target = yield* server.database()
      const a = yield* join(target)
      const only = (on: 0 | 1) => server.query("", `SET GLOBAL read_only = ${on}`)
      yield* Effect.addFinalizer(() => Effect.orDie(only(0)))
      yield* only(1)
      yield* server.query("", `KILL ${yield* holderOf(target)}`)
      yield* a.role.pipe(
        Effect.repeat({
          schedule: Schedule.spaced(10),
          until: (role) => role._tag === "Unreachable" && role.detail.includes("read-only")
        }),
        Effect.timeout(GIVE_UP)
      )
      const told = yield* Effect.fork(Stream.runCollect(Stream.take(a.roles, 2)))
      yield* Effect.sleep(3_000)
      yield* only(0)
      const roles = yield* Effect.timeout(Fiber.join(told), GIVE_UP)
      assert.deepStrictEqual(
        [...roles].map(({ _tag }) => _tag),
        ["Unreachable", "Leading"]
      )
    })
  )

  it.scopedLive("belongs to another appliance stops the start and names it (M3)", () =>
    Effect.gen(function* () {
      const target = yield* server.database()
      const a = yield* join(target)
      const other = VmId.make("d1e7a9f0-6f0e-4f5e-9a55-0b6f0b1f7a01")
      const beside = yield* Effect.flip(join(target, other))
      assert.strictEqual(beside._tag, "Misconfigured")
      assert.include(beside.message, vm)
      yield* a.leave
      const after = yield* Effect.flip(join(target, other))
      assert.include(after.message, vm)
      assert.strictEqual(termOf(yield* (yield* join(target)).role), 2, "it took no term")
    })
  )

  it.scopedLive("a newer program has written stops the start, and a standby that meets it stops reading (B9, P7)", () =>
    Effect.gen(function* () {
      const target = yield* server.database()
      const a = yield* join(target)
      const b = yield* join(target)
      assert.strictEqual((yield* b.role)._tag, "Standby")
      const later =
        "INSERT INTO schema_version (id, name, applied_at) VALUES (9999, 'later', '2030-01-01T00:00:00.000Z')"
      yield* server.query(target.database, later)
      const refused = yield* Effect.flip(join(target))
      assert.strictEqual(refused._tag, "Misconfigured")
      assert.include(refused.message, "9999")
      yield* until(b, "Unreachable")
      assert.strictEqual(yield* problemOf(b.store.declarations), "refused")
      assert.strictEqual((yield* a.role)._tag, "Leading")
    })
  )

  it.scopedLive(
    "went back to before a term that was led in here is not acted on until a person says so (B5, S15)",
    () =>
      Effect.gen(function* () {
        const target = yield* server.database()
        const directory = yield* Effect.acquireRelease(
          Effect.sync(() => Fs.mkdtempSync(Path.join(Os.tmpdir(), "volumed-term-"))),
          (path) => Effect.sync(() => Fs.rmSync(path, { recursive: true, force: true }))
        )
        const file = Path.join(directory, "state", "term")
        const high_term = HighTerm.make(file, "here")
        const start = join(target, vm, { high_term })
        yield* (yield* start).leave
        yield* (yield* start).leave
        yield* server.query(target.database, "UPDATE lease SET term = 1")
        const refused = yield* Effect.flip(start)
        assert.include(refused.message, "term 2")
        assert.include(refused.message, file)
        yield* (yield* join(target, vm, { high_term: HighTerm.make(file, "elsewhere") })).leave
        Fs.rmSync(file)
        assert.strictEqual(termOf(yield* (yield* start).role), 3)
      })
  )

  it.scopedLive("was restored from a backup of the last reign is not acted on either (B6, S15)", () =>
    Effect.gen(function* () {
      const target = yield* server.database()
      const directory = yield* Effect.acquireRelease(
        Effect.sync(() => Fs.mkdtempSync(Path.join(Os.tmpdir(), "volumed-term-"))),
        (path) => Effect.sync(() => Fs.rmSync(path, { recursive: true, force: true }))
      )
      const file = Path.join(directory, "term")
      const start = join(target, vm, { high_term: HighTerm.make(file, "here") })
      const a = yield* start
      yield* a.store.write([write(1)])
      yield* a.store.write([write(2)])
      const { newest } = yield* a.store.eventRange
      yield* Effect.sync(() => Fs.readFileSync(file, "utf8")).pipe(
        Effect.repeat({ schedule: Schedule.spaced(10), until: (text) => text.includes(`"event":${newest}`) }),
        Effect.timeout(GIVE_UP)
      )
      yield* a.leave
      yield* (yield* start).leave
      yield* server.query(
        target.database,
        "DELETE FROM declarations WHERE name = 'disk-2'",
        "DELETE FROM events ORDER BY id DESC LIMIT 1"
      )
      const refused = yield* Effect.flip(start)
      assert.include(refused.message, `event ${newest}`)
      assert.include(refused.message, file)
    })
  )

  it.scopedLive("has no schema yet is not read before a leader has made it", () =>
    Effect.gen(function* () {
      const target = yield* server.database()
      const other = yield* foreignHolder(target)
      const a = yield* join(target)
      assert.strictEqual((yield* a.role)._tag, "Standby")
      assert.strictEqual(yield* problemOf(a.store.declarations), "unreachable")
      yield* server.query("", `KILL ${other}`)
      assert.strictEqual(termOf(yield* until(a, "Leading")), 1)
      assert.deepStrictEqual(yield* names(a), [])
    })
  )
})

/** Somebody who has the lock and does nothing with it; the number of its connection. */
const foreignHolder = (target: Mysql.Target) =>
  Effect.gen(function* () {
    const lock = Leader.lockName(target.database)
    yield* Effect.forkScoped(Effect.ignoreLogged(server.query("", `SELECT GET_LOCK('${lock}', 0)`, "SELECT SLEEP(60)")))
    yield* Effect.repeat(holderOf(target), { schedule: Schedule.spaced(10), until: (id) => id > 0 })
    return yield* holderOf(target)
  })

describe("a leader that is stopped and wakes up", () => {
  const directory = Fs.mkdtempSync(Path.join(import.meta.dirname, "../../dist/leader-"))
  const bundle = Path.join(directory, "child.mjs")
  beforeAll(() => {
    buildSync({
      entryPoints: [Path.join(import.meta.dirname, "leaderChild.ts")],
      bundle: true,
      platform: "node",
      format: "esm",
      outfile: bundle,
      external: ["libsql"],
      logLevel: "error",
      banner: { js: 'import { createRequire } from "node:module"; const require = createRequire(import.meta.url);' }
    })
  })
  afterAll(() => Fs.rmSync(directory, { recursive: true, force: true }))

  const start = (target: Mysql.Target) =>
    Effect.acquireRelease(
      Effect.sync(() => {
        const args = [bundle, String(target.port), target.database]
        const child = spawn(process.execPath, args, { stdio: ["ignore", "pipe", "inherit"] })
        const said: Array<string> = []
        child.stdout.setEncoding("utf8").on("data", (text: string) => said.push(...text.trim().split("\n")))
        return { child, said, ended: once(child, "close") }
      }),
      ({ child, ended }) => Effect.promise(() => (child.kill("SIGKILL"), ended))
    )

  it.scopedLive("has neither sent nor written anything in its old term (P4, S16)", () =>
    Effect.gen(function* () {
      const target = yield* server.database()
      const { child, said } = yield* start(target)
      const says = (line: string, from = 0) =>
        Effect.sync(() => said.slice(from).includes(line)).pipe(
          Effect.repeat({ schedule: Schedule.spaced(10), until: (yes) => yes }),
          Effect.timeout(GIVE_UP)
        )
      yield* says("sent 1")
      const b = yield* join(target)
      assert.strictEqual((yield* b.role)._tag, "Standby")
      child.kill("SIGSTOP")
      assert.strictEqual(termOf(yield* until(b, "Leading")), 2)
      const { newest } = yield* b.store.eventRange
      const from = said.length
      child.kill("SIGCONT")
      yield* says("Standby", from)
      assert.notInclude(said.slice(from), "sent 1")
      const events = yield* b.store.events({ after: newest, limit: 1000 })
      assert.deepStrictEqual(
        events.filter(({ actor }) => actor === "term 1"),
        []
      )
      yield* b.leave
      yield* says("sent 3", from)
    })
  )
})
