import { Clock, type Context, Effect, Redacted, Ref } from "effect"
import * as Wire from "../../schema/CloudStack.ts"
import type { Read } from "./Client.ts"
import type { Credential, Credentials } from "./Credentials.ts"

/** An account's type and a server's parameters seldom change. */
const KNOWN_MS = 3_600_000
/** What could not be read is not asked for again in every pass. */
const UNREAD_MS = 60_000

/** `AccountResponse.accounttype` of a root admin (`Account.Type.ADMIN`), who alone may choose ids (`UUIDManagerImpl.checkUuid`). */
const ROOT_ADMIN = "1"

/** Whether the account of these keys may choose the id of a volume that it creates. */
export interface CustomIds {
  readonly allowed: Effect.Effect<boolean>
  /** CloudStack refused one, or did not heed it. */
  readonly refused: Effect.Effect<void>
}

interface Finding {
  readonly allowed: boolean
  /** Whose finding it is: others' keys are asked about anew. */
  readonly credential: Credential | null
  /** ms since the epoch. */
  readonly until: number
}

export const make = (
  read: Read,
  { current }: Pick<Context.Tag.Service<Credentials>, "current">
): Effect.Effect<CustomIds> =>
  Effect.map(Ref.make<Finding | null>(null), (newest) => {
    const caller = Effect.map(current, (known) => known?.credential ?? null)
    const keep = (allowed: boolean, forMs: number, credential: Credential | null) =>
      Effect.gen(function* () {
        const until = (yield* Clock.currentTimeMillis) + forMs
        // What was asked while the keys changed is a finding of neither.
        yield* Ref.set(newest, { allowed, credential: isSame(credential, yield* caller) ? credential : null, until })
      })
    const ask = Effect.flatMap(caller, (credential) =>
      Effect.gen(function* () {
        return (yield* isKnown(read)) && (yield* isRootAdmin(read))
      }).pipe(
        Effect.tap((allowed) => keep(allowed, KNOWN_MS, credential)),
        Effect.catchTag("CloudStackUnavailable", (error) =>
          Effect.logDebug("whether ids may be chosen could not be read", error.message).pipe(
            Effect.andThen(keep(false, UNREAD_MS, credential)),
            Effect.as(false)
          )
        )
      )
    )
    const allowed = Effect.gen(function* () {
      const found = yield* Ref.get(newest)
      if (found === null || found.until <= (yield* Clock.currentTimeMillis)) return yield* ask
      return isSame(found.credential, yield* caller) ? found.allowed : yield* ask
    })
    return { allowed, refused: Effect.flatMap(caller, (credential) => keep(false, KNOWN_MS, credential)) }
  })

const isSame = (one: Credential | null, other: Credential | null): boolean =>
  one !== null &&
  other !== null &&
  one.api_url === other.api_url &&
  Redacted.value(one.api_key) === Redacted.value(other.api_key)

/**
 * A server drops a parameter that it does not know without a word, and the volume would bear another id than it is looked
 * for by: so the server must name it. That it names it is no permission, for it does so to every role.
 */
const isKnown = (read: Read) =>
  read("listApis", { name: "createVolume" }, (body) => Wire.apiParameters("createVolume", body)).pipe(
    Effect.map((names) => names.includes("customid")),
    Effect.catchTag("CloudStackRefused", () => Effect.succeed(false))
  )

/**
 * Without an id everybody is shown his own account, so of this type there is one or none. In domains whose users see all
 * accounts, or where the role may not ask, the first create tells.
 */
const isRootAdmin = (read: Read) =>
  read("listAccounts", { accounttype: ROOT_ADMIN, details: "min" }, (body) =>
    Wire.page("listAccounts", "account", body)
  ).pipe(
    Effect.map(({ count }) => count > 0),
    Effect.catchTag("CloudStackRefused", () => Effect.succeed(true))
  )
