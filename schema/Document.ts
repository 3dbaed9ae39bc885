import { Effect, Either, Schema } from "effect"
import { GIB, Metadata, Paused, type Spec, Spec as SpecSchema } from "./Declaration.ts"
import { isMoment, Name, Uid } from "./Ids.ts"
import { nearest } from "./Nearest.ts"

/** One thing wrong with what was sent: where, what was expected, and an example. */
export const Problem = Schema.Struct({
  /** Place in `volumes`; null when what was sent is not a list. */
  index: Schema.NullOr(Schema.Int),
  name: Schema.NullOr(Schema.String),
  field: Schema.NullOr(Schema.String),
  problem: Schema.String
})
export type Problem = typeof Problem.Type

/** Nothing of what was asked is stored. `errors` holds every problem, not the first. */
export class Refused extends Schema.TaggedError<Refused>()("Refused", {
  code: Schema.Literal(
    "INVALID_REQUEST",
    "NOT_FOUND",
    "CONFLICT",
    "DELETING",
    "FIELD_CONFLICT",
    "PRECONDITION_FAILED",
    "CLOUDSTACK_INVALID_PARAMETER",
    "FIELD_IMMUTABLE"
  ),
  error: Schema.String,
  suggestion: Schema.NullOr(Schema.String),
  errors: Schema.Array(Problem)
}) {
  override get message() {
    return this.error
  }
}

/** Spec members as a caller stated them. A key that is missing was omitted (keep); `null` makes the member absent. */
export type SpecChange = { readonly [K in keyof Spec]?: Spec[K] | null }

export interface Wish {
  readonly name: Name
  /** From a whole answer: the wish is for that declaration and no other of the same name. */
  readonly uid: Uid | null
  readonly spec: SpecChange
}

export interface Document {
  readonly set: string | null
  readonly volumes: ReadonlyArray<Wish>
}

export interface ApplyRequest extends Document {
  readonly take_over: boolean
  readonly prune: boolean
}

/** Deepest nesting that is looked at. A declaration needs three levels. */
export const DEPTH_MAX = 32
/** Problems that one refusal lists; more of them tell nobody anything. */
const PROBLEMS_MAX = 200

/** A file: `volumes` with an optional `set`. */
export const decodeFile = (value: unknown): Effect.Effect<Document, Refused> =>
  decodeWith(value, (found) => readDocument(value, ["set", "volumes"], found))

/** The body of an apply: a file and how to apply it. */
export const decodeApply = (value: unknown): Effect.Effect<ApplyRequest, Refused> =>
  decodeWith(value, (found) => ({
    ...readDocument(value, ["set", "volumes", "take_over", "prune"], found),
    take_over: readFlag(value, "take_over", found),
    prune: readFlag(value, "prune", found)
  }))

/** The body of a PUT: spec members flat, or a whole answer. */
export const decodePut = (name: string, value: unknown): Effect.Effect<Wish, Refused> =>
  decodeWith(value, (found) => readWish(value, { index: null, name }, found))

/** The body of a PATCH, a JSON merge patch (RFC 7396) on `current`: nested members are merged, `null` removes. */
export const decodePatch = (name: string, value: unknown, current: Spec): Effect.Effect<Wish, Refused> =>
  decodeWith(value, (found) => readWish(mergeNested(value, current), { index: null, name }, found))

/** A problem that is known before what was sent could be read as a document. */
export const invalid = (problem: string, suggestion: string | null = null): Refused =>
  refused([{ index: null, name: null, field: null, problem }], suggestion)

type Found = (problem: Problem) => void

const refused = (problems: ReadonlyArray<Problem>, suggestion: string | null = null): Refused => {
  const [first] = problems
  const place = first === undefined ? "" : [first.name, first.field].filter((part) => part !== null).join(": ")
  const more = problems.length > 1 ? ` (and ${problems.length - 1} more, see details.errors)` : ""
  return new Refused({
    code: "INVALID_REQUEST",
    error: `${place === "" ? "" : `${place}: `}${first?.problem ?? "not acceptable"}${more}`,
    suggestion,
    errors: problems.slice(0, PROBLEMS_MAX)
  })
}

const decodeWith = <A>(value: unknown, read: (found: Found) => A | null): Effect.Effect<A, Refused> => {
  const hostile = hostileProblem(value)
  if (hostile !== null) return Effect.fail(invalid(hostile))
  const problems: Array<Problem> = []
  const result = read((problem) => void problems.push(problem))
  return result === null || problems.length > 0 ? Effect.fail(refused(problems)) : Effect.succeed(result)
}

