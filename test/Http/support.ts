import { Deferred, Effect, Layer, Logger, LogLevel, Option, PubSub, Queue, Stream } from "effect"
import { type CloudPlace, CloudStackRead } from "../../reconciler/CloudStack.ts"
import { Gate } from "../../reconciler/Gate.ts"
import { Leadership, type Role } from "../../reconciler/Leadership.ts"
import { type PassSummary, type Planned, Reconciler, type View } from "../../reconciler/Reconciler.ts"
import * as Views from "../../reconciler/View.ts"
import * as Declare from "../../reconciler/Declare.ts"
import {
  type Alongside,
  type Approval,
  type DeviceMappingRow,
  type EventFilter,
  type EventRow,
  type KeyedAnswer,
  type Maintenance,
  type NewCall,
  type Statistics,
  Store,
  type Write
} from "../../reconciler/Store.ts"
import type { Held, Plan, PlanItem, Withheld } from "../../schema/Action.ts"
import type { Status } from "../../schema/Condition.ts"
import { type Declaration, unbound } from "../../schema/Declaration.ts"
import { CloudStackUnavailable, GenerationConflict, PreconditionLost, StoreUnavailable } from "../../schema/Errors.ts"
import { OfferingId, type Uid, VmId, ZoneId } from "../../schema/Ids.ts"
import { type Inventory, known } from "../../schema/Inventory.ts"
import { hasEnded, isCall, isUnresolved, type Operation } from "../../schema/Operation.ts"
import { limits } from "../../schema/Settings.ts"
import * as Client from "../../src/Client/Client.ts"
import * as Server from "../../src/Http/Server.ts"

export const appliance = VmId.make("8a4400e5-c92a-4bc4-8bff-4b6b0b6a018c")
export const otherVm = VmId.make("d1e7a9f0-6f0e-4f5e-9a55-0b6f0b1f7a01")
export const offering = OfferingId.make("c813c642-d946-49e1-9289-c616dd70206a")
export const fixedOffering = OfferingId.make("11111111-d946-49e1-9289-c616dd70206a")
export const zone = ZoneId.make("057e86db-c726-4d8c-ab1f-75c5f55d1881")
export const GIB = 1024 ** 3

/** The world behind the ports: tests read it to see what a request did, and write it to see what it then does. */
export interface World {
  declarations: ReadonlyArray<Declaration>
  removed: ReadonlyArray<Declaration>
  operations: ReadonlyArray<Operation>
  events: ReadonlyArray<EventRow>
  approvals: ReadonlyArray<Approval>
  maintenance: Maintenance | null
  withheld: ReadonlyArray<Withheld>
  answers: ReadonlyArray<KeyedAnswer>
  mappings: ReadonlyArray<DeviceMappingRow>
  /** What a full pass does when somebody asks for one. */
  onSync: Effect.Effect<void>
  /** Readings of the history. */
  eventReads: number
  poked: ReadonlyArray<Uid>
  consented: ReadonlyArray<{ readonly uid: Uid; readonly generation: number; readonly by: string }>
  ready: ReadonlySet<string>
  held: ReadonlyArray<Held>
  drifting: ReadonlySet<string>
  inventory: Inventory | null
  databaseDown: boolean
  cloudDown: boolean
  place: CloudPlace | null
  /** Whether the database takes writes. */
  writable: boolean
  /** What is weak about the database. */
  weak: ReadonlyArray<string>
  cloudReads: number
  hold: string | null
  role: Role
  /** Writes that find somebody else was first. */
  losses: number
  /** Runs while a write is on its way to the database. */
  inWrite: Effect.Effect<void>
  /** Runs after a write is stored. */
  afterWrite: () => void
}

