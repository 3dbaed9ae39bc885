import { Context, Effect } from "effect"
import type { CloudStackRead } from "../../reconciler/CloudStack.ts"
import type { Planned } from "../../reconciler/Reconciler.ts"
import * as Render from "../../reconciler/Render.ts"
import type * as Api from "../../schema/Api.ts"
import type { Plan } from "../../schema/Action.ts"
import type { Uid, VmId } from "../../schema/Ids.ts"
import type { Settings } from "../../schema/Settings.ts"
import * as Answer from "./Answer.ts"
import type { Request } from "./Request.ts"

type Surroundings = Omit<Api.Place, "server">

/** What this daemon works on. */
export class Site extends Context.Tag("volumed/Http/Site")<
  Site,
  { readonly appliance_vm_id: VmId; readonly place: Effect.Effect<Surroundings> }
>() {}

export const site = (
  { appliance_vm_id, sandbox }: Pick<Settings, "appliance_vm_id" | "sandbox">,
  cloud: Pick<Context.Tag.Service<CloudStackRead>, "place">
): Context.Tag.Service<Site> => ({
  appliance_vm_id,
  place: Effect.map(cloud.place, (known) => ({
    cloud: known === null ? "unknown" : withoutSecrets(known.api_url),
    zone: known?.zone ?? null,
    appliance_vm_id,
    sandbox
  }))
})

/** `server` is what the client called it. */
export const placeOf = (request: Request, site: Context.Tag.Service<Site>): Effect.Effect<Api.Place> => {
  const host = request.headers.host ?? ""
  const server = /^[A-Za-z0-9.:[\]_-]{1,255}$/u.test(host) ? `http://${host}` : "unnamed"
  return Effect.map(site.place, (place) => ({ server, ...place }))
}

/** A URL may carry a user, a password or a query: none of them is anybody's business here. */
const withoutSecrets = (url: string): string => {
  if (!URL.canParse(url)) return "unknown"
  const { origin, pathname } = new URL(url)
  return `${origin}${pathname}`
}

/** `only`: leave out what is planned for other declarations; null shows everything. */
export const make = (place: Api.Place, planned: Planned, only: ReadonlySet<Uid> | null = null): Api.PlanAnswer => {
  const plan: Plan =
    only === null ? planned.plan : { ...planned.plan, items: planned.plan.items.filter(({ uid }) => only.has(uid)) }
  return { place, plan, text: Render.text(place, plan), sources: Answer.sources(planned.inventory) }
}
