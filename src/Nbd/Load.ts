import { Cause, Clock, Effect, Ref } from "effect"
import { open } from "node:fs/promises"
import { dirname } from "node:path"
import * as Failpoint from "../../reconciler/Failpoint.ts"
import type { LoadRequest, WantedExport } from "../../reconciler/Nbd.ts"
import { type GateClosed, NbdUnavailable, PreconditionLost } from "../../schema/Errors.ts"
import * as NbdConfig from "../../schema/NbdConfig.ts"
import * as NbdName from "../../schema/NbdName.ts"
import * as Files from "../Devices/Files.ts"
import * as Acl from "./Acl.ts"
import * as ConfigFile from "./ConfigFile.ts"
import type * as Includes from "./Includes.ts"
import * as Main from "./Main.ts"
import * as Node from "./Node.ts"
import * as Probe from "./Probe.ts"
import * as Processes from "./Processes.ts"
import { render, type Rendition } from "./Rendition.ts"
import { controlOf, sentinelAt, type World } from "./World.ts"
import * as Written from "./Written.ts"

/**
 * Makes the file say what is wanted and the server serve that file: at most one replacement of the main, save where a
 * claimed section is not served any more under its new path and the old one is put back.
 */
export const load = (
  world: World,
  request: LoadRequest
): Effect.Effect<void, NbdUnavailable | GateClosed | PreconditionLost> =>
  Effect.gen(function* () {
    const prepared = yield* prepare(world, request)
    yield* world.gate.check
    // From here on something may have changed, so that a gate that closes is no "not done" any more (S7).
    yield* change(world, request, prepared).pipe(
      Effect.catchTag("GateClosed", (cause) => new NbdUnavailable({ detail: `half done: ${cause.message}`, cause }))
    )
  })

/** What the load will do; nothing is changed by it. */
const prepare = (world: World, request: LoadRequest) =>
  Effect.gen(function* () {
    yield* Effect.forEach(request.set, (wanted) => stillThere(world, wanted), { concurrency: 8, discard: true })
    const written = yield* Written.read(world)
    yield* usable(written)
    const control = controlOf(world, written.judgement)
    yield* approachable(control)
    const rendition = yield* render(world, request, written)
    const claimed = yield* claims(written, request)
    return { written, control, rendition, claimed, before: yield* servedOf(control, claimed) }
  })

const change = (
  world: World,
  request: LoadRequest,
  { before, claimed, control, rendition, written }: Effect.Effect.Success<ReturnType<typeof prepare>>
) =>
  Effect.gen(function* () {
    yield* makeSentinel(world, sentinelAt(world, written.judgement))
    yield* admit(written, request, claimed)
    yield* Failpoint.pass("nbd.admitted")
    yield* store(world, written, rendition)
    yield* Failpoint.pass("nbd.stored")
    yield* Effect.forEach(leaving(request), (name) => Acl.close(written.acl, name), { concurrency: 8, discard: true })
    yield* Failpoint.pass("nbd.denied")
    yield* serve(world, control, written.acl, request.set, rendition.marker)
    const after = new Set(yield* servedOf(control, before))
    const lost = before.filter((name) => !after.has(name))
    if (lost.length > 0) return yield* putBack(world, control, written, request, rendition, lost)
    yield* Failpoint.pass("nbd.served")
    yield* saveCopy(world, rendition.text)
  })

/** Dropped exports that can have an authfile of ours. */
const leaving = (request: LoadRequest): ReadonlyArray<string> =>
  request.drop.filter(
    (name) => NbdName.claimProblem(name) === null && !request.set.some((wanted) => wanted.name === name)
  )

/** The by-id path must still mean the very device that was planned: nothing else may get this export's name. */
const stillThere = (world: World, wanted: WantedExport): Effect.Effect<void, PreconditionLost> =>
  Effect.gen(function* () {
    const lost = (detail: string) => new PreconditionLost({ detail: `${wanted.path} ${detail}` })
    if (dirname(wanted.path) !== world.options.by_id_dir) {
      return yield* lost(`of ${wanted.name} is not in ${world.options.by_id_dir}`)
    }
    const node = yield* Node.at(wanted.path)
    if (node === null || node.kind !== world.options.device_kind) return yield* lost("leads to no disk any more")
    if (node.identity !== wanted.device) return yield* lost(`is now ${node.identity}, not ${wanted.device}`)
    if (node.size !== wanted.size) return yield* lost(`now has ${node.size ?? "unknown"} bytes, not ${wanted.size}`)
  })

/** A main is not ended for a file with which none would start. */
const usable = ({ file, includes }: Written.Written): Effect.Effect<void, NbdUnavailable> => {
  if (file._tag === "Unusable") return new NbdUnavailable({ detail: file.problem })
  return includes.problem === null
    ? Effect.void
    : new NbdUnavailable({ detail: `no server would start: ${includes.problem}` })
}

