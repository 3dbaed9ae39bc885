import * as Reactivity from "@effect/experimental/Reactivity"
import * as MysqlClient from "@effect/sql-mysql2/MysqlClient"
import * as SqlClient from "@effect/sql/SqlClient"
import { SqlError } from "@effect/sql/SqlError"
import { Cause, Clock, Context, Deferred, Effect, Layer, Scope, Stream, SubscriptionRef } from "effect"
import { createHash } from "node:crypto"
import { hostname } from "node:os"
import { Leadership, leading, obstacle, type Role } from "../../reconciler/Leadership.ts"
import { EXPIRY_MS } from "../../reconciler/Settle.ts"
import { GateClosed, Misconfigured, StoreUnavailable } from "../../schema/Errors.ts"
import type { VmId } from "../../schema/Ids.ts"
import { EXAMPLE_MYSQL } from "./Dsn.ts"
import type * as HighTerm from "./HighTerm.ts"
import { inspect, migrate, refusalOf } from "./Migrate.ts"
import * as Mysql from "./Mysql.ts"
import * as Seat from "./Seat.ts"
import { read, transact } from "./Transact.ts"

/** Who leads, for people: not an identity, the term is that. */
export const holder = `${hostname()} pid ${process.pid}`

/**
 * Leads for as long as the process lives: where something else has made sure that there is no other, as SQLite's lock on
 * its file does. Brings the schema up to date first.
 */
export const layerSole: Layer.Layer<Leadership, Misconfigured | StoreUnavailable, SqlClient.SqlClient> = Layer.effect(
  Leadership,
  Effect.gen(function* () {
    yield* migrate
    const term = yield* takeTerm(yield* SqlClient.SqlClient, () => Effect.void)
    const role: Role = { _tag: "Leading", term, since: yield* Clock.currentTimeMillis }
    return { role: Effect.succeed(role), roles: Stream.make(role), check: Effect.void }
  })
)

const looking: Role = { _tag: "Standby", leader: null }

/**
 * Never leads: for a process that only looks at what another one's database says. A schema that it does not read is
 * refused, for it brings none up to date.
 */
export const layerLooking: Layer.Layer<Leadership, Misconfigured | StoreUnavailable, SqlClient.SqlClient> =
  Layer.effect(
    Leadership,
    Effect.gen(function* () {
      const found = yield* inspect
      const refusal = refusalOf(found)
      if (refusal !== null) return yield* refusal
      if (found._tag === "Behind")
        return yield* unreachable(`its schema is of version ${found.version}: run volumed migrate`)
      return {
        role: Effect.succeed(looking),
        roles: Stream.make(looking),
        check: new GateClosed({ detail: "only looking" })
      }
    })
  )

/**
 * A term above all earlier ones, written down. Whoever asks holds the lock that makes it the only one to ask; `confirmed`
 * is asked in the same transaction, once the row is locked, whether it still does, and may have this term.
 */
export const takeTerm = <E>(
  sql: SqlClient.SqlClient,
  confirmed: (term: number) => Effect.Effect<void, E | SqlError>
): Effect.Effect<number, Exclude<E, SqlError> | StoreUnavailable> =>
  transact(
    sql,
    { enter: Effect.void, landed: Effect.succeed(null) },
    Effect.gen(function* () {
      const acquired_at = new Date(yield* Clock.currentTimeMillis).toISOString()
      const [row] = yield* sql`SELECT id FROM lease WHERE id = 1`
      if (row === undefined) yield* sql`INSERT INTO lease ${sql.insert({ id: 1, term: 0, holder, acquired_at })}`
      yield* sql`UPDATE lease SET term = term + 1, holder = ${holder}, acquired_at = ${acquired_at} WHERE id = 1`
      const [taken] = yield* sql<{ term: number }>`SELECT term FROM lease WHERE id = 1`
      yield* confirmed(Number(taken?.term))
      // What a predecessor sent without the time to write it down, it sent before this; restarts do not move that (P2).
      const expires_at = (yield* Clock.currentTimeMillis) + EXPIRY_MS
      yield* sql`UPDATE volume_operations SET expires_at = ${expires_at}
        WHERE unresolved_uid > '' AND expires_at IS NULL`
      return Number(taken?.term)
    })
  )

