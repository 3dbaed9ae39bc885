import { assert, describe, it } from "@effect/vitest"
import { Deferred, Effect, Fiber, Layer, Logger, Redacted, Ref, type Scope, TestClock, TestServices } from "effect"
import type { Settings } from "../../schema/Settings.ts"
import { ZoneId } from "../../schema/Ids.ts"
import * as Wire from "../../schema/CloudStack.ts"
import * as Client from "../../src/CloudStack/Client.ts"
import * as Credentials from "../../src/CloudStack/Credentials.ts"
import * as Http from "../../src/CloudStack/Http.ts"
import * as Transport from "../../src/CloudStack/Transport.ts"
import * as MariaDb from "../support/MariaDb.ts"
import * as Fake from "./FakeCloudStack.ts"

/** The table as its documents show its columns; whoever made it may have added more. */
const TABLE = `CREATE TABLE ossea_configs (id INT AUTO_INCREMENT PRIMARY KEY, name VARCHAR(255) NOT NULL,
  api_url VARCHAR(512), api_key VARCHAR(512), secret_key VARCHAR(512), domain VARCHAR(255), Zone VARCHAR(255),
  template_id VARCHAR(191), is_active TINYINT(1) DEFAULT 1, created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP)`

const ZONE = "057e86db-c726-4d8c-ab1f-75c5f55d1881"

interface Row {
  readonly name: string
  readonly api_url?: string
  readonly api_key?: string
  readonly secret_key?: string
  readonly is_active?: number
}

const insert = ({ name, api_url = "https://row.example.com", api_key, secret_key, is_active = 1 }: Row): string =>
  `INSERT INTO ossea_configs (name, api_url, api_key, secret_key, domain, zone, is_active) VALUES ('${name}',
    '${api_url}', '${api_key ?? `CANARY-key-${name}`}', '${secret_key ?? `CANARY-secret-${name}`}', 'OSSEA', '${ZONE}',
    ${is_active})`

const open = { api_url: null, api_key: null, secret_key: null }

interface Site {
  readonly server: MariaDb.MariaDb
  readonly database: string
  readonly sql: (...statements: ReadonlyArray<string>) => Effect.Effect<unknown>
  readonly settings: (
    cloudstack?: Partial<Settings["cloudstack"]>,
    default_zone_id?: Settings["default_zone_id"]
  ) => Parameters<typeof Credentials.layer>[0]
}

const site: Effect.Effect<Site, never, Scope.Scope> = Effect.gen(function* () {
  const server = yield* MariaDb.start()
  const { database, user, password } = yield* server.database()
  const dsn = `${user}:${Redacted.value(password)}@tcp(127.0.0.1:${server.port})/${database}?parseTime=true`
  return {
    server,
    database,
    sql: (...statements) => server.query(database, ...statements),
    settings: (cloudstack = {}, default_zone_id = null) => ({
      cloudstack: Fake.config({ ...open, ...cloudstack }),
      database_dsn: Redacted.make(dsn),
      database_ca_file: null,
      default_zone_id
    })
  }
})

/** In one line, with the keys laid bare. */
const text = (known: Credentials.Known | null): string => {
  if (known === null) return "none"
  const { api_url, api_key, secret_key } = known.credential
  return [api_url, Redacted.value(api_key), Redacted.value(secret_key), known.zone, known.domain].join(" ")
}

const build = (settings: Parameters<typeof Credentials.layer>[0]) =>
  Effect.flatMap(Layer.build(Credentials.layer(settings)), (context) =>
    Effect.provide(Credentials.Credentials, context)
  )

/** A turn of the real clock, for what goes over a real socket. */
const moment = TestServices.provideLive(Effect.sleep(20))

/** Lets the test's clock pass until it is so; fails after a few minutes of it. */
const until = (so: Effect.Effect<boolean>) =>
  Effect.gen(function* () {
    for (let tries = 0; tries < 500; tries += 1) {
      if (yield* so) return
      yield* TestClock.adjust(500)
      yield* moment
    }
    return yield* Effect.dieMessage("it did not come to be so")
  })

const zones = (read: Client.Read) => read("listZones", {}, (body) => Wire.page("listZones", "zone", body))

