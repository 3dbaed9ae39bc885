import { Effect } from "effect"
import { mkdir, mkdtemp, rm, symlink, writeFile } from "node:fs/promises"
import { tmpdir } from "node:os"
import { dirname, join } from "node:path"
import type * as Linux from "../../src/Devices/Linux.ts"

/** A guest's `/dev`, `/sys/block` and `/proc` in a temporary directory, removed with the scope. */
export interface DeviceTree {
  readonly root: string
  /** Files for disks, as in the sandbox; everything in the tree. */
  readonly options: Linux.Options & { readonly dev_dir: string; readonly proc_dir: string }
  /** Writes files (contents) and symbolic links (`-> target`), making directories on the way. */
  readonly write: (entries: Readonly<Record<string, string | Buffer>>) => Effect.Effect<void>
  readonly disk: (
    kernelName: string,
    shown: { readonly serial?: string; readonly sectors?: number; readonly number?: string }
  ) => Effect.Effect<void>
  /** udev's link for a serial, to a node of this name. */
  readonly link: (name: string, kernelName: string) => Effect.Effect<void>
  readonly remove: (path: string) => Effect.Effect<void>
}

export const make = Effect.acquireRelease(
  Effect.promise(() => mkdtemp(join(tmpdir(), "volumed-devices-"))),
  (root) => Effect.promise(() => rm(root, { recursive: true, force: true }))
).pipe(
  Effect.map((root): DeviceTree => {
    const write: DeviceTree["write"] = (entries) =>
      Effect.promise(async () => {
        for (const [path, content] of Object.entries(entries)) {
          await mkdir(dirname(join(root, path)), { recursive: true })
          if (typeof content === "string" && content.startsWith("-> ")) {
            await symlink(content.slice(3), join(root, path))
          } else {
            await writeFile(join(root, path), content)
          }
        }
      })
    return {
      root,
      options: {
        by_id_dir: join(root, "dev/disk/by-id"),
        sys_block_dir: join(root, "sys/block"),
        dev_dir: join(root, "dev"),
        proc_dir: join(root, "proc"),
        device_kind: "file"
      },
      write,
      disk: (name, { number, sectors = 2_097_152, serial }) =>
        write({
          [`sys/block/${name}/size`]: `${sectors}\n`,
          [`sys/block/${name}/ro`]: "0\n",
          ...(serial === undefined ? {} : { [`sys/block/${name}/serial`]: serial }),
          ...(number === undefined ? {} : { [`sys/block/${name}/dev`]: `${number}\n` }),
          [`dev/${name}`]: ""
        }),
      link: (name, kernelName) => write({ [`dev/disk/by-id/${name}`]: `-> ../../${kernelName}` }),
      remove: (path) => Effect.promise(() => rm(join(root, path), { recursive: true }))
    }
  }),
  Effect.tap((tree) => tree.write({ "sys/block/.keep": "", "proc/self/mountinfo": "", "proc/swaps": "" }))
)

/** The entries of a fixture: `path content` or `path -> target` a line, with JSON's escapes. */
export const parse = (text: string): Record<string, Buffer | string> =>
  Object.fromEntries(
    text
      .split("\n")
      .filter((line) => line.trim() !== "" && !line.startsWith("#"))
      .map((line) => {
        const [, path = "", content = ""] = (/^(\S+)\s?(.*)$/.exec(line) ?? []).map(unescaped)
        return [path, content.startsWith("-> ") ? content : Buffer.from(content, "latin1")]
      })
  )

const unescaped = (text: string): string => JSON.parse(`"${text}"`) as string
