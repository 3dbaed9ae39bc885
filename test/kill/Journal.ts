import type { OperationAnswer } from "../../schema/Api.ts"
import type { Json } from "../../src/Simulation/State.ts"

/** The rows that act, oldest first, beside the calls that CloudStack was asked for. */
export interface Books {
  readonly operations: ReadonlyArray<OperationAnswer>
  readonly world: Json
}

const commands = {
  create: "createVolume",
  attach: "attachVolume",
  detach: "detachVolume",
  delete: "deleteVolume"
} as const
type Kind = keyof typeof commands
const kinds = Object.keys(commands) as ReadonlyArray<Kind>

const TAGGING = new Set(["createTags", "deleteTags"])

/**
 * What the world's books and the journal say about each other's gaps; empty when they are equal: no call without a row
 * that was durable before it (S8), no effect without a row that says completed, none completed without its effect (S7), no answer that the world does not stand by.
 */
export const disagreements = (books: Books): ReadonlyArray<string> => [
  ...kinds.flatMap((kind) => unexplained(books, kind)),
  ...untagged(books),
  ...kinds.flatMap((kind) => misrecorded(books, kind)),
  ...forgotten(books),
  ...books.operations
    .filter(({ status, phase }) => status === "pending" || status === "executing" || !isFinal(phase))
    .map(({ id, type, name, status, phase }) => `operation ${id} (${type} of ${name}) is still ${status}, ${phase}`)
]

/** What CloudStack answered once it knows for good, killed or not. */
const forgotten = ({ operations, world }: Books): ReadonlyArray<string> => {
  const known = new Set(world.jobs.map(({ id, command, touches }) => `${id} ${command} ${touches[0]}`))
  return operations.flatMap(({ id, type, job_id, volume_id }) => {
    const names = type in commands ? [commands[type as Kind]] : [...TAGGING]
    return (job_id ?? null) === null || names.some((command) => known.has(`${job_id} ${command} ${volume_id}`))
      ? []
      : [`${type} ${id} of ${volume_id} was answered with job ${job_id}, of which the world knows nothing`]
  })
}

const isFinal = (phase: OperationAnswer["phase"]) => phase === "settled" || phase === "refused"

/** The n-th call about a volume needs an n-th row, made before it. A create's volume is not known when it is asked for. */
const unexplained = ({ operations, world }: Books, kind: Kind): ReadonlyArray<string> => {
  const about = (id: string | null) => (kind === "create" ? "" : (id ?? ""))
  const rows = groupBy(
    operations.filter(({ type }) => type === kind),
    ({ volume_id }) => about(volume_id)
  )
  const calls = groupBy(
    world.mutations.filter(({ command }) => command === commands[kind]),
    ({ volume_id }) => about(volume_id)
  )
  return [...calls].flatMap(([id, made]) => {
    const intended = (rows.get(id) ?? []).map(({ created_at }) => Date.parse(created_at)).toSorted((a, b) => a - b)
    return made.flatMap(({ at }, n) =>
      (intended[n] ?? Infinity) <= at
        ? []
        : [`${commands[kind]} of ${id || "a volume"} at ${new Date(at).toISOString()}, the ${n + 1}th, has no intent`]
    )
  })
}

/** Tags take one call or two. */
const untagged = ({ operations, world }: Books): ReadonlyArray<string> => {
  const rows = groupBy(
    operations.filter(({ type }) => type === "tag"),
    ({ volume_id }) => volume_id
  )
  const calls = groupBy(
    world.mutations.filter(({ command }) => TAGGING.has(command)),
    ({ volume_id }) => volume_id ?? ""
  )
  return [...calls].flatMap(([id, made]) =>
    made.length <= 2 * (rows.get(id)?.length ?? 0)
      ? []
      : [`${made.length} calls about tags of ${id} have too few intents`]
  )
}

const misrecorded = ({ operations, world }: Books, kind: Kind): ReadonlyArray<string> => {
  const completed = groupBy(
    operations.filter(({ type, status }) => type === kind && status === "completed"),
    ({ volume_id }) => volume_id
  )
  const effects = effectsOf(world, kind)
  return [...new Set([...completed.keys(), ...effects.keys()])].flatMap((id) => {
    const said = completed.get(id)?.length ?? 0
    const done = effects.get(id) ?? 0
    return said === done
      ? []
      : [`${kind} of ${id} is completed ${said} times in the journal and ${done} times in the world`]
  })
}

/** How often each volume saw this, by its id. */
const effectsOf = (world: Json, kind: Kind): ReadonlyMap<string, number> => {
  const disks = world.volumes.filter(({ type }) => type === "DATADISK")
  if (kind === "create") return new Map(disks.map(({ id }) => [id, 1]))
  if (kind === "delete")
    return new Map(disks.flatMap(({ id, removed_at }) => (removed_at === null ? [] : [[id, 1] as const])))
  const done = world.jobs.filter(({ command, status }) => command === commands[kind] && status === 1)
  return new Map([...groupBy(done, ({ touches }) => touches[0] ?? "")].map(([id, jobs]) => [id, jobs.length]))
}

const groupBy = <A>(all: ReadonlyArray<A>, key: (one: A) => string): ReadonlyMap<string, ReadonlyArray<A>> => {
  const groups = new Map<string, Array<A>>()
  for (const one of all) groups.set(key(one), [...(groups.get(key(one)) ?? []), one])
  return groups
}
