import { assert, describe, it } from "@effect/vitest"
import { Either } from "effect"
import * as FastCheck from "effect/FastCheck"
import * as Wire from "../../schema/CloudStack.ts"
import { fixture } from "./FakeCloudStack.ts"

const body = (name: string) => Either.getOrThrow(Wire.parse(fixture(name)))
const volumesOf = (answer: unknown) => Wire.volumes(Either.getOrThrow(Wire.page("listVolumes", "volume", answer)).rows)
const listing = (...rows: ReadonlyArray<unknown>) => ({ listvolumesresponse: { count: rows.length, volume: rows } })
const row = { id: "c6ef61d1-300f-442a-86e5-1f2a3b4c5d6e", name: "v", type: "DATADISK", state: "Ready", size: 1 }

describe("a list of volumes", () => {
  it("reads what CloudStack sends, unknown fields and all", () => {
    const { good, bad } = volumesOf(body("listVolumes"))
    assert.deepStrictEqual(bad, [])
    assert.deepStrictEqual(
      good.map(({ type, state, vm_state, device_id }) => ({ type, state, vm_state, device_id })),
      [
        { type: "DATADISK", state: "Ready", vm_state: "Running", device_id: 1 },
        { type: "ROOT", state: "Ready", vm_state: "Running", device_id: 0 },
        { type: "DATADISK", state: "Allocated", vm_state: null, device_id: null }
      ]
    )
    assert.deepStrictEqual<unknown>(good[0], {
      id: "c6ef61d1-300f-442a-86e5-1f2a3b4c5d6e",
      name: "pgtest2-disk-0",
      type: "DATADISK",
      state: "Ready",
      size: 107_374_182_400,
      vm_id: "8a4400e5-c92a-4bc4-8bff-4b6b0b6a018c",
      vm_name: "i-2-15-VM",
      vm_state: "Running",
      device_id: 1,
      zone_id: "057e86db-c726-4d8c-ab1f-75c5f55d1881",
      disk_offering_id: "c813c642-d946-49e1-9289-c616dd70206a",
      created_at: Date.UTC(2021, 9, 4, 9, 24, 38),
      tags: [{ key: "volumed-uid", value: "11111111-2222-4333-8444-555566667777" }],
      job_id: null,
      delete_protection: true
    })
    assert.strictEqual(good[1]?.created_at, Date.UTC(2021, 8, 30, 12))
    assert.strictEqual(good[2]?.job_id, "7f0e6d5c-4b3a-4291-8807-f6e5d4c3b2a1")
  })

  it("may be empty without any key, and past its end has a count alone", () => {
    assert.deepStrictEqual(
      Wire.page("listVolumes", "volume", body("listVolumes-empty")),
      Either.right({ count: 0, rows: [] })
    )
    assert.deepStrictEqual(
      Wire.page("listVolumes", "volume", body("listVolumes-past-the-end")),
      Either.right({ count: 3, rows: [] })
    )
  })

  it("of another command, without a count, or with a count in words is not an empty list (C8)", () => {
    const hostile = [
      { listzonesresponse: {} },
      {},
      null,
      [],
      "",
      { listvolumesresponse: null },
      { listvolumesresponse: [] },
      { listvolumesresponse: "" },
      { listvolumesresponse: { volume: [row] } },
      { listvolumesresponse: { count: "1", volume: [row] } },
      { listvolumesresponse: { count: -1, volume: [row] } },
      { listvolumesresponse: { count: 1, volume: row } },
      { listvolumesresponse: { count: 1, volume: "[]" } },
      { __proto__: { listvolumesresponse: {} } }
    ]
    for (const answer of hostile) {
      assert.isTrue(Either.isLeft(Wire.page("listVolumes", "volume", answer)), JSON.stringify(answer))
    }
  })

  it("names a row that cannot be read and keeps the others (S19)", () => {
    const spoilt: ReadonlyArray<readonly [unknown, string | null]> = [
      [{ ...row, id: "../../etc/passwd" }, null],
      [{ ...row, id: row.id.toUpperCase() }, null],
      [{ ...row, id: 7 }, null],
      [{ ...row, state: undefined }, row.id],
      [{ ...row, size: "10" }, row.id],
      [{ ...row, size: 1e300 }, row.id],
      [{ ...row, size: -1 }, row.id],
      // Reading these as "on no VM" or "no job" would allow what must not be done.
      [{ ...row, virtualmachineid: "15" }, row.id],
      [{ ...row, jobid: "42" }, row.id],
      [{ ...row, deviceid: "1" }, row.id],
      [{ ...row, tags: [{ key: 1 }] }, row.id],
      ["a volume", null],
      [null, null]
    ]
    for (const [bad, id] of spoilt) {
      const read = volumesOf(listing({ ...row, id: "d94f0c3a-7b6e-4a52-b1c8-0e9f8d7c6b5a" }, bad))
      assert.strictEqual(read.good.length, 1)
      assert.deepStrictEqual(
        read.bad.map((each) => each.id),
        [id],
        JSON.stringify(bad)
      )
    }
  })

  it("reads a numbered zone or offering of an old installation, and a time without an offset, as unknown (T4)", () => {
    const [volume] = volumesOf(
      listing({ ...row, zoneid: "1", diskofferingid: "21", created: "2021-10-04T09:24:38" })
    ).good
    assert.isNull(volume?.zone_id)
    assert.isNull(volume?.disk_offering_id)
    assert.isNull(volume?.created_at)
  })

  it("makes control characters in names harmless, and leaves every name that may be declared alone (X8)", () => {
    const [volume] = volumesOf(listing({ ...row, name: "a\u001b[31m\nb\u2028c\ud800" })).good
    assert.strictEqual(volume?.name, "a\ufffd[31m\ufffdb\ufffdc\ufffd")
    FastCheck.assert(
      FastCheck.property(FastCheck.fullUnicodeString({ minLength: 1, maxLength: 255 }), (name) => {
        FastCheck.pre(!/[\p{Cc}\u2028\u2029]/u.test(name))
        assert.strictEqual(volumesOf(listing({ ...row, name })).good[0]?.name, name)
      })
    )
  })

  it("is read although a raw control character makes it no JSON", () => {
    const raw = JSON.stringify(listing({ ...row, name: "two lines" })).replace("two lines", "two\nlines\u0007")
    assert.throws(() => JSON.parse(raw))
    assert.strictEqual(volumesOf(Either.getOrThrow(Wire.parse(raw))).good[0]?.name, "two lines ")
    assert.isTrue(Either.isLeft(Wire.parseStrictly(raw)))
  })

  it("is never read from a truncated body", () => {
    const whole = fixture("listVolumes").trim()
    for (let end = 0; end < whole.length; end += 7) assert.isTrue(Either.isLeft(Wire.parse(whole.slice(0, end))))
  })

  it("survives depth, and keys that mean something to JavaScript", () => {
    const deep = `${"[".repeat(100_000)}${"]".repeat(100_000)}`
    const hostile = `{"listvolumesresponse":{"count":1,"volume":[{"__proto__":{"polluted":true},"constructor":1,"x":${deep},${JSON.stringify(row).slice(1)}]}}`
    const read = volumesOf(Either.getOrThrow(Wire.parse(hostile)))
    assert.strictEqual(read.good.length, 1)
    assert.isUndefined(({} as Record<string, unknown>)["polluted"])
  })
})

