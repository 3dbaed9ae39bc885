import { createHash } from "node:crypto"
import { type Dirent, readdirSync, readFileSync, statSync } from "node:fs"
import type { FileHandle } from "node:fs/promises"
import { basename, dirname, join } from "node:path"
import * as ConfigFile from "../../src/Nbd/ConfigFile.ts"

/**
 * What a disk may hold after the power failed, as ALICE (OSDI 2014) thinks of it: every change is recorded in the order in
 * which it was made, and survives for certain only once an fsync followed, of the file for its bytes, of the directory for
 * its names. Whatever was not yet sure may be there or not, in any combination; unsure bytes also cut short or as zeros.
 */

/** Files by path, and directories, which have no text. */
export type State = ReadonlyMap<string, string | null>

type Change =
  | { readonly _tag: "Name"; readonly path: string; readonly inode: number | null }
  | { readonly _tag: "Rename"; readonly from: string; readonly to: string; readonly inode: number }
  | { readonly _tag: "Bytes"; readonly inode: number; readonly text: string }
  | { readonly _tag: "SyncFile"; readonly inode: number }
  | { readonly _tag: "SyncDirectory"; readonly path: string }

/** What an inode is where nobody has written to it: a directory, or a file with these bytes. */
type Inode = { readonly _tag: "Directory" } | { readonly _tag: "File"; readonly text: string }

export interface Recording {
  readonly disk: ConfigFile.Disk
  /** Every state that a power failure between, or during, any two changes may leave, each once. */
  readonly states: (tears?: Tears) => ReadonlyArray<State>
  /** Those that a power failure now may leave. */
  readonly left: () => ReadonlyArray<State>
}

/** Which changes the disk is to keep to itself: with fewer promises there are more states. */
export type Forgets = (change: { readonly _tag: Change["_tag"]; readonly path: string }) => boolean

/** Records what is done below `top`, on the real disk. What is there already is sure. */
export const record = (top: string, forgets: Forgets = () => false): Recording => {
  const inodes: Array<Inode> = []
  const names = new Map<string, number>()
  const inode = (one: Inode): number => inodes.push(one) - 1
  for (const [path, text] of snapshot(top)) {
    names.set(path, inode(text === null ? { _tag: "Directory" } : { _tag: "File", text }))
  }
  const before: ReadonlyMap<string, number> = new Map(names)
  const made: Array<Change> = []
  const descriptors = new Map<number, string>()
  const real = (path: unknown): string => {
    const [, fd, name] = /^\/proc\/self\/fd\/(\d+)(?:\/(.*))?$/.exec(String(path)) ?? []
    const directory = fd === undefined ? undefined : descriptors.get(Number(fd))
    return directory === undefined ? String(path) : join(directory, name ?? "")
  }
  const note = (change: Change, path: string) => {
    if (!forgets({ _tag: change._tag, path })) made.push(change)
  }
  const known = (path: string): number => {
    const found = names.get(path)
    if (found === undefined) throw new Error(`${path} was never made`)
    return found
  }
  const opened = (file: FileHandle, path: string): FileHandle => {
    const isDirectory = inodes[known(path)]?._tag === "Directory"
    if (isDirectory) descriptors.set(file.fd, path)
    const one = known(path)
    const { sync, writeFile } = file
    file.writeFile = async (data) => {
      note({ _tag: "Bytes", inode: one, text: Buffer.from(data as Uint8Array).toString("latin1") }, path)
      await writeFile.call(file, data)
    }
    file.sync = async () => {
      await sync.call(file)
      note(isDirectory ? { _tag: "SyncDirectory", path } : { _tag: "SyncFile", inode: one }, path)
    }
    return file
  }
  const disk: ConfigFile.Disk = {
    ...ConfigFile.disk,
    open: async (at, flags, mode) => {
      const path = real(at)
      const file = await ConfigFile.disk.open(at, flags, mode)
      if (path.startsWith(top) && !names.has(path)) {
        names.set(path, inode({ _tag: "File", text: "" }))
        note({ _tag: "Name", path, inode: known(path) }, path)
      }
      return path.startsWith(top) ? opened(file, path) : file
    },
    rename: async (from, to) => {
      await ConfigFile.disk.rename(from, to)
      const one = known(real(from))
      note({ _tag: "Rename", from: real(from), to: real(to), inode: one }, real(to))
      names.set(real(to), one)
      names.delete(real(from))
    },
    unlink: async (at) => {
      await ConfigFile.disk.unlink(at)
      note({ _tag: "Name", path: real(at), inode: null }, real(at))
      names.delete(real(at))
    },
    link: async (from, to) => {
      await ConfigFile.disk.link(from, to)
      names.set(real(to), known(real(from)))
      note({ _tag: "Name", path: real(to), inode: known(real(from)) }, real(to))
    },
    mkdir: (async (at: string, options: { readonly mode: number }) => {
      const first = await ConfigFile.disk.mkdir(at, { ...options, recursive: true })
      if (first === undefined) return undefined
      const missing: Array<string> = []
      for (let path = at; path.length >= first.length; path = dirname(path)) missing.unshift(path)
      for (const path of missing) {
        names.set(path, inode({ _tag: "Directory" }))
        note({ _tag: "Name", path, inode: known(path) }, path)
      }
      return first
    }) as ConfigFile.Disk["mkdir"]
  }
  return {
    disk,
    states: (tears = anywhere) => enumerate({ before, inodes, made }, tears),
    left: () => enumerate({ before, inodes, made }, inTheMiddle, made.length)
  }
}

