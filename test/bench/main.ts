import * as Build from "../support/Build.ts"
import * as Converging from "./Converging.ts"
import * as Database from "./Database.ts"
import * as Failover from "./Failover.ts"
import * as Http from "./Http.ts"
import * as Measure from "./Measure.ts"
import * as Nbd from "./Nbd.ts"
import * as Planning from "./Planning.ts"
import * as Reacting from "./Reacting.ts"
import * as Settled from "./Settled.ts"
import * as Watching from "./Watching.ts"

const all = {
  planning: Planning.measure,
  settled: Settled.measure,
  reacting: Reacting.measure,
  converging: Converging.measure,
  http: Http.measure,
  watching: Watching.measure,
  database: Database.measure,
  failover: Failover.measure,
  nbd: Nbd.measure
}

/** `npm run bench` measures everything, `npm run bench -- planning` some of it. */
const asked = process.argv.slice(2)
await Build.ensure()
const measures: Array<Measure.Measure> = []
for (const [name, measure] of Object.entries(all)) {
  if (asked.length > 0 && !asked.includes(name)) continue
  process.stderr.write(`measuring: ${name}\n`)
  measures.push(...(await measure()))
}
process.stdout.write(`${Measure.table(measures)}\n`)
process.exitCode = measures.every(Measure.holds) ? 0 : 1
