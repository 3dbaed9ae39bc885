import { randomUUID } from "node:crypto"
import { Clock, Effect } from "effect"
import { existsSync } from "node:fs"
import { CloudStackRead } from "../../reconciler/CloudStack.ts"
import * as Declare from "../../reconciler/Declare.ts"
import * as Observe from "../../reconciler/Observe.ts"
import * as Plan from "../../reconciler/Plan.ts"
import * as Standing from "../../reconciler/Standing.ts"
import { Store } from "../../reconciler/Store.ts"
import type { Declaration } from "../../schema/Declaration.ts"
import { Uid } from "../../schema/Ids.ts"
import type { Settings } from "../../schema/Settings.ts"
import * as DefaultZone from "../CloudStack/DefaultZone.ts"
import * as Gate from "../Gate.ts"
import * as PlanAnswer from "../Http/PlanAnswer.ts"
import * as Layers from "../Layers.ts"
import * as SettingsFrom from "../Settings.ts"
import * as Dsn from "../Store/Dsn.ts"
import * as Sql from "../Store/Sql.ts"
import type { Invocation } from "./Arguments.ts"
import * as DeclarationFile from "./DeclarationFile.ts"
import * as Exit from "./Exit.ts"
import { planText, show } from "./Output.ts"
import * as Package from "./Package.ts"

/**
 * A plan without a daemon: its settings, its observation and its planner, on ports that cannot change CloudStack and
 * whose gate is closed. Refused while a daemon has SQLite's file; beside one on MySQL it takes no lock and reads.
 */
export const standalone = Effect.fn("Standalone.plan")(function* (invocation: Invocation) {
  const settings = yield* SettingsFrom.fromEnvironment(process.env, invocation.values.config ?? null, {
    dry_run: true,
    sandbox: false,
    listen: null,
    terminal: false
  })
  const stored = yield* journal(settings)
  const { file } = invocation.values
  const answer = yield* Effect.gen(function* () {
    const declarations =
      file === undefined ? stored.declarations : yield* candidate(file, stored.declarations, settings)
    return yield* planned(settings, { ...stored, declarations })
  }).pipe(Effect.provide(Layers.looking(settings, { version: Package.version(), stop_nbd: false })))
  yield* show(answer, (paint) => planText(answer.text, paint))
  return Exit.ofPlan(answer.plan)
})

/** What the daemon has stored. A database that is not there yet is not made by looking. */
const journal = Effect.fn("Standalone.journal")(function* (settings: Settings) {
  const dsn = yield* Dsn.resolve(settings.database_dsn, settings.database_ca_file)
  if (dsn._tag === "Sqlite" && !existsSync(dsn.file)) return Standing.blank
  return yield* Effect.flatMap(Store, Standing.read).pipe(Effect.provide(Sql.layerLooking(settings)))
})

const planned = Effect.fn("Standalone.planned")(function* (settings: Settings, stored: Standing.Standing) {
  const { declarations, operations } = stored
  const { appliance_vm_id, limits } = settings
  const inventory = yield* Observe.make({ only: null, appliance_vm_id, declarations, operations, machines: null })
  const plan = Plan.make({
    now: yield* Clock.currentTimeMillis,
    ...stored,
    only: null,
    inventory,
    limits,
    backoff: new Map(),
    consents: new Map(),
    astray: new Set(),
    hold: Gate.heldBy(settings.hold_file),
    digest: Layers.digest
  })
  const place = yield* PlanAnswer.site(settings, yield* CloudStackRead).place
  return PlanAnswer.make({ server: "none (standalone)", ...place }, { plan, inventory, declarations })
})

/** What would be declared if the file were applied. */
const candidate = Effect.fn("Standalone.candidate")(function* (
  file: string,
  existing: ReadonlyArray<Declaration>,
  settings: Settings
) {
  const located = yield* DeclarationFile.read(file, process.stdin)
  const document = yield* DeclarationFile.decode(located)
  const request = { ...document, take_over: false, prune: false }
  const applied = yield* Declare.apply(existing, request, yield* context(settings)).pipe(
    Effect.mapError(
      (refused) => new DeclarationFile.FileWrong({ problems: DeclarationFile.problemsAt(located, refused.errors) })
    )
  )
  const byUid = new Map<Uid, Declaration>(existing.map((declaration) => [declaration.uid, declaration]))
  for (const { declaration } of applied.changes) byUid.set(declaration.uid, declaration)
  return [...byUid.values()].toSorted((a, b) => (a.name < b.name ? -1 : 1))
})

const context = (settings: Settings) =>
  Effect.gen(function* () {
    const cloud = yield* CloudStackRead
    const zones = Effect.map(cloud.zones, (zones) => zones.map(({ id, name }) => [id, name] as const))
    return {
      now: yield* Clock.currentTimeMillis,
      actor: "plan",
      appliance_vm_id: settings.appliance_vm_id,
      defaults: {
        disk_offering_id: settings.default_disk_offering_id,
        zone_id: yield* DefaultZone.of(cloud, zones)
      },
      delete_grace_ms: settings.delete_grace_ms,
      newUid: () => Uid.make(randomUUID())
    } satisfies Declare.Context
  })
