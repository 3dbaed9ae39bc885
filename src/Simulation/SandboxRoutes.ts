import { Either, ParseResult, Schema } from "effect"
import * as Fault from "./Fault.ts"
import * as Operator from "./Operator.ts"
import type { World } from "./World.ts"

interface Answer {
  readonly status: number
  readonly headers: Readonly<Record<string, string>>
  readonly body: string
}

const Faults = Schema.Union(Schema.Array(Fault.Fault), Schema.Struct({ faults: Schema.Array(Fault.Fault) }))

/** The pages beside the API: the ground truth, the faults, and what an operator could do. */
export const answer = (world: World, method: string, path: string, body: string, now: number): Answer => {
  switch (`${method} ${path}`) {
    case "GET /sandbox":
      return json(200, world.truth(now))
    case "GET /sandbox/faults":
      return json(200, { faults: world.faults() })
    case "POST /sandbox/faults":
      return decoded(Faults, body, FAULT_EXAMPLE, (given) => {
        world.setFaults("faults" in given ? given.faults : given, now)
        return json(200, { faults: world.faults() })
      })
    case "POST /sandbox/act":
      return decoded(Operator.Act, body, ACT_EXAMPLE, (act) => {
        const outcome = world.act(act, now)
        return json(outcome.done ? 200 : 409, outcome)
      })
    default:
      return json(404, {
        error: `there is no ${method} ${path}`,
        expected: "/client/api, GET /sandbox, GET or POST /sandbox/faults, POST /sandbox/act"
      })
  }
}

const FAULT_EXAMPLE = [{ kind: "answer_lost_after_effect", command: "attachVolume", times: 1 }]
const ACT_EXAMPLE = { act: "detach", volume_id: "12345678-1234-4234-8234-123456789012" }

const json = (status: number, value: unknown): Answer => ({
  status,
  headers: { "content-type": "application/json; charset=UTF-8" },
  body: JSON.stringify(value)
})

/** A typing error in a fault would silently test nothing, so unknown keys are errors too. */
const decoded = <A, I>(
  schema: Schema.Schema<A, I>,
  body: string,
  example: unknown,
  then: (value: A) => Answer
): Answer =>
  Either.match(Schema.decodeEither(Schema.parseJson(schema))(body, { onExcessProperty: "error" }), {
    onLeft: (error) => json(400, { error: ParseResult.TreeFormatter.formatErrorSync(error), expected: example }),
    onRight: then
  })

/** Faults as a file or a request gives them. */
export const decodeFaults = (text: string): Either.Either<ReadonlyArray<Fault.Fault>, string> =>
  Schema.decodeEither(Schema.parseJson(Faults))(text, { onExcessProperty: "error" }).pipe(
    Either.map((given) => ("faults" in given ? given.faults : given)),
    Either.mapLeft((error) => ParseResult.TreeFormatter.formatErrorSync(error))
  )
