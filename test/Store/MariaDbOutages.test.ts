import { assert, describe, it } from "@effect/vitest"
import { Deferred, Effect, Fiber, Logger, LogLevel, Option, Schedule } from "effect"
import * as Driver from "mysql2/promise"
import type { Store } from "../../reconciler/Store.ts"
import { StoreUnavailable } from "../../schema/Errors.ts"
import { Name } from "../../schema/Ids.ts"
import * as Dialect from "../../src/Store/Dialect.ts"
import * as Mysql from "../../src/Store/Mysql.ts"
import * as Seat from "../../src/Store/Seat.ts"
import * as MariaDb from "../support/MariaDb.ts"
import * as Proxy from "../support/Proxy.ts"
import * as Site from "./MariaDbSite.ts"
import { answer, attach, call, callId, refusal, uidOf, write } from "./Samples.ts"

const server = Site.shared()
const site = Effect.flatMap(server, (one) => Effect.flatMap(one.database(), Site.on))

const quietly = <A, E, R>(effect: Effect.Effect<A, E, R>) => Logger.withMinimumLogLevel(effect, LogLevel.None)

const names = (store: Store["Type"]) =>
  Effect.map(store.declarations, (all) => all.map(({ name }) => String(name)).toSorted())

/** The first command that begins so is judged, the others pass. */
const first = (text: string, verdict: Proxy.Verdict) => {
  let met = false
  return (command: Proxy.Command): Proxy.Verdict => {
    if (met || !command.text.startsWith(text)) return "pass"
    met = true
    return verdict
  }
}

const connected = Effect.fnUntraced(function* ({ socket }: MariaDb.MariaDb, database: string) {
  return yield* Effect.acquireRelease(
    Effect.promise(() => Driver.createConnection({ socketPath: socket, user: "root", database })),
    (connection) => Effect.sync(() => connection.destroy())
  )
})

const say = (connection: Driver.Connection, text: string) =>
  Effect.promise(async () => {
    const [rows] = await connection.query<Array<Driver.RowDataPacket>>(text)
    return rows
  })

describe("a COMMIT whose answer is lost on the way", () => {
  it.scopedLive("is found to have happened, and its write is answered as done (B2, S14)", () =>
    Effect.gen(function* () {
      const { fresh, proxy, store } = yield* site
      proxy.judge(first("COMMIT", "drop_answer"))
      const [done] = yield* store.write([write(1)], { calls: [call(1)], answer: answer("key") })
      assert.strictEqual(done?.generation, 1)
      assert.deepStrictEqual(yield* names(yield* fresh), ["disk-1"])
      assert.deepStrictEqual(yield* names(store), ["disk-1"])
      assert.isTrue(Option.isSome(yield* store.operation(callId(1))))
    }).pipe(quietly)
  )

  it.scopedLive("is found not to have happened where it never arrived, and its write can be done then (B2, S14)", () =>
    Effect.gen(function* () {
      const { fresh, proxy, store } = yield* site
      proxy.judge(first("COMMIT", "cut"))
      const error = yield* refusal(store.write([write(1)]))
      assert.deepInclude(error, { _tag: "StoreUnavailable", outcome_unknown: false, problem: "unreachable" })
      assert.deepStrictEqual(yield* names(yield* fresh), [])
      yield* store.write([write(1)])
      assert.deepStrictEqual(yield* names(yield* fresh), ["disk-1"])
    }).pipe(quietly)
  )

  for (const verdict of ["drop_answer", "cut"] as const)
    it.scopedLive(
      `is unknown while nobody can ask, and its repeat under the same key is done once (${verdict}; B2, X13)`,
      () =>
        Effect.gen(function* () {
          const { fresh, proxy, store } = yield* site
          const request = store.write([write(1)], { calls: [call(1)], answer: answer("key") })
          let away = false
          proxy.judge((command) => {
            if (away) return "cut"
            away = command.text === "COMMIT"
            return away ? verdict : "pass"
          })
          const error = yield* refusal(request)
          assert.deepInclude(error, { _tag: "StoreUnavailable", outcome_unknown: true })
          proxy.judge(() => "pass")
          const earlier = yield* store.answered("key")
          assert.strictEqual(Option.isSome(earlier), verdict === "drop_answer")
          assert.deepStrictEqual(yield* names(store), verdict === "drop_answer" ? ["disk-1"] : [])
          const repeat = yield* Effect.either(request)
          assert.strictEqual(repeat._tag, verdict === "drop_answer" ? "Left" : "Right")
          const { items } = yield* (yield* fresh).operations({})
          assert.deepStrictEqual(
            items.map(({ id }) => id),
            [callId(1)]
          )
          assert.deepStrictEqual(yield* names(yield* fresh), ["disk-1"])
        }).pipe(quietly)
    )
})

