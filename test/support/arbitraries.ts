import { createHash } from "node:crypto"
import { FastCheck } from "effect"
import type { Binding, Declaration, Deletion, Spec } from "../../schema/Declaration.ts"
import { GIB, unbound } from "../../schema/Declaration.ts"
import { exportNameOf } from "../../schema/Ids.ts"
import type { VolumeId } from "../../schema/Ids.ts"
import type { BlockDevice, CloudVolume, Holder, Inventory, NbdSection, Verification } from "../../schema/Inventory.ts"
import type { Operation } from "../../schema/Operation.ts"
import { limits } from "../../schema/Settings.ts"
import { UID_TAG } from "../../schema/Action.ts"
import * as Plan from "../../reconciler/Plan.ts"
import * as Worlds from "./Worlds.ts"

/**
 * Worlds from small pools: three volumes, three VMs, every state of each witness. Most parts of a world are healthy,
 * so that the odd one is reached past all the others; the pools are small, so that things meet.
 */
const { constant, constantFrom, oneof, record, tuple } = FastCheck

/** Mostly the first, now and then one of the others. */
const mostly = <A>(usual: A, ...others: ReadonlyArray<A>): FastCheck.Arbitrary<A> =>
  oneof(
    { weight: others.length === 0 ? 1 : 7, arbitrary: constant(usual) },
    { weight: 3, arbitrary: constantFrom(usual, ...others) }
  )

const indexes = [1, 2, 3] as const
const vms = [Worlds.appliance, Worlds.vmId(1), Worlds.vmId(2)] as const
const ago = (seconds: number) => Worlds.now - seconds * 1000
const letterOf = (n: number) => "abcdefgh".charAt(n)

const cloudStates = [
  "Allocated",
  "Uploaded",
  "Creating",
  "Attaching",
  "Migrating",
  "Snapshotting",
  "Destroy",
  "Expunging",
  "Expunged",
  "UploadError",
  "Teleporting"
]

const tagsOf = (n: number) =>
  mostly<CloudVolume["tags"]>(
    [{ key: UID_TAG, value: Worlds.uidOf(n) }],
    [],
    [{ key: "Volumed-UID", value: Worlds.uidOf(1) }],
    [{ key: "TEAM", value: "other" }]
  )

const rowOf = (n: number): FastCheck.Arbitrary<CloudVolume> =>
  record({
    type: mostly("DATADISK", "ROOT", "ISO"),
    state: mostly("Ready", ...cloudStates),
    size: mostly(10 * GIB, 5 * GIB, 20 * GIB),
    vm_id: constantFrom(...vms, vms[0], null, null),
    vm_state: mostly<string | null>("Running", "Stopped", "Stopped", "Starting", null),
    zone_id: mostly<CloudVolume["zone_id"]>(Worlds.zone, Worlds.otherZone, null),
    job_id: mostly<CloudVolume["job_id"]>(null, Worlds.jobId(n)),
    delete_protection: mostly(false, true),
    tags: tagsOf(n)
  }).map((changes) => Worlds.cloudVolume(Worlds.volumeId(n), changes))

/** How CloudStack answers about one volume. */
const sightOf = (n: number) =>
  tuple(mostly("listed", "listed", "unlisted", "absent", "unresolved", "ambiguous", "doubled"), rowOf(n))

const bindingOf = (n: number): FastCheck.Arbitrary<Binding> => {
  const id = Worlds.volumeId(n)
  const attached = record({
    vm_id: constantFrom(...vms, vms[0]),
    as: mostly<"data" | "root">("data", "root"),
    settled: mostly(true, false)
  })
  const exported = constantFrom(
    { name: exportNameOf(id), path: Worlds.byIdPath(id), settled_at: ago(900) },
    { name: exportNameOf(id), path: `/dev/vd${letterOf(n)}`, settled_at: ago(900) },
    { name: "old-disk", path: Worlds.byIdPath(id), settled_at: ago(900) }
  )
  const lost = constantFrom(
    { first_absent_at: ago(10), proven_at: null, accepted: false },
    { first_absent_at: ago(90), proven_at: ago(50), accepted: false },
    { first_absent_at: ago(90), proven_at: ago(50), accepted: true }
  )
  const bound = record({
    origin: constantFrom("created" as const, "adopted" as const),
    attachment: FastCheck.option(attached, { freq: 4 }),
    export: FastCheck.option(exported, { freq: 2 }),
    settled_generation: constantFrom(0, 1, 2),
    loss: oneof({ weight: 2, arbitrary: constant(null) }, { weight: 1, arbitrary: lost }),
    repairs: mostly<Array<number>>([], [ago(9000), ago(60)], [ago(600), ago(60)]),
    drift_since: constantFrom(null, ago(5), ago(300)),
    device_awaited_since: constantFrom(null, ago(5), ago(300)),
    late: mostly<Binding["late"]>(
      null,
      { operation_id: Worlds.operationId(9), type: "attach" },
      { operation_id: Worlds.operationId(9), type: "create" }
    ),
    former_id: mostly<Binding["former_id"]>(null, Worlds.volumeId(99))
  }).map((rest): Binding => ({ volume_id: id, ...rest }))
  return oneof({ weight: 6, arbitrary: bound }, { weight: 1, arbitrary: constant(unbound) })
}

