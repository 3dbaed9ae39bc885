import { existsSync, readFileSync } from "node:fs"
import { dirname, join } from "node:path"
import { fileURLToPath } from "node:url"

/** Where the package lies: the bundle stands one level below it, the source two. */
export const root = (): string => {
  let folder = dirname(fileURLToPath(import.meta.url))
  while (!existsSync(join(folder, "package.json")) && dirname(folder) !== folder) folder = dirname(folder)
  return folder
}

export const version = (): string => {
  const content: unknown = JSON.parse(readFileSync(join(root(), "package.json"), "utf8"))
  const found = typeof content === "object" && content !== null && "version" in content ? content.version : null
  return typeof found === "string" ? found : "unknown"
}
