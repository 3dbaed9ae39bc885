/**
 * What the package exports. `connect` gives promises; `make` the same as effects. `waitForCompletion` follows an
 * operation to its end, and `classify`, `isRetryable` and `suggestion` say what an error asks for.
 */
import * as Client from "./Client.ts"
import type { Options } from "./Exchange.ts"
import { promised, type Promised } from "./Promised.ts"

export {
  ApiError,
  type Class,
  type Classified,
  classify,
  ConditionTimedOut,
  type Failure,
  isRetryable,
  OperationCancelled,
  OperationFailed,
  OperationTimedOut,
  ServerUnreachable,
  suggestion
} from "./Failure.ts"
export { type Condition, timeoutsMs } from "./Completion.ts"
export type {
  ApplyRequest,
  Client,
  ConditionalWrite,
  EventFilter,
  ListFilter,
  OperationFilter,
  Page,
  Paged,
  Removal,
  SpecInput,
  SpecPatch,
  Wait,
  WriteOptions
} from "./Client.ts"
export type { Options, Retry } from "./Exchange.ts"
export type {
  Applied,
  Approved,
  Drift,
  DryRun,
  Event,
  EventList,
  ExportAnswer,
  Exports,
  MaintenanceAnswer,
  OperationAnswer,
  PlanAnswer,
  Volume,
  VolumeList,
  V1Device,
  V1DeviceMapping,
  V1Volume
} from "../../schema/Api.ts"
export { make } from "./Client.ts"

/** The client for callers without Effect. */
export type Connection = Promised<Client.Client>

/** No connection is made before the first call. */
export const connect = (options: Options): Connection => promised(Client.make(options))
