import { assert, describe, it } from "@effect/vitest"
import { Effect, Either } from "effect"
import * as fc from "effect/FastCheck"
import * as Declare from "../../reconciler/Declare.ts"
import * as Facts from "../../reconciler/Facts.ts"
import * as Import from "../../reconciler/Import.ts"
import type { Table } from "../../reconciler/OldTables.ts"
import * as Plan from "../../reconciler/Plan.ts"
import * as Document from "../../schema/Document.ts"
import type { Declaration } from "../../schema/Declaration.ts"
import { exportNameOf, serialOf, type VmId, type VolumeId } from "../../schema/Ids.ts"
import { sectionOf } from "../../schema/Inventory.ts"
import { limits } from "../../schema/Settings.ts"
import * as Worlds from "../support/Worlds.ts"

const A = Worlds.volumeId(1)
const B = Worlds.volumeId(2)
const C = Worlds.volumeId(3)
const { appliance } = Worlds
const testVm = Worlds.vmId(1)

const here = (id: VolumeId, over: Parameters<typeof Worlds.cloudVolume>[1] = {}) =>
  Worlds.cloudVolume(id, { vm_id: appliance, ...over })

const left = (over: Partial<Import.Left>): Import.Left => ({
  appliance_vm_id: appliance,
  volumes: [],
  ambiguous: [],
  devices: [],
  sections: [],
  tables: [],
  unfinished: [],
  declared: [],
  ...over
})

/** The documented table. */
const mappings = (
  ...rows: ReadonlyArray<readonly [volume: string, path: string, vm?: string, state?: string]>
): Table => ({
  name: "device_mappings",
  columns: ["id", "volume_id", "vm_id", "device_path", "cloudstack_state", "linux_state", "size", "last_sync"],
  rows: rows.map(([volume, path, vm = appliance, state = "attached"], at) => [
    `mapping-${at}`,
    volume,
    vm,
    path,
    state,
    "detected",
    "1",
    "2025-09-30 10:00:00"
  ]),
  cut: false
})

const table = (name: string, columns: ReadonlyArray<string>, ...rows: ReadonlyArray<ReadonlyArray<string | null>>) => ({
  name,
  columns,
  rows,
  cut: false
})

const legacy = sectionOf

const provenIds = (report: Import.Report) => report.proven.map(({ declaration }) => declaration.volume_id)
const doubtsOf = (report: Import.Report, id: string | null) =>
  report.unproven.filter(({ volume_id }) => volume_id === id).map(({ why }) => why)

/** One doubt, which this matches, keeps A out. */
const keepsOut = (report: Import.Report, why: RegExp) => {
  assert.notInclude(provenIds(report), A)
  assert.match(doubtsOf(report, A).join("\n"), why)
}

