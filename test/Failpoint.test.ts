import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import { mkdtempSync, readFileSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as Child from "./kill/Child.ts"

const ENDS_MS = 30_000

const temporary = Effect.acquireRelease(
  Effect.sync(() => mkdtempSync(join(tmpdir(), "volumed-failpoint-"))),
  (dir) => Effect.sync(() => rmSync(dir, { recursive: true, force: true }))
)

const environmentIn = (dir: string): Readonly<Record<string, string>> => ({
  DATABASE_DSN: `sqlite:${join(dir, "volumed.db")}`,
  STATE_DIR: dir,
  LISTEN: "127.0.0.1:0",
  CLOUDSTACK_API_URL: "http://127.0.0.1:1/client/api",
  CLOUDSTACK_API_KEY: "key",
  CLOUDSTACK_SECRET_KEY: "secret",
  APPLIANCE_VM_ID: "8a4400e5-c92a-4bc4-8bff-4b6b0b6a018c",
  NBD_CONFIG: join(dir, "nbd", "config"),
  NBD_ACL_DIR: join(dir, "nbd", "acl"),
  HOLD_FILE: join(dir, "hold")
})

const sandbox = { SANDBOX: "1", NBD_BACKEND: "simulated" }

/** A daemon of the built program that has all it needs but a CloudStack that answers, and what it says. */
const daemon = (failpoint: string, around: Readonly<Record<string, string>>) =>
  Effect.gen(function* () {
    const dir = yield* temporary
    const log = join(dir, "log")
    const environment = { ...environmentIn(dir), ...around, VOLUMED_FAILPOINT: failpoint }
    const child = yield* Effect.acquireRelease(
      Effect.sync(() => Child.start(["serve"], environment, log)),
      ({ kill }) => Effect.promise(kill)
    )
    return { child, ended: Effect.promise(() => child.ended(ENDS_MS)), said: () => readFileSync(log, "utf8") }
  })

describe("a failpoint", () => {
  it.scopedLive("stops the start of a daemon that is no sandbox's, instead of ending it one day", () =>
    Effect.gen(function* () {
      const { child, ended, said } = yield* daemon("commit.done:1", {})
      assert.isTrue(yield* ended)
      assert.strictEqual(child.end(), 1)
      assert.match(said(), /VOLUMED_FAILPOINT: would end the daemon/)
    })
  )

  it.scopedLive("that does not exist stops the start, for a test of nothing would pass", () =>
    Effect.gen(function* () {
      const { child, ended, said } = yield* daemon("commit.dome:1", sandbox)
      assert.isTrue(yield* ended)
      assert.strictEqual(child.end(), 1)
      assert.match(said(), /"commit\.dome:1" names none of .*commit\.done/)
    })
  )

  it.scopedLive("ends a sandbox's daemon where it is passed, as kill -9 would, with what was done before (P1)", () =>
    Effect.gen(function* () {
      const { child, ended } = yield* daemon("commit.done:1", sandbox)
      const ready = yield* Effect.promise(() => child.said(/ready on (http:\S+?)[;\s]/, ENDS_MS))
      const url = `${ready?.[1]}/api/v2/maintenance`
      const body = JSON.stringify({ reason: "test", by: "test" })
      const asked = Effect.tryPromise(() => fetch(url, { method: "PUT", body, headers: JSON_BODY }))
      assert.isTrue(yield* Effect.isFailure(asked))
      assert.isTrue(yield* ended)
      assert.strictEqual(child.end(), "SIGKILL")
    })
  )
})

const JSON_BODY = { "content-type": "application/json" }
