import * as Fault from "./Fault.ts"
import type { Refusal } from "./Precondition.ts"
import * as Random from "./Random.ts"
import * as Response from "./Response.ts"
import { type Event, type State, strike, type Volume, volumesAt } from "./State.ts"

export type Params = Readonly<Record<string, string>>

const parameterError = (text: string): Refusal => ({ code: 431, cserrorcode: 4350, text })

export const isRefusal = (answer: unknown): answer is Refusal =>
  typeof answer === "object" && answer !== null && "cserrorcode" in answer

/** listVolumes (`QMI.searchForVolumesInternal`): the inside of its envelope as JSON text. */
export const volumes = (state: State, params: Params): string | Refusal => {
  const page = pageOf(state, params)
  if (isRefusal(page)) return page
  const tags = tagFilter(params)
  if (isRefusal(tags)) return tags
  const occasion = { command: "listVolumes", volume_id: params["id"] ?? firstOf(params), vm_id: vmOf(params) }
  if (strike(state, ["empty_list"], occasion) !== null) return "{}"
  const stale = strike(state, ["stale_list"], occasion)
  const rows = select(state, params, tags, stale === null ? null : volumesAt(state, state.now - stale.age_ms))
  const partial = strike(state, ["partial_list"], occasion)
  const shown = partial === null ? rows : rows.filter((row) => !lacks(row, partial.share ?? 0.5))
  const total = partial?.count_too === true ? shown.length : rows.length
  const count = total + (strike(state, ["wrong_count"], occasion)?.by ?? 0)
  if (params["retrieveonlyresourcecount"] === "true") return count === 0 ? "{}" : `{"count":${count}}`
  const slice = unsettle(state, occasion, shown, shown.slice(page.from, page.to))
  return render(
    count,
    slice.map((row) => Response.volumeText(state, row))
  )
}

const firstOf = (params: Params) => params["ids"]?.split(",")[0]?.trim() ?? null
const vmOf = (params: Params) => params["virtualmachineid"] ?? null

/** An empty list has no keys at all; a page past the end has `count` alone (`ApiResponseSerializer`). */
const render = (count: number, texts: ReadonlyArray<string>): string => {
  if (texts.length > 0) return `{"count":${count},"volume":[${texts.join(",")}]}`
  return count > 0 ? `{"count":${count}}` : "{}"
}

/** The same rows are missing on every page and in every reading. */
const lacks = (row: Volume, share: number): boolean => (Math.imul(row.numeric, 2_654_435_761) >>> 0) / 2 ** 32 < share

/** Ids come by `created` descending, but the rows of a page in no order at all: here, by internal id. */
const unsettle = (
  state: State,
  occasion: Fault.Occasion,
  all: ReadonlyArray<Volume>,
  page: Array<Volume>
): ReadonlyArray<Volume> => {
  page.sort((a, b) => a.numeric - b.numeric)
  if (page.length === 0) return page
  const how = strike(state, ["unstable_pages"], occasion)
  if (how === null) return page
  const at = (length: number) => Math.floor(Random.next(state.chance) * length)
  switch (how.how ?? "shuffle") {
    case "shuffle":
      return Random.shuffled(state.chance, page)
    case "skip": {
      const left = at(page.length)
      return page.filter((_, index) => index !== left)
    }
    case "duplicate":
      return [...page, all[at(all.length)] ?? page[0]].filter((row) => row !== undefined)
  }
}

/** Rows that pass every filter, newest first. */
const select = (
  state: State,
  params: Params,
  tags: TagFilter | null,
  snapshot: ReadonlyArray<Volume> | null
): Array<Volume> => {
  const ids = params["id"] !== undefined ? [params["id"]] : params["ids"]?.split(",").map((id) => id.trim())
  const vm = params["virtualmachineid"]
  const among = snapshot ?? candidates(state, ids, vm)
  const wanted = ids === undefined ? null : new Set(ids)
  const rows = among.filter((row) => {
    if (row.removed_at !== null || (wanted !== null && !wanted.has(row.id))) return false
    if (vm !== undefined && row.vm_id !== vm) return false
    return inScope(state, row, params) && matches(row, params) && (tags === null || carries(row, tags))
  })
  return rows.reverse()
}

