import { Clock, Effect, Ref, type Scope } from "effect"
import { clean, Output, type Paint, type Screen } from "./Output.ts"

/** Where one volume stands. */
export interface Line {
  readonly name: string
  readonly state: "done" | "moving" | "blocked"
  /** What makes this another state than before, for a pipe; the text may change without. */
  readonly key: string
  readonly text: string
}

export interface Progress {
  /** Show where all volumes stand now. In a pipe only what changed is written. */
  readonly show: (lines: ReadonlyArray<Line>) => Effect.Effect<void>
}

/**
 * Live progress on standard error: one line a volume, redrawn in place on a terminal; one line a change of state in a
 * pipe. The cursor comes back when the scope ends, however it ends.
 */
export const make: Effect.Effect<Progress, never, Output | Scope.Scope> = Effect.gen(function* () {
  const output = yield* Output
  const started = yield* Clock.currentTimeMillis
  const elapsed = Effect.map(Clock.currentTimeMillis, (now) => now - started)
  if ((yield* output.screen) === null) return yield* inPipe(elapsed)
  return yield* onTerminal(elapsed)
})

const inPipe = (elapsed: Effect.Effect<number>): Effect.Effect<Progress, never, Output> =>
  Effect.gen(function* () {
    const output = yield* Output
    const shown = yield* Ref.make<ReadonlyMap<string, string>>(new Map())
    return {
      show: (lines) =>
        Effect.gen(function* () {
          const before = yield* Ref.getAndSet(shown, new Map(lines.map((line) => [line.name, keyOf(line)])))
          const at = seconds(yield* elapsed)
          const changed = lines.filter((line) => before.get(line.name) !== keyOf(line))
          if (changed.length === 0) return
          yield* output.note(changed.map((line) => `${at}  ${clean(line.name)}  ${clean(line.text)}\n`).join(""))
        })
    }
  })

const keyOf = (line: Line): string => `${line.state} ${line.key}`

const HIDE_CURSOR = "\u001b[?25l"
const SHOW_CURSOR = "\u001b[?25h"

const onTerminal = (elapsed: Effect.Effect<number>): Effect.Effect<Progress, never, Output | Scope.Scope> =>
  Effect.gen(function* () {
    const output = yield* Output
    const drawn = yield* Ref.make<ReadonlyArray<string>>([])
    yield* Effect.acquireRelease(output.note(HIDE_CURSOR), () => output.note(SHOW_CURSOR))
    return {
      show: (lines) =>
        Effect.gen(function* () {
          // The size is asked each time: that is how a resized window is followed.
          const screen = (yield* output.screen) ?? { columns: 80, rows: 24 }
          const next = frame(lines, screen, yield* elapsed)
          const before = yield* Ref.getAndSet(drawn, next)
          const painted = next.map((text) => paintRow(text, output.notePaint))
          yield* output.note(`${rewind(before, screen)}${painted.map((text) => `${text}\n`).join("")}`)
        })
    }
  })

/** Back to the first row of what was drawn, which takes more rows than lines when the window became narrower. */
const rewind = (before: ReadonlyArray<string>, screen: Screen): string => {
  const rows = before.reduce((sum, text) => sum + Math.max(1, Math.ceil(text.length / screen.columns)), 0)
  const up = Math.min(rows, screen.rows - 1)
  return up === 0 ? "\r\u001b[J" : `\r\u001b[${up}A\u001b[J`
}

/**
 * The rows of one picture: a summary, then the volumes, those that are not done first when they do not all fit. Never
 * wider or higher than the screen, for a line that wraps or scrolls away cannot be drawn over.
 */
export const frame = (lines: ReadonlyArray<Line>, screen: Screen, elapsedMs: number): ReadonlyArray<string> => {
  const done = lines.filter((line) => line.state === "done").length
  const room = Math.max(1, screen.rows - 3)
  const shown = fit(lines, room)
  const width = shown.reduce((most, line) => Math.max(most, clean(line.name).length), 0)
  const rows = shown.map((line) => `${marks[line.state]} ${clean(line.name).padEnd(width)}  ${clean(line.text)}`)
  const left = lines.length - shown.length
  return [
    ...rows,
    ...(left > 0 ? [`  and ${left} more`] : []),
    `${done} of ${lines.length} Ready after ${seconds(elapsedMs).trim()}`
  ]
    .slice(-Math.max(1, screen.rows - 1))
    .map((text) => (text.length >= screen.columns ? `${text.slice(0, Math.max(1, screen.columns - 2))}…` : text))
}

const marks = { done: "✓", moving: "·", blocked: "!" } as const

const fit = (lines: ReadonlyArray<Line>, room: number): ReadonlyArray<Line> => {
  if (lines.length <= room) return lines
  const order = { blocked: 0, moving: 1, done: 2 } as const
  return lines.toSorted((a, b) => order[a.state] - order[b.state]).slice(0, Math.max(1, room - 1))
}

const paintRow = (text: string, paint: Paint): string => {
  if (text.startsWith(marks.done)) return paint.good(text)
  if (text.startsWith(marks.blocked)) return paint.bad(text)
  return text
}

const seconds = (ms: number): string => `${(ms / 1000).toFixed(1)}s`.padStart(7)
