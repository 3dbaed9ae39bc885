/**
 * Accepting declarations: (what is declared, what is asked) → what to write, or why not. No clock, no randomness, no I/O.
 *
 * Nothing here is stored; a change carries its compare-and-swap write and the declaration as it would be, so that a dry
 * run plans for exactly what a write would store.
 */
import { Effect } from "effect"
import {
  type Declaration,
  type Deletion,
  type DeletionPolicy,
  type Manager,
  type Spec,
  unbound
} from "../schema/Declaration.ts"
import { type ApplyRequest, type Problem, Refused, type Wish } from "../schema/Document.ts"
import type { Name, OfferingId, Uid, VmId, VolumeId, ZoneId } from "../schema/Ids.ts"
import { isCall, isUnresolved, type Operation } from "../schema/Operation.ts"
import type { Write } from "./Store.ts"

export interface Context {
  /** ms since the epoch. */
  readonly now: number
  /** Who asks: for the history, and as manager of the fields that a single write changes. Never `apply` nor `set:…`. */
  readonly actor: string
  readonly appliance_vm_id: VmId
  readonly defaults: { readonly disk_offering_id: OfferingId | null; readonly zone_id: ZoneId | null }
  /** From a declared delete to the volume going, ms. */
  readonly delete_grace_ms: number
  readonly newUid: () => Uid
}

/** What the caller demands of the generation it writes over. */
export interface Precondition {
  /** `any`: there must be one (`If-Match: *`). */
  readonly if_match: ReadonlyArray<number> | "any" | null
  /** There must be none (`If-None-Match: *`). */
  readonly if_none_match: boolean
}

export const unconditional: Precondition = { if_match: null, if_none_match: false }

export interface Change {
  readonly outcome: "created" | "changed" | "unchanged" | "removed"
  /** The declaration as it would be stored. */
  readonly declaration: Declaration
  /** Null when nothing is to be written. */
  readonly write: Write | null
}

export interface Applied {
  readonly changes: ReadonlyArray<Change>
  readonly pruned: ReadonlyArray<Change>
  /** Of the same set and no longer in the document, but with a policy that a prune does not carry out. */
  readonly prune_kept: ReadonlyArray<Name>
}

type Code = Refused["code"]

/** A problem with the code it would be refused under; the gravest of all names the refusal. */
interface Trouble extends Problem {
  readonly code: Code
}

/** Omitted by a later PUT or apply, these stay: they were decided when the declaration was made. */
const kept: ReadonlySet<keyof Spec> = new Set([
  "attached_to",
  "attach_as",
  "export_wanted",
  "size",
  "disk_offering_id",
  "zone_id",
  "volume_id"
])

/** A change of these would mean another volume. The text says what to do instead. */
const immutable = {
  size: "a declaration never resizes or replaces a volume: resize it in CloudStack, where larger than declared is fine, or declare a new name",
  disk_offering_id: "declare a new name with this offering, copy the data, then delete this declaration",
  zone_id: "declare a new name in this zone, copy the data, then delete this declaration",
  volume_id:
    "delete this declaration with policy forget, which touches nothing, and adopt the other volume under a name of its own"
} as const satisfies { readonly [K in keyof Spec]?: string }

const suggestions: { readonly [K in Code]: string | null } = {
  INVALID_REQUEST: null,
  NOT_FOUND: "list what is declared with GET /api/v2/volumes",
  CONFLICT: null,
  DELETING: "wait until the removal is done, or undelete it",
  FIELD_CONFLICT: "read what the other writer changed; adopt it in the file, or apply with take_over to overwrite it",
  PRECONDITION_FAILED: "read it again, decide again, and repeat with the new generation",
  CLOUDSTACK_INVALID_PARAMETER: null,
  FIELD_IMMUTABLE: "leave the field out or as it is"
}

const gravest: ReadonlyArray<Code> = [
  "INVALID_REQUEST",
  "NOT_FOUND",
  "PRECONDITION_FAILED",
  "DELETING",
  "FIELD_IMMUTABLE",
  "CONFLICT",
  "FIELD_CONFLICT"
]

/** Every problem in one refusal. Never called without any. */
const refuse = (troubles: ReadonlyArray<Trouble>): Effect.Effect<never, Refused> => {
  const code = gravest.find((candidate) => troubles.some((trouble) => trouble.code === candidate)) ?? "INVALID_REQUEST"
  const first = troubles.find((trouble) => trouble.code === code)
  const place = [first?.name, first?.field].filter((part) => typeof part === "string").join(": ")
  const more = troubles.length > 1 ? ` (and ${troubles.length - 1} more, see details.errors)` : ""
  return Effect.fail(
    new Refused({
      code,
      error: `${place}: ${first?.problem ?? ""}${more}`,
      suggestion: suggestions[code],
      errors: troubles.map(({ index, name, field, problem }) => ({ index, name, field, problem }))
    })
  )
}

