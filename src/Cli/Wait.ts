import { Clock, Effect, Either } from "effect"
import type { OperationAnswer, Volume } from "../../schema/Api.ts"
import { Condition, ConditionType } from "../../schema/Condition.ts"
import { nearest } from "../../schema/Nearest.ts"
import { hasEnded } from "../../schema/Operation.ts"
import type { Invocation } from "./Arguments.ts"
import { Daemon } from "./Daemon.ts"
import type * as Exit from "./Exit.ts"
import * as Follow from "./Follow.ts"
import * as Handle from "./Handle.ts"
import * as Moment from "./Moment.ts"
import { clean, Output, show } from "./Output.ts"
import * as VolumeText from "./VolumeText.ts"

/** Until a volume is as wanted, or an operation has ended. */
export const wait = Effect.fn("Wait.wait")(function* (invocation: Invocation) {
  const timeoutMs = yield* Moment.duration(invocation, "timeout", Follow.WAIT_MS)
  const handle = invocation.positionals[0] ?? ""
  if (Handle.isOperation(handle)) {
    if (invocation.values.for !== undefined)
      return yield* new Moment.FlagWrong({ message: "--for is for volumes; an operation is waited for until it ends" })
    return yield* forOperation(handle, timeoutMs)
  }
  const wanted = yield* goal(invocation.values.for ?? "Ready:True")
  const found = yield* Effect.either(Handle.resolve(handle))
  if (Either.isLeft(found)) {
    const mayBePast = wanted.gone === "done" && found.left._tag === "HandleUnknown" && Handle.isName(handle)
    const past = mayBePast ? yield* removed(handle) : null
    if (past === null) return yield* found.left
    yield* show(past, () => `${clean(past.name)}: removed at ${past.removed_at ?? "?"}.\n`)
    return "done" as const
  }
  const names = found.right.map((volume) => volume.name)
  const request = { names, set: null, timeoutMs, until: wanted.holds, patient: true, gone: wanted.gone }
  const { outcome, volumes } = yield* Follow.follow(request)
  const [only] = volumes
  yield* show(volumes.length === 1 && only !== undefined ? only : { items: volumes }, (paint) =>
    volumes.length === 0 ? `${names.map(clean).join(", ")}: removed.\n` : VolumeText.list(volumes, paint)
  )
  return wanted.converging && outcome === "held" ? "timeout" : outcome
})

/** The declaration of this name that is history by now; null where there is none. */
const removed = Effect.fn("Wait.removed")(function* (name: string) {
  const { client } = yield* Daemon
  return yield* client.volume(name, undefined, { removed: true }).pipe(
    Effect.catchIf(
      (error) => error._tag === "ApiError" && error.status === 404,
      () => Effect.succeed(null)
    )
  )
})

interface Goal {
  readonly holds: (volume: Volume) => boolean
  /** What it means that a declaration is no longer there. */
  readonly gone: Exit.Outcome
  /** It may still come about however blocked the volume is. */
  readonly converging: boolean
}

/** `Ready:True`: what a condition must say, of the declaration as it is now. */
export const goal = (text: string): Effect.Effect<Goal, Moment.FlagWrong> => {
  const [type = "", status = ""] = text.split(":")
  const types = ConditionType.literals
  const statuses = Condition.fields.status.literals
  if (!(types as ReadonlyArray<string>).includes(type)) return wrong(text, types, type)
  if (text.split(":").length !== 2 || !(statuses as ReadonlyArray<string>).includes(status))
    return wrong(text, statuses, status)
  const holds = (volume: Volume): boolean => {
    if (type === "Ready" && status === "True") return VolumeText.isReady(volume)
    if (type === "Removed" && status === "True" && volume.removed_at !== null) return true
    const found = volume.status.conditions.find((condition) => condition.type === type)
    return found?.status === status && found.observed_generation >= volume.generation
  }
  return Effect.succeed({
    holds,
    gone: type === "Removed" && status === "True" ? "done" : "error",
    converging: status !== "True" || type === "Paused"
  })
}

const wrong = (text: string, known: ReadonlyArray<string>, word: string) => {
  const near = nearest(word, known)
  const hint = near === null ? `one of ${known.join(", ")}` : `did you mean ${near}?`
  return new Moment.FlagWrong({
    message: `--for: expected a condition such as Ready:True, found ${JSON.stringify(text.slice(0, 80))}; ${hint}`
  })
}

/** The server holds an answer back for so long at most; then it is asked again. */
const HELD_BACK_S = 30

const forOperation = Effect.fn("Wait.forOperation")(function* (id: string, timeoutMs: number) {
  const { client } = yield* Daemon
  const output = yield* Output
  const deadline = (yield* Clock.currentTimeMillis) + timeoutMs
  for (;;) {
    const left = Math.max(0, deadline - (yield* Clock.currentTimeMillis))
    const seconds = Math.min(HELD_BACK_S, Math.ceil(left / 1000))
    const operation = yield* Follow.patient(client.operation(id, seconds), deadline)
    const ended = hasEnded(operation)
    if (!ended && (yield* Clock.currentTimeMillis) < deadline) continue
    yield* show(operation, () => said(operation))
    if (ended) return operation.status === "completed" ? ("done" as const) : ("error" as const)
    yield* output.note("Not in time; it goes on without us.\n")
    return "timeout" as const
  }
})

const said = ({ id, type, name, status, error }: OperationAnswer): string =>
  `${type} ${id} of ${clean(name)}: ${status}${error === undefined ? "" : `: ${clean(error)}`}\n`