describe("What an older daemon left", () => {
  it("is declared as it is where CloudStack, the guest, the tables and the NBD file agree", () => {
    const report = Import.compare(
      left({
        volumes: [here(A, { name: "pgtest2-disk-0" }), here(B), Worlds.cloudVolume(C, { vm_id: testVm })],
        devices: [Worlds.device(A, "b"), Worlds.device(B, "c")],
        sections: [legacy("migration-vm-PGTEST2", "/dev/vdb", true), Worlds.section(B), Worlds.section(C)],
        tables: [mappings([A, "/dev/vdb"], [B, Worlds.byIdPath(B)], [C, "remote", testVm])]
      })
    )
    assert.deepStrictEqual(report.unproven, [])
    const common = { deletion_policy: "forget", on_drift: "hold" } as const
    assert.deepStrictEqual(
      report.proven.map(({ declaration }) => ({ ...declaration })),
      [
        {
          name: "pgtest2-disk-0",
          volume_id: A,
          attached_to: "appliance",
          export_wanted: true,
          read_only: true,
          ...common
        },
        { name: here(B).name, volume_id: B, attached_to: "appliance", export_wanted: true, ...common },
        // Its section waits for it: named by its serial, it can never be another disk's.
        { name: here(C).name, volume_id: C, attached_to: testVm, export_wanted: true, ...common }
      ]
    )
  })

  it("is found by name and value where no document shows the columns", () => {
    const layouts = [
      table(
        "vm_export_mappings",
        ["id", "vm_name", "vol", "dev", "nbd_export"],
        ["7", "PGTEST2", A.toUpperCase(), "/dev/vdb", "migration-vm-PGTEST2"]
      ),
      table(
        "vm_export_mappings",
        ["export_name", "device_path", "vm_id", "disk_unit_number"],
        ["migration-vm-PGTEST2", "/dev/vdb", "4205a841-0265-f4bd-39a6-39fd92196f53", "0"]
      ),
      table("ossea_volumes", ["uuid", "ossea_config", "volume_name", "mount_point"], [A, "1", "pgtest2", "/mnt/a"])
    ]
    for (const one of layouts) {
      const report = Import.compare(
        left({
          volumes: [here(A)],
          devices: [Worlds.device(A, "b")],
          sections: [legacy("migration-vm-PGTEST2", "/dev/vdb", false)],
          tables: [one]
        })
      )
      assert.deepStrictEqual(provenIds(report), [A], JSON.stringify(report))
      assert.deepStrictEqual(report.unproven, [])
      assert.include(report.proven[0]?.found_in.join(), one.name)
      assert.match(report.notes.join("\n"), /not used: /)
    }
  })

  it("uses none of two columns that may both be meant, and says so", () => {
    const both = table("ossea_volumes", ["source_volume", "target_volume"], [A, B])
    const report = Import.compare(left({ volumes: [Worlds.cloudVolume(A), Worlds.cloudVolume(B)], tables: [both] }))
    assert.deepStrictEqual(report.proven, [])
    assert.match(report.notes.join("\n"), /source_volume and target_volume of ossea_volumes may all hold volume ids/)
    assert.lengthOf(report.unproven, 1)
  })

  it("is left as it is declared already, whatever the tables say of it (S14)", () => {
    const report = Import.compare(
      left({
        volumes: [here(A)],
        devices: [Worlds.device(A, "d")],
        tables: [mappings([A, "/dev/vdz"])],
        declared: [{ name: "mine", volume_id: A }]
      })
    )
    assert.deepStrictEqual(report.kept, [{ volume_id: A, name: "mine" }])
    assert.deepStrictEqual([report.proven, report.unproven], [[], []])
  })

  it("gets names that nobody else has, whatever CloudStack calls it", () => {
    const names = ["disk", "disk", "../../etc/passwd\n", "größe", "taken", "-"]
    const ids = names.map((_, at) => Worlds.volumeId(at + 1))
    const report = Import.compare(
      left({
        volumes: ids.map((id, at) => Worlds.cloudVolume(id, { name: names[at] ?? "" })),
        tables: [table("ossea_volumes", ["volume_id"], ...ids.map((id) => [id]))],
        declared: [{ name: "taken", volume_id: null }]
      })
    )
    const given = report.proven.map(({ declaration }) => declaration.name)
    assert.deepStrictEqual(given, [
      `disk-${ids[0]?.slice(0, 8)}`,
      `disk-${ids[1]?.slice(0, 8)}`,
      "etc-passwd-",
      "gr-e",
      `taken-${ids[4]?.slice(0, 8)}`,
      "volume"
    ])
    assert.strictEqual(report.proven[3]?.declaration.cloudstack_name, "größe")
    assert.notProperty(report.proven[2]?.declaration, "cloudstack_name")
  })

  it("takes a by-id path that an older column cut off for what it begins, when that is one disk's", () => {
    const cut = Worlds.byIdPath(A).slice(0, 32)
    const world = { volumes: [here(A)], devices: [Worlds.device(A, "b")] }
    assert.deepStrictEqual(provenIds(Import.compare(left({ ...world, tables: [mappings([A, cut])] }))), [A])
    keepsOut(Import.compare(left({ ...world, tables: [mappings([A, cut.slice(0, 31)])] })), /leads to no disk here/)
  })

  it("is served by a letter here, whatever another VM calls by that letter", () => {
    const report = Import.compare(
      left({
        volumes: [here(A), Worlds.cloudVolume(B, { vm_id: testVm })],
        devices: [Worlds.device(A, "b")],
        sections: [legacy("migration-vm-A", "/dev/vdb", false)],
        tables: [table("ossea_volumes", ["volume_id", "vm_id", "device"], [B, testVm, "/dev/vdb"])]
      })
    )
    assert.sameMembers(provenIds(report), [A, B])
  })
})

