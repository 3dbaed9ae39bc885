import type { Advance } from "../../reconciler/Store.ts"
import { hasEnded, isCall, isUnresolved, type Operation } from "../../schema/Operation.ts"

/** The operation as an advance would leave it, its times aside. */
export const apply = (found: Operation, advance: Advance): Operation => ({
  ...found,
  phase: advance.phase,
  status: advance.status,
  job_id: advance.job_id === undefined ? found.job_id : advance.job_id,
  vm_id: advance.vm_id ?? found.vm_id,
  volume_id: advance.volume_id ?? found.volume_id,
  response: advance.response ?? found.response,
  // What was doubted on the way is no error of what is done.
  error: advance.error ?? (advance.status === "completed" ? null : found.error),
  submitted_at: advance.submitted_at ?? found.submitted_at,
  expires_at: advance.expires_at ?? found.expires_at
})

export const isSame = (a: Operation, b: Operation): boolean => ordered(a) === ordered(b)

/** JSON with sorted keys: MySQL's JSON columns give back an order of their own. */
const ordered = (operation: Operation): string =>
  JSON.stringify(operation, (_, value: unknown) =>
    typeof value === "object" && value !== null && !Array.isArray(value)
      ? Object.fromEntries(Object.entries(value).toSorted(([a], [b]) => (a < b ? -1 : 1)))
      : value
  )

/** Why `found` must not become `next`; null when it may. */
export const refusal = (found: Operation, next: Operation): string | null =>
  isSame(found, next) ? null : isCall(found) ? refusalOfCall(found, next) : refusalOfAction(found, next)

/** A client is told the end of its call once: afterwards only what still follows from it may be noted. */
const refusalOfCall = (found: Operation, next: Operation): string | null => {
  if (!hasEnded(found))
    return found.status === "executing" && next.status === "pending" ? `call ${found.id} is executing already` : null
  const noted =
    found.status !== "completed" && found.phase === "uncertain" && isSame(found, { ...next, phase: found.phase })
  return noted ? null : ended(found)
}

const refusalOfAction = (found: Operation, next: Operation): string | null => {
  if (!isUnresolved(found)) return ended(found)
  if (hasEnded(found) && next.status !== found.status)
    return `operation ${found.id} was shown as ${found.status} and cannot become ${next.status}`
  const decided = next.phase === "settled" || next.phase === "refused"
  if (next.status === "cancelled" && found.phase !== "intended" && !decided)
    return `the call of operation ${found.id} was sent: only observation ends it`
  if (!isUnresolved(next) && !hasEnded(next))
    return `operation ${found.id} cannot be ${next.phase} and still ${next.status}`
  return null
}

const ended = ({ id, status }: Operation) => `operation ${id} has ended as ${status} and never changes`

/** Did this move bring it to its end? An action's end is that its outcome is known, a call's that its client is told. */
export const ends = (found: Operation, next: Operation): boolean =>
  isCall(found) ? !hasEnded(found) && hasEnded(next) : isUnresolved(found) && !isUnresolved(next)
