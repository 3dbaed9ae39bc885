import { Effect } from "effect"
import { Misconfigured } from "../../schema/Errors.ts"
import * as Sandbox from "../Simulation/Sandbox.ts"
import * as Arguments from "./Arguments.ts"
import type { OptionName } from "./Commands.ts"

/** The sandbox that the flags ask for. */
export const options = (invocation: Arguments.Invocation): Effect.Effect<Sandbox.Options, Misconfigured> => {
  const { values } = invocation
  const read = {
    latency_ms: field(values, "latency", "50ms", Arguments.durationMs, Sandbox.defaults.latency_ms),
    seed: field(values, "seed", "7", wholeUpTo(Number.MAX_SAFE_INTEGER), Sandbox.defaults.seed),
    vms: field(values, "vms", "4", wholeUpTo(255), Sandbox.defaults.vms),
    cloudstack_listen: field(values, "cloudstack-listen", "127.0.0.1:8096", address, Sandbox.defaults.cloudstack_listen)
  }
  return Effect.map(Effect.all(read), (found) => ({
    ...Sandbox.defaults,
    ...found,
    state_dir: values.state ?? null,
    faults_file: values.faults ?? null
  }))
}

const field = <A>(
  values: Arguments.Invocation["values"],
  name: OptionName,
  example: string,
  parse: (text: string) => A | null,
  otherwise: A
): Effect.Effect<A, Misconfigured> => {
  const text = values[name]
  if (text === undefined) return Effect.succeed(otherwise)
  const value = parse(text)
  if (value !== null) return Effect.succeed(value)
  const problem = `found ${JSON.stringify(text)}`
  return new Misconfigured({ problems: [{ key: `--${name}`, problem, example: `--${name} ${example}` }] })
}

const wholeUpTo =
  (max: number) =>
  (text: string): number | null =>
    /^\d{1,16}$/u.test(text) && Number(text) <= max ? Number(text) : null

const address = (text: string): { readonly host: string; readonly port: number } | null => {
  const match = /^(?:\[([0-9a-f:.]+)\]|([0-9A-Za-z.-]+)):(\d{1,5})$/u.exec(text)
  const host = match?.[1] ?? match?.[2]
  const port = Number(match?.[3])
  return host === undefined || port > 65_535 ? null : { host, port }
}
