import { afterAll, assert, beforeAll, describe, it } from "@effect/vitest"
import { execFileSync, spawnSync } from "node:child_process"
import { mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"

/** The package as it is installed in a project of its user's own. */
const root = fileURLToPath(new URL("../../", import.meta.url))
let project = ""

beforeAll(() => {
  project = mkdtempSync(join(tmpdir(), "volumed-package-"))
  mkdirSync(join(project, "node_modules"))
  symlinkSync(root, join(project, "node_modules/volumed"))
  writeFileSync(join(project, "package.json"), '{"type":"module"}')
})
afterAll(() => rmSync(project, { recursive: true, force: true }))

const write = (name: string, ...lines: ReadonlyArray<string>) => writeFileSync(join(project, name), lines.join("\n"))

describe("the package", () => {
  it("is imported by its name, and loads nothing but Effect", () => {
    write(
      "use.js",
      `import * as Volumed from "volumed"`,
      `const volumed = Volumed.connect({ server: "http://127.0.0.1:1", retry: { tries: 1 } })`,
      `const error = await volumed.plan().catch((error) => error)`,
      `console.log(error instanceof Volumed.ServerUnreachable, Volumed.classify(error).retryable)`
    )
    const { stdout, stderr } = spawnSync(process.execPath, ["use.js"], { cwd: project, encoding: "utf8" })
    assert.strictEqual(stdout, "true true\n", stderr)
    const imported = [...readFileSync(join(root, "dist/client.js"), "utf8").matchAll(/\b(?:from|import) ?"([^"]+)"/gu)]
    assert.deepStrictEqual([...new Set(imported.map(([, name]) => name))], ["effect"])
  })

  it("is typed", () => {
    write(
      "use.ts",
      `import * as Volumed from "volumed"`,
      `const volumed = Volumed.connect({ server: "http://127.0.0.1:8090" })`,
      `export const id: Promise<string> = volumed.v1.attach("v", "m").then((operation) => operation.id)`,
      `export const events: AsyncIterable<Volumed.Event> = volumed.watch({ after: 3 })`,
      `export const put = volumed.put("a", { size: "10GiB", attached_to: "appliance" })`,
      `// @ts-expect-error: there is no such placement`,
      `export const wrong = volumed.put("a", { attached_to: 3 })`,
      `// @ts-expect-error: there is no such function`,
      `volumed.attach()`
    )
    const options = { module: "nodenext", strict: true, noEmit: true, skipLibCheck: false, types: [], target: "es2023" }
    write("tsconfig.json", JSON.stringify({ compilerOptions: options, files: ["use.ts"] }))
    const { stdout, status } = spawnSync(process.execPath, [join(root, "node_modules/typescript/bin/tsc")], {
      cwd: project,
      encoding: "utf8"
    })
    assert.strictEqual(status, 0, stdout)
  })

  it("ships what its entries name, and neither sources nor tests", () => {
    const packed = execFileSync("npm", ["pack", "--dry-run", "--json", "--ignore-scripts"], {
      cwd: root,
      encoding: "utf8",
      stdio: ["ignore", "pipe", "ignore"]
    })
    const [pack] = JSON.parse(packed) as ReadonlyArray<{ readonly files: ReadonlyArray<{ readonly path: string }> }>
    const files = (pack?.files ?? []).map(({ path }) => path)
    assert.includeMembers(files, [
      "dist/volumed.js",
      "dist/client.js",
      "dist/types/src/Client/Volumed.d.ts",
      "fixtures/demo/volumes.yaml",
      "examples/migration-volumes.ts",
      "README.md",
      "LICENSE"
    ])
    assert.deepStrictEqual(
      files.filter((path) => /^(?:src|schema|reconciler|test)\//.test(path)),
      []
    )
  })
})
