import { Effect } from "effect"
import type * as Api from "../../schema/Api.ts"
import type { Settings } from "../../schema/Settings.ts"
import * as Answer from "./Answer.ts"
import { Catalogue } from "./Catalogue.ts"

/** What a declaration may name, and what it gets when it names nothing. */
export const list = (defaults: Pick<Settings, "default_disk_offering_id">) =>
  Effect.fnUntraced(function* () {
    const catalogue = yield* Catalogue
    const { offerings, zones } = yield* catalogue.listing
    return Answer.ok({
      items: [...offerings.values()],
      zones: [...zones].map(([id, name]) => ({ id, name })),
      default_disk_offering_id: defaults.default_disk_offering_id,
      default_zone_id: yield* catalogue.zone
    } satisfies Api.OfferingList)
  })
