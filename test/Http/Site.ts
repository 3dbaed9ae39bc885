import { Context, Effect, Layer, Logger, LogLevel, Redacted, type Scope } from "effect"
import { Store } from "../../reconciler/Store.ts"
import * as Serve from "../../src/Cli/Serve.ts"
import * as Client from "../../src/Client/Client.ts"
import * as Server from "../../src/Http/Server.ts"
import * as Layers from "../../src/Layers.ts"
import * as SettingsFrom from "../../src/Settings.ts"
import * as Sandbox from "../../src/Simulation/Sandbox.ts"
import type { World } from "../../src/Simulation/World.ts"

export interface Daemon {
  readonly url: string
  readonly client: Client.Client
  readonly store: Store["Type"]
}

/** A sandbox and the daemons on it, in this process: the wire, the device tree and the database file are real. */
export interface Site {
  readonly world: World
  /** Each one is another life of the same daemon; it ends with its scope. */
  readonly daemon: Effect.Effect<Daemon, unknown, Scope.Scope>
}

/** Lives as long as the scope. `NBD_BACKEND`: "simulated", or a real nbd-server. `dsn`: null for a database file. */
export const startWith = (
  NBD_BACKEND: string,
  dsn: string | null = null,
  more: Readonly<Record<string, string>> = {}
): Effect.Effect<Site, unknown, Scope.Scope> =>
  Effect.gen(function* () {
    const sandbox = yield* Sandbox.start({ ...Sandbox.defaults, job_ms: 20, device_delay_ms: 20 })
    const around = {
      NBD_BACKEND,
      LISTEN: "127.0.0.1:0",
      POLL_INTERVAL: "200ms",
      RESYNC_BUSY_INTERVAL: "1s",
      RESYNC_INTERVAL: "2s",
      ...more
    }
    const found = yield* SettingsFrom.fromEnvironment(Serve.sandboxEnvironment(sandbox, around), null, {
      dry_run: false,
      sandbox: true,
      listen: null,
      terminal: false
    })
    const settings = dsn === null ? found : { ...found, database_dsn: Redacted.make(dsn) }
    const daemon = Effect.gen(function* () {
      const services = yield* Layer.build(
        Layers.daemon(settings, { version: "0.0.0-test", stop_nbd: true }).pipe(
          Layer.provide(Logger.minimumLogLevel(LogLevel.None))
        )
      )
      const url = Context.get(services, Server.Server).addresses[0]?.url ?? ""
      return { url, client: Client.make({ server: url, actor: "tester" }), store: Context.get(services, Store) }
    })
    return { world: sandbox.world, daemon }
  })

export const start = startWith("simulated")
