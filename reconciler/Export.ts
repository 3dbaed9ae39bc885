import type { Action, Blocked } from "../schema/Action.ts"
import type { BlockDevice, NbdSection } from "../schema/Inventory.ts"
import * as Clients from "./Clients.ts"
import type { Case, Decision, World } from "./Case.ts"
import { because, block, causeOf, cloudUnread, tooSmall, unmet, wishOf } from "./Case.ts"
import { awaited, deviceAmbiguous, deviceForbidden, guestUnread } from "./Device.ts"
import * as Merge from "./Merge.ts"
import * as Served from "./Served.ts"

/** The export goes where it is not wanted or the volume leaves. Null when nothing of it is left. */
export const withdraw = (c: Case): Decision | null => {
  const leaves = c.wish !== null && c.wish !== c.appliance
  if (!leaves && c.spec.export_wanted !== false) return null
  if (c.view.nbd === "unread") {
    const matters = c.declaration.binding.export !== null || c.here
    return matters ? unmet("export", c.met, null, nbdUnread(c.world)) : null
  }
  const name = standing(c)
  if (name === null) return null
  const why = leaves ? "the volume leaves the appliance" : "it is not to be exported"
  return unmet("export", c.met, unexport(c, name, causeOf(c.met), why), unexportProblem(c))
}

/** The name of an export that must go before this volume may leave, or null. */
const standing = (c: Case): string | null => {
  const { own, verification } = c.view
  const { binding } = c.declaration
  if (own !== null) return own.name
  const mine = mayClaim(c)
  if (verification?.outcome === "served" && (binding.export !== null || mine)) return verification.name
  if (binding.export !== null && !provenGone(c)) return binding.export.name
  return (mine ? c.view.others().claimable[0]?.name : null) ?? null
}

/** A foreign section is claimed by a declared `export_wanted`, on a volume that is here by our doing or may be moved. */
const mayClaim = (c: Case) => {
  const moves = c.spec.on_conflict === "move" && c.declaration.deletion?.policy !== "retain"
  return c.here && c.spec.export_wanted !== null && (c.ours || moves)
}

/** No section, and a GO was refused or nobody listens. */
const provenGone = (c: Case): boolean => {
  const state = c.world.merged.nbd?.server.state
  if (state === "absent" || state === "not_installed") return true
  const outcome = c.view.verification?.outcome
  return outcome === "unknown" || outcome === "denied" || outcome === "refused"
}

export const unexport = (c: Case, export_name: string, cause: Action["cause"], why: string): Action => ({
  _tag: "Unexport",
  ...because(c.view, cause, why, cause === "drift"),
  volume_id: c.row.id,
  export_name,
  device: c.view.device?.identity ?? null
})

export const unexportProblem = (c: Case): Blocked | null => {
  if (c.view.guest === "ambiguous") return deviceAmbiguous(c)
  if (c.here && c.view.guest === "unread") return guestUnread(c.world)
  if (c.view.nbd === "partial") return nbdUnread(c.world)
  // Where no server is installed and none listens, there is only the file to be written.
  const alone = c.world.merged.nbd?.server.state === "not_installed"
  return (alone ? fileProblem(c.world) : nbdProblem(c.world)) ?? Clients.hold(c)
}

export const detect = (c: Case): Decision | null => {
  const exported = c.spec.export_wanted === true
  if (!c.here || (c.wish === null && !exported)) return null
  switch (c.view.guest) {
    case "unread":
      return unmet("device", c.met, null, guestUnread(c.world))
    case "ambiguous":
      return unmet("device", c.met, null, deviceAmbiguous(c))
    case "absent":
      return astray(c) ?? unmet("device", c.met, null, awaited(c, "the guest shows no disk with the volume's serial"))
    case "present":
      return null
  }
}

/**
 * The volume's disk is not here, and its export leads to another one: nobody new may open it (S3), which a fence sees to
 * at once and without a load, for links cross for moments when a guest starts (D11). Where a fence does not help, because
 * no section stands for what is served or the server does not heed it, the export goes.
 */
