import { assert, describe, it } from "@effect/vitest"
import * as World from "../../src/Simulation/World.ts"
import { ask, attach, createVolume, detach, job, jobText, rows, START, type Params } from "./Wire.ts"

const appliance = World.APPLIANCE_VM_ID
const testVm = World.vmId(1)
const NEVER = "00000000-0000-4000-8000-000000000000"

const world = (options: Partial<World.Options> = {}) => World.make({ now: START, ...options })

/** A world with one volume that is Ready and on no VM. */
const withVolume = (options: Partial<World.Options> = {}) => {
  const made = world({ job_ms: 1_000, ...options })
  const id = made.seedVolume({ name: "data", state: "Ready" }, START).id
  return { world: made, id }
}

const row = (w: World.World, id: string, now: number) => rows(ask(w, "listVolumes", { id }, now))[0]

describe("the simulated world's volumes", () => {
  it("creates the row before the job, Allocated and on no storage", () => {
    const w = world()
    const answer = ask(
      w,
      "createVolume",
      { name: "a", diskofferingid: World.OFFERING_ID, zoneid: World.ZONE_ID, size: "5" },
      START
    )
    const listed = row(w, String(answer.body["id"]), START)
    assert.strictEqual(listed?.["state"], "Allocated")
    assert.strictEqual(listed?.["size"], 5 * 1024 ** 3)
    assert.strictEqual(listed?.["hypervisor"], "None")
    assert.strictEqual(listed?.["jobid"], answer.body["jobid"])
    assert.strictEqual(listed?.["jobstatus"], 0)
    const later = START + 1_000
    assert.isUndefined(row(w, String(answer.body["id"]), later)?.["jobid"])
    assert.strictEqual(job(w, answer.body["jobid"], later)["jobstatus"], 1)
  })

  it("shows a first attach as Creating, then Attaching, and the VM only at the very end", () => {
    const w = world({ job_ms: 3_000 })
    const id = createVolume(w, "a", START)
    attach(w, id, appliance, START + 1_000)
    const at = (ms: number) => row(w, id, START + 1_000 + ms)
    assert.strictEqual(at(500)?.["state"], "Creating")
    assert.strictEqual(at(1_500)?.["state"], "Attaching")
    assert.isUndefined(at(2_999)?.["virtualmachineid"])
    assert.strictEqual(at(3_000)?.["state"], "Ready")
    assert.strictEqual(at(3_000)?.["virtualmachineid"], appliance)
    assert.strictEqual(at(3_000)?.["deviceid"], 1)
    assert.isUndefined(at(3_000)?.["jobid"])
  })

  it("keeps the VM through a detach until its end", () => {
    const { world: w, id } = withVolume()
    attach(w, id, appliance, START)
    detach(w, id, START + 2_000)
    assert.strictEqual(row(w, id, START + 2_999)?.["virtualmachineid"], appliance)
    assert.isUndefined(row(w, id, START + 3_000)?.["virtualmachineid"])
    assert.strictEqual(row(w, id, START + 3_000)?.["state"], "Ready")
  })

  it("runs a VM's jobs one at a time and first come first served, other VMs' beside them", () => {
    const w = world({ job_ms: 1_000 })
    const ids = [1, 2, 3].map((n) => w.seedVolume({ name: `v${n}`, state: "Ready" }, START).id)
    const jobs = ids.map((id) => attach(w, id, appliance, START))
    const other = attach(w, w.seedVolume({ name: "other", state: "Ready" }, START).id, testVm, START)
    const done = (at: number) => [...jobs, other].map((id) => job(w, id, START + at)["jobstatus"])
    assert.deepStrictEqual(done(999), [0, 0, 0, 0])
    assert.deepStrictEqual(done(1_000), [1, 0, 0, 1])
    assert.deepStrictEqual(done(2_999), [1, 1, 0, 1])
    assert.deepStrictEqual(done(3_000), [1, 1, 1, 1])
  })

  it("keeps hypervisor and guest apart: the device appears after the attach has taken effect", () => {
    const { world: w, id } = withVolume({ device_delay_ms: 400 })
    attach(w, id, appliance, START)
    const guest = (at: number) => w.guest(appliance, START + at).filter((disk) => disk.volume_id === id)
    assert.lengthOf(guest(1_399), 0)
    assert.deepInclude(guest(1_400)[0], { kernel_name: "vdb", serial: id.replaceAll("-", "").slice(0, 20) })
    detach(w, id, START + 2_000)
    assert.lengthOf(guest(2_999), 1)
    assert.lengthOf(guest(3_000), 0)
  })

  it("gives device ids 1, 2, 4, 5 … and takes no more than 32 data disks a VM", () => {
    const w = world({ job_ms: 0 })
    const ids = Array.from({ length: 33 }, (_, n) => w.seedVolume({ name: `v${n}`, state: "Ready" }, START).id)
    const jobs = ids.map((id) => attach(w, id, testVm, START))
    const devices = rows(ask(w, "listVolumes", { virtualmachineid: testVm, type: "DATADISK" }, START))
    const given = devices.map((one) => Number(one["deviceid"])).sort((a, b) => a - b)
    assert.deepStrictEqual(given, [1, 2, ...Array.from({ length: 30 }, (_, n) => n + 4)])
    assert.match(String(jobText(job(w, jobs[32], START))), /maximum number of data disks \(32\)/)
  })

  it("attaches to a Stopped VM in the database only, and plugs the disk when the VM starts", () => {
    const { world: w, id } = withVolume({ device_delay_ms: 0 })
    w.act({ act: "stop_vm", vm_id: testVm }, START)
    attach(w, id, testVm, START)
    assert.strictEqual(row(w, id, START + 1_000)?.["virtualmachineid"], testVm)
    assert.deepStrictEqual(w.truth(START + 1_000).volumes.find((v) => v.id === id)?.held_by, [])
    assert.isTrue(w.act({ act: "start_vm", vm_id: testVm, bus: "scsi" }, START + 2_000).done)
    assert.deepStrictEqual(w.truth(START + 2_000).volumes.find((v) => v.id === id)?.held_by, [testVm])
    assert.deepInclude(w.guest(testVm, START + 2_000)[1], { volume_id: id, kernel_name: "sdb", bus: "scsi" })
  })

  it("makes device 0 the ROOT of a Stopped VM, and a detached ROOT a DATADISK (S5's exception included)", () => {
    const { world: w, id } = withVolume({ job_ms: 0 })
    const root = w.truth(START).volumes.find((v) => v.type === "ROOT" && v.vm_id === testVm)?.id ?? ""
    w.act({ act: "stop_vm", vm_id: testVm }, START)
    const occupied = ask(w, "attachVolume", { id, virtualmachineid: testVm, deviceid: "0" }, START).body["jobid"]
    assert.strictEqual(jobText(job(w, occupied, START)), "Vm already has root volume attached to it")
    w.act({ act: "detach", volume_id: root }, START)
    assert.strictEqual(w.volume(root, START)?.type, "DATADISK")
    ask(w, "attachVolume", { id, virtualmachineid: testVm, deviceid: "0" }, START)
    assert.deepInclude(row(w, id, START), { type: "ROOT", deviceid: 0 })
    detach(w, id, START)
    assert.deepInclude(row(w, id, START), { type: "DATADISK" })
    assert.deepStrictEqual(w.truth(START).violations, [])
  })

  it("clears an attachment to another VM by a detach that was queued earlier (issue 14214)", () => {
    const w = world({ job_ms: 1_000 })
    const blocker = w.seedVolume({ name: "blocker", state: "Ready" }, START).id
    const id = w.seedVolume({ name: "data", vm_id: appliance }, START).id
    w.setFaults([{ kind: "slow_job", command: "attachVolume", volume_id: blocker, ms: 60_000 }], START)
    attach(w, blocker, appliance, START)
    const late = detach(w, id, START)
    w.act({ act: "detach", volume_id: id }, START + 1_000)
    w.act({ act: "attach", volume_id: id, vm_id: testVm }, START + 2_000)
    assert.strictEqual(job(w, late, START + 62_000)["jobstatus"], 1)
    const truth = w.truth(START + 62_000).volumes.find((v) => v.id === id)
    assert.isNull(truth?.vm_id)
    assert.deepStrictEqual(truth?.held_by, [testVm])
  })

  it("lists 10,000 volumes by pages of 500, each once", () => {
    const w = world()
    for (let n = 0; n < 10_000; n++) w.seedVolume({ name: `v${n}` }, START + n)
    const seen = new Set<unknown>()
    for (let page = 1; page <= 21; page++) {
      const answer = ask(w, "listVolumes", { page: String(page), pagesize: "500", type: "DATADISK" }, START + 10_000)
      assert.strictEqual(answer.body["count"], 10_000)
      if (page === 21) assert.isUndefined(answer.body["volume"])
      for (const one of rows(answer)) seen.add(one["id"])
    }
    assert.strictEqual(seen.size, 10_000)
  })

  it("goes on where it was saved: rows, jobs in flight, queues, guest and due events", () => {
    const { world: w, id } = withVolume()
    const jobId = attach(w, id, appliance, START)
    w.advance(START + 500)
    const copy = World.load(JSON.parse(JSON.stringify(w.save(START + 500))))
    assert.strictEqual(job(copy, jobId, START + 999)["jobstatus"], 0)
    assert.deepStrictEqual(copy.truth(START + 5_000).volumes, w.truth(START + 5_000).volumes)
    assert.deepStrictEqual(copy.guest(appliance, START + 5_000), w.guest(appliance, START + 5_000))
    assert.strictEqual(createVolume(copy, "next", START + 6_000), createVolume(w, "next", START + 6_000))
  })

  it("is the same world for the same seed and another for another", () => {
    const ids = (seed: number) =>
      World.make({ seed, now: START })
        .truth(START)
        .volumes.map((v) => v.id)
    assert.deepStrictEqual(ids(7), ids(7))
    assert.notDeepEqual(ids(7), ids(8))
  })
})

