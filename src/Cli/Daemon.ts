import { Context, Effect } from "effect"
import type { Volume } from "../../schema/Api.ts"
import type { Client, ListFilter } from "../Client/Client.ts"
import type { Failure } from "../Client/Failure.ts"

/** The daemon that client commands talk to, and the only way they do. */
export class Daemon extends Context.Tag("volumed/src/Cli/Daemon")<
  Daemon,
  {
    readonly server: string
    readonly client: Client
    /** Who asks, as the history shows it. */
    readonly actor: string
  }
>() {}

/** What the server gives at most in one answer. */
const PAGE = 1000
/** A million declarations: a server that never ends its list must not fill our memory. */
const PAGES_MAX = 1000

/** All declarations that pass the filter, page by page. */
export const volumes = Effect.fn("Daemon.volumes")(function* (filter: ListFilter = {}) {
  const { client } = yield* Daemon
  const items: Array<Volume> = []
  let cursor: string | null = null
  for (let page = 0; page < PAGES_MAX; page++) {
    const answer: { readonly items: ReadonlyArray<Volume>; readonly next_cursor: string | null } =
      yield* client.volumes({ ...filter, limit: PAGE, ...(cursor === null ? {} : { cursor }) })
    items.push(...answer.items)
    cursor = answer.next_cursor
    if (cursor === null) return items
  }
  return items
})

/** The declaration of this very name; null when there is none living. */
export const find = (name: string): Effect.Effect<Volume | null, Failure, Daemon> =>
  Effect.flatMap(Daemon, ({ client }) =>
    client
      .volume(name)
      .pipe(Effect.catchTag("ApiError", (error) => (error.status === 404 ? Effect.succeed(null) : Effect.fail(error))))
  )

/** These declarations, wherever they are in the list; one that is not there (any more) is left out. */
export const named = (
  names: ReadonlyArray<string>,
  set: string | null
): Effect.Effect<ReadonlyArray<Volume>, Failure, Daemon> =>
  Effect.gen(function* () {
    if (names.length > 16) {
      const wanted = new Set(names)
      return (yield* volumes(set === null ? {} : { set })).filter((volume) => wanted.has(volume.name))
    }
    const found = yield* Effect.forEach(names, find, { concurrency: 4 })
    return found.filter((volume) => volume !== null)
  })