const specOf = (n: number): FastCheck.Arbitrary<Partial<Spec>> =>
  record({
    volume_id: constantFrom<Array<VolumeId | null>>(null, null, Worlds.volumeId(n), Worlds.volumeId(1)),
    size: mostly<number | null>(10 * GIB, null, 15 * GIB),
    disk_offering_id: mostly<Spec["disk_offering_id"]>(Worlds.offering, null),
    zone_id: mostly<Spec["zone_id"]>(Worlds.zone, null),
    attached_to: constantFrom<Array<Spec["attached_to"]>>(
      "appliance",
      "appliance",
      "none",
      null,
      vms[1],
      vms[2],
      vms[2]
    ),
    attach_as: constantFrom("data" as const, "data" as const, "root" as const),
    export_wanted: constantFrom(true, true, false, null),
    read_only: mostly(false, true),
    on_conflict: constantFrom("hold" as const, "move" as const),
    on_drift: mostly<Spec["on_drift"]>("repair", "hold"),
    on_loss: constantFrom("hold" as const, "recreate" as const),
    paused: mostly<Spec["paused"]>(
      null,
      { reason: "why", by: "who" },
      { reason: "why", by: "who", until: "2026-03-01T11:00:00Z" }
    ),
    metadata: mostly<Spec["metadata"]>({}, { team: "storage" }, { "VOLUMED-uid": "mine" })
  })

const deletions: FastCheck.Arbitrary<Deletion | null> = oneof(
  { weight: 4, arbitrary: constant(null) },
  {
    weight: 1,
    arbitrary: tuple(
      constantFrom("forget" as const, "retain" as const, "delete" as const, "delete" as const),
      constantFrom("2026-03-01T11:10:00Z", "2026-03-01T11:10:00Z", "2026-03-01T13:00:00Z")
    ).map(([policy, execute_after]) => Worlds.deletion(policy, { execute_after }))
  }
)

const declarationOf = (n: number): FastCheck.Arbitrary<Declaration> =>
  record({ spec: specOf(n), binding: bindingOf(n), deletion: deletions, generation: constantFrom(1, 2) }).map(
    (changes) => Worlds.declaration(`disk-${n}`, { uid: Worlds.uidOf(n), ...changes })
  )

/** The disks that show one volume's serial: mostly the one that belongs there. */
const devicesOf = (n: number): FastCheck.Arbitrary<ReadonlyArray<BlockDevice>> =>
  tuple(
    constantFrom(1, 1, 1, 1, 0, 0, 2),
    mostly<Partial<BlockDevice>>(
      {},
      { by_id_paths: [] },
      { size: 0 },
      { size: 5 * GIB },
      { forbidden: "mounted on /" },
      { read_only: true }
    )
  ).map(([count, changes]) =>
    Array.from({ length: count }, (_, i) => Worlds.device(Worlds.volumeId(n), letterOf(n + 3 * i), changes))
  )

/** Where a section's path leads to, and since when it is fenced: mostly as it should be. */
const standingOf = (n: number): FastCheck.Arbitrary<Pick<NbdSection, "device" | "fenced_at">> =>
  record({
    device: mostly<string | null>(`252:${letterOf(n).charCodeAt(0)}`, null, "252:1", "252:98"),
    fenced_at: mostly<number | null>(null, ago(5), ago(120))
  })

const sectionsOf = (n: number): FastCheck.Arbitrary<ReadonlyArray<NbdSection>> =>
  standingOf(n).chain((standing) => {
    const id = Worlds.volumeId(n)
    const own = Worlds.section(id, standing)
    return mostly<ReadonlyArray<NbdSection>>(
      [own],
      [],
      [],
      [{ ...own, path: `/dev/vd${letterOf(n)}` }],
      [{ ...own, read_only: true }],
      [{ ...own, path: Worlds.byIdPath(Worlds.volumeId(1)) }],
      [{ ...own, name: "old-disk" }],
      [{ ...own, name: `hand-made-${n}`, path: `/dev/vd${letterOf(n)}` }],
      [own, { ...own, name: `hand-made-${n}` }],
      [{ ...own, path: null }]
    )
  })

