import { Effect } from "effect"
import { existsSync } from "node:fs"
import * as SettingsFrom from "../Settings.ts"
import * as Dsn from "../Store/Dsn.ts"
import { exclusively } from "../Store/Exclusive.ts"
import * as Schema from "../Store/Migrate.ts"
import * as Mysql from "../Store/Mysql.ts"
import * as Sqlite from "../Store/Sqlite.ts"
import type { Invocation } from "./Arguments.ts"
import * as Confirm from "./Confirm.ts"
import { clean, Output, show, type Paint } from "./Output.ts"

/** How the schema stands, and with the person's consent up to date: while no daemon leads. */
export const migrate = Effect.fn("Migrate.migrate")(function* (invocation: Invocation) {
  const settings = yield* SettingsFrom.fromEnvironment(process.env, invocation.values.config ?? null, {
    dry_run: true,
    sandbox: false,
    listen: null,
    terminal: false
  })
  const dsn = yield* Dsn.resolve(settings.database_dsn, settings.database_ca_file)
  const place = Dsn.place(dsn)
  const found = yield* Effect.provide(Schema.inspect, lookingAt(dsn))
  if (found._tag !== "Behind" || invocation.flags.has("check")) {
    yield* show(answer(found), (paint) => text(place, found, paint))
    if (found._tag === "Behind") return "pending"
    return found._tag === "Current" ? "done" : "error"
  }
  const { note, notePaint } = yield* Output
  yield* note(text(place, found, notePaint))
  yield* Confirm.ask(`Bring ${place} up to date?`)
  yield* dsn._tag === "Mysql"
    ? Effect.provide(exclusively(dsn.target, Schema.migrate), Mysql.layer(dsn.target))
    : Effect.provide(Schema.migrate, Sqlite.layer(dsn.file))
  yield* show(answer({ _tag: "Current" }), (paint) => text(place, { _tag: "Current" }, paint))
  return "done"
})

/** A file that is not there is not made by looking. */
const lookingAt = (dsn: Dsn.Dsn) => {
  if (dsn._tag === "Mysql") return Mysql.layer(dsn.target)
  return Sqlite.layer(existsSync(dsn.file) ? dsn.file : Sqlite.MEMORY)
}

const states = { Current: "current", Behind: "older", Newer: "newer", Foreign: "foreign" } as const

const answer = (found: Schema.Inspection) => ({
  state: states[found._tag],
  known: Schema.SCHEMA_VERSION,
  found: found._tag === "Current" ? Schema.SCHEMA_VERSION : found._tag === "Foreign" ? null : found.version,
  pending: found._tag === "Behind" ? found.pending : [],
  differences: found._tag === "Foreign" ? found.differences : []
})

const text = (place: string, found: Schema.Inspection, paint: Paint): string => {
  const at = clean(place)
  switch (found._tag) {
    case "Current":
      return `${at} is up to date (schema ${Schema.SCHEMA_VERSION}).\n`
    case "Behind": {
      const steps = found.pending.map((name) => `  ${name}\n`).join("")
      return `${at} has schema ${found.version}, and ${Schema.SCHEMA_VERSION} is needed. ${paint.warn("Pending:")}\n${steps}`
    }
    case "Newer":
    case "Foreign": {
      const why = Schema.refusalOf(found)?.problems.map(({ problem }) => problem) ?? []
      return `${at}: ${paint.bad(clean(why.join("; ")))}\n`
    }
  }
}
