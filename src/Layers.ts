import { Effect, Layer } from "effect"
import { createHash } from "node:crypto"
import type { CloudStack, CloudStackRead } from "../reconciler/CloudStack.ts"
import type { Devices } from "../reconciler/Devices.ts"
import * as Gates from "../reconciler/Gate.ts"
import type { Leadership } from "../reconciler/Leadership.ts"
import * as Loop from "../reconciler/Loop.ts"
import type { Nbd } from "../reconciler/Nbd.ts"
import type { Reconciler } from "../reconciler/Reconciler.ts"
import * as Retention from "../reconciler/Retention.ts"
import type { Store } from "../reconciler/Store.ts"
import { GateClosed, Misconfigured, type StoreUnavailable } from "../schema/Errors.ts"
import type { Settings } from "../schema/Settings.ts"
import * as CloudStackClient from "./CloudStack/Client.ts"
import * as CloudStackCredentials from "./CloudStack/Credentials.ts"
import * as CloudStackHttp from "./CloudStack/Http.ts"
import * as CloudStackLive from "./CloudStack/Live.ts"
import * as Linux from "./Devices/Linux.ts"
import * as Gate from "./Gate.ts"
import * as Server from "./Http/Server.ts"
import * as SettingsFrom from "./Settings.ts"
import * as NbdMain from "./Nbd/Main.ts"
import * as NbdServer from "./Nbd/NbdServer.ts"
import * as Instance from "./Nbdkit/Instance.ts"
import * as Nbdkit from "./Nbdkit/Nbdkit.ts"
import * as SimulatedNbd from "./Simulation/Nbd.ts"
import * as Sql from "./Store/Sql.ts"

/** SHA-256 in hex: what the pure core signs held plans with. */
export const digest = (text: string): string => createHash("sha256").update(text).digest("hex")

export interface Options {
  readonly version: string
  /** End the NBD server with the daemon: only where both belong to a sandbox that goes away. */
  readonly stop_nbd: boolean
}

/** The guest and the NBD server as the settings name them. */
const local = (settings: Settings, options: Options): Layer.Layer<Devices | Nbd, Misconfigured, Gates.Gate> =>
  Layer.merge(Linux.layer(settings), nbd(settings, options))

const nbd = (settings: Settings, options: Options): Layer.Layer<Nbd, Misconfigured, Gates.Gate> => {
  const { backend } = settings.nbd
  const installed = backend === "nbdkit" ? Instance.isInstalled() : NbdMain.isInstalled()
  switch (settings.sandbox && !installed ? "simulated" : backend) {
    case "nbd-server":
      return NbdServer.layer({ ...settings, stop_on_exit: options.stop_nbd })
    case "simulated":
      return SimulatedNbd.layerFiles(settings.nbd)
    case "nbdkit":
      return Nbdkit.layer({ ...settings, stop_on_exit: options.stop_nbd })
  }
}

/** What calls go out by, and what they are signed with. */
const wire = (settings: Settings) =>
  Layer.merge(CloudStackHttp.layer(settings.cloudstack), CloudStackCredentials.layer(settings))

/**
 * Everything that can be looked at, and nothing that can change CloudStack: what `plan --standalone`, `drift` and
 * `doctor` are given. The NBD port is there to be observed; its gate is closed for good.
 */
export const looking = (
  settings: Settings,
  options: Options
): Layer.Layer<CloudStackRead | Devices | Nbd, Misconfigured> =>
  Layer.merge(
    CloudStackLive.layerRead(settings.cloudstack).pipe(Layer.provide(wire(settings))),
    local(settings, { ...options, stop_nbd: false }).pipe(Layer.provide(onlyLooking))
  )

const onlyLooking: Layer.Layer<Gates.Gate> = Layer.succeed(Gates.Gate, {
  check: new GateClosed({ detail: "only looking" }),
  reason: Effect.succeed("only looking")
})

type Daemon = CloudStackRead | Devices | Gates.Gate | Leadership | Nbd | Reconciler | Server.Server | Store

/** The wiring of the daemon: one process, one loop, one server. */
export const daemon = (settings: Settings, options: Options): Layer.Layer<Daemon, Misconfigured | StoreUnavailable> => {
  const store = Sql.layerDsn(settings)
  const cloudstack: Layer.Layer<CloudStack | CloudStackRead, Misconfigured, Gates.Gate> = CloudStackLive.layer(
    settings.cloudstack
  ).pipe(Layer.provide(wire(settings)))
  const ports = Layer.mergeAll(cloudstack, local(settings, options)).pipe(
    Layer.provideMerge(Gate.layer(settings)),
    Layer.provideMerge(store)
  )
  const reconciler = Loop.layer({ ...settings, digest, calls: CloudStackClient.mutationSlots(settings.cloudstack) })
  const server = Server.layer({ ...settings, insecure: SettingsFrom.insecurities(settings), version: options.version })
  const retention = settings.dry_run ? Layer.empty : Retention.layer(settings)
  return Layer.merge(server, retention).pipe(Layer.provideMerge(reconciler), Layer.provideMerge(ports))
}