const astray = (c: Case): Decision | null => {
  const wrong = c.declaration.binding.export === null ? null : Served.astray(c.world.merged, c.view)
  if (wrong === null) return null
  const { own, verification } = c.view
  if (verification?.outcome !== "served" || (own !== null && !outlasts(c, own))) return wrongDevice(c.view, wrong)
  return unmet("export", c.met, unexport(c, verification.name, "drift", wrong), unexportProblem(c))
}

const outlasts = ({ declaration, world }: Case, own: NbdSection): boolean => {
  const since = own.fenced_at ?? declaration.binding.drift_since
  return since !== null && world.now - since >= world.limits.device_timeout_ms
}

const wrongDevice = (view: Merge.View, wrong: string): Decision =>
  unmet(
    "export",
    met(view),
    null,
    block(
      "WrongDevice",
      `${wrong}; new clients are denied until it leads to the right one`,
      "check the links in BY_ID_DIR (ls -l) and udev's rules; volumed devices shows each disk's serial"
    )
  )

export const nbdUnread = (world: World) => {
  const { nbd } = world.merged.inventory
  const why = nbd._tag === "Unread" ? nbd.message : (nbd.note ?? "not everything could be read")
  return block(
    "NbdUnread",
    `the NBD server could not be observed: ${why}`,
    "check NBD_CONFIG and the NBD server (volumed doctor)"
  )
}

/** Why the NBD server's file cannot be written now, or null. */
const fileProblem = (world: World): Blocked | null => {
  const { nbd } = world.merged
  if (nbd === null) return nbdUnread(world)
  return nbd.config_problem === null
    ? null
    : block(
        "NbdConfigBroken",
        `the NBD server's file cannot be used: ${nbd.config_problem}`,
        "repair the file, or move it away so that volumed writes a new one"
      )
}

/** Why the NBD server cannot be made to serve another file now, or null. */
export const nbdProblem = (world: World): Blocked | null => {
  const { nbd } = world.merged
  const problem = fileProblem(world)
  if (nbd === null || problem !== null) return problem
  switch (nbd.server.state) {
    case "running":
    case "absent":
    case "hung":
      return null
    case "foreign":
      return block(
        "NbdServerForeign",
        `port ${nbd.port} is taken by a server that volumed may not replace${nbd.server.problem === null ? "" : `: ${nbd.server.problem}`}`,
        "stop that server, or set NBD_PORT to a free port"
      )
    case "not_installed": {
      const program = nbd.engine === "nbdkit" ? "nbdkit" : "nbd-server"
      return block("NbdNotInstalled", `${program} is not installed`, `install the package ${program}`)
    }
  }
}

/** Serve again what was proven before: same name, same path, same disk. Null when it is served, or not provably the same. */
const servedAgain = (world: World, view: Merge.View): Action | null => {
  const { binding, spec } = view.declaration
  const { device } = view
  if (binding.export === null || binding.volume_id === null || device === null || device.forbidden !== null) return null
  if (isSpoiled(device, spec.read_only)) return null
  if (view.nbd === "unread" || device.size === 0 || !device.by_id_paths.includes(binding.export.path)) return null
  if (view.own !== null && (view.own.path !== binding.export.path || view.own.read_only !== spec.read_only)) return null
  if (Served.looksRight(view, device, spec.read_only) || rivalOf(view) !== null) return null
  return {
    _tag: "Export",
    ...because(
      view,
      "recovery",
      `${binding.export.name} was served before and is not: ${Served.how(world.merged, view)}`
    ),
    volume_id: binding.volume_id,
    export_name: binding.export.name,
    path: binding.export.path,
    device: device.identity,
    size: device.size,
    read_only: spec.read_only
  }
}

/** Without CloudStack only what was verified last may be served again, unchanged (S8). */
export const blindly = (world: World, view: Merge.View): Decision => {
  const unread = unmet("volume", false, null, cloudUnread(world))
  const { binding, generation, spec } = view.declaration
  const appliance = world.merged.inventory.appliance_vm_id
  const wanted = spec.export_wanted === true && binding.attachment?.vm_id === appliance
  const wish = wishOf(spec, appliance)
  if (!wanted || (wish !== null && wish !== appliance) || binding.settled_generation < generation) return unread
  const again = servedAgain(world, view)
  return shut(world, view) ?? (again === null ? unread : unmet("export", true, again, nbdProblem(world)))
}

