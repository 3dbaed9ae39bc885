import { parseArgs } from "node:util"

/**
 * The whole command line as a table: what `parse` accepts is what `help` shows. Nothing here loads Effect, so that
 * `volumed --help` and a mistyped flag answer at once.
 */
export interface Option {
  readonly kind: "flag" | "value"
  readonly short?: string
  /** What stands for the value in the help. */
  readonly value?: string
  readonly about: string
}

const options = {
  server: { kind: "value", value: "URL", about: "the daemon to talk to (VOLUMED_SERVER; http://127.0.0.1:8090)" },
  output: { kind: "value", short: "o", value: "table|json|yaml", about: "form of the result (table)" },
  yes: { kind: "flag", about: "do not ask before changing something" },
  help: { kind: "flag", short: "h", about: "show this help" },
  version: { kind: "flag", about: "show the version" },
  file: { kind: "value", short: "f", value: "FILE", about: "declarations in YAML or JSON; - reads standard input" },
  standalone: { kind: "flag", about: "observe by itself with the daemon's settings; no daemon needed, none disturbed" },
  wait: { kind: "flag", about: "follow until every declared volume is Ready" },
  timeout: { kind: "value", value: "TIME", about: "how long --wait follows, for example 90s or 10m (10m)" },
  prune: { kind: "flag", about: "remove declarations of the same set that the file no longer has (policy forget)" },
  "take-over": { kind: "flag", about: "overwrite fields that somebody else wrote since the last apply of this set" },
  policy: { kind: "value", value: "forget|retain|delete", about: "what becomes of the volume (its deletion_policy)" },
  name: { kind: "value", value: "NAME", about: "the name to declare it under" },
  print: { kind: "flag", about: "print the declaration instead of storing it" },
  sandbox: { kind: "flag", about: "run on a simulated CloudStack and embedded defaults" },
  "dry-run": { kind: "flag", about: "observe and plan, never act" },
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
  vms: { kind: "value", value: "N", about: "VMs in the simulated cloud besides the appliance (2)" }
} as const satisfies Record<string, Option>

export type OptionName = keyof typeof options

export interface Command {
  readonly positionals: ReadonlyArray<{ readonly name: string; readonly required: boolean }>
  readonly options: ReadonlyArray<OptionName>
  /** Options without which there is nothing to do. */
  readonly required?: ReadonlyArray<OptionName>
  readonly summary: string
  readonly details: string
}

const global: ReadonlyArray<OptionName> = ["server", "output", "yes", "help", "version"]
const world: ReadonlyArray<OptionName> = ["state", "cloudstack-listen", "latency", "seed", "faults", "vms"]
const handle = { name: "HANDLE", required: false }
const handleDetails =
  "A HANDLE is a declared name, a volume id, /dev/vdf, a by-id path, a serial, an export name or a VM id."

