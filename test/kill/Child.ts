import { type ChildProcess, spawn } from "node:child_process"
import { once } from "node:events"
import { closeSync, openSync, readFileSync, statSync } from "node:fs"
import { setTimeout as sleep } from "node:timers/promises"
import * as Build from "../support/Build.ts"

/** A process of the built program, whose words go to a file: nobody need read them for it to go on. */
export interface Child {
  /** Resolves when it said so; false when it ended first, or has said nothing of the kind after `timeoutMs`. */
  readonly said: (pattern: RegExp, timeoutMs: number) => Promise<RegExpExecArray | null>
  /** How it ended; false when it has not after `timeoutMs`. */
  readonly ended: (timeoutMs: number) => Promise<boolean>
  /** Its exit code, or the signal that ended it; null while it runs. */
  readonly end: () => number | NodeJS.Signals | null
  readonly running: () => boolean
  /** `SIGKILL`, waited for. */
  readonly kill: () => Promise<void>
  /** `SIGTERM`, and `SIGKILL` where that did not end it. */
  readonly stop: () => Promise<void>
}

const LOOK_MS = 10
const STOP_MS = 15_000

export const start = (
  args: ReadonlyArray<string>,
  environment: Readonly<Record<string, string>>,
  logFile: string
): Child => {
  const log = openSync(logFile, "a")
  const from = statSync(logFile).size
  const child = spawn(process.execPath, [Build.program, ...args], {
    env: { PATH: process.env["PATH"] ?? "", HOME: "/nonexistent", ...environment },
    stdio: ["ignore", "ignore", log]
  })
  closeSync(log)
  const closed = once(child, "exit")
  const running = () => isRunning(child)
  const ended = async (timeoutMs: number) =>
    running() ? Promise.race([closed.then(() => true), sleep(timeoutMs, false, { ref: false })]) : true
  const kill = async () => {
    if (!running()) return
    child.kill("SIGKILL")
    await closed
  }
  return {
    running,
    ended,
    kill,
    end: () => child.exitCode ?? child.signalCode,
    said: async (pattern, timeoutMs) => {
      for (const until = Date.now() + timeoutMs; Date.now() < until; await sleep(LOOK_MS)) {
        const found = pattern.exec(readFileSync(logFile).subarray(from).toString("utf8"))
        if (found !== null) return found
        if (!running()) return null
      }
      return null
    },
    stop: async () => {
      if (running()) child.kill("SIGTERM")
      if (!(await ended(STOP_MS))) await kill()
    }
  }
}

const isRunning = (child: ChildProcess) => child.exitCode === null && child.signalCode === null
