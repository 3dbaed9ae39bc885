import { spawn } from "node:child_process"
import { constants } from "node:fs"
import { access } from "node:fs/promises"
import { delimiter, join } from "node:path"
import { fileURLToPath } from "node:url"

/** Programs of other people that the tests run, and Debian's packages that bring them. */
const programs: ReadonlyArray<{ readonly program: string; readonly package: string }> = [
  { program: "nbd-server", package: "nbd-server" },
  { program: "nbdinfo", package: "libnbd-bin" },
  { program: "nbdcopy", package: "libnbd-bin" },
  { program: "nbdkit", package: "nbdkit" },
  { program: "qemu-img", package: "qemu-utils" },
  { program: "mariadbd", package: "mariadb-server-core" },
  { program: "mariadb-install-db", package: "mariadb-server-core" },
  { program: "my_print_defaults", package: "mariadb-client-core" },
  { program: "systemd-analyze", package: "systemd" },
  { program: "systemd-notify", package: "systemd" }
]

export interface Machine {
  /** Directories in which programs are looked for. */
  readonly path: string
  /** The effective user. */
  readonly uid: number
  /** Where Debian's packages ask whether they may start a service. */
  readonly policy: string
  /** What test runs of one machine lock while one of them installs. */
  readonly lock: string
}

/** A plain user's PATH often lacks the directories for administration, where some of the programs are. */
const thisMachine: Machine = {
  path: [process.env["PATH"] ?? "", "/usr/local/sbin", "/usr/sbin", "/sbin"].join(delimiter),
  uid: process.geteuid?.() ?? -1,
  policy: "/usr/sbin/policy-rc.d",
  lock: "/var/lib/dpkg"
}

/**
 * Makes sure that every program is there, installing Debian's packages where this user may. Where that cannot be done it
 * throws, with the line to type: tests that need a program must never pass by not running.
 */
export const ensure = async (machine: Machine = thisMachine): Promise<void> => {
  const packages = await missing(machine)
  if (packages.length === 0) return
  const byHand = `sudo apt-get install -y --no-install-recommends ${packages.join(" ")}`
  const root = await asRoot(machine)
  if (root._tag === "Impossible") {
    throw new Error(`The tests need ${packages.join(" and ")}, and ${root.why}. Type:\n\n    ${byHand}\n`)
  }
  process.stdout.write(`Installing ${packages.join(" ")} for the tests; no service will be started.\n`)
  const { code, output } = await run(machine, [
    ...root.prefix,
    "sh",
    installer,
    machine.policy,
    machine.lock,
    ...packages
  ])
  const stillMissing = await missing(machine)
  if (code === 0 && stillMissing.length === 0) return
  throw new Error(`${packages.join(" ")} could not be installed (exit ${code}):\n${output}\nType:\n\n    ${byHand}\n`)
}

const installer = fileURLToPath(new URL("install.sh", import.meta.url))

/** Packages whose programs are not there, each once. */
const missing = async (machine: Machine): Promise<ReadonlyArray<string>> => {
  const found = await Promise.all(programs.map(({ program }) => has(machine, program)))
  return [...new Set(programs.filter((_, index) => found[index] !== true).map((row) => row.package))]
}

const has = async (machine: Machine, program: string): Promise<boolean> => {
  for (const directory of machine.path.split(delimiter).filter((entry) => entry !== "")) {
    const there = await access(join(directory, program), constants.X_OK).then(
      () => true,
      () => false
    )
    if (there) return true
  }
  return false
}

/** How to run a command as root without a question; or why that cannot be done here. */
const asRoot = async (machine: Machine) => {
  if (!(await has(machine, "apt-get"))) {
    return { _tag: "Impossible", why: "this machine has no apt-get to install them with" } as const
  }
  if (machine.uid === 0) return { _tag: "Possible", prefix: [] } as const
  if ((await has(machine, "sudo")) && (await run(machine, ["sudo", "-n", "true"])).code === 0) {
    return { _tag: "Possible", prefix: ["sudo", "-n"] } as const
  }
  return { _tag: "Impossible", why: "this user is not root and has no sudo that asks nothing" } as const
}

/** Ends with the exit code and the last of what was said; a program that cannot be started is an exit of its own. */
const run = (machine: Machine, [command = "", ...args]: ReadonlyArray<string>) =>
  new Promise<{ readonly code: number | null; readonly output: string }>((done) => {
    let output = ""
    const child = spawn(command, args, {
      env: { ...process.env, PATH: machine.path },
      stdio: ["ignore", "pipe", "pipe"]
    })
    const take = (chunk: Buffer) => {
      output = (output + chunk.toString()).slice(-4_000)
    }
    child.stdout.on("data", take)
    child.stderr.on("data", take)
    child.on("error", (cause) => done({ code: null, output: String(cause) }))
    child.on("close", (code) => done({ code, output }))
  })
