import { Effect, Either } from "effect"
import { readdir, readFile } from "node:fs/promises"
import { join } from "node:path"
import { Nbd } from "../../reconciler/Nbd.ts"
import type { NbdReading } from "../../schema/Inventory.ts"
import type { NbdSettings, Settings } from "../../schema/Settings.ts"
import * as Files from "../Devices/Files.ts"
import * as Pin from "../Nbd/Pin.ts"
import * as Processes from "../Nbd/Processes.ts"
import * as Rights from "../Nbd/Rights.ts"
import { type Finding, fail, limited, ok, warn } from "./Finding.ts"
import * as NbdFileCheck from "./NbdFileCheck.ts"
import { clean } from "./Output.ts"

/** The NBD side, and what neither a unit file nor a handshake shows of it. Nothing is changed by looking. */
export const check = Effect.fn("NbdCheck.check")(function* (settings: Settings) {
  const nbd = yield* Nbd
  const asked = yield* Effect.either(nbd.observe([]))
  if (Either.isLeft(asked)) {
    return [
      fail("NBD server", clean(asked.left.message), "systemctl status volumed-nbd-server; journalctl -t nbd_server")
    ]
  }
  const reading = asked.right
  const findings = [state(reading, settings), config(reading, settings), ...letters(reading)]
  switch (reading.engine) {
    case "simulated":
      return findings
    case "nbdkit":
      return [...findings, ...(yield* listening(reading)), ...engines(reading), ...(yield* service(settings.nbd))]
    case "nbd-server":
      return [
        ...findings,
        ...version(reading.version ?? ""),
        ...(yield* listening(reading)),
        ...(yield* NbdFileCheck.check(settings, reading.host)),
        ...engines(reading),
        ...(yield* processes(settings, reading)),
        ...(yield* service(settings.nbd)),
        keepalive(yield* keepaliveNow)
      ]
  }
})

const state = (reading: NbdReading, settings: Settings): Finding => {
  const name = `${reading.engine} ${reading.version ?? ""}`.trim()
  const { pid, problem } = reading.server
  const said = clean(problem ?? reading.server.state)
  switch (reading.server.state) {
    case "running": {
      const runs = `${name} runs as pid ${pid ?? "?"} with ${placeOf(reading, settings)}`
      return problem === null
        ? ok("NBD server", runs)
        : warn("NBD server", `${runs}; ${said}`, "what it says, at a quiet moment")
    }
    case "absent":
      return settings.nbd.start === "off"
        ? warn(
            "NBD server",
            `${name}: none listens on port ${reading.port}`,
            `start it with ${placeOf(reading, settings)}`
          )
        : ok(
            "NBD server",
            `${name}: none listens on port ${reading.port}; volumed starts it when there is something to serve`
          )
    case "not_installed":
      return fail("NBD server", said, `apt-get install ${reading.engine}`)
    case "foreign":
      return fail("NBD server", said, aside(reading))
    case "hung":
      return fail("NBD server", said, "nothing: volumed replaces it; without volumed end that process")
  }
}

const aside = ({ engine, port, read_only_port }: NbdReading): string =>
  engine === "nbdkit"
    ? `end it, or give NBD_PORT another port (ss -ltnp 'sport = ${port} or sport = ${read_only_port}')`
    : `give NBD_CONFIG the file of its -C, or NBD_PORT another port (ss -ltnp 'sport = ${port}')`

const placeOf = ({ engine }: NbdReading, { nbd, state_dir }: Settings): string =>
  engine === "nbdkit" ? `links in ${join(state_dir, "nbdkit")}` : `-C ${nbd.config}`

const config = (reading: NbdReading, settings: Settings): Finding =>
  reading.config_problem === null
    ? ok("NBD config", `${placeOf(reading, settings)}: ${reading.sections.length} exports`)
    : fail("NBD config", clean(reading.config_problem), mending(reading, settings))

const mending = ({ engine }: NbdReading, { nbd, state_dir }: Settings): string =>
  engine === "nbdkit"
    ? `make ${join(state_dir, "nbdkit")} and all in it directories of root's own (ls -lR)`
    : `mend ${nbd.config}, or move it away`

