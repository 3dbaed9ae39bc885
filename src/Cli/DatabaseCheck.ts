import * as SqlClient from "@effect/sql/SqlClient"
import { Effect, Either } from "effect"
import { access, constants, readFile, stat } from "node:fs/promises"
import { dirname } from "node:path"
import type { Settings } from "../../schema/Settings.ts"
import * as Dialect from "../Store/Dialect.ts"
import * as Dsn from "../Store/Dsn.ts"
import * as Durability from "../Store/Durability.ts"
import * as Mysql from "../Store/Mysql.ts"
import { explain } from "../Store/Transact.ts"
import { fail, ok, warn } from "./Finding.ts"
import { clean } from "./Output.ts"

/** The database that the settings name, looked at only. */
export const check = Effect.fn("DatabaseCheck.check")(function* (settings: Settings, daemonUp: boolean) {
  const dsn = yield* Effect.either(Dsn.resolve(settings.database_dsn, settings.database_ca_file))
  if (Either.isLeft(dsn)) return [fail("database", clean(dsn.left.message), `DATABASE_DSN=${Dsn.EXAMPLE}`)]
  switch (dsn.right._tag) {
    case "Sqlite":
      return [yield* file(dsn.right.file, daemonUp)]
    case "Mysql":
      return [
        ...dsn.right.warnings.map((text) => warn("DATABASE_DSN", clean(text), "write DATABASE_DSN without it")),
        ...(yield* server(dsn.right, settings.require_durable))
      ]
  }
})

/** One connection and two questions, ms. */
const SERVER_MS = 8_000

const server = Effect.fn("DatabaseCheck.server")(function* (
  dsn: Extract<Dsn.Dsn, { readonly _tag: "Mysql" }>,
  required: boolean
) {
  const where = Dsn.place(dsn)
  const asked = yield* Effect.gen(function* () {
    const sql = yield* SqlClient.SqlClient
    return { engine: yield* Dialect.engine(sql), weak: yield* Durability.weaknesses(sql) }
  }).pipe(
    Effect.provide(Mysql.layer(dsn.target)),
    Effect.mapError(explain),
    Effect.timeoutFail({ duration: SERVER_MS, onTimeout: () => "no answer" }),
    Effect.either
  )
  if (Either.isLeft(asked))
    return [fail("database", clean(`${where}: ${asked.left}`), "DATABASE_DSN, and the way there; the server's own log")]
  const { engine, weak } = asked.right
  const state = required ? fail : warn
  return [
    ok("database", clean(`${engine}, ${where}${sealed(dsn)}`)),
    ...weak.map((text) =>
      state(
        "durability",
        `${text}, or an acknowledged write may be lost in a power cut`,
        "the server's [mysqld] section"
      )
    )
  ]
})

const sealed = ({ target }: Extract<Dsn.Dsn, { readonly _tag: "Mysql" }>): string =>
  target.tls === null ? "" : target.tls.verify ? ", by TLS" : ", by TLS to whoever answers"

/** The file is looked at, never opened as a database: a lock of ours would keep the daemon out. */
const file = Effect.fn("DatabaseCheck.file")(function* (path: string, daemonUp: boolean) {
  const target = (yield* allowed(path, constants.F_OK)) ? path : dirname(path)
  if (!(yield* allowed(target, constants.R_OK | constants.W_OK))) {
    return fail(
      "database",
      `${target} cannot be written by this user`,
      `mkdir -p ${dirname(path)}, and give it to the daemon's user`
    )
  }
  const holder = yield* lockHolder(path)
  if (holder === null) return ok("database", target === path ? path : `${path} will be made`)
  const who = `${path} is locked by pid ${holder.pid} (${holder.command})`
  return daemonUp ? ok("database", who) : fail("database", who, `end that process, or use another DATABASE_DSN`)
})

const allowed = (path: string, mode: number): Effect.Effect<boolean> =>
  Effect.isSuccess(Effect.tryPromise(() => access(path, mode)))

const readText = (path: string): Effect.Effect<string | null> =>
  Effect.orElseSucceed(
    Effect.tryPromise(() => readFile(path, "utf8")),
    () => null
  )

/** Linux lists every file lock as `… POSIX ADVISORY WRITE <pid> <major>:<minor>:<inode> …`. */
const lockHolder = Effect.fn("DatabaseCheck.lockHolder")(function* (path: string) {
  const stats = yield* Effect.option(Effect.tryPromise(() => stat(path)))
  const locks = yield* readText("/proc/locks")
  if (stats._tag === "None" || locks === null) return null
  const { ino } = stats.value
  const pid = locks.match(new RegExp(`\\sWRITE\\s+(\\d+)\\s+[0-9a-f]+:[0-9a-f]+:${ino}\\s`, "u"))?.[1]
  if (pid === undefined) return null
  const command = yield* readText(`/proc/${pid}/cmdline`)
  return { pid: Number(pid), command: clean((command ?? "?").replaceAll("\u0000", " ").trim()).slice(0, 120) }
})
