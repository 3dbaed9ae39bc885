import { Either, Option, ParseResult, Schema } from "effect"
import { JobId, OfferingId, uuidPattern, VmId, VolumeId, ZoneId } from "./Ids.ts"
import type { CloudVolume, VirtualMachine } from "./Inventory.ts"

/**
 * CloudStack's answers as really sent, decode only. An answer is one object with one key, the command in lower case
 * plus `response`; null fields are left out, unknown ones are ignored, and what we use is checked strictly.
 */

/**
 * Control characters, line separators and lone surrogates made U+FFFD. Leaves every name alone that may be declared, so
 * that a volume is found by its name again.
 */
export const harmless = (text: string, limit = 2_000): string => {
  const bounded = text.length > limit ? `${text.slice(0, limit)}…` : text
  return bounded.replace(/[\p{Cc}\p{Cs}\u2028\u2029]/gu, "\ufffd")
}

/**
 * JSON as CloudStack writes it. `ApiResponseSerializer` turns escaped control characters back into raw ones, which JSON
 * forbids: a body that does not parse is read again with every control character as a space, so that one odd name or
 * an agent's output in an error text does not hide a whole answer.
 */
export const parse = (body: string): Either.Either<unknown, string> =>
  Either.try({ try: (): unknown => JSON.parse(body), catch: problemOf }).pipe(
    Either.orElse(() =>
      Either.try({ try: (): unknown => JSON.parse(body.replace(/[\u0000-\u001f]/g, " ")), catch: problemOf })
    )
  )

/** JSON by the book, for answers on which more than a reading depends. */
export const parseStrictly = (body: string): Either.Either<unknown, string> =>
  Either.try({ try: (): unknown => JSON.parse(body), catch: problemOf })

// V8 quotes the offending text in its message; hostile text does not belong in ours.
const problemOf = () => "the answer is not JSON"

const member = (body: unknown, key: string): unknown =>
  typeof body === "object" && body !== null && Object.hasOwn(body, key)
    ? (body as Record<string, unknown>)[key]
    : undefined

/** What stands inside the envelope of this command; undefined when the answer is another one's. */
export const inside = (command: string, body: unknown): unknown => member(body, `${command.toLowerCase()}response`)

/** One line without the value, which may be long or hostile. */
const problem = (error: ParseResult.ParseError): string => {
  const first = ParseResult.ArrayFormatter.formatErrorSync(error)[0]
  if (first === undefined) return "not as expected"
  return harmless(first.path.length > 0 ? `${first.path.map(String).join(".")}: ${first.message}` : first.message, 200)
}

const decoder = <A, I>(schema: Schema.Schema<A, I>) => {
  const decode = Schema.decodeUnknownEither(schema)
  return (value: unknown): Either.Either<A, string> => Either.mapLeft(decode(value), problem)
}

const optional = <A, I>(schema: Schema.Schema<A, I>) => Schema.optional(Schema.NullOr(schema))

/** `ServerApiException` as JSON. A 401 and a job's result have no `cserrorcode`; a text may be missing. */
export const ErrorAnswer = Schema.Struct({
  errorcode: Schema.Int,
  cserrorcode: optional(Schema.Int),
  errortext: optional(Schema.String)
})
export type ErrorAnswer = typeof ErrorAnswer.Type

const decodeError = Schema.decodeUnknownOption(ErrorAnswer)

/**
 * The error in this answer. Its envelope is the command's own, `errorresponse` (432, unknown commands), or the literal
 * text `null` (`ApiServer.getSerializedApiError`).
 */
export const errorIn = (command: string, body: unknown): Option.Option<ErrorAnswer> =>
  Option.firstSomeOf(
    [inside(command, body), member(body, "errorresponse"), member(body, "null")].map((error) => decodeError(error))
  )

