import { Array as Chunked, Effect } from "effect"
import * as Wire from "../../schema/CloudStack.ts"
import { CloudStackUnavailable } from "../../schema/Errors.ts"
import type { Read } from "./Client.ts"
import { type Kind, naming, unreadBy } from "./Listing.ts"

export interface ByIds<Id, A> {
  readonly found: ReadonlyArray<A>
  /** CloudStack answered and there was no row: gone, or not ours to see. */
  readonly absent: ReadonlyArray<Id>
  /** 431, "entity does not exist": never existed. */
  readonly unresolved: ReadonlyArray<Id>
}

/** Ids in one call: well within one page, and within what a proxy takes as a form. */
const IDS = 200
/** Calls at once. */
const CALLS = 4

/**
 * Reads rows by id, in as few calls as possible. One id that CloudStack cannot resolve spoils the call for all, so it is
 * read singly and the others again without it. A row that came but could not be read is in none of the three lists:
 * nothing is known of it.
 */
export const make =
  (read: Read) =>
  <Id extends string, A extends { readonly id: Id }>(
    kind: Kind<A>,
    ids: ReadonlyArray<Id>
  ): Effect.Effect<ByIds<Id, A>, CloudStackUnavailable> =>
    Effect.map(
      Effect.forEach(Chunked.chunksOf([...new Set(ids)], IDS), (chunk) => some(read, kind, chunk), {
        concurrency: CALLS
      }),
      together
    )

const together = <Id, A>(parts: ReadonlyArray<ByIds<Id, A>>): ByIds<Id, A> => ({
  found: parts.flatMap((part) => part.found),
  absent: parts.flatMap((part) => part.absent),
  unresolved: parts.flatMap((part) => part.unresolved)
})

const some = <Id extends string, A extends { readonly id: Id }>(
  read: Read,
  kind: Kind<A>,
  ids: ReadonlyArray<Id>
): Effect.Effect<ByIds<Id, A>, CloudStackUnavailable> =>
  read(kind.command, { ...kind.parameters, ...asked(ids) }, (body) => Wire.page(kind.command, kind.element, body)).pipe(
    Effect.flatMap((page) => {
      // A server's page may be smaller than our chunk; what it left out is not absent.
      if (page.rows.length < page.count && ids.length > 1) return apart(read, kind, halves(ids))
      return judged(kind, ids, page)
    }),
    Effect.catchTag("CloudStackRefused", (refused) => {
      const spoilt = ids.filter((id) => refused.code === Wire.ApiErrorCode.PARAM_ERROR && refused.text.includes(id))
      if (spoilt.length === 0) return Effect.fail(unreadBy(refused))
      if (ids.length === 1) return Effect.succeed({ found: [], absent: [], unresolved: ids })
      const others = ids.filter((id) => !spoilt.includes(id))
      return apart(read, kind, [...spoilt.map((id) => [id]), others])
    })
  )

const asked = (ids: ReadonlyArray<string>): Record<string, string> => {
  const [only] = ids
  return ids.length === 1 && only !== undefined ? { id: only } : { ids: ids.join(",") }
}

const halves = <Id>(ids: ReadonlyArray<Id>) => Chunked.splitAt(ids, Math.ceil(ids.length / 2))

const apart = <Id extends string, A extends { readonly id: Id }>(
  read: Read,
  kind: Kind<A>,
  groups: ReadonlyArray<ReadonlyArray<Id>>
) =>
  Effect.map(
    Effect.forEach(
      groups.filter((group) => group.length > 0),
      (group) => some(read, kind, group)
    ),
    together
  )

/** A parameter the server does not know is ignored and answers everything: only what was asked for counts. */
const judged = <Id extends string, A extends { readonly id: Id }>(
  kind: Kind<A>,
  ids: ReadonlyArray<Id>,
  page: Wire.Page
): Effect.Effect<ByIds<Id, A>, CloudStackUnavailable> => {
  const { good, bad } = kind.decode(page.rows)
  const nameless = bad.filter((row) => row.id === null)
  if (nameless.length > 0 || page.rows.length < page.count) {
    const detail = naming(nameless) ?? `CloudStack counts ${page.count} and lists ${page.rows.length}`
    return Effect.fail(new CloudStackUnavailable({ command: kind.command, kind: "undecodable", detail }))
  }
  const rows = new Map<string, A>()
  const unread = new Set(bad.map((row) => row.id))
  for (const row of good) {
    const earlier = rows.get(row.id)
    if (earlier !== undefined && JSON.stringify(earlier) !== JSON.stringify(row)) unread.add(row.id)
    rows.set(row.id, row)
  }
  return Effect.succeed({
    found: [...rows.values()].filter((row) => ids.includes(row.id) && !unread.has(row.id)),
    absent: ids.filter((id) => !rows.has(id) && !unread.has(id)),
    unresolved: []
  })
}