describe("CloudStack's URL and keys", () => {
  it.scopedLive("come from the active row of ossea_configs where the settings leave them open", () =>
    Effect.gen(function* () {
      const { sql, settings } = yield* site
      yield* sql(TABLE, insert({ name: "old", is_active: 0 }), insert({ name: "prod" }))
      const known = (change?: Partial<Settings["cloudstack"]>, zone?: ZoneId) =>
        Effect.scoped(Effect.flatMap(build(settings(change, zone)), ({ current }) => Effect.map(current, text)))
      const url = "https://row.example.com/client/api"
      const keys = "CANARY-key-prod CANARY-secret-prod"
      const own = { api_url: "https://env.example.com/client/api" }
      const ownKeys = { api_key: Redacted.make("ek"), secret_key: Redacted.make("es") }
      assert.strictEqual(yield* known(), `${url} ${keys} ${ZONE} OSSEA`)
      assert.strictEqual(yield* known(own), `${own.api_url} ${keys} ${ZONE} OSSEA`)
      assert.strictEqual(yield* known(ownKeys), `${url} ek es ${ZONE} OSSEA`)
      assert.strictEqual(yield* known({ ...own, ...ownKeys }), `${own.api_url} ek es ${ZONE} OSSEA`)
      const zone = ZoneId.make("11111111-2222-4333-8444-555555555555")
      assert.strictEqual(yield* known({}, zone), `${url} ${keys} ${zone} OSSEA`)
      assert.strictEqual(yield* known({ ...own, ...ownKeys }, zone), `${own.api_url} ek es ${zone} `)
    })
  )

  it.scopedLive("stop the start where the database answers and has no one row to go by, and say both ways", () =>
    Effect.gen(function* () {
      const { sql, settings } = yield* site
      const refusal = (change?: Partial<Settings["cloudstack"]>) =>
        Effect.map(Effect.flip(Effect.scoped(build(settings(change)))), ({ message }) => {
          assert.notInclude(message, "CANARY")
          return message
        })
      const none = yield* refusal()
      assert.include(none, "no table ossea_configs")
      assert.include(none, "https://cloudstack.example.com/client/api")
      assert.include(none, "user:pass@tcp(127.0.0.1:3306)/db?parseTime=true")
      yield* sql(TABLE, insert({ name: "old", is_active: 0 }))
      assert.include(yield* refusal(), "no active row")
      yield* sql(insert({ name: "one" }), insert({ name: "two" }))
      assert.include(yield* refusal(), 'several active rows ("one", "two")')
      const wrong: ReadonlyArray<readonly [row: Omit<Row, "name">, words: string]> = [
        [{ api_url: "http://10.0.0.9:8080/client/api" }, "plain http"],
        [{ api_url: "https://169.254.169.254/" }, "never CloudStack"],
        [{ api_url: "https://CANARY:CANARY@cloud.example.com/" }, "holds a user or password"],
        [{ api_url: "file:///etc/CANARY" }, "is not an https URL"],
        [{ api_url: "" }, "its api_url is empty"],
        [{ api_key: "CANARY CANARY" }, "its api_key is empty, too long, or holds a blank"],
        [{ api_key: "", secret_key: "" }, "its secret_key is empty or missing"]
      ]
      for (const [row, words] of wrong) {
        yield* sql("DELETE FROM ossea_configs", insert({ name: "bad", ...row }))
        assert.include(yield* refusal(), words)
      }
      yield* sql("ALTER TABLE ossea_configs DROP COLUMN is_active")
      assert.include(yield* refusal(), "no column is_active")
      const own = { api_url: "https://env.example.com", api_key: Redacted.make("k"), secret_key: Redacted.make("s") }
      const { current } = yield* build(settings(own))
      assert.strictEqual(text(yield* current), "https://env.example.com k s  ", "where nothing is needed of it")
    })
  )

  it.scopedLive("come from the row that says 1, not from one that its column's type takes for it", () =>
    Effect.gen(function* () {
      const { sql, settings } = yield* site
      const found = Effect.scoped(Effect.flatMap(build(settings()), ({ current }) => Effect.map(current, text)))
      const rows = [insert({ name: "old", is_active: 0 }), insert({ name: "prod" })]
      for (const type of ["BIT(1)", "BOOLEAN", "VARCHAR(5)", "CHAR(1)", "INT"]) {
        yield* sql("DROP TABLE IF EXISTS ossea_configs", TABLE.replace("TINYINT(1)", type), ...rows)
        assert.include(yield* found, "CANARY-key-prod", type)
      }
      const enumerated = (type: string, no: string, yes: string) =>
        sql(
          "DROP TABLE IF EXISTS ossea_configs",
          TABLE.replace("TINYINT(1) DEFAULT 1", "VARCHAR(9)"),
          ...rows,
          `UPDATE ossea_configs SET is_active = IF(name = 'prod', '${yes}', '${no}')`,
          `ALTER TABLE ossea_configs MODIFY is_active ${type}`
        )
      // Compared with a number, an ENUM is the place of its word, which is 1 for the first.
      yield* enumerated("ENUM('0','1')", "0", "1")
      assert.include(yield* found, "CANARY-key-prod")
      yield* enumerated("ENUM('inactive','active')", "inactive", "active")
      assert.include((yield* Effect.flip(found)).message, "no active row")
      yield* sql("DROP TABLE ossea_configs", TABLE.replace("TINYINT(1)", "VARCHAR(9)"), ...rows)
      yield* sql("UPDATE ossea_configs SET is_active = '1x' WHERE name = 'old'")
      assert.include(yield* found, "CANARY-key-prod")
    })
  )

  it.scopedLive("are needed in the settings where the database is the embedded one", () =>
    Effect.gen(function* () {
      const settings = {
        cloudstack: Fake.config(open),
        database_dsn: Redacted.make("sqlite:/x"),
        database_ca_file: null
      }
      const { message } = yield* Effect.flip(Effect.scoped(build({ ...settings, default_zone_id: null })))
      assert.include(message, "CLOUDSTACK_API_URL")
    })
  )

  it.scoped("are waited for while the database is away, kept when it goes, and renewed when the row changes", () =>
    Effect.gen(function* () {
      const { server, sql, settings } = yield* site
      yield* sql(TABLE, insert({ name: "a" }))
      yield* server.kill
      const { current, problem } = yield* build(settings())
      const knows = (words: string) => Effect.map(current, (known) => text(known).includes(words))
      assert.strictEqual(text(yield* current), "none")
      assert.match((yield* problem) ?? "", /cannot be read/)
      yield* server.start
      yield* until(knows("CANARY-key-a"))
      assert.isNull(yield* problem)
      yield* server.kill
      yield* until(Effect.map(problem, (text) => text !== null))
      assert.isTrue(yield* knows("CANARY-key-a"), "what was known last stays")
      yield* server.start
      yield* until(Effect.map(problem, (text) => text === null))
      yield* sql("UPDATE ossea_configs SET api_url = 'http://10.0.0.9/'")
      yield* until(Effect.map(problem, (text) => text !== null && text.includes("plain http")))
      assert.isTrue(yield* knows("https://row.example.com/client/api CANARY-key-a"), "a bad row changes nothing")
      yield* sql("UPDATE ossea_configs SET is_active = 0", insert({ name: "b", api_url: "https://b.example.com" }))
      yield* until(knows("https://b.example.com/client/api CANARY-key-b CANARY-secret-b"))
      assert.isNull(yield* problem)
    })
  )
})