/** `api/ApiErrorCode.java`: the HTTP status is the code. */
export const ApiErrorCode = {
  BAD_REQUEST: 400,
  UNAUTHORIZED: 401,
  METHOD_NOT_ALLOWED: 405,
  /** Second factor missing: 511 since 4.19. */
  UNAUTHORIZED2FA_OLD: 411,
  API_LIMIT_EXCEED: 429,
  MALFORMED_PARAMETER_ERROR: 430,
  PARAM_ERROR: 431,
  UNSUPPORTED_ACTION_ERROR: 432,
  SERVICE_UNAVAILABLE: 503,
  UNAUTHORIZED2FA: 511,
  INTERNAL_ERROR: 530,
  ACCOUNT_ERROR: 531,
  ACCOUNT_RESOURCE_LIMIT_ERROR: 532,
  INSUFFICIENT_CAPACITY_ERROR: 533,
  RESOURCE_UNAVAILABLE_ERROR: 534,
  RESOURCE_ALLOCATION_ERROR: 535,
  RESOURCE_IN_USE_ERROR: 536,
  NETWORK_RULE_CONFLICT_ERROR: 537
} as const

/** One page as sent: rows not decoded yet, so that one bad row costs itself only. `count` is of the whole listing. */
export interface Page {
  readonly count: number
  readonly rows: ReadonlyArray<unknown>
}

/** A row that could not be read. `id` where at least that much could be. */
export interface BadRow {
  readonly id: string | null
  readonly problem: string
}

export interface Rows<A> {
  readonly good: ReadonlyArray<A>
  readonly bad: ReadonlyArray<BadRow>
}

const decodeCount = decoder(Schema.Struct({ count: optional(Schema.NonNegativeInt) }))
const decodeArray = decoder(Schema.Array(Schema.Unknown))

/**
 * A list answer. An empty list has neither `count` nor rows; a page past the end has `count` alone
 * (`ApiResponseSerializer`). Rows without a count are no answer of CloudStack's.
 */
export const page = (command: string, element: string, body: unknown): Either.Either<Page, string> =>
  Either.gen(function* () {
    const envelope = inside(command, body)
    const { count } = yield* decodeCount(envelope)
    const rows = yield* decodeArray(member(envelope, element) ?? [])
    if (rows.length > 0 && (count === undefined || count === null)) return yield* Either.left("count: is missing")
    return { count: count ?? 0, rows }
  })

const decodeApi = decoder(
  Schema.Struct({ name: Schema.String, params: Schema.Array(Schema.Struct({ name: Schema.String })) })
)

/** The names of the parameters that the server knows for one command (listApis, `ApiDiscoveryResponse`). */
export const apiParameters = (name: string, body: unknown): Either.Either<ReadonlyArray<string>, string> =>
  Either.gen(function* () {
    const { rows } = yield* page("listApis", "api", body)
    const api = yield* decodeApi(rows[0])
    if (api.name !== name) return yield* Either.left("name: is another command's")
    return api.params.map((parameter) => parameter.name)
  })

/** Decodes rows one by one: what cannot be read is named, never dropped silently. */
const rowsOf =
  <A>(decode: (row: unknown) => Either.Either<A, string>) =>
  (rows: ReadonlyArray<unknown>): Rows<A> => {
    const good: Array<A> = []
    const bad: Array<BadRow> = []
    for (const row of rows) {
      const decoded = decode(row)
      if (Either.isRight(decoded)) good.push(decoded.right)
      else bad.push({ id: idOf(row), problem: decoded.left })
    }
    return { good, bad }
  }

const idOf = (row: unknown): string | null => {
  const id = member(row, "id")
  return typeof id === "string" && uuidPattern.test(id) ? id : null
}

/**
 * `VolumeResponse`, the fields we use. An id that is no UUID makes the row unreadable where it decides something
 * (volume, VM, job); of zone and offering, which very old installations number, it reads as unknown.
 */
export const Volume = Schema.Struct({
  id: VolumeId,
  name: optional(Schema.String),
  type: Schema.String,
  state: Schema.String,
  size: optional(Schema.NonNegativeInt),
  virtualmachineid: optional(VmId),
  vmname: optional(Schema.String),
  vmstate: optional(Schema.String),
  deviceid: optional(Schema.NonNegativeInt),
  zoneid: optional(Schema.String),
  diskofferingid: optional(Schema.String),
  created: optional(Schema.String),
  tags: optional(Schema.Array(Schema.Struct({ key: Schema.String, value: optional(Schema.String) }))),
  jobid: optional(JobId),
  deleteprotection: optional(Schema.Boolean)
})

