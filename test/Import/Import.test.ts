import { assert, describe, it } from "@effect/vitest"
import { Effect, Redacted } from "effect"
import Database from "libsql"
import * as Fs from "node:fs"
import { dirname, join } from "node:path"
import type { ExportAnswer, Volume } from "../../schema/Api.ts"
import { exportNameOf, serialOf, type VolumeId } from "../../schema/Ids.ts"
import type * as Mysql from "../../src/Store/Mysql.ts"
import type * as Child from "../Cli/Child.ts"
import * as Documented from "../Store/Documented.ts"
import * as MariaDb from "../support/MariaDb.ts"
import * as Appliance from "./Appliance.ts"
import * as Old from "./Old.ts"

/**
 * The way in, end to end with the built program: a MariaDB that is filled the way the older daemon fills it, its exports
 * on a real nbd-server, a look, the import, and a daemon that makes everything its own without moving a disk.
 */
const GONE = "deadbeef-0000-4000-8000-000000000000"
const SIZE = String(1024 ** 3)

interface Left {
  readonly letter: VolumeId
  readonly byId: VolumeId
  readonly elsewhere: VolumeId
  readonly loose: VolumeId
  readonly wrong: VolumeId
  readonly letterDisk: string
}

const leave = (site: Appliance.Appliance) =>
  Effect.gen(function* () {
    const appliance = site.env["APPLIANCE_VM_ID"] ?? ""
    const other = site.vms.find((vm) => vm !== appliance) ?? null
    const left: Left = {
      letter: yield* site.volume("pgtest2-disk-0", appliance),
      byId: yield* site.volume("pgtest2-disk-1", appliance),
      elsewhere: yield* site.volume("on the test VM", other),
      loose: yield* site.volume("loose", null),
      wrong: yield* site.volume("wrong letter", appliance),
      letterDisk: ""
    }
    const letterDisk = yield* site.diskOf(left.letter)
    yield* site.diskOf(left.byId)
    yield* site.diskOf(left.wrong)
    return { ...left, letterDisk, appliance, other: other ?? "" }
  })

type All = Effect.Effect.Success<ReturnType<typeof leave>>

const byIdLink = (site: Appliance.Appliance, id: VolumeId) =>
  join(site.env["BY_ID_DIR"] ?? "", `virtio-${serialOf(id)}`)

/** As the older daemon wrote it: letters beside by-id paths, a name of its own beside those by volume. */
const config = (site: Appliance.Appliance, left: All) =>
  [
    "# kept as it is",
    "[generic]",
    "listenaddr = 127.0.0.1",
    `port = ${site.env["NBD_PORT"]}`,
    "allowlist = true",
    `includedir = ${join(site.dir, "nbd", "conf.d")}`,
    "[dummy]",
    `exportname = ${join(site.dir, "dummy.img")}`,
    "[migration-vm-PGTEST2]",
    `exportname = ${join(site.dir, "dev", left.letterDisk)}`,
    "readonly = true",
    ""
  ].join("\n")

const OTHERS = "# not volumed's\n[other]\nexportname = /dev/null\nreadonly = true\n"

/** In a file that the first one includes. */
const included = (site: Appliance.Appliance, left: All) =>
  `${OTHERS}[${exportNameOf(left.byId)}]\nexportname = ${byIdLink(site, left.byId)}\nreadonly = false\n`

const mapping = (at: number, id: string, vm: string, path: string) =>
  `INSERT INTO device_mappings (id, volume_id, vm_id, device_path, cloudstack_state, linux_state, size)
   VALUES ('mapping-${at}', '${id}', '${vm}', '${path}', 'attached', 'detected', ${SIZE})`

const rows = (left: All): ReadonlyArray<string> => [
  mapping(1, left.letter, left.appliance, `/dev/${left.letterDisk}`),
  // A lax server cuts it off at the documented 32 characters.
  mapping(2, left.byId, left.appliance, `/dev/disk/by-id/virtio-${serialOf(left.byId)}`),
  mapping(3, left.elsewhere, left.other, "remote"),
  mapping(4, left.wrong, left.appliance, "/dev/vdz"),
  mapping(5, GONE, left.appliance, "/dev/vdy"),
  mapping(6, "''; DROP TABLE device_mappings; --", "\\n\\0", "/dev/../etc/passwd"),
  `INSERT INTO volume_operations (id, type, status, volume_id, request)
   VALUES ('op-00000000-0000-4000-8000-000000000001', 'create', 'executing', '', '{"name": "lost"}'),
     ('op-00000000-0000-4000-8000-000000000002', 'attach', 'completed', '${left.letter}', '{}')`
]

