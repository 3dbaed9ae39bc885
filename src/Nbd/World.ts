import { Effect, Ref } from "effect"
import { join } from "node:path"
import { Gate } from "../../reconciler/Gate.ts"
import type { Judgement } from "../../schema/NbdConfig.ts"
import type { NbdSettings } from "../../schema/Settings.ts"
import type * as Acl from "./Acl.ts"
import * as ConfigFile from "./ConfigFile.ts"
import * as Main from "./Main.ts"
import * as Probe from "./Probe.ts"
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
  readonly unsure: ConfigFile.Unsure
  readonly memory: Ref.Ref<Memory>
  readonly silence: Probe.Silence
  /**
   * Held while an export's authfile is looked at and then written. A fence waits for nothing else, and a load that found
   * an export open a moment ago must not open it again over a fence.
   */
  readonly authfile: (name: string) => Effect.Semaphore
}

interface Memory {
  readonly saved: string | null
  /** What a main did wrong right after its start: replacing it once more for that changes nothing. */
  readonly hopeless: { readonly main: string; readonly faults: ReadonlyArray<string> } | null
  readonly version: { readonly key: string; readonly value: string } | null
  /** Where the server was looked for last. */
  readonly place: Processes.Place
  /** The descriptors that stood in the file last, with the process that was proven to be behind each, or null. */
  readonly pins: ReadonlyMap<string, Processes.Process | null>
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
      unsure: yield* Ref.make<ReadonlySet<string>>(new Set()),
      memory: yield* Ref.make<Memory>({
        saved: null,
        hopeless: null,
        version: null,
        place,
        pins: new Map()
      }),
      silence: yield* Probe.noSilence,
      authfile: yield* Effect.sync(semaphores)
    }
  })

/** One for each name that was ever asked for, of which there are as many as exports. */
const semaphores = (): World["authfile"] => {
  const known = new Map<string, Effect.Semaphore>()
  return (name) => {
    const found = known.get(name) ?? Effect.unsafeMakeSemaphore(1)
    known.set(name, found)
    return found
  }
}

/** A server that becomes somebody else may not be let into STATE_DIR, but always reads whom its exports admit. */
export const sentinelAt = ({ options: { nbd, state_dir } }: World, { user }: Judgement): string =>
  user === null ? join(state_dir, SENTINEL_FILE) : join(nbd.acl_dir, `.${SENTINEL_FILE}`)

export const SENTINEL_FILE = "sentinel.img"

/** The kernel sends our handshakes from the address they go to. */
const probesFrom = (host: string): ReadonlyArray<string> => (host.startsWith("127.") ? [host, "127.0.0.1"] : [host])

export const aclAt = ({ disk, options: { nbd }, unsure }: World, host: string): Acl.Acl => {
  const probes = probesFrom(host)
  const allow = [...new Set([...nbd.allow, ...probes])]
  return { disk, unsure, dir: nbd.acl_dir, allow, explicit: nbd.explicit.allow, probes }
}

/** The server where the file, as it is judged, makes it listen. */
export const controlOf = ({ options }: World, { listen }: Judgement): Main.Control => ({
  place: { ...listen, config: options.nbd.config },
  start: options.nbd.start,
  pid_file: join(options.state_dir, "nbd-server.pid"),
  log_file: join(options.state_dir, "nbd-server.log"),
  program_dirs: options.program_dirs ?? Main.PROGRAM_DIRS
})
