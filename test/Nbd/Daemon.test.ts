import { assert, describe, it } from "vitest"
import { Effect } from "effect"
import { readlinkSync, renameSync, symlinkSync } from "node:fs"
import { dirname, join } from "node:path"
import { setTimeout as sleep } from "node:timers/promises"
import type { Volume, VolumeList } from "../../schema/Api.ts"
import * as Handshake from "../../src/Nbd/Handshake.ts"
import * as Processes from "../../src/Nbd/Processes.ts"
import * as Site from "../kill/Site.ts"

/*
 * The built daemon over a sandbox's CloudStack and guest and a real nbd-server: what is done to the server or to a by-id
 * link behind its back is seen by itself and repaired, with nobody asking.
 */

const READY_MS = 60_000
const REPAIR_MS = 90_000
const LOOK_MS = 50

/** Until it holds; how long that took, ms. */
const until = async (what: string, ms: number, holds: () => boolean | Promise<boolean>): Promise<number> => {
  const begin = Date.now()
  for (; Date.now() < begin + ms; await sleep(LOOK_MS)) if (await holds()) return Date.now() - begin
  throw new Error(`still not so after ${ms} ms: ${what}`)
}

const volumes = async (site: Site.Site): Promise<ReadonlyArray<Volume>> => {
  const answer = await fetch(`${site.origin()}/api/v2/volumes`).catch(() => null)
  return answer?.ok === true ? ((await answer.json()) as VolumeList).items : []
}

const condition = (volume: Volume | undefined) => volume?.status.conditions.find(({ type }) => type === "Ready")

const allReady = async (site: Site.Site, count: number): Promise<boolean> => {
  const all = await volumes(site)
  return all.length === count && all.every((one) => condition(one)?.status === "True")
}

const outcome = async ({ nbd }: Site.Site, name: string) =>
  (await Effect.runPromise(Handshake.ask({ ...nbd, name })))._tag

const mainOf = async ({ nbd }: Site.Site): Promise<number> => {
  const listener = await Effect.runPromise(Processes.listener(nbd))
  return listener._tag === "Main" ? listener.main.pid : 0
}

/** A daemon with two exported volumes, all of it at rest. */
const within = (use: (site: Site.Site, exports: ReadonlyArray<string>, daemon: Site.Daemon) => Promise<void>) =>
  Site.within({ seed: process.pid, mariadb: false, root_admin: false }, async (site) => {
    const daemon = site.launch(null)
    assert.isTrue(await daemon.ready(), site.log())
    for (const name of ["one", "two"]) {
      const body = JSON.stringify({ size: "1GiB", attached_to: "appliance", export_wanted: true })
      const answer = await fetch(`${site.origin()}/api/v2/volumes/${name}`, {
        method: "PUT",
        headers: { "content-type": "application/json", "if-none-match": "*" },
        body
      })
      assert.strictEqual(answer.status, 201, await answer.text())
    }
    await until("both are ready", READY_MS, () => allReady(site, 2))
    const exports = (await volumes(site)).flatMap(({ status }) => status.export?.name ?? [])
    assert.lengthOf(exports, 2)
    await use(site, exports, daemon)
  })

describe("the daemon", () => {
  it("serves again after its server was killed, and after it was stopped (N5, N12, L7)", { timeout: 240_000 }, () =>
    within(async (site, exports) => {
      const took: Array<number> = []
      for (const signal of ["SIGKILL", "SIGSTOP"] as const) {
        const main = await mainOf(site)
        assert.isTrue(Processes.runs(main, site.nbd.config))
        process.kill(main, signal)
        const repaired = async () => {
          const now = await mainOf(site)
          return now !== 0 && now !== main && (await outcome(site, exports[0] ?? "")) === "Served"
        }
        took.push(await until(`repaired after ${signal}`, REPAIR_MS, repaired))
        assert.strictEqual(await outcome(site, exports[1] ?? ""), "Served")
        await until("ready again", READY_MS, () => allReady(site, 2))
      }
      process.stdout.write(`served again ${took.join(" and ")} ms after KILL and STOP\n`)
    })
  )

  it("takes the server as it is when it is started again, killed or ended (N11, S12)", { timeout: 240_000 }, () =>
    within(async (site, exports, daemon) => {
      const main = await mainOf(site)
      await daemon.kill()
      const second = site.launch(null)
      assert.isTrue(await second.ready(), site.log())
      await until("ready again", READY_MS, () => allReady(site, 2))
      await second.stop()
      const third = site.launch(null)
      assert.isTrue(await third.ready(), site.log())
      await until("ready again", READY_MS, () => allReady(site, 2))
      assert.strictEqual(await mainOf(site), main)
      assert.strictEqual(await outcome(site, exports[0] ?? ""), "Served")
    })
  )

  it(
    "admits nobody to an export whose link leads to another disk, until it is right (S3, D3)",
    { timeout: 240_000 },
    () =>
      within(async (site, exports) => {
        const [one, two] = (await volumes(site)).map(({ status }) => status.by_id_path ?? "")
        assert.isTrue(one !== undefined && two !== undefined)
        const main = await mainOf(site)
        // As udev does it, in one step.
        const turn = (target: string) => {
          const aside = join(dirname(one ?? ""), ".turned")
          symlinkSync(target, aside)
          renameSync(aside, one ?? "")
        }
        const right = readlinkSync(one ?? "")
        turn(readlinkSync(two ?? ""))
        const name = exports[0] ?? ""
        const fenced = await until("fenced", REPAIR_MS, async () => (await outcome(site, name)) === "Denied")
        assert.strictEqual(await outcome(site, exports[1] ?? ""), "Served")
        await until("said so", READY_MS, async () =>
          (await volumes(site)).some((volume) => condition(volume)?.status !== "True")
        )
        turn(right)
        const released = await until(
          "released",
          READY_MS + 60_000,
          async () => (await outcome(site, name)) === "Served"
        )
        process.stdout.write(`fenced ${fenced} ms after the link was turned, open ${released} ms after it was right\n`)
        await until("ready again", READY_MS, () => allReady(site, 2))
        assert.isTrue(Processes.runs(main, site.nbd.config), "a server was replaced for it")
      })
  )
})
