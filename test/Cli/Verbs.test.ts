import { afterAll, assert, beforeAll, describe, it } from "@effect/vitest"
import { once } from "node:events"
import { rmSync } from "node:fs"
import { connect } from "node:net"
import type { Event, ExportAnswer, V1Device, Volume } from "../../schema/Api.ts"
import * as Child from "./Child.ts"
import * as Stage from "./Stage.ts"

/** The verbs that look at and act on what is declared: the built program against a daemon on a sandbox. */
let stage: Stage.Stage
const NAME = "disk"
const declared = Stage.declaration(
  NAME,
  "size: 2GiB",
  "attached_to: appliance",
  "export_wanted: true",
  "on_drift: hold"
)

beforeAll(async () => {
  stage = await Stage.start()
  await stage.result("apply", "-f", stage.file("a.yaml", declared), "--wait", "--yes")
})
afterAll(() => stage.stop())

const observed = async (): Promise<Volume> => (await stage.json("get", NAME)) as Volume

const volumeId = async (): Promise<string> => (await observed()).status.volume_id ?? ""

const refused = async (expected: string, ...args: ReadonlyArray<string>) => {
  const ended = await stage.volumed(args)
  assert.strictEqual(ended.code, 1, `volumed ${args.join(" ")}: ${ended.stdout}`)
  assert.include(ended.stderr, expected)
}

describe("looking", () => {
  it("shows exports, with declared names", async () => {
    assert.match(await stage.result("exports"), /^migration-vol-\S+ +disk +active +yes +2GiB +rw /mu)
    const { count, exports } = (await stage.json("exports")) as { count: number; exports: ReadonlyArray<ExportAnswer> }
    assert.strictEqual(count, exports.length)
  })

  it("shows disks and offerings", async () => {
    const id = await volumeId()
    assert.match(await stage.result("devices"), new RegExp(`^/\\S+ +2GiB +.*${NAME} +${id} `, "mu"))
    const devices = (await stage.json("devices")) as ReadonlyArray<V1Device>
    assert.include(
      devices.map((device) => device.volume_id),
      id
    )
    assert.match(await stage.result("offerings"), /^c813c642\S+ +Custom OSSEA +as declared +default$/mu)
  })

  it("shows what happened, since a time and to one volume", async () => {
    const { items } = (await stage.json("log", "--since", "1h", NAME)) as { items: ReadonlyArray<Event> }
    assert.isAbove(items.length, 0)
    assert.isTrue(items.every((event) => event.name === NAME))
    const later = await stage.volumed(["log", "--since", "2999-01-01T00:00:00Z"])
    assert.strictEqual(later.stdout, "")
    await refused("--since: expected an age", "log", "--since", "yesterday")
    await refused('nothing declared is called "never"', "log", "never")
  })

  it("names who holds a volume", async () => {
    const { exports, server } = (await stage.json("exports")) as {
      exports: ReadonlyArray<ExportAnswer>
      server: { host: string; port: number }
    }
    const name = exports[0]?.name ?? ""
    const client = connect(server.port, server.host)
    await once(client, "data")
    // Client flags, then NBD_OPT_EXPORT_NAME: the server answers with the size and holds the device from then on.
    const request = Buffer.concat([
      Buffer.from([0, 0, 0, 3]),
      Buffer.from("IHAVEOPT"),
      Buffer.alloc(8),
      Buffer.from(name)
    ])
    request.writeUInt32BE(1, 12)
    request.writeUInt32BE(name.length, 16)
    client.write(request)
    await once(client, "data")
    const held = new RegExp(`held by +127\\.0\\.0\\.1:${client.localPort} \\(process \\d+\\) since `, "u")
    await stage.result("sync")
    const explained = await stage.result("explain", NAME)
    client.destroy()
    assert.match(explained, held)
  })
})

