import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import type { ExportAnswer, Exports, Health, MaintenanceAnswer, OperationAnswer, Sources } from "../../schema/Api.ts"
import type { OperationId, Uid, VolumeId } from "../../schema/Ids.ts"
import * as Preflight from "../../src/Cli/Preflight.ts"
import type { Client } from "../../src/Client/Client.ts"
import { SCHEMA_VERSION } from "../../src/Store/Migrate.ts"
import * as Fake from "./Fake.ts"
import * as Recording from "./Recording.ts"
import { A, volume } from "./Sample.ts"

const at = "2026-03-01T12:00:00Z"

const health = (over: Partial<Health> = {}, details: Health["details"] = {}): Health => ({
  status: "healthy",
  timestamp: at,
  cloudstack_health: "healthy",
  database_health: "healthy",
  device_monitor: "healthy",
  nbd_health: "healthy",
  details: {
    database: `MariaDB 10.11, durable, schema ${SCHEMA_VERSION}`,
    durability: "",
    role: "leader",
    term: "3",
    ...details
  },
  ...over
})

const operation: OperationAnswer = {
  id: "op-12345678-1234-1234-1234-123456789012" as OperationId,
  type: "attach",
  status: "executing",
  volume_id: A,
  request: {},
  created_at: at,
  updated_at: at,
  name: "disk\u001b[2J",
  uid: volume("disk", A).uid,
  cause: "declaration",
  actor: "alice",
  generation: 1,
  phase: "submitted",
  attempts: 1
}

const served = (over: Partial<ExportAnswer> = {}): ExportAnswer => ({
  id: A,
  name: `migration-vol-${A}`,
  export_name: `migration-vol-${A}`,
  volume_id: A,
  device_path: "/dev/disk/by-id/virtio-aaaaaaaa000040008000",
  by_id_path: "/dev/disk/by-id/virtio-aaaaaaaa000040008000",
  kernel_path: "/dev/vdb",
  port: 10809,
  status: "active",
  wanted: true,
  configured: true,
  served: true,
  size: 1,
  read_only: false,
  connections: [],
  verified_at: at,
  problem: null,
  ...over
})

const server = { engine: "nbd-server", version: "3.24", host: "127.0.0.1", port: 10809, state: "running" } as const

interface Seen {
  readonly health?: Health
  readonly operations?: ReadonlyArray<OperationAnswer>
  readonly volumes?: ReadonlyArray<ReturnType<typeof volume>>
  readonly maintenance?: MaintenanceAnswer
  readonly plan?: Parameters<typeof Fake.dryRun>[0]
  readonly exports?: ReadonlyArray<ExportAnswer>
  readonly server?: Partial<Exports["server"]>
  readonly sources?: Partial<Sources>
}

const known = (seen: Seen): Partial<Client> => ({
  ...Fake.declared(() => seen.volumes ?? [volume("disk", A)]),
  health: Effect.succeed(seen.health ?? health()),
  operations: ({ status } = {}) =>
    Effect.succeed({ items: (seen.operations ?? []).filter((one) => one.status === status), next: null }),
  maintenance: Effect.succeed(seen.maintenance ?? { maintenance: null, withheld: [] }),
  plan: Effect.sync(() => {
    const plan = Fake.dryRun(seen.plan)
    return { ...plan, sources: { ...plan.sources, ...seen.sources } }
  }),
  exports: Effect.succeed({ server: { ...server, ...seen.server }, count: 1, exports: seen.exports ?? [served()] })
})

const asked = (what: "restart" | "upgrade" | "reboot", seen: Seen = {}) => {
  const recording = Recording.make()
  return Fake.run(Preflight.preflight(Fake.invocation(`preflight ${what}`)), known(seen), recording.layer).pipe(
    Effect.map((outcome) => ({ outcome, text: recording.results() }))
  )
}

/** For all of these it is a reason to wait, with what to type. */
const waits = (what: ReadonlyArray<"restart" | "upgrade" | "reboot">, seen: Seen, found: RegExp, type: string) =>
  Effect.gen(function* () {
    for (const one of ["restart", "upgrade", "reboot"] as const) {
      const { outcome, text } = yield* asked(one, seen)
      assert.strictEqual(outcome, what.includes(one) ? "held" : "done", `${one}: ${text}`)
      if (!what.includes(one)) continue
      assert.match(text, found)
      assert.include(text, `fix: ${type}`)
      assert.match(text, /^Not now: /mu)
      assert.notInclude(text, "\u001b")
    }
  })

const always = ["restart", "upgrade", "reboot"] as const

