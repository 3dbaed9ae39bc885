import { assert } from "@effect/vitest"
import { mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as Processes from "../../src/Nbd/Processes.ts"
import * as Child from "./Child.ts"

/** The built program as users run it: a daemon on a sandbox of its own, and the client commands against it. */
export interface Stage {
  readonly folder: string
  readonly server: string
  /** The simulated CloudStack, without a path. */
  readonly cloud: string
  readonly volumed: (args: ReadonlyArray<string>, options?: Child.Options) => Promise<Child.Ended>
  /** It must end well; its result. */
  readonly result: (...args: ReadonlyArray<string>) => Promise<string>
  /** Its result as the value it is. */
  readonly json: (...args: ReadonlyArray<string>) => Promise<unknown>
  readonly file: (name: string, text: string) => string
  /** What somebody else does in CloudStack. */
  readonly act: (body: unknown) => Promise<unknown>
  readonly stop: () => Promise<void>
}

export const start = async (env: Readonly<Record<string, string>> = {}): Promise<Stage> => {
  const folder = mkdtempSync(join(tmpdir(), "volumed-cli-"))
  const daemon = Child.start(["serve", "--sandbox", "--listen", "127.0.0.1:0", "--state", join(folder, "state")], {
    env: { POLL_INTERVAL: "300ms", LOG_LEVEL: "error", ...env }
  })
  const [, server = "", cloud = ""] = await Child.said(
    daemon,
    "stderr",
    /volumed ready on (\S+);.*CloudStack on (\S+),/u
  )
  const volumed: Stage["volumed"] = (args, options = {}) =>
    Child.run(args, { ...options, env: { VOLUMED_SERVER: server, ...options.env } })
  const result: Stage["result"] = async (...args) => {
    const ended = await volumed(args)
    assert.strictEqual(ended.code, 0, `volumed ${args.join(" ")}: ${ended.stderr}`)
    return ended.stdout
  }
  return {
    folder,
    server,
    cloud,
    volumed,
    result,
    json: async (...args) => JSON.parse(await result(...args, "-o", "json")) as unknown,
    file: (name, text) => {
      const path = join(folder, name)
      writeFileSync(path, text)
      return path
    },
    act: async (body) => {
      const answer = await fetch(`${cloud}/sandbox/act`, { method: "POST", body: JSON.stringify(body) })
      assert.isTrue(answer.ok, `the operator's act was refused: ${answer.status}`)
      return answer.json()
    },
    stop: async () => {
      await Child.stop(daemon)
      // A kept state keeps its NBD server, as in production; here nobody takes it up again.
      const config = join(folder, "state/nbd/config-base")
      for (const main of Processes.servers(config)) Processes.kill(main, config)
      rmSync(folder, { recursive: true, force: true })
    }
  }
}

export const declaration = (name: string, ...lines: ReadonlyArray<string>) =>
  ["volumes:", `  - name: ${name}`, ...lines.map((line) => `    ${line}`), ""].join("\n")
