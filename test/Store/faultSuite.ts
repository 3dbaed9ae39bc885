import * as SqlClient from "@effect/sql/SqlClient"
import { assert, describe, it } from "@effect/vitest"
import { Cause, Clock, Duration, Effect, Exit, Layer, Logger, LogLevel, Option, Scope } from "effect"
import * as Fs from "node:fs"
import * as Path from "node:path"
import { afterAll } from "vitest"
import { Leadership } from "../../reconciler/Leadership.ts"
import { Store } from "../../reconciler/Store.ts"
import type { Misconfigured } from "../../schema/Errors.ts"
import { StoreUnavailable } from "../../schema/Errors.ts"
import * as Leader from "../../src/Store/Leader.ts"
import * as Sql from "../../src/Store/Sql.ts"
import * as FaultySql from "../support/FaultySql.ts"
import { answers, AT, idAt, type Step, steps } from "./Scenario.ts"

export interface Engine {
  readonly dialect: "mysql" | "sqlite"
  readonly errors: ReadonlyArray<FaultySql.DriverError>
  /** A new, empty database. */
  readonly database: Effect.Effect<SqlClient.SqlClient, Misconfigured | StoreUnavailable, Scope.Scope>
}

/** Few, for they are compared again and again. */
const EVENTS_KEPT = 50

const tables = [
  "declarations",
  "volume_operations",
  "device_mappings",
  "conditions",
  "approvals",
  "exports",
  "events",
  "lease",
  "idempotency_keys",
  "maintenance",
  "withheld",
  "operations_pruned"
]

type Rows = Readonly<Record<string, ReadonlyArray<Readonly<Record<string, unknown>>>>>

/** Time stands still, and whoever waits, for a lock or for an answer, waits a tenth. */
const live = Clock.make()
const hurried: Clock.Clock = {
  [Clock.ClockTypeId]: Clock.ClockTypeId,
  unsafeCurrentTimeMillis: () => AT,
  unsafeCurrentTimeNanos: () => BigInt(AT) * 1_000_000n,
  currentTimeMillis: Effect.succeed(AT),
  currentTimeNanos: Effect.succeed(BigInt(AT) * 1_000_000n),
  sleep: (duration) => live.sleep(Duration.times(duration, 0.1))
}

/** Nobody reads what is logged of faults that are meant. */
const hurriedly = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  effect.pipe(Effect.withClock(hurried), Logger.withMinimumLogLevel(LogLevel.None))

/** What a step ended in, comparable. */
const outcomeOf = (exit: Exit.Exit<unknown, { readonly _tag: string }>): unknown =>
  Exit.isSuccess(exit)
    ? { answered: exit.value }
    : Option.match(Cause.failureOption(exit.cause), {
        onNone: () => ({ died: Cause.pretty(exit.cause) }),
        onSome: (error) => ({ refused: error._tag, message: String(error) })
      })

const unavailableIn = (exit: Exit.Exit<unknown, unknown>): StoreUnavailable | null => {
  const failure = Exit.isFailure(exit) ? Option.getOrNull(Cause.failureOption(exit.cause)) : null
  return failure instanceof StoreUnavailable ? failure : null
}

/** Texts are compared first: of what is large, and nearly always equal, that takes a hundredth of the time. */
const same = (found: unknown, expected: unknown, message: string) => {
  if (JSON.stringify(found) !== JSON.stringify(expected)) assert.deepStrictEqual(found, expected, message)
}

const recorded = (value: unknown) => JSON.parse(JSON.stringify(value)) as unknown

/** A database on which every step can be taken again, each from the rows that the one before left. */
const stage = Effect.fnUntraced(function* (engine: Engine) {
  const clean = yield* engine.database
  const cleanly = Layer.succeed(SqlClient.SqlClient, clean)
  const leadership = yield* Effect.provide(Leadership, Leader.layerSole.pipe(Layer.provide(cleanly)))
  const ids = { step: 0, n: 0 }
  const faulty = yield* FaultySql.make(clean, engine.dialect, () => (ids.n = 0))
  const methods = new Set<string>()

  const storeOn = (client: Layer.Layer<SqlClient.SqlClient>) =>
    Effect.provide(
      Store,
      Sql.layerUnder({ newId: () => idAt(ids.step, ids.n++), events_kept: EVENTS_KEPT }).pipe(
        Layer.provide([client, Layer.succeed(Leadership, leadership)])
      )
    ).pipe(
      Effect.map(
        (store) =>
          new Proxy(store, {
            get: (target, key) => (methods.add(String(key)), Reflect.get(target, key))
          })
      )
    )

  const rows = Effect.gen(function* () {
    const found: Record<string, Rows[string]> = {}
    for (const table of tables) found[table] = yield* clean<Rows[string][number]>`SELECT * FROM ${clean(table)}`
    return found
  })

  const restore = Effect.fnUntraced(function* (to: Rows) {
    const from = yield* rows
    for (const table of tables) {
      const all = to[table] ?? []
      if (JSON.stringify(from[table]) === JSON.stringify(all)) continue
      yield* clean`DELETE FROM ${clean(table)}`
      for (let at = 0; at < all.length; at += 200)
        yield* clean`INSERT INTO ${clean(table)} ${clean.insert(all.slice(at, at + 200))}`
    }
  }, clean.withTransaction)

  const take = (step: Step, store: Store["Type"]) => {
    Object.assign(ids, { step: steps.indexOf(step), n: 0 })
    return Effect.exit(step.run(store))
  }

  return {
    control: faulty.control,
    methods,
    take,
    faulty: storeOn(faulty.layer),
    fresh: storeOn(cleanly),
    rows,
    restore
  }
})

