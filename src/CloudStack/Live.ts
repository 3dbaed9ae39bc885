import type * as HttpClient from "@effect/platform/HttpClient"
import { Clock, Context, Effect, Layer } from "effect"
import { CloudStack, CloudStackRead, type Job, type Listing } from "../../reconciler/CloudStack.ts"
import { Gate } from "../../reconciler/Gate.ts"
import * as Wire from "../../schema/CloudStack.ts"
import { type CloudStackRefused, CloudStackUnavailable } from "../../schema/Errors.ts"
import type { JobId } from "../../schema/Ids.ts"
import type { CloudVolume } from "../../schema/Inventory.ts"
import type { Settings } from "../../schema/Settings.ts"
import * as ByIds from "./ByIds.ts"
import * as Client from "./Client.ts"
import { Credentials } from "./Credentials.ts"
import * as CustomIds from "./CustomIds.ts"
import * as Events from "./Events.ts"
import * as Listings from "./Listing.ts"
import * as Mutations from "./Mutations.ts"
import * as Transport from "./Transport.ts"

/** CloudStack, read only: nothing in here can name a command that changes anything. */
export const layerRead = (
  config: Settings["cloudstack"]
): Layer.Layer<CloudStackRead, never, HttpClient.HttpClient | Credentials> =>
  Layer.effect(
    CloudStackRead,
    Effect.gen(function* () {
      const transport = yield* Transport.make(config)
      return yield* makeReads(transport, yield* customIdsOf(transport))
    })
  )

/** CloudStack, both ports on one set of connections. */
export const layer = (
  config: Settings["cloudstack"]
): Layer.Layer<CloudStackRead | CloudStack, never, HttpClient.HttpClient | Credentials | Gate> =>
  Layer.effectContext(
    Effect.gen(function* () {
      const transport = yield* Transport.make(config)
      const customIds = yield* customIdsOf(transport)
      const reads = yield* makeReads(transport, customIds)
      const mutate = yield* Client.mutator(transport, yield* Gate)
      return Context.make(CloudStackRead, reads).pipe(
        Context.add(CloudStack, yield* Mutations.make(mutate, reads, customIds, config.project_id))
      )
    })
  )

/** A pass waits for it, so it is tried once. */
const customIdsOf = (transport: Transport.Transport) =>
  Effect.flatMap(Credentials, (credentials) => CustomIds.make(Client.reader(transport, 1), credentials))

const makeReads = (
  transport: Transport.Transport,
  customIds: CustomIds.CustomIds
): Effect.Effect<Context.Tag.Service<CloudStackRead>, never, Credentials> =>
  Effect.gen(function* () {
    const credentials = yield* Credentials
    const read = Client.reader(transport)
    const list = yield* Listings.make(read)
    const byIds = ByIds.make(read)
    const { project_id } = transport.config
    // Without listall an administrator sees only what is his own.
    const scope = { listall: "true", ...(project_id === null ? {} : { projectid: project_id }) }
    const events = yield* Events.make(Client.reader(transport, 1), scope)
    const volumes = { command: "listVolumes", element: "volume", decode: Wire.volumes, parameters: scope } as const
    const machines = {
      command: "listVirtualMachines",
      element: "virtualmachine",
      decode: Wire.virtualMachines,
      parameters: { ...scope, details: "min" }
    } as const

    return {
      place: Effect.zipWith(credentials.current, credentials.problem, (known, problem) => {
        if (known === null) return null
        const { credential, zone, domain, source } = known
        return { api_url: credential.api_url, zone, domain, source, problem }
      }),
      volumes: Effect.map(list(volumes), toListing).pipe(Effect.withSpan("CloudStack.volumes")),
      volumesById: Effect.fn("CloudStack.volumesById")(function* (ids) {
        const started_at = yield* Clock.currentTimeMillis
        return { started_at, ...(yield* byIds(volumes, ids)) }
      }),
      volumesByName: Effect.fn("CloudStack.volumesByName")(function* (name) {
        const listed = yield* list({ ...volumes, parameters: { ...scope, name } })
        return bearing(name, toListing(listed))
      }),
      virtualMachines: Effect.fn("CloudStack.virtualMachines")(function* (ids) {
        const { found, absent, unresolved } = yield* byIds(machines, ids)
        return { found, absent: [...absent, ...unresolved] }
      }),
      job: Effect.fn("CloudStack.job")((id: JobId) => readJob(read, id)),
      offerings: readable(
        list({
          command: "listDiskOfferings",
          element: "diskoffering",
          decode: Wire.offerings,
          parameters: { listall: "true" }
        })
      ),
      zones: readable(list({ command: "listZones", element: "zone", decode: Wire.zones, parameters: {} })),
      capabilities: Effect.mapError(read("listCapabilities", {}, Wire.capabilities), unavailable),
      customIds: customIds.allowed,
      events
    }
  })

const toListing = ({ started_at, rows, ambiguous, complete, note, bad }: Listings.Listed<CloudVolume>): Listing => ({
  started_at,
  volumes: rows,
  ambiguous: [...ambiguous],
  complete: complete && bad.length === 0,
  note: [note, Listings.naming(bad)].filter((part) => part !== null).join("; ") || null
})

/** The server compares by its database's collation, which is blind to case. */
const bearing = (name: string, listing: Listing): Listing => ({
  ...listing,
  volumes: listing.volumes.filter((volume) => volume.name === Wire.harmless(name))
})

/** Offerings and zones that cannot be read cannot be chosen; the others can. */
const readable = <A extends Listings.Row>(listed: Effect.Effect<Listings.Listed<A>, CloudStackUnavailable>) =>
  listed.pipe(
    Effect.tap(({ bad }) => {
      const problem = Listings.naming(bad)
      return problem === null ? Effect.void : Effect.logWarning("CloudStack row left out", problem)
    }),
    Effect.map(({ rows }) => rows)
  )

const unavailable = (error: CloudStackUnavailable | CloudStackRefused) =>
  error._tag === "CloudStackRefused" ? Listings.unreadBy(error) : error

const readJob = (read: Client.Read, id: JobId): Effect.Effect<Job, CloudStackUnavailable> =>
  read("queryAsyncJobResult", { jobid: id }, Wire.job).pipe(
    Effect.flatMap((answer) =>
      answer.id !== null && answer.id !== id ? Effect.fail(ofAnotherJob(id)) : Effect.succeed({ ...answer, id })
    ),
    // A finished job is forgotten after a day, any job by a purge of the database: then no answer will ever tell.
    Effect.catchTag("CloudStackRefused", (refused) =>
      refused.code === Wire.ApiErrorCode.PARAM_ERROR && refused.text.includes(id)
        ? Effect.succeed<Job>({ id, status: "unknown", code: refused.code, text: refused.text })
        : Effect.fail(Listings.unreadBy(refused))
    )
  )

const ofAnotherJob = (id: JobId) =>
  new CloudStackUnavailable({
    command: "queryAsyncJobResult",
    kind: "undecodable",
    detail: `the answer is of another job than ${id}`
  })
