import { spawn } from "node:child_process"
import { once } from "node:events"
import { readdir, rm, stat } from "node:fs/promises"
import { join } from "node:path"
import { fileURLToPath } from "node:url"

const root = fileURLToPath(new URL("../../", import.meta.url))

/** The command line as users run it. */
export const program = join(root, "dist/volumed.js")

/**
 * Builds `dist/volumed.js` where it is missing or older than a source. One that could not be built anew is removed, so
 * that the tests of the built program fail for its lack instead of passing on yesterday's; the others run.
 */
export const ensure = async (): Promise<void> => {
  const release = await locked(join(root, "package.json"))
  try {
    const built = await changedAt(program)
    if (built >= (await newestSource())) return
    const child = spawn(process.execPath, [join(root, "src/build.mjs")], { cwd: root, stdio: "inherit" })
    const [code] = (await once(child, "close")) as [number | null]
    if (code === 0) return
    await rm(program, { force: true })
    process.stderr.write(`dist/volumed.js could not be built (exit ${code}); see above.\n`)
  } finally {
    release()
  }
}

/** When the newest file that goes into the build was changed, in ms since the epoch. */
const newestSource = async (): Promise<number> => {
  const files = ["package.json"]
  for (const room of ["schema", "reconciler", "src"]) {
    for (const name of await readdir(join(root, room), { recursive: true })) files.push(join(room, name))
  }
  return Math.max(...(await Promise.all(files.map((file) => changedAt(join(root, file))))))
}

const changedAt = (path: string): Promise<number> =>
  stat(path).then(
    (stats) => stats.mtimeMs,
    () => 0
  )

/** The kernel's lock on an existing file, held by a child that ends with us: a run that is killed leaves none behind. */
const locked = async (path: string): Promise<() => void> => {
  const holder = spawn("flock", [path, "sh", "-c", "echo held; exec cat"], { stdio: ["pipe", "pipe", "inherit"] })
  await once(holder, "spawn")
  const [first] = (await Promise.race([once(holder.stdout, "data"), once(holder, "close")])) as [unknown]
  if (!Buffer.isBuffer(first)) throw new Error(`${path} could not be locked (exit ${String(first)})`)
  return () => holder.stdin.end()
}
