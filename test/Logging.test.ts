import { assert, describe, it } from "@effect/vitest"
import { Cause, Effect, Redacted } from "effect"
import { closeSync, fstatSync, mkdtempSync, openSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import type { Settings } from "../schema/Settings.ts"
import { isJournal, layer } from "../src/Logging.ts"

const hostile = "a\nlevel=error\r\u001b[31m\u2028\u0085\u0000b"

const logged = (settings: Pick<Settings, "log_level" | "log_format">, toJournal = false) =>
  Effect.gen(function* () {
    const lines: Array<string> = []
    yield* Effect.gen(function* () {
      yield* Effect.logDebug("unseen")
      yield* Effect.logInfo(hostile).pipe(
        Effect.annotateLogs({ volume: hostile, key: Redacted.make("canary"), time: "mine", n: 5 })
      )
      yield* Effect.logError("it broke", Cause.fail(new Error(hostile, { cause: new Error("deeper") })))
    }).pipe(Effect.provide(layer(settings, (line) => lines.push(line), toJournal)))
    return lines
  })

describe("logging", () => {
  it.effect("writes one JSON object a line, whatever is in the text (X11)", () =>
    Effect.gen(function* () {
      const lines = yield* logged({ log_level: "info", log_format: "json" })
      assert.strictEqual(lines.length, 2)
      for (const line of lines) {
        assert.strictEqual(line.indexOf("\n"), line.length - 1)
        assert.notMatch(line.slice(0, -1), /[\u0000-\u001f\u007f-\u009f\u2028\u2029]/)
      }
      const [first, second] = lines.map((line) => JSON.parse(line))
      assert.deepInclude(first, {
        level: "info",
        message: hostile,
        volume: hostile,
        n: 5,
        key: "<redacted>",
        _time: "mine"
      })
      assert.match(first.time, /^\d{4}-\d{2}-\d{2}T/)
      assert.strictEqual(second.level, "error")
      assert.include(second.cause, "deeper")
    })
  )

  it.effect("writes for people without letting the text steer the terminal or forge a line (X11, S20)", () =>
    Effect.gen(function* () {
      const text = (yield* logged({ log_level: "info", log_format: "pretty" })).join("")
      assert.notMatch(text.replaceAll("\n", ""), /[\u0000-\u001f\u007f-\u009f\u2028\u2029]/)
      assert.strictEqual(text.split("\n").filter((line) => line.startsWith("level=error")).length, 0)
      assert.include(text, "volume=a\\u000alevel=error")
      assert.notInclude(text, "canary")
      assert.include(text, "    ")
    })
  )

  it.effect("keeps to its level", () =>
    Effect.gen(function* () {
      assert.strictEqual((yield* logged({ log_level: "debug", log_format: "json" })).length, 3)
      assert.strictEqual((yield* logged({ log_level: "error", log_format: "json" })).length, 1)
    })
  )

  it.effect("tells the journal how grave each line is, however many an event has (e5)", () =>
    Effect.gen(function* () {
      const json = yield* logged({ log_level: "debug", log_format: "json" }, true)
      assert.deepStrictEqual(
        json.map((line) => line.slice(0, 4)),
        ["<7>{", "<6>{", "<3>{"]
      )
      const [, , error] = yield* logged({ log_level: "debug", log_format: "pretty" }, true)
      const lines = (error ?? "").trimEnd().split("\n")
      assert.isAbove(lines.length, 2)
      assert.deepStrictEqual(
        lines.filter((line) => !line.startsWith("<3>")),
        []
      )
    })
  )

  it("takes its stream for the journal's only where it is that very stream", () => {
    const dir = mkdtempSync(join(tmpdir(), "volumed-journal-"))
    const descriptor = openSync(join(dir, "stream"), "w")
    try {
      const { dev, ino } = fstatSync(descriptor)
      assert.isTrue(isJournal(`${dev}:${ino}`, descriptor))
      assert.isFalse(isJournal(`${dev}:${ino + 1}`, descriptor))
      assert.isFalse(isJournal(undefined, descriptor))
      assert.isFalse(isJournal("", descriptor))
    } finally {
      closeSync(descriptor)
      rmSync(dir, { recursive: true })
    }
  })
})