export const emptyInventory: Inventory = {
  appliance_vm_id: appliance,
  cloud: known(1_000, {
    scope: "all",
    volumes: [],
    ambiguous: [],
    absent: [],
    unresolved: [],
    vms: [],
    vms_absent: [],
    custom_ids: false
  }),
  guest: known(1_000, { devices: [], broken_links: [] }),
  nbd: known(1_000, {
    engine: "simulated",
    version: null,
    server: { state: "running", pid: 1, problem: null },
    host: "127.0.0.1",
    port: 10809,
    read_only_port: 10_809,
    sections: [],
    config_problem: null,
    narrowings: [],
    loaded: true,
    verifications: [],
    holders: []
  })
}

export const makeWorld = (): World => ({
  declarations: [],
  removed: [],
  operations: [],
  events: [],
  approvals: [],
  maintenance: null,
  withheld: [],
  answers: [],
  mappings: [],
  onSync: Effect.void,
  eventReads: 0,
  poked: [],
  consented: [],
  ready: new Set(),
  held: [],
  drifting: new Set(),
  inventory: emptyInventory,
  databaseDown: false,
  cloudDown: false,
  place: {
    api_url: "http://user:hunter2@127.0.0.1:8096/client/api?k=v",
    zone,
    domain: null,
    source: "the test",
    problem: null
  },
  writable: true,
  weak: [],
  cloudReads: 0,
  hold: null,
  role: { _tag: "Leading", term: 7, since: 0 },
  losses: 0,
  inWrite: Effect.void,
  afterWrite: () => {}
})

const down = new StoreUnavailable({ detail: "the secret place of the database is /srv/db", outcome_unknown: false })

const unused = Effect.die(new Error("the HTTP surface has no business with this method"))

/** Compare-and-swap as the port promises it: all or none, by generation, one living declaration a name. */
const write = (
  world: World,
  writes: ReadonlyArray<Write>,
  { calls = [], ends = [], answer }: Alongside
): Effect.Effect<ReadonlyArray<Declaration>, GenerationConflict | PreconditionLost> =>
  Effect.suspend((): Effect.Effect<ReadonlyArray<Declaration>, GenerationConflict | PreconditionLost> => {
    const lost = lostOf(world, writes, ends, answer)
    if (lost !== null) return Effect.fail(new PreconditionLost({ detail: lost }))
    for (const { name, expected_generation } of writes) {
      const found = world.declarations.find((declaration) => declaration.name === name)?.generation ?? null
      if (found !== expected_generation || world.losses > 0) {
        world.losses -= world.losses > 0 ? 1 : 0
        return Effect.fail(new GenerationConflict({ name, expected: expected_generation, found }))
      }
    }
    const stored = writes.map((one) => toDeclaration(world, one))
    const names = new Set(stored.map(({ name }) => name))
    world.declarations = [...world.declarations.filter(({ name }) => !names.has(name)), ...stored].toSorted((a, b) =>
      a.name < b.name ? -1 : 1
    )
    world.operations = [
      ...calls.map(toOperation),
      ...world.operations.map((one) => ({ ...one, ...ends.find(({ id }) => id === one.id)?.advance }))
    ]
    if (answer !== undefined) world.answers = [...world.answers, answer]
    for (const { kind, name, uid, actor } of writes) tell(world, { kind, name, uid, actor })
    world.afterWrite()
    return Effect.succeed(stored)
  })

const lostOf = (
  world: World,
  writes: ReadonlyArray<Write>,
  ends: NonNullable<Alongside["ends"]>,
  answer: KeyedAnswer | undefined
): string | null => {
  if (world.answers.some(({ key }) => key === answer?.key)) return "this Idempotency-Key was answered in the meantime"
  const undeleted = writes.filter(({ kind }) => kind === "undeleted").map(({ uid }) => uid)
  const sent = world.operations.some((one) => undeleted.includes(one.uid) && Declare.isIrreversible(one))
  if (sent) return "its volume began to be deleted in this moment"
  const ended = world.operations.some((one) => hasEnded(one) && ends.some(({ id }) => id === one.id))
  return ended ? "the operation has ended" : null
}

