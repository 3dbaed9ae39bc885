import { assert, describe, it } from "@effect/vitest"
import { Effect, Layer, Redacted, type Scope } from "effect"
import { existsSync, mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import type { VmId } from "../../schema/Ids.ts"
import { exclusively } from "../../src/Store/Exclusive.ts"
import * as Leader from "../../src/Store/Leader.ts"
import { SCHEMA_VERSION } from "../../src/Store/Migrate.ts"
import * as Mysql from "../../src/Store/Mysql.ts"
import * as Sqlite from "../../src/Store/Sqlite.ts"
import * as MariaDb from "../support/MariaDb.ts"
import * as Child from "./Child.ts"

const APPLIANCE = "8a4400e5-c92a-4bc4-8bff-4b6b0b6a018c" as VmId

const run = (dsn: string, ...args: ReadonlyArray<string>) =>
  Effect.promise(() =>
    Child.run(["migrate", ...args], {
      env: {
        DATABASE_DSN: dsn,
        APPLIANCE_VM_ID: APPLIANCE,
        STATE_DIR: tmpdir(),
        CLOUDSTACK_API_URL: "https://cloudstack.example.com",
        CLOUDSTACK_API_KEY: "key",
        CLOUDSTACK_SECRET_KEY: "secret"
      }
    })
  )

const expecting = (ended: Child.Ended, code: number, found: RegExp) => {
  assert.strictEqual(ended.code, code, ended.stdout + ended.stderr)
  assert.match(ended.stdout + ended.stderr, found)
}

interface Place {
  readonly db: MariaDb.MariaDb
  readonly target: Mysql.Target
  readonly dsn: string
  readonly tables: Effect.Effect<number>
}

const mariaDb: Effect.Effect<Place, never, Scope.Scope> = Effect.gen(function* () {
  const db = yield* MariaDb.start()
  const target = yield* db.database("volumed")
  const count = "SELECT COUNT(*) AS n FROM information_schema.tables WHERE table_schema = DATABASE()"
  return {
    db,
    target,
    dsn: `mysql://${target.user}:${encodeURIComponent(Redacted.value(target.password))}@127.0.0.1:${target.port}/volumed`,
    tables: Effect.map(db.query("volumed", count), ([rows]) => Number((rows as ReadonlyArray<{ n: number }>)[0]?.n))
  }
})

/** For as long as the scope lives another process, as it were, leads. */
const leading = (target: Mysql.Target) =>
  Layer.build(Leader.layerElected({ target, appliance_vm_id: APPLIANCE, acceptable: Effect.void }))

describe("migrate", () => {
  it.scoped("says what is pending and changes nothing, then does it when it is told to, once (B9)", () =>
    Effect.gen(function* () {
      const { dsn, tables } = yield* mariaDb
      expecting(yield* run(dsn, "--check"), 2, new RegExp(`has schema 0, and ${SCHEMA_VERSION} is needed`, "u"))
      expecting(yield* run(dsn), 1, /no terminal to ask on/u)
      assert.strictEqual(yield* tables, 0)
      expecting(yield* run(dsn, "--yes"), 0, /is up to date/u)
      expecting(yield* run(dsn, "--yes"), 0, /is up to date/u)
      const checked = yield* run(dsn, "--check", "-o", "json")
      const known = SCHEMA_VERSION
      assert.deepStrictEqual(JSON.parse(checked.stdout), {
        state: "current",
        known,
        found: known,
        pending: [],
        differences: []
      })
      assert.strictEqual(checked.code, 0)
    })
  )

  it.scoped("leaves a newer schema, and one that is another program's, as they are (B9)", () =>
    Effect.gen(function* () {
      const { db, dsn } = yield* mariaDb
      yield* db.query("volumed", "CREATE TABLE declarations (what INT)")
      for (const args of [["--check"], ["--yes"]]) expecting(yield* run(dsn, ...args), 1, /declarations/u)
      yield* db.query("volumed", "DROP TABLE declarations")
      expecting(yield* run(dsn, "--yes"), 0, /is up to date/u)
      yield* db.query(
        "volumed",
        "INSERT INTO schema_version (id, name, applied_at) VALUES (9999, 'later', '2030-01-01')"
      )
      for (const args of [["--check"], ["--yes"]]) expecting(yield* run(dsn, ...args), 1, /written by a newer volumed/u)
    })
  )

  it.scoped("does not begin while a daemon leads, and says which (S16)", () =>
    Effect.gen(function* () {
      const { db, dsn, target } = yield* mariaDb
      yield* leading(target)
      // As if the program were newer than the one that leads.
      yield* db.query("volumed", `DELETE FROM schema_version WHERE id = ${SCHEMA_VERSION}`)
      expecting(yield* run(dsn, "--check"), 2, /Pending/u)
      const ended = yield* run(dsn, "--yes")
      expecting(ended, 1, /a volumed leads on this database \(\S+ pid \d+\): stop it first/u)
      assert.notInclude(ended.stderr, "secret of")
    })
  )

  it.scoped("ends when the lock is lost meanwhile (M2)", () =>
    Effect.gen(function* () {
      const { db, target } = yield* mariaDb
      let interrupted = false
      const kill = db.query("", `SET @owner = IS_USED_LOCK('${Leader.lockName(target.database)}')`, "KILL @owner")
      const body = Effect.onInterrupt(Effect.andThen(kill, Effect.never), () =>
        Effect.sync(() => void (interrupted = true))
      )
      const error = yield* Effect.flip(exclusively(target, body)).pipe(Effect.provide(Mysql.layer(target)))
      assert.strictEqual(error._tag, "StoreUnavailable")
      assert.isTrue(interrupted)
    })
  )

  it.scoped("works on a file, makes none by looking, and does not take one away from its owner", () =>
    Effect.gen(function* () {
      const folder = yield* Effect.acquireRelease(
        Effect.sync(() => mkdtempSync(join(tmpdir(), "volumed-migrate-"))),
        (path) => Effect.sync(() => rmSync(path, { recursive: true }))
      )
      const file = join(folder, "volumed.db")
      expecting(yield* run(`sqlite:${file}`, "--check"), 2, /Pending/u)
      assert.isFalse(existsSync(file))
      expecting(yield* run(`sqlite:${file}`, "--yes"), 0, /is up to date/u)
      expecting(yield* run(`sqlite:${file}`, "--check"), 0, /is up to date/u)
      yield* Layer.build(Sqlite.layer(file))
      expecting(yield* run(`sqlite:${file}`, "--check"), 1, /another process has/u)
    })
  )
})
