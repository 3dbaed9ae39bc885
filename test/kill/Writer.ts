import { setTimeout as sleep } from "node:timers/promises"
import * as World from "../../src/Simulation/World.ts"
import type { Chance } from "./Chance.ts"
import type { Site } from "./Site.ts"

/** What one writer was told is stored. Nobody else writes its declarations, so this is what must stand there. */
export interface Promised {
  readonly name: string
  uid: string
  generation: number
  attached_to: string
  export_wanted: boolean
  revision: number
  /** The policy of the removal that was acknowledged. */
  removed: "delete" | "retain" | null
}

export interface Writer {
  readonly promised: ReadonlyMap<string, Promised>
  /** Acknowledged writes. */
  readonly acknowledged: () => number
  /** Answers that had to be asked for again, for the daemon was gone or could not. */
  readonly repeated: () => number
  /** Ends when `until` says so, the write that is under way acknowledged. */
  readonly run: (until: () => boolean) => Promise<void>
}

const PLACES = ["none", "appliance", "appliance", World.vmId(1), World.vmId(2)] as const
const LIVING_MAX = 10
const REPEAT_MS = 50
const REQUEST_MS = 20_000
const GIVE_UP_MS = 120_000

export const make = (site: Site, id: string, chance: Chance): Writer => {
  const promised = new Map<string, Promised>()
  let acknowledged = 0
  let repeated = 0

  /**
   * The same request with the same key until it is acknowledged; anything but success and "later" breaks a promise. Each
   * has a precondition that it makes false itself, so that one which was done and forgotten would be refused.
   */
  const send = async (method: string, path: string, precondition: Headers, body: unknown): Promise<Answer> => {
    const headers = { ...precondition, "content-type": "application/json", "idempotency-key": chance.uuid() }
    for (const until = Date.now() + GIVE_UP_MS; ; repeated++) {
      const answer = await attempt(site.origin(), method, path, headers, body)
      if (answer !== null && answer.status < 300) {
        acknowledged += 1
        return answer
      }
      if (answer !== null && !isTemporary(answer)) throw new Error(`${method} ${path}: ${answer.status} ${answer.text}`)
      if (Date.now() > until)
        throw new Error(
          `${method} ${path} was not acknowledged: ${answer?.status ?? "no answer"} ${answer?.text ?? ""}`
        )
      await sleep(REPEAT_MS)
    }
  }

  const declare = async () => {
    const name = `${id}-${promised.size}`
    const attached_to = chance.oneOf(PLACES)
    const export_wanted = chance.happens(0.7)
    const body = { size: "1GiB", attached_to, export_wanted, metadata: { revision: "0" } }
    const answer = await send("PUT", `/api/v2/volumes/${name}`, { "if-none-match": "*" }, body)
    const { uid, generation } = answer.body
    promised.set(name, { name, uid, generation, attached_to, export_wanted, revision: 0, removed: null })
    if (generation !== 1) throw new Error(`${name} began with generation ${generation}`)
  }

  const change = async (known: Promised) => {
    const attached_to = chance.happens(0.6) ? chance.oneOf(PLACES) : known.attached_to
    const export_wanted = chance.happens(0.7)
    const revision = known.revision + 1
    const body = { attached_to, export_wanted, metadata: { revision: String(revision) } }
    const answer = await send("PATCH", `/api/v2/volumes/${known.name}`, { "if-match": `"${known.generation}"` }, body)
    const { uid, generation } = answer.body
    // One change, however often it was sent, is one generation.
    if (uid !== known.uid || generation !== known.generation + 1)
      throw new Error(`${known.name}: generation ${known.generation} was followed by ${generation} of ${uid}`)
    Object.assign(known, { generation, attached_to, export_wanted, revision })
  }

  const remove = async (known: Promised) => {
    const policy = chance.happens(0.7) ? "delete" : "retain"
    const path = `/api/v2/volumes/${known.name}?policy=${policy}`
    await send("DELETE", path, { "if-match": `"${known.generation}"` }, undefined)
    known.removed = policy
  }

  const step = async () => {
    const living = [...promised.values()].filter(({ removed }) => removed === null)
    const [first, ...others] = chance.shuffled(living)
    if (first === undefined || (living.length < LIVING_MAX && chance.happens(0.5))) return declare()
    if (others.length > 0 && chance.happens(0.25)) return remove(first)
    return change(first)
  }

  return {
    promised,
    acknowledged: () => acknowledged,
    repeated: () => repeated,
    run: async (until) => {
      while (!until()) {
        await step()
        await sleep(chance.between(50, 600))
      }
    }
  }
}

interface Answer {
  readonly status: number
  readonly text: string
  readonly body: { readonly uid: string; readonly generation: number }
}

type Headers = Readonly<Record<string, string>>

/** Null when nothing came back, which says nothing about what was done. */
const attempt = async (
  origin: string | null,
  method: string,
  path: string,
  headers: Headers,
  body: unknown
): Promise<Answer | null> => {
  if (origin === null) return null
  try {
    const answer = await fetch(`${origin}${path}`, {
      method,
      headers,
      signal: AbortSignal.timeout(REQUEST_MS),
      ...(body === undefined ? {} : { body: JSON.stringify(body) })
    })
    const text = await answer.text()
    return { status: answer.status, text, body: answer.ok ? JSON.parse(text) : { uid: "", generation: 0 } }
  } catch {
    return null
  }
}

const isTemporary = ({ status, text }: Answer): boolean =>
  status >= 500 || status === 429 || (status === 409 && text.includes("this Idempotency-Key"))
