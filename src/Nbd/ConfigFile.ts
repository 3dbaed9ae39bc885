import { Effect } from "effect"
import { randomBytes } from "node:crypto"
import { constants } from "node:fs"
import * as FileSystem from "node:fs/promises"
import { basename, dirname, join } from "node:path"
import * as Failpoint from "../../reconciler/Failpoint.ts"
import { NbdUnavailable } from "../../schema/Errors.ts"
import * as NbdConfig from "../../schema/NbdConfig.ts"
import * as Files from "../Devices/Files.ts"

/** The file operations used here; a test hands in some that fail. */
export type Disk = Pick<typeof FileSystem, "open" | "rename" | "unlink" | "readdir" | "link" | "mkdir">

export const disk: Disk = FileSystem

/** A config of 10,000 exports has 3 MB. */
const BYTES_MAX = 16 * 1024 * 1024

export interface Owner {
  readonly uid: number
  readonly gid: number
}

/** What is at a path, text as the file's bytes (latin1). */
export type Content =
  | { readonly _tag: "Absent" }
  | { readonly _tag: "Present"; readonly text: string; readonly mode: number; readonly owner: Owner }
  /** Neither to be read nor to be replaced: who owns or may change the place is not right, or it cannot be read. */
  | { readonly _tag: "Unusable"; readonly problem: string }

/** The NBD server's file as it is. */
export type Reading =
  | Exclude<Content, { readonly _tag: "Present" }>
  | { readonly _tag: "Sound"; readonly text: string; readonly document: NbdConfig.Document }
  /** nbd-server could not start with it (N2); never extended. */
  | { readonly _tag: "Broken"; readonly text: string; readonly problem: string }

export const read = (disk: Disk, path: string): Effect.Effect<Reading> =>
  Effect.map(readText(disk, path), (content) => (content._tag === "Present" ? examine(content.text) : content))

const examine = (text: string): Reading => {
  const parsed = NbdConfig.parse(text)
  if (parsed._tag === "Malformed") return { _tag: "Broken", text, problem: `line ${parsed.line}: ${parsed.problem}` }
  const refusal = NbdConfig.refusal(parsed.document)
  return refusal === null
    ? { _tag: "Sound", text, document: parsed.document }
    : { _tag: "Broken", text, problem: refusal }
}

/** Never fails: what cannot be read says why. A symbolic link is not followed, neither as the file nor as its directory. */
export const readText = (disk: Disk, path: string): Effect.Effect<Content> =>
  saying(
    path,
    inDirectory(disk, path, (directory) => content(disk, directory.at))
  )

/** The same for what others keep where they like: whoever may change the directory, links followed as nbd-server does. */
export const readAnywhere = (disk: Disk, path: string): Effect.Effect<Content> => saying(path, content(disk, path, 0))

const saying = (path: string, reading: Effect.Effect<Content, Files.FileFailed>): Effect.Effect<Content> =>
  Effect.catchAll(reading, (error) =>
    Effect.succeed<Content>(
      Files.isMissing(error) ? { _tag: "Absent" } : { _tag: "Unusable", problem: problemOf(path, error) }
    )
  )

/** Why nothing may be written into the directory of this path, or null. */
export const placeProblem = (disk: Disk, path: string): Effect.Effect<string | null> =>
  inDirectory(disk, path, () => Effect.succeed(null)).pipe(
    Effect.catchAll((error) => Effect.succeed(problemOf(path, error)))
  )

const content = (
  disk: Disk,
  at: string,
  links: number = constants.O_NOFOLLOW
): Effect.Effect<Content, Files.FileFailed> =>
  withFile(disk, at, constants.O_RDONLY | constants.O_NONBLOCK | links, 0, (file) =>
    Effect.gen(function* () {
      const stats = yield* Files.attempt(() => file.stat())
      if (!stats.isFile()) return unusable("it is not a regular file")
      if (stats.size > BYTES_MAX) return unusable(`it has more than ${BYTES_MAX} bytes`)
      const text = yield* Files.attempt(() => file.readFile({ encoding: "latin1" }))
      const owner = { uid: stats.uid, gid: stats.gid }
      return { _tag: "Present", text, mode: stats.mode & 0o777, owner } satisfies Content
    })
  )

const unusable = (problem: string): Content => ({ _tag: "Unusable", problem })

export interface Write<E> {
  readonly path: string
  readonly text: string
  readonly mode: number
  /** Whose it shall be, where that is not the one volumed runs as. */
  readonly owner?: Owner
  /** What the file must still be right before it is replaced, null for absent; undefined where nobody else writes it. */
  readonly expected: string | null | undefined
  /** Asked when all is prepared and only the rename is left. */
  readonly permit: Effect.Effect<void, E>
}

/**
 * Replaces the whole file or leaves the old one whole, whatever fails or ends in between: a new file in the same
 * directory, fsync, read back, rename, fsync of the directory. After a failed fsync nothing is taken as written.
 */
export const write = <E>(disk: Disk, request: Write<E>): Effect.Effect<void, NbdUnavailable | E> =>
  inDirectory(disk, request.path, (directory) =>
    Effect.gen(function* () {
      yield* sweep(disk, directory)
      const temporary = `.${directory.name}.volumed-${randomBytes(8).toString("hex")}.tmp`
      const at = join(directory.root, temporary)
      yield* Effect.gen(function* () {
        yield* fill(disk, at, request)
        yield* unchanged(disk, directory.at, request.expected)
        yield* request.permit
        yield* Failpoint.pass("file.prepared")
        yield* Files.attempt(() => disk.rename(at, directory.at))
        yield* Failpoint.pass("file.renamed")
      }).pipe(Effect.onError(() => Effect.ignore(Files.attempt(() => disk.unlink(at)))))
      yield* Files.attempt(() => directory.handle.sync())
    })
  ).pipe(
    Effect.mapError((error) =>
      error instanceof Files.FileFailed
        ? new NbdUnavailable({ detail: `not written: ${problemOf(request.path, error)}`, cause: error.cause })
        : error
    ),
    Effect.uninterruptible
  )

