import { Effect } from "effect"
import { randomBytes } from "node:crypto"
import { lstat, mkdir, open, readdir, readlink, rename, symlink, unlink } from "node:fs/promises"
import { join } from "node:path"
import type { LoadRequest, WantedExport } from "../../reconciler/Nbd.ts"
import { NbdUnavailable } from "../../schema/Errors.ts"
import * as NbdName from "../../schema/NbdName.ts"
import * as Files from "../Devices/Files.ts"

/**
 * What nbdkit serves: two directories of symbolic links, each named as its export and leading to a by-id path. Which of
 * the two a link is in says whether its export is read-only. nbdkit looks at the directory at every connection, so that a
 * link that is made, turned or removed counts for the next client at once and for no running one. A fenced link waits in
 * a directory that nobody serves.
 */
export interface Places {
  readonly base: string
  readonly writable: string
  readonly read_only: string
  readonly fenced_writable: string
  readonly fenced_read_only: string
  /** Where links are made before they get their name: nobody can open one that is half-way. */
  readonly fresh: string
}

export const places = (state_dir: string): Places => {
  const base = join(state_dir, "nbdkit")
  return {
    base,
    writable: join(base, "rw"),
    read_only: join(base, "ro"),
    fenced_writable: join(base, "fenced-rw"),
    fenced_read_only: join(base, "fenced-ro"),
    fresh: join(base, "new")
  }
}

/** Where a link of this kind is kept. */
const placeOf = (places: Places, { fenced, read_only }: Pick<Link, "fenced" | "read_only">): string => {
  if (read_only) return fenced ? places.fenced_read_only : places.read_only
  return fenced ? places.fenced_writable : places.writable
}

export interface Link {
  /** Text, as `NbdName` writes bytes. */
  readonly name: string
  readonly read_only: boolean
  readonly fenced: boolean
  /** What it says; null where it is no link at all, so not made by us. */
  readonly path: string | null
  /** ms since the epoch: when it was made, turned, or came where it is. */
  readonly changed_at: number
}

/** Why no export may have this name here, or null: it becomes the name of a file. */
export const nameProblem = (name: string): string | null => {
  if (name.includes("/")) return "holds a slash, and nbdkit serves no such name"
  return name.startsWith(".") ? "begins with a dot" : NbdName.claimProblem(name)
}

/** A name may hold bytes that are no UTF-8, which only a Buffer brings to the kernel as they are. */
const at = (directory: string, name: string): Buffer =>
  Buffer.concat([Buffer.from(`${directory}/`), Buffer.from(NbdName.bytesOf(name), "latin1")])

/** Every entry of the four directories; what does not exist yet holds none. */
export const read = (places: Places): Effect.Effect<ReadonlyArray<Link>, NbdUnavailable> =>
  Effect.forEach(kinds, (kind) => readOne(placeOf(places, kind), kind)).pipe(
    Effect.map((links) => links.flat()),
    Effect.mapError((error) => failed("the links could not be read", error))
  )

const kinds: ReadonlyArray<Pick<Link, "fenced" | "read_only">> = [
  { fenced: false, read_only: false },
  { fenced: false, read_only: true },
  { fenced: true, read_only: false },
  { fenced: true, read_only: true }
]

const readOne = (directory: string, kind: (typeof kinds)[number]) =>
  Effect.gen(function* () {
    const names = yield* Files.attempt(() => readdir(directory, { encoding: "latin1" })).pipe(
      Effect.catchIf(Files.isMissing, () => Effect.succeed<Array<string>>([]))
    )
    const links = yield* Effect.forEach(names, (bytes) => entry(directory, NbdName.textOf(bytes), kind), {
      concurrency: 16
    })
    return links.filter((link) => link !== null)
  })

/** Null for one that has gone meanwhile. */
const entry = (directory: string, name: string, kind: (typeof kinds)[number]) =>
  Effect.gen(function* () {
    const path = at(directory, name)
    const stats = yield* Files.attempt(() => lstat(path))
    const target = stats.isSymbolicLink()
      ? NbdName.textOf(yield* Files.attempt(() => readlink(path, { encoding: "latin1" })))
      : null
    // A rename is a change of the link, not of what it says.
    return { ...kind, name, path: target, changed_at: Math.floor(stats.ctimeMs) } satisfies Link
  }).pipe(Effect.catchIf(Files.isMissing, () => Effect.succeed(null)))

/** Why the directories must not be used, or null: whoever may write there may serve anything (N15). */
export const problem = (places: Places): Effect.Effect<string | null> =>
  Effect.map(
    Effect.forEach([places.base, places.fresh, ...kinds.map((kind) => placeOf(places, kind))], judge),
    (problems) => problems.find((one) => one !== null) ?? null
  )

const judge = (directory: string): Effect.Effect<string | null> =>
  Files.attempt(() => lstat(directory)).pipe(
    Effect.map((stats) => {
      if (!stats.isDirectory()) return `${directory} is a symbolic link, or no directory`
      if (stats.uid !== 0 && stats.uid !== process.geteuid?.()) return `${directory} belongs to user ${stats.uid}`
      return (stats.mode & 0o022) === 0 ? null : `${directory} can be written by its group or by others`
    }),
    Effect.catchAll((error) => Effect.succeed(Files.isMissing(error) ? null : `${directory}: ${error.code}`))
  )

