import { uuidPattern } from "../schema/Ids.ts"

/**
 * What the tables of an older daemon say. Of one of them the columns are documented; those of the others are found by
 * name and value, and what is not understood is said, never guessed. Every value is hostile text.
 */
export interface Table {
  readonly name: string
  readonly columns: ReadonlyArray<string>
  /** Every value as text, as long as the columns. */
  readonly rows: ReadonlyArray<ReadonlyArray<string | null>>
  /** There are more rows than were read. */
  readonly cut: boolean
}

/** An operation that the older daemon has not finished, as its journal says. */
export interface Unfinished {
  readonly id: string
  readonly type: string
  readonly status: string
  readonly volume_id: string
  readonly created_at: string
}

/** What values are recognised by: ids that CloudStack shows, names that the NBD server's file has. */
export interface Known {
  readonly isVolume: (id: string) => boolean
  readonly isVm: (id: string) => boolean
  readonly isSection: (name: string) => boolean
}

/** Which column says what; null and empty where none does. */
export interface Roles {
  readonly volume: string | null
  readonly vm: string | null
  readonly export_name: string | null
  readonly paths: ReadonlyArray<string>
  readonly state: string | null
}

/** What one row says. */
export interface Claim {
  /** The row, for people: its table and its id or place. */
  readonly where: string
  /** As written, in lower case; not necessarily an id. */
  readonly volume: string | null
  readonly vm: string | null
  readonly export_name: string | null
  readonly paths: ReadonlyArray<string>
  /** Null where the row does not say. */
  readonly attached: boolean | null
}

export interface Understood {
  readonly table: string
  readonly rows: number
  readonly cut: boolean
  readonly roles: Roles
  /** Columns of which nothing is used. */
  readonly unused: ReadonlyArray<string>
  /** Columns that might have said something, and why they were not used. */
  readonly unclear: ReadonlyArray<string>
  readonly claims: ReadonlyArray<Claim>
}

export const isUuid = (text: string): boolean => uuidPattern.test(text)

export const isDevicePath = (text: string): boolean => text.startsWith("/dev/")

/** The names under which the older daemon exported, besides those that stand in the NBD server's file. */
const exportShape = /^migration-(?:vol|vm)-./

export const understand = (table: Table, known: Known): Understood => {
  const columns = table.columns.map((name, at) => weigh(name, table.rows, at, known))
  const unclear: Array<string> = []
  const only = (what: string, found: ReadonlyArray<Weighed>, hint: RegExp): string | null => {
    const named = found.filter(({ name }) => hint.test(name))
    const [first, second] = named.length > 0 ? named : found
    if (first === undefined || second === undefined) return first?.name ?? null
    const all = (named.length > 0 ? named : found).map(({ name }) => name)
    unclear.push(`${all.join(" and ")} of ${table.name} may all hold ${what}: none of them was used`)
    return null
  }
  const documented = table.name === "device_mappings"
  const has = (name: string) => (documented && table.columns.includes(name) ? name : null)
  const volume = has("volume_id") ?? only("volume ids", volumeColumns(columns), /volume/i)
  const rest = columns.filter(({ name }) => name !== volume)
  const roles: Roles = {
    volume,
    vm: has("vm_id") ?? only("ids of VMs", rest.filter(mostly("vms")), /vm/i),
    export_name: only("names of exports", exportColumns(rest), /export/i),
    paths: rest.filter((column) => column.name === has("device_path") || mostly("paths")(column)).map((c) => c.name),
    state: has("cloudstack_state")
  }
  const used = new Set([roles.volume, roles.vm, roles.export_name, roles.state, ...roles.paths])
  return {
    table: table.name,
    rows: table.rows.length,
    cut: table.cut,
    roles,
    unused: table.columns.filter((name) => !used.has(name)),
    unclear,
    claims: table.rows.map((_, at) => claimOf(table, roles, at))
  }
}

/** A column and how many of its values are what. */
interface Weighed {
  readonly name: string
  /** Values that are neither null nor empty. */
  readonly filled: number
  readonly uuids: number
  readonly volumes: number
  readonly vms: number
  readonly paths: number
  readonly sections: number
  readonly exportLike: number
}

const weigh = (name: string, rows: Table["rows"], at: number, known: Known): Weighed => {
  const values = rows.flatMap((row) => (row[at] ? [row[at]] : []))
  const count = (is: (value: string) => boolean) => values.filter(is).length
  return {
    name,
    filled: values.length,
    uuids: count((value) => isUuid(value.toLowerCase())),
    volumes: count((value) => known.isVolume(value.toLowerCase())),
    vms: count((value) => known.isVm(value.toLowerCase())),
    paths: count(isDevicePath),
    sections: count(known.isSection),
    exportLike: count((value) => exportShape.test(value))
  }
}

const mostly =
  (kind: "paths" | "uuids" | "vms" | "volumes") =>
  (column: Weighed): boolean =>
    column[kind] * 2 > column.filled

/**
 * Ids that CloudStack knows as volumes are volume ids. Where it knows none of a table, a column called so is taken at its
 * word, so that rows of volumes which are gone are named as such.
 */
const volumeColumns = (columns: ReadonlyArray<Weighed>): ReadonlyArray<Weighed> => {
  const known = columns.filter(
    (column) => column.volumes > 0 && (mostly("volumes")(column) || /volume/i.test(column.name))
  )
  return known.length > 0
    ? known
    : columns.filter((column) => /volume.*id$/i.test(column.name) && mostly("uuids")(column))
}

const exportColumns = (columns: ReadonlyArray<Weighed>): ReadonlyArray<Weighed> =>
  columns.filter(
    ({ exportLike, filled, name, sections }) =>
      (sections > 0 && sections * 2 > filled) || exportLike * 2 > filled || /export.*name$/i.test(name)
  )

const claimOf = (table: Table, roles: Roles, row: number): Claim => {
  const value = (column: string | null): string | null => {
    const at = column === null ? -1 : table.columns.indexOf(column)
    return (at < 0 ? null : table.rows[row]?.[at]) || null
  }
  const state = value(roles.state)
  const id = value("id")
  return {
    where: `${table.name} ${id === null || id.length > 64 ? `row ${row + 1}` : `id ${id}`}`,
    volume: value(roles.volume)?.toLowerCase() ?? null,
    vm: value(roles.vm)?.toLowerCase() ?? null,
    export_name: value(roles.export_name),
    paths: roles.paths.flatMap((column) => value(column) ?? []),
    attached: state === "attached" ? true : state === "detached" ? false : null
  }
}