/** What no honest document holds and what would make trouble further on: found before anything is interpreted. */
const hostileProblem = (value: unknown, depth = 0): string | null => {
  if (typeof value === "string") return textProblem(value)
  if (typeof value !== "object" || value === null) return null
  if (depth >= DEPTH_MAX) return `expected at most ${DEPTH_MAX} levels of nesting`
  for (const [key, member] of Object.entries(value)) {
    if (key === "__proto__") return "expected no key __proto__"
    const problem = textProblem(key) ?? hostileProblem(member, depth + 1)
    if (problem !== null) return problem
  }
  return null
}

/** With the flag `u` this class matches a surrogate only where its other half is missing. */
const loneSurrogate = /[\ud800-\udfff]/u
const textProblem = (text: string): string | null =>
  loneSurrogate.test(text) ? "expected valid Unicode text, found half of a surrogate pair" : null

export const isObject = (value: unknown): value is Readonly<Record<string, unknown>> =>
  typeof value === "object" && value !== null && !Array.isArray(value)

const member = (value: unknown, key: string): unknown =>
  isObject(value) && Object.hasOwn(value, key) ? value[key] : undefined

const readDocument = (value: unknown, keys: ReadonlyArray<string>, found: Found): Document => {
  const report = (field: string | null, problem: string) =>
    found({ index: null, name: null, field: field === null ? null : clip(field), problem })
  if (!isObject(value)) {
    report(null, `expected an object with volumes, found ${show(value)}; example: {"volumes": [{"name": "a"}]}`)
    return { set: null, volumes: [] }
  }
  for (const key of Object.keys(value)) if (!keys.includes(key)) report(key, unknownKey(key, keys))
  const volumes = member(value, "volumes")
  if (!Array.isArray(volumes)) {
    report(
      "volumes",
      `expected a list, found ${show(volumes)}; example: [{"name": "pgtest2-disk-0", "size": "100GiB"}]`
    )
  }
  return { set: readSet(member(value, "set"), report), volumes: readVolumes(volumes, found) }
}

const readSet = (value: unknown, report: (field: string, problem: string) => void): string | null => {
  if (value === undefined || value === null) return null
  if (Schema.is(Name)(value)) return value
  report("set", `expected a name such as migration-7, found ${show(value)}`)
  return null
}

const readFlag = (value: unknown, key: string, found: Found): boolean => {
  const flag = member(value, key)
  if (flag === undefined || typeof flag === "boolean") return flag === true
  found({ index: null, name: null, field: key, problem: `expected true or false, found ${show(flag)}` })
  return false
}

const readVolumes = (volumes: unknown, found: Found): ReadonlyArray<Wish> => {
  const wishes: Array<Wish> = []
  const seen = new Map<string, number>()
  for (const [index, value] of (Array.isArray(volumes) ? volumes : []).entries()) {
    const name = member(value, "name")
    const first = typeof name === "string" ? seen.get(name) : undefined
    if (typeof name === "string" && first !== undefined) {
      found({
        index,
        name: clip(name),
        field: "name",
        problem: `expected every name once; volumes[${first}] has it already`
      })
    }
    const wish = readWish(value, { index, name: typeof name === "string" ? name : null }, found)
    if (typeof name === "string" && first === undefined) seen.set(name, index)
    if (wish !== null) wishes.push(wish)
  }
  return wishes
}

/** Members of an answer that the server owns: ignored in a whole answer (`uid` must match), refused as flat keys. */
export const serverOwned: ReadonlyArray<string> = [
  "uid",
  "generation",
  "created_at",
  "updated_at",
  "set",
  "managers",
  "status",
  "deletion",
  "removed_at"
]

interface Place {
  readonly index: number | null
  /** From the path of the request, or from the entry itself. */
  readonly name: string | null
}

const readWish = (value: unknown, place: Place, found: Found): Wish | null => {
  const name = place.name === null ? null : clip(place.name)
  const report = (field: string | null, problem: string) =>
    found({ index: place.index, name, field: field === null ? null : clip(field), problem })
  if (!isObject(value)) {
    report(null, `expected an object, found ${show(value)}; example: {"size": "100GiB", "attached_to": "appliance"}`)
    return null
  }
  const whole = Object.hasOwn(value, "spec")
  const spec = whole ? value["spec"] : value
  if (whole) checkAnswer(value, report)
  const wish = {
    name: readName(value, place, report),
    uid: whole ? readUid(value["uid"], report) : null,
    spec: isObject(spec) ? readSpec(spec, whole, report) : {}
  }
  if (!isObject(spec)) report("spec", `expected an object, found ${show(spec)}`)
  return wish.name === null ? null : { ...wish, name: wish.name }
}

