import { Clock, Effect, Ref } from "effect"
import type { BadRow, Rows } from "../../schema/CloudStack.ts"
import * as Wire from "../../schema/CloudStack.ts"
import { CloudStackRefused, CloudStackUnavailable } from "../../schema/Errors.ts"
import type { Read, ReadCommand } from "./Client.ts"
import type { Parameters } from "./Signature.ts"

export interface Row {
  readonly id: string
}

/** Something that can be listed: its command, the key of its rows, and how to read them. */
export interface Kind<A> {
  readonly command: ReadCommand
  readonly element: string
  readonly parameters: Parameters
  readonly decode: (rows: ReadonlyArray<unknown>) => Rows<A>
}

export interface Listed<A extends Row> {
  /** ms since the epoch when the first page was asked for. */
  readonly started_at: number
  readonly rows: ReadonlyArray<A>
  readonly bad: ReadonlyArray<BadRow>
  /** Came twice with different content (CloudStack issue 5316); the first one is among the rows. */
  readonly ambiguous: ReadonlySet<A["id"]>
  /** The pages agree with their count, or three readings in a row gave the same ids. Says nothing of `bad`. */
  readonly complete: boolean
  readonly note: string | null
}

/** The server's own default limit, `default.page.size`; asking for more than it allows is refused with 431. */
export const PAGE_ROWS = 500
/** Pages of one reading: 100,000 rows. What is longer is incomplete and says so. */
const PAGES = 200
/** Readings of one listing whose pages do not agree with their count. */
const READINGS = 3

/**
 * Reads a whole listing. Pages have no stable order, and rows move between them while they are read: they are merged by
 * id, compared with the count, and read again when that differs.
 */
export const make = (read: Read): Effect.Effect<<A extends Row>(kind: Kind<A>) => Lists<A>> =>
  Effect.map(Ref.make(PAGE_ROWS), (pageRows) => (kind) => whole(readOnce(read, pageRows, kind)))

type Lists<A extends Row> = Effect.Effect<Listed<A>, CloudStackUnavailable>

const whole = <A extends Row>(once: Effect.Effect<Reading<A>, CloudStackUnavailable>): Lists<A> =>
  Effect.gen(function* () {
    const seen = new Set<string>()
    let last = yield* once
    for (let n = 1; n < READINGS && !agrees(last); n++) {
      seen.add(idsOf(last))
      last = yield* once
    }
    seen.add(idsOf(last))
    const { started_at, rows, bad, ambiguous, count } = last
    const settled = agrees(last)
    // Nothing at all beside a count is no reading, however often it comes.
    const same = seen.size === 1 && !last.cut && rows.size > 0
    const note = settled ? null : `CloudStack counts ${count} and lists ${rows.size + bad.size}, read ${READINGS} times`
    return {
      started_at,
      rows: [...rows.values()],
      bad: [...bad.values()],
      ambiguous,
      complete: settled || same,
      note
    }
  })

/** One reading of all pages. */
interface Reading<A extends Row> {
  readonly started_at: number
  readonly rows: Map<string, A>
  readonly bad: Map<string, BadRow>
  readonly ambiguous: Set<A["id"]>
  /** As the newest page says. */
  count: number
  /** Every page said the same count. */
  steady: boolean
  /** There were more pages than we read. */
  cut: boolean
}

const agrees = (reading: Reading<Row>) =>
  reading.steady && !reading.cut && reading.rows.size + reading.bad.size === reading.count

const idsOf = (reading: Reading<Row>) => [...reading.rows.keys(), ...reading.bad.keys()].sort().join(" ")

const readOnce = <A extends Row>(read: Read, pageRows: Ref.Ref<number>, kind: Kind<A>) =>
  Effect.gen(function* () {
    const reading: Reading<A> = {
      started_at: yield* Clock.currentTimeMillis,
      rows: new Map(),
      bad: new Map(),
      ambiguous: new Set(),
      count: 0,
      steady: true,
      cut: true
    }
    for (let page = 1; page <= PAGES && reading.cut; page++) {
      const { count, rows } = yield* readPage(read, pageRows, kind, page)
      const before = reading.rows.size + reading.bad.size
      merge(reading, kind.decode(rows), page)
      const after = reading.rows.size + reading.bad.size
      if (page > 1 && count !== reading.count) reading.steady = false
      reading.count = count
      // A server may give fewer rows than asked for: the end is the count, or a page that brings nothing new.
      reading.cut = after < count && after > before
    }
    return reading
  })

const merge = <A extends Row>(reading: Reading<A>, { good, bad }: Rows<A>, page: number) => {
  for (const row of good) {
    const earlier = reading.rows.get(row.id)
    if (earlier === undefined) reading.rows.set(row.id, row)
    else if (JSON.stringify(earlier) !== JSON.stringify(row)) reading.ambiguous.add(row.id)
  }
  for (const [index, row] of bad.entries()) reading.bad.set(row.id ?? `unreadable ${index} of page ${page}`, row)
}

const readPage = <A>(
  read: Read,
  pageRows: Ref.Ref<number>,
  kind: Kind<A>,
  page: number
): Effect.Effect<Wire.Page, CloudStackUnavailable> =>
  Effect.gen(function* () {
    const pagesize = yield* Ref.get(pageRows)
    const parameters = { ...kind.parameters, page: String(page), pagesize: String(pagesize) }
    return yield* read(kind.command, parameters, (body) => Wire.page(kind.command, kind.element, body)).pipe(
      Effect.catchTag("CloudStackRefused", (refused) => {
        const allowed = allowedRows(refused)
        if (page > 1 || allowed === null || allowed >= pagesize) return Effect.fail(unreadBy(refused))
        return Effect.andThen(Ref.set(pageRows, allowed), readPage(read, pageRows, kind, page))
      })
    )
  })

/** A server whose `default.page.size` was lowered names it. */
export const allowedRows = (refused: CloudStackRefused): number | null => {
  const found = /max allowed page size value: (\d{1,4})\b/.exec(refused.text)?.[1]
  return refused.code === Wire.ApiErrorCode.PARAM_ERROR && found !== undefined && Number(found) > 0
    ? Number(found)
    : null
}

/** A refusal where only a reading would do. */
export const unreadBy = (refused: CloudStackRefused): CloudStackUnavailable =>
  new CloudStackUnavailable({
    command: refused.command,
    kind: "refused",
    detail: `${refused.code}: ${refused.text}`,
    cause: refused
  })

/** Which rows could not be read, for people. */
export const naming = (bad: ReadonlyArray<BadRow>): string | null => {
  const first = bad[0]
  if (first === undefined) return null
  const more = bad.length > 1 ? `, and ${bad.length - 1} more` : ""
  return `the row of ${first.id ?? "an unknown id"} could not be read (${first.problem})${more}`
}
