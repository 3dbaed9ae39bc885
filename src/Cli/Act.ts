import { Effect } from "effect"
import type { PlanItem } from "../../schema/Action.ts"
import type * as Api from "../../schema/Api.ts"
import type { ApiError } from "../Client/Failure.ts"
import type { Invocation } from "./Arguments.ts"
import * as Change from "./Change.ts"
import * as Confirm from "./Confirm.ts"
import { Daemon } from "./Daemon.ts"
import * as DeclarationFile from "./DeclarationFile.ts"
import * as Exit from "./Exit.ts"
import * as Follow from "./Follow.ts"
import * as Handle from "./Handle.ts"
import * as Moment from "./Moment.ts"
import { clean, Output, show } from "./Output.ts"
import * as VolumeText from "./VolumeText.ts"

export const apply = Effect.fn("Act.apply")(function* (invocation: Invocation) {
  const { client } = yield* Daemon
  const timeoutMs = yield* Moment.duration(invocation, "timeout", Follow.WAIT_MS)
  const { request, located } = yield* document(invocation)
  const planned = yield* client.planFor(request).pipe(Effect.mapError((error) => inFile(error, located)))
  yield* Change.preview(planned)
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
export const document = Effect.fn("Act.document")(function* (invocation: Invocation) {
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

const summary = (planned: Api.DryRun): string => {
  const parts = [
    [planned.created.length, "new"],
    [planned.changed.length, "changed"],
    [planned.removed.length, "removed"]
  ] as const
  return parts.flatMap(([count, word]) => (count === 0 ? [] : [`${count} ${word}`])).join(", ")
}

const stored = Effect.fn("Act.stored")(function* (applied: Api.Applied, invocation: Invocation) {
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

export const remove = Effect.fn("Act.remove")(function* (invocation: Invocation) {
  const { client } = yield* Daemon
  const name = invocation.positionals[0] ?? ""
  const policy = invocation.values.policy
  // Of the declaration that was shown: somebody's write meanwhile may ask for another removal.
  const { generation } = yield* client.volume(name)
  const planned = yield* client.deleteDryRun(name, policy)
  return yield* Change.change(
    planned,
    `Remove the declaration ${name}?`,
    client.delete(name, { ifMatch: generation, ...(policy === undefined ? {} : { policy }) }),
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

export const undelete = Effect.fn("Act.undelete")(function* (invocation: Invocation) {
  const { client } = yield* Daemon
  const name = invocation.positionals[0] ?? ""
  const planned = yield* client.undeleteDryRun(name)
  return yield* Change.change(
    planned,
    `Take the removal of ${name} back?`,
    client.undelete(name),
    (volume) => `${volume.name} is declared again.\n`
  )
})

export const adopt = Effect.fn("Act.adopt")(function* (invocation: Invocation) {
  const { client } = yield* Daemon
  const spec = { volume_id: (invocation.positionals[0] ?? "").toLowerCase() }
  const name = invocation.values.name ?? ""
  const planned = yield* client.putDryRun(name, spec, { ifNew: true })
  if (invocation.flags.has("print")) {
    const declaration = { volumes: [{ name, ...spec }] }
    yield* show(declaration, () => `volumes:\n  - name: ${name}\n    volume_id: ${spec.volume_id}\n`)
    return "done" as const
  }
  return yield* Change.change(
    planned,
    `Declare ${spec.volume_id} as ${name}?`,
    client.put(name, spec, { ifNew: true }),
    (volume) =>
      `${volume.name} is declared. What is not declared about it stays as it is: volumed explain ${volume.name}\n`
  )
})

/** Held actions by the plan's digest, or what a maintenance withheld by the digest it gave them. */
export const approve = Effect.fn("Act.approve")(function* (invocation: Invocation) {
  const { client } = yield* Daemon
  const digest = invocation.positionals[0] ?? ""
  const planned = yield* client.approveDryRun(digest)
  const { held, withheld } = planned.plan
  const output = yield* Output
  const meant = planned.plan.digest === digest ? held : withheld.filter((one) => one.digest === digest)
  yield* output.note(meant.map((one) => `${one.action} ${clean(one.name)} (volume ${one.volume_id})\n`).join(""))
  return yield* Change.change(
    planned,
    meant.length === 0 ? `Approve ${digest}?` : `Let these ${meant.length} held actions run?`,
    client.approve(digest),
    (approved) =>
      `Approved until ${approved.expires_at}: ${approved.approved.map((one) => `${one.action} ${one.name}`).join(", ")}\n`
  )
})

export const accept = Effect.fn("Act.accept")(function* (invocation: Invocation) {
  const { client } = yield* Daemon
  const { name, generation } = yield* Handle.resolveOne(invocation.positionals[0] ?? "")
  // Of the declaration that was shown, and no other that somebody writes meanwhile.
  const write = { ifMatch: generation }
  const planned = yield* client.acceptDryRun(name, write)
  return yield* Change.change(
    planned,
    `Make what is observed of ${name} its declaration?`,
    client.accept(name, write),
    (volume) =>
      volume.generation === generation
        ? `${name} is declared as it is already.\n`
        : `${name} is declared as it is now (generation ${volume.generation}): ${VolumeText.wanted(volume)}\n`
  )
})

export const retry = Effect.fn("Act.retry")(function* (invocation: Invocation) {
  const { client } = yield* Daemon
  const { name, generation } = yield* Handle.resolveOne(invocation.positionals[0] ?? "")
  const wanted = invocation.flags.has("end-clients")
  const planned = yield* client.retryDryRun(name, { end_clients: wanted })
  const leaving = wanted ? planned.plan.items.filter(isLeaving) : []
  const ending = yield* endings(leaving)
  // Who was told that nothing is ended has agreed to nothing.
  const agreed = ending.length > 0 || leaving.some(({ guard }) => guard?._tag === "EndClients")
  if (wanted) yield* (yield* Output).note(agreed ? endingsText(name, ending) : noneText(name))
  return yield* Change.change(
    planned,
    agreed ? `End ${counted(ending)} and try ${name} at once?` : `Try ${name} again at once?`,
    // Clients are ended for the declaration that was shown, and not for what somebody writes meanwhile.
    client.retry(name, { end_clients: agreed }, wanted ? { ifMatch: generation } : {}),
    () => `${name} is tried again. Follow it with: volumed wait ${name}\n`
  )
})

/** What it waits for besides, a hold file or a maintenance, may be over while the consent still stands. */
const isLeaving = ({ blocked, chain, guard }: PlanItem): boolean =>
  guard?._tag === "EndClients" ||
  blocked?.reason === "InUse" ||
  blocked?.reason === "Draining" ||
  chain[0]?._tag === "Unexport" ||
  chain[0]?._tag === "Detach"

/** The connections that hold up what is planned; those of a volume that stays are nobody's to end. */
const endings = Effect.fnUntraced(function* (leaving: ReadonlyArray<PlanItem>) {
  const { client } = yield* Daemon
  const exports = yield* Effect.forEach(leaving, ({ volume_id }) =>
    volume_id === null
      ? Effect.succeed([])
      : client.export(volume_id).pipe(
          Effect.map(({ connections }) => connections),
          Effect.catchIf(
            (error) => error._tag === "ApiError" && error.status === 404,
            () => Effect.succeed([])
          )
        )
  )
  return exports.flat()
})

type Connections = ReadonlyArray<Parameters<typeof VolumeText.connection>[0]>

/** None is counted where the export is not listed any more, and somebody holds the disk through it still. */
const counted = ({ length }: Connections): string =>
  length === 0 ? "the NBD connections" : `${length} NBD connection${length === 1 ? "" : "s"}`

const endingsText = (name: string, ending: Connections): string =>
  `This ends ${counted(ending)} of ${name}${ending.length === 0 ? ", whoever has them.\n" : ":\n"}` +
  ending.map((one) => `  ${clean(VolumeText.connection(one))}\n`).join("")

const noneText = (name: string): string => `No NBD client keeps ${name} from leaving: no connection is ended.\n`

export const pause = Effect.fn("Act.pause")(function* (invocation: Invocation) {
  const { client, actor } = yield* Daemon
  const until = yield* Moment.end(invocation)
  const { name } = yield* Handle.resolveOne(invocation.positionals[0] ?? "")
  // A patch is merged member by member: null takes away the end of an earlier pause.
  const paused = { reason: invocation.values.reason ?? "", by: actor, until }
  const planned = yield* client.patchDryRun(name, { paused })
  return yield* Change.change(
    planned,
    `Pause ${name}${until === null ? "" : ` until ${until}`}?`,
    client.patch(name, { paused }),
    () => `${name} is paused${until === null ? "" : ` until ${until}`}. Act for it again with: volumed resume ${name}\n`
  )
})

export const resume = Effect.fn("Act.resume")(function* (invocation: Invocation) {
  const { client } = yield* Daemon
  const volume = yield* Handle.resolveOne(invocation.positionals[0] ?? "")
  const { name } = volume
  if (volume.spec.paused === null) {
    yield* show(volume, () => `${name} is not paused.\n`)
    return "done" as const
  }
  const planned = yield* client.patchDryRun(name, { paused: null })
  return yield* Change.change(
    planned,
    `Act for ${name} again?`,
    client.patch(name, { paused: null }),
    () => `${name} is no longer paused.\n`
  )
})

/** A look, not a change: what the daemon does after it, it would have done a little later by itself. */
export const sync = Effect.fn("Act.sync")(function* () {
  const { client } = yield* Daemon
  const pass = yield* client.forceSync
  yield* show(pass, (paint) => {
    const counts = [
      `${pass.settled} of ${pass.declarations} as declared`,
      `${pass.actions} ${pass.actions === 1 ? "action" : "actions"} taken`,
      `${pass.blocked} waiting or blocked`,
      `${pass.operations_settled} operations settled`
    ]
    const problems = pass.problems.map((problem) => paint.bad(`! ${clean(problem)}\n`))
    return `A full pass took ${(pass.duration_ms / 1000).toFixed(1)} s: ${counts.join(", ")}.\n${problems.join("")}`
  })
  return pass.problems.length > 0 ? "held" : "done"
})
