import { assert, describe, it } from "@effect/vitest"
import * as Fault from "../../src/Simulation/Fault.ts"
import * as World from "../../src/Simulation/World.ts"
import { api, ask, attach, createVolume, detach, inside, job, jobText, rows, START } from "./Wire.ts"

const appliance = World.APPLIANCE_VM_ID
const testVm = World.vmId(1)

/** Every kind that some test below has seen hit; the last test wants all of them. */
const reached = new Set<Fault.Kind>()

const withFault = (fault: Fault.Fault) => {
  const world = World.make({ now: START, job_ms: 1_000, device_delay_ms: 100, faults: [fault] })
  const id = world.seedVolume({ name: "data", state: "Ready" }, START).id
  return { world, id }
}

const hits = (world: World.World, kind: Fault.Kind): number => {
  const count = world.faults().find((one) => one.fault.kind === kind)?.hits ?? 0
  if (count > 0) reached.add(kind)
  return count
}

const on = (world: World.World, id: string, at: number) => world.truth(at).volumes.find((row) => row.id === id)
const call = (world: World.World, id: string, now = START) =>
  api(world, "attachVolume", { id, virtualmachineid: testVm }, now)
const LATER = START + 30_000

describe("faults of the wire", () => {
  for (const [fault, done] of [
    [{ kind: "answer_lost_after_effect" }, true],
    [{ kind: "answer_lost_before_effect" }, false],
    [{ kind: "hang" }, false],
    [{ kind: "hang", effect: true }, true],
    [{ kind: "http_5xx", status: 504, effect: true }, true],
    [{ kind: "http_5xx" }, false],
    [{ kind: "empty_body" }, true],
    [{ kind: "empty_body", effect: false }, false],
    [{ kind: "invalid_json" }, true],
    [{ kind: "invalid_json", effect: false }, false],
    [{ kind: "html" }, false],
    [{ kind: "throttled" }, false],
    [{ kind: "maintenance" }, false],
    [{ kind: "unauthorized" }, false],
    [{ kind: "refused", code: 535, text: "limit" }, false],
    [{ kind: "clock_skew", ms: 120_000 }, false]
  ] as const satisfies ReadonlyArray<readonly [Fault.Fault, boolean]>) {
    it(`${JSON.stringify(fault)} gives no usable answer, ${done ? "with" : "without"} effect`, () => {
      const { world, id } = withFault(fault)
      const outcome = call(world, id)
      assert.strictEqual(hits(world, fault.kind), 1)
      const usable =
        "status" in outcome && outcome.status === 200 && outcome.body.startsWith('{"attachvolumeresponse":{"jobid"')
      assert.isFalse(usable)
      assert.strictEqual(on(world, id, LATER)?.vm_id, done ? testVm : null)
    })
  }

  it("late_effect drops the connection and takes effect when it arrives, unless it has expired by then (C3)", () => {
    for (const [delay_ms, effect] of [
      [20_000, testVm],
      [61_000, null]
    ] as const) {
      const { world, id } = withFault({ kind: "late_effect", delay_ms })
      assert.deepStrictEqual(call(world, id), { drop: true })
      assert.strictEqual(hits(world, "late_effect"), 1)
      assert.isNull(on(world, id, START + delay_ms - 1)?.vm_id)
      assert.strictEqual(on(world, id, START + delay_ms + 1_000)?.vm_id, effect)
    }
  })

  it("duplicate_delivery carries a request out twice, the second time if it has not expired by then (C10)", () => {
    const made = (fault: Omit<Fault.Of<"duplicate_delivery">, "kind">) => {
      const { world } = withFault({ kind: "duplicate_delivery", ...fault })
      const create = { name: "x", diskofferingid: World.OFFERING_ID, zoneid: World.ZONE_ID, size: "1" }
      const outcome = api(world, "createVolume", create, START)
      assert.strictEqual(hits(world, "duplicate_delivery"), 1)
      const volumes = world.truth(START + 120_000).volumes.filter(({ name }) => name === "x")
      assert.deepStrictEqual(world.truth(START + 120_000).violations, [])
      return { outcome, ids: volumes.map(({ id }) => id) }
    }
    const answered = ({ outcome }: ReturnType<typeof made>) =>
      "status" in outcome ? inside(outcome.body)["id"] : outcome
    const atOnce = made({})
    assert.lengthOf(atOnce.ids, 2)
    assert.strictEqual(answered(atOnce), atOnce.ids[1])
    const later = made({ delay_ms: 5_000 })
    assert.lengthOf(later.ids, 2)
    assert.strictEqual(answered(later), later.ids[0])
    assert.deepStrictEqual(answered(made({ delay_ms: 5_000, lost: true })), { drop: true })
    assert.lengthOf(made({ delay_ms: 61_000 }).ids, 1)
  })

  it("says each refusal in CloudStack's own shape", () => {
    const shape = (fault: Fault.Fault) => {
      const { world, id } = withFault(fault)
      const outcome = call(world, id)
      return "status" in outcome ? [outcome.status, outcome.body.length > 0 ? outcome.body : null] : []
    }
    assert.deepStrictEqual(shape({ kind: "empty_body" }), [200, null])
    assert.match(String(shape({ kind: "throttled" })[1]), /"errorcode":429,"cserrorcode":4545/)
    assert.match(String(shape({ kind: "maintenance" })[1]), /"errorcode":503.*Can not accept new jobs/)
    assert.match(
      String(shape({ kind: "unauthorized" })[1]),
      /^\{"attachvolumeresponse":\{"uuidList":\[\],"errorcode":401,"errortext"/
    )
    assert.match(
      String(shape({ kind: "refused", code: 535, text: "limit" })[1]),
      /"errorcode":535.*"errortext":"limit"/
    )
    assert.throws(() => JSON.parse(String(shape({ kind: "invalid_json" })[1])), /control character/)
  })

  it("maintenance lets synchronous calls through", () => {
    const { world, id } = withFault({ kind: "maintenance" })
    assert.strictEqual(ask(world, "deleteVolume", { id }, START).status, 200)
  })

  it("command_denied is 432 in the envelope of no command, for what it names alone (C7)", () => {
    const { world, id } = withFault({ kind: "command_denied", command: "listEvents" })
    const denied = ask(world, "listEvents", {}, START)
    assert.strictEqual(hits(world, "command_denied"), 1)
    assert.strictEqual(denied.status, 432)
    assert.match(denied.text, /^\{"errorresponse":.*"cserrorcode":4555.*The API \[listEvents\] does not exist/)
    assert.strictEqual(ask(world, "listVolumes", { id }, START).status, 200)
  })

  it("slow_answer delays the answer, not the effect", () => {
    const { world, id } = withFault({ kind: "slow_answer", ms: 5_000 })
    assert.deepInclude(call(world, id), { status: 200, delay_ms: 5_000 })
    assert.strictEqual(hits(world, "slow_answer"), 1)
    assert.strictEqual(on(world, id, START + 1_000)?.vm_id, testVm)
  })

  it("clock_skew shows in the Date header", () => {
    const { world, id } = withFault({ kind: "clock_skew", ms: -3_600_000 })
    const answer = ask(world, "listVolumes", { id }, START)
    assert.strictEqual(answer.status, 200)
    assert.strictEqual(Date.parse(answer.headers["date"] ?? ""), START - 3_600_000)
  })
})

describe("faults of jobs", () => {
  it("job_lost: nobody knows the job, on no row and in no listing; the work is done or not (J1)", () => {
    for (const effect of [true, false]) {
      const { world, id } = withFault({ kind: "job_lost", effect, command: "attachVolume" })
      const lost = attach(world, id, testVm, START)
      assert.strictEqual(hits(world, "job_lost"), 1)
      assert.strictEqual(ask(world, "queryAsyncJobResult", { jobid: String(lost) }, START).status, 431)
      assert.isUndefined(rows(ask(world, "listVolumes", { id }, START))[0]?.["jobid"])
      assert.strictEqual(on(world, id, LATER)?.vm_id, effect ? testVm : null)
    }
  })

  for (const [effect, vm, held] of [
    ["none", null, []],
    ["hypervisor", null, [testVm]],
    ["full", testVm, [testVm]]
  ] as const) {
    it(`job_failed with effect ${effect} looks like a restart: 530 and no jobresult (J2, J3)`, () => {
      const { world, id } = withFault({ kind: "job_failed", effect })
      const failed = job(world, attach(world, id, testVm, START), LATER)
      assert.strictEqual(hits(world, "job_failed"), 1)
      assert.deepInclude(failed, { jobstatus: 2, jobresultcode: 530 })
      assert.notProperty(failed, "jobresult")
      assert.deepInclude(on(world, id, LATER), { vm_id: vm, held_by: held, state: "Ready" })
    })
  }

  it("job_failed with a text ends with that text", () => {
    const { world, id } = withFault({ kind: "job_failed", code: 533, text: "no capacity" })
    const failed = job(world, attach(world, id, testVm, START), LATER)
    assert.deepStrictEqual(failed["jobresult"], { errorcode: 533, errortext: "no capacity" })
  })

  it("slow_job keeps its VM's queue waiting (J6)", () => {
    const { world, id } = withFault({ kind: "slow_job", ms: 20_000, times: 1 })
    const second = world.seedVolume({ name: "second", state: "Ready" }, START).id
    attach(world, id, testVm, START)
    attach(world, second, testVm, START)
    assert.strictEqual(hits(world, "slow_job"), 1)
    assert.isNull(on(world, second, START + 21_999)?.vm_id)
    assert.strictEqual(on(world, second, START + 22_000)?.vm_id, testVm)
  })

  it("detach_timeout: 530 after ten seconds, attached in the database, and the unplug completes later", () => {
    const { world, id } = withFault({ kind: "detach_timeout", completes_after_ms: 5_000, times: 1 })
    world.act({ act: "attach", volume_id: id, vm_id: appliance }, START)
    const failed = job(world, detach(world, id, START), START + 10_000)
    assert.strictEqual(hits(world, "detach_timeout"), 1)
    assert.match(
      String(jobText(failed)),
      /^Failed to detach volume data from VM appliance; .*waiting for \[10000\] milliseconds/
    )
    const again = job(world, detach(world, id, START + 11_000), START + 12_000)
    assert.match(String(jobText(again)), /already in the process of unplug/)
    assert.deepInclude(on(world, id, START + 14_999), { vm_id: appliance, held_by: [appliance] })
    assert.deepInclude(on(world, id, START + 15_000), { vm_id: appliance, held_by: [] })
    assert.lengthOf(world.guest(appliance, START + 15_000), 1)
    const third = job(world, detach(world, id, START + 16_000), START + 17_000)
    assert.strictEqual(third["jobstatus"], 1)
    assert.isNull(on(world, id, START + 17_000)?.vm_id)
  })

  it("straggler_detach clears the next attachment in the database, the hypervisor keeps the disk (14214)", () => {
    const { world, id } = withFault({ kind: "straggler_detach", delay_ms: 5_000, times: 1 })
    world.act({ act: "attach", volume_id: id, vm_id: appliance }, START)
    detach(world, id, START)
    attach(world, id, testVm, START + 2_000)
    assert.strictEqual(hits(world, "straggler_detach"), 1)
    assert.deepInclude(on(world, id, START + 5_999), { vm_id: testVm, held_by: [testVm] })
    assert.deepInclude(on(world, id, START + 6_000), { vm_id: null, held_by: [testVm] })
    assert.deepStrictEqual(world.truth(LATER).violations, [])
  })

  it("delete_fails masks its reason and leaves the volume in Destroy; a repeat removes it", () => {
    const { world, id } = withFault({ kind: "delete_fails", times: 1 })
    const answer = ask(world, "deleteVolume", { id }, START)
    assert.strictEqual(hits(world, "delete_fails"), 1)
    assert.deepInclude(answer.body, {
      errorcode: 530,
      errortext: "Internal error executing command, please contact your system administrator"
    })
    assert.strictEqual(on(world, id, START)?.state, "Destroy")
    assert.deepStrictEqual(ask(world, "deleteVolume", { id }, START).body, { success: true })
    assert.isUndefined(on(world, id, START))
  })

  it("size_rounded_up makes a larger volume than asked for", () => {
    const { world } = withFault({ kind: "size_rounded_up", multiple_gib: 8 })
    assert.strictEqual(on(world, createVolume(world, "x", START, 9), START)?.size, 16 * 1024 ** 3)
    assert.isAbove(hits(world, "size_rounded_up"), 0)
  })
})

describe("faults of listings", () => {
  const listed = (fault: Fault.Fault) => {
    const world = World.make({ now: START, vms: 0 })
    const ids = Array.from({ length: 40 }, (_, n) => world.seedVolume({ name: `v${n}` }, START).id)
    world.setFaults([fault], START)
    const answer = ask(world, "listVolumes", { type: "DATADISK" }, START)
    assert.strictEqual(hits(world, fault.kind), 1)
    return {
      world,
      ids,
      count: answer.body["count"],
      shown: rows(answer).map((row) => String(row["id"])),
      text: answer.text
    }
  }

  it("unstable_pages: shuffled, one row missing, or one twice (O3)", () => {
    const shuffled = listed({ kind: "unstable_pages" })
    assert.notDeepEqual(shuffled.shown, shuffled.ids)
    assert.deepStrictEqual([...shuffled.shown].sort(), [...shuffled.ids].sort())
    const skipped = listed({ kind: "unstable_pages", how: "skip" })
    assert.deepStrictEqual([skipped.count, skipped.shown.length], [40, 39])
    const doubled = listed({ kind: "unstable_pages", how: "duplicate" })
    assert.deepStrictEqual([doubled.shown.length, new Set(doubled.shown).size], [41, 40])
  })

  it("partial_list: rows are missing, and the count tells or does not (O2)", () => {
    const honest = listed({ kind: "partial_list" })
    assert.isBelow(honest.shown.length, 40)
    assert.isAbove(honest.shown.length, 0)
    assert.strictEqual(honest.count, 40)
    const lying = listed({ kind: "partial_list", count_too: true })
    assert.strictEqual(lying.count, lying.shown.length)
  })

  it("wrong_count", () => assert.strictEqual(listed({ kind: "wrong_count", by: -3 }).count, 37))

  it("empty_list has no keys at all (O5)", () =>
    assert.strictEqual(listed({ kind: "empty_list" }).text, '{"listvolumesresponse":{}}'))

  it("empty_list of VMs only when asked for by command", () => {
    const { world } = withFault({ kind: "empty_list" })
    assert.lengthOf(rows(ask(world, "listVirtualMachines", {}, START), "virtualmachine"), 3)
    world.setFaults([{ kind: "empty_list", command: "listVirtualMachines" }], START)
    assert.deepStrictEqual(ask(world, "listVirtualMachines", {}, START).body, {})
  })

  it("stale_list shows rows as they were, deleted ones included, younger ones not (O1)", () => {
    const { world, id } = withFault({ kind: "stale_list", age_ms: 10_000 })
    const gone = world.seedVolume({ name: "gone" }, START).id
    world.act({ act: "attach", volume_id: id, vm_id: testVm }, START + 20_000)
    world.act({ act: "delete", volume_id: gone }, START + 20_000)
    world.act({ act: "create", name: "young", size_gib: 1 }, START + 20_000)
    const stale = rows(ask(world, "listVolumes", { type: "DATADISK" }, START + 29_999))
    assert.strictEqual(hits(world, "stale_list"), 1)
    assert.deepStrictEqual(stale.map((row) => row["name"]).sort(), ["data", "gone"])
    assert.isTrue(stale.every((row) => row["virtualmachineid"] === undefined))
    const fresh = rows(ask(world, "listVolumes", { type: "DATADISK" }, START + 30_000))
    assert.deepStrictEqual(fresh.map((row) => row["name"]).sort(), ["data", "young"])
  })

  it("delayed_events: what was done shows later, and then with the time at which it was done", () => {
    const { world, id } = withFault({ kind: "delayed_events", ms: 10_000 })
    world.act({ act: "rename", volume_id: id, name: "other" }, START + 1_000)
    const at = (ms: number) => rows(ask(world, "listEvents", {}, START + ms), "event")
    assert.deepStrictEqual(at(10_999), [])
    assert.deepStrictEqual(new Set(at(11_000).map((row) => row["created"])), new Set(["2026-03-01T12:00:01+0000"]))
    assert.strictEqual(hits(world, "delayed_events"), 2)
  })
})

describe("faults of devices", () => {
  const shown = (world: World.World, at: number) => world.guest(appliance, at).slice(1)

  it("hotplug_failure: CloudStack says attached, the guest shows nothing until its VM starts anew (D8)", () => {
    const { world, id } = withFault({ kind: "hotplug_failure", times: 1 })
    attach(world, id, appliance, START)
    assert.strictEqual(on(world, id, LATER)?.vm_id, appliance)
    assert.strictEqual(hits(world, "hotplug_failure"), 1)
    assert.lengthOf(shown(world, LATER), 0)
    world.act({ act: "stop_vm", vm_id: appliance }, LATER)
    world.act({ act: "start_vm", vm_id: appliance }, LATER)
    assert.lengthOf(shown(world, LATER + 100), 1)
  })

  it("device_delay shows a disk later (D1), and never when it was pulled meanwhile", () => {
    const { world, id } = withFault({ kind: "device_delay", ms: 5_000 })
    world.act({ act: "attach", volume_id: id, vm_id: appliance }, START)
    assert.strictEqual(hits(world, "device_delay"), 1)
    assert.lengthOf(shown(world, START + 5_099), 0)
    assert.lengthOf(shown(world, START + 5_100), 1)
    world.act({ act: "detach", volume_id: id }, START + 6_000)
    world.act({ act: "attach", volume_id: id, vm_id: appliance }, START + 6_000)
    world.act({ act: "detach", volume_id: id }, START + 7_000)
    assert.lengthOf(shown(world, START + 60_000), 0)
  })

  it("duplicate_serial: two disks, one serial (D5)", () => {
    const { world, id } = withFault({ kind: "duplicate_serial" })
    world.act({ act: "attach", volume_id: id, vm_id: appliance }, START)
    const twin = world.seedVolume({ name: "twin" }, START + 1_000).id
    world.act({ act: "attach", volume_id: twin, vm_id: appliance }, START + 1_000)
    const disks = shown(world, START + 2_000)
    assert.strictEqual(hits(world, "duplicate_serial"), 1)
    assert.deepStrictEqual(
      disks.map((disk) => disk.volume_id),
      [id, twin]
    )
    assert.strictEqual(disks[0]?.serial, disks[1]?.serial)
  })
})

describe("switches", () => {
  it("keep to command, volume, VM, skip and times", () => {
    const { world, id } = withFault({ kind: "http_5xx", command: "attachVolume", volume_id: "other" })
    const status = () => {
      const outcome = call(world, id)
      return "status" in outcome ? outcome.status : null
    }
    assert.strictEqual(status(), 200)
    world.setFaults([{ kind: "http_5xx", vm_id: appliance }], START)
    assert.strictEqual(status(), 200)
    world.setFaults([{ kind: "http_5xx", vm_id: testVm, skip: 1, times: 2 }], START)
    assert.deepStrictEqual([status(), status(), status(), status()], [200, 502, 502, 200])
  })

  it("hit with their probability, the same way in every run", () => {
    const run = () => {
      const { world, id } = withFault({ kind: "unauthorized", probability: 0.3 })
      return Array.from({ length: 200 }, () => ask(world, "listVolumes", { id }, START).status)
    }
    assert.deepStrictEqual(run(), run())
    const share = run().filter((status) => status === 401).length / 200
    assert.isTrue(share > 0.2 && share < 0.4, `${share}`)
  })

  it("were all reached above, save the one that only the in-memory guest has", () => {
    const missing = Fault.kinds.filter((kind) => !reached.has(kind))
    assert.deepStrictEqual(missing, ["guest_unread"])
  })
})