const verificationsOf = (n: number): FastCheck.Arbitrary<ReadonlyArray<Verification>> => {
  const id = Worlds.volumeId(n)
  const served = Worlds.verification(id, letterOf(n))
  const refused = { ...served, size: null, read_only: null, device: null }
  return mostly<ReadonlyArray<Verification>>(
    [served],
    [],
    [{ ...refused, outcome: "unknown" }],
    [{ ...refused, outcome: "denied" }],
    [{ ...refused, outcome: "dropped" }],
    [{ ...refused, outcome: "no_answer" }],
    [{ ...refused, outcome: "refused" }],
    [{ ...served, device: null }],
    [{ ...served, device: "252:1" }],
    [{ ...served, size: 5 * GIB }],
    [{ ...served, read_only: true }],
    [{ ...served, name: "old-disk" }]
  )
}

const holdersOf = (n: number): FastCheck.Arbitrary<ReadonlyArray<Holder>> =>
  mostly<ReadonlyArray<Holder>>(
    [],
    [{ pid: 7, command: "nbd-server", device: `252:${letterOf(n).charCodeAt(0)}`, peer: "10.0.0.9", since: null }],
    [{ pid: 8, command: "dd", device: `252:${letterOf(n).charCodeAt(0)}`, peer: null, since: null }]
  )

const each = <A>(of: (n: number) => FastCheck.Arbitrary<A>): FastCheck.Arbitrary<ReadonlyArray<A>> =>
  tuple(...indexes.map(of))

const cloudSource: FastCheck.Arbitrary<Inventory["cloud"]> = record({
  read: mostly<"whole" | "torn" | "unread">("whole", "torn", "unread"),
  scope: mostly<"all" | "some">("all", "some"),
  sights: each(sightOf),
  states: tuple(mostly("Running", "Destroyed"), mostly("Running", "Stopped", "Starting"), mostly("Stopped", "Running")),
  lost: mostly<"none" | "one" | "unread">("none", "one", "unread"),
  zone: mostly(Worlds.zone, Worlds.otherZone),
  twin: constantFrom(
    "none" as const,
    "none" as const,
    "mark" as const,
    "root" as const,
    "root" as const,
    "crowd" as const
  ),
  custom_ids: FastCheck.boolean()
}).map(({ custom_ids, lost, read, scope, sights, states, twin, zone }) => {
  if (read === "unread") return Worlds.unseen("no answer")
  const id = (n: number) => Worlds.volumeId(n + 1)
  const which = (...kinds: ReadonlyArray<string>) =>
    sights.flatMap(([kind], n) => (kinds.includes(kind) ? [id(n)] : []))
  const extra = {
    none: [],
    mark: [Worlds.cloudVolume(Worlds.volumeId(8), { tags: [{ key: UID_TAG, value: Worlds.uidOf(2) }] })],
    root: [Worlds.cloudVolume(Worlds.volumeId(9), { type: "ROOT", vm_id: vms[2], vm_state: "Stopped" })],
    crowd: [10, 11, 12].map((n) => Worlds.cloudVolume(Worlds.volumeId(n), { vm_id: vms[1], name: "disk-3" }))
  }[twin]
  const all = vms.map((vm, i) =>
    Worlds.vm(vm, { state: states[i] ?? "Running", ...(i === 1 ? { zone_id: zone } : {}) })
  )
  return Worlds.cloud(
    {
      scope,
      volumes: [...sights.flatMap(([kind, row]) => (kind === "listed" || kind === "doubled" ? [row] : [])), ...extra],
      ambiguous: which("ambiguous"),
      absent: which("absent", "doubled"),
      unresolved: which("unresolved"),
      vms: lost === "none" ? all : all.slice(0, 2),
      vms_absent: lost === "one" ? [vms[2]] : [],
      custom_ids
    },
    read === "whole",
    read === "whole" ? null : "the pages do not agree"
  )
})

const guestSource: FastCheck.Arbitrary<Inventory["guest"]> = record({
  read: mostly<"whole" | "torn" | "unread">("whole", "torn", "unread"),
  devices: each(devicesOf)
}).map(({ devices, read }) =>
  read === "unread" ? Worlds.unseen("no sysfs") : Worlds.guest(devices.flat(), read === "whole")
)

