import { Effect, Redacted } from "effect"
import * as Import from "../../reconciler/Import.ts"
import { CloudStackRead } from "../../reconciler/CloudStack.ts"
import { Devices } from "../../reconciler/Devices.ts"
import { Nbd } from "../../reconciler/Nbd.ts"
import type * as Api from "../../schema/Api.ts"
import { CloudStackUnavailable, Misconfigured, NbdUnavailable, PreconditionLost } from "../../schema/Errors.ts"
import type { NbdReading } from "../../schema/Inventory.ts"
import type { Settings } from "../../schema/Settings.ts"
import type { ApplyRequest } from "../Client/Client.ts"
import * as OldTables from "../Import/Tables.ts"
import * as Layers from "../Layers.ts"
import * as ConfigFile from "../Nbd/ConfigFile.ts"
import * as Includes from "../Nbd/Includes.ts"
import * as SettingsFrom from "../Settings.ts"
import * as Dsn from "../Store/Dsn.ts"
import type { Invocation } from "./Arguments.ts"
import * as Change from "./Change.ts"
import * as Confirm from "./Confirm.ts"
import * as Daemon from "./Daemon.ts"
import * as Exit from "./Exit.ts"
import * as ImportText from "./ImportText.ts"
import { Output, show } from "./Output.ts"
import * as Package from "./Package.ts"

/** The set that what was imported is declared in. */
const SET = "imported"
/** Declarations that are stored in one transaction. */
const BATCH = 500

/**
 * The way in from an older daemon: what it left is read and compared, and what is proven is declared through the running
 * daemon, which takes everything else from there. Nothing but declarations is ever written here.
 */
export const importOld = Effect.fn("Import.importOld")(function* (invocation: Invocation) {
  const { client } = yield* Daemon.Daemon
  const dryRun = invocation.flags.has("dry-run")
  const settings = yield* SettingsFrom.fromEnvironment(process.env, invocation.values.config ?? null, {
    dry_run: true,
    sandbox: false,
    listen: null,
    terminal: false
  })
  const declared = yield* declaredNow(dryRun)
  const from = yield* source(invocation, settings)
  const report = yield* compared(settings, from, declared)
  const batches = declared === null ? [] : inBatches(report.proven)
  // All of them are refused or planned before the first is stored.
  const planned = yield* Effect.forEach(batches, client.planFor)
  yield* Effect.forEach(planned, ({ place }) => samePlace(place, settings))
  if (dryRun || batches.length === 0) {
    yield* show({ ...report, applied: null }, (paint) => ImportText.report(report, paint))
    if (invocation.output === "table") yield* Effect.forEach(planned, Change.preview)
    return Exit.combine([report.proven.length > 0 ? "pending" : "done", doubtful(report)])
  }
  const output = yield* Output
  if (output.form === "table") yield* output.result(ImportText.report(report, output.paint))
  else yield* output.note(ImportText.report(report, output.notePaint))
  yield* Effect.forEach(planned, Change.preview)
  yield* Confirm.ask(`Declare these ${report.proven.length} volumes (set ${SET})?`)
  yield* stillSo(report, yield* compared(settings, from, yield* declaredNow(false)))
  const applied = yield* Effect.forEach(batches, (batch) => client.apply(batch))
  const created = applied.flatMap((answer) => answer.created)
  yield* show({ ...report, applied: { created } }, () => ImportText.stored(created.length))
  return doubtful(report)
})

/** The question may have stood for hours: a disk that somebody detached meanwhile would be attached again. */
const stillSo = (shown: Import.Report, now: Import.Report): Effect.Effect<void, PreconditionLost> => {
  const wishes = ({ proven }: Import.Report) => new Set(proven.map(({ declaration }) => JSON.stringify(declaration)))
  const [asked, proven] = [wishes(shown), wishes(now)]
  const differ = [...asked].filter((wish) => !proven.has(wish)).length || proven.size - asked.size
  if (differ === 0) return Effect.void
  const detail = `${differ} of the volumes changed since they were compared, and nothing was declared: import again`
  return Effect.fail(new PreconditionLost({ detail }))
}

/** What is compared here is declared there: both must mean the same machine. */
const samePlace = ({ appliance_vm_id }: Api.Place, settings: Settings) =>
  appliance_vm_id === settings.appliance_vm_id
    ? Effect.void
    : new Misconfigured({
        problems: [
          {
            key: "APPLIANCE_VM_ID",
            problem: `the daemon works for the appliance ${appliance_vm_id}, and these settings name ${settings.appliance_vm_id}`,
            example: "give import the daemon's own settings, by its environment or --config FILE"
          }
        ]
      })

