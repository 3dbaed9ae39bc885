import * as SqlClient from "@effect/sql/SqlClient"
import type { SqlError } from "@effect/sql/SqlError"
import { Effect, Either, Redacted } from "effect"
import * as Value from "../Settings/Value.ts"

/** The active row of `ossea_configs`, in which the daemon that this one replaces has its CloudStack settings. */
export interface Row {
  /** What the row is called, for people. */
  readonly name: string
  /** Empty where it is not wanted, as the keys. */
  readonly api_url: string
  readonly keys: { readonly api_key: Redacted.Redacted<string>; readonly secret_key: Redacted.Redacted<string> }
  /** An id, or a name. */
  readonly zone: string | null
  readonly domain: string | null
}

/** `Unusable`: the database answered, and there is no one row to go by. `detail` is a sentence, and holds no key. */
export type Reading =
  | { readonly _tag: "Found"; readonly row: Row }
  | { readonly _tag: "Unusable"; readonly detail: string }

/** What the row must bring, because nothing else does; what it need not bring is not looked at. */
export interface Wanted {
  readonly api_url: boolean
  readonly keys: boolean
  readonly allow_http: boolean
}

/** So many active rows are named where one is right. */
const NAMED_MAX = 5

/**
 * One SELECT. Columns are found by name, in whatever case, and others than these may be there. What is active is told by
 * the text, or the one bit, of its column: compared with a number, an ENUM is the place of its word, and '1x' is 1.
 */
export const read = (wanted: Wanted): Effect.Effect<Reading, SqlError, SqlClient.SqlClient> =>
  Effect.flatMap(SqlClient.SqlClient, (sql) =>
    sql<
      Readonly<Record<string, unknown>>
    >`SELECT * FROM ossea_configs WHERE CAST(is_active AS CHAR) IN ('1', X'01') LIMIT ${sql.literal(String(NAMED_MAX))}`.pipe(
      Effect.map((rows) => judge(rows, wanted)),
      Effect.catchAll((error) => {
        const detail = refusals.get(numberOf(error))
        return detail === undefined ? Effect.fail(error) : Effect.succeed(unusable(detail))
      })
    )
  )

/** What the server says by number where it is there and the row is not to be had. */
const refusals: ReadonlyMap<unknown, string> = new Map<unknown, string>([
  [1146, "the database has no table ossea_configs"],
  [1054, "the table ossea_configs has no column is_active"],
  [1142, "this user of the database may not read the table ossea_configs"],
  [1143, "this user of the database may not read the columns of ossea_configs"]
])

const numberOf = ({ cause }: SqlError): unknown =>
  typeof cause === "object" && cause !== null && "errno" in cause ? cause.errno : undefined

const unusable = (detail: string): Reading => ({ _tag: "Unusable", detail })

const judge = (rows: ReadonlyArray<Readonly<Record<string, unknown>>>, wanted: Wanted): Reading => {
  const found = rows.map((row) => new Map(Object.entries(row).map(([name, value]) => [name.toLowerCase(), value])))
  const [row] = found
  if (row === undefined) return unusable("the table ossea_configs has no active row (is_active = 1)")
  if (found.length === 1) return judgeRow(row, wanted)
  const names = found.map((one) => JSON.stringify(nameOf(one))).join(", ")
  return unusable(`ossea_configs has several active rows (${names}): leave is_active = 1 in one of them`)
}

type Cells = ReadonlyMap<string, unknown>

const judgeRow = (cells: Cells, wanted: Wanted): Reading => {
  const name = nameOf(cells)
  const problems: Array<string> = []
  const taken = (column: string, parser: Value.Parser<string>, needed: boolean): string => {
    if (!needed) return ""
    const value = text(cells, column)
    const parsed = value === "" ? Either.left("is empty or missing") : parser(value)
    if (Either.isLeft(parsed)) problems.push(`its ${column} ${parsed.left}`)
    return Either.getOrElse(parsed, () => "")
  }
  const api_url = taken("api_url", Value.apiUrl(wanted.allow_http), wanted.api_url)
  const api_key = Redacted.make(taken("api_key", Value.secret, wanted.keys))
  const secret_key = Redacted.make(taken("secret_key", Value.secret, wanted.keys))
  if (problems.length > 0)
    return unusable(`the active row ${JSON.stringify(name)} of ossea_configs cannot be used: ${problems.join("; ")}`)
  const zone = label(cells, "zone")
  return { _tag: "Found", row: { name, api_url, keys: { api_key, secret_key }, zone, domain: label(cells, "domain") } }
}

/** People paste values with the line's end. */
const text = (cells: Cells, column: string): string => {
  const value = cells.get(column)
  return typeof value === "string" ? value.trim() : typeof value === "number" ? String(value) : ""
}

/** For people; at most this long, and without what a terminal would act on. */
const LABEL_MAX = 255

const label = (cells: Cells, column: string): string | null =>
  text(cells, column)
    .replaceAll(/[\u0000-\u001f\u007f-\u009f\u2028\u2029]+/g, " ")
    .slice(0, LABEL_MAX) || null

const nameOf = (cells: Cells): string => label(cells, "name") ?? label(cells, "id") ?? "without a name"