/** By a letter nobody knows a disk: after a reboot it may be another's. */
const letters = ({ sections }: NbdReading): ReadonlyArray<Finding> => {
  const named = sections.filter(({ path }) => /^\/dev\/(?:[shv]d|xvd)[a-z]+\d*$/.test(path ?? ""))
  return limited("NBD paths", named, "no export names a disk by its letter", ({ name, path }) =>
    warn(
      "NBD paths",
      `${clean(name)} names ${clean(path ?? "")}, which may be another disk one day`,
      "volumed import --dry-run"
    )
  )
}

/** What is wrong with each version whatever is done (3.20–3.27 were tried): a person must know it, for no program shows it. */
export const version = (text: string): ReadonlyArray<Finding> => {
  const [, major = "0", minor = "0"] = /^(\d+)\.(\d+)/.exec(text) ?? []
  const number = Number(major) * 1000 + Number(minor)
  const never = "never have it reloaded, by systemctl or a signal, as volumed never does"
  const hup =
    number >= 3020 && number <= 3024
      ? warn(
          "NBD reload",
          `nbd-server ${clean(text)} damages its memory at every HUP signal`,
          `${never}; 3.25 and newer survive it`
        )
      : number === 3026
        ? warn("NBD reload", `nbd-server ${clean(text)} may end at a HUP signal while its file cannot be read`, never)
        : ok("NBD reload", `nbd-server ${clean(text)} survives a HUP signal, and only adds exports at it`)
  return [
    hup,
    warn(
      "NBD zeroes",
      "nbd-server writes only the first 64 MiB of a longer request for zeroes, and calls it done",
      "have writers ask for less: nbdcopy --no-extents; or NBD_BACKEND=nbdkit"
    )
  ]
}

/** Where the processes that serve really take connections (N13): the file says little about a server that runs. */
const listening = Effect.fn("NbdCheck.listening")(function* ({ host, port, read_only_port, server }: NbdReading) {
  if (server.state !== "running") return []
  const ports = [...new Set([port, read_only_port])]
  const expected = ports.map((one) => `${host}:${one}`)
  const owners = yield* Processes.owners(new Set(ports.flatMap((one) => [...Processes.listening(host, one)])))
  const all = new Set(owners.flatMap(({ pid }) => Processes.listens(pid)))
  const wider = [...all].filter((at) => !expected.includes(at))
  return limited("NBD listens", wider, `on ${expected.join(" and ")} alone`, (at) =>
    fail(
      "NBD listens",
      `the server takes connections on ${at}, and is wanted on ${expected.join(" and ")} alone`,
      `NBD_HOST=${host}: the next load of volumed replaces the server`
    )
  )
})

/** Two engines on one machine know nothing of each other: one may serve a disk that the other has let go. */
const engines = ({ engine }: NbdReading): ReadonlyArray<Finding> => {
  const other = engine === "nbdkit" ? "nbd-server" : "nbdkit"
  const running = Processes.pids().filter((pid) => Processes.program(pid)?.name === other)
  return limited("NBD engines", running, `${engine} alone`, (pid) =>
    warn(
      "NBD engines",
      `${other} runs too, as pid ${pid}: two engines may serve one disk`,
      `end it once its clients are done`
    )
  )
}

