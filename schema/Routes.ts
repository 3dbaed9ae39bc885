import * as HttpApi from "@effect/platform/HttpApi"
import * as HttpApiEndpoint from "@effect/platform/HttpApiEndpoint"
import * as HttpApiGroup from "@effect/platform/HttpApiGroup"
import * as HttpApiSchema from "@effect/platform/HttpApiSchema"
import * as OpenApi from "@effect/platform/OpenApi"
import { Option, Schema, SchemaAST } from "effect"
import {
  SpecBody,
  Applied,
  ApplyBody,
  ApproveBody,
  Approved,
  Drift,
  DryRun,
  ErrorBody,
  EventList,
  ExportAnswer,
  Exports,
  Health,
  MaintenanceAnswer,
  MaintenanceBody,
  OfferingList,
  OperationAnswer,
  PlanAnswer,
  Probe,
  RetryBody,
  SyncAnswer,
  UnmanagedList,
  V1AttachBody,
  V1CleanupBody,
  V1CreateBody,
  V1Device,
  V1DeviceMapping,
  V1ExportBody,
  V1Metrics,
  V1Volume,
  Volume,
  VolumeList
} from "./Api.ts"
import { Name } from "./Ids.ts"

const ByName = Schema.Struct({ name: Name })
const ById = Schema.Struct({ id: Schema.String })
const optionalText = Schema.optional(Schema.String)
const WriteHeaders = {
  /** A repeat under the same key gives the first answer again and does nothing; another request under it is refused. */
  "idempotency-key": optionalText,
  /** Who asks, for the history; 1-64 of `[A-Za-z0-9._@-]`. */
  "volumed-actor": optionalText
}
const Written = Schema.Struct(WriteHeaders)
const Conditional = Schema.Struct({ "if-match": optionalText, "if-none-match": optionalText, ...WriteHeaders })
const DryRunParams = Schema.Struct({ dry_run: optionalText })
/** `wait=Ready:True` and `timeout=60s`: answer when the condition holds, at the latest after the time. */
const WaitParams = { wait: optionalText, timeout: optionalText }
const PageParams = { limit: optionalText, cursor: optionalText }

/** What each endpoint is for, in one line. Its key is the endpoint's name here, in the server and in the document. */
const summaries = {
  health: "State in one word for each part; 200 exactly when a version 1 write would be accepted",
  v1Health: "As /health, where version 1 clients look for it",
  livez: "The process answers and its loop runs",
  readyz: "The database answers and the world was looked at once",
  openapi: "This document",
  docs: "A page to read this document and to try it",
  metrics: "Metrics as Prometheus text",
  v1ListVolumes: "Volumes as CloudStack and the guest show them",
  v1CreateVolume: "Create a volume",
  v1GetVolume: "One volume by its CloudStack id",
  v1DeleteVolume: "Unexport, detach and delete a volume, without a grace time",
  v1AttachVolume: "Attach a volume to a VM; on the appliance it is exported too",
  v1AttachRoot: "Attach a volume to a stopped VM as its root disk",
  v1DetachVolume: "Detach a volume from the VM it is on",
  v1VolumeDevice: "The device of a volume on the appliance",
  v1ListDevices: "The disks of the appliance, mapped to volumes or not",
  v1DeviceVolume: "The volume behind a device: by /dev path, by-id path or bare name, URL-encoded",
  v1VmVolumes: "The volumes on a VM, its root disk included",
  v1CleanupTestFailover: "Bring a volume back from a test VM to the appliance",
  v1ForceSync: "Run a full pass now and answer when it has run",
  v1Metrics: "Counts of operations and mappings as version 1 shows them",
  listVolumes: "Declarations with their status; or, with unmanaged=true, attached volumes that nobody declared",
  getVolume: "One declaration with its status; held back until a condition holds with wait and timeout",
  putVolume: "Declare a volume, or replace what is declared",
  patchVolume: "Change some members of what is declared (JSON merge patch)",
  deleteVolume: "Declare a volume removed, by its deletion policy or the one given",
  undeleteVolume: "Take a removal back, until its first irreversible call",
  acceptVolume: "Make what is observed the wish",
  retryVolume: "End the back-off of a volume, and with end_clients the NBD clients that keep it from leaving",
  apply: "Declare many volumes at once, all or none",
  plan: "What would be done now for what is declared, and why",
  planCandidate: "What would be done for a candidate document",
  approve: "Let the held actions with this digest run",
  drift: "Gaps that no declaration caused",
  getMaintenance: "Whether a maintenance is going on, and what waits for approval since the last one",
  beginMaintenance: "Observe and plan, act on nothing",
  endMaintenance: "End a maintenance; what is destructive and pending then waits for approval",
  offerings: "The disk offerings and zones there are",
  listEvents: "What happened, oldest first",
  watch: "What happens, as server-sent events; resumes without a gap after an event id",
  listOperations: "Operations, newest first",
  getOperation: "One operation; held back until it has ended with wait",
  cancelOperation: "Cancel an operation that was not sent yet",
  listExports: "NBD exports: wanted, configured and served",
  v1CreateExport: "Export a volume over NBD",
  v1GetExport: "The export of a volume",
  v1DeleteExport: "Stop exporting a volume"
} as const