const candidates = (state: State, ids: ReadonlyArray<string> | undefined, vm: string | undefined) => {
  if (ids === undefined && vm === undefined) return state.order.flatMap((id) => state.volumes.get(id) ?? [])
  const some = ids ?? [...(state.on_vm.get(vm ?? "") ?? [])]
  const rows = [...new Set(some)].flatMap((id) => state.volumes.get(id) ?? [])
  return rows.sort((a, b) => a.created_at - b.created_at || a.numeric - b.numeric)
}

/** A user sees the own account; a project's volumes only with `projectid`, save when `id` is given. */
const inScope = (state: State, row: Volume, params: Params): boolean => {
  const project = params["projectid"]
  const mine = row.account === state.config.account || (state.config.root_admin && params["listall"] === "true")
  if (project === undefined) return mine && (row.project_id === null || params["id"] !== undefined)
  return project === "-1" ? row.project_id !== null : row.project_id === project
}

const matches = (row: Volume, params: Params): boolean => {
  const { name, keyword, type, state, zoneid, diskofferingid } = params
  if (name !== undefined && row.name.toLowerCase() !== name.toLowerCase()) return false
  if (type !== undefined && !row.type.includes(type.toUpperCase())) return false
  if (state !== undefined && row.state.toLowerCase() !== state.toLowerCase()) return false
  if (zoneid !== undefined && row.zone_id !== zoneid) return false
  if (diskofferingid !== undefined && row.offering_id !== diskofferingid) return false
  if (keyword === undefined) return true
  return [row.name, row.type, row.state].some((text) => text.toLowerCase().includes(keyword.toLowerCase()))
}

type TagFilter = ReadonlyArray<{ readonly key: string; readonly value: string | null }>

/** Several tags are OR-ed: any match shows the row. */
const carries = (row: Volume, tags: TagFilter): boolean =>
  tags.some((tag) =>
    row.tags.some((have) => have.key.toLowerCase() === tag.key.toLowerCase() && have.value === tag.value)
  )

const tagFilter = (params: Params): TagFilter | null | Refusal => {
  const tags = tagsOf(params)
  if (tags.length === 0) return null
  const bare = tags.find((tag) => tag.value === null)
  return bare === undefined ? tags : parameterError(`No value is passed in for key ${bare.key}`)
}

/** `tags[n].key` and `tags[n].value`, in the order of their numbers. */
export const tagsOf = (params: Params): TagFilter => {
  const found = new Map<number, { key: string; value: string | null }>()
  for (const [name, value] of Object.entries(params)) {
    const match = /^tags\[(\d{1,4})\]\.(key|value)$/.exec(name)
    if (match === null) continue
    const index = Number(match[1])
    const tag = found.get(index) ?? { key: "", value: null }
    found.set(index, match[2] === "key" ? { ...tag, key: value } : { ...tag, value })
  }
  return [...found].sort(([a], [b]) => a - b).map(([, tag]) => tag)
}

/** Which rows a listing may show (`BaseListCmd`). Without paging parameters silently the first page only. */
export const pageOf = (state: State, params: Params): { readonly from: number; readonly to: number } | Refusal => {
  const { page, pagesize } = params
  const max = state.config.page_size_max
  if (page === undefined && pagesize === undefined) return { from: 0, to: max }
  if (pagesize === undefined) return parameterError(`"pagesize" parameter is required when "page" is specified`)
  if (pagesize === "-1") {
    if (page === undefined) return { from: 0, to: Number.MAX_SAFE_INTEGER }
    return parameterError("Can't specify value for page parameter when pagesize is -1 (Unlimited)")
  }
  const size = Number(pagesize)
  if (!Number.isInteger(size) || size < 1)
    return parameterError(`Invalid value provided for parameter pagesize: ${pagesize}`)
  if (size > max) return parameterError(`Page size can't exceed max allowed page size value: ${max}`)
  if (page === undefined) return parameterError(`"page" parameter is required when "pagesize" is specified`)
  const number = Number(page)
  if (!Number.isInteger(number) || number < 1)
    return parameterError(`Invalid value provided for parameter page: ${page}`)
  return { from: (number - 1) * size, to: number * size }
}

/** A listing of anything else: small, so plain. */
export const plain = (state: State, params: Params, key: string, rows: ReadonlyArray<unknown>): string | Refusal => {
  const page = pageOf(state, params)
  if (isRefusal(page)) return page
  const shown = rows.slice(page.from, page.to)
  if (shown.length > 0) return JSON.stringify({ count: rows.length, [key]: shown })
  return rows.length > 0 ? JSON.stringify({ count: rows.length }) : "{}"
}