type Report = (field: string | null, problem: string) => void

const readName = (value: Readonly<Record<string, unknown>>, place: Place, report: Report): Name | null => {
  const inside = member(value, "name")
  const wanted = place.name ?? inside
  if (!Schema.is(Name)(wanted)) {
    report("name", `${expectedName}, found ${show(wanted)}`)
    return null
  }
  if (inside !== undefined && inside !== wanted) {
    report("name", `expected ${wanted} as in the path, found ${show(inside)}; a declaration cannot be renamed`)
  }
  return wanted
}

const expectedName =
  "expected 1-253 characters of A-Z a-z 0-9 . _ - starting with a letter or digit, for example pgtest2-disk-0"

const readUid = (value: unknown, report: Report): Uid | null => {
  if (value === undefined || value === null) return null
  if (Schema.is(Uid)(value)) return value
  report("uid", `expected the uid as answered, found ${show(value)}`)
  return null
}

const checkAnswer = (value: Readonly<Record<string, unknown>>, report: Report) => {
  const keys = ["name", "spec", ...serverOwned]
  for (const key of Object.keys(value)) {
    if (keys.includes(key)) continue
    report(key, Object.hasOwn(members, key) ? `expected inside spec, found beside it` : unknownKey(key, keys))
  }
}

const readSpec = (spec: Readonly<Record<string, unknown>>, whole: boolean, report: Report): SpecChange => {
  const change: Record<string, unknown> = {}
  for (const [key, value] of Object.entries(spec)) {
    if (key === "name" && !whole) continue
    if (Object.hasOwn(members, key)) {
      if (value !== undefined) change[key] = readMember(key as keyof Spec, value, report)
    } else if (!whole && serverOwned.includes(key)) {
      report(key, key === "set" ? "expected beside volumes, not inside one" : "is set by the server; leave it out")
    } else {
      report(key, unknownKey(key, Object.keys(members)))
    }
  }
  return change as SpecChange
}

const readMember = (key: keyof Spec, value: unknown, report: Report): unknown => {
  if (value === null) return null
  const { expected, example, read } = members[key]
  const result = read(value)
  if ("value" in result) return result.value
  const why = result.problem ?? `expected ${expected}, found ${show(value)}`
  report(result.field ?? key, `${why}; example: ${example}`)
  return null
}

/** `problem: null`: what was expected says enough. */
type Read = { readonly value: unknown } | { readonly problem: string | null; readonly field?: string }

interface Member {
  readonly expected: string
  readonly example: string
  readonly read: (value: unknown) => Read
}

const by =
  <A, I>(schema: Schema.Schema<A, I>) =>
  (value: unknown): Read => {
    const decoded = Schema.decodeUnknownEither(schema)(value, { onExcessProperty: "error" })
    return Either.isRight(decoded) ? { value: decoded.right } : { problem: null }
  }

const uuidExample = '"c813c642-d946-49e1-9289-c616dd70206a"'
const uuid = "a lower-case UUID"

const choice = (...words: ReadonlyArray<string>) => ({
  expected: words.join(" or "),
  example: words[0] ?? "",
  read: (value: unknown): Read => (words.includes(value as string) ? { value } : { problem: null })
})

/** Bytes, or a whole number with a binary unit. */
export const readSize = (value: unknown): Read => {
  if (typeof value === "number") return sizeInRange(value)
  const match = typeof value === "string" ? /^([0-9]{1,20})\s*([A-Za-z]*)$/u.exec(value.trim()) : null
  if (match === null) return { problem: null }
  const [, digits = "", unit = ""] = match
  if (/^[KMGTP]B$/iu.test(unit)) {
    const binary = `${digits}${unit.slice(0, 1).toUpperCase()}iB`
    return { problem: `expected a binary unit, found ${show(value)}: volumes are measured in GiB; write ${binary}` }
  }
  const power = ["", "KI", "MI", "GI", "TI", "PI"].indexOf(unit.toUpperCase().replace(/IB$/u, "I"))
  return power < 0 ? { problem: null } : sizeInRange(Number(digits) * 1024 ** power)
}

