import { assert, describe, it } from "@effect/vitest"
import * as LogFields from "../../reconciler/LogFields.ts"
import type { Name } from "../../schema/Ids.ts"
import * as Worlds from "../support/Worlds.ts"

const volume = Worlds.volumeId(1)
const path = Worlds.byIdPath(volume)

describe("The fields of a log line", () => {
  it("name an action by what the daemon before this one logged", () => {
    const fields = LogFields.ofAction(
      {
        _tag: "Export",
        uid: Worlds.uidOf(1),
        name: "one" as Name,
        generation: 1,
        cause: "declaration",
        reason: "it should be served and is not",
        destructive: false,
        volume_id: volume,
        export_name: `migration-vol-${volume}`,
        path,
        device: "254:16",
        size: 1,
        read_only: false
      },
      Worlds.operationId(1)
    )
    assert.deepStrictEqual(fields, {
      volume: "one",
      action: "Export",
      operation_id: Worlds.operationId(1),
      volume_id: volume,
      export_name: `migration-vol-${volume}`,
      device_path: path
    })
  })

  it("name an operation by its row, and by what was learned since that row was read", () => {
    const row = Worlds.operation(Worlds.uidOf(1), {
      type: "create",
      name: "one",
      volume_id: "",
      vm_id: null,
      job_id: Worlds.jobId(1),
      request: { vm_id: Worlds.vmId(1), path },
      response: null
    })
    const known = {
      volume: "one",
      operation_id: row.id,
      job_id: Worlds.jobId(1),
      vm_id: Worlds.vmId(1),
      device_path: path
    }
    assert.deepStrictEqual(LogFields.ofOperation(row, "call"), { ...known, call: "create" })
    assert.deepStrictEqual(LogFields.ofOperation(row, "action", { volume_id: volume, message: "created" }), {
      ...known,
      action: "create",
      volume_id: volume
    })
  })
})
