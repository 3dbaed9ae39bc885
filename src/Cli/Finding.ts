import type * as Exit from "./Exit.ts"
import type { Paint } from "./Output.ts"

/** One thing that must be so before volumed can work, and what to do where it is not. */
export interface Finding {
  readonly check: string
  /** `warn`: works, but is worth a look. */
  readonly state: "ok" | "warn" | "fail"
  readonly found: string
  /** The line to type, or the change to make; null where all is well. */
  readonly fix: string | null
}

export const ok = (check: string, found: string): Finding => ({ check, state: "ok", found, fix: null })
export const fail = (check: string, found: string, fix: string): Finding => ({ check, state: "fail", found, fix })
export const warn = (check: string, found: string, fix: string): Finding => ({ check, state: "warn", found, fix })

/** Lines of one kind; of more of them there is only the number. */
export const SHOWN = 10

/** The first of them, and how many there are; or that there is none. */
export const limited = <A>(
  check: string,
  all: ReadonlyArray<A>,
  none: string,
  finding: (one: A) => Finding
): ReadonlyArray<Finding> => {
  if (all.length === 0) return [ok(check, none)]
  const more = all.length > SHOWN ? [warn(check, `and ${all.length - SHOWN} more`, "the same for each")] : []
  return [...all.slice(0, SHOWN).map(finding), ...more]
}

export const outcome = (findings: ReadonlyArray<Finding>): Exit.Outcome =>
  findings.some((finding) => finding.state === "fail") ? "held" : "done"

/** A line for each, with what to do below it, and the verdict: `notNow` where one failed. */
export const text = (findings: ReadonlyArray<Finding>, paint: Paint, notNow: string): string => {
  const shade = { ok: paint.good, warn: paint.warn, fail: paint.bad }
  const width = findings.reduce((most, finding) => Math.max(most, finding.check.length), 0)
  const lines = findings.map(({ check, state, found, fix }) => {
    const line = `${shade[state](state.padEnd(4))}  ${check.padEnd(width)}  ${found}\n`
    return fix === null ? line : `${line}${" ".repeat(width + 8)}fix: ${fix}\n`
  })
  return `${lines.join("")}\n${outcome(findings) === "done" ? "Go." : notNow}\n`
}
