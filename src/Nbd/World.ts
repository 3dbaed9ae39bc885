import { Effect, Ref } from "effect"
import { join } from "node:path"
import { Gate } from "../../reconciler/Gate.ts"
import type { Judgement } from "../../schema/NbdConfig.ts"
import type { NbdSettings } from "../../schema/Settings.ts"
import type * as Acl from "./Acl.ts"
import * as ConfigFile from "./ConfigFile.ts"
import * as Main from "./Main.ts"
import type * as Processes from "./Processes.ts"

export interface Options {
  readonly nbd: NbdSettings
  readonly state_dir: string
  readonly by_id_dir: string
  readonly device_kind: "block" | "file"
  /** End the server and its transfers when the layer's scope closes: for `demo` and the sandbox only. */
  readonly stop_on_exit: boolean
  readonly program_dirs?: ReadonlyArray<string>
  readonly disk?: ConfigFile.Disk
}

/** All that the operations need: where things are, and the little that is remembered between them. */
export interface World {
  readonly options: Options
  readonly gate: Gate["Type"]
  readonly disk: ConfigFile.Disk
  /** The last text that a GO has proven to be served; what a broken file is rendered anew from. */
  readonly verified_copy: string
  readonly memory: Ref.Ref<Memory>
}

interface Memory {
  /** A write failed half-way: whether the file that is there survives a crash is not known, so it is written again. */
  readonly unsure: boolean
  readonly saved: string | null
  /** Exports that a main would not serve right after its start: replacing it once more for them changes nothing. */
  readonly hopeless: { readonly main: string; readonly names: ReadonlyArray<string> } | null
  readonly version: { readonly key: string; readonly value: string } | null
  /** Where the server was looked for last. */
  readonly place: Processes.Place
}

export const make = (options: Options): Effect.Effect<World, never, Gate> =>
  Effect.gen(function* () {
    const { nbd, state_dir } = options
    const disk = options.disk ?? ConfigFile.disk
    const place = { host: nbd.host, port: nbd.port, config: nbd.config }
    return {
      options,
      gate: yield* Gate,
      disk,
      verified_copy: join(state_dir, "nbd-config.verified"),
      memory: yield* Ref.make<Memory>({ unsure: false, saved: null, hopeless: null, version: null, place })
    }
  })

/** A server that becomes somebody else may not be let into STATE_DIR, but always reads whom its exports admit. */
export const sentinelAt = ({ options: { nbd, state_dir } }: World, { user }: Judgement): string =>
  user === null ? join(state_dir, SENTINEL_FILE) : join(nbd.acl_dir, `.${SENTINEL_FILE}`)

export const SENTINEL_FILE = "sentinel.img"

/** The kernel sends our handshakes from the address they go to. */
const probesFrom = (host: string): ReadonlyArray<string> => (host.startsWith("127.") ? [host, "127.0.0.1"] : [host])

export const aclAt = ({ disk, options: { nbd } }: World, host: string): Acl.Acl => {
  const probes = probesFrom(host)
  const allow = [...new Set([...nbd.allow, ...probes])]
  return { disk, dir: nbd.acl_dir, allow, explicit: nbd.explicit.allow, probes }
}

/** The server where the file, as it is judged, makes it listen. */
export const controlOf = ({ options }: World, { listen }: Judgement): Main.Control => ({
  place: { ...listen, config: options.nbd.config },
  start: options.nbd.start,
  pid_file: join(options.state_dir, "nbd-server.pid"),
  log_file: join(options.state_dir, "nbd-server.log"),
  program_dirs: options.program_dirs ?? Main.PROGRAM_DIRS
})