describe("an error", () => {
  it("is found in each of its envelopes", () => {
    const cases = [
      ["401", 401],
      ["432-errorresponse", 432],
      ["401-null-envelope", 401],
      ["listVolumes-431-unknown-id", 431]
    ] as const
    for (const [name, code] of cases) {
      const found = Wire.errorIn("listVolumes", body(name))
      assert.strictEqual(found._tag === "Some" ? found.value.errorcode : null, code, name)
    }
  })

  it("is not found in an answer that is none", () => {
    for (const name of ["listVolumes", "listVolumes-empty", "attachVolume"]) {
      assert.strictEqual(Wire.errorIn("listVolumes", body(name))._tag, "None")
    }
  })
})

describe("a job", () => {
  const job = (name: string) => Either.getOrThrow(Wire.job(body(name)))

  it("is pending, succeeded or failed", () => {
    assert.strictEqual(job("job-pending").status, "pending")
    assert.strictEqual(job("job-succeeded").status, "succeeded")
    const failed = job("job-failed")
    assert.strictEqual(failed.status, "failed")
    assert.strictEqual(failed.code, 530)
    assert.match(failed.text ?? "", /^Failed to attach volume/)
  })

  it("that a restart cancelled has no result, and failed nevertheless (J2)", () => {
    assert.deepInclude(job("job-cancelled-by-restart"), { status: "failed", code: 530, text: null })
  })

  it("with a status nobody knows has not succeeded (J8)", () => {
    const odd = Wire.job({ queryasyncjobresultresponse: { jobstatus: 7, jobresult: "cancelled" } })
    assert.deepStrictEqual(odd, Either.right({ id: null, status: "failed", code: null, text: "cancelled" }))
    assert.isTrue(Either.isLeft(Wire.job({ queryasyncjobresultresponse: { jobstatus: "1" } })))
    assert.isTrue(Either.isLeft(Wire.job({ queryasyncjobresultresponse: {} })))
  })
})