/** Before anything is written: is there a server that we can bring to serve the file? */
const approachable = (control: Main.Control): Effect.Effect<void, NbdUnavailable> =>
  Effect.gen(function* () {
    const listener = yield* Processes.listener(control.place)
    if (listener._tag === "Foreign") return yield* new NbdUnavailable({ detail: listener.problem })
    if (listener._tag === "Main" || control.start !== "auto") return
    const path = yield* Main.program(control, "nbd-server")
    if (path === null) return yield* Main.notInstalled("nbd-server")
  })

/** Exports of the request whose sections are somebody else's until now. */
const claims = (
  written: Written.Written,
  request: LoadRequest
): Effect.Effect<ReadonlyArray<string>, PreconditionLost> =>
  Effect.gen(function* () {
    const found: Array<string> = []
    for (const { name } of request.set) {
      const bytes = NbdName.bytesOf(name)
      const where = Written.standing(written, bytes)
      if (where === null || where.ours) continue
      const obstacle = yield* Written.obstacleOf(written, bytes, where)
      if (obstacle !== null) return yield* new PreconditionLost({ detail: `${name} cannot be taken over: ${obstacle}` })
      found.push(name)
    }
    return found
  })

const servedOf = (control: Main.Control, names: ReadonlyArray<string>): Effect.Effect<ReadonlyArray<string>> =>
  names.length === 0
    ? Effect.succeed([])
    : Effect.map(Probe.look(control.place, null, names), ({ verifications }) =>
        verifications.filter(({ outcome }) => outcome === "served").map(({ name }) => name)
      )

/** A file of zeros that the sentinel and the marker export: made by us, never a volume. */
const makeSentinel = (world: World, path: string): Effect.Effect<void, NbdUnavailable> =>
  Effect.gen(function* () {
    if (dirname(path) === world.options.nbd.acl_dir) yield* ConfigFile.makeDirectory(world.disk, dirname(path))
    yield* Effect.acquireUseRelease(
      Files.attempt(() => open(path, "a", 0o644)),
      (file) => Files.attempt(() => file.truncate(SENTINEL_BYTES)),
      (file) => Effect.ignore(Files.attempt(() => file.close()))
    ).pipe(Effect.mapError(({ cause }) => new NbdUnavailable({ detail: `${path} cannot be made`, cause })))
  })

const SENTINEL_BYTES = 1024 * 1024

/**
 * An export admits its clients before its section is there. One that is in the file already and denies everybody has
 * been fenced: only `release` lifts that.
 */
const admit = (
  written: Written.Written,
  request: LoadRequest,
  claimed: ReadonlyArray<string>
): Effect.Effect<void, NbdUnavailable> => {
  const { acl } = written
  const admitOne = ({ name }: WantedExport) =>
    Effect.gen(function* () {
      const bytes = NbdName.bytesOf(name)
      const where = Written.standing(written, bytes)
      if (where === null) return yield* Acl.open(acl, name)
      if (claimed.includes(name)) {
        return yield* Acl.inherit(acl, name, NbdConfig.valueOf(where.effective, bytes, "authfile"))
      }
      if (!(yield* Acl.denies(acl, name))) yield* Acl.admit(acl, name)
    })
  return Effect.forEach(request.set, admitOne, { concurrency: 8, discard: true })
}

/**
 * The one file first: a section that moves stands in both until its included file is rewritten, and leads to one disk in
 * both. Wherever a crash ends this, what is there is served whole, and shown as a load that was not finished.
 */
const store = (
  world: World,
  written: Written.Written,
  { included, moving, text }: Rendition
): Effect.Effect<void, NbdUnavailable | GateClosed> =>
  Effect.gen(function* () {
    const { file } = written
    const { config } = world.options.nbd
    if (file._tag === "Broken") {
      const time = new Date(yield* Clock.currentTimeMillis).toISOString().replace(/[:.]/g, "-")
      yield* ConfigFile.keepAside(world.disk, config, `broken-${time}`)
    }
    if (file._tag === "Absent") yield* ConfigFile.makeDirectory(world.disk, dirname(config))
    const now = Written.textOf(written)
    if (included.length === 0) return yield* replaceText(world, now, text)
    yield* replaceText(world, now, moving)
    yield* Effect.forEach(included, (one) => rewrite(world, one.file, one.file.text, one.text), { discard: true })
    yield* replaceText(world, moving, text)
  })

