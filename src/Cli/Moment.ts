import { Clock, Data, Effect } from "effect"
import { durationMs, type Invocation } from "./Arguments.ts"
import type { OptionName } from "./Commands.ts"

/** A flag, or a pair of them, that the table alone cannot judge. Nothing was sent. */
export class FlagWrong extends Data.TaggedError("FlagWrong")<{ readonly message: string }> {}

/** Milliseconds that a flag such as `--timeout 10m` asks for. */
export const duration = (
  invocation: Invocation,
  flag: OptionName,
  otherwiseMs: number
): Effect.Effect<number, FlagWrong> => {
  const text = invocation.values[flag]
  const ms = text === undefined ? otherwiseMs : durationMs(text)
  return ms === null ? wrong(flag, "a time such as 90s or 10m", text ?? "") : Effect.succeed(ms)
}

/** A moment of the past as RFC 3339 in UTC: written as one, with any offset, or as an age such as `1h` or `7d`. */
export const since = Effect.fn("Moment.since")(function* (invocation: Invocation, otherwiseMs: number) {
  const text = invocation.values.since
  const now = yield* Clock.currentTimeMillis
  if (text === undefined) return utc(now - otherwiseMs)
  const age = ageMs(text)
  const at = age === null ? instant(text) : Math.max(0, now - age)
  if (at === null) return yield* wrong("since", "an age such as 1h or 7d, or 2026-03-01T12:00:00Z", text)
  return utc(at)
})

/** When it ends by itself, from `--until` or `--for`; null when neither is given. */
export const end = Effect.fn("Moment.end")(function* (invocation: Invocation) {
  const { until, for: lasting } = invocation.values
  if (until === undefined && lasting === undefined) return null
  if (until !== undefined && lasting !== undefined)
    return yield* new FlagWrong({ message: "--until and --for say the same thing twice: leave one of them out" })
  const now = yield* Clock.currentTimeMillis
  if (lasting !== undefined) {
    const ms = ageMs(lasting)
    return ms === null ? yield* wrong("for", "a time such as 2h", lasting) : utc(now + ms)
  }
  const at = instant(until ?? "")
  if (at === null) return yield* wrong("until", "a time such as 2026-03-01T12:00:00Z", until ?? "")
  if (at <= now) return yield* new FlagWrong({ message: `--until: ${utc(at)} is over, it is ${utc(now)}` })
  return utc(at)
})

/** Days only here: nobody waits for days at a terminal, but many look back so far. */
const ageMs = (text: string): number | null => {
  const days = /^(\d{1,5})d$/u.exec(text)
  return days === null ? durationMs(text) : Number(days[1]) * 86_400_000
}

/** Milliseconds since the epoch; null where the text is no RFC 3339. */
const instant = (text: string): number | null => {
  if (!/^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(?:\.\d{1,9})?(?:Z|[+-]\d{2}:\d{2})$/u.test(text)) return null
  const at = Date.parse(text)
  return Number.isNaN(at) ? null : at
}

const utc = (at: number): string => new Date(at).toISOString()

const wrong = (flag: OptionName, expected: string, found: string) =>
  new FlagWrong({ message: `--${flag}: expected ${expected}, found ${JSON.stringify(found.slice(0, 80))}` })
