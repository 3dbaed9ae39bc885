import { setTimeout as sleep } from "node:timers/promises"
import { GIB } from "../../schema/Declaration.ts"
import * as World from "../../src/Simulation/World.ts"
import * as Daemon from "./Daemon.ts"
import type * as Measure from "./Measure.ts"

const VMS = 4
const DISKS_A_VM = 30
const JOB_MS = 2_000
const GIVE_UP_MS = 300_000

/**
 * Volumes declared at once, created, and attached to a few VMs, each of which does its work one job at a time: how much
 * longer that takes than the jobs of one VM back to back, and how many calls it costs.
 */
export const measure = async (): Promise<ReadonlyArray<Measure.Measure>> => {
  const world = World.make({ now: Date.now(), vms: VMS, job_ms: JOB_MS, quick_job_ms: 100 })
  return Daemon.withSite(
    world,
    async () => {},
    async (site) => {
      const daemon = await site.daemon()
      const before = total((await site.truth()).calls)
      const begin = Date.now()
      await daemon.request("POST", "/api/v2/apply", { volumes: wanted })
      const truth = await attached(site, begin)
      const makespan = lastAttach(truth) - begin
      const ideal = DISKS_A_VM * JOB_MS
      const calls = total(truth.calls) - before
      const allowed = 3 * wanted.length + (1.5 * makespan) / 1_000
      return [
        {
          name: `converge ${wanted.length} volumes on ${VMS} VMs, ${JOB_MS / 1_000} s a job`,
          measured: `${(makespan / 1_000).toFixed(1)} s`,
          against: `${DISKS_A_VM} jobs of one VM back to back: ${(ideal / 1_000).toFixed(1)} s`,
          ratio: makespan / ideal,
          bound: 1.25
        },
        {
          name: "… CloudStack calls meanwhile",
          measured: `${calls}`,
          against: `3 a created volume and 1.5 a second: ${allowed.toFixed(0)}`,
          ratio: calls / allowed,
          bound: 1
        }
      ]
    }
  )
}

const wanted = Array.from({ length: VMS * DISKS_A_VM }, (_, n) => ({
  name: `volume-${n}`,
  size: 10 * GIB,
  attached_to: World.vmId((n % VMS) + 1)
}))

const total = (calls: World.Truth["calls"]) => Object.values(calls).reduce((sum, count) => sum + count, 0)

const attached = async (site: Daemon.Site, begin: number): Promise<World.Truth> => {
  while (Date.now() < begin + GIVE_UP_MS) {
    const truth = await site.truth()
    const there = truth.volumes.filter(({ type, vm_id }) => type === "DATADISK" && vm_id !== null)
    if (there.length === wanted.length) return truth
    await sleep(250)
  }
  throw new Error(`the volumes did not get where they belong within ${GIVE_UP_MS / 1_000} s`)
}

const lastAttach = ({ jobs }: World.Truth): number =>
  Math.max(
    ...jobs.flatMap(({ command, completed }) =>
      command === "attachVolume" && completed ? [Date.parse(completed)] : []
    )
  )
