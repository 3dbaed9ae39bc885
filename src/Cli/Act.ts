import { Effect } from "effect"
import type * as Api from "../../schema/Api.ts"
import type { ApiError } from "../Http/Client.ts"
import * as Arguments from "./Arguments.ts"
import * as Confirm from "./Confirm.ts"
import { Daemon } from "./Daemon.ts"
import * as DeclarationFile from "./DeclarationFile.ts"
import * as Exit from "./Exit.ts"
import * as Follow from "./Follow.ts"
import { clean, Output, planText, show, type Paint } from "./Output.ts"
import * as VolumeText from "./VolumeText.ts"

/** Ten minutes: an attach behind a full queue takes some. */
const WAIT_MS = 600_000

export const apply = Effect.fn("Act.apply")(function* (invocation: Arguments.Invocation) {
  const { client } = yield* Daemon
  const timeoutMs = yield* timeout(invocation)
  const { request, located } = yield* document(invocation)
  const planned = yield* client.planFor(request).pipe(Effect.mapError((error) => inFile(error, located)))
  yield* preview(planned)
  const names = [...planned.created, ...planned.changed, ...planned.unchanged]
  const writes = planned.created.length + planned.changed.length + planned.removed.length
  if (writes > 0) {
    yield* Confirm.ask(`Declare this (${summary(planned)})?`)
    const applied = yield* client.apply(request).pipe(Effect.mapError((error) => inFile(error, located)))
    yield* stored(applied, invocation)
  }
  if (!invocation.flags.has("wait")) {
    if (writes === 0) yield* show(planned, () => "Nothing to store: all is declared like this already.\n")
    return writes > 0 && planned.plan.held.length === 0 ? "done" : Exit.ofPlan(planned.plan)
  }
  const set = typeof request.set === "string" ? request.set : null
  const { outcome, volumes } = yield* Follow.follow({ names, set, timeoutMs })
  yield* show({ items: volumes }, (paint) => VolumeText.list(volumes, paint))
  yield* unfinished(volumes)
  return outcome
})

/** What a file and the flags ask for. */
export const document = Effect.fn("Act.document")(function* (invocation: Arguments.Invocation) {
  const located = yield* DeclarationFile.read(invocation.values.file ?? "-", process.stdin)
  const decoded = yield* DeclarationFile.decode(located)
  const { flags } = invocation
  const request = {
    ...(decoded.set === null ? {} : { set: decoded.set }),
    // As the file says it: the server decodes it again, and whatever it refuses has its place in the file.
    volumes: (located.value as { readonly volumes: unknown }).volumes,
    ...(flags.has("take-over") ? { take_over: true } : {}),
    ...(flags.has("prune") ? { prune: true } : {})
  }
  return { request, located }
})

const timeout = (invocation: Arguments.Invocation): Effect.Effect<number, DeclarationFile.FileWrong> => {
  const text = invocation.values.timeout
  const ms = text === undefined ? WAIT_MS : Arguments.durationMs(text)
  return ms === null
    ? new DeclarationFile.FileWrong({
        problems: [`--timeout: expected a time such as 90s or 10m, found ${JSON.stringify(text)}`]
      })
    : Effect.succeed(ms)
}

/** A refusal of the server names places in the document; show them as places in the file. */
export const inFile = <E>(
  error: E | ApiError,
  located: DeclarationFile.Located
): E | ApiError | DeclarationFile.FileWrong =>
  isApiError(error) && error.problems.length > 0
    ? new DeclarationFile.FileWrong({
        problems: [
          ...DeclarationFile.problemsAt(located, error.problems),
          ...(error.suggestion === null ? [] : [`  ${clean(error.suggestion)}`]),
          ...(error.code === "FIELD_CONFLICT" ? ["  overwrite it with: --take-over"] : [])
        ]
      })
    : error

const isApiError = (error: unknown): error is ApiError =>
  typeof error === "object" && error !== null && "_tag" in error && error._tag === "ApiError"

/** A plan before a change: the result itself where people read it, beside it where a program reads the result. */
const preview = Effect.fn("Act.preview")(function* (planned: Api.DryRun) {
  const output = yield* Output
  if (output.form === "table") yield* output.result(`${planText(planned.text, output.paint)}\n`)
  else yield* output.note(`${planText(planned.text, output.notePaint)}\n`)
})

const summary = (planned: Api.DryRun): string => {
  const parts = [
    [planned.created.length, "new"],
    [planned.changed.length, "changed"],
    [planned.removed.length, "removed"]
  ] as const
  return parts.flatMap(([count, word]) => (count === 0 ? [] : [`${count} ${word}`])).join(", ")
}

