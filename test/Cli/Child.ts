import { spawn, type ChildProcess } from "node:child_process"
import { once } from "node:events"
import { program } from "../support/Build.ts"

export interface Ended {
  readonly code: number | null
  readonly stdout: string
  readonly stderr: string
}

export interface Options {
  readonly env?: Readonly<Record<string, string>>
  /** What stands in standard input, which is never a terminal here. */
  readonly input?: string
  readonly cwd?: string
}

/** Nothing of this machine's own settings reaches the program. */
const environment = (env: Readonly<Record<string, string>>) => ({
  PATH: process.env["PATH"] ?? "",
  HOME: "/nonexistent",
  ...env
})

export const start = (args: ReadonlyArray<string>, options: Options = {}) =>
  spawn(process.execPath, [program, ...args], { env: environment(options.env ?? {}), cwd: options.cwd })

/** The built program, from its start to its end. */
export const run = async (args: ReadonlyArray<string>, options: Options = {}): Promise<Ended> => {
  const child = start(args, options)
  const ended = collect(child)
  child.stdin.on("error", () => {})
  child.stdin.end(options.input ?? "")
  return ended
}

export const collect = async (child: ReturnType<typeof start>): Promise<Ended> => {
  let stdout = ""
  let stderr = ""
  child.stdout.setEncoding("utf8").on("data", (text: string) => (stdout += text))
  child.stderr.setEncoding("utf8").on("data", (text: string) => (stderr += text))
  const [code] = (await once(child, "close")) as [number | null]
  return { code, stdout, stderr }
}

/** What the program writes until it matches; it fails when the program ends first. */
export const said = (
  child: ReturnType<typeof start>,
  stream: "stdout" | "stderr",
  pattern: RegExp
): Promise<RegExpExecArray> =>
  new Promise((resolve, reject) => {
    let text = ""
    child[stream].setEncoding("utf8").on("data", (more: string) => {
      text += more
      const match = pattern.exec(text)
      if (match !== null) resolve(match)
    })
    child.once("close", (code) => reject(new Error(`ended with ${code}: ${text}`)))
  })

export const stop = async (child: ChildProcess): Promise<void> => {
  if (child.exitCode !== null || child.signalCode !== null) return
  const closed = once(child, "close")
  child.kill("SIGTERM")
  await closed
}