const replaceText = (
  world: World,
  now: string | null,
  text: string
): Effect.Effect<void, NbdUnavailable | GateClosed> =>
  Effect.gen(function* () {
    const { unsure } = yield* Ref.get(world.memory)
    if (now === text && !unsure) return
    const path = world.options.nbd.config
    yield* Ref.update(world.memory, (memory) => ({ ...memory, unsure: true }))
    yield* ConfigFile.write(world.disk, { path, text, mode: 0o640, expected: now, permit: world.gate.check })
    yield* Ref.update(world.memory, (memory) => ({ ...memory, unsure: false }))
  })

const rewrite = (world: World, file: Includes.Included, now: string, text: string) => {
  const { mode, owner, path } = file
  return ConfigFile.write(world.disk, { path, text, mode, owner, expected: now, permit: world.gate.check })
}

/** Does nothing where the main already serves exactly this file, every export of it. */
const serve = (
  world: World,
  control: Main.Control,
  acl: Acl.Acl,
  set: ReadonlyArray<WantedExport>,
  marker: string
): Effect.Effect<void, NbdUnavailable | GateClosed> =>
  Effect.gen(function* () {
    const { memory } = world
    const before = yield* unserved(control, acl, set, marker)
    const { hopeless } = yield* Ref.get(memory)
    const known = hopeless !== null && hopeless.main === before.main ? hopeless.names : []
    if (before.loaded && before.names.every((name) => known.includes(name))) return
    if (control.start === "off") {
      return yield* new NbdUnavailable({ detail: "the file is written, but NBD_START is off: restart nbd-server" })
    }
    yield* world.gate.check
    yield* Main.replace(control)
    yield* Main.untilServed(control, marker)
    const after = yield* unserved(control, acl, set, marker)
    yield* Ref.update(memory, (m) => ({
      ...m,
      hopeless: after.main === null ? null : { main: after.main, names: after.names }
    }))
  })

/** A main that serves the marker may still deny or drop single exports: damaged memory looks like that (N7). */
const unserved = (control: Main.Control, acl: Acl.Acl, set: ReadonlyArray<WantedExport>, marker: string) =>
  Effect.gen(function* () {
    const { place } = control
    const first = yield* Probe.look(place, marker, [])
    const main = first.pid === null ? null : Processes.find(first.pid)
    if (!first.loaded || main === null) return { loaded: false, main: null, names: [] }
    const { verifications } = yield* Probe.look(place, marker, namesOf(set))
    const missing = set.filter(({ size }, index) => {
      const verification = verifications[index]
      return verification?.outcome !== "served" || verification.size !== size
    })
    const damaged = yield* Effect.filter(missing, ({ name }) => Effect.negate(Acl.denies(acl, name)))
    return { loaded: true, main: Probe.keyOf(main), names: namesOf(damaged) }
  })

const namesOf = (set: ReadonlyArray<WantedExport>): ReadonlyArray<string> => set.map(({ name }) => name)

/**
 * Claimed sections that were served and are not any more get their old text back, where it stood: nothing that was served
 * may end by being taken over. Everything else of the load stays. Not to be interrupted half-way.
 */
const putBack = (
  world: World,
  control: Main.Control,
  written: Written.Written,
  request: LoadRequest,
  failed: Rendition,
  lost: ReadonlyArray<string>
): Effect.Effect<never, NbdUnavailable | GateClosed> =>
  Effect.gen(function* () {
    const rest = { ...request, set: request.set.filter(({ name }) => !lost.includes(name)) }
    const rendition = yield* render(world, rest, written)
    for (const { file, text } of failed.included) {
      const old = rendition.included.find((one) => one.file.path === file.path)?.text ?? file.text
      if (old !== text) yield* rewrite(world, file, text, old)
    }
    yield* replaceText(world, failed.text, rendition.text)
    yield* serve(world, control, written.acl, rest.set, rendition.marker)
    return yield* new NbdUnavailable({
      detail: `${lost.join(", ")}: no longer served once taken over, and put back as before`
    })
  }).pipe(Effect.uninterruptible)

/** Only a convenience for a later repair, so that its failure is logged and does not undo the load. */
const saveCopy = (world: World, text: string): Effect.Effect<void> =>
  Effect.gen(function* () {
    const { saved } = yield* Ref.get(world.memory)
    if (saved === text) return
    const now = yield* ConfigFile.readText(world.disk, world.verified_copy)
    if (now._tag !== "Present" || now.text !== text) {
      const write = { path: world.verified_copy, text, mode: 0o640, expected: undefined, permit: Effect.void }
      yield* ConfigFile.write(world.disk, write)
    }
    yield* Ref.update(world.memory, (memory) => ({ ...memory, saved: text }))
  }).pipe(
    Effect.catchAll((error) => Effect.logWarning("the verified NBD configuration was not kept", Cause.fail(error)))
  )
