import { Effect, Either, Option } from "effect"
import * as Fs from "node:fs"
import { Store } from "../../reconciler/Store.ts"
import { Name } from "../../schema/Ids.ts"
import * as Sql from "../../src/Store/Sql.ts"
import { answer, attach, call, callId, site, uidOf, write } from "./Samples.ts"

const [mode, file, count] = process.argv.slice(2)
const say = (line: string) => Fs.writeSync(1, `${line}\n`)

/** Says what is there, then writes for ever, saying each write once it is acknowledged. */
const writer = Effect.gen(function* () {
  const store = yield* Store
  const declared = (yield* store.declarations).map((declaration) => declaration.name)
  const intended = (yield* store.unresolved).map((operation) => operation.name)
  say(JSON.stringify([...declared.map((name) => `declared ${name}`), ...intended.map((name) => `intended ${name}`)]))
  for (let n = declared.length; ; n++) {
    yield* store.write([write(n)])
    say(`declared disk-${n}`)
    yield* store.intend(attach(n))
    say(`intended disk-${n}`)
  }
})

/** Many transactions on one connection; answers how many descriptors are open at the end. */
const transactions = Effect.gen(function* () {
  const store = yield* Store
  yield* store.write([write(0)])
  for (let n = 1; n < Number(count); n++)
    yield* store.write([write(0, { expected_generation: n, generation: n + 1, kind: "changed" })])
  const last = Option.getOrThrow(yield* store.declaration(Name.make("disk-0")))
  say(JSON.stringify({ uid: uidOf(0), generation: last.generation, open: Fs.readdirSync("/proc/self/fd").length }))
})

/** What a service does: look the key up, else write and answer. Says what it answers and what is stored then. */
const keyed = Effect.gen(function* () {
  const store = yield* Store
  const earlier = yield* store.answered("key")
  const request = store.write([write(1)], { calls: [call(1)], answer: answer("key", { response: { id: callId(1) } }) })
  // A process that was quicker to write than to look up is told so by the store.
  const outcome = yield* Effect.either(request)
  if (count === "dies") process.kill(process.pid, "SIGKILL")
  const stored = {
    earlier: Option.getOrNull(earlier),
    repeat: Either.isRight(outcome) ? "written" : outcome.left._tag,
    declarations: (yield* store.declarations).length,
    calls: (yield* store.operations({})).items.map(({ id, status }) => [id, status]),
    events: (yield* store.events({ after: 0, limit: 100 })).map(({ kind }) => kind)
  }
  say(JSON.stringify(stored))
})

const hold = Effect.andThen(
  Effect.sync(() => say("open")),
  Effect.never
)

type Body = Effect.Effect<unknown, { readonly _tag: string; readonly message: string }, Store>
const modes: Readonly<Record<string, Body>> = { write: writer, transactions, keyed, hold }
const body = modes[mode ?? ""] ?? Effect.dieMessage(`no such mode: ${mode}`)
const program = body.pipe(
  Effect.provide(Sql.layerDsn(site(`sqlite:${file}`))),
  Effect.catchAll((error) => Effect.sync(() => Fs.writeSync(2, `${error._tag}: ${error.message}\n`))),
  Effect.tap(() => Effect.sync(() => process.exit(0)))
)
void Effect.runPromise(program as Effect.Effect<unknown>)