export type EndpointName = keyof typeof summaries
const isEndpoint = (name: string): name is EndpointName => Object.hasOwn(summaries, name)

/** What every route may answer: access, limits, and what went wrong in here. */
const everywhere = [400, 401, 403, 404, 405, 408, 417, 429, 431, 500, 503] as const
/** What the health routes may answer besides, which want no token; 403 to a page of another origin. */
const open = [400, 403, 405, 408, 417, 429, 431, 500, 503] as const
/** What a route that takes a body may answer besides. */
const reading = [...everywhere, 413, 415] as const
/** What a write may answer besides, preconditions and conflicts included. */
const writing = [...reading, 409, 412, 422] as const

/** The schema as an answer of this status. Annotating takes a schema's name away, so that it is given again. */
const under = <A, I>(status: number, schema: Schema.Schema<A, I>): Schema.Schema<A, I> => {
  const named = Option.match(SchemaAST.getIdentifierAnnotation(schema.ast), {
    onNone: () => ({}),
    onSome: (identifier) => ({ identifier })
  })
  return schema.annotations(HttpApiSchema.annotations<A>({ ...named, status }))
}

/** The endpoint with its summary, and with the error body documented under each of these statuses. */
const failing = <E extends HttpApiEndpoint.HttpApiEndpoint.Any>(endpoint: E, codes: ReadonlyArray<number>): E => {
  const plain = endpoint as unknown as HttpApiEndpoint.HttpApiEndpoint.AnyWithProps
  const named = isEndpoint(plain.name)
    ? plain.annotate(OpenApi.Identifier, plain.name).annotate(OpenApi.Summary, summaries[plain.name])
    : plain
  return codes.reduce<HttpApiEndpoint.HttpApiEndpoint.AnyWithProps>(
    (documented, status) => documented.addError(under(status, ErrorBody)),
    named
  ) as unknown as E
}

const health = HttpApiGroup.make("health")
  .add(failing(HttpApiEndpoint.get("health", "/health").addSuccess(Health).addError(under(503, Health)), open))
  .add(failing(HttpApiEndpoint.get("v1Health", "/api/v1/health").addSuccess(Health).addError(under(503, Health)), open))
  .add(failing(HttpApiEndpoint.get("livez", "/livez").addSuccess(Probe).addError(under(503, Probe)), open))
  .add(failing(HttpApiEndpoint.get("readyz", "/readyz").addSuccess(Probe).addError(under(503, Probe)), open))