const fill = <E>(disk: Disk, at: string, request: Write<E>): Effect.Effect<void, Files.FileFailed> => {
  const flags = constants.O_RDWR | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW
  return withFile(disk, at, flags, request.mode, (file) =>
    Effect.gen(function* () {
      const bytes = Buffer.from(request.text, "latin1")
      const { owner } = request
      if (owner !== undefined && owner.uid + owner.gid > 0) {
        yield* Files.attempt(() => file.chown(owner.uid, owner.gid))
      }
      yield* Files.attempt(() => file.chmod(request.mode))
      yield* Files.attempt(() => file.writeFile(bytes))
      yield* Files.attempt(() => file.sync())
      const { buffer, bytesRead } = yield* Files.attempt(() =>
        file.read(Buffer.alloc(bytes.length + 1), 0, bytes.length + 1, 0)
      )
      if (!buffer.subarray(0, bytesRead).equals(bytes)) return yield* failed("what was written reads back differently")
    })
  )
}

/** Another writer's work is not overwritten (N17); the next pass reads it. */
const unchanged = (disk: Disk, at: string, expected: string | null | undefined) =>
  Effect.gen(function* () {
    if (expected === undefined) return
    const now = yield* content(disk, at).pipe(
      Effect.catchIf(Files.isMissing, () => Effect.succeed<Content>({ _tag: "Absent" }))
    )
    const text = now._tag === "Present" ? now.text : null
    if (now._tag === "Unusable" || text !== expected) return yield* failed("somebody else changed it meanwhile")
  })

/** Files that a crash left behind: nobody but this process writes under such a name. */
const sweep = (disk: Disk, directory: Directory) =>
  Effect.gen(function* () {
    const names = yield* Files.attempt(() => disk.readdir(directory.root))
    const left = names.filter((name) => isTemporary(name, directory.name))
    yield* Effect.forEach(left, (name) => Effect.ignore(Files.attempt(() => disk.unlink(join(directory.root, name)))))
  })

const isTemporary = (name: string, target: string): boolean =>
  name.startsWith(`.${target}.volumed-`) && /^[0-9a-f]{16}\.tmp$/.test(name.slice(target.length + 10))

/**
 * A second name for the file as it is, so that what a person may still need survives its replacement. A link, not a
 * rename: at no moment is there no file.
 */
export const keepAside = (disk: Disk, path: string, suffix: string): Effect.Effect<void, NbdUnavailable> =>
  inDirectory(disk, path, (directory) =>
    Files.attempt(() => disk.link(directory.at, join(directory.root, `${directory.name}.${suffix}`)))
  ).pipe(
    Effect.catchIf(
      (error) => error.code === "EEXIST",
      () => Effect.void
    ),
    Effect.mapError(
      (error) => new NbdUnavailable({ detail: `not kept aside: ${problemOf(path, error)}`, cause: error.cause })
    )
  )

/** Makes the directory where there is none yet; an existing one stays as it is. */
export const makeDirectory = (disk: Disk, path: string): Effect.Effect<void, NbdUnavailable> =>
  Files.attempt(() => disk.mkdir(path, { recursive: true, mode: 0o755 })).pipe(
    Effect.mapError((error) => new NbdUnavailable({ detail: problemOf(path, error), cause: error.cause })),
    Effect.asVoid
  )

interface Directory {
  readonly handle: FileSystem.FileHandle
  /** A path to the opened directory itself, wherever its name leads by now. */
  readonly root: string
  readonly name: string
  /** The file in it. */
  readonly at: string
}

/** Everything happens in the directory that was opened and judged, even if its name is turned elsewhere meanwhile (X12). */
const inDirectory = <A, E>(
  disk: Disk,
  path: string,
  use: (directory: Directory) => Effect.Effect<A, E | Files.FileFailed>
): Effect.Effect<A, E | Files.FileFailed> => {
  const flags = constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW
  return withFile(disk, dirname(path), flags, 0, (handle) =>
    Effect.gen(function* () {
      const stats = yield* Files.attempt(() => handle.stat())
      const foreign = stats.uid !== 0 && stats.uid !== process.geteuid?.()
      if (foreign)
        return yield* failed(`its directory belongs to user ${stats.uid}, neither root nor the one volumed runs as`)
      if ((stats.mode & 0o022) !== 0) return yield* failed("its directory can be written by its group or by others")
      const root = `/proc/self/fd/${handle.fd}`
      return yield* use({ handle, root, name: basename(path), at: join(root, basename(path)) })
    })
  )
}

const withFile = <A, E>(
  disk: Disk,
  path: string,
  flags: number,
  mode: number,
  use: (file: FileSystem.FileHandle) => Effect.Effect<A, E>
): Effect.Effect<A, E | Files.FileFailed> =>
  Effect.acquireUseRelease(
    Files.attempt(() => disk.open(path, flags, mode)),
    use,
    (file) => Effect.ignore(Files.attempt(() => file.close()))
  )

const failed = (problem: string): Effect.Effect<never, Files.FileFailed> =>
  Effect.fail(new Files.FileFailed({ code: null, cause: new Error(problem) }))

const problemOf = (path: string, error: Files.FileFailed): string => {
  if (error.code === "ELOOP" || error.code === "ENOTDIR")
    return `${path}: a symbolic link, or no directory, where one must be`
  if (error.code !== null) return `${path}: ${error.code}`
  return `${path}: ${error.cause instanceof Error ? error.cause.message : String(error.cause)}`
}
