import { assert, describe, it } from "@effect/vitest"
import { Effect, Either, Redacted } from "effect"
import * as SqlClient from "@effect/sql/SqlClient"
import * as Fs from "node:fs"
import * as Os from "node:os"
import * as Path from "node:path"
import * as Dsn from "../../src/Store/Dsn.ts"
import * as Mysql from "../../src/Store/Mysql.ts"
import { explain } from "../../src/Store/Transact.ts"
import { loopback, otherName } from "../support/Certificates.ts"
import * as MariaDb from "../support/MariaDb.ts"

/** In one line: user, password, where, database, TLS. */
const read = (text: string): string =>
  Either.match(Dsn.parse(text), {
    onLeft: (problem) => `wrong: ${problem}`,
    onRight: (dsn) => {
      if (dsn._tag === "Sqlite") return `sqlite ${dsn.file}`
      const { user, password, socket, host, port, database, tls } = dsn.target
      const sealed = tls === null ? "plain" : tls.verify ? "verified" : "unverified"
      return [user, Redacted.value(password), socket ?? `${host} ${port}`, database, sealed].join(" | ")
    }
  })

const warnings = (text: string) => Dsn.warnings(Redacted.make(text))

describe("a DATABASE_DSN is read", () => {
  const forms: ReadonlyArray<readonly [dsn: string, means: string]> = [
    ["sqlite:/var/lib/x.db", "sqlite /var/lib/x.db"],
    ["sqlite:///var/lib/x.db", "sqlite /var/lib/x.db"],
    ["sqlite::memory:", "sqlite :memory:"],
    [
      "oma_user:oma_password@tcp(localhost:3306)/migratekit_oma?parseTime=true",
      "oma_user | oma_password | localhost 3306 | migratekit_oma | plain"
    ],
    ["u:p@tcp(db)/x", "u | p | db 3306 | x | plain"],
    ["u:p@tcp(10.0.0.7:3307)/x?charset=utf8mb4&parseTime=True&loc=UTC", "u | p | 10.0.0.7 3307 | x | plain"],
    ["u:p@tcp([fd00::7]:3307)/x", "u | p | fd00::7 3307 | x | plain"],
    ["u:p@tcp([fd00::7])/x", "u | p | fd00::7 3306 | x | plain"],
    ["u:p@tcp(fd00::7)/x", "u | p | fd00::7 3306 | x | plain"],
    ["u:p@unix(/run/mysqld/mysqld.sock)/x", "u | p | /run/mysqld/mysqld.sock | x | plain"],
    ["u:p@unix/x", "u | p | /tmp/mysql.sock | x | plain"],
    ["u:p@tcp/x", "u | p | 127.0.0.1 3306 | x | plain"],
    ["u:p@/x", "u | p | 127.0.0.1 3306 | x | plain"],
    ["u:p@(db:1)/x", "u | p | db 1 | x | plain"],
    ["u@tcp(db)/x", "u |  | db 3306 | x | plain"],
    // The last @ and the last / end what may hold them.
    ["u:a:b@c/d(e)?f#g%@tcp(db:1)/x", "u | a:b@c/d(e)?f#g% | db 1 | x | plain"],
    ["u:p@tcp(db)/x%2Fy", "wrong: names no database"],
    ["u:p@tcp(db)/x%20y?loc=Europe%2FBerlin", "u | p | db 3306 | x y | plain"],
    ["u:p@tcp(db)/x?tls=true", "u | p | db 3306 | x | verified"],
    ["u:p@tcp(db)/x?tls=false", "u | p | db 3306 | x | plain"],
    ["u:p@tcp(db)/x?tls=skip-verify", "u | p | db 3306 | x | unverified"],
    ["u:p@tcp(db)/x?tls=preferred", "u | p | db 3306 | x | unverified"],
    ["u:p@tcp(127.0.0.1)/x?tls=preferred", "u | p | 127.0.0.1 3306 | x | plain"],
    ["u:p@tcp(db)/x?tls=our-ca", "u | p | db 3306 | x | verified"],
    ["u:p@unix(/s)/x?tls=true", "u | p | /s | x | plain"],
    ["mysql://u:p@db/x", "u | p | db 3306 | x | plain"],
    ["mysql://u:p%40%2F%3A%23%25@db:3307/x%20y", "u | p@/:#% | db 3307 | x y | plain"],
    ["mysql://u:p@[fd00::7]:3307/x", "u | p | fd00::7 3307 | x | plain"],
    ["mysql://u:p@localhost/x?socket=%2Frun%2Fs", "u | p | /run/s | x | plain"],
    ["mysql://u:p@db/x?ssl-mode=VERIFY_IDENTITY", "u | p | db 3306 | x | verified"],
    ["mysql://u:p@db/x?ssl-mode=REQUIRED", "u | p | db 3306 | x | verified"],
    ["mysql://u:p@db/x?sslMode=VERIFY_CA", "u | p | db 3306 | x | verified"],
    ["mysql://u:p@db/x?ssl-mode=DISABLED", "u | p | db 3306 | x | plain"],
    ["mysql://u:p@db/x?ssl=true", "u | p | db 3306 | x | verified"],
    // Who names a CA, or uses another driver's word, means TLS.
    ["mysql://u:p@db/x?ssl-ca=%2Fca.pem", "u | p | db 3306 | x | verified"],
    ["mysql://u:p@db/x?ssl-ca=%2Fca.pem&ssl-mode=DISABLED", "u | p | db 3306 | x | plain"],
    ["mysql://u:p@db/x?useSSL=true", "u | p | db 3306 | x | verified"],
    ["mysql://u:p@db/x?requireSSL=true&useSSL=true", "u | p | db 3306 | x | verified"],
    ["mysql://u:p@db/x?useSSL=false", "u | p | db 3306 | x | plain"]
  ]
  it.each(forms)("%s", (dsn, means) => {
    assert.strictEqual(read(dsn), means)
  })

  it("or refused, and then nothing of it is repeated, for any of it may be a password (S20)", () => {
    for (const text of [
      "canary",
      "/canary/x.db",
      "postgres://canary:canary@canary/canary",
      "canary:canary@tcp(db:3306)",
      "canary:canary@udp(db:3306)/x",
      "canary:canary@tcp(db:3306/x",
      "canary:canary@tcp(db:x)/x",
      "canary:canary@tcp(db:66000)/x",
      "canary:canary@tcp(ca nary)/x",
      "canary:canary@unix(canary)/x",
      "canary:canary@tcp(db)/",
      ":canary@tcp(db)/x",
      "canary:canary@tcp(db)/x?loc=Canary/Islands",
      "canary:canary@tcp(db)/x?charset=%zz&y=canary",
      "canary:canary@tcp(db)/x?tls=true&ssl=false",
      "mysql://canary:can/ary@db/x",
      "mysql://canary:can#ary@db/x",
      "mysql://canary:can%ary@db/x",
      "mysql://canary:canary@db/",
      "mysql://canary:canary@db:99999/x",
      "mysql://:canary@db/x",
      "canary:canary\n@tcp(db)/x",
      ""
    ]) {
      const problem = Dsn.problemOf(text)
      assert.isNotNull(problem, text)
      assert.notMatch(problem ?? "", /can|ary/i, text)
    }
  })

  it("with a warning for each option that has not the effect it names", () => {
    const quiet =
      "u:p@tcp(db)/x?parseTime=true&charset=utf8mb4&collation=utf8mb4_bin&loc=UTC&timeout=5s&readTimeout=1s&writeTimeout=1s"
    assert.deepStrictEqual(warnings(quiet), [])
    assert.deepStrictEqual(warnings("u:p@tcp(db)/x?tls=true"), [])
    assert.deepStrictEqual(warnings("mysql://u:p@db/x?useSSL=true"), [])
    assert.deepStrictEqual(warnings("sqlite:/x"), [])
    const told: ReadonlyArray<readonly [options: string, about: RegExp]> = [
      ["loc=Local", /loc .*UTC/],
      ["charset=latin1", /charset .*utf8mb4/],
      ["sessionVariables=x", /option sessionvariables/],
      ["ssl-ca=%2Fca.pem", /DATABASE_CA_FILE/],
      ["tls=skip-verify", /not verified/],
      ["tls=preferred", /not verified/],
      ["tls=our-ca", /taken as tls=true/],
      ["ssl-mode=REQUIRED", /VERIFY_IDENTITY/]
    ]
    for (const [options, about] of told) {
      const [warning, ...more] = warnings(`u:canary@tcp(db)/x?${options}`)
      assert.match(warning ?? "", about, options)
      assert.deepStrictEqual(more, [], options)
      assert.notInclude(warning ?? "", "canary")
    }
    assert.deepStrictEqual(warnings("mysql://u:p@db/x?can%40ary@db=1"), [
      "an option of it is not known and has no effect"
    ])
  })

  it("and named to people without user or password", () => {
    const place = (text: string) => Either.getOrThrow(Either.map(Dsn.parse(text), Dsn.place))
    assert.strictEqual(place("canary:canary@tcp(db:1)/x"), "x on db:1")
    assert.strictEqual(place("canary:canary@tcp([fd00::7])/x"), "x on [fd00::7]:3306")
    assert.strictEqual(place("canary:canary@unix(/s)/x"), "x on /s")
  })
})

