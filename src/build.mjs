import { execFile } from "node:child_process"
import { chmod, mkdir, readdir, rename, rm, writeFile } from "node:fs/promises"
import { createRequire } from "node:module"
import { basename, join, resolve } from "node:path"
import { parseArgs, promisify } from "node:util"
import { build } from "esbuild"

const root = resolve(import.meta.dirname, "..")
const { values } = parseArgs({ options: { outdir: { type: "string", default: join(root, "dist") } } })
const outdir = resolve(values.outdir)

/** @satisfies {import("esbuild").BuildOptions} */
const common = {
  absWorkingDir: root,
  outdir,
  bundle: true,
  format: "esm",
  platform: "node",
  target: "node20",
  // Names stay as written, so that a stack trace can be read.
  minifySyntax: true,
  minifyWhitespace: true,
  legalComments: "none",
  write: false,
  logLevel: "warning"
}

const program = build({
  ...common,
  entryPoints: { volumed: "src/main.ts" },
  // Client commands load only client code: what serve, sandbox and demo need lies behind a dynamic import.
  splitting: true,
  chunkNames: "[name]-[hash]",
  // A native module: its binary lies beside its JavaScript.
  external: ["libsql"],
  // CommonJS packages in the bundle ask for Node's own modules through `require`, which an ES module does not have.
  banner: {
    js: `import { createRequire as __createRequire } from "node:module"; const require = __createRequire(import.meta.url);`
  }
})

// What `import "volumed"` gives. Callers who use Effect must meet the same one in here.
const library = build({ ...common, entryPoints: { client: "src/Client/Volumed.ts" }, external: ["effect"] })

/** Its types. They are checked by `npm run check`; here they are only written down. */
const declare = async () => {
  const tsc = join(createRequire(import.meta.url).resolve("typescript/package.json"), "../bin/tsc")
  const types = join(outdir, "types")
  await rm(types, { recursive: true, force: true })
  await promisify(execFile)(process.execPath, [
    tsc,
    "-p",
    join(root, "src/tsconfig.declarations.json"),
    "--outDir",
    types
  ])
}

const outputFiles = (await Promise.all([program, library])).flatMap((built) => built.outputFiles)
await mkdir(outdir, { recursive: true })
// A build may run beside a daemon or another build: each file appears whole, the entry last, and the chunks that
// nothing names any more go after that.
const entryLast = outputFiles.toSorted((a, b) => Number(isEntry(a.path)) - Number(isEntry(b.path)))
for (const { path, contents } of entryLast) {
  const temporary = `${path}.${process.pid}.tmp`
  await writeFile(temporary, contents)
  if (isEntry(path)) await chmod(temporary, 0o755)
  await rename(temporary, path)
}
const current = new Set(outputFiles.map(({ path }) => basename(path)))
for (const name of await readdir(outdir)) {
  if (name.endsWith(".js") && !current.has(name)) await rm(join(outdir, name))
}
await declare()

/** @param {string} path */
function isEntry(path) {
  return basename(path) === "volumed.js"
}