const accept = (result: Result): Effect.Effect<Change, Refused> =>
  "troubles" in result ? refuse(result.troubles) : Effect.succeed(result)

type Result = Change | { readonly troubles: ReadonlyArray<Trouble> }

/** Make or replace one declaration. `existing`: all living ones, or at least those that may claim the same volume. */
export const put = (
  existing: ReadonlyArray<Declaration>,
  wish: Wish,
  precondition: Precondition,
  context: Context
): Effect.Effect<Change, Refused> => {
  const current = named(existing, wish.name)
  const trouble = preconditionTrouble(current, wish.name, precondition)
  if (trouble !== null) return refuse([trouble])
  return accept(write(current, wish, { ...single(context), omitted: "default" }, claims(existing), context))
}

/** Change some members of one declaration and keep all others. */
export const patch = (
  existing: ReadonlyArray<Declaration>,
  wish: Wish,
  precondition: Precondition,
  context: Context
): Effect.Effect<Change, Refused> => {
  const current = named(existing, wish.name)
  const trouble = current === null ? notFound(wish.name) : preconditionTrouble(current, wish.name, precondition)
  if (trouble !== null) return refuse([trouble])
  return accept(write(current, wish, { ...single(context), omitted: "keep" }, claims(existing), context))
}

/** Many at once, all or none. */
export const apply = (
  existing: ReadonlyArray<Declaration>,
  request: ApplyRequest,
  context: Context
): Effect.Effect<Applied, Refused> => {
  const byName = new Map(existing.map((declaration) => [declaration.name, declaration]))
  const claimed = claims(existing)
  const manager = request.set === null ? "apply" : `set:${request.set}`
  const writer: Writer = { manager, set: request.set, omitted: "own", take_over: request.take_over }
  const troubles: Array<Trouble> = []
  const changes: Array<Change> = []
  for (const [index, wish] of request.volumes.entries()) {
    const result = write(byName.get(wish.name) ?? null, wish, writer, claimed, context)
    if ("troubles" in result) {
      troubles.push(...result.troubles.map((trouble) => ({ ...trouble, index })))
    } else {
      changes.push(result)
      claim(claimed, result.declaration)
    }
  }
  const pruning = prune(existing, request, context)
  troubles.push(...pruning.troubles)
  if (troubles.length > 0) return refuse(troubles)
  return Effect.succeed({ changes, pruned: pruning.pruned, prune_kept: pruning.prune_kept })
}

/** Declare one removed. Repeating it changes nothing. */
export const remove = (
  existing: ReadonlyArray<Declaration>,
  name: Name,
  policy: DeletionPolicy | null,
  precondition: Precondition,
  context: Context
): Effect.Effect<Change, Refused> => {
  const current = named(existing, name)
  if (current === null) return refuse([notFound(name)])
  const trouble = preconditionTrouble(current, name, precondition)
  if (trouble !== null) return refuse([trouble])
  if (current.deletion === null) return Effect.succeed(removal(current, policy, context))
  if (policy === null || policy === current.deletion.policy) return Effect.succeed(unchanged(current))
  return refuse([deleting(current)])
}

/**
 * Take a removal back. `operations`: those of this declaration. Once a delete call may have been sent there is nothing
 * left to take back.
 */
export const undelete = (
  existing: ReadonlyArray<Declaration>,
  name: Name,
  operations: ReadonlyArray<Operation>,
  precondition: Precondition,
  context: Context
): Effect.Effect<Change, Refused> => {
  const current = named(existing, name)
  if (current === null) return refuse([notFound(name)])
  const trouble = preconditionTrouble(current, name, precondition)
  if (trouble !== null) return refuse([trouble])
  if (current.deletion === null) return Effect.succeed(unchanged(current))
  const sent = operations.find((operation) => operation.uid === current.uid && isIrreversible(operation))
  if (sent !== undefined) {
    const problem = `cannot be undeleted: the deletion of its volume has begun (operation ${sent.id})`
    return refuse([{ code: "DELETING", index: null, name, field: null, problem }])
  }
  return Effect.succeed(changed(current, { deletion: null }, "undeleted", context))
}

/** A delete whose call was, or at this very moment may be, sent. */
export const isIrreversible = (operation: Operation): boolean =>
  operation.type === "delete" && !isCall(operation) && (isUnresolved(operation) || operation.phase === "settled")