describe("a connection", () => {
  it.scopedLive("that ends after any number of bytes leaves a write done or not, as answered (B1, B2)", () =>
    Effect.gen(function* () {
      const { fresh, proxy, store } = yield* site
      for (const [n, text] of ["BEGIN", "UPDATE lease", "SELECT * FROM declarations WHERE living", "COMMIT"].entries())
        for (const bytes of [1, 4, 7, 11, 40]) {
          const number = n * 100 + bytes
          proxy.judge(first(text, { answer_bytes: bytes }))
          const outcome = yield* Effect.either(store.write([write(number)]))
          const there = Option.isSome(yield* (yield* fresh).declaration(Name.make(`disk-${number}`)))
          assert.strictEqual(outcome._tag, there ? "Right" : "Left", `${text} ${bytes}`)
          if (outcome._tag === "Left") assert.deepInclude(outcome.left, { outcome_unknown: false }, `${text} ${bytes}`)
          assert.deepStrictEqual(yield* names(store), yield* names(yield* fresh), `${text} ${bytes}`)
        }
    }).pipe(quietly)
  )

  it.scopedLive("on which COMMIT failed is used no more: nothing of it is committed later (B3, S14)", () =>
    Effect.gen(function* () {
      const { fresh, proxy, store } = yield* site
      // The server goes on with this transaction, as after a COMMIT that a proxy or a cluster refuses.
      proxy.judge(first("COMMIT", { error: 1290, state: "HY000", message: "read-only" }))
      const error = yield* refusal(store.write([write(1)]))
      assert.deepInclude(error, { _tag: "StoreUnavailable", outcome_unknown: false, problem: "read_only" })
      yield* store.write([write(2)])
      assert.deepStrictEqual(yield* names(yield* fresh), ["disk-2"])
    }).pipe(quietly)
  )

  it.scopedLive("on which ROLLBACK failed is used no more (B3, S14)", () =>
    Effect.gen(function* () {
      const { fresh, proxy, store } = yield* site
      const refused = first("INSERT INTO events", {
        error: 1205,
        state: "HY000",
        message: "Lock wait timeout exceeded"
      })
      const stuck = first("ROLLBACK", { error: 1317, state: "70100", message: "Query execution was interrupted" })
      proxy.judge((command) => {
        const verdict = command.kind === "prepare" ? "pass" : refused(command)
        return verdict === "pass" ? stuck(command) : verdict
      })
      yield* Effect.either(store.write([write(1), write(2)]))
      yield* store.write([write(3)])
      const there = yield* names(yield* fresh)
      assert.include([["disk-3"], ["disk-1", "disk-2", "disk-3"]].map(String), String(there))
      assert.deepStrictEqual(yield* names(store), there)
    }).pipe(quietly)
  )

  it.scopedLive("that is killed by the server, at any moment, leaves nothing half done (B2)", () =>
    Effect.gen(function* () {
      const { fresh, store, target } = yield* site
      const admin = yield* connected(yield* server, target.database)
      const killing = Effect.gen(function* () {
        const rows = yield* say(admin, `SELECT id FROM information_schema.processlist WHERE user = '${target.user}'`)
        for (const { id } of rows) yield* Effect.ignore(Effect.tryPromise(() => admin.query(`KILL ${id}`)))
        yield* Effect.sleep(7)
      })
      const killer = yield* Effect.fork(Effect.forever(killing))
      const acknowledged: Array<string> = []
      const open: Array<string> = []
      for (let n = 0; n < 60; n++) {
        const outcome = yield* Effect.either(store.write([write(n)]))
        if (outcome._tag === "Right") acknowledged.push(`disk-${n}`)
        else if (outcome.left instanceof StoreUnavailable && outcome.left.outcome_unknown) open.push(`disk-${n}`)
      }
      yield* Fiber.interrupt(killer)
      const there = (yield* names(yield* fresh)).filter((name) => !open.includes(name))
      assert.deepStrictEqual(there, acknowledged.toSorted())
      yield* store.write([write(99)])
      assert.deepStrictEqual(yield* names(store), yield* names(yield* fresh))
    }).pipe(quietly)
  )
})

