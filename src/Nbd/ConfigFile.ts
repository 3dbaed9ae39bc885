import { Effect, Option, Ref } from "effect"
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
  Effect.map(readText(disk, path), (content) => (content._tag === "Present" ? examine(path, content) : content))

const examine = (
  path: string,
  { mode, owner, text }: Extract<Content, { readonly _tag: "Present" }>
): Exclude<Reading, { readonly _tag: "Absent" }> => {
  if (!isTrusted(owner.uid)) return unusable(`${path}: it belongs to user ${owner.uid}, ${TRUSTED}: chown root it`)
  if ((mode & 0o002) !== 0) return unusable(`${path}: everybody can write it: chmod o-w it`)
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

const unusable = (problem: string) => ({ _tag: "Unusable", problem }) as const

export interface Write<E> {
  readonly path: string
  readonly text: string
  readonly mode: number
  /** Whose it shall be, where that is not the one volumed runs as. */
  readonly owner?: Owner
  /** What the file must still be right before it is replaced, null for absent; undefined where nobody else writes it. */
  readonly expected: string | null | undefined
  /** Asked when all is prepared and only a last look at the file and the rename are left. */
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
        yield* request.permit
        yield* Failpoint.pass("file.prepared")
        yield* unchanged(disk, directory.at, request.expected)
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

/**
 * Paths of files whose replacement failed half-way: whether what is there survives a crash is not known, nor does an fsync
 * that works the next time tell. They are written again, whatever they say.
 */
export type Unsure = Ref.Ref<ReadonlySet<string>>

/** As `write`, remembering what must be written again. */
export const writeAgain = <E>(disk: Disk, unsure: Unsure, request: Write<E>): Effect.Effect<void, NbdUnavailable | E> =>
  Ref.update(unsure, (paths) => new Set([...paths, request.path])).pipe(
    Effect.andThen(write(disk, request)),
    Effect.andThen(Ref.update(unsure, (paths) => new Set([...paths].filter((path) => path !== request.path)))),
    Effect.uninterruptible
  )

const fill = <E>(disk: Disk, at: string, request: Write<E>): Effect.Effect<void, Files.FileFailed> => {
  const flags = constants.O_RDWR | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW
  return withFile(disk, at, flags, request.mode, (file) =>
    Effect.gen(function* () {
      // Cut to a byte, a character from elsewhere could become the end of a line.
      if (/[^\0-\xff]/.test(request.text)) return yield* failed("its new text holds what is no byte")
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
 * A second name for the file as it is, so that what a person may still need survives its replacement; one for each file,
 * however often this is tried. A link, not a rename: at no moment is there no file.
 */
export const keepAside = (disk: Disk, path: string, suffix: `broken-${string}`): Effect.Effect<void, NbdUnavailable> =>
  inDirectory(disk, path, (directory) =>
    Effect.gen(function* () {
      const file = yield* inode(disk, directory.at)
      const names = yield* Files.attempt(() => disk.readdir(directory.root))
      const kept = names.filter((name) => name.startsWith(`${directory.name}.broken-`))
      for (const name of kept) {
        const other = yield* Effect.option(inode(disk, join(directory.root, name)))
        if (Option.contains(other, file)) return
      }
      yield* Files.attempt(() => disk.link(directory.at, join(directory.root, `${directory.name}.${suffix}`)))
      yield* Files.attempt(() => directory.handle.sync())
    })
  ).pipe(
    Effect.mapError(
      (error) => new NbdUnavailable({ detail: `not kept aside: ${problemOf(path, error)}`, cause: error.cause })
    )
  )

const inode = (disk: Disk, at: string): Effect.Effect<number, Files.FileFailed> =>
  withFile(disk, at, constants.O_RDONLY | constants.O_NONBLOCK | constants.O_NOFOLLOW, 0, (file) =>
    Effect.map(
      Files.attempt(() => file.stat()),
      ({ ino }) => ino
    )
  )

/**
 * Makes the directory where there is none yet; an existing one stays as it is. Open to all readers whatever the umask: a
 * server that cannot enter it finds no authfile, and admits everybody.
 */
export const makeDirectory = (disk: Disk, path: string): Effect.Effect<void, NbdUnavailable> =>
  Effect.gen(function* () {
    const first = yield* Files.attempt(() => disk.mkdir(path, { recursive: true, mode: DIRECTORY_MODE }))
    if (first === undefined) return
    for (let made = path; made.length >= first.length; made = dirname(made)) {
      yield* withFile(disk, made, constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW, 0, (directory) =>
        Files.attempt(() => directory.chmod(DIRECTORY_MODE).then(() => directory.sync()))
      )
    }
    // Its name has to survive what is written into it: an authfile that a crash takes away admits everybody.
    yield* withFile(disk, dirname(first), constants.O_RDONLY | constants.O_DIRECTORY, 0, (directory) =>
      Files.attempt(() => directory.sync())
    )
  }).pipe(Effect.mapError((error) => new NbdUnavailable({ detail: problemOf(path, error), cause: error.cause })))

const DIRECTORY_MODE = 0o755

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
      if (!isTrusted(stats.uid)) return yield* failed(`its directory belongs to user ${stats.uid}, ${TRUSTED}`)
      if ((stats.mode & 0o022) !== 0) return yield* failed("its directory can be written by its group or by others")
      const root = `/proc/self/fd/${handle.fd}`
      return yield* use({ handle, root, name: basename(path), at: join(root, basename(path)) })
    })
  )
}

const isTrusted = (uid: number): boolean => uid === 0 || uid === process.geteuid?.()
const TRUSTED = "neither root nor the one volumed runs as"

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

/** What a person does about it. */
const REMEDIES: Readonly<Record<string, string>> = {
  ENOSPC: ", its file system is full: free some space",
  EDQUOT: ", a quota is used up: raise it or free some space",
  EROFS: ", its file system is read-only: look into the kernel's log, then mount it writable",
  EACCES: ", volumed may not write there: it must own the directory or be root",
  EPERM: ", it may not be changed: look at its attributes with lsattr",
  EIO: ", the disk reports an error: look into the kernel's log"
}

const problemOf = (path: string, error: Files.FileFailed): string => {
  if (error.code === "ELOOP" || error.code === "ENOTDIR")
    return `${path}: a symbolic link, or no directory, where one must be`
  if (error.code !== null) return `${path}: ${error.code}${REMEDIES[error.code] ?? ""}`
  return `${path}: ${error.cause instanceof Error ? error.cause.message : String(error.cause)}`
}