interface Case {
  readonly what: string
  readonly tables: ReadonlyArray<string>
  readonly rows: (left: All) => ReadonlyArray<string>
  /** The daemon lives in that very database, or in a file of its own. */
  readonly shared: boolean
}

const cases: ReadonlyArray<Case> = [
  {
    what: "with columns named as one would, into a file",
    tables: Old.LAYOUT_1,
    shared: false,
    rows: (left) => [
      `INSERT INTO vm_export_mappings (vm_id, vm_name, volume_id, export_name, device_path)
       VALUES ('4205a841-0265-f4bd-39a6-39fd92196f53', 'PGTEST2', '${left.letter}', 'migration-vm-PGTEST2', '/dev/${left.letterDisk}')`,
      `INSERT INTO ossea_volumes (volume_id, volume_name, size_gb)
       VALUES ('${left.letter}', 'pgtest2-disk-0', 1), ('${left.loose}', 'loose', 1), ('${GONE}', 'gone', 1)`
    ]
  },
  {
    what: "with columns that only their values tell, in its own database",
    tables: Old.LAYOUT_2,
    shared: true,
    rows: (left) => [
      `INSERT INTO vm_export_mappings VALUES
       ('migration-vm-PGTEST2', UUID(), '/dev/${left.letterDisk}', 10809), ('migration-vm-NEVER', UUID(), NULL, 10809)`,
      `INSERT INTO ossea_volumes VALUES
       (UUID(), '${left.loose}', REPEAT('x', 100000)), (UUID(), '${left.letter}', NULL), (UUID(), '${GONE}', NULL)`
    ]
  }
]

const dsn = ({ database, host, password, port, user }: Mysql.Target) =>
  `${user}:${Redacted.value(password)}@tcp(${host}:${port})/${database}?parseTime=true`

const json = <A>(ended: Child.Ended): A => JSON.parse(ended.stdout) as A

interface Report {
  readonly proven: ReadonlyArray<{ readonly declaration: { readonly name: string; readonly volume_id: string } }>
  readonly kept: ReadonlyArray<{ readonly name: string }>
  readonly unproven: ReadonlyArray<{ readonly volume_id: string | null; readonly why: string }>
}

