import { Schema } from "effect"
import * as Random from "./Random.ts"

const Milliseconds = Schema.Int.pipe(Schema.between(0, 31_536_000_000))

/** What every fault takes beside its kind. Left out means: no limit. */
const filter = {
  /** Only calls of this command, spelt as on the wire (`attachVolume`). */
  command: Schema.optional(Schema.String),
  /** Only calls about this volume (its id, the first of `ids`, or the one a job works on). */
  volume_id: Schema.optional(Schema.String),
  /** Only calls about this VM. */
  vm_id: Schema.optional(Schema.String),
  /** The share of matching occasions that are hit, drawn from the world's seed. */
  probability: Schema.optional(Schema.Number.pipe(Schema.between(0, 1))),
  /** How many matching occasions pass unharmed first. */
  skip: Schema.optional(Schema.Int.pipe(Schema.nonNegative())),
  /** How often it hits before it is used up. */
  times: Schema.optional(Schema.Int.pipe(Schema.nonNegative()))
}

const fault = <K extends string, F extends Schema.Struct.Fields>(kind: K, fields: F) =>
  Schema.Struct({ kind: Schema.Literal(kind), ...filter, ...fields })

/** The call is carried out, then the connection is closed without an answer (C2). */
const AnswerLostAfterEffect = fault("answer_lost_after_effect", {})
/** The connection is closed before the call is looked at. */
const AnswerLostBeforeEffect = fault("answer_lost_before_effect", {})
/** The connection is closed at once; the request reaches CloudStack `delay_ms` later and is judged then, its expiry included (C3). */
const LateEffect = fault("late_effect", { delay_ms: Milliseconds })
/**
 * The request is delivered twice, as by a proxy that tries again (C10). Without `delay_ms` both at once, and the answer is
 * the second one's; with it the first is answered, unless `lost`, and the second is judged then, its expiry included.
 */
const DuplicateDelivery = fault("duplicate_delivery", {
  delay_ms: Schema.optional(Milliseconds),
  lost: Schema.optional(Schema.Boolean)
})
/** The connection stays open and nothing is ever answered; `effect` says whether the call was carried out. */
const Hang = fault("hang", { effect: Schema.optional(Schema.Boolean) })
/** The answer comes `ms` later than it would have. */
const SlowAnswer = fault("slow_answer", { ms: Milliseconds })
/** A 5xx page of a proxy (default 502) in place of the answer, with or without the effect (C5). */
const Http5xx = fault("http_5xx", {
  status: Schema.optional(Schema.Int.pipe(Schema.between(500, 599))),
  effect: Schema.optional(Schema.Boolean)
})
/** 429 as the rate limiter says it, without Retry-After (C6). */
const Throttled = fault("throttled", {})
/** 503 to new asynchronous calls: the management server is being shut down (C6). Synchronous calls still work. */
const Maintenance = fault("maintenance", {})
/** A well-signed request is answered 401 now and then (CloudStack issue 11394). */
const Unauthorized = fault("unauthorized", {})
/** A direct refusal with any error code and text, without effect (C7). */
const Refused = fault("refused", {
  code: Schema.Int.pipe(Schema.between(400, 599)),
  cserrorcode: Schema.optional(Schema.Int),
  text: Schema.optional(Schema.String)
})
/** The account's role lacks the command: 432 in the envelope of no command, before the signature is looked at. */
const CommandDenied = fault("command_denied", {})
/** HTTP 200 with an empty body; carried out unless `effect` is false. */
const EmptyBody = fault("empty_body", { effect: Schema.optional(Schema.Boolean) })
/** HTTP 200 with a control character inside a JSON string; carried out unless `effect` is false. */
const InvalidJson = fault("invalid_json", { effect: Schema.optional(Schema.Boolean) })
/** HTTP 200 with somebody's HTML login page; not carried out (C8). */
const Html = fault("html", {})
/** The server's clock is this far off: its Date header, and what it thinks of `expires` (C9). */
const ClockSkew = fault("clock_skew", { ms: Schema.Int })

/** The job's id is unknown from the start (431) and stands on no row; the work is done unless `effect` is false (J1). */
const JobLost = fault("job_lost", { effect: Schema.optional(Schema.Boolean) })
/**
 * The job ends FAILED. `none`: nothing was done. `hypervisor`: the disk was plugged or unplugged, the database says it
 * was not. `full`: everything was done. Without `code` and `text` it looks like a management server's restart: code
 * 530 and no `jobresult` at all (J2, J3).
 */
const JobFailed = fault("job_failed", {
  effect: Schema.optional(Schema.Literal("none", "hypervisor", "full")),
  code: Schema.optional(Schema.Int),
  text: Schema.optional(Schema.String)
})
/** The work takes `ms` longer; with a day or more, a job that is stuck (J6). */
const SlowJob = fault("slow_job", { ms: Milliseconds })
/**
 * The guest does not release the disk within `wait.detach.device`: 530, the database still says attached. The unplug
 * completes `completes_after_ms` later (default 5000; null: never).
 */
