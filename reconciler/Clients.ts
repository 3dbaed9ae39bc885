/** Who keeps a volume from leaving by having its disk open, and what becomes of them. Pure. */
import type { Blocked } from "../schema/Action.ts"
import type { Holder } from "../schema/Inventory.ts"
import { block, type Case } from "./Case.ts"
import { timeText } from "./Served.ts"

/** So many are named; the rest is counted. */
const NAMED = 3

const textOf = ({ command, peer, pid, since }: Holder): string => {
  const who = peer === null ? command : `an NBD client at ${peer}`
  return `${who} (pid ${pid}${since === null ? "" : `, since ${since}`})`
}

const list = (holders: ReadonlyArray<Holder>): string => {
  const named = holders.slice(0, NAMED).map(textOf).join(", ")
  return holders.length > NAMED ? `${named} and ${holders.length - NAMED} more` : named
}

/** NBD clients among the holders: the only ones whose connections are ever ended. */
export const clientsOf = (holders: ReadonlyArray<Holder>): ReadonlyArray<Holder> =>
  holders.filter(({ peer }) => peer !== null)

/**
 * Why a volume that is to leave, or whose export is to go, must wait: somebody has its disk open (S11). NBD clients are
 * waited for from the moment at which new ones are denied, for `limits.drain_ms`; after that a person decides. Whoever is
 * no NBD client is a person's matter at once. Null when nobody has it open.
 */
export const hold = (c: Case): Blocked | null => {
  const { holders } = c.view
  if (holders.length === 0) return null
  const others = holders.filter(({ peer }) => peer === null)
  const disk = c.view.device?.kernel_path ?? "the disk"
  if (others.length > 0) {
    return block(
      "InUse",
      `${disk} is held open by ${list([...others, ...clientsOf(holders)])}`,
      `stop ${list(others)}: volumed ends NBD connections alone; the volume leaves as soon as nobody has it open`
    )
  }
  const message = `${disk} is held open by ${list(holders)}`
  return draining(c, message) ?? block("InUse", message, inUseAdvice(c))
}

const inUseAdvice = ({ declaration, view }: Case): string =>
  view.own?.fenced_at == null
    ? `end the transfer or wait for it, or type: volumed retry ${declaration.name} --end-clients`
    : `new clients are denied since ${timeText(view.own.fenced_at)}; end the transfer or wait for it, or type: volumed retry ${declaration.name} --end-clients`

/** Still being waited for; null once they are a person's to decide about, or cannot be kept out. */
const draining = (c: Case, message: string): Blocked | null => {
  const { consents, limits, now } = c.world
  const { name, uid } = c.declaration
  const consent = consents.get(uid)
  // Connections end within moments; what outlives that is named as what it is.
  if (consent !== undefined && consent <= now && now - consent < limits.drain_ms) {
    return block("Draining", `${message}; its connections are ended`, "nothing: the volume leaves when they are gone")
  }
  const { own } = c.view
  if (own === null) return null
  if (own.fenced_at === null) {
    return block("Draining", message, "nothing: new clients are denied, and these are waited for")
  }
  if (consent !== undefined && consent > now) {
    const ended = `${message}; new clients are denied, these are ended at ${timeText(consent)}`
    return block("Draining", ended, "nothing: the volume leaves when they are gone")
  }
  // A fence of a time to come was set by another clock than this one: nothing can be counted from it.
  const waited = now - own.fenced_at
  if (waited < 0 || waited >= limits.drain_ms) return null
  const until = timeText(own.fenced_at + limits.drain_ms)
  return block(
    "Draining",
    `${message}; new clients are denied, these are waited for until ${until}`,
    `nothing, or end them now: volumed retry ${name} --end-clients`
  )
}
