import type * as SqlClient from "@effect/sql/SqlClient"
import { Clock, Context, Effect, Layer, Redacted, Ref, Schedule } from "effect"
import { Misconfigured } from "../../schema/Errors.ts"
import type { Settings } from "../../schema/Settings.ts"
import { keys as settingKeys } from "../Settings/Keys.ts"
import * as Dsn from "../Store/Dsn.ts"
import * as Mysql from "../Store/Mysql.ts"
import { explain } from "../Store/Transact.ts"
import * as OsseaConfigs from "./OsseaConfigs.ts"

/** Where a call goes and by whom it is signed: taken whole for each call, never put together of two. */
export interface Credential {
  readonly api_url: string
  readonly api_key: Redacted.Redacted<string>
  readonly secret_key: Redacted.Redacted<string>
}

export interface Known {
  readonly credential: Credential
  /** An id or a name; null where nothing chooses one. */
  readonly zone: string | null
  readonly domain: string | null
  /** What it comes from, for people. */
  readonly source: string
}

export class Credentials extends Context.Tag("volumed/CloudStack/Credentials")<
  Credentials,
  {
    /** For the next call; null while there are none yet. Only a value in memory. */
    readonly current: Effect.Effect<Known | null>
    /** Why there are none, or why those that are there may be out of date; null where all is well. */
    readonly problem: Effect.Effect<string | null>
    /** CloudStack did not take a call signed by these: ends when it was looked for newer ones, within a few seconds. */
    readonly refused: (credential: Credential) => Effect.Effect<void>
  }
>() {}

/** These and no others, as the environment sets them. */
export const fixed = (known: Known): Context.Tag.Service<Credentials> => ({
  current: Effect.succeed(known),
  problem: Effect.succeed(null),
  refused: () => Effect.void
})

type Options = Pick<Settings, "cloudstack" | "database_dsn" | "database_ca_file" | "default_zone_id">

/**
 * From the settings, and from the active row of `ossea_configs` in the MySQL database what they leave open. The row is
 * read again all the time, so that keys are changed without a restart; a database that is away leaves what is known.
 */
export const layer = (settings: Options): Layer.Layer<Credentials, Misconfigured> =>
  Layer.unwrapEffect(
    Effect.map(Dsn.resolve(settings.database_dsn, settings.database_ca_file), (dsn) => {
      const own = ownOf(settings)
      const enough = own !== null && settings.default_zone_id !== null
      if (own !== null && (enough || dsn._tag === "Sqlite")) return Layer.succeed(Credentials, fixed(own))
      if (dsn._tag === "Sqlite") return Layer.fail(unset("the embedded database has no table ossea_configs"))
      return layerStored(settings).pipe(Layer.provide(Mysql.layer(dsn.target)))
    })
  )

/** How often the row is read, ms. */
const LOOK_EVERY_MS = 10_000
/** A look that takes longer is none, ms: it may be all that a refused call waits for. */
const LOOK_MS = 6_000
/** A refused call does not cause another look so soon after one, ms. */
const LOOK_APART_MS = 1_000

interface State {
  readonly known: Known | null
  readonly problem: string | null
}

type Open = Pick<Options, "cloudstack" | "default_zone_id">

/** As `layer`, from whatever database the client speaks to. */
const layerStored = (settings: Open): Layer.Layer<Credentials, Misconfigured, SqlClient.SqlClient> =>
  Layer.scoped(
    Credentials,
    Effect.gen(function* () {
      const own = ownOf(settings)
      const state = yield* Ref.make<State>({ known: own, problem: null })
      const looked = yield* Ref.make(0)
      const look = looking(settings, state).pipe(
        Effect.ensuring(Effect.flatMap(Clock.currentTimeMillis, (now) => Ref.set(looked, now))),
        Effect.provide(yield* Effect.context<SqlClient.SqlClient>())
      )
      const unusable = yield* look
      if (unusable !== null && own === null) return yield* unset(unusable)

      const turn = yield* Effect.makeSemaphore(1)
      yield* turn
        .withPermits(1)(look)
        .pipe(Effect.schedule(Schedule.spaced(LOOK_EVERY_MS)), Effect.forkScoped)
      // Those that come together wait for one look.
      const refused = (credential: Credential) =>
        Effect.gen(function* () {
          const { known } = yield* Ref.get(state)
          const newer = known !== null && !isSame(known.credential, credential)
          const age = (yield* Clock.currentTimeMillis) - (yield* Ref.get(looked))
          if (!newer && Math.abs(age) >= LOOK_APART_MS) yield* look
        }).pipe(turn.withPermits(1))

      return {
        current: Effect.map(Ref.get(state), ({ known }) => known),
        problem: Effect.map(Ref.get(state), ({ problem }) => problem),
        refused
      }
    })
  )