interface Writer {
  /** Written beside the fields that change. */
  readonly manager: string
  /** The set that is applied; null leaves a declaration in the set it is in. */
  readonly set: string | null
  /** What an omitted member becomes: its default, what it was, or its default where no other manager wrote it. */
  readonly omitted: "default" | "keep" | "own"
  readonly take_over: boolean
}

const single = (context: Context) => ({ manager: context.actor, set: null, take_over: true })

const write = (
  current: Declaration | null,
  wish: Wish,
  writer: Writer,
  claimed: ReadonlyMap<VolumeId, Name>,
  context: Context
): Result => {
  const trouble = identityTrouble(current, wish)
  if (trouble !== null) return { troubles: [trouble] }
  const spec = current === null ? created(wish, context) : updated(current, wish, writer)
  const troubles = [
    ...specTroubles(spec, wish.name, current === null, context),
    ...(current === null ? claimTroubles(spec, wish.name, claimed) : immutableTroubles(current, spec)),
    ...(current === null || writer.take_over ? [] : conflictTroubles(current, spec, wish, writer))
  ]
  if (troubles.length > 0) return { troubles }
  return current === null ? make(spec, wish, writer, context) : replace(current, spec, writer, context)
}

const identityTrouble = (current: Declaration | null, wish: Wish): Trouble | null => {
  if (current !== null && current.deletion !== null) return deleting(current)
  if (wish.uid === null || wish.uid === current?.uid) return null
  const found = current === null ? "is not declared any more" : `now has the uid ${current.uid}`
  const problem = `expected the declaration ${wish.uid}, but ${wish.name} ${found}; leave uid out to write it anyway`
  return { code: "CONFLICT", index: null, name: wish.name, field: "uid", problem }
}

/** All members with the values they have when nobody says anything. */
const blank = (name: Name): Spec => ({
  cloudstack_name: name,
  volume_id: null,
  size: null,
  disk_offering_id: null,
  zone_id: null,
  attached_to: null,
  attach_as: "data",
  export_wanted: null,
  read_only: false,
  deletion_policy: "forget",
  on_conflict: "hold",
  on_drift: "repair",
  on_loss: "hold",
  paused: null,
  metadata: {}
})

const keysOf = (spec: Spec) => Object.keys(spec) as ReadonlyArray<keyof Spec>

/** One member of `spec` replaced; `null` is the member's absence, or its default where it has no absence. */
const assign = <K extends keyof Spec>(spec: Spec, key: K, value: Spec[K] | null, fallback: Spec): Spec => ({
  ...spec,
  [key]: value ?? fallback[key]
})

const created = (wish: Wish, context: Context): Spec => {
  const absent = blank(wish.name)
  const made = (wish.spec.volume_id ?? null) === null
  const start: Spec = made ? { ...absent, ...context.defaults, attached_to: "none", export_wanted: false } : absent
  // A null offering or zone at creation asks for the configured one: there is no volume without.
  const fallback: Spec = made ? { ...absent, ...context.defaults } : absent
  return keysOf(absent).reduce((spec, key) => {
    const value = wish.spec[key]
    return value === undefined ? spec : assign(spec, key, value, fallback)
  }, start)
}

const updated = (current: Declaration, wish: Wish, writer: Writer): Spec => {
  const absent = blank(current.name)
  const keeps = (key: keyof Spec) =>
    writer.omitted === "keep" ||
    kept.has(key) ||
    (writer.omitted === "own" && (current.managers[key]?.by ?? writer.manager) !== writer.manager)
  return keysOf(absent).reduce((spec, key) => {
    const value = wish.spec[key]
    if (value !== undefined) return assign(spec, key, value, absent)
    return keeps(key) ? spec : assign(spec, key, null, absent)
  }, current.spec)
}

const specTroubles = (spec: Spec, name: Name, isNew: boolean, context: Context): ReadonlyArray<Trouble> => {
  const troubles: Array<Trouble> = []
  const report = (field: keyof Spec, problem: string) =>
    void troubles.push({ code: "INVALID_REQUEST", index: null, name, field, problem })
  if (isNew && spec.volume_id === null) {
    if (spec.size === null) report("size", 'required to create a volume; example: "100GiB"')
    if (spec.disk_offering_id === null) report("disk_offering_id", "required to create a volume: none is configured")
    if (spec.zone_id === null) report("zone_id", "required to create a volume: none is configured")
  }
  const onAppliance = spec.attached_to === "appliance" || spec.attached_to === context.appliance_vm_id
  if (spec.attach_as === "root" && onAppliance) {
    report(
      "attach_as",
      "expected data on the appliance; root is for another VM that is stopped and without a root volume"
    )
  }
  return troubles
}

