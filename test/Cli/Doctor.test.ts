import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import { mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as Fake from "../CloudStack/FakeCloudStack.ts"
import { loopback } from "../support/Certificates.ts"
import * as Child from "./Child.ts"

describe("doctor", () => {
  it.scopedLive("reads CloudStack's clock as the daemon would: by its certificates, not by the system's (e4)", () =>
    Effect.gen(function* () {
      const dir = yield* Effect.acquireRelease(
        Effect.sync(() => mkdtempSync(join(tmpdir(), "volumed-doctor-"))),
        (made) => Effect.sync(() => rmSync(made, { recursive: true, force: true }))
      )
      const ca = join(dir, "ca.pem")
      writeFileSync(ca, loopback.cert)
      const cloud = yield* Fake.onLoopback(
        ({ command }) => (command === "listCapabilities" ? Fake.ok(command) : { body: "{}" }),
        loopback
      )
      const settings = {
        DATABASE_DSN: `sqlite:${join(dir, "volumed.db")}`,
        STATE_DIR: dir,
        CLOUDSTACK_API_URL: cloud.url,
        CLOUDSTACK_API_KEY: "key",
        CLOUDSTACK_SECRET_KEY: "secret",
        APPLIANCE_VM_ID: "8a4400e5-c92a-4bc4-8bff-4b6b0b6a018c"
      }
      const doctor = (env: Record<string, string>) =>
        Effect.map(
          Effect.promise(() => Child.run(["doctor"], { env })),
          ({ stdout }) => stdout
        )
      const trusting = yield* doctor({ ...settings, CLOUDSTACK_CA_FILE: ca })
      assert.match(trusting, /^ok +CloudStack +version/mu)
      assert.match(trusting, /^ok +clock +CloudStack's clock differs by \d s/mu)
      const called = cloud.calls.length
      const careless = yield* doctor({ ...settings, NODE_TLS_REJECT_UNAUTHORIZED: "0" })
      assert.match(careless, /^warn +clock +CloudStack's clock could not be read/mu)
      assert.match(careless, /^fail +CloudStack +/mu)
      assert.strictEqual(cloud.calls.length, called, "nothing reaches a server that nobody vouches for")
    })
  )

  it.scopedLive("finds the daemon held by whatever bears the hold file's name, as the daemon does", () =>
    Effect.gen(function* () {
      const dir = yield* Effect.acquireRelease(
        Effect.sync(() => mkdtempSync(join(tmpdir(), "volumed-doctor-"))),
        (made) => Effect.sync(() => rmSync(made, { recursive: true, force: true }))
      )
      const hold = join(dir, "hold")
      symlinkSync(join(dir, "nowhere"), hold)
      const env = {
        DATABASE_DSN: `sqlite:${join(dir, "volumed.db")}`,
        STATE_DIR: dir,
        HOLD_FILE: hold,
        CLOUDSTACK_API_URL: "http://127.0.0.1:9/client/api",
        CLOUDSTACK_API_KEY: "key",
        CLOUDSTACK_SECRET_KEY: "secret",
        APPLIANCE_VM_ID: "8a4400e5-c92a-4bc4-8bff-4b6b0b6a018c"
      }
      const { stdout } = yield* Effect.promise(() => Child.run(["doctor"], { env }))
      assert.match(stdout, /^fail +hold file +the hold file \S+ is there/mu)
    })
  )
})
