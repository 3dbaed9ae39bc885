import { Context } from "effect"
import type { Planned } from "../../reconciler/Reconciler.ts"
import * as Render from "../../reconciler/Render.ts"
import type * as Api from "../../schema/Api.ts"
import type { Plan } from "../../schema/Action.ts"
import type { Uid } from "../../schema/Ids.ts"
import type { Settings } from "../../schema/Settings.ts"
import * as Answer from "./Answer.ts"
import type { Request } from "./Request.ts"

/** What this daemon works on; `server` is what the client called it. */
export class Site extends Context.Tag("volumed/Http/Site")<Site, Omit<Api.Place, "server">>() {}

export const site = (
  settings: Pick<Settings, "appliance_vm_id" | "default_zone_id" | "sandbox"> & {
    readonly cloudstack: Pick<Settings["cloudstack"], "api_url">
  }
): Omit<Api.Place, "server"> => ({
  cloud: withoutSecrets(settings.cloudstack.api_url),
  zone: settings.default_zone_id,
  appliance_vm_id: settings.appliance_vm_id,
  sandbox: settings.sandbox
})

export const placeOf = (request: Request, site: Omit<Api.Place, "server">): Api.Place => {
  const host = request.headers.host ?? ""
  return { server: /^[A-Za-z0-9.:[\]_-]{1,255}$/u.test(host) ? `http://${host}` : "unnamed", ...site }
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
