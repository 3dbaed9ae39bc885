import type { Action, Guard, PlanItem } from "../schema/Action.ts"
import type { Operation } from "../schema/Operation.ts"

/**
 * What a line about an action says of it, under the names that the daemon before this one logged (`volume_id`, `vm_id`,
 * `device_path`, `operation_id` …), so that searches which worked there find their lines here.
 */
type LogFields = Readonly<Record<string, string>>

export const ofAction = ({ _tag, name, ...planned }: Action, operation_id: string): LogFields => ({
  volume: name,
  action: _tag,
  operation_id,
  ...searched(planned)
})

export const ofGuard = ({ name, volume_id }: PlanItem, { _tag, export_name }: Guard): LogFields => ({
  volume: name,
  guard: _tag,
  ...searched({ volume_id, export_name })
})

/** `kind`: what its type is shown as; `call` for the row of a version 1 call. `learned`: an answer newer than its row's. */
export const ofOperation = (
  { id, job_id, name, request, response, type, vm_id, volume_id }: Operation,
  kind: "action" | "call",
  learned: Readonly<Record<string, unknown>> | null = null
): LogFields => ({
  volume: name,
  [kind]: type,
  operation_id: id,
  ...searched(request),
  ...searched({ ...response, vm_id, volume_id, job_id }),
  ...searched(learned ?? {})
})

const searched = (record: Readonly<Record<string, unknown>>): LogFields =>
  Object.fromEntries(
    Object.entries({
      volume_id: record["volume_id"],
      vm_id: record["vm_id"],
      job_id: record["job_id"],
      export_name: record["export_name"],
      device_path: record["device_path"] ?? record["path"]
    }).flatMap(([key, value]) => (typeof value === "string" && value !== "" ? [[key, value]] : []))
  )
