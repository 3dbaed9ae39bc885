import { Context, Effect, Layer, type Scope } from "effect"
import { lstatSync, readdirSync } from "node:fs"
import { join } from "node:path"
import type { Gate } from "../../reconciler/Gate.ts"
import { Nbd, type WantedExport } from "../../reconciler/Nbd.ts"
import type { Misconfigured } from "../../schema/Errors.ts"
import type { NbdReading, Verification } from "../../schema/Inventory.ts"
import * as Processes from "../../src/Nbd/Processes.ts"
import type * as World from "../../src/Nbd/World.ts"
import * as Instance from "../../src/Nbdkit/Instance.ts"
import * as Links from "../../src/Nbdkit/Links.ts"
import * as Nbdkit from "../../src/Nbdkit/Nbdkit.ts"
import * as Appliance from "./Appliance.ts"

type Changed = Partial<World.Options>

/** An adapter on its real program, and where the two differ on purpose. */
export interface Engine {
  readonly name: NbdReading["engine"]
  readonly package: string
  readonly make: Effect.Effect<Appliance.Appliance, never, Scope.Scope>
  readonly adapter: (
    appliance: Appliance.Appliance,
    changed?: Changed,
    gate?: Layer.Layer<Gate>
  ) => Effect.Effect<Nbd["Type"], Misconfigured, Scope.Scope>
  readonly uri: (appliance: Appliance.Appliance, wanted: Pick<WantedExport, "name" | "read_only">) => string
  /** The processes that listen. */
  readonly listeners: (appliance: Appliance.Appliance) => Effect.Effect<ReadonlyArray<number>>
  /** All that tells the engine what to serve, in a form that shows any change of it. */
  readonly written: (appliance: Appliance.Appliance) => string
  /** What a client of a fenced export is told. */
  readonly fenced: Verification["outcome"]
  /** A running transfer outlives the process that listens: nbd-server has a child for each client, nbdkit is all in one. */
  readonly transfers_survive: boolean
  /** A change of the exports is a new process that listens. */
  readonly replaces: boolean
  /** How often the gate is asked by a first load. */
  readonly gate_checks: number
  /** Of a unit: what systemctl is told for a first load, and the line that starts the server in its place. */
  readonly unit: string
  readonly restarts: ReadonlyArray<string>
  readonly unitScript: (appliance: Appliance.Appliance) => string
}

/** A file, or what a directory holds: who each entry is, and when it was changed last. */
const shapes = (...paths: ReadonlyArray<string>): string =>
  paths
    .flatMap((path) => (lstatSync(path).isFile() ? [path] : readdirSync(path).map((name) => join(path, name))))
    .map((path) => ({ path, stats: lstatSync(path, { bigint: true }) }))
    .map(({ path, stats }) => `${path} ${stats.ino} ${stats.ctimeNs}`)
    .join("\n")

const listening = ({ place }: Appliance.Appliance) =>
  Effect.map(Processes.listener(place), (listener) => (listener._tag === "Main" ? [listener.main.pid] : []))

export const nbdServer: Engine = {
  name: "nbd-server",
  package: "nbd-server",
  make: Appliance.make,
  adapter: Appliance.adapter,
  uri: (appliance, { name }) => appliance.uri(name),
  listeners: listening,
  written: ({ options }) => shapes(options.nbd.config),
  fenced: "denied",
  transfers_survive: true,
  replaces: true,
  gate_checks: 3,
  unit: "unit:volumed-nbd@1.service",
  restarts: ["restart volumed-nbd@1.service"],
  unitScript: ({ dir, place }) => `exec /usr/bin/env nbd-server -C ${place.config} -p ${dir}/unit.pid`
}

/** The same options as nbd-server's, but for what it cannot follow. */
const nbdkitOptions = ({ nbd, ...options }: World.Options): World.Options => ({
  ...options,
  nbd: { ...nbd, backend: "nbdkit", explicit: { ...nbd.explicit, allow: false } }
})

export const instances = ({ nbd, program_dirs = ["/usr/bin"], state_dir }: World.Options) =>
  Instance.pair(nbd, Links.places(state_dir), program_dirs)

export const nbdkit: Engine = {
  name: "nbdkit",
  package: "nbdkit",
  make: Effect.gen(function* () {
    const appliance = yield* Appliance.make
    const options = nbdkitOptions(appliance.options)
    yield* Effect.addFinalizer(() => Effect.forEach(instances(options), Instance.stop, { discard: true }))
    return { ...appliance, options }
  }),
  adapter: (appliance, changed = {}, gate = Appliance.openGate) =>
    Layer.build(Nbdkit.layer({ ...appliance.options, ...changed }).pipe(Layer.provide(gate))).pipe(
      Effect.map((context) => Context.get(context, Nbd))
    ),
  uri: ({ place }, { name, read_only }) => `nbd://${place.host}:${place.port + (read_only ? 1 : 0)}/${name}`,
  listeners: ({ options }) =>
    Effect.map(Effect.forEach(instances(options), Instance.find), (found) =>
      found.flatMap((standing) => (standing._tag === "Ours" ? [standing.process.pid] : []))
    ),
  written: ({ options }) => {
    const { fenced_read_only, fenced_writable, read_only, writable } = Links.places(options.state_dir)
    return shapes(writable, read_only, fenced_writable, fenced_read_only)
  },
  fenced: "unknown",
  transfers_survive: false,
  replaces: false,
  gate_checks: 4,
  unit: "unit:volumed-nbdkit@.service",
  restarts: ["restart volumed-nbdkit@rw.service", "restart volumed-nbdkit@ro.service"],
  unitScript: ({ dir, options }) => {
    const [rw, ro] = instances(options).map((instance) => Instance.argumentsOf(instance).join(" "))
    return `case "$2" in *@rw*) set -- ${rw} ;; *) set -- ${ro} ;; esac
exec nbdkit "$@" </dev/null >${join(dir, "unit.log")} 2>&1`
  }
}
