import { Schema } from "effect"

/** The grammar of every id that CloudStack gives out: lower case, RFC 4122 shape. Anything else never reaches a file, a log or SQL. */
export const uuidPattern = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/

const Uuid = Schema.String.pipe(
  Schema.pattern(uuidPattern, {
    message: () => "expected a lower-case UUID, for example c813c642-d946-49e1-9289-c616dd70206a"
  })
)

export const VolumeId = Uuid.pipe(Schema.brand("VolumeId"))
export type VolumeId = typeof VolumeId.Type

export const VmId = Uuid.pipe(Schema.brand("VmId"))
export type VmId = typeof VmId.Type

export const ZoneId = Uuid.pipe(Schema.brand("ZoneId"))
export type ZoneId = typeof ZoneId.Type

export const OfferingId = Uuid.pipe(Schema.brand("OfferingId"))
export type OfferingId = typeof OfferingId.Type

export const JobId = Uuid.pipe(Schema.brand("JobId"))
export type JobId = typeof JobId.Type

/** Identity of one declaration for its whole life; a name that is used again gets a new one. */
export const Uid = Uuid.pipe(Schema.brand("Uid"))
export type Uid = typeof Uid.Type

export const OperationId = Schema.String.pipe(
  Schema.pattern(/^op-[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/, {
    message: () => "expected an operation id such as op-12345678-1234-1234-1234-123456789012"
  }),
  Schema.brand("OperationId")
)
export type OperationId = typeof OperationId.Type

/** A declared name: 1–253 of `[A-Za-z0-9._-]`, starting alphanumeric. Bytewise unique among the living. */
export const Name = Schema.String.pipe(
  Schema.pattern(/^[A-Za-z0-9][A-Za-z0-9._-]{0,252}$/, {
    message: () =>
      "expected 1-253 characters of A-Z a-z 0-9 . _ - starting with a letter or digit, for example pgtest2-disk-0"
  }),
  Schema.brand("Name")
)
export type Name = typeof Name.Type

/**
 * What the guest kernel shows as a disk's serial: the volume's UUID without dashes, first 20 characters.
 * CloudStack sets it for KVM (`LibvirtComputingResource.diskUuidToSerial`); 20 is virtio-blk's limit.
 */
export const Serial = Schema.String.pipe(Schema.pattern(/^[0-9a-f]{20}$/), Schema.brand("Serial"))
export type Serial = typeof Serial.Type

export const serialOf = (volume: VolumeId): Serial => volume.replaceAll("-", "").slice(0, 20) as Serial

/** The name a client opens on the wire. Follows the volume id, so that a name can never mean two disks. */
export const exportNameOf = (volume: VolumeId): string => `migration-vol-${volume}`

/** RFC 3339 in UTC, as every time in an answer. */
export const Timestamp = Schema.String.pipe(
  Schema.pattern(/^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d{1,9})?Z$/, {
    message: () => "expected a UTC time in RFC 3339, for example 2026-03-01T12:00:00Z"
  })
)

/** A time of that form which the calendar has: JavaScript would take the 30th of February for the 2nd of March. */
export const isMoment = (text: string): boolean => {
  const ms = Date.parse(text)
  return !Number.isNaN(ms) && new Date(ms).toISOString().slice(0, 19) === text.slice(0, 19)
}