const commands = {
  serve: {
    positionals: [],
    options: ["sandbox", "dry-run", "print-config", "config", "listen", ...world],
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
    details: `Without ID the newest first; with ID one of them in full.`
  },
  delete: {
    positionals: [{ name: "NAME", required: true }],
    options: ["policy"],
    summary: "declare a volume removed",
    details: `forget touches nothing; retain unexports and detaches, and keeps the volume; delete deletes it after a
grace period, until which undelete takes it back.`
  },
  undelete: {
    positionals: [{ name: "NAME", required: true }],
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
  approve: {
    positionals: [{ name: "DIGEST", required: true }],
    options: [],
    summary: "let held actions run",
    details: `The digest is shown by plan beside the held actions; it is valid for exactly these.`
  },
  doctor: {
    positionals: [],
    options: ["config"],
    summary: "check what volumed needs on this machine, with a fix for each",
    details: `Exit code: 0 go, 4 not now, 1 when a check itself failed.`
  }
} as const satisfies Record<string, Command>

export type CommandName = keyof typeof commands

/** A command line that was understood. Values are as typed: each command reads its own. */
export interface Invocation {
  readonly command: CommandName
  readonly positionals: ReadonlyArray<string>
  readonly values: Readonly<Partial<Record<OptionName, string>>>
  readonly flags: ReadonlySet<OptionName>
  readonly server: string
  readonly output: "table" | "json" | "yaml"
}

export type Parsed =
  | { readonly _tag: "Run"; readonly invocation: Invocation }
  | { readonly _tag: "Help"; readonly text: string }
  | { readonly _tag: "Version" }
  | { readonly _tag: "Wrong"; readonly message: string }

export const parse = (
  argv: ReadonlyArray<string>,
  environment: Readonly<Record<string, string | undefined>>
): Parsed => {
  const { tokens } = parseArgs({
    args: [...argv],
    options: Object.fromEntries(Object.entries(options).map(([name, option]) => [name, declared(option)])),
    // Strictness is ours: the tokens say which flag is unknown and so what was probably meant.
    strict: false,
    allowPositionals: true,
    tokens: true
  })
  const words = tokens.filter((token) => token.kind === "positional").map((token) => token.value)
  const given = tokens.filter((token) => token.kind === "option")
  const first = words[0] === "help" ? words[1] : words[0]
  if (first !== undefined && !isCommand(first)) return wrong(`unknown command ${quote(first)}`, nearest(first, names))
  const command = first === undefined ? null : first
  const seen = read(given, command)
  if (typeof seen === "string") return { _tag: "Wrong", message: seen }
  if (seen.flags.has("help") || words[0] === "help") return { _tag: "Help", text: help(command) }
  if (seen.flags.has("version")) return { _tag: "Version" }
  if (command === null) return wrong("which command?", null)
  return complete(command, words.slice(1), seen, environment)
}

const names = Object.keys(commands) as ReadonlyArray<CommandName>
const isCommand = (word: string): word is CommandName => Object.hasOwn(commands, word)
const isOption = (name: string): name is OptionName => Object.hasOwn(options, name)

const declared = (option: Option) => ({
  type: option.kind === "flag" ? ("boolean" as const) : ("string" as const),
  ...(option.short === undefined ? {} : { short: option.short })
})

interface Seen {
  readonly values: Partial<Record<OptionName, string>>
  readonly flags: Set<OptionName>
}

interface Given {
  readonly name: string
  readonly rawName: string
  readonly value?: string | undefined
  readonly inlineValue?: boolean | undefined
}

/** The options as typed, or what is wrong with them. */
const read = (given: ReadonlyArray<Given>, command: CommandName | null): Seen | string => {
  const allowed: ReadonlyArray<OptionName> = command === null ? global : [...commands[command].options, ...global]
  const seen: Seen = { values: {}, flags: new Set() }
  for (const { name, rawName, value, inlineValue } of given) {
    if (!isOption(name)) return unknownOption(rawName, command, allowed)
    if (!allowed.includes(name)) return `${rawName} does not belong to ${command ?? "volumed"}${belongs(name)}`
    const option: Option = options[name]
    if (option.kind === "flag") {
      if (value !== undefined) return `${rawName} takes no value, found ${quote(value)}`
      seen.flags.add(name)
      continue
    }
    const looksLikeOption = value !== undefined && inlineValue !== true && value.length > 1 && value.startsWith("-")
    if (value === undefined || value === "" || looksLikeOption) return `${rawName} needs a value: ${option.value}`
    if (seen.values[name] !== undefined) return `${rawName} was given twice`
    seen.values[name] = value
  }
  return seen
}

const complete = (
  command: CommandName,
  positionals: ReadonlyArray<string>,
  seen: Seen,
  environment: Readonly<Record<string, string | undefined>>
): Parsed => {
  const wanted = commands[command].positionals
  const surplus = positionals[wanted.length]
  if (surplus !== undefined) return wrong(`${command}: unexpected argument ${quote(surplus)}`, null, command)
  const missing = wanted.find((positional, index) => positional.required && positionals[index] === undefined)
  if (missing !== undefined) return wrong(`${command}: ${missing.name} is missing`, null, command)
  const absent = requiredBy(command).find((name) => seen.values[name] === undefined)
  if (absent !== undefined) return wrong(`${command}: ${flagText(absent)} is missing`, null, command)
  const output = seen.values.output ?? "table"
  if (output !== "table" && output !== "json" && output !== "yaml") {
    return wrong(`-o ${quote(output)} is unknown`, nearest(output, ["table", "json", "yaml"]), command)
  }
  const server = seen.values.server ?? (environment["VOLUMED_SERVER"] || "http://127.0.0.1:8090")
  if (!isHttpUrl(server)) {
    const key = seen.values.server === undefined ? "VOLUMED_SERVER" : "--server"
    return wrong(`${key}: expected a URL such as http://127.0.0.1:8090, found ${quote(server)}`, null, command)
  }
  return { _tag: "Run", invocation: { command, positionals, values: seen.values, flags: seen.flags, server, output } }
}

const isHttpUrl = (text: string): boolean => URL.canParse(text) && ["http:", "https:"].includes(new URL(text).protocol)

const unknownOption = (rawName: string, command: CommandName | null, allowed: ReadonlyArray<OptionName>): string => {
  const hint = nearest(rawName.replace(/^-+/u, ""), allowed)
  return `unknown flag ${rawName}${hint === null ? "" : `; did you mean --${hint}?`}${seeHelp(command)}`
}

const belongs = (name: OptionName): string => {
  const owners = names.filter((command) => (commands[command].options as ReadonlyArray<OptionName>).includes(name))
  return owners.length === 0 ? "" : `; it is a flag of ${owners.join(", ")}`
}

const wrong = (message: string, hint: string | null, command: CommandName | null = null): Parsed => ({
  _tag: "Wrong",
  message: `${message}${hint === null ? "" : `; did you mean ${hint}?`}${seeHelp(command)}`
})

const seeHelp = (command: CommandName | null): string =>
  `\n  see: volumed ${command === null ? "" : `${command} `}--help`

/** JSON's quoting: a control character in an argument must not reach the terminal as one. */
const quote = (text: string): string => JSON.stringify(text.length > 80 ? `${text.slice(0, 80)}…` : text)

/** The candidate that was probably meant: at most a third of its letters wrong, at least two. */
export const nearest = (word: string, candidates: ReadonlyArray<string>): string | null => {
  let best: { readonly candidate: string; readonly distance: number } | null = null
  for (const candidate of candidates) {
    const distance = word.length > 40 ? Infinity : editDistance(word.toLowerCase(), candidate)
    const close = distance <= Math.max(2, Math.floor(candidate.length / 3)) && distance < candidate.length
    if (close && (best === null || distance < best.distance)) best = { candidate, distance }
  }
  return best === null ? null : best.candidate
}

/** Levenshtein's distance, one row at a time. */
const editDistance = (left: string, right: string): number => {
  let row = Array.from({ length: right.length + 1 }, (_, index) => index)
  for (let i = 1; i <= left.length; i++) {
    const next = [i]
    for (let j = 1; j <= right.length; j++) {
      const replaced = (row[j - 1] ?? 0) + (left[i - 1] === right[j - 1] ? 0 : 1)
      next.push(Math.min(replaced, (row[j] ?? 0) + 1, (next[j - 1] ?? 0) + 1))
    }
    row = next
  }
  return row[right.length] ?? 0
}

/** Milliseconds of `90s`, `10m`, `1h`, `250ms`; null when it is none of these. */
export const durationMs = (text: string): number | null => {
  const match = /^(\d{1,9}(?:\.\d{1,3})?)(ms|s|m|h)$/u.exec(text)
  if (match === null) return null
  const unit = { ms: 1, s: 1_000, m: 60_000, h: 3_600_000 }[match[2] as "ms" | "s" | "m" | "h"]
  return Math.round(Number(match[1]) * unit)
}

export const help = (command: CommandName | null): string => (command === null ? overview() : commandHelp(command))

const overview = (): string => {
  const rows = names.map((name) => [usage(name), commands[name].summary] as const)
  return `volumed: declares what each volume should be, makes it so and keeps it so

Usage: volumed COMMAND [ARGUMENT] [FLAG…]

${columns(rows)}

Flags of every command:
${columns(global.map(optionRow))}

A token for the daemon is read from VOLUMED_TOKEN. NO_COLOR switches colours off.
Exit codes: 0 nothing to do or done, 1 error, 2 changes pending, 3 drift only, 4 held or blocked,
5 time-out, still converging.
`
}

const commandHelp = (name: CommandName): string => {
  const own = commands[name].options
  return `volumed ${name}: ${commands[name].summary}

Usage: volumed ${usage(name)} [FLAG…]

${commands[name].details}
${own.length === 0 ? "" : `\nFlags:\n${columns(own.map(optionRow))}\n`}
Flags of every command:
${columns(global.map(optionRow))}
`
}

const usage = (name: CommandName): string => {
  const words = commands[name].positionals.map((p) => (p.required ? p.name : `[${p.name}]`))
  return [name, ...words, ...requiredBy(name).map(flagText)].join(" ")
}

const requiredBy = (name: CommandName): ReadonlyArray<OptionName> => {
  const command: Command = commands[name]
  return command.required ?? []
}

/** `-f FILE`, `--name NAME`. */
const flagText = (name: OptionName): string => {
  const option: Option = options[name]
  return `${option.short === undefined ? `--${name}` : `-${option.short}`} ${option.value ?? ""}`.trimEnd()
}

const optionRow = (name: OptionName): readonly [string, string] => {
  const option: Option = options[name]
  const short = option.short === undefined ? "    " : `-${option.short}, `
  return [`${short}--${name}${option.value === undefined ? "" : ` ${option.value}`}`, option.about]
}

const columns = (rows: ReadonlyArray<readonly [string, string]>): string => {
  const width = Math.max(...rows.map(([left]) => left.length))
  return rows.map(([left, right]) => `  ${left.padEnd(width)}  ${right}`).join("\n")
}
