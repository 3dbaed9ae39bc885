import { Effect } from "effect"
import { setTimeout as sleep } from "node:timers/promises"
import { type Mark, marks } from "../../reconciler/Failpoint.ts"
import * as Chance from "./Chance.ts"
import * as Site from "./Site.ts"
import * as Verdict from "./Verdict.ts"
import * as Writer from "./Writer.ts"

export type Victim = "daemon" | "mariadb" | "cloudstack"

export interface Plan {
  readonly seed: number
  readonly victim: Victim
  readonly kills: number
  readonly mariadb: boolean
}

/** One process ended by `SIGKILL`: where, as far as that was chosen. */
export interface Kill {
  readonly point: string
  /** The mark was passed, or the call was on its way; else time ran out, and it was killed somewhere. */
  readonly hit: boolean
}

export interface Report {
  readonly plan: Plan
  readonly kills: ReadonlyArray<Kill>
  readonly acknowledged: number
  readonly repeated: number
  readonly converged_ms: number | null
  /** Empty when every promise was kept. */
  readonly broken: ReadonlyArray<string>
}

const WRITERS = 4
const MARK_MS = 6_000

/**
 * A few writers declare, move, export and remove volumes while a process is killed and started again, over and over; then
 * nothing is killed any more, and everything that was acknowledged must come true, in the world and on paper.
 */
export const run = (plan: Plan): Promise<Report> =>
  Site.within({ seed: plan.seed, mariadb: plan.mariadb, root_admin: plan.seed % 2 === 0 }, async (site) => {
    const chance = Chance.make(plan.seed)
    const writers = Array.from({ length: WRITERS }, (_, n) =>
      Writer.make(site, `w${n}`, Chance.make(plan.seed * 1_000 + n))
    )
    const failures: Array<string> = []
    let over = false
    const writing = writers.map((writer) =>
      writer.run(() => over || failures.length > 0).catch((cause: unknown) => void failures.push(String(cause)))
    )
    const killing = plan.victim === "daemon" ? killingDaemons : killingBehind
    const kills: Array<Kill> = []
    await killing(site, plan, chance, kills).catch((cause: unknown) => void failures.push(String(cause)))
    over = true
    // What stopped the killing stops the writing too; nothing is learned from waiting for it.
    if (failures.length === 0) await Promise.all(writing)
    const converged_ms = failures.length === 0 ? await Verdict.calm(site) : null
    const unrest = failures.length === 0 && converged_ms === null ? await Verdict.unrest(site) : []
    const promised = writers.flatMap((writer) => [...writer.promised.values()])
    const broken = failures.length === 0 ? await Verdict.broken(site, promised) : []
    return {
      plan,
      kills,
      converged_ms,
      acknowledged: writers.reduce((sum, writer) => sum + writer.acknowledged(), 0),
      repeated: writers.reduce((sum, writer) => sum + writer.repeated(), 0),
      broken: [...failures, ...unrest.map((one) => `no calm: ${one}`), ...broken]
    }
  })

/** Every mark in turn, from where the seed says, between kills at any time; the daemon that is left lives on. */
const killingDaemons = async (site: Site.Site, { kills, seed }: Plan, chance: Chance.Chance, done: Array<Kill>) => {
  let turn = seed * 7
  while (done.length < kills) {
    const way = chance.whole(1, 10)
    if (way <= 6) done.push(await atMark(site, chance, turns[turn++ % turns.length] ?? marks[0]))
    else if (way <= 8) done.push(await afterEffect(site, chance))
    else done.push(await anywhere(site, chance))
    await notMixedUp(site, done)
  }
  await started(site, null)
}

const notMixedUp = async (site: Site.Site, done: ReadonlyArray<Kill>) => {
  const problems = await Verdict.mixedUp(site)
  if (problems.length > 0) throw new Error(`after a kill at ${done.at(-1)?.point}: ${problems.join("; ")}`)
}

const started = async (site: Site.Site, failpoint: string | null) => {
  const daemon = site.launch(failpoint)
  if (await daemon.ready()) return daemon
  if (failpoint !== null) return daemon
  throw new Error(`the daemon does not start:\n${site.log().slice(-4_000)}`)
}

/** Passed more often than others: to meet them at all of their occasions, more are let pass. */
const passes = (mark: Mark): number => (mark.startsWith("commit.") ? 20 : mark.startsWith("nbd.") ? 1 : 3)

/** Of all commits only some are a client's write, so they get more turns. */
const turns: ReadonlyArray<Mark> = [...marks, "commit.wanted", "commit.done", "commit.done"]

const atMark = async (site: Site.Site, chance: Chance.Chance, mark: Mark): Promise<Kill> => {
  const daemon = await started(site, `${mark}:${chance.whole(1, passes(mark))}`)
  const hit = await daemon.ended(MARK_MS)
  await daemon.kill()
  return { point: mark, hit }
}

const COMMANDS = ["createVolume", "attachVolume", "detachVolume", "deleteVolume", "createTags"] as const
const ANSWER_MS = 400

/** CloudStack has done what it was asked for, and its answer is on the way. */
const afterEffect = async (site: Site.Site, chance: Chance.Chance): Promise<Kill> => {
  const command = chance.oneOf(COMMANDS)
  const daemon = await started(site, null)
  const before = (await site.truth())?.calls[command] ?? 0
  await site.setFaults([{ kind: "slow_answer", command, ms: ANSWER_MS, times: 1 }])
  const until = Date.now() + MARK_MS
  let hit = false
  while (!hit && Date.now() < until) {
    await sleep(20)
    hit = ((await site.truth())?.calls[command] ?? 0) > before
  }
  await daemon.kill()
  await site.setFaults([])
  return { point: `${command} done`, hit }
}

const anywhere = async (site: Site.Site, chance: Chance.Chance): Promise<Kill> => {
  if (chance.happens(0.2)) {
    const daemon = site.launch(null)
    await sleep(chance.between(50, 600))
    await daemon.kill()
    return { point: "while starting", hit: true }
  }
  const daemon = await started(site, null)
  await sleep(chance.between(0, 2_500))
  await daemon.kill()
  return { point: "at any time", hit: true }
}

/** Until CloudStack has just done something, or has had nothing to do for a while. */
const callCarriedOut = async (site: Site.Site): Promise<void> => {
  const count = async () => {
    const calls = (await site.truth())?.calls ?? {}
    return COMMANDS.reduce((sum, command) => sum + (calls[command] ?? 0), 0)
  }
  const before = await count()
  for (const until = Date.now() + MARK_MS; Date.now() < until && (await count()) <= before;) await sleep(5)
}

/** The daemon goes on while what it leans on is killed, and comes back after a while. */
const killingBehind = async (site: Site.Site, { kills, victim }: Plan, chance: Chance.Chance, done: Array<Kill>) => {
  const daemon = await started(site, null)
  while (done.length < kills) {
    await sleep(chance.between(200, 2_500))
    if (victim === "cloudstack") {
      if (chance.happens(0.5)) await callCarriedOut(site)
      await site.killCloud()
      await sleep(chance.between(0, 1_500))
      await site.startCloud()
    } else if (site.database !== null) {
      await Effect.runPromise(site.database.kill)
      await sleep(chance.between(0, 1_500))
      await Effect.runPromise(site.database.start)
    }
    done.push({ point: victim, hit: true })
    if (!daemon.running()) throw new Error(`the daemon ended when ${victim} did:\n${site.log().slice(-4_000)}`)
  }
}
