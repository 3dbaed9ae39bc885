import type { Plan } from "../../schema/Action.ts"

/** What a command found, in the words of its exit code. */
export type Outcome = "done" | "error" | "pending" | "drift" | "held" | "timeout"

export const codes: Readonly<Record<Outcome, number>> = {
  done: 0,
  error: 1,
  pending: 2,
  drift: 3,
  held: 4,
  timeout: 5
}

/** 128 + SIGINT, as a shell reports it. */
export const INTERRUPTED = 130

/** 128 + SIGPIPE: whoever read the results went away. */
export const PIPE_CLOSED = 141

/** Several at once: what asks most urgently for a person wins. A time-out comes first of what is left. */
const urgency: ReadonlyArray<Outcome> = ["error", "held", "timeout", "pending", "drift", "done"]

export const combine = (outcomes: Iterable<Outcome>): Outcome => {
  const found = new Set(outcomes)
  return urgency.find((outcome) => found.has(outcome)) ?? "done"
}

/**
 * What a plan means to whoever runs it from a script. Tags alone count for nothing; a volume that waits for something
 * that passes by itself is pending, one that waits for a person or another system is held.
 */
export const ofPlan = (plan: Plan): Outcome => {
  const items = plan.items.map((item): Outcome => {
    if (item.gap === null) return "done"
    if (item.blocked !== null && item.blocked.category !== "progress") return "held"
    return item.drift ? "drift" : "pending"
  })
  const notices = plan.notices.map((notice): Outcome =>
    notice.category === "blocked" || notice.category === "error" ? "held" : "done"
  )
  return combine([...items, ...notices, plan.held.length > 0 ? "held" : "done"])
}