describe("volumed import", () => {
  for (const one of cases) {
    it.scoped(
      `takes over what an older daemon left ${one.what}, and moves nothing (S3, S17, S23)`,
      () =>
        Effect.gen(function* () {
          const site = yield* Appliance.make
          const left = yield* leave(site)
          Fs.writeFileSync(join(site.dir, "dummy.img"), Buffer.alloc(4096))
          const include = join(site.dir, "nbd", "conf.d", "legacy.conf")
          Fs.mkdirSync(dirname(include), { mode: 0o755 })
          Fs.writeFileSync(include, included(site, left))
          yield* site.serve(config(site, left))
          const db = yield* MariaDb.start("--sql-mode=")
          const target = yield* db.database("migratekit_oma")
          yield* db.query(target.database, Documented.mappings, Documented.operations, ...one.tables)
          yield* db.query(target.database, ...rows(left), ...one.rows(left))
          const from = one.shared ? ["import"] : ["import", "--from", dsn(target)]
          const database = {
            DATABASE_DSN: one.shared ? dsn(target) : `sqlite:${join(site.dir, "state", "volumed.db")}`
          }

          // Looking needs no daemon, and says what it could not know.
          const looked = yield* site.volumed([...from, "--dry-run"], {
            ...database,
            VOLUMED_SERVER: "http://127.0.0.1:1"
          })
          assert.strictEqual(looked.code, 4, looked.stderr)
          assert.include(looked.stdout, "no daemon answers")
          assert.notInclude(looked.stdout + looked.stderr, "secret of")

          const VOLUMED_SERVER = yield* site.daemon(database)
          const env = { ...database, VOLUMED_SERVER }
          const dry = yield* site.volumed([...from, "--dry-run", "-o", "json"], env)
          assert.strictEqual(dry.code, 4, dry.stderr)
          const report = json<Report>(dry)
          assert.sameMembers(
            report.proven.map(({ declaration }) => declaration.name),
            ["pgtest2-disk-0", "pgtest2-disk-1", "on-the-test-VM", "loose"]
          )
          const why = report.unproven.map((doubt) => doubt.why).join("\n")
          assert.match(why, /"\/dev\/vdz" leads to no disk here/)
          assert.include(why, `the volume ${GONE}, which CloudStack does not show`)
          assert.include(why, "op-00000000-0000-4000-8000-000000000001")
          assert.deepStrictEqual(json(yield* site.volumed(["get", "-o", "json"], env)), { items: [] })

          const unasked = yield* site.volumed(from, env)
          assert.strictEqual(unasked.code, 1)
          assert.include(unasked.stderr, "--yes")

          const before = yield* site.ledger
          const copy = yield* site.copying("migration-vm-PGTEST2")
          const done = yield* site.volumed([...from, "--yes"], env)
          assert.strictEqual(done.code, 4, done.stderr)
          assert.include(done.stdout, "Declared: 4 volumes")
          for (const { declaration } of report.proven) {
            const waited = yield* site.volumed(["wait", declaration.name, "--timeout", "60s"], env)
            assert.strictEqual(waited.code, 0, `${declaration.name}: ${waited.stdout}${waited.stderr}`)
          }

          // Names are kept, paths are by id, and what was read-only still is.
          const { exports } = json<{ exports: ReadonlyArray<ExportAnswer> }>(
            yield* site.volumed(["exports", "-o", "json"], env)
          )
          assert.deepStrictEqual(
            exports
              .filter(({ served }) => served)
              .map(({ name, by_id_path, read_only }) => ({ name, by_id_path, read_only })),
            [
              { name: "migration-vm-PGTEST2", by_id_path: byIdLink(site, left.letter), read_only: true },
              { name: exportNameOf(left.byId), by_id_path: byIdLink(site, left.byId), read_only: false }
            ]
          )
          const file = Fs.readFileSync(site.env["NBD_CONFIG"] ?? "", "utf8")
          assert.notInclude(file, `exportname = ${join(site.dir, "dev", left.letterDisk)}\n`)
          assert.include(file, `[dummy]\nexportname = ${join(site.dir, "dummy.img")}\n`)
          assert.strictEqual(Fs.readFileSync(include, "utf8"), OTHERS)
          assert.deepStrictEqual(yield* copy.finish, { code: 0, bytes: Number(SIZE) })
          for (const name of ["migration-vm-PGTEST2", exportNameOf(left.byId)]) {
            assert.strictEqual(yield* site.sizeOf(name), SIZE)
          }
          const volumes = json<{ items: ReadonlyArray<Volume> }>(yield* site.volumed(["get", "-o", "json"], env)).items
          assert.deepStrictEqual(
            volumes.map(({ name, set, spec }) => [name, set, spec.attached_to, spec.export_wanted]).sort(),
            [
              ["loose", "imported", "none", null],
              ["on-the-test-VM", "imported", left.other, null],
              ["pgtest2-disk-0", "imported", "appliance", true],
              ["pgtest2-disk-1", "imported", "appliance", true]
            ]
          )
          assert.deepStrictEqual(yield* site.ledger, before)

          // Once more changes nothing.
          const again = json<Report>(yield* site.volumed([...from, "--yes", "-o", "json"], env))
          assert.deepStrictEqual(again.proven, [])
          assert.lengthOf(again.kept, 4)
        }),
      120_000
    )
  }

  it.scoped(
    "stops where it could not see what is served, or is for another appliance, and declares nothing (N2)",
    () =>
      Effect.gen(function* () {
        const site = yield* Appliance.make
        const appliance = site.env["APPLIANCE_VM_ID"] ?? ""
        const volume = yield* site.volume("one", appliance)
        yield* site.diskOf(volume)
        const file = site.env["NBD_CONFIG"] ?? ""
        const section = `[${exportNameOf(volume)}]\nexportname = ${byIdLink(site, volume)}\n`
        const whole = `[generic]\nlistenaddr = 127.0.0.1\nport = ${site.env["NBD_PORT"]}\n${section}`
        const settings = { DATABASE_DSN: `sqlite:${join(site.dir, "state", "volumed.db")}` }
        const run = (...args: ReadonlyArray<string>) => site.volumed(["import", ...args], settings)

        Fs.writeFileSync(file, whole.replace("exportname =", "exportname"))
        const broken = yield* run("--dry-run")
        assert.strictEqual(broken.code, 1, broken.stdout)
        assert.match(broken.stderr, /it is broken \(/u)

        // A section that stands in an included file nobody can read is not known to be none (N9).
        const included = join(site.dir, "nbd", "conf.d")
        Fs.mkdirSync(included, { mode: 0o755 })
        Fs.writeFileSync(join(included, "legacy.conf"), section.replace("exportname =", "exportname"))
        Fs.writeFileSync(file, whole.replace(section, `includedir = ${included}\n`))
        const hidden = yield* run("--dry-run")
        assert.strictEqual(hidden.code, 1, hidden.stdout)
        assert.match(hidden.stderr, /legacy\.conf, line 2/u)

        Fs.writeFileSync(file, whole)
        const looked = yield* run("--dry-run")
        assert.strictEqual(looked.code, 2, looked.stdout + looked.stderr)
        assert.match(looked.stdout, /no tables were read/u)

        const unreachable = yield* run("--yes")
        assert.strictEqual(unreachable.code, 1)
        assert.include(unreachable.stderr, "Is the daemon running?")

        const absent = yield* run("--from", `sqlite:${join(site.dir, "none.db")}`, "--dry-run")
        assert.strictEqual(absent.code, 1)
        assert.include(absent.stderr, "none.db")
        const wrong = yield* run("--from", "user:hush@nowhere", "--dry-run")
        assert.strictEqual(wrong.code, 1)
        assert.match(wrong.stderr, /--from: /u)
        assert.notInclude(wrong.stderr, "hush")

        const VOLUMED_SERVER = yield* site.daemon(settings)
        const other = { ...settings, VOLUMED_SERVER, APPLIANCE_VM_ID: site.vms.find((vm) => vm !== appliance) ?? "" }
        const tables = join(site.dir, "old.db")
        const database = new Database(tables)
        database.exec("CREATE TABLE ossea_volumes (volume_id TEXT)")
        database.exec(`INSERT INTO ossea_volumes VALUES ('${yield* site.volume("loose", null)}')`)
        database.close()
        const elsewhere = yield* site.volumed(["import", "--from", `sqlite:${tables}`, "--yes"], other)
        assert.strictEqual(elsewhere.code, 1, elsewhere.stdout)
        assert.include(elsewhere.stderr, `the daemon works for the appliance ${appliance}`)
        assert.deepStrictEqual(json(yield* site.volumed(["get", "-o", "json"], { VOLUMED_SERVER })), { items: [] })
      }),
    60_000
  )

  it.scoped(
    "declares nothing when what it proved is not so any more as it begins to write (M6)",
    () =>
      Effect.gen(function* () {
        const site = yield* Appliance.make
        const appliance = site.env["APPLIANCE_VM_ID"] ?? ""
        const volume = yield* site.volume("one", appliance)
        yield* site.diskOf(volume)
        const tables = join(site.dir, "old.db")
        const database = new Database(tables)
        database.exec("CREATE TABLE ossea_volumes (volume_id TEXT)")
        database.exec(`INSERT INTO ossea_volumes VALUES ('${volume}')`)
        database.close()
        const settings = { DATABASE_DSN: `sqlite:${join(site.dir, "state", "volumed.db")}` }
        const daemon = yield* site.daemon(settings)
        // Somebody detaches it while the plan is looked at.
        const between = yield* Appliance.between(daemon, /^\/api\/v2\/plan$/u, site.detach(volume))
        const run = (server: string) =>
          site.volumed(["import", "--from", `sqlite:${tables}`, "--yes"], { ...settings, VOLUMED_SERVER: server })
        const changed = yield* run(between)
        assert.strictEqual(changed.code, 1, changed.stdout)
        assert.match(changed.stderr, /changed/u)
        const VOLUMED_SERVER = daemon
        assert.deepStrictEqual(json(yield* site.volumed(["get", "-o", "json"], { VOLUMED_SERVER })), { items: [] })
        const again = yield* run(daemon)
        assert.include(again.stdout, "on no VM")
        assert.strictEqual(again.code, 0, again.stderr)
        assert.deepStrictEqual((yield* site.ledger).violations, [])
      }),
    60_000
  )
})