describe("what CloudStack says no to", () => {
  const removed = () => {
    const { world: w, id } = withVolume()
    ask(w, "deleteVolume", { id }, START)
    return { world: w, id }
  }
  const unknown = (command: string, parameter: string, value = NEVER) =>
    `Unable to execute API command ${command.toLowerCase()} due to invalid value. Invalid parameter ${parameter} value=${value} due to incorrect long value format, or entity does not exist or due to incorrect parameter annotation for the field in api cmd class.`

  const table: ReadonlyArray<readonly [string, string, Params, number, number | undefined, string]> = [
    ["an unknown volume in a listing", "listVolumes", { id: NEVER }, 431, 9999, unknown("listVolumes", "id")],
    ["one bad id among several", "listVolumes", { ids: `$id,${NEVER}` }, 431, 9999, unknown("listVolumes", "ids")],
    [
      "an unknown VM in a listing",
      "listVolumes",
      { virtualmachineid: NEVER },
      431,
      9999,
      unknown("listVolumes", "virtualmachineid")
    ],
    [
      "id beside ids",
      "listVolumes",
      { id: "$id", ids: "$id" },
      431,
      4350,
      "Specify either id or ids but not both parameters"
    ],
    [
      "too large a page",
      "listVolumes",
      { page: "1", pagesize: "501" },
      431,
      4350,
      "Page size can't exceed max allowed page size value: 500"
    ],
    [
      "a page size alone",
      "listVolumes",
      { pagesize: "10" },
      431,
      4350,
      '"page" parameter is required when "pagesize" is specified'
    ],
    [
      "a page alone",
      "listVolumes",
      { page: "1" },
      431,
      4350,
      '"pagesize" parameter is required when "page" is specified'
    ],
    ["a tag without value", "listVolumes", { "tags[0].key": "k" }, 431, 4350, "No value is passed in for key k"],
    ["a malformed map", "listVolumes", { "tags[x].key": "k" }, 430, 9999, "Malformed key tags[x].key"],
    [
      "a missing parameter",
      "attachVolume",
      { id: "$id" },
      431,
      9999,
      "Unable to execute API command attachvolume due to missing parameter virtualmachineid"
    ],
    ["an unknown job", "queryAsyncJobResult", { jobid: NEVER }, 431, 9999, unknown("queryAsyncJobResult", "jobid")],
    [
      "a create without offering",
      "createVolume",
      { name: "x", zoneid: World.ZONE_ID, size: "1" },
      431,
      4350,
      "At least one of disk Offering ID or snapshot ID must be passed whilst creating volume"
    ],
    [
      "a custom offering without size",
      "createVolume",
      { name: "x", zoneid: World.ZONE_ID, diskofferingid: World.OFFERING_ID },
      431,
      4350,
      "This disk offering requires a custom size specified"
    ],
    [
      "a size for a fixed offering",
      "createVolume",
      { name: "x", zoneid: World.ZONE_ID, diskofferingid: World.FIXED_OFFERING_ID, size: "3" },
      431,
      4350,
      "This disk offering does not allow custom size"
    ],
    [
      "a size of nothing",
      "createVolume",
      { name: "x", zoneid: World.ZONE_ID, diskofferingid: World.OFFERING_ID, size: "0" },
      431,
      4350,
      "Disk size must be larger than 0"
    ],
    [
      "a size out of range",
      "createVolume",
      { name: "x", zoneid: World.ZONE_ID, diskofferingid: World.OFFERING_ID, size: "1025" },
      431,
      4350,
      "Volume size: 1025 GB is out of allowed range. Min: 1. Max: 1024"
    ],
    [
      "an id of one's own without being root admin",
      "createVolume",
      { name: "x", zoneid: World.ZONE_ID, diskofferingid: World.OFFERING_ID, size: "1", customid: NEVER },
      531,
      4365,
      "Please check your permissions, you are not allowed to create/update custom id"
    ],
    [
      "deleting what is attached",
      "deleteVolume",
      { id: "$attached" },
      431,
      4350,
      "Please specify a volume that is not attached to any VM."
    ],
    [
      "another account's volume",
      "detachVolume",
      { id: "$foreign" },
      531,
      4365,
      "Caller does not have permission to operate with provided resource."
    ],
    [
      "a tag without a value",
      "createTags",
      { resourceids: "$id", resourcetype: "Volume", "tags[0].key": "k", "tags[0].value": "" },
      431,
      4350,
      "Value for the key k is either null or empty"
    ],
    [
      "a control character",
      "updateVolume",
      { id: "$id", name: "a\u0007" },
      431,
      9999,
      "Received value a\u0007 for parameter name is invalid, contains illegal ASCII non-printable characters"
    ]
  ]

  for (const [what, command, params, status, cserrorcode, text] of table) {
    it(`refuses ${what}: ${status}`, () => {
      const { world: w, id } = withVolume()
      const ids: Params = {
        $id: id,
        $attached: w.seedVolume({ name: "on", vm_id: testVm }, START).id,
        $foreign: w.seedVolume({ name: "theirs", account: "other" }, START).id
      }
      const filled = Object.fromEntries(
        Object.entries(params).map(([key, value]) => [key, value.replace(/\$\w+/, (name) => ids[name] ?? name)])
      )
      const answer = ask(w, command, filled, START)
      assert.strictEqual(answer.status, status)
      assert.deepStrictEqual(answer.body, { uuidList: [], errorcode: status, cserrorcode, errortext: text })
    })
  }

  it("finds removed volumes in listings as nothing, and refuses to change them", () => {
    const { world: w, id } = removed()
    assert.strictEqual(ask(w, "listVolumes", { id }, START).text, '{"listvolumesresponse":{}}')
    for (const command of ["detachVolume", "deleteVolume", "updateVolume"]) {
      const answer = ask(w, command, { id }, START)
      assert.strictEqual(answer.body["cserrorcode"], 4350)
      assert.match(String(answer.body["errortext"]), /^Unable to find UUID for id \[\d+\] of type \[Volume\]$/)
    }
  })

  /** Job texts: what is checked only when the job starts or when it is its turn. */
  const jobs: ReadonlyArray<readonly [string, (w: World.World, id: string) => unknown, number, string | undefined]> = [
    [
      "attaching what is attached, even to the same VM",
      (w, id) => {
        w.act({ act: "attach", volume_id: id, vm_id: testVm }, START)
        return attach(w, id, testVm, START)
      },
      431,
      "Please specify a volume that is not attached to any VM."
    ],
    [
      "attaching while an attach is in flight",
      (w, id) => {
        attach(w, id, testVm, START)
        w.advance(START + 500)
        return attach(w, id, World.vmId(2), START + 500)
      },
      431,
      "Volume state must be in Allocated, Ready or in Uploaded state"
    ],
    [
      "attaching twice, each queued on its own VM",
      (w, id) => {
        for (const vm of [testVm, World.vmId(2)]) {
          attach(w, w.seedVolume({ name: "before", state: "Ready" }, START).id, vm, START)
        }
        attach(w, id, testVm, START)
        return attach(w, id, World.vmId(2), START)
      },
      530,
      "Volume: data is in Attaching. It should be in Ready or Allocated state"
    ],
    [
      "a destroyed volume",
      (w, id) => {
        ask(w, "destroyVolume", { id }, START)
        return attach(w, id, testVm, START + 1_000)
      },
      431,
      "Please specify a volume that is not destroyed."
    ],
    [
      "a VM that is neither running nor stopped",
      (w, id) => {
        w.act({ act: "destroy_vm", vm_id: testVm }, START)
        return attach(w, id, testVm, START)
      },
      431,
      "Please specify a VM that is either running or stopped."
    ],
    [
      "device id 3",
      (w, id) => ask(w, "attachVolume", { id, virtualmachineid: testVm, deviceid: "3" }, START).body["jobid"],
      530,
      "deviceId should be 0,1,2,4-33"
    ],
    [
      "a device id that is taken",
      (w, id) => {
        w.seedVolume({ name: "first", vm_id: testVm }, START)
        return ask(w, "attachVolume", { id, virtualmachineid: testVm, deviceid: "1" }, START).body["jobid"]
      },
      530,
      "deviceId 1 is used by vol first on vm test-vm-1"
    ],
    [
      "detaching what is on no VM",
      (w, id) => detach(w, id, START),
      431,
      "The specified volume is not attached to a VM."
    ],
    [
      "detaching by id and VM",
      (w, id) => ask(w, "detachVolume", { id, virtualmachineid: testVm }, START).body["jobid"],
      431,
      "Please provide either a volume id, or a tuple(device id, instance id)"
    ],
    [
      "detaching the ROOT of a running VM",
      (w) => detach(w, w.truth(START).volumes.find((v) => v.type === "ROOT")?.id ?? "", START),
      431,
      "Root volume detach can happen only when vm is in states: Stopped or Destroyed"
    ],
    [
      "destroying without expunge what was never placed",
      (w) => ask(w, "destroyVolume", { id: createVolume(w, "new", START) }, START).body["jobid"],
      431,
      "The volume in Allocated/Uploaded state can only be expunged not destroyed/recovered"
    ],
    [
      "shrinking without saying so",
      (w) => {
        const big = createVolume(w, "big", START, 4)
        return ask(w, "resizeVolume", { id: big, size: "2" }, START).body["jobid"]
      },
      432,
      `Going from existing size of ${4 * 1024 ** 3} to size of ${2 * 1024 ** 3} would shrink the volume.Need to sign off by supplying the shrinkok parameter with value of true.`
    ],
    [
      "a tag that exists",
      (w, id) => {
        const tag = { resourceids: id, resourcetype: "Volume", "tags[0].key": "K", "tags[0].value": "v" }
        ask(w, "createTags", tag, START)
        w.advance(START + 500)
        return ask(w, "createTags", { ...tag, "tags[0].key": "k" }, START + 500).body["jobid"]
      },
      530,
      undefined
    ],
    [
      "deleting tags that are not there",
      (w, id) =>
        ask(w, "deleteTags", { resourceids: id, resourcetype: "Volume", "tags[0].key": "x" }, START).body["jobid"],
      530,
      "Failed to delete tags"
    ]
  ]

  for (const [what, start, code, text] of jobs) {
    it(`fails the job of ${what}: ${code}`, () => {
      const { world: w, id } = withVolume()
      const failed = job(w, start(w, id), START + 10_000)
      assert.strictEqual(failed["jobstatus"], 2)
      assert.strictEqual(failed["jobresultcode"], code)
      const expected = text ?? `tag k already on Volume with id ${id}`
      assert.deepStrictEqual(failed["jobresult"], { errorcode: code, errortext: expected })
    })
  }

  it("takes a custom job id once, and leaves an orphan where createVolume repeats it", () => {
    const { world: w } = withVolume()
    const create = {
      name: "x",
      zoneid: World.ZONE_ID,
      diskofferingid: World.OFFERING_ID,
      size: "1",
      customjobid: NEVER
    }
    assert.strictEqual(ask(w, "createVolume", create, START).body["jobid"], NEVER)
    const again = ask(w, "createVolume", create, START)
    assert.strictEqual(again.body["errortext"], `UUID: ${NEVER} already exists so can't create/update with custom id`)
    assert.lengthOf(rows(ask(w, "listVolumes", { name: "x" }, START)), 2)
  })

  it("lets a root admin choose a volume's id, once", () => {
    const w = world({ root_admin: true })
    const create = { name: "x", zoneid: World.ZONE_ID, diskofferingid: World.OFFERING_ID, size: "1", customid: NEVER }
    assert.strictEqual(ask(w, "createVolume", create, START).body["id"], NEVER)
    const taken = ask(w, "createVolume", create, START)
    assert.deepInclude(taken, { status: 431 })
    assert.strictEqual(taken.body["errortext"], `UUID: ${NEVER} already exists so can't create/update with custom id`)
    assert.lengthOf(rows(ask(w, "listVolumes", { name: "x" }, START)), 1)
    const upper = ask(w, "createVolume", { ...create, customid: "A" }, START).body["errortext"]
    assert.strictEqual(upper, "UUID: A doesn't follow the UUID format")
  })

  it("gives the id of a removed volume to no other, which only the database notices", () => {
    const w = world({ root_admin: true })
    const create = { name: "x", zoneid: World.ZONE_ID, diskofferingid: World.OFFERING_ID, size: "1", customid: NEVER }
    ask(w, "createVolume", create, START)
    ask(w, "deleteVolume", { id: NEVER }, START + 1_000)
    assert.strictEqual(ask(w, "createVolume", create, START + 2_000).status, 530)
    assert.lengthOf(rows(ask(w, "listVolumes", { name: "x" }, START + 2_000)), 0)
  })

  it("denies a user the choice of an id, though it shows the parameter to everybody", () => {
    const w = world()
    const create = { name: "x", zoneid: World.ZONE_ID, diskofferingid: World.OFFERING_ID, size: "1", customid: NEVER }
    const denied = ask(w, "createVolume", create, START)
    assert.strictEqual(denied.status, 531)
    const text = "Please check your permissions, you are not allowed to create/update custom id"
    assert.strictEqual(denied.body["errortext"], text)
    assert.lengthOf(rows(ask(w, "listVolumes", { name: "x" }, START)), 0)
    const shown = () => {
      const [api] = rows(ask(w, "listApis", { name: "createVolume" }, START), "api")
      const params = (api?.["params"] ?? []) as ReadonlyArray<{ readonly name: string }>
      return params.map(({ name }) => name)
    }
    const types = () => rows(ask(w, "listAccounts", {}, START), "account").map((account) => account["accounttype"])
    assert.includeMembers(shown(), ["size", "customid"])
    assert.notInclude(shown(), "displayvolume")
    assert.deepStrictEqual(types(), [0])
    assert.strictEqual(ask(w, "listAccounts", { accounttype: "1" }, START).text, '{"listaccountsresponse":{}}')

    w.act({ act: "set_role", role: "admin" }, START)
    assert.includeMembers(shown(), ["customid", "displayvolume"])
    assert.deepStrictEqual(types(), [1])
    assert.strictEqual(ask(w, "createVolume", create, START).body["id"], NEVER)
    assert.strictEqual(ask(w, "listApis", { name: "nothing" }, START).status, 530)
    assert.strictEqual(World.load(w.save(START)).state.config.root_admin, true)
  })

  it("forgets finished jobs after a day", () => {
    const { world: w, id } = withVolume()
    const done = attach(w, id, testVm, START)
    assert.strictEqual(job(w, done, START + 10_000)["jobstatus"], 1)
    assert.strictEqual(ask(w, "queryAsyncJobResult", { jobid: String(done) }, START + 2 * 86_400_000).status, 431)
  })

  it("lists pending jobs only, and finds by tags that are OR-ed", () => {
    const { world: w, id } = withVolume()
    w.seedVolume({ name: "b", tags: [{ key: "env", value: "b" }] }, START)
    w.seedVolume({ name: "c", tags: [{ key: "ENV", value: "c" }] }, START)
    const both = { "tags[0].key": "env", "tags[0].value": "b", "tags[10].key": "env", "tags[10].value": "c" }
    assert.lengthOf(rows(ask(w, "listVolumes", both, START)), 2)
    attach(w, id, testVm, START)
    assert.lengthOf(rows(ask(w, "listAsyncJobs", {}, START), "asyncjobs"), 1)
    assert.strictEqual(ask(w, "listAsyncJobs", {}, START + 5_000).text, '{"listasyncjobsresponse":{}}')
  })

  it("shows a project's volumes only to who asks for the project", () => {
    const project = "11111111-0000-4000-8000-000000000001"
    const w = world({ projects: [project] })
    const id = w.seedVolume({ name: "p", project_id: project }, START).id
    assert.lengthOf(rows(ask(w, "listVolumes", { name: "p" }, START)), 0)
    assert.lengthOf(rows(ask(w, "listVolumes", { name: "p", projectid: project }, START)), 1)
    assert.strictEqual(row(w, id, START)?.["projectid"], project)
    assert.isUndefined(row(w, id, START)?.["account"])
  })

  it("hides destroyed VMs from users", () => {
    const w = world()
    w.act({ act: "destroy_vm", vm_id: testVm }, START)
    assert.strictEqual(ask(w, "listVirtualMachines", { id: testVm }, START).text, '{"listvirtualmachinesresponse":{}}')
    assert.lengthOf(rows(ask(w, "listVirtualMachines", {}, START), "virtualmachine"), 2)
  })
})