export const virtualMachines = (state: State, params: Params): string | Refusal => {
  // A fault without a command is about volumes; emptying this list must be asked for by name.
  const mine = state.faults.filter((one) => one.fault.command === "listVirtualMachines")
  const occasion = { command: "listVirtualMachines", volume_id: null, vm_id: params["id"] ?? firstOf(params) }
  if (Fault.strike(mine, state.chance, ["empty_list"], occasion) !== null) return "{}"
  const ids = params["id"] !== undefined ? [params["id"]] : params["ids"]?.split(",").map((id) => id.trim())
  const rows = [...state.vms.values()].filter((vm) => {
    if (ids !== undefined && !ids.includes(vm.id)) return false
    if (params["name"] !== undefined && !vm.name.includes(params["name"])) return false
    const hidden = vm.state === "Destroyed" || vm.state === "Expunging"
    if (hidden && (!state.config.root_admin || params["state"] === "Present")) return false
    return params["state"] === undefined || params["state"] === "Present" || vm.state === params["state"]
  })
  return plain(state, params, "virtualmachine", rows.map(Response.virtualMachine))
}

export const tags = (state: State, params: Params): string | Refusal => {
  const only = params["resourceid"]
  const rows = (only === undefined ? state.order : [only]).flatMap((id) => state.volumes.get(id) ?? [])
  const found = rows.flatMap((row) =>
    row.tags
      .filter((tag) => params["key"] === undefined || tag.key.toLowerCase() === params["key"].toLowerCase())
      .filter((tag) => params["value"] === undefined || tag.value === params["value"])
      .map((tag) => Response.tagOf(row, tag))
  )
  return plain(state, params, "tag", found)
}

/** listEvents (`ListEventsCmd`): pages by `created` descending, the rows of one in the order they were made. */
export const events = (state: State, params: Params): string | Refusal => {
  const page = pageOf(state, params)
  if (isRefusal(page)) return page
  const since = dateOf("startdate", params)
  const until = dateOf("enddate", params)
  if (isRefusal(since)) return since
  if (isRefusal(until)) return until
  if (params["resourceid"] !== undefined && params["resourcetype"] === undefined) {
    return parameterError("resourceid parameter must be used with resourcetype parameter")
  }
  const late = strike(state, ["delayed_events"], { command: "listEvents", volume_id: null, vm_id: null })?.ms ?? 0
  const from = Math.floor((since ?? 0) / 1_000) * 1_000
  const shown = state.events.filter(
    (event) =>
      event.at <= state.now - late &&
      event.at >= from &&
      event.at <= (until ?? state.now) &&
      eventMatches(event, params)
  )
  const rows = shown.toReversed().slice(page.from, page.to).reverse()
  if (rows.length === 0) return shown.length === 0 ? "{}" : JSON.stringify({ count: shown.length })
  return JSON.stringify({ count: shown.length, event: rows.map((row) => Response.event(state, row)) })
}

const eventMatches = (event: Event, params: Params): boolean => {
  const { type, level, keyword, resourceid, resourcetype } = params
  if (type !== undefined && event.type !== type) return false
  if (level !== undefined && (event.failed ? "ERROR" : "INFO") !== level) return false
  if (resourcetype !== undefined && resourcetype !== "Volume") return false
  if (resourceid !== undefined && event.volume_id !== resourceid) return false
  if (keyword === undefined) return true
  return [event.type, event.description].some((text) => text.toLowerCase().includes(keyword.toLowerCase()))
}

/** `ParamProcessWorker` reads these in the server's time zone; the sandbox's is UTC. */
const dateOf = (key: "startdate" | "enddate", params: Params): number | null | Refusal => {
  const text = params[key]
  if (text === undefined) return null
  const [, day, time] = /^(\d{4}-\d{2}-\d{2})(?: (\d{2}:\d{2}:\d{2}))?$/.exec(text) ?? []
  const ms = Date.parse(`${day}T${time ?? (key === "startdate" ? "00:00:00" : "23:59:59")}Z`)
  if (!Number.isNaN(ms)) return ms
  const problem = `Unable to parse date ${text} for command listevents, please pass dates in the format mentioned in the api documentation`
  return { code: 431, cserrorcode: 9999, text: problem }
}