/** As the daemon tells of what happened. */
export const tell = (world: World, event: Partial<EventRow> & Pick<EventRow, "kind">) => {
  const id = (world.events.at(-1)?.id ?? 0) + 1
  const blank = { at: new Date().toISOString(), name: null, uid: null, actor: null, operation_id: null, message: "" }
  world.events = [...world.events, { id, ...blank, ...event }]
}

const toOperation = (call: NewCall): Operation => ({
  ...call,
  status: "pending",
  response: null,
  error: null,
  created_at: new Date().toISOString(),
  updated_at: new Date().toISOString(),
  completed_at: null,
  cause: "api",
  phase: "intended",
  job_id: null,
  attempts: 1,
  parent_id: null,
  destructive: false,
  submitted_at: null,
  expires_at: null
})

const toDeclaration = (
  world: World,
  { name, uid, generation, set, spec, managers, deletion, binding }: Write
): Declaration => {
  const before = world.declarations.find((declaration) => declaration.uid === uid)
  const at = new Date().toISOString()
  return {
    name,
    uid,
    generation,
    set,
    spec,
    managers,
    deletion,
    created_at: before?.created_at ?? at,
    updated_at: at,
    removed_at: null,
    binding: binding === undefined ? (before?.binding ?? unbound) : { ...(before?.binding ?? unbound), ...binding }
  }
}

const store = (world: World) => {
  const up = <A, E>(effect: Effect.Effect<A, E>): Effect.Effect<A, E | StoreUnavailable> =>
    Effect.suspend((): Effect.Effect<A, E | StoreUnavailable> => (world.databaseDown ? Effect.fail(down) : effect))
  return Store.of({
    declarations: up(Effect.sync(() => world.declarations)),
    declaration: (name) =>
      up(Effect.sync(() => Option.fromNullable(world.declarations.find((declaration) => declaration.name === name)))),
    removedSince: () => up(Effect.sync(() => world.removed)),
    write: (writes, alongside = {}) =>
      up(
        Effect.andThen(
          Effect.suspend(() => world.inWrite),
          write(world, writes, alongside)
        )
      ),
    operation: (id) => up(Effect.sync(() => Option.fromNullable(world.operations.find((one) => one.id === id)))),
    operations: ({ uid, type, status, name, parent_id, volume_id, vm_id, since, limit = 100, cursor }) =>
      up(
        Effect.sync(() => {
          const matching = world.operations.filter(
            (one) =>
              (uid === undefined || one.uid === uid) &&
              (type === undefined || one.type === type) &&
              (status === undefined || one.status === status) &&
              (name === undefined || one.name === name) &&
              (parent_id === undefined || one.parent_id === parent_id) &&
              (volume_id === undefined || one.volume_id === volume_id) &&
              (vm_id === undefined || one.vm_id === vm_id) &&
              (since === undefined || Date.parse(one.created_at) >= Date.parse(since))
          )
          const from = cursor === undefined ? 0 : Number(cursor)
          const next = from + limit < matching.length ? String(from + limit) : null
          return { items: matching.slice(from, from + limit), next }
        })
      ),
    approve: (approvals, answer) =>
      up(
        Effect.sync(() => {
          world.approvals = approvals
          world.answers = [...world.answers, ...(answer === undefined ? [] : [answer])]
        })
      ),
    approvals: () => up(Effect.sync(() => world.approvals)),
    calls: up(Effect.sync(() => world.operations.filter((one) => isCall(one) && !hasEnded(one)))),
    unresolved: up(Effect.sync(() => world.operations.filter(isUnresolved))),
    maintenance: up(Effect.sync(() => world.maintenance)),
    setMaintenance: (maintenance, { answer, withheld = [] } = {}) =>
      up(
        Effect.sync(() => {
          world.answers = [...world.answers, ...(answer === undefined ? [] : [answer])]
          world.maintenance = maintenance
          world.withheld = [...world.withheld, ...withheld]
        })
      ),
    withheld: up(Effect.sync(() => world.withheld)),
    answered: (key) => up(Effect.sync(() => Option.fromNullable(world.answers.find((one) => one.key === key)))),
    remember: (answer) =>
      up(
        Effect.sync(() => {
          if (!world.answers.some(({ key }) => key === answer.key)) world.answers = [...world.answers, answer]
        })
      ),
    events: (filter) => up(Effect.sync(() => events(world, filter))),
    eventRange: up(Effect.sync(() => ({ oldest: world.events[0]?.id ?? 0, newest: world.events.at(-1)?.id ?? 0 }))),
    record: (event) => up(Effect.sync(() => tell(world, event))),
    deviceMappings: up(Effect.sync(() => world.mappings)),
    statistics: up(Effect.sync(() => statisticsOf(world.operations))),
    describe: up(
      Effect.sync(() => {
        const { weak, writable } = world
        return { engine: "memory", durable: weak.length === 0, writable, weak, schema_version: 1, undecodable: [] }
      })
    ),
    prune: () => unused,
    bind: () => unused,
    finishRemoval: () => unused,
    intend: () => unused,
    advance: () => unused,
    settle: () => unused,
    destructiveSince: () => unused,
    conditions: unused,
    saveConditions: () => unused,
    saveDeviceMappings: () => unused
  })
}

