import { assert, describe, it } from "@effect/vitest"
import { Effect, Layer, Stream } from "effect"
import { execFileSync } from "node:child_process"
import * as Fs from "node:fs"
import * as Os from "node:os"
import * as Path from "node:path"
import { forFence, Gate } from "../reconciler/Gate.ts"
import { Leadership, type Role } from "../reconciler/Leadership.ts"
import { GateClosed } from "../schema/Errors.ts"
import * as Gates from "../src/Gate.ts"
import { Shutter } from "../src/Gate.ts"

const leader: Role = { _tag: "Leading", term: 1, since: 0 }

const under = (role: Role, check: Leadership["Type"]["check"] = Effect.void) =>
  Layer.succeed(Leadership, { role: Effect.succeed(role), roles: Stream.make(role), check })

const layer = (options: Parameters<typeof Gates.layer>[0], leadership = under(leader)) =>
  Layer.provide(Gates.layer(options), leadership)

const temporary = Effect.acquireRelease(
  Effect.sync(() => Fs.mkdtempSync(Path.join(Os.tmpdir(), "volumed-gate-"))),
  (directory) => Effect.sync(() => Fs.rmSync(directory, { recursive: true, force: true }))
)

describe("the gate", () => {
  it.scoped("is open without a hold file, closed from the moment there is one, and open again after it", () =>
    Effect.gen(function* () {
      const hold_file = Path.join(yield* temporary, "hold")
      yield* Effect.gen(function* () {
        const gate = yield* Gate
        yield* gate.check
        assert.isNull(yield* gate.reason)
        Fs.writeFileSync(hold_file, "storage upgrade until 18:00\n")
        const closed = yield* Effect.flip(gate.check)
        assert.strictEqual(closed._tag, "GateClosed")
        assert.include(closed.detail, "storage upgrade until 18:00")
        assert.include(yield* gate.reason, hold_file)
        Fs.rmSync(hold_file)
        yield* gate.check
      }).pipe(Effect.provide(layer({ hold_file, dry_run: false })))
    })
  )

  it.scoped(
    "is closed by anything that bears the hold file's name, and shows its text bounded and harmless (X11)",
    () =>
      Effect.gen(function* () {
        const directory = yield* temporary
        const file = (name: string, make: (path: string) => void) => {
          const path = Path.join(directory, name)
          make(path)
          return path
        }
        const held = [
          file("empty", (path) => Fs.writeFileSync(path, "")),
          file("directory", (path) => Fs.mkdirSync(path)),
          file("dangling", (path) => Fs.symlinkSync("/nonexistent", path)),
          file("loop", (path) => Fs.symlinkSync(path, path)),
          file("pipe", (path) => execFileSync("mkfifo", [path])),
          file("huge", (path) => Fs.writeFileSync(path, "x".repeat(1_000_000))),
          file("hostile", (path) => Fs.writeFileSync(path, "\u001b[2Jgone\nlevel=error\u0000\u2028\u009b")),
          file("binary", (path) => Fs.writeFileSync(path, Buffer.from([0xff, 0xfe, 0, 1]))),
          Path.join(directory, "x".repeat(300)),
          Path.join(directory, "empty", "below-a-file")
        ]
        for (const hold_file of held) {
          const reason = yield* Effect.flatMap(Gate, (gate) => gate.reason).pipe(
            Effect.provide(layer({ hold_file, dry_run: false }))
          )
          assert.isString(reason, hold_file)
          assert.isBelow(reason?.length ?? 0, 2000)
          assert.notMatch(reason ?? "", /[\u0000-\u001f\u007f-\u009f\u2028\u2029]/)
        }
      })
  )

  it.effect("never opens in a dry run", () =>
    Effect.gen(function* () {
      const gate = yield* Gate
      assert.include((yield* Effect.flip(gate.check)).message, "dry run")
    }).pipe(Effect.provide(layer({ hold_file: "/nonexistent/hold", dry_run: true })))
  )

  it.effect("closes for good when the daemon shuts down, and keeps the first reason (P3)", () =>
    Effect.gen(function* () {
      const gate = yield* Gate
      const shutter = yield* Shutter
      yield* gate.check
      yield* shutter.close("volumed is shutting down")
      yield* shutter.close("again")
      assert.strictEqual(yield* gate.reason, "volumed is shutting down")
      assert.strictEqual((yield* Effect.flip(gate.check))._tag, "GateClosed")
    }).pipe(Effect.provide(layer({ hold_file: "/nonexistent/hold", dry_run: false })))
  )

  it.effect(
    "is closed where another process leads or the database does not say, and shows that as its reason (S16)",
    () =>
      Effect.gen(function* () {
        const open = { hold_file: "/nonexistent/hold", dry_run: false }
        const late = new GateClosed({ detail: "another process leads by now" })
        for (const [role, words] of [
          [{ _tag: "Standby", leader: "b pid 2" }, "b pid 2"],
          [{ _tag: "Unreachable", detail: "it is away" }, "it is away"]
        ] as const) {
          const gate = yield* Effect.provide(Gate, layer(open, under(role, late)))
          assert.include(yield* gate.reason, words)
          assert.strictEqual((yield* Effect.flip(gate.check))._tag, "GateClosed")
        }
        const deposed = yield* Effect.provide(Gate, layer(open, under(leader, late)))
        assert.isNull(yield* deposed.reason, "as last known")
        assert.include((yield* Effect.flip(deposed.check)).message, "by now", "as the database says now")
      })
  )

  it.scoped(
    "lets a fence pass while nobody is known to lead, without the database, but no hold file and no other leader",
    () =>
      Effect.gen(function* () {
        const hold_file = Path.join(yield* temporary, "hold")
        const dead = Effect.die(new Error("the database was asked"))
        const fenced = (role: Role, dry_run = false) =>
          Effect.flatMap(Gate, (gate) => Effect.isSuccess(forFence(gate.check))).pipe(
            Effect.provide(layer({ hold_file, dry_run }, under(role, dead)))
          )
        const away: Role = { _tag: "Unreachable", detail: "connect ECONNREFUSED" }
        assert.isTrue(yield* fenced(leader))
        assert.isTrue(yield* fenced(away))
        assert.isFalse(yield* fenced({ _tag: "Standby", leader: "oma-2" }))
        assert.isFalse(yield* fenced(away, true), "a dry run does nothing at all")
        Fs.writeFileSync(hold_file, "")
        assert.isFalse(yield* fenced(leader))
        assert.isFalse(yield* fenced(away))
      })
  )
})