const sizeInRange = (bytes: number): Read => {
  if (!Number.isInteger(bytes)) return { problem: `expected whole bytes, found ${bytes}` }
  if (bytes < GIB) return { problem: `expected at least 1 GiB (${GIB} bytes), found ${bytes} bytes` }
  if (bytes > Number.MAX_SAFE_INTEGER) return { problem: `expected less than 2^53 bytes, found ${bytes}` }
  return { value: bytes }
}

const readPaused = (value: unknown): Read => {
  const read = by(Paused)(value)
  const until = member(value, "until")
  if (!("value" in read) || until === undefined) return read
  return !isMoment(String(until))
    ? { field: "paused.until", problem: `expected a time that exists, found ${show(until)}` }
    : read
}

export const readMetadata = (value: unknown): Read => {
  if (!isObject(value)) return { problem: null }
  const keys = new Map<string, string>()
  for (const [key, text] of Object.entries(value)) {
    const twin = keys.get(key.toLowerCase())
    if (twin !== undefined) {
      return { problem: `expected keys that differ by more than upper and lower case, found ${twin} and ${key}` }
    }
    keys.set(key.toLowerCase(), key)
    if (!("value" in by(Metadata)({ [key]: text }))) {
      const problem = `expected a text of 1-255 characters without control characters, found ${show(text)}`
      return { field: `metadata.${key.slice(0, 60)}`, problem }
    }
  }
  if (keys.size > 32) return { problem: `expected at most 32 entries, found ${keys.size}` }
  return by(Metadata)(value)
}

const members: { readonly [K in keyof Spec]: Member } = {
  cloudstack_name: {
    expected: "1-255 characters without control characters",
    example: '"pgtest2-disk-0"',
    read: by(SpecSchema.fields.cloudstack_name)
  },
  volume_id: { expected: uuid, example: uuidExample, read: by(SpecSchema.fields.volume_id) },
  size: { expected: "a size in bytes or GiB", example: '"100GiB"', read: readSize },
  disk_offering_id: { expected: uuid, example: uuidExample, read: by(SpecSchema.fields.disk_offering_id) },
  zone_id: { expected: uuid, example: uuidExample, read: by(SpecSchema.fields.zone_id) },
  attached_to: {
    expected: 'the lower-case UUID of a VM, "appliance" or "none"',
    example: '"appliance"',
    read: by(SpecSchema.fields.attached_to)
  },
  attach_as: choice("data", "root"),
  export_wanted: { expected: "true or false", example: "true", read: by(SpecSchema.fields.export_wanted) },
  read_only: { expected: "true or false", example: "false", read: by(SpecSchema.fields.read_only) },
  deletion_policy: choice("forget", "retain", "delete"),
  on_conflict: choice("hold", "move"),
  on_drift: choice("repair", "hold"),
  on_loss: choice("hold", "recreate"),
  paused: {
    expected: "an object with reason, by and optionally until",
    example: '{"reason": "array maintenance", "by": "alice", "until": "2026-03-01T12:00:00Z"}',
    read: readPaused
  },
  metadata: { expected: "a map of texts", example: '{"job": "pgtest2"}', read: readMetadata }
}

/** RFC 7396 for the members that have members of their own; all others are replaced by what the patch says. */
const mergeNested = (patch: unknown, current: Spec): unknown => {
  if (!isObject(patch)) return patch
  if (isObject(patch["spec"])) return { ...patch, spec: mergeNested(patch["spec"], current) }
  const merged: Record<string, unknown> = { ...patch }
  for (const key of ["metadata", "paused"] as const) {
    const members = member(patch, key)
    if (isObject(members)) {
      merged[key] = Object.fromEntries(
        Object.entries({ ...current[key], ...members }).filter(([, value]) => value !== null)
      )
    }
  }
  return merged
}

const unknownKey = (key: string, known: ReadonlyArray<string>): string => {
  const near = nearest(key, known)
  return `unknown key ${show(key)}${near === null ? `; expected one of ${known.join(", ")}` : `; did you mean ${near}?`}`
}

/** A value as it may stand in a message: short, on one line, without control characters. */
export const show = (value: unknown): string => {
  if (value === undefined) return "nothing"
  return clip(typeof value === "string" || typeof value === "object" ? JSON.stringify(value) : String(value))
}

const clip = (text: string): string => {
  const line = text.slice(0, 80).replace(/[\u0000-\u001f\u007f-\u009f\u2028\u2029\ud800-\udfff]/gu, " ")
  return text.length > 80 ? `${line.slice(0, 79)}…` : line
}
