import { Effect, Redacted } from "effect"
import { Misconfigured } from "../../schema/Errors.ts"

export const EXAMPLE = "sqlite:/var/lib/volumed/volumed.db"

/** What is wrong with a `DATABASE_DSN`, without repeating it, for it may hold a password; null when it can be used. */
export const problemOf = (dsn: string): string | null => {
  if (dsn.startsWith("sqlite:")) return fileOf(dsn) === "" ? "names no file" : null
  if (dsn.startsWith("mysql://") || /@(tcp|unix)\(/.test(dsn))
    return "MySQL and MariaDB come with the MySQL layer, which this version does not have: use the embedded database"
  return "is neither sqlite:FILE nor a MySQL DSN (user:pass@tcp(host:3306)/db, mysql://…)"
}

/** `sqlite:FILE`; `sqlite://…` is a file too, and `sqlite::memory:` is gone when the process ends. */
const fileOf = (dsn: string): string => dsn.slice("sqlite:".length).replace(/^\/\/(?=\/|$)/, "")

export const sqliteFile = (dsn: Redacted.Redacted<string>): Effect.Effect<string, Misconfigured> => {
  const text = Redacted.value(dsn)
  const problem = problemOf(text)
  return problem === null
    ? Effect.succeed(fileOf(text))
    : Effect.fail(new Misconfigured({ problems: [{ key: "DATABASE_DSN", problem, example: EXAMPLE }] }))
}