const claimTroubles = (spec: Spec, name: Name, claimed: ReadonlyMap<VolumeId, Name>): ReadonlyArray<Trouble> => {
  const owner = spec.volume_id === null ? undefined : claimed.get(spec.volume_id)
  if (owner === undefined) return []
  const problem = `the volume ${spec.volume_id} belongs to the declaration ${owner}; change that one, or delete it first`
  return [{ code: "CONFLICT", index: null, name, field: "volume_id", problem }]
}

const immutableTroubles = (current: Declaration, spec: Spec): ReadonlyArray<Trouble> =>
  (Object.keys(immutable) as ReadonlyArray<keyof typeof immutable>).flatMap((field) => {
    if (current.spec[field] === spec[field]) return []
    const problem = `cannot change from ${current.spec[field] ?? "absent"} to ${spec[field] ?? "absent"}: ${immutable[field]}`
    return [{ code: "FIELD_IMMUTABLE", index: null, name: current.name, field, problem }]
  })

/** Fields that the document changes although another manager wrote them since this manager wrote last. */
const conflictTroubles = (current: Declaration, spec: Spec, wish: Wish, writer: Writer): ReadonlyArray<Trouble> => {
  const trouble = (field: string, problem: string): Trouble => ({
    code: "FIELD_CONFLICT",
    index: null,
    name: current.name,
    field,
    problem
  })
  const last = lastWrite(current.managers, writer.manager)
  const fields = changedKeys(current.spec, spec).flatMap((field) => {
    const other = current.managers[field]
    if (wish.spec[field] === undefined || other === undefined || other.by === writer.manager) return []
    // The same instant counts as later: a conflict too many is asked about, one too few is lost.
    if (last !== null && Date.parse(other.at) < last) return []
    return [trouble(field, `was written by ${other.by} at ${other.at}, since ${writer.manager} was applied last`)]
  })
  const foreign = writer.set !== null && current.set !== null && current.set !== writer.set
  return foreign ? [trouble("set", `belongs to the set ${current.set}`), ...fields] : fields
}

const lastWrite = (managers: Readonly<Record<string, Manager>>, by: string): number | null => {
  const times = Object.values(managers).flatMap((manager) => (manager.by === by ? [Date.parse(manager.at)] : []))
  return times.length === 0 ? null : Math.max(...times)
}

const make = (spec: Spec, wish: Wish, writer: Writer, context: Context): Change => {
  const at = rfc3339(context.now)
  const stated = keysOf(spec).filter((key) => wish.spec[key] !== undefined)
  const declaration: Declaration = {
    name: wish.name,
    uid: context.newUid(),
    generation: 1,
    created_at: at,
    updated_at: at,
    set: writer.set,
    managers: managed({}, stated, writer.manager, at),
    spec,
    deletion: null,
    removed_at: null,
    binding: unbound
  }
  return { outcome: "created", declaration, write: toWrite(declaration, null, "declared", context) }
}

const replace = (current: Declaration, spec: Spec, writer: Writer, context: Context): Change => {
  const keys = changedKeys(current.spec, spec)
  const set = writer.set ?? current.set
  // Said again after a late effect it is a new word: it decides what nobody had decided.
  if (keys.length === 0 && set === current.set && current.binding.late === null) return unchanged(current)
  const managers = managed(current.managers, keys, writer.manager, rfc3339(context.now))
  return changed(current, { spec, set, managers }, "changed", context)
}

const removal = (current: Declaration, policy: DeletionPolicy | null, context: Context): Change => {
  const chosen = policy ?? current.spec.deletion_policy
  const deletion: Deletion = {
    policy: chosen,
    requested_at: rfc3339(context.now),
    by: context.actor,
    execute_after: rfc3339(context.now + (chosen === "delete" ? context.delete_grace_ms : 0))
  }
  return { ...changed(current, { deletion }, "removed", context), outcome: "removed" }
}

const unchanged = (declaration: Declaration): Change => ({ outcome: "unchanged", declaration, write: null })

const changed = (
  current: Declaration,
  part: Partial<Pick<Declaration, "spec" | "set" | "managers" | "deletion">>,
  kind: Write["kind"],
  context: Context
): Change => {
  const generation = current.generation + 1
  const declaration: Declaration = { ...current, ...part, generation, updated_at: rfc3339(context.now) }
  return { outcome: "changed", declaration, write: toWrite(declaration, current.generation, kind, context) }
}

