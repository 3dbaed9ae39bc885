import type { Column, Shape, Table } from "./Shape.ts"

/** What the queries need of a table. A column that ends in `#` holds a number; all others hold text. */
interface Needed {
  /** The step of the schema that makes it. */
  readonly step: number
  readonly columns: ReadonlyArray<string>
  /** Columns that came later, each with its step. */
  readonly later?: Readonly<Record<string, number>>
  /** What no two rows may share, the primary key first; on MySQL. */
  readonly unique: ReadonlyArray<string>
  /** Unique keys that came later, each with its step. */
  readonly laterUnique?: Readonly<Record<string, number>>
  readonly view?: boolean
  /** On MySQL the queries name these, and fail without: what each is over, and its step. */
  readonly named?: Readonly<Record<string, readonly [over: string, step: number]>>
  /** The table of the daemon before this one on MySQL: its columns as documented, and which of ours are added. */
  readonly documented?: Documented
}

interface Documented {
  /** `varchar` with the least length, the values of an `enum`, or the kinds that do. */
  readonly columns: Readonly<Record<string, number | ReadonlyArray<string> | "json" | "text" | "time" | "number">>
  /** Those that only MySQL has of ours, made by the same step. */
  readonly ours: ReadonlyArray<string>
  /** Where one of these is missing it is made; one of the name with other columns is another table's. */
  readonly indexes: Readonly<Record<string, string>>
}

const operationTypes = ["create", "attach", "detach", "delete"]
const ourTypes = ["cleanup", "adopt", "export", "unexport", "migrate_path", "tag"]
const statuses = ["pending", "executing", "completed", "failed", "cancelled"]

const words = (text: string): ReadonlyArray<string> => text.trim().split(/\s+/)

const needed: Readonly<Record<string, Needed>> = {
  schema_version: { step: 0, columns: words("id# name applied_at"), unique: ["id"] },
  volume_operations: {
    step: 1,
    columns: words(`id type status volume_id vm_id request response error created_at updated_at completed_at name
      uid unresolved_uid cause actor generation# phase job_id attempts# parent_id destructive#
      submitted_at# expires_at#`),
    later: { wish: 23, "deadline_at#": 24, open_call_uid: 25, "term#": 51 },
    unique: ["id"],
    laterUnique: { unresolved_uid: 6 },
    named: {
      idx_volume_operations_page: ["created_iso,id", 27],
      idx_volume_operations_status_page: ["status,created_iso,id", 28],
      idx_volume_operations_type_page: ["type,created_iso,id", 29],
      idx_volume_operations_volume_page: ["volume_id,created_iso,id", 30],
      idx_volume_operations_vm_page: ["vm_id,created_iso,id", 31],
      idx_volume_operations_name_page: ["name,created_iso,id", 32],
      idx_volume_operations_uid_page: ["uid,created_iso,id", 33],
      idx_volume_operations_parent_page: ["parent_id,created_iso,id", 34],
      idx_volume_operations_outcome: ["type,status,created_iso,id", 36]
    },
    documented: {
      columns: {
        id: 64,
        type: operationTypes,
        status: statuses,
        volume_id: 64,
        vm_id: 64,
        request: "json",
        response: "json",
        error: "text",
        created_at: "time",
        updated_at: "time",
        completed_at: "time"
      },
      ours: ["created_iso", "updated_iso", "completed_iso", "error_text"],
      indexes: {
        idx_volume_operations_volume_id: "volume_id",
        idx_volume_operations_status: "status",
        idx_volume_operations_created_at: "created_at"
      }
    }
  },
  device_mappings: {
    step: 7,
    columns: words(`id volume_id vm_id device_path cloudstack_state linux_state size# last_sync created_at
      updated_at`),
    unique: ["id", "volume_id", "device_path"],
    documented: {
      columns: {
        id: 64,
        volume_id: 64,
        vm_id: 64,
        device_path: 32,
        cloudstack_state: 32,
        linux_state: 32,
        size: "number",
        last_sync: "time",
        created_at: "time",
        updated_at: "time"
      },
      ours: ["last_sync_iso", "created_iso", "updated_iso"],
      indexes: { idx_device_mappings_vm_id: "vm_id", idx_device_mappings_device_path: "device_path" }
    }
  },
  declarations: {
    step: 12,
    columns: words(`uid name living_name generation# set_name spec managers binding bound_volume_id deletion
      written_by created_at updated_at removed_at`),
    unique: ["uid"],
    laterUnique: { living_name: 13 }
  },
  conditions: { step: 16, columns: words("uid conditions updated_at"), unique: ["uid"] },
  approvals: {
    step: 17,
    columns: words("uid generation# volume_id action name digest expires_at#"),
    unique: ["uid,generation,volume_id,action"]
  },
  exports: {
    step: 18,
    columns: words("uid volume_id export_name device_path settled_at#"),
    unique: ["uid"]
  },
  volumed_exports: {
    step: 19,
    view: true,
    columns: words("volume_id name export_name device_path settled_at#"),
    unique: []
  },
  events: {
    step: 20,
    columns: words("id# at kind name actor message"),
    later: { uid: 41, operation_id: 42 },
    unique: ["id"]
  },
  lease: {
    step: 21,
    columns: words("id# term# holder acquired_at"),
    later: { last_write: 49, appliance_vm_id: 50 },
    unique: ["id"]
  },
  idempotency_keys: {
    step: 22,
    columns: words("idempotency_key digest status# response created_at"),
    unique: ["idempotency_key"]
  },
  maintenance: {
    step: 47,
    columns: words("id# reason begun_by begun_at ends_at ending#"),
    unique: ["id"]
  },
  operations_pruned: { step: 52, columns: words("type status pruned#"), unique: ["type,status"] },
  withheld: {
    step: 48,
    columns: words("uid generation# volume_id action name digest"),
    unique: ["uid,generation,volume_id,action"]
  }
}