describe("an answer that never comes", () => {
  const impatiently = Effect.locally(Dialect.statementLimit, 300)

  for (const text of ["BEGIN", "UPDATE lease", "INSERT INTO declarations"])
    it.scopedLive(`is waited for no longer than told, and the next write is done (${text}; B11, L5)`, () =>
      Effect.gen(function* () {
        const { fresh, proxy, store } = yield* site
        yield* store.write([write(1)])
        const pid = (yield* server).pid()
        yield* Effect.addFinalizer(() => Effect.sync(() => process.kill(pid, "SIGCONT")))
        // Longer than any test takes. The server itself stands still: nothing ends the connection from its side.
        const judge = first(text, { hold_ms: 600_000 })
        proxy.judge((command) => {
          const verdict = judge(command)
          if (verdict !== "pass") process.kill(pid, "SIGSTOP")
          return verdict
        })
        const error = yield* refusal(impatiently(store.write([write(2)])))
        assert.deepInclude(error, { _tag: "StoreUnavailable", outcome_unknown: false, problem: "unreachable" })
        process.kill(pid, "SIGCONT")
        yield* store.write([write(3)])
        assert.deepStrictEqual(yield* names(yield* fresh), ["disk-1", "disk-3"])
        assert.deepStrictEqual(yield* names(store), ["disk-1", "disk-3"])
      }).pipe(quietly)
    )

  it.scopedLive("is nobody else's to wait for, once whoever asked has gone (B11)", () =>
    Effect.gen(function* () {
      const { proxy, store } = yield* site
      yield* store.write([write(1)])
      const asked = yield* Deferred.make<void>()
      // Longer than any test takes.
      const judge = first("SELECT", { hold_ms: 600_000 })
      proxy.judge((command) => {
        const verdict = judge(command)
        if (verdict !== "pass") Deferred.unsafeDone(asked, Effect.void)
        return verdict
      })
      const gone = yield* Effect.fork(store.eventRange)
      yield* Deferred.await(asked)
      yield* Fiber.interrupt(gone)
      assert.deepStrictEqual(yield* impatiently(store.eventRange), { oldest: 1, newest: 1 })
    }).pipe(quietly)
  )
})

describe("a session", () => {
  it.scopedLive("is ours, whatever the server gives it: no read is of before what was written (B8)", () =>
    Effect.gen(function* () {
      const { target } = yield* site
      const admin = yield* connected(yield* server, target.database)
      const begin = (on: 0 | 1) => say(admin, `SET GLOBAL autocommit = ${on}, GLOBAL sql_safe_updates = ${1 - on}`)
      yield* Effect.addFinalizer(() => begin(1))
      yield* begin(0)
      const { fresh, store } = yield* Site.on(target)
      const seat = yield* Seat.open(target)
      const written = Effect.map(seat.ask("SELECT COUNT(*) AS n FROM declarations", [], 5_000), ([row]) => row?.["n"])
      for (const n of [1, 2]) {
        yield* store.write([write(n)])
        for (const one of [store, yield* fresh]) assert.strictEqual((yield* one.eventRange).newest, n)
        assert.strictEqual(yield* written, n)
      }
      yield* store.setMaintenance({
        reason: "r",
        by: "eve",
        since: "2026-03-01T12:00:00.000Z",
        until: null,
        ending: false
      })
      assert.strictEqual((yield* (yield* fresh).maintenance)?.by, "eve")
    }).pipe(quietly)
  )

  it.scopedLive("that is not as we want it carries nothing", () =>
    Effect.gen(function* () {
      const { fresh, proxy, store } = yield* site
      proxy.judge(first("SET SESSION", { error: 1231, state: "42000", message: "no" }))
      assert.deepInclude(yield* refusal(store.write([write(1)])), { outcome_unknown: false, problem: "unreachable" })
      yield* store.write([write(2)])
      assert.deepStrictEqual(yield* names(yield* fresh), ["disk-2"])
    }).pipe(quietly)
  )
})