/** How often the lock and the term are asked for, and how long the answer may take, ms. */
const PING_MS = 2_000
const PING_LIMIT_MS = 2_500
/** Of the silence after which the server lets go, ms: what is believed ends before that. */
const MARGIN_MS = 1_000
const BELIEVED_MS = Mysql.SILENCE_S * 1000 - MARGIN_MS
/** The server is asked to wait so long for the lock, s, before whether it may be used is looked at again. */
const LOCK_WAIT_S = 2
const LOCK_LIMIT_MS = 5_000
/** Whether the database may be used is a few questions, ms. */
const LOOK_LIMIT_MS = 5_000
/** Between two attempts on a database that does not answer, and on one that only a person can mend, ms. */
const AGAIN_MS = 1_000
const AGAIN_UNUSABLE_MS = 30_000
/** What is wrong with a database that answers by then stops the start, ms. */
const START_MS = 5_000
/** The term is read before each call, ms. */
const CHECK_MS = 2_000
/** A server that is told of the lock's end has no say in ours, ms. */
const RELEASE_MS = 300

export interface Options {
  readonly target: Mysql.Target
  /** Whose volumes these are: a database is one appliance's (M3). */
  readonly appliance_vm_id: VmId
  /** Never asks for the lead, and only reads, as a standby does. */
  readonly dry_run?: boolean
  /** Whether this machine has led in later terms, or seen more stored, than the database knows of. */
  readonly high_term?: HighTerm.HighTerm
  /** What else must hold of the database; asked before each candidacy. */
  readonly acceptable: Effect.Effect<void, Misconfigured | StoreUnavailable, SqlClient.SqlClient>
}

/**
 * One leader among the processes that share a MySQL or MariaDB: whoever holds the server's lock of the database's name
 * migrates it, takes a term, and leads until the lock, the term or the connection is lost. An outage does not fail it;
 * a database that may not be used does, where it says so within `START_MS`.
 *
 * The client that it gives refuses every statement while the schema is not the one that this program reads.
 */
export const layerElected = (options: Options): Layer.Layer<Leadership | SqlClient.SqlClient, Misconfigured> =>
  Layer.scopedContext(elect(options)).pipe(Layer.provide(Layer.merge(Mysql.layer(options.target), Reactivity.layer)))

/** Of the server, not of the database, so that its name says which one; bounded by MySQL at 64 characters. */
export const lockName = (database: string): string =>
  `volumed.${createHash("sha256").update(database).digest("hex").slice(0, 40)}`

const NOT_ASKED: Role = { _tag: "Unreachable", detail: "the database was not asked yet" }

const elect = Effect.fnUntraced(function* (options: Options) {
  const pool = yield* SqlClient.SqlClient
  const place = yield* SubscriptionRef.make<Role>(NOT_ASKED)
  const first = yield* Deferred.make<void, Misconfigured>()
  /** By the monotonic clock, ms: a jump of the wall clock decides nothing (T1). */
  const believed = { until: 0 }
  const admission: { refusal: StoreUnavailable | null } = { refusal: unreachable("the database was not asked yet") }

  const role = Effect.map(SubscriptionRef.get(place), (last) =>
    last._tag === "Leading" && performance.now() >= believed.until ? LAPSED : last
  )

  const become = Effect.fnUntraced(function* (next: Role) {
    const last = yield* SubscriptionRef.get(place)
    if (sameRole(last, next)) return
    yield* SubscriptionRef.set(place, next)
    yield* Effect.logInfo("leadership").pipe(Effect.annotateLogs({ role: next._tag, detail: obstacle(next) ?? "" }))
  })

  const candidate: Candidate = {
    options,
    pool,
    become,
    known: Effect.asVoid(Deferred.succeed(first, undefined)),
    believe: (asked) => Effect.sync(() => void (believed.until = asked + BELIEVED_MS)),
    admit: (refusal) => Effect.sync(() => void (admission.refusal = refusal))
  }

  /** What was admitted is looked at again before it is read again: it may be another database that answers next. */
  const out = Effect.fnUntraced(function* (error: Misconfigured | StoreUnavailable) {
    const refusal = error._tag === "Misconfigured" ? refusing(error) : error
    yield* candidate.admit(refusal)
    yield* become({ _tag: "Unreachable", detail: refusal.detail })
    yield* error._tag === "Misconfigured" ? Deferred.fail(first, error) : Deferred.succeed(first, undefined)
    yield* Effect.sleep(error._tag === "Misconfigured" ? AGAIN_UNUSABLE_MS : AGAIN_MS)
  })

  const broken = (cause: Cause.Cause<never>) =>
    Effect.andThen(Effect.logError("the election broke", cause), out(unreachable("the election broke")))

  yield* Effect.scoped(stand(candidate)).pipe(
    Effect.catchAll(out),
    Effect.catchAllDefect((defect) => broken(Cause.die(defect))),
    Effect.forever,
    Effect.forkScoped
  )
  yield* Deferred.await(first).pipe(Effect.timeoutOption(START_MS))

  const check = Effect.gen(function* () {
    const term = yield* leading(role)
    const stored = yield* read(pool<{ term: number }>`SELECT term FROM lease WHERE id = 1`).pipe(
      Effect.timeout(CHECK_MS),
      Effect.mapError((error) => new GateClosed({ detail: `the term cannot be read: ${error.message}` }))
    )
    if (Number(stored[0]?.term) !== term) {
      believed.until = 0
      return yield* new GateClosed({ detail: "another process leads by now" })
    }
    // The answer may have been long on its way, and we may have slept.
    yield* leading(role)
  })

  const refused = Effect.suspend(() =>
    admission.refusal === null ? Effect.void : new SqlError({ cause: admission.refusal, message: "not admitted" })
  )
  const acquirer = Effect.andThen(refused, pool.reserve)
  const gated = yield* SqlClient.make({
    acquirer,
    transactionAcquirer: acquirer,
    compiler: MysqlClient.makeCompiler(),
    spanAttributes: [["db.system.name", "mysql"]]
  })
  return Context.make(Leadership, { role, roles: place.changes, check }).pipe(Context.add(SqlClient.SqlClient, gated))
})