/**
 * Guest and NBD server read the links one after the other, and a link that flaps shows each another disk. Where they
 * disagree for longer, ms, it is what the server has opened that is another disk, and another load mends that.
 */
const DISAGREED_MS = 5_000

/**
 * The section is written and loaded as it should be, so that another load would mend nothing: it leads astray, or it is
 * fenced. Null when it is neither, or goes on being what it was fenced for.
 */
const shut = (world: World, view: Merge.View): Decision | null => {
  const { declaration, device, own } = view
  if (own === null || device === null || !Served.isLoaded(world.merged, view, declaration.spec.read_only)) return null
  const wrong = Served.misledBy(world.merged, view)
  const lasts = own.fenced_at !== null && world.now - own.fenced_at >= DISAGREED_MS
  // A link that leads to another disk of the guest may flap for as long as it likes, and a load would fail with it.
  const flaps = own.device !== null && world.merged.diskOf(own.device) !== null
  if (wrong !== null) return lasts && !flaps ? null : wrongDevice(view, wrong)
  if (own.fenced_at === null || device.forbidden !== null || device.size === 0) return null
  // Wrong, and open all the same: the server does not heed the fence.
  if (lasts && Served.astray(world.merged, view) !== null) return null
  return unmet("export", met(view), null, fenced(world, own))
}

const met = ({ declaration }: Merge.View): boolean => declaration.binding.settled_generation >= declaration.generation

const fenced = ({ astray }: World, own: NbdSection): Blocked => {
  const since = own.fenced_at === null ? "" : ` since ${Served.timeText(own.fenced_at)}`
  const denied = `new clients of ${own.name} are denied${since}`
  if (own.device === null)
    return block("Fenced", `${denied}; ${own.path} leads to no disk`, "nothing: the link is watched")
  return astray.has(own.name)
    ? block(
        "Fenced",
        `${denied}: it led to another disk lately`,
        "nothing: they are let in again when it has led to the right one for half a minute"
      )
    : block("Fenced", denied, "nothing: it leads to its disk, and they are let in again")
}

/** A foreign section that becomes ours with the next export; one that had a name of its own before keeps that. */
const claimableOf = (c: Case) => (c.declaration.binding.export === null ? (c.view.others().claimable[0] ?? null) : null)

const kernelPath = /^\/dev\/(?:[shv]d|xvd)[a-z]+$/

export const serve = (c: Case): Decision | null => {
  const { device } = c.view
  if (c.spec.export_wanted !== true || !c.here || device === null) return null
  if (c.view.nbd === "unread") return unmet("export", c.met, null, nbdUnread(c.world))
  const section = c.view.own ?? claimableOf(c)
  const [best] = device.by_id_paths
  if (best === undefined) return linkless(c)
  const kept = section?.path != null && device.by_id_paths.includes(section.path)
  const path = kept && section.path !== null ? section.path : best
  if (kept && Served.servedRight(c.view, device, c.spec.read_only)) return unfit(c, device)
  return (
    (isSpoiled(device, c.spec.read_only) ? unfit(c, device) : null) ??
    (kept ? shut(c.world, c.view) : null) ??
    reserve(c) ??
    (kept ? unverified(c, device) : null) ??
    unmet("export", c.met, exporting(c, device, path), exportProblem(c, device))
  )
}

const linkless = (c: Case): Decision => {
  const wrong = Served.misledBy(c.world.merged, c.view)
  return wrong === null
    ? unmet("device", c.met, null, awaited(c, "no by-id link leads to its disk"))
    : wrongDevice(c.view, wrong)
}

const isSpoiled = (device: BlockDevice, read_only: boolean) => device.read_only && !read_only

/** Its disk must not be served, or what a client writes would be lost: nbd-server may announce such a disk as writable. */
const unfit = (c: Case, device: BlockDevice): Decision | null => {
  if (device.forbidden !== null) return unmet("export", c.met, null, deviceForbidden(device.forbidden))
  if (!isSpoiled(device, c.spec.read_only)) return null
  const problem = block(
    "DeviceReadOnly",
    `the guest's kernel shows ${device.kernel_path} as read-only, and it is to be writable`,
    "look for I/O errors (dmesg) and for a volume that CloudStack attached read-only, or declare read_only: true"
  )
  return unmet("device", c.met, null, problem)
}

