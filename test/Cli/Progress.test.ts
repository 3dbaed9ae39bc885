import { assert, describe, it } from "@effect/vitest"
import { Effect, Fiber, TestClock } from "effect"
import * as Progress from "../../src/Cli/Progress.ts"
import * as Recording from "./Recording.ts"

const line = (name: string, state: Progress.Line["state"], text: string): Progress.Line => ({
  name,
  state,
  key: text,
  text
})

describe("progress into a pipe", () => {
  it.effect("writes one line for each change of state and none for a repetition", () => {
    const recording = Recording.make()
    return Effect.gen(function* () {
      const progress = yield* Progress.make
      yield* progress.show([line("a", "moving", "create"), line("b", "moving", "create")])
      yield* TestClock.adjust("2 seconds")
      yield* progress.show([line("a", "moving", "create"), line("b", "moving", "attach")])
      yield* progress.show([line("a", "moving", "create"), line("b", "moving", "attach")])
      yield* progress.show([{ ...line("a", "moving", "create"), text: "create, 3 s" }, line("b", "done", "Ready")])
      assert.deepStrictEqual(recording.notes().split("\n"), [
        "   0.0s  a  create",
        "   0.0s  b  create",
        "   2.0s  b  attach",
        "   2.0s  b  Ready",
        ""
      ])
      assert.strictEqual(recording.results(), "")
    }).pipe(Effect.scoped, Effect.provide(recording.layer))
  })

  it.effect("never writes an escape sequence, not even one hidden in a message", () => {
    const recording = Recording.make()
    return Effect.gen(function* () {
      const progress = yield* Progress.make
      yield* progress.show([line("a", "blocked", "\u001b[2Jgone\nforged line")])
      assert.strictEqual(recording.notes(), "   0.0s  a  \\u001b[2Jgone\\u000aforged line\n")
    }).pipe(Effect.scoped, Effect.provide(recording.layer))
  })
})

describe("progress on a terminal", () => {
  it("never draws wider or higher than the screen, and keeps what is not done in sight", () => {
    const lines = [
      ...Array.from({ length: 50 }, (_, index) => line(`volume-${index}`, "done", "Ready ".repeat(40))),
      line("late", "moving", "attach"),
      line("stuck", "blocked", "VmFull")
    ]
    for (const [columns, rows] of [
      [80, 24],
      [20, 5],
      [200, 100],
      [10, 3]
    ] as const) {
      const frame = Progress.frame(lines, { columns, rows }, 1000)
      assert.isBelow(frame.length, rows, `${columns}x${rows}`)
      for (const row of frame) assert.isBelow(row.length, columns, row)
    }
    const small = Progress.frame(lines, { columns: 80, rows: 8 }, 1000).join("\n")
    assert.include(small, "! stuck")
    assert.include(small, "· late")
    assert.include(small, "and 48 more")
    assert.include(small, "50 of 52 Ready after 1.0s")
  })

  it.effect("shows the cursor again however it ends", () => {
    const recording = Recording.make({ screen: () => ({ columns: 80, rows: 24 }) })
    return Effect.gen(function* () {
      const fiber = yield* Effect.fork(
        Effect.scoped(
          Effect.flatMap(Progress.make, (p) => p.show([line("a", "moving", "x")]).pipe(Effect.zipRight(Effect.never)))
        )
      )
      yield* Effect.yieldNow()
      yield* TestClock.adjust("1 second")
      yield* Fiber.interrupt(fiber)
      assert.isTrue(recording.notes().startsWith("\u001b[?25l"))
      assert.isTrue(recording.notes().endsWith("\u001b[?25h"))
    }).pipe(Effect.provide(recording.layer))
  })

  it.effect("goes back as many rows as the last picture takes in a window that became narrower", () => {
    let columns = 80
    const recording = Recording.make({ screen: () => ({ columns, rows: 24 }) })
    return Effect.gen(function* () {
      const progress = yield* Progress.make
      yield* progress.show([line("a", "moving", "m".repeat(60))])
      columns = 40
      yield* progress.show([line("a", "moving", "m")])
      // Two lines were drawn; the first, 65 characters long, now takes two rows.
      assert.include(recording.notes(), "\r\u001b[3A\u001b[J· a  m\n")
    }).pipe(Effect.scoped, Effect.provide(recording.layer))
  })
})
