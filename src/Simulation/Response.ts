import { type Event, type Job, type Offering, type State, type Vm, type Volume } from "./State.ts"

/** CloudStack's dates: second precision, the offset without a colon. */
export const date = (ms: number): string => `${new Date(ms).toISOString().slice(0, 19)}+0000`

/** `null` fields are left out everywhere (Gson). */
const present = (fields: Readonly<Record<string, unknown>>): Record<string, unknown> =>
  Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== null && value !== undefined))

const DOMAIN = { domainid: "2b5d6c1e-3d6b-4b3e-9a45-9c6f6b1f0d01", domain: "ROOT", domainpath: "ROOT" }
export const ZONE_NAME = "sandbox"
export const ACCOUNT_ID = "3f0b6f5c-7a55-4c6e-8a09-1d4c9b5e2a01"
export const USER_ID = "3f0b6f5c-7a55-4c6e-8a09-1d4c9b5e2a02"

/** The caller's own account (`AccountResponse`); type 1 is a root admin's, 0 a user's. */
export const account = (state: State) => ({
  id: ACCOUNT_ID,
  name: state.config.account,
  accounttype: state.config.root_admin ? 1 : 0,
  roletype: state.config.root_admin ? "Admin" : "User",
  rolename: state.config.root_admin ? "Root Admin" : "User",
  ...DOMAIN,
  state: "enabled"
})

/** Listings of settled worlds are the same rows again and again; both rows are immutable, so their text can be kept. */
const texts = new WeakMap<Volume, { readonly vm: Vm | undefined; readonly text: string }>()

/** A volume as listVolumes shows it (`resp/VolumeResponse`), as JSON text. */
export const volumeText = (state: State, row: Volume): string => {
  const vm = row.vm_id === null ? undefined : state.vms.get(row.vm_id)
  const kept = texts.get(row)
  if (kept !== undefined && kept.vm === vm) return kept.text
  const text = JSON.stringify(volume(state, row))
  texts.set(row, { vm, text })
  return text
}

/** The VM is hidden while the volume is in state Destroy, its device id is not. */
export const volume = (state: State, row: Volume) => {
  const vm = row.vm_id === null || row.state === "Destroy" ? undefined : state.vms.get(row.vm_id)
  const offering = state.config.offerings.find((one) => one.id === row.offering_id)
  const owner = row.project_id === null ? { account: row.account } : { projectid: row.project_id, project: "project" }
  return present({
    id: row.id,
    name: row.name,
    zoneid: row.zone_id,
    zonename: ZONE_NAME,
    type: row.type,
    ...(row.device_id === null ? {} : { deviceid: row.device_id }),
    ...(vm === undefined
      ? {}
      : { virtualmachineid: vm.id, vmname: vm.name, vmdisplayname: vm.name, vmstate: vm.state, vmtype: "User" }),
    provisioningtype: "thin",
    size: row.size,
    created: date(row.created_at),
    attached: row.attached_at === null ? null : date(row.attached_at),
    state: row.state,
    ...owner,
    ...DOMAIN,
    storagetype: "shared",
    hypervisor: row.placed ? "KVM" : "None",
    diskofferingid: row.offering_id,
    diskofferingname: offering?.name,
    diskofferingdisplaytext: offering?.name,
    destroyed: row.state === "Destroy",
    isextractable: true,
    quiescevm: false,
    supportsstoragesnapshot: false,
    deleteprotection: row.delete_protection,
    hasannotations: false,
    tags: row.tags.map((tag) => tagOf(row, tag)),
    ...(row.job_id === null ? {} : { jobid: row.job_id, jobstatus: 0 })
  })
}

export const tagOf = (row: Volume, tag: { readonly key: string; readonly value: string }) => ({
  key: tag.key,
  value: tag.value,
  resourcetype: "Volume",
  resourceid: row.id,
  account: row.account,
  domainid: DOMAIN.domainid,
  domain: DOMAIN.domain
})

export const virtualMachine = (row: Vm) => ({
  id: row.id,
  name: row.name,
  displayname: row.name,
  account: row.account,
  ...DOMAIN,
  created: date(row.created_at),
  state: row.state,
  haenable: false,
  zoneid: row.zone_id,
  zonename: ZONE_NAME,
  hypervisor: "KVM",
  tags: []
})

export const zone = (id: string) => ({
  id,
  name: ZONE_NAME,
  networktype: "Advanced",
  securitygroupsenabled: false,
  allocationstate: "Enabled",
  localstorageenabled: false,
  type: "Core",
  tags: []
})

export const diskOffering = (offering: Offering) => ({
  id: offering.id,
  name: offering.name,
  displaytext: offering.name,
  disksize: offering.customized ? 0 : offering.size_gib,
  iscustomized: offering.customized,
  iscustomizediops: false,
  disksizestrictness: false,
  storagetype: "shared",
  provisioningtype: "thin",
  displayoffering: true,
  encrypt: false,
  state: "Active"
})

/** Who did it: the user behind the API keys, or the person at the UI. */
const userOf = { api: "volumed-api", operator: "operator" } as const

/** The n-th event's id; no random number is spent on it, for that would change what a seed means. */
const eventId = (number: number): string => `00000000-0000-4000-a000-${number.toString(16).padStart(12, "0")}`

/** `resp/EventResponse`. */
export const event = (state: State, row: Event) =>
  present({
    id: eventId(row.number),
    username: userOf[row.by],
    type: row.type,
    level: row.failed ? "ERROR" : "INFO",
    description: row.description,
    account: state.config.account,
    ...DOMAIN,
    resourceid: row.volume_id,
    resourcetype: "Volume",
    resourcename: state.volumes.get(row.volume_id)?.name,
    created: date(row.at),
    state: row.state,
    parentid: row.parent === null ? null : eventId(row.parent)
  })

export const job = (row: Job) =>
  present({
    accountid: ACCOUNT_ID,
    userid: USER_ID,
    cmd: `org.apache.cloudstack.api.command.user.${commandPackage(row.command)}.${className(row.command)}`,
    jobstatus: row.status,
    jobprocstatus: 0,
    jobresultcode: row.code,
    jobresulttype: row.result === null ? null : "object",
    jobresult: row.result,
    jobinstancetype: row.volume_id === null ? null : "Volume",
    jobinstanceid: row.volume_id,
    created: date(row.created_at),
    completed: row.completed_at === null ? null : date(row.completed_at),
    jobid: row.id
  })

const commandPackage = (command: string) => (command.endsWith("Tags") ? "tag" : "volume")

const className = (command: string) => `${command.charAt(0).toUpperCase()}${command.slice(1)}Cmd`