const events = (world: World, { after, limit, since, until, name, actor, kind }: EventFilter) => {
  world.eventReads += 1
  return world.events
    .filter(
      (one) =>
        one.id > after &&
        (since === undefined || Date.parse(one.at) >= Date.parse(since)) &&
        (until === undefined || Date.parse(one.at) < Date.parse(until)) &&
        (name === undefined || one.name === name) &&
        (actor === undefined || one.actor === actor) &&
        (kind === undefined || one.kind === kind)
    )
    .slice(0, limit)
}

const statisticsOf = (operations: ReadonlyArray<Operation>): Statistics => {
  const took = operations.flatMap(({ status, created_at, completed_at }) =>
    status === "completed" && completed_at !== null ? [Date.parse(completed_at) - Date.parse(created_at)] : []
  )
  const mean_ms = took.length === 0 ? null : took.reduce((sum, ms) => sum + ms, 0) / took.length
  return { counts: operations.map(({ type, status }) => ({ type, status, count: 1 })), mean_ms }
}

const statusOf = (world: World, { name, generation, binding, removed_at }: Declaration): Status => ({
  observed_generation: generation,
  volume_id: binding.volume_id,
  volume_name: null,
  volume_state: null,
  size: null,
  attached_to: null,
  by_id_path: null,
  kernel_path: null,
  export: null,
  conditions: (["Ready", "Removed"] as const).map((type) => ({
    type,
    status: (type === "Ready" ? world.ready.has(name) : removed_at !== null) ? "True" : "False",
    reason: "Observed",
    category: null,
    message: "",
    suggestion: null,
    observed_generation: generation,
    last_transition_time: "2026-03-01T12:00:00Z"
  })),
  next_actions: world.ready.has(name) ? [] : ["create"],
  last_operation_id: null,
  retry_at: null
})

const planOf = (world: World, declarations: ReadonlyArray<Declaration>, agreeing?: ReadonlySet<Uid>): Plan => ({
  at: 1_000,
  items: declarations.map((declaration): PlanItem => ({
    uid: declaration.uid,
    name: declaration.name,
    generation: declaration.generation,
    volume_id: declaration.binding.volume_id,
    next: null,
    chain: [],
    blocked: null,
    gap: world.drifting.has(declaration.name) ? "attachment" : null,
    drift: world.drifting.has(declaration.name),
    settled: world.ready.has(declaration.name),
    guard: agreeing?.has(declaration.uid)
      ? { _tag: "EndClients", export_name: declaration.name, device: "252:16", reason: "somebody agrees" }
      : null,
    removal_done: false
  })),
  held: world.held,
  digest: world.held.length === 0 ? null : `digest-of-${world.held.length}`,
  withheld: world.withheld,
  notices: []
})

