import { Effect, Ref } from "effect"
import { Gate } from "../../reconciler/Gate.ts"
import { Misconfigured } from "../../schema/Errors.ts"
import * as NbdConfig from "../../schema/NbdConfig.ts"
import type { NbdSettings } from "../../schema/Settings.ts"
import * as Main from "../Nbd/Main.ts"
import * as Clients from "./Clients.ts"
import * as Instance from "./Instance.ts"
import * as Links from "./Links.ts"

export interface Options {
  readonly nbd: NbdSettings
  readonly state_dir: string
  readonly by_id_dir: string
  readonly device_kind: "block" | "file"
  /** End both processes and their transfers when the layer's scope closes: for `demo` and the sandbox only. */
  readonly stop_on_exit: boolean
  readonly program_dirs?: ReadonlyArray<string>
}

/** All that the operations need: where things are, and the little that is remembered between them. */
export interface World {
  readonly options: Options
  readonly gate: Gate["Type"]
  readonly places: Links.Places
  /** The read-write one, then the read-only one. */
  readonly pair: readonly [Instance.Instance, Instance.Instance]
  /** Held while links change, and never while a server is asked: a fence waits for no handshake. */
  readonly linking: Effect.Semaphore
  readonly clients: Clients.Memory
  readonly version: Ref.Ref<{ readonly key: string; readonly value: string } | null>
}

export const make = (options: Options): Effect.Effect<World, Misconfigured, Gate> =>
  Effect.gen(function* () {
    const problems = problemsOf(options)
    if (problems.length > 0) return yield* new Misconfigured({ problems })
    const places = Links.places(options.state_dir)
    return {
      options,
      gate: yield* Gate,
      places,
      pair: Instance.pair(options.nbd, places, programDirs(options)),
      linking: yield* Effect.makeSemaphore(1),
      clients: yield* Clients.memory,
      version: yield* Ref.make<{ readonly key: string; readonly value: string } | null>(null)
    }
  })

const programDirs = ({ program_dirs }: Options): ReadonlyArray<string> => program_dirs ?? Main.PROGRAM_DIRS

/** Settings that nbdkit cannot follow stop the start: one that is ignored would be a promise. */
const problemsOf = ({ nbd, state_dir }: Options): Misconfigured["problems"] => {
  const { base } = Links.places(state_dir)
  return [
    { key: "NBD_HOST", value: nbd.host, problem: NbdConfig.addressProblem(nbd.host), example: "127.0.0.1" },
    {
      key: "NBD_PORT",
      value: String(nbd.port),
      problem: nbd.port < 65_535 ? null : "leaves no port for the read-only exports, which is the next one",
      example: "10809"
    },
    {
      key: "NBD_ALLOW",
      value: nbd.allow.join(","),
      problem: nbd.explicit.allow ? "cannot be kept by nbdkit, which admits whoever reaches NBD_HOST" : null,
      example: "a firewall on NBD_PORT and the next one, and NBD_ALLOW not set"
    },
    { key: "STATE_DIR", value: base, problem: NbdConfig.pathProblem(base), example: "/var/lib/volumed" },
    { key: "NBD_START", value: nbd.start, problem: startProblem(nbd.start), example: "unit:volumed-nbdkit@.service" },
    {
      key: "NBD_PIN",
      value: String(nbd.pin),
      problem: nbd.pin ? "is for NBD_BACKEND=nbd-server" : null,
      example: "off"
    }
  ].flatMap(({ key, value, problem, example }) =>
    problem === null ? [] : [{ key, problem: `${JSON.stringify(value.slice(0, 200))} ${problem}`, example }]
  )
}

const startProblem = (start: string): string | null =>
  start === "auto" || start === "off" || /^unit:[A-Za-z0-9_][A-Za-z0-9:_.-]{0,200}@\.[a-z]+$/.test(start)
    ? null
    : "is neither auto, off nor a template unit:NAME@.service, of which @rw and @ro are started"
