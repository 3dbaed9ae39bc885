import type * as SqlClient from "@effect/sql/SqlClient"

/**
 * On MySQL two tables are those of the daemon before this one, in its shape, and may hold its rows. Their TIMESTAMPs have
 * whole seconds from 1970 to 2038, and their texts any character set: so each time, and the error, stands twice, the
 * documented way for existing readers and exactly in a column of our own, which is the one that we read.
 */

type Row = Readonly<Record<string, unknown>>

const times = ["created_at", "updated_at", "completed_at", "last_sync"] as const
type Time = (typeof times)[number]

/** `created_at` → `created_iso`. */
const exact = (time: Time) => `${time.replace(/_at$/, "")}_iso`

/** A row of one of the two tables as it is inserted or updated. */
export const written = (sql: SqlClient.SqlClient, row: Row): Record<string, string | number | null> =>
  sql.onDialectOrElse({ mysql: () => twice(row), orElse: () => ({ ...row }) }) as Record<string, string | number | null>

const twice = (row: Row): Row => {
  const twins = times.flatMap((time) => {
    const value = row[time]
    if (value === undefined) return []
    return [[time, typeof value === "string" ? timestamp(value) : null] as const, [exact(time), value] as const]
  })
  const error = row["error"]
  return {
    ...row,
    ...Object.fromEntries(twins),
    ...(error === undefined ? {} : { error: typeof error === "string" ? plain(error) : null, error_text: error })
  }
}

/** What a TIMESTAMP can hold: the second after the epoch's first, and the last before its 32 bits are full. */
const FIRST = 1000
const LAST = 2_147_483_647_000

const timestamp = (iso: string): string =>
  new Date(Math.min(LAST, Math.max(FIRST, Date.parse(iso)))).toISOString().slice(0, 19).replace("T", " ")

/** Characters of the error that every character set has, and as many as a TEXT holds. */
const plain = (text: string): string => text.slice(0, 60_000).replaceAll(/[^\t\n\r\x20-\x7e]/gu, "?")

/** A row as it was written; of the predecessor's, what can be said of it as one of ours. */
export const read = (row: Row): Row => {
  if (!("created_iso" in row)) return row
  const { error_text, ...rest } = row
  const own = Object.fromEntries(
    times.flatMap((time) => {
      const value = row[exact(time)]
      if (value !== undefined && value !== null) return [[time, value]]
      return time in row ? [[time, isoOf(row[time])]] : []
    })
  )
  return { ...rest, ...own, ...(error_text === undefined || error_text === null ? {} : { error: error_text }) }
}

/** A row of the predecessor's has the documented times only. On SQLite there are none of it. */
export const isOurs = (row: Row): boolean => row["created_iso"] !== null

/** `2026-03-01 12:00:00`, as the driver gives a TIMESTAMP of a session in UTC. */
const isoOf = (value: unknown): unknown =>
  typeof value === "string" && /^\d{4}-\d{2}-\d{2} \d{2}:\d{2}:\d{2}/.test(value)
    ? `${value.slice(0, 10)}T${value.slice(11, 19)}.000Z`
    : value

/** Nobody's declaration. */
const NOBODY = "00000000-0000-0000-0000-000000000000"

/**
 * An operation, ours or the predecessor's, whose rows say nothing of declarations: those are shown as calls of long ago,
 * which nothing follows from and nothing acts on.
 */
export const readOperation = (row: Row): Row => {
  const found = read(row)
  if ("cause" in found && found["cause"] !== null) return found
  const ended = found["status"] === "completed" || found["status"] === "failed" || found["status"] === "cancelled"
  return {
    ...found,
    vm_id: vmOf(found["vm_id"]),
    request: objectIn(found["request"]) ?? "{}",
    response: objectIn(found["response"]),
    created_at: found["created_at"] ?? found["updated_at"] ?? "1970-01-01T00:00:00.000Z",
    updated_at: found["updated_at"] ?? found["created_at"] ?? "1970-01-01T00:00:00.000Z",
    name: "",
    uid: NOBODY,
    cause: "api",
    actor: "",
    generation: 0,
    phase: ended ? "settled" : "uncertain",
    attempts: 1,
    destructive: 0,
    wish: null
  }
}

const vmOf = (value: unknown): string | null => {
  const text = typeof value === "string" ? value.toLowerCase() : ""
  return /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/.test(text) ? text : null
}

const objectIn = (value: unknown): string | null =>
  typeof value === "string" && value.trimStart().startsWith("{") ? value : null
