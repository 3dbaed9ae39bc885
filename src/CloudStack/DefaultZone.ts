import { type Context, Effect } from "effect"
import type { CloudStackRead } from "../../reconciler/CloudStack.ts"
import { CloudStackUnavailable } from "../../schema/Errors.ts"
import { uuidPattern, ZoneId } from "../../schema/Ids.ts"

/**
 * The zone that a volume is created in when its declaration names none; null where none is configured, or where the
 * configured name is that of no zone or of several. `zones` (names by id) is asked for a name only.
 */
export const of = (
  { place }: Pick<Context.Tag.Service<CloudStackRead>, "place">,
  zones: Effect.Effect<Iterable<readonly [ZoneId, string]>, CloudStackUnavailable>
): Effect.Effect<ZoneId | null, CloudStackUnavailable> =>
  Effect.gen(function* () {
    const known = yield* place
    if (known === null) return yield* unconfigured
    if (known.zone === null) return null
    const id = known.zone.toLowerCase()
    if (uuidPattern.test(id)) return ZoneId.make(id)
    const [found, ...others] = [...(yield* zones)].filter(([, name]) => name === known.zone)
    return found === undefined || others.length > 0 ? null : found[0]
  })

const unconfigured = new CloudStackUnavailable({
  command: "listZones",
  kind: "unconfigured",
  detail: "CloudStack's URL and keys are not known yet"
})
