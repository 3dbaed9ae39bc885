import { randomUUID } from "node:crypto"
import { Clock, Effect, Either } from "effect"
import { existsSync } from "node:fs"
import * as Declare from "../../reconciler/Declare.ts"
import * as Observe from "../../reconciler/Observe.ts"
import * as Plan from "../../reconciler/Plan.ts"
import { Store } from "../../reconciler/Store.ts"
import { type Declaration, isLiving } from "../../schema/Declaration.ts"
import { Uid } from "../../schema/Ids.ts"
import type { Operation } from "../../schema/Operation.ts"
import type { Settings } from "../../schema/Settings.ts"
import * as PlanAnswer from "../Http/PlanAnswer.ts"
import * as Layers from "../Layers.ts"
import * as File from "../Settings/File.ts"
import * as SettingsFrom from "../Settings.ts"
import { sqliteFile } from "../Store/Dsn.ts"
import * as Sql from "../Store/Sql.ts"
import type { Invocation } from "./Arguments.ts"
import * as DeclarationFile from "./DeclarationFile.ts"
import * as Exit from "./Exit.ts"
import { planText, show } from "./Output.ts"
import * as Package from "./Package.ts"

const HOUR_MS = 3_600_000

/**
 * A plan without a daemon: its settings, its observation and its planner, on ports that cannot change CloudStack and
 * whose gate is closed. Refused while a daemon owns the database.
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
  const declarations = file === undefined ? stored.declarations : yield* candidate(file, stored.declarations, settings)
  const answer = yield* planned(settings, { ...stored, declarations }).pipe(
    Effect.provide(Layers.looking(settings, { version: Package.version(), stop_nbd: false }))
  )
  yield* show(answer, (paint) => planText(answer.text, paint))
  return Exit.ofPlan(answer.plan)
})

interface Journal {
  readonly declarations: ReadonlyArray<Declaration>
  readonly operations: ReadonlyArray<Operation>
  readonly approved: ReadonlySet<string>
  readonly destructive_last_hour: number
  readonly maintenance: Plan.Input["maintenance"]
  readonly withheld: Plan.Input["withheld"]
}

const empty: Journal = {
  declarations: [],
  operations: [],
  approved: new Set(),
  destructive_last_hour: 0,
  maintenance: null,
  withheld: []
}

/** What the daemon has stored. A database that is not there yet is not made by looking. */
const journal = Effect.fn("Standalone.journal")(function* (settings: Settings) {
  if (!existsSync(yield* sqliteFile(settings.database_dsn))) return empty
  return yield* Effect.gen(function* () {
    const store = yield* Store
    const now = yield* Clock.currentTimeMillis
    return {
      declarations: (yield* store.declarations).filter(isLiving),
      operations: yield* store.unresolved,
      approved: new Set((yield* store.approvals(now)).map(Plan.heldKey)),
      destructive_last_hour: yield* store.destructiveSince(now - HOUR_MS),
      maintenance: Plan.maintained(yield* store.maintenance),
      withheld: yield* store.withheld
    } satisfies Journal
  }).pipe(Effect.provide(Sql.layerDsn(settings.database_dsn)))
})

const planned = Effect.fn("Standalone.planned")(function* (settings: Settings, stored: Journal) {
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
    hold: Either.getOrElse(File.read(settings.hold_file), () => null),
    digest: Layers.digest
  })
  return PlanAnswer.make(
    { server: "none (standalone)", ...PlanAnswer.site(settings) },
    { plan, inventory, declarations }
  )
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
  Effect.map(Clock.currentTimeMillis, (now): Declare.Context => ({
    now,
    actor: "plan",
    appliance_vm_id: settings.appliance_vm_id,
    defaults: { disk_offering_id: settings.default_disk_offering_id, zone_id: settings.default_zone_id },
    delete_grace_ms: settings.delete_grace_ms,
    newUid: () => Uid.make(randomUUID())
  }))
