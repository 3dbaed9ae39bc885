import { chmod, mkdir, readdir, rename, rm, writeFile } from "node:fs/promises"
import { basename, join, resolve } from "node:path"
import { parseArgs } from "node:util"
import { build } from "esbuild"

const root = resolve(import.meta.dirname, "..")
const { values } = parseArgs({ options: { outdir: { type: "string", default: join(root, "dist") } } })
const outdir = resolve(values.outdir)

const { outputFiles } = await build({
  absWorkingDir: root,
  entryPoints: { volumed: "src/main.ts" },
  outdir,
  bundle: true,
  // Client commands load only client code: what serve, sandbox and demo need lies behind a dynamic import.
  splitting: true,
  format: "esm",
  platform: "node",
  target: "node20",
  chunkNames: "[name]-[hash]",
  // A native module: its binary lies beside its JavaScript.
  external: ["libsql"],
  // Names stay as written, so that a stack trace can be read.
  minifySyntax: true,
  minifyWhitespace: true,
  legalComments: "none",
  // CommonJS packages in the bundle ask for Node's own modules through `require`, which an ES module does not have.
  banner: {
    js: `import { createRequire as __createRequire } from "node:module"; const require = __createRequire(import.meta.url);`
  },
  write: false,
  logLevel: "warning"
})

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

/** @param {string} path */
function isEntry(path) {
  return basename(path) === "volumed.js"
}