describe("preflight", () => {
  it.effect("says go when nothing is under way", () =>
    Effect.gen(function* () {
      for (const what of always) {
        const { outcome, text } = yield* asked(what)
        assert.strictEqual(outcome, "done", text)
        assert.match(text, /\nGo\.\n$/u)
      }
    })
  )

  it.effect("waits for unresolved operations, and says since when", () =>
    waits(
      always,
      { operations: [operation] },
      /attach of disk\S* is submitted since 2026-03-01/u,
      `volumed wait ${operation.id}`
    )
  )

  it.effect("does not wait for what an older daemon never finished", () => {
    const old = { ...operation, uid: "00000000-0000-0000-0000-000000000000" as Uid, name: "" }
    return Effect.gen(function* () {
      const { outcome, text } = yield* asked("upgrade", { operations: [old] })
      assert.strictEqual(outcome, "done")
      assert.include(text, "1 of an older daemon were never finished")
    })
  })

  it.effect("waits for declared removals", () => {
    const deletion = {
      policy: "delete",
      requested_at: at,
      by: "alice",
      execute_after: "2026-03-01T12:10:00Z",
      remaining: ["delete"]
    } as const
    const found = /disk is being removed \(delete, not before 2026-03-01T12:10:00Z\)/u
    return waits(always, { volumes: [volume("disk", A, { deletion })] }, found, "volumed wait disk --for Removed:True")
  })

  it.effect("waits for another's maintenance, and not for one that the asker began", () =>
    Effect.gen(function* () {
      const by = (who: string): Seen => ({
        maintenance: { maintenance: { reason: "cables", by: who, since: at, until: null, ending: false }, withheld: [] }
      })
      yield* waits(always, by("bob"), /by bob: cables/u, "ask bob; it ends with: volumed maintenance off")
      yield* waits([], by("alice@test"), /never/u, "")
    })
  )

  it.effect("waits for what a maintenance withheld", () => {
    const { name, uid } = volume("disk", A)
    const withheld = [{ uid, name, generation: 1, volume_id: A as VolumeId, action: "detach", digest: "d9" } as const]
    return waits(always, { maintenance: { maintenance: null, withheld } }, /detach disk/u, "volumed approve d9")
  })

  it.effect("waits for a hold file and for suspicion (S17)", () => {
    const notice = { message: "3 of 4 volumes are gone", suggestion: "look at CloudStack" }
    return Effect.gen(function* () {
      for (const [reason, category] of [
        ["HoldFile", "blocked"],
        ["ObservationSuspect", "error"]
      ] as const) {
        const seen = { plan: { notices: [{ reason, category, ...notice }] } }
        yield* waits(always, seen, new RegExp(`${reason}: 3 of 4`, "u"), "look at CloudStack")
      }
    })
  })

  it.effect("waits for a database that answers; a weak one matters only to a machine that goes down (B4)", () =>
    Effect.gen(function* () {
      const away = health({ status: "unhealthy", database_health: "unavailable" }, { database: "unavailable" })
      yield* waits(["restart", "reboot", "upgrade"], { health: away }, /does not answer/u, "volumed doctor")
      const weak = health({ database_health: "degraded" }, { durability: "sync_binlog is 0" })
      yield* waits(["reboot"], { health: weak }, /sync_binlog is 0/u, "volumed doctor")
    })
  )

  it.effect("names the NBD clients that only a reboot would end", () => {
    const connections = [{ peer: "10.0.0.5:4711", pid: 7, since: at }]
    return waits(
      ["reboot"],
      { exports: [served({ connections })] },
      /is open to 10\.0\.0\.5:4711 since/u,
      "wait for the transfer, or: volumed retry disk --end-clients"
    )
  })

  it.effect("does not take clients that could not be seen for none (S17)", () =>
    Effect.gen(function* () {
      const unread = { exports: [], server: { state: "unknown" } } as const
      yield* waits(["reboot"], unread, /who is connected is not known/u, "volumed doctor")
      const nbd = { state: "incomplete", at, message: "a process could not be read" } as const
      const partial = { exports: [], sources: { nbd } }
      yield* waits(["reboot"], partial, /not known: a process could not be read/u, "volumed doctor")
    })
  )

  it.effect("names exports by letter, which a reboot may turn into another disk's (D11)", () => {
    const foreign = served({ id: "old", volume_id: "", device_path: "/dev/vdc", by_id_path: "/dev/vdc" })
    return waits(["reboot"], { exports: [foreign] }, /names \/dev\/vdc/u, "volumed import --dry-run")
  })

  it.effect("tells an upgrade from a downgrade by the schema (B9)", () => {
    const newer = health({}, { database: `MariaDB 10.11, durable, schema ${SCHEMA_VERSION + 1}` })
    return waits(["upgrade"], { health: newer }, /it is the older one/u, "volumed --version")
  })

  it.effect("lets a standby go whatever the leader does, and knows of one that cannot tell (S16)", () =>
    Effect.gen(function* () {
      const standby = health({ status: "degraded" }, { role: "standby", term: "" })
      yield* waits(["reboot"], { health: standby, operations: [operation] }, /attach of/u, "volumed wait")
      const unknown = health({ status: "unhealthy" }, { role: "unknown", term: "" })
      yield* waits(always, { health: unknown }, /whether it leads is not known/u, "volumed doctor")
    })
  )

  it.effect("shows no more than a few of many", () =>
    Effect.gen(function* () {
      const { text } = yield* asked("restart", { operations: Array.from({ length: 40 }, () => operation) })
      assert.lengthOf(text.match(/attach of/gu) ?? [], 10)
      assert.include(text, "and 30 more")
    })
  )
})
