import { closeSync, existsSync, openSync, readdirSync, writeSync } from "node:fs"
import { dirname } from "node:path"
import { setTimeout as sleep } from "node:timers/promises"
import type { OperationAnswer, Volume, VolumeList } from "../../schema/Api.ts"
import { exportNameOf, type VolumeId } from "../../schema/Ids.ts"
import * as World from "../../src/Simulation/World.ts"
import * as Journal from "./Journal.ts"
import type { Site } from "./Site.ts"
import * as Wire from "./Wire.ts"
import type { Promised } from "./Writer.ts"

/** A signed call lives for a minute, and only after that is one without a trace known not to have been made. */
const CALM_MS = 240_000
const LOOK_MS = 250
const PAGE = 1_000
const MARKER_BYTES = 512

/** Waits until the daemon has nothing left to do: how long that took, ms; null when it did not come to that. */
export const calm = async (site: Site): Promise<number | null> => {
  const begin = Date.now()
  while (Date.now() < begin + CALM_MS) {
    const volumes = await declared(site)
    const open = await unresolved(site)
    if (volumes?.every(isReady) === true && open?.length === 0) return Date.now() - begin
    await sleep(LOOK_MS)
  }
  return null
}

/** Why it did not come to rest, for a person. */
export const unrest = async (site: Site): Promise<ReadonlyArray<string>> => {
  const volumes = (await declared(site)) ?? []
  const open = (await unresolved(site)) ?? []
  return [
    ...volumes
      .filter((volume) => !isReady(volume))
      .map(({ name, status }) => {
        const ready = status.conditions.find(({ type }) => type === "Ready")
        return `${name}: ${ready?.reason}: ${ready?.message}`
      }),
    ...open.map(({ id, type, name, phase, error }) => `${id}: ${type} of ${name} is ${phase}: ${error}`)
  ]
}

const isReady = ({ generation, status, deletion }: Volume): boolean =>
  deletion === null &&
  status.conditions.some(
    (one) => one.type === "Ready" && one.status === "True" && one.observed_generation === generation
  )

/** Everything that was promised and does not hold. Ends the site's daemon and CloudStack. */
export const broken = async (site: Site, promised: ReadonlyArray<Promised>): Promise<ReadonlyArray<string>> => {
  const volumes = (await declared(site)) ?? []
  const operations = await operationsOf(site, "")
  const truth = await site.truth()
  if (operations === null || truth === null) return ["the daemon or CloudStack does not answer at the end"]
  const byName = new Map(volumes.map((volume) => [volume.name as string, volume]))
  const found = [
    ...promised.flatMap((one) => unkept(one, byName.get(one.name))),
    ...volumes
      .filter(({ name }) => !promised.some((one) => one.name === name))
      .map(({ name }) => `nobody declared ${name}`),
    ...promised.flatMap((one) => misplaced(one, byName.get(one.name), truth)),
    ...truth.volumes
      .filter(({ type, name }) => type === "DATADISK" && !promised.some((one) => one.name === name))
      .map(({ id, name }) => `volume ${id} (${name}) is nobody's`),
    ...(await misserved(site, volumes, truth)),
    // What a daemon could not read it keeps beside the file.
    ...readdirSync(dirname(site.nbd.config))
      .filter((name) => name.includes("broken"))
      .map((name) => `a daemon found the NBD server's file broken (S13): ${name}`)
  ]
  const world = await site.ledger()
  return [
    ...found,
    ...[...world.violations, ...world.incidents].map((one) => JSON.stringify(one)),
    ...Journal.disagreements({ operations, world })
  ]
}

/** What was acknowledged is what stands there. */
const unkept = (one: Promised, volume: Volume | undefined): ReadonlyArray<string> => {
  if (one.removed !== null) return volume === undefined ? [] : [`${one.name} was removed and is still declared`]
  if (volume === undefined) return [`${one.name} was acknowledged and is gone`]
  const have = {
    uid: volume.uid as string,
    generation: volume.generation,
    attached_to: volume.spec.attached_to as string,
    export_wanted: volume.spec.export_wanted,
    revision: Number(volume.spec.metadata["revision"])
  }
  const { uid, generation, attached_to, export_wanted, revision } = one
  const want = { uid, generation, attached_to, export_wanted, revision }
  return JSON.stringify(have) === JSON.stringify(want)
    ? []
    : [`${one.name} was acknowledged as ${JSON.stringify(want)} and is ${JSON.stringify(have)}`]
}