describe("watching", () => {
  it("shows what happens as it happens, and ends at Ctrl-C with 130", async () => {
    const child = Child.start(["watch", NAME, "-o", "json"], { env: { VOLUMED_SERVER: stage.server } })
    const ended = Child.collect(child)
    // What happens before the connection stands is not shown: a write after the other until one is.
    const seen = Child.said(child, "stdout", /^(\{.*\})\n/mu)
    for (let tries = 0, shown = false; tries < 30 && !shown; tries++) {
      const written = stage.result("pause", NAME, "--reason", `look ${tries}`, "--yes")
      shown = await Promise.race([seen.then(() => true), written.then(() => false)])
      await written
    }
    const event = JSON.parse((await seen)[1] ?? "") as Event
    assert.strictEqual(event.name, NAME)
    child.kill("SIGINT")
    assert.strictEqual((await ended).code, 130)
    await stage.result("resume", NAME, "--yes")
  })

  it("shows disks that come and go", async () => {
    const child = Child.start(["devices", "--watch"], { env: { VOLUMED_SERVER: stage.server } })
    const ended = Child.collect(child)
    await Child.said(child, "stderr", /Ctrl-C ends it/u)
    const text = Stage.declaration("passing", "size: 1GiB", "attached_to: appliance")
    const arrived = Child.said(child, "stdout", /^\+ \S+ {2}1GiB {2}[0-9a-f]{20} /mu)
    await stage.result("apply", "-f", stage.file("b.yaml", text), "--yes", "--wait")
    await arrived
    const left = Child.said(child, "stdout", /^- \S+ {2}1GiB {2}[0-9a-f]{20} /mu)
    await stage.result("delete", "passing", "--policy", "retain", "--yes")
    await left
    child.kill("SIGINT")
    assert.strictEqual((await ended).code, 130)
    assert.strictEqual((await stage.volumed(["wait", "passing", "--for", "Removed:True"])).code, 0)
  })
})

describe("waiting", () => {
  it("ends with 0 when it is so, 5 in time, 4 in time and blocked, 1 for what is not declared", async () => {
    assert.match(await stage.result("wait", NAME), /^disk +Ready /mu)
    assert.strictEqual((await stage.volumed(["wait", NAME, "--for", "Ready:False", "--timeout", "1s"])).code, 5)
    await refused("did you mean Ready?", "wait", NAME, "--for", "Raedy:True")
    await refused('nothing declared is called "never"', "wait", "never")
  })

  it("ends as the operation ended", async () => {
    const list = (await stage.json("ops", NAME)) as ReadonlyArray<{ id: string; status: string }>
    assert.include(await stage.result("wait", list[0]?.id ?? ""), "completed")
  })
})