const DetachTimeout = fault("detach_timeout", { completes_after_ms: Schema.optional(Schema.NullOr(Milliseconds)) })
/**
 * `delay_ms` after a detach has ended, an older detach job of the same volume runs and clears the attachment in the
 * database, whatever VM the volume is on by then; that VM's hypervisor keeps the disk (CloudStack issue 14214).
 */
const StragglerDetach = fault("straggler_detach", { delay_ms: Milliseconds })
/** deleteVolume leaves the volume in Destroy and answers the masked 530. */
const DeleteFails = fault("delete_fails", {})
/** A created volume is rounded up to a multiple of `multiple_gib` (default 8, as PowerFlex). */
const SizeRoundedUp = fault("size_rounded_up", { multiple_gib: Schema.optional(Schema.Int.pipe(Schema.positive())) })

/** A page of a listing comes in random order, lacks one row, or has one row twice (O3). */
const UnstablePages = fault("unstable_pages", { how: Schema.optional(Schema.Literal("shuffle", "skip", "duplicate")) })
/** A share of the rows (default half) is missing; `count` is the whole number unless `count_too` (O2). */
const PartialList = fault("partial_list", {
  share: Schema.optional(Schema.Number.pipe(Schema.between(0, 1))),
  count_too: Schema.optional(Schema.Boolean)
})
/** `count` is off by this many. */
const WrongCount = fault("wrong_count", { by: Schema.Int })
/** A listing is empty although there is something, as after a change of permissions (O5). */
const EmptyList = fault("empty_list", {})
/** listVolumes shows the rows as they were `age_ms` ago (O1). */
const StaleList = fault("stale_list", { age_ms: Milliseconds })

/** listEvents shows what was recorded `ms` later than it happened. */
const DelayedEvents = fault("delayed_events", { ms: Milliseconds })

/** The attach succeeds, the guest never shows the disk until its VM is started anew (D8). */
const HotplugFailure = fault("hotplug_failure", {})
/** The guest shows a disk `ms` later than `device_delay_ms` says (D1). */
const DeviceDelay = fault("device_delay", { ms: Milliseconds })
/** A plugged disk shows the serial of another disk of that guest, if there is one (D5). */
const DuplicateSerial = fault("duplicate_serial", {})
/** The guest's disks cannot be read. Only the in-memory guest can be unreadable; a directory tree is just there. */
const GuestUnread = fault("guest_unread", {})

export const Fault = Schema.Union(
  AnswerLostAfterEffect,
  AnswerLostBeforeEffect,
  LateEffect,
  DuplicateDelivery,
  Hang,
  SlowAnswer,
  Http5xx,
  Throttled,
  Maintenance,
  Unauthorized,
  Refused,
  CommandDenied,
  EmptyBody,
  InvalidJson,
  Html,
  ClockSkew,
  JobLost,
  JobFailed,
  SlowJob,
  DetachTimeout,
  StragglerDetach,
  DeleteFails,
  SizeRoundedUp,
  UnstablePages,
  PartialList,
  WrongCount,
  EmptyList,
  StaleList,
  DelayedEvents,
  HotplugFailure,
  DeviceDelay,
  DuplicateSerial,
  GuestUnread
)
export type Fault = typeof Fault.Type
export type Kind = Fault["kind"]
export type Of<K extends Kind> = Extract<Fault, { readonly kind: K }>

/** All kinds, for tests that want to have seen each. */
export const kinds: ReadonlyArray<Kind> = Fault.members.map((member) => member.fields.kind.literals[0])

/** A fault with its counters. */
export interface Switch {
  readonly fault: Fault
  seen: number
  hits: number
}

export const switches = (faults: ReadonlyArray<Fault>): Array<Switch> =>
  faults.map((fault) => ({ fault, seen: 0, hits: 0 }))

/** What is happening, for filters to look at. */
export interface Occasion {
  readonly command: string | null
  readonly volume_id: string | null
  readonly vm_id: string | null
}

const concerns = (fault: Fault, occasion: Occasion): boolean =>
  (fault.command === undefined || fault.command === occasion.command) &&
  (fault.volume_id === undefined || fault.volume_id === occasion.volume_id) &&
  (fault.vm_id === undefined || fault.vm_id === occasion.vm_id)

/** The first switched-on fault of one of these kinds that hits this occasion; its counters move on. */
export const strike = <K extends Kind>(
  list: ReadonlyArray<Switch>,
  random: Random.Random,
  among: ReadonlyArray<K>,
  occasion: Occasion
): Of<K> | null => {
  for (const one of list) {
    const { fault } = one
    if (!(among as ReadonlyArray<Kind>).includes(fault.kind) || !concerns(fault, occasion)) continue
    if (fault.times !== undefined && one.hits >= fault.times) continue
    one.seen += 1
    if (one.seen <= (fault.skip ?? 0)) continue
    if (fault.probability !== undefined && Random.next(random) >= fault.probability) continue
    one.hits += 1
    return fault as Of<K>
  }
  return null
}
