import { assert, describe, it } from "@effect/vitest"
import { Effect, Exit, Fiber, Logger, Ref, Schedule, Scope, TestClock } from "effect"
import { chmodSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as Notify from "../src/Notify.ts"

/** A systemd that keeps what it is told. */
const systemd = (
  environment: Readonly<Record<string, string>>,
  answer: Effect.Effect<void, Notify.NotTold> = Effect.void
) => {
  const told: Array<string> = []
  const options: Notify.Options = {
    environment,
    pid: 4711,
    send: (socket, assignments) => {
      told.push([socket, ...assignments].join(" "))
      return answer
    }
  }
  return { options, told }
}

const service = (changed: Partial<Notify.Service> = {}): Notify.Service => ({
  status: Effect.succeed("acting"),
  works: Effect.succeed(true),
  ...changed
})

const asked = { NOTIFY_SOCKET: "/run/notify" }

describe("telling systemd", () => {
  it.scoped("says at once that it is ready and what it is at, in one line whatever that is (X11)", () =>
    Effect.gen(function* () {
      const { options, told } = systemd(asked)
      yield* Notify.announce(service({ status: Effect.succeed("held;\nREADY=0\u001b[31m") }), options)
      assert.deepStrictEqual(told, ["/run/notify READY=1 STATUS=held; READY=0 [31m"])
    })
  )

  it.scoped("says nothing where no systemd asks", () =>
    Effect.gen(function* () {
      for (const environment of [{ WATCHDOG_USEC: "1000000" }, { NOTIFY_SOCKET: "" }]) {
        const { options, told } = systemd(environment)
        yield* Effect.scoped(Effect.andThen(Notify.announce(service(), options), TestClock.adjust("1 minute")))
        assert.deepStrictEqual(told, [])
      }
    })
  )

  it.scoped("answers the watchdog at half of its time while passes begin, and only then (L5)", () =>
    Effect.gen(function* () {
      const { options, told } = systemd({ ...asked, WATCHDOG_USEC: "120000000", WATCHDOG_PID: "4711" })
      const passing = yield* Ref.make(true)
      yield* Notify.announce(service({ works: Ref.get(passing) }), options)
      told.length = 0
      yield* TestClock.adjust("59 seconds")
      assert.deepStrictEqual(told, [])
      yield* TestClock.adjust("61 seconds")
      assert.deepStrictEqual(told, ["/run/notify WATCHDOG=1", "/run/notify WATCHDOG=1"])
      yield* Ref.set(passing, false)
      yield* TestClock.adjust("10 minutes")
      assert.strictEqual(told.length, 2)
      yield* Ref.set(passing, true)
      // Not at the next half of its time, which may be too late.
      yield* TestClock.adjust("1 second")
      assert.strictEqual(told.length, 3)
    })
  )

  it.scoped("tells what it is at when that has changed, with no watchdog or one for another process too", () =>
    Effect.gen(function* () {
      for (const environment of [asked, { ...asked, WATCHDOG_USEC: "1000000", WATCHDOG_PID: "1" }]) {
        const { options, told } = systemd(environment)
        const status = yield* Ref.make("acting")
        yield* Notify.announce(service({ status: Ref.get(status) }), options)
        told.length = 0
        yield* TestClock.adjust("5 minutes")
        assert.deepStrictEqual(told, [])
        yield* Ref.set(status, "the hold file says: wait")
        yield* TestClock.adjust("5 minutes")
        assert.deepStrictEqual(told, ["/run/notify STATUS=the hold file says: wait"])
      }
    })
  )

  it.scoped("says that it stops, and is then silent", () =>
    Effect.gen(function* () {
      const { options, told } = systemd({ ...asked, WATCHDOG_USEC: "2000000" })
      const scope = yield* Scope.make()
      yield* Notify.announce(service(), options).pipe(Scope.extend(scope))
      told.length = 0
      yield* Scope.close(scope, Exit.void)
      yield* TestClock.adjust("1 minute")
      assert.deepStrictEqual(told, ["/run/notify STOPPING=1"])
    })
  )

  it.scoped("complains once of a systemd that cannot be told, or does not listen, and works on", () =>
    Effect.gen(function* () {
      for (const answer of [Effect.fail(new Notify.NotTold({ why: "it failed with 1" })), Effect.never]) {
        const { options, told } = systemd({ ...asked, WATCHDOG_USEC: "2000000" }, answer)
        const logged: Array<string> = []
        const logger = Logger.make<unknown, void>(({ message }) => void logged.push(String(message)))
        const scope = yield* Scope.make()
        yield* Notify.announce(service(), options).pipe(
          Scope.extend(scope),
          Effect.provide(Logger.replace(Logger.defaultLogger, logger)),
          Effect.forkScoped
        )
        yield* TestClock.adjust("1 minute")
        const closing = yield* Effect.fork(Scope.close(scope, Exit.void))
        yield* TestClock.adjust("1 second")
        yield* Fiber.join(closing)
        assert.isAbove(told.length, 5)
        assert.deepStrictEqual(logged, ["systemd could not be told"])
      }
    })
  )
})

describe("systemd-notify", () => {
  const often = Schedule.intersect(Schedule.spaced("10 millis"), Schedule.recurs(1_000))
  const machine = (script: string) =>
    Effect.map(
      Effect.acquireRelease(
        Effect.sync(() => mkdtempSync(join(tmpdir(), "volumed-notify-"))),
        (made) => Effect.sync(() => rmSync(made, { recursive: true, force: true }))
      ),
      (dir) => {
        writeFileSync(join(dir, "systemd-notify"), `#!/bin/sh\n${script}\n`)
        chmodSync(join(dir, "systemd-notify"), 0o755)
        return { dir, send: Notify.byProgram(["/nonexistent", dir]) }
      }
    )

  it.scopedLive("is run with an argument for each line and of the environment with the socket alone (S20)", () =>
    Effect.gen(function* () {
      const { dir, send } = yield* machine(
        'printf "%s\\n" "$NOTIFY_SOCKET" "$@" "$(env | grep -c ^VITEST)" >"$(dirname "$0")/told"'
      )
      yield* send("/run/notify", ["READY=1", "STATUS=$(id); two words"])
      assert.strictEqual(process.env["VITEST"], "true")
      assert.strictEqual(readFileSync(join(dir, "told"), "utf8"), "/run/notify\nREADY=1\nSTATUS=$(id); two words\n0\n")
    })
  )

  it.scopedLive("tells by its exit whether systemd was told, and is ended where nobody waits for it any more", () =>
    Effect.gen(function* () {
      const failing = yield* machine("exit 3")
      assert.include((yield* Effect.flip(failing.send("/run/notify", ["READY=1"]))).message, "failed with 3")
      const absent = Notify.byProgram(["/nonexistent"])
      assert.include((yield* Effect.flip(absent("/run/notify", ["READY=1"]))).message, "is not in /nonexistent")
      const { dir, send } = yield* machine('echo $$ >"$(dirname "$0")/pid"; exec sleep 600')
      const begun = Effect.sync(() => readFileSync(join(dir, "pid"), "utf8").trim()).pipe(
        Effect.filterOrFail((pid) => pid !== ""),
        Effect.sandbox,
        Effect.retry(often)
      )
      const pid = Number(yield* Effect.raceFirst(begun, Effect.as(send("/run/notify", ["READY=1"]), "0")))
      const gone = Effect.sync(() => readFileSync(`/proc/${pid}/stat`, "latin1").split(" ")[2] === "Z").pipe(
        Effect.catchAllDefect(() => Effect.succeed(true))
      )
      yield* Effect.repeat(gone, { until: (now) => now, schedule: often })
      assert.isTrue(yield* gone)
    })
  )
})
