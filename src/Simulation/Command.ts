import { uuidPattern } from "../../schema/Ids.ts"
import * as Event from "./Event.ts"
import * as Job from "./Job.ts"
import * as Listing from "./Listing.ts"
import * as Precondition from "./Precondition.ts"
import * as Random from "./Random.ts"
import * as Response from "./Response.ts"
import { GIB, nextNumeric, putVolume, type State, strike, type Volume, type Work } from "./State.ts"

type Params = Listing.Params
type Refusal = Precondition.Refusal

/** What CloudStack answers: the inside of the envelope as JSON text, or a refusal. */
export type Answer = string | Refusal

type Entity = "volume" | "vm" | "zone" | "offering" | "job" | "project" | "none"

export interface Command {
  readonly async: boolean
  readonly mutates: boolean
  readonly required: ReadonlyArray<string>
  /** Parameters that are resolved before the command runs; an unknown id is refused there. */
  readonly ids: Readonly<Record<string, Entity>>
  readonly run: (state: State, params: Params, name: string) => Answer
}

const invalid = (text: string): Refusal => ({ code: 431, cserrorcode: 4350, text })
const denied = (text: string): Refusal => ({ code: 531, cserrorcode: 4365, text })

const NOT_YOURS = "Caller does not have permission to operate with provided resource."

const list = (
  run: (state: State, params: Params) => Answer,
  ids: Command["ids"] = {},
  required: Command["required"] = []
): Command => ({ async: false, mutates: false, required, ids, run })

const call = (required: Command["required"], ids: Command["ids"], run: Command["run"], async = true): Command => ({
  async,
  mutates: true,
  required,
  ids,
  run
})

/** A job about a volume that must be there, ours, and not removed. */
const onVolume =
  (work: (state: State, params: Params, row: Volume) => Work | Refusal): Command["run"] =>
  (state, params, name) => {
    const row = state.volumes.get(params["id"] ?? "")
    if (row === undefined) return unknownEntity(name, "id", params["id"] ?? "")
    const problem = removedOrForeign(state, row, name)
    if (problem !== null) return problem
    const made = work(state, params, row)
    if (Listing.isRefusal(made)) return made
    return submit(state, params, name, made)
  }

/** What a mutation says about a removed row (event details look its UUID up, which no longer works), or somebody else's. */
const removedOrForeign = (state: State, row: Volume, name: string): Refusal | null => {
  if (row.removed_at !== null) {
    if (name === "resizeVolume") return invalid(`Unable to find volume by id=${row.numeric}`)
    if (name !== "destroyVolume") return invalid(`Unable to find UUID for id [${row.numeric}] of type [Volume]`)
  }
  return row.account === state.config.account || state.config.root_admin ? null : denied(NOT_YOURS)
}

const submit = (state: State, params: Params, name: string, work: Work): Answer => {
  const custom = customJobId(state, params)
  if (Listing.isRefusal(custom)) return custom
  return JSON.stringify({ jobid: Job.submit(state, name, work, state.caller, custom).id })
}

const customJobId = (state: State, params: Params): string | null | Refusal => {
  const id = params["customjobid"]
  if (id === undefined) return null
  return state.jobs.has(id) ? alreadyExists(id) : id
}

const alreadyExists = (id: string) => invalid(`UUID: ${id} already exists so can't create/update with custom id`)

const attach = onVolume((state, params) => {
  const vm = state.vms.get(params["virtualmachineid"] ?? "")
  if (vm !== undefined && vm.account !== state.config.account && !state.config.root_admin) return denied(NOT_YOURS)
  const wanted = params["deviceid"]
  return {
    kind: "attach",
    volume_id: params["id"] ?? "",
    vm_id: params["virtualmachineid"] ?? "",
    device_id: wanted === undefined ? null : Number(wanted)
  }
})