describe("A doubt keeps a volume out", () => {
  const world = { volumes: [here(A)], devices: [Worlds.device(A, "b")] }
  const tables = [mappings([A, "/dev/vdb"])]
  const cases: ReadonlyArray<readonly [string, Partial<Import.Left>, RegExp]> = [
    ["a ROOT volume (S5)", { volumes: [here(A, { type: "ROOT" })] }, /"ROOT" volume, not a data disk/],
    ["a state that is unknown", { volumes: [here(A, { state: "Wobbling" })] }, /state "Wobbling"/],
    ["a volume that is on its way", { volumes: [here(A, { state: "Attaching" })] }, /state Attaching/],
    ["somebody's job", { volumes: [here(A, { job_id: Worlds.jobId(1) })] }, /job running/],
    ["an id listed twice (O7)", { ambiguous: [A] }, /twice with different content/],
    ["no disk with its serial (D8)", { devices: [] }, /no disk with its serial is here/],
    ["two disks with its serial (D5)", { devices: [...world.devices, Worlds.device(A, "c")] }, /more than one disk/],
    ["a disk of this machine's own (S5)", { devices: [Worlds.device(A, "b", { forbidden: "mounted" })] }, /is mounted/],
    [
      "a letter that is another disk now (D3)",
      { devices: [Worlds.device(A, "c"), Worlds.device(B, "b")] },
      /is now the/
    ],
    [
      "a disk that stayed (D9)",
      { volumes: [Worlds.cloudVolume(A)], tables: [mappings([A, "/dev/vdb", ""])] },
      /is here as/
    ],
    ["another VM than the row's", { tables: [mappings([A, "/dev/vdb", testVm])] }, /says VM .*shows it on VM 8a4400e5/],
    ["a row that says detached", { tables: [mappings([A, "/dev/vdb", appliance, "detached"])] }, /says detached/],
    [
      "two rows for one path",
      { volumes: [here(A), here(B)], tables: [mappings([A, "/dev/vdb"], [B, "/dev/vdb"])] },
      /rows of several volumes name/
    ],
    [
      "two sections for its disk",
      { sections: [Worlds.section(A), legacy("old", "/dev/vdb", false)] },
      /one disk is served under/
    ],
    [
      "a section of its name that leads elsewhere (S3)",
      { devices: [...world.devices, Worlds.device(B, "c")], sections: [legacy(exportNameOf(A), "/dev/vdc", false)] },
      /leads to the disk with serial/
    ],
    [
      "a section that bears another's id",
      { sections: [legacy(exportNameOf(B), "/dev/vdb", false)] },
      /the id of another volume/
    ],
    [
      "a section whose path is gone",
      { sections: [legacy(exportNameOf(A), "/dev/vdq", false)] },
      /leads to no disk now/
    ],
    [
      "a section that cannot be taken over",
      { sections: [{ ...Worlds.section(A), obstacle: "it runs a program" }] },
      /cannot become volumed's: it runs a program/
    ],
    [
      "an export without a section",
      { tables: [table("vm_export_mappings", ["volume_id", "export_name"], [A, "migration-vm-GONE"])] },
      /no section is called so/
    ],
    [
      "an export that is another volume's",
      {
        volumes: [here(A), here(B)],
        devices: [...world.devices, Worlds.device(B, "c")],
        sections: [legacy("migration-vm-B", "/dev/vdc", false)],
        tables: [table("vm_export_mappings", ["volume_id", "export_name"], [A, "migration-vm-B"])]
      },
      /not this volume's/
    ],
    [
      "a section that a row gives to another volume, whose letter it was (S3, D3)",
      {
        volumes: [here(A), here(B)],
        devices: [...world.devices, Worlds.device(B, "c")],
        sections: [legacy("migration-vm-B", "/dev/vdb", false)],
        tables: [table("vm_export_mappings", ["volume_id", "export_name"], [B, "migration-vm-B"])]
      },
      /gives the export "migration-vm-B" to the volume/
    ],
    [
      "a section that a row gives to a volume that is gone (S3)",
      {
        sections: [legacy("migration-vm-GONE", "/dev/vdb", false)],
        tables: [...tables, table("vm_export_mappings", ["volume_id", "export_name"], [C, "migration-vm-GONE"])]
      },
      /gives the export "migration-vm-GONE" to the volume/
    ],
    [
      "a section by a letter that was another volume's (S3, D3)",
      {
        volumes: [here(A), here(B)],
        devices: [...world.devices, Worlds.device(B, "c")],
        sections: [legacy("migration-vm-B", "/dev/vdb", false)],
        tables: [mappings([B, "/dev/vdb"])]
      },
      /gives "\/dev\/vdb" to the volume/
    ],
    [
      "rows that were not read",
      { tables: [...tables, { ...table("ossea_volumes", ["volume_id"], [A]), cut: true }] },
      /ossea_volumes has more rows than were read/
    ],
    [
      "an operation that is not finished (P7)",
      { unfinished: [{ id: "op-1", type: "detach", status: "executing", volume_id: A, created_at: "2025-09-30" }] },
      /"op-1" .*is "executing"/
    ]
  ]
  for (const [what, over, why] of cases) {
    it(what, () => keepsOut(Import.compare(left({ ...world, tables, ...over })), why))
  }

  it("and none of them is there without its cause", () => {
    assert.deepStrictEqual(provenIds(Import.compare(left({ ...world, tables }))), [A])
  })

  it("says of rows and sections that are nobody's what to do with them", () => {
    const report = Import.compare(
      left({
        volumes: [here(A)],
        devices: [Worlds.device(A, "b")],
        sections: [legacy("migration-vm-GONE", "/dev/vdx", false), legacy("dummy", "/var/lib/dummy.img", false)],
        tables: [mappings([A, "/dev/vdb"], [B, "/dev/vdc"], ["'; DROP TABLE x; --\n\u001b[2J", "/dev/vdd"], ["", ""])],
        unfinished: [{ id: "op-2", type: "create", status: "pending", volume_id: "", created_at: "2025-09-30" }]
      })
    )
    assert.deepStrictEqual(provenIds(report), [A])
    assert.lengthOf(report.unproven, 5)
    assert.match(doubtsOf(report, null).join("\n"), /CloudStack does not show/)
    assert.match(report.notes.join("\n"), /"dummy" is no volume's: it stays as it is/)
    // What hostile text could do to a terminal is gone before it is shown.
    const texts = [...report.unproven.flatMap((doubt) => [doubt.subject, doubt.why, doubt.advice]), ...report.notes]
    assert.notMatch(texts.join(""), /[\u0000-\u001f\u007f]/)
  })
})

/** The declarations that a report leads to, as the daemon would store them. */
const declared = (report: Import.Report) =>
  Effect.gen(function* () {
    const volumes: unknown = report.proven.map(({ declaration }) => declaration)
    const request = yield* Document.decodeApply({ set: "imported", volumes })
    let made = 0
    const applied = yield* Declare.apply([], request, {
      now: Worlds.now,
      actor: "import",
      appliance_vm_id: appliance,
      defaults: { disk_offering_id: null, zone_id: null },
      delete_grace_ms: 0,
      newUid: () => Worlds.uidOf((made += 1))
    })
    return applied.changes.map(({ declaration }) => declaration)
  })

const letterOf = (n: number) => "abcdef"[n] ?? "z"
const number = fc.integer({ min: 1, max: 5 })
const anyPath = fc.oneof(
  number.map((n) => `/dev/vd${letterOf(n)}`),
  number.map((n) => Worlds.byIdPath(Worlds.volumeId(n)))
)
const anySection = fc.record({
  name: fc.oneof(
    fc.constantFrom("migration-vm-X", "migration-vm-Y"),
    number.map((n) => exportNameOf(Worlds.volumeId(n)))
  ),
  path: anyPath,
  read_only: fc.boolean()
})
const anyRow = fc.tuple(
  fc.integer({ min: 1, max: 6 }).map((n) => Worlds.volumeId(n)),
  fc.oneof(anyPath, fc.constant("")),
  fc.constantFrom(appliance, testVm)
)

/** A few volumes about which all agree, and up to three things that are at odds with that. */
const anyLeft = fc
  .record({
    volumes: fc.uniqueArray(
      fc.record({
        n: number,
        vm: fc.constantFrom<VmId | null>(appliance, appliance, testVm, null),
        type: fc.constantFrom("DATADISK", "DATADISK", "DATADISK", "DATADISK", "ROOT"),
        state: fc.constantFrom("Ready", "Ready", "Ready", "Ready", "Attaching", "Expunged"),
        served: fc.constantFrom("by letter", "by id", "no"),
        mapped: fc.boolean()
      }),
      { minLength: 1, maxLength: 4, selector: ({ n }) => n }
    ),
    lost: fc.array(number, { maxLength: 1 }),
    stray: fc.array(number, { maxLength: 1 }),
    sections: fc.array(anySection, { maxLength: 1 }),
    rows: fc.array(anyRow, { maxLength: 1 })
  })
  .map(({ lost, rows, sections, stray, volumes }) => {
    const here = volumes.filter(({ n, vm }) => vm === appliance && !lost.includes(n)).map(({ n }) => n)
    const served = volumes.flatMap(({ n, served }) => {
      const id = Worlds.volumeId(n)
      if (served === "no") return []
      return served === "by id"
        ? [sectionOf(exportNameOf(id), Worlds.byIdPath(id), n % 2 === 0)]
        : [sectionOf(`migration-vm-${n}`, `/dev/vd${letterOf(n)}`, false)]
    })
    const mapped = volumes.flatMap(({ mapped, n, vm }) =>
      mapped && vm !== null ? [[Worlds.volumeId(n), vm === appliance ? `/dev/vd${letterOf(n)}` : "", vm] as const] : []
    )
    const all = [...served, ...sections.map(({ name, path, read_only }) => sectionOf(name, path, read_only))]
    return left({
      volumes: volumes.map(({ n, state, type, vm }) =>
        Worlds.cloudVolume(Worlds.volumeId(n), { vm_id: vm, type, state })
      ),
      devices: [...new Set([...here, ...stray])].map((n) => Worlds.device(Worlds.volumeId(n), letterOf(n))),
      sections: [...new Map(all.map((section) => [section.name, section])).values()],
      tables: [mappings(...mapped, ...rows)]
    })
  })

const planFor = (given: Import.Left, declarations: ReadonlyArray<Declaration>) => {
  const inventory = Worlds.inventory({
    cloud: Worlds.cloud({ volumes: given.volumes }),
    guest: Worlds.guest(given.devices),
    nbd: Worlds.nbd({ sections: given.sections })
  })
  // What is bound and seen where it is wanted, as after the adoption.
  const bound = declarations.map((one) => ({ ...one, binding: { ...one.binding, volume_id: one.spec.volume_id } }))
  const learned = new Map(Facts.learn(bound, inventory, Worlds.now, limits).map(({ binding, uid }) => [uid, binding]))
  const plan = (of: ReadonlyArray<Declaration>) =>
    Plan.make({
      now: Worlds.now,
      only: null,
      declarations: of,
      operations: [],
      approved: new Set(),
      destructive_last_hour: 0,
      maintenance: null,
      withheld: [],
      inventory,
      limits,
      backoff: new Map(),
      consents: new Map(),
      astray: new Set(),
      hold: null,
      digest: () => "digest"
    })
  return [plan(declarations), plan(bound.map((one) => ({ ...one, binding: learned.get(one.uid) ?? one.binding })))]
}

describe("What an import declares", () => {
  it.effect("moves nothing and takes nothing away, whatever was left (S1, S3, S4, S5, S17)", () =>
    Effect.sync(() => {
      let proven = 0
      let served = 0
      fc.assert(
        fc.property(anyLeft, (given) => {
          const report = Import.compare(given)
          const declarations = Either.getOrThrow(Effect.runSync(Effect.either(declared(report))))
          proven += declarations.length
          served += report.proven.filter(({ export_name }) => export_name !== null).length
          for (const plan of planFor(given, declarations)) {
            const actions = plan.items.flatMap(({ chain }) => chain.map(({ _tag }) => _tag))
            const allowed = ["Adopt", "Tag", "Export", "MigratePath"]
            assert.deepStrictEqual(
              actions.filter((tag) => !allowed.includes(tag)),
              []
            )
            // Nothing that was proven is then refused for what was to be seen before.
            const blocked = plan.items.flatMap(({ blocked }) => (blocked === null ? [] : [blocked.reason]))
            assert.deepStrictEqual(
              blocked.filter((reason) => reason !== "NbdUnread" && reason !== "Queued"),
              []
            )
          }
          for (const { declaration, export_path } of report.proven) {
            const device = given.devices.find(({ kernel_path }) => kernel_path === export_path)
            if (device !== undefined) assert.strictEqual(device.serial, serialOf(declaration.volume_id))
          }
        }),
        { numRuns: 3_000 }
      )
      assert.isAbove(proven, 1_000)
      assert.isAbove(served, 500)
    })
  )
})