const toWrite = (
  { name, uid, generation, set, spec, managers, deletion }: Declaration,
  expected_generation: number | null,
  kind: Write["kind"],
  context: Context
): Write => ({
  name,
  expected_generation,
  uid,
  generation,
  set,
  spec,
  managers,
  deletion,
  actor: context.actor,
  kind
})

const managed = (
  managers: Readonly<Record<string, Manager>>,
  keys: ReadonlyArray<keyof Spec>,
  by: string,
  at: string
): Readonly<Record<string, Manager>> => ({ ...managers, ...Object.fromEntries(keys.map((key) => [key, { by, at }])) })

interface Pruning {
  readonly troubles: ReadonlyArray<Trouble>
  readonly pruned: ReadonlyArray<Change>
  readonly prune_kept: ReadonlyArray<Name>
}

/** More of a set than this share is never removed by leaving it out of a file. */
const PRUNE_SHARE_MAX = 0.2

const prune = (existing: ReadonlyArray<Declaration>, request: ApplyRequest, context: Context): Pruning => {
  const refused = (problem: string): Pruning => ({
    troubles: [{ code: "INVALID_REQUEST", index: null, name: null, field: "prune", problem }],
    pruned: [],
    prune_kept: []
  })
  if (!request.prune) return { troubles: [], pruned: [], prune_kept: [] }
  if (request.set === null) return refused("expected a set: only declarations of the same set are pruned")
  if (request.volumes.length === 0) return refused("an empty document prunes nothing; delete the declarations by name")
  const wanted = new Set<string>(request.volumes.map((wish) => wish.name))
  const members = existing.filter((declaration) => declaration.set === request.set && declaration.deletion === null)
  const missing = members.filter((declaration) => !wanted.has(declaration.name))
  const leaving = missing.filter((declaration) => declaration.spec.deletion_policy === "forget")
  if (leaving.length > members.length * PRUNE_SHARE_MAX) {
    const share = `${leaving.length} of the set's ${members.length} declarations`
    return refused(`would remove ${share}, more than ${PRUNE_SHARE_MAX * 100} %; delete them by name`)
  }
  return {
    troubles: [],
    pruned: leaving.map((declaration) => removal(declaration, "forget", context)),
    prune_kept: missing.filter((declaration) => !leaving.includes(declaration)).map((declaration) => declaration.name)
  }
}

const named = (existing: ReadonlyArray<Declaration>, name: Name): Declaration | null =>
  existing.find((declaration) => declaration.name === name) ?? null

/** Which declaration each volume belongs to: by being declared, or by having been made for it. */
const claims = (existing: ReadonlyArray<Declaration>): Map<VolumeId, Name> => {
  const claimed = new Map<VolumeId, Name>()
  for (const declaration of existing) claim(claimed, declaration)
  return claimed
}

const claim = (claimed: Map<VolumeId, Name>, { name, spec, binding }: Declaration) => {
  for (const id of [spec.volume_id, binding.volume_id]) if (id !== null && !claimed.has(id)) claimed.set(id, name)
}

const preconditionTrouble = (
  current: Declaration | null,
  name: Name,
  { if_match, if_none_match }: Precondition
): Trouble | null => {
  const trouble = (problem: string): Trouble => ({
    code: "PRECONDITION_FAILED",
    index: null,
    name,
    field: null,
    problem
  })
  if (if_none_match && current !== null) return trouble(`is declared already, at generation ${current.generation}`)
  if (if_match === null) return null
  if (current === null) return trouble("is not declared")
  if (if_match === "any" || if_match.includes(current.generation)) return null
  return trouble(`is at generation ${current.generation}, not ${if_match.join(" or ")}`)
}

const notFound = (name: Name): Trouble => ({
  code: "NOT_FOUND",
  index: null,
  name,
  field: null,
  problem: "is not declared"
})

const deleting = ({ name, deletion }: Declaration): Trouble => ({
  code: "DELETING",
  index: null,
  name,
  field: null,
  problem: `is being removed (policy ${deletion?.policy ?? "unknown"}, requested at ${deletion?.requested_at ?? "unknown"})`
})

const changedKeys = (before: Spec, after: Spec): ReadonlyArray<keyof Spec> =>
  keysOf(after).filter((key) => canonical(before[key]) !== canonical(after[key]))

/** JSON with sorted keys: equal texts are equal values. */
const canonical = (value: unknown): string =>
  JSON.stringify(value, (_, member: unknown) =>
    typeof member === "object" && member !== null && !Array.isArray(member)
      ? Object.fromEntries(Object.entries(member).toSorted(([a], [b]) => (a < b ? -1 : 1)))
      : member
  )

const rfc3339 = (ms: number): string => new Date(ms).toISOString()