const summary: PassSummary = {
  started_at: "2026-03-01T12:00:00.000Z",
  duration_ms: 12,
  declarations: 0,
  settled: 0,
  actions: 0,
  blocked: 0,
  operations_settled: 0,
  problems: []
}

const reconciler = (world: World, changes: PubSub.PubSub<void>) =>
  Reconciler.of({
    plan: (candidates, agreeing) =>
      Effect.suspend((): Effect.Effect<Planned, StoreUnavailable> => {
        if (world.databaseDown) return Effect.fail(down)
        const declarations = candidates ?? world.declarations
        return Effect.succeed({
          plan: planOf(world, declarations, agreeing),
          inventory: world.inventory ?? emptyInventory,
          declarations
        })
      }),
    view: Effect.sync((): View => ({ ...Views.blank, inventory: world.inventory })),
    status: (declaration) => Effect.sync(() => statusOf(world, declaration)),
    connections: Effect.sync(() => (world.inventory?.nbd._tag === "Known" ? world.inventory.nbd.value.holders : [])),
    sync: Effect.suspend(() => (world.databaseDown ? Effect.fail(down) : Effect.as(world.onSync, summary))),
    endClients: (uid, consent) => Effect.sync(() => void (world.consented = [...world.consented, { uid, ...consent }])),
    poke: (uids) => Effect.sync(() => void (world.poked = [...world.poked, ...uids])),
    changes: Stream.fromPubSub(changes)
  })

const cloud = (world: World) => {
  const read = <A>(value: A) =>
    Effect.suspend(() => {
      world.cloudReads += 1
      return world.cloudDown
        ? Effect.fail(new CloudStackUnavailable({ command: "list", kind: "transport", detail: "key sEcReT refused" }))
        : Effect.succeed(value)
    })
  return CloudStackRead.of({
    place: Effect.sync(() => world.place),
    offerings: read([
      { id: offering, name: "Custom OSSEA", customized: true, size_gib: 0 },
      { id: fixedOffering, name: "Fixed 20", customized: false, size_gib: 20 }
    ]),
    zones: read([{ id: zone, name: "zone-1" }]),
    volumes: unused,
    volumesById: () => unused,
    volumesByName: () => unused,
    virtualMachines: () => unused,
    job: () => unused,
    capabilities: unused,
    customIds: Effect.succeed(false),
    events: () => unused
  })
}

export interface Started {
  readonly world: World
  readonly url: string
  readonly addresses: ReadonlyArray<{ readonly host: string; readonly port: number; readonly url: string }>
  readonly client: Client.Client
  /** As the reconciler after a pass that changed what it shows. */
  readonly tick: Effect.Effect<void>
}

export const options: Server.Options = {
  limits,
  v1_attach_exports: true,
  listen: [{ host: "127.0.0.1", port: 0 }],
  token_file: null,
  tls: null,
  rate_limit: 200,
  declarations_max: 20_000,
  nbd: { backend: "simulated", host: "127.0.0.1", port: 10809 },
  sandbox: true,
  insecure: [],
  appliance_vm_id: appliance,
  default_disk_offering_id: offering,
  delete_grace_ms: 600_000,
  resync_idle_ms: 60_000,
  version: "0.0.0-test"
}

/** The ports of a world; `changes` are its passes. */
export const ports = (world: World, changes: PubSub.PubSub<void>) =>
  Layer.mergeAll(
    Layer.succeed(Store, store(world)),
    Layer.succeed(Reconciler, reconciler(world, changes)),
    Layer.succeed(CloudStackRead, cloud(world)),
    Layer.succeed(Gate, Gate.of({ check: Effect.void, reason: Effect.sync(() => world.hold) })),
    Layer.succeed(Leadership, {
      role: Effect.sync(() => world.role),
      roles: Stream.fromEffect(Effect.sync(() => world.role)),
      check: Effect.void
    })
  )

