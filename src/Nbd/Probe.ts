import { Chunk, Clock, Effect, Ref } from "effect"
import type { NbdReading, Verification } from "../../schema/Inventory.ts"
import * as NbdName from "../../schema/NbdName.ts"
import * as Handshake from "./Handshake.ts"
import * as Processes from "./Processes.ts"

/** What the wire and the process table say about the server at one moment. */
export interface Look {
  readonly server: NbdReading["server"]["state"]
  readonly pid: number | null
  readonly problem: string | null
  /** Connections whose clients have not chosen an export yet. */
  readonly waiting: number
  /** The marker's GO was granted. */
  readonly loaded: boolean
  readonly verifications: ReadonlyArray<Verification>
  /** Processes that served our own questions, as `keyOf` writes them; they may still be on their way out. */
  readonly own: ReadonlySet<string>
}

/** Handshakes at once: each makes the server fork. */
const CONCURRENCY = 4
/** Granted connections kept open together while their processes are looked up; the server has room for about 1,000. */
const BATCH = 32

/**
 * Asks for the marker (or the sentinel, where the file has no marker) and then for each name. A server that does not
 * answer the first question is not asked the others: each would cost its time-out.
 */
export const look = (
  place: Processes.Place,
  marker: string | null,
  names: ReadonlyArray<string>,
  silence: Silence
): Effect.Effect<Look> =>
  Effect.gen(function* () {
    const listener = yield* Processes.listener(place)
    const main = listener._tag === "Main" ? listener.main : null
    const briefly = yield* wasSilent(silence, main)
    const first = yield* Effect.scoped(
      Effect.map(ask(place, marker ?? NbdName.SENTINEL, briefly), (answer) =>
        prove(answer, servers(place, main, [answer]))
      )
    )
    const { outcome, message, verified_at } = first.verification
    if (isAnswer(outcome) || main === null) yield* Ref.set(silence, null)
    else if (!briefly) yield* Ref.set(silence, { main: keyOf(main), at: verified_at })
    const others = isAnswer(outcome)
      ? yield* proveAll(place, main, names)
      : names.map((name): Proof => ({ verification: { ...first.verification, name }, server: null }))
    return {
      ...stateOf(listener, outcome, message),
      pid: main?.pid ?? null,
      waiting: listener._tag === "Main" ? listener.waiting.length : 0,
      loaded: marker !== null && main !== null && outcome === "served",
      verifications: others.map((one) => one.verification),
      own: new Set([first, ...others].flatMap(({ server }) => (server === null ? [] : [keyOf(server)])))
    }
  })

/** The main that was given its whole time to answer last and did not, and when that began, ms. */
export type Silence = Ref.Ref<{ readonly main: string; readonly at: number } | null>

export const noSilence: Effect.Effect<Silence> = Ref.make<Effect.Effect.Success<Silence>>(null)

/** Everybody who looks waits for everybody before him: while a main hangs, not each of them waits for it as long (N12). */
const SILENT_MS = 20_000

const wasSilent = (silence: Silence, main: Processes.Process | null): Effect.Effect<boolean> =>
  Effect.gen(function* () {
    const last = yield* Ref.get(silence)
    const age = (yield* Clock.currentTimeMillis) - (last?.at ?? 0)
    return main !== null && last?.main === keyOf(main) && age >= 0 && age < SILENT_MS
  })

export const keyOf = (process: Processes.Process): string => `${process.pid}:${process.start}`

const isAnswer = (outcome: Verification["outcome"]): boolean => outcome !== "refused" && outcome !== "no_answer"

/** `absent` here says nothing about whether one is installed. */
const stateOf = (
  listener: Processes.Listener,
  outcome: Verification["outcome"],
  message: string | null
): Pick<Look, "server" | "problem"> => {
  const answers = isAnswer(outcome)
  switch (listener._tag) {
    case "Foreign":
      return { server: "foreign", problem: listener.problem }
    case "Main":
      return answers
        ? {
            server: "running",
            problem: outcome === "dropped" ? "nbd-server hangs up on clients: its memory is damaged" : null
          }
        : {
            server: "hung",
            problem: `nbd-server takes connections but does not answer: ${message ?? "no reason given"}`
          }
    case "Leftover":
      return { server: "hung", problem: "the main process is dead, and a waiting client's process holds its port" }
    case "None":
      return answers
        ? { server: "foreign", problem: "something answers on the port that is no process of this machine" }
        : { server: "absent", problem: null }
  }
}

interface Proof {
  readonly verification: Verification
  readonly server: Processes.Process | null
}

const proveAll = (
  place: Processes.Place,
  main: Processes.Process | null,
  names: ReadonlyArray<string>
): Effect.Effect<ReadonlyArray<Proof>> =>
  Effect.forEach(Chunk.chunksOf(Chunk.fromIterable(names), BATCH), (batch) =>
    Effect.scoped(
      Effect.gen(function* () {
        const answers = yield* Effect.forEach(batch, (name) => ask(place, name), { concurrency: CONCURRENCY })
        const found = servers(place, main, answers)
        return answers.map((answer) => prove(answer, found))
      }).pipe(Effect.parallelFinalizers)
    )
  ).pipe(Effect.map((proofs) => proofs.flat()))

interface Answer extends Handshake.Held {
  readonly name: string
  readonly asked_at: number
}

/** The connection stays open with the scope. */
const ask = (place: Processes.Place, name: string, briefly = false) =>
  Effect.gen(function* () {
    const asked_at = yield* Clock.currentTimeMillis
    return { ...(yield* Handshake.hold({ ...place, name, briefly })), name, asked_at } satisfies Answer
  })

type Servers = ReadonlyMap<number, Processes.Serving>

const servers = (place: Processes.Place, main: Processes.Process | null, answers: ReadonlyArray<Answer>): Servers => {
  const ports = answers.flatMap(({ outcome, local_port }) =>
    outcome._tag === "Served" && local_port !== null ? [local_port] : []
  )
  return main === null || ports.length === 0 ? new Map() : Processes.serving(main, place.port, ports)
}

/** Where the export is served, also which device the process that serves us has open. */
const prove = ({ name, asked_at, outcome, local_port }: Answer, servers: Servers): Proof => {
  const serving = local_port === null ? undefined : servers.get(local_port)
  // More than one would be a server with options that we never set: then nothing is proven.
  const device = serving?.devices.length === 1 ? (serving.devices[0] ?? null) : null
  const verification = Handshake.verification({ name, verified_at: asked_at, device }, outcome)
  return { verification, server: serving?.process ?? null }
}