const directory = Effect.acquireRelease(
  Effect.sync(() => Fs.mkdtempSync(Path.join(Os.tmpdir(), "volumed-dsn-"))),
  (made) => Effect.sync(() => Fs.rmSync(made, { recursive: true, force: true }))
)

const put = (directory: string, name: string, text: string) => {
  const file = Path.join(directory, name)
  Fs.writeFileSync(file, text, { mode: 0o600 })
  return file
}

describe("TLS to the database", () => {
  it.scopedLive("holds to the certificate and its name, unless the DSN says skip-verify (e4)", () =>
    Effect.gen(function* () {
      const made = yield* directory
      const cert = put(made, "cert.pem", loopback.cert)
      const other = put(made, "other.pem", otherName.cert)
      const server = yield* MariaDb.start(`--ssl-cert=${cert}`, `--ssl-key=${put(made, "key.pem", loopback.key)}`)
      const { user, password, database } = yield* server.database()
      /** The cipher, or why there is no connection. */
      const connect = (host: string, options: string, ca: string | null) =>
        Effect.gen(function* () {
          const text = `${user}:${Redacted.value(password)}@tcp(${host}:${server.port})/${database}${options}`
          const dsn = yield* Dsn.resolve(Redacted.make(text), ca)
          if (dsn._tag === "Sqlite") return yield* Effect.dieMessage("a MySQL DSN was meant")
          const status = Effect.flatMap(
            SqlClient.SqlClient,
            (sql) => sql<{ Value: string }>`SHOW STATUS LIKE 'Ssl_cipher'`
          )
          const rows = yield* Effect.mapError(Effect.provide(status, Mysql.layer(dsn.target)), explain)
          return rows[0]?.Value === "" ? "plain" : "encrypted"
        }).pipe(Effect.merge, Effect.map(String), Effect.scoped)
      assert.strictEqual(yield* connect("127.0.0.1", "", null), "plain")
      assert.strictEqual(yield* connect("127.0.0.1", "?tls=true", cert), "encrypted")
      assert.strictEqual(yield* connect("127.0.0.1", "?tls=skip-verify", null), "encrypted")
      assert.match(yield* connect("127.0.0.1", "?tls=true", null), /self-signed/)
      assert.match(yield* connect("127.0.0.1", "?tls=true", other), /self-signed|unable to verify/)
      // The certificate is one for the address, not for the name.
      assert.match(yield* connect("localhost", "?tls=true", cert), /does not match/)
      assert.match(yield* connect("127.0.0.1", "", cert), /DATABASE_CA_FILE.* does not ask/)
      assert.match(
        yield* connect("127.0.0.1", "?tls=true", Path.join(made, "none.pem")),
        /DATABASE_CA_FILE.* cannot be read/
      )
    })
  )

  it.scopedLive("is refused by a server that has none, rather than left out", () =>
    Effect.gen(function* () {
      const server = yield* MariaDb.start("--skip-ssl")
      const target = yield* server.database()
      const ask = (tls: Mysql.Target["tls"]) =>
        Effect.flatMap(SqlClient.SqlClient, (sql) => sql`SELECT 1`).pipe(
          Effect.provide(Mysql.layer({ ...target, tls })),
          Effect.mapError(explain),
          Effect.flip
        )
      assert.match(yield* ask({ ca: null, verify: false }), /does not support/)
      assert.match(yield* ask({ ca: null, verify: true }), /does not support/)
    })
  )
})