const decodeVolume = decoder(Volume)
const isZoneId = Schema.is(ZoneId)
const isOfferingId = Schema.is(OfferingId)

export const toCloudVolume = (row: typeof Volume.Type): CloudVolume => ({
  id: row.id,
  name: harmless(row.name ?? ""),
  type: harmless(row.type, 64),
  state: harmless(row.state, 64),
  size: row.size ?? 0,
  vm_id: row.virtualmachineid ?? null,
  vm_name: textOrNull(row.vmname),
  vm_state: textOrNull(row.vmstate),
  device_id: row.deviceid ?? null,
  zone_id: isZoneId(row.zoneid) ? row.zoneid : null,
  disk_offering_id: isOfferingId(row.diskofferingid) ? row.diskofferingid : null,
  created_at: timeOf(row.created),
  tags: (row.tags ?? []).map((tag) => ({ key: harmless(tag.key), value: harmless(tag.value ?? "") })),
  job_id: row.jobid ?? null,
  delete_protection: row.deleteprotection ?? false
})

const textOrNull = (text: string | null | undefined) => (text === undefined || text === null ? null : harmless(text))

const datePattern = /^(\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2})([+-]\d{2}):?(\d{2})$/

/** `yyyy-MM-dd'T'HH:mm:ssZ`, offset without a colon. A time without an offset means nothing to us. */
const timeOf = (text: string | null | undefined): number | null => {
  const found = datePattern.exec(text ?? "")
  if (found === null) return null
  const ms = Date.parse(`${found[1]}${found[2]}:${found[3]}`)
  return Number.isNaN(ms) ? null : ms
}

export const volumes = rowsOf((row) => Either.map(decodeVolume(row), toCloudVolume))

const decodeVirtualMachine = decoder(
  Schema.Struct({
    id: VmId,
    name: optional(Schema.String),
    displayname: optional(Schema.String),
    state: Schema.String,
    zoneid: optional(Schema.String)
  })
)

export const virtualMachines = rowsOf((row) =>
  Either.map(decodeVirtualMachine(row), (vm): VirtualMachine => ({
    id: vm.id,
    name: harmless(vm.name ?? vm.displayname ?? ""),
    state: harmless(vm.state, 64),
    zone_id: isZoneId(vm.zoneid) ? vm.zoneid : null
  }))
)

const decodeZone = decoder(Schema.Struct({ id: ZoneId, name: Schema.String }))

export const zones = rowsOf((row) => Either.map(decodeZone(row), ({ id, name }) => ({ id, name: harmless(name) })))

const decodeOffering = decoder(
  Schema.Struct({
    id: OfferingId,
    name: Schema.String,
    iscustomized: optional(Schema.Boolean),
    /** GiB, although CloudStack says GB. */
    disksize: optional(Schema.NonNegativeInt)
  })
)

export const offerings = rowsOf((row) =>
  Either.map(decodeOffering(row), (offering) => ({
    id: offering.id,
    name: harmless(offering.name),
    customized: offering.iscustomized ?? false,
    size_gib: offering.disksize ?? 0
  }))
)

/** `EventResponse`. Rows before 4.17 name no resource. */
const decodeEvent = decoder(
  Schema.Struct({
    id: Schema.String.pipe(Schema.pattern(uuidPattern)),
    parentid: optional(Schema.String.pipe(Schema.pattern(uuidPattern))),
    type: Schema.String.pipe(Schema.pattern(/^[A-Z0-9_.-]{1,64}$/)),
    created: Schema.String.pipe(Schema.pattern(datePattern)),
    level: optional(Schema.String),
    username: optional(Schema.String),
    account: optional(Schema.String),
    project: optional(Schema.String),
    description: optional(Schema.String),
    resourcetype: optional(Schema.String),
    resourceid: optional(Schema.String)
  })
)

