/**
 * The whole command line as a table: what is parsed, what the help shows and what a shell completes all come from here.
 * Nothing here loads Effect, so that `volumed --help` and a mistyped flag answer at once.
 */
export interface Option {
  readonly kind: "flag" | "value"
  readonly short?: string
  /** What stands for the value in the help. */
  readonly value?: string
  readonly about: string
}

export const options = {
  server: { kind: "value", value: "URL", about: "the daemon to talk to (VOLUMED_SERVER; http://127.0.0.1:8090)" },
  output: { kind: "value", short: "o", value: "table|json|yaml", about: "form of the result (table)" },
  yes: { kind: "flag", about: "do not ask before changing something" },
  help: { kind: "flag", short: "h", about: "show this help" },
  version: { kind: "flag", about: "show the version" },
  file: { kind: "value", short: "f", value: "FILE", about: "declarations in YAML or JSON; - reads standard input" },
  standalone: { kind: "flag", about: "observe by itself with the daemon's settings; no daemon needed, none disturbed" },
  wait: { kind: "flag", about: "follow until every declared volume is Ready" },
  timeout: { kind: "value", value: "TIME", about: "how long it waits, for example 90s or 10m (10m)" },
  prune: { kind: "flag", about: "remove declarations of the same set that the file no longer has (policy forget)" },
  "take-over": { kind: "flag", about: "overwrite fields that somebody else wrote since the last apply of this set" },
  policy: { kind: "value", value: "forget|retain|delete", about: "what becomes of the volume (its deletion_policy)" },
  name: { kind: "value", value: "NAME", about: "the name to declare it under" },
  print: { kind: "flag", about: "print the declaration instead of storing it" },
  sandbox: { kind: "flag", about: "run on a simulated CloudStack and embedded defaults" },
  from: { kind: "value", value: "DSN", about: "the older daemon's database, MySQL or sqlite:FILE (DATABASE_DSN)" },
  check: { kind: "flag", about: "only say how the schema stands; changes nothing" },
  "dry-run": { kind: "flag", about: "observe and plan, never act" },
  "require-durable": { kind: "flag", about: "refuse a database that may lose what it has acknowledged" },
  "print-config": { kind: "flag", about: "show the settings, secrets redacted, and stop" },
  config: { kind: "value", value: "FILE", about: "settings as KEY=value lines; the environment wins" },
  state: { kind: "value", value: "DIR", about: "keep the sandbox's state here (a fresh temporary directory)" },
  listen: { kind: "value", value: "HOST:PORT", about: "where the daemon listens; port 0 takes a free one" },
  "cloudstack-listen": {
    kind: "value",
    value: "HOST:PORT",
    about: "where the simulated CloudStack listens; port 0 takes a free one"
  },
  latency: {
    kind: "value",
    value: "TIME",
    about: "what every request to the simulated CloudStack takes, as 50ms (0ms)"
  },
  seed: { kind: "value", value: "N", about: "seed of the simulated world (1)" },
  faults: { kind: "value", value: "FILE", about: "faults of the simulated CloudStack, as JSON" },
  vms: { kind: "value", value: "N", about: "VMs in the simulated cloud besides the appliance (2)" },
  since: { kind: "value", value: "TIME", about: "from then on: RFC 3339, or an age such as 1h or 7d (24h)" },
  watch: { kind: "flag", about: "go on and show every change, until Ctrl-C" },
  for: { kind: "value", value: "CONDITION", about: "what is waited for, as TYPE:STATUS (Ready:True)" },
  until: { kind: "value", value: "TIME", about: "when it ends by itself, in RFC 3339" },
  reason: { kind: "value", value: "TEXT", about: "why, for everybody who looks" },
  "end-clients": { kind: "flag", about: "end the connections of the NBD clients that keep it from moving" }
} as const satisfies Record<string, Option>

export type OptionName = keyof typeof options

export interface Positional {
  readonly name: string
  readonly required: boolean
  /** The only words it takes. */
  readonly choices?: ReadonlyArray<string>
}

export interface Command {
  readonly positionals: ReadonlyArray<Positional>
  readonly options: ReadonlyArray<OptionName>
  /** Options without which there is nothing to do. */
  readonly required?: ReadonlyArray<OptionName>
  /** Where an option means another thing than elsewhere. */
  readonly meanings?: Readonly<Partial<Record<OptionName, Pick<Option, "value" | "about">>>>
  readonly summary: string
  readonly details: string
}

