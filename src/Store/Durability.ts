import * as SqlClient from "@effect/sql/SqlClient"
import type { SqlError } from "@effect/sql/SqlError"
import { Effect } from "effect"
import { Misconfigured, type StoreUnavailable } from "../../schema/Errors.ts"
import { read } from "./Transact.ts"

/**
 * By which settings the database may lose, in a crash or a power cut, what it has acknowledged (S14, B4): a sentence
 * each, with what to set instead. None: what it has acknowledged stays.
 */
export const weaknesses = (sql: SqlClient.SqlClient): Effect.Effect<ReadonlyArray<string>, SqlError> =>
  sql.onDialectOrElse({
    mysql: () =>
      Effect.map(
        // `innodb_doublewrite` is 1 or ON, by the version; MySQL has more words for on.
        sql<Readonly<Record<string, unknown>>>`SELECT @@GLOBAL.innodb_flush_log_at_trx_commit AS flush_log,
          @@GLOBAL.log_bin AS log_bin, @@GLOBAL.sync_binlog AS sync_binlog,
          @@GLOBAL.innodb_doublewrite AS doublewrite`,
        ([row]) => ofServer(row ?? {})
      ),
    orElse: () =>
      Effect.gen(function* () {
        const [synchronous] = yield* sql<{ synchronous: number }>`PRAGMA synchronous`
        const [journal] = yield* sql<{ journal_mode: string }>`PRAGMA journal_mode`
        return ofFile(Number(synchronous?.synchronous ?? 0), String(journal?.journal_mode ?? "unknown"))
      })
  })

/** With other values than these a commit is acknowledged before its log is on the disk. */
const ofServer = (row: Readonly<Record<string, unknown>>): ReadonlyArray<string> => {
  const is = (column: string, pattern: RegExp) => pattern.test(String(row[column]))
  const flush = is("flush_log", /^1$/)
  const binlog = is("log_bin", /^(0|OFF)$/i) || is("sync_binlog", /^1$/)
  // DETECT_ONLY finds a page that a power cut has torn, and cannot mend it.
  const doublewrite = is("doublewrite", /^(1|ON|DETECT_AND_RECOVER)$/i)
  return [
    ...(flush ? [] : [`innodb_flush_log_at_trx_commit is ${word(row["flush_log"])}: set it to 1`]),
    ...(binlog ? [] : [`sync_binlog is ${word(row["sync_binlog"])} while log_bin is on: set it to 1`]),
    ...(doublewrite ? [] : [`innodb_doublewrite is ${word(row["doublewrite"])}: set it to ON`])
  ]
}

const ofFile = (synchronous: number, journal: string): ReadonlyArray<string> => {
  // A database in memory says that it is synchronous, too.
  if (journal === "memory") return ["the database is in memory: name a file, as in sqlite:/var/lib/volumed/volumed.db"]
  return [
    // 2 is FULL, 3 EXTRA.
    ...(synchronous >= 2 ? [] : [`synchronous is ${word(synchronous)}: set it to FULL`]),
    ...(journal === "wal" ? [] : [`journal_mode is ${word(journal)}: put the file where WAL works, on a local disk`])
  ]
}

const word = (value: unknown): string =>
  String(value)
    .replaceAll(/[^A-Za-z0-9_.-]/g, "?")
    .slice(0, 40)

/** Fails with each weakness as a problem of its own: for a database that is only to be used when it is durable. */
export const demand: Effect.Effect<void, Misconfigured | StoreUnavailable, SqlClient.SqlClient> = Effect.gen(
  function* () {
    const weak = yield* read(weaknesses(yield* SqlClient.SqlClient))
    if (weak.length === 0) return
    return yield* new Misconfigured({
      problems: weak.map((weakness) => ({
        key: "REQUIRE_DURABLE",
        problem: `is set, and the database may lose what it has acknowledged: ${weakness}`,
        example: "REQUIRE_DURABLE=false, which only reports it"
      }))
    })
  }
)