/**
 * Takes what the row says now; what is known stays where it cannot be read, or not be used. Answers why the database's
 * own word leaves nothing to go by, null also where it gave no answer.
 */
const looking = (settings: Open, state: Ref.Ref<State>): Effect.Effect<string | null, never, SqlClient.SqlClient> => {
  const { api_url, api_key, allow_http } = settings.cloudstack
  return OsseaConfigs.read({ api_url: api_url === null, keys: api_key === null, allow_http }).pipe(
    Effect.mapError(explain),
    Effect.timeoutFail({ duration: LOOK_MS, onTimeout: () => "no answer" }),
    Effect.matchEffect({
      onFailure: (why) => Effect.as(keep(state, `ossea_configs cannot be read: ${why}`), null),
      onSuccess: (reading) =>
        reading._tag === "Found"
          ? Effect.as(renew(state, combined(settings, reading.row)), null)
          : Effect.as(keep(state, reading.detail), reading.detail)
    })
  )
}

/** A problem is told once. */
const keep = (state: Ref.Ref<State>, problem: string) =>
  Effect.gen(function* () {
    const before = yield* Ref.getAndUpdate(state, ({ known }) => ({ known, problem }))
    if (before.problem === problem) return
    const meanwhile = before.known === null ? "CloudStack cannot be asked" : "what was known last is kept"
    yield* Effect.logWarning("the CloudStack settings of the database cannot be used").pipe(
      Effect.annotateLogs({ problem, meanwhile })
    )
  })

/** Told without the keys, only that others are used from now on. */
const renew = (state: Ref.Ref<State>, known: Known) =>
  Effect.gen(function* () {
    const { known: before } = yield* Ref.getAndSet(state, { known, problem: null })
    const { credential, source, zone, domain } = known
    const same = before !== null && isSame(before.credential, credential)
    if (same && before.source === source && before.zone === zone && before.domain === domain) return
    const changed = same || before === null ? {} : { changed: "URL or keys" }
    yield* Effect.logInfo("CloudStack settings").pipe(
      Effect.annotateLogs({ from: source, url: credential.api_url, zone, domain, ...changed })
    )
  })

const isSame = (a: Credential, b: Credential): boolean =>
  a.api_url === b.api_url &&
  Redacted.value(a.api_key) === Redacted.value(b.api_key) &&
  Redacted.value(a.secret_key) === Redacted.value(b.secret_key)

/** What the settings say without any row; null where they leave URL or keys open. */
const ownOf = ({ cloudstack, default_zone_id }: Open): Known | null => {
  const { api_url, api_key, secret_key } = cloudstack
  if (api_url === null || api_key === null || secret_key === null) return null
  return { credential: { api_url, api_key, secret_key }, zone: default_zone_id, domain: null, source: "the settings" }
}

/**
 * The settings win, each value of them. The keys are a pair, and the URL may be a different way to the same cloud: the
 * URL of the settings with the row's keys, or the other way round, is what somebody has set on purpose.
 */
const combined = ({ cloudstack, default_zone_id }: Open, row: OsseaConfigs.Row): Known => {
  const { api_url, api_key, secret_key } = cloudstack
  const own = api_key === null || secret_key === null ? null : { api_key, secret_key }
  const taken = [api_url === null ? "URL" : "", own === null ? "keys" : ""].filter((part) => part !== "")
  return {
    credential: { api_url: api_url ?? row.api_url, ...(own ?? row.keys) },
    zone: default_zone_id ?? row.zone,
    domain: row.domain,
    source: `the settings, ${taken.join(" and ") || "the zone"} from the row ${JSON.stringify(row.name)} of ossea_configs`
  }
}

const unset = (why: string) =>
  new Misconfigured({
    problems: [
      {
        key: "CLOUDSTACK_API_URL",
        problem: `is not set, or the keys are not, and ${why}`,
        example: settingKeys.CLOUDSTACK_API_URL.example
      },
      {
        key: "DATABASE_DSN",
        problem: "would name the database whose table ossea_configs has them",
        example: Dsn.EXAMPLE_MYSQL
      }
    ]
  })
