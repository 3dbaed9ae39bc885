import * as Copying from "./Copying.ts"
import * as Exporting from "./Exporting.ts"
import type * as Measure from "./Measure.ts"
import * as Replacing from "./Replacing.ts"
import * as Verifying from "./Verifying.ts"

/** What exports cost on the real programs: to come into being, to be changed, to be verified, to be read. */
export const measure = async (): Promise<ReadonlyArray<Measure.Measure>> => [
  ...(await Exporting.measure()),
  ...(await Replacing.measure()),
  ...(await Verifying.measure()),
  ...(await Copying.measure())
]