const processes = Effect.fn("NbdCheck.processes")(function* (settings: Settings, reading: NbdReading) {
  const { nbd } = settings
  const main = reading.server.pid
  const earlier = Processes.servers(nbd.config).filter(({ parent, pid }) => pid !== main && parent !== main)
  const exported = new Set(reading.sections.flatMap(({ device }) => device ?? []))
  const strangers = reading.holders.filter(({ device, peer }) => peer === null && exported.has(device))
  const pins = yield* Pin.leftovers(settings)
  return [
    ...limited("NBD clients", earlier, "none of an earlier server", ({ pid }) => {
      const peer = reading.holders.find((holder) => holder.pid === pid)?.peer ?? "nobody yet"
      const found = `pid ${pid} serves ${clean(peer)} and is of an earlier server: it ends with its client`
      return warn("NBD clients", found, "nothing, or: volumed retry NAME --end-clients")
    }),
    ...limited("NBD disks", strangers, "open to NBD clients alone", ({ command, device, pid }) =>
      warn(
        "NBD disks",
        `${clean(command)} (pid ${pid}) has ${clean(device)} open, which is exported`,
        "end it, or unmount it"
      )
    ),
    ...(nbd.pin || pins.length > 0
      ? limited("NBD pins", pins, "none is left over", ({ path, process: { pid } }) =>
          warn(
            "NBD pins",
            `pid ${pid} holds ${clean(path)} for no export`,
            "nothing: volumed ends it with its next load"
          )
        )
      : []),
    ...(nbd.pin && main !== null ? pinRights(main) : [])
  ]
})

/** Without it every export would be refused to its clients. */
const pinRights = (main: number): ReadonlyArray<Finding> => {
  const problem = Rights.problem(main)
  const fix =
    "install volumed-nbd-server.service.d/pin.conf; systemctl daemon-reload; systemctl restart volumed-nbd-server"
  return problem === null ? [] : [fail("NBD pins", problem, fix)]
}

/** What would start Debian's own service at boot, as a path; null where nothing does. `root`: of the file system. */
const starter = (root: string): Effect.Effect<string | null> =>
  Effect.gen(function* () {
    for (const directory of ["etc/systemd/system/multi-user.target.wants", ...LEVELS.map((n) => `etc/rc${n}.d`)]) {
      const path = join(root, directory)
      const names = yield* Effect.orElseSucceed(
        Files.attempt(() => readdir(path)),
        () => []
      )
      const name = names.find((one) => /^(?:nbd-server\.service|S\d\dnbd-server)$/.test(one))
      if (name !== undefined) return join(path, name)
    }
    return null
  })

/** In which systemd looks for scripts of old (systemd-sysv-generator(8)). */
const LEVELS = [2, 3, 4, 5]

export const service = (nbd: Pick<NbdSettings, "port" | "start">, root = "/"): Effect.Effect<ReadonlyArray<Finding>> =>
  Effect.map(starter(root), (path) => {
    if (/^unit:nbd-server(?:\.service)?$/.test(nbd.start)) return []
    const taken = `${path} starts Debian's server with its own file at boot, which may take port ${nbd.port}`
    return [
      path === null
        ? ok("NBD service", "Debian's own is not started at boot")
        : warn("NBD service", taken, "systemctl disable nbd-server (without --now, which ends its transfers)")
    ]
  })

/** s, s, number: a client that is gone for good is noticed after two minutes, and until then it holds its disk. */
const KEEPALIVE = { time: 60, intvl: 10, probes: 6 }

export const keepalive = (now: Readonly<Record<string, number>>): Finding => {
  const long = Object.entries(KEEPALIVE).filter(([key, most]) => (now[key] ?? 0) > most)
  const shown = (key: string, value: number | undefined) => `net.ipv4.tcp_keepalive_${key}=${value ?? "?"}`
  return long.length === 0
    ? ok("NBD keepalive", "a client that is gone is noticed within two minutes")
    : warn(
        "NBD keepalive",
        `${long.map(([key]) => shown(key, now[key])).join(", ")}: a client that is gone holds its disk for long`,
        `sysctl -w ${long.map(([key, most]) => shown(key, most)).join(" ")}, and the same in /etc/sysctl.d`
      )
}

const keepaliveNow: Effect.Effect<Readonly<Record<string, number>>> = Effect.map(
  Effect.forEach(Object.keys(KEEPALIVE), (key) =>
    Files.attempt(() => readFile(`/proc/sys/net/ipv4/tcp_keepalive_${key}`, "latin1")).pipe(
      Effect.map((text) => [key, Number(text)] as const),
      Effect.orElseSucceed(() => [key, 0] as const)
    )
  ),
  (pairs) => Object.fromEntries(pairs)
)
