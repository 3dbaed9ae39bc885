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
import * as Pin from "./Pin.ts"
import * as Pinning from "./Pinning.ts"
import * as Probe from "./Probe.ts"
import * as Processes from "./Processes.ts"
import { render, type Rendition } from "./Rendition.ts"
import { controlOf, sentinelAt, type World } from "./World.ts"
import * as Serving from "./Serving.ts"
import * as Written from "./Written.ts"

/**
 * Makes the file say what is wanted and the server serve that file: at most one replacement of the main, save where what
 * stood there before is put back, because no server starts with the file or one serves a claimed section no more.
 */
export const load = (
  world: World,
  asked: LoadRequest
): Effect.Effect<void, NbdUnavailable | GateClosed | PreconditionLost> =>
  Effect.gen(function* () {
    const { lost, there } = yield* Node.still(world.options, asked)
    const request = { ...asked, set: there }
    const prepared = yield* prepare(world, request)
    yield* world.gate.check
    // From here on something may have changed, so that a gate that closes is no "not done" any more (S7).
    yield* change(world, request, prepared).pipe(
      Effect.catchTag("GateClosed", (cause) => new NbdUnavailable({ detail: `half done: ${cause.message}`, cause }))
    )
    if (lost !== null) return yield* lost
  })

/** What the load will do; nothing is changed by it. */
const prepare = (world: World, request: LoadRequest) =>
  Effect.gen(function* () {
    const written = yield* Written.read(world)
    yield* usable(written)
    const control = controlOf(world, written.judgement)
    const servable = yield* approachable(control, request)
    yield* readable(written)
    const rendition = yield* render(world, request, written)
    return { written, control, rendition, servable, claimed: yield* claims(written, request) }
  })

const change = (
  world: World,
  request: LoadRequest,
  { claimed, control, rendition, servable, written }: Effect.Effect.Success<ReturnType<typeof prepare>>
) =>
  Effect.gen(function* () {
    yield* makeSentinel(world, sentinelAt(world, written.judgement))
    const hung = yield* shut(world, control, written, leaving(request))
    yield* Failpoint.pass("nbd.denied")
    yield* admit(world, written, request, claimed)
    yield* Failpoint.pass("nbd.admitted")
    yield* store(world, written, rendition)
    yield* Failpoint.pass("nbd.stored")
    yield* Pinning.denyUnproven(world)
    if (!servable) return yield* Pin.sweep(world)
    const duty = dutyOf(world, request, written, rendition)
    const lost = yield* Serving.bring(world, control, { ...duty, hung }).pipe(
      Effect.catchTag("NbdUnavailable", (cause) => standBy(world, control, written, rendition, cause))
    )
    // Not before: where the file before is put back, so is whom it admitted.
    const close = (name: string) => world.authfile(name).withPermits(1)(Acl.close(written.acl, name))
    yield* Effect.forEach(leaving(request), close, { concurrency: 8, discard: true })
    const taken = lost.filter((name) => claimed.includes(name))
    if (taken.length > 0) return yield* putBack(world, control, written, request, rendition, taken)
    yield* Failpoint.pass("nbd.served")
    yield* Pin.sweep(world)
    yield* saveCopy(world, rendition.text)
    if (lost.length === 0) return
    return yield* new NbdUnavailable({ detail: `${lost.join(", ")}: served before this load and no longer` })
  })

const dutyOf = (
  world: World,
  request: LoadRequest,
  written: Written.Written,
  { marker, text }: Rendition
): Serving.Duty => {
  const { acl } = written
  const named = new Set([...request.set.map(({ name }) => name), ...request.drop])
  const parsed = NbdConfig.parse(text)
  const document = parsed._tag === "Parsed" ? parsed.document : null
  return {
    marker,
    acl,
    set: request.set,
    drop: request.drop,
    // One whose path leads elsewhere by now is no fault of the server's memory.
    distrusted: (request.distrusted ?? []).filter((name) => request.set.some((wanted) => wanted.name === name)),
    hung: false,
    others: Written.names(written).filter((name) => !named.has(name)),
    listens: NbdConfig.endpoints(document, world.options.nbd)
  }
}

/**
 * What leaves is denied before anything else, so that whatever happens to this load nobody opens it any more. That it is
 * denied is asked of the server: one that does not obey is one more reason to replace it, which is what comes next. True
 * where it did not answer at all.
 */
const shut = (
  world: World,
  control: Main.Control,
  written: Written.Written,
  names: ReadonlyArray<string>
): Effect.Effect<boolean, NbdUnavailable> =>
  Effect.gen(function* () {
    const open = yield* Effect.filter(names, (name) => Effect.negate(Acl.denies(written.acl, name)))
    if (open.length === 0) return false
    const deny = (name: string) => world.authfile(name).withPermits(1)(Acl.deny(written.acl, name))
    yield* Effect.forEach(open, deny, { concurrency: 8, discard: true })
    const { server, verifications } = yield* Probe.look(control.place, null, open, world.silence)
    const still = verifications.filter(({ outcome }) => outcome === "served").map(({ name }) => name)
    if (still.length > 0) {
      const warning = Effect.logWarning("fenced and still served until the server is replaced")
      yield* Effect.annotateLogs(warning, { exports: still.join(", ") })
    }
    return server === "hung"
  })

/** Dropped exports that can have an authfile of ours. */
const leaving = (request: LoadRequest): ReadonlyArray<string> =>
  request.drop.filter(
    (name) => NbdName.claimProblem(name) === null && !request.set.some((wanted) => wanted.name === name)
  )

