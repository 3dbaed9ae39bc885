import { afterAll, assert, beforeAll, describe, it } from "@effect/vitest"
import { Effect, Exit, Redacted, Scope } from "effect"
import { mkdtempSync, readFileSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as MariaDb from "../support/MariaDb.ts"
import * as Child from "./Child.ts"

const OFFERING = "c813c642-d946-49e1-9289-c616dd70206a"
const ZONE = "057e86db-c726-4d8c-ab1f-75c5f55d1881"

/** The built daemon on a MariaDB whose table ossea_configs says where the simulated CloudStack is. */
describe("a daemon with nothing but DATABASE_DSN", () => {
  const scope = Effect.runSync(Scope.make())
  const dir = mkdtempSync(join(tmpdir(), "volumed-ossea-"))
  let world: ReturnType<typeof Child.start>
  let server: MariaDb.MariaDb
  let database = ""
  let env: Record<string, string> = {}
  let cloud: Record<string, string> = {}

  const sql = (...statements: ReadonlyArray<string>) => Effect.runPromise(server.query(database, ...statements))

  const insert = (name: string, zone: string) =>
    `INSERT INTO ossea_configs VALUES ('${name}', '${
      cloud["CLOUDSTACK_API_URL"]
    }', '${cloud["CLOUDSTACK_API_KEY"]}', '${cloud["CLOUDSTACK_SECRET_KEY"]}', '${zone}', 'OSSEA', 1)`

  beforeAll(async () => {
    world = Child.start(["sandbox", "--state", dir])
    await Child.said(world, "stdout", /sandbox\.env/)
    server = await Effect.runPromise(Scope.extend(MariaDb.start(), scope))
    const target = await Effect.runPromise(server.database())
    database = target.database
    const lines = readFileSync(join(dir, "sandbox.env"), "utf8").matchAll(/^(\w+)='(.*)'$/gmu)
    const all = [...lines].map(([, key = "", value = ""]) => [key, value] as const)
    cloud = Object.fromEntries(all.filter(([key]) => key.startsWith("CLOUDSTACK_")))
    env = {
      ...Object.fromEntries(all.filter(([key]) => !key.startsWith("CLOUDSTACK_") && key !== "DEFAULT_ZONE_ID")),
      DATABASE_DSN: `${target.user}:${Redacted.value(target.password)}@tcp(127.0.0.1:${server.port})/${database}?parseTime=true&loc=Local`,
      LISTEN: "127.0.0.1:0"
    }
    await sql(
      `CREATE TABLE ossea_configs (name VARCHAR(255), api_url VARCHAR(255), api_key VARCHAR(255),
        secret_key VARCHAR(255), zone VARCHAR(255), domain VARCHAR(255), is_active TINYINT(1))`
    )
  }, 60_000)

  afterAll(async () => {
    await Child.stop(world)
    await Effect.runPromise(Scope.close(scope, Exit.void))
    rmSync(dir, { recursive: true, force: true })
  })

  it("stops and prints both ways where there is no active row, or more than one", async () => {
    await sql("DELETE FROM ossea_configs")
    const none = await Child.run(["serve"], { env })
    assert.strictEqual(none.code, 1)
    assert.include(none.stderr, "no active row")
    assert.include(none.stderr, "https://cloudstack.example.com/client/api")
    assert.include(none.stderr, "user:pass@tcp(127.0.0.1:3306)/db?parseTime=true")
    await sql(insert("one", ZONE), insert("two", ZONE))
    const two = await Child.run(["serve"], { env })
    assert.strictEqual(two.code, 1)
    assert.include(two.stderr, '("one", "two")')
  }, 30_000)

  it("is told by doctor that the rows cannot be used, also where only the zone is wanted of them", async () => {
    await sql("DELETE FROM ossea_configs", insert("one", ZONE), insert("two", ZONE))
    const { stdout } = await Child.run(["doctor"], { env: { ...env, ...cloud } })
    assert.match(stdout, /^warn +CloudStack is +.*several active rows \("one", "two"\)/mu)
    assert.notInclude(stdout, cloud["CLOUDSTACK_SECRET_KEY"] ?? "none")
  }, 30_000)

  it("prints results alone on stdout where a command looks by itself: what is logged goes to stderr", async () => {
    await sql("DELETE FROM ossea_configs", insert("prod", ZONE))
    const doctor = await Child.run(["doctor", "-o", "json"], { env })
    assert.include(Object.keys(JSON.parse(doctor.stdout)), "checks")
    await sql("UPDATE ossea_configs SET is_active = 0")
    const noted = await Child.run(["doctor", "-o", "json"], { env: { ...env, ...cloud } })
    assert.include(Object.keys(JSON.parse(noted.stdout)), "checks")
    assert.include(noted.stderr, "no active row")
  }, 30_000)

  it("works by the active row, its zone being that of volumes that name none, and tells nobody the keys (S20)", async () => {
    await sql("DELETE FROM ossea_configs", insert("prod", "sandbox"))
    const daemon = Child.start(["serve"], { env })
    const ended = Child.collect(daemon)
    const [, url = ""] = await Child.said(daemon, "stderr", /ready on (http[^\s;]+)/)
    try {
      const offered = await Child.run(["offerings", "--server", url, "-o", "json"], { env })
      assert.strictEqual(JSON.parse(offered.stdout).default_zone_id, ZONE, offered.stderr)
      const body = JSON.stringify({ size: "1GiB", disk_offering_id: OFFERING })
      const headers = { "content-type": "application/json" }
      const put = await fetch(`${url}/api/v2/volumes/a`, { method: "PUT", headers, body })
      const made = (await put.json()) as { readonly spec?: { readonly zone_id?: string } }
      assert.deepStrictEqual([put.status, made.spec?.zone_id], [201, ZONE])
      const planned = await Child.run(["plan", "--server", url, "-o", "json"], { env })
      assert.include(planned.stdout, cloud["CLOUDSTACK_API_URL"] ?? "")
      const doctor = await Child.run(["doctor", "--server", url], { env })
      assert.match(
        doctor.stdout,
        /ok +CloudStack is .*domain OSSEA, from the settings, URL and keys from the row "prod"/u
      )
      assert.match(doctor.stdout, new RegExp(`ok +zone +sandbox \\(${ZONE}\\)`, "u"))
      assert.match(doctor.stdout, /warn +DATABASE_DSN +its loc is not followed/u)
      assert.match(doctor.stdout, /ok +database +mariadb 1/u)
      assert.notInclude(doctor.stdout + planned.stdout, cloud["CLOUDSTACK_SECRET_KEY"] ?? "none")
    } finally {
      await Child.stop(daemon)
    }
    const { stdout, stderr } = await ended
    assert.include(stderr, "its loc is not followed")
    for (const secret of [cloud["CLOUDSTACK_SECRET_KEY"], cloud["CLOUDSTACK_API_KEY"], "secret of"])
      assert.notInclude(stdout + stderr, secret ?? "none")
  }, 60_000)

  it("is refused a database that may lose what it acknowledged, with --require-durable", async () => {
    await sql("DELETE FROM ossea_configs", insert("prod", ZONE), "SET GLOBAL innodb_flush_log_at_trx_commit = 2")
    const refused = await Child.run(["serve", "--require-durable"], { env })
    await sql("SET GLOBAL innodb_flush_log_at_trx_commit = 1")
    assert.strictEqual(refused.code, 1)
    assert.include(refused.stderr, "innodb_flush_log_at_trx_commit is 2: set it to 1")
  }, 30_000)
})