interface Candidate {
  readonly options: Options
  readonly pool: SqlClient.SqlClient
  readonly become: (role: Role) => Effect.Effect<void>
  /** What this process is has been found out. */
  readonly known: Effect.Effect<void>
  /** The lock was ours when this was asked (monotonic ms). */
  readonly believe: (asked: number) => Effect.Effect<void>
  /** From here on statements reach the database; or not, and why. */
  readonly admit: (refusal: StoreUnavailable | null) => Effect.Effect<void>
}

type Lost = Misconfigured | StoreUnavailable

/** Until the connection, the lock or the term is lost, which is how it fails. */
const stand = (candidate: Candidate): Effect.Effect<never, Lost, Scope.Scope> =>
  Effect.gen(function* () {
    const scope = yield* Effect.scope
    const seat = yield* read(Scope.extend(Seat.open(candidate.options.target), scope))
    const [row] = yield* read(seat.ask("SELECT DATABASE() AS name", [], CHECK_MS))
    const lock = lockName(String(row?.["name"]))
    return yield* Effect.raceFirst(read(seat.gone), contend(candidate, seat, lock))
  })

const contend = Effect.fnUntraced(function* (candidate: Candidate, seat: Seat.Seat, lock: string) {
  for (let wait_s = 0; ; wait_s = LOCK_WAIT_S) {
    const leader = yield* Effect.timeoutFail(look(candidate), { duration: LOOK_LIMIT_MS, onTimeout: silent })
    if (candidate.options.dry_run !== true) {
      const asked = performance.now()
      const [answer] = yield* read(seat.ask("SELECT GET_LOCK(?, ?) AS won", [lock, wait_s], LOCK_LIMIT_MS))
      if (Number(answer?.["won"]) === 1) return yield* lead(candidate, seat, lock, asked)
    }
    yield* candidate.become({ _tag: "Standby", leader })
    yield* candidate.known
    if (candidate.options.dry_run === true) yield* Effect.sleep(LOCK_WAIT_S * 1000)
  }
})

/** May this database be used, and read as it is? Changes nothing. Answers who leads, as far as it is written. */
const look = Effect.fnUntraced(function* ({ admit, options, pool }: Candidate) {
  yield* Effect.provideService(options.acceptable, SqlClient.SqlClient, pool)
  const found = yield* Effect.provideService(inspect, SqlClient.SqlClient, pool)
  const refusal = refusalOf(found)
  if (refusal !== null) return yield* refusal
  if (found._tag === "Behind") {
    yield* admit(unreachable(`its schema is of version ${found.version}: the leader has to bring it up to date`))
    return null
  }
  const lease = yield* leaseOf(pool)
  yield* ours(lease, options.appliance_vm_id)
  yield* admit(null)
  return lease?.holder ?? null
})

interface Lease {
  readonly holder: string
  readonly appliance_vm_id: string | null
}

const leaseOf = (sql: SqlClient.SqlClient) =>
  Effect.map(read(sql<Lease>`SELECT holder, appliance_vm_id FROM lease WHERE id = 1`), ([row]) => row ?? null)

const ours = (lease: Lease | null, appliance: VmId) =>
  lease === null || lease.appliance_vm_id === null || lease.appliance_vm_id === appliance
    ? Effect.void
    : new Misconfigured({
        problems: [
          {
            key: "DATABASE_DSN",
            problem:
              `the database holds the volumes of the appliance ${lease.appliance_vm_id}, and this one is ${appliance}: give each ` +
              "appliance a database of its own, or set APPLIANCE_VM_ID if this is the same one",
            example: EXAMPLE_MYSQL
          }
        ]
      })