describe("a call", () => {
  it.scoped("that is under way when the keys change ends with the old ones; one refused with them is signed anew", () =>
    Effect.gen(function* () {
      const { sql, settings } = yield* site
      yield* sql(TABLE, insert({ name: "a" }))
      const credentials = yield* build(settings())
      const valid = { key: "CANARY-key-a" }
      const fake = Fake.inMemory(({ parameters }) =>
        parameters["apikey"] === valid.key
          ? { ...reply, delay_ms: 2_000 }
          : Fake.error("listZones", 401, "unable to verify")
      )
      const transport = yield* Transport.make(Fake.config(open)).pipe(
        Effect.provideService(Credentials.Credentials, credentials),
        Effect.provide(fake.layer)
      )
      const read = Client.reader(transport)
      const early = yield* Effect.fork(zones(read))
      yield* until(Effect.sync(() => fake.calls.length === 1))
      yield* sql("UPDATE ossea_configs SET api_key = 'CANARY-key-z', secret_key = 'CANARY-secret-z'")
      // Its key is the old one, and was good when it was signed.
      yield* TestClock.adjust(2_000)
      assert.strictEqual((yield* Fiber.join(early)).rows.length, 1)
      valid.key = "CANARY-key-z"
      const late = yield* Effect.fork(zones(read))
      yield* until(Effect.map(Fiber.status(late), ({ _tag }) => _tag === "Done"))
      assert.strictEqual((yield* Fiber.join(late)).rows.length, 1)
      const keys = fake.calls.map(({ parameters }) => parameters["apikey"])
      assert.deepStrictEqual(keys, ["CANARY-key-a", "CANARY-key-a", "CANARY-key-z"])
    })
  )

  it.effect("to another URL expires by that server's clock, not by the last one's (C9)", () =>
    Effect.gen(function* () {
      const known = (api_url: string): Credentials.Known => ({
        credential: { api_url, api_key: Redacted.make("k"), secret_key: Redacted.make("s") },
        zone: null,
        domain: null,
        source: "the test"
      })
      const state = yield* Ref.make(known("https://a.example.com"))
      const fake = Fake.inMemory(() => ({ ...reply, headers: { date: "Thu, 01 Jan 1970 02:00:00 GMT" } }))
      const transport = yield* Transport.make(Fake.config(open)).pipe(
        Effect.provideService(Credentials.Credentials, { ...Credentials.fixed(known("")), current: Ref.get(state) }),
        Effect.provide(fake.layer)
      )
      const read = Client.reader(transport)
      yield* Effect.andThen(zones(read), zones(read))
      assert.isTrue(yield* transport.knowsClock)
      yield* Ref.set(state, known("https://b.example.com"))
      assert.isFalse(yield* transport.knowsClock)
      yield* zones(read)
      assert.deepStrictEqual(
        fake.calls.map(({ parameters }) => parameters["expires"]),
        ["1970-01-01T00:01:00.000Z", "1970-01-01T02:01:00.000Z", "1970-01-01T00:01:00.000Z"]
      )
    })
  )

  it.scoped("is not sent while there are no keys, and is no unknown outcome", () =>
    Effect.gen(function* () {
      const { server, settings } = yield* site
      yield* server.kill
      const fake = Fake.inMemory(() => reply)
      const transport = yield* Transport.make(Fake.config(open)).pipe(
        Effect.provideService(Credentials.Credentials, yield* build(settings())),
        Effect.provide(fake.layer)
      )
      const unread = yield* Effect.flip(zones(Client.reader(transport)))
      assert.strictEqual(unread._tag === "CloudStackUnavailable" ? unread.kind : unread._tag, "unconfigured")
      const mutate = yield* Client.mutator(transport, { check: Effect.void, reason: Effect.succeed(null) })
      const refused = yield* Effect.flip(mutate("detachVolume", { id: "x" }, Effect.void, () => Wire.createAnswer("")))
      assert.isTrue(refused._tag === "CloudStackRefused" && refused.never_sent)
      assert.strictEqual(fake.calls.length, 0)
    })
  )

  it.scopedLive("goes with the keys of one row to the URL of the same row, however often they change (S20)", () =>
    Effect.gen(function* () {
      const lines: Array<string> = []
      const logging = Logger.replace(
        Logger.defaultLogger,
        Logger.make((options) => void lines.push(Logger.stringLogger.log(options)))
      )
      const { sql, settings } = yield* site
      const a = yield* Fake.onLoopback(() => reply)
      const b = yield* Fake.onLoopback(() => reply)
      yield* sql(TABLE, insert({ name: "a", api_url: a.url }), insert({ name: "b", api_url: b.url, is_active: 0 }))
      const credentials = yield* build(settings()).pipe(Effect.provide(logging))
      const transport = yield* Transport.make(Fake.config(open)).pipe(
        Effect.provideService(Credentials.Credentials, credentials),
        Effect.provide(yield* Layer.build(Http.layer(Fake.config(open))))
      )
      const stop = yield* Deferred.make<void>()
      const calling = yield* zones(Client.reader(transport)).pipe(
        Effect.forever,
        Effect.raceFirst(Deferred.await(stop)),
        Effect.replicateEffect(4, { concurrency: 4, discard: true }),
        Effect.fork
      )
      for (const active of ["b", "a", "b"] as const) {
        yield* sql(`UPDATE ossea_configs SET is_active = (name = '${active}')`)
        const other = active === "a" ? a : b
        const before = other.calls.length
        // As if its keys had been refused: the row is read again at once, though never twice within a second.
        const again = Effect.flatMap(credentials.current, (known) =>
          known === null ? Effect.void : credentials.refused(known.credential)
        )
        for (let tries = 0; tries < 100 && other.calls.length === before; tries += 1)
          yield* Effect.andThen(again, Effect.sleep(50))
        assert.isAbove(other.calls.length, before, `the row ${active} is not in use`)
      }
      yield* Deferred.succeed(stop, undefined)
      yield* Fiber.join(calling)
      for (const [server, key] of [
        [a, "CANARY-key-a"],
        [b, "CANARY-key-b"]
      ] as const)
        assert.deepStrictEqual([...new Set(server.calls.map(({ parameters }) => parameters["apikey"]))], [key])
      assert.isTrue(lines.some((line) => line.includes("CloudStack settings")))
      assert.notInclude(lines.join("\n"), "CANARY")
    })
  )
})

const reply = { body: Fake.fixture("listZones") }