/**
 * Where the database differs from what the program makes and queries, a sentence each; `done` are the steps that it has
 * recorded. What a crash left between a step and its record is no difference.
 */
export const differences = (shape: Shape, done: ReadonlySet<number>): ReadonlyArray<string> => {
  if (shape.unsuitable !== null) return [shape.unsuitable]
  return Object.entries(needed).flatMap(([name, need]) => {
    const table = shape.tables.get(name)
    if (table === undefined) return done.has(need.step) ? [`table ${name} is missing`] : []
    if (table.view !== (need.view ?? false))
      return [`table ${name} is ${table.view ? "a view" : "a table, and volumed's is a view"}`]
    const wrong = shape.dialect === "sqlite" ? inSqlite(table, need, done) : inMysql(table, need, done)
    return wrong.map((difference) => `table ${name}: ${difference}`)
  })
}

const bare = (column: string) => column.replace("#", "")

/** Those that must be there: the first ones with the table, each later one when its step is recorded. */
const requiredOf = (need: Needed, done: ReadonlySet<number>) => [
  ...need.columns,
  ...Object.entries(need.later ?? {}).flatMap(([column, step]) => (done.has(step) ? [column] : []))
]

const inSqlite = (table: Table, need: Needed, done: ReadonlySet<number>) =>
  requiredOf(need, done).flatMap((column) =>
    table.columns.has(bare(column)) ? [] : [`column ${bare(column)} is missing`]
  )