describe("acting", () => {
  it("asks first: nothing changes without a terminal and without --yes", async () => {
    const before = await observed()
    for (const args of [
      ["retry", NAME],
      ["pause", NAME, "--reason", "r"],
      ["accept", NAME],
      ["maintenance", "on", "--reason", "r"]
    ]) {
      await refused("--yes", ...args)
    }
    assert.strictEqual((await observed()).generation, before.generation)
    assert.include(await stage.result("maintenance"), "No maintenance")
  })

  it("pauses with a reason and an end, which explain shows, and resumes", async () => {
    await refused("--reason TEXT is missing", "pause", NAME)
    await refused("is over", "pause", NAME, "--reason", "r", "--until", "2020-01-01T00:00:00Z", "--yes")
    const paused = await stage.result("pause", NAME, "--reason", "new cables", "--for", "2h", "--yes")
    assert.match(paused, /disk is paused until 2\d{3}-/u)
    assert.deepInclude((await observed()).spec.paused, { reason: "new cables" })
    // Paused again without an end, the old end is gone.
    await stage.result("pause", NAME, "--reason", "longer", "--yes")
    assert.notProperty((await observed()).spec.paused, "until")
    await stage.result("wait", NAME, "--for", "Paused:True")
    const explained = await stage.result("explain", NAME)
    assert.match(explained, /^ {2}paused +by \S+: longer$/mu)
    assert.include(explained, "Type: volumed resume disk")
    await stage.result("resume", NAME, "--yes")
    assert.isNull((await observed()).spec.paused)
    assert.include(await stage.result("resume", NAME), "disk is not paused")
  })

  it("looks at everything now, and tries again", async () => {
    assert.match(await stage.result("sync"), /^A full pass took \d+\.\d s: \d+ of \d+ as declared/u)
    assert.include(await stage.result("retry", NAME, "--yes"), "disk is tried again")
  })

  it("accepts drift, so that nobody's repair undoes it", async () => {
    await stage.act({ act: "detach", volume_id: await volumeId() })
    const reported = await stage.volumed(["wait", NAME, "--for", "Ready:False"])
    assert.strictEqual(reported.code, 0, reported.stderr)
    const blocked = await stage.volumed(["wait", NAME, "--timeout", "1s"])
    assert.strictEqual(blocked.code, 4, blocked.stderr)
    const drift = await stage.volumed(["drift"])
    assert.strictEqual(drift.code, 4)
    assert.match(drift.stdout, /^! disk {2}attachment: [^]*; by operator .*VOLUME\.DETACH/mu)
    assert.include(await stage.result("explain", NAME), "Type: volumed accept disk")
    assert.include(await stage.result("accept", NAME, "--yes"), "disk is declared as it is now")
    assert.strictEqual((await observed()).spec.attached_to, "none")
    assert.strictEqual((await stage.volumed(["drift"])).code, 0)
    await stage.result("apply", "-f", stage.file("a.yaml", declared), "--wait", "--yes", "--take-over")
  })

  it("cancels what a service asked for, and takes its wish back", async () => {
    await stage.result("maintenance", "on", "--reason", "hold still", "--yes")
    const during = await stage.volumed(["plan"])
    assert.strictEqual(during.code, 4, during.stdout)
    assert.match(await stage.result("maintenance"), /^Maintenance since \S+, by \S+: hold still\n/u)
    assert.include(await stage.result("maintenance", "off", "--yes"), "No maintenance: volumed acts.")
    const hold = stage.file("state/hold", "the test looks first\n")
    const headers = { "content-type": "application/json" }
    const answer = await fetch(`${stage.server}/api/v1/volumes/${await volumeId()}/detach`, { method: "POST", headers })
    const { id } = (await answer.json()) as { id: string }
    await refused("--yes", "cancel", id)
    assert.include(await stage.result("cancel", id, "--yes"), `${id} is cancelled`)
    rmSync(hold)
    assert.strictEqual((await stage.volumed(["wait", id])).code, 1)
    assert.strictEqual((await observed()).spec.attached_to, "appliance")
    await stage.result("wait", NAME)
  })

  it("withholds after a maintenance what takes something away, until that digest is approved", async () => {
    await stage.result("maintenance", "on", "--reason", "cables", "--yes")
    const headers = { "content-type": "application/json" }
    const body = JSON.stringify({ attached_to: "none", export_wanted: false })
    await fetch(`${stage.server}/api/v2/volumes/${NAME}`, { method: "PATCH", headers, body })
    const ended = await stage.volumed(["maintenance", "off", "--yes"])
    assert.strictEqual(ended.code, 4, ended.stderr)
    const digest = /volumed approve (\S+)/u.exec(ended.stdout)?.[1] ?? ""
    assert.match(ended.stdout, /^ {2}(?:detach|unexport) disk \(volume /mu)
    assert.include(await stage.result("maintenance"), `volumed approve ${digest}`)
    assert.include(await stage.result("explain", NAME), `Type: volumed approve ${digest}`)
    assert.strictEqual((await observed()).status.kernel_path === null, false)
    await refused("--yes", "approve", digest)
    assert.match(await stage.result("approve", digest, "--yes"), /^Approved until .*disk/mu)
    await stage.result("wait", NAME)
    assert.isNull((await observed()).status.attached_to)
  })
})

describe("completion", () => {
  it("needs no daemon", async () => {
    const script = await Child.run(["completion", "bash"], { env: { VOLUMED_SERVER: "http://127.0.0.1:1" } })
    assert.strictEqual(script.code, 0)
    assert.include(script.stdout, "complete -F _volumed volumed")
    assert.include((await Child.run(["completion", "bsh"])).stderr, "did you mean bash?")
  })
})
