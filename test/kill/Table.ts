import { marks } from "../../reconciler/Failpoint.ts"
import type * as Scenario from "./Scenario.ts"

/** A world as one word, from which it can be played again. */
export const encode = ({ victim, kills, mariadb, seed }: Scenario.Plan): string =>
  `${victim}:${kills}:${mariadb ? "mariadb" : "sqlite"}:${seed}`

export const decode = (word: string): Scenario.Plan => {
  const [, victim, kills, database, seed] =
    /^(daemon|mariadb|cloudstack):(\d{1,4}):(mariadb|sqlite):(\d{1,9})$/.exec(word) ?? []
  if (victim === undefined) throw new Error(`expected a world such as daemon:20:sqlite:7, not ${word}`)
  return {
    victim: victim as Scenario.Victim,
    kills: Number(kills),
    mariadb: database === "mariadb",
    seed: Number(seed)
  }
}

const seconds = (ms: number | null): string => (ms === null ? "never" : `${(ms / 1_000).toFixed(1)} s`)

export const line = (report: Scenario.Report): string => {
  const { plan, kills, acknowledged, repeated, converged_ms, broken } = report
  const head = `${encode(plan)}: ${kills.length} kills, ${acknowledged} writes acknowledged (${repeated} asked again), calm after ${seconds(converged_ms)}`
  return broken.length === 0
    ? head
    : [`${head}; BROKEN:`, ...broken.map((one) => `  ${one}`), `  npm run test:kill -- ${encode(plan)}`].join("\n")
}

/** Marks at which no daemon was killed: what a whole run would claim and not have tested. */
export const untested = (reports: ReadonlyArray<Scenario.Report>): ReadonlyArray<string> => {
  const hit = new Set(reports.flatMap(({ kills }) => kills.flatMap((kill) => (kill.hit ? [kill.point] : []))))
  return marks.filter((mark) => !hit.has(mark))
}

/** Where processes were killed, how often, and how long the worlds took to come to rest. */
export const table = (reports: ReadonlyArray<Scenario.Report>, tookMs: number): string => {
  const kills = reports.flatMap((report) => report.kills)
  const points = [...new Set(kills.map(({ point }) => point))].toSorted()
  const rows = points.map((point) => {
    const here = kills.filter((kill) => kill.point === point)
    const hit = here.filter((kill) => kill.hit).length
    return `${point.padEnd(24)} ${String(hit).padStart(5)}${hit < here.length ? `   (and ${here.length - hit} killed without being there)` : ""}`
  })
  const rests = reports.flatMap(({ converged_ms }) => converged_ms ?? []).toSorted((a, b) => a - b)
  const broken = reports.filter((report) => report.broken.length > 0)
  const victims = [...new Set(reports.map(({ plan }) => plan.victim))].map((victim) => {
    const count = reports.filter(({ plan }) => plan.victim === victim).reduce((sum, one) => sum + one.kills.length, 0)
    return `${count} kills of ${victim === "daemon" ? "the daemon" : victim}`
  })
  return [
    "killed at                kills",
    ...rows,
    "",
    `${victims.join(", ")} in ${reports.length} worlds, ${seconds(tookMs)}`,
    `calm after ${seconds(rests[Math.floor(rests.length / 2)] ?? null)} (median), ${seconds(rests.at(-1) ?? null)} (longest)`,
    `seeds ${reports.map(({ plan }) => encode(plan)).join(" ")}`,
    broken.length === 0
      ? "every promise was kept"
      : `${broken.length} worlds broke a promise:\n${broken.map(line).join("\n")}`
  ].join("\n")
}
