import * as SqlClient from "@effect/sql/SqlClient"
import { assert, describe, it } from "@effect/vitest"
import { Context, Effect, Either, Layer, Logger, LogLevel, Random, Redacted, Ref, Schedule, Stream } from "effect"
import * as Driver from "mysql2/promise"
import * as Fs from "node:fs"
import * as Os from "node:os"
import * as Path from "node:path"
import { Leadership, type Role, under } from "../../reconciler/Leadership.ts"
import { Store } from "../../reconciler/Store.ts"
import { GenerationConflict, StoreUnavailable } from "../../schema/Errors.ts"
import * as Leader from "../../src/Store/Leader.ts"
import * as Mysql from "../../src/Store/Mysql.ts"
import * as Sql from "../../src/Store/Sql.ts"
import * as HttpSite from "../Http/Site.ts"
import { send } from "../Http/support.ts"
import { type Entry, type History, order } from "../support/Linearizability.ts"
import * as Site from "./MariaDbSite.ts"
import { spec, uidOf, write } from "./Samples.ts"

const server = Site.shared("--innodb-flush-log-at-trx-commit=0")

const CLIENTS = 12
const quietly = <A, E, R>(effect: Effect.Effect<A, E, R>) => Logger.withMinimumLogLevel(effect, LogLevel.None)

/** A clock on which no two readings are equal. */
const clock = () => {
  let last = 0
  return () => (last = Math.max(performance.now(), last + 1e-6))
}

/** Fails with where the history was written down, and what it was begun with. */
const assertLinearizable = (history: History, seed: number, first: number | null) => {
  if (order(history, first) !== null) return
  const file = Path.join(Fs.mkdtempSync(Path.join(Os.tmpdir(), "volumed-history-")), "history.json")
  Fs.writeFileSync(file, JSON.stringify({ seed, history }, null, 1))
  assert.fail(`no order explains the history in ${file} (seed ${seed})`)
}

const seedOf = Effect.sync(() => Number(process.env["HISTORY_SEED"] ?? Math.trunc(Math.random() * 2 ** 31)))

const histories = (keys: number): ReadonlyArray<Array<Entry>> => Array.from({ length: keys }, () => [])

/** So many clients, each with its own numbers from one seed. */
const clients = <A, E, R>(seed: number, body: (client: number) => Effect.Effect<A, E, R>) =>
  Effect.forEach(
    Array.from({ length: CLIENTS }, (_, client) => client),
    (client) => Effect.suspend(() => Effect.withRandom(body(client), Random.make(`${seed} ${client}`))),
    { concurrency: "unbounded" }
  )

/** One process of several on a database: its own pool, and what it believes to be. */
const contender = Effect.fnUntraced(function* (target: Mysql.Target) {
  const client = yield* Layer.build(Mysql.layer(target))
  const believed = yield* Ref.make<Role>({ _tag: "Standby", leader: null })
  const leadership = Leadership.of({ role: Ref.get(believed), roles: Stream.empty, check: Effect.void })
  const context = yield* Layer.build(
    Sql.layerUnder({}).pipe(Layer.provide([Layer.succeedContext(client), Layer.succeed(Leadership, leadership)]))
  )
  return { sql: Context.get(client, SqlClient.SqlClient), believed, store: Context.get(context, Store) }
})

