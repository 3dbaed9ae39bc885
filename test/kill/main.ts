import * as Build from "../support/Build.ts"
import * as Table from "./Table.ts"
import * as Scenario from "./Scenario.ts"

/**
 * `npm run test:kill`: what the issue asks for. `npm run test:kill -- daemon:20:sqlite:7` replays one world: whose
 * processes are killed, how often, on which database, from which seed. `PARALLEL` says how many worlds there are at one
 * time; with `KEEP` set their directories, the daemons' logs in them, stay.
 */
const KILLS = 20

const worlds = (victim: Scenario.Victim, count: number, kills: number, seed: number): ReadonlyArray<Scenario.Plan> =>
  Array.from({ length: count }, (_, n) => ({
    victim,
    kills,
    seed: seed + n,
    mariadb: victim === "mariadb" || n % 2 === 1
  }))

const all = (seed: number): ReadonlyArray<Scenario.Plan> => [
  ...worlds("daemon", 16, KILLS, seed),
  ...worlds("mariadb", 2, 15, seed + 100),
  ...worlds("cloudstack", 2, 15, seed + 200)
]

const asked = process.argv.slice(2)
const seed = Date.now() % 1_000_000
const plans = asked.length > 0 ? asked.map(Table.decode) : all(seed)
const PARALLEL = Number(process.env["PARALLEL"] ?? 6)

await Build.ensure()
const begin = Date.now()
const reports: Array<Scenario.Report> = []
const left = [...plans]
const worker = async () => {
  for (let plan = left.shift(); plan !== undefined; plan = left.shift()) {
    const report = await Scenario.run(plan)
    reports.push(report)
    process.stderr.write(`${Table.line(report)}\n`)
  }
}
await Promise.all(Array.from({ length: PARALLEL }, worker))
process.stdout.write(`${Table.table(reports, Date.now() - begin)}\n`)
const untested = asked.length > 0 ? [] : Table.untested(reports)
if (untested.length > 0) process.stdout.write(`never killed at ${untested.join(", ")}\n`)
process.exitCode = untested.length === 0 && reports.every(({ broken }) => broken.length === 0) ? 0 : 1