const doubtful = (report: Pick<Import.Report, "unproven">): Exit.Outcome =>
  report.unproven.length > 0 ? "held" : "done"

const inBatches = (proven: ReadonlyArray<Import.Proven>): ReadonlyArray<ApplyRequest> => {
  const volumes = proven.map(({ declaration }) => declaration)
  return Array.from({ length: Math.ceil(volumes.length / BATCH) }, (_, at) => ({
    set: SET,
    volumes: volumes.slice(at * BATCH, (at + 1) * BATCH)
  }))
}

/** Null when no daemon answers, which only a dry run may do without. */
const declaredNow = (dryRun: boolean) =>
  Daemon.volumes().pipe(
    Effect.map((volumes): ReadonlyArray<Api.Volume> | null => volumes),
    Effect.catchIf(
      (error) => dryRun && error._tag === "ServerUnreachable",
      () => Effect.succeed(null)
    )
  )

/** Where the tables are. The embedded database is the daemon's own: an older daemon's tables are in none like it. */
const source = Effect.fnUntraced(function* (invocation: Invocation, settings: Settings) {
  const { from } = invocation.values
  const dsn = from === undefined ? settings.database_dsn : Redacted.make(from)
  const found = yield* Dsn.resolve(dsn, settings.database_ca_file).pipe(
    Effect.mapError(({ problems }) =>
      from === undefined
        ? new Misconfigured({ problems })
        : new Misconfigured({ problems: problems.map((problem) => ({ ...problem, key: "--from" })) })
    )
  )
  return from === undefined && found._tag === "Sqlite" ? null : found
})

const compared = Effect.fnUntraced(function* (
  settings: Settings,
  from: Dsn.Dsn | null,
  declared: ReadonlyArray<Api.Volume> | null
) {
  const old = from === null ? { tables: [], unfinished: [], notes: [] } : yield* OldTables.read(from)
  const [listing, guest, nbd] = yield* Effect.all(
    [
      Effect.flatMap(CloudStackRead, ({ volumes }) => volumes),
      Effect.flatMap(Devices, ({ observe }) => observe),
      Effect.flatMap(Nbd, ({ observe }) => observe([]))
    ],
    { concurrency: "unbounded" }
  ).pipe(Effect.provide(Layers.looking(settings, { version: Package.version(), stop_nbd: false })))
  if (!listing.complete) {
    const detail = `${listing.note ?? "something may be missing from it"}: import again`
    return yield* new CloudStackUnavailable({ command: "listVolumes", kind: "incomplete", detail })
  }
  yield* legible(settings, nbd)
  const report = Import.compare({
    appliance_vm_id: settings.appliance_vm_id,
    volumes: listing.volumes,
    ambiguous: listing.ambiguous,
    devices: guest.devices,
    sections: nbd.sections,
    ...old,
    declared: (declared ?? []).map(({ name, spec, status }) => ({
      name,
      volume_id: status.volume_id ?? spec.volume_id
    }))
  })
  const notes = [
    ...old.notes,
    ...(nbd.server.problem === null ? [] : [`NBD server: ${nbd.server.problem}`]),
    ...(from === null ? ["no tables were read: the older daemon's are elsewhere, name them with --from DSN"] : []),
    ...(from !== null && old.tables.length === 0 ? [`${Dsn.place(from)} has none of the older daemon's tables`] : []),
    ...(declared === null ? ["no daemon answers: what is declared already is not known, and nothing is planned"] : [])
  ]
  return { narrowings: nbd.narrowings, ...report, notes: [...notes, ...report.notes] }
})

/** Sections that cannot be seen would be taken for none, and their volumes be declared without an export. */
const legible = Effect.fnUntraced(function* (settings: Settings, nbd: NbdReading) {
  const file = yield* ConfigFile.read(ConfigFile.disk, settings.nbd.config)
  const broken = file._tag === "Broken" ? `it is broken (${file.problem})` : null
  const foreign = nbd.server.state === "foreign" ? nbd.server.problem : null
  const included = file._tag === "Sound" ? (yield* Includes.read(ConfigFile.disk, file.document)).problem : null
  const problem = nbd.config_problem ?? broken ?? included ?? foreign
  if (problem === null) return
  const detail = `${settings.nbd.config}: ${problem}. Mend that first, or give NBD_CONFIG the file that is served from`
  return yield* new NbdUnavailable({ detail })
})