export const global: ReadonlyArray<OptionName> = ["server", "output", "yes", "help", "version"]
const world: ReadonlyArray<OptionName> = ["state", "cloudstack-listen", "latency", "seed", "faults", "vms"]
const handle = { name: "HANDLE", required: false }
const name = { name: "NAME", required: true }
const forTime = { for: { value: "TIME", about: "how long, for example 2h, instead of --until" } }
const handleDetails =
  "A HANDLE is a declared name, a volume id, /dev/vdf, a by-id path, a serial, an export name or a VM id."

const table = {
  serve: {
    positionals: [],
    options: ["sandbox", "dry-run", "require-durable", "print-config", "config", "listen", ...world],
    summary: "run the daemon",
    details: `Settings come from the environment, or the same keys in a file named by --config. With --sandbox
nothing is needed: SQLite, a simulated CloudStack and a device tree in the state directory.`
  },
  sandbox: {
    positionals: [],
    options: world,
    summary: "run only the simulated CloudStack and device tree",
    details: `Writes DIR/sandbox.env once it listens: settings for a daemon beside it, as lines a shell can source.`
  },
  demo: {
    positionals: [],
    options: ["latency", "seed"],
    summary: "see it work: declare, converge, break, repair, fail over; asks nothing",
    details: `Runs a daemon and a simulated CloudStack on free ports with a state of its own, and removes it all.`
  },
  plan: {
    positionals: [],
    options: ["file", "standalone", "config"],
    summary: "show what would be done, and why; changes nothing",
    details: `Without -f: the plan for what is declared. With -f: the plan for what would be declared.
Exit code: 0 nothing to do, 2 changes pending, 3 drift only, 4 held or blocked.`
  },
  apply: {
    positionals: [],
    options: ["file", "wait", "timeout", "prune", "take-over"],
    required: ["file"],
    summary: "declare the volumes of a file: plan, ask, store",
    details: `With --wait it follows until every volume is Ready. Exit code then: 0 all Ready, 4 blocked,
5 not yet (the daemon goes on). Ctrl-C stops the following, not the daemon.`
  },
  get: {
    positionals: [handle],
    options: [],
    summary: "declared volumes and what is observed of them",
    details: handleDetails
  },
  explain: {
    positionals: [{ ...handle, required: true }],
    options: [],
    summary: "where one volume stands, what it waits for, and the command to type",
    details: handleDetails
  },
  drift: {
    positionals: [],
    options: [],
    summary: "gaps that no declaration caused",
    details: `Exit code: 0 none, 3 drift, 4 drift that is held or blocked.`
  },
  ops: {
    positionals: [{ name: "ID", required: false }],
    options: [],
    summary: "operations: the durable record of every action",
    details: `Without ID the newest first; with ID one of them in full; with a HANDLE those of its volumes.`
  },
  log: {
    positionals: [handle],
    options: ["since"],
    summary: "what happened: writes, operations, changes of condition",
    details: `${handleDetails} An operation id shows what belongs to that operation.`
  },
  exports: {
    positionals: [],
    options: [],
    summary: "what is served over NBD, and to whom",
    details: `SERVED is proved by a handshake, not by what the configuration says.`
  },
  devices: {
    positionals: [],
    options: ["watch"],
    summary: "disks of the appliance and the volumes they are",
    details: `With --watch one line for every disk that comes, goes or changes, until Ctrl-C.`
  },
  offerings: {
    positionals: [],
    options: [],
    summary: "disk offerings and zones a volume can be declared with",
    details: `The default is what a declaration gets that names none.`
  },
  watch: {
    positionals: [handle],
    options: [],
    summary: "what happens, as it happens, until Ctrl-C",
    details: `It goes on by itself when the connection or the daemon is interrupted, without a gap. With -o json one object
a line.`
  },
  wait: {
    positionals: [{ ...handle, required: true }],
    options: ["for", "timeout"],
    summary: "wait until a volume is as declared, or an operation has ended",
    details: `${handleDetails} An operation id waits for its end.
Exit code: 0 it is so, 1 it never will be, 4 not in time and blocked, 5 not in time, still converging.`
  },
  delete: {
    positionals: [name],
    options: ["policy"],
    summary: "declare a volume removed",
    details: `forget touches nothing; retain unexports and detaches, and keeps the volume; delete deletes it after a
grace period, until which undelete takes it back.`
  },
  undelete: {
    positionals: [name],
    options: [],
    summary: "take a removal back",
    details: `Possible until the first call that cannot be undone.`
  },
  adopt: {
    positionals: [{ name: "VOLUME_ID", required: true }],
    options: ["name", "print"],
    required: ["name"],
    summary: "declare a volume that exists in CloudStack, changing nothing about it",
    details: `--print writes the declaration for a file instead of storing it.`
  },
  accept: {
    positionals: [{ ...handle, required: true }],
    options: [],
    summary: "make what is observed the wish",
    details: `For drift that shall stay: what CloudStack and the NBD server show is declared from now on.
${handleDetails}`
  },
  retry: {
    positionals: [name],
    options: ["end-clients"],
    summary: "try again at once what backs off",
    details: `It would be tried by itself later; this ends the waiting.`
  },
  cancel: {
    positionals: [{ name: "OP", required: true }],
    options: [],
    summary: "give up an operation that a service asked for",
    details: `Its wish is taken back. What was sent to CloudStack already may still take effect, and shows as drift then.`
  },
  pause: {
    positionals: [name],
    options: ["reason", "until", "for"],
    required: ["reason"],
    meanings: forTime,
    summary: "observe and plan for a volume, but do not act",
    details: `Without --until and --for it lasts until resume.`
  },
  resume: {
    positionals: [name],
    options: [],
    summary: "act for a paused volume again",
    details: `The plan shows what it will do then.`
  },
  maintenance: {
    positionals: [{ name: "STATE", required: false, choices: ["on", "off"] }],
    options: ["reason", "until", "for"],
    meanings: forTime,
    summary: "observe and plan for everything, but act on nothing",
    details: `Without on or off it shows how things stand. on needs --reason. After off, what was pending and takes something
away is withheld until it is approved; all else runs.`
  },
  sync: {
    positionals: [],
    options: [],
    summary: "look at everything now, and say what came of it",
    details: `The daemon does the same by itself, a little later.`
  },
  approve: {
    positionals: [{ name: "DIGEST", required: true }],
    options: [],
    summary: "let held actions run",
    details: `The digest is shown by plan beside the held actions, and by maintenance beside what it withholds; it is valid
for exactly these.`
  },
  import: {
    positionals: [],
    options: ["from", "dry-run", "config"],
    meanings: { "dry-run": { about: "show what would be declared and what not, write nothing" } },
    summary: "declare what an older daemon left: its tables and NBD exports",
    details: `Reads the tables, the NBD server's sections, CloudStack and the guest's disks, and declares what is proven;
for all else it says why not, and what to do. Run it again after that: what is declared already is kept.
Exit code: 0 done, 2 there is something to declare (--dry-run), 4 something is not proven.`
  },
  migrate: {
    positionals: [],
    options: ["check", "config"],
    summary: "bring the database's schema up to date, while no daemon leads",
    details: `The daemon does the same when it starts. Exit code: 0 up to date, 2 steps are pending (--check).`
  },
  preflight: {
    positionals: [{ name: "WHAT", required: true, choices: ["restart", "upgrade", "reboot"] }],
    options: [],
    summary: "may the daemon be restarted, upgraded, or the appliance rebooted now",
    details: `Exit code: 0 go, 4 not now, with what to wait for and the command to type.`
  },
  doctor: {
    positionals: [],
    options: ["config"],
    summary: "check what volumed needs on this machine, with a fix for each",
    details: `Exit code: 0 go, 4 not now, 1 when a check itself failed.`
  },
  completion: {
    positionals: [{ name: "SHELL", required: true, choices: ["bash", "zsh", "fish"] }],
    options: [],
    summary: "what a shell needs to complete a command line",
    details: `bash: source <(volumed completion bash)
zsh:  source <(volumed completion zsh)
fish: volumed completion fish | source`
  }
} as const satisfies Record<string, Command>