/** A main is not ended for a file with which none would start. */
const usable = ({ file, includes }: Written.Written): Effect.Effect<void, NbdUnavailable> => {
  if (file._tag === "Unusable") return new NbdUnavailable({ detail: file.problem })
  return includes.problem === null
    ? Effect.void
    : new NbdUnavailable({ detail: `no server would start: ${includes.problem}` })
}

/**
 * Before anything is written: is there a server that we can bring to serve the file? False where none is installed and
 * none listens, so that what is to leave only has to leave the file.
 */
const approachable = (control: Main.Control, { set }: LoadRequest): Effect.Effect<boolean, NbdUnavailable> =>
  Effect.gen(function* () {
    const listener = yield* Processes.listener(control.place)
    if (listener._tag === "Foreign") return yield* new NbdUnavailable({ detail: listener.problem })
    if (listener._tag === "Main" || control.start !== "auto") return true
    if ((yield* Main.program(control, "nbd-server")) !== null) return true
    return set.length === 0 ? false : yield* Main.notInstalled("nbd-server")
  })

/** A server that cannot read whom an export admits admits everybody. */
const readable = ({ acl, judgement }: Written.Written): Effect.Effect<void, NbdUnavailable> =>
  Effect.flatMap(Acl.hiddenFrom(acl, judgement.user), (problem) =>
    problem === null ? Effect.void : new NbdUnavailable({ detail: problem })
  )

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

/** A file of zeros that the sentinel and the marker export: made by us, never a volume. */
const makeSentinel = (world: World, path: string): Effect.Effect<void, NbdUnavailable> =>
  Effect.gen(function* () {
    if (dirname(path) === world.options.nbd.acl_dir) yield* ConfigFile.makeDirectory(world.disk, dirname(path))
    yield* Effect.acquireUseRelease(
      Files.attempt(() => open(path, "a", 0o644)),
      (file) => Files.attempt(() => file.chmod(0o644).then(() => file.truncate(SENTINEL_BYTES))),
      (file) => Effect.ignore(Files.attempt(() => file.close()))
    ).pipe(Effect.mapError(({ cause }) => new NbdUnavailable({ detail: `${path} cannot be made`, cause })))
  })

const SENTINEL_BYTES = 1024 * 1024

/**
 * An export admits its clients before its section is there. One that is in the file already and denies everybody has
 * been fenced: only `release` lifts that.
 */
const admit = (
  world: World,
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
    }).pipe(world.authfile(name).withPermits(1))
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
    const { check } = world.gate
    if (included.length === 0) return yield* replaceText(world, now, text, check)
    yield* replaceText(world, now, moving, check)
    yield* Effect.forEach(included, (one) => rewrite(world, one.file, one.file.text, one.text, check), {
      discard: true
    })
    yield* replaceText(world, moving, text, check)
  })

const replaceText = <E>(
  world: World,
  now: string | null,
  text: string,
  permit: Effect.Effect<void, E>
): Effect.Effect<void, NbdUnavailable | E> =>
  Effect.gen(function* () {
    const path = world.options.nbd.config
    if (now === text && !(yield* Ref.get(world.unsure)).has(path)) return
    yield* ConfigFile.writeAgain(world.disk, world.unsure, { path, text, mode: 0o640, expected: now, permit })
  })

const rewrite = <E>(
  world: World,
  file: Includes.Included,
  now: string,
  text: string,
  permit: Effect.Effect<void, E>
) => {
  const { mode, owner, path } = file
  return ConfigFile.writeAgain(world.disk, world.unsure, { path, text, mode, owner, expected: now, permit })
}

/**
 * The old main has been ended and none starts with the new file: the old one is put back and started, so that what was
 * served is served again; what was to leave stays denied. Where a main is there, or somebody else is, nothing is undone:
 * the file is not to blame. Not a matter of the gate either, which was open when the old main was ended.
 */
const standBy = (
  world: World,
  control: Main.Control,
  written: Written.Written,
  failed: Rendition,
  cause: NbdUnavailable
): Effect.Effect<never, NbdUnavailable> =>
  Effect.gen(function* () {
    const { file } = written
    const listener = yield* Processes.listener(control.place)
    const dead = listener._tag === "None" || listener._tag === "Leftover"
    if (!dead || control.start === "off" || file._tag !== "Sound" || file.text === failed.text) return yield* cause
    for (const { file, text } of failed.included) yield* rewrite(world, file, text, file.text, Effect.void)
    yield* replaceText(world, failed.text, file.text, Effect.void)
    yield* Pinning.denyUnproven(world)
    yield* Main.replace(control)
    yield* Main.untilServed(control, Written.markerOf(written))
    return yield* new NbdUnavailable({ detail: `${cause.message}; the file before is served again`, cause })
  }).pipe(Effect.uninterruptible)

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
    const { check } = world.gate
    const rest = { ...request, set: request.set.filter(({ name }) => !lost.includes(name)) }
    const rendition = yield* render(world, rest, written)
    for (const { file, text } of failed.included) {
      const old = rendition.included.find((one) => one.file.path === file.path)?.text ?? file.text
      if (old !== text) yield* rewrite(world, file, text, old, check)
    }
    yield* replaceText(world, failed.text, rendition.text, check)
    yield* Serving.bring(world, control, dutyOf(world, rest, written, rendition))
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
