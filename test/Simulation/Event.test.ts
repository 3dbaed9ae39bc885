import { assert, describe, it } from "@effect/vitest"
import * as World from "../../src/Simulation/World.ts"
import { ask, attach, createVolume, detach, type Params, rows, START } from "./Wire.ts"

const appliance = World.APPLIANCE_VM_ID
const testVm = World.vmId(1)

/** A world with one volume that nobody did anything to. */
const withVolume = (options: Partial<World.Options> = {}) => {
  const world = World.make({ now: START, job_ms: 1_000, ...options })
  return { world, id: world.seedVolume({ name: "data", state: "Ready", vm_id: testVm }, START).id }
}

const listed = (world: World.World, now: number, params: Params = {}) =>
  rows(ask(world, "listEvents", params, now), "event")
const told = (world: World.World, now: number, params: Params = {}) =>
  listed(world, now, params).map((row) => [row["username"], row["type"], row["state"], row["level"]].join(" "))

describe("the events of the simulated CloudStack", () => {
  it("tell nothing of a world as it began", () => {
    assert.deepStrictEqual(told(withVolume().world, START + 1_000), [])
    assert.strictEqual(ask(withVolume().world, "listEvents", {}, START).text, '{"listeventsresponse":{}}')
  })

  it("tell of every step of a job, who asked for it, and that the steps belong together", () => {
    const { world, id } = withVolume()
    detach(world, id, START + 500)
    assert.deepStrictEqual(told(world, START + 1_000), [
      "volumed-api VOLUME.DETACH Scheduled INFO",
      "volumed-api VOLUME.DETACH Started INFO"
    ])
    const done = listed(world, START + 2_000)
    assert.deepInclude(done[2], {
      state: "Completed",
      created: "2026-03-01T12:00:01+0000",
      resourcetype: "Volume",
      resourceid: id,
      resourcename: "data",
      account: "volumed",
      description: `Successfully completed detaching volume. Volume Id: ${id}`
    })
    assert.deepStrictEqual(
      done.map((row) => row["parentid"]),
      [undefined, done[0]?.["id"], done[0]?.["id"]]
    )
  })

  it("tell of a creation first that the row was made", () => {
    const world = World.make({ now: START, job_ms: 1_000 })
    createVolume(world, "new", START)
    assert.deepStrictEqual(told(world, START + 1_000), [
      "volumed-api VOLUME.CREATE Created INFO",
      "volumed-api VOLUME.CREATE Scheduled INFO",
      "volumed-api VOLUME.CREATE Started INFO",
      "volumed-api VOLUME.CREATE Completed INFO"
    ])
  })

  it("tell of what failed, as a job or at once", () => {
    const { world, id } = withVolume()
    attach(world, id, appliance, START)
    assert.strictEqual(told(world, START + 2_000).at(-1), "volumed-api VOLUME.ATTACH Completed ERROR")
    assert.strictEqual(ask(world, "deleteVolume", { id }, START + 3_000).status, 431)
    assert.strictEqual(told(world, START + 3_000).at(-1), "volumed-api VOLUME.DELETE Completed ERROR")
  })

  it("bear another name for what a person did, at once or as a job", () => {
    const { world, id } = withVolume()
    const act = (what: Parameters<World.World["act"]>[0], ms: number) =>
      assert.isTrue(world.act(what, START + ms).done, what.act)
    act({ act: "detach", volume_id: id }, 1_000)
    act({ act: "resize", volume_id: id, size_gib: 5 }, 2_000)
    act({ act: "rename", volume_id: id, name: "other" }, 3_000)
    act({ act: "attach", volume_id: id, vm_id: testVm, as_job: true }, 4_000)
    act({ act: "destroy_vm", vm_id: testVm }, 6_000)
    act({ act: "delete", volume_id: id }, 7_000)
    act({ act: "create", name: "third", size_gib: 1 }, 8_000)
    const completed = told(world, START + 9_000).filter((line) => line.endsWith("Completed INFO"))
    assert.deepStrictEqual(
      completed.map((line) => line.replace(" Completed INFO", "")),
      [
        "operator VOLUME.DETACH",
        "operator VOLUME.RESIZE",
        "operator VOLUME.UPDATE",
        "operator VOLUME.ATTACH",
        "operator VOLUME.DETACH",
        "operator VOLUME.DELETE",
        "operator VOLUME.CREATE"
      ]
    )
    assert.isFalse(world.act({ act: "detach", volume_id: id }, START + 9_000).done)
    assert.lengthOf(told(world, START + 9_000), told(world, START + 10_000).length)
  })

  it("can be narrowed to times, types, words and one volume", () => {
    const { world, id } = withVolume()
    const other = world.seedVolume({ name: "other", state: "Ready" }, START).id
    world.act({ act: "detach", volume_id: id }, START + 1_000)
    world.act({ act: "delete", volume_id: other }, START + 5_000)
    const count = (params: Params) => listed(world, START + 10_000, params).length
    assert.strictEqual(count({}), 4)
    assert.strictEqual(count({ startdate: "2026-03-01 12:00:01" }), 4)
    assert.strictEqual(count({ startdate: "2026-03-01 12:00:02" }), 1)
    assert.strictEqual(count({ enddate: "2026-03-01 12:00:02" }), 3)
    assert.strictEqual(count({ startdate: "2026-03-01", enddate: "2026-03-01" }), 4)
    assert.strictEqual(count({ startdate: "2026-03-02" }), 0)
    assert.strictEqual(count({ type: "VOLUME.DELETE" }), 1)
    assert.strictEqual(count({ level: "ERROR" }), 0)
    assert.strictEqual(count({ keyword: "volume.de" }), 4)
    assert.strictEqual(count({ keyword: "vm.stop" }), 0)
    assert.strictEqual(count({ resourceid: other, resourcetype: "Volume" }), 1)
    assert.strictEqual(count({ resourcetype: "VirtualMachine" }), 0)
  })

  it("are refused to a question that makes no sense", () => {
    const { world } = withVolume()
    const text = (params: Params) => ask(world, "listEvents", params, START).body["errortext"]
    assert.match(String(text({ startdate: "2026-03-01T12:00:00Z" })), /^Unable to parse date/)
    assert.match(String(text({ enddate: "now" })), /^Unable to parse date/)
    assert.match(String(text({ resourceid: "x" })), /must be used with resourcetype/)
    assert.match(String(text({ page: "1", pagesize: "501" })), /max allowed page size value: 500/)
  })

  it("come in pages, the newest on the first", () => {
    const { world, id } = withVolume()
    for (let n = 1; n <= 3; n++) world.act({ act: "rename", volume_id: id, name: `name-${n}` }, START + n * 1_000)
    const seconds = (page: string) =>
      listed(world, START + 5_000, { page, pagesize: "4" }).map((row) => String(row["created"]).slice(17, 19))
    assert.deepStrictEqual(seconds("1"), ["02", "03", "03", "03"])
    assert.deepStrictEqual(seconds("3"), ["01"])
    assert.deepStrictEqual(ask(world, "listEvents", { page: "4", pagesize: "4" }, START).body, { count: 9 })
  })

  it("are kept with the world, and a world saved without them is taken up as well", () => {
    const { world, id } = withVolume()
    world.act({ act: "detach", volume_id: id }, START + 1_000)
    const { event_count, events, ...older } = world.save(START + 1_000)
    const copy = World.load(JSON.parse(JSON.stringify({ ...older, event_count, events })))
    copy.act({ act: "rename", volume_id: id, name: "other" }, START + 2_000)
    const ids = listed(copy, START + 2_000).map((row) => row["id"])
    assert.strictEqual(new Set(ids).size, 6)
    assert.deepStrictEqual(told(World.load(JSON.parse(JSON.stringify(older))), START + 1_000), [])
  })

  it("are not without end", () => {
    const { world, id } = withVolume()
    for (let n = 0; n < 3_000; n++) world.act({ act: "rename", volume_id: id, name: `name-${n}` }, START + n)
    assert.isAtMost(world.save(START + 3_000).events?.length ?? 0, 4_000)
    assert.lengthOf(listed(world, START + 3_000, { page: "1", pagesize: "500" }), 500)
  })
})