const description = HttpApiGroup.make("description")
  .add(
    failing(
      HttpApiEndpoint.get("openapi", "/openapi.json").addSuccess(
        Schema.Record({ key: Schema.String, value: Schema.Unknown })
      ),
      everywhere
    )
  )
  .add(
    failing(
      HttpApiEndpoint.get("docs", "/docs").addSuccess(
        Schema.String.pipe(HttpApiSchema.withEncoding({ kind: "Text", contentType: "text/html" }))
      ),
      everywhere
    )
  )
  .add(
    failing(
      HttpApiEndpoint.get("metrics", "/metrics").addSuccess(HttpApiSchema.Text({ contentType: "text/plain" })),
      everywhere
    )
  )

const v1Volumes = HttpApiGroup.make("v1 volumes")
  .add(
    failing(
      HttpApiEndpoint.get("v1ListVolumes", "/api/v1/volumes")
        .setUrlParams(Schema.Struct({ ...PageParams, name: optionalText, vm_id: optionalText }))
        .addSuccess(Schema.Array(V1Volume)),
      [...everywhere, 410]
    )
  )
  .add(
    failing(
      HttpApiEndpoint.post("v1CreateVolume", "/api/v1/volumes")
        .setHeaders(Written)
        .setPayload(V1CreateBody)
        .addSuccess(under(201, OperationAnswer)),
      writing
    )
  )
  .add(
    failing(HttpApiEndpoint.get("v1GetVolume", "/api/v1/volumes/:id").setPath(ById).addSuccess(V1Volume), everywhere)
  )
  .add(
    failing(
      HttpApiEndpoint.del("v1DeleteVolume", "/api/v1/volumes/:id")
        .setPath(ById)
        .setHeaders(Written)
        .addSuccess(under(201, OperationAnswer)),
      writing
    )
  )
  .add(
    failing(
      HttpApiEndpoint.post("v1AttachVolume", "/api/v1/volumes/:id/attach")
        .setPath(ById)
        .setHeaders(Written)
        .setPayload(V1AttachBody)
        .addSuccess(under(201, OperationAnswer)),
      writing
    )
  )
  .add(
    failing(
      HttpApiEndpoint.post("v1AttachRoot", "/api/v1/volumes/:id/attach-root")
        .setPath(ById)
        .setHeaders(Written)
        .setPayload(V1AttachBody)
        .addSuccess(under(201, OperationAnswer)),
      writing
    )
  )
  .add(
    failing(
      HttpApiEndpoint.post("v1DetachVolume", "/api/v1/volumes/:id/detach")
        .setPath(ById)
        .setHeaders(Written)
        .addSuccess(under(201, OperationAnswer)),
      writing
    )
  )
  .add(
    failing(
      HttpApiEndpoint.get("v1VolumeDevice", "/api/v1/volumes/:id/device").setPath(ById).addSuccess(V1DeviceMapping),
      everywhere
    )
  )
  .add(failing(HttpApiEndpoint.get("v1ListDevices", "/api/v1/devices").addSuccess(Schema.Array(V1Device)), everywhere))
  .add(
    failing(
      HttpApiEndpoint.get("v1DeviceVolume", "/api/v1/devices/:path/volume")
        .setPath(Schema.Struct({ path: Schema.String }))
        .addSuccess(V1Volume),
      everywhere
    )
  )
  .add(
    failing(
      HttpApiEndpoint.get("v1VmVolumes", "/api/v1/vms/:id/volumes").setPath(ById).addSuccess(Schema.Array(V1Volume)),
      everywhere
    )
  )
  .add(
    failing(
      HttpApiEndpoint.post("v1CleanupTestFailover", "/api/v1/cleanup/test-failover")
        .setHeaders(Written)
        .setPayload(V1CleanupBody)
        .addSuccess(under(201, OperationAnswer)),
      [...writing, 501]
    )
  )
  .add(
    failing(
      HttpApiEndpoint.post("v1ForceSync", "/api/v1/admin/force-sync").setHeaders(Written).addSuccess(SyncAnswer),
      writing
    )
  )
  .add(failing(HttpApiEndpoint.get("v1Metrics", "/api/v1/metrics").addSuccess(V1Metrics), everywhere))