const inMysql = (table: Table, need: Needed, done: ReadonlySet<number>): ReadonlyArray<string> => {
  const { documented } = need
  const theirs = new Set(Object.keys(documented?.columns ?? {}))
  const ours = [...need.columns, ...(documented?.ours ?? [])].filter((column) => !theirs.has(bare(column)))
  // Ours came to a table of the predecessor with its step, not with the table.
  const required = new Set(documented === undefined || done.has(need.step) ? ours : [])
  for (const [column, step] of Object.entries(need.later ?? {})) if (done.has(step)) required.add(column)
  const all = new Set([...ours, ...Object.keys(need.later ?? {})])
  const known = new Set([...theirs, ...[...all].map(bare)])
  return [
    ...(need.view || table.engine === "InnoDB" ? [] : [`its engine is ${table.engine ?? "unknown"}, expected InnoDB`]),
    ...(documented === undefined ? [] : documentedIn(table, documented)),
    ...[...all].flatMap((column) => ownColumn(table, column, required.has(column))),
    ...[...table.columns].flatMap(([column, { optional }]) =>
      known.has(column) || optional || need.view ? [] : [`column ${column}, which volumed does not know, must be given`]
    ),
    ...keysIn(table, need, done),
    ...Object.entries(need.named ?? {}).flatMap(([name, [over, step]]) =>
      done.has(step) ? indexIn(table, name, over, true) : []
    ),
    ...table.foreignKeys.map((key) => `foreign key ${key}, expected none`)
  ]
}

const ownColumn = (table: Table, column: string, required: boolean): ReadonlyArray<string> => {
  const found = table.columns.get(bare(column))
  if (found === undefined) return required ? [`column ${bare(column)} is missing`] : []
  if (column.endsWith("#")) return isNumber(found) ? [] : [expected(column, "an integer", found.type)]
  if (found.collation === null) return [expected(column, "text", found.type)]
  return bytewise.test(found.collation)
    ? []
    : [expected(column, "a collation that compares bytes", `${found.type} ${found.collation}`)]
}

/** Byte for byte, with nothing padded. */
const bytewise = /^(?:utf8mb4_nopad_bin|utf8mb4_0900_bin)$/

const isNumber = ({ kind }: Column) => /^(?:bigint|int|mediumint|smallint|tinyint)$/.test(kind)

const expected = (column: string, wanted: string, found: string) =>
  `column ${bare(column)} is ${found}, expected ${wanted}`

const documentedIn = (table: Table, { columns, indexes }: Documented): ReadonlyArray<string> => [
  ...Object.entries(columns).flatMap(([column, wanted]) => {
    const found = table.columns.get(column)
    if (found === undefined) return [`column ${column} is missing`]
    const wrong = unlike(found, wanted)
    return wrong === null ? [] : [expected(column, wrong, found.type)]
  }),
  ...Object.entries(indexes).flatMap(([name, over]) => indexIn(table, name, over, false))
]

const indexIn = (table: Table, name: string, over: string, required: boolean): ReadonlyArray<string> => {
  const found = table.indexes.get(name)
  if (found === undefined) return required ? [`index ${name} over ${over} is missing`] : []
  return found === over ? [] : [`index ${name} is over ${found}, expected ${over}`]
}

/** What was expected; null where that is what was found. */
const unlike = (found: Column, wanted: Documented["columns"][string]): string | null => {
  if (typeof wanted === "number")
    return found.kind === "varchar" && (found.length ?? 0) >= wanted ? null : `varchar(${wanted})`
  if (wanted === "number") return isNumber(found) ? null : "bigint"
  if (wanted === "time") return found.kind === "timestamp" ? null : "timestamp"
  if (wanted === "text") return /^(?:text|mediumtext|longtext)$/.test(found.kind) ? null : "text"
  // MariaDB's JSON is a LONGTEXT with a CHECK.
  if (wanted === "json") return /^(?:json|longtext)$/.test(found.kind) ? null : "json"
  const values = [...found.type.matchAll(/'((?:[^']|'')*)'/g)].map(([, value]) => value ?? "")
  const strange = values.filter((value) => !wanted.includes(value) && !ourTypes.includes(value))
  return found.kind === "enum" && wanted.every((value) => values.includes(value)) && strange.length === 0
    ? null
    : `enum(${wanted.map((value) => `'${value}'`).join(",")})`
}

const keysIn = (table: Table, need: Needed, done: ReadonlySet<number>): ReadonlyArray<string> => {
  const later = Object.entries(need.laterUnique ?? {}).flatMap(([key, step]) => (done.has(step) ? [key] : []))
  return [...need.unique, ...later].flatMap((key) =>
    table.unique.has(key) ? [] : [`no unique key over ${key.replaceAll(",", ", ")}`]
  )
}