describe("the answer to a mutation", () => {
  it("is believed only when it is whole", () => {
    const id = "d94f0c3a-7b6e-4a52-b1c8-0e9f8d7c6b5a"
    const jobid = "7f0e6d5c-4b3a-4291-8807-f6e5d4c3b2a1"
    assert.deepStrictEqual<unknown>(Wire.createAnswer(body("createVolume")), Either.right({ id, jobid }))
    assert.deepStrictEqual<unknown>(Wire.jobAnswer("attachVolume", body("attachVolume")), Either.right({ jobid }))
    assert.isTrue(Either.isRight(Wire.deleteAnswer(body("deleteVolume"))))
    assert.isTrue(Either.isRight(Wire.deleteAnswer(body("deleteVolume-old"))))
    const lies: ReadonlyArray<Either.Either<unknown, string>> = [
      Wire.createAnswer({ createvolumeresponse: { jobid } }),
      Wire.createAnswer({ createvolumeresponse: { id, jobid: "12" } }),
      Wire.jobAnswer("attachVolume", body("detachVolume")),
      Wire.jobAnswer("attachVolume", { attachvolumeresponse: {} }),
      Wire.deleteAnswer({ deletevolumeresponse: { success: false } }),
      Wire.deleteAnswer({ deletevolumeresponse: {} })
    ]
    for (const lie of lies) assert.isTrue(Either.isLeft(lie))
  })
})

describe("offerings, zones, VMs, capabilities", () => {
  it("are read from what CloudStack sends", () => {
    const rows = (command: string, element: string, name = command) =>
      Either.getOrThrow(Wire.page(command, element, body(name))).rows
    assert.deepStrictEqual(
      Wire.offerings(rows("listDiskOfferings", "diskoffering")).good.map((o) => [o.customized, o.size_gib]),
      [
        [true, 0],
        [false, 5]
      ]
    )
    assert.strictEqual(Wire.zones(rows("listZones", "zone")).good[0]?.name, "zone-1")
    assert.strictEqual(Wire.virtualMachines(rows("listVirtualMachines", "virtualmachine")).good[0]?.state, "Running")
    assert.deepStrictEqual(
      Wire.capabilities(body("listCapabilities")),
      Either.right({ version: "4.19.1.0", size_min_gib: 1, size_max_gib: 1024 })
    )
  })
})
