import { Effect } from "effect"
import type * as Api from "../../schema/Api.ts"
import type { Invocation } from "./Arguments.ts"
import * as Change from "./Change.ts"
import * as Confirm from "./Confirm.ts"
import { Daemon } from "./Daemon.ts"
import type * as Exit from "./Exit.ts"
import * as Moment from "./Moment.ts"
import { clean, show, type Paint } from "./Output.ts"

/** On, off, or how things stand. */
export const maintenance = Effect.fn("Maintenance.maintenance")(function* (invocation: Invocation) {
  const { reason, until, for: lasting } = invocation.values
  const state = invocation.positionals[0]
  if (state !== "on" && (reason ?? until ?? lasting) !== undefined)
    return yield* new Moment.FlagWrong({ message: "--reason, --until and --for belong to: volumed maintenance on" })
  if (state === "on") return yield* begin(invocation)
  if (state === "off") return yield* end()
  const { client } = yield* Daemon
  const answer = yield* client.maintenance
  yield* show(answer, (paint) => text(answer, paint))
  return "done" as const
})

const begin = Effect.fn("Maintenance.begin")(function* (invocation: Invocation) {
  const { client, actor } = yield* Daemon
  const { reason } = invocation.values
  if (reason === undefined)
    return yield* new Moment.FlagWrong({ message: "--reason TEXT is missing: everybody who looks will read it" })
  const until = yield* Moment.end(invocation)
  const request = { reason, by: actor, ...(until === null ? {} : { until }) }
  const planned = yield* client.beginMaintenanceDryRun(request)
  const lasts = until === null ? "until it is ended" : `until ${until}`
  return yield* Change.change(planned, `Act on nothing ${lasts}?`, client.beginMaintenance(request), text)
})

const end = Effect.fn("Maintenance.end")(function* () {
  const { client } = yield* Daemon
  const before = yield* client.maintenance
  if (before.maintenance === null) {
    yield* show(before, (paint) => text(before, paint))
    return outcome(before)
  }
  const planned = yield* client.endMaintenanceDryRun
  yield* Change.preview(planned)
  yield* Confirm.ask("End the maintenance? What takes something away is withheld until it is approved; all else runs.")
  const answer = yield* client.endMaintenance
  yield* show(answer, (paint) => text(answer, paint))
  return outcome(answer)
})

/** It is over as soon as everything could be observed, for only then is it known what is pending. */
const outcome = (answer: Api.MaintenanceAnswer): Exit.Outcome => {
  if (answer.maintenance !== null) return "timeout"
  return answer.withheld.length > 0 ? "held" : "done"
}

const text = (answer: Api.MaintenanceAnswer, paint: Paint): string =>
  `${state(answer, paint)}${withheld(answer, paint)}`

const state = ({ maintenance: now }: Api.MaintenanceAnswer, paint: Paint): string => {
  if (now === null) return "No maintenance: volumed acts.\n"
  const head = paint.warn(`Maintenance since ${now.since}, by ${clean(now.by)}: ${clean(now.reason)}`)
  if (now.ending) {
    return `${head}\nIt is ending: as soon as everything could be observed. Look again with: volumed maintenance\n`
  }
  const last = now.until === null ? "It lasts until: volumed maintenance off" : `It ends by itself at ${now.until}`
  return `${head}\nNothing is acted on; what is declared meanwhile is stored. ${last}\n`
}

/** What waits, under each digest that lets it run. */
const withheld = (answer: Api.MaintenanceAnswer, paint: Paint): string => {
  const digests = [...new Set(answer.withheld.map((one) => one.digest))]
  return digests
    .map((digest) => {
      const rows = answer.withheld
        .filter((one) => one.digest === digest)
        .map((one) => `  ${one.action} ${clean(one.name)} (volume ${one.volume_id})\n`)
      const how = `Look at them, then type: ${paint.strong(`volumed approve ${clean(digest)}`)}`
      return `Withheld since the maintenance ended:\n${rows.join("")}${how}\n`
    })
    .join("")
}