const volumes = HttpApiGroup.make("volumes")
  .add(
    failing(
      HttpApiEndpoint.get("listVolumes", "/api/v2/volumes")
        .setUrlParams(
          // `metadata.<key>=<value>` filters too, which a schema of fixed keys cannot say.
          Schema.Struct({
            ...PageParams,
            condition: optionalText,
            volume_id: optionalText,
            attached_to: optionalText,
            set: optionalText,
            paused: optionalText,
            removed: optionalText,
            unmanaged: optionalText
          })
        )
        .addSuccess(Schema.Union(VolumeList, UnmanagedList)),
      [...everywhere, 410]
    )
  )
  .add(
    failing(
      HttpApiEndpoint.get("getVolume", "/api/v2/volumes/:name")
        .setPath(ByName)
        .setUrlParams(Schema.Struct({ ...WaitParams, removed: optionalText }))
        .addSuccess(Volume),
      everywhere
    )
  )
  .add(
    failing(
      HttpApiEndpoint.put("putVolume", "/api/v2/volumes/:name")
        .setPath(ByName)
        .setUrlParams(DryRunParams)
        .setHeaders(Conditional)
        .setPayload(SpecBody)
        .addSuccess(Volume)
        .addSuccess(DryRun)
        .addSuccess(under(201, Volume)),
      writing
    )
  )
  .add(
    failing(
      HttpApiEndpoint.patch("patchVolume", "/api/v2/volumes/:name")
        .setPath(ByName)
        .setUrlParams(DryRunParams)
        .setHeaders(Conditional)
        .setPayload(SpecBody)
        .addSuccess(Volume)
        .addSuccess(DryRun),
      writing
    )
  )
  .add(
    failing(
      HttpApiEndpoint.del("deleteVolume", "/api/v2/volumes/:name")
        .setPath(ByName)
        .setUrlParams(Schema.Struct({ ...WaitParams, policy: optionalText, dry_run: optionalText }))
        .setHeaders(Conditional)
        .addSuccess(DryRun)
        .addSuccess(under(202, Volume)),
      writing
    )
  )
  .add(
    failing(
      HttpApiEndpoint.post("undeleteVolume", "/api/v2/volumes/:name/undelete")
        .setPath(ByName)
        .setUrlParams(DryRunParams)
        .setHeaders(Conditional)
        .addSuccess(Volume)
        .addSuccess(DryRun),
      writing
    )
  )
  .add(
    failing(
      HttpApiEndpoint.post("acceptVolume", "/api/v2/volumes/:name/accept")
        .setPath(ByName)
        .setUrlParams(DryRunParams)
        .setHeaders(Conditional)
        .addSuccess(Volume)
        .addSuccess(DryRun),
      writing
    )
  )
  .add(
    failing(
      HttpApiEndpoint.post("retryVolume", "/api/v2/volumes/:name/retry")
        .setPath(ByName)
        .setUrlParams(DryRunParams)
        .setHeaders(Conditional)
        .setPayload(RetryBody)
        .addSuccess(Volume)
        .addSuccess(DryRun),
      writing
    )
  )
  .add(
    failing(
      HttpApiEndpoint.post("apply", "/api/v2/apply")
        .setUrlParams(DryRunParams)
        .setHeaders(Written)
        .setPayload(ApplyBody)
        .addSuccess(Applied)
        .addSuccess(DryRun),
      writing
    )
  )