const stored = Effect.fn("Act.stored")(function* (applied: Api.Applied, invocation: Arguments.Invocation) {
  const output = yield* Output
  const text = `Stored: ${applied.created.length} new, ${applied.changed.length} changed, ${applied.unchanged.length} as before, ${applied.pruned.length} removed.\n`
  const kept = applied.prune_kept.map(
    (name) =>
      `${clean(name)} is not in the file, but its deletion policy is not forget: volumed delete ${clean(name)}\n`
  )
  if (invocation.flags.has("wait")) return yield* output.note(text + kept.join(""))
  yield* show(applied, () => text)
  yield* output.note(kept.join("") + (output.form === "table" ? "Follow it with: volumed get\n" : ""))
})

const unfinished = Effect.fn("Act.unfinished")(function* (volumes: ReadonlyArray<Api.Volume>) {
  const output = yield* Output
  const left = volumes.filter((volume) => !VolumeText.isReady(volume))
  const lines = left.slice(0, 20).map((volume) => {
    const ready = VolumeText.readiness(volume)
    return `${clean(volume.name)}: ${clean(ready?.message ?? "not observed yet")}\n  volumed explain ${clean(volume.name)}\n`
  })
  yield* output.note(lines.join(""))
})

/** One declaration that changes: its plan, the question, the write, what became of it. */
const change = Effect.fn("Act.change")(function* <E, R>(
  planned: Api.DryRun,
  question: string,
  write: Effect.Effect<Api.Volume, E, R>,
  said: (volume: Api.Volume, paint: Paint) => string
) {
  yield* preview(planned)
  yield* Confirm.ask(question)
  const volume = yield* write
  yield* show(volume, (paint) => said(volume, paint))
  return "done" as const
})

export const remove = Effect.fn("Act.remove")(function* (invocation: Arguments.Invocation) {
  const { client } = yield* Daemon
  const name = invocation.positionals[0] ?? ""
  const policy = invocation.values.policy
  const planned = yield* client.deleteDryRun(name, policy)
  return yield* change(
    planned,
    `Remove the declaration ${name}?`,
    client.delete(name, policy === undefined ? {} : { policy }),
    // With nothing left to do it is gone before anybody could take it back.
    (volume) =>
      removed(
        volume,
        planned.plan.items.some((item) => item.uid === volume.uid && !item.removal_done)
      )
  )
})

const removed = (volume: Api.Volume, takesTime: boolean): string => {
  const { deletion } = volume
  if (deletion === null) return `${volume.name} is removed.\n`
  const when =
    deletion.execute_after === deletion.requested_at ? "" : `, its volume not before ${deletion.execute_after}`
  const text = `${volume.name} is declared removed (${deletion.policy}${when}).\n`
  return takesTime ? `${text}Take it back with: volumed undelete ${volume.name}\n` : text
}

export const undelete = Effect.fn("Act.undelete")(function* (invocation: Arguments.Invocation) {
  const { client } = yield* Daemon
  const name = invocation.positionals[0] ?? ""
  const planned = yield* client.undeleteDryRun(name)
  return yield* change(
    planned,
    `Take the removal of ${name} back?`,
    client.undelete(name),
    (volume) => `${volume.name} is declared again.\n`
  )
})

export const adopt = Effect.fn("Act.adopt")(function* (invocation: Arguments.Invocation) {
  const { client } = yield* Daemon
  const spec = { volume_id: (invocation.positionals[0] ?? "").toLowerCase() }
  const name = invocation.values.name ?? ""
  const planned = yield* client.putDryRun(name, spec, { ifNew: true })
  if (invocation.flags.has("print")) {
    const declaration = { volumes: [{ name, ...spec }] }
    yield* show(declaration, () => `volumes:\n  - name: ${name}\n    volume_id: ${spec.volume_id}\n`)
    return "done" as const
  }
  return yield* change(
    planned,
    `Declare ${spec.volume_id} as ${name}?`,
    client.put(name, spec, { ifNew: true }),
    (volume) =>
      `${volume.name} is declared. What is not declared about it stays as it is: volumed explain ${volume.name}\n`
  )
})

export const approve = Effect.fn("Act.approve")(function* (invocation: Arguments.Invocation) {
  const { client } = yield* Daemon
  const output = yield* Output
  const digest = invocation.positionals[0] ?? ""
  const { plan } = yield* client.plan
  // The server decides; what it would decide about is shown as far as we know it.
  const held = plan.digest === digest ? plan.held : []
  yield* output.note(held.map((item) => `${item.action} ${clean(item.name)} (${item.volume_id})\n`).join(""))
  yield* Confirm.ask(held.length === 0 ? `Approve ${digest}?` : `Let these ${held.length} held actions run?`)
  const approved = yield* client.approve(digest)
  yield* show(
    approved,
    () =>
      `Approved until ${approved.expires_at}: ${approved.approved.map((item) => `${item.action} ${item.name}`).join(", ")}\n`
  )
  return "done" as const
})
