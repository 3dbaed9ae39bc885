import { Effect, Schema } from "effect"
import { CloudStackName, type Spec } from "../../../schema/Declaration.ts"
import { isObject, readMetadata, readSize, Refused, show } from "../../../schema/Document.ts"
import { OfferingId, VmId, VolumeId, ZoneId } from "../../../schema/Ids.ts"

/** A body as it was sent, and what of it version 1 knows: all other keys are ignored. */
interface Body<A> {
  readonly sent: Readonly<Record<string, unknown>>
  readonly asked: A
}

export interface Create {
  readonly name: string
  readonly size: number
  readonly disk_offering_id: OfferingId | null
  readonly zone_id: ZoneId | null
  readonly metadata: Spec["metadata"]
}

export const create = (value: unknown): Effect.Effect<Body<Create>, Refused> =>
  decode(value, (sent, found) => {
    const name = nameOf(sent, found)
    const size = sizeOf(sent, found)
    const disk_offering_id = optionalId(sent, "disk_offering_id", OfferingId, found)
    const zone_id = optionalId(sent, "zone_id", ZoneId, found)
    const metadata = metadataOf(sent, found)
    return name === null || size === null ? null : { name, size, disk_offering_id, zone_id, metadata }
  })

export const attach = (value: unknown): Effect.Effect<Body<{ readonly vm_id: VmId }>, Refused> =>
  decode(value, (sent, found) => {
    const vm_id = id(sent, "vm_id", VmId, found)
    return vm_id === null ? null : { vm_id }
  })

interface Export {
  readonly volume_id: VolumeId
  /** Null: as it is declared. */
  readonly read_only: boolean | null
}

export const exportOf = (value: unknown): Effect.Effect<Body<Export>, Refused> =>
  decode(value, (sent, found) => {
    const volume_id = id(sent, "volume_id", VolumeId, found)
    const read_only = optionalFlag(sent, "read_only", found)
    return volume_id === null ? null : { volume_id, read_only }
  })

interface Cleanup {
  readonly test_vm_id: VmId
  readonly volume_id: VolumeId
  /** The appliance, as the caller knows it. */
  readonly oma_vm_id: VmId | null
  readonly delete_vm: boolean
}

export const cleanup = (value: unknown): Effect.Effect<Body<Cleanup>, Refused> =>
  decode(value, (sent, found) => {
    const test_vm_id = id(sent, "test_vm_id", VmId, found)
    const volume_id = id(sent, "volume_id", VolumeId, found)
    const oma_vm_id = optionalId(sent, "oma_vm_id", VmId, found)
    const delete_vm = optionalFlag(sent, "delete_vm", found) === true
    return test_vm_id === null || volume_id === null ? null : { test_vm_id, volume_id, oma_vm_id, delete_vm }
  })

/** Of a call that needs none: whatever object came with it is kept as sent. */
export const none = (value: unknown): Effect.Effect<Body<null>, Refused> =>
  Effect.map(
    decode(value ?? {}, () => ({})),
    ({ sent }) => ({ sent, asked: null })
  )

/** What is wrong with one member; `INVALID_REQUEST` is graver than a value that CloudStack would not take. */
interface Trouble {
  readonly code: "INVALID_REQUEST" | "CLOUDSTACK_INVALID_PARAMETER"
  readonly field: string | null
  readonly problem: string
}

type Found = (code: Trouble["code"], field: string, problem: string) => null
type Sent = Readonly<Record<string, unknown>>

const decode = <A>(value: unknown, read: (sent: Sent, found: Found) => A | null): Effect.Effect<Body<A>, Refused> => {
  if (!isObject(value)) {
    return refused([{ code: "INVALID_REQUEST", field: null, problem: `expected an object, found ${show(value)}` }])
  }
  const troubles: Array<Trouble> = []
  const asked = read(value, (code, field, problem) => {
    troubles.push({ code, field, problem })
    return null
  })
  return asked === null || troubles.length > 0 ? refused(troubles) : Effect.succeed({ sent: value, asked })
}

const refused = (troubles: ReadonlyArray<Trouble>): Effect.Effect<never, Refused> => {
  const first = troubles.find(({ code }) => code === "INVALID_REQUEST") ?? troubles[0]
  const more = troubles.length > 1 ? ` (and ${troubles.length - 1} more, see details.errors)` : ""
  const place = first?.field == null ? "" : `${first.field}: `
  return new Refused({
    code: first?.code ?? "INVALID_REQUEST",
    error: `${place}${first?.problem ?? "not acceptable"}${more}`,
    suggestion: null,
    errors: troubles.map(({ field, problem }) => ({ index: null, name: null, field, problem }))
  })
}

const isAbsent = (value: unknown) => value === undefined || value === null

const id = <A extends string>(sent: Sent, field: string, schema: Schema.Schema<A, string>, found: Found): A | null =>
  isAbsent(sent[field])
    ? found("INVALID_REQUEST", field, "required: a lower-case UUID")
    : optionalId(sent, field, schema, found)

const optionalId = <A extends string>(
  sent: Sent,
  field: string,
  schema: Schema.Schema<A, string>,
  found: Found
): A | null => {
  const value = sent[field]
  if (isAbsent(value)) return null
  if (Schema.is(schema)(value)) return value
  return found("CLOUDSTACK_INVALID_PARAMETER", field, `expected a lower-case UUID, found ${show(value)}`)
}

const optionalFlag = (sent: Sent, field: string, found: Found): boolean | null => {
  const value = sent[field]
  if (isAbsent(value)) return null
  return typeof value === "boolean"
    ? value
    : found("INVALID_REQUEST", field, `expected true or false, found ${show(value)}`)
}

const nameOf = ({ name }: Sent, found: Found): string | null =>
  Schema.is(CloudStackName)(name)
    ? name
    : found("INVALID_REQUEST", "name", `expected 1-255 characters without control characters, found ${show(name)}`)

const sizeOf = ({ size }: Sent, found: Found): number | null => {
  const read = readSize(size)
  if ("value" in read && typeof read.value === "number") return read.value
  const problem = "problem" in read ? read.problem : null
  return problem === null
    ? found("INVALID_REQUEST", "size", `expected a size in bytes, found ${show(size)}; example: 107374182400`)
    : found("CLOUDSTACK_INVALID_PARAMETER", "size", problem)
}

const metadataOf = ({ metadata }: Sent, found: Found): Spec["metadata"] => {
  if (isAbsent(metadata)) return {}
  const read = readMetadata(metadata)
  if ("value" in read) return read.value as Spec["metadata"]
  found(
    "INVALID_REQUEST",
    read.field ?? "metadata",
    read.problem ?? `expected a map of texts, found ${show(metadata)}; example: {"job": "pgtest2"}`
  )
  return {}
}