/** `id` alone. The other form, a VM with a device id, is broken in current CloudStack and answers 530 there. */
const detach: Command["run"] = (state, params, name) => {
  const { id, virtualmachineid, deviceid } = params
  if (id !== undefined) {
    const alone = virtualmachineid === undefined && deviceid === undefined
    return onVolume((_, __, row) => ({ kind: "detach", volume_id: row.id, alone }))(state, params, name)
  }
  if (virtualmachineid !== undefined && deviceid !== undefined) {
    return masked(state, { code: 530, cserrorcode: 4250, text: 'Cannot invoke "java.lang.Long.longValue()"' })
  }
  return invalid("Please provide either a volume id, or a tuple(device id, instance id)")
}

/** Root admins read raw texts of internal errors, everybody else this one (`ApiServer.handleRequest`). */
const masked = (state: State, refusal: Refusal): Refusal =>
  state.config.root_admin
    ? refusal
    : { ...refusal, text: "Internal error executing command, please contact your system administrator" }

/** Synchronous: destroy and expunge in one call. */
const remove: Command["run"] = (state, params, name) => {
  const row = state.volumes.get(params["id"] ?? "")
  if (row === undefined) return unknownEntity(name, "id", params["id"] ?? "")
  const problem = removedOrForeign(state, row, name) ?? Precondition.remove(row)
  if (problem !== null) {
    Event.deleted(state, row, state.caller, problem)
    const known = { ...problem, cserrorcode: problem.cserrorcode ?? (problem.code === 431 ? 4350 : 4250) }
    return problem.code === 530 ? masked(state, known) : known
  }
  const fails = strike(state, ["delete_fails"], { command: name, volume_id: row.id, vm_id: null })
  Job.destroyRow(state, row.id, fails === null)
  const text = `Failed to expunge the volume ${row.numeric} in Primary data store : primary`
  const refusal = fails === null ? null : masked(state, { code: 530, cserrorcode: 4250, text })
  Event.deleted(state, row, state.caller, refusal)
  return refusal ?? JSON.stringify({ success: true })
}

const recover: Command["run"] = (state, params, name) => {
  const row = state.volumes.get(params["id"] ?? "")
  if (row === undefined) return unknownEntity(name, "id", params["id"] ?? "")
  const problem = removedOrForeign(state, row, name)
  if (problem !== null) return problem
  if (row.state !== "Destroy") return invalid("Please specify a volume in Destroy state.")
  return JSON.stringify({ volume: Response.volume(state, putVolume(state, { ...row, state: "Ready" })) })
}

/** The row exists before the job, and a job id that is taken is noticed only after the row was made. */
const create: Command["run"] = (state, params) => {
  const size = sizeOf(state, params)
  if (Listing.isRefusal(size)) return size
  const id = customId(state, params)
  if (Listing.isRefusal(id)) return id
  const name = (params["name"] ?? "").trim() === "" ? Random.uuid(state.ids) : (params["name"] ?? "")
  const row = newVolume(state, { id, name, size_gib: size, offering_id: params["diskofferingid"] ?? null })
  const project = params["projectid"] ?? null
  if (project !== null) putVolume(state, { ...row, project_id: project })
  const job = customJobId(state, params)
  if (Listing.isRefusal(job)) return job
  const made = Job.submit(state, "createVolume", { kind: "create", volume_id: row.id }, state.caller, job)
  return JSON.stringify({ id: row.id, jobid: made.id })
}

const sizeOf = (state: State, params: Params): number | Refusal => {
  const offering = state.config.offerings.find((one) => one.id === params["diskofferingid"])
  if (offering === undefined) {
    return invalid("At least one of disk Offering ID or snapshot ID must be passed whilst creating volume")
  }
  if (params["zoneid"] === undefined) return invalid("Please specify a zone to create the volume in")
  const text = params["size"]
  if (!offering.customized) {
    return text === undefined ? offering.size_gib : invalid("This disk offering does not allow custom size")
  }
  if (text === undefined) return invalid("This disk offering requires a custom size specified")
  const gib = Number(text)
  if (!/^-?\d{1,15}$/.test(text)) return malformed("createVolume", "size", text)
  if (gib <= 0) return invalid("Disk size must be larger than 0")
  return gib <= 1024 ? gib : invalid(Precondition.outOfRange(gib))
}

/**
 * `customid` is for root admins, a lower-case UUID that no living volume has (`UUIDManagerImpl`). That a removed one has it
 * is noticed by the database alone, whose key knows no removal: nothing is made either way.
 */