/** Rows as far as they are the same each time: numbers of events and marks of transactions are not. */
const comparable = (rows: Rows) =>
  Object.fromEntries(
    Object.entries(rows).map(([table, all]) => [
      table,
      all
        .map((row) => JSON.stringify({ ...row, last_write: null, ...(table === "events" ? { id: 0 } : {}) }))
        .toSorted()
    ])
  )

interface Taken {
  readonly rows: Rows
  readonly outcome: unknown
  /** What a store says that has just begun. */
  readonly answers: unknown
}

type Stage = Effect.Effect.Success<ReturnType<typeof stage>>

/** All steps in turn, with nothing failing: what each of them ends in, after how things stand before the first. */
const undisturbed = Effect.fnUntraced(function* (stage: Stage) {
  const look = Effect.gen(function* () {
    return { rows: yield* stage.rows, answers: recorded(yield* answers(yield* stage.fresh)) }
  })
  const taken: Array<Taken> = [{ ...(yield* look), outcome: null }]
  const store = yield* stage.faulty
  stage.control.arm(null)
  for (const step of steps) {
    const outcome = yield* stage.take(step, store)
    taken.push({ ...(yield* look), outcome: recorded(outcomeOf(outcome)) })
  }
  yield* answers(yield* stage.faulty)
  return { taken, said: new Set(stage.control.statements()) }
})

interface Situation {
  readonly step: Step
  readonly before: Taken
  readonly after: Taken
  readonly store: Store["Type"]
}

/** One step, with one statement of it failing. Answers how it ended; null when the step has no such statement. */
const disturbed = Effect.fnUntraced(function* (
  stage: Stage,
  { dialect }: Engine,
  { after, before, step, store }: Situation,
  fault: FaultySql.Fault
) {
  const { control } = stage
  control.arm(fault)
  const exit = yield* stage.take(step, store)
  const failed = control.failed()
  const inTransaction = control.statements().some((statement) => statement.startsWith("BEGIN"))
  control.arm(null)
  if (failed === null) return null
  const about = `${step.name}: ${fault.error.code} ${fault.executed ? "after" : "before"} ${failed}`

  const found = comparable(yield* stage.rows)
  const unavailable = unavailableIn(exit)
  const open = unavailable?.outcome_unknown === true
  if (unavailable === null) {
    same(recorded(outcomeOf(exit)), after.outcome, `${about}: is answered as ever`)
    same(found, comparable(after.rows), `${about}: answered as done, so it is`)
  } else {
    assert.strictEqual(unavailable.problem, fault.error.problem, about)
    // Only a COMMIT that nobody answered leaves it open, and only where there is no mark to tell by.
    assert.strictEqual(open, failed === "COMMIT" && dialect === "sqlite", `${about}: ${unavailable.message}`)
    const truth = open && fault.executed ? after : before
    same(found, comparable(truth.rows), `${about}: answered as not done, so it is not`)
    const gaveUp = fault.error.problem === "busy" && inTransaction && !open
    assert.isFalse(gaveUp, `${about}: is tried again until it is done`)
  }
  const done = unavailable === null || (open && fault.executed)
  const last = failed === "COMMIT"
  // Whatever is asked takes longer than all else here: after each COMMIT, and now and then.
  if (last || fault.at % 5 === 0)
    same(recorded(yield* answers(store)), (done ? after : before).answers, `${about}: what it remembers is so`)
  return { about, done, last }
})

/** Afterwards the step can be taken, or taken again under its key, and is done once. */
const repeated = Effect.fnUntraced(function* (stage: Stage, situation: Situation, about: string, done: boolean) {
  const { after, step, store } = situation
  const exit = yield* stage.take(step, store)
  if (!done) same(recorded(outcomeOf(exit)), after.outcome, `${about}: can be done afterwards`)
  else assert.isNull(unavailableIn(exit), `${about}: its repeat is told that it was answered`)
  same(comparable(yield* stage.rows), comparable(after.rows), `${about}: is done once by its repeat`)
  same(recorded(yield* answers(store)), after.answers, `${about}: is shown after its repeat`)
})

