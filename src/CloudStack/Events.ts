import { Effect, Ref } from "effect"
import type { CloudEvent, CloudEventFilter } from "../../reconciler/CloudStack.ts"
import * as Wire from "../../schema/CloudStack.ts"
import type { CloudStackRefused, CloudStackUnavailable } from "../../schema/Errors.ts"
import type { Read } from "./Client.ts"
import * as Listing from "./Listing.ts"
import type { Parameters } from "./Signature.ts"

/**
 * The server reads `startdate` in its own time zone (`ParamProcessWorker`), which may be as far west as this: what comes
 * too early is left out here.
 */
const WEST_MS = 12 * 3_600_000

/** What was done to volumes: one page, the newest events, and no second try but for a smaller page. */
export const make = (read: Read, scope: Parameters) =>
  Effect.map(
    Ref.make(Listing.PAGE_ROWS),
    (pageRows) => (filter: CloudEventFilter) =>
      Effect.map(readPage(read, pageRows, { ...scope, ...asked(filter) }), ({ rows }) =>
        wanted(filter, Wire.events(rows).good)
      ).pipe(Effect.withSpan("CloudStack.events"))
  )

/** `resourceid` is ignored before 4.17; events of other volumes than these are left out here as well. */
const asked = ({ since, volume_ids = [] }: CloudEventFilter): Parameters => {
  const startdate = new Date(Math.max(0, since - WEST_MS)).toISOString().slice(0, 19).replace("T", " ")
  const [only] = volume_ids
  const one = volume_ids.length === 1 && only !== undefined
  return { startdate, keyword: "VOLUME.", ...(one ? { resourceid: only, resourcetype: "Volume" } : {}) }
}

const readPage = (
  read: Read,
  pageRows: Ref.Ref<number>,
  parameters: Parameters
): Effect.Effect<Wire.Page, CloudStackUnavailable | CloudStackRefused> =>
  Effect.gen(function* () {
    const pagesize = yield* Ref.get(pageRows)
    const paging = { page: "1", pagesize: String(pagesize) }
    return yield* read("listEvents", { ...parameters, ...paging }, (body) =>
      Wire.page("listEvents", "event", body)
    ).pipe(
      Effect.catchTag("CloudStackRefused", (refused) => {
        const allowed = Listing.allowedRows(refused)
        if (allowed === null || allowed >= pagesize) return Effect.fail(refused)
        return Effect.andThen(Ref.set(pageRows, allowed), readPage(read, pageRows, parameters))
      })
    )
  })

/** The rows of a page come in no order. */
const wanted = (filter: CloudEventFilter, events: ReadonlyArray<CloudEvent>): ReadonlyArray<CloudEvent> =>
  events
    .filter(
      ({ at, type, volume_id }) =>
        at >= filter.since &&
        (filter.types === undefined || filter.types.includes(type)) &&
        (filter.volume_ids === undefined || (volume_id !== null && filter.volume_ids.includes(volume_id)))
    )
    .toSorted((a, b) => b.at - a.at)
