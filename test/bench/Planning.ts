import { createHash } from "node:crypto"
import * as Plan from "../../reconciler/Plan.ts"
import { limits } from "../../schema/Settings.ts"
import * as Fleet from "./Fleet.ts"
import * as Measure from "./Measure.ts"

const VOLUMES = 100_000
const EVERY = 100
const ROUNDS = 7

/** Planning for many volumes of which few change may take no longer than reading the text that describes them. */
export const measure = (): ReadonlyArray<Measure.Measure> => {
  const fleet = Fleet.changing(Fleet.make(VOLUMES), EVERY)
  const input: Plan.Input = {
    now: fleet.now,
    declarations: fleet.declarations,
    only: null,
    inventory: fleet.inventory,
    operations: [],
    limits,
    destructive_last_hour: 0,
    approved: new Set(),
    backoff: new Map(),
    consents: new Map(),
    astray: new Set(),
    hold: null,
    maintenance: null,
    withheld: [],
    digest: (text) => createHash("sha256").update(text).digest("hex")
  }
  const { items } = Plan.make(input)
  const moving = items.filter((item) => item.chain.length > 0).length
  // A plan that found the wrong things to do would be no measure of planning.
  if (items.length !== VOLUMES || moving !== VOLUMES / EVERY) {
    throw new Error(`${moving} of ${items.length} volumes have something to do, expected ${VOLUMES / EVERY}`)
  }
  const times = Measure.alternately(ROUNDS, {
    plan: () => Plan.make(input),
    parse: () => fleet.pages.map((page) => JSON.parse(page) as unknown)
  })
  const bytes = fleet.pages.reduce((sum, page) => sum + page.length, 0)
  return [
    {
      name: `plan for ${VOLUMES} volumes, ${VOLUMES / EVERY} of them changing`,
      measured: `${times.plan.toFixed(0)} ms`,
      against: `JSON.parse of their listing (${(bytes / 2 ** 20).toFixed(0)} MiB): ${times.parse.toFixed(0)} ms`,
      ratio: times.plan / times.parse,
      bound: 1
    }
  ]
}