/** Every statement of one step in turn. `warm`: with all in memory, instead of read on the way. */
const everyStatement = Effect.fnUntraced(function* (
  stage: Stage,
  engine: Engine,
  expected: Omit<Situation, "store">,
  fault: Omit<FaultySql.Fault, "at">,
  warm: boolean
) {
  const met: Array<string> = []
  let store: Store["Type"] | null = null
  for (let at = 0; at < STATEMENTS_MAX; at++) {
    if (store === null) {
      yield* stage.restore(expected.before.rows)
      store = yield* stage.faulty
      if (warm) yield* Effect.all([store.declarations, store.conditions, store.maintenance])
    }
    const situation = { ...expected, store }
    const end = yield* disturbed(stage, engine, situation, { ...fault, at })
    if (end === null) return met
    met.push(end.about)
    const keyed = expected.step.key !== undefined
    if (end.last && (!end.done || keyed)) yield* repeated(stage, situation, end.about, end.done)
    if (end.done || end.last || !warm) store = null
  }
  return yield* Effect.dieMessage(`${expected.step.name} has no end`)
})

/** How often one step may have to be tried to meet each of its statements. */
const STATEMENTS_MAX = 200

interface Course extends Effect.Effect.Success<ReturnType<typeof undisturbed>> {
  readonly on: Stage
}

/** Every statement of every step; answers what failed, in words. */
const throughout = Effect.fnUntraced(function* (
  { on, taken }: Course,
  engine: Engine,
  fault: Omit<FaultySql.Fault, "at">
) {
  const met = new Set<string>()
  // All in memory, save for one error, with which what is kept in memory is read on the way as well.
  const memories = fault.error === engine.errors.at(-1) ? [true, false] : [true]
  for (const [index, step] of steps.entries()) {
    const [before, after] = taken.slice(index)
    if (before === undefined || after === undefined) return yield* Effect.dieMessage(step.name)
    for (const warm of memories)
      for (const one of yield* everyStatement(on, engine, { step, before, after }, fault, warm)) met.add(one)
  }
  return met
})

/** Templates of statements in the store's source, up to their first value, without those that open no statement. */
const templates = (): ReadonlyArray<string> => {
  const directory = Path.join(import.meta.dirname, "../../src/Store")
  const source = (name: string) => Fs.readFileSync(Path.join(directory, `${name}.ts`), "utf8")
  const parts = [...source("Sql").matchAll(/(\w+)\.make\(session/g)].map(([, name = ""]) => name)
  assert.isAtLeast(parts.length, 10)
  return parts
    .flatMap((name) => [...source(name).matchAll(/\bsql(?:<[^`;]*?>)?`([^`]*)`/g)])
    .map(([, text = ""]) => (text.split("${")[0] ?? "").replaceAll(/\s+/g, " ").trim())
    .filter((text) => /^(?:SELECT|INSERT|UPDATE|DELETE) /.test(text))
}

export const faultSuite = (name: string, engine: Engine) => {
  describe(name, () => {
    const scope = Effect.runSync(Scope.make())
    const begun = Effect.gen(function* () {
      const on = yield* stage(engine)
      return { on, ...(yield* undisturbed(on)) }
    }).pipe(hurriedly, Scope.extend(scope), Effect.cached, Effect.runSync)
    afterAll(() => Effect.runPromise(Scope.close(scope, Exit.void)))

    it.live("is asked all that the store can ask, by every method of it", () =>
      Effect.gen(function* () {
        const { on, said } = yield* begun
        const statements = [...said]
        const unsaid = templates().filter((template) => !statements.some((statement) => statement.startsWith(template)))
        assert.deepStrictEqual(unsaid, [])
        const store = yield* on.fresh
        assert.deepStrictEqual(
          Object.keys(store).filter((method) => !on.methods.has(method)),
          []
        )
        assert.isAtLeast(statements.length, 50)
      })
    )

    for (const error of engine.errors) {
      for (const executed of [false, true]) {
        const when = executed ? "after it took effect" : "before it is sent"
        it.live(
          `does all or nothing, and knows which, when any statement fails ${when} with ${error.code} (B1, B2, B3, S14)`,
          () =>
            Effect.gen(function* () {
              const course = yield* begun
              const met = yield* hurriedly(throughout(course, engine, { error, executed, lasting: false }))
              assert.isAtLeast(met.size, 100)
            }),
          120_000
        )
      }
    }
  })
}
