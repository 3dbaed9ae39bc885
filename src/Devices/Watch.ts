import { Effect, Queue, Schedule, Stream } from "effect"
import { type FSWatcher, statSync, watch } from "node:fs"
import { basename, dirname, relative, resolve, sep } from "node:path"

/** Long enough for udev to finish a burst of links, short enough that nobody waits for it. */
const DEBOUNCE = "20 millis"
/** Watches are a limited resource of the whole machine; where they ran out they are asked for again this often. */
const RETRY = "10 seconds"

/**
 * A poke when something in `directory` may have changed, whether it exists yet or not. It carries nothing and may lie in
 * both directions, so whoever is poked looks for himself. Never ends and never fails: where the kernel gives no watch,
 * the log says so and the poke is left to somebody's timer.
 */
export const changes = (directory: string): Stream.Stream<void> =>
  Stream.unwrapScoped(
    Effect.gen(function* () {
      const queue = yield* Queue.sliding<void>(1)
      const guard = yield* Effect.acquireRelease(
        Effect.sync(() => guardOf(resolve(directory), () => Queue.unsafeOffer(queue, undefined))),
        (it) => Effect.sync(it.close)
      )
      yield* keepArmed(directory, guard).pipe(Effect.repeat(Schedule.spaced(RETRY)), Effect.forkScoped)
      // A burst becomes one poke, and a burst without end one every 20 ms: nothing starves.
      return Stream.repeatEffect(
        Queue.take(queue).pipe(
          Effect.andThen(Effect.sleep(DEBOUNCE)),
          Effect.andThen(Queue.takeAll(queue)),
          Effect.asVoid
        )
      )
    })
  )

type Guard = ReturnType<typeof guardOf>

const keepArmed = (directory: string, guard: Guard) =>
  Effect.suspend(() => {
    if (guard.armed()) return Effect.void
    const failure = guard.arm()
    return failure === null
      ? Effect.void
      : Effect.logWarning("a directory cannot be watched", failure).pipe(Effect.annotateLogs({ directory }))
  })

/**
 * A watch lives on an inode, so it goes deaf without an error when the directory is removed and made again, as udev does.
 * Therefore the nearest existing ancestor is watched too, and each event first makes sure that what is watched is what
 * bears the name now.
 */
const guardOf = (directory: string, poke: () => void) => {
  const watched = new Map<string, { readonly inode: string; readonly watcher: FSWatcher }>()
  let closed = false
  let armed = false

  const drop = (path: string) => {
    watched.get(path)?.watcher.close()
    watched.delete(path)
  }
  const onEvent = (path: string, name: string | null) => {
    if (closed || !concerns(directory, path, name)) return
    arm()
    poke()
  }
  /** Null, or why not everything is watched now. */
  const arm = (): unknown => {
    try {
      // Something may appear between the look and the watch; then the next look differs. Eight levels are enough for any.
      for (let round = 0; round < 8 && settle(); round++) poke()
      armed = true
      return null
    } catch (cause) {
      armed = false
      return cause
    }
  }
  /** One round: true when a watch was added. */
  const settle = (): boolean => {
    const wanted = targets(directory)
    for (const [path, { inode }] of watched) if (wanted.get(path) !== inode) drop(path)
    for (const [path, inode] of wanted) {
      if (watched.has(path)) continue
      const watcher = watch(path, { persistent: false }, (_, name) => onEvent(path, name))
      watcher.on("error", () => {
        drop(path)
        armed = false
        poke()
      })
      watched.set(path, { inode, watcher })
      return true
    }
    return false
  }
  const close = () => {
    closed = true
    for (const path of watched.keys()) drop(path)
  }
  return { arm, armed: () => armed, close }
}

/** The nearest existing ancestor and, where it exists, the directory itself, each with its inode. */
const targets = (directory: string): ReadonlyMap<string, string> => {
  const found = new Map<string, string>()
  let ancestor = directory
  do ancestor = dirname(ancestor)
  while (inodeOf(ancestor) === null && ancestor !== dirname(ancestor))
  for (const path of [ancestor, directory]) {
    const inode = inodeOf(path)
    if (inode !== null) found.set(path, inode)
  }
  return found
}

/** An ancestor has other children, which are nobody's business here; its own end comes under its own name. */
const concerns = (directory: string, path: string, name: string | null): boolean =>
  path === directory || name === null || name === relative(path, directory).split(sep)[0] || name === basename(path)

const inodeOf = (path: string): string | null => {
  const stats = statSync(path, { bigint: true, throwIfNoEntry: false })
  return stats?.isDirectory() ? `${stats.dev}:${stats.ino}` : null
}