/** One volume in the world for each declaration, where it is wanted, and the one that it is bound to. */
const misplaced = (one: Promised, volume: Volume | undefined, truth: World.Truth): ReadonlyArray<string> => {
  const rows = truth.volumes.filter(({ name }) => name === one.name)
  if (one.removed === "delete") return rows.map(({ id }) => `${one.name} was deleted and leaves volume ${id}`)
  if (one.removed === "retain") {
    const attached = rows
      .filter(({ vm_id }) => vm_id !== null)
      .map(({ id }) => `${one.name} was released and ${id} is attached`)
    return rows.length > 1 ? [`${one.name} left ${rows.length} volumes`, ...attached] : attached
  }
  const [row, ...others] = rows
  if (row === undefined || others.length > 0) return [`${one.name} has ${rows.length} volumes`]
  const vm =
    one.attached_to === "none" ? null : one.attached_to === "appliance" ? World.APPLIANCE_VM_ID : one.attached_to
  const held = vm === null ? [] : [vm]
  return [
    ...(row.id === volume?.status.volume_id
      ? []
      : [`${one.name} is bound to ${volume?.status.volume_id}, not ${row.id}`]),
    ...(row.vm_id === vm ? [] : [`${one.name} is on ${row.vm_id}, not on ${vm}`]),
    ...(JSON.stringify(row.held_by) === JSON.stringify(held) ? [] : [`${one.name} is held by ${row.held_by.join()}`])
  ]
}

/** Exports that give another volume's bytes at this very moment, whatever has just been killed (S3). */
export const mixedUp = async (site: Site): Promise<ReadonlyArray<string>> => {
  const truth = await site.truth()
  const problems: Array<string> = []
  for (const { id, name, vm_id } of truth?.volumes ?? []) {
    if (vm_id !== World.APPLIANCE_VM_ID || !existsSync(site.image(id))) continue
    mark(site.image(id), id)
    const served = await servedAs(site, id)
    if (served !== null && served !== id) problems.push(`the export of ${name} (${id}) gives ${JSON.stringify(served)}`)
  }
  return problems
}

/** The mark on the disk that a volume's export name leads to; null where it leads to none. */
const servedAs = async (site: Site, id: string): Promise<string | null> => {
  const bytes = await Wire.read(site.nbd, exportNameOf(id as VolumeId), MARKER_BYTES).catch(() => null)
  return bytes?.toString("latin1").replace(/\0+$/, "") ?? null
}

/** Each wanted export gives its own volume's bytes, and no other name gives any. */
const misserved = async (
  site: Site,
  volumes: ReadonlyArray<Volume>,
  truth: World.Truth
): Promise<ReadonlyArray<string>> => {
  const wanted = new Set(
    volumes.flatMap(({ spec, status }) =>
      spec.export_wanted === true && spec.attached_to === "appliance" && status.volume_id !== null
        ? [status.volume_id as string]
        : []
    )
  )
  const disks = truth.volumes.filter(({ type }) => type === "DATADISK")
  for (const { id, vm_id } of disks) if (vm_id === World.APPLIANCE_VM_ID) mark(site.image(id), id)
  const problems: Array<string> = []
  for (const { id, name } of disks) {
    const served = await servedAs(site, id)
    const want = wanted.has(id) ? id : null
    if (served !== want)
      problems.push(`the export of ${name} (${id}) gives ${JSON.stringify(served)}, not ${JSON.stringify(want)}`)
  }
  return problems
}

const mark = (image: string, text: string): void => {
  const file = openSync(image, "r+")
  writeSync(file, Buffer.alloc(MARKER_BYTES, 0).fill(text, 0, text.length), 0, MARKER_BYTES, 0)
  closeSync(file)
}

const declared = async (site: Site): Promise<ReadonlyArray<Volume> | null> =>
  ((await read(site, `/api/v2/volumes?limit=${PAGE}`))?.body as VolumeList | undefined)?.items ?? null

const unresolved = async (site: Site): Promise<ReadonlyArray<OperationAnswer> | null> => {
  const pending = await operationsOf(site, "status=pending")
  const executing = await operationsOf(site, "status=executing")
  return pending === null || executing === null ? null : [...pending, ...executing]
}

/** All of them, newest first; null when they cannot be read. */
const operationsOf = async (site: Site, filter: string): Promise<ReadonlyArray<OperationAnswer> | null> => {
  const all: Array<OperationAnswer> = []
  for (let cursor = ""; ;) {
    const page = await read(site, `/api/v1/operations?limit=${PAGE}&${filter}${cursor}`)
    if (page === null) return null
    all.push(...(page.body as ReadonlyArray<OperationAnswer>))
    if (page.next === null) return all
    cursor = `&cursor=${encodeURIComponent(page.next)}`
  }
}

const read = async (
  site: Site,
  path: string
): Promise<{ readonly body: unknown; readonly next: string | null } | null> => {
  const origin = site.origin()
  if (origin === null) return null
  const answer = await fetch(`${origin}${path}`).catch(() => null)
  if (answer === null || !answer.ok) return null
  return { body: await answer.json(), next: answer.headers.get("next-cursor") }
}
