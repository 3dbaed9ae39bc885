import { Effect, Redacted } from "effect"
import type { KeyedAnswer, NewCall, Write } from "../../reconciler/Store.ts"
import type * as Actions from "../../schema/Action.ts"
import type { Condition } from "../../schema/Condition.ts"
import { type Binding, type Spec, unbound } from "../../schema/Declaration.ts"
import { Name, OfferingId, OperationId, Uid, VmId, VolumeId, ZoneId } from "../../schema/Ids.ts"

export const uuid = (n: number) => `00000000-0000-4000-8000-${n.toString(16).padStart(12, "0")}`
export const uidOf = (n: number) => Uid.make(uuid(n))
export const volumeId = (n: number) => VolumeId.make(uuid(0x100000 + n))
export const vm = VmId.make("8a4400e5-c92a-4bc4-8bff-4b6b0b6a018c")

/** The settings of a store on this database. */
export const site = (dsn: string) => ({
  database_dsn: Redacted.make(dsn),
  database_ca_file: null,
  appliance_vm_id: vm
})

export const spec = (over: Partial<Spec> = {}): Spec => ({
  cloudstack_name: "disk",
  volume_id: null,
  size: 10 * 1024 ** 3,
  disk_offering_id: OfferingId.make(uuid(1)),
  zone_id: ZoneId.make(uuid(2)),
  attached_to: "appliance",
  attach_as: "data",
  export_wanted: true,
  read_only: false,
  deletion_policy: "forget",
  on_conflict: "hold",
  on_drift: "repair",
  on_loss: "hold",
  paused: null,
  metadata: {},
  ...over
})

export const write = (n: number, over: Partial<Write> = {}): Write => ({
  name: Name.make(`disk-${n}`),
  expected_generation: null,
  uid: uidOf(n),
  generation: 1,
  set: null,
  spec: spec(),
  managers: { size: { by: "cli", at: "2026-03-01T12:00:00.000Z" } },
  deletion: null,
  actor: "alice",
  kind: "declared",
  ...over
})

export const bindingOf = (n: number, over: Partial<Binding> = {}): Binding => ({
  ...unbound,
  volume_id: volumeId(n),
  origin: "created",
  ...over
})

export const attach = (n: number, over: Partial<Actions.Attach> = {}): Actions.Attach => ({
  _tag: "Attach",
  uid: uidOf(n),
  name: Name.make(`disk-${n}`),
  generation: 1,
  cause: "declaration",
  reason: "wanted on the appliance, attached nowhere",
  destructive: false,
  volume_id: volumeId(n),
  vm_id: vm,
  as: "data",
  on_appliance: true,
  ...over
})

export const detach = (n: number, over: Partial<Actions.Detach> = {}): Actions.Detach => ({
  _tag: "Detach",
  uid: uidOf(n),
  name: Name.make(`disk-${n}`),
  generation: 1,
  cause: "drift",
  reason: "not wanted there",
  destructive: true,
  volume_id: volumeId(n),
  vm_id: vm,
  on_appliance: true,
  device: null,
  root: false,
  ...over
})

export const callId = (n: number) => OperationId.make(`op-${uuid(0x200000 + n)}`)

/** A call number `call` that asks for the declaration number `n` to be on the appliance. */
export const call = (n: number, over: Partial<NewCall> & { readonly call?: number } = {}): NewCall => {
  const { call = n, ...fields } = over
  return {
    id: callId(call),
    type: "attach",
    volume_id: volumeId(n),
    vm_id: vm,
    request: { vm_id: vm },
    name: Name.make(`disk-${n}`),
    uid: uidOf(n),
    generation: 1,
    actor: "v1",
    wish: {
      spec: { attached_to: "appliance", export_wanted: true },
      before: { attached_to: "none", export_wanted: false },
      remove: false
    },
    deadline_at: 110_000,
    ...fields
  }
}

export const answer = (key: string, over: Partial<KeyedAnswer> = {}): KeyedAnswer => ({
  key,
  digest: "d1",
  status: 201,
  response: { id: "op-1", status: "pending" },
  ...over
})

export const condition = (over: Partial<Condition> = {}): Condition => ({
  type: "Ready",
  status: "False",
  reason: "DeviceMissing",
  category: "blocked",
  message: "no device",
  suggestion: "look",
  observed_generation: 1,
  last_transition_time: "2026-03-01T12:00:00.000Z",
  ...over
})

export const removal = {
  policy: "retain",
  requested_at: "2026-03-01T12:00:00.000Z",
  by: "bob",
  execute_after: "2026-03-01T12:00:00.000Z"
} as const

export const settled = { phase: "settled", status: "completed" } as const

/** Strings that mean something to some parser on the way. */
export const hostile = [
  "'; DROP TABLE declarations; --",
  '" OR 1=1 --',
  "`name`",
  "%",
  "_",
  "\\",
  "\\' OR ''='",
  "a\u0000b",
  "$(reboot)",
  "${sql}",
  "?",
  ":name",
  "$.x",
  "NULL",
  "line\nbreak\r\n",
  "\u2028\u2029",
  "\ud83d\ude00 four bytes",
  "a\u0301 \u00e1",
  "trailing ",
  "x'00'",
  "/* */",
  '{"json": "}'
]

/** The failure of what must fail. Says so in few words when it does not: what it gave instead may be large. */
export const refusal = <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<E, never, R> =>
  Effect.matchEffect(effect, {
    onSuccess: () => Effect.dieMessage("expected a refusal, and it was accepted"),
    onFailure: Effect.succeed
  })