const customId = (state: State, params: Params): string | null | Refusal => {
  const id = params["customid"]
  if (id === undefined) return null
  if (!state.config.root_admin) {
    return denied("Please check your permissions, you are not allowed to create/update custom id")
  }
  if (!uuidPattern.test(id)) return invalid(`UUID: ${id} doesn't follow the UUID format`)
  const holder = state.volumes.get(id)
  if (holder === undefined) return id
  return holder.removed_at === null
    ? alreadyExists(id)
    : masked(state, { code: 530, cserrorcode: 9999, text: "Entity already exists" })
}

/** A row as createVolume leaves it. */
export const newVolume = (
  state: State,
  from: {
    readonly id: string | null
    readonly name: string
    readonly size_gib: number
    readonly offering_id: string | null
  }
): Volume => {
  const id = from.id ?? Random.uuid(state.ids)
  const rounded = strike(state, ["size_rounded_up"], { command: "createVolume", volume_id: id, vm_id: null })
  const multiple = rounded === null ? 1 : (rounded.multiple_gib ?? 8)
  return putVolume(state, {
    id,
    numeric: nextNumeric(state),
    name: from.name,
    type: "DATADISK",
    state: "Allocated",
    size: Math.ceil(from.size_gib / multiple) * multiple * GIB,
    vm_id: null,
    device_id: null,
    attached_at: null,
    zone_id: state.config.zone_id,
    offering_id: from.offering_id,
    created_at: state.now,
    removed_at: null,
    placed: false,
    tags: [],
    delete_protection: false,
    job_id: null,
    account: state.config.account,
    project_id: null,
    root_of: null
  })
}

const resize = onVolume((_, params, row) => {
  const text = params["size"]
  if (text !== undefined && !/^\d{1,15}$/.test(text)) return malformed("resizeVolume", "size", text)
  const size = text === undefined ? row.size : Number(text) * GIB
  return { kind: "resize", volume_id: row.id, size, shrink_ok: params["shrinkok"] === "true" }
})

/** Parameters for admins (`path`, `state`, `storageid` …) are ignored without a word, `customid` is refused. */
const update = onVolume((state, params, row) => {
  if (params["customid"] !== undefined && !state.config.root_admin) {
    return denied("Please check your permissions, you are not allowed to create/update custom id")
  }
  const flag = params["deleteprotection"]
  return {
    kind: "update",
    volume_id: row.id,
    name: params["name"] ?? null,
    delete_protection: flag === undefined ? null : flag === "true"
  }
})

const destroy = onVolume((_, params, row) => ({
  kind: "destroy",
  volume_id: row.id,
  expunge: params["expunge"] === "true"
}))

const tagging =
  (kind: "create_tags" | "delete_tags"): Command["run"] =>
  (state, params, name) => {
    const tags = Listing.tagsOf(params)
    const empty = tags.find((tag) => tag.key === "" || (kind === "create_tags" && (tag.value ?? "") === ""))
    if (empty !== undefined) return invalid(`Value for the key ${empty.key} is either null or empty`)
    if (params["resourcetype"]?.toLowerCase() !== "volume") {
      return invalid(`Invalid resource type: ${params["resourcetype"]}`)
    }
    const resources = (params["resourceids"] ?? "").split(",").map((id) => id.trim())
    return submit(state, params, name, { kind, resources, tags })
  }

const queryJob = (state: State, params: Params): Answer => {
  const job = state.jobs.get(params["jobid"] ?? "")
  if (job === undefined) return unknownEntity("queryAsyncJobResult", "jobid", params["jobid"] ?? "")
  return JSON.stringify(Response.job(job))
}

/** Only pending jobs: finished ones disappear at completion (CloudStack issue 4792). */
const listJobs = (state: State, params: Params): Answer => {
  const pending = [...state.jobs.values()].filter((job) => job.status === 0 && job.faults.lost === null)
  return Listing.plain(state, params, "asyncjobs", pending.map(Response.job))
}

/** Every parameter of createVolume that is shown at all (`CreateVolumeCmd`, `BaseAsyncCreateCustomIdCmd`). */
const CREATE_PARAMETERS =
  "name diskofferingid snapshotid size zoneid miniops maxiops virtualmachineid account domainid projectid customid"