export const makeDirectories = (places: Places): Effect.Effect<void, NbdUnavailable> =>
  Effect.forEach(
    [...kinds.map((kind) => placeOf(places, kind)), places.fresh],
    (directory) => Files.attempt(() => mkdir(directory, { recursive: true, mode: 0o700 })),
    { discard: true }
  ).pipe(Effect.mapError((error) => failed("the directories of links could not be made", error)))

/** One step on the way from what is there to what is wanted. */
type Step =
  | { readonly _tag: "Remove"; readonly link: Link }
  | { readonly _tag: "Put"; readonly wanted: WantedExport; readonly fenced: boolean }

/**
 * In this order no name ever leads to two disks: what must go goes first. A fenced export stays fenced, wherever it
 * leads from now on.
 */
export const steps = (links: ReadonlyArray<Link>, { drop, set }: LoadRequest): ReadonlyArray<Step> => {
  const wanted = set.flatMap((one): ReadonlyArray<Step> => {
    const mine = links.filter(({ name }) => name === one.name)
    const fenced = mine.some((link) => link.fenced)
    const here = mine.find((link) => link.fenced === fenced && link.read_only === one.read_only)
    const leaving = mine.filter((link) => link !== here).map((link): Step => ({ _tag: "Remove", link }))
    return here?.path === one.path ? leaving : [...leaving, { _tag: "Put", wanted: one, fenced }]
  })
  const dropped = links.filter(({ name }) => drop.includes(name) && !set.some((one) => one.name === name))
  return [...dropped.map((link): Step => ({ _tag: "Remove", link })), ...wanted]
}

/** What stands in the way of such a load, before anything is done. */
export const obstacle = (links: ReadonlyArray<Link>, { drop, set }: LoadRequest): string | null => {
  for (const { name } of set) {
    const wrong = nameProblem(name)
    if (wrong !== null) return `the export name ${JSON.stringify(name.slice(0, 120))} ${wrong}`
  }
  // To remove a link costs nobody a byte; what is no link may be the only copy of something.
  for (const name of [...set.map((one) => one.name), ...drop]) {
    const stranger = links.find((link) => link.name === name && link.path === null)
    if (stranger !== undefined) return `something that is no link bears the name ${name} in a directory of links`
  }
  return null
}

/** Every step is whole by itself: wherever a crash ends this, each name leads where it did or where it shall. */
export const take = (places: Places, steps: ReadonlyArray<Step>): Effect.Effect<void, NbdUnavailable> =>
  Effect.gen(function* () {
    if (steps.length === 0) return
    yield* sweep(places)
    yield* Effect.forEach(steps, (step) => takeOne(places, step), { discard: true })
    yield* Effect.forEach(kinds, (kind) => sync(placeOf(places, kind)), { discard: true })
  }).pipe(
    Effect.mapError((error) => failed("the links could not be changed", error)),
    Effect.uninterruptible
  )

const takeOne = (places: Places, step: Step): Effect.Effect<void, Files.FileFailed> => {
  switch (step._tag) {
    case "Remove":
      return remove(at(placeOf(places, step.link), step.link.name))
    case "Put": {
      const { name, path, read_only } = step.wanted
      const temporary = join(places.fresh, randomBytes(8).toString("hex"))
      const place = placeOf(places, { read_only, fenced: step.fenced })
      return Files.attempt(() => symlink(Buffer.from(NbdName.bytesOf(path), "latin1"), temporary)).pipe(
        Effect.andThen(Files.attempt(() => rename(temporary, at(place, name))))
      )
    }
  }
}

const remove = (path: Buffer | string): Effect.Effect<void, Files.FileFailed> =>
  Files.attempt(() => unlink(path)).pipe(Effect.catchIf(Files.isMissing, () => Effect.void))

const TEMPORARY = /^[0-9a-f]{16}$/

/** What a crash left before it had its name. */
const sweep = (places: Places) =>
  Effect.flatMap(
    Files.attempt(() => readdir(places.fresh)),
    (names) => {
      const ours = names.filter((name) => TEMPORARY.test(name))
      return Effect.forEach(ours, (name) => remove(join(places.fresh, name)), { discard: true })
    }
  )

const sync = (directory: string): Effect.Effect<void, Files.FileFailed> =>
  Effect.acquireUseRelease(
    Files.attempt(() => open(directory, "r")),
    (handle) => Files.attempt(() => handle.sync()),
    (handle) => Effect.ignore(Files.attempt(() => handle.close()))
  )

/** Moves an export between the directory that is served and the one that is not; one that is not there needs no fence. */
export const fence = (places: Places, name: string, fenced: boolean): Effect.Effect<void, NbdUnavailable> =>
  Effect.gen(function* () {
    for (const read_only of [false, true]) {
      const from = placeOf(places, { read_only, fenced: !fenced })
      const to = placeOf(places, { read_only, fenced })
      const moved = yield* Files.attempt(() => rename(at(from, name), at(to, name))).pipe(
        Effect.as(true),
        Effect.catchIf(Files.isMissing, () => Effect.succeed(false))
      )
      if (moved) yield* Effect.forEach([from, to], sync, { discard: true })
    }
  }).pipe(
    Effect.mapError((error) => failed(`the link ${JSON.stringify(name)} could not be moved`, error)),
    Effect.uninterruptible
  )

const failed = (detail: string, { cause, code }: Files.FileFailed): NbdUnavailable =>
  new NbdUnavailable({ detail: code === null ? detail : `${detail}: ${code}`, cause })