export const events = rowsOf((row) =>
  Either.gen(function* () {
    const event = yield* decodeEvent(row)
    const at = timeOf(event.created)
    if (at === null) return yield* Either.left("created: is no time")
    const description = harmless(event.description ?? "")
    return {
      id: event.id,
      action_id: event.parentid ?? event.id,
      at,
      type: event.type,
      failed: event.level === "ERROR",
      user: shortOrNull(event.username),
      account: shortOrNull(event.account ?? event.project),
      description,
      volume_id: volumeOf(event, description)
    }
  })
)

const shortOrNull = (text: string | null | undefined) =>
  text === undefined || text === null || text === "" ? null : harmless(text, 100)

const isVolumeId = Schema.is(VolumeId)

/** `Volume Id: UUID VmId: UUID` once it runs, `volume: UUID to VM: UUID` when it is scheduled. */
const volumeInWords = /\bvolume(?: id)?: ?([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\b/i

const volumeOf = (
  event: { readonly resourcetype?: string | null | undefined; readonly resourceid?: string | null | undefined },
  description: string
): VolumeId | null => {
  const id = event.resourcetype === "Volume" ? event.resourceid : volumeInWords.exec(description)?.[1]
  return isVolumeId(id) ? id : null
}

const decodeCapabilities = decoder(
  Schema.Struct({
    capability: Schema.Struct({
      cloudstackversion: optional(Schema.String),
      customdiskofferingminsize: optional(Schema.NonNegativeInt),
      customdiskofferingmaxsize: optional(Schema.NonNegativeInt)
    })
  })
)

/** Sizes in GiB; the defaults of `custom.diskoffering.size.min` and `.max` where the answer says nothing. */
export const capabilities = (body: unknown) =>
  Either.map(decodeCapabilities(inside("listCapabilities", body)), ({ capability }) => ({
    version: harmless(capability.cloudstackversion ?? "unknown", 64),
    size_min_gib: capability.customdiskofferingminsize ?? 1,
    size_max_gib: capability.customdiskofferingmaxsize ?? 1024
  }))

const decodeJobAnswer = decoder(Schema.Struct({ jobid: JobId }))
const decodeCreateAnswer = decoder(Schema.Struct({ id: VolumeId, jobid: JobId }))
const decodeSuccess = decoder(Schema.Struct({ success: Schema.Union(Schema.Literal(true), Schema.Literal("true")) }))

/** attachVolume, detachVolume, createTags, deleteTags. */
export const jobAnswer = (command: string, body: unknown) => decodeJobAnswer(inside(command, body))

/** createVolume: the row exists already, the job does next to nothing. */
export const createAnswer = (body: unknown) => decodeCreateAnswer(inside("createVolume", body))

/** deleteVolume, which is synchronous; very old servers send the text `"true"`. */
export const deleteAnswer = (body: unknown) => decodeSuccess(inside("deleteVolume", body))

const decodeJob = decoder(
  Schema.Struct({
    jobid: optional(JobId),
    jobstatus: Schema.NonNegativeInt,
    jobresultcode: optional(Schema.Int),
    /** Missing after a management server's restart; an error has `errorcode` and perhaps `errortext`, nothing else. */
    jobresult: optional(Schema.Unknown)
  })
)

export interface JobAnswer {
  /** As the answer names it; null where it does not. */
  readonly id: JobId | null
  /** 0 is pending (queued included), 1 succeeded, 2 failed, 3 cancelled; what is beyond 1 did not succeed. */
  readonly status: "pending" | "succeeded" | "failed"
  readonly code: number | null
  readonly text: string | null
}

export const job = (body: unknown): Either.Either<JobAnswer, string> =>
  Either.map(decodeJob(inside("queryAsyncJobResult", body)), (answer): JobAnswer => {
    const id = answer.jobid ?? null
    if (answer.jobstatus === 0) return { id, status: "pending", code: null, text: null }
    if (answer.jobstatus === 1) return { id, status: "succeeded", code: 0, text: null }
    const error = Option.getOrNull(decodeError(answer.jobresult))
    const sentence = typeof answer.jobresult === "string" ? answer.jobresult : null
    return {
      id,
      status: "failed",
      code: error?.errorcode ?? answer.jobresultcode ?? null,
      text: textOrNull(error?.errortext ?? sentence)
    }
  })
