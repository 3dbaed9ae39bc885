import { Effect, Option, Schema } from "effect"
import { mkdirSync, readFileSync, renameSync, writeFileSync } from "node:fs"
import { dirname } from "node:path"
import { Misconfigured } from "../../schema/Errors.ts"
import { EXAMPLE_MYSQL } from "./Dsn.ts"

/** A term, and the newest event that is stored in it: both only ever grow. */
export interface Height {
  readonly term: number
  readonly event: number
}

/**
 * The highest term that this machine has led in, and what was stored by then, kept beside the database and not in it: one
 * that offers less has lost what was acknowledged since, as a restored backup has, also one of the same reign, or a
 * replica that took over before it had all (B5, B6, S15).
 */
export interface HighTerm {
  /** Fails where this term was had before, or more was stored before it. */
  readonly above: (height: Height) => Effect.Effect<void, Misconfigured>
  readonly keep: (height: Height) => Effect.Effect<void>
}

const Kept = Schema.parseJson(
  Schema.Struct({
    database: Schema.String,
    term: Schema.Int,
    event: Schema.optionalWith(Schema.Int, { default: () => 0 })
  })
)

const nothing: Height = { term: 0, event: 0 }

/** `database`: which one the file is about; it says nothing about another. */
export const make = (file: string, database: string): HighTerm => {
  const kept = Effect.sync(() =>
    Option.liftThrowable(() => readFileSync(file, "utf8"))().pipe(
      Option.flatMap(Schema.decodeUnknownOption(Kept)),
      Option.filter((one) => one.database === database),
      Option.getOrElse(() => nothing)
    )
  )
  return {
    above: (height) =>
      Effect.flatMap(kept, (high) =>
        height.term > high.term && height.event >= high.event ? Effect.void : wentBack(file, height, high)
      ),
    // Without the file only this is not noticed, so that it stops nothing.
    keep: ({ term, event }) =>
      Effect.try(() => {
        mkdirSync(dirname(file), { recursive: true, mode: 0o700 })
        writeFileSync(`${file}.new`, Schema.encodeSync(Kept)({ database, term, event }), { mode: 0o600 })
        renameSync(`${file}.new`, file)
      }).pipe(Effect.catchAll((error) => Effect.logWarning("the term could not be kept beside the database", error)))
  }
}

const wentBack = (file: string, { term, event }: Height, high: Height) =>
  new Misconfigured({
    problems: [
      {
        key: "DATABASE_DSN",
        problem:
          `the database went back: it offers term ${term} after event ${event}, and this machine has led in term ` +
          `${high.term} and seen event ${high.event}. A backup was ` +
          "restored, or a replica took over that lacked the newest writes. Nothing is acted on: compare what is declared " +
          `with what there is (\`volumed plan --standalone\`), then remove ${file} to go on from what the database says`,
        example: EXAMPLE_MYSQL
      }
    ]
  })
