import { assert, describe, it } from "@effect/vitest"
import { Effect, Queue, Stream } from "effect"
import { once } from "node:events"
import { watch } from "node:fs"
import { mkdir, readdir, readFile, rename, rm, symlink, writeFile } from "node:fs/promises"
import { join } from "node:path"
import * as Watch from "../../src/Devices/Watch.ts"
import * as DeviceTree from "../support/DeviceTree.ts"

const run = (work: () => Promise<unknown>) => Effect.promise(work)

/** Pokes of a directory as a queue; what the start itself poked is drained. */
const watching = Effect.fnUntraced(function* (directory: string) {
  const pokes = yield* Queue.unbounded<void>()
  yield* Watch.changes(directory).pipe(
    Stream.runForEach(() => Queue.offer(pokes, undefined)),
    Effect.forkScoped
  )
  yield* Queue.take(pokes)
  return pokes
})

/** The change is made and reported: the poke awaited was given after the change began. */
const reports = (pokes: Queue.Queue<void>, change: () => Promise<unknown>) =>
  Effect.gen(function* () {
    // What an earlier change may still have in the air must not be taken for this one's.
    yield* Effect.sleep("60 millis")
    yield* Queue.takeAll(pokes)
    yield* run(change)
    yield* Queue.take(pokes)
  })

describe("Watch", () => {
  it.scopedLive("pokes when links come, go, and change", () =>
    Effect.gen(function* () {
      const tree = yield* DeviceTree.make
      const directory = tree.options.by_id_dir
      yield* run(() => mkdir(directory, { recursive: true }))
      const pokes = yield* watching(directory)
      yield* reports(pokes, () => symlink("../../vdb", join(directory, "virtio-a")))
      yield* reports(pokes, () => symlink("../../vdc", join(directory, "new")))
      yield* reports(pokes, () => rename(join(directory, "new"), join(directory, "virtio-a")))
      yield* reports(pokes, () => rm(join(directory, "virtio-a")))
    })
  )

  it.scopedLive("hears a directory that does not exist yet, nor its parents", () =>
    Effect.gen(function* () {
      const tree = yield* DeviceTree.make
      const directory = tree.options.by_id_dir
      const pokes = yield* watching(directory)
      yield* reports(pokes, () => mkdir(join(tree.root, "dev/disk"), { recursive: true }))
      yield* reports(pokes, () => mkdir(directory))
      yield* reports(pokes, () => symlink("../../vdb", join(directory, "virtio-a")))
    })
  )

  it.scopedLive("is not deaf after udev removed the directory and made it again, as often as it likes", () =>
    Effect.gen(function* () {
      const tree = yield* DeviceTree.make
      const directory = tree.options.by_id_dir
      const parent = join(directory, "..")
      yield* run(() => mkdir(directory, { recursive: true }))
      const pokes = yield* watching(directory)
      for (const gone of [directory, parent, directory]) {
        yield* reports(pokes, () => rm(gone, { recursive: true }))
        yield* reports(pokes, () => mkdir(directory, { recursive: true }))
        yield* reports(pokes, () => symlink("../../vdb", join(directory, "virtio-a")))
      }
      // At once, so that no look falls between: the name is the same, the directory another.
      yield* reports(pokes, async () => {
        await rm(parent, { recursive: true })
        await mkdir(directory, { recursive: true })
      })
      yield* reports(pokes, () => symlink("../../vdb", join(directory, "virtio-a")))
      yield* reports(pokes, async () => {
        await rename(parent, join(parent, "../moved"))
        await mkdir(directory, { recursive: true })
      })
      yield* reports(pokes, () => symlink("../../vdb", join(directory, "virtio-a")))
    })
  )

  it.scopedLive("makes few pokes of a storm, the last one after its end (D2)", () =>
    Effect.gen(function* () {
      const tree = yield* DeviceTree.make
      const directory = tree.options.by_id_dir
      yield* run(() => mkdir(directory, { recursive: true }))
      const pokes = yield* watching(directory)
      yield* Effect.sleep("60 millis")
      yield* Queue.takeAll(pokes)
      yield* run(async () => {
        for (let turn = 0; turn < 500; turn++) {
          await symlink("../../vdb", join(directory, "virtio-a"))
          await rm(join(directory, "virtio-a"))
        }
      })
      yield* Queue.take(pokes)
      yield* Effect.sleep("100 millis")
      const more = yield* Queue.takeAll(pokes)
      assert.isBelow(more.length, 250)
      yield* reports(pokes, () => symlink("../../vdb", join(directory, "virtio-a")))
    })
  )

  it.scopedLive("minds only the one child of the parent that is its own", () =>
    Effect.gen(function* () {
      const tree = yield* DeviceTree.make
      const directory = tree.options.by_id_dir
      yield* run(() => mkdir(directory, { recursive: true }))
      const pokes = yield* watching(directory)
      yield* Effect.sleep("60 millis")
      yield* Queue.takeAll(pokes)
      // A second watch of the same directory proves that the neighbour's event has been handed out.
      yield* run(async () => {
        const control = watch(join(directory, ".."))
        const seen = once(control, "change")
        await writeFile(join(directory, "../by-path"), "")
        await seen
        control.close()
      })
      yield* Effect.sleep("60 millis")
      assert.strictEqual((yield* Queue.takeAll(pokes)).length, 0)
    })
  )

  it.scopedLive("closes its watches with the scope", () =>
    Effect.gen(function* () {
      const tree = yield* DeviceTree.make
      yield* run(() => mkdir(tree.options.by_id_dir, { recursive: true }))
      const before = yield* inotifyWatches
      yield* Effect.scoped(
        Effect.gen(function* () {
          yield* Effect.asVoid(watching(tree.options.by_id_dir))
          assert.strictEqual(yield* inotifyWatches, before + 2)
        })
      )
      assert.strictEqual(yield* inotifyWatches, before)
    })
  )
})

/** How many watches this process has in the kernel (`proc(5)`: a line each in the descriptor's fdinfo). */
const inotifyWatches = Effect.promise(async () => {
  let count = 0
  for (const descriptor of await readdir("/proc/self/fdinfo")) {
    const info = await readFile(`/proc/self/fdinfo/${descriptor}`, "utf8").catch(() => "")
    count += info.split("\n").filter((line) => line.startsWith("inotify ")).length
  }
  return count
})