describe("many writers on one MariaDB", () => {
  it.scopedLive(
    "of processes that take over from each other, and of which some do not notice, are as if one after the other (B8, B7, M4, S14, S16)",
    () =>
      Effect.gen(function* () {
        const seed = yield* seedOf
        const target = yield* (yield* server).database()
        const { fresh } = yield* Site.on(target)
        const processes = yield* Effect.replicateEffect(contender(target), 4)
        const [reader] = processes
        if (reader === undefined) return
        const tick = clock()
        const keys = 3
        const history = histories(keys)
        const met = { done: 0, refused: 0, fenced: 0, terms: 0 }

        const elect = Effect.gen(function* () {
          const next = yield* Random.nextIntBetween(0, processes.length)
          const chosen = processes[next]
          if (chosen === undefined) return
          const term = yield* Leader.takeTerm(chosen.sql, () => Effect.void)
          met.terms += 1
          yield* Ref.set(chosen.believed, { _tag: "Leading", term, since: 0 })
          // The others are told now and then: until then they think that they lead still.
          for (const other of processes)
            if (other !== chosen && (yield* Random.nextIntBetween(0, 3)) === 0)
              yield* Ref.set(other.believed, { _tag: "Standby", leader: null })
          yield* Effect.sleep(yield* Random.nextIntBetween(10, 60))
        })

        const attempt = Effect.fnUntraced(function* (client: number) {
          const key = yield* Random.nextIntBetween(0, keys)
          const chosen = processes[yield* Random.nextIntBetween(0, processes.length)] ?? reader
          const begunRead = tick()
          const rows = yield* reader.sql<{ generation: number }>`SELECT generation FROM declarations
            WHERE living_name = ${`disk-${key}`}`
          const found = rows[0] === undefined ? null : Number(rows[0].generation)
          history[key]?.push({ _tag: "Read", client, begun: begunRead, ended: tick(), found })
          yield* Effect.sleep(yield* Random.nextIntBetween(0, 5))
          const role = yield* Ref.get(chosen.believed)
          const term = role._tag === "Leading" ? role.term : 0
          const made = (found ?? 0) + 1
          const begun = tick()
          const outcome = yield* Effect.either(
            under(term)(
              chosen.store.write([
                write(key, {
                  uid: uidOf(key),
                  expected_generation: found,
                  generation: made,
                  kind: found === null ? "declared" : "changed",
                  spec: spec({ metadata: { by: `${client} ${begun}` } }),
                  actor: `term ${term}`
                })
              ])
            )
          )
          const answered = tick()
          const told = (outcome: Extract<Entry, { _tag: "Write" }>["outcome"]) =>
            history[key]?.push({
              _tag: "Write",
              client,
              begun,
              ended: outcome === "unknown" ? null : answered,
              expected: found,
              made,
              outcome
            })
          if (Either.isRight(outcome)) met.done += told("done") === undefined ? 0 : 1
          else if (outcome.left instanceof GenerationConflict) met.refused += told("refused") === undefined ? 0 : 1
          else if (outcome.left instanceof StoreUnavailable && outcome.left.outcome_unknown) told("unknown")
          // Told that it was not done: were it done nevertheless, what others read would have no order.
          else met.fenced += 1
        })

        yield* elect
        yield* Effect.fork(Effect.withRandom(Effect.forever(elect), Random.make(`${seed} elections`)))
        yield* clients(seed, (client) => Effect.repeatN(attempt(client), 149))
        for (const one of history) assertLinearizable(one, seed, null)

        const events = yield* (yield* fresh).events({ after: 0, limit: 1000 })
        const terms = events.map(({ actor }) => Number(actor?.replace("term ", "")))
        assert.deepStrictEqual(
          terms.filter((term, at) => term < (terms[at - 1] ?? 0)),
          [],
          "no term is written in once a later one has begun"
        )
        assert.strictEqual(events.length, met.done, "what was done is told once")
        for (const declaration of yield* (yield* fresh).declarations)
          assert.strictEqual(
            events.filter(({ uid }) => uid === declaration.uid).length,
            declaration.generation,
            "each generation is somebody's write"
          )
        assert.isAbove(met.done, 50)
        assert.isAbove(met.refused, 10)
        assert.isAbove(met.fenced, 10)
        assert.isAbove(met.terms, 10)
      }).pipe(quietly),
    120_000
  )

  it.scopedLive(
    "by HTTP, while connections are killed and with one of them the leader's lock, lose no write that was acknowledged (B2, B8, M4, S14)",
    () =>
      Effect.gen(function* () {
        const seed = yield* seedOf
        const running = yield* server
        const target = yield* running.database()
        const dsn = `mysql://${target.user}:${encodeURIComponent(Redacted.value(target.password))}@127.0.0.1:${target.port}/${target.database}`
        const site = yield* HttpSite.startWith("simulated", dsn)
        const { url } = yield* site.daemon
        const tick = clock()
        const names = ["a", "b"]
        const history = histories(names.length)
        const met = { attempts: 0, done: 0, refused: 0, unknown: 0, killed: 0, dethroned: 0 }
        const patient = Schedule.spaced("100 millis").pipe(Schedule.intersect(Schedule.recurs(200)))
        const created = (name: string) =>
          send(`${url}/api/v2/volumes/${name}`, { method: "PUT", json: { size: "1Gi", attached_to: null } }).pipe(
            Effect.filterOrFail(({ status }) => status === 201),
            Effect.retry(patient)
          )
        yield* Effect.forEach(names, created)

        const admin = yield* Effect.acquireRelease(
          Effect.promise(() => Driver.createConnection({ socketPath: running.socket, user: "root" })),
          (connection) => Effect.sync(() => connection.destroy())
        )
        const asked = (text: string) =>
          Effect.promise(async () => (await admin.query<Array<Driver.RowDataPacket>>(text))[0])
        const kill = Effect.gen(function* () {
          yield* Effect.sleep(yield* Random.nextIntBetween(20, 120))
          const rows = yield* asked(
            `SELECT id, id = IS_USED_LOCK('${Leader.lockName(target.database)}') AS seat
              FROM information_schema.processlist WHERE user = '${target.user}' ORDER BY seat DESC, RAND()`
          )
          // The leader's own one seldom: it takes a while until somebody leads again.
          const leads = Number(rows[0]?.["seat"]) === 1
          const dethrone = leads && met.done >= 20 * (met.dethroned + 1)
          const victim = rows[leads && !dethrone ? 1 : 0]?.["id"]
          if (victim === undefined) return
          yield* Effect.ignore(Effect.tryPromise(() => admin.query(`KILL ${victim}`)))
          met[dethrone ? "dethroned" : "killed"] += 1
        })

        const attempt = Effect.fnUntraced(function* (client: number) {
          const key = yield* Random.nextIntBetween(0, names.length)
          met.attempts += 1
          const path = `${url}/api/v2/volumes/${names[key]}`
          const begunRead = tick()
          const seen = yield* send(path)
          if (seen.status !== 200) return
          const found = Number(seen.body["generation"])
          history[key]?.push({ _tag: "Read", client, begun: begunRead, ended: tick(), found })
          const begun = tick()
          const { status } = yield* send(path, {
            method: "PATCH",
            json: { metadata: { by: `${client} ${begun}` } },
            headers: { "if-match": `"${found}"` }
          })
          const known = status === 200 || status === 412
          const outcome = status === 200 ? "done" : status === 412 ? "refused" : "unknown"
          met[outcome] += 1
          history[key]?.push({
            _tag: "Write",
            client,
            begun,
            ended: known ? tick() : null,
            expected: found,
            made: found + 1,
            outcome
          })
        })
        yield* Effect.fork(Effect.withRandom(Effect.forever(kill), Random.make(`${seed} kills`)))
        const enough = () => (met.done >= 80 && met.dethroned >= 2) || met.attempts > 20_000
        yield* clients(seed, (client) =>
          Effect.repeat(Effect.zipRight(Effect.sleep(20), attempt(client)), { until: enough })
        )
        for (const one of history) assertLinearizable(one, seed, 1)
        assert.isAtLeast(met.done, 80)
        assert.isAbove(met.refused, 20)
        assert.isAbove(met.killed, 5)
        assert.isAtLeast(met.dethroned, 2)
      }).pipe(quietly),
    120_000
  )
})