/**
 * listApis (`ApiDiscoveryServiceImpl`). Parameters marked for root admins are shown to them alone; `customid` bears no such
 * mark and is shown to everybody. Of other commands than createVolume the sandbox tells the names only.
 */
const apis = (state: State, params: Params): Answer => {
  const wanted = params["name"]
  if (wanted !== undefined && !Object.hasOwn(commands, wanted)) {
    const text = "Api Discovery plugin was unable to find an api by that name or process any apis"
    return masked(state, { code: 530, cserrorcode: 9999, text })
  }
  const names = wanted === undefined ? Object.keys(commands) : [wanted]
  const marked = state.config.root_admin ? ["displayvolume"] : []
  const rows = names.map((name) => ({
    name,
    isasync: commands[name]?.async ?? false,
    params: (name === "createVolume" ? [...CREATE_PARAMETERS.split(" "), ...marked] : []).map((name) => ({ name }))
  }))
  return JSON.stringify({ count: rows.length, api: rows })
}

/** listAccounts, without what only an administrator of several accounts may ask for: one's own. */
const accounts = (state: State, params: Params): Answer => {
  const own = Response.account(state)
  const shown = params["accounttype"] === undefined || params["accounttype"] === String(own.accounttype)
  return Listing.plain(state, params, "account", shown ? [own] : [])
}

const capabilities = (state: State): Answer =>
  JSON.stringify({
    capability: {
      securitygroupsenabled: false,
      cloudstackversion: "4.22.0.0",
      userpublictemplateenabled: true,
      supportELB: "false",
      projectinviterequired: false,
      customdiskofferingminsize: 1,
      customdiskofferingmaxsize: 1024,
      allowuserviewdestroyedvm: state.config.root_admin,
      allowuserexpungerecovervolume: true
    }
  })

const one = { id: "volume" } as const

/** Every command the sandbox's CloudStack has, spelt as on the wire. */
export const commands: Readonly<Record<string, Command>> = {
  listVolumes: list(Listing.volumes, {
    id: "volume",
    ids: "volume",
    virtualmachineid: "vm",
    zoneid: "zone",
    diskofferingid: "offering",
    projectid: "project"
  }),
  listVirtualMachines: list(Listing.virtualMachines, { id: "vm", ids: "vm", zoneid: "zone", projectid: "project" }),
  listZones: list((state, params) => Listing.plain(state, params, "zone", [Response.zone(state.config.zone_id)]), {
    id: "zone"
  }),
  listDiskOfferings: list(
    (state, params) => {
      const rows = state.config.offerings.filter((row) => params["id"] === undefined || row.id === params["id"])
      return Listing.plain(state, params, "diskoffering", rows.map(Response.diskOffering))
    },
    { id: "offering", zoneid: "zone" }
  ),
  listTags: list(Listing.tags),
  listEvents: list(Listing.events, { projectid: "project" }),
  listAsyncJobs: list(listJobs),
  listCapabilities: list(capabilities),
  listApis: list(apis),
  listAccounts: list(accounts),
  queryAsyncJobResult: list(queryJob, { jobid: "job" }, ["jobid"]),
  createVolume: call(
    [],
    { diskofferingid: "offering", zoneid: "zone", snapshotid: "none", projectid: "project" },
    create
  ),
  attachVolume: call(["id", "virtualmachineid"], { id: "volume", virtualmachineid: "vm" }, attach),
  detachVolume: call([], { id: "volume", virtualmachineid: "vm" }, detach),
  deleteVolume: call(["id"], one, remove, false),
  recoverVolume: call(["id"], one, recover, false),
  destroyVolume: call(["id"], one, destroy),
  resizeVolume: call(["id"], one, resize),
  updateVolume: call([], one, update),
  createTags: call(["resourceids", "resourcetype", "tags"], {}, tagging("create_tags")),
  deleteTags: call(["resourceids", "resourcetype"], {}, tagging("delete_tags"))
}

