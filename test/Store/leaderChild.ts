import { Effect, Layer, Redacted, Schedule } from "effect"
import * as Fs from "node:fs"
import { Leadership } from "../../reconciler/Leadership.ts"
import { Store } from "../../reconciler/Store.ts"
import * as Leader from "../../src/Store/Leader.ts"
import * as Sql from "../../src/Store/Sql.ts"
import { vm } from "./Samples.ts"

/**
 * A process that acts as often as it may. What it was allowed to send is a line `sent N`, and what it wrote down is an
 * event of the database's history; N is the term that it believed in before it asked.
 */
const [port = "", database = ""] = process.argv.slice(2)
const target = {
  host: "127.0.0.1",
  port: Number(port),
  socket: null,
  user: database,
  password: Redacted.make(`secret of ${database}`),
  database,
  tls: null
}

const step = Effect.gen(function* () {
  const leadership = yield* Leadership
  const store = yield* Store
  const role = yield* leadership.role
  if (role._tag !== "Leading") return Fs.writeSync(1, `${role._tag}\n`)
  yield* leadership.check
  Fs.writeSync(1, `sent ${role.term}\n`)
  return yield* store.record({ kind: "approved", name: null, actor: `term ${role.term}`, message: String(process.pid) })
})

const elected = Leader.layerElected({ target, appliance_vm_id: vm, acceptable: Effect.void })
const program = step.pipe(
  Effect.catchAll((error) => Effect.sync(() => Fs.writeSync(1, `${error._tag}\n`))),
  Effect.repeat(Schedule.spaced(20)),
  Effect.provide(Layer.provideMerge(Sql.layerUnder({}), elected))
)
const fiber = Effect.runFork(program)
process.on("SIGTERM", () => {
  fiber.addObserver(() => process.exit(0))
  fiber.unsafeInterruptAsFork(fiber.id())
})