/** A proven export comes back as it was, whatever became of sizes meanwhile: a mismatch is no reason to unexport. */
const reserve = (c: Case): Decision | null => {
  const again = servedAgain(c.world, c.view)
  if (again === null) return null
  return unmet("export", true, { ...again, cause: causeOf(true) }, nbdProblem(c.world) ?? awaitedAnswer(c))
}

/** Served as far as can be seen, by a process whose open files could not be read: no reason to load again, no proof. */
const unverified = (c: Case, device: BlockDevice): Decision | null => {
  if (!Served.looksRight(c.view, device, c.spec.read_only)) return null
  const message = `${Merge.exportName(c.view)} is served, but from which device could not be read`
  const advice = "run volumed with CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH, as its unit file does"
  return unmet("export", c.met, null, block("NbdUnread", message, advice))
}

/** The file says it, the server runs, and nobody has asked it yet. */
const awaitedAnswer = (c: Case): Blocked | null =>
  c.view.verification === null && c.view.own !== null && c.world.merged.nbd?.server.state === "running"
    ? block("NbdUnread", `${Merge.exportName(c.view)} was not verified yet`, "nothing: the next pass asks the server")
    : null

const exporting = (c: Case, device: BlockDevice, path: string): Action => {
  const { own } = c.view
  const section = own ?? claimableOf(c)
  const from = section?.path ?? null
  const common = {
    volume_id: c.row.id,
    export_name: own?.name ?? Merge.exportName(c.view),
    path,
    device: device.identity,
    size: device.size,
    read_only: c.spec.read_only
  }
  if (from !== null && (from === device.kernel_path || kernelPath.test(from))) {
    const why = `its section names ${from}, a letter that changes over reboots`
    return { _tag: "MigratePath", ...because(c.view, causeOf(c.met), why), ...common, from }
  }
  const claim =
    own === null && section !== null ? `; the section ${section.name}${standsIn(section)} is taken over` : ""
  const why =
    section === null ? "it should be served and is not" : `it should be served: ${Served.how(c.world.merged, c.view)}`
  return { _tag: "Export", ...because(c.view, causeOf(c.met), why + claim), ...common }
}

/** Another section that leads to the same device, or bears the same name: one device is served under one name (S3). */
const rivalOf = (view: Merge.View) => {
  const { claimable, taken } = view.others()
  return taken[0] ?? claimable[view.declaration.binding.export === null ? 1 : 0] ?? null
}

const standsIn = ({ file }: NbdSection): string => (file === null ? "" : ` in ${file}`)

const unclaimable = ({ obstacle }: NbdSection): string =>
  obstacle === null ? " too" : `, and volumed cannot take it over: ${obstacle}`

const exportProblem = (c: Case, device: BlockDevice): Blocked | null => {
  const rival = rivalOf(c.view)
  if (rival !== null) {
    return block(
      "ExportNameTaken",
      `the NBD section ${rival.name}${standsIn(rival)} leads to this volume's name or device${unclaimable(rival)}`,
      "remove that section or the declaration behind it: one device is served under one name"
    )
  }
  if (device.forbidden !== null) return deviceForbidden(device.forbidden)
  if (device.size < Math.max(1, c.row.size)) {
    return block(
      "SizeMismatch",
      `${device.kernel_path} has ${device.size} bytes, CloudStack says ${c.row.size}`,
      "rescan the device, or detach and attach the volume so that the guest sees its size"
    )
  }
  return tooSmall(c.spec, c.row) ?? nbdProblem(c.world) ?? awaitedAnswer(c)
}

/** Everything is in place, and the volume is smaller than declared, or the disk smaller than the volume. */
export const shrunk = (c: Case): Decision | null => {
  const small = tooSmall(c.spec, c.row)
  if (small !== null) return unmet("volume", c.met, null, small)
  const { device } = c.view
  if (c.spec.export_wanted !== true || !c.here || device === null || device.size >= c.row.size) return null
  return unmet("device", c.met, null, exportProblem(c, device))
}
