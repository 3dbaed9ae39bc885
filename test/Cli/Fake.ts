import { Effect, Layer } from "effect"
import * as Arguments from "../../src/Cli/Arguments.ts"
import { Asker } from "../../src/Cli/Confirm.ts"
import { Daemon } from "../../src/Cli/Daemon.ts"
import type { Output } from "../../src/Cli/Output.ts"
import type { Client } from "../../src/Client/Client.ts"
import { ApiError } from "../../src/Client/Failure.ts"
import type { DryRun, Volume } from "../../schema/Api.ts"
import type { VmId } from "../../schema/Ids.ts"

export const invocation = (line: string): Arguments.Invocation => {
  const parsed = Arguments.parse(line.split(" "), {})
  if (parsed._tag !== "Run") throw new Error(`${line}: ${JSON.stringify(parsed)}`)
  return parsed.invocation
}

/** A daemon that knows what it is given; asking it for anything else is a defect of the test. */
export const daemon = (known: Partial<Client>): Layer.Layer<Daemon | Asker> =>
  Layer.merge(
    Layer.succeed(Daemon, { server: "http://127.0.0.1:8090", actor: "alice@test", client: known as Client }),
    Layer.succeed(Asker, { yes: true, stdin: process.stdin, stderr: process.stderr })
  )

/** Somebody who is asked without a terminal, and has not said yes before. */
export const unasked = Layer.succeed(Asker, {
  yes: false,
  stdin: { isTTY: false } as NodeJS.ReadStream,
  stderr: process.stderr
})

export const run = <A, E>(
  command: Effect.Effect<A, E, Daemon | Asker | Output>,
  known: Partial<Client>,
  output: Layer.Layer<Output>
): Effect.Effect<A, E> => command.pipe(Effect.provide(Layer.merge(daemon(known), output)))

export const notFound = new ApiError({
  status: 404,
  code: "NOT_FOUND",
  error: "nothing of this name",
  details: {},
  request_id: "r"
})

/** Answers for declared names, in pages as the server gives them. */
export const declared = (volumes: () => ReadonlyArray<Volume>): Pick<Client, "volume" | "volumes"> => ({
  volume: (name) =>
    Effect.suspend(() => {
      const found = volumes().find((volume) => volume.name === name)
      return found === undefined ? Effect.fail(notFound) : Effect.succeed(found)
    }),
  volumes: () => Effect.sync(() => ({ items: volumes(), next_cursor: null, event_id: 0 }))
})

const known = { state: "known", at: "2026-03-01T12:00:00Z", message: null } as const

/** A plan with nothing to do, unless told. */
export const dryRun = (over: Partial<DryRun["plan"]> = {}): DryRun => ({
  place: {
    server: "http://127.0.0.1:8090",
    cloud: "http://127.0.0.1:1/client/api",
    zone: null,
    appliance_vm_id: "8a4400e5-c92a-4bc4-8bff-4b6b0b6a018c" as VmId,
    sandbox: true
  },
  plan: { at: 0, items: [], held: [], digest: null, withheld: [], notices: [], ...over },
  text: "Plan: nothing to do; 1 unchanged.\n",
  sources: { cloudstack: known, guest: known, nbd: known },
  created: [],
  changed: [],
  unchanged: [],
  removed: []
})