/** Carry a call out: parameters first, then the command. Names of parameters come in lower case. */
export const run = (state: State, name: string, params: Params): Answer => {
  const command = commands[name]
  if (command === undefined) throw new Error(`simulation: no command ${name}`)
  const problem = checkParameters(state, name, command, params)
  if (problem !== null) return problem
  return command.run(state, withUuids(state, command, params), name)
}

const TEXT_MAX = 255

const checkParameters = (state: State, name: string, command: Command, params: Params): Refusal | null => {
  for (const [key, value] of Object.entries(params)) {
    if (/[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f]/.test(value)) {
      return badParameter(
        `Received value ${value} for parameter ${key} is invalid, contains illegal ASCII non-printable characters`
      )
    }
    if (key.startsWith("tags[") && !/^tags\[\d+\]\.(key|value)$/.test(key))
      return { ...badParameter(`Malformed key ${key}`), code: 430 }
    if ((key === "name" || key.startsWith("tags[")) && value.length > TEXT_MAX) {
      return badParameter(`Value greater than max allowed length ${TEXT_MAX} for param: ${key}`)
    }
  }
  for (const key of command.required) {
    const given = key === "tags" ? Listing.tagsOf(params).length > 0 : (params[key] ?? "") !== ""
    if (!given) {
      return badParameter(`Unable to execute API command ${name.toLowerCase()} due to missing parameter ${key}`)
    }
  }
  if (params["id"] !== undefined && params["ids"] !== undefined) {
    return invalid("Specify either id or ids but not both parameters")
  }
  return firstUnknown(state, name, command, params)
}

const firstUnknown = (state: State, name: string, command: Command, params: Params): Refusal | null => {
  for (const [key, entity] of Object.entries(command.ids)) {
    const value = params[key]
    if (value === undefined) continue
    for (const id of key === "ids" ? value.split(",").map((part) => part.trim()) : [value]) {
      if (resolve(state, entity, id) === null) return unknownEntity(name, key, id)
    }
  }
  return null
}

/** The uuid behind a uuid or an old numeric id; null when nothing ever had it. Removed rows are found. */
const resolve = (state: State, entity: Entity, id: string): string | null => {
  switch (entity) {
    case "volume":
      return state.volumes.has(id) ? id : byNumber(state, id)
    case "vm":
      return state.vms.has(id) ? id : null
    case "zone":
      return id === state.config.zone_id ? id : null
    case "offering":
      return state.config.offerings.some((row) => row.id === id) ? id : null
    case "job": {
      const job = state.jobs.get(id)
      return job === undefined || job.faults.lost !== null ? null : id
    }
    case "project":
      return id === "-1" || state.config.projects.includes(id) ? id : null
    case "none":
      return null
  }
}

const byNumber = (state: State, id: string) => (/^\d{1,15}$/.test(id) ? (state.numerics.get(Number(id)) ?? null) : null)

const withUuids = (state: State, command: Command, params: Params): Params => {
  const id = params["id"]
  if (id === undefined || command.ids["id"] !== "volume") return params
  return { ...params, id: resolve(state, "volume", id) ?? id }
}

const badParameter = (text: string): Refusal => ({ code: 431, cserrorcode: 9999, text })

/** The answer to every id that never existed: not an empty list. */
export const unknownEntity = (name: string, parameter: string, value: string): Refusal =>
  badParameter(
    `Unable to execute API command ${name.toLowerCase()} due to invalid value. Invalid parameter ${parameter} value=${value} due to incorrect long value format, or entity does not exist or due to incorrect parameter annotation for the field in api cmd class.`
  )

const malformed = (name: string, parameter: string, value: string): Refusal =>
  badParameter(
    `Unable to execute API command ${name.toLowerCase()} due to invalid value ${value} for parameter ${parameter}`
  )

/** Which volume and VM a call is about, for faults and for the monitor. */
export const aboutOf = (state: State, params: Params): { volume_id: string | null; vm_id: string | null } => {
  const volume = params["id"] ?? (params["ids"] ?? params["resourceids"] ?? "").split(",")[0]?.trim() ?? ""
  const volume_id = volume === "" ? null : volume
  return { volume_id, vm_id: params["virtualmachineid"] ?? state.volumes.get(volume_id ?? "")?.vm_id ?? null }
}