const plan = HttpApiGroup.make("plan")
  .add(failing(HttpApiEndpoint.get("plan", "/api/v2/plan").addSuccess(PlanAnswer), everywhere))
  .add(failing(HttpApiEndpoint.post("planCandidate", "/api/v2/plan").setPayload(ApplyBody).addSuccess(DryRun), writing))
  .add(
    failing(
      HttpApiEndpoint.post("approve", "/api/v2/plan/approve")
        .setUrlParams(DryRunParams)
        .setHeaders(Written)
        .setPayload(ApproveBody)
        .addSuccess(Approved)
        .addSuccess(DryRun),
      writing
    )
  )
  .add(failing(HttpApiEndpoint.get("drift", "/api/v2/drift").addSuccess(Drift), everywhere))
  .add(failing(HttpApiEndpoint.get("getMaintenance", "/api/v2/maintenance").addSuccess(MaintenanceAnswer), everywhere))
  .add(
    failing(
      HttpApiEndpoint.put("beginMaintenance", "/api/v2/maintenance")
        .setUrlParams(DryRunParams)
        .setHeaders(Written)
        .setPayload(MaintenanceBody)
        .addSuccess(MaintenanceAnswer)
        .addSuccess(DryRun),
      writing
    )
  )
  .add(
    failing(
      HttpApiEndpoint.del("endMaintenance", "/api/v2/maintenance")
        .setUrlParams(DryRunParams)
        .setHeaders(Written)
        .addSuccess(MaintenanceAnswer)
        .addSuccess(DryRun),
      writing
    )
  )
  .add(failing(HttpApiEndpoint.get("offerings", "/api/v2/offerings").addSuccess(OfferingList), everywhere))

const events = HttpApiGroup.make("events")
  .add(
    failing(
      HttpApiEndpoint.get("listEvents", "/api/v2/events")
        .setUrlParams(
          Schema.Struct({
            ...PageParams,
            after: optionalText,
            since: optionalText,
            until: optionalText,
            name: optionalText,
            actor: optionalText,
            kind: optionalText
          })
        )
        .addSuccess(EventList),
      [...everywhere, 410]
    )
  )
  .add(
    failing(
      HttpApiEndpoint.get("watch", "/api/v2/watch")
        .setUrlParams(Schema.Struct({ after: optionalText, name: optionalText, kind: optionalText }))
        .setHeaders(Schema.Struct({ "last-event-id": optionalText }))
        .addSuccess(HttpApiSchema.Text({ contentType: "text/event-stream" })),
      [...everywhere, 410]
    )
  )

const operations = HttpApiGroup.make("operations")
  .add(
    failing(
      HttpApiEndpoint.get("listOperations", "/api/v1/operations")
        .setUrlParams(
          Schema.Struct({
            ...PageParams,
            status: optionalText,
            type: optionalText,
            volume_id: optionalText,
            vm_id: optionalText,
            name: optionalText,
            parent_id: optionalText,
            since: optionalText
          })
        )
        .addSuccess(Schema.Array(OperationAnswer)),
      [...everywhere, 410]
    )
  )
  .add(
    failing(
      HttpApiEndpoint.get("getOperation", "/api/v1/operations/:id")
        .setPath(ById)
        .setUrlParams(Schema.Struct({ wait: optionalText }))
        .addSuccess(OperationAnswer),
      everywhere
    )
  )
  .add(
    failing(
      HttpApiEndpoint.post("cancelOperation", "/api/v1/operations/:id/cancel")
        .setPath(ById)
        .setHeaders(Written)
        .addSuccess(OperationAnswer),
      writing
    )
  )

const exports_ = HttpApiGroup.make("exports")
  .add(failing(HttpApiEndpoint.get("listExports", "/api/v1/exports").addSuccess(Exports), everywhere))
  .add(
    failing(
      HttpApiEndpoint.post("v1CreateExport", "/api/v1/exports")
        .setHeaders(Written)
        .setPayload(V1ExportBody)
        .addSuccess(under(201, OperationAnswer)),
      writing
    )
  )
  .add(
    failing(
      HttpApiEndpoint.get("v1GetExport", "/api/v1/exports/:id").setPath(ById).addSuccess(ExportAnswer),
      everywhere
    )
  )
  .add(
    failing(
      HttpApiEndpoint.del("v1DeleteExport", "/api/v1/exports/:id")
        .setPath(ById)
        .setHeaders(Written)
        .addSuccess(OperationAnswer),
      writing
    )
  )

/** The contract. The server registers its routes from it, so that what is documented is what is there. */
export const Api = HttpApi.make("volumed")
  .add(health)
  .add(v1Volumes)
  .add(operations)
  .add(exports_)
  .add(volumes)
  .add(plan)
  .add(events)
  .add(description)
