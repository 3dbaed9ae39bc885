import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import { chmod, mkdtemp, readFile, rm, symlink, writeFile } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as Programs from "./support/Programs.ts"

/** A machine with the tools the installer needs and an `apt-get` that installs by touching files and keeps a log. */
const machine = Effect.acquireRelease(
  Effect.promise(() => mkdtemp(join(tmpdir(), "volumed-programs-"))),
  (root) => Effect.promise(() => rm(root, { recursive: true, force: true }))
).pipe(
  Effect.tap((root) =>
    Effect.promise(async () => {
      for (const tool of ["sh", "flock", "rm", "mv", "grep", "chmod", "ls", "touch"]) {
        await symlink(`/usr/bin/${tool}`, join(root, tool))
      }
    })
  ),
  Effect.map((root) => ({ path: root, uid: 0, policy: join(root, "policy-rc.d"), lock: root }))
)
type Machine = Effect.Effect.Success<typeof machine>

const script = (machine: Machine, name: string, body: string) =>
  Effect.promise(async () => {
    await writeFile(join(machine.path, name), `#!/bin/sh\n${body}`)
    await chmod(join(machine.path, name), 0o755)
  })

const programs = [
  "nbd-server",
  "nbdinfo",
  "nbdcopy",
  "nbdkit",
  "qemu-img",
  "mariadbd",
  "mariadb-install-db",
  "my_print_defaults",
  "systemd-analyze",
  "systemd-notify"
]
const packages = "nbd-server libnbd-bin nbdkit qemu-utils mariadb-server-core mariadb-client-core systemd"

/** Logs each call beside the policy that holds meanwhile; after a fetched list, or at once, `install` brings everything. */
const aptGet = (machine: Machine, { needsLists = false, fails = false } = {}) =>
  script(
    machine,
    "apt-get",
    `cd ${machine.path}
echo "$@" >>log
grep exit policy-rc.d >>policies || echo none >>policies
case "$*" in
  *update*) touch lists ;;
  *) ${needsLists ? "[ -e lists ] || exit 100" : ":"}
     ${fails ? "echo no space left; exit 100" : `for name in ${programs.join(" ")}; do touch $name; chmod 755 $name; done`} ;;
esac`
  )

const read = (machine: Machine, name: string) =>
  Effect.promise(() => readFile(join(machine.path, name), "utf8").catch(() => null))
const ensure = (machine: Machine) =>
  Effect.tryPromise({ try: () => Programs.ensure(machine), catch: (cause) => String(cause) })
const calls = (machine: Machine) => Effect.map(read(machine, "log"), (log) => (log ?? "").trim().split("\n"))

describe("Programs", () => {
  it.scoped("installs what is missing, and lets no service start meanwhile", () =>
    Effect.gen(function* () {
      const here = yield* machine
      yield* aptGet(here)
      yield* ensure(here)
      assert.deepStrictEqual(yield* calls(here), [
        `-q -y -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 install --no-install-recommends ${packages}`
      ])
      assert.strictEqual(yield* read(here, "policies"), "exit 101\n")
      assert.isNull(yield* read(here, "policy-rc.d"))
    })
  )

  it.scoped("does nothing where everything is there", () =>
    Effect.gen(function* () {
      const here = yield* machine
      for (const name of [...programs, "apt-get"]) yield* script(here, name, "echo no >>log")
      yield* ensure(here)
      assert.isNull(yield* read(here, "log"))
    })
  )

  it.scoped("fetches the lists of packages only where the first attempt failed", () =>
    Effect.gen(function* () {
      const here = yield* machine
      yield* aptGet(here, { needsLists: true })
      yield* ensure(here)
      const verbs = (yield* calls(here)).map((line) => /\b(install|update)\b/.exec(line)?.[0])
      assert.deepStrictEqual(verbs, ["install", "update", "install"])
    })
  )

  it.scoped("puts the machine's own policy back, whether the installation worked or not", () =>
    Effect.gen(function* () {
      for (const fails of [false, true]) {
        const here = yield* machine
        yield* aptGet(here, { fails })
        yield* script(here, "policy-rc.d", "exit 42")
        yield* Effect.exit(ensure(here))
        assert.include(yield* read(here, "policies"), "exit 101")
        assert.strictEqual(yield* read(here, "policy-rc.d"), "#!/bin/sh\nexit 42")
      }
    })
  )

  it.scoped("puts back what a killed run left behind", () =>
    Effect.gen(function* () {
      const here = yield* machine
      // The first run's installer is killed in the middle, together with the whole of its apt-get.
      yield* script(here, "apt-get", "kill -9 $PPID")
      yield* script(here, "policy-rc.d", "exit 42")
      yield* Effect.exit(ensure(here))
      assert.include(yield* read(here, "policy-rc.d"), "exit 101")
      yield* aptGet(here)
      yield* ensure(here)
      assert.strictEqual(yield* read(here, "policy-rc.d"), "#!/bin/sh\nexit 42")
    })
  )

  it.scoped("lets two runs at once take turns, neither leaving its policy behind", () =>
    Effect.gen(function* () {
      const here = yield* machine
      yield* aptGet(here)
      yield* Effect.all([ensure(here), ensure(here), ensure(here)], { concurrency: "unbounded" })
      assert.isNull(yield* read(here, "policy-rc.d"))
      assert.notInclude(yield* read(here, "policies"), "none")
    })
  )

  it.scoped("stops with the line to type where it may not install, or could not", () =>
    Effect.gen(function* () {
      const line = `sudo apt-get install -y --no-install-recommends ${packages}`
      const here = yield* machine
      const without = yield* Effect.flip(ensure(here))
      assert.include(without, "no apt-get")
      assert.include(without, line)
      yield* aptGet(here, { fails: true })
      const nobody = yield* Effect.flip(ensure({ ...here, uid: 1000 }))
      assert.include(nobody, "not root")
      assert.include(nobody, line)
      yield* script(here, "sudo", "exit 1")
      assert.include(yield* Effect.flip(ensure({ ...here, uid: 1000 })), "not root")
      assert.isNull(yield* read(here, "log"))
      const failed = yield* Effect.flip(ensure(here))
      assert.include(failed, "no space left")
      assert.include(failed, line)
    })
  )

  it.scoped("asks sudo, which must not ask back", () =>
    Effect.gen(function* () {
      const here = yield* machine
      yield* aptGet(here)
      yield* script(here, "sudo", `echo "sudo $1" >>${here.path}/sudo-log; shift; [ "$1" = true ] || exec "$@"`)
      yield* ensure({ ...here, uid: 1000 })
      assert.strictEqual(yield* read(here, "sudo-log"), "sudo -n\nsudo -n\n")
      assert.lengthOf(yield* calls(here), 1)
    })
  )
})