describe("another session's locks", () => {
  it.scopedLive("that close a circle with ours end our transaction, which is done again (B3)", () =>
    Effect.gen(function* () {
      const { proxy, store, target } = yield* site
      yield* store.write([write(1)])
      const other = yield* connected(yield* server, target.database)
      yield* say(other, "CREATE TABLE ballast (n INT PRIMARY KEY) ENGINE = InnoDB")
      yield* say(other, "BEGIN")
      // The server gives up the transaction that has changed less, so that it is ours.
      yield* say(other, `INSERT INTO ballast VALUES ${Array.from({ length: 500 }, (_, n) => `(${n})`).join()}`)
      yield* say(other, `SELECT * FROM declarations WHERE uid = '${uidOf(1)}' FOR UPDATE`)
      let begun = 0
      proxy.judge(({ text }) => ((begun += text === "BEGIN" ? 1 : 0), "pass"))
      const ours = yield* Effect.fork(
        store.write([write(1, { expected_generation: 1, generation: 2, kind: "changed" })])
      )
      yield* Effect.sleep(100)
      const theirs = yield* Effect.fork(say(other, "UPDATE lease SET holder = holder WHERE id = 1"))
      yield* Fiber.join(theirs)
      yield* say(other, "COMMIT")
      const [done] = yield* Fiber.join(ours)
      assert.strictEqual(done?.generation, 2)
      assert.isAtLeast(begun, 2, "the first transaction was given up")
    }).pipe(quietly)
  )

  it.scopedLive("that outlast the server's patience are waited for again, and no longer than told (B3)", () =>
    Effect.gen(function* () {
      const { proxy, store, target } = yield* site
      const other = yield* connected(yield* server, target.database)
      yield* say(other, "BEGIN")
      yield* say(other, "SELECT * FROM lease FOR UPDATE")
      let begun = 0
      proxy.judge(({ text }) => {
        begun += text === "BEGIN" ? 1 : 0
        if (begun === 2) void other.query("COMMIT")
        return "pass"
      })
      yield* store.write([write(1)])
      assert.isAtLeast(begun, 2)
      assert.deepStrictEqual(yield* names(store), ["disk-1"])
    }).pipe(quietly)
  )
})