export type CommandName = keyof typeof table

export const commands: Readonly<Record<CommandName, Command>> = table
export const names = Object.keys(table) as ReadonlyArray<CommandName>
export const optionNames = Object.keys(options) as ReadonlyArray<OptionName>

export const isCommand = (word: string): word is CommandName => Object.hasOwn(commands, word)
export const isOption = (word: string): word is OptionName => Object.hasOwn(options, word)

/** An option as it is meant for this command. */
export const optionOf = (command: CommandName | null, option: OptionName): Option => ({
  ...options[option],
  ...(command === null ? null : commands[command].meanings?.[option])
})

/** Its own options, then those of every command. */
export const optionsOf = (command: CommandName): ReadonlyArray<OptionName> => [...commands[command].options, ...global]

/** The words that an option takes, where it takes no others. */
export const choicesOf = (option: Option): ReadonlyArray<string> =>
  option.value !== undefined && /^[a-z]+(?:\|[a-z]+)+$/u.test(option.value) ? option.value.split("|") : []

/** `-f FILE`, `--name NAME`. */
export const flagText = (command: CommandName, name: OptionName): string => {
  const option = optionOf(command, name)
  return `${option.short === undefined ? `--${name}` : `-${option.short}`} ${option.value ?? ""}`.trimEnd()
}