/** The real server on a free port, over ports that are values. Lives as long as the scope. */
export const start = (change: Partial<Server.Options> = {}, log = Logger.minimumLogLevel(LogLevel.None)) =>
  Effect.gen(function* () {
    const world = makeWorld()
    const changes = yield* PubSub.sliding<void>(16)
    const context = yield* Layer.build(
      Server.layer({ ...options, ...change }).pipe(Layer.provide(ports(world, changes)), Layer.provide(log))
    )
    const { addresses } = yield* Effect.provide(Server.Server, context)
    const url = addresses[0]?.url ?? ""
    const started: Started = {
      world,
      url,
      addresses,
      client: Client.make({ server: url, actor: "tester", retry: { tries: 1 } }),
      tick: Effect.asVoid(PubSub.publish(changes, undefined))
    }
    return started
  })

export interface Raw {
  readonly status: number
  readonly headers: Headers
  // The tests look at answers as any client would: as JSON of unknown shape.
  readonly body: Record<string, unknown>
}

/** A request as a foreign client sends it. */
export const send = (url: string, init: RequestInit & { readonly json?: unknown } = {}): Effect.Effect<Raw> =>
  Effect.promise(async (signal) => {
    const { json, ...rest } = init
    const response = await fetch(url, {
      signal,
      ...rest,
      ...(json === undefined
        ? {}
        : { body: JSON.stringify(json), headers: { "content-type": "application/json", ...rest.headers } })
    })
    const text = await response.text()
    return {
      status: response.status,
      headers: response.headers,
      body: (text === "" ? {} : JSON.parse(text)) as Record<string, unknown>
    }
  })

/** A latch that tests open by hand. */
export const latch = Effect.map(Deferred.make<void>(), (deferred) => ({
  wait: Deferred.await(deferred),
  open: Effect.asVoid(Deferred.succeed(deferred, undefined))
}))

/** One block of an event stream. */
export interface Block {
  readonly id: number | null
  readonly event: string | null
  /** What `data` says, as JSON. */
  readonly data: Record<string, unknown>
  readonly comment: string | null
}

const blockOf = (text: string): Block => {
  const field = (name: string) =>
    text
      .split("\n")
      .find((line) => line.startsWith(`${name}: `) || line.startsWith(`${name}:`))
      ?.slice(name.length + 1)
      .trim() ?? null
  return {
    id: field("id") === null ? null : Number(field("id")),
    event: field("event"),
    data: JSON.parse(field("data") ?? "{}") as Record<string, unknown>,
    comment: field("")
  }
}

/** An event stream as a client sees it, block by block; null is its end. It is left when the scope ends. */
export const follow = (url: string, headers: Record<string, string> = {}) =>
  Effect.gen(function* () {
    const blocks = yield* Queue.unbounded<Block | null>()
    const leaving = yield* Effect.acquireRelease(
      Effect.sync(() => new AbortController()),
      (controller) => Effect.sync(() => controller.abort())
    )
    const response = yield* Effect.promise(() => fetch(url, { headers, signal: leaving.signal }))
    const read = async () => {
      let text = ""
      for await (const chunk of response.body?.pipeThrough(new TextDecoderStream()) ?? []) {
        const parts = (text + chunk).split("\n\n")
        text = parts.pop() ?? ""
        for (const part of parts) blocks.unsafeOffer(blockOf(part))
      }
    }
    void read()
      .catch(() => {})
      .finally(() => blocks.unsafeOffer(null))
    const next = Queue.take(blocks)
    /** The next block that tells of an event. */
    const event: Effect.Effect<Block> = Effect.flatMap(next, (block) =>
      block === null ? Effect.die(new Error("the stream ended")) : block.event === null ? event : Effect.succeed(block)
    )
    return { status: response.status, headers: response.headers, next, event, leave: () => leaving.abort() }
  })