describe("the default isolation of the server", () => {
  const counter = Effect.gen(function* () {
    const { socket, database } = yield* server
    const { database: name } = yield* database()
    const connect = Effect.acquireRelease(
      Effect.promise(() => Driver.createConnection({ socketPath: socket, user: "root", database: name })),
      (connection) => Effect.sync(() => connection.destroy())
    )
    const first = yield* connect
    yield* Effect.promise(() => first.query("CREATE TABLE counter (n INT NOT NULL) ENGINE = InnoDB"))
    yield* Effect.promise(() => first.query("INSERT INTO counter VALUES (0)"))
    return { connect, first }
  })

  const read = (connection: Driver.Connection) =>
    Effect.promise(async () => {
      const [rows] = await connection.query<Array<Driver.RowDataPacket>>("SELECT n FROM counter")
      return Number(rows[0]?.["n"])
    })
  const run = (connection: Driver.Connection, text: string) => Effect.promise(() => connection.query(text))

  it.scopedLive("is REPEATABLE READ, under which reading and then writing loses a write (B8)", () =>
    Effect.gen(function* () {
      const { connect, first } = yield* counter
      const second = yield* connect
      const [isolation] = yield* Effect.promise(() =>
        first.query<Array<Driver.RowDataPacket>>(
          "SHOW VARIABLES WHERE Variable_name IN ('tx_isolation', 'transaction_isolation')"
        )
      )
      assert.strictEqual(isolation[0]?.["Value"], "REPEATABLE-READ")
      for (const connection of [first, second]) {
        // Servers from 11.6 on can refuse it, and do by default.
        yield* Effect.ignore(Effect.tryPromise(() => connection.query("SET SESSION innodb_snapshot_isolation = OFF")))
        yield* run(connection, "BEGIN")
      }
      const seen = [yield* read(first), yield* read(second)]
      assert.deepStrictEqual(seen, [0, 0])
      for (const [at, connection] of [first, second].entries()) {
        yield* run(connection, `UPDATE counter SET n = ${(seen[at] ?? 0) + 1}`)
        yield* run(connection, "COMMIT")
      }
      assert.strictEqual(yield* read(first), 1, "two were added, and one is lost")
    })
  )

  it.scopedLive("is what the histories are checked against: without the guard they have no order", () =>
    Effect.gen(function* () {
      const { connect, first } = yield* counter
      const tick = clock()
      const history: Array<Entry> = []
      const unguarded = Effect.fnUntraced(function* (client: number) {
        const connection = yield* connect
        yield* Effect.ignore(Effect.tryPromise(() => connection.query("SET SESSION innodb_snapshot_isolation = OFF")))
        for (let round = 0; round < 10; round++) {
          const begun = tick()
          yield* run(connection, "BEGIN")
          const expected = yield* read(connection)
          yield* Effect.sleep(2)
          yield* run(connection, `UPDATE counter SET n = ${expected + 1}`)
          yield* run(connection, "COMMIT")
          history.push({ _tag: "Write", client, begun, ended: tick(), expected, made: expected + 1, outcome: "done" })
        }
      })
      yield* clients(1, unguarded)
      assert.isBelow(yield* read(first), history.length)
      assert.isNull(order(history, 0))
    })
  )
})