const nbdSource: FastCheck.Arbitrary<Inventory["nbd"]> = record({
  read: mostly<"whole" | "torn" | "unread">("whole", "torn", "unread"),
  state: mostly<"running" | "absent" | "hung" | "foreign" | "not_installed">(
    "running",
    "absent",
    "hung",
    "foreign",
    "not_installed"
  ),
  config_problem: mostly<string | null>(null, "line 3 is no key"),
  sections: each(sectionsOf),
  verifications: each(verificationsOf),
  holders: each(holdersOf)
}).map(({ config_problem, holders, read, sections, state, verifications }) =>
  read === "unread"
    ? Worlds.unseen("no config")
    : Worlds.nbd(
        {
          server: { state, pid: null, problem: null },
          config_problem,
          sections: sections.flat(),
          verifications: verifications.flat(),
          holders: holders.flat()
        },
        read === "whole"
      )
)

export const inventories: FastCheck.Arbitrary<Inventory> = record({
  cloud: cloudSource,
  guest: guestSource,
  nbd: nbdSource
}).map(Worlds.inventory)

const phases = ["intended", "submitted", "accepted", "uncertain", "needs_operator", "settled", "refused"] as const
const types = ["create", "adopt", "attach", "detach", "export", "unexport", "migrate_path", "tag", "delete"] as const

const operationsOf = (n: number): FastCheck.Arbitrary<ReadonlyArray<Operation>> =>
  oneof(
    { weight: 6, arbitrary: constant([]) },
    {
      weight: 1,
      arbitrary: record({
        phase: constantFrom(...phases),
        type: constantFrom(...types),
        vm_id: constantFrom(null, ...vms)
      }).map((changes) => [
        Worlds.operation(Worlds.uidOf(n), { id: Worlds.operationId(n), volume_id: Worlds.volumeId(n), ...changes })
      ])
    }
  )

export const declarations: FastCheck.Arbitrary<ReadonlyArray<Declaration>> = each(declarationOf)

/** Whole inputs of the planner. */
export const inputs: FastCheck.Arbitrary<Plan.Input> = record({
  declarations,
  inventory: inventories,
  operations: each(operationsOf),
  destructive_last_hour: mostly(0, 20, 19),
  hold: mostly<string | null>(null, "somebody holds it"),
  maintenance: mostly<string | null>(null, "maintenance by somebody"),
  withhold: mostly(false, true),
  backoff: mostly<"none" | "one">("none", "one"),
  agreed: constantFrom(null, ago(300), ago(5), ago(-10)),
  astray: mostly<"none" | "all">("none", "all"),
  approve: mostly<"none" | "losses" | "destruction">("none", "losses", "destruction"),
  narrow: mostly(limits, {
    ...limits,
    actions_per_vm: 1,
    actions_total: 1,
    disks_per_vm: 2,
    destructive_per_pass: 1,
    suspicion_count: 1
  })
}).map((drawn) => {
  const { agreed, approve, astray, backoff, declarations, destructive_last_hour, hold, inventory, maintenance } = drawn
  const { narrow, operations, withhold } = drawn
  const removals = declarations.flatMap(({ binding, generation, name, uid }) =>
    !withhold || binding.volume_id === null
      ? []
      : (["delete", "detach", "unexport"] as const).map((action) => ({
          uid,
          name,
          generation,
          volume_id: binding.volume_id ?? Worlds.volumeId(0),
          action,
          digest: "withheld"
        }))
  )
  const keys = declarations.flatMap(({ binding, generation, uid }) =>
    (approve === "none" || binding.volume_id === null
      ? []
      : approve === "losses"
        ? (["accept_loss"] as const)
        : (["delete", "detach", "unexport"] as const)
    ).map((action) => Plan.heldKey({ uid, generation, volume_id: binding.volume_id ?? Worlds.volumeId(0), action }))
  )
  return Worlds.input(declarations, inventory, {
    consents: new Map(agreed === null ? [] : indexes.map((n) => [Worlds.uidOf(n), agreed])),
    astray: new Set(astray === "none" ? [] : indexes.map((n) => exportNameOf(Worlds.volumeId(n)))),
    digest: (text) => createHash("sha256").update(text).digest("hex"),
    operations: operations.flat(),
    limits: narrow,
    destructive_last_hour,
    hold,
    maintenance,
    withheld: removals,
    approved: new Set(keys),
    backoff: new Map(backoff === "none" ? [] : [[Worlds.uidOf(1), { retry_at: Worlds.now + 5000, message: "refused" }]])
  })
})