describe("a server", () => {
  it.scopedLive("that is read-only refuses writes as such, also at COMMIT, and goes on afterwards (B3)", () =>
    Effect.gen(function* () {
      const { fresh, proxy, store, target } = yield* site
      const admin = yield* connected(yield* server, target.database)
      const only = (on: 0 | 1) => say(admin, `SET GLOBAL read_only = ${on}`)
      yield* Effect.addFinalizer(() => only(0))
      yield* store.write([write(1)])
      const writable = Effect.map(store.describe, (described) => described.writable)
      assert.isTrue(yield* writable)
      yield* only(1)
      assert.isFalse(yield* writable)
      assert.deepInclude(yield* refusal(store.write([write(2)])), { problem: "read_only", outcome_unknown: false })
      assert.deepStrictEqual(yield* names(store), ["disk-1"])
      yield* only(0)
      proxy.judge(first("COMMIT", { hold_ms: 300 }))
      const held = yield* Effect.fork(Effect.either(store.write([write(3)])))
      yield* Effect.sleep(100)
      yield* only(1)
      const outcome = yield* Fiber.join(held)
      yield* only(0)
      assert.strictEqual(outcome._tag, "Left")
      if (outcome._tag === "Left")
        assert.deepInclude(outcome.left, { problem: "read_only", outcome_unknown: false }, outcome.left.message)
      yield* store.write([write(4)])
      assert.deepStrictEqual(yield* names(yield* fresh), ["disk-1", "disk-4"])
    }).pipe(quietly)
  )

  it.scopedLive("that takes no more connections is busy, and is used as soon as it does (B3)", () =>
    Effect.gen(function* () {
      const { store, target } = yield* site
      const admin = yield* connected(yield* server, target.database)
      const [row] = yield* say(admin, "SELECT @@global.max_connections AS n")
      yield* Effect.addFinalizer(() => say(admin, `SET GLOBAL max_connections = ${row?.["n"]}`))
      yield* say(admin, "SET GLOBAL max_connections = 10")
      const taken: Array<Driver.Connection> = []
      for (let n = 0; n < 12; n++) {
        const connection = yield* Effect.option(
          Effect.tryPromise(() => Driver.createConnection(Mysql.options(target) as Driver.ConnectionOptions))
        )
        if (Option.isSome(connection)) taken.push(connection.value)
      }
      const leave = Effect.sync(() => taken.forEach((connection) => connection.destroy()))
      yield* Effect.addFinalizer(() => leave)
      const error = yield* refusal(store.write([write(1)]))
      assert.deepInclude(error, { _tag: "StoreUnavailable", problem: "busy", outcome_unknown: false })
      yield* leave
      yield* Effect.retry(store.write([write(1)]), { times: 20 })
      assert.deepStrictEqual(yield* names(store), ["disk-1"])
    }).pipe(quietly)
  )

  it.scopedLive("that stands still for two seconds is waited for, and nothing is done twice (B11)", () =>
    Effect.gen(function* () {
      const { fresh, store } = yield* site
      yield* store.write([write(1)])
      const pid = (yield* server).pid()
      yield* Effect.acquireRelease(
        Effect.sync(() => process.kill(pid, "SIGSTOP")),
        () => Effect.sync(() => process.kill(pid, "SIGCONT"))
      )
      const waiting = yield* Effect.fork(
        Effect.all([store.write([write(2)]), store.intend(attach(1)), store.eventRange], { concurrency: 3 })
      )
      yield* Effect.sleep(2_000)
      assert.isTrue(Option.isNone(yield* Fiber.poll(waiting)))
      process.kill(pid, "SIGCONT")
      yield* Fiber.join(waiting)
      assert.deepStrictEqual(yield* names(yield* fresh), ["disk-1", "disk-2"])
      assert.strictEqual((yield* (yield* fresh).unresolved).length, 1)
    }).pipe(quietly)
  )

  it.scopedLive("whose disk is full says so, and goes on when there is room (B15)", () =>
    Effect.gen(function* () {
      const small = yield* MariaDb.start(
        "--skip-innodb-file-per-table",
        "--innodb-data-file-path=ibdata1:12M:autoextend:max:32M"
      )
      const target = yield* small.database()
      const { fresh, store } = yield* Site.on(target)
      yield* store.write([write(0)])
      const admin = yield* connected(small, target.database)
      const filling = yield* connected(small, target.database)
      // Texts that fit a page: on longer ones this MariaDB itself was seen to crash when no page was left.
      yield* say(
        admin,
        "CREATE TABLE filler (n INT AUTO_INCREMENT PRIMARY KEY, text VARCHAR(7000) CHARACTER SET latin1) ENGINE = InnoDB"
      )
      const fill = (rows: number) => {
        const values = Array.from({ length: rows }, () => "(REPEAT('x', 7000))").join(", ")
        return Effect.tryPromise(() => filling.query(`INSERT INTO filler (text) VALUES ${values}`))
      }
      // More than are deleted, or the lock would reach to where new rows come.
      yield* Effect.replicateEffect(fill(25), 25)
      // Begun while there is room, for to make some takes some.
      yield* say(admin, "BEGIN")
      yield* say(admin, "DELETE FROM filler WHERE n <= 500")
      yield* Effect.ignore(Effect.forever(fill(25)))
      yield* Effect.ignore(Effect.forever(fill(1)))
      const acknowledged = ["disk-0"]
      let full: StoreUnavailable | null = null
      for (let n = 1; full === null && n < 500; n++) {
        const outcome = yield* Effect.either(store.write([write(n)]))
        if (outcome._tag === "Right") acknowledged.push(`disk-${n}`)
        else if (outcome.left instanceof StoreUnavailable) full = outcome.left
      }
      assert.deepInclude(full, { problem: "full", outcome_unknown: false }, String(full?.message))
      assert.deepStrictEqual(yield* names(store), acknowledged.toSorted())
      yield* say(admin, "COMMIT")
      const again = Schedule.spaced("50 millis").pipe(Schedule.intersect(Schedule.recurs(200)))
      yield* Effect.retry(store.write([write(9_999)]), again)
      assert.deepStrictEqual(yield* names(yield* fresh), [...acknowledged, "disk-9999"].toSorted())
    }).pipe(quietly)
  )
})
