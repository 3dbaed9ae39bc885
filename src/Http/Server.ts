import { Context, Effect, Layer, Record } from "effect"
import { CloudStackRead } from "../../reconciler/CloudStack.ts"
import type { Gate } from "../../reconciler/Gate.ts"
import type { Leadership } from "../../reconciler/Leadership.ts"
import type { Reconciler } from "../../reconciler/Reconciler.ts"
import type { Store } from "../../reconciler/Store.ts"
import type { Misconfigured } from "../../schema/Errors.ts"
import type { Settings } from "../../schema/Settings.ts"
import * as Acts from "./Acts.ts"
import * as Catalogue from "./Catalogue.ts"
import * as Dispatch from "./Dispatch.ts"
import * as Description from "./Description.ts"
import * as Events from "./Events.ts"
import * as Exports from "./Exports.ts"
import * as Health from "./Health.ts"
import * as Listener from "./Listener.ts"
import * as Maintenance from "./Maintenance.ts"
import * as Metrics from "./Metrics.ts"
import * as Offerings from "./Offerings.ts"
import * as Operations from "./Operations.ts"
import * as PlanAnswer from "./PlanAnswer.ts"
import * as Plans from "./Plans.ts"
import * as Provenance from "./Provenance.ts"
import * as Repeats from "./Repeats.ts"
import * as Tokens from "./Tokens.ts"
import * as Asking from "./V1/Asking.ts"
import * as V1Devices from "./V1/Devices.ts"
import * as V1Volumes from "./V1/Volumes.ts"
import * as V1Writes from "./V1/Writes.ts"
import * as VolumeList from "./VolumeList.ts"
import * as Volumes from "./Volumes.ts"
import * as Wait from "./Wait.ts"
import * as Watch from "./Watch.ts"
import * as Writes from "./Writes.ts"

/** Where the server listens. */
export class Server extends Context.Tag("volumed/Http/Server")<
  Server,
  { readonly addresses: ReadonlyArray<Listener.Address> }
>() {}

export type Options = Pick<Settings, "sandbox" | "resync_idle_ms" | "rate_limit"> &
  Partial<Pick<Settings, "dry_run">> &
  Listener.Options &
  Writes.Rules &
  Asking.Rules & {
    readonly nbd: Pick<Settings["nbd"], "backend" | "host" | "port">
    /** What is set that makes it less safe against others, a sentence each. */
    readonly insecure: ReadonlyArray<string>
    readonly version: string
  }

type Ports = Store | Reconciler | CloudStackRead | Gate | Leadership
type Services =
  | Ports
  | Catalogue.Catalogue
  | Writes.Writes
  | PlanAnswer.Site
  | Provenance.Provenance
  | Watch.Hub
  | Wait.Closing
  | Tokens.Tokens

/** One handler for every endpoint of the contract. */
const handlers = (options: Options): Dispatch.Handlers<Services> => ({
  health: Health.make(options, options.version),
  v1Health: Health.make(options, options.version),
  livez: Health.livez(options),
  readyz: Health.readyz,
  openapi: Description.openapi(options.version),
  docs: Description.docs,
  metrics: Metrics.metrics(options.version),
  v1ListVolumes: V1Volumes.list,
  v1CreateVolume: V1Writes.createVolume,
  v1GetVolume: V1Volumes.get,
  v1DeleteVolume: V1Writes.deleteVolume(options),
  v1AttachVolume: V1Writes.attachVolume(options),
  v1AttachRoot: V1Writes.attachRoot(options),
  v1DetachVolume: V1Writes.detachVolume,
  v1VolumeDevice: V1Devices.mapping,
  v1ListDevices: V1Devices.list,
  v1DeviceVolume: V1Devices.volume,
  v1VmVolumes: V1Volumes.ofVm,
  v1CleanupTestFailover: V1Writes.cleanupTestFailover(options),
  v1ForceSync: V1Writes.forceSync,
  v1Metrics: Metrics.v1Metrics,
  listVolumes: VolumeList.list,
  getVolume: Volumes.get,
  putVolume: Volumes.put,
  patchVolume: Volumes.patch,
  deleteVolume: Volumes.remove,
  undeleteVolume: Volumes.undelete,
  acceptVolume: Acts.accept,
  retryVolume: Acts.retry,
  apply: Volumes.apply,
  plan: Plans.plan,
  planCandidate: Volumes.planCandidate,
  approve: Plans.approve,
  drift: Plans.drift,
  getMaintenance: Maintenance.get,
  beginMaintenance: Maintenance.begin,
  endMaintenance: Maintenance.end,
  offerings: Offerings.list(options),
  listEvents: Events.list,
  watch: Watch.watch,
  listOperations: Operations.list,
  getOperation: Operations.get,
  cancelOperation: Operations.cancel,
  listExports: Exports.list(options.nbd),
  v1CreateExport: V1Writes.createExport,
  v1GetExport: Exports.get(options.nbd),
  v1DeleteExport: V1Writes.deleteExport
})

const provided = (all: Dispatch.Handlers<Services>, services: Context.Context<Services>): Dispatch.Handlers =>
  Record.map(all, (handler) => (request) => Effect.provide(handler(request), services))

/** Listens as long as the layer lives. */
export const layer = (options: Options): Layer.Layer<Server, Misconfigured, Ports> =>
  Layer.scoped(
    Server,
    Effect.gen(function* () {
      const all = provided(handlers(options), yield* Effect.context<Services>())
      const addresses = yield* Listener.listen(options, yield* Dispatch.make(all, options))
      yield* Effect.logInfo("listening").pipe(
        Effect.annotateLogs({ addresses: addresses.map(({ url }) => url).join(" ") })
      )
      return { addresses }
    })
  ).pipe(
    Layer.provide(Layer.merge(Repeats.layer, Tokens.layer(options.token_file))),
    Layer.provide(Writes.layer(options).pipe(Layer.provideMerge(Watch.layer))),
    Layer.provide(
      Layer.mergeAll(
        Catalogue.layer,
        Provenance.layer,
        Wait.layerClosing,
        Layer.effect(
          PlanAnswer.Site,
          Effect.map(CloudStackRead, (cloud) => PlanAnswer.site(options, cloud))
        )
      )
    )
  )