/** Holding the lock: from here on it is asked for again and again, also while the schema is brought up to date. */
const lead = Effect.fnUntraced(function* (candidate: Candidate, seat: Seat.Seat, lock: string, asked: number) {
  const { become, believe, options, pool } = candidate
  const reign: { term: number | null; event: number } = { term: null, event: 0 }
  yield* Effect.addFinalizer(() =>
    // Who never led tells nothing new: each role wakes the loop, and one that takes no term is tried every second (S22).
    (reign.term === null ? Effect.void : become(GIVEN_UP)).pipe(
      Effect.andThen(Effect.ignore(seat.ask("SELECT RELEASE_LOCK(?)", [lock], RELEASE_MS)))
    )
  )
  yield* believe(asked)

  const confirmed = Effect.fnUntraced(function* (term: number) {
    yield* held(pool, seat, lock)
    const [newest] = yield* pool<{ event: number | null }>`SELECT MAX(id) AS event FROM events`
    reign.event = Number(newest?.event ?? 0)
    yield* options.high_term?.above({ term, event: reign.event }) ?? Effect.void
    yield* ours(yield* leaseOf(pool), options.appliance_vm_id)
    yield* pool`UPDATE lease SET appliance_vm_id = ${options.appliance_vm_id} WHERE id = 1`
  })

  const begin = Effect.gen(function* () {
    yield* Effect.provideService(migrate, SqlClient.SqlClient, pool)
    yield* Effect.provideService(options.acceptable, SqlClient.SqlClient, pool)
    const term = yield* takeTerm(pool, confirmed)
    yield* options.high_term?.keep({ term, event: reign.event }) ?? Effect.void
    reign.term = term
    yield* candidate.admit(null)
    yield* become({ _tag: "Leading", term, since: yield* Clock.currentTimeMillis })
    yield* candidate.known
  })

  const kept = { event: 0 }
  /** What was there one ping ago: what is there now may be visible before it is on the disk, and a crash may take it. */
  const climb = Effect.fnUntraced(function* (term: number, event: number) {
    const { event: before } = reign
    reign.event = event
    if (before <= kept.event) return
    kept.event = before
    yield* options.high_term?.keep({ term, event: before }) ?? Effect.void
  })

  const ping = Effect.gen(function* () {
    const asked = performance.now()
    const { term } = reign
    const stored =
      term === null
        ? "NULL AS term"
        : "(SELECT term FROM lease WHERE id = 1) AS term, (SELECT MAX(id) FROM events) AS event"
    const question = `SELECT IS_USED_LOCK(?) AS owner, ${stored}`
    const [row] = yield* read(seat.ask(question, [lock], PING_LIMIT_MS))
    if (Number(row?.["owner"]) !== seat.id) return yield* unreachable("the lock was lost")
    if (term !== null && Number(row?.["term"]) !== term) return yield* unreachable("another term has begun")
    yield* believe(asked)
    if (term !== null) yield* climb(term, Number(row?.["event"] ?? 0))
  })
  const pinging = Effect.forever(Effect.andThen(ping, Effect.sleep(PING_MS)))

  return yield* Effect.raceFirst(pinging, Effect.andThen(begin, Effect.never))
})

/** Asked on the connection of the transaction, so that who was stopped since the lock was won takes no term. */
const held = (sql: SqlClient.SqlClient, seat: Seat.Seat, lock: string) =>
  Effect.flatMap(sql<{ owner: number | null }>`SELECT IS_USED_LOCK(${lock}) AS owner`, ([row]) =>
    Number(row?.owner) === seat.id ? Effect.void : unreachable("the lock was lost before the term was taken")
  )

const unreachable = (detail: string) => new StoreUnavailable({ detail, outcome_unknown: false, problem: "unreachable" })

const silent = () => unreachable("the database does not answer in time")

const refusing = (error: Misconfigured) =>
  new StoreUnavailable({
    detail: error.problems.map(({ problem }) => problem).join("; "),
    outcome_unknown: false,
    problem: "refused",
    cause: error
  })

const GIVEN_UP: Role = { _tag: "Unreachable", detail: "this process has given up the lock" }

const LAPSED: Role = { _tag: "Unreachable", detail: "the lock was not confirmed in time" }

const sameRole = (a: Role, b: Role): boolean =>
  (a._tag === "Leading" && b._tag === "Leading" && a.term === b.term) ||
  (a._tag === "Standby" && b._tag === "Standby" && a.leader === b.leader) ||
  (a._tag === "Unreachable" && b._tag === "Unreachable" && a.detail === b.detail)