/** Files and directories below it, its own name left out. */
export const snapshot = (top: string): State => {
  const found = new Map<string, string | null>([[top, null]])
  for (const entry of readdirSync(top, { withFileTypes: true, recursive: true }) as ReadonlyArray<Dirent>) {
    const path = join(entry.parentPath, entry.name)
    if (entry.isDirectory()) found.set(path, null)
    else if (entry.isFile() && statSync(path).size < 65_536) found.set(path, readFileSync(path, "latin1"))
  }
  return found
}

interface History {
  readonly before: ReadonlyMap<string, number>
  readonly inodes: ReadonlyArray<Inode>
  readonly made: ReadonlyArray<Change>
}

/** Beyond this the combinations are too many to look at each, and a writer that leaves so much unsure is wrong anyway. */
const UNSURE_MAX = 12

const enumerate = (history: History, tears: Tears, from = 0): ReadonlyArray<State> => {
  const found = new Map<string, State>()
  for (let crash = from; crash <= history.made.length; crash++) {
    const made = history.made.slice(0, crash)
    const unsure = made.flatMap((change, at) => (isSync(change) || isSure(made, at) ? [] : [at]))
    if (unsure.length > UNSURE_MAX) throw new Error(`${unsure.length} changes are unsure at once`)
    for (let subset = 0; subset < 2 ** unsure.length; subset++) {
      const lost = new Set(unsure.filter((_, bit) => (subset & (2 ** bit)) === 0))
      for (const bytes of tornBytes(
        made,
        unsure.filter((at) => !lost.has(at)),
        tears
      )) {
        const state = replay(history, made, lost, bytes)
        found.set(
          createHash("sha1")
            .update(JSON.stringify([...state].sort()))
            .digest("base64"),
          state
        )
      }
    }
  }
  return [...found.values()]
}

/** All ways in which the unsure bytes of one file may be left, while those of others are whole. */
const tornBytes = (
  made: ReadonlyArray<Change>,
  unsure: ReadonlyArray<number>,
  tears: Tears
): ReadonlyArray<ReadonlyMap<number, string>> => [
  new Map(),
  ...unsure.flatMap((at) => {
    const change = made[at]
    return change?._tag === "Bytes" ? tears(change.text).map((text) => new Map([[at, text]])) : []
  })
]

const isSync = ({ _tag }: Change): boolean => _tag === "SyncFile" || _tag === "SyncDirectory"

const isSure = (made: ReadonlyArray<Change>, at: number): boolean => {
  const change = made[at]
  return made.slice(at + 1).some((later) => {
    switch (change?._tag) {
      case "Bytes":
        return later._tag === "SyncFile" && later.inode === change.inode
      case "Name":
        return later._tag === "SyncDirectory" && later.path === dirname(change.path)
      case "Rename":
        return later._tag === "SyncDirectory" && later.path === dirname(change.to)
      default:
        return false
    }
  })
}

/** What may be left of bytes that no fsync followed, beside all of them. */
export type Tears = (text: string) => ReadonlyArray<string>

/** Cut short after any byte, or zeros for as many from there on. */
export const anywhere: Tears = (text) =>
  Array.from({ length: text.length }, (_, at) => text.slice(0, at)).flatMap((head) => [
    head,
    head + "\0".repeat(text.length - head.length)
  ])

export const inTheMiddle: Tears = (text) => [text.slice(0, Math.floor(text.length / 2))]

const replay = (
  { before, inodes }: History,
  made: ReadonlyArray<Change>,
  lost: ReadonlySet<number>,
  torn: ReadonlyMap<number, string>
): State => {
  const names = new Map(before)
  const texts = new Map<number, string>()
  for (const [at, change] of made.entries()) {
    if (lost.has(at)) continue
    switch (change._tag) {
      case "Name":
        if (change.inode === null) names.delete(change.path)
        else names.set(change.path, change.inode)
        break
      case "Rename":
        names.delete(change.from)
        names.set(change.to, change.inode)
        break
      case "Bytes":
        texts.set(change.inode, torn.get(at) ?? change.text)
        break
      case "SyncFile":
      case "SyncDirectory":
        break
    }
  }
  const state = new Map<string, string | null>()
  for (const [path, inode] of names) {
    if (!isReachable(names, path)) continue
    const one = inodes[inode]
    state.set(path, one?._tag === "File" ? (texts.get(inode) ?? one.text) : null)
  }
  return state
}

/** A file in a directory whose own name was lost is lost with it. */
const isReachable = (names: ReadonlyMap<string, number>, path: string): boolean => {
  const top = [...names.keys()].reduce((a, b) => (a.length <= b.length ? a : b))
  for (let at = path; at !== top; at = dirname(at)) if (!names.has(at)) return false
  return true
}

/** Not one of the files under which a new text is prepared. */
export const isFinal = (path: string): boolean => !/^\..*\.volumed-[0-9a-f]{16}\.tmp$/.test(basename(path))
